"""What stage models gain where they learn from the end of W1 as well, and from more requests:

    karmafunnel table rolling_fits LOG --window W2b --out out/rolling_fits

The funnel is that of `stacking`. Rows are named after the blocks (`Sample(blocks=...)`), the most
requests that a stage learns from, and the stages that learn from several blocks, if not both do.
"""

from __future__ import annotations

from dataclasses import replace

from karmafunnel.benchmarks.studies.stacking import embedders, funnel_of  # noqa: F401
from karmafunnel.log import Log
from karmafunnel.simulator.replay.recipe import Row
from karmafunnel.stages.learner import Boosted
from karmafunnel.stages.stage import Funnel

against, by_stage = "1 block, 3000", True
measures = ("HR@1", "HR@10", "nDCG@10", "HR@50")
BOTH = ("prerank", "rank")


def learning_from(
    funnel: Funnel, blocks: int, requests: int, which: tuple[str, ...] = BOTH
) -> Funnel:
    """The funnel whose boosted stages learn from so many requests, those named in `which` from so
    many blocks.
    """
    changed = {}
    for stage in funnel.stages:
        if isinstance(stage, Boosted):
            several = blocks if stage.name in which else 1
            sample = replace(stage.sample, blocks=several, requests=requests)
            changed[stage.name] = replace(stage, sample=sample)
    return funnel.replace(**changed)


def rows(log: Log) -> dict[str, Row]:
    funnel, found = funnel_of(log, True), {}
    for requests in (3000, 6000, 12000):
        for blocks in (1, 2, 3):
            name = f"{blocks} block{'s' if blocks > 1 else ''}, {requests}"
            found[name] = Row(learning_from(funnel, blocks, requests))
    for stage in BOTH:
        found[f"3 blocks, 3000, {stage}"] = Row(learning_from(funnel, 3, 3000, (stage,)))
    return found
