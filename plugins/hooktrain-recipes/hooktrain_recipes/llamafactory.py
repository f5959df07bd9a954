"""The dialect ``llamafactory``: recipes of LLaMA-Factory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from hooktrain import Collector, Translation
from hooktrain_recipes.adapters import copy_all, targets, without_adapter
from hooktrain_recipes.block_settings import set_block_settings
from hooktrain_recipes.deepspeed_json import translate_deepspeed_file
from hooktrain_recipes.explained import explain
from hooktrain_recipes.fsdp import set_fsdp
from hooktrain_recipes.kinds import check_kinds, guarded, refuse_unknown
from hooktrain_recipes.llamafactory_data import set_data
from hooktrain_recipes.llamafactory_preferences import pair_up, set_preferences
from hooktrain_recipes.llamafactory_rows import ROWS as ROWS_V0
from hooktrain_recipes.llamafactory_training import set_evaluation, set_optimizer_of, set_saves
from hooktrain_recipes.llamafactory_v1 import ROWS as ROWS_V1
from hooktrain_recipes.llamafactory_v1 import set_v1
from hooktrain_recipes.optimizers import fit_strategy
from hooktrain_recipes.preferences import without_dropout
from hooktrain_recipes.quantization import set_quantization
from hooktrain_recipes.reasons import (
    CONTRADICTION,
    GROUPS,
    IMAGES,
    QUANTIZED_BASE,
    ROLLOUTS,
)
from hooktrain_recipes.tables import Row, apply
from hooktrain_recipes.training_arguments import set_length
from hooktrain_recipes.values import at_least_one, flag, flag_of, listed, number, numeric, share, text, whole

__all__ = ["ROWS", "dialect"]

_FIRST = frozenset(row.key for row in ROWS_V0)
ROWS: tuple[Row, ...] = (*ROWS_V0, *(row for row in ROWS_V1 if row.key not in _FIRST))
"""The table of both generations' keys."""

_OWN = ("stage", "finetuning_type", "cutoff_len", "dataset_dir", "lora_target", "do_train")
_V1 = ("train_dataset", "model_class", "dist_config", "kernel_config")
_STRUCTURED: tuple[str, ...] = ("lr_scheduler_kwargs", "fsdp_config", "peft_config", "dist_config", "kernel_config")
_STRUCTURED += ("deepspeed", "quant_config", "optim_config")
_LISTS = ("dataset", "eval_dataset", "fsdp", "adapter_name_or_path", "lora_target", "oft_target", "additional_target")
_PROGRAM = "LLaMA-Factory"


@attrs.frozen
class _Dialect:
    name: str = "llamafactory"
    summary: str = _PROGRAM

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        classic = "model_name_or_path" in raw and ("stage" in raw or "finetuning_type" in raw)
        return (classic and "dataset" in raw) or ("model" in raw and "train_dataset" in raw)

    def translate(self, raw: Mapping[str, Any], folder: Path) -> Translation:
        found = Collector(raw, _PROGRAM)
        if isinstance(found.get("model"), str) and any(key in found for key in _V1):
            if not found.get("train_dataset"):
                return Translation(not_a_recipe="no train_dataset: a model is exported or answers are sampled")
            check_kinds(found, ROWS_V1, _STRUCTURED, ())
            guarded(found, partial(set_v1, found, folder), "model")
            apply(found, ROWS_V1)
            refuse_unknown(found, ROWS_V1)
            explain(found)
            return found.translation()
        if why := _not_a_recipe(found):
            return Translation(not_a_recipe=why)
        check_kinds(found, ROWS_V0, _STRUCTURED, _LISTS)
        for step in (
            _model,
            partial(_data, folder=folder),
            _stage,
            _adapter,
            _batches,
            set_optimizer_of,
            set_evaluation,
            set_saves,
        ):
            guarded(found, partial(step, found), "model_name_or_path")
        guarded(found, partial(_strategy, found, folder), "deepspeed" if "deepspeed" in found else "model_name_or_path")
        fit_strategy(found, "use_muon" if flag_of(found.get("use_muon")) else "optim", ("quantization_bit",))
        set_block_settings(found, offload=("use_unsloth_gc",), implied=True)
        apply(found, ROWS_V0)
        pair_up(found)
        refuse_unknown(found, ROWS)
        explain(found)
        return found.translation()


def dialect() -> _Dialect:
    return _Dialect()


def _not_a_recipe(found: Collector) -> str:
    if found.get("model_name_or_path") is None:
        if found.get("peft_config.export_dir") or found.get("export_dir"):
            return "a model is exported, and nothing trained"
        return "no model_name_or_path with a stage and data, as LLaMA-Factory's training recipes have"
    if found.get("export_dir"):
        return "a model is exported, and nothing trained"
    if not flag_of(found.get("do_train")):
        wanted = flag_of(found.get("do_predict")) or flag_of(found.get("do_eval"))
        if wanted or not any(key in found for key in ("stage", "dataset")):
            return "do_train is not set: answers are generated, and nothing trained"
        if "do_train" in found or not found.get("dataset"):
            return "do_train is not set: nothing is trained"
    return ""


def _model(found: Collector) -> None:
    found.copy("model_name_or_path", "model.name_or_path", text)
    if flag_of(found.get("trust_remote_code")):
        found.copy("trust_remote_code", "model.trust_remote_code", flag)
        found.set("tokenizer.trust_remote_code", True)
        found.translated("trust_remote_code", "tokenizer.trust_remote_code")
    elif "trust_remote_code" in found:
        found.ignored("trust_remote_code", "false is the default")
    _precision(found)
    names = {
        "fa2": "flash_attention_2",
        "fa3": "flash_attention_3",
        "sdpa": "sdpa",
        "disabled": "eager",
        "eager": "eager",
    }
    names |= {"flash_attention_2": "flash_attention_2", "flash_attention_3": "flash_attention_3"}
    key, wanted = "flash_attn", found.get("flash_attn")
    if wanted in (None, "auto"):
        found.ignored(key, "the default") if key in found else None
    elif isinstance(wanted, str) and wanted in names:
        found.copy(key, "model.attn_implementation", lambda value: names[value])
    else:
        found.unsupported(key, f"given {wanted!r:.40}, expected one of auto, {', '.join(names)}", "write one of them")
    if flag_of(found.get("enable_liger_kernel")) or flag_of(found.get("use_liger_kernel")):
        found.set("model.type", "liger")
    for key in ("enable_liger_kernel", "use_liger_kernel"):
        if flag_of(found.get(key)):
            found.translated(key, "model.type")
        elif key in found:
            found.ignored(key, "false is the default")
    off = "disable_gradient_checkpointing"
    if flag_of(found.get(off)):
        found.copy(off, "model.activation_checkpointing", lambda value: not flag(value))
    else:
        if off in found:
            found.set("model.activation_checkpointing", True)
            found.translated(off, "model.activation_checkpointing")
        found.default("model.activation_checkpointing", True, f"the default of {_PROGRAM}")
    if "gradient_checkpointing" in found:
        found.ignored("gradient_checkpointing", "disable_gradient_checkpointing says it there")
    coefficient = "moe_aux_loss_coef"
    if found.get(coefficient) is not None:
        found.copy(coefficient, "model.hf_config_kwargs.router_aux_loss_coef", number)
        found.set("model.hf_config_kwargs.output_router_logits", True)
        found.translated(coefficient, "model.hf_config_kwargs.output_router_logits")
    for key, to in (("add_tokens", "add_tokens"), ("add_special_tokens", "special_tokens.extra_special_tokens")):
        if found.get(key):
            found.copy(key, f"tokenizer.{to}", listed)
        elif key in found:
            found.ignored(key, "none")


def _precision(found: Collector) -> None:
    bf16, fp16, pure = (flag_of(found.get(key)) for key in ("bf16", "fp16", "pure_bf16"))
    if (bf16 or pure) and fp16:
        CONTRADICTION.refuse(found, "fp16", "bf16" if bf16 else "pure_bf16")
    name = "bf16" if bf16 or pure else "fp16" if fp16 else "fp32"
    frozen = found.get("finetuning_type", "lora") in ("lora", "oft")
    weights = name if pure or frozen else "fp32"
    said = [key for key, on in (("bf16", bf16), ("fp16", fp16), ("pure_bf16", pure)) if on]
    sharded = found.get("deepspeed") is not None
    for to, value in (("model.dtype", name), ("model.weights_dtype", weights)):
        if sharded and to == "model.weights_dtype":
            continue  # DeepSpeed keeps the weights in that precision and updates them in float32
        if said:
            found.set(to, value)
            found.translated(said[0], to)
        else:
            found.default(to, value, f"the default of {_PROGRAM}")
    for key in ("bf16", "fp16", "pure_bf16", "tf32", "bf16_full_eval", "fp16_full_eval"):
        known = key == "tf32" or found.get(key) in (None, False, True)
        if key in found and known and not found.accounted(key):
            found.ignored(key, "TF32 is torch's default here" if key == "tf32" else f"the precision is {name}")


def _data(found: Collector, folder: Path) -> None:
    _media(found, set_data(found, folder))


def _media(found: Collector, media: bool) -> None:
    """Account for the keys of pictures and sound."""
    names: tuple[str, ...] = (
        "image_max_pixels",
        "image_min_pixels",
        "image_do_pan_and_scan",
        "crop_to_patches",
        "video_max_pixels",
    )
    names += ("video_min_pixels", "video_fps", "video_maxlen", "use_audio_in_video", "audio_sampling_rate", "media_dir")
    for key in names:
        if key in found and media:
            IMAGES.refuse(found, key)
        elif key in found:
            found.ignored(key, "the data has no pictures and no sound")
    for key in ("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model"):
        if key not in found:
            continue
        value = flag_of(found.get(key))
        if key == "freeze_language_model" and value:
            GROUPS.refuse(found, key)
        elif key == "freeze_vision_tower" and not value:
            found.copy(key, "model.train_vision", lambda given: not flag(given))
        else:
            found.ignored(key, "what text does not reach is frozen")


def _stage(found: Collector) -> None:
    stage = found.get("stage", "sft")
    if stage in ("dpo", "kto", "rm"):
        set_preferences(found, "stage")
    elif stage == "ppo":
        ROLLOUTS.refuse(found, "stage")
    elif stage not in ("sft", "pt"):
        found.unsupported("stage", f"given {stage!r:.40}, expected sft or pt", "write one of them")
    elif "stage" in found and found.get("stage") is None:
        found.ignored("stage", "sft is the default")
    for key in (
        "pref_beta",
        "pref_loss",
        "dpo_label_smoothing",
        "simpo_gamma",
        "ref_model",
        "kto_chosen_weight",
        "kto_rejected_weight",
    ):
        if key in found:
            found.ignored(key, f"not used with stage: {stage}")
    if flag_of(found.get("use_dft_loss")):
        found.set("loss.type", "dft")
        found.translated("use_dft_loss", "loss.type")
    elif "use_dft_loss" in found:
        found.ignored("use_dft_loss", "false is the default")
    if numeric(found.get("label_smoothing_factor")):
        found.copy("label_smoothing_factor", "loss.label_smoothing", share)
    elif "label_smoothing_factor" in found:
        found.ignored("label_smoothing_factor", "none")


_LORA = (
    ("lora_rank", "peft.r", whole),
    ("lora_alpha", "peft.alpha", number),
    ("lora_dropout", "peft.dropout", number),
    ("lora_target", "peft.target_modules", targets),
    ("additional_target", "peft.modules_to_save", listed),
    ("use_rslora", "peft.use_rslora", flag),
    ("use_dora", "peft.use_dora", flag),
)
_OFT = (
    ("oft_rank", "peft.r", whole),
    ("oft_block_size", "peft.config.oft_block_size", whole),
    ("oft_target", "peft.target_modules", targets),
    ("module_dropout", "peft.config.module_dropout", number),
    ("additional_target", "peft.modules_to_save", listed),
)


def _adapter(found: Collector) -> None:
    kind = found.get("finetuning_type", "lora")
    _quantization(found, kind in ("lora", "oft"))
    lora, oft = [key for key, _, _ in _LORA], [key for key, _, _ in _OFT]
    pissa = ["pissa_init", "pissa_iter", "pissa_convert"]
    folder, key = found.get("adapter_name_or_path"), "adapter_name_or_path"
    if kind == "full":
        found.ignored("finetuning_type", "without an adapter the model itself is trained")
        without_adapter(found, [*lora, *oft, *pissa, "create_new_adapter"], "used with an adapter alone")
        if folder:
            CONTRADICTION.refuse(found, key, "finetuning_type")
    elif kind == "freeze":
        GROUPS.refuse(found, "finetuning_type")
        without_adapter(found, [*lora, *oft, *pissa, "create_new_adapter"], "used with an adapter alone")
    elif kind not in ("lora", "oft"):
        found.unsupported(
            "finetuning_type", f"given {kind!r:.40}, expected lora, oft, freeze or full", "write one of them"
        )
    elif folder:
        _continued(found, folder)
        without_adapter(found, [*lora, *oft, *pissa], "the adapter in adapter_name_or_path says it")
    else:
        _said(found, "finetuning_type", "peft.type", kind)
        if found.get("stage") in ("dpo", "kto", "rm") and kind == "lora":
            without_dropout(found, "lora_dropout")
        copy_all(found, _LORA if kind == "lora" else _OFT)
        without_adapter(found, [*lora, *oft], f"used with another adapter than {kind}")
        if kind == "lora":
            found.default("peft.r", 8, f"the default of {_PROGRAM}")
            found.default("peft.alpha", 2 * found.recipe["peft"]["r"], f"the default of {_PROGRAM}")
        else:
            found.default("peft.config.oft_block_size", 32, f"the default of {_PROGRAM}")
        found.default("peft.target_modules", "all-linear", f"the default of {_PROGRAM}")
        _pissa(found)
    for each in (key, "create_new_adapter"):
        if each in found and not found.accounted(each):
            found.ignored(each, "not used")


def _quantization(found: Collector, adapter: bool) -> None:
    key, method = "quantization_bit", str(found.get("quantization_method", "bnb")).lower()
    bits = numeric(found.get(key))
    if bits and (bits not in (4, 8) or method not in ("bnb", "bitsandbytes")):
        QUANTIZED_BASE.refuse(found, key, f"{bits:g} bits by {method:.20}")
        bits = 0
    options = {"type": "quantization_type", "double": "double_quantization"}
    keys = (key,) if bits else ()
    set_quantization(found, int(bits), keys, options, adapter=adapter, model="model_name_or_path", double=True)
    for each in (key, "quantization_method", "quantization_device_map"):
        if each in found:
            found.ignored(
                each, "null is the default" if found.get(each) is None else "bitsandbytes and torchao pack it"
            )


def _continued(found: Collector, folder: Any) -> None:
    if isinstance(folder, list) or "," in str(folder) or flag_of(found.get("create_new_adapter")):
        found.unsupported(
            "adapter_name_or_path", "adapters that are merged first", "merge them with `hooktrain export --merge`"
        )
    else:
        found.copy("adapter_name_or_path", "peft.adapter", text)
        found.translated("finetuning_type", "peft.adapter") if "finetuning_type" in found else None


def _pissa(found: Collector) -> None:
    if flag_of(found.get("pissa_init")):
        found.set("peft.init_lora_weights", "pissa")
        found.translated("pissa_init", "peft.init_lora_weights")
        if "pissa_iter" in found:
            found.ignored("pissa_iter", "the decomposition is exact")
        if "pissa_convert" in found:
            found.ignored(
                "pissa_convert", "the export keeps its base's own weights" if found.get("pissa_convert") else "not used"
            )
    for key in ("pissa_init", "pissa_iter", "pissa_convert"):
        if key in found:
            found.ignored(key, "not used")


def _said(found: Collector, key: str, to: str, value: Any) -> None:
    """Set a value that a key says, or that is the program's default."""
    if found.get(key) is not None:
        found.set(to, value)
        found.translated(key, to)
    else:
        found.default(to, value, f"the default of {_PROGRAM}")
        found.ignored(key, "null is the default") if key in found else None


def _batches(found: Collector) -> None:
    found.copy("per_device_train_batch_size", "micro_batch_size", at_least_one)
    found.default("micro_batch_size", 8, f"the default of {_PROGRAM}")
    set_length(found, "num_train_epochs", 3)


def _strategy(found: Collector, folder: Path) -> None:
    given = found.get("deepspeed")
    if given not in (None, ""):
        found.set("strategy.type", "deepspeed")
        translate_deepspeed_file(found, "deepspeed", folder)
        found.translated("deepspeed", "strategy.type")
    elif "deepspeed" in found:
        found.ignored("deepspeed", "null is the default")
    sharded = set_fsdp(found)
    if sharded and given:
        CONTRADICTION.refuse(found, "deepspeed", "fsdp")
    if found.get("fsdp_transformer_layer_cls_to_wrap") is not None:
        found.ignored("fsdp_transformer_layer_cls_to_wrap", "the blocks of the model are found")
    found.copy("ddp_timeout", "strategy.timeout", number)
    key = "ddp_find_unused_parameters"
    if flag_of(found.get(key)) and not sharded and not given:
        found.copy(key, "strategy.find_unused_parameters", flag)
    elif key in found:
        found.ignored(key, "not needed")
    size = found.get("context_parallel_size")
    if size not in (None, 0, 1):
        found.copy("context_parallel_size", "strategy.sequence_parallel", whole)
    elif "context_parallel_size" in found:
        found.ignored("context_parallel_size", "sequences are not divided")
