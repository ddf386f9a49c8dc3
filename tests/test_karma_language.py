"""LanguageFirst: what it reads, resuming to the same bytes, healing a head, and KARMA after it."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from karmafunnel.benchmarks.studies import karma_order, karma_order_trials
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Catalogue, Log
from karmafunnel.models.embedders import w1_sequences
from karmafunnel.models.karma import KARMA, FrozenLM, InBatch, LanguageFirst, Qwen
from karmafunnel.models.karma import backbone as backbones
from karmafunnel.models.karma.backbone import LM
from karmafunnel.models.karma.language import BETWEEN, held_out
from karmafunnel.simulator.replay.recipe import load_recipe
from shop import make_shop, scramble

pytestmark = pytest.mark.slow

TINY = Qwen(
    dim=32, layers=2, heads=2, kv_heads=1, mlp=64, vocab=400, context=32, tokens=4000, batch=4
)
READ = LanguageFirst(TINY, tokens=6000, context=32, batch=4, rate=3e-3)


def silent(_: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def lm(shop: Log, cache: Path) -> LM:
    return TINY.ready(shop, cache, silent, "cpu")


def all_documents(value: LanguageFirst, log: Log, lm: LM) -> list[bytes]:
    told, held = value.documents(log, lm)
    return sorted(x.tobytes() for x in (*told, *held))


def weights(lm: LM) -> dict[str, torch.Tensor]:
    return dict(lm.model.state_dict())


def same(a: LM, b: LM) -> bool:
    return all(torch.equal(x, weights(b)[name]) for name, x in weights(a).items())


# -- what is read ----------------------------------------------------------------------------------


def test_a_document_is_what_a_user_chose_in_w1(shop: Log, lm: LM) -> None:
    events, texts = w1_sequences(shop, "test"), shop.item_text()
    words = lm.words(texts, READ.text_words)
    between = lm.words([BETWEEN], 8)[0]
    assert len(between) > 0
    expected = []
    for user in np.unique(events.user):
        parts = [words[i] for i in events.item[events.user == user]]
        row = [lm.bos, *parts[0]]
        for part in parts[1:]:
            row += [*between, *part]
        expected.append(np.array(row, dtype=np.int64).tobytes())
    assert all_documents(READ, shop, lm) == sorted(expected)
    assert len(READ.documents(shop, lm)[1]) == 1  # of 40 users


def test_nothing_after_w1_is_read(shop: Log, lm: LM) -> None:
    later = scramble(shop, int(shop.t[shop.requests_in("W2")].min()))
    for reads in ("histories", "items", "both"):
        value = replace(READ, reads=reads)
        for a, b in zip(value.documents(shop, lm), value.documents(later, lm), strict=True):
            assert [x.tobytes() for x in a] == [x.tobytes() for x in b]
    assert w1_sequences(shop, "test").item.tolist() == w1_sequences(later, "test").item.tolist()
    assert not shop.events["item"].equals(later.events["item"])


def test_shuffled_histories_are_the_same_texts_elsewhere(shop: Log, lm: LM) -> None:
    told, held = READ.documents(shop, lm)
    mixed, apart = replace(READ, shuffled=True).documents(shop, lm)
    assert [x.tobytes() for x in held] == [x.tobytes() for x in apart]
    assert sorted(np.concatenate(told)) == sorted(np.concatenate(mixed))
    assert len({x.tobytes() for x in told} & {x.tobytes() for x in mixed}) < 3
    between = int(lm.words([BETWEEN], 8)[0][-1])
    lengths = [sorted((x == between).sum() for x in texts) for texts in (told, mixed)]
    assert lengths[0] == lengths[1]


def test_several_logs_and_catalogues_are_read_together(
    shop: Log, lm: LM, tmp_path: Path
) -> None:
    other = make_shop(n_users=20, seed=3)
    other.write(tmp_path / "other")
    items = pl.DataFrame({"item_id": ["x", "y"], "title": ["amber spatula", None]})
    Catalogue.make(items, {"name": "alone", "has": {"text": True}}).write(tmp_path / "alone")
    both = replace(READ, logs=(str(tmp_path / "other"),))
    expected = all_documents(READ, shop, lm) + all_documents(READ, other, lm)
    assert all_documents(both, shop, lm) == sorted(expected)
    alone = replace(READ, logs=(str(tmp_path / "alone"),))
    texts = all_documents(replace(READ, reads="items"), shop, lm)
    spatula = np.r_[lm.bos, lm.words(["amber spatula"], 24)[0]].tobytes()
    assert all_documents(replace(alone, reads="items"), shop, lm) == sorted([*texts, spatula])
    together = sorted([*texts, *all_documents(READ, shop, lm)])
    assert all_documents(replace(READ, reads="both"), shop, lm) == together
    with pytest.raises(KarmafunnelError, match=r"needs histories, found items alone in .* alone"):
        alone.ready(shop, None, silent, "cpu")
    with pytest.raises(KarmafunnelError, match=r"nowhere: needs a log folder"):
        replace(READ, logs=(str(tmp_path / "nowhere"),)).ready(shop, None, silent, "cpu")


# -- training --------------------------------------------------------------------------------------


def test_histories_lower_the_perplexity_of_other_users(shop: Log, lm: LM, cache: Path) -> None:
    before = {name: x.clone() for name, x in weights(lm).items()}
    read = READ.ready(shop, cache, silent, "cpu")
    facts = read.facts["language"]
    assert facts["held_out"] == 1
    assert facts["perplexity_after"] < facts["perplexity_before"] / 2
    assert read.facts["texts"] == lm.facts["texts"]  # the base's own are kept beside
    assert all(torch.equal(x, weights(lm)[name]) for name, x in before.items())
    assert not same(read, lm)


def test_language_training_goes_on_bit_for_bit(
    shop: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("whole", "cut"):
        TINY.ready(shop, tmp_path / folder, silent, "cpu")
    monkeypatch.setattr(backbones, "SAVE_EVERY", 7)
    whole = READ.ready(shop, tmp_path / "whole", silent, "cpu")
    real, steps = torch.nn.utils.clip_grad_norm_, []

    def power_cut(*args: object, **kwargs: object) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 25:
            raise RuntimeError("power cut")
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(backbones.nn.utils, "clip_grad_norm_", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        READ.ready(shop, tmp_path / "cut", silent, "cpu")
    monkeypatch.setattr(backbones.nn.utils, "clip_grad_norm_", real)
    said: list[str] = []
    again = READ.ready(shop, tmp_path / "cut", said.append, "cpu")
    assert "language training goes on after step 21 of 46" in said
    assert same(whole, again)
    names = sorted(x.name for x in (tmp_path / "cut").iterdir())
    assert names == sorted(x.name for x in (tmp_path / "whole").iterdir()) and len(names) == 2
    said.clear()
    kept = READ.ready(shop, tmp_path / "cut", said.append, "cpu")
    assert not said and same(kept, whole) and kept.facts["language"] == again.facts["language"]
    # without a cache the same, too
    assert same(READ.ready(shop, None, silent, "cpu"), whole)


def test_it_is_kept_by_what_it_reads(shop: Log, tmp_path: Path) -> None:
    def made() -> int:
        return len(list((tmp_path / "cache").glob("language-*")))

    few = replace(READ, tokens=256)
    other = make_shop(n_users=20, seed=3)
    for folder in ("here", "there"):
        other.write(tmp_path / folder)
        value = replace(few, logs=(str(tmp_path / folder),))
        value.ready(shop, tmp_path / "cache", silent, "cpu")
    assert made() == 1
    make_shop(n_users=20, seed=4).write(tmp_path / "there", force=True)
    value.ready(shop, tmp_path / "cache", silent, "cpu")
    assert made() == 2
    replace(value, backbone=replace(TINY, seed=1)).ready(shop, tmp_path / "cache", silent, "cpu")
    assert made() == 3


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_language_training_stops_at_its_step(
    broken: str, shop: Log, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TINY.ready(shop, tmp_path, silent, "cpu")
    real, steps = backbones.F.cross_entropy, []

    def breaks(*args: object, **kwargs: object) -> torch.Tensor:
        loss = real(*args, **kwargs)  # type: ignore[arg-type]
        if loss.requires_grad:
            steps.append(1)
            if len(steps) == 9 and broken == "gradient":
                loss.register_hook(lambda slope: slope * math.nan)
        return loss * math.nan if len(steps) == 9 and broken == "loss" else loss

    monkeypatch.setattr(backbones, "SAVE_EVERY", 4)
    monkeypatch.setattr(backbones.F, "cross_entropy", breaks)
    with pytest.raises(
        KarmafunnelError,
        match=r"LanguageFirst.*finite loss, found .* in step 9 of language training; the last good",
    ):
        READ.ready(shop, tmp_path, silent, "cpu")
    assert [x.name[-20:] for x in tmp_path.glob("language-*")] == [".partial.safetensors"]


def test_a_head_that_says_nothing_is_healed(
    shop: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., LM] = Qwen.ready

    def cut(self: Qwen, *args: object) -> LM:
        lm = real(self, *args)
        lm.speaks = False
        with torch.no_grad():  # worse than a guess
            lm.model.get_input_embeddings().weight.mul_(30)
        return lm

    monkeypatch.setattr(Qwen, "ready", cut)
    for tokens, speaks in ((0, False), (20_000, True)):
        value = replace(READ, tokens=tokens, rate=3e-2)
        for _ in range(2):  # made, then kept
            lm = value.ready(shop, tmp_path, silent, "cpu")
            assert lm.speaks is speaks
            assert lm.fresh().speaks is speaks
            assert (lm.facts["language"]["perplexity_after"] < lm.vocab) is speaks
    assert [held_out(n) for n in (1, 2, 20, 100, 10_000)] == [0, 1, 1, 3, 256]
    # what no document has shown is not taken for healed
    lm = READ.train(cut(TINY, shop, tmp_path, silent, "cpu"), [np.arange(40)], [], None, silent)
    assert math.isnan(lm.facts["language"]["perplexity_after"]) and not lm.speaks


# -- KARMA after it --------------------------------------------------------------------------------


@pytest.mark.parametrize("items", ["frozen", "trained"])
def test_karma_trains_what_has_read(items: str, shop: Log, cache: Path, tmp_path: Path) -> None:
    value = KARMA(
        backbone=READ, dim=32, epochs=1, length=8, batch=8, items=items, loss=InBatch(), rec=0.1
    )
    assert eval(repr(value)) == value
    fitted, requests = value.fit(shop, seed=0, cache=cache), shop.requests_in("W3")
    assert fitted.facts["backbone"]["language"]["tokens"] == READ.tokens
    before = replace(value, backbone=TINY).fit(shop, seed=0, cache=cache)
    assert fitted.items().tobytes() != before.items().tobytes()
    fitted.save(tmp_path / "kept")
    loaded = value.load(tmp_path / "kept", shop)
    assert loaded.interests(requests).tobytes() == fitted.interests(requests).tobytes()
    assert np.isfinite(FrozenLM(backbone=READ).fit(shop, cache=cache).items()).all()


def test_low_rank_updates_of_language_and_of_action(
    shop: Log, cache: Path, tmp_path: Path
) -> None:
    small = replace(TINY, lora=2)
    assert eval(repr(small)) == small
    base = small.ready(shop, cache, silent, "cpu")
    assert base.lora == 2 and same(base, TINY.ready(shop, cache, silent, "cpu"))
    read = replace(READ, backbone=small)
    lm = read.ready(shop, cache, silent, "cpu")
    assert lm.lora == 2 and not hasattr(lm.model, "merge_and_unload")
    trained = {name for name, x in weights(lm).items() if not torch.equal(x, weights(base)[name])}
    assert trained and not any("embed" in name or "norm" in name for name in trained)
    value = KARMA(backbone=read, dim=32, epochs=1, length=8, batch=8)
    fitted, requests = value.fit(shop, seed=0, cache=cache), shop.requests_in("W3")
    after = dict(fitted.network.lm.model.state_dict())
    moved = {name for name, x in weights(lm).items() if not torch.equal(x, after[name])}
    assert moved == trained
    fitted.save(tmp_path / "kept")
    loaded = value.load(tmp_path / "kept", shop)
    assert loaded.interests(requests).tobytes() == fitted.interests(requests).tobytes()


def test_each_order_is_tried_as_often(shop: Log) -> None:
    order = load_recipe("karma_order", shop)
    assert order.against in order.rows
    kinds = [name.rpartition(", rate ")[0] for name in load_recipe("karma_order_trials", shop).rows]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        name: len(karma_order_trials.RATES) for name in order.rows if ":" in name
    }
    assert set(karma_order.CHOSEN) <= set(order.rows)
    assert set(karma_order.CHOSEN.values()) <= set(karma_order_trials.RATES)


def test_values_of_language_that_are_refused(shop: Log) -> None:
    for wrong, message in (
        ({"backbone": 3}, "backbone needs Qwen"),
        ({"reads": "queries"}, "reads needs 'histories', 'items' or 'both'"),
        ({"reads": "items", "shuffled": True}, "shuffled needs histories"),
        ({"tokens": -1}, "tokens"),
        ({"context": 0}, "context"),
        ({"rate": math.nan}, "rate"),
    ):
        with pytest.raises(KarmafunnelError, match=message):
            replace(READ, **wrong)
    with pytest.raises(KarmafunnelError, match="needs a model that reads 5000 tokens"):
        replace(READ, context=5000).ready(shop, None, silent, "cpu")
