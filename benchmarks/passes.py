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
"""Passes: log-density, gradient and Hessian over all rows, against reading and evaluating alone.

The order-book model (four coefficients) from Parquet files in their order:

- *read*: the batches are cut and nothing is done with them, by one thread;
- *in memory*: the same functions, in as many threads, over batches that lie in memory;
- *static*, for the memory: one batch.

And a logistic regression with 200 groups (203 parameters), on rows in memory: what a Hessian takes.
"""

import argparse
import json
import sys
import time
import warnings

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytensor

import pymc as pm

from benchmarks.data import make_order_book, n_rows_of, rewrite_table
from benchmarks.processes import Options, in_turn, run
from benchmarks.table import Row, compared
from examples.order_book.fit import COLUMNS, peak_memory_mb
from examples.order_book.output import console
from pymc.variational.streaming import FullDataLogp, StreamingDataset, parquet_source

BATCH_SIZES = {1_000_000: (4096,), 20_000_000: (256, 4096)}
N_HELD = 1_000_000
N_POINTS = 8
N_GROUPS = 200
Q = np.array([0.2, -0.3, -0.1, 0.7])
KINDS: dict[str, Callable[[FullDataLogp], object]] = {
    "log-density": lambda full: full.logp(Q),
    "gradient": lambda full: full.dlogp(Q),
    "Hessian": lambda full: full.d2logp(Q),
    f"{N_POINTS} log-densities": lambda full: full.logp(np.tile(Q, (N_POINTS, 1))),
}


def order_book(source: object, batch_size: int) -> tuple[FullDataLogp, StreamingDataset]:
    """Return the log-density of the order-book model over the rows of a source, and its stream."""
    stream = StreamingDataset(source, batch_size=batch_size, check_order="ignore")
    batch = stream.as_tensor()
    with pm.Model() as model:
        b = pm.Normal("b", 0.0, 3.0, shape=4)
        logit = b[0] + b[1] * batch[:, 0] + b[2] * batch[:, 1] + b[3] * batch[:, 2]
        pm.Bernoulli("up", logit_p=logit, observed=batch[:, 3], total_size=stream.total_size)
    return FullDataLogp(model, progressbar=False), stream


def grouped(n_rows: int) -> FullDataLogp:
    """Return the log-density of a logistic regression with an intercept for each group."""
    rng = np.random.default_rng(0)
    rows = {
        "x": rng.normal(size=n_rows),
        "group": rng.integers(0, N_GROUPS, n_rows),
        "up": rng.integers(0, 2, n_rows),
    }
    stream = StreamingDataset(rows, batch_size=4096, check_order="ignore")
    with pm.Model() as model:
        effect = pm.Normal("effect", pm.Normal("mean"), pm.HalfNormal("sd"), shape=N_GROUPS)
        logit = effect[stream["group"]] + pm.Normal("slope") * stream["x"]
        pm.Bernoulli("up", logit_p=logit, observed=stream["up"], total_size=n_rows)
    return FullDataLogp(model, progressbar=False)


def timed(n_rows: int, job: Callable[[], object]) -> dict[str, float]:
    """Do a job that takes all rows, and give its speed."""
    start = time.perf_counter()
    job()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "rows_per_s": n_rows / seconds}


def time_passes(folder: Path, batch_size: int, n_rounds: int) -> dict[str, list[dict] | str]:
    """Make passes of all kinds in turn, and what they are compared with."""
    source = parquet_source(folder / "usual", columns=COLUMNS)
    full, stream = order_book(source, batch_size)
    held = full.sample(N_HELD, random_seed=0)
    n_held = held.n_rows or 0

    def read() -> None:
        for _ in stream._reader.batches.all_rows():
            pass

    jobs: dict[str, Callable] = {"read": lambda: timed(source.n_rows, read)}
    for kind, evaluate in KINDS.items():
        evaluate(held)  # compiles
        jobs[kind] = lambda evaluate=evaluate: timed(source.n_rows, lambda: evaluate(full))
        jobs[f"{kind}, in memory"] = lambda evaluate=evaluate: timed(n_held, lambda: evaluate(held))
    return in_turn(jobs, n_rounds)


def time_groups(n_rows: int, n_rounds: int) -> dict[str, list[dict] | str]:
    """Time gradient and Hessian with many parameters in turn."""
    full = grouped(n_rows)
    q = np.zeros(len(full.names))
    kinds = {"gradient": full.dlogp, "Hessian": full.d2logp}
    for evaluate in kinds.values():
        evaluate(q)
    return in_turn(
        {
            f"{kind}, {len(q)} parameters": lambda evaluate=evaluate: timed(
                n_rows, lambda: evaluate(q)
            )
            for kind, evaluate in kinds.items()
        },
        n_rounds,
    )


def measure_memory(folder: Path, case: str) -> dict[str, float]:
    """Make passes for a log-density, gradient and Hessian, over all rows or one batch."""
    source = parquet_source(folder / "usual", columns=COLUMNS)
    if case == "static":
        source = {name: values[:4096] for name, values in next(iter(source)).items()}
    full, _ = order_book(source, 4096)
    for evaluate in KINDS.values():
        evaluate(full)
    return {"peak_mb": peak_memory_mb()}


def rows(options: Options) -> Iterator[Row]:
    """Measure all sizes, each in a process of its own."""
    n_rounds = 5 if options.full else 3

    def child(*arguments: object) -> dict | str:
        return run([sys.executable, "-m", "benchmarks.passes", *arguments])

    common = {"section": "passes", "floatX": pytensor.config.floatX}
    for n_rows, batch_sizes in BATCH_SIZES.items():
        folder = make_order_book(options.folder, n_rows)
        rewrite_table(folder)
        settings = common | {"n_rows": n_rows_of(folder / "usual"), "columns": len(COLUMNS)}
        for batch_size in batch_sizes:
            console.print(f"Passes: {n_rows:,} rows, batches of {batch_size:,}")
            results = child(
                f"--folder={folder}", f"--batch-size={batch_size}", f"--rounds={n_rounds}"
            )
            settings["batch_size"] = batch_size
            if isinstance(results, str):
                yield Row(case="passes", skipped=results, **settings)
                continue
            for kind in KINDS:
                for against in (f"{kind}, in memory", "read"):
                    pair = {against: results[against], kind: results[kind]}
                    base, row = compared(
                        pair, against, lambda r: r["rows_per_s"] / 1e6, unit="M rows/s", **settings
                    )
                    if against != "read" or kind == next(iter(KINDS)):
                        yield base
                    yield row
        console.print(f"Passes: {n_rows:,} rows, memory")
        peaks = {
            case: [child(f"--folder={folder}", f"--memory-of={case}")]
            for case in ("static", "passes")
        }
        if failed := [peak for [peak] in peaks.values() if isinstance(peak, str)]:
            yield Row(case="memory", skipped=failed[0], **settings)
        else:
            yield from compared(peaks, "static", lambda r: r["peak_mb"], unit="MB", **settings)
    n_rows = 10**6
    results = child(f"--groups={n_rows}", f"--rounds={n_rounds}")
    settings = common | {"n_rows": n_rows, "batch_size": 4096, "columns": 3}
    if isinstance(results, str):
        yield Row(case="many parameters", skipped=results, **settings)
    else:
        yield from compared(
            results, next(iter(results)), lambda r: r["seconds"], unit="s", **settings
        )


def main() -> None:
    """Measure one of the settings, in this process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.passes", description=__doc__)
    parser.add_argument("--folder", type=Path, help="of an order book")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--memory-of", choices=("static", "passes"), help="the memory of this one")
    parser.add_argument("--groups", type=int, metavar="ROWS", help="the model with groups instead")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    result: object
    if options.groups:
        result = time_groups(options.groups, options.rounds)
    elif options.memory_of:
        result = measure_memory(options.folder, options.memory_of)
    else:
        result = time_passes(options.folder, options.batch_size, options.rounds)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
