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
import doctest

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

import pymc as pm

from pymc.model.fgraph import clone_model
from pymc.streams.shuffle import buffer
from pymc.streams.sources import parquet
from pymc.variational import streaming
from pymc.variational.callbacks import Tracker
from pymc.variational.stream_step import prepare_streams
from pymc.variational.streaming import StreamingDataset, parquet_source, shuffle_buffer


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
                hists.append(pm.fit(5, backend=backend, **fit_kwargs).hist)
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


@pytest.mark.parametrize("n", [8, 20])
@pytest.mark.parametrize("score", [True, False])
def test_an_interrupted_fit_can_be_refined(n, score):
    interrupts = [KeyboardInterrupt]

    def source():
        yield np.zeros(30)
        if interrupts:
            raise interrupts.pop()
        yield np.ones(30)

    ds = StreamingDataset(source, batch_size=10)
    with model_of(ds, total_size=60):
        inference = pm.ADVI(random_seed=1)
        inference.fit(n, progressbar=False, score=score)
        assert ds.batches_seen == 3
        inference.refine(12, progressbar=False)
    assert ds.batches_seen == 15
    if score:
        assert len(inference.hist) == 15


@pytest.mark.parametrize("module", [streaming, buffer, parquet])
def test_docstring_examples_run(module):
    pytest.importorskip("pyarrow")
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed


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


def test_parquet_example_of_the_readme(tmp_path):
    """The short form and the long form of the README, on files."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rng = np.random.default_rng(1)
    for i in range(4):
        x = rng.normal(size=(5000, 3))
        up = rng.random(5000) < 1 / (1 + np.exp(-x @ [1.0, -0.5, 0.25]))
        names = ["mid", "spread", "imbalance"]
        columns = {name: x[:, j].astype("float32") for j, name in enumerate(names)}
        pq.write_table(pa.table(columns | {"up": up}), tmp_path / f"{i}.parquet")

    def logistic(buf, n_rows):
        b = pm.Normal("b", 0.0, 3.0, shape=4)
        logit = b[0] + b[1] * buf[:, 0] + b[2] * buf[:, 1] + b[3] * buf[:, 2]
        pm.Bernoulli("up", logit_p=logit, observed=buf[:, 3], total_size=n_rows)
        return pm.fit(
            3000, obj_optimizer=pm.adam(learning_rate=0.01), progressbar=False, random_seed=1
        )

    source = parquet_source(tmp_path, columns=["mid", "spread", "imbalance", "up"])
    with pm.Model():
        short = logistic(pm.Minibatch(source, batch_size=512), source.n_rows)
    ds = StreamingDataset(
        shuffle_buffer(parquet_source(tmp_path), buffer_size=5000, batch_size=512, seed=0),
        batch_size=512,
        sample_shape=(4,),
        total_size="auto",
    )
    with pm.Model():
        long = logistic(ds.as_tensor(), ds.total_size)
    for approx in (short, long):
        np.testing.assert_allclose(approx.mean.eval(), [0, 1, -0.5, 0.25], atol=0.1)


def test_streamed_posterior_is_the_in_memory_one():
    """N = 50,000, B = 256: as far from an in-memory fit as two in-memory fits are apart."""
    n_rows, batch_size = 50_000, 256
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n_rows, 3))
    y = (rng.random(n_rows) < 1 / (1 + np.exp(-(0.3 + x @ [1.0, -0.5, 0.25])))).astype(float)

    def fit(seed, streamed):
        with pm.Model():
            b = pm.Normal("b", 0.0, 3.0, shape=4)
            if streamed:
                source = shuffle_buffer(
                    (x, y), buffer_size=10_000, batch_size=batch_size, seed=seed
                )
                features, labels = pm.Minibatch(source, batch_size=batch_size)
            else:
                features, labels = pm.Minibatch(x, y, batch_size=batch_size)
            logit = b[0] + features @ b[1:]
            pm.Bernoulli("y", logit_p=logit, observed=labels, total_size=n_rows)
            # The iterates go on jumping about their mean: average them over the second half.
            tracker = Tracker(
                params=lambda approx, losses, i: [p.get_value() for p in approx.params]
            )
            pm.fit(
                6000,
                random_seed=seed,
                obj_optimizer=pm.adam(learning_rate=0.003),
                callbacks=[tracker],
                progressbar=False,
            )
        return np.mean(tracker["params"][3000:], axis=0)

    in_memory = np.array([fit(seed, streamed=False) for seed in range(3)])
    streamed = np.array([fit(seed, streamed=True) for seed in range(10, 13)])
    # Means and log-scales are compared each with their own noise floor: how far apart fits are
    # that draw independently from memory.
    floor = np.ptp(in_memory, axis=0).max(axis=-1)
    difference = np.abs(streamed.mean(axis=0) - in_memory.mean(axis=0)).max(axis=-1)
    assert (floor < [0.01, 0.2]).all(), floor
    assert (difference < floor).all(), (difference, floor)


def test_step_lets_other_threads_run():
    """Without Python's lock, quick to call, with the same results; other modes stay as they are."""

    def fit(**kwargs):
        rng = np.random.default_rng(1)
        ds = StreamingDataset(rng.normal(size=(1000, 2)), batch_size=100)
        with pm.Model() as model:
            b = pm.Normal("b")
            batch = ds.as_tensor()
            pm.Normal("y", b * batch[:, 0], 1, observed=batch[:, 1], total_size=1000)
            inference = pm.ADVI(random_seed=1)
            inference.fit(20, progressbar=False, **kwargs)
        return inference, prepare_streams(model, kwargs.get("compile_kwargs", {}))

    inference, compile_kwargs = fit()
    assert "mode" in compile_kwargs
    compiled = inference.state.step.vm.jit_fn
    assert compiled.targetoptions["nogil"]
    [types] = compiled.signatures
    assert len(types) == len(inference.state.step.vm.inputs)  # and not one tuple
    compiled, again = fit()[0].state.step.vm.jit_fn, fit()[0].state.step.vm.jit_fn
    assert again.targetoptions["nogil"]
    assert sum(again.stats.cache_hits.values()) == 1  # the linker's own entry
    for mode in ("FAST_COMPILE", "JAX"):
        other = {"mode": mode}
        assert fit(compile_kwargs=other)[1] == other
    np.testing.assert_allclose(inference.hist, fit(compile_kwargs={"mode": "FAST_COMPILE"})[0].hist)


def test_a_step_function_of_ones_own():
    """It is the one of pm.fit, and a model that pm.fit refuses is refused."""
    ds = numbered()
    with model_of(ds):
        step = pm.ADVI(random_seed=1).objective.step_function(score=True)
    losses = [(ds.advance(), float(step()))[1] for _ in range(5)]
    assert step.vm.jit_fn.targetoptions["nogil"]
    ds = numbered()
    with model_of(ds):
        np.testing.assert_allclose(pm.fit(5, **fit_kwargs).hist, losses)
    with model_of(ds, total_size=None), pytest.raises(ValueError, match="without total_size"):
        pm.ADVI().objective.step_function()


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
