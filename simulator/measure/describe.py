"""Statistics of a log or a catalogue, as a dict and as tables for the terminal. Their page:
`simulator/report/log_page.py`.

Shares are fractions of 1. What the log lacks is None. Definitions: `docs/protocol.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import polars as pl

from ...checks import CHECKS, require
from ...layout import CAPABILITIES, WINDOWS
from ...log import Catalogue, Log
from ...mapped import kept, pieces, quantiles

Stats = dict[str, Any]
QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}
PRINTED = ("p50", "p90", "p99")  # the dict has all of QUANTILES
SHOWN_POSITIONS = 50  # for CTR by position
SAMPLED = 5  # items and requests that are shown as examples
NAMED = 2  # items of a history, and relevant items, of a request that is shown
ALL = "all"
SHOWN = pl.col("position").is_not_null()


# -- statistics ------------------------------------------------------------------------------------


def describe(log: Log | Catalogue) -> Stats:
    """Statistics of a log, or those of them that a catalogue has, as JSON-ready values.

    Windows, list lengths, queries, histories, eligible items and the ceiling are those of the
    requests of the scenario; items are relevant by the log's own label. A log that fails other
    checks than those below is described all the same.

    Raises:
        KarmafunnelError: the log cannot be read, or has prices or times outside the valid range.
    """
    require(
        log, but=[question.name for question in CHECKS if question.name not in ("prices", "years")]
    )
    meta = log.meta
    stats: Stats = {
        "kind": "catalogue",
        **{key: meta.get(key) for key in ("name", "source", "licence", "currency")},
        "has": [name for name in CAPABILITIES if meta["has"].get(name)],
        "has_not": [name for name in CAPABILITIES if not meta["has"].get(name)],
        "lacks": list(meta["lacks"]),
        "set_aside": dict(meta["set_aside"]),
        "sizes": {"items": log.items.height},
        "items": describe_items(log.items),
        "prices": {"list": prices(log.items["price"])},
        "some_items": some_items(log.items),
    }
    return stats if isinstance(log, Catalogue) else stats | describe_log(log, stats)


def describe_items(items: pl.DataFrame) -> Stats:
    """Lengths of texts, missing fields, brands and categories of the items."""
    texts = [name for name in ("title", "description") if name in items.columns]
    return {
        "words": {name: spread(words(items[name].cast(pl.String))) for name in texts},
        "without": {
            name: share(items[name].is_null())
            for name in ("title", "brand", "category", "attributes", "image", "visual")
        },
        "brands": items["brand"].n_unique() - int(items["brand"].has_nulls()),
        "categories": items["category"].drop_nulls().list.join("\x00").n_unique(),
        "category_depth": spread(items["category"].list.len().drop_nulls()),
        "attributes": spread(items["attributes"].list.len().drop_nulls()),
    }


def describe_log(log: Log, stats: Stats) -> Stats:
    served = np.flatnonzero(log.in_scenario)
    shown = Shown(log)
    truth = log.truth(log.meta["label"])
    of_requests = per_request(log, served, truth)
    lists = shown.lists.gather(served)
    queries = log.requests["query"].gather(served)
    return {
        "kind": "log",
        **{key: log.meta.get(key) for key in ("time", "label", "catalogue", "scenario")},
        "sizes": (
            stats["sizes"]
            | {
                "requests": log.requests.height,
                "scenario_requests": len(served),
                "users": log.requests["user_id"].n_unique(),
                "sessions": log.requests["session_id"].drop_nulls().n_unique(),
                "rows": log.rows.height,
                "shown": shown.height,
                "clicks": int(log.rows["clicked"].sum() or 0),
                "purchases": int(log.rows["purchased"].sum() or 0),
                "truth": truth.height,
            }
        ),
        "time_range": time_range(log.requests["ts"]),
        "sources": dict(
            log.requests.group_by("source")
            .len()
            .sort("len", "source", descending=[True, False])
            .iter_rows()
        ),
        "windows": describe_windows(log, of_requests, truth),
        "requests_per_user": spread(log.requests["user_id"].value_counts()["count"]),
        "list_length": spread(lists.filter(lists > 0)),
        "ctr_by_position": ctr_by_position(log, shown),
        "prices": (
            stats["prices"]
            | {
                "shown": prices(shown.prices) if shown.height else None,
                "paid": (
                    prices(log.events.filter(pl.col("purchased"))["price_paid"])
                    if log.has("purchases")
                    else None
                ),
            }
        ),
        "popularity": popularity(np.bincount(truth["item"].to_numpy(), minlength=log.n_items)),
        "history": spread(of_requests["history"]),
        "eligible": spread(of_requests["eligible"]),
        "some_requests": some_requests(log, of_requests, truth),
        "query": (
            None
            if not log.has("query")
            else {
                "share": 1 - (share(queries.is_null()) or 0.0),
                "distinct": queries.drop_nulls().n_unique(),
                "words": spread(words(queries)),
            }
        ),
    }


def evenly(n: int) -> np.ndarray:
    """Up to `SAMPLED` of n rows at equal distances: int64, rising."""
    return np.unique(np.arange(min(SAMPLED, n)) * n // max(min(SAMPLED, n), 1))


def some_items(items: pl.DataFrame) -> list[Stats]:
    """Items at equal distances in the table."""
    columns = ["item_id", "title", "brand", "category", "price"]
    return items.select(columns)[evenly(items.height)].to_dicts()


def some_requests(log: Log, of_requests: pl.DataFrame, truth: pl.DataFrame) -> list[Stats]:
    """Requests of the scenario at equal distances in time, among those with a history and a
    relevant item (or a relevant item, or any); histories have the latest item first.
    """
    told = of_requests.filter(pl.col("truth") > 0)
    lived = told.filter(pl.col("history") > 0)
    mine = next((f for f in (lived, told) if f.height), of_requests)
    request = mine["request"].gather(evenly(mine.height)).to_numpy()
    names = log.items.select(pl.coalesce("title", "item_id")).to_series()
    history = log.asof.history(request, NAMED).items[:, ::-1]
    counts = log.asof.n_events(request)
    found = []
    for i, row in enumerate(request.tolist()):
        columns = ["request_id", "user_id", "ts", "window", "query"]
        facts = log.requests.select(columns).row(row, named=True)
        wanted = truth.filter(pl.col("request") == row)["item"]
        before = [item for item in history[i].tolist() if item >= 0]
        found.append(
            facts
            | {
                "ts": iso(facts["ts"]),
                "events_before": int(counts[i]),
                "history": names.gather(before).to_list(),
                "relevant": names.gather(wanted.head(NAMED)).to_list(),
                "relevant_items": wanted.len(),
            }
        )
    return found


def per_request(log: Log, served: np.ndarray, truth: pl.DataFrame) -> pl.DataFrame:
    """One row per request of the scenario.

    Args:
        served: rows of the scenario's requests: (n_served,).
        truth: relevant items of the log.

    Returns:
        Columns request, window, user, history (clicks and purchases before the request), eligible
        (number of eligible items), truth (number of relevant items) and, of these, how many are
        eligible (truth_eligible), were clicked or bought before by the user (repeat) or never
        relevant in W1 (cold), and their money.
    """
    window = log.requests["window"]
    targets_of_w1 = pl.Series(np.flatnonzero(log.targets_of_w1(log.meta["label"])))
    mine = truth.filter(pl.col("request").is_in(served)).sort("request")
    request, item = mine["request"].to_numpy(), mine["item"].to_numpy()
    mine = mine.with_columns(
        truth=pl.lit(1),
        truth_eligible=pl.Series(log.asof.is_eligible(request, item)),
        repeat=pl.Series(log.asof.own_count(request, item) > 0),
        cold=~pl.col("item").is_in(targets_of_w1.implode()),
    )
    sums = mine.group_by("request").agg(
        pl.col("truth", "truth_eligible", "repeat", "cold", "money").sum()
    )
    return (
        pl.DataFrame(
            {
                "request": served,
                "window": window.gather(served),
                "user": log.user[served],
                "history": log.asof.n_events(served),
                "eligible": log.asof.known(served),
            }
        )
        .join(sums, on="request", how="left", maintain_order="left")
        .with_columns(pl.col("truth", "truth_eligible", "repeat", "cold", "money").fill_null(0))
    )


def describe_windows(log: Log, of_requests: pl.DataFrame, truth: pl.DataFrame) -> list[Stats]:
    """Statistics of the scenario's requests and their relevant items: one dict per window, then one
    for all windows.
    """
    in_w1 = of_requests.filter(pl.col("window") == "W1")["user"].unique()
    known_money = log.has("price") and truth["money"].null_count() < truth.height
    ts = log.requests["ts"]
    found = []
    for window in (*WINDOWS, ALL):
        mine = of_requests if window == ALL else of_requests.filter(pl.col("window") == window)
        users, targets = mine["user"].unique(), int(mine["truth"].sum())
        of_targets = {
            name: int(mine[name].sum()) / targets if targets else None
            for name in ("truth_eligible", "repeat", "cold")
        }
        found.append(
            {
                "window": window,
                "requests": mine.height,
                "from": iso(ts.gather(mine["request"]).min()),
                "to": iso(ts.gather(mine["request"]).max()),
                "users": len(users),
                "new_users": (
                    None
                    if window in ("W1", ALL) or not len(users)
                    else share(~users.is_in(in_w1.implode()))
                ),
                "with_truth": share(mine["truth"] > 0),
                "truth": targets,
                "money": float(mine["money"].sum()) if known_money else None,
                "eligible": mean(mine["eligible"]),
                "ceiling": of_targets["truth_eligible"],
                "repeat": of_targets["repeat"],
                "cold": None if window in ("W1", ALL) else of_targets["cold"],
                "history": mean(mine["history"]),
                "no_history": share(mine["history"] == 0),
            }
        )
    return found


class Shown:
    """What was shown in a log, counted some rows at a time.

    height: rows shown. lists: how many of each request, (n_requests,). positions: rows, clicks and
    purchases by position.
    """

    def __init__(self, log: Log):
        self.rows, self.height = log.rows, 0
        lists, positions = np.zeros(log.requests.height, dtype=np.int64), []
        for piece in pieces(log.rows):
            part = piece.lazy().filter(SHOWN).select("request", "position", "clicked", "purchased")
            shown = part.collect()
            self.height += shown.height
            lists += np.bincount(shown["request"].to_numpy(), minlength=len(lists))
            positions.append(
                shown.group_by("position").agg(
                    pl.len().alias("shown"),
                    pl.col("clicked").fill_null(False).sum(),
                    pl.col("purchased").fill_null(False).sum(),
                )
            )
        self.lists = pl.Series(lists)
        self.positions = pl.concat(positions).group_by("position").sum()

    @property
    def prices(self) -> pl.Series:
        return kept(self.rows.select("position", "price_shown"), SHOWN)["price_shown"]


def ctr_by_position(log: Log, shown: Shown) -> list[Stats] | None:
    """Exposures, clicks, purchases and click rate of the first positions."""
    if not log.has("clicks") or shown.height == 0:
        return None
    rows = shown.positions
    rows = rows.with_columns((pl.col("clicked") / pl.col("shown")).alias("ctr")).sort("position")
    return rows.head(SHOWN_POSITIONS).to_dicts()


def popularity(counts: np.ndarray) -> Stats | None:
    """How unevenly relevant items are spread over the catalogue.

    Args:
        counts: how often each item is relevant: int64 (n_items,).

    Returns:
        Among others, `gini` over all items, also those never relevant; `top_1_percent`, the share
        that the top 1% of all items hold (rounded up to whole items); and `zipf_slope`, the least
        squares slope of log count on log rank over the items that are ever relevant. None if no
        item is.
    """
    total, n = int(counts.sum()), len(counts)
    if total == 0:
        return None
    falling = np.sort(counts)[::-1]
    targets = falling[falling > 0]
    slope = None
    if len(targets) > 1:
        slope = float(np.polyfit(np.log(np.arange(1, len(targets) + 1)), np.log(targets), 1)[0])
    return {
        "targets": total,
        "items": len(targets),
        "never": 1 - len(targets) / n,
        "gini": gini(counts),
        "top_1_percent": int(falling[: math.ceil(n / 100)].sum()) / total,
        "zipf_slope": slope,
    }


def gini(amounts: np.ndarray) -> float:
    """Gini coefficient of amounts of at least 0, (n,): 0 where all are equal; NaN if all are 0."""
    rising, n, total = np.sort(amounts), len(amounts), amounts.sum()
    if total == 0:
        return math.nan
    return float(2 * (np.arange(1, n + 1) * rising).sum() / (n * total) - (n + 1) / n)


def prices(values: pl.Series) -> Stats | None:
    """Spread of the known prices, and the share of missing ones."""
    if values.len() == 0:
        return None
    price = pl.col(values.name)
    known = kept(values.to_frame(), price.is_not_null() & price.is_not_nan())[values.name]
    return {"missing": 1 - known.len() / values.len(), "spread": spread(known)}


def time_range(ts: pl.Series) -> Stats | None:
    first, last = ts.min(), ts.max()
    if first is None or last is None:
        return None
    length: Any = last - first  # type: ignore[operator]
    return {"from": iso(first), "to": iso(last), "days": length.total_seconds() / 86_400}


def words(texts: pl.Series) -> pl.Series:
    """Number of words of each text that is not null."""
    return texts.drop_nulls().str.count_matches(r"\S+")


def spread(values: pl.Series) -> Stats | None:
    """n, mean, min, quantiles (linear interpolation) and max; None if there are no values."""
    if values.len() == 0:
        return None
    array = values.to_numpy().astype(float, copy=False)
    found = {"n": len(array), "mean": float(array.mean()), "min": float(array.min())}
    found |= zip(QUANTILES, quantiles(array, list(QUANTILES.values())), strict=True)
    return found | {"max": float(array.max())}


def share(flags: pl.Series) -> float | None:
    return int(flags.sum()) / flags.len() if flags.len() else None


def mean(values: pl.Series) -> float | None:
    return float(np.mean(values.to_numpy())) if values.len() else None


def iso(value: Any) -> str | None:
    return None if value is None else value.isoformat()


# -- as tables -------------------------------------------------------------------------------------

Tables = list[tuple[str, list[str], list[list[str]]]]


def tables(stats: Stats) -> Tables:
    """The tables of the terminal and of the page: title, head and rows of each, as text."""
    found: Tables = [(str(stats["name"]), ["what", "found"], facts(stats))]
    found += samples(stats)
    if "windows" in stats:
        head = ["requests of the scenario", *(w["window"] for w in stats["windows"])]
        rows = [[name, *(show(w[key]) for w in stats["windows"])] for name, key, show in OF_WINDOWS]
        found.append(("windows", head, rows))
    head = ["spread of", "n", "mean", "min", *PRINTED, "max", "missing"]
    found.append(
        (
            "spreads",
            head,
            [spread_row(name, s, missing) for name, s, missing in spreads(stats) if s],
        )
    )
    if stats.get("ctr_by_position"):
        rows = [
            [count(p["position"]), count(p["shown"]), count(p["clicked"]), percent(p["ctr"])]
            for p in stats["ctr_by_position"][:10]
        ]
        found.append(
            ("clicks by position (the first 10)", ["position", "shown", "clicked", "CTR"], rows)
        )
    return found


SAMPLES = ("items", "requests")  # tables of texts, by the first word of their titles


def samples(stats: Stats) -> Tables:
    """The tables of some items and of some requests."""
    rows = [
        [
            one["item_id"],
            short(one["title"]),
            short(one["brand"]),
            short(" > ".join(one["category"] or [])),
            number(one["price"]),
        ]
        for one in stats["some_items"]
    ]
    many = f"{len(rows):,} of {stats['sizes']['items']:,}"
    heads = ["item", "title", "brand", "category", "price"]
    found: Tables = [(f"items ({many})", *filled(heads, rows))]
    if "some_requests" not in stats:
        return found
    rows = [
        [
            short(one["request_id"]),
            short(one["user_id"]),
            (one["ts"] or one["window"])[:16].replace("T", " "),
            short(one["query"]),
            listed(one["history"], one["events_before"]),
            listed(one["relevant"], one["relevant_items"]),
        ]
        for one in stats["some_requests"]
    ]
    many = f"{len(rows):,} of {stats['sizes']['scenario_requests']:,}"
    heads = ["request", "user", "time", "query", "history", "relevant items"]
    found.append((f"requests ({many})", *filled(heads, rows)))
    return found


def size(name: str) -> str:
    """The words for a key of the sizes."""
    return "relevant items" if name == "truth" else name.replace("_", " ")


def filled(heads: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns that hold something."""
    kept = [i for i in range(len(heads)) if any(row[i] != "n/a" for row in rows)]
    return [heads[i] for i in kept], [[row[i] for i in kept] for row in rows]


def short(text: str | None, most: int = 32) -> str:
    """A text in one line, cut after `most` characters; "n/a" for none."""
    line = " ".join((text or "").split())
    return (line if len(line) <= most else f"{line[: most - 1]}…") or "n/a"


def listed(names: list[str], whole: int) -> str:
    """Names of items, and how many more there are."""
    more = f" and {whole - len(names):,} more" if whole > len(names) else ""
    return "; ".join(short(name, 24) for name in names) + more if names else "none"


def count(value: int | None) -> str:
    return "n/a" if value is None else f"{value:,}"


def number(value: float | None) -> str:
    """A number with three significant digits, or a whole number."""
    if value is None:
        return "n/a"
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.3g}M" if abs(value) < 1e9 else f"{value:.3g}"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def percent(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:.1%}" if value == 0 or value >= 0.001 else "<0.1%"


# Label, key and format of the rows of the table of windows.
OF_WINDOWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("requests", "requests", count),
    ("users", "users", count),
    ("users not in W1", "new_users", percent),
    ("requests with a relevant item", "with_truth", percent),
    ("relevant items", "truth", count),
    ("money of relevant items", "money", number),
    ("eligible items, mean", "eligible", number),
    ("ceiling", "ceiling", percent),
    ("repeat", "repeat", percent),
    ("cold", "cold", percent),
    ("history, mean", "history", number),
    ("without history", "no_history", percent),
)


def facts(stats: Stats) -> list[list[str]]:
    """The table of facts: name and value."""
    sizes, items = stats["sizes"], stats["items"]
    rows = [
        ["kind", stats["kind"]],
        ["sizes", ", ".join(f"{n:,} {size(name)}" for name, n in sizes.items())],
    ]
    if stats["kind"] == "log":
        span, popular = stats["time_range"], stats["popularity"]
        times = (
            f"{span['from'][:16]} to {span['to'][:16]}, {span['days']:,.1f} days"
            if span
            else "an order, no clock"
        )
        sources = list(stats["sources"].items())
        more = f", {len(sources) - 6} more" if len(sources) > 6 else ""
        rows += [
            ["time", times.replace("T", " ")],
            ["sources", ", ".join(f"{name} {n:,}" for name, n in sources[:6]) + more],
            [
                "scenario, label",
                (
                    f"{', '.join(stats['scenario'])}; label {stats['label']}; catalogue"
                    f" {stats['catalogue']}"
                ),
            ],
        ]
        if popular:
            top, never = percent(popular["top_1_percent"]), percent(popular["never"])
            shape = f"Gini {number(popular['gini'])}, Zipf slope {number(popular['zipf_slope'])}"
            rows.append(
                [
                    "popularity",
                    (
                        f"{shape}, top 1% of items hold {top} of relevant items, never relevant"
                        f" {never} of items"
                    ),
                ]
            )
        if stats["query"]:
            rows.append(
                [
                    "query",
                    (
                        f"{percent(stats['query']['share'])} of requests,"
                        f" {stats['query']['distinct']:,} different"
                    ),
                ]
            )
        if (hint := masks_seen(stats)) is not None:
            rows.append(["hint", hint])
    lacks = ", ".join(f"{name} in {percent(s)}" for name, s in items["without"].items() if s)
    rows += [
        [
            "items",
            (
                f"{items['brands']:,} brands, {items['categories']:,} categories; missing:"
                f" {lacks or 'nothing'}"
            ),
        ],
        ["currency", str(stats["currency"] or "n/a")],
        ["licence", str(stats["licence"] or "n/a")],
        ["source", str(stats["source"] or "n/a")],
        ["has", ", ".join(stats["has"]) or "nothing"],
        ["has not", ", ".join(stats["has_not"]) or "nothing"],
    ]
    rows += [["lacks", sentence] for sentence in stats["lacks"]]
    rows += [
        ["set aside", f"{what}: {n:,}" if isinstance(n, int | float) else f"{what}: {n}"]
        for what, n in stats["set_aside"].items()
    ]
    return rows


def masks_seen(stats: Stats) -> str | None:
    """A hint for a log with histories in which no relevant item is a repeat, else None."""
    w = next(w for w in stats["windows"] if w["window"] == ALL)
    if w["truth"] and w["history"] and w["repeat"] == 0:
        return "no relevant item is a repeat: consider Unseen() after recall"
    return None


def spreads(stats: Stats) -> Iterable[tuple[str, Stats | None, float | None]]:
    """Name, spread, and share of missing values where there is one."""
    for name, key in (
        ("requests a user", "requests_per_user"),
        ("list length", "list_length"),
        ("history", "history"),
        ("eligible items", "eligible"),
    ):
        yield name, stats.get(key), None
    yield "words a query", (stats.get("query") or {}).get("words"), None
    for name, found in stats["prices"].items():
        yield f"price, {name}", found and found["spread"], found and found["missing"]
    for name, found in stats["items"]["words"].items():
        yield f"words a {name}", found, None
    yield "attributes an item", stats["items"]["attributes"], None


def spread_row(name: str, s: Stats, missing: float | None) -> list[str]:
    values = [number(s[key]) for key in ("n", "mean", "min", *PRINTED, "max")]
    return [name, *values, "" if missing is None else percent(missing)]
