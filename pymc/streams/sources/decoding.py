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
"""Row groups of Parquet files as blocks of numbers: passes over them, and orders to read them in."""

import copy
import os

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from pymc.streams.blocks import n_rows_of
from pymc.streams.encoding import Categories, Encoding
from pymc.streams.executors import MOST_TASKS, Held, in_executor
from pymc.streams.passes import in_threads
from pymc.streams.sources.row_groups import RowGroups

# Rows decoded at a time, so that a large row group does not have to fit into memory, and fewer of
# them where they take more bytes than this.
READ_ROWS, READ_BYTES = 131_072, 2**23
# Row groups in random order that are larger than a slice are read in turn, so many at a time, a
# slice of each: a shuffle buffer then holds rows from far apart, however large the row groups are.
SLICE_ROWS = 16_384
OPEN_ROW_GROUPS = 16
# Threads that count rows and find categories.
N_THREADS = min(8, os.cpu_count() or 1)

Columns = dict[str, np.ndarray]


class _Turn(NamedTuple):
    """A slice of a row group to be read."""

    number: int
    first: int  # row of the row group where the slice begins
    skipped: int  # rows of it to be left out
    is_first: bool  # that is read of the row group
    is_last: bool


class DecodedRowGroups:
    """Row groups as blocks of numbers.

    Parameters
    ----------
    groups : RowGroups
        The row groups.
    encoding : Encoding
        How their columns become numbers.
    drop : bool
        Whether rows with a missing value are left out.

    Attributes
    ----------
    read_rows, slice_rows : int
        Rows that are decoded at a time: of row groups one after the other, and in turn.
    """

    def __init__(self, groups: RowGroups, encoding: Encoding, drop: bool = False):
        self.groups, self.encoding, self.drop = groups, encoding, drop
        row_bytes = sum(dtype.itemsize for dtype in encoding.dtypes.values())
        self.read_rows = max(1, min(READ_ROWS, READ_BYTES // row_bytes))
        self.slice_rows = min(SLICE_ROWS, self.read_rows)

    def counted(self, executor: Executor | None) -> "DecodedRowGroups":
        """Return the row groups that have rows left, counted in a pass.

        Parameters
        ----------
        executor : Executor or None
            Who counts them; None for threads.
        """
        columns = self.encoding.raw_columns if self.drop else ()
        counts = list(chain.from_iterable(self._pass(_count, columns, executor)))
        other = copy.copy(self)
        other.groups = self.groups.left(counts)
        return other

    def with_categories(self, executor: Executor | None) -> "DecodedRowGroups":
        """Return the same with the categories that are not known, found in a pass.

        Parameters
        ----------
        executor : Executor or None
            Who looks for them; None for threads.
        """
        names = self.encoding.unfound
        if not names:
            return self
        found = Categories(names)
        for part in self._pass(_find, names, executor):
            found.join(part)
        other = copy.copy(self)
        other.encoding = self.encoding.with_categories(found.found())
        return other

    def _pass(
        self, work: Callable, columns: Sequence[str], executor: Executor | None
    ) -> Iterator[Any]:
        """Give what row groups come to, in their order.

        ``work(self, opened)`` takes some of them: numbers, and what they are read from.
        """
        numbers = range(len(self.groups))
        if executor is None:
            with closing(self.groups.opened(numbers, columns)) as opened:
                yield from in_threads(
                    zip(numbers, opened), lambda _, one: work(self, [one]), N_THREADS
                )
            return
        step = -(-len(numbers) // MOST_TASKS)
        held = [Held(_in_worker, "a function"), Held(self, "the source"), Held(work, "a function")]
        calls = [(columns, numbers[first : first + step]) for first in numbers[::step]]
        yield from in_executor(executor, held, calls)

    def in_file_order(self, numbers: range, start: int) -> Iterator[Columns]:
        """Read row groups from row ``start`` on; each file is opened once: that takes time.

        Blocks may span row groups of a file.
        """
        parts = self.groups.by_file(numbers)
        columns = self.encoding.raw_columns
        with closing(self.groups.opened((part[0] for part in parts), columns)) as opened:
            for part, file in zip(parts, opened):
                try:
                    yield from self.read(part, file, self.read_rows, start)
                except (ValueError, OSError):
                    if len(part) > 1:  # each by itself tells whether it is the one
                        deque(self.in_order(part, 0), maxlen=0)
                    raise
                start = 0

    def in_order(self, order: Sequence[int], start: int) -> Iterator[Columns]:
        """Read row groups one after the other, from row ``start`` on."""
        n_kept = self.groups.n_kept
        skipped = 0
        for number in order:
            n_rows = int(n_kept[number])
            if start < n_rows:
                break
            start -= n_rows
            skipped += 1
        order = order[skipped:]
        with closing(self.groups.opened(order, self.encoding.raw_columns)) as opened:
            for number, file in zip(order, opened):
                yield from self.read([number], file, self.read_rows, start)
                start = 0

    def in_turn(self, order: Sequence[int], start: int) -> Iterator[Columns]:
        """Read some row groups at a time, a slice of each in turn, from row ``start`` on."""
        to_open = (turn.number for turn in self._turns(order, start) if turn.is_first)
        readers: dict[int, Generator[Columns, None, None]] = {}
        with closing(self.groups.opened(to_open, self.encoding.raw_columns)) as opened:
            try:
                for number, first, skipped, is_first, is_last in self._turns(order, start):
                    if is_first:
                        file = next(opened)
                        readers[number] = self.read([number], file, self.slice_rows, first)
                    block = next(readers[number])
                    if is_last:
                        readers.pop(number).close()
                    yield {name: values[skipped:] for name, values in block.items()}
            finally:
                for reader in readers.values():
                    reader.close()

    def n_groups_in(self, n_rows: int) -> float:
        """Tell how many row groups ``n_rows`` consecutive rows come from, in random order."""
        n_groups = len(self.groups)
        group_rows = self.groups.n_rows / n_groups
        in_turn = (
            min(OPEN_ROW_GROUPS, n_rows / self.slice_rows) if group_rows > self.slice_rows else 1.0
        )
        return float(min(n_groups, max(1.0, n_rows / group_rows, in_turn)))

    def _turns(self, order: Sequence[int], start: int) -> Iterator["_Turn"]:
        """Tell which slices are read, some row groups at a time, from row ``start`` on."""
        # Each with its slices, how many of them are done, and whether it is read already.
        waiting = (
            [number, self.groups.slices(number, self.slice_rows), 0, False] for number in order
        )
        opened: deque[list[Any]] = deque(islice(waiting, OPEN_ROW_GROUPS))
        while opened:
            group = opened.popleft()
            number, slices, done, is_read = group
            if done == len(slices):
                opened.extendleft(islice(waiting, 1))
                continue
            if start < slices[done]:
                # What lies before ``start`` is counted, and only read within a row group.
                is_last = done + 1 == len(slices)
                yield _Turn(number, sum(slices[:done]), start, not is_read, is_last)
                is_read = True
            start = max(0, start - slices[done])
            group[2:] = done + 1, is_read
            opened.append(group)

    def read(
        self, numbers: list[int], file: Any, n_rows: int, start: int = 0
    ) -> Generator[Columns, None, None]:
        """Read row groups of a file, ``n_rows`` at a time, from row ``start`` on.

        They are numbered over all files.
        """
        where = self.groups.place(numbers)
        for batch in self.batches(numbers, file, n_rows, self.encoding.raw_columns):
            if not self.drop and start >= batch.num_rows:
                start -= batch.num_rows
                continue
            block = self.block(batch, where)
            n_kept = n_rows_of(block)
            if start < n_kept:
                yield {name: values[start:] for name, values in block.items()}
            start = max(0, start - n_kept)

    def batches(
        self, numbers: Sequence[int], file: Any, n_rows: int, columns: Sequence[str]
    ) -> Generator[Any, None, None]:
        """Read columns of row groups of a file as record batches, of the rows that filters keep."""
        as_dictionaries = self.encoding.as_dictionaries
        return self.groups.batches(numbers, file, n_rows, columns, as_dictionaries)

    def block(self, batch: Any, where: str) -> Columns:
        return self.encoding(batch, where, self.drop)[0]


def _in_worker(
    rows: DecodedRowGroups, work: Callable, columns: Sequence[str], numbers: range
) -> Any:
    """Open some row groups in a worker, and return what they come to."""
    with closing(rows.groups.opened(numbers, columns)) as opened:
        return work(rows, zip(numbers, opened))


def _count(rows: DecodedRowGroups, opened: Iterable[tuple[int, Any]]) -> list[list[int]]:
    """Count the rows that are left of each slice of row groups; slices without any are gone."""
    columns, counts = rows.encoding.raw_columns if rows.drop else (), []
    for number, file in opened:
        where = rows.groups.place([number])
        batches = rows.batches([number], file, rows.slice_rows, columns)
        sizes = (n_rows_of(rows.block(b, where)) if rows.drop else b.num_rows for b in batches)
        counts.append([n_rows for n_rows in sizes if n_rows])
    return counts


def _find(rows: DecodedRowGroups, opened: Iterable[tuple[int, Any]]) -> Categories:
    """Find the values of keys whose categories are not known."""
    names = rows.encoding.unfound
    found = Categories(names)
    for number, file in opened:
        for batch in rows.batches([number], file, rows.read_rows, names):
            found.add(batch)
    return found
