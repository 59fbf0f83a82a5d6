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
"""Keys, times, filters and folders' names in Parquet files."""

import datetime
import decimal
import pickle

import numpy as np
import pytest

from pymc.streams.blocks import Blocks
from pymc.streams.shuffle.buffer import shuffle_buffer
from pymc.streams.sources import decoding
from pymc.streams.sources.parquet import parquet_source
from pymc.streams.sources.stores import files_at
from pymc.streams.sources.tables import FileTables
from pymc.variational.streaming import StreamingDataset

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pc = pytest.importorskip("pyarrow.compute")

MONTHS = np.array(["jan", "feb", "mar"], dtype=object)


def write(path, columns, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **kwargs)


def all_of(source, column="row"):
    return np.concatenate([block[column] for block in source]).tolist()


@pytest.fixture
def folder(tmp_path):
    """Three files of 25 rows, in row groups of 10, of keys that no file has all of."""
    for i in range(3):
        row = np.arange(25 * i, 25 * (i + 1))
        key = np.array([f"key {j}" for j in (7 * row) % 11 + i])
        columns = {"row": row, "key": key, "month": np.roll(MONTHS, i)[row % 2]}
        write(tmp_path / f"part-{i}.parquet", columns, row_group_size=10)
    return tmp_path


def keys_of(row):
    row = np.asarray(row)
    return [f"key {j}" for j in (7 * row) % 11 + row // 25]


def test_keys_are_the_same_codes_in_every_file_and_order(folder):
    source = parquet_source(folder)
    expected = sorted(set(keys_of(range(75))))
    assert source.categories["key"].tolist() == expected
    assert source.categories["month"].tolist() == ["feb", "jan", "mar"]
    for each in (
        source,
        parquet_source(folder, shuffle_row_groups=True, seed=1),
        source.unshuffled(),
    ):
        rows = np.concatenate([np.stack([b["row"], b["key"]]) for b in each], axis=1)
        assert [expected[code] for code in rows[1]] == keys_of(rows[0])
    # Files in another order, and one at a time with the categories of all.
    files = sorted(folder.glob("*.parquet"))[::-1]
    assert parquet_source(files).categories["key"].tolist() == expected
    one = parquet_source(files[0], categories=source.categories)
    assert one.categories.keys() == source.categories.keys()
    assert all_of(one, "key") == all_of(source, "key")[50:]


def test_the_pass_for_categories_reads_keys_alone(folder, monkeypatch):
    read = []
    batches = decoding.DecodedRowGroups.batches
    monkeypatch.setattr(
        decoding.DecodedRowGroups,
        "batches",
        lambda self, numbers, file, n, columns: (
            read.append(columns) or batches(self, numbers, file, n, columns)
        ),
    )
    source = parquet_source(folder)
    assert set(read) == {("key", "month")}
    read.clear()
    parquet_source(folder, categories=source.categories)
    assert read == []


def test_strings_in_one_file_and_a_dictionary_in_another(folder):
    row = np.arange(75, 80)
    key = pa.array(keys_of(row - 75)).dictionary_encode()
    columns = {"month": pa.array(["may"] * 5, pa.large_string()), "key": key, "row": row}
    write(folder / "part-3.parquet", columns)
    source = parquet_source(folder)
    assert source.categories["month"].tolist() == ["feb", "jan", "mar", "may"]
    assert source.categories["key"][all_of(source, "key")].tolist()[75:] == keys_of(range(5))


def test_an_unknown_key_names_file_row_group_column_and_value(folder):
    known = sorted(set(keys_of(range(60))) - {"key 12"})
    source = parquet_source(folder, categories={"key": known})
    match = r"part-2.parquet, row group 0, column 'key': the value 'key 12' is not among its 12"
    with pytest.raises(ValueError, match=match):
        list(source)
    with pytest.raises(ValueError, match=match):
        list(source.unshuffled())
    source = parquet_source(folder, categories={"key": known}, unknown={"key": "?"})
    codes = all_of(source, "key")
    assert source.categories["key"].tolist()[-1] == "?"
    assert [row for row in range(75) if codes[row] == 12] == [
        row for row, key in enumerate(keys_of(range(75))) if key == "key 12"
    ]


def test_a_checkpoint_refuses_other_categories(folder):
    def stream(**kwargs):
        source = parquet_source(folder, **kwargs)
        return StreamingDataset(
            shuffle_buffer(source, buffer_size=75, batch_size=5, seed=1), batch_size=5
        )

    ds = stream()
    ds.advance()
    state = ds.state_dict()
    stream().load_state_dict(state)
    levels = ds.categories["key"]
    for other in ({"categories": {"key": levels[::-1]}}, {"unknown": "other"}):
        with pytest.raises(ValueError, match=r"categories\.key"):
            stream(**other).load_state_dict(state)


@pytest.mark.parametrize("columns", [["row"], ["row", "key"], None])
@pytest.mark.parametrize(
    "expression, keeps",
    [
        (lambda: pc.field("row") < 33, lambda row: row < 33),
        (lambda: pc.field("row").isin([4, 31, 33, 74]), lambda row: np.isin(row, [4, 31, 33, 74])),
        (
            lambda: pc.starts_with(pc.field("key"), "key 1"),
            lambda row: np.array(["key 1" in k for k in keys_of(row)]),
        ),
    ],
)
def test_filters_keep_rows_and_count_them(folder, columns, expression, keeps):
    source = parquet_source(folder, columns=columns, filters=expression())
    row = np.arange(75)
    expected = row[keeps(row)].tolist()
    assert (source.n_rows, source.n_filtered) == (len(expected), 75 - len(expected))
    assert (
        all_of(source) == all_of(source.unshuffled()) == all_of(source.by_row_group()) == expected
    )
    for start in (0, 1, len(expected) - 1):
        assert all_of(source.read(0, start)) == all_of(source.unshuffled(start)) == expected[start:]
    if columns is None:
        assert source.categories["key"].tolist() == sorted(set(keys_of(expected)))


@pytest.mark.parametrize("slice_rows", [3, 16_384])
@pytest.mark.parametrize("missing", ["raise", "drop"])
def test_a_filtered_source_is_read_from_any_row_in_random_order(
    tmp_path, monkeypatch, slice_rows, missing
):
    monkeypatch.setattr(decoding, "SLICE_ROWS", slice_rows)
    monkeypatch.setattr(decoding, "OPEN_ROW_GROUPS", 3)
    row = np.arange(200)
    x = pa.array(np.where(row % 7 == 0, None, row / 2).tolist(), pa.float64())
    write(tmp_path / "a.parquet", {"row": row, "x": x}, row_group_size=17)
    keep = (pc.field("row") < 30) | (pc.field("row") > 90)
    if missing == "raise":
        keep = keep & pc.field("x").is_valid()
    source = parquet_source(
        tmp_path, shuffle_row_groups=True, seed=1, filters=keep, missing=missing
    )
    expected = row[((row < 30) | (row > 90)) & (row % 7 != 0)].tolist()
    assert source.n_rows == len(expected)
    assert source.n_filtered + source.n_dropped == 200 - len(expected)
    assert source.n_row_groups == 9  # of 12, without those that hold no such row
    epoch = all_of(source.read(2))
    assert sorted(epoch) == expected and epoch != expected
    for start in range(len(expected)):
        assert all_of(source.read(2, start)) == epoch[start:]
    assert source.first_rows(0, 5)["row"].tolist() == [1, 2, 3, 4]


def test_filters_are_looked_at_before_anything_else(tmp_path):
    write(
        tmp_path / "a.parquet",
        {"key": ["a", "?", None, "b"], "x": [1.0, 2.0, np.nan, 3.0], "day": [1, 0, None, 1]},
    )
    source = parquet_source(tmp_path, columns=["key", "x"], filters=pc.field("day") == 1)
    assert source.categories["key"].tolist() == ["a", "b"]
    [block] = source
    assert block["key"].tolist() == [0, 1] and block["x"].tolist() == [1.0, 3.0]


def test_filters_belong_to_the_identity(folder):
    sources = [
        parquet_source(folder, columns=["row"], filters=pc.field("row") < n) for n in (33, 34, 33)
    ]
    one, other, same = (Blocks(source) for source in sources)
    assert one.identity == same.identity and one.same_rows(same)
    assert one.identity != other.identity and not one.same_rows(other)
    assert pickle.loads(pickle.dumps(sources[0])).stream_identity == sources[0].stream_identity


@pytest.mark.parametrize(
    "filters, error, match",
    [
        (lambda: [("row", "<", 3)], TypeError, "filters_to_expression"),
        (lambda: pc.field("no") == 1, ValueError, r"filters=\(no == 1\): No match"),
        (lambda: pc.field("row"), TypeError, "filters=row is of type int64, not bool"),
        (lambda: pc.scalar(True), ValueError, "looks at no column"),
        (
            lambda: pc.field("row") > 99,
            ValueError,
            r"no row of the 3 file\(s\) is left by \(row > 99\)",
        ),
    ],
)
def test_bad_filters(folder, filters, error, match):
    with pytest.raises(error, match=match):
        parquet_source(folder, columns=["row"], filters=filters())


class Keep:
    """Every third row by its place, as a split might."""

    columns = ()
    identity = "every third"

    def __call__(self, batch, first_row):
        return (first_row + np.arange(batch.num_rows)) % 3 == 1


@pytest.mark.parametrize("filters", [None, "row"])
def test_rows_kept_by_their_place(folder, filters, monkeypatch):
    monkeypatch.setattr(decoding, "READ_ROWS", 4)  # a row group is read in parts
    filters = None if filters is None else (pc.field("row") < 13) | (pc.field("row") > 60)
    source = parquet_source(folder, filters=filters)
    part = source._where(Keep())
    expected = [row for row in all_of(source) if row % 3 == 1]
    assert all_of(part) == all_of(part.unshuffled()) == expected
    assert part.n_rows == len(expected)
    assert part.categories["key"].tolist() == source.categories["key"].tolist()
    assert all_of(source) != expected  # which is as it was


@pytest.fixture
def hive(tmp_path):
    for year in (2024, 2025):
        for region in ("north", "a%2Fb", "__HIVE_DEFAULT_PARTITION__"):
            place = tmp_path / f"year={year}" / f"region={region}" / "part-0.parquet"
            write(place, {"x": np.arange(4) + year}, row_group_size=3)
    return tmp_path


def test_names_of_folders_are_columns(hive):
    match = (
        r"region=__HIVE_DEFAULT_PARTITION__/part-0.parquet, row group 0, column 'region': 3 null"
    )
    with pytest.raises(ValueError, match=match):
        list(parquet_source(hive))
    source = parquet_source(hive, missing="drop")
    assert source.columns == ("x", "year", "region")
    assert source.categories["region"].tolist() == ["a/b", "north"]
    assert (source.n_rows, source.n_dropped) == (16, 8)
    assert all_of(source, "year") == np.repeat([2024, 2025], 8).tolist()
    assert all_of(source, "region") == [*[0] * 4, *[1] * 4] * 2
    source = parquet_source(hive / "year=*" / "*" / "*.parquet", columns=["year"])
    assert all_of(source, "year") == np.repeat([2024, 2025], 12).tolist()


def test_the_names_of_folders_belong_to_the_identity(hive):
    before, of_tables = parquet_source(hive), FileTables(*files_at(hive)).identity
    (hive / "year=2024").rename(hive / "year=2023")
    after = parquet_source(hive)
    assert after.columns == before.columns
    assert after.identity != before.identity
    assert after.stream_identity != before.stream_identity
    assert FileTables(*files_at(hive)).identity != of_tables


def test_filters_on_names_of_folders_read_no_column(hive, monkeypatch):
    keep = (pc.field("year") == 2025) & (pc.field("region") == "north")
    source = parquet_source(hive, columns=["x"], filters=keep)
    assert all_of(source, "x") == [2025, 2026, 2027, 2028]
    assert source.n_row_groups == 2
    assert source.columns == ("x",)


def test_a_column_of_the_files_goes_before_a_name_of_a_folder(tmp_path):
    for month in (1, 2):
        write(tmp_path / f"month={month}" / "a.parquet", {"month": [month + 0.5]})
    assert all_of(parquet_source(tmp_path), "month") == [1.5, 2.5]


def test_folders_of_different_columns_are_refused(hive):
    write(hive / "year=2026" / "part-0.parquet", {"x": [1]})
    with pytest.raises(
        ValueError, match=r"year=2026/part-0.parquet: its folders name .*\['year'\]"
    ):
        parquet_source(hive)


def test_row_groups_in_the_order_of_folders_are_noticed(tmp_path):
    rng = np.random.default_rng(1)
    for month in range(1, 13):
        write(tmp_path / f"month={month:02}" / "a.parquet", {"x": rng.normal(size=100)})
    ranges = parquet_source(tmp_path).row_group_ranges()
    assert ranges["month"] == [(month, month) for month in range(1, 13)]


def test_times_decimals_and_lists(tmp_path):
    day = datetime.date(2026, 1, 2)
    columns = {
        "day": [day, day],
        "price": pa.array([decimal.Decimal(1), decimal.Decimal(2)], pa.decimal128(12, 2)),
        "x": pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2)),
    }
    write(tmp_path / "a.parquet", columns)
    source = parquet_source(tmp_path, time_unit="D")
    assert source.columns == ("day", "price", "x[0]", "x[1]")
    assert source.units == {"day": "D since 1970-01-01"}
    [block] = source
    assert block["day"].tolist() == [20455, 20455] and block["price"].tolist() == [1, 2]
    assert block["x[1]"].tolist() == [2, 4]


def test_other_types_in_other_files_that_mean_the_same(tmp_path):
    noon = datetime.datetime(2026, 1, 1, 12)
    for i, (time, list_of) in enumerate(
        [
            (pa.timestamp("ms"), pa.float32()),
            (pa.timestamp("ns"), pa.float64()),
            (pa.date32(), pa.int8()),
        ]
    ):
        value = noon.date() if time == pa.date32() else noon
        columns = {"t": pa.array([value], time), "x": pa.array([[i, 1]], pa.list_(list_of, 2))}
        write(tmp_path / f"{i}.parquet", columns)
    source = parquet_source(tmp_path, time_unit="D")
    assert all_of(source, "t") == [20454.5, 20454.5, 20454]
    assert all_of(source, "x[0]") == [0, 1, 2]
    utc = pa.array([noon], pa.timestamp("us", "UTC"))
    write(tmp_path / "3.parquet", {"t": utc, "x": pa.array([[1, 1]], pa.list_(pa.int8(), 2))})
    with pytest.raises(
        TypeError, match=r"3.parquet: column 't' is of type timestamp\[us, tz=UTC\]"
    ):
        parquet_source(tmp_path)
