"""AdamW of torchao with rates and checkpoints as plain values."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from hooktrain import import_quietly
from hooktrain_torch.compat import inner_tensors, new_state

if TYPE_CHECKING:
    from torch.nn import Parameter

__all__ = ["make_adamw"]

_STATES = ("exp_avg", "exp_avg_sq")


def make_adamw(bits: int, groups: list[dict[str, Any]], **settings: Any) -> Optimizer:
    """Make torchao's AdamW with states of 8 or 4 bits.

    Args:
        bits: 8 or 4.
        groups: the parameter groups.
        settings: ``lr``, ``betas`` and ``eps``.
    """
    made: Optimizer = _kind(bits)(groups, **settings)
    return made


@functools.cache
def _kind(bits: int) -> Any:
    kinds: Any = import_quietly("torchao.optim")
    base = kinds.AdamW8bit if bits == 8 else kinds.AdamW4bit
    return type(base.__name__, (_PlainValues, base), {})


class _PlainValues(Optimizer):
    """Lets schedules set floats as rates, and checkpoints hold plain tensors; torchao has tensors of its own for both.

    It stands before a class of torchao's in the order of inheritance. A quantized state is saved as its codes and its
    scales, so that a resume continues with exactly the same numbers.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        rate = float(param_group.get("lr", self.defaults["lr"]))
        super().add_param_group(param_group)
        self.param_groups[-1]["lr"] = rate

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the weights: on a GPU in kernels compiled for each shape, which on a processor takes minutes."""
        rates = [group["lr"] for group in self.param_groups]
        on_gpu = any(parameter.is_cuda for group in self.param_groups for parameter in group["params"])
        try:
            for group in self.param_groups:
                group["lr"] = torch.tensor(group["lr"])
            with nullcontext() if on_gpu else torch.compiler.set_stance("force_eager"):
                super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with codes and scales of a quantized one as two plain tensors."""
        made = super().state_dict()
        return {**made, "state": {number: _plain(values) for number, values in made["state"].items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, or states of AdamW in full, which are quantized.

        Raises:
            ValueError: when codes or scales have other shapes than the parameter's.
        """
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        state = {number: self._quantized(parameters[number], v) for number, v in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": state})

    @torch.no_grad()
    def _quantized(self, parameter: Parameter, values: Mapping[str, Any]) -> dict[str, Any]:
        made = {key: value for key, value in values.items() if "." not in key}
        for key in _STATES:
            state = new_state(self, parameter, signed=key == "exp_avg")
            parts = inner_tensors(state)
            if key in values:
                state.copy_(values[key])
            elif not all(f"{key}.{part}" in values for part in parts) or not parts:
                raise ValueError(f"the optimizer's {key} is missing")
            for name, part in parts.items():
                stored = values.get(f"{key}.{name}", part)
                if stored.shape != part.shape or stored.dtype != part.dtype:
                    raise ValueError(
                        f"the optimizer's {key}.{name} is {stored.dtype} of shape {tuple(stored.shape)}, expected"
                        f" {part.dtype} of {tuple(part.shape)}"
                    )
                part.copy_(stored)
            made[key] = state
        return made


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in values.items():
        parts = inner_tensors(value)
        made.update({f"{key}.{name}": part for name, part in parts.items()} if parts else {key: value})
    return made
