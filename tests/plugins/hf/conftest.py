"""A tiny Llama and a tiny tokenizer, made on the spot."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hooktrain_hf.plugin import HFPlugin
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hooktrain import World
from hooktrain.testing import host_of
from hooktrain.testing import tiny_llama as language


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most 300 tokens; its eos is not the chat's end of turn, as in many instruct models."""
    return language.make_tokenizer()


@pytest.fixture
def make_llama(tokenizer: PreTrainedTokenizerFast) -> Callable[..., LlamaForCausalLM]:
    """Builds Llamas of 2 layers and 16 channels with random weights."""
    return functools.partial(language.make_llama, tokenizer)


@pytest.fixture
def folder(tmp_path: Path, make_llama: Callable[..., LlamaForCausalLM], tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with a tiny tied model and its tokenizer."""
    path = tmp_path / "tiny"
    make_llama().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def hub(
    tmp_path: Path, folder: Path, make_llama: Callable[..., LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> str:
    """The name of a repository in the hub's cache, without a network; its branch ``wide`` has another model."""
    repository = tmp_path / "hub" / "models--org--tiny"
    for branch, commit in (("main", "1" * 40), ("wide", "2" * 40)):
        snapshot = repository / "snapshots" / commit
        shutil.copytree(folder, snapshot)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / branch).write_text(commit)
        if branch == "wide":
            make_llama(hidden_size=32).save_pretrained(snapshot)
            (snapshot / "chat_template.jinja").write_text("wide")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return "org/tiny"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection fails the test at once."""
    import socket

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


class PlainStrategy:
    """One process without wrapping; the gathered weights are copies, as they are after a real gather."""

    def __init__(self, *, drop: str = "", spoil: str = "") -> None:
        self.drop, self.spoil = drop, spoil

    def unwrap(self, model: Any) -> Any:
        return model

    def full_state_dict(self, model: Any) -> dict[str, torch.Tensor]:
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        weights.pop(self.drop, None)
        if self.spoil:
            weights[self.spoil] = weights[self.spoil][:-1]
        return weights

    def gather_objects(self, value: Any) -> list[Any]:
        return [value]


@pytest.fixture
def make_trainer(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Any]:
    """Builds what an engine or an event hook sees of a trainer."""

    def make(model: Any, *, step: int = 3, reason: str = "end", settings: Any = None, **strategy: Any) -> Any:
        return SimpleNamespace(
            model=model,
            tokenizer=tokenizer,
            strategy=PlainStrategy(**strategy),
            hooks=host_of(HFPlugin()).hooks,
            world=World(),
            global_step=step,
            checkpoint_reason=reason,
            run_dir=tmp_path / "run",
            recipe=SimpleNamespace(settings=settings or {}),
            finite_weights=SimpleNamespace(as_built={}),
            owns_run_dir=True,
            device=torch.device("cpu"),
        )

    return make
