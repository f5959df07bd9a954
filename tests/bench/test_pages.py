"""Pages and plots of results."""

from __future__ import annotations

import re

from hooktrain.bench import CPU_SECONDS, SECONDS, Case, Settings, Suite, run_suites
from hooktrain.bench.page import write_page
from hooktrain.bench.plots import draw
from tests.bench.napping import naps_of


def test_a_self_contained_page_and_plots(drawing_bench, tmp_path):
    assert "found/index.html" in drawing_bench("napping", "--out", "found").stderr
    page = (tmp_path / "found" / "index.html").read_text()
    assert "<svg" in page and "twice to once" in page and "worse" in page
    assert not re.search(r"<(script|link|img|iframe)|src=|@import|url\(http", page), "it loads nothing"
    assert (tmp_path / "found" / "napping.png").read_bytes().startswith(b"\x89PNG")


def test_a_suite_over_a_parameter_has_a_plot_for_each_metric(tmp_path):
    cases = [
        Case(
            name=str(n),
            parameters={"n": n},
            variants={"a": naps_of(n + 1), "b": naps_of(2)},
            metrics=[SECONDS, CPU_SECONDS],
        )
        for n in (0, 1, 100)
    ]
    lines = run_suites([Suite(name="s", summary="", cases=cases, over="n")], Settings(quick=True))
    write_page(lines, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "s.png", "s-2.png"}


def test_cases_without_the_parameter_have_a_plot_of_their_own(tmp_path):
    cases = [
        Case(name=str(n), parameters={"n": n} if n else {}, variants={"a": naps_of(n + 1), "b": naps_of(2)})
        for n in (0, 1, 2)
    ]
    lines = run_suites([Suite(name="s", summary="", cases=cases, over="n")], Settings(quick=True))
    over, ratios = draw(lines)
    assert [each.get_text() for each in ratios.axes[0].get_yticklabels()] == ["a to b, seconds ↓"]
    assert [each.get_text() for each in over.axes[0].get_xticklabels()] == ["1", "2"]


def test_without_matplotlib_there_are_results_and_advice(bench, tmp_path):
    shown = bench("napping", "--quick", "--out", "found")
    assert shown.exit_code == 0
    assert "pip install 'hooktrain[bench]'" in shown.stderr
    assert (tmp_path / "found" / "results.jsonl").exists()
