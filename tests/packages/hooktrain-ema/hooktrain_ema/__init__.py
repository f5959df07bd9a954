"""An exponential moving average of the weights, for hooktrain."""

from hooktrain_ema.plugin import EMAPlugin, EMASettings

__all__ = ["EMAPlugin", "EMASettings"]
