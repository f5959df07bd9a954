from __future__ import annotations

import pytest
from hooktrain.testing import Recorder, conformance

test_conformance = conformance("robust_loss", recipe="chat", settings={"loss": {"type": "robust", "chunk_size": 7}})


def lines(run_chat, **loss):
    recorder = Recorder()
    run_chat(recorder, loss=loss)
    return recorder.metrics


def test_a_small_q_is_cross_entropy(run_chat):
    plain, small = lines(run_chat, type="sft"), lines(run_chat, type="robust", q=0.001)
    for one, other in zip(plain, small, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.02)
        assert other["token_accuracy"] == pytest.approx(one["token_accuracy"], abs=1e-6)


def test_chunks_change_nothing(run_chat):
    one, other = (lines(run_chat, type="robust", chunk_size=size) for size in (1, 1000))
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in other], rel=1e-5)
    assert 0 < one[0]["loss"] < one[0]["cross_entropy"], "the loss of a token is at most 1 / q"
