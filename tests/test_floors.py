"""A file of the engine imports only lower floors, and nothing that belongs to a plugin."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest

CORE = Path(__file__).parents[1] / "hooktrain"
PLUGINS = CORE.parent / "plugins"

FLOORS = [
    ["compare", "errors", "info", "launch", "markers", "waits"],
    ["state", "estimates", "reading"],
    ["parts", "config", "hookspecs"],
    ["dispatch", "records"],
    ["arrangement", "discovery", "needs", "rules", "tolerance"],
    ["lock"],
    ["plugins", "ledger"],
    ["recipe"],
    ["drift", "loader", "meter", "occupied", "requests", "saving", "faults", "given_rows", "startup"],
    ["console", "jsonl", "loop", "signals", "given", "profiling"],
    ["build", "in_hand"],
    ["session"],
    ["trainer", "sketch"],
    ["options"],
    ["report"],
    ["demo", "guide", "preview", "scaffold", "testing"],
    ["bench"],
    ["cli"],
    ["__main__"],
]
"""From the ground up; the files of one floor do not import each other."""

ALLOWED = {"torch", "pluggy", "attrs", "cattrs", "yaml", "click", "packaging", "rich"}
MORE = {"bench/plots.py": {"matplotlib"}, "testing": {"pytest"}, "testing/language.py": {"transformers", "tokenizers"}}
"""What some files may import besides, in functions that need it."""
WITHOUT_TORCH = {
    "errors",
    "markers",
    "config",
    "hookspecs",
    "dispatch",
    "records",
    "rules",
    "info",
    "arrangement",
    "discovery",
    "needs",
    "tolerance",
    "lock",
    "plugins",
    "reading",
    "recipe",
    "cli",
    "__main__",
    "estimates",
    "options",
    "report",
    "scaffold",
    "guide",
    "__init__",
}


def units() -> dict[str, list[Path]]:
    """Each file or package of the engine by name, and what it consists of."""
    found = {path.stem: [path] for path in sorted(CORE.glob("*.py"))}
    found.update({path.parent.name: sorted(path.parent.glob("*.py")) for path in sorted(CORE.glob("*/__init__.py"))})
    return found


def imports(path: Path) -> set[str]:
    """Modules that a file imports when it runs; those for type checkers alone are left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "hooktrain" else {node.module}
            )
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def test_every_file_stands_on_a_floor():
    assert sorted(units()) == sorted(["__init__", *(n for floor in FLOORS for n in floor)])


@pytest.mark.parametrize("name", [name for floor in FLOORS for name in floor])
def test_a_file_imports_only_lower_floors(name):
    height = {each: number for number, floor in enumerate(FLOORS) for each in floor}
    for module in set().union(*(imports(path) for path in units()[name])):
        package, _, inner = module.partition(".")
        below = inner.split(".")[0]
        if package == "hooktrain" and not (below == name and inner != name):  # files of a package may import each other
            assert below in height, f"{name} imports {module}, which is not a file of the engine"
            assert height[below] < height[name], f"{name} imports {below}, which is no lower floor"


@pytest.mark.parametrize(
    ("name", "path"),
    [(name, path) for name, paths in units().items() for path in paths],
    ids=lambda value: str(value)[-20:],
)
def test_the_engine_imports_nothing_of_a_plugin(name, path):
    for module in imports(path):
        package = module.split(".")[0]
        if package not in sys.stdlib_module_names and package != "hooktrain":
            more = MORE.get(str(path.relative_to(CORE)), MORE.get(name, set()))
            assert package in ALLOWED | more, f"{path.name} imports {module}"
            assert package != "torch" or name not in WITHOUT_TORCH, f"{path.name} imports torch"


@pytest.mark.parametrize(
    "path", sorted(PLUGINS.glob("*/hooktrain_*/**/*.py")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_plugins_import_only_the_public_package_and_themselves(path):
    for module in imports(path):
        if module.startswith("hooktrain."):
            import hooktrain

            assert module.removeprefix("hooktrain.") in hooktrain.__all__, f"{path} imports {module}"
        elif module.startswith("hooktrain_"):
            package = module.split(".")[0]
            project = (PLUGINS / path.relative_to(PLUGINS).parts[0] / "pyproject.toml").read_text(encoding="utf-8")
            required = f'"{package.replace("_", "-")}"' in project
            assert required or package == path.relative_to(PLUGINS).parts[1], (
                f"{path} imports {module} of a plugin that it does not depend on"
            )


def test_only_plugins_lie_in_plugins():
    for folder in PLUGINS.iterdir():
        assert (folder / "pyproject.toml").is_file(), f"{folder.name} is not a distribution"


def test_no_branch_on_the_name_of_a_part():
    for path in CORE.rglob("*.py"):
        for word in ("deepspeed", "huggingface", "transformers", "datasets"):
            code = [line for line in path.read_text(encoding="utf-8").splitlines() if f'"{word}"' in line]
            if path.parent.name == "checks":  # whose thorough form names the strategies that it tries
                code = [line for line in code if not line.startswith('    "zero": {')]
            assert not code, f"{path.name} knows about {word}: {code}"


@pytest.mark.parametrize(("name", "most"), [("trainer", 400), ("loop", 200)])
def test_the_loop_can_be_read_in_one_sitting(name, most):
    assert len((CORE / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= most


@pytest.mark.parametrize("path", sorted(PLUGINS.glob("*/pyproject.toml")), ids=lambda path: path.parent.name)
def test_plugins_name_their_license_and_a_setuptools_that_reads_it(path):
    text = path.read_text(encoding="utf-8")
    assert 'license = "Apache-2.0"' in text
    assert "setuptools>=77" in text, "older ones refuse a license that is a word"


@pytest.mark.parametrize("package", ["hooktrain", "hooktrain.testing", "hooktrain.bench"])
def test_no_public_name_is_that_of_a_module(package):
    """Which of the two ``from package import name`` gives would depend on what was imported before."""
    found = importlib.import_module(package)
    modules = {module.name for module in pkgutil.iter_modules(found.__path__)}
    assert not modules & set(found.__all__)
