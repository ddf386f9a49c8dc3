"""Transfer: the same log gives the same vectors, no answer of the other log is read, saving,
refusals.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Catalogue, Log
from karmafunnel.models.embedders import RandomVectors, TfidfSVD
from karmafunnel.models.karma import (
    KARMA,
    Column,
    InBatch,
    Pairwise,
    Qwen,
    SentenceEncoder,
    Transfer,
    TunedEncoder,
)
from karmafunnel.simulator.replay.recipe import load_recipe
from shop import make_shop, scramble
from tiny_models import sentence_encoder

pytestmark = pytest.mark.slow

TINY = Qwen(
    dim=32, layers=2, heads=2, kv_heads=1, mlp=64, vocab=400, context=32, tokens=4000, batch=4
)
FROZEN = KARMA(backbone=TINY, dim=32, epochs=1, length=8, batch=8, ids=False)
TRAINED = replace(FROZEN, items="trained", loss=InBatch(), residual=False, rec=0.1)
WORDS = replace(FROZEN, beside=(TfidfSVD(dim=8),))
PLAIN = replace(TRAINED, loss=Pairwise(), backbone=replace(TINY, lora=2), rec=0.0, gen=0.1)

TUNED = TunedEncoder(SentenceEncoder(sentence_encoder(), dim=8), trained=1, batch=8)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def here(shop: Log, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shop's folder."""
    folder = tmp_path_factory.mktemp("logs") / "shop"
    shop.write(folder)
    return str(folder)


@pytest.fixture(scope="module")
def other() -> Log:
    """Other items, other users, more of both."""
    return make_shop(n_items=300, n_users=50, seed=5)


@pytest.mark.parametrize("value", [FROZEN, TRAINED, WORDS, PLAIN, TUNED], ids=repr)
def test_the_same_log_gives_the_same_vectors(
    value: KARMA | TunedEncoder, here: str, cache: Path
) -> None:
    shop = Log.open(here)
    requests = shop.requests_in("W3")
    plain = value.fit(shop, seed=0, cache=cache)
    moved = Transfer(value, here).fit(shop, seed=0, cache=cache)
    # low-rank updates are folded in before, not after, items are read
    close = 1e-4 if value is PLAIN else 0.0
    np.testing.assert_allclose(moved.items(), plain.items(), rtol=close, atol=close)
    np.testing.assert_allclose(
        moved.interests(requests), plain.interests(requests), rtol=close, atol=close
    )
    assert moved.read(requests) == plain.read(requests)
    assert moved.facts["trained on"]["checksum"] == shop.checksum


@pytest.mark.parametrize("value", [FROZEN, TRAINED, WORDS, TUNED], ids=repr)
def test_items_that_were_never_seen(
    value: KARMA | TunedEncoder, here: str, other: Log, cache: Path, tmp_path: Path
) -> None:
    transfer = Transfer(value, here)
    assert eval(repr(transfer)) == transfer
    fitted, requests = transfer.fit(other, seed=0, cache=cache), other.requests_in("W3")
    dim = 8 if value is TUNED else 32
    assert fitted.items().shape == (300, dim)
    assert np.linalg.norm(fitted.items(), axis=1) == pytest.approx(1, abs=1e-5)
    assert fitted.interests(requests).shape == (len(requests), dim)
    # the seven names are words of both catalogues: a query finds items of its name
    if value is WORDS:
        asked = other.requests["query"].gather(requests).to_list()
        best = (fitted.queries(requests) @ fitted.items().T).argmax(axis=1)
        titles = other.items["title"].to_list()
        found = [q in titles[i] for q, i in zip(asked, best, strict=True) if q]
        assert np.mean(found) > 0.6  # one in seven by chance
    fitted.save(tmp_path / "kept")
    loaded = transfer.load(tmp_path / "kept", other)
    assert loaded.items().tobytes() == fitted.items().tobytes()
    assert loaded.interests(requests).tobytes() == fitted.interests(requests).tobytes()
    assert loaded.read(requests) == fitted.read(requests)
    assert loaded.diagnose(requests) == fitted.diagnose(requests)
    with pytest.raises(KarmafunnelError, match=r"with embedder\.epochs=3, found embedder\.epochs=1$"):
        Transfer(replace(value, epochs=3), here).load(tmp_path / "kept", other)
    with pytest.raises(KarmafunnelError, match=f"needs {type(value).__name__}"):  # no plain fit of this log
        value.load(tmp_path / "kept", other)


@pytest.mark.parametrize("value", [TRAINED, TUNED], ids=repr)
def test_no_answer_of_the_other_log_is_read(
    value: KARMA | TunedEncoder, here: str, other: Log, cache: Path
) -> None:
    """Other clicks, other prices: the same item vectors, and a user without a past the same
    interest.
    """
    transfer = Transfer(value, here)
    changed = scramble(other, int(other.t.min()))
    a, b = (transfer.fit(log, seed=0, cache=cache) for log in (other, changed))
    assert not other.events.equals(changed.events)
    assert a.items().tobytes() == b.items().tobytes()
    requests = other.requests_in("W3")
    assert a.queries(requests).tobytes() == b.queries(requests).tobytes()


def test_the_fit_of_the_other_log_is_taken_from_the_cache(
    here: str, other: Log, tmp_path: Path
) -> None:
    FROZEN.fit(Log.open(here), seed=0, cache=tmp_path)
    kept = {x.name: x.stat().st_mtime_ns for x in tmp_path.rglob("epoch-*")}
    said: list[str] = []
    Transfer(FROZEN, here).fit(other, seed=0, cache=tmp_path, progress=said.append)
    assert not any("epoch 1" in line for line in said)
    assert kept == {x.name: x.stat().st_mtime_ns for x in tmp_path.rglob("epoch-*")}


def test_transfers_that_are_refused(shop: Log, here: str, other: Log, tmp_path: Path) -> None:
    with pytest.raises(KarmafunnelError, match=r"found ids=True.*KARMA\(ids=False"):
        Transfer(KARMA(), here)
    with pytest.raises(KarmafunnelError, match="needs visual=None"):
        Transfer(replace(FROZEN, visual=Column()), here)
    with pytest.raises(KarmafunnelError, match="embedder needs a KARMA or a TunedEncoder"):
        Transfer(RandomVectors(), here)  # type: ignore[arg-type]
    with pytest.raises(KarmafunnelError, match="nowhere: needs a log folder"):
        Transfer(FROZEN, str(tmp_path / "nowhere")).fit(other)
    Catalogue(shop.items, shop.meta).write(tmp_path / "alone")
    with pytest.raises(KarmafunnelError, match="found a catalogue, items alone"):
        Transfer(FROZEN, str(tmp_path / "alone")).fit(other)
    silent = without_text(shop)
    silent.write(tmp_path / "silent")
    with pytest.raises(KarmafunnelError, match="found none in log silent"):
        Transfer(FROZEN, str(tmp_path / "silent")).fit(other)
    with pytest.raises(KarmafunnelError, match="needs item text, found none in log silent"):
        Transfer(FROZEN, here).fit(silent)


def test_the_table_of_transfer_asks_each_log_of_the_other(shop: Log, tmp_path: Path) -> None:
    for name in ("amazon_office", "amazon_games"):
        named = Log.make(shop.items, shop.requests, shop.exposures, shop.meta | {"name": name})
        named.write(tmp_path / name)
    for here, there in (("amazon_office", "amazon_games"), ("amazon_games", "amazon_office")):
        recipe = load_recipe("karma_transfer", Log.open(tmp_path / here))
        assert recipe.against in recipe.rows
        moved = [row.embedders["interest"] for row in recipe.rows.values()]
        assert {Path(x.log) for x in moved if isinstance(x, Transfer)} == {tmp_path / there}
    # any other log asks Office, which lies beside it or is missed when a row is fitted
    recipe = load_recipe("karma_transfer", shop)
    asked = [row.embedders["interest"] for row in recipe.rows.values()]
    assert {Path(x.log) for x in asked if isinstance(x, Transfer)} == {Path("logs/amazon_office")}


def without_text(log: Log) -> Log:
    items = log.items.drop("title", "attributes", "brand", "category")
    meta = log.meta | {"name": "silent", "has": log.meta["has"] | {"text": False}}
    return Log.make(items, log.requests, log.exposures, meta)
