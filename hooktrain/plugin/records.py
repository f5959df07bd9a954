"""Records of the plugins of a run and of the parts that they register."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from hooktrain.plugin.info import PluginInfo
from hooktrain.protocols import ConfigDefaults, member
from hooktrain.renamed import no_attribute

__all__ = ["RegisteredPart", "PluginRecord"]


@attrs.define(kw_only=True)
class PluginRecord:
    """The state of one plugin.

    Attributes:
        name: its entry-point or module name.
        distribution: what was pip-installed to bring it, or ``hooktrain`` for built-in plugins.
        version: version of the distribution.
        state: ``active``, ``unused`` by the recipe, ``blocked``, ``failed``, or ``disabled`` during the run.
        reason: why it is not active.
        clashes: whether it failed as it registers a name that another plugin has; a run stops then.
        summary: the distribution's one line about itself.
        author: the distribution's author.
        hooks: the hooks it implements.
        registers: the parts that it registers, as ``kind/name``.
        info: what it declares about itself.
    """

    name: str
    distribution: str
    version: str
    state: str = "active"
    reason: str = ""
    clashes: bool = False
    summary: str = ""
    author: str = ""
    hooks: list[str] = attrs.field(factory=list)
    registers: list[str] = attrs.field(factory=list)
    info: PluginInfo = PluginInfo()

    def as_dict(self) -> dict[str, Any]:
        """The record as plain values; of ``info.active_when``, whether there is one."""
        plain = attrs.asdict(self)
        plain["info"]["active_when"] = self.info.active_when is not None
        return plain

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise no_attribute("PluginRecord", name)

    def __str__(self) -> str:
        return f"plugin '{self.name}' ({self.distribution} {self.version})".replace(" )", ")")


@attrs.frozen
class RegisteredPart:
    """A named part: its config class and the plugin that registers it."""

    kind: str
    name: str
    config: type
    plugin: PluginRecord

    @property
    def listed(self) -> bool:
        """Whether listings, the schema and messages name it; not if a recipe file cannot hold one."""
        return bool(member(self.config, ConfigDefaults, "listed"))
