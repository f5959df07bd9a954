"""The suite ``checkpoint``."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.checkpoint.driver import WAYS
from hooktrain.bench import Case, Context, Metric, Suite, Target, Variant

__all__ = ["SUITE"]


def cases(context: Context) -> Iterator[Case]:
    """One size of model; every way of saving it."""
    millions = context.whole_number("millions", 1 if context.quick else 33)
    steps, every = (4, 2) if context.quick else (24, 8)
    folder = context.options.get("folder", str(context.folder))
    length = 16 if context.quick else 128
    common = {"millions": millions, "steps": steps, "every": every, "length": length, "folder": folder}
    saves = steps // every
    yield Case(
        name="stall",
        about=f"an embedding and a head with AdamW, float32; {saves} saves in {steps} steps",
        parameters={"millions": millions},
        sides=[
            Variant(way, driver="benchmarks.checkpoint.driver", specification={**common, "way": way}) for way in WAYS
        ],
        baseline="torch.save",
        metrics=(
            Metric("stall_seconds", "s"),
            Metric("save_seconds", "s"),
            Metric("run_seconds", "s"),
            Metric("on_disk", "MiB", exact=True),
            Metric("peak_mib", "MiB"),
        ),
        targets=(
            Target(side="at once", at_most=1.1),
            Target(side="in the background", to="DCP in the background", at_most=1.0),
            Target(
                name="longer for a save in the background",
                side="in the background",
                to="no saves",
                metric="run_seconds",
                kind="difference",
                per=saves,
                at_most=2.0,
            ),
            Target(side="at once", metric="on_disk", at_most=1.01),
        ),
        rounds=3,
        recipe={"type": "tiny", "checkpoint": [{"type": "full", "save_every_n_steps": every, "keep_last": 1}]},
    )


SUITE = Suite(
    name="checkpoint",
    summary="how long a save holds up the training, beside torch.save and torch.distributed.checkpoint (15 minutes)",
    cases=cases,
    options={"millions": "of weights", "folder": "on the disk that is measured"},
)
