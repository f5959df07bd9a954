"""Estimates of a run's needs from tensors that have shapes and no data: no weights, no device, no network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import attrs
import torch
from torch import Tensor
from torch.nn import Module, Parameter

from hooktrain.compat import FakeTensorMode, own_tensors, tree_leaves
from hooktrain.errors import Complaint, HooktrainError, RecipeError, described
from hooktrain.plugin.manager import PluginHost
from hooktrain.protocols import ConfigDefaults, member
from hooktrain.recipe.model import Recipe
from hooktrain.training.extra_models import ExtraModels, TrainedModels, build_meta_models
from hooktrain.types import DataEstimate, MemoryEstimate, ModelEstimate, World

__all__ = ["estimate"]


class _Unknown(Exception):
    """Something cannot be known, for the reason that it carries."""


def estimate(recipe: Recipe, host: PluginHost, world: World, complaints: list[Complaint]) -> dict[str, Any]:
    """Sizes of model, data and memory, and the steps of a run.

    Args:
        recipe: of the run.
        host: its plugins.
        world: one of its processes, and how many there are.
        complaints: what turns out to be wrong with the recipe is appended here.

    Returns:
        Plain values under ``model``, ``data``, ``steps`` and ``memory``; what is not known is ``{"unknown": reason}``.
    """
    data = _known(lambda: _data(recipe, host, world), complaints)
    known = data if isinstance(data, DataEstimate) else DataEstimate()
    model = _known(lambda: _model(recipe, host, world, known, complaints), complaints)
    facts = {"data": _data_facts(data), "steps": _steps(recipe, data, world), "model": model, "memory": model}
    if isinstance(model, tuple):
        sizes, unknown, groups = model
        facts["model"] = {**_model_facts(sizes, unknown), "optimizer_groups": groups}
        facts["memory"] = _known(lambda: _memory(recipe, host, world, sizes).as_dict(), complaints)
    return facts


def _known(find: Callable[[], Any], complaints: list[Complaint]) -> Any:
    """Return what ``find`` returns, or why it is not known; a plan is shown whatever happens in a plugin."""
    try:
        return find()
    except RecipeError as problem:
        complaints += problem.complaints
        return {"unknown": "the recipe has errors"}
    except (_Unknown, HooktrainError) as problem:
        return {"unknown": " ".join(str(problem).split())}
    except KeyboardInterrupt:
        raise
    except BaseException as problem:
        return {"unknown": f"it cannot be estimated ({described(problem)[:240]})"}


# ------------------------------------------------------------------------------------------------------ data


def _data(recipe: Recipe, host: PluginHost, world: World) -> DataEstimate:
    if recipe.data is None:
        raise _Unknown("the recipe has no data")
    found = host.hooks.estimate_data(config=recipe.data, recipe=recipe, world=world, hooks=host.hooks)
    if found is None:
        raise _Unknown("no plugin estimates data of this type (hook estimate_data)")
    return cast(DataEstimate, found)


def _data_facts(data: Any) -> dict[str, Any]:
    if not isinstance(data, DataEstimate):
        return dict(data)
    return {
        "sequences": data.sequences,
        "tokens": data.tokens,
        "supervised": data.supervised,
        "longest": data.longest,
        "how": data.how,
    }


def _shared(recipe: Recipe) -> int:
    """Ranks that share the tokens of a row."""
    return int(member(recipe.strategy, ConfigDefaults, "sequence_parallel"))


def _steps(recipe: Recipe, data: Any, world: World) -> dict[str, Any]:
    """As ``Trainer.training_horizon`` and ``WindowLoader`` have it."""
    from hooktrain.training.data_limits import limited_rows

    ranks = max(1, world.world_size // _shared(recipe))
    window = recipe.micro_batch_size * recipe.gradient_accumulation_steps * ranks
    facts: dict[str, Any] = {"rows_per_step": window, "total": recipe.train_iters}
    if recipe.is_batch_size_open:
        facts["micro_batch_size"] = "auto"
    rows = data.sequences if isinstance(data, DataEstimate) else None
    if rows is not None:
        if recipe.limit_train_batches is not None:
            rows = limited_rows(recipe.limit_train_batches, rows, recipe.micro_batch_size, recipe, world)
        facts["per_epoch"] = math.ceil(rows / window)
        facts["total"] = recipe.total_steps(facts["per_epoch"])
    return facts


# ----------------------------------------------------------------------------------------------------- model


def _model(
    recipe: Recipe, host: PluginHost, world: World, data: DataEstimate, complaints: list[Complaint]
) -> tuple[ModelEstimate, dict[str, str], list[dict[str, Any]]]:
    """The sizes of the model, what of them is not known, and the groups of its optimizer."""
    if recipe.model is None:
        raise _Unknown("the recipe has no model")
    with torch.device("meta"):
        module = host.hooks.make_meta_model(config=recipe.model, world=world, recipe=recipe)
    if module is None:
        raise _Unknown("no plugin sketches a model of this type (hook make_meta_model)")
    given = {"model": module, "recipe": recipe, "tokenizer": None, "world": world}
    extra = _known(lambda: build_meta_models(host, **given), complaints)
    unknown = {} if isinstance(extra, ExtraModels) else {"further models": extra["unknown"]}
    extra = extra if isinstance(extra, ExtraModels) else ExtraModels({}, {})
    trained = extra.trained_with(module)
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a model that nobody will train
        for each in (trained, *extra.built.values()):
            _as_if_on_the_processor(each)
        sizes = _sizes(trained)
        frozen = {
            name: attrs.evolve(_sizes(extra.built[name]), dtype_is_set=each.dtype is not None, offload=each.offload)
            for name, each in extra.described.items()
            if not each.trainable
        }
        groups: list[dict[str, Any]] = []
        state = _known(lambda: _optimizer_state(recipe, host, world, trained, groups), complaints)
        unknown |= {"optimizer": state["unknown"]} if isinstance(state, dict) else {}
        activations = _known(lambda: _activations(recipe, host, module, data), complaints)
        unknown |= {"activations": activations.pop("unknown")} if "unknown" in activations else {}
    numbers, size = (None, None) if "optimizer" in unknown else state
    known = None if "activations" in unknown else activations
    found = attrs.evolve(sizes, state_numbers=numbers, state_bytes=size, activation_bytes=known, frozen=frozen)
    return found, unknown, groups


def _sizes(module: Module) -> ModelEstimate:
    weights = list(dict.fromkeys(module.parameters()))
    trained = [weight for weight in weights if weight.requires_grad]
    dtypes: dict[str, int] = {}
    for weight in weights:
        name = str(weight.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + weight.numel()
    return ModelEstimate(
        module=module,
        parameters=sum(weight.numel() for weight in weights),
        trainable=sum(weight.numel() for weight in trained),
        weight_bytes=_bytes(weights),
        trainable_bytes=_bytes(trained),
        dtypes=dtypes,
    )


def _as_if_on_the_processor(module: Module) -> None:
    """Replace every tensor by one that says it is on the processor, where autocast and kernels look as they will."""
    made: dict[int, Any] = {}
    for inner in module.modules():
        for tensors in own_tensors(inner):
            for name, tensor in tensors.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if id(tensor) not in made:
                    empty: Any = torch.empty(tensor.shape, dtype=tensor.dtype)
                    if isinstance(tensor, Parameter):
                        empty = Parameter(empty, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = (tensor, empty)
                tensors[name] = made[id(tensor)][1]


def _optimizer_state(
    recipe: Recipe, host: PluginHost, world: World, module: Module, groups: list[dict[str, Any]]
) -> tuple[int, int]:
    """Numbers and bytes that the optimizer keeps: it is built over the sketch, steps once, and is looked at.

    Its parameter groups are appended to ``groups``.
    """
    if recipe.optimizer is None:
        raise _Unknown("the recipe has no optimizer")
    optimizer = host.hooks.make_optimizer(config=recipe.optimizer, model=module, world=world, recipe=recipe)
    if optimizer is None:
        raise _Unknown("no plugin builds it")
    for group in optimizer.param_groups:
        plain = {key: group.get(key) for key in ("match", "type", "lr", "weight_decay")}
        groups.append({**plain, "parameters": sum(weight.numel() for weight in group["params"])})
        for weight in group["params"]:
            weight.grad = torch.empty_like(weight)
    optimizer.step()
    kept = [leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, Tensor) and leaf.dim()]
    for weight in module.parameters():
        weight.grad = None
    return sum(tensor.numel() for tensor in kept), _bytes(kept)


def _activations(recipe: Recipe, host: PluginHost, module: Module, data: DataEstimate) -> dict[str, int]:
    if data.longest is None:
        would = "; data.max_length would tell" if data != DataEstimate() else ""  # whose plugin knows anything of it
        raise _Unknown(f"how long rows are is not known before the data are prepared{would}")
    tokens = math.ceil(data.longest / _shared(recipe))
    module.train()
    answers = host.hooks.estimate_activations(
        recipe=recipe, model=module, sequences=recipe.micro_batch_size, tokens=tokens
    )
    made: dict[str, int] = {}
    for answer in answers:
        for name, size in answer.items():
            made[name] = made.get(name, 0) + int(size)
    if not made:
        raise _Unknown("no plugin estimates those of this model (hook estimate_activations)")
    return made


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _model_facts(sizes: ModelEstimate, unknown: Mapping[str, str]) -> dict[str, Any]:
    models = dict(sizes.module.named_children()) if isinstance(sizes.module, TrainedModels) else {"model": sizes.module}
    return {
        "class": type(models.pop("model")).__name__,
        "further_models": {
            **{name: {"class": type(module).__name__, "trainable": True} for name, module in models.items()},
            **{name: _frozen_facts(each) for name, each in sizes.frozen.items()},
        },
        "parameters": sizes.parameters,
        "trainable": sizes.trainable,
        "dtypes": dict(sizes.dtypes),
        "weight_bytes": sizes.weight_bytes,
        "optimizer_bytes": sizes.state_bytes,
        "activation_bytes": None if sizes.activation_bytes is None else dict(sizes.activation_bytes),
        "not_known": dict(unknown),
    }


def _frozen_facts(sizes: ModelEstimate) -> dict[str, Any]:
    return {
        "class": type(sizes.module).__name__,
        "trainable": False,
        "parameters": sizes.parameters,
        "weight_bytes": sizes.weight_bytes,
        "dtypes": dict(sizes.dtypes),
    }


def _memory(recipe: Recipe, host: PluginHost, world: World, sizes: ModelEstimate) -> MemoryEstimate:
    found = host.hooks.estimate_memory(config=recipe.strategy, recipe=recipe, world=world, model=sizes)
    if found is None:
        raise _Unknown("no plugin estimates the memory of this strategy (hook estimate_memory)")
    return cast(MemoryEstimate, found)
