"""Checkpoint engine ``huggingface``, which writes folders for ``AutoModelForCausalLM.from_pretrained``."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import attrs

from hooktrain import CheckpointConfig, CheckpointError, World, failure_of, field
from hooktrain_hf.atomic_folder import check_target, delete_temporary, exports_in, replace_folder, temporary_folder
from hooktrain_hf.location import first_line
from hooktrain_hf.model import torch_dtype
from hooktrain_hf.push import push
from hooktrain_hf.tokenizer import end_of_turn_id
from hooktrain_hf.verbosity import quiet_transformers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel

    from hooktrain import Trainer

__all__ = ["HFCheckpointConfig", "HFCheckpointEngine", "generation_config_for", "write_model"]

_WHERE = "checkpoint (type: huggingface)"
_PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
"""Files of a vision-language model that say how its images are prepared, which no training changes."""


@attrs.frozen(kw_only=True)
class HFCheckpointConfig(CheckpointConfig):
    """Model, tokenizer and generation config for other programs to load; a run cannot resume from it.

    The end of the run is written to ``output_dir`` itself (by default ``export`` in the run directory), the best
    evaluation so far (``save_best``) to ``output_dir/best``, and other saves on the way to ``output_dir/step-N``.
    """

    exports: ClassVar[bool] = True

    save_dtype: Literal["fp32", "bf16", "fp16"] | None = field(default=None)
    """Precision of the exported weights; by default the one that they are kept in."""
    on_failure: Literal["stop", "warn"] = field(default="stop")
    """What the run does when an export fails, as on a full disk; an earlier one is then unchanged. With ``warn``
    training continues, and a run whose last export failed is no success."""
    push_to: str | None = field(default=None, affects_training=False)
    """Repository on the hub that the export at the end of the run is pushed to: ``organisation/name``, or
    ``organisation/name@branch``. Nothing is pushed with ``HF_HUB_OFFLINE``, and a push that fails is a warning."""
    push_private: bool | None = field(default=None, affects_training=False)
    """Whether that repository, where it is new, is private; by default as the organisation has it."""


class HFCheckpointEngine:
    """Checkpoint engine that exports a transformers model.

    Args:
        config: when, where and in which precision.
        run_dir: folder of the run.
        world: this process; only the main rank writes.

    Attributes:
        unsaved: the step of the last export, where it failed, and the error; None when it did not fail.

    Raises:
        CheckpointError: ``output_dir`` cannot be written, or contains files that are not an export's.
    """

    def __init__(self, config: HFCheckpointConfig, run_dir: Path, world: World) -> None:
        self.config = config
        self.unsaved: tuple[int, CheckpointError] | None = None
        self.output_dir = (config.output_dir or run_dir / "export").expanduser().absolute()
        if config.auto_resume:
            raise CheckpointError(
                f"{_WHERE}: given auto_resume, but an export contains no optimizer, schedule or position in the data;"
                " expected it on an entry with 'type: full'; move it there"
            )
        if world.is_main and config.enabled:  # now, and not after hours of training
            check_target(self.output_dir, _WHERE)

    def save(self, trainer: Trainer) -> Path | None:
        """Export the model. Collective: all ranks gather the weights, the main rank writes them.

        Returns:
            The folder: ``output_dir`` at the end of the run, ``output_dir/best`` or ``output_dir/step-N`` before; None
            where it could not be written and ``on_failure`` says ``warn``.

        Raises:
            CheckpointError: the model is no transformers model, the folder cannot be written, or the written weights
                differ from the model's; on all ranks. An earlier export is then unchanged.
        """
        at_end = trainer.checkpoint_reason == "end"
        name = "best" if trainer.checkpoint_reason == "best" else f"step-{trainer.global_step}"
        target = self.output_dir if at_end else self.output_dir / name
        module: Any = trainer.strategy.unwrap(trainer.model)
        weights = trainer.strategy.full_state_dict(trainer.model)
        problem, mistake = "", None
        if trainer.world.is_main:
            try:
                self._write(trainer, target, module, weights)
            except CheckpointError as error:
                problem = str(error)
            except Exception as error:  # whatever it is, the other ranks wait to be told
                mistake = None if _is_of_disk(error) else error
                problem = (
                    f"{_WHERE}: '{target}' cannot be written ({first_line(error)}); make room, or give another"
                    " output_dir that this user may write; an earlier export there is unchanged"
                )
        # also the barrier after which every rank may read the folder
        problem = next((text for text in trainer.strategy.gather_objects(problem) if text), "")
        if mistake is not None:
            raise mistake
        if not problem:
            self.unsaved = None
            if at_end and self.config.push_to and trainer.world.is_main:
                self._push(trainer, target)
            return target
        failed = CheckpointError(problem)
        failure_of(failed).rank = 0
        if self.config.on_failure == "stop":
            raise failed
        self.unsaved = (trainer.global_step, failed)
        if trainer.world.is_main:
            trainer.host.warn(f"{problem}{'' if at_end else '; the run continues'}")
        return None

    def _push(self, trainer: Trainer, folder: Path) -> None:
        """Push an export to the hub, and say where it is, or why it is not there."""
        pushed, why = push(folder, self.config.push_to or "", self.config.push_private)
        if pushed:
            trainer.say(f"pushed {folder} to {pushed}")
        else:
            trainer.host.warn(f"{_WHERE}.push_to: '{folder}' was not pushed to {self.config.push_to}: {why}")

    def results(self) -> list[Path]:
        """Return the exports in ``output_dir``, the newest first."""
        return exports_in(self.output_dir)

    def clean(self) -> None:
        """Delete the temporary folders of exports that were interrupted."""
        delete_temporary(self.output_dir)

    def latest(self) -> Path | None:
        """Return None: a run cannot resume from an export."""
        return None

    def can_load(self, path: Path) -> bool:
        """Return False: a run cannot resume from an export."""
        return False

    def load(self, trainer: Trainer, path: Path) -> None:
        """Raise CheckpointError: a run cannot resume from an export."""
        raise CheckpointError(
            f"{_WHERE}: given '{path}' to resume from, but an export contains no optimizer, schedule or position in the"
            " data; expected a checkpoint of 'type: full'; resume from one of those, or start a new run with"
            " model.name_or_path set to this folder"
        )

    def _write(self, trainer: Trainer, target: Path, module: Any, weights: dict[str, Tensor]) -> None:
        check_target(self.output_dir, _WHERE)
        dtype = None if self.config.save_dtype is None else torch_dtype(self.config.save_dtype)
        with temporary_folder(target) as folder, quiet_transformers(is_main=False):
            written = trainer.hooks.export_model(
                module=module,
                weights=weights,
                folder=folder,
                dtype=dtype,
                tokenizer=trainer.tokenizer,
                recipe=trainer.recipe,
            )
            if written is None:
                raise CheckpointError(
                    f"{_WHERE}: given a {type(module).__name__}, expected a transformers model; use 'type: full' for"
                    " it, or the export of the plugin that made the model"
                )
            if trainer.tokenizer is not None:
                trainer.tokenizer.save_pretrained(folder)
            _verify(folder, written, _allowed(trainer, weights))
            replace_folder(folder, target)


def _is_of_disk(error: Exception) -> bool:
    """Return whether an error tells of the disk or of what is written, and not of a mistake in a plugin.

    The libraries of tensors and of tokenizers, which are written in Rust, have errors of their own.
    """
    return isinstance(error, (OSError, ValueError, RuntimeError)) or "os error" in str(error)


def write_model(
    module: PreTrainedModel, weights: Mapping[str, Tensor], folder: Path, dtype: Any, tokenizer: Any
) -> dict[str, Tensor]:
    """Write a transformers model for ``from_pretrained``: weights, config and generation config.

    Args:
        module: the model; it is not changed.
        weights: all of its weights, complete; tied ones may be missing or copied.
        folder: an existing folder.
        dtype: torch dtype of the written weights, or None for the one that they have.
        tokenizer: None, or the tokenizer that was trained with.

    Returns:
        The written weights, tied ones under each of their names.

    Raises:
        CheckpointError: ``weights`` are not those of the model.
    """
    from hooktrain_hf.compat import has_vision, names_not_saved, stored_file

    weights = _with_ties(module, weights)
    if dtype is not None:
        weights = _cast(weights, dtype)
    for name in names_not_saved(module):
        weights.pop(name, None)
    generation = generation_config_for(module, tokenizer) if module.can_generate() else None
    _save_model(module, weights, generation, folder, dtype)
    if has_vision(module.config):
        for name in _PROCESSOR_FILES:
            if path := stored_file(str(module.name_or_path), name):
                shutil.copyfile(path, folder / name)
    return weights


def _with_ties(module: PreTrainedModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gathered weights, complete and with tied ones sharing memory as they do in the live model.

    Gathering may copy a tied weight or name it once; only the live model knows which names are one parameter.
    """
    from hooktrain_hf.compat import complete_shape

    weights = dict(weights)
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for tied in names.values():
        there = [name for name in tied if name in weights]
        if there:
            weights.update(dict.fromkeys(tied, weights[there[0]]))
    expected = set(module.state_dict())
    if expected != set(weights):
        odd = ", ".join(sorted(expected ^ set(weights))[:3])
        raise CheckpointError(
            f"{_WHERE}: the strategy gathered {len(weights)} weights, expected the model's {len(expected)}; names that"
            f" only one of them has: {odd}; nothing was written; report this to the authors of the strategy, or of a"
            " plugin that changed the model"
        )
    for name, parameter in module.named_parameters():
        shape = complete_shape(parameter)
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(
                f"{_WHERE}: the strategy gathered {name} with shape {tuple(weights[name].shape)}, expected {shape};"
                " nothing was written; report this to the authors of the strategy"
            )
    return weights


def _cast(weights: dict[str, Tensor], dtype: Any) -> dict[str, Tensor]:
    """Cast floating-point weights to ``dtype``; weights that share memory still do."""
    made: dict[int, Tensor] = {}
    for tensor in weights.values():
        if id(tensor) not in made:
            made[id(tensor)] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return {name: made[id(tensor)] for name, tensor in weights.items()}


def _save_model(
    module: Any, weights: dict[str, Tensor], generation: GenerationConfig | None, folder: Path, dtype: Any
) -> None:
    """Write weights and configs without changing those of the live model."""
    changed = {"config": copy.deepcopy(module.config)}
    changed |= {} if generation is None else {"generation_config": generation}  # which a classifier does not have
    live = {name: vars(module)[name] for name in changed}
    vars(module).update(changed)
    try:
        module.save_pretrained(folder, state_dict=dict(weights), max_shard_size="5GB")
    finally:
        vars(module).update(live)
    if dtype is not None:
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def generation_config_for(module: PreTrainedModel, tokenizer: Any) -> GenerationConfig:
    """Return the model's generation config, with the chat's end of turn among the tokens that end an answer.

    Args:
        module: the model; it is not changed.
        tokenizer: None, or the tokenizer that was trained with.
    """
    from transformers import GenerationConfig

    config = copy.deepcopy(module.generation_config) or GenerationConfig.from_model_config(module.config)
    if tokenizer is not None:
        known = config.eos_token_id
        ends = [] if known is None else list(known) if isinstance(known, (list, tuple)) else [known]
        for found in (end_of_turn_id(tokenizer), tokenizer.eos_token_id):
            if found is not None and found not in ends:
                ends.append(found)
        config.eos_token_id = ends[0] if len(ends) == 1 else ends or None
        if config.pad_token_id is None:
            config.pad_token_id = tokenizer.pad_token_id
    unset = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "typical_p": 1.0, "min_p": None}
    if not config.do_sample and any(vars(config).get(name) not in (None, value) for name, value in unset.items()):
        config.do_sample = True  # some published configs set only a temperature, and transformers refuses to save those
    return config


def _allowed(trainer: Trainer, weights: Collection[str]) -> Callable[[str], bool]:
    """Return whether a stored weight may hold what is not finite: one that did as it was built."""
    before = trainer.finite_weights.as_built or {}
    return lambda name: name in before or (bool(before) and name not in weights)  # an export may rename them


def _verify(folder: Path, weights: Mapping[str, Tensor], allowed: Callable[[str], bool]) -> None:
    """Read the written files back and compare names, shapes and values with the model's weights.

    The weights were finite, but the ones that are written may have another precision, or be merged.
    """
    import torch
    from safetensors import safe_open

    stored: set[str] = set()
    numbers = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                tensor = file.get_tensor(name)
                stored.add(name)
                numbers += tensor.numel()
                if not allowed(name) and not _is_finite(tensor, torch):
                    raise CheckpointError(
                        f"{_WHERE}: {name} holds NaN or an infinity in {str(tensor.dtype).removeprefix('torch.')},"
                        " expected finite numbers; the export was discarded; write save_dtype: bf16, whose range is"
                        " that of fp32, or resume from an earlier checkpoint"
                    )
                # some architectures are stored under other names, with their tensors split or joined
                if name in weights and not _equal(tensor, weights[name], torch):
                    raise CheckpointError(
                        f"{_WHERE}: {name} was written with other values or another shape than the model's; expected"
                        f" equal ones; the export was discarded; check the disk of '{folder.parent}'"
                    )
    unique = {tensor.data_ptr(): tensor for tensor in weights.values() if tensor.numel()}
    if numbers != sum(tensor.numel() for tensor in unique.values()):
        lost = ", ".join(sorted(set(weights) - stored)[:3])
        raise CheckpointError(
            f"{_WHERE}: {numbers} numbers were written, expected {sum(t.numel() for t in unique.values())}; missing:"
            f" {lost}; the export was discarded; use 'type: full' and report the model's architecture"
        )


def _is_finite(tensor: Tensor, torch: Any) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    extremes = torch.aminmax(tensor.float() if tensor.element_size() == 1 else tensor)  # NaN where one element is
    return bool(torch.stack(tuple(extremes)).isfinite().all())


def _equal(left: Tensor, right: Tensor, torch: Any) -> bool:
    """Compare two tensors bit by bit, so that a NaN equals itself."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return bool(torch.equal(left.contiguous().view(torch.uint8), right.detach().cpu().contiguous().view(torch.uint8)))
