"""Our best embedding against what a user would take instead:

    karmafunnel fetch-model minilm
    karmafunnel table karma_best LOG --out out/best

KARMA's user embedding with two frozen text embedders beside the language model's own vectors, wide
enough to hold them. It must be ahead of a frozen sentence encoder, of TF-IDF, of both of these side
by side without any training, and of SASRec. Rate, passes and objectives are those of
karma_controls.py; width, passes and ids were chosen on W2b (karma_best_trials.py).
"""

import math
from dataclasses import replace
from typing import Any

from karmafunnel.benchmarks.studies.karma_controls import WORDS, base, settings
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder
from karmafunnel.models.karma import KARMA, SentenceEncoder
from karmafunnel.models.sasrec import SASRec
from karmafunnel.models.together import Together
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
against = "frozen sentence encoder"
measures = ("HR@10", "HR@50", "HR@200", "HR@200 by target")

TEXTS = (WORDS, SentenceEncoder())
# without training, the history's words count as much as the query's, as the encoder's do
UNTRAINED = Together((replace(WORDS, history_weight=1.0), SentenceEncoder()))
CHOSEN: dict[str, Any] = {"dim": 384}


def with_texts(log: Log, objectives: str, **others: Any) -> KARMA:
    """KARMA with `TEXTS` beside it and half as many passes as without them, the best on W2b."""
    plain = replace(base(log), **settings(log)[objectives])
    found: dict[str, Any] = {"beside": TEXTS, "epochs": math.ceil(plain.epochs / 2)}
    return replace(plain, **found | CHOSEN | others)


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    found: dict[str, Embedder] = {
        "frozen sentence encoder": SentenceEncoder(),
        "TF-IDF": WORDS,
        "both, side by side": UNTRAINED,
        "SASRec": SASRec(**settings(log).get("sasrec", {})),
        "action-only, both beside": with_texts(log, "action"),
        "+gen+rec, both beside": with_texts(log, "both"),
        "+gen+rec, shuffled texts, both beside": with_texts(log, "both", shuffled=True),
        "action-only, words beside": with_texts(log, "action", beside=(WORDS,)),
        "action-only, both beside, no ids": with_texts(log, "action", ids=False),
    }
    return {name: {"interest": value} for name, value in found.items()}
