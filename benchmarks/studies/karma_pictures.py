"""What pictures add, as an input of KARMA and as something its user embedding must tell, and the
embedding itself drawn by diffusion, where the paper says it fails:

    karmafunnel world logs/pictures --items 2000 --users 800 --requests 4000 --images
    karmafunnel table karma_pictures_trials logs/pictures --window W2b --seed 0 --out out/trials
    karmafunnel table karma_pictures logs/pictures --out out/pictures

The features are those of a small encoder that learns on the log's own pictures, frozen. On a World
a picture shows the true colour and pattern, of which the text may be silent or wrong. Against
"action-only, pictures", each `see` has the better of the two weights tried on W2b
(karma_pictures_trials.py), with the same two for all; its shuffled control has the same weight. A
generator has the better of two rates, as the control has.
"""

from dataclasses import replace

from karmafunnel.benchmarks.studies.karma_controls import base, sentence_encoder
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder
from karmafunnel.models.karma import KARMA, Diffusion, Direct, FlowMatching, SelfSupervised
from karmafunnel.models.karma.visual_losses import VectorLoss
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
against = "action-only, pictures"
measures = ("HR@10", "HR@50", "HR@200", "HR@200 by target")
seeds = (0, 1)

SEE: dict[str, VectorLoss] = {
    "mse": Direct(),
    "diffusion": Diffusion(),
    "flow": FlowMatching(),
    "mse, history": Direct(history=True),
    "diffusion, history": Diffusion(history=True),
    "flow, history": FlowMatching(history=True),
}
GENERATORS: dict[str, VectorLoss] = {
    "mse": Direct(),
    "diffusion": Diffusion(),
    "flow": FlowMatching(),
}
# the better of two on W2b, by the mean of HR@10, HR@50 and HR@200; what is not named: the first
WEIGHTS, RATES = (0.3, 1.0), (1e-3, 3e-3)
CHOSEN: dict[str, float] = {}


def pictured(log: Log) -> KARMA:
    return replace(base(log), visual=SelfSupervised(), epochs=3)


def telling(log: Log, how: str, weight: float) -> KARMA:
    return replace(pictured(log), see=weight, see_by=SEE[how], rate=rate(against))


def generated(log: Log, how: str, rate: float) -> KARMA:
    return replace(pictured(log), generator=GENERATORS[how], rate=rate)


def rate(row: str) -> float:
    return CHOSEN.get(row, RATES[0])


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    found: dict[str, Embedder] = {
        "action-only": replace(pictured(log), visual=None, rate=rate(against)),
        against: replace(pictured(log), rate=rate(against)),
    }
    for how in SEE:
        row = f"see by {how}"
        told = telling(log, how, CHOSEN.get(row, WEIGHTS[0]))
        found |= {row: told}
        if how in ("mse", "flow"):
            found |= {f"{row}, shuffled": replace(told, shuffled=True)}
    for how in GENERATORS:
        row = f"embedding by {how}"
        found |= {row: generated(log, how, rate(row))}
    found |= sentence_encoder(log)
    return {name: {"interest": value} for name, value in found.items()}
