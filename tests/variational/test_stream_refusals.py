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

import contextlib
import warnings

import numpy as np
import pytensor
import pytest

import pymc as pm

from pymc.model.transform.optimization import freeze_dims_and_data
from pymc.variational.streaming import StreamingDataset

fit_kwargs = {"progressbar": False, "random_seed": 1}
quick = {"draws": 2, "chains": 1, "progressbar": False, "random_seed": 1}


def sampled_model_of(ds, potential=False):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 10)
        if potential:
            pm.Potential("y", -((ds.as_tensor() - mu) ** 2).sum())
        else:
            pm.Normal("y", mu, 1, observed=ds.as_tensor(), total_size=ds.total_size)
        pm.Normal("in_memory", mu, 1, observed=np.array([1.0, 2.0]))
    return model


@pytest.mark.parametrize("potential", [False, True])
@pytest.mark.parametrize(
    ("what", "call"),
    [
        ("pm.sample", lambda: pm.sample(tune=2, **quick)),
        ("pm.sample_smc", lambda: pm.sample_smc(**quick)),
        ("A sampler or optimizer", lambda: pm.init_nuts(init="adapt_diag", progressbar=False)),
        ("A sampler or optimizer", lambda: pm.Metropolis()),
        ("A sampler or optimizer", lambda: pm.Slice()),
        ("A sampler or optimizer", lambda: pm.NUTS()),
        ("A sampler or optimizer", lambda: pm.modelcontext(None).logp_dlogp_function()),
        # as nutpie and pymc-extras do
        ("A sampler or optimizer", lambda: freeze_dims_and_data(pm.modelcontext(None)).logp()),
    ],
)
def test_one_batch_is_not_sampled_as_if_it_were_the_data(what, call, potential):
    ds = StreamingDataset(np.zeros(1000), batch_size=10, name="rows")
    with sampled_model_of(ds, potential):
        with pytest.raises(ValueError, match=f"{what} .*`y` uses the stream 'rows'.* 10 rows"):
            call()


def test_the_estimate_from_a_batch_stays():
    ds = StreamingDataset(np.zeros(1000), batch_size=10)
    model = sampled_model_of(ds)
    point = model.initial_point()
    assert np.isfinite(model.compile_logp()(point))
    assert np.shape(model.compile_dlogp()(point)) == (1,)
    assert np.shape(model.compile_d2logp()(point)) == (1, 1)


@pytest.mark.parametrize("graph", ["datalogp", "varlogp"])
def test_jax_does_not_freeze_a_batch(graph):
    jax = pytest.importorskip("pymc.sampling.jax")
    model = sampled_model_of(StreamingDataset(np.zeros(1000), batch_size=10, name="rows"))
    refused = pytest.raises(ValueError, match="stream 'rows', and JAX would take the 10 rows")
    with refused if graph == "datalogp" else contextlib.nullcontext():
        jax.get_jaxified_graph(inputs=model.value_vars, outputs=[getattr(model, graph)])


@pytest.fixture(scope="module")
def fitted():
    ds = StreamingDataset(np.arange(2000.0).reshape(1000, 2), batch_size=10, name="rows")
    batch = ds.as_tensor()
    with pm.Model() as model:
        b = pm.Normal("b", 0, 10)
        x = pm.Deterministic("x", batch[:, 0])
        pm.Deterministic("twice", 2 * b)
        pm.Normal("y", b * x, 1, observed=batch[:, 1], total_size=1000)
        pm.Normal("in_memory", b, 1, observed=np.array([1.0, 2.0]))
        trace = pm.fit(2, **fit_kwargs).sample(5, random_seed=1)
    return model, trace


def test_log_likelihood_of_one_batch_is_refused(fitted):
    model, trace = fitted
    kwargs = {"model": model, "extend_inferencedata": False, "progressbar": False}
    for var_names in (None, ["y"]):
        with pytest.raises(
            ValueError, match=r"compute_log_likelihood .*`y`.*'rows'.*log_predictive"
        ):
            pm.compute_log_likelihood(trace, var_names=var_names, **kwargs)
    alone = pm.compute_log_likelihood(trace, var_names=["in_memory"], **kwargs)
    assert alone["in_memory"].shape == (1, 5, 2)
    assert pm.compute_log_prior(trace, **kwargs)["b"].shape == (1, 5)


@pytest.mark.parametrize("total_size", [None, 3, 30])
def test_log_likelihood_of_rows_that_count_several_times(total_size):
    with pm.Model():
        mu = pm.Normal("mu")
        pm.Normal("y", mu, 1, observed=pm.Data("rows", np.zeros(3)), total_size=total_size)
        trace = pm.sample_prior_predictive(2)
        posterior = {"posterior": trace.prior}
        told = pytest.warns(UserWarning, match=r"row of `y` counts 10 times.*log_predictive")
        with told if total_size == 30 else warnings.catch_warnings(action="error"):
            pm.compute_log_likelihood(posterior, extend_inferencedata=False, progressbar=False)


def test_predictions_of_one_batch_are_refused(fitted):
    model, trace = fitted
    with model:
        for var_names in (None, ["y", "b"]):
            with pytest.raises(ValueError, match=r"predictive of `y`.*'rows'.*model_of_rows"):
                pm.sample_posterior_predictive(trace, var_names=var_names, progressbar=False)
        sampled = pm.sample_posterior_predictive(
            trace, var_names=["in_memory", "twice", "b"], progressbar=False
        )
    assert sampled.posterior_predictive["in_memory"].shape == (1, 5, 2)


def test_predictions_of_other_rows(fitted):
    model, trace = fitted
    other = np.arange(10, dtype=pytensor.config.floatX)
    with pm.do(model, {"x": other}):
        sampled = pm.sample_posterior_predictive(trace, var_names=["y"], progressbar=False)
    assert sampled.posterior_predictive["y"].shape == (1, 5, 10)
    with pm.Model():
        b = pm.Normal("b", 0, 10)
        pm.Normal("y", b * np.array([1.0, 2.0, 3.0]), 1)
        sampled = pm.sample_posterior_predictive(trace, var_names=["y"], progressbar=False)
    assert sampled.posterior_predictive["y"].shape == (1, 5, 3)


@pytest.mark.parametrize("form", ["dataset", "in memory"])
def test_prior_predictive_is_where_it_belongs(form):
    rows = np.arange(100.0)
    if form == "dataset":
        observed = StreamingDataset(rows, batch_size=10).as_tensor()
    else:
        observed = rows[:10]
    with pm.Model():
        mu = pm.Normal("mu", 0, 10)
        pm.Normal("y", mu, 1, observed=observed, total_size=100)
        prior = pm.sample_prior_predictive(20, random_seed=1)
    assert list(prior.prior) == ["mu"]
    assert prior.prior_predictive["y"].shape == (1, 20, 10)
    assert list(prior.observed_data) == ([] if form == "dataset" else ["y"])


def test_a_plot_of_the_prior_predictive():
    az = pytest.importorskip("arviz_plots")
    ds = StreamingDataset(np.arange(100.0), batch_size=10)
    with pm.Model():
        pm.Normal("y", pm.Normal("mu"), 1, observed=ds.as_tensor(), total_size=100)
        prior = pm.sample_prior_predictive(20, random_seed=1)
    az.plot_ppc_dist(prior, group="prior_predictive", backend="none")


def test_the_result_of_a_fit_does_not_show_one_batch_as_the_data():
    """Left out; what is in memory is shown."""
    ds = StreamingDataset(np.arange(1000), batch_size=10)
    with sampled_model_of(ds):
        result = pm.fit(3, progressbar=False, random_seed=1).sample(5, random_seed=1)
    assert list(result.observed_data) == ["in_memory"]
    assert result.posterior["mu"].sizes["draw"] == 5
