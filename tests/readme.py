"""Generates parts of the README, the loop from a recorded run, and of the guides (``tests.guides``).

python -m tests.readme          # writes them
"""

from __future__ import annotations

import re
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hooktrain.cli.guide import GROUPS, GUIDES
from hooktrain.hookspecs import FACTORIES, LOOP_HOOKS
from hooktrain.testing import LoopHookRecorder, train

README = Path(__file__).parents[1] / "README.md"
GOLDEN = Path(__file__).parent / "golden" / "hooks.txt"


def record(tiny_recipe: Mapping[str, Any]) -> list[str]:
    """The run whose hooks are golden: two steps of two micro-batches, an evaluation and a checkpoint."""
    recorder = LoopHookRecorder()
    recipe = {
        **tiny_recipe,
        "data": {"rows": 8, "eval_rows": 2},
        "gradient_accumulation_steps": 2,
        "eval_interval": 2,
        "checkpoint": {"type": "full", "save_end_of_training": True},
    }
    train(recipe, recorder)
    return recorder.hooks


def loop(recorded: list[str]) -> str:
    """A recorded run as an outline: indented hooks run inside the one above them; steps and micro-batches are folded."""
    lines: list[tuple[int, str]] = []
    depth = 0
    for name in recorded:
        if name.startswith("/"):
            depth -= 1
        elif name != "on_message":  # plugins emit it at any time
            lines.append((depth, name))
            depth += name in LOOP_HOOKS or name in FACTORIES
    return "```text\n" + "\n".join(_joined(_fold(_one_step(lines)))) + "\n```"


def _one_step(lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Keep one step of an epoch: the last, with what the others have not marked as optional."""
    names = [name for _, name in lines]
    first, end = names.index("count_batch"), names.index("on_epoch_end")
    starts = [
        at
        for at in range(first, end)
        if names[at] == "count_batch" != names[at - 1] and lines[at][0] == lines[first][0]
    ]
    *others, last = [lines[at:to] for at, to in zip(starts, [*starts[1:], end], strict=True)]
    least = last[0][0]
    always = {name for name in last if all(name in other for other in others)}
    marked = [
        (level + 1, name if (level, name) in always or level > least else f"{name} (if due)") for level, name in last
    ]
    return [*lines[:first], (least, "for each step:"), *marked, *lines[end:]]


def _joined(lines: list[tuple[int, str]]) -> Iterator[str]:
    """Lines of text, on which hooks that follow one another and contain none share a line."""
    row: list[str] = []
    for at, (level, name) in enumerate(lines):
        following = lines[at + 1][0] if at + 1 < len(lines) else -1
        if row and row[-1] in FACTORIES and name not in (*FACTORIES, *LOOP_HOOKS):
            yield from _wrapped(row, "  " * level)
            row = []
        row.append(name)
        indent = "  " * level
        if following > level or (len(row) == 1 and name.endswith(":")):
            *before, own = row
            yield from _wrapped(before, indent)
            yield f"{indent}{own}"
            row = []
        elif following < level:
            yield from _wrapped(row, indent)
            row = []


def _wrapped(names: list[str], indent: str) -> list[str]:
    return textwrap.wrap(", ".join(names), 100, initial_indent=indent, subsequent_indent=indent)


def _fold(lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Runs of equal neighbouring blocks become one, marked ``x N``."""
    for size in range(len(lines) // 2, 0, -1):
        for at in range(len(lines) - 2 * size + 1):
            block = lines[at : at + size]
            times = 1
            while lines[at + times * size : at + (times + 1) * size] == block:
                times += 1
            least = min(level for level, _ in block)
            if times > 1 and block[0][0] == least:
                folded = _fold(block)
                word = "micro-batch" if any("microbatch" in n or n == "count_batch" for _, n in block) else "step"
                word = "step" if any(n == "on_step_start" for _, n in block) else word
                marked = [(least, f"for each {word}:"), *((level + 1, name) for level, name in folded)]
                return _fold(lines[:at]) + marked + _fold(lines[at + times * size :])
    return lines


OTHERS = "coming-from-"
"""Beginning of the names of guides for people who come from another program."""


def guides_index() -> str:
    """The guides of each group, with a link to their index."""
    parts = []
    for title, names in GROUPS.values():
        link = f"[{title}](hooktrain/guides/README.md#{title.lower().replace(' ', '-')})"
        others = [name.removeprefix(OTHERS) for name in names if name.startswith(OTHERS)]
        short = [f"`{name}`" for name in names if name in GUIDES and not name.startswith(OTHERS)]
        short += [f"`{OTHERS}{'`, `-'.join(others)}`"] if others else []
        text = f"- {link}: {', '.join(short)}"
        parts.append(textwrap.fill(text, 120, subsequent_indent="  ", break_on_hyphens=False))
    return "\n".join(parts)


def rendered(text: str, recorded: list[str]) -> str:
    """The README with its generated parts made anew."""
    for mark, made in (("loop", loop(recorded)), ("guides", guides_index())):
        pattern = rf"(<!-- {mark}: [^>]*-->\n).*?(\n<!-- /{mark} -->)"
        text, times = re.subn(pattern, lambda found, made=made: found[1] + made + found[2], text, flags=re.DOTALL)
        assert times == 1, mark
    return text


def main() -> None:
    from tests import guides

    with tempfile.TemporaryDirectory() as folder:
        recipe = {
            "type": "tiny",
            "run_dir": folder,
            "micro_batch_size": 2,
            "strategy": {"dtype": "fp32", "device": "cpu"},
        }
        recipe["console"] = {"enabled": False}
        recorded = record(recipe)
        for path, text in guides.rendered(recipe, Path(folder)).items():
            path.write_text(text, encoding="utf-8")
    GOLDEN.write_text("\n".join(recorded) + "\n", encoding="utf-8")
    README.write_text(rendered(README.read_text(encoding="utf-8"), recorded), encoding="utf-8")


if __name__ == "__main__":
    main()
