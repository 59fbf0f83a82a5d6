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

import arviz_stats as az
import numpy as np
import pytensor.tensor as pt
import pytest

from arviz_base import from_dict
from scipy.special import logsumexp

import pymc as pm

from pymc.variational import rows_at_draws
from pymc.variational.streaming import LeaveOneOut, StreamingDataset, log_predictive, shuffle_buffer

N, S = 20_001, 40
RNG = np.random.default_rng(1)
GROUP = RNG.integers(0, 5, N)
TABLE = {
    "y": GROUP + RNG.standard_t(5, size=N),
    "group": GROUP,
    "count": RNG.poisson(3, N),
}
FEW = {name: values[:1001] for name, values in TABLE.items()}
POSTERIOR = from_dict(
    {
        "posterior": {
            "effect": np.arange(5) + RNG.normal(0, 0.02, (2, S // 2, 5)),
            "noise": 1.3 + RNG.normal(0, 0.006, (2, S // 2)),
        }
    }
)
QUIET = {"n_draws": S, "progressbar": False, "random_seed": 1}


def grouped(rows, total_size=None):
    """A variable by groups, and another one that is observed in the same rows."""
    with pm.Model() as model:
        effect = pm.Normal("effect", 0, 5, shape=5)
        noise = pm.HalfNormal("noise", 2)
        pm.Normal("y", effect[rows["group"]], noise, observed=rows["y"], total_size=total_size)
        pm.Poisson("count", pt.exp(effect[1]), observed=rows["count"], total_size=total_size)
    return model


def streamed(batch_size=1000, table=TABLE, **kwargs):
    ds = StreamingDataset(table, batch_size=batch_size, check_order="ignore", **kwargs)
    return grouped({name: ds[name] for name in TABLE}, ds.total_size)


def in_memory(table):
    """Return the posterior with log-likelihoods, as of data in memory."""
    posterior = POSTERIOR.copy()
    with grouped({name: pt.as_tensor(table[name]) for name in TABLE}):
        return pm.compute_log_likelihood(posterior, progressbar=False)


def terms_of(posterior, var_name="y"):
    """Return the log predictive density of each row, and the variance of its log-density."""
    logp = posterior["log_likelihood"][var_name].values.reshape(S, -1)
    return logsumexp(logp, axis=0) - np.log(S), logp.var(axis=0, ddof=1)


@pytest.fixture(scope="module")
def all_rows():
    return terms_of(in_memory(TABLE))


@pytest.mark.filterwarnings("ignore:.*PSIS-LOO")
@pytest.mark.parametrize("batch_size", [400, 2**14])  # the last batch has one row, or a few
def test_waic_is_that_of_data_in_memory(all_rows, batch_size):
    loo = log_predictive(
        POSTERIOR,
        model=streamed(batch_size),
        var_name="y",
        n_loo_rows=100,
        pointwise=True,
        **QUIET,
    )
    density, variance = all_rows
    np.testing.assert_allclose(loo.elpd_i, density - variance, rtol=1e-10)
    np.testing.assert_allclose(loo.elpd_waic, np.sum(density - variance), rtol=1e-12)
    np.testing.assert_allclose(loo.p_waic, variance.sum(), rtol=1e-8)
    assert loo.high_variance == np.sum(variance > 0.4)
    assert (loo.n_data_points, loo.n_samples, len(loo.pareto_k)) == (N, S, 100)


@pytest.mark.filterwarnings("ignore:.*PSIS-LOO", "ignore:Estimated shape")
def test_loo_is_that_of_arviz_where_all_rows_are_in_its_sample():
    posterior = in_memory(FEW)
    expected = az.loo(posterior, var_name="y", reff=1.0, pointwise=True)
    loo = log_predictive(posterior, model=streamed(100, FEW), var_name="y", **QUIET)
    np.testing.assert_allclose(
        [loo.elpd, loo.se, loo.p, loo.subsampling_se],
        [expected.elpd, expected.se, expected.p, 0],
        rtol=1e-8,
    )
    np.testing.assert_allclose(loo.pareto_k, expected.pareto_k, rtol=1e-6)
    assert loo.good_k == expected.good_k


@pytest.mark.filterwarnings("ignore:.*PSIS-LOO")
def test_a_sample_of_rows_estimates_loo_of_all_within_its_error():
    model = streamed(100, FEW)
    exact = log_predictive(POSTERIOR, model=model, var_name="y", **QUIET)
    errors = []
    for seed in range(8):
        part = log_predictive(
            POSTERIOR, model=model, var_name="y", n_loo_rows=200, **QUIET | {"random_seed": seed}
        )
        assert 0 < part.subsampling_se < 0.02 * part.se
        errors.append((part.elpd - exact.elpd) / part.subsampling_se)
    assert 0.3 < np.std(errors) < 3


@pytest.mark.parametrize(
    "source",
    [
        FEW,
        # In another order, with one more column, in blocks: read once.
        iter([{"more": np.zeros(7)} | {name: FEW[name][i::143] for name in reversed(FEW)}
              for i in range(143)]),
    ],
    ids=["table", "iterator"],
)  # fmt: skip
def test_a_held_out_source(source):
    density, _ = terms_of(in_memory(FEW), "count")
    held_out = log_predictive(POSTERIOR, source, model=streamed(256), var_name="count", **QUIET)
    assert not isinstance(held_out, LeaveOneOut)
    assert (held_out.n_data_points, held_out.elpd_i) == (1001, None)
    np.testing.assert_allclose(held_out.elpd, density.sum(), rtol=1e-12)
    np.testing.assert_allclose(held_out.se, np.sqrt(1001 * density.var(ddof=1)), rtol=1e-10)


def test_a_held_out_source_is_preprocessed_and_checked_as_the_stream_is():
    def recode(block):
        return block | {"group": block["group"] - 10}

    source = FEW | {"group": FEW["group"] + 10}
    model = streamed(256, source, preprocess_fn=recode)
    density, _ = terms_of(in_memory(FEW))
    # In another order, so that they are not known for those of the fit.
    other = {name: values[::-1] for name, values in source.items()}
    held_out = log_predictive(POSTERIOR, other, model=model, var_name="y", **QUIET)
    np.testing.assert_allclose(held_out.elpd, density.sum(), rtol=1e-12)
    for wrong, message in [
        (FEW, "index into `effect`"),
        ({"y": FEW["y"], "count": FEW["count"]}, "group"),
        (source | {"group": source["group"] + 0.5}, "'group': .* held exactly"),
        (source | {"y": np.full(1001, np.nan)}, "'y': 1001 NaN"),
    ]:
        with pytest.raises((ValueError, KeyError), match=message):
            log_predictive(POSTERIOR, wrong, model=model, var_name="y", **QUIET)


@pytest.mark.filterwarnings("ignore:.*PSIS-LOO")
def test_the_result_does_not_depend_on_the_number_of_threads(monkeypatch):
    model, results = streamed(100), []
    for n_threads in (1, 4):
        monkeypatch.setattr(rows_at_draws, "default_threads", lambda: n_threads)
        loo = log_predictive(POSTERIOR, model=model, var_name="y", n_loo_rows=100, **QUIET)
        results.append((loo.elpd, loo.se, loo.elpd_waic, loo.p_waic, loo.pareto_k.tolist()))
    assert results[0] == results[1]


@pytest.mark.filterwarnings("ignore:.*PSIS-LOO")
@pytest.mark.parametrize("form", ["tuple of arrays", "pm.Minibatch"])
def test_a_row_that_is_a_vector_has_the_density_of_all_of_it(form):
    x, y = RNG.normal(size=(101, 2)), RNG.normal(size=(101, 2))
    if form == "pm.Minibatch":
        batch_x, batch_y = pm.Minibatch(x, y, batch_size=20)
    else:
        ds = StreamingDataset((x, y), batch_size=20, check_order="ignore")
        batch_x, batch_y = ds.as_tensor()
    with pm.Model() as model:
        slope = pm.Normal("slope")
        pm.Normal("y", slope * batch_x, 1, observed=batch_y, total_size=101)
        approx = pm.fit(2, progressbar=False)
    posterior = approx.sample(S, random_seed=2)
    slopes = posterior.posterior["slope"].values.ravel()
    logp = pm.logp(pm.Normal.dist(slopes[:, None, None] * x, 1), y).eval().sum(axis=2)
    expected = logsumexp(logp, axis=0).sum() - 101 * np.log(S)
    held_out = log_predictive(posterior, (x[::-1], y[::-1]), model=model, **QUIET)
    np.testing.assert_allclose(held_out.elpd, expected, rtol=1e-10)
    assert log_predictive(approx, **QUIET).n_data_points == 101


def test_what_waic_and_loo_are_not_to_be_relied_on_for():
    outlier = FEW | {"y": np.r_[FEW["y"][:-1], 60]}
    with pytest.warns() as record:
        loo = log_predictive(POSTERIOR, model=streamed(100, outlier), var_name="y", **QUIET)
    variance, pareto_k = (str(warning.message) for warning in record)
    assert loo.high_variance == 1 and variance.startswith("1 of 1,001 rows")
    assert loo.pareto_k[-1] > loo.good_k and "Pareto k above 0.38" in pareto_k


def test_rows_that_cannot_be():
    source = FEW | {"count": np.r_[-1, FEW["count"][1:]]}
    with pytest.warns(UserWarning, match="density zero"):
        held_out = log_predictive(
            POSTERIOR, source, model=streamed(256), var_name="count", pointwise=True, **QUIET
        )
    assert np.isneginf(held_out.elpd_i).nonzero()[0].tolist() == [0]


def of_one_variable(observed):
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("effect"), 1, observed=observed, total_size=100)
    return model


def with_potential():
    ds = StreamingDataset(np.zeros(100), batch_size=10, check_order="ignore")
    with of_one_variable(ds.as_tensor()) as model:
        pm.Potential("penalty", -(ds.as_tensor() ** 2).sum())
    return model


@pytest.mark.parametrize(
    ("model", "kwargs", "message"),
    [
        (streamed, {}, r"\['y', 'count'\].*var_name='y'"),
        (streamed, {"var_name": "x"}, "var_name='x' is none of .*'y', 'count'"),
        (streamed, {"var_name": "y", "n_draws": 10}, "10 draws.* need 25 draws"),
        (with_potential, {}, "`penalty` uses rows"),
        (lambda: of_one_variable(np.zeros(100)), {}, "pm.compute_log_likelihood"),
    ],
)
def test_what_cannot_be_evaluated(model, kwargs, message):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        warnings.simplefilter("ignore")
        log_predictive(POSTERIOR, model=model(), **QUIET | kwargs)


def test_a_source_that_was_read():
    with pytest.raises(ValueError, match="no rows"):
        log_predictive(POSTERIOR, iter([]), model=streamed(), var_name="y", **QUIET)
    with pytest.raises(TypeError, match="is a StreamingDataset"):
        ds = StreamingDataset(FEW, batch_size=10)
        log_predictive(POSTERIOR, ds, model=streamed(), var_name="y", **QUIET)
    with pytest.raises(TypeError, match="Got dict"):
        log_predictive({}, model=streamed(), var_name="y", **QUIET)
    with pytest.raises(ValueError, match=r"no draws of \['noise'\]"):
        posterior = from_dict({"posterior": {"effect": np.zeros((1, 40, 5))}})
        log_predictive(posterior, model=streamed(), var_name="y", **QUIET)


def test_rows_of_the_fit_are_known_again():
    rows = {"y": np.random.default_rng(1).normal(size=1000)}
    source = shuffle_buffer(rows, buffer_size=200, batch_size=50, seed=1)
    ds = StreamingDataset(source, batch_size=50, check_order="ignore")
    with pm.Model():
        pm.Normal("y", pm.Normal("mu"), 1, observed=ds["y"], total_size=1000)
        approx = pm.fit(method="laplace", progressbar=False, random_seed=1)
    kwargs = {"progressbar": False, "random_seed": 1, "n_draws": 30}
    for same in (rows, {"y": rows["y"].copy()}, source):
        assert isinstance(log_predictive(approx, same, **kwargs), LeaveOneOut)
    for other in ({"y": rows["y"] + 1}, {"y": rows["y"][:999]}, lambda: iter([rows])):
        assert not isinstance(log_predictive(approx, other, **kwargs), LeaveOneOut)
