"""Recipes of LLaMA-Factory's second generation (``v1``): ``model``, ``train_dataset`` and ``..._config`` sections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hooktrain import Collector
from hooktrain_recipes.adapters import copy_all, targets
from hooktrain_recipes.deepspeed_json import translate_deepspeed_file
from hooktrain_recipes.llamafactory_data import find_file
from hooktrain_recipes.llamafactory_preferences import set_preferences
from hooktrain_recipes.optimizers import fit_strategy, set_muon
from hooktrain_recipes.preferences import set_uncut
from hooktrain_recipes.quantization import set_quantization
from hooktrain_recipes.reasons import (
    GROUPS,
    IMAGES,
    MODEL_PARALLEL,
    PREFERENCES,
    QUANTIZED_BASE,
    SCHEDULE,
    Reason,
)
from hooktrain_recipes.tables import Row, by, ignored, moved
from hooktrain_recipes.training_arguments import set_checkpoints, set_length, set_resume
from hooktrain_recipes.values import at_least_one, flag, flag_of, listed, number, numeric, positive, share, text, whole

__all__ = ["ROWS", "set_v1"]

_PROGRAM = "LLaMA-Factory"
_DEFAULT = f"the default of {_PROGRAM}"
_KERNELS = "other kernels for the same numbers"
_SAMPLES = "answers are not sampled in training"
_FORMATS = {"alpaca": "alpaca_joined", "sharegpt": "sharegpt"}


def _refuse(reason: Reason, *off: Any) -> Any:
    def rule(found: Collector, path: str) -> None:
        if found.values[path] in (None, False, "", *off):
            found.ignored(path, "not used")
        else:
            reason.refuse(found, path)

    return rule


ROWS: tuple[Row, ...] = (
    *(
        Row(key=key, ours=f"`{ours}`", about=about)
        for key, ours, about in (
            ("model", "model.name_or_path", ""),
            ("trust_remote_code", "model.trust_remote_code", "and the tokenizer's"),
            ("train_dataset", "data.sources", "the YAML file is read"),
            ("eval_dataset", "data.eval_sources", "the YAML file is read"),
            ("output_dir", "run_dir", "exports go to its subfolder `model`"),
            ("peft_config", "peft", "`name: lora`"),
            ("dist_config", "strategy", "`fsdp2` or `deepspeed`"),
            ("kernel_config", "model.type", "`liger_kernel`; others change speed alone"),
            ("max_steps", "train_iters", "without `num_train_epochs`"),
            ("num_train_epochs", "epochs", ""),
            ("bf16", "model.dtype", ""),
            ("global_batch_size", "global_batch_size", ""),
            ("save_epochs", "checkpoint[0].save_every_n_epochs", ""),
            ("batching_strategy", "data.pack_samples", "`padding_free` packs; the others do not"),
        )
    ),
    moved("custom_chat_template", "tokenizer.chat_template", text),
    moved("micro_batch_size", "micro_batch_size", whole),
    moved("cutoff_len", "data.max_length", whole),
    moved("learning_rate", "optimizer.lr", positive),
    moved("max_grad_norm", "gradient_clipping", number),
    moved("seed", "seed", whole),
    moved("logging_steps", "log_interval", whole),
    moved("cp_size", "strategy.sequence_parallel", whole),
    moved("dist_timeout", "strategy.timeout", number),
    moved("enable_activation_checkpointing", "model.activation_checkpointing", flag),
    moved("save_steps", "checkpoint[0].save_every_n_steps", whole),
    moved("save_total_limit", "checkpoint[0].keep_last", whole),
    *(
        ignored(key, reason)
        for key, reason in (
            ("model_class", "the class is the one of the model's config"),
            ("init_config", "how weights are loaded changes no number"),
            ("cp_mode", "ranks of a sequence exchange heads"),
            ("dp_size", "the number of ranks is the launcher's"),
            ("mp_replicate_size", "weights are divided over all ranks"),
            ("mp_shard_size", "weights are divided over all ranks"),
            ("batching_workers", "batches are made in time"),
            ("full_determinism", "runs repeat on the same devices"),
            ("save_ckpt_as_hf", "exports are written at the end"),
            ("sample_backend", _SAMPLES),
            ("max_new_tokens", _SAMPLES),
            ("kernel_config", _KERNELS),
        )
    ),
    Row(key="quant_config", ours="`model.quantization`", about="`bnb`, under an adapter"),
    Row(key="optim_config", ours="`optimizer`", about="`muon`"),
    by("lr_scheduler_config", _refuse(SCHEDULE), about=SCHEDULE.reason, kind="unsupported"),
    *(
        by(key, _refuse(PREFERENCES, value), about=PREFERENCES.reason, kind="unsupported")
        for key, value in (
            ("pref_ftx", 0.0), ("ld_alpha", 1.0),
        )
    ),
)  # fmt: skip
"""The table of the second generation's keys."""


def set_v1(found: Collector, folder: Path) -> None:
    """Translate what needs more than a row."""
    found.set("type", "sft")
    found.notes["type"] = "fine-tuning is the default"
    found.copy("model", "model.name_or_path", text)
    if flag_of(found.get("trust_remote_code")):
        found.copy("trust_remote_code", "model.trust_remote_code", flag)
        found.set("tokenizer.trust_remote_code", True)
        found.translated("trust_remote_code", "tokenizer.trust_remote_code")
    elif "trust_remote_code" in found:
        found.ignored("trust_remote_code", "false is the default")
    _sections(found, folder)
    _sets(found, "train_dataset", "data.sources", folder)
    _sets(found, "eval_dataset", "data.eval_sources", folder)
    for key in ("pref_loss", "pref_beta", "simpo_gamma", "dpo_label_smoothing"):
        if key in found:
            found.ignored(key, "used with pairs alone")
    _numbers(found)
    for key, to, value in (
        ("cutoff_len", "data.max_length", 2048),
        ("learning_rate", "optimizer.lr", 1e-4),
        ("enable_activation_checkpointing", "model.activation_checkpointing", True),
    ):
        if found.get(key) is None:
            found.default(to, value, _DEFAULT)
    found.default("data.overflow", "truncate", f"{_PROGRAM} cuts what is longer")
    if not found.has("optimizer.type"):
        for key, given in (("type", "adamw"), ("weight_decay", 0.01), ("decay_vectors", True)):
            found.default(f"optimizer.{key}", given, "torch's AdamW, with its own defaults")
    found.default("scheduler.type", "constant", _DEFAULT)
    wanted = found.get("flash_attn")
    if wanted in ("eager", "sdpa", "flash_attention_2"):
        found.copy("flash_attn", "model.attn_implementation", text)
    elif "flash_attn" in found:
        if wanted is None:
            found.ignored("flash_attn", "null is the default")
        else:
            found.unsupported(
                "flash_attn", f"given {wanted!r:.40}, expected eager, sdpa or flash_attention_2", "write one"
            )
    key = "batching_strategy"
    if found.get(key) in ("padding_free", "dynamic_padding_free"):
        found.set("data.pack_samples", True)
        found.translated(key, "data.pack_samples")
    elif found.get(key) in ("normal", "dynamic_batching", None):
        found.ignored(key, "padding has no loss") if key in found else None
    else:
        found.unsupported(key, f"given {found.get(key)!r:.40}", "write normal or padding_free")


def _numbers(found: Collector) -> None:
    set_checkpoints(found)
    set_length(found, "num_train_epochs", 3)
    if "bf16" in found:
        found.copy("bf16", "model.dtype", lambda value: "bf16" if flag(value) else "fp32")
    found.default("model.dtype", "bf16", _DEFAULT)
    if found.get("global_batch_size") is not None:
        found.copy("global_batch_size", "global_batch_size", at_least_one)
    elif "global_batch_size" in found:
        found.ignored("global_batch_size", "one micro-batch is a step")
    epochs = found.get("save_epochs")
    if epochs is not None:
        found.copy(
            "save_epochs",
            "checkpoint[0].save_every_n_epochs",
            lambda given: number(given) if number(given) % 1 else whole(given),
        )
    elif "save_epochs" in found:
        found.ignored("save_epochs", "null is the default")
    set_resume(found, "checkpoint[0]", ("auto",))


def _sections(found: Collector, folder: Path) -> None:
    """Account for peft_config, dist_config, kernel_config and optim_config."""
    if found.get("optim_config.name") == "muon":
        _muon(found)
    elif found.get("optim_config") is not None:
        found.unsupported("optim_config", "an optimizer that is not here", "write {name: muon}, or remove it")
    elif "optim_config" in found:
        found.ignored("optim_config", "null is the default")
    kernels = str(found.get("kernel_config.name", found.get("kernel_config") or ""))
    if "liger_kernel" in kernels:
        found.set("model.type", "liger")
        found.translated("kernel_config.name" if "kernel_config.name" in found else "kernel_config", "model.type")
    kind = found.get("peft_config.name")
    if found.get("peft_config") is None:
        found.ignored("peft_config", "null is the default") if "peft_config" in found else None
    elif kind == "lora":
        if found.get("peft_config.adapter_name_or_path"):
            found.copy("peft_config.adapter_name_or_path", "peft.adapter", text)
            found.translated("peft_config", "peft.adapter")
        else:
            found.set("peft.type", "lora")
            found.translated("peft_config.name", "peft.type")
            rows = (("r", "r", whole), ("lora_alpha", "alpha", number), ("lora_dropout", "dropout", number))
            rows += (("target_modules", "target_modules", targets), ("modules_to_save", "modules_to_save", listed))  # type: ignore[assignment]
            copy_all(found, [(f"peft_config.{key}", f"peft.{to}", convert) for key, to, convert in rows])
            for key in ("use_rslora", "use_dora"):
                found.copy(f"peft_config.{key}", f"peft.{key}", flag)
    elif kind == "freeze":
        GROUPS.refuse(found, "peft_config")
    else:
        found.unsupported("peft_config", f"an adapter that is not here: {kind!r:.40}", "use peft: {type: lora}")
    _quantization(found)
    _distributed(found, folder)
    fit_strategy(found, "optim_config", ("quant_config",))


def _muon(found: Collector) -> None:
    key = "optim_config"
    found.set("optimizer.type", "muon")
    found.translated(f"{key}.name", "optimizer.type")
    found.copy(f"{key}.wd", "optimizer.weight_decay", number)
    found.copy(f"{key}.momentum", "optimizer.momentum", share)
    found.copy(f"{key}.nesterov", "optimizer.nesterov", flag)
    found.default("optimizer.weight_decay", 0.1, _DEFAULT)
    rate = found.get("learning_rate", 1e-4)
    found.set("optimizer.lr", positive(rate))
    set_muon(found, f"{key}.name", adapter=found.get("peft_config") is not None, adjust_lr="match_rms_adamw")
    if found.has("optimizer.groups"):
        found.copy(f"{key}.adamw_betas", "optimizer.groups[0].betas", lambda betas: [share(each) for each in betas])
        found.copy(f"{key}.adamw_eps", "optimizer.groups[0].eps", positive)
    for name in ("adamw_betas", "adamw_eps"):
        if f"{key}.{name}" in found:
            found.ignored(f"{key}.{name}", "an adapter has matrices alone")
    if f"{key}.ns_steps" in found:
        if found.get(f"{key}.ns_steps", 5) == 5:
            found.ignored(f"{key}.ns_steps", "5 is the default")
        else:
            found.unsupported(f"{key}.ns_steps", "other iterations of Muon than 5", "write 5")


def _quantization(found: Collector) -> None:
    key = "quant_config"
    bits, name = numeric(found.get(f"{key}.quantization_bit")), found.get(f"{key}.name")
    if found.get(key) is None:
        found.ignored(key, "null is the default") if key in found else None
    elif bits in (4, 8) and name in ("bnb", "auto"):
        adapter = found.get("peft_config") is not None
        set_quantization(
            found, int(bits), (f"{key}.quantization_bit", f"{key}.name"), {}, adapter=adapter, model="model"
        )
    else:
        QUANTIZED_BASE.refuse(found, key)


def _distributed(found: Collector, folder: Path) -> None:
    kind = found.get("dist_config.name")
    if found.get("dist_config") is None:
        found.ignored("dist_config", "null is the default") if "dist_config" in found else None
        return
    if kind == "deepspeed":
        found.set("strategy.type", "deepspeed")
        found.translated("dist_config.name", "strategy.type")
        if "dist_config.config_file" in found:
            translate_deepspeed_file(found, "dist_config.config_file", folder)
    elif kind in ("fsdp2", "fsdpturbo"):
        found.set("strategy.type", "torch")
        found.set("strategy.data_parallel", "fsdp2")
        found.translated("dist_config.name", "strategy.data_parallel", "strategy.type")
        if found.get("dist_config.ep_size") not in (None, 1):
            MODEL_PARALLEL.refuse(found, "dist_config.ep_size")
            MODEL_PARALLEL.refuse(found, "dist_config.ep_dispatcher") if "dist_config.ep_dispatcher" in found else None
        if found.get("dist_config.dcp_path"):
            found.unsupported(
                "dist_config.dcp_path", "a checkpoint of another program", "give model the path of its export"
            )
        for key, value in found.values["dist_config"].items() if isinstance(found.get("dist_config"), Mapping) else ():
            if key in (
                "dcp_path",
                "ep_size",
                "ep_dispatcher",
                "mixed_precision",
                "reshard_after_forward",
                "offload_params",
            ):
                found.ignored(
                    f"dist_config.{key}", "where shards lie changes no number" if value is not None else "null"
                )
    else:
        found.unsupported("dist_config", f"given {kind!r:.40}, expected fsdp2 or deepspeed", "use strategy")


def _sets(found: Collector, key: str, to: str, folder: Path) -> None:
    name = found.get(key)
    if not isinstance(name, str) or not name:
        if key in found:
            found.ignored(key, "null is the default") if name is None else found.unsupported(
                key, "expected a path", "write it"
            )
        return
    if not name.endswith((".yaml", ".yml")):
        found.copy(key, f"{to}[0].name_or_path", text)
        return
    file = find_file(name, folder)
    if file is None:
        what, remedy = f"the file '{name}' is not there", "give the path of a file, from the recipe's folder"
        if Path(name).name == "v1_sft_demo.yaml":  # the set of the program's examples
            held: Any = {
                "identity": {"path": "data/identity.json", "source": "local", "converter": "alpaca"},
                "alpaca_en_demo": {
                    "path": "data/alpaca_en_demo.json",
                    "source": "local",
                    "converter": "alpaca",
                    "size": 500,
                },
            }
        elif "multimodal" in name:
            IMAGES.refuse(found, key)
            return
        elif Path(name).name == "v1_dpo_demo.yaml":
            held = {"dpo": {"path": "HuggingFaceH4/orca_dpo_pairs", "split": "train_prefs", "converter": "pair"}}
        else:
            found.unsupported(key, what, remedy)
            return
    else:
        try:
            held = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as problem:
            found.unsupported(key, f"the file '{name}' cannot be read: {str(problem)[:80]}", "correct the file")
            return
    if not isinstance(held, Mapping) or not all(isinstance(each, Mapping) for each in held.values()):
        found.unsupported(key, f"the file '{name}' holds no sets", "correct the file")
        return
    for at, (label, entry) in enumerate(held.items()):
        _source(found, key, f"{to}[{at}]", str(label), entry)


def _source(found: Collector, key: str, to: str, label: str, entry: Mapping[str, Any]) -> None:
    found.set(f"{to}.name_or_path", str(entry.get("path", label)))
    found.translated(key, to)
    form = entry.get("converter")
    if form == "pair":
        set_uncut(found, _PROGRAM)
        if found.recipe["type"] != "preference":
            set_preferences(found, key)
    elif "multimodal" in label or "mllm" in label:
        IMAGES.refuse(found, key)
    elif form in _FORMATS:
        found.set(f"{to}.format", _FORMATS[form])
    elif form is not None:
        found.unsupported(key, f"a data format that is not here: {form!r:.40}", "convert the rows")
    for theirs, ours in (
        ("split", "split"),
        ("size", "sample_count"),
        ("weight", "weight"),
        ("streaming", "streaming"),
    ):
        if entry.get(theirs) is not None:
            found.set(f"{to}.{ours}", entry[theirs])
    more = set(map(str, entry)) - {"path", "source", "converter", "split", "size", "weight", "streaming"}
    if more:
        found.unsupported(key, f"unknown keys of a set: {', '.join(sorted(more))[:80]}", "remove them")
