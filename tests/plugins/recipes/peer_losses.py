"""The losses of a recipe's steps, from the program that it was written for: ``peer_losses.py PROGRAM RECIPE``.

It runs in the program's own environment, and prints one line of JSON. The recipe goes through the program's own parser
and its own way to train.
"""

from __future__ import annotations

import json
import os
import socket
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


def arctic(recipe: str) -> list[float]:
    """What ``arctic_training RECIPE`` runs with one rank.

    DeepSpeed would compile its Adam and its communication for a processor, which takes minutes and gives the numbers of
    torch's.
    """
    from pathlib import Path

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update(rank, DS_ACCELERATOR="cpu")
    import deepspeed
    import torch

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    from arctic_training.config.trainer import get_config
    from arctic_training.optimizer import adam_factory
    from arctic_training.registry import get_registered_trainer

    adam_factory.FusedAdam = torch.optim.AdamW  # type: ignore[attr-defined, unused-ignore]
    config = get_config(Path(recipe))
    trainer = get_registered_trainer(config.type)(config, mode="train")
    losses: list[float] = []
    own = trainer.loss

    def loss(batch: Any) -> Any:
        made = own(batch)
        losses.append(made.item())
        return made

    trainer.loss = loss
    trainer.train()
    return losses


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print to the standard output
    made = {"trl": trl, "trl_dpo": trl_dpo, "arctic": arctic}[sys.argv[1]](sys.argv[2])
    print(json.dumps(made), file=channel, flush=True)
    channel.close()
    os._exit(0)  # process groups take seconds to end
