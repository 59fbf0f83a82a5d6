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

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np

from pymc.streams.blocks import n_rows_of
from pymc.streams.encoding import Categories, Encoding, joined_schema
from pymc.streams.passes import in_threads
from pymc.streams.position import Seed, checksum, random_order, seed_of
from pymc.streams.sources.files import Piece, footer_of, import_parquet
from pymc.streams.sources.filters import Filter, Keep, kept_rows
from pymc.streams.sources.hive import constant, hive_columns
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
# Threads that count rows and find categories.
N_THREADS = min(8, os.cpu_count() or 1)


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
    of numbers. It can be iterated again and again, and feeds :class:`shuffle_buffer`,
    :class:`StreamingDataset` or :func:`pymc.Minibatch`.

    ================================== =========================================================
    column of the files                what it becomes
    ================================== =========================================================
    integer, float, boolean            the same
    string, dictionary                 ``int32`` codes: places in the column's ``categories``
    any key that has ``categories=``   the same
    timestamp, date, time, duration    ``float64``: a number of ``time_unit``, as ``units`` says
    decimal                            ``float64``
    fixed-size list ``x`` of k numbers k columns: ``x[0]``, ``x[1]``, ...
    ================================== =========================================================

    Parameters
    ----------
    path : str, Path or sequence of these
        A file, a folder (its ``*.parquet`` files, also in folders below, but for names that
        begin with ``.`` or ``_``), a glob pattern, or a list of these. Files are read in the
        order of their names; those of a list in the order of the list. Or URLs of the same in an
        object store: ``s3://``, ``gs://``, ``az://``, ``hf://``, ... Folders within it that are
        called ``month=3`` are columns: of integers, where all values are, or of strings.
    columns : sequence of str, optional
        The columns to read, in this order. Default: all columns of the first file, which the
        other files must have as well. Columns are matched by name, so their order within a
        file does not matter.
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
    categories : mapping of str to sequence, optional
        The categories of columns, of integers or dates too: code ``i`` stands for the ``i``-th one.
        Those of another source, ``train.categories``, give both the same codes. Default: the
        strings that occur, sorted by code point, which a pass at construction finds.
    unknown : value, or mapping of str to value, optional
        The category that stands for all values that are not among the categories. It comes last,
        unless it is one of them. Default: such a value is an error.
    time_unit : {"s", "D", "h", "min", "ms", "us", "ns"}
        The unit of times: of timestamps and dates since 1970-01-01, in UTC where they know their
        time zone; of times of a day since midnight.
    decimals : {"exact", "round"}
        Whether a decimal number that no float holds is an error, or rounded.
    filters : pyarrow.compute.Expression, optional
        Keep the rows for which this is true, neither false nor null: ``field("month") == 3``. It may
        look at columns that are not read. They are read once at construction, so that ``n_rows`` is
        the number of rows that are streamed; row groups without such a row are not read again.
    filesystem : pyarrow.fs.FileSystem or fsspec.AbstractFileSystem, optional
        The file system that ``path`` is in, which is a plain path then: ``bucket/folder``.
    storage_options : dict, optional
        Keywords, such as credentials, for the file system of fsspec that opens the URL. Default:
        pyarrow opens it, where it can, or else fsspec.

    Attributes
    ----------
    n_rows : int
        Rows in an epoch: from the files' metadata, or as counted.
    n_filtered, n_dropped : int
        Rows left out by ``filters``, and of the others by ``missing="drop"``.
    columns : tuple of str
        The columns in the order in which they are read.
    categories : dict of str to ndarray
        The categories of each column of codes: ``pm.Model(coords=source.categories)``.
    units : dict of str to str
        The unit of each column of times: ``"s since 1970-01-01 UTC"``, say.
    files : tuple of Path
        The files; of a store, objects of which ``str`` gives the URL.
    seed : int
        The seed as a plain number.

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    FileNotFoundError
        If there is no file at ``path``.
    OSError
        If a file cannot be read. Of a store: ``PermissionError`` if it refuses, ``ConnectionError``
        if it does not answer in five attempts, within about ten seconds besides those that the
        libraries make; in the middle of a stream an ``OSError`` that says this, with the row group.
    ValueError
        If a column is missing in a file, if the files hold no row or none that is kept, or if a file
        is not Parquet; while reading, if a column holds a null, a NaN or an infinite value, a value
        that is not among its categories, or a decimal number that no float holds. The message
        names file, row group and column.
    TypeError
        If a column cannot become numbers, or other ones in another file.
    RuntimeError
        While reading, if files were added, removed or changed since construction.

    Notes
    -----
    Of a store, the byte ranges of the columns that are read are fetched, up to 32 at a time, of up to
    64 row groups ahead. Held are up to 128 MB that wait to be read, 128 MB under way and 64 MB that
    are being read, whatever the size of row groups: those of more than 4 MB in these columns, as they
    are in the file, go by a temporary file. Each object is asked for its version once all of a row
    group is there, before a row of it is streamed. With fsspec that is size and ETag (or what the
    store has for it); with pyarrow, size and time to the second.

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

    Keys become codes, and rows are chosen:

    >>> import pyarrow.compute as pc
    >>> folder = tempfile.mkdtemp()
    >>> flights = pa.table({"carrier": ["UA", "AA", "UA"], "delay": [3, -1, 8]})
    >>> pq.write_table(flights, f"{folder}/part-0.parquet")
    >>> source = parquet_source(folder, filters=pc.field("delay") > 0, unknown="other")
    >>> source.n_rows, source.n_filtered, source.categories["carrier"].tolist()
    (2, 1, ['UA', 'other'])
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
        categories: Mapping[str, Any] | None = None,
        unknown: Any = None,
        time_unit: str = "s",
        decimals: str = "exact",
        filters: Any = None,
        filesystem: Any = None,
        storage_options: dict[str, Any] | None = None,
    ):
        import_parquet("parquet_source")
        import pyarrow as pa

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
        self._hive = hive_columns(self._paths, list(self.files))
        row_groups: list[tuple[int, int, int, int]] = []
        all_columns = columns is None
        schemas: list[tuple[Any, Any]] = []
        footers = self._storage.footers(self.files, self._stamps)
        for i, file in enumerate(self.files):
            try:
                metadata = next(footers)
            except (ConnectionError, FileNotFoundError, PermissionError):
                raise
            except Exception as error:
                raise ValueError(f"{file}: not a readable Parquet file: {error}") from error
            schema = metadata.schema.to_arrow_schema()
            if i == 0:  # a column that files have as well is read from these
                self._hive = {n: v for n, v in self._hive.items() if n not in schema.names}
            for name, values in self._hive.items():
                schema = schema.append(pa.field(name, values.type))
            if columns is None:
                columns = schema.names
            elif all_columns and set(schema.names) > set(columns):
                raise ValueError(
                    f"{file}: column(s) {sorted(set(schema.names) - set(columns))} that "
                    f"{self.files[0]} does not have. Name the columns to read with columns=[...]."
                )
            if not schemas or not schema.equals(schemas[-1][1]):
                schemas.append((file, schema))
            for group in range(metadata.num_row_groups):
                size = metadata.row_group(group)
                row_groups.append((i, group, size.num_rows, size.total_byte_size))
        # Number of the file, number in the file, rows and bytes of each row group.
        self._row_groups = np.array(row_groups, dtype=np.int64).reshape(-1, 4)
        n_rows = self._row_groups[:, 2]
        # The place of the first row of each among the rows of all files.
        self._first_rows = np.cumsum(n_rows) - n_rows
        if not columns:
            raise ValueError(f"{self.files[0]}: no columns.")
        self._n_in_files = int(n_rows.sum())
        if self._n_in_files == 0:
            raise ValueError(f"no rows in the {len(self.files)} file(s) at {path}.")
        self._schemas = schemas
        self._schema = joined_schema(schemas, columns)
        self._options: dict[str, Any] = {
            "unknown": unknown,
            "time_unit": time_unit,
            "decimals": decimals,
        }
        self._encoding = Encoding.of(
            self._schema, categories=categories, where=self.files[0], **self._options
        )
        self.columns = self._encoding.columns
        row_bytes = sum(dtype.itemsize for dtype in self._encoding.dtypes.values())
        self._read_rows = max(1, min(READ_ROWS, READ_BYTES // row_bytes))
        self._slice_rows = min(SLICE_ROWS, self._read_rows)
        self._drop = missing == "drop"
        self._keeps: tuple[Keep, ...] = ()
        if filters is not None:
            keep = Filter(filters, schemas[0][1])
            joined_schema(schemas, keep.columns)  # are they in all files?
            self._keeps = (keep,)
        self._select()

    def _select(self) -> None:
        """Count the rows that are kept, and find the categories that are not given."""
        n_rows = n_passed = self._n_in_files
        # Rows that are left in each slice of each row group, those of slices without any left out.
        self._kept: list[list[int]] = []
        if self._keeps:
            n_rows = n_passed = self._count(drop=False)
            if n_rows == 0:
                told = ", ".join(keep.identity for keep in self._keeps)
                raise ValueError(f"no row of the {len(self.files)} file(s) is left by {told}.")
        if self._encoding.unfound:
            self._encoding = self._encoding.with_categories(self._find_categories())
        if self._drop:
            n_rows = self._count(drop=True)
            if n_rows == 0:
                raise ValueError(
                    f"every row of {self.files[0]}{', ...' if len(self.files) > 1 else ''} has a "
                    f"missing value in {self.columns}."
                )
        self.n_rows = n_rows
        self.n_filtered, self.n_dropped = self._n_in_files - n_passed, n_passed - n_rows

    def _count(self, drop: bool) -> int:
        """Count the rows that are kept in each slice of each row group; those without any are gone."""
        columns = self._encoding.raw_columns if drop else ()

        def count(_: int, opened: tuple[int, Any]) -> list[int]:
            number, file = opened
            where = self._place([number])
            batches = self._batches([number], file, self._slice_rows, columns)
            rows = (n_rows_of(self._block(b, where)) if drop else b.num_rows for b in batches)
            return [n_rows for n_rows in rows if n_rows]

        counts = list(self._in_threads(count, columns))
        left = [number for number, kept in enumerate(counts) if kept]
        self._row_groups, self._first_rows = self._row_groups[left], self._first_rows[left]
        self._kept = [counts[number] for number in left]
        return sum(map(sum, self._kept))

    def _find_categories(self) -> dict[str, Any]:
        """Find the values of columns of keys, in a pass that reads no others."""
        names = self._encoding.unfound

        def find(_: int, opened: tuple[int, Any]) -> Categories:
            number, file = opened
            found = Categories(names)
            for batch in self._batches([number], file, self._read_rows, names):
                found.add(batch)
            return found

        found = Categories(names)
        for part in self._in_threads(find, names):
            found.join(part)
        return found.found()

    def _in_threads(self, work: Callable, columns: Sequence[str]) -> Iterator[Any]:
        """Give what each row group comes to, whose number and file some threads work on."""
        numbers = range(self.n_row_groups)
        with closing(self._opened(numbers, columns)) as opened:
            yield from in_threads(zip(numbers, opened), work, N_THREADS)

    def _where(self, keep: Keep) -> "parquet_source":
        """Return a source of those rows that ``keep`` keeps, of the same categories."""
        joined_schema(self._schemas, keep.columns)  # are they in all files?
        other = copy.copy(self)
        other._keeps = (*self._keeps, keep)
        other._select()
        return other

    @property
    def encoding(self) -> Encoding:
        """How the columns of the files become numbers."""
        return self._encoding

    @property
    def categories(self) -> dict[str, np.ndarray]:
        return self._encoding.categories

    @property
    def units(self) -> dict[str, str]:
        return self._encoding.units

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
            **self._meaning,
        }

    @property
    def _meaning(self) -> dict[str, Any]:
        """What rows are kept and what their numbers mean, where this is not all there is to a file."""
        kept = {"filters": [keep.identity for keep in self._keeps]} if self._keeps else {}
        return kept | self._encoding.identity

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
        with closing(self._opened([group], self._encoding.raw_columns)) as opened:
            return next(self._read([group], next(opened), n_rows), None)

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
            for name, values in self._hive.items():
                if values[i].is_valid:
                    ranges.setdefault(name, []).append((values[i].as_py(),) * 2)
        return ranges

    @property
    def identity(self) -> dict[str, Any]:
        """What tells whether the rows are still those of an earlier time."""
        return {
            "files": [[file.name, *stamp] for file, stamp in zip(self.files, self._stamps)],
            "columns": list(self.columns),
            "missing": "drop" if self._drop else "raise",
            **self._meaning,
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
        ends = np.cumsum(self._n_kept)
        first = int(np.searchsorted(ends, start, side="right"))
        skipped = start - int(ends[first - 1]) if first else start
        return self._whole_files(self._by_file(first), skipped)

    def _by_file(self, first: int) -> list[list[int]]:
        """List the row groups of each file, from row group ``first`` on; of a store, one by one."""
        numbers = range(first, self.n_row_groups)
        if isinstance(self._storage, Store):
            return [[number] for number in numbers]
        return [list(some) for _, some in groupby(numbers, lambda n: self._row_groups[n, 0])]

    def tables(self) -> Iterator[Any]:
        """Give one epoch in the order of the files as Arrow tables, of what the columns are there."""
        import pyarrow as pa

        self._check_files()
        types = [t.value_type if pa.types.is_dictionary(t) else t for t in self._schema.types]
        schema = pa.schema(list(zip(self._schema.names, types)))
        parts = self._by_file(0)
        with closing(self._opened((part[0] for part in parts), schema.names)) as opened:
            for numbers, file in zip(parts, opened):
                for batch in self._batches(numbers, file, self._read_rows, schema.names):
                    _, kept = self._encoding(batch, self._place(numbers), self._drop)
                    rows = batch if kept is None else batch.filter(pa.array(kept))
                    yield pa.Table.from_batches([rows]).cast(schema)

    def _over(
        self, path: str | os.PathLike, seed: Seed, storage_options: dict[str, Any] | None
    ) -> "parquet_source":
        """Return a source over other files, whose columns become the same numbers."""
        return parquet_source(
            path,
            columns=self._encoding.raw_columns,
            shuffle_row_groups=True,
            seed=seed,
            categories=self.categories,
            storage_options=storage_options,
            **self._options,
        )

    def _whole_files(self, parts: list[list[int]], start: int) -> Iterator[dict[str, np.ndarray]]:
        """Read row groups of files from row ``start`` on; each file is opened once: that takes time."""
        columns = self._encoding.raw_columns
        with closing(self._opened((part[0] for part in parts), columns)) as opened:
            for numbers, file in zip(parts, opened):
                try:
                    yield from self._read(numbers, file, self._read_rows, start)
                except (ValueError, OSError):
                    if len(numbers) > 1:  # each by itself tells whether it is the one
                        deque(self._in_order(numbers, 0), maxlen=0)
                    raise
                start = 0

    @property
    def _n_kept(self) -> np.ndarray:
        """The rows that are left in each row group."""
        return np.array(list(map(sum, self._kept))) if self._kept else self._row_groups[:, 2]

    def _slices(self, number: int) -> list[int]:
        """List the rows in each slice of a row group."""
        if self._kept:
            return self._kept[number]
        n_rows = int(self._row_groups[number, 2])
        return [
            min(self._slice_rows, n_rows - start) for start in range(0, n_rows, self._slice_rows)
        ]

    def _in_order(self, order: Sequence[int], start: int) -> Iterator[dict[str, np.ndarray]]:
        """Read row groups one after the other, from row ``start`` on."""
        n_kept = self._n_kept
        skipped = 0
        for number in order:
            n_rows = int(n_kept[number])
            if start < n_rows:
                break
            start -= n_rows
            skipped += 1
        order = order[skipped:]
        with closing(self._opened(order, self._encoding.raw_columns)) as opened:
            for number, file in zip(order, opened):
                yield from self._read([number], file, self._read_rows, start)
                start = 0

    def _in_turn(self, order: Sequence[int], start: int) -> Iterator[dict[str, np.ndarray]]:
        """Read some row groups at a time, a slice of each in turn, from row ``start`` on."""
        to_open = (turn.number for turn in self._turns(order, start) if turn.is_first)
        readers: dict[int, Generator[dict[str, np.ndarray], None, None]] = {}
        with closing(self._opened(to_open, self._encoding.raw_columns)) as opened:
            try:
                for number, first, skipped, is_first, is_last in self._turns(order, start):
                    if is_first:
                        file = next(opened)
                        readers[number] = self._read([number], file, self._slice_rows, first)
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

    def _opened(self, numbers: Iterable[int], columns: Sequence[str]) -> Any:
        """Open row groups in order, as they are asked for; those of a store are fetched ahead."""
        names = [name for name in self._looked_at(columns) if name not in self._hive]
        return self._storage.opened(
            Piece(self.files[i], self._stamps[i], group, names)
            for i, group in (self._row_groups[number, :2].tolist() for number in numbers)
        )

    def _looked_at(self, columns: Sequence[str]) -> dict[str, None]:
        """Name columns and those that filters look at, once each and in order."""
        return dict.fromkeys([*columns, *(name for keep in self._keeps for name in keep.columns)])

    def _read(
        self, numbers: list[int], file: Any, n_rows: int, start: int = 0
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """Read row groups of a file, ``n_rows`` at a time, from row ``start`` on.

        They are numbered over all files.
        """
        where = self._place(numbers)
        for batch in self._batches(numbers, file, n_rows, self._encoding.raw_columns):
            if not self._drop and start >= batch.num_rows:
                start -= batch.num_rows
                continue
            block = self._block(batch, where)
            n_kept = n_rows_of(block)
            if start < n_kept:
                yield {name: values[start:] for name, values in block.items()}
            start = max(0, start - n_kept)

    def _batches(
        self, numbers: list[int], file: Any, n_rows: int, columns: Sequence[str]
    ) -> Generator[Any, None, None]:
        """Read columns of row groups of a file as record batches, of the rows that filters keep.

        Of no columns, the batches have the right number of rows.
        """
        pq = import_parquet("parquet_source")
        i = int(self._row_groups[numbers[0], 0])
        read = self._looked_at(columns)
        names = [name for name in read if name not in self._hive]
        # Rows are numbered for a filter, which those of a batch of several row groups may not be.
        parts = [[number] for number in numbers] if self._keeps else [numbers]
        try:
            self._check_unchanged(i, file)
            # Buffered, and not ahead: else pyarrow holds whole row groups, however large.
            with pq.ParquetFile(
                file,
                metadata=footer_of(self.files[i], self._stamps[i]),
                buffer_size=BUFFER_BYTES,
                pre_buffer=False,
                read_dictionary=[n for n in names if n in self._encoding.as_dictionaries],
            ) as reader:
                for part in parts:
                    first_row = int(self._first_rows[part[0]])
                    groups = self._row_groups[part, 1].tolist()
                    for batch in reader.iter_batches(
                        n_rows, row_groups=groups, columns=names, use_threads=False
                    ):
                        self._check_unchanged(i, file)
                        stop = first_row + batch.num_rows
                        for name in read.keys() & self._hive.keys():
                            value = constant(self._hive[name], i, batch.num_rows)
                            batch = batch.append_column(name, value)
                        batch = kept_rows(batch, self._keeps, first_row)
                        yield batch.select(columns) if columns else batch
                        first_row = stop
        except OSError as error:
            raise OSError(f"{self._place(numbers)}: could not be read: {error}") from error

    def _place(self, numbers: list[int]) -> str:
        """Name row groups of a file."""
        file = self.files[int(self._row_groups[numbers[0], 0])]
        groups = self._row_groups[numbers, 1].tolist()
        several = f" to {groups[-1]}" if len(groups) > 1 else ""
        return f"{file}, row group {groups[0]}{several}"

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
        return self._encoding(batch, where, self._drop)[0]
