"""Every notebook of the documentation runs from top to bottom in an empty folder, and is kept with
what it printed: `make notebooks`.
"""

from pathlib import Path

import karmafunnel
import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel, of the extra dev")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel, of the extra dev")

ROOT = Path(karmafunnel.__file__).parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def outputs(book):
    """Pairs of the kind and the text of what the cells of code printed or returned."""
    for cell in book.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            yield output["output_type"], output.get("text") or data.get("text/plain", "")


def test_there_are_four():
    assert {p.stem for p in NOTEBOOKS} >= {"first_funnel", "own_data", "embedding", "capacity"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT.parent))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    folder = tmp_path / "notebook"
    folder.mkdir()
    book = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()  # raises where a cell fails
    assert sum(bool(text) for _, text in outputs(book)) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_is_kept_with_what_it_printed(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    kept = [*outputs(book)]
    assert kept and "error" not in {kind for kind, _ in kept}
    assert not [text for _, text in kept if "/home/" in text or "/tmp/" in text or "/work/" in text]
