"""``flops``: operations of a step, compared with those that torch counts, and what log lines say."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hooktrain_hf.model_flops import ModelFlops
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from hooktrain import ModelError, hookimpl
from tests.facts import facts

TOKENS = 24
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 99}


def build(model_type: str = "llama", **keys: Any) -> Any:
    torch.manual_seed(1)
    config = AutoConfig.for_model(model_type, num_key_value_heads=2, head_dim=8, **{**SIZES, **keys})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def counted(model: Any) -> float:
    """Operations of a step on one document as torch counts them, without its half of the attention that is masked."""
    ids = torch.arange(TOKENS)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    return float(counter.get_total_flops())


def expected(model: Any) -> float:
    """The same from the shapes, with all pairs of tokens."""
    made = ModelFlops.of(model)
    return made.token * TOKENS + made.target * TOKENS + sum(made.pair.values()) * TOKENS**2


@pytest.mark.parametrize("tied", [False, True])
def test_a_step_costs_what_torch_counts(tied: bool) -> None:
    model = build(tie_word_embeddings=tied)
    assert expected(model) == counted(model)


def test_a_frozen_base_has_no_gradients_of_its_weights() -> None:
    model = get_peft_model(build(), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    assert expected(model) == pytest.approx(counted(model), rel=0.03)  # the input of the first layer needs none


def test_layers_before_the_first_that_trains_have_no_backward_pass() -> None:
    model = build().requires_grad_(False)
    model.model.layers[2].requires_grad_(True)
    assert expected(model) == counted(model)


def test_a_token_goes_through_the_experts_that_are_chosen() -> None:
    few, all_of_them = (
        build("mixtral", num_local_experts=4, num_experts_per_tok=chosen, tie_word_embeddings=False)
        for chosen in (1, 4)
    )
    experts = sum(p.numel() for n, p in few.named_parameters() if "experts" in n and p.dim() == 3)
    assert ModelFlops.of(all_of_them).token - ModelFlops.of(few).token == 6 * experts * 3 / 4


def test_documents_and_windows_bound_the_pairs() -> None:
    layers = ["full_attention", "sliding_attention", "linear_attention"]
    pair = ModelFlops.of(build("qwen2", layer_types=layers, sliding_window=4, use_sliding_window=True)).pair
    assert sorted(pair) == [0, 4] and pair[0] == pair[4] == 2 * 4 * 16 * 3
    made = ModelFlops(token=0, target=0, pair={0: 1.0, 4: 100.0})
    assert made.count(0, 0, [3, 6]) == (6 + 21) + 100 * (6 + 10 + 2 * 4)


class Lines:
    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    @hookimpl(tryfirst=True)
    def on_log(self, trainer: Any, metrics: dict[str, float]) -> None:
        self.lines.append(dict(metrics))


@pytest.mark.parametrize("packed", [True, False])
def test_log_lines_say_what_the_device_does(
    run_chat: Callable[..., Any], chat_recipe: dict[str, Any], packed: bool
) -> None:
    seen = Lines()
    data = {**chat_recipe["data"], "pack_samples": packed}
    trainer = run_chat(seen, data=data, log_interval=2, flops={"enabled": True, "peak_tflops": 0.5})
    made = ModelFlops.of(trainer.model)
    for line, before in zip(seen.lines, [{}, *seen.lines], strict=False):
        tokens = line["tokens"] - before.get("tokens", 0)
        targets = line["supervised_tokens"] - before.get("supervised_tokens", 0)
        least = made.token * tokens + made.target * targets
        reached = line["tflops_per_second"] * 1e12 * tokens / line["tokens_per_second"]
        assert least < reached < 1.2 * least
        assert line["mfu"] == pytest.approx(line["tflops_per_second"] / 0.5)


def test_without_a_peak_it_is_said(run_chat: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    seen = Lines()
    run_chat(seen, flops={"enabled": True}, console={"enabled": True}, train_iters=1)
    assert re.search(facts("flops.peak_tflops", "mfu"), capsys.readouterr().out)
    assert "tflops_per_second" in seen.lines[0] and "mfu" not in seen.lines[0]


def test_other_models_are_refused(run_tiny: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match=facts("flops.enabled", "transformers model", "enabled: false")):
        run_tiny(flops={"enabled": True})
