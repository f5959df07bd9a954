"""Complete runs of ``type: sft`` on the test kit's tiny model and conversations, under short names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hooktrain import Trainer


@pytest.fixture
def base(tiny_llama: Path) -> Path:
    """A folder with a tiny Llama and its tokenizer."""
    return tiny_llama


@pytest.fixture
def recipe(chat_recipe: dict[str, Any]) -> dict[str, Any]:
    """Four steps over six packed conversations, in float32 on the CPU."""
    return chat_recipe


@pytest.fixture
def run(run_chat: Callable[..., Trainer]) -> Callable[..., Trainer]:
    """``run(plugin, ..., key=value)``: run the recipe with plugins and with top-level keys changed."""
    return run_chat
