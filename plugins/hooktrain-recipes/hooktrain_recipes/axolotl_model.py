"""The model, tokenizer, precision and adapter of Axolotl's recipes."""

from __future__ import annotations

import re
from typing import Any

from hooktrain import Collector
from hooktrain_recipes.adapters import copy_all, plain, targets, without_adapter
from hooktrain_recipes.axolotl_preferences import PAIRED
from hooktrain_recipes.block_settings import OFFLOADED
from hooktrain_recipes.preferences import without_dropout
from hooktrain_recipes.quantization import set_quantization
from hooktrain_recipes.reasons import (
    CONTRADICTION,
    DISTILLATION,
    FP8,
    GROUPS,
    IMAGES,
    MODEL_PARALLEL,
    OWN_CODE,
    PREFERENCES,
    QUANTIZED_BASE,
    Reason,
    method,
)
from hooktrain_recipes.values import at_least_one, flag, flag_of, listed, number, positive, text, whole

__all__ = ["LIGER", "set_adapter", "set_model"]

_ATTENTION = {
    "xformers_attention": "xformers",
    "sage_attention": "sage",
    "flex_attention": "flex_attention",
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
}
LIGER = {
    "liger_rope": ("rope",),
    "liger_rms_norm": ("rms_norm",),
    "liger_layer_norm": ("layer_norm",),
    "liger_glu_activation": ("swiglu", "geglu"),
    "liger_fused_linear_cross_entropy": ("fused_linear_cross_entropy",),
    "liger_cross_entropy": ("cross_entropy",),
}
"""Axolotl's switches of Liger's kernels, and ours."""

_PLUGINS = {
    "cut_cross_entropy": "logits are never kept here either",
    "kernels": "kernels of experts change speed alone",
    "lm_eval": "evaluate the exported model with lm-eval",
    "liger": "",
    "hatchery": OWN_CODE,
    "kd": DISTILLATION,
    "expert_parallel": MODEL_PARALLEL,
    "spectrum": GROUPS,
    "swanlab": "use_swanlab asks for it",
    "diffusion": method("diffusion"),
    "llm_compressor": method("sparsity"),
    "grokfast": method("Grokfast"),
    "densemixer": method("DenseMixer"),
}


def set_model(found: Collector) -> None:
    """Set ``model`` and ``tokenizer``."""
    found.copy("base_model", "model.name_or_path", text)
    if found.get("trust_remote_code"):
        found.copy("trust_remote_code", "model.trust_remote_code", flag)
        found.set("tokenizer.trust_remote_code", flag_of(found.get("trust_remote_code")))
        found.translated("trust_remote_code", "tokenizer.trust_remote_code")
    elif "trust_remote_code" in found:
        found.ignored("trust_remote_code", "false is the default")
    for key in ("base_model_config",):
        if found.get(key) in (None, found.get("base_model")):
            found.ignored(key, "the model's own is the default") if key in found else None
        else:
            found.unsupported(key, "the config of another model", "copy it into the model's folder")
    _precision(found)
    _attention(found)
    _plugins(found)
    _checkpointing(found)
    _classes(found)
    found.copy("tokenizer_config", "tokenizer.name_or_path", text)
    for token in ("bos_token", "eos_token", "pad_token", "unk_token"):
        for section in ("special_tokens", "tokens"):
            found.copy(f"{section}.{token}", f"tokenizer.special_tokens.{token}", text)
    found.copy("special_tokens.additional_special_tokens", "tokenizer.special_tokens.extra_special_tokens", listed)
    if isinstance(found.get("tokens"), list):
        found.copy("tokens", "tokenizer.add_tokens", listed)
    if found.get("added_tokens_overrides"):
        found.copy("added_tokens_overrides", "tokenizer.add_tokens", lambda given: listed(list(given.values())))
    for key in ("model_config", "overrides_of_model_config", "model_kwargs", "overrides_of_model_kwargs"):
        if not isinstance(found.get(key), dict):
            continue
        for name, value in found.get(key).items():
            if name in ("use_cache", "low_cpu_mem_usage", "device_map"):
                found.ignored(f"{key}.{name}", "set by the run")
            elif name == "quantization_config":
                QUANTIZED_BASE.refuse(found, f"{key}.{name}")
            else:
                found.set(f"model.hf_config_kwargs.{name}", value)
                found.translated(f"{key}.{name}", f"model.hf_config_kwargs.{name}")
    if found.get("rope_scaling"):
        found.copy("rope_scaling", "model.hf_config_kwargs.rope_scaling", plain)


def _precision(found: Collector) -> None:
    bf16, half = found.get("bf16", "auto"), flag_of(found.get("fp16")) or flag_of(found.get("float16"))
    full = flag_of(found.get("bfloat16"))
    sharded = found.get("deepspeed") is not None
    if bf16 in ("auto", "full") or flag_of(bf16) or full:
        name = "auto" if bf16 == "auto" and not full else "bf16"
        key = "bfloat16" if full else "bf16"
        if half and bf16 != "auto":
            CONTRADICTION.refuse(found, "fp16" if flag_of(found.get("fp16")) else "float16", key)
    elif half:
        name, key = "fp16", "fp16" if flag_of(found.get("fp16")) else "float16"
    else:
        name, key = "fp32", "bf16"
    weights = {"auto": "bf16"}.get(name, name)
    if found.get(key) is not None:
        found.set("model.dtype", name)
        found.translated(key, "model.dtype")
    else:
        found.default("model.dtype", name, "the default of Axolotl")
    if sharded:
        pass  # DeepSpeed keeps the weights in that precision and updates them in float32
    elif found.get(key) is not None:
        found.set("model.weights_dtype", weights)
        found.translated(key, "model.weights_dtype")
    else:
        found.default("model.weights_dtype", weights, "Axolotl loads the weights in the precision of the computation")
    for other in ("bf16", "fp16", "bfloat16", "float16", "float32"):
        if other in found and not found.accounted(other):
            if found.get(other) in (None, False, True, "auto", "full", 0, 1):
                found.ignored(other, f"the precision is {name}")
            else:
                found.unsupported(
                    other, f"given {found.get(other)!r:.40}, expected true, false or auto", "write one of them"
                )


def _attention(found: Collector) -> None:
    names = [key for key in _ATTENTION if flag_of(found.get(key))]
    key = "attn_implementation"
    wanted = found.get(key) or (_ATTENTION[names[0]] if names else None)
    if wanted == "fp8":
        FP8.refuse(found, key)
    elif wanted in ("xformers", "sage"):  # other kernels for the same numbers
        for each in [key, *names]:
            if each in found:
                found.ignored(each, "other kernels for the same numbers: attention is computed by sdpa")
    elif wanted is not None and not isinstance(wanted, str):
        found.unsupported(key, "expected the name of an implementation", "write sdpa or flash_attention_2")
    elif wanted is not None:
        found.set("model.attn_implementation", wanted)
        found.translated(key if found.get(key) else names[0], "model.attn_implementation")
    for each in [key, *_ATTENTION]:
        if each in found:
            found.ignored(each, "not used")


def _plugins(found: Collector) -> None:
    given = found.get("plugins")
    named = [str(each) for each in given] if isinstance(given, list) else []
    liger = False
    refused: Reason | None = None
    what = ""
    for name in named:
        matched = re.fullmatch(r"axolotl\.integrations\.(\w+)(\.\w+)*", name)
        known = _PLUGINS.get(matched[1], OWN_CODE) if matched else OWN_CODE
        liger = liger or known == ""
        if isinstance(known, Reason) and refused is None:
            refused, what = known, name if known is OWN_CODE else ""
    if refused is not None:
        refused.refuse(found, "plugins", what)
    elif liger:
        found.translated("plugins", "model.type")
    elif "plugins" in found and isinstance(given, (list, type(None))):
        found.ignored("plugins", "what they do changes no number here" if named else "none")
    if liger:
        found.set("model.type", "liger")
    for key, ours in LIGER.items():
        if key == "liger_cross_entropy" and key not in found:
            continue
        value = flag_of(found.get(key))
        if not liger:
            if key in found:
                found.ignored(key, "used with its plugin alone")
        elif value and key not in ("liger_fused_linear_cross_entropy", "liger_cross_entropy"):
            found.translated(key, *(f"model.{name}" for name in ours))  # on where Liger has it: our default
        else:
            for name in ours:
                found.set(f"model.{name}", value)
                if key not in found:
                    found.notes[f"model.{name}"] = "Axolotl uses only the kernels that are asked for"
            if key in found:
                found.translated(key, *(f"model.{name}" for name in ours))
    if liger and found.recipe["model"].get("cross_entropy"):
        found.set("model.fused_linear_cross_entropy", False)
    if "liger_rms_norm_gated" in found:
        found.ignored("liger_rms_norm_gated", "computed by the model's own layer")
    for key in ("liger_use_token_scaling",):
        if flag_of(found.get(key)):
            found.unsupported(key, "token scaling", "use loss: {type: dft}, which multiplies by the probability")
        elif key in found:
            found.ignored(key, "false is the default")


def _checkpointing(found: Collector) -> None:
    key, value = "gradient_checkpointing", found.get("gradient_checkpointing")
    asks = isinstance(value, str) and value.startswith(OFFLOADED)  # which also offloads, see set_block_settings
    found.copy(key, "model.activation_checkpointing", lambda given: True if asks else flag(given))
    if flag_of(found.get("selective_checkpointing")):
        found.copy("selective_checkpointing", "model.activation_checkpointing", lambda _: "selective")
    elif "selective_checkpointing" in found:
        found.ignored("selective_checkpointing", "not used: this value asks for nothing")
    key, patience = "loss_watchdog_threshold", "loss_watchdog_patience"
    if found.get(key):
        found.copy(key, "spike_guard.max_loss", positive)
        found.set("spike_guard.action", "keep")
        found.translated(key, "spike_guard.action")
        found.copy(patience, "spike_guard.patience", at_least_one)
        found.default("spike_guard.patience", 3, "the default of Axolotl")


def _classes(found: Collector) -> None:
    for key in ("model_type", "type_of_model", "cls_model_config"):
        name = found.get(key)
        if name is None:
            found.ignored(key, "null is the default") if key in found else None
        elif key == "cls_model_config" or re.search(
            r"(For(CausalLM|ConditionalGeneration|ImageTextToText)|AutoModel)$", str(name)
        ):
            found.ignored(key, "the class is the one of the model's config")
        elif flag_of(found.get("reward_model")) and str(name).endswith("ForSequenceClassification"):
            found.ignored(key, "a reward model is one")
        elif re.search(r"For(Sequence|Token)Classification$", str(name)):
            PREFERENCES.refuse(found, key)
        else:
            OWN_CODE.refuse(found, key, str(name)[:60])
    if found.get("processor_type"):
        IMAGES.refuse(found, "processor_type")
    elif "processor_type" in found:
        found.ignored("processor_type", "null is the default")
    if found.get("tokenizer_use_mistral_common"):
        found.ignored(
            "tokenizer_use_mistral_common", "the tokenizer is the one that AutoTokenizer makes of the model's files"
        )


_LORA = (
    ("lora_r", "peft.r", whole),
    ("lora_alpha", "peft.alpha", number),
    ("lora_dropout", "peft.dropout", number),
    ("lora_modules_to_save", "peft.modules_to_save", listed),
    ("lora_target_parameters", "peft.config.target_parameters", listed),
    ("lora_fan_in_fan_out", "peft.config.fan_in_fan_out", flag),
    ("lora_rank_pattern", "peft.config.rank_pattern", plain),
    ("lora_alpha_pattern", "peft.config.alpha_pattern", plain),
    ("peft_layers_to_transform", "peft.config.layers_to_transform", None),
    ("peft_layers_pattern", "peft.config.layers_pattern", None),
    ("peft_layer_replication", "peft.config.layer_replication", None),
    ("peft_trainable_token_indices", "peft.config.trainable_token_indices", None),
    ("peft_ensure_weight_tying", "peft.config.ensure_weight_tying", flag),
    ("peft_use_dora", "peft.use_dora", flag),
    ("peft_use_rslora", "peft.use_rslora", flag),
    ("peft_init_lora_weights", "peft.init_lora_weights", None),
)
_TARGETS = ("lora_target_modules", "lora_target_linear")


def _quantization(found: Collector, kind: Any) -> None:
    four = [key for key in ("load_in_4bit",) if flag_of(found.get(key))] + ["adapter"] * (kind == "qlora")
    eight = [key for key in ("load_in_8bit",) if flag_of(found.get(key))]
    if four and eight:
        CONTRADICTION.refuse(found, "load_in_8bit", "load_in_4bit")
    options = {"double": "use_double_quant", "type": "quant_type", "compute_dtype": "compute_dtype"}
    set_quantization(
        found,
        4 if four else 8 if eight else 0,
        tuple(four or eight),
        {ours: f"bnb_config_kwargs.bnb_4bit_{theirs}" for ours, theirs in options.items()},
        adapter=bool(kind),
        model="base_model",
        double=True,
    )
    for key in found.get("bnb_config_kwargs") if isinstance(found.get("bnb_config_kwargs"), dict) else ():
        if key in ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_storage"):
            found.ignored(f"bnb_config_kwargs.{key}", "packed weights are bytes")


def _unfrozen(found: Collector, kind: Any) -> None:
    """Freeze what no pattern of ``unfrozen_parameters`` fits; dots are dots, and beginnings of names are compared."""
    key = "unfrozen_parameters"
    given = found.get(key)
    if not given:
        return
    if kind:
        found.ignored(key, "with an adapter nothing else is trained")
        return
    patterns = listed(given) if isinstance(given, list) else [text(given)]
    if any(re.search(r"\[\d*(:\d*)?\]$", pattern) for pattern in patterns):
        GROUPS.refuse(found, key, "rows of a weight")
        return
    try:
        names = [re.compile(re.sub(r"\.(?!\+)", r"\.", pattern)).pattern for pattern in patterns]
    except re.error as problem:
        found.unsupported(key, f"no regular expression ({problem})", "correct it")
        return
    found.set("model.freeze", [f"^(?!{'|'.join(names)})"])
    found.translated(key, "model.freeze")


def _loftq(found: Collector) -> None:
    """Set LoftQ, whose base has values of nf4 in Axolotl too, though it keeps them unpacked."""
    key = "peft.loftq_config.loftq_bits"
    if found.get(key) == 4 and not found.has("model.quantization"):
        found.set("peft.init_lora_weights", "loftq")
        found.set("model.quantization", {"type": "nf4", "double": False})
        found.translated(key, "peft.init_lora_weights", "model.quantization.type", "model.quantization.double")


def set_adapter(found: Collector) -> None:
    """Set ``peft``."""
    kind, folder = found.get("adapter"), found.get("lora_model_dir")
    keys = [key for key, _, _ in _LORA] + [*_TARGETS, "lora_model_dir"]
    _quantization(found, kind)
    _unfrozen(found, kind)
    if kind not in (None, "lora", "qlora", ""):
        found.unsupported(
            "adapter", f"an adapter that is not here: {kind!r:.40}", "use peft: {type: lora}, or another method of PEFT"
        )
    if kind in (None, ""):
        found.ignored("adapter", "null: the model itself is trained") if "adapter" in found else None
        without_adapter(found, keys, "used with an adapter alone")
        return
    if folder:
        found.copy("lora_model_dir", "peft.adapter", text)
        found.translated("adapter", "peft.adapter")
        without_adapter(found, keys, "the adapter in lora_model_dir says it")
        return
    found.set("peft.type", "lora")
    found.translated("adapter", "peft.type")
    found.ignored("lora_model_dir", "null is the default") if "lora_model_dir" in found else None
    if found.get("rl") in PAIRED:
        without_dropout(found, "lora_dropout")
    copy_all(found, _LORA)
    _loftq(found)
    found.default("peft.r", 8, "the default of PEFT")
    found.default("peft.alpha", 8, "the default of PEFT")
    if flag_of(found.get("lora_target_linear")):
        others = found.get("lora_target_modules") or []
        found.set("peft.target_modules", "all-linear")
        found.translated("lora_target_linear", "peft.target_modules")
        if isinstance(others, str) or any("embed" in str(each) or "head" in str(each) for each in others):
            CONTRADICTION.refuse(found, "lora_target_modules", "lora_target_linear")
        elif "lora_target_modules" in found:
            found.ignored("lora_target_modules", "all linear layers are adapted")
        return
    if "lora_target_linear" in found:
        found.ignored("lora_target_linear", "the modules are named")
    if found.get("lora_target_modules"):
        found.copy("lora_target_modules", "peft.target_modules", targets)
    else:
        found.ignored("lora_target_modules", "null is the default") if "lora_target_modules" in found else None
        if found.get("lora_target_parameters"):
            found.default("peft.target_modules", [], "parameters alone are adapted")
        else:
            found.unsupported("adapter", "an adapter without modules", "write lora_target_linear: true")
