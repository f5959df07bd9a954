"""Frozen models beside the run's own, as recipes describe them under ``models``: references and teachers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import attrs

from hooktrain import ConfigDefaults, ExtraModel, ModelError, Recipe, field, member
from hooktrain_hf.file_digests import file_digests
from hooktrain_hf.location import Location, resolve_location
from hooktrain_hf.model import HFModelConfig

if TYPE_CHECKING:
    from torch.nn import Module

__all__ = [
    "FrozenModelConfig",
    "ModelsConfig",
    "adapter_of",
    "describe_frozen_model",
    "make_frozen_model",
    "models_of",
    "named_model_config",
    "require_same_tokens",
    "weights_fingerprint",
    "without_adapter",
]


@attrs.frozen(kw_only=True)
class FrozenModelConfig:
    """A frozen model beside the run's own."""

    type: Literal["auto", "copy", "adapter_off", "huggingface"] = field(default="auto")
    """``copy`` is the model as it is when the run begins, ``adapter_off`` the run's own model without its adapter,
    which takes no memory, and ``huggingface`` the model under ``name_or_path``. ``auto`` takes ``huggingface`` where
    there is a ``name_or_path``, ``adapter_off`` where the model has an adapter, and ``copy`` otherwise."""
    name_or_path: str | None = field(default=None)
    """Hub name, folder or ``.gguf`` file of another model with the same tokenizer."""
    dtype: Literal["fp32", "bf16", "fp16"] | None = field(default=None)
    """Type of its weights; by default that of the run's model."""
    offload: bool = field(default=False)
    """Whether its weights lie in the processor's memory, and a part is on the device only while it computes."""
    precompute: bool = field(default=False)
    """For a reference, whether its log-probabilities of all answers are computed once before the training, and kept for
    later runs; afterwards it takes no memory where no strategy shards it."""

    def __attrs_post_init__(self) -> None:
        if self.type != "auto" and (self.name_or_path is None) == (self.type == "huggingface"):
            given = f"type {self.type} with{'out' if self.name_or_path is None else ''} name_or_path"
            raise ValueError(f"given {given}, expected name_or_path with type huggingface alone; add or remove it")
        if self.type == "adapter_off" and (self.dtype or self.offload):
            raise ValueError(
                "given dtype or offload with type adapter_off, which has no weights of its own; remove them, or choose"
                " type copy"
            )


@attrs.frozen(kw_only=True)
class ModelsConfig:
    """Further models of the run, which are frozen."""

    reference: FrozenModelConfig = field(factory=FrozenModelConfig)
    """The model that a loss of preferences compares with."""
    teacher: FrozenModelConfig = field(factory=FrozenModelConfig)
    """The model that the loss ``distill`` learns from."""


def models_of(recipe: Recipe) -> ModelsConfig:
    """Return the recipe's ``models``."""
    found = recipe.settings.get("models")
    return found if isinstance(found, ModelsConfig) else ModelsConfig()


@runtime_checkable
class _WithAdapter(Protocol):
    """A model of PEFT's."""

    def disable_adapter(self) -> Any:
        """Return a context in which the model computes what its base does."""


def adapter_of(model: Module) -> _WithAdapter | None:
    """Return the module inside a model's wrappers that can disable its adapter; None where there is no adapter."""
    return next((module for module in model.modules() if isinstance(module, _WithAdapter)), None)


@contextmanager
def without_adapter(model: Module) -> Iterator[None]:
    """Make a model compute as it did without its adapter, in evaluation mode, for the time of the context."""
    training = [module for module in model.modules() if module.training]
    adapter = adapter_of(model)
    assert adapter is not None, "make_frozen_model has refused a model without one"
    try:
        model.eval()
        with adapter.disable_adapter():
            yield
    finally:
        for module in training:
            module.training = True


def make_frozen_model(
    name: str,
    config: FrozenModelConfig,
    model: Module,
    recipe: Recipe,
    *,
    hooks: Any,
    tokenizer: Any,
    world: Any,
    check: Callable[[Any], None] = lambda made: None,
    grows: bool = True,
) -> ExtraModel | None:
    """Describe a frozen model for ``make_models``; None where it is the run's own model without its adapter.

    A model by name has no adapter and none of the changes that the recipe's ``model`` makes to its own.

    Args:
        name: key of ``config`` under ``models``.
        config: of the model.
        model: the run's own.
        recipe: the recipe.
        hooks: those of ``make_models``, as are ``tokenizer`` and ``world``.
        tokenizer: None in a plan.
        world: this process.
        check: called with a model by name that has been built; raises a ``ModelError`` for one that it refuses.
        grows: whether a model by name gets embeddings for tokens that it does not know.

    Raises:
        ModelError: the model has no adapter to disable.
    """
    named = config.name_or_path is not None
    has_adapter = adapter_of(model) is not None
    if config.type == "adapter_off" and not has_adapter:
        raise ModelError(
            f"models.{name}: given type adapter_off, but {type(model).__name__} has no adapter; add one with the"
            " section peft, or choose type copy"
        )
    if not named and (config.type == "adapter_off" or (config.type == "auto" and has_adapter)):
        return None
    described = named_model_config(config, recipe.model) if named else recipe.model
    changed = attrs.evolve(recipe, model=described, settings=_without_adapters(recipe) if named else recipe.settings)
    shared = {"config": described, "world": world, "recipe": changed}

    def build() -> Module:
        if not isinstance(described, HFModelConfig):
            return copy.deepcopy(model)  # passed from Python, where building would return the same module
        made: Module = hooks.make_model(tokenizer=tokenizer if grows or not named else None, **shared)
        if named:
            check(made)
        return made

    def build_meta() -> Module:
        if not isinstance(described, HFModelConfig):
            return copy.deepcopy(model)
        made: Module = hooks.make_meta_model(**shared)
        return made

    return ExtraModel(build, dtype=config.dtype, offload=config.offload, build_meta=build_meta)


def named_model_config(config: FrozenModelConfig, own: Any) -> HFModelConfig:
    """Return the config of a model by name, which is loaded like the recipe's ``model`` but for changes to that."""
    assert config.name_or_path is not None
    if not isinstance(own, HFModelConfig):
        return HFModelConfig(name_or_path=config.name_or_path, weights_dtype=config.dtype or "fp32")
    return attrs.evolve(
        own,
        name_or_path=config.name_or_path,
        weights_dtype=config.dtype or own.weights_dtype,
        gguf_file=None,
        revision=None,
        quantization=None,
        activation_checkpointing=False,
        from_config=False,
        hf_config_kwargs={},
        freeze=(),
    )


def _without_adapters(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's settings without those that add weights to a frozen model."""
    return {
        name: type(config)() if member(config, ConfigDefaults, "freezes_model") else config
        for name, config in recipe.settings.items()
    }


def describe_frozen_model(name: str, config: FrozenModelConfig, model: Module | None) -> str:
    """Return what a frozen model is, for a message; ``model`` is None where it is the run's own without its adapter."""
    if model is None:
        return f"{name}: the model without its adapter"
    given = ", ".join(filter(None, (config.dtype, "kept on the processor" if config.offload else "")))
    what = config.name_or_path or "a copy of the model as it was before the run"
    return f"{name}: {what}{f' ({given})' if given else ''}"


def require_same_tokens(name: str, config: FrozenModelConfig, model: Any, tokenizer: Any) -> None:
    """Raise a ``ModelError`` for a model by name to which the ids of the run's tokenizer mean other tokens.

    Rows of its embedding that belong to no token do not matter.

    Args:
        name: key of ``config`` under ``models``.
        config: of the model.
        model: the model, built.
        tokenizer: of the run; None checks nothing.
    """
    given, advice = (
        f"models.{name}.name_or_path: given '{config.name_or_path}'",
        (
            f"give a {name} with the tokenizer of the run, or train with its own:"
            f" `tokenizer: {{name_or_path: {config.name_or_path}}}`"
        ),
    )
    if tokenizer is None:
        return
    rows = model.get_input_embeddings().num_embeddings
    if rows < len(tokenizer):
        raise ModelError(
            f"{given}, which embeds {rows:,} tokens, but the run's tokenizer has {len(tokenizer):,}, expected at least"
            f" as many; {advice}"
        )
    theirs = _vocabulary_of(str(config.name_or_path))
    if theirs is None:
        if rows - len(tokenizer) > 0.01 * rows:  # families round sizes up, by different steps
            raise ModelError(
                f"{given}, which has no tokenizer and embeds {rows:,} tokens, expected the {len(tokenizer):,} of the"
                f" run's tokenizer; {advice}"
            )
        return
    by_id = {number: token for token, number in theirs.items()}
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if theirs.get(token, number) != number or by_id.get(number, token) != token:
            raise ModelError(
                f"{given}, whose tokenizer has another vocabulary: token {number} is {by_id.get(number)!r} there and"
                f" {token!r} in the run's tokenizer, expected the same; {advice}"
            )


def _vocabulary_of(name: str) -> dict[str, int] | None:
    """Return the ids of a model's tokenizer by token; None where it comes without one."""
    from hooktrain_hf.tokenizer import HFTokenizerConfig, build_tokenizer

    try:
        found: dict[str, int] = build_tokenizer(HFTokenizerConfig(name_or_path=name)).get_vocab()
    except ModelError:
        return None
    return found


def weights_fingerprint(name_or_path: str) -> str | None:
    """Return a text that is equal for equal weights of a model: digests of its files, or its commit on the hub.

    Returns:
        None where a file cannot be read, or the commit is not known.
    """
    location = resolve_location(name_or_path, None, "models.teacher.name_or_path")
    if not location.local:
        return _commit_of(location)
    root = Path(location.name).absolute()
    patterns = [location.gguf_file] if location.gguf_file else ["config.json", "*.safetensors", "*.bin", "*.gguf"]
    files = sorted({file for pattern in patterns for file in root.glob(pattern) if file.is_file()})
    try:
        digests = file_digests(root, {file.name: file for file in files})
    except OSError:
        return None
    return " ".join(f"{file} {digest}" for file, digest in (digests or {}).items()) or None


def _commit_of(location: Location) -> str | None:
    """Return the commit of a model on the hub; that of the files that are here where the hub cannot be reached."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        found = HfApi().model_info(location.name, revision=location.revision, timeout=5).sha
    except Exception:  # offline, unknown, gated: loading raises a better error
        path = try_to_load_from_cache(location.name, "config.json", revision=location.revision)
        found = Path(path).parent.name if isinstance(path, str) else None
    return f"{location.name} {found}" if found else None
