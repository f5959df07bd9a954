"""Keys of TRL's flat arguments that are simply copied, have no effect here, or are not supported."""

from __future__ import annotations

from hooktrain_recipes.human import positive_whole
from hooktrain_recipes.reasons import (
    DISTILLATION,
    IMAGES,
    MODEL_PARALLEL,
    OWN_CODE,
    ROLLOUTS,
)
from hooktrain_recipes.tables import Row, ignored, moved
from hooktrain_recipes.values import flag, number, share, text, whole

__all__ = ["IGNORED_ROWS", "MOVED_ROWS", "REFUSED_ROWS"]

MOVED_ROWS: tuple[Row, ...] = (
    moved("model_name_or_path", "model.name_or_path", text),
    moved("tokenizer_name_or_path", "tokenizer.name_or_path", text),
    moved("attn_implementation", "model.attn_implementation", text),
    moved("trust_remote_code", "model.trust_remote_code", flag),
    moved("gradient_accumulation_steps", "gradient_accumulation_steps", positive_whole),
    moved("per_device_train_batch_size", "micro_batch_size", positive_whole, about="8 in TRL"),
    moved("per_device_eval_batch_size", "eval_micro_batch_size", positive_whole),
    moved("learning_rate", "optimizer.lr", number, about="2e-5 in TRL"),
    moved("max_grad_norm", "gradient_clipping", number),
    moved("label_smoothing_factor", "loss.label_smoothing", share),
    moved("neftune_noise_alpha", "neftune.noise_alpha", number),
    moved("gradient_checkpointing", "model.activation_checkpointing", flag, about="true in TRL"),
    moved("seed", "seed", whole),
    moved("dataset_num_proc", "data.num_proc", positive_whole),
    moved("preprocessing_num_workers", "data.num_proc", positive_whole),
    moved("dataloader_num_workers", "data.workers", whole),
    moved("group_by_length", "data.group_by_length", flag),
    moved("eval_on_start", "eval_at_start", flag),
    moved("packing", "data.pack_samples", flag),
    moved("eos_token", "tokenizer.special_tokens.eos_token", text),
    moved("chat_template", "tokenizer.chat_template", text),
    moved("ddp_timeout", "strategy.timeout", number),
    moved("ddp_find_unused_parameters", "strategy.find_unused_parameters", flag),
)

_REASONS: dict[str, str] = {
    "TF32 and its like are torch's own choice": "tf32",
    "set by the strategy": "half_precision_backend fp16_backend fp16_opt_level fp16_full_eval bf16_full_eval "
    "local_rank ddp_backend ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph mp_parameters use_cache",
    "the way in which activations are recomputed is the same for all models": "gradient_checkpointing_kwargs "
    "activation_checkpointing_kwargs",
    "messages are few, and warnings are always shown": "log_level log_level_replica log_on_each_node "
    "disable_tqdm logging_first_step logging_nan_inf_filter include_num_input_tokens_seen include_tokens_per_second",
    "metrics are in metrics.jsonl in run_dir": "logging_dir",
    "belongs to a tracker that report_to does not name": "run_name project trackio_space_id wandb_entity wandb_project "
    "wandb_run_group",
    "trackers get metrics and the recipe alone": "trackio_bucket_id trackio_static_space_id wandb_log_model",
    "the command says what is done": "do_train do_predict",
    "the model is pushed at the end of the run": "hub_strategy hub_always_push overwrite_hub_revision",
    "the hub's own login is used": "hub_token push_to_hub_token",
    "weights are always safetensors": "save_safetensors",
    "only one rank writes": "save_on_each_node",
    "every row is evaluated once": "prediction_loss_only eval_accumulation_steps include_for_metrics "
    "include_inputs_for_metrics batch_eval_metrics eval_do_concat_batches eval_use_gather_object eval_packing "
    "dataset_batch_size",
    "columns that are not needed are not read": "remove_unused_columns label_names ignore_bias_buffers",
    "the last rows of an epoch are trained too; tokens count alike": "dataloader_drop_last",
    "how batches reach the device does not change them": "dataloader_pin_memory dataloader_persistent_workers "
    "dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order",
    "the order of rows follows seed and epoch": "data_seed shuffle_dataset length_column_name",
    "tokens are always counted over all ranks": "average_tokens_across_devices",
    "padding carries no loss": "padding_free pad_to_multiple_of pad_token pad_token_id",
    "text is tokenized as the template writes it, and nothing is appended": "dataset_kwargs",
    "memory is freed by torch": "torch_empty_cache_steps skip_memory_metrics jit_mode_eval",
    "`hooktrain plan` estimates the memory of a batch": "auto_find_batch_size",
    "seeds and order are always the same; kernels are not forced to be": "full_determinism",
    "a resume continues with the very next row": "ignore_data_skip restore_callback_states_from_checkpoint past_index "
    "enable_jit_checkpoint",
    "packed weights are bytes": "bnb_4bit_quant_storage",
    "is for benchmarks of the script": "system_prompt",
    "is for other tasks": "lora_task_type",
}
"""Keys without effect, by the reason."""

IGNORED_ROWS: tuple[Row, ...] = tuple(ignored(key, reason) for reason, keys in _REASONS.items() for key in keys.split())

_ROLLOUTS = (
    "num_generations num_generations_eval reward_funcs reward_weights scale_rewards use_vllm vllm_mode "
    "vllm_gpu_memory_utilization vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout "
    "vllm_group_port vllm_tensor_parallel_size vllm_max_model_length vllm_max_model_len vllm_dtype vllm_device "
    "vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex vllm_guided_decoding_regex "
    "vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_cap temperature top_p "
    "top_k min_p repetition_penalty generation_kwargs generation_batch_size steps_per_generation cache_implementation "
    "num_iterations num_ppo_epochs num_mini_batches epsilon epsilon_high delta importance_sampling_level "
    "mask_truncated_completions top_entropy_quantile entropy_coef log_completions log_unique_prompts "
    "wandb_log_unique_prompts num_completions_to_print max_tool_calling_iterations ds3_gather_for_generation "
    "reward_model_path missing_eos_penalty "
    "use_liger_loss cosine_min_value_wrong cosine_max_value_wrong cosine_min_value_correct cosine_max_value_correct "
    "cosine_max_len repetition_n_grams repetition_max_penalty code_language code_eval_test_batch_size "
    "code_eval_scoring_mode parallel_code_exec_per_proc dataset_prompt_column e2b_router_url morph_router_url "
    "code_provider ioi_provider piston_endpoint max_completion_len soft_punish_cache sft_model_path reward_clip_range "
    "normalize_advantages kl_coef cliprange vf_coef gamma lam whiten_rewards total_episodes response_length stop_token"
)
_DISTILLATION = (
    "teacher_model_name_or_path teacher_model_init_kwargs teacher_model_revision teacher_tokenizer_name_or_path lmbda "
    "seq_kd max_new_tokens distillation_alpha distillation_mode distillation_topk"
)

REFUSED_ROWS: tuple[Row, ...] = (
    *(ROLLOUTS.row(key, off=(None,)) for key in _ROLLOUTS.split()),
    *(DISTILLATION.row(key, off=(None,)) for key in _DISTILLATION.split()),
    MODEL_PARALLEL.row("parallelism_config", off=(None, False)),
    MODEL_PARALLEL.row("tp_size", off=(None, 0, 1)),
    IMAGES.row("freeze_vision_modules"),
    IMAGES.row("max_pixels", off=(None,)),
    OWN_CODE.row("callbacks", off=(None, [])),
    OWN_CODE.row("benchmarks", off=(None, [])),
)
