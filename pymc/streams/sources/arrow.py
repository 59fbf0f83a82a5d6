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

from pymc.streams.sources.filters import Filter, kept_rows

# Rows that are read at a time, and fewer of them where they take more bytes than this.
BATCH_ROWS, BATCH_BYTES = 65_536, 2**22
# Bytes of a column of a Parquet file that are read at a time.
BUFFER_BYTES = 65_536
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


class DatasetRows(ArrowRows):
    """A dataset of pyarrow: files of any format that it reads."""

    def __init__(self, data: Any, name: str = "dataset"):
        self._dataset, self.name, self.schema = data, name, data.schema
        self.files = tuple(getattr(data, "files", ()))
        # Which rows to read: the statistics of Parquet files tell what to pass over.
        self.filters: Any = None

    def count(self) -> int:
        return self._dataset.count_rows(filter=self.filters)

    def batches(self, columns: Sequence[str], n_rows: int) -> Iterator[Any]:
        import pyarrow as pa

        try:
            yield from self._batches(list(columns), n_rows)
        except pa.ArrowException as error:
            raise ValueError(
                f"{self.name}: {error}. (The types of CSV and JSON files are guessed from their "
                "first rows. To give them: pyarrow.dataset.dataset(path, format=..., schema=...).)"
            ) from error

    def _batches(self, columns: list[str], n_rows: int) -> Iterator[Any]:
        import pyarrow.dataset as pads

        if isinstance(getattr(self._dataset, "format", None), pads.ParquetFileFormat):
            try:
                fragments = list(self._dataset.get_fragments(self.filters))
            except ValueError:  # those of Dataset.filter are not given away
                pass
            else:
                for fragment in fragments:
                    yield from self._parquet_batches(fragment, columns, n_rows)
                return
        yield from self._dataset.to_batches(
            columns=columns,
            filter=self.filters,
            batch_size=n_rows,
            batch_readahead=0,
            fragment_readahead=0,
        )

    def _parquet_batches(self, fragment: Any, columns: list[str], n_rows: int) -> Iterator[Any]:
        """Read a Parquet file some rows at a time: a scan holds whole row groups of it."""
        import pyarrow as pa
        import pyarrow.dataset as pads
        import pyarrow.parquet as pq

        read, keeps = columns, ()
        if self.filters is not None:
            keeps = (Filter(self.filters, self.schema),)
            read = list(dict.fromkeys([*columns, *keeps[0].columns]))
            fragment = fragment.subset(self.filters, schema=self.schema)
        schema = schema_of(self.schema, read)
        # Columns in the names of folders come first, as in a scan.
        constants = pads.get_partition_keys(fragment.partition_expression)
        in_file = [n for n in fragment.physical_schema.names if n in read and n not in constants]
        options = fragment.format.read_options
        with (
            fragment.open() as opened,
            pq.ParquetFile(
                opened,
                read_dictionary=sorted(options.dictionary_columns),
                coerce_int96_timestamp_unit=options.coerce_int96_timestamp_unit,
                pre_buffer=False,
                buffer_size=BUFFER_BYTES,
            ) as file,
        ):
            groups = [group.id for group in fragment.row_groups]
            for batch in file.iter_batches(n_rows, groups, in_file, use_threads=False):
                arrays = [
                    batch[field.name].cast(field.type)
                    if field.name in in_file
                    else _repeated(constants.get(field.name), field.type, batch.num_rows)
                    for field in schema
                ]
                rows = pa.RecordBatch.from_arrays(arrays, schema=schema)
                yield kept_rows(rows, keeps, 0).select(columns)


def _repeated(value: Any, arrow_type: Any, n_rows: int) -> Any:
    """Return a value, or null, as a column."""
    import pyarrow as pa

    if value is None:
        return pa.nulls(n_rows, arrow_type)
    if not pa.types.is_dictionary(arrow_type):
        return pa.repeat(pa.scalar(value, arrow_type), n_rows)
    places = pa.repeat(pa.scalar(0, arrow_type.index_type), n_rows)
    return pa.DictionaryArray.from_arrays(places, pa.array([value], arrow_type.value_type))


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
