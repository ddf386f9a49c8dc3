"""Re-ranking: rules, diversity and money on lists that one can work out, and against slow
references.
"""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.simulator.measure.compare import Measure, measure
from karmafunnel.simulator.measure.run import Run
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.recipe import Recipe
from karmafunnel.simulator.replay.replay import replay
from karmafunnel.simulator.report.curves import write_curve
from karmafunnel.simulator.report.measure_table import define
from karmafunnel.simulator.report.pareto_plot import non_dominated, pareto_figure
from karmafunnel.simulator.world import generate
from karmafunnel.stages import rerank
from karmafunnel.stages.context import Context
from karmafunnel.stages.frame import ITEM, RANK, REQUEST, SCORE
from karmafunnel.stages.recall import Popular
from karmafunnel.stages.rerank import MMR, GMVRank, Rules, Unseen
from karmafunnel.stages.rows import Rows
from karmafunnel.stages.stage import StageOutput, advance
from shop import Chances, make_shop

START = datetime(2026, 1, 1, tzinfo=UTC)
# Item i costs 10 i, but 8 costs 4 once it was shown at that price in request 1, and 9 has no price.
# 6 is gone from request 1 on.
PATHS = [
    ["a", "x"],
    ["a", "y"],
    ["b", "x"],
    ["a", "x"],
    ["b", "x"],
    ["a"],
    [],
    None,
    ["a", "x"],
    ["b", "x", "deep"],
]


def corner(**has: bool) -> Log:
    items = pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(10)],
            "category": PATHS,
            "price": [None if i == 9 else 10.0 * i for i in range(10)],
            "attributes": [["stock=none"] if i == 3 else ["stock=some"] for i in range(10)],
            "recalled": [i == 4 for i in range(10)],
            "gone": [START + timedelta(hours=1) if i == 6 else None for i in range(10)],
        }
    )
    hours = [START + timedelta(hours=r) for r in range(6)]
    ids = {
        "request_id": [f"r{r}" for r in range(6)],
        "user_id": ["u"] * 6,
        "source": ["search"] * 6,
    }
    shown = {
        "request_id": ["r1"],
        "item_id": ["i8"],
        "position": [1],
        "clicked": [True],
        "purchased": [False],
    }
    meta = {
        "name": "corner",
        "has": {"clicks": True, "exposures": True, "price": True, "users": True} | has,
    }
    return Log.make(
        items, pl.DataFrame(ids | {"ts": hours}), pl.DataFrame(shown | {"price_shown": [4.0]}), meta
    )


class Given:
    """Item vectors as given."""

    value = None

    def __init__(self, vectors):
        self.vectors = np.asarray(vectors, np.float32)

    def items(self):
        return self.vectors


def state(lists: dict[int, list[int]], tracked: list[tuple[int, int, int]] = (), **columns) -> Rows:
    """Lists of items, best first, scored 0, -2, -4, ..; tracked rows (request, item, rank), just
    before the candidate of that rank.
    """
    schema = {
        REQUEST: pl.Int64,
        ITEM: pl.Int32,
        SCORE: pl.Float32,
        "channel": pl.UInt32,
        RANK: pl.Int32,
    }
    rows = [
        (r, item, -2.0 * place, 1, place + 1)
        for r in sorted(lists)
        for place, item in enumerate(lists[r])
    ]
    beside = [
        (r, i, 2.0 - 2.0 * rank + (i not in lists[r]), 0, rank) for r, i, rank in sorted(tracked)
    ]
    slate, others = (pl.DataFrame(x, schema=schema, orient="row") for x in (rows, beside))
    return Rows(
        Context(corner()), slate, others.with_columns(truth=pl.lit(True)), np.array(sorted(lists))
    )


def run(stage, at: Rows, vectors=None, log: Log | None = None) -> StageOutput:
    context = Context(
        log or corner(), {"given": Given(vectors)} if vectors is not None else {}, "click"
    )
    return advance(stage.fit(context, None), at.seen_in(context))[0]


def lists_of(slate: pl.DataFrame) -> dict[int, list[int]]:
    return {
        r: list(items) for r, items in slate.group_by(REQUEST, maintain_order=True).agg(ITEM).rows()
    }


def random_state(rng, n_items: int, requests=range(6), longest: int = 9, tracked: int = 12) -> Rows:
    lists = {r: rng.permutation(n_items)[: rng.integers(0, longest + 1)].tolist() for r in requests}
    beside = []
    for r in rng.choice(list(requests), tracked):
        item = int(rng.integers(n_items))
        place = lists[r].index(item) if item in lists[r] else int(rng.integers(len(lists[r]) + 1))
        beside.append((int(r), item, place + 1))
    return state(lists, list(dict.fromkeys(beside)))


# -- rules -----------------------------------------------------------------------------------------


def test_cap_by_hand():
    """Two of "a" at the coarsest level: 0 and 5 stay, 3 and 8 go; 6 and 7 have no category and are
    in nobody's way.
    """
    step = run(
        Rules(max_per_category=2, k=6),
        state({2: [0, 5, 2, 3, 6, 7, 8]}, [(2, 1, 2), (2, 1, 4), (2, 2, 3), (2, 3, 4)]),
    )
    assert lists_of(step.slate) == {2: [0, 5, 2, 6, 7]} and step.slate[SCORE].to_list() == [
        0,
        -2,
        -4,
        -8,
        -10,
    ]
    assert step.rows_in.tolist() == [7] and step.rows_out.tolist() == [5]
    # Before 5, item 1 would be the second "a"; after it the third, as 3 is: beyond what is put out.
    # Only 2 was passed on.
    assert step.tracked[RANK].to_list() == [2, 7, 3, 7]
    assert step.tracked["kept"].to_list() == [False, False, True, False]


@pytest.mark.parametrize(
    ("level", "kept"),
    [
        (0, [0, 2, 6, 7]),
        (1, [0, 5, 2, 6, 7]),
        (2, [0, 5, 2, 6, 7, 3, 8, 4, 9]),
        (-1, [0, 5, 2, 6, 7, 9]),
        (-2, [0, 5, 2, 6, 7, 9]),
    ],
)
def test_a_category_is_the_path_down_to_a_level(level, kept):
    step = run(Rules(max_per_category=1, level=level), state({2: [0, 5, 2, 6, 7, 3, 8, 4, 9]}))
    assert lists_of(step.slate)[2] == kept


def test_price_is_that_of_the_requests_time():
    at = state({0: [9, 8, 7, 5, 0], 2: [9, 8, 7, 5, 0]})
    assert lists_of(run(Rules(min_price=5, max_price=70), at).slate) == {0: [9, 7, 5], 2: [9, 7, 5]}
    assert lists_of(run(Rules(max_price=70), at).slate) == {0: [9, 7, 5, 0], 2: [9, 8, 7, 5, 0]}
    assert lists_of(run(Rules(min_price=70, unknown_price="drop"), at).slate) == {0: [8, 7], 2: [7]}


@pytest.mark.parametrize(
    ("sold_out", "gone"), [("recalled", [4, 4]), ("gone", [None, 6]), ("stock=none", [3, 3])]
)
def test_sold_out(sold_out, gone):
    """A flag and an attribute hold all along, a time from then on: not yet at that very time, as
    nothing of a request's time is.
    """
    at = state({1: [6, 4, 3, 2], 2: [6, 4, 3, 2]})
    expected = {r: [i for i in (6, 4, 3, 2) if i != g] for r, g in zip((1, 2), gone, strict=True)}
    assert lists_of(run(Rules(sold_out=sold_out), at).slate) == expected


def places_kept(log: Log, stage: Rules, request: int, items: list[int]) -> list[int]:
    """Places of a list that the rules keep, one item after the other."""
    taken, kept = {}, []
    for place, item in enumerate(items):
        price = log.asof.price(np.array([request]), np.array([item]))[0]
        category = tuple(PATHS[item] or [])[:2]
        if not (np.isnan(price) or stage.min_price <= price <= stage.max_price) or item == 3:
            continue
        if len(category) == 2:
            taken[category] = taken.get(category, 0) + 1
            if taken[category] > stage.max_per_category:
                continue
        kept.append(place)
    return kept


def test_rules_against_one_at_a_time():
    """Tracked rows get what they would get in the list; candidates are not affected by them."""
    log, rng = corner(), np.random.default_rng(0)
    stage = Rules(
        max_per_category=1, level=1, min_price=5, max_price=75, sold_out="stock=none", k=3
    )
    out = 0
    for _ in range(30):
        at = random_state(rng, 10)
        step, lists = run(stage, at, log=log), {r: [] for r in range(6)} | lists_of(at.slate)
        for r, items in lists.items():
            expected = [items[place] for place in places_kept(log, stage, r, items)]
            assert lists_of(step.slate).get(r, []) == expected[:3]
        for r, item, before, rank, kept in zip(
            *at.tracked[[REQUEST, ITEM, RANK]], *step.tracked[[RANK, "kept"]], strict=True
        ):
            others = [i for i in lists[r] if i != item]
            there = places_kept(log, stage, r, [*others[: before - 1], item, *others[before - 1 :]])
            would = there.index(before - 1) + 1 if before - 1 in there else None
            assert rank == would if would else rank > 3
            assert kept == (would is not None and would <= 3 and item in lists[r])
            out += would is None
    assert out > 20


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (lambda: Rules(max_per_category=0), "a whole number from 1 to .*, found 0"),
        (lambda: Rules(min_price=9, max_price=3), "min_price <= max_price, found 9 and 3"),
        (lambda: Rules(min_price=-1), "found -1"),
        (lambda: Rules(max_price=float("nan")), "max_price needs a number from 0 to .*, found nan"),
        (lambda: Rules(unknown_price="guess"), "'keep' or 'drop', found 'guess'"),
        (
            lambda: Rules(max_per_category=1, level=3),
            "category at level 3, found at most 3 levels in log corner",
        ),
        (
            lambda: Rules(sold_out="stock=gone"),
            r"no item with 'stock=gone' and the columns \['recalled', 'gone'\]",
        ),
        (lambda: Rules(sold_out="price"), "no item with 'price'"),
        (lambda: MMR("given", trade=1.1), "from 0 to 1, found 1.1"),
        (lambda: MMR("given", depth=0), "a whole number from 1 to .*, found 0"),
        (lambda: MMR("karma"), r"'karma'\], found \['given'\]"),
        (lambda: GMVRank(click=-1), "click needs a number from 0 to 100, found -1"),
        (lambda: GMVRank(price=float("inf")), "price needs a number from 0"),
        (lambda: GMVRank(0, 0, 0), "exponent above 0"),
    ],
)
def test_refusals(stage, message):
    with pytest.raises(KarmafunnelError, match=message):
        run(stage(), state({2: [1, 2]}), vectors=np.eye(10))


def test_a_log_without_prices():
    for stage in (Rules(min_price=1), GMVRank()):
        with pytest.raises(KarmafunnelError, match="needs prices, found none in log corner"):
            run(stage, state({2: [1]}), log=corner(price=False))


# -- seen items ------------------------------------------------------------------------------------


def test_seen_items_are_thrown_out_by_hand():
    """The user clicked item 8 in request 1: it goes from request 2 on, and is in nobody's way."""
    lists = {0: [8, 1], 1: [8, 1], 2: [1, 8, 2, 3], 5: [8]}
    step = run(Unseen(k=2), state(lists, [(2, 8, 2), (2, 3, 4), (2, 2, 3)]))
    assert lists_of(step.slate) == {0: [8, 1], 1: [8, 1], 2: [1, 2]}
    assert step.rows_in.tolist() == [2, 2, 4, 1] and step.rows_out.tolist() == [2, 2, 2, 0]
    tracked = {
        item: (rank, kept) for item, rank, kept in step.tracked.select(ITEM, RANK, "kept").rows()
    }
    # lost: seen; lost: third of the unseen; kept
    assert tracked == {8: (3, False), 3: (3, False), 2: (2, True)}
    assert (
        lists_of(run(Unseen(k=4, which="purchase"), state(lists), log=corner(purchases=True)).slate)
        == lists
    )
    with pytest.raises(KarmafunnelError, match="needs purchases"):
        run(Unseen(which="purchase"), state(lists))
    with pytest.raises(KarmafunnelError, match="needs users"):
        run(Unseen(), state(lists), log=corner(users=False))
    with pytest.raises(KarmafunnelError, match="'event' or 'purchase', found 'click'"):
        Unseen(which="click")


@pytest.mark.parametrize("which", ["event", "purchase"])
def test_the_rest_stands_as_without_the_seen_ones(which, tmp_path):
    """No seen item is put out, the order of the others is that of recall; the ledger names the
    stage that lost a repeat.
    """
    log = make_shop(n_items=60)
    alone, masked = Popular(k=60) >> Rules(k=60), Popular(k=60) >> Unseen(k=20, which=which)
    made = Context(log, {}, "click")
    requests = log.requests_in("W3")
    whole, step = (funnel.fit(made, None).run(requests)[-1].slate for funnel in (alone, masked))
    had = {}
    for row in log.rows.filter(
        pl.col("purchased") if which == "purchase" else pl.col("clicked") | pl.col("purchased")
    ).rows(named=True):
        had.setdefault(log.user[row["request"]], []).append((log.t[row["request"]], row["item"]))
    thrown = 0
    for r in requests:
        seen = {item for t, item in had.get(log.user[r], []) if t < log.t[r]}
        order = whole.filter(pl.col(REQUEST) == r).sort(RANK)[ITEM].to_list()
        thrown += len(seen & set(order))
        assert (
            step.filter(pl.col(REQUEST) == r).sort(RANK)[ITEM].to_list()
            == [item for item in order if item not in seen][:20]
        )
    assert thrown > 50
    recipe = Recipe("masked", "", masked, {}, "click")
    found = pl.read_parquet(
        replay(recipe, log, tmp_path / "run", RunOptions(seed=0)) / "ledger.parquet"
    )
    if which == "event":
        assert (
            set(found.filter("repeat")["lost"].unique()) == {"unseen"}
            and found.filter("repeat").height > 5
        )
    assert measure(Run.open(tmp_path / "run"), ["HR@20"], slice="repeat")


# -- diversity -------------------------------------------------------------------------------------


def test_mmr_by_hand():
    """1 is like 0, 2 is like nothing: relevance 1, 1/2, 0; at one half each, 1 is then worth 1/4 -
    1/2, and 2 is worth 0.
    """
    vectors = np.zeros((10, 2))
    vectors[[0, 1, 4]], vectors[[2, 5]] = [3, 0], [0, 5]
    step = run(
        MMR("given", k=3, trade=0.5),
        state({2: [0, 1, 2]}, [(2, 1, 2), (2, 4, 2), (2, 5, 2), (2, 5, 4)]),
        vectors,
    )
    assert lists_of(step.slate) == {2: [0, 2, 1]} and step.slate[SCORE].to_list() == [-1, -2, -3]
    # 4, of relevance 3/4, is held back by its likeness to 0; 5 is as unlike 0 as 2 is, and more
    # relevant: it would be second. Less relevant than all, it ties with 2 and stands behind it
    # upstream; then it is like 2, and worth less than 1.
    assert step.tracked[RANK].to_list() == [3, 3, 2, 4]
    assert step.tracked["kept"].to_list() == [True, False, False, False]


def test_mmr_at_its_ends():
    rng = np.random.default_rng(0)
    vectors, at = (
        rng.normal(size=(10, 4)),
        state({0: [], 1: [3], 2: [9, 2, 4, 7, 1, 0]}, [(0, 5, 1), (2, 5, 4)]),
    )
    for stage in (MMR("given", trade=1.0), MMR("given", trade=0.0, depth=1)):
        step = run(stage, at, vectors)
        assert lists_of(step.slate) == {1: [3], 2: [9, 2, 4, 7, 1, 0]} and step.tracked[
            RANK
        ].to_list() == [1, 4]
    assert lists_of(run(MMR("given", trade=0.0, depth=3), at, vectors).slate)[2][3:] == [7, 1, 0]
    flat = Rows(
        at.context,
        at.slate.with_columns(pl.lit(1.0, pl.Float32).alias(SCORE)),
        at.tracked,
        at.requests,
    )
    # nothing to tell apart: upstream's
    assert lists_of(run(MMR("given"), flat, np.ones((10, 2))).slate)[2] == [9, 2, 4, 7, 1, 0]
    empty = vectors.copy()
    empty[2] = 0  # no vector: like nothing, so it comes first after the best
    assert lists_of(run(MMR("given", trade=0.0), at, np.abs(empty)).slate)[2][1] == 2


def chosen_one_by_one(
    stage: MMR, items: list[int], relevance: np.ndarray, unit: np.ndarray
) -> list[tuple[int, float]]:
    """What is chosen of a list and its value, by the definition."""
    left, chosen = list(range(len(items))), []
    while left and len(chosen) < stage.k:
        values = [
            value_of(stage, relevance[at], items[at], [i for i, _ in chosen], unit) for at in left
        ]
        best = int(np.argmax(values))
        chosen.append((items[left.pop(best)], values[best]))
    return chosen


def value_of(stage: MMR, relevance: float, item: int, chosen: list[int], unit: np.ndarray) -> float:
    near = max((float(unit[item] @ unit[other]) for other in chosen), default=0.0)
    return stage.trade * relevance - (1 - stage.trade) * near


STAGES = [MMR("given", k=5), MMR("given", k=4, trade=0.3, depth=6), MMR("given", k=20, trade=0.5)]


@pytest.mark.parametrize("stage", STAGES, ids=repr)
@pytest.mark.parametrize("block", [1, 200, rerank.BLOCK])
def test_mmr_against_one_at_a_time(stage, block, monkeypatch):
    monkeypatch.setattr(rerank, "BLOCK", block)  # how many requests go together does not matter
    rng, moved = np.random.default_rng(3), 0
    vectors = rng.normal(size=(10, 3))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for _ in range(15):
        at = random_state(rng, 10)
        step, lists = run(stage, at, vectors), {r: [] for r in range(6)} | lists_of(at.slate)
        expected = {}
        for r, items in lists.items():
            part = items[: stage.depth]
            expected[r] = chosen_one_by_one(
                stage, part, np.linspace(1, 0, len(part)) * (len(part) > 1), unit
            )
            names = [i for i, _ in expected[r]]
            assert (
                lists_of(step.slate).get(r, [])
                == [*names, *(i for i in items if i not in names)][: stage.k]
            )
        for r, item, score, before, rank in zip(
            *at.tracked[[REQUEST, ITEM, SCORE, RANK]], step.tracked[RANK], strict=True
        ):
            items, names = lists[r], [i for i, _ in expected[r]]
            if item in items:
                continue
            if before > (stage.depth or before):
                assert rank == before
                continue
            reach = 2.0 * len(items[: stage.depth]) - 2.0
            own = min(max(1 + score / reach, 0.0), 1.0) if reach > 0 else 0.0
            for place, (name, value) in enumerate(expected[r], start=1):
                mine = value_of(stage, own, item, names[: place - 1], unit)
                if mine > value or (mine == value and before <= items.index(name) + 1):
                    assert rank == place
                    break
            else:
                assert rank > len(names)
            moved += rank != before
    assert moved > 20


# -- money -----------------------------------------------------------------------------------------


def with_chances(at: Rows, source: str = "rank") -> Rows:
    """What `Chances` leaves: p_click (1 + item % 5) / 10, p_buy (1 + item % 3) / 10."""
    return advance(Chances(name=source).fit(Context(corner()), None), at)[1]


def test_money_by_hand():
    at = with_chances(state({2: [9, 8, 7, 5]}, [(2, 6, 1), (2, 9, 1)]))
    step = run(GMVRank(), at)
    # An unknown price is the median of the candidates' 4, 70 and 50; what is only scored does not
    # count: 6 is worth .2 * .1 * 60.
    worth = {7: 0.3 * 0.2 * 70, 9: 0.5 * 0.1 * 50, 5: 0.1 * 0.3 * 50, 8: 0.4 * 0.3 * 4}
    assert lists_of(step.slate) == {2: [7, 9, 5, 8]}
    assert np.exp(step.slate[SCORE].to_list()) == pytest.approx(list(worth.values()), rel=1e-5)
    assert step.tracked[RANK].to_list() == [4, 2]
    assert lists_of(run(GMVRank(price=0), at).slate) == {2: [8, 7, 9, 5]}  # .12 .06 .05 .03
    assert lists_of(run(GMVRank(2, 1, 0), at).slate) == {2: [8, 9, 7, 5]}  # .048 .025 .018 .003
    assert lists_of(run(GMVRank(0, 0, 1), at).slate)[2][0] == 7
    alone = run(GMVRank(), with_chances(state({2: [9]})))
    # no price in the whole request: 1
    assert alone.slate[SCORE][0] == pytest.approx(np.log(0.5 * 0.1))
    free = run(GMVRank(), with_chances(state({2: [0, 1]})))
    assert lists_of(free.slate) == {2: [1, 0]}  # a price of 0 is known, and worth nothing


def test_only_what_has_an_exponent_is_needed():
    assert GMVRank(source="esmm").needs[-2:] == ("esmm.p_click", "esmm.p_buy")
    assert (
        GMVRank(click=0).needs[-1] == "rank.p_buy" and "rank.p_click" not in GMVRank(click=0).needs
    )
    plain = state({2: [1, 7]})
    assert lists_of(run(GMVRank(0, 0, 1), plain).slate) == {2: [7, 1]}
    with pytest.raises(
        KarmafunnelError,
        match=r"rerank \(GMVRank\): needs columns \['rank.p_click', 'rank.p_buy'\]",
    ):
        run(GMVRank(), plain)
    with pytest.raises(KarmafunnelError, match=r"'esmm' before it, found \['recall', 'rank'\]"):
        (Popular(k=9) >> Chances() >> GMVRank(source="esmm")).fit(Context(corner()))


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan")])
def test_chances_that_are_none(wrong):
    at = with_chances(state({2: [1, 7, 4]}))
    broken = at.slate.with_columns(
        pl.when(pl.col(ITEM) == 7).then(wrong).otherwise(pl.col("rank.p_buy")).alias("rank.p_buy")
    )
    with pytest.raises(
        KarmafunnelError,
        match=rf"rank.p_buy between 0 and 1, found {wrong:.1f}.* for request 'r2', item 'i7' \(1 such",
    ):
        run(GMVRank(), Rows(at.context, broken, at.tracked, at.requests))


def test_why_says_what_was_looked_at():
    funnel = (
        Popular(k=9)
        >> Chances()
        >> Rules(max_per_category=9, max_price=70, sold_out="gone", name="rules")
        >> GMVRank()
    ).fit(Context(corner()))
    told = {row["stage"]: row["why"] for row in funnel.explain("r2", "i6").iter_rows(named=True)}
    assert (
        told["rules"] == "price 60.00, sold out"
        and told["rerank"] == "p_click 0.2, p_buy 0.1, price 60"
    )


# -- expected money --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world_run(tmp_path_factory) -> tuple[Run, Log]:
    """A small World through a funnel whose chances are known, and whose first stage tells none."""
    log = generate(items=120, users=40, requests=250, seed=1).log
    funnel = Popular(k=30) >> Chances(k=20) >> GMVRank(k=12)
    out = replay(
        Recipe("money", "", funnel, {}, "click"), log, tmp_path_factory.mktemp("world") / "run"
    )
    return Run.open(out), log


def test_egmv_against_brute_force(world_run):
    run, log = world_run
    row = (
        {r: i for i, r in enumerate(log.request_ids)},
        {it: i for i, it in enumerate(log.item_ids)},
    )
    earned = {r: 0.0 for r in run.read("requests")["request_id"]}
    for request, stage, item, rank in run.read(
        "slates", "request_id", pl.col("stage").cast(pl.String), "item_id", "rank"
    ).rows():
        if stage == "rerank" and rank <= 5:
            i = row[1][item]
            price = log.asof.price(np.array([row[0][request]]), np.array([i]))[0]
            earned[request] += (1 + i % 5) / 10 * (1 + i % 3) / 10 * price / np.log2(1 + rank)
    found = {r["stage"]: r for r in measure(run, ["eGMV@5"])}
    assert found["rerank"]["value"] == pytest.approx(np.mean(list(earned.values())), rel=1e-5)
    assert found["rerank"]["unit"] == "EUR"
    assert found["rerank"]["n"] == len(earned)
    assert found["rerank"]["low"] < found["rerank"]["value"]
    assert found["rank"]["value"] < found["rerank"]["value"]  # the order by money earns more
    assert (
        found["recall"]["value"] is None
        and "no stage up to recall has p_click and p_buy" in found["recall"]["note"]
    )
    assert run.read("slates").filter(pl.col("stage") == "recall")["value"].null_count() == 30 * len(
        earned
    )
    [last] = [r for r in measure(run, ["eGMV@15"]) if r["stage"] == "rerank"]
    assert last["value"] is None and last["note"] == "n/a: rerank puts out 12"


def test_egmv_by_hand_where_a_price_is_unknown(tmp_path, world_run):
    """Two requests, values 6 (first) and 3 and an unknown one (third); the other request put out
    nothing: (6 + 3 / log2(3)) / 2.
    """
    run, _ = world_run
    ids = run.read("requests")["request_id"].sort()[:2]
    tables = {name: run.read(name) for name in run.lazy}
    for name in ("requests", "ledger", "scored"):
        tables[name] = tables[name].filter(pl.col("request_id").is_in(ids.implode()))
    few = tables["slates"].filter(
        (pl.col("request_id") == ids[0]) & (pl.col("stage") == "rerank") & (pl.col("rank") <= 3)
    )
    tables["slates"] = few.sort("rank").with_columns(
        pl.Series("value", [6.0, 3.0, None], pl.Float32)
    )
    for name, frame in tables.items():
        frame.write_parquet(tmp_path / f"{name}.parquet")

    def ask(**log) -> dict:
        (tmp_path / "run.json").write_text(json.dumps(run.meta | {"log": run.meta["log"] | log}))
        return {r["stage"]: r for r in measure(Run.open(tmp_path), ["eGMV@3"], ci=False)}["rerank"]

    assert (
        ask()["value"] == pytest.approx((6 + 3 / np.log2(3)) / 2)
        and "1 items without a price" in ask()["note"]
    )
    assert ask(world=None)["value"] is None and "only in a World" in ask(world=None)["note"]
    tables["slates"].drop("value").write_parquet(tmp_path / "slates.parquet")  # a Run of before
    assert "has p_click" in ask()["note"]


def test_egmv_as_a_name():
    assert str(Measure.parse("eGMV@10")) == "eGMV@10" and "p_click x p_buy" in define("eGMV@10")
    for wrong in ("eGMV", "eGMV@10:w99", "eGMV@10@20"):
        with pytest.raises(KarmafunnelError, match="eGMV needs one k"):
            Measure.parse(wrong)


# -- hits against money ----------------------------------------------------------------------------


def points(values: dict[str, tuple]) -> list[dict]:
    """x and y, each (value, low, high) or a value alone."""

    def ends(v):
        return dict(
            zip(
                ("value", "low", "high"),
                v if isinstance(v, tuple) else (v, None, None),
                strict=True,
            )
        )

    return [{"row": row, "hits": ends(x), "money": ends(y)} for row, (x, y) in values.items()]


def test_non_dominated_by_hand():
    """b beats c; a and d are best in one; e equals d in hits and has less; f is d again. With money
    as a cost: a, and the cheap c.
    """
    given = points({"a": (3, 1), "b": (2, 3), "c": (1, 0), "d": (1, 9), "e": (1, 8), "f": (1, 9)})
    assert [p["row"] for p in non_dominated(given, "hits", "money")] == ["d", "f", "b", "a"]
    assert [p["row"] for p in non_dominated(given, "hits", "money", lower=["money"])] == ["c", "a"]


@pytest.mark.parametrize(("worse", "mode"), [(3, "markers+text"), (30, "markers")])
def test_of_many_points_only_the_front_is_labelled(worse, mode):
    values = {"best": (1, 1)} | {f"worse {i}": (0.5 - i / 100, 0.5) for i in range(worse)}
    _, beaten, front = pareto_figure(points(values), "hits", "money")["data"]
    assert beaten["mode"] == mode and front["mode"] == "markers+text"
    assert len(beaten["hovertext"]) == worse


def test_pareto_figure(tmp_path):
    values = {
        "p^0": ((0.6, 0.5, 0.8), (0.3, 0.2, 0.5)),
        "p^1": ((0.4, 0.3, 0.5), 0.7),
        "worse": (0.3, 0.6),
        "failed": (None, 0.9),
    }
    figure = pareto_figure(points(values), "hits", "money", y_title="share of money")
    line, beaten, front = figure["data"]
    assert (line["x"], line["y"]) == ([0.4, 0.6], [0.7, 0.3])
    assert beaten["text"] == ["worse"]
    assert front["text"] == ["p^1", "p^0"]
    assert front["error_x"]["array"] == pytest.approx([0.1, 0.2]) and front["error_x"][
        "arrayminus"
    ] == pytest.approx([0.1, 0.1])
    assert front["error_y"]["array"] == pytest.approx([0, 0.2]) and front["error_y"][
        "arrayminus"
    ] == pytest.approx([0, 0.1])
    assert (
        "0.600 [0.500, 0.800]" in front["hovertext"][1]
        and figure["layout"]["yaxis"]["title"]["text"] == "share of money"
    )
    assert "share of money" in write_curve(figure, tmp_path / "pareto.html")[0].read_text()
    with pytest.raises(KarmafunnelError, match="found none among 1"):
        pareto_figure(points({"failed": (None, 1)}), "hits", "money")
    with pytest.raises(KarmafunnelError, match=r"different names, found \['a', 'a'\]"):
        pareto_figure(points({"a": (1, 1)}) * 2, "hits", "money")
