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
"""Reading: the batches of a source one by one, from a position that can be kept and gone back to."""

import logging

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import numpy as np

from rich.progress import Progress

from pymc.streams.batches import Batches, Read
from pymc.streams.blocks import put_back
from pymc.streams.position import checksum, differences
from pymc.streams.prefetch import Prefetch

_log = logging.getLogger(__name__)

STATE_VERSION = 1
# What batches that are kept ready may take, and how many they may be.
PREFETCH_BYTES, PREFETCH_BATCHES = 2**25, 4096

# What follows the batches on their way, given those of each read and the number of the first.
Watch = Callable[[Iterator[list[Read]], int], Generator[list[Read], None, None]]


class Reader:
    """Read batches from a position on, and ahead of it in a thread.

    Parameters
    ----------
    batches : Batches
        What is read.
    name : str
        What messages call the stream.
    prefetch : int or None
        Batches that a thread keeps ready; 0 for no thread; by default what some megabytes hold.
    watch : callable
        What follows the batches on their way.

    Attributes
    ----------
    epoch, row : int
        The epoch, and the row in it, that the next batch begins with.
    batches_seen : int
        Batches that were taken.
    """

    def __init__(self, batches: Batches, name: str, prefetch: int | None, watch: Watch):
        self.batches = batches
        self._name = name
        self._watch = watch
        if prefetch is None:
            prefetch = PREFETCH_BYTES // max(1, batches.row_bytes * batches.batch_size)
            prefetch = min(max(2, prefetch), PREFETCH_BATCHES)
        self._n_ahead = prefetch
        self.epoch = self.row = self.batches_seen = 0
        self._last: list[np.ndarray] | None = None  # the batch that was taken last
        # What gives the batches from the position on, and the next one, once it was looked at.
        self._reads: Prefetch | Generator[Read, None, None] | None = None
        self._next: Read | None = None

    def first(self) -> Read:
        """Read the first batch, before any is taken, without keeping what it is read with."""
        reads = self._open()
        some = next(reads)
        if not self.batches.blocks.seekable:
            self._reads = self._ahead_of(put_back(some, reads))
        return some[0]

    def wait(self) -> None:
        """Wait for the next batch. An interrupt may come at any moment of it, and loses nothing."""
        if self._next is None:
            try:
                reads = self._opened()
                if isinstance(reads, Prefetch):
                    reads.wait()
                else:
                    self._next = next(reads)
            except BaseException:
                self._reopen()
                raise

    def peek(self) -> Read:
        """Return the next batch, the same one until it is taken."""
        self.wait()
        if self._next is None:
            try:
                self._next = next(self._opened())
            except BaseException:
                self._reopen()
                raise
        return self._next

    def take(self) -> None:
        """Let the position follow: the next batch was used."""
        read, self._next = self._next, None
        assert read is not None
        self.epoch, self.row, self._last = read.epoch, read.row, read.batch
        self.batches_seen += 1

    def release(self) -> None:
        """Let go of thread, open files and batches that were read ahead.

        What cannot be opened in the middle keeps its batches and its place.
        """
        if self._last is not None:
            # Batches are cut from larger arrays, which a view would keep.
            self._last = [values.copy("K") for values in self._last]
        if self.batches.blocks.seekable:
            self.close()
        elif isinstance(self._reads, Prefetch):
            self._reads.pause()

    def close(self) -> None:
        """Let go of all that is held."""
        reads, self._reads, self._next = self._reads, None, None
        if reads is not None:
            reads.close()

    def rewind(self) -> None:
        """Go back to the first batch."""
        self.check_re_readable("going back to its beginning")
        self.close()
        self.epoch = self.row = self.batches_seen = 0
        self._last = None

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and what it is a position in, as plain values."""
        self.check_re_readable("its position")
        return {
            "version": STATE_VERSION,
            **self._identity(),
            "epoch": self.epoch,
            "row": self.row,
            "batches_seen": self.batches_seen,
            "checksum": None if self._last is None else checksum(self._last),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> list[np.ndarray] | None:
        """Go to the position of a state, and return the batch that was taken last there."""
        self.check_re_readable("its position")
        if not isinstance(state, Mapping) or state.get("version") != STATE_VERSION:
            raise ValueError(
                f"stream {self._name!r}: not a state of this version of StreamingDataset: {state!r:.80}"
            )
        blocks = self.batches.blocks.with_seeds_of(state["source"])
        here = self._identity() | {"source": blocks.identity}
        found = differences({name: state.get(name) for name in here}, here)
        if found:
            raise ValueError(
                f"stream {self._name!r} cannot go on at a position of another stream: "
                f"{'; '.join(found)}."
            )
        self.rewind()
        self.batches.blocks = blocks
        if state["batches_seen"] > 0:
            # The batch that was taken last is read again, to see that the rows are the same.
            before = state["batches_seen"] - 1
            if blocks.seekable:
                assert blocks.n_rows is not None
                first = state["epoch"] * blocks.n_rows + state["row"] - self.batches.batch_size
                self.epoch, self.row = divmod(first, blocks.n_rows)
                self.batches_seen = before
            else:
                self._skip(before)
            if self.peek().batch is not None:
                self.take()
            if self._last is None or checksum(self._last) != state["checksum"]:
                raise ValueError(
                    f"stream {self._name!r}: its source gives other rows before epoch "
                    f"{state['epoch']}, row {state['row']} than it did: data, preprocess_fn or dtype "
                    "have changed, or a function gives its rows in an order that no seed fixes."
                )
            self.release()
        return self._last

    def check_re_readable(self, what: str) -> None:
        """Raise if the source can be read only once."""
        if self.batches.blocks.one_shot:
            raise TypeError(
                f"stream {self._name!r}: {what} is not to be had, as its source is an iterator, which "
                "can be read only once. Pass a function that returns a fresh iterator, an array, or "
                "files."
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what is open: source and position go along."""
        self.check_re_readable("a pickle")
        return self.__dict__ | {"_reads": None, "_next": None}

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same for a position to mean the same."""
        columns = self.batches.columns
        return {
            "batch_size": self.batches.batch_size,
            "columns": None if columns is None else list(columns),
            "cycle": self.batches.cycle,
            "source": self.batches.blocks.identity,
        }

    def _reopen(self) -> None:
        """Have the source opened again after an error or an interrupt, so that a fit can go on.

        Neither concerns a thread that still reads what cannot be opened in the middle.
        """
        reads = self._reads
        if self.batches.blocks.seekable or not isinstance(reads, Prefetch) or reads.ended:
            self.close()

    def _opened(self) -> Prefetch | Generator[Read, None, None]:
        """Return what gives the batches from the position on."""
        blocks = self.batches.blocks
        if isinstance(self._reads, Prefetch) and self._reads.orphaned:
            if not blocks.seekable:
                raise RuntimeError(
                    f"stream {self._name!r} was started before this process was forked, and its "
                    "source cannot be opened in the middle. Make the stream in this process."
                )
            self._reads = None
        if self._reads is None:
            self._reads = self._ahead_of(self._open())
            if not (blocks.seekable or blocks.one_shot):
                self._skip(self.batches_seen)
        return self._reads

    def _open(self) -> Generator[list[Read], None, None]:
        """Open the source at the position; what cannot be, at its beginning."""
        blocks, number = self.batches.blocks, self.batches_seen
        if blocks.seekable:
            return self._watch(self.batches.read(self.epoch, self.row), number)
        return self._watch(self.batches.read(), number if blocks.one_shot else 0)

    def _ahead_of(
        self, reads: Generator[list[Read], None, None]
    ) -> Prefetch | Generator[Read, None, None]:
        return Prefetch(reads, self._n_ahead) if self._n_ahead else _one_by_one(reads)

    def _skip(self, n_batches: int) -> None:
        """Read what was read before, without using it: of a source that cannot be opened there."""
        if n_batches == 0:
            return
        _log.info(
            f"stream {self._name!r}: the source cannot be opened in the middle: reading the "
            f"{n_batches * self.batches.batch_size:,} rows before its position again."
        )
        position = self.epoch, self.row, self.batches_seen
        self.batches_seen = 0
        try:
            with Progress() as progress:
                for _ in progress.track(
                    range(n_batches), description=f"Reading {self._name} again"
                ):
                    self._next = next(self._opened())
                    self.take()
        except BaseException:  # the next call starts over
            self.close()
            self.epoch, self.row, self.batches_seen = position
            raise


# Functions without a reference to the reader: a thread must not keep it alive.
def _one_by_one(reads: Generator[list[Read], None, None]) -> Generator[Read, None, None]:
    for some in reads:
        yield from some
