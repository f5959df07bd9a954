"""Preferences in ArcticTraining's recipes: the numbers of DPO, and its reference."""

from __future__ import annotations

from hooktrain import Collector
from hooktrain_recipes.preferences import UNCUT, copy_loss, set_uncut
from hooktrain_recipes.reasons import PREFERENCES
from hooktrain_recipes.tables import Row, by, ignored
from hooktrain_recipes.values import text

__all__ = ["REFERENCE_ROWS", "set_pairs_of"]

PROGRAM = "ArcticTraining"


def _number(to: str, *, zero: bool = False) -> Row:
    def rule(found: Collector, key: str) -> None:
        if found.get("type") == "dpo":
            copy_loss(found, key, to, ("dpo",), zero=zero)
        else:
            found.ignored(key, "belongs to type: dpo")

    return by(to, rule, f"`loss.{to}`")


def _name(found: Collector, key: str) -> None:
    if found.get("type") != "dpo":
        found.ignored(key, "belongs to type: dpo")
    elif found.values[key] == found.get("model.name_or_path"):
        found.copy(key, "models.reference.type", lambda _: "copy")
    else:
        found.copy(key, "models.reference.name_or_path", text)
        found.set("models.reference.type", "huggingface")
        found.translated(key, "models.reference.type")


def _unless_empty(found: Collector, key: str) -> None:
    if found.values[key]:
        PREFERENCES.refuse(found, key, "a reference that is another model than its files say")
    else:
        found.ignored(key, "none is the default")


REFERENCE_ROWS: tuple[Row, ...] = (
    _number("beta"),
    _number("label_smoothing", zero=True),
    ignored("ignore_label_index", "what is not trained is not computed"),
    ignored("reference_model_deepspeed", "ArcticTraining makes it of the model's"),
    ignored("data.max_prompt_length", UNCUT),
    ignored("data.dpo_prompt_truncation_mode", UNCUT),
    by("ref_model.name_or_path", _name, "`models.reference`", "`copy` where it is the model's own"),
    *(
        ignored(f"ref_model.{key}", "the reference computes as the model does")
        for key in ("type", "dtype", "attn_implementation", "disable_activation_checkpoint", "save_name")
    ),
    *(
        by(f"ref_model.{key}", _unless_empty, about=PREFERENCES.reason, kind="unsupported")
        for key in ("peft_config", "hf_config_kwargs")
    ),
    ignored("ref_model", "a copy of the model is the default"),
)
"""The keys of ``type: dpo``."""


def set_pairs_of(found: Collector) -> None:
    """Set what ArcticTraining does with pairs."""
    found.default("data.train_on", "completion", f"{PROGRAM} trains all that follows the prompt")
    set_uncut(found, PROGRAM)
