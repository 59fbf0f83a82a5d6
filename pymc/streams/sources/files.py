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

import glob
import threading

from collections import Counter
from pathlib import Path
from typing import Any

from cachetools import LRUCache, cached

from pymc.streams.sources.lakes import refuse_lakes

# Files' footers are kept for so many column chunks, some hundred bytes each, for all sources
# together, as a compiled model keeps its source; the others are read again.
KEPT_FOOTERS = 65_536
# What a folder that pre_shuffle has written holds.
MANIFEST = "_manifest.json"
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
def footer_of(file: Path, stamp: tuple[int, int]) -> Any:
    """Read the footer of a file, as it was at the time of a stamp."""
    return import_parquet("parquet_source").read_metadata(file)


def stamp_of(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


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
    if not files:
        raise FileNotFoundError("the list of Parquet files is empty.")
    places = Counter(file.resolve() for file in files)
    twice = sorted(str(file) for file, count in places.items() if count > 1)
    if twice:
        raise ValueError(f"listed twice, so that their rows would count twice: {twice}.")
    return files


def _expand(place: Path) -> list[Path]:
    """List the files that one path stands for."""
    if place.is_dir():
        files = sorted(
            file
            for file in place.rglob("*.parquet")
            if not any(part[0] in "._" for part in file.relative_to(place).parts)
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
    if glob.has_magic(str(place)):
        files = [Path(name) for name in sorted(glob.glob(str(place), recursive=True))]
        files = [file for file in files if file.is_file()]
        if not files:
            raise FileNotFoundError(f"no file matches {place}.")
        return files
    raise FileNotFoundError(f"no Parquet file or folder at {place}.")
