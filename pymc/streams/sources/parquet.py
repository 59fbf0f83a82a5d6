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
"""Sources: rows from Parquet files, as numbers, in their order or that of random row groups."""

import copy
import os

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from typing import Any

import numpy as np

from pymc.streams.encoding import Encoding
from pymc.streams.executors import check_executor
from pymc.streams.position import Seed, checksum, random_order, seed_of
from pymc.streams.sources.decoding import Columns, DecodedRowGroups
from pymc.streams.sources.files import import_parquet
from pymc.streams.sources.filters import Filter, Keep
from pymc.streams.sources.row_groups import RowGroups

__all__ = ["parquet_source"]


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
        strings that occur, sorted by code point, which a pass at construction finds: also in rows
        that ``missing="drop"`` leaves out, but not in those that ``filters`` does.
    unknown : value, or mapping of str to value, optional
        The category that stands for all values that are not among the categories. It comes last,
        unless it is one of them. Default: such a value is an error.
    time_unit : {"s", "D", "h", "min", "ms", "us", "ns"}
        The unit of times: of timestamps and dates since 1970-01-01, in UTC where they know their
        time zone; of times of a day since midnight. They become floats: 2**53 of a unit are told
        apart, in nanoseconds 104 days.
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
    executor : concurrent.futures.Executor, optional
        Processes or a cluster that make the passes at construction: those that find categories and
        count rows, where there are any. Default: threads. The result is the same to the last bit,
        and the executor is not kept.

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
        executor: Executor | None = None,
    ):
        import_parquet("parquet_source")
        if executor is not None:
            check_executor(executor)
        if missing not in ("raise", "drop"):
            raise ValueError(f'missing must be "raise" or "drop", got {missing!r}.')
        if isinstance(columns, str):
            raise TypeError(f"columns must be a sequence of names, e.g. [{columns!r}].")
        if columns is not None and len(set(columns)) < len(columns):
            raise ValueError(f"columns names a column twice: {list(columns)}.")
        if columns is not None and len(columns) == 0:
            raise ValueError("columns is empty: name at least one column.")
        groups = RowGroups(path, columns, filesystem, storage_options)
        if filters is not None:
            groups = groups.where(Filter(filters, groups.schemas[0][1]))
        self.files = groups.files
        self.shuffle_row_groups = bool(shuffle_row_groups)
        self.seed = seed_of(seed)
        self._seed_given = seed is not None
        self._next_epoch = 0
        self._options: dict[str, Any] = {
            "unknown": unknown,
            "time_unit": time_unit,
            "decimals": decimals,
        }
        encoding = Encoding.of(
            groups.schema, categories=categories, where=self.files[0], **self._options
        )
        self.columns = encoding.columns
        self._missing = missing
        self._select(groups, encoding, executor)

    def _select(self, groups: RowGroups, encoding: Encoding, executor: Executor | None) -> None:
        """Count the rows that are kept, and find the categories that are not given."""
        rows = DecodedRowGroups(groups, encoding)
        if groups.keeps:
            rows = rows.counted(executor)
            if rows.groups.n_rows == 0:
                told = ", ".join(keep.identity for keep in groups.keeps)
                raise ValueError(f"no row of the {len(self.files)} file(s) is left by {told}.")
        n_passed = rows.groups.n_rows
        rows = rows.with_categories(executor)
        if self._missing == "drop":
            rows = DecodedRowGroups(rows.groups, rows.encoding, drop=True).counted(executor)
            if rows.groups.n_rows == 0:
                raise ValueError(
                    f"every row of {self.files[0]}{', ...' if len(self.files) > 1 else ''} has a "
                    f"missing value in {self.columns}."
                )
        self._rows, self._groups, self.n_rows = rows, rows.groups, rows.groups.n_rows
        self.n_filtered, self.n_dropped = groups.n_in_files - n_passed, n_passed - self.n_rows

    def _where(self, keep: Keep) -> "parquet_source":
        """Return a source of those rows that ``keep`` keeps, of the same categories."""
        other = copy.copy(self)
        other._select(self._groups.where(keep), self.encoding, None)
        return other

    @property
    def encoding(self) -> Encoding:
        """How the columns of the files become numbers."""
        return self._rows.encoding

    @property
    def keeps(self) -> tuple[Keep, ...]:
        """What rows are kept: filters, and parts of splits."""
        return self._groups.keeps

    @property
    def categories(self) -> dict[str, np.ndarray]:
        return self.encoding.categories

    @property
    def units(self) -> dict[str, str]:
        return self.encoding.units

    def __repr__(self) -> str:
        return f"<parquet_source of {self.n_rows:,} rows in {len(self.files)} file(s): {self.encoding}>"

    def __iter__(self) -> Iterator[Columns]:
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.read(epoch)

    def read(self, epoch: int, start: int = 0) -> Iterator[Columns]:
        """Open an epoch at row ``start``. What it gives depends on files, seed and epoch alone."""
        self.check_files()
        if not self.shuffle_row_groups:
            return self._rows.in_order(range(len(self._groups)), start)
        order = random_order(self.n_row_groups, self.seed, "parquet_source", epoch).tolist()
        if self.n_rows > self._rows.slice_rows * self.n_row_groups:
            return self._rows.in_turn(order, start)
        return self._rows.in_order(order, start)

    @property
    def seekable(self) -> bool:
        """Whether an epoch can be opened at any row."""
        return True

    @property
    def in_random_order(self) -> bool:
        """Whether rows come in large pieces in random order, or were shuffled on disk."""
        return self.shuffle_row_groups or self._groups.is_shuffled

    @property
    def stream_identity(self) -> dict[str, Any]:
        """What tells a stream of this source from another one, as plain values."""
        names = "\n".join(self._groups.labels).encode()
        sizes = [size for size, _ in self._groups.stamps]
        return {
            "n_files": len(self.files),
            # Not the times of files, which change when they are copied to another machine.
            "files": checksum([np.frombuffer(names, "u1"), np.array(sizes), self._groups.table]),
            "n_rows": self.n_rows,
            "columns": list(self.columns),
            "missing": self._missing,
            "shuffle_row_groups": self.shuffle_row_groups,
            "seed": self.seed if self.shuffle_row_groups else None,
            **self._meaning,
        }

    @property
    def _meaning(self) -> dict[str, Any]:
        """What rows are kept and what their numbers mean, where this is not all there is to a file."""
        keeps = [keep.identity for keep in self.keeps]
        kept = {"filters": keeps} if keeps else {}
        return kept | self.encoding.identity

    def with_seeds_of(self, identity: dict[str, Any]) -> "parquet_source":
        """Return the same source, with the seed of an identity if none was given."""
        other = copy.copy(self)
        if not self._seed_given and self.shuffle_row_groups:
            other.seed = identity["seed"]
        return other

    @property
    def n_row_groups(self) -> int:
        """Number of row groups in all files."""
        return len(self._groups)

    def row_groups_in(self, n_rows: int) -> float:
        """Tell how many row groups ``n_rows`` consecutive rows come from, in random order."""
        return self._rows.n_groups_in(n_rows)

    def first_rows(self, group: int, n_rows: int) -> Columns | None:
        """Read up to ``n_rows`` first rows of a row group, numbered over all files, if it has any."""
        with closing(self._groups.opened([group], self.encoding.raw_columns)) as opened:
            return next(self._rows.read([group], next(opened), n_rows), None)

    def row_group_ranges(self) -> dict[str, list[tuple[Any, Any]]]:
        """Tell minimum and maximum of each column, also of those that are not read, in row groups."""
        return self._groups.ranges()

    @property
    def identity(self) -> dict[str, Any]:
        """What tells whether the rows are still those of an earlier time."""
        return {
            "files": [
                [name, *stamp] for name, stamp in zip(self._groups.labels, self._groups.stamps)
            ],
            "columns": list(self.columns),
            "missing": self._missing,
            **self._meaning,
        }

    def check_files(self) -> None:
        """Raise if there are other files than when the source was made."""
        self._groups.check_files()

    @property
    def row_group_rows(self) -> np.ndarray:
        """Rows of each row group that are streamed."""
        return self._groups.n_kept

    def by_row_group(self, first: int = 0, stop: int | None = None) -> Iterator[Columns]:
        """Give one epoch in the order of the files, a row group or a part of one at a time.

        Of some row groups, if told so: :meth:`check_files` is then for the caller.
        """
        if stop is None:
            self.check_files()
        return self._rows.in_order(range(len(self._groups))[first:stop], 0)

    def unshuffled(self, start: int = 0, stop: int | None = None) -> Iterator[Columns]:
        """Give one epoch from row ``start`` on, in the order of the files.

        Blocks may span row groups of a file. Row groups before ``start`` are counted, not read, and
        with ``stop`` those from that row on: :meth:`check_files` is then for the caller, as listing
        files for each of many ranges takes time.
        """
        ends = np.cumsum(self._groups.n_kept)
        first, last = int(np.searchsorted(ends, start, side="right")), len(ends)
        if stop is None:
            self.check_files()
        else:
            last = min(last, int(np.searchsorted(ends, stop)) + 1)
        skipped = start - int(ends[first - 1]) if first else start
        return self._rows.in_file_order(range(first, last), skipped)

    def tables(self) -> Iterator[Any]:
        """Give one epoch in the order of the files as Arrow tables, of what the columns are there."""
        import pyarrow as pa

        self.check_files()
        groups = self._groups
        types = [t.value_type if pa.types.is_dictionary(t) else t for t in groups.schema.types]
        schema = pa.schema(list(zip(groups.schema.names, types)))
        parts = groups.by_file(range(len(groups)))
        with closing(groups.opened((part[0] for part in parts), schema.names)) as opened:
            for numbers, file in zip(parts, opened):
                for batch in self._rows.batches(numbers, file, self._rows.read_rows, schema.names):
                    _, kept = self.encoding(batch, groups.place(numbers), self._rows.drop)
                    rows = batch if kept is None else batch.filter(pa.array(kept))
                    yield pa.Table.from_batches([rows]).cast(schema)

    def _over(
        self, path: str | os.PathLike, seed: Seed, storage_options: dict[str, Any] | None
    ) -> "parquet_source":
        """Return a source over other files, whose columns become the same numbers."""
        return parquet_source(
            path,
            columns=self.encoding.raw_columns,
            shuffle_row_groups=True,
            seed=seed,
            categories=self.categories,
            storage_options=storage_options,
            **self._options,
        )
