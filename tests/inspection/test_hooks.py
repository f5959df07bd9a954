"""Hook by hook: what it is given, and what its answer does."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import attrs
import pytest
import torch

from hooktrain import (
    BatchCounts,
    Complaint,
    Data,
    LossSum,
    OptimizerStep,
    PluginError,
    RecipeError,
    StepOutput,
    WindowLoader,
    World,
    field,
    hookimpl,
)
from hooktrain.protocols import CheckpointEngine
from hooktrain.testing import Recorder, TinyPlugin
from hooktrain.training.load import load
from tests.facts import facts


@attrs.frozen(kw_only=True)
class Own:
    """A part without settings."""


def offering(kind: str, config: type = Own, name: str = "own"):
    """The hook that offers one part."""

    class Offers:
        @hookimpl
        def register_configs(self):
            return {kind: {name: config}}

    return Offers


# ------------------------------------------------------------------------------------------ registration, checks


def test_check_recipe_complains_at_once(tiny_recipe):
    class Checks:
        @hookimpl
        def check_recipe(self, recipe, world):
            assert world == World()
            if recipe.seed == 13:
                yield Complaint("seed", "given 13, expected a lucky number; take another")
                yield Complaint("epochs", "too few")

    load(tiny_recipe, plugins=[TinyPlugin(), Checks()])
    texts = facts("seed: given 13, expected a lucky number; take another", "epochs: too few")
    with pytest.raises(RecipeError, match=texts):
        load({**tiny_recipe, "seed": 13}, plugins=[TinyPlugin(), Checks()])


@attrs.frozen(kw_only=True)
class Words:
    shorthand: ClassVar[str] = "words"
    words: tuple[str, ...] = field(default=())


class Speaks:
    """Says the words of the recipe after each step, if there are any."""

    def __init__(self):
        self.said = []

    @hookimpl
    def register_configs(self):
        return {"settings": {"speaks": Words}}

    @hookimpl
    def unused_hooks(self, recipe):
        return () if recipe.settings["speaks"].words else ("on_step_end", "run_backward")

    @hookimpl
    def on_step_end(self, trainer):
        self.said += trainer.recipe.settings["speaks"].words

    @hookimpl(wrapper=True)
    def run_backward(self):
        return (yield)


def test_unused_hooks_are_removed(run_tiny):
    silent, speaking = Speaks(), Speaks()
    trainer = run_tiny(silent, train_iters=1)
    assert silent.said == []
    assert [found.plugin_name for found in trainer.host.implementations("run_backward")] == ["loop"]
    run_tiny(speaking, train_iters=1, speaks=["a", "b"])
    assert speaking.said == ["a", "b"]


def test_unused_hooks_must_be_the_plugins_own(tiny_recipe):
    class Confused(Speaks):
        @hookimpl
        def unused_hooks(self):
            return ["on_step_ende"]

    with pytest.raises(PluginError, match=facts("'Confused'", "unused_hooks: ", "'on_step_ende'", "'on_step_end'")):
        load(tiny_recipe, plugins=[TinyPlugin(), Confused()])


@pytest.mark.parametrize("given", [["a", "b"], {"words": ["a", "b"]}])
def test_settings_may_have_a_shorthand(tiny_recipe, given):
    made, _ = load({**tiny_recipe, "speaks": given}, plugins=[TinyPlugin(), Speaks()])
    assert made.settings["speaks"] == Words(words=("a", "b"))
    assert load(made.as_dict(), plugins=[TinyPlugin(), Speaks()])[0].settings == made.settings


# ------------------------------------------------------------------------------------------------- factories


def test_make_tokenizer(run_tiny):
    class Letters(offering("tokenizer")):
        @hookimpl
        def register_trainer_types(self):
            tiny = TinyPlugin().register_trainer_types()["tiny"]
            return {"with-tokenizer": attrs.evolve(tiny, parts={**tiny.parts, "tokenizer": ("own",)})}

        @hookimpl
        def make_tokenizer(self, config):
            return list("abc") if isinstance(config, Own) else None

    trainer = run_tiny(Letters(), type="with-tokenizer")
    assert trainer.tokenizer == ["a", "b", "c"]


def test_make_scheduler(run_tiny):
    class Halving(offering("scheduler")):
        @hookimpl
        def make_scheduler(self, config, optimizer, total_steps):
            if isinstance(config, Own):
                self.total_steps = total_steps
                return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)

    halving, recorder = Halving(), Recorder()
    run_tiny(halving, recorder, scheduler="own", train_iters=3, optimizer={"lr": 1.0})
    assert halving.total_steps == 3
    assert [line["lr"] for line in recorder.metrics] == [1.0, 0.5, 0.25]


def test_make_loss(run_tiny):
    @attrs.frozen(kw_only=True)
    class ForTiny(Own):
        trainer_types = ("tiny",)

    class Zero(offering("loss", ForTiny)):
        @hookimpl
        def make_loss(self, config):
            if isinstance(config, ForTiny):
                return lambda model, batch, denominator: LossSum(model(batch["input_ids"]).sum() * 0, denominator)

    assert run_tiny(Zero(), loss="own").state.metrics["loss"] == 0.0


def test_make_strategy(run_tiny):
    """A strategy that offers itself by wrapping nothing: it is asked for by name and gets the world."""

    class Counting(offering("strategy")):
        @hookimpl
        def make_strategy(self, config, world):
            if not isinstance(config, Own):
                return None
            from hooktrain_torch import TorchConfig, TorchStrategy

            self.made = TorchStrategy(TorchConfig(dtype="fp32", device="cpu"), world)
            return self.made

    counting = Counting()
    assert run_tiny(counting, strategy="own").strategy is counting.made


def test_make_checkpoint_engine(run_tiny, tmp_path):
    @attrs.frozen(kw_only=True)
    class NoteConfig:
        enabled: bool = True
        auto_resume: bool = False
        save_every_n_steps: int = 3
        save_every_n_epochs: int = 0
        save_end_of_training: bool = True

    class Note:
        def __init__(self, config, run_dir):
            self.config, self.run_dir = config, run_dir

        def save(self, trainer):
            path = self.run_dir / f"note-{trainer.global_step}-{trainer.checkpoint_reason}"
            path.write_text("x")
            return path

        def latest(self):
            return None

        def can_load(self, path):
            return False

        def load(self, trainer, path): ...

    class Notes(offering("checkpoint", NoteConfig)):
        @hookimpl
        def make_checkpoint_engine(self, config, run_dir, world):
            assert world.is_main
            return Note(config, run_dir) if isinstance(config, NoteConfig) else None

    recorder = Recorder()
    run_tiny(Notes(), recorder, checkpoint=["own"])
    expected = ["note-3-step", "note-6-step", "note-7-end"]
    assert [given["path"].name for name, given in recorder.calls if name == "on_checkpoint_end"] == expected
    assert sorted(path.name for path in (tmp_path / "run").glob("note-*")) == expected
    assert CheckpointEngine.__name__ == "CheckpointEngine"
    recorder = Recorder()
    due_twice = {"type": "own", "save_every_n_steps": 7, "save_every_n_epochs": 1, "save_end_of_training": False}
    run_tiny(Notes(), recorder, checkpoint=[due_twice])
    assert [given["path"].name for name, given in recorder.calls if name == "on_checkpoint_end"] == ["note-7-step"]


def test_make_loader(run_tiny):
    class Backwards:
        @hookimpl
        def make_loader(self, dataset, data, recipe, world):
            loader = WindowLoader(dataset, data, recipe, world)
            loader.order = lambda epoch: torch.arange(len(dataset) - 1, -1, -1)
            return loader

    trainer = run_tiny(Backwards())
    assert trainer.data.train.read == list(range(12, -1, -1))


class _Environment:
    """Rows that say how tokenizers are to behave in the process that reads them."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return os.environ.get("TOKENIZERS_PARALLELISM", "not set")


@pytest.mark.parametrize("given", [None, "true"])
def test_workers_do_not_use_threads_for_tokenizers_unless_told(monkeypatch, given):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    if given:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", given)
    data = Data(train=_Environment(), collate=lambda rows: {"seen": rows}, workers=1)
    recipe = SimpleNamespace(seed=0, micro_batch_size=1, gradient_accumulation_steps=1)
    windows = list(WindowLoader(data.train, data, recipe, World()).windows(0))
    assert [batch["seen"] for _, batches in windows for batch in batches] == [[given or "false"]] * 2
    assert os.environ.get("TOKENIZERS_PARALLELISM") == given


# ------------------------------------------------------------------------------------------------ events


def test_what_the_events_are_given(run_tiny):
    class Looks:
        def __init__(self):
            self.seen = {}

        @hookimpl
        def on_epoch_start(self, trainer, epoch):
            self.seen.setdefault("epochs", []).append((epoch, trainer.state.epoch, trainer.global_step))

        @hookimpl
        def on_epoch_end(self, trainer, epoch):
            self.seen.setdefault("ends", []).append((epoch, trainer.state.sequences, trainer.global_step))

        @hookimpl
        def on_step_start(self, trainer, batches):
            self.before = trainer.model.head.weight.detach().clone()
            self.labels = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
            assert trainer.denominator == sum(self.labels)

        @hookimpl
        def on_microbatch_start(self, trainer, batch):
            assert batch["input_ids"].device == trainer.device

        @hookimpl
        def on_microbatch_end(self, batch, loss):
            assert loss.denominator == self.labels.pop(0)
            assert not loss.total.requires_grad
            self.last = float(loss.total)

        @hookimpl
        def on_optimizer_step_start(self, trainer):
            assert torch.equal(trainer.model.head.weight, self.before)
            self.norm = torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters()])

        @hookimpl
        def on_optimizer_step_end(self, trainer, grad_norm):
            assert float(grad_norm) == float(self.norm)
            assert not torch.equal(trainer.model.head.weight, self.before)
            assert all(p.grad is None for p in trainer.model.parameters())

        @hookimpl
        def on_step_end(self, output):
            assert output.stepped
            assert float(output.total) >= self.last
            assert float(output.grad_norm) == float(self.norm)

        @hookimpl
        def on_evaluate_start(self, trainer):
            assert not trainer.model.training

        @hookimpl
        def on_evaluate_end(self, trainer, metrics):
            assert trainer.model.training
            self.seen["evaluated"] = metrics

        @hookimpl
        def on_checkpoint_end(self, path):
            assert (path / "manifest.json").is_file()
            self.seen["saved"] = path

        @hookimpl
        def on_log(self, metrics):
            self.seen.setdefault("logged", []).append(metrics)

    looks = Looks()
    run_tiny(looks, epochs=2, gradient_accumulation_steps=2, checkpoint={"type": "full", "save_every_n_epochs": 2})
    assert looks.seen["epochs"] == [(0, 0, 0), (1, 1, 4)]
    assert looks.seen["ends"] == [(0, 13, 4), (1, 13, 8)]
    assert looks.seen["evaluated"].keys() == {"eval/held_out/loss"}
    assert looks.seen["saved"].name == "step-00000008"
    assert [line["step"] for line in looks.seen["logged"]] == list(range(1, 9))


def test_messages_reach_everyone(run_tiny):
    class Tells:
        def __init__(self):
            self.seen = []

        @hookimpl
        def on_epoch_end(self, trainer):
            trainer.say("an epoch is over")

        @hookimpl
        def on_message(self, message):
            self.seen.append(message)

    tells = Tells()
    run_tiny(tells)
    assert tells.seen[0] == "an epoch is over"
    assert re.search(r"\b7 steps\b", tells.seen[1])


def test_resume_events(run_tiny):
    class Looks:
        @hookimpl
        def on_resume_start(self, trainer, path):
            self.before = (trainer.global_step, path.name)

        @hookimpl
        def on_resume_end(self, trainer, path):
            self.after = (trainer.global_step, path.name)

    saving = {"checkpoint": {"type": "full", "save_every_n_steps": 2, "auto_resume": True}}
    run_tiny(exit_iteration=4, **saving)
    looks = Looks()
    run_tiny(looks, **saving)
    assert (looks.before, looks.after) == ((0, "step-00000004"), (4, "step-00000004"))


# -------------------------------------------------------------------------------------------------- loop hooks


def test_run_train(run_tiny):
    class TwiceTheFirst:
        @hookimpl
        def run_train(self, trainer):
            trainer.epoch(0)
            trainer.state.epoch = 0
            trainer.epoch(0)
            return trainer.state

    recorder = Recorder()
    run_tiny(TwiceTheFirst(), recorder, train_iters=14)
    assert [given["epoch"] for name, given in recorder.calls if name == "on_epoch_start"] == [0, 0]
    assert recorder.hooks.count("on_step_end") == 14


def test_run_backward(run_tiny):
    class Half:
        @hookimpl
        def run_backward(self, trainer, loss):
            assert loss.shape == ()
            return trainer.strategy.backward(loss * 0.5, trainer.is_last_microbatch)

    plain, half = Recorder(), Recorder()
    run_tiny(plain, train_iters=1)
    run_tiny(Half(), half, train_iters=1)
    assert half.metrics[0]["grad_norm"] == pytest.approx(plain.metrics[0]["grad_norm"] / 2)


def test_run_evaluate(run_tiny):
    class Accuracy:
        @hookimpl
        def run_evaluate(self, trainer):
            assert not torch.is_grad_enabled()
            right = total = 0
            for batch in trainer.eval_batches("held_out"):
                guess = trainer.model(batch["input_ids"]).argmax(-1)[:, :-1]
                goal = batch["labels"][:, 1:]
                right += int((guess == goal).sum())
                total += int((goal != -100).sum())
            return {"eval/held_out/accuracy": right / total}

    recorder = Recorder()
    run_tiny(Accuracy(), recorder)
    assert 0 <= recorder.metrics[-1]["eval/held_out/accuracy"] <= 1


def test_save_and_load_checkpoint(run_tiny, tmp_path):
    class Weights:
        @hookimpl
        def save_checkpoint(self, trainer):
            path = Path(trainer.run_dir) / "weights.pt"
            torch.save(trainer.model.state_dict(), path)
            return [path]

        @hookimpl
        def load_checkpoint(self, trainer, path):
            trainer.model.load_state_dict(torch.load(path, weights_only=True))
            return path

    first = run_tiny(Weights(), checkpoint={"type": "full", "save_end_of_training": True})
    path = tmp_path / "run" / "weights.pt"
    assert not list((tmp_path / "run").rglob("step-*")), "the loop hook was replaced"
    recorder = Recorder()
    again = run_tiny(Weights(), recorder, optimizer={"lr": 0.0}, trainer={"resume_from": path})
    assert recorder.hooks[:2] == ["on_resume_start", "on_resume_end"]
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_count_compute_and_optimizer_step_together(run_tiny):
    """Three loop hooks of one plugin, for a loss of its own that is a mean over rows."""

    class RowMean:
        @hookimpl
        def count_batch(self, batch):
            return BatchCounts(len(batch["labels"]), 1, 1)

        @hookimpl
        def compute_loss(self, model, batch, denominator):
            assert denominator == len(batch["labels"])
            logits = model(batch["input_ids"])[:, :-1]
            each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
            return LossSum((each.sum(1) / (batch["labels"][:, 1:] != -100).sum(1).clamp(min=1)).sum(), denominator)

        @hookimpl
        def run_optimizer_step(self, trainer):
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            return OptimizerStep(None)

    recorder = Recorder()
    run_tiny(RowMean(), recorder)
    assert all(math.isfinite(line["loss"]) and "grad_norm" not in line for line in recorder.metrics)


def test_run_step_may_change_its_batches(run_tiny):
    class Shortened:
        @hookimpl
        def run_step(self, trainer, batches):
            short = [{name: value[:, :4] for name, value in batch.items()} for batch in batches]
            trainer.begin_step(short)
            total = sum(trainer.microbatch(batch).total for batch in short)
            update = trainer.optimizer_step()
            return StepOutput(total, update.grad_norm, update.stepped)

    recorder, plain = Recorder(), Recorder()
    run_tiny(Shortened(), recorder)
    run_tiny(plain)
    assert recorder.metrics[-1]["supervised_tokens"] < plain.metrics[-1]["supervised_tokens"]
    assert recorder.metrics[-1]["tokens"] < plain.metrics[-1]["tokens"]
