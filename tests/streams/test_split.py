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
import sys

import numpy as np
import pandas as pd
import pytest

from pymc.streams.blocks import Blocks
from pymc.streams.split import keys_of, keys_of_arrow
from pymc.variational.streaming import (
    StreamingDataset,
    column_summary,
    parquet_source,
    pre_shuffle,
    shuffle_buffer,
    split_rows,
    standardize,
)

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

N = 200_000
# What is in the first half of 30 rows, and of these keys, wherever this runs.
POSITIONS = [0, 3, 5, 7, 10, 12, 15, 16, 17, 18, 20, 21, 24, 26, 29]
KEYS = ["AA", "DL", "UA", "9E", "YV"]
# With this one the first half of the keys 0 to 3 has two.
SEED_OF_TWO = 1
CARRIERS = np.array(["AA", "B6", "DL", "EV", "UA", "WN", "9E", "HA", "OO", "YV"])


def rows(n_rows=N, seed=1):
    """Rows that are numbered, in the order of time, with keys."""
    rng = np.random.default_rng(seed)
    return {
        "row": np.arange(n_rows),
        "key": np.sort(rng.integers(0, n_rows // 20, n_rows)),
        "carrier": rng.choice(CARRIERS, n_rows),
        "x": np.linspace(-1, 1, n_rows),
    }


def write(folder, table, n_files=3, row_group_size=7000, names=None):
    folder.mkdir(exist_ok=True)
    for i, part in enumerate(np.array_split(np.arange(len(table["row"])), n_files)):
        columns = {name: table[name][part] for name in names or table}
        pq.write_table(pa.table(columns), folder / f"{i}.parquet", row_group_size=row_group_size)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("split") / "rows", rows())


def column(source, name="row"):
    return np.concatenate([block[name] for block in source])


def in_memory(_):
    return {name: values for name, values in rows().items() if name != "carrier"}


def of_files(folder):
    return parquet_source(folder, columns=["row", "key", "x"])


def of_large_row_groups(folder):
    """Row groups that are read a slice at a time, in random order."""
    large = folder.parent / "large"
    if not large.exists():
        write(large, rows(), row_group_size=40_000)
    return parquet_source(large, columns=["row", "key", "x"], shuffle_row_groups=True, seed=1)


SOURCES = [in_memory, of_files, of_large_row_groups]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("fraction", "by"), [(0.8, None), (0.01, None), (0.5, "key")])
def test_each_row_is_in_one_of_the_parts(folder, source, fraction, by):
    parts = split_rows(source(folder), fraction, by=by)
    found = [column(part) for part in parts]
    assert [part.n_rows for part in parts] == list(map(len, found))
    assert sorted(np.concatenate(found).tolist()) == list(range(N))
    # Of rows in time order, or of keys, the share is right, and so is what they are like: 4.5 sds.
    n = N if by is None else N // 20
    assert abs(len(found[0]) / N - fraction) < 4.5 * np.sqrt(fraction * (1 - fraction) * 2 / n)
    means = [part.mean() / N - 0.5 for part in found]
    for mean, rows_ in zip(means, found):
        assert abs(mean) < 4.5 * np.sqrt((1 / 12) / (len(rows_) * n / N) * 1.1)


@pytest.mark.parametrize("source", SOURCES)
def test_the_rows_are_the_same_for_any_source_of_them(folder, source):
    """In memory or in files, whatever their sizes, in whatever order: by position, and by key."""
    for by in (None, "key"):
        first, _ = split_rows(source(folder), 0.3, by=by)
        expected, _ = split_rows(in_memory(folder), 0.3, by=by)
        np.testing.assert_array_equal(np.sort(column(first)), column(expected))


def test_the_rows_are_the_same_in_every_process_on_every_platform():
    first, _ = split_rows(rows(30), 0.5)
    assert column(first).tolist() == POSITIONS
    table = {"row": np.arange(10), "carrier": CARRIERS}
    first, _ = split_rows(table, 0.5, by="carrier")
    assert CARRIERS[column(first)].tolist() == KEYS


@pytest.mark.parametrize("by", [None, "key"])
def test_seeds_are_independent(by):
    table = in_memory(None)
    one, two = (
        np.isin(np.arange(N), column(split_rows(table, 0.5, by=by, seed=s)[0])) for s in (0, 1)
    )
    n = N if by is None else N // 20
    assert abs(np.mean(one & two) - 0.25) < 4.5 * np.sqrt(0.25 * 0.75 * 2 / n)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("by", [None, "key"])
def test_a_part_is_split_again_by_its_share(folder, source, by):
    """With the same seed: what is hashed is not the same again."""
    train, test = split_rows(source(folder), 0.5, by=by)
    train, validation = split_rows(train, 0.5, by=by)
    n = N if by is None else N // 20
    assert abs(train.n_rows / N - 0.25) < 4.5 * np.sqrt(0.25 * 0.75 * 2 / n)
    found = np.concatenate([column(part) for part in (train, test, validation)])
    assert sorted(found.tolist()) == list(range(N))
    again, _ = split_rows(split_rows(source(folder), 0.5, by=by)[0], 0.5, by=by)
    assert again.n_rows == train.n_rows


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("by", [None, "key"])
def test_epochs_open_at_any_row(folder, source, by):
    part, _ = split_rows(source(folder), 0.8, by=by)
    assert part.seekable
    whole = np.concatenate([block["row"] for block in part.read(2)])
    in_order = np.concatenate([block["row"] for block in part.unshuffled()])
    assert (np.diff(in_order) > 0).all()
    for start in (0, 1, 20_000, 70_001, len(whole) - 1):
        np.testing.assert_array_equal(
            np.concatenate([block["row"] for block in part.read(2, start)]), whole[start:]
        )
        np.testing.assert_array_equal(
            np.concatenate([block["row"] for block in part.unshuffled(start)]), in_order[start:]
        )
    assert not list(part.read(2, len(whole)))


@pytest.mark.parametrize("source", SOURCES)
def test_a_stream_goes_on_where_it_was_and_only_on_the_same_part(folder, source):
    def stream(part, seed=0):
        rows_ = split_rows(source(folder), 0.8, seed=seed)[part]
        shuffled = shuffle_buffer(rows_, buffer_size=10_000, batch_size=100, seed=1)
        return StreamingDataset(shuffled, batch_size=100, check_order="ignore")

    one = stream(0)
    for _ in range(700):
        one.advance()
    state = one.state_dict()
    two = stream(0)
    two.load_state_dict(state)
    np.testing.assert_array_equal(next(one), next(two))
    for other in (stream(1), stream(0, seed=1)):
        with pytest.raises(ValueError, match="position of another stream"):
            other.load_state_dict(state)


def test_other_parts_are_not_the_same_rows(folder):
    for source in (in_memory, of_files):
        train, test = map(Blocks, split_rows(source(folder), 0.5))
        again, _ = map(Blocks, split_rows(source(folder), 0.5))
        assert train.same_rows(again)
        assert not train.same_rows(test)
        assert not train.same_rows(Blocks(source(folder)))
    # Also where they have as many rows: two of four keys.
    table = {"row": np.arange(40), "key": np.arange(40) // 10}
    two, others = map(Blocks, split_rows(table, 0.5, by="key", seed=SEED_OF_TWO))
    assert two.n_rows == others.n_rows == 20
    assert not two.same_rows(others)
    # Of functions it is not known.
    train, again = (Blocks(split_rows(lambda: [rows()], 0.5, by="key")[0]) for _ in range(2))
    assert not train.same_rows(again)


def test_a_key_that_is_not_streamed_and_of_another_type_in_another_file(tmp_path):
    """Strings, dictionaries; integers, floats: by what they are."""
    table, folder = rows(30_000), tmp_path / "rows"
    folder.mkdir()
    for i, part in enumerate(np.array_split(np.arange(30_000), 2)):
        carrier = pa.array(table["carrier"][part])
        key = pa.array(table["key"][part] % 50, [pa.int32(), pa.float64()][i])
        columns = {
            "row": part,
            "carrier": carrier if i else carrier.dictionary_encode(),
            "key": key,
        }
        pq.write_table(pa.table(columns), folder / f"{i}.parquet")
    for by, values in (("carrier", table["carrier"]), ("key", table["key"] % 50)):
        parts = split_rows(parquet_source(folder, columns=["row"]), 0.5, by=by)
        sides = [set(values[column(part)].tolist()) for part in parts]
        assert sides[0] & sides[1] == set()
        assert sides[0] | sides[1] == set(values.tolist())


def test_all_rows_of_a_key_also_where_blocks_come_from_a_function():
    def blocks():
        table = rows(5000)
        for i in range(0, 5000, 100):
            yield {name: table[name][i : i + 100] for name in ("row", "key")}

    parts = split_rows(blocks, 0.5, by="key")
    keys = rows(5000)["key"]
    sides = [set(keys[column(part)].tolist()) for part in parts]
    assert sides[0] & sides[1] == set()
    assert [part.n_rows for part in parts] == [len(column(part)) for part in parts]
    assert not parts[0].seekable
    with pytest.raises(TypeError, match=r'split_rows\(source, ..., by="column"\)'):
        split_rows(blocks, 0.5)


def test_codes_split_as_their_texts(folder):
    """Of a part in memory, of a source that gives codes."""

    class Wrapped:
        """A source of ours that is not files, and can be opened at any row."""

        def __init__(self, source):
            self.source, self.n_rows, self.columns = source, source.n_rows, source.columns

        def read(self, epoch, start=0):
            return self.source.read(epoch, start)

        def unshuffled(self, start=0, stop=None):
            return self.source.unshuffled(start, stop)

        __iter__ = parquet_source.__iter__
        seekable = gives_checked_blocks = True
        encoding = property(lambda self: self.source.encoding)

    source = parquet_source(folder, columns=["row", "carrier"])
    first, _ = split_rows(Wrapped(source), 0.5, by="carrier")
    assert first.categories["carrier"].tolist() == sorted(CARRIERS)
    expected, _ = split_rows(source, 0.5, by="carrier")
    np.testing.assert_array_equal(column(first), column(expected))
    for by in ("carrier", None):  # also from a row on: its blocks are row groups
        part, _ = split_rows(Wrapped(source), 0.5, by=by)
        for start in (30_001, 70_000):
            got = np.concatenate([block["row"] for block in part.read(0, start)])
            np.testing.assert_array_equal(got, column(part)[start:])
    texts = {name: rows()[name] for name in ("row", "carrier")}
    np.testing.assert_array_equal(column(split_rows(texts, 0.5, by="carrier")[0]), column(first))


def test_equal_keys_are_equal_whatever_their_type():
    days = pd.date_range("2013-01-01", periods=5, freq="D")
    dates = pa.array([day.date() for day in days], pa.date32())
    expected = keys_of_arrow(dates, "day")
    for other in (pa.array(days, pa.timestamp("ns")), pa.array(days, pa.timestamp("s", "UTC"))):
        np.testing.assert_array_equal(keys_of_arrow(other, "day"), expected)
    numbers = np.array([-0.0, 3, 2**40])
    for dtype in (np.int64, np.float64, np.float32):
        np.testing.assert_array_equal(
            keys_of(numbers.astype(dtype), "n"), keys_of(np.abs(numbers), "n")
        )
    texts = ["a", None, "ü", "a"]
    expected = keys_of(np.array(texts, dtype=object), "t")
    assert expected[0] == expected[3] != expected[1]
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        np.testing.assert_array_equal(keys_of_arrow(pa.array(texts, kind), "t"), expected)
    encoded = pa.array(texts).dictionary_encode()
    np.testing.assert_array_equal(keys_of_arrow(encoded, "t"), expected)
    np.testing.assert_array_equal(keys_of_arrow(encoded.slice(1), "t"), expected[1:])
    missing = keys_of_arrow(pa.array([1.5, None, np.nan]), "n")
    assert missing[1] == missing[2] == expected[1]


def test_with_missing_values_dropped(tmp_path):
    table = rows(20_000)
    table["x"][::3] = np.nan
    source = parquet_source(write(tmp_path / "rows", table), columns=["row", "x"], missing="drop")
    parts = split_rows(source, 0.7)
    found = [column(part) for part in parts]
    assert [part.n_rows for part in parts] == list(map(len, found))
    expected = np.flatnonzero(np.arange(20_000) % 3)
    assert sorted(np.concatenate(found).tolist()) == expected.tolist()


def test_a_part_is_shuffled_on_disk_summarised_and_standardised(folder, tmp_path):
    train, held_out = split_rows(of_files(folder), 0.8)
    shuffled = pre_shuffle(train, tmp_path / "train", seed=1, progressbar=False)
    assert sorted(column(shuffled).tolist()) == column(train).tolist()
    with pytest.raises(FileExistsError):
        pre_shuffle(held_out, tmp_path / "train", seed=1, progressbar=False)
    summary = column_summary(train)
    assert summary.table.loc["x", "mean"] == pytest.approx(column(train, "x").mean(), rel=1e-12)
    scaled = standardize(held_out, ["x"], summary)
    mean, sd = scaled.scales["x"]
    np.testing.assert_allclose(column(scaled, "x"), (column(held_out, "x") - mean) / sd)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 80, np.nan])
def test_no_fraction(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_rows(np.arange(10), fraction)


@pytest.mark.parametrize(
    ("source", "by", "error", "message"),
    [
        (
            lambda: shuffle_buffer(np.arange(9), buffer_size=9, batch_size=3),
            None,
            TypeError,
            "split the rows first",
        ),
        (lambda: standardize({"x": np.arange(9)}, ["x"]), None, TypeError, r"standardize\(train"),
        (lambda: iter([np.arange(9)]), None, TypeError, "read only once"),
        (lambda: {"x": np.arange(9)}, "y", ValueError, r"no column 'y' .* \['x'\]"),
        (lambda: np.arange(9), "y", ValueError, "no column 'y'"),
        (lambda: {"x": np.arange(9), "y": np.ones(9)}, "y", ValueError, r"no rows.* too few keys"),
        (
            lambda: {"x": np.array([datetime.time()] * 9)},
            "x",
            TypeError,
            "'x', of keys to split by, holds",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(source, by, error, message):
    with pytest.raises(error, match=message):
        split_rows(source(), 0.5, by=by)


def test_files_that_cannot_be_split_are_refused(folder, tmp_path):
    source = of_files(folder)
    with pytest.raises(ValueError, match=r"0.parquet: no column 'day'"):
        split_rows(source, 0.5, by="day")
    pq.write_table(
        pa.table({"x": [1.0, 2.0], "k": ["a", "a"], "s": [[1], [2]]}), tmp_path / "0.parquet"
    )
    few = parquet_source(tmp_path, columns=["x"])
    with pytest.raises(
        ValueError, match=r"no row .* is left by first part of a split, 0.5 by column 'k'"
    ):
        split_rows(few, 0.5, by="k")
    with pytest.raises(TypeError, match="'s', of keys to split by, has type list"):
        split_rows(few, 0.5, by="s")


def test_docstring_runs():
    import doctest

    assert doctest.testmod(sys.modules[split_rows.__module__]).failed == 0
