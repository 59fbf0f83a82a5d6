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

import warnings

import numpy as np
import pytest

from arviz_base import from_dict

import pymc as pm

from pymc.variational import predict as predict_module
from pymc.variational import rows_at_draws
from pymc.variational.streaming import StreamingDataset, predict

pq = pytest.importorskip("pyarrow.parquet")

N, S = 1001, 400
RNG = np.random.default_rng(1)
TABLE = {"x": RNG.normal(size=N), "group": RNG.integers(0, 3, N), "y": RNG.normal(size=N)}
NEW = {"group": TABLE["group"], "x": TABLE["x"], "more": np.zeros(N)}  # and no y
DRAWS = {"slope": RNG.normal(2, 0.01, (1, S)), "level": RNG.normal([0, 10, -5], 0.01, (1, S, 3))}
POSTERIOR = from_dict({"posterior": DRAWS})
QUIET = {"n_draws": S, "progressbar": False, "random_seed": 1}


@pytest.fixture(scope="module")
def model():
    ds = StreamingDataset(TABLE, batch_size=100, check_order="ignore")
    with pm.Model() as model:
        slope, level = pm.Normal("slope"), pm.Normal("level", shape=3)
        mu = pm.Deterministic("mu", level[ds["group"]] + slope * ds["x"])
        pm.Normal("y", mu, 0.5, observed=ds["y"], total_size=N)
    return model


def columns_of(file):
    return {name: column.to_numpy() for name, column in zip(*columns_and_names(file))}


def columns_and_names(file):
    table = pq.read_table(file)
    return table.column_names, table.columns


def test_values_of_new_rows_are_drawn(model, tmp_path):
    file = tmp_path / "predicted.parquet"
    predicted = predict(POSTERIOR, NEW, file, model=model, **QUIET)
    assert (predicted.n_rows, predicted.columns) == (N, ("mean", "sd", "5%", "50%", "95%"))
    columns = columns_of(file)
    expected = np.array([0, 10, -5])[NEW["group"]] + 2 * NEW["x"]
    errors = (columns["mean"] - expected) / (0.5 / S**0.5)
    assert np.abs(errors).max() < 5.5 and 0.9 < errors.std() < 1.1
    np.testing.assert_allclose(np.mean(columns["sd"]), 0.5, rtol=0.02)
    np.testing.assert_allclose(np.mean(columns["95%"] - columns["50%"]), 0.5 * 1.645, rtol=0.02)
    np.testing.assert_allclose(np.mean(columns["50%"] - columns["5%"]), 0.5 * 1.645, rtol=0.02)
    assert [path.name for path in tmp_path.iterdir()] == ["predicted.parquet"]


def test_a_deterministic_is_computed_at_the_draws(model, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_module, "GROUP_ROWS", 300)
    file = tmp_path / "mu.parquet"
    predict(POSTERIOR, NEW, file, model=model, var_name="mu", quantiles=[0.025], **QUIET)
    mu = DRAWS["level"][0][:, NEW["group"]] + DRAWS["slope"][0][:, None] * NEW["x"]
    columns = columns_of(file)
    assert list(columns) == ["mean", "sd", "2.5%"]
    np.testing.assert_allclose(columns["mean"], mu.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(columns["sd"], mu.std(axis=0), rtol=1e-8)
    np.testing.assert_allclose(columns["2.5%"], np.quantile(mu, 0.025, axis=0), rtol=1e-10)


def test_the_file_does_not_depend_on_the_number_of_threads(model, tmp_path, monkeypatch):
    tables = []
    for n_threads in (1, 4):
        monkeypatch.setattr(rows_at_draws, "default_threads", lambda: n_threads)
        predict(POSTERIOR, NEW, tmp_path / f"{n_threads}.parquet", model=model, **QUIET)
        tables.append(pq.read_table(tmp_path / f"{n_threads}.parquet"))
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"x": NEW["x"]}, r"\['group'\] are not among \['x'\]"),
        (NEW | {"x": np.r_[NEW["x"][:-1], np.nan]}, "'x': 1 NaN"),
        (NEW | {"group": np.r_[NEW["group"][:-1], 3]}, "value 3 as an index into `level`"),
    ],
)
def test_what_goes_wrong_leaves_no_file(model, tmp_path, source, message):
    with pytest.raises(ValueError, match=message):
        predict(POSTERIOR, source, tmp_path / "predicted.parquet", model=model, **QUIET)
    assert not list(tmp_path.iterdir())


def test_a_file_is_not_written_over(model, tmp_path):
    file = tmp_path / "predicted.parquet"
    file.write_text("precious")
    with pytest.raises(FileExistsError, match=r"predicted.parquet exists"):
        predict(POSTERIOR, NEW, file, model=model, **QUIET)
    assert file.read_text() == "precious"


def test_a_row_with_several_values_is_refused(tmp_path):
    ds = StreamingDataset(np.zeros((100, 2)), batch_size=10, check_order="ignore")
    with pm.Model() as model, warnings.catch_warnings():
        pm.Normal("y", pm.Normal("slope"), 1, observed=ds.as_tensor(), total_size=100)
        with pytest.raises(ValueError, match=r"values of shape \(2,\).*pm.Deterministic"):
            predict(POSTERIOR, np.zeros((9, 2)), tmp_path / "y.parquet", **QUIET)
