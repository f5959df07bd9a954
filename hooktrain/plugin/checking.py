"""The final check of a run's plugins, when all of them are registered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain.errors import PluginError, did_you_mean
from hooktrain.hookspecs import LOOP_HOOKS
from hooktrain.plugin.dependencies import drop_unmet, refuse_excluded
from hooktrain.plugin.lockfile import require_lock
from hooktrain.plugin.ordering import put_in_order, settle_loop_hook
from hooktrain.plugin.validation import retired
from hooktrain.renamed import new_name

if TYPE_CHECKING:
    from hooktrain.plugin.manager import PluginHost

__all__ = ["check_plugins"]


def check_plugins(host: PluginHost) -> None:
    """Refuse misspelt hooks, loop hooks that two plugins implement, and names that two plugins register.

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
    for record in host.records.values():
        if record.clashes:
            raise PluginError(record.reason)
    refuse_excluded(host)
    for found, name, why in retired(host.manager):
        host.warn(f"{host.records[found.plugin_name]}, hook {name}: {why}")
    for name in host.config.loop_hooks:
        if name not in LOOP_HOOKS:
            raise PluginError(f"plugins.loop_hooks: '{name}' is no loop hook{did_you_mean(name, LOOP_HOOKS)}")
    put_in_order(host)
    for name in LOOP_HOOKS:
        settle_loop_hook(host, name)
    host.error_policy.guard()
    if host.config.lock is not None:
        require_lock(host, host.config.lock.expanduser())
