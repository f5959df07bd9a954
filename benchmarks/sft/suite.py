"""The suite ``sft``."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.sft.catalogue import METRICS, TARGETS
from benchmarks.sft.groups import GROUPS, ONCE
from benchmarks.sft.inputs import InputsFailed, export_model, for_transformers_4, pack
from benchmarks.sft.rows import write_demo
from benchmarks.sft.variants import Plan, Training
from hooktrain.bench import Case, Context, Skip, Suite

__all__ = ["SUITE"]

_ABOUT = {
    "fp32": "float32, packs of 512 tokens, one a step",
    "bf16": "bf16, packs of 512 tokens, one a step",
    "defaults": "every default, eight conversations a step",
    "prepare": "from conversations in a file to what the loop trains",
    "packing": "long-tailed lengths into bins of 8,192",
    "length": "one step on long sequences with activation checkpointing",
    "compiled": "float32, packs of 512 tokens, one a step, with and without torch.compile",
    "tiled": "one step on one long conversation, an MLP of 6,144 channels: activation checkpointing, tiles as well",
}

_NO_BF16 = "this processor has no instructions for bf16, in which a step takes minutes"


def cases(context: Context) -> Iterator[Case]:
    """Yield a case for each group of variants."""
    try:
        training = _inputs(context)
    except (InputsFailed, FileNotFoundError, ModuleNotFoundError) as problem:
        raise Skip(str(problem)) from problem
    for group, variants_of in GROUPS.items():
        if not context.wants(group):
            continue
        slow = group == "bf16" and not context.quick and not _has_bf16()
        if group in ("fp32", "bf16") and not slow and not (context.folder / "packs.pt").exists():
            pack(context.folder / "packs.pt", training, context.runner)
        variants = variants_of(training, context.folder)
        yield Case(
            name=group,
            about=_ABOUT[group],
            variants=tuple(variants),
            metrics=METRICS[group],
            targets=TARGETS[group],
            rounds=1 if group in ONCE else None,
            warmup_steps=training.plan.warmup,
            compare=False,
            recipe=variants[0].specification["recipe"],
            skip=_NO_BF16 if slow else "",
        )


def _inputs(context: Context) -> Training:
    """Return the variants for SmolLM2-135M or, with ``quick``, for a tiny Llama with random weights."""
    demo = write_demo(context.folder)
    if context.quick:
        from hooktrain.testing import save_llama

        model = save_llama(context.folder / "model")
    else:
        model = export_model(context.envs / "SmolLM2-135M-Instruct", demo, context.runner, context.threads)
    warmup = context.whole_number("warmup", 1 if context.quick else 2)
    return Training(
        Plan(
            model=model,
            model_4=for_transformers_4(model, context.folder / "model-4"),
            rows=demo,
            threads=context.threads,
            steps=warmup + context.whole_number("steps", 2 if context.quick else 8),
            warmup=warmup,
            many=(20, 200) if context.quick else (10_000, 100_000),
            prepared_length=1024 if context.quick else 512,  # the tiny model's tokenizer makes more tokens
            lengths=(64, 128, 256) if context.quick else (512, 1024, 2048, 4096, 8192, 16384),
            packed_lengths=10_000 if context.quick else 1_000_000,
            overflow="truncate" if context.quick else "error",
        )
    )


def _has_bf16() -> bool:
    import torch
    from hooktrain_torch import native_bf16

    return native_bf16(torch.device("cpu"))


SUITE = Suite(
    name="sft",
    summary="fine-tuning SmolLM2-135M, compared with TRL, ArcticTraining and a hand-written loop (hours)",
    cases=cases,
    options={"steps": "measured steps of a run", "warmup": "steps before them"},
)
