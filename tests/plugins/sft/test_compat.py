"""Optional and private attributes of other libraries are there and mean what ``hooktrain_sft.compat`` takes them for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from hooktrain_sft import compat
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM


def tiny(kind: str, **options: Any) -> Any:
    """A model of a family with a vocabulary of 61 tokens, without weights."""
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **{**sizes, **heads, **options})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_chat_templates_run_in_a_sandbox() -> None:
    environment = compat.chat_template_environment("{{ messages }}")
    assert isinstance(environment, ImmutableSandboxedEnvironment)
    assert {"raise_exception", "strftime_now"} <= environment.globals.keys()
    with pytest.raises(SecurityError):
        environment.from_string("{{ messages.append(1) }}").render(messages=[])


def test_the_generation_block_calls_the_extension() -> None:
    from jinja2 import nodes

    environment = compat.chat_template_environment("{% generation %}a{% endgeneration %}")
    tree = environment.parse("{% generation %}a{% endgeneration %}")
    assert [node.name for node in tree.find_all(nodes.ExtensionAttribute)] == [compat.GENERATION_BLOCK]


def test_tokenizers(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("chatml")
    assert compat.is_fast_tokenizer(tokenizer) and not compat.is_fast_tokenizer(object())
    assert compat.model_max_length(tokenizer) > 10**6 and compat.model_max_length(object()) == 0
    assert compat.special_token_ids(tokenizer) == set(
        tokenizer.convert_tokens_to_ids(list(tokenizer.all_special_tokens))
    )
    assert compat.vocabulary_size(tokenizer) == tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)


def test_data_sets(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([{"text": "a"}])
    stream = table.to_iterable_dataset()
    assert compat.is_table(table) and not compat.is_table(stream) and not compat.is_table([{"text": "a"}])
    assert compat.column_names(table) == compat.column_names(stream) == ["text"]
    assert compat.column_names([{"text": "a"}]) is None


def test_a_language_model() -> None:
    model = tiny("llama", attn_implementation="eager")
    assert compat.attention_implementation(model) == "eager" and not compat.is_encoder_decoder(model)
    assert compat.vocabulary_size(model) == compat.output_size(model.lm_head, model) == 61
    assert compat.decoder_and_head(model) == (model.model, model.lm_head)
    assert compat.input_embeddings(model) is model.model.embed_tokens
    assert compat.head_weight(model) is model.lm_head.weight
    assert compat.is_encoder_decoder(
        transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        )
    )
    assert compat.decoder_and_head(nn.Linear(1, 1)) is None and compat.input_embeddings(nn.Linear(1, 1)) is None


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("llama", {}, (1.0, 1.0, None)),
        ("cohere", {"logit_scale": 0.25}, (0.25, 1.0, None)),
        ("granite", {"logits_scaling": 8.0}, (1.0, 8.0, None)),
        ("gemma2", {"final_logit_softcapping": 30.0}, (1.0, 1.0, 30.0)),
    ],
)
def test_logit_settings(kind: str, options: Any, expected: Any) -> None:
    assert compat.logit_settings(tiny(kind, **options)) == expected


def test_the_router_loss_of_a_mixture_of_experts() -> None:
    sizes = {"num_local_experts": 2, "num_experts_per_tok": 1, "router_aux_loss_coef": 0.5}
    assert compat.router_loss_coefficient(tiny("mixtral", **sizes)) is None
    model = tiny("mixtral", output_router_logits=True, **sizes)
    assert compat.router_loss_coefficient(model) == 0.5
    output = model.to_empty(device="cpu")(
        torch.zeros(1, 4, dtype=torch.long), labels=torch.zeros(1, 4, dtype=torch.long)
    )
    loss, logits = compat.auxiliary_loss(output), compat.output_logits(output)
    assert loss is not None and loss.shape == () and logits is not None and logits.shape == (1, 4, 61)


def adapted(model: Any) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, adapted])
def test_wrappers(wrap: Callable[[Any], Any]) -> None:
    model = tiny("llama")
    assert compat.unwrapped_once(wrap(model)) is model and compat.unwrapped_once(model) is None


def test_hooks_of_a_module() -> None:
    head = nn.Linear(1, 1)
    assert compat.forward_hooks(head) == []
    after, before = (lambda *args: None), (lambda *args: None)
    head.register_forward_hook(after)
    head.register_forward_pre_hook(before)
    assert compat.forward_hooks(head) == [before, after] and not compat.is_deepspeed_function(after)
    after.__module__ = "deepspeed.runtime.zero"
    assert compat.is_deepspeed_function(after)


def test_deepspeed() -> None:
    """ZeRO-3 gives parameters an id; the source is read, since only a run of several processes shards any."""
    spec = importlib.util.find_spec("deepspeed")
    if spec is None or spec.origin is None:
        pytest.skip("the package deepspeed, one of the test dependencies, is not installed")
    source = Path(spec.origin).parent / "runtime" / "zero" / "partition_parameters.py"
    assert "param.ds_id = " in source.read_text(encoding="utf-8")
    weight = nn.Linear(1, 1).weight
    assert not compat.is_zero3_parameter(weight)
    weight.ds_id = 0  # type: ignore[attr-defined]
    assert compat.is_zero3_parameter(weight)


@pytest.mark.parametrize("kept", [True, False])
def test_the_graph_of_a_backward_pass(kept: bool) -> None:
    seen = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Any) -> Any:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            seen.append(compat.keeps_graph())
            return gradient

    apply: Any = Watched.apply
    apply(torch.ones((), requires_grad=True)).backward(retain_graph=kept)
    assert seen == [kept]
