"""The five tables of a Run: what a funnel did to a chunk of requests, as rows.

Their columns are described in `docs/reference/run.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from ...log import rows_of
from ...stages.explore import Explore
from ...stages.frame import ITEM, RANK, REQUEST, SCORE
from ...stages.stage import FittedFunnel, StageOutput, check_windows

TABLES = ("slates", "requests", "ledger", "scored", "timing")


class RunWriter:
    """Turns the stage outputs of a chunk into the rows of the Run's tables.

    Raises KarmafunnelError for an embedder or a stage that was fitted on the window.
    """

    def __init__(self, fitted: FittedFunnel, window: str):
        check_windows(fitted.funnel.stages, fitted.context, [window], "score")
        self.fitted = fitted
        self.context, self.log = fitted.context, fitted.context.log
        self.stage_names = pl.Enum([ready.stage.name for ready in fitted.stages])
        self.channels = _channel_names(fitted.stages[0].channels)  # type: ignore[attr-defined]
        self.explores = any(isinstance(ready.stage, Explore) for ready in fitted.stages)
        self.popularity = popularity_band(self.log.targets_of_w1(self.context.label))
        self.price_bounds = self._price_bounds(window)

    def _price_bounds(self, window: str) -> np.ndarray | None:
        """The two prices between low, mid and high: terciles of what relevant items cost outside
        the window; None without prices.
        """
        truth = self.context.truth
        windows = self.log.requests["window"].gather(truth[REQUEST])
        other = truth.filter(windows.ne_missing(window))
        unit = (other["money"] / other["quantity"]).drop_nulls().drop_nans().to_numpy()
        return np.quantile(unit, [1 / 3, 2 / 3]) if len(unit) else None

    def rows_to_score(self, requests: np.ndarray) -> pl.DataFrame:
        """Tracked rows of a chunk: relevant and logged items, which every stage scores."""
        return self.context.logged(requests)

    def of_chunk(
        self, number: int, requests: np.ndarray, tracked: pl.DataFrame, steps: Sequence[StageOutput]
    ) -> dict[str, pl.DataFrame]:
        """Rows of the tables for one chunk of requests.

        Args:
            number: of the chunk.
            requests: row numbers, ascending.
            tracked: `rows_to_score` of the requests.
            steps: outputs of all stages.
        """
        first = steps[0].tracked
        known = self.log.asof.is_eligible(first[REQUEST].to_numpy(), first[ITEM].to_numpy())
        # What recall proposes is eligible as well, such as an item of a list that was shown for the
        # first time.
        eligible = known | first["wins"].is_not_null().to_numpy()
        return {
            "slates": self._slates(steps),
            "requests": self._requests(requests, steps, tracked, eligible),
            "ledger": self._ledger(steps, eligible),
            "scored": self._scored(steps, eligible),
            "timing": self._timing(number, len(requests), steps),
        }

    def _ids(self, frame: pl.DataFrame) -> list[pl.Series]:
        return [
            self.log.requests["request_id"].gather(frame[REQUEST]).alias("request_id"),
            self.log.items["item_id"].gather(frame[ITEM]).alias("item_id"),
        ]

    def _timing(self, number: int, n_requests: int, steps: Sequence[StageOutput]) -> pl.DataFrame:
        """Seconds of each stage. Work that several funnels share counts in full for each."""
        columns = {
            "chunk": pl.Int32,
            "stage": pl.String,
            "requests": pl.Int32,
            "rows_in": pl.Int64,
            "rows_out": pl.Int64,
            "seconds": pl.Float64,
        }
        rows = []
        for step in steps:
            sizes = int(step.rows_in.sum()), int(step.rows_out.sum())
            rows.append([number, step.stage.name, n_requests, *sizes, step.seconds])
        return pl.DataFrame(rows, schema=columns, orient="row")

    def _slates(self, steps: Sequence[StageOutput]) -> pl.DataFrame:
        parts = []
        for step in steps:
            slate, name = step.slate, step.stage.name
            request_id, item_id = self._ids(slate)
            stage = pl.repeat(name, slate.height, dtype=self.stage_names, eager=True)
            columns = [
                request_id,
                stage.alias("stage"),
                item_id,
                slate[RANK],
                slate[SCORE],
                self.channels.gather(slate["channel"]).alias("channel"),
                self._value(slate),
            ]
            if self.explores:
                columns.append(_propensity(slate, f"{name}.propensity"))
            parts.append(pl.DataFrame(columns))
        return pl.concat(parts)

    def _value(self, slate: pl.DataFrame) -> pl.Series:
        """p_click * p_buy * price as of the request, by the last stage so far that predicts both;
        null without one, or without a price.
        """
        names = [c.removesuffix(".p_click") for c in slate.columns if c.endswith(".p_click")]
        names = [name for name in names if f"{name}.p_buy" in slate.columns]
        if not names:
            return pl.repeat(None, slate.height, dtype=pl.Float32, eager=True).alias("value")
        price = pl.Series(self.log.asof.price(slate[REQUEST].to_numpy(), slate[ITEM].to_numpy()))
        value = slate[f"{names[-1]}.p_click"] * slate[f"{names[-1]}.p_buy"] * price
        return value.fill_nan(None).cast(pl.Float32).alias("value")

    def _requests(
        self,
        requests: np.ndarray,
        steps: Sequence[StageOutput],
        tracked: pl.DataFrame,
        eligible: np.ndarray,
    ) -> pl.DataFrame:
        log = self.log
        has_query = (pl.col("query").fill_null("") != "").alias("has_query")
        base = log.requests[requests].select("request_id", "user_id", "ts", "window", has_query)
        truth = tracked["truth"].to_numpy()
        relevant = tracked[REQUEST].to_numpy()[truth]
        shown = rows_of(log.rows, requests).filter(pl.col("position").is_not_null())
        columns = [
            _count("n_truth", requests, relevant),
            pl.Series(
                "n_eligible", np.maximum(log.asof.known(requests), steps[0].rows_in), pl.Int32
            ),
            _count("n_truth_eligible", requests, relevant[eligible[truth]]),
            _count("n_shown", requests, shown[REQUEST].to_numpy()),
            pl.Series("new_user", log.asof.n_events(requests) == 0, pl.Boolean),
        ]
        for name, embedding in self.context.embeddings.items():  # those that the funnel reads
            texts = embedding.read(requests, quick=True)
            if texts is not None:
                columns.append(pl.Series(f"{name}.reads", texts, pl.String))
        for step in steps:
            name = step.stage.name
            columns.append(pl.Series(f"{name}.n", step.rows_in, pl.Int32))
            columns.append(pl.Series(f"{name}.out", step.rows_out, pl.Int32))
            if step.exact is not None:
                hits = step.slate.select(REQUEST, ITEM, pl.lit(1.0).alias("hit"))
                found = step.exact.join(hits, on=[REQUEST, ITEM], how="left")
                share = found.group_by(REQUEST).agg(pl.col("hit").fill_null(0).mean())
                recall = _joined(pl.DataFrame({REQUEST: requests}), share, REQUEST)["hit"]
                columns.append(recall.cast(pl.Float32).alias(f"{name}.index_recall"))
        return base.with_columns(columns)

    def _ledger(self, steps: Sequence[StageOutput], eligible: np.ndarray) -> pl.DataFrame:
        truth = steps[0].tracked["truth"].to_numpy()
        rows = steps[0].tracked.filter(pl.col("truth")).select(REQUEST, ITEM)
        request, item = rows[REQUEST].to_numpy(), rows[ITEM].to_numpy()
        money = _joined(rows, rows_of(self.context.truth, np.unique(request)), REQUEST, ITEM)
        bands = self._price_bands((money["money"] / money["quantity"]).to_numpy())
        columns = [
            *self._ids(rows),
            money["money"].cast(pl.Float64),
            money["quantity"].cast(pl.Int64),
            pl.Series("eligible", eligible[truth]),
            pl.Series("target", self.popularity[item].tolist(), pl.String),
            pl.Series("repeat", self.log.asof.own_count(request, item) > 0),
            pl.Series("price_band", bands, pl.String),
        ]
        alive = eligible[truth]  # not lost so far
        lost = np.full(len(item), "not eligible", dtype=object)
        lost[alive] = None
        margin = np.full(len(item), np.nan)
        margin_score = np.full(len(item), np.nan, dtype=np.float32)
        for step in steps:
            tracked, name = step.tracked.filter(pl.col("truth")), step.stage.name
            rank, score = tracked[RANK].to_numpy(), tracked[SCORE].to_numpy()
            kept = tracked["kept"].to_numpy()
            falls = alive & ~kept
            alive = alive & kept
            margin[falls] = np.maximum(rank[falls] - step.stage.k, 1)
            margin_score[falls] = (_needed(step, tracked) - score)[falls]
            reason = np.full(len(item), name, dtype=object)
            if step.exact is not None:
                in_exact = step.exact.with_columns(pl.lit(True).alias("found"))
                found = _joined(tracked.select(REQUEST, ITEM), in_exact, REQUEST, ITEM)["found"]
                reason[found.fill_null(False).to_numpy()] = "index"
            lost[falls] = reason[falls]
            columns += [
                pl.Series(f"{name}.rank", rank).set(pl.Series(~alive), None),
                tracked[SCORE].alias(f"{name}.score"),
                tracked["wins"].alias(f"{name}.wins"),
            ]
        columns += [
            pl.Series("lost", lost.tolist(), pl.String),
            pl.Series("margin", margin).fill_nan(None).cast(pl.Int32),
            pl.Series("margin_score", margin_score).fill_nan(None),
        ]
        return pl.DataFrame(columns)

    def _price_bands(self, unit: np.ndarray) -> list[str | None]:
        """The band of each price of an item; None without a price."""
        if self.price_bounds is None:
            return [None] * len(unit)
        names = np.array(["low", "mid", "high"], dtype=object)
        found = names[np.searchsorted(self.price_bounds, np.nan_to_num(unit))]
        found[np.isnan(unit)] = None
        return found.tolist()

    def _scored(self, steps: Sequence[StageOutput], eligible: np.ndarray) -> pl.DataFrame:
        first = steps[0].tracked.select(REQUEST, ITEM)
        rows = rows_of(self.log.rows, np.unique(first[REQUEST].to_numpy()))
        price = pl.coalesce("price_paid", "price_shown")
        money = (price * pl.col("quantity").fill_null(1)).sum()
        outcomes = rows.group_by(REQUEST, ITEM, maintain_order=True).agg(
            pl.col("position").min(),
            pl.col("clicked").max(),
            pl.col("purchased").max(),
            pl.when(price.is_not_null().any()).then(money).alias("money"),
            *([pl.col("stage").first().alias("logged_stage")] if "stage" in rows.columns else []),
        )
        columns = [
            *self._ids(first),
            *_joined(first, outcomes, REQUEST, ITEM).drop(REQUEST, ITEM).get_columns(),
            pl.Series("eligible", eligible, pl.Boolean),
        ]
        for fitted, step in zip(self.fitted.stages, steps, strict=True):
            name, score = step.stage.name, step.tracked[SCORE]
            columns += [score.alias(f"{name}.score"), step.tracked[RANK].alias(f"{name}.rank")]
            if (p := fitted.probability(score.to_numpy())) is not None:
                columns.append(pl.Series(f"{name}.p", p, pl.Float64))
        return pl.DataFrame(columns)


def _propensity(slate: pl.DataFrame, column: str) -> pl.Series:
    """What a stage that draws gave each row; null of a stage that does not."""
    if column in slate.columns:
        return slate[column].alias("propensity")
    return pl.repeat(None, slate.height, dtype=pl.Float32, eager=True).alias("propensity")


def _joined(left: pl.DataFrame, right: pl.DataFrame, *keys: str) -> pl.DataFrame:
    """The rows of `left` in their order with the columns of `right`; null where it has none."""
    return left.join(right, on=list(keys), how="left", maintain_order="left")


def _count(name: str, requests: np.ndarray, request: np.ndarray) -> pl.Series:
    """The number of rows of each request, as a column; `request` (n_rows,) in any order."""
    n = np.bincount(np.searchsorted(requests, request), minlength=len(requests))
    return pl.Series(name, n, pl.Int32)


def _needed(step: StageOutput, tracked: pl.DataFrame) -> np.ndarray:
    """The score of the last kept item of each tracked row's request, NaN without one: (n_rows,)."""
    last = step.slate.filter(pl.col(RANK) == step.stage.k)
    last = last.select(REQUEST, pl.col(SCORE).alias("needed"))
    return _joined(tracked.select(REQUEST), last, REQUEST)["needed"].to_numpy()


def _channel_names(names: Sequence[str]) -> pl.Series:
    """The text of every set of channel bits: "text+popular"."""
    texts = []
    for bits in range(1 << len(names)):
        texts.append("+".join(name for i, name in enumerate(names) if bits >> i & 1))
    return pl.Series("channel", texts)


def popularity_band(counts: np.ndarray) -> np.ndarray:
    """The popularity band of each item, (n_items,) of str.

    "cold" was never a target, "head" are the most popular items that hold half of all targets, and
    "tail" is the rest.

    Args:
        counts: targets of each item, (n_items,).
    """
    band = np.full(len(counts), "tail", dtype=object)
    order = np.argsort(-counts, kind="stable")
    running = np.cumsum(counts[order])
    if running.size and running[-1] > 0:
        band[order[: int(np.searchsorted(running, running[-1] / 2)) + 1]] = "head"
    band[counts == 0] = "cold"
    return band
