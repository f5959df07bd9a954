"""Settings of a recipe's section ``peft``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs

from hooktrain import at_least, between, field

__all__ = ["ADAPTER_FILES", "METHOD_KEYS", "PLAIN_INITS", "PeftSettings", "stored_init"]

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""The files of a saved adapter."""
PLAIN_INITS = ("pissa", "olora", "orthogonal", "loftq")
"""Initializations that read the plain weights of a base, and most of which change them."""


def stored_init(folder: Path) -> Any:
    """Return the ``init_lora_weights`` of a saved adapter; None where there is none to be read."""
    try:
        found = json.loads((folder.expanduser() / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found.get("init_lora_weights") if isinstance(found, dict) else None


@attrs.frozen(kw_only=True)
class PeftSettings:
    """The adapter to train on a frozen model; without ``type`` and ``adapter`` the model itself is trained."""

    shorthand: ClassVar[str] = "type"
    type: str | None = field(default=None, aliases=("peft_type",))
    """The method: ``lora``, or any other of PEFT by its name there, such as ``ia3``, ``oft``, ``vera``."""
    r: int | None = field(default=None, validator=at_least(1), aliases=("rank", "lora_r"))
    """Rank of the adapter; 16 for ``lora``, PEFT's own default for other methods."""
    alpha: float | None = field(default=None, validator=at_least(0), aliases=("lora_alpha",))
    """Scale of the adapter, divided by the rank; twice ``r`` for ``lora``."""
    dropout: float | None = field(default=None, validator=between(0, 1), aliases=("lora_dropout",))
    """Share of the adapter's inputs that are dropped in training; 0 for ``lora``."""
    target_modules: str | tuple[str, ...] | None = field(default=None, aliases=("lora_target_modules",))
    """Ends of the names of the modules that are adapted, a regular expression of complete names, or ``all-linear``, all
    linear ones but the head; that is the default of ``lora``."""
    exclude_modules: str | tuple[str, ...] | None = field(default=None)
    """Modules to exclude from these, written in the same way."""
    modules_to_save: tuple[str, ...] | None = field(default=None, aliases=("lora_modules_to_save",))
    """Modules to train completely and save with the adapter, such as ``[embed_tokens, lm_head]``."""
    use_rslora: bool | None = field(default=None)
    """LoRA: divide ``alpha`` by the square root of the rank (Kalajdzievski, 2023)."""
    use_dora: bool | None = field(default=None)
    """LoRA: train magnitude and direction separately (Liu et al., 2024)."""
    init_lora_weights: bool | str | None = field(default=None)
    """LoRA: initialization of the adapter: true, ``gaussian``, ``orthogonal``, ``pissa``, ``olora``, ``mica``; with
    ``model.quantization`` also ``loftq``. These are computed of the plain weights, which are quantized after that."""
    config: Mapping[str, Any] = field(factory=dict)
    """Any other key of the method's config class in PEFT."""
    adapter: str | None = field(default=None)
    """A folder with an adapter to continue from, in place of ``type`` and the other keys."""
    keep: Mapping[str, str] = field(factory=dict, affects_training=False)
    """Further adapters of the same base by their names, as folders: each export of the adapter has them in subfolders
    of these names, where PEFT's ``load_adapter`` finds them."""
    merge_on_export: bool = field(default=False, affects_training=False)
    """Whether the checkpoint engine ``huggingface`` writes the complete model with the adapter merged in, instead of
    the adapter alone."""

    @property
    def active(self) -> bool:
        """Whether there is an adapter to train."""
        return self.type is not None or self.adapter is not None

    @property
    def allocates_ranks(self) -> bool:
        """Whether the method moves ranks between layers while it trains, as AdaLoRA does."""
        return (self.type or "").lower().replace("_", "").replace("-", "").removesuffix("config") == "adalora"

    @property
    def needs_plain_base(self) -> bool:
        """Whether the adapter is made of the base's plain weights, which are quantized after that."""
        init = self.config.get("init_lora_weights", self.init_lora_weights)
        return (init if self.adapter is None else stored_init(Path(self.adapter))) in PLAIN_INITS

    @property
    def freezes_model(self) -> bool:
        """Whether the model itself is frozen."""
        return self.active


METHOD_KEYS = tuple(
    item.name
    for item in attrs.fields(PeftSettings)
    if item.name not in ("type", "config", "adapter", "keep", "merge_on_export")
)
"""The keys of the method, which need a ``type``."""
