"""What each side is told: hooktrain in a recipe, the peers in their own settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from benchmarks.peers import ARCTIC, TRL
from hooktrain.bench import Variant

__all__ = ["Plan", "Training"]

_SEED = 42
_PRECISIONS: dict[str, dict[str, str]] = {
    "default": {},
    "fp32": {"dtype": "fp32"},
    "bf16": {"dtype": "bf16"},
    "bf16-weights": {"dtype": "bf16", "weights_dtype": "bf16"},
}


@attrs.frozen(kw_only=True)
class Plan:
    """How much is measured, and on what.

    Attributes:
        model: folder with the model in float32; ``model_4`` the same for transformers 4.
        rows: the demo's conversations.
        steps: optimizer steps of a run; the first ``warmup`` are thrown away.
        many: how many conversations are prepared, and how many to compare memory with.
        lengths: tokens of the rows for the memory of long ones.
        packed_lengths: how many lengths are packed.
        overflow: what becomes of conversations that are too long; there is none with the real tokenizer.
    """

    model: Path
    model_4: Path
    rows: Path
    threads: int
    lr: float = 2e-4
    steps: int
    warmup: int
    many: tuple[int, int]
    lengths: tuple[int, ...]
    packed_lengths: int
    overflow: str = "error"


class Training:
    """Makes the sides of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def ours(self, name: str, *, precision: str, train_on: str = "assistant", packed: bool = True) -> Variant:
        """hooktrain: packs of 512 tokens, one a step; or eight conversations a step and every default."""
        data: dict[str, Any] = {"sources": [str(self.plan.rows)]}
        if packed:
            data |= {"max_length": 512, "pack_samples": True, "train_on": train_on}
        recipe = self.recipe(data, _PRECISIONS[precision], batch=1 if packed else 8)
        return self._side(name, "benchmarks.sft.ours", {"do": "train", "recipe": recipe})

    def recipe(self, data: Mapping[str, Any], model: Mapping[str, Any], batch: int = 1) -> dict[str, Any]:
        """What all recipes have in common."""
        return {
            "type": "sft",
            "micro_batch_size": batch,
            "seed": _SEED,
            "exit_iteration": self.plan.steps,
            "model": {"name_or_path": str(self.plan.model), **model},
            "data": {"overflow": self.plan.overflow, **data},
            "optimizer": {"lr": self.plan.lr, "weight_decay": 0.0},
            "scheduler": {"type": "constant"},
        }

    def hand_written(self, name: str, precision: str, packs: Path) -> Variant:
        """The loop without anything around it, on the packs that hooktrain trains."""
        return self._side(
            name, "benchmarks.peers.hand_written", {"packs": str(packs), "precision": precision, **self._common()}
        )

    def trl(self, name: str, *, settings: Mapping[str, Any], weights: str | None = None, **more: Any) -> Variant:
        """TRL with ``settings`` for its ``SFTConfig``; with none of them it runs on its defaults."""
        given = {"rows": str(self.plan.rows), "settings": dict(settings), "weights": weights, **self._common(), **more}
        return self._side(name, "benchmarks.peers.trl", given, peer=TRL)

    def arctic(self, name: str, *, settings: Mapping[str, Any], batch: int) -> Variant:
        """ArcticTraining with ``settings`` in its recipe."""
        given = {"rows": str(self.plan.rows), "settings": dict(settings), "batch": batch, **self._common()}
        return self._side(name, "benchmarks.peers.arctic", given | {"model": str(self.plan.model_4)}, peer=ARCTIC)

    def preparing(self, name: str, rows: Path, *, after: str | None = None, packs: Path | None = None) -> Variant:
        """hooktrain prepares ``rows`` into packs of 512 tokens, writes them to ``packs`` if it is given, and stops."""
        recipe = self.recipe({"sources": [str(rows)], "max_length": 512, "pack_samples": True}, {})
        given = {"do": "pack" if packs else "prepare", "packs": str(packs), "recipe": recipe}
        return self._side(name, "benchmarks.sft.ours", given, after=after)

    def packing(self, name: str) -> Variant:
        """hooktrain packs many lengths."""
        given = {"recipe": self.recipe({"sources": ["none"], "pack_samples": True}, {})}
        return self._side(name, "benchmarks.sft.pack_lengths", given | {"lengths": self.plan.packed_lengths})

    def tokenizing(self, name: str, rows: Path) -> Variant:
        """Rendering and tokenizing and nothing else, in hooktrain's environment."""
        return self._side(name, "benchmarks.peers.tokenizing", {"model": str(self.plan.model), "rows": str(rows)})

    def long(self, name: str, rows: Path, length: int, packed: bool) -> Variant:
        """One step on rows of ``length`` tokens, with activation checkpointing; SGD, whose own memory is nothing."""
        data = {"sources": [str(rows)], "max_length": length, "pack_samples": packed, "overflow": "truncate"}
        data["shuffle"] = False  # the last pack may not be full, the first one is
        model: dict[str, Any] = {"activation_checkpointing": True}
        if length > 8192:  # what the model was made for; memory does not depend on it
            model["hf_config_kwargs"] = {"max_position_embeddings": length}
        recipe = self.recipe(data, model) | {"optimizer": {"type": "sgd", "lr": 1e-4}, "exit_iteration": 1}
        return self._side(name, "benchmarks.sft.ours", {"do": "train", "recipe": recipe})

    def _common(self) -> dict[str, Any]:
        return {"model": str(self.plan.model), "steps": self.plan.steps, "seed": _SEED, "lr": self.plan.lr}

    def _side(self, name: str, driver: str, given: dict[str, Any], **more: Any) -> Variant:
        return Variant(name, driver=driver, specification={**given, "threads": self.plan.threads}, **more)
