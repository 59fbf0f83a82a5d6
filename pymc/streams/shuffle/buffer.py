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

import copy

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pymc.streams.blocks import (
    Block,
    BlockFormat,
    Blocks,
    bytes_of,
    check_exact,
    n_rows_of,
    parts_of,
    positive_int,
)
from pymc.streams.encoding import Encoding
from pymc.streams.position import Seed, random_order, seed_of

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
        Seed. The order of epoch k depends on it, on k, on ``buffer_size`` and on the source's own
        order, and on nothing else. Iterating the object counts its epochs; a
        :class:`StreamingDataset` counts its own.

    Attributes
    ----------
    source : object
        The source that is shuffled.
    buffer_size : int
        Rows in the buffer.
    seed : int
        The seed as a plain number.
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
    (``python -m benchmarks.fidelity``, constant learning rate). A stream whose batches follow such
    an order gives a :class:`StreamOrderWarning`.

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
        seed: Seed = None,
    ):
        self.source = source
        self._blocks = Blocks(source, numeric=False)
        self.batch_size = positive_int(batch_size, "batch_size")
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
        self.seed = seed_of(seed)
        self._seed_given = seed is not None
        # A buffer over another one with the same seed draws its own order.
        self._name = f"shuffle_buffer {_n_buffers_below(source)}"
        self._next_epoch = 0

    def __iter__(self) -> Iterator[Block]:
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return _cut(self.read(epoch), self.batch_size)

    __call__ = __iter__

    def read(self, epoch: int, start: int = 0) -> Iterator[Block]:
        """Open an epoch at row ``start``, in blocks of any size, for what cuts batches itself.

        What it gives depends on the source, the seed and the epoch alone.
        """
        size = min(self.buffer_size, self.n_rows or self.buffer_size)
        window, skipped = divmod(start, size)
        form, filled = None, 0
        for block in self._blocks.epoch(epoch, window * size):
            if form is None:
                form = BlockFormat.of(block)
                rows = _empty_rows(size, form, form.dtypes)
            parts, taken = form.split(block), 0
            if any(part.dtype != rows.dtype[i].base for i, part in enumerate(parts)):
                rows = _promoted(rows, filled, form, parts)
            while taken < n_rows_of(block):
                # Copied at once: a source may write its next block over this one.
                stop = taken + min(size - filled, n_rows_of(block) - taken)
                for name, part in zip(rows.dtype.names or (), parts):
                    rows[name][filled : filled + stop - taken] = part[taken:stop]
                filled, taken = filled + stop - taken, stop
                if filled == size:
                    order = random_order(size, self.seed, self._name, epoch, window)
                    yield from _drain(rows, form, order[skipped:])
                    window, skipped, filled = window + 1, 0, 0
        if form is not None:
            order = random_order(filled, self.seed, self._name, epoch, window)
            yield from _drain(rows, form, order[skipped:])

    def unshuffled(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Give one epoch from row ``start`` on, in the order of the source, past the shuffle."""
        return self._blocks.unshuffled(start, stop)

    @property
    def seekable(self) -> bool:
        """Whether an epoch can be opened at any row: as the source's can."""
        return self._blocks.seekable

    @property
    def in_random_order(self) -> bool:
        """Whether batches are drawn from all rows, or from pieces in random order."""
        whole = self.n_rows is not None and self.buffer_size >= self.n_rows
        return whole or self._blocks.in_random_order

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
    def gives_checked_blocks(self) -> bool:
        """Whether the values of its blocks were checked before."""
        return self._blocks.checked

    @property
    def stream_identity(self) -> dict[str, Any]:
        """What tells a stream of this shuffle from another one, as plain values."""
        return {
            "buffer_size": self.buffer_size,
            "seed": self.seed,
            "source": self._blocks.identity,
        }

    def with_seeds_of(self, identity: dict[str, Any]) -> "shuffle_buffer":
        """Return the same shuffle, with the seeds of an identity where none was given."""
        other = copy.copy(self)
        if not self._seed_given:
            other.seed = identity["seed"]
        other._blocks = self._blocks.with_seeds_of(identity["source"])
        return other

    def _rows_in(self, n_bytes: int) -> int:
        """Tell how many rows of the source so much memory holds."""
        form = BlockFormat.of(self._blocks.first())
        order = np.dtype(np.int64)
        return n_bytes // (_empty_rows(0, form, form.dtypes).itemsize + order.itemsize)


def _n_buffers_below(source: Any) -> int:
    return 1 + _n_buffers_below(source.source) if isinstance(source, shuffle_buffer) else 0


def _cut(blocks: Iterator[Block], n_rows: int) -> Iterator[Block]:
    """Cut and join blocks into blocks of ``n_rows`` rows; the last one may be shorter."""
    held: list[Block] = []
    n_held = 0
    for block in blocks:
        form, start = BlockFormat.of(block), 0
        while start < n_rows_of(block):
            stop = min(n_rows_of(block), start + n_rows - n_held)
            held.append(form.join([part[start:stop] for part in parts_of(block)]))
            n_held, start = n_held + stop - start, stop
            if n_held == n_rows:
                yield _joined(held)
                held, n_held = [], 0
    if held:
        yield _joined(held)


def _joined(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    parts = zip(*map(parts_of, blocks))
    return BlockFormat.of(blocks[0]).join([np.concatenate(part) for part in parts])


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


def _drain(rows: np.ndarray, form: BlockFormat, order: np.ndarray) -> Iterator[Block]:
    block_rows = max(1, BLOCK_BYTES // rows.itemsize)
    for start in range(0, len(order), block_rows):
        taken = rows.take(order[start : start + block_rows])
        yield form.join([taken[name] for name in rows.dtype.names or ()])
