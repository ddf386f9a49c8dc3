"""A funnel as the text of a recipe that a user can read, copy and run."""

from __future__ import annotations

import ast

from ..replay.recipe import Recipe, offered

WIDTH = 100


def recipe_text(recipe: Recipe, words: str) -> str:
    """The text of a recipe file for exactly this funnel.

    Where the recipe defines classes of its own, its whole text comes first.

    Args:
        words: its docstring, or a comment.
    """
    values = [("label", repr(recipe.label)), ("funnel", repr(recipe.funnel))]
    embedders = recipe.used_embedders
    if embedders:
        items = ", ".join(f"{name!r}: {value!r}" for name, value in embedders.items())
        values.insert(1, ("embedders", "{" + items + "}"))
    lines = [f"{name} = {laid_out(text, len(name) + 3)}" for name, text in values]
    nodes = [node for _, text in values for node in ast.walk(ast.parse(text))]
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    imports = "\n".join(import_lines(names)) + "\n\n"
    body = "\n".join(lines) + "\n"
    if not recipe.custom_code:
        told = words.replace("\\", "\\\\").replace('"""', "'''")
        return f'"""{told}\n"""\n\n{imports}{body}'
    told = "\n".join(f"# {line}".rstrip() for line in words.splitlines())
    rule, quiet = "# " + "-" * 96, "choices = None\n" + ("" if embedders else "embedders = {}\n")
    return f"{recipe.text.rstrip()}\n\n\n{rule}\n{told}\n\n{imports}{quiet}{body}"


def import_lines(names: set[str]) -> list[str]:
    """The imports of those names that the package offers."""
    modules: dict[str, list[str]] = {}
    known = offered()
    for name in sorted(names & set(known)):
        modules.setdefault(known[name], []).append(name)
    lines = []
    for module in sorted(modules):
        line = f"from {module} import {', '.join(modules[module])}"
        if len(line) > WIDTH:
            line = f"from {module} import (\n    " + ",\n    ".join(modules[module]) + ",\n)"
        lines.append(line)
    return lines


def laid_out(text: str, begun: int = 0, indent: int = 0) -> str:
    """An expression in lines of at most `WIDTH` where it can be broken: at >>, and between the
    arguments of calls and the members of lists and dicts.

    Args:
        begun: characters before it in its first line.
        indent: of its first line.
    """
    if len(text) + begun <= WIDTH - 2:
        return text
    node, deeper = ast.parse(text, mode="eval").body, indent + 4
    lead = "\n" + " " * deeper

    def part(one: ast.AST, before: str = "") -> str:
        return before + laid_out(ast.unparse(one), deeper + len(before), deeper)

    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift):
        stages: list[ast.AST] = []
        while isinstance(node, ast.BinOp):
            stages.insert(0, node.right)
            node = node.left
        parts = [part(node), *(part(stage, ">> ") for stage in stages)]
        return "(" + "".join(lead + one for one in parts) + "\n" + " " * indent + ")"
    if isinstance(node, ast.Call):
        parts = [part(one) for one in node.args]
        parts += [part(one.value, f"{one.arg}=") for one in node.keywords]
        ends = ast.unparse(node.func) + "(", ")"
    elif isinstance(node, ast.List | ast.Tuple):
        parts, ends = [part(one) for one in node.elts], ("[", "]")
        ends = ("(", ")") if isinstance(node, ast.Tuple) else ends
    elif isinstance(node, ast.Dict):
        keys = [ast.unparse(key) + ": " for key in node.keys if key is not None]
        parts = [part(value, key) for key, value in zip(keys, node.values, strict=True)]
        ends = "{", "}"
    else:
        return text
    return ends[0] + "".join(f"{lead}{one}," for one in parts) + "\n" + " " * indent + ends[1]
