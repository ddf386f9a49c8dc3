"""The five tables of a Run: what a funnel did to a chunk of requests, as rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from ...log import rows_of
from ...stages.frame import ITEM, RANK, REQUEST, SCORE
from ...stages.learn import logged
from ...stages.stage import FittedFunnel, StageOutput, check_windows

TABLES = ("slates", "requests", "ledger", "scored", "timing")


class RunWriter:
    """Turns what a funnel did to a chunk into the rows of the Run's tables."""

    def __init__(self, fitted: FittedFunnel, window: str):
        check_windows(fitted.funnel.stages, fitted.context, [window], "score")
        self.fitted = fitted
        self.context, self.log = fitted.context, fitted.context.log
        log, truth = self.log, self.context.truth
        names = fitted.stages[0].channels  # type: ignore[attr-defined]
        self.channels = pl.Series(
            "channel",
            [
                "+".join(n for b, n in enumerate(names) if i >> b & 1)
                for i in range(1 << len(names))
            ],
        )
        self.stage_names = pl.Enum([s.stage.name for s in fitted.stages])
        position = (
            log.requests["window"].to_numpy()[truth[REQUEST].to_numpy()]
            if truth.height
            else np.empty(0, object)
        )
        self.popularity = popularity_band(log.targets_of_w1(self.context.label))
        earlier = truth.filter(pl.Series(position != window, dtype=pl.Boolean)).select(
            (pl.col("money") / pl.col("quantity")).alias("unit")
        )
        unit = earlier["unit"].drop_nulls().drop_nans().to_numpy()
        self.bands = np.quantile(unit, [1 / 3, 2 / 3]) if len(unit) else None

    def rows_to_score(self, requests: np.ndarray) -> pl.DataFrame:
        """What every stage scores beside the candidates of a chunk: relevant and logged items."""
        return logged(self.context, requests)

    def of_chunk(
        self, number: int, requests: np.ndarray, tracked: pl.DataFrame, steps: Sequence[StageOutput]
    ) -> dict[str, pl.DataFrame]:
        """Rows of the tables for one chunk of requests, of which `tracked` is `rows_to_score`."""
        first = steps[0].tracked
        # What recall was handed is eligible in fact, such as an item of a list that was shown for
        # the first time.
        eligible = (
            self.log.asof.is_eligible(first[REQUEST].to_numpy(), first[ITEM].to_numpy())
            | first["wins"].is_not_null().to_numpy()
        )
        return {
            "slates": self._slates(steps),
            "requests": self._requests(requests, steps, tracked, eligible),
            "ledger": self._ledger(steps, eligible),
            "scored": self._scored(steps, eligible),
            "timing": pl.DataFrame(
                [
                    [
                        number,
                        s.stage.name,
                        len(requests),
                        int(s.rows_in.sum()),
                        int(s.rows_out.sum()),
                        s.seconds,
                    ]
                    for s in steps
                ],
                schema={
                    "chunk": pl.Int32,
                    "stage": pl.String,
                    "requests": pl.Int32,
                    "rows_in": pl.Int64,
                    "rows_out": pl.Int64,
                    "seconds": pl.Float64,  # as if the funnel ran alone
                },
                orient="row",
            ),
        }

    def _ids(self, frame: pl.DataFrame) -> list[pl.Series]:
        return [
            self.log.requests["request_id"].gather(frame[REQUEST]).alias("request_id"),
            self.log.items["item_id"].gather(frame[ITEM]).alias("item_id"),
        ]

    def _slates(self, steps: Sequence[StageOutput]) -> pl.DataFrame:
        parts = []
        for step in steps:
            slate = step.slate
            request_id, item_id = self._ids(slate)
            parts.append(
                pl.DataFrame(
                    [
                        request_id, pl.repeat(step.stage.name, slate.height, dtype=self.stage_names, eager=True).alias("stage"), item_id,
                        slate[RANK], slate[SCORE], self.channels.gather(slate["channel"]).alias("channel"), self._value(slate),
                    ]
                )
            )  # fmt: skip
        return pl.concat(parts)

    def _value(self, slate: pl.DataFrame) -> pl.Series:
        """p_click * p_buy * price as of the request, by the last stage so far that tells both; null
        without one, or without a price.
        """
        told = [c.removesuffix(".p_click") for c in slate.columns if c.endswith(".p_click")]
        told = [name for name in told if f"{name}.p_buy" in slate.columns]
        if not told:
            return pl.repeat(None, slate.height, dtype=pl.Float32, eager=True).alias("value")
        price = pl.Series(self.log.asof.price(slate[REQUEST].to_numpy(), slate[ITEM].to_numpy()))
        value = slate[f"{told[-1]}.p_click"] * slate[f"{told[-1]}.p_buy"] * price
        return value.fill_nan(None).cast(pl.Float32).alias("value")

    def _requests(
        self,
        requests: np.ndarray,
        steps: Sequence[StageOutput],
        tracked: pl.DataFrame,
        eligible: np.ndarray,
    ) -> pl.DataFrame:
        log = self.log
        group = np.searchsorted(requests, tracked[REQUEST].to_numpy())
        truth = tracked["truth"].to_numpy()
        shown = rows_of(log.rows, requests).filter(pl.col("position").is_not_null())
        base = log.requests[requests].select(
            "request_id",
            "user_id",
            "ts",
            "window",
            (pl.col("query").fill_null("") != "").alias("has_query"),
        )
        size = len(requests)
        columns = [
            pl.Series("n_truth", np.bincount(group[truth], minlength=size), pl.Int32),
            pl.Series(
                "n_eligible", np.maximum(log.asof.known(requests), steps[0].rows_in), pl.Int32
            ),
            pl.Series(
                "n_truth_eligible", np.bincount(group[truth & eligible], minlength=size), pl.Int32
            ),
            pl.Series(
                "n_shown",
                np.bincount(np.searchsorted(requests, shown[REQUEST].to_numpy()), minlength=size),
                pl.Int32,
            ),
            pl.Series("new_user", log.asof.n_events(requests) == 0, pl.Boolean),
        ]
        for name, embedding in self.context.embeddings.items():  # those that the funnel reads
            told = embedding.read(requests, quick=True)
            if told is not None:
                columns.append(pl.Series(f"{name}.reads", told, pl.String))
        for step in steps:
            columns.append(pl.Series(f"{step.stage.name}.n", step.rows_in, pl.Int32))
            columns.append(pl.Series(f"{step.stage.name}.out", step.rows_out, pl.Int32))
            if step.exact is not None:
                found = step.exact.join(
                    step.slate.select(REQUEST, ITEM, pl.lit(1.0).alias("hit")),
                    on=[REQUEST, ITEM],
                    how="left",
                )
                share = found.group_by(REQUEST).agg(pl.col("hit").fill_null(0).mean())
                joined = pl.DataFrame({REQUEST: requests}).join(
                    share, on=REQUEST, how="left", maintain_order="left"
                )
                columns.append(
                    joined["hit"].cast(pl.Float32).alias(f"{step.stage.name}.index_recall")
                )
        return base.with_columns(columns)

    def _ledger(self, steps: Sequence[StageOutput], eligible: np.ndarray) -> pl.DataFrame:
        truth = steps[0].tracked["truth"].to_numpy()
        rows = steps[0].tracked.filter(pl.col("truth")).select(REQUEST, ITEM)
        request, item = rows[REQUEST].to_numpy(), rows[ITEM].to_numpy()
        money = rows.join(
            rows_of(self.context.truth, np.unique(request)),
            on=[REQUEST, ITEM],
            how="left",
            maintain_order="left",
        )
        unit = (money["money"] / money["quantity"]).to_numpy()
        band = None
        if self.bands is not None:
            band = np.array(["low", "mid", "high"], dtype=object)[
                np.searchsorted(self.bands, np.nan_to_num(unit))
            ]
            band[np.isnan(unit)] = None
        columns = [
            *self._ids(rows), money["money"].cast(pl.Float64), money["quantity"].cast(pl.Int64), pl.Series("eligible", eligible[truth]),
            pl.Series("target", self.popularity[item].tolist(), pl.String), pl.Series("repeat", self.log.asof.own_count(request, item) > 0),
            pl.Series("price_band", band.tolist() if band is not None else [None] * len(item), pl.String),
        ]  # fmt: skip
        lost = np.full(len(item), "not eligible", dtype=object)
        lost[eligible[truth]] = None
        margin = np.full(len(item), np.nan)
        margin_score = np.full(len(item), np.nan, dtype=np.float32)
        for step in steps:
            tracked, name = step.tracked.filter(pl.col("truth")), step.stage.name
            kept = tracked["kept"].to_numpy()
            alive = np.array([reason is None for reason in lost], dtype=bool)
            falls = alive & ~kept
            margin[falls] = np.maximum(tracked[RANK].to_numpy()[falls] - step.stage.k, 1)
            last = step.slate.filter(pl.col(RANK) == step.stage.k).select(
                REQUEST, pl.col(SCORE).alias("needed")
            )
            needed = (
                tracked.select(REQUEST)
                .join(last, on=REQUEST, how="left", maintain_order="left")["needed"]
                .to_numpy()
            )
            margin_score[falls] = (needed - tracked[SCORE].to_numpy())[falls]
            reason = np.full(len(item), name, dtype=object)
            if step.exact is not None:
                there = tracked.select(REQUEST, ITEM).join(
                    step.exact.with_columns(pl.lit(True).alias("there")),
                    on=[REQUEST, ITEM],
                    how="left",
                    maintain_order="left",
                )
                reason[there["there"].fill_null(False).to_numpy()] = "index"
            lost[falls] = reason[falls]
            columns += [
                pl.Series(f"{name}.rank", tracked[RANK].to_numpy()).set(pl.Series(~(kept & alive)), None), tracked[SCORE].alias(f"{name}.score"),
                tracked["wins"].alias(f"{name}.wins"),
            ]  # fmt: skip
        columns += [
            pl.Series("lost", lost.tolist(), pl.String),
            pl.Series("margin", margin).fill_nan(None).cast(pl.Int32),
        ]
        columns += [pl.Series("margin_score", margin_score).fill_nan(None)]
        return pl.DataFrame(columns)

    def _scored(self, steps: Sequence[StageOutput], eligible: np.ndarray) -> pl.DataFrame:
        first = steps[0].tracked.select(REQUEST, ITEM)
        rows = rows_of(self.log.rows, np.unique(first[REQUEST].to_numpy())).group_by(
            REQUEST, ITEM, maintain_order=True
        )
        price = pl.coalesce("price_paid", "price_shown")
        by = rows.agg(
            pl.col("position").min(), pl.col("clicked").max(), pl.col("purchased").max(),
            pl.when(price.is_not_null().any()).then((price * pl.col("quantity").fill_null(1)).sum()).alias("money"),
        )  # fmt: skip
        logged_rows = first.join(by, on=[REQUEST, ITEM], how="left", maintain_order="left").drop(
            REQUEST, ITEM
        )
        columns = [
            *self._ids(first),
            *logged_rows.get_columns(),
            pl.Series("eligible", eligible, pl.Boolean),
        ]
        for fitted, step in zip(self.fitted.stages, steps, strict=True):
            columns += [
                step.tracked[SCORE].alias(f"{step.stage.name}.score"),
                step.tracked[RANK].alias(f"{step.stage.name}.rank"),
            ]
            if (p := fitted.probability(step.tracked[SCORE].to_numpy())) is not None:
                columns.append(pl.Series(f"{step.stage.name}.p", p, pl.Float64))
        return pl.DataFrame(columns)


def popularity_band(counts: np.ndarray) -> np.ndarray:
    """ "cold" (never a target), "head" (the most popular that hold half of all targets) or "tail",
    an item.
    """
    band = np.full(len(counts), "tail", dtype=object)
    order = np.argsort(-counts, kind="stable")
    running = np.cumsum(counts[order])
    if running.size and running[-1] > 0:
        band[order[: int(np.searchsorted(running, running[-1] / 2)) + 1]] = "head"
    band[counts == 0] = "cold"
    return band
