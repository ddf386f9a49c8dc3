"""The simulated marketplace: same seed same bytes, a log that keeps its promises, and a truth that
explains it.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from click.testing import CliRunner
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.layout import EXPOSURES, ITEMS, REQUESTS
from karmafunnel.log import Catalogue, Log, read
from karmafunnel.simulator.world import World, generate
from karmafunnel.simulator.world import world as worlds
from karmafunnel.simulator.world.images import render

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world() -> World:
    return generate(items=800, users=120, requests=1200, seed=5)


@pytest.fixture(scope="module")
def shown(world: World) -> pl.DataFrame:
    """Exposures with their request, their item and their truth."""
    truth = world.truth["exposures"].select("utility", "examination", "p_click", "p_buy")
    exposures = pl.concat([world.log.exposures, truth], how="horizontal")
    items = world.log.items.select("item_id", "attributes", "available_from", "price")
    return exposures.join(world.log.requests, on="request_id").join(items, on="item_id")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def small_catalogue(n: int = 120) -> Catalogue:
    """A real-looking catalogue with holes: some prices, brands and categories are missing."""
    colours = ("Red", "Blue", "Green")
    rows = [
        {
            "item_id": f"B{i:03d}",
            "title": f"Acme {colours[i % 3]} {'Garden Hose' if i % 2 else 'Desk Lamp'} model {i}",
            "brand": None if i % 10 == 0 else f"Brand {i % 7}",
            "category": []
            if i % 11 == 0
            else (["Garden", "Watering", "Hoses"] if i % 2 else ["Home", "Lighting"]),
            "price": None if i % 4 == 0 else 10.0 + i % 2,
            "attributes": [f"Color={colours[i % 3]}", f"Serial={i}"],
        }
        for i in range(n)
    ]
    return Catalogue.make(
        pl.DataFrame(rows, infer_schema_length=None),
        {"name": "tiny", "currency": "USD", "licence": "mine"},
    )


# -- the same bytes, or nothing --------------------------------------------------------------------


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        generate(items=120, users=20, requests=60, seed=3, images=True).write(tmp_path / name)
    first, second = bytes_of(tmp_path / "a"), bytes_of(tmp_path / "b")
    assert list(first) == list(second)
    assert [name for name in first if first[name] != second[name]] == []
    assert {"items.parquet", "truth/pool.parquet", "images/000000.png"} <= set(first)
    generate(items=120, users=20, requests=60, seed=4, images=True).write(tmp_path / "c")
    assert bytes_of(tmp_path / "c")["exposures.parquet"] != first["exposures.parquet"]


def test_what_is_written_is_read_back(world: World, tmp_path: Path) -> None:
    world.write(tmp_path / "w")
    log = Log.open(tmp_path / "w")
    for name in ("items", "requests", "exposures"):
        assert getattr(log, name).equals(getattr(world.log, name))
    truth = worlds.read_truth(tmp_path / "w")
    assert set(truth) == set(world.truth)
    assert all(truth[name].equals(world.truth[name]) for name in truth)
    with pytest.raises(KarmafunnelError, match="truth"):
        worlds.read_truth(tmp_path)


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = generate(items=60, users=5, requests=10, images=True)

    def out_of_ink(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(worlds, "render", out_of_ink)
    with pytest.raises(OSError, match="no space"):
        small.write(tmp_path / "w")
    assert list(tmp_path.iterdir()) == []


def test_the_knob_leaves_catalogue_and_diary_alone() -> None:
    one, other = (generate(items=100, users=10, requests=50, semantic=s) for s in (0.0, 1.0))
    assert one.log.items.equals(other.log.items)
    assert one.log.requests.select("user_id", "ts", "session_id").equals(
        other.log.requests.select("user_id", "ts", "session_id")
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("items", 49),
        ("users", 0),
        ("requests", 0),
        ("seed", -1),
        ("semantic", 1.5),
        ("semantic", float("nan")),
        ("exploration", -0.1),
    ],
)
def test_nonsense_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(KarmafunnelError, match=f"{name} needs a .*number from .*found {value}"):
        generate(**{name: value})


def test_the_smallest_world() -> None:
    world = generate(items=50, users=1, requests=10)
    assert world.log.requests.height == 10
    assert world.log.exposures.height > 0


# -- a log that keeps its promises -----------------------------------------------------------------


def test_schema_and_ids(world: World) -> None:
    log = world.log
    for frame, schema in ((log.items, ITEMS), (log.requests, REQUESTS), (log.exposures, EXPOSURES)):
        assert {name: frame.schema[name] for name in schema} == schema
    assert log.items["item_id"].is_unique().all()
    assert log.requests["request_id"].is_unique().all()
    assert log.requests.height == 1200
    assert log.items.height == 800
    assert log.exposures["item_id"].is_in(log.items["item_id"].implode()).all()
    assert set(log.requests["window"]) == {"W1", "W2a", "W2b", "W3"}
    # no two requests share a time, so "strictly before" is all before
    assert (np.diff(log.t) > 0).all()


def test_queries_are_written_for_searches_only(world: World) -> None:
    searches = world.log.requests.with_columns((pl.col("source") == "search").alias("search"))
    assert (searches["query"].is_not_null() == searches["search"]).all()
    assert 0.1 < 1 - searches["search"].mean() < 0.35
    assert searches["query"].drop_nulls().str.len_chars().min() > 0


def test_positions_run_from_one(world: World) -> None:
    by = world.log.exposures.group_by("request_id").agg(
        "position", pl.col("item_id").n_unique().alias("items")
    )
    assert all(sorted(p) == list(range(1, len(p) + 1)) for p in by["position"].to_list())
    assert (by["items"] == by["position"].list.len()).all()  # no item twice on a page


def test_purchases_are_clicked_and_paid(shown: pl.DataFrame) -> None:
    bought = shown.filter("purchased")
    assert bought.height > 100
    assert bought["clicked"].all()
    assert (bought["price_paid"] <= bought["price_shown"]).all()
    assert (bought["quantity"] >= 1).all()
    assert (
        shown.filter(~pl.col("purchased"))["price_paid"].null_count()
        == shown.height - bought.height
    )
    assert (shown["price_shown"] > 0).all()
    assert (shown["price_shown"] <= shown["price"]).all()
    assert 0.01 < (shown["price_shown"] < shown["price"]).mean() < 0.2  # promotions come and go
    assert bought["quantity"].mean() < 1.5


def test_propensities_are_those_of_the_exploration(world: World) -> None:
    p = world.log.exposures["propensity"]
    assert p.min() > 0
    assert p.max() <= 1
    assert (p < 0.5).mean() == pytest.approx(0.1, abs=0.01)
    greedy = generate(items=60, users=5, requests=20, exploration=0.0).log.exposures
    assert (greedy["propensity"] == 1.0).all()
    random = generate(items=100, users=5, requests=20, exploration=1.0)
    left = random.truth["pool"].group_by("request_id").len()
    frame = random.log.exposures.join(left, on="request_id")
    expected = 1 / (frame["len"].cast(pl.Int64) - frame["position"] + 1)
    assert frame["propensity"].to_numpy() == pytest.approx(expected.to_numpy())


def test_the_pool_is_the_support(world: World) -> None:
    outside = world.log.exposures.join(
        world.truth["pool"], on=["request_id", "item_id"], how="anti"
    )
    assert outside.height == 0


def test_cold_items_are_shown_after_they_arrive(shown: pl.DataFrame, world: World) -> None:
    late = shown.filter(pl.col("available_from").is_not_null())
    assert late.height > 0
    assert (late["available_from"] < late["ts"]).all()
    assert 0.07 < world.log.items["available_from"].is_not_null().mean() < 0.17


def test_filters_are_respected_and_the_log_agrees(shown: pl.DataFrame, world: World) -> None:
    filtered = shown.filter(pl.col("filters").list.len() > 0)
    share = world.log.requests.select((pl.col("filters").list.len() > 0).mean()).item()
    assert 0.1 < share < 0.45
    assert filtered.select(
        (pl.col("filters").list.set_difference(pl.col("attributes")).list.len() == 0).all()
    ).item()
    rows = world.log.rows
    assert world.log.asof.is_eligible(rows["request"].to_numpy(), rows["item"].to_numpy()).all()


# -- the truth explains the log --------------------------------------------------------------------


def test_clicks_and_purchases_follow_their_probabilities(shown: pl.DataFrame) -> None:
    click = (shown["examination"] * shown["p_click"]).to_numpy()
    buy = click * shown["p_buy"].to_numpy()
    for p, happened in ((click, shown["clicked"].sum()), (buy, shown["purchased"].sum())):
        assert abs(happened - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())
    assert 1.3 < shown["clicked"].sum() / 1200 < 2.3
    assert 0.15 < shown["purchased"].sum() / 1200 < 0.45


def test_utility_can_be_asked_again(world: World) -> None:
    """The marketplace tells, after the run, the truth it used in the run; habits bought later play
    no part.
    """
    for request in range(0, 1200, 97):
        visit = world.visits[request]
        assert world.utility(request)[visit.slate].tolist() == visit.utility.tolist()
        click, buy = world.chances(request)
        assert (click[visit.slate].tolist(), buy[visit.slate].tolist()) == (
            visit.p_click.tolist(),
            visit.p_buy.tolist(),
        )
        assert world.price(request)[visit.slate].tolist() == visit.price.tolist()


def test_the_ideal_slate_is_the_best_of_the_eligible(world: World) -> None:
    agree = []
    for request in range(0, 1200, 23):
        eligible = world.log.asof.eligible(np.array([request]))[0]
        utility = world.utility(request)[eligible]
        best = eligible[np.argsort(-utility, kind="stable")[:10]]
        agree.append(np.isin(best, world.visits[request].ideal).mean())
    assert np.mean(agree) > 0.99


def test_clicks_fall_with_position_and_utility_beats_the_logged_order(shown: pl.DataFrame) -> None:
    ctr = shown.group_by("position").agg(pl.col("clicked").mean()).sort("position")["clicked"]
    assert ctr[0] > 2 * ctr[4] > 3 * ctr[20:].mean()
    oracle = grouped_auc(shown["request_id"], shown["clicked"], shown["utility"])
    logged = grouped_auc(shown["request_id"], shown["clicked"], -shown["position"])
    assert oracle > logged + 0.02 > 0.67


def test_popularity_is_skewed_and_people_come_back(world: World) -> None:
    clicks = world.log.events["item"].value_counts()["count"].sort(descending=True).to_numpy()
    slope = np.polyfit(np.log(np.arange(1, len(clicks) + 1)), np.log(clicks), 1)[0]
    assert -1.6 < slope < -0.5
    bought = world.log.rows.filter("purchased").group_by("user", "item").len()
    assert 0.03 < 1 - bought.height / bought["len"].sum() < 0.4
    requests = world.log.requests
    before = requests.filter(pl.col("window") == "W1")["user_id"].unique()
    new = ~requests.filter(pl.col("window") == "W3")["user_id"].is_in(before.implode())
    assert 0 < new.mean() < 0.5
    assert 1.8 < requests.height / requests["session_id"].n_unique() < 3.2


def test_purchases_elsewhere(world: World) -> None:
    elsewhere = world.truth["elsewhere"].join(world.log.requests, on="request_id", suffix="_asked")
    assert elsewhere.height > 50
    assert (elsewhere["user_id"] == elsewhere["user_id_asked"]).all()
    assert (elsewhere["ts"] > elsewhere["ts_asked"]).all()
    here = world.log.exposures.filter("purchased")["request_id"]
    assert not elsewhere["request_id"].is_in(here.implode()).any()


def grouped_auc(group: pl.Series, clicked: pl.Series, score: pl.Series) -> float:
    """Mean over groups of the AUC, ties one half."""
    frame = pl.DataFrame({"g": group, "y": clicked, "s": score}).with_columns(
        pl.col("s").rank().over("g")
    )
    sums = frame.group_by("g").agg(
        p=pl.col("y").sum(), n=pl.len(), s=(pl.col("s") * pl.col("y")).sum()
    )
    sums = sums.filter((pl.col("p") > 0) & (pl.col("p") < pl.col("n")))
    won = pl.col("s") - pl.col("p") * (pl.col("p") + 1) / 2
    return sums.select((won / (pl.col("p") * (pl.col("n") - pl.col("p")))).mean()).item()


def text_and_behaviour(world: World) -> tuple[float, float]:
    """gAUC in W3, over items new to the user, of likeness to the user's history by listed
    attributes and by co-clicks.
    """
    log = world.log
    rows = log.rows.filter(pl.col("request") >= log.requests_in("W3")[0])
    request, item = rows["request"].to_numpy(), rows["item"].to_numpy()
    values = log.items.select(
        pl.col("attributes").list.concat(pl.col("brand").fill_null("?"))
    ).with_row_index("i")
    values = values.explode("attributes").filter(
        ~pl.col("attributes").str.contains("^(category|delivery)=")
    )
    column = values["attributes"].rank("dense").to_numpy().astype(int) - 1
    listed = sp.csr_matrix(
        (np.ones(len(column)), (values["i"].to_numpy(), column)),
        shape=(log.n_items, column.max() + 1),
    )
    listed = listed @ sp.diags(np.log(log.n_items / np.asarray(listed.sum(axis=0)).ravel()))

    asked, at = np.unique(request, return_inverse=True)
    history = log.asof.history(asked, 60)
    row, column = np.nonzero(history.items >= 0)
    shape = (len(asked), log.n_items)
    profile = sp.csr_matrix((np.ones(len(row)), (row, history.items[row, column])), shape=shape)
    text = np.asarray((profile @ listed)[at].multiply(listed[item]).sum(axis=1)).ravel()

    events = log.events.filter(pl.col("t") < log.end_of("W2b"))
    user = events["user"].to_numpy()
    likes = sp.csr_matrix(
        (np.ones(len(user)), (user, events["item"].to_numpy())), shape=(user.max() + 1, log.n_items)
    )
    likes.data[:] = 1.0
    popularity = np.asarray(likes.sum(axis=0)).ravel() + 3.0
    together = (likes.T @ likes).toarray() / np.sqrt(np.outer(popularity, popularity))
    np.fill_diagonal(together, 0.0)
    behaviour = np.asarray(profile @ together)[at, item]

    new = log.asof.own_count(request, item) == 0
    group, clicked = pl.Series(request[new]), rows["clicked"].filter(pl.Series(new))
    return grouped_auc(group, clicked, pl.Series(text[new])), grouped_auc(
        group, clicked, pl.Series(behaviour[new])
    )


def test_the_knob_decides_whether_text_or_behaviour_tells_taste() -> None:
    """With semantic = 1 likeness of attributes predicts clicks and co-clicks do not; with semantic
    = 0 the reverse.
    """
    found = {
        s: text_and_behaviour(generate(items=800, users=200, requests=4000, seed=2, semantic=s))
        for s in (0.0, 1.0)
    }
    assert found[1.0][0] > found[0.0][0] + 0.04, found
    assert found[0.0][1] > found[1.0][1] + 0.04, found
    assert found[1.0][0] > found[1.0][1] + 0.04, found
    assert found[0.0][1] > found[0.0][0] + 0.04, found


# -- a real catalogue, pictures --------------------------------------------------------------------


def test_shoppers_live_on_a_real_catalogue() -> None:
    catalogue = small_catalogue()
    world = generate(items=100, users=20, requests=80, catalogue=catalogue)
    log = world.log
    assert log.items.height == 100
    assert set(log.items["item_id"]) <= set(catalogue.items["item_id"])
    assert log.items["price"].null_count() == 0
    # the medians are among the prices
    assert set(log.items["price"].unique()) <= {10.0, 10.5, 11.0}
    missing = log.items.join(
        catalogue.items.filter(pl.col("price").is_null()), on="item_id", how="semi"
    ).height
    assert (
        log.meta["notes"]["prices"]
        == f"{missing} unknown prices were imputed by the median of the category"
    )
    assert log.meta["currency"] == "USD"
    assert "mine" in log.meta["licence"]
    words = set(" ".join(catalogue.items["title"]).lower().split()) | {
        "hoses",
        "lighting",
        "watering",
        "other",
        "brand",
    }
    asked = {word for query in log.requests["query"].drop_nulls() for word in query.split()}
    assert asked <= words | set("0123456")
    assert generate(items=100, users=20, requests=80, catalogue=catalogue).log.exposures.equals(
        log.exposures
    )
    assert world.log.asof.is_eligible(
        log.rows["request"].to_numpy(), log.rows["item"].to_numpy()
    ).all()
    assert generate(items=5000, users=5, requests=20, catalogue=catalogue).log.items.height == 120


def test_a_catalogue_without_prices_or_of_few_items() -> None:
    tiny = small_catalogue(60)
    bare = Catalogue.make(tiny.items.drop("price"), tiny.meta)
    log = generate(items=60, users=5, requests=20, catalogue=bare).log
    assert log.items["price"].min() > 0
    assert "no prices" in log.meta["notes"]["prices"]
    with pytest.raises(KarmafunnelError, match="at least 50 items with a title, tiny has 40"):
        generate(items=60, users=5, requests=20, catalogue=small_catalogue(40))


def test_pictures_show_colour_pattern_and_kind() -> None:
    red = render(3, 0, "red", "plain")
    assert red.size == (32, 32)
    assert red.tobytes() == render(3, 0, "red", "plain").tobytes()
    others = [
        render(3, 0, "blue", "plain"),
        render(3, 0, "red", "striped"),
        render(4, 0, "red", "plain"),
        render(3, 1, "red", "plain"),
    ]
    assert len({red.tobytes(), *(other.tobytes() for other in others)}) == 5
    assert red.getpixel((16, 16)) == (205, 40, 45)


def test_pictures_are_written_where_the_items_say(tmp_path: Path) -> None:
    world = generate(items=60, users=5, requests=10, images=True)
    world.write(tmp_path / "w")
    paths = Log.open(tmp_path / "w").items["image"]
    assert world.log.has("images")
    assert all((tmp_path / "w" / path).is_file() for path in paths)
    without = generate(items=60, users=5, requests=10)
    assert without.log.items["image"].null_count() == 60
    assert not without.log.has("images")


def test_the_items_of_a_log_are_a_catalogue(tmp_path):
    log = generate(items=100, users=20, requests=80).log
    log.write(tmp_path / "log")
    bare = log.items.with_columns(price=pl.lit(None, pl.Float64))
    free = log.exposures.with_columns(
        price_shown=pl.lit(None, pl.Float64), price_paid=pl.lit(None, pl.Float64)
    )
    Log.make(bare, log.requests, free, {"name": "bare"}).write(tmp_path / "bare")
    few = ["--users", "5", "--requests", "20"]

    def world(name):
        call = ["world", str(tmp_path / "made"), "--catalogue", str(tmp_path / name), *few]
        return CliRunner().invoke(main, call)

    done = world("log")
    assert done.exit_code == 0, done.output
    assert set(read(tmp_path / "made").item_ids) <= set(log.item_ids)
    done = world("bare")
    assert done.exit_code == 1 and "needs a catalogue, or a log of at least 50 items with prices" in done.output


def test_shoppers_live_on_no_catalogue_that_fails_a_check():
    items = pl.DataFrame({"item_id": [f"i{i % 70}" for i in range(80)], "title": ["a lamp"] * 80})
    with pytest.raises(
        KarmafunnelError, match=r"^log odd fails the check 'duplicate items': 10 keys"
    ):
        generate(items=60, users=10, requests=20, catalogue=Catalogue.make(items, {"name": "odd"}))
