"""One contract for every HTML page: no text becomes markup or runs, nothing is fetched, the same
material gives the same bytes.
"""

import ast
import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import karmafunnel
import numpy as np
import pytest
from karmafunnel.benchmarks.validation.browser import Browser, Seen, chromium
from karmafunnel.simulator.report.page import (
    Figure,
    Page,
    Section,
    as_json,
    drawn,
    embed,
    plain,
    policy,
    render,
    rich,
)
from pages import HOSTILE, benign, hostile, material, write_all

pytestmark = pytest.mark.slow

NAMES = ("report of one Run", "report of three Runs", "describe", "likeness", "describe a shop", "load", "profile", "table", "curve", "attention",
         "attribution", "pareto", "interleaving", "off-policy estimates")  # fmt: skip
OURS = {"<b>", "</b>", "<br>", "<extra>", "</extra>"}  # what `rich` may put into a figure
ROOT = Path(karmafunnel.__file__).parent


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, dict[str, Path]]:
    """The pages by what their texts are."""
    found = {}
    for words in (benign, hostile):
        folder = material(tmp_path_factory.mktemp(words.__name__), words)
        found[words.__name__] = write_all(folder, words, folder / "out")
    return found


def test_every_page_is_walked(made):
    assert tuple(made["hostile"]) == NAMES
    code = [*ROOT.glob("simulator/report/*.py"), *ROOT.glob("simulator/ablation/*.py")]
    writers = {path.stem for path in code if re.search(r"\b(write_page|write_curve|render)\(", path.read_text())}
    assert writers == {"run_page", "log_page", "likeness_page", "load_page", "profile_page", "attention_plot", "curves", "page", "formats"}


class Structure(HTMLParser):
    """Elements with the names of their attributes, in order; the scripts' texts; the policy."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple] = []
        self.run: list[str] = []
        self.data: list[str] = []
        self.policy = self.generator = ""
        self.into: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        if tag == "meta" and told.get("http-equiv") == "Content-Security-Policy":
            self.policy = told["content"]
        if tag == "meta" and told.get("name") == "generator":
            self.generator = told["content"]
        if tag == "script":
            self.into = self.data if told.get("type") == "application/json" else self.run
            self.into.append("")

    def handle_endtag(self, tag):
        self.into = None if tag == "script" else self.into

    def handle_data(self, data):
        if self.into is not None:
            self.into[-1] += data


@pytest.mark.parametrize("name", NAMES)
def test_no_text_becomes_an_element_or_an_attribute(made, name):
    """A page of hostile texts has the elements and attributes of one of plain words, in the same
    order.
    """
    plain_words, found = (Structure(made[kind][name].read_text()) for kind in ("benign", "hostile"))
    assert found.elements == plain_words.elements
    # the texts are there
    assert "onerror" in made["hostile"][name].read_text().split("<script>")[0]
    allowed = {"src", "onerror", "onclick", "onload"}
    assert not any(allowed & set(names) for _, names in found.elements)


@pytest.mark.parametrize("name", NAMES)
def test_only_our_own_scripts_may_run(made, name):
    found = Structure(made["hostile"][name].read_text())
    assert found.generator == "karmafunnel" and found.policy == policy()
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in found.run]
    assert len(digests) == 2 and all(f"'sha256-{digest}'" in found.policy for digest in digests)
    rules = dict(rule.split(" ", 1) for rule in found.policy.split("; "))
    assert rules["default-src"] == "'none'" and rules["script-src"].count("sha256") == 2
    assert set(rules) == {"default-src", "script-src", "style-src", "img-src", "font-src", "base-uri", "form-action"}
    assert not any("http" in rule or "*" in rule or ("unsafe" in rule and name != "style-src") for name, rule in rules.items())
    assert not any(HOSTILE[:20] in script for script in found.run)


def strings(value, place: str = ""):
    """(name of the field, text) of every text in a figure."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from strings(one, key)
    elif isinstance(value, list):
        for one in value:
            yield from strings(one, place)
    elif isinstance(value, str):
        yield place, value


@pytest.mark.parametrize("name", NAMES)
def test_plotly_can_read_no_text_as_markup(made, name):
    """It knows tags, entities and %{...} in titles, labels, hover texts and categories."""
    placeholders = {}
    for kind in ("benign", "hostile"):
        found = Structure(made[kind][name].read_text())
        figures = [json.loads(text) for text in found.data]
        texts = [pair for figure in figures if "layout" in figure for pair in strings(figure)]
        assert texts
        for place, text in texts:
            assert set(re.findall(r"<[^>]*>?", text)) <= OURS, (place, text)
            assert place == "hovertemplate" or "%{" not in text, (place, text)
        placeholders[kind] = [re.findall(r"%\{[^}]*\}", text) for place, text in texts if place == "hovertemplate"]
    assert placeholders["hostile"] == placeholders["benign"]


def test_equal_bytes_in_another_process(made, tmp_path):
    """Hash order, addresses in memory and the time of day change nothing."""
    folder = made["hostile"]["load"].parent.parent
    path = [str(Path(__file__).parent), *sys.path]
    told = os.environ | {"PYTHONHASHSEED": "4711", "PYTHONPATH": os.pathsep.join(path), "POLARS_MAX_THREADS": "1"}
    script = Path(__file__).with_name("pages.py")
    subprocess.run([sys.executable, str(script), str(folder), str(tmp_path)], env=told, check=True, capture_output=True)
    for name, page in made["hostile"].items():
        assert (tmp_path / page.name).read_bytes() == page.read_bytes(), name


def test_equal_bytes_twice(made, tmp_path):
    folder = made["benign"]["load"].parent.parent
    for name, page in write_all(folder, benign, tmp_path).items():
        assert page.read_bytes() == made["benign"][name].read_bytes(), name


# Hovers over every point of every figure, which is when hover texts are put into the page.
HOVER = """(async () => {
  document.querySelector("select") && [...document.querySelectorAll("button, option")].slice(0, 40).forEach((one) => one.click());
  const found = [];
  for (const place of document.querySelectorAll(".plot")) {
    if (!place.data) continue;
    for (let i = 0; i < place.data.length; i++) {
      for (const subplot of [place._fullData[i].xaxis + place._fullData[i].yaxis])
        try { Plotly.Fx.hover(place, [{ curveNumber: i, pointNumber: 0 }], subplot); } catch (error) { }
      found.push(...place.querySelectorAll("a, img, script, [onclick], [onerror]"));
    }
  }
  await new Promise((done) => setTimeout(done, 300));
  return { strange: found.length, ran: "payloadRan" in window, raw: document.querySelectorAll(".plot text").length };
})()"""


def visits(pages: dict[str, Path], **how) -> dict[str, Seen]:
    """What a browser shows of each page; two browsers share them."""

    def some(names: list[str]) -> dict[str, Seen]:
        with Browser() as browser:
            return {name: browser.visit(pages[name], **how) for name in names}

    names = list(pages)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(some, [names[::2], names[1::2]]))
    return {name: seen for part in found for name, seen in part.items()}


@pytest.mark.skipif(chromium() is None, reason="needs a Chromium")
def test_in_a_real_browser(made):
    for name, seen in visits(made["hostile"], width=1280, script=HOVER).items():
        assert not seen.errors, (name, seen)
        assert not seen.asked, (name, seen)
        assert not seen.payload, (name, seen)
        assert not seen.facts["empty"], (name, seen.facts)
        assert not seen.facts["links"], (name, seen.facts)
        assert seen.inside, (name, seen.facts)
        hovered = seen.facts["script"]
        assert hovered["strange"] == 0, (name, hovered)
        assert not hovered["ran"], (name, hovered)
        assert hovered["raw"] > 0, (name, hovered)


@pytest.mark.skipif(chromium() is None, reason="needs a Chromium")
@pytest.mark.parametrize("width", [1920, 1280, 390])
def test_every_page_is_whole_at_every_width(made, width):
    for name, seen in visits(made["benign"], width=width).items():
        assert not seen.faults, (name, seen.faults)
        assert width < 1000 or not seen.facts["cut"], (name, seen.facts)


# -- the pieces ------------------------------------------------------------------------------------


def test_rich_escapes_what_it_is_given():
    text = rich("<b>{}</b> %{x} {}", HOSTILE, rich("<i>{}</i>", "a & b"))
    assert text.startswith("<b>&lt;img") and text.count("%{") == 1 and text.endswith("<i>a &amp; b</i>")
    assert plain(text) is text
    with pytest.raises(ValueError, match="needed 1 values"):
        rich("{}", 1, 2)


def test_data_cannot_leave_its_script():
    text = embed({HOSTILE: [HOSTILE, 1 / 3, float("nan"), np.float32(0.5), np.arange(2)]})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {HOSTILE: [HOSTILE, 0.3333333333, None, 0.5, [0, 1]]}
    assert as_json((1, np.nan)) == [1, None]


def test_a_hover_template_of_unknown_make_is_refused():
    with pytest.raises(TypeError, match="hover template"):
        drawn({"data": [{"hovertemplate": "%{x}"}], "layout": {}})


def test_templates_refuse_what_is_missing():
    page = Page("t", "e", [], [Section("s", "S", "S", [Figure({"data": [], "layout": {"height": 9}})])])
    assert "<h1>t</h1>" in render(page)
    object.__delattr__(page, "eyebrow")
    with pytest.raises(Exception, match="eyebrow"):
        render(page)


SOURCES = [  # not what attacks pages, nor the site, whose pages are made from the project's own texts
    p for room in ("simulator", "benchmarks") for p in (ROOT / room).rglob("*.py") if p.parent.name not in ("validation", "site")
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_markup_is_made_in_one_place(path):
    """`rich` is given literals, and nothing else calls a text markup or joins tags."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "rich":
            assert isinstance(node.args[0], ast.Constant), f"{path.name}:{node.lineno}"
        if path.name != "page.py" and isinstance(node, ast.Call):
            assert getattr(node.func, "id", "") != "Markup", f"{path.name}:{node.lineno}"
        if path.name != "page.py" and isinstance(node, ast.JoinedStr):
            pieces = "".join(part.value for part in node.values if isinstance(part, ast.Constant))
            assert not re.search(r"</?(b|br|div|span|p|a|h[1-6]|td|th|tr|li|code|pre|script|style)[ >/]", pieces), f"{path.name}:{node.lineno}"
