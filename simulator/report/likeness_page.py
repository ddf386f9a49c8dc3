"""The report card of a simulated log (`simulator/likeness/`) as a table and as a page."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..likeness.card import ENOUGH, NOT_ASKED, Card
from ..likeness.judging import FAR, TOLERANCE, Answer, Drawing
from .log_page import BLUE, GREY, ORANGE, bar, figure, scatter
from .page import (
    Absent,
    Beside,
    Block,
    Cards,
    Figure,
    Page,
    Plot,
    Points,
    Section,
    Text,
    write_page,
)
from .table import Cell, Table, number

# lines of what `world --like` leaves as by default
NOT_FITTED = ("query length", "repeats", "new items", "categories a list")
STYLES = {"PASS": "green", "look here": "yellow", "FAIL": "bold red", "n/a": "dim"}
COLOURS = {"real": BLUE, "simulated": ORANGE, "real, before": GREY}
HOW = (
    "Last windows of both logs. Chance: the distance between two draws of the real log's own users,"
    " 99th percentile. Drift: of the real log from its own window before.",
    f"Allowed: the largest of chance, drift and what matters to nobody. PASS: no further than that;"
    f" look here: up to {FAR:g} times as far; FAIL: beyond.",
    "What matters to nobody (fixed): "
    + ", ".join(f"{kind} {most:.2g}" for kind, most in TOLERANCE.items())
    + ".",
    "Moved: of a distribution, how far values are from each other on average once both are sorted "
    "(Wasserstein distance), in the unit of the line. It judges nothing.",
    f"A card passes if at least {ENOUGH} lines are answered and all of them pass.",
)


def card_table(card: Card, whole: bool = False) -> Table:
    """One row a line that is answered; `whole`: also how far the real log is from itself."""
    heads = ["line", "verdict", "real", "simulated", "distance"]
    heads += ["chance", "drift", "allowed", "moved"] if whole else ["allowed"]
    rows = [row(a, whole) for a in card.answers if a.distance is not None]
    title = f"{card.simulated} against {card.real}: {card.verdict}"
    why = reasons(card)
    brief = " ".join(why) or "Each line is answered."
    return Table(heads, rows, text_columns=1, title=title, below=[*why, *HOW], brief=brief)


def row(answer: Answer, whole: bool) -> list[str | Cell]:
    verdict = Cell(answer.verdict, style=STYLES[answer.verdict])
    both = [answer.chance, answer.drift] if whole else []
    figures = [answer.real, answer.simulated, answer.distance, *both]
    allowed = Cell(short(answer.allowed), more=by(answer))
    moved = [short(answer.moved)] if whole else []
    return [answer.name, verdict, *map(short, figures), allowed, *moved]


def by(answer: Answer) -> str:
    """What decides how far is allowed."""
    named = (("chance", answer.chance), ("drift", answer.drift))
    return next((name for name, far in named if far == answer.allowed), "fixed")


def short(value: float | None) -> str:
    """A figure with three significant digits."""
    if value is None or not math.isfinite(value):
        return "n/a"
    return number(value, decimals=2 if abs(value) >= 1 else None)


def reasons(card: Card) -> list[str]:
    """Remarks on lines, and why others are n/a, one sentence a reason."""
    found: dict[str, list[str]] = {}
    for answer in card.answers:
        if answer.verdict == "n/a":
            found.setdefault(answer.why, []).append(answer.name)
    remarks = [f"{a.name}: {a.why}." for a in card.answers if a.why and a.verdict != "n/a"]
    return [*remarks, *(f"n/a: {', '.join(names)}: {why}." for why, names in found.items())]


def told(card: Card) -> list[str]:
    """Where the simulation differs, the furthest beyond what is allowed first, in sentences."""
    return [sentence(answer) for answer in card.worst()]


def next_step(card: Card) -> str:
    """What the card means for a test in the simulated shop."""
    unasked = any(answer.why == NOT_ASKED for answer in card.answers)
    asked = " For the order of funnels ask --funnels." if unasked else ""
    if card.verdict == "too few answered":
        return f"A card needs {ENOUGH} answered lines; a longer log answers more."
    if card.verdict == "PASS":
        return f"No line speaks against A/B tests in this shop.{asked}"
    if card.verdict == "look here":
        return f"Read the lines near their limit before an A/B test in this shop.{asked}"
    beyond = [a.name for a in card.worst() if a.verdict == "FAIL" and a.name in NOT_FITTED]
    unfitted = f" Not fitted by `world --like`: {', '.join(beyond)}." if beyond else ""
    return (
        "In the lines that fail, this shop is another one than yours: amounts and lifts of an A/B "
        f"test do not carry over, the order of funnels may.{asked}{unfitted}"
    )


def sentence(answer: Answer) -> str:
    """One line that does not pass, in words."""
    figures = (
        f"{short(answer.simulated)} in the simulated log, {short(answer.real)} in the real one"
    )
    if answer.real is None:
        figures = short(answer.simulated)
    far = f"{answer.kind} {short(answer.distance)}, allowed {short(answer.allowed)}"
    return f"{answer.name} ({answer.verdict}): {answer.unit}: {figures}; {far}"


def given_away(card: Card) -> list[tuple[str, float]]:
    """What gives the simulation away: features whose shuffling lowers the classifier's AUC by .001
    or more.
    """
    parts = [part for answer in card.answers for part in answer.parts]
    return [(name, fall) for name, fall in parts if fall >= 0.001]


def write_html(card: Card, path: Path | str, command: str = "karmafunnel likeness") -> Path:
    """Write the card as one HTML file that needs no network; returns its path."""
    return write_page(path, card_page(card, command))


def card_page(card: Card, command: str = "karmafunnel likeness") -> Page:
    lines: list[Block] = [replace(card_table(card, whole=True), below=HOW)]
    lines += [Points(reasons(card), "note")] if reasons(card) else []
    differs: list[Block] = [Points(told(card)) if told(card) else Text("Nowhere.")]
    differs.append(Text(next_step(card)))
    if away := given_away(card):
        rows = [[name, f"{fall:.3f}"] for name, fall in away]
        differs += [
            Text(
                "What gives the simulation away: by how much the classifier's AUC falls when one"
                " feature of the requests is shuffled. Where a single feature gives all away, the"
                " others say little."
            ),
            Table(["feature", "fall of the AUC"], rows),
        ]
    drawn: list[Block] = [
        Figure(plot(answer)) for answer in card.answers if answer.drawing is not None
    ]
    plots: Block = Beside(drawn, least=400, framed=True) if drawn else Absent("no line is answered")
    sections = [
        Section("lines", "Lines", "Line by line", lines),
        Section("differs", "Where it differs", "Where it differs", differs),
        Section("plots", "Plots", "Real and simulated", [plots]),
    ]
    title = f"{card.simulated} against {card.real}"
    return Page(title, command, [cards(card)], sections)


def cards(card: Card) -> Cards:
    """The verdict, and what it stands on."""
    said = [answer.verdict for answer in card.answers]
    each = ", ".join(f"{said.count(v)} {v}" for v in STYLES if v in said)
    shown = [
        ("verdict", card.verdict, each),
        ("answered", f"{card.answered} of {len(card.answers)}", f"{ENOUGH} are needed"),
    ]
    for name, size in zip(("real", "simulated"), card.sizes[:2], strict=True):
        assert size is not None
        shown.append((f"{name} requests", f"{size[0]:,}", f"of {size[1]:,} users, last window"))
    return Cards(shown)


def plot(answer: Answer) -> Plot:
    """The figure of a line."""
    drawing = answer.drawing
    assert drawing is not None
    traces = [trace(name, drawing) for name in drawing.curves]
    layout = {f"{axis}axis": {"type": "log", "dtick": 1} for axis in drawing.log_scale}
    if "yaxis" in layout:
        layout["yaxis"]["rangemode"] = "normal"
    title = f"{answer.name}: {answer.verdict}"
    if drawing.look != "bar":
        return figure(title, drawing.x, drawing.y, *traces, **layout)
    return figure(title, drawing.x, drawing.y, *traces, **layout, barmode="group")


def trace(name: str, drawing: Drawing) -> Plot:
    x, y = drawing.curves[name]
    colour = COLOURS[name]
    if drawing.look == "bar":
        return bar(x=[str(one) for one in x], y=np.asarray(y), name=name, marker={"color": colour})
    line = {"color": colour, "width": 2}
    if name == "real, before":
        line |= {"dash": "dot", "width": 1}
    if drawing.look == "step":
        line["shape"] = "hv"
    return scatter(x=x, y=y, mode="lines", line=line, name=name)
