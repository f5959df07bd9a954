from __future__ import annotations

import torch
from hooktrain.testing import Recorder, conformance
from hooktrain_contrast import info_nce

test_conformance = conformance("contrast", recipe="chat", settings={"contrast": {"coefficient": 0.1}})


def test_halves_of_a_document_are_closer_than_chance(run_chat):
    last = {}
    for coefficient in (1e-9, 1.0):
        recorder = Recorder()
        run_chat(recorder, contrast={"coefficient": coefficient}, train_iters=8)
        last[coefficient] = recorder.metrics[-1]["contrast"]
    assert last[1.0] < last[1e-9]


def test_a_single_document_has_no_term():
    hidden = torch.randn(7, 4, requires_grad=True)
    assert float(info_nce(hidden, (7,), 0.1).detach()) == 0.0
