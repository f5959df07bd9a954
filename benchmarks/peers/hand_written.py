"""Driver of the loop that an expert writes for one model and one machine, with torch and transformers alone.

It reads packs from a file, and relies on a Llama and on nothing being evaluated, resumed or saved. Attention runs over
one document of a pack after the other: with a block mask over the whole pack, forward and backward took 15% more
processor time on the machine of the first measurements.

The specification: ``model``, ``packs`` (a file that ``benchmarks.sft.ours`` wrote), ``steps``, ``threads``, ``lr``,
``precision`` (``fp32``, ``bf16`` for autocast, ``bf16-weights``); and, with the defaults in brackets,
``device`` (``cpu``), ``log_every`` so many steps the loss is read (1), ``checkpointing`` of activations (false) and
``liger``, for Liger's kernels (false).
"""

from __future__ import annotations

import contextlib
from typing import Any

from hooktrain.bench.driver import StepClock, drive


def attention(module: Any, query: Any, key: Any, value: Any, mask: Any, ends: list[int], **more: Any) -> Any:
    """Causal attention within each document; tensors have the shape (1, heads, tokens, channels)."""
    import torch

    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    split = zip(*(tensor.split(sizes, 2) for tensor in (query, key, value)), strict=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    made = [attend(q, k, v, is_causal=True, scale=more["scaling"], enable_gqa=True) for q, k, v in split]
    return torch.cat(made, 2).transpose(1, 2), None


def train(model: Any, packs: list[dict[str, Any]], lr: float, autocast: bool, clock: StepClock, **how: Any) -> Any:
    """One optimizer step for each pack: ``input_ids``, ``labels`` and ``position_ids`` of shape (1, tokens).

    Returns:
        The mean loss of each ``log_every`` steps.
    """
    import torch

    device, log_every = how.get("device", "cpu"), how.get("log_every", 1)
    summed = _summed_loss(how.get("liger", False))

    decay = [p for p in model.parameters() if p.dim() > 1]
    other = [p for p in model.parameters() if p.dim() <= 1]
    groups: Any = [{"params": decay}, {"params": other, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.0, fused=True)
    head = model.lm_head.weight  # (vocabulary, hidden)
    model.train()
    losses, since, tokens = [], torch.zeros((), device=device), 0
    clock.start()
    for number, pack in enumerate(packs, 1):
        ids, labels, positions = pack["input_ids"], pack["labels"], pack["position_ids"]
        ends = [*positions[0].eq(0).nonzero()[1:, 0].tolist(), ids.shape[1]]  # ends of the documents
        at = (labels[0, 1:] != -100).nonzero()[:, 0]  # positions that predict a supervised token
        count = len(at)
        ids, labels, positions, at = (tensor.to(device, non_blocking=True) for tensor in (ids, labels, positions, at))
        context = torch.autocast(device, torch.bfloat16) if autocast else contextlib.nullcontext()
        with context:
            hidden = model.model(input_ids=ids, position_ids=positions, use_cache=False, ends=ends)
            total = summed(hidden.last_hidden_state[0].index_select(0, at), head, labels[0, 1:].index_select(0, at))
        torch.autograd.backward(total / count)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        since, tokens = since + total.detach(), tokens + count
        if number % log_every == 0:
            losses.append(since.item() / tokens)
            since, tokens = torch.zeros((), device=device), 0
        clock.step(tokens=int(pack["tokens"]), computed=ids.numel(), supervised=count)
    return losses


def _summed_loss(liger: bool) -> Any:
    """Return the summed cross-entropy of hidden states (tokens, hidden) under a head (vocabulary, hidden)."""
    import torch
    from torch.nn import functional

    if not liger:
        return lambda hidden, head, wanted: functional.cross_entropy(
            functional.linear(hidden, head).float(), wanted, reduction="sum"
        )
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    fused: Any = LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)

    def loss(hidden: Any, head: Any, wanted: Any) -> Any:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.dtype
        with torch.autocast(device, enabled=False):  # Liger would cast the weight again for each chunk
            return fused(head.to(dtype), hidden.to(dtype), wanted)

    return loss


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Load the model and the packs, and train."""
    import torch
    import transformers

    torch.set_num_threads(given["threads"])
    torch.manual_seed(given["seed"])
    dtype = torch.bfloat16 if given["precision"] == "bf16-weights" else torch.float32
    transformers.AttentionInterface.register("documents", attention)
    how = {name: given[name] for name in ("device", "log_every", "liger") if name in given}
    if how.get("liger"):
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(cross_entropy=False, fused_linear_cross_entropy=False)  # the loss is called here
    factory: Any = transformers.AutoModelForCausalLM
    model = factory.from_pretrained(given["model"], dtype=dtype, attn_implementation="documents")
    model.to(how.get("device", "cpu"))
    if given.get("checkpointing"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    packs = torch.load(given["packs"], weights_only=True)[: given["steps"]]
    clock = StepClock()
    losses = train(model, packs, given["lr"], given["precision"] == "bf16", clock, **how)
    return clock.findings() | {"loss": losses}


if __name__ == "__main__":
    drive(measure, "torch", "transformers")
