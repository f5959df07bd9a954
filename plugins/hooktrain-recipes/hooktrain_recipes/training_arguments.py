"""transformers' TrainingArguments, as far as Axolotl, LLaMA-Factory and TRL read them alike."""

from __future__ import annotations

import math
from typing import Any

from hooktrain import Collector
from hooktrain_recipes.reasons import CONTRADICTION, EARLY_STOPPING, EPOCH_FRACTION, GROUPS, OWN_CHECKPOINT
from hooktrain_recipes.values import at_least_one, flag_of, number, numeric, positive, share, split_of, whole

__all__ = [
    "is_share",
    "set_best",
    "set_betas",
    "set_checkpoints",
    "set_early_stopping",
    "set_interval",
    "set_decay",
    "set_held_out",
    "set_length",
    "set_overwrite",
    "set_resume",
    "set_text_column",
]


def set_length(found: Collector, epochs: str, default: int | None = None) -> None:
    """Set ``train_iters``, or else ``epochs``.

    Args:
        found: the translation.
        epochs: the key of their number.
        default: the program's default, where it is not ours.
    """
    steps = found.get("max_steps")
    if steps not in (None, 0, -1, "0", "-1"):
        found.copy("max_steps", "train_iters", at_least_one)
        if epochs in found:
            found.ignored(epochs, "max_steps precedes it")
        return
    if "max_steps" in found:
        found.ignored("max_steps", "no limit")
    value = numeric(found.get(epochs))
    found.copy(epochs, "epochs", positive if value % 1 else at_least_one)
    if default is not None:
        found.default("epochs", default, f"the default of {found.program}")


def set_decay(found: Collector, kind: str) -> None:
    """Set the decay of weights; ``kind`` is our type of the optimizer."""
    if kind != "torch":
        found.copy("weight_decay", "optimizer.weight_decay", number)
        found.default("optimizer.weight_decay", 0.0, f"the default of {found.program}")
    elif numeric(found.get("weight_decay")):
        GROUPS.refuse(found, "weight_decay")  # vectors are not decayed
    elif "weight_decay" in found:
        found.ignored("weight_decay", "none")


def set_betas(found: Collector, kind: str) -> None:
    """Set the betas and epsilon of Adam."""
    given = [found.get(key) for key in ("adam_beta1", "adam_beta2")]
    to = "optimizer.groups[0]" if kind == "muon" else "optimizer"  # of the weights that AdamW updates beside Muon
    for key in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        if key not in found:
            continue
        if found.get(key) is None:
            found.ignored(key, "null is the default")
        elif key == "adam_epsilon" and "lion" in kind:
            found.ignored(key, "Lion divides by nothing")
        elif kind in ("torch", "sgd") or not found.has(to):
            found.ignored(key, "this optimizer has no such number")
        elif key == "adam_epsilon":
            found.copy(key, f"{to}.eps", positive)
        else:
            try:
                betas = [share(0.9 if given[0] is None else given[0]), share(0.999 if given[1] is None else given[1])]
            except ValueError as problem:
                found.unsupported(key, str(problem), "correct the number")
            else:
                found.set(f"{to}.betas", betas)
                found.translated(key, f"{to}.betas")


def is_share(value: Any) -> bool:
    """Whether a number of steps is a share of the run."""
    return isinstance(value, float) and 0 < value < 1


def set_interval(found: Collector, key: str, to: str, epochs: float, steps: float = 0.0) -> None:
    """Set how often something is done, by a number of epochs.

    Args:
        found: the translation, whose recipe has ``epochs`` or ``train_iters``.
        key: the key that says it.
        to: ``eval_interval``, or the path of a checkpoint engine.
        epochs: the number, 1 or a fraction for evaluations.
        steps: the same as a share of a run whose length is given in steps.
    """
    total = found.recipe.get("train_iters")
    if total is not None and steps:
        to = to if to == "eval_interval" else f"{to}.save_every_n_steps"
        found.set(to, max(1, math.ceil(steps * total)))
    elif to == "eval_interval":
        if epochs > 1:
            EPOCH_FRACTION.refuse(found, key, f"every {epochs:g} epochs")
            return
        found.set(to, "epoch" if epochs == 1 else epochs)
    else:
        to = f"{to}.save_every_n_epochs"
        found.set(to, epochs if epochs % 1 else int(epochs))
    found.translated(key, to)


def set_early_stopping(found: Collector, key: str) -> None:
    """Set ``early_stopping`` by the loss of evaluations."""
    if found.get(key) in (None, 0, False):
        found.ignored(key, "null is the default" if found.get(key) is None else "none") if key in found else None
    elif not found.has("eval_interval"):
        found.ignored(key, "nothing is evaluated before the end")
    elif metric := _watched(found, key):
        found.copy(key, "early_stopping.patience", at_least_one)
        found.set("early_stopping.metric", metric)
        found.translated(key, "early_stopping.metric")


def set_best(found: Collector, key: str, to: str) -> None:
    """Save with the checkpoint engine at ``to`` after each evaluation with the lowest loss so far."""
    if metric := _watched(found, key):
        found.set(f"{to}.save_best", metric)
        found.translated(key, f"{to}.save_best")


def _watched(found: Collector, key: str) -> str:
    """The loss of the only evaluation set; empty where the key has been refused."""
    data = found.recipe.get("data", {})
    sets = data.get("eval_sources", [])
    wanted = found.get("metric_for_best_model", "loss")
    if wanted not in ("loss", "eval_loss") or flag_of(found.get("greater_is_better")) or len(sets) > 1:
        what = (
            f"{wanted!r:.40}" if wanted not in ("loss", "eval_loss") else "several evaluation sets, or the highest loss"
        )
        EARLY_STOPPING.refuse(found, key, what)
        return ""
    if sets:
        found.default("data.eval_sources[0].name", "eval", "the name of its metrics")
    elif not ("train_eval_split" in data or "val_size" in data):
        CONTRADICTION.refuse(found, key, "no evaluation set")
        return ""
    return "eval/eval/loss"


def set_held_out(found: Collector, key: str, sets: str) -> None:
    """Hold out a share or a number of the training examples; ``sets`` is the key of sets to evaluate on."""
    value = found.get(key)
    if key not in found:
        return
    if value in (None, 0, False, "0", "0.0"):
        found.ignored(key, "nothing is held out")
    elif found.get(sets):
        CONTRADICTION.refuse(found, key, sets)
    elif numeric(value) >= 1:
        found.copy(key, "data.val_size", whole)
    else:
        found.copy(key, "data.train_eval_split", split_of)


def set_checkpoints(found: Collector, default: str | None = None) -> int:
    """Set a checkpoint of the whole state, unless ``save_only_model`` is true, and an export at the end of the run.

    Args:
        found: the translation.
        default: the program's folder where ``output_dir`` names none.

    Returns:
        The number of the export among the checkpoints: 0 where it is the only one.
    """
    lone, key = flag_of(found.get("save_only_model")), "output_dir"
    last = 0 if lone else 1
    export = {"type": "huggingface", "save_end_of_training": True}
    found.set("checkpoint", [export] if lone else [{"type": "full"}, export])
    folder = found.get(key, default)
    if isinstance(folder, str) and folder:
        found.set("run_dir", folder)
        found.set(f"checkpoint[{last}].output_dir", f"{folder.rstrip('/')}/model")
        if found.get(key) is not None:
            found.translated(key, "run_dir", f"checkpoint[{last}].output_dir")
    elif folder is not None:
        found.unsupported(key, "expected a folder", "write its path")
    if key in found and found.get(key) is None:
        found.ignored(key, "null is the default")
    if "save_only_model" in found:
        found.translated("save_only_model", "checkpoint[0].type")
    return last


def set_resume(found: Collector, to: str, automatic: tuple[Any, ...] = ()) -> None:
    """Set ``auto_resume`` of the checkpoint at ``to``, empty for none, where the original has one of some values."""
    key = "resume_from_checkpoint"
    again = found.get(key)
    if again in (None, False, "", "false"):
        why = "null is the default" if again is None else "no earlier run is continued"
        found.ignored(key, why) if key in found else None
    elif to and again in automatic:
        found.copy(key, f"{to}.auto_resume", lambda _: True)
    else:
        OWN_CHECKPOINT.refuse(found, key)


def set_overwrite(found: Collector) -> None:
    """Set ``overwrite`` of each checkpoint that does not continue the run which it finds in its folder."""
    key = "overwrite_output_dir"
    if not flag_of(found.get(key)):
        found.ignored(key, f"{'null' if found.get(key) is None else 'false'} is the default") if key in found else None
        return
    for place, entry in enumerate(found.recipe["checkpoint"]):
        if not entry.get("auto_resume"):
            found.set(f"checkpoint[{place}].overwrite", True)
            found.translated(key, f"checkpoint[{place}].overwrite")
    found.ignored(key, "an earlier run is continued") if not found.accounted(key) else None


def set_text_column(found: Collector, key: str, source: str, column: str) -> None:
    """Set the column of the texts: the first one is that of ``data``, and others are renamed to it.

    Args:
        found: the translation.
        key: the key that says it.
        source: path of the source in the recipe.
        column: the column of its texts.
    """
    first = found.recipe.get("data", {}).get("text_column", column)
    to = "data.text_column" if column == first else f"{source}.columns.{first}"
    found.set(to, column)
    found.translated(key, to)
