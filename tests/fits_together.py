"""What each process of `test_processes.py` runs: fits of every value, one set a change."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from karmafunnel.models.karma import (
    KARMA,
    InBatch,
    Pairwise,
    Qwen,
    SentenceEncoder,
    Softmax,
    TunedEncoder,
)
from karmafunnel.models.karma.processes import together
from karmafunnel.models.karma.train import train_along
from shop import make_shop
from tiny_models import sentence_encoder

TINY = Qwen(
    dim=32, layers=2, heads=2, kv_heads=1, mlp=64, vocab=400, context=32, tokens=4000, batch=4
)
SMALL = KARMA(backbone=TINY, dim=32, epochs=1, length=8, batch=8, gen=0.1, rec=0.3)
VALUES = {
    "softmax": replace(SMALL, rec=0.0),
    "in the batch, texts read in training": replace(SMALL, loss=InBatch(), items="trained"),
    "pairwise, decoder lm": replace(SMALL, loss=Pairwise(cosine=True), decoder="lm"),
    "masked words": replace(SMALL, loss=Softmax(hard_weight=2.0), gen=0.0, decoder="masked"),
}

TRAINED = VALUES | {
    "tuned sentence encoder": TunedEncoder(
        SentenceEncoder(sentence_encoder(), dim=8), trained=1, batch=8
    )
}


def main(cache: str, out: str, changes: str) -> None:
    """Fit every value once for each of the changes: fields of KARMA, as JSON."""

    def told(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    shop = make_shop()
    with together(train_along):
        for number, change in enumerate(json.loads(changes)):
            folder, found = Path(out) / str(number), {}
            folder.mkdir(exist_ok=True)
            for name, value in TRAINED.items():
                changed = replace(value, **change) if isinstance(value, KARMA) else value
                fit = changed.fit(shop, seed=1, progress=told, cache=Path(cache))
                found[name] = fit.facts
                np.save(folder / f"{len(found)}.npy", fit.items())
            (folder / "facts.json").write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
