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
"""Where ADVI starts, and how its rate falls."""

import logging
import shutil

from types import SimpleNamespace

import numpy as np
import pytensor
import pytest

import pymc as pm

from pymc.variational.falling_rate import FallingAdam, first_rate
from pymc.variational.laplace import NoModeError
from pymc.variational.streaming import StreamingDataset

N, B = 10_000, 100
rng = np.random.default_rng(1)
X = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], size=N)
ROWS = np.column_stack([X, X @ [1.0, -2.0] + rng.normal(size=N)])
# The posterior of the model below is normal.
PRECISION = X.T @ X + np.eye(2)
MEAN = np.linalg.solve(PRECISION, X.T @ ROWS[:, 2])
SD = {
    "advi": 1 / np.sqrt(np.diag(PRECISION)),
    "fullrank_advi": np.sqrt(np.diag(np.linalg.inv(PRECISION))),
}


def build(data="stream", total_size=N):
    if data == "memory":
        x, y = X, ROWS[:, 2]
    else:
        source = iter([ROWS]) if data == "one-shot" else ROWS
        rows = StreamingDataset(source, batch_size=B, check_order="ignore").as_tensor()
        x, y = rows[:, :2], rows[:, 2]
    with pm.Model() as model:
        w = pm.Normal("w", shape=2)
        mu = w[0] * x[:, 0] + w[1] * x[:, 1]
        if data == "potential":
            pm.Potential("y", -0.5 * ((y - mu) ** 2).sum() * N / B)
        else:
            pm.Normal("y", mu, 1, observed=y, total_size=total_size)
    return model


def fit(n=20, model=None, **kwargs):
    with model or build():
        return pm.fit(n, progressbar=False, **{"random_seed": 1, **kwargs})


def newton(full, *, start=None, random_seed=None, progressbar=True):
    """Find the mode of a normal density."""
    q = full.ravel(full.model.initial_point())
    logp, gradient, hessian = full.d2logp(q)
    return SimpleNamespace(
        q=q - np.linalg.solve(hessian, gradient), logp=logp, precision=-hessian, n_passes=1
    )


def give_mode(monkeypatch, find_mode):
    """Put another function in the place of the one that finds the mode."""
    monkeypatch.setattr("pymc.variational.laplace.find_mode", find_mode)
    monkeypatch.setattr("pymc.variational.laplace.say_pareto_k", lambda mode, rng: None)


@pytest.fixture
def mode(monkeypatch):
    give_mode(monkeypatch, newton)


@pytest.fixture
def no_mode(monkeypatch):
    def fail(*args, **kwargs):
        raise NoModeError("flat in `w`")

    give_mode(monkeypatch, fail)


def parameters(approx):
    return [param.get_value() for param in approx.params]


@pytest.mark.parametrize(
    "n_steps, noise, rate", [(400, 70, 0.0025), (20_000, 10, 0.02), (200, 1, 0.1)]
)
def test_first_rate(n_steps, noise, rate):
    assert first_rate(n_steps, noise) == pytest.approx(rate)


def test_the_rate_falls_between_two_steps():
    x = pytensor.shared(np.zeros(2, pytensor.config.floatX))
    optimizer = FallingAdam([np.array([0.1, 10])])
    step = pytensor.function([], [], updates=optimizer(x.sum(), [x]))
    path = [x.get_value()]
    for first, last in ((0, 4), (4, 6)):
        optimizer.fall_between(first, last)
        for _ in range(first, last):
            step()
            path.append(x.get_value())
    # The gradient is one, so that Adam's step is the rate.
    rates = [0.1, 0.075, 0.05, 0.025, 0.1, 0.05]
    np.testing.assert_allclose(-np.diff(path, axis=0), np.outer(rates, [1, 100]), rtol=1e-4)


@pytest.mark.parametrize("method", SD)
def test_a_fit_starts_at_the_mode_and_stays_there(method, mode, caplog):
    first = []

    def note_first(approx, losses, i):
        if i == 1:
            first.extend([approx.mean.eval(), approx.cov.eval()])

    with caplog.at_level(logging.INFO):
        end = fit(300, method=method, callbacks=[note_first])
    assert f"Initializing {method} using mode of all rows (1 passes)" in caplog.text
    covariance = np.linalg.inv(PRECISION) if method == "fullrank_advi" else np.diag(SD[method] ** 2)
    assert np.abs(first[0] - MEAN).max() < 0.03 * SD[method].min()
    np.testing.assert_allclose(first[1], covariance, rtol=0.02, atol=1e-9)
    assert 0 < np.abs(end.mean.eval() - MEAN).max() < 0.5 * SD[method].min()
    np.testing.assert_allclose(end.std.eval(), SD[method], rtol=0.25)


@pytest.mark.parametrize(
    "data, kwargs",
    [
        ("memory", {}),
        ("stream", {"init": "initial_point"}),
        ("stream", {"start": {"w": np.ones(2)}}),
        ("stream", {"start_sigma": {"w": np.ones(2)}}),
        ("stream", {"obj_optimizer": pm.adam()}),
        ("stream", {"inf_kwargs": {"start": {"w": np.ones(2)}}}),
    ],
)
def test_what_is_chosen_is_used_as_it_is(data, kwargs, monkeypatch):
    give_mode(monkeypatch, lambda *args, **kwargs: pytest.fail("a pass"))
    fit(0, build(data), **kwargs)


def test_the_optimizer_that_is_passed_goes_on_from_the_mode(mode):
    approx = fit(1, init="mode", obj_optimizer=pm.sgd(learning_rate=0.0))
    np.testing.assert_allclose(approx.mean.eval(), MEAN, rtol=1e-6)


def test_a_model_in_memory_starts_at_the_mode_if_asked(mode):
    np.testing.assert_allclose(fit(0, build("memory"), init="mode").mean.eval(), MEAN, rtol=1e-6)


@pytest.mark.parametrize(
    "data, why",
    [("stream", "flat in `w`"), ("one-shot", "only once"), ("potential", "Potential")],
)
@pytest.mark.filterwarnings("ignore:stream .* enters the model other than:UserWarning")
def test_without_a_mode_it_starts_as_ever(data, why, no_mode, caplog):
    with caplog.at_level(logging.INFO):
        fit(0, build(data))
    [line] = [line for line in caplog.messages if line.startswith("Initializing")]
    assert "initial_point" in line and why in line


def test_without_a_mode_there_is_no_start_at_it(no_mode):
    as_ever = fit(2, init="initial_point")
    np.testing.assert_array_equal(parameters(fit(2)), parameters(as_ever))
    with pytest.raises(ValueError, match="flat in `w`"):
        fit(2, init="mode")


@pytest.mark.parametrize(
    "kwargs, match",
    [
        ({"init": "adapt_diag"}, "'auto', 'mode', 'initial_point'"),
        ({"init": "mode", "method": "asvgd"}, "'advi' and 'fullrank_advi'"),
        ({"init": "mode", "start": {"w": np.ones(2)}}, 'init="mode" and start both'),
    ],
)
@pytest.mark.filterwarnings("ignore:You are using experimental inference:UserWarning")
def test_what_does_not_go_together_is_refused(kwargs, match, mode):
    with pytest.raises(ValueError, match=match):
        fit(0, build("memory"), **kwargs)


@pytest.mark.parametrize("inference", [pm.ADVI, pm.FullRankADVI])
def test_an_inference_does_not_ignore_init(inference):
    with pytest.raises(TypeError, match=r"pm.fit\(method='advi', init='mode'\)"):
        inference(model=build(), init="mode")


def test_a_model_that_is_refused_is_not_read_first(monkeypatch):
    give_mode(monkeypatch, lambda *args, **kwargs: pytest.fail("a pass"))
    with pytest.raises(ValueError, match="total_size=10000"):
        fit(model=build(total_size=None))


def test_a_checkpoint_goes_on_to_the_same_bits(monkeypatch, tmp_path):
    jitter = np.random.default_rng(2)

    def find_mode(full, **kwargs):
        # Another process may find a mode that differs in its last digits.
        mode = newton(full)
        mode.q = mode.q + 1e-9 * jitter.normal(size=2)
        mode.precision = mode.precision * (1 + 1e-9 * jitter.normal())
        return mode

    give_mode(monkeypatch, find_mode)
    path, early = tmp_path / "fit.ckpt", tmp_path / "early.ckpt"
    copy = lambda approx, losses, i: i == 12 and shutil.copy(path, early)  # noqa: E731
    whole = fit(20, checkpoint=path, checkpoint_interval=0, callbacks=[copy])
    numbers = []
    again = fit(20, checkpoint=early, callbacks=[lambda approx, losses, i: numbers.append(i)])
    assert numbers == list(range(12, 21))
    np.testing.assert_array_equal(parameters(again), parameters(whole))
    longer = fit(30, checkpoint=path)  # the rate falls to step 30 now
    assert len(longer.hist) == 30
    assert not np.array_equal(parameters(longer)[0], parameters(whole)[0])
