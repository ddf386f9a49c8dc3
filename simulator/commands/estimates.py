"""Commands that estimate what was never shown."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import click

from ...errors import KarmafunnelError
from ...files import PAGE
from ..offpolicy import REWARDS
from .parameters import (
    Number,
    claimed,
    err,
    folder,
    json_flag,
    open_log,
    out,
    seed_option,
    typed,
    verbose_flag,
)


@click.command()
@click.argument("run", type=folder)
@click.option("--log", type=folder, required=True, help="The log that the Run was replayed on.")
@click.option(
    "--temperature",
    type=Number("temperature"),
    help="Draw each slot by softmax(score / temperature) of the last stage (Plackett-Luce).",
)
@click.option(
    "--exploration",
    type=Number("exploration"),
    help="Each slot shows any candidate with this probability, else the best one.",
)
@click.option(
    "--reward", type=click.Choice(list(REWARDS)), default="clicks", help="What a slot earns."
)
@click.option(
    "--propensity",
    type=click.Choice(["log", "estimated", "clicks"]),
    default="log",
    help="Of what was shown: as the log says, estimated from its lists, or, for a log without "
    "chance, those of clicks by a click model.",
)
@click.option(
    "--logger",
    type=folder,
    help="A Run of the funnel that drew the log's lists, for its candidates and propensities.",
)
@click.option("--slots", type=Number("slots"), help="Only the first so many slots of each list.")
@click.option("--out", "html", type=folder, help="Also write a page with a plot of the estimates.")
@seed_option
@json_flag
@verbose_flag
def ope(
    run: Path,
    log: Path,
    temperature: float | None,
    exploration: float | None,
    reward: str,
    propensity: Literal["log", "estimated", "clicks"],
    logger: Path | None,
    slots: int | None,
    html: Path | None,
    seed: int,
    as_json: bool,
    verbose: bool,
) -> None:
    """Estimate off-policy what the funnel of a Run would have earned a request, had it drawn the
    lists of the log.

    The log must tell with which probability it showed each item, show few items so often that this
    can be estimated, or have clicks that a click model explains. First the support: on how many
    requests the estimates rest. An estimator without support is refused. A funnel that ends in
    Explore draws as that stage does; for another one say --temperature or --exploration, or it
    always shows its best items.
    """
    from ...stages.policies import BestOrRandom, PlackettLuce, Policy
    from ..measure.run import Run
    from ..offpolicy.estimate_page import estimate_page
    from ..offpolicy.estimate_tables import (
        advice,
        estimates_table,
        shown_rows,
        support_table,
        warnings,
        weighed,
    )
    from ..offpolicy.evaluate import evaluate
    from ..offpolicy.reading import own_policy
    from ..offpolicy.support import INSTEAD
    from ..report.page import write_page
    from ..report.table import print_table

    if temperature is not None and exploration is not None:
        raise KarmafunnelError("ope", needs="--temperature or --exploration", found="both of them")
    asked: Policy | None = None
    if temperature is not None or exploration is not None:
        asked = (
            BestOrRandom(exploration or 0.0) if temperature is None else PlackettLuce(temperature)
        )
    if logger is not None and propensity != "log":
        raise KarmafunnelError("ope", needs="--logger or --propensity", found="both of them")
    if html:
        claimed(html, PAGE, run, log, *([] if logger is None else [logger]))
    opened = Run.open(run)
    own = own_policy(opened)
    if own is not None and asked is not None and asked != own:
        needed = f"no other policy than that of the Run's last stage, {own!r}"
        raise KarmafunnelError("ope", needs=needed, found=f"{asked!r}")
    policy = own or asked or BestOrRandom(0.0)
    read = open_log(log)
    found = evaluate(
        opened,
        read,
        policy,
        reward,
        slots,
        seed=seed,
        propensity=propensity,
        logger=None if logger is None else Run.open(logger),
    )
    if not weighed(found):
        print_table(support_table(found), err, verbose)
        who = f"off-policy estimates of {opened.name}, which shows {policy.words}"
        refused = "none: too few of its lists are what this funnel shows"
        needed = "an estimator that the log supports"
        raise KarmafunnelError(who, needs=needed, found=refused, hint=INSTEAD)
    if html:
        write_page(html, estimate_page(found, policy, reward, (opened.name, read.name), typed()))
        err.print(f"page: {html}", soft_wrap=True)
    if as_json:
        support = {kind: asdict(one) for kind, one in found.support.items()}
        told = {"policy": repr(policy), "reward": reward, "slots": slots, "requests": found.n}
        told |= {"propensity": propensity, "read": advice(found)}
        said = {"support": support, "logged": found.logged, "rows": shown_rows(found)}
        stages = {name: asdict(one) for name, one in found.stages.items()}
        print(json.dumps(told | said | {"stages": stages, "marks": warnings(found)}))
        return
    out.print(advice(found), style="bold")
    print_table(support_table(found), out, verbose)
    for mark in warnings(found):
        out.print(mark)
    print_table(estimates_table(found, policy, reward), out, verbose)
