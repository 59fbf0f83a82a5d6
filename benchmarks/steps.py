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
"""Steps: what a streamed step of ADVI costs, against a buffer that never changes and ``pm.Minibatch``.

The step functions of the order-book model run in turn, in one process:

- *static*: the function of the streams on a buffer that never changes, the limit. Repeating itself,
  the data let the processor learn each of its branches, which data that change do not;
- *ready*: the same on 256 batches that lie in memory, in turn: what no loader can beat;
- *static, PyMC*: static, compiled as PyMC compiles a model without streams;
- *in-RAM*: ``pm.Minibatch`` on arrays, compiled so too;
- four streams.

Peak memory is that of a process of its own, with a numba cache that the steps before it have
filled; *static* reads no more than its one batch.
"""

import argparse
import json
import sys
import time
import warnings

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle, product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytensor

import pymc as pm

from benchmarks.data import make_order_book, n_rows_of, rewrite_table
from benchmarks.processes import Options, run
from benchmarks.table import Row, compared
from examples.order_book.fit import COLUMNS, load, peak_memory_mb
from examples.order_book.output import console
from pymc.variational.stream_step import beside_threads
from pymc.variational.streaming import StreamingDataset, parquet_source, shuffle_buffer

BUFFER_SIZE = 1_000_000
STREAMS = ("plain", "shuffle buffer", "row groups", "pre-shuffled")
KINDS = ("static", "ready", "static, PyMC", "in-RAM", *STREAMS)
N_READY = 256
DEFAULT_BACKEND = "NUMBA"
# Rows, batch size, floatX, backend.
BACKENDS = [(1_000_000, 4096, "float64", backend) for backend in ("CVM", "JAX")]
SHORT = [
    (1_000_000, 256, "float64", DEFAULT_BACKEND),
    (1_000_000, 65_536, "float64", DEFAULT_BACKEND),
    (20_000_000, 4096, "float64", DEFAULT_BACKEND),
    (20_000_000, 4096, "float32", DEFAULT_BACKEND),
    *BACKENDS,
]
FULL = [
    *product(
        (1_000_000, 20_000_000, 100_000_000),
        (256, 4096, 65_536),
        ("float64", "float32"),
        (DEFAULT_BACKEND,),
    ),
    *BACKENDS,
]


def source_of(kind: str, folder: Path, batch_size: int):
    """Open one of the streams."""
    if kind == "pre-shuffled":
        files = sorted((folder / "shuffled").glob("*.parquet"))
        return parquet_source(files, columns=COLUMNS, shuffle_row_groups=True, seed=0)
    at_random = kind == "row groups"
    source = parquet_source(folder / "usual", columns=COLUMNS, shuffle_row_groups=at_random, seed=0)
    if kind == "plain":
        return source
    return shuffle_buffer(
        source, buffer_size=max(BUFFER_SIZE, batch_size), batch_size=batch_size, seed=0
    )


def first_batch(files: list[Path], batch_size: int) -> np.ndarray:
    """Read no more row groups than it takes."""
    tables: list[pa.Table] = []
    for path in files:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                if sum(map(len, tables)) >= batch_size:
                    break
                tables.append(file.read_row_group(group, columns=COLUMNS))
    table = pa.concat_tables(tables)[:batch_size]
    values = np.column_stack([table[name].to_numpy() for name in COLUMNS])
    return np.asfortranarray(values, dtype=pytensor.config.floatX)


def open_stream(kind: str, folder: Path, batch_size: int) -> StreamingDataset:
    """Open one of the streams, in whatever order: speed is measured, not the posterior."""
    source = source_of(kind, folder, batch_size)
    return StreamingDataset(source, batch_size=batch_size, check_order="ignore")


class Steps:
    """Steps of one kind: called, it takes one."""

    def __init__(self, kind: str, folder: Path, batch_size: int, mode: str | None):
        self.stream = None
        self.ready: Iterator[np.ndarray] | None = None
        files = sorted((folder / "usual").glob("*.parquet"))
        with pm.Model():
            if kind == "in-RAM":
                features, up = load(files)
                x, y = pm.Minibatch(features, up, batch_size=batch_size)
            else:
                if kind in STREAMS:
                    self.stream = open_stream(kind, folder, batch_size)
                    self.batch = self.stream.as_tensor()
                else:
                    values = first_batch(files, batch_size)
                    self.batch = pytensor.shared(values, shape=values.shape, borrow=True)
                if kind == "ready":
                    with open_stream("shuffle buffer", folder, batch_size) as stream:
                        n_ready = max(2, min(N_READY, N_READY * 4096 // batch_size))
                        self.ready = cycle(
                            [np.asfortranarray(next(stream)) for _ in range(n_ready)]
                        )
                x, y = self.batch[:, :3], self.batch[:, 3]
            b = pm.Normal("b", 0.0, 3.0, shape=4)
            logit = b[0] + b[1] * x[:, 0] + b[2] * x[:, 1] + b[3] * x[:, 2]
            pm.Bernoulli("up", logit_p=logit, observed=y, total_size=n_rows_of(folder / "usual"))
            objective = pm.ADVI(random_seed=1).objective
        compile_kwargs = {"mode": mode} if mode else {}
        if kind in ("static", "ready"):  # compiled as that of a stream is
            compile_kwargs = beside_threads(compile_kwargs)
        self.step = objective.step_function(
            obj_optimizer=pm.adam(learning_rate=0.01), score=True, compile_kwargs=compile_kwargs
        )

    def __call__(self) -> None:
        if self.stream is not None:
            self.stream.advance()
        elif self.ready is not None:
            self.batch.set_value(next(self.ready), borrow=True)
        self.step()

    def run(self, seconds: float) -> float:
        """Take steps for some time, and return the seconds a step."""
        n_steps, passed, start = 0, 0.0, time.perf_counter()
        while passed < seconds:
            self()
            n_steps += 1
            passed = time.perf_counter() - start
        return passed / n_steps


def time_steps(options: argparse.Namespace) -> dict[str, list[float]]:
    """Take steps of all kinds in turn, and give the seconds a step in each round."""
    kinds = {kind: Steps(kind, options.folder, options.batch_size, options.mode) for kind in KINDS}
    results: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for steps in kinds.values():
        steps.run(options.seconds)
    for _ in range(options.rounds):
        for kind, steps in kinds.items():
            # Not timed: its own batches lie ready, and the stream before it is still reading ahead.
            steps.run(options.seconds / 2)
            results[kind].append(steps.run(options.seconds))
    return results


def measure_memory(options: argparse.Namespace) -> dict[str, float]:
    """Take steps of one kind, for four million rows at least, and give the peak memory."""
    steps = Steps(options.memory_of, options.folder, options.batch_size, options.mode)
    for _ in range(max(200, 4_000_000 // options.batch_size)):
        steps()
    return {"peak_mb": peak_memory_mb()}


def run_child(*arguments: str, floatX: str) -> dict | str:
    """Run this module in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.steps", *arguments]
    return run(command, PYTENSOR_FLAGS=f"floatX={floatX}")


def rows(options: Options) -> Iterator[Row]:
    """Measure all settings: the steps in one process, the memory of each kind in one of its own."""
    for n_rows, batch_size, floatX, backend in FULL if options.full else SHORT:
        folder = make_order_book(options.folder, n_rows, shuffled=True)
        rewrite_table(folder)
        console.print(f"Steps: {n_rows:,} rows, batches of {batch_size:,}, {floatX}, {backend}")
        child = partial(
            run_child,
            f"--folder={folder}",
            f"--batch-size={batch_size}",
            *([f"--mode={backend}"] if backend != DEFAULT_BACKEND else []),
            floatX=floatX,
        )
        seconds = 0.5 if options.full else 0.3
        times = child(f"--rounds={5 if options.full else 3}", f"--seconds={seconds}")
        results: dict[str, list[dict] | str] = {
            kind: times if isinstance(times, str) else [{"seconds": s} for s in times[kind]]
            for kind in KINDS
        }
        if backend == DEFAULT_BACKEND and batch_size == 4096:
            with ThreadPoolExecutor(2) as pool:  # their speed does not matter
                peaks = pool.map(child, [f"--memory-of={kind}" for kind in KINDS])
            for runs, peak in zip(results.values(), peaks):
                for result in [] if isinstance(runs, str) or isinstance(peak, str) else runs:
                    result |= peak
        settings = {
            "section": "step",
            "n_rows": n_rows_of(folder / "usual"),
            "batch_size": batch_size,
            "columns": len(COLUMNS),
            "floatX": floatX,
            "backend": backend,
            "unit": "µs/step",
        }
        for against in ("static", "ready", "in-RAM"):
            for row in compared(
                results, against, lambda result: 1e6 * result["seconds"], **settings
            ):
                if against == "static" or row.case in STREAMS:
                    yield row


def main() -> None:
    """Measure one of the settings, in this process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="of an order book")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--mode", help="PyTensor mode, if not its default")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each kind in each round")
    parser.add_argument("--memory-of", choices=KINDS, help="the memory of this one instead")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    result = measure_memory(options) if options.memory_of else time_steps(options)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
