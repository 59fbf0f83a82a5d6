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
"""Summary, split and scales: rows per second, against reading alone.

``python -m benchmarks.scales`` reads the order book (four columns) from Parquet files in their order,
by one thread, and in turn with that: summarises its columns, splits its rows by position and by a
column of keys, and reads the first part, raw and standardised.
"""

import argparse
import time

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.data import make_order_book
from benchmarks.processes import in_turn
from benchmarks.table import compared, print_table
from examples.order_book.fit import COLUMNS
from pymc.variational.streaming import column_summary, parquet_source, split_rows, standardize

N_ROUNDS = 5


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scales",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=5_000_000, help="size of the table, about")
    text = "where tables are kept (default: %(default)s)"
    parser.add_argument("--folder", type=Path, default="benchmark_data", help=text)
    arguments = parser.parse_args()
    folder = make_order_book(arguments.folder, arguments.rows)
    source = parquet_source(folder / "table", columns=COLUMNS)
    summary = column_summary(source)
    train, _ = split_rows(source, 0.8)
    scaled = standardize(train, COLUMNS[:3], summary)
    jobs: dict[str, tuple[int, Callable[[], Any]]] = {
        "read": (source.n_rows, lambda: read(source.unshuffled())),
        "column_summary": (source.n_rows, lambda: column_summary(source)),
        "split_rows, by position": (source.n_rows, lambda: split_rows(source, 0.8)),
        "split_rows, by a column": (source.n_rows, lambda: split_rows(source, 0.8, by="mid")),
        "read a part": (train.n_rows, lambda: read(train.unshuffled())),
        "read a part, standardised": (train.n_rows, lambda: read(scaled.unshuffled())),
    }
    results = in_turn(
        {name: lambda job=job: timed(*job) for name, job in jobs.items()},
        N_ROUNDS,
    )
    settings = {"section": "scales", "n_rows": source.n_rows, "columns": len(COLUMNS)}
    print_table(
        list(
            compared(results, "read", lambda r: r["rows_per_s"] / 1e6, unit="M rows/s", **settings)
        )
    )


def read(blocks: Iterable[Any]) -> None:
    """Read blocks, and do nothing with them."""
    for _ in blocks:
        pass


def timed(n_rows: int, job: Callable[[], Any]) -> dict[str, float]:
    """Do a job, and give its speed."""
    start = time.perf_counter()
    job()
    return {"rows_per_s": n_rows / (time.perf_counter() - start)}


if __name__ == "__main__":
    main()
