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
"""Tables: the rows of a source with all their columns and types, and checksums of them."""

import os
import tempfile

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pandas.util import hash_array

from pymc.streams.blocks import Blocks, is_arrow, raw_blocks
from pymc.streams.sources.decoding import READ_ROWS
from pymc.streams.sources.files import (
    Disk,
    Piece,
    Stamp,
    footer_of,
    import_parquet,
    read_footers,
)
from pymc.streams.sources.hive import constant, hive_columns, labels
from pymc.streams.sources.opening import is_arrow_source, rows_of, tables_in
from pymc.streams.sources.parquet import parquet_source
from pymc.streams.sources.stores import files_at
from pymc.streams.sources.table import table_source

# Bytes decoded at a time, which is what fewer than READ_ROWS wide rows take.
READ_BYTES = 2**23
# Bytes that files are read in, for all columns together and for one.
BUFFER_BYTES, MIN_BUFFER, MAX_BUFFER = 2**22, 2**12, 2**16
# Bytes of a page, and of a dictionary, that a reader holds for a column, as most writers make them;
# and how many it may hold for all columns. Of more, only a few columns are decoded at a time.
PAGE_BYTES = 2**20
MAX_PAGES_BYTES = 2**26
# Rows hashed at a time: what fits into a CPU's cache.
HASH_ROWS = 32_768
HASH_OF_NULL = 0x9E3779B97F4A7C15
ROW_FACTOR = np.uint64(1_000_003)


def tables_of(
    source: Any, storage_options: dict[str, Any] | None = None
) -> "FileTables | BlockTables":
    """See the files at a path or URL, or any source, as tables."""
    paths = [source] if isinstance(source, str | os.PathLike) else source
    if isinstance(paths, list | tuple) and all(isinstance(p, str | os.PathLike) for p in paths):
        return FileTables(*files_at(paths, storage_options=storage_options))
    return BlockTables(source)


class FileTables:
    """Rows of Parquet files, with all columns, a table at a time.

    Attributes
    ----------
    schema : pyarrow.Schema
        Columns and types, which hold those of each file.
    n_rows : int
        Number of rows.
    storage : Disk or Store
        Where the files are.
    paths, files : list of Path or StoredPath
        Where the files were looked for, and the files.
    stamps : list of tuple
        Size and time of each file, by which a change is noticed.
    identity : dict
        What differs if the rows are not those of an earlier time any more.
    scratch : Path or None
        Folder for temporary files; None for the system's.
    """

    def __init__(self, storage: Any, paths: list[Any]):
        import_parquet("pre_shuffle")
        import pyarrow as pa

        self.scratch: Path | None = None
        self.storage, self.paths = storage, paths
        self.files = storage.find(paths)
        self.stamps = storage.stamps(self.files)
        hive = hive_columns(paths, self.files)
        names = labels(self.files, hive)
        self.identity = {"files": [[name, *stamp] for name, stamp in zip(names, self.stamps)]}
        self.n_rows = 0
        schemas: list[Any] = []
        footers = read_footers(storage, self.files, self.stamps)
        for file, metadata in zip(self.files, footers):
            self.n_rows += metadata.num_rows
            schema = metadata.schema.to_arrow_schema()
            if not schemas:  # a column that files have as well is read from these
                self._hive = {n: v for n, v in hive.items() if n not in schema.names}
            for name, values in self._hive.items():
                schema = schema.append(pa.field(name, values.type))
            schemas.append(schema)
            names, expected = schemas[-1].names, schemas[0].names
            if not names:
                raise ValueError(f"{file}: no columns.")
            if len(set(names)) < len(names) or set(names) != set(expected):
                raise ValueError(
                    f"{file}: the columns are {names}, and should be those of {self.files[0]}, "
                    f"each once: {expected}."
                )
        try:
            schema = pa.unify_schemas(schemas, promote_options="permissive")
        except pa.ArrowException as error:
            raise ValueError(f"the types of a column differ between files: {error}") from error
        self.schema = _as_parquet(schema)

    def __iter__(self) -> Generator[Any, None, None]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = _plain(self.schema)
        row_bytes = sum(map(width_of, schema.types))
        buffer_bytes = min(MAX_BUFFER, max(MIN_BUFFER, BUFFER_BYTES // len(schema)))
        in_files = [name for name in schema.names if name not in self._hive]
        pieces = [
            (i, Piece(file, stamp, group, in_files))
            for i, (file, stamp) in enumerate(zip(self.files, self.stamps))
            for group in range(footer_of(file, stamp).num_row_groups)
        ]
        last = None
        with (
            closing(self.storage.opened(piece for _, piece in pieces)) as opened,
            ExitStack() as readers,
        ):
            for (i, (file, stamp, group, _)), source in zip(pieces, opened):
                if self.storage.stamp_of_opened(source) != stamp:
                    raise RuntimeError(f"{file}: changed while it was read.")
                if source is not last:  # a file on disk is opened once for all its row groups
                    readers.close()
                    # Read as it is decoded: a row group may be larger than memory.
                    reader = readers.enter_context(
                        pq.ParquetFile(
                            source,
                            metadata=footer_of(file, stamp),
                            pre_buffer=False,
                            buffer_size=buffer_bytes,
                        )
                    )
                    last = source
                size = reader.metadata.row_group(group)
                n_bytes = max(1, size.total_byte_size, size.num_rows * row_bytes)
                n_rows = max(1, min(READ_ROWS, READ_BYTES * size.num_rows // n_bytes))
                where = f"{file}, row group {group}"
                if _pages_bytes(size) > MAX_PAGES_BYTES:
                    n_columns = max(1, READ_BYTES * len(schema) // n_bytes)
                    tables = self._by_columns(reader, group, n_rows, n_columns, where)
                else:
                    batches = reader.iter_batches(n_rows, row_groups=[group], use_threads=False)
                    tables = (pa.Table.from_batches([batch]) for batch in batches)
                for table in tables:
                    for name, values in self._hive.items():
                        value = constant(values, i, table.num_rows)
                        table = table.append_column(name, value)
                    yield _cast(table, schema, where)

    def _by_columns(
        self, reader: Any, group: int, n_rows: int, n_columns: int, where: str
    ) -> Iterator[Any]:
        """Read a row group, ``n_rows`` at a time, but decode it ``n_columns`` at a time."""
        import pyarrow as pa

        fields = [column for column in _plain(self.schema) if column.name not in self._hive]
        schema = pa.schema(fields)
        with ExitStack() as opened:
            decoded = []
            for start in range(0, len(fields), n_columns):
                some = pa.schema(fields[start : start + n_columns])
                table = reader.read_row_group(group, columns=some.names, use_threads=False)
                table = _cast(table.select(some.names), some, where).combine_chunks()
                file = opened.enter_context(tempfile.TemporaryFile(dir=self.scratch))
                with pa.ipc.new_file(file, some) as writer:
                    writer.write_table(table, max_chunksize=n_rows)
                decoded.append(opened.enter_context(pa.ipc.open_file(file)))
                del table
            for i in range(decoded[0].num_record_batches):
                batches = [part.get_batch(i) for part in decoded]
                columns = [column for batch in batches for column in batch.columns]
                yield pa.Table.from_arrays(columns, schema=schema)


def _pages_bytes(row_group: Any) -> int:
    """Tell what a reader holds that decodes all columns of a row group together."""
    if row_group.total_byte_size <= MAX_PAGES_BYTES:
        return row_group.total_byte_size
    columns = map(row_group.column, range(row_group.num_columns))
    return sum(
        min(column.total_uncompressed_size, PAGE_BYTES * (1 + column.has_dictionary_page))
        for column in columns
    )


class BlockTables:
    """Rows of any source, a table a block. Attributes are those of :class:`FileTables`.

    ``schema`` is known once the first block was read; ``n_rows`` is None where the source does
    not tell it, and ``identity`` is None unless the source is a :class:`parquet_source`.
    """

    def __init__(self, source: Any):
        import_parquet("pre_shuffle")

        self.schema: Any = None
        self.storage: Any = Disk()
        self.paths: list[Any] = []
        self.files: list[Any] = []
        self.stamps: list[Stamp] = []
        self.scratch: Path | None = None
        self.identity: dict | None = None
        self.n_rows: int | None = None
        self._columns: tuple[str, ...] | None = None
        self._open: Callable[[], Any] = lambda: raw_blocks(source)
        if isinstance(source, parquet_source):
            groups = source._groups
            self.storage, self.paths = groups.storage, groups.paths
            self.files, self.stamps = list(groups.files), groups.stamps
            self.n_rows, self.identity = source.n_rows, source.identity
            self._open = source.tables
        elif isinstance(source, Mapping):
            self.n_rows = max(map(len, source.values()), default=0)
            self._open = lambda: [source]
        elif isinstance(source, table_source):
            self.n_rows, self._open = source.n_rows, source.tables
        elif is_arrow_source(source) or isinstance(source, pd.DataFrame):
            self.n_rows = rows_of(source).count()
            self._open = lambda: tables_in(source)
        else:
            blocks = Blocks(source)
            self.n_rows, self._columns = blocks.n_rows, blocks.columns

    def __iter__(self) -> Generator[Any, None, None]:
        plain = None
        for i, block in enumerate(self._open()):
            for part in _slices(block):
                table = self._table(part, f"block {i}")
                if table.num_columns == 0:
                    raise ValueError(f"block {i}: no columns.")
                if table.num_rows == 0:  # whose types may be anything
                    continue
                if plain is None:
                    self.schema = _as_parquet(table.schema)
                    plain = _plain(self.schema)
                yield _cast(table, plain, f"block {i}")

    def _table(self, block: Any, where: str) -> Any:
        import pyarrow as pa

        if is_arrow(block):
            return pa.table(block)
        if isinstance(block, pd.DataFrame):
            return _from_pandas(block.copy())
        if isinstance(block, np.ndarray) and block.ndim in (1, 2):
            columns = list(block.T) if block.ndim == 2 else [block]
            names = list(self._columns or map(str, range(len(columns))))
            if len(names) != len(columns):
                raise ValueError(f"{where}: {len(columns)} columns, and should be {names}.")
        elif isinstance(block, Mapping):
            columns, names = [block[name] for name in block], list(map(str, block))
        else:
            raise TypeError(
                f"{where}: pre_shuffle writes tables, and this is a {type(block).__name__}"
                f"{getattr(block, 'shape', '')}. Give blocks that map column names to arrays."
            )
        arrays = [
            _arrow(column, f"{where}, column {name!r}") for name, column in zip(names, columns)
        ]
        return pa.table(arrays, names=names)


def _from_pandas(frame: pd.DataFrame) -> Any:
    import pyarrow as pa

    return pa.Table.from_pandas(frame, preserve_index=False)


def _arrow(values: Any, where: str) -> Any:
    """Copy a column, as a source may write its next block over this one."""
    import pyarrow as pa

    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    try:
        if isinstance(values, pd.Series | pd.api.extensions.ExtensionArray):
            return pa.array(values.copy())
        return pa.array(np.array(values, subok=True))  # a masked array stays one
    except pa.ArrowException as error:
        raise TypeError(f"{where}: no column of a table: {error}") from error


def _slices(block: Any) -> Iterator[Any]:
    """Cut arrays into views of as many rows as may be copied at a time."""
    if isinstance(block, np.ndarray) and block.ndim:
        n_rows, row_bytes = len(block), block.nbytes // max(1, len(block))
    elif isinstance(block, Mapping):
        n_rows = max(map(_length, block.values()), default=0)
        dtypes = [getattr(values, "dtype", None) for values in block.values()]
        row_bytes = sum(getattr(dtype, "itemsize", 8) for dtype in dtypes)
    else:
        yield block
        return
    step = max(1, min(READ_ROWS, READ_BYTES // max(1, row_bytes)))
    if n_rows <= step:
        yield block
        return
    for start in range(0, n_rows, step):
        rows = slice(start, start + step)
        if isinstance(block, Mapping):
            # Before pandas 3, a slice of a Series could go by its index.
            columns: dict[Any, Any] = {n: getattr(c, "iloc", c) for n, c in block.items()}
            yield {name: column[rows] for name, column in columns.items()}
        else:
            yield block[rows]


def _length(column: Any) -> int:
    try:
        return len(column)
    except TypeError:  # a number, which is no column
        return 1


def numeric_columns(schema: Any) -> list[str]:
    """Name the columns that a model can read."""
    import pyarrow.types as pt

    return [
        column.name
        for column in schema
        if pt.is_integer(column.type) or pt.is_floating(column.type) or pt.is_boolean(column.type)
    ]


def _as_parquet(schema: Any) -> Any:
    """Return a schema as Parquet gives it back, which knows no seconds, for one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    try:
        pq.write_table(schema.empty_table(), sink)
        schema = pq.read_schema(pa.BufferReader(sink.getvalue()))
        _plain(schema).empty_table().take(pa.array([], pa.int64()))
    except pa.ArrowException as error:
        raise TypeError(f"Parquet cannot hold the columns: {error}") from error
    # Categories of many blocks come together, in no order, and may be more than 8 bits count.
    fields = [
        c.with_type(pa.dictionary(pa.int32(), c.type.value_type))
        if pa.types.is_dictionary(c.type)
        else c
        for c in schema
    ]
    return pa.schema(fields, schema.metadata)


def _plain(schema: Any) -> Any:
    """Return a schema of types whose rows can be reordered and joined.

    Those of dictionaries cannot, as these differ from block to block.
    """
    import pyarrow as pa

    def plain(kind: Any) -> Any:
        if pa.types.is_dictionary(kind):
            return plain(kind.value_type)
        if pa.types.is_string_view(kind):
            return pa.large_string()
        return pa.large_binary() if pa.types.is_binary_view(kind) else kind

    return pa.schema([c.with_type(plain(c.type)) for c in schema], schema.metadata)


def _cast(table: Any, schema: Any, where: str) -> Any:
    import pyarrow as pa

    names, expected = table.schema.names, schema.names
    if len(set(names)) < len(names) or set(names) != set(expected):
        raise ValueError(f"{where}: the columns are {names}, and should be {expected}, each once.")
    if table.schema.equals(schema):
        return table
    try:
        return table.select(expected).cast(schema)
    except pa.ArrowException as error:
        raise ValueError(f"{where}: not of the types of the first rows: {error}") from error


@dataclass
class Contents:
    """What rows are in tables, whatever their order.

    Attributes
    ----------
    n_rows : int
        Number of rows.
    columns : dict of str to int
        For each column, the sum of a 64-bit hash of each value, modulo 2**64.
    rows : int
        The same sum for hashes of whole rows, which notices columns that have come apart.
    """

    n_rows: int = 0
    columns: dict[str, int] = field(default_factory=dict)
    rows: int = 0

    def add(self, table: Any) -> None:
        """Count the rows of a pyarrow table in."""
        self.n_rows += table.num_rows
        names = table.schema.names
        for batch in table.to_batches(max_chunksize=HASH_ROWS):
            rows = np.zeros(batch.num_rows, dtype=np.uint64)
            columns = batch.columns
            # Of a few rows many columns, as each call takes its time.
            step = max(1, HASH_ROWS // batch.num_rows)
            for start in range(0, len(columns), step):
                hashes = _hashes(columns[start : start + step])
                for of_column in hashes:
                    rows *= ROW_FACTOR
                    rows += of_column
                for name, total in zip(names[start:], hashes.sum(axis=1).tolist()):
                    self.columns[name] = (self.columns.get(name, 0) + total) % 2**64
            self.rows = (self.rows + int(hash_array(rows).sum())) % 2**64


def _hashes(columns: list[Any]) -> np.ndarray:
    """Hash each value of Arrow arrays of one length to an unsigned 64-bit integer."""
    values = np.zeros((len(columns), len(columns[0])), dtype=np.uint64)
    of_fixed_width = [width_of(column.type) > 0 for column in columns]
    for j, column in enumerate(columns):
        if of_fixed_width[j]:
            values[j] = bits_of(column)
    hashes = hash_array(values.reshape(-1)).reshape(values.shape)
    for j, column in enumerate(columns):
        if not of_fixed_width[j]:
            hashes[j] = hash_array(_texts(column))
        if column.null_count:
            hashes[j, column.is_null().to_numpy(zero_copy_only=False)] = HASH_OF_NULL
    return hashes


def _texts(column: Any) -> np.ndarray:
    """Return the values of an Arrow array as objects that can be hashed."""
    import pyarrow.types as pt

    if pt.is_string(column.type) or pt.is_large_string(column.type):
        return column.fill_null("").to_numpy(zero_copy_only=False)
    return np.array([repr(value) for value in column.to_pylist()], dtype=object)


def width_of(kind: Any) -> int:
    """Return the bytes of each value of an Arrow type, or 0 if there is no such number."""
    import pyarrow.types as pt

    if pt.is_boolean(kind):
        return 1
    return kind.bit_width // 8 if pt.is_primitive(kind) and kind.bit_width <= 64 else 0


def bits_of(column: Any) -> np.ndarray:
    """Return an Arrow array of fixed width as unsigned integers; those of nulls mean nothing."""
    import pyarrow.types as pt

    if pt.is_boolean(column.type):
        filled = column.fill_null(False) if column.null_count else column
        return filled.to_numpy(zero_copy_only=False).view(np.uint8)
    width = column.type.bit_width // 8
    values = column.buffers()[1]
    return np.frombuffer(values, f"u{width}", len(column), column.offset * width)
