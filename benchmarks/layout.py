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
"""Layout: how Parquet files are best written for streaming, and what ``pre_shuffle`` takes.

``python -m benchmarks.layout`` writes the order-book table in random order with row groups of
several sizes, codecs and encodings, and reads each as :class:`parquet_source` does, in turn and
several times. The figures behind the defaults of ``pymc/streams/shuffle/disk.py``.
"""

import argparse
import subprocess
import sys
import tempfile
import time

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rich.table import Table

from examples.order_book.events import make_events
from examples.order_book.fit import COLUMNS, peak_memory_mb
from examples.order_book.fold import fold_events
from examples.order_book.output import console
from pymc.variational.streaming import parquet_source, pre_shuffle

# Row-group size, codec, and which columns have a dictionary.
DEFAULT = (131_072, "lz4", "few values")
LAYOUTS = [
    DEFAULT,
    *((rows, *DEFAULT[1:]) for rows in (8192, 32_768, 1_048_576)),
    *((DEFAULT[0], codec, DEFAULT[2]) for codec in ("none", "snappy", "zstd")),
    *((*DEFAULT[:2], dictionary) for dictionary in ("all", "all but floats", "none")),
]
ROUNDS = 7


def write(table, path: Path, group_rows: int, codec: str, dictionary: str) -> None:
    """Write a table in one of the layouts."""
    few_values = ["spread", "up"]
    dictionaries = {
        "all": True,
        "all but floats": ["time", *few_values],
        "few values": few_values,
        "none": False,
    }[dictionary]
    pq.write_table(
        table, path, row_group_size=group_rows, compression=codec, use_dictionary=dictionaries
    )


def read(path: Path) -> float:
    """Read an epoch as a stream does, and return the seconds."""
    source = parquet_source(path, columns=COLUMNS, shuffle_row_groups=True, seed=0)
    start = time.perf_counter()
    for _ in source:
        pass
    return time.perf_counter() - start


def compare_layouts(folder: Path) -> None:
    """Print the time to read each layout, as a ratio to the default one."""
    table = pq.read_table(folder / "table")
    table = table.take(np.random.default_rng(0).permutation(len(table)))
    paths = [folder / f"{i}.parquet" for i in range(len(LAYOUTS))]
    for layout, path in zip(LAYOUTS, paths):
        write(table, path, *layout)
    seconds = np.array([[read(path) for path in paths] for _ in range(ROUNDS)])
    ratios = seconds / seconds[:, :1]
    report = Table(title=f"Reading {len(table):,} rows of 4 columns in random order")
    for name in ("rows", "codec", "dictionary", "time / default", "M rows/s", "bytes a row"):
        report.add_column(name, justify="right")
    for j, (rows, codec, dictionary) in enumerate(LAYOUTS):
        low, middle, high = np.quantile(ratios[:, j], [0, 0.5, 1])
        report.add_row(
            f"{rows:,}",
            codec,
            dictionary,
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            f"{len(table) / np.median(seconds[:, j]) / 1e6:.0f}",
            f"{paths[j].stat().st_size / len(table):.1f}",
        )
    console.print(report)


def measure_memory(folder: Path, limit: str) -> None:
    """Print what ``pre_shuffle`` adds to the peak memory of this process."""
    before = peak_memory_mb()
    start = time.perf_counter()
    source = pre_shuffle(
        folder / "table", folder / limit, seed=0, memory_limit=limit, progressbar=False
    )
    console.print(
        f"pre_shuffle, {source.n_rows:,} rows, memory_limit {limit}: "
        f"{time.perf_counter() - start:.1f} s, {peak_memory_mb() - before:.0f} MB more than before"
    )


def main() -> None:
    """Make the table and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layout", description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000, help="rows, about")
    parser.add_argument("--folder", type=Path, help="where the table is (in a process of its own)")
    parser.add_argument("--memory-limit", help="measure only this one, in this process")
    arguments = parser.parse_args()
    if arguments.memory_limit:
        measure_memory(arguments.folder, arguments.memory_limit)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_events(folder, n_events=arguments.events, n_files=56, seed=0)
        fold_events(folder)
        compare_layouts(folder)
        for limit in ("64MB", "256MB", "1GB"):
            command = [sys.executable, "-m", "benchmarks.layout", f"--folder={folder}"]
            subprocess.run([*command, f"--memory-limit={limit}"], check=True)


if __name__ == "__main__":
    main()
