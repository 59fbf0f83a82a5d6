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

import numpy as np
import pandas as pd
import pytest

import pymc as pm

from pymc.variational.streaming import StreamingDataset, model_of_rows

N = 1000
GROUPS = ["one", "two", "three"]


def columns_of(seed, n=N):
    rng = np.random.default_rng(seed)
    x, g = rng.normal(size=n), rng.integers(3, size=n)
    return {"x": x, "g": g, "y": (rng.random(n) < 1 / (1 + np.exp(-x))).astype(int)}


def model_on(columns, n_rows, **observed):
    with pm.Model(coords={"group": GROUPS, "row": range(n_rows)}) as model:
        sd = pm.HalfNormal("sd", initval=0.5)
        effect = pm.Normal("effect", 0, sd, dims="group")
        logit = pm.Deterministic("logit", effect[columns["g"]] + columns["x"], dims="row")
        pm.Bernoulli("y", logit_p=logit, observed=columns["y"], dims="row", **observed)
    return model


@pytest.fixture(scope="module")
def streamed():
    ds = StreamingDataset(columns_of(1), batch_size=64, check_order="ignore")
    return model_on(ds, 64, total_size=N)


def test_is_the_model_of_data_in_memory(streamed):
    columns = columns_of(2, 333)
    table = pd.DataFrame(columns)[["y", "g", "x"]].assign(name="a string, which is not read")
    found, expected = model_of_rows(streamed, table), model_on(columns, 333)
    assert found.named_vars.keys() - {"stream"} == expected.named_vars.keys()
    assert found.named_vars_to_dims["logit"] == ("row",)
    assert found.coords == {"group": tuple(GROUPS), "row": None}
    assert found.dim_lengths["row"].eval() == 333
    assert found.eval_rv_shapes() == expected.eval_rv_shapes()
    point = expected.initial_point()
    assert {k: float(np.sum(v)) for k, v in found.initial_point().items()} == {
        k: float(np.sum(v)) for k, v in point.items()
    }
    np.testing.assert_allclose(found.compile_logp()(point), expected.compile_logp()(point))
    # What it was made of is as it was.
    assert streamed.rvs_to_initial_values[streamed["sd"]] == 0.5
    assert streamed["y"].shape.eval() == 64


def test_other_rows_take_the_place_of_rows(streamed):
    found, columns = model_of_rows(streamed, columns_of(2, 10)), columns_of(3, 20)
    rows = np.column_stack([columns[name] for name in "xgy"])
    with found:
        pm.set_data({"stream": rows})
    expected = model_on(columns, 20)
    point = expected.initial_point()
    np.testing.assert_allclose(found.compile_logp()(point), expected.compile_logp()(point))


def test_predicts_rows_without_labels(streamed):
    x = np.array([-10.0, 0.0, 10.0])
    found = model_of_rows(streamed, {"x": x, "g": [0, 0, 0]})
    draws = pm.draw(found["y"], 200, random_seed=1)
    assert draws.shape == (200, 3)
    means = draws.mean(axis=0)
    assert means[0] < 0.1 and 0.3 < means[1] < 0.7 and means[2] > 0.9
    with found:
        trace = pm.sample_prior_predictive(3, random_seed=1)
    assert "observed_data/y" not in trace and trace.prior_predictive["y"].shape == (1, 3, 3)
    with pytest.raises(AssertionError, match="rows have no 'y'"):
        found.compile_logp()(found.initial_point())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"g": None}, r"the columns \['g'\] are not among \['x', 'y'\]"),
        ({"x": np.full(5, np.nan)}, "column 'x': 5 NaN"),
        ({"g": np.full(5, 3)}, "`effect`, which has 3 entries"),
        ({"g": np.full(5, 0.5)}, "column 'g'"),
    ],
)
def test_rows_are_checked_as_those_of_the_stream(streamed, change, message):
    columns = columns_of(2, 5) | change
    with pytest.raises(ValueError, match=message):
        model_of_rows(streamed, {k: v for k, v in columns.items() if v is not None})


def test_unnamed_columns_and_minibatches():
    rows = np.column_stack(list(columns_of(1).values()))
    batch = pm.Minibatch(lambda: [rows], batch_size=50, check_order="ignore")
    with pm.Model() as model:
        slope = pm.Normal("slope")
        pm.Normal("y", slope * batch[:, 0], 1, observed=batch[:, 2], total_size=N)
    found = model_of_rows(model, rows[:7])
    expected = -0.5 * (rows[:7, 2] - 0.3 * rows[:7, 0]) ** 2 - 0.5 * np.log(2 * np.pi)
    logp = found.compile_logp(vars=found.observed_RVs)({"slope": 0.3})
    np.testing.assert_allclose(logp, expected.sum())


def test_tuples_are_data_each():
    columns = columns_of(1)
    ds = StreamingDataset((columns["x"], columns["y"]), batch_size=50, check_order="ignore")
    x, y = ds.as_tensor()
    with pm.Model() as model:
        slope = pm.Normal("slope")
        pm.Bernoulli("y", logit_p=slope * x, observed=y, total_size=N)
    found = model_of_rows(model, (columns["x"][:7], columns["y"][:7]))
    assert {data.name for data in found.data_vars} == {"stream.0", "stream.1"}
    assert found["y"].shape.eval() == 7


def test_data_in_memory_beside_stay_as_they_are():
    ds = StreamingDataset({"y": np.arange(100.0)}, batch_size=10, check_order="ignore")
    with pm.Model() as model:
        mu = pm.Normal("mu")
        pm.Normal("y", mu, 1, observed=ds["y"], total_size=100)
        pm.Normal("beside", mu, 1, observed=np.zeros(2), total_size=20)
    found = model_of_rows(model, {"y": np.ones(3)})
    logp = found.compile_logp(vars=found.observed_RVs, sum=False)({"mu": 1.0})
    sums = {rv.name: values.sum() for rv, values in zip(found.observed_RVs, logp)}
    one = -0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(sums["y"], 3 * one)
    np.testing.assert_allclose(sums["beside"], 20 * (one - 0.5))


def test_dim_of_a_deterministic_alone():
    ds = StreamingDataset({"y": np.arange(100.0)}, batch_size=10, check_order="ignore")
    with pm.Model(coords={"row": range(10)}) as model:
        mu = pm.Deterministic("mu", pm.Normal("slope") * ds["y"], dims="row")
        pm.Normal("y", mu, 1, observed=ds["y"], total_size=100)
    found = model_of_rows(model, {"y": np.ones(3)})
    assert found.dim_lengths["row"].eval() == 3
    assert found.coords["row"] is None


def test_refusals():
    ds = StreamingDataset({"y": np.arange(100.0)}, batch_size=10, check_order="ignore")
    with pm.Model() as model:
        mu = pm.Normal("mu")
        pm.Normal("y", mu, 1, observed=ds["y"], total_size=100)
    with pytest.raises(ValueError, match="no rows"):
        model_of_rows(model, {"y": np.zeros(0)})
    with model.copy() as potential:
        pm.Potential("extra", ds["y"].sum() * potential["mu"])
    with pytest.raises(ValueError, match="`extra` uses rows"):
        model_of_rows(potential, {"y": np.ones(3)})
    batch = pm.Minibatch(np.arange(50.0), batch_size=10)
    with model.copy() as both:
        pm.Normal("other", both["mu"], 1, observed=batch, total_size=50)
    with pytest.raises(ValueError, match=r"one stream, and no pm\.Minibatch"):
        model_of_rows(both, {"y": np.ones(3)})
    with pm.Model() as ones:
        mu = pm.Normal("mu")
        pm.Normal("y", mu * ds["y"], 1, observed=np.zeros(10), total_size=100)
    with pytest.raises(ValueError, match="`y` observes data of the length of a batch"):
        model_of_rows(ones, {"y": np.ones(3)})


def test_only_models_with_one_stream():
    with pm.Model() as model:
        pm.Normal("y", observed=np.zeros(3))
    with pytest.raises(ValueError, match="observes one stream"):
        model_of_rows(model, np.zeros(3))
