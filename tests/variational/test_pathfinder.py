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
import warnings

import numpy as np
import pytest

from pytensor import config

import pymc as pm

from pymc.variational import laplace, pathfinder
from pymc.variational.fit_check import FitConvergenceWarning
from pymc.variational.lbfgs import Normal
from pymc.variational.streaming import StreamingDataset

quick = {"progressbar": False, "compile_kwargs": {"mode": "FAST_COMPILE"}}
rng = np.random.default_rng(1)
N = 410
X = rng.normal(size=N)
Y = (rng.random(N) < 1 / (1 + np.exp(-0.3 - X))).astype(float)


def fit(model, seed=1, **kwargs):
    return pm.fit(method="pathfinder", model=model, random_seed=seed, **quick | kwargs)


def logistic(data="stream"):
    with pm.Model() as model:
        rows, size = {"x": X, "y": Y}, {}
        if data == "stream":
            rows = StreamingDataset(rows, batch_size=100, check_order="ignore")
            size = {"total_size": rows.total_size}
        b = pm.Normal("b", 0, 3, shape=2)
        pm.Bernoulli("y", logit_p=b[0] + b[1] * rows["x"], observed=rows["y"], **size)
    return model


def normal_mean(observed, mean=lambda mu: mu):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 10)
        pm.Normal("y", mean(mu), 1, observed=observed)
    return model


def newton():
    """Mode of the logistic regression, and sds of its curvature."""
    design, q = np.column_stack([np.ones(N), X]), np.zeros(2)
    for _ in range(20):
        p = 1 / (1 + np.exp(-design @ q))
        precision = (design.T * p * (1 - p)) @ design + np.eye(2) / 9
        q = q + np.linalg.solve(precision, design.T @ (Y - p) - q / 9)
    return q, np.sqrt(np.diag(np.linalg.inv(precision)))


@pytest.fixture
def small_sample(monkeypatch):
    """Make samples so small that passes over all rows are needed."""
    monkeypatch.setattr(laplace, "SAMPLE_ROWS", 300)
    monkeypatch.setattr(pathfinder, "SEARCH_ROWS", 200)


@pytest.mark.parametrize("data", ["stream", "read once", "memory"])
def test_logistic_regression_against_newton_in_numpy(data, request, caplog):
    if data == "stream":
        request.getfixturevalue("small_sample")
    with caplog.at_level(logging.INFO):
        approx = fit(logistic("memory" if data == "memory" else "stream"), num_paths=2)
    mode, sds = newton()
    np.testing.assert_allclose((approx.mean.eval() - mode) / sds, 0, atol=0.15)
    np.testing.assert_allclose(approx.std.eval() / sds, 1, atol=0.1)
    where = {
        "stream": "a random sample of 300 rows, then in 3 passes over all 410",
        "read once": "410 rows, which were read once",
        "memory": "data in memory",
    }
    assert f"to 1 end, on {where[data]}" in caplog.text
    assert "Pareto k" in caplog.text


def test_normal_of_100_correlated_dimensions(fail_on_warning):
    factor = rng.normal(size=(100, 100))
    covariance = factor @ factor.T / 100 + 0.05 * np.eye(100)
    mean = np.linspace(-3, 3, 100)
    with pm.Model() as model:
        pm.MvNormal("x", mean, cov=covariance, shape=100)
    approx = fit(model, num_draws=5000)
    whitened = np.linalg.solve(
        np.linalg.cholesky(covariance), (approx.params[0].get_value() - mean).T
    )
    np.testing.assert_allclose(whitened.mean(axis=1), 0, atol=0.06)
    np.testing.assert_allclose(whitened.std(axis=1), 1, atol=0.05)
    # A log-density that is normalized, and its own approximation.
    np.testing.assert_allclose(approx.hist[-1], 0, atol=1e-4)
    assert approx.hist[0] > 100


def test_both_of_two_modes_get_their_share():
    with pm.Model() as model:
        components = [pm.Normal.dist(-3, 0.5), pm.Normal.dist(2, 0.2)]
        pm.Mixture("x", [0.3, 0.7], components)
    approx = fit(model, num_paths=12, num_draws=2000)
    draws = approx.params[0].get_value()
    np.testing.assert_allclose(np.mean(draws < 0), 0.3, atol=0.03)
    np.testing.assert_allclose(
        [draws[draws < 0].std(), draws[draws > 0].std()], [0.5, 0.2], rtol=0.1
    )


@pytest.mark.skipif(config.floatX == "float32", reason="paths end where float32 overflows")
def test_curvature_is_not_taken_where_it_makes_the_fit_worse():
    """The mode of a funnel is infinitely narrow; the path passes densities that are better."""
    with pm.Model() as model:
        v = pm.Normal("v", 0, 3)
        pm.Normal("x", 0, pm.math.exp(v / 2), shape=9)
    with pytest.warns(FitConvergenceWarning, match="Pareto k"):
        approx = fit(model)
    assert min(approx.hist) > 0
    assert abs(approx.mean.eval()[0]) < 5


@pytest.mark.parametrize("data", ["stream", "memory"])
def test_the_seed_decides(data, small_sample):
    model = logistic() if data == "stream" else normal_mean(X)
    one, same, other = (
        fit(model, seed, num_paths=2, num_draws=100).params[0].get_value() for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.all(one != other)


def test_paths_without_a_finite_start_are_told(monkeypatch):
    monkeypatch.setattr(pathfinder, "MAX_STARTS", 1)
    with pm.Model() as model:
        pm.Gamma("u", 1000, 100, default_transform=None, initval=1.0)
    with pytest.warns(FitConvergenceWarning, match=r"of 4 paths failed: .*not finite at the start"):
        fit(model)
    with pytest.raises(ValueError, match=r"none of 4 paths arrived.*another start"):
        fit(model, start={"u": -7.0})


def test_start_and_jitter():
    model = normal_mean(np.full(10, 3.0), mean=abs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for start in (-2.0, 2.0):
            approx = fit(model, start={"mu": start}, jitter=0.5)
            np.testing.assert_allclose(approx.mean.eval(), np.sign(start) * 3, rtol=0.02)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_paths": 0},
        {"num_draws": 0},
        {"num_elbo_draws": 1.5},
        {"maxcor": 0},
        {"jitter": -1},
        {"importance_sampling": "psir"},
    ],
)
def test_arguments_out_of_range_are_named(kwargs):
    [(name, value)] = kwargs.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        fit(normal_mean(np.zeros(3)), **kwargs)


def test_arguments_of_random_steps_are_refused():
    with pytest.raises(TypeError, match=r"pathfinder.* takes no obj_n_mc"):
        fit(normal_mean(np.zeros(3)), obj_n_mc=2)


def test_discrete_parameters_are_named():
    with pm.Model() as model:
        pm.Poisson("counts", 3)
    with pytest.raises(Exception, match=r"Discrete variables are not supported.*counts"):
        fit(model)


def test_streams_that_can_be_read_once_are_refused():
    with pm.Model() as model:
        batch = pm.Minibatch(iter([np.ones(100)]), batch_size=10)
        pm.Normal("y", pm.Normal("mu"), 1, observed=batch, total_size=100)
    with pytest.raises(ValueError, match="can be read only once"):
        fit(model)


def test_weights_are_those_of_one_mixture():
    """Two densities are at one mode, and one at the other: the modes have half of the mass each."""

    def logp(q):
        return np.logaddexp(-((q[:, 0] - 4) ** 2) / 2, -((q[:, 0] + 4) ** 2) / 2)

    normals = [
        Normal(np.array([mean]), np.array([sd]), np.zeros((1, 0)), np.zeros((0, 0)))
        for mean, sd in ((-4.0, 1.0), (-4.0, 1.5), (4.0, 1.2))
    ]
    fits = [pathfinder._Fit(normal, 0.0, logp, []) for normal in normals]
    drawn = pathfinder._weighted_draws(fits, 30_000, np.random.default_rng(1))
    assert len(drawn.q) == 30_000
    right = drawn.q[:, 0] > 0
    np.testing.assert_allclose(drawn.weights[right].sum(), 0.5, atol=0.02)
    # Their own means and covariances are then those of the modes.
    for fit, mean in zip(pathfinder._adapted(fits, drawn), (-4, -4, 4)):
        np.testing.assert_allclose(fit.normal.mean, mean, atol=0.2)
        np.testing.assert_allclose(fit.normal.factor, 1, atol=0.2)


def test_resampling_takes_draws_as_often_as_they_weigh():
    draws = np.arange(4.0)[:, None]
    taken = pathfinder._resampled(draws, np.array([0.5, 0.25, 0.25, 0]), 8, rng)
    np.testing.assert_array_equal(np.unique(taken, return_counts=True)[1], [4, 2, 2])


def test_eight_schools_against_nuts(fail_on_warning):
    """The normal densities along the paths have mean and sd of ``mu`` at 2 and 2."""
    sd = np.array([15, 10, 16, 11, 9, 11, 10, 18])
    with pm.Model() as model:
        mu, tau, z = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5), pm.Normal("z", shape=8)
        pm.Normal("y", mu + tau * z, sd, observed=np.array([28, 8, -3, 7, -1, 1, 18, 12]))
    approx = fit(model, num_draws=2000)
    # Of 40,000 draws with target_accept=0.95.
    np.testing.assert_allclose(approx.mean.eval()[:2], [4.39, 0.79], atol=0.25)
    np.testing.assert_allclose(approx.std.eval()[:2], [3.33, 1.18], rtol=0.1)


@pytest.fixture(scope="module")
def gamma():
    """A skewed posterior, and its approximation with and without weights."""
    with pm.Model() as model:
        pm.Gamma("sigma", 3, 2, shape=2)
    return model, *(
        fit(model, num_draws=3000, importance_sampling=kind, include_transformed=True)
        for kind in ("psis", None)
    )


def test_importance_sampling_mends_a_skewed_posterior(gamma):
    _, weighted, plain = gamma
    exact = 1.5
    means = [
        approx.sample(3000, random_seed=1).posterior["sigma"].mean(("chain", "draw"))
        for approx in (weighted, plain)
    ]
    np.testing.assert_allclose(means[0], exact, atol=0.05)
    assert np.all(np.abs(means[1] - exact) > 0.06)


def test_sample_takes_each_draw_once_before_one_again(gamma):
    _, _, approx = gamma
    for n_draws, n_different in ((1000, 1000), (3000, 3000), (4000, 3000)):
        taken = approx.sample(n_draws, random_seed=1).posterior["sigma"].values[0, :, 0]
        # In float32 a few are equal.
        np.testing.assert_allclose(len(np.unique(taken)), n_different, atol=5)
    assert "sigma_log__" in approx.state.mean


@pytest.mark.parametrize("importance_sampling", ["psis", None])
def test_a_few_draws(gamma, importance_sampling):
    approx = fit(gamma[0], num_draws=3, importance_sampling=importance_sampling)
    assert approx.params_dict["histogram"].get_value().shape[0] == 3


def test_advi_starts_at_variables_of_the_same_name():
    def model_of(*names):
        with pm.Model() as model:
            for name in names:
                pm.Normal("_" + name, {"a": 3.0, "b": -7.0}[name], 1)
        return model

    approx = pm.fit(method="laplace", model=model_of("a", "b"), progressbar=False)
    other = model_of("b", "a")
    started = pm.fit(0, method="advi", model=other, start=approx, progressbar=False)
    np.testing.assert_allclose(started.mean.eval(), [-7, 3], atol=1e-3)
    with pytest.raises(ValueError, match="both say where to start"):
        pm.fit(0, model=other, start=approx, init="mode", progressbar=False)
    with pytest.raises(ValueError, match="both say where to start"):
        pm.fit(0, model=other, start=approx, start_sigma={"_a": 1.0}, progressbar=False)


@pytest.mark.parametrize("method", ["advi", "fullrank_advi"])
def test_advi_starts_from_it(gamma, method):
    model, approx, _ = gamma
    started = pm.fit(0, method=method, model=model, start=approx, progressbar=False)
    np.testing.assert_allclose(started.mean.eval(), approx.mean.eval())
    np.testing.assert_allclose(started.std.eval(), approx.std.eval(), rtol=0.01)
    with pytest.raises(ValueError, match=r"start is an approximation.*'advi' and 'fullrank_advi'"):
        pm.fit(method="laplace", model=model, start=approx, progressbar=False)
    with pytest.raises(ValueError, match="approximation of other variables"):
        pm.fit(0, method=method, model=normal_mean(0.0), start=approx, progressbar=False)


def test_chains_start_from_it(gamma):
    model, approx, _ = gamma
    draws = approx.sample(2, random_seed=1).posterior.isel(chain=0)
    starts = [{"sigma": draws["sigma"].values[i]} for i in range(2)]
    with model, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step = pm.Metropolis()
        trace = pm.sample(
            draws=1, tune=0, chains=2, cores=1, step=step, initvals=starts, progressbar=False
        )
    assert trace.posterior["sigma"].shape == (2, 1, 2)
