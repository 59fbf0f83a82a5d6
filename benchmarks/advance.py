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
"""Advance: what loading a batch costs the main thread when the batch is ready.

A step of a model is stood in for by NumPy, which lets other threads run as a compiled step does:
the batch is read meanwhile. Ratios are to a copy of a batch into an array that is there.
"""

import json
import sys
import time

from collections.abc import Iterator
from itertools import cycle

import numpy as np
import pytensor

from benchmarks.processes import Options, run
from benchmarks.table import Row, compared
from pymc.variational.streaming import StreamingDataset

BATCH_SIZE = 4096
N_COLUMNS = 4
N_CALLS = 1000
STEP_VALUES = 50_000  # whose sines take about half a millisecond


def measure(n_rounds: int) -> dict[str, list[dict]]:
    """Time single calls, and give their median microseconds of each round."""
    rng = np.random.default_rng(0)
    stream = StreamingDataset(rng.standard_normal((1_000_000, N_COLUMNS)), batch_size=BATCH_SIZE)
    batches = cycle([next(stream) for _ in range(64)])
    target = next(stream)
    calls = {"advance": stream.advance, "copy": lambda: np.copyto(target, next(batches))}
    values = rng.standard_normal(STEP_VALUES)
    results: dict[str, list[dict]] = {name: [] for name in calls}
    for _ in range(n_rounds):
        for name, call in calls.items():
            seconds = []
            for _ in range(N_CALLS):
                np.sin(values)
                start = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - start)
            results[name].append({"us": 1e6 * float(np.median(seconds))})
    return results


def rows(options: Options) -> Iterator[Row]:
    """Measure in a process of its own."""
    n_rounds = 21 if options.full else 7
    results = run([sys.executable, "-m", "benchmarks.advance", n_rounds])
    yield from compared(
        {
            name: results if isinstance(results, str) else results[name]
            for name in ("advance", "copy")
        },
        "copy",
        lambda result: result["us"],
        section="advance",
        batch_size=BATCH_SIZE,
        columns=N_COLUMNS,
        floatX=pytensor.config.floatX,
        unit="µs/batch",
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(int(sys.argv[1]))) + "\n")
