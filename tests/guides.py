"""Generates parts of the guides: code that the tests run, what commands print, and the references.

A guide is written by hand, in Markdown. Between ``<!-- code: file.py name ... -->`` and ``<!-- /code -->`` is what the file
in ``hooktrain/guides/code`` has under these names, or all of it; ``imports`` is a name for its imports. Between ``<!-- output:
command -->`` and ``<!-- /output -->`` is what the command prints in a folder with that code. The other marks are the keys of
:func:`rendered`. ``python -m tests.readme`` writes them.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import click
from hooktrain_recipes.tables import table_of

from hooktrain import PluginInfo, hookspecs
from hooktrain.cli.guide import FOLDER, GROUPS, GUIDES, title_of
from hooktrain.cli.main import cli
from hooktrain.errors import HooktrainError
from hooktrain.hookspecs import HOOKS, KINDS
from hooktrain.recipe.json_schema import field_docs
from hooktrain.renamed import RENAMED
from tests import configuration, seen

CODE = FOLDER / "code"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml"}
SECTIONS = {
    "collected": "Registration, metrics and state",
    "factory": "Factories",
    "event": "Events",
    "loop hook": "Loop hooks",
    "question": "Questions",
}
"""The section of the hook reference for each kind."""


def rendered(recipe: Mapping[str, Any], folder: Path) -> dict[Path, str]:
    """Every guide with its generated parts made anew.

    Args:
        recipe: the tiny one, for the recorded runs.
        folder: an empty one, in which the commands are run.
    """
    shutil.copytree(CODE, folder / "code", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    made: dict[str, Callable[[str], str]] = {
        "code": code,
        "output": lambda line: output(line, folder / "code"),
        "seen": lambda _: seen.table(seen.witnessed(recipe)),
        "hooks": lambda _: reference(),
        "configuration": lambda _: configuration.reference(),
        "renamed": lambda _: renamed([kind for kind in RENAMED if kind != "module"]),
        "moved": lambda _: renamed(["module"]),
        "info": lambda _: plugin_info(),
        "dialect": dialect,
        "index": lambda _: index(FOLDER),
    }

    def fill(found: re.Match[str]) -> str:
        mark, line = found[1], found[2] or ""
        return f"<!-- {mark}{line} -->\n{made[mark](line.removeprefix(': '))}\n<!-- /{mark} -->"

    pattern = re.compile(rf"<!-- ({'|'.join(made)})(: [^>]*)? -->\n.*?<!-- /\1 -->", re.DOTALL)
    return {
        path: pattern.sub(fill, path.read_text(encoding="utf-8")) for path in (FOLDER / "README.md", *GUIDES.values())
    }


def index(start: Path) -> str:
    """The guides by group, with links from a folder."""
    parts = []
    for title, names in GROUPS.values():
        parts += [f"## {title}", ""]
        parts += [
            f"- [`{name}`]({GUIDES[name].relative_to(start)}): {title_of(name)}" for name in names if name in GUIDES
        ]
        parts.append("")
    return "\n".join(parts).strip()


def renamed(kinds: list[str]) -> str:
    """The old and new names of some kinds as a table."""
    lines = ["| | old | new |", "|---|---|---|"]
    for kind in kinds:
        lines += [f"| {kind} | `{old}` | {_quoted(new)} |" for old, new in RENAMED[kind].items()]
    return "\n".join(lines)


def _quoted(name: str) -> str:
    return name if name.startswith("the ") else f"`{name}`"


def plugin_info() -> str:
    """The fields of ``PluginInfo`` as a table."""
    docs = field_docs(PluginInfo)
    lines = ["| field | default | |", "|---|---|---|"]
    for item in attrs.fields(PluginInfo):
        default = getattr(item.default, "factory", lambda item=item: item.default)()
        lines.append(f"| `{item.name}` | `{default!r}` | {docs[item.name]} |")
    return "\n".join(lines)


def dialect(name: str) -> str:
    """The keys of another program, and what becomes of them."""
    module = importlib.import_module(f"hooktrain_recipes.{name}")
    return str(table_of(module.ROWS, module.dialect().summary))


def code(line: str) -> str:
    """A file, or what stands in it under some names, as a block."""
    file, *names = line.split()
    text = (CODE / file).read_text(encoding="utf-8").rstrip("\n")
    if names:
        text = "\n\n\n".join(_named(text, name) for name in names)
    return f"```{LANGUAGES[Path(file).suffix]}\n{text}\n```"


def _named(text: str, name: str) -> str:
    """The source of a name such as ``Patience.collect_state``, decorators and comment lines before it included."""
    lines, body = text.splitlines(), ast.parse(text).body
    if name == "imports":
        found: list[Any] = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    else:
        for step in name.split("."):
            found = [node for node in body if step in _names_of(node)]
            if len(found) != 1:
                raise HooktrainError(f"'{name}' is not there once")
            body = getattr(found[0], "body", [])
    first = min(node.lineno for node in (*found, *getattr(found[0], "decorator_list", []))) - 1
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return textwrap.dedent("\n".join(lines[first : found[-1].end_lineno]))


def _names_of(node: ast.AST) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [getattr(each, "id", "") for each in targets] or [getattr(node, "name", "")]


def output(line: str, folder: Path) -> str:
    """A command, which may end with ``| grep WORD``, and what it prints in ``folder``."""
    command, _, word = line.partition(" | grep ")
    words = shlex.split(command)
    assert words[0] == "hooktrain", line
    printed, status = io.StringIO(), 0
    with _in(folder), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            status = cli.main(words[1:], prog_name="hooktrain", standalone_mode=False) or 0
        except HooktrainError as problem:
            print(f"hooktrain: {problem}")
    assert status == 0, printed.getvalue()
    text = printed.getvalue().replace(f"{folder}{os.sep}", "")
    text = re.sub(r" in \d+:\d\d", " in 0:00", text)  # a busy machine takes longer
    shown = [each.rstrip() for each in text.splitlines() if word in each]
    assert shown, f"{line}: prints nothing, of {printed.getvalue()}"
    return "```console\n$ " + "\n".join([line, *shown]) + "\n```"


def parse(line: str, folder: Path) -> None:
    """Check the words of a command against what ``hooktrain`` understands, without running it.

    Raises:
        click.UsageError: there is no such command, option or argument.
    """
    words = shlex.split(line.partition(" > ")[0].partition(" | ")[0])
    words = words[words.index("hooktrain") + 1 :]
    context = click.Context(cli, info_name="hooktrain")
    with _in(folder):
        _, command, rest = cli.resolve_command(context, words)
        command.make_context(command.name, rest, parent=context, resilient_parsing=False)


@contextlib.contextmanager
def _in(folder: Path) -> Iterator[None]:
    """In a folder, with its modules and none of them afterwards."""
    before, known, path = Path.cwd(), set(sys.modules), list(sys.path)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path
        for name in set(sys.modules) - known:
            if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


# ------------------------------------------------------------------------------------------------ hook reference


def reference() -> str:
    """Every hook in full, by kind, from its docstring and its types."""
    parts = []
    for kind, title in SECTIONS.items():
        parts += [f"## {title}", f"{KINDS[kind][0].upper()}{KINDS[kind][1:]}."]
        parts += [_entry(name, getattr(hookspecs, name)) for name, hook in HOOKS.items() if hook.kind == kind]
    return "\n\n".join(parts)


def _entry(name: str, function: Any) -> str:
    text = inspect.getdoc(function) or ""
    signature = inspect.signature(function)
    summary, more = re.match(r"(.*?)\n\n(.*?)(?=^Called: )", text, re.DOTALL | re.MULTILINE).groups()  # type: ignore[union-attr]
    points = [f"**{key}**: {_section(text, key)}" for key in ("Called", "Ranks", "Device")]
    arguments = text.partition("\nArgs:\n")[2].partition("\nReturns:")[0]
    for parameter, described in re.findall(r"^    (\w+): (.*?)(?=^    \w|\Z)", arguments, re.DOTALL | re.MULTILINE):
        points.append(f"`{parameter}` ({_type(signature.parameters[parameter].annotation)}): {described}")
    returned = text.partition("\nReturns:\n")[2].partition("\n\n")[0]
    if returned.strip() != "Ignored.":
        points.append(f"**Returns** ({_type(signature.return_annotation)}): {returned}")
    if _section(text, "Default") != "none.":
        points.append(f"**Default**: {_section(text, 'Default')}")
    head = f"### `{name}({', '.join(signature.parameters)})`\n\n" + _wrapped(f"{summary} {more}")
    return head + "\n\n" + "\n".join(_wrapped(point, "- ") for point in points)


def _section(text: str, key: str) -> str:
    return re.search(rf"^{key}: (.*?)(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)[1].strip()  # type: ignore[index]


def _type(annotation: str) -> str:
    return f"`{annotation}`"


def _wrapped(text: str, mark: str = "") -> str:
    words = " ".join(text.split()).replace("``", "`")
    return textwrap.fill(
        words,
        118,
        initial_indent=mark,
        subsequent_indent=" " * len(mark),
        break_long_words=False,
        break_on_hyphens=False,
    )
