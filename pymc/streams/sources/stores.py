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
"""Objects in a store, such as S3, as files: which ones a URL stands for, and requests for them."""

import os
import random
import re
import threading

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from pymc.streams.sources.fetch import REQUESTS, FetchedRowGroup, fetched
from pymc.streams.sources.files import (
    MANIFEST,
    Disk,
    Piece,
    Stamp,
    check_distinct,
    footer_of,
    has_magic,
    is_seen,
)
from pymc.streams.sources.filesystems import ArrowFiles, FsspecFiles, files_of, open_url
from pymc.streams.sources.lakes import refuse_stored_lakes

# A request that fails is made so many times in all, after a pause of so many seconds that doubles
# each time. The libraries make some quick attempts of their own each time.
TRIES, PAUSE = 5, 0.5
# Errors of S3, in pyarrow's words, which come again when the request does.
FINAL = re.compile(
    r"AWS Error (ACCESS_DENIED|NO_SUCH|RESOURCE_NOT_FOUND|INVALID_|MISSING_|SIGNATURE_DOES|"
    r"UNRECOGNIZED_CLIENT)|HTTP status (code )?4(?!08|29)"
)
# The end of a file that is read first: with few exceptions, the footer is in it.
TAIL_BYTES = 2**16
# What lies in a folder of a store from before pre_shuffle uploads the first file until all is there.
INCOMPLETE = "_incomplete"

Answer = TypeVar("Answer")


class StoredPath:
    """An object or a folder in a store; ``str`` gives its URL.

    Attributes
    ----------
    store : Store
        Where it is.
    path : str
        Its name for the file system.
    stamp : tuple or None
        Size and version of an object when it was listed.
    """

    def __init__(self, store: "Store", path: str, stamp: Stamp | None = None):
        self.store, self.path, self.stamp = store, path, stamp

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.path.split("/"))

    def __truediv__(self, name: str) -> "StoredPath":
        return StoredPath(self.store, f"{self.path}/{name}")

    def __str__(self) -> str:
        return f"{self.store.files.scheme}://{self.path.lstrip('/')}"

    __repr__ = __str__

    def __lt__(self, other: "StoredPath") -> bool:
        return self.parts < other.parts

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StoredPath):
            return NotImplemented
        return self.path == other.path and self.store.files == other.store.files

    def __hash__(self) -> int:
        return hash(self.path)

    def tail(self, stamp: Stamp) -> Any:
        """Read the end of a Parquet file, with its footer."""
        import pyarrow as pa

        size, _ = stamp
        get = self.store.reader(self)
        tail = get(max(0, size - TAIL_BYTES), size)
        n_bytes = 8 + int.from_bytes(tail[-8:-4], "little")
        if len(tail) < n_bytes <= size:
            tail = get(size - n_bytes, size)
        return pa.BufferReader(tail)


class Store:
    """Objects in a store, to be used as the files of :class:`Disk` are.

    Parameters
    ----------
    files : ArrowFiles or FsspecFiles
        The file system.
    """

    def __init__(self, files: ArrowFiles | FsspecFiles):
        self.files = files
        # Around these places there is no table with a log: asking takes requests.
        self._plain: set[StoredPath] = set()

    def find(self, places: Sequence[StoredPath]) -> list[StoredPath]:
        """List the objects that paths stand for."""
        files = [file for place in places for file in self._expand(place)]
        check_distinct(files)
        return files

    def _expand(self, place: StoredPath) -> list[StoredPath]:
        folder, found = place, self.below(place)
        self._refuse_lakes_around(place)
        if place in found:
            return found
        if found:
            files = [file for file in found if is_seen(_names(file, place))]
            files = [file for file in files if file.name.endswith(".parquet")]
            trouble = f"no *.parquet object in the folder {place}."
        elif has_magic(place.path):
            n_plain = [has_magic(part) for part in place.parts].index(True)
            folder = StoredPath(self, "/".join(place.parts[:n_plain]))
            found = self.below(folder)
            pattern = _names(place, folder)
            files = [file for file in found if _matches(_names(file, folder), pattern)]
            trouble = f"no object matches {place}."
        else:
            files, trouble = [], f"no Parquet object or folder at {place}."
        if not files:
            raise FileNotFoundError(trouble)
        refuse_stored_lakes(map(str, found))
        folders = {file.parts[:-1] for file in files}
        for mark in found:
            if mark.name == INCOMPLETE and mark.parts[:-1] in folders:
                raise ValueError(
                    f"{mark}: pre_shuffle has not uploaded all rows to this folder. If it does not "
                    "run any more, call it again with the same arguments."
                )
        return files

    def _refuse_lakes_around(self, place: StoredPath) -> None:
        """Refuse what lies in a Delta or Iceberg table."""
        if place in self._plain:
            return
        for n in range(1, len(place.parts)):
            parent = StoredPath(self, "/".join(place.parts[:n]))
            for log in ("_delta_log", "metadata"):
                try:
                    found = self.below(parent / log)
                except PermissionError:  # credentials may be for the place alone
                    continue
                refuse_stored_lakes(map(str, found))
        self._plain.add(place)

    def below(self, place: StoredPath) -> list[StoredPath]:
        """List an object, or all that are in a folder and in those below, in order."""
        found = self._ask(place, lambda: self.files.below(place.path))
        return sorted(StoredPath(self, path, stamp) for path, stamp in found.items())

    def stamps(self, files: Sequence[StoredPath]) -> list[Stamp]:
        """Tell the versions of objects when they were listed."""
        return [file.stamp or self.stamp(file) for file in files]

    def stamp(self, file: StoredPath) -> Stamp:
        """Ask for the version of an object."""
        return self._ask(file, lambda: self.files.stamp(file.path))

    def footers(self, files: Sequence[StoredPath], stamps: Sequence[Stamp]) -> Iterator[Any]:
        """Give the footers of files in order, while others are read."""
        with ThreadPoolExecutor(REQUESTS, "pymc-store") as pool:
            yield from pool.map(footer_of, files, stamps)

    def opened(self, pieces: Iterable[Piece]) -> Iterator[FetchedRowGroup]:
        """Give what pyarrow reads each row group from, in order, while others are fetched."""
        return fetched(self, pieces)

    def stamp_of_opened(self, opened: FetchedRowGroup) -> Stamp:
        """Tell the version of what is read, which does not change while it is."""
        return opened.stamp

    def sizes(self, folder: StoredPath) -> dict[str, int]:
        """Tell the bytes of the Parquet files in a folder and in those below."""
        found = [file for file in self.below(folder) if file.name.endswith(".parquet")]
        return {
            "/".join(_names(file, folder)): size
            for file, (size, _) in zip(found, self.stamps(found))
        }

    def read(self, file: StoredPath) -> bytes:
        """Read an object."""
        size, _ = self.stamp(file)
        return self.reader(file)(0, size)

    def is_shuffled(self, place: StoredPath) -> bool:
        """Tell whether pre_shuffle wrote what is at a path."""
        return bool(self.below(place / MANIFEST))

    def reader(
        self, file: StoredPath, stopped: threading.Event | None = None
    ) -> Callable[[int, int], bytes]:
        """Return what reads the bytes of an object from the first number to before the second."""
        opened: list[Callable[[int, int], bytes]] = []

        def get(start: int, stop: int) -> bytes:
            if not opened:
                opened.append(self.files.reader(file.path))
            data = opened[0](start, stop)
            if len(data) != stop - start:
                raise ConnectionError(f"{len(data)} bytes came, of {stop - start}")
            return data

        return lambda start, stop: self._ask(file, lambda: get(start, stop), stopped)

    def put(self, local: Path, file: StoredPath) -> None:
        """Copy a file of this machine into the store."""
        self._ask(file, lambda: self.files.put(local, file.path))

    def delete(self, file: StoredPath) -> None:
        self._ask(file, lambda: self.files.delete(file.path))

    def _ask(
        self, what: StoredPath, call: Callable[[], Answer], stopped: threading.Event | None = None
    ) -> Answer:
        """Make a request, and again after a pause where it failed in a way that may pass."""
        stopped = stopped or threading.Event()
        for k in range(TRIES):
            try:
                return call()
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{what}: not there (any more): {error}") from error
            except Exception as error:
                failed = error
            if isinstance(failed, TypeError | ValueError):
                raise ValueError(
                    f"{what}: {failed}. Check storage_options= or filesystem=: the store was not asked."
                ) from failed
            if _is_final(failed):
                raise PermissionError(
                    f"{what}: the store refused: {failed}. Check the name, and what the "
                    "credentials allow; storage_options= or filesystem= give others."
                ) from failed
            # A pause of its own for each thread: together they would come as one more burst.
            if k + 1 == TRIES or stopped.wait(PAUSE * 2**k * random.uniform(0.5, 1)):
                break
        raise ConnectionError(
            f"{what}: no answer from the store in {k + 1} attempts, the last of which ended with "
            f"{type(failed).__name__}: {failed}. Once it answers, go on from a checkpoint."
        ) from failed


def _names(file: StoredPath, folder: StoredPath) -> tuple[str, ...]:
    """List the names on the way from a folder to a file."""
    return file.parts[len(folder.parts) :]


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Match names as :func:`glob.glob` does."""
    if not pattern or not names:
        return not names and all(part == "**" for part in pattern)
    hidden = names[0].startswith(".") and not pattern[0].startswith(".")
    if pattern[0] == "**" and not hidden and _matches(names[1:], pattern):
        return True
    if pattern[0] == "**":
        return _matches(names, pattern[1:])
    return fnmatchcase(names[0], pattern[0]) and not hidden and _matches(names[1:], pattern[1:])


def _is_final(error: Exception) -> bool:
    """Tell whether an error comes again when the request does."""
    if isinstance(error, PermissionError | NotImplementedError | ValueError | TypeError):
        return True
    # The status of HTTP, where libraries put it: botocore, requests and httpx, Azure, gcsfs, aiohttp.
    response = getattr(error, "response", None)
    status = (
        response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(response, dict)
        else getattr(response, "status_code", None)
    )
    for name in ("status_code", "code", "status"):
        status = status or getattr(error, name, None)
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 429):
        return True
    return "Credential" in type(error).__name__ or bool(FINAL.search(str(error)))


def is_url(path: Any) -> bool:
    """Tell whether a path, or one in a list, is the URL of a place in a store."""
    paths = path if isinstance(path, list | tuple) else [path]
    return any(isinstance(item, str) and "://" in item for item in paths)


def is_within(inner: Any, outer: Any) -> bool:
    """Tell whether a place is another one or lies in it."""
    if isinstance(inner, Path) and isinstance(outer, Path):
        return inner.resolve().is_relative_to(outer.resolve())
    if isinstance(inner, Path) or isinstance(outer, Path):
        return False
    same_store = inner.store.files == outer.store.files
    return same_store and inner.parts[: len(outer.parts)] == outer.parts


def files_at(
    path: str | os.PathLike | Sequence[str | os.PathLike],
    filesystem: Any = None,
    storage_options: dict[str, Any] | None = None,
) -> tuple[Any, list[Any]]:
    """Tell where paths or URLs are: a :class:`Disk` or a :class:`Store`, and the places there."""
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    urls = [str(item) for item in paths if is_url(item)]
    if filesystem is not None:
        if storage_options is not None or urls:
            raise ValueError(
                "filesystem= is for plain paths, such as bucket/folder; a URL, such as "
                "s3://bucket/folder, may have storage_options=."
            )
        opened = [(filesystem, os.fspath(item)) for item in paths]
    elif urls:
        if len(urls) < len(paths):
            raise ValueError(f"paths in one place at a time: {urls} are URLs, and others not.")
        opened = [open_url(url, storage_options) for url in urls]
        if any(fs != opened[0][0] for fs, _ in opened):
            raise ValueError(f"paths in one store at a time, not {urls}.")
    elif storage_options is not None:
        raise ValueError(f"storage_options= is for a URL, such as s3://bucket/folder; got {path}.")
    else:
        opened = []
    if not opened:
        # Absolute: a later chdir must not lose them.
        return Disk(), [Path(item).expanduser().absolute() for item in paths]
    files = files_of(opened[0][0])
    if files.is_local:
        return Disk(), [Path(item).absolute() for _, item in opened]
    store = Store(files)
    return store, [StoredPath(store, files.plain(item)) for _, item in opened]
