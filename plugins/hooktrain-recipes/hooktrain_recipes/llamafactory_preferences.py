"""Preferences in LLaMA-Factory's recipes: the loss and its reference, and sets of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hooktrain import Collector
from hooktrain_recipes.preferences import copy_loss, set_loss, set_pairs
from hooktrain_recipes.reasons import PREFERENCES
from hooktrain_recipes.values import text

__all__ = ["pair_up", "set_preferences", "set_source", "tags_of"]

PROGRAM = "LLaMA-Factory"
_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}


def set_preferences(found: Collector, said: str) -> None:
    """Set trainer type, loss and reference; ``said`` is the key that says that pairs are trained on."""
    stage = found.get("stage", "dpo")
    if stage != "dpo":
        _others(found, stage)
        return
    kind, key = found.get("pref_loss", "sigmoid"), "pref_loss"
    set_loss(found, said, kind if kind in ("orpo", "simpo") else "dpo")
    if kind in ("orpo", "simpo"):
        found.translated(key, "loss.type")
    elif kind in ("sigmoid", "hinge", "ipo"):
        found.copy(key, "loss.loss_type", text)
    else:
        PREFERENCES.refuse(found, key, f"{kind!r:.40}")
    copy_loss(found, "pref_beta", "beta", ("dpo", "orpo", "simpo"))
    if kind == "simpo":
        found.default("loss.beta", 0.1, f"the default of {PROGRAM}")
    smoothed = ("dpo",) if kind == "sigmoid" else ()
    copy_loss(found, "dpo_label_smoothing", "label_smoothing", smoothed, zero=True)
    copy_loss(found, "simpo_gamma", "gamma", ("simpo",), zero=True)
    if found.get("ref_model") and found.recipe["loss"]["type"] == "dpo":
        found.copy("ref_model", "models.reference.name_or_path", text)
        found.set("models.reference.type", "huggingface")
        found.translated("ref_model", "models.reference.type")
    elif "ref_model" in found:
        found.ignored("ref_model", "this loss has no reference" if found.get("ref_model") else "null is the default")


def _others(found: Collector, stage: str) -> None:
    """Set the losses of the stages ``kto`` and ``rm``."""
    set_loss(found, "stage", "kto" if stage == "kto" else "reward")
    copy_loss(found, "pref_beta", "beta", ("kto",))
    copy_loss(found, "kto_chosen_weight", "desirable_weight", ("kto",))
    copy_loss(found, "kto_rejected_weight", "undesirable_weight", ("kto",))


def pair_up(found: Collector) -> None:
    """Put two answers of KTO into a micro-batch, each of which meets the other's prompt there."""
    if found.recipe.get("type") != "kto" or found.recipe.get("micro_batch_size") != 1:
        return
    steps, key = found.recipe.get("gradient_accumulation_steps", 1), "gradient_accumulation_steps"
    why = "KTO estimates the KL divergence with answers to other prompts of a micro-batch"
    if not isinstance(steps, int) or steps % 2:
        PREFERENCES.refuse(found, "per_device_train_batch_size", f"one answer in a micro-batch: {why}")
        return
    found.set("micro_batch_size", 2)
    found.set(key, steps // 2)
    found.notes["micro_batch_size"] = found.notes[key] = why


def set_source(
    found: Collector, key: str, to: str, entry: Mapping[str, Any], columns: Mapping[str, Any] | None
) -> None:
    """Set the format and columns of a source of pairs."""
    form = entry.get("formatting", "alpaca")
    given = {str(name): str(column) for name, column in (columns or {}).items() if column is not None}
    kto = found.get("stage") == "kto"
    names = {name: given.get(name, name) for name in ("chosen", "rejected")} if not kto else {}
    names |= {"label": given["kto_tag"]} if "kto_tag" in given and kto else {}
    names |= {name: given[name] for name in ("system", "tools") if name in given}
    parts: dict[str, Any] = {"system_column": "system" in given}
    if form == "alpaca":
        prompt = given.get("prompt", "instruction")
        query = given.get("query", "input" if columns is None else None)
        parts["prompt_columns"] = [prompt, query] if query else [prompt]
        names |= {"completion": given.get("response", "output")} if kto else {}
    elif form in ("sharegpt", "openai"):
        tags = tags_of(form, entry)
        parts["fields"] = {
            ours: tags[tag] for ours, tag in (("role", "role_tag"), ("content", "content_tag")) if tags[tag] != ours
        }
        known = {"user": "user_tag", "assistant": "assistant_tag", "system": "system_tag", "tool": "observation_tag"}
        parts["roles"] = {tags[tag]: ours for ours, tag in known.items() if tags[tag] != ours}
        names["completion" if kto else "prompt"] = given.get("messages", "conversations")
    else:
        found.unsupported(key, f"a data format that is not here: {form!r:.40}", "convert the rows")
        return
    set_pairs(found, key, to, parts, names)


def tags_of(form: Any, entry: Mapping[str, Any]) -> dict[str, str]:
    """Names of fields and roles of a set in the form of ShareGPT or OpenAI."""
    default = _TAGS | ({"role_tag": "role", "content_tag": "content"} if form == "openai" else {})
    return default | {str(k): str(v) for k, v in (entry.get("tags") or {}).items() if v is not None}
