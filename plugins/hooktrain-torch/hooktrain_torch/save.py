"""One rank's part of saving a ``full`` checkpoint, in the training's thread or in the background."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import CheckpointError, TrainedState, World, provenance
from hooktrain_torch.files import commit, write_object, write_text
from hooktrain_torch.plain_state import plain, unreadable_in
from hooktrain_torch.plugin_states import file_of
from hooktrain_torch.stored_tensors import index_of, tensors_of, without_hidden

if TYPE_CHECKING:
    from torch import Tensor

    from hooktrain import Trainer

__all__ = ["FROZEN", "PARTS", "PROVENANCE", "TENSORS", "Save"]

FROZEN = "frozen.json"
PARTS = "parts.pt"
PROVENANCE = "provenance.json"
TENSORS = "tensors.json"


class Save:
    """One rank's part of the checkpoint of one step.

    Args:
        target: the folder that the checkpoint will be.
        step: optimizer steps finished.
        world: this process and how many there are.
        run: the id of the run.

    Attributes:
        temporary: the folder that is written to, next to ``target``.
        skips: whether the optimizer has skipped the last step.
        began: when the save began, by ``time.perf_counter``.
        stalled: seconds for which training paused, of a save in the background.
        is_committing: whether the background thread commits the checkpoint, after or instead of writing this rank's
            files.
    """

    def __init__(self, target: Path, step: int, world: World, run: str) -> None:
        self.target, self.step, self.world, self.run = target, step, world, run
        self.temporary = target.with_name(f".saving-{target.name}")
        self.began, self.stalled, self.is_committing, self.skips = time.perf_counter(), 0.0, False, False
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._places: dict[str, Any] = {}
        self._plain: dict[str, Any] = {}
        self._texts: dict[str, Callable[[], str]] = {}
        self._thread: threading.Thread | None = None
        self._made: Any = None
        self._problem: BaseException | None = None
        self._ended = threading.Event()

    def take(
        self, trainer: Trainer, trained: TrainedState, states: Mapping[str, Any], unchanged: Mapping[str, list[str]]
    ) -> None:
        """Collect what is to be written; nothing is copied.

        Args:
            trainer: counters, recipe and plugins.
            trained: this rank's shards of weights and optimizer.
            states: of plugins, scheduler and strategy; and ``by_rank``, the plugins whose states differ by rank.
            unchanged: checksums of frozen weights that are not written.

        Raises:
            NotPlainError: when a state holds a value that a checkpoint cannot hold.
            CheckpointError: when the strategy returned two shards of one tensor.
        """
        self.skips = trainer.state.consecutive_skipped_steps > 0
        for kind, shards in (("model", trained.model), ("optimizer", trained.optimizer)):
            self._tensors[kind], self._places[kind] = tensors_of(
                shard for shard in shards if kind != "model" or shard.name not in unchanged
            )
        self._plain[f"random-{self.world.rank}.pt"] = dict(trainer.random_state.to_save())
        own = {name: state for name, state in states["plugins"].items() if name in states["by_rank"]}
        if own:
            self._plain[file_of(self.world.rank)] = plain(own, "plugins")
        if self.world.is_main:
            shared = {name: state for name, state in states["plugins"].items() if name not in own}
            self._plain[PARTS] = plain({**states, "plugins": shared, "trained": dict(trained.rest)}, "")
            if unchanged:
                self._texts[FROZEN] = partial(json.dumps, dict(unchanged), indent=2)
            # values are collected now; their text, which takes longest to make, is made when it is written
            self._texts |= {
                "state.json": partial(
                    json.dumps, plain(attrs.asdict(trainer.state), "trainer.state", tensors=False), indent=2
                ),
                "recipe.yaml": trainer.recipe.as_yaml,
                PROVENANCE: partial(json.dumps, provenance(trainer), indent=2, default=str),
            }

    def write(self) -> dict[str, Any]:
        """Write this rank's files and read them back, and return their sizes and digests and the places of its shards.

        Raises:
            CheckpointError: when one could not be read again, naming whose state it is.
            OSError: when one cannot be written.
        """
        files = {}
        for kind, tensors in self._tensors.items():
            if tensors or self.world.is_main:
                name = f"{kind}-{self.world.rank}.pt"
                files[name] = write_object(without_hidden(tensors), self.temporary / name)
        for name, value in self._plain.items():
            try:
                files[name] = write_object(value, self.temporary / name)
            except OSError:
                raise
            except Exception as problem:
                where = unreadable_in(value) if name == PARTS else ""
                raise CheckpointError(
                    f"{where or name} cannot be saved so that it can be read again ({problem}); convert it in"
                    " collect_state, or where else it comes from"
                ) from problem
        for name, text in self._texts.items():
            files[name] = write_text(self.temporary / name, text())
        return {"files": files, "places": self._places}

    def commit(self, written: Sequence[Mapping[str, Any]], number: int) -> None:
        """Write the index and the manifest of all ranks' files; on one rank.

        Args:
            written: what :meth:`write` returned on each rank.
            number: the checkpoint's position in the order of saving.

        Raises:
            CheckpointError: when elements of a tensor are missing or there twice.
        """
        files = {name: facts for found in written for name, facts in found["files"].items()}
        tensors = {kind: index_of([found["places"][kind] for found in written]) for kind in ("model", "optimizer")}
        files[TENSORS] = write_text(self.temporary / TENSORS, json.dumps(tensors))
        facts = {"step": self.step, "number": number, "world_size": self.world.world_size, "run": self.run}
        commit(self.temporary, dict(sorted(files.items())), **facts)

    # ----------------------------------------------------------------------------------------- in the background

    def copy(self) -> None:
        """Copy what was collected to the host's memory, so that training can continue while it is written."""
        for tensors in self._tensors.values():
            for name, value in tensors.items():
                tensors[name] = value.to("cpu", copy=True)
        self._plain = copy.deepcopy(self._plain)

    def start(self, part: Callable[[], Any], when_ended: Callable[[], None]) -> None:
        """Run a part of the save in a thread.

        Args:
            part: such as :meth:`write`; :meth:`result` returns what it returns.
            when_ended: called in the thread when the part has ended, also with an error.
        """
        self._made, self._problem = None, None
        self._ended.clear()

        def work() -> None:
            try:
                self._made = part()
            except BaseException as problem:  # raised by result()
                self._problem = problem
            self._tensors.clear()
            self._ended.set()
            when_ended()

        self._thread = threading.Thread(target=work, name=f"save {self.target.name}", daemon=True)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether this rank's thread has ended, also with an error."""
        return self._ended.is_set()

    def result(self) -> Any:
        """Wait for the thread, and return what its part returned or raise what it raised."""
        assert self._thread is not None, "a part was started"
        self._thread.join()
        if self._problem is not None:
            raise (
                self._problem
                if isinstance(self._problem, (OSError, CheckpointError))
                else CheckpointError(f"{type(self._problem).__name__}: {self._problem}")
            )
        return self._made
