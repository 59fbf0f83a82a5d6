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
"""Checkpoint: what it costs a step, and one write of the file.

A fit with a checkpoint is compiled without numba's "fast math", so that this is a case of its own.
Writes at the default interval add their time once in 30 s.
"""

import json
import sys
import tempfile
import time

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytensor

import pymc as pm

from benchmarks.processes import Options, run
from benchmarks.table import Row, compared, rounded
from pymc.variational.streaming import StreamingDataset

BATCH_SIZES = (256, 4096)
N_COLUMNS = 4
N_STEPS = 2000
N_WRITES = 20
CASES = ("no checkpoint", "no checkpoint, no fast math", "checkpoint")


class Clock:
    """A callback that notes when the first and the last step of a call ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, approx: object, losses: object, i: int) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def microseconds(self) -> float:
        """Return the mean time of a step, and forget the times."""
        mean = (self.times[-1] - self.times[0]) / (len(self.times) - 1)
        self.times.clear()
        return 1e6 * mean


def started(case: str, batch_size: int, folder: Path) -> tuple[pm.ADVI, Clock]:
    """Start a fit, which ``refine`` goes on with."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1_000_000, N_COLUMNS))
    rows[:, -1] = rng.random(len(rows)) < 0.5
    batch = StreamingDataset(rows, batch_size=batch_size, check_order="ignore").as_tensor()
    clock = Clock()
    checkpoint = folder / f"{batch_size}.ckpt" if case == "checkpoint" else None
    with pm.Model(), pytensor.config.change_flags(numba__fastmath=case != CASES[1]):
        b = pm.Normal("b", 0, 3, shape=N_COLUMNS)
        logit = b[0] + b[1] * batch[:, 0] + b[2] * batch[:, 1] + b[3] * batch[:, 2]
        pm.Bernoulli("up", logit_p=logit, observed=batch[:, 3], total_size=len(rows))
        inference = pm.ADVI(random_seed=1)
        inference.fit(100, progressbar=False, callbacks=[clock], checkpoint=checkpoint)
    clock.times.clear()
    return inference, clock


def measure(batch_size: int, n_rounds: int) -> dict[str, list[dict]]:
    """Time steps of each case in turn, and writes."""
    results: dict[str, list[dict]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as folder:
        fits = {case: started(case, batch_size, Path(folder)) for case in CASES}
        for _ in range(n_rounds):
            for case, (inference, clock) in fits.items():
                inference.refine(N_STEPS, progressbar=False)
                results[case].append({"us": clock.microseconds()})
        checkpoint = fits["checkpoint"][0]._checkpoint
        seconds = []
        for _ in range(N_WRITES):
            start = time.perf_counter()
            checkpoint._write()
            seconds.append(time.perf_counter() - start)
    return results | {"a write": [{"ms": 1e3 * float(np.median(seconds))}]}


def rows(options: Options) -> Iterator[Row]:
    """Measure each batch size in a process of its own."""
    n_rounds = 15 if options.full else 7
    for batch_size in BATCH_SIZES:
        results = run([sys.executable, "-m", "benchmarks.checkpoint", batch_size, n_rounds])
        common = {
            "section": "checkpoint",
            "batch_size": batch_size,
            "columns": N_COLUMNS,
            "floatX": pytensor.config.floatX,
        }
        if isinstance(results, str):
            yield Row(case="checkpoint", skipped=results, **common)
            continue
        [write] = results.pop("a write")
        yield from compared(
            results, CASES[1], lambda result: result["us"], unit="µs/step", **common
        )
        yield Row(case="a write", figure=rounded(write["ms"]), unit="ms", **common)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(*map(int, sys.argv[1:]))) + "\n")
