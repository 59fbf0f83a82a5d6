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
            kind, way = "a Delta", f'source = deltalake.DeltaTable("{folder}")'
        elif any((folder / "metadata").glob("*.metadata.json")):
            kind, way = (
                "an Iceberg",
                'table = pyiceberg.catalog.load_catalog("...").load_table("..."); source = '
                "table_source(lambda: table.scan().to_arrow_batch_reader())",
            )
        else:
            continue
        raise ValueError(
            f"{folder} is {kind} table: rows that were deleted or changed are still in its files, and "
            f"only its log tells which. Read it by its log: {way}."
        )
