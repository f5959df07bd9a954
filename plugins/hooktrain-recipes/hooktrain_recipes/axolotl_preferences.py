"""Preferences in Axolotl's recipes: ``rl``, the numbers of its losses, and the types of sets of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hooktrain import Collector
from hooktrain_recipes.pairs import PARTS
from hooktrain_recipes.preferences import copy_loss, set_dpo_variant, set_loss, set_pairs
from hooktrain_recipes.prompts import places_of
from hooktrain_recipes.reasons import CONTRADICTION, PREFERENCES, ROLLOUTS, Reason
from hooktrain_recipes.tables import Row, all_ignored, told
from hooktrain_recipes.values import flag_of, text

__all__ = ["PAIRED", "PREFERENCE_ROWS", "pairs_of", "reward_pairs", "set_method", "set_reward"]

PAIRED = {"dpo": "dpo", "ipo": "dpo", "orpo": "orpo", "simpo": "simpo", "kto": "kto"}
"""Values of ``rl`` that train on given answers, and the losses here."""
_NUMBERS = ("rl_beta", "dpo_beta", "orpo_alpha", "simpo_gamma", "dpo_label_smoothing", "dpo_loss_type",
            "dpo_loss_weights", "cpo_alpha", "kto_desirable_weight", "kto_undesirable_weight")  # fmt: skip
_REFUSED = ("dpo_use_weighting", "rpo_alpha", "dpo_norm_loss")
_CHATML = ("<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>",
           "<|im_start|>system\n{system}<|im_end|>\n")  # fmt: skip
_LLAMA3 = (
    "<|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|eot_id|>",
    "<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
)
_TEXTS = {"chatml": _CHATML, "llama3": _LLAMA3}
"""The text of a prompt, the end of an answer, and what a text of the system puts before."""
_COLUMNS = {
    "default": ["prompt", "input", "question", "instruction"],
    "argilla_chat": [],
    "argilla": ["instruction"],
    "icr": ["input"],
    "intel": ["question"],
    "prompt_pairs": ["prompt"],
    "ultra": ["prompt"],
}
"""Of a type such as ``chatml.intel``, the columns of the prompt; without one it is the first message of the answer."""

PREFERENCE_ROWS: tuple[Row, ...] = (
    *told(
        {
            "rl": ("type loss.type", "`dpo`, `ipo`, `orpo`, `simpo`, `kto`; others sample answers, and are refused"),
            "rl_beta": ("loss.beta", "and `dpo_beta`, `orpo_alpha`"),
            "orpo_alpha": ("loss.beta", "of ORPO"),
            "simpo_gamma": ("loss.gamma", ""),
            "dpo_loss_type": ("loss.loss_type", "one"),
            "dpo_label_smoothing": ("loss.label_smoothing", "of the loss `robust`"),
            "rl_adapter_ref_model": ("models.reference.type", "`copy`"),
            "dpo_loss_weights": ("loss.loss_type", "of several losses"),
            "kto_desirable_weight": ("loss.desirable_weight", ""),
            "kto_undesirable_weight": ("loss.undesirable_weight", ""),
            "reward_model": ("type loss.type", "`reward`"),
            "center_rewards_coefficient": ("loss.center_rewards_coefficient", ""),
        }
    ),
    *all_ignored("the reference computes its part of a batch when it is needed, with the same result",
                 "precompute_ref_log_probs", "dpo_use_liger_kernel", "dpo_padding_free", "dpo_use_logits_to_keep"),
    *all_ignored("no answers are generated in evaluations", "dpo_generate_during_eval"),
    *all_ignored("prompts are whole: sequence_len is that of a prompt with an answer", "max_prompt_len"),
)  # fmt: skip


def set_method(found: Collector) -> None:
    """Set trainer type and loss, where the recipe is for preferences."""
    kind = found.get("rl")
    if kind in ("grpo", "gdpo", "ebft"):
        ROLLOUTS.refuse(found, "rl")
    elif kind in PAIRED:
        set_loss(found, "rl", PAIRED[kind])
        _numbers(found, str(kind))
        for path in ("trl", "vllm", "ebft"):
            if path in found:
                found.ignored(path, "used with answers that the run samples; of trl, beta counts")
    elif kind:
        PREFERENCES.refuse(found, "rl")
    elif "rl" in found:
        found.ignored("rl", "null is the default")
    paired = kind in PAIRED
    for key in _REFUSED:
        if flag_of(found.get(key)) or (found.get(key) and not isinstance(found.get(key), bool)):
            (PREFERENCES.refuse if paired else _unused)(found, key)
        elif key in found:
            found.ignored(key, "not used")
    key = "rl_adapter_ref_model"
    if flag_of(found.get(key)) and kind in ("dpo", "ipo", "kto"):
        found.set("models.reference.type", "copy")
        found.translated(key, "models.reference.type")
    elif key in found:
        found.ignored(key, "false is the default")
    for key in _NUMBERS:
        if key in found:
            found.ignored(key, "this loss has no such number" if paired else "used with rl alone")


def set_reward(found: Collector) -> None:
    """Set trainer type and loss of a reward model."""
    key = "center_rewards_coefficient"
    if flag_of(found.get("reward_model")):
        set_loss(found, "reward_model", "reward")
        copy_loss(found, key, key, ("reward",), zero=True)
        if found.get("num_labels") in (None, 1):
            found.ignored("num_labels", "a reward model has one output") if "num_labels" in found else None
        else:
            PREFERENCES.refuse(found, "num_labels", "more than one output")
    elif key in found:
        found.ignored(key, "used with reward_model alone")


def _unused(found: Collector, key: str) -> None:
    found.ignored(key, "used with rl alone")


def _numbers(found: Collector, kind: str) -> None:
    if kind == "ipo":
        found.set("loss.loss_type", "ipo")
        found.translated("rl", "loss.loss_type")
    elif kind == "dpo" and found.get("dpo_loss_type") is not None:
        set_dpo_variant(found, "dpo_loss_type", "dpo_loss_weights")
    betas = [key for key in ("trl.beta", "rl_beta", "dpo_beta", "orpo_alpha") if found.get(key) is not None]
    for other in betas[1:]:
        if found.get(other) != found.get(betas[0]):
            CONTRADICTION.refuse(found, other, betas[0])
    for key in betas[:1]:
        copy_loss(found, key, "beta", ("dpo", "orpo", "simpo", "kto"))
    for name in ("desirable_weight", "undesirable_weight"):
        copy_loss(found, f"kto_{name}", name, ("kto",))
    for key in betas[1:]:
        found.translated(key, "loss.beta")
    if kind == "simpo":
        found.default("loss.beta", 0.1, "the default of TRL")
        if found.get("cpo_alpha", 1.0):  # on unless it is 0
            Reason(f"{PREFERENCES.reason}: SimPO with the cross-entropy of cpo_alpha", "write cpo_alpha: 0").refuse(
                found, "cpo_alpha" if "cpo_alpha" in found else "rl"
            )
    copy_loss(found, "simpo_gamma", "gamma", ("simpo",), zero=True)
    copy_loss(found, "dpo_label_smoothing", "label_smoothing", ("robust", "exo_pair"), zero=True)


def pairs_of(found: Collector, path: str, to: str, kind: Any) -> bool:
    """Set the format of a set of pairs, from its type; returns whether the type is known."""
    key = f"{path}.type"
    if isinstance(kind, Mapping):
        return _own_text(found, key, to, kind)
    if kind is None:
        found.ignored(key, "the columns prompt, chosen and rejected are recognised") if key in found else None
        return True
    family, _, name = str(kind).partition(".")
    if kind == "passthrough" or family == "passthrough":
        found.ignored(key, "the columns prompt, chosen and rejected are recognised")
        return True
    if family in _TEXTS and (name or "default") in _COLUMNS:
        prompt, end, system = _TEXTS[family]
        answers = {answer: f"{{{answer}}}{end}" for answer in _answers(found)}
        parts: dict[str, Any] = {"prompt": prompt, "with_system": system + prompt, **answers}
        if (columns := _COLUMNS[name or "default"]) != ["prompt"]:
            parts["prompt_columns"] = columns
        set_pairs(found, key, to, parts, {})
        return True
    if family in ("chat_template", "chat_template_argilla") and name in ("", "default", "argilla", "argilla_chat"):
        _messages(found, path, to, whole=name.startswith("argilla"))
        return True
    return False


def _answers(found: Collector) -> tuple[str, ...]:
    return ("completion",) if found.get("rl") == "kto" else ("chosen", "rejected")


def reward_pairs(found: Collector, path: str, to: str, kind: Any) -> bool:
    """Set the format of a set for a reward model, from its type; returns whether the type is known."""
    if kind is None:
        if f"{path}.type" in found:
            found.ignored(f"{path}.type", "the columns chosen and rejected are recognised")
        return True
    name = str(kind).removeprefix("bradley_terry.")
    if name == "chat_template":
        set_pairs(found, f"{path}.type", to, {"system_column": True}, {"prompt": "input"})
        return True
    family, _, rest = name.partition(".")
    if family in _TEXTS and rest == "icr":
        prompt, end, system = _TEXTS[family]
        parts = {"prompt": prompt, "with_system": system + prompt, "prompt_columns": ["input"]}
        set_pairs(
            found, f"{path}.type", to, {**parts, "chosen": f"{{chosen}}{end}", "rejected": f"{{rejected}}{end}"}, {}
        )
        return True
    return False


def _messages(found: Collector, path: str, to: str, whole: bool) -> None:
    """Pairs that the chat template writes; ``whole`` where the answers are complete conversations."""
    key = f"{path}.type"
    mappings = found.get(f"{path}.message_property_mappings")
    named = dict(mappings) if isinstance(mappings, Mapping) else {}
    for ours in ("role", "content"):
        named.setdefault(ours, found.get(f"{path}.message_field_{ours}", ours))
    fields = {str(ours): text(theirs) for ours, theirs in named.items() if theirs not in (None, ours)}
    given = found.get(f"{path}.roles")
    names = given.items() if isinstance(given, Mapping) else ()
    roles = {
        str(name): str(ours)
        for ours, theirs in names
        for name in (theirs if isinstance(theirs, list) else [theirs])
        if name != ours
    }
    columns = {} if whole else {"prompt": str(found.get(f"{path}.field_messages", "messages"))}
    columns |= {name: str(found.get(f"{path}.field_{name}", name)) for name in _answers(found)}
    parts: dict[str, Any] = {"fields": fields, "roles": roles, "system_column": whole and found.get("rl") == "orpo"}
    if whole and found.get("rl") != "orpo":
        parts["prompt_columns"] = []
    form = set_pairs(found, key, to, parts, columns)
    for name, part in (
        ("message_property_mappings", "fields"),
        ("message_field_role", "fields"),
        ("message_field_content", "fields"),
        ("roles", "roles"),
    ):
        if f"{path}.{name}" in found:
            if found.has(f"{form}.{part}"):
                found.translated(f"{path}.{name}", f"{form}.{part}")
            else:
                found.ignored(f"{path}.{name}", "these names are known")
    for name, ours in (("field_messages", "prompt"), ("field_chosen", "chosen"), ("field_rejected", "rejected")):
        if f"{path}.{name}" in found:
            if found.has(f"{to}.columns.{ours}"):
                found.translated(f"{path}.{name}", f"{to}.columns.{ours}")
            else:
                found.ignored(f"{path}.{name}", "the column that the format reads")


def _own_text(found: Collector, key: str, to: str, kind: Mapping[str, Any]) -> bool:
    """A type that writes its own texts."""
    parts: dict[str, Any] = {"prompt": "{prompt}"}
    columns: dict[str, str] = {}
    for name, value in kind.items():
        what, _, part = str(name).partition("_")
        path = f"{key}.{name}"
        if value in (None, ""):
            found.ignored(path, "empty is the default")
        elif what == "field" and part in ("prompt", "system", "label", *_answers(found)) and isinstance(value, str):
            columns[part] = value
            found.translated(path, f"{to}.columns.{part}")
        elif what in ("prompt", *_answers(found)) and part == "format" and isinstance(value, str):
            try:
                places_of(value, PARTS[what], what)
            except ValueError as problem:
                found.unsupported(path, str(problem), "write only these places")
                continue
            parts[what] = value
            found.translated(path, f"prompts.pairs.pairs.{what}")
        else:
            found.unsupported(path, f"given {value!r:.60}, which Axolotl does not take here", "correct or remove it")
    set_pairs(found, key, to, parts, columns)
    return True
