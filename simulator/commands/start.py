"""The demo, and what is slow on this machine."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ... import __version__
from ...files import EXPERIMENT, LOG, PAGE, RUN_AND_PATHS, SERVICES, SIMULATION
from ...keys import version_of
from ...log import Log
from ...terminal import progress_bar
from .deployment import print_load_quality, print_simulation
from .experiments import print_result
from .figures import print_stage_table
from .parameters import claimed, err, folder, force_flag, json_flag, out, seed_option

if TYPE_CHECKING:
    from ..experiment.experiment import Experiment


@click.command()
@click.option(
    "--out",
    "folder_out",
    type=folder,
    default=Path("out/demo"),
    help="Where log, Run and report go.",
)
@seed_option
@force_flag
def demo(folder_out: Path, seed: int, force: bool) -> None:
    """Generate a World, fit KARMA, replay a funnel with it, simulate it under load, and test it on
    simulated users. Prints tables and writes three HTML pages. Needs no network.
    """
    from ..load.arrivals import Poisson
    from ..load.profile import Timing
    from ..load.profile import profile as run_profile
    from ..load.quality import quality_under_load
    from ..load.queueing import Output, simulate
    from ..load.services import with_policies
    from ..replay.degrade import replay_paths
    from ..replay.options import RunOptions
    from ..replay.prepare import prepare
    from ..replay.recipe import load_recipe
    from ..report.load_page import load_page
    from ..report.run_page import report as write_report
    from ..world import generate

    start = time.perf_counter()
    kinds = {
        "log": LOG,
        "run": RUN_AND_PATHS,
        "load": SIMULATION,
        "services.toml": SERVICES,
        "report.html": PAGE,
        "load.html": PAGE,
        "abtest": EXPERIMENT,
    }
    for name, kind in kinds.items():
        claimed(folder_out / name, kind, force=force)
    err.print("making a World: 2,000 items, 600 users, 4,000 requests")
    world = generate(items=2000, users=600, requests=4000, seed=seed, images=False)
    world.write(folder_out / "log")
    log = Log.open(folder_out / "log")
    recipe = load_recipe("karma", log)
    options = RunOptions(
        seed=seed, cache=folder_out / "cache", console=err, command="karmafunnel demo"
    )
    fitted = prepare(recipe, log, options)
    err.print("timing its stages")
    profile = run_profile(recipe, log, Timing(seconds=3.0), options, fitted=fitted)
    deployed = with_policies(profile.services)
    deployed.write(folder_out / "services.toml")
    run = folder_out / "run"
    replay_paths(recipe, log, run, deployed.paths(), options, fitted=fitted)
    print_stage_table(run)
    write_report([run], folder_out / "report.html")
    rate = 0.75 / max(stage.utilisation(1.0) for stage in deployed.stages)
    with progress_bar(err) as bar:
        task = bar.add_task("simulating", total=None)

        def step(what: str, i: int, total: int | None) -> None:
            bar.update(task, description=what, completed=i, total=total)

        quality = quality_under_load(
            {"services": deployed}, run, Poisson(rate), 5000, seed, progress=step
        )
    written = Output(
        folder_out / "load",
        {"command": "karmafunnel demo"},
        lambda _, folder: quality.write(folder),
        force=True,  # its stages are timed anew in each demo
    )
    simulation = simulate(deployed, Poisson(rate), 5000, seed, events=True, out=written)
    load_page(simulation, folder_out / "load.html", quality=quality, command="karmafunnel demo")
    print_simulation(simulation, rate)
    print_load_quality(quality, {"services": deployed.deadline_ms})
    err.print("an A/B test: the user's own history against KARMA, 1,000 users of another shop")
    experiment = small_experiment(folder_out / "cache", seed)
    with err.status("A/B test") as status:
        place, command = folder_out / "abtest", "karmafunnel demo"
        result = experiment.made(place, command, anew=True, say=status.update)
    print_result(result, experiment)
    pages = [folder_out / name for name in ("report.html", "load.html", "abtest/experiment.html")]
    lines = (
        f"{time.perf_counter() - start:.0f} s. Open {pages[0]}, {pages[1]} and {pages[2]} in a "
        "browser; go on with:",
        f"  karmafunnel measure {run} HR@20 --slice target",
        f"  karmafunnel queue {folder_out / 'services.toml'} --rate {2 * rate:.0f} --run {run} "
        f"--out {folder_out / 'double'}",
    )
    err.print("\n".join(lines), soft_wrap=True)


def small_experiment(cache: Path, seed: int) -> Experiment:
    """Half a minute of A/B test: few users, short sessions, one fit."""
    from ..experiment.arms import Design
    from ..experiment.experiment import Experiment
    from ..world.marketplace import Marketplace, Sessions

    shop = Marketplace(sessions=Sessions(most=3))
    design = Design(days=5, before=14, retrain=0, slots=12, seed=seed)
    return Experiment(("own_history", "karma"), shop, design, 1000, 800, cache)


@click.command()
@json_flag
def doctor(as_json: bool) -> None:
    """Versions, threads, and what is slow here."""
    from ..report.table import Table, print_table

    facts: dict[str, Any] = {
        "karmafunnel": __version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
    }
    packages = (
        "numpy",
        "polars",
        "pyarrow",
        "torch",
        "lightgbm",
        "faiss-cpu",
        "scikit-learn",
        "bm25s",
        "plotly",
    )
    facts |= {name: version_of(name) for name in packages}
    facts["cores"] = os.cpu_count()
    facts |= {
        name: os.environ.get(name, "")
        for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KARMAFUNNEL_CACHE")
    }
    a = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    products: dict[str, Callable[[], Any]] = {"numpy": lambda: a @ a}
    try:
        import torch
    except ModuleNotFoundError:
        facts["torch"] = "not installed"
    else:
        t = torch.from_numpy(a)
        products["torch"] = lambda: t @ t
        facts |= {
            "torch threads": torch.get_num_threads(),
            "cuda": torch.cuda.is_available(),
        }
    for name, product in products.items():
        product()
        start = time.perf_counter()
        for _ in range(10):
            product()
        facts[f"{name} fp32 matmul, GFLOP/s"] = round(
            10 * 2 * 1024**3 / (time.perf_counter() - start) / 1e9
        )
    slow = []
    if facts["torch"] == "not installed":
        slow.append("no torch: log, measures, report and gate work; neural models do not")
    elif facts["torch fp32 matmul, GFLOP/s"] < 20:
        slow.append("matrix products are slow: SASRec and DIN will be, too")
    if (os.cpu_count() or 1) > 1 and facts["OMP_WAIT_POLICY"].lower() != "passive":
        slow.append(
            "OMP_WAIT_POLICY is not 'passive': the thread pools of torch, faiss and LightGBM "
            "compete for the cores while they wait"
        )
    facts["slow here"] = slow or ["nothing found"]
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    lines = [
        [key, "; ".join(value) if isinstance(value, list) else str(value)]
        for key, value in facts.items()
    ]
    print_table(Table(["what", "found"], lines, look="prose"), out)
