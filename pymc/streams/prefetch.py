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
import os
import threading
import weakref

from collections.abc import Generator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple


class Prefetch:
    """Read ahead what a generator gives, in a thread of its own.

    The items come in the order of the generator, whatever the threads do. An exception is raised
    in the place of the items that failed. The thread starts with the first item that is asked for.
    It ends with the generator, with :meth:`pause` or :meth:`close`, or when this object is
    forgotten.

    Parameters
    ----------
    items : generator of list
        What to read, some items at a time. It belongs to the thread while that runs.
    n_ahead : int
        How many items are kept ready. The thread waits when they are, until a quarter of them is
        taken: woken for each one, it would compete for Python's lock in every step.
    """

    def __init__(self, items: Generator[list, None, None], n_ahead: int):
        self.ended = False
        self._items = items
        self._n_ahead = n_ahead
        self._ready = _Ready(n_ahead)
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> Any:
        if self.ended:
            raise StopIteration
        if self._thread is None or self._ready.stopped:
            self._start()
        item = self._ready.take()
        if isinstance(item, _End):
            self.ended = True
            raise item.error
        return item

    @property
    def orphaned(self) -> bool:
        """Whether this is a copy in a forked process, whose thread has stayed in the other one."""
        return self._process != os.getpid()

    def pause(self) -> None:
        """Let the thread end as soon as the items that it reads are there; they are kept."""
        if self._thread is not None:
            self._ready.kept = True
            self._ready.stop()

    def close(self) -> None:
        """End the thread, and with it the generator, as soon as the item that it reads is there."""
        self.ended = True
        self._ready.stop()
        if self._thread is None or self._ready.kept:
            self._items.close()
        elif not self.orphaned:
            self._thread.join(timeout=5)
        self._ready.left()

    def _start(self) -> None:
        if self._thread is not None:  # paused: it may still be reading
            self._thread.join()
        self._ready = _Ready(self._n_ahead, self._ready.left())
        self._thread = threading.Thread(
            target=_read, args=(self._items, self._ready), name="pymc-stream", daemon=True
        )
        self._thread.start()
        weakref.finalize(self, self._ready.stop)
        _all_ready[self._thread] = self._ready


class _Ready:
    """Items that one thread puts here and another takes."""

    def __init__(self, size: int, items: list | None = None):
        self._size = size
        # Unlike a Condition these stay whole when Ctrl-C interrupts a call, and the garbage
        # collector may call stop() in the middle of one.
        self._items: SimpleQueue = SimpleQueue()
        self._room: SimpleQueue = SimpleQueue()
        self._waiting = self.stopped = self.kept = False
        for item in items or []:
            self._items.put(item)

    def put(self, items: list) -> bool:
        """Wait for room and put items there; tell whether anybody wants more."""
        full = self._items.qsize() >= self._size
        while full and not self.stopped:
            self._waiting = True
            with suppress(Empty):
                self._room.get(timeout=0.1)  # an interrupt can lose the other thread's word
            full = not self._has_room()
        self._waiting = False
        for item in items:
            self._items.put(item)
        return not self.stopped

    def take(self) -> Any:
        """Wait for an item, and take it."""
        item = self._items.get()
        if self._waiting and self._has_room():
            self._waiting = False
            self._room.put(None)
        return item

    def _has_room(self) -> bool:
        return 4 * self._items.qsize() <= 3 * self._size

    def left(self) -> list:
        """Take what is left when the thread has ended."""
        items = [self._items.get() for _ in range(self._items.qsize())]
        return [item for item in items if item is not _STOPPED]

    def stop(self) -> None:
        """Say that nobody wants more."""
        self.stopped = True
        self._room.put(None)
        self._items.put(_STOPPED)  # for a thread that waits for an item


class _End(NamedTuple):
    """What comes after the last item."""

    error: BaseException


_STOPPED = _End(StopIteration())

# The threads, also of objects that are forgotten, with what stops them.
_all_ready: weakref.WeakKeyDictionary[threading.Thread, _Ready] = weakref.WeakKeyDictionary()


@atexit.register
def _end_all() -> None:
    """Wait for the threads: one that is killed within Arrow takes the interpreter with it."""
    threads = list(_all_ready.items())
    for _, ready in threads:
        ready.stop()
    for thread, _ in threads:
        thread.join(timeout=5)


# No methods: the thread must not keep the object alive that ends it.
def _read(items: Generator[list, None, None], ready: _Ready) -> None:
    end = _End(StopIteration())
    try:
        for some in items:
            if not ready.put(some):
                return
    except BaseException as error:
        end = _End(error)
    finally:
        if not ready.kept:
            items.close()
    ready.put([end])
