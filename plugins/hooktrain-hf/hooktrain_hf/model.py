"""Transformers models for the recipe's model type ``huggingface``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import attrs

from hooktrain import ConfigDefaults, ModelError, World, did_you_mean, field, member
from hooktrain_hf.attention_names import require_attention
from hooktrain_hf.block_settings import check_checkpointing, check_compilation, check_tile
from hooktrain_hf.blocks import accept_blocks, set_up_blocks
from hooktrain_hf.freeze import freeze, require_patterns
from hooktrain_hf.gguf_cache import forget_gguf, gguf_read_once
from hooktrain_hf.location import Location, cannot_load, resolve_location
from hooktrain_hf.quantization import check_setting, objections, quantization_of, stored_quantization
from hooktrain_hf.verbosity import quiet_transformers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from hooktrain import Recipe

__all__ = [
    "HFModelConfig",
    "build_model",
    "load_config",
    "location_of",
    "quantize_base",
    "random_model",
    "torch_dtype",
]

_KEY = "model.name_or_path"


@attrs.frozen(kw_only=True)
class HFModelConfig:
    """A language model that ``AutoModelForCausalLM`` loads, or one of images and text that is trained on text.

    Attributes:
        num_labels: outputs of the head that ``AutoModelForSequenceClassification`` puts on the model in the place of an
            LM head; 0 for a language model.
    """

    shorthand: ClassVar[str] = "name_or_path"
    num_labels: ClassVar[int] = 0

    name_or_path: str = field()
    """A folder with a config.json, a ``.gguf`` file, or a name on the hub."""
    gguf_file: str | None = field(default=None)
    """Name of a GGUF file in that folder or repository; its weights are unpacked."""
    revision: str | None = field(default=None)
    """Branch, tag or commit of the repository on the hub; its main branch by default."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = field(default="auto")
    """Precision of the forward pass, set up by the strategy; ``auto`` leaves the choice to it."""
    weights_dtype: Literal["fp32", "bf16", "fp16"] = field(default="fp32")
    """Precision in which the weights are kept and updated; less than fp32 loses small updates."""
    quantization: Literal["nf4", "fp4", "int8"] | Mapping[str, Any] | None = field(
        default=None, validator=check_setting
    )
    """For an adapter's base: keep its linear layers in 4 bits (``nf4`` or ``fp4``, with bitsandbytes) or 8 (``int8``,
    with torchao). Or a mapping with ``type`` and, for 4 bits, ``double`` (whether the scales are quantized too; true),
    ``compute_dtype`` (``auto``, that of a layer's inputs, ``fp32``, ``bf16`` or ``fp16``) and ``block`` (weights that
    share a scale; 64). Head, embeddings, norms and fused experts stay in ``weights_dtype``."""
    attn_implementation: str = field(default="auto")
    """How attention is computed: ``auto``, or transformers' sdpa, eager, flash_attention_2, ... ``auto`` computes
    packed and padding-free batches document by document where the model supports it (``documents`` requires it), and
    is transformers' own choice elsewhere."""
    activation_checkpointing: bool | Literal["full", "selective"] | Mapping[str, Any] = field(
        default=False, validator=check_checkpointing, affects_training=False
    )
    """Which activations are recomputed in the backward pass instead of being kept: true or ``full`` keeps the inputs of
    blocks, ``selective`` the results of their matrix products and attention too, ``{every: 2}`` recomputes each second
    block, and ``{ops: [mm, addmm]}`` keeps the results of these operators of torch."""
    activation_offload: bool = field(default=False, affects_training=False)
    """Whether the inputs of recomputed blocks wait for the backward pass in the memory of the host; needs a GPU."""
    tiled_mlp: bool | int = field(default=False, validator=check_tile, affects_training=False)
    """Whether MLPs compute some tokens at a time and recompute them in the backward pass, for long sequences; a number
    is the tokens of a tile, which are 1,024 otherwise. Not for mixtures of experts."""
    compile: bool | Literal["blocks"] | Mapping[str, Any] = field(
        default=False, validator=check_compilation, affects_training=False
    )
    """Whether torch.compile compiles each block of the decoder (true and ``blocks`` are the same). Or a mapping with
    ``mode`` (``default`` or ``max-autotune-no-cudagraphs``), ``dynamic`` (whether one graph serves all numbers of
    tokens; true) and ``backend`` (``inductor``)."""
    from_config: bool = field(default=False)
    """Whether to start from random weights; only the config is read then."""
    hf_config_kwargs: Mapping[str, Any] = field(factory=dict)
    """Values that replace those of the model's config, such as ``{attention_dropout: 0.1}``."""
    freeze: tuple[str, ...] = field(factory=tuple, validator=require_patterns)
    """Regular expressions, such as ``layers\\.[0-3]\\.`` or ``embed_tokens``: weights in whose names one is found are
    not trained."""
    train_vision: bool = field(default=False)
    """Whether the parts of a vision-language model that text does not reach, such as its vision tower, are trained
    too; otherwise they are frozen, and get no adapters."""
    trust_remote_code: bool = field(default=False, affects_training=False)
    """Whether Python code that comes with the model may run."""


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a recipe's ``fp32``, ``bf16`` or ``fp16``."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def build_model(
    config: HFModelConfig,
    tokenizer: Any,
    world: World,
    accept: Callable[[PreTrainedConfig], None] = lambda hf_config: None,
    recipe: Recipe | None = None,
) -> PreTrainedModel:
    """Load the model with trainable weights in ``weights_dtype``, tied where the config ties them.

    The linear layers of a quantized base are packed and frozen. Random weights (``from_config``) come from torch's
    global seed.

    Args:
        config: the recipe's ``model``.
        tokenizer: None, or the tokenizer whose tokens the model gets embeddings for that it does not have.
        world: this process; only the main rank may print.
        accept: called with the model's config before any weights are read; raises an error for one that it refuses.
        recipe: that of the run, which says whether quantized weights are frozen; None where nothing is trained.

    Raises:
        ModelError: the model cannot be loaded, lacks weights, or cannot be trained.
    """
    settings = () if recipe is None else recipe.settings.values()
    if any(member(each, ConfigDefaults, "needs_plain_base") for each in settings):
        config = attrs.evolve(config, quantization=None)  # the plugin quantizes it
    location = location_of(config)
    with quiet_transformers(world.is_main), gguf_read_once(location):
        require_attention(config)
        hf_config = load_config(config, location)
        accept(hf_config)
        accept_blocks(recipe, config, hf_config, lambda copied: random_model(config, copied))
        stored = stored_quantization(hf_config)
        if stored and not location.gguf_file:
            _accept_stored(config, stored, recipe)
        model: Any = random_model(config, hf_config) if config.from_config else _load(config, hf_config, location)
        from hooktrain_hf.attention import install_document_attention
        from hooktrain_hf.compat import forget_gguf_quantization, has_vision, mark_padding
        from hooktrain_hf.vision import freeze_vision

        install_document_attention(model, config.attn_implementation)
    forget_gguf()
    forget_gguf_quantization(model)
    if config.quantization is not None or stored:
        quantize_base(model, config, recipe)
    else:
        _check_trainable(model, config)
    if has_vision(hf_config) and not config.train_vision:
        freeze_vision(model)
    if tokenizer is not None:
        from hooktrain_hf.embeddings import fit_vocabulary

        fit_vocabulary(model, tokenizer)
        if config.num_labels:
            mark_padding(model, tokenizer)
    freeze(model, config.freeze)
    set_up_blocks(model, config)
    return model  # type: ignore[no-any-return]


def quantize_base(model: PreTrainedModel, config: HFModelConfig, recipe: Recipe | None = None) -> None:
    """Quantize the linear layers of a loaded model as the recipe's ``model`` says, unless its files did.

    Args:
        model: a transformers model.
        config: the recipe's ``model``.
        recipe: that of the run, or None.
    """
    from hooktrain_hf.quantized_layers import finish_loading, is_quantized, quantize

    quantization = quantization_of(config)
    if quantization is not None and not is_quantized(model):
        quantize(model, quantization)
    if is_quantized(model):
        strategy = None if recipe is None else recipe.strategy
        finish_loading(model, quantization, str(member(strategy, ConfigDefaults, "device")))


def location_of(config: HFModelConfig) -> Location:
    """Return the place of a recipe's model."""
    return resolve_location(config.name_or_path, config.gguf_file, _KEY, config.revision)


def load_config(config: HFModelConfig, location: Location, *, offline: bool = False) -> PreTrainedConfig:
    """Load the model's config and apply the recipe's changes; ``offline`` uses only files on this machine.

    Raises:
        ModelError: the config cannot be loaded, or does not have one of the changed values.
    """
    import transformers

    try:
        hf_config, unused = transformers.AutoConfig.from_pretrained(
            location.name,
            trust_remote_code=config.trust_remote_code,
            return_unused_kwargs=True,
            local_files_only=offline,
            **location.options,
            **config.hf_config_kwargs,
        )
        if config.num_labels:
            hf_config.num_labels = config.num_labels
    except Exception as error:  # the hub, JSON and transformers' own validation each raise kinds of their own
        raise cannot_load(location, _KEY, "config", error) from error
    for name in config.hf_config_kwargs:
        if name in unused:
            hint = did_you_mean(name, hf_config.to_dict())
            raise ModelError(
                f"model.hf_config_kwargs.{name}: given {config.hf_config_kwargs[name]!r}, but a {hf_config.model_type}"
                f" config has no '{name}'{hint}; expected one of its attributes; correct the name or remove it"
            )
    return hf_config  # type: ignore[no-any-return]


def random_model(config: HFModelConfig, hf_config: PreTrainedConfig) -> PreTrainedModel:
    """Make a model with random weights and transformers' own attention.

    Raises:
        ModelError: transformers does not support the model.
    """
    factory = _factory(config, hf_config)
    try:
        return factory.from_config(  # type: ignore[no-any-return]
            hf_config,
            attn_implementation=_requested_attention(config),
            dtype=torch_dtype(config.weights_dtype),
            trust_remote_code=config.trust_remote_code,
        )
    except (ValueError, ImportError, RuntimeError) as error:
        raise cannot_load(Location(config.name_or_path, None, True), _KEY, "config", error) from error


def _load(config: HFModelConfig, hf_config: PreTrainedConfig, location: Location) -> PreTrainedModel:
    """Load a model with pretrained weights, all of them."""
    from hooktrain_hf.compat import gguf_load_options

    more = {**location.options, **(gguf_load_options() if location.gguf_file else {})}
    quantization = quantization_of(config)
    if quantization is not None and not location.gguf_file:
        from hooktrain_hf.quantized_layers import bitsandbytes_config

        if (found := bitsandbytes_config(quantization)) is not None:
            more["quantization_config"] = found
    factory = _factory(config, hf_config)
    try:
        model, report = factory.from_pretrained(
            location.name,
            config=hf_config,
            dtype=torch_dtype(config.weights_dtype),
            attn_implementation=_requested_attention(config),
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            **more,
        )
    except Exception as error:  # safetensors, the hub, GGUF and attention back ends each raise kinds of their own
        raise cannot_load(location, _KEY, "weights", error) from error
    missing = sorted(report["missing_keys"])
    if config.num_labels:  # the head of a model that was made to write text is random
        missing = [name for name in missing if name.startswith(f"{model.base_model_prefix}.")]
    if missing:
        listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ModelError(
            f"{_KEY}: given '{config.name_or_path}', whose files lack {len(missing)} of the model's weights ({listed});"
            " expected all of them, since the rest would be random; give a complete checkpoint, or set"
            " model.from_config: true to train from random weights"
        )
    return model  # type: ignore[no-any-return]


def _factory(config: HFModelConfig, hf_config: PreTrainedConfig) -> Any:
    """Return what makes the complete model of a config in transformers.

    Raises:
        ModelError: it is neither a causal language model nor one of images and text; or, for a head with labels,
            transformers has no classifier of it.
    """
    from hooktrain_hf.compat import auto_class

    factory = auto_class(hf_config, config.num_labels > 0)
    if factory is None and config.num_labels:
        raise ModelError(
            f"{_KEY}: given '{config.name_or_path}', a model of type {hf_config.model_type}, which transformers cannot"
            " give a head of scores; expected one that AutoModelForSequenceClassification loads; give another model"
        )
    if factory is None:
        raise ModelError(
            f"{_KEY}: given '{config.name_or_path}', a model of type {hf_config.model_type}, which transformers has"
            " neither as a causal language model nor as one of images and text; expected one of these; give another"
            " model"
        )
    return factory


def _requested_attention(config: HFModelConfig) -> str | None:
    """Return the attention that transformers loads the model with; None leaves the choice to it."""
    return None if config.attn_implementation in ("auto", "documents") else config.attn_implementation


def _accept_stored(config: HFModelConfig, stored: str, recipe: Recipe | None) -> None:
    """Raise ModelError where files with quantized weights cannot be the base of a run."""
    given = f"{_KEY}: given '{config.name_or_path}', whose weights are quantized ({stored})"
    if config.quantization is not None:
        raise ModelError(f"{given}, together with model.quantization; remove model.quantization")
    reasons = [] if recipe is None else list(objections(recipe, stored))
    if reasons:
        raise ModelError(f"{given}: {'; '.join(reasons)}")


def _check_trainable(model: Any, config: HFModelConfig) -> None:
    """Raise ModelError where a weight is packed or frozen."""
    expected = torch_dtype(config.weights_dtype)
    for name, parameter in model.named_parameters():
        # other dtypes than the expected one are right: a model may keep single weights in float32
        if not parameter.is_floating_point() or not parameter.requires_grad or parameter.element_size() < 2:
            raise ModelError(
                f"{_KEY}: given '{config.name_or_path}', whose weight {name} is stored as {parameter.dtype} and cannot"
                f" be trained; expected dense weights in {expected}; give the unquantized model"
            )
