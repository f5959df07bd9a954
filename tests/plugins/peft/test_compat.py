"""Names of other libraries that hooktrain_peft.compat reads: an upgrade that changes one fails here."""

from __future__ import annotations

import copy
import functools
from typing import Any

import hooktrain_peft
import pytest
import torch
from hooktrain_peft import compat
from peft import IA3Config, LNTuningConfig, LoraConfig, get_peft_model
from torch.distributed.fsdp import FSDPModule

from hooktrain.testing import make_llama, make_tokenizer

TOKENIZER = make_tokenizer()


def adapted(tied: bool = True, **settings: Any) -> Any:
    config = LoraConfig(task_type="CAUSAL_LM", **{"target_modules": ["q_proj"], **settings})
    return get_peft_model(make_llama(TOKENIZER, tied=tied), config)


def test_names_and_settings_of_methods() -> None:
    assert compat.method_name(LoraConfig()) == "LORA"
    settings = compat.method_settings(LoraConfig(r=3))
    assert settings["r"] == 3 and settings["init_lora_weights"] is True
    assert {"modules_to_save", "ensure_weight_tying", "alora_invocation_tokens", "arrow_config"} <= settings.keys()
    assert "init_lora_weights" not in compat.method_settings(IA3Config())


def test_layers_with_adapters() -> None:
    assert compat.adapted_layers(make_llama(TOKENIZER)) == []
    layers = compat.adapted_layers(adapted())
    assert [name.rpartition(".")[2] for name, _ in layers] == ["q_proj", "q_proj"]
    assert layers[0][1].get_base_layer().weight.ndim == 2 and not compat.is_token_adapter(layers[0][1])
    tokens = compat.adapted_layers(adapted(trainable_token_indices=[5, 6]))
    assert any(compat.is_token_adapter(layer) for _, layer in tokens)


def test_copies_of_complete_modules() -> None:
    (copied,) = compat.trained_copies(adapted(tied=False, modules_to_save=["lm_head"]))
    assert all(parameter.requires_grad for parameter in copied.parameters())
    norms = get_peft_model(make_llama(TOKENIZER), LNTuningConfig(task_type="CAUSAL_LM", target_modules=["norm"]))
    copies = compat.trained_copies(norms)
    assert copies and {id(p) for p in norms.parameters() if p.requires_grad} == {id(c.weight) for c in copies}


def test_ties_and_dtypes() -> None:
    for tied in (True, False):
        model = make_llama(TOKENIZER, tied=tied)
        assert compat.has_tied_head(model) is compat.ties_embeddings(model.config) is tied


def test_forward_hooks_are_removed() -> None:
    def hook(*_: Any) -> None:
        calls.append(1)

    calls: list[int] = []
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model[0].register_forward_hook(hook)
    model.register_forward_pre_hook(hook)
    compat.remove_forward_hooks(model, lambda one: one is hook)
    model(torch.zeros(1, 2))
    assert not calls


def test_copies_have_no_hooks_that_gather_weights() -> None:
    """The live model keeps them, and its class."""

    def gather(*_: Any) -> None: ...

    gather.__module__ = "deepspeed.runtime"
    kind = type("FSDPLinear", (FSDPModule, torch.nn.Linear), {"__deepcopy__": None})
    model = torch.nn.Linear(2, 2)
    model.register_forward_pre_hook(functools.partial(gather))
    model.register_forward_pre_hook(lambda *_: None)
    model.__class__ = kind
    memo: dict[int, Any] = {}
    with compat.copyable(model, memo):
        copied = copy.deepcopy(model, memo)
    assert type(model) is kind and len(model._forward_pre_hooks) == 2
    assert type(copied) is torch.nn.Linear and len(copied._forward_pre_hooks) == 1
    copied._parameters = type("Gathering", (dict,), {})(copied._parameters)
    compat.restore_parameters(copied)
    assert type(copied._parameters) is dict and copied(torch.zeros(1, 2)).shape == (1, 2)


def test_the_package_exports_what_it_lists() -> None:
    assert all(getattr(hooktrain_peft, name).__name__ == name for name in hooktrain_peft.__all__)
    assert set(hooktrain_peft.__all__) <= set(dir(hooktrain_peft))
    with pytest.raises(AttributeError, match="hooktrain_peft.*nothing"):
        hooktrain_peft.nothing  # noqa: B018
