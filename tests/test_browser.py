"""What a reader does with a page, in a real browser: sorting, filtering, searching, switching
colours, printing, all by the page's own script and without a mouse.
"""

import re

import pytest
from karmafunnel.benchmarks.validation.browser import Browser, chromium
from pages import benign, material, write_all

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="needs a Chromium on the PATH"),
]

NAMES = ("report of one Run", "report of three Runs", "table", "load", "profile", "describe")
SEVERAL = "report of three Runs"


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each page shows and what each script below finds in it; reports are in dark colours."""
    folder = material(tmp_path_factory.mktemp("pages"), benign)
    pages = write_all(folder, benign, folder / "out")
    found = {}
    with Browser() as browser:
        for name in NAMES:
            some = {k: script for k, script in SCRIPTS.items() if k != "searched" or name == SEVERAL}
            told = ", ".join(f"{k}: await {script}" for k, script in some.items())
            visit = browser.visit(pages[name], dark="report" in name, script=f"(async () => ({{ {told} }}))()", printed=PRINTED)
            found[name] = visit.facts["script"] | {"printed": visit.facts["printed"], "faults": visit.faults}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_no_errors_and_every_figure_is_drawn(seen, name):
    assert seen[name]["faults"] == []


# The texts of every column before, and after each of three clicks on its head.
SORTED = """(() => {
  const read = (table, i) => [...table.tBodies[0].rows].filter((row) => !row.classList.contains("reference")).map((row) => {
    const cell = row.cells[i], bar = cell.querySelector(".bar");
    return bar ? bar.style.width : (cell.querySelector(".v, .plain") || cell).textContent.trim();
  });
  const order = (table) => [...table.tBodies[0].rows].map((row) => row.rowIndex);
  const found = [];
  for (const table of document.querySelectorAll("main > section table")) {
    for (const button of table.querySelectorAll("thead th button")) {
      const th = button.parentElement, i = th.cellIndex;
      const before = read(table, i), rows = [...table.tBodies[0].rows];
      const one = { number: th.classList.contains("num"), before, after: [], told: [] };
      for (let click = 0; click < 3; click++) {
        button.focus();
        button.click();
        one.after.push(read(table, i));
        one.told.push(th.getAttribute("aria-sort"));
        one.focus = document.activeElement === button && getComputedStyle(button).outlineStyle !== "none";
      }
      one.restored = rows.every((row, j) => row === table.tBodies[0].rows[j]);
      found.push(one);
    }
  }
  return found;
})()"""


def value(text: str):
    """A printed value as the test reads it: a number, a text, or None."""
    found = re.match(r"[+±<≥]?\s*(−?[\d,]*\.?\d+)(k|m|bn)?(?![\w.:/-])", text)
    if found:
        size = {"k": 1e3, "m": 1e6, "bn": 1e9}.get(found[2], 1)
        return float(found[1].replace("−", "-").replace(",", "")) * size
    return None if text in ("", "n/a", "–") else text


def in_order(texts: list[str], direction: int) -> bool:
    """Whether numbers rise or fall, texts come after them, and what says nothing is last."""
    values = [value(text) for text in texts]
    kinds = [2 if v is None else 1 if isinstance(v, str) else 0 for v in values]
    numbers = [direction * v for v in values if isinstance(v, float)]
    return kinds == sorted(kinds) and numbers == sorted(numbers)


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_sorted_by_their_heads(seen, name):
    columns = seen[name]["sorted"]
    assert columns
    for one in columns:
        first, second = ("descending", "ascending") if one["number"] else ("ascending", "descending")
        assert one["told"] == [first, second, "none"], one
        assert in_order(one["after"][0], -1 if one["number"] else 1), one
        assert in_order(one["after"][1], 1 if one["number"] else -1), one
        assert one["after"][2] == one["before"] and one["restored"], one
        assert one["focus"], one
    assert any(one["after"][0] != one["before"] or one["after"][1] != one["before"] for one in columns)


FILTERED = """(() => [...document.querySelectorAll(".filter input")].map((input) => {
  const table = input.closest(".scrolled").querySelector("table"), rows = [...table.tBodies[0].rows];
  const shown = () => rows.filter((row) => row.getClientRects().length).map((row) => row.textContent.toLowerCase());
  const type = (text) => { input.value = text; input.dispatchEvent(new Event("input")); return shown(); };
  const count = () => input.nextElementSibling.textContent;
  const word = rows.at(-1).cells[0].textContent.trim().split(" ")[0];
  const some = type(word), told = count();
  return { rows: rows.length, word, some, told, none: type("no such row").length, all: type("").length, quiet: count() };
}))()"""


@pytest.mark.parametrize("name", [SEVERAL, "describe"])
def test_tables_are_filtered_by_words(seen, name):
    tables = seen[name]["filtered"]
    assert tables
    for one in tables:
        assert 0 < len(one["some"]) <= one["rows"] and one["none"] == 0 and one["all"] == one["rows"]
        assert all(one["word"].lower() in text for text in one["some"]), one
        assert one["told"] == f"{len(one['some'])} of {one['rows']} rows" and one["quiet"] == ""
    assert any(len(one["some"]) < one["rows"] for one in tables)


SEARCHED = """(() => {
  const data = JSON.parse(document.getElementById("one-data").textContent);
  const input = document.querySelector("#one input"), choice = document.querySelector("#one select[aria-label=Request]");
  const heading = () => document.querySelector("#one .ask").innerText;
  const type = (text) => {
    input.focus();
    input.value = text;
    input.dispatchEvent(new Event("input"));
    return { options: [...choice.options].map((o) => o.textContent), heading: heading(), told: document.querySelector("#one output").textContent,
             focus: document.activeElement === input };
  };
  const last = data.requests.at(-1);
  const found = { last, id: type(last.id), user: type(last.user), query: type(last.query), none: type("no such request") };
  type("");
  found.all = choice.options.length;
  found.requests = data.requests.length;
  document.querySelector("#one button[aria-label='Next request']").click();
  found.hash = location.hash;
  const runs = [...document.querySelectorAll("#one select.run")];
  found.sides = () => document.querySelectorAll("#one .side").length;
  const sides = () => [...document.querySelectorAll("#one .side h3")].map((one) => one.textContent);
  found.beside = sides();
  if (runs.length) {
    runs[1].value = "-1";
    runs[1].dispatchEvent(new Event("change"));
    found.alone = sides();
    const again = [...document.querySelectorAll("#one select.run")];
    again[1].value = "2";
    again[1].dispatchEvent(new Event("change"));
    found.third = sides();
  }
  found.stages = [...document.querySelectorAll("#one .wants thead tr:last-child th")].map((one) => one.textContent);
  found.plots = [...document.querySelectorAll("#one .plot svg.main-svg")].length;
  delete found.sides;
  return found;
})()"""


def test_requests_are_found_and_two_runs_stand_side_by_side(seen):
    found = seen[SEVERAL]["searched"]
    last = found["last"]
    for field in ("id", "user", "query"):
        seen = found[field]
        assert seen["options"] and seen["focus"], (field, seen)
        assert all(last[field] in option for option in seen["options"]), (field, seen)
        assert seen["told"] == f"{len(seen['options'])} of {found['requests']}"
    assert f"user {last['user']}" in found["id"]["heading"] and last["query"] in found["id"]["heading"]
    assert found["none"]["options"] == [] and "none of the" in found["none"]["told"]
    assert found["all"] == found["requests"] and found["hash"].startswith("#request=")
    assert found["beside"] == ["first", "second †"] and found["alone"] == ["first"]
    assert found["third"] == ["first", "third"]
    assert found["stages"].count("outcome") == 2 and found["stages"].count("recall") == 2
    assert found["plots"] >= 2


THEME = """(async () => {
  const look = () => ({
    page: getComputedStyle(document.body).backgroundColor,
    words: getComputedStyle(document.body).color,
    plot: getComputedStyle(document.querySelector(".plot .xtick text")).fill,
    button: document.getElementById("theme").getAttribute("aria-label"),
  });
  const found = [look()];
  for (let i = 0; i < 2; i++) {
    document.getElementById("theme").click();
    await new Promise((done) => setTimeout(done, 50));
    found.push(look());
  }
  const remembered = localStorage.getItem("karmafunnel-theme");
  localStorage.clear(); // all files share it
  return { looks: found, remembered };
})()"""


def brightness(colour: str) -> int:
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


@pytest.mark.parametrize("name", NAMES)
def test_colours_follow_the_system_and_the_switch(seen, name):
    dark, found = "report" in name, seen[name]["theme"]
    looks = found["looks"]
    assert found["remembered"] == ("dark" if dark else "light")
    for look, now in zip(looks, (dark, not dark, dark), strict=True):
        assert (brightness(look["page"]) < 200) == now, look
        assert (brightness(look["words"]) > 500) == now, look
        assert (brightness(look["plot"]) > 380) == now, look
        assert ("light" if now else "dark") in look["button"], look


PRINTED = """(async () => {
  const folds = [...document.querySelectorAll("details")];
  folds.forEach((one) => { one.open = false; });
  dispatchEvent(new Event("beforeprint"));
  await new Promise((done) => setTimeout(done, 50));
  const main = document.querySelector("main").getBoundingClientRect();
  const inside = (one) => { const box = one.getBoundingClientRect(); return box.left >= main.left - 1 && box.right <= main.right + 1; };
  const found = {
    folds: folds.length, open: folds.filter((one) => one.open).length,
    width: main.width, scroll: document.documentElement.scrollWidth,
    plots: [...document.querySelectorAll(".plot")].map((one) => ({ drawn: !!one.querySelector("svg"), inside: [...one.querySelectorAll("svg")].every(inside) })),
    tables: [...document.querySelectorAll("main table")].map((one) => inside(one) && one.closest(".wide").scrollWidth <= one.closest(".wide").clientWidth + 1),
    page: getComputedStyle(document.body).backgroundColor, words: getComputedStyle(document.querySelector(".plot .xtick text")).fill,
    seen: ["nav", "#theme", ".filter", ".picker", ".hint"].filter((name) => [...document.querySelectorAll(name)].some((one) => one.getClientRects().length)),
  };
  dispatchEvent(new Event("afterprint"));
  found.after = folds.filter((one) => one.open).length;
  return found;
})()"""


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_missing_on_paper(seen, name):
    """In the width of a page of A4 less its margins."""
    found = seen[name]["printed"]
    assert found["open"] == found["folds"] and found["after"] == 0
    assert found["width"] <= 703
    assert found["plots"] and all(one["drawn"] and one["inside"] for one in found["plots"]), found["plots"]
    assert all(found["tables"]), found["tables"]
    assert brightness(found["page"]) > 600 and brightness(found["words"]) < 330
    assert found["seen"] == []


HEARD = """(() => {
  const skip = document.querySelector(".skip");
  skip.focus();
  const box = skip.getBoundingClientRect();
  const unnamed = (one) => !(one.textContent.trim() || one.getAttribute("aria-label"));
  return {
    first: document.querySelector("a, button, input, select, [tabindex='0']") === skip, shown: box.left >= 0 && box.top >= 0,
    leads: !!document.querySelector(skip.getAttribute("href")),
    unnamed: [...document.querySelectorAll("button, a, .plot, input, select")].filter((one) =>
      !one.closest("svg") && one.offsetParent && unnamed(one)).map((one) => one.outerHTML.slice(0, 80)),
    scopeless: [...document.querySelectorAll("th")].filter((one) => !one.scope).map((one) => one.outerHTML),
    language: document.documentElement.lang, headings: [...document.querySelectorAll("h1, h2, h3, h4")].map((one) => +one.tagName[1]),
  };
})()"""


@pytest.mark.parametrize("name", NAMES)
def test_pages_can_be_used_by_keyboard_and_ear(seen, name):
    found = seen[name]["heard"]
    assert found["first"] and found["shown"] and found["leads"] and found["language"] == "en"
    assert found["unnamed"] == [] and found["scopeless"] == []
    assert found["headings"][0] == 1 and found["headings"].count(1) == 1
    assert all(b - a <= 1 for a, b in zip(found["headings"], found["headings"][1:], strict=False))


SCRIPTS = {"heard": HEARD, "theme": THEME, "sorted": SORTED, "filtered": FILTERED, "searched": SEARCHED}
