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
"""Fidelity: how far streamed posteriors are from in-memory ones, from 0.5 to 122 million rows.

``python -m benchmarks.fidelity`` simulates the order book of ``examples/order_book`` with more and
more events over the same eight weeks, sorted by time, and fits the logistic regression of the next
mid move: exactly, by passes over all rows, and with ADVI, from memory and streamed in three ways, each
with several seeds and in a process of its own. The noise floor is the difference between two fits
from memory with different seeds. Means and sds are held against Newton's method in NumPy, over all
rows. Finished fits are kept, so that an interrupted run goes on where it was.
"""

import argparse
import csv
import shutil

from dataclasses import asdict, dataclass
from itertools import combinations, product
from pathlib import Path

import numpy as np

from matplotlib.figure import Figure

from benchmarks.reference import newton
from examples.order_book.events import make_events
from examples.order_book.fold import fold_events
from examples.order_book.output import console
from examples.order_book.runs import EXACT, HOW, Fit, run_fit
from examples.order_book.shuffle import shuffle_table

ROWS = (500_000, 2_000_000, 20_000_000, 50_000_000, 122_000_000)
RATES = ("constant", "falling")
STEPS = 20_000
BATCH_SIZE = 4096
BUFFER_SIZE = 1_000_000
RESULTS = Path("docs/source/_static/fidelity")
# Far apart for every kind of colour vision.
COLOURS = dict(zip(HOW, ("#000000", "#D55E00", "#E69F00", "#0072B2")))


@dataclass
class Row:
    """A line of the table: the fits of one stream at one number of rows.

    Differences are the largest over the coefficients. The exact posterior is that of Newton's method.
    """

    rows: int
    learning_rate: str
    fit: str
    seeds: int
    difference: float  # of means, from a fit in memory: median over pairs of seeds
    difference_low: float
    difference_high: float
    noise_floor: float  # between fits in memory: median over pairs of seeds
    times_noise_floor: float
    means_off: float  # from the exact means, in exact posterior sds: median over seeds
    sd_ratio_low: float  # to the sds that the method converges to (of ADVI, mean field's): median
    sd_ratio_high: float
    peak_mb: float


def fit_all(folder: Path, n_rows: int, seeds: range) -> None:
    """Do what fits of one number of rows are not done yet."""
    jobs = {
        folder / "fits" / f"{how}-{rate}-{seed}.json": (how, rate, seed)
        for seed, rate, how in product(seeds, RATES, (EXACT, *HOW))
        if how != EXACT or rate == "falling"  # it has no rate
    }
    if (folder / "optimum.csv").is_file() and all(result.is_file() for result in jobs):
        return
    make_events(folder, n_events=n_rows, n_files=56, seed=0)
    fold_events(folder)
    shuffle_table(folder, seed=0)
    if not (folder / "optimum.csv").is_file():
        np.savetxt(folder / "optimum.csv", optimum(folder / "table"))
    for result, (how, rate, seed) in jobs.items():
        if not result.is_file():
            console.print(f"{n_rows:,} rows: {how}, {rate} learning rate, seed {seed}")
            run_fit(
                result,
                quiet=True,
                folder=folder,
                how=how,
                rate=rate,
                fit_seed=seed,
                steps=STEPS,
                batch_size=BATCH_SIZE,
                buffer_size=BUFFER_SIZE,
            )
    for name in ("events", "table", "shuffled"):
        shutil.rmtree(folder / name)


def optimum(table: Path) -> np.ndarray:
    """Find means, sds, and the sds to which mean-field ADVI converges.

    With this many rows the posterior is normal: its mean is the maximum of the posterior density,
    and the mean-field sds are those with all other coefficients held fixed.
    """
    best, precision = newton(table)
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    return np.stack([best, sd, 1 / np.sqrt(np.diag(precision))])


def table_of(folder: Path) -> list[Row]:
    """Compare the fits that are finished: those with seeds for which all are."""
    table = []
    for point in sorted(folder.iterdir(), key=lambda path: int(path.name)):
        seeds = [
            seed
            for seed in range(1, 100)
            if all(
                (point / "fits" / f"{how}-{rate}-{seed}.json").is_file()
                for how, rate in product(HOW, RATES)
            )
        ]
        if len(seeds) < 2:
            continue
        best, best_sd, mean_field_sd = np.loadtxt(point / "optimum.csv")
        for rate in RATES:
            fits = {
                how: [Fit.read(point / "fits" / f"{how}-{rate}-{seed}.json") for seed in seeds]
                for how in (HOW if rate == "constant" else (EXACT, *HOW))
            }
            floor = np.median(
                [_difference(one, other) for one, other in combinations(fits["in-RAM"], 2)]
            )
            for how in fits:
                limit = best_sd if how == EXACT else mean_field_sd
                ratios = [np.divide(one.sd, limit) for one in fits[how]]
                pairs = (
                    combinations(fits[how], 2)
                    if how == "in-RAM"
                    else product(fits[how], fits["in-RAM"])
                )
                differences = [_difference(one, other) for one, other in pairs]
                table.append(
                    Row(
                        rows=fits[how][0].n_rows,
                        learning_rate=rate,
                        fit=how,
                        seeds=len(seeds),
                        difference=float(np.median(differences)),
                        difference_low=min(differences),
                        difference_high=max(differences),
                        noise_floor=float(floor),
                        times_noise_floor=float(np.median(differences) / floor),
                        means_off=float(
                            np.median([max(abs(one.mean - best) / best_sd) for one in fits[how]])
                        ),
                        sd_ratio_low=float(np.median([min(ratio) for ratio in ratios])),
                        sd_ratio_high=float(np.median([max(ratio) for ratio in ratios])),
                        peak_mb=max(one.peak_mb for one in fits[how]),
                    )
                )
    return table


def _difference(one: Fit, other: Fit) -> float:
    return float(np.abs(np.subtract(one.mean, other.mean)).max())


def _text(value: float | int | str) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def write_table(table: list[Row], folder: Path) -> None:
    """Write the table as CSV and as Markdown."""
    cells = [
        [
            f"{value:.3g}" if isinstance(value, float) else str(value)
            for value in asdict(row).values()
        ]
        for row in table
    ]
    names = [name.replace("_", " ") for name in asdict(table[0])]
    with open(folder / "fidelity.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([names, *cells])
    lines = [f"| {' | '.join(line)} |" for line in [names, ["---"] * len(names), *cells]]
    (folder / "fidelity.md").write_text("\n".join(lines) + "\n")


def draw_differences(table: list[Row], path: Path) -> None:
    """Draw the largest difference against the number of rows, with the noise floor as a band."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, rate in zip(figure.subplots(1, 2, sharey=True), RATES):
        for how in HOW:
            rows = [row for row in table if row.fit == how and row.learning_rate == rate]
            n, middle, low, high = np.array(
                [[r.rows, r.difference, r.difference_low, r.difference_high] for r in rows]
            ).T
            if how == "in-RAM":
                label = "noise floor: two in-RAM fits"
                axes.fill_between(n, low, high, color="grey", alpha=0.35, label=label)
            else:
                span = [middle - low, high - middle]
                axes.errorbar(n, middle, span, fmt="o-", capsize=3, color=COLOURS[how], label=how)
        axes.set(xscale="log", yscale="log", xlabel="rows N", title=f"{rate} learning rate")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("largest difference of a posterior mean")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=130)


def draw_memory(table: list[Row], path: Path) -> None:
    """Draw peak memory against the number of rows, on log axes."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for how, marker in zip(HOW, "Xsod"):
        peak: dict[int, float] = {}
        for row in table:
            if row.fit == how:
                peak[row.rows] = max(row.peak_mb, peak.get(row.rows, 0))
        axes.plot(*zip(*peak.items()), f"{marker}-", color=COLOURS[how], label=how)
    axes.set(xscale="log", yscale="log", xlabel="rows N", ylabel="peak memory of the fit (MB)")
    axes.set_ylim(100, None)
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run what is missing, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=__doc__)
    parser.add_argument("--folder", type=Path, default="fidelity_data", help="where fits are kept")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS, help="numbers of events")
    parser.add_argument("--seeds", type=int, default=3, help="fits of each kind")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    arguments = parser.parse_args()
    seeds = range(1, arguments.seeds + 1)
    for n_rows in arguments.rows:
        fit_all(arguments.folder / str(n_rows), n_rows, seeds)
    table = table_of(arguments.folder)
    arguments.results.mkdir(parents=True, exist_ok=True)
    if not table:
        raise SystemExit("a noise floor needs two seeds at least")
    write_table(table, arguments.results)
    draw_differences(table, arguments.results / "difference.png")
    draw_memory(table, arguments.results / "memory.png")
    console.print((arguments.results / "fidelity.md").read_text(), soft_wrap=True)


if __name__ == "__main__":
    main()
