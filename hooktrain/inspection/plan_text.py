"""A plan for people: the recipe with the origin of each value, who does what, what it needs, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from rich.console import Console
from rich.markup import escape

from hooktrain.inspection.hooks import who
from hooktrain.inspection.terminal import STATES, bytes_of, columns, console, count_of, show
from hooktrain.recipe.libyaml import dump_line

__all__ = ["NOTHING_SAVED", "PHASES", "print_plan"]

_COLUMN = 40
"""Where origins begin, if the values before them leave room."""
_WIDTH = 80


def print_plan(facts: Mapping[str, Any], everything: bool = False) -> None:
    """Print a plan.

    Args:
        facts: what :func:`hooktrain.inspection.plan.plan_of` returned.
        everything: whether to show every default, and who implements each hook.
    """
    for print_phase in PHASES:
        print_phase(facts, everything)


def _print_resolved(facts: Mapping[str, Any], everything: bool) -> None:
    to = console()
    to.print("[bold]recipe[/], and where each value comes from")
    _print_recipe(to, facts, everything)
    to.print("\n[bold]parts[/]")
    table = columns("", "", "", header=False)
    for kind, chosen in facts["parts"].items():
        for part in chosen:
            wrapped = f", wrapped by {', '.join(part['wrapped_by'])}" if part["wrapped_by"] else ""
            table.add_row(f"  {kind}", escape(part["type"]), escape(f"from plugin {part['plugin']}{wrapped}"))
    show(to, table)
    if facts["loss_terms"]:
        to.print("\n[bold]loss terms[/]")
        table = columns("", "", "", header=False)
        for term in facts["loss_terms"]:
            factor = "" if term["coefficient"] is None else f"times {term['coefficient']:g}"
            whose = f"from plugin {term['plugin']}" if term["plugin"] else "from the loss"
            table.add_row(f"  {escape(term['name'] or 'known in the first step')}", factor, escape(whose))
        show(to, table)
    if facts["parts"] and not any(each.get("enabled", True) for each in facts["recipe"].get("checkpoint") or ()):
        to.print(f"  [yellow]checkpoint: {escape(NOTHING_SAVED)}[/]", soft_wrap=True)
    if facts["compatibility_lifted"]:
        to.print("  [yellow]skip_validation is on: parts are used that the trainer type does not list[/]")
    hooks = facts["hooks"] if everything else {hook: each for hook, each in facts["hooks"].items() if _replaced(each)}
    if hooks:
        which = "implementations in call order" if everything else "in which one plugin replaces another"
        to.print(f"\n[bold]hooks[/], {which}")
        table = columns("", "", header=False)
        for hook, found in hooks.items():
            table.add_row(f"  {hook}", escape(who(found)))
        show(to, table)
    to.print("\n[bold]plugins[/]")
    table = columns("", "", "", "", header=False)
    unused = [record["name"] for record in facts["plugins"] if record["state"] == "unused"]
    for record in facts["plugins"]:
        if record["state"] == "unused":
            continue
        whose = f"{record['distribution']} {record['version']}".strip()
        state = f"[{STATES[record['state']]}]{record['state']}[/]"
        table.add_row(f"  {escape(record['name'])}", escape(whose), state, escape(" ".join(record["why"].split())))
    show(to, table)
    if unused:
        to.print(escape(f"  not used by this recipe, as their active_when says: {', '.join(unused)}"), soft_wrap=True)


def _replaced(implementations: Sequence[Mapping[str, Any]]) -> bool:
    return any(each["role"] == "not called" for each in implementations)


def _print_complaints(facts: Mapping[str, Any], everything: bool = False) -> None:
    to = console()
    for title, key in (("[bold red]errors[/]", "complaints"), ("[bold]missing on this machine[/]", "lacking")):
        if facts.get(key):
            to.print(f"\n{title}")
        for each in facts.get(key, ()):
            where = f"{each['where']}: " if each["where"] else ""
            to.print(f"  - {escape(where + each['message'])}", soft_wrap=True)


def _print_sizes(facts: Mapping[str, Any], everything: bool) -> None:
    to = console()
    if "estimates" in facts:
        ranks = facts["world_size"]
        to.print(f"\n[bold]what it takes[/] on {ranks} rank{'s' * (ranks > 1)}, estimated")
        _print_estimates(to, facts["estimates"])
        _print_complaints(facts["estimates"])


NOTHING_SAVED = (
    "nothing will be saved; to keep the model add checkpoint: {type: huggingface, save_end_of_training: true}"
)
"""What a plan and a run say about a recipe without a checkpoint."""

PHASES = (_print_resolved, _print_complaints, _print_sizes)
"""What prints each phase of :func:`hooktrain.inspection.plan.phases_of`, given the facts and ``everything``."""


# ------------------------------------------------------------------------------------------------------ recipe


def _print_recipe(to: Console, facts: Mapping[str, Any], everything: bool) -> None:
    origins: Mapping[str, str] = facts["origins"]
    omitted: set[str] = set() if everything else {path for path, origin in origins.items() if _is_default(origin)}
    for key, value in facts["recipe"].items():
        lines = [*_lines(key, value, key, "", origins, omitted)]
        for text, path in lines:
            origin = origins.get(path, "")
            plain = _is_default(origin)
            said = "default" if plain else origin
            line = f"{escape(text):<{_COLUMN}}  [dim]# {escape(said)}[/]" if said else escape(text)
            to.print(f"[dim]{line}[/]" if plain else line, soft_wrap=True)
        if lines and isinstance(value, dict):
            _print_defaults(to, "  ", {name: each for name, each in value.items() if f"{key}.{name}" in omitted})
    _print_defaults(to, "", {key: value for key, value in facts["recipe"].items() if key in omitted})
    if omitted:
        to.print(f"[dim]# --all shows all {len(omitted)} defaults[/]", soft_wrap=True)


def _print_defaults(to: Console, indent: str, values: Mapping[str, Any]) -> None:
    """Print values that are defaults on a line of their own, as many as fit on a terminal of 80 columns."""
    texts = [f"{name}: {_scalar(value)}" for name, value in values.items()]
    while texts and len(line := f"{indent}# defaults: {', '.join(texts)}{_more(len(values) - len(texts))}") > _WIDTH:
        texts.pop()
    if texts:
        to.print(f"[dim]{escape(line)}[/]", soft_wrap=True)


def _more(count: int) -> str:
    return f", and {count} more" if count else ""


def _is_default(origin: str) -> bool:
    return origin.startswith("default")


def _lines(
    key: str, value: Any, path: str, indent: str, origins: Mapping[str, str], omitted: Set[str]
) -> Iterator[tuple[str, str]]:
    """A value as YAML, line by line, each with its path; without those of some paths, and sections of nothing else."""
    if path in origins or not isinstance(value, (dict, list)) or not value:
        if path not in omitted:
            yield f"{indent}{key}: {_scalar(value)}", path
    elif isinstance(value, dict):
        found = [
            each
            for name, inner in value.items()
            for each in _lines(name, inner, f"{path}.{name}", indent + "  ", origins, omitted)
        ]
        yield from [(f"{indent}{key}:", ""), *found] if found else []
    else:
        yield f"{indent}{key}:", ""
        for number, entry in enumerate(value):
            inside = f"{path}[{number}]"
            if isinstance(entry, dict):
                first = True
                for name, inner in entry.items():
                    for text, where in _lines(name, inner, f"{inside}.{name}", indent + "  ", origins, omitted):
                        yield (f"{indent}- {text[len(indent) + 2 :]}" if first else text), where
                        first = False
            else:
                yield f"{indent}- {_scalar(entry)}", inside


def _scalar(value: Any) -> str:
    """A value on one line, as YAML reads it."""
    return dump_line(value)


# --------------------------------------------------------------------------------------------------- estimates


def _print_estimates(to: Console, facts: Mapping[str, Any]) -> None:
    table = columns("", "", header=False)
    for title, text in (
        ("model", _model(facts["model"])),
        ("data", _data(facts["data"])),
        ("steps", _steps(facts["steps"])),
        ("memory", _memory(facts["memory"])),
    ):
        table.add_row(f"  {title}", escape(text))
    show(to, table)


def _model(facts: Mapping[str, Any]) -> str:
    if "unknown" in facts:
        return f"unknown: {facts['unknown']}"
    trained = facts["trainable"]
    share = (
        "all of them trained"
        if trained == facts["parameters"]
        else f"{trained:,} ({trained / facts['parameters']:.2%}) of them trained"
    )
    types = ", ".join(facts["dtypes"])
    text = f"{facts['class']}, {facts['parameters']:,} parameters ({count_of(facts['parameters'])}), {share}; {types}"
    known = "; ".join([text, *(f"{what} unknown: {why}" for what, why in facts["not_known"].items())])
    further = (_further_model(name, each) for name, each in facts["further_models"].items())
    return "\n".join([known, *further, *_groups(facts["optimizer_groups"])])


def _further_model(name: str, facts: Mapping[str, Any]) -> str:
    if facts["trainable"]:
        return f"{name}: {facts['class']}, trained with it and counted above; its activations are not counted"
    return f"{name}: {facts['class']}, {facts['parameters']:,} parameters, frozen; {', '.join(facts['dtypes'])}"


def _groups(groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines about the groups of an optimizer, where the recipe names some."""
    if not any(group["match"] for group in groups):
        return
    for group in groups:
        which = f"'{group['match']}'" if group["match"] else "all others"
        kind = f", {group['type']}" if group["type"] else ""
        decay = f", weight_decay {group['weight_decay']:g}" if group["weight_decay"] is not None else ""
        yield f"optimizer group {which}{kind}: {group['parameters']:,} parameters, lr {group['lr']:g}{decay}"


def _data(facts: Mapping[str, Any]) -> str:
    if "unknown" in facts:
        return f"unknown: {facts['unknown']}"
    said = [] if facts["sequences"] is None else [f"{facts['sequences']:,} sequences"]
    if facts["tokens"] is not None:
        share = f" ({facts['supervised'] / max(1, facts['tokens']):.0%} trained)" if facts["supervised"] else ""
        said.append(f"{facts['tokens']:,} tokens{share}")
    if facts["longest"] is not None:
        said.append(f"at most {facts['longest']:,} tokens in a row")
    return "; ".join([*([", ".join(said)] if said else []), *([facts["how"]] if facts["how"] else [])])


def _steps(facts: Mapping[str, Any]) -> str:
    total = "unknown before the data are prepared" if facts["total"] is None else f"{facts['total']:,}"
    epoch = f", {facts['per_epoch']:,} in an epoch" if "per_epoch" in facts else ""
    auto = "micro_batch_size" in facts
    size = "; micro_batch_size is measured at the start of the run, and the memory is that of 1" if auto else ""
    return f"{total}{epoch}, of {facts['rows_per_step']:,} rows each{size}"


def _memory(facts: Mapping[str, Any]) -> str:
    if "unknown" in facts:
        return f"unknown: {facts['unknown']}"
    lines = [f"about {bytes_of(facts['peak'])} on each device: {_listed(facts['device'])}"]
    if facts["host"]:
        lines.append(f"about {bytes_of(sum(facts['host'].values()))} on the host as well: {_listed(facts['host'])}")
    return "\n".join([*lines, *facts["notes"]])


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {bytes_of(size)}" for name, size in sizes.items() if size)
