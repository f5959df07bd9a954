"""The variants of the suite ``sft``: hooktrain by a recipe, the peers by their own settings."""

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
    """The extent of the measurement, and its inputs.

    Attributes:
        model: folder with the model in float32; ``model_4`` is the same for transformers 4.
        rows: file with the demo's conversations.
        steps: optimizer steps of a run; the first ``warmup`` are dropped.
        many: numbers of conversations to prepare: the smaller one to compare memory, and the larger one.
        prepared_length: tokens of their packs, at least those of the longest, as variants must keep the same tokens.
        lengths: tokens of the sequences for the memory of long ones.
        packed_lengths: number of lengths to pack.
        overflow: what to do with conversations that are too long; with the real tokenizer there are none.
        mlp_width: channels inside of the model's MLPs.
    """

    model: Path
    model_4: Path
    rows: Path
    threads: int
    lr: float = 2e-4
    steps: int
    warmup: int
    many: tuple[int, int]
    prepared_length: int = 512
    lengths: tuple[int, ...]
    packed_lengths: int
    overflow: str = "error"
    mlp_width: int = 1536


class Training:
    """Makes the variants of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def ours(
        self, name: str, *, precision: str, train_on: str = "assistant", packed: bool = True, **model: Any
    ) -> Variant:
        """Return hooktrain with a pack of 512 tokens per step, or with eight conversations per step and defaults.

        ``model`` is added to that of the recipe.
        """
        data: dict[str, Any] = {"sources": [str(self.plan.rows)]}
        if packed:
            data |= {"max_length": 512, "pack_samples": True, "train_on": train_on}
        recipe = self.recipe(data, {**_PRECISIONS[precision], **model}, batch=1 if packed else 8)
        return self._variant(name, "benchmarks.sft.ours", {"do": "train", "recipe": recipe})

    def recipe(self, data: Mapping[str, Any], model: Mapping[str, Any], batch: int = 1) -> dict[str, Any]:
        """Return a recipe with what all have in common."""
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
        """Return the hand-written loop, on the packs that hooktrain trains."""
        return self._variant(
            name, "benchmarks.peers.hand_written", {"packs": str(packs), "precision": precision, **self._common()}
        )

    def trl(self, name: str, *, settings: Mapping[str, Any], weights: str | None = None, **more: Any) -> Variant:
        """Return TRL with ``settings`` for its ``SFTConfig``."""
        given = {"rows": str(self.plan.rows), "settings": dict(settings), "weights": weights, **self._common(), **more}
        return self._variant(name, "benchmarks.peers.trl", given, peer=TRL)

    def arctic(self, name: str, *, settings: Mapping[str, Any], batch: int) -> Variant:
        """Return ArcticTraining with ``settings`` in its recipe."""
        given = {"rows": str(self.plan.rows), "settings": dict(settings), "batch": batch, **self._common()}
        return self._variant(name, "benchmarks.peers.arctic", given | {"model": str(self.plan.model_4)}, peer=ARCTIC)

    def preparing(
        self,
        name: str,
        rows: Path,
        *,
        length: int = 512,
        after: str | None = None,
        packs: Path | None = None,
        cores: int | None = None,
    ) -> Variant:
        """Return hooktrain preparing ``rows`` into packs, on some of the cores with a process each, or as it chooses.

        The packs are written to ``packs`` if that is set.
        """
        data: dict[str, Any] = {"sources": [str(rows)], "max_length": length, "pack_samples": True}
        given: dict[str, Any] = {"do": "pack" if packs else "prepare", "packs": str(packs)}
        if cores is not None:
            data["num_proc"] = given["cores"] = cores
        return self._variant(name, "benchmarks.sft.ours", given | {"recipe": self.recipe(data, {})}, after=after)

    def packing(self, name: str) -> Variant:
        """Return hooktrain packing many lengths."""
        given = {"recipe": self.recipe({"sources": ["none"], "pack_samples": True}, {})}
        return self._variant(name, "benchmarks.sft.pack_lengths", given | {"lengths": self.plan.packed_lengths})

    def tokenizing(self, name: str, rows: Path, *, cores: int | None = None) -> Variant:
        """Return rendering and tokenizing alone, in hooktrain's environment."""
        given: dict[str, Any] = {"model": str(self.plan.model), "rows": str(rows)}
        return self._variant(name, "benchmarks.peers.tokenizing", given | ({"cores": cores} if cores else {}))

    def long(self, name: str, rows: Path, length: int, packed: bool, wide: int = 1, **more: Any) -> Variant:
        """Return one step on sequences of ``length`` tokens with activation checkpointing; SGD, which has no state.

        With ``wide``, the model has four blocks of random weights, whose MLPs are so many times as wide. ``more`` is
        added to the recipe's model.
        """
        data = {"sources": [str(rows)], "max_length": length, "pack_samples": packed, "overflow": "truncate"}
        data["shuffle"] = False  # the last pack may not be full, the first one is
        config: dict[str, Any] = {}
        if length > 8192:  # what the model was made for; memory does not depend on it
            config["max_position_embeddings"] = length
        if wide > 1:
            config |= {"num_hidden_layers": 4, "intermediate_size": wide * self.plan.mlp_width}
        model = {"activation_checkpointing": True, "hf_config_kwargs": config, "from_config": wide > 1, **more}
        recipe = self.recipe(data, model) | {"optimizer": {"type": "sgd", "lr": 1e-4}, "exit_iteration": 1}
        return self._variant(name, "benchmarks.sft.ours", {"do": "train", "recipe": recipe})

    def _common(self) -> dict[str, Any]:
        return {"model": str(self.plan.model), "steps": self.plan.steps, "seed": _SEED, "lr": self.plan.lr}

    def _variant(self, name: str, driver: str, given: dict[str, Any], **more: Any) -> Variant:
        return Variant(
            name, driver=driver, specification={"threads": given.get("cores", self.plan.threads), **given}, **more
        )
