"""Meta models, for ``hooktrain plan``."""

from __future__ import annotations

from typing import Any

import torch

from hooktrain import ModelError
from hooktrain_hf.blocks import set_up_blocks
from hooktrain_hf.compat import has_vision
from hooktrain_hf.freeze import freeze
from hooktrain_hf.model import HFModelConfig, load_config, location_of, random_model
from hooktrain_hf.quantization import quantization_of
from hooktrain_hf.quantized_layers import plan_quantization
from hooktrain_hf.verbosity import quiet_transformers
from hooktrain_hf.vision import freeze_vision

__all__ = ["make_meta_model"]


def make_meta_model(config: HFModelConfig) -> Any:
    """Make a recipe's model from its config alone, on the device in whose context this is called.

    Raises:
        ModelError: the config is not on this machine, or cannot be used.
    """
    location = location_of(config)
    with quiet_transformers():
        try:
            with torch.device("cpu"):  # reading a GGUF file's header computes with tensors
                hf_config = load_config(config, location, offline=True)
        except ModelError as problem:
            if location.local:
                raise
            raise ModelError(
                f"'{config.name_or_path}' is not downloaded, and a plan does not use the network"
            ) from problem
        model = random_model(config, hf_config)
    if (quantization := quantization_of(config)) is not None:
        plan_quantization(model, quantization)
    if has_vision(hf_config) and not config.train_vision:
        freeze_vision(model)
    freeze(model, config.freeze)
    set_up_blocks(model, config, planned=True)
    return model
