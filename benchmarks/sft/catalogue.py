"""The targets and metrics of each case."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.sft.growth import Growth
from benchmarks.sft.metrics import (
    ANONYMOUS,
    COMPILE_SECONDS,
    PEAK,
    PREPARING,
    TOKENS_PER_SECOND,
    falling_losses,
    like_losses,
    same_losses,
    same_tokens,
)
from benchmarks.sft.payback import Payback
from hooktrain.bench import SECONDS, Metric, Target, TargetLike

__all__ = ["METRICS", "TARGETS"]

_FP32, _BF16 = same_losses(2e-3), same_losses(5e-2)
_DEFAULTS = ("ours", "ours-fp32", _BF16)

TARGETS: Mapping[str, tuple[TargetLike, ...]] = {
    "fp32": (
        Target(
            name="fp32 packs, answers, to TRL",
            variant="ours",
            to="trl",
            at_least=1.3,
            checks=(("ours", "trl", falling_losses),),
        ),
        Target(
            name="fp32 packs, every token, to TRL",
            variant="ours-all",
            to="trl",
            at_least=1.0,
            checks=(("ours-all", "trl", like_losses(0.15)),),
        ),
        Target(
            name="fp32 packs, answers, to a loop",
            variant="ours",
            to="loop",
            at_least=0.97,
            checks=(("ours", "loop", _FP32),),
        ),
    ),
    "bf16": (
        Target(
            name="bf16 packs, to TRL bf16 weights",
            variant="ours",
            to="trl",
            at_least=1.4,
            checks=(("ours", "trl", falling_losses),),
        ),
        Target(
            name="bf16 weights, to TRL bf16 weights",
            variant="ours-weights",
            to="trl",
            at_least=1.4,
            checks=(("ours-weights", "trl", falling_losses),),
        ),
        Target(
            name="bf16 packs, to a loop, autocast",
            variant="ours",
            to="loop",
            at_least=0.97,
            checks=(("ours", "loop", _BF16),),
        ),
        Target(
            name="bf16 weights, to a loop",
            variant="ours-weights",
            to="loop-weights",
            at_least=0.97,
            checks=(("ours-weights", "loop-weights", _BF16),),
        ),
    ),
    "defaults": (
        Target(
            name="defaults, 8 a step, to TRL's",
            variant="ours",
            to="trl",
            at_least=2.5,
            checks=(_DEFAULTS, ("ours", "trl", falling_losses)),
        ),
        Target(
            name="defaults, 8 a step, to Arctic's",
            variant="ours",
            to="arctic",
            at_least=4.0,
            checks=(_DEFAULTS, ("ours", "arctic", falling_losses)),
        ),
        Target(name="peak memory, defaults, to TRL's", variant="ours", to="trl", metric="peak_mib", at_most=0.5),
    ),
    "prepare": (
        Target(
            name="preparing, to tokenizing alone",
            variant="ours",
            to="tokenizing",
            at_most=1.25,
            checks=(("ours", "tokenizing", same_tokens),),
        ),
        Target(
            name="preparing on one core, to tokenizing on one",
            variant="ours-one-core",
            to="tokenizing-one-core",
            at_most=1.25,
            checks=(("ours-one-core", "tokenizing-one-core", same_tokens),),
        ),
        Target(
            name="preparing on two cores, to tokenizing on one",
            variant="ours-two-cores",
            to="tokenizing-one-core",
            at_most=0.7,
            checks=(("ours-two-cores", "ours-one-core", same_tokens),),
        ),
        Target(
            name="preparing, to TRL without masks",
            variant="ours",
            to="trl",
            at_most=1.0,
            checks=(("ours", "trl", same_tokens),),
        ),
        Target(
            name="its memory, to a tenth of rows", variant="ours", to="ours-tenth", metric="anonymous_mib", at_most=1.1
        ),
        Target(
            name="preparing, second start",
            variant="ours-again",
            kind="value",
            at_most=1.0,
            checks=(("ours-again", "ours", same_tokens),),
        ),
    ),
    "packing": (Target(name="packing a million lengths", variant="ours", kind="value", at_most=5.0),),
    "length": (
        Growth(name="memory of one long conversation", prefix="document-"),
        Growth(name="memory of long packs", prefix="packs-"),
    ),
    "compiled": (
        Target(
            name="compiled blocks, to eager ones",
            variant="ours-compiled",
            to="ours",
            at_least=1 / 0.95,
            checks=(("ours-compiled", "ours", _FP32),),
        ),
        Payback(name="step at which compiling pays", variant="ours-compiled", to="ours"),
    ),
    "tiled": (
        Target(
            name="memory of tiles, to checkpointing alone",
            variant="tiled",
            to="checkpointing",
            metric="peak_mib",
            at_most=0.7,
            checks=(("tiled", "checkpointing", same_losses(1e-4)),),
        ),
    ),
}

METRICS: Mapping[str, tuple[Metric, ...]] = {
    "fp32": (TOKENS_PER_SECOND, PEAK),
    "bf16": (TOKENS_PER_SECOND, PEAK),
    "defaults": (TOKENS_PER_SECOND, PEAK),
    "prepare": (PREPARING, ANONYMOUS),
    "packing": (SECONDS,),
    "length": (PEAK,),
    "compiled": (TOKENS_PER_SECOND, COMPILE_SECONDS, PEAK),
    "tiled": (PEAK,),
}
