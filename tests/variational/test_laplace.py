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

import pymc as pm

from pymc.variational import laplace
from pymc.variational.fit_check import FitConvergenceWarning
from pymc.variational.full_data_logp import FullDataLogp
from pymc.variational.laplace import find_mode
from pymc.variational.streaming import StreamingDataset

quick = {"progressbar": False, "compile_kwargs": {"mode": "FAST_COMPILE"}}
rng = np.random.default_rng(1)
N = 2050
x = rng.normal(size=N)
group = rng.integers(30, size=N)
effects = rng.normal(0.5, 0.7, size=30)


def bernoulli(p):
    return (rng.random(p.shape) < p).astype(float)


def logistic(rows, size):
    b = pm.Normal("b", 0, 3, shape=2)
    pm.Bernoulli("y", logit_p=b[0] + b[1] * rows["x"], observed=rows["y"], **size)


def poisson(rows, size):
    b = pm.Normal("b", 0, 3, shape=2)
    pm.Poisson("y", pm.math.exp(b[0] + b[1] * rows["x"]), observed=rows["y"], **size)


def negative_binomial(rows, size):
    b, alpha = pm.Normal("b", 0, 3, shape=2), pm.Exponential("alpha", 1)
    mu = pm.math.exp(b[0] + b[1] * rows["x"])
    pm.NegativeBinomial("y", mu=mu, alpha=alpha, observed=rows["y"], **size)


def student_t(rows, size):
    mu, sigma, nu = pm.Normal("mu", 0, 5), pm.HalfNormal("sigma", 5), pm.Gamma("nu", 2, 0.1)
    pm.StudentT("y", nu, mu=mu, sigma=sigma, observed=rows["y"], **size)


def hierarchical(rows, size):
    mu, sigma = pm.Normal("mu", 0, 3), pm.HalfNormal("sigma", 2)
    effect = pm.Normal("effect", mu, sigma, shape=30)
    pm.Bernoulli("y", logit_p=effect[rows["group"]], observed=rows["y"], **size)


def shares(rows, size):
    w = pm.Dirichlet("w", np.ones(3))
    pm.Categorical("y", w, observed=rows["y"], **size)


DATA = {
    logistic: {"x": x, "y": bernoulli(1 / (1 + np.exp(-0.3 - x)))},
    poisson: {"x": x, "y": rng.poisson(np.exp(0.5 + 0.4 * x))},
    negative_binomial: {"x": x, "y": rng.negative_binomial(2, 2 / (2 + np.exp(1 + 0.4 * x)))},
    student_t: {"y": 1 + 2 * rng.standard_t(4, size=N)},
    hierarchical: {"group": group, "y": bernoulli(1 / (1 + np.exp(-effects[group])))},
    shares: {"y": rng.choice(3, p=[0.1, 0.3, 0.6], size=N)},
}


def model_of(terms, streamed, data=None):
    """Build a model of columns that are streamed, with a last batch of 50 rows, or in memory."""
    rows, size = DATA[terms] if data is None else data, {}
    with pm.Model() as model:
        if streamed:
            rows = StreamingDataset(rows, batch_size=500, check_order="ignore")
            size = {"total_size": rows.total_size}
        terms(rows, size)
    return model


@pytest.fixture
def small_sample(monkeypatch):
    """Make samples so small that passes over all rows are needed."""
    monkeypatch.setattr(laplace, "SAMPLE_ROWS", 1200)
    monkeypatch.setattr(laplace, "SEARCH_ROWS", 600)
    monkeypatch.setattr(laplace, "N_DRAWS", 100)


@pytest.mark.parametrize(
    ("terms", "streamed"),
    [*((terms, True) for terms in DATA), (logistic, False), (hierarchical, False)],
)
def test_mode_and_curvature_of_all_rows(terms, streamed, small_sample, caplog):
    with model_of(terms, streamed), caplog.at_level(logging.INFO):
        approx = pm.fit(method="laplace", random_seed=3, **quick)
    assert ("passes over 2,050 rows, from the mode of a random sample of 1,200" in caplog.text) == (
        streamed
    )
    assert "Pareto k" in caplog.text
    exact = FullDataLogp(model_of(terms, False), **quick)
    mean, covariance = approx.mean.eval(), approx.cov.eval()
    _, gradient, hessian = exact.d2logp(mean)
    sds = np.sqrt(np.diag(np.linalg.inv(-hessian)))
    assert np.all(np.abs(np.linalg.solve(-hessian, gradient)) < 0.02 * sds)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), sds, rtol=0.01)
    np.testing.assert_allclose(
        covariance / np.outer(sds, sds), np.linalg.inv(-hessian) / np.outer(sds, sds), atol=0.01
    )
    np.testing.assert_allclose(approx.hist[-1], -exact.logp(mean), atol=0.5)
    assert np.all(np.diff(approx.hist) < 0)


@pytest.mark.parametrize("terms", [logistic, poisson])
def test_newton_in_numpy(terms, small_sample):
    rows = DATA[terms]
    design, q = np.column_stack([np.ones(N), rows["x"]]), np.zeros(2)
    for _ in range(20):
        eta = design @ q
        p = 1 / (1 + np.exp(-eta))
        mean, variance = (p, p * (1 - p)) if terms is logistic else (np.exp(eta), np.exp(eta))
        precision = (design.T * variance) @ design + np.eye(2) / 9
        q = q + np.linalg.solve(precision, design.T @ (rows["y"] - mean) - q / 9)
    with model_of(terms, streamed=True):
        approx = pm.fit(method="laplace", random_seed=1, **quick)
    sds = np.sqrt(np.diag(np.linalg.inv(precision)))
    np.testing.assert_allclose(approx.mean.eval(), q, atol=0.02 * sds.min())
    np.testing.assert_allclose(approx.std.eval(), sds, rtol=0.01)
    trace = approx.sample(2000, random_seed=1)
    np.testing.assert_allclose(trace.posterior["b"].std(("chain", "draw")), sds, rtol=0.1)


def test_passes_are_few_and_rows_that_fit_are_read_once(monkeypatch):
    full = FullDataLogp(model_of(logistic, streamed=True), **quick)
    mode = find_mode(full, random_seed=1, progressbar=False)
    assert (mode.n_passes, mode.n_sampled, full.n_passes) == (0, N, 0)
    monkeypatch.setattr(laplace, "SAMPLE_ROWS", 1500)
    again = find_mode(full, random_seed=1, progressbar=False)
    assert 1 <= again.n_passes == full.n_passes <= 3
    assert again.n_sampled == 1500
    np.testing.assert_allclose(again.q, mode.q, atol=1e-4)
    monkeypatch.setattr(laplace, "SAMPLE_BYTES", 16 * 400)
    assert find_mode(full, random_seed=1, progressbar=False).n_sampled == 400


def test_a_sample_of_a_sample_stands_for_all_rows():
    full = FullDataLogp(model_of(student_t, True, {"y": np.ones(N)}), **quick)
    sample = full.sample(1200, 1).sample(600, 2)
    q = np.zeros(3)
    assert sample.n_rows == 600
    np.testing.assert_allclose(sample.logp(q), full.logp(q))


def test_minibatch_in_memory_stands_for_the_array():
    values = rng.normal(3, 1, size=N)
    with pm.Model():
        mu = pm.Normal("mu", 0, 10)
        pm.Normal("y", mu, 1, observed=pm.Minibatch(values, batch_size=100), total_size=N)
        approx = pm.fit(method="laplace", random_seed=1, **quick)
    np.testing.assert_allclose(approx.mean.eval(), values.sum() / (N + 0.01), rtol=1e-6)
    np.testing.assert_allclose(approx.std.eval(), (N + 0.01) ** -0.5, rtol=1e-6)


def normal_mean(observed, mean=lambda mu: mu):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 10)
        pm.Normal("y", mean(mu), 1, observed=observed)
    return model


def test_start_is_the_one_that_is_given():
    model = normal_mean(np.full(10, 3.0), mean=abs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for start, mean in ((-2.0, -3), (2.0, 3)):
            approx = pm.fit(method="laplace", model=model, start={"mu": start}, **quick)
            np.testing.assert_allclose(approx.mean.eval(), mean, rtol=0.01)


def test_the_mode_is_the_same_for_the_same_seed(small_sample):
    full = FullDataLogp(model_of(logistic, streamed=True), **quick)
    one, same, other = (find_mode(full, random_seed=s, progressbar=False).at for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.all(one != other)


def test_include_transformed():
    with pm.Model():
        pm.Gamma("sigma", 100, 100)
        approx = pm.fit(method="laplace", random_seed=1, include_transformed=True, **quick)
        assert "sigma_log__" in approx.state.mean


@pytest.mark.parametrize(
    "kwargs", [{"obj_optimizer": pm.adam()}, {"score": False}, {"callbacks": []}, {"obj_n_mc": 2}]
)
def test_arguments_of_random_steps_are_refused(kwargs):
    [name] = kwargs
    with normal_mean(np.zeros(3)), pytest.raises(TypeError, match=f"laplace.* takes no {name}"):
        pm.fit(method="laplace", progressbar=False, **kwargs)


def test_unknown_method_names_laplace():
    with normal_mean(np.zeros(3)), pytest.raises(KeyError, match="laplace"):
        pm.fit(method="laplacian")


def test_too_few_steps_are_said(small_sample):
    with model_of(poisson, streamed=True):
        with pytest.warns(FitConvergenceWarning, match="not converged after 0 steps"):
            pm.fit(0, method="laplace", random_seed=1, **quick)


def test_start_without_density_names_the_way_out():
    with pm.Model():
        pm.Uniform("u", 0, 1, default_transform=None, initval=2.0)
        with pytest.raises(ValueError, match=r"not finite at `u`.*another start"):
            pm.fit(method="laplace", **quick)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("prior", ["flat", "weak"])
def test_perfect_separation(streamed, prior):
    def separated(rows, size):
        b = pm.Flat("b") if prior == "flat" else pm.Normal("b", 0, 10)
        pm.Bernoulli("y", logit_p=b * rows["x"], observed=rows["y"], **size)

    few = x[:300]
    data = {"x": few + np.sign(few), "y": (few > 0).astype(float)}
    model = model_of(separated, streamed, data)
    said = (
        pytest.raises(ValueError, match=r"goes up without end in `b`.*prior")
        if prior == "flat"
        else pytest.warns(FitConvergenceWarning, match="not close to normal .Pareto k")
    )
    with model, said:
        pm.fit(method="laplace", random_seed=1, **quick)


def test_collinear_columns_are_named():
    with pm.Model():
        a, b, c = (pm.Flat(name) for name in "abc")
        pm.Normal("y", a + b * x + c * 2 * x, 1, observed=x)
        with pytest.raises(ValueError, match=r"flat in (`b`, `c`|`c`, `b`).*leave one out"):
            pm.fit(method="laplace", **quick)


def test_saddle_is_named():
    with pm.Model():
        a, b = pm.Normal("a"), pm.Normal("b")
        pm.Normal("y", a * b, 0.1, observed=np.ones(10))
        with pytest.raises(ValueError, match=r"saddle in (`a`, `b`|`b`, `a`).*another start"):
            pm.fit(method="laplace", start={"a": 0.0, "b": 0.0}, **quick)


def test_scale_that_runs_to_zero_is_named():
    with pm.Model():
        sigma = pm.HalfNormal("sigma", 1)
        effect = pm.Normal("effect", 0, sigma, shape=20)
        pm.Normal("y", effect, 10, observed=np.zeros(20))
        with pytest.raises(ValueError, match=r"`sigma_log__`.*non-centered"):
            pm.fit(method="laplace", random_seed=1, **quick)


def test_funnel_is_not_close_to_normal():
    with pm.Model():
        v = pm.Normal("v", 0, 3)
        effect = pm.Normal("effect", 0, pm.math.exp(v / 2), shape=9)
        pm.Normal("y", effect, 10, observed=x[:9])
        with pytest.warns(FitConvergenceWarning, match="not close to normal"):
            pm.fit(method="laplace", random_seed=1, **quick)


@pytest.mark.parametrize("streamed", [False, True])
def test_another_mode_is_named(streamed, small_sample):
    def mixture(rows, size):
        mu = pm.Normal("mu", 0, 5, shape=2)
        pm.NormalMixture("y", np.full(2, 0.5), mu, 1, observed=rows["y"], **size)

    y = x + np.repeat([-2, 2], N // 2)
    with model_of(mixture, streamed, {"y": y}):
        with pytest.warns(FitConvergenceWarning, match=r"another one differs in `mu\[\d\]`.*50%"):
            approx = pm.fit(method="laplace", random_seed=1, **quick)
    np.testing.assert_allclose(np.sort(approx.mean.eval()), [-2, 2], atol=0.2)


def test_no_warning_where_a_posterior_is_normal(fail_on_warning):
    pm.fit(method="laplace", model=normal_mean(x), random_seed=1, **quick)


@pytest.mark.slow
def test_200_groups_of_2_million_rows():
    """Against Newton's method in NumPy, which eliminates the groups one by one."""
    n_rows, n_groups = 2_000_000, 200
    draw = np.random.default_rng(3)
    code = draw.integers(n_groups, size=n_rows)
    true = draw.normal(0.5, 0.7, size=n_groups)
    rows = {"group": code, "x": draw.normal(size=n_rows)}
    eta = true[code] - 0.4 * rows["x"]
    rows["y"] = (draw.random(n_rows) < 1 / (1 + np.exp(-eta))).astype(float)
    with pm.Model():
        ds = StreamingDataset(rows, batch_size=4096, check_order="ignore")
        mu, sigma = pm.Normal("mu", 0, 3), pm.HalfNormal("sigma", 2)
        effect = pm.Normal("effect", mu, sigma, shape=n_groups)
        b = pm.Normal("b", 0, 3)
        pm.Bernoulli(
            "y",
            logit_p=effect[ds["group"]] + b * ds["x"],
            observed=ds["y"],
            total_size=ds.total_size,
        )
        approx = pm.fit(method="laplace", random_seed=1, progressbar=False)
    mean, covariance = approx.mean.eval(), approx.cov.eval()
    # By hand, at that point: mu, log sigma, effects, b.
    m, log_sigma, effects, slope = mean[0], mean[1], mean[2:-1], mean[-1]
    p = 1 / (1 + np.exp(-(effects[code] + slope * rows["x"])))
    tau, apart = np.exp(-2 * log_sigma), effects - m
    weight = p * (1 - p)
    residual = rows["y"] - p
    gradient = np.concatenate(
        [
            [-m / 9 + tau * apart.sum()],
            [-n_groups + tau * (apart**2).sum() - np.exp(2 * log_sigma) / 4 + 1],
            np.bincount(code, residual) - tau * apart,
            [residual @ rows["x"] - slope / 9],
        ]
    )
    precision = np.zeros((n_groups + 3, n_groups + 3))
    precision[0, 0] = 1 / 9 + n_groups * tau
    precision[1, 1] = 2 * tau * (apart**2).sum() + np.exp(2 * log_sigma) / 2
    precision[0, 1] = precision[1, 0] = 2 * tau * apart.sum()
    groups = np.arange(2, n_groups + 2)
    precision[groups, groups] = np.bincount(code, weight) + tau
    precision[0, groups] = precision[groups, 0] = -tau
    precision[1, groups] = precision[groups, 1] = -2 * tau * apart
    precision[-1, groups] = precision[groups, -1] = np.bincount(code, weight * rows["x"])
    precision[-1, -1] = weight @ rows["x"] ** 2 + 1 / 9
    exact = np.linalg.inv(precision)
    sds = np.sqrt(np.diag(exact))
    assert np.all(np.abs(exact @ gradient) < 0.02 * sds)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), sds, rtol=0.01)


def test_a_skewed_posterior_is_told():
    with pm.Model():
        effect = pm.Normal("effect", 0, 10)
        pm.Bernoulli("y", logit_p=effect, observed=np.zeros(2))
        with pytest.warns(FitConvergenceWarning, match="skewed: the mean of `effect`"):
            pm.fit(method="laplace", progressbar=False, random_seed=1)
