"""Events inside the optimizer step, which only the strategy knows the moments of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain.errors import HooktrainError
from hooktrain.plugin.manager import PluginHost
from hooktrain.protocols import Strategy, StrategyDefaults, member

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["bind_update_events"]


def bind_update_events(trainer: Trainer, host: PluginHost, strategy: Strategy) -> None:
    """Have the strategy emit the events of its optimizer step, where a plugin implements one.

    Raises:
        HooktrainError: the strategy cannot, naming the plugin.
    """
    hooks = ("on_optimizer_update_start", "on_zero_grad_start")
    asked = [(hook, found.plugin_name) for hook in hooks for found in host.implementations(hook)]
    if not asked:
        return
    watch = member(strategy, StrategyDefaults, "watch_updates")
    if watch is None:
        hook, plugin = asked[0]
        raise HooktrainError(
            f"plugin '{plugin}', hook {hook}: the strategy {type(strategy).__name__} cannot call it, expected one with"
            " the method watch_updates; choose another strategy, or implement on_optimizer_step_start or"
            " on_optimizer_step_end instead"
        )
    watch(
        lambda norm: trainer.hooks.on_optimizer_update_start(trainer=trainer, grad_norm=norm),
        lambda: trainer.hooks.on_zero_grad_start(trainer=trainer),
    )
