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
import gc
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from pymc.streams.prefetch import Prefetch
from pymc.variational.streaming import StreamingDataset, shuffle_buffer

pytestmark = pytest.mark.filterwarnings("ignore::pymc.variational.streaming.StreamOrderWarning")


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "pymc-stream"]


def counting(n, at_end=None):
    def items():
        try:
            yield from ([i] for i in range(n))
        finally:
            if at_end is not None:
                at_end.append(threading.current_thread().name)

    return items()


def test_items_come_in_order():
    ahead = Prefetch(counting(1000), 7)
    assert list(ahead) == list(range(1000))
    assert next(ahead, None) is None  # and not a wait for ever


def test_no_more_than_asked_for_is_read_ahead():
    read = []

    def items():
        for i in range(1000):
            read.append(i)
            yield [i]

    def wait_until_read(n):
        deadline = time.monotonic() + 10
        while len(read) < n and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(read) in (n, n + 1)

    ahead = Prefetch(items(), 8)
    wait_until_read(0)
    assert next(ahead) == 0
    wait_until_read(9)  # eight ready, one in hand, and one taken perhaps before that
    assert [next(ahead), next(ahead)] == [1, 2]
    wait_until_read(11)
    ahead.close()


def test_an_error_comes_in_its_place():
    def items():
        yield [1, 2]
        raise OSError("disk on fire")

    ahead = Prefetch(items(), 10)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(OSError, match=r"disk on fire"):
        next(ahead)
    assert next(ahead, None) is None


@pytest.mark.parametrize("how", ["close", "forget", "exhaust"])
def test_the_thread_ends(how):
    others, at_end = set(threads()), []  # other tests' threads may end meanwhile
    ahead = Prefetch(counting(10 if how == "exhaust" else 10**9, at_end), 3)
    next(ahead)
    (thread,) = set(threads()) - others
    if how == "close":
        ahead.close()
    elif how == "forget":
        del ahead
        gc.collect()
    else:
        list(ahead)
    thread.join(10)
    assert not thread.is_alive()
    assert at_end == ["pymc-stream"]  # files are closed by the thread that opened them


def test_a_thread_that_waits_for_an_item_is_let_go():
    read = threading.Event()

    def items():
        yield [0]
        read.wait(10)
        yield [1]

    ahead = Prefetch(items(), 1)
    next(ahead)
    left = []
    waiting = threading.Thread(target=lambda: left.append(next(ahead, "end")))
    waiting.start()
    ahead._ready.stop()
    waiting.join(10)
    read.set()
    assert left == ["end"]


def test_close_lets_go_of_what_is_ready():
    class Item:
        pass

    made = []

    def items():
        while True:
            item = Item()
            made.append(weakref.ref(item))
            yield [item]

    ahead = Prefetch(items(), 10)
    next(ahead)
    ahead.close()
    gc.collect()
    assert made and not any(item() for item in made)


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


def test_an_interrupt_loses_no_batch(monkeypatch):
    ds = StreamingDataset(np.split(np.arange(1000), 100), batch_size=10)
    next(ds), next(ds)
    wait = ds._reader._ready.take

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(ds._reader._ready, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ds.advance()
    monkeypatch.setattr(ds._reader._ready, "take", wait)
    assert next(ds)[0] == 20


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


def test_the_interpreter_waits_for_threads_of_forgotten_streams():
    code = """
import time
from pymc.streams.prefetch import Prefetch

def items():
    for i in range(3):
        yield [i]
        time.sleep(0.3)
        print("read", flush=True)

ahead = Prefetch(items(), 5)
next(ahead)
del ahead
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "read\n")
