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

Tables of random numbers are read into batches of 4096 rows: by ours, and by each peer as
``benchmarks/peers.py`` uses it. Each run is a process of its own, in turn, and filling a shuffle
buffer counts. Ours ends in a matrix of floatX, float64, checked for missing values; the peers' in
float32, as in the files. pyarrow gives row groups as they are: the upper limit.
"""

import argparse
import json
import sys

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.data import make_random
from benchmarks.peers import BATCH_SIZE, BUFFER_SIZE, LOADERS, measure
from benchmarks.processes import Options, in_turn, run, run_peer
from benchmarks.table import Row, compared
from pymc.variational.streaming import StreamingDataset, parquet_source, shuffle_buffer

TIMEOUT_SECONDS = 300
OURS = ("ours", "ours, row groups")


def our_batches(name: str, table: Path, n_columns: int, shuffle: bool) -> Iterator:
    """Advance a stream without end."""
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


def load(peers: str | None, name: str, arguments: list[str]) -> dict | str:
    """Read batches in a process of its own."""
    if name in OURS:
        command = [sys.executable, "-m", "benchmarks.loader", f"--ours={name}"]
        return run([*command, *arguments], TIMEOUT_SECONDS)
    return run_peer(peers, "loader", name, *arguments, timeout=TIMEOUT_SECONDS)


def rows(options: Options) -> Iterator[Row]:
    """Run all loaders on all tables in turn."""
    for n_columns in (4, 20, 100) if options.full else (4,):
        n_rows = 20_000_000 if options.full else 5_000_000
        table, n_rows = make_random(options.folder, n_rows, n_columns)
        arguments = [f"--folder={table}", f"--columns={n_columns}", f"--rows={n_rows}"]
        arguments += [f"--seconds={3 if options.full else 2}"]
        for shuffle in (False, True):
            names = [*OURS, *(name for name in LOADERS if name != "pyarrow")]
            if shuffle:
                arguments = [*arguments, "--shuffle"]
            else:  # what costs little: the short form leaves the others out
                names = [OURS[0], *(LOADERS if options.full else ("pyarrow",))]
            results = in_turn(
                {name: partial(load, options.peers, name, arguments) for name in names},
                3 if options.full else 2,
            )
            for row in compared(
                results,
                OURS[0],
                lambda result: result["rows"] / result["seconds"] / 1e6,
                label="{}, shuffled" if shuffle else "{}, in order",
                section="loader",
                n_rows=n_rows,
                batch_size=BATCH_SIZE,
                columns=n_columns,
                unit="M rows/s",
            ):
                row.floatX = "float64" if row.case.startswith(OURS[0]) else "float32"
                yield row


def main() -> None:
    """Measure ours in this process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    parser.add_argument("--ours", choices=OURS, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="Parquet files")
    parser.add_argument("--columns", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True, help="stop after these")
    parser.add_argument("--seconds", type=float, required=True, help="or after these")
    parser.add_argument("--shuffle", action="store_true", help="through a buffer")
    options = parser.parse_args()
    batches = partial(our_batches, options.ours, options.folder, options.columns, options.shuffle)
    sys.stdout.write(json.dumps(measure(batches, options.rows, options.seconds)) + "\n")


if __name__ == "__main__":
    main()
