"""The table of Axolotl's keys: what code translates is listed for the guide, the rest has its rule here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hooktrain import Collector
from hooktrain_recipes.axolotl_data import SOURCE_KEYS
from hooktrain_recipes.reasons import (
    ACTIVATION_OFFLOAD,
    COMPILE,
    EARLY_STOPPING,
    FP8,
    GROUPS,
    LIMITS,
    MODEL_PARALLEL,
    OWN_CODE,
    PREFERENCES,
    QAT,
    QUANTIZED_BASE,
    ROLLOUTS,
    SCHEDULE,
    SMALL_STATES,
    SPIKE_GUARD,
    TRACKER,
    Reason,
    method,
)
from hooktrain_recipes.tables import Row, by, ignored, moved
from hooktrain_recipes.values import flag, number, whole

__all__ = ["ROWS", "all_ignored", "belongs", "refused", "told"]


def told(rows: Mapping[str, tuple[str, str]]) -> Iterator[Row]:
    """Rows of keys that code translates."""
    for key, (ours, about) in rows.items():
        yield Row(key=key, ours=" ".join(f"`{name}`" for name in ours.split()), about=about)


def all_ignored(reason: str, *keys: str) -> Iterator[Row]:
    for key in keys:
        yield ignored(key, reason)


def refused(reason: Reason, *keys: str) -> Iterator[Row]:
    for key in keys:
        yield by(key, _unless_off(reason), about=reason.reason, kind="unsupported")


def _unless_off(reason: Reason) -> Any:
    def rule(found: Collector, path: str) -> None:
        value = found.values[path]
        if value is None or value is False or value in (0, "", [], {}):
            found.ignored(path, "not used: this value asks for nothing")
        else:
            reason.refuse(found, path)

    return rule


def belongs(reason: Reason, to: str, *keys: str) -> Iterator[Row]:
    """Rows of keys that belong to a method; without it they ask for nothing."""

    def rule(found: Collector, path: str) -> None:
        if found.get(to):
            reason.refuse(found, path)
        else:
            found.ignored(path, f"used with {to} alone")

    for key in keys:
        yield by(key, rule, about=reason.reason, kind="unsupported")


def _tracker(found: Collector, path: str) -> None:
    name = path.split("_", maxsplit=1)[0]
    project = {"wandb": "wandb_project", "comet": "comet_project_name", "trackio": "trackio_project_name"}.get(name, "")
    on = found.get(f"use_{name}", found.get(project) is not None)
    if found.values[path] is None or not on or found.values[path] is False:
        found.ignored(path, "no tracker is asked for")
    else:
        TRACKER.refuse(found, path)


def _answers(found: Collector, path: str) -> None:
    metrics = found.get("eval_causal_lm_metrics", ["sacrebleu", "comet", "ter", "chrf", "perplexity"])
    if not found.get("do_causal_lm_eval") or metrics == ["perplexity"]:
        found.ignored(path, "perplexity is the exponential of the loss that is logged")
    else:
        _ANSWERS.refuse(found, path)


_ANSWERS = Reason("metrics of generated answers", "evaluate the exported model")
_HUB = Reason("push to a hub", "upload the exported folder with `hf upload` after the run")
_FIRST = Reason("a save after the first step", "remove it; `hooktrain verify-resume` checks that saves work")
_NEFTUNE = ("neftune_noise_alpha", "noisy_embedding_alpha")
_SET = "data.sources[]"

ROWS: tuple[Row, ...] = (
    *told(
        {
            "base_model": ("model.name_or_path", ""),
            "tokenizer_config": ("tokenizer.name_or_path", ""),
            "trust_remote_code": ("model.trust_remote_code tokenizer.trust_remote_code", ""),
            "special_tokens": ("tokenizer.special_tokens", "`additional_special_tokens` is `extra_special_tokens`"),
            "tokens": ("tokenizer.add_tokens", ""),
            "overrides_of_model_config": ("model.hf_config_kwargs", ""),
            "model_config": ("model.hf_config_kwargs", ""),
            "bf16": ("model.dtype model.weights_dtype", "the weights are loaded in the precision of the computation"),
            "fp16": ("model.dtype model.weights_dtype", ""),
            "bfloat16": ("model.dtype model.weights_dtype", ""),
            "float16": ("model.dtype model.weights_dtype", ""),
            "attn_implementation": ("model.attn_implementation", "xformers and sage give the numbers of sdpa"),
            "flash_attention": ("model.attn_implementation", "and the other switches of attention"),
            "gradient_checkpointing": ("model.activation_checkpointing", "not `offload`"),
            "plugins": ("model.type", "Liger's; cut cross-entropy is the way of the loss here"),
            "liger_rope": ("model.rope", "and the other switches of Liger"),
            "liger_glu_activation": ("model.swiglu model.geglu", "on where Liger has it for the model"),
            "liger_fused_linear_cross_entropy": ("model.fused_linear_cross_entropy", ""),
            "adapter": ("peft.type", "`lora`"),
            "lora_model_dir": ("peft.adapter", ""),
            "lora_r": ("peft.r", ""),
            "lora_alpha": ("peft.alpha", ""),
            "lora_dropout": ("peft.dropout", ""),
            "lora_target_modules": ("peft.target_modules", ""),
            "lora_target_linear": ("peft.target_modules", "`all-linear`"),
            "lora_target_parameters": ("peft.config.target_parameters", ""),
            "lora_modules_to_save": ("peft.modules_to_save", ""),
            "lora_rank_pattern": ("peft.config.rank_pattern", "and other options of PEFT, under their names"),
            "peft_use_dora": ("peft.use_dora", ""),
            "peft_use_rslora": ("peft.use_rslora", ""),
            "peft_init_lora_weights": ("peft.init_lora_weights", ""),
            **{f"datasets[].{key}": (ours.replace("`", "").replace(",", ""), "") for key, ours in SOURCE_KEYS.items()},
            "test_datasets": ("data.eval_sources", ""),
            "pretraining_dataset": ("type data.sources", "`type: causal` with `streaming: true`"),
            "streaming": (f"{_SET}.streaming", ""),
            "chat_template": ("tokenizer.chat_template", "a few names, written out as a template without tools"),
            "chat_template_jinja": ("tokenizer.chat_template", ""),
            "chat_template_kwargs": ("data.chat_template_kwargs", ""),
            "train_on_inputs": ("data.mask_inputs", "the opposite"),
            "datasets[].roles_to_train": ("data.train_on", "the assistant's turns"),
            "val_set_size": ("data.train_eval_split", "a share"),
            "sequence_len": ("data.max_length", ""),
            "excess_length_strategy": ("data.overflow", "`raise` is `error`"),
            "sample_packing": ("data.pack_samples", ""),
            "micro_batch_size": ("micro_batch_size", ""),
            "gradient_accumulation_steps": ("gradient_accumulation_steps", ""),
            "batch_size": ("gradient_accumulation_steps", "divided by `micro_batch_size`"),
            "num_epochs": ("epochs", "whole ones"),
            "max_steps": ("train_iters", "without `num_epochs`"),
            "learning_rate": ("optimizer.lr", ""),
            "optimizer": ("optimizer.type", "AdamW by each of its names; paged states are kept on the device"),
            "weight_decay": ("optimizer.weight_decay", ""),
            "adam_beta1": ("optimizer.betas", "with `adam_beta2`"),
            "adam_epsilon": ("optimizer.eps", ""),
            "lr_scheduler": ("scheduler.type", "the first step has a rate above 0 here"),
            "lr_scheduler_kwargs": ("scheduler", "of schedules that are here"),
            "warmup_steps": ("scheduler.warmup_steps", "below 1 a share of the run"),
            "warmup_ratio": ("scheduler.warmup_ratio", ""),
            "cosine_min_lr_ratio": ("scheduler.min_lr_ratio", ""),
            "eval_steps": ("eval_interval eval_at_start", "a number of steps"),
            "evals_per_epoch": ("eval_at_start", "once, of one epoch: a run evaluates at its end"),
            "save_steps": ("checkpoint[0].save_every_n_steps", "a number of steps"),
            "saves_per_epoch": ("checkpoint[0].save_every_n_epochs", "once"),
            "save_strategy": ("checkpoint[0]", ""),
            "save_total_limit": ("checkpoint[0].keep_last", ""),
            "save_only_model": ("checkpoint[0].type", "`huggingface`"),
            "auto_resume_from_checkpoints": ("checkpoint[0].auto_resume", ""),
            "hub_model_id": ("checkpoint[1].push_to", "at the end of the run, into a private repository"),
            "output_dir": ("run_dir checkpoint[1].output_dir", "exports go to its subfolder `model`"),
            "deepspeed": ("strategy.type strategy.config", "the file is read; Axolotl's own are known by name"),
            "fsdp": ("strategy.data_parallel", "FSDP2"),
            "fsdp_config": ("strategy.data_parallel", "FSDP2 finds the model's blocks"),
            "context_parallel_size": ("strategy.sequence_parallel", "over heads"),
            "dp_shard_size": ("strategy.data_parallel", "FSDP2"),
            "ddp_timeout": ("strategy.timeout", ""),
            "ddp_find_unused_parameters": ("strategy.find_unused_parameters", ""),
        }
    ),
    moved("max_grad_norm", "gradient_clipping", number),
    moved("seed", "seed", whole),
    moved("logging_steps", "log_interval", whole),
    moved("eval_batch_size", "eval_micro_batch_size", whole),
    moved("group_by_length", "data.group_by_length", flag),
    moved("dataset_processes", "data.num_proc", whole),
    moved("dataset_num_proc", "data.num_proc", whole),
    moved("dataloader_num_workers", "data.workers", whole),
    moved("curriculum_sampling", "data.shuffle", lambda value: not flag(value), "the opposite"),
    moved("reinit_weights", "model.from_config", flag),
    moved("neftune_noise_alpha", "neftune.noise_alpha", number),
    moved("noisy_embedding_alpha", "neftune.noise_alpha", number),
    moved("streaming_multipack_buffer_size", "data.stream_buffer", whole),
    moved("pretrain_multipack_buffer_size", "data.stream_buffer", whole),
    *all_ignored("TF32 is torch's default here", "tf32"),
    *all_ignored("prepared data is cached on its own; `data.cache_dir` names a folder", "dataset_prepared_path"),
    *all_ignored(
        "documents are kept apart without padding, which has no loss", "pad_to_sequence_len", "pad_to_multiple_of",
        "batch_flattening", "remove_unused_columns", "skip_prepare_dataset", "pretrain_multipack_attn",
        "multipack_real_batches", "pretraining_sample_concatenation",
    ),
    *all_ignored(
        "packs are made over the whole set", "sample_packing_group_size", "sample_packing_bin_size",
        "sample_packing_mp_start_method", "sample_packing_eff_est", "sample_packing_seq_len_multiplier",
        "total_num_tokens", "total_supervised_tokens", "max_packed_sequence_len", "sample_packing_sequentially",
    ),
    *all_ignored("sequences are shuffled for each epoch", "shuffle_merged_datasets", "shuffle_before_merging_datasets"),
    *all_ignored("the whole set is prepared once", "dataset_keep_in_memory", "dataset_shard_num", "dataset_shard_idx",
                  "num_dataset_shards_to_save", "preprocess_iterable", "is_preprocess"),
    *all_ignored(
        "where weights and batches lie is the strategy's, and changes no number", "device", "device_map", "device_map.",
        "world_size", "local_rank", "ddp", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "max_memory",
        "gpu_memory_limit",
        "low_cpu_mem_usage", "dataloader_pin_memory", "dataloader_prefetch_factor", "experimental_skip_move_to_device",
        "accelerator_config", "fp32_norms", "fp32_norm_classes", "lora_on_cpu", "qlora_sharded_model_loading",
        "fsdp_version", "fsdp_final_state_dict_type", "hf_use_auth_token", "use_ray", "ray_run_name", "ray_num_workers",
        "resources_per_worker", "torch_empty_cache_steps", "gc_steps", "gc_collect_steps", "ddp_static_graph",
    ),
    *all_ignored("how activations are recomputed changes no number", "gradient_checkpointing_kwargs",
                  "selective_checkpointing"),
    *all_ignored(
        "other kernels for the same numbers", "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel",
        "lora_embedding_kernel", "flash_attn_cross_entropy", "flash_attn_rms_norm", "flash_attn_fuse_mlp",
        "flash_attn_fuse_qkv", "flash_optimum", "fused_attn_kernel", "gemma4_hybrid_attn_impl", "large_head_attention",
        "flash_attn_d512", "sdpa_varlen", "experts_implementation", "use_kernels", "use_scattermoe", "use_sonicmoe",
        "use_dsv4_kernels", "use_glm_dsa_kernels", "dsv4_fp4_grouped_mode", "cut_cross_entropy",
        "chunked_cross_entropy",
        "chunked_cross_entropy_num_chunks", "flex_attn_compile_kwargs", "s2_attention", "llama4_linearized_experts",
        "unsloth_cross_entropy_loss", "unsloth_lora_mlp", "unsloth_lora_qkv", "unsloth_lora_o",
    ),
    *all_ignored("tokenizers are the fast ones", "tokenizer_use_fast", "tokenizer_legacy", "tokenizer_type",
                  "tokenizer_save_jinja_files", "tokenizer_use_mistral_common", "processor_kwargs"),
    *all_ignored("rows of the embedding that no token has are not added", "resize_token_embeddings_to_32x"),
    *all_ignored("new tokens begin as the mean of the others", "mean_resizing_embeddings", "embeddings_skip_upcast",
                  "fix_untrained_tokens"),
    *all_ignored("used by Axolotl itself", "strict", "debug", "axolotl_config_path", "is_falcon_derived_model",
                  "is_llama_derived_model", "is_mistral_derived_model", "is_qwen_derived_model",
                  "base_model_ignore_patterns",
                  "save_safetensors", "include_tokens_per_second", "include_tkps", "merge_lora", "merge_method",
                  "torchdistx_path", "full_finetune", "dynamic_checkpoint", "test_value"),
    *all_ignored("not a key that Axolotl reads", "eta_min", "gptq_groupsize", "gptq_model_v1", "context_parapllel_size",
                  "adam_eps", "torch_dtype", "gradio_title", "gradio_share", "gradio_server_name", "gradio_server_port",
                  "gradio_max_new_tokens", "gradio_temperature", "nvfp4_merge_aware"),
    *all_ignored("text alone is trained, and what text does not reach is frozen", "freeze_mm_modules", "image_size",
                  "image_resize_algorithm", "role_boundaries"),
    *all_ignored("no answers are generated in evaluations", "eval_table_size", "eval_max_new_tokens"),
    *refused(QUANTIZED_BASE, "load_in_8bit", "load_in_4bit", "gptq", "gptq_disable_exllama", "bnb_config_kwargs",
              "quantize_moe_experts", "model_quantization_config", "model_quantization_config_kwargs",
              "peft.loftq_config",
              "peft"),
    *belongs(MODEL_PARALLEL, "expert_parallel_size", "expert_parallel_num_nvl_bytes", "expert_parallel_token_capacity"),
    *refused(QAT, "qat", "quantization"),
    *refused(FP8, "fp8", "fp8_enable_fsdp_float8_all_gather"),
    *refused(ACTIVATION_OFFLOAD, "activation_offloading", "layer_offloading", "tiled_mlp"),
    *belongs(ACTIVATION_OFFLOAD, "tiled_mlp", "tiled_mlp_num_shards", "tiled_mlp_use_original_mlp"),
    *refused(COMPILE, "torch_compile", "deepcompile"),
    *belongs(COMPILE, "torch_compile", "torch_compile_backend", "torch_compile_mode", "torch_compile_options"),
    *refused(SPIKE_GUARD, "loss_watchdog_threshold"),
    *belongs(SPIKE_GUARD, "loss_watchdog_threshold", "loss_watchdog_patience"),
    *refused(EARLY_STOPPING, "early_stopping_patience", "load_best_model_at_end"),
    *belongs(EARLY_STOPPING, "early_stopping_patience", "metric_for_best_model", "greater_is_better"),
    *refused(PREFERENCES, "reward_model", "process_reward_model"),
    *belongs(PREFERENCES, "reward_model", "center_rewards_coefficient"),
    *belongs(
        PREFERENCES, "rl", "rl_beta", "dpo_beta", "dpo_use_weighting", "dpo_label_smoothing",
        "precompute_ref_log_probs", "dpo_use_liger_kernel", "dpo_padding_free", "dpo_loss_type", "dpo_loss_weights",
        "dpo_use_logits_to_keep",
        "dpo_generate_during_eval", "dpo_norm_loss", "rpo_alpha", "orpo_alpha", "simpo_gamma", "cpo_alpha",
        "kto_desirable_weight", "kto_undesirable_weight", "max_prompt_len",
    ),
    *refused(PREFERENCES, "num_labels"),
    *belongs(ROLLOUTS, "rl", "trl", "vllm", "ebft"),
    *refused(ROLLOUTS, "generate_samples"),
    *belongs(ROLLOUTS, "generate_samples", "num_generation_samples", "generation_max_new_tokens",
                 "generation_temperature",
              "generation_top_p", "generation_top_k", "generation_prompt_ratio", "generation_do_sample"),
    *refused(GROUPS, "embedding_lr", "embedding_lr_scale", "lr_groups", "loraplus_lr_ratio", "unfrozen_parameters",
              "dion_lr", "dion_momentum"),
    *belongs(GROUPS, "loraplus_lr_ratio", "loraplus_lr_embedding"),
    *belongs(GROUPS, "dion_lr", "dion_rank_fraction", "dion_rank_multiple_of"),
    *refused(SCHEDULE, "lr_quadratic_warmup", "lr_div_factor", "jagged_restart_steps"),
    *belongs(SCHEDULE, "jagged_restart_steps", "jagged_restart_warmup_steps", "jagged_restart_anneal_steps"),
    *all_ignored("used by another optimizer", "qgalore_rank", "qgalore_update_proj_gap", "qgalore_scale",
                  "qgalore_proj_type", "qgalore_proj_quant", "qgalore_proj_bits", "qgalore_proj_group_size",
                  "qgalore_cos_threshold", "qgalore_gamma_proj", "qgalore_queue_size"),
    *refused(SMALL_STATES, "optim_target_modules"),
    *refused(method("ReLoRA"), "relora"),
    *belongs(method("ReLoRA"), "relora", "relora_prune_ratio", "relora_prune_method", "relora_cpu_offload"),
    *refused(method("LISA"), "lisa_n_layers"),
    *belongs(method("LISA"), "lisa_n_layers", "lisa_step_interval", "lisa_layers_attribute"),
    *refused(method("1-bit weights"), "use_onebitllms"),
    *refused(method("EAFT"), "use_eaft"),
    *belongs(method("EAFT"), "use_eaft", "eaft_alpha", "eaft_k"),
    *refused(method("diffusion"), "diffusion"),
    *refused(method("sparsity"), "llmcompressor"),
    *refused(method("scaled softmax"), "scaling_softmax"),
    *belongs(method("scaled softmax"), "scaling_softmax", "scaling_softmax_factor", "scaling_softmax_bias"),
    *refused(method("PoSE"), "use_pose"),
    *belongs(method("PoSE"), "use_pose", "pose_split_on_token_ids", "pose_max_context_len", "pose_num_chunks"),
    *refused(OWN_CODE, "trainer_cls"),
    *refused(TRACKER, "use_wandb", "use_mlflow", "use_comet", "use_trackio", "use_tensorboard", "use_swanlab",
              "use_otel_metrics", "profiler_steps"),
    *belongs(TRACKER, "profiler_steps", "profiler_steps_start"),
    *(
        by(key, _tracker, about=TRACKER.reason, kind="unsupported")
        for key in (
            "wandb_project", "wandb_name", "wandb_run_id", "wandb_mode", "wandb_entity", "wandb_watch",
            "wandb_log_model",
            "mlflow_tracking_uri", "mlflow_experiment_name", "mlflow_run_name", "hf_mlflow_log_artifacts",
            "comet_api_key",
            "comet_workspace", "comet_project_name", "comet_experiment_key", "comet_mode", "comet_online",
            "comet_experiment_config", "trackio_project_name", "trackio_run_name", "trackio_space_id",
            "swanlab_project",
            "swanlab_experiment_name", "swanlab_description", "swanlab_mode", "swanlab_workspace", "swanlab_log_model",
            "swanlab_log_completions", "swanlab_completion_log_interval", "swanlab_completion_max_buffer",
            "otel_metrics_host", "otel_metrics_port",
        )
    ),
    *refused(LIMITS, "min_sample_len"),
    by("do_causal_lm_eval", _answers, about="perplexity is that of the logged loss", kind="ignored"),
    by("eval_causal_lm_metrics", _answers, about="perplexity is that of the logged loss", kind="ignored"),
    *refused(_ANSWERS, "do_bench_eval"),
    *belongs(_ANSWERS, "do_bench_eval", "bench_dataset", "bench_split"),
    *refused(_HUB, "hub_model_id", "push_dataset_to_hub"),
    *belongs(_HUB, "hub_model_id", "hub_strategy", "hub_revision"),
    *refused(_FIRST, "save_first_step"),
    *refused(Reason("exact deduplication", "remove repeated rows from the data"), "dataset_exact_deduplication"),
    *refused(Reason("a last batch that is left out",
                 "remove it; a short last batch is trained"), "dataloader_drop_last"),
    *refused(Reason("tokens with new names", "give tokenizer.add_tokens instead"), "added_tokens_overrides"),
    *refused(Reason("a smaller embedding", "remove it"), "shrink_embeddings"),
    *refused(Reason("a default system message", "add it to the rows as a system column"), "default_system_message"),
    *refused(Reason("batches that fit the memory", "give micro_batch_size"), "auto_find_batch_size"),
    *refused(Reason("arguments of from_pretrained", "write the keys of model that say the same"),
              "overrides_of_model_kwargs", "model_kwargs"),
    *refused(Reason("a revision of the model", "download it and give the folder's path"), "revision_of_model"),
    by("peft_autocast_adapter_dtype", lambda found, path: found.ignored(path, "adapters are float32")
       if found.values[path] is not False
       else found.unsupported(path, "an adapter in the precision of the base", "remove it; adapters are float32"),
       about="adapters are float32", kind="ignored"),
    *all_ignored("empty", "special_tokens", "tokens", "datasets", "test_datasets", "pretraining_dataset",
                 "rope_scaling",
                  "overrides_of_model_config", "model_config", "streaming", "type"),
)  # fmt: skip
