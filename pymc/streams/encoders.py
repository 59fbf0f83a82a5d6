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
"""Encoders: how one column of an Arrow table becomes numbers, by its type."""

import copy

from collections.abc import Set
from typing import Any

import numpy as np

from pandas.util import hash_array

from pymc.streams.blocks import arrow_to_numpy, check_exact, check_finite
from pymc.streams.position import checksum

# Nanoseconds in each unit of time, by the names that pandas gives them.
TIME_UNITS = {
    "D": 86_400 * 10**9,
    "h": 3_600 * 10**9,
    "min": 60 * 10**9,
    "s": 10**9,
    "ms": 10**6,
    "us": 10**3,
    "ns": 1,
}
# Arrow makes a hash table of categories in each call: of more than so many we keep their hashes.
FEW_LEVELS = 2**16
# Categories that are written out in a checkpoint, and in messages; of more there is a checksum.
LEVELS_TOLD = 20
# Up to here floats hold all integers.
EXACT = 2**53

Columns = dict[str, np.ndarray]


class Encoder:
    """How one column becomes numbers: by itself, as numbers, unless a subclass says otherwise.

    Attributes
    ----------
    name : str
        The column.
    dtypes : dict of str to dtype
        Columns that it becomes, and their types.
    """

    def __init__(self, name: str, dtypes: dict[str, np.dtype]):
        self.name, self.dtypes = name, dtypes

    def complete(self, column: Any) -> np.ndarray | None:
        """Tell which values are neither null nor NaN nor infinite; None if all are."""
        valid = None
        if column.null_count:
            valid = column.is_valid().to_numpy(zero_copy_only=False)
            column = column.fill_null(False if column.type == "bool" else 0)
        values = column.to_numpy(zero_copy_only=False)
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            return finite if valid is None else finite & valid
        return valid

    def __call__(self, column: Any, what: str) -> Columns:
        return {self.name: self._checked(arrow_to_numpy(column, what), self.name, what)}

    def _checked(self, values: np.ndarray, name: str, what: str) -> np.ndarray:
        check_finite(values, what)
        check_exact(values, self.dtypes[name], what)
        return values.astype(self.dtypes[name], copy=False)


class Converter(Encoder):
    """A column without NaN or infinite values, which is computed with."""

    def __init__(self, name: str, dtype: Any = np.float64):
        super().__init__(name, {name: np.dtype(dtype)})

    def complete(self, column: Any) -> np.ndarray | None:
        return column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else None

    def __call__(self, column: Any, what: str) -> Columns:
        check_no_nulls(column, what)
        return {self.name: self._converted(column, what)}

    def _converted(self, column: Any, what: str) -> np.ndarray:
        raise NotImplementedError


class Keys(Converter):
    """A column of keys: places in its categories.

    Parameters
    ----------
    name : str
        The column.
    arrow_type : pyarrow.DataType
        The type of its categories.
    unknown : value or None
        The category that stands for all values that are not among them.

    Attributes
    ----------
    type : pyarrow.DataType
        The type of its categories.
    levels : pyarrow.Array or None
        The categories, once they are known.
    """

    # Of many categories, in the order of their hashes: the hashes, and which ones they are of.
    _hashes: np.ndarray
    _order: np.ndarray

    def __init__(self, name: str, arrow_type: Any, unknown: Any):
        super().__init__(name, np.int32)
        self.type, self._unknown = arrow_type, unknown
        self.levels: Any = None

    def with_levels(self, levels: Any, what: str) -> "Keys":
        """Return the same with these categories, in their order."""
        import pyarrow as pa

        if isinstance(levels, str | bytes | Set):
            raise TypeError(f"{what}: its categories must be in an order, got {levels!r}.")
        other = copy.copy(self)
        other.levels = self._array(levels, what)
        if other.levels.null_count or len(other.levels.unique()) < len(other.levels):
            raise ValueError(f"{what}: its categories hold a null, or a value twice.")
        other._sort()
        if self._unknown is not None:
            rest = self._array([self._unknown], f"{what}, unknown={self._unknown!r}")
            if other._places(rest)[0] < 0:
                other.levels = pa.concat_arrays([other.levels, rest])
                other._sort()
        if len(other.levels) == 0:
            raise ValueError(f"{what}: it has no categories.")
        return other

    def _sort(self) -> None:
        if not self.has_few:
            hashes = _hashes(self.levels)
            self._order = np.argsort(hashes)
            self._hashes = hashes[self._order]

    def complete(self, column: Any) -> np.ndarray | None:
        return super().complete(_with_nulls_outside(column))

    def __call__(self, column: Any, what: str) -> Columns:
        return super().__call__(_with_nulls_outside(column), what)

    @property
    def has_few(self) -> bool:
        """Whether they are few, or not known yet."""
        return self.levels is None or len(self.levels) <= FEW_LEVELS

    @property
    def identity(self) -> dict[str, Any]:
        unknown = None if self._unknown is None else str(self._unknown)
        if len(self.levels) <= LEVELS_TOLD:
            return {"levels": list(map(str, self.levels.to_pylist())), "unknown": unknown}
        parts = [np.frombuffer(part, "u1") for part in self.levels.buffers() if part is not None]
        return {"n_levels": len(self.levels), "levels": checksum(parts), "unknown": unknown}

    def _converted(self, column: Any, what: str) -> np.ndarray:
        if not _is_dictionary(column.type):
            column = column.dictionary_encode()
        values, places = column.dictionary, column.indices.to_numpy(zero_copy_only=False)
        if len(values) > len(places):  # the dictionary is that of a row group
            used, places = np.unique(places, return_inverse=True)
            values = values.take(used)
        codes = self._places(self._array(values, what))
        if self._unknown is not None:
            codes[codes < 0] = self._places(self._array([self._unknown], what))[0]
        codes = codes.take(places)
        if len(codes) and codes.min() < 0:
            self._refuse(column[int(codes.argmin())].as_py(), what)
        return codes

    def _places(self, values: Any) -> np.ndarray:
        """Look up values, those that are not there as -1."""
        import pyarrow.compute as pc

        if self.has_few:
            found = pc.index_in(values, value_set=self.levels)
            return found.fill_null(-1).to_numpy(zero_copy_only=False).copy()
        last = len(self.levels) - 1
        places = self._order[np.minimum(np.searchsorted(self._hashes, _hashes(values)), last)]
        same = pc.equal(self.levels.take(places), values).to_numpy(zero_copy_only=False)
        return np.where(same, places, -1).astype(np.int32)

    def _array(self, values: Any, what: str) -> Any:
        import pyarrow as pa

        try:
            if not isinstance(values, pa.Array):
                values = list(values)  # whose own type tells what a cast would change
                values = pa.array(values) if values else pa.array([], self.type)
            if is_string(values.type) != is_string(self.type):  # which Arrow would parse
                raise TypeError(f"{values.type}, such as {values[0]}")
            return values.cast(self.type)
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise TypeError(f"{what}: values that are no {self.type}: {error}") from error

    def _refuse(self, value: Any, what: str) -> None:
        n_levels = len(self.levels)
        told = (
            f" ({', '.join(map(str, self.levels.to_pylist()))})" if n_levels <= LEVELS_TOLD else ""
        )
        raise ValueError(
            f"{what}: the value {value!r} is not among its {n_levels:,} categories{told}. Have one "
            'category stand for all such values, unknown="other", or give those of all rows that '
            f"there are, categories={{{self.name!r}: [...]}}: of parquet_source, or of table_source."
        )


class Times(Converter):
    """A column of times: numbers of a unit, in UTC where they know their time zone."""

    def __init__(self, name: str, arrow_type: Any, time_unit: str):
        super().__init__(name)
        self._unit, self._since = TIME_UNITS[time_unit], _since(arrow_type)
        self.unit = f"{time_unit}{self._since}"

    def _converted(self, column: Any, what: str) -> np.ndarray:
        import pyarrow as pa
        import pyarrow.types as pt

        if not pt.is_temporal(column.type) or _since(column.type) != self._since:
            raise TypeError(f"{what}: values of type {column.type}, which are not in {self.unit}.")
        is_date = column.type == "date32"
        tick = TIME_UNITS["D" if is_date else getattr(column.type, "unit", "ms")]
        ticks = column.cast(pa.int32() if column.type.bit_width == 32 else pa.int64())
        values = ticks.to_numpy(zero_copy_only=False).astype(np.float64)
        # By whole numbers, so that what is exact stays so.
        return (
            values / (self._unit // tick) if self._unit >= tick else values * (tick // self._unit)
        )


class Decimals(Converter):
    """A column of decimal numbers: the nearest floats."""

    def __init__(self, name: str, exact: bool):
        super().__init__(name)
        self._exact = exact

    def _converted(self, column: Any, what: str) -> np.ndarray:
        import pyarrow as pa

        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        if column.type.precision <= 38 and column.type.scale >= 0:
            # Arrow rounds twice: whole numbers of the last digit do not, where a float holds them.
            digits = column.cast(pa.decimal128(38, column.type.scale))
            low, high = np.frombuffer(digits.buffers()[1], "<i8").reshape(-1, 2).T
            rows = slice(digits.offset, digits.offset + len(digits))
            low, high = low[rows], high[rows]
            fits = (high == low >> 63) & (low >= -EXACT) & (low <= EXACT)
            values = np.where(fits, low / 10.0**column.type.scale, values)
        if self._exact:
            try:
                same = pa.array(values).cast(column.type).equals(column)
            except pa.ArrowException:  # beyond the digits of the type
                same = False
            if not same:
                raise ValueError(
                    f"{what}: numbers of type {column.type} that floats do not hold. Round them, "
                    'decimals="round" of parquet_source or table_source, or write them with fewer '
                    "digits."
                )
        return values


class Lists(Encoder):
    """A column of lists of one length: as many columns of numbers."""

    def __init__(self, name: str, arrow_type: Any):
        dtype = np.dtype(arrow_type.value_type.to_pandas_dtype())
        super().__init__(name, {f"{name}[{i}]": dtype for i in range(arrow_type.list_size)})

    def complete(self, column: Any) -> np.ndarray | None:
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        values = column.drop_null().flatten()
        if len(self.dtypes):
            keep = super().complete(values)
            if keep is not None:
                valid[valid] = keep.reshape(-1, len(self.dtypes)).all(axis=1)
        return valid

    def __call__(self, column: Any, what: str) -> Columns:
        check_no_nulls(column, what)
        if getattr(column.type, "list_size", None) != len(self.dtypes):
            raise TypeError(
                f"{what}: values of type {column.type}, where the first ones were lists of "
                f"{len(self.dtypes)} numbers each."
            )
        values = arrow_to_numpy(column.flatten(), what).reshape(len(column), len(self.dtypes))
        return {name: self._checked(values[:, i], name, what) for i, name in enumerate(self.dtypes)}


def encoder_of(
    name: str, arrow_type: Any, levels: Any, unknown: Any, time_unit: str, decimals: str, what: str
) -> Encoder:
    """Choose how a column of a type becomes numbers."""
    import pyarrow as pa
    import pyarrow.types as pt

    value_type = arrow_type.value_type if _is_dictionary(arrow_type) else arrow_type
    if is_string(value_type):
        value_type = pa.large_string()
    if levels is not None or _is_dictionary(arrow_type) or value_type == "large_string":
        if pt.is_floating(value_type) or pt.is_nested(value_type) or pt.is_null(value_type):
            raise TypeError(f"{what}: categories of type {value_type}, which are no keys.")
        keys = Keys(name, value_type, unknown)
        return keys if levels is None else keys.with_levels(levels, what)
    if _is_number(arrow_type):
        return Encoder(name, {name: np.dtype(arrow_type.to_pandas_dtype())})
    if pt.is_temporal(arrow_type) and not pt.is_interval(arrow_type):
        return Times(name, arrow_type, time_unit)
    if pt.is_decimal(arrow_type):
        return Decimals(name, decimals == "exact")
    if pt.is_fixed_size_list(arrow_type) and _is_number(arrow_type.value_type):
        return Lists(name, arrow_type)
    way_out = "write it as a number"
    if pt.is_struct(arrow_type):
        way_out = "write each of its fields as a column"
    elif pt.is_nested(arrow_type):
        way_out = "write it as a list of one length, pa.list_(pa.float64(), 3)"
    elif pt.is_binary(arrow_type) or pt.is_large_binary(arrow_type):
        way_out = "write it as a string, column.cast(pa.string())"
    raise TypeError(
        f"{what} is not numeric ({arrow_type}). Name the columns to read with columns=[...], or "
        f"{way_out}."
    )


def common_type(one: Any, other: Any) -> Any:
    """Return a type for values of both types, or None where they become different numbers."""
    import pyarrow as pa
    import pyarrow.types as pt

    if one.equals(other):
        return one
    if _is_number(one) and _is_number(other):
        dtypes = one.to_pandas_dtype(), other.to_pandas_dtype()
        return pa.from_numpy_dtype(np.result_type(*dtypes))
    if pt.is_fixed_size_list(one) and pt.is_fixed_size_list(other):
        of_both = common_type(one.value_type, other.value_type)
        same_size = one.list_size == other.list_size
        return pa.list_(of_both, one.list_size) if of_both and same_size else None
    if _is_dictionary(one) or _is_dictionary(other):
        values = [t.value_type if _is_dictionary(t) else t for t in (one, other)]
        of_both = common_type(*values)
        return of_both and pa.dictionary(pa.int32(), of_both)
    if is_string(one) and is_string(other):
        return pa.large_string()
    if pt.is_decimal(one) and pt.is_decimal(other):
        return one
    if pt.is_temporal(one) and pt.is_temporal(other):
        return one if _since(one) == _since(other) else None
    return None


def check_no_nulls(column: Any, what: str) -> None:
    if column.null_count:
        arrow_to_numpy(column, what)


def _is_number(arrow_type: Any) -> bool:
    import pyarrow.types as pt

    return pt.is_integer(arrow_type) or pt.is_floating(arrow_type) or pt.is_boolean(arrow_type)


def _since(arrow_type: Any) -> str:
    """Say since when times of a type are counted."""
    import pyarrow.types as pt

    if pt.is_time(arrow_type):
        return " since midnight"
    if pt.is_duration(arrow_type):
        return ""
    zoned = pt.is_timestamp(arrow_type) and arrow_type.tz is not None
    return " since 1970-01-01 UTC" if zoned else " since 1970-01-01"


def is_string(arrow_type: Any) -> bool:
    import pyarrow.types as pt

    return (
        pt.is_string(arrow_type) or pt.is_large_string(arrow_type) or pt.is_string_view(arrow_type)
    )


def _is_dictionary(arrow_type: Any) -> bool:
    import pyarrow.types as pt

    return pt.is_dictionary(arrow_type)


def one_chunk(column: Any) -> Any:
    """Return a column as one array, without a copy where it is one."""
    if not hasattr(column, "combine_chunks"):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _with_nulls_outside(column: Any) -> Any:
    """Return a column whose dictionary, where it has one, holds no null."""
    if _is_dictionary(column.type) and column.dictionary.null_count:
        return column.dictionary_decode()
    return column


def distinct(column: Any) -> Any:
    """Return the values that occur in a column, once each, without null."""
    import pyarrow as pa

    values = column.unique()
    if _is_dictionary(values.type):
        values = values.dictionary_decode()
    values = values.drop_null()
    return values.cast(pa.large_string()) if is_string(values.type) else values


def _hashes(values: Any) -> np.ndarray:
    """Hash values to 64 bits, some at a time, as strings become objects on the way."""
    hashes = np.empty(len(values), dtype=np.uint64)
    for start in range(0, len(values), FEW_LEVELS):
        some = values.slice(start, FEW_LEVELS).to_numpy(zero_copy_only=False)
        hashes[start : start + FEW_LEVELS] = hash_array(some, categorize=False)
    return hashes
