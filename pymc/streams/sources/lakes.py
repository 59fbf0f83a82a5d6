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
"""Lakes: folders of Parquet files of which a log tells what rows there are (Delta, Iceberg)."""

import os

from collections.abc import Iterable
from pathlib import Path


def refuse_lakes(files: Iterable[str | os.PathLike]) -> None:
    """Refuse local files that are those of a Delta or Iceberg table.

    A row that was deleted or changed stays in them: its table's log says that it does not count.

    Raises
    ------
    ValueError
        If a folder around a file is such a table. The message names it, and how to read it.
    """
    folders = {Path(file).parent for file in files}
    for folder in sorted(folders.union(*(folder.parents for folder in folders))):
        if (folder / "_delta_log").is_dir():
            raise _refusal(str(folder), "Delta")
        if any((folder / "metadata").glob("*.metadata.json")):
            raise _refusal(str(folder), "Iceberg")


def refuse_stored_lakes(urls: Iterable[str]) -> None:
    """Refuse objects of which one belongs to the log of a Delta or Iceberg table.

    Parameters
    ----------
    urls : iterable of str
        All that lies in a folder of a store and in those below.
    """
    for url in urls:
        folder, _, name = url.rpartition("/")
        table, _, kind = folder.rpartition("/")
        if kind == "_delta_log":
            raise _refusal(table, "Delta")
        if kind == "metadata" and name.endswith(".metadata.json"):
            raise _refusal(table, "Iceberg")


def _refusal(folder: str, kind: str) -> ValueError:
    way = {
        "Delta": f'source = deltalake.DeltaTable("{folder}")',
        "Iceberg": 'table = pyiceberg.catalog.load_catalog("...").load_table("..."); source = '
        "table_source(lambda: table.scan().to_arrow_batch_reader())",
    }
    return ValueError(
        f"{folder} is {'a' if kind == 'Delta' else 'an'} {kind} table: rows that were deleted or "
        "changed are still in its files, and only its log tells which. Read it by its log: "
        f"{way[kind]}."
    )
