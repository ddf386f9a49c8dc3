"""The log of `bench_size`: valid, the same each time, and with something to learn."""

import polars as pl
from karmafunnel.benchmarks.speed.bench_size import write_log
from karmafunnel.checks import validate
from karmafunnel.log import Log


def test_the_log_is_valid_the_same_each_time_and_can_be_learnt_from(tmp_path):
    for name in ("one", "two"):
        write_log(tmp_path / name, 0.01)
    one, two = (Log.open(tmp_path / name) for name in ("one", "two"))
    assert one.meta["checksums"] == two.meta["checksums"]
    assert [check for check in validate(tmp_path / "one") if check.status == "FAIL"] == []
    assert (one.n_items, one.requests.height, one.rows.height) == (10_000, 20_000, 200_000)

    # clicks fall with the position, and popular items are a few
    by_position = one.rows.group_by("position").agg(pl.col("clicked").mean()).sort("position")
    rates = by_position["clicked"].to_list()
    assert rates[0] > 1.5 * rates[-1] > 0
    clicks = one.events["item"].value_counts().sort("count", descending=True)["count"]
    assert clicks.head(1000).sum() > 0.3 * clicks.sum()
    # users come back to their groups of items
    category = one.items["category"].list.first()
    events = one.events.with_columns(category.gather(one.events["item"]).alias("category"))
    per_user = events.group_by("user").agg(pl.col("category").n_unique(), pl.len())
    assert per_user.filter(pl.col("len") >= 10)["category"].max() <= 3
