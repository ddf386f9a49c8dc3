"""clax's click models (gradient descent in JAX) on lists in Parquet, in an environment of its own.

    python click_models.py LISTS OUT [--model NAME ...] [--seed 0]

LISTS has a row a filled slot: list, slot (from 0), item (from 0), clicked, part (learn, tune,
judge). Each model learns from `learn` under six settings; the one that is best on `tune`, after its
best number of epochs, learns again from both. OUT gets slots.parquet (model, list, slot,
given_above, marginal: the probabilities of a click that it says of `judge`), lists.parquet (model,
list, log_likelihood) and facts.json.
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from clax.models import (
    CascadeModel,
    DependentClickModel,
    DynamicBayesianNetwork,
    MixtureModel,
    PositionBasedModel,
    UserBrowsingModel,
)
from clax.parameters import EmbeddingParameter
from clax.parameters.defaults import default_attraction_config
from flax import nnx

BATCH, EPOCHS, PATIENCE = 512, 300, 6
TRIALS: list[dict[str, Any]] = [
    {"rate": rate, "decay": decay} for rate in (0.03, 0.1) for decay in (0.3, 3.0, 10.0)
]
NAMES = ("PBM", "UBM", "Cascade", "DCM", "SDBN", "Mixture")


def made(name: str, slots: int, items: int, seed: int) -> nnx.Module:
    rngs = nnx.Rngs(seed)
    of = {"query_doc_pairs": items, "rngs": rngs}
    if name == "Mixture":
        attraction = EmbeddingParameter(default_attraction_config(items), rngs=rngs)
        position = PositionBasedModel(positions=slots, attraction=attraction, rngs=rngs)
        return MixtureModel([position, CascadeModel(attraction=attraction, rngs=rngs)])
    return {
        "PBM": lambda: PositionBasedModel(positions=slots, **of),
        "UBM": lambda: UserBrowsingModel(positions=slots, **of),
        "Cascade": lambda: CascadeModel(**of),
        "DCM": lambda: DependentClickModel(positions=slots, **of),
        "SDBN": lambda: DynamicBayesianNetwork(fix_continuation=True, **of),
    }[name]()


def batches(rows: pd.DataFrame, slots: int) -> tuple[dict, np.ndarray]:
    """Lists as clax reads them (0: an empty slot), and their numbers."""
    lists, at = np.unique(rows["list"], return_inverse=True)
    slot = rows["slot"].to_numpy()
    shape = (len(lists), slots)
    batch = {
        "positions": np.zeros(shape, np.int32),
        "query_doc_ids": np.zeros(shape, np.int32),
        "clicks": np.zeros(shape, np.float32),
        "mask": np.zeros(shape, bool),
    }
    batch["positions"][at, slot] = slot + 1
    batch["query_doc_ids"][at, slot] = rows["item"].to_numpy() + 1
    batch["clicks"][at, slot] = rows["clicked"].to_numpy()
    batch["mask"][at, slot] = True
    return batch, lists


def of_items(tree: Any) -> Any:
    """What weight decay shrinks: the embeddings of items."""
    kinds = ("attraction", "satisfaction")

    def chosen(path: Any, _: Any) -> bool:
        names = jax.tree_util.keystr(path)
        return "embedding" in names and any(kind in names for kind in kinds)

    return jax.tree_util.tree_map_with_path(chosen, tree)


def log_likelihood(model: nnx.Module, batch: dict) -> jax.Array:
    """Of each list, (n,)."""
    if isinstance(model, MixtureModel):
        return -model.compute_loss(batch)
    return -jnp.where(batch["mask"], model.compute_loss(batch, aggregate=False), 0).sum(axis=1)


@nnx.jit
def learn(model: nnx.Module, optimizer: nnx.Optimizer, batch: dict) -> None:
    def loss(model: nnx.Module) -> jax.Array:
        return model.compute_loss(batch).mean()

    optimizer.update(nnx.grad(loss)(model))


judge = nnx.jit(lambda model, batch: log_likelihood(model, batch).mean())


def train(
    name: str,
    slots: int,
    items: int,
    seed: int,
    data: dict,
    tune: dict,
    rate: float,
    decay: float,
    epochs: int | None = None,
) -> tuple[nnx.Module, float, int]:
    """The model, the best log-likelihood a list on `tune` (None: not looked at) and its epoch."""
    model = made(name, slots, items, seed)
    adam = optax.adamw(rate, weight_decay=decay, mask=of_items)
    optimizer = nnx.ModelAndOptimizer(model, adam)
    rng = np.random.default_rng(seed)
    n, best, at = len(data["mask"]), -np.inf, 0
    for epoch in range(1, (epochs or EPOCHS) + 1):
        order = rng.permutation(n)
        for i in range(0, n - BATCH + 1, BATCH):
            learn(model, optimizer, {k: v[order[i : i + BATCH]] for k, v in data.items()})
        if epochs is None:
            now = float(judge(model, tune))
            if now > best:
                best, at = now, epoch
            elif epoch - at >= PATIENCE:
                break
    return model, best, at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lists", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", action="append", choices=NAMES)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = pd.read_parquet(options.lists)
    slots, items = int(rows["slot"].max()) + 1, int(rows["item"].max()) + 1
    data, _ = batches(rows[rows["part"] == "learn"], slots)
    tune, _ = batches(rows[rows["part"] == "tune"], slots)
    both = {k: np.concatenate([data[k], tune[k]]) for k in data}
    judged, numbers = batches(rows[rows["part"] == "judge"], slots)
    at, slot = np.nonzero(judged["mask"])
    said: list[pd.DataFrame] = []
    whole: list[pd.DataFrame] = []
    models: dict[str, dict] = {}
    for name in options.model or NAMES:
        start = time.time()
        trials: list[dict[str, Any]] = []
        for trial in TRIALS:
            _, best, epochs = train(name, slots, items, options.seed, data, tune, **trial)
            trials.append({**trial, "tune": best, "epochs": epochs})
            print(name, trials[-1], f"{time.time() - start:.0f} s", flush=True)
        chosen = max(trials, key=lambda trial: trial["tune"])
        settings = {key: chosen[key] for key in ("rate", "decay", "epochs")}
        model, *_ = train(name, slots, items, options.seed, both, tune, **settings)
        model.eval()
        given = np.asarray(jnp.exp(model.predict_conditional_clicks(judged)), np.float64)
        marginal = np.asarray(jnp.exp(model.predict_clicks(judged)), np.float64)
        of_model = {"model": name, "list": numbers[at], "slot": slot}
        of_model |= {"given_above": given[at, slot], "marginal": marginal[at, slot]}
        said.append(pd.DataFrame(of_model))
        likelihood = np.asarray(log_likelihood(model, judged), np.float64)
        of_lists = {"model": name, "list": numbers, "log_likelihood": likelihood}
        whole.append(pd.DataFrame(of_lists))
        seconds = time.time() - start
        models[name] = {"chosen": chosen, "trials": trials, "seconds": seconds}
        pd.concat(said).to_parquet(options.out / "slots.parquet")
        pd.concat(whole).to_parquet(options.out / "lists.parquet")
        facts = {"clax-models": version("clax-models"), "models": models}
        (options.out / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
