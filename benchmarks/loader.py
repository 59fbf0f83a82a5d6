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
"""Loader: rows per second into batches, against the loaders of other projects.

``python -m benchmarks.loader --peers .venv-peers/bin/python`` writes tables of random numbers and
reads batches of 4096 rows from them: with ours, and with each peer as ``benchmarks/peers.py`` uses
it. Each run is a process of its own, in turn, and filling a shuffle buffer counts. Ours ends in a
matrix of floatX, float64, checked for missing values; the peers' in float32, as in the files.
"""

import argparse
import json
import os
import subprocess
import sys

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rich.table import Table

from benchmarks.peers import ABSENT, BATCH_SIZE, BUFFER_SIZE, LOADERS, measure
from examples.order_book.output import console, finished_folder, is_finished

FOLDER = Path("benchmark_data")
PEERS = Path(__file__).with_name("peers.py")
GROUP_ROWS = 65_536
FILE_GROUPS = 32
MAX_BYTES = 1_400_000_000
TIMEOUT_SECONDS = 300
TABLE_WIDTH = 110
OURS = ("ours", "ours, row groups")


@dataclass
class Row:
    """A line of the table: one loader on one table; medians over the rounds.

    The ratio is ours to this one, in rows per second of the same round: above 1, ours is faster.
    """

    columns: int
    shuffled: bool
    name: str
    rows_per_second: float
    ratio: float
    ratio_low: float
    ratio_high: float
    first_seconds: float  # until the first batch
    peak_mb: float  # largest


def run(command: list, timeout: float | None = None, **environment: str) -> dict | str:
    """Run a process and give the JSON that it prints last; if it fails, say why."""
    # Worker processes of peers import at every start: bytecode must be kept.
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    try:
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=variables | environment,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {timeout:.0f} s"
    if done.returncode:
        absent = "absent: " if done.returncode == ABSENT else ""
        return absent + (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def make_table(folder: Path, n_rows: int, n_columns: int) -> tuple[Path, int]:
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


def our_batches(name: str, table: Path, n_columns: int, shuffle: bool) -> Iterator:
    """Advance a stream without end."""
    from pymc.variational.streaming import StreamingDataset, parquet_source, shuffle_buffer

    rows = parquet_source(
        table,
        columns=[f"x{j}" for j in range(n_columns)],
        shuffle_row_groups=name == OURS[1],
        seed=0,
    )
    if shuffle:
        rows = shuffle_buffer(rows, buffer_size=BUFFER_SIZE, batch_size=BATCH_SIZE, seed=0)
    with StreamingDataset(rows, batch_size=BATCH_SIZE, check_order="ignore") as ds:
        buffer = ds.as_tensor()
        while True:
            ds.advance()
            yield buffer.get_value(borrow=True)


def compare(options: argparse.Namespace) -> list[Row]:
    """Run all loaders on all tables in turn, and compare them."""
    results: dict[tuple, list[dict]] = {}
    failed: dict[tuple, str] = {}
    for n_columns in options.columns:
        table, n_rows = make_table(options.folder, options.rows, n_columns)
        for _, shuffle in product(range(options.rounds), (False, True)):
            names = [*OURS[: 1 + shuffle], *(LOADERS if options.peers else ())]
            for name in names:
                key = (n_columns, shuffle, name)
                if key in failed or (name == "pyarrow" and shuffle):
                    continue
                arguments = [f"--columns={n_columns}", f"--rows={n_rows}", f"--folder={table}"]
                arguments += ["--shuffle"] * shuffle
                if name in OURS:
                    command = [sys.executable, "-m", "benchmarks.loader", f"--ours={name}"]
                else:
                    command = [options.peers, PEERS, "loader", name]
                result = run([*command, *arguments], TIMEOUT_SECONDS)
                if isinstance(result, str):
                    failed[key] = result
                else:
                    results.setdefault(key, []).append(result)
    for (n_columns, shuffle, name), reason in failed.items():
        order = "shuffled" if shuffle else "in order"
        console.print(f"Skipped: {name}, {n_columns} columns, {order}: {reason}", soft_wrap=True)
    if not options.peers:
        console.print(f"Skipped, without --peers: {', '.join(LOADERS)}")
    speeds = {key: [r["rows"] / r["seconds"] for r in runs] for key, runs in results.items()}
    rows = []
    for key, runs in sorted(results.items(), key=lambda item: item[0][:2]):
        ours = speeds.get((*key[:2], OURS[0]), [])
        ratios = [our / speed for our, speed in zip(ours, speeds[key])] or [np.nan]
        rows.append(
            Row(
                *key,
                rows_per_second=float(np.median(speeds[key])),
                ratio=float(np.median(ratios)),
                ratio_low=min(ratios),
                ratio_high=max(ratios),
                first_seconds=float(np.median([r["first_seconds"] for r in runs])),
                peak_mb=max(r["peak_mb"] for r in runs),
            )
        )
    return rows


def with_range(middle: float, low: float, high: float) -> str:
    """Give a figure and its range, to be printed."""
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def print_table(rows: list[Row]) -> None:
    """Print the comparison."""
    report = Table(
        title=f"Rows per second into batches of {BATCH_SIZE:,} rows, from Parquet files",
        caption="ours / this: above 1, ours is faster; median over the rounds, and range. "
        f"Shuffled: through a buffer of {BUFFER_SIZE:,} rows; ours, row groups: which come in random "
        "order. pyarrow: row groups, not cut.",
    )
    report.add_column("loader")
    for name in ("columns", "shuffled", "M rows/s", "ours / this", "first batch (s)", "peak MB"):
        report.add_column(name, justify="right")
    for row in rows:
        report.add_row(
            row.name,
            str(row.columns),
            "yes" if row.shuffled else "no",
            f"{row.rows_per_second / 1e6:.2f}",
            with_range(row.ratio, row.ratio_low, row.ratio_high),
            f"{row.first_seconds:.2f}",
            f"{row.peak_mb:,.0f}",
        )
    console.print(report)


def main() -> list[Row]:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    parser.add_argument("--peers", help="Python with benchmarks/requirements-peers.txt")
    parser.add_argument("--rows", type=int, default=20_000_000, help="rows of a table, at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--columns", type=int, nargs="+", default=[4, 20, 100])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where tables are kept")
    parser.add_argument("--ours", choices=OURS, help="measure only this one, in this process")
    parser.add_argument("--shuffle", action="store_true", help="with --ours")
    options = parser.parse_args()
    if options.ours:
        batches = partial(
            our_batches, options.ours, options.folder, options.columns[0], options.shuffle
        )
        sys.stdout.write(json.dumps(measure(batches, options.rows)) + "\n")
        return []
    console.width = max(console.width, TABLE_WIDTH)
    rows = compare(options)
    print_table(rows)
    return rows


if __name__ == "__main__":
    main()
