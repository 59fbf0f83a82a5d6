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
"""The error of a sample of rows that stands for all, with and without the Hessian.

``python -m benchmarks.subsample`` takes 20 draws from the normal density at the mode, evaluates all
rows at them, and says how far the log-density that control variates estimate is off, in nats: the
largest difference after their mean was taken off, the median of three samples. Logistic regressions:
of the order book, and of 2 million simulated rows with an effect for each of many groups.
"""

import argparse

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rich.box import SIMPLE
from rich.table import Table

import pymc as pm

from benchmarks.data import make_order_book
from examples.order_book.fit import COLUMNS
from examples.order_book.output import console
from pymc.variational.control_variates import ControlVariates
from pymc.variational.laplace import find_mode
from pymc.variational.streaming import FullDataLogp, StreamingDataset, parquet_source

ROWS = (1_000_000, 20_000_000)
GROUPS, GROUP_ROWS = (200, 500), 2_000_000
SAMPLES = (20_000, 100_000)
SEEDS = (1, 2, 3)
N_DRAWS = 20


def order_book(table: Path) -> pm.Model:
    """Build the model of the order book."""
    source = parquet_source(table, columns=COLUMNS)
    ds = StreamingDataset(source, batch_size=4096, check_order="ignore")
    with pm.Model() as model:
        b = pm.Normal("b", 0.0, 3.0, shape=4)
        logit = b[0] + b[1] * ds["mid"] + b[2] * ds["spread"] + b[3] * ds["imbalance"]
        pm.Bernoulli("up", logit_p=logit, observed=ds["up"], total_size=ds.total_size)
    return model


def groups(n_groups: int) -> pm.Model:
    """Build a model with an effect for each group."""
    rng = np.random.default_rng(1)
    group, x = rng.integers(n_groups, size=GROUP_ROWS), rng.normal(size=(GROUP_ROWS, 2))
    logit = rng.normal(size=n_groups)[group] + 0.5 * x[:, 0]
    y = (rng.random(GROUP_ROWS) < 1 / (1 + np.exp(-logit))).astype(int)
    columns = {"group": group, "x": x[:, 0], "z": x[:, 1], "y": y}
    ds = StreamingDataset(columns, batch_size=4096, check_order="ignore")
    with pm.Model() as model:
        b, mean = pm.Normal("b", 0, 3, shape=2), pm.Normal("mean", 0, 1)
        effect = pm.Normal("effect", mean, 1, shape=n_groups)
        logit = effect[ds["group"]] + b[0] * ds["x"] + b[1] * ds["z"]
        pm.Bernoulli("y", logit_p=logit, observed=ds["y"], total_size=ds.total_size)
    return model


def errors(model: pm.Model) -> Iterator[tuple[int, int, bool, float]]:
    """Give parameters, rows of the sample, whether the Hessian is corrected, and the error."""
    full = FullDataLogp(model, progressbar=False)
    mode = find_mode(full, random_seed=1, progressbar=False)
    z = np.random.default_rng(0).standard_normal((N_DRAWS, len(mode.q)))
    draws = mode.q + z @ np.linalg.cholesky(mode.covariance).T
    exact = full.logp(draws)
    values = (mode.logp, mode.gradient, -mode.precision)
    for n_rows in SAMPLES:
        for hessian in (True, False):
            found = []
            for seed in SEEDS:
                estimate = ControlVariates(
                    full,
                    mode.at,
                    values=values if hessian else values[:2],
                    n_rows=n_rows,
                    random_seed=seed,
                    hessian=hessian,
                )
                off = estimate.logp(draws) - exact
                found.append(np.abs(off - off.mean()).max())
            yield len(mode.q), n_rows, hessian, float(np.median(found))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.subsample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = "where tables are kept (default: %(default)s)"
    parser.add_argument("--folder", type=Path, default="benchmark_data", help=text)
    arguments = parser.parse_args()
    table = Table(box=SIMPLE)
    for column in ("model", "parameters", "rows of the sample", "Hessian", "error (nats)"):
        table.add_column(column, justify="right")
    models = {
        f"order book, {n:,} rows": (
            lambda n=n: order_book(make_order_book(arguments.folder, n) / "table")
        )
        for n in ROWS
    } | {f"{n} groups, {GROUP_ROWS:,} rows": (lambda n=n: groups(n)) for n in GROUPS}
    for name, build in models.items():
        for n_parameters, n_rows, hessian, error in errors(build()):
            yes = "yes" if hessian else "no"
            table.add_row(name, str(n_parameters), f"{n_rows:,}", yes, f"{error:.2g}")
    console.print(table)


if __name__ == "__main__":
    main()
