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
import sys

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from pymc.streams import summary as module
from pymc.streams.position import hashed
from pymc.streams.summary import column_summary
from pymc.variational.streaming import parquet_source, shuffle_buffer

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

N = 300_000


def rows(n_rows=N, seed=1):
    rng = np.random.default_rng(seed)
    return {
        "x": np.sort(rng.normal(3, 2, n_rows)),
        "k": rng.integers(-5, 100, n_rows),
        "up": rng.random(n_rows) < 0.2,
        "small": rng.exponential(1e-3, n_rows).astype("float32"),
    }


@pytest.fixture(scope="module")
def table():
    return rows()


@pytest.fixture(scope="module")
def whole(table):
    return column_summary(table)


def same(one, other):
    pd.testing.assert_frame_equal(one.table, other.table, check_exact=True)
    pd.testing.assert_frame_equal(one.quantile_se, other.quantile_se, check_exact=True)
    assert list(one.levels) == list(other.levels)
    for name, counts in one.levels.items():
        pd.testing.assert_series_equal(counts, other.levels[name])


def test_counts_means_sds_and_extremes_are_those_of_all_rows(table, whole):
    expected = pd.DataFrame({name: np.float64(column) for name, column in table.items()})
    assert whole.n_rows == N
    assert (whole.table["count"] == N).all()
    np.testing.assert_allclose(whole.table["mean"], expected.mean(), rtol=1e-14)
    np.testing.assert_allclose(whole.table["sd"], expected.std(), rtol=1e-14)
    np.testing.assert_array_equal(whole.table["min"], expected.min())
    np.testing.assert_array_equal(whole.table["max"], expected.max())


def test_quantiles_of_few_rows_are_exact():
    few = rows(50_000)
    result = column_summary(few, quantiles=[0.01, 0.5])
    expected = pd.DataFrame({n: np.float64(c) for n, c in few.items()}).quantile([0.01, 0.5]).T
    assert result.n_sampled == 50_000
    np.testing.assert_allclose(result.table[["1%", "50%"]], expected, rtol=1e-12)
    assert (result.quantile_se == 0).all(axis=None)


def test_standard_errors_of_quantiles_are_those_over_samples(table):
    """Of sorted rows, in sds, over 60 samples of 2000 rows."""
    true = np.quantile(table["x"], [0.05, 0.5, 0.9])
    results = [
        column_summary(table, quantiles=[0.05, 0.5, 0.9], sample_rows=2000, seed=seed)
        for seed in range(60)
    ]
    assert {result.n_sampled for result in results} == {2000}
    found = np.stack([result.table.loc["x", ["5%", "50%", "90%"]] for result in results])
    errors = np.stack([result.quantile_se.loc["x"] for result in results])
    z = (found - true) / np.sqrt((errors**2).mean(axis=0))
    assert (np.abs(z.mean(axis=0)) < 4.5 / np.sqrt(60)).all()
    assert ((0.65 < z.std(axis=0)) & (z.std(axis=0) < 1.4)).all()


def test_the_sample_is_that_of_the_smallest_hashes(table, whole):
    keys = hashed(np.arange(N, dtype=np.uint64), 0, "column_summary")
    sample = np.argsort(keys)[:100_000]
    expected = np.quantile(table["x"][sample], [0.05, 0.25, 0.5, 0.75, 0.95])
    np.testing.assert_array_equal(whole.table.iloc[0, 5:].astype(float), expected)


def in_blocks(table, n_rows):
    for start in range(0, N, n_rows):
        yield {name: column[start : start + n_rows] for name, column in table.items()}


@pytest.mark.parametrize("n_rows", [777, 65_536, N])
def test_the_same_whatever_the_blocks(table, whole, n_rows):
    # Also where N is not known, so that the sample is cut as it grows.
    same(column_summary(lambda: in_blocks(table, n_rows)), whole)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_the_same_whatever_the_threads(table, whole, monkeypatch, n_threads):
    monkeypatch.setattr(module, "MAX_THREADS", n_threads)
    same(column_summary(table), whole)


def test_the_same_by_an_executor(monkeypatch):
    monkeypatch.setattr(module, "PIECES_IN_GROUP", 2)  # 5 groups
    table = rows()
    with ThreadPoolExecutor(2) as executor:
        same(column_summary(table, executor=executor), column_summary(table))
        with pytest.raises(ValueError, match="pre_shuffle"):
            column_summary(lambda: in_blocks(table, 1000), executor=executor)


def test_a_shuffle_does_not_count(table, whole):
    same(column_summary(shuffle_buffer(table, buffer_size=1000, batch_size=10)), whole)


def test_arrays_of_any_shape():
    x = np.arange(24.0).reshape(4, 3, 2)
    result = column_summary((x, np.arange(4)))
    assert list(result.table.index)[:2] == ["array 0[0, 0]", "array 0[0, 1]"]
    assert list(result.table.index)[-1] == "array 1"
    np.testing.assert_array_equal(result.table["mean"], [*x.mean(axis=0).ravel(), 1.5])


def test_many_columns():
    x = np.random.default_rng(1).normal(size=(5000, 300))
    result = column_summary(x)
    np.testing.assert_allclose(result.table["mean"], x.mean(axis=0), rtol=1e-12)


def test_levels_are_counted(tmp_path):
    pq.write_table(
        pa.table(
            {
                "t": pa.array([0, 1, 2, 3, 4, 5], pa.timestamp("s")),
                "carrier": ["UA", "AA", "UA", "<b>", "AA", "UA"],
            }
        ),
        tmp_path / "0.parquet",
        row_group_size=2,
    )
    levels = {"carrier": ["AA", "B6", "UA", "<b>"]}
    result = column_summary(parquet_source(tmp_path, categories=levels))
    assert result.levels["carrier"].to_dict() == {"AA": 2, "B6": 0, "UA": 3, "<b>": 1}
    assert list(result.table.index) == ["t"]
    assert result.table.loc["t", ["unit", "mean"]].tolist() == ["s since 1970-01-01", 2.5]
    assert "carrier: 4 levels: UA 3, AA 2, <b> 1, B6 0" in repr(result)
    assert "UA 3, AA 2, &lt;b&gt; 1" in result._repr_html_()
    only_codes = column_summary(parquet_source(tmp_path, columns=["carrier"]))
    assert only_codes.table.empty
    assert repr(only_codes) == "Summary of 6 rows\ncarrier: 3 levels: UA 3, AA 2, <b> 1"


def test_a_constant_has_no_sd():
    result = column_summary({"x": np.full(1_000_001, 0.1), "one": np.ones(1_000_001)})
    assert (result.table["sd"] == 0).all()
    assert result.table["mean"].to_dict() == {"x": 0.1, "one": 1.0}


def test_one_row():
    table = column_summary({"x": np.array([2.5])}).table
    assert table.loc["x", ["count", "mean", "sd", "min", "max", "50%"]].tolist() == [
        1.0,
        2.5,
        0.0,
        2.5,
        2.5,
        2.5,
    ]


@pytest.mark.parametrize("sample_rows", [1, 5])
def test_small_samples(table, sample_rows):
    assert column_summary(table, sample_rows=sample_rows).n_sampled == sample_rows


@pytest.mark.parametrize(
    ("source", "kwargs", "error", "message"),
    [
        ({"x": np.ones(3)}, {"quantiles": [0, 0.5]}, ValueError, "between 0 and 1, got"),
        ({"x": np.ones(3)}, {"sample_rows": 0}, ValueError, "sample_rows must be at least 1"),
        (iter([np.ones(3)]), {}, TypeError, "read only once"),
        ([], {}, ValueError, "no rows"),
        ({"x": np.array(["a"])}, {}, TypeError, "'x': not numeric"),
    ],
)
def test_what_has_no_summary_is_refused(source, kwargs, error, message):
    with pytest.raises(error, match=message):
        column_summary(source, **kwargs)


def test_missing_values_are_refused_by_name():
    table = {"x": np.ones(100_000), "y": np.ones(100_000)}
    table["y"][70_000] = np.nan
    with pytest.raises(ValueError, match=r"rows from 65,536 on, column 'y': 1 NaN"):
        column_summary(table)


def test_docstring_runs():
    import doctest

    assert doctest.testmod(sys.modules[column_summary.__module__]).failed == 0
