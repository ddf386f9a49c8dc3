"""KARMA's objectives where the model keeps words (`beside`), against the action-only control that
keeps them too:

    karmafunnel table karma_words LOG --out out/words

Settings are those of karma_controls.py, chosen without words and not tuned again; what words
themselves are worth is in its table.
"""

from dataclasses import replace

from karmafunnel.benchmarks.studies import karma_controls
from karmafunnel.benchmarks.studies.karma_controls import WORDS, sentence_encoder
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder
from karmafunnel.models.karma import KARMA
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
against = "action-only"
ROWS = ("action-only", "+gen", "+rec", "+gen+rec", "+rec, shuffled texts")


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    controls = karma_controls.rows(log)
    found: dict[str, dict[str, Embedder]] = {}
    for name in ROWS:
        value = controls[name]["interest"]
        if isinstance(value, KARMA):
            found[name] = {"interest": replace(value, beside=(WORDS,))}
    for name, value in sentence_encoder(log).items():
        found[name] = {"interest": value}
    return found
