"""transformers' TrainingArguments, as far as Axolotl, LLaMA-Factory and TRL read them alike."""

from __future__ import annotations

import math
from typing import Any

from hooktrain import Collector
from hooktrain_recipes.reasons import CONTRADICTION, GROUPS, LIMITS, OWN_CHECKPOINT
from hooktrain_recipes.values import at_least_one, flag_of, number, numeric, positive, share, split_of, whole

__all__ = ["set_betas", "set_checkpoints", "set_decay", "set_held_out", "set_length", "set_resume", "set_text_column"]


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
    if value > 0 and value != math.floor(value):
        LIMITS.refuse(found, epochs, "a fraction of an epoch")
    else:
        found.copy(epochs, "epochs", at_least_one)
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
    for key in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        if key not in found:
            continue
        if found.get(key) is None:
            found.ignored(key, "null is the default")
        elif kind not in ("adamw", "adam", ""):
            found.ignored(key, "this optimizer has no such number")
        elif key == "adam_epsilon":
            found.copy(key, "optimizer.eps", positive)
        else:
            try:
                betas = [share(0.9 if given[0] is None else given[0]), share(0.999 if given[1] is None else given[1])]
            except ValueError as problem:
                found.unsupported(key, str(problem), "correct the number")
            else:
                found.set("optimizer.betas", betas)
                found.translated(key, "optimizer.betas")


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
        found.ignored(key, "not used") if key in found else None
    elif to and again in automatic:
        found.copy(key, f"{to}.auto_resume", lambda _: True)
    else:
        OWN_CHECKPOINT.refuse(found, key)


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
