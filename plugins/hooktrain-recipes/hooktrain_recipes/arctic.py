"""The dialect ``arctic``: recipes of ArcticTraining, whose keys were the model of hooktrain's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from hooktrain import Collector, Translation
from hooktrain_recipes.arctic_preferences import REFERENCE_ROWS, set_pairs_of
from hooktrain_recipes.arctic_sources import SOURCE_ROWS, translate_sources
from hooktrain_recipes.block_settings import set_block_settings
from hooktrain_recipes.deepspeed_json import DEEPSPEED_ROWS, translate_deepspeed
from hooktrain_recipes.human import human, human_whole, mapping_of, plain_mapping, positive_whole
from hooktrain_recipes.kinds import refuse_unknown
from hooktrain_recipes.preferences import set_loss
from hooktrain_recipes.reasons import (
    CONTRADICTION,
    LIMITS,
    MODEL_PARALLEL,
    OWN_CODE,
    method,
)
from hooktrain_recipes.schedules import ScheduleKeys, set_schedule
from hooktrain_recipes.tables import Row, apply, at, by, ignored, moved, sections
from hooktrain_recipes.trackers import add_tracker
from hooktrain_recipes.values import flag, share, text

__all__ = ["ROWS", "dialect"]

PROGRAM = "ArcticTraining"
_DEFAULT = f"the default of {PROGRAM}"
_TYPES = ("sft", "causal")
_BUILT_IN = (*_TYPES, "dpo")
_CUSTOM_FILE = "train.py"
"""What ArcticTraining runs from the recipe's folder where ``code`` names nothing."""
_PADDING = "padding carries no loss; a batch is padded to its longest sequence"
_ONLY_PACKED = "packing is off, so that it has no effect there either"
_MOE = {"fused_adam_moe": "fused_adam", "cpu_adam_moe": "cpu_adam"}


def _type(found: Collector, key: str) -> None:
    given = found.values[key]
    if given in _TYPES:
        found.set("type", given)
        found.translated(key, "type")
    elif given == "dpo":
        set_loss(found, key, "dpo")
    else:
        OWN_CODE.refuse(found, key, f"the trainer type {given!r}")


def _named_part(known: tuple[str, ...], to: str, default: str = "") -> Any:
    """A rule for the ``type`` of a part; one that ArcticTraining does not come with is code of the recipe's own."""

    def rule(found: Collector, key: str) -> None:
        given = found.values[key]
        if given in ("", None, default):
            found.ignored(key, f"`{default}` is the default" if given else "empty is the default")
        elif given in known:
            found.copy(key, at(to, key))
        else:
            OWN_CODE.refuse(found, key, f"{key.rpartition('.')[0]} of type {given!r}")

    return rule


def _optimizer_type(found: Collector, key: str) -> None:
    given = found.values[key]
    if given in _MOE:
        found.set("optimizer.type", _MOE[given])
        found.translated(key, "optimizer.type")
    else:
        _named_part(("fused_adam", "cpu_adam"), "optimizer.type")(found, key)


def _checkpointing(found: Collector, key: str) -> None:
    found.copy(key, "model.activation_checkpointing", lambda value: not flag(value))


def _steps(to: str) -> Any:
    """A rule for a count of steps of which 0 is none."""

    def rule(found: Collector, key: str) -> None:
        if found.values[key] in (0, "0"):
            found.ignored(key, "0 is none, which is the default")
        else:
            found.copy(key, at(to, key), positive_whole)

    return rule


def _log_interval(found: Collector, key: str) -> None:
    if found.values[key] in (0, "0"):
        found.ignored(key, "the loss is always logged; log_interval says how often")
    else:
        found.copy(key, "log_interval", positive_whole)


def _moe(found: Collector, key: str) -> None:
    if found.get("expert_parallel_size", 1) in (1, None) or not found.values[key]:
        found.ignored(key, "experts on one rank are computed by the model's own layers, with the same result")
    else:
        MODEL_PARALLEL.refuse(found, key)


def _packed(row_rule: Any) -> Any:
    """A rule that counts where sequences are packed."""

    def rule(found: Collector, key: str) -> None:
        if found.get("data.pack_samples") is not True:
            found.ignored(key, _ONLY_PACKED)
        else:
            row_rule(found, key)

    return rule


def _filter(found: Collector, key: str) -> None:
    found.copy(key, "data.overflow", lambda given: "drop" if flag(given) else "error")


def _peft(found: Collector, key: str) -> None:
    given = found.values[key]
    if not isinstance(given, Mapping):
        found.unsupported(key, "expected a mapping with peft_type", "write {peft_type: Lora, r: 8}")
        return
    names = {"peft_type": "type", "lora_alpha": "alpha", "lora_dropout": "dropout"}
    own = {"r", "target_modules", "exclude_modules", "modules_to_save", "use_rslora", "use_dora", "init_lora_weights"}
    for name, value in given.items():
        path = f"{key}.{name}"
        if value is None or name in ("task_type", "inference_mode"):
            found.ignored(path, "set by the run" if value is not None else "null is the default")
        elif name == "peft_type":
            found.copy(path, "peft.type", lambda kind: text(kind).lower().replace("_", ""))
        elif name in names or name in own:
            found.copy(path, f"peft.{names.get(name, name)}")
        else:
            found.copy(path, f"peft.config.{name}")
    if str(given.get("peft_type", "")).lower() == "lora":
        found.default("peft.r", 8, "the default of PEFT")
        found.default("peft.alpha", 8, "the default of PEFT")
    if not given:
        found.ignored(key, "empty is none")


def _wandb(found: Collector, key: str) -> None:
    given = found.values[key]
    if isinstance(given, Mapping) and given.get("enable") is True:
        names = ("project", "entity", "name")
        add_tracker(found, [f"{key}.enable"], "wandb", {f"{key}.{name}": name for name in names})
    found.ignored(key, "not enabled")


def _tokenizer_arguments(found: Collector, key: str) -> None:
    given = mapping_of(found, key)
    if given is None:
        return
    if not given:
        found.ignored(key, "none, which is the default")
    for name, value in given.items():
        if (name, value) in (("add_special_tokens", False), ("verbose", False), ("return_attention_mask", False)):
            found.ignored(f"{key}.{name}", "is so here")
        else:
            OWN_CODE.refuse(found, f"{key}.{name}", "an argument of the tokenizer's call")


def _dtype(value: Any) -> str:
    names = {"fp16": "fp16 float16 half", "fp32": "fp32 float32 float", "bf16": "bf16 bfloat16 bfloat"}
    for ours, theirs in names.items():
        if isinstance(value, str) and value.removeprefix("torch.") in theirs.split():
            return ours
    raise ValueError(f"given {value!r}, expected bf16, fp16 or fp32")


ROWS: tuple[Row, ...] = (
    by("type", _type, "`type`, `loss.type`", "`sft`, `causal`; `dpo` is `preference`; others are code of its own"),
    by("code", lambda found, key: OWN_CODE.refuse(found, key, str(found.values[key])), kind="unsupported",
       about="code of its own, as is a `train.py` beside the recipe; hooktrain never runs it"),
    moved("skip_validation", "skip_validation", flag),
    moved("micro_batch_size", "micro_batch_size", positive_whole),
    moved("gradient_accumulation_steps", "gradient_accumulation_steps", positive_whole,
          about="ArcticTraining's schedule then counts micro-batches, hooktrain's counts optimizer steps"),
    moved("epochs", "epochs", positive_whole, about="1 in ArcticTraining, also beside `train_iters`"),
    by("train_iters", _steps("train_iters"), "`train_iters`"),
    by("exit_iteration", _steps("exit_iteration"), "`exit_iteration`"),
    by("exit_iteration_this_run", _steps("exit_iteration_this_run"), "`exit_iteration_this_run`"),
    by("min_iterations", _steps("min_iterations"), "`min_iterations`"),
    moved("seed", "seed", human_whole),
    by("eval_interval", _steps("eval_interval"), "`eval_interval`"),
    by("loss_log_interval", _log_interval, "`log_interval`"),
    ignored("train_log_iter_interval", "metrics are written with each log line, see log_interval"),
    ignored("train_log_metrics_path", "metrics are in metrics.jsonl in run_dir"),
    ignored("eval_log_iter_interval", "every evaluation is logged"),
    moved("sequence_parallel_size", "strategy.sequence_parallel", positive_whole),
    MODEL_PARALLEL.row("expert_parallel_size", off=(None, 0, 1)),
    by("arctic_moe", _moe, about="no effect on one rank; with `expert_parallel_size` not supported", kind="ignored"),
    ignored("enable_arctic_moe_custom_optimization", "kernels that compute the same"),
    method("routing replay").row("enable_routing_replay"),
    Row(key="activation_checkpoint_cpu_offload", ours="`model.activation_offload`"),
    Row(key="tiled_mlp_compute", ours="`model.tiled_mlp`", about="not with ZeRO 3"),
    LIMITS.row("overfit_first_batch"),
    ignored("mem_profiler", "does not change the training; `hooktrain train --profile-hooks` shows memory"),
    ignored("mem_profiler_dir", "belongs to mem_profiler"),
    ignored("mem_profiler_max_entries", "belongs to mem_profiler"),
    ignored("kill_switch_path", "SIGTERM and SIGUSR1 stop and save a run (guide signals-and-exit-statuses)"),
    by("deepspeed", translate_deepspeed, "`strategy.config`", "the rows below; `auto` and sizes are filled in"),
    *DEEPSPEED_ROWS,
    *(ignored(f"logger.{name}", reason) for name, reason in (
        ("output_dir", "no file is written for each rank; metrics and the recipe are in run_dir"),
        ("level", "messages are few, and errors and warnings are always shown"),
        ("print_output_ranks", "rank 0 prints, and the rank that fails"),
        ("file_output_ranks", "no file is written for each rank"))),
    by("wandb", _wandb, "`trackers`", "with `enable: true`, its `project`, `entity` and `name`"),
    # ------------------------------------------------------------------------------------------------- model
    by("model.type", _named_part(("liger",), "model.type", "huggingface"), "`model.type`"),
    moved("model.name_or_path", "model.name_or_path", text),
    moved("model.dtype", "model.dtype", _dtype, about="bf16 in ArcticTraining"),
    ignored("model.save_name", "a checkpoint's folder is its output_dir"),
    moved("model.attn_implementation", "model.attn_implementation", text, about="sdpa in ArcticTraining"),
    by("model.disable_activation_checkpoint", _checkpointing, "`model.activation_checkpointing`", "the opposite"),
    by("model.peft_config", _peft, "`peft`", "`lora_alpha` is `alpha`, and so on; unusual keys go under `peft.config`"),
    moved("model.hf_config_kwargs", "model.hf_config_kwargs", plain_mapping),
    # --------------------------------------------------------------------------------------------- tokenizer
    by("tokenizer.type", _named_part((), "tokenizer.type", "huggingface"), about="`huggingface` is the default",
       kind="ignored"),
    by("tokenizer.name_or_path", lambda found, key: found.copy(key, key, text) if found.values[key] != ""
       else found.ignored(key, "empty is the model's"), "`tokenizer.name_or_path`"),
    by("tokenizer.tokenize_kwargs", _tokenizer_arguments, about="arguments of its call", kind="unsupported"),
    # -------------------------------------------------------------------------------------------------- data
    by("data.type", _named_part(("sft", "causal"), "data.type"), "`data.type`"),
    *SOURCE_ROWS,
    moved("data.train_eval_split", "data.train_eval_split", lambda value: [share(each) for each in value]),
    moved("data.max_length", "data.max_length", positive_whole, about="the model's own limit in ArcticTraining"),
    moved("data.num_proc", "data.num_proc", positive_whole),
    moved("data.dl_num_workers", "data.workers", human_whole),
    moved("data.seed", "data.seed", human_whole),
    moved("data.use_data_cache", "data.use_data_cache", flag),
    ignored("data.cache_processed_data", "prepared data is cached, see data.use_data_cache"),
    moved("data.cache_dir", "data.cache_dir", text),
    ignored("data.cache_fs_type", "one rank prepares, the others wait; shared and local disks both work"),
    ignored("data.fail_on_missing_cache", "what the cache does not hold is prepared"),
    moved("data.mask_inputs", "data.mask_inputs", flag),
    ignored("data.div_length", _PADDING),
    ignored("data.pad_to", _PADDING),
    moved("data.pack_samples", "data.pack_samples", flag),
    by("data.filter_samples", _filter, "`data.overflow`", "true is `drop`; false is `error`"),
    by("data.always_max_length", _packed(lambda found, key: found.ignored(
        key, "packs hold as many whole documents as fit in max_length")),
       about="packs hold as many whole documents as fit", kind="ignored"),
    ignored("data.drop_last", "the last pack is trained too; tokens count alike, so that a short one weighs less"),
    by("data.fuse_positions_prob", _packed(lambda found, key: found.ignored(key, "0 is off")
       if found.values[key] in (0, None) else method("fused positions of packed documents").refuse(found, key)),
       about="training method: documents that see each other, as none does at inference", kind="unsupported"),
    ignored("data.repeat_to_pack_max_length", "repeats data only where all of it is shorter than one pack"),
    moved("data.ignore_empty_think", "data.mask_empty_reasoning", flag),
    # ------------------------------------------------------------------------------ optimizer and scheduler
    by("optimizer.type", _optimizer_type, "`optimizer.type`"),
    moved("optimizer.lr", "optimizer.lr", human, about="5e-4 in ArcticTraining"),
    moved("optimizer.learning_rate", "optimizer.lr", human),
    moved("optimizer.weight_decay", "optimizer.weight_decay", human),
    moved("optimizer.betas", "optimizer.betas", lambda value: [share(each) for each in value]),
    by("scheduler.type", _named_part((), "scheduler.type", "huggingface"), about="`name` chooses the schedule",
       kind="ignored"),
    Row(key="scheduler.name", ours="`scheduler.type`", about="linear in ArcticTraining"),
    Row(key="scheduler.warmup_ratio", ours="`scheduler.warmup_ratio`", about="0.1 in ArcticTraining"),
    Row(key="scheduler.scheduler_specific_kwargs", ours="`scheduler.min_lr_ratio`, ..."),
    # -------------------------------------------------------------------------------------------- checkpoint
    by("checkpoint[].type", _named_part(("deepspeed", "huggingface"), "checkpoint[].type"), "`checkpoint[].type`"),
    moved("checkpoint[].output_dir", "checkpoint[].output_dir", text),
    moved("checkpoint[].enabled", "checkpoint[].enabled", flag),
    moved("checkpoint[].auto_resume", "checkpoint[].auto_resume", flag),
    by("checkpoint[].save_every_n_steps", _steps("checkpoint[].save_every_n_steps"),
       "`checkpoint[].save_every_n_steps`"),
    by("checkpoint[].save_every_n_epochs", _steps("checkpoint[].save_every_n_epochs"),
       "`checkpoint[].save_every_n_epochs`"),
    moved("checkpoint[].save_end_of_training", "checkpoint[].save_end_of_training", flag),
    # --------------------------------------------------------------------------------------------------- dpo
    *REFERENCE_ROWS,
)  # fmt: skip

_OURS = frozenset(row.key for row in ROWS if row.ours == f"`{row.key}`")
"""Keys that have the same name in a hooktrain recipe."""
_NATIVE = frozenset(
    {
        *("data.dl_num_workers", "loss_log_interval", "train_log_iter_interval", "optimizer.learning_rate"),
        *("sequence_parallel_size", "scheduler.name", "model.disable_activation_checkpoint", "optimizer.lr"),
        *("optimizer.type", "model.type", "tokenizer.type", "scheduler.type", "scheduler.warmup_ratio", "data.type"),
    }
)
"""Keys that hooktrain takes under ArcticTraining's name."""
_MARKS = frozenset(
    row.key
    for row in ROWS
    if "[]" not in row.key
    and (row not in REFERENCE_ROWS or row.key == "ref_model")
    and not row.key.startswith(("deepspeed", "type", "code", *_OURS, *_NATIVE))
)
"""Keys that are ArcticTraining's alone."""


@attrs.frozen
class _Dialect:
    name: str = "arctic"
    summary: str = PROGRAM

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        """Whether a recipe has model and data as ArcticTraining has them, and a key that only ArcticTraining has."""
        model, data = raw.get("model"), raw.get("data")
        if not (isinstance(model, Mapping) and "name_or_path" in model and isinstance(data, Mapping)):
            return False
        if not isinstance(data.get("sources"), list):
            return False
        found = Collector(raw, PROGRAM)
        types = [found.get(key) for key in found.values if key.startswith("data.") and key.endswith("].type")]
        return "snowflake" in types or any(key in found for key in _MARKS)

    def translate(self, raw: Mapping[str, Any], folder: Path) -> Translation:
        """Translate a recipe; what it names as code is looked at by nobody."""
        data = raw.get("data")
        if "model" not in raw and not (isinstance(data, Mapping) and "sources" in data):
            keys = ", ".join(map(str, list(raw)[:5]))
            return Translation(not_a_recipe=f"it has neither model nor data.sources, but {keys or 'nothing'}")
        found = Collector(raw, PROGRAM)
        rows = ROWS
        if isinstance(raw.get("checkpoint"), Mapping):  # one alone
            rows = tuple(attrs.evolve(row, key=row.key.replace("checkpoint[]", "checkpoint")) for row in ROWS)
        kind = raw.get("type", "sft")
        if "code" not in raw and (folder / _CUSTOM_FILE).is_file():
            OWN_CODE.refuse(found, "code", f"{_CUSTOM_FILE} beside the recipe, which ArcticTraining runs")
        _contradictions(found)
        apply(found, rows)
        translate_sources(found, str(kind))
        found.default("optimizer.lr", 5e-4, _DEFAULT)
        _schedule(found)
        sections(found, rows)
        if kind not in _BUILT_IN or "code" in raw:  # keys of a trainer type that only its code knows
            for key in found.unaccounted():
                OWN_CODE.refuse(found, key)
        _defaults(found, str(kind))
        set_block_settings(found, offload=("activation_checkpoint_cpu_offload",), tiled=("tiled_mlp_compute",))
        refuse_unknown(found, ROWS)
        return found.translation()


def _contradictions(found: Collector) -> None:
    if "optimizer.lr" in found and "optimizer.learning_rate" in found:
        CONTRADICTION.refuse(found, "optimizer.learning_rate", "optimizer.lr")
    if found.get("data.eval_sources") and found.get("data.train_eval_split", [1.0, 0.0]) not in ([1.0, 0.0], [1, 0]):
        CONTRADICTION.refuse(found, "data.train_eval_split", "data.eval_sources")
    for key in [key for key in found.values if key.endswith("].sample_ratio")]:
        other = key.replace("sample_ratio", "sample_count")
        if found.get(key) is not None and found.get(other) is not None:
            CONTRADICTION.refuse(found, key, other)


def _schedule(found: Collector) -> None:
    keys = ScheduleKeys(
        name="scheduler.name",
        arguments="scheduler.scheduler_specific_kwargs",
        steps="",
        ratio="",
        rate="optimizer.learning_rate" if "optimizer.learning_rate" in found else "optimizer.lr",
    )
    if found.get(keys.name) == "constant":
        if "scheduler.warmup_ratio" in found:
            found.ignored("scheduler.warmup_ratio", "`constant` has no warm-up there")
    else:
        found.copy("scheduler.warmup_ratio", "scheduler.warmup_ratio", lambda value: share(human(value)))
        found.default("scheduler.warmup_ratio", 0.1, _DEFAULT)
    set_schedule(found, keys, "linear", PROGRAM)


def _defaults(found: Collector, kind: str) -> None:
    """Set what ArcticTraining does where a recipe is silent, and hooktrain does not."""
    found.default("model.dtype", "bf16", _DEFAULT)
    found.default("model.attn_implementation", "sdpa", _DEFAULT)
    found.default("model.activation_checkpointing", True, _DEFAULT)
    if found.has("train_iters"):
        found.default("epochs", 1, _DEFAULT)
    if found.get("seed", 42) != 42:
        found.default("data.seed", 42, _DEFAULT)
    if kind == "sft":
        found.default("data.overflow", "drop", "ArcticTraining drops what is longer than max_length")
    elif kind == "dpo":
        set_pairs_of(found)
    found.default("strategy.type", "deepspeed", "ArcticTraining runs DeepSpeed's engine")
    if not found.has("strategy.config.zero_optimization.stage"):
        found.default("strategy.zero_stage", 0, "the default of DeepSpeed")
    for place, entry in enumerate(found.recipe.get("checkpoint", [])):
        if "type" not in entry:
            found.default(f"checkpoint[{place}].type", "deepspeed", _DEFAULT)


def dialect() -> _Dialect:
    """The dialect."""
    return _Dialect()
