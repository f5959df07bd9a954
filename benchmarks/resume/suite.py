"""The suite ``resume``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hooktrain.bench import Case, Context, Findings, Metric, Skip, Suite, Target, Variant

__all__ = ["SUITE"]

_DRIVER = "benchmarks.resume.driver"
_EARLY = 10


def cases(context: Context) -> Iterator[Case]:
    """Yield one case: a start, and resuming at row ten and at row ten million."""
    late = 100_000 if context.quick else 10_000_000
    rows = late + late // 10
    variants = [_variant("from the start", rows, None)]
    for row in (_EARLY, late):
        folder = context.folder / str(row)
        made = context.runner.run(
            Variant("save", driver=_DRIVER, specification=_given(rows, folder, save_at=row, resume_from=None))
        )
        if "error" in made:
            raise Skip(f"no checkpoint could be made at row {row}: {made['error']}")
        (checkpoint,) = folder.iterdir()
        variants.append(_variant(f"row {row:,}", rows, checkpoint))
    yield Case(
        name="first-step",
        about=f"from the start of the process to the end of its first step, in an epoch of {rows:,} shuffled rows",
        parameters={"rows": rows, "late": late},
        variants=variants,
        baseline=f"row {_EARLY}",
        metrics=(
            Metric("start_seconds", "s"),
            Metric("resume_seconds", "s"),
            Metric("peak_mib", "MiB"),
            Metric("rows_read", "rows", exact=True),
        ),
        targets=(
            Target(variant=f"row {late:,}", at_most=1.05, checks=((f"row {late:,}", f"row {_EARLY}", _no_replay),)),
            Target(variant=f"row {late:,}", metric="rows_read", at_most=1.0),
        ),
        recipe={"type": "tiny", "micro_batch_size": 2},
    )


def _no_replay(late: Findings, early: Findings, warmup: int) -> str:
    return "" if late["row"] > early["row"] else f"the late run was at row {late['row']}, the early one {early['row']}"


def _given(rows: int, folder: Path, *, save_at: int | None, resume_from: Path | None) -> dict[str, object]:
    checkpoint = str(resume_from) if resume_from else None
    return {"rows": rows, "folder": str(folder), "save_at": save_at, "resume_from": checkpoint}


def _variant(name: str, rows: int, checkpoint: Path | None) -> Variant:
    given = _given(rows, Path("unused"), save_at=None, resume_from=checkpoint)
    return Variant(name, driver=_DRIVER, specification=given)


SUITE = Suite(
    name="resume", summary="time to resume at row ten million, compared with row ten (5 minutes)", cases=cases
)
