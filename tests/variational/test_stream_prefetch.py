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
"""Streams that are read ahead of the fit by a thread: the batches, what is left behind, Ctrl-C."""

import contextlib
import gc
import os
import signal
import threading
import time
import tracemalloc
import weakref

import numpy as np
import pytest

import pymc as pm

from pymc.variational.stream_step import prepare_streams
from pymc.variational.streaming import StreamingDataset, shuffle_buffer

pytestmark = pytest.mark.filterwarnings("ignore::pymc.variational.streaming.StreamOrderWarning")


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "pymc-stream"]


def rows(n=20_000):
    return {"x": np.arange(n), "y": np.arange(n) / 7}


@pytest.mark.parametrize("batch_size", [1, 64, 1000])
@pytest.mark.parametrize("slow", ["producer", "consumer", "neither"])
def test_batches_do_not_depend_on_the_threads(batch_size, slow):
    n_batches = 300

    def source():
        for start in range(0, 20_000, 1700):
            if slow == "producer":
                time.sleep(0.002)
            yield {name: values[start : start + 1700] for name, values in rows().items()}

    def batches(**kwargs):
        buffered = shuffle_buffer(source, buffer_size=3000, batch_size=batch_size, seed=1)
        ds = StreamingDataset(buffered, batch_size=batch_size, **kwargs)
        taken = []
        for i in range(n_batches):
            if slow == "consumer" and i % 10 == 0:
                time.sleep(0.001)
            taken.append(next(ds))
        assert ds.batches_seen == n_batches
        return np.stack(taken)

    expected = batches(prefetch=0)
    for prefetch in (None, 1, 5):
        np.testing.assert_array_equal(batches(prefetch=prefetch), expected)


def test_public_batches_are_those_of_the_stream():
    """The stream takes larger blocks from a shuffle_buffer, in the same order."""
    x = np.arange(10_000)
    buffered = shuffle_buffer(x, buffer_size=3000, batch_size=100, seed=1)
    expected = np.concatenate(list(buffered))
    buffered = shuffle_buffer(x, buffer_size=3000, batch_size=100, seed=1)
    ds = StreamingDataset(buffered, batch_size=100)
    np.testing.assert_array_equal(np.concatenate([next(ds) for _ in range(100)]), expected)


def test_a_batch_may_be_kept():
    ds = StreamingDataset(rows(), batch_size=100)
    kept = [(ds.advance(), ds.as_tensor().get_value(borrow=True))[1] for _ in range(100)]
    np.testing.assert_array_equal(np.concatenate(kept)[:, 0], np.arange(10_000))


def test_what_is_known_of_n_comes_with_the_batch():
    """Reading ahead does not tell N before the epoch has ended for the reader."""
    ds = StreamingDataset(lambda: iter([np.zeros(50)]), batch_size=10)
    seen = []
    for _ in range(8):
        ds.advance()
        seen.append(ds.total_size)
    assert seen == [None] * 5 + [50] * 3


def test_a_stream_goes_on_after_an_error():
    broken = [True]

    def source():
        yield np.arange(10)
        if broken:
            raise OSError("lost")
        yield np.arange(10, 20)

    ds = StreamingDataset(source, batch_size=10)
    ds.advance()
    with pytest.raises(OSError, match=r"lost"):
        ds.advance()
    broken.clear()
    assert [next(ds)[0] for _ in range(3)] == [10, 0, 10]


def test_prefetch_argument():
    for wrong in (-1, 1.5, "much"):
        with pytest.raises((TypeError, ValueError), match=r"prefetch"):
            StreamingDataset(np.arange(10), batch_size=2, prefetch=wrong)
    others = set(threads())
    ds = StreamingDataset(np.arange(100), batch_size=2, prefetch=0)
    next(ds), next(ds)
    assert set(threads()) <= others


def test_an_unused_stream_has_no_thread():
    others = set(threads())
    ds = StreamingDataset(np.arange(100), batch_size=2)
    assert set(threads()) <= others
    gone = weakref.ref(ds)
    del ds
    gc.collect()
    assert gone() is None


def test_nothing_is_left_behind():
    others = set(threading.enumerate())
    source = np.split(np.zeros(1000), 100)
    ds = StreamingDataset(shuffle_buffer(source, buffer_size=100, batch_size=10), batch_size=10)
    for _ in range(30):
        ds.advance()
    (thread,) = set(threading.enumerate()) - others
    gone = weakref.ref(ds)
    del ds
    gc.collect()
    assert gone() is None
    thread.join(10)
    assert not thread.is_alive()


def test_a_forgotten_stream_takes_its_thread_along():
    others = set(threads())
    buffered = shuffle_buffer(rows(1000), buffer_size=100, batch_size=10, seed=1)
    ds = StreamingDataset(buffered, batch_size=10)
    for _ in range(3):
        ds.advance()
    (thread,) = set(threads()) - others
    del ds
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("prefetch", [None, 0])
def test_memory_does_not_grow_with_steps(prefetch):
    rows = {"x": np.zeros(5000), "y": np.zeros(5000)}
    source = shuffle_buffer(rows, buffer_size=1000, batch_size=50, seed=1)
    ds = StreamingDataset(source, batch_size=50, prefetch=prefetch)
    tracemalloc.start()
    try:
        held = []
        for _ in range(2):
            for _ in range(10_000):
                ds.advance()
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # What is ready goes up and down; a batch that stays each time would be 8 MB.
    assert held[1] - held[0] < 5e6


# Beside the steps of a fit


def model_of(ds, total_size=1000):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1000)
        pm.Normal("y", mu, 1, observed=ds.as_tensor(), total_size=total_size)
    return model


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
    ds = StreamingDataset(np.arange(1000), batch_size=10)
    with model_of(ds):
        step = pm.ADVI(random_seed=1).objective.step_function(score=True)
    losses = [(ds.advance(), float(step()))[1] for _ in range(5)]
    assert step.vm.jit_fn.targetoptions["nogil"]
    ds = StreamingDataset(np.arange(1000), batch_size=10)
    with model_of(ds):
        np.testing.assert_allclose(
            pm.fit(5, obj_optimizer=pm.adagrad_window(), progressbar=False, random_seed=1).hist,
            losses,
        )
    with model_of(ds, total_size=None), pytest.raises(ValueError, match="without total_size"):
        pm.ADVI().objective.step_function()


# Ctrl-C


def numbers_model(*sources, **kwargs):
    """Observe each source through a stream of its own."""
    streams = [StreamingDataset(source, batch_size=10, **kwargs) for source in sources]
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1000)
        for i, ds in enumerate(streams):
            pm.Normal(f"y{i}", mu, 1, observed=ds.as_tensor(), total_size=100)
    return model, streams


@pytest.mark.parametrize("prefetch", [None, 0])
def test_a_source_that_hangs_can_be_interrupted(prefetch):
    hangs = threading.Event()

    def source():
        yield np.zeros(30)
        if not hangs.is_set():
            hangs.set()
            threading.Event().wait(20)
        yield np.ones(70)

    def interrupt_when_it_hangs():
        hangs.wait(10)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    model, [ds] = numbers_model(source, prefetch=prefetch)
    thread = threading.Thread(target=interrupt_when_it_hangs)
    thread.start()
    start = time.monotonic()
    with model:
        approx = pm.fit(50, obj_optimizer=pm.adagrad_window(), progressbar=False)
    thread.join()
    assert time.monotonic() - start < 15
    assert len(approx.hist) == ds.batches_seen == 3


def test_no_stream_loses_a_batch_where_another_one_is_interrupted():
    interrupts = [signal.SIGINT]

    def source():
        yield np.zeros(30)
        if interrupts:
            signal.raise_signal(interrupts.pop())
        yield np.ones(70)

    model, [one, other] = numbers_model(np.arange(100), source, prefetch=0)
    with model:
        fit = pm.ADVI(random_seed=1)
        fit.fit(5, progressbar=False)
        assert len(fit.hist) == 3
        fit.refine(4, progressbar=False)
    assert len(fit.hist) == one.batches_seen == other.batches_seen == 7


def test_run_profiling_ends_with_the_stream_or_an_interrupt():
    def source():
        yield np.zeros(30)
        signal.raise_signal(signal.SIGINT)

    for of, n_batches in ((source, 3), (iter([np.zeros(50)]), 5)):
        model, [ds] = numbers_model(of, prefetch=0)
        ended = contextlib.nullcontext() if of is source else pytest.warns(match="has ended")
        with model, ended:
            assert pm.ADVI().run_profiling(10).fct_callcount == ds.batches_seen == n_batches
