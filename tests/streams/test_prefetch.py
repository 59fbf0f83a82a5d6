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

import pytest

from pymc.streams.prefetch import Prefetch


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


def test_an_interrupt_loses_no_item():
    """A wait for the thread is interrupted at each bytecode of it in turn."""
    ahead = Prefetch(counting(1000), 5)
    until = interrupts = 0

    def interrupt(frame, event, arg):
        nonlocal until, interrupts
        if not frame.f_code.co_filename.endswith("prefetch.py"):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            until -= 1
            if until < 0:
                interrupts += 1
                raise KeyboardInterrupt
        return interrupt

    taken = []
    trace = sys.gettrace()
    for i in range(100):
        until = i
        sys.settrace(interrupt)
        try:
            ahead.wait()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(trace)
        taken.append(next(ahead))
    assert taken == list(range(100))
    assert 20 < interrupts < 100  # also waits that went through


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
