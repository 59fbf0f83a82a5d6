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

Each shuffles the order-book table on disk, in a process of its own, in turn. ``pre_shuffle`` also
reads back what it wrote and compares checksums; DuckDB sorts by ``random()``. The copy reads each
row group and writes it again, in one thread.
"""

import argparse
import json
import os
import shutil
import sys
import time

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.data import make_order_book, n_rows_of
from benchmarks.peers import peak_mb
from benchmarks.processes import Options, in_turn, run, run_peer
from benchmarks.table import Row, compared
from pymc.variational.streaming import pre_shuffle

MEMORY_LIMIT = "512MB"
N_COLUMNS = 5
CASES = {"pre_shuffle": None, "DuckDB": "duckdb", "plain copy": "copy"}


def shuffle(peers: str | None, peer: str | None, table: Path, destination: Path) -> dict | str:
    """Shuffle or copy in a process of its own; the result is removed."""
    shutil.rmtree(destination, ignore_errors=True)
    os.sync()  # so that no run waits for what another one wrote
    to = f"--destination={destination}"
    if peer is None:
        result = run([sys.executable, "-m", "benchmarks.shuffling", f"--table={table}", to])
    else:
        limit = f"--memory-limit={MEMORY_LIMIT}"
        result = run_peer(peers, "pre_shuffle", peer, f"--folder={table}", to, limit)
    if not isinstance(result, str) and n_rows_of(destination) != n_rows_of(table):
        raise RuntimeError(f"{destination} has {n_rows_of(destination)} rows")
    shutil.rmtree(destination, ignore_errors=True)
    return result


def rows(options: Options) -> Iterator[Row]:
    """Shuffle and copy in turn."""
    place = make_order_book(options.folder, 20_000_000 if options.full else 5_000_000)
    table = place / "table"
    jobs = {
        name: partial(shuffle, options.peers, peer, table, place / "result")
        for name, peer in CASES.items()
    }
    yield from compared(
        in_turn(jobs, 5 if options.full else 3),
        "pre_shuffle",
        lambda result: result["seconds"],
        section="shuffle",
        n_rows=n_rows_of(table),
        columns=N_COLUMNS,
        unit="s",
    )


def main() -> None:
    """Time ``pre_shuffle`` in this process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shuffling", description=__doc__)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--destination", type=Path, required=True)
    options = parser.parse_args()
    start = time.perf_counter()
    pre_shuffle(
        options.table,
        options.destination,
        seed=0,
        memory_limit=MEMORY_LIMIT,
        progressbar=False,
    )
    result = {"seconds": time.perf_counter() - start, "peak_mb": peak_mb()}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
