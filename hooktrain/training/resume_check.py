"""Resume compatibility: comparison of a checkpoint's recipe, data and plugins with this run's."""

from __future__ import annotations

import json
import platform
import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from hooktrain.config import unstructure
from hooktrain.errors import CheckpointError
from hooktrain.hookspecs import FACTORIES, LOOP_HOOKS
from hooktrain.masking import digests_of, masked, unmasked
from hooktrain.plugin.ordering import is_declined
from hooktrain.plugin.usage import asks_for

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["Change", "changes", "provenance", "require_same", "versions"]

_HARMLESS = ("run_evaluate", "save_checkpoint", "load_checkpoint", "make_checkpoint_engine", "make_metric")
_BATCH = "global_batch_size"
_BATCH_PARTS = (_BATCH, "micro_batch_size", "gradient_accumulation_steps")
"""Keys of which only the rows in a step matter."""
_ROWS = ("data.sources", "data.overflow", "data.on_empty")
_ELSEWHERE = ("plugins", "settings", "allow_changes")
_LENGTH = ("epochs", "train_iters", "min_iterations")
_COMPARED = 10_000_000
"""Steps up to which the learning rates of two runs are compared, which takes a minute."""


class Change(NamedTuple):
    """One thing in which two runs differ.

    Attributes:
        where: path in the recipe, or ``plugins.<name>``, ``versions.<name>``, ``global_batch_size``, ``world_size``.
        message: what it was, and what it is.
        matters: whether the training would be another one.
    """

    where: str
    message: str
    matters: bool

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def versions() -> dict[str, str]:
    """Return the versions that influence the numbers besides the recipe and the plugins."""
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__}


def provenance(trainer: Trainer) -> dict[str, Any]:
    """Return the facts by which a checkpoint recognises its run, as plain values for JSON.

    Args:
        trainer: with its data.
    """
    recipe = trainer.recipe
    plain, salt = recipe.as_dict(), secrets.token_hex(16)
    digests = digests_of(plain, salt)
    return {
        "recipe": masked(plain),
        **({"masked": {"salt": salt, "digests": digests}} if digests else {}),
        "plugins": [{**record, "changes": _part_in(trainer, record["name"])} for record in trainer.host.manifest()],
        "versions": versions(),
        "data": {"rows": len(trainer.data.train), "fingerprint": trainer.data.train_fingerprint},
        "steps": [trainer.global_step, trainer.training_horizon],
        "batch": [recipe.micro_batch_size, recipe.gradient_accumulation_steps, trainer.data_world.world_size],
        "world_size": trainer.world.world_size,
    }


def require_same(trainer: Trainer, before: Mapping[str, Any], path: Path) -> None:
    """Refuse to resume from a checkpoint where the training would become another one, and report other differences.

    Args:
        trainer: with its data; the model need not have been built.
        before: the :func:`provenance` that the checkpoint holds.
        path: the checkpoint.

    Raises:
        CheckpointError: naming every difference that the recipe's ``allow_changes`` does not allow.
    """
    found = list(changes(before, trainer))
    allowed = trainer.recipe.allow_changes
    refused = [change for change in found if change.matters and not _is_allowed(change.where, allowed)]
    if refused:
        keys = ", ".join(dict.fromkeys(change.where.partition("[")[0] for change in refused))
        raise CheckpointError(
            f"{path}: was saved by a run that trained differently; put back what has changed, or resume anyway"
            f" with allow_changes: [{keys}]\n" + "\n".join(f"  - {change}" for change in refused)
        )
    for change in found:
        trainer.say(f"changed since the checkpoint: {change}")


def changes(before: Mapping[str, Any], trainer: Trainer) -> Iterator[Change]:
    """The differences between the run that saved a checkpoint and this one, those that matter or not."""
    now = json.loads(json.dumps(provenance(trainer), default=str))
    same_rows = bool(now["data"]["fingerprint"]) and now["data"] == before["data"]
    same_rates = before["steps"][1] == now["steps"][1] or _same_rates(trainer, *before["steps"])
    recipe, hidden = before["recipe"], before.get("masked", {"salt": "", "digests": {}})
    recipe = unmasked(recipe, hidden["digests"], hidden["salt"], trainer.recipe.as_dict())
    changed: set[str] = set()
    for change in _in_config(trainer.recipe, recipe, trainer.recipe.types, "", True):
        changed.add(change.where.partition(".")[0].partition("[")[0])
        if change.where in _BATCH_PARTS:
            continue
        if change.where in _LENGTH and not same_rates:
            more = f"{change.message}: with {now['steps'][1]} steps the learning rates so far would have been others"
            change = change._replace(message=more)  # noqa: PLW2901
        harmless = same_rates if change.where in _LENGTH else same_rows and change.where.startswith(_ROWS)
        yield change._replace(matters=change.matters and not harmless)
    for change in _in_settings(recipe, trainer):
        changed.add(change.where.partition(".")[0])
        yield change
    yield from _in_batch(before["batch"], now["batch"])
    if before["world_size"] != now["world_size"]:
        ranks = f"was {_ranks(before['world_size'])}, is {_ranks(now['world_size'])}"
        yield Change("world_size", f"{ranks}: the random numbers of dropout differ", False)
    if before["data"] != now["data"]:
        rows = [f"{side['data']['rows']:,}" for side in (before, now)]
        counts = f" ({rows[0]} then, {rows[1]} now)" if rows[0] != rows[1] else ""
        yield Change("data", f"other rows to train on{counts}", True)
    for change in _in_plugins(before["plugins"], now["plugins"]):
        chosen = _is_chosen_by(trainer, change.where.partition(".")[2], changed)  # what the recipe chose has been said
        yield change._replace(matters=change.matters and not chosen)
    for name, version in now["versions"].items():
        if before["versions"].get(name) != version:
            yield Change(f"versions.{name}", f"was {before['versions'].get(name)}, is {version}", False)


def _is_chosen_by(trainer: Trainer, name: str, changed: Set[str]) -> bool:
    """Whether a plugin takes part, or no longer does, as parts or settings that it registers have changed."""
    record = trainer.host.records.get(name)
    if record is None or record.info.active_when is None:
        return False
    registered = (each.partition("/") for each in record.registers)
    return not changed.isdisjoint(part if kind == "settings" else kind for kind, _, part in registered)


def _ranks(count: int) -> str:
    return "1 rank" if count == 1 else f"{count} ranks"


def _in_config(config: Any, before: Mapping[str, Any], types: Mapping[Any, str], where: str, affects: bool) -> Any:
    """Differences of a config from what it was as plain values."""
    for item in attrs.fields(type(config)):
        if item.metadata.get("internal") or item.name in _ELSEWHERE:
            continue
        own = item.metadata.get("affects_training")
        path, changes = f"{where}.{item.name}".lstrip("."), affects if own is None else own
        yield from _in_value(getattr(config, item.name), before.get(item.name), types, path, changes, item.default)


def _in_value(value: Any, before: Any, types: Mapping[Any, str], where: str, affects: bool, default: Any) -> Any:
    plain = json.loads(json.dumps(unstructure(value, types), default=str))
    if plain == before or (before is None and value == default):
        return
    if attrs.has(type(value)) and isinstance(before, Mapping):
        if before.get("type") != plain.get("type"):
            yield Change(f"{where}.type", f"was {before.get('type')}, is {plain.get('type')}", affects)
            for item in attrs.fields(type(value)):
                if item.metadata.get("affects_training") and item.name in before:  # such as a strategy's precision
                    one, path = getattr(value, item.name), f"{where}.{item.name}"
                    yield from _in_value(one, before[item.name], types, path, True, item.default)
        else:
            yield from _in_config(value, before, types, where, affects)
    elif _is_list(value) and isinstance(before, list) and len(value) == len(before):
        for number, (one, other) in enumerate(zip(value, before, strict=True)):
            yield from _in_value(one, other, types, f"{where}[{number}]", affects, None)
    else:
        texts = [_short(masked(side, where)) for side in (before, plain)]
        differ = f"was {texts[0]}, is {texts[1]}" if texts[0] != texts[1] else f"is another {texts[1]} than it was"
        yield Change(where, differ, affects)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(attrs.has(type(item)) for item in value)


def _in_settings(before: Mapping[str, Any], trainer: Trainer) -> Iterator[Change]:
    for name, config in trainer.recipe.settings.items():
        yield from _in_value(config, before.get(name), {}, name, True, type(config)())


def _same_rates(trainer: Trainer, steps: int, horizon: int) -> bool:
    """Whether the learning rates of the first steps are those of a run that was to be ``horizon`` steps long."""
    if trainer.recipe.scheduler is None:
        return True
    if steps > _COMPARED:
        return False
    import torch

    rates, recipe = [], trainer.recipe
    for total in (horizon, trainer.training_horizon):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own schedules want the optimizer to step as well
            schedule = trainer.hooks.make_scheduler(
                config=recipe.scheduler, optimizer=optimizer, total_steps=total, world=trainer.world, recipe=recipe
            )
            rates.append([(schedule.get_last_lr()[0], schedule.step())[0] for _ in range(steps)])
    return bool(rates[0] == rates[1])


def _in_batch(before: Sequence[int], now: Sequence[int]) -> Iterator[Change]:
    micro, _, ranks = now
    rows = [side[0] * side[1] * side[2] for side in (before, now)]
    if rows[0] != rows[1]:
        fits = rows[0] % (micro * ranks) == 0
        advice = f"write gradient_accumulation_steps: {rows[0] // (micro * ranks)}"
        other = f"write a micro_batch_size so that {rows[0]} is a multiple of it * {ranks} ranks"
        texts = [f"{rows[i]} ({' * '.join(map(str, side))} ranks)" for i, side in enumerate((before, now))]
        yield Change(_BATCH, f"was {texts[0]} rows in a step, is {texts[1]}; {advice if fits else other}", True)


def _in_plugins(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> Iterator[Change]:
    were, are = ({record["name"]: record for record in side} for side in (before, now))
    for name, record in were.items():
        if name not in are:
            yield _of_plugin(record, "was active and is missing")
        elif (record["distribution"], record["version"]) != (are[name]["distribution"], are[name]["version"]):
            texts = [_of(side[name]) for side in (were, are)]
            yield Change(f"plugins.{name}", f"was {texts[0]}, is {texts[1]}", False)
        elif record.get("digest", "") != are[name]["digest"]:
            yield Change(f"plugins.{name}", f"{_of(record)} has other files than then, in the same version", False)
    for name, record in are.items():
        if name not in were:
            yield _of_plugin(record, "is active and was not")
    orders = [
        [n for n in reversed(side) if side[n].get("changes") and n in were and n in are] for side in (were, are)
    ]  # in the order of calls, as a recipe states it
    if orders[0] != orders[1] and set(orders[0]) == set(orders[1]):
        yield Change("plugins.order", f"was {', '.join(orders[0])}, is {', '.join(orders[1])}", True)


def _of_plugin(record: Mapping[str, Any], what: str) -> Change:
    hooks = record.get("changes", [])
    more = f", and has a hand in {', '.join(hooks)}" if hooks else ""
    return Change(f"plugins.{record['name']}", f"{_of(record)} {what}{more}", bool(hooks))


def _of(record: Mapping[str, Any]) -> str:
    return f"{record['distribution']} {record['version']}".strip()


def _part_in(trainer: Trainer, name: str) -> list[str]:
    """The hooks through which a plugin has a hand in the training without any word in the recipe."""
    host, record = trainer.host, trainer.host.records[name]
    if record.distribution == "hooktrain" or record.info.only_observes or not asks_for(host, trainer.recipe, record):
        return []
    found = []
    acting = (*LOOP_HOOKS, "make_models", "collect_loss_terms")
    for hook in (*acting, *FACTORIES):
        implemented = [one for one in host.implementations(hook) if one.plugin_name == name and not is_declined(one)]
        if hook not in _HARMLESS and any(one.wrapper or hook in acting for one in implemented):
            found.append(hook)
    return [*found, "the gradients"] if record.info.changes_gradients else found


def _is_allowed(where: str, allowed: Sequence[str]) -> bool:
    return any(word in ("*", where) or where.startswith((f"{word}.", f"{word}[")) for word in allowed)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
