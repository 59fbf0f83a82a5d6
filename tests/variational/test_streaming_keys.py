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
"""Keys, times and lists in a model: names, coords, predictions, and the posterior."""

import numpy as np
import pandas as pd
import pytensor.tensor as pt
import pytest

import pymc as pm

from pymc.streams.order.report import order_report
from pymc.variational.streaming import (
    StreamingDataset,
    log_predictive,
    model_of_rows,
    parquet_source,
    predict,
    predictive_check,
    shuffle_buffer,
)

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

# In no order, and none of them in all files.
CARRIERS = np.array(["UA", "B6", "AA", "É7", "DL"], dtype=object)
NOON = 376_956  # of the day of the flights, in hours since 1970-01-01
MEANS = np.array([0.3, -0.5, 1.0, 0.0, 0.6])


@pytest.fixture(scope="module")
def flights(tmp_path_factory):
    """Rows of 5 carriers, in 4 files; a fifth file is held out."""
    folder = tmp_path_factory.mktemp("flights")
    rng = np.random.default_rng(1)
    for i in range(5):
        carrier = rng.choice(np.delete(np.arange(5), i % 4), 1000, p=[0.4, 0.3, 0.2, 0.1])
        hour = rng.integers(0, 24, 1000)
        time = np.datetime64("2013-01-01", "s") + (hour * 3600).astype("m8[s]")
        late = rng.normal(MEANS[carrier] + (hour - 12) / 24, 1.0)
        columns = {"carrier": CARRIERS[carrier], "time": time, "late": late}
        place = folder / ("train" if i < 4 else "held-out")
        place.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), place / f"{i}.parquet", row_group_size=100)
    return folder


def model_of(coords, carrier, hour, late, total_size=None):
    with pm.Model(coords=coords) as model:
        spread = pm.HalfNormal("spread", 1.0)
        effect = pm.Normal("effect", 0.0, spread, dims="carrier")
        slope = pm.Normal("slope", 0.0, 1.0)
        pm.Normal("late", effect[carrier] + slope * hour, 1.0, observed=late, total_size=total_size)
    return model


@pytest.fixture(scope="module")
def fitted(flights):
    """A model on a stream of string keys, and its fit."""
    source = parquet_source(flights / "train", time_unit="h", unknown="other")
    buffer = shuffle_buffer(source, buffer_size=4000, batch_size=500, seed=1)
    ds = StreamingDataset(buffer, batch_size=500)
    assert ds.categories["carrier"].tolist() == [*sorted(CARRIERS), "other"]
    assert ds.units == {"time": "h since 1970-01-01"}
    hour = (ds["time"] - NOON) / 24
    model = model_of(ds.categories, ds["carrier"], hour, ds["late"], ds.total_size)
    with model:
        return model, pm.fit(method="laplace", progressbar=False)


def test_string_keys_give_the_posterior_of_integer_codes_in_memory(flights, fitted):
    _, approx = fitted
    frame = pd.concat(map(pd.read_parquet, sorted((flights / "train").glob("*.parquet"))))
    codes, names = pd.factorize(frame["carrier"], sort=True)
    hour = (frame["time"].dt.hour.to_numpy() - 12) / 24
    coords = {"carrier": [*names, "other"]}
    with model_of(coords, codes, hour, frame["late"].to_numpy()):
        in_memory = pm.fit(method="laplace", progressbar=False)
    mean, reference = approx.mean.eval(), in_memory.mean.eval()
    sd, reference_sd = (np.sqrt(np.diag(each.cov.eval())) for each in (approx, in_memory))
    assert np.abs((mean - reference) / reference_sd).max() < 0.02
    np.testing.assert_allclose(sd, reference_sd, rtol=0.01)
    # The effects are those of the carriers that the coords name.
    effect = approx.sample(200, random_seed=1).posterior["effect"].mean(("chain", "draw"))
    for name, expected in zip(CARRIERS, MEANS):
        assert float(effect.sel(carrier=name)) == pytest.approx(expected, abs=0.15)


def test_effects_of_a_key_that_sum_to_zero(flights):
    source = parquet_source(flights / "train", columns=["carrier", "late"])
    ds = StreamingDataset(source, batch_size=500, check_order="ignore")
    quick = {"mode": "FAST_COMPILE"}
    with pm.Model(coords=ds.categories) as model:
        effect = pm.ZeroSumNormal("effect", 1.0, dims="carrier")
        pm.Normal("late", effect[ds["carrier"]], 1.0, observed=ds["late"], total_size=ds.total_size)
        approx = pm.fit(method="laplace", progressbar=False, compile_kwargs=quick, random_seed=1)
    # The posterior is normal, in an orthonormal basis of what sums to zero.
    frame = pd.concat(map(pd.read_parquet, sorted((flights / "train").glob("*.parquet"))))
    late = frame.groupby("carrier")["late"]
    basis = np.linalg.svd(np.ones((1, 5)))[2][1:].T
    precision = np.eye(4) + (basis.T * late.size().to_numpy()) @ basis
    covariance = basis @ np.linalg.inv(precision) @ basis.T
    backward = model.rvs_to_transforms[effect].backward(pt.as_tensor(np.eye(4))).eval(**quick)
    error = approx.mean.eval(**quick) @ backward - covariance @ late.sum().to_numpy()
    assert np.abs(error / np.sqrt(np.diag(covariance))).max() < 1e-6
    own = backward.T @ approx.cov.eval(**quick) @ backward
    np.testing.assert_allclose(own, covariance, rtol=1e-6)


def test_held_out_rows_are_scored_and_predicted_with_the_codes_of_the_model(
    flights, fitted, tmp_path
):
    model, approx = fitted
    frame = pd.read_parquet(flights / "held-out" / "4.parquet")
    few = frame[frame["carrier"].isin(["DL", "AA"])].reset_index(drop=True)
    pq.write_table(pa.Table.from_pandas(few), tmp_path / "few.parquet")
    own = parquet_source(tmp_path / "few.parquet", time_unit="ms")
    assert own.categories["carrier"].tolist() == ["AA", "DL"]
    scores = [
        log_predictive(approx, source=source, model=model, random_seed=1, progressbar=False).elpd
        for source in (few, own)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-12)
    assert scores[0] / len(few) > -1.5
    # One that was not seen has the effect of any carrier, the population's, whose sd comes on top.
    rows = frame[:2].assign(carrier=["new", "AA"])
    file = tmp_path / "predicted.parquet"
    [block] = predict(approx, rows, file, n_draws=2000, random_seed=1, progressbar=False)
    effect = approx.sample(2000, random_seed=2).posterior["effect"].sel(carrier="other")
    assert block["sd"] == pytest.approx([np.sqrt(1 + float((effect**2).mean())), 1.0], rel=0.08)
    hour = rows["time"].dt.hour.to_numpy()
    assert block["mean"] == pytest.approx([0, 1] + (hour - 12) / 24, abs=0.15)


def test_groups_of_replicated_data_are_called_by_their_keys(flights, fitted):
    _, approx = fitted
    frame = pd.concat(map(pd.read_parquet, sorted((flights / "train").glob("*.parquet"))))
    check = predictive_check(approx, "carrier", n_draws=20, random_seed=1, progressbar=False)
    means = check["observed"].xs("mean", level=1)
    assert means.index.tolist() == sorted(CARRIERS)
    np.testing.assert_allclose(means, frame.groupby("carrier")["late"].mean().sort_index())


def test_a_key_that_the_model_does_not_know_is_named(flights, tmp_path):
    ds = StreamingDataset(parquet_source(flights / "train"), batch_size=100, check_order="ignore")
    rows = pd.DataFrame(
        {"carrier": ["UA", "new"], "time": [pd.Timestamp(0)] * 2, "late": [0.0] * 2}
    )
    with pm.Model(coords=ds.categories) as model:
        effect = pm.Normal("effect", 0.0, 1.0, dims="carrier")
        pm.Normal("late", effect[ds["carrier"]], observed=ds["late"], total_size=ds.total_size)
    with pytest.raises(ValueError, match="column 'carrier': the value 'new' is not among its 5"):
        model_of_rows(model, rows)


def test_a_preprocess_fn_that_names_its_columns(flights):
    source = parquet_source(flights / "train", time_unit="h")
    levels = source.categories["carrier"]

    def features(block):
        hour = (block["time"] - NOON) / 24
        columns = {f"is {level}": block["carrier"] == i for i, level in enumerate(levels)}
        columns |= {"late": block["late"], "carrier": block["carrier"]}
        return columns | {f"hour^{k}": hour**k for k in (1, 2, 3)}

    ds = StreamingDataset(source, batch_size=100, preprocess_fn=features, check_order="ignore")
    assert ds.columns == (
        *(f"is {level}" for level in levels),
        "late",
        "carrier",
        "hour^1",
        "hour^2",
        "hour^3",
    )
    ds.advance()
    assert ds["is AA"].dtype == "bool" and ds["carrier"].dtype == "int64"
    assert (ds["is AA"].eval() == (ds["carrier"].eval() == 0)).all()
    assert ds.categories["carrier"].tolist() == levels.tolist()


def test_lists_are_blocks_of_columns(tmp_path):
    rows = np.arange(12.0).reshape(4, 3)
    columns = {
        "y": [1, 2, 3, 4],
        "x": pa.array(rows.tolist(), pa.list_(pa.float64(), 3)),
        "n": [0] * 4,
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    ds = StreamingDataset(parquet_source(tmp_path), batch_size=2)
    assert ds.columns == ("y", "x[0]", "x[1]", "x[2]", "n")
    assert ds["x"].type.shape == (2, 3)
    np.testing.assert_array_equal(ds["x"].eval(), rows[:2])
    np.testing.assert_array_equal(ds["x[1]"].eval(), rows[:2, 1])
    with pytest.raises(KeyError, match="no column 'z'"):
        ds["z"]


def test_batches_of_pm_minibatch_hold_codes(flights):
    source = parquet_source(
        flights / "train", columns=["carrier", "late"], shuffle_row_groups=True, seed=1
    )
    batch = pm.Minibatch(source, batch_size=50)
    codes = batch.eval()[:, 0]
    assert set(codes) <= set(range(5)) and source.categories["carrier"].tolist() == sorted(CARRIERS)


def test_order_report_of_keys_and_times(tmp_path):
    rng = np.random.default_rng(1)
    time = np.datetime64("2013-01-01", "s") + np.arange(20_000).astype("m8[s]")
    key = np.sort(rng.choice(CARRIERS, 20_000))
    columns = {"key": key, "time": time, "x": rng.normal(size=20_000)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=1000)
    effects = order_report(parquet_source(tmp_path), batch_size=500).table["in order"]
    assert effects["key"] > 100 and effects["time"] > 100 and effects["x"] < 3
