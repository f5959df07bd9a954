"""Implements a hook of another plugin."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from hooktrain import PluginInfo, Trainer, hookimpl

hooktrain_plugin = PluginInfo(api=">=2.0,<3", requires=["beacon>=2"])


@hookimpl
def describe_run(trainer: Trainer) -> Mapping[str, str]:
    return {"python": platform.python_version(), "device": str(trainer.device)}
