"""The losses of a recipe's steps, from the program that it was written for: ``peer_losses.py PROGRAM RECIPE``.

It runs in the program's own environment, and prints one line of JSON. The recipe goes through the program's own parser
and its own way to train.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def trl(recipe: str) -> list[float]:
    """What ``trl sft --config`` runs, with the loss of each step written down."""
    from trl import SFTTrainer  # type: ignore[attr-defined, unused-ignore]
    from trl.scripts.sft import main, make_parser

    losses: list[float] = []
    own = SFTTrainer.training_step

    def step(self: Any, *arguments: Any, **named: Any) -> Any:
        loss = own(self, *arguments, **named)
        losses.append(loss.item())
        return loss

    SFTTrainer.training_step = step
    main(*make_parser().parse_args_and_config(["--config", recipe]))
    return losses


def trl_dpo(recipe: str) -> list[float]:
    """What ``trl dpo --config`` runs, likewise."""
    from trl import DPOTrainer  # type: ignore[attr-defined, unused-ignore]
    from trl.scripts.dpo import main, make_parser

    losses: list[float] = []
    own = DPOTrainer.training_step

    def step(self: Any, *arguments: Any, **named: Any) -> Any:
        loss = own(self, *arguments, **named)
        losses.append(loss.item())
        return loss

    DPOTrainer.training_step = step
    main(*make_parser().parse_args_and_config(["--config", recipe]))
    return losses


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print to the standard output
    made = {"trl": trl, "trl_dpo": trl_dpo}[sys.argv[1]](sys.argv[2])
    print(json.dumps(made), file=channel, flush=True)
    channel.close()
    os._exit(0)  # process groups take seconds to end
