"""Runs from Python: a recipe as a mapping, plugins as objects, and parts passed from Python."""

from __future__ import annotations

import gc
import json
import re
import signal
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import hooktrain
from hooktrain import Data, HooktrainError, LossSum, ModelError, RecipeError, Trainer, hookimpl
from hooktrain.testing import Recorder, TinyModel, TinyModelConfig, TinyPlugin, TinyRows
from tests.facts import facts


def losses(trainer: Trainer) -> list[float]:
    return [line["loss"] for line in trainer.history if "loss" in line]


@pytest.fixture
def tiny(tiny_recipe):
    """``tiny(plugin, ..., key=value)``: a trainer that has not run, of the recipe with top-level keys changed."""

    def make(*plugins: object, trainer: dict | None = None, **changes) -> Trainer:
        recipe = {key: value for key, value in {**tiny_recipe, **changes}.items() if value is not None}
        return Trainer(recipe, plugins=[TinyPlugin(), *plugins], **(trainer or {}))

    return make


# ----------------------------------------------------------------------------------------------------- recipe, plugins


def test_a_mapping_runs_as_the_file_does(tiny, tiny_recipe, tmp_path):
    import yaml

    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe))
    from_mapping, from_file = tiny(), Trainer(str(path), plugins=[TinyPlugin()])
    assert from_mapping.run().global_step == 7
    from_file.run()
    assert losses(from_mapping) == losses(from_file)
    assert len(losses(from_mapping)) == 7
    assert (from_mapping.recipe.name, from_file.recipe.name) == ("recipe", "mine")


def test_everything_in_the_recipe_is_checked_at_once(tiny):
    with pytest.raises(RecipeError, match=facts("optimizer.lrr: ", "epochs: ")):
        tiny(epochs="two", optimizer={"lrr": 1})


def test_plugins_are_instances_classes_or_modules(tiny):
    import sys

    import yaml  # any module

    recorder = Recorder()
    tiny(recorder).run()
    assert recorder.hooks[-1] == "on_teardown"
    with pytest.raises(hooktrain.PluginError, match=facts("'yaml'", "@hookimpl")):
        tiny(yaml)
    seen = []

    class Watches:
        @hookimpl
        def on_train_end(self):
            seen.append(self)

    tiny(Watches).run()
    assert isinstance(seen[0], Watches)
    assert sys.modules["yaml"] is yaml


def test_a_name_among_the_plugins_is_told_where_it_goes(tiny):
    with pytest.raises(HooktrainError, match=facts("plugins", "'cooler'", "switches=['cooler']")):
        tiny("cooler")


def test_switches_and_overrides_are_those_of_the_command_line(tiny):
    trainer = tiny(trainer={"switches": ["no:samples", "no:peft"], "overrides": ["train_iters=2", "optimizer.lr=1e-3"]})
    assert trainer.host.records["peft"].state == "blocked"
    assert trainer.recipe.optimizer.lr == 1e-3
    assert trainer.run().global_step == 2


def test_the_environment_has_its_say(tiny, monkeypatch):
    monkeypatch.setenv("HOOKTRAIN_PLUGINS", "no:samples")
    assert tiny().host.records["samples"].state == "blocked"


@pytest.mark.parametrize(
    ("recipe", "arguments", "texts"),
    [
        (5, {}, ["recipe", "int", "mapping"]),
        ({"type": "tiny"}, {"plugins": TinyPlugin()}, ["plugins", "TinyPlugin", "list"]),
    ],
)
def test_wrong_arguments_are_named(recipe, arguments, texts):
    with pytest.raises(TypeError, match=facts(*texts)):
        Trainer(recipe, **arguments)


def test_objects_in_the_recipe_are_refused(tiny):
    model = TinyModel(TinyModelConfig())
    with pytest.raises(RecipeError, match=facts("model: ", "TinyModel", "Trainer(recipe, model=...)")):
        tiny(model=model)
    with pytest.raises(RecipeError, match=facts("optimizer.lr: ", "Tensor")):
        tiny(optimizer={"lr": torch.ones(1)})


# -------------------------------------------------------------------------------------------------------- parts passed from Python


def tiny_model() -> TinyModel:
    torch.manual_seed(42)  # as the engine does before it builds one
    return TinyModel(TinyModelConfig())


def test_a_model_in_hand_is_trained_in_place_as_one_that_is_built(tiny):
    model = tiny_model()
    before = model.head.weight.detach().clone()
    built, given = tiny(), tiny(trainer={"model": model}, model=None)
    built.run()
    given.run()
    assert losses(given) == losses(built)
    assert given.model is model
    assert not torch.equal(model.head.weight, before)
    assert not model.training
    assert given.recipe.as_dict()["model"] == {
        "type": "python",
        "built_as": "TinyModel",
        "name_or_path": None,
        "dtype": "auto",
        "weights_dtype": None,
        "attn_implementation": "auto",
        "activation_checkpointing": False,
    }


def test_wrappers_have_what_is_passed_from_python(tiny):
    seen = []

    class Wraps:
        @hookimpl(wrapper=True)
        def make_model(self):
            model = yield
            seen.append(model)
            model.embedding.requires_grad_(False)
            return model

    model = tiny_model()
    kept = model.embedding.weight.detach().clone()
    tiny(Wraps(), trainer={"model": model}, model=None).run()
    assert seen == [model]
    assert torch.equal(model.embedding.weight, kept)


def test_a_plugin_adopts_a_model_passed_from_python(tiny):
    class Adopts:
        @hookimpl
        def adopt_model(self, model, config):
            assert config.activation_checkpointing
            return nn.Sequential(model)

    trainer = tiny(Adopts(), trainer={"model": tiny_model()}, model={"activation_checkpointing": True})
    trainer.run()
    assert isinstance(trainer.model, nn.Sequential)
    with pytest.raises(ModelError, match=facts("model.activation_checkpointing: ", "True", "TinyModel")):
        tiny(trainer={"model": tiny_model()}, model={"activation_checkpointing": True}).run()


def test_weights_in_half_precision_are_warned_of_or_brought_to_float32(tiny):
    with pytest.warns(hooktrain.HooktrainWarning, match=facts("model: ", "bfloat16", "model: {weights_dtype: fp32}")):
        tiny(trainer={"model": tiny_model().bfloat16()}, model=None, train_iters=1).run()
    model = tiny_model().bfloat16()
    tiny(trainer={"model": model}, model={"weights_dtype": "fp32"}, train_iters=1).run()
    assert model.head.weight.dtype == torch.float32


def test_a_model_without_weights_is_refused(tiny):
    with torch.device("meta"):
        model = TinyModel(TinyModelConfig())
    with pytest.raises(ModelError, match=facts("model: ", "TinyModel", "meta device")):
        tiny(trainer={"model": model}, model=None).run()


@pytest.mark.parametrize(
    ("changes", "objects", "texts"),
    [
        ({"model": {"name_or_path": "org/x"}}, {"model": "module"}, ["model.name_or_path: ", "TinyModel", "model="]),
        ({"model": "org/x"}, {"model": "module"}, ["model.name_or_path: ", "TinyModel", "model="]),
        ({"model": None}, {"model": 3}, ["model: ", "int", "torch module"]),
        ({}, {"optimizer": "instance"}, ["optimizer: ", "SGD", "parameters"]),
        ({"optimizer": None}, {"optimizer": torch.optim.SGD}, ["optimizer: ", "SGD", "function"]),
        ({}, {"optimizer": lambda model: None}, ["optimizer: ", "optimizer="]),
        ({"scheduler": {"type": "wsd"}}, {"scheduler": lambda o, n: None}, ["scheduler: ", "scheduler="]),
        ({}, {"data": [1]}, ["data: ", "list", "hooktrain.Data"]),
        ({}, {"train_dataset": iter([1])}, ["train_dataset: ", "list_iterator", "train_dataset=lambda: "]),
        ({}, {"train_dataset": {"a": [1]}}, ["train_dataset: ", "mapping of a"]),
        ({}, {"train_dataset": 3}, ["train_dataset: ", "int", "list of mappings"]),
        ({"data": {"sources": ["x"]}}, {"train_dataset": [1]}, ["data.sources: ", "train_dataset="]),
        ({}, {"tokenizer": 3}, ["tokenizer: ", "int"]),
    ],
)
def test_what_is_given_twice_or_is_something_else_is_refused(tiny, changes, objects, texts):
    stand_ins = {"module": tiny_model(), "instance": torch.optim.SGD(tiny_model().parameters(), lr=1.0)}
    objects = {key: stand_ins.get(value, value) if isinstance(value, str) else value for key, value in objects.items()}
    with pytest.raises(RecipeError, match=facts(*texts)):
        tiny(trainer=objects, **changes)


def test_functions_make_optimizer_and_schedule(tiny):
    model, made = tiny_model(), []

    def momentum(model):
        made.append(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        return made[0]

    trainer = tiny(
        trainer={
            "model": model,
            "optimizer": momentum,
            "scheduler": lambda optimizer, steps: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps),
        },
        model=None,
        optimizer=None,
    )
    trainer.run()
    assert trainer.optimizer is made[0]
    assert [line["lr"] for line in trainer.history] == pytest.approx([0.1 * (1 - n / 7) for n in range(7)])
    assert "momentum" in trainer.recipe.as_dict()["optimizer"]["built_as"]
    with pytest.raises(HooktrainError, match=facts("optimizer: ", "<lambda>", "int", "torch optimizer")):
        tiny(trainer={"optimizer": lambda model: 3}, optimizer=None).run()


def loss_of(model, batch, denominator):
    logits = model(batch["input_ids"])[:, :-1].float()
    total = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    return LossSum(total, denominator)


def test_any_module_trains_with_data_and_loss_passed_from_python(tiny, tiny_recipe, tmp_path):
    """No trainer type, no tokenizer, nothing of transformers: the same losses as from the parts by name."""
    from hooktrain.testing.tiny_plugin import _collate

    by_name = tiny()
    by_name.run()
    data = Data(train=TinyRows(13, 9, 0), evaluation={"held_out": TinyRows(5, 9, 1)}, collate=_collate)
    recipe = {key: value for key, value in tiny_recipe.items() if key not in ("type", "model")}
    trainer = Trainer({**recipe, "scheduler": "constant"}, model=tiny_model(), data=data, loss=loss_of)
    trainer.run()
    assert trainer.recipe.type == "python"
    assert losses(trainer) == losses(by_name)
    assert trainer.evaluate() == by_name.evaluate()


def test_a_recipe_of_parts_in_hand_cannot_be_run_without_them(tiny, tmp_path):
    trainer = tiny(trainer={"model": tiny_model()}, model=None)
    trainer.run()
    with pytest.raises(HooktrainError, match=facts("model: ", "'type: python'", "hooktrain.Trainer")):
        Trainer(trainer.run_dir / "recipe.yaml", plugins=[TinyPlugin()]).run()


def test_messages_offer_the_type_for_parts_in_hand_only_to_those_who_have_some(tiny):
    names = facts("type: ", "'pythn'", "causal (hooktrain-sft)", "sft (hooktrain-sft)")
    with pytest.raises(RecipeError, match=names) as caught:
        tiny(type="pythn")
    assert "python (hooktrain)" not in str(caught.value)
    with pytest.raises(RecipeError, match=facts("type: ", "'pythn'", "'python'", "python (hooktrain)")):
        tiny(type="pythn", trainer={"model": tiny_model()}, model=None)
    with pytest.raises(RecipeError, match=facts("model.type: ", "'pythn'", "tiny (")) as caught:
        tiny(model="pythn")
    assert "given (" not in str(caught.value)


# -------------------------------------------------------------------------------------------------- before and after


def test_after_the_run(tiny):
    trainer = tiny(seed=3)
    state = trainer.train()
    assert state is trainer.state
    assert trainer.history[-1]["step"] == 7
    lines = [json.loads(line) for line in (trainer.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert trainer.history == lines
    found = trainer.evaluate()
    assert found == {name: value for name, value in trainer.history[-1].items() if name.startswith("eval/")}
    assert not trainer.model.training
    with pytest.raises(HooktrainError, match=facts("trainer: ", "step 7", "resume_from=")):
        trainer.run()


def test_evaluating_before_the_run_changes_nothing(tiny):
    plain, looked_at = tiny(), tiny()
    plain.run()
    before = looked_at.evaluate()
    looked_at.run()
    assert losses(plain) == losses(looked_at)
    assert before.keys() == looked_at.evaluate().keys()
    assert before != looked_at.evaluate()


def test_a_checkpoint_is_saved_and_gone_on_from(tiny, tmp_path):
    whole, first = tiny(), tiny(exit_iteration=3)
    whole.run()
    first.run()
    path = first.save(tmp_path / "saved", type="full")
    second = tiny(trainer={"resume_from": str(path)}, checkpoint=[{"type": "full"}], run_dir=str(tmp_path / "second"))
    second.run()
    assert losses(first) + losses(second) == losses(whole)


def test_saving_says_what_there_is(tiny):
    with pytest.raises(hooktrain.CheckpointError, match=facts("save: ", "'ful'", "'full'", "type=")):
        tiny().save("x", type="ful")


def test_a_block_keeps_everything_up(tiny):
    recorder = Recorder()
    with tiny(recorder) as trainer:
        trainer.run()
        assert "on_teardown" not in recorder.hooks
        trainer.evaluate()
    assert recorder.hooks[-1] == "on_teardown"
    assert recorder.hooks.count("on_teardown") == 1


def test_a_block_that_raises_tells_every_plugin(tiny):
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError), tiny(recorder) as trainer:
        trainer.run()
        raise ZeroDivisionError
    assert recorder.hooks[-2:] == ["on_exception", "on_teardown"]


def test_a_strategy_that_lets_go_says_how_to_go_on(tiny):
    trainer = tiny(strategy={"dtype": "fp32", "device": "cpu", "data_parallel": "fsdp2"})
    trainer.run()
    assert not torch.distributed.is_initialized()
    with pytest.raises(HooktrainError, match=facts("trainer: ", "`with hooktrain.Trainer(...) as trainer:`")):
        trainer.evaluate()


def test_weights_that_a_strategy_has_sharded_are_refused(tiny):
    model, sharded = tiny_model(), {"dtype": "fp32", "device": "cpu", "data_parallel": "fsdp2"}
    tiny(strategy=sharded, trainer={"model": model}, model=None).run()
    with pytest.raises(ModelError, match=facts("model: ", "TinyModel", "rank", "trainer.save")):
        tiny(strategy=sharded, trainer={"model": model}, model=None).run()
    with pytest.raises(ModelError, match=facts("model: ", "TinyModel", "rank", "trainer.save")):
        tiny(trainer={"model": model}, model=None).run()


# ------------------------------------------------------------------------------------------------ many in one process


class Fails:
    @hookimpl
    def on_step_end(self, trainer):
        if trainer.global_step == 2:
            raise ValueError("no")


def test_runs_follow_each_other_and_failed_ones(tiny):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    threads = threading.active_count()
    first = tiny()
    first.run()
    failed = tiny(Fails())
    with pytest.raises(ValueError, match="no"):
        failed.run()
    assert failed.global_step == 2
    assert len(failed.history) == 1
    assert not failed.model.training
    assert not failed.model._forward_hooks
    again = tiny()
    again.run()
    assert losses(again) == losses(first)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == handlers
    assert threading.active_count() == threads
    assert not torch.distributed.is_initialized()


def test_nothing_holds_a_trainer_that_is_over(tiny):
    trainer = tiny()
    trainer.run()
    model, itself = weakref.ref(trainer.model), weakref.ref(trainer)
    del trainer
    gc.collect()
    assert itself() is None
    assert model() is None


def test_a_run_in_another_thread(tiny):
    in_main, other = tiny(), tiny()
    in_main.run()
    thread = threading.Thread(target=other.run)
    thread.start()
    thread.join(60)
    assert losses(other) == losses(in_main)


def test_a_notebook_gets_lines_of_text(tiny, monkeypatch, capsys):
    """rich makes HTML of every line there, and a bar that needs widgets."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    tiny(console={"enabled": True}).run()
    shown = capsys.readouterr().out
    assert shown.count("\nstep ") == 7
    assert "\x1b" not in shown


class Interrupts:
    """Sends SIGINT, as a notebook does when its run is interrupted: as often as it is told, once in a while."""

    def __init__(self, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times, self.now = times, 0.0
        monkeypatch.setattr("hooktrain.builtins.signals.time", SimpleNamespace(monotonic=lambda: self.now))

    @hookimpl
    def on_step_start(self, trainer):
        if trainer.global_step == 2:
            for _ in range(self.times):
                self.now += 1.1  # sooner it is the same one again, passed on by a launcher
                signal.raise_signal(signal.SIGINT)


def test_an_interrupt_ends_the_run_after_the_step(tiny, capfd, monkeypatch):
    trainer = tiny(Interrupts(1, monkeypatch))
    state = trainer.run()
    assert state.global_step == 3 and re.search(facts("SIGINT", "rank 0"), state.stop_reason)
    assert trainer.evaluate()


def test_a_second_interrupt_ends_it_at_once_and_leaves_everything_to_look_at(tiny, capfd, monkeypatch):
    trainer = tiny(Interrupts(2, monkeypatch))
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.state.global_step == 2
    assert len(trainer.history) == 2
    assert trainer.model(torch.zeros(1, 2, dtype=torch.long)).shape == (1, 2, 17)
    assert trainer.evaluate()


def test_a_part_that_fails_leaves_nothing_behind(tiny):
    trainer = tiny(trainer={"optimizer": lambda model: 1 / 0}, optimizer=None)
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    with pytest.raises(HooktrainError, match=facts("trainer: ", "`with hooktrain.Trainer(...) as trainer:`")):
        trainer.evaluate()
    tiny().run()
