from __future__ import annotations

import pytest
from hooktrain import DataError
from hooktrain.testing import conformance
from hooktrain_transcripts.reading import split_dialogs, to_messages

test_conformance = conformance(
    "transcripts",
    recipe="chat",
    settings={"data": {"sources": [{"type": "transcripts", "collection": "small_talk"}]}},
)


def test_turns_and_dialogs():
    first, second = split_dialogs("\n---\nsystem: be brief\nuser:  a: b\n\n---\nassistant: one\n\ttwo\n")
    assert to_messages({"transcript": first, "id": 3}) == {
        "id": 3,
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a: b"}],
    }
    assert to_messages({"transcript": second})["messages"] == [{"role": "assistant", "content": "one\ntwo"}]


def test_a_line_that_is_no_turn_is_refused():
    with pytest.raises(DataError, match=r"line 2: given 'asistant: hm', .* \(did you mean 'assistant'\?\); indent"):
        to_messages({"transcript": "user: a\nasistant: hm"})
