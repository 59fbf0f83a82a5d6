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
imported), and then notes its memory. After each batch it sleeps for as long as a step of a model may
take, as a reader that is faster than that may read on without end. What is printed is how far memory
rises above what was noted: that of its own; that which it shares, Ray's store of objects; and
all, with pages of files that are mapped into memory, which are given back when memory is short. Last,
what a bare loop of the library takes of its own, at the same pace.
"""

import json
import os
import sys
import threading
import time

from collections.abc import Callable, Iterable
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
STEP = 0.01  # seconds of a step
ALONE_ROWS = 26_214  # rows that a bare loop reads at a time, as table_source does


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


def _ray(block_bytes: int | None = None) -> Any:
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    if block_bytes:
        ray.data.DataContext.get_current().target_max_block_size = block_bytes
    return ray.data.read_parquet("rows")


def _polars(prefetch: str) -> Any:
    os.environ["POLARS_ROW_GROUP_PREFETCH_SIZE"] = prefetch
    return _imported("polars").scan_parquet("rows/*.parquet")


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
        batch_readahead=0, fragment_readahead=0, use_threads=False
    ),
    "open IPC file": lambda: pa.ipc.open_file("rows.arrow"),
    "DuckDB relation": lambda: _imported("duckdb").sql("SELECT * FROM 'rows/*.parquet'"),
    "Hugging Face Dataset": lambda: _imported("datasets").Dataset.from_parquet("rows/*.parquet"),
    "Hugging Face IterableDataset": lambda: _imported("datasets").load_dataset(
        "parquet", data_files="rows/*.parquet", split="train", streaming=True
    ),
    "DeltaTable": lambda: _imported("deltalake").DeltaTable("delta"),
    "Ray Dataset": _ray,
    "Dask DataFrame": lambda: _imported("dask.dataframe").read_parquet(
        "rows", split_row_groups=True
    ),
    "memmap": lambda: np.load("rows.npy", mmap_mode="r"),
    "h5py": lambda: _imported("h5py").File("rows.h5")["x"],
    "zarr": lambda: _imported("zarr").open_array("rows.zarr"),
    # The same with what their libraries have for it.
    "LazyFrame, 1 row group ahead": lambda: _polars("1"),
    "Scanner, small reads": lambda: pads.dataset("rows").scanner(
        batch_size=ALONE_ROWS,
        batch_readahead=0,
        fragment_readahead=0,
        use_threads=False,
        fragment_scan_options=pads.ParquetFragmentScanOptions(
            pre_buffer=False, use_buffered_stream=True
        ),
    ),
    "DuckDB, 1 thread": lambda: (
        _imported("duckdb").connect(config={"threads": 1}).sql("SELECT * FROM 'rows/*.parquet'")
    ),
    "Ray, blocks of 16 MB": lambda: _ray(2**24),
}


# Loops over the same without this package.
ALONE: dict[str, Callable[[Any], Iterable[Any]]] = {
    "polars LazyFrame": lambda data: data.collect_batches(
        chunk_size=ALONE_ROWS, maintain_order=True, lazy=True, engine="streaming"
    ),
    "pyarrow Scanner": lambda data: data.to_batches(),
    "DuckDB relation": lambda data: data.to_arrow_reader(ALONE_ROWS),
    "Hugging Face IterableDataset": lambda data: data.with_format("arrow").iter(ALONE_ROWS),
    "Ray Dataset": lambda data: data.iter_batches(
        batch_size=ALONE_ROWS, batch_format="pyarrow", prefetch_batches=0
    ),
    "Dask DataFrame": lambda data: (partition.compute() for partition in data.partitions),
    "zarr": lambda data: (data[i : i + GROUP_ROWS] for i in range(0, data.shape[0], GROUP_ROWS)),
}


def memory() -> dict[str, float]:
    """Tell the resident memory of this process in MB: its own, that it shares, and all."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {name: line.split() for name, _, line in (line.partition(":") for line in lines)}
    names = {"own": "RssAnon", "shared": "RssShmem", "all": "VmRSS"}
    return {name: int(sizes[there][0]) / 1e3 for name, there in names.items()}


def batches_of(kind: str, data: Any, alone: bool) -> Iterable[Any]:
    """Stream the rows of an object, or loop over them as its library does."""
    if alone:
        return ALONE[kind](data)
    return StreamingDataset(data, batch_size=BATCH_SIZE, cycle=False, check_order="ignore")


def stream(kind: str, alone: bool) -> dict[str, float]:
    """Stream an epoch, and tell by how much memory rises above what the object takes."""
    data = KINDS[kind]()
    before, peak, done = memory(), memory(), threading.Event()

    def watch() -> None:
        while not done.wait(EVERY):
            for name, now in memory().items():
                peak[name] = max(peak[name], now)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    n_rows = 0
    for batch in batches_of(kind, data, alone):
        n_rows += len(batch)
        time.sleep(STEP * len(batch) / BATCH_SIZE)
    done.set()
    watcher.join()
    assert n_rows >= N_FILES * FILE_ROWS // BATCH_SIZE * BATCH_SIZE
    return {"object": before["all"]} | {name: peak[name] - before[name] for name in peak}


def main() -> None:
    """Stream each kind in a process of its own, or the one that is named in this process."""
    if sys.argv[1:]:
        os.chdir(FOLDER)
        found = stream(sys.argv[1], alone="alone" in sys.argv[2:])
        print(json.dumps(found), flush=True)  # noqa: T201
        os._exit(0)  # what threads of a library do at the end is not measured
    make(FOLDER)
    console.print(f"{'MB':30} {'object':>8} {'own':>8} {'shared':>8} {'all':>8} {'alone':>8}")
    for kind in KINDS:
        command = [sys.executable, "-m", "benchmarks.sources", kind]
        found = run(command)
        if isinstance(found, str):
            console.print(f"{kind:30} {found}")
            continue
        alone = run([*command, "alone"]) if kind in ALONE else ""
        told = f"{alone['own']:8,.0f}" if isinstance(alone, dict) else alone
        numbers = (f"{found[name]:8,.0f}" for name in ("object", "own", "shared", "all"))
        console.print(f"{kind:30} {' '.join(numbers)} {told}")


if __name__ == "__main__":
    main()
