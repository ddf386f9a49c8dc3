"""Peers side by side: other people's recommenders on the same log, windows and eligible items,
judged by our measures.

    python -m karmafunnel.benchmarks.peers.peers LOG --out out/peers
        [--peer NAME ...] [--minutes 60] [--seed 0 ...]

Each peer is a script of benchmarks/peers in a virtual environment of its own, made from a pinned
list; it reads Parquet that holds nothing of a request's own time or later, and writes (request_id,
item_id, score). What it says is replayed as the stage `External`, so that both tables are made by
the code that makes every other: each peer's own lists, and the candidates of our recall in each
peer's order (in a log with shown lists: those). Peers learn from W1 as our embedders do, second
stages from W2a, and are tuned on W2b. What is done is not made again; a peer that fails is a line
that says why.
"""

import csv
import hashlib
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from karmafunnel.asof import NEVER
from karmafunnel.cli import OneLineErrors
from karmafunnel.errors import KarmafunnelError
from karmafunnel.files import atomic_folder, read_json, read_text, remove, write_json, write_text
from karmafunnel.keys import cache_root, code_digest, content_key
from karmafunnel.log import Log, sha256
from karmafunnel.simulator.ablation.formats import markdown, page
from karmafunnel.simulator.measure.compare import Run, compare, measure
from karmafunnel.simulator.measure.differences import correct
from karmafunnel.simulator.replay.options import DEFAULTS, RunOptions
from karmafunnel.simulator.replay.prepare import prepare
from karmafunnel.simulator.replay.provenance import commit, processor
from karmafunnel.simulator.replay.recipe import Recipe, load_recipe
from karmafunnel.simulator.replay.replay import code_of_run, replay
from karmafunnel.simulator.report import plots
from karmafunnel.simulator.report.curves import write_curve
from karmafunnel.simulator.report.measure_table import define, valued
from karmafunnel.simulator.report.page import rich, write_page
from karmafunnel.simulator.report.table import Cell, Table, number
from karmafunnel.stages.frame import ITEM, REQUEST, spaced
from karmafunnel.stages.recall import External
from karmafunnel.stages.stage import FittedFunnel, Funnel
from karmafunnel.terminal import Console

FOLDER = Path(__file__).parent
HELPERS = ("exchange.py", "rectools_frames.py")  # what scripts import
K = 50  # length of a list
DEPTH = 500  # events of a history
TAUGHT = 3000  # requests of W2a whose candidates a second stage may learn from
OURS = "ours"
REFERENCES = ("logged order", "random", "ceiling")
Line = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """A script that ends in `exchange.main`, and its pinned packages (None: the interpreter that
    runs this); `refit` learns from W2 as well.
    """

    script: Path
    packages: Path | None
    refit: bool = False


PEERS = {
    "BM25": Peer(FOLDER / "bm25.py", FOLDER / "bm25.txt"),
    "implicit item-kNN": Peer(FOLDER / "implicit_knn.py", FOLDER / "implicit.txt"),
    "implicit item-kNN, W2 too": Peer(
        FOLDER / "implicit_knn.py", FOLDER / "implicit.txt", refit=True
    ),
    "implicit ALS": Peer(FOLDER / "implicit_als.py", FOLDER / "implicit.txt"),
    "implicit ALS, W2 too": Peer(FOLDER / "implicit_als.py", FOLDER / "implicit.txt", refit=True),
    "RecTools two stages": Peer(FOLDER / "rectools_two_stage.py", FOLDER / "rectools.txt"),
    "RecTools SASRec": Peer(FOLDER / "rectools_sasrec.py", FOLDER / "rectools.txt"),
}


# -- what a peer sees ------------------------------------------------------------------------------


def tables(log: Log, label: str, candidates: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The frames that a peer reads (columns: `exchange.Data`); `candidates` has `request` and
    `item` as row numbers.

    Nothing that happened in W3 is among them but as the history before a request, and no request's
    own exposures at all.
    """
    asof, item_ids, request_ids = log.asof, log.items["item_id"], log.requests["request_id"]
    known = np.where(asof.known_rank < 0, NEVER, asof.times[np.maximum(asof.known_rank, 0)])
    items = pl.DataFrame(
        {"item_id": item_ids, "title": log.items["title"], "text": log.item_text(), "known": known}
    )
    users = log.requests.select(pl.int_range(pl.len()).alias(REQUEST), "user_id")
    happened = log.events.filter(pl.col("t") < log.end_of("W2b"))
    happened = happened.join(users, on=REQUEST, how="left", maintain_order="left")
    bought = pl.col("purchased").fill_null(False)
    in_w1, in_w2a = (pl.col("t") < log.end_of(window) for window in ("W1", "W2a"))
    window = (
        pl.when(in_w1).then(pl.lit("W1")).when(in_w2a).then(pl.lit("W2a")).otherwise(pl.lit("W2b"))
    )
    interactions = happened.select(
        "user_id",
        item_ids.gather(happened[ITEM]),
        "t",
        pl.when(bought).then(2).otherwise(1).cast(pl.Int8).alias("action"),
        window.alias("window"),
    )
    asked = log.requests_in("W2", "W3")
    requests = log.requests[asked].select(
        "request_id",
        "user_id",
        pl.Series("t", log.t[asked]),
        "window",
        "query",
        pl.Series("filter", asof.filter_key[asked]),
    )
    past = asof.history(asked, DEPTH)
    row, place = np.nonzero(past.items >= 0)
    histories = pl.DataFrame(
        {
            "request_id": request_ids.gather(asked[row]),
            "item_id": item_ids.gather(past.items[row, place]),
            "t": log.t[asked[row]] - past.ages[row, place],
            "action": past.actions[row, place],
        }
    )
    truth = log.truth(label).filter(pl.col(REQUEST).is_in(log.requests_in("W2").tolist()))
    keys = np.unique(asof.filter_key[asked])
    pools = [(int(key), asof.pool(int(key))[0]) for key in keys if key]
    filters = np.repeat([key for key, _ in pools], [len(pool) for _, pool in pools])
    passing = np.concatenate([np.empty(0, np.int64), *(pool for _, pool in pools)])
    passes = pl.DataFrame({"filter": filters.astype(np.int32), "item_id": item_ids.gather(passing)})

    def ids(frame: pl.DataFrame) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "request_id": request_ids.gather(frame[REQUEST]),
                "item_id": item_ids.gather(frame[ITEM]),
            }
        )

    return {
        "items": items,
        "interactions": interactions,
        "requests": requests,
        "histories": histories,
        "truth": ids(truth),
        "filters": passes,
        "candidates": ids(candidates),
    }


def candidates_of(fitted: FittedFunnel) -> pl.DataFrame:
    """What the funnel's recall puts out in W3 and, to learn from, in W2a: request, item."""
    log = fitted.context.log
    recall = FittedFunnel(fitted.context, fitted.stages[:1])
    requests = np.concatenate([spaced(log.requests_in("W2a"), TAUGHT), log.requests_in("W3")])
    chunks = (requests[i : i + 256] for i in range(0, len(requests), 256))
    return pl.concat([recall.run(chunk)[-1].slate.select(REQUEST, ITEM) for chunk in chunks])


def export(log: Log, fitted: FittedFunnel, label: str, folder: Path) -> str:
    """Write the tables, whole or not at all, unless they exist; return a hash of their bytes."""
    key = content_key(
        code_digest("karmafunnel.benchmarks.peers.peers"), fitted.keys[0], label, K, DEPTH, TAUGHT
    )
    kept = said(folder / "export.json")
    if kept.get("key") != key:
        with atomic_folder(folder) as temporary:
            sums = {}
            for name, frame in tables(log, label, candidates_of(fitted)).items():
                path = temporary / f"{name}.parquet"
                frame.write_parquet(path)
                sums[name] = sha256(path)
            kept = {
                "key": key,
                "checksum": hashlib.sha256("".join(sums.values()).encode()).hexdigest()[:16],
            }
            write_json(temporary / "export.json", kept)
    return str(kept["checksum"])


def said(path: Path) -> dict[str, Any]:
    """Content of a JSON file; empty if it is missing or damaged."""
    try:
        return dict(read_json(path))
    except (KarmafunnelError, TypeError, ValueError):
        return {}


# -- running a peer --------------------------------------------------------------------------------


def stream(
    command: Sequence[str | Path],
    log: Path,
    say: Callable[[str], None],
    cwd: Path,
    minutes: float,
    who: str,
) -> None:
    """Run a command with one thread; print its lines and append them to `log`.

    Raises:
        KarmafunnelError: with its last line, if it fails or runs longer than `minutes`.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    env = {**os.environ, **threads, "PYTHONPATH": str(FOLDER), "PYTHONUNBUFFERED": "1"}
    last = ""
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=env,
            cwd=cwd,
        )
        timer = threading.Timer(60 * minutes, process.kill)
        timer.start()
        try:
            for line in process.stdout or ():
                file.write(line)
                last = line.strip() or last
                say(line.strip())
            code = process.wait()
        finally:
            in_time = timer.is_alive()
            timer.cancel()
            process.kill()
    if code:
        why = last if in_time else f"ended after {minutes:g} minutes; its last words: {last}"
        raise KarmafunnelError(f"{who}: {why or f'ended with code {code}'}", hint=f"see {log}")


def environment(packages: Path, cache: Path, say: Callable[[str], None], minutes: float) -> Path:
    """The Python of a virtual environment with pinned packages, made once in the cache."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    key = hashlib.sha256(packages.read_bytes() + version.encode()).hexdigest()[:12]
    folder = cache / "peers" / f"{packages.stem}-{key}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        folder.mkdir(parents=True, exist_ok=True)
        log, who = folder.with_suffix(".log"), f"environment {packages.name}"
        stream(
            [sys.executable, "-m", "venv", "--clear", folder], log, say, folder.parent, minutes, who
        )
        quiet = ("--quiet", "--disable-pip-version-check")
        install: list[str | Path] = [python, "-m", "pip", "install", *quiet, "-r", packages]
        stream(install, log, say, folder.parent, minutes, who)
        (folder / "ready").touch()
    return python


def run_peer(
    name: str,
    peer: Peer,
    data: Path,
    checksum: str,
    folder: Path,
    seed: int,
    cache: Path,
    say: Callable[[str], None],
    minutes: float,
) -> str | None:
    """Let a peer score the exported requests, unless it did; return why it failed, if it did."""
    parts = [*(FOLDER / helper for helper in HELPERS), peer.script]
    if peer.packages:
        parts.append(peer.packages)
    code = [read_text(path) if path.is_file() else None for path in parts]
    content = json.dumps([checksum, code, seed, peer.refit, K])
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    if said(folder / "done.json").get("key") == key:
        return None
    if (failed := said(folder / "failed.json")).get("key") == key:
        return str(failed["error"])
    folder.mkdir(parents=True, exist_ok=True)
    for old in ("done.json", "failed.json", "log.txt"):
        remove(folder / old)
    try:
        python = Path(sys.executable)
        if peer.packages:
            python = environment(peer.packages, cache, say, minutes)
        command: list[str | Path] = [python, peer.script, data.resolve(), folder.resolve()]
        command += ["--seed", str(seed), "--k", str(K)]
        if peer.refit:
            command.append("--refit")
        stream(command, folder / "log.txt", say, folder, minutes, name)
        for file in ("own.parquet", "candidates.parquet", "facts.json"):
            if not (folder / file).is_file():
                raise KarmafunnelError(f"{name}: ended without writing {file}")
    except (KarmafunnelError, OSError) as error:
        write_json(folder / "failed.json", {"key": key, "error": str(error)})
        return str(error)
    write_json(folder / "done.json", {"key": key})
    return None


# -- Runs ------------------------------------------------------------------------------------------


def our_run(
    recipe: Recipe, log: Log, folder: Path, fitted: FittedFunnel, seed: int, console: Console | None
) -> tuple[Run, float]:
    """Our funnel's Run of W3, and its milliseconds a request; made unless they are there."""
    key = content_key(code_of_run(fitted), fitted.keys[-1], seed)
    done = said(folder / "done.json")
    if done.get("key") != key:
        replay(
            recipe,
            log,
            folder / "run",
            RunOptions(seed=seed, console=console, force=True),
            fitted=fitted,
        )
        done = {"key": key, "ms a request": milliseconds(fitted)}
        write_json(folder / "done.json", done)
    return Run.open(folder / "run"), float(done["ms a request"])


def peer_run(name: str, path: Path, log: Log, label: str, seed: int) -> Run:
    """What a peer wrote, replayed as a recall stage: eligible items only, the best K; the Run lies
    beside the file.
    """
    stage = External(str(path), k=K, checksum=sha256(path)[:16])
    folder = path.with_suffix("")
    try:
        kept = Run.open(folder)
        same_log = kept.meta["log"]["checksum"] == log.checksum
        if same_log and kept.meta["funnel"] == repr(Funnel((stage,))):
            return kept
    except KarmafunnelError:
        pass
    recipe = Recipe(name, f"funnel = {stage!r}\n", Funnel((stage,)), {}, label)
    return Run.open(replay(recipe, log, folder, RunOptions(seed=seed, force=True)))


def milliseconds(fitted: FittedFunnel, chunks: int = 4) -> float:
    """Processor time per request in all stages, ms, over some consecutive chunks of W3."""
    requests = fitted.context.log.requests_in("W3")[: 256 * (chunks + 1)]
    first, rest = requests[:256], requests[256:]
    fitted.run(first)  # timelines and thread pools are made here
    if not len(rest):
        rest = first
    start = time.process_time()
    for i in range(0, len(rest), 256):
        fitted.run(rest[i : i + 256])
    return 1000 * (time.process_time() - start) / len(rest)


# -- tables ----------------------------------------------------------------------------------------


def lines_of(systems: Mapping[str, list[Run]], measures: Sequence[str]) -> list[Line]:
    """One line per system, ours first, then the references: `values`, and `differences` (ours less
    the peer's), corrected by Holm over all of them.
    """
    lines: list[Line] = []
    references: list[Line] = []
    ours = systems[OURS]
    for name, runs in systems.items():
        rows = measure(runs, measures, by_stage=False)
        line: Line = {
            "system": name,
            "values": {r["measure"]: r for r in rows if r["stage"] == runs[0].stages[-1]},
            "differences": {},
        }
        if name == OURS:
            for reference in REFERENCES:
                values = {r["measure"]: r for r in rows if r["stage"] == reference}
                if values:
                    line_of = {"system": reference, "values": values, "differences": {}}
                    references.append(line_of)
        else:
            mine = ours[: len(runs)]
            rows = compare(runs, mine, measures, by_stage=False)
            last = {mine[0].stages[-1], f"{runs[0].stages[-1]} | {mine[0].stages[-1]}"}
            line["differences"] = {r["measure"]: r for r in rows if r["stage"] in last}
        lines.append(line)
    correct([row for line in lines for row in line["differences"].values()])
    return lines + references


def tables_of(title: str, lines: Sequence[Line], measures: Sequence[str]) -> list[Table]:
    """The values, and the differences."""
    timed = any("ms" in line for line in lines)
    values: list[list[str | Cell]] = []
    differences: list[list[str | Cell]] = []
    for line in lines:
        row: list[str | Cell] = [line["system"]]
        if timed:
            row.append(number(line["ms"], decimals=2) if "ms" in line else "")
        values.append([*row, *(valued(line["values"].get(m)) for m in measures)])
        if line["differences"]:
            gaps = [valued(line["differences"].get(m), True) for m in measures]
            differences.append([line["system"], *gaps])
    counts: list[str | Cell] = ["n", ""] if timed else ["n"]
    for m in measures:
        n = {line["values"][m]["n"] for line in lines if m in line["values"]}
        counts.append("/".join(f"{x:,}" for x in sorted(n)))
    values.append(counts)
    heads = ["system", "ms a request", *measures] if timed else ["system", *measures]
    found = [Table(heads, values, title=f"{title}: values, 95% intervals over users")]
    if differences:
        note = "ours less the peer, paired; * 95% interval excludes 0, ** also after Holm"
        found.append(Table(["baseline", *measures], differences, title=f"{title}: {note}"))
    return found


def pareto(lines: Sequence[Line], name: str) -> plots.Plot:
    """Quality over time per request, one point per system with its interval; the line joins the
    Pareto front.
    """
    points = []
    for line in lines:
        if "ms" in line and line["values"].get(name):
            points.append((line["ms"], line["values"][name], line["system"]))
    points.sort(key=lambda point: point[0])
    front, best = [], -np.inf
    for ms, row, _ in points:
        if row["value"] > best:
            front.append((ms, row["value"]))
            best = row["value"]
    colours = plots.colour_of([system for *_, system in points])
    data: list[plots.Plot] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [x for x, _ in front],
            "y": [y for _, y in front],
            "showlegend": False,
            "line": {"color": plots.QUIET, "width": 1, "dash": "dot"},
            "hoverinfo": "skip",
        }
    ]
    middle = np.sqrt(points[0][0] * points[-1][0]) if points else 0.0
    for ms, row, system in points:
        # a name stays inside, beside its error bar
        known, inwards = row["low"] is not None, "right" if ms < middle else "left"
        error: dict[str, Any] = {}
        if known:
            above, under = row["high"] - row["value"], row["value"] - row["low"]
            error["error_y"] = {"array": [above], "arrayminus": [under], "thickness": 1}
        mark = {
            "size": 13 if system == OURS else 9,
            "color": colours[system],
            "symbol": "star" if system == OURS else "circle",
        }
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": [ms],
                "y": [row["value"]],
                "name": system,
                "marker": mark,
                "showlegend": False,
                "text": [f"  {system}  "],
                "textposition": f"middle {inwards}",
                "hovertemplate": rich("%{x:.2f} ms, {}<extra>{}</extra>", valued(row).flat, system),
            }
            | error
        )
    layout = plots.blank(420, left=70, bottom=55)
    layout["xaxis"] = {
        "title": {"text": "ms of processor a request, batches of 256"},
        "type": "log",
    }
    layout["yaxis"] = {"title": {"text": name}}
    return {"data": data, "layout": layout}


def notes(facts: Mapping[str, list[dict[str, Any]]], packages: Mapping[str, Peer]) -> list[str]:
    """What each peer is, what it learnt from, its trials on W2b and what they chose."""
    found = []
    for name, by_seed in facts.items():
        first, listed = by_seed[0], packages[name].packages
        lines = read_text(listed).split() if listed else []
        pinned = {line.split("==")[0].lower() for line in lines}
        shown = []
        for package, version in sorted(first.get("packages", {}).items()):
            if package.lower() in pinned & MAIN:
                shown.append(f"{package} {version}")
        rates: dict[str, list[str]] = {}
        for trial in first.get("trials", []):
            how = ", ".join(f"{k}={v}" for k, v in trial["settings"].items())
            rates.setdefault(how, []).append(
                f"{trial['HR@10']:.4f} with seen items {trial['seen']}"
            )
        trials = "; ".join(f"{how}: {', '.join(both)}" for how, both in rates.items())
        chosen = ", ".join(f"{k}={v}" for k, v in first.get("settings", {}).items())
        learnt, seen = " + ".join(first.get("learnt from", [])), first.get("seen")
        found.append(
            f"{name} ({', '.join(shown)}): learnt from {learnt}; chosen {chosen}, seen items "
            f"{seen}. HR@10 on W2b, {trials}."
        )
    return found


MAIN = {"bm25s", "implicit", "pm-implicit", "rectools", "catboost", "torch", "numpy"}


def side_by_side(
    log: Log,
    out: Path,
    options: RunOptions = DEFAULTS,
    *,
    peers: Mapping[str, Peer] = PEERS,
    ours: str = "baseline",
    ranking: str | None = None,
    seeds: Sequence[int] = (0,),
    minutes: float | None = None,
    each: float = 60.0,
) -> list[str]:
    """Run ours and the peers, as far as missing, and write `peers.*` and `pareto.*` into `out`.

    Args:
        log: the log.
        out: folder of the results.
        options: options of the replays.
        peers: the peers, by name.
        ours: recipe whose lists are compared with the peers' own lists.
        ranking: recipe whose recall candidates everybody ranks (default: `shown_lists` where the
            log has lists, else `ours`).
        seeds: one run of everything per seed.
        minutes: no peer is started later.
        each: minutes after which a peer is ended.

    Returns:
        Names of the peers that were not started.
    """
    if out.exists() and not out.is_dir():
        raise KarmafunnelError("peers", needs="a folder to write into", found=f"the file {out}")
    shown, console = log.has("exposures"), options.console

    def say(text: str) -> None:
        if console:
            console.print(f"  {text}", style="dim", soft_wrap=True)

    cache = options.folder or cache_root()
    recipes = {"own": load_recipe(ours, log)}
    recipes["ranking"] = load_recipe(ranking or ("shown_lists" if shown else ours), log)
    same = (ranking or ours) == ours and not (shown and ranking is None)
    label = recipes["own"].label
    money = ["GMV-HR@10"] if log.truth(label)["money"].drop_nulls().len() else []
    measures = {"own": ["HR@10", "HR@50", *money], "ranking": ["HR@10", "HR@50", *money]}
    if shown:
        measures["own"] += ["HR@1", "HR@5", "MRR"]
        measures["ranking"] = ["HR@1:exposures", "HR@5:exposures", "MRR:exposures"]
    runs: dict[str, dict[str, list[Run]]] = {"own": {OURS: []}, "ranking": {OURS: []}}
    facts: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    left: list[str] = []
    costs: list[float] = []
    began = time.perf_counter()
    for seed in seeds:
        fitted = prepare(recipes["ranking"], log, replace(options, seed=seed, cache=cache))
        run, cost = our_run(recipes["ranking"], log, out / f"ranking-{seed}", fitted, seed, console)
        runs["ranking"][OURS].append(run)
        data = out / f"data-{seed}"
        checksum = export(log, fitted, label, data)
        if not same:
            fitted = prepare(recipes["own"], log, replace(options, seed=seed, cache=cache))
            run, cost = our_run(recipes["own"], log, out / f"own-{seed}", fitted, seed, console)
        runs["own"][OURS].append(run)
        costs.append(cost)
        for i, (name, peer) in enumerate(peers.items()):
            if name in failed or name in left:
                continue
            slug = "".join(c if c.isalnum() else "-" for c in name.lower())
            folder = out / "peers" / f"{slug}-{seed}"
            there = (folder / "done.json").exists() or (folder / "failed.json").exists()
            if not there and minutes is not None and time.perf_counter() - began >= 60 * minutes:
                left.append(name)
                continue
            if console:
                console.print(f"[{i + 1}/{len(peers)}] {name}, seed {seed}")
            why = run_peer(name, peer, data, checksum, folder, seed, cache, say, each)
            try:
                if why is None:
                    found = {}
                    for table, file in FILES.items():
                        path = folder / f"{file}.parquet"
                        found[table] = peer_run(name, path, log, recipes[table].label, seed)
            except KarmafunnelError as error:  # a file that is no answer to what was asked
                why = str(error)
            if why is not None:
                failed[name] = why
                if console:
                    console.print(
                        f"failed: {why}\nto try it again, remove {folder}", soft_wrap=True
                    )
                continue
            for table, run in found.items():
                runs[table].setdefault(name, []).append(run)
            facts.setdefault(name, []).append(said(folder / "facts.json"))

    def whole(by_name: Mapping[str, Any]) -> dict[str, Any]:
        return {n: r for n, r in by_name.items() if n not in failed and n not in left}

    lines = {table: lines_of(whole(by_name), measures[table]) for table, by_name in runs.items()}
    for line in lines["own"]:
        if line["system"] == OURS:
            line["ms"] = float(np.mean(costs))
        elif line["system"] in facts:
            line["ms"] = float(np.mean([f["ms a request"] for f in facts[line["system"]]]))
    comparison = Comparison(log, recipes, peers, seeds, lines, measures, failed, left, facts)
    write(comparison, out, options.command or "")
    return left


FILES = {"own": "own", "ranking": "candidates"}


@dataclass(frozen=True)
class Comparison:
    """What ours and the peers reached on a log.

    lines, measures: by table ("own", "ranking"). failed: why, by peer. left: peers that were not
    begun. facts: what each peer told of itself, one entry per seed.
    """

    log: Log
    recipes: Mapping[str, Recipe]
    peers: Mapping[str, Peer]
    seeds: Sequence[int]
    lines: Mapping[str, list[Line]]
    measures: Mapping[str, list[str]]
    failed: Mapping[str, str]
    left: Sequence[str]
    facts: Mapping[str, list[dict[str, Any]]]

    def tables(self) -> list[Table]:
        """Tables of the same candidates ranked, then of own lists, then of failures."""
        ranking = self.recipes["ranking"]
        candidates = f"{ranking.funnel.stages[0].name} of {ranking.name}"
        titles = {
            "ranking": f"the same candidates ({candidates}) ranked",
            "own": "end to end, each its own lists",
        }
        found: list[Table] = []
        for table, title in titles.items():
            found += tables_of(title, self.lines[table], self.measures[table])
        if self.failed:
            rows = [[name, why] for name, why in self.failed.items()]
            found.append(Table(["peer", "why"], rows, title="failed", look="prose"))
        return found

    def below(self, command: str) -> list[str]:
        """The lines below the tables: how they were made, and definitions."""
        own, ranking = self.recipes["own"], self.recipes["ranking"]
        seeds = list(self.seeds)
        lines = [
            f"log {self.log.name} ({self.log.checksum}), W3, seeds {seeds}; ours: {own.funnel!r}"
        ]
        if command:
            lines.insert(0, f"`{command}`")
        if ranking.name != own.name:
            lines.append(f"candidates ranked by ours: {ranking.funnel!r}")
        lines.append(
            f"{processor()}, one thread, commit {commit() or 'unknown'}; ms a request is processor "
            "time in batches of 256: ours of all stages, a peer's of history, scores, eligibility "
            "and the best 50, by its own clock"
        )
        if self.left:
            lines.append(f"left for another time: {', '.join(self.left)}")
        lines.append(
            "Every peer: requests without a history and the end of short lists are filled with "
            "what was most popular in what it learnt from."
        )
        lines += notes(self.facts, self.peers)
        for name in dict.fromkeys([*self.measures["ranking"], *self.measures["own"]]):
            lines.append(f"{name}: {define(name)}.")
        return lines

    def csv_rows(self) -> list[list[Any]]:
        rows: list[list[Any]] = [HEADS]
        for table, lines in self.lines.items():
            for line in lines:
                for name, row in line["values"].items():
                    gap = line["differences"].get(name, {})
                    rows.append(
                        [
                            *(table, line["system"], line.get("ms"), name),
                            *(row[key] for key in ("value", "low", "high")),
                            *(gap.get(key) for key in ("difference", "low", "high")),
                            *(gap.get("better"), gap.get("holm"), row["n"]),
                        ]
                    )
        return rows


HEADS = [
    *("table", "system", "ms", "measure", "value", "low", "high"),
    *("ours less it", "d_low", "d_high", "better", "holm", "n"),
]


def write(found: Comparison, out: Path, command: str) -> None:
    """Write `peers.md`, `.html`, `.csv`, `.json` and `pareto.html` (and `.png`, where a picture can
    be made) into `out`.
    """
    tables, below = found.tables(), found.below(command)
    title = f"Peers on {found.log.name}"
    differences = {}
    for table, words in (("ranking", " (same candidates)"), ("own", "")):
        for line in found.lines[table]:
            differences[line["system"] + words] = line["differences"]
    content = {
        "tables": found.lines,
        "failed": found.failed,
        "left": list(found.left),
        "facts": found.facts,
        "below": below,
    }
    write_json(out / "peers.json", content)
    write_text(out / "peers.md", markdown(title, tables, below))
    write_page(out / "peers.html", page(title, tables, below, differences))
    with (out / "peers.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(found.csv_rows())
    curve = pareto(found.lines["own"], found.measures["own"][0])
    write_curve(curve, out / "pareto.html", f"{title}: quality and time")


@click.command(cls=OneLineErrors)
@click.argument("log", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("out/peers"), show_default=True
)
@click.option(
    "--peer",
    "names",
    multiple=True,
    type=click.Choice(list(PEERS)),
    help="Only these; ours is always there.",
)
@click.option(
    "--minutes", type=float, help="Begin no new peer after so long; the same command goes on."
)
@click.option(
    "--each",
    type=float,
    default=60.0,
    show_default=True,
    help="Minutes after which a peer is ended.",
)
@click.option(
    "--seed", "seeds", multiple=True, type=click.IntRange(min=0), default=(0,), show_default=True
)
@click.option(
    "--ours",
    default="baseline",
    show_default=True,
    help="The recipe that the peers are held against.",
)
@click.option(
    "--ranking",
    help="The recipe whose candidates everybody ranks; default: shown_lists where the log has "
    "lists, else --ours.",
)
def main(
    log: Path,
    out: Path,
    names: tuple[str, ...],
    minutes: float | None,
    each: float,
    seeds: tuple[int, ...],
    ours: str,
    ranking: str | None,
) -> None:
    """Fit ours and the peers, write the tables and the Pareto picture."""
    console = Console(stderr=True)
    command = shlex.join(["python", "-m", "karmafunnel.benchmarks.peers.peers", *sys.argv[1:]])
    chosen = {name: peer for name, peer in PEERS.items() if not names or name in names}
    try:
        left = side_by_side(
            Log.open(log),
            out,
            RunOptions(console=console, command=command),
            peers=chosen,
            ours=ours,
            ranking=ranking,
            seeds=seeds,
            minutes=minutes,
            each=each,
        )
    except KarmafunnelError as error:
        raise click.ClickException(str(error)) from error
    print(read_text(out / "peers.md"))
    if left:
        console.print(f"left for another time: {', '.join(left)}; the same command goes on")


if __name__ == "__main__":
    main()
