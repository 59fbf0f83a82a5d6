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
"""Fits of streams against NUTS on all rows in memory."""

import logging
import warnings

import numpy as np
import pytest

import pymc as pm

from pymc.variational.fit_check import FitConvergenceWarning
from pymc.variational.streaming import StreamingDataset, subsample_model, subsample_report
from pymc.variational.subsample import LARGE_ERROR

pytestmark = pytest.mark.slow


def columns_of(name, n=None):
    rng = np.random.default_rng(3)
    n = n or {"logistic": 100_000}.get(name, 20_000)
    x = rng.normal(size=n)
    if name == "logistic":
        return {"x": x, "y": (rng.random(n) < 1 / (1 + np.exp(0.5 - x))).astype(int)}
    if name == "poisson":
        return {"x": x, "y": rng.poisson(np.exp(0.3 + 0.5 * x))}
    if name == "student":
        return {"x": x, "y": 1 + 0.5 * x + 0.7 * rng.standard_t(5, size=n)}
    group = rng.integers(20, size=n)
    if name == "small group":
        group[group == 7] = 8
        group[:2] = 7  # two rows, both of them zero
    effect = rng.normal(0, 1, 20)
    y = (rng.random(n) < 1 / (1 + np.exp(-effect[group] - 0.5 * x))).astype(int)
    y[group == 7] = 0 if name == "small group" else y[group == 7]
    return {"x": x, "g": group, "y": y}


def model_of(name, data, **observed):
    """Build the model of columns: arrays, or a stream and its ``total_size``."""
    with pm.Model() as model:
        a, b = pm.Normal("a", 0, 3), pm.Normal("b", 0, 3)
        if name == "logistic":
            pm.Bernoulli("y", logit_p=a + b * data["x"], observed=data["y"], **observed)
        elif name == "poisson":
            pm.Poisson("y", pm.math.exp(a + b * data["x"]), observed=data["y"], **observed)
        elif name == "student":
            sigma, nu = pm.HalfNormal("sigma", 2), pm.Gamma("nu", 2, 0.1)
            pm.StudentT("y", nu, mu=a + b * data["x"], sigma=sigma, observed=data["y"], **observed)
        else:
            fixed = {"groups": 1, "small group": 10}
            sd = fixed[name] if name in fixed else pm.HalfNormal("sd", 1)
            effect = pm.Normal("effect", a, sd, shape=20)
            logit = effect[data["g"]] + b * data["x"]
            pm.Bernoulli("y", logit_p=logit, observed=data["y"], **observed)
    return model


def fit_of_stream(name, columns, caplog, **kwargs):
    ds = StreamingDataset(columns, batch_size=500, check_order="ignore")
    with model_of(name, ds, total_size=ds.total_size), warnings.catch_warnings():
        warnings.simplefilter("ignore", FitConvergenceWarning)
        with caplog.at_level(logging.INFO, logger="pymc"):
            return pm.fit(progressbar=False, random_seed=1, **kwargs)


def nuts_of(model, n_draws=1500):
    """Return mean and sd of the unconstrained parameters, one after the other, and the draws."""
    with model:
        idata = pm.sample(
            n_draws, tune=1000, chains=2, cores=2, random_seed=1, progressbar=False,
            nuts_sampler="pymc",  # with transformed values
            idata_kwargs={"include_transformed": True},
        )  # fmt: skip
    # Transformed values stand in the posterior, or in a group of their own.
    groups = [idata[g].to_dataset() for g in ("posterior", "unconstrained_posterior") if g in idata]
    found = {name: values.values for group in groups for name, values in group.items()}
    draws = [found[name].reshape(2 * n_draws, -1) for name in model.initial_point()]
    values = np.concatenate(draws, axis=1)
    return values.mean(axis=0), values.std(axis=0), idata


@pytest.mark.parametrize("name", ["logistic", "poisson", "student", "groups"])
def test_near_normal_posteriors(name, caplog):
    columns = columns_of(name)
    mean, sd, _ = nuts_of(model_of(name, columns))
    laplace = fit_of_stream(name, columns, caplog, method="laplace")
    assert "close to normal" in caplog.text
    off = (laplace.mean.eval() - mean) / sd
    ratio = laplace.std.eval() / sd
    assert np.abs(off).max() < 0.1
    np.testing.assert_allclose(ratio, 1, atol=0.1)
    pathfinder = fit_of_stream(name, columns, caplog, method="pathfinder", num_draws=4000)
    off = (pathfinder.mean.eval() - mean) / sd
    assert np.abs(off).max() < 0.1
    np.testing.assert_allclose(pathfinder.std.eval() / sd, 1, atol=0.1)
    advi = fit_of_stream(name, columns, caplog, n=20_000, method="fullrank_advi")
    off = (advi.mean.eval() - mean) / sd
    ratio = advi.std.eval() / sd
    assert np.abs(off).max() < 0.25
    np.testing.assert_allclose(ratio, 1, atol=0.15)


def test_the_effect_of_a_small_group_is_told():
    """Two rows, both of them zero: the posterior of that effect is far from normal."""
    columns = columns_of("small group")
    ds = StreamingDataset(columns, batch_size=500, check_order="ignore")
    with model_of("small group", ds, total_size=ds.total_size):
        with pytest.warns(FitConvergenceWarning, match=r"Pareto k|`effect\[7\]`"):
            laplace = pm.fit(method="laplace", progressbar=False, random_seed=1)
    mean, sd, _ = nuts_of(model_of("small group", columns))
    off = np.abs(laplace.mean.eval() - mean) / sd
    assert off.argmax() == 2 + 7
    assert off.max() > 0.1


@pytest.mark.parametrize("name", ["logistic", "poisson", "student", "hierarchical"])
def test_nuts_on_a_tenth_of_the_rows(name):
    columns = columns_of(name, 50_000)
    mean, sd, _ = nuts_of(model_of(name, columns), 6000)
    ds = StreamingDataset(columns, batch_size=500, check_order="ignore")
    model = model_of(name, ds, total_size=ds.total_size)
    for seed in (1, 2):
        small = subsample_model(model, 5_000, random_seed=seed, progressbar=False)
        found, found_sd, idata = nuts_of(small, 6000)
        assert np.abs((found - mean) / sd).max() < 0.1
        np.testing.assert_allclose(found_sd / sd, 1, atol=0.05)
        report = subsample_report(idata, small, model, random_seed=seed, progressbar=False)
        assert report.error < LARGE_ERROR
