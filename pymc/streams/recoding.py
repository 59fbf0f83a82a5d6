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
"""Recoding: the columns of another source in the codes and units of a first one."""

from collections.abc import Collection
from typing import Any

import numpy as np

from pymc.streams.encoders import TIME_UNITS
from pymc.streams.encoding import Encoding

Columns = dict[str, np.ndarray]


class Recoding:
    """Bring blocks of another source into the codes and units that a first source has.

    Parameters
    ----------
    own : Encoding or None
        How columns of the first source became numbers.
    other : Encoding or None
        How those of the other one did. Columns that it does not know come as they were: strings, or
        times.
    columns : collection of str or None
        The columns of the first source, where it has names for them: others come as they are.

    Raises
    ------
    TypeError, ValueError
        While recoding, if a value is not among the categories of the first source, or a column means
        something else there. The message names column and value.
    """

    def __init__(
        self, own: Encoding | None, other: Encoding | None, columns: Collection[str] | None = None
    ):
        self._columns = columns
        self._own, self._other = own, other
        self._categories = own.categories if own else {}
        self._units = own.units if own else {}
        self._other_categories = other.categories if other else {}
        self._other_units = other.units if other else {}

    def __call__(self, block: Columns) -> Columns:
        return {
            name: self._column(name, values, f"the source, column {name!r}")
            for name, values in block.items()
        }

    def _column(self, name: str, values: np.ndarray, what: str) -> np.ndarray:
        if self._columns is not None and name not in self._columns:
            return values
        if name in self._categories:
            return self._codes(name, values, what)
        if name in self._units:
            return self._times(name, values, what)
        meant = self._other_units.get(name, name in self._other_categories and "codes")
        if meant:
            raise TypeError(
                f"{what}: {meant}, where the rows of the model have numbers. Give the column in the "
                "numbers that they have, or have the model read it from the same kind of column."
            )
        return values

    def _codes(self, name: str, values: np.ndarray, what: str) -> np.ndarray:
        """Look values up in the categories of the first source."""
        assert self._own is not None
        if name in self._other_categories:
            levels = self._other_categories[name]
            if np.array_equal(levels, self._categories[name]):
                return values
            # Those that occur: others need not be known.
            used, places = np.unique(values, return_inverse=True)
            return self._own.encode(name, levels[used], what)[name][places]
        if values.dtype.kind in "biuf" and isinstance(self._categories[name][0], str):
            raise TypeError(
                f"{what}: numbers, where the rows of the model have keys such as "
                f"{self._categories[name][0]!r}. Give the keys: of codes that its own source gave, "
                f"source.categories[{name!r}][codes]."
            )
        return self._own.encode(name, values, what)[name]

    def _times(self, name: str, values: np.ndarray, what: str) -> np.ndarray:
        """Convert times, unless they are numbers already."""
        assert self._own is not None
        if name in self._other_categories:
            raise TypeError(
                f"{what}: keys such as {self._other_categories[name][0]!r}, where the rows of the "
                f"model have times, {self._units[name]}. Give times: pandas.to_datetime(column), say."
            )
        if name not in self._other_units:
            is_number = values.dtype.kind in "iuf"
            return values if is_number else self._own.encode(name, values, what)[name]
        unit, _, since = self._units[name].partition(" ")
        other_unit, _, other_since = self._other_units[name].partition(" ")
        if since != other_since:
            raise TypeError(
                f"{what}: {self._other_units[name]}, where the rows of the model have "
                f"{self._units[name]}. Give times with a time zone, or without, as these are."
            )
        own_ns, other_ns = TIME_UNITS[unit], TIME_UNITS[other_unit]
        return values / (own_ns / other_ns) if own_ns >= other_ns else values * (other_ns // own_ns)


def check_numbers(block: Any) -> None:
    """Refuse columns of a mapping that are no numbers."""
    for name, values in block.items():
        if values.dtype.kind not in "biuf":
            raise TypeError(
                f"the source, column {name!r}: not numeric ({values.dtype}), and the rows of the "
                "model have numbers there."
            )
