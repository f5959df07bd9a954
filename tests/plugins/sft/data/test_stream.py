"""Streams: every example once an epoch, in shares by weight, and a resume at the place of the run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hooktrain import CheckpointError, DataError, RecipeError, hookimpl
from hooktrain.testing import save_llama, train
from tests.facts import facts


def write(path: Path, rows: int, word: str = "row") -> str:
    """Write examples that hold their number."""
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"{word} {i}."},
                {"role": "assistant", "content": "yes " * (i % 4 + 1)},
            ]
        }
        for i in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


class Recorder:
    """The questions of every step, and its loss."""

    def __init__(self) -> None:
        self.questions: list[str] = []
        self.losses: list[float] = []

    @hookimpl
    def on_step_start(self, trainer: Any, batches: Any) -> None:
        text = "".join(trainer.tokenizer.decode(row) for batch in batches for row in batch["input_ids"])
        self.questions += [part.split("<|im_end|>")[0].strip() for part in text.split("user\n")[1:]]

    @hookimpl
    def on_log(self, metrics: Any) -> None:
        if "loss" in metrics:
            self.losses.append(metrics["loss"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Callable[..., Recorder]:
    def made(sources: list[Any], data: dict[str, Any] | None = None, **recipe: Any) -> Recorder:
        recorder = Recorder()
        given = {
            "type": "sft",
            "run_dir": str(tmp_path / "run"),
            "model": {"name_or_path": str(model), "dtype": "fp32"},
            "data": {"sources": sources, "max_length": 64, "stream_buffer": 7, **(data or {})},
            "micro_batch_size": 2,
            "train_iters": 5,
            "console": {"enabled": False},
            **recipe,
        }
        train({key: value for key, value in given.items() if value is not None}, recorder)
        return recorder

    return made


def streaming(path: str, **more: Any) -> dict[str, Any]:
    return {"name_or_path": path, "streaming": True, **more}


def test_every_example_once_an_epoch_in_another_order(run: Callable[..., Recorder], tmp_path: Path) -> None:
    source = streaming(write(tmp_path / "rows.jsonl", 20))
    recorder = run([source], train_iters=20)
    first, second = recorder.questions[:20], recorder.questions[20:]
    everything = sorted(f"row {i}." for i in range(20))
    assert sorted(first) == sorted(second) == everything
    assert first != second and first != [f"row {i}." for i in range(20)]
    assert sorted(first[:7]) == sorted(f"row {i}." for i in range(7)), "a block is shuffled, and no more than it"


def test_without_shuffling_examples_keep_their_order(run: Callable[..., Recorder], tmp_path: Path) -> None:
    source = streaming(write(tmp_path / "rows.jsonl", 20))
    assert run([source], {"shuffle": False}, train_iters=10).questions == [f"row {i}." for i in range(20)]


def test_the_last_step_of_an_epoch_is_short(run: Callable[..., Recorder], tmp_path: Path) -> None:
    source = streaming(write(tmp_path / "rows.jsonl", 9))
    recorder = run([source], train_iters=6)
    assert sorted(recorder.questions[:9]) == sorted(f"row {i}." for i in range(9))
    assert len(recorder.questions) == 9 + 2


@pytest.mark.parametrize(
    ("packed", "stop"),
    [
        (True, 4),
        (False, 1),
        *(pytest.param(*case, marks=pytest.mark.thorough) for case in [(True, 1), (True, 8), (False, 4), (False, 8)]),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    run: Callable[..., Recorder], tmp_path: Path, packed: bool, stop: int
) -> None:
    data = {"pack_samples": packed}
    sources = [streaming(write(tmp_path / "rows.jsonl", 30 if packed else 13))]
    checkpoint = {"type": "full", "save_every_n_steps": 1, "output_dir": str(tmp_path / "saved"), "auto_resume": True}
    whole = run(sources, data, train_iters=10)
    first = run(sources, data, train_iters=10, exit_iteration=stop, checkpoint=[checkpoint])
    rest = run(sources, data, train_iters=10, checkpoint=[checkpoint])
    assert first.questions + rest.questions == whole.questions
    assert first.losses + rest.losses == whole.losses


def test_weights_are_shares_of_the_examples(run: Callable[..., Recorder], tmp_path: Path) -> None:
    sources = [
        streaming(write(tmp_path / "a.jsonl", 40, "a"), weight=3),
        streaming(write(tmp_path / "b.jsonl", 4, "b"), weight=1),
    ]
    recorder = run(sources, {"stream_buffer": 40}, train_iters=20)
    words = Counter(question[0] for question in recorder.questions)
    assert 4 <= words["b"] <= 16 and sum(words.values()) == 40
    assert len({q for q in recorder.questions if q[0] == "b"}) == 4, "a source that has ended begins again"


def test_sources_without_weights_come_one_after_the_other(run: Callable[..., Recorder], tmp_path: Path) -> None:
    sources = [streaming(write(tmp_path / f"{word}.jsonl", 8, word)) for word in "ab"]
    recorder = run(sources, {"stream_buffer": 4}, train_iters=8)
    assert [question[0] for question in recorder.questions] == ["a"] * 8 + ["b"] * 8


def test_a_stream_is_evaluated_on_a_complete_set(run: Callable[..., Recorder], tmp_path: Path) -> None:
    source = streaming(write(tmp_path / "rows.jsonl", 20))
    run([source], {"eval_sources": [write(tmp_path / "held.jsonl", 3)]}, eval_interval=2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum("eval/held/loss" in line for line in lines) == 3


def test_options_that_a_stream_cannot_have_are_errors(run: Callable[..., Recorder], tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", 20)
    with pytest.raises(DataError, match=facts("data.sources", "streaming", "train_iters", "epochs")):
        run([streaming(path)], train_iters=None)
    with pytest.raises(DataError, match=facts("data.sources", "streaming", "train_iters", "epochs")):
        run([streaming(path)], epochs=2)
    with pytest.raises(DataError, match=facts("data", "train_eval_split", "stream", "eval_sources")):
        run([streaming(path)], {"train_eval_split": [0.5, 0.5]})
    with pytest.raises(DataError, match=facts("data", "sources", "some", "streaming", "all", "none")):
        run([streaming(path), path])
    with pytest.raises(DataError, match=facts(path, "evaluation", "streaming", "slice")):
        run([path], {"eval_sources": [streaming(path)]})
    with pytest.raises(RecipeError, match=facts("data.sources[0]", "streaming", "sample_count", "train_iters")):
        run([streaming(path, sample_count=3)])
    with pytest.raises(RecipeError, match=facts("data.sources[0]", "streaming", "slice")):
        run([streaming(f"{path}:train[:3]")])


def test_a_stream_whose_sources_have_changed_is_not_resumed(run: Callable[..., Recorder], tmp_path: Path) -> None:
    source = streaming(write(tmp_path / "rows.jsonl", 20))
    checkpoint = {"type": "full", "save_every_n_steps": 1, "output_dir": str(tmp_path / "saved"), "auto_resume": True}
    run([source], train_iters=9, exit_iteration=1, checkpoint=[checkpoint])
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "rows.jsonl").rename(tmp_path / "elsewhere" / "rows.jsonl")
    resumed = run([streaming(str(moved))], train_iters=9, exit_iteration=2, checkpoint=[checkpoint])
    assert len(resumed.questions) == 2, "the same content in another place"
    write(moved, 20, "other")
    with pytest.raises(CheckpointError, match=facts("other rows to train on")) as raised:
        run([streaming(str(moved))], train_iters=9, checkpoint=[checkpoint])
    assert "4,611" not in str(raised.value), "the length of a stream is not known"


def test_a_bad_example_is_named(run: Callable[..., Recorder], tmp_path: Path) -> None:
    path = Path(write(tmp_path / "rows.jsonl", 20))
    with path.open("a") as file:
        file.write(json.dumps({"messages": [{"role": "alien", "content": "x"}]}) + "\n")
    with pytest.raises(DataError, match=facts("rows.jsonl", " 20: ", "messages[0].role", "'alien'")):
        run([streaming(str(path))], train_iters=20)


def test_the_model_learns_from_a_stream(run: Callable[..., Recorder], tmp_path: Path) -> None:
    torch.manual_seed(0)
    losses = run([streaming(write(tmp_path / "rows.jsonl", 16))], train_iters=40, optimizer={"lr": 1e-2}).losses
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_columns_that_nobody_reads_are_named_once(
    run: Callable[..., Recorder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(write(tmp_path / "rows.jsonl", 12))
    path.write_text(path.read_text().replace('{"messages"', '{"id": 1, "messages"'))
    run([streaming(str(path))], train_iters=6)
    assert capsys.readouterr().err.count("rows.jsonl: columns not used: id") == 1


def write_some_bad(path: Path, rows: int, every: int) -> str:
    """Write examples, of which one in so many has no answer and another is longer than 64 tokens."""
    lines = []
    for number in range(rows):
        messages = [{"role": "user", "content": f"row {number}."}, {"role": "assistant", "content": "yes"}]
        if number % every == 0:
            messages.pop()
        elif number % every == 1:
            messages[1]["content"] = "no " * 200
        lines.append({"messages": messages})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def test_a_stream_drops_a_share_of_all_its_examples(
    run: Callable[..., Recorder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first block has two of ten, and the first of three examples nothing to train; the stream is judged."""
    source = streaming(write_some_bad(tmp_path / "rows.jsonl", 40, 20))
    recorder = run([source], {"stream_buffer": 2, "shuffle": False}, train_iters=18)
    assert recorder.questions == [f"row {i}." for i in range(40) if i % 20 > 1]
    printed = capsys.readouterr().err
    assert re.search(facts("data.sources", "stream", "2 of 2", "data.max_length", "rows.jsonl, example 0"), printed)
    assert re.search(facts("complete stream", "4 of 40"), printed)


def test_a_stream_above_the_share_stops(run: Callable[..., Recorder], tmp_path: Path) -> None:
    path = write_some_bad(tmp_path / "rows.jsonl", 36, 18)
    with pytest.raises(DataError, match=facts("data.sources", "stream", "2 of 36", "2 of 36", "data.max_dropped")):
        run([streaming(path)], {"stream_buffer": 100})
    assert len(run([streaming(path)], {"max_dropped": 0.12}, train_iters=16).questions) == 32
    assert len(run([streaming(path)], {"overflow": "drop", "on_empty": "drop"}, train_iters=16).questions) == 32


def test_a_stream_of_which_nothing_is_left_stops(run: Callable[..., Recorder], tmp_path: Path) -> None:
    path = write_some_bad(tmp_path / "rows.jsonl", 6, 1)
    with pytest.raises(DataError, match=facts("none of the 6", "data.max_length")):
        run([streaming(path)], {"on_empty": "drop", "stream_buffer": 2})
