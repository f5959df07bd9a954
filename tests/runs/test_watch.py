"""``hooktrain watch`` and ``hooktrain runs``: what they say of runs that go on, end, fail and are killed."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import yaml
from click.testing import CliRunner

from hooktrain import HooktrainError, hookimpl
from hooktrain.cli.runs import _step, runs
from hooktrain.cli.watch import watch
from hooktrain.runs.files import MetricsReader, recipe_differences
from hooktrain.runs.starting import mark_start
from hooktrain.runs.table import facts_of
from hooktrain.runs.watch import snapshots, sparkline, time_left
from tests.facts import facts


def shown(command, *words):
    return CliRunner().invoke(command, list(map(str, words)), catch_exceptions=False)


def test_a_run_is_followed_to_its_end(run_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("hooktrain.builtins.jsonl._WRITE_EVERY", 0.0)
    found = []

    class Looks:
        @hookimpl
        def on_step_end(self, trainer):
            if not found:
                Looks.following = snapshots(trainer.run_dir, lambda: None)
            found.append(next(Looks.following))

    run_tiny(Looks())
    found.extend(Looks.following)
    assert [each.facts["step"] for each in found] == [1, 2, 3, 4, 5, 6, 7, 7]
    assert [[line["step"] for line in each.new] for each in found] == [[], [1], [2], [3], [4], [5], [6], [7]]
    assert [each.is_over for each in found] == [False] * 7 + [True]
    assert time_left(found[3]) == 3 * found[3].last["step_seconds"]
    assert found[-1].outcome() == "ended at step 7 of 7" and not found[-1].has_failed
    assert len(found[-1].losses) == 7 and min(found[-1].losses) == found[-1].best["loss"][0]


def test_the_command_prints_every_line_and_how_it_ended(run_tiny, tmp_path):
    run_tiny()
    result = shown(watch, tmp_path / "run")
    lines = result.output.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == [f"{step}/7" for step in range(1, 8)]
    assert "eval/held_out/loss" in lines[-2] and lines[-1] == f"{tmp_path / 'run'}: ended at step 7 of 7"
    assert result.exit_code == 0


def test_only_the_last_of_the_lines_that_are_there_are_printed(run_tiny, tmp_path):
    run_tiny(epochs=2)
    first, *lines = shown(watch, tmp_path / "run").output.splitlines()
    assert first == "4 earlier lines are in metrics.jsonl"
    assert [line.split()[1] for line in lines[:-1]] == [f"{step}/14" for step in range(5, 15)]


def test_a_run_that_fails_is_a_status_of_1(run_tiny, tmp_path):
    class Raises:
        @hookimpl
        def on_step_end(self, trainer):
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError):
        run_tiny(Raises())
    result = shown(watch, tmp_path / "run")
    assert result.exit_code == 1
    assert all(text in result.output for text in ("failed at step 1 of 7", "on_step_end", "enough"))


def test_a_run_whose_process_is_gone(run_tiny, tmp_path):
    """The record says that it runs, and nobody holds the folder."""
    run_tiny()
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "running", "step": 4, "hook": "run_step"}))
    result = shown(watch, tmp_path / "run")
    assert result.exit_code == 1 and "ended without finishing at step 4 of 7" in result.output
    assert "killed" in result.output


DAMAGES = {
    "recipe.yaml": ["[" * 100_000, "a: &a [*a]", "a: &a [x]\nb: *a", "jsonl: {file: /dev/zero}", os.mkfifo, os.mkdir],
    "metrics.jsonl": [
        '{"step": 1, "loss": 1' + "0" * 400 + "}\n",
        '{"step": 1' + "0" * 400 + "}\n",
        os.mkfifo,
        os.mkdir,
    ],
    "run.json": ['{"id": "x", "step": 1' + "0" * 400 + "}", os.mkfifo, os.mkdir],
}


def test_files_that_no_run_writes_are_no_obstacle(run_tiny, tmp_path):
    """Reading a recipe of so many levels with libyaml ends the process."""
    run = run_tiny(train_iters=1).run_dir
    for name, damages in DAMAGES.items():
        whole = (run / name).read_bytes()
        for damage in damages:
            (run / name).unlink()
            if isinstance(damage, str):
                (run / name).write_text(damage)
            else:
                damage(run / name)
            for command, words in ((runs, [run]), (runs, [run, "--json"]), (watch, [run])):
                result = CliRunner().invoke(command, list(map(str, words)))
                told = result.exception is None or isinstance(result.exception, (SystemExit, HooktrainError))
                assert told, (name, damage, result.exception)
            shutil.rmtree(run / name) if damage is os.mkdir else (run / name).unlink()
            (run / name).write_bytes(whole)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(HooktrainError, match=facts("watch", str(tmp_path), "run.json", "hooktrain runs")):
        shown(watch, tmp_path)


def test_in_a_terminal_it_fits_the_width(run_tiny, tmp_path, monkeypatch):
    run_tiny()
    monkeypatch.setattr("hooktrain.inspection.terminal.is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    lines = shown(watch, tmp_path / "run").output.splitlines()
    assert lines and all(len(line) <= 50 for line in lines[:-1]), lines
    assert any(line.startswith("step 7/7") for line in lines) and any("best" in line for line in lines)
    assert "━" * 50 in lines


def test_lines_are_read_once_and_a_new_file_from_its_beginning(tmp_path):
    path, reader = tmp_path / "metrics.jsonl", MetricsReader(tmp_path)
    assert reader.read() == []
    path.write_text('{"step": 1}\n{"step": 2')
    assert [line["step"] for line in reader.read()] == [1]
    with path.open("a") as file:
        file.write('}\nodd\n{"step": 3}\n')
    assert [line["step"] for line in reader.read()] == [2, 3]
    assert reader.read() == []
    (tmp_path / "new").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4}\n')
    os.replace(tmp_path / "new", path)
    assert [line["step"] for line in reader.read()] == [1, 2, 3, 4]


def test_a_table_shortens_reasons_and_says_what_a_run_is_starting_from(run_tiny, tmp_path):
    path = run_tiny().run_dir / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "state": "failed", "why": "x" * 500}))
    assert "x" * 77 + "...\n" in shown(runs, path.parent).output
    for name, words in (("", "starting"), ("/somewhere/step-00000022", "resuming step-00000022")):
        assert _step({**record, "state": "running", "steps": None, "resumed_from": name}) == words


def test_a_run_that_starts_again_is_not_over(run_tiny, tmp_path):
    """From the start of the process on, before anything is imported or loaded."""
    folder = run_tiny().run_dir
    following = snapshots(folder, lambda: None)
    with mark_start(folder):
        first = next(following)
        assert first.facts["state"] == "starting" and not first.is_over
        assert "starting" in shown(runs, folder).output
        record = json.loads((folder / ".starting.json").read_text())
        (folder / ".starting.json").write_text(json.dumps({**record, "process": 2**22 + 1}))
        assert facts_of(folder)["state"] == "ended", "the process is gone"
    assert next(following).is_over and not (folder / ".starting.json").exists()
    with mark_start(tmp_path / "new"):
        assert not (tmp_path / "new").exists()


def test_a_sparkline():
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline(range(800), 8) == "▁▂▃▄▅▆▇█"
    assert (sparkline([2, 2], 9), sparkline([], 9)) == ("▁▁", "")


def test_the_table_has_losses_and_what_recipes_differ_in(run_tiny, tmp_path):
    for name, seed in (("first", 1), ("second", 2)):
        run_tiny(run_dir=str(tmp_path / name), seed=seed, eval_interval=3)
    found = json.loads(shown(runs, tmp_path, "--json").output)
    assert [each["differs"] for each in found] == [{"seed": 1}, {"seed": 2}]
    first = [json.loads(line) for line in (tmp_path / "first" / "metrics.jsonl").read_text().splitlines()]
    assert found[0]["metrics"]["loss"] == first[-1]["loss"]
    lowest = min((line["eval/held_out/loss"], line["step"]) for line in first if "eval/held_out/loss" in line)
    assert tuple(found[0]["best"]["eval/held_out/loss"]) == lowest
    output = shown(runs, tmp_path).output
    assert f"held_out {lowest[0]:.4f} at {lowest[1]}" in output and "recipes differ in seed; --diff" in output
    assert "second\n  seed: 2\n" in shown(runs, tmp_path, "--diff").output
    assert "differ" not in shown(runs, tmp_path / "first").output


def test_many_differences_are_counted(run_tiny, tmp_path):
    for name in ("first", "second"):
        run_tiny(run_dir=str(tmp_path / name))
    recipe = yaml.safe_load((tmp_path / "first" / "recipe.yaml").read_text())
    (tmp_path / "first" / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **{f"key{n:02}": n for n in range(20)}}))
    output = shown(runs, tmp_path).output
    assert "key00, key01, key02, key03, key04, and 15 more; --diff" in output
    output = shown(runs, tmp_path, "--diff").output
    assert "  key19: 19\n" in output and "  key19: none\n" in output
    assert max(map(len, output.splitlines())) < 200
    assert recipe_differences([{"run_dir": "a", "checkpoint[0].output_dir": "b"}, {}]) == {}
