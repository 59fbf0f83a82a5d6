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
"""Opening: which rows an object stands for.

What an object is, is told by what its class has: no library is imported to recognise its objects.
"""

import os

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pymc.streams.sources.arrow import (
    ArrowRows,
    IpcRows,
    PandasRows,
    ScannerRows,
    StreamRows,
    TableRows,
    batch_rows,
    table_of,
)
from pymc.streams.sources.dataset import DatasetRows, PathRows
from pymc.streams.sources.files import import_parquet
from pymc.streams.sources.libraries import KINDS


class BlockRows(ArrowRows):
    """Blocks of tables (pandas, Arrow, mappings of columns), or what a function returns.

    The types are those of the first block that has rows.
    """

    def __init__(self, data: Any):
        self.name = "function" if not hasattr(data, "__iter__") else type(data).__name__
        self._data = data
        self._opened: Any = None
        first = next(iter(self._tables()), None)
        if first is None:
            raise ValueError(f"{self.name}: no rows.")
        self.schema = first.schema

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def batches(self, columns: Sequence[str], n_rows: int) -> Iterator[Any]:
        for i, table in enumerate(self._tables()):
            missing = [name for name in columns if name not in table.schema.names]
            if missing:
                raise ValueError(
                    f"{self.name}, block {i}: no column {missing}; it has {table.schema.names}."
                )
            yield table.select(columns)

    def _tables(self) -> Iterator[Any]:
        import pyarrow as pa

        opened = self._data if hasattr(self._data, "__iter__") else self._data()
        if hasattr(opened, "__next__"):
            if opened is self._opened:
                raise TypeError(
                    f"{self.name}: it returned the same iterator twice, from which rows are gone by "
                    "then. It must make a fresh one each time that it is called."
                )
            self._opened = opened
        if is_arrow_source(opened) or isinstance(opened, Mapping | pd.DataFrame):
            yield from map(pa.table, tables_in(opened))
            return
        if not hasattr(opened, "__iter__"):
            raise TypeError(
                f"{self.name}: it must return a table or an iterable of tables, and returned "
                f"{type(opened).__name__}."
            )
        for i, block in enumerate(opened):
            table = table_of(block, f"{self.name}, block {i}")
            if table.num_rows:
                yield table


def _has(data: Any, *names: str) -> bool:
    """Tell whether the class of an object has one of some attributes.

    The object itself may answer to any name (a DuckDB relation has its columns as attributes), or
    compute what it is asked for (a polars LazyFrame).
    """
    return any(hasattr(type(data), name) for name in names)


def _has_all(data: Any, *names: str) -> bool:
    return all(hasattr(type(data), name) for name in names)


def _kind_of(data: Any) -> Callable[[Any], ArrowRows] | None:
    """Tell how an object is read, if it is a table or makes Arrow tables."""
    if isinstance(data, pd.DataFrame):
        return PandasRows
    if _has(data, "__next__", "dtype"):  # an iterator, or one column
        return None
    for attributes, kind in KINDS.items():
        if _has_all(data, *attributes):
            return kind
    if _has_all(data, "get_batch", "num_record_batches"):
        return IpcRows
    if _has_all(data, "to_batches", "count_rows"):
        return DatasetRows if _has(data, "schema") else ScannerRows
    if _has(data, "__arrow_c_stream__"):
        # What is computed when it is asked for has no slices.
        return TableRows if _has_all(data, "schema", "slice") else StreamRows
    return None


def is_arrow_source(source: Any) -> bool:
    """Tell whether a source is read by Arrow: a table, or an object of a library that makes tables.

    A pandas DataFrame of plain numbers is not: it needs no Arrow.
    """
    if isinstance(source, pd.DataFrame):
        return any(
            not isinstance(dtype, np.dtype) or dtype.kind not in "biuf" for dtype in source.dtypes
        )
    return _kind_of(source) is not None


def rows_of(data: Any, file_format: str | None = None) -> ArrowRows:
    """Open an object as rows that Arrow reads: a path, a table, or what :class:`table_source` takes."""
    import_parquet("table_source")
    rows = _rows_of(data, file_format)
    names = rows.schema.names
    if not names:
        raise ValueError(f"{rows.name}: no columns.")
    if len(set(names)) < len(names):
        raise ValueError(f"{rows.name}: the columns are {names}, and should be named each once.")
    return rows


def _rows_of(data: Any, file_format: str | None) -> ArrowRows:
    is_list = isinstance(data, list | tuple) and len(data) > 0
    if isinstance(data, str | os.PathLike) or (
        is_list and all(isinstance(item, str | os.PathLike) for item in data)
    ):
        return PathRows(data, file_format)
    kind = _kind_of(data)
    if kind is not None:
        return kind(data)
    if isinstance(data, Mapping):
        _refuse_splits(data)
        return TableRows(dict(data))
    if hasattr(data, "__next__"):
        raise TypeError(
            f"{type(data).__name__}: an iterator can be read once, and table_source reads its rows "
            "again and again. Pass a function that returns a fresh one: table_source(lambda: ...)."
        )
    if callable(data) or hasattr(data, "__iter__"):
        return BlockRows(data)
    raise TypeError(
        "table_source takes paths, tables and functions that return tables; got "
        f"{type(data).__name__}. (Of a connection to a database: what a query returns; of DuckDB "
        'connection.sql("SELECT ...").)'
    )


def tables_in(data: Any) -> Iterable[Any]:
    """Read all columns of a table or what makes tables, as they are, some rows at a time."""
    rows = rows_of(data)
    names = rows.schema.names
    return rows.batches(names, batch_rows(rows.schema, names))


def _refuse_splits(data: Mapping) -> None:
    """Refuse what Hugging Face's ``load_dataset`` gives without ``split``."""
    if data and all(_has_all(value, "with_format", "iter") for value in data.values()):
        names = list(data)
        raise TypeError(
            f"this is a {type(data).__name__} of the splits {names}: pass one of them, "
            f"data[{names[0]!r}]."
        )
