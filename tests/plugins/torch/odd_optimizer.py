"""An optimizer whose state has other shapes, placements and types than its parameters, some of it by rank."""

import torch

from hooktrain import hookimpl


class OddState(torch.optim.Optimizer):
    """Descends along a gradient that its state scales, so that a wrong state changes the losses."""

    def __init__(self, parameters, lr, by_rank=False, nested=False):
        super().__init__(list(parameters), {"lr": lr})
        self.by_rank, self.nested = by_rank, nested

    @torch.no_grad()
    def step(self, closure=None):
        shared = self.state.get("all", {"steps": 0})
        self.state["all"] = {"steps": shared["steps"] + 1}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, grad = self.state[p], p.grad
                local = getattr(grad, "to_local", lambda grad=grad: grad)()
                if not state:
                    state["step"] = torch.zeros(())
                    state["low"] = grad[:, :3].clone() if p.dim() > 1 else grad.clone()  # rows as p has them
                    state["columns"] = grad.abs().sum(0)  # a sum over shards, of one dimension less
                    state["turned"] = grad.t().clone() if p.dim() > 1 else grad.clone()  # sharded along the other one
                    state["half"] = torch.zeros_like(p, dtype=torch.bfloat16)
                    state["places"] = torch.tensor([1, 2, 3])
                    state["mine"] = local.abs().clone()  # this rank's rows, a plain tensor
                    if self.by_rank:
                        state["spread"] = local.new_tensor([local.abs().sum(), local.numel()])
                    if self.nested:
                        state["inside"] = {"deep": local.clone()}
                state["step"] += 1
                state["places"] += 1
                state["low"].mul_(0.9).add_(grad[:, :3] if p.dim() > 1 else grad)
                state["columns"].mul_(0.9).add_(grad.abs().sum(0))
                state["turned"].mul_(0.9).add_(grad.t() if p.dim() > 1 else grad)
                state["half"].mul_(0.5).add_(grad)
                state["mine"].mul_(0.9).add_(local.abs())
                scaled = grad / (1 + state["columns"]) + state["half"].float()
                scaled = scaled + 0.1 * (state["turned"].t() if p.dim() > 1 else state["turned"])
                scaled = scaled + state["low"].sum(-1, keepdim=True) * 0.01
                p.add_(scaled, alpha=-group["lr"] * int(state["places"][0]) / (10 + shared["steps"]))
                mine = getattr(p, "to_local", lambda p=p: p)()
                mine.sub_(state["mine"], alpha=0.01 * group["lr"])
                if self.by_rank:
                    state["spread"].mul_(0.9).add_(0.1 * local.sum())
                    mine.mul_(1 - 0.001 * state["spread"][0])


class Odd:
    """Makes it, in the place of the recipe's optimizer."""

    def __init__(self, **options):
        self.options = options

    @hookimpl(tryfirst=True)
    def make_optimizer(self, model):
        return OddState(model.parameters(), lr=0.02, **self.options)
