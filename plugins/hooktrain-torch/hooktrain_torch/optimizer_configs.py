"""Config classes of the optimizers of ``torch.optim``; imported without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from hooktrain import at_least, between, field, one_of
from hooktrain_torch.parameter_groups import GroupConfig, require_betas

__all__ = ["TYPES", "AdamConfig", "AdamWConfig", "AnyConfig", "Grouped", "MuonConfig", "SGDConfig"]


class Grouped:
    """What the config classes here have in common."""

    @property
    def needs_matrices(self) -> bool:
        """Whether some weights are updated as matrices."""
        names = [self.name if isinstance(self, AnyConfig) else type(self).__name__.removesuffix("Config")]
        for group in self.groups:  # type: ignore[attr-defined]
            names += [group.type or "", group.name or ""]
        return any(name.rpartition(".")[2].lower() == "muon" for name in names)


@attrs.frozen(kw_only=True)
class AdamWConfig(Grouped):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

    lr: float = field(default=2e-5, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate."""
    weight_decay: float = field(default=0.1, validator=at_least(0))
    """Decay of matrices; biases, norms and other vectors are not decayed."""
    betas: tuple[float, float] = field(default=(0.9, 0.999), validator=require_betas)
    """Decay rates of the running means of gradient and squared gradient."""
    eps: float = field(default=1e-8, validator=at_least(0))
    """Added to the denominator."""
    decay_vectors: bool = field(default=False)
    """Whether to decay biases, norms and other vectors as well."""
    fused: bool | None = field(default=None)
    """Whether one kernel updates all parameters; where it can when omitted."""
    groups: tuple[GroupConfig, ...] = field(factory=tuple)
    """Parameters with hyperparameters, or an optimizer, of their own."""


@attrs.frozen(kw_only=True)
class AdamConfig(AdamWConfig):
    """Adam with weight decay added to the gradient (Kingma & Ba, 2015)."""

    weight_decay: float = field(default=0.0, validator=at_least(0))
    """Decay of matrices; biases, norms and other vectors are not decayed."""


@attrs.frozen(kw_only=True)
class SGDConfig(Grouped):
    """Stochastic gradient descent."""

    lr: float = field(default=1e-2, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate."""
    momentum: float = field(default=0.0, validator=at_least(0))
    """Share of the last update that is kept."""
    weight_decay: float = field(default=0.0, validator=at_least(0))
    """Decay of matrices; biases, norms and other vectors are not decayed."""
    decay_vectors: bool = field(default=False)
    """Whether to decay biases, norms and other vectors as well."""
    fused: bool = field(default=False)
    """Whether one kernel updates all parameters."""
    groups: tuple[GroupConfig, ...] = field(factory=tuple)
    """Parameters with hyperparameters, or an optimizer, of their own."""


@attrs.frozen(kw_only=True)
class MuonConfig(Grouped):
    """Momentum whose updates are orthogonalized (Jordan et al., 2024), for matrices only.

    Vectors, and usually embeddings and the head, are for groups of another type.
    """

    lr: float = field(default=2e-2, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate."""
    weight_decay: float = field(default=0.1, validator=at_least(0))
    """Decay, separate from the gradient."""
    momentum: float = field(default=0.95, validator=between(0, 1))
    """Share of the running mean of the gradient that is kept."""
    nesterov: bool = field(default=True)
    """Whether the update looks one step ahead."""
    adjust_lr: str = field(default="original", validator=one_of("original", "match_rms_adamw"))
    """How the rate depends on a matrix's shape; with ``match_rms_adamw`` rates and decay of AdamW fit."""
    groups: tuple[GroupConfig, ...] = field(factory=tuple)
    """Parameters with hyperparameters, or an optimizer, of their own."""


@attrs.frozen(kw_only=True)
class AnyConfig(Grouped):
    """Any optimizer class, by its name in ``torch.optim`` or its dotted path."""

    name: str = field()
    """Such as ``Adafactor``, or ``package.module.Class``."""
    lr: float = field(default=1e-3, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate."""
    arguments: Mapping[str, Any] = field(factory=dict)
    """Further keyword arguments of the class."""
    groups: tuple[GroupConfig, ...] = field(factory=tuple)
    """Parameters with hyperparameters, or an optimizer, of their own."""


TYPES: Mapping[str, type] = {
    "adamw": AdamWConfig,
    "adam": AdamConfig,
    "sgd": SGDConfig,
    "muon": MuonConfig,
    "torch": AnyConfig,
}
"""Config classes of this module, by the name under which a recipe selects them."""
