"""Look at the files of an import: what kind of table each is, and the roles of its columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import polars as pl

from ...errors import KarmafunnelError
from .column_map import KINDS, LEFT_OUT, OF_ITEMS, QUERY_ROLES, ColumnMap, Times
from .guessing import (
    BUY_WORDS,
    ITEM_NAMES,
    NAMES,
    NO_MOMENTS,
    QUERY_NAMES,
    Reason,
    by_name,
    currencies,
    first_position,
    guess,
    guess_decimals,
    guess_items,
    guess_time,
    no_moments,
    texts,
)
from .opening import Layout, Rejects, batches, expand, layout_of

SAMPLE = 20_000  # rows of a file that a guess rests on
TIMED = ("interactions", "orders", "lists", "queries")  # tables that may have times


@dataclass
class Group:
    """Files with the same columns. kind: what table they are; "" while that is not known."""

    files: list[tuple[Path, Layout]]
    sample: pl.DataFrame
    kind: str = ""
    why: str = ""

    @property
    def path(self) -> Path:
        return self.files[0][0]

    @property
    def names(self) -> list[str]:
        return list(self.files[0][1].names)

    def __str__(self) -> str:
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.path.name}{more}"


@dataclass
class Found:
    """The result of an import: the map, the reasons for it, and what was left out."""

    map: ColumnMap
    reasons: list[Reason]
    groups: list[Group] = field(default_factory=list)
    rejects: Rejects = field(default_factory=Rejects)
    set_aside: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    last: int = 0  # number of the last row of the files that were read
    first: int = 0  # time of the first interaction, ms since 1970
    latest: int = 0  # time of the last one
    alone: int = 0  # requests without a user, in a log with users
    sources: dict[str, int] = field(default_factory=dict)  # requests by their source

    @property
    def read(self) -> int:
        """Rows of the files so far, with those that could not be split into columns."""
        return self.rows + self.rejects.unsplit

    def aside(self, what: str, many: int) -> None:
        if many:
            self.set_aside[what] = self.set_aside.get(what, 0) + many

    def tables(self, *kinds: str) -> list[tuple[Path, Layout, str]]:
        """The files of some kinds of tables, in the order of the kinds."""
        found = []
        for kind in kinds:
            for group in self.groups:
                found += [(*file, kind) for file in group.files if group.kind == kind]
        return found


def look(
    paths: Sequence[str | Path],
    given: ColumnMap | None = None,
    columns: dict[str, str] | None = None,
    name: str = "imported",
    changes: Mapping[str, Any] | None = None,
) -> Found:
    """Tell the kinds of tables apart, and guess the roles of their columns.

    Args:
        given: the map to use instead of a guess.
        columns: columns of the interactions by role, which override the map.
        changes: other fields that override the map.

    Raises:
        KarmafunnelError: for a file that cannot be read, for tables of one kind with different
            columns, and for a missing column.
    """
    left_out: dict[str, str] = {}
    groups = grouped(expand(paths, left_out))
    told = dict(columns or {})
    kinds = dict((changes or {}).get("files", {}))
    known = given or ColumnMap(columns={r: c for r, c in told.items() if c})
    tell_kinds(groups, replace(known, files=kinds) if kinds else known)
    left_out |= {str(group): group.why for group in groups if group.kind == LEFT_OUT}
    groups = [group for group in groups if group.kind != LEFT_OUT]
    main = one_of(groups, "interactions") or one_of(groups, "lists")
    if main is None:
        why = "; ".join(f"{name}: {why}" for name, why in left_out.items()) or "only items"
        raise KarmafunnelError("import", needs="a table of interactions", found=why)
    if given is None:
        made, reasons = guess_tables(groups, main, told, name)
    else:
        made = given.with_columns(told)
        reasons = [Reason("columns", "as in the map", "--map")]
    for kind, roles in ((kind, made.of(kind)) for kind in KINDS):
        group = one_of(groups, kind)
        if group is not None:
            check_columns(group, roles)
    if changes:
        made = changed(made, changes, reasons)
    made = one_currency(made, groups, reasons)
    for role in ("price", *OF_ITEMS):
        if role not in made.items and (column := column_of(made, role)):
            why = "the first one of each item in time: nothing of later rows"
            reasons.append(Reason(f"items: {role}", column, why))
    if len(groups) > 1 and given is None and not kinds:
        made = replace(made, files={g.path.name: g.kind for g in groups})
    if len(groups) > 1:
        reasons[:0] = [Reason(g.kind, str(g), g.why) for g in groups]
    for why in dict.fromkeys(left_out.values()):
        those = [Path(path).name for path, reason in left_out.items() if reason == why]
        more = f" and {len(those) - 5} more" if len(those) > 5 else ""
        reasons.append(Reason("left out", ", ".join(those[:5]) + more, why))
    return Found(made, reasons, groups)


def column_of(made: ColumnMap, role: str) -> str:
    """The column of a role in the interactions, orders or lists; "" where there is none."""
    kinds = ("interactions", "orders", "lists")
    return next((made.of(kind)[role] for kind in kinds if role in made.of(kind)), "")


def one_of(groups: Sequence[Group], kind: str) -> Group | None:
    return next((group for group in groups if group.kind == kind), None)


def grouped(paths: Sequence[Path]) -> list[Group]:
    """Files with the same columns, together with their first rows; clicks and purchases in files of
    one shape are told apart by their names.
    """
    groups: dict[tuple[frozenset[str], bool], Group] = {}
    for path in paths:
        layout = layout_of(path)
        key = (frozenset(layout.names), bought(path))
        if key not in groups:
            rows = next(batches(path, layout, Rejects()), None)
            groups[key] = Group([], pl.DataFrame() if rows is None else rows.head(SAMPLE))
        groups[key].files.append((path, layout))
    for group in groups.values():
        if group.sample.is_empty() and len(groups) == 1:
            raise KarmafunnelError(
                group.path, needs="at least one row below the header", found="none"
            )
    kept = [group for group in groups.values() if group.sample.height]
    if not kept:
        first = paths[0]
        raise KarmafunnelError(first, needs="at least one row below the header", found="none")
    kept += [
        replace(group, kind=LEFT_OUT, why="no rows")
        for group in groups.values()
        if not group.sample.height
    ]
    return kept


def bought(path: Path) -> bool:
    """Whether the name of a file says that it holds purchases, as `train-purchases.csv` does."""
    words = re.findall(r"[a-z]+", path.name.split(".")[0].lower())
    return any(word in BUY_WORDS or word.removesuffix("s") in BUY_WORDS for word in words)


def tell_kinds(groups: Sequence[Group], given: ColumnMap) -> None:
    """Say what kind of table each group is, and why.

    Raises:
        KarmafunnelError: for several groups of one kind.
    """
    for group in groups:
        if not group.kind:
            group.kind, group.why = kind_of(group, given)
    loose = [group for group in groups if group.kind in ("items", LEFT_OUT)]
    if len(groups) == 1 or not any(g.kind in ("interactions", "lists") for g in groups):
        for group in loose[:1]:
            if "the map" not in group.why and group.sample.height:
                group.kind, group.why = "interactions", "the only table"
    rows = [group for group in groups if group.kind == "interactions"]
    for group in rows if len(rows) > 1 else ():
        lists = {"request", "position"} <= set(by_name(group.names, NAMES))
        if "the map" in group.why:
            continue
        if bought(group.path) and not all(bought(other.path) for other in rows):
            group.kind, group.why = "orders", "the name of the file; each row is a purchase"
        elif lists and not all("position" in by_name(other.names, NAMES) for other in rows):
            group.kind, group.why = "lists", "positions of items in requests"
    for kind in KINDS:
        same = [group for group in groups if group.kind == kind]
        if len(same) > 1:
            raise KarmafunnelError(
                same[1].path,
                needs=f"the columns of {same[0].path.name}, {same[0].names}",
                found=same[1].names,
                hint=f"both were taken for {kind}: a map may say what they are ([files])",
            )


def kind_of(group: Group, given: ColumnMap) -> tuple[str, str]:
    """The kind of a table and why, from the map where it tells, or else from its columns."""
    for pattern, kind in given.files.items():
        if fnmatch(group.path.name, pattern):
            return kind, "the map"
    fits: dict[str, int] = {}
    for kind in KINDS:
        columns = set(given.of(kind).values())
        if columns and columns <= set(group.names):
            fits[kind] = len(columns)
    if fits and given.files:
        return max(fits, key=lambda kind: fits[kind]), "the map"
    if fits.get("interactions") and {"user", "time", "session"} & set(given.columns):
        return "interactions", "as told"
    roles = by_name([n for n in group.names if not group.sample[n].dtype.is_nested()], NAMES)
    actors = [roles[role] for role in ("user", "session", "basket") if role in roles]
    if "item" not in roles and given.columns.get("item") not in group.names:
        asked = by_name(group.names, QUERY_NAMES)
        facts = [asked[role] for role in QUERY_ROLES[1:] if role in asked]
        if "request" in asked and facts:
            return "queries", f"{asked['request']}, and {', '.join(facts)}; no item"
        if "item" not in by_name(group.names, ITEM_NAMES):
            return LEFT_OUT, "no column of items"
    if "request" in roles and "time" not in roles:
        return "lists", f"items for each {roles['request']}, no time"
    if actors or ("time" in roles and "item" in roles and not once_each(group, roles["item"])):
        when = [roles["time"]] if "time" in roles else []
        return "interactions", ", ".join(
            [*actors, *when, *([roles["item"]] if "item" in roles else [])]
        )
    return "items", "each row is an item"


def once_each(group: Group, column: str) -> bool:
    """Whether no item occurs twice, as in a table of items."""
    values = group.sample[column].drop_nulls()
    return not values.dtype.is_nested() and values.n_unique() == values.len()


def guess_tables(
    groups: Sequence[Group], main: Group, told: Mapping[str, str], name: str
) -> tuple[ColumnMap, list[Reason]]:
    """Guess the map of all tables, with reasons.

    Raises:
        KarmafunnelError: where there is no item column or no time column, and for tables that
            cannot be joined.
    """
    made = ColumnMap(name=name)
    reasons: list[Reason] = []
    if main.kind == "interactions":
        made, reasons = guess(main.sample, told, name, main.path)
    for kind, known in (("orders", NAMES), ("lists", NAMES), ("queries", QUERY_NAMES)):
        if (group := one_of(groups, kind)) is None:
            continue
        mine = told if group is main else {}
        free = [name for name in group.names if name not in mine.values()]
        roles = {r: column for r, column in by_name(free, known).items() if r not in mine}
        reasons += [Reason(f"{kind}: {role}", column, "its name") for role, column in roles.items()]
        roles |= {role: column for role, column in mine.items() if column}
        made = made.with_table(kind, roles)
        if kind == "lists" and "position" in roles:
            made = replace(made, first_position=first_position(group.sample, roles["position"]))
        if kind == "lists" or (kind == "queries" and not only_texts(made)):
            made = replace(made, per="request")
    if "position" in made.lists and "position" in made.columns and "position" not in told:
        made = made.with_columns({"position": ""})
        reasons = [reason for reason in reasons if reason.what != "position"]
    made = linked(made, groups, reasons)
    made = replace(made, time=one_format(made, groups, main, reasons))
    if (items := one_of(groups, "items")) is not None:
        item_roles, more = guess_items(items.sample, items.path)
        made, reasons = replace(made, items=item_roles), reasons + more
        if "category" in item_roles:
            made = replace(made, category_separator=guess_separator(items, made, reasons))
    if "category" in made.columns and "category" not in made.items:
        made = replace(made, category_separator=guess_separator(main, made, reasons))
    for group in groups:
        marks = guess_decimals(group.sample, made.of(group.kind), made.decimal).values()
        if group is not main and (mark := next(iter(marks), made.decimal)) != made.decimal:
            reasons.append(Reason("decimal", mark, f"of the numbers in {group}"))
    if made.lists or made.queries:
        reasons = [reason for reason in reasons if reason.what != "requests"]
        why = "by which tables are joined" if made.per == "request" else "as without queries"
        reasons.append(Reason("requests", f"one for each {made.per}", why))
    return made, reasons


def guess_separator(group: Group, made: ColumnMap, reasons: list[Reason]) -> str:
    """What stands between the levels of a category: "|", ">" where most have that, or blanks in
    RecBole's sequences.
    """
    column = made.of(group.kind)["category"]
    if column in group.files[0][1].sequences:
        reasons.append(Reason("items: levels", "blanks", f"{column} is a sequence of tokens"))
        return " "
    if group.sample[column].dtype.is_nested():
        return made.category_separator
    levels = texts(group.sample, column).str.contains(">", literal=True).mean()
    if float(levels or 0) <= 0.5:  # type: ignore[arg-type]
        return made.category_separator
    reasons.append(Reason("items: levels", ">", f"between the levels of {column}"))
    return ">"


def only_texts(made: ColumnMap) -> bool:
    """Whether the table of queries has texts alone, which several requests may share."""
    return bool(made.queries) and not {"user", "time", "session"} & set(made.queries)


def linked(made: ColumnMap, groups: Sequence[Group], reasons: list[Reason]) -> ColumnMap:
    """The map with the columns by which its tables are joined; raises KarmafunnelError where a
    table has none.
    """
    key = made.queries.get("request", "")
    for group in groups:
        if group.kind not in ("interactions", "orders", "lists"):
            continue
        roles = dict(made.of(group.kind))
        if key in group.names:
            if only_texts(made):
                roles["query"] = key
                reasons[:] = [r for r in reasons if r.what != "query"]
                reasons.append(Reason("query", key, "the texts are in the table of queries"))
            else:
                roles["request"] = key
        made = made.with_table(group.kind, roles)
        if made.per == "request" and group.kind != "orders" and "request" not in roles:
            raise KarmafunnelError(
                group.path,
                needs="a column of requests, by which the tables are joined",
                found=f"columns {group.names}",
                hint="a map may name it (--map, request)",
            )
    return made


def one_format(
    made: ColumnMap, groups: Sequence[Group], main: Group, reasons: list[Reason]
) -> Times:
    """How all tables write their times; raises KarmafunnelError where they differ or there are
    none.
    """
    time = made.time
    for group in groups:
        column = made.of(group.kind).get("time") if group.kind in TIMED else None
        if column is None or group is main:
            continue
        found = guess_time(group.sample[column], named=True)
        if group.sample[column].dtype in NO_MOMENTS:
            raise no_moments(group.path, column, group.sample[column])
        if found is None or (time not in (Times(), found[0])):
            raise KarmafunnelError(
                group.path,
                what=f"column {column!r}",
                needs="times written as in the other tables" if time != Times() else "times",
                found=texts(group.sample, column).head(3).to_list(),
                hint="a map may leave the column out, or give the format of all (time.format)",
            )
        if time == Times():
            time = found[0]
            reasons.append(Reason(f"{group.kind}: times", column, found[1]))
    if time == Times():
        raise KarmafunnelError(
            main.path,
            needs="a column of times, here or in the queries",
            found=f"columns {main.names}",
        )
    return time


def check_columns(group: Group, roles: Mapping[str, str]) -> None:
    """Raises KarmafunnelError for a column of the map that the table lacks."""
    if missing := [column for column in roles.values() if column not in group.names]:
        raise KarmafunnelError(
            "import map",
            what=KINDS[group.kind],
            needs=f"columns of {group.path.name} among {group.names}",
            found=missing,
        )


def changed(made: ColumnMap, changes: Mapping[str, Any], reasons: list[Reason]) -> ColumnMap:
    """The map with other fields, as given."""
    zone = {key: value for key, value in changes.items() if key == "zone"}
    others = {key: value for key, value in changes.items() if key != "zone"}
    made = replace(made, time=replace(made.time, **zone), **others)
    guessed = {"per": "requests", "rating": "click", "currency": "prices"}
    overruled = {guessed.get(key, key) for key in changes}
    reasons[:] = [reason for reason in reasons if reason.what not in overruled]
    reasons += [Reason(key, str(value), "as given") for key, value in changes.items()]
    if made.per in ("request", "basket") and not made.has(made.per):
        raise KarmafunnelError(
            "import", what=f"--per {made.per}", needs=f"a column of {made.per}s", found="none"
        )
    if made.per == "session" and not made.has("session") and not made.has("user"):
        raise KarmafunnelError(
            "import", what="--per session", needs="a column of sessions or of users", found="none"
        )
    return made


def one_currency(made: ColumnMap, groups: Sequence[Group], reasons: list[Reason]) -> ColumnMap:
    """The map with the currency of its prices; raises KarmafunnelError for several."""
    if made.currency is not None or not made.money:
        return made
    seen: dict[str, str] = {}
    for group in groups:
        roles = made.of(group.kind)
        for role in ("currency", "price"):
            if role not in roles or (role == "currency" and "price" not in roles):
                continue
            column = roles[role]
            values = texts(group.sample, column)
            codes = values if role == "currency" else currencies(values)
            for code in (
                codes.drop_nulls().filter(codes.drop_nulls() != "").unique().sort().to_list()
            ):
                seen.setdefault(code, column)
    if len(seen) > 1:
        raise KarmafunnelError(
            "import",
            needs="prices of one currency",
            found=", ".join(list(seen)[:8]),
            hint=f"say which to keep: --currency {next(iter(seen))}",
        )
    if not seen:
        reasons.append(Reason("currency", "none", "nothing names it: --currency may"))
        return made
    (code,) = seen
    reasons.append(Reason("prices", code, f"the one in {seen[code]}"))
    return replace(made, currency=code)
