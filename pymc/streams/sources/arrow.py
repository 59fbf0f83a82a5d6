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
"""Arrow rows: tables in memory and on disk, as record batches of bounded size.

pyarrow is imported where it is used: PyMC does not depend on it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

# Rows that are read at a time, and fewer of them where they take more bytes than this.
BATCH_ROWS, BATCH_BYTES = 65_536, 2**22
# What a value without a fixed width, a string say, is taken for.
VALUE_BYTES = 32


class ArrowRows:
    """Rows that can be read again and again as Arrow tables, from the first one on.

    Attributes
    ----------
    name : str
        What messages call them.
    schema : pyarrow.Schema
        Names and types of their columns.
    files : tuple of str
        The files that they are in, where it is known.
    seekable : bool
        Whether reading can begin at any row.
    n_bytes : int
        What they take in memory.
    """

    name = "table"
    schema: Any
    files: tuple[str, ...] = ()
    seekable = False
    n_bytes = 0

    def count(self) -> int | None:
        """Tell how many rows there are, where that takes no pass in Python."""
        return None

    def files_now(self) -> tuple[str, ...]:
        """List the files that are there now, where more would be rows as well."""
        return self.files

    def batches(self, columns: Sequence[str], n_rows: int) -> Iterable[Any]:
        """Read these columns, as a rule ``n_rows`` rows at a time: record batches or tables."""
        raise NotImplementedError


class SeekableRows(ArrowRows):
    """Rows that can be read from any one on."""

    seekable = True

    def count(self) -> int:
        raise NotImplementedError

    def rows(self, columns: Sequence[str], start: int, stop: int) -> Any:
        """Read some rows as a table."""
        raise NotImplementedError

    def batches(self, columns: Sequence[str], n_rows: int, first: int = 0) -> Iterator[Any]:
        """Read from row ``first`` on."""
        total = self.count()
        for start in range(first, total, n_rows):
            yield self.rows(columns, start, min(total, start + n_rows))


class TableRows(SeekableRows):
    """A table in memory: of slices of it nothing is copied."""

    name = "Arrow table"

    def __init__(self, data: Any):
        import pyarrow as pa

        self._table = pa.table(data)
        self.n_bytes = self._table.nbytes
        # Arrow computes little with views.
        self.schema = pa.schema(
            field.with_type(pa.large_string()) if field.type == "string_view" else field
            for field in self._table.schema
        )

    def count(self) -> int:
        return self._table.num_rows

    def rows(self, columns: Sequence[str], start: int, stop: int) -> Any:
        rows = self._table.select(columns).slice(start, stop - start)
        return rows.cast(schema_of(self.schema, columns))


class PandasRows(SeekableRows):
    """A pandas DataFrame, which is converted slice by slice."""

    name = "DataFrame"

    def __init__(self, data: pd.DataFrame):
        import pyarrow as pa

        self._frame = _with_names(data)
        try:
            self.schema = pa.Schema.from_pandas(self._frame, preserve_index=False)
        except (pa.ArrowException, TypeError) as error:
            raise TypeError(f"DataFrame: a column that is no column of a table: {error}") from error
        self.n_bytes = int(data.memory_usage(index=False).sum())

    def count(self) -> int:
        return len(self._frame)

    def rows(self, columns: Sequence[str], start: int, stop: int) -> Any:
        return from_pandas(self._frame[list(columns)].iloc[start:stop], self.schema)


class ScannerRows(ArrowRows):
    """A scanner of pyarrow."""

    name = "scanner"

    def __init__(self, data: Any):
        self._scanner, self.schema = data, data.projected_schema

    def batches(self, columns: Sequence[str], n_rows: int) -> Iterator[Any]:
        return (batch.select(columns) for batch in self._scanner.to_batches())


class IpcRows(ArrowRows):
    """An Arrow IPC file that is open."""

    name = "Arrow IPC file"

    def __init__(self, data: Any):
        self._file, self.schema = data, data.schema

    def count(self) -> int:
        return sum(self._file.get_batch(i).num_rows for i in range(self._file.num_record_batches))

    def batches(self, columns: Sequence[str], n_rows: int) -> Iterator[Any]:
        for i in range(self._file.num_record_batches):
            yield self._file.get_batch(i).select(columns)


class StreamRows(ArrowRows):
    """What exports an Arrow stream, each time anew."""

    def __init__(self, data: Any):
        self._data, self.name = data, type(data).__name__
        self.schema = self._open().schema

    def _open(self) -> Any:
        import pyarrow as pa

        return pa.RecordBatchReader.from_stream(self._data)

    def batches(self, columns: Sequence[str], n_rows: int) -> Iterator[Any]:
        return (batch.select(columns) for batch in self._open())


def table_of(block: Any, where: str) -> Any:
    """Return a block as a pyarrow table."""
    import pyarrow as pa

    try:
        if isinstance(block, pd.DataFrame):
            return from_pandas(_with_names(block))
        if isinstance(block, Mapping) or hasattr(block, "__arrow_c_stream__"):
            return pa.table(block)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise TypeError(f"{where}: no columns of a table: {error}") from error
    raise TypeError(
        f"{where}: table_source takes tables, and this is a {type(block).__name__}. Give blocks of "
        "many rows: pandas.DataFrame(rows, columns=[...])."
    )


def from_pandas(frame: pd.DataFrame, schema: Any = None) -> Any:
    """Convert a DataFrame without its index, to types of a schema."""
    import pyarrow as pa

    if schema is not None:
        schema = schema_of(schema, frame.columns)
    return pa.Table.from_pandas(frame, schema=schema, preserve_index=False)


def schema_of(schema: Any, columns: Sequence[str]) -> Any:
    """Return the schema of some columns."""
    import pyarrow as pa

    return pa.schema([schema.field(name) for name in columns])


def _with_names(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a DataFrame whose columns have strings as names."""
    named = all(isinstance(name, str) for name in frame.columns)
    return frame if named else frame.rename(columns=str)


def batch_rows(schema: Any, columns: Sequence[str]) -> int:
    """Tell how many rows of some columns to read at a time."""
    widths = []
    for name in columns:
        try:
            widths.append(max(1, schema.field(name).type.bit_width // 8))
        except ValueError:
            widths.append(VALUE_BYTES)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // sum(widths)))
