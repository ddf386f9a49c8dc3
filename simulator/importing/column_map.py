"""The import map: the roles of a table's columns, as guessed by `karmafunnel import` or read from a
file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import tomli_w

from ...bounds import check_bound
from ...errors import KarmafunnelError, quoted
from ...files import read_text

# Roles of columns of the interactions.
ROLES = (
    "user",
    "item",
    "time",
    "event",
    "rating",
    "clicked",
    "purchased",
    "request",
    "session",
    "basket",
    "query",
    "position",
    "propensity",
    "price",
    "quantity",
    "currency",
    "title",
    "brand",
    "category",
)
OF_ITEMS = ("title", "brand", "category")  # roles that say what an item is, the same in each row
# Roles of columns of the items.
ITEM_ROLES = ("item", "title", "brand", "category", "price", "description")
# Roles of columns of the queries, one row per request, or per text where that is all there is.
QUERY_ROLES = ("request", "query", "user", "time", "session")
# The kinds of tables, each with the field of the map that names its columns. Rows of orders are
# purchases; lists are the items shown for each request.
KINDS = {
    "interactions": "columns",
    "orders": "orders",
    "lists": "lists",
    "queries": "queries",
    "items": "items",
}
LEFT_OUT = "none"  # the kind of a file that is not read
ROLES_OF = {
    "columns": ROLES,
    "orders": ROLES,
    "lists": ROLES,
    "queries": QUERY_ROLES,
    "items": ITEM_ROLES,
}
# How interactions are grouped into requests.
PER = ("event", "session", "basket", "request")
Per = Literal["event", "session", "basket", "request"]
UNITS = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
EXCEL = "excel"  # the unit of days since the end of 1899, as spreadsheets count them


HEAD = "# The roles that `karmafunnel import` gave the columns; edit and use with --map."


@dataclass(frozen=True)
class Times:
    """How times are written: a unit since 1970 (s, ms, us, ns), days of a spreadsheet ("excel"), or
    a format of `strptime`.

    zone: the time zone of times without one.
    """

    unit: str = ""
    format: str = ""
    zone: str = "UTC"


@dataclass(frozen=True)
class ColumnMap:
    """How tables are imported.

    columns: the column of each role in the interactions. items, orders, lists, queries: the same
    for the tables of items, of purchases, of what was shown, and of queries. files: the kind of
    table of each file name or pattern, where the columns do not tell; "none" for no table. per:
    what makes up a request. gap_minutes: inactivity that ends a session, where there is no session
    column. rating: minimum rating that counts as a click. clicks, purchases, shown: names of
    events; what was shown belongs to the list of its request. first_position: 0 or 1.
    decimal: "." or ",", where the numbers of a file do not tell. currency: that of all prices;
    prices in other currencies are dropped.
    """

    name: str = "imported"
    columns: Mapping[str, str] = field(default_factory=dict)
    items: Mapping[str, str] = field(default_factory=dict)
    per: Per = "event"
    gap_minutes: float = 30.0
    time: Times = Times()
    decimal: str = "."
    rating: float | None = None
    clicks: tuple[str, ...] = ()
    purchases: tuple[str, ...] = ()
    currency: str | None = None
    category_separator: str = "|"
    shown: tuple[str, ...] = ()
    first_position: int = 1
    orders: Mapping[str, str] = field(default_factory=dict)
    lists: Mapping[str, str] = field(default_factory=dict)
    queries: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, known in ROLES_OF.items():
            given = getattr(self, what)
            if stray := [role for role in given if role not in known]:
                raise KarmafunnelError(
                    "import map", what=what, needs=f"roles among {', '.join(known)}", found=stray
                )
            if wrong := [one for one in given.values() if not isinstance(one, str)]:
                raise KarmafunnelError(
                    "import map", what=what, needs="names of columns", found=quoted(wrong[0])
                )
        kinds = (*KINDS, LEFT_OUT)
        if stray := [kind for kind in self.files.values() if kind not in kinds]:
            raise KarmafunnelError(
                "import map", what="files", needs=f"kinds among {', '.join(kinds)}", found=stray
            )
        if self.per not in PER:
            raise KarmafunnelError(
                "import map", what="per", needs=f"one of {', '.join(PER)}", found=quoted(self.per)
            )
        if self.first_position not in (0, 1):
            raise KarmafunnelError(
                "import map", what="first_position", needs="0 or 1", found=self.first_position
            )
        if self.decimal not in (".", ","):
            raise KarmafunnelError(
                "import map", what="decimal", needs="'.' or ','", found=quoted(self.decimal)
            )
        if self.time.unit and self.time.unit not in (*UNITS, EXCEL):
            raise KarmafunnelError(
                "import map",
                what="time.unit",
                needs=f"one of {', '.join(UNITS)}, {EXCEL}",
                found=quoted(self.time.unit),
            )
        check_bound("import map", "gap_minutes", gap_minutes=self.gap_minutes)

    def of(self, kind: str) -> Mapping[str, str]:
        """The column of each role in a kind of table."""
        columns: Mapping[str, str] = getattr(self, KINDS[kind])
        return columns

    def has(self, role: str) -> bool:
        """Whether a table of interactions, orders, lists or queries has a column of this role."""
        return any(role in self.of(kind) for kind in KINDS if kind != "items")

    @property
    def money(self) -> bool:
        """Whether an interaction has a price, or its item has one."""
        return self.has("price") or "price" in self.items

    def toml(self) -> str:
        """The map as TOML text that `ColumnMap.read` accepts."""
        values = {f.name: getattr(self, f.name) for f in fields(self)} | {"time": asdict(self.time)}
        kept: dict[str, Any] = {}
        for key, value in values.items():
            if isinstance(value, Mapping):
                value = {name: one for name, one in value.items() if one != ""}
            if value not in (None, (), {}) and (key, value) != ("first_position", 1):
                kept[key] = value
        return f"{HEAD}\n{tomli_w.dumps(kept)}"

    @classmethod
    def read(cls, path: Path | str) -> ColumnMap:
        """Read a map; raises KarmafunnelError naming the file and the invalid key."""
        try:
            found = tomllib.loads(read_text(path))
        except tomllib.TOMLDecodeError as error:
            raise KarmafunnelError(path, needs="a TOML file", found=error) from error
        known = {f.name for f in fields(cls)}
        if stray := sorted(set(found) - known):
            raise KarmafunnelError(
                path, needs=f"keys among {', '.join(sorted(known))}", found=", ".join(stray)
            )
        kinds: dict[str, Any] = {
            "name": str,
            **dict.fromkeys(ROLES_OF, dict),
            "files": dict,
            "per": str,
            "gap_minutes": (int, float),
            "time": dict,
            "decimal": str,
            "rating": (int, float),
            "clicks": list,
            "purchases": list,
            "currency": str,
            "category_separator": str,
            "shown": list,
            "first_position": int,
        }
        for key, value in found.items():
            if not isinstance(value, kinds[key]) or isinstance(value, bool):
                raise KarmafunnelError(
                    path, what=key, needs="another kind of value", found=quoted(value)
                )
        if stray := sorted(set(found.get("time", {})) - {"unit", "format", "zone"}):
            raise KarmafunnelError(path, what="time", needs="unit, format or zone", found=stray)
        for key in ("clicks", "purchases", "shown"):
            found[key] = tuple(map(str, found.get(key, ())))
        found["time"] = Times(**found.get("time", {}))
        try:
            return cls(**found)
        except KarmafunnelError as error:
            raise KarmafunnelError(f"{path}: {error}") from error

    def with_columns(self, given: Mapping[str, str]) -> ColumnMap:
        """The map with the columns of some roles replaced; an empty name removes a role."""
        columns = {**self.columns, **given}
        return replace(self, columns={role: name for role, name in columns.items() if name})

    def with_table(self, kind: str, roles: Mapping[str, str]) -> ColumnMap:
        """The map with these columns for a kind of table."""
        values: dict[str, Any] = {KINDS[kind]: dict(roles)}
        return replace(self, **values)
