"""Several funnels over the same rows: stages that they have in common at the beginning run once.

Their stages are a tree, walked depth first. The output of a stage is kept until the stages below it
are done, so memory grows with the depth of the tree, not with the number of funnels.
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
    """A stage with its context, the stages after it, and the names of the funnels that end here."""

    stage: tuple[FittedStage, Context] | None = None
    children: dict[Hashable, Node] = field(default_factory=dict)
    ends: list[Any] = field(default_factory=list)

    def funnels(self) -> Iterator[Any]:
        """Names of the funnels that contain this stage."""
        yield from self.ends
        for child in self.children.values():
            yield from child.funnels()


def tree_of(funnels: Mapping[Any, FittedFunnel]) -> Node:
    """The tree of the funnels' stages; stages with equal keys are one node."""
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
    """Run all funnels below a node.

    Yields:
        The name of each funnel, and the outputs of its stages or, where a stage raised an error,
        that error.
    """
    for name in node.ends:
        yield name, steps
    for child in node.children.values():
        assert child.stage is not None
        fitted, context = child.stage
        try:
            step, after = advance(fitted, rows.seen_in(context), exact=True)
        except Exception as error:  # one funnel must not end the others
            for name in child.funnels():
                yield name, error
            continue
        yield from run_tree(child, after, (*steps, step))
        del step, after
