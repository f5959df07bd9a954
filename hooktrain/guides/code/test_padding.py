from __future__ import annotations

from hooktrain.bench import Settings, run_suites

import padding


def test_the_suite_works() -> None:
    suites = padding.register_benchmarks()
    (line,) = run_suites(suites, Settings(quick=True))
    assert not any("error" in each for each in line["variants"].values())
    (compared,) = line["comparisons"]
    assert compared["verdict"] == "undecided", "no error, but too few runs"
