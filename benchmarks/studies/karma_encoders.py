"""A sentence encoder, frozen and fine-tuned by KARMA's action losses, by exact search:

    karmafunnel fetch-model minilm
    karmafunnel table karma_encoders LOG --out out/encoders

What a user would take, or train, instead of KARMA. The rows "map alone" leave the encoder as it is
and train the map and the weights; their rate and passes were chosen on W2b of Amazon Office. The
rates of the others are to be: karma_encoders_trials.py.
"""

from dataclasses import replace

from karmafunnel.benchmarks.studies.karma_controls import LENGTH
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder
from karmafunnel.models.karma import InBatch, Pairwise, SentenceEncoder, TunedEncoder
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
against = "frozen"
measures = ("HR@10", "HR@50", "HR@200", "HR@200 by target")
LOSSES = {"in-batch softmax": InBatch(), "pairwise": Pairwise()}
RATES = {"in-batch softmax": 1e-4, "pairwise": 1e-4}


def tuned(log: Log) -> dict[str, TunedEncoder]:
    encoder = SentenceEncoder(length=LENGTH.get(log.whole, SentenceEncoder.length))
    return {
        name: TunedEncoder(encoder, loss=loss, rate=RATES[name]) for name, loss in LOSSES.items()
    }


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    values = tuned(log)
    found: dict[str, Embedder] = {"frozen": values["pairwise"].encoder}
    for name, value in values.items():
        found[f"tuned, {name}"] = value
        found[f"map alone, {name}"] = replace(value, trained=0, epochs=8)
    return {name: {"interest": value} for name, value in found.items()}
