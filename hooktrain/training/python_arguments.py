"""A recipe with objects alongside it becomes one without: each object has an entry of ``type: python`` in its place."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hooktrain.compat import origin_of
from hooktrain.errors import Complaint, DataError, ModelError, RecipeError
from hooktrain.training.python_parts import PythonParts, describe
from hooktrain.training.python_rows import readable
from hooktrain.types import Data

__all__ = ["needs_tokenizer", "settle"]

_MODEL_KEYS = ("dtype", "weights_dtype", "attn_implementation", "activation_checkpointing")
_FUNCTIONS = {
    "loss": "a function of model, batch and denominator that returns a LossSum",
    "optimizer": "a function of the model, such as lambda model: torch.optim.AdamW(model.parameters(), lr=1e-4)",
    "scheduler": "a function of optimizer and number of steps, such as lambda optimizer, steps:"
    " torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=steps)",
}


def settle(raw: Mapping[str, Any], parts: PythonParts, objects: Mapping[str, Any]) -> dict[str, Any]:
    """Put the objects that were passed from Python into the recipe.

    Args:
        raw: the recipe, without these objects.
        parts: keeps the objects.
        objects: ``model``, ``tokenizer``, ``train_dataset``, ``eval_dataset``, ``data``, ``loss``, ``optimizer`` and
            ``scheduler``; None where there is none.

    Returns:
        The recipe, with plain values only.

    Raises:
        RecipeError: when something is given in the recipe as well, or is not what it should be.
    """
    settled = _Settled(raw, parts, {name: value for name, value in objects.items() if value is not None})
    made = settled.recipe()
    if settled.complaints:
        raise RecipeError(settled.complaints, "recipe")
    return made


class _Settled:
    """One call of ``settle``."""

    def __init__(self, raw: Mapping[str, Any], parts: PythonParts, objects: Mapping[str, Any]) -> None:
        self.complaints: list[Complaint] = list(_objects_in(raw, ""))
        self.raw = {key: dict(value) if isinstance(value, Mapping) else value for key, value in raw.items()}
        self.parts, self.objects = parts, objects

    def recipe(self) -> dict[str, Any]:
        if self.complaints:
            return self.raw
        for name in self.objects:
            getattr(self, f"_{name}")(self.objects[name])
        return self.raw

    def complain(self, where: str, message: str) -> None:
        self.complaints.append(Complaint(where, message))

    def _add(self, kind: str, value: Any, **more: Any) -> None:
        self.parts.add(kind, value)
        self.raw[kind] = {**more, "type": "python", "built_as": describe(value)}

    def _alone(self, kind: str, argument: str) -> bool:
        """Whether the recipe leaves a part to the object that was given."""
        if self.raw.get(kind) is None:
            return True
        self.complain(kind, f"given in the recipe, and as {argument}= alongside it; remove one of them")
        return False

    def _model(self, model: Any) -> None:
        if isinstance(model, (str, Path)):
            if isinstance(self.raw.get("model"), Mapping) and "name_or_path" not in self.raw["model"]:
                self.raw["model"]["name_or_path"] = str(model)
            elif self._alone("model", "model"):
                self.raw["model"] = str(model)
            return
        if not isinstance(model, Module):
            self.complain("model", f"given a {describe(model)}, expected a torch module, or a name or folder as text")
            return
        more = self.raw.get("model") or {}
        if isinstance(more, str):
            more = {"name_or_path": more}
        for key in more:
            if key not in _MODEL_KEYS:
                self.complain(
                    f"model.{key}",
                    f"given in the recipe, and a {describe(model)} as model= alongside it; remove one of them (with a"
                    f" model passed from Python there may be {', '.join(_MODEL_KEYS)})",
                )
        if not self.complaints:
            self._add("model", model, **more, name_or_path=origin_of(model))

    def _tokenizer(self, tokenizer: Any) -> None:
        if isinstance(tokenizer, (str, Path)):
            if self._alone("tokenizer", "tokenizer"):
                self.raw["tokenizer"] = str(tokenizer)
        elif not callable(tokenizer):
            self.complain("tokenizer", f"given a {describe(tokenizer)}, expected a tokenizer, or a name or folder")
        elif self._alone("tokenizer", "tokenizer"):
            self._add("tokenizer", tokenizer)

    def _train_dataset(self, rows: Any) -> None:
        if isinstance(rows, Mapping) and "train" in rows:  # a DatasetDict
            rows = rows["train"]
        source = self._source("train_dataset", "train_dataset", rows)
        self._put("sources", "train_dataset", [source])

    def _eval_dataset(self, rows: Any) -> None:
        if not isinstance(rows, Mapping):
            rows = {"eval": rows}
        sources = [
            self._source(str(name), "eval_dataset" if len(rows) == 1 else f"eval_dataset['{name}']", each)
            for name, each in rows.items()
        ]
        self._put("eval_sources", "eval_dataset", sources)

    def _put(self, key: str, argument: str, sources: Sequence[Any]) -> None:
        data = self.raw.setdefault("data", {})
        if data is None:
            data = self.raw["data"] = {}
        if not isinstance(data, dict):
            self.complain("data", f"given {data!r}, expected a mapping beside {argument}=")
        elif data.get(key):
            self.complain(f"data.{key}", f"given in the recipe, and as {argument}= alongside it; remove one of them")
        else:
            data[key] = list(sources)

    def _source(self, name: str, argument: str, rows: Any) -> Any:
        if isinstance(rows, (str, Path)):
            return str(rows)
        try:
            found, streaming = readable(rows, argument)
        except DataError as problem:
            self.complain("", str(problem))
            return None
        self.parts.add(f"source {name}", found)
        return {"type": "python", "name": name, "built_as": describe(rows), "streaming": streaming}

    def _data(self, data: Any) -> None:
        if not isinstance(data, Data):
            self.complain("data", f"given a {describe(data)}, expected a hooktrain.Data, or rows as train_dataset=")
        elif self._alone("data", "data"):
            for argument in ("train_dataset", "eval_dataset"):
                if argument in self.objects:
                    self.complain("data", f"given alongside {argument}=, which would be data too; remove one of them")
            self.raw.setdefault("type", "python")
            self._add("data", data)

    def _function(self, kind: str, function: Any) -> None:
        if isinstance(function, Optimizer):
            self.complain(
                kind,
                f"given a {describe(function)}, whose parameters need not be those that are trained once plugins and"
                f" strategy have had the model; expected {_FUNCTIONS[kind]}",
            )
        elif not callable(function) or inspect.isclass(function) or isinstance(function, (Optimizer, LRScheduler)):
            self.complain(kind, f"given {describe(function)}, expected {_FUNCTIONS[kind]}")
        elif self._alone(kind, kind):
            self._add(kind, function)

    def _loss(self, function: Any) -> None:
        self._function("loss", function)

    def _optimizer(self, function: Any) -> None:
        self._function("optimizer", function)

    def _scheduler(self, function: Any) -> None:
        self._function("scheduler", function)


def _objects_in(value: Any, where: str) -> Iterator[Complaint]:
    """Complaints about what is no plain value in a recipe."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _objects_in(each, f"{where}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for number, each in enumerate(value):
            yield from _objects_in(each, f"{where}[{number}]")
    elif value is not None and not isinstance(value, (str, int, float, bool, Path)):
        name = where.partition(".")[0].partition("[")[0]
        where_to = {"data": "train_dataset", "plugins": "plugins"}.get(name, name)
        yield Complaint(
            where,
            f"given a {describe(value)}, expected plain values as a YAML file could hold them; objects are passed"
            f" alongside the recipe, as in Trainer(recipe, {where_to}=...)",
        )


def needs_tokenizer(problem: RecipeError, objects: Mapping[str, Any]) -> ModelError | None:
    """Return the error for a missing tokenizer where the model passed does not say where it was loaded from."""
    missing = any(complaint.where == "tokenizer.name_or_path" for complaint in problem.complaints)
    model = objects.get("model")
    if not missing or not isinstance(model, Module):
        return None
    return ModelError(
        f"tokenizer: none is given, and a {describe(model)} does not say which folder or name on the hub it was loaded"
        " from; give Trainer(..., tokenizer=...), an object, a folder or a name"
    )
