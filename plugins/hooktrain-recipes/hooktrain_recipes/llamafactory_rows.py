"""The table of LLaMA-Factory's keys: what code translates is listed for the guide, the rest has its rule here."""

from __future__ import annotations

from collections.abc import Callable

from hooktrain import Collector
from hooktrain_recipes.reasons import (
    DROP_LAST,
    FITTING_BATCH,
    FP8,
    GROUPS,
    MODEL_PARALLEL,
    PREFERENCES,
    QUANTIZED_BASE,
    ROLLOUTS,
    SMALL_STATES,
    TRACKER,
    Reason,
    belongs,
    method,
    refused,
)
from hooktrain_recipes.tables import Row, all_ignored, by, moved, nothing, told
from hooktrain_recipes.trackers import add_tracker, add_trackers
from hooktrain_recipes.values import flag, number, text, whole

__all__ = ["ROWS"]


def _report(found: Collector, path: str) -> None:
    value = found.values[path]
    if value in (None, "none", [], ["none"], "all", False, ""):
        found.ignored(path, "no tracker is asked for")
    else:
        add_trackers(found, path, {"wandb": {"run_name": "name"}, "trackio": _TRACKIO, "swanlab": _SWANLAB})


def _swanlab(found: Collector, path: str) -> None:
    if found.values[path] and "swanlab" not in str(found.get("report_to")):
        add_tracker(found, [path], "swanlab", _SWANLAB)
    else:
        found.ignored(path, "not used")


_TRACKIO = {"project": "project", "trackio_space_id": "space_id", "run_name": "name"}
_SWANLAB = {
    "swanlab_project": "project", "swanlab_workspace": "workspace", "swanlab_run_name": "experiment_name",
    "swanlab_mode": "mode", "swanlab_logdir": "logdir",
}  # fmt: skip


def _sizes(found: Collector, path: str) -> None:
    if found.values[path] in (None, 0, 1, False):
        found.ignored(path, "one rank each")
    else:
        MODEL_PARALLEL.refuse(found, path)


def _frozen(found: Collector, path: str) -> None:
    if found.get("finetuning_type") == "freeze" and found.values[path] is not None:
        GROUPS.refuse(found, path)
    else:
        found.ignored(path, "used with finetuning_type: freeze alone")


def _of_stage(reason: Reason, *stages: str) -> Callable[[Collector, str], None]:
    def rule(found: Collector, path: str) -> None:
        if found.get("stage") in stages and found.values[path] not in (None, 0, 0.0, False, ""):
            reason.refuse(found, path)
        else:
            found.ignored(path, "used in another stage")

    return rule


_preferred, _rolled = _of_stage(PREFERENCES, "rm", "dpo", "kto"), _of_stage(ROLLOUTS, "ppo")


ROWS: tuple[Row, ...] = (
    *told(
        {
            "model_name_or_path": ("model.name_or_path", ""),
            "trust_remote_code": ("model.trust_remote_code tokenizer.trust_remote_code", ""),
            "stage": ("type loss.type", "`sft` is `sft`, `pt` is `causal`, `dpo` is `preference`, `rm` `reward`"),
            "dataset": ("data.sources", "`dataset_info.json` is read: names, formats, `columns`, `tags`"),
            "eval_dataset": ("data.eval_sources", ""),
            "dataset_dir": ("data.sources", "the folder of `dataset_info.json`"),
            "template": ("tokenizer.chat_template tokenizer.special_tokens.eos_token", "written out, without tools"),
            "default_system": ("tokenizer.chat_template", ""),
            "enable_thinking": ("tokenizer.chat_template", "whether empty tags of reasoning are trained"),
            "cutoff_len": ("data.max_length", "longer examples are cut at their end"),
            "train_on_prompt": ("data.mask_inputs", "the opposite"),
            "mask_history": ("data.train_on", "`last_assistant`"),
            "max_samples": ("data.sources[].split", "the first of each set"),
            "streaming": ("data.sources[].streaming", ""),
            "interleave_probs": ("data.sources[].weight", ""),
            "packing": ("data.pack_samples", "documents do not see each other here"),
            "neat_packing": ("data.pack_samples", ""),
            "val_size": ("data.train_eval_split", "a share"),
            "disable_shuffling": ("data.shuffle", "the opposite"),
            "split_special_tokens": ("data.special_tokens_in_text", "`plain`"),
            "bf16": ("model.dtype model.weights_dtype", "a frozen base is in bf16, a trained model in float32"),
            "fp16": ("model.dtype model.weights_dtype", ""),
            "pure_bf16": ("model.dtype model.weights_dtype", "all in bf16"),
            "flash_attn": ("model.attn_implementation", ""),
            "enable_liger_kernel": ("model.type", "`liger`"),
            "disable_gradient_checkpointing": ("model.activation_checkpointing", "the opposite"),
            "use_unsloth_gc": ("model.activation_offload", "with activation checkpointing"),
            "torch_compile": ("model.compile", "also by a backend or mode alone; not with ZeRO 3"),
            "torch_compile_backend": ("model.compile.backend", ""),
            "torch_compile_mode": ("model.compile.mode", "without CUDA graphs"),
            "overwrite_output_dir": ("checkpoint[].overwrite", ""),
            "moe_aux_loss_coef": ("model.hf_config_kwargs", ""),
            "add_tokens": ("tokenizer.add_tokens", ""),
            "add_special_tokens": ("tokenizer.special_tokens.extra_special_tokens", ""),
            "freeze_vision_tower": ("model.train_vision", "the opposite"),
            "finetuning_type": ("peft.type", "`full` is without `peft`"),
            "adapter_name_or_path": ("peft.adapter", "one"),
            "lora_rank": ("peft.r", ""),
            "lora_alpha": ("peft.alpha", "twice the rank is the default"),
            "lora_dropout": ("peft.dropout", ""),
            "lora_target": ("peft.target_modules", "`all` is `all-linear`"),
            "additional_target": ("peft.modules_to_save", ""),
            "use_rslora": ("peft.use_rslora", ""),
            "use_dora": ("peft.use_dora", ""),
            "pissa_init": ("peft.init_lora_weights", "`pissa`"),
            "oft_block_size": ("peft.config.oft_block_size", ""),
            "oft_rank": ("peft.r", ""),
            "oft_target": ("peft.target_modules", ""),
            "module_dropout": ("peft.config.module_dropout", ""),
            "per_device_train_batch_size": ("micro_batch_size", "8 is the default"),
            "num_train_epochs": ("epochs", "3 is the default"),
            "max_steps": ("train_iters", "without `num_train_epochs`"),
            "learning_rate": ("optimizer.lr", ""),
            "optim": ("optimizer.type", "by each of its names"),
            "weight_decay": ("optimizer.weight_decay", "0 is the default"),
            "adam_beta1": ("optimizer.betas", "with `adam_beta2`"),
            "adam_epsilon": ("optimizer.eps", ""),
            "lr_scheduler_type": ("scheduler.type", "the first step has a rate above 0 here"),
            "lr_scheduler_kwargs": ("scheduler", "of transformers' schedules"),
            "warmup_ratio": ("scheduler.warmup_ratio", ""),
            "warmup_steps": ("scheduler.warmup_steps", "below 1 a share of the run"),
            "eval_strategy": ("eval_interval", "`epoch`"),
            "eval_steps": ("eval_interval", "with `eval_strategy: steps`; a share of the run is one of an epoch"),
            "eval_delay": ("eval_delay", "in steps"),
            "early_stopping_steps": ("early_stopping.patience early_stopping.metric", "by the loss of evaluations"),
            "load_best_model_at_end": ("checkpoint[1].save_best", "the best model is the export in `best`"),
            "quantization_bit": ("model.quantization", "4 is `nf4`, 8 `int8` of weights alone"),
            "quantization_type": ("model.quantization.type", ""),
            "double_quantization": ("model.quantization.double", "true is the default"),
            "use_muon": ("optimizer.type optimizer.groups", "`muon`, with AdamW for what is no matrix of a layer"),
            "loraplus_lr_ratio": ("optimizer.groups", "for LoRA's second matrices"),
            "eval_on_start": ("eval_at_start", ""),
            "save_steps": ("checkpoint[0].save_every_n_steps", "500 is the default"),
            "save_strategy": ("checkpoint[0]", ""),
            "save_total_limit": ("checkpoint[0].keep_last", ""),
            "save_only_model": ("checkpoint[0].type", "`huggingface`"),
            "resume_from_checkpoint": ("checkpoint[0].auto_resume", "`true`"),
            "output_dir": ("run_dir checkpoint[1].output_dir", "exports go to its subfolder `model`"),
            "deepspeed": ("strategy.type strategy.config", "the file is read"),
            "fsdp": ("strategy.data_parallel", "FSDP2"),
            "fsdp_config": ("strategy.data_parallel", "FSDP2 finds the model's blocks"),
            "ddp_timeout": ("strategy.timeout", ""),
            "ddp_find_unused_parameters": ("strategy.find_unused_parameters", ""),
            "context_parallel_size": ("strategy.sequence_parallel", ""),
            "use_dft_loss": ("loss.type", "`dft`"),
            "label_smoothing_factor": ("loss.label_smoothing", ""),
        }
    ),
    moved("gradient_accumulation_steps", "gradient_accumulation_steps", whole),
    moved("per_device_eval_batch_size", "eval_micro_batch_size", whole),
    moved("max_grad_norm", "gradient_clipping", number),
    moved("seed", "seed", whole),
    moved("logging_steps", "log_interval", whole),
    moved("preprocessing_num_workers", "data.num_proc", whole),
    moved("dataloader_num_workers", "data.workers", whole),
    moved("group_by_length", "data.group_by_length", flag),
    moved("buffer_size", "data.stream_buffer", whole),
    moved("train_from_scratch", "model.from_config", flag),
    moved("model_revision", "model.revision", text, "and the tokenizer's"),
    moved("neftune_noise_alpha", "neftune.noise_alpha", number),
    *all_ignored("the recipe says that it trains", "do_train"),
    *all_ignored("prepared data is cached on its own, and prepared again where it has changed", "overwrite_cache",
                 "tokenized_path", "preprocessing_batch_size", "data_shared_file_system", "cache_dir"),
    *all_ignored("metrics.jsonl has the losses", "plot_loss", "compute_accuracy", "include_effective_tokens_per_second",
                 "include_num_input_tokens_seen", "include_tokens_per_second", "logging_dir", "logging_strategy",
                 "logging_first_step", "logging_nan_inf_filter", "log_level", "disable_tqdm", "print_param_status",
                 "logging_nan_inf_filter"),
    *all_ignored("where and how weights are loaded changes no number", "low_cpu_mem_usage", "device_map",
                 "offload_folder",
                 "use_fast_tokenizer", "hf_hub_token", "ms_hub_token", "om_hub_token", "use_auth_token", "local_rank"),
    *all_ignored("other kernels for the same numbers", "use_unsloth", "use_v1_kernels", "use_reentrant_gc",
                 "gradient_checkpointing_kwargs", "use_kv_cache"),
    *all_ignored("norms and the loss are computed in float32", "upcast_layernorm", "upcast_lmhead_output"),
    *all_ignored("the model grows with the tokens that it lacks, and they begin as the mean of the others",
                 "resize_vocab",
                 "init_special_tokens"),
    *all_ignored("padding has no loss", "ignore_pad_token_for_loss", "remove_unused_columns", "pad_to_multiple_of"),
    *all_ignored("sets follow each other, and are shuffled together", "mix_strategy"),
    *all_ignored("each evaluation set is one of its own", "eval_on_each_dataset"),
    *all_ignored("the order is drawn from `seed`", "data_seed", "full_determinism"),
    *all_ignored("tools of the rows go to the template", "tool_format"),
    *all_ignored("reasoning of earlier answers is kept", "preserve_thinking"),
    *all_ignored("how batches reach the device changes no number", "dataloader_pin_memory",
                 "dataloader_persistent_workers",
                 "dataloader_prefetch_factor", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_backend",
                 "average_tokens_across_devices", "torch_empty_cache_steps", "accelerator_config", "save_on_each_node"),
    *all_ignored("the launcher says how many ranks there are", "ray_num_workers", "ray_init_kwargs", "master_addr",
                 "master_port", "ray_run_name", "ray_storage_path", "resources_per_worker", "placement_strategy"),
    *all_ignored("answers are not generated in training", "infer_backend", "infer_dtype", "do_sample", "temperature",
                 "top_p",
                 "top_k", "num_beams", "max_length", "max_new_tokens", "repetition_penalty", "length_penalty",
                 "skip_special_tokens", "vllm_maxlen", "vllm_gpu_util", "vllm_enforce_eager", "vllm_max_lora_rank",
                 "vllm_config", "sglang_maxlen", "sglang_mem_fraction", "sglang_tp_size", "sglang_config",
                 "sglang_lora_backend", "eval_num_beams", "generation_max_length", "generation_num_beams"),
    *all_ignored("a model is exported at the end", "export_size", "export_device", "export_legacy_format", "export_dir",
                 "save_safetensors", "export_hf_on_finish"),
    *all_ignored("Megatron's own way to the same numbers", "use_distributed_optimizer", "overlap_param_gather",
                 "overlap_grad_reduce", "bias_activation_fusion", "apply_rope_fusion", "masked_softmax_fusion",
                 "cross_entropy_loss_fusion", "moe_grouped_gemm", "moe_token_dispatcher_type",
                 "calculate_per_token_loss",
                 "use_packed_sequences", "mixed_precision", "recompute_granularity", "recompute_method",
                 "recompute_num_layers", "account_for_embedding_in_pipeline_split",
                 "account_for_loss_in_pipeline_split"),
    *all_ignored("FSDP2 shards each block of the model", "fsdp_min_num_params"),
    *nothing("adapter_folder"),
    *(
        by(key, _sizes, about=MODEL_PARALLEL.reason, kind="unsupported")
        for key in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size",
                    "virtual_pipeline_model_parallel_size", "sequence_parallel", "hyper_parallel_cp_size")
    ),
    *refused(MODEL_PARALLEL, "use_mca", "use_megatron_bridge", "use_hyper_parallel", "megatron_pretrained_checkpoint",
             "extra_config", "use_kt"),
    *belongs(MODEL_PARALLEL, "use_hyper_parallel", "hyper_parallel_args"),
    *belongs(MODEL_PARALLEL, "use_kt", "kt_cpu_activation", "kt_weight_path", "kt_non_expert_weight_path",
             "kt_expert_checkpoint_path", "kt_use_lora_experts", "kt_lora_expert_num",
             "kt_lora_expert_intermediate_size",
             "kt_config"),
    *refused(QUANTIZED_BASE, "export_quantization_bit"),
    *all_ignored("bitsandbytes and torchao pack the weights", "quantization_method", "quantization_device_map"),
    *belongs(QUANTIZED_BASE, "export_quantization_bit", "export_quantization_dataset", "export_quantization_nsamples",
             "export_quantization_maxlen"),
    *refused(FP8, "fp8"),
    *belongs(FP8, "fp8", "fp8_backend", "fp8_enable_fsdp_float8_all_gather"),
    *nothing("load_best_model_at_end"),
    *all_ignored("the loss of the evaluation is watched", "metric_for_best_model", "greater_is_better"),
    *refused(SMALL_STATES, "use_galore", "use_apollo", "use_badam", "use_adam_mini"),
    *belongs(SMALL_STATES, "use_galore", "galore_target", "galore_rank", "galore_update_interval", "galore_scale",
             "galore_proj_type", "galore_layerwise"),
    *belongs(SMALL_STATES, "use_apollo", "apollo_target", "apollo_rank", "apollo_update_interval", "apollo_scale",
             "apollo_proj", "apollo_proj_type", "apollo_scale_type", "apollo_layerwise", "apollo_scale_front"),
    *belongs(SMALL_STATES, "use_badam", "badam_mode", "badam_start_block", "badam_switch_mode", "badam_switch_interval",
             "badam_update_ratio", "badam_mask_mode", "badam_verbose"),
    *all_ignored("embeddings get no adapter that LoRA+ has a rate for", "loraplus_lr_embedding"),
    *all_ignored("used with LoRA alone", "loraplus_lr_ratio"),
    *(
        by(key, _frozen, about=GROUPS.reason, kind="unsupported")
        for key in ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules")
    ),
    *refused(method("LLaMA-Pro"), "use_llama_pro"),
    *refused(method("mixture of depths"), "mixture_of_depths"),
    *refused(method("shifted sparse attention"), "shift_attn"),
    *refused(method("ASFT"), "use_asft_loss"),
    *belongs(method("ASFT"), "use_asft_loss", "asft_alpha"),
    *refused(method("EAFT"), "use_eaft_loss"),
    *belongs(method("EAFT"), "use_eaft_loss", "eaft_alpha"),
    *told(
        {
            "pref_beta": ("loss.beta", "0.1 is the default"),
            "pref_loss": ("loss.type loss.loss_type", "`sigmoid`, `hinge`, `ipo`, `orpo` and `simpo`"),
            "dpo_label_smoothing": ("loss.label_smoothing", "of `sigmoid`"),
            "simpo_gamma": ("loss.gamma", ""),
            "ref_model": ("models.reference.name_or_path", ""),
            "kto_chosen_weight": ("loss.desirable_weight", ""),
            "kto_rejected_weight": ("loss.undesirable_weight", ""),
        }
    ),
    *(
        by(key, _preferred, about=PREFERENCES.reason, kind="unsupported")
        for key in ("pref_ftx", "pref_bco_weight", "ref_model_adapters", "ref_model_quantization_bit", "ld_alpha")
    ),
    *(
        by(key, _rolled, about=ROLLOUTS.reason, kind="unsupported")
        for key in ("ppo_buffer_size", "ppo_epochs", "ppo_score_norm", "ppo_target", "ppo_whiten_rewards",
                 "reward_model",
                    "reward_model_adapters", "reward_model_quantization_bit", "reward_model_type")
    ),
    by("report_to", _report, "`trackers`", "those that hooktrain has by name"),
    by("use_swanlab", _swanlab, "`trackers`", "with `swanlab_project` and others"),
    *all_ignored("belongs to a tracker that is not used", "run_name", "project", "trackio_space_id", *_SWANLAB),
    *all_ignored("trackers get metrics and the recipe alone", "swanlab_lark_webhook_url", "swanlab_lark_secret"),
    *all_ignored("the package's own login is used", "swanlab_api_key"),
    *refused(TRACKER, "enable_torch_profiler", "profile_modules"),
    *belongs(TRACKER, "enable_torch_profiler", "profiler_output_dir", "profiler_wait_steps", "profiler_warmup_steps",
             "profiler_active_steps", "profiler_repeat", "profiler_record_shapes", "profiler_profile_memory",
             "profiler_with_stack"),
    *all_ignored("answers are generated and scored after the training, from the exported model",
                 "predict_with_generate", "do_predict"),
    *all_ignored("used by the command that exports a model", "export_hub_model_id"),
    *all_ignored("the export is pushed at the end of the run, where push_to_hub asks for it", "push_to_hub",
                 "hub_model_id",
                 "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision"),
    *refused(method("scaled positions"), "rope_scaling"),
    *refused(method("new tokens that begin from a description"), "new_special_tokens_config"),
    *all_ignored(DROP_LAST, "dataloader_drop_last"),
    *all_ignored(FITTING_BATCH, "auto_find_batch_size"),
)  # fmt: skip
