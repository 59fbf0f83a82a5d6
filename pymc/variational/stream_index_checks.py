#   Copyright 2026 - present The PyMC Developers
#
#   Licensed under the Apache License, Version 2.0 (the "License");
#   you may not use this file except in compliance with the License.
#   You may obtain a copy of the License at
#
#       http://www.apache.org/licenses/LICENSE-2.0
#
#   Unless required by applicable law or agreed to in writing, software
#   distributed under the License is distributed on an "AS IS" BASIS,
#   WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
#   See the License for the specific language governing permissions and
#   limitations under the License.
"""Checks of indices without an entry in the batches of a stream, wherever a batch is read."""

import threading

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytensor

from pytensor.graph.basic import Variable

# By array and column of a batch, entries and name of what a column is an index into.
Bounds = dict[tuple[int, int], tuple[int, str]]


class ComputedIndex:
    """The smallest and the largest value of an index that is computed from a batch.

    Parameters
    ----------
    stream : str
        The stream's name.
    places : list of int
        Which arrays of a batch it is computed from.
    inputs : list of Variable
        What stands for them.
    index : Variable
        What it is, given them.
    size : int
        Entries of what it is an index into.
    who : str
        The name of that.
    """

    def __init__(
        self,
        stream: str,
        places: list[int],
        inputs: list[Variable],
        index: Variable,
        size: int,
        who: str,
    ):
        self._stream, self._places, self._size, self._who = stream, places, size, who
        self._graph = inputs, [index.min(), index.max()]
        self.__setstate__({})

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_limits", "_one_at_a_time")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._limits = pytensor.function(*self._graph, mode="FAST_COMPILE")
        self._one_at_a_time = threading.Lock()  # passes check in threads

    def __call__(self, batch: Sequence[np.ndarray]) -> None:
        with self._one_at_a_time:
            low, high = self._limits(*(batch[place] for place in self._places))
        # One that counts from the end was meant, as in pt.switch(g > 0, effect[g - 1], 0).
        if low < -self._size or high >= self._size:
            raise ValueError(
                f"stream {self._stream!r}: the value {high if high >= self._size else low} as an "
                f"index into `{self._who}`, computed from its columns; `{self._who}` has "
                f"{self._size} entries along that axis: 0 to {self._size - 1}. Recode the column, or "
                f"give `{self._who}` as many entries as there are levels."
            )


@dataclass(frozen=True)
class IndexChecks:
    """Refuse batches of a stream that hold an index without an entry.

    Attributes
    ----------
    stream : str
        The stream's name.
    columns : tuple of str or None
        Names of its columns.
    is_tuple : bool
        Whether a batch is several arrays.
    bounds : dict
        By array and column of a batch, entries and name of what a column is an index into.
    computed : sequence of callable
        What checks indices that are computed from a batch.
    """

    stream: str
    columns: tuple[str, ...] | None
    is_tuple: bool
    bounds: Bounds = field(default_factory=dict)
    computed: Sequence[Callable[[Sequence[np.ndarray]], None]] = ()

    def __call__(self, batch: Sequence[np.ndarray]) -> None:
        for (array, column), (size, who) in self.bounds.items():
            index = batch[array].reshape(len(batch[array]), -1)[:, column]
            if not (0 <= index.min() and index.max() < size):
                self._refuse(index, array, column, size, who)
        for check in self.computed:
            check(batch)

    def _refuse(self, index: np.ndarray, array: int, column: int, size: int, who: str) -> None:
        wrong = index[(index < 0) | (index >= size)][0]
        if self.columns is not None:
            label = f"column {self.columns[column]!r}"
        else:
            label = f"column {column}" + (f" of array {array}" if self.is_tuple else "")
        raise ValueError(
            f"stream {self.stream!r}, {label}: the value {wrong:.10g} as an index into `{who}`, which "
            f"has {size} entries along that axis: 0 to {size - 1}. Recode the column, or give `{who}` "
            "as many entries as there are levels; -1 is pandas' code for a missing value."
        )
