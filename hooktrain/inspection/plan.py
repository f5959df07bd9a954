"""``hooktrain plan``: what a run of a recipe would consist of, as far as it can be known without running it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from hooktrain.errors import Complaint, RecipeError, described
from hooktrain.hookspecs import FACTORIES
from hooktrain.inspection.hooks import implementations_of
from hooktrain.inspection.value_origins import Sources, origins_of
from hooktrain.masking import mask_text, masked
from hooktrain.plugin.checking import check_installed, check_used, problems_of
from hooktrain.plugin.config import Switches, plugins_config
from hooktrain.plugin.dependencies import logit_complaints, output_complaints
from hooktrain.plugin.manager import PluginHost
from hooktrain.plugin.ordering import complaint_of
from hooktrain.plugin.records import PluginRecord
from hooktrain.protocols import ConfigDefaults, member
from hooktrain.recipe.aliases import without_aliases
from hooktrain.recipe.model import Recipe
from hooktrain.recipe.resolver import resolve
from hooktrain.recipe.yaml_reader import apply_overrides, masked_values, read_recipe
from hooktrain.training.load import make_host
from hooktrain.types import World

__all__ = ["phases_of", "plan_of", "read_phases", "read_plan"]


def read_plan(
    path: Path, overrides: Sequence[str] = (), switches: Sequence[str] = (), nproc: int = 1, estimates: bool = True
) -> dict[str, Any]:
    """The plan of a recipe file. What is wrong with the recipe is among the facts, under ``complaints``.

    Args:
        path: of the recipe.
        overrides: ``key=value`` words.
        switches: ``name``, ``no:name`` and ``no:*``.
        nproc: ranks that the plan is for.
        estimates: whether to look for sizes of model, data and memory, which takes seconds.

    Raises:
        HooktrainError: when the file is no recipe, or its plugins cannot be told.
    """
    return _last(read_phases(path, overrides, switches, nproc, estimates))


def read_phases(
    path: Path,
    overrides: Sequence[str] = (),
    switches: Sequence[str] = (),
    nproc: int = 1,
    estimates: bool = True,
    translated: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """The plan of a recipe file as it grows, see :func:`phases_of`; arguments and errors are those of `read_plan`.

    ``translated`` is what a file of another program says in hooktrain's keys.
    """
    raw = apply_overrides(read_recipe(path) if translated is None else dict(translated), overrides)
    host = make_host(plugins_config(raw, []), switches=Switches.given(switches), problems=[])
    sources = Sources(
        file=path,
        raw=without_aliases(raw, host, keep_conflicts=True)[0],
        overrides=tuple(overrides),
        switches=tuple(switches),
        translated=translated is not None,
    )
    yield from phases_of(host, sources, World(world_size=nproc), estimates)


def plan_of(host: PluginHost, sources: Sources, world: World = World(), estimates: bool = True) -> dict[str, Any]:
    """Return the plan of a run as plain values for JSON; arguments are those of :func:`phases_of`."""
    return _last(phases_of(host, sources, world, estimates))


def _last(phases: Iterator[dict[str, Any]]) -> dict[str, Any]:
    *_, facts = phases
    return facts


def phases_of(
    host: PluginHost, sources: Sources, world: World = World(), estimates: bool = True
) -> Iterator[dict[str, Any]]:
    """Yield the plan of a run as it becomes known; the same facts grow from phase to phase.

    Args:
        host: the plugins, not yet checked.
        sources: what the recipe was made of.
        world: one of the ranks that the plan is for, and how many there are.
        estimates: whether to look for sizes of model, data and memory.

    Yields:
        The resolved recipe with origins, parts, hooks and plugins; the same with all complaints, those of the plugins'
        ``check_recipe`` and ``check_files`` included; and, for which torch is imported, the same with the estimates.
    """
    found = problems_of([partial(check_installed, host)])
    problems = [*(host.problems or ()), *found]
    complaints = [*masked_values(sources.raw), *map(complaint_of, problems)]
    recipe = _resolved(host, sources, complaints, world)
    complaints[:0] = map(complaint_of, check_used(host, recipe))
    facts: dict[str, Any] = {
        "recipe": masked(dict(sources.raw)),
        "origins": {},
        "complaints": complaints,
        "lacking": [],
        "world_size": world.world_size,
        "parts": {},
        "loss_terms": [],
        "compatibility_lifted": False,
    }
    if recipe is not None:
        facts["recipe"] = masked(recipe.as_dict())
        facts["origins"] = origins_of(recipe, host, sources)
        facts["parts"] = _parts(host, recipe)
        facts["loss_terms"] = _loss_terms(host, recipe)
        facts["compatibility_lifted"] = recipe.skip_validation
    facts["hooks"] = {
        hook: implementations_of(host, hook)
        for hook, caller in vars(host.manager.hook).items()
        if caller.spec is not None and caller.get_hookimpls() and not hook.startswith("register_")
    }
    facts["plugins"] = [{**record.as_dict(), "why": _why(record, host)} for record in host.records.values()]
    yield facts
    if recipe is not None:
        complaints += _objections(host, recipe, world)
    facts["complaints"] = _told(each for each in complaints if not each.of_machine)
    facts["lacking"] = _told(each for each in complaints if each.of_machine)
    yield facts
    if recipe is not None and estimates:
        from hooktrain.inspection.estimate import estimate

        found_late: list[Complaint] = []
        facts["estimates"] = estimate(recipe, host, world, found_late)
        late = _told(found_late)
        facts["estimates"]["complaints"] = [each for each in late if each not in facts["complaints"]]
        facts["complaints"] += facts["estimates"]["complaints"]
        yield facts


# ------------------------------------------------------------------------------------------------- complaints


def _resolved(host: PluginHost, sources: Sources, complaints: list[Complaint], world: World) -> Recipe | None:
    """The recipe; where it is wrong, without the keys that are, so that there is something to show."""
    raw = dict(sources.raw)
    source = str(sources.file or "recipe")
    while True:
        try:
            made = resolve(raw, host, source=source, name=sources.file.stem if sources.file else "recipe")
            return made.for_ranks(world)
        except RecipeError as problem:
            complaints += problem.complaints
            wrong = {each.where.partition(".")[0].partition("[")[0] for each in problem.complaints} & set(raw)
            if not wrong or "type" in wrong:
                return None
            raw = {key: value for key, value in raw.items() if key not in wrong}


def _told(complaints: Iterable[Complaint]) -> list[dict[str, str]]:
    return [{"where": each.where, "message": mask_text(each.message)} for each in dict.fromkeys(complaints)]


def _objections(host: PluginHost, recipe: Recipe, world: World) -> list[Complaint]:
    """Return the plugins' complaints about the recipe; one that fails does not keep others from being called."""
    made: list[Complaint] = [*logit_complaints(host, recipe), *output_complaints(host, recipe)]
    given: dict[str, Any] = {"recipe": recipe, "world": world}
    checks = [(hook, found) for hook in ("check_recipe", "check_files") for found in host.implementations(hook)]
    for hook, found in checks:
        if found.wrapper:
            continue
        try:
            answer: Any = found.function(*(given[name] for name in found.argnames))
            made += answer or ()
        except KeyboardInterrupt:
            raise
        except BaseException as problem:
            who = host.records[found.plugin_name]
            made.append(Complaint("", f"{who}, hook {hook}: {described(problem)}"))
    return made


# ------------------------------------------------------------------------------------------------------ parts


def _parts(host: PluginHost, recipe: Recipe) -> dict[str, list[dict[str, Any]]]:
    """Return for each part its plugin, the order of its factories and the wrappers."""
    parts: dict[str, list[dict[str, Any]]] = {}
    offers = {offer.config: offer for kinds in host.parts.values() for offer in kinds.values()}

    def visit(kind: str, value: Any) -> None:
        for config in value if isinstance(value, tuple) else () if value is None else (value,):
            offer = offers.get(type(config))
            if offer is None:
                continue
            hook = next((name for name, made in FACTORIES.items() if made == kind), "")
            wrapped = (
                [each["plugin"] for each in implementations_of(host, hook) if each["role"] == "wraps"] if hook else []
            )
            parts.setdefault(kind, []).append(
                {
                    "type": offer.name,
                    "plugin": offer.plugin.name,
                    "distribution": str(offer.plugin.distribution),
                    "wrapped_by": wrapped,
                }
            )
            for item in attrs.fields(type(config)):
                if item.metadata.get("kind"):
                    visit(item.metadata["kind"], getattr(config, item.name))

    for item in attrs.fields(Recipe):
        if item.metadata.get("kind"):
            visit(item.metadata["kind"], getattr(recipe, item.name))
    return parts


def _loss_terms(host: PluginHost, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the terms of the loss, each with the plugin that adds it; without a name where that is not declared."""
    own = member(recipe.loss, ConfigDefaults, "loss_terms")
    found: list[dict[str, Any]] = [{"name": name, "coefficient": own[name], "plugin": None} for name in own]
    for one in host.implementations("collect_loss_terms"):
        names = host.records[one.plugin_name].info.loss_terms or (None,)
        found += [{"name": name, "coefficient": None, "plugin": one.plugin_name} for name in names if not one.wrapper]
    return found


def _why(record: PluginRecord, host: PluginHost) -> str:
    """Return why a plugin is active, or is not."""
    if record.state in ("failed", "blocked", "unused"):
        return record.reason
    if record.name in host.config.load:
        return f"named by {host.switches.said(record.name) or 'plugins.load of the recipe'}"
    return "built in" if record.distribution == "hooktrain" else "installed" if record.version else "given in Python"
