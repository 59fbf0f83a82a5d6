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
"""Evaluation over all rows: how long it takes, and how much memory.

``python -m benchmarks.evaluate`` fits the logistic regression of the order book by Laplace's
approximation, and times what comes after the fit, with 100 draws each, with compilation: the log
predictive density of held-out rows (here those of the same table in random order), leave-one-out
cross-validation, predictions to a Parquet file, and replicated data against the data.
"""

import argparse
import tempfile
import time

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

import pymc as pm

from benchmarks.data import make_order_book
from benchmarks.peers import peak_mb
from benchmarks.subsample import order_book
from examples.order_book.fit import COLUMNS
from examples.order_book.output import console
from pymc.variational.streaming import (
    log_predictive,
    parquet_source,
    predict,
    predictive_check,
)

QUIET = {"progressbar": False, "random_seed": 1}


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="size of the table, about")
    text = "where tables are kept (default: %(default)s)"
    parser.add_argument("--folder", type=Path, default="benchmark_data", help=text)
    arguments = parser.parse_args()
    place = make_order_book(arguments.folder, arguments.rows, shuffled=True)
    other = parquet_source(place / "shuffled", columns=COLUMNS)
    with order_book(place / "table"):
        approx = pm.fit(method="laplace", **QUIET)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "predicted.parquet"
        calls: dict[str, Callable[[], Any]] = {
            "log_predictive, held out": lambda: log_predictive(approx, other, **QUIET),
            "log_predictive, leave one out": lambda: log_predictive(approx, **QUIET),
            "predict": lambda: predict(approx, other, file, **QUIET),
            "predictive_check": lambda: predictive_check(approx, **QUIET),
        }
        table = Table(box=SIMPLE, title=f"{other.n_rows:,} rows, 100 draws")
        for column in ("what", "seconds", "rows/s", "peak MB before", "peak MB after"):
            table.add_column(column, justify="right")
        for what, call in calls.items():
            before, start = peak_mb(), time.perf_counter()
            result = call()
            seconds = time.perf_counter() - start
            speed, after = f"{other.n_rows / seconds:,.0f}", f"{peak_mb():,.0f}"
            table.add_row(what, f"{seconds:.1f}", speed, f"{before:,.0f}", after)
            if what.startswith("log_predictive"):
                console.print(result)
    console.print(table)


if __name__ == "__main__":
    main()
