"""Terms that plugins add to the loss: counted with the micro-batches, checked, divided and added.

A run in which no plugin implements ``count_loss_terms`` or ``collect_loss_terms`` has no :class:`LossTerms`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Set
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hooktrain.compat import local_tensor
from hooktrain.plugin.results import wrong_result
from hooktrain.training.diagnostics import wrong_answer
from hooktrain.training.metrics import OWN_METRICS
from hooktrain.types import Batch, BatchCounts, LossSum, LossTerm, ModelOutputs

if TYPE_CHECKING:
    from hooktrain.plugin.manager import PluginHost
    from hooktrain.training.trainer import Trainer

__all__ = ["LossTerms", "add_terms", "agree_on_sums", "agreed_sums", "compute", "settled", "sum_counts"]

_HOOKS = ("count_loss_terms", "collect_loss_terms")


class LossTerms:
    """The terms that plugins add to the loss of a run.

    Args:
        host: the plugins.
        skips: whether a step that is not finite is skipped, so that no term of it is an error.

    Attributes:
        owners: the plugin of each term.
        needed: the outputs of the model that plugins ask for.
        denominators: what the counted terms of the current step are divided by.
    """

    def __init__(self, host: PluginHost, *, skips: bool) -> None:
        self._host, self._skips = host, skips
        found = [one for hook in _HOOKS for one in host.implementations(hook)]
        records = [host.records[one.plugin_name] for one in found]
        self.owners: dict[str, str] = {}
        self.needed = tuple(dict.fromkeys(name for record in records for name in record.info.needs_outputs))
        self.denominators: dict[str, float] = {}
        self._may_fail = any(host.policy_of(record) != "stop" for record in records)
        self._names: dict[tuple[str, str], frozenset[str]] = {}  # by hook and plugin
        self._counted: tuple[str, ...] | None = None
        self._loss, self._counts, self._taken = LossSum(torch.zeros(()), 0.0), BatchCounts(0.0, 0, 0), frozenset[str]()
        host.loss_terms = self

    @classmethod
    def of(cls, trainer: Trainer) -> LossTerms | None:
        """Take the terms of a trainer's plugins; None where no plugin has any."""
        host = trainer.host
        used = any(map(host.implementations, _HOOKS))
        return cls(host, skips=trainer.recipe.on_nan == "skip") if used else None

    # ------------------------------------------------------------------------------------------------- counting

    def count(self, trainer: Trainer, batch: Batch) -> dict[str, float]:
        """Count a micro-batch for every term that has a denominator of its own."""
        found = trainer.hooks.count_loss_terms(trainer=trainer, batch=batch)
        return {name: number for counts in found for name, number in counts.items()}

    def names(self, trainer: Trainer, counts: Iterable[BatchCounts]) -> tuple[str, ...]:
        """Return the counted terms in an order that all ranks have. Collective, once or where a plugin may fail."""
        if self._counted is None or self._may_fail:  # on one rank and not on another
            ranks = trainer.strategy.gather_objects(sorted({name for each in counts for name in each.terms}))
            self._counted = tuple(dict.fromkeys(name for names in ranks for name in names))
        return self._counted

    # ----------------------------------------------------------------------------------------------- collecting

    def given(self, batch: Batch) -> Batch:
        """Return a micro-batch that tells the loss which outputs are needed."""
        return {**batch, "needed_outputs": self.needed} if self.needed else batch

    def collected(self, trainer: Trainer, loss: Any, batch: Batch, counts: BatchCounts) -> Any:
        """Return the loss with the terms of all plugins; what is no loss is returned as it is.

        Raises:
            PluginError: a result is not what the hook promises, and the plugin's policy is to stop.
            LoopHookError: the loss lacks an output that a plugin needs.
        """
        if type(loss) is not LossSum:
            return loss
        missing = [name for name in self.needed if name not in loss.outputs]
        if missing:
            expected = f"LossSum.outputs with '{missing[0]}', which batch['needed_outputs'] asks for"
            raise wrong_answer(self._host, "compute_loss", f"the outputs {', '.join(loss.outputs) or 'none'}", expected)
        self._loss, self._counts = loss, counts
        self._taken = OWN_METRICS | trainer.state.counted.keys() | loss.sums.keys() | loss.terms.keys()
        outputs = ModelOutputs(loss.outputs, loss=loss, denominator=counts.denominator)
        found = trainer.hooks.collect_loss_terms(trainer=trainer, outputs=outputs, batch=batch)
        terms = {name: term for each in found for name, term in each.items()}
        return loss._replace(terms={**loss.terms, **terms}, outputs={})

    # ----------------------------------------------------------------- checks, called where a plugin's result is

    def checked(self, plugin: str, made: Mapping[str, Any]) -> dict[str, LossTerm]:
        """Return a plugin's terms.

        Raises:
            PluginError: naming the plugin, and another one that has a term of this name.
        """
        hook = "collect_loss_terms"
        terms = {}
        for name, term in made.items():
            problem = _problem(term, name, self._loss, self._counts, skips=self._skips)
            if not problem and term.coefficient and self._host.records[plugin].info.only_observes:
                problem = (
                    f"the coefficient {term.coefficient} for '{name}', expected 0, as the plugin declares"
                    " only_observes; remove one of the two"
                )
            if problem:
                raise wrong_result(plugin, hook, problem)
            terms[name] = term if term.coefficient else LossTerm(term.total.detach(), 0.0, term.in_loss)
        self._own(hook, plugin, terms)
        return terms

    def checked_counts(self, plugin: str, made: Mapping[str, Any]) -> dict[str, float]:
        """Return what a plugin counts, under the same conditions."""
        hook = "count_loss_terms"
        for name, number in made.items():
            given = f"a tensor on {number.device}" if isinstance(number, Tensor) and not number.is_cpu else repr(number)
            if not _is_number(number) or not 0 <= float(number) < math.inf:
                raise wrong_result(
                    plugin, hook, f"{given} for '{name}', expected a finite number of the host, 0 or positive"
                )
        self._own(hook, plugin, made)
        return {name: float(number) for name, number in made.items()}

    def _own(self, hook: str, plugin: str, names: Iterable[str]) -> None:
        """Keep the names of a plugin's terms, which are free and the same in every micro-batch."""
        declared, found = self._host.records[plugin].info.loss_terms, frozenset(names)
        for name in found:
            owner = self.owners.get(name, "the engine or the loss" if name in self._taken else plugin)
            if owner != plugin:
                who = owner if name not in self.owners else f"plugin '{owner}'"
                raise wrong_result(
                    plugin,
                    hook,
                    f"the term '{name}', expected a name that is free, and {who} has this one; give it another name,"
                    f" such as {plugin}/{name}",
                )
            if declared and name not in declared:
                expected = f"one of those that it declares as PluginInfo.loss_terms ({', '.join(declared)})"
                raise wrong_result(plugin, hook, f"the term '{name}', expected {expected}; add it there")
        before = self._names.setdefault((hook, plugin), found)
        if found != before:
            here, there = (", ".join(sorted(each)) or "none" for each in (found, before))
            raise wrong_result(
                plugin,
                hook,
                f"the terms {here}, expected {there}, as before; return every term for each micro-batch, and count 0"
                " where it holds nothing for one",
            )
        self.owners.update(dict.fromkeys(found, plugin))


def _problem(term: Any, name: str, loss: LossSum, counts: BatchCounts, *, skips: bool) -> str:
    """Return what is wrong with a term, empty where nothing is; nothing is read from a device but the CPU."""
    if type(term) is not LossTerm:
        return f"a {type(term).__qualname__} as '{name}', expected hooktrain.LossTerm(total, coefficient)"
    total, coefficient, expected = term.total, term.coefficient, "expected a floating tensor of shape ()"
    if not isinstance(total, Tensor):
        return f"a {type(total).__qualname__} as the total of '{name}', {expected}"
    if local_tensor(total) is not total:
        return f"a sharded tensor as the total of '{name}', {expected}; a term of the weights does not work with shards"
    if total.shape != () or not total.is_floating_point():
        return f"a tensor of shape {tuple(total.shape)} ({total.dtype}) as the total of '{name}', {expected}; sum it up"
    if total.device != loss.total.device:
        return f"a tensor on {total.device} as the total of '{name}', expected it on {loss.total.device}; move it there"
    if isinstance(coefficient, (bool, Tensor)) or not _is_number(coefficient) or not math.isfinite(coefficient):
        given = type(coefficient).__qualname__ if isinstance(coefficient, Tensor) else repr(coefficient)
        return f"{given} as the coefficient of '{name}', expected a finite number of the host"
    counted = counts.terms.get(name, counts.denominator)
    if torch.is_grad_enabled() and coefficient and counted and not total.requires_grad and not term.in_loss:
        return (
            f"a total of '{name}' without a graph, expected one of trained parameters; remove detach() or no_grad(), or"
            " write the coefficient 0 for a term that is only logged"
        )
    if total.is_cpu and not skips and not bool(total.detach().isfinite()):
        return f"{float(total.detach())} as the total of '{name}', expected a finite number"
    return ""


def _is_number(value: Any) -> bool:
    """Return whether a value is a number of the host."""
    if isinstance(value, (str, bytes)) or (isinstance(value, Tensor) and not (value.is_cpu and value.numel() == 1)):
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def sum_counts(trainer: Trainer, counts: Collection[BatchCounts]) -> list[float]:
    """Return denominator, tokens and trained tokens of a step over all ranks; terms keep theirs. Collective."""
    sizes = [(each.denominator, each.tokens, each.num_target_tokens) for each in counts]
    numbers: list[float] = [sum(values) for values in zip(*sizes, strict=True)] or [0.0, 0.0, 0.0]
    terms = trainer.loss_terms
    names = () if terms is None else terms.names(trainer, counts)
    numbers += [math.fsum(each.terms.get(name, 0.0) for each in counts) for name in names]
    if trainer.world.world_size > 1:
        numbers = trainer.strategy.sum_numbers(numbers)
    if terms is not None:
        terms.denominators = dict(zip(names, numbers[3:], strict=True))
    return numbers[:3]


def compute(trainer: Trainer, batch: Batch, counts: BatchCounts) -> Any:
    """Compute the loss of a micro-batch, with the terms of plugins."""
    terms = trainer.loss_terms
    arguments = {"trainer": trainer, "model": trainer.model, "denominator": counts.denominator}
    if terms is None:
        return trainer.hooks.compute_loss(batch=batch, **arguments)
    return terms.collected(trainer, trainer.hooks.compute_loss(batch=terms.given(batch), **arguments), batch, counts)


def settled(trainer: Trainer, loss: LossSum, counts: BatchCounts) -> tuple[LossSum, Set[str]]:
    """Return a loss whose terms add nothing where the micro-batch counts nothing for them, and the names of its sums.

    Raises:
        LoopHookError: a term that the loss returned itself is wrong.
    """
    terms, owners = {}, {} if trainer.loss_terms is None else trainer.loss_terms.owners
    for name, term in loss.terms.items():
        problem = "" if name in owners else _problem(term, name, loss, counts, skips=True)
        if problem or (name not in owners and (name in OWN_METRICS or name in loss.sums)):
            given = problem or f"the term '{name}', a name that is taken"
            raise wrong_answer(trainer.host, "compute_loss", given, "LossSum.terms as its documentation says")
        terms[name] = term if counts.terms.get(name, counts.denominator) else term._replace(total=term.total * 0)
    return loss._replace(terms=terms), (loss.sums.keys() | terms.keys()) - owners.keys()


def add_terms(trainer: Trainer, loss: LossSum) -> LossSum:
    """Add the terms of a micro-batch to its total, and their totals to what is logged.

    The engine divides the total by ``trainer.denominator``. A term with a denominator of its own is multiplied by the
    ratio of the two before.
    """
    own = trainer.loss_terms.denominators if trainer.loss_terms is not None else {}
    parts = {"loss": loss.total}
    for name, term in loss.terms.items():
        if term.coefficient and not term.in_loss:
            divisor = own.get(name, trainer.denominator)
            ratio = 1.0 if name not in own else trainer.denominator / divisor if divisor else 0.0
            parts[name] = term.coefficient * ratio * term.total
    total, *more = parts.values()
    for part in more:
        total = total + part
    conflicts = trainer.host.conflicts
    if conflicts is not None:
        conflicts.add(trainer, parts, loss.terms)
    return loss._replace(total=total, sums={**loss.sums, **{n: term.total for n, term in loss.terms.items()}}, terms={})


def agreed_sums(
    trainer: Trainer, sums: Mapping[str, Tensor], counted: Mapping[str, float] = {}
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return sums in an order that all ranks have, and what was counted by all ranks. Collective.

    A plugin that may fail can have failed on some ranks, which lack its terms.

    Args:
        trainer: of the run.
        sums: of this rank, by name.
        counted: of this rank, by name.
    """
    if trainer.loss_terms is None:
        return dict(sums), {}
    ranks = trainer.strategy.gather_objects([list(sums), dict(counted)])
    names = dict.fromkeys(name for each, _ in ranks for name in each)
    everywhere: dict[str, float] = {}
    for _, each in ranks:
        for name, number in each.items():
            everywhere[name] = everywhere.get(name, 0.0) + number
    return {name: sums.get(name, torch.zeros((), device=trainer.device)) for name in names}, everywhere


def agree_on_sums(trainer: Trainer) -> None:
    """Have the sums since the last log line in the same order on all ranks, where plugins add terms. Collective."""
    if trainer.loss_terms is not None and trainer.world.world_size > 1:
        trainer.meter.sums = {name: [value] for name, value in agreed_sums(trainer, trainer.meter.added())[0].items()}
