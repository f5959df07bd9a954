"""Metrics of evaluations for hooktrain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain import lazy_exports

if TYPE_CHECKING:
    from hooktrain_evals.plugin import EvalsPlugin as EvalsPlugin
    from hooktrain_evals.texts import exact_match as exact_match
    from hooktrain_evals.texts import rouge_l as rouge_l
    from hooktrain_evals.texts import token_f1 as token_f1
    from hooktrain_evals.tool_calls import tool_calls_in as tool_calls_in

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
