"""What ships works on its own: a wheel, unpacked away from the checkout, without torch.

Run it with another Python that has the light dependencies: `make light`.
"""

import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import karmafunnel
import pytest

ROOT = Path(karmafunnel.__file__).parent
WITHOUT_TORCH = """
import sys

class Absent:
    def find_spec(self, name, *_):
        if name in ("torch", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from karmafunnel.cli import main
main()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The unpacked wheel of the checkout, or the folder that KARMAFUNNEL_WHEEL names."""
    if given := os.environ.get("KARMAFUNNEL_WHEEL"):
        return Path(given)
    pytest.importorskip("setuptools", reason="building a wheel without a network needs setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    left_out = shutil.ignore_patterns(
        ".git", ".venv*", ".mypy*", ".ruff*", ".pytest*", ".hypothesis", "out", "build", "tables",
        "*.egg-info", "__pycache__",
    )
    shutil.copytree(ROOT, source, ignore=left_out)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "--wheel-dir", folder, source],
        check=True,
    )
    (packed,) = folder.glob("*.whl")
    zipfile.ZipFile(packed).extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An empty folder with a table of ratings and two TREC runs."""
    folder, draw = tmp_path_factory.mktemp("place"), random.Random(0)
    ratings = ["user,item,rating,timestamp"]
    for i in range(3000):
        ratings.append(
            f"{draw.randint(1, 150)},{int(draw.paretovariate(0.6)) % 300},{draw.randint(1, 5)},"
            f"{1600000000 + i * 300}"
        )
    (folder / "ratings.csv").write_text("\n".join(ratings) + "\n")
    recall, rank, qrels = [], [], []
    for q in range(40):
        found = draw.sample(range(300), 30)
        recall += [f"q{q} Q0 d{d} {at} {40 - at} recall" for at, d in enumerate(found, 1)]
        best = draw.sample(found, 10)
        rank += [f"q{q} Q0 d{d} {at} {40 - at} rank" for at, d in enumerate(best, 1)]
        qrels += [f"q{q} 0 d{d} 1" for d in draw.sample(found, 3)]
    for name, lines in (("recall.trec", recall), ("rank.trec", rank), ("qrels.txt", qrels)):
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def command(wheel, place, text, code=0):
    """Standard output of a command that runs from the wheel alone, without torch."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *text.split()],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(wheel), "COLUMNS": "100"},
        capture_output=True,
        encoding="utf-8",
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_wheel_imports_measures_reports_and_gates_without_torch(wheel, place):
    def run(text, code=0):
        return command(wheel, place, text, code)

    assert "logs/mine" in run("import ratings.csv logs/mine")
    assert " 0 FAIL" in run("validate logs/mine")
    run("describe logs/mine --html describe.html")
    run("import-run recall.trec rank.trec runs/new --qrels qrels.txt")
    run("import-run rank.trec runs/old --qrels qrels.txt")
    assert "HR@10" in run("measure runs/new HR@10 MRR")
    assert "HR@10" in run("compare runs/old runs/new HR@10")
    assert "not worse" in run("gate runs/new runs/old --measure HR@10 --margin .05")
    run("report runs/new runs/old --out report.html")
    assert "<html" in (place / "report.html").read_text()
    run("export runs/new trec --format trec")
    assert "popular" in run("recipes")
    assert "online_retail" in run("sources") and "HR@k" in run("measures")
    assert "not installed" in run("doctor")


@pytest.mark.slow
def test_without_torch_what_needs_none_replays_and_the_rest_says_so(wheel, place):
    command(wheel, place, "import ratings.csv logs/second")
    assert "HR@10" in command(wheel, place, "replay popular logs/second --out runs/popular")
    for text in ("replay baseline logs/second --out runs/baseline", "stages"):
        *_, last = command(wheel, place, text, code=1).strip().splitlines()
        assert last.startswith("error: ") and "torch" in last and "did you mean" not in last
    assert not (place / "runs/baseline").exists()
