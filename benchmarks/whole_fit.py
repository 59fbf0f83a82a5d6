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
"""Whole fit: the wall time of ADVI on the order book, against NumPyro and pymc-extras.

The logistic regression of ``examples/order_book`` is fitted at a constant rate of Adam, 0.01. All
stream the table that was shuffled on disk: NumPyro from a loader written by hand, pymc-extras from
its own. Ours also streams the table in time order, its row groups in random order through a shuffle
buffer. Each fit is a process of its own, in turn, and compiles anew. At a constant rate the means
go on moving about, with row groups the most: see the guide.
"""

import os
import tempfile
import time

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.data import make_order_book, n_rows_of
from benchmarks.peers import BATCH_SIZE, BUFFER_SIZE, FITS
from benchmarks.processes import Options, in_turn, run_peer
from benchmarks.table import Row, compared
from examples.order_book.output import console
from examples.order_book.runs import run_fit

N_ROWS = 20_000_000
OURS = {"ours": "pre-shuffled", "ours, row groups": "row-groups"}


def fit_ours(folder: Path, how: str, floatX: str, steps: int) -> dict:
    """Fit as the example does, in a process of its own."""
    os.environ["PYTENSOR_FLAGS"] = f"floatX={floatX}"
    start = time.perf_counter()
    fit = run_fit(
        folder / "fits" / f"whole-{how}-{floatX}.json",
        quiet=True,
        folder=folder,
        how=how,
        rate="constant",
        fit_seed=1,
        steps=steps,
        batch_size=BATCH_SIZE,
        buffer_size=BUFFER_SIZE,
    )
    return {
        "wall": time.perf_counter() - start,
        "step": 1 / fit.steps_per_second,
        "mean": fit.mean,
        "peak_mb": fit.peak_mb,
    }


def fit_peer(python: str | None, folder: Path, peer: str, floatX: str, steps: int) -> dict | str:
    """Fit with a peer, in a process of its own; why not, if it cannot be."""
    options = [f"--folder={folder / 'shuffled'}", f"--steps={steps}"]
    options += ["--x64"] * (floatX == "float64")
    with tempfile.TemporaryDirectory() as compiled:
        start = time.perf_counter()
        flags = f"base_compiledir={compiled}"
        result = run_peer(python, "fit", peer, *options, PYTENSOR_FLAGS=flags)
        wall = time.perf_counter() - start
    if isinstance(result, str):
        return result
    return {
        "wall": wall,
        "step": result["seconds"] / (steps - 1),
        "mean": result["mean"],
        "peak_mb": result["peak_mb"],
    }


def rows(options: Options) -> Iterator[Row]:
    """Do all fits in turn, and compare the whole and the steps after the first one."""
    folder = make_order_book(options.folder, N_ROWS, shuffled=True)
    steps = 20_000 if options.full else 2000
    for floatX in ("float64", "float32") if options.full else ("float64",):
        jobs = {name: partial(fit_ours, folder, how, floatX, steps) for name, how in OURS.items()}
        peers = {
            name: partial(fit_peer, options.peers, folder, name, floatX, steps) for name in FITS
        }
        results = in_turn(jobs | peers, 2)
        for name, runs in results.items():
            if not isinstance(runs, str):
                means = ", ".join(f"{mean:.4f}" for mean in runs[-1]["mean"])
                console.print(f"{name}, {floatX}: posterior means {means}")
        for key, unit, factor in (("wall", f"s/{steps:,} steps", 1), ("step", "ms/step", 1000)):
            yield from compared(
                results,
                "ours",
                lambda result: factor * result[key],
                section="fit",
                n_rows=n_rows_of(folder / "table"),
                batch_size=BATCH_SIZE,
                columns=4,
                floatX=floatX,
                unit=unit,
            )
