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

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pandas.util import hash_array

from pymc.streams.blocks import Blocks, is_arrow, raw_blocks
from pymc.streams.sources.parquet import (
    READ_ROWS,
    find_files,
    import_parquet,
    parquet_source,
    stamp_of,
)

# Bytes decoded at a time, which is what fewer than READ_ROWS wide rows take.
READ_BYTES = 2**23
# Rows hashed at a time: what fits into a CPU's cache.
HASH_ROWS = 32_768
HASH_OF_NULL = 0x9E3779B97F4A7C15
ROW_FACTOR = np.uint64(1_000_003)


def tables_of(source: Any) -> "FileTables | BlockTables":
    """See the files at a path, or any source, as tables."""
    paths = [source] if isinstance(source, str | os.PathLike) else source
    if isinstance(paths, list | tuple) and all(isinstance(p, str | os.PathLike) for p in paths):
        return FileTables([Path(path).expanduser().absolute() for path in paths])
    return BlockTables(source)


class FileTables:
    """Rows of Parquet files, with all columns, a table at a time.

    Attributes
    ----------
    schema : pyarrow.Schema
        Columns and types, which hold those of each file.
    n_rows : int
        Number of rows.
    paths, files : list of Path
        Where the files were looked for, and the files.
    stamps : list of tuple
        What tells whether a file has changed.
    identity : dict
        What tells whether the rows are still those of an earlier time.
    """

    def __init__(self, paths: list[Path]):
        import pyarrow as pa

        pq = import_parquet("pre_shuffle")
        self.paths = paths
        self.files = find_files(paths)
        self.stamps = [stamp_of(file) for file in self.files]
        self.identity = {
            "files": [[file.name, *stamp] for file, stamp in zip(self.files, self.stamps)]
        }
        self.n_rows = 0
        schemas: list[Any] = []
        for file in self.files:
            try:
                metadata = pq.read_metadata(file)
            except Exception as error:
                raise ValueError(f"{file}: not a readable Parquet file: {error}") from error
            self.n_rows += metadata.num_rows
            schemas.append(metadata.schema.to_arrow_schema())
            names, expected = schemas[-1].names, schemas[0].names
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
        for file in self.files:
            # Read as it is decoded: a row group may be larger than memory.
            with pq.ParquetFile(file, pre_buffer=False, buffer_size=2**16) as reader:
                for group in range(reader.num_row_groups):
                    size = reader.metadata.row_group(group)
                    fitting = READ_BYTES * size.num_rows // max(1, size.total_byte_size)
                    n_rows = max(1, min(READ_ROWS, fitting))
                    for batch in reader.iter_batches(n_rows, row_groups=[group], use_threads=False):
                        table = pa.Table.from_batches([batch])
                        yield _cast(table, schema, f"{file}, row group {group}")


class BlockTables:
    """Rows of any source, a table a block. Attributes are those of :class:`FileTables`.

    ``schema`` is known once the first block was read; ``n_rows`` is None where the source does
    not tell it, and ``identity`` is None unless the source is a :class:`parquet_source`.
    """

    def __init__(self, source: Any):
        import_parquet("pre_shuffle")
        import pyarrow as pa

        self.schema: Any = None
        self.paths: list[Path] = []
        self.files: list[Path] = []
        self.stamps: list[tuple[int, int]] = []
        self.identity: dict | None = None
        self.n_rows: int | None = None
        self._columns: tuple[str, ...] | None = None
        self._open: Callable[[], Any] = lambda: raw_blocks(source)
        if isinstance(source, parquet_source):
            self.paths, self.files, self.stamps = source._paths, list(source.files), source._stamps
            self.n_rows, self.identity = source.n_rows, source.identity
            self._open = source.in_file_order
        elif isinstance(source, Mapping):
            self.n_rows = max(map(len, source.values()), default=0)
            self._open = lambda: _slices(source)
        elif is_arrow(source) or isinstance(source, pd.DataFrame):
            table = pa.table(source) if is_arrow(source) else _from_pandas(source)
            self.n_rows = table.num_rows
            self._open = lambda: [table]
        else:
            blocks = Blocks(source)
            self.n_rows, self._columns = blocks.n_rows, blocks.columns

    def __iter__(self) -> Generator[Any, None, None]:
        for i, block in enumerate(self._open()):
            table = self._table(block, f"block {i}")
            if table.num_rows == 0:  # whose types may be anything
                continue
            if self.schema is None:
                self.schema = _as_parquet(table.schema)
            yield _cast(table, _plain(self.schema), f"block {i}")

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


def _slices(columns: Mapping) -> Iterator[dict]:
    # Before pandas 3, a slice of a Series could go by its index.
    arrays = {name: getattr(values, "iloc", values) for name, values in columns.items()}
    for start in range(0, max(map(len, columns.values()), default=0), READ_ROWS):
        yield {name: values[start : start + READ_ROWS] for name, values in arrays.items()}


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
        for batch in table.to_batches(max_chunksize=HASH_ROWS):
            rows = np.zeros(batch.num_rows, dtype=np.uint64)
            for name, column in zip(batch.schema.names, batch.columns):
                hashes = _hashes(column)
                rows = rows * ROW_FACTOR + hashes
                self.columns[name] = (self.columns.get(name, 0) + int(hashes.sum())) % 2**64
            self.rows = (self.rows + int(hash_array(rows).sum())) % 2**64


def _hashes(column: Any) -> np.ndarray:
    """Hash each value of an Arrow array to an unsigned 64-bit integer."""
    import pyarrow as pa
    import pyarrow.types as pt

    kind = column.type
    if pt.is_boolean(kind):
        values = column.fill_null(False).to_numpy(zero_copy_only=False)
    elif pt.is_primitive(kind) and kind.bit_width in (8, 16, 32, 64):
        bits = column.view(getattr(pa, f"uint{kind.bit_width}")())
        values = (bits.fill_null(0) if bits.null_count else bits).to_numpy()
    elif pt.is_string(kind) or pt.is_large_string(kind):
        values = column.fill_null("").to_numpy(zero_copy_only=False)
    else:
        values = np.array([repr(value) for value in column.to_pylist()], dtype=object)
    hashes = hash_array(values)
    if column.null_count:
        hashes[column.is_null().to_numpy(zero_copy_only=False)] = HASH_OF_NULL
    return hashes
