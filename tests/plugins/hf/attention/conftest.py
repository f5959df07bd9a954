"""Blocks so small that a few tokens fill several."""

from __future__ import annotations

import pytest
from hooktrain_hf import attention, document_attention


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_attention, "BLOCK", 4)
    attention._warn_once.cache_clear()
