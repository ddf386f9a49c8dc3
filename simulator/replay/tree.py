"""Several funnels over the same rows: what they begin with alike runs once.

Their stages are a tree, walked depth first. What a stage passes on lives until the stages after it
are through, so memory grows with the depth of the tree, not with the number of funnels.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...stages.context import Context
from ...stages.rows import Rows
from ...stages.stage import FittedFunnel, FittedStage, StageOutput, advance


@dataclass
class Node:
    """A stage, where it looks, what comes after it, and the funnels that end with it, by name."""

    stage: tuple[FittedStage, Context] | None = None
    children: dict[Hashable, Node] = field(default_factory=dict)
    ends: list[Any] = field(default_factory=list)

    def funnels(self) -> Iterator[Any]:
        """Names of the funnels that pass through."""
        yield from self.ends
        for child in self.children.values():
            yield from child.funnels()


def tree_of(funnels: Mapping[Any, FittedFunnel]) -> Node:
    """The tree of the funnels' stages; beginnings are alike where their keys are."""
    root = Node()
    for name, fitted in funnels.items():
        node = root
        for i, ready in enumerate(fitted.stages):
            key = fitted.keys[i] if fitted.keys else id(ready)
            node = node.children.setdefault(key, Node((ready, fitted.context)))
        node.ends.append(name)
    return root


def run_tree(
    node: Node, rows: Rows, steps: tuple[StageOutput, ...] = ()
) -> Iterator[tuple[Any, tuple[StageOutput, ...] | Exception]]:
    """What each funnel did to the rows, by name; an error takes the place of the steps for the
    funnels that pass through the stage that raised it.
    """
    for name in node.ends:
        yield name, steps
    for child in node.children.values():
        assert child.stage is not None
        fitted, context = child.stage
        try:
            step, after = advance(fitted, rows.seen_in(context), exact=True)
        except Exception as error:  # one funnel must not sink the others
            for name in child.funnels():
                yield name, error
            continue
        yield from run_tree(child, after, (*steps, step))
        del step, after
