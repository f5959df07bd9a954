"""Dependencies and conflicts that plugins declare, held against what is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hooktrain.errors import Complaint, PluginError
from hooktrain.plugin.records import PluginRecord
from hooktrain.plugin.usage import asks_for
from hooktrain.protocols import ConfigDefaults, member

if TYPE_CHECKING:
    from hooktrain.plugin.manager import PluginHost
    from hooktrain.recipe.model import Recipe

__all__ = ["drop_unmet", "logit_complaints", "output_complaints", "refuse_excluded", "refuse_same_terms"]


def drop_unmet(host: PluginHost) -> None:
    """Take out the plugins that require one which is not there, and then those that required these.

    Raises:
        PluginError: when the run names such a plugin.
    """
    while True:
        unmet = ((record, each) for record in _active(host) for each in record.info.requires if not _met(host, each))
        found = next(unmet, None)
        if found is None:
            return
        record, requirement = found
        host.drop(record, f"requires the plugin '{requirement}', {_why_not(host, requirement)}")


def refuse_excluded(host: PluginHost) -> None:
    """Refuse two plugins of which one declares that it does not work alongside the other.

    Raises:
        PluginError: naming both, and the line to write.
    """
    for record in _active(host):
        for each in record.info.excludes:
            for other in _active(host):
                if other is not record and _is(other, each):
                    raise PluginError(
                        f"{record} does not work alongside {other}, as it declares; remove one of them with"
                        f" plugins: {{block: [{record.name}]}} or {{block: [{other.name}]}}"
                    )


def _active(host: PluginHost) -> list[PluginRecord]:
    return [record for record in host.records.values() if record.state == "active"]


def _met(host: PluginHost, requirement: str) -> bool:
    return any(_is(record, requirement) for record in _active(host))


def _is(record: PluginRecord, requirement: str, *, any_version: bool = False) -> bool:
    """Whether a plugin is the one that is meant, by its own name or its distribution's."""
    wanted = Requirement(requirement)
    name = canonicalize_name(wanted.name)
    if name not in (canonicalize_name(record.name), canonicalize_name(record.distribution)):
        return False
    return any_version or not record.version or wanted.specifier.contains(record.version, prereleases=True)


def _why_not(host: PluginHost, requirement: str) -> str:
    for record in host.records.values():
        if _is(record, requirement, any_version=True):
            if record.state == "active":
                return f"of which {record.version} is installed; install a version that fits"
            return f"which is {record.state} ({record.reason}); activate it, or block this one as well"
    return "which is not installed; install it"


# ----------------------------------------------------------------------------------------------------- logits


def logit_complaints(host: PluginHost, recipe: Recipe) -> list[Complaint]:
    """Parts of a recipe under which no logits are made, although something in the run looks at them.

    A config says so of itself with ``needs_logits = True``, and with a text ``hides_logits`` that says what to write
    for logits to be made; both may be properties.
    """
    needing = list(_needing(host, recipe))
    return [
        Complaint(path, f"makes no logits, which {needing[0]} needs; {remedy}")
        for path, config in _configs(recipe)
        for remedy in [member(config, ConfigDefaults, "hides_logits")]
        if remedy and needing
    ]


def _configs(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    for path, value in {**recipe.parts(), **recipe.settings}.items():
        for config in value if isinstance(value, tuple) else (value,):
            yield path, config


def _needing(host: PluginHost, recipe: Recipe) -> Iterator[str]:
    for path, config in _configs(recipe):
        if member(config, ConfigDefaults, "needs_logits"):
            yield f"'{path}'"
    for record in _active(host):
        if record.info.needs_logits and asks_for(host, recipe, record):
            yield str(record)


# ------------------------------------------------------------------------------------------- terms of the loss


def refuse_same_terms(host: PluginHost) -> None:
    """Refuse two plugins that declare a term of the loss under one name.

    Raises:
        PluginError: naming both.
    """
    adding = {found.plugin_name for found in host.implementations("collect_loss_terms")}
    owners: dict[str, PluginRecord] = {}
    for record in _active(host):
        for name in record.info.loss_terms if record.name in adding else ():
            other = owners.setdefault(name, record)
            if other is not record:
                raise PluginError(
                    f"{other} and {record} both add a term '{name}' to the loss; block one of them with"
                    f" plugins: {{block: [{other.name}]}} or {{block: [{record.name}]}}, or rename the term"
                )


def output_complaints(host: PluginHost, recipe: Recipe) -> list[Complaint]:
    """Outputs of the model that plugins need for terms, and that the recipe's loss does not provide."""
    provided = member(recipe.loss, ConfigDefaults, "provides_outputs")
    adding = {found.plugin_name for found in host.implementations("collect_loss_terms")}
    return [
        Complaint(
            "loss",
            f"does not provide the model's {name}, which {record} needs for a term; it provides"
            f" {', '.join(provided) or 'none'}; choose another loss, or remove the plugin",
        )
        for record in _active(host)
        if record.name in adding and asks_for(host, recipe, record)
        for name in record.info.needs_outputs
        if name not in provided
    ]
