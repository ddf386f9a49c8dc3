"""Four trials of each row of karma_pictures.py, on W2b:

    karmafunnel table karma_pictures_trials logs/pictures --window W2b --seed 0 --out out/trials

Four rates for a row without a weight, which its controls are too; two rates and two weights for one
that tells pictures. The best mean of HR@10, HR@50 and HR@200 is written into karma_pictures.py.
"""

from karmafunnel.benchmarks.studies import karma_pictures as pictures
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
measures = ("HR@10", "HR@50", "HR@200")
seeds = (0,)

# a first grid of 5e-4 to 4e-3 had its best rates at its end
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
WEIGHTS = (0.3, 1.0)
against = f"{pictures.against}, rate {RATES[1]:g}"


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    found: dict[str, Embedder] = {}
    for row, value in pictures.trained(log).items():
        settings = [(rate, 0.0) for rate in RATES]
        if value.see:
            settings = [(rate, weight) for rate in RATES[1:3] for weight in WEIGHTS]
        for rate, weight in settings:
            told = f", weight {weight:g}" if value.see else ""
            found[f"{row}{told}, rate {rate:g}"] = pictures.with_setting(value, (rate, weight))
    return {name: {"interest": value} for name, value in found.items()}
