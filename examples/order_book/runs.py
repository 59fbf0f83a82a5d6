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
"""Run fits, each in a process of its own, so that their peak memory can be compared."""

import json
import os
import subprocess
import sys
import tempfile

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from examples.order_book.output import console, progress_bar

MEMORY_STEPS = 300
STREAMS = ("bounded-buffer", "row-groups", "pre-shuffled")
HOW = ("in-RAM", *STREAMS)
EXACT = "exact"
# Draws from a posterior of any shape, correlations and all.
SAMPLERS = ("pathfinder", "nuts")


@dataclass
class Fit:
    """Result of one fit: the posterior, and what it took.

    The exact one has the sds to which mean-field ADVI converges as well: with all other coefficients
    held fixed. Its steps are passes over all rows; those of samplers, draws. `error` is that of the
    log-density that was sampled from, in nats.
    """

    how: str
    rate: str
    seed: int
    n_rows: int
    steps: int
    mean: list[float]
    sd: list[float]
    seconds: float
    peak_mb: float
    mean_field_sd: list[float] | None = None
    draws: list[list[float]] | None = None
    error: float | None = None

    @property
    def steps_per_second(self) -> float:
        return self.steps / self.seconds

    @classmethod
    def read(cls, path: Path) -> "Fit":
        """Read a result that :meth:`write` wrote."""
        return cls(**json.loads(path.read_text()))

    def write(self, path: Path) -> None:
        """Write the result as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1))


def run_fit(result: Path, *, quiet: bool = False, **options: object) -> Fit:
    """Run the stage `fit` in a process of its own.

    Parameters
    ----------
    result : Path
        File for the result.
    quiet : bool
        Whether to show what the process prints only if it fails.
    **options
        Options of the command line.
    """
    command = [sys.executable, "-m", __package__, "fit", f"--result={result}"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    with tempfile.TemporaryDirectory() as compiled:
        # Compiling takes memory: each fit compiles anew, whichever comes first.
        flags = f"{os.environ.get('PYTENSOR_FLAGS', '')},base_compiledir={compiled}".lstrip(",")
        environment = os.environ | {"PYTENSOR_FLAGS": flags}
        done = subprocess.run(command, capture_output=quiet, text=True, env=environment)
    if done.returncode:
        said = f":\n{done.stdout}{done.stderr}" if quiet else ""
        raise RuntimeError(f"{' '.join(command)} failed{said}")
    return Fit.read(result)


def compare(folder: Path, seed: int, sample: bool, **options: object) -> None:
    """Find the exact posterior, and fit from memory, twice, and streamed in three ways."""
    fits = [(EXACT, EXACT, seed), ("in-RAM", "in-RAM", seed), ("in-RAM-again", "in-RAM", seed + 1)]
    more = (*STREAMS, *SAMPLERS) if sample else STREAMS
    for name, how, fit_seed in (*fits, *((how, how, seed) for how in more)):
        console.print(f"Fit: {how}, seed {fit_seed}")
        result = folder / "fits" / f"{name}.json"
        run_fit(result, folder=folder, how=how, fit_seed=fit_seed, **options)


def measure_memory(folder: Path, **options: object) -> None:
    """Short fits on a sixteenth and a quarter of the table, for their peak memory."""
    n_files = len(list((folder / "table").glob("*.parquet")))

    def run(job: tuple[str, int]) -> Fit:
        how, part = job
        return run_fit(
            folder / "memory" / f"{how}-{part}.json",
            quiet=True,
            folder=folder,
            how=how,
            steps=MEMORY_STEPS,
            table_files=-(-n_files // part),
            **options,
        )

    jobs = [(how, part) for part in (16, 4) for how in ("in-RAM", "row-groups")]
    with progress_bar() as progress, ThreadPoolExecutor(2) as pool:
        # Two at a time: their speed does not matter, and their memory is their own.
        for _ in progress.track(pool.map(run, jobs), len(jobs), description="Memory of short fits"):
            pass
