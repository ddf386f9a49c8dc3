"""Inputs of the network: one tree per piece of a user's history, with a branch for each request.

A request is the sequence `[BOS] [item, item, ...] [query and filters] [INT]`, at the same positions
whether it is alone (serving) or shares its trunk of items with the user's other requests
(training). In a tree, a trunk cell attends to the trunk up to itself; a branch cell attends to the
trunk strictly before its request and to its own branch up to itself. So all requests of a history
are training targets at the cost of one sequence, and none sees anything later. [I: continuous item
tokens and `[INT]`; O: trees]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...log import Log

GAPS = 32  # buckets of time gaps: 0 none, else 1 + log2(1 + seconds)
ACTIONS = 3  # 0 none, 1 click, 2 purchase
INT, TRUNK, WORD = 1, 2, 3  # kinds of cell that are no padding; WORD: a token of the vocabulary


@dataclass(frozen=True)
class Trees:
    """Pieces of histories and the requests that branch off them; all arrays NumPy.

    Trunk cells of piece p are `item[start[p] : start[p] + size[p]]` after BOS. Branch b leaves
    piece `piece[b]` (ascending) after `seen[b]` items; its gap is the time since the last of them.
    """

    item: np.ndarray  # (N,) int64 row of the log's items
    action: np.ndarray  # (N,) int64
    gap: np.ndarray  # (N,) int64, bucket since the event before
    start: np.ndarray  # (W,)
    size: np.ndarray  # (W,)
    piece: np.ndarray  # (B,)
    seen: np.ndarray  # (B,)
    branch_gap: np.ndarray  # (B,)
    request: np.ndarray  # (B,) row of the log's requests

    @cached_property
    def first(self) -> np.ndarray:
        """First branch of each piece: (W + 1,)."""
        return np.searchsorted(self.piece, np.arange(len(self.start) + 1))

    def branches(self, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Branches of some pieces, and the row of each in that list: (R,), (R,)."""
        count = self.first[pieces + 1] - self.first[pieces]
        row = np.repeat(np.arange(len(pieces)), count)
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(self.first[pieces], count) + within, row


def request_texts(log: Log, requests: np.ndarray) -> list[str]:
    """Query and filters of requests as one text each, empty where there is neither."""
    rows = log.requests[requests]
    queries = rows["query"].fill_null("").to_list()
    filters = rows["filters"].fill_null([]).list.join(" ").fill_null("").to_list()
    texts = []
    for parts in zip(queries, filters, strict=True):
        texts.append(" ; ".join(part.strip() for part in parts if part.strip()))
    return texts


def distinct(texts: list[str]) -> tuple[list[str], np.ndarray]:
    """The distinct texts in ascending order, (m,), and the index of each given text among them,
    (n,).
    """
    once, inverse = np.unique(np.array(texts, dtype=object).astype(str), return_inverse=True)
    return [str(text) for text in once], inverse


def bucket(milliseconds: np.ndarray) -> np.ndarray:
    """1 + log2(1 + seconds), rounded down: int64, at most GAPS - 1."""
    seconds = np.maximum(milliseconds, 0) / 1000
    return np.minimum(1 + np.log2(1 + seconds).astype(np.int64), GAPS - 1)


def training_trees(log: Log, length: int) -> Trees:
    """The requests of W1 that led to a click or a purchase, over pieces of at most `length` items
    that overlap by half.

    Every click and purchase of W1 stands once in its user's sequence, in order of time; what was
    chosen at the same time as a request is not in its past. Empty where W1 has no event.
    """
    position = log.requests["window"].to_numpy() == "W1"
    events = log.events
    events = events.filter(position[events["request"].to_numpy()])
    user, t, request = (events[c].to_numpy() for c in ("user", "t", "request"))
    order = np.lexsort((request, t, user))
    user, t, request = user[order], t[order], request[order]
    item = events["item"].to_numpy()[order].astype(np.int64)
    action = np.where(events["purchased"].fill_null(False).to_numpy(), 2, 1)[order]
    at = np.arange(len(item))
    new_user = np.r_[True, np.diff(user) != 0][: len(item)]
    new_time = new_user | np.r_[True, np.diff(t) != 0][: len(item)]
    user_start = np.maximum.accumulate(np.where(new_user, at, 0)) if len(at) else at
    before = np.maximum.accumulate(np.where(new_time, at, 0)) - user_start if len(at) else at
    clock = log.meta["time"] == "clock"
    gap = np.where(new_user | (not clock), 0, bucket(np.diff(t, prepend=t[:1])))
    request, first = np.unique(request, return_index=True)
    seen, owner = before[first], user_start[first]
    half = max(length // 2, 1)
    piece = np.maximum(0, -(-(seen - length) // half))
    keys, of = np.unique(owner * (len(at) + 1) + piece, return_inverse=True)
    start = keys // (len(at) + 1) + keys % (len(at) + 1) * half
    seen = seen - piece * half
    size = np.zeros(len(keys), dtype=np.int64)
    np.maximum.at(size, of, seen)
    last = start[of] + seen - 1
    since = at
    if len(at):
        wait = log.t[request] - t[np.maximum(last, 0)]
        since = np.where((seen > 0) & clock, bucket(wait), 0)
    order = np.lexsort((request, seen, of))
    return Trees(
        item, action, gap, start, size, of[order], seen[order], since[order], request[order]
    )


def serving_trees(log: Log, requests: np.ndarray, length: int) -> Trees:
    """One tree a request, with the last `length` events known strictly before it."""
    past = log.asof.history(requests, length)
    there = past.items >= 0
    size = there.sum(axis=1)
    clock = log.meta["time"] == "clock"
    gap = np.zeros(past.items.shape, dtype=np.int64)
    if length > 1 and clock:
        wait = past.ages[:, :-1] - past.ages[:, 1:]
        gap[:, 1:] = np.where(there[:, 1:] & there[:, :-1], bucket(wait), 0)
    since = np.zeros(len(requests), dtype=np.int64)
    if length:
        since = np.where((size > 0) & clock, bucket(past.ages[:, -1]), 0)
    number = np.arange(len(requests))
    return Trees(
        past.items[there].astype(np.int64), past.actions[there].astype(np.int64), gap[there],
        np.cumsum(size) - size, size, number, size, since, requests,
    )  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Cells of some trees, (B, L) each, and the [INT] cell of every branch, (R,) into the flattened
    cells.
    """

    kind: Tensor  # int64, 0 padding
    item: Tensor  # int64, -1 where there is none
    action: Tensor  # int64
    gap: Tensor  # int64
    word: Tensor  # int64, 0 where there is none
    position: Tensor  # int64
    mask: Tensor  # bool (B, 1, L, L): may attend
    interest: Tensor  # int64 (R,)
    # int64 (R, T): cells of each branch's text, BOS first; -1 where there is none
    text: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        moved = {name: x.to(device) for name, x in vars(self).items() if x is not None}
        return replace(self, **moved)

    def part(self, rows: slice, branches: slice) -> Batch:
        """Some rows of cells, whose branches are these."""
        cells = ("kind", "item", "action", "gap", "word", "position", "mask")
        before = rows.start * self.kind.shape[1]
        text = self.text
        if text is not None:
            text = torch.where(text[branches] >= 0, text[branches] - before, -1)
        kept = {name: getattr(self, name)[rows] for name in cells}
        return replace(self, **kept, interest=self.interest[branches] - before, text=text)


def lay_out(
    trees: Trees,
    pieces: np.ndarray,
    queries: list[np.ndarray],
    bos: int,
    texts: list[np.ndarray | None] | None = None,
    width: int = 0,
) -> Batch:
    """Cells (B, L) of the trees of some pieces, and where the [INT] cells of their R branches and
    the branches' texts stand among them.

    Args:
        pieces: numbers of pieces, (B,).
        queries: word ids before [INT], an array for each of the R branches, in the order of
            `trees.branches(pieces)`.
        bos: word id at the start of a row and of a text.
        texts: word ids after [INT] and BOS, for generation, an array for each of the R branches,
            None for a branch without.
        width: the least L.
    """
    branches, row = trees.branches(pieces)
    trunk = trees.size[pieces] + 1
    asked = np.array([len(q) for q in queries], dtype=np.int64)
    told = np.zeros(len(branches), dtype=np.int64)
    if texts is not None:
        told = np.array([0 if x is None else len(x) + 1 for x in texts], dtype=np.int64)
    length = asked + 1 + told
    before = np.cumsum(length) - length  # of all branches, rows one after the other
    per_row = np.bincount(row, weights=length, minlength=len(pieces)).astype(np.int64)
    # first cell of each branch in its row
    offset = trunk[row] + before - (np.cumsum(per_row) - per_row)[row]
    shape = (len(pieces), max(int((trunk + per_row).max(initial=1)), width))
    kind, item, action, gap, word = (np.zeros(shape, dtype=np.int64) for _ in range(5))
    position, of, visible = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    item[:] = -1
    # the trunk
    column = np.arange(shape[1])
    inside = column[None, :] < trunk[:, None]
    kind[inside], position[inside] = TRUNK, np.broadcast_to(column, shape)[inside]
    visible[inside] = position[inside] + 1
    events = inside.copy()
    events[:, 0] = False
    source = (trees.start[pieces, None] + column - 1)[events]
    item[events], action[events] = trees.item[source], trees.action[source]
    gap[events] = trees.gap[source]
    gap[:, 1:2] = 0  # what came before a piece is not in it
    kind[:, 0], word[:, 0] = WORD, bos
    # the branches
    total = int(length.sum())
    owner = np.repeat(np.arange(len(branches)), length)
    within = np.arange(total) - np.repeat(before, length)
    r, c = row[owner], offset[owner] + within
    of[r, c] = owner + 1
    seen = trees.seen[branches]
    position[r, c] = (seen + 1)[owner] + within
    visible[r, c] = (seen + 1)[owner]
    kind[r, c] = WORD
    interest_column = offset + asked
    kind[row, interest_column], gap[row, interest_column] = INT, trees.branch_gap[branches]
    words = np.concatenate([*queries, np.zeros(0, dtype=np.int64)])
    is_query = within < asked[owner]
    word[r[is_query], c[is_query]] = words
    text = None
    if texts is not None:
        is_text = within > asked[owner]
        each = [np.r_[bos, x] for x in texts if x is not None]
        word[r[is_text], c[is_text]] = np.concatenate(each or [np.zeros(0, dtype=np.int64)])
        text = np.full((len(branches), max(int(told.max(initial=0)), 1)), -1, dtype=np.int64)
        text[owner[is_text], (within - asked[owner] - 1)[is_text]] = (r * shape[1] + c)[is_text]
    mask = (column[None, None, :] < visible[:, :, None]) & inside[:, None, :]
    same_branch = (of[:, :, None] == of[:, None, :]) & (of[:, :, None] > 0)
    mask |= same_branch & (position[:, None, :] <= position[:, :, None])
    mask |= np.eye(shape[1], dtype=bool)  # padding sees itself
    interest = row * shape[1] + interest_column
    cells = kind, item, action, gap, word, position, mask[:, None], interest
    batch = Batch(*map(torch.from_numpy, cells))
    return batch if text is None else replace(batch, text=torch.from_numpy(text))
