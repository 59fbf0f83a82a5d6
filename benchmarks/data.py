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
"""The tables that are streamed, made once and kept."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from examples.order_book.events import make_events
from examples.order_book.fold import fold_events
from examples.order_book.output import finished_folder, is_finished
from examples.order_book.shuffle import shuffle_table

GROUP_ROWS = 65_536
FILE_GROUPS = 32
MAX_BYTES = 1_400_000_000


def make_order_book(folder: Path, n_rows: int, *, shuffled: bool = False) -> Path:
    """Make the order book of about `n_rows` rows, unless it is there; give its folder.

    Its ``table`` is as folded, 8,192 rows a row group.
    """
    place = folder / f"order_book-{n_rows}"
    make_events(place, n_events=n_rows, n_files=56, seed=0)
    fold_events(place)
    if shuffled:
        shuffle_table(place, seed=0)
    return place


def rewrite_table(place: Path) -> None:
    """Write the table of an order book as most writers do, with large row groups: ``usual``."""
    settings = {"table": (place / "table").stat().st_mtime_ns, "group_rows": GROUP_ROWS}
    if is_finished(place / "usual", settings):
        return
    with finished_folder(place / "usual", settings) as partial:
        for path in sorted((place / "table").glob("*.parquet")):
            pq.write_table(pq.read_table(path), partial / path.name, row_group_size=GROUP_ROWS)


def make_random(folder: Path, n_rows: int, n_columns: int) -> tuple[Path, int]:
    """Write a table of random float32 columns, unless it is there; give its folder and rows."""
    n_groups = max(1, min(n_rows, MAX_BYTES // (4 * n_columns)) // GROUP_ROWS)
    n_rows = n_groups * GROUP_ROWS
    settings = {"rows": n_rows, "columns": n_columns}
    table = folder / f"random-{n_rows}x{n_columns}"
    if is_finished(table, settings):
        return table, n_rows
    rng = np.random.default_rng(0)
    schema = pa.schema([(f"x{j}", pa.float32()) for j in range(n_columns)])
    with finished_folder(table, settings) as partial_folder:
        for first in range(0, n_groups, FILE_GROUPS):
            path = partial_folder / f"part-{first // FILE_GROUPS:03d}.parquet"
            with pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=False) as file:
                for _ in range(first, min(first + FILE_GROUPS, n_groups)):
                    values = rng.standard_normal((n_columns, GROUP_ROWS), dtype=np.float32)
                    file.write_table(pa.Table.from_arrays(list(values), schema=schema))
    return table, n_rows


def n_rows_of(folder: Path) -> int:
    """Rows of all files of a folder."""
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))
