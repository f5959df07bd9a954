"""Checks that the state of a plugin survives a checkpoint, and that a resumed run is the same as one without a stop."""

from __future__ import annotations

import io
from typing import Any

from hooktrain.testing.plugin_checks.kit import Broken, Kit, NotApplicable, Training

__all__ = ["check_resume", "check_state"]

_FULL = [{"type": "full", "save_end_of_training": True}]
_COMPARED = (
    "sequences of each step",
    "logged numbers",
    "weights",
    "optimizer's tensors",
    "optimizer's settings",
    "schedule",
    "states of plugins",
    "random states",
    "counters",
)


def _uninterrupted(kit: Kit) -> dict[str, Any]:
    """Run all steps; the run that stops half-way with a checkpoint is made at the same time."""
    half = Training("half", "with", {"exit_iteration": kit.options.steps // 2, **_saving(kit)})
    uninterrupted, _ = kit.runs(Training("uninterrupted", "with"), half)
    result: dict[str, Any] = kit.need_all(uninterrupted, f"a run of {kit.options.steps} steps with the plugin")[0]
    return result


def _saving(kit: Kit) -> dict[str, Any]:
    """Return the recipe's checkpoint engines, or ``full``, set to save at the end."""
    found = kit.spec.raw("with").get("checkpoint")
    if not found:
        return {"checkpoint": _FULL}
    engines = [{"type": engine} if isinstance(engine, str) else engine for engine in _listed(found)]
    return {"checkpoint": [{**engine, "save_end_of_training": True} for engine in engines]}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _halves(kit: Kit) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the results of the run that stopped half-way, and of the one that resumed from its checkpoint."""
    _uninterrupted(kit)
    found: tuple[dict[str, Any], dict[str, Any]] = kit.once("halves", lambda: _resumed(kit))
    return found


def _resumed(kit: Kit) -> tuple[Any, Any]:
    (first,) = kit.runs(Training("half", "with"))
    half = kit.need_all(first, "a run that stops half-way with a checkpoint")[0]
    if not half["saved"]:
        raise NotApplicable("none of the recipe's checkpoint engines writes a checkpoint that a run can resume from")
    (rest,) = kit.runs(Training("resumed", "with", _saving(kit), half["saved"][-1]))
    return half, kit.need_all(rest, "a run that resumes from the checkpoint")[0]


def check_state(kit: Kit) -> None:
    """Check that ``collect_state`` returns plain values, and that ``restore_state`` restores them."""
    both = {"collect_state", "restore_state"}
    hooks = both & set(both if kit.facts["hooks"] is None else kit.facts["hooks"])  # where it does not load, runs fail
    rule = "every checkpoint stores the result of collect_state, and a resumed run passes it to restore_state"
    if len(hooks) == 1:
        (there,), (missing,) = hooks, both - hooks
        raise Broken(f"implements {there} without {missing}", rule, f"implement {missing} too, or remove {there}")
    if not hooks:
        raise NotApplicable("the plugin keeps no state: it implements neither collect_state nor restore_state")
    uninterrupted = _uninterrupted(kit)
    if "not plain" in uninterrupted:
        raise Broken(
            "collect_state returns values that are neither JSON nor tensors: "
            + "; ".join(uninterrupted["not plain"][:5]),
            "checkpoints are read with torch.load(weights_only=True), which runs no code from the file",
            "return numbers, strings, lists, mappings with string keys, and tensors, such as str(path), list(names) and"
            " float(value)",
        )
    import torch

    from hooktrain.compare import differences

    state = uninterrupted["states of plugins"].get(uninterrupted["name"])
    if state is not None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    half, resumed = _halves(kit)
    names = ("the saved state", "the restored state")
    found = list(differences(half["state when saved"], resumed.get("state when restored"), "state", names))
    if found:
        raise Broken(
            "after restore_state(state) in a new process, collect_state returns another state: " + _first(found),
            rule,
            "set every attribute that collect_state reads in restore_state",
        )


def check_resume(kit: Kit) -> None:
    """Check that a run that stops half-way and resumes ends as one without a stop, bit by bit."""
    uninterrupted, (_, resumed) = _uninterrupted(kit), _halves(kit)
    found = _compared(kit, uninterrupted, resumed)
    if not found:
        kit.notes["resume"] = f"{kit.options.steps} steps repeated bit by bit"
        return
    if "collect_state" in uninterrupted["hooks"]:
        fix = "return everything that it changes between steps from collect_state, and set it in restore_state"
    else:
        fix = "it keeps no state: return what it changes between steps from collect_state, and set it in restore_state"
    raise Broken(
        f"a run of {kit.options.steps} steps, and one that stops after {kit.options.steps // 2} and resumes from its"
        " checkpoint, differ:\n" + "\n".join(f"    {line}" for line in found),
        "a run that stops and resumes trains exactly as one that does not stop; random numbers come from torch, random"
        " or numpy, whose states are saved, or from a seed, the step and the rank",
        f"{fix}; `hooktrain verify-resume RECIPE` makes the same comparison; exclude metrics that are times with"
        " conformance(ignore=[...])",
    )


def _compared(kit: Kit, uninterrupted: dict[str, Any], resumed: dict[str, Any]) -> list[str]:
    from hooktrain.compare import differences

    lines, half = [], kit.options.steps // 2
    for what in _COMPARED:
        one, two = uninterrupted.get(what), resumed.get(what)
        if what == "sequences of each step":
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
        found = list(differences(one, two, names=("the uninterrupted run", "the resumed run")))
        if found:
            lines.append(f"{what}: {_first(found)}")
    return lines


def _first(found: list[str]) -> str:
    return found[0] + (f", and {len(found) - 1} more" if len(found) > 1 else "")
