"""``hooktrain guide``: the documentation in the terminal, in two groups: using hooktrain, and writing plugins.

The guides are Markdown in ``guides/using`` and ``guides/plugins``. The code that they show is in ``guides/code``:
plugins of one module each, with their tests. ``python -m tests.readme`` copies it into the guides; the tests run it.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from hooktrain.errors import HooktrainError, did_you_mean

__all__ = ["FOLDER", "GROUPS", "GUIDES", "guide"]

FOLDER = Path(__file__).parents[1] / "guides"

GROUPS = {
    "using": (
        "Using hooktrain",
        (
            "recipes",
            "data-and-masks",
            "preferences",
            "distillation",
            "models",
            "configuration",
            "coming-from-arctic",
            "coming-from-axolotl",
            "coming-from-llamafactory",
            "coming-from-trl",
            "python",
            "several-devices-and-hosts",
            "checkpoints-and-resume",
            "evaluate-export-chat",
            "metrics-and-profiling",
            "memory",
            "fit-a-bigger-model",
            "signals-and-exit-statuses",
            "troubleshooting",
            "versions-and-deprecations",
            "changelog",
        ),
    ),
    "plugins": (
        "Writing plugins",
        (
            "first-plugin",
            "wrap-a-model",
            "wrap-a-strategy",
            "further-models",
            "replace-the-step",
            "register-a-loss",
            "objectives",
            "own-data",
            "own-loader",
            "keep-state",
            "own-checkpoint-engine",
            "own-hooks",
            "track-a-run",
            "add-a-command",
            "declarations",
            "benchmark-suites",
            "test-and-publish",
            "hooks",
        ),
    ),
}
"""For each folder its title and its guides, in the order in which one would read them."""

GUIDES = {
    name: FOLDER / folder / f"{name}.md"
    for folder, (_, names) in GROUPS.items()
    for name in names
    if (FOLDER / folder / f"{name}.md").exists()
}
"""The file of each guide."""


def text_of(name: str) -> str:
    """Return a guide as Markdown, without the marks of its generated parts.

    Raises:
        HooktrainError: when there is no such guide.
    """
    return re.sub(r"^<!-- .* -->\n", "", _source(name), flags=re.MULTILINE)


def _source(name: str) -> str:
    return GUIDES[_full(name)].read_text(encoding="utf-8")


def _full(name: str) -> str:
    """Return the name of a guide, of which a beginning is enough that no other guide has."""
    found = [name] if name in GUIDES else [each for each in GUIDES if name and each.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise HooktrainError(f"several guides begin with '{name}': {', '.join(found)}; give one of them")
    raise HooktrainError(f"no guide is named '{name}'{did_you_mean(name, GUIDES)}; `hooktrain guide` lists them")


def title_of(name: str) -> str:
    """Return a guide's title."""
    return text_of(name).partition("\n")[0].removeprefix("# ")


def files_of(name: str) -> list[Path]:
    """Return the files whose code a guide shows, and the recipe to run it with."""
    marked = re.findall(r"^<!-- code: (\S+)", _source(name), flags=re.MULTILINE)
    found = sorted({FOLDER / "code" / file for file in marked})
    return [*found, *([FOLDER / "code" / "tiny.yaml"] if found else [])]


def write_files(name: str, folder: Path) -> list[Path]:
    """Write a guide's code into a folder, without overwriting anything; returns the files.

    Raises:
        HooktrainError: when the guide has no code, a file exists already, or the folder cannot be written.
    """
    sources = list(dict.fromkeys(files_of(name)))
    if not sources:
        raise HooktrainError(f"the guide '{name}' has no code of its own; give another one")
    targets = [folder / source.name for source in sources]
    try:
        for source, target in zip(sources, targets, strict=True):
            if target.exists() and target.read_bytes() != source.read_bytes():
                raise HooktrainError(f"{target}: exists already, and nothing is overwritten; give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in zip(sources, targets, strict=True):
            target.write_bytes(source.read_bytes())
    except OSError as problem:
        raise HooktrainError(f"{folder}: cannot be written ({problem.strerror}); give another folder") from problem
    return targets


@click.command()
@click.argument("name", required=False)
@click.option(
    "--write",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the guide's code to a folder: plugin, tests, and a recipe to run it with.",
)
def guide(name: str | None, folder: Path | None) -> None:
    """Show a guide: how to use hooktrain, how to write plugins. Without a NAME, list the guides.

    The beginning of a name is enough where one guide alone has it.
    """
    if name is None:
        width = max(map(len, GUIDES)) + 2
        for title, names in GROUPS.values():
            click.echo(f"{title}:")
            for each in filter(GUIDES.get, names):
                click.echo(f"  {each:<{width}}{title_of(each)}")
            click.echo()
        click.echo("`hooktrain guide NAME` shows one. `--write DIR` writes the code of a guide about plugins.")
        return
    text = text_of(name)
    if folder is not None:
        for path in write_files(name, folder):
            click.echo(f"wrote {path}")
        return
    _show(text)


def _show(text: str) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    if not console.is_terminal:
        click.echo(text, nl=False)  # Markdown is what a file or a program wants
        return
    console.print(Markdown(text, code_theme="ansi_dark"), width=min(console.width, 100))
