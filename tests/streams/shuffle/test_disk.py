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
import errno
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from scipy.stats import chi2

from pymc.streams.shuffle import disk
from pymc.streams.shuffle.disk import MANIFEST, pre_shuffle
from pymc.streams.shuffle.records import Records
from pymc.streams.sources import tables
from pymc.streams.sources.parquet import parquet_source
from pymc.streams.sources.tables import Contents, FileTables
from pymc.variational.streaming import StreamingDataset, StreamOrderWarning

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

N = 100


@pytest.fixture
def folder(tmp_path):
    """Three files of 75 rows, in row groups of 10, in a folder beside the ``tmp_path / "out"``."""
    for i in range(3):
        write(tmp_path / "in" / f"part-{i}.parquet", table_of(25 * i, 25 * (i + 1)))
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def table_of(start, stop):
    row = np.arange(start, stop)
    return pa.table({"row": row, "x": row / 2, "text": [f"text {i}" for i in row]})


def write(path, table, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=10, **kwargs)


def shuffled(source, destination, seed=1, **kwargs):
    return pre_shuffle(source, destination, seed=seed, progressbar=False, **kwargs)


def rows_in(destination, column="row"):
    return pq.read_table(destination)[column].to_pylist()


def state_of(folder):
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*")}


def bytes_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sorted_rows(table):
    return sorted(map(repr, table.to_pylist()))


# Keys, times and names of folders


def test_of_a_parquet_source_keys_and_times_are_kept_and_mean_the_same(tmp_path, out):
    day = np.datetime64("2026-01-01", "s")
    for i in range(3):
        row = np.arange(25 * i, 25 * (i + 1))
        columns = {"row": row.astype(f"int{16 << i % 2}"), "x": [[i, j] for j in row]}
        columns["x"] = pa.array(columns["x"], pa.list_(pa.float64(), 2))
        columns["key"] = pa.array([f"key {j % 7 + i}" for j in row]).dictionary_encode()
        columns["time"] = day + row
        columns["event"] = [{"a": 1}] * 25
        write(tmp_path / "in" / f"part={i}" / "a.parquet", pa.table(columns))
    source = parquet_source(
        tmp_path / "in",
        columns=["row", "key", "time", "part", "x"],
        filters=pa.compute.field("row") > 4,
        unknown="other",
        time_unit="min",
    )
    result = shuffled(source, out)
    assert result.columns == source.columns and result.units == source.units
    assert result.categories["key"].tolist() == source.categories["key"].tolist()
    rows, expected = (
        np.concatenate([np.stack(list(block.values()), axis=1) for block in each.unshuffled()])
        for each in (result, source)
    )
    assert len(rows) == 70 and not (rows == expected).all()
    np.testing.assert_array_equal(rows[np.argsort(rows[:, 0])], expected)
    table = pq.read_table(out)
    assert set(table["key"].to_pylist()) == {f"key {i}" for i in range(9)}
    assert table.schema.field("time").type == pa.timestamp("ms")
    assert shuffled(source, out).n_rows == 70  # it is there already


def test_of_a_path_names_of_folders_are_columns(tmp_path, out, monkeypatch):
    for month in (1, 2):
        for region in ("a", "b"):
            place = tmp_path / "in" / f"month={month}" / f"region={region}" / "part.parquet"
            write(place, table_of(25 * month, 25 * month + 10))
    for limit in (2**26, 1):  # a column at a time too
        monkeypatch.setattr(tables, "MAX_PAGES_BYTES", limit)
        result = shuffled(tmp_path / "in", out)
        assert result.columns == ("row", "x", "month")
        rows = pq.read_table(out).to_pylist()
        assert len(rows) == 40
        assert all(row["month"] == row["row"] // 25 for row in rows)
        assert sorted(row["region"] for row in rows) == ["a"] * 20 + ["b"] * 20
        shutil.rmtree(out)


# What is written


def all_types(n=200):
    third = [i if i % 3 else None for i in range(n)]
    texts = [None if i is None else f"text {i}" for i in third]
    days = pd.date_range("2024-01-01", periods=n)
    return pa.table(
        {
            "int8": pa.array([i and i % 100 for i in third], pa.int8()),
            "uint16": pa.array(range(n), pa.uint16()),
            "int32": pa.array(third, pa.int32()),
            "uint64": pa.array([2**64 - 1 - i for i in range(n)], pa.uint64()),
            "float32": pa.array(third, pa.float32()),
            "float64": pa.array([np.nan, -0.0, np.inf, None] * (n // 4)),
            "bool": pa.array([True, False] * (n // 2)),
            "text": pa.array(texts),
            "large text": pa.array(texts, pa.large_string()),
            "bytes": pa.array([text and text.encode() for text in texts]),
            "date": pa.array(days.date),
            "time": pa.array(third, pa.time64("us")),
            "timestamp": pa.array(third, pa.timestamp("ms")),
            "timestamp with zone": pa.array(third, pa.timestamp("ns", "Europe/Berlin")),
            "duration": pa.array(third, pa.duration("us")),
            "decimal": pa.array(third, pa.decimal128(9, 2)),
            "list": pa.array([[i, None] if i % 3 else None for i in range(n)]),
            "struct": pa.array([{"a": i, "b": [str(i)]} for i in range(n)]),
            "category": pa.array([text and text[:6] for text in texts]).dictionary_encode(),
            "nothing": pa.nulls(n),
        }
    )


@pytest.mark.parametrize("kind", ["files", "table"])
def test_any_schema_is_kept(tmp_path, out, kind):
    table = all_types()
    if kind == "files":
        for i in range(4):
            write(tmp_path / "in" / f"{i}.parquet", table.slice(50 * i, 50))
    source = shuffled(tmp_path / "in" if kind == "files" else table, out)
    written = pq.read_table(out)
    for field in table.schema:
        # But for the name of the values in a list, which Parquet gives.
        expected = pa.list_(pa.field("element", pa.int64())) if field.name == "list" else None
        assert written.schema.field(field.name).type == (expected or field.type), field.name
    assert written.schema.names == table.schema.names
    assert sorted_rows(written) == sorted_rows(table)
    assert written["uint16"].to_pylist() != table["uint16"].to_pylist()
    numbers = ("int8", "uint16", "int32", "uint64", "float32", "float64", "bool")
    assert source.columns == numbers


def test_a_data_frame_is_kept(out):
    frame = pd.DataFrame(
        {
            "number": range(100),
            "text": [f"text {i}" for i in range(100)],
            "day": pd.date_range("2024-01-01", periods=100, tz="UTC"),
            "integer": pd.array([1, None] * 50, dtype="Int32"),
            "category": pd.Categorical(["a", "b"] * 50),
        },
        index=range(1000, 1100),
    )
    shuffled(frame, out)
    written = pd.read_parquet(out)
    assert written["number"].tolist() != list(range(100))
    written = written.sort_values("number", ignore_index=True)
    pd.testing.assert_frame_equal(written, frame.reset_index(drop=True))


def test_the_rows_are_permuted_by_the_seed(folder, tmp_path):
    orders = []
    for name, seed in [("a", 1), ("b", 1), ("c", np.int64(1)), ("d", 2), ("e", None), ("f", None)]:
        shuffled(folder, tmp_path / name, seed=seed)
        orders.append(rows_in(tmp_path / name))
        assert sorted(orders[-1]) == list(range(75))
        assert abs(np.corrcoef(orders[-1], range(75))[0, 1]) < 0.5
    assert orders[0] == orders[1] == orders[2]
    assert len(set(map(tuple, orders))) == 4
    assert bytes_in(tmp_path / "a") == bytes_in(tmp_path / "b")


@pytest.mark.parametrize("seed", [np.random.default_rng(1), -1, True, np.True_, 1.0, "1"])
def test_bad_seeds(folder, out, seed):
    with pytest.raises(ValueError, match="seed must be an integer from 0 on, or None"):
        shuffled(folder, out, seed=seed)
    assert not out.exists()


def test_the_result_is_a_source_of_row_groups_in_random_order(folder, out, monkeypatch):
    monkeypatch.setattr(disk, "ROW_GROUP_ROWS", 10)
    monkeypatch.setattr(disk, "ROW_GROUPS_IN_FILE", 3)
    source = shuffled(folder, out)
    assert isinstance(source, parquet_source)
    assert (source.n_rows, source.columns) == (75, ("row", "x"))
    assert [file.name for file in source.files] == [f"part-{i:05d}.parquet" for i in range(3)]
    epochs = [list(source) for _ in range(2)]
    orders = [np.concatenate([block["row"] for block in epoch]).tolist() for epoch in epochs]
    assert sorted(len(block["row"]) for block in epochs[0]) == [5] + [10] * 7
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(75))
    assert len({tuple(orders[0]), tuple(orders[1]), tuple(rows_in(out))}) == 3
    again = shuffled(folder, out)
    assert np.concatenate([block["row"] for block in again]).tolist() == orders[0]


@pytest.mark.parametrize("n", [200, 20_000])
def test_columns_whose_values_repeat_have_a_dictionary(out, n):
    rng = np.random.default_rng(1)
    rows = {
        "few": rng.integers(50, size=n),
        "many": rng.permutation(n),
        "runs": np.arange(n) // 10,  # repeat side by side, but not in another order
        "float": rng.integers(50, size=n) / 2,
        "day": np.full(n, "2024-01-01", "datetime64[s]"),
        "time": np.datetime64("2024-01-01", "s") + np.arange(n),
        "text": np.full(n, "text"),
    }
    shuffled(rows, out)
    group = pq.read_metadata(out / "part-00000.parquet").row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    repeating = {column.path_in_schema for column in columns if column.has_dictionary_page}
    # Of the 20,000 rows, 8192 are looked at, which hold nearly all of the 2000 values of "runs".
    assert repeating == {"few", "runs", "day", "text"}


def test_progress_is_shown_if_asked_for(folder, out, tmp_path, capsys):
    pre_shuffle(folder, out, progressbar=False)
    assert capsys.readouterr().out == ""
    pre_shuffle(folder, tmp_path / "other")
    text = capsys.readouterr().out
    assert all(step in text for step in ["Scattering rows", "Shuffling buckets", "Checking rows"])


# Sources


def as_generator():
    yield from ({"row": np.arange(i, i + 10)} for i in range(0, N, 10))


def as_reused_blocks():
    block = {"row": np.zeros(10, dtype=int)}
    for i in range(0, N, 10):
        block["row"][:] = np.arange(i, i + 10)
        yield block


def as_memmap(tmp_path):
    array = np.memmap(tmp_path / "array", dtype="int32", mode="w+", shape=(N, 2))
    array[:] = np.arange(N)[:, None]
    return array


def as_files(tmp_path):
    for i in range(4):
        write(tmp_path / "in" / f"part-{i}.parquet", table_of(25 * i, 25 * (i + 1)))
    return tmp_path / "in"


SOURCES = {
    "folder": as_files,
    "text": lambda tmp_path: str(as_files(tmp_path)),
    "list": lambda tmp_path: sorted(as_files(tmp_path).iterdir()),
    "glob": lambda tmp_path: as_files(tmp_path) / "*.parquet",
    "parquet_source": lambda tmp_path: parquet_source(
        as_files(tmp_path), columns=["row"], shuffle_row_groups=True
    ),
    "mapping": lambda tmp_path: {"row": np.arange(N), "text": np.array(["a", "b"] * (N // 2))},
    "frame": lambda tmp_path: pd.DataFrame({"row": range(N)}),
    "table": lambda tmp_path: table_of(0, N),
    "reader": lambda tmp_path: table_of(0, N).to_reader(max_chunksize=10),
    "array": lambda tmp_path: np.arange(N).repeat(2).reshape(N, 2),
    "memmap": as_memmap,
    "callable": lambda tmp_path: as_generator,
    "generator": lambda tmp_path: as_generator(),
    "reused blocks": lambda tmp_path: as_reused_blocks,
    "list of frames": lambda tmp_path: [pd.DataFrame({"row": range(i, i + 50)}) for i in (0, 50)],
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources(tmp_path, out, name):
    source = shuffled(SOURCES[name](tmp_path), out)
    column = "1" if name in ("array", "memmap") else "row"
    assert column in source.columns
    assert source.n_rows == N
    assert rows_in(out, column) != list(range(N))
    assert sorted(rows_in(out, column)) == list(range(N))
    if column == "1":
        assert rows_in(out, "0") == rows_in(out, "1")


def test_a_source_that_drops_rows(tmp_path, out):
    write(tmp_path / "in" / "a.parquet", pa.table({"row": [0, 1, 2], "x": [0.0, np.nan, None]}))
    assert shuffled(parquet_source(tmp_path / "in", missing="drop"), out).n_rows == 1
    assert rows_in(out) == [0]


def test_one_file(folder, out):
    assert shuffled(folder / "part-1.parquet", out).n_rows == 25
    # Beside the file, and so in its folder.
    assert shuffled(folder / "part-1.parquet", folder / "out").n_rows == 25


def test_files_without_rows_among_others(folder, out):
    for name in ("part-", "part-1a", "part-9"):
        write(folder / f"{name}.parquet", table_of(0, 0).cast(table_of(0, 1).schema))
    assert shuffled(folder, out).n_rows == 75


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        ((np.zeros(3), np.zeros(3)), TypeError, "tuple.* Give blocks that map column names to"),
        (np.zeros((3, 2, 2)), TypeError, r"ndarray\(3, 2, 2\)\. Give blocks that map column names"),
        ({"text": np.array(["a"])}, TypeError, r"no column of numbers to stream: \['text'\]"),
        ({"x": np.zeros(0)}, ValueError, "the source has no rows"),
        ({}, ValueError, "block 0: no columns"),
        ([{"x": [1]}, {}], ValueError, "block 1: no columns"),
        ([np.zeros((5, 0))], ValueError, "block 0: no columns"),
        (pd.DataFrame(index=range(5)), ValueError, "DataFrame: no columns"),
        (pa.table({"x": [1]}).select([]), ValueError, "Arrow table: no columns"),
        ([], FileNotFoundError, "list of Parquet files is empty"),
        (iter([]), ValueError, "the source has no rows"),
        (5, TypeError, "a source is an iterable of blocks"),
        ("absent", FileNotFoundError, "no Parquet file or folder at .*absent"),
        ([{"x": [1]}, {"y": [1]}], ValueError, r"block 1: the columns are \['y'\]"),
    ],
)
def test_bad_sources(tmp_path, out, source, error, match):
    with pytest.raises(error, match=match):
        shuffled(source, out)
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_other_columns_is_named(folder, out):
    write(folder / "part-9.parquet", pa.table({"row": [1], "y": [1.0]}))
    with pytest.raises(ValueError, match=r"part-9\.parquet: the columns are \['row', 'y'\]"):
        shuffled(folder, out)


def test_a_type_that_cannot_be_written_is_an_error_before_anything_is(out, monkeypatch):
    monkeypatch.delattr(disk, "_scatter")
    interval = pa.array([(1, 2, 3)], pa.month_day_nano_interval())
    with pytest.raises(TypeError, match=r"Parquet cannot hold the columns.*interval"):
        shuffled(pa.table({"x": [1], "y": interval}), out)
    assert list(out.parent.iterdir()) == []


def test_a_destination_in_the_source_or_around_it(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    for destination, match in [
        (folder / "below" / "out", "lies in the source"),
        (folder, "lies in the source"),
        (tmp_path / "link" / "out", "lies in the source"),
        (tmp_path, r"holds .*part-0\.parquet"),
        (tmp_path / "in" / ".." / "in", "lies in the source"),
    ]:
        before = state_of(tmp_path)
        for source in (folder, parquet_source(folder, columns=["x"])):
            with pytest.raises(ValueError, match=match):
                shuffled(source, destination)
        assert state_of(tmp_path) == before


def test_a_source_in_the_folder_that_would_be_cleared_away(tmp_path):
    write(tmp_path / "out.partial" / "part-00000.parquet", table_of(0, 10))
    with pytest.raises(ValueError, match=r"out\.partial holds .*part-00000\.parquet"):
        shuffled(tmp_path / "out.partial", tmp_path / "out")
    assert rows_in(tmp_path / "out.partial") == list(range(10))


@pytest.mark.parametrize(
    ("limit", "n_bytes"),
    [
        ("256MB", 256_000_000),
        ("1 GiB", 2**30),
        (" 1.5gb ", 1_500_000_000),
        ("17000 kB", 17_000_000),
        (50_000_000, 50_000_000),
        (np.int64(50_000_000), 50_000_000),
        ("50000000", 50_000_000),
        (16_000_000, 16_000_000),
    ],
)
def test_memory_limit(limit, n_bytes):
    assert disk.bytes_of(limit, "memory_limit") == n_bytes


@pytest.mark.parametrize(
    ("limit", "match"),
    [
        ("10", "must be at least 16 MB, got '10'"),
        ("15.9MB", "must be at least 16 MB, got '15.9MB'"),
        (15_999_999, "must be at least 16 MB, got 15999999"),
        ("abc", "must be bytes or, say, \"256MB\"; got 'abc'"),
        ("1TBx", "must be bytes"),
        ("-1GB", "must be bytes"),
        ("", "must be bytes"),
        (True, "must be bytes"),
        (None, "must be bytes"),
        (float("inf"), "must be bytes"),
    ],
)
def test_bad_memory_limits(folder, out, limit, match):
    with pytest.raises(ValueError, match=f"memory_limit {match}"):
        shuffled(folder, out, memory_limit=limit)
    assert not out.exists()


@pytest.mark.parametrize("source", ["folder", "mapping"])
def test_without_pyarrow_the_error_names_the_install(tmp_path, out, monkeypatch, source):
    source = SOURCES[source](tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pre_shuffle needs pyarrow.*pip install pyarrow"):
        shuffled(source, out)


# Uniformity


def wide_rows(n):
    """Give rows of a kilobyte, next to which what a bucket adds is little."""
    return {"row": np.arange(n), "pad": np.full(n, "x" * 1000)}


def make_small(monkeypatch, part_rows, max_buckets):
    """Make buckets of a few such rows."""

    def few_bytes(memory_limit, name, at_least):
        return disk.PARTS_IN_LIMIT * 1000 * part_rows

    monkeypatch.setattr(disk, "bytes_of", few_bytes)
    monkeypatch.setattr(disk, "MAX_BUCKETS", max_buckets)


def spy_on_buckets(monkeypatch):
    """List the number of buckets of each scattering, and how deep it is in others."""
    scatter, calls = disk._scatter, []

    def spy(parts, folder, n_buckets, rng):
        depth = len(folder.parts) - [*folder.parts, "buckets"].index("buckets") - 1
        calls.append((depth, n_buckets))
        return scatter(parts, folder, n_buckets, rng)

    monkeypatch.setattr(disk, "_scatter", spy)
    return calls


@pytest.mark.parametrize(
    ("part_rows", "max_depth"), [(8, 0), (3, 3)], ids=["buckets", "buckets of buckets"]
)
def test_each_order_has_the_same_probability(tmp_path, monkeypatch, part_rows, max_depth):
    """The positions of rows, and the distances of rows that were neighbours, are uniform."""
    n, n_seeds = 16, 200
    make_small(monkeypatch, part_rows, max_buckets=2)
    calls = spy_on_buckets(monkeypatch)
    positions = np.zeros((n_seeds, n), dtype=int)
    for seed in range(n_seeds):
        shuffled(wide_rows(n), tmp_path / str(seed), seed=seed)
        positions[seed] = np.argsort(rows_in(tmp_path / str(seed)))
        shutil.rmtree(tmp_path / str(seed))
    assert max(depth for depth, _ in calls) == max_depth
    assert {n_buckets for _, n_buckets in calls} == {2}

    counts = np.stack([np.bincount(column, minlength=n) for column in positions.T])
    expected = n_seeds / n
    # Smaller than for independent draws, as no two rows have the same position.
    statistic = ((counts - expected) ** 2 / expected).sum() * (n - 1) / n
    assert chi2.sf(statistic, (n - 1) ** 2) > 1e-4

    for distance in (1, n // 2):
        pairs = np.arange(n).reshape(-1, 2 * distance)
        first, second = pairs[:, :distance].ravel(), pairs[:, distance:].ravel()
        lags = (positions[:, second] - positions[:, first]) % n
        counts = np.bincount(lags.ravel(), minlength=n)[1:]
        expected = lags.size / (n - 1)
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert chi2.sf(statistic, n - 2) > 1e-4


def test_many_rows_in_buckets_of_buckets(out, monkeypatch):
    make_small(monkeypatch, part_rows=4, max_buckets=3)
    calls = spy_on_buckets(monkeypatch)
    shuffled(iter([wide_rows(500)]), out)
    assert {depth for depth, _ in calls} == {0, 1, 2, 3}
    order = np.array(rows_in(out))
    assert sorted(order) == list(range(500))
    assert abs(np.corrcoef(order, np.arange(500))[0, 1]) < 0.2
    assert {item.name.split("-")[0] for item in out.iterdir()} == {MANIFEST, "part"}
    sizes = [
        pq.read_metadata(file).row_group(i).num_rows
        for file in sorted(out.glob("*.parquet"))
        for i in range(pq.read_metadata(file).num_row_groups)
    ]
    assert set(sizes[:-1]) == {4}  # as many as fit into a part
    assert sum(sizes) == 500


def test_buckets_fit_into_a_cache(out, monkeypatch):
    calls = spy_on_buckets(monkeypatch)
    monkeypatch.setattr(disk, "PIECE_ROWS", 1000)
    shuffled({"row": np.arange(10_000)}, out, memory_limit="1GB")
    assert calls == [(0, 12)]  # 1 + int(1.1 * 10,000 / 1000)


# Threads


def make_slow(monkeypatch, place, name, seconds):
    """Let a function, or each step of what it gives, take a random while longer."""
    work = getattr(place, name)
    rng = np.random.default_rng()

    def slow_steps(items):
        for item in items:
            time.sleep(seconds * rng.random())
            yield item

    def slow(*args, **kwargs):
        time.sleep(seconds * rng.random())
        result = work(*args, **kwargs)
        return slow_steps(result) if hasattr(result, "__next__") else result

    monkeypatch.setattr(place, name, slow)


def make_many_tables(monkeypatch):
    """Make parts, buckets, row groups and files of a few rows."""
    monkeypatch.setattr(disk, "PIECE_ROWS", 20)
    monkeypatch.setattr(disk, "ROW_GROUP_ROWS", 5)
    monkeypatch.setattr(disk, "ROW_GROUPS_IN_FILE", 3)


STEPS = {
    "read": (FileTables, "__iter__"),  # the source, and what was written
    "join": (disk, "_parts"),
    "shuffle": (disk, "_shuffled"),
    "write": (pq.ParquetWriter, "write_table"),
    "count": (Contents, "add"),
}


@pytest.mark.parametrize("step", STEPS)
def test_the_result_does_not_depend_on_which_thread_is_slow(folder, tmp_path, monkeypatch, step):
    make_many_tables(monkeypatch)
    shuffled(folder, tmp_path / "expected")
    expected = bytes_in(tmp_path / "expected")
    assert len(expected) == 5 + 1  # files, and the manifest
    make_slow(monkeypatch, *STEPS[step], seconds=0.01)
    for i in range(3):
        shuffled(folder, tmp_path / str(i))
        assert bytes_in(tmp_path / str(i)) == expected


def peak_of_shuffling(source, destination, limit):
    """Return the most bytes that Arrow held meanwhile."""
    default = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(default)
    pa.set_memory_pool(counting)
    try:
        shuffled(source, destination, memory_limit=limit)
    finally:
        pa.set_memory_pool(default)
    return counting.max_memory()


@pytest.mark.parametrize("step", ["write", "count"])
def test_memory_is_bounded_whichever_thread_is_slow(tmp_path, out, monkeypatch, step):
    n, limit = 1_500_000, 32_000_000
    rng = np.random.default_rng(1)
    rows = pa.table({"row": np.arange(n), **{name: rng.normal(size=n) for name in "abcd"}})
    assert rows.nbytes > 1.8 * limit
    pq.write_table(rows, tmp_path / "in.parquet", row_group_size=50_000)
    del rows
    make_slow(monkeypatch, *STEPS[step], seconds=0.05)
    assert peak_of_shuffling(tmp_path / "in.parquet", out, limit) < limit


def test_memory_is_bounded_however_many_columns(tmp_path, out, monkeypatch):
    """Even where a row group of a file is one page for each column."""
    monkeypatch.setattr(tables, "MAX_PAGES_BYTES", 2**22)
    n_columns, n, limit = 300, 16_000, 16_000_000
    values = np.random.default_rng(1).normal(size=(n_columns, n))
    assert values.nbytes > 2.3 * limit
    rows = pa.table({f"x{i}": x for i, x in enumerate(values)})
    pq.write_table(rows, tmp_path / "in.parquet", use_dictionary=False)
    del rows
    assert peak_of_shuffling(tmp_path / "in.parquet", out, limit) < 1.2 * limit


def test_wide_rows_are_few_in_a_row_group_and_in_a_file(out, monkeypatch):
    monkeypatch.setattr(disk, "COLUMNS_IN_FILE", 60)
    monkeypatch.setattr(disk, "ROW_GROUP_ROWS", 10)
    shuffled({f"x{i}": np.arange(100) for i in range(20)}, out)
    n_groups = [pq.read_metadata(file).num_row_groups for file in sorted(out.glob("*.parquet"))]
    assert n_groups == [3, 3, 3, 1]


# A destination that exists


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("reader", "generator")])
def test_a_second_call_writes_nothing(tmp_path, out, name):
    source = SOURCES[name](tmp_path)
    first = shuffled(source, out)
    before = state_of(tmp_path)
    second = shuffled(source, out)
    assert state_of(tmp_path) == before
    assert (second.n_rows, second.columns) == (first.n_rows, first.columns)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_equal(a, b)


def rename(folder, out):
    (folder / "part-1.parquet").rename(folder / "part-9.parquet")


def touch(folder, out):
    os.utime(folder / "part-1.parquet", ns=(1, 1))


def append(folder, out):
    write(folder / "part-3.parquet", table_of(75, 80))


def remove_result(folder, out):
    (out / "part-00000.parquet").unlink()


def truncate_result(folder, out):
    os.truncate(out / "part-00000.parquet", 100)


def add_to_result(folder, out):
    write(out / "below" / "part-00001.parquet", table_of(0, 10))


def remove_manifest(folder, out):
    (out / MANIFEST).unlink()


def truncate_manifest(folder, out):
    os.truncate(out / MANIFEST, 100)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (rename, "shuffle of another source, or the files of this one changed since"),
        (touch, "shuffle of another source, or the files of this one changed since"),
        (append, "shuffle of another source, or the files of this one changed since"),
        (remove_result, r"part-00000\.parquet changed since"),
        (truncate_result, r"part-00000\.parquet changed since"),
        (add_to_result, r"below.part-00001\.parquet changed since"),
        (remove_manifest, "pre_shuffle did not write it"),
        (truncate_manifest, "pre_shuffle did not write it"),
    ],
)
def test_a_result_or_source_that_changed(folder, tmp_path, out, change, match):
    shuffled(folder, out)
    change(folder, out)
    before = state_of(tmp_path)
    with pytest.raises(FileExistsError, match=rf"out.*{match}.* Choose another destination"):
        shuffled(folder, out)
    assert state_of(tmp_path) == before


def test_a_result_for_another_seed_or_source(folder, tmp_path, out):
    shuffled(folder, out)
    write(tmp_path / "other" / "part-0.parquet", table_of(0, 75))
    before = state_of(tmp_path)
    for source, seed, match in [
        (folder, 2, "was shuffled with the seed 1, not 2"),
        (folder, None, "was shuffled with the seed 1, not None"),
        (tmp_path / "other", 1, "shuffle of another source"),
        (parquet_source(folder, columns=["x"]), 1, "shuffle of another source"),
        (parquet_source(folder, columns=["x"], missing="drop"), 1, "shuffle of another source"),
        (table_of(0, 75), 1, "shuffle of another source"),
    ]:
        with pytest.raises(FileExistsError, match=rf"out .*{match}"):
            shuffled(source, out, seed=seed)
    assert state_of(tmp_path) == before


def test_a_result_for_other_rows(tmp_path, out):
    rows = {"row": np.arange(N), "x": np.arange(N) / 2}
    shuffled(rows, out)
    before = state_of(tmp_path)
    assert shuffled({name: values.copy() for name, values in rows.items()}, out).n_rows == N
    assert shuffled(pd.DataFrame(rows), out).n_rows == N
    changed = rows["x"].copy()
    changed[50] += 1
    for other, match in [
        (rows | {"x": changed}, "columns: .*, now"),
        (rows | {"x": np.roll(rows["x"], 1)}, "rows: .*, now"),
        ({name: values[1:] for name, values in rows.items()}, "n_rows: 100, now 99"),
        ({"row": rows["row"]}, "columns: "),
    ]:
        with pytest.raises(FileExistsError, match=rf"out is a shuffle of other rows \({match}"):
            shuffled(other, out)
    assert state_of(tmp_path) == before


@pytest.mark.parametrize(
    "manifest", [None, "", "[]", "{}", '{"files": []}', '{"files": {"a": []}}', '{"files": {}}']
)
def test_a_folder_of_something_else(folder, tmp_path, out, manifest):
    out.mkdir()
    if manifest is not None:
        (out / MANIFEST).write_text(manifest)
    before = state_of(tmp_path)
    with pytest.raises(FileExistsError, match=r"out .*Choose another destination"):
        shuffled(folder, out)
    assert state_of(tmp_path) == before


def test_a_file_or_a_broken_link_at_the_destination(folder, tmp_path, out):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    for name in ("file", "link"):
        with pytest.raises(FileExistsError, match=rf"{name} exists, and pre_shuffle did not write"):
            shuffled(folder, tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"


def test_what_a_run_that_was_killed_left_is_cleared_away(folder, tmp_path, out):
    partial = tmp_path / "out.partial"
    (partial / "buckets" / "003").mkdir(parents=True)
    (partial / "buckets" / "003" / "000.arrow").write_text("half")
    (partial / "part-00000.parquet").write_text("half")
    (partial / "part-00001.parquet").write_text("half")
    (partial / MANIFEST).write_text("half")
    shuffled(folder, out)
    assert sorted(rows_in(out)) == list(range(75))
    assert {item.name for item in out.iterdir()} == {"part-00000.parquet", MANIFEST}
    assert not partial.exists()


def test_a_partial_folder_of_something_else_is_left_alone(folder, tmp_path, out):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "part-00000.parquet").write_text("mine")
    (tmp_path / "out.partial" / "download").write_text("mine")
    before = state_of(tmp_path)
    with pytest.raises(FileExistsError, match=r"download: pre_shuffle did not write it\. Remove"):
        shuffled(folder, out)
    assert state_of(tmp_path) == before


# What goes wrong


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_an_error_in_the_source_leaves_nothing(tmp_path, out, error, after):
    def source():
        for i in range(after):
            yield {"row": np.arange(10) + i}
        raise error("in the source")

    with pytest.raises(error, match="in the source"):
        shuffled(source, out)
    assert list(tmp_path.iterdir()) == []
    shuffled(as_generator(), out)
    assert sorted(rows_in(out)) == list(range(N))


@pytest.mark.parametrize("step", ["_shuffled", "_row_groups", "FileTables"])
def test_an_error_in_a_later_pass_leaves_nothing(folder, tmp_path, out, monkeypatch, step):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(disk, step, fail)
    with pytest.raises(KeyboardInterrupt):
        shuffled(folder, out)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt("stop")])
@pytest.mark.parametrize(
    ("place", "name", "rows_before"),
    [
        (tables, "_cast", 20),  # in the thread that reads the source
        (pq.ParquetWriter, "write_table", 20),  # in the second file, with the first one complete
        (tables, "_cast", 75 + 20),  # in the thread that reads the second file again
    ],
)
def test_an_error_in_a_thread_ends_all_and_leaves_nothing(
    folder, tmp_path, out, monkeypatch, error, place, name, rows_before
):
    work, n_rows = getattr(place, name), 0

    def failing(*args, **kwargs):
        nonlocal n_rows
        n_rows += next(arg for arg in args if isinstance(arg, pa.Table)).num_rows
        if n_rows > rows_before:
            raise error
        return work(*args, **kwargs)

    make_many_tables(monkeypatch)
    monkeypatch.setattr(place, name, failing)
    before = threading.active_count()
    with pytest.raises(type(error), match=str(error)):
        shuffled(folder, out)
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == [folder]


def test_two_calls_at_once(folder, tmp_path, out):
    pytest.importorskip("fcntl")

    def source():
        yield {"row": np.arange(10)}
        with pytest.raises(RuntimeError, match=r"another pre_shuffle is writing to .*out\.partial"):
            shuffled(folder, out)
        shuffled(folder, tmp_path / "other")
        yield {"row": np.arange(10, 20)}

    shuffled(source(), out)
    assert sorted(rows_in(out)) == list(range(20))
    assert sorted(rows_in(tmp_path / "other")) == list(range(75))


@pytest.mark.parametrize("made_again", [False, True])
def test_a_folder_that_goes_before_it_is_locked(folder, tmp_path, out, monkeypatch, made_again):
    """As another call renames or removes it when it is done."""
    fcntl = pytest.importorskip("fcntl")
    flock, partial = fcntl.flock, tmp_path / "out.partial"
    held = []

    def late(*args):
        if not held:
            held.append(partial.rename(tmp_path / "other"))
            if made_again:
                partial.mkdir()
        flock(*args)

    monkeypatch.setattr(fcntl, "flock", late)
    shuffled(folder, out)
    assert sorted(rows_in(out)) == list(range(75))
    assert list(held[0].iterdir()) == []


def test_a_file_system_that_cannot_lock(folder, tmp_path, out, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*args):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    shuffled(folder, out)
    assert sorted(rows_in(out)) == list(range(75))


@pytest.mark.parametrize("name", ["folder", "parquet_source", "mapping", "frame", "table", "array"])
def test_a_disk_without_room(tmp_path, out, monkeypatch, name):
    source = SOURCES[name](tmp_path)
    before = state_of(tmp_path)

    def little(path):
        return SimpleNamespace(free=1_000_000)

    monkeypatch.setattr(shutil, "disk_usage", little)
    with pytest.raises(OSError, match=r"needs 0\.0 GB beside .*where 0\.0 GB are free") as error:
        shuffled(source, out)
    assert error.value.errno == errno.ENOSPC
    assert state_of(tmp_path) == before


@pytest.mark.parametrize("kind", ["files", "parquet_source"])
@pytest.mark.parametrize("changed", [0, 2])
def test_a_file_that_changes_while_it_is_read(folder, tmp_path, out, monkeypatch, kind, changed):
    def touch(*args):
        os.utime(folder / f"part-{changed}.parquet", ns=(1, 1))

    # Called once the first rows were read.
    monkeypatch.setattr(disk, "_check_disk", touch)
    source = folder if kind == "files" else parquet_source(folder, columns=["row"])
    with pytest.raises(RuntimeError, match=rf"part-{changed}\.parquet: changed"):
        shuffled(source, out)
    assert list(tmp_path.iterdir()) == [folder]


def drop_a_row(table):
    return table.slice(1)


def double_a_row(table):
    return pa.concat_tables([table, table.slice(0, 1)])


def replace_a_row(table):
    return pa.concat_tables([table.slice(1), table.slice(1, 1)])


def change_a_value(table):
    x = table["x"].to_numpy().copy()
    x[7] = np.nextafter(x[7], 100)
    return table.set_column(1, "x", [x])


def roll_a_column(table):
    return table.set_column(1, "x", [np.roll(table["x"].to_numpy(), 1)])


def forget_a_null(table):
    return table.set_column(2, "text", table["text"].fill_null(""))


@pytest.mark.parametrize(
    "damage",
    [drop_a_row, double_a_row, replace_a_row, change_a_value, roll_a_column, forget_a_null],
)
@pytest.mark.parametrize("step", ["pack", "unpack"])
def test_rows_that_are_lost_or_altered_are_noticed(tmp_path, out, monkeypatch, damage, step):
    work = getattr(Records, step)

    def damaged(records, table):
        return work(records, damage(table)) if step == "pack" else damage(work(records, table))

    monkeypatch.setattr(Records, step, damaged)
    table = table_of(0, N)
    table = table.set_column(2, "text", [[None, *table["text"].to_pylist()[1:]]])
    with pytest.raises(RuntimeError, match="rows that were written are not those of the source"):
        shuffled(table, out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n_before", [0, 2, 4])
def test_a_file_that_is_altered_once_it_is_written_is_noticed(
    folder, tmp_path, out, monkeypatch, n_before
):
    """It is what is on disk that is compared with the source."""
    make_many_tables(monkeypatch)
    write_files = disk._write_files

    def damaged(*args):
        for i, (file, n_rows) in enumerate(write_files(*args)):
            if i == n_before:
                table = pq.read_table(file)
                pq.write_table(change_a_value(table), file)
            yield file, n_rows

    monkeypatch.setattr(disk, "_write_files", damaged)
    with pytest.raises(RuntimeError, match="rows that were written are not those of the source"):
        shuffled(folder, out)
    assert list(tmp_path.iterdir()) == [folder]


def count_row_groups(monkeypatch):
    """Write 100 files of one row group each, and list those that were written."""
    monkeypatch.setattr(disk, "ROW_GROUP_ROWS", 1)
    monkeypatch.setattr(disk, "ROW_GROUPS_IN_FILE", 1)
    write_table, written = pq.ParquetWriter.write_table, []

    def counting(self, table, **kwargs):
        if table.num_rows:  # a schema is written as well
            written.append(table.num_rows)
        time.sleep(0.002)
        write_table(self, table, **kwargs)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", counting)
    return written


def test_an_error_of_the_check_ends_the_writing(tmp_path, out, monkeypatch):
    written = count_row_groups(monkeypatch)

    def fail(self, table):
        if table.num_rows == 1:  # what was written, and not the source
            raise OSError("cannot be read")
        add(self, table)

    add = Contents.add
    monkeypatch.setattr(Contents, "add", fail)
    with pytest.raises(OSError, match="cannot be read"):
        shuffled(table_of(0, N), out)
    assert len(written) < N / 2
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_fewer_rows_ends_the_writing(tmp_path, out, monkeypatch):
    written = count_row_groups(monkeypatch)
    write_files = disk._write_files

    def damaged(*args):
        for file, n_rows in write_files(*args):
            pq.write_table(pq.read_table(file).slice(1), file)
            yield file, n_rows

    monkeypatch.setattr(disk, "_write_files", damaged)
    with pytest.raises(RuntimeError, match=r"0 rows in part-00000\.parquet instead of 1"):
        shuffled(table_of(0, N), out)
    assert len(written) < N / 2


def test_rows_beyond_those_of_the_source_are_not_written(out, monkeypatch):
    written = count_row_groups(monkeypatch)
    shuffled_rows = disk._shuffled

    def endless(*args):
        for table in shuffled_rows(*args):
            yield from [table] * 10

    monkeypatch.setattr(disk, "_shuffled", endless)
    with pytest.raises(RuntimeError, match="101 rows or more instead of 100"):
        shuffled(table_of(0, N), out)
    assert len(written) == N + 1


def test_the_manifest_records_what_was_done(folder, out):
    shuffled(folder, out, seed=3)
    manifest = json.loads((out / MANIFEST).read_text())
    assert manifest["seed"] == 3
    assert manifest["n_rows"] == 75
    assert list(manifest["columns"]) == ["row", "x", "text"]
    names = [name for name, _, _ in manifest["source"]["files"]]
    assert names == [f"part-{i}.parquet" for i in range(3)]
    assert manifest["files"] == {file.name: file.stat().st_size for file in out.glob("*.parquet")}


# A run that is killed


def start(context, source, destination):
    kwargs = {"seed": 1, "memory_limit": "16MB", "progressbar": False}
    process = context.Process(target=pre_shuffle, args=(source, destination), kwargs=kwargs)
    process.start()
    while not Path(f"{destination}.partial").exists() and process.is_alive():
        time.sleep(0.001)
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_run_that_is_killed_at_any_moment(tmp_path, out):
    rng = np.random.default_rng(1)
    n = 150_000
    source = tmp_path / "in.parquet"
    table = pa.table({"row": np.arange(n), "a": rng.normal(size=n), "b": rng.normal(size=n)})
    pq.write_table(table, source, row_group_size=10_000)
    # Forked from a process that has imported everything, and has no threads yet.
    context = multiprocessing.get_context("forkserver")
    modules = ["pytest", "pyarrow.parquet", "pymc.streams.shuffle.disk"]
    context.set_forkserver_preload(modules)

    durations, left = [], []
    for _ in range(2):
        process = start(context, source, out)
        started = time.perf_counter()
        process.join()
        durations.append(time.perf_counter() - started)
        assert process.exitcode == 0
        expected = bytes_in(out)
        assert sorted(rows_in(out)) == list(range(n))
        shutil.rmtree(out)
    for moment in (np.arange(20) + rng.random(20)) / 20:
        process = start(context, source, out)
        time.sleep(moment * min(durations))
        process.kill()
        process.join()
        left += [item.name for item in out.parent.iterdir() if item != source]
        if out.exists():
            assert bytes_in(out) == expected
        started = time.perf_counter()
        assert shuffled(source, out, memory_limit="16MB").n_rows == n
        durations.append(time.perf_counter() - started)
        assert bytes_in(out) == expected
        assert sorted(out.parent.iterdir()) == [source, out]
        shutil.rmtree(out)
    assert "out.partial" in left  # else this has tested nothing


@pytest.mark.usefixtures("fail_on_warning")
def test_the_order_of_what_is_written_raises_no_alarm(tmp_path, out):
    rng = np.random.default_rng(1)
    for i, row in enumerate(np.split(np.arange(100_000), 4)):
        columns = {"time": row, "x": rng.normal(size=len(row)) + row / 50_000, "up": row % 100 == 0}
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / "in" / f"{i}.parquet", row_group_size=1000)
    with pytest.warns(StreamOrderWarning, match="'time'"):
        StreamingDataset(parquet_source(tmp_path / "in"), batch_size=500)
    result = shuffled(tmp_path / "in", out)
    for source, n_batches in ((result, 600), (parquet_source(out, columns=["x", "up"]), 300)):
        ds = StreamingDataset(source, batch_size=500)
        for _ in range(n_batches):
            ds.advance()
