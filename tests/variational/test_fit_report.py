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

from functools import partial

import numpy as np
import pandas as pd
import pytensor
import pytest

from scipy import stats

import pymc as pm

from pymc.variational import fit_report as module
from pymc.variational.approximations import Empirical, FullRank, MeanField
from pymc.variational.control_variates import ControlVariates
from pymc.variational.opvi import Approximation, Group
from pymc.variational.streaming import FitReport, StreamingDataset, fit_report

N_ROWS = 500
RNG = np.random.default_rng(3)
X = RNG.normal(size=(N_ROWS, 3))
X[:, 2] = 0.9 * X[:, 1] + np.sqrt(1 - 0.9**2) * X[:, 2]
Y = X @ [1.0, -2.0, 0.5] + RNG.normal(size=N_ROWS)
# Of the linear regression below, which has a normal posterior.
PRECISION = X.T @ X + np.eye(3) / 9
COVARIANCE = np.linalg.inv(PRECISION)
MODE = COVARIANCE @ X.T @ Y
SD = np.sqrt(np.diag(COVARIANCE))
LOG_EVIDENCE = stats.multivariate_normal(np.zeros(N_ROWS), np.eye(N_ROWS) + 9 * X @ X.T).logpdf(Y)


@pytest.fixture(autouse=True)
def quick_to_compile():
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        yield


@pytest.fixture(scope="module")
def streamed():
    return regression("streamed")


def regression(data):
    with pm.Model() as model:
        x, y = X, Y
        if data == "minibatch":
            x, y = pm.Minibatch(X, Y, batch_size=256)
        elif data == "streamed":
            stream = StreamingDataset((X, Y), batch_size=256)
            x, y = stream.as_tensor()
        beta = pm.Normal("beta", 0, 3, shape=3)
        total_size = None if data == "in memory" else N_ROWS
        pm.Normal("obs", x @ beta, 1, observed=y, total_size=total_size)
    return model


def set_mean_field(approx, mean, sd):
    approx.groups[0].shared_params["mu"].set_value(mean)
    approx.groups[0].shared_params["rho"].set_value(np.log(np.expm1(sd)))
    return approx


def set_full_rank(approx, mean, covariance):
    scale = np.linalg.cholesky(covariance)
    np.fill_diagonal(scale, np.log(np.expm1(np.diag(scale))))
    approx.groups[0].shared_params["mu"].set_value(mean)
    approx.groups[0].shared_params["L_tril"].set_value(scale[np.tril_indices(len(mean))])
    return approx


def divergence(mean, covariance):
    """Kullback-Leibler divergence of a normal distribution from the posterior of the regression."""
    product = PRECISION @ covariance
    off = mean - MODE
    return (
        np.trace(product) - len(mean) + off @ PRECISION @ off - np.linalg.slogdet(product)[1]
    ) / 2


@pytest.mark.parametrize("data", ["streamed", "minibatch", "in memory"])
def test_exact_posterior(data):
    approx = set_full_rank(FullRank(model=regression(data)), MODE, COVARIANCE)
    report = fit_report(approx, random_seed=1, progressbar=False)
    assert report.elbo == pytest.approx(LOG_EVIDENCE, rel=1e-8)
    assert report.elbo_error < 1e-6 and report.estimate_error < 1e-6
    assert report.pareto_k < 0.7
    assert report.full_rank and report.findings == ()
    np.testing.assert_allclose(report.table["mean"], MODE)
    np.testing.assert_allclose(report.table["sd"], SD)
    np.testing.assert_allclose(report.table["mean - mode"], 0, atol=1e-6)
    np.testing.assert_allclose(report.table["sd / marginal"], 1)
    assert list(report.table.index) == ["beta[0]", "beta[1]", "beta[2]"]
    expected = (0, 0) if data == "in memory" else (N_ROWS, 2)
    assert (report.n_rows, report.n_passes) == expected


def test_spoiled_fit(streamed):
    mean, sd = MODE - SD * [0, 3, 0], [2, 1, 1] / np.sqrt(np.diag(PRECISION))
    approx = set_mean_field(MeanField(model=streamed), mean, sd)
    report = fit_report(approx, random_seed=1, progressbar=False)
    np.testing.assert_allclose(report.table["mean - mode"], [0, -3, 0], atol=1e-6)
    np.testing.assert_allclose(report.table["sd / mean-field"], [2, 1, 1])
    np.testing.assert_allclose(report.table["sd / marginal"], sd / SD)
    assert abs(report.elbo - (LOG_EVIDENCE - divergence(mean, np.diag(sd**2)))) < (
        4 * report.elbo_error
    )
    assert report.pareto_k > 0.7
    about_means, about_sds, about_k = report.findings
    assert about_means.startswith("1 of 3 means") and "beta[1] by 3." in about_means
    assert about_sds.startswith("1 of 3 sds") and "beta[0] is 2 times" in about_sds
    assert "Pareto k" in about_k


def test_correlations_that_mean_field_lacks(streamed):
    approx = set_mean_field(MeanField(model=streamed), MODE, 1 / np.sqrt(np.diag(PRECISION)))
    report = fit_report(approx, random_seed=1, progressbar=False)
    np.testing.assert_allclose(report.table["sd / mean-field"], 1)
    assert report.findings[0].startswith("2 of 3 sds are less than 1 / 1.5 of the posterior's")


def test_wide_full_rank(streamed):
    approx = set_full_rank(FullRank(model=streamed), MODE, 4 * COVARIANCE)
    report = fit_report(approx, random_seed=1, progressbar=False)
    np.testing.assert_allclose(report.table["sd / marginal"], 2)
    assert report.pareto_k < 0.7
    assert [finding[:10] for finding in report.findings] == ["3 of 3 sds"]


def test_a_mean_that_skew_puts_off_the_mode():
    with pm.Model() as model:
        pm.Gamma("rate", 0.5, 1)
    # The ELBO in the log of the rate is 0.5 mu - exp(mu + sd^2 / 2) + log sd.
    sd = 2**0.5
    mean = np.log(0.5) - sd**2 / 2
    best = set_mean_field(MeanField(model=model), np.array([mean]), np.array([sd]))
    [about_mean, *_] = fit_report(best, random_seed=1, progressbar=False).findings
    assert "rate_log__ by 0.74. The ELBO is largest about there" in about_mean
    wrong = set_mean_field(MeanField(model=model), np.array([mean - 2]), np.array([sd]))
    [about_mean, *_] = fit_report(wrong, random_seed=1, progressbar=False).findings
    assert "Fit with more steps" in about_mean


def test_funnel():
    with pm.Model() as model:
        v = pm.Normal("v", 0, 3)
        pm.Normal("x", 0, pm.math.exp(v / 2), shape=4)
    # At the curvature of the mean: by itself it looks right.
    report = fit_report(
        set_mean_field(MeanField(model=model), np.zeros(5), np.array([3.0, 1, 1, 1, 1])),
        random_seed=1,
        progressbar=False,
    )
    assert report.pareto_k > 0.7
    assert "Pareto k" in report.findings[-1]


@pytest.mark.parametrize("mean_of_x", [0.0, np.nan])
def test_no_normal_posterior(mean_of_x):
    with pm.Model() as model:
        pm.Normal("y")
        x = pm.Flat("x")
        pm.Potential("two_modes", -((x**2 - 1) ** 2))
    approx = set_mean_field(MeanField(model=model), np.array([0.0, mean_of_x]), np.ones(2))
    report = fit_report(approx, random_seed=1, progressbar=False)
    assert report.table[["mean - mode", "sd / mean-field", "sd / marginal"]].isna().all(axis=None)
    assert "x: there is no normal posterior" in report.findings[0]
    assert "NaN" in repr(report)


def test_groups_in_another_order_than_the_model():
    with pm.Model() as model:
        a = pm.Normal("a", [1, 2], [1, 10], shape=2)
        b = pm.Normal("b", 3, 100)
        approx = Approximation([Group([b, a], vfam="fr")])
    assert list(approx.groups[0].ordering) == ["b", "a"]
    set_full_rank(approx, np.array([3.0, 1.0, 2.0]), np.diag([1e4, 1, 100]))
    report = fit_report(approx, progressbar=False)
    assert report.table["mean"].to_dict() == {"a[0]": 1, "a[1]": 2, "b": 3}
    np.testing.assert_allclose(report.table["sd"], [1, 10, 100])
    assert report.elbo == pytest.approx(0, abs=1e-6)
    assert report.findings == ()
    assert model is approx.model


def test_estimate_that_is_off(monkeypatch):
    with pm.Model() as model:
        rows = StreamingDataset({"x": np.r_[np.zeros(N_ROWS - 1), 3]}, batch_size=256)
        rate = pm.math.exp(pm.Normal("b") * rows["x"])
        pm.Poisson("y", rate, observed=pm.math.floor(rows["x"]), total_size=N_ROWS)
    approx = set_mean_field(MeanField(model=model), np.zeros(1), np.ones(1) / 3)
    # The row that counts is not in the sample.
    monkeypatch.setattr(module, "ControlVariates", partial(ControlVariates, n_rows=5))
    report = fit_report(approx, random_seed=1, progressbar=False)
    assert report.estimate_error > 0.1
    assert "not to be relied on" in report.findings[-1]


@pytest.mark.parametrize("kind", ["empirical", "two groups", "trace"])
def test_refuses_what_is_not_one_normal_distribution(kind):
    with pm.Model() as model:
        a, b = pm.Normal("a"), pm.Normal("b")
        if kind == "empirical":
            approx = Empirical(size=10)
        elif kind == "two groups":
            approx = Approximation([Group([a], vfam="fr"), Group([b], vfam="mf")])
        else:
            approx = {"a": [1.0]}
    with pytest.raises(TypeError, match="method='advi', 'fullrank_advi' or 'laplace'"):
        fit_report(approx)
    assert model


def test_refuses_few_draws(streamed):
    with pytest.raises(ValueError, match="n_draws is 10; Pareto k needs 25"):
        fit_report(MeanField(model=streamed), n_draws=10)


def large_report():
    table = pd.DataFrame(
        {"mean": 1.0, "sd": 2.0, "mean - mode": 0.0, "sd / mean-field": 1.0, "sd / marginal": 0.9},
        index=[f"b[{i}]" for i in range(30)],
    )
    table.loc["b[7]", "mean - mode"] = -1.5
    table.loc["b[29]", "sd / mean-field"] = 0.2
    return FitReport(
        table=table,
        full_rank=False,
        pareto_k=0.9,
        elbo=-1234.5,
        elbo_error=0.25,
        estimate_error=1e-5,
        n_rows=10_000,
        n_passes=2,
        seconds=1.5,
        findings=("what is <wrong>",),
    )


def test_prints_the_worst_of_many_parameters():
    lines = repr(large_report()).splitlines()
    assert lines[0] == "A mean-field fit against all 10,000 rows (2 passes), in 1.5 s"
    assert "Pareto k 0.90, ELBO -1234.50 ± 0.25" in lines[1]
    assert lines[-2:] == [
        "The 20 worst of 30 parameters; all are in report.table",
        "- what is <wrong>",
    ]
    shown = [line.split()[0] for line in lines[3:-2]]
    assert len(shown) == 20 and shown[:3] == ["b[29]", "b[7]", "b[0]"]


def test_prints_in_a_notebook():
    page = large_report()._repr_html_()
    assert "what is &lt;wrong&gt;" in page and "<td>-1.50</td>" in page


def test_plot():
    [axes] = large_report().plot().axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == 20 and labels[:2] == ["b[29]", "b[7]"]


def test_plot_needs_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        large_report().plot()
