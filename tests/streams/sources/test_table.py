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
import doctest
import gzip
import os
import pickle
import shutil
import sqlite3
import sys

from itertools import batched
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import pymc as pm

from pymc.streams.batches import Batches
from pymc.streams.blocks import Blocks
from pymc.streams.order.report import order_report
from pymc.streams.shuffle.buffer import shuffle_buffer
from pymc.streams.shuffle.disk import pre_shuffle
from pymc.streams.sources import arrow, table
from pymc.streams.sources.dataset import DatasetRows
from pymc.streams.sources.opening import is_arrow_source
from pymc.streams.sources.parquet import parquet_source
from pymc.streams.sources.table import table_source
from pymc.variational.streaming import StreamingDataset
from tests.conftest import require

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pads = pytest.importorskip("pyarrow.dataset")
pytest.importorskip("pyarrow.csv")
feather = pytest.importorskip("pyarrow.feather")

N = 3000
ROOT = Path(__file__).parents[3]


def frame():
    """Rows in order, with a key: a, b and c in turn."""
    row = np.arange(N)
    when = pd.date_range("2026-01-01", periods=N, freq="s")
    return pd.DataFrame(
        {"row": row, "x": row / 2, "key": np.array(list("bac"))[row % 3], "t": when}
    )


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Read few rows at a time, so that all of it happens on small data."""
    monkeypatch.setattr(arrow, "BATCH_ROWS", 700)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The rows in files of each kind, in the working directory."""
    monkeypatch.chdir(tmp_path)
    rows = pa.Table.from_pandas(frame(), preserve_index=False)
    os.mkdir("rows")
    for i in range(3):
        pq.write_table(rows.slice(1000 * i, 1000), f"rows/{i}.parquet", row_group_size=400)
    frame().to_csv("rows.csv", index=False)
    with pa.ipc.new_file("rows.arrow", rows.schema) as file:
        file.write_table(rows, max_chunksize=800)
    feather.write_feather(rows, "rows.feather")
    return tmp_path


MADE = {
    "pyarrow": lambda: pa.Table.from_pandas(frame(), preserve_index=False),
    "record batch": lambda: pa.RecordBatch.from_pandas(frame(), preserve_index=False),
    "polars": lambda: require("polars").DataFrame(frame()),
    "polars lazy": lambda: require("polars").scan_parquet("rows/*.parquet"),
    "pandas": frame,
    "dataset": lambda: pads.dataset("rows"),
    "scanner": lambda: pads.dataset("rows").scanner(),
    "ipc reader": lambda: pa.ipc.open_file("rows.arrow"),
    "duckdb": lambda: require("duckdb").sql("SELECT * FROM 'rows/*.parquet' ORDER BY row"),
    "hugging face": lambda: require("datasets").Dataset(MADE["pyarrow"]()),
    "iterable": lambda: require("datasets").Dataset(MADE["pyarrow"]()).to_iterable_dataset(),
    "dask": lambda: require("dask.dataframe").from_pandas(frame(), npartitions=4),
}
SEEKABLE = {"pyarrow", "record batch", "polars", "pandas", "hugging face"}
OF_UNKNOWN_N = {"scanner", "iterable"}
PATHS = {"csv": "rows.csv", "arrow": "rows.arrow", "feather": "rows.feather", "parquet": "rows"}
FUNCTIONS = {
    "reader": lambda: pads.dataset("rows").scanner().to_reader(),
    "function of frames": lambda: (frame()[i : i + 900] for i in range(0, N, 900)),
    "function of a query": lambda: require("polars").scan_parquet("rows/*.parquet"),
}


def make(kind):
    return MADE[kind]() if kind in MADE else (PATHS | FUNCTIONS)[kind]


def joined(blocks, column="row"):
    return np.concatenate([block[column] for block in blocks])


@pytest.mark.parametrize("kind", [*MADE, *PATHS, *FUNCTIONS])
def test_every_kind_gives_all_rows_with_codes(kind, files):
    source = table_source(make(kind))
    assert source.columns == ("row", "x", "key", "t")
    assert source.categories["key"].tolist() == ["a", "b", "c"]
    assert source.units == {"t": "s since 1970-01-01"}
    assert source.seekable == (kind in SEEKABLE)
    assert source.n_rows == (None if kind in OF_UNKNOWN_N | set(FUNCTIONS) else N)
    for _ in range(2):
        blocks = list(source)
        rows = joined(blocks)
        np.testing.assert_array_equal(rows, np.arange(N))
        np.testing.assert_array_equal(joined(blocks, "key"), np.array([1, 0, 2])[rows % 3])
        np.testing.assert_array_equal(joined(blocks, "x"), rows / 2)
        assert joined(blocks, "t")[60] - joined(blocks, "t")[0] == 60
        assert [block["key"].dtype for block in blocks] == ["int32"] * len(blocks)


@pytest.mark.parametrize("kind", MADE)
def test_tables_are_sources_as_they_stand(kind, files):
    data = make(kind)
    assert is_arrow_source(data)
    ds = StreamingDataset(data, batch_size=500, cycle=False, check_order="ignore")
    assert ds.columns == ("row", "x", "key", "t")
    np.testing.assert_array_equal(np.concatenate([b[:, 0] for b in ds]), np.arange(N))
    mixed = shuffle_buffer(data, buffer_size=1000, batch_size=100, seed=1)
    rows = joined(mixed)
    assert sorted(rows.tolist()) == list(range(N))
    assert rows[:100].tolist() != list(range(100))
    assert order_report(data, batch_size=100).table["in order"]["row"] > 50
    [stream] = {b.tag.stream for b in pm.Minibatch(data, batch_size=50).owner.inputs}
    assert stream.batch_size == 50


@pytest.mark.parametrize("kind", MADE)
def test_pre_shuffle_keeps_the_strings(kind, files):
    shuffled = pre_shuffle(make(kind), "shuffled", seed=1)
    table = pq.read_table("shuffled").sort_by("row")
    assert table["key"].to_pylist() == frame()["key"].tolist()
    assert pa.types.is_timestamp(table["t"].type)
    assert shuffled.n_rows == N


@pytest.mark.parametrize("kind", sorted(SEEKABLE))
@pytest.mark.parametrize("start", [0, 1, 699, 700, 2999])
def test_seekable_tables_open_anywhere(kind, start, files):
    source = table_source(make(kind))
    np.testing.assert_array_equal(joined(source.read(3, start)), np.arange(start, N))
    np.testing.assert_array_equal(joined(source.unshuffled(start)), np.arange(start, N))


@pytest.mark.parametrize("kind", ["pyarrow", "polars", "dataset", "csv", "dask", "reader"])
def test_filters(kind, files):
    source = table_source(make(kind), columns=["x"], filters=pads.field("row") >= 1234)
    assert source.n_rows == N - 1234
    np.testing.assert_array_equal(joined(source, "x"), np.arange(1234, N) / 2)
    if source.seekable:
        np.testing.assert_array_equal(joined(source.read(0, 700), "x"), np.arange(1934, N) / 2)
    assert sum(t.num_rows for t in source.tables()) == N - 1234
    with pytest.raises(ValueError, match="no rows"):
        table_source(make(kind), filters=pads.field("row") < 0)


@pytest.mark.parametrize("kind", ["pyarrow", "polars", "pandas", "function"])
def test_missing_values(kind, files):
    rows = frame()
    rows.loc[[5, 900], "x"] = np.nan
    rows.loc[[7, 900], "key"] = None
    data = {
        "pyarrow": lambda: pa.Table.from_pandas(rows, preserve_index=False),
        "polars": lambda: require("polars").from_pandas(rows),
        "pandas": lambda: rows,
        "function": lambda: lambda: [rows[:100], rows[100:]],
    }[kind]()
    with pytest.raises(ValueError, match=r"rows 0 to \d+, column '(x|key)'"):
        list(table_source(data))
    source = table_source(data, missing="drop")
    left = [i for i in range(N) if i not in (5, 7, 900)]
    assert (source.n_rows, source.n_dropped) == (N - 3, 3)
    assert joined(source).tolist() == left
    assert [i for t in source.tables() for i in t["row"].to_pylist()] == left
    if source.seekable:
        for start in (0, 5, 696, 697, 698, 2000):
            assert joined(source.read(0, start)).tolist() == left[start:]


def test_a_stream_goes_on_at_a_position_of_a_table(files):
    def stream():
        return StreamingDataset(
            shuffle_buffer(frame(), buffer_size=500, batch_size=100, seed=3), batch_size=100
        )

    first = stream()
    for _ in range(37):
        first.advance()
    second = stream()
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(next(first), next(second))
    other = frame()
    other["x"] += 1
    changed = StreamingDataset(
        shuffle_buffer(other, buffer_size=500, batch_size=100, seed=3), batch_size=100
    )
    with pytest.raises(ValueError, match="another stream"):
        changed.load_state_dict(first.state_dict())


def test_two_queries_are_not_taken_for_the_same_rows(files):
    query = make("polars lazy")
    assert not Blocks(query).same_rows(Blocks(query.filter(require("polars").col("row") >= 0)))
    assert Blocks(make("polars")).same_rows(Blocks(make("pandas")))
    assert not Blocks(make("pandas")).same_rows(Blocks(frame()[::-1]))
    assert Blocks(make("dataset")).same_rows(Blocks(make("dataset")))


@pytest.mark.parametrize("kind", ["pyarrow", "polars", "pandas", "dataset", "csv", "hugging face"])
def test_sources_can_be_pickled(kind, files):
    source = pickle.loads(pickle.dumps(table_source(make(kind))))
    np.testing.assert_array_equal(joined(source), np.arange(N))


def test_a_duckdb_relation_is_read_twice_at_once(files):
    """A stream that a thread reads ahead is open while a pass over all rows runs."""
    duckdb = require("duckdb")
    rows = frame()
    connection = duckdb.connect()
    source = table_source(connection.sql("SELECT * FROM rows WHERE x < 1000"))
    one, two = iter(source), iter(source)
    next(one)
    np.testing.assert_array_equal(joined(two), np.arange(2000))
    assert connection.sql("SELECT 1").fetchall() == [(1,)]
    np.testing.assert_array_equal(joined(one), np.arange(700, 2000))
    connection.execute("CREATE TEMP TABLE own AS SELECT 1 AS x")
    with pytest.raises(TypeError, match=r"(?s)of its own: .*table_source\(lambda"):
        table_source(connection.table("own"))


@pytest.mark.parametrize(
    "own",
    [
        "CREATE TEMP TABLE t AS SELECT 9 AS x",
        "SET VARIABLE low = 5",
        "SET TimeZone = 'America/New_York'",
        "BEGIN",
    ],
)
def test_a_duckdb_connection_with_a_state_of_its_own_is_refused(own):
    """On a cursor the same query would give other rows."""
    connection = require("duckdb").connect()
    connection.execute("CREATE TABLE t AS SELECT range AS x FROM range(10)")
    connection.execute("SET enable_progress_bar = true")  # as it is in a notebook
    assert table_source(connection.sql("SELECT * FROM t")).n_rows == 10
    connection.execute(own)
    with pytest.raises(TypeError, match=r"(?s)of its own: .*table_source\(lambda"):
        table_source(connection.sql("SELECT * FROM t"))


def test_a_connection_is_told_what_to_pass():
    with pytest.raises(TypeError, match=r"got DuckDBPyConnection.*connection\.sql\("):
        table_source(require("duckdb").connect())


def test_a_url_is_refused_with_what_reads_it():
    with pytest.raises(
        ValueError, match=r"table_source\(pyarrow.dataset.dataset\('s3://rows/a.csv'"
    ):
        table_source("s3://rows/a.csv")


def test_a_function_that_returns_one_iterator_is_refused():
    tables = (pa.table({"x": [i]}) for i in range(4))
    source = table_source(lambda: tables)
    with pytest.raises(TypeError, match="the same iterator twice"):
        list(source)


def test_a_text_that_is_missing_in_a_csv_file_is_no_category(tmp_path):
    (tmp_path / "a.csv").write_text("key,x\nm,1\n,2\nn,3\n")
    source = table_source(tmp_path / "a.csv", missing="drop")
    assert (source.n_rows, source.n_dropped) == (2, 1)
    assert source.categories["key"].tolist() == ["m", "n"]


def test_a_column_in_files_and_in_names_of_folders_is_refused(tmp_path):
    for month in (1, 2):
        (tmp_path / f"month={month}").mkdir()
        (tmp_path / f"month={month}" / "a.csv").write_text(f"x,month\n1,{90 + month}\n")
    with pytest.raises(ValueError, match=r"month"):
        table_source(tmp_path)


def test_categories_that_are_given(files):
    with pytest.raises(ValueError, match="'c' is not among its 2 categories"):
        list(table_source(frame(), categories={"key": ["a", "b"]}))
    source = table_source(frame(), categories={"key": ["b", "a"]}, unknown="rest")
    assert source.categories["key"].tolist() == ["b", "a", "rest"]
    assert next(iter(source))["key"][:3].tolist() == [0, 1, 2]


def test_hive_partitions_and_types_of_several_csv_files(tmp_path):
    for month, x in ((1, "1"), (2, "2.5")):
        (tmp_path / f"month={month}").mkdir()
        (tmp_path / f"month={month}" / "a.csv").write_text(f"x,key\n{x},m\n")
    source = table_source(tmp_path)
    [one, two] = source
    assert source.columns == ("x", "key", "month")
    assert (one["x"].tolist(), two["x"].tolist()) == ([1.0], [2.5])
    assert (one["month"].tolist(), two["month"].tolist()) == ([1], [2])
    (tmp_path / "month=2" / "b.csv").write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match=r"b\.csv: the columns are \['x', 'y'\]"):
        table_source(tmp_path)


def test_a_csv_file_whose_types_change_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("x\n" + "1\n" * 600_000 + "two\n")
    with pytest.raises(ValueError, match=r"rows\.csv.*invalid value 'two'.*schema="):
        list(table_source(path))
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(b"x\n1.5\n"))
    assert next(iter(table_source(tmp_path / "rows.csv.gz")))["x"].tolist() == [1.5]


def test_a_file_that_changes_is_noticed(files):
    source = table_source("rows.csv")
    with open("rows.csv", "a") as file:
        file.write("1,1,a,2026-01-01 00:00:00\n")
    with pytest.raises(RuntimeError, match="changed since the source was made"):
        list(source)
    os.remove("rows.csv")
    with pytest.raises(RuntimeError, match="added or removed"):
        list(source)


def test_a_file_that_is_added_is_noticed(files):
    source = table_source("rows", columns=["x"])
    assert sum(len(block["x"]) for block in source) == N
    shutil.copy(next(Path("rows").glob("*.parquet")), "rows/more.parquet")
    with pytest.raises(RuntimeError, match=r"more\.parquet: added or removed.*N has changed"):
        list(source)
    assert table_source("rows").n_rows > N
    shutil.rmtree("rows")
    with pytest.raises(RuntimeError, match="added or removed"):
        list(source)


@pytest.mark.parametrize(
    "paths", ["parts/*/*.csv", "parts/*", ["parts/a", "parts/b"], ["parts/a/1.csv", "parts/b"]]
)
def test_patterns_and_folders(paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, x in {"a/1": [1.0, 2.0], "b/2": [3.0], "b/3": [4.0]}.items():
        Path(f"parts/{name}.csv").parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"x": x}).to_csv(f"parts/{name}.csv", index=False)
    source = table_source(paths)
    assert np.concatenate([block["x"] for block in source]).tolist() == [1.0, 2.0, 3.0, 4.0]
    shutil.copy("parts/b/3.csv", "parts/b/4.csv")
    with pytest.raises(RuntimeError, match=r"4\.csv: added or removed"):
        list(source)
    shutil.rmtree("parts")
    with pytest.raises(RuntimeError, match="added or removed"):
        list(source)
    with pytest.raises(FileNotFoundError, match="no file or folder at"):
        table_source(paths)


def test_a_source_says_what_it_holds(files):
    told = "1,000 rows of DataFrame: x, key (2 categories), t (s since 1970-01-01)>"
    rows = pd.DataFrame({"x": np.arange(1000), "key": ["u", "v"] * 500})
    rows["t"] = pd.to_datetime(rows["x"], unit="s")
    assert repr(table_source(rows)) == f"<table_source of {told}"
    rows.to_parquet("told.parquet")
    told = told.replace("of DataFrame", "in 1 file(s)")
    assert repr(parquet_source("told.parquet")) == f"<parquet_source of {told}"
    assert "rows that were not counted of function" in repr(table_source(lambda: [rows]))


@pytest.mark.parametrize("codes", [False, True])
def test_a_parquet_dataset_gives_what_a_scan_gives(codes, tmp_path):
    # The first file: a column that the other lacks, narrower types, strings as a dictionary, nulls.
    first = {
        "x": pa.array([1, 2, 3], pa.int32()),
        "a.b": [1.0, 2.0, 3.0],
        "s": pa.array(["u", "v", None]).dictionary_encode(),
        "t": pa.array([1, 2, 3], pa.timestamp("ms")),
    }
    second = {"s": ["q", "q", "r"], "a.b": [1, 2, 3], "x": [5, 6, 3]}
    names = ("key=a b%2Fc", first), ("key=z", second), ("key=__HIVE_DEFAULT_PARTITION__", first)
    for folder, columns in names:
        (tmp_path / folder).mkdir()
        pq.write_table(pa.table(columns), tmp_path / folder / "0.parquet", row_group_size=2)
    key = pa.dictionary(pa.int32(), pa.string()) if codes else pa.string()
    keys = pads.partitioning(
        pa.schema([("key", key)]),
        flavor="hive",
        dictionaries={"key": pa.array(["z", "a b/c"])} if codes else None,
    )
    types = {"x": "int64", "a.b": "float64", "s": "string", "t": pa.timestamp("us"), "key": key}
    data = pads.dataset(tmp_path, partitioning=keys, schema=pa.schema(types))
    for filters in (
        None,
        pads.field("x") >= 3,
        pads.field("key") == "z",
        pads.field("t").is_valid(),
    ):
        for columns in (list(types), ["key"], ["a.b", "key", "s"]):
            rows = DatasetRows(data)
            rows.filters = filters
            batches = [pa.table(batch) for batch in rows.batches(columns, 2)]
            expected = data.to_table(columns=columns, filter=filters)
            given = pa.concat_tables(batches) if batches else expected.slice(0, 0)
            assert given.schema == expected.schema
            assert given.to_pylist() == expected.to_pylist()
            assert rows.count() == len(given)
    filtered = DatasetRows(data.filter(pads.field("x") > 1))
    assert sum(batch.num_rows for batch in filtered.batches(["x"], 2)) == 7


def test_a_csv_dataset_gives_what_a_scan_gives(tmp_path):
    for key in ("p", "q r"):
        (tmp_path / f"key={key}").mkdir()
    (tmp_path / "key=p" / "0.csv").write_text("x;s;y\n" + "1;,;0.5\n" * 3 + ";NA;1\n2;v;\n")
    text = gzip.compress(b's;x\n"q;q";5\nr;6\n')
    (tmp_path / "key=q r" / "0.csv.gz").write_bytes(text)
    schema = pa.schema({"x": "float32", "s": "string", "y": "float64", "key": "string"})
    semicolons = pads.CsvFileFormat(parse_options=pa.csv.ParseOptions(delimiter=";"))
    data = pads.dataset(tmp_path, schema=schema, format=semicolons, partitioning="hive")
    for filters in (None, pads.field("x") >= 2, pads.field("key") == "q r"):
        for columns in (schema.names, ["key"], ["s", "x"]):
            rows = DatasetRows(data)
            rows.filters = filters
            given = pa.concat_tables(pa.table(batch) for batch in rows.batches(columns, 2))
            expected = data.to_table(columns=columns, filter=filters)
            assert given.schema == expected.schema
            assert given.to_pylist() == expected.to_pylist()
            assert rows.count() == len(given)


def test_a_function_must_give_the_same_columns(files):
    blocks = [frame()[:10], frame()[10:][["row", "x", "key"]]]
    with pytest.raises(ValueError, match=r"block 1: no column \['t'\]"):
        list(table_source(blocks, categories={"key": ["a", "b", "c"]}))


class Empty:
    """What Hugging Face's load_dataset gives without a split."""

    def with_format(self):
        raise AssertionError

    iter = with_format


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        (iter([]), TypeError, r"iterator can be read once.*table_source\(lambda: \.\.\.\)"),
        (5, TypeError, "takes paths, tables and functions.*got int"),
        ([(1, 2.0)], TypeError, r"block 0: .* a tuple.*pandas.DataFrame\(rows"),
        (lambda: 5, TypeError, "must return a table or an iterable of tables, and returned int"),
        (lambda: [], ValueError, "no rows"),
        ({"train": Empty(), "test": Empty()}, TypeError, r"splits \['train', 'test'\].*data\['t"),
        ("missing.csv", FileNotFoundError, "missing.csv"),
        (pd.DataFrame({"x": [1j]}), TypeError, "DataFrame"),
        (pd.DataFrame({"x": [{"a": 1}]}), TypeError, "column 'x' is not numeric"),
        (pd.DataFrame({"x": []}, dtype=str), ValueError, "no rows|no categories"),
    ],
)
def test_what_is_no_table(data, error, match):
    with pytest.raises(error, match=match):
        table_source(data)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"columns": "x"}, TypeError, r"\['x'\]"),
        ({"columns": ["z"]}, ValueError, "no column 'z'"),
        ({"columns": []}, ValueError, "no columns"),
        ({"missing": "skip"}, ValueError, "missing must be"),
        ({"time_unit": "year"}, ValueError, "time_unit"),
    ],
)
def test_bad_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        table_source(frame(), **kwargs)


def test_formats_that_names_do_not_tell(files):
    os.rename("rows.csv", "rows.txt")
    with pytest.raises(ValueError, match=r'do not tell one format.*format="csv"'):
        table_source("rows.txt")
    assert table_source("rows.txt", format="csv").n_rows == N
    with pytest.raises(ValueError, match="do not tell one format"):
        table_source(files)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("rows.csv", r"table_source\('rows.csv'\)"),
        ("rows.csv.gz", r"table_source\('rows.csv.gz'\)"),
        (Path("rows.feather"), r"table_source\('rows.feather'\)"),
        ("rows.parquet", r"parquet_source\('rows.parquet'\)"),
        ("rows", r"parquet_source\('rows'\)"),
    ],
)
def test_a_path_is_pointed_to_what_reads_it(path, line):
    with pytest.raises(TypeError, match=line):
        StreamingDataset(path, batch_size=10)


@pytest.mark.parametrize("path", ["rows.csv", "rows.feather", "rows.arrow"])
def test_parquet_source_names_table_source(path, files):
    with pytest.raises(ValueError, match=rf"not a Parquet file.*table_source\('.*{path}'\)"):
        parquet_source(path)
    os.mkdir("others")
    os.rename(path, f"others/{path}")
    with pytest.raises(FileNotFoundError, match="read by table_source"):
        parquet_source("others")


def chunks(**kwargs):
    connection = sqlite3.connect("rows.db", **kwargs)
    return pd.read_sql("SELECT row, x FROM rows", connection, chunksize=300)


def test_sqlite_through_chunks_of_pandas(files):
    frame().to_sql("rows", sqlite3.connect("rows.db"), index=False)
    ds = StreamingDataset(chunks, batch_size=100, prefetch=10)
    with pytest.raises(RuntimeError, match=r"check_same_thread=False.*prefetch=0"):
        [ds.advance() for _ in range(N // 100)]
    for ways_out in ({"prefetch": 0}, {"check_same_thread": False}):
        allowed = {"check_same_thread": ways_out.pop("check_same_thread", True)}
        ds = StreamingDataset(
            lambda: chunks(**allowed), batch_size=100, cycle=False, check_order="ignore", **ways_out
        )
        np.testing.assert_array_equal(np.concatenate([b[:, 0] for b in ds]), np.arange(N))


def test_rows_of_a_cursor_become_blocks_as_the_message_says(files):
    rows = list(frame()[["row", "x"]].itertuples(index=False, name=None))
    with pytest.raises(TypeError, match=r"itertools\.batched\(source, 10_000\)"):
        StreamingDataset(lambda: iter(rows), batch_size=100)

    def blocks():
        for some in batched(rows, 900):
            yield pd.DataFrame(some, columns=["row", "x"])

    assert StreamingDataset(blocks, batch_size=100, check_order="ignore").columns == ("row", "x")


def test_codes_for_preprocess_fn(files):
    batches = Batches(
        make("polars"),
        batch_size=9,
        dtype="float64",
        preprocess_fn=lambda block: {"b": block["key"] == 1},
        cycle=True,
    )
    assert next(batches.read())[0].batch[0][:, 0].tolist() == [1, 0, 0] * 3


def test_plain_numbers_need_no_arrow(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    rows = {"x": np.arange(4.0)}
    for source in (rows, pd.DataFrame(rows), lambda: pd.DataFrame(rows)):
        [block] = Blocks(source).epoch(0)
        assert block["x"].sum() == 6
    with pytest.raises(ImportError, match="pip install pyarrow"):
        Blocks(pd.DataFrame({"key": pd.Categorical(["a"])}))


def test_no_library_is_imported_to_recognise_its_objects(monkeypatch):
    for name in ("polars", "duckdb", "datasets", "ray", "dask", "deltalake", "zarr", "h5py"):
        monkeypatch.setitem(sys.modules, name, None)
    assert Blocks(pd.DataFrame({"key": ["a"]})).n_rows == 1
    assert Blocks(MADE["pyarrow"]()).n_rows == N
    assert Blocks(np.zeros(5)).n_rows == 5


def test_docstring_examples_run():
    assert doctest.testmod(table).failed == 0
