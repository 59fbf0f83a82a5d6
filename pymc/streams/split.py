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
"""Two sources of the same rows: those that a model is fitted to, and those that are held out."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from pandas.util import hash_array

from pymc.streams.blocks import SLICE_ROWS, Block, BlockFormat, Blocks, n_rows_of, parts_of
from pymc.streams.encoding import Encoding
from pymc.streams.position import Seed, hashed, seed_of
from pymc.streams.shuffle.buffer import shuffle_buffer
from pymc.streams.sources.parquet import parquet_source
from pymc.streams.standardize import standardize

__all__ = ["split_rows"]

KEYS_ARE = "keys are strings, numbers, dates or times."
NO_ROWS = "a part of the split has no rows: there are too few rows, or too few keys."
# The key of rows without one: they are a group.
NO_KEY = np.uint64(0x9E3779B97F4A7C15)


def split_rows(
    source: Any, fraction: float, *, by: str | None = None, seed: Seed = 0
) -> tuple[Any, Any]:
    """Split the rows of a source in two, at random: to fit a model to, and to hold out.

    A row is in the first part if a hash, of its position or of its key, is below ``fraction``. So
    each row is in one of the two, always the same one: in every epoch, run and process, and in
    whatever order the rows are read. Nothing is copied.

    Parameters
    ----------
    source : object
        Files, an array or a table, or, with ``by``, any source of named columns that can be read
        again. Shuffle and standardise the parts, not what is split.
    fraction : float
        Share of the rows in the first part, between 0 and 1. Of keys, it is their share; that of
        the rows varies with their sizes.
    by : str, optional
        A column of keys: all rows of a key go to one part. Strings, numbers, dates or times;
        of a :class:`parquet_source` any column of the files, also one that is not streamed.
        Strings count by their text, numbers by their value as a float, whatever type a file holds
        them in. Rows without a key are a group of their own.
    seed : int, Generator or SeedSequence, default 0
        For the hash. Another seed gives another split.

    Returns
    -------
    first, second : source
        Two sources, whose ``n_rows`` are known: of a :class:`parquet_source` two of these, over the
        same files.

    Raises
    ------
    TypeError
        If the source can be read only once, or is shuffled or standardised already; if its rows
        have no fixed positions, as those of a function, and ``by`` is not given.
    ValueError
        If the fraction is not between 0 and 1, there is no column ``by``, or a part has no rows.

    Notes
    -----
    The position of a row is its number in the order of the files: it changes if files are added
    before others. The hash is the finalizer of splitmix64 [1]_, after SipHash [2]_ of strings. A
    part can be split again with the same seed: it is hashed anew.

    References
    ----------
    .. [1] Steele, G. L., Lea, D., and Flood, C. H. (2014). Fast splittable pseudorandom number
       generators. OOPSLA 2014, 453-472.
    .. [2] Aumasson, J.-P., and Bernstein, D. J. (2012). SipHash: a fast short-input PRF. INDOCRYPT
       2012, 489-508.

    Examples
    --------
    >>> import numpy as np
    >>> from pymc.variational.streaming import split_rows
    >>> train, held_out = split_rows({"x": np.arange(10_000)}, 0.8)
    >>> train.n_rows, held_out.n_rows
    (8022, 1978)
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction!r}.")
    if isinstance(source, shuffle_buffer | standardize):
        raise TypeError(
            f"the source is a {type(source).__name__}: split the rows first, and shuffle and "
            "standardise the parts: train, held_out = split_rows(rows, 0.8); "
            f"{type(source).__name__}(train, ...)."
        )
    source = Blocks(source, numeric=False).source  # a table of any library is a source then
    number, depth = seed_of(seed), _n_splits(source)

    def part(first: bool) -> Any:
        keep = _Keep(fraction, by, number, depth, first)
        return source._where(keep) if isinstance(source, parquet_source) else _Part(source, keep)

    return part(True), part(False)


class _Keep:
    """Which rows are in a part of a split.

    Parameters
    ----------
    fraction : float
        The share of the first part.
    by : str or None
        The column of keys.
    seed : int
        What the hash depends on.
    depth : int
        How often the rows were split before.
    first : bool
        Whether it is the first part.
    """

    def __init__(self, fraction: float, by: str | None, seed: int, depth: int, first: bool):
        self.by, self._seed, self._depth, self._first = by, seed, depth, first
        self._limit = np.uint64(min(2**64 - 1, int(fraction * 2**64)))
        self.columns: tuple[str, ...] = () if by is None else (by,)
        part, of = "first" if first else "second", "position" if by is None else f"column {by!r}"
        self.identity = f"{part} part of a split, {fraction} by {of}, seed {seed}, depth {depth}"

    def __call__(self, batch: Any, first_row: int) -> np.ndarray:
        """Tell which rows of an Arrow batch are kept; ``first_row`` is the position of its first."""
        if self.by is None:
            return self.of_rows(first_row, batch.num_rows)
        return self.of_keys(keys_of_arrow(batch.column(self.by), self.by))

    def of_rows(self, first_row: int, n_rows: int) -> np.ndarray:
        """Tell which rows are kept, by their positions."""
        return self.of_keys(np.arange(first_row, first_row + n_rows, dtype=np.uint64))

    def of_keys(self, keys: np.ndarray) -> np.ndarray:
        """Tell which rows are kept, by their keys as 64-bit integers."""
        below = hashed(keys, self._seed, "split_rows", self._depth) < self._limit
        return below if self._first else ~below


def _n_splits(source: Any) -> int:
    """Count how often the rows of a source were split."""
    if isinstance(source, _Part):
        return 1 + _n_splits(source.source)
    keeps = source.keeps if isinstance(source, parquet_source) else ()
    return sum(isinstance(keep, _Keep) for keep in keeps)


def keys_of_arrow(column: Any, name: str) -> np.ndarray:
    """Return the values of an Arrow column as 64-bit integers: equal ones if they are equal."""
    import pyarrow as pa
    import pyarrow.types as pt

    kind = column.type.value_type if pt.is_dictionary(column.type) else column.type
    text = pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind)
    if not (text or pt.is_primitive(kind)):
        raise TypeError(f"column {name!r}, of keys to split by, has type {kind}: {KEYS_ARE}")
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if text and not pt.is_dictionary(column.type):
        column = column.dictionary_encode()
    if pt.is_dictionary(column.type):  # each text is hashed once
        keys = np.append(keys_of(column.dictionary.to_numpy(zero_copy_only=False), name), NO_KEY)
        places = column.indices.fill_null(len(keys) - 1)
        return keys[places.to_numpy(zero_copy_only=False)]
    if column.null_count == 0:
        return keys_of(column.to_numpy(zero_copy_only=False), name)
    keys = np.full(len(column), NO_KEY)
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    keys[valid] = keys_of(column.drop_null().to_numpy(zero_copy_only=False), name)
    return keys


def keys_of(values: np.ndarray, name: str) -> np.ndarray:
    """Return the values of an array as 64-bit integers: equal ones if they are equal."""
    if values.dtype.kind in "mM":  # of any unit
        values = values.astype(f"{values.dtype.kind}8[us]").astype(np.int64)
    if values.dtype.kind in "biuf":
        numbers = values.astype(np.float64) + 0.0  # of -0.0
        return np.where(np.isnan(numbers), NO_KEY, numbers.view(np.uint64))
    kind = pd.api.types.infer_dtype(values, skipna=True)
    if kind not in ("string", "empty"):
        raise TypeError(f"column {name!r}, of keys to split by, holds {kind}: {KEYS_ARE}")
    return np.where(pd.isna(values), NO_KEY, hash_array(values.astype(object), categorize=False))


class _Part:
    """Some rows of an array, a table, or any source of blocks.

    Attributes
    ----------
    source : object
        The rows that it is a part of.
    n_rows : int
        Its own rows.
    """

    def __init__(self, source: Any, keep: _Keep):
        self.source, self._keep = source, keep
        # Keys may be strings; what is streamed is checked later.
        self._blocks = blocks = Blocks(source, numeric=False)
        if blocks.one_shot:
            raise TypeError("an iterator can be read only once: split a function that returns one.")
        if keep.by is None and not blocks.seekable:
            raise TypeError(
                "the rows of this source have no positions that are known to be the same each "
                'time: split_rows(source, ..., by="column") splits by keys, and '
                'split_rows(pre_shuffle(source, "rows/"), ...) by positions.'
            )
        self.columns = blocks.columns
        # First rows of pieces of the source, and how many rows are kept up to their ends.
        self._firsts, counts = np.array([*self._counts(), (blocks.n_rows or 0, 0)]).T
        self._ends = np.cumsum(counts[:-1])
        self.n_rows = int(self._ends[-1])
        if self.n_rows == 0:
            raise ValueError(NO_ROWS)

    def __iter__(self) -> Iterator[Block]:
        return self.read(0)

    def read(self, epoch: int, start: int = 0) -> Iterator[Block]:
        """Open an epoch, at row ``start`` where the source is seekable."""
        piece = int(np.searchsorted(self._ends, start, side="right"))
        skipped = start - (int(self._ends[piece - 1]) if piece else 0)
        first = int(self._firsts[piece])
        for block in self._blocks.epoch(epoch, first):
            rows = np.flatnonzero(self._kept(block, first))
            first += n_rows_of(block)
            form = BlockFormat.of(block)
            if skipped < len(rows):
                yield form.join([part[rows[skipped:]] for part in parts_of(block)])
            skipped = max(0, skipped - len(rows))

    def unshuffled(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Give one epoch from row ``start`` on: rows are in the source's order."""
        return self.read(0, start)

    @property
    def seekable(self) -> bool:
        """Whether an epoch can be opened at any row: as the source's can."""
        return self._blocks.seekable

    @property
    def in_random_order(self) -> bool:
        """Whether rows come in random order: as the source's do."""
        return self._blocks.in_random_order

    @property
    def gives_checked_blocks(self) -> bool:
        """Whether the values of its blocks were checked before."""
        return self._blocks.checked

    @property
    def encoding(self) -> Encoding | None:
        """How columns of the source became numbers."""
        return self._blocks.encoding

    @property
    def categories(self) -> dict[str, np.ndarray]:
        """The categories of each column of codes."""
        return self._blocks.categories

    @property
    def units(self) -> dict[str, str]:
        """The unit of each column of times."""
        return self._blocks.units

    @property
    def stream_identity(self) -> dict[str, Any]:
        """What tells a stream of this source from another one, as plain values."""
        of = self._blocks.identity
        return of | {"parts": [*of.get("parts", []), self._keep.identity], "n_rows": self.n_rows}

    def with_seeds_of(self, identity: dict[str, Any]) -> "_Part":
        """Return the same source: the seed of a split is always given."""
        return self

    def _kept(self, block: Block, first: int) -> np.ndarray:
        by = self._keep.by
        if by is None:
            return self._keep.of_rows(first, n_rows_of(block))
        if not isinstance(block, dict) or by not in block:
            names = list(block) if isinstance(block, dict) else "columns without names"
            raise ValueError(f"no column {by!r} to split by: the source has {names}.")
        levels = self._blocks.categories.get(by)
        if levels is not None:  # by what the codes stand for
            return self._keep.of_keys(keys_of(levels, by)[block[by]])
        return self._keep.of_keys(keys_of(block[by], by))

    def _counts(self) -> Iterator[tuple[int, int]]:
        """Give the first row of each piece, and how many of the piece are kept."""
        if self._keep.by is None:  # without a look at the rows
            n_rows = self._blocks.n_rows or 0
            for first in range(0, n_rows, SLICE_ROWS):
                kept = self._keep.of_rows(first, min(SLICE_ROWS, n_rows - first))
                yield first, int(np.count_nonzero(kept))
            return
        first = 0
        for block in self._blocks.unshuffled():
            yield first, int(np.count_nonzero(self._kept(block, first)))
            first += n_rows_of(block)
