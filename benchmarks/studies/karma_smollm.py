"""Do the language objectives pay where the model's knowledge is real? SmolLM2, all 30 layers:

    karmafunnel fetch-model smollm2-135m
    karmafunnel table karma_smollm LOG --diagnose --minutes 1 --out out/smollm   # again and again

As in karma_atlas.py: no ids, nothing added to the user embedding, `gen` and `rec` through the same
language model and head with one weight. The pairwise loss reads item texts in training, so that it
can destroy what the model knows; the softmax over the catalogue has them frozen and two passes,
which cost as much. Both see the same quarter of the users. Rate, layers that are trained and weight
are the better of the settings that were tried on W2b: one or two of the four of
karma_smollm_trials.py, and for the pairwise loss with the objectives those of the loss alone
(LOG.md); texts of other items take those of the right ones. A step of four pieces takes 2 s of a
core alone and 4 s with the objectives; under the softmax 1.2 s and 2.4 s. With a reading of all
texts and the replay a cell of Amazon Office takes 20 to 40 minutes of a core and 5 GB, all of them
about 6 hours, which is told before they start; beside eight other jobs on two cores the first one
took 50 minutes instead of 22. A call with `--minutes 1` makes one cell.
"""

from collections.abc import Iterable
from dataclasses import replace

from karmafunnel.benchmarks.studies import karma_atlas as atlas
from karmafunnel.benchmarks.studies.karma_controls import sentence_encoder
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder, RandomVectors
from karmafunnel.models.karma import KARMA, Checkpoint, FrozenLM

MODEL = Checkpoint("smollm2-135m")
LOSSES = ("pairwise", "catalogue softmax")
OBJECTIVES = ("action-only", "+gen+rec")

funnel, against, measures = atlas.funnel, atlas.against, atlas.measures
seeds = (0, 1)

# rate, last layers that are trained (None: all), weight of gen and rec
Setting = tuple[float, int | None, float]
FIRST: Setting = (5e-5, None, 0.1)
# by loss and objectives the best mean of HR@10, HR@50 and HR@200 on W2b; FIRST before its trials
CHOSEN: dict[tuple[str, str], Setting] = {
    ("pairwise", "action-only"): (2e-4, 6, 0.1),
    ("pairwise", "+gen+rec"): (2e-4, 6, 0.1),  # that of the loss alone; no trial of its own
    ("catalogue softmax", "action-only"): (2e-4, 6, 0.1),
    ("catalogue softmax", "+gen+rec"): (2e-4, 6, 0.1),
}
# of one core for a cell, alone and with the objectives
MINUTES = {"trained": (25, 37), "frozen": (22, 35)}


def trained(log: Log, loss: str, objectives: str, setting: Setting) -> KARMA:
    """SmolLM2 under that loss with that setting."""
    plain, (rate, layers, weight) = atlas.base(log, loss), setting
    gen, rec = atlas.OBJECTIVES.get(objectives, (0.0, 0.0))
    return replace(
        plain,
        backbone=MODEL,
        epochs=1 if plain.items == "trained" else 2,
        share=0.25,
        batch=4,
        rate=rate,
        trained=layers,
        gen=gen * weight,
        rec=rec * weight,
    )


def values(log: Log) -> dict[str, Embedder]:
    """Every row: SmolLM2 under both losses, and what is not trained."""
    found: dict[str, Embedder] = {}
    for loss in LOSSES:
        for objectives in OBJECTIVES:
            setting = CHOSEN.get((loss, objectives), FIRST)
            value = replace(trained(log, loss, objectives, setting), watch=25)
            found[f"{loss}, {objectives}"] = value
        found[f"{loss}, +gen+rec, shuffled texts"] = replace(value, shuffled=True)
    found |= {
        "frozen SmolLM2, whitened": FrozenLM(MODEL, after="whitening", dim=256),
        "random": RandomVectors(),
    }
    return found | sentence_encoder(log)


def tell_hours(embedders: Iterable[Embedder], seeds: int) -> None:
    """Say how long the cells of these take."""
    each = [MINUTES[x.items][x.gen > 0] for x in embedders if isinstance(x, KARMA)]
    atlas.tell_hours("SmolLM2", seeds * sum(each))


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    found = values(log)
    tell_hours(found.values(), len(seeds))
    return {name: {"interest": value} for name, value in found.items()}
