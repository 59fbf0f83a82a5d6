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

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import pymc as pm

from pymc.streams.batches import Batches
from pymc.streams.standardize import standardize, unstandardize
from pymc.streams.summary import column_summary
from pymc.variational.streaming import (
    StreamingDataset,
    log_predictive,
    model_of_rows,
    order_report,
    parquet_source,
    pre_shuffle,
    predict,
    shuffle_buffer,
)

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

N = 20_000


def rows(n_rows=N, seed=1):
    """Predictors far from zero, of different sizes, in the order of one of them."""
    rng = np.random.default_rng(seed)
    rows = {
        "km": np.sort(rng.gamma(2, 500, n_rows)),
        "hour": rng.integers(0, 24, n_rows),
        "night": rng.random(n_rows) < 0.2,
    }
    rows["y"] = 3 + 0.01 * rows["km"] - 0.5 * rows["hour"] + rng.normal(0, 2, n_rows)
    return rows


@pytest.fixture(scope="module")
def table():
    return rows()


@pytest.fixture
def files(table, tmp_path):
    for i in range(4):
        part = {name: column[i::4] for name, column in table.items()}
        pq.write_table(pa.table(part), tmp_path / f"{i}.parquet", row_group_size=1000)
    return tmp_path


def joined(blocks):
    blocks = list(blocks)
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def expected(table, names=("km", "hour")):
    return {
        name: (column - column.mean()) / column.std(ddof=1) if name in names else column
        for name, column in table.items()
    }


def test_columns_are_centred_and_scaled_and_others_left_alone(table):
    source = standardize(table, ["km", "hour"])
    assert (source.n_rows, source.columns) == (N, ("km", "hour", "night", "y"))
    blocks = joined(source)
    for name, column in expected(table).items():
        np.testing.assert_allclose(blocks[name], column, atol=1e-12)
    assert blocks["night"].dtype == bool
    assert list(source.scales) == ["km", "hour"]
    assert source.scales["km"] == pytest.approx((table["km"].mean(), table["km"].std(ddof=1)))
    assert all(type(number) is float for scale in source.scales.values() for number in scale)


@pytest.mark.parametrize("start", [0, 1, 999, 1000, 12_345])
def test_epochs_open_at_any_row(files, start):
    raw = parquet_source(files, shuffle_row_groups=True, seed=1)
    source = standardize(raw, ["km"])
    assert source.seekable
    assert source.in_random_order
    mean, sd = source.scales["km"]
    got = joined(source.read(3, start))
    np.testing.assert_array_equal(got["km"], (joined(raw.read(3, start))["km"] - mean) / sd)
    got = joined(source.unshuffled(start))
    np.testing.assert_array_equal(got["km"], (joined(raw.unshuffled(start))["km"] - mean) / sd)


@pytest.mark.parametrize("inside", [False, True])
def test_shuffled_before_or_after(files, table, inside):
    def shuffled(source):
        return shuffle_buffer(source, buffer_size=N, batch_size=100, seed=1)

    raw = parquet_source(files)
    source = standardize(shuffled(raw), ["km"]) if inside else shuffled(standardize(raw, ["km"]))
    np.testing.assert_allclose(
        np.sort(joined(source)["km"]), np.sort(expected(table)["km"]), atol=1e-12
    )
    assert source.in_random_order


def test_arrays_with_named_columns():
    class Source:
        columns, n_rows = ("a", "b"), 3

        def __iter__(self):
            yield np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 6.0]])

    [block] = standardize(Source(), ["a"])
    assert block["a"].tolist() == [-1, 0, 1]
    assert block["b"].tolist() == [5, 5, 6]


def test_held_out_rows_by_the_scales_of_others(table):
    summary = column_summary(table)
    held_out = rows(500, seed=2)
    got = joined(standardize(held_out, ["km"], summary))["km"]
    mean, sd = table["km"].mean(), table["km"].std(ddof=1)
    np.testing.assert_allclose(got, (held_out["km"] - mean) / sd, atol=1e-12)


@pytest.fixture
def coded(tmp_path):
    """A source with a column of keys, and one of times."""
    columns = {"t": pa.array([1, 2, 3], pa.timestamp("s")), "carrier": ["AA", "UA", "AA"]}
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    return parquet_source(tmp_path)


def test_keys_and_times(coded):
    source = standardize(coded, ["t"])
    assert source.categories["carrier"].tolist() == ["AA", "UA"]
    assert source.units == {"t": "s since 1970-01-01"}
    assert source.scales == {"t": (2.0, 1.0)}
    assert StreamingDataset(source, batch_size=3).categories["carrier"].tolist() == ["AA", "UA"]
    with pytest.raises(TypeError, match=r"\['carrier'\] hold codes"):
        standardize(coded, ["carrier"])


def test_other_rows_are_recoded_and_then_put_on_the_scales(coded):
    own = Batches(
        standardize(coded, ["t"]), batch_size=2, dtype="float64", preprocess_fn=None, cycle=True
    )
    other = {
        "carrier": np.array(["UA", "AA"], dtype=object),
        "t": np.array([4, 5], "M8[s]").astype("M8[us]"),
    }
    [[[batch]]] = own.like(other).all_rows()
    assert batch.tolist() == [[2, 1], [3, 0]]
    with pytest.raises(TypeError, match="'x': not numeric"):
        numbers = {"x": np.arange(3), "y": np.arange(3)}
        own = Batches(
            standardize(numbers, ["x"]),
            batch_size=2,
            dtype="float64",
            preprocess_fn=lambda block: block,
            cycle=True,
        )
        list(own.like({"x": np.array(["1", "2"]), "y": np.arange(2)}).all_rows())


@pytest.mark.parametrize(
    ("source", "columns", "error", "message"),
    [
        ({"x": np.ones(3), "y": np.arange(3)}, ["y", "x"], ValueError, r"\['x'\] are constant, 1"),
        (
            {"x": [0.0, 1.7e308, 1.0]},
            ["x"],
            ValueError,
            r"no sd that a float holds.* 0 to 1.7e\+308",
        ),
        ({"x": np.arange(3)}, ["x", "z"], ValueError, r"no column\(s\) \['z'\].* has \['x'\]"),
        ({"x": np.arange(3)}, "x", TypeError, r"sequence of names, e.g. \['x'\]"),
        (np.ones((3, 2)), ["x"], TypeError, r"pandas.DataFrame\(array, columns="),
    ],
)
def test_what_cannot_be_standardised_is_refused(source, columns, error, message):
    with pytest.raises(error, match=message):
        standardize(source, columns)


def test_twice_is_refused(table):
    once = shuffle_buffer(standardize(table, ["km"]), buffer_size=10, batch_size=10)
    with pytest.raises(ValueError, match=r"standardised already, .*\['km'\]"):
        standardize(once, ["hour"])
    with pytest.raises(ValueError, match=r"summary has no column\(s\) \['km'\]"):
        standardize(table, ["km"], column_summary({"x": np.arange(3)}))


def test_a_shuffle_on_disk_would_lose_the_scales(table, tmp_path):
    with pytest.raises(TypeError, match=r"standardize\(pre_shuffle\(rows, "):
        pre_shuffle(standardize(table, ["km"]), tmp_path / "shuffled", progressbar=False)
    assert not list(tmp_path.iterdir())


def test_a_position_is_one_with_the_same_scales(files):
    def stream(summary=None):
        # Without a seed: that of the state is taken.
        raw = parquet_source(files, shuffle_row_groups=True)
        source = standardize(raw, ["km"], summary)
        return StreamingDataset(source, batch_size=128, check_order="ignore")

    one = stream()
    for _ in range(10):
        one.advance()
    state = one.state_dict()
    two = stream()
    two.load_state_dict(state)
    np.testing.assert_array_equal(next(one), next(two))
    other = column_summary({"km": np.array([0.0, 1.0])})
    with pytest.raises(ValueError, match=r"source\.scales\.km"):
        stream(other).load_state_dict(state)


def test_order_is_reported_past_the_scales(files):
    raw = parquet_source(files)
    report, of_raw = (order_report(s, batch_size=500) for s in (standardize(raw, ["km"]), raw))
    pd.testing.assert_frame_equal(report.table, of_raw.table)


def fitted(table, source, names=("km", "hour"), sd=100.0):
    """A linear regression, by Laplace's method, which is exact here."""
    ds = StreamingDataset(source, batch_size=500, check_order="ignore")
    with pm.Model(coords={"column": list(names)}) as model:
        alpha = pm.Normal("alpha", 0, 10 * sd)
        beta = pm.Normal("beta", 0, sd, dims="column")
        mu = alpha + sum(beta[i] * ds[name] for i, name in enumerate(names))
        pm.Deterministic("mu", mu)
        pm.Normal("y", mu, 2, observed=ds["y"], total_size=ds.total_size)
        return model, pm.fit(method="laplace", progressbar=False)


@pytest.fixture(scope="module")
def fit(table):
    return fitted(table, standardize(table, ["km", "hour"]))


def test_coefficients_undone_are_those_of_the_raw_columns(table, fit):
    """Against least squares on raw columns; the prior's share is 1e-5 of the information."""
    _, approx = fit
    trace = approx.sample(4000, random_seed=1)
    scales = standardize(table, ["km", "hour"]).scales
    undone = unstandardize(trace, scales, slopes="beta", intercept="alpha")
    x = np.column_stack([np.ones(N), table["km"], table["hour"]])
    cov = 4 * np.linalg.inv(x.T @ x)
    true = cov @ x.T @ table["y"] / 4
    draws = np.column_stack([undone["alpha"].values.ravel(), undone["beta"].values.reshape(-1, 2)])
    assert (np.abs(draws.mean(axis=0) - true) < 4 * np.sqrt(np.diag(cov) / 4000)).all()
    # Sds and correlations: the draws whitened by the exact covariance.
    whitened = np.linalg.solve(np.linalg.cholesky(cov), (draws - true).T)
    np.testing.assert_allclose(np.cov(whitened), np.eye(3), atol=5 * np.sqrt(2 / 4000))


def test_undone_draw_by_draw_with_groups_and_columns_without_scales():
    rng = np.random.default_rng(1)
    coords = {"column": ["a", "b", "c"], "group": ["g", "h"]}
    posterior = xr.Dataset(
        {
            "alpha": (("chain", "draw"), rng.normal(size=(2, 5))),
            "beta": (("chain", "draw", "group", "column"), rng.normal(size=(2, 5, 2, 3))),
            "tau": (("chain", "draw"), rng.normal(size=(2, 5))),
        },
        coords=coords,
    )
    scales = {"a": (10.0, 2.0), "b": (-3.0, 0.5)}
    undone = unstandardize(posterior, scales, slopes="beta", intercept="alpha")
    raw = xr.DataArray(
        rng.normal(size=(7, 3)), dims=("row", "column"), coords={"column": ["a", "b", "c"]}
    )
    scaled = raw.copy()
    for name, (mean, sd) in scales.items():
        scaled.loc[:, name] = (raw.loc[:, name] - mean) / sd
    xr.testing.assert_allclose(
        undone["alpha"] + (undone["beta"] * raw).sum("column"),
        posterior["alpha"] + (posterior["beta"] * scaled).sum("column"),
    )
    assert undone["beta"].dims == posterior["beta"].dims
    assert undone["alpha"].dims == ("chain", "draw", "group")
    xr.testing.assert_identical(undone["tau"], posterior["tau"])


def test_what_cannot_be_undone_is_refused():
    posterior = xr.Dataset(
        {
            "alpha": (("chain", "draw"), np.ones((1, 2))),
            "b": (("chain", "draw", "j"), np.ones((1, 2, 1))),
        },
        coords={"j": ["x"]},
    )
    with pytest.raises(KeyError, match="no variable 'beta'"):
        unstandardize(posterior, {"x": (0.0, 1.0)}, slopes="beta", intercept="alpha")
    with pytest.raises(ValueError, match=r"pm.Model\(coords={\"column\": \['z'\]}\)"):
        unstandardize(posterior, {"z": (0.0, 1.0)}, slopes="b", intercept="alpha")


def test_other_rows_are_put_on_the_models_scales(table, fit, tmp_path):
    """Raw rows, and rows by the same scales: held-out densities and predictions are the same."""
    model, approx = fit
    held_out, summary = rows(3000, seed=2), column_summary(table)
    raw = log_predictive(approx, held_out, random_seed=1, progressbar=False)
    scaled = standardize(held_out, ["km", "hour"], summary)
    same = log_predictive(approx, scaled, random_seed=1, progressbar=False)
    assert raw.elpd == same.elpd
    # Of a normal density with sd 2, about its own mean.
    assert raw.elpd / 3000 == pytest.approx(-np.log(2) - 0.5 * np.log(2 * np.pi) - 0.5, abs=0.06)
    file = tmp_path / "predicted.parquet"
    new = {"km": np.array([0.0, 1000.0]), "hour": np.array([0, 12])}
    predict(approx, new, file, var_name="mu", progressbar=False, random_seed=1)
    np.testing.assert_allclose(pq.read_table(file)["mean"], [3, 7], atol=0.3)
    with model_of_rows(model, held_out) as in_memory:
        np.testing.assert_allclose(
            in_memory["stream"].eval()[:, 0], expected_by(held_out["km"], table["km"]), rtol=1e-6
        )


def expected_by(values, of):
    return (values - of.mean()) / of.std(ddof=1)


def test_rows_by_other_scales_are_refused(table, fit):
    _, approx = fit
    other = standardize(rows(3000, seed=2), ["km", "hour"])
    with pytest.raises(ValueError, match=r"standardised by other scales.*Pass it as it is"):
        log_predictive(approx, other, progressbar=False)
    with pytest.raises(TypeError, match="columns are found by name"):
        log_predictive(approx, np.ones((10, 4)), progressbar=False)
    raw = Batches(table, batch_size=10, dtype="float64", preprocess_fn=None, cycle=True)
    with pytest.raises(ValueError, match="than the model's rows, which are not"):
        raw.like(other)


def test_docstrings_run():
    import doctest

    assert doctest.testmod(sys.modules[standardize.__module__]).failed == 0
