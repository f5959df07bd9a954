"""The dialect ``axolotl``: recipes of Axolotl."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from hooktrain import Collector, Translation
from hooktrain_recipes.axolotl_data import held_out, set_data
from hooktrain_recipes.axolotl_model import set_adapter, set_model
from hooktrain_recipes.axolotl_preferences import set_method, set_reward
from hooktrain_recipes.axolotl_rows import ROWS
from hooktrain_recipes.axolotl_strategy import set_strategy
from hooktrain_recipes.axolotl_trackers import set_trackers
from hooktrain_recipes.block_settings import OFFLOADED, set_block_settings
from hooktrain_recipes.explained import explain
from hooktrain_recipes.kinds import check_kinds, guarded, refuse_unknown
from hooktrain_recipes.optimizers import add_group, fit_strategy, set_muon, set_optimizer
from hooktrain_recipes.preferences import UNCUT
from hooktrain_recipes.reasons import CONTRADICTION, SCHEDULE
from hooktrain_recipes.schedules import ScheduleKeys, set_schedule
from hooktrain_recipes.tables import apply
from hooktrain_recipes.training_arguments import (
    is_share,
    set_best,
    set_betas,
    set_checkpoints,
    set_decay,
    set_early_stopping,
    set_interval,
    set_length,
    set_resume,
)
from hooktrain_recipes.values import (
    at_least_one,
    flag,
    flag_of,
    listed,
    number,
    numeric,
    parts_of,
    positive,
    share,
    text,
    whole,
)

__all__ = ["ROWS", "dialect"]

_OWN = ("datasets", "pretraining_dataset", "sequence_len", "micro_batch_size", "num_epochs", "adapter", "val_set_size")
"""Keys of Axolotl of which its recipes have some beside ``base_model``."""
_STRUCTURED: tuple[str, ...] = (
    "special_tokens",
    "tokens",
    "overrides_of_model_config",
    "model_config",
    "lora_rank_pattern",
    "deepspeed",
)
_STRUCTURED += ("added_tokens_overrides", "model_kwargs", "overrides_of_model_kwargs", "eot_tokens")
_STRUCTURED += (
    "test_datasets",
    "pretraining_dataset",
    "chat_template_kwargs",
    "lr_scheduler_kwargs",
    "fsdp_config",
    "lr_groups",
    "dpo_loss_weights",
)
_LISTS = (
    "dpo_loss_type",
    "plugins",
    "fsdp",
    "lora_target_modules",
    "lora_target_parameters",
    "lora_modules_to_save",
    "unfrozen_parameters",
)


@attrs.frozen
class _Dialect:
    name: str = "axolotl"
    summary: str = "Axolotl"

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        return "base_model" in raw and any(key in raw for key in _OWN)

    def translate(self, raw: Mapping[str, Any], folder: Path) -> Translation:
        found = Collector(raw, "Axolotl")
        if found.get("base_model") is None or not (
            found.get("datasets") or found.get("pretraining_dataset") or any(key in found for key in _OWN)
        ):
            return Translation(not_a_recipe="no base_model with data and sizes, as Axolotl's training recipes have")
        check_kinds(found, ROWS, _STRUCTURED, _LISTS)
        steps = (set_model, set_data, set_adapter, _lengths, _batches, _optimizer, _evaluation, _saves)
        for step in (*steps, set_method, set_reward, set_trackers):
            guarded(found, partial(step, found), "base_model")
        guarded(found, partial(set_strategy, found, folder), "deepspeed" if "deepspeed" in found else "base_model")
        fit_strategy(found, "optimizer", ("load_in_4bit", "load_in_8bit"))
        word = str(found.get("gradient_checkpointing"))
        keys = ("activation_offloading", *(["gradient_checkpointing"] if word.startswith(OFFLOADED) else []))
        set_block_settings(found, offload=keys, tiled=("tiled_mlp",))
        apply(found, ROWS)
        refuse_unknown(found, ROWS)
        explain(found)
        return found.translation()


def dialect() -> _Dialect:
    return _Dialect()


def _lengths(found: Collector) -> None:
    found.copy("sequence_len", "data.max_length", whole)
    found.default("data.max_length", 512, "the default of Axolotl")
    causal = found.recipe.get("type") == "causal"
    packed = flag_of(found.get("sample_packing"))
    if "sample_packing" in found and found.get("sample_packing") is not None:
        found.copy("sample_packing", "data.pack_samples", flag)
    elif "sample_packing" in found:
        found.ignored("sample_packing", "null is the default")
    if causal and not packed:
        found.default("data.pack_samples", False, "the default of Axolotl")
    if "eval_sample_packing" in found:
        found.ignored("eval_sample_packing", "packing changes no loss: documents do not see each other")
    key, strategy = "excess_length_strategy", found.get("excess_length_strategy")
    names = {"drop": "drop", "truncate": "truncate", "raise": "error"}
    if causal:
        if key in found:
            found.ignored(key, "texts are split there, as here")
    elif strategy is None:
        found.default("data.overflow", "drop", "Axolotl drops what is longer")
        found.ignored(key, "null is the default") if key in found else None
    elif strategy in names:
        paired = strategy == "truncate" and (found.get("rl") or found.get("reward_model"))
        found.copy(key, "data.overflow", lambda value: "drop" if paired else names[value])
        if paired:
            found.notes["data.overflow"] = UNCUT
    else:
        found.unsupported(key, f"given {strategy!r:.40}, expected drop, truncate or raise", "write one of them")
    longest, length = found.get("eval_sequence_len"), found.get("sequence_len", 512)
    if longest is None or longest == length:
        found.ignored("eval_sequence_len", "the length of training") if "eval_sequence_len" in found else None
    else:
        found.unsupported("eval_sequence_len", "another length in evaluation", "evaluate with data.max_length")


def _batches(found: Collector) -> None:
    micro, total = found.get("micro_batch_size"), found.get("batch_size")
    steps = found.get("gradient_accumulation_steps")
    found.copy("micro_batch_size", "micro_batch_size", at_least_one)
    found.copy("gradient_accumulation_steps", "gradient_accumulation_steps", at_least_one)
    if total is None:
        found.ignored("batch_size", "null is the default") if "batch_size" in found else None
    elif steps is not None and micro is not None:
        CONTRADICTION.refuse(found, "batch_size", "gradient_accumulation_steps")
    elif micro is not None:
        found.copy("batch_size", "gradient_accumulation_steps", lambda value: parts_of(value, micro))
    else:
        found.copy("batch_size", "micro_batch_size", lambda value: parts_of(value, steps or 1))
    set_length(found, "num_epochs")


def _optimizer(found: Collector) -> None:
    name = found.get("optimizer", "adamw_torch_fused")
    kind = set_optimizer(found, "optimizer", name, "the default of Axolotl")
    if "optimizer" in found and found.get("optimizer") is None:
        found.ignored("optimizer", "null is the default")
    found.copy("learning_rate", "optimizer.lr", positive)
    if found.get("learning_rate") is None:
        found.unsupported(
            "learning_rate" if "learning_rate" in found else "base_model", "no learning_rate", "write one"
        )
    set_decay(found, kind)
    if kind == "muon":
        set_muon(found, "optimizer", adapter=bool(found.get("adapter")), adjust_lr="original")
    _groups(found)
    set_betas(found, kind)
    for key in ("adam_epsilon2", "adam_beta3"):
        if key in found:
            found.ignored(key, "used by CAME alone")
    if found.get("optim_args"):
        found.unsupported("optim_args", "arguments of the optimizer", "write them under optimizer in the new recipe")
    elif "optim_args" in found:
        found.ignored("optim_args", "none")
    keys = ScheduleKeys(name="lr_scheduler")
    set_schedule(found, keys, "cosine", "Axolotl")
    if found.recipe.get("scheduler", {}).get("warmup_ratio") == 0.0 and "scheduler.warmup_ratio" in found.notes:
        found.set("scheduler.warmup_ratio", 0.03)  # where neither is given, three of a hundred steps, at most 100
    _least_rate(found)


_EMBEDDINGS = r"embed_tokens|lm_head|modules_to_save\.default\.weight$"


def _groups(found: Collector) -> None:
    """Set rates of their own: of embeddings and head, of modules, of LoRA's second matrices."""
    rate = numeric(found.get("learning_rate"))
    scale, own = found.get("embedding_lr_scale"), found.get("embedding_lr")
    if scale or own:
        key, lr = ("embedding_lr_scale", rate * number(scale)) if scale else ("embedding_lr", number(own))
        add_group(found, key, match=_EMBEDDINGS, lr=lr, weight_decay=0.0)
    for key in ("embedding_lr_scale", "embedding_lr"):
        if key in found:
            found.ignored(key, "embedding_lr_scale precedes it" if found.get(key) else "null is the default")
    groups = found.get("lr_groups")
    for at, group in enumerate(groups if isinstance(groups, list) else []):
        modules = listed(group["modules"])
        add_group(found, f"lr_groups[{at}]", match="|".join(map(re.escape, modules)), lr=number(group["lr"]))
    if found.get("loraplus_lr_ratio") and found.get("adapter"):
        add_group(found, "loraplus_lr_ratio", match="lora_B", lr=rate * positive(found.get("loraplus_lr_ratio")))


def _least_rate(found: Collector) -> None:
    """Account for the end of a cosine."""
    for key in ("cosine_min_lr_ratio", "cosine_constant_lr_ratio"):
        value = found.get(key)
        if key not in found:
            continue
        if value is None or found.recipe.get("scheduler", {}).get("type") != "cosine":
            found.ignored(key, "of the schedule cosine alone" if value is not None else "null is the default")
        elif key == "cosine_min_lr_ratio":
            found.copy(key, "scheduler.min_lr_ratio", share)
        elif value in (0, 1, False) or not found.get("cosine_min_lr_ratio"):
            found.ignored(key, "no part at the end is constant")
        else:
            SCHEDULE.refuse(found, key)


def _evaluation(found: Collector) -> None:
    """Account for the times of evaluations. Axolotl evaluates before the first step too where it has such times."""
    keys = ("eval_steps", "evals_per_epoch", "eval_strategy", "evaluation_strategy")
    given = {key: found.get(key) for key in keys if key in found}
    off = not held_out(found)
    for key, value in given.items():
        if value in (None, 0, False):
            found.ignored(key, "none are asked for" if value is not None else "null is the default")
        elif off:
            found.ignored(key, "there is nothing to evaluate on")
        elif key == "eval_steps" and given.get("evals_per_epoch"):
            CONTRADICTION.refuse(found, key, "evals_per_epoch")
        elif key in ("eval_steps", "evals_per_epoch") or value == "epoch":
            _evaluate(found, key)
            found.set("eval_at_start", True)
            found.translated(key, "eval_at_start")
        elif value in ("no", "steps"):
            found.ignored(key, "the run evaluates at its end" if value == "no" else "eval_steps says when")
        else:
            found.unsupported(key, f"given {value!r:.40}, expected no, steps or epoch", "write one of them")


def _evaluate(found: Collector, key: str) -> None:
    value = found.get(key)
    if key == "eval_steps" and not is_share(value):
        found.copy(key, "eval_interval", whole)
    else:
        _set_times(found, key, "eval_interval", 1 if value == "epoch" else value)


def _set_times(found: Collector, key: str, to: str, value: Any) -> None:
    """Set an interval by a share of the run, or by times in an epoch."""
    epochs = numeric(found.get("num_epochs", 1)) or 1
    share_of_run = value if is_share(value) else 1 / positive(value) / epochs
    set_interval(found, key, to, round(share_of_run * epochs, 10), share_of_run)


def _saves(found: Collector) -> None:
    last = set_checkpoints(found, "./model-out")
    lone = last == 0
    _save_times(found, "checkpoint[0]")
    name = found.get("hub_model_id")
    if isinstance(name, str) and re.fullmatch(r"([\w.\-]+/)?[\w.\-]+", name):
        found.copy("hub_model_id", f"checkpoint[{last}].push_to", text)
        found.set(f"checkpoint[{last}].push_private", True)
        found.translated("hub_model_id", f"checkpoint[{last}].push_private")
    elif name:
        found.ignored("hub_model_id", "a place for a name, to be filled in")
    if flag_of(found.get("load_best_model_at_end")):
        set_best(found, "load_best_model_at_end", f"checkpoint[{last}]")
    set_early_stopping(found, "early_stopping_patience")
    key = "save_total_limit"
    if lone:
        found.ignored(key, "every export is kept") if key in found else None
    elif found.get(key):
        found.copy(key, "checkpoint[0].keep_last", whole)
    else:
        found.default("checkpoint[0].keep_last", 4, "the default of Axolotl")
        found.ignored(key, "the default") if key in found else None
    if flag_of(found.get("auto_resume_from_checkpoints")) and not lone:
        found.copy("auto_resume_from_checkpoints", "checkpoint[0].auto_resume", flag)
    elif "auto_resume_from_checkpoints" in found:
        found.ignored("auto_resume_from_checkpoints", "false is the default" if not lone else "no state is saved")
    set_resume(found, "")


def _save_times(found: Collector, to: str) -> None:
    steps, per_epoch, strategy = (found.get(key) for key in ("save_steps", "saves_per_epoch", "save_strategy"))
    if steps and per_epoch:
        CONTRADICTION.refuse(found, "saves_per_epoch", "save_steps")
    elif is_share(steps):
        _set_times(found, "save_steps", to, steps)
    elif steps:
        found.copy("save_steps", f"{to}.save_every_n_steps", whole)
    elif per_epoch and not isinstance(per_epoch, bool):
        _set_times(found, "saves_per_epoch", to, per_epoch)
    elif strategy in (None, "epoch"):
        found.default(f"{to}.save_every_n_epochs", 1, "Axolotl saves at the end of each epoch")
        if strategy:
            found.translated("save_strategy", f"{to}.save_every_n_epochs")
    if strategy == "best":
        set_best(found, "save_strategy", to)
    elif strategy not in (None, "no", "steps", "epoch"):
        found.unsupported(
            "save_strategy", f"given {strategy!r:.40}, expected no, steps, epoch or best", "write one of them"
        )
    for key, why in (
        ("save_steps", "no"),
        ("saves_per_epoch", "no"),
        ("save_strategy", "save_steps or the end of the run says when"),
    ):
        if key in found:
            found.ignored(key, why if why != "no" else "none are asked for")
