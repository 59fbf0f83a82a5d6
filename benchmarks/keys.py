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
"""Keys: what the categories of string columns cost, by their number.

    python -m benchmarks.keys

For each number of distinct keys, files of ten million rows of a key and a number are written. A
process of its own then makes a source of the number alone, and one of both, and reads each once in
the order of the files and once with row groups in random order. Times are those of the CPU, of all threads
together, so that what else runs hardly counts. Memory is the peak of that process, less what it had before.
"""

import json
import sys
import tempfile
import time

from pathlib import Path

import numpy as np

from benchmarks.processes import run
from examples.order_book.output import console

N_ROWS, FILES, ROW_GROUP_ROWS = 10_000_000, 4, 131_072
N_KEYS = (16, 3000, 100_000, 5_000_000)


def make(folder: Path, n_keys: int) -> None:
    """Write files of keys that come in no order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(1)
    keys = pa.array([f"customer-{i:08d}" for i in range(n_keys)])
    for i in range(FILES):
        codes = rng.integers(0, n_keys, N_ROWS // FILES)
        codes[: n_keys // FILES] = np.arange(i, n_keys, FILES)[
            : n_keys // FILES
        ]  # all of them occur
        rows = pa.table({"key": keys.take(pa.array(codes)), "x": rng.normal(size=len(codes))})
        pq.write_table(rows, folder / f"{i}.parquet", row_group_size=ROW_GROUP_ROWS)


def measure(folder: Path) -> dict:
    """Make a source and read it, with the keys and without them."""
    from pymc.variational.streaming import parquet_source

    found: dict[str, float] = {}
    for columns in (["x", "key"], ["x"]):  # the larger one first, as a peak is that of the process
        name = columns[-1]
        before = _peak()
        start = time.process_time()
        source = parquet_source(folder, columns=columns, shuffle_row_groups=True, seed=0)
        found[f"{name}: made"] = time.process_time() - start
        for order, blocks in (("files", source.unshuffled()), ("random", source.read(0))):
            start = time.process_time()
            n_rows = sum(len(block["x"]) for block in blocks)
            found[f"{name}: {order}"] = n_rows / (time.process_time() - start)
        found[f"{name}: memory"] = _peak() - before
        start = time.process_time()
        found[f"{name}: categories"] = sum(map(len, source.categories.values()))
        found[f"{name}: as strings"] = time.process_time() - start
        found[f"{name}: memory with strings"] = _peak() - before
    return found


def _peak() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def main() -> None:
    """Measure each number of keys in a process of its own."""
    if len(sys.argv) > 1:
        sys.stdout.write(json.dumps(measure(Path(sys.argv[1]))))
        return
    for n_keys in N_KEYS:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), n_keys)
            found = run([sys.executable, "-m", "benchmarks.keys", folder])
        if isinstance(found, str):
            console.print(f"{n_keys:,} keys: {found}")
            continue
        console.print(
            f"{found['key: categories']:,} keys in {N_ROWS:,} rows: found in "
            f"{found['key: made'] - found['x: made']:.1f} s of the CPU, with {found['key: memory']:,.0f} MB "
            f"({found['key: memory with strings']:,.0f} MB once source.categories was looked at, which "
            f"took {found['key: as strings']:.1f} s); then, in millions of rows a second of the CPU, "
            f"{found['key: files'] / 1e6:.1f} in the order of the files and "
            f"{found['key: random'] / 1e6:.1f} at random; "
            f"of the number alone {found['x: files'] / 1e6:.1f} and {found['x: random'] / 1e6:.1f}"
        )


if __name__ == "__main__":
    main()
