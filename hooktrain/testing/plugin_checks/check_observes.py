"""Checks that a plugin that only observes changes nothing, and that two ranks train like one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hooktrain.testing.plugin_checks.kit import Broken, Kit, NotApplicable, Training

__all__ = ["changes_gradients", "check_observes", "check_ranks", "require_removable"]


def changes_gradients(kit: Kit) -> bool:
    """Return the option of the kit, or what the plugin declares."""
    option = kit.options.changes_gradients
    return bool(kit.facts["changes_gradients"]) if option is None else option


def require_removable(kit: Kit) -> None:
    """Skip the check where the recipe does not run without the plugin."""
    why = kit.facts["needed"]
    if why:
        raise NotApplicable(f"the recipe does not run without the plugin, so there is no run to compare with: {why}")


def check_observes(kit: Kit) -> None:
    """Check that losses, weights and random numbers are the same with the plugin and without."""
    _require_same_declaration(kit)
    if changes_gradients(kit):
        _require_change(kit)
        raise NotApplicable("the plugin declares that it changes gradients, and a run with it trains another way")
    require_removable(kit)
    used = kit.spec.raw("unselected") == kit.spec.raw("with")  # then check_resume makes the same run
    observed, without = kit.runs(
        Training("uninterrupted", "with") if used else Training("unselected", "unselected"),
        Training("without", "without"),
    )
    one = kit.need_all(without, "a run without the plugin")[0]
    two = kit.need_all(observed, "a run with the plugin")[0]
    from hooktrain.compare import differences

    for what in ("sequences of each step", "logged numbers", "weights", "optimizer's tensors", "random states"):
        first, second = one[what], two[what]
        if what == "logged numbers":  # metrics that the plugin adds to a line are its own
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
            note = f" (without {parts} of the settings)" if parts else ""
            raise Broken(
                f"the same recipe without the plugin, and with it{note}, differ. {what}: {found[0]}{rest}",
                "a plugin that does not declare changes_gradients leaves losses, weights and random numbers unchanged,"
                " bit by bit, so that it can be added to any run",
                "find where it draws random numbers, writes to tensors or reorders them; draw random numbers from a"
                " torch.Generator or random.Random of its own; if it is meant to change the training, declare"
                " changes_gradients=True in its hooktrain.PluginInfo; name"
                " a metric that it is meant to change in conformance(ignore=[...])",
            )
    kit.notes["observes"] = f"{kit.options.steps} steps unchanged bit by bit"


def _require_same_declaration(kit: Kit) -> None:
    """Refuse an argument of the kit that says something else than the plugin does, as runs believe the plugin."""
    option, declared = kit.options.changes_gradients, bool(kit.facts["changes_gradients"])
    if option is not None and option != declared:
        raise Broken(
            f"conformance(changes_gradients={option}), but the plugin declares changes_gradients={declared}",
            "runs go by what the plugin declares: its events are held to leave the training alone, or it may not be"
            " missing when a run resumes",
            f"declare changes_gradients={option} in its hooktrain.PluginInfo, or remove the argument",
        )


def _require_change(kit: Kit) -> None:
    """Refuse a plugin that declares that it changes gradients where a run with it is one without it, bit by bit."""
    require_removable(kit)
    with_it, without = kit.runs(Training("uninterrupted", "with"), Training("without", "without"))
    one = kit.need_all(without, "a run without the plugin")[0]
    two = kit.need_all(with_it, "a run with the plugin")[0]
    from hooktrain.compare import differences

    if not any([*differences(one[what], two[what])] for what in ("weights", "optimizer's tensors")):
        raise Broken(
            f"the plugin declares changes_gradients, and after {kit.options.steps} steps with it the weights are those"
            " of a run without it, bit by bit",
            "a plugin that declares changes_gradients ties every checkpoint to itself, and is not held to observe",
            "pass the settings that use it as conformance(settings=...), or remove changes_gradients from its"
            " hooktrain.PluginInfo",
        )


def check_ranks(kit: Kit) -> None:
    """Check that one rank and two with the same global batch log the same losses, and that all of them end."""
    one, two = _accumulations(kit)
    changes: dict[str, Any] = {"checkpoint": []}
    if kit.options.recipe == "tiny" and "model" not in kit.options.settings:
        changes["model.dropout"] = 0.0  # dropout differs from rank to rank
    if kit.options.recipe in ("tiny", "chat") and "optimizer" not in kit.options.settings:
        changes["optimizer"] = {"type": "sgd", "lr": 0.1}  # Adam amplifies the rounding of small gradients
    alone, ranks = kit.runs(
        Training("alone", "with", {**changes, "gradient_accumulation_steps": one}, ranks=1),
        Training("ranks", "with", {**changes, "gradient_accumulation_steps": two}, ranks=2),
    )
    (reference,) = kit.need_all(alone, "a run on one rank")
    for rank, result in enumerate(kit.need_all(ranks, "a run on two ranks")):
        difference = _difference(reference["logged numbers"], result["logged numbers"], kit.options.tolerance)
        if difference:
            raise Broken(
                f"one rank, and rank {rank} of two with the same global batch, log different numbers. {difference}",
                "a recipe trains alike on any number of ranks: losses are sums, divided by the tokens of all ranks",
                "look for a mean over a micro-batch, for code that depends on the rank or the number of micro-batches,"
                " and for collectives that only some ranks call; pass a larger conformance(tolerance=...) where the"
                " optimizer amplifies rounding",
            )
    kit.notes["ranks"] = f"one and two ranks within {kit.options.tolerance:g}"


def _accumulations(kit: Kit) -> tuple[int, int]:
    steps = int(kit.spec.raw("with").get("gradient_accumulation_steps", 1))
    return 2 * steps, steps


def _difference(one: Mapping[str, Any], two: Mapping[str, Any], tolerance: float) -> str:
    """Return where the engine's metrics of two runs differ by more than the tolerance; empty where they do not."""
    for step, line in one.items():
        for name, value in line.items():
            if name not in ("loss", "grad_norm", "tokens", "supervised_tokens", "lr") and not name.startswith("eval/"):
                continue
            other = two.get(step, {}).get(name)
            if other is None or abs(other - value) > tolerance * max(abs(value), 1e-12):
                return f"{step}, {name}: {value!r} and {other!r}, with a relative tolerance of {tolerance:g}"
    return ""
