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
"""Encoding: how the columns of Arrow tables become numbers."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from pymc.streams.encoders import (
    TIME_UNITS,
    Columns,
    Encoder,
    Keys,
    Times,
    common_type,
    distinct,
    encoder_of,
    is_string,
    one_chunk,
)

# Distinct values that are put together at a time, at least.
MERGED_AT_ONCE = 2**16


class Encoding:
    """How the columns of an Arrow schema become numbers.

    ============================================= ==============================================
    Arrow type                                    what it becomes
    ============================================= ==============================================
    integer, float, boolean                       the same
    string, dictionary; any other with categories ``int32``: places in the column's categories
    timestamp, date, time, duration               ``float64``: a number of time units
    decimal                                       ``float64``
    fixed-size list of k numbers                  k columns: ``x[0]``, ``x[1]``, ...
    ============================================= ==============================================

    Attributes
    ----------
    columns : tuple of str
        The columns that come out.
    raw_columns : tuple of str
        Those that go in.
    dtypes : dict of str to dtype
        The type of each column that comes out.
    categories : dict of str to ndarray
        Of each column of codes its categories: code ``i`` stands for the ``i``-th one.
    units : dict of str to str
        Of each column of times its unit: ``"s"``, or ``"s since 1970-01-01 UTC"``.
    unfound : tuple of str
        Columns whose categories are not known yet: see :class:`Categories`.
    as_dictionaries : tuple of str
        Columns of strings that are best read as dictionaries, as their values are few.
    identity : dict
        What makes the numbers mean the same, as plain values; empty where all columns are numbers.
    """

    def __init__(self, encoders: Iterable["Encoder"]):
        self._encoders = {encoder.name: encoder for encoder in encoders}
        self.raw_columns = tuple(self._encoders)
        self.dtypes = {c: t for e in self._encoders.values() for c, t in e.dtypes.items()}
        self.columns = tuple(self.dtypes)
        if len(self.columns) < sum(len(e.dtypes) for e in self._encoders.values()):
            raise ValueError(f"two columns have the same name: {list(self._encoders)}.")
        keys = [e for e in self._encoders.values() if isinstance(e, Keys)]
        self.unfound = tuple(encoder.name for encoder in keys if encoder.levels is None)
        self.as_dictionaries = tuple(k.name for k in keys if is_string(k.type) and k.has_few)
        self.units = {e.name: e.unit for e in self._encoders.values() if isinstance(e, Times)}

    def __str__(self) -> str:
        kinds = {name: f" ({len(levels):,} categories)" for name, levels in self.categories.items()}
        kinds |= {name: f" ({unit})" for name, unit in self.units.items()}
        return ", ".join(f"{name}{kinds.get(name, '')}" for name in self.columns)

    @classmethod
    def of(
        cls,
        schema: Any,
        columns: Sequence[str] | None = None,
        *,
        categories: Mapping[str, Any] | None = None,
        unknown: Any = None,
        time_unit: str = "s",
        decimals: str = "exact",
        where: Any,
    ) -> "Encoding":
        """Choose how each column of a schema becomes numbers.

        Parameters
        ----------
        schema : pyarrow.Schema
            Names and types.
        columns : sequence of str, optional
            The columns to encode, in this order. Default: all.
        categories : mapping of str to sequence, optional
            Categories of columns, in the order of their codes. Names that are not among the columns
            are passed over, so that those of another source will do.
        unknown : value, or mapping of str to value, optional
            The category that stands for values that are not among the categories, which comes last
            unless it is one of them. Default: such a value is an error.
        time_unit : {"s", "D", "h", "min", "ms", "us", "ns"}
            Unit of times.
        decimals : {"exact", "round"}
            Whether a decimal number that a float does not hold is an error.
        where : object
            What messages call the place of the schema: a file.

        Raises
        ------
        TypeError
            If a type cannot become numbers. The message names the column.
        ValueError
            If a column is missing, or an argument has no meaning.
        """
        if time_unit not in TIME_UNITS:
            raise ValueError(f"time_unit must be one of {list(TIME_UNITS)}, got {time_unit!r}.")
        if decimals not in ("exact", "round"):
            raise ValueError(f'decimals must be "exact" or "round", got {decimals!r}.')
        columns = schema.names if columns is None else list(columns)
        strange = set(unknown) - set(columns) if isinstance(unknown, Mapping) else set()
        if strange:
            raise ValueError(f"unknown= names {sorted(strange)}, which are not among {columns}.")
        schema = joined_schema([(where, schema)], columns)
        encoders = []
        for name in columns:
            levels = (categories or {}).get(name)
            other = unknown.get(name) if isinstance(unknown, Mapping) else unknown
            arrow_type = schema.field(name).type
            what = f"{where}: column {name!r}"
            encoders.append(encoder_of(name, arrow_type, levels, other, time_unit, decimals, what))
        return cls(encoders)

    @cached_property
    def categories(self) -> dict[str, np.ndarray]:
        return {
            name: encoder.levels.to_numpy(zero_copy_only=False)
            for name, encoder in self._encoders.items()
            if isinstance(encoder, Keys) and encoder.levels is not None
        }

    @property
    def identity(self) -> dict[str, Any]:
        keys = {n: e.identity for n, e in self._encoders.items() if isinstance(e, Keys)}
        told = {"categories": keys, "units": self.units}
        return {name: of_columns for name, of_columns in told.items() if of_columns}

    def with_categories(self, found: Mapping[str, Any]) -> "Encoding":
        """Return the same with categories for columns that have none yet."""
        return Encoding(
            e.with_levels(found[n], f"column {n!r}") if isinstance(e, Keys) and n in found else e
            for n, e in self._encoders.items()
        )

    def select(self, columns: Iterable[str]) -> "Encoding":
        """Return the same for some of the columns that go in."""
        return Encoding(self._encoders[name] for name in columns)

    def __call__(
        self, batch: Any, where: str, drop: bool = False
    ) -> tuple[Columns, np.ndarray | None]:
        """Turn a record batch or table into checked columns of numbers.

        Parameters
        ----------
        batch : pyarrow.RecordBatch or pyarrow.Table
            Rows.
        where : str
            What messages call their place.
        drop : bool
            Whether to leave out rows that hold a null, a NaN or an infinite value, instead of
            raising an error.

        Returns
        -------
        block : dict of str to ndarray
            The columns, each of shape ``(rows,)``.
        kept : ndarray of bool, or None
            Which rows are left; None if all are.
        """
        arrays = {name: one_chunk(batch.column(name)) for name in self.raw_columns}
        kept = None
        if drop:
            rows = [encoder.complete(arrays[name]) for name, encoder in self._encoders.items()]
            told = [keep for keep in rows if keep is not None]
            if told and not (kept := np.logical_and.reduce(told)).all():
                arrays = {name: array.filter(kept) for name, array in arrays.items()}
            else:
                kept = None
        block: Columns = {}
        for name, encoder in self._encoders.items():
            block |= encoder(arrays[name], f"{where}, column {name!r}")
        return block, kept

    def encode(self, name: str, values: Any, what: str) -> Columns:
        """Turn one column, an array of NumPy or Arrow, into checked columns of numbers."""
        import pyarrow as pa

        if not isinstance(values, pa.Array | pa.ChunkedArray):
            try:
                values = pa.array(values, from_pandas=True)
            except pa.ArrowException as error:
                raise TypeError(f"{what}: values of several types: {error}") from error
        return self._encoders[name](one_chunk(values), what)


class Categories:
    """The distinct values of columns, found in a pass over all rows.

    Parameters
    ----------
    names : sequence of str
        The columns: those that are ``unfound`` in an encoding.
    """

    def __init__(self, names: Sequence[str]):
        self._parts: dict[str, list[Any]] = {name: [] for name in names}
        self._merged = dict.fromkeys(names, 0)

    def add(self, batch: Any) -> "Categories":
        """Take in the rows of a record batch or table."""
        for name in self._parts:
            self._add(name, distinct(one_chunk(batch.column(name))))
        return self

    def join(self, other: "Categories") -> "Categories":
        """Take in what was found in other rows."""
        for name, parts in other._parts.items():
            for part in parts:
                self._add(name, part)
        return self

    def found(self) -> dict[str, Any]:
        """Return the categories of each column, sorted: strings by their code points."""
        import pyarrow.compute as pc

        for name in self._parts:
            self._merge(name)
        return {n: part.take(pc.sort_indices(part)) for n, (part,) in self._parts.items()}

    def _add(self, name: str, values: Any) -> None:
        parts = self._parts[name]
        parts.append(values)
        # Merged when they have doubled, so that each value is moved a few times only.
        if sum(map(len, parts)) > 2 * self._merged[name] + MERGED_AT_ONCE:
            self._merge(name)

    def _merge(self, name: str) -> None:
        import pyarrow as pa

        self._parts[name] = [pa.concat_arrays(self._parts[name]).unique()]
        self._merged[name] = len(self._parts[name][0])


def joined_schema(schemas: Iterable[tuple[Any, Any]], columns: Iterable[str]) -> Any:
    """Return a schema of columns that holds those of several places.

    Parameters
    ----------
    schemas : iterable of (place, pyarrow.Schema)
        Files, say, and their columns.
    columns : iterable of str
        The columns.

    Raises
    ------
    TypeError, ValueError
        If a column is missing somewhere, or becomes other numbers there than in the first place.
    """
    import pyarrow as pa

    types: dict[str, Any] = {}
    first_place = None
    for place, schema in schemas:
        counts = Counter(schema.names)
        for name in columns:
            if counts[name] != 1:
                trouble = "no column" if counts[name] == 0 else "more than one column"
                raise ValueError(f"{place}: {trouble} {name!r}; it has {schema.names}.")
            here = schema.field(name).type
            before = types.setdefault(name, here)
            both = common_type(before, here)
            if both is None:
                raise TypeError(
                    f"{place}: column {name!r} is of type {here}, and of type {before} in "
                    f"{first_place}. Write it in one type."
                )
            types[name] = both
        first_place = first_place or place
    return pa.schema(list(types.items()))
