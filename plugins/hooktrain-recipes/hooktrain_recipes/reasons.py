"""Why a key cannot be translated: a closed list, with what to do about each."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from hooktrain import Collector
from hooktrain_recipes.tables import Row, by, unsupported

__all__ = [
    "ACCOUNT_SOURCE",
    "ACTIVATION_OFFLOAD",
    "COMPILE",
    "CONTRADICTION",
    "DISTILLATION",
    "DROP_LAST",
    "EARLY_STOPPING",
    "EPOCH_FRACTION",
    "FITTING_BATCH",
    "FP8",
    "GROUPS",
    "IMAGES",
    "LIMITS",
    "MODEL_PARALLEL",
    "NVME",
    "OWN_CHECKPOINT",
    "OWN_CODE",
    "PREFERENCES",
    "QAT",
    "QUANTIZED_BASE",
    "ROLLOUTS",
    "SCHEDULE",
    "SMALL_STATES",
    "TRACKER",
    "Reason",
    "belongs",
    "method",
    "refused",
]


@attrs.frozen
class Reason:
    """A reason and its remedy."""

    reason: str
    remedy: str

    def row(self, key: str, *, off: tuple[object, ...] = (None, False)) -> Row:
        """The row of a key that is refused for this reason, unless its value is one of ``off``."""
        return unsupported(key, self.reason, self.remedy, off=off)

    def refuse(self, found: Collector, key: str, what: str = "") -> None:
        """Refuse a key for this reason; ``what`` names the value where the key does not."""
        found.unsupported(key, f"{self.reason}: {what}" if what else self.reason, self.remedy)


PREFERENCES = Reason("preferences or reward models", "fine-tune on the chosen answers with type: sft, or stay there")
DISTILLATION = Reason("distillation", "train on the teacher's answers as data")
QUANTIZED_BASE = Reason(
    "quantized base", "keep the base complete on each rank under an adapter, as model.quantization needs it"
)
SMALL_STATES = Reason(
    "optimizer with small states",
    "write adamw, or with complete weights on each rank adamw_8bit, adamw_4bit, lion_8bit",
)
ACTIVATION_OFFLOAD = Reason(
    "activation offload or tiled MLP", "remove it; model.activation_checkpointing: true saves most of the memory"
)
COMPILE = Reason("compile", "remove it; the run computes the same without")
MODEL_PARALLEL = Reason(
    "expert, tensor or pipeline parallel",
    "shard over ranks with strategy: {type: deepspeed, zero_stage: 3} or data_parallel: fsdp2",
)
QAT = Reason("QAT", "remove it, and quantize the trained model with other tools")
FP8 = Reason("FP8 training", "remove it; dtype: bf16 is the least precision")
IMAGES = Reason("images or audio", "remove them; vision-language models are trained on text alone")
ROLLOUTS = Reason("rollouts", "generate the answers first and train on them with type: sft")
OWN_CODE = Reason("code of its own", "write what it does as a hooktrain plugin (`hooktrain guide first-plugin`)")
ACCOUNT_SOURCE = Reason("a source that needs an account", "export the rows to a file and give its path")
EPOCH_FRACTION = Reason("evaluations by several epochs", "give a number of steps")
LIMITS = Reason("limits", "remove it; `hooktrain train --overfit 1` and limit_train_batches limit what is trained on")
EARLY_STOPPING = Reason("early stopping by another metric", "name one in early_stopping or save_best in the new recipe")
SCHEDULE = Reason("schedules", "write another type of scheduler, or type: torch with any class of torch's")
GROUPS = Reason("groups", "write optimizer.groups or model.freeze with the names of the weights")
TRACKER = Reason("trackers", "name one of trackers in the new recipe, or read metrics.jsonl")
NVME = Reason("offloading to NVMe", "offload to the host's memory: device: cpu")
OWN_CHECKPOINT = Reason(
    "a checkpoint of another program", "start from its model: export it, and give model.name_or_path its folder"
)
CONTRADICTION = Reason("contradicts another key", "keep one of them")


DROP_LAST = "the last batch is trained too, and tokens count alike, so that a short one weighs less"
FITTING_BATCH = "`hooktrain plan` estimates the memory of a batch"


def method(name: str) -> Reason:
    """A training method that hooktrain does not have."""
    return Reason(f"training method: {name}", "remove it, and train with type: sft or an adapter of peft")


def refused(reason: Reason, *keys: str) -> Iterator[Row]:
    """Rows of keys that are refused for a reason, unless they ask for nothing."""

    def rule(found: Collector, path: str) -> None:
        value = found.values[path]
        if value is None or value is False or value in (0, "", [], {}):
            found.ignored(path, "not used: this value asks for nothing")
        else:
            reason.refuse(found, path)

    for key in keys:
        yield by(key, rule, about=reason.reason, kind="unsupported")


def belongs(reason: Reason, to: str, *keys: str) -> Iterator[Row]:
    """Rows of keys that belong to a method; without it they ask for nothing."""

    def rule(found: Collector, path: str) -> None:
        if found.get(to):
            reason.refuse(found, path)
        else:
            found.ignored(path, f"used with {to} alone")

    for key in keys:
        yield by(key, rule, about=reason.reason, kind="unsupported")
