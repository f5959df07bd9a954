"""Conversations to train on, and others to evaluate on."""

from __future__ import annotations

from typing import Any

__all__ = ["MORE", "ROWS"]


def _conversation(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = [_conversation(f"What is {n}?", f"It is {n}.") for n in range(12)]
MORE = [_conversation(f"And {n}?", f"That is {n}.") for n in range(3)]
