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
"""Ctrl-C in a fit: it waits for the end of the step, so that no step is left half done."""

import signal
import threading

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any


@contextmanager
def interrupts_between_steps() -> Iterator[None]:
    """Hold back SIGINT (Ctrl-C) until the loop of a fit is between two steps.

    Raised within a step, a ``KeyboardInterrupt`` leaves parameters, optimizer, losses and their
    number in disagreement; raised within a function that numba has compiled, it comes out as a
    ``SystemError``. Held back it comes at the next :func:`let_interrupts_through`, or at once
    within :func:`interruptible`. A second one is not held back, for steps that do not end.

    It is the handler in place that a signal is handed on to, at the end of the loop at the latest.
    Its ``KeyboardInterrupt`` is then dropped: the loop is done. In a thread, where no signal comes,
    and where SIGINT has no handler in Python, nothing changes.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    outer, _local.held = _local.held, _Held(handler)
    try:
        signal.signal(signal.SIGINT, _local.held)
        yield
    finally:
        held, _local.held = _local.held, outer
        with suppress(KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)
            held.let_through()


def let_interrupts_through() -> None:
    """Hand on a SIGINT that was held back: to be called between two steps."""
    if _local.held is not None:
        _local.held.let_through()


def interruptible() -> AbstractContextManager:
    """Hand on each SIGINT at once: around what may wait for long, and can be cut short."""
    return _local.held or nullcontext()


class _Held:
    """A handler of SIGINT that holds signals back from another one."""

    def __init__(self, handler: Callable[..., Any]):
        self._handler = handler
        self._signal: tuple | None = None  # the arguments of a handler
        self._at_once = False

    def __call__(self, *signal_and_frame: Any) -> None:
        second = self._signal is not None
        self._signal = signal_and_frame
        if self._at_once or second:
            self.let_through()

    def let_through(self) -> None:
        args, self._signal = self._signal, None
        if args is not None:
            # What the handler raises leaves interruptible(), maybe before it was entered for good.
            at_once, self._at_once = self._at_once, False
            self._handler(*args)
            self._at_once = at_once

    def __enter__(self) -> None:
        self._at_once = True
        self.let_through()

    def __exit__(self, *exc_info: Any) -> None:
        self._at_once = False


class _Local(threading.local):
    held: _Held | None = None  # ever in the main thread only


_local = _Local()
