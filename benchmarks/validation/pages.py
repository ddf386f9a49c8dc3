"""Hostile text in pages: every free text of logs, Runs, recipes, services and tables holds markup,
and each page is opened in a browser.

Nothing of it may run or become an element of the page, and each page has to say that only its own
scripts may run.
"""

from __future__ import annotations

import atexit
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ...errors import KarmafunnelError
from ...log import Log
from .browser import Browser, chromium
from .material import META, PLAIN, SERVICES, Case, Shop, frames
from .values import sealed_again

SAFE, REFUSED, SKIPPED = "shown as text", "refused in a line", "no browser here"
RAN, ELEMENT, POLICY, ERRORS, TRACEBACK = (
    "RAN",
    "BECAME MARKUP",
    "NO POLICY",
    "PAGE WITH ERRORS",
    "TRACEBACK",
)
OUTCOMES = (SAFE, REFUSED, SKIPPED, RAN, ELEMENT, POLICY, ERRORS, TRACEBACK)
BAD = OUTCOMES[3:]

RUN_IT = "window.payloadRan=1"
PAYLOADS = (
    f'<img src=x id=attacked onerror="{RUN_IT}">',
    f"<script id=attacked>{RUN_IT}</script>",
    f"</script><script id=attacked>{RUN_IT}</script>",
    f"</title><svg id=attacked onload={RUN_IT}>",
    f'"><svg id=attacked onload={RUN_IT}>',
    f"' id='attacked' onmouseover='{RUN_IT}' autofocus onfocus='{RUN_IT}",
    f"</style><img src=x id=attacked onerror={RUN_IT}>",
    f'<a id=attacked href="javascript:{RUN_IT}">here</a>',
    f"javascript:{RUN_IT}",
    "{{ 7 * 191 }} {% raw %}${7 * 191}",
    "<iframe id=attacked srcdoc='<script>parent.payloadRan=1</script>'></iframe>",
    f"--></textarea></pre><img src=x id=attacked onerror={RUN_IT}>",
    f'"}}]}}</script><script id=attacked>{RUN_IT}//',
    "<b id=attacked>bold</b> &lt;i&gt; &#60;b&#62;",
    f"\u2028\u2029';{RUN_IT};//",
    "<base id=attacked href='http://example.invalid/'>",
    f"<math><mi id=attacked xlink:href='javascript:{RUN_IT}'>x</mi></math>",
    "<meta id=attacked http-equiv=refresh content='0;url=javascript:1'>",
    "%{customdata[0]} %{x}<extra></extra>",
    "$\\href{javascript:1}{x}$",
)
INJECTED = """(() => {
  const every = [...document.querySelectorAll("[href], [src], [action]")];
  const names = ["href", "src", "action"];
  const goes = every.flatMap((one) => names.map((name) => one.getAttribute(name) || ""));
  return {
    marked: document.querySelectorAll("#attacked").length,
    ran: "payloadRan" in window,
    policy: !!document.querySelector("meta[http-equiv=Content-Security-Policy]"),
    links: goes.filter((to) => /^\\s*(javascript|vbscript):/i.test(to)),
    sum: document.body.innerText.includes("1337"),
  };
})()"""


@cache
def browser() -> Browser:
    """One browser for all tries."""
    made = Browser().__enter__()
    atexit.register(made.__exit__, None, None, None)
    return made


def hostile_log(shop: Shop, payload: str, name: str = "hostile") -> None:
    """A log whose every text holds the payload."""
    tables = frames(n_requests=300, seed=7)
    text = pl.lit(payload)
    tables["items"] = tables["items"].with_columns(
        title=pl.col("title") + " " + text,
        brand=text,
        category=pl.concat_list(text),
        item_id=pl.col("item_id") + text,
    )
    tables["requests"] = tables["requests"].with_columns(
        query=pl.col("query") + " " + text,
        request_id=pl.col("request_id") + text,
        user_id=pl.col("user_id") + text,
    )
    tables["exposures"] = tables["exposures"].with_columns(
        pl.col("request_id") + text, pl.col("item_id") + text
    )
    meta: dict[str, Any] = META | {
        "name": payload,
        "currency": payload,
        "licence": payload,
        "source": payload,
        "lacks": [payload],
        "set_aside": {payload: 3},
    }
    for kept in (meta, META | {"name": payload, "licence": payload, "lacks": [payload]}, META):
        try:
            Log.make(**tables, meta=kept).write(shop.work / name)
            return
        except KarmafunnelError:
            continue


def quoted(payload: str) -> str:
    return json.dumps(payload)


def of_log(shop: Shop, payload: str) -> tuple[list[list[str]], str]:
    hostile_log(shop, payload)
    return [["describe", "hostile", "--html", "page.html"]], "page.html"


def of_run(shop: Shop, payload: str) -> tuple[list[list[str]], str]:
    hostile_log(shop, payload)
    (shop.work / "odd.py").write_text(
        f"# {quoted(payload)}\nnote = {quoted(payload)}\n{PLAIN}", encoding="utf-8"
    )
    return [
        ["replay", "odd.py", "hostile", "--out", "run"],
        ["report", "run", "--out", "page.html"],
    ], "page.html"


def of_two(shop: Shop, payload: str) -> tuple[list[list[str]], str]:
    name = payload.replace("/", "_")[:60]
    hostile_log(shop, payload)
    return [
        ["replay", "plain.py", "hostile", "--out", f"run {name}"],
        ["replay", "rows.py", "hostile", "--out", "other run"],
        ["report", f"run {name}", "other run", "--out", "page.html"],
    ], "page.html"


TOLD = (
    ("recipe_name",),
    ("recipe",),
    ("funnel",),
    ("row",),
    ("command",),
    ("commit",),
    ("device",),
    ("log", "name"),
    ("log", "currency"),
    ("log", "path"),
    ("log", "checksum"),
    ("versions", "numpy"),
)


def edited(*ways: tuple[str, ...]) -> Callable[[Shop, str], tuple[list[list[str]], str]]:
    """A finished Run whose run.json says the payload at some places."""

    def make(shop: Shop, payload: str) -> tuple[list[list[str]], str]:
        path = shop.work / "plain" / "run.json"
        said = json.loads(path.read_text(encoding="utf-8"))
        for way in ways:
            holder = said
            for key in way[:-1]:
                holder = holder[key]
            holder[way[-1]] = payload
        path.write_text(json.dumps(said), encoding="utf-8")
        sealed_again(path.parent)
        return [["report", "plain", "other", "--out", "page.html"]], "page.html"

    return make


def of_table(shop: Shop, payload: str) -> tuple[list[list[str]], str]:
    row = f"together {payload}"
    text = (
        (shop.work / "rows.py")
        .read_text(encoding="utf-8")
        .replace('"together":', f"{quoted(row)}:")
    )
    text = text.replace(
        '{"near": Cooccurrence()}',
        f'Row(embedders={{"near": Cooccurrence()}}, note={quoted(payload)})',
    )
    (shop.work / "rows.py").write_text(
        "from karmafunnel.simulator.replay.recipe import Row\n" + text, encoding="utf-8"
    )
    return [["table", "rows.py", "small", "--out", "new"]], "new/table.html"


def in_services(
    old: str, command: str, page: str
) -> Callable[[Shop, str], tuple[list[list[str]], str]]:
    def make(shop: Shop, payload: str) -> tuple[list[list[str]], str]:
        text = SERVICES.replace(
            old,
            old.replace("small", "X")
            .replace("recall", "X")
            .replace("popular", "X")
            .replace("X", "@@"),
        )
        text = text.replace('"@@"', quoted(payload))
        (shop.work / "services.toml").write_text(text, encoding="utf-8")
        return [command.split()], page

    return make


def of_profile(shop: Shop, payload: str) -> tuple[list[list[str]], str]:
    hostile_log(shop, payload)
    (shop.work / "odd.py").write_text(
        PLAIN.replace('name="rank"', f"name={quoted(payload)}"), encoding="utf-8"
    )
    return [
        ["profile", "odd.py", "hostile", "--out", "s.toml", "--seconds", "0.1", "--batches", "1,2"]
    ], "s.html"


def of_stage(shop: Shop, payload: str) -> tuple[list[list[str]], str]:
    (shop.work / "odd.py").write_text(
        PLAIN.replace('name="rank"', f"name={quoted(payload)}"), encoding="utf-8"
    )
    return [
        ["replay", "odd.py", "small", "--out", "run"],
        ["report", "run", "--out", "page.html"],
    ], "page.html"


QUEUE = "queue services.toml --rate 200 --requests 500 --out new"
PAGES: dict[str, Callable[[Shop, str], tuple[list[list[str]], str]]] = {
    "describe: log": of_log,
    "report: log and recipe": of_run,
    "report: two Runs, folder name": of_two,
    "report: stage name": of_stage,
    "table: row and note": of_table,
    "profile: log and stage name": of_profile,
    "queue: deployment name": in_services('name = "small"', QUEUE, "new/load.html"),
    "queue: stage name": in_services('name = "recall"', QUEUE, "new/load.html"),
    "queue: fallback": in_services('fallback = "popular"', QUEUE, "new/load.html"),
    "plan: deployment name": in_services(
        'name = "small"',
        "plan services.toml --rate 200 --p99-ms 60 --lost 0.2 --requests 1000 --out new",
        "new/load.html",
    ),
    "report: run.json": edited(*TOLD),
    "report: run.json label": edited(("label",)),
    "report: run.json window": edited(("window",)),
    "report: run.json catalogue": edited(("log", "catalogue")),
}


def attempt(shop: Shop, page: str, payload: str) -> tuple[str, str]:
    if chromium() is None:
        return SKIPPED, "needs a Chromium on the PATH"
    shop.fresh(("small", "plain", "other", "plain.py", "rows.py", "services.toml", "cache"))
    commands, where = PAGES[page](shop, payload)
    for argv in commands:
        answer = shop.run(*argv)
        if answer.fault:
            return TRACEBACK, f"{payload}: {argv[0]}: {answer.line}"
        if answer.code:
            return REFUSED, f"{payload}: {argv[0]}: {answer.line}"
    return opened(shop.work / where, payload)


def opened(path: Path, payload: str) -> tuple[str, str]:
    """What the browser makes of a page."""
    seen = browser().visit(path, script=INJECTED)
    found = seen.facts["script"]
    told = f"{payload}: {found}, {seen.errors[:2]} {seen.asked[:2]}"
    if seen.payload or found["ran"]:
        return RAN, told
    if found["marked"] or found["links"] or found["sum"] or seen.asked:
        return ELEMENT, told
    if not found["policy"]:
        return POLICY, told
    return (ERRORS, told) if seen.errors else (SAFE, payload)


def cases(shop: Shop, seed: int, count: int) -> list[Case]:
    every = [(page, payload) for page in PAGES for payload in PAYLOADS]
    order = np.random.default_rng([seed, 4]).permutation(len(every))
    found = []
    for place in order[:count]:
        page, payload = every[place]

        def do(shop: Shop, args: tuple[str, str] = (page, payload)) -> tuple[str, str]:
            return attempt(shop, *args)

        found.append(Case(page, payload, do))
    return found
