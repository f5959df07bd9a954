"""Speed of attention document by document, compared with transformers' sdpa with a mask of tokens by tokens.

    python -m benchmarks.attention [--cases pack-512,flat-4096] [--rounds 5] [--model FOLDER] [--json FILE]

Forward and backward of one micro-batch through the decoder; the LM head, which is the same for both, is not run. The
model has the shape of SmolLM2-135M and random weights, unless a folder or a GGUF file is given. Variants share it,
are run in the order A B B A in one process, and must give the same hidden states. The figure is the ratio of the
medians of seconds, with the interval that holds 95% of bootstrap samples, and that of processor seconds, which other
programs disturb less.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hooktrain_hf import HFModelConfig, build_model, install_document_attention
from hooktrain_sft.data.collate import document_keys

from hooktrain import World
from hooktrain.bench import machine
from hooktrain.bench.bootstrap import ratio_of_medians
from hooktrain.bench.driver import versions

SIDES = ("documents", "sdpa")


class Case(NamedTuple):
    """A micro-batch of one packed sequence."""

    tokens: int
    documents: int
    checkpointing: bool
    dtype: torch.dtype = torch.float32


CASES = {
    "pack-512": Case(512, 20, False),
    "pack-512-bf16": Case(512, 20, False, torch.bfloat16),
    "flat-4096": Case(4096, 40, True),
    "single-4096": Case(4096, 1, True),
}


def make_model(given: Path | None) -> Any:
    """Return the given model, or one of the shape of SmolLM2-135M with random weights."""
    if given is not None:
        return build_model(HFModelConfig(name_or_path=str(given), attn_implementation="documents"), None, World())
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    install_document_attention(model, "documents")
    return model


def make_batch(case: Case) -> dict[str, Any]:
    """Return documents of random lengths, each of at least one token, that fill the sequence."""
    draw = random.Random(0)
    cuts = [0, *sorted(draw.sample(range(1, case.tokens), case.documents - 1)), case.tokens]
    lengths = [end - begin for begin, end in itertools.pairwise(cuts)]
    ids = torch.randint(3, 49152, (1, case.tokens), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return {"input_ids": ids, "position_ids": positions, **document_keys(lengths)}


def step(model: Any, batch: dict[str, Any], variant: str, dtype: torch.dtype) -> tuple[float, float, torch.Tensor]:
    """Return the seconds, processor seconds and hidden states of a forward and a backward pass."""
    model.config._attn_implementation = variant
    wall, processor = time.perf_counter(), time.process_time()
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        hidden = model.get_decoder()(**batch, use_cache=False).last_hidden_state
        hidden.float().square().mean().backward()
    took = time.perf_counter() - wall, time.process_time() - processor
    model.zero_grad(set_to_none=True)
    return *took, hidden.detach()


def measure(model: Any, case: Case, rounds: int) -> dict[str, Any]:
    """Measure both variants of a case, and return their ratios."""
    batch = make_batch(case)
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
    took: dict[str, list[tuple[float, float]]] = {variant: [] for variant in SIDES}
    hidden = {variant: step(model, batch, variant, case.dtype)[2] for variant in SIDES}  # warms up
    difference = float((hidden["documents"] - hidden["sdpa"]).norm() / hidden["sdpa"].norm())
    if difference > (1e-4 if case.dtype is torch.float32 else 3e-2):
        raise SystemExit(f"the variants differ by {difference:.2g}, expected the same hidden states")
    before, began = machine.busy_seconds(), time.process_time()
    for _ in range(rounds):
        for variant in (*SIDES, *reversed(SIDES)):
            took[variant].append(step(model, batch, variant, case.dtype)[:2])
    own, after = time.process_time() - began, machine.busy_seconds()
    wall, processor = ({variant: [pair[at] for pair in took[variant]] for variant in SIDES} for at in (0, 1))
    return {
        "documents": case.documents,
        "tokens": case.tokens,
        "activation_checkpointing": case.checkpointing,
        "dtype": str(case.dtype).removeprefix("torch."),
        "difference": difference,
        "seconds": {variant: statistics.median(wall[variant]) for variant in SIDES},
        "speedup": ratio_of_medians(wall["sdpa"], wall["documents"]),
        "speedup_by_processor_time": ratio_of_medians(processor["sdpa"], processor["documents"]),
        "others": None if before is None or after is None else max(0.0, (after - before - own) / own),
        "runs": wall,
    }


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--cases", default=",".join(CASES))
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--model", type=Path)
    words.add_argument("--json", type=Path)
    given = words.parse_args()
    torch.set_num_threads(given.threads)
    model = make_model(given.model).train()
    found = {}
    for name in given.cases.split(","):
        found[name] = result = measure(model, CASES[name], given.rounds)
        ratio, processor, others = result["speedup"], result["speedup_by_processor_time"], result["others"]
        print(
            f"{name:15} {result['documents']:3} documents  {result['seconds']['documents']:7.2f} s against"
            f" {result['seconds']['sdpa']:7.2f} s: {ratio.value:.2f} times as fast"
            + ("" if ratio.low is None else f" ({ratio.low:.2f} to {ratio.high:.2f})")
            + f", {processor.value:.2f} by processor time"
            + ("" if others is None else f"; other programs took {others:.0%} of that"),
            flush=True,
        )
    if given.json:
        facts = {
            "machine": machine.describe(),
            **machine.commit(Path(__file__).parent),
            "versions": versions("torch", "transformers"),
            "threads": given.threads,
        }
        given.json.write_text(json.dumps({**facts, "results": found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
