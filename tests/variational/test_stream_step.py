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

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

import pymc as pm

from pymc.model.fgraph import clone_model
from pymc.variational.callbacks import Tracker
from pymc.variational.streaming import StreamingDataset


def numbered(n=1000, batch_size=10, **kwargs):
    """Stream the numbers 0, 1, 2, ... in order, so that a batch tells which one it is."""
    return StreamingDataset(np.arange(n), batch_size=batch_size, **kwargs)


def model_of(ds, total_size="auto"):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1000)
        total_size = ds.total_size if total_size == "auto" else total_size
        pm.Normal("y", mu, 1, observed=ds.as_tensor(), total_size=total_size)
    return model


def first_rows(ds, seen):
    """Return a callback that notes which batch the step has used."""
    return lambda *args: seen.append(int(ds.as_tensor().get_value()[0]))


fit_kwargs = {"progressbar": False, "random_seed": 1}


@pytest.mark.parametrize("score", [True, False])
@pytest.mark.parametrize(
    "passed", ["no callback", "fit_callback", "fit_callback(seed=False)", "advance"]
)
def test_each_step_uses_a_new_batch(passed, score):
    """A forgotten callback cannot leave the buffer stale, a passed one skips nothing."""
    ds = numbered()
    seen = []
    callbacks = [first_rows(ds, seen)]
    if passed == "fit_callback":
        callbacks.append(ds.fit_callback())
    elif passed == "fit_callback(seed=False)":
        callbacks.insert(0, ds.fit_callback(seed=False))
    elif passed == "advance":
        callbacks.append(lambda *args: ds.advance())
    with model_of(ds):
        pm.fit(7, callbacks=callbacks, score=score, **fit_kwargs)
    assert seen == [0, 10, 20, 30, 40, 50, 60]
    assert ds.batches_seen == (8 if passed == "advance" else 7)


@pytest.mark.parametrize("backend", ["numba", "c", "jax"])
def test_backends(backend):
    if backend == "jax":
        pytest.importorskip("jax")
    ds, static = numbered(), numbered()
    hists = []
    for stream in (ds, static):
        with model_of(stream):
            with pytest.warns() if backend == "jax" else contextlib.nullcontext():
                optimizer = pm.adagrad_window()  # from the initial point
                approx = pm.fit(5, backend=backend, obj_optimizer=optimizer, **fit_kwargs)
                hists.append(approx.hist)
    assert ds.batches_seen == 5
    # The batches grow, and with them the loss: a stale buffer would show here.
    assert (np.diff(hists[0]) > 0).all()
    np.testing.assert_allclose(*hists)


@pytest.mark.parametrize(
    "method", ["advi", "fullrank_advi", "svgd", "asvgd", "instance", "Inference.fit"]
)
def test_methods(method):
    ds = numbered()
    with model_of(ds) as model:
        if method == "Inference.fit":
            pm.FullRankADVI(random_seed=1).fit(5, progressbar=False)
        elif method == "instance":
            pm.fit(5, method=pm.ADVI(model=model, random_seed=1), progressbar=False)
        else:
            ignored = pytest.warns(UserWarning, match="experimental")
            inf_kwargs = {"n_particles": 3} if method == "svgd" else {}
            n_mc = {"obj_n_mc": 3} if method == "asvgd" else {}
            with ignored if method == "asvgd" else contextlib.nullcontext():
                pm.fit(5, method=method, inf_kwargs=inf_kwargs, **n_mc, **fit_kwargs)
    assert ds.batches_seen == 5


@pytest.mark.parametrize("score", [True, False])
def test_refine_and_a_second_fit_go_on(score):
    ds = numbered()
    seen = []
    with model_of(ds):
        inference = pm.ADVI(random_seed=1)
        inference.fit(3, callbacks=[first_rows(ds, seen)], progressbar=False, score=score)
        inference.refine(2, progressbar=False)
        inference.fit(2, callbacks=[first_rows(ds, seen)], progressbar=False)
    assert seen == [0, 10, 20, 30, 40, 50, 60]


def test_a_batch_loaded_by_hand_is_used():
    ds = numbered()
    ds.advance()
    ds.advance()
    seen = []
    with model_of(ds):
        pm.fit(2, callbacks=[first_rows(ds, seen)], **fit_kwargs)
    assert seen == [10, 20]


def test_callbacks_keep_order_and_meaning():
    ds = numbered()
    calls = []
    tracker = Tracker(seen=lambda: ds.batches_seen)
    with model_of(ds):
        pm.fit(
            3,
            callbacks=[
                lambda approx, losses, i: calls.append(("first", len(losses), i)),
                tracker,
                ds.fit_callback(),
                lambda approx, losses, i: calls.append(("last", len(losses), i)),
            ],
            **fit_kwargs,
        )
    assert calls == [(who, i, i) for i in (1, 2, 3) for who in ("first", "last")]
    assert tracker["seen"] == [1, 2, 3]


def test_every_stream_of_a_model_advances():
    one, two, unused = numbered(), numbered(batch_size=20, name="second"), numbered()
    with pm.Model():
        mu = pm.Normal("mu", 0, 1000)
        pm.Normal("y", mu, 1, observed=one.as_tensor(), total_size=1000)
        pm.Potential("p", -pt.sqr(two.as_tensor() - mu).sum() * 50)
        with pytest.warns(UserWarning, match="'second' enters the model other than .* N / 20"):
            pm.fit(4, **fit_kwargs)
    assert (one.batches_seen, two.batches_seen, unused.batches_seen) == (4, 4, 0)


def test_a_stream_in_several_variables_advances_once():
    rows = {"x": np.arange(100.0), "group": np.arange(100) % 3, "y": np.arange(100.0)}
    ds = StreamingDataset(rows, batch_size=10)
    with pm.Model():
        a = pm.Normal("a", shape=3)
        for name in ("y1", "y2"):
            mu = a[ds["group"]] + ds["x"]
            pm.Normal(name, mu, 1, observed=ds["y"], total_size=ds.total_size)
        pm.fit(4, **fit_kwargs)
    assert ds.batches_seen == 4


def test_a_copy_of_a_model_streams_too():
    ds = numbered()
    with clone_model(model_of(ds)):
        pm.fit(3, **fit_kwargs)
    assert ds.batches_seen == 3


def test_models_without_streams_are_left_alone(fail_on_warning):
    with pm.Model():
        mu = pm.Normal("mu")
        pm.Normal("y", mu, 1, observed=np.zeros(3))
        approx = pm.fit(20, **fit_kwargs)
    assert len(approx.hist) == 20


def test_errors_of_the_source_stop_the_fit():
    def source():
        yield np.zeros(20)
        raise OSError("disk on fire")

    with model_of(StreamingDataset(source, batch_size=10), total_size=20):
        with pytest.raises(OSError, match="disk on fire"):
            pm.fit(5, **fit_kwargs)


def test_logp_is_prior_plus_scaled_likelihood_of_the_batch():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(1000, 2))
    ds = StreamingDataset(rows, batch_size=8)
    with pm.Model() as model:
        b = pm.Normal("b", 0, 3)
        buf = ds.as_tensor()
        y = pm.Normal("y", b * buf[:, 0], 1, observed=buf[:, 1], total_size=ds.total_size)
    logp, prior = model.compile_logp(), model.compile_logp(vars=[b])
    dlogp = model.compile_dlogp()
    rtol = 1e-12 if pytensor.config.floatX == "float64" else 1e-5
    for value in (-0.7, 1.3):
        point = {"b": np.array(value, dtype=pytensor.config.floatX)}
        for start in (0, 8, 16):
            ds.advance()
            x, obs = rows[start : start + 8].T
            residual = obs - value * x
            likelihood = np.sum(-0.5 * residual**2 - 0.5 * np.log(2 * np.pi))
            expected = prior(point) + 1000 / 8 * likelihood
            np.testing.assert_allclose(logp(point), expected, rtol=rtol)
            slope = -value / 9 + 1000 / 8 * np.sum(residual * x)
            np.testing.assert_allclose(dlogp(point), slope, rtol=rtol)
        while ds.rows_streamed % 1000:  # to the end of the epoch
            ds.advance()


@pytest.mark.parametrize("streamed", [True, False])
def test_without_score_the_steps_are_the_same(streamed):
    """They draw anew each time, noise and rows in memory alike, although nothing is returned."""
    rows = np.random.default_rng(1).normal(3, 1, size=1000)

    def fit(score):
        batch = StreamingDataset(rows, batch_size=10).as_tensor() if streamed else None
        with pm.Model():
            mu = pm.Normal("mu", 0, 10)
            data = pm.Minibatch(rows, batch_size=10) if batch is None else batch
            pm.Normal("y", mu, 1, observed=data, total_size=1000)
            approx = pm.fit(20, score=score, **fit_kwargs)
        return [param.get_value() for param in approx.params]

    np.testing.assert_allclose(fit(score=False), fit(score=True))
