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

``python -m benchmarks.steps`` runs the step functions of the order-book model in turn, in one
process: *static* (the limit), in-RAM minibatches, and four streams. Ratios are to the static step
of the same round. Peak memory is that of a fit in a process of its own.
"""

import argparse
import os
import subprocess
import sys
import time
import warnings

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytensor

from rich.table import Table

import pymc as pm

from examples.order_book.events import make_events
from examples.order_book.fit import COLUMNS, load, peak_memory_mb
from examples.order_book.fold import fold_events
from examples.order_book.output import console
from examples.order_book.shuffle import shuffle_table
from pymc.variational.stream_hooks import prepare_streams
from pymc.variational.streaming import StreamingDataset, parquet_source, shuffle_buffer

BUFFER_SIZE = 1_000_000
KINDS = ("static", "in-RAM", "plain", "shuffle buffer", "row groups", "pre-shuffled")
STREAMS = KINDS[2:]


def prepare(folder: Path, n_rows: int) -> Path:
    """Make the table: as folded (8,192 rows a row group), rewritten as most writers do, shuffled."""
    folder = folder / f"order-book-{n_rows}"
    make_events(folder, n_events=n_rows, n_files=56, seed=0)
    fold_events(folder)
    shuffle_table(folder, seed=0)
    usual = folder / "usual"
    if not usual.is_dir():
        partial = folder / "usual.partial"
        partial.mkdir(exist_ok=True)
        for path in sorted((folder / "table").glob("*.parquet")):
            pq.write_table(pq.read_table(path), partial / path.name, row_group_size=65_536)
        partial.rename(usual)
    return folder


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


class Steps:
    """The step function of one kind, and what it takes to run it."""

    def __init__(self, kind: str, folder: Path, batch_size: int, mode: str | None):
        self.stream = None
        with pm.Model() as model:
            if kind in STREAMS:
                source = source_of(kind, folder, batch_size)
                # Speed is measured, not the posterior of data in time order.
                self.stream = StreamingDataset(source, batch_size=batch_size, check_order="ignore")
                n_rows, batch = self.stream.total_size, self.stream.as_tensor()
                x, y = batch[:, :3], batch[:, 3]
            else:
                files = sorted((folder / "usual").glob("*.parquet"))
                features, up = load(files if kind == "in-RAM" else files[:4])
                n_rows = len(up)
                if kind == "in-RAM":
                    x, y = pm.Minibatch(features, up, batch_size=batch_size)
                else:
                    values = np.column_stack([features[:batch_size], up[:batch_size]])
                    values = np.asfortranarray(values)
                    batch = pytensor.shared(values, shape=values.shape, borrow=True)
                    x, y = batch[:, :3], batch[:, 3]
            b = pm.Normal("b", 0.0, 3.0, shape=4)
            logit = b[0] + b[1] * x[:, 0] + b[2] * x[:, 1] + b[3] * x[:, 2]
            pm.Bernoulli("up", logit_p=logit, observed=y, total_size=n_rows)
            objective = pm.ADVI(random_seed=1).objective
        kwargs = {"compile_kwargs": {"mode": mode} if mode else {}}
        self.step = objective.step_function(
            obj_optimizer=pm.adam(learning_rate=0.01), score=True, **prepare_streams(model, kwargs)
        )

    def run(self, n_steps: int) -> float:
        """Return the seconds a step."""
        start = time.perf_counter()
        for _ in range(n_steps):
            if self.stream is not None:
                self.stream.advance()
            self.step()
        return (time.perf_counter() - start) / n_steps


def compare(folder: Path, batch_size: int, mode: str | None, n_rounds: int, seconds: float):
    """Return seconds a step, of shape (rounds, kinds)."""
    kinds = [Steps(kind, folder, batch_size, mode) for kind in KINDS]
    per_step = [max(kind.run(20), 1e-5) for kind in kinds]
    counts = [max(20, int(seconds / one)) for one in per_step]
    for kind, count in zip(kinds, counts):
        kind.run(count)
    return np.array(
        [[kind.run(count) for kind, count in zip(kinds, counts)] for _ in range(n_rounds)]
    )


def measure_memory(folder: Path, kind: str, batch_size: int, mode: str | None) -> None:
    """Print the peak memory of this process after some steps."""
    Steps(kind, folder, batch_size, mode).run(1000)
    print(peak_memory_mb())  # noqa: T201


def main() -> None:
    """Measure one number of rows with some batch sizes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("--folder", type=Path, default="benchmark_data", help="where tables are")
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 20_000_000])
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[256, 4096, 65_536])
    parser.add_argument("--mode", help="PyTensor mode: NUMBA (the default), JAX or CVM")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each kind in each round")
    parser.add_argument("--memory-of", choices=KINDS, help="only this, in this process")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    if arguments.memory_of:
        measure_memory(
            arguments.folder, arguments.memory_of, arguments.batch_sizes[0], arguments.mode
        )
        return
    report = Table(title=f"A step of ADVI, {pytensor.config.floatX}, {arguments.mode or 'NUMBA'}")
    for name in ("N", "B", "kind", "µs a step", "/ static", "/ in-RAM", "peak MB"):
        report.add_column(name, justify="right")
    for n_rows in arguments.rows:
        folder = prepare(arguments.folder, n_rows)
        for batch_size in arguments.batch_sizes:
            seconds = compare(
                folder, batch_size, arguments.mode, arguments.rounds, arguments.seconds
            )
            for j, kind in enumerate(KINDS):
                command = [sys.executable, "-m", "benchmarks.steps", f"--folder={folder}"]
                command += [f"--memory-of={kind}", f"--batch-sizes={batch_size}"]
                command += [f"--mode={arguments.mode}"] if arguments.mode else []
                done = subprocess.run(
                    command, capture_output=True, text=True, check=True, env=os.environ
                )
                cells = [f"{n_rows:,}", f"{batch_size:,}", kind]
                cells.append(f"{1e6 * np.median(seconds[:, j]):.0f}")
                for base in (0, 1):
                    low, middle, high = np.quantile(seconds[:, j] / seconds[:, base], [0, 0.5, 1])
                    cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
                report.add_row(*cells, f"{float(done.stdout.split()[-1]):.0f}")
    console.print(report)


if __name__ == "__main__":
    main()
