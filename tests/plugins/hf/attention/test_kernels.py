"""The kernels that compute attention by document."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hooktrain_hf import document_attention, half_attention
from hooktrain_hf.attention import install_document_attention

from tests.plugins.hf.attention.families import (
    FAMILIES,
    LENGTHS,
    SMALL,
    VOCABULARY,
    documents,
    flat,
    logits,
    make,
)


def test_nothing_is_read_from_the_device() -> None:
    """The meta device has no values: reading one fails, as in sdpa, where the host would wait for a GPU."""
    texts = documents(LENGTHS)

    def on_device(implementation: str | None, config: dict[str, Any], family: str) -> torch.Tensor:
        model = make(family, config).to("meta").train()
        if implementation is not None:
            install_document_attention(model, implementation)
        batch = {n: v.to("meta") if isinstance(v, torch.Tensor) else v for n, v in flat(texts).items()}
        model.gradient_checkpointing_enable({"use_reentrant": False})
        made = logits(model, batch)
        made.sum().backward()
        return made

    for family in ("Llama", "Gemma2", "Gemma3", "Mistral"):
        assert on_device("auto", FAMILIES[family][1], family).shape == (sum(LENGTHS), VOCABULARY)
    with pytest.raises(RuntimeError, match="meta"):
        on_device("sdpa", SMALL, "Llama")


def test_flash_kernels_receive_the_offsets_of_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through transformers' own flash path, with a kernel of our own behind it, which gets offsets and integers."""
    from transformers import modeling_flash_attention_utils as flash

    longest: list[Any] = []

    def kernel(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: Any, **more: Any) -> Any:
        longest.append(max_seqlen_q)
        assert more["causal"] and cu_seqlens_q.dtype == torch.int32 and torch.equal(cu_seqlens_q, cu_seqlens_k)
        parts = [
            torch.nn.functional.scaled_dot_product_attention(
                *(t[begin:end].transpose(0, 1)[None] for t in (q, k, v)), is_causal=True, enable_gqa=True
            )[0].transpose(0, 1)
            for begin, end in itertools.pairwise(cu_seqlens_q.tolist())
        ]
        return torch.cat(parts)

    def found(*args: Any, **kwargs: Any) -> Any:
        return (None, kernel, None, None, None), (
            lambda max_seqlen_q=None, is_causal=None, **more: {"max_seqlen_q": max_seqlen_q, "causal": is_causal},
            None,
        )

    monkeypatch.setattr(flash, "lazy_import_flash_attention", found)
    model = make("Llama", SMALL)
    texts = documents(LENGTHS)
    alone = torch.cat([logits(model, {"input_ids": torch.tensor([text])}) for text in texts])
    model.config._attn_implementation_internal = "flash_attention_2"
    install_document_attention(model, "flash_attention_2")
    torch.testing.assert_close(logits(model, flat(texts)), alone, rtol=1e-4, atol=1e-4)
    assert longest == [21, 21] and all(type(value) is int for value in longest)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("fault", ["", "wrong", "refuses"])
def test_a_variable_length_kernel_is_used_when_its_result_is_right(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, window: int | None, fault: str
) -> None:
    """The dispatch around torch's kernel, which runs on no processor, with one that computes the same."""
    used = []

    def kernel(
        q: Any, k: Any, v: Any, begins: Any, ends: Any, *_: Any, scale: float, window_size: Any, **__: Any
    ) -> Any:
        used.append(window_size)
        if fault == "refuses":
            raise RuntimeError("no kernel image")
        lengths = tuple(torch.diff(begins).tolist())
        seen = document_attention.Visible(
            document_attention.Documents(lengths), None if window_size[0] < 0 else window_size[0] + 1
        )
        parts = (t.transpose(0, 1)[None] for t in (q, k, v))
        made = torch.nn.functional.scaled_dot_product_attention(
            *parts, attn_mask=seen.dense(1, q.device), scale=scale, enable_gqa=True
        )
        return made[0].transpose(0, 1) + (fault == "wrong")

    monkeypatch.setattr(document_attention, "_varlen_kernel", lambda: kernel)
    monkeypatch.setattr(document_attention, "_has_kernel", lambda *args: True)
    monkeypatch.setattr(document_attention, "_trusted", {})
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 10, 8), torch.randn(2, 2, 10, 8), torch.randn(2, 2, 10, 8)
    visible = document_attention.Visible(document_attention.Documents((4, 6, 10), torch.tensor([0, 4, 10, 20])), window)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=visible.dense(2, query.device), enable_gqa=True
    )
    for _ in range(3):
        made = document_attention.attend(query, key, value, visible, document_attention.Scores(8**-0.5))
        torch.testing.assert_close(made.transpose(1, 2), expected)
    assert len(used) == (1 if fault else 3)
    assert len([r for r in caplog.records if "variable-length attention" in r.getMessage()]) == bool(fault)


@pytest.mark.parametrize("shape", [(1, 4, 4, 7, 8), (3, 4, 2, 33, 16), (1, 6, 1, 1, 8), (2, 9, 3, 130, 64)])
def test_short_documents_in_bf16(shape: tuple[int, ...]) -> None:
    """Beside torch's own kernel, both measured against float64."""
    count, heads, key_heads, tokens, channels = shape
    generator = torch.Generator().manual_seed(0)
    states = [
        torch.randn(count, tokens, number, channels, generator=generator).bfloat16().transpose(1, 2)
        for number in (heads, key_heads, key_heads, heads)
    ]

    def run(function: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        *inputs, gradient = (t.to(dtype).detach().requires_grad_() for t in states)
        made = function(*inputs)
        made.backward(gradient.detach())
        return [made.detach(), *(t.grad for t in inputs)]

    def torchs(q: Any, k: Any, v: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    exact = run(torchs, torch.float64)
    ours = run(lambda q, k, v: half_attention.attend_short(q, k, v, channels**-0.5), torch.bfloat16)
    theirs = run(torchs, torch.bfloat16)
    for found, other, expected in zip(ours, theirs, exact, strict=True):
        error, allowed = ((t.double() - expected).norm() for t in (found, other))
        assert found.dtype == torch.bfloat16 and found.shape == expected.shape
        assert error <= 2 * allowed + 1e-6


def test_bf16_runs_use_it_for_short_documents_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(q: Any, *others: Any) -> Any:
        seen.append(q.shape[2])
        return half_attention.attend_short(q, *others)

    monkeypatch.setattr(document_attention, "attend_short", counted)
    monkeypatch.setattr(half_attention, "LONGEST", 10)
    model = make("Llama", SMALL).train()
    install_document_attention(model, "auto")
    batch = flat(documents(LENGTHS))
    exact = logits(model, batch)
    assert not seen
    with torch.autocast("cpu", torch.bfloat16):
        found = logits(model, batch)
        assert seen and set(seen) == {length for length in LENGTHS if length <= 10}
        seen.clear()
        with torch.no_grad():
            logits(model, batch)
        assert not seen
    assert (found.float() - exact).norm() < 0.02 * exact.norm()
    found.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
