"""transformers' TrainingArguments in a TRL recipe: optimizer, length, logging, evaluation, saving, strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hooktrain import Collector
from hooktrain_recipes.accelerate_yaml import translate_accelerate
from hooktrain_recipes.deepspeed_json import read_json, translate_deepspeed_file
from hooktrain_recipes.fsdp import set_fsdp, set_fsdp_keys
from hooktrain_recipes.human import positive_whole
from hooktrain_recipes.optimizers import fit_strategy, set_optimizer
from hooktrain_recipes.reasons import EPOCH_FRACTION, SMALL_STATES
from hooktrain_recipes.schedules import ScheduleKeys, set_schedule
from hooktrain_recipes.tables import linked
from hooktrain_recipes.trackers import add_trackers
from hooktrain_recipes.training_arguments import (
    is_share,
    set_best,
    set_betas,
    set_decay,
    set_interval,
    set_length,
    set_overwrite,
    set_resume,
)
from hooktrain_recipes.trl_data import evaluates
from hooktrain_recipes.values import flag, flag_of, number, text, whole

__all__ = ["translate_training"]

_PROGRAM = "TRL"
_DEFAULT = f"the default of {_PROGRAM}"
_TRACKERS = {
    "wandb": {"wandb_project": "project", "wandb_entity": "entity", "wandb_run_group": "group", "run_name": "name"},
    "trackio": {"project": "project", "trackio_space_id": "space_id", "run_name": "name"},
    "mlflow": {"run_name": "run_name"},
    "swanlab": {"run_name": "experiment_name"},
}
"""Keys of trackers, with the names that their packages have for them."""


def translate_training(found: Collector, folder: Path) -> None:
    """Account for the keys of TrainingArguments that are not simply copied."""
    _optimizer(found)
    set_length(found, "num_train_epochs", 3)
    _logging(found)
    _evaluation(found)
    _saving(found)
    _hub(found)
    _strategy(found, folder)
    fit_strategy(found, "optim", ("load_in_4bit", "load_in_8bit"))


def _optimizer(found: Collector) -> None:
    name = "adafactor" if flag_of(found.get("adafactor")) else found.get("optim")
    if "adafactor" in found:
        found.ignored("adafactor", "optim says it" if name != "adafactor" else "")
        if name == "adafactor":
            found.translated("adafactor", "optimizer.type")
    kind = set_optimizer(found, "optim", name or "adamw_torch", _DEFAULT) if name else "adamw"
    if "optim" in found and not found.accounted("optim"):
        found.ignored("optim", "null is the default")
    set_decay(found, kind)
    set_betas(found, kind)
    if found.get("optim_args"):
        SMALL_STATES.refuse(found, "optim_args") if kind == "" else _optimizer_arguments(found, kind)
    elif "optim_args" in found:
        found.ignored("optim_args", "none")
    if "optim_target_modules" in found:
        found.ignored("optim_target_modules", "belongs to optimizers with small states")
    found.copy("learning_rate", "optimizer.lr", number)
    found.default("optimizer.lr", 2e-5, _DEFAULT)
    set_schedule(found, ScheduleKeys(), "linear", _PROGRAM)


def _optimizer_arguments(found: Collector, kind: str) -> None:
    """``name=value, name=value``."""
    given = found.values["optim_args"]
    pairs = [pair.partition("=") for pair in str(given).replace(" ", "").split(",") if pair]
    known = {"betas": "betas", "eps": "eps", "weight_decay": "weight_decay"}
    for name, _, value in pairs:
        if kind != "torch" and name not in known:
            found.unsupported("optim_args", f"the optimizer has no argument {name!r:.40}", "remove it")
            return
        to = f"optimizer.arguments.{name}" if kind == "torch" else f"optimizer.{name}"
        try:
            found.set(to, number(value))
        except ValueError as problem:
            found.unsupported("optim_args", str(problem), "write name=number")
            return
        found.translated("optim_args", to)


def _logging(found: Collector) -> None:
    strategy, steps = found.get("logging_strategy", "steps"), found.get("logging_steps", 10)
    if "logging_strategy" in found:
        found.ignored("logging_strategy", "lines are logged every log_interval steps")
    if isinstance(steps, float) and 0 < steps < 1:
        found.ignored("logging_steps", "a share of the run; log_interval is a number of steps, and lines cost nothing")
    elif strategy != "steps" and "logging_steps" in found:
        found.ignored("logging_steps", "belongs to logging_strategy: steps")
    else:
        found.copy("logging_steps", "log_interval", positive_whole)
        found.default("log_interval", 10, _DEFAULT)
    if found.get("report_to") is not None:
        add_trackers(found, "report_to", _TRACKERS)
    elif "report_to" in found:
        found.ignored("report_to", "no tracker")


def _evaluation(found: Collector) -> None:
    keys = ("eval_strategy", "evaluation_strategy")
    key = next((each for each in keys if each in found), "")
    strategy = str(found.get(key, "no")) if key else "no"
    strategy = {"False": "no"}.get(strategy, strategy)  # what YAML makes of a plain no
    steps = found.get("eval_steps")
    if strategy == "steps":
        _every(found, "eval_steps" if steps is not None else "", "eval_interval", found.get("logging_steps", 10))
        found.translated(key, "eval_interval")
    elif strategy == "epoch":
        set_interval(found, key, "eval_interval", 1)
    elif strategy == "no":
        if key:
            found.ignored(
                key, "evaluation sets are evaluated at the end" if evaluates(found) else "nothing is evaluated"
            )
    else:
        found.unsupported(key, f"given {strategy!r:.40}, expected no, steps or epoch", "write one of them")
    for each in (*keys, "eval_steps", "do_eval"):
        if each in found and not found.accounted(each):
            found.ignored(each, "evaluation sets are evaluated at the end" if each == "do_eval" else "not used")
    if found.get("eval_delay") and strategy == "epoch":
        EPOCH_FRACTION.refuse(found, "eval_delay", "a first evaluation after some epochs")
    elif found.get("eval_delay") and strategy == "steps":
        found.copy("eval_delay", "eval_delay", whole)
    elif "eval_delay" in found:
        found.ignored("eval_delay", "0 is none" if strategy != "no" else "nothing is evaluated before the end")
    if evaluates(found):
        found.copy("per_device_eval_batch_size", "eval_micro_batch_size", positive_whole)


def _every(found: Collector, key: str, to: str, otherwise: Any) -> None:
    """Set a number of steps, or a share of the run."""
    value = found.get(key, otherwise) if key else otherwise
    if is_share(value):
        set_interval(found, key or "logging_steps", to, round(value * found.recipe.get("epochs", 1), 10), value)
    elif key:
        found.copy(key, to, positive_whole)
    elif isinstance(value, (int, float)) and value >= 1:
        found.default(to, int(value), "as often as logging_steps, as in TRL")


def _saving(found: Collector) -> None:
    """An export at the end, as the scripts write one, and checkpoints before."""
    found.set("checkpoint[0].type", "huggingface")
    found.notes["checkpoint[0].type"] = "TRL's scripts save the model at the end"
    found.set("checkpoint[0].save_end_of_training", True)
    found.notes["checkpoint[0].save_end_of_training"] = "TRL's scripts save the model at the end"
    found.copy("output_dir", "checkpoint[0].output_dir", text)
    strategy = str(found.get("save_strategy", "steps"))
    strategy = {"False": "no"}.get(strategy, strategy)
    only_model = flag_of(found.get("save_only_model"))
    if strategy in ("steps", "epoch"):
        _checkpoints(found, strategy, only_model)
    elif strategy == "best":
        set_best(found, "save_strategy", "checkpoint[0]")
    elif strategy == "no":
        found.ignored("save_strategy", "nothing is saved before the end") if "save_strategy" in found else None
    else:
        found.unsupported("save_strategy", f"given {strategy!r:.40}, expected no, steps or epoch", "write one of them")
    set_overwrite(found)
    for key in ("save_strategy", "save_steps", "save_total_limit", "save_only_model"):
        if key in found and not found.accounted(key):
            found.ignored(key, "not used")
    if flag_of(found.get("load_best_model_at_end")):
        set_best(found, "load_best_model_at_end", "checkpoint[0]")
    for key in ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"):
        if key in found and not found.accounted(key):
            found.ignored(key, "belongs to load_best_model_at_end")


def _checkpoints(found: Collector, strategy: str, only_model: bool) -> None:
    place = "checkpoint[0]" if only_model else "checkpoint[1]"
    if only_model:
        found.translated("save_only_model", f"{place}.save_every_n_{'epochs' if strategy == 'epoch' else 'steps'}")
    else:
        found.set("checkpoint[1].type", "full")
        found.notes["checkpoint[1].type"] = "checkpoints to resume from, in run_dir"
    if strategy == "epoch":
        found.set(f"{place}.save_every_n_epochs", 1)
        found.translated("save_strategy", f"{place}.save_every_n_epochs")
    else:
        key = "save_steps" if found.get("save_steps") is not None else ""
        if key and is_share(found.get(key)):
            share = found.get(key)
            set_interval(found, key, place, round(share * found.recipe.get("epochs", 1), 10), share)
        elif key:
            found.copy(key, f"{place}.save_every_n_steps", positive_whole)
        else:
            found.default(f"{place}.save_every_n_steps", 500, _DEFAULT)
        if "save_strategy" in found:
            epochs, steps = f"{place}.save_every_n_epochs", f"{place}.save_every_n_steps"
            found.translated("save_strategy", epochs if found.has(epochs) else steps)
    if not only_model:
        found.copy("save_total_limit", "checkpoint[1].keep_last", positive_whole)
    set_resume(found, "" if only_model else "checkpoint[1]", (True, "true", "True"))


def _hub(found: Collector) -> None:
    keys = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "push_to_hub_model_id",
            "push_to_hub_organization")  # fmt: skip
    if flag_of(found.get("push_to_hub")):
        name = found.get("hub_model_id") or Path(str(found.get("output_dir", "trainer_output"))).name
        branch = f"@{found.get('hub_revision')}" if found.get("hub_revision") else ""
        if isinstance(name, str) and name:
            found.set("checkpoint[0].push_to", f"{name}{branch}")
            for key in ("push_to_hub", "hub_model_id", "hub_revision"):
                if found.get(key):
                    found.translated(key, "checkpoint[0].push_to")
            found.copy("hub_private_repo", "checkpoint[0].push_private", flag)
        else:
            found.unsupported("hub_model_id", f"given {name!r:.40}, expected organisation/name", "correct it")
    for key in keys:
        if key in found and not found.accounted(key):
            found.ignored(key, "not used")
    if "resume_from_checkpoint" in found and not found.accounted("resume_from_checkpoint"):
        found.ignored("resume_from_checkpoint", "nothing is saved to resume from")


def _strategy(found: Collector, folder: Path) -> None:
    for key in ("use_cpu", "no_cuda"):
        if flag_of(found.get(key)):
            found.set("strategy.device", "cpu")
            found.translated(key, "strategy.device")
        elif key in found:
            found.ignored(key, "a GPU is used where there is one")
    if "use_mps_device" in found:
        found.ignored("use_mps_device", "a GPU is used where there is one")
    if found.get("deepspeed") is not None:
        found.set("strategy.type", "deepspeed")
        found.translated("deepspeed", "strategy.type") if isinstance(found.get("deepspeed"), str) else None
        found.notes["strategy.type"] = "there is a configuration of DeepSpeed"
        translate_deepspeed_file(found, "deepspeed", folder)
    elif "deepspeed" in found:
        found.ignored("deepspeed", "null is none")
    if "accelerate_config" in found:
        translate_accelerate(found, "accelerate_config", folder)
    if isinstance(found.get("fsdp_config"), str):  # a file
        held = read_json(found, "fsdp_config", found.get("fsdp_config"), folder)
        linked(found, "fsdp_config", held or {}, lambda inner, key: set_fsdp_keys(inner, key, bool(found.get("fsdp"))))
        found.values["fsdp_config"] = None
    set_fsdp(found)
    for key in ("fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"):
        if key in found:
            found.ignored(key, "FSDP2 wraps each block of the model")
    if "accelerator_config" in found:
        found.ignored("accelerator_config", "rows are divided among ranks as they are seeded")
