"""``hooktrain new-plugin``: a package to begin with, which installs, passes its tests and does something.

Its files lie in ``templates/plugin`` as they are written, so that linters and type checkers read them where they are.
Three words stand for what depends on the name, in texts and in file names: ``PLUGIN_name``, ``PLUGIN_module`` and
``PLUGIN_distribution``.
"""

from __future__ import annotations

import re
import shlex
import shutil
import string
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from hooktrain.errors import HooktrainError

__all__ = ["PluginNames", "new_plugin", "write_plugin"]

TEMPLATE = Path(__file__).parents[1] / "templates" / "plugin"

LONGEST = 40
"""Letters of a name; the lines of the template have room for it."""


class PluginNames(NamedTuple):
    """Names of a plugin: its own, its module's and its distribution's.

    Attributes:
        name: in recipes, on the command line and in front of its metrics, such as ``my_plugin``.
        module: what Python imports, such as ``hooktrain_my_plugin``.
        distribution: what pip installs, such as ``hooktrain-my-plugin``.
    """

    name: str
    module: str
    distribution: str

    @classmethod
    def of(cls, given: str) -> PluginNames:
        """The three names, from one of them: case and the kind of dash do not matter.

        Raises:
            HooktrainError: when Python, pip or YAML could not do with such a name, or recipes use it already.
        """
        import yaml

        name = given.strip().lower().replace("-", "_").removeprefix("hooktrain_")
        if not re.fullmatch(r"[a-z](_?[a-z0-9])*", name) or name == "hooktrain" or len(name) > LONGEST:
            raise HooktrainError(
                f"NAME: given '{given}', expected at most {LONGEST} letters, digits and single dashes, a letter first;"
                " give a name such as my-plugin"
            )
        own_key = name in _recipe_keys()
        if own_key or yaml.safe_load(name) != name:
            why = "a key of every recipe" if own_key else f"read by YAML as {yaml.safe_load(name)}"
            raise HooktrainError(
                f"NAME: given '{given}', but '{name}' is {why}, and the plugin's settings stand under its name; give"
                " another name"
            )
        return cls(name, f"hooktrain_{name}", f"hooktrain-{name.replace('_', '-')}")


def _recipe_keys() -> set[str]:
    import attrs

    from hooktrain.recipe.model import Recipe

    fields = attrs.fields(Recipe)
    return {key for field in fields for key in (field.name, *field.metadata.get("aliases", ()))}


class _Template(string.Template):
    """Words that are valid in Python, TOML and YAML take the place of ``$name``."""

    delimiter = "PLUGIN_"
    idpattern = "name|module|distribution"
    flags = re.RegexFlag(0)  # as they are written, in capital letters


def write_plugin(names: PluginNames, parent: Path) -> Path:
    """Write a plugin's package into a new folder.

    Args:
        names: what it is called.
        parent: where the folder, which is called like the distribution, is made.

    Returns:
        The folder.

    Raises:
        HooktrainError: when it is there already, or cannot be written; nothing is left behind then.
    """
    folder = parent / names.distribution
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise _unwritable(parent, problem) from problem
    try:
        folder.mkdir()
    except FileExistsError:
        raise HooktrainError(
            f"{folder}: is there already, and nothing is overwritten; remove it, or give another name or --dir"
        ) from None
    except OSError as problem:
        raise _unwritable(folder, problem) from problem
    try:
        for place, text in _template_files(TEMPLATE, names._asdict()):
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as problem:
        shutil.rmtree(folder, ignore_errors=True)
        raise _unwritable(folder, problem) from problem
    return folder


def _unwritable(folder: Path, problem: OSError) -> HooktrainError:
    return HooktrainError(f"{folder}: cannot be written ({problem.strerror}); give another folder with --dir")


def _template_files(folder: Path, values: dict[str, str], place: str = "") -> Iterator[tuple[str, str]]:
    """Path and text of each file of the template, with the plugin's names in them."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith((".", "__pycache__")):  # what pip and the linters leave there
            continue
        name = ".gitignore" if entry.name == "gitignore" else _Template(entry.name).substitute(values)
        if entry.is_dir():
            yield from _template_files(entry, values, f"{place}{name}/")
        else:
            yield f"{place}{name}", _Template(entry.read_text(encoding="utf-8")).substitute(values)


def _refuse_taken(names: PluginNames) -> None:
    """Refuse a name that an installed plugin, a part of the same kind or a distribution has."""
    from importlib.metadata import PackageNotFoundError, version

    from hooktrain.training.load import make_host

    host = make_host()
    record = host.records.get(names.name)
    for kind in ("scheduler", "settings"):
        offer = host.parts.get(kind, {}).get(names.name)
        record = record or (offer.plugin if offer is not None else None)
    if record is not None:
        raise HooktrainError(f"NAME: '{names.name}' is taken by the installed {record}; give another name")
    try:
        found = version(names.distribution)
    except PackageNotFoundError:
        return
    raise HooktrainError(
        f"NAME: '{names.distribution}' is installed already, in version {found}; give another name, or uninstall it"
    )


@click.command("new-plugin")
@click.argument("name")
@click.option(
    "--dir",
    "parent",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Where to make the folder hooktrain-NAME; here when omitted.",
)
def new_plugin(name: str, parent: Path) -> None:
    """Write the package of a new plugin, with tests.

    It registers a part, observes the run, has settings and keeps state; `hooktrain guide` explains how.
    """
    names = PluginNames.of(name)
    _refuse_taken(names)
    folder = write_plugin(names, parent)
    click.echo(
        f"The plugin '{names.name}' is in {folder}: the package {names.module}, its tests, and a recipe to try it.\n\n"
        f"  cd {shlex.quote(str(folder))}\n"
        '  pip install -e ".[test]"\n'
        "  python -m pytest\n"
        "  hooktrain plugins\n"
        "  hooktrain train recipe.yaml\n"
    )
