"""Four settings for each row of karma_smollm.py, to be asked on W2b:

    karmafunnel table karma_smollm_trials LOG --window W2b --diagnose --minutes 1 --out out/trials

All layers at two rates, then the last six at two; the same four with and without the language
objectives. The best mean of HR@10, HR@50 and HR@200 is written into karma_smollm.py. The pairwise
loss and all layers come first. On Amazon Office all 16 cells take about 8 hours of
one core, and one call makes one of them.
"""

from karmafunnel.benchmarks.studies import karma_smollm as smollm
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder

funnel, measures = smollm.funnel, ("HR@10", "HR@50", "HR@200")
seeds = (0,)

SETTINGS: tuple[smollm.Setting, ...] = (
    (5e-5, None, 0.1),
    (1e-5, None, 0.1),
    (5e-5, 6, 0.1),
    (2e-4, 6, 0.1),
)


def name_of(loss: str, objectives: str, setting: smollm.Setting) -> str:
    rate, layers, weight = setting
    told = "all layers" if layers is None else f"last {layers} layers"
    weighed = "" if objectives == "action-only" else f" {weight:g}"
    return f"{loss}, {objectives}{weighed}, rate {rate:g}, {told}"


against = name_of("pairwise", "action-only", SETTINGS[0])


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    found: dict[str, Embedder] = {}
    for loss in smollm.LOSSES:
        for setting in SETTINGS:
            for objectives in smollm.OBJECTIVES:
                value = smollm.trained(log, loss, objectives, setting)
                found[name_of(loss, objectives, setting)] = value
    smollm.tell_hours(found.values(), len(seeds))
    return {name: {"interest": value} for name, value in found.items()}
