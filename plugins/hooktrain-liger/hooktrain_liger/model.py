"""The model ``liger``: a model of ``huggingface`` with Liger's kernels."""

from __future__ import annotations

import copy
import inspect
import logging
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from hooktrain_hf import build_model, tile_again

from hooktrain import ModelError, World
from hooktrain_liger.compat import apply_function, interpreting, logit_softcap, quiet_backends, supported_types
from hooktrain_liger.config import LAYER_KERNELS, LigerModelConfig
from hooktrain_liger.kernels import apply_kernels
from hooktrain_liger.triton_device import device_for, failure_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from hooktrain import Recipe

__all__ = ["build_liger_model"]

logger = logging.getLogger(__name__)


def build_liger_model(
    config: LigerModelConfig, tokenizer: Any, world: World, device: str, recipe: Recipe | None = None
) -> tuple[PreTrainedModel, list[str]]:
    """Load a model and apply Liger's kernels; errors about them come before weights are read.

    Args:
        config: the recipe's ``model``.
        tokenizer: None, or the tokenizer whose ids the model must be able to embed.
        world: this process.
        device: of the recipe's strategy, or ``auto``.
        recipe: that of the run, which says whether quantized weights are frozen.

    Returns:
        The model, and the names of its layer kernels.

    Raises:
        ModelError: when Triton cannot run here, Liger lacks kernels for the model or one that the recipe sets, or the
            model cannot be loaded.
    """
    place = device_for(device)
    quiet_backends()
    chosen: dict[str, bool] = {}
    model_type = ""

    def accept(hf_config: PreTrainedConfig) -> None:
        nonlocal model_type
        model_type = hf_config.model_type
        _check_type(config, model_type)
        chosen.update(_choose(config, model_type, place, world))
        _check_loss(config, hf_config, place)
        _try_on_meta(config, hf_config, chosen)

    model = build_model(config, tokenizer, world, accept, recipe)
    _apply(config, model, model_type, chosen)
    tile_again(model, config)
    return model, [name for name, on in chosen.items() if on]


def _check_type(config: LigerModelConfig, model_type: str) -> None:
    types = supported_types()
    if model_type not in types:
        raise ModelError(
            f"model.name_or_path: given '{config.name_or_path}', a model of type '{model_type}', for which this version"
            f" of Liger has no kernels; expected one of {', '.join(types)}; write type: huggingface, or give another"
            " model"
        )


def _choose(config: LigerModelConfig, model_type: str, place: torch.device, world: World) -> dict[str, bool]:
    """Choose the layer kernels: as the recipe sets them, else those that Liger has on for the type and run here."""
    parameters = inspect.signature(apply_function(model_type)).parameters
    available = [name for name in LAYER_KERNELS if name in parameters]
    chosen, skipped = {}, []
    for name in LAYER_KERNELS:
        wanted: bool | None = getattr(config, name)
        if wanted and name not in parameters:
            raise ModelError(
                f"model.{name}: given true, but Liger has no such kernel for models of type '{model_type}'; expected"
                f" one of {', '.join(available)}; remove the key"
            )
        if name not in parameters or not (parameters[name].default if wanted is None else wanted):
            continue
        failure = failure_of(name, place)
        if failure is not None and wanted is None and interpreting():
            skipped.append(name)
            continue
        _require(failure, name)
        chosen[name] = True
    if skipped and world.is_main:
        logger.warning(
            "model: %s not applied, as Triton's interpreter (TRITON_INTERPRET) cannot run %s",
            ", ".join(skipped),
            "it" if len(skipped) == 1 else "them",
        )
    return chosen


def _check_loss(config: LigerModelConfig, hf_config: PreTrainedConfig, place: torch.device) -> None:
    softcap = logit_softcap(hf_config)
    for name in ("fused_linear_cross_entropy", "cross_entropy"):
        if getattr(config, name):
            _require(failure_of(name, place, softcap), name, " with this model's soft-capping" if softcap else "")


def _require(failure: Exception | None, name: str, how: str = "") -> None:
    if failure is None:
        return
    where = "in Triton's interpreter (TRITON_INTERPRET)" if interpreting() else "on this machine"
    what = next((line.strip() for line in str(failure).splitlines() if line.strip()), "no message")
    raise ModelError(
        f"model.{name}: Liger's kernel does not run {where}{how} ({type(failure).__name__}: {what[:160]}); expected a"
        f" working GPU, Triton and C compiler; fix them, or write {name}: false"
    ) from failure


def _try_on_meta(config: LigerModelConfig, hf_config: PreTrainedConfig, chosen: dict[str, bool]) -> None:
    """Apply the kernels to the model without weights, so that incompatible versions fail before weights are read."""
    import transformers

    factory: Any = transformers.AutoModelForCausalLM
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            meta_model = factory.from_config(
                copy.deepcopy(hf_config), attn_implementation="eager", trust_remote_code=config.trust_remote_code
            )
    except Exception:  # not Liger's fault: loading the model raises the same error
        return
    _apply(config, meta_model, hf_config.model_type, chosen)


def _apply(config: LigerModelConfig, model: Any, model_type: str, chosen: dict[str, bool]) -> None:
    import transformers

    try:
        apply_kernels(model, model_type, chosen)
    except Exception as error:  # Liger reaches into the model's modules, which another version may have renamed
        raise ModelError(
            f"model.name_or_path: given '{config.name_or_path}', a model of type '{model_type}', to which liger-kernel"
            f" {version('liger-kernel')} cannot apply its kernels under transformers {transformers.__version__}"
            f" ({type(error).__name__}: {error}); install compatible versions, or write type: huggingface"
        ) from error
