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
"""Rows of other libraries: how each of them gives Arrow tables, a bounded number of rows at a time."""

import sys

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pymc.streams.sources.arrow import ArrowRows, SeekableRows, from_pandas, schema_of
from pymc.streams.sources.dataset import DatasetRows

# What a DuckDB connection does not share with its cursors; but for how its progress is shown, which
# differs in each notebook.
CONNECTION_STATE = """
SELECT
    current_database(), current_schema(),
    (SELECT string_agg(concat(name, '=', value), ';' ORDER BY name) FROM duckdb_settings()
        WHERE NOT regexp_matches(name, 'progress_bar|profil')),
    (SELECT string_agg(concat(name, '=', value), ';' ORDER BY name) FROM duckdb_variables()),
    (SELECT string_agg(table_name, ';' ORDER BY table_name) FROM duckdb_tables() WHERE temporary),
    (SELECT string_agg(view_name, ';' ORDER BY view_name) FROM duckdb_views() WHERE temporary)
"""


class PolarsRows(SeekableRows):
    """A polars DataFrame, which is converted slice by slice: as a whole it would be copied."""

    name = "DataFrame"

    def __init__(self, data: Any):
        self._frame = data
        self.schema = data.limit(0).to_arrow().schema
        self.n_bytes = data.estimated_size()

    def count(self) -> int:
        return len(self._frame)

    def rows(self, columns: Sequence[str], start: int, stop: int) -> Any:
        rows = self._frame.select(list(columns)).slice(start, stop - start).to_arrow()
        return rows.cast(schema_of(self.schema, columns))


class LazyFrameRows(ArrowRows):
    """A polars LazyFrame: its query runs anew in each epoch."""

    name = "LazyFrame"

    def __init__(self, data: Any):
        if not hasattr(type(data), "collect_batches"):
            raise ImportError(
                "this polars cannot give a LazyFrame in batches: pip install --upgrade polars"
            )
        self._frame = data
        self.schema = data.limit(0).collect().to_arrow().schema

    def count(self) -> int:
        return self._frame.select(sys.modules["polars"].len()).collect(engine="streaming").item()

    def batches(self, columns: Sequence[str], n_rows: int) -> Iterator[Any]:
        frames = self._frame.select(list(columns)).collect_batches(
            chunk_size=n_rows, maintain_order=True, lazy=True, engine="streaming"
        )
        return (frame.to_arrow() for frame in frames)


class DuckDBRows(ArrowRows):
    """A DuckDB relation: its query runs anew in each epoch, on a cursor of its own.

    A connection has one open result at a time, and a stream and a pass may read together.
    """

    name = "DuckDB relation"

    def __init__(self, data: Any):
        self._relation = data
        self._check_connection()
        self.schema = self._query("SELECT * FROM ({}) LIMIT 0").to_arrow_table().schema

    def count(self) -> int:
        return self._query("SELECT count(*) FROM ({})").fetchall()[0][0]

    def batches(self, columns: Sequence[str], n_rows: int) -> Iterator[Any]:
        names = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
        return iter(self._query(f"SELECT {names} FROM ({{}})").to_arrow_reader(n_rows))

    def _check_connection(self) -> None:
        """Refuse what a connection has by itself, so that a query means other rows on a cursor."""
        try:
            own, cursor = self._relation._con, self._relation._con.cursor()
            states = [
                connection.execute(CONNECTION_STATE).fetchall() for connection in (own, cursor)
            ]
            # Outside of a transaction, each query has an id of its own.
            ids = [own.execute("SELECT txid_current()").fetchall() for _ in range(2)]
        except Exception as error:
            raise self._refusal(str(error)) from error
        if states[0] != states[1] or ids[0] == ids[1]:
            raise self._refusal(
                "its connection has settings, variables, temporary tables or a transaction of its own"
            )

    def _query(self, query: str) -> Any:
        try:
            # There is no public way from a relation to its connection.
            cursor = self._relation._con.cursor()
            return cursor.sql(query.replace("{}", self._relation.sql_query()))
        except Exception as error:
            raise self._refusal(str(error)) from error

    @staticmethod
    def _refusal(reason: str) -> TypeError:
        return TypeError(
            f"this DuckDB relation cannot be read by a connection of its own: {reason}. Open one in a "
            'function: table_source(lambda: duckdb.connect("file.db", read_only=True).sql('
            '"SELECT ...").to_arrow_reader()).'
        )


class HuggingFaceRows(SeekableRows):
    """A Hugging Face Dataset."""

    name = "Dataset"

    def __init__(self, data: Any):
        self._data = data.with_format("arrow")
        self.schema = data.features.arrow_schema

    def count(self) -> int:
        return len(self._data)

    def rows(self, columns: Sequence[str], start: int, stop: int) -> Any:
        return self._data.select_columns(list(columns))[start:stop]


class IterableHuggingFaceRows(ArrowRows):
    """A Hugging Face IterableDataset."""

    name = "IterableDataset"

    def __init__(self, data: Any):
        self._data = data.with_format("arrow")
        if data.features is not None:
            self.schema = data.features.arrow_schema
            return
        first = next(iter(self._data.iter(batch_size=1000)), None)
        if first is None:
            raise ValueError("IterableDataset: no rows.")
        self.schema = first.schema

    def batches(self, columns: Sequence[str], n_rows: int) -> Iterator[Any]:
        return (batch.select(columns) for batch in self._data.iter(batch_size=n_rows))


class RayRows(ArrowRows):
    """A Ray Dataset."""

    name = "Ray Dataset"

    def __init__(self, data: Any):
        import pyarrow as pa

        self._data = data
        schema = data.schema()
        self.schema = getattr(schema, "base_schema", None)
        if not isinstance(self.schema, pa.Schema):  # its blocks are of pandas
            first = next(iter(self._batches(data, 1000)), None)
            if first is None:
                raise ValueError("Ray Dataset: no rows.")
            self.schema = first.schema

    def count(self) -> int:
        return self._data.count()

    def batches(self, columns: Sequence[str], n_rows: int) -> Iterator[Any]:
        return self._batches(self._data.select_columns(list(columns)), n_rows)

    @staticmethod
    def _batches(data: Any, n_rows: int) -> Iterator[Any]:
        return iter(
            data.iter_batches(batch_size=n_rows, batch_format="pyarrow", prefetch_batches=0)
        )


class DaskRows(ArrowRows):
    """A Dask DataFrame, a partition at a time."""

    name = "Dask DataFrame"

    def __init__(self, data: Any):
        self._frame = data
        first = next(iter(self.batches(list(data.columns), 1000)), None)
        if first is None:
            raise ValueError("Dask DataFrame: no rows.")
        self.schema = first.schema

    def count(self) -> int:
        return len(self._frame)

    def batches(self, columns: Sequence[str], n_rows: int) -> Iterator[Any]:
        for partition in self._frame[list(columns)].partitions:
            frame = partition.compute().rename(columns=str)
            for start in range(0, len(frame), n_rows):
                yield from_pandas(frame.iloc[start : start + n_rows])


def _delta(data: Any) -> ArrowRows:
    return DatasetRows(data.to_pyarrow_dataset(), "Delta table")


# How objects are read, by what their classes have.
KINDS: dict[tuple[str, ...], Callable[[Any], ArrowRows]] = {
    ("collect_schema", "to_arrow", "slice"): PolarsRows,
    ("collect_schema", "explain"): LazyFrameRows,
    ("sql_query", "fetch_arrow_table"): DuckDBRows,
    ("with_format", "iter", "__len__"): HuggingFaceRows,
    ("with_format", "iter"): IterableHuggingFaceRows,
    ("iter_batches", "select_columns", "materialize"): RayRows,
    ("npartitions", "partitions", "to_delayed", "columns"): DaskRows,
    ("to_pyarrow_dataset",): _delta,
}
