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
"""Passes by worker processes: what one costs, and what it costs to have them.

``python -m benchmarks.cluster`` makes passes for the gradient of the order-book model, from Parquet
files with row groups of 65,536 rows, in threads and in pools of one and two processes, in turn. The
CPU seconds of a worker hold on a machine that has other work; seconds do not.
"""

import argparse
import multiprocessing
import statistics
import time
import warnings

from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pymc as pm

from benchmarks.data import make_order_book, n_rows_of, rewrite_table
from benchmarks.passes import Q, order_book
from examples.order_book.fit import COLUMNS
from examples.order_book.output import console
from pymc.streams.executors import Held, in_executor
from pymc.variational.streaming import FullDataLogp, parquet_source

N_TASKS = 1000


def seconds(job) -> float:
    """Time a job."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def pool(n_workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(n_workers, mp_context=multiprocessing.get_context("spawn"))


def empty(_: int) -> None:
    """Do nothing, in a worker."""


def task_seconds(executor: Executor) -> float:
    """Return what a task costs by itself."""
    calls, held = [(i,) for i in range(N_TASKS)], [Held(empty, "a function")]
    list(in_executor(executor, held, calls))
    return seconds(lambda: list(in_executor(executor, held, calls))) / N_TASKS


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("benchmark_data"))
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    place = make_order_book(options.folder, options.rows)
    rewrite_table(place)
    source = parquet_source(place / "usual", columns=COLUMNS)
    n_rows = n_rows_of(place / "usual")
    n_bytes = sum(file.stat().st_size for file in source.files)
    full, _ = order_book(source, 4096)
    with ExitStack() as stack:
        pools = {n: stack.enter_context(pool(n)) for n in (1, 2)}
        passes = {"1 thread": FullDataLogp(full.model, n_threads=1, progressbar=False)}
        passes["2 threads"] = FullDataLogp(full.model, n_threads=2, progressbar=False)
        for n, executor in pools.items():
            name = f"{n} process" + "es" * (n > 1)
            passes[name] = FullDataLogp(full.model, executor=executor, progressbar=False)
        first = {name: seconds(lambda one=one: one.dlogp(Q)) for name, one in passes.items()}
        times: dict[str, list[float]] = {name: [] for name in passes}
        cpu = []
        for _ in range(options.rounds):
            for name, one in passes.items():
                before = pools[1].submit(time.process_time).result()
                times[name].append(seconds(lambda one=one: one.dlogp(Q)))
                if name == "1 process":
                    cpu.append(pools[1].submit(time.process_time).result() - before)
        [part] = [part for part in passes["2 processes"]._parts if part.rows is not None]
        sent = sum(len(held.pickled) for held in part._held)
        console.print(
            f"PyMC {pm.__version__}; {n_rows:,} rows, {n_bytes / n_rows:.1f} bytes of file a row"
        )
        for name, found in times.items():
            ratios = [a / b for a, b in zip(times["1 process"], found)]
            console.print(
                f"{name}: {statistics.median(found):.2f} s a pass ({min(found):.2f} to "
                f"{max(found):.2f}), {statistics.median(ratios):.2f} times as fast as 1 process; "
                f"the first {first[name]:.1f} s"
            )
        worker = statistics.median(cpu)
        console.print(
            f"a worker: {worker:.2f} CPU seconds a pass, {n_rows / worker / 1e6:.1f} M rows/s, "
            f"{n_bytes / worker / 1e6:.0f} MB of file/s; {sent:,} bytes sent to it"
        )
        console.print(
            f"{len(part.rows.groups())} tasks; one costs {task_seconds(pools[2]) * 1e3:.2f} ms by itself"
        )


if __name__ == "__main__":
    main()
