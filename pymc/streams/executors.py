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
"""Work on ranges of rows by the workers of an executor: processes, or a cluster.

A worker reads its ranges itself. What it works with goes to it once, and is named by a checksum from
then on::

    blocks = Blocks(source)
    ranges = row_ranges(blocks, n_rows=1_000_000, name="the source")
    for result in in_executor(
        executor, [Held(function, "function"), Held(blocks, "source")], ranges
    ):
        ...  # of function(blocks, start, stop), in the order of the ranges
"""

import hashlib
import threading
import weakref

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from queue import SimpleQueue
from typing import Any, NamedTuple

import cloudpickle

from cachetools import LRUCache

from pymc.streams.blocks import Blocks
from pymc.streams.passes import one_blas_thread

# Tasks that are on their way at first, and at most, with results that wait for an earlier one.
FIRST_TASKS, MOST_TASKS = 16, 1024
# Rows in memory that are sent to workers: more than this belongs into files.
MOST_BYTES = 2**28
# Objects that a worker holds.
N_HELD = 16


class Held:
    """An object that workers hold: it is pickled once, and sent to each of them once.

    Parameters
    ----------
    value : object
        The object.
    what : str
        What messages call it.

    Raises
    ------
    TypeError
        If it cannot be pickled.
    """

    def __init__(self, value: Any, what: str):
        try:
            self.pickled = cloudpickle.dumps(value)
        except Exception as error:
            raise TypeError(
                f"{what} cannot be sent to the workers of an executor: {error}. What a function "
                "such as preprocess_fn uses must be picklable: open files, connections and locks "
                "within it."
            ) from error
        self.token = hashlib.blake2b(self.pickled, digest_size=16).hexdigest()
        self.executors: weakref.WeakSet[Executor] = weakref.WeakSet()


class _Answer(NamedTuple):
    """What a worker answers: the result, or what it does not hold yet."""

    result: Any
    missing: list[str]


def check_executor(executor: Any) -> None:
    """Refuse what is no executor, and processes that may hang."""
    if not isinstance(executor, Executor):
        way_out = "client.get_executor()" if hasattr(executor, "get_executor") else "executor=None"
        raise TypeError(
            f"executor is a {type(executor).__name__}: it must be a concurrent.futures.Executor. "
            f"Pass {way_out}."
        )
    context = getattr(executor, "_mp_context", None)
    if context is not None and context.get_start_method() == "fork":
        raise ValueError(
            "executor forks its processes, which may hang beside the threads of Arrow and numba. "
            'Pass ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")).'
        )


def check_blocks(blocks: Blocks, name: str) -> None:
    """Refuse rows that workers cannot read by ranges, or of files that are not the same any more.

    Parameters
    ----------
    blocks : Blocks
        The rows.
    name : str
        What messages call them.

    Raises
    ------
    ValueError
        If they are of a source that is not seekable or whose number of rows is not known, or are in
        memory and too many to be sent.
    RuntimeError
        If files were added or removed since the source was made.
    """
    if not blocks.seekable or blocks.n_rows is None:
        raise ValueError(
            f"{name}: workers of an executor read ranges of rows, and this source can be read from "
            "its first row only. Write it to Parquet files, source = pre_shuffle(source, 'rows/'), "
            "or leave executor out."
        )
    if blocks.n_bytes > MOST_BYTES:
        raise ValueError(
            f"{name}: {blocks.n_bytes / 1e9:.1f} GB of arrays would be sent to each worker of an "
            "executor. Write them to Parquet files that all workers can read, "
            "source = pre_shuffle(source, 'rows/'), or leave executor out."
        )
    # Once for all ranges, as it lists the files.
    blocks.check_files()


def row_ranges(blocks: Blocks, n_rows: int, name: str) -> list[tuple[int, int]]:
    """List the first row and the end of each range of ``n_rows`` rows; the last one may be shorter.

    Raises
    ------
    ValueError
        See :func:`check_blocks`.
    """
    check_blocks(blocks, name)
    total = blocks.n_rows or 0
    return [(start, min(start + n_rows, total)) for start in range(0, total, n_rows)]


def in_executor(executor: Executor, held: Sequence[Held], calls: Iterable[tuple]) -> Iterator[Any]:
    """Give what each call comes to, in their order, whichever worker did which.

    A worker that died is the executor's matter: Dask gives its tasks to others; a process pool is
    broken then.

    Parameters
    ----------
    executor : Executor
        What runs the calls.
    held : sequence of Held
        A function, and its first arguments.
    calls : iterable of tuple
        The arguments that follow, of each call.

    Raises
    ------
    RuntimeError
        If a worker of a process pool died.
    """
    check_executor(executor)
    todo = deque(enumerate(calls))
    tokens = [one.token for one in held]
    pickled = {one.token: one.pickled for one in held}
    # Tasks to workers that hold nothing yet come back, and each is sent anew with all they lack.
    known = all(executor in one.executors for one in held)
    room = MOST_TASKS if known else FIRST_TASKS
    running: dict[Future, tuple[int, tuple]] = {}
    answered: SimpleQueue[Future] = SimpleQueue()
    waiting: dict[int, Any] = {}
    expected = 0

    def submit(number: int, call: tuple, sent: dict[str, bytes]) -> None:
        future = executor.submit(_work, tokens, sent, call)
        running[future] = number, call
        future.add_done_callback(answered.put)

    try:
        while todo or running:
            while todo and len(running) + len(waiting) < room:
                submit(*todo.popleft(), {})
            future = answered.get()
            number, call = running.pop(future)
            answer = future.result()
            if answer.missing:
                submit(number, call, {token: pickled[token] for token in answer.missing})
            else:
                waiting[number] = answer.result
            room = min(MOST_TASKS, room + 1)
            while expected in waiting:
                yield waiting.pop(expected)
                expected += 1
    except BrokenExecutor as error:
        raise RuntimeError(
            "a worker process died (killed, out of memory, or in a script without "
            'if __name__ == "__main__":), and its pool is broken: make a new one, and call again. '
            "Dask, by Client.get_executor(), gives the tasks of a dead worker to another one."
        ) from error
    finally:
        for future in running:
            future.cancel()
    for one in held:
        one.executors.add(executor)


# In a worker: what it holds, by token.
_held: LRUCache = LRUCache(N_HELD)
_holding = threading.Lock()


def _work(tokens: list[str], sent: dict[str, bytes], call: tuple) -> _Answer:
    """Do a call in a worker, if it holds all that it takes."""
    with _holding:
        for token, pickled in sent.items():
            if token not in _held:
                _held[token] = cloudpickle.loads(pickled)
        missing = [token for token in tokens if token not in _held]
        if missing:
            return _Answer(None, missing)
        function, *first = (_held[token] for token in tokens)
    with one_blas_thread():
        return _Answer(function(*first, *call), [])
