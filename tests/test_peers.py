"""Peers: what they see is of the past alone, what they say is a stage like any other, one that
fails is a line of the table.
"""

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from karmafunnel.benchmarks.peers import peers
from karmafunnel.benchmarks.peers.peers import PEERS, Peer, pareto, side_by_side, tables
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.stages.context import Context
from karmafunnel.stages.frame import ITEM, REQUEST
from karmafunnel.stages.recall import External
from karmafunnel.stages.recall.proposals import NOT_FOUND
from karmafunnel.stages.stage import Funnel
from shop import scramble

sys.path.insert(0, str(Path(peers.FOLDER)))
import exchange

pytestmark = pytest.mark.slow

RECIPE = """
from karmafunnel.stages.features import *
from karmafunnel.stages.learn import Sample
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import *

embedders, label = {}, "click"
recall = Join([Popular(k=60), Repeat(k=20)], k=60)
funnel = recall >> LightGBMRank(k=50, features=[Upstream(), Own()], trees=5)
"""
FAKE = """
import numpy as np
from exchange import main

TRIALS = [{"sign": -1.0}, {"sign": 1.0}]


def fit(data, seed, windows, sign):
    counts = np.asarray(data.matrix(windows).sum(axis=0)).ravel().astype(np.float32)
    return lambda rows: sign * (counts + 3 * data.history_matrix(rows).toarray())


main(fit, TRIALS)
"""


@pytest.fixture(scope="module")
def log(shop, tmp_path_factory) -> Log:
    folder = tmp_path_factory.mktemp("log") / "log"
    shop.write(folder)
    return Log.open(folder)


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "small.py").write_text(RECIPE)
    (folder / "fake.py").write_text(FAKE)
    (folder / "broken.py").write_text("raise SystemExit('no such luck')")
    (folder / "silent.py").write_text("print('nothing to say')")
    (folder / "liar.py").write_text(
        FAKE.replace("main(fit", "import exchange, polars\nmain(fit") + LIE
    )
    return folder


LIE = """
import sys, pathlib
path = pathlib.Path(sys.argv[2]) / "own.parquet"
frame = polars.read_parquet(path)
frame.with_columns(polars.lit("r999999").alias("request_id")).write_parquet(path)
"""


def some(log: Log) -> pl.DataFrame:
    """Three candidates a request of W2a and W3."""
    requests = np.concatenate([log.requests_in("W2a"), log.requests_in("W3")])
    return pl.DataFrame(
        {
            REQUEST: np.repeat(requests, 3),
            ITEM: np.tile(np.array([4, 9, 2], dtype=np.int32), len(requests)),
        }
    )


def known_by(frames: dict[str, pl.DataFrame], requests: list[str]) -> dict[str, pl.DataFrame]:
    """What was exported for some requests, and everything that is for all of them."""
    return {
        name: frame.filter(pl.col("request_id").is_in(requests))
        if "request_id" in frame.columns
        else frame
        for name, frame in frames.items()
    }


# -- what a peer sees ------------------------------------------------------------------------------


def test_the_export_sees_nothing_at_or_after_a_request(log):
    """Everything from the 40th request of W3 on is drawn anew: what is exported for the requests up
    to it is the same, byte for byte.
    """
    asked = log.requests_in("W3")[:41]
    later = scramble(log, int(log.t[asked[-1]]))
    early = [*log.request_ids[log.requests_in("W2")], *log.request_ids[asked]]
    here, there = (known_by(tables(x, "click", some(x)), early) for x in (log, later))
    assert here.keys() == there.keys() and here["histories"].height > 0
    assert all(here[name].equals(there[name]) for name in here)
    whole = tables(later, "click", some(later))["histories"]
    # the scramble is felt by those that come later
    assert not whole.equals(tables(log, "click", some(log))["histories"])


def test_histories_are_strictly_earlier_and_grow_within_the_window(log):
    frames = tables(log, "click", some(log))
    joined = frames["histories"].join(frames["requests"], on="request_id", suffix="_asked")
    assert (joined["t"] < joined["t_asked"]).all()
    assert frames["interactions"]["t"].max() < log.end_of("W2b")
    assert set(frames["interactions"]["window"]) == {"W1", "W2a", "W2b"}
    assert set(frames["requests"].join(frames["truth"], on="request_id")["window"]) == {
        "W2a",
        "W2b",
    }
    start = int(log.t[log.requests_in("W3")[0]])
    assert joined.filter((pl.col("window") == "W3") & (pl.col("t") >= start)).height > 0
    user, t = joined.row(-1, named=True)["user_id"], joined.row(-1, named=True)["t_asked"]
    mine = log.events.filter(
        (pl.col("t") < t) & (pl.Series(log.requests["user_id"].gather(log.events[REQUEST])) == user)
    )
    last = joined.filter(pl.col("request_id") == joined["request_id"][-1])
    assert sorted(last["item_id"]) == sorted(log.items["item_id"].gather(mine[ITEM]))


def test_a_peer_reads_what_the_log_says(log, tmp_path):
    for name, frame in tables(log, "click", some(log)).items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
    data = exchange.Data(tmp_path)
    rows = data.rows_in("W3")[:30]
    asked = log.requests_in("W3")[:30]
    mask = data.eligible(rows)
    items = np.arange(log.n_items)
    for place, request in enumerate(asked):
        assert np.array_equal(
            mask[place], log.asof.is_eligible(np.full(log.n_items, request), items)
        )
    history = data.history_matrix(rows).toarray()
    expected = log.asof.own_count(np.repeat(asked, log.n_items), np.tile(items, 30)).reshape(30, -1)
    assert np.array_equal(history, expected)
    counts = np.bincount(
        log.events.filter(pl.col("t") < log.end_of("W1"))[ITEM], minlength=log.n_items
    )
    assert np.array_equal(np.asarray(data.matrix(["W1"]).sum(axis=0)).ravel(), counts)
    _, item = data.truth(data.rows_in("W2b"))
    truth = log.truth("click").filter(pl.col(REQUEST).is_in(log.requests_in("W2b").tolist()))
    assert len(item) == truth.height and not len(data.truth(rows)[1])


def test_best_and_filled_by_hand():
    scores = np.array([[-np.inf, 2.0, 1.0, -np.inf], [-np.inf] * 4], np.float32)
    whole = exchange.filled(scores, np.array([5.0, 0.0, 0.0, 9.0]))
    assert np.argsort(-whole, axis=1).tolist()[0] == [1, 2, 3, 0] and np.argsort(-whole, axis=1)[1][
        :2
    ].tolist() == [3, 0]
    rows, items = exchange.best(
        whole, np.array([[True, True, False, True], [False, False, False, True]]), 2
    )
    assert rows.tolist() == [0, 0, 1] and items.tolist() == [1, 3, 3]


# -- what it says, as a stage ----------------------------------------------------------------------


def written(path: Path, rows: list[tuple]) -> str:
    pl.DataFrame(rows, schema=["request_id", "item_id", "score"], orient="row").write_parquet(path)
    return str(path)


def test_external_proposes_the_best_eligible_and_scores_what_it_holds(log, tmp_path):
    request = int(next(r for r in log.requests_in("W3") if log.asof.filter_key[r] > 0))
    asof = log.asof
    allowed = asof.is_eligible(np.full(log.n_items, request), np.arange(log.n_items))
    yes, no = np.flatnonzero(allowed)[:3], int(np.flatnonzero(~allowed)[0])
    rid = log.request_ids[request]
    rows = [
        (rid, log.item_ids[no], 9.0),
        *((rid, log.item_ids[i], s) for i, s in zip(yes, (1.0, 3.0, 2.0), strict=True)),
    ]
    stage = External(written(tmp_path / "s.parquet", rows), k=2)
    fitted = Funnel((stage,)).fit(Context(log, {}, "click"))
    tracked = pl.DataFrame(
        {REQUEST: [request] * 3, ITEM: [yes[0], no, 200], "truth": [True, False, False]}
    ).cast({ITEM: pl.Int32})
    other = int(log.requests_in("W3")[0])
    step = fitted.run(np.unique([other, request]), tracked)[0]
    assert step.slate[ITEM].to_list() == [yes[1], yes[2]] and step.slate[
        REQUEST
    ].unique().to_list() == [request]
    assert (
        step.tracked["score"].to_list() == [1.0, 9.0, NOT_FOUND]
        and step.tracked["kept"].to_list() == [False] * 3
    )


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([("r400", "i1", 1.0), ("r400", "i1", 2.0)], "at most once a request, found 2"),
        (
            [("r400", "i1", float("nan"))],
            "finite scores, found 1 other rows, e.g. request 'r400', item 'i1'",
        ),
        ([("r400", "i1", None)], "finite scores"),
        ([("nobody", "i1", 1.0)], "request_id 'nobody'"),
        ([("r400", "i9999", 1.0)], "item_id 'i9999'"),
    ],
)
def test_external_refuses_by_name(log, tmp_path, rows, complaint):
    path = written(tmp_path / "s.parquet", rows)
    with pytest.raises(KarmafunnelError, match=rf"(?s)s\.parquet.*{complaint}"):
        External(path).fit(Context(log), None)


def test_external_wants_its_own_file(log, tmp_path):
    with pytest.raises(KarmafunnelError, match="no such file"):
        External(str(tmp_path / "none.parquet")).fit(Context(log), None)
    path = written(tmp_path / "s.parquet", [("r400", "i1", 1.0)])
    with pytest.raises(KarmafunnelError, match="of that checksum"):
        External(path, checksum="abc").fit(Context(log), None)
    pl.DataFrame({"request_id": ["r400"]}).write_parquet(path)
    with pytest.raises(KarmafunnelError, match="item_id"):
        External(path).fit(Context(log), None)


# -- the whole recipe ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cast(scripts) -> dict[str, Peer]:
    return {
        name: Peer(scripts / f"{name}.py", None)
        for name in ("fake", "broken", "silent", "liar", "missing")
    }


@pytest.fixture(scope="module")
def finished(log, scripts, cast, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "peers"
    small = str(scripts / "small.py")
    left = side_by_side(
        log, out, RunOptions(cache=out.parent / "cache"), peers=cast, ours=small, ranking=small
    )
    assert left == []
    return out


def test_a_fake_peer_goes_through_and_a_failing_one_is_a_line(finished):
    table = json.loads((finished / "peers.json").read_text())
    for name in ("own", "ranking"):
        systems = [line["system"] for line in table["tables"][name]]
        assert systems[:2] == ["ours", "fake"] and "random" in systems
        fake = table["tables"][name][1]
        for measure in fake["values"]:
            ours = table["tables"][name][0]["values"][measure]["value"]
            assert fake["differences"][measure]["difference"] == pytest.approx(
                ours - fake["values"][measure]["value"]
            )
            assert fake["differences"][measure]["low"] <= fake["differences"][measure]["high"]
    assert (
        "no such luck" in table["failed"]["broken"]
        and "without writing" in table["failed"]["silent"]
    )
    assert "r999999" in table["failed"]["liar"] and "missing.py" in table["failed"]["missing"]
    # W2b prefers what is popular to what is not
    assert table["facts"]["fake"][0]["settings"] == {"sign": 1.0}
    text = (finished / "peers.md").read_text()
    assert "no such luck" in text
    assert "HR@10" in text
    assert "HR@10 on W2b, sign" in text
    assert (finished / "pareto.html").exists() and (finished / "peers.csv").exists()


def test_ranking_the_same_candidates_is_a_matter_of_order_alone(finished, log):
    """Our recall's candidates, the fake peer's order: recomputed from the exported history."""
    given = pl.read_parquet(finished / "data-0" / "candidates.parquet")
    said = pl.read_parquet(finished / "peers" / "fake-0" / "candidates.parquet")
    w3 = log.request_ids[log.requests_in("W3")]
    assert set(said.select("request_id", "item_id").rows()) == set(
        given.filter(pl.col("request_id").is_in(w3)).rows()
    )
    counts = np.bincount(
        log.events.filter(pl.col("t") < log.end_of("W1"))[ITEM], minlength=log.n_items
    )
    requests = said.join(
        log.requests.select("request_id", pl.int_range(pl.len()).alias("r")),
        on="request_id",
        maintain_order="left",
    )
    items = said.join(
        log.items.select("item_id", pl.int_range(pl.len()).alias("i")),
        on="item_id",
        maintain_order="left",
    )
    r, i = requests["r"].to_numpy(), items["i"].to_numpy()
    assert np.allclose(said["score"], counts[i] + 3 * log.asof.own_count(r, i))


def test_resumed_it_runs_no_finished_peer_again(log, scripts, cast, finished, monkeypatch):
    kept = {p: p.stat().st_mtime_ns for p in finished.rglob("*.parquet")}
    monkeypatch.setattr(
        peers, "stream", lambda *_, **__: pytest.fail("a finished peer was begun again")
    )
    small = str(scripts / "small.py")
    side_by_side(
        log,
        finished,
        RunOptions(cache=finished.parent / "cache"),
        peers=cast,
        ours=small,
        ranking=small,
    )
    assert kept == {p: p.stat().st_mtime_ns for p in finished.rglob("*.parquet")}
    fresh = {"fake": cast["fake"], "late": Peer(scripts / "fake.py", None)}
    assert side_by_side(
        log,
        finished,
        RunOptions(cache=finished.parent / "cache"),
        peers=fresh,
        ours=small,
        ranking=small,
        minutes=0,
    ) == ["late"]
    assert "left for another time: late" in (finished / "peers.md").read_text()


def test_an_environment_that_cannot_be_made_says_why(tmp_path, monkeypatch):
    calls = []

    def refused(command, log, say, cwd, minutes, who):
        calls.append(command)
        raise KarmafunnelError(f"{who}: no matching distribution")

    monkeypatch.setattr(peers, "stream", refused)
    packages = tmp_path / "odd.txt"
    packages.write_text("nothing-of-that-name==1\n")
    why = peers.run_peer(
        "odd",
        Peer(tmp_path / "odd.py", packages),
        tmp_path,
        "",
        tmp_path / "out",
        0,
        tmp_path / "cache",
        print,
        1.0,
    )
    assert why == "environment odd.txt: no matching distribution"
    again = peers.run_peer(
        "odd",
        Peer(tmp_path / "odd.py", packages),
        tmp_path,
        "",
        tmp_path / "out",
        0,
        tmp_path / "cache",
        print,
        1.0,
    )
    assert again == why and len(calls) == 1


def test_every_peer_that_ships_is_pinned():
    for peer in PEERS.values():
        assert peer.script.is_file() and peer.packages is not None
        assert all(line.count("==") == 1 for line in peer.packages.read_text().split())


def test_pareto_joins_those_that_no_other_beats_in_both():
    values = {"fast": (1.0, 0.5), "slow": (9.0, 0.7), "beaten": (5.0, 0.4), "ours": (7.0, 0.8)}
    lines = [
        {
            "system": name,
            "ms": ms,
            "values": {"HR@10": {"value": v, "low": v - 0.1, "high": v + 0.1}},
        }
        for name, (ms, v) in values.items()
    ]
    assert pareto(lines, "HR@10")["data"][0]["x"] == [1.0, 7.0]
