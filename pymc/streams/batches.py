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
"""Re-batching: blocks of any size become batches of one size and form."""

import copy
import math

from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from pymc.streams.blocks import (
    Block,
    BlockFormat,
    Blocks,
    check_exact,
    check_finite,
    n_rows_of,
    parts_of,
    put_back,
    to_block,
)
from pymc.streams.recoding import Recoding, check_numbers
from pymc.streams.standardize import scaled, scales_of

# What is cut into batches at a time: a call for each batch would cost more than its rows.
BYTES_AT_ONCE = 2**21


class Read(NamedTuple):
    """A batch, and where the stream stands after it.

    Attributes
    ----------
    batch : list of ndarray or None
        Its arrays; None after the last one of a stream that ends.
    epoch, row : int
        The epoch, and the row in it, that the next batch begins with.
    epoch_rows : int or None
        Rows in an epoch, once one was read to its end.
    """

    batch: list[np.ndarray] | None
    epoch: int
    row: int
    epoch_rows: int | None


@dataclass
class _Cut:
    """Where cutting blocks into batches has come to.

    Attributes
    ----------
    open_batch : list of ndarray
        A batch that is not full yet.
    filled : int
        The rows in it.
    n_rows : int
        The row of the epoch that is cut next.
    """

    open_batch: list[np.ndarray]
    filled: int = 0
    n_rows: int = 0


class Batches:
    """Cut and join the blocks of a source into batches of exactly ``batch_size`` rows.

    A batch is a list of arrays: one of shape ``(batch_size, *row_shape)``, one per array where
    blocks are tuples. Columns become one matrix. No batch is written over, so that it may be kept.
    Rows left over at the end of an epoch open the first batch of the next one.

    The first block is read at construction and fixes names, order, types and shapes.

    Parameters
    ----------
    source : object
        Any source.
    batch_size : int
        Rows in a batch.
    dtype : dtype or sequence of dtype
        Type of the batches' arrays.
    preprocess_fn : callable or None
        Applied to each block.
    cycle : bool
        Whether another epoch follows the first.

    Attributes
    ----------
    columns : tuple of str or None
        Names of the columns.
    column_names : list of str
        What messages call each number in a row.
    row_shapes : list of tuple of int
        Row shape of each array in a batch.
    is_tuple : bool
        Whether blocks are tuples.
    row_bytes : int
        Bytes of a row in the batches.
    blocks : Blocks
        The source.
    lacking : list of str
        Columns that it lacks, which are zero.
    """

    lacking: list[str] = []

    def __init__(
        self,
        source: Any,
        *,
        batch_size: int,
        dtype: Any,
        preprocess_fn: Callable[[Any], Any] | None,
        cycle: bool,
    ):
        # What preprocess_fn gets may be strings, say: what it returns must be numbers.
        self.blocks = Blocks(source, numeric=preprocess_fn is None)
        self.batch_size = batch_size
        self._preprocess_fn = preprocess_fn
        self.cycle = cycle
        self._finite = self.blocks.checked and preprocess_fn is None
        self._gets_array = False
        epoch = self._epoch(0, 0)
        first = next(epoch, None)
        if first is None:
            raise ValueError("the source has no rows.")
        names = self.blocks.columns
        if preprocess_fn is not None and not (
            self._gets_array
            and isinstance(first, np.ndarray)
            and first.shape[1:] == (len(names or ()),)
        ):
            # Known by name only if it names them, or gives an array of as many for an array.
            names = None
        if isinstance(first, dict) and names is not None:
            if set(names) != set(first):
                raise ValueError(
                    f"the source names the columns {list(names)}, and its blocks have "
                    f"{list(first)}."
                )
            first = {name: first[name] for name in names}
        self.format = BlockFormat.of(first)
        self.is_tuple = self.format.kind is tuple
        self.columns = self.format.names or None
        self.row_shapes = list(self.format.shapes)
        self.column_names = self.format.column_names(names)
        if self.columns is not None:
            self.row_shapes = [(len(self.columns),)]
        elif names is not None and not self.is_tuple:
            if self.row_shapes != [(len(names),)]:
                raise ValueError(
                    f"the source names {len(names)} columns, and its rows have shape "
                    f"{self.row_shapes[0]}."
                )
            self.columns = names
        several = isinstance(dtype, list | tuple)
        self.dtypes = [np.dtype(d) for d in (dtype if several else [dtype] * len(self.row_shapes))]
        if len(self.dtypes) != len(self.row_shapes) or any(
            d.kind not in "biuf" for d in self.dtypes
        ):
            raise ValueError(
                f"dtype must be a numeric type, or one for each of the {len(self.row_shapes)} "
                f"arrays in a block; got {dtype!r}."
            )
        # Per array or, where they have names, per column: what messages call it, and its kind.
        self._labels = [self.format.label(i) for i in range(len(self.format.dtypes))]
        self._kinds = [dtype.kind for dtype in self.format.dtypes]
        if self.columns is not None:
            self._labels = [f"column {name!r}" for name in self.columns]
            if not self.format.names:
                self._kinds *= len(self.columns)
        self._part_dtypes = self.dtypes * (len(self._labels) // len(self.dtypes))
        self.row_bytes = sum(
            dtype.itemsize * math.prod(shape) for dtype, shape in zip(self.dtypes, self.row_shapes)
        )
        self._at_once = max(1, BYTES_AT_ONCE // (batch_size * self.row_bytes))
        # The epoch that the first block opened goes on with the first batch that is read.
        self._opened: Iterator[Block] | None = put_back(first, epoch)

    def read(self, epoch: int = 0, row: int = 0) -> Generator[list[Read], None, None]:
        """Read batches from a position on, some at a time.

        A source that is not seekable is opened afresh.
        """
        opened, self._opened = self._opened, None
        # An iterator that is opened again goes on somewhere in its only epoch.
        whole = opened is not None or not self.blocks.one_shot
        if opened is None or (epoch, row) != (0, 0):
            opened = self._epoch(epoch, row)
        epoch_rows = None
        cut = _Cut(self._empty(1))
        while True:
            cut.n_rows = row
            for batches in self._cut(opened, cut):
                last = len(batches) - 1
                yield [
                    Read(batch, epoch, cut.n_rows - (last - i) * self.batch_size, epoch_rows)
                    for i, batch in enumerate(batches)
                ]
            n_rows = cut.n_rows
            if whole and n_rows > 0:
                epoch_rows = n_rows
            if not self.cycle or n_rows == 0:  # an iterator has no second epoch
                yield [Read(None, epoch, n_rows, epoch_rows)]
                return
            epoch, row = epoch + 1, 0
            opened = self._epoch(epoch, 0)

    @property
    def piece_rows(self) -> int:
        """Rows of a piece of :meth:`all_rows`; the last one may have fewer."""
        return self._at_once * self.batch_size

    def all_rows(
        self, first: int = 0, n_pieces: int | None = None
    ) -> Generator[list[list[np.ndarray]], None, None]:
        """Read every row once, past any shuffle, in pieces of as many batches each.

        The last batch has fewer rows where they do not fill it. Where pieces begin does not depend
        on the blocks of the source.

        Parameters
        ----------
        first, n_pieces : int
            The first piece to read, and how many of them: of a source that is seekable. Default: all.
        """
        start = first * self.piece_rows
        blocks = (
            self.blocks.unshuffled(start)
            if n_pieces is None
            else self.blocks.between(start, start + n_pieces * self.piece_rows)
        )
        cut = _Cut(self._empty(1))
        piece: list[list[np.ndarray]] = []
        for batches in self._cut(self._preprocessed(blocks), cut):
            piece += batches
            if len(piece) >= self._at_once:
                yield piece[: self._at_once]
                piece = piece[self._at_once :]
        if cut.filled:
            piece.append([values[0, : cut.filled] for values in cut.open_batch])
        if piece:
            yield piece

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def like(self, source: Any, optional: Collection[str] = ()) -> "Batches":
        """Return batches of another source, in the form of these.

        Parameters
        ----------
        source : object
            Any source of the same columns, in any order. Those that it has beyond them are left out.
            Where these batches are of standardised columns, its own are put on the same scales.
        optional : collection of str
            Columns that it may lack, which are zero then.

        Returns
        -------
        Batches
            Keys have the codes of these batches, and times their units.
        """
        columns, preprocess_fn = self.columns, self._preprocess_fn
        other = copy.copy(self)
        other.lacking = []
        other.blocks = Blocks(source, numeric=False)
        raw_columns, names = self.blocks.columns, other.blocks.columns
        recode = Recoding(self.blocks.encoding, other.blocks.encoding, raw_columns)
        scales, given = scales_of(self.blocks.source), scales_of(source)
        if given and given != scales:
            raise ValueError(
                f"the source is standardised by other scales, {given}, than the model's rows, "
                f"{scales or 'which are not'}. Pass it as it is: the model's scales are applied to it."
            )

        def select(block: Block) -> Any:
            if isinstance(block, np.ndarray) and names and block.shape[1:] == (len(names),):
                if scales or not preprocess_fn:
                    block = dict(zip(names, block.T))
                elif raw_columns and set(raw_columns) <= set(names):
                    block = block[:, [names.index(name) for name in raw_columns]]
            # What it lacks is told below, or by preprocess_fn.
            block = recode(block) if isinstance(block, dict) else block
            if scales and not given:
                block = scaled(block, scales)
            block = preprocess_fn(block) if preprocess_fn else block
            if columns is None or not isinstance(block, dict):
                return block
            other.lacking = [name for name in columns if name not in block]
            needed = [name for name in other.lacking if name not in optional]
            if needed:
                raise ValueError(f"the columns {needed} are not among {list(block)}.")
            zeros = np.zeros(n_rows_of(block))
            block = {name: block.get(name, zeros) for name in columns}
            check_numbers(block)
            return block if self.format.names else np.column_stack(list(block.values()))

        other._preprocess_fn, other._finite, other._opened = select, False, None
        return other

    def _epoch(self, epoch: int, row: int) -> Iterator[Block]:
        return self._preprocessed(self.blocks.epoch(epoch, row))

    def _preprocessed(self, blocks: Iterator[Block]) -> Iterator[Block]:
        return map(self._preprocess, blocks) if self._preprocess_fn else blocks

    def _cut(self, opened: Iterator[Block], cut: "_Cut") -> Iterator[list[list[np.ndarray]]]:
        """Cut blocks into batches, some at a time; ``cut`` holds what does not fill one yet."""
        for rows in chain.from_iterable(map(self._checked, opened)):
            start, stop, before = 0, len(rows[0]), cut.n_rows
            while start < stop:
                if cut.filled == 0 and stop - start >= self.batch_size:
                    n_batches = min((stop - start) // self.batch_size, self._at_once)
                    batches = self._empty(n_batches)
                    start = self._fill(batches, 0, rows, start)
                else:
                    batches, first = cut.open_batch, start
                    start = self._fill(batches, cut.filled, rows, start)
                    cut.filled += start - first
                    if cut.filled < self.batch_size:
                        break
                    cut.open_batch, cut.filled = self._empty(1), 0
                cut.n_rows = before + start
                yield self._split(batches)
            cut.n_rows = before + stop

    def _preprocess(self, block: Block) -> Block:
        assert self._preprocess_fn is not None
        self._gets_array = isinstance(block, np.ndarray)
        # Read-only: the block may be the user's own array, and come again next epoch.
        views = [part.view() for part in parts_of(block)]
        for view in views:
            view.flags.writeable = False
        block = BlockFormat.of(block).join(views)
        done = to_block(self._preprocess_fn(block), "what preprocess_fn returned")
        if n_rows_of(done) != n_rows_of(block):
            raise ValueError(
                f"preprocess_fn returned {n_rows_of(done)} rows for {n_rows_of(block)}. Drop or "
                "add rows in the source, so that N is the number of rows that are streamed."
            )
        return done

    def _empty(self, n_batches: int) -> list[np.ndarray]:
        """Make room for batches: an array with a leading dimension of them for each array."""
        # Column-major, so that the model's buf[:, j] is contiguous.
        return [
            np.empty((n_batches, *shape, self.batch_size), dtype).swapaxes(1, 2)
            if len(shape) == 1
            else np.empty((n_batches, self.batch_size, *shape), dtype)
            for shape, dtype in zip(self.row_shapes, self.dtypes)
        ]

    @staticmethod
    def _split(batches: list[np.ndarray]) -> list[list[np.ndarray]]:
        return list(map(list, zip(*batches)))

    def _checked(self, block: Block) -> Iterator[list[np.ndarray]]:
        """Slice a block, and check what it holds: columns, where they have names, or arrays."""
        parts = self.format.split(block)
        if self.columns is not None and not self.format.names:
            parts = list(parts[0].T)
        n_rows = self._at_once * self.batch_size
        for start in range(0, len(parts[0]), n_rows):
            rows = [part[start : start + n_rows] for part in parts]
            for part, label, kind, dtype in zip(rows, self._labels, self._kinds, self._part_dtypes):
                if not self._finite:
                    check_finite(part, label)
                if self.columns is not None and kind != "f":
                    # ds["column"] is of the kind that the first block had, whatever the buffer's.
                    check_exact(part, np.dtype("bool" if kind == "b" else "int64"), label)
                check_exact(part, dtype, label)
            yield rows

    def _fill(
        self, batches: list[np.ndarray], filled: int, rows: list[np.ndarray], start: int
    ) -> int:
        """Copy rows from ``start`` on into batches, and return where they end.

        Each of the batches has that many rows already.
        """
        n_batches = len(batches[0])
        n_rows = min(self.batch_size - filled, (len(rows[0]) - start) // n_batches)
        stop = start + n_batches * n_rows
        for j, part in enumerate(rows):
            values = batches[0][:, :, j] if self.columns is not None else batches[j]
            target = values[:, filled : filled + n_rows]
            target[...] = part[start:stop].reshape(target.shape)
        return stop
