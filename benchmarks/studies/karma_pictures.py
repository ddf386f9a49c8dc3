"""What pictures add, as an input of KARMA and as something its user embedding must tell, and the
embedding itself drawn by diffusion, where the paper says it fails:

    karmafunnel world logs/pictures --items 2000 --users 800 --requests 4000 --images
    karmafunnel table karma_pictures_trials logs/pictures --window W2b --seed 0 --out out/trials
    karmafunnel table karma_pictures logs/pictures --out out/pictures

The features are those of a small encoder that learns on the log's own pictures, frozen. On a World
a picture shows the true colour and pattern, of which the text may be silent or wrong. Every row has
the best of its trials on W2b (karma_pictures_trials.py, whose first grid was lower): six, or eight
where it tells pictures; with pictures of other items it takes the setting of the right ones.
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
Setting = tuple[float, float]  # rate, weight of see
FIRST: Setting = (1e-3, 0.3)
# by log and row the best mean of HR@10, HR@50 and HR@200 on W2b; what is not named takes FIRST
CHOSEN: dict[str, dict[str, Setting]] = {
    "world": {
        "action-only": (4e-3, 0.0),
        "action-only, pictures": (8e-3, 0.0),
        "see by mse": (8e-3, 1.0),
        "see by diffusion": (8e-3, 0.3),
        "see by flow": (8e-3, 1.0),
        "see by mse, history": (8e-3, 0.3),
        "see by diffusion, history": (8e-3, 0.3),
        "see by flow, history": (8e-3, 0.3),
        "embedding by mse": (1.6e-2, 0.0),
        "embedding by diffusion": (1.6e-2, 0.0),
        "embedding by flow": (4e-3, 0.0),
    },
}


def pictured(log: Log) -> KARMA:
    return replace(base(log), visual=SelfSupervised(), epochs=3)


def trained(log: Log) -> dict[str, KARMA]:
    """Every row that is tried, at weight 1 of what it tells."""
    plain = pictured(log)
    found = {"action-only": replace(plain, visual=None), against: plain}
    for how, loss in SEE.items():
        found[f"see by {how}"] = replace(plain, see=1.0, see_by=loss)
    for how, loss in GENERATORS.items():
        found[f"embedding by {how}"] = replace(plain, generator=loss)
    return found


def with_setting(value: KARMA, setting: Setting) -> KARMA:
    """A row of `trained` with its rate and weight."""
    rate, weight = setting
    return replace(value, rate=rate, see=weight * value.see)


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    chosen = CHOSEN.get(log.whole, {})
    found: dict[str, Embedder] = {}
    for row, plain in trained(log).items():
        value = with_setting(plain, chosen.get(row, FIRST))
        found[row] = value
        if value.see:
            found[f"{row}, shuffled pictures"] = replace(value, shuffled=True)
    found |= sentence_encoder(log)
    return {name: {"interest": value} for name, value in found.items()}
