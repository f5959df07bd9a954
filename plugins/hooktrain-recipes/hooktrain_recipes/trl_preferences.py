"""Preferences in TRL's flat arguments: the method that a recipe is for, and the keys of its losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from hooktrain import Collector
from hooktrain_recipes.preferences import copy_loss, set_dpo_variant, set_loss, set_uncut, without_dropout
from hooktrain_recipes.reasons import PREFERENCES, Reason, belongs, refused
from hooktrain_recipes.tables import Row, all_ignored
from hooktrain_recipes.values import flag_of, text

__all__ = ["PREFERENCE_ROWS", "set_dropout", "set_preferences"]

PROGRAM = "TRL"
_METHODS = {"sft": "", "dpo": "dpo", "orpo": "orpo", "cpo": "cpo", "kto": "kto", "reward": "reward", "rm": "reward"}
"""Folders of the alignment handbook, which are named after the script, and losses here; empty for fine-tuning."""
_DPO = (
    "beta", "max_prompt_length", "rpo_alpha", "ld_alpha", "f_divergence_type", "precompute_ref_log_probs",
    "reference_free", "sync_ref_model", "use_weighting", "discopop_tau", "ref_model_init_kwargs", "force_use_ref_model",
)  # fmt: skip
_OTHER = {
    "cpo_alpha": "cpo", "simpo_gamma": "cpo", "desirable_weight": "kto", "undesirable_weight": "kto",
    "center_rewards_coefficient": "reward",
}  # fmt: skip
"""Keys of one method alone."""
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

PREFERENCE_ROWS: tuple[Row, ...] = (
    *(
        Row(key=key, ours=f"`{ours}`", about=about)
        for key, ours, about in (
            ("beta", "loss.beta", "with `loss: {type: dpo}`, or by the folder's name orpo or cpo"),
            ("label_smoothing", "loss.label_smoothing", "of `robust` and `exo_pair`"),
            ("cpo_alpha", "loss.cpo_alpha", ""),
            ("simpo_gamma", "loss.gamma", "with `loss_type: simpo` and `cpo_alpha: 0`"),
            ("force_use_ref_model", "models.reference.type", "`copy`"),
            ("ref_model_init_kwargs", "models.reference.dtype", ""),
            ("disable_dropout", "peft.dropout", "true in TRL, for preferences"),
            ("loss_weights", "loss.loss_type", "of several losses at once"),
            ("discopop_tau", "loss.discopop_tau", ""),
            ("desirable_weight", "loss.desirable_weight", "`type: kto`, as the folder's name says too"),
            ("undesirable_weight", "loss.undesirable_weight", ""),
            ("center_rewards_coefficient", "loss.center_rewards_coefficient", "`type: reward`, likewise"),
        )
    ),
    *all_ignored("prompts are whole: `max_length` is that of a prompt with an answer", "max_prompt_length",
                 "max_completion_length", "max_target_length"),
    *all_ignored("the reference computes its part of a batch when it is needed, with the same result",
                 "precompute_ref_log_probs", "precompute_ref_batch_size", "precompute_ref_eval_batch_size",
                 "use_logits_to_keep"),
    *all_ignored("padding carries no loss", "padding_value", "label_pad_token_id"),
    *all_ignored("answers are not generated in evaluations", "generate_during_eval"),
    *all_ignored("belongs to another divergence", "f_alpha_divergence_coef"),
    PREFERENCES.row("f_divergence_type", off=(None, "reverse_kl")),
    PREFERENCES.row("ld_alpha", off=(None, 1.0)),
    *refused(PREFERENCES, "reference_free", "sync_ref_model", "rpo_alpha", "use_weighting", "model_adapter_name",
             "ref_adapter_name", "rpo_weight", "alpha", "tpo_alpha", "is_encoder_decoder"),
    *belongs(PREFERENCES, "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
    *belongs(PREFERENCES, "tpo_alpha", "tpo_l_gamma"),
)  # fmt: skip


def method_of(found: Collector, folder: Path) -> tuple[str, str]:
    """Return the method of preferences that a recipe is for, empty for fine-tuning, and the key that says it.

    The key is empty where the folder's name says it, as the alignment handbook names folders after its scripts.
    """
    if found.get("reward_funcs") or found.get("num_generations") or found.get("teacher_model_name_or_path"):
        return "", ""
    for key, method in _OTHER.items():
        if found.get(key) is not None:
            return method, key
    kind = found.get("loss_type")
    if kind in ("kto", "apo_zero_unpaired"):
        return "kto", "loss_type"
    if kind in ("simpo", "alphapo"):
        return "cpo", "loss_type"
    if folder.name in _METHODS:
        return _METHODS[folder.name], ""
    if kind not in (None, "nll", "chunked_nll", "dft"):
        return "dpo", "loss_type"
    key = next((key for key in (*_DPO, *_columns(found)) if found.get(key) is not None), "")
    return ("dpo", key) if key else ("", "")


def _columns(found: Collector) -> Iterator[str]:
    """Keys that name columns or splits of pairs."""
    for path, value in found.values.items():
        named = [str(each) for each in value] if isinstance(value, list) else []
        paired = path.endswith(".columns") and {"chosen", "rejected"} <= set(named)
        if paired or (path == "dataset_splits" and any("prefs" in split for split in named)):
            yield path


def set_preferences(found: Collector, folder: Path) -> str:
    """Set trainer type, loss and reference where a recipe is for preferences; returns the method."""
    method, key = method_of(found, folder)
    if not method:
        for each in (
            "beta",
            "label_smoothing",
            "cpo_alpha",
            "simpo_gamma",
            "force_use_ref_model",
            "disable_dropout",
            "loss_weights",
            "discopop_tau",
        ):
            if each in found:
                found.ignored(each, "belongs to preferences")
        if "ref_model_init_kwargs" in found:
            found.ignored("ref_model_init_kwargs", "belongs to preferences")
        return ""
    simpo = found.get("loss_type") in ("simpo", "alphapo")
    kind = "simpo" if simpo else method
    why = "" if key else f"the folder {folder.name}, which the alignment handbook names after the script"
    set_loss(found, key, kind, why)
    _numbers(found, kind)
    _reference(found)
    found.default("data.train_on", "completion", f"{PROGRAM} trains all that follows the prompt")
    set_uncut(found, PROGRAM)
    if found.get("learning_rate") is None:
        found.default("optimizer.lr", 1e-4 if method == "reward" else 1e-6, f"the default of {PROGRAM}")
    if "disable_dropout" in found and found.has("peft"):
        found.translated("disable_dropout", "peft.dropout")
    elif "disable_dropout" in found:
        found.ignored("disable_dropout", "of adapters: models have none of their own")
    return method


def set_dropout(found: Collector, folder: Path) -> None:
    """Set no dropout of an adapter, where the recipe is for preferences."""
    if method_of(found, folder)[0] and flag_of(found.get("disable_dropout", True)):
        without_dropout(found, "lora_dropout")


def _numbers(found: Collector, kind: str) -> None:
    key = "loss_type"
    if kind == "dpo" and found.get(key) is not None:
        set_dpo_variant(found, key, "loss_weights")
    elif kind == "kto" and found.get(key) in ("kto", "apo_zero_unpaired"):
        found.copy(key, "loss.loss_type", text)
    elif kind == "simpo":
        _simpo(found, key)
    elif kind in ("orpo", "cpo") and found.get(key, "sigmoid") != "sigmoid":
        PREFERENCES.refuse(found, key, f"{kind} with the loss {found.get(key)!r:.40}")
    if key in found and not found.accounted(key):
        found.ignored(key, "is the loss of this method")
    copy_loss(found, "beta", "beta", ("dpo", "orpo", "cpo", "simpo", "kto"))
    for each in ("desirable_weight", "undesirable_weight"):
        copy_loss(found, each, each, ("kto",))
    copy_loss(found, "center_rewards_coefficient", "center_rewards_coefficient", ("reward",), zero=True)
    copy_loss(found, "discopop_tau", "discopop_tau", ("discopop",))
    if kind == "kto" and found.get("train_sampling_strategy") is None:
        found.default("data.shuffle", False, f"the default of {PROGRAM}")
    if kind == "simpo":
        found.default("loss.beta", 0.1, f"the default of {PROGRAM}")
    if kind == "cpo" and found.get("label_smoothing"):
        PREFERENCES.refuse(found, "label_smoothing", "of CPO")
    copy_loss(found, "label_smoothing", "label_smoothing", ("robust", "exo_pair"), zero=True)
    copy_loss(found, "cpo_alpha", "cpo_alpha", ("cpo",), zero=True)
    copy_loss(found, "simpo_gamma", "gamma", ("simpo",), zero=True)


def _simpo(found: Collector, key: str) -> None:
    """SimPO is a loss of CPO's script, whose cross-entropy is on unless ``cpo_alpha`` is 0."""
    if found.get(key) == "alphapo" or not found.get("cpo_alpha", 1.0):
        found.translated(key, "loss.type")
        found.ignored("cpo_alpha", "0 is none") if "cpo_alpha" in found else None
    else:
        Reason(f"{PREFERENCES.reason}: SimPO with the cross-entropy of cpo_alpha", "write cpo_alpha: 0").refuse(
            found, "cpo_alpha" if "cpo_alpha" in found else key
        )


def _reference(found: Collector) -> None:
    """Set what is said of the reference; a copy of the model, or the model without its adapter, is the default."""
    needed = found.recipe.get("loss", {}).get("type") in ("dpo", "kto")
    key = "force_use_ref_model"
    if flag_of(found.get(key)) and needed:
        found.set("models.reference.type", "copy")
        found.translated(key, "models.reference.type")
    elif key in found:
        found.ignored(key, "false is the default")
    key = "ref_model_init_kwargs"
    given = found.get(key)
    if not isinstance(given, Mapping) or not needed:
        if key in found:
            found.ignored(key, "none" if not given else "this loss has no reference")
        return
    for name, value in given.items():
        if name in ("torch_dtype", "dtype") and value in _DTYPES:
            found.copy(f"{key}.{name}", "models.reference.dtype", lambda dtype: _DTYPES[text(dtype)])
        elif name in ("attn_implementation", "use_cache", "device_map", "low_cpu_mem_usage", "torch_dtype", "dtype"):
            found.ignored(f"{key}.{name}", "the reference computes as the model does")
        else:
            PREFERENCES.refuse(found, f"{key}.{name}", "another reference than the model as it is before the run")
