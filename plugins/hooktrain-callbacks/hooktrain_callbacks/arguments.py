"""transformers' ``TrainingArguments``, filled from the recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hooktrain import ConfigDefaults, StrategyDefaults, did_you_mean, evaluation_steps, masked, member
from hooktrain_callbacks.compat import arguments_class

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["argument_problems", "training_arguments"]

_FROM_THE_RECIPE = {
    "output_dir": "run_dir",
    "per_device_train_batch_size": "micro_batch_size",
    "per_device_eval_batch_size": "eval_micro_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "learning_rate": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "max_grad_norm": "gradient_clipping",
    "num_train_epochs": "epochs",
    "max_steps": "train_iters",
    "logging_strategy": "log_interval",
    "logging_steps": "log_interval",
    "eval_strategy": "eval_interval",
    "eval_steps": "eval_interval",
    "save_strategy": "checkpoint",
    "save_steps": "checkpoint",
    "seed": "seed",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "use_cpu": "strategy.device",
}
"""Fields that the recipe has its own keys for."""
_UNSUPPORTED = {
    "load_best_model_at_end": "the best model is not loaded at the end; keep it with checkpoint: [{type: full,"
    " keep_best: ...}]",
    "report_to": "name the trackers in the list of callbacks, such as transformers.integrations.TensorBoardCallback",
    "push_to_hub": "nothing is pushed; upload the exported folder",
}


def argument_problems(arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names under ``callbacks.arguments`` that cannot be set there, each with the reason."""
    if not arguments:
        return
    try:
        from transformers import TrainingArguments
    except ImportError as problem:
        yield "", f"are fields of transformers' TrainingArguments, which cannot be imported ({problem})"
        return
    known = [one.name for one in dataclasses.fields(TrainingArguments)]
    for name in arguments:
        if name in _FROM_THE_RECIPE:
            yield name, f"is set by the recipe's {_FROM_THE_RECIPE[name]}; remove it here"
        elif name in _UNSUPPORTED:
            yield name, _UNSUPPORTED[name]
        elif name not in known:
            yield name, f"unknown field of transformers.TrainingArguments{did_you_mean(name, known)}"


def training_arguments(trainer: Trainer, arguments: Mapping[str, Any]) -> Any:
    """Build the arguments that a ``transformers.Trainer`` would need to do what the recipe says.

    Args:
        trainer: the trainer, with all of its parts.
        arguments: the recipe's ``callbacks.arguments``.
    """
    recipe = trainer.recipe
    sets = list(trainer.data.evaluation)
    saves = [engine.config for engine in trainer.checkpoint_engines if engine.config.enabled]
    by_step = [config.save_every_n_steps for config in saves if config.save_every_n_steps]
    by_epoch = any(config.save_every_n_epochs for config in saves)
    dtype, optimizer = member(trainer.strategy, StrategyDefaults, "dtype"), recipe.optimizer
    lr = member(optimizer, ConfigDefaults, "lr")
    values = {
        "output_dir": str(trainer.run_dir),
        "per_device_train_batch_size": recipe.micro_batch_size,
        "per_device_eval_batch_size": recipe.eval_micro_batch_size or recipe.micro_batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "learning_rate": trainer.optimizer.param_groups[0]["lr"] if lr is None else lr,
        "weight_decay": member(optimizer, ConfigDefaults, "weight_decay"),
        "max_grad_norm": recipe.gradient_clipping,
        "num_train_epochs": trainer.epochs.stop,
        "max_steps": recipe.train_iters or -1,
        "logging_strategy": "steps",
        "logging_steps": recipe.log_interval,
        "eval_strategy": "steps" if sets else "no",
        "eval_steps": evaluation_steps(trainer) or trainer.training_horizon,
        "save_strategy": "steps" if by_step else "epoch" if by_epoch else "no",
        "save_steps": min(by_step, default=500),
        "seed": recipe.seed,
        "bf16": str(dtype) == "torch.bfloat16",
        "fp16": str(dtype) == "torch.float16",
        "use_cpu": trainer.device.type == "cpu",
        "metric_for_best_model": "loss" if len(sets) == 1 else None,
        "run_name": trainer.run_dir.name,
        "report_to": [],
        "disable_tqdm": True,
        **arguments,
    }
    kind: Any = arguments_class()
    made = kind.__new__(kind)
    made.run_device, made.run_world, made.run_recipe = trainer.device, trainer.world, masked(recipe.as_dict())
    made.__init__(**values)
    return made
