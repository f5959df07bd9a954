"""Validation of DeepSpeed's configuration before the data are prepared, with errors in the recipe's terms."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from hooktrain import Complaint, RecipeError, did_you_mean
from hooktrain_deepspeed.compat import ConfigRefusedError, config_models, parse_config, quietly

__all__ = ["require_valid"]

_WHERE = "strategy.config"


def require_valid(settings: Mapping[str, Any]) -> list[str]:
    """Have DeepSpeed read its configuration, and refuse what it refuses.

    Args:
        settings: the complete configuration. DeepSpeed is imported and its process group exists.

    Returns:
        Warnings about keys that nothing reads.

    Raises:
        RecipeError: with what DeepSpeed refuses, and with misspelt keys.
    """
    from pydantic import ValidationError

    recorded = _ReadKeys(copy.deepcopy(dict(settings)))
    try:
        with quietly():
            parse_config(copy.deepcopy(dict(settings)), recorded)
    except ValidationError as problem:
        raise RecipeError(list(_complaints(problem, settings))) from None
    except ConfigRefusedError as problem:
        raise RecipeError([Complaint(_WHERE, f"DeepSpeed refuses it: {problem}")]) from problem
    known = recorded.names | _constants()
    unknown = {name: did_you_mean(name, known) for name in settings if name not in known}
    wrong = [Complaint(f"{_WHERE}.{name}", f"unknown key{hint}") for name, hint in unknown.items() if hint]
    if wrong:
        raise RecipeError(wrong)
    return [f"{_WHERE}.{name}: DeepSpeed has no such key, so it has no effect" for name in unknown]


class _ReadKeys(dict[str, Any]):
    """Records which keys are read."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.names: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.names.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.names.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.names.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:  # read as `name in settings.keys()`
        return self


def _constants() -> set[str]:
    """Return the texts among DeepSpeed's constants, among which are the keys that its engine and tools read later."""
    modules = [module for name, module in tuple(sys.modules.items()) if name.startswith("deepspeed.")]
    return {
        value
        for module in modules
        if module.__name__.endswith(("constants", "config"))
        for value in vars(module).values()
        if isinstance(value, str) and value.isidentifier()
    }


def _complaints(problem: Any, settings: Mapping[str, Any]) -> Iterator[Complaint]:
    """Yield pydantic's errors, a complaint for each key."""
    models = config_models()
    for found in problem.errors():
        first, *rest = found["loc"] or ("",)
        section = next((name for name, part in settings.items() if isinstance(part, Mapping) and first in part), "")
        where = ".".join(str(word) for word in (_WHERE, section, first, *rest) if word != "")
        if found["type"] == "extra_forbidden":
            model = models.get(problem.title) if not rest else None
            yield Complaint(where, f"unknown key{did_you_mean(str(first), model.model_fields) if model else ''}")
        else:
            text = str(found["msg"]).removeprefix("Value error, ")
            yield Complaint(where, f"given {found['input']!r}, but DeepSpeed says: {text[:1].lower()}{text[1:]}")
