"""Hooks of MkDocs: the sample report and the notebooks become pages of the site. Links to files
outside docs/, which a reader of the Markdown can follow, become their paths.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from posixpath import normpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "out" / "sample" / "report.html"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)#\s]*)(?:#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site with the sample report, and with a page for each notebook.

    Raises:
        FileNotFoundError: where the report is not built yet.
    """
    if not REPORT.is_file():
        raise FileNotFoundError(f"{REPORT}: `make docs` writes it")
    files.append(File.generated(config, "sample/report.html", abs_src_path=str(REPORT)))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = file.src_uri.removesuffix(".ipynb") + ".md"
        files.append(File.generated(config, page, content=notebook(file.content_string)))
        files.remove(file)
    return files


def notebook(text: str) -> str:
    """The cells of a notebook with what they printed, as Markdown."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [printed(output) for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def printed(output: dict[str, Any]) -> str:
    """What a cell printed or returned: its HTML, on one line so that it stays HTML, or its text."""
    data = output.get("data", {})
    if html := "".join(data.get("text/html", "")):
        line = re.sub(r"\s*\n\s*", " ", html)
        return f'<div class="printed">{line}</div>'
    return f"```text\n{''.join(output.get('text') or data.get('text/plain', '')).rstrip()}\n```"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with links to the pages of notebooks, and each link that leaves docs/ as its text
    and the path of the file.

    Raises:
        FileNotFoundError: where there is no such file.
    """
    folder = Path("docs", page.file.src_uri).parent

    def outside(found: re.Match[str]) -> str:
        text, target = found.groups()
        path = normpath((folder / target).as_posix())
        if path.startswith("docs/"):
            return found[0]
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{page.file.src_uri}: no {path} for the link {found[0]}")
        return f"`{path}`" if Path(path).name in text else f"{text} (`{path}`)"

    return LINK.sub(outside, markdown.replace(".ipynb)", ".md)"))
