"""States as a checkpoint can hold them: values that come back as they were when they are read without unpickling."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

__all__ = ["NotPlainError", "plain", "plain_tensor", "unreadable_in"]

_PLAIN = {type(None), bool, int, float, complex, str, torch.Size, torch.dtype, torch.device}
_LONGEST = 2039
"""Bits of the largest integer that ``torch.load`` reads without unpickling."""
_DEEPEST = 100
"""Levels of lists and mappings inside each other; more than a few hundred exhaust the stack of whoever reads them."""
_NUMPY = {"b": bool, "i": int, "u": int, "f": float, "c": complex, "U": str}
"""What numpy's scalars of each kind are in Python."""


class NotPlainError(Exception):
    """A state holds a value that a checkpoint cannot hold."""


def plain(value: Any, where: str, *, tensors: bool = True) -> Any:
    """Return a state with containers of its own and nothing that ``torch.load`` with ``weights_only=True`` refuses.

    Scalars of numpy become Python's, which are equal. A tensor that shows a part of a larger one is copied, so that the
    rest of it is not saved with it. Everything else stays as it is, and what occurs twice still is one object.

    Args:
        value: the state.
        where: what it is, for errors, such as ``plugins``.
        tensors: whether it may hold tensors.

    Raises:
        NotPlainError: naming the path to the first value that cannot be saved.
    """
    return _Walk(tensors).visit(value, where, 0)


class _Walk:
    """One state: what has been visited, by ``id``, and what is being visited."""

    def __init__(self, tensors: bool) -> None:
        self._tensors = tensors
        self._made: dict[int, Any] = {}
        self._open: set[int] = set()

    def visit(self, value: Any, where: str, depth: int) -> Any:
        kind = type(value)
        if kind is int and value.bit_length() > _LONGEST:
            raise NotPlainError(
                f"{where} is an integer of {value.bit_length():,} bits, expected at most {_LONGEST:,}; save it as text,"
                " as in hex(value)"
            )
        if kind in _PLAIN:
            return value
        if id(value) in self._open:
            raise NotPlainError(f"{where} contains itself, expected a tree of values; save what it refers to by name")
        if id(value) not in self._made:
            if depth > _DEEPEST:
                raise NotPlainError(f"{where} is nested more than {_DEEPEST} levels deep; save it as one flat list")
            self._open.add(id(value))
            self._made[id(value)] = self._converted(value, where, depth + 1), value  # keeps the id taken
            self._open.discard(id(value))
        return self._made[id(value)][0]

    def _converted(self, value: Any, where: str, depth: int) -> Any:
        kind = type(value)
        if isinstance(value, Tensor) and self._tensors:
            return self._tensor(value, where, depth)
        made: Any
        if kind in (dict, OrderedDict):
            made = kind()
            for key, item in value.items():
                own = plain(key, f"a key of {where}", tensors=False)
                made[own] = self.visit(item, f"{where}.{key}".removeprefix("."), depth)
            if kind is OrderedDict:  # a module's state_dict has versions as an attribute
                vars(made).update(self.visit(vars(value), f"{where}.__dict__", depth))
            return made
        if kind in (list, tuple):
            return kind([self.visit(item, f"{where}[{index}]", depth) for index, item in enumerate(value)])
        if kind.__module__ == "numpy" and isinstance(value, _numpy_scalar()):
            exact = _NUMPY.get(value.dtype.kind, type(None))
            made = value.item()
            if type(made) is exact and type(value)(made).tobytes() == value.tobytes():
                return made
        raise NotPlainError(
            f"{where} is a {kind.__module__}.{kind.__qualname__}, expected numbers, text, lists, mappings"
            f"{' and tensors' if self._tensors else ''}; convert it in collect_state, or where else it comes from"
        )

    def _tensor(self, value: Tensor, where: str, depth: int) -> Tensor:
        kind = type(value)
        if kind not in (Tensor, Parameter):
            raise NotPlainError(
                f"{where} is a {kind.__module__}.{kind.__qualname__}, expected a plain tensor; convert it in"
                " collect_state, as in value.as_subclass(torch.Tensor)"
            )
        attributes, is_part = vars(value), _shows_a_part(value)
        if value.is_leaf and not attributes and not is_part:
            return value
        made = value.detach().clone() if is_part else value.detach()
        made = Parameter(made, value.requires_grad) if kind is Parameter else made.requires_grad_(value.requires_grad)
        vars(made).update(self.visit(attributes, f"{where}.__dict__", depth))
        return made


def plain_tensor(name: str, value: Tensor) -> Tensor:
    """Return a weight, or a tensor of an optimizer, as a plain tensor over the same memory.

    A subclass that only adds methods or attributes has the same numbers; the model that is resumed has its own class.

    Raises:
        NotPlainError: when its class wraps other tensors, so that it has no numbers of its own.
    """
    value = value.detach()
    if type(value) is Tensor:
        return value
    if type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        kind = type(value)
        raise NotPlainError(
            f"{name} is a {kind.__module__}.{kind.__qualname__}, which wraps other tensors, expected a plain tensor;"
            " choose an optimizer or a quantization whose state is made of plain tensors"
        )
    return value.as_subclass(Tensor)


def unreadable_in(parts: Mapping[str, Any]) -> str:
    """Return which plugin and key, or which other part, cannot be read back once it is saved; empty where each can."""
    for name, state in parts.items():
        entries = state.items() if name == "plugins" else [("", state)] if isinstance(state, Mapping) else []
        for plugin, kept in entries:
            for key, value in kept.items():
                try:
                    stream = io.BytesIO()
                    torch.save(value, stream)
                    stream.seek(0)
                    torch.load(stream, map_location="cpu", weights_only=True)
                except Exception:
                    return ".".join(filter(None, (name, plugin, str(key))))
    return ""


def _shows_a_part(value: Tensor) -> bool:
    """Whether the memory that a tensor lies in holds more than its own elements."""
    if value.layout is not torch.strided or value.is_nested or value.is_quantized or value.is_meta:
        return False
    return value.untyped_storage().nbytes() > value.numel() * value.element_size()


def _numpy_scalar() -> Any:
    import numpy

    return numpy.generic
