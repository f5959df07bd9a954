"""Answers of transformers models: several at once, or one a piece after the other; no random state is touched."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import Queue
from typing import TYPE_CHECKING, Any

import torch

from hooktrain import Generation, GenerationSettings, ModelError
from hooktrain_hf.compat import chat_template, unwrap_adapters
from hooktrain_hf.export import generation_config_for
from hooktrain_hf.location import first_line
from hooktrain_hf.position_count import positions_of
from hooktrain_hf.verbosity import quiet_transformers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig

__all__ = ["generate", "generations_of", "prompt_ids", "stream_answer"]


def generate(
    module: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    *,
    seed: int = 0,
    sharded: bool = False,
    **more: Any,
) -> list[list[int]]:
    """Continue some prompts, in evaluation mode.

    Args:
        module: a transformers model; training mode is restored afterwards.
        tokenizer: whose end of turn ends an answer.
        prompts: token ids, at least one of each.
        settings: length of the answers, shorter where the model has no more positions; and how tokens are drawn.
        seed: for drawing tokens.
        sharded: whether weights are sharded over ranks, all of which call this; none ends before the others.
        more: further arguments of transformers' ``generate``.

    Returns:
        The new ids of each prompt, without those after the token that ended it.
    """
    # adapters work inside the model that they wrap, and their own generate leaves its config changed
    inner = unwrap_adapters(module)
    longest = max(map(len, prompts))
    limit = positions_of(inner.config)
    tokens = settings.max_new_tokens if limit is None else max(1, min(settings.max_new_tokens, limit - longest))
    config = _config(module, tokenizer, settings, tokens)
    device = next(module.parameters()).device
    ids = torch.full((len(prompts), longest), int(config.pad_token_id), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # on the left, so that all answers begin at one place
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    training = inner.training
    inner.eval()
    # a published config's temperature or length limit would be merged into ours, with a warning
    published, inner.generation_config = inner.generation_config, config
    try:
        with quiet_transformers(is_main=False), _seeded(device, seed, config), torch.no_grad():
            more |= {"synced_gpus": True} if sharded else {}
            made: Tensor = inner.generate(
                ids.to(device), attention_mask=mask.to(device), generation_config=config, **more
            )
    finally:
        inner.generation_config = published
        inner.train(training)
    ends = config.eos_token_id
    stops = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
    return [_until(row, stops) for row in made[:, longest:].tolist()]


def generations_of(
    module: Any,
    tokenizer: Any,
    examples: Sequence[tuple[Sequence[int], Sequence[int]]],
    settings: GenerationSettings,
    *,
    seed: int,
    sharded: bool,
) -> list[Generation]:
    """Answer prompts, and return the texts of prompts, answers, and the answers of the data.

    Raises:
        ModelError: the model has no position left for the answer to a prompt.
    """
    limit = positions_of(unwrap_adapters(module).config)
    for prompt, _ in examples:
        if limit is not None and len(prompt) >= limit:
            raise ModelError(
                f"eval_metrics: given a prompt of {len(prompt)} tokens, but the model has positions for {limit} tokens,"
                " prompt and answer together; give shorter examples, or remove the metrics over answers"
            )
    made = generate(module, tokenizer, [prompt for prompt, _ in examples], settings, seed=seed, sharded=sharded)

    def text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    return [
        Generation(str(tokenizer.decode(list(prompt))), text(answer), text(reference))
        for (prompt, reference), answer in zip(examples, made, strict=True)
    ]


def prompt_ids(tokenizer: Any, prompt: str, system: str | None) -> list[int]:
    """Return the ids of a prompt: with a chat template it is a user's turn, without one the beginning of a text.

    Raises:
        ModelError: the chat template refuses the messages.
    """
    if not chat_template(tokenizer):
        return list(tokenizer(f"{system}\n\n{prompt}" if system else prompt)["input_ids"])
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        return _rendered(tokenizer, messages)
    except Exception as error:  # a template is a program, and raises errors of all kinds
        raise ModelError(
            f"samples: given the prompt '{prompt}', which the chat template cannot render ({first_line(error)});"
            " expected a template that accepts these messages; remove samples.system or set tokenizer.chat_template"
        ) from error


def stream_answer(
    module: Any, tokenizer: Any, messages: Sequence[Mapping[str, Any]], settings: GenerationSettings, seed: int
) -> Iterator[str]:
    """Yield the answer to a conversation as it is generated; the model stops when the iterator is closed.

    Args:
        module: a transformers model.
        tokenizer: its tokenizer; without a chat template the messages are one text.
        messages: of the conversation.
        settings: length of the answer, and how tokens are drawn.
        seed: for drawing tokens.

    Raises:
        ModelError: the chat template refuses the messages, or the model has no position left.
    """
    from transformers import StoppingCriteriaList, TextIteratorStreamer

    if chat_template(tokenizer):
        try:
            ids = _rendered(tokenizer, list(messages))
        except Exception as error:  # as above
            raise ModelError(
                f"chat: the chat template cannot render the conversation ({first_line(error)}); begin a new one with"
                " /reset, or give another template with -o tokenizer.chat_template=..."
            ) from error
    else:
        ids = list(tokenizer("\n\n".join(str(message["content"]) for message in messages))["input_ids"])
    limit = positions_of(unwrap_adapters(module).config)
    if not ids or (limit is not None and len(ids) >= limit):
        raise ModelError(
            f"chat: the conversation has {len(ids)} tokens, expected at least one and room for an answer"
            + ("" if limit is None else f" below the model's {limit} positions")
            + "; begin a new one with /reset"
        )
    stop, failed = threading.Event(), Queue[BaseException]()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    criteria = StoppingCriteriaList(
        [lambda ids, scores, **_: torch.full((len(ids),), stop.is_set(), device=ids.device)]
    )

    def work() -> None:
        try:
            generate(module, tokenizer, [ids], settings, seed=seed, streamer=streamer, stopping_criteria=criteria)
        except BaseException as problem:  # raised where the answer is read
            failed.put(problem)
            streamer.end()  # type: ignore[no-untyped-call]

    thread = threading.Thread(target=work, name="answer", daemon=True)
    thread.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        stop.set()
        thread.join()
    if not failed.empty():
        raise failed.get()


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _config(module: Any, tokenizer: Any, settings: GenerationSettings, tokens: int) -> GenerationConfig:
    """Return a generation config with nothing of the published one but its special tokens."""
    own = generation_config_for(module, tokenizer)
    drawn: dict[str, Any] = {"do_sample": False}
    if settings.temperature:
        drawn = {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
        }
    return type(own)(
        max_new_tokens=tokens,
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=_pad_id(own, tokenizer),
        use_cache=True,
        **drawn,
    )


def _pad_id(config: Any, tokenizer: Any) -> int:
    """Return any id: what is padded is masked, but transformers warns without one."""
    ends = config.eos_token_id
    for found in (config.pad_token_id, tokenizer.pad_token_id, ends[0] if isinstance(ends, list) else ends):
        if found is not None:
            return int(found)
    return 0


def _until(ids: list[int], stops: set[int]) -> list[int]:
    end = next((at for at, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]


@contextmanager
def _seeded(device: torch.device, seed: int, config: GenerationConfig) -> Iterator[None]:
    """Draw random numbers of a seed inside the block, and leave the generators as they were."""
    devices = [device] if device.type == "cuda" and config.do_sample else []
    with torch.random.fork_rng(devices=devices):
        if config.do_sample:
            torch.manual_seed(seed)
        yield
