"""Written for hooks before 1.0, where ``on_step_end`` had a parameter ``loss``; it declares the version."""

from __future__ import annotations

from hooktrain import PluginInfo, hookimpl

hooktrain_plugin = PluginInfo(api=">=0.5,<1.0")


@hookimpl
def on_step_end(trainer, loss):
    print(f"step {trainer.global_step}: {loss}")
