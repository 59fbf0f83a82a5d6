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
"""A pass over rows in threads, with sums that do not depend on their number."""

import threading

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any

import numpy as np

from threadpoolctl import threadpool_limits

# Pieces that a thread may be ahead of the one that is waited for.
AHEAD = 4


class CompensatedSum:
    """Add up numbers or arrays with the rounding error of a single addition.

    Kahan's sum as Neumaier [1]_ improved it.

    References
    ----------
    .. [1] Neumaier, A. (1974). Rundungsfehleranalyse einiger Verfahren zur Summation endlicher
       Summen. Zeitschrift für Angewandte Mathematik und Mechanik, 54, 39-51.
    """

    def __init__(self) -> None:
        self._total: Any = np.float64(0)
        self._lost: Any = np.float64(0)

    def add(self, term: np.ndarray | float) -> None:
        with np.errstate(invalid="ignore"):  # of infinite terms nothing is lost
            total = self._total + term
            larger = np.abs(self._total) >= np.abs(term)
            self._lost = self._lost + np.where(
                larger, (self._total - total) + term, (term - total) + self._total
            )
        self._total = total

    @property
    def value(self) -> Any:
        return np.where(np.isfinite(self._total), self._total + self._lost, self._total)[()]


_blas = threading.Lock()
_blas_users = 0
_blas_limits: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS to one thread: sums in its products would else depend on their number."""
    global _blas_users, _blas_limits
    with _blas:
        _blas_users += 1
        if _blas_users == 1:
            _blas_limits = threadpool_limits(1, "blas")
    try:
        yield
    finally:
        with _blas:
            _blas_users -= 1
            if _blas_users == 0:
                _blas_limits.restore_original_limits()


def in_threads(
    pieces: Iterator[Any], worker: Callable[[int, Any], Any], n_threads: int
) -> Iterator[Any]:
    """Give what each piece comes to, in their order, whichever thread did which.

    Parameters
    ----------
    pieces : iterator
        What is worked on. One thread at a time reads the next piece.
    worker : callable
        Takes the number of a piece, and the piece.
    n_threads : int
        The number of threads.
    """
    numbered = enumerate(pieces)
    reading = threading.Lock()
    done: SimpleQueue = SimpleQueue()
    room = threading.Semaphore(AHEAD * n_threads)
    stopped = threading.Event()

    def work() -> None:
        error = None
        try:
            while room.acquire() and not stopped.is_set():
                with reading:
                    number, piece = next(numbered, (None, None))
                if number is None:
                    break
                done.put((number, worker(number, piece)))
        except BaseException as raised:
            error = raised
        done.put((None, error))

    threads = [
        threading.Thread(target=work, name="pymc-pass", daemon=True) for _ in range(n_threads)
    ]
    try:
        for thread in threads:
            thread.start()
        waiting: dict[int, Any] = {}
        expected, running = 0, len(threads)
        while running:
            number, result = done.get()
            if number is None:
                running -= 1
                if result is not None:
                    raise result
                continue
            waiting[number] = result
            while expected in waiting:
                room.release()
                yield waiting.pop(expected)
                expected += 1
    finally:
        stopped.set()
        room.release(len(threads))
        for thread in threads:
            # One that is killed within Arrow takes the interpreter with it.
            with suppress(RuntimeError):  # not started
                thread.join()
        if isinstance(pieces, Generator):
            pieces.close()
