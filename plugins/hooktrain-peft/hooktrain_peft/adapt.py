"""Putting an adapter on a model: new, or one that was trained before."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooktrain_hf.location import first_line

from hooktrain import ModelError
from hooktrain_peft.config import PeftSettings
from hooktrain_peft.methods import make_config, unfit
from hooktrain_peft.precision import train_in_float32

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch.nn import Module
    from transformers import PreTrainedModel

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "add_adapter",
    "is_adapter",
    "load_adapter",
    "quiet_peft",
    "sketch_adapter",
]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def add_adapter(model: Module, settings: PeftSettings, base: Any) -> PeftModel:
    """Freeze a model and put a trainable adapter on it, in float32 whatever the base is kept in.

    Args:
        model: a transformers model; it becomes part of the result.
        settings: the recipe's ``peft``, which has been checked and is active.
        base: the recipe's ``model``.

    Raises:
        ModelError: the model is no transformers model, the method does not fit it, or an adapter to go on from is
            missing, broken, or not this model's.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import PreTrainedModel

    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ModelError(
            f"peft: the {type(model).__name__} has an adapter already, expected a bare model; take it off with"
            " trainer.model.unload(), give another model, or leave peft out to train the adapter that it has"
        )
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"peft: the model is a {type(model).__name__}, expected a transformers model; use model type huggingface or"
            " liger, or leave peft out"
        )
    reference = _reference(model, base)
    if settings.adapter is not None:
        return load_adapter(model, Path(settings.adapter).expanduser(), reference, settings.type)
    config = make_config(settings)
    _keep_ties(model, config, settings)
    return _wrap(model, config, reference, "peft")


def sketch_adapter(model: Module, settings: PeftSettings) -> Module:
    """Put the adapter on a model without weights, so that what is trained can be counted.

    Raises:
        ModelError: the method does not fit the model, or an adapter to go on from is not there.
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
        _keep_ties(model, config, settings)
    init: Any = config
    if hasattr(init, "init_lora_weights"):
        init.init_lora_weights = True  # others look at the weights, which are not there
    base: Any = model
    try:
        with quiet_peft():
            made = get_peft_model(base, config)
    except Exception as problem:  # as in _wrap
        raise ModelError(f"peft: this adapter cannot be put on the model ({first_line(problem)})") from problem
    train_in_float32(made)  # type: ignore[arg-type]
    return made


def load_adapter(
    model: PreTrainedModel, folder: Path, reference: str | None, method: str | None = None, where: str = "peft.adapter"
) -> PeftModel:
    """Put an adapter that was saved on a model, trainable.

    Args:
        model: its base; it becomes part of the result.
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        reference: what to write into new exports as the base.
        method: what the recipe says it is, or None.
        where: beginning of messages.

    Raises:
        ModelError: there is no adapter, it cannot be read or trained here, or it does not fit the model.
    """
    import torch
    from peft import PeftConfig, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    missing = next((name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / name).is_file()), None)
    if missing is not None:
        raise ModelError(
            f"{where}: given '{folder}', which has no {missing}; expected a folder that an adapter was saved to;"
            " correct the path"
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
                f"peft.type: given '{method}', but the adapter in '{folder}' is {_name(config).lower()}; leave"
                " peft.type out"
            )
    reason = unfit(config)
    if reason:
        raise ModelError(f"{where}: '{folder}': {reason}")
    config.inference_mode = False
    made = _wrap(model, config, reference, where)
    try:
        with quiet_peft():
            result: Any = set_peft_model_state_dict(made, weights)
    except (RuntimeError, ValueError, KeyError) as problem:
        raise ModelError(_not_of_this(where, folder, first_line(problem))) from problem
    trained = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    lost = sorted(trained.intersection(result.missing_keys)) or sorted(result.unexpected_keys)
    if lost:
        raise ModelError(_not_of_this(where, folder, f"for one, {lost[0]} is only on one side"))
    if any(not bool(torch.isfinite(value).all()) for value in weights.values() if value.is_floating_point()):
        raise ModelError(f"{where}: given '{folder}', whose weights are not finite; give an adapter from before that")
    return made


def _not_of_this(where: str, folder: Path, reason: str) -> str:
    made_for = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    return (
        f"{where}: given '{folder}', which does not fit the model ({reason}); expected an adapter of this base; its own"
        f" is '{made_for}', so give that model, or another adapter"
    )


def _wrap(model: PreTrainedModel, config: PeftConfig, reference: str | None, where: str) -> PeftModel:
    from peft import get_peft_model

    name = _name(config).lower()
    config.base_model_name_or_path = model.__dict__.get("name_or_path") or None  # PEFT warns where they differ
    try:
        with quiet_peft():
            made: PeftModel = get_peft_model(model, config)
    except Exception as problem:  # every method has checks of its own, with errors of all kinds
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
    _check_apart(made, where)
    train_in_float32(made)
    return made


def _check_apart(model: PeftModel, where: str) -> None:
    """PEFT ties adapters of tied layers by letting two weights share memory, which an optimizer then updates twice."""
    trained = [p for p in model.parameters() if p.requires_grad and p.numel()]
    if len({p.untyped_storage().data_ptr() for p in trained}) < len(trained):
        raise ModelError(
            f"{where}: ensure_weight_tying would have an adapter of the embedding and one of the head share memory and"
            " be updated twice in each step; leave it out, or train both whole with peft.modules_to_save"
        )


def _keep_ties(model: Any, config: PeftConfig, settings: PeftSettings) -> None:
    """Where head and embedding are one weight, training either whole trains both, as it does without an adapter."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and getattr(head, "weight", None) is getattr(embedding, "weight", None)
    if tied and "ensure_weight_tying" not in settings.config and hasattr(config, "ensure_weight_tying"):
        names = {name.rpartition(".")[2] for name, module in model.named_modules() if module in (head, embedding)}
        whole = {str(name).rpartition(".")[2] for name in getattr(config, "modules_to_save", None) or ()}
        config.ensure_weight_tying = bool(names & whole)


def _reference(model: PreTrainedModel, base: Any) -> str | None:
    """How others find the base: a hub name, or a whole path, for a GGUF file that of the file."""
    name = getattr(base, "name_or_path", None) or getattr(model, "name_or_path", None)
    if not name:
        return None
    path = Path(str(name)).expanduser()
    if not path.exists():
        return str(name)
    gguf_file = getattr(base, "gguf_file", None)
    return str((path / gguf_file if gguf_file and path.is_dir() else path).absolute())


def _name(config: PeftConfig) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without PEFT's warnings: of what they warn, this plugin takes care or complains itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"peft(\.|$)")
        warnings.filterwarnings("ignore", message=r".*(tie_word_embeddings|is_gradient_checkpointing)")
        yield
