"""The suite ``preference``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from benchmarks.peers import TRL, TRL_PEFT
from benchmarks.preference.metrics import PAIRS_PER_SECOND, same_training
from benchmarks.preference.pairs import write_pairs
from benchmarks.sft.inputs import InputsFailed, export_model
from benchmarks.sft.metrics import PEAK
from benchmarks.sft.rows import write_demo
from hooktrain.bench import Case, Context, Skip, Suite, Target, TargetLike, Variant

__all__ = ["SUITE"]

_SEED = 42
_LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "init_lora_weights": True}
_CASES: Mapping[str, tuple[str, dict[str, Any], dict[str, Any], bool]] = {
    "fp32": ("DPO in float32, the reference in the same pass", {}, {}, False),
    "ahead": (
        "the same, the reference ahead of the training",
        {"models": {"reference": {"precompute": True}}},
        {"precompute_ref_log_probs": True},
        False,
    ),
    "lora": ("the same with LoRA, the reference the model without it", {"peft": {"type": "lora"}}, {}, True),
}
"""For each case: what it is, what it adds to our recipe and to TRL's settings, and whether there is an adapter."""
_EQUAL = (("ours", "trl", same_training(1e-4)),)
_TARGETS: Mapping[str, tuple[TargetLike, ...]] = {
    "fp32": (
        Target(name="pairs per second, to TRL", variant="ours", to="trl", at_least=1.5, checks=_EQUAL),
        Target(name="peak memory, to TRL", variant="ours", to="trl", metric="peak_mib", at_most=0.7, checks=_EQUAL),
        Target(name="prompts once, to prompts twice", variant="ours", to="ours-twice", at_least=1.0),
    ),
    # without a goal: how much faster they are is reported, and they must not be slower
    "ahead": (Target(name="reference ahead, to TRL", variant="ours", to="trl", at_least=1.0, checks=_EQUAL),),
    "lora": (Target(name="LoRA, to TRL", variant="ours", to="trl", at_least=1.0),),
}


@attrs.frozen(kw_only=True)
class Plan:
    """The extent of the measurement, and its inputs.

    Attributes:
        model: folder with the model in float32.
        rows: file with the pairs.
        threads: of torch.
        steps: optimizer steps of a run.
        batch: pairs of a step.
        lr: learning rate.
    """

    model: Path
    rows: Path
    threads: int
    steps: int
    batch: int
    lr: float = 1e-6

    def ours(self, name: str, more: Mapping[str, Any], **loss: Any) -> Variant:
        """Return hooktrain with a recipe."""
        recipe = {
            "type": "preference",
            "micro_batch_size": self.batch,
            "seed": _SEED,
            "exit_iteration": self.steps,
            "model": {"name_or_path": str(self.model), "dtype": "fp32"},
            "data": {"sources": [str(self.rows)], "max_length": 1024, "shuffle": False, "overflow": "error"},
            "loss": {"type": "dpo", "beta": 0.1, **loss},
            "optimizer": {"lr": self.lr, "weight_decay": 0.0, "betas": [0.9, 0.999]},
            "scheduler": {"type": "constant"},
            "gradient_clipping": 1.0,
            **more,
        }
        given = {"recipe": recipe, "threads": self.threads}
        return Variant(name, driver="benchmarks.preference.ours", specification=given)

    def trl(self, name: str, more: Mapping[str, Any], adapter: bool) -> Variant:
        """Return TRL with its settings for the same training, and those that make it fastest."""
        settings = {
            "per_device_train_batch_size": self.batch,
            "train_sampling_strategy": "sequential",
            "max_length": 1024,
            "beta": 0.1,
            "bf16": False,
            "max_grad_norm": 1.0,
            "adam_beta2": 0.999,
            "gradient_checkpointing": False,  # on by default, and would make TRL slower
            **more,
        }
        given = {
            "model": str(self.model),
            "rows": str(self.rows),
            "settings": settings,
            "lora": _LORA if adapter else None,
            "steps": self.steps,
            "threads": self.threads,
            "seed": _SEED,
            "lr": self.lr,
        }
        return Variant(name, driver="benchmarks.peers.trl_dpo", specification=given, peer=TRL_PEFT if adapter else TRL)


def cases(context: Context) -> Iterator[Case]:
    """Yield the cases, each with hooktrain and TRL."""
    warmup = context.whole_number("warmup", 1)
    try:
        plan = _plan(context, warmup + context.whole_number("steps", 2 if context.quick else 6))
    except (InputsFailed, FileNotFoundError, ModuleNotFoundError) as problem:
        raise Skip(str(problem)) from problem
    for name, (about, ours, trl, adapter) in _CASES.items():
        if not context.wants(name):
            continue
        variants = [plan.ours("ours", ours), plan.trl("trl", trl, adapter)]
        if name == "fp32":
            variants.insert(1, plan.ours("ours-twice", ours, share_prompts=False))
        yield Case(
            name=name,
            about=about,
            variants=tuple(variants),
            metrics=(PAIRS_PER_SECOND, PEAK),
            targets=_TARGETS[name],
            warmup_steps=warmup,
            compare=False,
            recipe=variants[0].specification["recipe"],
        )


def _plan(context: Context, steps: int) -> Plan:
    """Return the plan for SmolLM2-135M or, with ``quick``, for a tiny Llama with random weights and short pairs."""
    batch = context.whole_number("batch", 2)
    if context.quick:
        from hooktrain.testing import save_llama

        model = save_llama(context.folder / "model", max_position_embeddings=1024)
        rows = write_pairs(context.folder, batch * steps, 0.2)  # its tokenizer makes more tokens
    else:
        demo = write_demo(context.folder)
        model = export_model(context.envs / "SmolLM2-135M-Instruct", demo, context.runner, context.threads)
        rows = write_pairs(context.folder, batch * steps)
    return Plan(model=model, rows=rows, threads=context.threads, steps=steps, batch=batch)


SUITE = Suite(
    name="preference",
    summary="DPO of SmolLM2-135M, compared with TRL (an hour)",
    cases=cases,
    options={"steps": "measured steps of a run", "warmup": "steps before them", "batch": "pairs of a step"},
)
