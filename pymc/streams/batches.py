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

import math

from collections.abc import Callable, Generator, Iterator
from itertools import chain
from typing import Any

import numpy as np

from pymc.streams.blocks import (
    Block,
    BlockFormat,
    Blocks,
    check_exact,
    check_finite,
    n_rows_of,
    parts_of,
    to_block,
)

# What is cut into batches at a time: a call for each batch would cost more than its rows.
BYTES_AT_ONCE = 2**21


class Batches:
    """Cut and join the blocks of a source into batches of exactly ``batch_size`` rows.

    A batch is a list of arrays: one of shape ``(batch_size, *row_shape)``, one per array where
    blocks are tuples. Columns become one matrix. No batch is written over, so that it may be kept. Rows left over at the end of an epoch open the first batch of the next one.

    The first block is read at construction and fixes names, order, types and shapes.

    Parameters
    ----------
    blocks : Blocks
        The source.
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
    epoch_rows : int or None
        Rows in an epoch, once one was read to its end.
    """

    def __init__(
        self,
        blocks: Blocks,
        *,
        batch_size: int,
        dtype: Any,
        preprocess_fn: Callable[[Any], Any] | None,
        cycle: bool,
    ):
        self._blocks = blocks
        self._batch_size = batch_size
        self._preprocess_fn = preprocess_fn
        self._cycle = cycle
        self._finite = blocks.checked and preprocess_fn is None
        self.epoch_rows: int | None = None
        epoch = self._epoch()
        first = next(epoch, None)
        if first is None:
            raise ValueError("the source has no rows.")
        # What preprocess_fn returns has columns of its own, known by name only if it names them.
        names = blocks.columns if preprocess_fn is None else None
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
        row_bytes = sum(
            dtype.itemsize * math.prod(shape) for dtype, shape in zip(self.dtypes, self.row_shapes)
        )
        self._at_once = max(1, BYTES_AT_ONCE // (batch_size * row_bytes))
        # The epoch that the first block opened goes on with the first batch.
        self._opened: Iterator[Block] | None = chain([first], epoch)

    def __iter__(self) -> Generator[list[list[np.ndarray]], None, None]:
        epoch, self._opened = self._opened, None
        whole = epoch is not None
        if epoch is None:  # the last reader was interrupted
            if not self._cycle and not self._blocks.one_shot:
                return
            epoch, whole = self._epoch(), not self._blocks.one_shot
        # A batch that is not full yet, and the rows in it.
        open_batch, filled = self._empty(1), 0
        while True:
            n_rows = 0
            for rows in chain.from_iterable(map(self._checked, epoch)):
                start, stop = 0, len(rows[0])
                n_rows += stop
                while start < stop:
                    if filled == 0 and stop - start >= self._batch_size:
                        n_batches = min((stop - start) // self._batch_size, self._at_once)
                        batches = self._empty(n_batches)
                        start = self._fill(batches, 0, rows, start)
                        yield self._split(batches)
                    else:
                        before = start
                        start = self._fill(open_batch, filled, rows, start)
                        filled += start - before
                        if filled == self._batch_size:
                            yield self._split(open_batch)
                            open_batch, filled = self._empty(1), 0
            if n_rows == 0:  # a one-shot iterator has no second epoch
                return
            if whole:
                self.epoch_rows = n_rows
            if not self._cycle:
                return
            epoch = self._epoch()

    def _epoch(self) -> Iterator[Block]:
        return map(self._preprocess, self._blocks) if self._preprocess_fn else iter(self._blocks)

    def _preprocess(self, block: Block) -> Block:
        assert self._preprocess_fn is not None
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
            np.empty((n_batches, *shape, self._batch_size), dtype).swapaxes(1, 2)
            if len(shape) == 1
            else np.empty((n_batches, self._batch_size, *shape), dtype)
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
        n_rows = self._at_once * self._batch_size
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
        n_rows = min(self._batch_size - filled, (len(rows[0]) - start) // n_batches)
        stop = start + n_batches * n_rows
        for j, part in enumerate(rows):
            values = batches[0][:, :, j] if self.columns is not None else batches[j]
            target = values[:, filled : filled + n_rows]
            target[...] = part[start:stop].reshape(target.shape)
        return stop
