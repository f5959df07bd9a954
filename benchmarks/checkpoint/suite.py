"""The suite ``checkpoint``."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.checkpoint.driver import WAYS
from hooktrain.bench import Case, Context, Metric, Suite, Target, Variant

__all__ = ["SUITE"]


def cases(context: Context) -> Iterator[Case]:
    """Yield one case: every way of saving a model."""
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
        variants=[
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
            Target(variant="at once", at_most=1.1),
            Target(variant="in the background", to="DCP in the background", at_most=1.0),
            Target(
                name="longer for a save in the background",
                variant="in the background",
                to="no saves",
                metric="run_seconds",
                kind="difference",
                per=saves,
                at_most=2.0,
            ),
            Target(variant="at once", metric="on_disk", at_most=1.01),
        ),
        rounds=3,
        recipe={"type": "tiny", "checkpoint": [{"type": "full", "save_every_n_steps": every, "keep_last": 1}]},
    )


SUITE = Suite(
    name="checkpoint",
    summary="time for which a save stalls training, compared with torch.save and DCP (15 minutes)",
    cases=cases,
    options={"millions": "millions of weights", "folder": "folder on the disk that is measured"},
)
