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
import decimal
import json

import numpy as np
import pytest

from pymc.streams import encoders
from pymc.streams.encoding import Categories, Encoding

pa = pytest.importorskip("pyarrow")

DAY = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)


def encoding_of(table, **arguments):
    encoding = Encoding.of(table.schema, where="table", **arguments)
    return encoding.with_categories(Categories(encoding.unfound).add(table).found())


def encoded(table, **arguments):
    return encoding_of(table, **arguments)(table, "table")[0]


def test_numbers_stay_as_they_are_without_a_copy():
    x = np.arange(5, dtype=np.int16)
    table = pa.table({"x": x, "flag": [True, False, True, True, False]})
    encoding = Encoding.of(table.schema, where="table")
    block, kept = encoding(table, "table")
    assert np.shares_memory(block["x"], x)
    assert block["flag"].dtype == bool and kept is None
    assert encoding.dtypes == {"x": np.dtype("int16"), "flag": np.dtype("bool")}
    assert encoding.identity == {} and encoding.unfound == ()


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.uint32(), pa.large_string()),
    ],
    ids=str,
)
def test_keys_are_places_in_categories_sorted_by_code_point(kind):
    keys = ["b", "Z", "é", "a", "b", "", "𝄞", "z"]
    table = pa.table({"key": pa.array(keys).cast(kind)})
    encoding = encoding_of(table)
    levels = encoding.categories["key"]
    assert levels.tolist() == sorted(set(keys))
    block, _ = encoding(table, "table")
    assert block["key"].dtype == np.int32
    assert levels[block["key"]].tolist() == keys
    # Also of a part of the rows, whose dictionary is another one.
    block, _ = encoding(table.slice(2, 3), "table")
    assert levels[block["key"]].tolist() == keys[2:5]


def test_dictionary_with_nulls_and_more_values_than_rows():
    values = pa.array(["unused", None, "b", "a", *"cdefg"])
    column = pa.DictionaryArray.from_arrays(pa.array([2, 1, 3]), values)
    table = pa.table({"key": column})
    encoding = encoding_of(table)
    assert encoding.categories["key"].tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="1 null value"):
        encoding(table, "table")
    block, kept = encoding(table, "table", drop=True)
    assert block["key"].tolist() == [1, 0]
    assert kept.tolist() == [True, False, True]


def test_categories_of_batches_in_any_order_are_the_same(monkeypatch):
    monkeypatch.setattr("pymc.streams.encoding.MERGED_AT_ONCE", 8)
    rng = np.random.default_rng(1)
    keys = np.array([f"key {i}" for i in range(100)], dtype=object)
    table = pa.table({"key": rng.choice(keys, 1000), "other": rng.choice(keys[:7], 1000)})
    batches = table.to_batches(max_chunksize=37)
    one, rest = Categories(["key", "other"]), Categories(["key", "other"])
    for batch in batches[::-2]:
        one.add(batch)
    for batch in batches[-2::-2]:
        rest.add(batch)
    found = one.join(rest).found()
    assert found["key"].to_pylist() == sorted(set(table["key"].to_pylist()))
    assert found["other"].to_pylist() == sorted(keys[:7])


@pytest.mark.parametrize("few", [1, 10**6])
def test_many_categories_are_looked_up_as_few_are(monkeypatch, few):
    monkeypatch.setattr(encoders, "FEW_LEVELS", few)
    rng = np.random.default_rng(1)
    keys = rng.permutation([f"key {i}" for i in range(5000)])
    table = pa.table({"key": rng.choice(keys, 3000), "n": rng.integers(0, 9, 3000) * 10**9})
    encoding = encoding_of(table, categories={"key": keys, "n": np.arange(8, -1, -1) * 10**9})
    block, _ = encoding(table, "table")
    assert (keys[block["key"]] == table["key"].to_numpy()).all()
    assert (8 - block["n"] == table["n"].to_numpy() // 10**9).all()
    with pytest.raises(ValueError, match=r"value 'key 5000' is not among its 5,000 categories\."):
        encoding.encode("key", ["key 1", "key 5000"], "rows")
    assert encoding.identity["categories"]["key"]["n_levels"] == 5000
    other = Encoding.of(table.schema, categories={"key": keys[::-1], "n": [1]}, where="table")
    assert encoding.identity != other.identity


def test_given_categories_keep_their_order_and_may_be_of_any_key_type():
    table = pa.table(
        {
            "size": ["mid", "low", "high"],
            "instrument": [2208, 1041, 2208],
            "day": [datetime.date(2026, 1, d) for d in (2, 1, 2)],
        }
    )
    days = [datetime.date(2026, 1, d) for d in (1, 2, 3)]
    given = {"size": ["low", "mid", "high"], "instrument": [1041, 2208], "day": days, "no": [1]}
    block = encoded(table, categories=given)
    assert {name: codes.tolist() for name, codes in block.items()} == {
        "size": [1, 0, 2],
        "instrument": [1, 0, 1],
        "day": [1, 0, 1],
    }


def test_unknown_value_is_an_error_that_says_what_and_what_to_do():
    table = pa.table({"key": ["b", "a"]})
    encoding = encoding_of(table)
    with pytest.raises(ValueError) as error:
        encoding(pa.table({"key": ["a", "new"]}), "file 7")
    for part in (
        "file 7, column 'key'",
        "'new'",
        "its 2 categories (a, b)",
        "unknown=",
        "{'key': [...]}",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("unknown", ["other", {"key": "other"}])
def test_a_category_stands_for_unknown_values(unknown):
    table = pa.table({"key": ["z", "a"]})
    encoding = encoding_of(table, unknown=unknown)
    assert encoding.categories["key"].tolist() == ["a", "z", "other"]
    new = pa.table({"key": ["z", "new", "a", "newer"]})
    assert encoding(new, "rows")[0]["key"].tolist() == [1, 2, 0, 2]
    # The categories of this source are those of another one.
    again = Encoding.of(new.schema, categories=encoding.categories, unknown="other", where="rows")
    assert again.identity == encoding.identity
    assert again(new, "rows")[0]["key"].tolist() == [1, 2, 0, 2]


@pytest.mark.parametrize(
    "column, unit, number",
    [
        (
            pa.array([DAY], pa.timestamp("ns", "America/New_York")),
            "s since 1970-01-01 UTC",
            1772366400,
        ),
        (pa.array([DAY], pa.timestamp("us")), "s since 1970-01-01", 1772366400),
        (pa.array([DAY.date()], pa.date32()), "s since 1970-01-01", 20513 * 86400),
        (pa.array([DAY.date()], pa.date64()), "s since 1970-01-01", 20513 * 86400),
        (pa.array([datetime.time(1, 0, 2)], pa.time32("s")), "s since midnight", 3602),
        (pa.array([datetime.timedelta(milliseconds=1500)], pa.duration("ms")), "s", 1.5),
    ],
    ids=lambda value: str(value.type) if hasattr(value, "type") else str(value),
)
def test_times_are_numbers_of_a_unit(column, unit, number):
    table = pa.table({"t": column})
    encoding = encoding_of(table)
    assert encoding.units == {"t": unit}
    values = encoding(table, "table")[0]["t"]
    assert values.dtype == np.float64 and values.tolist() == [number]
    hours = encoding_of(table, time_unit="h")
    assert hours.units == {"t": "h" + unit[1:]}
    assert hours(table, "table")[0]["t"].tolist() == [number / 3600]
    assert encoding_of(table, time_unit="us")(table, "table")[0]["t"].tolist() == [number * 10**6]
    assert hours.identity != encoding.identity


@pytest.mark.parametrize(
    "kind",
    [pa.decimal32(9, 2), pa.decimal64(9, 2), pa.decimal128(9, 2), pa.decimal256(45, 2)],
    ids=str,
)
def test_decimals_are_the_nearest_floats(kind):
    cents = np.arange(-999, 1000)
    table = pa.table({"price": pa.array([decimal.Decimal(int(c)) / 100 for c in cents], kind)})
    values = encoded(table)["price"]
    if kind.precision <= 38:
        assert (values == cents / 100).all()
    np.testing.assert_allclose(values, cents / 100, rtol=1e-15)
    part = encoding_of(table)(table.slice(1000, 5), "table")[0]["price"]
    np.testing.assert_allclose(part, cents[1000:1005] / 100, rtol=1e-15)


def test_decimals_that_floats_do_not_hold_are_refused_or_rounded():
    numbers = [decimal.Decimal("12345678901234567.89"), decimal.Decimal("-0.50")]
    table = pa.table({"price": pa.array(numbers, pa.decimal128(19, 2))})
    with pytest.raises(
        ValueError, match=r"column 'price': .*decimal128\(19, 2\).*decimals=\"round\""
    ):
        encoded(table)
    assert encoded(table, decimals="round")["price"].tolist() == [12345678901234567.89, -0.5]


def test_lists_of_one_length_are_columns():
    rows = [[1, 2, 3], [4, 5, 6], None, [7, None, 9], [10, 11, 12]]
    table = pa.table({"x": pa.array(rows, pa.list_(pa.float32(), 3)), "y": range(5)})
    encoding = Encoding.of(table.schema, where="table")
    assert encoding.columns == ("x[0]", "x[1]", "x[2]", "y") and encoding.raw_columns == ("x", "y")
    assert encoding.dtypes["x[1]"] == np.float32
    block, kept = encoding(table, "table", drop=True)
    assert kept.tolist() == [True, True, False, False, True]
    assert np.column_stack(list(block.values())).tolist() == [
        [1, 2, 3, 0],
        [4, 5, 6, 1],
        [10, 11, 12, 4],
    ]
    assert encoding(table.slice(1, 1), "table")[0]["x[2]"].tolist() == [6]
    for rows in (table.slice(2, 1), table.slice(3, 1)):
        with pytest.raises(ValueError, match="1 null value"):
            encoding(rows, "table")


def test_dropped_rows_are_those_with_a_null_nan_or_infinity_in_any_column():
    table = pa.table(
        {
            "x": pa.array([1.0, None, np.nan, 2.0, np.inf, 3.0]),
            "flag": pa.array([True, True, True, None, True, False]),
            "t": pa.array([DAY, DAY, DAY, DAY, DAY, DAY]),
        }
    )
    block, kept = encoding_of(table)(table, "table", drop=True)
    assert kept.tolist() == [True, False, False, False, False, True]
    assert block["x"].tolist() == [1.0, 3.0] and block["flag"].tolist() == [True, False]


@pytest.mark.parametrize(
    "kind, way_out",
    [
        (pa.struct([("a", pa.int8())]), "each of its fields as a column"),
        (pa.list_(pa.float64()), "list of one length"),
        (pa.list_(pa.string(), 2), "list of one length"),
        (pa.binary(), "write it as a string"),
        (pa.null(), "as a number"),
        (pa.month_day_nano_interval(), "as a number"),
    ],
    ids=str,
)
def test_types_that_are_no_numbers_are_refused_with_the_way_out(kind, way_out):
    schema = pa.schema([("x", pa.int8()), ("odd", kind)])
    with pytest.raises(TypeError) as error:
        Encoding.of(schema, where="part-0.parquet")
    for part in ("part-0.parquet: column 'odd'", str(kind), "columns=[...]", way_out):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"columns": ["no"]}, ValueError, "table: no column 'no'"),
        ({"time_unit": "m"}, ValueError, "time_unit must be one of"),
        ({"decimals": "fast"}, ValueError, '"exact" or "round"'),
        ({"categories": {"key": [1]}}, TypeError, "column 'key': values that are no large_string"),
        ({"categories": {"key": ["a", "a"]}}, ValueError, "column 'key'.* a value twice"),
        ({"categories": {"key": ["a", None]}}, ValueError, "column 'key'.* hold a null"),
        ({"categories": {"key": []}}, ValueError, "column 'key': it has no categories"),
        ({"categories": {"x": [1.0]}}, TypeError, "column 'x': categories of type double"),
        ({"categories": {"key": ["a"]}, "unknown": -1}, TypeError, "column 'key', unknown=-1"),
    ],
)
def test_arguments_without_meaning_are_refused(arguments, error, match):
    schema = pa.schema([("key", pa.string()), ("x", pa.float64())])
    with pytest.raises(error, match=match):
        Encoding.of(schema, where="table", **arguments)


@pytest.mark.parametrize(
    ("levels", "match"),
    [
        ("abc", "must be in an order"),
        ({"a", "b"}, "must be in an order"),
        ([1.5, 2.0], "no int64"),
        (["1", "2"], "no int64"),
    ],
)
def test_categories_that_would_change_are_refused(levels, match):
    key = ["a"] if match.startswith("must") else [1]
    with pytest.raises(TypeError, match=match):
        encoding_of(pa.table({"key": key}), categories={"key": levels})


def test_unknown_for_a_column_that_there_is_not():
    with pytest.raises(ValueError, match=r"unknown= names \['keys'\]"):
        encoding_of(pa.table({"key": ["a"]}), unknown={"keys": "other"})


def test_a_category_for_unknown_values_beside_many(monkeypatch):
    monkeypatch.setattr(encoders, "FEW_LEVELS", 2)
    block = encoded(
        pa.table({"key": ["c", "z", "a"]}), categories={"key": ["a", "b", "c"]}, unknown="other"
    )
    assert block["key"].tolist() == [2, 3, 0]


def test_what_stands_for_unknown_values_is_plain_in_the_identity():
    table = pa.table({"day": pa.array([datetime.date(2026, 1, 1)])})
    arguments = {"categories": {"day": [datetime.date(2026, 1, 1)]}}
    encoding = encoding_of(table, unknown=datetime.date(1970, 1, 1), **arguments)
    json.dumps(encoding.identity)


def test_lists_of_another_length_in_a_later_table_are_refused():
    encoding = encoding_of(pa.table({"v": pa.array([[1.0, 2.0]], pa.list_(pa.float64(), 2))}))
    with pytest.raises(TypeError, match="lists of 2 numbers each"):
        encoding(pa.table({"v": pa.array([[1.0], [2.0, 3.0, 4.0]])}), "later")
