"""The suite ``strategy``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from benchmarks.sft.metrics import same_losses
from hooktrain.bench import CPU_SECONDS, PEAK_MEMORY, SECONDS, Case, Context, Findings, Suite, Target, Variant

__all__ = ["SUITE"]

_NAMES = {
    "ddp": ("DDP", "PyTorch's DistributedDataParallel"),
    "fsdp2": ("FSDP2", "PyTorch's fully_shard"),
    **{f"zero{stage}": (f"ZeRO {stage}", "DeepSpeed") for stage in range(4)},
}
_LIMIT = 1.02


def cases(context: Context) -> Iterator[Case]:
    """Yield a case for each strategy; variants train the same weights and sequences, on two ranks of a core each."""
    chosen = ("ddp", "zero2") if context.quick else tuple(_NAMES)
    for strategy in chosen:
        name, peer = _NAMES[strategy]
        if strategy.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
            continue
        given = {
            "strategy": strategy,
            "ranks": 2,
            "steps": 5 if context.quick else 40,
            "rows": 2 if context.quick else 8,
            "tokens": 16 if context.quick else 64,
            "model": {"vocab": 64, "width": 16, "depth": 2} if context.quick else _MODEL,
        }
        yield Case(
            name=name,
            about=f"compared with {peer} alone: the same weights, sequences, AdamW and clipping, on two ranks",
            parameters={"ranks": 2},
            variants=[
                Variant(variant, driver="benchmarks.strategy.driver", specification={**given, "variant": variant})
                for variant in ("ours", "bare")
            ],
            baseline="bare",
            metrics=(SECONDS, CPU_SECONDS, PEAK_MEMORY),
            targets=(Target(variant="ours", at_most=_LIMIT, checks=(("ours", "bare", _same),)),),
            warmup_steps=1 if context.quick else 5,
            recipe={"strategy": strategy, "micro_batch_size": given["rows"], "optimizer": {"type": "adamw"}},
        )


_MODEL = {"vocab": 2048, "width": 384, "depth": 6}


def _same(ours: Findings, theirs: Findings, warmup: int) -> str:
    """Check that losses agree at every log line."""
    with_tokens = [{"loss": variant["loss"], "tokens": len(variant["loss"])} for variant in (ours, theirs)]
    return same_losses(1e-4)(with_tokens[0], with_tokens[1], warmup)


SUITE = Suite(
    name="strategy",
    summary="overhead of the engine on two ranks under DDP, FSDP2 and ZeRO 0 to 3 (40 minutes)",
    cases=cases,
)
