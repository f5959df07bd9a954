"""Names of metrics under transformers and Lightning."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["for_lightning", "for_transformers"]


def for_transformers(metrics: Mapping[str, float]) -> dict[str, float]:
    """Rename metrics as in transformers.

    ``lr`` becomes ``learning_rate``, ``eval/<set>/loss`` becomes ``eval_<set>_loss``, and ``eval_loss`` too where there
    is one set.
    """
    made: dict[str, float] = {}
    sets = {name.split("/")[1] for name in metrics if _is_evaluation(name)}
    other = {"lr": "learning_rate", "tokens": "num_input_tokens_seen"}
    for name, value in metrics.items():
        if _is_evaluation(name):
            _, of, metric = name.split("/", 2)
            made[f"eval_{of}_{metric}"] = value
            if len(sets) == 1:
                made[f"eval_{metric}"] = value
        elif name != "step":
            made[other.get(name, name)] = value
    return made


def for_lightning(metrics: Mapping[str, float]) -> dict[str, float]:
    """Add the names that Lightning users give metrics.

    These are ``train_loss``, ``val_<set>_loss``, and ``val_loss`` where there is one set.
    """
    made = dict(metrics)
    sets = {name.split("/")[1] for name in metrics if _is_evaluation(name)}
    for name, value in metrics.items():
        if _is_evaluation(name):
            _, of, metric = name.split("/", 2)
            made[f"val_{of}_{metric}"] = value
            if len(sets) == 1:
                made[f"val_{metric}"] = value
        elif name == "loss":
            made["train_loss"] = value
    return made


def _is_evaluation(name: str) -> bool:
    return name.startswith("eval/") and name.count("/") >= 2
