"""What a loss leaves of a model's forward pass for terms: its router's loss, and what plugins ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from torch import Tensor, nn

from hooktrain import LossTerm, ModelError
from hooktrain_sft.compat import model_output
from hooktrain_sft.loss.padded_documents import are_padded
from hooktrain_sft.loss.router_loss import RouterLoss

__all__ = ["Extras"]


@attrs.define
class Extras:
    """What a loss returns of a micro-batch besides its total and sums.

    Attributes:
        needed: names of outputs that plugins ask for.
        terms: terms of the loss, by name.
        outputs: the outputs, by name.
    """

    needed: tuple[str, ...] = ()
    terms: dict[str, LossTerm] = attrs.field(factory=dict)
    outputs: dict[str, Any] = attrs.field(factory=dict)

    def require_shape(self, model: nn.Module) -> None:
        """Raise a ModelError where the outputs of a model do not have the shape of the batch.

        Args:
            model: the innermost model.
        """
        if are_padded(model) and set(self.needed) - {"last_hidden_state"}:
            raise ModelError(
                f"loss: a plugin needs {', '.join(self.needed)}, and a {type(model).__name__} computes each document in"
                " a padded sequence of its own, where only last_hidden_state has the shape of the batch; ask for that,"
                " or set data.pack_samples: false"
            )

    def arguments(self, *, headed: bool) -> dict[str, bool]:
        """Return the arguments by which a transformers model, or with ``headed`` its decoder, returns the outputs."""
        layers = {} if headed else {"last_hidden_state": "hidden_states"}  # only a decoder's output has the last one
        names = {layers.get(name, name) for name in self.needed}
        return {f"output_{name}": True for name in sorted(names & {"hidden_states", "router_logits"})}

    def take(self, output: Any, last: Tensor | None = None) -> None:
        """Take the outputs of a model or decoder.

        Args:
            output: its output.
            last: the last hidden state, shape (sequences, tokens, hidden), where it is known; by default the last one
                of ``hidden_states``.

        Raises:
            ModelError: the model does not return one.
        """
        for name in self.needed:
            value = model_output(output, name)
            if name == "last_hidden_state":
                layers = model_output(output, "hidden_states")
                value = last if last is not None else layers[-1] if layers else value
            if value is None or (isinstance(value, (tuple, list, Mapping)) and not value):
                raise ModelError(
                    f"loss: a plugin needs the model's {name}, which a {type(output).__name__} does not have; expected"
                    " a transformers model that returns it; change the model, or remove the plugin"
                )
            self.outputs[name] = value

    def add_router(self, router: RouterLoss | None, output: Any, total: Tensor, denominator: float) -> None:
        """Add the router's loss; arguments are those of :meth:`RouterLoss.term`."""
        if router is not None:
            self.terms["router_loss"] = router.term(output, total, denominator)
