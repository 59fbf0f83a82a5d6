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

import numpy as np
import pandas as pd
import pytest

from pymc.streams.batches import Batches
from pymc.streams.sources.parquet import parquet_source

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NOON = datetime.datetime(2026, 1, 1, 12)
KEYS = ["d", "b", "c", "b"]


def source_of(path, columns, **kwargs):
    pq.write_table(pa.table(columns), path)
    return parquet_source(path, **kwargs)


@pytest.fixture
def own(tmp_path):
    """Batches of keys a, b, c, of instruments 10, 20, 30, and of times in hours."""
    columns = {
        "key": ["c", "a", "b", "a"],
        "instrument": [30, 10, 20, 10],
        "t": [NOON] * 4,
        "x": [0.0, 1.0, 2.0, 3.0],
    }
    instruments = {"instrument": [10, 20, 30]}
    source = source_of(tmp_path / "own.parquet", columns, categories=instruments, time_unit="h")
    return batches_of(source)


def batches_of(source, preprocess_fn=None):
    return Batches(source, batch_size=4, dtype="float64", preprocess_fn=preprocess_fn, cycle=True)


def rows_like(own, source, optional=()):
    [[[values]]] = own.like(source, optional).all_rows()
    return dict(zip(own.columns, values.T.tolist()))


HOURS = (NOON - datetime.datetime(1970, 1, 1)).total_seconds() / 3600


@pytest.mark.parametrize("form", ["parquet", "other unit", "dict", "DataFrame", "categorical"])
def test_another_source_is_read_in_the_codes_and_units_of_the_first(own, tmp_path, form):
    columns = {"x": [0.5] * 4, "key": ["c", "b", "c", "b"], "t": [NOON] * 4}
    columns |= {"more": [0] * 4, "unread key": ["n"] * 4, "unread time": [NOON] * 4}
    columns |= {"instrument": [20, 20, 10, 30]}
    if form == "parquet":
        given = {"instrument": [30, 20, 10, 99]}
        source = source_of(tmp_path / "other.parquet", columns, categories=given)
        assert source.categories["key"].tolist() == ["b", "c"]  # codes of its own
    elif form == "other unit":
        units = {"categories": own.blocks.encoding.categories, "time_unit": "ms"}
        source = source_of(tmp_path / "other.parquet", columns, **units)
    else:
        source = {name: np.array(values) for name, values in columns.items()}
        if form != "dict":
            source = pd.DataFrame(source)
        if form == "categorical":
            source["key"] = source["key"].astype("category")
    rows = rows_like(own, source)
    assert rows["key"] == [2, 1, 2, 1]
    assert rows["instrument"] == [1, 1, 0, 2]
    assert rows["t"] == [HOURS] * 4
    assert rows["x"] == [0.5] * 4


@pytest.mark.parametrize("form", ["parquet", "DataFrame"])
def test_an_unknown_key_is_an_error_that_names_column_and_value(own, tmp_path, form):
    columns = {"key": KEYS, "instrument": [10] * 4, "t": [NOON] * 4, "x": [0.0] * 4}
    source = pd.DataFrame(columns)
    if form == "parquet":
        given = {"instrument": [99, 10]}  # 99 does not occur
        source = source_of(tmp_path / "other.parquet", columns, categories=given)
    with pytest.raises(
        ValueError, match=r"column 'key': the value 'd' is not among its 3.*\(a, b, c\)"
    ):
        rows_like(own, source)


def test_an_unknown_key_gets_the_category_that_stands_for_such(tmp_path):
    own = batches_of(
        source_of(tmp_path / "own.parquet", {"key": ["a", "b", "c"] * 2}, unknown="new")
    )
    for source in (pd.DataFrame({"key": KEYS}), source_of(tmp_path / "b.parquet", {"key": KEYS})):
        assert rows_like(own, source)["key"] == [3, 1, 2, 1]


@pytest.mark.parametrize(
    "column, match",
    [
        (
            {"key": [0, 1, 2, 1]},
            r"column 'key': numbers, .* keys such as 'a'.*source.categories\['key'\]",
        ),
        ({"key": [0.0, 1.0, 2.0, 1.0]}, "column 'key': numbers"),
        ({"instrument": ["10"] * 4}, "column 'instrument': values that are no int64"),
        ({"instrument": [0.5] * 4}, "column 'instrument': values that are no int64"),
        (
            {"t": pd.Series([NOON] * 4).dt.tz_localize("UTC")},
            "column 't': s since 1970-01-01 UTC, where .* h since 1970-01-01",
        ),
        ({"x": ["a"] * 4}, "column 'x': codes, where the rows of the model have numbers"),
    ],
)
def test_columns_that_mean_something_else_are_refused(own, column, match):
    columns = {"key": ["a"] * 4, "instrument": [10] * 4, "t": [NOON] * 4, "x": [0.0] * 4}
    rows_like(own, pd.DataFrame(columns))
    with pytest.raises(TypeError, match=match):
        rows_like(own, pd.DataFrame(columns | column))


@pytest.mark.parametrize(
    "column, match",
    [
        ({"key": KEYS}, "column 'key': codes, where the rows of the model have numbers"),
        ({"key": [NOON] * 4}, "column 'key': s since 1970-01-01, where the rows of the model"),
    ],
)
def test_codes_and_times_of_another_source_are_no_numbers_of_the_model(tmp_path, column, match):
    own = batches_of({"key": np.arange(4)})
    with pytest.raises(TypeError, match=match):
        rows_like(own, source_of(tmp_path / "other.parquet", column))


@pytest.mark.parametrize("form", [pd.DataFrame, dict])
def test_text_is_no_times(own, form):
    columns = {"x": np.zeros(2), "key": ["a", "b"], "instrument": [10, 20], "t": ["2026-01-01"] * 2}
    told = "column 't': (keys such as '2026-01-01'|values of type .*string)"
    with pytest.raises(TypeError, match=told):
        rows_like(own, form(columns))


def test_times_with_a_zone_and_without_are_not_mixed(own, tmp_path):
    columns = {
        "key": ["a"],
        "instrument": [10],
        "t": pa.array([NOON], pa.timestamp("s", "UTC")),
        "x": [0.0],
    }
    with pytest.raises(TypeError, match=r"column 't': s since 1970-01-01 UTC, where .* h since"):
        rows_like(own, source_of(tmp_path / "other.parquet", columns))


def test_preprocess_fn_gets_the_codes_of_the_first_source(tmp_path):
    train = source_of(tmp_path / "own.parquet", {"key": ["c", "a", "b", "a"], "y": [1.0] * 4})

    def one_hot(block):
        return {level: block["key"] == i for i, level in enumerate(train.categories["key"])}

    own = batches_of(train, one_hot)
    assert own.columns == ("a", "b", "c")
    held_out = source_of(tmp_path / "other.parquet", {"y": [1.0] * 2, "key": ["c", "b"]})
    assert rows_like(own, held_out) == {"a": [0, 0], "b": [0, 1], "c": [1, 0]}


def test_numbers_are_not_touched(own):
    x = {"x": np.arange(4.0), "y": np.arange(4)}
    assert rows_like(batches_of(x), x | {"key": np.array(KEYS)}) == {
        "x": [0, 1, 2, 3],
        "y": [0, 1, 2, 3],
    }
