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
"""Prefetching: batches are read ahead in a background thread, while the model takes its steps."""

import atexit
import queue
import threading
import weakref

from collections.abc import Generator
from typing import Any


class Prefetch:
    """Read ahead what a generator gives, in a thread of its own.

    The items come in the order of the generator, whatever the threads do. An exception is raised
    in the place of the item that failed. The thread ends with the generator, with :meth:`close`,
    or when this object is forgotten.

    Parameters
    ----------
    items : generator
        What to read. It belongs to the thread from now on.
    n_ahead : int
        How many items are kept ready.
    """

    def __init__(self, items: Generator, n_ahead: int):
        self.ended = False
        self._ready: queue.Queue = queue.Queue(n_ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_read, args=(items, self._ready, self._stop), name="pymc-stream", daemon=True
        )
        self._thread.start()
        weakref.finalize(self, self._stop.set)
        _stops[self._thread] = self._stop

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> Any:
        if self.ended:
            raise StopIteration
        item, error = self._ready.get()
        if error is not None:
            self.ended = True
            raise error
        return item

    def close(self) -> None:
        """End the thread, and with it the generator, as soon as the item that it reads is there."""
        self.ended = True
        self._stop.set()
        self._thread.join(timeout=5)


# The threads, also of objects that are forgotten, with what stops them.
_stops: weakref.WeakKeyDictionary[threading.Thread, threading.Event] = weakref.WeakKeyDictionary()


@atexit.register
def _end_all() -> None:
    """Wait for the threads: one that is killed within Arrow takes the interpreter with it."""
    threads = list(_stops.items())
    for _, stop in threads:
        stop.set()
    for thread, _ in threads:
        thread.join(timeout=5)


# No methods: the thread must not keep the object alive that ends it.
def _read(items: Generator, ready: queue.Queue, stop: threading.Event) -> None:
    error: BaseException = StopIteration()
    try:
        for item in items:
            if not _put((item, None), ready, stop):
                return
    except BaseException as raised:
        error = raised
    finally:
        items.close()
    _put((None, error), ready, stop)


def _put(entry: tuple, ready: queue.Queue, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            ready.put(entry, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False
