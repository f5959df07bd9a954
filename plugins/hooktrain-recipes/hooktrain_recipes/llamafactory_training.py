"""The optimizer, evaluations and saves of LLaMA-Factory's recipes."""

from __future__ import annotations

from hooktrain import Collector
from hooktrain_recipes.optimizers import set_optimizer
from hooktrain_recipes.reasons import EARLY_STOPPING, EPOCH_FRACTION, GROUPS, SMALL_STATES
from hooktrain_recipes.schedules import ScheduleKeys, set_schedule
from hooktrain_recipes.training_arguments import set_betas, set_checkpoints, set_decay, set_resume
from hooktrain_recipes.values import at_least_one, flag, flag_of, numeric, positive, text, whole

__all__ = ["set_evaluation", "set_optimizer_of", "set_saves"]

_PROGRAM = "LLaMA-Factory"


def set_optimizer_of(found: Collector) -> None:
    own = [key for key in ("use_galore", "use_apollo", "use_badam", "use_adam_mini") if flag_of(found.get(key))]
    for key in own:
        SMALL_STATES.refuse(found, key)
    if flag_of(found.get("use_muon")):
        GROUPS.refuse(found, "use_muon")
    kind = set_optimizer(found, "optim", found.get("optim", "adamw_torch"), f"the default of {_PROGRAM}")
    if "optim" in found and found.get("optim") is None:
        found.ignored("optim", "null is the default")
    found.copy("learning_rate", "optimizer.lr", positive)
    found.default("optimizer.lr", 5e-5, f"the default of {_PROGRAM}")
    set_decay(found, kind)
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
        elif key == "eval_steps" and strategy == "steps" and isinstance(value, float) and value < 1:
            EPOCH_FRACTION.refuse(found, key)
        elif key == "eval_steps" and strategy == "steps":
            found.copy(key, "eval_interval", whole)
        elif key == "eval_on_start":
            found.copy(key, "eval_at_start", flag)
        elif key == "eval_delay":
            EPOCH_FRACTION.refuse(found, key, "evaluations from a later step on")
        elif value == "epoch" and (found.recipe.get("epochs") != 1 or found.has("train_iters")):
            EPOCH_FRACTION.refuse(found, key)
        elif key in ("eval_strategy", "evaluation_strategy") and value not in ("steps", "epoch"):
            found.unsupported(key, f"given {value!r:.40}, expected no, steps or epoch", "write one of them")
        else:
            found.ignored(key, "the run evaluates at its end, and where eval_steps says")
    if strategy == "steps" and not off and not found.has("eval_interval") and found.get("eval_steps") is None:
        every = found.get("logging_steps", 500)
        if isinstance(every, int) and every > 0:
            found.default("eval_interval", every, f"{_PROGRAM} evaluates as often as it logs")


def set_saves(found: Collector) -> None:
    last = set_checkpoints(found)
    lone = last == 0
    set_push(found, last)
    strategy = str(found.get("save_strategy", "steps")).lower()
    steps = found.get("save_steps", 500)
    if strategy == "steps" and isinstance(steps, float) and 0 < steps < 1:
        EPOCH_FRACTION.refuse(found, "save_steps")
    elif strategy == "steps":
        found.copy("save_steps", "checkpoint[0].save_every_n_steps", at_least_one)
        found.default("checkpoint[0].save_every_n_steps", 500, f"the default of {_PROGRAM}")
    elif strategy == "epoch":
        found.set("checkpoint[0].save_every_n_epochs", 1)
        found.translated("save_strategy", "checkpoint[0].save_every_n_epochs")
    elif strategy == "best":
        EARLY_STOPPING.refuse(found, "save_strategy", "the best model")
    elif strategy != "no":
        found.unsupported(
            "save_strategy", f"given {strategy!r:.40}, expected no, steps, epoch or best", "write one of them"
        )
    for key in ("save_strategy", "save_steps"):
        if key in found and not found.accounted(key):
            found.ignored(key, "save_steps says when" if strategy == "steps" else "the end of the run is saved")
    if found.get("save_total_limit") and not lone:
        found.copy("save_total_limit", "checkpoint[0].keep_last", whole)
    elif "save_total_limit" in found:
        found.ignored("save_total_limit", "every export is kept" if found.get("save_total_limit") else "all are kept")
    set_resume(found, "" if lone else "checkpoint[0]", (True, "true", "auto"))


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
