"""Access to what PEFT, transformers, torch and DeepSpeed have without a promise that it stays.

Seen to work with PEFT 0.21, transformers 5.23, torch 2.13 and DeepSpeed 0.19. ``tests/plugins/peft/test_compat.py``
fails where an upgrade breaks a function of this module.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.nn import Module

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = [
    "RANK_ALLOCATION",
    "adapted_layers",
    "copyable",
    "has_tied_head",
    "kept_settings",
    "is_token_adapter",
    "method_name",
    "method_settings",
    "remove_forward_hooks",
    "restore_parameters",
    "ties_embeddings",
    "trained_copies",
    "without_unused_imports",
]


# ------------------------------------------------------------------------------------------------- configs of methods


RANK_ALLOCATION = "ADALORA"
"""The name of the method that moves ranks between layers while it trains."""


def method_name(config: PeftConfig) -> str:
    """Return the name of a config's method in PEFT, such as ``LORA``."""
    return str(getattr(config.peft_type, "value", config.peft_type))


def method_settings(config: PeftConfig) -> Mapping[str, Any]:
    """Return the settings of a method by name; methods have different ones."""
    return vars(config)


@contextmanager
def kept_settings(model: Any) -> Iterator[None]:
    """Put the settings of a model's method back after the block: PEFT renames AdaLoRA's ranks as it writes them."""
    settings = vars(model.active_peft_config)
    before = dict(settings)
    try:
        yield
    finally:
        settings.update(before)


@contextmanager
def without_unused_imports() -> Iterator[None]:
    """Keep PEFT from importing bitsandbytes and torchao inside the block, for models without a weight of theirs.

    It imports both, wherever they are installed, to ask whether a layer is one of theirs, which takes seconds.
    """
    checks = {"is_bnb_available": "bitsandbytes", "is_bnb_4bit_available": "bitsandbytes"}
    checks["is_torchao_available"] = "torchao"
    checks = {name: package for name, package in checks.items() if package not in sys.modules}
    held: list[tuple[Any, str, Any]] = []
    for module in [module for name, module in tuple(sys.modules.items()) if name.split(".")[0] == "peft"]:
        held += [(module, name, vars(module)[name]) for name in checks if name in vars(module)]
    try:
        for module, name, _ in held:
            setattr(module, name, lambda: False)
        yield
    finally:
        for module, name, own in held:
            setattr(module, name, own)


# --------------------------------------------------------------------------------------------- layers with adapters


def adapted_layers(model: Module) -> list[tuple[str, Any]]:
    """Return the layers that combine a part of the base with its adapter, each with its name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def is_token_adapter(layer: Module) -> bool:
    """Return whether an adapted layer trains the embeddings of single tokens."""
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    return isinstance(layer, TrainableTokensLayer)


def trained_copies(model: Module) -> list[Module]:
    """Return the copies of complete modules that are trained in the place of the modules, each once."""
    from peft.tuners.ln_tuning.layer import LNTuningLayer
    from peft.utils.other import ModulesToSaveWrapper

    found: dict[int, Module] = {}
    for module in model.modules():
        copies: Any = ()
        if isinstance(module, ModulesToSaveWrapper):
            copies = module.modules_to_save.values()
        elif isinstance(module, LNTuningLayer):
            copies = module.ln_tuning_layers.values()
        found.update((id(copy), copy) for copy in copies if next(copy.parameters(), None) is not None)
    return list(found.values())


# ------------------------------------------------------------------------------------------------------- models


def has_tied_head(model: Any) -> bool:
    """Return whether head and embedding of a transformers model are one weight."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and getattr(head, "weight", None) is getattr(embedding, "weight", None)


def ties_embeddings(config: Any) -> bool:
    """Return whether a transformers config says that head and embedding are one weight."""
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", False))


# --------------------------------------------------------------------------------------------- modules and their hooks


def remove_forward_hooks(module: Module, unwanted: Callable[[Any], bool]) -> None:
    """Remove the forward hooks and pre-hooks for which ``unwanted`` is true, from a module and those inside it."""
    for inner in module.modules():
        for hooks in (inner._forward_pre_hooks, inner._forward_hooks):
            for key in [key for key, hook in hooks.items() if unwanted(hook)]:
                del hooks[key]


def restore_parameters(model: Module) -> None:
    """Give copied modules an ordinary dictionary of parameters: ZeRO puts one there that gathers weights from ranks."""
    for module in model.modules():
        module._parameters = dict(dict.items(module._parameters))


@contextmanager
def copyable(model: Module, memo: dict[int, Any]) -> Iterator[None]:
    """Make a model copyable inside the block, its copies without what ZeRO and FSDP2 use to gather weights.

    FSDP2 refuses copies, through the class that it puts in the place of a module's own; ZeRO and FSDP2 add hooks.

    Args:
        model: the model; it is as before after the block.
        memo: that of :func:`copy.deepcopy`, to which the dictionaries of hooks for the copy are added.
    """
    from torch.distributed.fsdp import FSDPModule

    sharded = {module: type(module) for module in model.modules() if isinstance(module, FSDPModule)}
    for module in model.modules():
        for name, held in vars(module).items():
            if isinstance(held, dict) and (name.endswith("_hooks") or name.startswith("__composable_api")):
                kept = [(key, value) for key, value in held.items() if not _gathers_weights(value)]
                if len(kept) < len(held):
                    memo[id(held)] = type(held)(kept)
    try:
        for module, kind in sharded.items():
            module.__class__ = kind.__mro__[2]
        yield
    finally:
        for module, kind in sharded.items():
            module.__class__ = kind


def _gathers_weights(held: Any) -> bool:
    """Return whether a hook, or a state kept with hooks, belongs to DeepSpeed or torch.distributed."""
    function = inspect.unwrap(held.func if isinstance(held, functools.partial) else held)
    return (getattr(function, "__module__", None) or "").startswith(("deepspeed.", "torch.distributed."))
