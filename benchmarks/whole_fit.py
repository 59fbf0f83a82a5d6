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

``python -m benchmarks.whole_fit --peers .venv-peers/bin/python`` fits the logistic regression of
``examples/order_book`` at a constant rate of Adam, 0.01, in float64 and in float32. All stream the
table that was shuffled on disk: NumPyro from a loader written by hand, pymc-extras from its own.
Ours also streams the table in time order, its row groups in random order through a shuffle buffer.
Each fit is a process of its own, in turn, and compiles anew. At a constant rate the means go on
moving about, with row groups the most: see the guide.
"""

import argparse
import os
import tempfile
import time

from itertools import product
from pathlib import Path

import numpy as np

from rich.table import Table

from benchmarks.loader import FOLDER, PEERS, TABLE_WIDTH, run, with_range
from benchmarks.peers import BATCH_SIZE, BUFFER_SIZE, FITS
from benchmarks.shuffling import make_order_book, n_rows_of
from examples.order_book.output import console
from examples.order_book.runs import run_fit
from examples.order_book.shuffle import shuffle_table

OURS = ("pre-shuffled", "row-groups")
DTYPES = ("float64", "float32")


def fit_ours(folder: Path, how: str, dtype: str, steps: int) -> dict:
    """Fit as the example does, in a process of its own."""
    os.environ["PYTENSOR_FLAGS"] = f"floatX={dtype}"
    start = time.perf_counter()
    fit = run_fit(
        folder / "fits" / f"whole-{how}-{dtype}.json",
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


def fit_peer(python: str, folder: Path, peer: str, dtype: str, steps: int) -> dict | str:
    """Fit with a peer, in a process of its own; why not, if it cannot be."""
    command = [python, PEERS, "fit", peer, f"--folder={folder / 'shuffled'}", f"--steps={steps}"]
    command += ["--x64"] * (dtype == "float64")
    with tempfile.TemporaryDirectory() as compiled:
        start = time.perf_counter()
        result = run(command, PYTENSOR_FLAGS=f"base_compiledir={compiled}")
        wall = time.perf_counter() - start
    if isinstance(result, str):
        return result
    return {
        "wall": wall,
        "step": result["seconds"] / (steps - 1),
        "mean": result["mean"],
        "peak_mb": result["peak_mb"],
    }


def compare(folder: Path, peers: str | None, steps: int, rounds: int) -> dict[tuple, list[dict]]:
    """Do all fits in turn."""
    results: dict[tuple, list[dict]] = {}
    skipped: dict[str, str] = {} if peers else dict.fromkeys(FITS, "no --peers")
    for _, dtype, name in product(range(rounds), DTYPES, (*OURS, *FITS)):
        if name in skipped:
            continue
        if name in OURS:
            result: dict | str = fit_ours(folder, name, dtype, steps)
        else:
            result = fit_peer(str(peers), folder, name, dtype, steps)
        if isinstance(result, str):
            skipped[name] = result
        else:
            results.setdefault((dtype, name), []).append(result)
    for name, reason in skipped.items():
        console.print(f"Skipped: {name}: {reason}", soft_wrap=True)
    return results


def print_table(results: dict[tuple, list[dict]], n_rows: int, steps: int) -> None:
    """Print times, ratios and means."""
    times = Table(
        title=f"ADVI of the order book: {steps:,} steps of {BATCH_SIZE:,} of {n_rows:,} rows",
        caption="this / ours: as a ratio to ours, pre-shuffled, in the same type; above 1, ours is "
        "faster; median over the rounds, and range. Wall: the process from start to end, which "
        "compiles. Step: what comes after the first one.",
    )
    times.add_column("fit")
    for name in ("wall (s)", "wall, this / ours", "step (ms)", "step, this / ours", "peak MB"):
        times.add_column(name, justify="right")
    means = Table(title="Posterior means of the last round")
    means.add_column("fit")
    for name in ("intercept", "mid", "spread", "imbalance"):
        means.add_column(name, justify="right")
    for (dtype, name), runs in sorted(results.items(), key=lambda item: item[0][0], reverse=True):
        label = f"{'ours, ' * (name in OURS)}{name}, {dtype}"
        cells = []
        for key, unit in (("wall", 1), ("step", 1e3)):
            ours = [this[key] for this in results[dtype, OURS[0]]]
            these = [this[key] for this in runs]
            ratios = [this / our for this, our in zip(these, ours)]
            cells += [
                f"{unit * np.median(these):.3g}",
                with_range(float(np.median(ratios)), min(ratios), max(ratios)),
            ]
        times.add_row(label, *cells, f"{max(this['peak_mb'] for this in runs):,.0f}")
        means.add_row(label, *(f"{mean:.4f}" for mean in runs[-1]["mean"]))
    console.print(times)
    console.print(means)


def main() -> None:
    """Make the table, fit and compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_fit", description=__doc__)
    parser.add_argument("--peers", help="Python with benchmarks/requirements-peers.txt")
    parser.add_argument("--rows", type=int, default=20_000_000, help="rows, about")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where tables are kept")
    options = parser.parse_args()
    console.width = max(console.width, TABLE_WIDTH)
    # For all alike, importing is a part of the wall time: let bytecode be kept.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    folder = make_order_book(options.folder, options.rows)
    shuffle_table(folder, seed=0)
    results = compare(folder, options.peers, options.steps, options.rounds)
    print_table(results, n_rows_of(folder / "table"), options.steps)


if __name__ == "__main__":
    main()
