"""Examples to text or ids, with the spans that are trained."""

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
from hooktrain_sft.chat.other_fields import not_rendered, with_documents
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
    """An example as text for the tokenizer, or as ids.

    Attributes:
        text: all of the text; only ``before`` and ``after`` are added to its tokens.
        spans: the parts of ``text`` that are trained, in characters, in order; a token is trained when it lies
            within one of them.
        before: ids before the text, not trained.
        after: ids after the text, trained.
        rules: for each span its message and the rule that proved it, such as
            ``messages[1] assistant: prompt prefix``; for ids, one for all of them. May be empty.
        notes: facts for the report, such as ``messages[3] assistant: empty, not trained``.
        ids: the tokens of an example that is tokenized already, shape (tokens,); then ``text``, ``spans``,
            ``before`` and ``after`` are empty.
        mask: the trained ones of ``ids``, shape (tokens,).
        unused: columns and fields of messages, as ``messages.name``, that are not rendered, for the report.
    """

    text: str = ""
    spans: tuple[Span, ...] = ()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    rules: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ids: NDArray[np.int32] | None = None
    mask: NDArray[np.bool_] | None = None
    unused: tuple[str, ...] = ()


def render_sft(example: Any, tokenizer: Any, config: SFTDataConfig) -> Rendered:
    """Render a canonical example (see :mod:`hooktrain_sft.data.formats`).

    Raises:
        DataError: when it is not canonical, or its trained spans cannot be proven.
    """
    if isinstance(example, Mapping):
        if "input_ids" in example:
            return _from_ids(example, tokenizer, config.trained_part)
        if "messages" in example:
            return render_chat(example, tokenizer, config)
        if "prompt" in example and "completion" in example:
            return _render_completion(example, tokenizer, config)
        if "text" in example:
            if not isinstance(example["text"], str):
                raise DataError(f"text is {shown(example['text'])}, expected text; correct or remove the example")
            return _with_special(example["text"], tokenizer, 0, "text")
    raise DataError(
        f"given {_columns_of(example)}, expected the column 'messages', a list of {{role, content}}, or 'prompt' and"
        " 'completion', 'text' or 'input_ids'; rename or convert the columns"
    )


def render_text(example: Any, tokenizer: Any, config: CausalDataConfig) -> Rendered:
    """Render an example of plain text or of ids, all of it trained.

    Raises:
        DataError: when it has neither.
    """
    column = config.text_column
    if isinstance(example, Mapping) and "input_ids" in example and column not in example:
        return _from_ids(example, tokenizer, "all")
    if isinstance(example, Mapping) and column in example and not isinstance(example[column], str):
        raise DataError(f"{column} is {shown(example[column])}, expected text; correct or remove the example")
    if not isinstance(example, Mapping) or column not in example:
        raise DataError(
            f"given {_columns_of(example)}, expected text in the column '{column}'; name another with"
            " `data.text_column`, or use `type: sft` for examples with messages"
        )
    text = example[column]
    return _between(text, 0, tokenizer, bool(config.add_bos and tokenizer.bos_token), config.add_eos, "text")


def render_chat(example: Mapping[str, Any], tokenizer: Any, config: SFTDataConfig, prompt: int = 0) -> Rendered:
    """Render an example with ``messages`` (and ``tools``) with the tokenizer's chat template.

    Args:
        example: the example.
        tokenizer: its template is used.
        config: decides which messages are trained.
        prompt: how many of the messages are a prompt.

    Raises:
        DataError: when it is no conversation, the template cannot render it, or its trained spans are not proven.
    """
    messages, untrained, simple = read_messages(example["messages"])
    tools = read_tools(example.get("tools"))
    template = ChatTemplate.of(tokenizer, tools)
    scope = with_documents(template, template.scope(tools, _variables(example, config)), example.get("documents"))
    if simple:
        chat = Conversation(template, messages, scope, template.trace(messages, scope))
    else:
        chat = converse(template, _reasoning(messages, template, config.drop_reasoning), scope)
    if tools:
        assert_tools_are_rendered(chat, len(tools))
    choice = choose_spans(chat, config.trained_part, untrained, prompt, config.mask_empty_reasoning)
    unused = () if simple and not example.get("documents") else not_rendered(chat, example.get("documents"))
    return Rendered(chat.text, tuple(choice.spans), rules=tuple(choice.rules), notes=tuple(choice.notes), unused=unused)


def _variables(example: Mapping[str, Any], config: SFTDataConfig) -> Mapping[str, Any] | None:
    own = example.get("chat_template_kwargs")
    if not own:
        return config.chat_template_kwargs or None
    if not isinstance(own, Mapping):
        raise DataError(f"chat_template_kwargs is {shown(own)}, expected a mapping of variables; convert the column")
    return {**config.chat_template_kwargs, **{str(k): plain(v) for k, v in own.items() if v is not None}}


def _reasoning(messages: list[Message], template: ChatTemplate, drop: bool) -> list[Message]:
    """Return the messages, without their reasoning if ``drop``; otherwise the template has to render it."""
    if drop:
        return [{name: value for name, value in m.items() if name not in REASONING} for m in messages]
    found = next((i for i, message in enumerate(messages) if "reasoning_content" in message), None)
    if found is not None and template.reads.isdisjoint(REASONING):
        raise DataError(
            f"messages[{found}] has reasoning, which the chat template does not render; give a tokenizer.chat_template"
            " that renders it, or write `data.drop_reasoning: true`"
        )
    return messages


# ------------------------------------------------------------------------------------ prompt and completion, text


def _render_completion(example: Mapping[str, Any], tokenizer: Any, config: SFTDataConfig) -> Rendered:
    """Render prompt and completion, messages with the template and text unchanged; the completion is trained."""
    prompt, completion = example["prompt"], example["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        untrained = 0 if config.trained_part == "all" else len(prompt)
        return _with_special(prompt + completion, tokenizer, untrained, "completion")
    for part, where in ((prompt, "prompt"), (completion, "completion")):
        if not isinstance(part, (str, list)):
            raise DataError(
                f"{where} is {shown(part)}, expected text or a list of {{role, content}}; correct or remove the example"
            )
    for part, where, other in ((prompt, "prompt", "completion"), (completion, "completion", "prompt")):
        if isinstance(part, str):
            raise DataError(
                f"{where} is {shown(part)} and {other} a list, expected both to be text or both lists of"
                " {role, content}; convert one of the columns"
            )
        read_messages(part, where)
    return render_chat({**example, "messages": [*prompt, *completion]}, tokenizer, config, prompt=len(prompt))


def _with_special(text: str, tokenizer: Any, prompt: int, rule: str) -> Rendered:
    """Render text with the tokens that the tokenizer adds; its first ``prompt`` characters are not trained."""
    if not text[prompt:].strip():
        return Rendered(text, notes=(f"{rule}: empty, not trained",))
    return _between(text, prompt, tokenizer, _adds_bos(tokenizer), True, rule)


def _between(text: str, prompt: int, tokenizer: Any, bos: bool, eos: bool, rule: str) -> Rendered:
    """Render text with a beginning-of-sequence and an end-of-sequence token, unless the text has them already."""
    bos = bos and not text.startswith(tokenizer.bos_token)
    eos = eos and tokenizer.eos_token and not text.endswith(tokenizer.eos_token)
    return Rendered(
        text,
        ((prompt, len(text)),),
        before=(tokenizer.bos_token_id,) if bos else (),
        after=(tokenizer.eos_token_id,) if eos else (),
        rules=(rule,),
    )


def _from_ids(example: Mapping[str, Any], tokenizer: Any, part: str) -> Rendered:
    ids, mask, rule = read_ids(example, len(tokenizer), part)
    return Rendered(ids=ids, mask=mask, rules=(rule,))


def _columns_of(example: Any) -> str:
    return f"columns {', '.join(map(str, example))}" if isinstance(example, Mapping) else type(example).__name__


@functools.lru_cache(maxsize=8)
def _adds_bos(tokenizer: Any) -> bool:
    """Return whether the tokenizer adds its beginning-of-sequence token to a text."""
    return tokenizer.bos_token is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
