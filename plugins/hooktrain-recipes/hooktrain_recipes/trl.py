"""The dialect ``trl``: flat training, model and script arguments, as for TRL's scripts and the alignment handbook."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from hooktrain import Collector, Translation
from hooktrain_recipes.adapters import targets
from hooktrain_recipes.block_settings import set_block_settings
from hooktrain_recipes.human import mapping_of, positive_whole
from hooktrain_recipes.kinds import refuse_unknown
from hooktrain_recipes.preferences import UNCUT
from hooktrain_recipes.quantization import set_quantization
from hooktrain_recipes.reasons import CONTRADICTION, PREFERENCES, Reason
from hooktrain_recipes.tables import Row, apply, sections
from hooktrain_recipes.trl_data import DATA_ROWS, translate_data
from hooktrain_recipes.trl_keys import IGNORED_ROWS, MOVED_ROWS, REFUSED_ROWS
from hooktrain_recipes.trl_preferences import PREFERENCE_ROWS, set_dropout, set_preferences
from hooktrain_recipes.trl_training import translate_training
from hooktrain_recipes.values import flag, flag_of, number, share, text

__all__ = ["ROWS", "dialect"]

PROGRAM = "TRL"
_DEFAULT = f"the default of {PROGRAM}"
_DTYPES = {"bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "fp16": "fp16", "float32": "fp32", "fp32": "fp32"}
_LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_modules_to_save", "use_rslora",
         "lora_target_parameters", "use_dora", "lora_init")  # fmt: skip
_MARKS = ("dataset_name", "dataset_mixture", "dataset_mixer")

ROWS: tuple[Row, ...] = (
    *MOVED_ROWS,
    *DATA_ROWS,
    *(Row(key=key, ours=ours, about=about) for key, ours, about in (
        ("torch_dtype", "`model.weights_dtype`", "also as `dtype`; `auto` and null keep fp32"),
        ("bf16", "`model.dtype`", "true in TRL"),
        ("fp16", "`model.dtype`", ""),
        ("model_revision", "`model.revision`", "and the tokenizer's"),
        ("use_peft", "`peft.type`", "with `lora_r` 16, `lora_alpha` 32 and `lora_dropout` 0.05 where they are silent"),
        ("lora_r", "`peft.r`", ""), ("lora_alpha", "`peft.alpha`", ""), ("lora_dropout", "`peft.dropout`", ""),
        ("lora_target_modules", "`peft.target_modules`", "PEFT's own choice for the model where it is silent"),
        ("lora_modules_to_save", "`peft.modules_to_save`", ""),
        ("lora_target_parameters", "`peft.config.target_parameters`", ""),
        ("use_rslora", "`peft.use_rslora`", ""), ("use_dora", "`peft.use_dora`", ""),
        ("num_train_epochs", "`epochs`", "3 in TRL"),
        ("max_steps", "`train_iters`", "-1 is none"),
        ("max_length", "`data.max_length`", "also as `max_seq_length`; 1024 in TRL"),
        ("assistant_only_loss", "`data.train_on: assistant`", "all of the text is trained in TRL where it is silent"),
        ("completion_only_loss", "`data.train_on: completion`", ""),
        ("packing_strategy", "`data.overflow`", "`wrapped` splits documents, others cut them at `max_length`"),
        ("dataset_text_field", "`data.columns.text`", ""),
        ("optim", "`optimizer.type`", "any name of transformers"),
        ("optim_args", "`optimizer.arguments`", ""),
        ("weight_decay", "`optimizer.weight_decay`", "0 in TRL"),
        ("adam_beta1", "`optimizer.betas`", ""), ("adam_beta2", "`optimizer.betas`", ""),
        ("adam_epsilon", "`optimizer.eps`", ""),
        ("lr_scheduler_type", "`scheduler.type`", "linear in TRL"),
        ("lr_scheduler_kwargs", "`scheduler.min_lr_ratio`, ...", ""),
        ("warmup_ratio", "`scheduler.warmup_ratio`", "0 in TRL"), ("warmup_steps", "`scheduler.warmup_steps`", ""),
        ("logging_steps", "`log_interval`", "10 in TRL"),
        ("load_in_4bit", "`model.quantization.type`", "`nf4` under an adapter"),
        ("load_in_8bit", "`model.quantization`", "`int8` of weights alone, under an adapter"),
        ("bnb_4bit_quant_type", "`model.quantization.type`", ""),
        ("bnb_4bit_compute_dtype", "`model.quantization.compute_dtype`", ""),
        ("use_bnb_nested_quant", "`model.quantization.double`", "false in TRL"),
        ("eval_strategy", "`eval_interval`", ""),
        ("eval_steps", "`eval_interval`", "a share of the run is a fraction of an epoch"),
        ("eval_delay", "`eval_delay`", "in steps"),
        ("load_best_model_at_end", "`checkpoint[0].save_best`", "the best model is the export in `best`"),
        ("output_dir", "`checkpoint[].output_dir`", "of the export at the end"),
        ("overwrite_output_dir", "`checkpoint[].overwrite`", ""),
        ("save_strategy", "`checkpoint[].save_every_n_steps`, `save_every_n_epochs`", ""),
        ("save_steps", "`checkpoint[].save_every_n_steps`", "500 in TRL"),
        ("save_total_limit", "`checkpoint[].keep_last`", ""),
        ("save_only_model", "`checkpoint[].type: huggingface`", ""),
        ("resume_from_checkpoint", "`checkpoint[].auto_resume`", ""),
        ("push_to_hub", "`checkpoint[].push_to`", "at the end of the run"),
        ("hub_model_id", "`checkpoint[].push_to`", ""), ("hub_private_repo", "`checkpoint[].push_private`", ""),
        ("report_to", "`trackers`", "those that hooktrain has by name, with `run_name`, `wandb_project` and others"),
        ("torch_compile", "`model.compile`", "also by a backend or mode alone; not with ZeRO 3"),
        ("torch_compile_backend", "`model.compile.backend`", ""),
        ("torch_compile_mode", "`model.compile.mode`", "without CUDA graphs"),
        ("activation_offloading", "`model.activation_offload`", "with `gradient_checkpointing`"),
        ("use_liger_kernel", "`model.type: liger`", ""), ("liger_kernel_config", "`model.rope`, ...", ""),
        ("deepspeed", "`strategy.config`", "a JSON file, or its keys"), ("fsdp", "`strategy.data_parallel: fsdp2`", ""),
        ("accelerate_config", "`strategy`", "a YAML file of accelerate, or the name of one that comes with TRL"),
        ("loss_type", "`loss.type`, `loss.loss_type`", "`nll` and `dft`; those of DPO, `simpo`"))),
    *PREFERENCE_ROWS,
    *IGNORED_ROWS,
    *REFUSED_ROWS,
)  # fmt: skip


@attrs.frozen
class _Dialect:
    name: str = "trl"
    summary: str = PROGRAM

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        """Whether a recipe names model and data as TRL's scripts do."""
        return "model_name_or_path" in raw and any(key in raw for key in _MARKS)

    def translate(self, raw: Mapping[str, Any], folder: Path) -> Translation:
        """Translate flat arguments."""
        if not raw.keys() & {"model_name_or_path", *_MARKS, "per_device_train_batch_size", "learning_rate"}:
            launcher = "distributed_type" in raw or "compute_environment" in raw
            what = "a configuration of accelerate's launcher" if launcher else "none of TRL's keys for model and data"
            return Translation(not_a_recipe=f"it has {', '.join(map(str, list(raw)[:4])) or 'nothing'}: {what}")
        found = Collector(raw, PROGRAM)
        for rule in (_model, _precision):
            rule(found)
        _adapter(found, folder)
        set_preferences(found, folder)
        for rule in (translate_data, _masks, _loss):
            rule(found)
        _template(found, folder)
        translate_training(found, folder)
        apply(found, ROWS)
        sections(found, ROWS)
        found.default("micro_batch_size", 8, _DEFAULT)
        found.default("model.activation_checkpointing", True, _DEFAULT)
        found.default("type", "sft", "the script of fine-tuning")
        set_block_settings(found, offload=("activation_offloading",), implied=True)
        refuse_unknown(found, ROWS)
        return found.translation()


def _model(found: Collector) -> None:
    if "model_name_or_path" not in found:
        found.unsupported("model_name_or_path", "no model is named", "name one with model_name_or_path")
    for key in ("model_revision", "hub_model_revision"):
        if key == "model_revision":
            found.copy(key, "model.revision", text)
        elif key in found:
            found.ignored(key, "the model is pushed to its main branch")
    if flag_of(found.get("use_flash_attention_2")) and "attn_implementation" not in found:
        found.set("model.attn_implementation", "flash_attention_2")
        found.translated("use_flash_attention_2", "model.attn_implementation")
    elif "use_flash_attention_2" in found:
        found.ignored("use_flash_attention_2", "attn_implementation says it")
    if flag_of(found.get("trust_remote_code")):
        found.copy("trust_remote_code", "tokenizer.trust_remote_code", flag)
        found.copy("trust_remote_code", "model.trust_remote_code", flag)
    if flag_of(found.get("use_liger_kernel", found.get("use_liger"))):
        key = "use_liger_kernel" if flag_of(found.get("use_liger_kernel")) else "use_liger"
        found.set("model.type", "liger")
        found.translated(key, "model.type")
        for name in found.get("liger_kernel_config") or ():
            found.copy(f"liger_kernel_config.{name}", f"model.{name}", flag)
    for key in ("use_liger_kernel", "use_liger", "liger_kernel_config"):
        if key in found and not found.accounted(key):
            found.ignored(key, "not used")
    given = mapping_of(found, "model_init_kwargs") if "model_init_kwargs" in found else None
    for name, value in (given or {}).items():
        path = f"model_init_kwargs.{name}"
        if name in ("torch_dtype", "dtype") and value in _DTYPES:
            found.copy(path, "model.weights_dtype", lambda given: _DTYPES[given])
        elif name in ("attn_implementation", "trust_remote_code"):
            found.copy(path, f"model.{name}", text if name.startswith("attn") else flag)
        elif name == "revision":
            found.copy(path, "model.revision", text)
        elif name in ("use_cache", "device_map", "torch_dtype", "dtype", "low_cpu_mem_usage"):
            found.ignored(path, "set by the run")
        else:
            found.copy(path, f"model.hf_config_kwargs.{name}")
    if "model_init_kwargs" in found and not given:
        found.ignored("model_init_kwargs", "none")
    if found.get("router_aux_loss_coef"):
        found.copy("router_aux_loss_coef", "model.hf_config_kwargs.router_aux_loss_coef", number)
        found.set("model.hf_config_kwargs.output_router_logits", True)
        found.translated("router_aux_loss_coef", "model.hf_config_kwargs.output_router_logits")
    elif "router_aux_loss_coef" in found:
        found.ignored("router_aux_loss_coef", "none")


def _precision(found: Collector) -> None:
    for key in ("torch_dtype", "dtype"):
        if found.get(key, "auto") == "auto":
            if key in found:
                found.ignored(
                    key, "weights are kept in fp32, whatever the files have; model.weights_dtype: bf16 halves them"
                )
        else:
            found.copy(key, "model.weights_dtype", _dtype)
    low = {key: flag_of(found.get(key)) for key in ("bf16", "fp16")}
    if all(low.values()):
        CONTRADICTION.refuse(found, "fp16", "bf16")
    chosen = next((key for key, on in low.items() if on), "")
    if chosen:
        found.set("model.dtype", chosen)
        found.translated(chosen, "model.dtype")
    elif found.get("bf16") is not None:
        found.copy("bf16", "model.dtype", lambda value: "bf16" if flag(value) else "fp32")
    for key in low:
        if key in found and not found.accounted(key):
            found.copy(key, "model.dtype", lambda value: chosen or ("fp16" if flag(value) else "fp32"))
    found.default("model.dtype", "bf16", _DEFAULT)


def _dtype(value: Any) -> str:
    if isinstance(value, str) and value in _DTYPES:
        return _DTYPES[value]
    raise ValueError(f"given {value!r:.60}, expected bfloat16, float16 or float32")


def _adapter(found: Collector, folder: Path) -> None:
    _quantization(found, flag_of(found.get("use_peft")))
    if not flag_of(found.get("use_peft")):
        for key in ("use_peft", *_LORA):
            if key in found:
                found.ignored(key, "no adapter is trained")
        return
    found.set("peft.type", "lora")
    found.translated("use_peft", "peft.type")
    set_dropout(found, folder)
    found.copy("lora_r", "peft.r", positive_whole)
    found.copy("lora_alpha", "peft.alpha", number)
    if not found.accounted("lora_dropout"):
        found.copy("lora_dropout", "peft.dropout", share)
    found.copy("lora_target_modules", "peft.target_modules", targets)
    found.copy("lora_modules_to_save", "peft.modules_to_save", _names)
    found.copy("lora_target_parameters", "peft.config.target_parameters", _names)
    found.copy("use_rslora", "peft.use_rslora", flag)
    found.copy("use_dora", "peft.use_dora", flag)
    for to, value in (("r", 16), ("alpha", 32), ("dropout", 0.05)):
        found.default(f"peft.{to}", value, _DEFAULT)
    if not found.has("peft.target_modules") and not found.has("peft.config.target_parameters"):
        found.default("peft.config.target_modules", None, "PEFT's own choice for the model, as in TRL")


def _quantization(found: Collector, adapter: bool) -> None:
    four, eight = (flag_of(found.get(f"load_in_{bits}bit")) for bits in (4, 8))
    if four and eight:
        CONTRADICTION.refuse(found, "load_in_8bit", "load_in_4bit")
    bits = 4 if four else 8 if eight else 0
    options = {
        name: f"bnb_4bit_{theirs}" for name, theirs in (("type", "quant_type"), ("compute_dtype", "compute_dtype"))
    }
    options["double"] = "use_bnb_nested_quant"
    keys = (f"load_in_{bits}bit",) if bits else ()
    set_quantization(found, bits, keys, options, adapter=adapter, model="model_name_or_path")
    for key in ("load_in_4bit", "load_in_8bit"):
        if key in found:
            found.ignored(key, "false is the default")


def _names(value: Any) -> list[str]:
    if isinstance(value, str) and value:
        return [value]
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return list(value)
    raise ValueError(f"given {value!r:.60}, expected a list of names")


def _masks(found: Collector) -> None:
    """What is trained, and what becomes of sequences that are too long."""
    pairs = found.recipe.get("type") in ("preference", "kto", "reward")
    for key in ("assistant_only_loss", "completion_only_loss"):
        if pairs and key in found:
            found.ignored(key, "belongs to the script of fine-tuning")
        elif flag_of(found.get(key)) and not found.has("data.train_on"):
            found.set("data.train_on", key.partition("_")[0])
            found.translated(key, "data.train_on")
        elif flag_of(found.get(key)):
            CONTRADICTION.refuse(found, key, "assistant_only_loss")
    for key in ("assistant_only_loss", "completion_only_loss"):
        if key in found and not found.accounted(key):
            found.ignored(key, "off; see data.train_on")
    found.default("data.train_on", "all", f"{_DEFAULT}; completion is for prompts with completions")
    lengths = [key for key in ("max_length", "max_seq_length") if found.get(key) is not None]
    if len(lengths) > 1 and found.get("max_length") != found.get("max_seq_length"):
        CONTRADICTION.refuse(found, "max_seq_length", "max_length")
    for key in ("max_length", "max_seq_length"):
        found.copy(key, "data.max_length", positive_whole)
    if "max_length" not in found:
        found.default("data.max_length", 1024, _DEFAULT)
    if not pairs and found.get("packing_strategy") in ("wrapped", "bfd_split", "bfd-requeue", "bfd_requeue"):
        found.set("data.overflow", "split")
        found.translated("packing_strategy", "data.overflow")
    elif "packing_strategy" in found:
        found.ignored("packing_strategy", "packs are always filled as far as whole documents go")
    if found.get("truncation_mode", "keep_start") != "keep_start" and not pairs:
        Reason("the beginning of a sequence is cut off", "use truncation_mode: keep_start").refuse(
            found, "truncation_mode"
        )
    elif "truncation_mode" in found:
        found.ignored("truncation_mode", UNCUT if pairs else "the end of what is too long is cut off")
    found.default("data.overflow", "truncate", f"{PROGRAM} cuts what is longer than max_length")
    if found.get("dataset_text_field", "text") != "text":
        found.copy("dataset_text_field", "data.columns.text", text)
    elif "dataset_text_field" in found:
        found.ignored("dataset_text_field", "`text` is the default")
    if found.get("train_sampling_strategy") == "group_by_length":
        found.set("data.group_by_length", True)
        found.translated("train_sampling_strategy", "data.group_by_length")
    elif found.get("train_sampling_strategy") == "sequential":
        found.set("data.shuffle", False)
        found.translated("train_sampling_strategy", "data.shuffle")
    elif "train_sampling_strategy" in found:
        found.ignored("train_sampling_strategy", "rows are shuffled anew for every epoch")


def _loss(found: Collector) -> None:
    kind = found.get("loss_type")
    if found.accounted("loss_type"):
        return
    if kind == "dft":
        found.copy("loss_type", "loss.type", text)
    elif kind in ("nll", "chunked_nll") or kind is None:
        if "loss_type" in found:
            found.ignored("loss_type", "the cross-entropy is the default")
    else:
        PREFERENCES.refuse(found, "loss_type")


def _template(found: Collector, folder: Path) -> None:
    name = found.get("chat_template_path")
    if name is None:
        found.ignored("chat_template_path", "null is the default") if "chat_template_path" in found else None
        return
    place = next((each for each in (folder / str(name), Path(str(name))) if _exists(each)), None)
    if "chat_template" in found:
        CONTRADICTION.refuse(found, "chat_template_path", "chat_template")
    else:  # a file, or the folder or hub name of a tokenizer
        found.copy("chat_template_path", "tokenizer.chat_template", lambda path: text(path) and str(place or path))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def dialect() -> _Dialect:
    """The dialect."""
    return _Dialect()
