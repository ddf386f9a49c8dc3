"""A refusal is told by fields, and as one line."""

import ast
import pickle
from pathlib import Path

import karmafunnel
import pytest
from karmafunnel.errors import KarmafunnelError, NotWrittenError, line_of

ROOT = Path(karmafunnel.__file__).parent
CODE = [
    p
    for p in ROOT.rglob("*.py")
    if not {"tests", ".venv", "build", "out", ".mypy_root"} & set(p.relative_to(ROOT).parts)
]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "rank"),
        (
            {"needs": "a stage before it", "found": "none"},
            "rank: needs a stage before it, found none",
        ),
        ({"what": "k", "needs": "a number", "found": 0}, "rank: k needs a number, found 0"),
        ({"needs": "an order", "hint": "sort it"}, "rank: needs an order; sort it"),
        ({"hint": "sort it"}, "rank; sort it"),
    ],
)
def test_the_line_is_made_of_the_fields(fields, line):
    error = KarmafunnelError("rank", **fields)
    assert str(error) == line == line_of(error)


@pytest.mark.parametrize("kind", [KarmafunnelError, NotWrittenError])
def test_fields_survive_the_way_to_another_process(kind):
    error = pickle.loads(pickle.dumps(kind("a", what="b", needs="c", found="d", hint="e")))
    assert type(error) is kind
    assert (error.who, error.what, error.needs, error.found, error.hint) == (
        "a",
        "b",
        "c",
        "d",
        "e",
    )
    assert str(error) == "a: b needs c, found d; e"


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_was_needed_and_found_is_never_typed_into_the_line(path):
    """The grammar is in one place: a text ", found" beside a ": needs" is no refusal's own."""
    typed = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", "") in ("KarmafunnelError", "NotWrittenError")
            and node.args
        ):
            continue
        parts = node.args[0].values if isinstance(node.args[0], ast.JoinedStr) else [node.args[0]]
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "?" for part in parts)
        if ": needs " in text and ", found " in text:
            typed.append((node.lineno, text))
    assert not typed
