"""``python -m benchmarks``, from the repository's root: ``hooktrain bench`` with the project's own suites."""

from __future__ import annotations

import sys

from hooktrain.cli.main import main

if __name__ == "__main__":
    words = sys.argv[1:]
    sys.argv[1:] = ["bench", *([] if words[:1] == ["plugin"] else ["-p", "benchmarks.suites"]), *words]
    main()
