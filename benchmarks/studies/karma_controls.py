"""KARMA and every control of it, by exact search over the catalogue:

    karmafunnel table karma_controls LOG --out out/controls

The strong regime: softmax over the whole catalogue, where what was shown in vain is a negative like
any other, and frozen text vectors. On Amazon Office and the World on its catalogue the objectives,
SASRec, the frozen LM and TF-IDF were each tried on W2b (karma_trials.py); Online Retail's were
tried before interests started from the history, other logs take the default untried. The industrial
regime is in karma_industrial.py. The frozen sentence encoder takes
`karmafunnel fetch-model minilm` first; without it its row is left out.
"""

import math
from dataclasses import replace
from typing import Any

from karmafunnel.files import say
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder, RandomVectors, TfidfSVD
from karmafunnel.models.karma import KARMA, FrozenLM, SentenceEncoder
from karmafunnel.models.sasrec import SASRec
from karmafunnel.models.weights import is_fetched
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
against = "action-only"

# the best trial of each objective on W2b, equally many: mean of HR@10, HR@50 and HR@200
CHOSEN: dict[str, dict[str, dict[str, Any]]] = {
    "amazon_office": {
        "action": {"rate": 2e-3, "epochs": 4},
        "rec": {"rec": 1.0, "rate": 2e-3},
        "gen": {"gen": 0.09, "rate": 2e-3},
        "both": {"gen": 0.03, "rec": 0.1, "rate": 2e-3},
        "sasrec": {"dim": 128},
    },
    "world-amazon_catalog": {
        "action": {"rate": 3e-3},
        "rec": {"rec": 0.3, "rate": 2e-3},
        "gen": {"gen": 0.09, "rate": 2e-3},
        "both": {"gen": 0.03, "rec": 0.1, "rate": 2e-3},
        "sasrec": {"temperature": 0.07},
    },
    "online_retail": {
        "action": {},
        "rec": {"rec": 0.3},
        "gen": {"gen": 0.3},
        "both": {"gen": 0.1, "rec": 0.3},
    },
    "trivago": {  # the default, not tuned: a pass takes 10 minutes
        "action": {"rate": 2e-3, "epochs": 1},
        "rec": {"rec": 1.0, "rate": 2e-3, "epochs": 1},
        "gen": {"gen": 0.09, "rate": 2e-3, "epochs": 1},
        "both": {"gen": 0.1, "rec": 1.0, "rate": 2e-3, "epochs": 1},
    },
    "default": {
        "action": {"rate": 2e-3},
        "rec": {"rec": 1.0, "rate": 2e-3},
        "gen": {"gen": 0.09, "rate": 2e-3},
        "both": {"gen": 0.1, "rec": 1.0, "rate": 2e-3},
    },
}
WORDS = TfidfSVD(dim=128)  # what `beside` reads
# how long gen and rec together take beside action-only, as measured: the shorter histories and
# queries are, the more the told texts weigh
SAME_COMPUTE = {"world-amazon_catalog": 1.6, "online_retail": 1.3}


# Office's histories end at ten; a basket of Online Retail holds 23 items
LENGTH = {"amazon_office": 10, "online_retail": 50}


def base(log: Log) -> KARMA:
    return KARMA(length=LENGTH.get(log.whole, KARMA.length))


def embedders(log: Log) -> dict[str, Embedder]:
    return {"interest": replace(base(log), **settings(log)["both"])}


def settings(log: Log) -> dict[str, dict[str, Any]]:
    return CHOSEN.get(log.whole, CHOSEN["default"])


def sentence_encoder(log: Log) -> dict[str, Embedder]:
    """The row of every table with KARMA that is what a user would take instead; none where items
    have no text or the model was not fetched, which is told.
    """
    name, value = "frozen sentence encoder", SentenceEncoder()
    if not log.has("text"):
        return {}
    if not is_fetched(value.source):
        say(f"row '{name}' is left out: karmafunnel fetch-model {value.source} brings its model")
        return {}
    return {name: value}


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    chosen, plain = settings(log), base(log)
    action, rec = replace(plain, **chosen["action"]), replace(plain, **chosen["rec"])
    gen, both = replace(plain, **chosen["gen"]), replace(plain, **chosen["both"])
    large = log.n_items > 10_000
    found: dict[str, Embedder] = {
        "action-only": action,
        "+gen": gen,
        "+rec": rec,
        "+gen+rec": both,
        "+rec, shuffled texts": replace(rec, shuffled=True),
        "+rec, masked decoder": replace(rec, decoder="masked"),
        "+rec, LM as decoder": replace(rec, decoder="lm"),
        "action-only, equal compute": replace(
            action, epochs=math.ceil(SAME_COMPUTE.get(log.whole, 3.0) * action.epochs)
        ),
        "action-only, words": replace(action, beside=(WORDS,)),
        "+gen+rec, words": replace(both, beside=(WORDS,)),
        "TF-IDF": WORDS,
        "action-only, no ids": replace(action, ids=False),
        "+rec, no ids": replace(rec, ids=False),
        "frozen LM": FrozenLM(),
        "frozen LM, whitening": FrozenLM(after="whitening"),
        "frozen LM, autoencoder": FrozenLM(after="autoencoder"),
        "SASRec": SASRec(dropout=0.2, temperature=0.1, batch=256, epochs=5, patience=0)
        if large
        else SASRec(**chosen.get("sasrec", {})),
        "random": RandomVectors(),
    }
    found |= sentence_encoder(log)
    return {name: {"interest": value} for name, value in found.items()}
