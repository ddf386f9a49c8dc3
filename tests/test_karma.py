"""KARMA: what may see what, losses against slow references, resuming to the same bytes, readings,
diagnostics.
"""

import itertools
import json
import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.files import say, seal
from karmafunnel.log import Catalogue, Log
from karmafunnel.models import diagnostics as diagnose
from karmafunnel.models import weights
from karmafunnel.models.embedders import Cooccurrence, Embedder, TfidfSVD, known_in_w1, unit_rows
from karmafunnel.models.karma import (
    KARMA,
    Checkpoint,
    Column,
    Cosine,
    Diffusion,
    Direct,
    FlowMatching,
    FrozenLM,
    InBatch,
    LanguageFirst,
    MaskedNCE,
    Pairwise,
    Pretrained,
    Qwen,
    SelfSupervised,
    SentenceEncoder,
    Softmax,
    action,
    losses,
    sequences,
)
from karmafunnel.models.karma import backbone as backbones
from karmafunnel.models.karma import checkpoint as checkpoints
from karmafunnel.models.karma import embedder as embedding
from karmafunnel.models.karma import train as training
from karmafunnel.models.karma.backbone import LM, causal, perplexity, pooled
from karmafunnel.models.karma.network import Network
from karmafunnel.models.karma.sequences import INT, lay_out, serving_trees, training_trees
from karmafunnel.models.karma.visual import visual_features
from karmafunnel.models.karma.visual_losses import VectorLoss
from karmafunnel.models.training import Snapshot
from karmafunnel.simulator.measure.run import Run
from karmafunnel.simulator.replay.options import RunOptions
from karmafunnel.simulator.replay.recipe import load_recipe
from karmafunnel.simulator.replay.replay import replay
from karmafunnel.simulator.report.request_page import look_up
from karmafunnel.stages.context import Context
from karmafunnel.stages.stage import fit_embedders
from PIL import Image
from power_cut import power_cut
from safetensors.torch import load_file, save_file
from shop import make_shop
from tiny_models import write_vision_model
from torch.nn import functional as F

pytestmark = pytest.mark.slow

TINY = Qwen(
    dim=32, layers=2, heads=2, kv_heads=1, mlp=64, vocab=400, context=32, tokens=4000, batch=4
)
SMALL = KARMA(backbone=TINY, dim=32, epochs=2, length=8, batch=8)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def lm(shop: Log, cache: Path) -> LM:
    return TINY.ready(shop, cache, lambda _: None, "cpu")


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
        dim=-1,
    )


# -- the backbone ----------------------------------------------------------------------------------


def test_no_text_is_more_of_what_is_read_than_a_block() -> None:
    """One of 8,000 words would be most of the stream, of which each item is read by few words."""
    texts = [f"lamp {i} of wood" for i in range(40)]
    read = TINY.pretrain([*texts, "a long title " * 2000], None, lambda _: None, "cpu").facts
    most = TINY.pretrain(texts, None, lambda _: None, "cpu").facts["distinct_tokens"]
    assert most - 40 < read["distinct_tokens"] < 2 * most + TINY.context


def test_pretraining_lowers_the_perplexity_of_unseen_texts(shop: Log, cache: Path) -> None:
    facts = replace(TINY, tokens=20_000).ready(shop, cache, lambda _: None, "cpu").facts
    assert facts["held_out"] > 0 and facts["perplexity_after"] < facts["perplexity_before"] / 4


def test_pretraining_goes_on_bit_for_bit(
    shop: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "SAVE_EVERY", 7)
    whole = TINY.ready(shop, tmp_path / "whole", lambda _: None, "cpu")
    real, steps = losses.F.cross_entropy, []

    def power_cut(*args: object, **kwargs: object) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 25:
            raise RuntimeError("power cut")
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(backbones.F, "cross_entropy", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        TINY.ready(shop, tmp_path / "cut", lambda _: None, "cpu")
    monkeypatch.setattr(backbones.F, "cross_entropy", real)
    said: list[str] = []
    again = TINY.ready(shop, tmp_path / "cut", said.append, "cpu")
    assert any("goes on after step" in message for message in said)
    for (name, a), (_, b) in zip(
        whole.model.state_dict().items(), again.model.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    assert len(list((tmp_path / "cut").iterdir())) == 1  # the checkpoint is gone, the base is there


def test_perplexity_is_exp_of_mean_nats(lm: LM) -> None:
    texts = ["amber thing3 model8", "flint"]
    nats = []
    for text in texts:
        ids = [lm.bos, *lm.tokenizer.encode(text).ids]
        with torch.no_grad():
            log_p = lm.model(torch.tensor([ids])).logits.log_softmax(-1)[0]
        nats += [-float(log_p[i, ids[i + 1]]) for i in range(len(ids) - 1)]
    assert perplexity(lm, texts, 24) == pytest.approx(math.exp(np.mean(nats)), rel=1e-4)


def test_pooled_vectors_do_not_hang_on_their_neighbours(lm: LM) -> None:
    texts = ["amber thing3", "", "birch thing10 model99 and much more to say"]
    together = pooled(lm, texts, 12)
    alone = np.concatenate([pooled(lm, [text], 12) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert (together[1] == 0).all() and (together[0] != 0).any()


def test_text_longer_than_asked_is_cut(lm: LM) -> None:
    ids, lengths = lm.encode(["amber " * 100, "amber"], 5)
    assert ids.shape == (2, 5)
    assert lengths[0] == 5
    assert lengths[1] < 5
    assert ids[1, -1] == lm.pad


def save_checkpoint(folder: Path, kind: str, tokenizer: bool = True, context: int = 128) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    words = backbones.byte_pairs(["amber birch coral thing model"] * 5, 300)
    size = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    if kind == "gpt2":
        size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": context}
    config = AutoConfig.for_model(kind, vocab_size=words.get_vocab_size(), **size)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    if tokenizer:
        PreTrainedTokenizerFast(
            tokenizer_object=words, bos_token=backbones.BOS, eos_token=backbones.BOS
        ).save_pretrained(folder)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
def test_any_causal_lm_from_a_folder(kind: str, shop: Log, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "lm", kind)
    value = replace(
        SMALL, backbone=Checkpoint(str(tmp_path / "lm")), dim=16, epochs=1, gen=0.1, rec=0.1
    )
    fitted = value.fit(shop, seed=1)
    requests = shop.requests_in("W3")
    assert np.linalg.norm(fitted.interests(requests), axis=1) == pytest.approx(
        np.ones(len(requests)), abs=1e-5
    )
    fitted.save(tmp_path / "kept")
    assert (
        value.load(tmp_path / "kept", shop).interests(requests).tobytes()
        == fitted.interests(requests).tobytes()
    )


def test_low_rank_updates(shop: Log, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra `lora`")
    save_checkpoint(tmp_path / "lm", "qwen3")
    value = replace(SMALL, backbone=Checkpoint(str(tmp_path / "lm"), lora=2), dim=16, epochs=1)
    base = value.backbone.ready(shop, None, lambda _: None, "cpu")
    learnt = [name for name, p in base.fresh().model.named_parameters() if p.requires_grad]
    assert learnt and all("lora" in name for name in learnt)
    fitted = value.fit(shop, seed=1)
    requests = shop.requests_in("W3")
    fitted.save(tmp_path / "kept")
    again = value.load(tmp_path / "kept", shop)
    assert again.interests(requests).tobytes() == fitted.interests(requests).tobytes()
    assert not any("lora" in name for name in fitted.tensors())


def test_checkpoints_that_cannot_be_read(
    shop: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    save_checkpoint(tmp_path / "bare", "qwen3", tokenizer=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    save_checkpoint(tmp_path / "odd", "llama")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))
    for source in ("bare", "other", "odd"):
        with pytest.raises(KarmafunnelError, match="needs a causal LM with its tokenizer"):
            replace(SMALL, backbone=Checkpoint(str(tmp_path / source))).fit(shop)

    save_checkpoint(tmp_path / "mixed", "gpt2")  # one kind's weights under another kind's config
    save_checkpoint(tmp_path / "right", "qwen3")
    (tmp_path / "mixed" / "config.json").write_bytes(
        (tmp_path / "right" / "config.json").read_bytes()
    )
    save_checkpoint(tmp_path / "masked", "bert")
    config = json.loads((tmp_path / "masked" / "config.json").read_text())
    (tmp_path / "masked" / "config.json").write_text(
        json.dumps(config | {"architectures": ["BertForMaskedLM"]})
    )
    save_checkpoint(tmp_path / "torn", "qwen3")
    whole = (tmp_path / "torn" / "model.safetensors").read_bytes()
    (tmp_path / "torn" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    for source, found in (
        ("mixed", "without lm_head.*missing"),
        ("masked", "weights of BertForMaskedLM"),
        ("torn", r"cut off or damaged, .*torn.model\.safetensors"),
    ):
        with pytest.raises(KarmafunnelError, match=rf"{source}.*needs a causal LM") as raised:
            replace(SMALL, backbone=Checkpoint(str(tmp_path / source))).fit(shop)
        assert re.search(found, raised.value.found)

    right = Checkpoint(str(tmp_path / "right"))
    for wrong, message in (
        ({"lora": -1}, "lora needs a whole number from 0"),
        ({"dtype": "float8"}, "dtype needs"),
    ):
        with pytest.raises(KarmafunnelError, match=message):
            replace(right, **wrong)  # type: ignore[arg-type]


def test_histories_longer_than_the_context_are_refused(shop: Log, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "lm", "gpt2")  # reads 128 tokens
    backbone = Checkpoint(str(tmp_path / "lm"))
    fits = replace(
        SMALL, backbone=backbone, dim=16, epochs=1, length=85, query_words=16, text_words=24
    )
    assert np.isfinite(fits.fit(shop).items()).all()
    with pytest.raises(
        KarmafunnelError, match="needs a model that reads 129 tokens, found a context of 128"
    ):
        replace(fits, length=86).fit(shop)
    with pytest.raises(KarmafunnelError, match="needs a model that reads 201 tokens"):
        FrozenLM(backbone=backbone, text_words=200).fit(shop)
    # the base's attention, too, is read within it
    save_checkpoint(tmp_path / "short", "gpt2", context=32)
    short = replace(
        SMALL,
        backbone=Checkpoint(str(tmp_path / "short")),
        dim=16,
        epochs=1,
        length=4,
        query_words=2,
        text_words=6,
    )
    assert 0 <= short.fit(shop).facts["base"]["column entropy"] <= 1


def test_bfloat16_survives_saving(shop: Log, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "lm", "qwen3")
    value = replace(
        SMALL,
        backbone=Checkpoint(str(tmp_path / "lm"), dtype="bfloat16"),
        dim=16,
        epochs=1,
        rec=0.1,
    )
    fitted = value.fit(shop, seed=1)
    assert fitted.network.lm.dtype == torch.bfloat16
    requests = shop.requests_in("W3")
    fitted.save(tmp_path / "kept")
    again = value.load(tmp_path / "kept", shop)
    assert again.network.lm.dtype == torch.bfloat16
    assert again.interests(requests).tobytes() == fitted.interests(requests).tobytes()


@pytest.mark.parametrize("which", ["karma", "frozen", "base"])
def test_weights_that_are_not_all_there(which: str, shop: Log, cache: Path, tmp_path: Path) -> None:
    value = FrozenLM(backbone=TINY) if which == "frozen" else replace(SMALL, epochs=1)
    file = tmp_path / "kept" / "tensors.safetensors"
    if which == "base":
        TINY.ready(shop, tmp_path, lambda _: None, "cpu")
        (file,) = tmp_path.glob("base-*.safetensors")
    else:
        value.fit(shop, cache=cache).save(tmp_path / "kept")
    tensors = load_file(file)
    tensors.pop(next(name for name in sorted(tensors) if name.endswith("q_proj.weight")))
    if which == "base":
        replace(Snapshot.read(file), tensors=tensors).write(file)
    else:
        save_file(tensors, file)
        seal(file.parent)
    with pytest.raises(
        KarmafunnelError, match=r"needs all weights, found none of .*q_proj\.weight \(1 missing\)"
    ):
        value.fit(shop, cache=tmp_path) if which == "base" else value.load(tmp_path / "kept", shop)


def test_some_items_without_text(shop: Log, cache: Path) -> None:
    """They are their ids where W1 met them, nothing where it did not, and the rest is as ever."""
    events = shop.events
    met = np.unique(
        events["item"].to_numpy()[
            (shop.requests["window"] == "W1").to_numpy()[events["request"].to_numpy()]
        ]
    )
    never = np.setdiff1d(np.arange(shop.n_items), met)
    assert len(never)
    bare = {int(met[0]), int(never[0])}
    items = shop.items.with_columns(
        pl.when(pl.int_range(pl.len()).is_in(list(bare)))
        .then(None)
        .otherwise(pl.col(name))
        .alias(name)
        for name in ("title", "brand", "category", "attributes")
    )
    log = Log.make(items, shop.requests, shop.exposures, shop.meta)
    assert [i for i, text in enumerate(log.item_text()) if not text.strip()] == sorted(bare)
    fitted = replace(SMALL, rec=0.3, epochs=1).fit(log, cache=cache)
    there = np.linalg.norm(fitted.items(), axis=1)
    assert there[met[0]] == pytest.approx(1) and there[never[0]] == 0
    # never a target: told by its text
    assert there[never[1:]] == pytest.approx(np.ones(len(never) - 1))
    assert np.isfinite(fitted.interests(log.requests_in("W3"))).all()
    assert not replace(SMALL, ids=False, epochs=1).fit(log, cache=cache).items()[met[0]].any()


def test_items_without_text(shop: Log) -> None:
    bare = Log.make(
        shop.items.with_columns(
            pl.lit(None, pl.String).alias("title"),
            pl.lit(None, pl.List(pl.String)).alias("attributes"),
        ),
        shop.requests,
        shop.exposures,
        shop.meta,
    )
    for value in (SMALL, FrozenLM(backbone=TINY)):
        with pytest.raises(KarmafunnelError, match="needs item text"):
            value.fit(bare)


# -- what sees what --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("residual", "beside", "loss"),
    [
        (False, (), Softmax()),
        (True, (), Softmax()),
        (True, (TfidfSVD(dim=16),), Softmax()),
        (False, (TfidfSVD(dim=16), FrozenLM(TINY, after="half-whitening", dim=8)), Softmax()),
        (True, (TfidfSVD(dim=16),), Pairwise()),
    ],
)
def test_a_tree_gives_each_request_what_it_gets_alone(
    shop: Log, cache: Path, residual: bool, beside: tuple[Embedder, ...], loss: action.ActionLoss
) -> None:
    """Training's shared trunk and serving's one row a request are the same function."""
    fitted = replace(SMALL, residual=residual, beside=beside, loss=loss, epochs=1).fit(
        shop, seed=0, cache=cache
    )
    trees = training_trees(shop, 8)
    pieces = np.arange(len(trees.start))
    branches, row = trees.branches(pieces)
    lm = fitted.network.lm
    queries = training.word_ids(lm, sequences.request_texts(shop, trees.request[branches]), 16)
    with torch.no_grad():
        batch = lay_out(trees, pieces, queries, lm.bos)
        words = None
        if fitted.beside:
            words = torch.from_numpy(
                training.asked_words(fitted.beside, shop, trees.request[branches])
            )
        together = fitted.network.z(
            fitted.network(batch, fitted._x), batch, fitted._x, words
        ).numpy()
    alone = fitted.interests(trees.request[branches])
    # a piece starts at its user's first event unless the history is longer than a piece; there the
    # two windows differ
    first = {}
    for piece, start in zip(row, trees.start[pieces][row], strict=True):
        owner = shop.user[trees.request[branches[np.flatnonzero(row == piece)[0]]]]
        first[owner] = min(first.get(owner, start), start)
    same = [
        trees.start[pieces[r]] == first[shop.user[trees.request[b]]] and trees.seen[b] <= 8
        for b, r in zip(branches, row, strict=True)
    ]
    assert sum(same) > 50
    np.testing.assert_allclose(together[same], alone[same], atol=2e-5)


@pytest.mark.parametrize("narrow", [0, 10_000])
def test_an_interest_does_not_hang_on_its_batch(
    shop: Log, cache: Path, narrow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are read beside those of similar length, by wide models few at a time; each gets
    what it gets in one row of all cells.
    """
    fitted = replace(SMALL, epochs=1, beside=(TfidfSVD(dim=16),)).fit(shop, seed=0, cache=cache)
    requests = shop.requests_in("W3")[:90]
    monkeypatch.setattr(embedding, "NARROW", narrow)
    monkeypatch.setattr(embedding, "WIDTH", 4)
    found = fitted.interests(requests)
    order = np.random.default_rng(0).permutation(len(requests))
    assert fitted.interests(requests[order]).tobytes() == found[order].tobytes()
    for i in (0, 41, 89):
        assert fitted.interests(requests[i : i + 1]).tobytes() == found[i : i + 1].tobytes()
    monkeypatch.setattr(embedding, "CHUNK", 7)
    assert fitted.interests(requests).tobytes() == found.tobytes()
    shapes = set()
    forward = fitted.network.forward
    monkeypatch.setattr(
        fitted.network, "forward", lambda b, x: shapes.add(tuple(b.kind.shape)) or forward(b, x)
    )
    fitted.interests(requests)
    assert len({width for _, width in shapes}) > 1  # short ones are not padded to the longest
    assert {rows for rows, _ in shapes} == {64 if narrow else 8}
    monkeypatch.setattr(embedding, "WIDTH", 1000)
    np.testing.assert_allclose(fitted.interests(requests), found, atol=2e-6)


def test_cells_see_the_past_of_their_request_alone(shop: Log, lm: LM) -> None:
    """Gradient of an interest with respect to what a request may not see is exactly 0."""
    trees = training_trees(shop, 8)
    piece = int(np.argmax(np.bincount(trees.piece)))
    branches, _ = trees.branches(np.array([piece]))
    batch = lay_out(
        trees,
        np.array([piece]),
        [np.array([5, 6])] * len(branches),
        lm.bos,
        [np.array([7, 8, 9])] * len(branches),
    )
    cells = torch.randn(
        *batch.kind.shape, lm.dim, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    hidden = lm.hidden(cells, batch.mask, batch.position)[0]
    for b, branch in enumerate(branches):
        at = int(batch.interest[b])
        (gradient,) = torch.autograd.grad(hidden[at].sum(), cells, retain_graph=True)
        seen = set(np.flatnonzero(gradient[0].abs().sum(dim=1).numpy()).tolist())
        assert seen == {*range(int(trees.seen[branch]) + 1), at - 2, at - 1, at}
        assert batch.kind[0, at] == INT
    # gen: the text's first token is told by BOS, which sees no token of the text
    text = batch.text[0]
    (gradient,) = torch.autograd.grad(hidden[int(text[0])].sum(), cells, retain_graph=True)
    assert (gradient[0, text[1:]] == 0).all() and (gradient[0, int(batch.interest[0])] != 0).any()


def test_the_residual_is_the_decayed_mean_of_what_a_request_sees(shop: Log, lm: LM) -> None:
    trees = training_trees(shop, 8)
    pieces = np.arange(12)
    branches, row = trees.branches(pieces)
    batch = lay_out(
        trees,
        pieces,
        [np.array([5, 6])] * len(branches),
        lm.bos,
        [np.array([7, 8])] * len(branches),
    )
    network = Network(lm, 16, 4, 0, 0, 0.0, 10.0, residual=True)
    x = torch.randn(shop.n_items, 16, generator=torch.Generator().manual_seed(0))
    found = network.recent(batch, x, torch.tensor(0.3)).numpy()
    e = (x / x.norm(dim=1, keepdim=True)).numpy()
    assert (trees.seen[branches] == 0).any() and (trees.seen[branches] > 1).any()
    for b, branch in enumerate(branches):
        start, n = trees.start[pieces[row[b]]], trees.seen[branch]
        mean = sum(
            (np.exp(-0.3 * (n - 1 - j)) * e[trees.item[start + j]] for j in range(n)), np.zeros(16)
        )
        np.testing.assert_allclose(found[b], mean / max(np.linalg.norm(mean), 1e-12), atol=1e-5)


def test_words_of_a_query_move_its_interest_to_items_that_have_them(
    shop: Log, tmp_path: Path, cache: Path
) -> None:
    words = TfidfSVD(dim=16)
    value = replace(SMALL, beside=(words, FrozenLM(TINY, dim=8, after="whitening")), dim=48)
    fitted, alone = value.fit(shop, cache=cache), words.fit(shop)
    np.testing.assert_array_equal(fitted.beside[0].items(), alone.items())
    requests = shop.requests_in("W3")
    asked = training.asked_words((alone,), shop, requests)  # of query and filters
    with_words = np.abs(asked).sum(axis=1) > 0
    assert with_words.any() and not with_words.all()
    same_words = asked @ alone.items().T
    with torch.no_grad():
        fitted.network.asked_weight.fill_(-20.0)  # softplus: next to nothing
        without = fitted.interests(requests) @ fitted.items().T
        fitted.network.asked_weight.fill_(5.0)
        within = fitted.interests(requests) @ fitted.items().T
    near = [
        np.corrcoef(same_words[r], moved[r])[0, 1]
        for moved in (without, within)
        for r in np.flatnonzero(with_words)
    ]
    before, after = np.array(near).reshape(2, -1).mean(axis=1)
    assert after > before + 0.1
    # without a query: as if there were no words
    np.testing.assert_array_equal(without[~with_words], within[~with_words])

    fitted.save(tmp_path / "kept")
    assert (
        value.load(tmp_path / "kept", shop).interests(requests).tobytes()
        == fitted.interests(requests).tobytes()
    )


def test_no_request_is_trained_on_what_came_with_it_or_later(shop: Log) -> None:
    trees = training_trees(shop, 8)
    events = shop.events
    when = {}
    for item, request in zip(events["item"].to_list(), events["request"].to_list(), strict=True):
        when.setdefault((int(shop.user[request]), item), []).append(int(shop.t[request]))
    for b in range(len(trees.request)):
        request = int(trees.request[b])
        start = trees.start[trees.piece[b]]
        for item in trees.item[start : start + trees.seen[b]]:
            assert min(when[int(shop.user[request]), int(item)]) < shop.t[request]
    assert set(shop.requests["window"].gather(trees.request).to_list()) == {"W1"}


def test_serving_trees_are_the_history(shop: Log) -> None:
    requests = shop.requests_in("W3")[:20]
    past = shop.asof.history(requests, 8)
    trees = serving_trees(shop, requests, 8)
    for i in range(len(requests)):
        mine = trees.item[trees.start[i] : trees.start[i] + trees.size[i]]
        np.testing.assert_array_equal(mine, past.items[i][past.items[i] >= 0])


@pytest.mark.parametrize("decoder", ["bow", "masked", "lm"])
def test_rec_cannot_see_the_history(
    decoder: str, shop: Log, lm: LM, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a step of training: `rec` moves what makes history tokens through z, and with z held still
    not at all; `gen` does.
    """
    value = replace(SMALL, rec=1.0, gen=1.0, decoder=decoder, ids=False)  # type: ignore[arg-type]
    features = value.features(shop, lm, cache, 0, lambda _: None, "cpu")
    trainee, _ = value.trainee(shop, lm, features, 0, None)
    made_by = [
        trainee.network.token.weight,
        trainee.network.action.weight,
        trainee.network.text.weight,
        trainee.network.ask,
    ]

    def slopes(name: str) -> list[torch.Tensor | None]:
        found = trainee(np.arange(8), np.random.default_rng(0)).losses
        return list(torch.autograd.grad(found[name], made_by, allow_unused=True))

    assert all(slope is not None and slope.abs().sum() > 0 for slope in slopes("rec"))
    real = Network.z
    monkeypatch.setattr(Network, "z", lambda *args: real(*args).detach())
    assert slopes("rec") == [None] * 4
    assert all(slope is not None and slope.abs().sum() > 0 for slope in slopes("gen")[:3])


# -- losses ----------------------------------------------------------------------------------------


def test_bag_of_words_counts_each_word_once(lm: LM) -> None:
    decoder = losses.BagOfWords(lm, 32)
    z = torch.randn(2, 32)
    ids = torch.tensor([[5, 6, 5, 5, 0], [9, 0, 0, 0, 0]])
    there = torch.tensor([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    log_p = decoder.logits(lm, z).log_softmax(-1)
    expected = torch.stack([-(log_p[0, 5] + log_p[0, 6]) / 2, -log_p[1, 9]])
    torch.testing.assert_close(decoder(lm, z, ids, there), expected)


@pytest.mark.parametrize("kind", [losses.BagOfWords, losses.Autoregressive])
def test_padding_and_neighbours_do_not_matter_to_a_decoder(kind: type, lm: LM) -> None:
    decoder, z = kind(lm, 32), torch.randn(3, 32)
    ids, there = torch.randint(1, 300, (3, 6)), torch.arange(6) < torch.tensor([[6], [2], [4]])
    together = decoder(lm, z, ids, there)
    alone = torch.cat(
        [
            decoder(
                lm,
                z[i : i + 1],
                ids[i : i + 1, : int(there[i].sum())],
                there[i : i + 1, : int(there[i].sum())],
            )
            for i in range(3)
        ]
    )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_masked_decoder_is_asked_about_masked_words_alone(lm: LM) -> None:
    decoder = losses.Masked(lm, 32, share=0.5)
    there = torch.arange(8) < torch.tensor([[8], [3], [1], [0]])
    hidden = decoder.hide(there, torch.Generator().manual_seed(0))
    assert (hidden <= there).all() and hidden.any(dim=1).tolist() == [True, True, True, False]
    ids = torch.randint(1, 300, (4, 8))
    first = decoder(lm, torch.randn(4, 32), ids, there, torch.Generator().manual_seed(0))
    assert first.shape == (4,) and first[3] == 0


def test_true_texts_can_be_learnt_and_shuffled_ones_only_by_heart(lm: LM) -> None:
    """Held-out items: a decoder that learnt what z means tells their words; one that learnt
    shuffled texts does not.
    """
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 6, 240)
    z = F.normalize(
        torch.from_numpy(np.eye(32)[kinds] + 0.1 * rng.standard_normal((240, 32))).float(), dim=1
    )
    ids = torch.from_numpy(np.stack([20 + 3 * kinds + j for j in range(3)], axis=1))
    there = torch.ones_like(ids, dtype=torch.bool)
    held = {}
    for name, order in (("true", np.arange(200)), ("shuffled", rng.permutation(200))):
        torch.manual_seed(0)
        decoder = losses.BagOfWords(lm, 32)
        optimiser = torch.optim.Adam(decoder.parameters(), lr=0.02)
        for _ in range(80):
            optimiser.zero_grad()
            decoder(lm, z[:200], ids[order], there[:200]).mean().backward()
            optimiser.step()
        held[name] = decoder(lm, z[200:], ids[200:], there[200:]).mean().item()
    assert held["true"] < held["shuffled"] - 0.5


def test_lm_loss_is_the_mean_over_texts() -> None:
    logits, ids = torch.randn(2, 3, 7), torch.randint(0, 7, (2, 3))
    there = torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=torch.bool)
    nats = -logits.log_softmax(-1).gather(2, ids[..., None])[..., 0]
    expected = (nats[0].mean() + nats[1, 0]) / 2
    each = losses.each_text(logits, ids, there)
    torch.testing.assert_close(losses.lm_loss(each, there), expected)


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        replace(SMALL, gen=0.3),
        replace(SMALL, rec=0.3),
        replace(SMALL, rec=0.3, decoder="masked"),
        replace(SMALL, rec=0.3, decoder="lm"),
        replace(SMALL, action=0.0, rec=1.0),
        replace(SMALL, loss=InBatch()),
        replace(SMALL, loss=InBatch(logq=False), rec=0.1),
        replace(SMALL, loss=Pairwise(), rec=0.1),
        replace(SMALL, loss=Pairwise(), items="trained", ids=False, residual=False, gen=0.1),
        replace(SMALL, loss=Pairwise(cosine=True, temperature=0.1)),
        replace(SMALL, loss=MaskedNCE()),
        replace(SMALL, loss=Softmax(hard_weight=4.0), shuffled=True, rec=0.1),
        replace(SMALL, items="trained", loss=InBatch(), ids=False),
        replace(SMALL, share=0.5),
        replace(SMALL, generator=Direct(), gen=0.1),
    ],
    ids=repr,
)
def test_every_objective_learns(value: KARMA, shop: Log, cache: Path) -> None:
    fitted = value.fit(shop, seed=0, cache=cache)
    curve = fitted.facts["curve"]
    wanted = {"act"} | {name for name in ("gen", "rec") if getattr(value, name)}
    assert set(curve[0]) == wanted
    for name in wanted:
        if len(curve) > 1 and (name != "act" or value.action):
            assert curve[-1][name] < curve[0][name]
    requests = shop.requests_in("W3")
    assert np.isfinite(fitted.interests(requests)).all()


def test_pairs_that_masks_leave_without_negatives_are_told(shop: Log, cache: Path) -> None:
    """A batch of one user, masked at a cosine of 0, often has nothing left to be told from."""
    value = replace(SMALL, loss=MaskedNCE(mask=0.0, hard=0), batch=1, epochs=1)
    for _ in range(2):  # made, then kept
        said: list[str] = []
        facts = value.fit(shop, seed=0, progress=said.append, cache=cache).facts
        pairs, alone = facts["pairs"], facts["pairs without negatives"]
        clicks = shop.events["request"].is_in(shop.requests_in("W1").tolist())
        assert pairs == clicks.sum() and 0 < alone <= pairs
        line = next(x for x in facts["warnings"] if x.startswith(f"{alone:,} of {pairs:,} pairs had no"))
        assert said.count(f"KARMA: warning: {line}") == 1
    some = replace(value, loss=InBatch(), batch=8).fit(shop, seed=0, progress=said.append)
    assert "pairs without negatives" not in some.facts and "no negative" not in said[-1]


def test_a_collapse_is_told_once(shop: Log, tmp_path: Path) -> None:
    """At a rate that is far too high, a pairwise loss draws all interests together."""
    value = replace(SMALL, loss=Pairwise(), ids=False, residual=False, epochs=10, rate=1.0)
    said: list[str] = []
    fitted = value.fit(shop, progress=said.append)
    found = fitted.facts["collapse"]
    assert 50 < found["step"] <= fitted.facts["steps"]
    assert found["effective rank, interests"] < 5
    told = [line for line in said if "collapsed" in line]
    assert len(told) == 1 and "of 32 in step" in told[0] and "lower rate than 1, or gen and rec" in told[0]
    assert f"rank {found['effective rank, interests']:.1f}" in told[0]
    end = f", {found['at the end']:.1f} at the end"
    in_all = [f"KARMA: warning: {text}" for text in fitted.facts["warnings"] if "collapsed" in text]
    assert [line.replace(end, "") for line in in_all] == told
    # a watched fit sees it sooner, and knows the perplexity
    said.clear()
    watched = replace(value, watch=4).fit(shop, progress=said.append)
    assert watched.items().tobytes() == fitted.items().tobytes()
    sooner = watched.facts["collapse"]
    assert 50 < sooner["step"] <= found["step"] and sooner["step"] % 4 == 0
    row = next(row for row in watched.facts["watched"] if row["step"] == sooner["step"])
    assert sooner["perplexity given history"] == row["perplexity given history"]
    warning = next(line for line in said if "collapsed" in line)
    assert "perplexity given history" in warning
    # step by step, beside the embedding
    watched.save(tmp_path / "kept")
    steps = pl.read_csv(tmp_path / "kept" / "watched.csv").to_dicts()
    rows = watched.facts["watched"]
    assert [{k: x for k, x in step.items() if x is not None} for step in steps] == rows
    fitted.save(tmp_path / "plain")
    assert not (tmp_path / "plain" / "watched.csv").exists()
    # a fit that was killed just before finds the same
    with power_cut(found["step"]):
        value.fit(shop, cache=tmp_path / "cut")
    assert value.fit(shop, cache=tmp_path / "cut").facts["collapse"] == found
    # one that goes on after it, and one that was kept, say so, too
    with power_cut(found["step"] + 20):
        value.fit(shop, cache=tmp_path / "later")
    goes_on: list[str] = []
    value.fit(shop, progress=goes_on.append, cache=tmp_path / "later")
    assert [line for line in goes_on if "collapsed" in line] == told
    again: list[str] = []
    value.fit(shop, progress=again.append, cache=tmp_path / "cut")
    assert [line for line in again if "collapsed" in line] == in_all
    # and none at a rate that suits
    said.clear()
    healthy = replace(value, rate=1e-3).fit(shop, progress=said.append)
    assert "collapse" not in healthy.facts and not [x for x in said if "collapsed" in x]


def test_a_fit_of_few_steps_says_so(shop: Log, tmp_path: Path) -> None:
    """Also one that was kept; a longer one says nothing."""
    value, said = replace(SMALL, epochs=1), list[str]()
    for _ in range(2):
        facts = value.fit(shop, progress=said.append, cache=tmp_path).facts
        assert facts["steps"] < 100
        assert facts["warnings"] == [line.removeprefix("KARMA: warning: ") for line in said if "warning" in line]
        assert facts["warnings"][0].startswith(f"{facts['steps']} steps in all, and the rate rises to {value.rate:g} in")
        said.clear()
    long = replace(value, epochs=100 // facts["steps"] + 1)
    assert "warnings" not in long.fit(shop, progress=said.append, cache=tmp_path).facts
    assert not [line for line in said if "warning" in line]


def test_what_a_fit_must_tell_stays_on_the_screen(shop: Log, tmp_path: Path) -> None:
    """A warning, pairs without negatives, the perplexity before: no epoch overwrites them."""
    save_checkpoint(tmp_path / "lm", "llama")
    loss = MaskedNCE(mask=0.0, hard=0)
    value = replace(SMALL, backbone=Checkpoint(str(tmp_path / "lm")), ids=False, residual=False)
    value = replace(value, loss=loss, batch=1, epochs=2, rate=1.0)
    lines: list[str] = []
    context = Context(shop, progress=lines.append)
    fit_embedders({"interest": value}, context, None)
    assert len([line for line in lines if "perplexity" in line and "before training" in line]) == 1
    assert len([line for line in lines if "had no negative left" in line]) == 1
    assert len([line for line in lines if "warning: user embeddings collapsed" in line]) == 1
    assert len([line for line in lines if "warning" in line]) == 2
    assert not [line for line in lines if "epoch 1 of" in line]


def test_a_fit_that_is_watched_is_the_same_fit(shop: Log, lm: LM, cache: Path) -> None:
    value = replace(SMALL, loss=MaskedNCE(mask=0.3), epochs=1)
    plain = value.fit(shop, seed=0)
    watched = replace(value, watch=2).fit(shop, seed=0)
    assert watched.items().tobytes() == plain.items().tobytes()
    assert "watched" not in plain.facts
    rows = watched.facts["watched"]
    assert [row["step"] for row in rows] == list(range(2, watched.facts["steps"] + 1, 2))
    assert all(math.isfinite(x) for row in rows for x in row.values())
    assert all(0 <= row["negatives masked"] < 1 for row in rows)
    assert any(row["negatives masked"] > 0 for row in rows)
    assert json.loads(json.dumps(rows)) == rows
    # the first step, by hand: weights as they start
    features = value.features(shop, lm, cache, 0, lambda _: None, "cpu")
    trainee, _ = value.trainee(shop, lm, features, 0, None)
    step = trainee(np.arange(8), np.random.default_rng(0))
    figures, z = step.figures(), step.z.numpy()
    assert figures["length, interests"] == pytest.approx(1, abs=1e-5)
    assert figures["length, items"] == pytest.approx(
        np.linalg.norm(step.x.numpy(), axis=1).mean(), rel=1e-5
    )
    s = np.linalg.svd(z - z.mean(axis=0), compute_uv=False) ** 2
    assert figures["participation ratio, interests"] == pytest.approx(
        s.sum() ** 2 / (s**2).sum(), rel=1e-4
    )
    # the probe: what the fitted embedding says of the same requests, before the first step
    trainee, _ = replace(value, watch=2).trainee(shop, lm, features, 0, None)
    before = {name: x.clone() for name, x in trainee.network.state_dict().items()}
    found = trainee.figures()
    assert trainee.training and trainee.figures() == found
    assert found == pytest.approx({name: rows[0][name] for name in found}, abs=0.2, rel=0.5)
    batch, network = trainee.probe.batch, trainee.network.eval()
    plain_batch = replace(batch, text=None)
    hidden = network(plain_batch, trainee.vectors(trainee.probe.used))
    nats = []
    for row in batch.text.tolist():
        cells = [cell for cell in row if cell >= 0]
        for at, following in itertools.pairwise(cells):
            log_p = torch.log_softmax(lm.head(hidden.flatten(0, 1)[at]), dim=-1)
            nats.append(-log_p[batch.word.flatten()[following]].item())
    assert found["perplexity given history"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-4)
    each = [found[f"sink rate, first, layer {n}"] for n in (1, 2)]
    assert found["sink rate, first"] == pytest.approx(np.mean(each))
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())
    told = step.action
    share = told.masked.sum().item() / (told.masked.sum() + told.left.sum()).item()
    assert figures["negatives masked"] == pytest.approx(share)


def test_plain_inner_products_keep_their_lengths(shop: Log, cache: Path, tmp_path: Path) -> None:
    """In serving, too; decoders read the direction alone."""
    value = replace(SMALL, loss=Pairwise(), rec=0.3)
    fitted = value.fit(shop, seed=0, cache=cache)
    requests = shop.requests_in("W3")
    z, e = fitted.interests(requests), fitted.items()
    assert np.linalg.norm(z, axis=1).std() > 1e-3 and np.linalg.norm(e, axis=1).std() > 1e-3
    fitted.save(tmp_path / "kept")
    again = value.load(tmp_path / "kept", shop)
    assert again.interests(requests).tobytes() == z.tobytes()
    assert again.items().tobytes() == e.tobytes()
    assert again.read(requests) == fitted.read(requests)
    found = fitted.diagnose(requests)
    assert 0 <= found["alignment"] <= 4 and math.isfinite(found["perplexity given interest"])
    long, direction = 3 * torch.from_numpy(z), unit_rows(z)
    torch.testing.assert_close(fitted.network.direction(long).numpy(), direction, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "how", [Direct(), Diffusion(steps=8), FlowMatching(steps=4, history=True)], ids=repr
)
def test_a_generated_embedding_is_that_of_its_request(
    how: VectorLoss, shop: Log, cache: Path, tmp_path: Path
) -> None:
    value = replace(SMALL, generator=how, epochs=1)
    fitted = value.fit(shop, seed=0, cache=cache)
    requests = shop.requests_in("W3")
    found = fitted.interests(requests)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    # whoever else is asked for, and after saving
    assert found[3:5].tobytes() == fitted.interests(requests[3:5]).tobytes()
    fitted.save(tmp_path / "kept")
    loaded = value.load(tmp_path / "kept", shop)
    assert loaded.interests(requests).tobytes() == found.tobytes()
    # items stay as they start: they must not come to meet the generator
    untrained = replace(value, rate=1e-9, weight_decay=0.0).fit(shop, seed=0, cache=cache)
    assert untrained.items().tobytes() == fitted.items().tobytes()
    assert untrained.interests(requests).tobytes() != found.tobytes()


def test_karma_learns_what_users_like(shop: Log, cache: Path) -> None:
    """In the shop a user likes one kind in seven, and the query often says which."""
    fitted = replace(SMALL, epochs=6).fit(shop, seed=0, cache=cache)
    requests = shop.requests_in("W3")
    best = np.argsort(-fitted.interests(requests) @ fitted.items().T, axis=1)[:, :10]
    taste = np.array([int(user[1:]) % 7 for user in shop.requests["user_id"].gather(requests)])
    assert (best % 7 == taste[:, None]).mean() > 0.5  # one in seven by chance


def test_ids_start_where_items_met_among_the_users_trained_on(
    shop: Log, lm: LM, cache: Path
) -> None:
    warm = replace(SMALL, warm=True, share=0.5)
    features = warm.features(shop, lm, cache, 0, lambda _: None, "cpu")
    trainee, _ = warm.trainee(shop, lm, features, 0, None)
    users = np.unique(shop.user[trainee.examples.trees.request])
    mine = shop.requests.filter(pl.Series(np.isin(shop.user, users)))
    half = Log.make(
        shop.items,
        mine,
        shop.exposures.join(mine.select("request_id"), on="request_id", how="semi"),
        shop.meta,
    )
    wanted = unit_rows(Cooccurrence(dim=32, weighting="ppmi").fit(half).items())[
        trainee.examples.candidates
    ]
    started = trainee.network.ids.detach().numpy()
    # the axes of an SVD may be turned about
    assert np.allclose(started @ started.T, wanted @ wanted.T, atol=1e-4)
    assert 0.9 < np.linalg.norm(started, axis=1).mean() <= 1.001
    cold, _ = replace(warm, warm=False).trainee(shop, lm, features, 0, None)
    assert not cold.network.ids.any()


@pytest.mark.parametrize(
    "how",
    [
        {"loss": Softmax(), "rec": 0.1},
        {"loss": InBatch(), "rec": 0.1},
        {"loss": Pairwise(), "rec": 0.1},
        {"loss": Pairwise(cosine=True), "rec": 0.1},
        {"loss": MaskedNCE(mask=0.3), "rec": 0.1},
        {"generator": FlowMatching(steps=4, history=True)},
        {"schedule": "falling", "rec": 0.1, "decoder": "lm"},
        {"trained": 1, "loss": Pairwise(), "rec": 0.1},
        {"trained": 0, "schedule": "rising"},
    ],
    ids=repr,
)
def test_a_killed_fit_goes_on_bit_for_bit(how: dict, shop: Log, tmp_path: Path) -> None:
    value = replace(SMALL, gen=0.1, watch=3, **how)
    whole = value.fit(shop, seed=2, cache=tmp_path / "whole")
    with power_cut(7):
        value.fit(shop, seed=2, cache=tmp_path / "cut")
    said: list[str] = []
    again = value.fit(shop, seed=2, progress=said.append, cache=tmp_path / "cut")
    assert any("goes on after epoch 0, step 6" in message for message in said)
    assert again.items().tobytes() == whole.items().tobytes()
    facts = ("curve", "watched", "pairs", "pairs without negatives")
    assert [again.facts.get(x) for x in facts] == [whole.facts.get(x) for x in facts]


@pytest.mark.parametrize("trained", [None, 0, 1, 2])
def test_only_the_layers_asked_for_are_trained(
    trained: int | None, shop: Log, lm: LM, cache: Path
) -> None:
    value = replace(SMALL, gen=0.1, rec=0.1, decoder="lm", trained=trained, epochs=1)
    fitted = value.fit(shop, cache=cache)
    before = dict(lm.model.named_parameters())
    last = 0 if trained is None else trained
    layers = len(lm.layers()[2])
    moved = {
        name
        for name, p in fitted.network.lm.model.named_parameters()
        if not torch.equal(p, before[name])
    }
    if trained is None:
        assert "model.embed_tokens.weight" in moved
    else:
        free = {f"model.layers.{layers - 1 - i}." for i in range(last)}
        assert all(any(name.startswith(x) for x in free) for name in moved)
        assert all(any(name.startswith(x) for name in moved) for x in free)
    # the rest of the network is
    plain = replace(value, epochs=1, rate=1e-9).fit(shop, cache=cache)
    assert not torch.equal(fitted.network.interest.weight, plain.network.interest.weight)


def test_the_optimiser_holds_what_is_trained(shop: Log, lm: LM, cache: Path) -> None:
    value = replace(SMALL, trained=1)
    features = value.features(shop, lm, cache, 0, lambda _: None, "cpu")
    trainee, _ = value.trainee(shop, lm, features, 0, None)
    named = training.Trainer(trainee, 0, None, lambda _: None).named
    layers = len(lm.layers()[2])
    of_model = [name for name in named if name.startswith("network.model.")]
    assert of_model and all(f".layers.{layers - 1}." in name for name in of_model)
    with pytest.raises(KarmafunnelError, match=f"needs {layers + 1} layers to train, found {layers}"):
        replace(value, trained=layers + 1).trainee(shop, lm, features, 0, None)


@pytest.mark.parametrize(
    "schedule, weights", [("constant", [1, 1, 1]), ("falling", [1, 0.5, 0]), ("rising", [0, 0.5, 1])]
)
def test_a_schedule_weighs_the_language_objectives_alone(
    schedule: str, weights: list[float], shop: Log, lm: LM, cache: Path
) -> None:
    value = replace(SMALL, gen=0.3, rec=0.2, schedule=schedule)
    features = value.features(shop, lm, cache, 0, lambda _: None, "cpu")
    trainee, _ = value.trainee(shop, lm, features, 0, None)
    losses = {"act": torch.tensor(2.0), "gen": torch.tensor(3.0), "rec": torch.tensor(5.0)}
    for done, now in zip((0.0, 0.5, 1.0), weights, strict=True):
        assert float(trainee.total(losses, done)) == pytest.approx(2 + now * (0.3 * 3 + 0.2 * 5))


def test_a_schedule_runs_over_all_steps(
    shop: Log, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    real = training.Trainee.total

    def watched(self, losses, done):
        seen.append(done)
        return real(self, losses, done)

    monkeypatch.setattr(training.Trainee, "total", watched)
    fitted = replace(SMALL, gen=0.1, schedule="falling", epochs=2).fit(shop)
    steps = fitted.facts["steps"]
    assert seen == pytest.approx([i / steps for i in range(steps)])
    with pytest.raises(KarmafunnelError, match="schedule needs"):
        replace(SMALL, schedule="up")
    with pytest.raises(KarmafunnelError, match="trained needs"):
        replace(SMALL, trained=-1)


def test_a_fit_is_kept_with_its_settings(shop: Log, tmp_path: Path) -> None:
    replace(SMALL, epochs=1).fit(shop, seed=3, cache=tmp_path)
    (folder,) = tmp_path.glob("karma-*")
    about = json.loads((folder / "config.json").read_text())
    assert about["embedder"] == repr(replace(SMALL, epochs=1)) and (
        about["seed"],
        about["log"],
    ) == (3, shop.name)


def test_shuffled_texts_are_another_items_always_the_same_ones(
    shop: Log, lm: LM, cache: Path
) -> None:
    value = replace(SMALL, rec=1.0, shuffled=True)
    features = value.features(shop, lm, cache, 0, lambda _: None, "cpu")
    tells = [value.trainee(shop, lm, features, 0, None)[0].tells for _ in range(2)]
    assert np.array_equal(*tells) and (tells[0] != np.arange(len(tells[0]))).mean() > 0.8
    assert np.array_equal(np.sort(tells[0]), np.arange(len(tells[0])))
    own, other = (
        replace(SMALL, rec=1.0, shuffled=shuffled, epochs=6)
        .fit(shop, cache=cache)
        .diagnose(shop.requests_in("W3"))
        for shuffled in (False, True)
    )
    assert own["perplexity given interest"] < other["perplexity given interest"]


def test_shuffled_gen_tells_another_items_text(
    shop: Log, lm: LM, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = replace(SMALL, gen=1.0)
    features = value.features(shop, lm, cache, 0, lambda _: None, "cpu")
    # first words of the texts that a step tells, without and with shuffling
    told: list[list[int]] = []

    def watched(*args: object) -> object:
        texts = [text for text in args[4] if text is not None]  # type: ignore[attr-defined]
        told.append([int(text[0]) for text in texts])
        return lay_out(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "lay_out", watched)
    for shuffled in (False, True):
        trainee, _ = replace(value, shuffled=shuffled).trainee(shop, lm, features, 0, None)
        assert len(trainee.words) < lm.vocab
        # each item's text begins with its number
        trainee.words[:, 0] = np.arange(len(trainee.words))
        trainee.n_words = np.maximum(trainee.n_words, 1)
        trainee(np.arange(4), np.random.default_rng(0))
    own, other = told
    # the same draws, so the same targets
    assert len(own) == 4 and trainee.tells[own].tolist() == other != own


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_pretraining_stops_at_its_step(
    broken: str, shop: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = backbones.F.cross_entropy, []

    def breaks(*args: object, **kwargs: object) -> torch.Tensor:
        steps.append(1)
        loss = real(*args, **kwargs)  # type: ignore[arg-type]
        here = len(steps) > 3 and loss.requires_grad
        if here and broken == "gradient":
            loss.register_hook(lambda slope: slope * math.nan)
        return loss * math.nan if here and broken == "loss" else loss

    monkeypatch.setattr(backbones.F, "cross_entropy", breaks)
    with pytest.raises(
        KarmafunnelError, match=r"needs a finite loss, found .* in step \d+ of pre-training"
    ):
        TINY.ready(shop, tmp_path, lambda _: None, "cpu")
    assert not list(tmp_path.glob("base-*"))


def test_more_epochs_go_on_from_fewer(shop: Log, tmp_path: Path) -> None:
    few = replace(SMALL, epochs=1).fit(shop, seed=0, cache=tmp_path)
    said: list[str] = []
    more = SMALL.fit(shop, seed=0, progress=said.append, cache=tmp_path)
    assert any("goes on after epoch 1" in message for message in said)
    assert more.items().tobytes() == SMALL.fit(shop, seed=0).items().tobytes()
    assert (
        replace(SMALL, epochs=1).fit(shop, seed=0, cache=tmp_path).items().tobytes()
        == few.items().tobytes()
    )


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_at_its_step(
    broken: str, shop: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = action.action_catalogue, []

    def breaks(*args: object) -> torch.Tensor:
        steps.append(1)
        loss = real(*args)  # type: ignore[arg-type]
        if len(steps) == 5 and broken == "gradient":
            loss.register_hook(lambda slope: slope * math.nan)
        return loss * (math.nan if len(steps) == 5 and broken == "loss" else 1)

    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(action, "action_catalogue", breaks)
    with pytest.raises(KarmafunnelError, match=r"epoch 1, step 5; the last good checkpoint"):
        SMALL.fit(shop, cache=tmp_path)
    assert list(tmp_path.glob("karma-*/state.safetensors"))
    monkeypatch.setattr(training, "SAVE_EVERY", 1e9)
    steps.clear()
    with pytest.raises(KarmafunnelError, match=r"epoch 1, step 5; no checkpoint had been written"):
        SMALL.fit(shop, cache=tmp_path / "other")


def test_serving_loads_no_decoder(shop: Log, tmp_path: Path, cache: Path) -> None:
    value = replace(SMALL, rec=0.3)
    fitted = value.fit(shop, seed=0, cache=cache)
    fitted.save(tmp_path / "kept")
    assert not any(
        "rec" in name or "reconstruct" in name or "prior" in name for name in fitted.tensors()
    )
    decoders = (tmp_path / "kept" / "decoders.safetensors").read_bytes()
    (tmp_path / "kept" / "decoders.safetensors").unlink()
    loaded = value.load(tmp_path / "kept", shop)
    requests = shop.requests_in("W3")
    assert loaded.interests(requests).tobytes() == fitted.interests(requests).tobytes()
    (tmp_path / "kept" / "decoders.safetensors").write_bytes(decoders)
    assert value.load(tmp_path / "kept", shop).read(requests) == fitted.read(requests)


def test_serving_loads_no_head_of_its_own(shop: Log, tmp_path: Path) -> None:
    """A checkpoint whose LM head is not its embedding table: what tells words lies beside the
    decoders.
    """
    save_checkpoint(tmp_path / "lm", "qwen3")
    value = replace(
        SMALL, backbone=Checkpoint(str(tmp_path / "lm")), dim=16, epochs=1, gen=0.1, rec=0.3
    )
    fitted, requests = value.fit(shop, seed=1), shop.requests_in("W3")
    lm = fitted.network.lm.model
    assert lm.get_output_embeddings().weight is not lm.get_input_embeddings().weight
    assert not any("lm_head" in name for name in fitted.tensors())
    fitted.save(tmp_path / "kept")
    loaded = value.load(tmp_path / "kept", shop)
    assert loaded.interests(requests).tobytes() == fitted.interests(requests).tobytes()
    loaded.save(tmp_path / "again")
    for folder in ("kept", "again"):
        again = value.load(tmp_path / folder, shop)
        assert again.read(requests) == fitted.read(requests) and again.diagnose(
            requests
        ) == fitted.diagnose(requests)
    # serving does without, telling words does not
    (tmp_path / "kept" / "decoders.safetensors").unlink()
    alone = value.load(tmp_path / "kept", shop)
    assert alone.interests(requests).tobytes() == fitted.interests(requests).tobytes()
    with pytest.raises(
        KarmafunnelError, match=r"decoders\.safetensors: needs all weights, found none of weight"
    ):
        alone.diagnose(requests)


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("embedding.json", "{}", "embedding.json: needs class"),
        ("tensors.safetensors", "vectors", "tensors without vectors"),
        ("tensors.safetensors", "rows", "5 rows of vectors for the"),
        ("decoders.safetensors", "torn", "needs a checkpoint"),
        ("decoders.safetensors", "prior", "needs the prior"),
        ("decoders.safetensors", "rec.map.weight", "needs all weights"),
    ],
)
def test_saved_fits_that_are_damaged(
    file: str, damage: str, says: str, shop: Log, cache: Path, tmp_path: Path
) -> None:
    value = replace(SMALL, rec=0.3)
    value.fit(shop, seed=0, cache=cache).save(tmp_path / "kept")
    path = tmp_path / "kept" / file
    if damage == "{}":
        path.write_text("{}")
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:100])
    else:
        tensors = load_file(path)
        changed = {"vectors": tensors["vectors"][:5]} if damage == "rows" else {}
        save_file(
            {k: x for k, x in tensors.items() if k != damage} | changed, path, {"facts": "{}"}
        )
    for sealed, told in ((False, rf"{file}: other bytes than were written"), (True, says)):
        if sealed:
            seal(tmp_path / "kept")
        with pytest.raises(KarmafunnelError, match=told):
            value.load(tmp_path / "kept", shop).read(shop.requests_in("W3"))


def test_an_epoch_that_lacks_a_weight(shop: Log, tmp_path: Path) -> None:
    value = replace(SMALL, epochs=1)
    value.fit(shop, seed=0, cache=tmp_path)
    (path,) = tmp_path.glob("karma-*/epoch-001.safetensors")
    kept = Snapshot.read(path)
    tensors = {name: x for name, x in kept.tensors.items() if "q_proj" not in name}
    replace(kept, tensors=tensors).write(path)
    with pytest.raises(KarmafunnelError, match=r"needs all weights, found none of .*q_proj"):
        value.fit(shop, seed=0, cache=tmp_path)


def test_an_interest_is_read_in_words(shop: Log, cache: Path) -> None:
    requests = shop.requests_in("W3")[:40]
    for decoder in ("bow", "lm"):
        told = (
            replace(SMALL, rec=1.0, decoder=decoder, epochs=4)
            .fit(shop, seed=0, cache=cache)
            .read(requests)
        )  # type: ignore[arg-type]
        assert told is not None
        assert len(told) == 40
        assert all(isinstance(text, str) for text in told)
        assert any(told)
    assert SMALL.fit(shop, seed=0, cache=cache).read(requests) is None
    assert (
        replace(SMALL, rec=1.0, decoder="lm", epochs=4)
        .fit(shop, seed=0, cache=cache)
        .read(requests, quick=True)
        is None
    )


def test_wrong_values_are_refused() -> None:
    for wrong, message in (
        ({"decoder": "gpt"}, "decoder needs one of"),
        ({"rec": -1.0}, "rec needs a number"),
        ({"gen": math.nan}, "gen needs a number"),
        ({"items": "trained"}, r"needs a loss among the batch, such as loss=InBatch\(\)"),
        ({"see": 0.1}, "needs visual features"),
        ({"see_by": "mse"}, "see_by"),
        ({"generator": "diffusion"}, "generator"),
        ({"generator": Diffusion(), "loss": InBatch()}, "whose place it takes"),
        ({"generator": Diffusion(), "rec": 0.1}, "decoders would read what is not served"),
        ({"epochs": 0}, "epochs"),
        ({"action": 0.0}, "needs an objective to learn by, found action, gen, rec and see of 0"),
        ({"shuffled": True}, "shuffled needs gen, rec or see"),
        ({"backbone": "smollm2-135m"}, r"backbone needs Qwen\(\), Checkpoint.* found 'smollm2-135m'"),
        ({"backbone": SentenceEncoder()}, r"backbone needs .* found SentenceEncoder\(\)"),
        ({"visual": "minilm"}, r"visual needs None, SelfSupervised\(\)"),
        ({"loss": "softmax"}, r"loss needs Softmax\(\), InBatch\(\) or another .* found 'softmax'"),
        ({"loss": Softmax}, r"loss needs Softmax\(\)"),
        (
            {"beside": TfidfSVD()},
            r"beside needs text embedders in a tuple, .* found TfidfSVD\(\)",
        ),
        (
            {"beside": (TfidfSVD(),), "items": "trained", "loss": InBatch()},
            "beside needs items='frozen'",
        ),
    ):
        with pytest.raises(KarmafunnelError, match=message):
            KARMA(**wrong)  # type: ignore[arg-type]
    for kind, fields in (
        (
            KARMA,
            {
                "dropout": 2.0,
                "text_words": 0,
                "dim": 0,
                "batch": 0,
                "average": 1.5,
                "rate": math.inf,
                "length": 2.5,
                "share": 0.0,
                "id_dropout": -0.1,
            },
        ),
        (Qwen, {"dim": 0, "heads": 0, "context": 0, "vocab": 10, "tokens": -1, "rate": math.nan}),
        (FrozenLM, {"dim": 0, "decay": 1.5, "length": 0, "query_weight": -1.0}),
    ):
        for name, value in fields.items():
            with pytest.raises(KarmafunnelError, match=rf"{kind.__name__}: {name} needs a .*found"):
                kind(**{name: value})  # type: ignore[operator]
    with pytest.raises(KarmafunnelError, match="dim of an even number a head"):
        Qwen(dim=128, heads=3)
    for call in (lambda: Qwen(catalogues="logs/a"), lambda: LanguageFirst(logs="logs/a")):
        with pytest.raises(KarmafunnelError, match=r"needs paths of folders in a tuple.* found 'logs/a'"):
            call()
    with pytest.raises(KarmafunnelError, match="text_words of 256 or fewer"):
        KARMA(rec=1.0, decoder="masked", text_words=300)


def test_diagnosis_names_its_figures(shop: Log, cache: Path) -> None:
    found = replace(SMALL, rec=0.3).fit(shop, seed=0, cache=cache).diagnose(shop.requests_in("W3"))
    for name in (
        "sink rate, first",
        "base sink rate, others",
        "column entropy",
        "effective rank, items",
        "uniformity, interests",
        "alignment",
        "perplexity given history",
        "perplexity given interest",
    ):
        assert math.isfinite(found[name]), name
    assert "perplexity given interest, unseen" in found
    with pytest.raises(KarmafunnelError, match="found none"):
        replace(SMALL, rec=0.3).fit(shop, seed=0, cache=cache).diagnose(np.zeros(0, dtype=np.int64))
    assert 0 <= found["alignment"] <= 4 and 1 <= found["effective rank, items"] <= 32


# -- diagnostics by hand ---------------------------------------------------------------------------


def test_sink_rate_on_a_map_made_by_hand() -> None:
    """One sample, one layer, two heads, five places: head 0 all on place 0, head 1 all on the place
    before (on itself at first).
    """
    first = torch.zeros(5, 5)
    first[:, 0] = 1
    before = torch.zeros(5, 5)
    before[0, 0] = 1
    before[torch.arange(1, 5), torch.arange(4)] = 1
    attention = torch.stack([first, before])[None, None]  # (layers, B, heads, L, L)
    there = torch.ones(1, 5, dtype=torch.bool)
    alpha, counts = diagnose.received(attention, there)
    torch.testing.assert_close(alpha[0, 0, 0], torch.tensor([1.0, 0, 0, 0, 0]))
    torch.testing.assert_close(alpha[0, 0, 1], torch.tensor([2 / 5, 1 / 4, 1 / 3, 1 / 2, 0]))
    assert counts.tolist() == [[True, True, False, False, False]]
    assert diagnose.sink_rate(attention, there) == {"first": 1.0, "others": 0.0}
    assert diagnose.sink_rate(attention, there, threshold=0.2) == {"first": 1.0, "others": 0.5}
    # head 0: no entropy; head 1: 8/13 and 5/13 of the mass
    p = np.array([8 / 13, 5 / 13])
    assert diagnose.column_mass_entropy(attention, there) == pytest.approx(
        -(p * np.log(p)).sum() / np.log(2) / 2
    )


def test_padding_does_not_make_sinks() -> None:
    attention = torch.rand(2, 1, 3, 6, 6).tril()
    there = torch.tensor([[True] * 5 + [False]])
    wide = diagnose.sink_rate(attention, there)
    assert wide == diagnose.sink_rate(attention[..., :5, :5], there[:, :5])


def test_attention_and_shape_as_their_formulas_say() -> None:
    """Loops over samples, heads, keys and pairs, of random maps and vectors."""
    rng = np.random.default_rng(0)
    layers, samples, heads, length = 2, 3, 2, 9
    there = np.arange(length) < np.array([9, 6, 8])[:, None]
    weight = rng.random((layers, samples, heads, length, length)) ** 4
    weight *= np.tri(length) * there[:, None, None, :]
    attention = weight / weight.sum(axis=-1, keepdims=True)
    first, others, entropies = [], [], []
    for of_sample, seen in zip(np.moveaxis(attention, 1, 0), there, strict=True):
        last = int(seen.sum())
        keys = [k for k in range(last) if last - k >= 4]  # seen by four queries
        for one in of_sample.reshape(-1, length, length):
            alpha = [float(np.mean([one[i, k] for i in range(k, last)])) for k in keys]
            first.append(alpha[0] > 0.3)
            others.append(any(x > 0.3 for x in alpha[1:]))
            share = [x / sum(alpha) for x in alpha]
            entropies.append(-sum(p * math.log(p) for p in share) / math.log(len(keys)))
    given = torch.from_numpy(attention), torch.from_numpy(there)
    sinks = diagnose.sink_rate(*given)
    assert 0 < np.mean(others) < 1
    assert sinks == {"first": pytest.approx(np.mean(first)), "others": pytest.approx(np.mean(others))}
    assert diagnose.column_mass_entropy(*given) == pytest.approx(np.mean(entropies))
    x = rng.standard_normal((12, 5)) * [4.0, 2, 1, 0.5, 0.1]
    centred = x - x.mean(axis=0)
    roots = np.sqrt(np.linalg.eigvalsh(sum(np.outer(row, row) for row in centred)))
    entropy = -sum(p * math.log(p) for p in roots / roots.sum())
    assert diagnose.effective_rank(x) == pytest.approx(math.exp(entropy))
    y = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [math.exp(-2 * sum((y[i] - y[j]) ** 2)) for i in range(12) for j in range(i)]
    assert diagnose.uniformity(y) == pytest.approx(math.log(np.mean(pairs)))


def test_shape_of_vectors() -> None:
    eye = np.concatenate([np.eye(4), -np.eye(4)])
    assert diagnose.effective_rank(eye) == pytest.approx(4)
    assert diagnose.effective_rank(np.outer([1, -1, 2, -2], [1.0, 2])) == pytest.approx(1)
    # variances 9 and 1 in two directions: (9 + 1)^2 / (81 + 1)
    two = np.array([[3.0, 0, 7], [-3, 0, 7], [0, 1, 7], [0, -1, 7]])
    assert diagnose.participation_ratio(two) == pytest.approx(100 / 82)
    assert diagnose.participation_ratio(eye) == pytest.approx(4)
    assert diagnose.participation_ratio(np.ones((3, 2))) == 0
    assert diagnose.uniformity(np.tile([1.0, 0], (5, 1))) == pytest.approx(0)
    assert diagnose.uniformity(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(-8)
    assert diagnose.alignment(
        np.array([[1.0, 0], [0, 1]]), np.array([[0.0, 1], [0, 1]])
    ) == pytest.approx(1)
    constant = np.concatenate([eye, np.ones((8, 1))], axis=1)
    assert diagnose.unit(constant).shape[1] == 4 and diagnose.unit(np.zeros((3, 2))).shape == (0, 2)


def test_jaccard_and_js_by_hand() -> None:
    items = pl.DataFrame(
        {
            "item_id": list("abc"),
            "title": ["red pen", "red cap", "blue ink"],
            "brand": ["x", "x", None],
        }
    )
    requests = pl.DataFrame(
        {
            "request_id": ["r"],
            "user_id": ["u"],
            "source": ["search"],
            "window": ["W1"],
            "ts": [datetime(2026, 1, 1, tzinfo=UTC)],
        }
    )
    exposures = pl.DataFrame({"request_id": ["r"], "item_id": ["a"], "clicked": [True]})
    log = Log.make(
        items,
        requests,
        exposures,
        {"name": "three", "label": "click", "has": {"clicks": True, "text": True}},
    )
    words = diagnose.word_sets(log)
    a, b = np.array([0, 0]), np.array([1, 2])
    assert diagnose.jaccard(words, a, b).tolist() == [2 / 4, 0]
    pools = [np.array([2])]  # chance draws item c alone, which shares no word with a
    js = diagnose.js_at_k(
        words, np.array([0]), np.array([[1, 2, -1]]), pools, np.random.default_rng(0)
    )
    assert js.tolist() == [pytest.approx(1 / 4)]


def test_the_probe_finds_meaning_where_there_is_some(shop: Log) -> None:
    rng = np.random.default_rng(0)
    words = diagnose.word_sets(shop)
    target, later = rng.integers(0, shop.n_items, 400), rng.integers(0, shop.n_items, 100)

    def meaning(items):
        return np.eye(7)[items % 7] + 0.05 * rng.standard_normal((len(items), 7))

    told = diagnose.readable(words, meaning(target), target, meaning(later), later)
    noise = diagnose.readable(
        words, rng.standard_normal((400, 7)), target, rng.standard_normal((100, 7)), later
    )
    assert told > 0.2 and noise < 0.05


def test_popularity_rank() -> None:
    assert diagnose.popularity_rank(np.array([0, 0, 3, 9])).tolist() == [0.25, 0.25, 0.625, 0.875]


# -- pictures --------------------------------------------------------------------------------------


def pictured(folder: Path, n: int = 64) -> Log:
    """Items with pictures: discs and squares in four colours."""
    log = make_shop(n_items=n, n_users=12, n_requests=200)
    (folder / "images").mkdir(parents=True)
    yy, xx = np.mgrid[:32, :32]
    for i in range(n):
        pixels = np.full((32, 32, 3), 250, dtype=np.uint8)
        size = 9 + i % 3
        inside = (
            (xx - 16) ** 2 + (yy - 16) ** 2 < size**2
            if i % 2
            else (abs(xx - 16) < size) & (abs(yy - 16) < size)
        )
        pixels[inside] = [(200, 40, 40), (40, 160, 60), (40, 60, 200), (220, 200, 40)][i // 2 % 4]
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    paths = [f"images/{i}.png" if i != 5 else None for i in range(n)]
    Log.make(
        log.items.with_columns(pl.Series("image", paths)), log.requests, log.exposures, log.meta
    ).write(folder / "log")
    (folder / "images").rename(folder / "log" / "images")
    return Log.open(folder / "log")


def test_self_supervised_features_know_colours_and_shapes(tmp_path: Path) -> None:
    log = pictured(tmp_path)
    how = SelfSupervised(dim=16, epochs=25, batch=32)
    x, there = visual_features(log, how, tmp_path / "cache", 0, lambda _: None, "cpu")
    assert x.shape == (64, 16)
    assert there.sum() == 63
    assert (x[5] == 0).all()
    again, _ = visual_features(log, how, tmp_path / "cache", 0, lambda _: None, "cpu")
    fresh, _ = visual_features(log, how, None, 0, lambda _: None, "cpu")
    assert again.tobytes() == x.tobytes() == fresh.tobytes()
    have = np.flatnonzero(there)
    centred = x[have] - x[have].mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    near = centred @ centred.T - 9 * np.eye(len(have))
    colour = have // 2 % 4
    assert (colour[near.argmax(axis=1)] == colour).mean() > 0.6  # 0.25 by chance


def test_pretrained_vision_model_from_a_folder(tmp_path: Path) -> None:
    write_vision_model(tmp_path / "vit")
    log = pictured(tmp_path, 48)
    x, there = visual_features(
        log, Pretrained(str(tmp_path / "vit")), None, 0, lambda _: None, "cpu"
    )
    assert x.shape == (48, 16)
    assert there.sum() == 47
    assert np.isfinite(x).all()
    with pytest.raises(KarmafunnelError, match="needs a vision model with its image processor"):
        visual_features(log, Pretrained(str(tmp_path / "log")), None, 0, lambda _: None, "cpu")
    file = tmp_path / "vit" / "model.safetensors"
    weights = load_file(file)
    # as a classifier has none
    save_file({k: w for k, w in weights.items() if "pooler" not in k}, file, {"format": "pt"})
    first, again = (
        visual_features(log, Pretrained(str(tmp_path / "vit")), None, 0, lambda _: None, "cpu")[0]
        for _ in range(2)
    )
    assert first.tobytes() == again.tobytes() != x.tobytes()
    save_file({k: w for k, w in weights.items() if "attention" not in k}, file, {"format": "pt"})
    with pytest.raises(
        KarmafunnelError, match=r"needs a vision model, found weights of ViTModel without .*attention"
    ):
        visual_features(log, Pretrained(str(tmp_path / "vit")), None, 0, lambda _: None, "cpu")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(KarmafunnelError, match="needs a vision model with its image processor"):
        visual_features(log, Pretrained(str(tmp_path / "vit")), None, 0, lambda _: None, "cpu")


def test_visual_refusals(shop: Log, tmp_path: Path) -> None:
    with pytest.raises(KarmafunnelError, match="needs images"):
        visual_features(shop, SelfSupervised(), None, 0, lambda _: None, "cpu")
    with pytest.raises(KarmafunnelError, match="needs visual features"):
        visual_features(shop, Column(), None, 0, lambda _: None, "cpu")
    log = pictured(tmp_path, 48)
    (tmp_path / "log" / "images" / "3.png").write_bytes(b"no picture")
    with pytest.raises(KarmafunnelError, match="item 'i3'"):
        visual_features(log, SelfSupervised(), None, 0, lambda _: None, "cpu")
    uneven = pl.Series("visual", [[1.0], [1.0, 2.0]] + [None] * 46, dtype=pl.List(pl.Float32))
    with pytest.raises(KarmafunnelError, match="one length"):
        visual_features(
            Log.make(log.items.with_columns(uneven), log.requests, log.exposures, log.meta),
            Column(),
            None,
            0,
            lambda _: None,
            "cpu",
        )


LEARNT = 0.9  # of the loss without learning


@pytest.mark.parametrize(
    "by", [Direct(), Cosine(), Diffusion(), FlowMatching(history=True)], ids=repr
)
def test_karma_with_pictures(by: VectorLoss, tmp_path: Path) -> None:
    log = pictured(tmp_path)
    rng = np.random.default_rng(0)
    looks = [np.eye(7)[i % 7] + 0.1 * rng.standard_normal(7) for i in range(64)]  # as its name says
    column = pl.Series(
        "visual",
        [x.tolist() if i % 5 else None for i, x in enumerate(looks)],
        dtype=pl.List(pl.Float32),
    )
    log = Log.make(log.items.with_columns(column), log.requests, log.exposures, log.meta)
    value = replace(SMALL, visual=Column(), see=1.0, rate=3e-3, epochs=5, see_by=by)
    fitted = value.fit(log, seed=0)
    still = replace(value, rate=1e-12).fit(log, seed=0)  # the same noise, and nothing is learnt
    last, unlearnt = (x.facts["curve"][-1]["see"] for x in (fitted, still))
    assert last < LEARNT * unlearnt
    fitted.save(tmp_path / "kept")
    loaded = value.load(tmp_path / "kept", log)
    requests = log.requests_in("W3")
    assert loaded.interests(requests).tobytes() == fitted.interests(requests).tobytes()


def test_causal_masks() -> None:
    mask, position = causal(torch.tensor([[True, True, False]]))
    assert mask[0, 0].tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ] and position.tolist() == [[0, 1, 2]]


# -- people ----------------------------------------------------------------------------------------


def test_readings_reach_the_run_the_report_and_explain(
    shop: Log, cache: Path, tmp_path: Path
) -> None:
    value = replace(SMALL, rec=1.0, epochs=4)
    text = f"""
from karmafunnel.models.karma import KARMA, Qwen
from karmafunnel.stages.recall import VectorRecall
funnel, embedders, label = VectorRecall("karma", k=20), {{"karma": {value!r}}}, None
"""
    (tmp_path / "told.py").write_text(text)
    shop.write(tmp_path / "log")
    log = Log.open(tmp_path / "log")
    recipe = load_recipe(str(tmp_path / "told.py"), log)
    replay(recipe, log, tmp_path / "run", RunOptions(cache=cache, chunk=32))
    replay(recipe, log, tmp_path / "other", RunOptions(cache=cache, chunk=50))
    run = Run.open(tmp_path / "run")
    told = run.read("requests", "request_id", "karma.reads")
    assert told.equals(Run.open(tmp_path / "other").read("requests", "request_id", "karma.reads"))
    assert (told["karma.reads"].str.len_chars() > 0).mean() > 0.9
    page = look_up([run], ["run"], 6)
    for request in page["requests"]:
        wanted = told.filter(pl.col("request_id") == request["id"])["karma.reads"][0]
        assert request["runs"][0]["reads"] == ({"karma": wanted} if wanted else {})
    request = told.filter(pl.col("karma.reads") != "")["request_id"][0]
    answer = CliRunner().invoke(
        main,
        ["explain", str(tmp_path / "told.py"), str(tmp_path / "log"), "--request", request],
        env={"KARMAFUNNEL_CACHE": str(cache)},
    )
    assert answer.exit_code == 0, answer.output
    reading = told.filter(pl.col("request_id") == request)["karma.reads"][0]
    assert (
        f"the interest of karma reads: {reading}" in answer.output and "came next:" in answer.output
    )


def test_a_demonstration_recipe_and_the_controls_load(shop: Log) -> None:
    assert "karma" in load_recipe("karma", shop).embedders
    controls = load_recipe("karma_controls", shop)
    assert controls.against == "action-only" and {
        "+gen",
        "+rec",
        "+gen+rec",
        "random",
        "SASRec",
        "frozen LM",
    } <= set(controls.rows)
    trials = load_recipe("karma_trials", shop).rows
    kinds = [name.split(" ")[0].rstrip(",") for name in trials]
    tuned = ("action-only", "+gen", "+rec", "+gen+rec", "SASRec", "frozen", "TF-IDF")
    assert {kind: kinds.count(kind) for kind in set(kinds)} == dict.fromkeys(tuned, 8)
    industrial = load_recipe("karma_industrial_trials", shop).rows
    kinds = [name.split(" ")[0].rstrip(",") for name in industrial]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == dict.fromkeys(tuned[:4], 10)


def test_tables_with_karma_have_the_frozen_sentence_encoder_where_it_was_fetched(
    shop: Log,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KARMAFUNNEL_CACHE", str(tmp_path))
    row = "frozen sentence encoder"
    studies = ("controls", "industrial", "words", "pictures", "order", "atlas", "smollm", "curves")
    left_out = f"row '{row}' is left out: karmafunnel fetch-model minilm brings its model\n"
    funnels = ("funnel_ablation", "funnel_no_ids", "similarity_use", "rank_losses")
    for name in (*(f"karma_{study}" for study in studies), *funnels):
        say.cache_clear()  # which tells a line once a process
        assert not any(row in found for found in load_recipe(name, shop).rows), name
        assert left_out in capsys.readouterr().err, name
    monkeypatch.setattr(weights, "intact", lambda folder: folder == weights.folder_of("minilm"))
    for study in studies:
        value = load_recipe(f"karma_{study}", shop).rows[row].embedders["interest"]
        assert repr(value) == "SentenceEncoder()"
    places = ("recall", "pre-ranking", "ranking", "every stage")
    assert {f"{row} at {at}" for at in places} <= set(load_recipe("funnel_ablation", shop).rows)
    assert f"{row} at every stage" in load_recipe("funnel_no_ids", shop).rows
    assert f"{row}, SimTier" in load_recipe("similarity_use", shop).rows


def test_a_hub_that_does_not_answer_is_said_at_once(
    shop: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert checkpoints.must_be_here("nobody/no-such-model")
    with pytest.raises(KarmafunnelError, match=r"no-such-model.*needs a causal LM"):
        Checkpoint("nobody/no-such-model").ready(shop, None, lambda _: None, "cpu")

    asked: list[bool] = []

    def local(source: str, local_files_only: bool = False) -> None:
        asked.append(local_files_only)
        raise OSError("not here")

    # the client is told not to try for a minute
    monkeypatch.setattr(checkpoints.AutoTokenizer, "from_pretrained", local)
    with pytest.raises(KarmafunnelError, match="not here"):
        Checkpoint("nobody/no-such-model").ready(shop, None, lambda _: None, "cpu")
    assert asked == [True]


def test_other_catalogues_are_read_beside_the_log(shop: Log, tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": ["x", "y"], "title": ["zirconium spatula", None]})
    Catalogue.make(items, {"name": "other", "has": {"text": True}}).write(tmp_path / "other")
    value = replace(TINY, catalogues=(str(tmp_path / "other"),))
    assert set(value.texts(shop)) == set(TINY.texts(shop)) | {"zirconium spatula"}


def test_pretraining_reads_what_w1_knows_alone(shop: Log) -> None:
    """An item that appears later has no part in the base."""
    meta = shop.meta | {"catalogue": "seen"}
    log = Log.make(shop.items, shop.requests, shop.exposures, meta)
    known = known_in_w1(log)
    assert known.sum() > 0
    texts = log.item_text()
    assert set(TINY.texts(log)) == {texts[i].strip() for i in np.flatnonzero(known)}


def test_another_checkpoint_at_the_same_place_is_another_fit(shop: Log, tmp_path: Path) -> None:
    value = replace(SMALL, backbone=Checkpoint(str(tmp_path / "lm")), dim=16, epochs=1)
    torch.manual_seed(1)
    save_checkpoint(tmp_path / "lm", "qwen3")
    first = value.fit(shop, seed=0, cache=tmp_path / "cache")
    torch.manual_seed(2)
    save_checkpoint(tmp_path / "lm", "qwen3")
    other = value.fit(shop, seed=0, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("karma-*"))) == 2
    assert first.items().tobytes() != other.items().tobytes()
