"""The frozen sentence encoder: its vectors, and sources that are none."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.models.karma import FrozenLM, SentenceEncoder
from karmafunnel.models.karma.frozen import directions
from karmafunnel.models.karma.sentence import open_sentences
from test_karma import save_checkpoint
from tiny_models import sentence_encoder, write_sentence_encoder

pytestmark = pytest.mark.slow


def test_a_vector_is_the_mean_of_its_tokens_whatever_stands_beside_it() -> None:
    from transformers import AutoModel, AutoTokenizer

    own = open_sentences(sentence_encoder(), "test", "cpu")
    texts = ["amber lamp", "", "a soft red thing model search birch coral", "  "]
    found = own.vectors(texts, 30)
    tokenizer = AutoTokenizer.from_pretrained(sentence_encoder())
    model = AutoModel.from_pretrained(sentence_encoder()).eval()
    for text, vector in zip(texts, found, strict=True):
        if not text.strip():
            assert (vector == 0).all()
            continue
        with torch.inference_mode():
            hidden = model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0]
        mean = hidden.mean(dim=0).numpy()
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_a_text_is_cut_between_its_marks() -> None:
    own = open_sentences(sentence_encoder(), "test", "cpu")
    ids, lengths = own.encode(["amber birch coral thing", "amber"], 2)
    assert ids.shape == (2, 4) and lengths.tolist() == [4, 3]
    assert ids[0, 0] == ids[1, 0] and ids[0, 3] == ids[1, 2]  # [CLS] and [SEP]
    again, _ = own.encode(["amber birch"], 2)
    assert again[0].tolist() == ids[0].tolist()


@pytest.mark.parametrize("power, after", [(0, "autoencoder"), (0.5, "half-whitening"), (1, "whitening")])
def test_whitenings_differ_by_a_power_of_the_deviations(power: float, after: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6)) * [8, 4, 2, 1, 0.5, 0.25] + 3
    shift, turn = directions(x, after, 4)  # type: ignore[arg-type]
    assert turn.shape == (6, 4)
    y = (x - shift) @ turn
    s = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)[:4] / np.sqrt(len(x))
    assert np.cov(y.T, bias=True) == pytest.approx(np.diag(s ** (2 - 2 * power)), abs=1e-9)


def test_a_saved_encoder_reads_new_queries(shop: Log, tmp_path: Path) -> None:
    value = SentenceEncoder(sentence_encoder(), dim=8)
    fitted = value.fit(shop)
    fitted.save(tmp_path / "kept")
    again = value.load(tmp_path / "kept", shop)
    asked = shop.requests_in("W3")
    assert again.interests(asked).tobytes() == fitted.interests(asked).tobytes()
    assert fitted.facts["backbone"]["source"] == sentence_encoder()


def test_sources_that_are_no_sentence_encoder(
    shop: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    save_checkpoint(tmp_path / "causal", "llama")
    for name in ("whole", "torn", "cls", "list", "bare", "odd", "dense", "elsewhere"):
        write_sentence_encoder(tmp_path / name)
    weights = (tmp_path / "torn" / "model.safetensors").read_bytes()
    (tmp_path / "torn" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (tmp_path / "cls" / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "cls" / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    (tmp_path / "list" / "1_Pooling").mkdir()
    (tmp_path / "list" / "1_Pooling" / "config.json").write_text('["mean"]')
    (tmp_path / "odd" / "config.json").write_text('["bert"]')
    kinds = {"": "Transformer", "pooled": "Pooling", "2_Dense": "Dense"}
    modules = [{"path": x, "type": f"sentence_transformers.models.{y}"} for x, y in kinds.items()]
    (tmp_path / "dense" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "elsewhere" / "modules.json").write_text(json.dumps(modules[:2]))
    (tmp_path / "elsewhere" / "pooled").mkdir()
    (tmp_path / "elsewhere" / "pooled" / "config.json").write_text(json.dumps(modes))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / name).unlink()
    for source, message in (
        ("causal", "needs a sentence encoder, found weights of LlamaForCausalLM; a causal language"),
        ("torn", "needs a sentence encoder with its tokenizer, found"),
        ("cls", "needs mean pooling, found pooling_mode_cls_token"),
        ("list", "needs mean pooling, found none in"),
        ("dense", "needs the modules Transformer, Pooling, found Transformer, Pooling, Dense in"),
        ("elsewhere", "needs mean pooling, found pooling_mode_cls_token in .*pooled/config"),
        ("odd", "needs a sentence encoder with its tokenizer, found"),
        ("bare", "needs a sentence encoder with its tokenizer, found"),
        ("nowhere", "needs a model in .*nowhere, found nothing there"),
    ):
        with pytest.raises(KarmafunnelError, match=message):
            SentenceEncoder(str(tmp_path / source)).fit(shop)
    right = SentenceEncoder(str(tmp_path / "whole"))
    with pytest.raises(KarmafunnelError, match="needs a model that reads 82 tokens, found a con"):
        replace(right, text_words=80).fit(shop)
    for wrong in (SentenceEncoder, FrozenLM):
        with pytest.raises(KarmafunnelError, match=r"after needs one of .*half-whitening"):
            wrong(after="more")  # type: ignore[arg-type]
