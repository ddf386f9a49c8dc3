"""How item vectors enter DIN (MUSE, arXiv 2512.07216): as nothing, raw, as SimTier, as SA-TA, as
both:

    karmafunnel table similarity_use LOG --out out/similarity_use

The vectors are KARMA's, and those of its action-only control and of a frozen sentence encoder for
the two forms that read them best in the paper. Recall, pre-ranking and all other features are the
same in every row, and read neither.
"""

from dataclasses import replace
from typing import Literal

from karmafunnel.benchmarks.studies.karma_controls import base, sentence_encoder, settings
from karmafunnel.benchmarks.studies.stage_models import embedders, with_models  # noqa: F401
from karmafunnel.log import Log
from karmafunnel.simulator.replay.recipe import Row
from karmafunnel.stages.rank import DINRank
from karmafunnel.stages.stage import Funnel

against = "no vectors"
measures = ("HR@1", "HR@10", "HR@50", "nDCG@10", "GMV-HR@10", "gAUC:request:exposures")
Use = Literal["simtier", "sata", "both", "raw"]
USES: dict[str, Use] = {
    "raw": "raw",
    "SimTier": "simtier",
    "SA-TA": "sata",
    "SimTier and SA-TA": "both",
}


def with_din(log: Log, use: Use | None = None) -> Funnel:
    return with_models(log, last=[(DINRank, {"similar": "interest", "use": use} if use else {})])


def rows(log: Log) -> dict[str, Row]:
    chosen, plain = settings(log), base(log)
    karma, action = replace(plain, **chosen["both"]), replace(plain, **chosen["action"])
    found = {against: Row(with_din(log))}
    found |= {
        f"KARMA, {name}": Row(with_din(log, use), {"interest": karma}) for name, use in USES.items()
    }
    for other, value in {"action-only": action, **sentence_encoder(log)}.items():
        for name in ("SimTier", "SimTier and SA-TA"):
            found[f"{other}, {name}"] = Row(with_din(log, USES[name]), {"interest": value})
    return found
