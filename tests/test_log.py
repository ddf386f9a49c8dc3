"""The Log on a hand-made shop of four requests, every figure worked out by hand; and the scramble
of docs/protocol.md.
"""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from karmafunnel.asof import Timeline
from karmafunnel.checks import require
from karmafunnel.errors import KarmafunnelError
from karmafunnel.files import atomic_folder
from karmafunnel.log import Log, assign_windows, read
from karmafunnel.simulator.measure.describe import describe
from shop import make_shop

START = datetime(2026, 1, 1, tzinfo=UTC)
META = {
    "name": "shop",
    "has": {"clicks": True, "purchases": True, "exposures": True, "price": True, "users": True},
    "label": "purchase",
}


def shop() -> Log:
    """Day 0: ann is shown apple, pear; buys pear twice. Day 1: bob is shown pear, fig; clicks fig.
    Day 2: ann, only red. Day 3: ann.
    """
    items = pl.DataFrame(
        {
            "item_id": ["apple", "pear", "fig"],
            "attributes": [["red"], ["green"], ["green", "red"]],
            "price": [1.0, None, 9.0],
        }
    )
    requests = pl.DataFrame(
        {
            "request_id": ["a0", "b1", "a2", "a3"],
            "user_id": ["ann", "bob", "ann", "ann"],
            "ts": [START + timedelta(days=d) for d in range(4)],
            "source": ["search"] * 4,
            "filters": [[], [], ["red"], []],
        }
    )
    exposures = pl.DataFrame(
        {
            "request_id": ["a0", "a0", "b1", "b1", "a2", "a3"],
            "item_id": ["apple", "pear", "pear", "fig", "fig", "pear"],
            "position": [1, 2, 1, 2, 1, 1],
            "clicked": [False, True, False, True, True, True],
            "purchased": [False, True, False, False, True, False],
            "price_shown": [2.0, 3.0, 4.0, None, 5.0, 6.0],
            "price_paid": [None, 2.5, None, None, 5.0, None],
            "quantity": [None, 2, None, None, 1, None],
        }
    )
    return Log.make(items, requests, exposures, META)


def test_histories_see_only_what_was_strictly_before():
    history = shop().asof.history(np.arange(4), 2)
    assert history.items.tolist() == [[-1, -1], [-1, -1], [-1, 1], [1, 2]]  # the most recent last
    assert history.actions.tolist() == [[0, 0], [0, 0], [0, 2], [2, 2]]
    assert history.ages[3].tolist() == [3 * 86_400_000, 86_400_000]


def test_counts_and_prices_as_of():
    log = shop()
    pear, at = np.full(4, 1), np.arange(4)
    assert log.asof.count(at, pear, "purchase").tolist() == [0, 1, 1, 1]
    assert log.asof.count(at, pear, "shown").tolist() == [0, 1, 2, 2]
    # one day back, the day itself out
    assert log.asof.count(at, pear, "event", within=86_400_000).tolist() == [0, 1, 0, 0]
    # the request's own price is unseen
    assert np.array_equal(log.asof.price(at, pear), [np.nan, 3.0, 4.0, 4.0], equal_nan=True)
    assert log.asof.price(np.array([0, 1, 1]), np.array([0, 0, 2])).tolist() == [
        1.0,
        2.0,
        9.0,
    ]  # the list price until one is seen
    assert log.asof.own_count(np.array([3, 3, 1]), np.array([1, 2, 1])).tolist() == [1, 1, 0]


# few rows are searched for, many are counted in a table
@pytest.mark.parametrize("asked", [4, 3000])
@pytest.mark.parametrize("n_keys", [12, None])
def test_counting_before_a_time_against_a_slow_loop(asked, n_keys):
    rng = np.random.default_rng(asked)
    of, rank = rng.integers(0, 12, 500), rng.integers(0, 60, 500)
    scale = 1 if n_keys else -(10**15)  # any int64 may be a key
    timeline = Timeline(of * scale, rank, n_keys)
    # also backwards, and beyond the last time
    for low, high in ((0, 1), (10, 30), (25, 70), (5, 8)):
        key, at = rng.integers(0, 12 if n_keys else 20, asked), rng.integers(low, high, asked)
        expected = [int(((of == k) & (rank < t)).sum()) for k, t in zip(key, at, strict=True)]
        assert timeline.before(key * scale, at).tolist() == expected


@pytest.mark.parametrize("asked", [40, 4000])
def test_counts_of_a_large_catalogue_asked_for_by_small_numbers(asked):
    """Frames hold items as int32; item times time rank is more than that holds."""
    rng = np.random.default_rng(asked)
    n_items = 120_000
    of, rank = rng.integers(n_items - 30, n_items, 3000), rng.integers(60_000, 60_100, 3000)
    timeline = Timeline(of, rank, n_items, np.arange(3000.0))
    key, at = (
        rng.integers(n_items - 40, n_items, asked).astype(np.int32),
        rng.integers(60_020, 60_090, asked),
    )
    expected = [int(((of == k) & (rank < t)).sum()) for k, t in zip(key, at, strict=True)]
    assert timeline.before(key, at).tolist() == expected
    assert (np.isnan(timeline.last(key, at)) == (np.array(expected) == 0)).all()


def test_eligible_is_known_before_and_passes_the_filters():
    log = shop()
    assert [sorted(e.tolist()) for e in log.asof.eligible(np.arange(4))] == [
        [],
        [0, 1],
        [0, 2],
        [0, 1, 2],
    ]
    assert log.asof.known(np.arange(4)).tolist() == [0, 2, 2, 3]
    assert log.asof.is_eligible(np.array([1, 2, 2]), np.array([2, 2, 1])).tolist() == [
        False,
        True,
        False,
    ]


def test_a_published_catalogue_is_known_from_the_start_but_for_what_came_later():
    log = shop()
    items = log.items.with_columns(
        available_from=pl.Series(
            [None, None, START + timedelta(days=1)], dtype=pl.Datetime("ms", "UTC")
        )
    )
    log = Log.make(items, log.requests, log.exposures, META | {"catalogue": "published"})
    assert log.asof.known(np.array([0, 1, 3])).tolist() == [2, 2, 3]


def test_an_item_that_never_appears_stays_unknown_where_the_catalogue_is_seen():
    log = shop()
    items = pl.concat([log.items, log.items.head(1).with_columns(item_id=pl.lit("kiwi"))])
    items = items.with_columns(
        available_from=pl.Series([None, START, None, None], dtype=pl.Datetime("ms", "UTC"))
    )
    log = Log.make(items, log.requests, log.exposures, META)
    assert not log.asof.is_eligible(np.arange(4), np.full(4, 3)).any()


def test_truth_is_quantity_and_money():
    rows = shop().truth("purchase").sort("request").rows()
    assert rows == [(0, 1, 2, 5.0), (2, 2, 1, 5.0)]
    assert shop().truth("click").sort("request")["money"].to_list() == [3.0, None, 5.0, 6.0]
    with pytest.raises(KarmafunnelError, match="'like'"):
        shop().truth("like")


def test_a_log_of_one_item_a_request_and_no_lists_is_one_at_a_time():
    log = shop()
    assert not log.one_at_a_time()  # lists were shown
    has = META["has"] | {"exposures": False}

    def without_lists(bought):
        events = bought.drop("position", "price_shown")
        return Log.make(log.items, log.requests, events, META | {"has": has})

    bought = log.exposures.filter(pl.col("purchased"))
    assert without_lists(bought).one_at_a_time()
    another = bought.head(1).with_columns(item_id=pl.lit("apple"))
    assert not without_lists(pl.concat([bought, another])).one_at_a_time()


def test_windows_are_cut_at_whole_timestamps():
    ts = pl.Series([START + timedelta(minutes=m) for m in [0, 1, 2, 3, 4, 5, 6, 6, 7, 8]])
    window = assign_windows(ts, pl.Series([True] * 10)).to_list()
    # W2a would start and end inside minute 6
    assert window == ["W1"] * 6 + ["W2b", "W2b", "W3", "W3"]
    half = assign_windows(ts, pl.Series([False] * 5 + [True] * 5)).to_list()
    assert half[:8] == ["W1"] * 8  # only the scenario's requests are counted: 5, 6, 6 | 7 | 8


def test_windows_and_their_ends():
    log = shop()
    assert log.requests["window"].to_list() == ["W1", "W1", "W2a", "W3"]
    assert log.end_of("W1") == log.t[2] and log.end_of("W3") == log.t[3] + 1


def test_round_trip_on_disk(tmp_path):
    log = shop()
    log.write(tmp_path / "log")
    again = read(tmp_path / "log")
    assert isinstance(again, Log)
    assert again.items.equals(log.items)
    assert again.exposures.equals(log.exposures)
    assert again.checksum == Log.open(tmp_path / "log").checksum
    (tmp_path / "log" / "requests.parquet").write_bytes(
        (tmp_path / "log" / "requests.parquet").read_bytes()[:100]
    )
    with pytest.raises(KarmafunnelError, match=r"requests\.parquet"):
        Log.open(tmp_path / "log")


def test_a_sample_keeps_all_of_the_users_it_draws_and_their_windows():
    log = shop()
    whole = log.sample(1.0)
    assert whole.requests.equals(log.requests) and whole.exposures.equals(log.exposures)
    assert whole.items.select(log.items.columns).equals(log.items)
    kept = {
        tuple(log.sample(0.5, seed).requests["user_id"])
        for seed in range(20)
        if draws_somebody(log, seed)
    }
    assert kept == {("ann",) * 3, ("bob",), ("ann", "bob", "ann", "ann")}
    seed = next(
        seed
        for seed in range(20)
        if draws_somebody(log, seed) and "bob" not in log.sample(0.5, seed).requests["user_id"]
    )
    ann = log.sample(0.5, seed)
    # as in the whole log, not cut again
    assert ann.requests["window"].to_list() == ["W1", "W2a", "W3"]
    assert (
        ann.exposures["request_id"].to_list() == ["a0", "a0", "a2", "a3"] and ann.items.height == 3
    )
    assert ann.name == "shop-0.5" and ann.meta["sample"] == {
        "log": "shop",
        "whole": "shop",
        "checksum": log.checksum,
        "share": 0.5,
        "seed": seed,
    }
    assert log.whole == "shop" == ann.whole == ann.sample(1.0).whole


def as_seen(log: Log) -> Log:
    return Log.make(log.items, log.requests, log.exposures, log.meta | {"catalogue": "seen"})


def as_order(log: Log) -> Log:
    return Log.make(
        log.items,
        log.requests.with_columns(ts=None),
        log.exposures,
        log.meta | {"catalogue": "seen", "time": "order"},
    )


def with_late_items(log: Log) -> Log:
    first = (
        log.exposures.join(log.requests, on="request_id")
        .group_by("item_id")
        .agg(available_from=pl.col("ts").min())
    )
    late = log.items.join(first, on="item_id", how="left", maintain_order="left")["available_from"]
    late = late.zip_with(
        pl.Series([row % 3 == 0 for row in range(log.n_items)]),
        pl.repeat(None, log.n_items, dtype=late.dtype, eager=True),
    )
    return Log.make(log.items.with_columns(late), log.requests, log.exposures, log.meta)


@pytest.mark.parametrize(
    "kind",
    [
        as_seen,
        as_order,
        with_late_items,
        lambda log: as_seen(with_late_items(log)),
        lambda log: log,
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_a_sample_asks_the_same_task_of_the_requests_it_keeps(kind, again):
    log = kind(make_shop(n_items=120, n_users=30, n_requests=300))
    part = log.sample(0.5, 1).sample(0.6, 2) if again else log.sample(0.3, 1)
    row = {request: row for row, request in enumerate(log.request_ids)}
    mine = np.array([row[request] for request in part.request_ids])
    here = np.arange(len(mine))
    assert 20 < len(mine) < 220
    for sampled, whole in zip(part.asof.eligible(here), log.asof.eligible(mine), strict=True):
        assert set(part.item_ids[sampled]) == set(log.item_ids[whole])
    assert np.array_equal(part.asof.known(here), log.asof.known(mine))
    # a user is there with a whole history
    assert np.array_equal(part.asof.n_events(here), log.asof.n_events(mine))
    for label in ("click", "purchase"):
        assert (
            np.array_equal(part.targets_of_w1(label), log.targets_of_w1(label))
            and log.targets_of_w1(label).sum() > 0
        )
    require(part)
    truth = log.truth("click").filter(pl.col("request").is_in(mine))
    at, items = truth["request"].to_numpy(), truth["item"].to_numpy()
    whole = next(w for w in describe(part)["windows"] if w["window"] == "all")
    assert whole["ceiling"] == pytest.approx(log.asof.is_eligible(at, items).mean())
    for window in describe(part)["windows"][1:4]:
        of_it = truth.filter(log.requests["window"].gather(at) == window["window"])[
            "item"
        ].to_numpy()
        assert window["cold"] == pytest.approx((log.targets_of_w1("click")[of_it] == 0).mean())


def draws_somebody(log: Log, seed: int) -> bool:
    try:
        return log.sample(0.5, seed).requests.height > 0
    except KarmafunnelError as error:
        assert "0.5 of the 2 of shop" in str(error)
        return False


def test_a_smaller_sample_lies_inside_a_larger_one_and_bad_ones_are_refused():
    users = pl.Series([f"u{i}" for i in range(1000)] + [None, None])
    requests = shop().requests.head(1).join(users.to_frame("user"), how="cross")
    requests = requests.with_columns(
        pl.col("user").alias("user_id"),
        (pl.col("request_id") + pl.int_range(pl.len()).cast(pl.String)),
    )
    many = Log.make(
        shop().items,
        requests.drop("user"),
        shop().exposures.clear(),
        META | {"has": {"users": True}},
    )
    tenth, third = (many.sample(share, seed=3) for share in (0.1, 0.3))
    assert set(tenth.requests["user_id"]) < set(third.requests["user_id"])
    assert 70 < tenth.requests.height < 130 and tenth.requests["user_id"].null_count() == 0
    assert tenth.meta["set_aside"] == {"requests without a user": 2}
    for share in (0, 1.5, float("nan")):
        with pytest.raises(KarmafunnelError, match="above 0 and at most 1"):
            many.sample(share)
    nobody = Log.make(
        shop().items, shop().requests, shop().exposures, META | {"has": {"users": False}}
    )
    with pytest.raises(KarmafunnelError, match="knows its users"):
        nobody.sample(0.5)


def test_unknown_ids_and_backward_time_are_refused():
    log = shop()
    broken = Log.make(log.items.head(1), log.requests, log.exposures, META)
    with pytest.raises(KarmafunnelError, match="'pear'"):
        _ = broken.rows
    backwards = Log(
        {
            "requests": log.requests.reverse().lazy(),
            "items": log.lazy["items"],
            "exposures": log.lazy["exposures"],
        },
        log.meta,
    )
    with pytest.raises(KarmafunnelError, match="in time order, found an earlier time in row 1"):
        _ = backwards.t
    timeless = log.requests.with_columns(ts=pl.lit(None, pl.Datetime("ms", "UTC")))
    with pytest.raises(
        KarmafunnelError, match=r"requests\.parquet: ts needs a time in every row, found \d+ rows"
    ):
        _ = Log({**log.lazy, "requests": timeless.lazy()}, log.meta).t


def test_a_write_that_fails_leaves_the_old_folder(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").touch()
    with pytest.raises(OSError, match="full"), atomic_folder(tmp_path / "x") as temporary:
        (temporary / "new").touch()
        raise OSError("disk full")
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and (tmp_path / "x" / "old").exists()


IN_ONE_PROCESS = """
import sys
from karmafunnel.cli import main
assert sys.stdout.encoding.lower() in ("ascii", "ansi_x3.4-1968", "us-ascii"), sys.stdout.encoding
for words in (
    ["convert", "amazon_games", "raw", "converted"],
    ["validate", "converted"],
    ["validate", "log"],
    ["sample", "log", "small", "--users", "0.7"],
    ["describe", "log", "--html", "page.html"],
    ["replay", "popular", "log", "--out", "run"],
):
    main(words, standalone_mode=False)
"""


def test_texts_are_utf_8_whatever_the_locale(tmp_path):
    log = make_shop(n_items=60, n_users=12, n_requests=120)
    texts = {
        "items": log.items.with_columns(title=pl.lit("Größe 帽子 Ж ") + pl.col("title")),
        "requests": log.requests,
    }
    Log.make(
        **texts, exposures=log.exposures, meta=log.meta | {"name": "Größe", "currency": "€"}
    ).write(tmp_path / "log")
    (tmp_path / "raw").mkdir()
    rows = {
        "item": ["item_id:token\ttitle:token_seq", *(f"{i}\tCafé 帽子 {i}" for i in range(6))],
        "valid.inter": [
            "user_id:token\titem_id_list:token_seq\titem_id:token",
            *(f"{u}\t0 1\t2" for u in range(4)),
        ],
        "test.inter": [
            "user_id:token\titem_id_list:token_seq\titem_id:token",
            *(f"{u}\t0 1 2\t3" for u in range(4)),
        ],
    }
    for part, lines in rows.items():
        (tmp_path / "raw" / f"Games-6k.{part}").write_text("\n".join(lines), encoding="utf-8")
    inherited = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("LC_", "LANG", "PYTHONUTF8", "PYTHONIOENCODING"))
    }
    posix = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "KARMAFUNNEL_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS],
        cwd=tmp_path,
        env=inherited | posix,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Größe" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Café 帽子 3" in read(tmp_path / "converted").items["title"].to_list()
    assert (
        json.loads((tmp_path / "small" / "log.json").read_text(encoding="utf-8"))["name"]
        == "Größe-0.7"
    )


def simple(n: int = 30) -> dict[str, pl.DataFrame]:
    """Frames as somebody makes them who has read nothing: whole numbers for ids, times in
    microseconds, no source, no window."""
    times = [datetime(2026, 1, 1) + timedelta(hours=i) for i in range(n)]
    return {
        "items": pl.DataFrame({"item_id": range(5), "title": list("abcde")}),
        "requests": pl.DataFrame({"request_id": range(n), "user_id": [i % 3 for i in range(n)], "ts": times}),
        "exposures": pl.DataFrame({"request_id": range(n), "item_id": [i % 5 for i in range(n)], "clicked": [True] * n}),
    }


def test_what_a_log_has_is_seen_in_its_tables():
    log = Log.make(**simple(), meta={"name": "mine"})
    assert [name for name, there in log.meta["has"].items() if there] == ["text", "clicks", "users"]
    assert log.meta["label"] == "click" and log.in_scenario.all() and log.item_ids.tolist() == list("01234")
    require(log)
    frames = simple()
    frames["exposures"] = frames["exposures"].rename({"clicked": "purchased"})
    assert Log.make(**frames, meta={}).meta["label"] == "purchase"


def test_without_users_each_session_is_one():
    frames = simple()
    frames["requests"] = frames["requests"].drop("user_id").with_columns(session_id=pl.col("request_id") // 10)
    log = Log.make(**frames, meta={})
    assert not log.has("users") and log.requests["user_id"].n_unique() == 3
    require(log)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f["exposures"].rename({"clicked": "clikced"}), "found 'clikced'; did you mean clicked"),
        (lambda f: f["exposures"].with_columns(quantity=1.75), "'quantity' needs whole numbers, found 1.75"),
        (lambda f: f["exposures"].to_pandas(), "found a DataFrame of pandas; karmafunnel.Log.from_frames"),
    ],
)  # fmt: skip
def test_frames_that_would_lose_something_are_refused(change, words):
    frames = simple()
    with pytest.raises(KarmafunnelError, match=words):
        Log.make(**frames | {"exposures": change(frames)}, meta={})


@pytest.mark.parametrize(
    ("meta", "words"),
    [({"has": {"click": True}}, "did you mean clicks"), ({"scenario": ["home"]}, "scenario needs sources")],
)
def test_what_is_misspelt_is_told(meta, words):
    frames = simple()
    frames["requests"] = frames["requests"].with_columns(source=pl.lit("search"))
    with pytest.raises(KarmafunnelError, match=words):
        Log.make(**frames, meta=meta)


@pytest.mark.parametrize(("dtype", "words"), [(pl.Int64, 'from_epoch.*"s"'), (pl.String, "str.to_datetime")])
def test_times_that_are_none_say_how_to_make_them(dtype, words):
    frames = simple()
    seconds = (frames["requests"]["ts"].dt.epoch("s")).cast(dtype)
    with pytest.raises(KarmafunnelError, match=words):
        Log.make(**frames | {"requests": frames["requests"].with_columns(ts=seconds)}, meta={})
