"""What hooks and signals ask of the loop while it runs, and how all ranks come to do it after the same step."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from hooktrain.parts import Strategy

__all__ = ["NOTHING", "Agreed", "Requests"]


class Agreed(NamedTuple):
    """What at least one rank has asked for since the last step.

    Attributes:
        stop: end the run.
        save: save with every checkpoint engine.
        evaluate: evaluate.
        urgent: somebody outside waits for the end, so nothing is begun that takes long.
        collect: a rank has ended its part of a save in the background.
        reason: why the run is to end, of the first rank that asked for it.
    """

    stop: bool = False
    save: bool = False
    evaluate: bool = False
    urgent: bool = False
    collect: bool = False
    reason: str = ""

    def __or__(self, other: Agreed) -> Agreed:
        """Both."""
        return Agreed(
            self.stop or other.stop,
            self.save or other.save,
            self.evaluate or other.evaluate,
            self.urgent or other.urgent,
            self.collect or other.collect,
            self.reason or other.reason,
        )


NOTHING = Agreed()


class Requests:
    """Requests of this rank, until all ranks have heard of them. Signal handlers may add to them at any moment."""

    def __init__(self) -> None:
        self._waiting: deque[Agreed] = deque()  # of which a handler can interrupt nothing but whole operations

    def ask(self, request: Agreed) -> None:
        """Add a request."""
        self._waiting.append(request)

    def save_ended(self) -> None:
        """This rank has written its part of a save in the background, or has failed to; may be called in any thread."""
        self.ask(Agreed(collect=True))

    def agree(self, strategy: Strategy) -> Agreed:
        """What any rank has asked for; forgets it. Collective, on the host."""
        found = NOTHING
        while self._waiting:
            found |= self._waiting.popleft()
        if strategy.world.world_size == 1:
            return found
        *flags, reason = found
        stop, save, evaluate, urgent, collect = (count > 0 for count in strategy.sum_numbers(flags))
        reason = next(filter(None, strategy.gather_objects(reason)), "") if stop else ""
        return Agreed(stop, save, evaluate, urgent, collect, reason)

    def is_urgent(self, strategy: Strategy) -> bool:
        """Whether any rank has been asked to end soon. Collective, on the host."""
        mine = any(request.urgent for request in tuple(self._waiting))
        return mine if strategy.world.world_size == 1 else strategy.sum_numbers([mine])[0] > 0
