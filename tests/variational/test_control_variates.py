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
import pytest

import pymc as pm

from pymc.variational.control_variates import ControlVariates, pareto_k
from pymc.variational.full_data_logp import FullDataLogp
from pymc.variational.streaming import StreamingDataset

N_ROWS = 6_000
RNG = np.random.default_rng(5)
X = RNG.normal(size=(N_ROWS, 2))
Y = RNG.random(N_ROWS) < 1 / (1 + np.exp(-(0.5 - X[:, 0] + 2 * X[:, 1])))
ROWS = {"a": X[:, 0], "b": X[:, 1], "y": Y}
AT = np.array([0.5, -1.0, 2.0])
# As far from there as draws from the posterior are.
DRAWS = AT + RNG.normal(scale=0.06, size=(30, 3))


def exact_logp(beta):
    """The log-density of the model below at all rows, in NumPy."""
    eta = beta[:, :1] + beta[:, 1:] @ X.T
    prior = -(beta**2) / 18 - np.log(3 * np.sqrt(2 * np.pi))
    return prior.sum(axis=1) + (Y * eta - np.logaddexp(0, eta)).sum(axis=1)


@pytest.fixture(scope="module")
def full():
    with pm.Model():
        batch = StreamingDataset(ROWS, batch_size=256)
        beta = pm.Normal("beta", 0, 3, shape=3)
        logit = beta[0] + beta[1] * batch["a"] + beta[2] * batch["b"]
        pm.Bernoulli("obs", logit_p=logit, observed=batch["y"], total_size=N_ROWS)
        return FullDataLogp(progressbar=False, compile_kwargs={"mode": "FAST_COMPILE"})


@pytest.fixture(scope="module")
def values(full):
    return full.d2logp(AT)


def test_error_is_that_of_the_third_order(full, values):
    estimate = ControlVariates(full, AT, values=values, n_rows=500, random_seed=1)
    error = estimate.logp(DRAWS) - exact_logp(DRAWS)
    plain = estimate.sample.logp(DRAWS) - exact_logp(DRAWS)
    assert np.abs(error).max() < 0.3
    assert np.std(plain) > 40 * np.std(error)


def test_unbiased(full, values):
    far = AT + np.array([[0.5, 0.5, -0.5]])
    estimates = [
        ControlVariates(full, AT, values=values, n_rows=300, random_seed=seed).logp(far)[0]
        for seed in range(60)
    ]
    standard_error = np.std(estimates) / np.sqrt(60)
    # Without the weight of the sampled rows, the third order would be missing: 14 nats.
    assert standard_error < 4
    assert abs(np.mean(estimates) - exact_logp(far)[0]) < 3 * standard_error


def test_exact_at_the_point(full, values):
    estimate = ControlVariates(full, AT, values=values, n_rows=100, random_seed=1)
    np.testing.assert_allclose(estimate.logp(AT[None]), exact_logp(AT[None]), rtol=1e-10)


def test_exact_where_the_sample_holds_all_rows(full, values):
    estimate = ControlVariates(full, AT, values=values, n_rows=N_ROWS)
    far = AT + np.array([[3.0, -2.0, 1.0]])
    np.testing.assert_allclose(estimate.logp(far), exact_logp(far), rtol=1e-10)


def test_one_pass_for_values_that_are_not_known(full, values):
    passes = full.n_passes
    estimate = ControlVariates(full, AT, n_rows=500, random_seed=1)
    assert full.n_passes == passes + 1
    expected = ControlVariates(full, AT, values=values, n_rows=500, random_seed=1)
    np.testing.assert_array_equal(estimate.logp(DRAWS), expected.logp(DRAWS))


def test_exact_in_memory():
    with pm.Model():
        mu = pm.Normal("mu", 0, 10)
        log_sigma = pm.Normal("log_sigma")
        pm.Normal("obs", mu, pm.math.exp(log_sigma), observed=X[:, 0])
        full = FullDataLogp(compile_kwargs={"mode": "FAST_COMPILE"})
    points = np.array([[3.0, 1.0], [-1.0, -0.5]])
    estimate = ControlVariates(full, np.zeros(2), n_rows=10)
    np.testing.assert_allclose(estimate.logp(points), full.logp(points), rtol=1e-12)


@pytest.mark.parametrize("k", [0.2, 0.7, 1.2])
def test_pareto_k(k):
    # Ratios with the tail of a Pareto distribution.
    log_ratios = k * np.random.default_rng(1).exponential(size=100_000)
    assert pareto_k(log_ratios - 1e4) == pytest.approx(k, abs=0.1)


@pytest.mark.parametrize(
    "log_ratios, k",
    [
        (np.full(1000, -1e7), -np.inf),
        (-1e7 + 1e-9 * RNG.normal(size=1000), -np.inf),
        (1e5 * RNG.normal(size=1000), np.inf),
        (np.r_[np.nan, RNG.normal(size=100)], np.nan),
        (np.r_[np.inf, RNG.normal(size=100)], np.nan),
    ],
)
def test_pareto_k_without_a_tail(log_ratios, k):
    np.testing.assert_equal(pareto_k(log_ratios), k)


def test_pareto_k_with_impossible_draws():
    log_ratios = np.r_[np.full(100, -np.inf), np.random.default_rng(1).exponential(size=1000) / 5]
    assert pareto_k(log_ratios) < 0.5
