"""The checks of a run's plugins: as they are installed, and as a recipe uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import attrs

from hooktrain.errors import PluginError, did_you_mean
from hooktrain.hookspecs import FACTORIES, LOOP_HOOKS
from hooktrain.plugin.dependencies import drop_unmet, refuse_excluded, refuse_same_terms
from hooktrain.plugin.lockfile import require_lock
from hooktrain.plugin.ordering import put_in_order, settle_loop_hook
from hooktrain.plugin.usage import leave_out_unused
from hooktrain.plugin.validation import retired
from hooktrain.renamed import new_name

if TYPE_CHECKING:
    from hooktrain.plugin.manager import PluginHost
    from hooktrain.recipe.model import Recipe

__all__ = ["check_installed", "check_used", "problems_of"]


def check_installed(host: PluginHost) -> None:
    """Refuse misspelt hooks, names that two plugins register, and settings of ``plugins`` that fit none.

    Raises:
        PluginError: naming everybody involved and what to write in the recipe.
    """
    drop_unmet(host)  # before anything else that follows from it, such as a hook that the missing one brings
    known = [name for name, caller in vars(host.manager.hook).items() if caller.spec is not None]
    for name, caller in vars(host.manager.hook).items():
        if caller.spec is None:
            for implementation in caller.get_hookimpls():
                if not implementation.optionalhook:
                    raise PluginError(
                        f"{host.records[implementation.plugin_name]}: implements '{name}', which is no hook"
                        f"{new_name('hook', name) or did_you_mean(name, known)}; see `hooktrain hooks`"
                    )
    _refuse_unknown_kinds(host)
    for record in host.records.values():
        if record.clashes:
            raise PluginError(record.reason)
    for found, name, why in retired(host.manager):
        host.warn(f"{host.records[found.plugin_name]}, hook {name}: {why}")
    for name in host.config.loop_hooks:
        if name not in LOOP_HOOKS:
            raise PluginError(f"plugins.loop_hooks: '{name}' is no loop hook{did_you_mean(name, LOOP_HOOKS)}")
    put_in_order(host)
    host.error_policy.guard()


def _refuse_unknown_kinds(host: PluginHost) -> None:
    """Refuse parts of a kind that no recipe can choose."""
    configs = [offer.config for offers in host.parts.values() for offer in offers.values()]
    nested = {item.metadata.get("kind") for config in configs for item in attrs.fields(config)} - {None}
    known = sorted({"settings", *FACTORIES.values(), *nested})
    for kind, offers in host.parts.items():
        for offer in offers.values():
            if kind not in known:
                raise PluginError(
                    f"{offer.plugin}, hook register_configs: registers '{offer.name}' as '{kind}', which is no kind of"
                    f" part{did_you_mean(kind, known)}; there are {', '.join(known)}"
                )
    for name, (trainer_type, record) in host.trainer_types.items():
        for kind in trainer_type.parts:
            if kind not in known:
                raise PluginError(
                    f"{record}, hook register_trainer_types: '{name}' has parts '{kind}', which is no kind of part"
                    f"{did_you_mean(kind, known)}; there are {', '.join(known)}"
                )


def check_used(host: PluginHost, recipe: Recipe | None) -> list[PluginError]:
    """Leave out what a recipe does not use, then find clashes among the other plugins.

    Args:
        host: the plugins, as :func:`check_installed` accepts them.
        recipe: None takes all plugins as used.

    Returns:
        The errors: plugins that do not work beside each other, loop hooks that several implement, a lock that differs.
    """
    used: list[Callable[[], None]] = []
    if recipe is not None:
        used = [partial(leave_out_unused, host, recipe), partial(host.remove_unused_hooks, recipe)]
    return problems_of(used) or problems_of(
        [
            partial(refuse_excluded, host),
            partial(refuse_same_terms, host),
            *(partial(settle_loop_hook, host, name) for name in LOOP_HOOKS),
            partial(require_lock, host),
        ]
    )


def problems_of(checks: Iterable[Callable[[], None]]) -> list[PluginError]:
    """Return the errors that checks raise, each once."""
    found = {}
    for check in checks:
        try:
            check()
        except PluginError as problem:
            found[str(problem)] = problem
    return list(found.values())
