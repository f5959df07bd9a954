"""Rows to text or ids, and which of it is trained."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from hooktrain import DataError
from hooktrain_sft.chat.answer_spans import Conversation
from hooktrain_sft.chat.messages import REASONING, Message, read_messages
from hooktrain_sft.chat.pretokenized import read_ids
from hooktrain_sft.chat.template import ChatTemplate
from hooktrain_sft.chat.template_trace import Span
from hooktrain_sft.chat.tool_calls import plain, read_tools
from hooktrain_sft.chat.tool_rendering import assert_tools_are_rendered, converse
from hooktrain_sft.chat.trained_spans import choose_spans
from hooktrain_sft.config import CausalDataConfig, SFTDataConfig
from hooktrain_sft.formatting import shown

__all__ = ["Rendered", "render_chat", "render_sft", "render_text"]


@attrs.frozen(eq=False)
class Rendered:
    """A row as the tokenizer gets it, or already as ids.

    Attributes:
        text: all of the text; no token is added to it but ``before`` and ``after``.
        spans: the parts of ``text`` that are trained, in characters, in order; a token is trained when it lies
            within one of them.
        before: ids put before the text, not trained.
        after: ids put after the text, trained.
        rules: for each span, the message that it is and what proved it, such as
            ``messages[1] assistant: prompt prefix``; for ids, one for all of them. Empty when a plugin says nothing.
        notes: what a user may want to know, such as ``messages[3] assistant: empty, not trained``.
        ids: the tokens of a row that was tokenized before, shape (tokens,); all of the above but ``rules`` and
            ``notes`` is then left empty.
        mask: which of ``ids`` are trained, shape (tokens,).
    """

    text: str = ""
    spans: tuple[Span, ...] = ()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    rules: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ids: NDArray[np.int32] | None = None
    mask: NDArray[np.bool_] | None = None


def render_sft(row: Any, tokenizer: Any, config: SFTDataConfig) -> Rendered:
    """A canonical row (see :mod:`hooktrain_sft.data.formats`).

    Raises:
        DataError: when it is none, or what is trained cannot be proven.
    """
    if isinstance(row, Mapping):
        if "input_ids" in row:
            ids, mask, rule = read_ids(row, len(tokenizer), config.trained_part)
            return Rendered(ids=ids, mask=mask, rules=(rule,))
        if "messages" in row:
            return render_chat(row, tokenizer, config)
        if "prompt" in row and "completion" in row:
            return _render_completion(row, tokenizer, config)
        if "text" in row:
            if not isinstance(row["text"], str):
                raise DataError(f"text is {shown(row['text'])}, expected text; correct or remove the row")
            return _with_special(row["text"], tokenizer, 0, "text")
    given = f"columns {', '.join(map(str, row))}" if isinstance(row, Mapping) else type(row).__name__
    raise DataError(
        f"given {given}, expected the column 'messages', a list of {{role, content}}, or 'prompt' and 'completion',"
        " 'text' or 'input_ids'; rename or convert the columns"
    )


def render_text(row: Any, tokenizer: Any, config: CausalDataConfig) -> Rendered:
    """A row of plain text or of ids, all of it trained.

    Raises:
        DataError: when the row has neither.
    """
    column = config.text_column
    if isinstance(row, Mapping) and "input_ids" in row and column not in row:
        ids, mask, rule = read_ids(row, len(tokenizer), "all")
        return Rendered(ids=ids, mask=mask, rules=(rule,))
    if not isinstance(row, Mapping) or not isinstance(row.get(column), str):
        given = f"columns {', '.join(map(str, row))}" if isinstance(row, Mapping) else type(row).__name__
        raise DataError(
            f"given {given}, expected text in the column '{column}'; name another with `data.text_column`, or use"
            " `type: sft` for rows with messages"
        )
    text = row[column]
    # text that was written with its special tokens does not get them twice
    bos = config.add_bos and tokenizer.bos_token and not text.startswith(tokenizer.bos_token)
    eos = config.add_eos and tokenizer.eos_token and not text.endswith(tokenizer.eos_token)
    return Rendered(
        text,
        ((0, len(text)),),
        before=(tokenizer.bos_token_id,) if bos else (),
        after=(tokenizer.eos_token_id,) if eos else (),
        rules=("text",),
    )


def render_chat(row: Mapping[str, Any], tokenizer: Any, config: SFTDataConfig, given: int = 0) -> Rendered:
    """A row with ``messages`` (and ``tools``), rendered with the tokenizer's chat template.

    Args:
        row: the row.
        tokenizer: its template is used.
        config: says what is trained.
        given: how many of the messages are a prompt.

    Raises:
        DataError: when the row is no conversation, the template cannot render it, or what is trained is not proven.
    """
    messages, untrained, simple = read_messages(row["messages"])
    tools = read_tools(row.get("tools"))
    template = ChatTemplate.of(tokenizer, tools)
    scope = template.scope(tools, _variables(row, config))
    if simple:
        chat = Conversation(template, messages, scope, template.trace(messages, scope))
    else:
        chat = converse(template, _reasoning(messages, template, config.drop_reasoning), scope)
    if tools:
        assert_tools_are_rendered(chat, len(tools))
    choice = choose_spans(chat, config.trained_part, untrained, given, config.mask_empty_reasoning)
    return Rendered(chat.text, tuple(choice.spans), rules=tuple(choice.rules), notes=tuple(choice.notes))


def _variables(row: Mapping[str, Any], config: SFTDataConfig) -> Mapping[str, Any] | None:
    own = row.get("chat_template_kwargs")
    if not own:
        return config.chat_template_kwargs or None
    if not isinstance(own, Mapping):
        raise DataError(f"chat_template_kwargs is {shown(own)}, expected a mapping of variables; convert the column")
    return {**config.chat_template_kwargs, **{str(k): plain(v) for k, v in own.items() if v is not None}}


def _reasoning(messages: list[Message], template: ChatTemplate, drop: bool) -> list[Message]:
    """The messages, without their reasoning if it is to be dropped; a template has to know it otherwise."""
    if drop:
        return [{name: value for name, value in m.items() if name not in REASONING} for m in messages]
    found = next((i for i, message in enumerate(messages) if "reasoning_content" in message), None)
    if found is not None and template.reads.isdisjoint(REASONING):
        raise DataError(
            f"messages[{found}] has reasoning, of which the chat template renders none; give a tokenizer.chat_template"
            " that renders it, or write `data.drop_reasoning: true`"
        )
    return messages


# ------------------------------------------------------------------------------------ prompt and completion, text


def _render_completion(row: Mapping[str, Any], tokenizer: Any, config: SFTDataConfig) -> Rendered:
    """Messages are rendered with the template, text is taken as it is; what follows the prompt is trained."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        given = 0 if config.trained_part == "all" else len(prompt)
        return _with_special(prompt + completion, tokenizer, given, "completion")
    for part, where in ((prompt, "prompt"), (completion, "completion")):
        if not isinstance(part, list):
            raise DataError(
                f"{where} is {shown(part)}, expected prompt and completion to be both text or both lists of"
                " {role, content}; convert the column"
            )
        read_messages(part, where)
    return render_chat({**row, "messages": [*prompt, *completion]}, tokenizer, config, given=len(prompt))


def _with_special(text: str, tokenizer: Any, given: int, rule: str) -> Rendered:
    """Text with the beginning that the tokenizer gives every text, and the end of a sequence, each once."""
    if not text[given:].strip():
        return Rendered(text, notes=(f"{rule}: empty, not trained",))
    bos = _begins_texts(tokenizer) and not text.startswith(tokenizer.bos_token)
    eos = tokenizer.eos_token and not text.endswith(tokenizer.eos_token)
    return Rendered(
        text,
        ((given, len(text)),),
        before=(tokenizer.bos_token_id,) if bos else (),
        after=(tokenizer.eos_token_id,) if eos else (),
        rules=(rule,),
    )


@functools.lru_cache(maxsize=8)
def _begins_texts(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its beginning-of-sequence token before a text by itself."""
    return tokenizer.bos_token is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
