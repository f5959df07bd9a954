"""Whether DeepSpeed will take its configuration, found before the data are prepared and said as the recipe says it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from hooktrain import Complaint, RecipeError, did_you_mean
from hooktrain_deepspeed.library import quietly

__all__ = ["require_valid"]

_WHERE = "strategy.config"


def require_valid(settings: Mapping[str, Any]) -> list[str]:
    """Have DeepSpeed read its configuration.

    Args:
        settings: all of it. DeepSpeed has been imported, and its process group exists.

    Returns:
        What to warn of: keys that nothing reads.

    Raises:
        RecipeError: with what DeepSpeed does not take, and with keys that are misspelt.
    """
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
    from pydantic import ValidationError

    asked = _Asked(copy.deepcopy(dict(settings)))
    try:
        with quietly():
            DeepSpeedConfig.__new__(DeepSpeedConfig)._initialize_params(asked)
            DeepSpeedConfig(copy.deepcopy(dict(settings)))
    except ValidationError as problem:
        raise RecipeError(list(_complaints(problem, settings))) from None
    except (DeepSpeedConfigError, AssertionError, ValueError, TypeError, KeyError, AttributeError) as problem:
        kind = "" if isinstance(problem, DeepSpeedConfigError) else f"{type(problem).__name__}: "
        text = " ".join(str(problem).split())
        raise RecipeError([Complaint(_WHERE, f"DeepSpeed does not take it: {kind}{text}")]) from problem
    known = asked.names | _constants()
    unknown = {name: did_you_mean(name, known) for name in settings if name not in known}
    wrong = [Complaint(f"{_WHERE}.{name}", f"unknown key{meant}") for name, meant in unknown.items() if meant]
    if wrong:
        raise RecipeError(wrong)
    return [f"{_WHERE}.{name}: DeepSpeed has no such key, so it has no effect" for name in unknown]


class _Asked(dict[str, Any]):
    """Remembers for which keys it was asked."""

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

    def keys(self) -> Any:  # asked for as `name in settings.keys()`
        return self


def _constants() -> set[str]:
    """The texts among DeepSpeed's constants: what is read later, by its engine and its tools, is among them."""
    modules = [module for name, module in tuple(sys.modules.items()) if name.startswith("deepspeed.")]
    return {
        value
        for module in modules
        if module.__name__.endswith(("constants", "config"))
        for value in vars(module).values()
        if isinstance(value, str) and value.isidentifier()
    }


def _complaints(problem: Any, settings: Mapping[str, Any]) -> Iterator[Complaint]:
    """What pydantic says, a complaint for each key."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    models = {model.__name__: model for model in DeepSpeedConfigModel.__subclasses__()}
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
