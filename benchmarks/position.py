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
"""Position: what going on far into an epoch costs, and what a notebook cell leaves behind.

    python -m benchmarks.position

First, the time from making a stream to its first batch, from the beginning and at row 100 million,
in turn. Then 50 runs of the cell that users run again: source, stream, model and fit. Threads, open
files and resident memory are counted after each.
"""

import os
import sys
import threading
import time

from pathlib import Path

import numpy as np

import pymc as pm

from benchmarks.data import make_random
from examples.order_book.output import console
from pymc.variational.streaming import StreamingDataset, parquet_source, shuffle_buffer

N_ROWS, ROW, BATCH_SIZE, BUFFER_SIZE = 110_000_000, 100_000_000, 4096, 1_000_000
N_ROUNDS, N_CELLS, N_STEPS = 7, 50, 200
FOLDER = Path("benchmark_data")


def stream_of(folder: Path, how: str) -> StreamingDataset:
    """Make a stream: files in order, or row groups in random order; into a buffer."""
    source = parquet_source(folder, shuffle_row_groups=how == "row groups at random", seed=0)
    buffered = shuffle_buffer(source, buffer_size=BUFFER_SIZE, batch_size=BATCH_SIZE, seed=0)
    return StreamingDataset(buffered, batch_size=BATCH_SIZE, check_order="ignore")


def going_on(folder: Path, how: str) -> None:
    """Time the first batch, from the beginning and from far into the epoch."""
    stream = stream_of(folder, how)
    state = stream.state_dict()
    far = state | {"row": ROW - ROW % BATCH_SIZE, "batches_seen": ROW // BATCH_SIZE}
    seconds: dict[str, list[float]] = {"beginning": [], "row 100 million": []}
    for _ in range(N_ROUNDS):
        for place, times in seconds.items():
            fresh = stream_of(folder, how)
            start = time.perf_counter()
            if place != "beginning":
                if far["checksum"] is None:  # of the batch before that row, read once by itself
                    far["checksum"] = checksum_at(folder, how, far)
                    start = time.perf_counter()
                fresh.load_state_dict(far)
            fresh.advance()
            times.append(time.perf_counter() - start)
            fresh.close()
    begin, distant = (np.array(times) for times in seconds.values())
    console.print(
        f"{how}: first batch after {np.median(begin):.2f} s from the beginning, "
        f"{np.median(distant):.2f} s at row 100 million: ratio {np.median(distant / begin):.2f} "
        f"({(distant / begin).min():.2f} to {(distant / begin).max():.2f})"
    )


def checksum_at(folder: Path, how: str, state: dict) -> int:
    """Return the checksum of the batch before a position."""
    stream = stream_of(folder, how)
    reader = stream._reader
    reader.row, reader.batches_seen = state["row"] - BATCH_SIZE, state["batches_seen"] - 1
    stream.advance()
    return stream.state_dict()["checksum"]


def cells(folder: Path) -> None:
    """Run the same cell again and again, and count what is left of it."""
    counts = []
    for _ in range(N_CELLS):
        stream = stream_of(folder, "row groups at random")
        with pm.Model():
            mu = pm.Normal("mu", 0, 1)
            pm.Normal("y", mu, 1, observed=stream.as_tensor()[:, 0], total_size=stream.total_size)
            pm.fit(N_STEPS, progressbar=False)
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        files = len(os.listdir("/proc/self/fd"))
        counts.append((threading.active_count(), files, resident / 1e6))
    for i in (0, 1, 4, 9, 24, 49):
        threads, files, mb = counts[i]
        console.print(f"after cell {i + 1}: {threads} threads, {files} files, {mb:,.0f} MB")
    console.print(f"MB a cell, from the 10th on: {(counts[-1][2] - counts[9][2]) / 40:.2f}")


def main() -> None:
    """Measure both."""
    folder, _ = make_random(FOLDER, N_ROWS, 2)
    if sys.argv[1:] != ["cells"]:
        for how in ("in order", "row groups at random"):
            going_on(folder, how)
    cells(folder)


if __name__ == "__main__":
    main()
