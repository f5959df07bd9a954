"""What hooks ask of the loop while it runs, and how all ranks come to do it after the same step."""

from __future__ import annotations

from typing import NamedTuple

from hooktrain.parts import Strategy

__all__ = ["NOTHING", "Agreed", "Requests"]


class Agreed(NamedTuple):
    """What at least one rank has asked for since the last step."""

    stop: bool = False
    save: bool = False
    evaluate: bool = False


NOTHING = Agreed()


class Requests:
    """Requests of this rank, until all ranks have heard of them.

    Attributes:
        reason: why this rank asked to stop.
    """

    def __init__(self) -> None:
        self.mine = NOTHING
        self.reason = ""

    def ask(self, **wants: bool) -> None:
        """Add a request: ``stop``, ``save`` or ``evaluate``."""
        self.mine = self.mine._replace(**wants)

    def agree(self, strategy: Strategy) -> Agreed:
        """What any rank has asked for; forgets it. Collective, on the host."""
        found = self.mine
        if strategy.world.world_size > 1:
            found = Agreed(*(number > 0 for number in strategy.sum_numbers(found)))
        self.mine = NOTHING
        return found
