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
"""Shuffles: a bounded one, in memory."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from pymc.streams.blocks import (
    Block,
    BlockFormat,
    Blocks,
    bytes_of,
    check_exact,
    n_rows_of,
    positive_int,
)

__all__ = ["shuffle_buffer"]

# What is taken from the buffer at a time: it fits into a processor's own cache.
BLOCK_BYTES = 2**20


class shuffle_buffer:
    """Shuffle a source through a buffer of bounded size, and cut it into batches.

    ``buffer_size`` rows are read, put into a random order, given out in batches, and replaced
    by the next ``buffer_size`` rows. Iterating (or calling) gives one epoch: every row of the
    source exactly once, in a new order each time. A batch is a block of the same form as the
    source's. The last batch of an epoch may be shorter; :class:`StreamingDataset` fills it up
    with rows of the next epoch.

    Parameters
    ----------
    source : object
        Any source that :class:`StreamingDataset` takes.
    buffer_size : int or str
        Rows in the buffer. Or the memory for them, in bytes with a unit (kB, MB, GB, KiB, MiB,
        GiB), as ``"256MB"``: as many rows as this holds in the types of the source's first block,
        with 8 bytes each for their order. Batches that are kept ready come on top.
    batch_size : int
        Rows in a batch, at most ``buffer_size``.
    seed : int, Generator or SeedSequence, optional
        Seed. Epoch k with the same seed and source always has the same order.

    Attributes
    ----------
    source : object
        The source that is shuffled.
    buffer_size : int
        Rows in the buffer.
    n_rows : int or None
        Rows in an epoch, where the source tells.
    columns : tuple of str or None
        Names of the columns, where the source tells.

    Raises
    ------
    TypeError, ValueError
        If a size is not a positive integer, or the buffer is smaller than a batch.

    Notes
    -----
    **The order of the source matters.** In-memory :func:`pymc.Minibatch` draws each batch from
    all N rows. A bounded buffer draws it from ``buffer_size`` consecutive rows: if the data has
    a meaningful order (time, key, label), a batch then stands for its own stretch of the data,
    and the fit ends at a wrong posterior. On 20 million order-book rows sorted by time, through a
    buffer of 1 million, the largest difference of a posterior mean was 0.73. Row groups in random
    order (``parquet_source(..., shuffle_row_groups=True)``) made it 0.025, and a full shuffle
    (:func:`pre_shuffle`) 0.024, where two fits in memory differ by 0.020
    (``python -m benchmarks.fidelity``, constant learning rate). A stream that is not fair gives a
    :class:`StreamOrderWarning`.

    Examples
    --------
    >>> import numpy as np
    >>> from pymc.variational.streaming import shuffle_buffer
    >>> batches = shuffle_buffer(np.arange(10), buffer_size=10, batch_size=4, seed=1)
    >>> [len(batch) for batch in batches]
    [4, 4, 2]
    >>> sorted(np.concatenate(list(batches)).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(
        self,
        source: Any,
        *,
        buffer_size: int | str,
        batch_size: int,
        seed: int | np.random.Generator | np.random.SeedSequence | None = None,
    ):
        self.source = source
        self._blocks = Blocks(source)
        self.batch_size = positive_int(batch_size, "batch_size")
        self._opened: Iterable[Block] | None = None
        if isinstance(buffer_size, str):
            if buffer_size.strip().isdigit():
                raise ValueError(
                    f"buffer_size={buffer_size!r}: rows are given as an integer, memory with a "
                    'unit, as "256MB".'
                )
            self.buffer_size = self._rows_in(bytes_of(buffer_size, "buffer_size"))
        else:
            self.buffer_size = positive_int(buffer_size, "buffer_size")
        if self.buffer_size < self.batch_size:
            rows = f", {self.buffer_size} rows," if isinstance(buffer_size, str) else ""
            raise ValueError(
                f"buffer_size={buffer_size}{rows} is smaller than batch_size={self.batch_size}: "
                "a buffer must hold at least one batch, and shuffles better the more it holds."
            )
        self.n_rows = self._blocks.n_rows
        self.columns = self._blocks.columns
        self._rng = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[Block]:
        return self._epoch(self._rng.spawn(1)[0], self.batch_size)

    __call__ = __iter__

    @property
    def gives_checked_blocks(self) -> bool:
        """Whether the values of its blocks were checked before."""
        return self._blocks.checked

    def large_blocks(self) -> Iterator[Block]:
        """Give one epoch in the same order in larger blocks, for what cuts batches itself."""
        return self._epoch(self._rng.spawn(1)[0], None)

    def _rows_in(self, n_bytes: int) -> int:
        """Tell how many rows of the source so much memory holds."""
        # The epoch that is opened for this is the first one: it may be the only one.
        epoch = iter(self._blocks)
        first = next(epoch, None)
        if first is None:
            raise ValueError("the source has no rows.")
        self._opened = chain([first], epoch)
        form = BlockFormat.of(first)
        order = np.dtype(np.int64)
        return n_bytes // (_empty_rows(0, form, form.dtypes).itemsize + order.itemsize)

    def _epoch(self, rng: np.random.Generator, block_rows: int | None) -> Iterator[Block]:
        size = min(self.buffer_size, self.n_rows or self.buffer_size)
        form, filled = None, 0
        blocks, self._opened = self._opened or self._blocks, None
        for block in blocks:
            if form is None:
                form = BlockFormat.of(block)
                rows = _empty_rows(size, form, form.dtypes)
            parts, start = form.split(block), 0
            if any(part.dtype != rows.dtype[i].base for i, part in enumerate(parts)):
                rows = _promoted(rows, filled, form, parts)
            while start < n_rows_of(block):
                # Copied at once: a source may write its next block over this one.
                stop = start + min(size - filled, n_rows_of(block) - start)
                for name, part in zip(rows.dtype.names or (), parts):
                    rows[name][filled : filled + stop - start] = part[start:stop]
                filled, start = filled + stop - start, stop
                if filled == size:
                    yield from _drain(rows, form, rng, block_rows)
                    filled = 0
        if form is not None:
            yield from _drain(rows[:filled], form, rng, block_rows)


def _empty_rows(n_rows: int, form: BlockFormat, dtypes: Sequence[np.dtype]) -> np.ndarray:
    """Make room for rows with all their columns side by side.

    The rows of a batch lie all over the buffer: each then takes one look into memory, not one for
    each column.
    """
    fields = [(f"{i}", dtypes[i], shape) for i, shape in enumerate(form.shapes)]
    return np.empty(n_rows, np.dtype(fields, align=True))


def _promoted(
    rows: np.ndarray, filled: int, form: BlockFormat, parts: list[np.ndarray]
) -> np.ndarray:
    """Return the rows in types that hold them and a block of other types."""
    held = [rows[name][:filled] for name in rows.dtype.names or ()]
    dtypes = [np.result_type(*both) for both in zip(held, parts)]
    promoted = _empty_rows(len(rows), form, dtypes)
    for i, both in enumerate(zip(held, parts)):
        for values in both:
            check_exact(values, dtypes[i], form.label(i))
        promoted[f"{i}"][:filled] = held[i]
    return promoted


def _drain(
    rows: np.ndarray, form: BlockFormat, rng: np.random.Generator, block_rows: int | None
) -> Iterator[Block]:
    block_rows = block_rows or max(1, BLOCK_BYTES // rows.itemsize)
    order = rng.permutation(len(rows))
    for start in range(0, len(rows), block_rows):
        taken = rows.take(order[start : start + block_rows])
        yield form.join([taken[name] for name in rows.dtype.names or ()])
