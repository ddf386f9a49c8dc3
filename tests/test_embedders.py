"""The contract that every Embedder keeps, found by walking `karmafunnel.models`, and what each of
them is for.
"""

import importlib
import inspect
import json
import pkgutil
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import karmafunnel.models
import karmafunnel.models.embedders
import numpy as np
import polars as pl
import pytest
from karmafunnel.errors import KarmafunnelError
from karmafunnel.files import seal
from karmafunnel.log import Log
from karmafunnel.models.embedders import (
    Cooccurrence,
    Embedder,
    Embedding,
    RandomVectors,
    TfidfSVD,
    known_in_w1,
)
from karmafunnel.models.karma import KARMA, FrozenLM, Qwen, SentenceEncoder
from karmafunnel.models.sasrec import SASRec
from karmafunnel.models.together import Together
from karmafunnel.typed import Typed
from shop import make_shop, other_shop, scramble
from tiny_models import sentence_encoder

pytestmark = pytest.mark.slow

TINY = Qwen(
    dim=32, layers=2, heads=2, kv_heads=1, mlp=64, vocab=400, context=32, tokens=4000, batch=4
)
QUICK: dict[str, dict[str, Any]] = {
    "SASRec": {"dim": 16, "length": 8, "epochs": 2},
    "TfidfSVD": {"dim": 12},
    "Together": {"parts": [TfidfSVD(dim=12), FrozenLM(TINY)], "weights": [2, 1]},
    "Cooccurrence": {"dim": 12},
    "KARMA": {"backbone": TINY, "dim": 32, "epochs": 2, "length": 8, "rec": 0.1},
    "FrozenLM": {"backbone": TINY},
    "SentenceEncoder": {"source": sentence_encoder(), "dim": 8},
    "TunedEncoder": {"encoder": SentenceEncoder(sentence_encoder(), dim=8), "trained": 1},
    "Transfer": {
        "embedder": KARMA(backbone=TINY, dim=32, epochs=1, length=8, ids=False),
        "log": other_shop(),
    },
}


def all_embedders() -> list[Embedder]:
    """One small value of every Embedder class in the package."""
    found = {}
    for info in pkgutil.walk_packages(karmafunnel.models.__path__, "karmafunnel.models."):
        for name, kind in inspect.getmembers(importlib.import_module(info.name), inspect.isclass):
            if issubclass(kind, Embedder) and not inspect.isabstract(kind):
                found[name] = kind(**QUICK.get(name, {}))
    return [found[name] for name in sorted(found)]


@pytest.fixture(scope="module")
def fitted(shop: Log) -> dict[str, Embedding]:
    return {repr(value): value.fit(shop, seed=3) for value in all_embedders()}


def tiny(
    baskets: list[tuple[str, list[str]]],
    titles: dict[str, str] | None = None,
    query: str | None = None,
    w1: int | None = None,
) -> Log:
    """A log of purchases without lists shown: (user, items) of each request in turn, the first `w1`
    of them in W1.
    """
    ids = sorted({i for _, items in baskets for i in items} | set(titles or {}))
    w1 = len(baskets) if w1 is None else w1
    start = datetime(2026, 1, 1, tzinfo=UTC)
    requests = pl.DataFrame(
        {
            "request_id": [f"r{k}" for k in range(len(baskets))],
            "user_id": [user for user, _ in baskets],
            "ts": [start + timedelta(hours=k) for k in range(len(baskets))],
            "query": [query] * len(baskets),
            "source": ["search"] * len(baskets),
            "window": ["W1" if k < w1 else "W3" for k in range(len(baskets))],
        },
        schema_overrides={"query": pl.String},
    )
    rows = [(f"r{k}", item, True) for k, (_, items) in enumerate(baskets) for item in items]
    exposures = pl.DataFrame(rows, schema=["request_id", "item_id", "purchased"], orient="row")
    items = pl.DataFrame(
        {"item_id": ids, "title": [(titles or {}).get(i) for i in ids]},
        schema_overrides={"title": pl.String},
    )
    meta = {
        "name": "tiny",
        "label": "purchase",
        "catalogue": "published",
        "has": {"purchases": True, "users": True},
    }
    return Log.make(items, requests, exposures, meta)


def ranked(embedding: Embedding, request: int) -> list[str]:
    """Item ids by score, best first."""
    score = embedding.items() @ embedding.interests(np.array([request]))[0]
    return list(embedding.log.item_ids[np.argsort(-score, kind="stable")])


# -- the contract ----------------------------------------------------------------------------------


def test_the_walk_finds_them() -> None:
    assert {type(v).__name__ for v in all_embedders()} >= {
        "Cooccurrence",
        "RandomVectors",
        "SASRec",
        "TfidfSVD",
    }


@pytest.mark.parametrize("value", all_embedders(), ids=repr)
class TestContract:
    def test_shapes(self, value: Embedder, fitted: dict[str, Embedding], shop: Log) -> None:
        requests = shop.requests_in("W2", "W3")
        items, interests = fitted[repr(value)].items(), fitted[repr(value)].interests(requests)
        assert items.shape == (shop.n_items, items.shape[1]) and interests.shape == (
            len(requests),
            items.shape[1],
        )
        assert items.dtype == interests.dtype == np.float32
        assert np.isfinite(items).all() and np.isfinite(interests).all()
        assert fitted[repr(value)].interests(requests[:0]).shape == (0, items.shape[1])
        assert fitted[repr(value)].value == value

    def test_same_seed_same_bytes(
        self, value: Embedder, fitted: dict[str, Embedding], shop: Log
    ) -> None:
        again = value.fit(shop, seed=3)
        requests = shop.requests_in("W2")
        assert again.items().tobytes() == fitted[repr(value)].items().tobytes()
        assert (
            again.interests(requests).tobytes() == fitted[repr(value)].interests(requests).tobytes()
        )

    def test_save_and_load(
        self, value: Embedder, fitted: dict[str, Embedding], shop: Log, tmp_path: Path
    ) -> None:
        fitted[repr(value)].save(tmp_path / "kept")
        loaded = value.load(tmp_path / "kept", shop)
        requests = shop.requests_in("W2", "W3")
        assert loaded.items().tobytes() == fitted[repr(value)].items().tobytes()
        assert (
            loaded.interests(requests).tobytes()
            == fitted[repr(value)].interests(requests).tobytes()
        )
        assert loaded.facts == fitted[repr(value)].facts
        assert [p.name for p in tmp_path.iterdir()] == ["kept"]
        assert not [
            p
            for p in (tmp_path / "kept").rglob("*")
            if p.suffix in (".pkl", ".pickle", ".pt", ".bin", ".npy")
        ]

    def test_load_refuses_what_is_not_its_own(
        self, value: Embedder, fitted: dict[str, Embedding], shop: Log, tmp_path: Path
    ) -> None:
        with pytest.raises(KarmafunnelError, match="nowhere"):
            value.load(tmp_path / "nowhere", shop)
        fitted[repr(value)].save(tmp_path / "kept")
        with pytest.raises(KarmafunnelError, match="needs the items of log"):
            value.load(tmp_path / "kept", make_shop(n_items=250))
        other = RandomVectors(dim=3) if not isinstance(value, RandomVectors) else TfidfSVD(dim=3)
        with pytest.raises(KarmafunnelError, match="dim=3"):
            other.load(tmp_path / "kept", shop)
        whole = (tmp_path / "kept" / "tensors.safetensors").read_bytes()
        (tmp_path / "kept" / "tensors.safetensors").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(KarmafunnelError, match="kept"):
            value.load(tmp_path / "kept", shop)

    def test_a_broken_save_leaves_what_was_there(
        self,
        value: Embedder,
        fitted: dict[str, Embedding],
        shop: Log,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Killed between the two files: nothing half-written, the older one still loads."""
        fitted[repr(value)].save(tmp_path / "kept")

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(karmafunnel.models.embedders, "write_json", killed)
        for folder in ("kept", "new"):
            with pytest.raises(KeyboardInterrupt):
                fitted[repr(value)].save(tmp_path / folder)
        assert [p.name for p in tmp_path.iterdir()] == ["kept"]
        assert (
            value.load(tmp_path / "kept", shop).items().tobytes()
            == fitted[repr(value)].items().tobytes()
        )

    def test_no_future_in_the_fit(
        self, value: Embedder, fitted: dict[str, Embedding], shop: Log
    ) -> None:
        """Whatever happens after W1, what is learnt is the same."""
        changed = value.fit(scramble(shop, shop.end_of("W1")), seed=3)
        assert changed.items().tobytes() == fitted[repr(value)].items().tobytes()

    @pytest.mark.parametrize("window", ["W1", "W2a"])
    def test_no_future_in_interests(
        self, value: Embedder, window: str, fitted: dict[str, Embedding], shop: Log, tmp_path: Path
    ) -> None:
        """Scramble from T on: interests of all requests up to T, that at T included, are the same
        bytes.
        """
        t = shop.end_of(window)
        upto = np.flatnonzero(shop.t <= t)
        assert shop.t[upto[-1]] == t
        fitted[repr(value)].save(tmp_path / "kept")
        changed = value.load(tmp_path / "kept", scramble(shop, t))
        assert changed.interests(upto).tobytes() == fitted[repr(value)].interests(upto).tobytes()

    def test_neighbours_do_not_matter(
        self, value: Embedder, fitted: dict[str, Embedding], shop: Log
    ) -> None:
        """A request has the same vector, byte for byte, alone, in a batch, in another order."""
        embedding, requests = fitted[repr(value)], shop.requests_in("W2", "W3")
        whole = embedding.interests(requests)
        alone = np.concatenate(
            [embedding.interests(requests[i : i + 1]) for i in range(0, len(requests), 7)]
        )
        assert whole[::7].tobytes() == alone.tobytes()
        assert embedding.interests(requests[::-1]).tobytes() == whole[::-1].tobytes()

    def test_queries_alone(
        self, value: Embedder, fitted: dict[str, Embedding], shop: Log, tmp_path: Path
    ) -> None:
        """None, or a vector that hangs on what is asked alone: zeros where nothing is, whatever the
        batch, saved or not.
        """
        embedding, requests = fitted[repr(value)], shop.requests_in("W2", "W3")
        found = embedding.queries(requests)
        assert (found is None) == (not embedding.asks)
        if found is None:
            return
        assert (
            found.shape == (len(requests), embedding.items().shape[1]) and found.dtype == np.float32
        )
        assert embedding.queries(requests[:0]).shape == (0, found.shape[1])
        rows = shop.requests[requests]
        parts = {
            "query": rows["query"].is_not_null().to_numpy(),
            "filters": (rows["filters"].list.len() > 0).to_numpy(),
        }
        asked = np.any([parts[name] for name in embedding.asks], axis=0)
        assert 0 < asked.sum() < len(asked) and np.array_equal(np.any(found != 0, axis=1), asked)
        assert found[asked] == pytest.approx(
            found[asked] / np.linalg.norm(found[asked], axis=1, keepdims=True), abs=1e-5
        )
        alone = np.concatenate(
            [embedding.queries(requests[i : i + 1]) for i in range(0, len(requests), 7)]
        )
        assert found[::7].tobytes() == alone.tobytes()
        embedding.save(tmp_path / "kept")
        changed = value.load(tmp_path / "kept", scramble(shop, 0))
        assert changed.queries(requests).tobytes() == found.tobytes(), "whatever anybody did"

    def test_without_history(
        self, value: Embedder, fitted: dict[str, Embedding], shop: Log
    ) -> None:
        """The very first request: no history, maybe no query."""
        vector = fitted[repr(value)].interests(np.array([0]))
        assert np.isfinite(vector).all()

    def test_prints_as_typed(self, value: Embedder) -> None:
        names = {type(value).__name__: type(value), "Qwen": Qwen, "KARMA": KARMA}
        names |= {kind.__name__: kind for kind in (SentenceEncoder, TfidfSVD, FrozenLM)}
        assert eval(repr(value), names) == value
        if all(f.default is not MISSING for f in fields(value)):  # type: ignore[arg-type]
            assert repr(type(value)()) == f"{type(value).__name__}()"

    def test_reports_progress(self, value: Embedder, shop: Log) -> None:
        said: list[str] = []
        value.fit(shop, seed=3, progress=said.append)
        assert all(isinstance(line, str) and line for line in said)


# -- several as one --------------------------------------------------------------------------------


def test_together_sums_the_scores(shop: Log) -> None:
    parts = [TfidfSVD(dim=12), Cooccurrence(dim=6)]
    together = Together(parts, weights=[2, 1]).fit(shop)
    requests = shop.requests_in("W3")
    scores = [x.interests(requests) @ x.items().T for x in (value.fit(shop) for value in parts)]
    wanted = 2 * scores[0] + scores[1]
    found = together.interests(requests) @ together.items().T
    known = np.any(wanted != 0, axis=1)
    assert known.sum() > 20
    # scaled for each request, in the same order
    scale = (found[known] * wanted[known]).sum(axis=1) / (wanted[known] ** 2).sum(axis=1)
    assert (scale > 0).all()
    np.testing.assert_allclose(found[known], scale[:, None] * wanted[known], atol=1e-5)
    # one that reads no query says nothing of it
    asked = together.queries(requests)
    assert asked[:, :12].any() and not asked[:, 12:].any()


@pytest.mark.parametrize(
    "given, said",
    [
        ({"parts": [TfidfSVD()]}, "parts needs two embedders or more"),
        ({"parts": TfidfSVD()}, "parts needs embedders"),
        ({"parts": [TfidfSVD(), "SASRec"]}, "parts needs two embedders or more"),
        ({"parts": [TfidfSVD(), RandomVectors()], "weights": [1.0]}, "weights needs one for each"),
        ({"parts": [TfidfSVD(), RandomVectors()], "weights": [1, 0]}, "weight needs"),
    ],
)
def test_together_refuses(given: dict[str, Any], said: str) -> None:
    with pytest.raises(KarmafunnelError, match=f"Together.*{said}"):
        Together(**given)


# -- text ------------------------------------------------------------------------------------------

TITLES = {
    "a": "red wool scarf",
    "b": "green wool scarf",
    "c": "steel kettle",
    "d": "steel kettle filter",
    "e": "paper lamp",
}


@dataclass(frozen=True, repr=False)
class Inner(Typed):
    size: int = 3


@dataclass(frozen=True, repr=False)
class Outer(TfidfSVD):
    inner: Inner = Inner()
    added: int = 5


def test_an_embedding_of_other_options_is_refused_by_their_names(shop: Log, tmp_path: Path) -> None:
    Outer(dim=8).fit(shop).save(tmp_path / "kept")
    Outer(dim=8).load(tmp_path / "kept", shop)
    with pytest.raises(KarmafunnelError) as caught:
        Outer(dim=8, decay=0.5, inner=Inner(size=4)).load(tmp_path / "kept", shop)
    said = " ".join(str(caught.value).split())
    assert "with decay=0.5, inner.size=4, found decay=0.8, inner.size=3" in said
    # saved before `added` was an option, with another class in `inner`, with one that is gone
    file = tmp_path / "kept" / "embedding.json"
    told = json.loads(file.read_text())
    del told["fields"]["added"]
    file.write_text(json.dumps(told))
    seal(tmp_path / "kept", "embedding.json", "tensors.safetensors")
    loaded = Outer(dim=8).load(tmp_path / "kept", shop)
    assert loaded.items().tobytes() == Outer(dim=8).fit(shop).items().tobytes()
    with pytest.raises(KarmafunnelError, match=r"with added=6, found no added"):
        Outer(dim=8, added=6).load(tmp_path / "kept", shop)
    del told["fields"]["inner"]["size"]
    file.write_text(json.dumps(told))
    seal(tmp_path / "kept", "embedding.json", "tensors.safetensors")
    with pytest.raises(KarmafunnelError, match=r"with inner\.size=3, found no inner\.size"):
        Outer(dim=8).load(tmp_path / "kept", shop)
    told["fields"]["inner"]["size"] = 3
    told["fields"]["gone"] = 1
    file.write_text(json.dumps(told))
    seal(tmp_path / "kept", "embedding.json", "tensors.safetensors")
    with pytest.raises(KarmafunnelError, match=r"with no gone, found gone=1"):
        Outer(dim=8).load(tmp_path / "kept", shop)


def test_tfidf_answers_a_query() -> None:
    log = tiny([("u", ["e"]), ("u", ["e"])], TITLES, query="kettle filter", w1=1)
    assert ranked(TfidfSVD(dim=5, history_weight=0.0).fit(log), 1)[:2] == ["d", "c"]


def test_tfidf_reads_the_history() -> None:
    log = tiny([("u", ["a"]), ("u", ["e"]), ("v", ["e"])], TITLES, w1=1)
    embedding = TfidfSVD(dim=4).fit(log)
    assert ranked(embedding, 1)[:2] == ["a", "b"]
    assert not embedding.interests(np.array([0, 2])).any(), "no query, no history: zeros"


def test_tfidf_weighs_query_and_history() -> None:
    log = tiny([("u", ["a"]), ("u", ["e"])], TITLES, query="kettle", w1=1)
    embedding = TfidfSVD(dim=4, query_weight=1.0, history_weight=0.5).fit(log)
    z = embedding.interests(np.array([1]))[0]
    score = dict(zip(log.item_ids, embedding.items() @ z, strict=True))
    assert score["c"] > score["a"] > score["e"] > -0.01
    assert np.isclose(np.linalg.norm(z), 1, atol=1e-6)


def test_tfidf_with_characters_forgives_a_slip() -> None:
    log = tiny([("u", ["e"]), ("u", ["e"])], TITLES, query="ketle", w1=1)
    assert not TfidfSVD(dim=4, history_weight=0.0).fit(log).interests(np.array([1])).any()
    assert ranked(TfidfSVD(dim=4, history_weight=0.0, chars=3).fit(log), 1)[0] == "c"


def test_tfidf_needs_text() -> None:
    with pytest.raises(
        KarmafunnelError, match=r"TfidfSVD\(dim=8\): needs item text .* found none in log tiny"
    ):
        TfidfSVD(dim=8).fit(tiny([("u", ["a"])]))


def test_tfidf_learns_from_items_known_in_w1() -> None:
    """In a catalogue that is known as it is seen, a later item's words are none, and the item has a
    vector all the same.
    """
    log = tiny([("u", ["a", "c"]), ("u", ["d"])], {k: TITLES[k] for k in "acd"}, w1=1)
    log = Log.make(log.items, log.requests, log.exposures, log.meta | {"catalogue": "seen"})
    assert known_in_w1(log).tolist() == [True, True, False]
    embedding = TfidfSVD(dim=4).fit(log)
    assert "filter" not in embedding.vocabulary
    assert np.allclose(embedding.items()[2], embedding.items()[1], atol=1e-6)


# -- co-occurrence ---------------------------------------------------------------------------------


def two_crowds(n: int = 40, seed: int = 0) -> list[tuple[str, list[str]]]:
    """Even users buy among a0..a4, odd ones among b0..b4."""
    rng = np.random.default_rng(seed)
    return [(f"u{k % 10}", [f"{'ab'[k % 2]}{rng.integers(5)}"]) for k in range(n)]


@pytest.mark.parametrize("weighting", ["cosine", "ppmi"])
def test_cooccurrence_keeps_the_crowds_apart(weighting: str) -> None:
    log = tiny([*two_crowds(), ("u0", ["a0"]), ("u1", ["b0"]), ("new", ["a0"])], w1=40)
    embedding = Cooccurrence(dim=4, weighting=weighting).fit(log)
    assert {i[0] for i in ranked(embedding, 40)[:5]} == {"a"}
    assert {i[0] for i in ranked(embedding, 41)[:5]} == {"b"}
    assert not embedding.interests(np.array([42])).any()


def test_cooccurrence_by_hand() -> None:
    """u: {a, b} then {c}. Each of the pair weighs 1/sqrt(2); a step apart counts half. Chosen once
    each, no shrinking.
    """
    value = Cooccurrence(falloff=0.5, shrink=0.0)
    embedding = value.fit(tiny([("u", ["a", "b"]), ("u", ["c"])]))
    half_root = 0.5 / np.sqrt(2)
    expected = [[0, 1 / 2, half_root], [1 / 2, 0, half_root], [half_root, half_root, 0]]
    assert np.allclose(embedding.source @ embedding.target.T, expected, atol=1e-6)
    assert embedding.items().shape == (3, 64), "fewer items than dimensions: padded with zeros"


def test_cooccurrence_does_not_pair_users() -> None:
    embedding = Cooccurrence(shrink=0.0).fit(tiny([("u", ["a"]), ("v", ["b"]), ("u", ["c"])]))
    product = embedding.source @ embedding.target.T
    assert np.allclose(product[1], 0, atol=1e-6) and product[0, 2] > 0.5


def test_cooccurrence_refusals() -> None:
    with pytest.raises(KarmafunnelError, match="weighting needs 'cosine' or 'ppmi', found 'tf'"):
        Cooccurrence(weighting="tf")
    for value in (Cooccurrence(), SASRec()):
        with pytest.raises(
            KarmafunnelError, match="needs clicks or purchases in W1 of log tiny, found none"
        ):
            value.fit(tiny([("u", ["a"])], w1=0))


# -- the floor -------------------------------------------------------------------------------------


def test_random_does_not_depend_on_row_order(shop: Log) -> None:
    order = np.random.default_rng(0).permutation(shop.n_items)
    moved = Log.make(shop.items[order], shop.requests, shop.exposures, shop.meta)
    one, other = RandomVectors().fit(shop, seed=1), RandomVectors().fit(moved, seed=1)
    assert one.items()[order].tobytes() == other.items().tobytes()
    assert one.interests(np.arange(20)).tobytes() == other.interests(np.arange(20)).tobytes()
    assert not np.allclose(one.items(), RandomVectors().fit(shop, seed=2).items())


def test_random_knows_nothing(shop: Log) -> None:
    """Vectors of length 1, spread evenly; a user's requests share one."""
    embedding = RandomVectors(dim=16).fit(shop)
    items = embedding.items()
    assert np.allclose(np.linalg.norm(items, axis=1), 1, atol=1e-5)
    assert np.abs(items.mean(axis=0)).max() < 4 / np.sqrt(16 * shop.n_items)
    mine = np.flatnonzero(shop.user == shop.user[0])
    assert len(np.unique(embedding.interests(mine), axis=0)) == 1


# -- SASRec ----------------------------------------------------------------------------------------


def circle(n_users: int = 30, steps: int = 12, n: int = 15) -> Log:
    """Every user walks 0, 1, 2, ... round a circle of n items from a place of his own; his last
    step is in W3.
    """
    place = np.random.default_rng(5).integers(0, n, n_users)
    baskets = [
        (f"u{u}", [f"i{(place[u] + s) % n:02d}"]) for s in range(steps) for u in range(n_users)
    ]
    return tiny(baskets, w1=(steps - 1) * n_users)


@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_sasrec_learns_the_next_item(loss: Literal["full", "sampled"]) -> None:
    log = circle()
    value = SASRec(
        dim=16, layers=1, heads=1, dropout=0.1, loss=loss, negatives=64, rate=5e-3, epochs=12
    )
    embedding = value.fit(log)
    last = np.arange(log.requests.height - 30, log.requests.height)
    truth = log.truth("purchase").filter(pl.col("request").is_in(last.tolist()))["item"].to_numpy()
    best = (embedding.interests(last) @ embedding.items().T).argmax(axis=1)
    assert (best == truth).mean() > 0.9


def test_sasrec_answers_newcomers_with_what_is_popular() -> None:
    rng = np.random.default_rng(0)
    baskets = [(f"u{k}", [f"i{min(rng.geometric(0.4), 9)}"]) for k in range(300)]
    embedding = SASRec(dim=16, layers=1, epochs=8, dropout=0.0, rate=1e-2).fit(
        tiny([*baskets, ("new", ["i1"])], w1=300)
    )
    assert ranked(embedding, 300)[:2] == ["i1", "i2"]


def test_sasrec_puts_unknown_items_last() -> None:
    """Items that W1 does not hold are at zeros, score 0, and nothing that W1 holds scores as
    little; histories may hold them.
    """
    baskets = [*two_crowds(60), ("u0", ["cold1"]), ("u0", ["cold2"]), ("u1", ["b0"])]
    log = tiny(baskets, w1=60)
    embedding = SASRec(dim=16, epochs=5).fit(log)
    cold = np.char.startswith(log.item_ids.astype(str), "cold")
    assert not embedding.items()[cold].any()
    score = embedding.interests(np.arange(len(baskets))) @ embedding.items().T
    assert (score[:, cold] == 0).all() and (score[:, ~cold] > 0).all()
    assert score.max() <= 1 + 1e-5


def test_sasrec_says_at_which_step_the_loss_broke() -> None:
    with pytest.raises(
        KarmafunnelError, match=r"needs a finite loss, found (nan|inf) in epoch \d+, step \d+"
    ):
        SASRec(dim=16, rate=1e9, epochs=5).fit(circle())


def test_sasrec_refusals() -> None:
    with pytest.raises(KarmafunnelError, match="loss needs 'full' or 'sampled', found 'bpr'"):
        SASRec(loss="bpr")  # type: ignore[arg-type]
    with pytest.raises(KarmafunnelError, match="multiple of heads, found 10 and 4"):
        SASRec(dim=10, heads=4)
