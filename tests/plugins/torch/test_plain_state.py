"""What a checkpoint holds can be read again: everything else is refused when it is saved, by plugin and key."""

from __future__ import annotations

import collections
import math
from typing import Any

import numpy
import pytest
import torch
from hooktrain_torch.plain_state import NotPlainError, plain
from torch import nn

from hooktrain import CheckpointError, PluginInfo, hookimpl
from tests.facts import facts

SAVE = {"type": "full", "save_every_n_steps": 7}


class Labelled(torch.Tensor):
    """A tensor with a method more."""


class Wraps(torch.Tensor):
    """A tensor that consists of another one, as quantized ones do."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        def unwrap(value):
            return value.inner if isinstance(value, cls) else value

        found = function(*map(unwrap, arguments), **(options or {}))
        return cls(found) if isinstance(found, torch.Tensor) else found


class State:
    """A plugin whose state is what it was given, and afterwards what it was handed back."""

    hooktrain_plugin = PluginInfo(name="mine")

    def __init__(self, value: Any = None) -> None:
        self.value = value

    @hookimpl
    def collect_state(self):
        return {"key": self.value}

    @hookimpl
    def restore_state(self, state):
        self.value = state["key"]


def cycle() -> list[Any]:
    made: list[Any] = [1]
    made.append({"again": made})
    return made


def nested(levels: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(levels):
        made = [made]
    return made


def with_attribute(value: Any) -> torch.Tensor:
    made = torch.zeros(2)
    made.meaning = value  # type: ignore[attr-defined]
    return made


def dict_with_attribute() -> Any:
    made = collections.OrderedDict(a=1)
    made.owner = object()  # type: ignore[attr-defined]
    return made


def tensor_of_itself() -> torch.Tensor:
    made = torch.zeros(2)
    made.me = [made]  # type: ignore[attr-defined]
    return made


REFUSED = {
    "a subclass of Tensor": (lambda: torch.zeros(2).as_subclass(Labelled), ["Labelled", "as_subclass"]),
    "a wrapper of a tensor": (lambda: Wraps(torch.zeros(2)), ["Wraps"]),
    "an object on a tensor": (lambda: with_attribute(object()), ["meaning", "object"]),
    "an object on a mapping": (dict_with_attribute, ["owner", "object"]),
    "a tensor that refers to itself": (tensor_of_itself, ["contains itself"]),
    "an integer too large": (lambda: [1 << 2039], ["2,040 bits", "[0]"]),
    "a key too large": (lambda: {1 << 2039: 1}, ["2,040 bits", "a key of"]),
    "a cycle": (cycle, ["contains itself", "[1].again"]),
    "deep lists": (lambda: nested(50_000), ["levels deep"]),
    "a tensor as a key": (lambda: {torch.zeros(1): 1}, ["a key of", "Tensor"]),
    "a counter": (lambda: collections.Counter("ab"), ["Counter"]),
    "a default": (lambda: collections.defaultdict(int), ["defaultdict"]),
    "a set": (lambda: {1}, ["set"]),
    "bytes": (lambda: b"ab", ["bytes"]),
    "an array": (lambda: numpy.zeros(2), ["ndarray"]),
    "a date": (lambda: numpy.datetime64("2026-01-01"), ["datetime64"]),
    "a function": (lambda: print, ["builtin_function_or_method"]),
    "a wide float": (lambda: numpy.longdouble(1) / 3, ["longdouble"]),
}


@pytest.mark.parametrize(("make", "words"), list(REFUSED.values()), ids=list(REFUSED))
def test_a_value_that_could_not_be_read_again_is_refused_by_plugin_and_key(make, words):
    with pytest.raises(NotPlainError, match=facts("plugins.mine.key", *words)):
        plain({"plugins": {"mine": {"key": make()}}}, "")


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("case", ["a subclass of Tensor", "an integer too large", "a cycle", "deep lists"])
def test_the_run_ends_with_it_and_leaves_nothing_behind(run_tiny, tmp_path, case, background):
    make, words = REFUSED[case]
    save = {**SAVE, "asynchronous": background, "on_failure": "stop"}
    with pytest.raises(CheckpointError, match=facts("step-00000007", "rank 0", "plugins.mine.key", *words)):
        run_tiny(State(make()), checkpoint=save)
    assert list((tmp_path / "run/checkpoints").iterdir()) == []


def versions() -> Any:
    made = collections.OrderedDict(a=torch.zeros(1))
    made._metadata = collections.OrderedDict({"": {"version": 2}})  # type: ignore[attr-defined]
    return made


KEPT = {
    "float64": (lambda: numpy.float64(1) / 3, 1 / 3),
    "float32": (lambda: numpy.float32(1) / 3, float(numpy.float32(1) / 3)),
    "int64": (lambda: numpy.int64(-5), -5),
    "bool": (lambda: numpy.bool_(True), True),
    "text": (lambda: numpy.str_("ab"), "ab"),
    "a key": (lambda: {numpy.float64(0.5): numpy.int32(2)}, {0.5: 2}),
    "integers": (lambda: [(1 << 2039) - 1, -(1 << 2039) + 1], [(1 << 2039) - 1, -(1 << 2039) + 1]),
    "half a character": (lambda: "\ud800", "\ud800"),
    "complex": (lambda: 1 + 2j, 1 + 2j),
    "a tuple as a key": (lambda: {(1, "a"): None}, {(1, "a"): None}),
    "lists": (lambda: nested(90), nested(90)),
}


@pytest.mark.parametrize("background", [False, True])
def test_numbers_of_numpy_and_odd_values_come_back_equal(run_tiny, tmp_path, background):
    given = {name: make() for name, (make, _) in KEPT.items()}
    run_tiny(State(given), checkpoint={**SAVE, "asynchronous": background})
    back = State()
    run_tiny(back, checkpoint=SAVE, trainer={"resume_from": tmp_path / "run/checkpoints/step-00000007"})
    for name, (_, expected) in KEPT.items():
        assert back.value[name] == expected and type(back.value[name]) is type(expected), name


@pytest.mark.parametrize("background", [False, True])
def test_tensors_come_back_as_they_were(run_tiny, tmp_path, background):
    """Parameters, results with a graph, attributes that are plain, buffers, versions; one object stays one object."""
    one = torch.ones(2)
    given = {
        "parameter": nn.Parameter(torch.ones(2)),
        "result": nn.Parameter(torch.ones(2)) * 2,
        "noted": with_attribute([1, "a"]),
        "buffer": nn.Buffer(torch.ones(2), persistent=False),
        "versions": versions(),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "wide": torch.ones(1).expand(1000),
        "twice": [one, one],
        "sparse": torch.eye(2).to_sparse(),
        "eighth": torch.ones(2).to(torch.float8_e4m3fn),
    }
    run_tiny(State(given), checkpoint={**SAVE, "asynchronous": background})
    back = State()
    run_tiny(back, checkpoint=SAVE, trainer={"resume_from": tmp_path / "run/checkpoints/step-00000007"})
    for name in ("parameter", "result", "noted", "buffer", "conjugate", "wide"):
        assert torch.equal(back.value[name], given[name]) and type(back.value[name]) is type(given[name]), name
        assert back.value[name].requires_grad == given[name].requires_grad, name
    assert back.value["noted"].meaning == [1, "a"]
    assert back.value["versions"]._metadata == {"": {"version": 2}}
    assert back.value["twice"][0] is back.value["twice"][1]
    assert torch.equal(back.value["sparse"].to_dense(), torch.eye(2))
    assert back.value["eighth"].float().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("background", [False, True])
def test_a_view_of_a_large_tensor_saves_what_it_shows(run_tiny, tmp_path, background):
    large = torch.arange(1_000_000.0).view(1000, 1000)

    class Shows:
        @hookimpl(wrapper=True)
        def make_model(self):
            model = yield
            model.register_parameter("shown", nn.Parameter(large[:, 1]))
            return model

    run_tiny(Shows(), State({"view": large[3, :2]}), checkpoint={**SAVE, "asynchronous": background})
    folder = tmp_path / "run/checkpoints/step-00000007"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 200_000
    assert torch.load(folder / "parts.pt")["plugins"]["mine"]["key"]["view"].tolist() == [3000.0, 3001.0]
    assert torch.equal(torch.load(folder / "model-0.pt")["shown"], large[:, 1])


def test_weights_of_a_subclass_are_saved_as_plain_ones_and_resume(run_tiny, tmp_path):
    class Labels:
        @hookimpl(wrapper=True)
        def make_model(self):
            model = yield
            label = nn.Parameter(torch.ones(3).as_subclass(Labelled))
            label.meaning = object()
            model.register_parameter("label", label)
            return model

    run_tiny(Labels(), checkpoint=SAVE)
    folder = tmp_path / "run/checkpoints/step-00000007"
    assert type(torch.load(folder / "model-0.pt", weights_only=True)["label"]) is torch.Tensor
    resumed = run_tiny(Labels(), checkpoint=SAVE, trainer={"resume_from": folder})
    assert torch.equal(resumed.model.label.detach().as_subclass(torch.Tensor), torch.ones(3))


def test_weights_that_wrap_others_are_refused_by_name(run_tiny, tmp_path):
    class Quantizes:
        @hookimpl(wrapper=True)
        def make_model(self):
            model = yield
            model.register_buffer("codes", Wraps(torch.ones(3)))
            return model

    with pytest.raises(CheckpointError, match=facts("codes", "Wraps", "plain tensor")):
        run_tiny(Quantizes(), checkpoint=SAVE)
    assert list((tmp_path / "run/checkpoints").iterdir()) == []


def test_what_torch_cannot_read_is_found_by_reading_it_back(run_tiny, tmp_path, monkeypatch):
    """A type that is plain to us and not to this version of torch: here because we say so."""
    monkeypatch.setattr("hooktrain_torch.plain_state._PLAIN", {*plain.__globals__["_PLAIN"], numpy.float64})
    for background in (False, True):
        save = {**SAVE, "asynchronous": background, "on_failure": "stop"}
        with pytest.raises(CheckpointError, match=facts("plugins.mine.key", "read", "collect_state")):
            run_tiny(State([numpy.float64(1)]), checkpoint=save)
        assert list((tmp_path / "run/checkpoints").iterdir()) == []


def test_a_metric_that_is_no_number_is_refused_by_name(run_tiny):
    class Evaluates:
        @hookimpl
        def run_evaluate(self):
            return {"eval/held_out/loss": numpy.float32(1.5), "eval/odd": torch.ones(())}

    with pytest.raises(CheckpointError, match=facts("trainer.state.metrics.eval/odd", "Tensor")):
        run_tiny(Evaluates(), checkpoint=SAVE)


OTHERS = """
import numpy

@hookimpl
def collect_state(trainer):
    return {"key": [1 << 3000]} if trainer.global_step == 3 else {"key": numpy.float64(1)}
"""


def test_all_ranks_end_where_one_cannot_save(run_ranks):
    run = run_ranks(2, OTHERS, checkpoint={"type": "full", "save_every_n_steps": 1})
    assert run.status == 1, run.output
    assert "3,001 bits" in run.stderr and ".key[0]" in run.stderr
    assert len(list((run.folder / "checkpoints").iterdir())) == 2


def test_a_shared_list_is_visited_once():
    """Fifty levels that each name the one below twice, which are 2**50 paths."""
    made: Any = [1]
    for _ in range(50):
        made = [made, made]
    found = plain(made, "it")
    assert found[0] is found[1]
    assert math.isfinite(float(len(found)))
