"""Parts of recipes for runs with DeepSpeed."""

from __future__ import annotations

from typing import Any

__all__ = ["COMMON", "SAVE", "zero"]


def zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"type": "deepspeed", "zero_stage": stage, "dtype": "fp32", "device": "cpu", **more}


COMMON = {
    "epochs": 2,
    "eval_interval": 3,
    "gradient_clipping": 0.2,
    "optimizer": {"type": "adamw", "lr": 0.01},
    "scheduler": {"type": "cosine"},
}
SAVE = {"type": "full", "save_every_n_steps": 3, "save_end_of_training": True}
