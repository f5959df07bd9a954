"""Freezing of weights by the names of ``model.freeze``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hooktrain import Complaint, RecipeError

__all__ = ["freeze", "require_patterns"]


def require_patterns(instance: Any, attribute: Any, value: Sequence[str]) -> None:
    """Refuse texts that are no regular expressions; a validator of attrs."""
    for pattern in value:
        try:
            re.compile(pattern)
        except re.error as problem:
            raise ValueError(f"given '{pattern}', which is no regular expression ({problem})") from None


def freeze(model: Any, patterns: Sequence[str]) -> None:
    """Freeze the weights in whose names a pattern is found.

    Raises:
        RecipeError: a pattern is found in no name, or nothing is left to train.
    """
    if not patterns:
        return
    found = [*model.named_parameters(remove_duplicate=False)]  # tied weights have several names
    names = [name for name, _ in found]
    examples = ", ".join((names[0], names[len(names) // 2], names[-1]))
    complaints = [
        Complaint(
            f"model.freeze[{number}]",
            f"given '{pattern}', which is in no weight's name, expected a part of names such as {examples}; correct or"
            " remove it",
        )
        for number, pattern in enumerate(patterns)
        if not any(re.search(pattern, name) for name in names)
    ]
    frozen = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    for name, parameter in found:
        if frozen.search(name):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        complaints.append(Complaint("model.freeze", f"freezes all {len(names)} weights, expected some to be trained"))
    if complaints:
        raise RecipeError(complaints)
