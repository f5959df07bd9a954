"""Plugins that break one rule each, and three that keep all of them; for ``test_conformance.py``."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import attrs
import torch

from hooktrain import LossSum, PluginInfo, field, hookimpl


@attrs.frozen(kw_only=True)
class MineConfig:
    """The config of an optimizer."""

    lr: float = field(default=0.1)


# -------------------------------------------------------------------------------------------------------- good


class Observes:
    """Reads where it may, keeps a state, and releases its file."""

    def __init__(self):
        self.steps, self.mean, self.started, self.file = 0, torch.zeros(()), 0.0, None
        self.own = random.Random(3)

    @hookimpl
    def on_train_start(self, trainer):
        self.started = float(sum(p.detach().sum() for p in trainer.model.parameters()))
        self.file = (trainer.run_dir / "mine.txt").open("a")

    @hookimpl
    def on_step_end(self, output):
        self.steps += 1
        self.mean = self.mean.to(output.total.device) + output.total
        self.own.random()

    @hookimpl
    def collect_metrics(self):
        return {"mine/mean": self.mean / max(self.steps, 1)}

    @hookimpl
    def on_log(self, trainer, metrics):
        self.file.write(f"{self.steps} {float(self.mean)}\n")

    @hookimpl
    def collect_state(self):
        return {"steps": self.steps, "mean": self.mean.cpu(), "own": [list(self.own.getstate()[1]), 3]}

    @hookimpl
    def restore_state(self, state):
        self.steps, self.mean = state["steps"], state["mean"]
        self.own.setstate((state["own"][1], tuple(state["own"][0]), None))

    @hookimpl
    def on_teardown(self):
        if self.file is not None:
            self.file.close()


class Averages:
    """Keeps a mean of the weights, in place; evaluates it, and requests checkpoints."""

    def __init__(self):
        self.mean = {}

    @hookimpl
    def on_train_start(self, trainer):
        self.mean = self.mean or {name: value.clone() for name, value in trainer.model.state_dict().items()}

    @hookimpl
    def on_step_end(self, trainer):
        for name, value in trainer.model.state_dict().items():
            self.mean[name].lerp_(value, 0.25)
        trainer.request_save()

    @hookimpl(wrapper=True)
    def run_evaluate(self, trainer):
        kept = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.model.load_state_dict(self.mean)
        try:
            return (yield)
        finally:
            trainer.model.load_state_dict(kept)

    @hookimpl
    def collect_state(self):
        return {"mean": self.mean}

    @hookimpl
    def restore_state(self, state):
        self.mean = dict(state["mean"])


class Registers:
    """Registers an optimizer."""

    @hookimpl
    def register_configs(self):
        return {"optimizer": {"mine": MineConfig}}

    @hookimpl
    def make_optimizer(self, config, model):
        if not isinstance(config, MineConfig):
            return None
        return torch.optim.SGD(model.parameters(), lr=config.lr)


# ------------------------------------------------------------------------------------------------------- hooks


class Misspelt:
    @hookimpl
    def on_step_ended(self):
        pass


class Unmarked:
    @hookimpl
    def on_train_start(self):
        pass

    def on_step_end(self):
        pass


class WrongParameter:
    @hookimpl
    def on_step_end(self, result):
        pass


class NeverRuns:
    @hookimpl
    def on_step_end(self):
        yield


# ---------------------------------------------------------------------------------------------------- declines


class Greedy:
    @hookimpl
    def make_optimizer(self, config, model):
        return [config]


class ReadsFirst:
    @hookimpl
    def make_optimizer(self, config, model):
        return torch.optim.SGD(model.parameters()) if config.lr == 12345 else None


class UsesFirst:
    @hookimpl
    def make_optimizer(self, config, model):
        parameters = list(model.parameters())
        return torch.optim.SGD(parameters, config.lr) if isinstance(config, MineConfig) else None


class ImportsFirst:
    @hookimpl
    def make_loss(self, config):
        import this_and_that  # noqa: F401


class AllocatesFirst:
    @hookimpl
    def make_loss(self, config):
        torch.zeros(3)


class OpensFirst:
    @hookimpl
    def make_loss(self, config):
        Path("/proc/self/status").read_text()


class DrawsFirst:
    @hookimpl
    def make_loss(self, config):
        random.random()


class DeclinesLate:
    @hookimpl
    def run_step(self, trainer, batches):
        trainer.state.sequences += 1
        trainer.state.sequences -= 1
        torch.ones(2)
        return NotImplemented


# ------------------------------------------------------------------------------------------------------- state


class OnlyCollects:
    @hookimpl
    def collect_state(self):
        return {"a": 1}


class NotPlain(OnlyCollects):
    @hookimpl
    def collect_state(self):
        return {"best": {"path": Path("x")}}

    @hookimpl
    def restore_state(self, state):
        pass


class NotRestored:
    steps = 0

    @hookimpl
    def on_step_end(self):
        self.steps += 1

    @hookimpl
    def collect_state(self):
        return {"steps": self.steps}

    @hookimpl
    def restore_state(self, state):
        pass


# ------------------------------------------------------------------------------------------- resume and observes


class Forgets:
    scale = 1.0

    @hookimpl(wrapper=True)
    def compute_loss(self, model):
        loss = yield
        return loss._replace(total=loss.total * self.scale) if model.training else loss

    @hookimpl
    def on_step_end(self):
        self.scale *= 1.1


class Draws:
    @hookimpl
    def on_step_start(self):
        torch.rand(())


class DrawsInWrapper:
    @hookimpl(wrapper=True)
    def compute_loss(self):
        torch.rand(())
        return (yield)


class Declares(Draws):
    hooktrain_plugin = PluginInfo(changes_gradients=True)


class DeclaresAndDoesNothing:
    hooktrain_plugin = PluginInfo(changes_gradients=True)

    @hookimpl
    def on_step_start(self):
        pass


# ------------------------------------------------------------------------------------------------------- ranks


class ByRank:
    @hookimpl(wrapper=True)
    def compute_loss(self, trainer):
        loss = yield
        return LossSum(loss.total * (1 + 0.01 * trainer.world.rank), loss.denominator)


class ScalesByShard:
    """Scales the loss by the rank's share of the weights, which is 1 unless the strategy shards them."""

    @hookimpl
    def on_step_start(self, trainer):
        weight = trainer.model.head.weight
        self.share = getattr(weight, "to_local", weight.detach)().numel() / weight.numel()

    @hookimpl(wrapper=True)
    def compute_loss(self, model):
        loss = yield
        return LossSum(loss.total * self.share, loss.denominator) if model.training else loss


class OneRankRaises:
    @hookimpl
    def on_step_end(self, trainer):
        if trainer.world.rank == 1:
            raise KeyError("out of luck")


# ------------------------------------------------------------------------------------------------------ device


class ReadsLoss:
    @hookimpl
    def on_step_end(self, output):
        self.loss = output.total.item()


class ListsLoss:
    @hookimpl
    def on_microbatch_end(self, loss):
        self.loss = loss.total.reshape(1).tolist()


class CopiesLoss:
    @hookimpl
    def collect_metrics(self, trainer):
        return {"weight": trainer.model.head.weight.sum().cpu()}


class DecidesByLoss:
    @hookimpl(wrapper=True)
    def compute_loss(self, trainer):
        loss = yield
        if loss.total > 3:
            return loss
        return loss


# -------------------------------------------------------------------------------------------------------- loss


class Means:
    @hookimpl(wrapper=True)
    def compute_loss(self, denominator):
        loss = yield
        return loss._replace(total=loss.total / denominator)


class MeansOfMore:
    @hookimpl(wrapper=True)
    def compute_loss(self, denominator):
        loss = yield
        return loss._replace(sums={"right": loss.total.detach() / denominator})


class CountsSequences:
    """Data whose micro-batches count sequences, with a loss of each sequence's mean."""

    @hookimpl(wrapper=True)
    def make_data(self):
        data = yield
        counted = {"counts": "sequences"}
        collate = data.collate
        return attrs.evolve(data, collate=lambda rows: {**collate(rows), "denominator": len(rows), **counted})

    @hookimpl(wrapper=True)
    def compute_loss(self, denominator):
        loss = yield
        return LossSum(loss.total, denominator, counts="sequences")


class Scales:
    @hookimpl(wrapper=True)
    def compute_loss(self):
        loss = yield
        return loss._replace(total=2 * loss.total)


# ---------------------------------------------------------------------------------------------------- teardown


class TearsDownWhatIsNotThere:
    @hookimpl
    def on_train_start(self):
        self.file = Path(os.devnull).open()  # noqa: SIM115

    @hookimpl
    def on_teardown(self):
        self.file.close()


class TearsDownOnce:
    def __init__(self):
        self.held = [1]

    @hookimpl
    def on_teardown(self):
        self.held.pop()


class LeavesThread:
    @hookimpl
    def on_train_start(self):
        threading.Thread(target=threading.Event().wait, name="left", daemon=True).start()


class LeavesVariable:
    @hookimpl
    def on_train_start(self, trainer):
        os.environ["MINE"] = str(trainer.run_dir)


class Swallows:
    @hookimpl(wrapper=True)
    def run_evaluate(self):
        try:
            return (yield)
        except Exception:
            return {"eval/held_out/loss": 0.0}


# -------------------------------------------------------------------------------------------------------- cost


class Slow:
    """Takes 10 ms a step by ``read_clock``."""

    @hookimpl
    def on_step_end(self):
        _passed.append(0.01)


_passed: list[float] = []


def read_clock():
    """A clock on which a step takes a millisecond, and longer where a plugin says so."""
    _passed.append(0.001)
    return sum(_passed)


class Allocates:
    """Makes two tensors a step in its hook, and one a micro-batch in a function that the model calls."""

    @hookimpl
    def on_train_start(self, trainer):
        trainer.model.head.register_forward_hook(self.look)

    def look(self, module, inputs, output):
        output.detach().abs()

    @hookimpl
    def on_step_end(self, output):
        self.mean = output.total.view(1).detach() + 1
        self.mean = self.mean * 2
        self.mean.add_(1)


# ------------------------------------------------------------------------------------------------------- processes


def hang():
    threading.Event().wait()


# ---------------------------------------------------------------------------------------------------- with others


class TakesMetrics:
    @hookimpl
    def on_log(self, metrics):
        metrics.pop("grad_norm", None)


class DropsMetrics:
    @hookimpl(wrapper=True)
    def collect_metrics(self):
        yield
        return [{"mine": 1.0}]


class IsAlone:
    hooktrain_plugin = PluginInfo(changes_gradients=True)

    @hookimpl
    def on_optimizer_step_start(self, trainer):
        share = len(trainer.host.implementations("on_optimizer_step_start"))
        trainer.model.head.weight.grad /= share
