"""Examples to text or ids, with the spans that are trained."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from hooktrain import DataError
from hooktrain_sft.chat.conversation import ConversationRenderer
from hooktrain_sft.chat.messages import Message, MessageWeight, read_messages, without_reasoning
from hooktrain_sft.chat.other_fields import with_documents
from hooktrain_sft.chat.pretokenized import read_ids
from hooktrain_sft.chat.rendered import Rendered, fitting_note, product_of
from hooktrain_sft.chat.template import ChatTemplate
from hooktrain_sft.chat.text_tokens import TextTokens
from hooktrain_sft.chat.token_weights import Weighting, matches
from hooktrain_sft.chat.tool_calls import calls_in, plain, read_tools
from hooktrain_sft.config import CausalDataConfig, SFTDataConfig, WeightRule
from hooktrain_sft.formatting import shown

__all__ = ["render_chat", "render_sft", "render_text"]


def render_sft(example: Any, tokenizer: Any, config: SFTDataConfig) -> Rendered:
    """Render a canonical example (see :mod:`hooktrain_sft.data.formats`).

    Raises:
        DataError: when it is not canonical, or its trained spans cannot be proven.
    """
    if isinstance(example, Mapping):
        if "input_ids" in example:
            made = _from_ids(example, tokenizer, config.trained_part)
            note = "input_ids: data.weights are of text, and not used for examples of ids; give a column token_weights"
            return attrs.evolve(made, notes=(note,)) if config.weights else made
        if "messages" in example:
            return render_chat(example, tokenizer, config)
        if "prompt" in example and "completion" in example:
            return _render_completion(example, tokenizer, config)
        if "text" in example:
            if not isinstance(example["text"], str):
                raise DataError(f"text is {shown(example['text'])}, expected text; correct or remove the example")
            return _with_special(example["text"], tokenizer, 0, "text", config.weights)
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


def render_chat(
    example: Mapping[str, Any], tokenizer: Any, config: SFTDataConfig, prompt: int = 0, prefill: str = ""
) -> Rendered:
    """Render an example with ``messages`` (and ``tools``) with the tokenizer's chat template.

    Args:
        example: the example.
        tokenizer: its template is used.
        config: decides which messages are trained.
        prompt: how many of the messages are a prompt.
        prefill: text with which the first message after the prompt begins, and which is a part of the prompt.

    Raises:
        DataError: when it is no conversation, the template cannot render it or drops a part of it that is trained, or
            its trained spans are not proven.
    """
    given, untrained, _, weights = read_messages(example["messages"])
    _require_trained(given, weights, config)
    messages = [without_reasoning(message) for message in given] if config.drop_reasoning else given
    tools = read_tools(example.get("tools"))
    template = ChatTemplate.of(tokenizer, tools, config.eot_tokens)
    documents = example.get("documents")
    scope = with_documents(template, template.scope(tools, _variables(example, config)), documents)
    written = TextTokens(template, messages, config.special_tokens_in_text)
    weighting = Weighting(given, weights, config.weights, without_reasoning=config.reasoning == "all")
    _require_unchanged(messages, written.messages, weights)
    renderer = ConversationRenderer(template, scope, tools, documents, config, weighting)
    if config.reasoning == "split":
        made = renderer.split(written.messages, untrained, prompt, prefill)
    else:
        made = renderer.render(written.messages, untrained, prompt, prefill)
    made = written.restore(made)
    if notes := (*_removed(given, messages), *_unusual(messages, tools)):
        made = attrs.evolve(made, notes=made.notes + notes)
    return made


def _require_trained(messages: Sequence[Message], weights: Mapping[int, MessageWeight], config: SFTDataConfig) -> None:
    """Raise where a message has a weight that is not trained by ``data.train_on``."""
    for index in weights if config.trained_part not in ("all", "completion") else ():
        if messages[index]["role"] != "assistant":
            raise DataError(
                f"messages[{index}] (role {messages[index]['role']}) has a weight, but only an assistant's messages are"
                " trained; remove it, or write `data.train_on: all`"
            )


def _require_unchanged(
    given: Sequence[Message], written: Sequence[Message], weights: Mapping[int, MessageWeight]
) -> None:
    """Raise where parts with weights hold special tokens that stay text, so that their places are not known."""
    for index, weight in weights.items():
        if weight.parts and written[index] is not given[index]:
            raise DataError(
                f"messages[{index}].content: its parts have weights and hold special tokens, which is not possible with"
                " `data.special_tokens_in_text: plain`; use keep or error, or write the weight into the message"
            )


def _removed(given: Sequence[Message], messages: Sequence[Message]) -> Iterator[str]:
    for index, (before, after) in enumerate(zip(given, messages, strict=True)):
        if after is not before:
            yield f"messages[{index}] {after['role']}: its reasoning is removed (data.drop_reasoning)"


def _unusual(messages: Sequence[Message], tools: Sequence[Any] | None) -> Iterator[str]:
    """Yield notes about turns that a prompt has once, and those that are there twice or as text."""
    systems = [index for index, message in enumerate(messages) if message["role"] in _SYSTEM]
    for index in systems[1:]:
        yield (
            f"messages[{index}] {messages[index]['role']}: a second system turn, where prompts usually have one; join"
            " them, or remove one"
        )
    names = [str(tool.get("function", tool).get("name", "")) for tool in tools or ()] if _are_functions(tools) else []
    for index in systems if any(names) else ():
        text = messages[index].get("content") or ""
        if all(f'"{name}"' in text or f"'{name}'" in text for name in names):
            yield (
                f"messages[{index}] {messages[index]['role']}: its text describes the tools that the chat template"
                " renders too, so that the prompt has them twice; `data.columns: {tools: null}` leaves those of the"
                " text"
            )
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and tools and calls_in(message.get("content")) is not None:
            yield (
                f"messages[{index}] assistant: its text is a tool call, which is trained as text; give it as"
                " `tool_calls` to have the chat template render it"
            )


def _are_functions(tools: Sequence[Any] | None) -> bool:
    return all(isinstance(tool.get("function", tool), Mapping) for tool in tools or ())


_SYSTEM = ("system", "developer")


def _variables(example: Mapping[str, Any], config: SFTDataConfig) -> Mapping[str, Any] | None:
    own = example.get("chat_template_kwargs")
    if not own:
        return config.chat_template_kwargs or None
    if not isinstance(own, Mapping):
        raise DataError(f"chat_template_kwargs is {shown(own)}, expected a mapping of variables; convert the column")
    return {**config.chat_template_kwargs, **{str(k): plain(v) for k, v in own.items() if v is not None}}


# ------------------------------------------------------------------------------------ prompt and completion, text


def _render_completion(example: Mapping[str, Any], tokenizer: Any, config: SFTDataConfig) -> Rendered:
    """Render prompt and completion, messages with the template and text unchanged; the completion is trained."""
    prompt, completion = example["prompt"], example["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        untrained = 0 if config.trained_part == "all" else len(prompt)
        made = _with_special(prompt + completion, tokenizer, untrained, "completion", config.weights)
        notes = made.notes
        if untrained and made.spans and _token_across(prompt, completion, tokenizer):
            notes += (f"completion: {_INSIDE}",)
        return attrs.evolve(made, notes=notes)
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
    prefill = ""
    if len(prompt) > 1 and prompt[-1].get("role") == "assistant" == completion[0].get("role"):
        # the completion goes on with an answer whose beginning the prompt gives
        given = read_messages(prompt[-1:], "prompt").messages[0]
        (begun,), excluded, _, weights = read_messages(completion[:1], "completion")
        if set(given) == {"role", "content"}:
            prefill = given["content"]
            if weights and weights[0].parts:
                raise DataError(
                    "completion[0].content: its parts have weights, but the prompt holds the beginning of the answer;"
                    " write the weight into the message, or make one message of both"
                )
            begun["weight"] = 0 if excluded else weights[0].weight if weights else 1
            prompt, completion = (
                prompt[:-1],
                [{**begun, "content": prefill + begun.get("content", "")}, *completion[1:]],
            )
    messages = [*prompt, *completion]
    return render_chat({**example, "messages": messages}, tokenizer, config, len(prompt), prefill)


_INSIDE = (
    "it begins inside a token, which is not trained; end the prompt or begin the completion with white space, or write"
    " both as messages"
)


def _token_across(prompt: str, completion: str, tokenizer: Any) -> bool:
    """Return whether a token holds the end of a prompt and the beginning of its completion, white space apart."""
    if not prompt or prompt[-1].isspace() or completion[0].isspace():
        return False
    near = prompt[-_NEAR:]
    encoding = tokenizer(near + completion[:_NEAR], add_special_tokens=False, return_offsets_mapping=True)
    return any(start < len(near) < end for start, end in encoding["offset_mapping"])


_NEAR = 64
"""Characters on both sides that decide how a tokenizer cuts a text at a place."""


def _with_special(text: str, tokenizer: Any, prompt: int, rule: str, weights: Sequence[WeightRule]) -> Rendered:
    """Render text with the tokens that the tokenizer adds; its first ``prompt`` characters are not trained."""
    if not text[prompt:].strip():
        return Rendered(text, notes=(f"{rule}: empty, not trained",))
    made = _between(text, prompt, tokenizer, _adds_bos(tokenizer), True, rule)
    found = {n: [*matches(text, prompt, len(text), one)] for n, one in enumerate(weights) if one.role is None}
    spans = product_of([span for each in found.values() for span in each])
    notes = tuple(fitting_note(number) for number, each in found.items() if each)
    return attrs.evolve(made, weights=spans, notes=notes) if notes else made


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
    documents, rule = read_ids(example, len(tokenizer), part)
    made = tuple(Rendered(ids=ids, mask=mask, rules=(rule,)) for ids, mask in documents)
    return made[0] if len(made) == 1 else Rendered(sequences=made)


def _columns_of(example: Any) -> str:
    return f"columns {', '.join(map(str, example))}" if isinstance(example, Mapping) else type(example).__name__


@functools.lru_cache(maxsize=8)
def _adds_bos(tokenizer: Any) -> bool:
    """Return whether the tokenizer adds its beginning-of-sequence token to a text."""
    return tokenizer.bos_token is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
