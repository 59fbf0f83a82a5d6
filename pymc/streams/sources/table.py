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
"""Table sources: rows of tables and table files of any library, a batch at a time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pymc.streams.blocks import n_rows_of
from pymc.streams.encoding import Categories, Encoding
from pymc.streams.position import checksum
from pymc.streams.sources.arrow import SeekableRows, batch_rows
from pymc.streams.sources.dataset import DatasetRows
from pymc.streams.sources.files import stamp_of
from pymc.streams.sources.opening import rows_of

__all__ = ["table_source"]

# Rows of a table in memory that tell whether it is still the same: so many samples, spread evenly.
SAMPLES, SAMPLE_ROWS = 16, 256


class table_source:
    """Stream the rows of a table, of any library that speaks Arrow, or of table files.

    Iterating gives one epoch: blocks that map each column to an array of shape ``(rows,)``. Strings,
    times and decimals become numbers, as in :class:`parquet_source`. A stream, a
    :class:`shuffle_buffer` and whatever else takes a source wrap tables by themselves; what is said
    here is how, and with which arguments.

    Parameters
    ----------
    data : object
        One of:

        - a path, a pattern (``"rows/*.csv"``), or a list of these, of files that
          :mod:`pyarrow.dataset` reads (CSV, Arrow IPC, Feather, JSON, ORC, Parquet), or a folder of
          them, with hive partitions as columns. For Parquet files :class:`parquet_source` is faster,
          and can read row groups in random order;
        - a table: of pyarrow or polars, a pandas DataFrame, or a mapping of columns;
        - what makes tables in batches: a polars LazyFrame, a DuckDB relation, a dataset, scanner or
          open IPC file of pyarrow, a Hugging Face Dataset or IterableDataset, a DeltaTable, a Ray
          Dataset, a Dask DataFrame, or any object with an Arrow stream (``__arrow_c_stream__``);
        - a list of tables, or a function without arguments that returns any of these, or an iterable
          of tables, anew in each epoch.
    format : str, optional
        Format of the files at a path. Default: as their names end.
    columns : sequence of str, optional
        The columns to read, in this order. Default: all.
    filters : pyarrow.dataset.Expression, optional
        Which rows to read: those for which it is true, ``pyarrow.dataset.field("x") > 0``.
    categories : mapping of str to sequence, optional
        Categories of columns of keys, in the order of their codes, such as the ``categories`` of
        another source. Default: those of all rows that ``filters`` leaves, sorted.
    unknown : value, or mapping of str to value, optional
        The category that stands for values that are not among the categories. Default: such a value
        is an error.
    time_unit : {"s", "D", "h", "min", "ms", "us", "ns"}
        Unit of columns of times, which become floats: 2**53 of a unit are told apart, in nanoseconds
        104 days.
    decimals : {"exact", "round"}, default "exact"
        Whether a decimal number that a float does not hold is an error.
    missing : {"raise", "drop"}, default "raise"
        What to do with rows that hold a null, a NaN or an infinite value in one of the columns: an
        error, or leave them out.

    Attributes
    ----------
    n_rows : int or None
        Rows in an epoch; None where only reading them all would tell (functions, iterables, scanners).
    n_dropped : int
        Rows left out by ``missing="drop"``.
    columns : tuple of str
        The columns.
    categories : dict of str to ndarray
        The categories of each column of keys: code ``i`` stands for the ``i``-th one.
    units : dict of str to str
        The unit of each column of times.

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    FileNotFoundError
        If there is no file at a path.
    TypeError
        If ``data`` is no table, is an iterator (which can be read only once), or has a column that
        cannot become numbers.
    ValueError
        If a column is missing, if there are no rows, if files differ in their columns or belong to a
        Delta or Iceberg table; while reading, if a column holds a null, a NaN or an infinite value.
        The message names rows and column.
    RuntimeError
        While reading, if files were added, removed or changed since construction.

    Notes
    -----
    All rows are read once at construction if there are keys without ``categories``, with ``filters``
    and with ``missing="drop"``, so that categories and ``n_rows`` are those of the rows that are
    streamed. Else N is asked of the object, which for a query (LazyFrame, DuckDB), for CSV files and
    for Dask takes as long as counting its rows.

    A table in memory (pyarrow, polars, pandas) and a Hugging Face Dataset are *seekable*: a stream
    can go on at any row of them. Of the others it reads all rows before the one that it goes on at.

    Examples
    --------
    >>> import pandas as pd
    >>> from pymc.variational.streaming import table_source
    >>> flights = pd.DataFrame({"carrier": ["UA", "AA", "UA"], "delay": [2.0, 11.0, -4.0]})
    >>> source = table_source(flights)
    >>> source.n_rows, source.columns, source.categories["carrier"].tolist()
    (3, ('carrier', 'delay'), ['AA', 'UA'])
    >>> [block["carrier"].tolist() for block in source]
    [[1, 0, 1]]
    """

    gives_checked_blocks = True
    in_random_order = False

    def __init__(
        self,
        data: Any,
        *,
        format: str | None = None,
        columns: Sequence[str] | None = None,
        filters: Any = None,
        categories: Mapping[str, Any] | None = None,
        unknown: Any = None,
        time_unit: str = "s",
        decimals: str = "exact",
        missing: str = "raise",
    ):
        if missing not in ("raise", "drop"):
            raise ValueError(f'missing must be "raise" or "drop", got {missing!r}.')
        if isinstance(columns, str):
            raise TypeError(f"columns must be a sequence of names, e.g. [{columns!r}].")
        self._rows = rows_of(data, format)
        self._encoding = Encoding.of(
            self._rows.schema,
            columns,
            categories=categories,
            unknown=unknown,
            time_unit=time_unit,
            decimals=decimals,
            where=self._rows.name,
        )
        self.columns = self._encoding.columns
        if not self.columns:
            raise ValueError(f"{self._rows.name}: no columns.")
        self._identity_of_filters = None if filters is None else str(filters)
        if isinstance(self._rows, DatasetRows):
            self._rows.filters, filters = filters, None
        self._filters, self._drop = filters, missing == "drop"
        self._stamps = self._look_at_files()
        self._batch_rows = batch_rows(self._rows.schema, self._encoding.raw_columns)
        # Rows that are left of each batch, where some are left out.
        self._kept: list[int] | None = None
        self.n_dropped = 0
        if self._encoding.unfound:
            found, n_rows = Categories(self._encoding.unfound), 0
            for _, table in self._tables(self._encoding.unfound):
                found.add(table)
                n_rows += table.num_rows
            self._check_rows(n_rows)
            self._encoding = self._encoding.with_categories(found.found())
        if self._drop or filters is not None:
            self._kept = self._count_kept()
        self.n_rows = self._rows.count() if self._kept is None else sum(self._kept)
        self._check_rows(self.n_rows)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self.read(0)

    def __repr__(self) -> str:
        n_rows = "rows that were not counted" if self.n_rows is None else f"{self.n_rows:,} rows"
        return f"<table_source of {n_rows} of {self._rows.name}: {self._encoding}>"

    def read(self, epoch: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Open an epoch, at row ``start`` if the source is seekable. All epochs are the same."""
        return self._blocks(start)

    def unshuffled(
        self, start: int = 0, stop: int | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Give one epoch, from row ``start`` on if the source is seekable."""
        return self._blocks(start)

    def tables(self) -> Iterator[Any]:
        """Give one epoch with all columns, in the types that they have."""
        for where, table in self._tables(self._rows.schema.names):
            kept = self._encoding(table, where, True)[1] if self._drop else None
            yield table if kept is None else table.filter(kept)

    @property
    def encoding(self) -> Encoding:
        """How the columns become numbers."""
        return self._encoding

    @property
    def categories(self) -> dict[str, np.ndarray]:
        return self._encoding.categories

    @property
    def units(self) -> dict[str, str]:
        return self._encoding.units

    @property
    def seekable(self) -> bool:
        """Whether an epoch can be opened at any row."""
        return self._rows.seekable

    @property
    def n_bytes(self) -> int:
        """What the rows take in memory."""
        return self._rows.n_bytes

    @property
    def stream_identity(self) -> dict[str, Any]:
        """What tells a stream of this source from another one, as plain values."""
        return {
            "rows": self._rows_identity,
            "n_rows": self.n_rows,
            "columns": list(self.columns),
            "filters": self._identity_of_filters,
            "missing": "drop" if self._drop else "raise",
            **self._encoding.identity,
        }

    def with_seeds_of(self, identity: dict[str, Any]) -> "table_source":
        """Return the same source: it has no seed."""
        return self

    @cached_property
    def _rows_identity(self) -> Any:
        """Tell files by their names and sizes, other rows by some of them; None where neither goes."""
        if self._rows.files:
            parts = [Path(file).parts for file in self._rows.files]
            names = ["/".join([*(p for p in some[:-1] if "=" in p), some[-1]]) for some in parts]
            return checksum([np.frombuffer(f"{names}{self._sizes}".encode(), "u1")])
        if not isinstance(self._rows, SeekableRows):
            return None
        n_rows = self._rows.count()
        starts = np.linspace(0, max(0, n_rows - SAMPLE_ROWS), SAMPLES).astype(int).tolist()
        columns, blocks = self._encoding.raw_columns, []
        for start in starts:
            table = self._rows.rows(columns, start, min(n_rows, start + SAMPLE_ROWS))
            blocks.append(self._encoding(table, self._rows.name, drop=True)[0])
        return checksum(values for block in blocks for values in block.values())

    @property
    def _sizes(self) -> list[int]:
        return [size for size, _ in self._stamps]

    def _check_rows(self, n_rows: int | None) -> None:
        if n_rows == 0:
            raise ValueError(f"{self._rows.name}: no rows that are to be read.")

    def _look_at_files(self) -> list[tuple[int, int]]:
        """Look at the local files: their sizes and times tell whether they have changed."""
        try:
            return [stamp_of(Path(file)) for file in self._rows.files]
        except FileNotFoundError:
            return []

    def _tables(self, columns: Sequence[str], first: int = 0) -> Iterator[tuple[str, Any]]:
        """Read tables of some columns from a batch on, each with what messages call it.

        Those of rows that are not seekable are read from the first batch on.
        """
        import pyarrow as pa

        other = set(self._rows.files) ^ set(self._rows.files_now())
        if other:
            raise RuntimeError(
                f"{', '.join(sorted(other))}: added or removed since the source was made, so that its "
                "rows are not the data any more. Make a new source (and a new model: N has changed)."
            )
        if self._look_at_files() != self._stamps:
            raise RuntimeError(
                f"{self._rows.name}: a file was removed or changed since the source was made, so that "
                "its rows are not those that it counts any more. Make a new source."
            )
        # Which columns a filter reads, it does not say.
        read = columns if self._filters is None else self._rows.schema.names
        row = first * self._batch_rows
        if isinstance(self._rows, SeekableRows):
            batches: Iterable[Any] = self._rows.batches(read, self._batch_rows, row)
        else:
            batches = self._rows.batches(read, self._batch_rows)
        for batch in batches:
            table = pa.table(batch)
            where = f"{self._rows.name}, rows {row:,} to {row + table.num_rows:,}"
            row += table.num_rows
            if self._filters is not None:
                table = table.filter(self._filters)
            yield where, table

    def _blocks(self, start: int) -> Iterator[dict[str, np.ndarray]]:
        first = 0
        if self.seekable and self._kept is not None:
            ends = np.cumsum(self._kept)
            first = int(np.searchsorted(ends, start, side="right"))
            start -= int(ends[first - 1]) if first else 0
        elif self.seekable:
            first, start = divmod(start, self._batch_rows)
        for where, table in self._tables(self._encoding.raw_columns, first):
            block, _ = self._encoding(table, where, self._drop)
            n_rows = n_rows_of(block)
            if start < n_rows:
                yield {name: values[start:] for name, values in block.items()}
            start = max(0, start - n_rows)

    def _count_kept(self) -> list[int]:
        """Count the rows that are left of each batch."""
        kept = []
        for where, table in self._tables(self._encoding.raw_columns):
            kept.append(n_rows_of(self._encoding(table, where, self._drop)[0]))
            self.n_dropped += table.num_rows - kept[-1]
        return kept
