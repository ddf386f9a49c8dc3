"""Two trials of each row of karma_pictures.py, on W2b:

karmafunnel table karma_pictures_trials logs/pictures --window W2b --seed 0 --out out/trials
"""

from dataclasses import replace

from karmafunnel.benchmarks.studies import karma_pictures
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder

funnel, measures, seeds = karma_pictures.funnel, ("HR@10", "HR@50", "HR@200"), (0,)
against = f"{karma_pictures.against}: {karma_pictures.RATES[0]:g}"


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    found: dict[str, Embedder] = {}
    for rate in karma_pictures.RATES:
        plain = replace(karma_pictures.pictured(log), rate=rate)
        found |= {f"{karma_pictures.against}: {rate:g}": plain}
        for how in karma_pictures.GENERATORS:
            found |= {f"embedding by {how}: {rate:g}": karma_pictures.generated(log, how, rate)}
    for how in karma_pictures.SEE:
        for weight in karma_pictures.WEIGHTS:
            told = karma_pictures.telling(log, how, weight)
            found |= {f"see by {how}: {weight:g}": told}
    return {name: {"interest": value} for name, value in found.items()}
