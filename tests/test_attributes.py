"""What is read from objects is declared, and private names of libraries are reached in one module of each distribution."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXEMPT = {"compat.py", "protocols.py", "__init__.py"}
PUBLIC = {"_replace", "_asdict", "_fields", "_make", "_exit"}
"""Names of named tuples and of ``os`` that Python documents."""


def files() -> list[Path]:
    kept = subprocess.run(
        ["git", "ls-files", "hooktrain", "plugins"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = [ROOT / name for name in kept.stdout.split() if name.endswith(".py")]
    return [
        path
        for path in found
        if path.exists() and path.name not in EXEMPT and not {"templates", "guides"} & {*path.parts}
    ]


def violations(text: str) -> Iterator[tuple[str, int]]:
    """Yield literal names that are read by getattr or hasattr, and private attributes of what is not the module's own."""
    tree = ast.parse(text)
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    own |= {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id[0] == "_"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = node.args[1] if len(node.args) > 1 else None
            if isinstance(name, ast.Constant):
                yield f"{node.func.id}(..., {name.value!r})", node.lineno
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            holder = node.value
            fine = isinstance(holder, ast.Name) and holder.id in ({"self", "cls"} | own)
            if not fine and node.attr not in PUBLIC:
                yield f"{ast.unparse(node)}", node.lineno


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_read_is_declared(path):
    found = [f"{path.relative_to(ROOT)}:{line}: {what}" for what, line in violations(path.read_text(encoding="utf-8"))]
    assert not found, "declare it in protocols.py, or reach for it in compat.py:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("getattr(x, 'y', None)", ["getattr(..., 'y')"]),
        ("hasattr(x, 'y')", ["hasattr(..., 'y')"]),
        ("getattr(x, name)", []),
        ("x._y", ["x._y"]),
        ("self._y", []),
        ("self.x._y", ["self.x._y"]),
        ("class A: ...\nA._y", []),
        ("x._replace(y=1)", []),
        ("x.__class__", []),
    ],
)
def test_what_is_found(text, found):
    assert [what for what, _ in violations(text)] == found
