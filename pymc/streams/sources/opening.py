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
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pymc.streams.sources.arrow import (
    ArrowRows,
    DatasetRows,
    IpcRows,
    PandasRows,
    ScannerRows,
    StreamRows,
    TableRows,
    batch_rows,
    table_of,
)
from pymc.streams.sources.files import FORMATS, import_parquet
from pymc.streams.sources.lakes import refuse_lakes
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


def dataset_at(path: Any, file_format: str | None) -> Any:
    """Open files of any format that pyarrow.dataset reads, with hive partitions as columns.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ValueError
        If the columns of the files differ, or the format cannot be told. The message names the file.
    """
    import pyarrow as pa
    import pyarrow.dataset as pads

    from pyarrow.csv import ConvertOptions

    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    places = [Path(item).expanduser().absolute() for item in paths]
    for place in places:
        if not place.exists():
            raise FileNotFoundError(f"no file or folder at {place}.")
    if file_format is None:
        file_format = _format_of(places)
    # A text that is missing is no category.
    as_format = (
        pads.CsvFileFormat(convert_options=ConvertOptions(strings_can_be_null=True))
        if file_format == "csv"
        else file_format
    )
    where = str(places[0]) if len(places) == 1 else list(map(str, places))
    try:
        data = pads.dataset(where, format=as_format, partitioning="hive")
    except pa.ArrowException as error:
        raise ValueError(f"{path}: not readable as {file_format}: {error}") from error
    if not data.files:
        raise FileNotFoundError(f"no file in the folder {path}.")
    refuse_lakes(data.files)
    try:
        fragments = list(data.get_fragments())
        schemas = [fragment.physical_schema for fragment in fragments]
        for fragment, schema in zip(fragments, schemas):
            if set(schema.names) != set(schemas[0].names):
                raise ValueError(
                    f"{fragment.path}: the columns are {schema.names}, and those of "
                    f"{fragments[0].path} are {schemas[0].names}. Read them apart, or give the "
                    "schema: pyarrow.dataset.dataset(path, format=..., schema=...)."
                )
        # Integers in some files and floats in others become floats.
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"{path}: {error}") from error
    for fragment in fragments:
        twice = pads.get_partition_keys(fragment.partition_expression).keys() & set(schema.names)
        if twice:
            raise ValueError(
                f"{fragment.path}: {sorted(twice)} are columns of the file and in the names of its "
                "folders. Read the file alone, or pass pyarrow.dataset.dataset(path, format=...)."
            )
    partitions = [field for field in data.schema if field.name not in schema.names]
    schema = pa.schema([*schema, *partitions])
    return pads.dataset(where, format=as_format, partitioning="hive", schema=schema)


def _format_of(places: list[Path]) -> str:
    """Tell the format from the names of files."""
    files = []
    for place in places:
        below = [file for file in place.rglob("*") if file.is_file()] if place.is_dir() else []
        # pyarrow.dataset passes over the others as well.
        files += [f for f in below if not any(p[0] in "._" for p in f.relative_to(place).parts)]
        files += [] if place.is_dir() else [place]
    if not files:
        raise FileNotFoundError(f"no file in the folder {', '.join(map(str, places))}.")
    # Of data.csv.gz the ending before counts.
    endings = {
        next((FORMATS[s] for s in reversed(f.suffixes) if s in FORMATS), None) for f in files
    }
    found = endings.pop() if len(endings) == 1 else None
    if found is None:
        raise ValueError(
            f"{', '.join(map(str, places))}: the names of the files do not tell one format. Say it: "
            'format="csv", or another one that pyarrow.dataset reads.'
        )
    return found


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
        return DatasetRows(dataset_at(data, file_format), str(data))
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
        f"{type(data).__name__}."
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
