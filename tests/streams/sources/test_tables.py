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
import datetime

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from pymc.streams.sources import tables
from pymc.streams.sources.parquet import parquet_source
from pymc.streams.sources.tables import Contents, numeric_columns, tables_of

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

N = 60
EVERY_THIRD = [i if i % 3 else None for i in range(N)]
DAYS = [datetime.date(2024, 1, 1) + datetime.timedelta(days=i) for i in range(N)]
TEXTS = [None if i is None else f"text {i}" for i in EVERY_THIRD]
ARRAYS = {
    "int8": pa.array(EVERY_THIRD, pa.int8()),
    "uint16": pa.array(EVERY_THIRD, pa.uint16()),
    "int32": pa.array(range(N), pa.int32()),
    "uint64": pa.array([2**64 - 1 - i for i in range(N)], pa.uint64()),
    "float16": pa.array(np.arange(N, dtype="float16")),
    "float32": pa.array(EVERY_THIRD, pa.float32()),
    "float64": pa.array([np.nan, -0.0, np.inf, None] * (N // 4)),
    "bool": pa.array([True, False, None] * (N // 3)),
    "string": pa.array(TEXTS),
    "large_string": pa.array(TEXTS, pa.large_string()),
    "binary": pa.array([text and text.encode() for text in TEXTS]),
    "fixed binary": pa.array([b"%03d" % i for i in range(N)], pa.binary(3)),
    "date32": pa.array(DAYS),
    "date64": pa.array(DAYS, pa.date64()),
    "time32 s": pa.array(EVERY_THIRD, pa.time32("s")),
    "time64 ns": pa.array(EVERY_THIRD, pa.time64("ns")),
    "timestamp s": pa.array(EVERY_THIRD, pa.timestamp("s")),
    "timestamp ms": pa.array(EVERY_THIRD, pa.timestamp("ms")),
    "timestamp us": pa.array(EVERY_THIRD, pa.timestamp("us")),
    "timestamp ns, zone": pa.array(EVERY_THIRD, pa.timestamp("ns", "Europe/Berlin")),
    "timestamp s, zone": pa.array(EVERY_THIRD, pa.timestamp("s", "UTC")),
    "duration": pa.array(EVERY_THIRD, pa.duration("ns")),
    "decimal128": pa.array([Decimal(i) / 100 for i in range(N)], pa.decimal128(9, 2)),
    "decimal256": pa.array([Decimal(i) / 100 for i in range(N)], pa.decimal256(50, 2)),
    "null": pa.nulls(N),
    "list": pa.array([[i, None] if i % 3 else None for i in range(N)]),
    "list of timestamps": pa.array([[i] for i in range(N)], pa.list_(pa.timestamp("s"))),
    "struct": pa.array([{"a": i, "b": [str(i)]} for i in range(N)]),
    "map": pa.array([[("k", i)] for i in range(N)], pa.map_(pa.string(), pa.int64())),
    "categories": pa.array(TEXTS).dictionary_encode(),
    "categories of numbers": pa.array([i % 4 for i in range(N)]).dictionary_encode(),
}
try:
    pq.write_table(pa.table({"x": pa.array(TEXTS, pa.string_view())}), pa.BufferOutputStream())
except pa.ArrowNotImplementedError:  # an older pyarrow
    pass
else:
    ARRAYS["string_view"] = pa.array(TEXTS, pa.string_view())
    ARRAYS["binary_view"] = ARRAYS["binary"].cast(pa.binary_view())


def write(path, columns, **kwargs):
    pq.write_table(pa.table(columns), path, **kwargs)


def contents_of(tables):
    contents = Contents()
    for table in tables:
        contents.add(table)
    return contents


def joined(rows):
    return pa.concat_tables(list(rows))


@pytest.mark.parametrize("max_pages_bytes", [2**26, 0], ids=["together", "by column"])
@pytest.mark.parametrize("name", ARRAYS)
def test_contents_are_the_same_after_writing_and_reading(
    tmp_path, monkeypatch, name, max_pages_bytes
):
    monkeypatch.setattr(tables, "MAX_PAGES_BYTES", max_pages_bytes)
    monkeypatch.setattr(tables, "READ_BYTES", 100)  # a few rows, and a column, at a time
    source = tables_of(pa.table({"x": range(N), "y": ARRAYS[name]}))
    read = list(source)
    with pq.ParquetWriter(tmp_path / "a.parquet", source.schema) as writer:
        writer.write_table(joined(read).cast(source.schema))
    written = tables_of(tmp_path)
    assert written.schema.types == source.schema.types
    assert contents_of(written) == contents_of(read)


@pytest.mark.parametrize("name", ARRAYS)
def test_contents_do_not_depend_on_order_or_slices(name):
    [table] = tables_of(pa.table({"x": range(N), "y": ARRAYS[name]}))
    contents = contents_of([table])
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(N)))
    assert contents_of([shuffled]) == contents
    assert (
        contents_of([shuffled.slice(0, 1), shuffled.slice(1, 50), shuffled.slice(51)]) == contents
    )
    assert contents_of([pa.concat_tables([table.slice(30), table.slice(0, 30)])]) == contents
    assert contents.n_rows == N
    assert list(contents.columns) == ["x", "y"]


@pytest.mark.parametrize("name", [name for name in ARRAYS if name != "null"])
def test_contents_notice_columns_that_come_apart(name):
    [table] = tables_of(pa.table({"x": range(N), "y": ARRAYS[name]}))
    rolled = pa.concat_tables([table.slice(1), table.slice(0, 1)]).column("y")
    contents, apart = contents_of([table]), contents_of([table.set_column(1, "y", rolled)])
    assert apart.columns == contents.columns
    assert apart.rows != contents.rows


@pytest.mark.parametrize("dtype", [pa.int64(), pa.float64(), pa.string(), pa.decimal128(20, 1)])
@pytest.mark.parametrize(
    "other",
    [
        [0, 1, 2, 3, 5],  # one value
        [0, 1, 2, 3],  # one row less
        [0, 1, 2, 3, 4, 4],  # one row twice
        [0, 0, 2, 3, 5],  # of the same sum
        [None, 1, 2, 3, 4],
        [0, 1, None, 3, 4],
    ],
)
def test_contents_notice_what_changes(other, dtype):
    tables = [pa.table({"x": pa.array(x, pa.int64()).cast(dtype)}) for x in ([*range(5)], other)]
    assert contents_of(tables[:1]) != contents_of(tables[1:])


def test_contents_of_floats_are_their_bits():
    zeros = [contents_of([pa.table({"x": [x]})]) for x in (0.0, -0.0, np.nan, None)]
    assert len({contents.rows for contents in zeros}) == 4


def test_contents_notice_values_that_swap_columns():
    names, rows = ["x", "y", "z"], [(1, 2, 3), (2, 3, 1), (3, 1, 2)]
    table = pa.table([list(column) for column in zip(*rows)], names=names)
    swapped = pa.table([list(column) for column in zip(*(row[::-1] for row in rows))], names=names)
    contents, other = contents_of([table]), contents_of([swapped])
    assert contents.columns == other.columns
    assert contents.rows != other.rows


def test_contents_of_many_rows(monkeypatch):
    table = pa.table({"x": range(1000), "y": [str(i) for i in range(1000)]})
    contents = contents_of([table])
    assert all(0 <= value < 2**64 for value in [contents.rows, *contents.columns.values()])
    monkeypatch.setattr(tables, "HASH_ROWS", 7)
    assert contents_of([table]) == contents


def test_numeric_columns():
    names = ["int8", "uint16", "int32", "uint64", "float16", "float32", "float64", "bool"]
    assert numeric_columns(pa.table(ARRAYS).schema) == names


def test_files(tmp_path):
    for i in range(2):
        write(tmp_path / f"{i}.parquet", {"x": range(10 * i, 10 * i + 10)}, row_group_size=4)
    rows = tables_of(str(tmp_path))
    assert rows.n_rows == 20
    assert rows.files == [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    assert [table.num_rows for table in rows] == [4, 4, 2] * 2
    assert joined(rows)["x"].to_pylist() == list(range(20))
    rows = tables_of([tmp_path / "1.parquet", str(tmp_path / "0.parquet")])
    assert joined(rows)["x"].to_pylist() == [*range(10, 20), *range(10)]


def test_wide_rows_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "READ_BYTES", 10_000)
    values = np.random.default_rng(1).normal(size=(20, 1000))
    write(tmp_path / "a.parquet", dict(zip(map(str, range(20)), values)))
    sizes = [table.num_rows for table in tables_of(tmp_path)]
    assert sum(sizes) == 1000
    assert max(sizes) <= 10_000 / (8 * 20)


@pytest.mark.parametrize("kind", ["array", "mapping", "blocks"])
def test_wide_arrays_are_copied_a_few_rows_at_a_time(monkeypatch, kind):
    monkeypatch.setattr(tables, "READ_BYTES", 10_000)
    array = np.random.default_rng(1).normal(size=(1000, 20))
    block = dict(zip(map(str, range(20)), array.T))
    source = {"array": array, "mapping": block, "blocks": [array, array]}[kind]
    read = list(tables_of(source))
    assert max(table.num_rows for table in read) == 10_000 // (8 * 20)
    expected = np.concatenate(source) if kind == "blocks" else array
    np.testing.assert_array_equal(np.column_stack(joined(read).columns), expected)


def test_files_of_other_types_and_orders_are_joined(tmp_path):
    write(tmp_path / "a.parquet", {"x": np.arange(3, dtype="int8"), "y": [None] * 3})
    write(tmp_path / "b.parquet", {"y": ["a"], "x": [2**40]})
    rows = tables_of(tmp_path)
    assert rows.schema.types == [pa.int64(), pa.string()]
    assert joined(rows).to_pydict() == {"x": [0, 1, 2, 2**40], "y": [None, None, None, "a"]}


def test_categories_of_many_files(tmp_path):
    texts = [f"text {i}" for i in range(300)]
    for i in range(3):
        part = pd.DataFrame({"c": pd.Categorical(texts[100 * i : 100 * i + 100], ordered=True)})
        part.to_parquet(tmp_path / f"{i}.parquet")
    rows = tables_of(tmp_path)
    # Codes of 8 bits do not count them, and their order would be that of the rows.
    assert rows.schema.field("c").type == pa.dictionary(pa.int32(), pa.string())
    assert joined(rows)["c"].to_pylist() == texts


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"x": [1]}, r"b\.parquet: the columns are \['x'\], and should be .*a\.parquet"),
        ({"x": [1], "y": [1], "z": [1]}, r"b\.parquet: the columns are \['x', 'y', 'z'\]"),
        ({"x": [1], "y": ["text"]}, r"types of a column differ between files.*y"),
    ],
)
def test_a_file_whose_columns_do_not_fit_is_named(tmp_path, columns, match):
    write(tmp_path / "a.parquet", {"x": [1], "y": [1]})
    write(tmp_path / "b.parquet", columns)
    with pytest.raises(ValueError, match=match):
        tables_of(tmp_path)


def test_columns_of_one_name(tmp_path):
    twice = pa.table([[1], [2]], names=["x", "x"])
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: the columns are \['x', 'x'\].*each once"):
        tables_of(tmp_path)
    for source in [twice, {1: [1], "1": [2]}, [pd.DataFrame({1: [1], "1": [2]})]]:
        with pytest.raises(ValueError, match=r"the columns are .*each once"):
            list(tables_of(source))


def test_bad_files(tmp_path):
    (tmp_path / "text.parquet").write_text("no parquet")
    pq.write_table(pa.table({"x": [1]}).select([]), tmp_path / "empty.parquet")
    for path, error, match in [
        (tmp_path / "empty.parquet", ValueError, r"empty\.parquet: no columns"),
        (tmp_path / "absent", FileNotFoundError, "no Parquet file or folder at"),
        (tmp_path / "text.parquet", ValueError, r"text\.parquet: not a readable Parquet file"),
        ([], FileNotFoundError, "list of Parquet files is empty"),
    ]:
        with pytest.raises(error, match=match):
            tables_of(path)


def test_arrays_of_a_mapping_keep_their_types():
    source = {
        "date": np.array(["2024-01-01", "2024-01-02"], dtype="datetime64[D]"),
        "text": np.array(["a", "b"]),
        "masked": np.ma.array([1, 2], mask=[False, True]),
        "integer": pd.Series([1, None], dtype="Int64", index=[0.0, 0.5]),
        "ns": pd.Series(pd.to_datetime([1, 2], unit="ns", utc=True)),
        "category": pd.Categorical(["a", "b"]),
        "arrow": pa.array([1, None], pa.int8()),
        "list": [0.5, 1.5],
    }
    rows = tables_of(source)
    [table] = rows
    assert rows.n_rows == 2
    assert [str(kind) for kind in table.schema.types[:1] + table.schema.types[2:5]] == [
        "date32[day]",
        "int64",
        "int64",
        "timestamp[ns, tz=UTC]",
    ]
    assert pa.types.is_dictionary(rows.schema.field("category").type)
    assert table["masked"].to_pylist() == table["integer"].to_pylist() == [1, None]
    assert table["arrow"].type == pa.int8()
    assert table["ns"].cast(pa.int64()).to_pylist() == [1, 2]
    assert table["text"].to_pylist() == table["category"].to_pylist() == ["a", "b"]


def test_a_series_is_sliced_by_position(monkeypatch):
    monkeypatch.setattr(tables, "READ_ROWS", 4)
    source = {"x": pd.Series(range(10), index=np.arange(10) / 2), "y": np.arange(10)}
    read = list(tables_of(source))
    assert [table.num_rows for table in read] == [4, 4, 2]
    assert joined(read)["x"].to_pylist() == joined(read)["y"].to_pylist() == list(range(10))


@pytest.mark.parametrize("kind", ["array", "mapping", "frame"])
def test_blocks_that_are_written_over_later(kind):
    array = np.zeros((10, 2), order="F")
    frame = pd.DataFrame(array, columns=["0", "1"], copy=False)
    block = {"array": array, "mapping": dict(zip("01", array.T)), "frame": frame}[kind]

    def source():
        for i in range(5):
            array[:] = i
            yield block

    assert np.shares_memory(frame.to_numpy(), array)
    assert joined(tables_of(source))["1"].to_pylist() == np.repeat(np.arange(5.0), 10).tolist()


def test_number_of_rows_and_names_of_columns():
    class Source:
        n_rows, columns = 6, np.array(["a", "b"])

        def __iter__(self):
            return iter([np.zeros((0, 2)), np.arange(6).reshape(3, 2), np.arange(6).reshape(3, 2)])

    rows = tables_of(Source())
    assert rows.n_rows == 6
    assert [table.schema.names for table in rows] == [["a", "b"]] * 2
    for source in [{"x": np.zeros(6)}, np.zeros((6, 2)), pd.DataFrame({"x": np.zeros(6)})]:
        assert tables_of(source).n_rows == 6
    assert tables_of(pa.table({"x": range(6)})).n_rows == 6
    assert tables_of(iter([np.zeros(6)])).n_rows is None
    Source.columns = ("a", "b", "c")
    with pytest.raises(ValueError, match=r"block 0: 2 columns, and should be \['a', 'b', 'c'\]"):
        list(tables_of(Source()))


def test_an_empty_block_does_not_fix_the_types():
    empty = pd.DataFrame({"x": [], "y": []})
    rows = tables_of([empty, pd.DataFrame({"x": ["a"], "y": [1]}), empty])
    assert joined(rows).to_pydict() == {"x": ["a"], "y": [1]}


@pytest.mark.parametrize(
    ("block", "error", "match"),
    [
        ((np.zeros(2), np.zeros(2)), TypeError, "block 1: .* tuple.*map column names to arrays"),
        (np.zeros((2, 2, 2)), TypeError, r"block 1: .* ndarray\(2, 2, 2\).*map column names"),
        ({"x": [1]}, ValueError, r"block 1: the columns are \['x'\], and should be \['x', 'y'\]"),
        ({"x": [1], "y": ["a"]}, ValueError, "block 1: not of the types of the first rows"),
        ({"x": [1], "y": [0.5]}, ValueError, "block 1: not of the types of the first rows"),
        ({"x": [1], "y": np.array([1j])}, TypeError, "block 1, column 'y': no column of a table"),
        ({"x": [1], "y": np.ones((1, 2))}, TypeError, "block 1, column 'y': .*1-dimensional"),
        ({"x": [1], "y": [1, 2]}, ValueError, "expected length 1 but got length 2"),
    ],
)
def test_a_block_that_does_not_fit_is_named(block, error, match):
    with pytest.raises(error, match=match):
        list(tables_of(iter([{"x": [1], "y": [1]}, block])))


@pytest.mark.parametrize("source", [5, None, b"text", np.array(1.0)])
def test_what_is_no_source(source):
    with pytest.raises((TypeError, ValueError), match=r"a source is an iterable|a single number"):
        tables_of(source)


@pytest.mark.parametrize(
    "array",
    [
        pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
        pa.RunEndEncodedArray.from_arrays([1], [1]),
        pa.array([["a"]], pa.list_(pa.string_view())),
    ],
)
def test_types_that_cannot_be_written(array):
    with pytest.raises(TypeError, match="Parquet cannot hold the columns"):
        list(tables_of(pa.table({"x": [1], "y": array})))


def test_a_source_of_files_as_it_is(tmp_path):
    write(tmp_path / "a.parquet", {"x": [0.0, np.nan, 2.0], "y": ["a", "b", "c"]}, row_group_size=1)
    source = parquet_source(
        tmp_path, columns=["x"], missing="drop", shuffle_row_groups=True, seed=1
    )
    rows = tables_of(source)
    assert rows.n_rows == 2
    assert rows.files == [tmp_path / "a.parquet"]
    assert joined(rows).to_pydict() == {"x": [0.0, 2.0]}
    assert rows.identity == tables_of(source).identity
    assert rows.identity != tables_of(tmp_path).identity
    assert (
        rows.identity != tables_of(parquet_source(tmp_path / "a.parquet", columns=["x"])).identity
    )
