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
"""All rows that a model observes batch by batch: of a stream, or of arrays behind ``pm.Minibatch``."""

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np

from pytensor.graph.basic import Apply, Variable
from pytensor.graph.traversal import ancestors

from pymc.data import MinibatchOp
from pymc.streams.batches import Batches
from pymc.streams.executors import Held, check_blocks, in_executor
from pymc.streams.passes import in_threads
from pymc.variational.stream_refusals import buffers_behind, streams_behind
from pymc.variational.streaming import StreamingDataset

Batch = list[np.ndarray]

# Sums are those of groups of pieces: so many pieces, or more where there would be too many groups.
GROUP_PIECES, MOST_GROUPS = 32, 4096


def check_piece(checks: Callable[[Batch], None] | None, piece: list[Batch]) -> None:
    """Refuse batches that the model must not be evaluated on."""
    if checks is not None:
        for batch in piece:
            checks(batch)


class RowReader(NamedTuple):
    """What a worker of an executor reads rows with."""

    batches: Batches
    checks: Callable[[Batch], None] | None

    def read(self, first: int, n_pieces: int) -> Iterator[list[Batch]]:
        """Read pieces, from one on, and check them."""
        for piece in self.batches.all_rows(first, n_pieces):
            check_piece(self.checks, piece)
            yield piece


class AllRows:
    """Rows in batches, each once.

    Parameters
    ----------
    name : str
        What messages call them.
    batches : Batches
        What they are read from.

    Attributes
    ----------
    n_rows : int or None
        Their number, as far as it is known.
    weight : float
        How many rows of the data each of them stands for.
    source : StreamingDataset or Apply or None
        What a model observes them through: a stream, or the node of an in-memory minibatch.
    group_pieces : int
        Pieces that are added up by themselves, before their sums are.
    """

    weight = 1.0
    source: Any = None
    group_pieces = GROUP_PIECES

    def __init__(self, name: str, batches: Batches):
        self.name, self._batches = name, batches
        self.batch_size = batches.batch_size
        self.n_rows = batches.blocks.n_rows
        if self.n_rows is not None:
            n_pieces = -(-self.n_rows // batches.piece_rows)
            self.group_pieces = max(GROUP_PIECES, -(-n_pieces // MOST_GROUPS))

    def groups(self) -> list[tuple[int, int]]:
        """List the first piece and the number of pieces of each group, for workers that read them.

        Raises
        ------
        ValueError
            If workers cannot read them: see :func:`~pymc.streams.executors.check_blocks`.
        """
        check_blocks(self._batches.blocks, self.name)
        group_rows = self.group_pieces * self._batches.piece_rows
        n_groups = -(-(self._batches.blocks.n_rows or 0) // group_rows)
        return [(i * self.group_pieces, self.group_pieces) for i in range(n_groups)]

    def held(self) -> Held:
        """Return what workers read them with: as they are now."""
        return Held(RowReader(self._batches, self.checks), self.name)

    def read(self) -> Iterator[list[Batch]]:
        """Read every row once, some batches at a time; the last batch may have fewer rows."""
        return self._batches.all_rows()

    def same_as(self, other: "AllRows") -> bool:
        """Tell whether they are the rows of the same arrays or files as others, as far as it shows."""
        return self._batches.blocks.same_rows(other._batches.blocks)

    @property
    def checks(self) -> Callable[[Batch], None] | None:
        """What refuses a batch that the model must not be evaluated on."""
        return None

    def check(self, piece: list[Batch]) -> None:
        """Refuse batches that the model must not be evaluated on."""
        check_piece(self.checks, piece)

    def expect(self, n_rows: int) -> None:
        """Take the number of rows that a pass has read."""

    def loaded(self) -> Batch:
        """Return a batch as an example."""
        raise NotImplementedError


class StreamRows(AllRows):
    """All rows of a stream, in the order of its source."""

    def __init__(self, stream: StreamingDataset):
        super().__init__(f"stream {stream.name!r}", stream._reader.batches)
        self._stream = self.source = stream
        self._counted: int | None = None
        if self._batches.blocks.one_shot:
            raise ValueError(
                f"{self.name}: its source is an iterator, which can be read only once, and a pass "
                "reads all rows, each time. Pass a function that returns a fresh iterator, or files."
            )

    def read(self) -> Iterator[list[Batch]]:
        n_read, total_sizes = 0, self._stream._total_sizes.values()
        for batches in super().read():
            n_read += sum(len(batch[0]) for batch in batches)
            if self.n_rows is None and n_read > 2 * max(total_sizes, default=np.inf):
                raise ValueError(
                    f"{self.name}: a pass has read {n_read:,} rows and not come to their end, of "
                    f"total_size={max(total_sizes):,.0f}. Its source must end after an epoch, and "
                    "start again when it is opened again; total_size must be the number of rows."
                )
            yield batches

    @property
    def checks(self) -> Callable[[Batch], None]:
        return self._stream._index_checks

    def expect(self, n_rows: int) -> None:
        if self._counted not in (None, n_rows):
            raise ValueError(
                f"{self.name}: a pass has read {n_rows:,} rows, and the one before {self._counted:,}. "
                "Its source must give the same rows each time that it is opened: a function must "
                "return a fresh iterator."
            )
        self.n_rows = self._counted = n_rows
        self._stream._set_n_rows(n_rows)

    def loaded(self) -> Batch:
        return [np.asarray(buffer.get_value(borrow=True)) for buffer in self._stream._buffers]


class MinibatchRows(AllRows):
    """All rows of the arrays behind a ``pm.Minibatch`` in memory."""

    def __init__(self, node: Apply):
        self.source = node
        arrays = tuple(variable.eval() for variable in node.inputs[:-1])
        batch_size = node.outputs[0].type.shape[0]
        dtypes = [array.dtype for array in arrays]
        batches = Batches(
            arrays, batch_size=batch_size, dtype=dtypes, preprocess_fn=None, cycle=True
        )
        super().__init__(f"pm.Minibatch {node.outputs[0].name!r}", batches)

    def loaded(self) -> Batch:
        return next(self.read())[0]


class OtherRows(AllRows):
    """The rows of another source, read as the model's own rows are.

    Parameters
    ----------
    own : AllRows
        The model's rows.
    source : object
        Any source of the same columns.
    optional : collection of str
        Columns that it may lack: they are zero then.
    """

    def __init__(self, own: AllRows, source: Any, optional: Collection[str] = ()):
        if isinstance(source, StreamingDataset):
            raise TypeError("the source is a StreamingDataset: pass what it streams.")
        super().__init__("the source", own._batches.like(source, optional))
        self._own, self.source = own, own.source

    @property
    def checks(self) -> Callable[[Batch], None] | None:
        return self._own.checks

    def loaded(self) -> Batch:
        return self._own.loaded()


class SampledRows(AllRows):
    """A uniform random sample of rows, drawn without replacement and held in memory.

    Each row gets a random key, and those with the smallest keys are the sample: however many rows
    there are, and whichever thread reads them.

    Attributes
    ----------
    arrays : list of ndarray
        The sample.
    """

    def __init__(
        self,
        rows: AllRows,
        n_rows: int,
        seed: tuple[int, int],
        n_threads: int,
        executor: Executor | None = None,
    ):
        # Keys above it are not among the smallest: of so many rows, but for one time in a billion.
        limit = min(1.0, (n_rows + 6 * n_rows**0.5 + 20) / rows.n_rows) if rows.n_rows else 1.0
        while True:
            n_seen, keys, sample = _drawn(rows, n_rows, (*seed,), limit, n_threads, executor)
            if len(keys) == min(n_rows, n_seen):
                break
            limit = 1.0
        rows.expect(n_seen)
        self.arrays = sample
        dtypes = [values.dtype for values in sample]
        batches = Batches(
            tuple(sample),
            batch_size=rows.batch_size,
            dtype=dtypes,
            preprocess_fn=None,
            cycle=True,
        )
        super().__init__(rows.name, batches)
        self.source = rows.source
        self.weight = rows.weight * n_seen / len(sample[0])
        self._pieces = list(batches.all_rows())

    def read(self) -> Iterator[list[Batch]]:
        return iter(self._pieces)


class KeptRows(AllRows):
    """Rows that a fit has used, as an estimate of all rows of its stream.

    Parameters
    ----------
    stream : StreamingDataset
        The stream.
    batches : list of list of ndarray
        Batches of it.
    total_size : float
        Rows that they stand for.
    """

    def __init__(self, stream: StreamingDataset, batches: list[Batch], total_size: float):
        self.name, self.batch_size = f"stream {stream.name!r}", stream.batch_size
        self.n_rows = len(batches) * self.batch_size
        self.weight = total_size / self.n_rows
        self._kept = batches

    def read(self) -> Iterator[list[Batch]]:
        return ([batch] for batch in self._kept)


def _drawn(
    rows: AllRows,
    n_rows: int,
    seed: tuple[int, ...],
    limit: float,
    n_threads: int,
    executor: Executor | None,
) -> tuple[int, np.ndarray, Batch]:
    """Draw the rows with the smallest keys, of those with keys below a limit."""

    def pick(number: int, piece: list[Batch]) -> tuple[int, np.ndarray, Batch]:
        rows.check(piece)
        return _picked(piece, number, seed, limit)

    if executor is None:
        picked = in_threads(rows.read(), pick, n_threads)
    else:
        calls = [(seed, limit, *group) for group in rows.groups()]
        picked = in_executor(executor, [Held(_picked_of_group, "a function"), rows.held()], calls)
    n_seen = n_held = 0
    held: list[tuple[np.ndarray, Batch]] = []
    for n_read, keys, arrays in picked:
        n_seen, n_held = n_seen + n_read, n_held + len(keys)
        held.append((keys, arrays))
        if n_held > 2 * n_rows:
            held = [_smallest(held, n_rows)]
            n_held, limit = n_rows, held[0][0][-1]
    return n_seen, *_smallest(held, n_rows)


def _picked(
    piece: list[Batch], number: int, seed: tuple[int, ...], limit: float
) -> tuple[int, np.ndarray, Batch]:
    """Return the number of rows of a piece, and those with keys below a limit, with their keys."""
    sizes = [len(batch[0]) for batch in piece]
    keys = np.random.default_rng([*seed, number]).random(sum(sizes))
    kept = np.split(keys < limit, np.cumsum(sizes)[:-1])
    picked = [
        np.concatenate([values[keep] for values, keep in zip(arrays, kept)])
        for arrays in zip(*piece)
    ]
    return len(keys), keys[np.concatenate(kept)], picked


def _picked_of_group(
    rows: RowReader, seed: tuple[int, ...], limit: float, first: int, n_pieces: int
) -> tuple[int, np.ndarray, Batch]:
    """Do as :func:`_picked` with a group of pieces: what a worker of an executor does."""
    picked = [
        _picked(piece, first + i, seed, limit) for i, piece in enumerate(rows.read(first, n_pieces))
    ]
    keys = np.concatenate([keys for _, keys, _ in picked])
    arrays = [np.concatenate(part) for part in zip(*(arrays for *_, arrays in picked))]
    return sum(n_rows for n_rows, *_ in picked), keys, arrays


def _smallest(held: list[tuple[np.ndarray, Batch]], n_rows: int) -> tuple[np.ndarray, Batch]:
    """Join what is held, and keep the rows with the smallest keys, in the order of their keys."""
    keys = np.concatenate([keys for keys, _ in held])
    order = np.argsort(keys)[:n_rows]
    parts = zip(*(picked for _, picked in held))
    return keys[order], [np.concatenate(part)[order] for part in parts]


def rows_behind(terms: Iterable[Variable]) -> dict[Any, StreamingDataset | Apply]:
    """Find the streams, and a node of each in-memory minibatch, in graphs.

    The latter by its random generator: graphs of a model have copies of the node.
    """
    behind = list(ancestors(terms))
    nodes = {v.owner.inputs[-1]: v.owner for v in behind if _is_minibatch(v)}
    in_memory = {
        rng: node for rng, node in nodes.items() if not streams_behind(ancestors(node.inputs))
    }
    return {stream: stream for stream in streams_behind(behind)} | in_memory


def tensors_of(
    source: StreamingDataset | Apply, terms: Iterable[Variable]
) -> list[tuple[int, Variable]]:
    """Find the variables in graphs that hold a batch of a source, each with its place in one."""
    if isinstance(source, StreamingDataset):
        own = [buffer.container for buffer in source._buffers]
        return [
            (own.index(buffer.container), buffer)
            for buffer in buffers_behind(terms)
            if buffer.tag.stream is source
        ]
    rng = source.inputs[-1]
    return [
        (variable.owner.outputs.index(variable), variable)
        for variable in ancestors(terms)
        if _is_minibatch(variable) and variable.owner.inputs[-1] is rng
    ]


def _is_minibatch(variable: Variable) -> bool:
    return variable.owner is not None and isinstance(variable.owner.op, MinibatchOp)


def rows_of(source: StreamingDataset | Apply) -> AllRows:
    """Return all rows of what :func:`rows_behind` found."""
    return StreamRows(source) if isinstance(source, StreamingDataset) else MinibatchRows(source)


def filled_up(arrays: Batch, size: int) -> Batch:
    """Fill a batch of fewer rows with copies of its first one."""
    places = np.arange(size)
    return take_rows(arrays, np.where(places < len(arrays[0]), places, 0))


def take_rows(arrays: Batch, rows: Any) -> Batch:
    """Return some rows of a batch, in the layout of batches."""
    return [
        np.asfortranarray(values[rows]) if values.ndim == 2 else np.ascontiguousarray(values[rows])
        for values in arrays
    ]
