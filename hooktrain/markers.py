"""The two decorators of the hook system; nothing else, so that a plugin can import them at no cost."""

import pluggy

hookspec = pluggy.HookspecMarker("hooktrain")
"""Marks the declaration of a hook that a plugin brings in ``register_hookspecs``."""

hookimpl = pluggy.HookimplMarker("hooktrain")
"""Marks an implementation of a hook: ``@hookimpl``, ``@hookimpl(wrapper=True)``, ``tryfirst`` and ``trylast``."""
