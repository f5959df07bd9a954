"""Makes what code can make of the README, the loop from a recorded run, and of the guides (``tests.guides``).

python -m tests.readme          # writes them
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    """A recorded run as an outline: what stands further in happens inside the loop hook above it; repeats are folded."""
    lines: list[tuple[int, str]] = []
    depth = 0
    for name in recorded:
        if name.startswith("/"):
            depth -= 1
        else:
            lines.append((depth, name))
            depth += name in LOOP_HOOKS or name in FACTORIES
    return "```text\n" + "\n".join("  " * level + name for level, name in _fold(lines)) + "\n```"


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


def rendered(text: str, recorded: list[str]) -> str:
    """The README with its generated parts made anew."""
    for mark, made in (("loop", loop(recorded)),):
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
