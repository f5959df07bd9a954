"""Errors and messages are pinned by their facts, so that their wording can improve without editing tests."""

from __future__ import annotations

import re

__all__ = ["facts"]


def facts(*texts: str) -> str:
    """A pattern for ``re.search`` and ``pytest.raises(match=...)``: all texts are there, in any order.

    Args:
        texts: what a reader needs and no wording may drop: the path in the recipe, the given value, the expected one,
            the name to use instead.
    """
    return "(?s)" + "".join(f"(?=.*{re.escape(text)})" for text in texts)
