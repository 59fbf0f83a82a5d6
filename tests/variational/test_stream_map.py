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

import logging

import numpy as np
import pytest

import pymc as pm

from pymc.variational import laplace
from pymc.variational.streaming import StreamingDataset

pytestmark = [
    pytest.mark.filterwarnings("ignore:`find_MAP` will return:FutureWarning"),
    pytest.mark.filterwarnings("error::UserWarning"),
]
quick = {
    "progressbar": False,
    "jitter": False,
    "random_seed": 1,
    "compile_kwargs": {"mode": "FAST_COMPILE"},
}
rng = np.random.default_rng(1)
N = 2050
ROWS = {"x": rng.normal(size=N)}
ROWS["y"] = rng.normal(1 + 0.5 * ROWS["x"], 2.0)


@pytest.fixture(autouse=True)
def small_sample(monkeypatch):
    """Make samples so small that passes over all rows are needed."""
    monkeypatch.setattr(laplace, "SAMPLE_ROWS", 1200)


def model_of(streamed):
    rows, size = ROWS, {}
    with pm.Model() as model:
        if streamed:
            rows = StreamingDataset(ROWS, batch_size=500, check_order="ignore")
            size = {"total_size": rows.total_size}
        a, b = pm.Normal("a", 0, 5), pm.Normal("b", 0, 5, shape=1)
        sigma = pm.HalfNormal("sigma", 5)
        pm.Normal("y", a + b[0] * rows["x"], sigma, observed=rows["y"], **size)
    return model


@pytest.fixture(scope="module")
def in_memory():
    """MAP and covariance, as upstream finds them in memory."""
    return pm.find_MAP(
        "trust-ncg",
        model=model_of(streamed=False),
        compute_hessian=True,
        return_inferencedata=True,
        **quick,
    )


@pytest.fixture(scope="module")
def streamed_model():
    return model_of(streamed=True)


METHODS = {
    "L-BFGS-B": {},
    "nelder-mead": {},
    "powell": {},
    "BFGS": {},
    "CG": {},
    "Newton-CG": {"use_hess": True},
    "TNC": {},
    "COBYLA": {},
    "SLSQP": {},
    "trust-constr": {},
    "dogleg": {},
    "trust-ncg": {"use_hessp": True},
    "trust-exact": {},
    "basinhopping": {"niter": 1},
}


@pytest.mark.parametrize("method", METHODS)
def test_map_of_all_rows(method, streamed_model, in_memory, caplog):
    with caplog.at_level(logging.INFO):
        idata = pm.find_MAP(
            method, model=streamed_model, return_inferencedata=True, **METHODS[method], **quick
        )
    sds = np.sqrt(np.diag(in_memory.fit.covariance_matrix))
    apart = idata.fit.mean_vector - in_memory.fit.mean_vector
    assert np.all(np.abs(apart) < 0.02 * sds)
    np.testing.assert_allclose(
        idata.optimizer_result.fun, in_memory.optimizer_result.fun, rtol=1e-6
    )
    assert "passes over 2,050 rows, from the optimum of a random sample of 1,200" in caplog.text


def test_passes_are_few_and_end_in_the_covariance(streamed_model, in_memory, caplog):
    with caplog.at_level(logging.INFO):
        idata = pm.find_MAP(
            model=streamed_model, compute_hessian=True, return_inferencedata=True, **quick
        )
    exact = in_memory.fit.covariance_matrix
    np.testing.assert_allclose(idata.fit.covariance_matrix, exact, atol=1e-3 * exact.max())
    assert idata.optimizer_result.success
    assert any(f"find_MAP: {n} passes" in caplog.text for n in (2, 3, 4, 5))


def test_rows_that_fit_are_read_once(streamed_model, in_memory, caplog, monkeypatch):
    monkeypatch.setattr(laplace, "SAMPLE_ROWS", N)
    with caplog.at_level(logging.INFO):
        point = pm.find_MAP(model=streamed_model, **quick)
    assert "find_MAP: 2,050 rows, which were read once" in caplog.text
    np.testing.assert_allclose(point["a"], in_memory.posterior["a"].item(), atol=1e-3)


def test_variables_that_are_held_stay_where_they_start(streamed_model):
    for vars, held in (("ab", "sigma"), (("a", "sigma"), "b")):
        initvals = {"sigma": 3.0, "b": np.array([0.1])}
        point, exact = (
            pm.find_MAP(model=model, vars=[model[v] for v in vars], initvals=initvals, **quick)
            for model in (streamed_model, model_of(streamed=False))
        )
        np.testing.assert_allclose(point[held], initvals[held])
        for name in point:
            np.testing.assert_allclose(point[name], exact[name], atol=2e-3)


def test_jitter(streamed_model, in_memory):
    kwargs = quick | {"jitter": True}
    point = pm.find_MAP(model=streamed_model, **kwargs)
    np.testing.assert_allclose(point["a"], in_memory.posterior["a"].item(), atol=1e-3)


def test_a_start_without_density_is_refused():
    with pm.Model():
        ds = StreamingDataset(ROWS, batch_size=500, check_order="ignore")
        u = pm.Uniform("u", 0, 1, default_transform=None)
        pm.Normal("y", u, 1, observed=ds["y"], total_size=ds.total_size)
        with pytest.raises(pm.exceptions.SamplingError, match="Initial evaluation"):
            pm.find_MAP(initvals={"u": 2.0}, **quick)


def test_discrete_variables():
    with pm.Model():
        ds = StreamingDataset(ROWS, batch_size=500, check_order="ignore")
        k = pm.DiscreteUniform("k", -20, 20, initval=7)
        pm.Normal("y", k, 1, observed=ds["y"], total_size=ds.total_size)
        point = pm.find_MAP("powell", vars=[k], **quick)
    assert point["k"] == 1


def test_bounds_hold(streamed_model):
    point = pm.find_MAP(
        model=streamed_model, bounds=[(None, 0.5), (None, None), (None, None)], **quick
    )
    np.testing.assert_allclose(point["a"], 0.5)


def test_samplers_that_start_at_the_map_stay_refused(streamed_model):
    for init in ("map", "jitter+map", "advi_map"):
        with streamed_model, pytest.raises(ValueError, match="uses the stream"):
            pm.init_nuts(init=init, progressbar=False)
