"""Cache keys: a kept fit, checkpoint or piece of a Run is valid only for the code that made it.

A key covers the modules that a value reaches: those that define its classes, and all modules of
this package that they import, directly or not. Comments, docstrings and line breaks do not count.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from dis import Bytecode, opmap
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from modulefinder import ModuleFinder
from pathlib import Path
from types import CodeType
from typing import Any

PACKAGE = __name__.partition(".")[0]
NOP, IMPORT = opmap["NOP"], opmap["IMPORT_NAME"]
LIBRARIES = ("torch", "lightgbm", "faiss-cpu", "scikit-learn", "bm25s")


def cache_root() -> Path:
    """The default cache folder: $KARMAFUNNEL_CACHE, else ~/.cache/karmafunnel."""
    return Path(os.environ.get("KARMAFUNNEL_CACHE") or Path.home() / ".cache" / "karmafunnel")


def version_of(package: str) -> str:
    """The version of an installed package, or "not installed"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def content_key(code: str, *parts: Any) -> str:
    """A short hash of the digest of the code and of the JSON (or `str`) of the other parts."""
    return hashlib.sha256(json.dumps([code, *parts], default=str).encode()).hexdigest()[:16]


def code_of(*values: Any, by: tuple[str, ...] = ()) -> str:
    """Digest of the code that dataclass values reach, of the modules `by` that process them, and of
    the logs that values read from folders of their own.

    Classes from outside the package are not covered: a recipe's own code is keyed by its text.
    """
    code = code_digest(*sorted({*modules_of(values), *by}))
    logs = [digest_of_log(folder) for folder in logs_of(values)]
    return content_key(code, logs) if logs else code


def values_in(value: Any) -> Iterator[Any]:
    """The dataclass values in a value: itself, and those in its fields or parts."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from values_in(part)
    elif is_dataclass(value) and not isinstance(value, type):
        yield value
        for f in fields(value):
            yield from values_in(getattr(value, f.name))


def modules_of(value: Any) -> Iterator[str]:
    """Modules of this package that define the classes of a value and of those in its fields."""
    for found in values_in(value):
        yield from (kind.__module__ for kind in type(found).__mro__ if ours(kind.__module__))


def logs_of(value: Any) -> Iterator[Path]:
    """Folders of logs and catalogues that a value reads: those in the fields that its class names
    in `log_fields`.
    """
    for found in values_in(value):
        for name in getattr(found, "log_fields", ()):
            folders = getattr(found, name)
            yield from map(Path, [folders] if isinstance(folders, str) else folders)


def digest_of_log(folder: Path) -> str:
    """SHA-256 of a log's `log.json`, which has the checksums of its tables; "none" without one."""
    file = folder / "log.json"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "none"


def ours(module: str) -> bool:
    return module.partition(".")[0] == PACKAGE


@cache
def code_digest(*modules: str) -> str:
    """Digest of modules of this package (full names), of all its modules that they import, and of
    the versions of Python and of the fitting libraries.
    """
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += [where for _, where in imports(module)]
    told = [f"{module} {digest_of(module)}" for module in sorted(seen)]
    told += [str(sys.version_info[:2]), *(version_of(library) for library in LIBRARIES)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


@cache
def digest_of(module: str) -> str:
    """Digest of a module's compiled code."""
    return hashlib.sha256(repr(without_lines(compiled(module))).encode()).hexdigest()


@cache
def compiled(module: str) -> CodeType:
    """A module of this package, compiled without its docstrings."""
    return compile(file_of(module).read_bytes(), module, "exec", dont_inherit=True, optimize=2)


def file_of(module: str) -> Path:
    """The file of a module of this package; of a package its `__init__.py`."""
    path = Path(__file__).parent.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")


def without_lines(constant: Any) -> Any:
    """A constant of compiled code; for a code object everything that affects execution, without
    line numbers and file name.
    """
    if isinstance(constant, CodeType):
        code = constant
        names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
        counts = code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount, code.co_flags
        constants = tuple(without_lines(x) for x in code.co_consts)
        return code.co_name, *instructions(code), constants, names, counts
    if isinstance(constant, frozenset):  # in another order in every process
        return "frozenset", sorted(map(repr, constant))
    return type(constant).__name__, repr(constant)


def instructions(code: CodeType) -> tuple[bytes, list[tuple[Any, ...]]]:
    """Byte code and exception table without NOP instructions, since a docstring leaves one."""
    at = range(0, len(code.co_code), 2)
    kept = [code.co_code[i] != NOP for i in at]
    place = [0, *accumulate(kept)]  # where an instruction stands among those that are kept
    entries: tuple[Any, ...] = ()
    if code.co_exceptiontable:
        entries = Bytecode(code).exception_entries  # type: ignore[attr-defined]
    caught = []
    for e in entries:
        start, end, target = (place[x // 2] for x in (e.start, e.end, e.target))
        caught.append((start, end, target, e.depth, e.lasti))
    pieces = [code.co_code[i : i + 2] for i, keep in zip(at, kept, strict=True) if keep]
    return b"".join(pieces), caught


@cache
def imports(module: str) -> tuple[tuple[str, str], ...]:
    """The names that a module imports from this package anywhere in its code, each with the module
    that defines it.
    """
    parts = module.split(".")
    here = parts if file_of(module).name == "__init__.py" else parts[:-1]
    found: list[tuple[str, str]] = []
    for kind, what in operations(compiled(module)):
        if kind == "absolute_import":
            names, base = what
        elif kind == "relative_import":
            level, names, name = what
            base = ".".join([*here[: len(here) - level + 1], *([name] if name else [])])
        else:
            continue
        if ours(base):
            found += [(name, defined_in(base, name)) for name in names or ()]
            if not names:
                found.append((base, base))
    return tuple(found)


def defined_in(base: str, name: str) -> str:
    """The module that `from base import name` leads to, past packages that re-export the name."""
    if file_of(f"{base}.{name}").exists():
        return f"{base}.{name}"
    return dict(imports(base)).get(name, base) if file_of(base).name == "__init__.py" else base


def operations(code: CodeType) -> Iterator[tuple[str, Any]]:
    """Imports (and names stored) of a code object and of those inside it that import something."""
    # few have one, and reading them all takes longer than compiling
    if IMPORT in code.co_code[::2]:
        yield from ModuleFinder().scan_opcodes(code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from operations(constant)
