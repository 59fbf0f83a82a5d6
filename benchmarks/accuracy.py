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
"""Accuracy: the time until a posterior is the right one, against PyMC in memory and peers.

``python -m benchmarks.accuracy`` fits the logistic regression of ``examples/order_book`` with each
contender, in a process of its own, and takes the wall time from the Parquet files until every
posterior mean is within 0.1 posterior sds of the reference and every sd within 10 %. The reference
is Newton's method in NumPy over all rows. Methods that go step by step on and on are compared with
it every 500 steps (on all rows: 20), and end at the first success or after five minutes; comparing
is left out of their time, and so they are told when to stop, which users are not.

Mean field cannot have the sds of correlated coefficients: its sds are compared with those of its
own optimum, all other coefficients held fixed. Compilation is what the same fit of 10,000 rows
takes, for one step if it is one of steps.
"""

import argparse
import json
import os
import sys
import tempfile

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rich.box import SIMPLE
from rich.table import Table

from benchmarks.__main__ import PEERS
from benchmarks.data import make_order_book, n_rows_of
from benchmarks.processes import NO_PEERS, run
from benchmarks.reference import distance, is_accurate, newton
from benchmarks.table import TABLE_WIDTH, read_csv, rounded, write_csv
from examples.order_book.output import console

CONTENDERS = Path(__file__).with_name("contenders.py")
ROWS = (1_000_000, 20_000_000)
MANY_ROWS = 122_000_000
SMALL_ROWS = 10_000
MAX_SECONDS = 300
GRACE_SECONDS = 120  # for what a contender may do besides, before it is stopped
RESULTS = Path("docs/source/_static/accuracy/accuracy.csv")


@dataclass(frozen=True)
class Contender:
    """Who fits, how, and what kind of distribution comes out: a normal one, or draws."""

    who: str
    method: str
    kind: str = "mean field"
    table: str = "shuffled"
    note: str = ""


ALL = {
    "stream_laplace": Contender("ours", "laplace", "full rank", "table"),
    "stream_advi": Contender("ours", "advi, 20,000 steps", note="shuffled on disk before"),
    "stream_advi_groups": Contender(
        "ours", "advi, 20,000 steps, row groups", table="table", note="row groups in random order"
    ),
    "stream_full_rank": Contender(
        "ours", "fullrank_advi, 20,000 steps", "full rank", note="shuffled on disk before"
    ),
    "stream_pathfinder": Contender("ours", "pathfinder", "draws", "table"),
    "stream_nuts": Contender("ours", "NUTS on subsample_model", "draws", "table"),
    "pymc_advi": Contender("PyMC in memory", "advi"),
    "pymc_adam": Contender("PyMC in memory", "advi, Adam 0.01"),
    "extras_laplace": Contender("pymc-extras", "fit_laplace", "full rank"),
    "extras_dadvi": Contender("pymc-extras", "fit_dadvi"),
    "numpyro_normal": Contender("NumPyro", "AutoNormal, Adam 0.01"),
    "numpyro_multivariate": Contender("NumPyro", "AutoMultivariateNormal, Adam 0.01", "full rank"),
    "numpyro_laplace": Contender(
        "NumPyro", "AutoLaplaceApproximation, Adam 0.01", "full rank", note="all rows each step"
    ),
    "statsmodels_logit": Contender("statsmodels", "Logit", "full rank", note="without the prior"),
    "sklearn_logistic": Contender("scikit-learn", "LogisticRegression", "means only"),
    "sklearn_newton": Contender(
        "scikit-learn", "LogisticRegression, newton-cholesky", "means only"
    ),
}


@dataclass
class Row:
    """A line of the table: how long a contender took, and what it ended with.

    Without seconds, it was not accurate, and the note says why.
    """

    rows: int
    who: str
    method: str
    kind: str
    seconds: float | None = None
    seconds_without_compilation: float | None = None
    means_off: float | None = None  # largest error, in posterior sds
    sd_low: float | None = None  # ratio to the sds of the kind's optimum
    sd_high: float | None = None
    posterior_sd_low: float | None = None  # ratio to the posterior's sds
    posterior_sd_high: float | None = None
    peak_mb: float | None = None
    note: str = ""


def goals_of(mean: np.ndarray, precision: np.ndarray) -> dict[str, dict]:
    """Give what each kind of normal distribution should reach: see :func:`distance`."""
    posterior = np.sqrt(np.diag(np.linalg.inv(precision)))
    alone = 1 / np.sqrt(np.diag(precision))
    goal = {"mean": mean.tolist(), "posterior_sd": posterior.tolist(), "sd": posterior.tolist()}
    return {
        "full rank": goal,
        "draws": goal,
        "means only": goal,
        "mean field": goal | {"sd": alone.tolist()},
    }


def judged(
    contender: Contender, n_rows: int, goals: dict, fit: dict | str, small: dict | str
) -> Row:
    """Make a row of a fit, and of the one that timed the compilation."""
    row = Row(n_rows, contender.who, contender.method, contender.kind, note=contender.note)
    if isinstance(fit, str):
        row.note = fit[-200:]
        return row
    goal = goals[contender.kind]
    ends = distance(fit["mean"], fit["sd"], goal)
    row.means_off, row.sd_low, row.sd_high = map(_rounded, ends)
    posterior = distance(fit["mean"], fit["sd"], goals["full rank"])
    row.posterior_sd_low, row.posterior_sd_high = map(_rounded, posterior[1:])
    row.peak_mb = rounded(fit["peak_mb"])
    seconds = fit["seconds"]
    if seconds > MAX_SECONDS:
        row.note = "not within 5 minutes"
    elif not is_accurate(fit["mean"], fit["sd"], goal):
        row.note = f"ends outside the bounds, after {seconds:.0f} s"
    else:
        row.seconds = rounded(seconds)
        if not isinstance(small, str) and seconds > small["seconds"]:  # else noise is all there is
            row.seconds_without_compilation = rounded(seconds - small["seconds"])
    return row


def _rounded(value: float | None) -> float | None:
    return None if value is None else rounded(value)


def run_contender(
    name: str, peers: str | None, folder: Path, goal: dict, *options: str
) -> dict | str:
    """Fit in a process of its own, which compiles anew."""
    own = ALL[name].who in ("ours", "PyMC in memory")
    python = sys.executable if own else peers
    if python is None:
        return NO_PEERS
    command = [python, CONTENDERS, name, f"--folder={folder}", f"--goal={json.dumps(goal)}"]
    # The PyMC of the peers must be their own.
    environment = {} if own else {"PYTHONPATH": ""}
    with tempfile.TemporaryDirectory() as compiled:
        return run(
            [*command, f"--seconds={MAX_SECONDS}", *options],
            timeout=MAX_SECONDS + GRACE_SECONDS,
            PYTENSOR_FLAGS=f"base_compiledir={compiled}",
            **environment,
        )


def write_small(table: Path, folder: Path) -> None:
    """Write the first rows of a table."""
    with pq.ParquetFile(min(table.glob("*.parquet"))) as file:
        rows = next(file.iter_batches(SMALL_ROWS))
    with pq.ParquetWriter(folder / "small.parquet", rows.schema) as small:
        small.write_batch(rows)


def compare(place: Path, names: list[str], peers: str | None) -> Iterator[Row]:
    """Give a row for each contender on one table."""
    n_rows = n_rows_of(place / "table")
    goals = goals_of(*newton(place / "table"))
    with tempfile.TemporaryDirectory() as temporary:
        small_folder = Path(temporary)
        write_small(place / "shuffled", small_folder)
        for name in names:
            contender = ALL[name]
            console.print(f"{n_rows:,} rows: {contender.who}, {contender.method}")
            goal = goals[contender.kind]
            small = run_contender(name, peers, small_folder, goal, "--small")
            fit = run_contender(name, peers, place / contender.table, goal)
            yield judged(contender, n_rows, goals, fit, small)


def print_table(table: list[Row]) -> None:
    """Print the rows."""
    report = Table(
        box=SIMPLE,
        collapse_padding=True,
        caption="off: largest error of a mean, in posterior sds; sds: ratio to those that the kind "
        "converges to, and to the posterior's",
    )
    for name in ("M rows", "who", "method", "kind"):
        report.add_column(name)
    for name in ("seconds", "without compiling", "off", "sds", "posterior sds", "peak MB"):
        report.add_column(name, justify="right")
    report.add_column("note")
    for row in table:
        report.add_row(
            f"{row.rows / 1e6:.3g}",
            row.who,
            row.method,
            row.kind,
            *map(_text, (row.seconds, row.seconds_without_compilation, row.means_off)),
            _range(row.sd_low, row.sd_high),
            _range(row.posterior_sd_low, row.posterior_sd_high),
            _text(row.peak_mb),
            row.note,
        )
    console.width = max(console.width, TABLE_WIDTH)
    console.print(report)


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:{'.3g' if value < 100 else ',.0f'}}"


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None else f"{_text(low)} to {_text(high)}"


def main() -> None:
    """Fit, write and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="sizes of tables, about")
    text = "also 122 million rows, streamed only; 6 GB of disk"
    parser.add_argument("--full", action="store_true", help=text)
    text = "only these; the CSV keeps its rows of the others"
    parser.add_argument("--only", nargs="+", choices=ALL, metavar="NAME", default=ALL, help=text)
    text = f"Python with benchmarks/requirements-peers.txt (default: {PEERS}, if it is there)"
    parser.add_argument("--peers", metavar="PYTHON", help=text)
    text = "where tables are kept (default: %(default)s)"
    parser.add_argument("--folder", type=Path, default="benchmark_data", help=text)
    text = "where the table is written, row by row (default: %(default)s)"
    parser.add_argument("--csv", type=Path, metavar="FILE", default=RESULTS, help=text)
    arguments = parser.parse_args()
    peers = arguments.peers or (PEERS if Path(PEERS).exists() else None)
    ours = [name for name in arguments.only if ALL[name].who == "ours"]
    sizes = {n_rows: list(arguments.only) for n_rows in arguments.rows}
    if arguments.full:
        sizes[MANY_ROWS] = ours
    order = [(contender.who, contender.method) for contender in ALL.values()]
    table = read_csv(arguments.csv, Row)
    for n_rows, names in sizes.items():
        place = make_order_book(arguments.folder, n_rows, shuffled=True)
        for row in compare(place, names, peers):
            key = (row.rows, row.who, row.method)
            table = [other for other in table if (other.rows, other.who, other.method) != key]
            table.append(row)
            table.sort(key=lambda row: (row.rows, order.index((row.who, row.method))))
            write_csv(table, arguments.csv)
    print_table(table)
    console.print(f"{os.cpu_count()} cores; the table is also in {arguments.csv}")


if __name__ == "__main__":
    main()
