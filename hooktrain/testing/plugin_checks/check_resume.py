"""States of plugins go through a checkpoint, and a resumed run goes on as if it had never stopped."""

from __future__ import annotations

import io
from typing import Any

from hooktrain.testing.plugin_checks.kit import Broken, Kit, Training, Unjudged

__all__ = ["check_resume", "check_state"]

_FULL = [{"type": "full", "save_end_of_training": True}]
_COMPARED = (
    "rows of each step",
    "logged numbers",
    "weights",
    "optimizer's tensors",
    "optimizer's settings",
    "schedule",
    "states of plugins",
    "random states",
    "counters",
)


def _straight(kit: Kit) -> dict[str, Any]:
    """The straight run; the one that ends half-way with a checkpoint is made at the same time."""
    half = Training("half", "with", {"exit_iteration": kit.options.steps // 2, **_saving(kit)})
    straight, _ = kit.runs(Training("straight", "with"), half)
    result: dict[str, Any] = kit.need_all(straight, f"a run of {kit.options.steps} steps with the plugin")[0]
    return result


def _saving(kit: Kit) -> dict[str, Any]:
    """How the run half-way saves: as the recipe says, if it says, but at the end."""
    said = kit.spec.raw("with").get("checkpoint")
    if not said:
        return {"checkpoint": _FULL}
    engines = [{"type": engine} if isinstance(engine, str) else engine for engine in _listed(said)]
    return {"checkpoint": [{**engine, "save_end_of_training": True} for engine in engines]}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _halves(kit: Kit) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run that ended half-way, and the one that went on from its checkpoint."""
    _straight(kit)
    found: tuple[dict[str, Any], dict[str, Any]] = kit.once("halves", lambda: _resumed(kit))
    return found


def _resumed(kit: Kit) -> tuple[Any, Any]:
    (first,) = kit.runs(Training("half", "with"))
    half = kit.need_all(first, "a run that saves half-way")[0]
    if not half["saved"]:
        raise Unjudged("none of the recipe's checkpoint engines writes what a run can go on from")
    (rest,) = kit.runs(Training("resumed", "with", _saving(kit), half["saved"][-1]))
    return half, kit.need_all(rest, "a run that goes on from the checkpoint")[0]


def check_state(kit: Kit) -> None:
    """``collect_state`` gives plain values, and what ``restore_state`` takes back is the same."""
    both = {"collect_state", "restore_state"}
    hooks = both & set(both if kit.facts["hooks"] is None else kit.facts["hooks"])  # where it does not load, runs fail
    rule = "what collect_state gives is kept in every checkpoint, and given to restore_state when a run goes on from it"
    if len(hooks) == 1:
        (there,), (missing,) = hooks, both - hooks
        raise Broken(f"implements {there} without {missing}", rule, f"implement {missing} too, or drop {there}")
    if not hooks:
        raise Unjudged("the plugin keeps no state: it implements neither collect_state nor restore_state")
    straight = _straight(kit)
    if "not plain" in straight:
        raise Broken(
            "collect_state gives what is neither a JSON value nor a tensor: " + "; ".join(straight["not plain"][:5]),
            "checkpoints are read with torch.load(weights_only=True), which runs no code of a stranger's file",
            "give numbers, text, lists, mappings with text as keys, and tensors: str(path), list(names), float(value)",
        )
    import torch

    from hooktrain.compare import differences

    state = straight["states of plugins"].get(straight["name"])
    if state is not None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    half, resumed = _halves(kit)
    names = ("what was saved", "what was restored")
    found = list(differences(half["state when saved"], resumed.get("state when restored"), "state", names))
    if found:
        raise Broken(
            "after restore_state(state), collect_state gives another state, in a new process: " + _first(found),
            rule,
            "have restore_state set every attribute that collect_state reads",
        )


def check_resume(kit: Kit) -> None:
    """All steps straight are half of them and the rest from a checkpoint, bit by bit."""
    straight, (_, resumed) = _straight(kit), _halves(kit)
    found = _compared(kit, straight, resumed)
    if not found:
        kit.notes["resume"] = f"{kit.options.steps} steps repeated bit by bit"
        return
    hooks = set(straight["hooks"])
    if "collect_state" in hooks:
        mend = "something that it changes between steps is missing from collect_state, or not set by restore_state"
    else:
        mend = (
            "it keeps no state: give what it changes between steps in collect_state, and take it back in restore_state"
        )
    raise Broken(
        f"{kit.options.steps} steps straight, and {kit.options.steps // 2} with the rest from a checkpoint, differ:\n"
        + "\n".join(f"    {line}" for line in found),
        "a run that was stopped goes on exactly as if it had not been; random numbers come from torch, random or numpy,"
        " whose states are saved, or from a seed, the step and the rank",
        mend
        + "; `hooktrain verify-resume RECIPE` shows the same; numbers that are times are left out with ignore=(...)",
    )


def _compared(kit: Kit, straight: dict[str, Any], resumed: dict[str, Any]) -> list[str]:
    from hooktrain.compare import differences

    lines, half = [], kit.options.steps // 2
    for what in _COMPARED:
        one, two = straight.get(what), resumed.get(what)
        if what == "rows of each step":
            one, two = ({step: rows for step, rows in found.items() if step > half} for found in (one or {}, two or {}))
        if what == "logged numbers":
            one, two = (
                {
                    step: {name: value for name, value in line.items() if name not in kit.options.ignore}
                    for step, line in found.items()
                    if int(step.split()[1]) > half
                }
                for found in (one or {}, two or {})
            )
        found = list(differences(one, two, names=("the straight run", "the resumed run")))
        if found:
            lines.append(f"{what}: {_first(found)}")
    return lines


def _first(found: list[str]) -> str:
    return found[0] + (f", and {len(found) - 1} more" if len(found) > 1 else "")
