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
import re
import warnings

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

import pymc as pm

from pymc.variational.fit_check import FitWatch
from pymc.variational.laplace import find_mode
from pymc.variational.streaming import FitConvergenceWarning, FullDataLogp, StreamingDataset
from pymc.variational.updates import get_or_compute_grads

N, BATCH_SIZE = 10_000, 100


def rows_of(name, seed=1):
    rng = np.random.default_rng(seed)
    x, group = rng.normal(size=N), rng.integers(0, 10, N)
    linear = 0.5 + 0.7 * x
    chance = 1 / (1 + np.exp(-linear))
    effect = rng.normal(0, 0.5, 10)[group]
    y = {
        "logistic": lambda: rng.random(N) < chance,
        "normal": lambda: linear + rng.normal(0, 2, N),
        "poisson": lambda: rng.poisson(np.exp(linear / 2)),
        "negative binomial": lambda: rng.poisson(np.exp(linear / 2) * rng.gamma(2, 0.5, N)),
        "student": lambda: linear + 0.7 * rng.standard_t(4, N),
        "gamma": lambda: rng.gamma(3, np.exp(linear / 2) / 3),
        "groups": lambda: linear + effect + rng.normal(0, 1, N),
        "exponential": lambda: rng.exponential(np.exp(linear / 2)),
    }[name]()
    return {"x": x, "group": group, "y": y.astype(float)}


def model_of(name, ds):
    with pm.Model() as model:
        b = pm.Normal("b", 0, 3, shape=2)
        linear = b[0] + b[1] * ds["x"]
        kwargs = {"observed": ds["y"], "total_size": ds.total_size}
        if name == "logistic":
            pm.Bernoulli("y", logit_p=linear, **kwargs)
        elif name == "normal":
            pm.Normal("y", linear, pm.HalfNormal("s", 5), **kwargs)
        elif name == "poisson":
            pm.Poisson("y", pt.exp(linear), **kwargs)
        elif name == "negative binomial":
            pm.NegativeBinomial("y", mu=pt.exp(linear), alpha=pm.Exponential("a", 1), **kwargs)
        elif name == "student":
            pm.StudentT("y", nu=pm.Gamma("nu", 2, 0.1), mu=linear, sigma=1, **kwargs)
        elif name == "gamma":
            shape = pm.Exponential("a", 1)
            pm.Gamma("y", alpha=shape, beta=shape / pt.exp(linear), **kwargs)
        elif name == "groups":
            effect = pm.Normal("effect", 0, 0.5, shape=10)
            pm.Normal("y", linear + effect[ds["group"]], 1, **kwargs)
        elif name == "exponential":
            pm.Exponential("y", pt.exp(-linear), **kwargs)
    return model


MODELS = [
    "logistic",
    "normal",
    "poisson",
    "negative binomial",
    "student",
    "gamma",
    "groups",
    "exponential",
]


def peak_of(model):
    """Return the mode of all rows, and the precision there."""
    mode = find_mode(FullDataLogp(model, progressbar=False), progressbar=False)
    return mode.q, mode.precision


def set_approx(approx, q, sds):
    for param in approx.params:
        values = {"mu": q, "rho": np.log(np.expm1(sds))}[param.name]
        param.set_value(values.astype(param.dtype))


def warnings_of(fit):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit()
    assert not any("was not checked" in str(warning.message) for warning in caught)
    return [str(w.message) for w in caught if w.category is FitConvergenceWarning]


def fit_from(model, q, sds, n=1000, rate=0.05, falls=True, seed=1):
    """Fit from a place near the optimum, with steps in units of the sds."""
    with model:
        inference = pm.ADVI(random_seed=seed)
    set_approx(inference.approx, q, sds)
    current = pytensor.shared(np.asarray(rate, pytensor.config.floatX))

    def callback(approx, losses, i):
        current.set_value(np.asarray(rate * (1 - falls * i / n), pytensor.config.floatX))

    def optimizer(loss, params):
        updates = {}
        for gradient, param in zip(get_or_compute_grads(loss, params), params):
            updates |= pm.adam([gradient], [param], learning_rate=current * sds.astype(param.dtype))
        return updates

    return warnings_of(
        lambda: inference.fit(n, obj_optimizer=optimizer, callbacks=[callback], progressbar=False)
    )


def stream(rows, **kwargs):
    return StreamingDataset(rows, batch_size=BATCH_SIZE, check_order="ignore", **kwargs)


def default_fit(model, n, seed):
    with model:
        return warnings_of(lambda: pm.fit(n, random_seed=seed, progressbar=False))


def test_the_default_is_right_and_silent():
    assert default_fit(model_of("logistic", stream(rows_of("logistic"))), 1000, seed=1) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", MODELS)
def test_right_fits_are_silent(name, seed):
    assert default_fit(model_of(name, stream(rows_of(name, seed))), 3000, seed) == []


@pytest.fixture(scope="module")
def normal():
    """Return a model whose posterior is known, with its mean and sd, and the stream."""
    y = np.random.default_rng(1).normal(7, 1, N)
    ds = stream(y)
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 100)
        pm.Normal("y", mu, 1, observed=ds.as_tensor(), total_size=N)
    precision = N + 1e-4
    return model, np.array([y.sum() / precision]), np.array([precision**-0.5]), ds


@pytest.mark.parametrize(
    "mean_off, sd_factor, said",
    [
        (0, 1, None),
        (0.3, 1.2, None),
        (0, 1.9, r"the sd of `mu` is .*, 1\.9 times what it converges to \(1 of 1 "),
        (0, 0.5, r"the sd of `mu` is .*, 0\.5 times what it converges to"),
        (-0.8, 1, r"the mean of `mu` is 0\.8 posterior sds from where it should be"),
    ],
)
@pytest.mark.parametrize("score", [True, False])
def test_what_is_off(normal, mean_off, sd_factor, said, score):
    """Steps of rate zero leave the approximation where it was put: figures are exact."""
    model, mean, sd, ds = normal
    ds.reset()
    with model:
        inference = pm.ADVI(random_seed=1)
    set_approx(inference.approx, mean + mean_off * sd, sd * sd_factor)
    nothing = pm.sgd(learning_rate=0.0)
    found = warnings_of(
        lambda: inference.fit(100, obj_optimizer=nothing, progressbar=False, score=score)
    )
    assert len(found) == (said is not None)
    if said is not None:
        assert re.search(said, found[0])
        assert 'method="laplace"' in found[0] and "fit_report(approx)" in found[0]


def test_means_that_wander(normal):
    model, mean, sd, _ = normal
    [found] = fit_from(model, mean, sd, n=1000, rate=0.5, falls=False)
    assert "the mean of `mu` still moves" in found


@pytest.mark.parametrize("method", ["advi", "fullrank_advi"])
def test_the_default_optimizer(normal, method):
    model, *_ = normal
    kwargs = {"method": method, "obj_optimizer": pm.adagrad_window(), "random_seed": 1}
    with model:
        [found] = warnings_of(lambda: pm.fit(300, progressbar=False, **kwargs))
    assert "has not converged after 300 steps: the sd of `mu` is" in found


def test_full_rank_is_held_against_marginal_sds():
    rows = np.random.default_rng(1).normal(size=N)
    ds = stream(rows)
    with pm.Model() as model:
        a = pm.Normal("a", 0, 1, shape=2)
        pm.Normal("y", a.sum(), 1, observed=ds.as_tensor(), total_size=N)
        inference = pm.FullRankADVI(random_seed=1)
    q, precision = peak_of(model)
    root = np.linalg.cholesky(np.linalg.inv(precision))

    def fit(root):
        packed = root.copy()
        np.fill_diagonal(packed, np.log(np.expm1(root.diagonal())))
        for param in inference.approx.params:
            values = {"mu": q, "L_tril": packed[np.tril_indices(2)]}[param.name]
            param.set_value(values.astype(param.dtype))
        ds.reset()
        nothing = pm.sgd(learning_rate=0.0)
        return warnings_of(lambda: inference.fit(100, obj_optimizer=nothing, progressbar=False))

    assert fit(root) == []
    [found] = fit(np.diag(np.diag(precision) ** -0.5))  # what is right for mean-field
    assert "the sd of `a[" in found


def test_a_log_density_without_a_peak():
    """Between two modes no sd is right."""
    rows = np.random.default_rng(1).normal(1, 1, N)
    ds = stream(rows)
    with pm.Model() as model:
        a = pm.Normal("a", 0, 1)
        pm.Normal("y", a**2, 1, observed=ds.as_tensor(), total_size=N)
        inference = pm.ADVI(random_seed=1)
    set_approx(inference.approx, np.zeros(1), np.full(1, 0.01))
    [found] = warnings_of(
        lambda: inference.fit(100, obj_optimizer=pm.sgd(learning_rate=0.0), progressbar=False)
    )
    assert "no peak at the means, but grows away from them along `a`" in found


def test_a_fit_of_too_few_rows():
    """Half of the rows, in random order, do not tell the mean to half an sd."""
    rng = np.random.default_rng(1)
    ds = StreamingDataset(rng.normal(7, 1, 1_000_000), batch_size=1000, check_order="ignore")
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 100)
        pm.Normal("y", mu, 1, observed=ds.as_tensor(), total_size=ds.total_size)
    q, sd = np.array([7.01]), np.array([1e-3])
    [found] = fit_from(model, q, sd, n=500, rate=0.1)
    assert "and 0.5 epochs do not tell it closer than 1.4" in found


@pytest.mark.parametrize("ends", ["callback", "interrupt"])
def test_a_fit_that_ends_early_is_checked(normal, ends):
    model, *_ = normal

    def callback(approx, losses, i):
        if i == 150:
            raise StopIteration if ends == "callback" else KeyboardInterrupt

    kwargs = {"obj_optimizer": pm.adagrad_window(), "callbacks": [callback]}
    with model:
        [found] = warnings_of(lambda: pm.fit(1000, progressbar=False, **kwargs))
    assert "after 150 steps" in found


def test_trials_and_other_fits_are_not_checked(normal):
    model, *_ = normal
    kwargs = {"obj_optimizer": pm.adagrad_window(), "progressbar": False}
    with model:
        assert warnings_of(lambda: pm.fit(99, **kwargs)) == []
        assert warnings_of(lambda: pm.fit(100, method="svgd", **kwargs)) == []
    with pm.Model():
        pm.Normal("y", pm.Normal("mu"), 1, observed=np.full(10, 5.0))
        assert warnings_of(lambda: pm.fit(100, **kwargs)) == []


def test_refine_is_checked_and_a_finished_checkpoint_is_not(normal, tmp_path):
    model, _, _, ds = normal

    def fit():
        ds.reset()
        with model:
            inference = pm.ADVI(random_seed=1)
        checkpoint = tmp_path / "fit.ckpt"
        inference.fit(
            150, obj_optimizer=pm.adagrad_window(), checkpoint=checkpoint, progressbar=False
        )
        return inference

    assert len(warnings_of(fit)) == 1
    assert warnings_of(fit) == []
    inference = fit()
    assert len(warnings_of(lambda: inference.refine(100, progressbar=False))) == 1


def test_a_check_that_fails_is_said_and_loses_nothing(normal, monkeypatch):
    model, *_ = normal

    def fail(watch):
        raise ZeroDivisionError("broken")

    monkeypatch.setattr(FitWatch, "_findings", fail)
    with model, pytest.warns(UserWarning, match="not checked: ZeroDivisionError: broken"):
        approx = pm.fit(100, obj_optimizer=pm.adagrad_window(), progressbar=False)
    assert len(approx.hist) == 100


def test_a_first_part_of_the_rows_is_said_too():
    ds = StreamingDataset(np.zeros(1000), batch_size=100)
    with pm.Model():
        pm.Normal("y", pm.Normal("mu"), 1, observed=ds.as_tensor(), total_size=1000)
        [found] = warnings_of(lambda: pm.fit(3, progressbar=False, init="initial_point"))
    assert "300 of 1,000 rows were read so far (0.3 of an epoch)" in found
