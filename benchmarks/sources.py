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
"""Sources: what it takes in memory to stream each kind of table.

    python -m benchmarks.sources

3 million rows of 20 columns of float64, 480 MB. Each kind is streamed for an epoch in a process of
its own, which first makes the object (a table in memory is read, a query is defined, a library is
imported), and then notes its memory. What is printed is how far the peak of the stream is above
that: all memory, and that which is not of files (pages of files that are mapped into memory, as Hugging
Face does, count as resident, and are given back when memory is short).
"""

import json
import os
import sys
import threading
import time

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from benchmarks.processes import run
from examples.order_book.output import console, finished_folder, is_finished
from pymc.variational.streaming import StreamingDataset, parquet_source, table_source

N_FILES, FILE_ROWS, N_COLUMNS, GROUP_ROWS = 3, 1_000_000, 20, 100_000
BATCH_SIZE = 4096
FOLDER = Path("benchmark_data/sources")
EVERY = 0.005  # seconds between looks at the memory


def make(folder: Path) -> None:
    """Write the rows in each kind of file, unless they are there."""
    settings = {"rows": N_FILES * FILE_ROWS, "columns": N_COLUMNS}
    if is_finished(folder, settings):
        return
    import deltalake
    import h5py
    import zarr

    rng = np.random.default_rng(0)
    with finished_folder(folder, settings) as partial:
        (partial / "rows").mkdir()
        shape = (N_FILES * FILE_ROWS, N_COLUMNS)
        chunks = (GROUP_ROWS, N_COLUMNS)
        memmap = np.lib.format.open_memmap(partial / "rows.npy", "w+", "f8", shape)
        h5 = h5py.File(partial / "rows.h5", "w").create_dataset("x", shape, "f8", chunks=chunks)
        zarrs = zarr.create_array(partial / "rows.zarr", shape=shape, dtype="f8", chunks=chunks)
        csv = arrow = None
        for i in range(N_FILES):
            values = rng.normal(size=(FILE_ROWS, N_COLUMNS)).round(4)
            rows = slice(i * FILE_ROWS, (i + 1) * FILE_ROWS)
            memmap[rows] = h5[rows] = zarrs[rows] = values
            table = pa.table({f"x{j}": values[:, j] for j in range(N_COLUMNS)})
            pq.write_table(table, partial / f"rows/{i}.parquet", row_group_size=GROUP_ROWS)
            deltalake.write_deltalake(partial / "delta", table, mode="append")
            csv = csv or pyarrow.csv.CSVWriter(partial / "rows.csv", table.schema)
            arrow = arrow or pa.ipc.new_file(partial / "rows.arrow", table.schema)
            csv.write_table(table)
            arrow.write_table(table, max_chunksize=GROUP_ROWS)
        csv.close()
        arrow.close()
        h5.file.close()


def _ray() -> Any:
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    return ray.data.read_parquet("rows")


def _imported(name: str) -> Any:
    __import__(name)
    return sys.modules[name]


KINDS: dict[str, Callable[[], Any]] = {
    "Parquet files": lambda: parquet_source("rows"),
    "CSV file": lambda: table_source("rows.csv"),
    "Arrow IPC file": lambda: table_source("rows.arrow"),
    "pandas DataFrame": lambda: pd.read_parquet("rows"),
    "polars DataFrame": lambda: _imported("polars").read_parquet("rows/*.parquet"),
    "polars LazyFrame": lambda: _imported("polars").scan_parquet("rows/*.parquet"),
    "pyarrow Table": lambda: pq.read_table("rows"),
    "pyarrow Dataset": lambda: pads.dataset("rows"),
    "pyarrow Scanner": lambda: pads.dataset("rows").scanner(
        batch_readahead=1, fragment_readahead=1
    ),
    "open IPC file": lambda: pa.ipc.open_file("rows.arrow"),
    "DuckDB relation": lambda: _imported("duckdb").sql("SELECT * FROM 'rows/*.parquet'"),
    "Hugging Face Dataset": lambda: _imported("datasets").Dataset.from_parquet("rows/*.parquet"),
    "Hugging Face IterableDataset": lambda: _imported("datasets").load_dataset(
        "parquet", data_files="rows/*.parquet", split="train", streaming=True
    ),
    "DeltaTable": lambda: _imported("deltalake").DeltaTable("delta"),
    "Ray Dataset": _ray,
    "Dask DataFrame": lambda: _imported("dask.dataframe").read_parquet("rows"),
    "memmap": lambda: np.load("rows.npy", mmap_mode="r"),
    "h5py": lambda: _imported("h5py").File("rows.h5")["x"],
    "zarr": lambda: _imported("zarr").open_array("rows.zarr"),
}


def memory() -> tuple[float, float]:
    """Tell the resident memory of this process, and that which is not of files, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {name: line.split() for name, _, line in (line.partition(":") for line in lines)}
    kb = {name: int(sizes[name][0]) for name in ("VmRSS", "RssFile")}
    return kb["VmRSS"] / 1e3, (kb["VmRSS"] - kb["RssFile"]) / 1e3


def stream(kind: str) -> dict[str, float]:
    """Stream an epoch, and tell by how much memory rises above what the object takes."""
    data = KINDS[kind]()
    before, peak, done = memory(), memory(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(EVERY):
            now = memory()
            peak = max(peak[0], now[0]), max(peak[1], now[1])

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    dataset = StreamingDataset(data, batch_size=BATCH_SIZE, cycle=False, check_order="ignore")
    n_rows = sum(len(batch) for batch in dataset)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    assert n_rows == N_FILES * FILE_ROWS // BATCH_SIZE * BATCH_SIZE
    return {
        "object": before[0],
        "above": peak[0] - before[0],
        "above_private": peak[1] - before[1],
        "seconds": seconds,
    }


def main() -> None:
    """Stream each kind in a process of its own, or the one that is named in this process."""
    if sys.argv[1:]:
        os.chdir(FOLDER)
        print(json.dumps(stream(sys.argv[1])))  # noqa: T201
        return
    make(FOLDER)
    console.print(f"{'':30} {'object':>8} {'peak above':>11} {'without files':>14} {'s':>6}")
    for kind in KINDS:
        found = run([sys.executable, "-m", "benchmarks.sources", kind])
        if isinstance(found, str):
            console.print(f"{kind:30} {found}")
            continue
        console.print(
            f"{kind:30} {found['object']:5,.0f} MB {found['above']:8,.0f} MB "
            f"{found['above_private']:11,.0f} MB {found['seconds']:6.1f}"
        )


if __name__ == "__main__":
    main()
