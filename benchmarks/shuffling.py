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
"""Shuffling: ``pre_shuffle`` against DuckDB at the same memory limit, and against a plain copy.

``python -m benchmarks.shuffling --peers .venv-peers/bin/python`` shuffles the order-book table on
disk, each time in a process of its own, in turn. ``pre_shuffle`` also reads back what it wrote and
compares checksums; DuckDB sorts by ``random()``. The copy reads each row group and writes it again:
the lower limit.
"""

import argparse
import json
import os
import shutil
import sys
import time

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rich.table import Table

from benchmarks.loader import FOLDER, PEERS, TABLE_WIDTH, run, with_range
from benchmarks.peers import peak_mb
from examples.order_book.events import make_events
from examples.order_book.fold import fold_events
from examples.order_book.output import console

MEMORY_LIMIT = "512MB"
NAMES = {"ours": "pre_shuffle", "duckdb": "DuckDB, ORDER BY random()", "copy": "plain copy"}


def make_order_book(folder: Path, n_rows: int) -> Path:
    """Make the order book of about `n_rows` rows, unless it is there; give its folder."""
    place = folder / f"order_book-{n_rows}"
    make_events(place, n_events=n_rows, n_files=56, seed=0)
    fold_events(place)
    return place


def n_rows_of(folder: Path) -> int:
    """Rows of all files of a folder."""
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))


def shuffle_ours(table: Path, destination: Path) -> dict:
    """Time ``pre_shuffle`` in this process."""
    from pymc.variational.streaming import pre_shuffle

    start = time.perf_counter()
    source = pre_shuffle(table, destination, seed=0, memory_limit=MEMORY_LIMIT, progressbar=False)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "rows": source.n_rows, "peak_mb": peak_mb()}


def compare(folder: Path, peers: str | None, rounds: int) -> dict[str, list[dict]]:
    """Shuffle and copy in turn; the result is removed each time."""
    table, destination = folder / "table", folder / "result"
    expected = n_rows_of(table)
    results: dict[str, list[dict]] = {}
    skipped: dict[str, str] = {} if peers else dict.fromkeys(("duckdb", "copy"), "no --peers")
    for _ in range(rounds):
        for name in NAMES:
            if name in skipped:
                continue
            shutil.rmtree(destination, ignore_errors=True)
            os.sync()  # so that no run waits for what another one wrote
            if name == "ours":
                command = [sys.executable, "-m", "benchmarks.shuffling", f"--table={table}"]
            else:
                command = [peers, PEERS, "pre_shuffle", name, f"--folder={table}"]
                command += [f"--memory-limit={MEMORY_LIMIT}"]
            result = run([*command, f"--destination={destination}"])
            if isinstance(result, str):
                skipped[name] = result
            elif result["rows"] != expected or n_rows_of(destination) != expected:
                raise RuntimeError(f"{name}: {result['rows']} rows, not {expected}")
            else:
                results.setdefault(name, []).append(result)
    shutil.rmtree(destination, ignore_errors=True)
    for name, reason in skipped.items():
        console.print(f"Skipped: {NAMES[name]}: {reason}", soft_wrap=True)
    return results


def print_table(results: dict[str, list[dict]]) -> None:
    """Print the comparison."""
    n_rows = next(iter(results.values()))[0]["rows"]
    report = Table(
        title=f"Shuffling {n_rows:,} rows of 5 columns on disk, memory limit {MEMORY_LIMIT}",
        caption="this / ours: above 1, ours is faster; median over the rounds, and range",
    )
    report.add_column("how")
    for name in ("seconds", "M rows/s", "this / ours", "peak MB"):
        report.add_column(name, justify="right")
    ours = [result["seconds"] for result in results.get("ours", [])]
    for name, runs in results.items():
        seconds = [result["seconds"] for result in runs]
        ratios = [this / our for this, our in zip(seconds, ours)] or [np.nan]
        report.add_row(
            NAMES[name],
            f"{np.median(seconds):.1f}",
            f"{n_rows / np.median(seconds) / 1e6:.2f}",
            with_range(float(np.median(ratios)), min(ratios), max(ratios)),
            f"{max(result['peak_mb'] for result in runs):,.0f}",
        )
    console.print(report)


def main() -> None:
    """Make the table and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shuffling", description=__doc__)
    parser.add_argument("--peers", help="Python with benchmarks/requirements-peers.txt")
    parser.add_argument("--rows", type=int, default=20_000_000, help="rows, about")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where tables are kept")
    parser.add_argument("--table", type=Path, help="shuffle this one with ours, in this process")
    parser.add_argument("--destination", type=Path, help="with --table")
    options = parser.parse_args()
    if options.table:
        result = shuffle_ours(options.table, options.destination)
        sys.stdout.write(json.dumps(result) + "\n")
        return
    console.width = max(console.width, TABLE_WIDTH)
    folder = make_order_book(options.folder, options.rows)
    print_table(compare(folder, options.peers, options.rounds))


if __name__ == "__main__":
    main()
