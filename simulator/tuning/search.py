"""The search of `karmafunnel tune`: which choices of a recipe earn most within a budget of
milliseconds a request.

Every funnel is fitted and replayed on W2b as `replay --window W2b` does it. Its cost is that of
its Run: milliseconds a request, the median over chunks. What to try next is asked of a TPE sampler
for two objectives (Bergstra et al. 2011; Ozaki et al. 2020), which is made anew from the finished
trials and the seed each time. The search is therefore a function of its trials: started again, it
walks through those that are on disk and goes on where it was.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...bounds import check_bound, check_seed
from ...errors import KarmafunnelError, NotWrittenError, line_of, short_of_memory
from ...files import SEARCH, claim, intact, not_written, read_json, remove, seal, write_json
from ...keys import code_of, content_key
from ...log import Log
from ...stages.context import Progress, silent
from ...stages.kept import Kept
from ...stages.stage import Funnel
from ...terminal import progress_bar
from ..ablation.lines import cost as costs
from ..measure.compare import compare, measure
from ..measure.measures.measure import Measure
from ..measure.run import Run, common
from ..replay.options import DEFAULTS, RunOptions
from ..replay.prepare import check_device, requests_of
from ..replay.recipe import Recipe
from ..replay.replay import replay

WINDOW = "W2b"
SAMPLE = 512  # requests on which a funnel is tried before all of the window
OVER = 1.5  # times the limit, from which a sample's cost is over it whatever the machine does
CHUNKS = 5  # at least, of a sample: the median of one chunk would be that of a pause
AGAIN = 200  # funnels that were tried already, one after the other: then all have been
BEYOND = 1.0  # milliseconds beyond the budget, to say what the next one buys

Chosen = dict[str, Any]
Cost = Callable[[Run], Mapping[str, float]]


@dataclass
class Trial:
    """One funnel that was tried.

    Attributes:
        number: from 0, the cheapest; 1 has the recipe's own defaults.
        key: of everything that the result depends on.
        state: "measured" on all requests; "over" the limit of milliseconds, or "behind" a cheaper
            funnel, on a sample; "failed".
        value, low, high: of the measure, with its interval; of a sample unless measured.
        ms: milliseconds a request; of as many stages as were run.
        by_stage: the same by stage.
        requests: how many were replayed.
        note: why it went no further.
    """

    number: int
    key: str
    chosen: Chosen
    funnel: str
    state: str = "failed"
    value: float | None = None
    low: float | None = None
    high: float | None = None
    ms: float | None = None
    by_stage: dict[str, float] = field(default_factory=dict)
    requests: int = 0
    note: str = ""

    @property
    def name(self) -> str:
        return f"trial {self.number}"


@dataclass
class Search:
    """A search and what it has found; `tune` runs one."""

    recipe: Recipe
    log: Log
    out: Path
    budget_ms: float
    measure: Measure
    options: RunOptions
    cost: Cost
    trials: list[Trial] = field(default_factory=list)
    told: list[tuple[Chosen, Trial]] = field(default_factory=list)
    prefixes: dict[str, float] = field(default_factory=dict)  # ms of the first stages of a funnel
    left: str = ""  # why there may be more to find

    @property
    def limit(self) -> float:
        """Milliseconds up to which funnels are searched: the budget and the next one."""
        return self.budget_ms + BEYOND

    @property
    def sign(self) -> int:
        return -1 if self.measure.better == "lower" else 1

    def folder_of(self, trial: Trial) -> Path:
        return self.out / "trials" / f"{trial.number:04}"

    def run_of(self, trial: Trial) -> Run:
        """The Run of a measured trial, replayed again where it was removed or damaged."""
        place = self.folder_of(trial) / "run"
        if not intact(place):
            replay_of(self, self.recipe.chosen(trial.chosen), place, self.options.limit)
        return Run.open(place)

    @property
    def able(self) -> list[Trial]:
        """The measured funnels within the limit."""
        return [t for t in self.trials if t.state == "measured" and (t.ms or 0) <= self.limit]

    @property
    def front(self) -> list[Trial]:
        """The measured funnels within the limit that no other beats at their cost, cheapest
        first.
        """
        found: list[Trial] = []
        for trial in sorted(self.able, key=lambda t: (t.ms, -self.sign * (t.value or 0), t.number)):
            if not found or self.sign * (trial.value or 0) > self.sign * (found[-1].value or 0):
                found.append(trial)
        return found

    def best(self, ms: float) -> Trial | None:
        """The best funnel that costs at most `ms`."""
        return next((trial for trial in reversed(self.front) if (trial.ms or 0) <= ms), None)

    def difference(self, a: Trial, b: Trial) -> dict[str, Any]:
        """B - A at their last stages, paired on the same requests: a row of `compare`."""
        return compare(
            self.run_of(a), self.run_of(b), [self.measure], by_stage=False, seed=self.options.seed
        )[0]


def tune(
    recipe: Recipe,
    log: Log,
    out: Path | str,
    budget_ms: float,
    options: RunOptions = DEFAULTS,
    *,
    measure: str = "HR@10",
    trials: int = 40,
    minutes: float | None = None,
    cost: Cost = lambda run: costs([run]),
) -> Search:
    """Search the choices of a recipe for the funnel that earns most within a budget, on W2b.

    Args:
        out: the folder of the search; one that was interrupted goes on.
        budget_ms: milliseconds a request, as a replay measures them.
        options: window is always W2b; with `limit`, at most so many of its requests.
        measure: what is earned, at the last stage.
        trials: funnels to try in all; funnels that were tried already do not count.
        minutes: after this time no further funnel is begun; the first always is.
        cost: milliseconds a request by stage, with their `total`.

    Raises:
        KarmafunnelError: for a recipe without choices, a measure that has no better direction or no
            value, a log without requests in W2b, an `out` that holds something else, and a budget
            below the cost of the cheapest funnel.
    """
    out, options = Path(out), replace(options, window=WINDOW, command=None, workers=None)
    wanted = check(recipe, log, budget_ms, options, measure, trials, minutes)
    wants = {
        "recipe": recipe.name,
        "choices": {name: list(values) for name, values in recipe.choices.items()},
        "log.name": log.name,
        "log.checksum": log.checksum,
        "budget_ms": budget_ms,
        "measure": str(wanted),
        "seed": options.seed,
        "limit": options.limit,
    }
    inputs = [log.path, recipe.path]
    with claim(out, "tune", SEARCH, wants=wants, inputs=inputs, force=options.force):
        said = {name: value for name, value in wants.items() if not name.startswith("log.")}
        said |= {"log": {"name": log.name, "checksum": log.checksum}}
        remove_other(out, said)
        console, end = options.console, None if minutes is None else time.monotonic() + 60 * minutes
        sample = min(len(requests_of(log, WINDOW, options.limit)), SAMPLE)
        chunk = min(options.chunk, max(sample // CHUNKS, 1))
        options = replace(
            options, console=None, force=True, cache=Kept(options.folder), chunk=chunk
        )
        search = Search(recipe, log, out, budget_ms, wanted, options, cost)
        say: Progress = partial(console.print, soft_wrap=True) if console else silent
        bar = progress_bar(console) if console else None
        try:
            with bar or nullcontext():
                task = bar.add_task("tune", total=trials) if bar else None
                for number in range(trials):
                    chosen = following(search, number)
                    if chosen is None:
                        search.left = "No other funnel was found."
                        break
                    if not attempt(search, number, chosen, end, say):
                        search.left = f"{trials - number} of {trials} trials are left."
                        break
                    if number == 0:  # it is within the budget
                        write_json(out / SEARCH.marker, said)
                    if bar and task is not None:
                        bar.update(task, completed=number + 1)
        finally:
            remove(out / "probes")
            with suppress(OSError):  # something is in them
                (out / "trials").rmdir()
                out.rmdir()
        return search


def remove_other(out: Path, said: Mapping[str, Any]) -> None:
    """Remove what another search left in a folder; only `--force` comes so far."""
    try:
        same = read_json(out / SEARCH.marker) == said
    except KarmafunnelError:  # none: trials have keys
        return
    for name in () if same else (SEARCH.marker, *SEARCH.parts):
        remove(out / name)


def check(
    recipe: Recipe,
    log: Log,
    budget_ms: float,
    options: RunOptions,
    measure: str,
    trials: int,
    minutes: float | None,
) -> Measure:
    """Check before anything is fitted what would fail later; returns the measure."""
    if not recipe.choices:
        raise KarmafunnelError(
            f"recipe {recipe.name}",
            needs="to export `choices` for a search",
            found="none",
            hint="copy `karmafunnel recipes tunable`",
        )
    check_bound("tune", "budget_ms", budget_ms=budget_ms)
    check_bound("tune", "trials", trials=trials)
    if minutes is not None:
        check_bound("tune", "minutes", minutes=minutes)
    check_seed("tune", options.seed)
    wanted = Measure.parse(measure)
    if wanted.better == "neither" or not wanted.by_request:
        needs = "one of which more or less is better, with a value a request, such as HR@10"
        raise KarmafunnelError("tune", what=f"measure {wanted}", needs=needs, found=wanted.form)
    log.check_label(recipe.label)
    requests_of(log, WINDOW, options.limit)
    if options.device != "cpu":
        check_device(options.device)
    load_optuna()
    return wanted


# -- what to try next ------------------------------------------------------------------------------


def load_optuna() -> Any:
    """The module optuna; raises KarmafunnelError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        hint = 'pip install "karmafunnel[tune]"'
        raise KarmafunnelError("tune", needs="optuna", found="none", hint=hint) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def following(search: Search, number: int) -> Chosen | None:
    """The choices of the next funnel that was not tried yet: the first of all, the defaults, then
    what the sampler says; None where it finds no other.
    """
    recipe = search.recipe
    first = {name: values[0] for name, values in recipe.choices.items()}
    if number == 0:
        return first
    seen = {trial.funnel: trial for trial in search.trials}
    for again in range(AGAIN):
        if number == 1 and again == 0:
            chosen = {name: recipe.defaults[name] for name in recipe.choices}
        else:
            chosen = asked(search, number, again)
        known = seen.get(funnel_text(recipe, chosen))
        if known is None:
            return chosen
        search.told.append((chosen, known))  # other choices of the same funnel: nothing to run
    return None


def asked(search: Search, number: int, again: int) -> Chosen:
    """What a sampler that knows all that was told asks for: a function of that, the search's seed
    and the two numbers.
    """
    optuna = load_optuna()
    space = {
        name: optuna.distributions.CategoricalDistribution(list(values))
        for name, values in search.recipe.choices.items()
    }
    sign, seed = search.sign, search.options.seed
    measured = [t.value * sign for _, t in search.told if t.value is not None]
    worst = min(measured, default=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # multivariate sampling is called experimental
        tpe = optuna.samplers.TPESampler(
            seed=(seed * 1_000_003 + number * AGAIN + again) % 2**32, multivariate=True
        )
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=tpe)
        for chosen, trial in search.told:
            beyond = trial.ms is None or trial.ms > search.limit or trial.value is None
            quality = worst if beyond else sign * (trial.value or 0.0)
            ms = 2 * search.limit if trial.ms is None else trial.ms
            study.add_trial(
                optuna.trial.create_trial(params=chosen, distributions=space, values=[quality, ms])
            )
        return dict(study.ask(space).params)


def funnel_text(recipe: Recipe, chosen: Chosen) -> str:
    """The funnel of some choices as typed; the error in its place where the recipe has none."""
    try:
        return repr(recipe.chosen(chosen).funnel)
    except KarmafunnelError as error:
        return line_of(error)


# -- one funnel ------------------------------------------------------------------------------------


def attempt(search: Search, number: int, chosen: Chosen, end: float | None, say: Progress) -> bool:
    """Take a trial from disk, or run it and write it; False where there is no time to run it.

    Raises:
        KarmafunnelError: for a budget below what the cheapest funnel costs, and where that fails.
    """
    trial = Trial(number, key_of(search, chosen), chosen, funnel_text(search.recipe, chosen))
    folder = search.folder_of(trial)
    kept = on_disk(folder, trial)
    if kept is None and number and end is not None and time.monotonic() >= end:
        return False
    if kept is None:
        try:
            examine(search, trial, folder)
        except Exception as error:  # one funnel must not end the search, whatever went wrong
            if not_written(error):
                raise NotWrittenError(f"tune: {trial.name}: {line_of(error)}") from error
            if short_of_memory(error):
                raise
            trial.state, trial.note = "failed", line_of(error)
        write_json(folder / "trial.json", asdict(trial))
        seal(folder, "trial.json")
    trial = kept or trial
    search.trials.append(trial)
    search.told.append((chosen, trial))
    total = 0.0
    for depth, ms in enumerate(trial.by_stage.values(), 1):
        total += ms
        prefix = repr(Funnel(search.recipe.chosen(chosen).funnel.stages[:depth]))
        search.prefixes.setdefault(prefix, total)
    if kept is None:
        say(line_for(search, trial))
    if number == 0:
        try:
            check_budget(search, trial)
        except KarmafunnelError:
            remove(folder)  # the next search measures it anew: a busy machine is slow
            raise
    keep_front(search)
    return True


def what(recipe: Recipe, trial: Trial) -> str:
    """The choices of a trial in words, without those that change nothing in its funnel: "recalled
    100, tfidf, rank trees".
    """
    told = []
    for name, value in trial.chosen.items():
        others = (trial.chosen | {name: other} for other in recipe.choices[name])
        if value is not False and any(funnel_text(recipe, o) != trial.funnel for o in others):
            told.append(name if value is True else f"{name} {value}")
    return ", ".join(told)


def line_for(search: Search, trial: Trial) -> str:
    """A finished trial in one line."""
    value = "" if trial.value is None else f"{search.measure} {trial.value:.3f}"
    ms = "" if trial.ms is None else f"{trial.ms:.2f} ms"
    why = "" if trial.state == "measured" else f"({trial.note})"
    said = ", ".join(filter(None, (value, ms, what(search.recipe, trial))))
    return f"{trial.name}: {said} {why}".rstrip()


def key_of(search: Search, chosen: Chosen) -> str:
    """The key of a trial: its code, funnel and embedders, and what is replayed."""
    recipe, options, log = search.recipe, search.options, search.log
    content: list[Any] = [funnel_text(recipe, chosen), recipe.label, recipe.custom_code]
    code = ""
    try:
        row = recipe.chosen(chosen)
        used = row.used_embedders
        code = code_of(*row.funnel.stages, used, by=(__name__, replay.__module__))
        content.append({name: repr(value) for name, value in sorted(used.items())})
    except KarmafunnelError:  # the trial will say so
        pass
    return content_key(
        code,
        *content,
        *(log.checksum, options.seed, options.limit, options.device),
        *(str(search.measure), search.limit),
    )


def on_disk(folder: Path, trial: Trial) -> Trial | None:
    """The trial as it was finished before, by the same code; None where it was not."""
    if not (folder / "trial.json").exists() or not intact(folder):
        return None
    try:
        kept = Trial(**read_json(folder / "trial.json"))
    except TypeError:  # written by older code
        return None
    return replace(kept, chosen=trial.chosen) if kept.key == trial.key else None


def examine(search: Search, trial: Trial, folder: Path) -> None:
    """Fit and replay a funnel as far as it is worth it: stage by stage on a sample, then on all
    requests.
    """
    recipe, options = search.recipe.chosen(trial.chosen), search.options
    requests = len(requests_of(search.log, WINDOW, options.limit))
    stages = recipe.funnel.stages
    for depth in range(1, len(stages)):
        prefix = Funnel(stages[:depth])
        if repr(prefix) not in search.prefixes:
            probe = replay_of(
                search, replace(recipe, funnel=prefix), "probe", min(requests, SAMPLE)
            )
            search.prefixes[repr(prefix)] = search.cost(probe)["total"]
        trial.ms = search.prefixes[repr(prefix)]
        if trial.ms > OVER * search.limit:
            names = " and ".join(stage.name for stage in stages[:depth])
            trial.state = "over"
            trial.note = f"{names} alone cost {trial.ms:.2f} ms; the rest was not fitted"
            return
    if requests > 2 * SAMPLE:
        run = replay_of(search, recipe, "sample", SAMPLE)
        ms = take_figures(search, trial, run, SAMPLE)
        if ms > OVER * search.limit:
            trial.state, trial.note = "over", f"{ms:.2f} ms on {SAMPLE} requests"
            return
        rival = search.best(ms)
        if rival is not None:
            a, b = common(search.run_of(rival), run)
            row = compare(a, b, [search.measure], by_stage=False, seed=options.seed)[0]
            far = row["high"] if search.sign > 0 else row["low"]
            if far is not None and search.sign * far < 0:
                trial.state, trial.note = "behind", f"behind {rival.name} on {SAMPLE} requests"
                return
    remove(folder / "run")
    run = replay_of(search, recipe, folder / "run", options.limit)
    take_figures(search, trial, run, requests)
    trial.state = "measured"


def replay_of(search: Search, recipe: Recipe, out: str | Path, limit: int | None) -> Run:
    """Fit and replay, sharing all fits with earlier trials."""
    place = search.out / "probes" / out if isinstance(out, str) else out
    if isinstance(out, str):
        remove(place)
    return Run.open(replay(recipe, search.log, place, replace(search.options, limit=limit)))


def take_figures(search: Search, trial: Trial, run: Run, requests: int) -> float:
    """Write a Run's cost and value into its trial; returns the milliseconds a request."""
    by_stage = dict(search.cost(run))
    ms = by_stage.pop("total")
    trial.ms, trial.by_stage = ms, by_stage
    rows = measure(run, [search.measure], by_stage=False, seed=search.options.seed)
    row = next(row for row in rows if row["stage"] == run.stages[-1])
    trial.value, trial.low, trial.high = row["value"], row["low"], row["high"]
    trial.requests = requests
    if trial.value is None:
        raise KarmafunnelError(search.measure, needs=f"a value on {WINDOW}", found=row["note"])
    return ms


def check_budget(search: Search, cheapest: Trial) -> None:
    """Raise KarmafunnelError where the cheapest funnel fails or costs more than the budget."""
    if cheapest.state == "failed" or cheapest.ms is None:
        raise KarmafunnelError(f"tune: the cheapest funnel fails: {cheapest.note}")
    if cheapest.state == "over" or cheapest.ms > search.budget_ms:
        raise KarmafunnelError(
            "tune",
            what="budget_ms",
            needs=f"{cheapest.ms:.2f} ms a request or more, which the cheapest funnel costs here",
            found=f"{search.budget_ms:g}",
            hint=cheapest.funnel,
        )


def keep_front(search: Search) -> None:
    """Remove the Runs that are not on the front: a funnel that is beaten stays beaten."""
    front = {trial.number for trial in search.front}
    for trial in search.trials:
        if trial.number not in front:
            remove(search.folder_of(trial) / "run")
