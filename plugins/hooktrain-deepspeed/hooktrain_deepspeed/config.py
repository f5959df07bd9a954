"""Configuration of the ``deepspeed`` strategy, and the configuration of DeepSpeed that follows from it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs

from hooktrain import (
    Complaint,
    ConfigDefaults,
    HooktrainError,
    Recipe,
    RecipeError,
    Seconds,
    World,
    at_least,
    field,
    member,
    one_of,
)

__all__ = ["DeepSpeedConfig", "assemble", "bucket_size", "complaints_about"]

_WHERE = "strategy.config"
_BUCKET = 500_000_000
"""Numbers in a bucket of gradients where DeepSpeed's configuration does not set them."""
_PARTS = {"optimizer": "optimizer", "scheduler": "scheduler", "checkpoint": "checkpoint"}
_IGNORED = {
    "data_efficiency": "the data are prepared and ordered by the recipe's data",
    "curriculum_learning": "the data are prepared and ordered by the recipe's data",
    "sequence_parallel_size": "write strategy.sequence_parallel",
}


def _stage(instance: Any, attribute: Any, value: int | None) -> None:
    if value is not None and value not in (0, 1, 2, 3):
        raise ValueError(f"given {value}, expected 0, 1, 2 or 3")


@attrs.frozen(kw_only=True)
class DeepSpeedConfig:
    """DeepSpeed's engine: weights, gradients and optimizer sharded over ranks by ZeRO."""

    keeps_packed_weights: ClassVar[bool] = False

    zero_stage: int | None = field(default=None, validator=_stage)
    """What is sharded over ranks: 0 nothing, 1 the optimizer, 2 gradients too, 3 weights too; 2 when neither this nor
    ``config`` sets it."""
    offload: Literal["none", "optimizer", "all"] | None = field(default=None)
    """What is kept in the processor's memory instead of the GPU's: ``optimizer``, or with stage 3 ``all``, the weights
    too."""
    dtype: str = field(
        default="auto", validator=one_of("auto", "fp32", "bf16", "fp16"), inherit="model.dtype", affects_training=True
    )
    """Precision of the computation. With stages 1 to 3 the weights are kept in it and updated in float32; with stage 0
    they stay in float32. ``auto`` is bf16 on a GPU that has it and fp32 elsewhere."""
    device: str = field(default="auto")
    """``cuda`` or ``cpu``; ``auto`` takes a GPU where there is one."""
    config: Mapping[str, Any] | Path | None = field(default=None)
    """DeepSpeed's own configuration, or the path of a JSON file with it. What the recipe sets too is filled in; the two
    may not differ."""
    sequence_parallel: int = field(default=1, validator=at_least(1))
    """How many ranks share the tokens of each sequence, each computing a part of it and some of the attention's heads;
    for sequences that are too long for one rank."""
    timeout: Seconds = field(default=1800.0, validator=at_least(1))
    """Seconds that a rank waits for the others before the run ends. Set more than the longest work that one rank does
    alone takes."""

    @property
    def shards_weights(self) -> bool:
        """Whether a rank holds only its shards of the weights, as far as the recipe itself tells."""
        zero = self.config.get("zero_optimization") if isinstance(self.config, Mapping) else None
        return 3 in (self.zero_stage, zero.get("stage") if isinstance(zero, Mapping) else None)

    @property
    def gathers_by_module(self) -> bool:
        """Whether weights are gathered for each module, as with stage 3."""
        return self.shards_weights


def assemble(config: DeepSpeedConfig, recipe: Recipe, world: World, dtype: str) -> dict[str, Any]:
    """Assemble the configuration for ``deepspeed.initialize``.

    Args:
        config: the recipe's ``strategy``.
        recipe: the complete recipe, for sizes and the limit of the gradient norm.
        world: how many ranks there are.
        dtype: ``fp32``, ``bf16`` or ``fp16``.

    Raises:
        RecipeError: when ``strategy.config`` contradicts the recipe, or is a file that cannot be read.
    """
    made = _config_of(config.config)
    complaints = list(_fill(made, config, recipe, world, dtype))
    if complaints:
        raise RecipeError(complaints)
    return made


def bucket_size(settings: Mapping[str, Any], trainable: int) -> int:
    """Return the numbers in a bucket of gradients: as configured, or DeepSpeed's default for models that are larger.

    DeepSpeed allocates one bucket or two before the first step, which by its default takes gigabytes even for the
    smallest model.
    """
    size = settings["zero_optimization"].get("reduce_bucket_size", "auto")
    return min(_BUCKET, max(trainable, 1)) if size == "auto" else int(size)


def complaints_about(config: DeepSpeedConfig, recipe: Recipe, world: World) -> list[Complaint]:
    """Return the complaints about a recipe's ``strategy``, without opening files."""
    found: list[Complaint] = []
    if not member(recipe.optimizer, ConfigDefaults, "plain_states") and not config.shards_weights:
        found.append(
            Complaint(
                "optimizer.type",
                "given an optimizer with small states, whose states ZeRO cannot divide over ranks; write adamw, with"
                " strategy.offload: optimizer where its states are too large, or strategy.type: torch",
            )
        )
    if isinstance(config.config, Path):
        return found
    dtype = "bf16" if config.dtype == "auto" else config.dtype
    made = _config_of(config.config)
    found += _fill(made, config, recipe, world, dtype, sure=config.dtype != "auto")
    return [*found, *_require_elements(made, recipe)]


def _require_elements(made: Mapping[str, Any], recipe: Recipe) -> Iterator[Complaint]:
    """Refuse optimizers that ZeRO, which flattens weights and divides them anywhere, cannot have."""
    zero = made.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage and member(recipe.optimizer, ConfigDefaults, "needs_matrices"):
        yield Complaint(
            "optimizer",
            f"uses muon, which updates matrices, and ZeRO stage {stage} flattens weights; write zero_stage: 0, or"
            " strategy: torch, with data_parallel: fsdp2 to shard weights",
        )


def _config_of(config: Mapping[str, Any] | Path | None) -> dict[str, Any]:
    if not isinstance(config, Path):
        return copy.deepcopy(dict(config or {}))
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise HooktrainError(
            f"{_WHERE}: given '{config}', which cannot be read ({problem}); expected a JSON file with a DeepSpeed"
            " configuration"
        ) from problem
    if not isinstance(found, dict):
        raise HooktrainError(f"{_WHERE}: '{config}' holds a {type(found).__name__}, expected a JSON object")
    return found


def _fill(
    made: dict[str, Any], config: DeepSpeedConfig, recipe: Recipe, world: World, dtype: str, sure: bool = True
) -> Iterator[Complaint]:
    """Fill in what the recipe sets; yield where the two differ."""
    for name, part in _PARTS.items():
        if name in made and name != "checkpoint":
            yield Complaint(f"{_WHERE}.{name}", f"is chosen by the recipe; remove it, and write {part} in the recipe")
    for name, instead in _IGNORED.items():
        if name in made:
            yield Complaint(f"{_WHERE}.{name}", f"has no effect here: {instead}; remove it")
    zero = made.setdefault("zero_optimization", {})
    if not isinstance(zero, dict):
        yield Complaint(f"{_WHERE}.zero_optimization", f"given {zero!r}, expected a mapping")
        return
    if zero.get("stage", "auto") == "auto":
        zero["stage"] = 2 if config.zero_stage is None else config.zero_stage
    elif config.zero_stage not in (None, zero["stage"]):
        yield _conflict(f"{_WHERE}.zero_optimization.stage", zero["stage"], "strategy.zero_stage", config.zero_stage)
    stage = zero["stage"]
    if stage not in (0, 1, 2, 3):
        yield Complaint(f"{_WHERE}.zero_optimization.stage", f"given {stage!r}, expected 0, 1, 2 or 3")
        return
    sizes = {
        "train_micro_batch_size_per_gpu": (recipe.micro_batch_size, "micro_batch_size"),
        "gradient_accumulation_steps": (recipe.gradient_accumulation_steps, "gradient_accumulation_steps"),
        "train_batch_size": (
            recipe.micro_batch_size * recipe.gradient_accumulation_steps * world.world_size,
            "micro_batch_size * gradient_accumulation_steps * ranks",
        ),
        "gradient_clipping": (recipe.gradient_clipping, "gradient_clipping"),
    }
    for name, (value, setting) in sizes.items():
        if made.get(name, "auto") == "auto":
            made[name] = value
        elif made[name] != value:
            yield _conflict(f"{_WHERE}.{name}", made[name], setting, value)
    yield from _fill_dtype(made, dtype, stage, sure)
    for name in ("offload_optimizer", "offload_param"):
        section = zero.get(name)
        if section is None:
            zero.pop(name, None)
        elif not isinstance(section, dict):
            del zero[name]
            where = f"{_WHERE}.zero_optimization.{name}"
            yield Complaint(where, f"given {section!r}, expected a mapping, such as {{device: cpu}}")
    yield from _fill_offload(zero, config.offload, stage)
    for name in ("reduce_bucket_size", "stage3_max_live_parameters"):
        count = zero.get(name, "auto")
        if count != "auto" and (isinstance(count, bool) or not isinstance(count, (int, float)) or count < 0):
            yield Complaint(f"{_WHERE}.zero_optimization.{name}", f"given {count!r}, expected a count or auto")
    if zero.get("reduce_bucket_size") == "auto":
        del zero["reduce_bucket_size"]  # filled in when the model is there
    made.setdefault("zero_allow_untested_optimizer", True)
    made.setdefault("zero_force_ds_cpu_optimizer", False)
    if stage == 3:
        # gradients of tied and rarely used weights come in another order from step to step
        zero.setdefault("stage3_gather_16bit_weights_on_model_save", False)


def _fill_dtype(made: dict[str, Any], dtype: str, stage: int, sure: bool) -> Iterator[Complaint]:
    names = {"bf16": "bfloat16", "fp16": "float16"}
    for name in names:
        section = made.get(name, {})
        enabled = section.get("enabled", "auto") if isinstance(section, dict) else section
        if enabled != "auto" and sure and bool(enabled) != (name == dtype and stage > 0):
            if stage == 0 and enabled:
                yield Complaint(
                    f"{_WHERE}.{name}", f"is not used with stage 0, where model.dtype: {name} computes in it; remove it"
                )
            else:
                yield _conflict(f"{_WHERE}.{name}.enabled", enabled, "model.dtype", dtype)
    if dtype in names and stage > 0:
        made[dtype] = {**made.get(dtype, {}), "enabled": True}
    elif dtype in names:
        made.setdefault("torch_autocast", {"enabled": True, "dtype": names[dtype]})


def _fill_offload(zero: dict[str, Any], offload: str | None, stage: int) -> Iterator[Complaint]:
    for name in ("offload_optimizer", "offload_param"):
        if isinstance(zero.get(name), dict) and zero[name].get("device") == "nvme":
            where = f"{_WHERE}.zero_optimization.{name}.device"
            yield Complaint(where, "given nvme, which is not supported yet, expected cpu or none")
    if offload is None:
        return
    wanted = {"none": (), "optimizer": ("offload_optimizer",), "all": ("offload_optimizer", "offload_param")}[offload]
    if offload == "all" and stage != 3:
        yield Complaint("strategy.offload", f"given all with stage {stage}, expected stage 3 for the weights")
    if offload == "optimizer" and stage == 0:
        yield Complaint("strategy.offload", "given optimizer with stage 0, expected stage 1, 2 or 3")
    for name in ("offload_optimizer", "offload_param"):
        there = zero.get(name, {}).get("device", "none")
        if name in wanted and there == "none":
            zero[name] = {**zero.get(name, {}), "device": "cpu"}
        elif name not in wanted and there != "none":
            yield _conflict(f"{_WHERE}.zero_optimization.{name}", there, "strategy.offload", offload)


def _conflict(where: str, found: Any, setting: str, value: Any) -> Complaint:
    return Complaint(where, f"given {found}, but {setting} is {value}; write it in one of the two places")
