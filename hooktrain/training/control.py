"""Requests to the loop from hooks and signals, which all ranks act on after the same step."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from hooktrain.errors import PluginError, did_you_mean
from hooktrain.plugin.manager import PluginHost
from hooktrain.protocols import Strategy

__all__ = ["NOTHING", "Agreed", "Requests", "require_disableable"]


class Agreed(NamedTuple):
    """Requests of at least one rank since the last step.

    Attributes:
        stop: end the run.
        save: save with every checkpoint engine.
        evaluate: evaluate.
        log: write a log line.
        end_epoch: leave out the rest of the epoch.
        urgent: somebody outside waits for the end, so nothing is begun that takes long.
        collect: a rank has ended its part of a save in the background.
        reason: why the run is to end, of the first rank that asked for it.
        disable: plugins whose hooks are to be disabled.
        status: the exit status with which the run is to end.
    """

    stop: bool = False
    save: bool = False
    evaluate: bool = False
    log: bool = False
    end_epoch: bool = False
    urgent: bool = False
    collect: bool = False
    reason: str = ""
    disable: tuple[str, ...] = ()
    status: int = 0

    def __or__(self, other: Agreed) -> Agreed:
        """Both."""
        return Agreed(
            self.stop or other.stop,
            self.save or other.save,
            self.evaluate or other.evaluate,
            self.log or other.log,
            self.end_epoch or other.end_epoch,
            self.urgent or other.urgent,
            self.collect or other.collect,
            self.reason or other.reason,
            tuple(dict.fromkeys((*self.disable, *other.disable))),
            self.status if self.reason else other.status,
        )


NOTHING = Agreed()


class Requests:
    """Requests of this rank, until all ranks have agreed on them. Signal handlers may add to them at any moment."""

    def __init__(self) -> None:
        self._waiting: deque[Agreed] = deque()  # of which a handler can interrupt nothing but whole operations

    def ask(self, request: Agreed) -> None:
        """Add a request."""
        self._waiting.append(request)

    def forget(self) -> None:
        """Drop what nobody has agreed on yet: the run is over, and an evaluation after it is none of those meant."""
        self._waiting.clear()

    def save_ended(self) -> None:
        """This rank has written its part of a save in the background, or has failed to; may be called in any thread."""
        self.ask(Agreed(collect=True))

    def agree(self, strategy: Strategy) -> Agreed:
        """Return the requests of all ranks and forget them. Collective, on the host."""
        found = NOTHING
        while self._waiting:
            found |= self._waiting.popleft()
        if strategy.world.world_size == 1:
            return found
        *flags, reason, disable, status = found
        counts = strategy.sum_numbers([*flags, len(disable)])
        stop, save, evaluate, log, end_epoch, urgent, collect, disables = (count > 0 for count in counts)
        if stop:
            asked = [tuple(each) for each in strategy.gather_objects([reason, status]) if each[0]]
            reason, status = asked[0] if asked else ("", 0)
        if disables:
            disable = tuple(dict.fromkeys(name for names in strategy.gather_objects(disable) for name in names))
        return Agreed(stop, save, evaluate, log, end_epoch, urgent, collect, reason, disable, status)

    def is_urgent(self, strategy: Strategy) -> bool:
        """Whether any rank has been asked to end soon. Collective, on the host."""
        mine = any(request.urgent for request in tuple(self._waiting))
        return mine if strategy.world.world_size == 1 else strategy.sum_numbers([mine])[0] > 0


def require_disableable(host: PluginHost, plugin: str) -> None:
    """Refuse to disable a plugin that is not there, or without which the run would train another way.

    Raises:
        PluginError: naming it.
    """
    record = host.records.get(plugin)
    if record is None:
        raise PluginError(
            f"trainer.request_disable: given '{plugin}', which is no plugin of this run"
            f"{did_you_mean(plugin, host.records)}; there are {', '.join(host.records)}"
        )
    if record.info.changes_gradients:
        raise PluginError(f"trainer.request_disable: {record} changes gradients, and cannot be disabled")
