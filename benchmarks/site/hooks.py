"""Hooks of MkDocs: the sample report becomes a part of the site, and links to files outside docs/,
which a reader of the Markdown can follow, become their paths.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import normpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "out" / "sample" / "report.html"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)#\s]*)(?:#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site with the sample report.

    Raises:
        FileNotFoundError: where it is not built yet.
    """
    if not REPORT.is_file():
        raise FileNotFoundError(f"{REPORT}: `make docs` writes it")
    files.append(File.generated(config, "sample/report.html", abs_src_path=str(REPORT)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with each link that leaves docs/ as its text and the path of the file.

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

    return LINK.sub(outside, markdown)
