"""The optimizer, evaluations and saves of LLaMA-Factory's recipes."""

from __future__ import annotations

from hooktrain import Collector
from hooktrain_recipes.optimizers import add_group, set_muon, set_optimizer
from hooktrain_recipes.reasons import EPOCH_FRACTION, SMALL_STATES
from hooktrain_recipes.schedules import ScheduleKeys, set_schedule
from hooktrain_recipes.training_arguments import (
    is_share,
    set_best,
    set_betas,
    set_checkpoints,
    set_decay,
    set_early_stopping,
    set_interval,
    set_overwrite,
    set_resume,
)
from hooktrain_recipes.values import at_least_one, flag, flag_of, numeric, positive, text, whole

__all__ = ["set_evaluation", "set_optimizer_of", "set_saves"]

_PROGRAM = "LLaMA-Factory"


def set_optimizer_of(found: Collector) -> None:
    own = [key for key in ("use_galore", "use_apollo", "use_badam", "use_adam_mini") if flag_of(found.get(key))]
    for key in own:
        SMALL_STATES.refuse(found, key)
    muon = flag_of(found.get("use_muon"))
    key = "use_muon" if muon else "optim"
    name = "muon" if muon else found.get("optim", "adamw_torch")
    kind = set_optimizer(found, key, name, f"the default of {_PROGRAM}")
    if "use_muon" in found:
        found.ignored("use_muon", "false is the default")
    if muon and "optim" in found:
        found.ignored("optim", "use_muon precedes it")
    if "optim" in found and found.get("optim") is None:
        found.ignored("optim", "null is the default")
    found.copy("learning_rate", "optimizer.lr", positive)
    found.default("optimizer.lr", 5e-5, f"the default of {_PROGRAM}")
    set_decay(found, kind)
    if muon:
        adapter = found.get("finetuning_type", "lora") != "full"
        set_muon(found, "use_muon", adapter=adapter, adjust_lr="match_rms_adamw")
    if found.get("loraplus_lr_ratio") and found.get("finetuning_type", "lora") == "lora":
        rate = found.recipe["optimizer"]["lr"] * positive(found.get("loraplus_lr_ratio"))
        add_group(found, "loraplus_lr_ratio", match="lora_B", lr=rate)
    set_betas(found, kind)
    set_schedule(found, ScheduleKeys(), "linear", _PROGRAM)


def set_evaluation(found: Collector) -> None:
    off = not found.get("eval_dataset") and not numeric(found.get("val_size"))
    strategy = str(found.get("eval_strategy", found.get("evaluation_strategy", "no"))).lower()
    for key in ("eval_strategy", "evaluation_strategy", "eval_steps", "do_eval", "eval_on_start", "eval_delay"):
        value = found.get(key)
        if key not in found:
            continue
        if value in (None, False, 0, "no"):
            found.ignored(key, "the run evaluates at its end alone")
        elif off:
            found.ignored(key, "there is nothing to evaluate on")
        elif key == "eval_steps" and strategy == "steps" and is_share(value):
            _by_share(found, key, "eval_interval")
        elif key == "eval_steps" and strategy == "steps":
            found.copy(key, "eval_interval", whole)
        elif key == "eval_on_start":
            found.copy(key, "eval_at_start", flag)
        elif key == "eval_delay" and strategy == "steps":
            found.copy(key, key, whole)
        elif key == "eval_delay":
            EPOCH_FRACTION.refuse(found, key, "a first evaluation after some epochs")
        elif value == "epoch":
            set_interval(found, key, "eval_interval", 1)
        elif key in ("eval_strategy", "evaluation_strategy") and value not in ("steps", "epoch"):
            found.unsupported(key, f"given {value!r:.40}, expected no, steps or epoch", "write one of them")
        else:
            found.ignored(key, "the run evaluates at its end, and where eval_steps says")
    if strategy == "steps" and not off and not found.has("eval_interval") and found.get("eval_steps") is None:
        every = found.get("logging_steps", 500)
        if isinstance(every, int) and every > 0:
            found.default("eval_interval", every, f"{_PROGRAM} evaluates as often as it logs")


def _by_share(found: Collector, key: str, to: str) -> None:
    """Set an interval by a share of the run."""
    value = found.values[key]
    set_interval(found, key, to, round(value * found.recipe.get("epochs", 1), 10), value)


def set_saves(found: Collector) -> None:
    last = set_checkpoints(found)
    lone = last == 0
    set_push(found, last)
    strategy = str(found.get("save_strategy", "steps")).lower()
    steps = found.get("save_steps", 500)
    if strategy == "steps" and is_share(steps):
        _by_share(found, "save_steps", "checkpoint[0]")
    elif strategy == "steps":
        found.copy("save_steps", "checkpoint[0].save_every_n_steps", at_least_one)
        found.default("checkpoint[0].save_every_n_steps", 500, f"the default of {_PROGRAM}")
    elif strategy == "epoch":
        found.set("checkpoint[0].save_every_n_epochs", 1)
        found.translated("save_strategy", "checkpoint[0].save_every_n_epochs")
    elif strategy == "best":
        set_best(found, "save_strategy", "checkpoint[0]")
    elif strategy != "no":
        found.unsupported(
            "save_strategy", f"given {strategy!r:.40}, expected no, steps, epoch or best", "write one of them"
        )
    for key in ("save_strategy", "save_steps"):
        if key in found and not found.accounted(key):
            found.ignored(key, "save_steps says when" if strategy == "steps" else "the end of the run is saved")
    if flag_of(found.get("load_best_model_at_end")):
        set_best(found, "load_best_model_at_end", f"checkpoint[{last}]")
    set_early_stopping(found, "early_stopping_steps")
    if found.get("save_total_limit") and not lone:
        found.copy("save_total_limit", "checkpoint[0].keep_last", whole)
    elif "save_total_limit" in found:
        found.ignored("save_total_limit", "every export is kept" if found.get("save_total_limit") else "all are kept")
    set_resume(found, "" if lone else "checkpoint[0]", (True, "true", "auto"))
    set_overwrite(found)


def set_push(found: Collector, last: int) -> None:
    """Push the export to a hub, where ``push_to_hub`` asks for it."""
    if not flag_of(found.get("push_to_hub")):
        return
    name, folder = found.get("hub_model_id"), f"checkpoint[{last}]"
    if not isinstance(name, str) or name.count("/") != 1:
        found.unsupported(
            "push_to_hub", "a repository without its organisation", "write hub_model_id: organisation/name"
        )
        return
    found.copy("hub_model_id", f"{folder}.push_to", text)
    found.translated("push_to_hub", f"{folder}.push_to")
    found.copy("hub_private_repo", f"{folder}.push_private", flag)
