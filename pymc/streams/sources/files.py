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
"""Files that rows are read from: which ones a path stands for, and whether they are still the same."""

import threading

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple

from cachetools import LRUCache, cached

from pymc.streams.sources.lakes import refuse_lakes

# Files' footers are kept for so many column chunks, some hundred bytes each, for all sources
# together, as a compiled model keeps its source; the others are read again.
KEPT_FOOTERS = 65_536
# What a folder that pre_shuffle has written holds.
MANIFEST = "_manifest.json"
# Size of a file, and what tells its versions from each other.
Stamp = tuple[int, Any]
# What file names end with, and what pyarrow.dataset calls the format.
FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".arrow": "ipc",
    ".ipc": "ipc",
    ".feather": "ipc",
    ".orc": "orc",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
}


@cached(
    LRUCache(KEPT_FOOTERS, getsizeof=lambda footer: 1 + footer.num_row_groups * footer.num_columns),
    lock=threading.Lock(),
)
def footer_of(file: Any, stamp: Stamp) -> Any:
    """Read the footer of a file, or of an object in a store, as it was at the time of a stamp."""
    source = file if isinstance(file, Path) else file.tail(stamp)
    return import_parquet("parquet_source").read_metadata(source)


def stamp_of(file: Path) -> Stamp:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


class Piece(NamedTuple):
    """A row group to be read, or what holds it: a file as it was at the time of a stamp."""

    file: Any
    stamp: Stamp
    group: int
    columns: Sequence[str]


class Disk:
    """The files of this machine; :class:`Store` is the same for objects in a store."""

    def find(self, places: list[Path]) -> list[Path]:
        """List the files that paths stand for."""
        return find_files(places)

    def stamps(self, files: Sequence[Path]) -> list[Stamp]:
        """Tell the versions of files as they are now."""
        return list(map(stamp_of, files))

    def footers(self, files: Sequence[Path], stamps: Sequence[Stamp]) -> Iterator[Any]:
        """Give the footers of files in order."""
        return map(footer_of, files, stamps)

    def opened(self, pieces: Iterable[Piece]) -> Iterator[Any]:
        """Give what pyarrow reads each row group from, in order."""
        return (piece.file for piece in pieces)

    def stamp_of_opened(self, opened: Path) -> Stamp:
        """Tell the version of what is read, which may change while it is."""
        return stamp_of(opened)

    def sizes(self, folder: Path) -> dict[str, int]:
        """Tell the bytes of the Parquet files in a folder and in those below."""
        files = folder.rglob("*.parquet")
        return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}

    def read(self, file: Path) -> bytes:
        """Read a file."""
        return file.read_bytes()

    def is_shuffled(self, place: Path) -> bool:
        """Tell whether pre_shuffle wrote what is at a path."""
        return (place / MANIFEST).is_file()


def read_footers(storage: Any, files: Sequence[Any], stamps: Sequence[Stamp]) -> Iterator[Any]:
    """Give the footers of files on disk or in a store in order, or name the one that has none."""
    footers = storage.footers(files, stamps)
    for file in files:
        try:
            footer = next(footers)
        except (ConnectionError, FileNotFoundError, PermissionError):
            raise
        except Exception as error:
            raise ValueError(f"{file}: not a readable Parquet file: {error}") from error
        yield footer


def import_parquet(who: str) -> Any:
    """Import pyarrow where it is used: PyMC does not depend on it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{who} needs pyarrow, which is not installed: pip install pyarrow"
        ) from error
    return pyarrow.parquet


def find_files(paths: list[Path]) -> list[Path]:
    files = [file for path in paths for file in _expand(path)]
    refuse_lakes(files)
    check_distinct([file.resolve() for file in files])
    return files


def check_distinct(files: Sequence[Any]) -> None:
    if not files:
        raise FileNotFoundError("the list of Parquet files is empty.")
    twice = sorted(str(file) for file, count in Counter(files).items() if count > 1)
    if twice:
        raise ValueError(f"listed twice, so that their rows would count twice: {twice}.")


def is_seen(parts: Sequence[str]) -> bool:
    """Tell whether a file below a folder is one of its rows' files, given the names on the way."""
    return not any(part.startswith((".", "_")) for part in parts)


def _expand(place: Path) -> list[Path]:
    """List the files that one path stands for."""
    if place.is_dir():
        files = sorted(
            file for file in place.rglob("*.parquet") if is_seen(file.relative_to(place).parts)
        )
        if not files:
            raise FileNotFoundError(
                f"no *.parquet file in the folder {place}. CSV, Arrow and other files are read by "
                "table_source."
            )
        return files
    if place.is_file():
        if FORMATS.get(place.suffix, "parquet") != "parquet":
            raise ValueError(f"{place}: not a Parquet file. Read it: table_source({str(place)!r}).")
        return [place]
    if has_magic(str(place)):
        files = [Path(name) for name in sorted(glob(str(place), recursive=True))]
        files = [file for file in files if file.is_file()]
        if not files:
            raise FileNotFoundError(f"no file matches {place}.")
        return files
    raise FileNotFoundError(f"no Parquet file or folder at {place}.")
