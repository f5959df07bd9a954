"""New and saved adapters on a model."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooktrain_hf import HFModelConfig, first_line, make_dense, new_token_ids, parts_without_text

from hooktrain import ModelError
from hooktrain_peft.compat import (
    adapted_layers,
    has_tied_head,
    method_name,
    method_settings,
    without_unused_imports,
)
from hooktrain_peft.config import PeftSettings
from hooktrain_peft.methods import make_config, why_unsupported
from hooktrain_peft.precision import train_in_float32

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "adapt_meta_model",
    "add_adapter",
    "is_adapter",
    "load_adapter",
    "on_dense_base",
    "quiet_peft",
]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Return whether a folder contains an adapter and no complete model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def add_adapter(model: Module, settings: PeftSettings, base: Any) -> PeftModel:
    """Freeze a model and put a trainable adapter on it, in float32 whatever the precision of the base.

    Args:
        model: a transformers model; it becomes part of the result.
        settings: the recipe's ``peft``, checked and active.
        base: the recipe's ``model``.

    Raises:
        ModelError: the model is no transformers model, the method does not fit it, or ``peft.adapter`` is missing,
            broken, or of another base.
    """
    from transformers import PreTrainedModel

    if adapted_layers(model):
        raise ModelError(
            f"peft: given a {type(model).__name__} with an adapter, expected a model without one; remove the adapter"
            " with trainer.model.unload(), pass another model, or remove the section peft to train the adapter that it"
            " has"
        )
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"peft: given a {type(model).__name__}, expected a transformers model; use model type huggingface or liger,"
            " or remove the section peft"
        )
    reference = _reference(model, base)
    if settings.adapter is not None:
        return load_adapter(model, Path(settings.adapter).expanduser(), reference, settings.type)
    config = make_config(settings)
    config.revision = base.revision if isinstance(base, HFModelConfig) else None
    _train_labels(config, base)
    _train_new_tokens(model, config)
    _adapt_text_only(model, config, base)
    _keep_ties(model, config, settings)
    return _wrap(model, config, reference, "peft")


def adapt_meta_model(model: Module, settings: PeftSettings, model_config: Any) -> Module:
    """Put the adapter on a meta model, so that trained weights can be counted.

    Args:
        model: the meta model.
        settings: the recipe's ``peft``, checked and active.
        model_config: the recipe's ``model``.

    Raises:
        ModelError: the method does not fit the model, or ``peft.adapter`` does not exist.
    """
    from peft import PeftConfig, get_peft_model

    if settings.adapter is not None:
        folder = Path(settings.adapter).expanduser()
        if not (folder / ADAPTER_CONFIG).is_file():
            raise ModelError(f"peft.adapter: given '{folder}', which has no {ADAPTER_CONFIG}; correct the path")
        with quiet_peft():
            config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = False
    else:
        config = make_config(settings)
        _train_labels(config, model_config)
        _adapt_text_only(model, config, model_config)
        _keep_ties(model, config, settings)
    untyped: Any = config
    if "init_lora_weights" in method_settings(config):
        untyped.init_lora_weights = True  # other values read weights, which a meta model does not have
    base: Any = model
    try:
        with quiet_peft():
            made: Any = get_peft_model(base, config)
    except Exception as problem:  # as in _wrap
        raise ModelError(f"peft: this adapter cannot be put on the model ({first_line(problem)})") from problem
    train_in_float32(made)
    return made  # type: ignore[no-any-return]


def load_adapter(
    model: PreTrainedModel, folder: Path, reference: str | None, method: str | None = None, where: str = "peft.adapter"
) -> PeftModel:
    """Put a saved adapter on a model, trainable.

    Args:
        model: its base; it becomes part of the result.
        folder: the folder of ``adapter_config.json`` and ``adapter_model.safetensors``.
        reference: the base's name or path for new exports.
        method: the recipe's ``peft.type``, or None.
        where: beginning of messages.

    Raises:
        ModelError: there is no adapter, it cannot be read or its method is not supported, or it does not fit the model.
    """
    import torch
    from peft import PeftConfig, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    missing = next((name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / name).is_file()), None)
    if missing is not None:
        raise ModelError(
            f"{where}: given '{folder}', which has no {missing}; expected the folder of a saved adapter; correct the"
            " path"
        )
    try:
        with quiet_peft():
            config = PeftConfig.from_pretrained(str(folder))
        weights = load_file(folder / ADAPTER_WEIGHTS)
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as problem:
        raise ModelError(
            f"{where}: given '{folder}', which cannot be read ({first_line(problem)}); expected an adapter as PEFT"
            " saves it; give another one"
        ) from problem
    if method is not None:
        expected = make_config(PeftSettings(type=method)).peft_type
        if expected != config.peft_type:
            raise ModelError(
                f"peft.type: given '{method}', but the adapter in '{folder}' is {method_name(config).lower()}; remove"
                " peft.type"
            )
    reason = why_unsupported(config)
    if reason:
        raise ModelError(f"{where}: '{folder}': {reason}")
    config.inference_mode = False
    made = _wrap(model, config, reference, where)
    try:
        with quiet_peft():
            result: Any = set_peft_model_state_dict(made, weights)
    except (RuntimeError, ValueError, KeyError) as problem:
        raise ModelError(_misfit(where, folder, first_line(problem))) from problem
    trained = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    lost = sorted(trained.intersection(result.missing_keys)) or sorted(result.unexpected_keys)
    if lost:
        raise ModelError(_misfit(where, folder, f"only one of them has {lost[0]}"))
    if any(not bool(torch.isfinite(value).all()) for value in weights.values() if value.is_floating_point()):
        raise ModelError(f"{where}: given '{folder}', whose weights are not finite; give an earlier adapter")
    return made


def on_dense_base(model: PeftModel, weights: Mapping[str, Tensor]) -> PeftModel:
    """Return a copy of a model with a quantized base on the host, its base dense and in float32.

    Args:
        model: base and adapter; it is not changed.
        weights: its weights, complete, on the host.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    config = copy.deepcopy(model.active_peft_config)
    with quiet_peft():
        adapter = get_peft_model_state_dict(model, state_dict=dict(weights), save_embedding_layers=False)
        copied: Any = copy.deepcopy(model).cpu()
        copied.get_base_model().is_loaded_in_4bit = False  # for which some methods refuse to be removed
        base: Any = copied.unload()
        make_dense(base)
        untyped: Any = config
        if "init_lora_weights" in method_settings(config):
            untyped.init_lora_weights = True  # other values change the base, which has been done
        made: PeftModel = get_peft_model(base.float(), config)
        set_peft_model_state_dict(made, adapter)
    return made


def _misfit(where: str, folder: Path, reason: str) -> str:
    made_for = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    return (
        f"{where}: given '{folder}', which does not fit the model ({reason}); expected an adapter of this base; give"
        f" the adapter's own base, '{made_for}', or another adapter"
    )


def _wrap(model: PreTrainedModel, config: PeftConfig, reference: str | None, where: str) -> PeftModel:
    from peft import get_peft_model

    name = method_name(config).lower()
    config.base_model_name_or_path = model.name_or_path or None  # PEFT warns where they differ
    try:
        with quiet_peft():
            made: PeftModel = get_peft_model(model, config)
    except Exception as problem:  # each method has its own checks, with errors of all kinds
        raise ModelError(
            f"{where}: '{name}' cannot be put on a {type(model).__name__} ({first_line(problem)}); correct"
            " peft.target_modules or the method's other settings"
        ) from problem
    config.base_model_name_or_path = reference
    if not any(parameter.requires_grad for parameter in made.parameters()):
        raise ModelError(
            f"{where}: '{name}' trains no weight of a {type(model).__name__}; correct peft.target_modules or the"
            " method's other settings"
        )
    _check_separate(made, where)
    train_in_float32(made)
    return made


def _check_separate(model: PeftModel, where: str) -> None:
    """Raise ModelError where trained weights share memory, as PEFT's tied adapters do: both would be updated."""
    trained = [p for p in model.parameters() if p.requires_grad and p.numel()]
    if len({p.untyped_storage().data_ptr() for p in trained}) < len(trained):
        raise ModelError(
            f"{where}: with ensure_weight_tying the adapters of embedding and head would share memory and be updated"
            " twice in each step; remove it, or train both modules completely with peft.modules_to_save"
        )


def _train_new_tokens(model: Any, config: PeftConfig) -> None:
    """Train the embeddings of tokens that are new to the model, which the frozen base would keep as they are."""
    ids = list(new_token_ids(model))
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, module in model.named_modules() if module in modules] if ids else []
    known = method_settings(config)
    complete = {str(name).rpartition(".")[2] for name in known.get("modules_to_save") or ()}
    rest = [name for name in names if name.rpartition(".")[2] not in complete]
    if not rest or known.get("trainable_token_indices") or (rest != names and has_tied_head(model)):
        return  # they are trained already
    untyped: Any = config
    if "trainable_token_indices" in known:
        untyped.trainable_token_indices = {name: ids for name in rest}
    elif "modules_to_save" in known:
        untyped.modules_to_save = [*(known["modules_to_save"] or ()), *(name.rpartition(".")[2] for name in rest)]
    else:
        raise ModelError(
            f"peft: the tokenizer has {len(ids)} tokens that are new to the {type(model).__name__}, and"
            f" {method_name(config).lower()} cannot train their embeddings; choose another method, such as lora"
        )


def _train_labels(config: PeftConfig, base: Any) -> None:
    """Train the head of a classifier completely, which is new, and save it with the adapter."""
    if isinstance(base, HFModelConfig) and base.num_labels:
        config.task_type = "SEQ_CLS"  # for which PEFT adds the head to modules_to_save


def _adapt_text_only(model: Any, config: PeftConfig, base: Any) -> None:
    """Exclude the parts of a vision-language model that text does not reach, unless the recipe trains them."""
    known = method_settings(config)
    parts = parts_without_text(model)
    if not parts or "exclude_modules" not in known or (isinstance(base, HFModelConfig) and base.train_vision):
        return
    given = known["exclude_modules"]
    patterns = [given] if isinstance(given, str) else [rf"(?:.*\.)?{re.escape(name)}" for name in given or ()]
    untyped: Any = config
    untyped.exclude_modules = "|".join(
        f"(?:{one})" for one in [*patterns, *(rf"{re.escape(p)}(?:\..*)?" for p in parts)]
    )


def _keep_ties(model: Any, config: PeftConfig, settings: PeftSettings) -> None:
    """Train head and embedding as one weight where the model ties them and either is trained completely."""
    known = method_settings(config)
    if "ensure_weight_tying" in known and "ensure_weight_tying" not in settings.config and has_tied_head(model):
        tied = (model.get_output_embeddings(), model.get_input_embeddings())
        names = {name.rpartition(".")[2] for name, module in model.named_modules() if module in tied}
        trained = {str(name).rpartition(".")[2] for name in known.get("modules_to_save") or ()}
        untyped: Any = config
        untyped.ensure_weight_tying = bool(names & trained)


def _reference(model: PreTrainedModel, base: Any) -> str | None:
    """Return the base's name for other programs: a hub name, or an absolute path, for a GGUF file that of the file."""
    name, gguf_file = model.name_or_path, None
    if isinstance(base, HFModelConfig):
        name, gguf_file = base.name_or_path, base.gguf_file
    if not name:
        return None
    path = Path(str(name)).expanduser()
    if not path.exists():
        return str(name)
    return str((path / gguf_file if gguf_file and path.is_dir() else path).absolute())


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hide PEFT's warnings inside the block: this plugin handles their causes, or raises errors of its own.

    Libraries that it would import for nothing are not imported.
    """
    with warnings.catch_warnings(), without_unused_imports():
        warnings.filterwarnings("ignore", module=r"peft(\.|$)")
        warnings.filterwarnings("ignore", message=r".*(tie_word_embeddings|is_gradient_checkpointing)")
        yield
