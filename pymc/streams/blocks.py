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
"""Blocks: the form in which rows come out of a source.

Sources and shuffles know nothing of PyTensor or of models.
"""

import copy
import math
import operator
import re

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pymc.streams.position import checksum

if TYPE_CHECKING:
    from pymc.streams.encoding import Encoding

Block = np.ndarray | dict[str, np.ndarray] | tuple[np.ndarray, ...]

# Rows in a slice of a source that is one array: a view, so only copies downstream cost memory.
SLICE_ROWS = 65_536
# Bytes of a slice that is read from disk, unless a chunk there is larger.
SLICE_BYTES = 2**25
# Rows of an array that tell whether it is still the same: so many samples, spread evenly.
SAMPLES, SAMPLE_ROWS = 16, 256
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def positive_int(value: Any, name: str) -> int:
    """Return a size given by the user as a Python int, or say what is wrong with it."""
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    size = operator.index(value)
    if size < 1:
        raise ValueError(f"{name} must be at least 1, got {size}.")
    return size


def bytes_of(memory: Any, name: str, at_least: int = 0) -> int:
    """Return an amount of memory given by the user in bytes, or say what is wrong with it."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(memory), re.ASCII)
    unit = match and UNITS.get((match[2] or "B").upper())
    if not match or not unit or isinstance(memory, bool):
        raise ValueError(f'{name} must be bytes or, say, "256MB"; got {memory!r}.')
    n_bytes = int(float(match[1]) * unit)
    if n_bytes < at_least:
        raise ValueError(f"{name} must be at least {at_least / 1e6:g} MB, got {memory!r}.")
    return n_bytes


def check_exact(values: np.ndarray, dtype: np.dtype, what: str) -> None:
    """Raise if casting ``values`` to ``dtype`` changes one of them, rounding of floats aside."""
    source = values.dtype
    if (
        values.size == 0
        or source == dtype
        or source.kind == "b"
        or source.kind == dtype.kind == "f"
    ):
        return
    low, high = _exact_range(dtype)
    if source.kind in "iu":
        if low <= _exact_range(source)[0] and _exact_range(source)[1] <= high:
            return
        if low <= values.min() and values.max() <= high:
            return
        changed = (values < low) | (values > high)
        if dtype.kind == "f":
            # Beyond the range some integers are exact, as 2**53 + 2 is. 2**63 wraps when it is
            # cast back, and could compare equal.
            cast = values.astype(dtype)
            with np.errstate(invalid="ignore"):
                wraps = cast >= 2.0 ** (8 * source.itemsize - (source.kind == "i"))
                changed &= wraps | (cast.astype(source) != values)
    else:
        changed = ~((values >= low) & (values < high + 1.0) & (np.trunc(values) == values))
    if changed.any():
        raise ValueError(
            f"{what}: {values[changed].flat[0]} cannot be held exactly as {dtype}. Use a wider "
            "dtype, or recode the values in the source (identifiers to 0, 1, 2, ...; numbers that "
            "need not be exact to floats)."
        )


def check_finite(values: np.ndarray, what: str) -> None:
    """Raise if a value is NaN or infinite: the likelihood would be, and with it the fit."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int(np.count_nonzero(~np.isfinite(values)))
        raise ValueError(
            f"{what}: {count} NaN or infinite value(s). Fill or drop these rows before streaming; "
            'missing="drop" of parquet_source or table_source drops them.'
        )


@cache
def _exact_range(dtype: np.dtype) -> tuple[int, int]:
    """Return the ends of the range in which ``dtype`` holds every integer."""
    if dtype.kind == "f":
        limit = 2 ** (np.finfo(dtype).nmant + 1)
        return -limit, limit
    return (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


def arrow_to_numpy(column: Any, what: str) -> np.ndarray:
    """Convert an Arrow column, without a copy where Arrow can."""
    if column.null_count:
        raise ValueError(
            f"{what}: {column.null_count} null value(s). Fill or drop these rows before "
            'streaming; missing="drop" of parquet_source or table_source drops them.'
        )
    return column.to_numpy(zero_copy_only=False)


def _array(values: Any, what: str, numeric: bool = True, whole: bool = False) -> Any:
    """Check what should be an array, and convert it, unless it is a whole one on disk."""
    if np.ma.isMaskedArray(values) and np.ma.getmaskarray(values).any():
        raise ValueError(f"{what}: masked values. Fill or drop these rows before streaming.")
    array = values if whole and is_on_disk(values) else np.asarray(values)
    if numeric and array.dtype.kind not in "biuf":
        raise TypeError(
            f"{what}: not numeric ({type(values).__name__}, dtype {array.dtype}). A block is an "
            "array (rows, ...), a mapping from column name to array (rows,), an Arrow table or "
            "record batch, a pandas DataFrame, or a tuple of arrays, of numbers or booleans; "
            "table_source(lambda: ...) makes numbers of the keys and times in tables."
        )
    if array.ndim == 0:
        raise ValueError(f"{what}: a single number. A block needs a leading dimension of rows.")
    return array


def is_arrow(block: Any) -> bool:
    """Tell a table that exports Arrow data (pyarrow, polars) from a reader, which is iterated."""
    exports = hasattr(block, "schema") and hasattr(block, "__arrow_c_stream__")
    return exports and not hasattr(block, "__next__")


def is_on_disk(array: Any) -> bool:
    """Tell an array that is read where it is sliced, of h5py, zarr or Dask, from one in memory."""
    # An xarray.DataArray has chunks and coordinates, and is in memory as a rule.
    return is_array(array) and hasattr(type(array), "chunks") and not hasattr(type(array), "coords")


def to_block(block: Any, where: str, numeric: bool = True, whole: bool = False) -> Block:
    """Bring what a source gave into one of the three plain forms, and check it.

    Unless ``numeric``, its values may be strings or objects. Of a ``whole`` source, arrays on disk
    stay there.
    """
    _refuse_rows(block, where)
    if is_arrow(block):
        if not hasattr(block, "column"):
            import pyarrow

            block = pyarrow.table(block)
        block = {
            name: arrow_to_numpy(block.column(i), f"{where}, column {name!r}")
            for i, name in enumerate(block.schema.names)
        }
    plain: Block
    if isinstance(block, Mapping | pd.DataFrame):
        plain = {
            str(name): _array(block[name], f"{where}, column {name!r}", numeric, whole)
            for name in block
        }
        wrong = [f"{name!r} {values.shape}" for name, values in plain.items() if values.ndim != 1]
        if wrong:
            raise ValueError(f"{where}: columns must have shape (rows,): {', '.join(wrong)}.")
        if len(plain) != len(list(block)):
            raise ValueError(f"{where}: two columns have the same name.")
    elif isinstance(block, tuple | list):
        plain = tuple(
            _array(values, f"{where}, array {i}", numeric, whole) for i, values in enumerate(block)
        )
    else:
        return _array(block, where, numeric)
    if len(plain) == 0:
        raise ValueError(f"{where}: no columns.")
    lengths = [values.shape[0] for values in parts_of(plain)]
    if len(set(lengths)) > 1:
        raise ValueError(f"{where}: columns of different lengths: {lengths}.")
    return plain


def _refuse_rows(block: Any, where: str) -> None:
    """Refuse rows of single values, a database cursor's say, which would pass for columns."""
    if isinstance(block, Mapping):
        one_row = len(block) > 0 and all(map(_is_single, block.values()))
    elif isinstance(block, tuple | list) and len(block) > 0:
        one_row = all(map(_is_single, block))
        if not one_row and not any(hasattr(part, "shape") for part in block):
            kind = type(block[0]).__name__
            raise TypeError(
                f"{where}: a {type(block).__name__} of {len(block)} rows, of type {kind}. Make columns "
                "of them: pandas.DataFrame(rows, columns=[...])."
            )
    else:
        return
    if one_row:
        raise TypeError(
            f"{where}: a single row, a {type(block).__name__} of values. A block has many rows: "
            "for rows in itertools.batched(source, 10_000): yield pandas.DataFrame(rows, columns=[...])."
        )


def _is_single(value: Any) -> bool:
    if hasattr(value, "shape"):
        return value.shape == ()
    return isinstance(value, str | bytes) or not hasattr(value, "__len__")


def parts_of(block: Block) -> list[np.ndarray]:
    """List the arrays of a block; each has the same leading length."""
    if isinstance(block, dict):
        return list(block.values())
    return list(block) if isinstance(block, tuple) else [block]


def n_rows_of(block: Block) -> int:
    return parts_of(block)[0].shape[0]


@dataclass(frozen=True)
class BlockFormat:
    """What all blocks of a source have in common, frozen at the first one.

    Attributes
    ----------
    kind : type
        ``np.ndarray``, ``dict`` (columns) or ``tuple``.
    names : tuple of str
        Names of the columns in their frozen order; empty unless ``kind`` is ``dict``.
    dtypes, shapes : tuple
        Type and row shape of each array in a block.
    """

    kind: type
    names: tuple[str, ...]
    dtypes: tuple[np.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, block: Block) -> "BlockFormat":
        parts = parts_of(block)
        return cls(
            kind=dict
            if isinstance(block, dict)
            else tuple
            if isinstance(block, tuple)
            else np.ndarray,
            names=tuple(block) if isinstance(block, dict) else (),
            dtypes=tuple(part.dtype for part in parts),
            shapes=tuple(part.shape[1:] for part in parts),
        )

    def label(self, i: int) -> str:
        if self.names:
            return f"column {self.names[i]!r}"
        return f"array {i}" if self.kind is tuple else "array"

    def column_names(self, names: tuple[str, ...] | None = None) -> list[str]:
        """Name each number in a row, by the columns' names where they have any."""
        if self.names or (names is not None and self.kind is np.ndarray):
            return list(self.names or names or ())
        labels = []
        for i, shape in enumerate(self.shapes):
            array = f"array {i}" if self.kind is tuple else "array"
            cells = list(np.ndindex(shape))
            labels += [f"{array}[{', '.join(map(str, cell))}]" if cell else array for cell in cells]
        return labels

    def split(self, block: Block) -> list[np.ndarray]:
        """Return the arrays of a block in frozen order, or say how the block differs."""
        other = BlockFormat.of(block)
        if other == self:
            return parts_of(block)
        if other.kind is not self.kind:
            raise TypeError(
                f"a block of the stream is a {other.kind.__name__}, the first one was a "
                f"{self.kind.__name__}."
            )
        if set(other.names) != set(self.names):
            raise ValueError(
                f"a block of the stream has the columns {list(other.names)}, the first one had "
                f"{list(self.names)}."
            )
        if isinstance(block, dict):
            block = {name: block[name] for name in self.names}
        parts = parts_of(block)
        if tuple(part.shape[1:] for part in parts) != self.shapes:
            raise ValueError(
                f"a block of the stream has rows of shape {[p.shape[1:] for p in parts]}, the "
                f"first one had {list(self.shapes)}. A block is an array (rows, ...): stack rows "
                "that come one by one."
            )
        return parts

    def join(self, parts: list[np.ndarray]) -> Block:
        if self.kind is dict:
            return dict(zip(self.names, parts))
        return tuple(parts) if self.kind is tuple else parts[0]


class Blocks:
    """Any source, seen as epochs of plain blocks.

    Parameters
    ----------
    source : object
        A re-iterable of blocks; a zero-argument callable that returns an iterable of blocks;
        a one-shot iterator, which gives a single epoch; one array, memmap, mapping, pandas
        DataFrame or tuple of arrays, which is sliced; or a table of any library, which is read as
        :class:`~pymc.streams.sources.table.table_source` reads it.
    numeric : bool, default True
        Whether values must be numbers or booleans.

    Attributes
    ----------
    n_rows : int or None
        Rows in an epoch, where the source tells.
    columns : tuple of str or None
        Names of the columns, where the source tells.
    one_shot : bool
        Whether the source is an iterator, which goes on where it was left.
    seekable : bool
        Whether an epoch can be opened at any row: an array, a table, or one of our sources on these.
    in_random_order : bool
        Whether the rows are known to come in random order, or in large pieces in random order.
    checked : bool
        Whether the source gives plain blocks whose values it has checked: one of ours.
    encoding : Encoding or None
        How its columns became numbers, of a source whose columns were keys, times and the like.
    """

    def __init__(self, source: Any, numeric: bool = True):
        self.source = source = _as_source(source)
        self._numeric = numeric
        self.one_shot = hasattr(source, "__next__")
        n_rows, columns = getattr(source, "n_rows", None), getattr(source, "columns", None)
        if is_array(source):
            if len(source.shape) == 0:
                raise ValueError("the source is a single number: it needs a dimension of rows.")
            n_rows = source.shape[0] or None
        elif _is_table(source):
            table = to_block(source, "source", numeric, whole=True)
            n_rows, columns = n_rows_of(table) or None, BlockFormat.of(table).names or None
        elif isinstance(source, str | bytes | Path):
            raise TypeError(
                "a source is an iterable of blocks, a function that returns one, a table or an array; "
                f"to read files: {_reader_of(source)}({str(source)!r})."
            )
        elif not (hasattr(source, "__iter__") or callable(source)):
            raise TypeError(
                "a source is an iterable of blocks, a function that returns one, a table or an array; "
                f"got {type(source).__name__}."
            )
        self.n_rows = None if n_rows is None else positive_int(n_rows, "n_rows of the source")
        self.columns = None if columns is None else tuple(map(str, columns))
        self.checked = bool(_of_its_own(source, "gives_checked_blocks"))
        in_memory = is_array(source) or _is_table(source)
        self.seekable = in_memory or bool(_of_its_own(source, "seekable"))
        self.in_random_order = bool(_of_its_own(source, "in_random_order"))
        # What its columns were before they became numbers, where it says so.
        self.encoding: Encoding | None = _of_its_own(source, "encoding")
        # The epoch that was opened for a look at its first block: it may be the only one.
        self._opened: Iterator[Block] | None = None

    @property
    def categories(self) -> dict[str, np.ndarray]:
        """The categories of each column of codes."""
        return self.encoding.categories if self.encoding else {}

    @property
    def units(self) -> dict[str, str]:
        """The unit of each column of times."""
        return self.encoding.units if self.encoding else {}

    def epoch(self, number: int, start: int = 0) -> Iterator[Block]:
        """Open an epoch, at row ``start`` where the source is seekable.

        A source that is not is opened once more, whatever the number.
        """
        opened, self._opened = self._opened, None
        if opened is not None and start == 0:
            return opened
        return self._plain(raw_blocks(self.source, number, start))

    def unshuffled(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Open an epoch of a source that can be read again, in its order on disk or in memory.

        At row ``start``, where the source is seekable. Rows from ``stop`` on may be left out.
        """
        ours = _of_its_own(self.source, "seekable") is not None
        if not ours:
            return self._plain(raw_blocks(self.source, 0, start))
        return self._plain(self.source.unshuffled(start, stop))

    def check_files(self) -> None:
        """Raise if files were added or removed since: :meth:`between` does not look for that."""
        if _of_its_own(self.source, "seekable") is None:
            return
        if hasattr(self.source, "source"):
            Blocks(self.source.source).check_files()
        elif hasattr(self.source, "check_files"):
            self.source.check_files()

    def between(self, start: int, stop: int) -> Iterator[Block]:
        """Give rows ``start`` to ``stop`` of :meth:`unshuffled`; of a source that is seekable."""
        for block in self.unshuffled(start, stop):
            n_rows = min(n_rows_of(block), stop - start)
            form = BlockFormat.of(block)
            yield form.join([part[:n_rows] for part in parts_of(block)])
            start += n_rows
            if start == stop:
                return

    @property
    def n_bytes(self) -> int:
        """Bytes that the rows of an array or a table take in memory, or would take; 0 of others."""
        if _of_its_own(self.source, "seekable") is not None:
            if hasattr(self.source, "source"):
                return Blocks(self.source.source).n_bytes
            return getattr(self.source, "n_bytes", 0)
        if is_array(self.source):
            return int(np.dtype(self.source.dtype).itemsize * math.prod(self.source.shape))
        if _is_table(self.source):
            parts = parts_of(to_block(self.source, "source", False, whole=True))
            return sum(part.nbytes for part in parts)
        return 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def first(self) -> Block:
        """Return the first block of epoch 0, which that epoch then still gives."""
        epoch = self.epoch(0)
        first = next(epoch, None)
        if first is None:
            raise ValueError("the source has no rows.")
        if not self.seekable:
            self._opened = put_back(first, epoch)
        return first

    def with_seeds_of(self, identity: dict[str, Any]) -> "Blocks":
        """Return the same blocks, in the order of an identity where no seed was given here."""
        other = copy.copy(self)
        ours = _of_its_own(self.source, "seekable") is not None
        if ours and identity.get("kind") == type(self.source).__name__:
            other.source = self.source.with_seeds_of(identity)
        return other

    def _plain(self, blocks: Iterable[Any]) -> Iterator[Block]:
        if self.checked:
            yield from blocks
            return
        try:
            for i, raw in enumerate(blocks):
                block = to_block(raw, f"block {i}", self._numeric)
                if n_rows_of(block):
                    yield block
        except Exception as error:
            if type(error).__module__ != "sqlite3" or "thread" not in str(error):
                raise
            raise RuntimeError(
                "the source reads from an SQLite connection of another thread, as streams read ahead "
                "in a thread. Allow it, sqlite3.connect(path, check_same_thread=False), as one thread "
                "at a time does; or read in the thread of the fit, StreamingDataset(..., prefetch=0)."
            ) from error

    @property
    def identity(self) -> dict[str, Any]:
        """What tells the source from another one, as plain values; seeds are part of it."""
        if _of_its_own(self.source, "seekable") is not None:
            return {"kind": type(self.source).__name__, **self.source.stream_identity}
        if not (is_array(self.source) or _is_table(self.source)):
            kind = "function" if not hasattr(self.source, "__iter__") else "iterable"
            return {"kind": kind, "n_rows": self.n_rows}
        array = is_array(self.source)
        parts: list[Any] = [self.source]
        if not array:
            parts = parts_of(to_block(self.source, "source", numeric=False, whole=True))
        # Some rows of each part stand for all: the whole may be larger than memory.
        starts = np.linspace(0, max(0, parts[0].shape[0] - SAMPLE_ROWS), SAMPLES).astype(int)
        samples = [np.asarray(part[i : i + SAMPLE_ROWS]) for part in parts for i in starts.tolist()]
        return {
            "kind": "array" if array else "table",
            "dtypes": [str(part.dtype) for part in parts],
            "shapes": [list(map(int, part.shape)) for part in parts],
            "checksum": checksum(
                np.frombuffer(repr(sample.tolist()).encode(), "u1")
                if sample.dtype.hasobject
                else sample
                for sample in samples
            ),
        }

    def same_rows(self, other: "Blocks") -> bool:
        """Tell whether another source has the same rows, as far as it can be told, in any order."""
        mine, its = ({"source": blocks.identity} for blocks in (self, other))
        while "source" in mine:  # of a shuffle
            mine = mine["source"]
        while "source" in its:
            its = its["source"]
        ordered = {"seed", "shuffle_row_groups"}
        # Of a query, say, the rows are not known.
        known = mine["kind"] not in ("function", "iterable") and mine.get("rows", 0) is not None
        return known and all(
            mine.get(key) == its.get(key) for key in (mine.keys() | its.keys()) - ordered
        )


def raw_blocks(source: Any, epoch: int = 0, start: int = 0) -> Iterable[Any]:
    """Open an epoch, at row ``start`` where the source is seekable."""
    if is_array(source):
        # An array is sliced as it is asked for, never converted whole: it may be on disk.
        array = source.to_numpy() if isinstance(source, pd.Series) else source
        return (views[0] for views in _slices([array], start))
    if _is_table(source):
        table = to_block(source, "source", numeric=False, whole=True)
        return map(BlockFormat.of(table).join, _slices(parts_of(table), start))
    if _of_its_own(source, "seekable") is not None:  # one of ours
        return source.read(epoch, start)
    if not hasattr(source, "__iter__"):
        opened = source()
        if _of_its_own(opened, "seekable") is not None:
            return iter(opened)  # which counts its epochs
        if _is_table(opened) or is_array(opened):
            return raw_blocks(opened)
        tables = _tables_of(opened)
        if tables is not None or hasattr(opened, "__iter__"):
            return raw_blocks(opened) if tables is None else tables
        raise TypeError(
            "a function that is a source must return an iterable of blocks, a table or an array; it "
            f"returned {type(opened).__name__}."
        )
    return source


# What follows imports where it runs: the sources are made of what is in this module.
def _as_source(source: Any) -> Any:
    """Make a source of a table that Arrow reads."""
    from pymc.streams.sources.opening import is_arrow_source
    from pymc.streams.sources.table import table_source

    return table_source(source) if is_arrow_source(source) else source


def _tables_of(opened: Any) -> Iterable[Any] | None:
    """Return the Arrow tables that an object gives, as they are, if it gives any."""
    from pymc.streams.sources.opening import is_arrow_source, tables_in

    return tables_in(opened) if is_arrow_source(opened) else None


def _reader_of(path: Any) -> str:
    """Name the source that reads a path."""
    from pymc.streams.sources.files import FORMATS

    others = any(FORMATS.get(suffix, "parquet") != "parquet" for suffix in Path(str(path)).suffixes)
    return "table_source" if others else "parquet_source"


def _of_its_own(source: Any, name: str) -> Any:
    """Look an attribute up where it is neither inherited nor delegated.

    What a subclass or a wrapper of one of our sources gives is its own, and is checked.
    """
    return getattr(source, name) if name in vars(type(source)) else None


def put_back[T](first: T, rest: Iterable[T]) -> Generator[T, None, None]:
    """Give what was looked at once more, and then the rest: ``chain`` would hold it to the end."""
    yield first
    del first
    yield from rest


def is_array(source: Any) -> bool:
    """Tell an array, in memory or on disk."""
    return all(hasattr(source, name) for name in ("shape", "dtype", "__getitem__"))


def _is_table(source: Any) -> bool:
    if isinstance(source, tuple):  # of arrays; else it is a tuple of blocks, as a list would be
        return len(source) > 0 and all(hasattr(part, "shape") for part in source)
    return isinstance(source, Mapping | pd.DataFrame)


def _slices(parts: list[Any], first_row: int) -> Iterator[list[np.ndarray]]:
    """Slice arrays of one length, those on disk by whole chunks of the first of them."""
    n_rows, step = parts[0].shape[0], SLICE_ROWS
    on_disk = [part for part in parts if is_on_disk(part)]
    if on_disk:
        row_bytes = sum(part.dtype.itemsize * math.prod(part.shape[1:]) for part in parts)
        step = max(1, min(step, SLICE_BYTES // row_bytes))
        chunk_rows = (on_disk[0].chunks or (1,))[0]
        if isinstance(chunk_rows, int):  # Dask's chunks are of any sizes
            step = max(1, step // chunk_rows) * chunk_rows
    start = first_row
    while start < n_rows:
        stop = min(n_rows, (start // step + 1) * step)
        yield [_array(part[start:stop], "source", False) for part in parts]
        start = stop
