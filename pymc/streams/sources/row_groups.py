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
"""Row groups of Parquet files: which there are, and their rows as record batches."""

import copy
import os

from collections.abc import Generator, Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from pymc.streams.encoding import joined_schema
from pymc.streams.sources.files import Piece, footer_of, import_parquet, read_footers
from pymc.streams.sources.filters import Keep, kept_rows
from pymc.streams.sources.hive import constant, hive_columns, labels
from pymc.streams.sources.stores import Store, files_at

# Bytes of a column that are read at a time.
BUFFER_BYTES = 65_536
# Row groups whose statistics are looked at: reading those of thousands takes seconds.
MAX_RANGES = 512


class RowGroups:
    """The row groups of Parquet files, numbered over all files.

    Parameters
    ----------
    path, columns, filesystem, storage_options
        See :class:`parquet_source`.

    Attributes
    ----------
    storage : Disk or Store
        Where the files are.
    paths : list
        What was asked for there.
    files : tuple
        The files.
    stamps : list of Stamp
        Their versions.
    schema : pyarrow.Schema
        The columns to read, and those of all files that tell them apart.
    table : ndarray of shape (row groups, 4)
        Number of the file, number in the file, rows and bytes of each row group.
    keeps : tuple of Keep
        What rows are kept.
    n_in_files : int
        Rows of all files.
    """

    def __init__(
        self,
        path: str | os.PathLike | Sequence[str | os.PathLike],
        columns: Sequence[str] | None,
        filesystem: Any,
        storage_options: dict[str, Any] | None,
    ):
        import pyarrow as pa

        self.storage, self.paths = files_at(path, filesystem, storage_options)
        self.files = tuple(self.storage.find(self.paths))
        self.stamps = self.storage.stamps(self.files)
        self.hive = hive_columns(self.paths, list(self.files))
        self.labels = labels(list(self.files), self.hive)
        self.keeps: tuple[Keep, ...] = ()
        # Rows that are left in each slice of each row group, those of slices without any left out.
        self._counts: list[list[int]] = []
        row_groups: list[tuple[int, int, int, int]] = []
        all_columns = columns is None
        # The files with other columns than the one before.
        self.schemas: list[tuple[Any, Any]] = []
        footers = read_footers(self.storage, self.files, self.stamps)
        for i, (file, metadata) in enumerate(zip(self.files, footers)):
            schema = metadata.schema.to_arrow_schema()
            if i == 0:  # a column that files have as well is read from these
                self.hive = {n: v for n, v in self.hive.items() if n not in schema.names}
            for name, values in self.hive.items():
                schema = schema.append(pa.field(name, values.type))
            if columns is None:
                columns = schema.names
            elif all_columns and set(schema.names) > set(columns):
                raise ValueError(
                    f"{file}: column(s) {sorted(set(schema.names) - set(columns))} that "
                    f"{self.files[0]} does not have. Name the columns to read with columns=[...]."
                )
            if not self.schemas or not schema.equals(self.schemas[-1][1]):
                self.schemas.append((file, schema))
            for group in range(metadata.num_row_groups):
                size = metadata.row_group(group)
                row_groups.append((i, group, size.num_rows, size.total_byte_size))
        self.table = np.array(row_groups, dtype=np.int64).reshape(-1, 4)
        n_rows = self.table[:, 2]
        # The place of the first row of each among the rows of all files.
        self._first_rows = np.cumsum(n_rows) - n_rows
        if not columns:
            raise ValueError(f"{self.files[0]}: no columns.")
        self.n_in_files = int(n_rows.sum())
        if self.n_in_files == 0:
            raise ValueError(f"no rows in the {len(self.files)} file(s) at {path}.")
        self.schema = joined_schema(self.schemas, columns)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def n_rows(self) -> int:
        """Number of rows that are left."""
        return int(self.n_kept.sum())

    @property
    def n_kept(self) -> np.ndarray:
        """The rows that are left in each row group."""
        return np.array(list(map(sum, self._counts))) if self._counts else self.table[:, 2]

    def slices(self, number: int, slice_rows: int) -> list[int]:
        """List the rows that are left in each slice of a row group."""
        if self._counts:
            return self._counts[number]
        n_rows = int(self.table[number, 2])
        return [min(slice_rows, n_rows - start) for start in range(0, n_rows, slice_rows)]

    def by_file(self, numbers: range) -> list[list[int]]:
        """List row groups by their files; those of a store, one by one."""
        if isinstance(self.storage, Store):
            return [[number] for number in numbers]
        return [list(some) for _, some in groupby(numbers, lambda n: self.table[n, 0])]

    def where(self, keep: Keep) -> "RowGroups":
        """Return the same of the rows that ``keep`` keeps, which are yet to be counted."""
        joined_schema(self.schemas, keep.columns)  # are they in all files?
        other = copy.copy(self)
        other.keeps = (*self.keeps, keep)
        return other

    def left(self, counts: list[list[int]]) -> "RowGroups":
        """Return the row groups with rows that are kept, given their number in each slice."""
        left = [number for number, kept in enumerate(counts) if kept]
        other = copy.copy(self)
        other.table, other._first_rows = self.table[left], self._first_rows[left]
        other._counts = [counts[number] for number in left]
        return other

    @property
    def is_shuffled(self) -> bool:
        """Whether pre_shuffle wrote all of them."""
        return all(map(self.storage.is_shuffled, self.paths))

    def opened(self, numbers: Iterable[int], columns: Sequence[str]) -> Any:
        """Open row groups in order, as they are asked for; those of a store are fetched ahead."""
        names = [name for name in self._looked_at(columns) if name not in self.hive]
        return self.storage.opened(
            Piece(self.files[i], self.stamps[i], group, names)
            for i, group in (self.table[number, :2].tolist() for number in numbers)
        )

    def _looked_at(self, columns: Sequence[str]) -> dict[str, None]:
        """Name columns and those that filters look at, once each and in order."""
        return dict.fromkeys([*columns, *(name for keep in self.keeps for name in keep.columns)])

    def batches(
        self,
        numbers: Sequence[int],
        file: Any,
        n_rows: int,
        columns: Sequence[str],
        as_dictionaries: Sequence[str],
    ) -> Generator[Any, None, None]:
        """Read row groups of a file as record batches, of the rows that filters keep.

        Parameters
        ----------
        numbers : sequence of int
            The row groups.
        file : object
            What they are read from, as :meth:`opened` gives it.
        n_rows : int
            Rows to decode at a time.
        columns : sequence of str
            The columns. Of none, the batches have the right number of rows.
        as_dictionaries : sequence of str
            Columns of strings to be read as dictionaries.
        """
        pq = import_parquet("parquet_source")
        i = int(self.table[numbers[0], 0])
        read = self._looked_at(columns)
        names = [name for name in read if name not in self.hive]
        # Rows are numbered for a filter, which those of a batch of several row groups may not be.
        parts = [[number] for number in numbers] if self.keeps else [list(numbers)]
        try:
            self._check_unchanged(i, file)
            # Buffered, and not ahead: else pyarrow holds whole row groups, however large.
            with pq.ParquetFile(
                file,
                metadata=footer_of(self.files[i], self.stamps[i]),
                buffer_size=BUFFER_BYTES,
                pre_buffer=False,
                read_dictionary=[name for name in names if name in as_dictionaries],
            ) as reader:
                for part in parts:
                    first_row = int(self._first_rows[part[0]])
                    groups = self.table[part, 1].tolist()
                    for batch in reader.iter_batches(
                        n_rows, row_groups=groups, columns=names, use_threads=False
                    ):
                        self._check_unchanged(i, file)
                        stop = first_row + batch.num_rows
                        for name in read.keys() & self.hive.keys():
                            value = constant(self.hive[name], i, batch.num_rows)
                            batch = batch.append_column(name, value)
                        batch = kept_rows(batch, self.keeps, first_row)
                        yield batch.select(columns) if columns else batch
                        first_row = stop
        except OSError as error:
            raise OSError(f"{self.place(numbers)}: could not be read: {error}") from error

    def place(self, numbers: Sequence[int]) -> str:
        """Name row groups of a file."""
        file = self.files[int(self.table[numbers[0], 0])]
        groups = self.table[list(numbers), 1].tolist()
        several = f" to {groups[-1]}" if len(groups) > 1 else ""
        return f"{file}, row group {groups[0]}{several}"

    def ranges(self) -> dict[str, list[tuple[Any, Any]]]:
        """Tell minimum and maximum of each column, also of those that are not read, in row groups.

        Of many row groups some are taken, evenly spaced; those without statistics are left out.
        """
        chosen = np.unique(np.linspace(0, len(self) - 1, MAX_RANGES).astype(int))
        ranges: dict[str, list[tuple[Any, Any]]] = {}
        for i, group in self.table[chosen, :2].tolist():
            row_group = footer_of(self.files[i], self.stamps[i]).row_group(group)
            for j in range(row_group.num_columns):
                column = row_group.column(j)
                if column.is_stats_set and column.statistics.has_min_max:
                    limits = column.statistics.min, column.statistics.max
                    ranges.setdefault(column.path_in_schema, []).append(limits)
            for name, values in self.hive.items():
                if values[i].is_valid:
                    ranges.setdefault(name, []).append((values[i].as_py(),) * 2)
        return ranges

    def check_files(self) -> None:
        """Raise if there are other files than when the source was made."""
        changed = set(self.files) ^ set(self.storage.find(self.paths))
        if changed:
            raise RuntimeError(
                f"{', '.join(map(str, sorted(changed)))}: added or removed since the source was "
                f"made, so that its {self.n_rows} rows are not the data any more. Make a new "
                "source (and a new model: N has changed)."
            )

    def _check_unchanged(self, i: int, opened: Any) -> None:
        if self.storage.stamp_of_opened(opened) != self.stamps[i]:
            raise RuntimeError(
                f"{self.files[i]}: changed since the source was made, so that its rows are not "
                f"those that n_rows={self.n_rows} counts. Make a new source."
            )
