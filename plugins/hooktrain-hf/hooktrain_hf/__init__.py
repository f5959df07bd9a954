"""Hugging Face for hooktrain: tokenizers, models, data sources, export and sample answers.

Other packages import from here only. Names are loaded when they are first used: importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hooktrain_hf.atomic_folder import replace_folder, temporary_folder
    from hooktrain_hf.attention import install_document_attention
    from hooktrain_hf.embeddings import new_token_ids
    from hooktrain_hf.export import write_model
    from hooktrain_hf.location import Location, first_line, resolve_location
    from hooktrain_hf.model import HFModelConfig, build_model, torch_dtype
    from hooktrain_hf.source import HFSourceConfig
    from hooktrain_hf.verbosity import quiet_transformers
    from hooktrain_hf.vision import parts_without_text

_HOMES = {
    "atomic_folder": "replace_folder temporary_folder",
    "attention": "install_document_attention",
    "embeddings": "new_token_ids",
    "export": "write_model",
    "location": "Location first_line resolve_location",
    "model": "HFModelConfig build_model torch_dtype",
    "source": "HFSourceConfig",
    "verbosity": "quiet_transformers",
    "vision": "parts_without_text",
}
_HOME = {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "HFModelConfig",
    "HFSourceConfig",
    "Location",
    "build_model",
    "first_line",
    "install_document_attention",
    "new_token_ids",
    "parts_without_text",
    "quiet_transformers",
    "replace_folder",
    "resolve_location",
    "temporary_folder",
    "torch_dtype",
    "write_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    globals()[name] = value = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
