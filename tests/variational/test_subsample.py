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
import xarray as xr

import pymc as pm

from pymc.variational.streaming import (
    FullDataLogp,
    StreamingDataset,
    SubsampleReport,
    subsample_model,
    subsample_report,
)
from pymc.variational.subsample import LARGE_ERROR

N, N_ROWS = 10_000, 1000
quick = {"progressbar": False, "random_seed": 1}


def rows_in_order():
    """Rows sorted by their label."""
    rng = np.random.default_rng(3)
    x, g = rng.normal(size=N), rng.integers(4, size=N)
    y = rng.normal(size=N) + 0.5 * x + 0.2 * g
    order = np.argsort(y)
    return {"x": x[order], "g": g[order], "y": y[order]}


def odd_model(data, **observed):
    """A hierarchy, transforms of several kinds, and a variable in memory."""
    with pm.Model(coords={"group": list("abcd")}) as model:
        sd = pm.HalfNormal("sd", initval=0.5)
        effect = pm.Normal("effect", 0, sd, dims="group")
        ordered = pm.distributions.transforms.ordered
        ends = pm.Normal("ends", shape=2, transform=ordered, initval=[-1.0, 1.0])
        share = pm.Dirichlet("share", [2.0, 2.0, 2.0])
        sigma = pm.Uniform("sigma", 0, sd + 3)
        mu = effect[data["g"]] + ends[1] * data["x"] + share[0] * ends[0]
        pm.Deterministic("ratio", sd / sigma)
        pm.Normal("y", mu, sigma, observed=data["y"], **observed)
        pm.Normal("beside", effect, 1, observed=np.zeros(4))
    return model


@pytest.fixture(scope="module")
def streamed():
    ds = StreamingDataset(rows_in_order(), batch_size=512, check_order="ignore")
    return odd_model(ds, total_size=N)


@pytest.fixture(scope="module")
def full(streamed):
    return FullDataLogp(streamed, progressbar=False)


@pytest.fixture(scope="module")
def point(full):
    start = full.ravel(full.model.initial_point(1))
    return full.point(start + np.random.default_rng(1).normal(0, 0.1, len(start)))


@pytest.mark.parametrize("hessian", [True, False])
def test_log_density_at_the_point_is_that_of_all_rows(streamed, full, point, hessian):
    small = subsample_model(streamed, N_ROWS, point, hessian=hessian, **quick)
    kind = "d2logp" if hessian else "dlogp"
    found = FullDataLogp(small, progressbar=False)
    assert found.names == full.names
    expected = getattr(full, kind)(point)
    np.testing.assert_allclose(small.compile_logp()(point), expected[0])
    for value, of_all_rows in zip(getattr(found, kind)(point), expected):
        np.testing.assert_allclose(value, of_all_rows, rtol=1e-6, atol=1e-5)


def test_is_the_same_model(streamed, point):
    small = subsample_model(streamed, N_ROWS, point, **quick)
    assert [rv.name for rv in small.free_RVs] == [rv.name for rv in streamed.free_RVs]
    assert [value.name for value in small.value_vars] == [v.name for v in streamed.value_vars]
    assert small.named_vars.keys() - streamed.named_vars.keys() == {"stream", "control_variates"}
    assert small.coords == streamed.coords
    assert small.named_vars_to_dims == streamed.named_vars_to_dims
    start = streamed.initial_point()
    for name, value in small.initial_point().items():
        np.testing.assert_allclose(value, start[name])
    # Nothing of the one given is in it, and that is as it was.
    with pytest.raises(ValueError, match="subsample_model"):
        streamed.logp()


def test_sample_is_uniform_and_a_function_of_the_seed():
    y = rows_in_order()["y"]
    ds = StreamingDataset({"y": y}, batch_size=512, check_order="ignore")
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("mu"), 1, observed=ds["y"], total_size=N)

    def sample(seed):
        small = subsample_model(model, N_ROWS, {"mu": 0}, random_seed=seed, progressbar=False)
        return small["stream"].get_value()[:, 0]

    one = sample(1)
    assert len(np.unique(one)) == N_ROWS and np.isin(one, y).all()
    assert abs(np.mean(one < np.median(y)) - 0.5) < 4 * 0.5 / np.sqrt(N_ROWS)
    np.testing.assert_array_equal(one, sample(1))
    assert len(np.intersect1d(one, sample(2))) < 200


def logistic_model(data, **observed):
    with pm.Model() as model:
        a, b = pm.Normal("a", 0, 3), pm.Normal("b", 0, 3)
        pm.Bernoulli("y", logit_p=b * data["x"] - a, observed=data["y"], **observed)
    return model


def logistic_rows(n=20_000):
    rng = np.random.default_rng(5)
    x = rng.normal(size=n)
    return {"x": x, "y": (rng.random(n) < 1 / (1 + np.exp(1 - x))).astype(int)}


@pytest.fixture(scope="module")
def logistic():
    ds = StreamingDataset(logistic_rows(), batch_size=512, check_order="ignore")
    return logistic_model(ds, total_size=ds.total_size)


def test_point_may_be_a_point_or_an_approximation(logistic):
    with logistic:
        laplace = pm.fit(method="laplace", **quick)
        optimum = pm.find_MAP(progressbar=False, jitter=False, return_inferencedata=False)
    mean = laplace.mean.eval()
    values = {"a": mean[0], "b": mean[1]}
    logp = FullDataLogp(logistic, progressbar=False).logp(values)
    for at in (None, laplace, optimum, values):
        small = subsample_model(logistic, N_ROWS, at, **quick)
        # Near the mode the third order is next to nothing.
        np.testing.assert_allclose(small.compile_logp()(values), logp, atol=1e-6)
    with pytest.raises(ValueError, match="no values of 'b'"):
        subsample_model(logistic, N_ROWS, {"a": 1.0}, **quick)


def test_values_of_transformed_variables(streamed, full, point):
    with streamed:
        values = {
            rv.name: value for rv, value in zip(streamed.free_RVs, pm.draw(streamed.free_RVs))
        }
    values |= {"ends": np.array([-1.0, 0.5]), "sigma": 1.0}
    small = subsample_model(streamed, N_ROWS, values, **quick)
    start = pm.initial_point.make_initial_point_fn(model=streamed, overrides=values)(0)
    np.testing.assert_allclose(small.compile_logp()(start), full.logp(start))


def test_in_memory_minibatch():
    columns = logistic_rows()
    x, y = pm.Minibatch(columns["x"], columns["y"] * 1.0, batch_size=100)
    model = logistic_model({"x": x, "y": y}, total_size=len(columns["x"]))
    point = {"a": np.array(1.1), "b": np.array(0.9)}
    small = subsample_model(model, N_ROWS, point, **quick)
    in_memory = logistic_model(columns)
    np.testing.assert_allclose(small.compile_logp()(point), in_memory.compile_logp()(point))
    assert {data.get_value().shape for data in small.data_vars} == {(N_ROWS,)}


def test_more_rows_than_there_are(logistic):
    small = subsample_model(logistic, 10**6, {"a": 0.0, "b": 0.0}, **quick)
    point = {"a": np.array(1.1), "b": np.array(0.9)}
    expected = logistic_model(logistic_rows()).compile_logp()(point)
    np.testing.assert_allclose(small.compile_logp()(point), expected)


@pytest.mark.parametrize("nuts_sampler", ["pymc", "nutpie", "numpyro"])
def test_samplers_take_it(logistic, nuts_sampler):
    point = {"a": np.array(1.0), "b": np.array(1.0)}
    small = subsample_model(logistic, N_ROWS, point, **quick)
    with logistic:
        laplace = pm.fit(method="laplace", **quick)
    mean, sd = laplace.mean.eval(), laplace.std.eval()
    with small:
        trace = pm.sample(500, tune=500, chains=2, cores=1, nuts_sampler=nuts_sampler, **quick)
    draws = np.stack([trace.posterior[name].values.ravel() for name in "ab"])
    np.testing.assert_allclose(draws.mean(axis=1), mean, atol=0.3 * sd.max())
    np.testing.assert_allclose(draws.std(axis=1), sd, rtol=0.2)


def test_what_takes_a_model_takes_it(logistic):
    with logistic:
        laplace = pm.fit(method="laplace", **quick)
    small = subsample_model(logistic, N_ROWS, laplace, **quick)
    mean, sd = laplace.mean.eval(), laplace.std.eval()
    with small:
        optimum = pm.find_MAP(progressbar=False, jitter=False, return_inferencedata=False)
        again = pm.fit(method="laplace", **quick)
        advi = pm.fit(3000, method="fullrank_advi", init="mode", **quick)
    np.testing.assert_allclose([optimum["a"], optimum["b"]], mean, atol=0.1 * sd.min())
    np.testing.assert_allclose(again.mean.eval(), mean, atol=0.02 * sd.min())
    np.testing.assert_allclose(again.std.eval(), sd, rtol=0.02)
    np.testing.assert_allclose(advi.mean.eval(), mean, atol=0.3 * sd.max())


def test_report_tells_the_error(logistic):
    full = FullDataLogp(logistic, progressbar=False)
    rough = subsample_model(logistic, 50, {"a": 0.0, "b": 0.0}, **quick)
    with rough:
        trace = pm.sample(100, tune=200, chains=2, cores=1, **quick)
    with pytest.warns(UserWarning, match=r"sample of 50 rows is off by .* n_rows=[\d_]+ or more"):
        report = subsample_report(trace, rough, logistic, n_draws=7, **quick)
    assert report.error > LARGE_ERROR and report.n_rows == 50 and report.n_rows_needed > 50
    assert report.draws.shape == (7, 2)
    logp, expected = rough.compile_logp(), []
    for chain, draw in report.draws:
        values = trace.posterior.isel(chain=chain, draw=draw)
        point = {name: values[name].values for name in "ab"}
        expected.append(full.logp(point) - logp(point))
    np.testing.assert_allclose(report.differences, expected - np.mean(expected))
    np.testing.assert_allclose(report.error, np.abs(report.differences).max())


def test_report_of_transformed_variables(streamed, point):
    small = subsample_model(streamed, N, point, **quick)
    with small:
        trace = pm.sample_prior_predictive(
            5, random_seed=1, var_names=[rv.name for rv in small.free_RVs]
        )
    posterior = trace["prior"].to_dataset()
    posterior["ends"].values.sort()  # draws from the prior are not in order
    assert posterior["effect"].dims == ("chain", "draw", "group")
    posterior["effect"] = posterior["effect"].transpose("group", "draw", "chain")
    trace = xr.DataTree.from_dict({"posterior": posterior})
    # All rows are in the sample.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = subsample_report(trace, small, streamed, **quick)
    assert isinstance(report, SubsampleReport)
    assert report.error < 1e-6
    trace = xr.DataTree.from_dict({"posterior": posterior.drop_vars("sd")})
    with pytest.raises(ValueError, match=r"no draws of \['sd'\]"):
        subsample_report(trace, small, streamed, **quick)


def test_a_density_that_goes_up_again_is_refused():
    """Three rows of a group, all of them ones: some samples have most of them."""
    rng = np.random.default_rng(0)
    group, y = np.zeros(N, int), rng.integers(2, size=N)
    group[:3] = y[:3] = 1
    ds = StreamingDataset({"g": group, "y": y}, batch_size=500, check_order="ignore")
    with pm.Model() as model:
        effect = pm.Normal("effect", 0, 2, shape=2)
        pm.Bernoulli("y", logit_p=effect[ds["g"]], observed=ds["y"], total_size=N)
    point = {"effect": np.array([0.0, 1.76])}
    outcomes = {}
    for seed in range(8):
        try:
            small = subsample_model(model, N // 5, point, random_seed=seed, progressbar=False)
            outcomes[int(small["stream"].get_value()[:, 0].sum())] = None
        except ValueError as error:
            outcomes["refused"] = str(error)
    assert "few rows tell of `effect[1]`" in outcomes.pop("refused")
    assert set(outcomes) <= {0, 1}


def test_streams_of_one_name_and_data_beside():
    one, two = (
        StreamingDataset({"y": rng.normal(size=1000)}, batch_size=50, check_order="ignore")
        for rng in map(np.random.default_rng, (1, 2))
    )
    with pm.Model() as model:
        mu = pm.Normal("mu") * pm.Data("scale", 1.0)
        pm.Normal("a", mu, 1, observed=one["y"], total_size=1000)
        pm.Normal("b", mu, 1, observed=two["y"], total_size=1000)
    small = subsample_model(model, 100, {"mu": 0.0}, **quick)
    assert {"stream", "stream_"} < set(small.named_vars)
    full = FullDataLogp(model, progressbar=False)
    np.testing.assert_allclose(small.compile_logp()({"mu": 0.1}), full.logp(np.array([0.1])))
    with small:
        trace = pm.sample_prior_predictive(5, random_seed=1, var_names=["mu"])
    trace = xr.DataTree.from_dict({"posterior": trace["prior"].to_dataset()})
    report = subsample_report(trace, small, model, **quick)
    assert report.n_rows == 100


def test_draws_that_all_rows_rule_out_are_an_error():
    ds = StreamingDataset({"y": np.linspace(0, 1, 1000)}, batch_size=50, check_order="ignore")
    with pm.Model() as model:
        upper = pm.Gamma("upper", 2, 1)
        pm.Uniform("y", 0, upper, observed=ds["y"], total_size=1000)
    small = subsample_model(model, 10, {"upper": 1.5}, **quick)
    posterior = xr.Dataset({"upper": (("chain", "draw"), [[1.5, 0.999]])})
    trace = xr.DataTree.from_dict({"posterior": posterior})
    with pytest.raises(ValueError, match="1 of 2 draws have no density over all rows"):
        subsample_report(trace, small, model, **quick)


def test_refusals(logistic):
    columns = logistic_rows(2000)
    with pytest.raises(ValueError, match="data in memory"):
        subsample_model(logistic_model(columns), **quick)
    ds = StreamingDataset(columns, batch_size=512, check_order="ignore")
    with pytest.raises(ValueError, match="without total_size"):
        subsample_model(logistic_model(ds), **quick)
    x, y = pm.Minibatch(columns["x"], columns["y"] * 1.0, batch_size=100)
    with pytest.warns(UserWarning, match="total_size not provided"):
        model = logistic_model({"x": x, "y": y})
    with pytest.raises(ValueError, match="`y` uses a minibatch without total_size"):
        subsample_model(model, **quick)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"total_size=4,000.* total_size=2000"):
            subsample_model(logistic_model(ds, total_size=4000), at={"a": 0, "b": 0}, **quick)
    with logistic_model(ds, total_size=2000) as model:
        pm.Potential("extra", -(ds["x"].sum() ** 2) * 0)
    with pytest.raises(ValueError, match="Potential `extra` uses rows"):
        subsample_model(model, **quick)
    with logistic_model(ds, total_size=2000) as model:
        pm.Poisson("k", 1)
    with pytest.raises(ValueError, match="`k`: control variates are derivatives"):
        subsample_model(model, **quick)
    once = StreamingDataset(iter([columns]), batch_size=512, check_order="ignore")
    with pytest.raises(ValueError, match="only once"):
        subsample_model(logistic_model(once, total_size=2000), **quick)
    with pytest.raises(ValueError, match="n_rows"):
        subsample_model(logistic, 0, **quick)
