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
"""Ctrl-C, errors and NaN in a fit that streams: no batch is lost, and none is used twice."""

import os
import random
import signal
import threading

import numpy as np
import pytensor
import pytest

import pymc as pm

from pymc.variational.streaming import StreamingDataset


class Fit:
    """A fit that counts its steps in the compiled function, and can be interrupted in mid-fit."""

    def __init__(self, score, progressbar, **kwargs):
        rows = np.random.default_rng(1).normal(size=(100_000, 3))
        self.stream = StreamingDataset(rows, batch_size=64)
        batch = self.stream.as_tensor()
        self.n_steps = pytensor.shared(0)
        self.kwargs = kwargs | {"score": score, "more_updates": {self.n_steps: self.n_steps + 1}}
        self.progressbar = progressbar
        with pm.Model():
            b = pm.Normal("b", shape=2)
            mu = batch[:, 0] * b[0] + batch[:, 1] * b[1]
            pm.Normal("y", mu, 1, observed=batch[:, 2], total_size=100_000)
            self.inference = pm.ADVI(random_seed=1)

    def run(self, n, callbacks=()):
        if self.inference.state is None:
            self.inference.fit(
                n, progressbar=self.progressbar, callbacks=list(callbacks), **self.kwargs
            )
        else:
            self.inference.refine(n, progressbar=self.progressbar)

    @property
    def result(self):
        return [param.get_value() for param in self.inference.approx.params]


def check_random_interrupts(n_interrupts, score, progressbar, **kwargs):
    fit = Fit(score, progressbar, **kwargs)
    delays = random.Random(1)
    timers = []

    def interrupt_soon(*args):
        if timers and timers[-1] is None:
            timers[-1] = threading.Timer(
                delays.uniform(0, 0.01), os.kill, (os.getpid(), signal.SIGINT)
            )
            timers[-1].start()

    for _ in range(n_interrupts):
        timers.append(None)
        fit.run(100_000, [interrupt_soon])
        timers[-1].join()
        steps = int(fit.n_steps.get_value())
        assert fit.inference.state.i == steps
        assert len(fit.inference.hist) == len(fit.inference.approx.hist) == (steps if score else 0)
        assert fit.stream.batches_seen - fit.stream._fresh == steps
    # What the interrupts have left is what a run without any gives, to the last bit.
    whole = Fit(score, progressbar=False, **kwargs)
    whole.run(steps)
    np.testing.assert_array_equal(whole.inference.hist, fit.inference.hist)
    np.testing.assert_array_equal(whole.result, fit.result)


def test_random_interrupts():
    check_random_interrupts(10, score=True, progressbar=True)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numba", "c", "jax"])
@pytest.mark.parametrize("progressbar", [True, False])
@pytest.mark.parametrize("score", [True, False])
def test_many_random_interrupts(score, progressbar, backend):
    check_random_interrupts(200, score, progressbar, backend=backend)


def numbers_model(source):
    ds = StreamingDataset(source, batch_size=10)
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1000)
        pm.Normal("y", mu, 1, observed=ds.as_tensor(), total_size=100)
    return model, ds


def test_the_losses_before_an_error_of_the_source_are_kept():
    def source():
        yield np.zeros(30)
        raise OSError("lost")

    model, _ = numbers_model(source)
    with model:
        fit = pm.ADVI(random_seed=1)
        with pytest.raises(OSError, match="lost"):
            fit.fit(10, progressbar=False)
    assert len(fit.hist) == len(fit.approx.hist) == 3


def test_a_nan_ends_the_fit_and_is_no_loss():
    model, _ = numbers_model(np.zeros(100))
    with model:
        fit = pm.ADVI(random_seed=1)
        [param, *_] = fit.approx.params

        def callback(approx, losses, i):
            if i == 3:
                param.set_value(np.full_like(param.get_value(), np.nan))

        with pytest.raises(FloatingPointError):
            fit.fit(10, progressbar=False, callbacks=[callback])
    assert len(fit.hist) == len(fit.approx.hist) == 3


def test_run_profiling_streams():
    model, ds = numbers_model(np.arange(100))
    with model:
        profile = pm.ADVI().run_profiling(7)
    assert ds.batches_seen == profile.fct_callcount == 7
    with pm.Model():
        mu = pm.Normal("mu")
        pm.Normal("y", mu, 1, observed=ds.as_tensor())
        with pytest.raises(ValueError, match="without total_size"):
            pm.ADVI().run_profiling(7)


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
    with pm.Model():
        mu = pm.Normal("mu", 0, 1000)
        pm.Normal("y", mu, 1, observed=ds.as_tensor(), total_size=60)
        inference = pm.ADVI(random_seed=1)
        inference.fit(n, progressbar=False, score=score)
        assert ds.batches_seen == 3
        inference.refine(12, progressbar=False)
    assert ds.batches_seen == 15
    if score:
        assert len(inference.hist) == 15
