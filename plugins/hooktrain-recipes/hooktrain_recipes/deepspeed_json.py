"""DeepSpeed's configuration, within a recipe or in a JSON file, with ``auto`` values left to the recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hooktrain import Collector
from hooktrain_recipes.human import human
from hooktrain_recipes.reasons import (
    ACTIVATION_OFFLOAD,
    COMPILE,
    CONTRADICTION,
    FP8,
    MODEL_PARALLEL,
    NVME,
    SCHEDULE,
    SMALL_STATES,
    TRACKER,
    Reason,
)
from hooktrain_recipes.tables import Row, linked

__all__ = ["DEEPSPEED_ROWS", "file_beside", "read_json", "translate_deepspeed", "translate_deepspeed_file"]

Rule = Callable[[Collector, str, str], None]
"""Accounts for one key: the translation, its path in the original, its path in DeepSpeed's configuration."""

_SHIPPED = re.compile(
    r"(?:.*/)?(?:zero|ds_z)(?P<stage>[0-3])(?P<bf16>_bf16)?(?P<offload>_cpuoffload_(?:all|params)|_offload)?"
    r"(?P<compile>_torch_compile)?(?:_config)?\.json"
)
"""The files that Axolotl and LLaMA-Factory bring along, by their names."""
_TO = "strategy.config"
_SIZES = "filled in from the recipe's sizes"
_SHOWN = "shows figures, and changes nothing"
_DATA = Reason("data ordered by DeepSpeed", "remove it; data.group_by_length orders sequences by length")
_COMPRESSION = Reason("training method: sparsity and compression", "remove it")
_NAMES = {"adamw": "adamw", "adam": "adamw", "fusedadam": "adamw", "cpuadam": "cpu_adam", "sgd": "sgd"}
_SCHEDULES = {"warmuplr": "constant", "warmupdecaylr": "linear", "warmupcosinelr": "cosine"}


def _copy(found: Collector, key: str, name: str) -> None:
    found.copy(key, f"{_TO}.{name}", _coerced)


def _coerced(value: Any) -> Any:
    """A value as ArcticTraining reads it, which is as it is for everybody who writes plain numbers."""
    if isinstance(value, str):
        try:
            return human(value)
        except ValueError:
            return value
    return value


def _ignore(reason: str) -> Rule:
    return lambda found, key, name: found.ignored(key, reason)


def _refuse(why: Reason, *off: Any) -> Rule:
    def rule(found: Collector, key: str, name: str) -> None:
        if found.values[key] in (None, False, "auto", *off):
            found.ignored(key, "not used")
        else:
            why.refuse(found, key)

    return rule


def _offload(found: Collector, key: str, name: str) -> None:
    if found.values[key] == "nvme":
        NVME.refuse(found, key)
    else:
        _copy(found, key, name)


def _clipping(found: Collector, key: str, name: str) -> None:
    if found.values[key] == "auto":
        found.ignored(key, _SIZES)
    elif found.has("gradient_clipping"):
        _same_as(found, key, found.recipe["gradient_clipping"], "gradient_clipping")
    else:
        found.copy(key, "gradient_clipping", human)


def _same_as(found: Collector, key: str, ours: Any, to: str) -> None:
    try:
        same = float(human(found.values[key])) == float(ours)
    except (TypeError, ValueError):
        same = False
    if same:
        found.translated(key, to)
    else:
        CONTRADICTION.refuse(found, key, f"the recipe has {ours}")


def _precision(name: str) -> Rule:
    """Rules of the sections bf16 and fp16."""

    def rule(found: Collector, key: str, path: str) -> None:
        value, setting = found.values[key], path.partition(".")[2]
        on = found.get(key.rpartition(".")[0] + ".enabled") is True
        if setting == "enabled":
            if value is True:
                found.set("strategy.dtype", name)
                found.translated(key, "strategy.dtype")
            else:
                found.ignored(key, "the precision is model.dtype" if value == "auto" else "not used")
        elif setting.startswith("bf16_") and value is True and on:
            SMALL_STATES.refuse(found, key)
        elif on and name == "fp16" and value != "auto":
            _copy(found, key, f"fp16.{setting}")
        else:
            found.ignored(key, "not used")

    return rule


def _optimizer(found: Collector, key: str, name: str) -> None:
    value, setting = found.values[key], name.partition(".")[2]
    names = {"params.lr": "lr", "params.betas": "betas", "params.eps": "eps", "params.weight_decay": "weight_decay"}
    if value == "auto":
        found.ignored(key, "filled in from the recipe's optimizer")
    elif setting == "type" and str(value).lower().replace("_", "") in _NAMES:
        if not found.has("optimizer.type"):
            found.set("optimizer.type", _NAMES[str(value).lower().replace("_", "")])
        found.translated(key, "optimizer.type")
    elif setting in names:
        to = f"optimizer.{names[setting]}"
        found.copy(key, to, _coerced)
    elif setting in ("params.torch_adam", "params.adam_w_mode", "params.bias_correction"):
        found.ignored(key, "AdamW with decoupled decay and bias correction")
    else:
        SMALL_STATES.refuse(found, key, f"{value!r}")


def _scheduler(found: Collector, key: str, name: str) -> None:
    value, setting = found.values[key], name.partition(".")[2]
    if value == "auto" or setting in ("params.total_num_steps", "params.last_batch_iteration"):
        found.ignored(key, "filled in from the recipe's scheduler")
    elif setting == "type" and str(value).lower() in _SCHEDULES:
        found.set("scheduler.type", _SCHEDULES[str(value).lower()])
        found.translated(key, "scheduler.type")
    elif setting == "params.warmup_num_steps":
        found.copy(key, "scheduler.warmup_steps", human)
    elif setting == "params.warmup_max_lr":
        found.copy(key, "optimizer.lr", human)
    elif setting == "params.cos_min_ratio":
        found.copy(key, "scheduler.min_lr_ratio", human)
    elif setting in ("params.warmup_min_lr", "params.warmup_min_ratio") and value in (0, 0.0):
        found.ignored(key, "0 is where the rate begins")
    elif setting == "params.warmup_type" and value == "linear":
        found.ignored(key, "the warm-up is linear")
    else:
        SCHEDULE.refuse(found, key, f"{value!r}")


_KEYS: tuple[tuple[str, str, str, Rule], ...] = (
    ("zero_optimization.offload_optimizer.device", f"`{_TO}`", "`nvme` is not supported", _offload),
    ("zero_optimization.offload_param.device", f"`{_TO}`", "`nvme` is not supported", _offload),
    ("zero_optimization", f"`{_TO}.zero_optimization`", "all of it", _copy),
    ("bf16", "`strategy.dtype`", "`enabled: true`; states in bf16 are not supported", _precision("bf16")),
    ("bfloat16", "`strategy.dtype`", "the same", _precision("bf16")),
    ("fp16", "`strategy.dtype`", "`enabled: true`; its other keys go to `strategy.config.fp16`", _precision("fp16")),
    ("gradient_clipping", "`gradient_clipping`", "", _clipping),
    ("optimizer", "`optimizer`", "type and numbers; `auto` is the recipe's", _optimizer),
    ("scheduler", "`scheduler`", "type and numbers; `auto` is the recipe's", _scheduler),
    ("train_batch_size", "", _SIZES, _ignore(_SIZES)),
    ("train_micro_batch_size_per_gpu", "", _SIZES, _ignore(_SIZES)),
    ("gradient_accumulation_steps", "", _SIZES, _ignore(_SIZES)),
    ("sequence_parallel_size", "", "the recipe's is used", _ignore("the recipe's own is used")),
    ("steps_per_print", "", _SHOWN, _ignore(_SHOWN)),
    ("wall_clock_breakdown", "", _SHOWN, _ignore(_SHOWN)),
    ("dump_state", "", _SHOWN, _ignore(_SHOWN)),
    ("flops_profiler", "", _SHOWN, _ignore(_SHOWN)),
    ("comms_logger", "", _SHOWN, _ignore(_SHOWN)),
    ("csv_monitor", "", "metrics are in metrics.jsonl", _ignore("metrics are in metrics.jsonl")),
    ("seq_parallel_communication_data_type", "", "ranks of a sequence exchange in the computation's precision",
     _ignore("ranks of a sequence exchange in the computation's precision")),
    ("tensorboard", "", TRACKER.reason, _refuse(TRACKER)),
    ("wandb", "", TRACKER.reason, _refuse(TRACKER)),
    ("activation_checkpointing", "", ACTIVATION_OFFLOAD.reason, _refuse(ACTIVATION_OFFLOAD, 0, 1)),
    ("tensor_parallel", "", MODEL_PARALLEL.reason, _refuse(MODEL_PARALLEL, 0, 1)),
    ("pipeline", "", MODEL_PARALLEL.reason, _refuse(MODEL_PARALLEL, 0, 1)),
    ("fp8", "", FP8.reason, _refuse(FP8)),
    ("data_efficiency", "", _DATA.reason, _refuse(_DATA)),
    ("curriculum_learning", "", _DATA.reason, _refuse(_DATA)),
    ("compression_training", "", _COMPRESSION.reason, _refuse(_COMPRESSION)),
    ("sparse_attention", "", _COMPRESSION.reason, _refuse(_COMPRESSION)),
)  # fmt: skip
_REFUSED = {each.reason for each in (TRACKER, ACTIVATION_OFFLOAD, MODEL_PARALLEL, FP8, _DATA, _COMPRESSION)}
_OFF = ("activation_checkpointing", "tensorboard", "wandb", "fp8", "data_efficiency", "curriculum_learning")
"""Sections whose keys count only where they ask for something."""

DEEPSPEED_ROWS: tuple[Row, ...] = tuple(
    Row(
        key=f"deepspeed.{name}",
        ours=ours,
        about=about,
        kind="translated" if ours else "unsupported" if about in _REFUSED else "ignored",
    )
    for name, ours, about, _ in _KEYS
)


def translate_deepspeed(found: Collector, key: str) -> None:
    """Account for DeepSpeed's configuration under a key."""
    if not isinstance(found.values[key], Mapping):
        if found.values[key] not in (None, ""):
            found.unsupported(key, f"given {found.values[key]!r:.60}, expected a mapping", "write DeepSpeed's keys")
        else:
            found.ignored(key, "null is none")
        return
    if not found.values[key]:
        found.ignored(key, "empty: DeepSpeed's own defaults")
    for leaf in [each for each in found.leaves if each.startswith(f"{key}.")]:
        name = leaf.removeprefix(f"{key}.").partition("[")[0]  # a list is one value
        path = f"{key}.{name}"
        if found.accounted(path):
            continue
        if found.values[path] is None or found.values[path] == {}:
            found.ignored(path, "null is the default")
            continue
        rule = next((rule for start, _, _, rule in _KEYS if name == start or name.startswith(f"{start}.")), _copy)
        off = name.partition(".")[0]
        if off in _OFF and f"{key}.{off}.enabled" in found and found.values[f"{key}.{off}.enabled"] is not True:
            found.ignored(path, "not used")
        else:
            rule(found, path, name)


def translate_deepspeed_file(found: Collector, key: str, folder: Path) -> None:
    """Account for a key that holds the path of a JSON file with DeepSpeed's configuration, or the configuration."""
    given = found.values[key]
    if not isinstance(given, str) or not given:
        translate_deepspeed(found, key)
        return
    known = _SHIPPED.fullmatch(given)
    if known and known["compile"] and known["stage"] == "3":
        COMPILE.refuse(found, key, "with ZeRO 3, which gathers weights within graphs")
        return
    there = any(_is_file(path) for path in _places(given, folder))
    held = _content(known) if known and not there else read_json(found, key, given, folder)
    if held is not None:
        linked(found, key, held, translate_deepspeed)
    if known and known["compile"] and not there:
        found.set("model.compile", True)
        found.translated(key, "model.compile")


def _content(shipped: re.Match[str]) -> dict[str, Any]:
    """What a file says that a program brings along, except for what changes no number."""
    zero: dict[str, Any] = {"stage": int(shipped["stage"]), "contiguous_gradients": True}
    offload = shipped["offload"] or ""
    if offload.endswith(("all", "offload")):
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload and zero["stage"] == 3:
        zero["offload_param"] = {"device": "cpu"}
    made: dict[str, Any] = {"zero_optimization": zero, "gradient_clipping": "auto"}
    return {**made, "bf16": {"enabled": True}} if shipped["bf16"] else made


def read_json(found: Collector, key: str, name: str, folder: Path) -> Mapping[str, Any] | None:
    """The mapping in a JSON file that a recipe names, looked for beside the recipe and in the folders above it."""
    path = file_beside(found, key, name, folder)
    if path is None:
        return None
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        found.unsupported(key, f"the file '{name}' cannot be read ({problem})", "correct the file")
        return None
    if not isinstance(held, dict):
        found.unsupported(key, f"the file '{name}' holds no mapping", "correct the file")
        return None
    return held


def file_beside(found: Collector, key: str, name: Any, folder: Path) -> Path | None:
    """The file that a recipe names, looked for from here, beside the recipe and in the folders above it."""
    if isinstance(name, str) and name:
        for path in _places(name, folder):
            if _is_file(path):
                return path
    found.unsupported(key, f"the file {name!r:.80} is not there", "give the path of a file, from the recipe's folder")
    return None


def _places(name: str, folder: Path) -> list[Path]:
    return [Path(name).expanduser(), *(place / name for place in (folder, *folder.parents))]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a null character
        return False
