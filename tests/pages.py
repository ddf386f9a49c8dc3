"""Every HTML page of the project from one material, in which every free text is what a function
makes of a word.

    python pages.py MATERIAL OUT    # writes the pages of a material again, in another process
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import polars as pl
from karmafunnel.log import Log
from karmafunnel.simulator.ablation.formats import page as table_page
from karmafunnel.simulator.experiment.duel import Duel
from karmafunnel.simulator.experiment.result_page import duel_page
from karmafunnel.simulator.likeness.card import Card
from karmafunnel.simulator.likeness.judging import Answer, Drawing
from karmafunnel.simulator.load.arrivals import Trace
from karmafunnel.simulator.load.capacity import Plan
from karmafunnel.simulator.load.profile import CUTOFF, ITEMS, MS, PASS, REQUESTS, STAGE, Profile
from karmafunnel.simulator.load.quality import LoadQuality
from karmafunnel.simulator.load.queueing import simulate
from karmafunnel.simulator.load.services import Service, Services, ServiceTime
from karmafunnel.simulator.measure.describe import describe
from karmafunnel.simulator.offpolicy.estimate_page import estimate_page
from karmafunnel.simulator.offpolicy.evaluate import Evaluation
from karmafunnel.simulator.offpolicy.support import Support
from karmafunnel.simulator.report.attention_plot import attention_figure
from karmafunnel.simulator.report.attribution_plot import attribution_figure
from karmafunnel.simulator.report.curves import curve_figure, write_curve
from karmafunnel.simulator.report.likeness_page import write_html as write_card
from karmafunnel.simulator.report.load_page import load_page
from karmafunnel.simulator.report.log_page import write_html
from karmafunnel.simulator.report.page import write_page
from karmafunnel.simulator.report.pareto_plot import pareto_figure
from karmafunnel.simulator.report.profile_page import profile_page
from karmafunnel.simulator.report.run_page import report
from karmafunnel.simulator.report.table import Cell, Table
from karmafunnel.stages.policies import BestOrRandom
from shop import make_shop
from small_run import make_log, make_run

PAYLOAD = "window.payloadRan=1"
HOSTILE = (
    f"""<img src=x onerror="{PAYLOAD}"><a href='javascript:{PAYLOAD}' onclick="{PAYLOAD}">x</a>"""
    f"""\"' onload={PAYLOAD} </script>"""
    f"<script>{PAYLOAD}</script><!--</style></title></textarea><b>%{{x}} %{{y}} {{{{ 7 * 7 }}}} "
    f"{{% raw %}} &lt;i&gt; &amp; $a$ \u2028 ]]>"
)
Words = Callable[[str], str]


def benign(word: str) -> str:
    return word


def hostile(word: str) -> str:
    return word + HOSTILE


def in_a_path(word: str) -> str:
    """As hostile as the name of a folder can be."""
    return word + "<img src=x onerror=" + PAYLOAD + ">%{x}&lt;" if word else word


# -- the material ----------------------------------------------------------------------------------


def material(folder: Path, words: Words) -> Path:
    """A log and Runs in a folder; the second Run is deeper, replayed other requests and names
    another log.
    """
    log = rename_log(Log.open(make_log(folder / "plain")), words)
    log.write(folder / "log")
    name = in_a_path if words is hostile else benign
    for i, run in enumerate((name("first"), name("second"), name("third"))):
        made = rename_run(make_run(folder / "runs" / run, seed=i, log=folder / "log"), words)
        if i == 1:
            meta = json.loads((made / "run.json").read_text())
            meta["stages"][-1]["k"], meta["limit"] = 20, 40
            (made / "run.json").write_text(json.dumps(meta))
            for table in ("requests", "ledger", "slates", "scored"):
                frame = pl.read_parquet(made / f"{table}.parquet")
                frame.filter(pl.col("request_id") < "r40").write_parquet(made / f"{table}.parquet")
    return folder


def rename_log(log: Log, words: Words) -> Log:
    def said(*names):
        return [pl.col(name) + words("") for name in names]

    def lists(*names):
        return [pl.lit([words(name)]).alias(name) for name in names]

    items = log.items.with_columns(
        *said("item_id", "title"), pl.lit(words("brand")).alias("brand"), *lists("category")
    )
    requests = log.requests.with_columns(
        *said("request_id", "user_id", "query", "source"), *lists("context")
    )
    texts = {key: words(key) for key in ("name", "licence", "currency", "source")}
    meta = (
        log.meta
        | texts
        | {
            "lacks": [words("lacks")],
            "set_aside": {words("rows"): 3},
            "scenario": [words("search")],
        }
    )
    return Log.make(
        items, requests, log.exposures.with_columns(*said("request_id", "item_id")), meta
    )


def rename_run(folder: Path, words: Words) -> Path:
    for path in folder.glob("*.parquet"):
        frame = pl.read_parquet(path)
        texts = [
            c
            for c in ("request_id", "item_id", "user_id", "stage", "channel", "lost")
            if c in frame.columns
        ]
        frame = frame.with_columns(pl.col(c).cast(pl.String) + words("") for c in texts)
        if path.stem == "ledger":
            frame = frame.with_columns(
                pl.col("lost").replace({words("not eligible"): "not eligible"})
            )
        if path.stem == "requests":
            frame = frame.with_columns(pl.lit(words("reading")).alias(f"{words('KARMA')}.reads"))
        stages = {
            c: f"{words(c.partition('.')[0])}.{c.partition('.')[2]}"
            for c in frame.columns
            if c.startswith(("recall.", "rank."))
        }
        frame.rename(stages).write_parquet(path)
    meta = json.loads((folder / "run.json").read_text())
    for key in ("recipe", "recipe_name", "funnel", "commit", "device", "command"):
        meta[key] = words(str(meta[key]))
    meta["embedders"], meta["versions"] = (
        {words("KARMA"): words("KARMA()")},
        {words("karmafunnel"): words("0")},
    )
    meta["stages"] = [
        {"name": words(s["name"]), "kind": words(s["kind"]), "k": s["k"]} for s in meta["stages"]
    ]
    meta["log"] |= {"name": words("corner shop"), "currency": words("EUR")}
    (folder / "run.json").write_text(json.dumps(meta))
    return folder


def services(words: Words) -> Services:
    stages = [
        Service("recall", ServiceTime(base_ms=10), servers=2),
        Service("rank", ServiceTime(base_ms=5)),
    ]
    for stage in stages:  # past its own checks
        object.__setattr__(stage, "name", words(stage.name))
    made = Services(tuple(stages), note="note")
    for field in ("name", "note"):
        object.__setattr__(made, field, words(field))
    return made


# -- the pages -------------------------------------------------------------------------------------


def write_all(folder: Path, words: Words, out: Path) -> dict[str, Path]:
    """Every page of a material, by what it is."""
    runs = sorted((folder / "runs").iterdir())
    # which refuses most of it: pages must not rely on that
    with patch("karmafunnel.simulator.measure.run.described", lambda path, meta: meta):
        pages = {
            "report of one Run": report(runs[:1], out / "report.html"),
            "report of three Runs": report(runs, out / "reports.html"),
        }
    log = Log.open(folder / "log")
    pages["describe"] = write_html(log, describe(log), out / "describe.html")
    bars = Drawing({"real": (np.array([words("popular")]), np.array([0.5]))}, words("share"), "", "bar")
    away = ((words("price level"), 0.1),)
    answers = [Answer(words("price paid"), words("price"), "KS", "FAIL", *(0.5,) * 6, words("why"), bars, away)]
    answers.append(Answer(words("order"), "", "KS", "n/a", why=words("no lists")))
    card = Card(words("real"), words("simulated"), ((40, 10), (40, 10), None), tuple(answers))
    pages["likeness"] = write_card(card, out / "likeness.html")
    shop = make_shop()
    kinds = pl.Series("category", [[words(f"c{i % 3}")] for i in range(shop.n_items)])
    shop = Log.make(shop.items.with_columns(kinds), shop.requests, shop.exposures, shop.meta)
    pages["describe a shop"] = write_html(shop, describe(shop), out / "shop.html")
    pages |= {
        "load": load(words, out / "load.html"),
        "profile": profile(words, out / "profile.html"),
    }
    pages |= {"table": table(words, out / "table.html")} | figures(words, out)
    return pages | {
        "interleaving": interleaving(words, out / "duel.html"),
        "off-policy estimates": estimates(words, out / "ope.html"),
    }


def interleaving(words: Words, path: Path) -> Path:
    rng = np.random.default_rng(0)
    duel = Duel(rng.integers(0, 300, 900), np.zeros(900, int), rng.choice([-1, 0, 1, 1], 900))
    names, record = (words("a"), words("b")), {words("a"): words("funnel = Popular()")}
    return write_page(path, duel_page(duel, names, words("TeamDraft()"), words("cmd"), record))


def estimates(words: Words, path: Path) -> Path:
    ends = {"value": 1.0, "low": 0.5, "high": 1.5}
    gap = {"difference": 0.1, "d_low": -0.4, "d_high": 0.6}
    rows = [
        {"estimator": "IPS", "refused": ""} | ends | gap,
        {"estimator": words("mine"), "refused": words("rests on nothing")},
    ]
    support = {"list": Support(900, 40.0, 2.0, 0.2, 0.1)}
    found = Evaluation(rows, ends, support, 900, outside=words("r1"))
    names = words("run"), words("log")
    return write_page(path, estimate_page(found, BestOrRandom(0.1), "clicks", names, words("cmd")))


def load(words: Words, path: Path) -> Path:
    made = services(words)
    names, policies = [stage.name for stage in made.stages], [words("policy a"), words("policy b")]
    curve = pl.DataFrame(
        {
            "policy": [p for p in policies for _ in range(2)],
            "rate": [10.0, 20.0] * 2,
            "goodput": [10.0, 18.0, 10.0, 15.0],
            "p99_ms": [5.0, 7.0, 4.0, 9.0],
            "full": [1.0, 0.5, 1.0, 0.4],
            "nothing": [0.0, 0.1, 0.0, 0.2],
            "HR@10": [0.4, 0.3, 0.4, 0.2],
            "HR@10 low": [0.3, 0.2, 0.3, 0.1],
            "HR@10 high": [0.5, 0.4, 0.5, 0.3],
        }
    )
    outages = pl.DataFrame(
        {
            "stage": names,
            "path": [words("popular"), words("skip")],
            "note": ["", words("no Run")],
            "money": [100.0, 100.0],
            "lost": [30.0, None],
            "low": [20.0, None],
            "high": [45.0, None],
        }
    )
    stages = {
        "stage": names,
        "servers": [2, 1],
        "fewest": [1, 1],
        "utilisation": [0.5, 0.6],
        "p99_ms": [9.0, 8.0],
        "cost_per_hour": [2.0, 1.0],
    }
    change = {
        "change": [words("one more")],
        "rate": [9.0],
        "p99_ms": [9.0],
        "low": [8.0],
        "high": [9.5],
        "degraded": [0.0],
    }
    what_if = pl.DataFrame(change | {"cost_per_million": [4.0], "meets": [True]})
    plan = Plan(
        made, 9.0, 50.0, 0.01, 100, 0, 9.0, 0.0, pl.DataFrame(stages), what_if, 12.0, True, 3
    )
    quality = LoadQuality(
        [{"policy": policies[0], "measure": "HR@10"}], pl.DataFrame(), curve, outages, words("EUR")
    )
    simulation = simulate(made, Trace(np.array([0.0, 0.0, 0.0, 100.0])), 4, events=True)
    return load_page(
        simulation, path, quality=quality, plan=plan, command=words("karmafunnel plan")
    )


def profile(words: Words, path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = [
        {
            PASS: i,
            STAGE: words(stage),
            REQUESTS: n,
            ITEMS: n * each,
            CUTOFF: cutoff,
            MS: float(base + n * rng.uniform(0.5, 1.5)),
        }
        for i in range(120)
        for n in (1, 4)
        for stage, base, each, cutoff in (
            ("recall", 3.0, 100, None),
            ("rank", 1.0, 20 + 20 * (i % 2), 20 + 20 * (i % 2)),
        )
    ]
    passes = pl.DataFrame(rows, schema_overrides={CUTOFF: pl.Int32, PASS: pl.Int64})
    made = Profile.of(
        passes.with_columns(pl.col(STAGE).replace({words(s): s for s in ("recall", "rank")})),
        {"recall": 100},
    )
    for stage in made.services.stages:
        object.__setattr__(stage, "name", words(stage.name))
    for field in ("name", "note"):
        object.__setattr__(made.services, field, words(field))
    return profile_page(Profile(made.services, passes), path)


def table(words: Words, path: Path) -> Path:
    difference = {"difference": 0.1, "low": 0.05, "high": 0.15, "better": "B", "holm": True, "n": 9}
    differences = {
        words("text"): {"HR@10": difference, words("JS"): difference | {"better": "", "low": -0.1}},
        words("off"): {},
    }
    found = [
        Table(
            ["row", words("HR@10")],
            [[words("text"), Cell("0.5", "[0.4, 0.6]", strong=True)], [words("off"), words("n/a")]],
            title="values, 95% intervals",
        ),
        Table(["row", "why"], [[words("bad"), words("error")]], title="failed", look="prose"),
    ]
    below = [f"`{words('karmafunnel table')}`", words("note")]
    return write_page(path, table_page(words("title"), found, below, differences))


def figures(words: Words, out: Path) -> dict[str, Path]:
    """The pages of one figure."""
    ends = {"low": 0.1, "high": 0.3}
    points = [
        {"row": words(row), words("knob"): x, "value": 0.2} | ends
        for row in ("a", "b")
        for x in (0.0, 1.0)
    ]
    part = {
        "measure": "HR@10",
        "slice": "all",
        "value": 0.2,
        "low": 0.1,
        "high": 0.3,
        "share": 0.5,
        "alone": 0.1,
        "last": 0.1,
        "off": 0.1,
    }
    part |= {"on": 0.5, "better": "on", "holm": True, "n": 9, "seeds": 1}
    both = {words("hits"): {"value": 0.2} | ends, words("money"): {"value": 0.2} | ends}
    plots = {
        "curve": curve_figure(points, words("knob"), y_title=words("gain")),
        "attention": attention_figure({words("one"): np.tril(np.full((2, 3, 3), 0.25))}),
        "attribution": attribution_figure(
            [part | {"stage": s} for s in (words("recall"), words("rank"), "end to end")]
        ),
        "pareto": pareto_figure(
            [{"row": words("x"), **both}], words("hits"), words("money"), x_title=words("hits")
        ),
    }
    return {
        name: write_curve(plot, out / f"{name}.html", words(name))[0]
        for name, plot in plots.items()
    }


if __name__ == "__main__":
    write_all(Path(sys.argv[1]), hostile, Path(sys.argv[2]))
