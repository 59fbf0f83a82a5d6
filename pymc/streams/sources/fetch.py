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
"""Row groups of objects in a store, fetched by range requests before they are read."""

import io
import mmap
import tempfile
import threading

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

from pymc.streams.sources.files import Piece, footer_of

# Requests that are made at a time, and the bytes of one. pyarrow has 25 connections to S3.
REQUESTS, RANGE_BYTES = 32, 2**22
# Bytes that are rather read in vain than left out by one more request.
GAP_BYTES = 2**16
# Bytes, and row groups, that are fetched before they are read, the next one apart. They begin with a
# few, and become more with each one that is read: who wants a few rows need not wait for many.
AHEAD_BYTES, AHEAD, FIRST_AHEAD = 2**27, 64, 8
# Bytes of a row group that are kept in memory; those of a larger one in a temporary file.
MEMORY_BYTES = 2**22


def fetched(store: Any, pieces: Iterable[Piece]) -> Generator["FetchedRowGroup", None, None]:
    """Give each row group as a file, in order; those that come next are fetched meanwhile.

    Parameters
    ----------
    store : Store
        Where they are.
    pieces : iterable of Piece
        Row groups, and the columns to fetch of them.
    """
    pieces = iter(pieces)
    ahead: deque[FetchedRowGroup] = deque()
    readers: dict[Any, Callable[[int, int], bytes]] = {}
    stopped = threading.Event()
    pool = ThreadPoolExecutor(REQUESTS, "pymc-store")
    n_ahead = FIRST_AHEAD
    try:
        while True:
            while not ahead or (
                len(ahead) <= n_ahead and sum(group.n_bytes for group in ahead) < AHEAD_BYTES
            ):
                piece = next(pieces, None)
                if piece is None:
                    break
                if piece.file not in readers:
                    readers[piece.file] = store.reader(piece.file, stopped)
                ahead.append(FetchedRowGroup(store, piece, readers[piece.file], pool))
            if not ahead:
                return
            yield ahead.popleft().wait()
            n_ahead = min(AHEAD, n_ahead + FIRST_AHEAD)
    finally:
        stopped.set()
        # Without waiting for requests under way; the interpreter does at its end.
        pool.shutdown(wait=False, cancel_futures=True)


class FetchedRowGroup(io.RawIOBase):
    """The columns of a row group, as a file that has these bytes at their places.

    Attributes
    ----------
    stamp : tuple
        Version of the object after the last byte was fetched, or could not be.
    n_bytes : int
        Number of bytes that are fetched.
    """

    def __init__(
        self,
        store: Any,
        piece: Piece,
        get: Callable[[int, int], bytes],
        pool: ThreadPoolExecutor,
    ):
        super().__init__()
        self._store, self._piece, self._get = store, piece, get
        self.stamp = piece.stamp
        self._position = 0
        extents = extents_of(footer_of(piece.file, piece.stamp).row_group(piece.group), piece)
        self._starts = [start for start, _ in extents]
        self._stops = [stop for _, stop in extents]
        # Where the bytes of each extent begin in what was fetched.
        self._offsets = [0, *accumulate(stop - start for start, stop in extents)]
        self.n_bytes = self._offsets.pop()
        self._spool = tempfile.TemporaryFile() if self.n_bytes > MEMORY_BYTES else None
        self._bytes: Any = bytearray(0 if self._spool else self.n_bytes)
        self._lock = threading.Lock()
        parts = [
            (first, min(first + RANGE_BYTES, stop), offset + first - start)
            for (start, stop), offset in zip(extents, self._offsets)
            for first in range(start, stop, RANGE_BYTES)
        ]
        self._n_left = len(parts)
        self._requests = [pool.submit(self._fetch, *part) for part in parts]

    def _fetch(self, start: int, stop: int, offset: int) -> None:
        """Fetch a range; who fetches the last one sees whether the object is still the same."""
        try:
            data = self._get(start, stop)
        except OSError:
            self.stamp = self._store.stamp(self._piece.file)
            if self.stamp == self._piece.stamp:
                raise
            return
        with self._lock:
            if self._spool is None:
                self._bytes[offset : offset + len(data)] = data
            else:
                self._spool.seek(offset)
                self._spool.write(data)
            self._n_left -= 1
            is_last = self._n_left == 0
        if is_last:
            self.stamp = self._store.stamp(self._piece.file)

    def wait(self) -> "FetchedRowGroup":
        """Wait until all is fetched, or an error is known."""
        try:
            for request in self._requests:
                request.result()
        except OSError as error:
            where = f"{self._piece.file}, row group {self._piece.group}"
            raise OSError(f"{where}: could not be read: {error}") from error
        if self._spool is not None and self.stamp == self._piece.stamp:
            self._spool.flush()
            self._bytes = mmap.mmap(self._spool.fileno(), 0, access=mmap.ACCESS_READ)
            self._spool.close()
        return self

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        size, _ = self._piece.stamp
        self._position = offset + {0: 0, 1: self._position, 2: size}[whence]
        return self._position

    def read(self, size: int = -1) -> Any:
        """Give bytes, without a copy where they were fetched."""
        start, (end, _) = self._position, self._piece.stamp
        self._position = stop = end if size < 0 else min(end, start + size)
        i = bisect_right(self._starts, start) - 1
        if i < 0 or stop > self._stops[i]:
            return self._get(start, stop)
        first = self._offsets[i] + start - self._starts[i]
        return memoryview(self._bytes)[first : first + stop - start]


def extents_of(row_group: Any, piece: Piece) -> list[tuple[int, int]]:
    """Tell where the columns of a row group are: first bytes, and those after the last ones."""
    names = set(piece.columns)
    size, _ = piece.stamp
    chunks = []
    for j in range(row_group.num_columns):
        column = row_group.column(j)
        path = column.path_in_schema
        if path in names or path.split(".")[0] in names:  # of a list, say, its elements are stored
            start = column.data_page_offset
            if column.has_dictionary_page:
                start = min(start, column.dictionary_page_offset or start)
            chunks.append((start, min(size, start + column.total_compressed_size)))
    extents: list[tuple[int, int]] = []
    for start, stop in sorted(chunks):
        if extents and start - extents[-1][1] <= GAP_BYTES:
            start, last = extents.pop()
            stop = max(stop, last)
        extents.append((start, stop))
    return extents
