"""A plugin that only observes changes nothing, and several ranks train as one does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hooktrain.testing.plugin_checks.kit import Broken, Kit, Training, Unjudged

__all__ = ["changes_gradients", "check_observes", "check_ranks", "require_removable"]


def changes_gradients(kit: Kit) -> bool:
    """What the author says, or what the plugin declares."""
    said = kit.options.changes_gradients
    return bool(kit.facts["changes_gradients"]) if said is None else said


def require_removable(kit: Kit) -> None:
    """Refuse to compare with runs without the plugin where there are none."""
    why = kit.facts["needed"]
    if why:
        raise Unjudged(f"the recipe does not do without the plugin, so there is nothing to compare with: {why}")


def check_observes(kit: Kit) -> None:
    """Losses, weights and random numbers are the same with the plugin and without."""
    if changes_gradients(kit):
        raise Unjudged("the plugin declares that it changes gradients")
    require_removable(kit)
    used = kit.spec.raw("beside") == kit.spec.raw("with")  # then check_resume makes the same run
    beside, without = kit.runs(
        Training("straight", "with") if used else Training("beside", "beside"), Training("without", "without")
    )
    one = kit.need_all(without, "a run without the plugin")[0]
    two = kit.need_all(beside, "a run beside the plugin")[0]
    from hooktrain.compare import differences

    for what in ("rows of each step", "logged numbers", "weights", "optimizer's tensors", "random states"):
        first, second = one[what], two[what]
        if what == "logged numbers":  # what it adds to a line is its own
            known = {step: line.keys() - set(kit.options.ignore) for step, line in first.items()}
            first, second = (
                {
                    step: {name: value for name, value in line.items() if name in known.get(step, line)}
                    for step, line in lines.items()
                }
                for lines in (first, second)
            )
        found = list(differences(first, second, names=("the run without it", "the run with it")))
        if found:
            rest = f", and {len(found) - 1} more" if len(found) > 1 else ""
            parts = ", ".join(kit.spec.selected)
            note = f" ({parts} of the settings left out)" if parts else ""
            raise Broken(
                f"the same recipe without the plugin, and with it{note}, differ. {what}: {found[0]}{rest}",
                "a plugin that does not say that it changes gradients leaves losses, weights and random numbers alone,"
                " bit by bit, so that nobody has to wonder what an observer did to a run",
                "find what it draws, writes to or reorders; random numbers of its own come from a torch.Generator or"
                " random.Random of its own; if it is meant to change the training, declare changes_gradients=True in"
                " its hooktrain.PluginInfo, or give conformance(changes_gradients=True); a metric that it is meant to"
                " change is named in ignore=[...]",
            )
    kit.notes["observes"] = f"{kit.options.steps} steps unchanged bit by bit"


def check_ranks(kit: Kit) -> None:
    """One rank and two that share the same global batch log the same losses, and all end."""
    one, two = _accumulations(kit)
    changes: dict[str, Any] = {"checkpoint": []}
    if kit.options.recipe == "tiny" and "model" not in kit.options.settings:
        changes["model.dropout"] = 0.0  # ranks draw different dropout
    if kit.options.recipe in ("tiny", "chat") and "optimizer" not in kit.options.settings:
        changes["optimizer"] = {"type": "sgd", "lr": 0.1}  # Adam makes much of the rounding of small gradients
    alone, ranks = kit.runs(
        Training("alone", "with", {**changes, "gradient_accumulation_steps": one}, ranks=1),
        Training("ranks", "with", {**changes, "gradient_accumulation_steps": two}, ranks=2),
    )
    (reference,) = kit.need_all(alone, "a run on one rank")
    for rank, result in enumerate(kit.need_all(ranks, "a run on two ranks")):
        apart = _apart(reference["logged numbers"], result["logged numbers"], kit.options.tolerance)
        if apart:
            raise Broken(
                f"one rank, and rank {rank} of two with the same global batch, log other numbers. {apart}",
                "a recipe trains alike on any number of ranks: losses are sums, divided once by the tokens of all",
                "look for a mean over a micro-batch, for what depends on the rank or on how many micro-batches there"
                " are, and for collectives that only some ranks call; a wider tolerance=... is for optimizers that"
                " make much of rounding",
            )
    kit.notes["ranks"] = f"one and two ranks within {kit.options.tolerance:g}"


def _accumulations(kit: Kit) -> tuple[int, int]:
    said = int(kit.spec.raw("with").get("gradient_accumulation_steps", 1))
    return 2 * said, said


def _apart(one: Mapping[str, Any], two: Mapping[str, Any], tolerance: float) -> str:
    """Where two sets of log lines are further apart than they may be, in the engine's numbers."""
    for step, line in one.items():
        for name, value in line.items():
            if name not in ("loss", "grad_norm", "tokens", "supervised_tokens", "lr") and not name.startswith("eval/"):
                continue
            other = two.get(step, {}).get(name)
            if other is None or abs(other - value) > tolerance * max(abs(value), 1e-12):
                return f"{step}, {name}: {value!r} and {other!r}, where {tolerance:g} of it is allowed"
    return ""
