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
"""What pre_shuffle wrote on disk, put into an object store, where it is seen whole or not at all."""

import hashlib
import re
import tempfile

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.progress import Progress

from pymc.streams.sources.files import MANIFEST
from pymc.streams.sources.stores import INCOMPLETE, StoredPath

# Files that are uploaded at a time, each by several requests if it is large.
UPLOADS = 4


def staging_folder(place: StoredPath) -> Path:
    """Name the folder on disk where a result is made before it is uploaded to a place."""
    name = hashlib.sha256(str(place).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"pre_shuffle-{name}.partial"


def is_uploaded(place: StoredPath) -> bool:
    """Tell whether anything is at a place but what an upload that was stopped has left.

    Raises
    ------
    FileExistsError
        If an upload that was stopped has left its mark, and others have put objects there too.
    """
    found = place.store.below(place)
    if place / INCOMPLETE not in found:
        return bool(found)
    for file in found:
        if file != place / file.name or not re.fullmatch(
            rf"part-\d+\.parquet|{MANIFEST}|{INCOMPLETE}", file.name
        ):
            raise FileExistsError(f"{file}: pre_shuffle did not write it. Remove {place}.")
    return False


def upload(folder: Path, place: StoredPath, progress: Progress) -> None:
    """Put the files of a folder into a store, and the manifest last.

    Raises
    ------
    OSError
        If the store does not take a file, or does not have it afterwards as it is on disk.
    """
    store = place.store
    mark = folder / INCOMPLETE
    mark.write_text("pre_shuffle is uploading rows to this folder: not all of them are here.\n")
    store.put(mark, place / INCOMPLETE)
    for file in store.below(place):
        if file.name != INCOMPLETE:
            store.delete(file)
    files = sorted(folder.glob("*.parquet"))
    task = progress.add_task("Uploading files", total=len(files))
    with ThreadPoolExecutor(UPLOADS, "pymc-store") as pool:
        for _ in pool.map(lambda file: store.put(file, place / file.name), files):
            progress.advance(task)
    sizes = {file.name: file.stat().st_size for file in files}
    there = store.sizes(place)
    if there != sizes:
        wrong = sorted(name for name, _ in sizes.items() ^ there.items())
        raise OSError(f"{place}: {', '.join(wrong)} is not there as it was sent. Call it again.")
    store.put(folder / MANIFEST, place / MANIFEST)
    store.delete(place / INCOMPLETE)
