"""The table of an ablation as runs of an MLflow experiment, one per row."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any

from ...errors import KarmafunnelError, line_of
from ...files import read_json

FILES = ("table.json", "table.md", "table.csv", "table.html")
DIGEST, ROW = "karmafunnel.table", "karmafunnel.row"
BOUNDS = ("low", "high")


def log_table(folder: Path | str, uri: str) -> list[str]:
    """Log `table.json` of a folder to MLflow, in an experiment named after the recipe and the log.

    Each row is a run: its measures, differences to the baseline (`difference/...`), diagnostics and
    costs (`ms/...`) are metrics, with the bounds of intervals beside them (`.low`, `.high`);
    funnel, embedders and seeds are parameters. The tables are artifacts of the first run. A row
    that was logged before is not logged again.

    Args:
        uri: of the tracking server or store, such as http://localhost:5000 or sqlite:///mlflow.db.

    Returns:
        The rows that were logged.

    Raises:
        KarmafunnelError: MLflow is not installed or does not answer, or there is no table.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError as error:
        raise KarmafunnelError(
            "export",
            needs="MLflow",
            found="that it is not installed",
            hint="pip install 'karmafunnel[mlflow]'",
        ) from error
    folder = Path(folder)
    kept = read_json(folder / "table.json")
    digest = hashlib.sha256((folder / "table.json").read_bytes()).hexdigest()[:16]
    try:
        return _send(MlflowClient(tracking_uri=uri), folder, kept, digest)
    except (MlflowException, OSError) as error:
        raise KarmafunnelError(
            "export", needs=f"an MLflow server or store at {uri}", found=line_of(error)
        ) from error


def _send(client: Any, folder: Path, kept: dict[str, Any], digest: str) -> list[str]:
    from mlflow.entities import Metric, Param

    name = f"{kept['recipe']} on {kept['log']['name']}"
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    before = client.search_runs([experiment], f"tags.`{DIGEST}` = '{digest}'")
    finished = {run.data.tags[ROW] for run in before if run.info.status == "FINISHED"}
    logged = []
    for place, line in enumerate(kept["lines"]):
        row = line["row"]
        if row in finished:
            continue
        tags = {DIGEST: digest, ROW: row} | ({"failed": line["failed"]} if "failed" in line else {})
        run = client.create_run(experiment, run_name=row, tags=tags).info.run_id
        metrics = [Metric(key, value, 0, 0) for key, value in metrics_of(line).items()]
        params = [Param(key, value[:6000]) for key, value in params_of(kept, line).items()]
        client.log_batch(run, metrics=metrics, params=params)
        if place == 0:
            for file in FILES:
                client.log_artifact(run, str(folder / file))
        client.set_terminated(run)
        logged.append(row)
    return logged


def metrics_of(line: dict[str, Any]) -> dict[str, float]:
    """The finite figures of a row by the name of the metric."""
    found: dict[str, Any] = {}
    for column, row in line["values"].items():
        found[metric(column)] = row["value"]
        found |= {f"{metric(column)}.{bound}": row[bound] for bound in BOUNDS}
    for column, row in line["differences"].items():
        name = f"difference/{metric(column)}"
        found[name] = row["difference"]
        found |= {f"{name}.{bound}": row[bound] for bound in BOUNDS}
    found |= {metric(name): value for name, value in line["diagnostics"].items()}
    found |= {f"ms/{metric(name)}": value for name, value in line["cost"].items()}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }


def params_of(kept: dict[str, Any], line: dict[str, Any]) -> dict[str, str]:
    """What a row was made with."""
    found = {
        "recipe": kept["recipe"],
        "against": kept["against"] or "",
        "log checksum": kept["log"]["checksum"],
        "window": kept["window"],
        "seeds": " ".join(map(str, line["seeds"])),
        "funnel": line["funnel"],
    }
    found |= {f"embedder {metric(name)}": text for name, text in line["embedders"].items()}
    return {name: str(value) for name, value in found.items()}


def metric(column: str) -> str:
    """A column heading as MLflow allows it in names: "HR@10 at recall, cold" -> "HR_at_10 at
    recall cold".
    """
    return re.sub(r"[^\w\-. :/]", "", column.replace("@", "_at_"))
