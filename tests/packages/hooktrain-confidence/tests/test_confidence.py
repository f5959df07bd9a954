from __future__ import annotations

from hooktrain.testing import Recorder, conformance

LOOKS = {"confidence": {"enabled": True}, "loss": {"all_logits": True}}

test_conformance = conformance("confidence", recipe="chat", settings=LOOKS)


def test_it_is_a_probability(run_chat):
    recorder = Recorder()
    run_chat(recorder, **LOOKS)
    assert all(0 < line["confidence/mean"] < 1 for line in recorder.metrics)
