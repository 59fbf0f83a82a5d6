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
"""Ctrl-C in pm.fit: the approximation so far is returned, and nothing is half done."""

import os
import random
import signal
import threading

from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytensor
import pytest

import pymc as pm

from pymc.variational import inference
from pymc.variational.interrupts import (
    interruptible,
    interrupts_between_steps,
    let_interrupts_through,
)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def handler_of_sigint(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Fit:
    """A fit that counts its steps in the compiled function, and can be interrupted in mid-fit."""

    def __init__(self, score, progressbar, **kwargs):
        rows = np.random.default_rng(1).normal(size=(100_000, 3))
        x, y = pm.Minibatch(rows[:, :2], rows[:, 2], batch_size=64)
        self.n_steps = pytensor.shared(0)
        self.kwargs = kwargs | {"score": score, "more_updates": {self.n_steps: self.n_steps + 1}}
        self.progressbar = progressbar
        with pm.Model():
            b = pm.Normal("b", shape=2)
            mu = x[:, 0] * b[0] + x[:, 1] * b[1]
            pm.Normal("y", mu, 1, observed=y, total_size=100_000)
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
            timers[-1] = threading.Timer(delays.uniform(0, 0.01), interrupt)
            timers[-1].start()

    for _ in range(n_interrupts):
        timers.append(None)
        fit.run(100_000, [interrupt_soon])
        timers[-1].join()
        steps = int(fit.n_steps.get_value())
        assert fit.inference.state.i == steps
        assert len(fit.inference.hist) == len(fit.inference.approx.hist) == (steps if score else 0)
    # What the interrupts have left is what a run without any gives, to the last bit.
    whole = Fit(score, progressbar=False, **kwargs)
    whole.run(steps)
    np.testing.assert_array_equal(whole.inference.hist, fit.inference.hist)
    np.testing.assert_array_equal(whole.result, fit.result)


def test_random_interrupts():
    check_random_interrupts(10, score=False, progressbar=False)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numba", "c", "jax"])
@pytest.mark.parametrize("progressbar", [True, False])
@pytest.mark.parametrize("score", [True, False])
def test_many_random_interrupts(score, progressbar, backend):
    check_random_interrupts(200, score, progressbar, backend=backend)


@pytest.mark.parametrize("score", [True, False])
def test_interrupted_early(score):
    """Also before the first of a few steps; the step that is under way is finished and counts."""
    at = None

    def callback(approx, losses, i):
        if i == at:
            signal.raise_signal(signal.SIGINT)

    fit = Fit(score=score, progressbar=False)
    fit.run(0, [callback])
    for n, stop in [(1, 1), (5, 1), (5, 4), (5, 5), (20, 1), (20, 15)]:
        before = fit.n_steps.get_value()
        at = before + stop
        fit.run(n)
        assert fit.n_steps.get_value() == fit.inference.state.i == before + stop
        assert len(fit.inference.hist) == score * (before + stop)

    def interrupt_before_a_step():
        signal.raise_signal(signal.SIGINT)
        let_interrupts_through()

    with mock.patch.object(inference, "let_interrupts_through", interrupt_before_a_step):
        with mock.patch.object(inference.logger, "info") as info:
            for n in (1, 20):
                fit.run(n)
    assert fit.n_steps.get_value() == before + stop
    assert not score or "Interrupted at 0 [0%]" in info.call_args.args[0]


@pytest.mark.parametrize(
    "error, score",
    [(OSError("lost"), True), (StopIteration("enough"), True), (KeyboardInterrupt(), False)],
)
def test_a_callback_that_raises(error, score):
    """The step before it is done: its loss is kept, and `refine` goes on counting after it."""
    seen = []

    def callback(approx, losses, i):
        seen.append(i)
        if i == 3:
            raise error

    fit = Fit(score=score, progressbar=False)
    if isinstance(error, OSError):
        with pytest.raises(OSError, match="lost"):
            fit.run(10, [callback])
    else:
        fit.run(10, [callback])
        fit.run(2)
    assert seen == ([1, 2, 3] if isinstance(error, OSError) else [1, 2, 3, 4, 5])
    hist = fit.inference.hist
    assert len(hist) == len(fit.inference.approx.hist) == score * len(seen)
    assert np.isfinite(hist).all()


def test_signals_are_held_back_between_steps():
    with handler_of_sigint(signal.default_int_handler):
        with interrupts_between_steps():
            let_interrupts_through()
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                let_interrupts_through()
            let_interrupts_through()  # once
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)  # the second
            with interruptible(), pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt), interruptible():
                pytest.fail("one that was held back is not let through")
            signal.raise_signal(signal.SIGINT)  # too late: the loop is done
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with interruptible(), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_handler_in_place_is_the_one_that_is_called():
    calls = []
    with handler_of_sigint(lambda *args: calls.append(args)):
        with interrupts_between_steps():
            signal.raise_signal(signal.SIGINT)
            assert not calls
            let_interrupts_through()
            assert len(calls) == 1
            with interruptible():
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            assert len(calls) == 3
            signal.raise_signal(signal.SIGINT)
        assert len(calls) == 4
    assert {number for number, frame in calls} == {signal.SIGINT}


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_handler_that_is_not_in_python_stays(handler):
    with handler_of_sigint(handler), interrupts_between_steps():
        assert signal.getsignal(signal.SIGINT) is handler


def test_other_threads_install_nothing():
    handler = signal.getsignal(signal.SIGINT)
    seen = []

    def fit():
        with interrupts_between_steps(), interruptible():
            let_interrupts_through()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=fit)
    thread.start()
    thread.join()
    assert seen == [handler]
    with interrupts_between_steps():
        signal.raise_signal(signal.SIGINT)
        thread = threading.Thread(target=fit)  # does not let through what is the main thread's
        thread.start()
        thread.join()
        with pytest.raises(KeyboardInterrupt):
            let_interrupts_through()
