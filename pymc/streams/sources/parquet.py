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
"""Sources: rows from files on disk, a row group at a time."""

import copy
import os

from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pymc.streams.blocks import arrow_to_numpy, check_exact, check_finite, n_rows_of
from pymc.streams.position import Seed, checksum, random_order, seed_of
from pymc.streams.sources.files import Piece, footer_of, import_parquet
from pymc.streams.sources.stores import Store, files_at

__all__ = ["parquet_source"]

# Rows decoded at a time, so that a large row group does not have to fit into memory, and fewer of
# them where they take more bytes than this.
READ_ROWS, READ_BYTES = 131_072, 2**23
# Row groups in random order that are larger than a slice are read in turn, so many at a time, a
# slice of each: a shuffle buffer then holds rows from far apart, however large the row groups are.
SLICE_ROWS = 16_384
OPEN_ROW_GROUPS = 16
# Bytes of a column that are read at a time.
BUFFER_BYTES = 65_536
# Row groups whose statistics are looked at: reading those of thousands takes seconds.
MAX_RANGES = 512


class _Turn(NamedTuple):
    """A slice of a row group to be read."""

    number: int
    first: int  # row of the row group where the slice begins
    skipped: int  # rows of it to be left out
    is_first: bool  # that is read of the row group
    is_last: bool


class parquet_source:
    """Stream the rows of Parquet files, row group by row group.

    Iterating gives one epoch: blocks that map each column to an array of shape ``(rows,)``,
    in the column's own type. It can be iterated again and again, and feeds
    :class:`shuffle_buffer`, :class:`StreamingDataset` or :func:`pymc.Minibatch`.

    Parameters
    ----------
    path : str, Path or sequence of these
        A file, a folder (its ``*.parquet`` files, also in folders below, but for names that
        begin with ``.`` or ``_``), a glob pattern, or a list of these. Files are read in the
        order of their names; those of a list in the order of the list.
    columns : sequence of str, optional
        The columns to read, in this order. Default: all columns of the first file, which the
        other files must have as well. Columns are matched by name, so their order within a
        file does not matter. They must be integers, floats or booleans.
    shuffle_row_groups : bool, default False
        Read the row groups of all files in a new random order each epoch. With a
        :class:`shuffle_buffer` that holds many row groups, this brings rows from all over the
        data together, at no cost. Row groups of more than 16,384 rows are read 16 at a time, a
        slice of each in turn, so that rows of many meet in the buffer whatever their size.
    seed : int, Generator or SeedSequence, optional
        Seed for the order of the row groups. The order of epoch k depends on it, on k and on the
        files, and on nothing else. Iterating the object counts its epochs; a
        :class:`StreamingDataset` counts its own.
    missing : {"raise", "drop"}, default "raise"
        What to do with rows that hold a null, a NaN or an infinite value in one of the columns:
        an error, or leave them out. To leave them out, all rows are read once at construction,
        so that ``n_rows`` is the number of rows that are streamed.

    Attributes
    ----------
    n_rows : int
        Rows in an epoch, from the files' metadata, without the dropped ones.
    n_dropped : int
        Rows left out by ``missing="drop"``.
    columns : tuple of str
        The columns in the order in which they are read.
    files : tuple of Path
        The files.
    seed : int
        The seed as a plain number.

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    FileNotFoundError
        If there is no file at ``path``.
    ValueError
        If a column is missing in a file, if the files hold no row, or if a file is not Parquet;
        while reading, if a column holds a null, a NaN or an infinite value. The message names
        file, row group and column.
    TypeError
        If a column is not numeric.
    RuntimeError
        While reading, if files were added, removed or changed since construction.

    Examples
    --------
    >>> import tempfile
    >>> import pyarrow as pa, pyarrow.parquet as pq
    >>> from pymc.variational.streaming import parquet_source
    >>> folder = tempfile.mkdtemp()
    >>> pq.write_table(pa.table({"x": [0.5, 1.5], "y": [0, 1]}), f"{folder}/part-0.parquet")
    >>> source = parquet_source(folder)
    >>> source.n_rows, source.columns
    (2, ('x', 'y'))
    >>> [block["y"].tolist() for block in source]
    [[0, 1]]
    """

    gives_checked_blocks = True

    def __init__(
        self,
        path: str | os.PathLike | Sequence[str | os.PathLike],
        *,
        columns: Sequence[str] | None = None,
        shuffle_row_groups: bool = False,
        seed: Seed = None,
        missing: str = "raise",
        filesystem: Any = None,
        storage_options: dict[str, Any] | None = None,
    ):
        import_parquet("parquet_source")
        if missing not in ("raise", "drop"):
            raise ValueError(f'missing must be "raise" or "drop", got {missing!r}.')
        if isinstance(columns, str):
            raise TypeError(f"columns must be a sequence of names, e.g. [{columns!r}].")
        if columns is not None and len(set(columns)) < len(columns):
            raise ValueError(f"columns names a column twice: {list(columns)}.")
        if columns is not None and len(columns) == 0:
            raise ValueError("columns is empty: name at least one column.")
        # A disk or a store, and what was asked for there.
        self._storage, self._paths = files_at(path, filesystem, storage_options)
        self.files = tuple(self._storage.find(self._paths))
        self._stamps = self._storage.stamps(self.files)
        self.shuffle_row_groups = bool(shuffle_row_groups)
        self.seed = seed_of(seed)
        self._seed_given = seed is not None
        self._next_epoch = 0
        row_groups: list[tuple[int, int, int, int]] = []
        self.n_rows = 0
        all_columns = columns is None
        types = []
        footers = self._storage.footers(self.files, self._stamps)
        for i, file in enumerate(self.files):
            try:
                metadata = next(footers)
            except (ConnectionError, FileNotFoundError, PermissionError):
                raise
            except Exception as error:
                raise ValueError(f"{file}: not a readable Parquet file: {error}") from error
            schema = metadata.schema.to_arrow_schema()
            if columns is None:
                columns = schema.names
            elif all_columns and set(schema.names) > set(columns):
                raise ValueError(
                    f"{file}: column(s) {sorted(set(schema.names) - set(columns))} that "
                    f"{self.files[0]} does not have. Name the columns to read with columns=[...]."
                )
            counts = Counter(schema.names)
            types.append([_numpy_dtype(schema, counts, name, file) for name in columns])
            for group in range(metadata.num_row_groups):
                size = metadata.row_group(group)
                row_groups.append((i, group, size.num_rows, size.total_byte_size))
            self.n_rows += metadata.num_rows
        # Number of the file, number in the file, rows and bytes of each row group.
        self._row_groups = np.array(row_groups, dtype=np.int64).reshape(-1, 4)
        self.columns = tuple(columns or ())
        if not self.columns:
            raise ValueError(f"{self.files[0]}: no columns.")
        if self.n_rows == 0:
            raise ValueError(f"no rows in the {len(self.files)} file(s) at {path}.")
        # One type for a column in all files: a column of integers in some becomes what holds all.
        self._dtypes = {
            name: np.result_type(*(row[j] for row in types)) for j, name in enumerate(self.columns)
        }
        row_bytes = sum(dtype.itemsize for dtype in self._dtypes.values())
        self._read_rows = max(1, min(READ_ROWS, READ_BYTES // row_bytes))
        self._slice_rows = min(SLICE_ROWS, self._read_rows)
        self._drop = missing == "drop"
        self.n_dropped = 0
        # Rows that are left in each slice of each row group, those of slices without any left out.
        self._kept: list[list[int]] = []
        if self._drop:
            numbers = range(self.n_row_groups)
            with closing(self._opened(numbers)) as opened:
                for number in numbers:
                    blocks = self._read([number], self._slice_rows, opened)
                    self._kept.append(list(map(n_rows_of, blocks)))
            kept = sum(map(sum, self._kept))
            if kept == 0:
                raise ValueError(f"every row at {path} has a missing value in {self.columns}.")
            self.n_rows, self.n_dropped = kept, self.n_rows - kept

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.read(epoch)

    def read(self, epoch: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Open an epoch at row ``start``. What it gives depends on files, seed and epoch alone."""
        self._check_files()
        if not self.shuffle_row_groups:
            return self._in_order(range(self.n_row_groups), start)
        order = random_order(self.n_row_groups, self.seed, "parquet_source", epoch).tolist()
        if self.n_rows > self._slice_rows * self.n_row_groups:
            return self._in_turn(order, start)
        return self._in_order(order, start)

    @property
    def seekable(self) -> bool:
        """Whether an epoch can be opened at any row."""
        return True

    @property
    def in_random_order(self) -> bool:
        """Whether rows come in large pieces in random order, or were shuffled on disk."""
        return self.shuffle_row_groups or all(map(self._storage.is_shuffled, self._paths))

    @property
    def stream_identity(self) -> dict[str, Any]:
        """What tells a stream of this source from another one, as plain values."""
        names = "\n".join(file.name for file in self.files).encode()
        sizes = [size for size, _ in self._stamps]
        return {
            "n_files": len(self.files),
            # Not the times of files, which change when they are copied to another machine.
            "files": checksum([np.frombuffer(names, "u1"), np.array(sizes), self._row_groups]),
            "n_rows": self.n_rows,
            "columns": list(self.columns),
            "missing": "drop" if self._drop else "raise",
            "shuffle_row_groups": self.shuffle_row_groups,
            "seed": self.seed if self.shuffle_row_groups else None,
        }

    def with_seeds_of(self, identity: dict[str, Any]) -> "parquet_source":
        """Return the same source, with the seed of an identity if none was given."""
        other = copy.copy(self)
        if not self._seed_given and self.shuffle_row_groups:
            other.seed = identity["seed"]
        return other

    @property
    def n_row_groups(self) -> int:
        """Number of row groups in all files."""
        return len(self._row_groups)

    def row_groups_in(self, n_rows: int) -> float:
        """Tell how many row groups ``n_rows`` consecutive rows come from, in random order."""
        group_rows = self.n_rows / self.n_row_groups
        in_turn = (
            min(OPEN_ROW_GROUPS, n_rows / self._slice_rows)
            if group_rows > self._slice_rows
            else 1.0
        )
        return float(min(self.n_row_groups, max(1.0, n_rows / group_rows, in_turn)))

    def first_rows(self, group: int, n_rows: int) -> dict[str, np.ndarray] | None:
        """Read up to ``n_rows`` first rows of a row group, numbered over all files, if it has any."""
        with closing(self._opened([group])) as opened:
            return next(self._read([group], n_rows, opened), None)

    def row_group_ranges(self) -> dict[str, list[tuple[Any, Any]]]:
        """Tell minimum and maximum of each column, also of those that are not read, in row groups.

        Of many row groups some are taken, evenly spaced; those without statistics are left out.
        """
        chosen = np.unique(np.linspace(0, self.n_row_groups - 1, MAX_RANGES).astype(int))
        ranges: dict[str, list[tuple[Any, Any]]] = {}
        for i, group in self._row_groups[chosen, :2].tolist():
            row_group = footer_of(self.files[i], self._stamps[i]).row_group(group)
            for j in range(row_group.num_columns):
                column = row_group.column(j)
                if column.is_stats_set and column.statistics.has_min_max:
                    limits = column.statistics.min, column.statistics.max
                    ranges.setdefault(column.path_in_schema, []).append(limits)
        return ranges

    @property
    def identity(self) -> dict[str, Any]:
        """What tells whether the rows are still those of an earlier time."""
        return {
            "files": [[file.name, *stamp] for file, stamp in zip(self.files, self._stamps)],
            "columns": list(self.columns),
            "missing": "drop" if self._drop else "raise",
        }

    def by_row_group(self) -> Iterator[dict[str, np.ndarray]]:
        """Give one epoch in the order of the files, a row group or a part of one at a time."""
        self._check_files()
        return self._in_order(range(self.n_row_groups), 0)

    def unshuffled(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Give one epoch from row ``start`` on, in the order of the files.

        Blocks may span row groups of a file. Row groups before ``start`` are counted, not read.
        """
        self._check_files()
        if isinstance(self._storage, Store):
            return self._in_order(range(self.n_row_groups), start)
        n_rows = self._row_groups[:, 2]
        ends = np.cumsum([sum(kept) for kept in self._kept] if self._drop else n_rows)
        first = int(np.searchsorted(ends, start, side="right"))
        skipped = start - int(ends[first - 1]) if first else start
        starts = np.flatnonzero(np.diff(self._row_groups[first:, 0], prepend=-1))
        files = np.split(np.arange(first, self.n_row_groups), starts[1:]) if len(starts) else []
        return chain.from_iterable(
            self._whole_file(numbers.tolist(), 0 if i else skipped)
            for i, numbers in enumerate(files)
        )

    def _whole_file(self, numbers: list[int], start: int) -> Iterator[dict[str, np.ndarray]]:
        """Read row groups of a file from row ``start`` on; it is opened once: that takes time."""
        try:
            yield from self._read(numbers, self._read_rows, self._opened(numbers[:1]), start)
            return
        except (ValueError, OSError) as error:
            failed = error
        # Each by itself tells whether it is the one.
        deque(self._in_order(numbers, 0), maxlen=0)
        raise failed

    def _slices(self, number: int) -> list[int]:
        """List the rows in each slice of a row group."""
        if self._drop:
            return self._kept[number]
        n_rows = int(self._row_groups[number, 2])
        return [
            min(self._slice_rows, n_rows - start) for start in range(0, n_rows, self._slice_rows)
        ]

    def _in_order(self, order: Sequence[int], start: int) -> Iterator[dict[str, np.ndarray]]:
        """Read row groups one after the other, from row ``start`` on."""
        skipped = 0
        for number in order:
            n_rows = sum(self._slices(number))
            if start < n_rows:
                break
            start -= n_rows
            skipped += 1
        order = order[skipped:]
        with closing(self._opened(order)) as opened:
            for number in order:
                yield from self._read([number], self._read_rows, opened, start)
                start = 0

    def _in_turn(self, order: Sequence[int], start: int) -> Iterator[dict[str, np.ndarray]]:
        """Read some row groups at a time, a slice of each in turn, from row ``start`` on."""
        to_open = (turn.number for turn in self._turns(order, start) if turn.is_first)
        readers: dict[int, Generator[dict[str, np.ndarray], None, None]] = {}
        with closing(self._opened(to_open)) as opened:
            try:
                for number, first, skipped, is_first, is_last in self._turns(order, start):
                    if is_first:
                        readers[number] = self._read([number], self._slice_rows, opened, first)
                    block = next(readers[number])
                    if is_last:
                        readers.pop(number).close()
                    yield {name: values[skipped:] for name, values in block.items()}
            finally:
                for reader in readers.values():
                    reader.close()

    def _turns(self, order: Sequence[int], start: int) -> Iterator["_Turn"]:
        """Tell which slices are read, some row groups at a time, from row ``start`` on."""
        # Each with its slices, how many of them are done, and whether it is read already.
        waiting = ([number, self._slices(number), 0, False] for number in order)
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

    def _opened(self, numbers: Iterable[int]) -> Any:
        """Open row groups in order, as they are asked for; those of a store are fetched ahead."""
        return self._storage.opened(
            Piece(self.files[i], self._stamps[i], group, self.columns)
            for i, group in (self._row_groups[number, :2].tolist() for number in numbers)
        )

    def _read(
        self, numbers: list[int], n_rows: int, opened: Iterator[Any], start: int = 0
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """Read row groups of the file that is opened next, ``n_rows`` at a time, from ``start`` on.

        They are numbered over all files.
        """
        pq = import_parquet("parquet_source")
        i = int(self._row_groups[numbers[0], 0])
        groups = self._row_groups[numbers, 1].tolist()
        where = f"{self.files[i]}, row group {groups[0]}"
        if len(groups) > 1:
            where += f" to {groups[-1]}"
        try:
            file = next(opened)
            self._check_unchanged(i, file)
            # Buffered, and not ahead: else pyarrow holds whole row groups, however large.
            footer = footer_of(self.files[i], self._stamps[i])
            with pq.ParquetFile(
                file, metadata=footer, buffer_size=BUFFER_BYTES, pre_buffer=False
            ) as reader:
                for batch in reader.iter_batches(
                    n_rows, row_groups=groups, columns=list(self.columns), use_threads=False
                ):
                    self._check_unchanged(i, file)
                    if not self._drop and start >= batch.num_rows:
                        start -= batch.num_rows
                        continue
                    block = self._block(batch, where)
                    n_kept = n_rows_of(block)
                    if start < n_kept:
                        yield {name: values[start:] for name, values in block.items()}
                    start = max(0, start - n_kept)
        except OSError as error:
            raise OSError(f"{where}: could not be read: {error}") from error

    def _check_files(self) -> None:
        changed = set(self.files) ^ set(self._storage.find(self._paths))
        if changed:
            raise RuntimeError(
                f"{', '.join(map(str, sorted(changed)))}: added or removed since the source was "
                f"made, so that its {self.n_rows} rows are not the data any more. Make a new "
                "source (and a new model: N has changed)."
            )

    def _check_unchanged(self, i: int, opened: Any) -> None:
        if self._storage.stamp_of_opened(opened) != self._stamps[i]:
            raise RuntimeError(
                f"{self.files[i]}: changed since the source was made, so that its rows are not "
                f"those that n_rows={self.n_rows} counts. Make a new source."
            )

    def _block(self, batch: Any, where: str) -> dict[str, np.ndarray]:
        block = {}
        keep: Any = slice(None)
        if self._drop:
            keep = np.ones(batch.num_rows, dtype=bool)
        for name in self.columns:
            column = batch.column(name)
            if self._drop and column.null_count:
                keep &= column.is_valid().to_numpy(zero_copy_only=False)
                column = column.fill_null(False if column.type == "bool" else 0)
            values = arrow_to_numpy(column, f"{where}, column {name!r}")
            if self._drop and values.dtype.kind == "f":
                keep &= np.isfinite(values)
            block[name] = values
        for name, dtype in self._dtypes.items():
            what = f"{where}, column {name!r}"
            values = block[name][keep]
            check_finite(values, what)
            check_exact(values, dtype, what)
            block[name] = values.astype(dtype, copy=False)
        return block


def _numpy_dtype(schema: Any, counts: Counter, name: str, file: Path) -> np.dtype:
    import pyarrow.types as pt

    if counts[name] != 1:
        trouble = "no column" if counts[name] == 0 else "more than one column"
        raise ValueError(f"{file}: {trouble} {name!r}; it has {schema.names}.")
    arrow_type = schema.field(name).type
    if not (pt.is_integer(arrow_type) or pt.is_floating(arrow_type) or pt.is_boolean(arrow_type)):
        raise TypeError(
            f"{file}: column {name!r} is not numeric ({arrow_type}). Name the columns to read with "
            "columns=[...], or write the column as a number."
        )
    return np.dtype(arrow_type.to_pandas_dtype())
