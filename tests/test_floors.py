"""A file of the engine imports only lower floors, and nothing that belongs to a plugin."""

from __future__ import annotations

import ast
import graphlib
import importlib
import pkgutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

CORE = Path(__file__).parents[1] / "hooktrain"
PLUGINS = CORE.parent / "plugins"

FLOORS = [
    ["masking"],
    ["cache_folder", "compare", "compat", "errors", "markers", "renamed"],
    ["exports"],
    ["types", "watched_metric"],
    ["config", "protocols"],
    ["hookspecs"],
    ["plugin"],
    ["recipe"],
    ["training"],
    ["builtins"],
    ["inspection"],
    ["runs"],
    ["testing"],
    ["bench"],
    ["cli"],
    ["__main__"],
]
"""Modules and folders from the ground up; those of one floor do not import each other."""

ALLOWED = {"torch", "pluggy", "attrs", "cattrs", "yaml", "click", "packaging", "rich", "filelock"}
MORE = {
    "bench/plots.py": {"matplotlib"},
    "cli/lr_find.py": {"matplotlib"},
    "testing": {"pytest"},
    "testing/tiny_llama.py": {"transformers", "tokenizers"},
}
"""What some files may import besides, in functions that need it."""
WITHOUT_TORCH = [
    "__init__",
    "__main__",
    "errors",
    "renamed",
    "markers",
    "config",
    "hookspecs",
    "plugin",
    "recipe",
    "inspection",
]
WITHOUT_TORCH += ["cli", "runs", "builtins/console.py", "builtins/jsonl.py", "builtins/signals.py", "training/load.py"]
WITH_TORCH = {"builtins/console.py", "cli/launcher.py", "inspection/estimate.py"}
"""Files of these that import it in a function."""


def units() -> dict[str, list[Path]]:
    """Each module or folder of the engine by name, and its files."""
    found = {path.stem: [path] for path in sorted(CORE.glob("*.py"))}
    found.update(
        {path.name: sorted(path.rglob("*.py")) for path in sorted(CORE.iterdir()) if (path / "__init__.py").exists()}
    )
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
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def test_every_file_stands_on_a_floor():
    assert sorted(units()) == sorted(["__init__", *(n for floor in FLOORS for n in floor)])


@pytest.mark.parametrize("name", [name for floor in FLOORS for name in floor])
def test_a_file_imports_only_lower_floors(name):
    height = {each: number for number, floor in enumerate(FLOORS) for each in floor}
    for path in units()[name]:
        for module in imports(path):
            package, _, inner = module.partition(".")
            below = inner.split(".")[0]
            if package == "hooktrain" and below != name:
                assert below in height, f"{path} imports {module}, which is no module of the engine"
                assert height[below] < height[name], f"{path} imports {module}, which is no lower floor"


FOLDERS = {path.parent.name: path.parent for path in sorted(CORE.glob("*/__init__.py"))}
FOLDERS |= {path.name: path for path in sorted(PLUGINS.glob("*/hooktrain_*")) if (path / "__init__.py").exists()}


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_no_import_goes_round(folder):
    names = {path: ".".join(path.relative_to(folder.parent).with_suffix("").parts) for path in folder.rglob("*.py")}
    prefix = "hooktrain." if folder.parent == CORE else ""
    known = {prefix + name.removesuffix(".__init__"): path for path, name in names.items()}
    graph = {
        name: {known_name for each in imports(path) if (known_name := _longest(each, known))} - {name}
        for name, path in known.items()
    }
    order = graphlib.TopologicalSorter(graph)
    order.prepare()  # raises CycleError, which names the circle


def _longest(module: str, known: Mapping[str, Path]) -> str:
    """The module of a folder that an imported name is, or lies in; empty for another one."""
    while module and module not in known:
        module = module.rpartition(".")[0]
    return module


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
            without = name in WITHOUT_TORCH or path.relative_to(CORE).as_posix() in WITHOUT_TORCH
            without = without and path.relative_to(CORE).as_posix() not in WITH_TORCH
            assert package != "torch" or not without, f"{path.name} imports torch"


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
            if package == path.relative_to(PLUGINS).parts[1]:
                continue
            required = f'"{package.replace("_", "-")}>=' in project
            assert required, f"{path} imports {module} of a plugin that it does not depend on"
            exported = {package, *(f"{package}.{name}" for name in importlib.import_module(package).__all__)}
            assert module in exported, f"{path} imports {module}, which {package} does not export"


def test_only_plugins_lie_in_plugins():
    for folder in PLUGINS.iterdir():
        assert (folder / "pyproject.toml").is_file(), f"{folder.name} is not a distribution"


def test_no_branch_on_the_name_of_a_part():
    for path in CORE.rglob("*.py"):
        if path.parent == CORE / "guides" / "code":  # plugins, as others write them
            continue
        for word in ("deepspeed", "huggingface", "transformers", "datasets"):
            code = [line for line in path.read_text(encoding="utf-8").splitlines() if f'"{word}"' in line]
            if path.name == "strategies.py":  # whose thorough form names the strategies that it tries
                code = [line for line in code if not line.startswith('    "zero": {')]
            assert not code, f"{path.name} knows about {word}: {code}"


@pytest.mark.parametrize(("name", "most"), [("trainer", 735), ("default_loop", 200)])
def test_the_loop_can_be_read_in_one_sitting(name, most):
    assert len((CORE / "training" / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= most


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
