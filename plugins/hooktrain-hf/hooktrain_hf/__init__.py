"""Hugging Face for hooktrain: tokenizers, models, data sources, export and sample answers.

Other packages import from here only. Names are loaded when they are first used: importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain import lazy_exports

if TYPE_CHECKING:
    from hooktrain_hf.atomic_folder import replace_folder as replace_folder
    from hooktrain_hf.atomic_folder import temporary_folder as temporary_folder
    from hooktrain_hf.attention import install_document_attention as install_document_attention
    from hooktrain_hf.attention import shares_prefixes as shares_prefixes
    from hooktrain_hf.blocks import tile_again as tile_again
    from hooktrain_hf.embeddings import new_token_ids as new_token_ids
    from hooktrain_hf.export import write_model as write_model
    from hooktrain_hf.file_digests import remembered_digest as remembered_digest
    from hooktrain_hf.frozen_model import FrozenModelConfig as FrozenModelConfig
    from hooktrain_hf.frozen_model import ModelsConfig as ModelsConfig
    from hooktrain_hf.frozen_model import describe_frozen_model as describe_frozen_model
    from hooktrain_hf.frozen_model import make_frozen_model as make_frozen_model
    from hooktrain_hf.frozen_model import models_of as models_of
    from hooktrain_hf.frozen_model import named_model_config as named_model_config
    from hooktrain_hf.frozen_model import require_same_tokens as require_same_tokens
    from hooktrain_hf.frozen_model import weights_fingerprint as weights_fingerprint
    from hooktrain_hf.frozen_model import without_adapter as without_adapter
    from hooktrain_hf.location import Location as Location
    from hooktrain_hf.location import first_line as first_line
    from hooktrain_hf.location import resolve_location as resolve_location
    from hooktrain_hf.model import HFModelConfig as HFModelConfig
    from hooktrain_hf.model import build_model as build_model
    from hooktrain_hf.model import quantize_base as quantize_base
    from hooktrain_hf.model import torch_dtype as torch_dtype
    from hooktrain_hf.quantized_layers import is_quantized as is_quantized
    from hooktrain_hf.quantized_layers import make_dense as make_dense
    from hooktrain_hf.quantized_layers import quantized_values as quantized_values
    from hooktrain_hf.saved_model import section_of as section_of
    from hooktrain_hf.saved_model import stored_dtype as stored_dtype
    from hooktrain_hf.saved_model import tokenizer_of as tokenizer_of
    from hooktrain_hf.source import HFSourceConfig as HFSourceConfig
    from hooktrain_hf.tokenizer import HFTokenizerConfig as HFTokenizerConfig
    from hooktrain_hf.verbosity import quiet_transformers as quiet_transformers
    from hooktrain_hf.vision import parts_without_text as parts_without_text

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
