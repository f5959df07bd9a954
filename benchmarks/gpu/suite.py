"""The suite ``gpu``."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.inputs import ONE_BILLION, TINY, flops_per_token, peak_flops, save_model
from benchmarks.peers import TRL, TRL_GPU
from benchmarks.sft.inputs import InputsFailed, export_model
from benchmarks.sft.metrics import falling_losses, same_losses
from benchmarks.sft.rows import write_demo, write_many
from hooktrain.bench import DEVICE_MEMORY, PEAK_MEMORY, Case, Context, Findings, Metric, Skip, Suite, Target, Variant

__all__ = ["SUITE"]

_LOG, _SEED, _LR = 10, 42, 1e-5
_NO_SYNC = (Target(name="no device sync between logs", variant="ours", kind="value", at_most=0.0),)


def cases(context: Context) -> Iterator[Case]:
    """Yield speed and memory compared with TRL and the loop, then device syncs.

    The option ``device=cpu`` runs a tiny model in float32 and without Liger, only to show that everything works.
    """
    device = context.options.get("device", "cuda")
    name = _device_name(device)
    given = _Given(context, device)
    seconds = "device_seconds" if device == "cuda" else "seconds"
    packs = context.folder / "packs.pt"
    made = context.runner.run(given.pack(packs))
    if "error" in made:
        raise Skip(f"the packs could not be made: {made['error']}")
    metrics = [_tokens_per_second(seconds), PEAK_MEMORY]
    if given.cuda:
        metrics.insert(1, DEVICE_MEMORY)
    peak = peak_flops(name)
    if peak is not None:
        metrics.insert(1, _utilization(seconds, flops_per_token(given.shape, given.vocab) / peak))
    if context.wants("speed"):
        yield Case(
            name="speed",
            about=f"{given.about}, on {name}",
            variants=[given.ours("ours"), given.loop("loop", packs), given.trl("trl")],
            baseline="loop",
            metrics=metrics,
            targets=(
                Target(variant="ours", at_least=0.97, checks=(("ours", "loop", same_losses(5e-2)),)),
                Target(variant="ours", to="trl", at_least=1.2, checks=(("ours", "trl", falling_losses),))
                if device == "cuda"
                else Target(variant="ours", to="trl", at_least=1.0),
            ),
            warmup_steps=given.warmup,
            recipe=given.recipe(liger=given.cuda),
        )
    if context.wants("device-syncs"):
        variants = [given.ours("ours", device_syncs=True, liger=False)]
        if given.cuda:
            variants.append(given.ours("ours with Liger", device_syncs=True))
        yield Case(
            name="device-syncs",
            about="operations per step that make the host wait for the device, without those of log lines",
            variants=variants,
            baseline="ours",
            metrics=(Metric("device_syncs", "a step", exact=True),),
            targets=_NO_SYNC if given.cuda else (),
            rounds=1,
            compare=False,
            recipe=given.recipe(liger=False),
        )


def _device_name(device: str) -> str:
    if device != "cuda":
        return "a processor"
    import torch

    if not torch.cuda.is_available():
        raise Skip("torch finds no GPU; `--set device=cpu` runs a tiny model on the processor")
    return torch.cuda.get_device_name(0)


class _Given:
    """Makes the variants."""

    def __init__(self, context: Context, device: str) -> None:
        self.cuda, self.context = device == "cuda", context
        small = context.quick or not self.cuda
        self.shape: dict[str, Any] = TINY if small else ONE_BILLION
        try:
            demo = write_demo(context.folder)
            tokenizer = _tokenizer(context, demo, small)
        except (InputsFailed, FileNotFoundError, ModuleNotFoundError) as problem:
            raise Skip(str(problem)) from problem
        self.model = context.folder / "model"
        self.vocab = save_model(tokenizer, self.shape, self.model)
        self.rows = write_many(context.folder, 400 if small else 20_000)
        self.length = 256 if small else 4096
        self.warmup, self.steps = (2, 20) if small else (10, 60)
        self.about = (
            f"a Llama of {sum(self._sizes()) / 1e9:.2g}B random weights, {'bf16' if self.cuda else 'fp32'}, packs of"
            f" {self.length}, activation checkpointing{', Liger' if self.cuda else ''}"
        )

    def _sizes(self) -> list[float]:
        return [flops_per_token(self.shape, self.vocab) / 6]

    def recipe(self, *, liger: bool) -> dict[str, Any]:
        """Return hooktrain's recipe."""
        return {
            "type": "sft",
            "micro_batch_size": 1,
            "seed": _SEED,
            "train_iters": self.steps,
            "log_interval": _LOG,
            "model": {
                "type": "liger" if liger else "huggingface",
                "name_or_path": str(self.model),
                "dtype": "bf16" if self.cuda else "fp32",
                "activation_checkpointing": True,
            },
            "data": {
                "sources": [str(self.rows)],
                "max_length": self.length,
                "pack_samples": True,
                "overflow": "truncate",
                "train_on": "all",
            },
            "optimizer": {"lr": _LR, "weight_decay": 0.0},
            "scheduler": {"type": "constant"},
        }

    def ours(self, name: str, *, device_syncs: bool = False, liger: bool = True) -> Variant:
        """Return hooktrain."""
        given = {"recipe": self.recipe(liger=liger and self.cuda), "device_syncs": device_syncs}
        return Variant(name, driver="benchmarks.gpu.ours", specification=given)

    def pack(self, packs: Path) -> Variant:
        """Return a variant that writes hooktrain's micro-batches for the loop."""
        given = {"do": "pack", "packs": str(packs), "recipe": self.recipe(liger=False)}
        return Variant("packs", driver="benchmarks.sft.ours", specification=given)

    def loop(self, name: str, packs: Path) -> Variant:
        """Return the loop that an expert writes for this."""
        given = {
            "model": str(self.model),
            "packs": str(packs),
            "steps": self.steps,
            "seed": _SEED,
            "lr": _LR,
            "precision": "bf16" if self.cuda else "fp32",
            "device": "cuda" if self.cuda else "cpu",
            "log_every": _LOG,
            "checkpointing": True,
            "liger": self.cuda,
        }
        return Variant(name, driver="benchmarks.peers.hand_written", specification=given)

    def trl(self, name: str) -> Variant:
        """Return TRL with the same settings: weights in float32, bf16 by autocast."""
        settings = {
            "use_cpu": not self.cuda,
            "bf16": self.cuda,
            "packing": True,
            "max_length": self.length,
            "per_device_train_batch_size": 1,
            "gradient_checkpointing": True,
            "use_liger_kernel": self.cuda,
            "logging_steps": _LOG,
            "weight_decay": 0.0,
        }
        given = {
            "model": str(self.model),
            "rows": str(self.rows),
            "steps": self.steps,
            "seed": _SEED,
            "lr": _LR,
            "settings": settings,
            "weights": "float32",
        }
        return Variant(name, driver="benchmarks.peers.trl", specification=given, peer=TRL_GPU if self.cuda else TRL)


def _tokenizer(context: Context, demo: Path, small: bool) -> Path:
    if small:
        from hooktrain.testing import save_llama

        return save_llama(context.folder / "tokenizer")
    return export_model(context.envs / "SmolLM2-135M-Instruct", demo, context.runner, context.threads)


def _tokens_per_second(seconds: str) -> Metric:
    def read(findings: Findings, warmup: int) -> float:
        # over all steps together, because the host runs ahead of the device
        return float(sum(findings["tokens"][warmup:]) / sum(findings[seconds][warmup:]))

    return Metric("tokens_per_second", "tok/s", "higher", read=read)


def _utilization(seconds: str, per_token: float) -> Metric:
    def read(findings: Findings, warmup: int) -> float:
        steps = zip(findings["tokens"][warmup:], findings[seconds][warmup:], strict=True)
        return 100 * per_token * statistics.median(tokens / took for tokens, took in steps)

    return Metric("mfu", "%", "higher", read=read)


SUITE = Suite(
    name="gpu",
    summary="a 1B-class Llama in bf16 on one GPU, compared with TRL and a hand-written loop (20 minutes)",
    cases=cases,
    options={"device": "cpu: a tiny model on the processor, only to show that it works"},
)
