"""Events of transformers and Lightning, and the hooks in which they are called.

The README and the tests read these tables; the bridges follow them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["LIGHTNING", "NEVER", "TRANSFORMERS", "needed_hooks", "unused_hooks"]

TRANSFORMERS: Mapping[str, tuple[str, ...]] = {
    "on_init_end": ("on_train_start",),
    "on_train_begin": ("on_train_start",),
    "on_epoch_begin": ("on_epoch_start",),
    "on_step_begin": ("on_step_start",),
    "on_substep_end": ("on_microbatch_end",),
    "on_pre_optimizer_step": ("on_optimizer_step_start",),
    "on_optimizer_step": ("on_optimizer_step_end",),
    "on_step_end": ("on_step_end",),
    "on_prediction_step": ("compute_loss", "on_evaluate_start"),
    "on_evaluate": ("on_evaluate_end",),
    "on_log": ("on_log", "on_evaluate_end"),
    "on_save": ("on_checkpoint_end",),
    "on_epoch_end": ("on_epoch_end",),
    "on_train_end": ("on_train_end",),
}
"""Events of ``transformers.TrainerCallback`` and the hooks in which they are called."""

LIGHTNING: Mapping[str, tuple[str, ...]] = {
    "setup": ("on_train_start",),
    "on_fit_start": ("on_train_start",),
    "on_train_start": ("on_train_start",),
    "on_train_epoch_start": ("on_epoch_start",),
    "on_train_batch_start": ("on_microbatch_start", "on_microbatch_end"),
    "on_before_backward": ("run_backward",),
    "on_after_backward": ("run_backward",),
    "on_before_optimizer_step": ("on_optimizer_step_start",),
    "on_before_zero_grad": ("on_optimizer_step_end",),
    "on_train_batch_end": ("on_microbatch_end", "on_step_end"),
    "on_validation_start": ("on_evaluate_start",),
    "on_validation_epoch_start": ("on_evaluate_start",),
    "on_validation_batch_start": ("compute_loss",),
    "on_validation_batch_end": ("compute_loss",),
    "on_validation_epoch_end": ("on_evaluate_end",),
    "on_validation_end": ("on_evaluate_end",),
    "on_train_epoch_end": ("on_epoch_end",),
    "on_train_end": ("run_train",),
    "on_fit_end": ("on_train_end",),
    "state_dict": ("collect_state",),
    "load_state_dict": ("restore_state",),
    "on_save_checkpoint": ("collect_state",),
    "on_load_checkpoint": ("restore_state",),
    "on_exception": ("on_exception",),
    "teardown": ("on_teardown",),
}
"""Methods of ``lightning.pytorch.Callback`` and the hooks in which they are called."""

NEVER = frozenset(
    {"on_predict", "on_push_begin", "on_sanity_check_start", "on_sanity_check_end"}
    | {f"on_{stage}_{event}" for stage in ("test", "predict") for event in ("start", "end", "epoch_start", "epoch_end")}
    | {f"on_{stage}_batch_{event}" for stage in ("test", "predict") for event in ("start", "end")}
)
"""Events of both that belong to no training run and are never called."""

_SOMETIMES = ("on_train_start", "on_epoch_start", "on_evaluate_start", "on_evaluate_end", "on_log", "on_train_end")
ALWAYS: Mapping[str, tuple[str, ...]] = {
    "transformers": (
        *(*_SOMETIMES, "on_checkpoint_end"),
        *("collect_state", "restore_state", "on_exception", "on_teardown"),
    ),
    "lightning": (
        *(*_SOMETIMES, "collect_metrics", "run_train"),
        *("collect_state", "restore_state", "on_exception", "on_teardown"),
    ),
}
"""Hooks that keep the state of the other trainer up to date; none of them is called at every step."""


def needed_hooks(package: str, events: Iterable[str]) -> set[str]:
    """Return the hooks that callbacks of a package need when they override these events."""
    table = TRANSFORMERS if package == "transformers" else LIGHTNING
    needed = set(ALWAYS["transformers" if package == "transformers" else "lightning"])
    for event in events:
        needed.update(table.get(event, ()))
    return needed


def unused_hooks(needed: Iterable[str]) -> set[str]:
    """Return the hooks that call events and are not needed in a run."""
    called = (hook for table in (TRANSFORMERS, LIGHTNING, ALWAYS) for hooks in table.values() for hook in hooks)
    return set(called) - set(needed)
