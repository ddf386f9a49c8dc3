"""What a peer reads and writes. It runs inside the peer's own environment, so it needs NumPy, SciPy
and Polars and nothing of the product.

A peer is a script that ends in `main(fit, TRIALS)`: `fit(data, seed, windows, **settings)` learns
from what happened in `windows` and returns a scorer, `scorer(rows) -> (len(rows), n_items)` scores
of some requests as of their time, -inf where it has nothing to say. A scorer that ranks given
candidates in another way has `candidates(rows, at, items) -> (len(at),)`, too.

Every trial is judged by HR@10 on W2b, with the user's own earlier items kept and left out; the best
one scores W3. Requests of users without a history, and the end of lists that are too short, are
filled with what was most popular in the windows learnt from.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

CHUNK = 256  # requests at a time, as in the product's replay
Scorer = Callable[[np.ndarray], np.ndarray]
Fit = Callable[..., Scorer]


class Data:
    """The exported Parquet files by row numbers: item 7 is row 7 of `items`, request 3 is row 3 of
    `requests`.

    items: item_id, title, text, known (time from which an item is eligible: strictly later
    requests); filters: filter, item_id. interactions: user_id, item_id, t, action (1 click, 2
    purchase), window; nothing of W3. requests: request_id, user_id, t, window, query, filter (0:
    none). histories: request_id, item_id, t, action, oldest first. truth: request_id, item_id of
    W2a and W2b. candidates: request_id, item_id of W2a and W3.
    """

    def __init__(self, folder: Path):
        def read(name: str) -> pl.DataFrame:
            return pl.read_parquet(folder / f"{name}.parquet", glob=False, hive_partitioning=False)

        self.items, self.requests = read("items"), read("requests")
        self.n_items = self.items.height
        self.t, self.window = self.requests["t"].to_numpy(), self.requests["window"].to_numpy()
        self.known = self.items["known"].to_numpy()
        self.interactions = self._numbered(read("interactions"))
        users = self.interactions.select("user_id").unique(maintain_order=True)
        users = users.with_columns(pl.int_range(pl.len()).alias("user"))
        self.interactions = self.interactions.join(
            users, on="user_id", how="left", maintain_order="left"
        )
        self.n_users = users.height
        self._histories = self._by_request(read("histories"))
        self._truth = self._by_request(read("truth"))
        self._candidates = self._by_request(read("candidates"))
        self._filters = {}
        for (key,), rows in self._numbered(read("filters")).group_by("filter"):
            self._filters[key] = rows["item"].to_numpy()

    def _numbered(self, frame: pl.DataFrame) -> pl.DataFrame:
        items = self.items.select("item_id", pl.int_range(pl.len()).alias("item"))
        return frame.join(items, on="item_id", how="left", maintain_order="left").drop("item_id")

    def _by_request(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, np.ndarray]:
        """Rows sorted by request number, and where each request's begin."""
        requests = self.requests.select("request_id", pl.int_range(pl.len()).alias("request"))
        frame = (
            self._numbered(frame)
            .join(requests, on="request_id", how="left", maintain_order="left")
            .drop("request_id")
        )
        frame = frame.sort("request", maintain_order=True)
        return frame, np.searchsorted(
            frame["request"].to_numpy(), np.arange(self.requests.height + 1)
        )

    def rows_in(self, window: str) -> np.ndarray:
        """Row numbers of a window's requests."""
        return np.flatnonzero(self.window == window)

    def matrix(self, windows: Sequence[str]) -> sparse.csr_matrix:
        """How often each user had each item in some windows: float32 (n_users, n_items)."""
        rows = self.interactions.filter(pl.col("window").is_in(list(windows)))
        ones = np.ones(rows.height, dtype=np.float32)
        return sparse.csr_matrix(
            (ones, (rows["user"].to_numpy(), rows["item"].to_numpy())),
            shape=(self.n_users, self.n_items),
        )

    def _of(
        self, rows: np.ndarray, table: tuple[pl.DataFrame, np.ndarray]
    ) -> tuple[np.ndarray, pl.DataFrame]:
        """Rows of a table that belong to some requests: (place in `rows`, rows)."""
        frame, start = table
        sizes = start[rows + 1] - start[rows]
        at = np.repeat(np.arange(len(rows)), sizes)
        return at, frame[
            np.repeat(start[rows] - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
        ]

    def history(self, rows: np.ndarray) -> tuple[np.ndarray, pl.DataFrame]:
        """(place in `rows`, item, t, action) of everything before each request that was exported,
        oldest first.
        """
        return self._of(rows, self._histories)

    def truth(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(place in `rows`, item) of what was chosen; nothing in W3."""
        at, frame = self._of(rows, self._truth)
        return at, frame["item"].to_numpy()

    def candidates(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(place in `rows`, item) of the candidates to rank."""
        at, frame = self._of(rows, self._candidates)
        return at, frame["item"].to_numpy()

    def passing(self, key: int) -> np.ndarray:
        """Items that pass a set of filters (0: no filter)."""
        return (
            self._filters.get(key, np.empty(0, dtype=np.int64)) if key else np.arange(self.n_items)
        )

    def history_matrix(self, rows: np.ndarray) -> sparse.csr_matrix:
        """How often each request's user had each item before it: float32 (len(rows), n_items)."""
        at, frame = self.history(rows)
        ones = np.ones(len(at), dtype=np.float32)
        return sparse.csr_matrix(
            (ones, (at, frame["item"].to_numpy())), shape=(len(rows), self.n_items)
        )

    def eligible(self, rows: np.ndarray) -> np.ndarray:
        """Which items each request may be shown: bool (len(rows), n_items)."""
        mask = self.known[None, :] < self.t[rows][:, None]
        for i, key in enumerate(self.requests["filter"].to_numpy()[rows]):
            if key:
                passes = np.zeros(self.n_items, dtype=bool)
                passes[self.passing(int(key))] = True
                mask[i] &= passes
        return mask


def filled(scores: np.ndarray, popularity: np.ndarray) -> np.ndarray:
    """Scores with popularity below each row's least, where the peer says nothing."""
    told = np.isfinite(scores)
    least = np.where(told, scores, np.inf).min(axis=1)
    least = np.where(np.isfinite(least), least, 0.0)
    step = np.maximum(np.abs(least), 1.0)  # a step that float32 can tell from the least score
    rest = least[:, None] - step[:, None] * (
        2.0 - popularity[None, :] / max(float(popularity.max()), 1.0)
    )
    return np.where(told, scores, rest).astype(np.float32)


def best(scores: np.ndarray, allowed: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, item) of the k best allowed items a row, best first."""
    kept = np.where(allowed, scores, -np.inf)
    k = min(k, kept.shape[1])
    at = np.argpartition(-kept, k - 1, axis=1)[:, :k]
    value = np.take_along_axis(kept, at, axis=1)
    at = np.take_along_axis(at, np.argsort(-value, axis=1, kind="stable"), axis=1)
    row = np.repeat(np.arange(len(at)), k)
    there = np.isfinite(kept[row, at.ravel()])
    return row[there], at.ravel()[there]


class Asked:
    """A scorer with all that is done around it: what it says of a chunk of requests."""

    def __init__(self, data: Data, scorer: Scorer, windows: Sequence[str], seen: bool):
        self.data, self.scorer, self.seen = data, scorer, seen
        self.popularity = np.asarray(data.matrix(windows).sum(axis=0)).ravel()

    def scores(self, rows: np.ndarray) -> np.ndarray:
        return filled(self.scorer(rows), self.popularity)

    def top(self, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(place in `rows`, item, score) of the k best eligible items."""
        scores, allowed = self.scores(rows), self.data.eligible(rows)
        if not self.seen:
            allowed[self.data.history_matrix(rows).nonzero()] = False
        at, items = best(scores, allowed, k)
        return at, items, scores[at, items]

    def of_candidates(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(place in `rows`, item, score) of the candidates; what was seen stays where it is, as for
        everybody.
        """
        at, items = self.data.candidates(rows)
        own = getattr(self.scorer, "candidates", None)
        return at, items, own(rows, at, items) if own else self.scores(rows)[at, items]


def hit_rates(asked: Asked, window: str, ks: Sequence[int]) -> dict[str, float]:
    """HR@k over the requests of a window that have a truth."""
    data, hits, n = asked.data, np.zeros(len(ks)), 0
    rows = data.rows_in(window)
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        at, items, _ = asked.top(chunk, max(ks))
        place = np.arange(len(at)) - np.searchsorted(at, at)
        of, truth = data.truth(chunk)
        is_truth = np.isin(at * data.n_items + items, of * data.n_items + truth)
        hits += [len(np.unique(at[is_truth & (place < k)])) for k in ks]
        n += len(np.unique(of))
    return {f"HR@{k}": float(hit / max(n, 1)) for k, hit in zip(ks, hits, strict=True)}


def write(data: Data, path: Path, parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """Rows of (request, item, score) as request_id, item_id, score."""
    request, item, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    frame = pl.DataFrame(
        {
            "request_id": data.requests["request_id"].gather(request),
            "item_id": data.items["item_id"].gather(item),
            "score": score.astype(np.float32),
        }
    )
    frame.write_parquet(path)


def main(fit: Fit, trials: Sequence[dict[str, Any]]) -> None:
    """Tune on W2b, score W3, write own.parquet, candidates.parquet and facts.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--refit", action="store_true", help="Learn from W2 as well, once tuned.")
    given = parser.parse_args()
    data, windows = Data(given.data), ["W1"]
    said: list[dict[str, Any]] = []
    chosen: tuple[float, Scorer, dict[str, Any], bool] | None = None
    for i, settings in enumerate(trials):
        start = time.perf_counter()
        scorer = fit(data, given.seed, windows, **settings)
        seconds = time.perf_counter() - start
        for seen in (True, False):
            rates = hit_rates(Asked(data, scorer, windows, seen), "W2b", (10, 50))
            found = {"seen": "kept" if seen else "left out", "fit seconds": round(seconds, 1)}
            said.append({"settings": settings} | found | rates)
            line = f"trial {i + 1} of {len(trials)}, {settings}, seen items {found['seen']}: "
            line += ", ".join(f"{name} {rate:.4f}" for name, rate in rates.items())
            print(f"{line} on W2b, fitted in {seconds:.1f} s", flush=True)
            if chosen is None or rates["HR@10"] > chosen[0]:
                chosen = rates["HR@10"], scorer, settings, seen
    assert chosen is not None
    _, scorer, settings, seen = chosen
    if given.refit:
        windows = ["W1", "W2a", "W2b"]
        scorer = fit(data, given.seed, windows, **settings)
    asked, rows = Asked(data, scorer, windows, seen), data.rows_in("W3")
    asked.top(rows[:CHUNK], given.k)  # thread pools and caches are made here
    own, ranked, seconds, chunks = [], [], 0.0, range(0, len(rows), CHUNK)
    for number, start in enumerate(chunks):
        chunk = rows[start : start + CHUNK]
        # of the processor: what else runs on the machine does not count
        begun = time.process_time()
        at, items, score = asked.top(chunk, given.k)
        seconds += time.process_time() - begun
        own.append((chunk[at], items, score))
        at, items, score = asked.of_candidates(chunk)
        ranked.append((chunk[at], items, score))
        print(f"W3: chunk {number + 1} of {len(chunks)}", flush=True)
    write(data, given.out / "own.parquet", own)
    write(data, given.out / "candidates.parquet", ranked)
    facts = {
        "ms a request": 1000 * seconds / max(len(rows), 1),
        "requests": len(rows),
        "settings": settings,
        "learnt from": windows,
        "seen": "kept" if seen else "left out",
        "trials": said,
        "packages": {d.name: d.version for d in distributions()},
    }
    (given.out / "facts.json").write_text(
        json.dumps(facts, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8"
    )
