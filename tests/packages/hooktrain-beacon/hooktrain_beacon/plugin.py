"""The plugin: the events that it reports, and a queue of lines for a server that is away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from hooktrain import Complaint, PluginInfo, at_least, field, hookimpl

from hooktrain_beacon import hookspecs
from hooktrain_beacon.client import BeaconError, Client

if TYPE_CHECKING:
    import pluggy
    from hooktrain import Recipe, Trainer

__all__ = ["BeaconPlugin", "BeaconSettings"]

_AT_MOST = 10_000
_REPORTING = ("on_train_start", "on_log", "on_train_end", "on_exception")


@attrs.frozen(kw_only=True)
class BeaconSettings:
    """The recipe key ``beacon``."""

    url: str = field(default="", affects_training=False)
    """Address of the server; without one nothing is sent."""
    run_name: str = field(default="", affects_training=False)
    """Name of the run on the server; by default the recipe's name."""
    timeout: float = field(default=5.0, validator=at_least(0.1), affects_training=False)
    """Seconds to wait for the server."""


class BeaconPlugin:
    """Reports a run to a server, from rank 0."""

    hooktrain_plugin = PluginInfo(api=">=2.0,<3", on_error="disable")

    def __init__(self) -> None:
        self.run_id = ""
        self.waiting: list[dict[str, Any]] = []

    @hookimpl
    def register_hookspecs(self, pluginmanager: pluggy.PluginManager) -> None:
        pluginmanager.add_hookspecs(hookspecs)

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"beacon": BeaconSettings}}

    @hookimpl
    def unused_hooks(self, recipe: Recipe) -> Iterable[str]:
        return () if recipe.settings["beacon"].url else _REPORTING

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> Iterator[Complaint]:
        url = recipe.settings["beacon"].url
        if url and not url.startswith(("http://", "https://")):
            yield Complaint("beacon.url", f"given '{url}', expected an address such as http://localhost:8080")

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        if trainer.world.is_main:
            self._register(trainer)

    @hookimpl
    def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        if not trainer.world.is_main:
            return
        self.waiting = [*self.waiting, dict(metrics)][-_AT_MOST:]  # until the server has taken it
        self._send(trainer)

    @hookimpl
    def on_train_end(self, trainer: Trainer) -> None:
        if trainer.world.is_main:
            self._send(trainer)
            self._client(trainer).post(f"/runs/{self.run_id}/end", {"state": "finished"})

    @hookimpl
    def on_exception(self, trainer: Trainer, exception: BaseException) -> None:
        if trainer.world.is_main and self.run_id:
            body = {"state": "failed", "why": f"{type(exception).__name__}: {exception}"}
            self._client(trainer).post(f"/runs/{self.run_id}/end", body)

    @hookimpl
    def collect_state(self) -> Mapping[str, Any] | None:
        return {"run_id": self.run_id, "waiting": self.waiting} if self.run_id else None

    @hookimpl
    def restore_state(self, state: Mapping[str, Any]) -> None:
        self.run_id, self.waiting = state["run_id"], list(state["waiting"])

    def _client(self, trainer: Trainer) -> Client:
        settings = trainer.recipe.settings["beacon"]
        return Client(settings.url, settings.timeout)

    def _register(self, trainer: Trainer) -> None:
        """Register the run on the server; a resumed run is registered already."""
        if self.run_id:
            return
        facts: dict[str, str] = {}
        for some in trainer.hooks.describe_run(trainer=trainer, run_dir=trainer.run_dir):
            facts |= some
        name = trainer.recipe.settings["beacon"].run_name or trainer.recipe.name
        answer = self._client(trainer).post("/runs", {"name": name, "facts": facts})
        if "id" not in answer:
            raise BeaconError(
                f"beacon.url: the address is not that of a Beacon server (it returned {answer}); correct it"
            )
        self.run_id = str(answer["id"])

    def _send(self, trainer: Trainer) -> None:
        self._register(trainer)
        if self.waiting:
            self._client(trainer).post(f"/runs/{self.run_id}/metrics", self.waiting)
            self.waiting = []
