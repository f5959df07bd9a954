"""``python -m benchmarks``, from the root: ``hooktrain bench`` with the project's own suites; and ``soak``."""

from __future__ import annotations

import sys

from hooktrain.cli.main import main

if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["soak"]:
        from benchmarks.soak import command

        command(words[1:], prog_name="python -m benchmarks soak")
    sys.argv[1:] = ["bench", *([] if words[:1] == ["plugin"] else ["-p", "benchmarks.suites"]), *words]
    main()
