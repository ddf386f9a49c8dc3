"""RecTools' SASRec (full softmax).

The first trial is the class's defaults. The others are one smaller model with smaller batches (more
steps an epoch), checked on W2b as it is trained on.
"""

import copy
import warnings

import numpy as np
import pytorch_lightning
import torch
from exchange import Data, Scorer, main
from rectools.models import SASRecModel
from rectools_frames import asked, learnt

TRIALS = [
    {"factors": 256, "batch": 128, "epochs": 3},  # the class's defaults
    {"factors": 64, "batch": 16, "epochs": 3},
    {"factors": 64, "batch": 16, "epochs": 6},
    {"factors": 64, "batch": 16, "epochs": 10},
]
training: dict = {}  # a model that is trained on from trial to trial


def fit(data: Data, seed: int, windows: list, factors: int, batch: int, epochs: int) -> Scorer:
    warnings.simplefilter("ignore")
    dataset = learnt(data, windows)
    key = (factors, batch, *windows)
    if training.get("key") != key or training["epochs"] > epochs:
        pytorch_lightning.seed_everything(seed, verbose=False)
        training.update(
            key=key,
            epochs=0,
            model=SASRecModel(n_factors=factors, batch_size=batch, recommend_torch_device="cpu"),
        )
    model = training["model"]
    more = epochs - training["epochs"]
    if more:
        model.fit_partial(dataset, min_epochs=more, max_epochs=more)
    training["epochs"] = epochs
    module = copy.deepcopy(model.torch_model)  # as it is now
    external = model.data_preparator.item_id_map.convert_to_external(
        model.data_preparator.get_known_items_sorted_internal_ids()
    )
    internal = model.data_preparator.get_known_items_sorted_internal_ids()

    def scorer(rows: np.ndarray) -> np.ndarray:
        scores = np.full((len(rows), data.n_items), -np.inf, dtype=np.float32)
        known = dataset.item_id_map
        prepared = model.data_preparator.transform_dataset_u2i(asked(data, rows, known), rows)
        if not prepared.user_id_map.size:
            return scores
        loader = model.data_preparator.get_dataloader_recommend(prepared, 256)
        now, model.lightning_model.torch_model = model.lightning_model.torch_model, module
        try:
            users, items = model.lightning_model._get_user_item_embeddings(loader, "cpu")
        finally:
            model.lightning_model.torch_model = now
        place = np.searchsorted(rows, prepared.user_id_map.external_ids.astype(np.int64))
        with torch.no_grad():
            found = (users @ items[internal].T).numpy()
        scores[np.ix_(place, external.astype(np.int64))] = found
        return scores

    return scorer


if __name__ == "__main__":
    main(fit, TRIALS)
