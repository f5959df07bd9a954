"""Data sets that add to each sequence what the run knows of it: its evaluation set, and the reference's results."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from hooktrain import Data, Dataset, DatasetDefaults, member

__all__ = ["REFERENCE", "SET", "AnswerRows", "rows_of", "with_answer_rows"]

REFERENCE = "reference_log_probs"
"""Key of a sequence and of a micro-batch with the reference's log-probability of each answer."""
SET = "evaluation_set"
"""Key of a sequence and of a micro-batch with the name of its evaluation set; nothing in training."""


class AnswerRows:
    """A data set whose sequences have the reference's log-probabilities, once these are known.

    Args:
        inner: the data set.
        name: of the evaluation set; empty for the training set.
    """

    def __init__(self, inner: Dataset, name: str) -> None:
        self.inner, self.name = inner, name
        self._values: NDArray[np.float32] | None = None
        self._offsets: NDArray[np.int64] = np.zeros(1, np.int64)

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> dict[str, Any]:
        made = {**self.inner[index], SET: self.name}
        if self._values is not None:
            index %= len(self)
            made[REFERENCE] = self._values[self._offsets[index] : self._offsets[index + 1]]
        return made

    def row_name(self, row: int) -> str:
        """Return the examples of a sequence, as :class:`hooktrain.DatasetDefaults` says."""
        return str(member(self.inner, DatasetDefaults, "row_name")(row))

    def keep(self, values: NDArray[np.float32], counts: NDArray[np.int64]) -> None:
        """Take the reference's log-probabilities of all answers.

        Args:
            values: of the answers of all sequences, in order, shape (answers,).
            counts: answers of each sequence, shape (sequences,).
        """
        self._values, self._offsets = values, np.concatenate([[0], np.cumsum(counts)])


def with_answer_rows(data: Data) -> Data:
    """Return data whose sets are :class:`AnswerRows`."""
    evaluation = {name: AnswerRows(rows, name) for name, rows in data.evaluation.items()}
    return attrs.evolve(data, train=AnswerRows(data.train, ""), evaluation=evaluation)


def rows_of(dataset: Any) -> AnswerRows | None:
    """Return the :class:`AnswerRows` of a data set, if it is one."""
    return dataset if isinstance(dataset, AnswerRows) else None
