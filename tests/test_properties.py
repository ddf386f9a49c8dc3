"""Properties that hold whatever comes: measures against an oracle on random Runs, services there
and back, JSON of another kind.
"""

import contextlib
import copy
import json
import math
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.models.ctr import Shape, TwoTower, TwoTowerConfig, load_ctr, save_ctr
from karmafunnel.models.embedders import TfidfSVD
from karmafunnel.models.training import Snapshot
from karmafunnel.simulator.load.arrivals import Poisson
from karmafunnel.simulator.load.quality import quality_under_load
from karmafunnel.simulator.load.queueing import Simulation, simulate
from karmafunnel.simulator.load.services import (
    Adapt,
    Cache,
    Cold,
    Crash,
    Service,
    Services,
    ServiceTime,
    Slow,
)
from karmafunnel.simulator.measure.compare import Run, compare, measure
from karmafunnel.simulator.measure.measures.measure import Measure
from karmafunnel.simulator.replay.paths import FULL, NOTHING
from karmafunnel.stages.calibration import Isotonic, Temperature, load_calibration, save_calibration
from test_measures import META, by_hand, write

pytestmark = pytest.mark.slow

QUICK = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


# -- names of measures -----------------------------------------------------------------------------

KS = st.integers(1, 10_000_000)
MEASURES = st.one_of(
    st.builds(
        "{}@{}".format,
        st.sampled_from(
            ["HR", "Recall", "nDCG", "MRR", "GMV-HR", "GMV-nDCG", "overlap", "RBO", "eGMV"]
        ),
        KS,
    ),
    st.builds("{}@{}:exposures".format, st.sampled_from(["HR", "Recall", "nDCG", "MRR"]), KS),
    st.builds("GMV-{}@{}:w99".format, st.sampled_from(["HR", "nDCG"]), KS),
    st.builds("Recall@{}@{}".format, KS, KS),
    st.builds("{}@{}:all:{}d".format, st.sampled_from(["HR", "Recall"]), KS, st.integers(1, 9999)),
    st.sampled_from(["MRR", "survival", "swap", "margin", "ceiling", "AUC", "logloss", "ECE"]),
    st.builds(
        "gAUC:{}:{}:{}".format,
        st.sampled_from(["request", "user"]),
        st.sampled_from(["exposures", "candidates"]),
        st.sampled_from(["exposures", "positives", "none"]),
    ),
)


@QUICK
@given(MEASURES)
def test_a_measure_prints_as_typed(text):
    found = Measure.parse(text)
    assert Measure.parse(str(found)) == found and hash(found) == hash(Measure.parse(text))


@settings(QUICK, max_examples=300)
@given(st.one_of(st.text(max_size=30), st.text("HRMRecallnDCG@:0123456789-dw", max_size=14)))
def test_any_text_is_a_measure_or_refused(text):
    try:
        found = Measure.parse(text)
    except KarmafunnelError as error:
        assert "there are" in str(error)
    else:
        assert Measure.parse(str(found)) == found


# -- measures against an oracle --------------------------------------------------------------------


@st.composite
def runs(draw) -> dict[str, list[dict[str, Any]]]:
    """Requests with their truth: of each item its rank in two stages (None once lost), whether it
    is eligible, and its price.
    """
    requests = []
    for _ in range(draw(st.integers(1, 6))):
        places = draw(st.permutations(range(1, 5)))[: draw(st.integers(0, 3))]
        truth = []
        for recall in places:
            lost = draw(st.sampled_from(["eligible", "recall", "rank", "kept"]))
            rank = (
                draw(st.integers(1, 2))
                if lost == "kept" and not any(t["rank"] for t in truth)
                else None
            )
            lost = "rank" if lost == "kept" and rank is None else lost
            price = draw(st.one_of(st.none(), st.integers(0, 100).map(float)))
            truth.append(
                {
                    "recall": recall if lost in ("rank", "kept") else None,
                    "rank": rank,
                    "lost": lost,
                    "money": price,
                }
            )
        requests.append({"user": draw(st.integers(0, 2)), "truth": truth})
    return requests


def on_disk(requests: list[dict[str, Any]], folder: Path) -> Run:
    asked, ledger, scored = [], [], []
    for r, request in enumerate(requests):
        truth = request["truth"]
        eligible = sum(t["lost"] != "eligible" for t in truth)
        asked.append(
            {
                "request_id": f"r{r}",
                "user_id": f"u{request['user']}",
                "ts": None,
                "window": "W3",
                "n_truth": len(truth),
                "n_eligible": 9,
                "n_truth_eligible": eligible,
                "n_shown": 0,
                "has_query": True,
                "new_user": False,
                "recall.n": 9,
                "recall.out": 4,
                "rank.n": 4,
                "rank.out": 2,
            }
        )
        for i, t in enumerate(truth):
            lost = {"eligible": "not eligible", "kept": None}.get(t["lost"], t["lost"])
            row = {
                "request_id": f"r{r}",
                "item_id": f"i{i}",
                "money": t["money"],
                "quantity": 1,
                "eligible": t["lost"] != "eligible",
            }
            row |= {
                "target": "head",
                "repeat": False,
                "price_band": None,
                "lost": lost,
                "margin": None,
                "margin_score": None,
            }
            row |= {
                f"{s}.{c}": t[s] if c == "rank" else 0.0
                for s in ("recall", "rank")
                for c in ("rank", "score", "wins")
            }
            ledger.append(row)
    types = {
        "request_id": pl.String,
        "item_id": pl.String,
        "money": pl.Float64,
        "quantity": pl.Int64,
        "eligible": pl.Boolean,
    }
    types |= {"target": pl.String, "repeat": pl.Boolean, "price_band": pl.String, "lost": pl.String}
    types |= {"margin": pl.Int32, "margin_score": pl.Float32}
    types |= {
        f"{s}.{c}": pl.Int32 if c == "rank" else pl.Float64
        for s in ("recall", "rank")
        for c in ("rank", "score", "wins")
    }
    shown = {
        "request_id": pl.String,
        "item_id": pl.String,
        "position": pl.Int32,
        "clicked": pl.Boolean,
        "purchased": pl.Boolean,
    }
    shown |= {
        "money": pl.Float64,
        "eligible": pl.Boolean,
        "recall.score": pl.Float32,
        "rank.score": pl.Float32,
    }
    slates = {
        "request_id": pl.String,
        "stage": pl.String,
        "item_id": pl.String,
        "rank": pl.Int32,
        "score": pl.Float32,
        "channel": pl.String,
    }
    frames = (
        pl.DataFrame(asked),
        pl.DataFrame(ledger, schema=types),
        pl.DataFrame(scored, schema=shown),
        pl.DataFrame(schema=slates),
    )
    return write(folder, *frames, META)


def oracle(requests: list[dict[str, Any]], name: str, stage: str, k: int) -> float | None:
    """Means over requests, straight from the definitions."""
    found = []
    for request in requests:
        ranks = [t[stage] for t in request["truth"]]
        inside = [r for r in ranks if r is not None and r <= k]
        if not ranks:
            continue
        if name == "GMV-HR":
            priced = [t for t in request["truth"] if t["money"] is not None]
            total = sum(t["money"] for t in priced)
            if total > 0:
                found.append(
                    (
                        sum(t["money"] for t in priced if t[stage] is not None and t[stage] <= k),
                        total,
                    )
                )
            continue
        value = {
            "HR": float(bool(inside)),
            "Recall": len(inside) / len(ranks),
            "MRR": 1 / min(inside) if inside else 0.0,
            "nDCG": sum(1 / math.log2(r + 1) for r in inside)
            / sum(1 / math.log2(i + 2) for i in range(min(len(ranks), k))),
        }[name]
        found.append((value, 1.0))
    return sum(v for v, _ in found) / sum(w for _, w in found) if found else None


@QUICK
@given(runs(), st.sampled_from(["HR", "Recall", "nDCG", "MRR", "GMV-HR"]), st.integers(1, 2))
def test_measures_of_random_runs_agree_with_an_oracle(tmp_path_factory, requests, name, k):
    run = on_disk(requests, tmp_path_factory.mktemp("run") / "one")
    for row in measure(run, [f"{name}@{k}"], resamples=20):
        if row["stage"] in ("recall", "rank"):
            expected = oracle(requests, name, row["stage"], k)
            assert (row["value"] is None) == (expected is None) and row["value"] == (
                expected if expected is None else pytest.approx(expected)
            )
            assert row["low"] is None or row["low"] - 1e-9 <= row["high"]
    for row in compare(run, run, [f"{name}@{k}"], resamples=20):
        assert row["difference"] in (None, 0.0) and row["better"] == ""


@QUICK
@given(runs())
def test_survival_multiplies_to_the_end(tmp_path_factory, requests):
    run = on_disk(requests, tmp_path_factory.mktemp("run") / "one")
    rows = {row["stage"]: row["value"] for row in measure(run, ["survival"], ci=False)}
    shares = [rows[stage] for stage in ("eligible", "recall", "rank")]
    truth = [t for request in requests for t in request["truth"]]
    if truth:
        assert rows["end to end"] == pytest.approx(
            sum(t["lost"] == "kept" for t in truth) / len(truth)
        )
    if all(share is not None for share in shares):
        assert math.prod(shares) == pytest.approx(rows["end to end"])


# -- services --------------------------------------------------------------------------------------

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True).filter(
    lambda name: name not in (FULL, NOTHING)
)
MS = st.floats(0.1, 50.0)
RATIOS = st.lists(st.floats(0.1, 3.0), min_size=2, max_size=5).map(
    lambda ratios: tuple(sorted(ratios))
)
TIMES = st.one_of(
    st.builds(
        ServiceTime,
        kind=st.sampled_from(["constant", "exponential"]),
        base_ms=MS,
        item_us=st.floats(0, 9),
    ),
    st.builds(ServiceTime, kind=st.just("lognormal"), request_ms=MS, cv=st.floats(0, 2)),
    st.builds(ServiceTime, kind=st.just("empirical"), base_ms=MS, ratios=RATIOS),
)


def maybe(strategy):
    return st.one_of(st.none(), strategy)


PARTS = {
    "servers": st.integers(1, 5),
    "items": st.integers(0, 1000),
    "batch": st.integers(1, 8),
    "wait_ms": st.floats(0, 5),
    "queue": maybe(st.integers(0, 20)),
    "patience_ms": maybe(MS),
    "retries": st.integers(0, 3),
    "fail": st.sampled_from(["open", "closed"]),
    "fallback": st.one_of(st.just("skip"), NAMES),
    "cost_per_hour": st.floats(0, 9),
    "cold": maybe(st.builds(Cold, st.integers(1, 9), MS)),
    "slow": maybe(st.builds(Slow, st.floats(0, 1), MS)),
    "crash": maybe(st.builds(Crash, st.floats(1, 99), MS)),
    "cache": maybe(st.builds(Cache, st.floats(0, 1))),
}


@st.composite
def deployments(draw) -> Services:
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    stages = []
    for i, name in enumerate(names):
        more = {key: draw(strategy) for key, strategy in PARTS.items()}
        if i < len(names) - 1 and draw(st.booleans()):
            more |= {"k": 50, "adapt": Adapt((50, 20), (draw(st.integers(1, 9)),))}
        more["fallback"] = "skip" if more["fallback"] == "stale" else more["fallback"]
        stages.append(Service(name, draw(TIMES), **more))
    fastest = sum(stage.fastest_ms for stage in stages)
    deadline = draw(maybe(st.floats(1.5, 20.0).map(lambda times: times * fastest + 1)))
    return Services(
        tuple(stages),
        draw(st.sampled_from(["a", "b c"])),
        deadline,
        draw(st.sampled_from(["open", "closed"])),
    )


@QUICK
@given(deployments())
def test_services_there_and_back(services):
    assert Services.of(tomllib.loads(services.toml())) == services


@settings(QUICK, max_examples=25)
@given(deployments(), st.floats(0.5, 200.0), st.integers(1, 60), st.integers(0, 2**31 - 1))
def test_every_request_leaves_once(services, rate, n, seed):
    """Whatever the policies: each request is shown something on a path, or nothing; latency is no
    less than 0; seeds repeat.
    """
    first, again = (simulate(services, Poisson(rate), n, seed) for _ in range(2))
    assert first.requests.height == n and first.requests["request"].to_list() == list(range(n))
    assert (first.requests["latency_ms"] >= 0).all() and first.requests.equals(again.requests)
    served = first.requests["outcome"] == "served"
    assert ((first.requests["path"] == NOTHING) == ~served).all()
    if services.deadline_ms is not None:
        assert (first.requests["latency_ms"] <= services.deadline_ms + 1e-6).all()


ODD: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1,
    0.5,
    10**20,
    10**400,
    1e308,
    math.nan,
    math.inf,
    "",
    "x",
    "[/red]",
    "../../x",
    "a\x00b",
    "\ud800",
]
ODD += [
    [],
    {},
    [1],
    ["x"],
    [None],
    {"x": 1},
    {"": None},
    [[[[]]]],
    {"has": 5},
    "9" * 500,
    ["click"],
    {"name": "x", "k": 3},
]


@pytest.mark.parametrize("value", ODD, ids=lambda v: ascii(v)[:30])
def test_services_of_odd_values(value):
    """Each key of each table replaced, taken away, and the whole in its place."""
    stage = {
        "name": "s",
        "time": {"kind": "lognormal", "base_ms": 1.0, "cv": 0.1},
        "cold": {"requests": 3, "factor": 2.0},
        "k": 9,
    }
    stage |= {
        "slow": {"probability": 0.1, "factor": 2.0},
        "crash": {"every_s": 9.0, "repair_s": 1.0},
        "cache": {"hit": 0.1},
        "batch": 2,
    }
    whole = {
        "name": "n",
        "deadline_ms": 99.0,
        "late": "open",
        "note": "",
        "stage": [stage, {"name": "t", "time": {"base_ms": 1.0}}],
    }
    whole["stage"][0] |= {
        "adapt": {"levels": [9, 3], "waiting": [2]},
        "servers": 2,
        "queue": 4,
        "retries": 1,
        "wait_ms": 1.0,
    }
    for made in changed(whole, value):
        try:
            found = Services.of(made)
            simulate(found, Poisson(50.0), 20)
            len(found.paths())
        except KarmafunnelError as error:
            assert len(str(error)) < 1500


# -- JSON that is read back ------------------------------------------------------------------------


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    for key, more in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield from places(more, (*at, key))


def changed(whole: Any, value: Any) -> Iterator[Any]:
    """The whole with each of its values replaced by another, and without each of its keys."""
    for way in places(whole):
        made = copy.deepcopy(whole)
        if not way:
            yield value
            continue
        holder = made
        for key in way[:-1]:
            holder = holder[key]
        holder[way[-1]] = copy.deepcopy(value)
        yield made
        if value is None:
            del holder[way[-1]]
            yield made


FULL_META = META | {
    "recipe": "x",
    "recipe_name": "x",
    "row": None,
    "funnel": "Popular()",
    "commit": "abc",
    "device": "cpu",
    "command": "x",
    "path": "full",
    "embedders": {"e": "E()"},
    "versions": {"numpy": "2"},
    "limit": 5,
    "stale_minutes": {"e": 60},
    "log": META["log"]
    | {"has": {"price": True, "exposures": True}, "path": "/nowhere", "items": 9, "world": None},
}
SERVED = Services(
    (Service("recall", ServiceTime(base_ms=1.0)), Service("rank", ServiceTime(base_ms=1.0)))
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return by_hand(tmp_path_factory.mktemp("mutated") / "run", FULL_META).path


EVERY_MEASURE = ["HR@1", "GMV-HR@2", "survival", "AUC", "eGMV@1", "HR@1:all", "swap"]


@pytest.mark.parametrize("value", ODD, ids=lambda v: ascii(v)[:30])
def test_a_run_json_of_another_kind_is_refused_or_read(value, folder):
    """Whatever is in the place of each key: an answer, or a refusal that names the file."""
    right = Run.open(folder.parent / "run") if value is None else None
    assert right is None or measure(right, ["HR@1"], ci=False)
    for meta in changed(FULL_META, value):
        (folder / "run.json").write_text(json.dumps(meta))
        try:
            run = Run.open(folder)
        except KarmafunnelError as error:
            assert str(folder) in str(error) and len(str(error)) < 1500
            continue
        for ask in (
            partial(measure, run, EVERY_MEASURE, ci=False),
            partial(compare, run, run, ["HR@1"], resamples=5),
            partial(
                quality_under_load,
                {"s": SERVED},
                folder,
                Poisson(50.0),
                20,
                measures=["HR@1"],
                loads=(1.0,),
                resamples=5,
            ),
        ):
            with contextlib.suppress(KarmafunnelError):
                assert ask()
    (folder / "run.json").write_text(json.dumps(FULL_META))


NO_JSON = [
    "",
    "{",
    "[" * 100_000,
    "{}" * 9,
    '{"a": ' * 5000,
    "9" * 5000,
    "nan",
    '"\\ud800"',
    "\x00",
    "[1e999]",
]


@pytest.mark.parametrize("text", NO_JSON, ids=lambda text: ascii(text)[:12])
def test_json_that_is_none(text, tmp_path):
    run = by_hand(tmp_path / "run").path
    simulation = tmp_path / "simulation"
    simulate(SERVED, Poisson(50.0), 20, out=simulation, events=True)
    log = tmp_path / "log"
    Log.make(*shop_frames(), {"name": "x", "has": {"clicks": True}}).write(log)
    for path, open_it in (
        (run / "run.json", Run.open),
        (simulation / "simulation.json", Simulation.open),
        (log / "log.json", Log.open),
    ):
        path.write_text(text)
        with pytest.raises(KarmafunnelError, match=r"\.json"):
            open_it(path.parent)


def shop_frames() -> tuple[pl.DataFrame, ...]:
    ts = pl.Series("ts", range(9)) * 60_000 + 1_700_000_000_000
    requests = pl.DataFrame(
        {"request_id": [f"r{i}" for i in range(9)], "user_id": ["u"] * 9, "source": ["search"] * 9}
    )
    requests = requests.with_columns(ts.cast(pl.Datetime("ms", "UTC")))
    return (
        pl.DataFrame({"item_id": ["a"]}),
        requests,
        pl.DataFrame({"request_id": ["r1"], "item_id": ["a"], "clicked": [True]}),
    )


@pytest.mark.parametrize("value", ODD, ids=lambda v: ascii(v)[:30])
def test_a_simulation_json_of_another_kind_is_refused_or_read(value, tmp_path):
    simulate(SERVED, Poisson(50.0), 20, out=tmp_path / "load", events=True)
    (tmp_path / "load" / "digests.json").unlink(missing_ok=True)
    whole = json.loads((tmp_path / "load" / "simulation.json").read_text())
    for made in changed(whole, value):
        (tmp_path / "load" / "simulation.json").write_text(json.dumps(made))
        try:
            Simulation.open(tmp_path / "load").summary()
        except KarmafunnelError as error:
            assert str(tmp_path / "load") in str(error) and len(str(error)) < 1500


@pytest.mark.parametrize("value", ODD, ids=lambda v: ascii(v)[:30])
def test_json_of_what_was_fitted_of_another_kind_is_refused_or_read(value, tmp_path, shop):
    """Word vectors and a calibration."""
    words = TfidfSVD(dim=4)
    words.fit(shop).save(tmp_path / "words")
    save_calibration(Isotonic([0.0, 1.0], [0.1, 0.9]), tmp_path / "steps.json")
    save_calibration(Temperature(1.0, 0.0), tmp_path / "slope.json")
    kept = {
        tmp_path / "words" / "embedding.json": lambda: words.load(
            tmp_path / "words", shop
        ).interests(np.array([0])),
        tmp_path / "steps.json": lambda: load_calibration(tmp_path / "steps.json")(np.array([0.5])),
        tmp_path / "slope.json": lambda: load_calibration(tmp_path / "slope.json")(np.array([0.5])),
    }
    for path, read in kept.items():
        (path.parent / "digests.json").unlink(missing_ok=True)
        whole = json.loads(path.read_text())
        if "extras" in whole:
            whole["extras"] = {"vocabulary": whole["extras"]["vocabulary"]}
        ways = [made for made in changed(whole, value)]
        for made in [*ways[:60], *ways[-60:]]:
            path.write_text(json.dumps(made))
            with contextlib.suppress(KarmafunnelError):
                read()


@pytest.mark.parametrize("value", ODD, ids=lambda v: ascii(v)[:30])
def test_facts_of_a_click_model_of_another_kind_are_refused_or_read(value, tmp_path):
    save_ctr(TwoTower(Shape(9, 2), TwoTowerConfig(dim=4, out=4)), tmp_path)
    file = tmp_path / "model.safetensors"
    kept = Snapshot.read(file)
    for made in changed(dict(kept.facts), value):
        replace(kept, facts=made).write(file)
        with contextlib.suppress(KarmafunnelError):
            load_ctr(tmp_path)


# -- a Run and the deployment of another funnel ----------------------------------------------------


def test_queue_needs_the_stages_of_the_run(tmp_path):
    run = by_hand(tmp_path / "run").path

    def stage(name):
        return Service(name, ServiceTime(base_ms=1.0))

    for names in (
        ["recall"],
        ["rank", "recall"],
        ["recall", "rank", "rerank"],
        ["recall", "prerank"],
        ["e", "recall", "rank"],
    ):
        Services(tuple(map(stage, names))).write(tmp_path / "s.toml")
        words = [
            "queue",
            "s.toml",
            "--rate",
            "50",
            "--requests",
            "20",
            "--run",
            "run",
            "--out",
            "out",
            "--measure",
            "HR@1",
        ]
        words = [
            str(tmp_path / word) if word in ("s.toml", "run", "out") else word for word in words
        ]
        answer = CliRunner().invoke(main, words)
        assert answer.exit_code == 1
        assert "needs the stages of" in " ".join(answer.stderr.split())
        assert not (tmp_path / "out").exists()
    SERVED.write(tmp_path / "s.toml")
    assert CliRunner().invoke(main, words).exit_code == 0
    # an embedder is a stage of its own where it is asked online
    by_hand(tmp_path / "with", {"embedders": {"e": "E()"}})
    Services(tuple(map(stage, ["e", "recall", "rank"]))).write(tmp_path / "s.toml")
    words[words.index(str(run))] = str(tmp_path / "with")
    assert CliRunner().invoke(main, [*words, "--force"]).exit_code == 0
