"""Plugin ``evals``: registers the metrics; nothing else is imported by a run that uses none."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from hooktrain import GenerationMetric, LogitsMetric, PluginInfo, hookimpl
from hooktrain_evals import config as kinds

__all__ = ["EvalsPlugin"]

_CONFIGS: Mapping[str, type] = {
    "exact_match": kinds.ExactMatchConfig,
    "token_f1": kinds.TokenF1Config,
    "rouge_l": kinds.RougeLConfig,
    "json_validity": kinds.JsonConfig,
    "tool_call_match": kinds.ToolCallConfig,
    "perplexity": kinds.PerplexityConfig,
    "top_k_accuracy": kinds.TopKConfig,
    "evaluate": kinds.EvaluateConfig,
}


class EvalsPlugin:
    """Builds metrics over generated answers, and over logits."""

    hooktrain_plugin = PluginInfo(
        active_when=lambda recipe: any(type(c) in _CONFIGS.values() for c in recipe.eval_metrics)
    )

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"metric": _CONFIGS}

    @hookimpl
    def make_metric(self, config: Any) -> GenerationMetric | LogitsMetric | None:
        if type(config) not in _CONFIGS.values():
            return None
        from hooktrain_evals import metrics, texts, tool_calls

        if isinstance(config, kinds.ExactMatchConfig):
            return metrics.MeanScore("exact_match", partial(texts.exact_match, normalize=config.normalize))
        if isinstance(config, kinds.TokenF1Config):
            return metrics.MeanScore("token_f1", texts.token_f1)
        if isinstance(config, kinds.RougeLConfig):
            return metrics.MeanScore("rouge_l", texts.rouge_l)
        if isinstance(config, kinds.JsonConfig):
            return metrics.MeanScore("json_validity", lambda text, _: float(tool_calls.is_json(text, config.keys)))
        if isinstance(config, kinds.ToolCallConfig):
            score = partial(tool_calls.tool_call_match, names_only=config.names_only)
            return metrics.MeanScore("tool_call_match", score)
        if isinstance(config, kinds.PerplexityConfig):
            return metrics.Perplexity()
        if isinstance(config, kinds.TopKConfig):
            return metrics.TopK(config.k)
        return metrics.EvaluateMetric(config.path, config.name)
