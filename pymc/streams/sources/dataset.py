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
"""Datasets of pyarrow, and paths of files that it reads, a bounded number of rows at a time.

A scan of pyarrow holds whole row groups, and while its rows are used it reads on, up to a gigabyte:
files of the common formats are read by their own readers instead.
"""

import copy
import os

from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from pymc.streams.sources.arrow import ArrowRows, schema_of
from pymc.streams.sources.files import FORMATS, is_seen
from pymc.streams.sources.filters import Filter, kept_rows
from pymc.streams.sources.lakes import refuse_lakes
from pymc.streams.sources.stores import is_url

# Bytes of a column of a Parquet file that are read at a time.
BUFFER_BYTES = 65_536


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
        import pyarrow as pa
        import pyarrow.dataset as pads

        read = {pads.ParquetFileFormat: _parquet_batches, pads.CsvFileFormat: _csv_batches}.get(
            type(getattr(self._dataset, "format", None))
        )
        fragments = None
        if read is not None:
            try:
                fragments = list(self._dataset.get_fragments(self.filters))
            except ValueError:  # those of Dataset.filter are not given away
                pass
        if read is None or fragments is None:
            yield from self._dataset.to_batches(
                columns=columns,
                filter=self.filters,
                batch_size=n_rows,
                batch_readahead=0,
                fragment_readahead=0,
                use_threads=False,
            )
            return
        keeps: tuple[Filter, ...] = ()
        looked_at: tuple[str, ...] = ()
        if self.filters is not None:
            keep = Filter(self.filters, self.schema)
            keeps, looked_at = (keep,), keep.columns
        schema = schema_of(self.schema, list(dict.fromkeys([*columns, *looked_at])))
        for fragment in fragments:
            if keeps and read is _parquet_batches:
                fragment = fragment.subset(self.filters, schema=self.schema)
            # Columns in the names of folders come first, as in a scan.
            constants = pads.get_partition_keys(fragment.partition_expression)
            in_file = fragment.physical_schema.names
            names = [name for name in schema.names if name in in_file and name not in constants]
            for batch in read(fragment, schema_of(schema, names), n_rows):
                arrays = [
                    batch[field.name].cast(field.type)
                    if field.name in names
                    else _repeated(constants.get(field.name), field.type, batch.num_rows)
                    for field in schema
                ]
                rows = pa.RecordBatch.from_arrays(arrays, schema=schema)
                yield kept_rows(rows, keeps, 0).select(columns)


def _parquet_batches(fragment: Any, schema: Any, n_rows: int) -> Iterator[Any]:
    """Read a Parquet file, slice by slice of its row groups."""
    import pyarrow.parquet as pq

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
        yield from file.iter_batches(n_rows, groups, schema.names, use_threads=False)


def _csv_batches(fragment: Any, schema: Any, n_rows: int) -> Iterator[Any]:
    """Read a CSV file, a block of it at a time, however many rows that are."""
    import pyarrow.csv as csv

    options = fragment.format.default_fragment_scan_options
    convert = copy.copy(options.convert_options)
    convert.column_types = schema
    # Without a name all columns would be read, which gives as many rows.
    convert.include_columns = schema.names
    with (
        fragment.filesystem.open_input_stream(fragment.path) as opened,
        csv.open_csv(
            opened, options.read_options, fragment.format.parse_options, convert
        ) as reader,
    ):
        yield from reader


def _repeated(value: Any, arrow_type: Any, n_rows: int) -> Any:
    """Return a value, or null, as a column."""
    import pyarrow as pa

    if value is None:
        return pa.nulls(n_rows, arrow_type)
    if not pa.types.is_dictionary(arrow_type):
        return pa.repeat(pa.scalar(value, arrow_type), n_rows)
    places = pa.repeat(pa.scalar(0, arrow_type.index_type), n_rows)
    return pa.DictionaryArray.from_arrays(places, pa.array([value], arrow_type.value_type))


class PathRows(DatasetRows):
    """Files at a path, of any format that pyarrow.dataset reads, with hive partitions as columns.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ValueError
        If the columns of the files differ, or the format cannot be told. The message names the file.
    """

    def __init__(self, path: Any, file_format: str | None):
        paths = [path] if isinstance(path, str | os.PathLike) else list(path)
        if is_url(paths):
            raise ValueError(
                f"{paths[0]}: table_source reads files on disk. For others, pass what pyarrow opens: "
                f"table_source(pyarrow.dataset.dataset({paths[0]!r}, format=...)); Parquet files are "
                f"read by parquet_source({paths[0]!r})."
            )
        self._paths = [Path(item).expanduser().absolute() for item in paths]
        for place in self._paths:
            if not _matching(place):
                raise FileNotFoundError(f"no file or folder at {place}.")
        files = [file for place in self._places() for file in _files_at(place)]
        if not files:
            raise FileNotFoundError(f"no file in the folder {path}.")
        refuse_lakes(files)
        self._format = _format_of(path, files) if file_format is None else file_format
        super().__init__(self._open(path), str(path))

    def files_now(self) -> tuple[str, ...]:
        import pyarrow as pa

        try:  # with a schema no file is opened
            return tuple(self._dataset_of(pa.schema([])).files)
        except FileNotFoundError:
            return ()

    def _places(self) -> list[Path]:
        return [place for path in self._paths for place in _matching(path)]

    def _dataset_of(self, schema: Any = None) -> Any:
        import pyarrow.dataset as pads

        from pyarrow.csv import ConvertOptions

        file_format: Any = self._format
        if file_format == "csv":  # a text that is missing is no category
            convert = ConvertOptions(strings_can_be_null=True)
            file_format = pads.CsvFileFormat(convert_options=convert)
        places = self._places()
        where: Any = places[0] if places else self._paths[0]
        if len(places) > 1:  # pyarrow takes a folder, or files
            where = [str(file) for place in places for file in _files_at(place)]
        return pads.dataset(where, format=file_format, partitioning="hive", schema=schema)

    def _open(self, path: Any) -> Any:
        import pyarrow as pa
        import pyarrow.dataset as pads

        try:
            data = self._dataset_of()
        except pa.ArrowException as error:
            raise ValueError(f"{path}: not readable as {self._format}: {error}") from error
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
            named = pads.get_partition_keys(fragment.partition_expression)
            twice = sorted(set(named) & set(schema.names))
            if twice:
                raise ValueError(
                    f"{fragment.path}: {twice} are columns of the file and in the names of its "
                    "folders. Read it as pyarrow.dataset.dataset(path, format=...), without them."
                )
        partitions = [field for field in data.schema if field.name not in schema.names]
        return self._dataset_of(pa.schema([*schema, *partitions]))


def _matching(path: Path) -> list[Path]:
    """List the files and folders that are at a path, or match a pattern."""
    if path.exists() or not has_magic(str(path)):
        return [path] if path.exists() else []
    return [Path(name) for name in sorted(glob(str(path), recursive=True))]


def _files_at(place: Path) -> list[Path]:
    """List the files that pyarrow.dataset reads at a path."""
    if not place.is_dir():
        return [place]
    files = (file for file in place.rglob("*") if file.is_file())
    return [file for file in files if is_seen(file.relative_to(place).parts)]


def _format_of(path: Any, files: list[Path]) -> str:
    """Tell the format from the names of files."""
    # Of data.csv.gz the ending before counts.
    endings = {
        next((FORMATS[s] for s in reversed(f.suffixes) if s in FORMATS), None) for f in files
    }
    found = endings.pop() if len(endings) == 1 else None
    if found is None:
        raise ValueError(
            f"{path}: the names of the files do not tell one format. Say it: "
            'format="csv", or another one that pyarrow.dataset reads.'
        )
    return found
