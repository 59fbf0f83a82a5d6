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
"""Pathfinder of this project against BlackJAX's and pymc-extras', on models in memory.

``python -m benchmarks.pathfinder`` fits each model with each contender, in a process of its own, and
compares 1,000 draws with NUTS, or with the exact density where it is known. All are in unconstrained
parameters. The ELBO is that of the normal density with mean and covariance of the draws, whoever
drew them, so that it measures them alike. Seconds are those of a first fit; CPU seconds those of
all threads and processes, to compare on a machine that has other work. Without compiling: the share
of the CPU seconds that is in proportion to the rows, by the same fit of fewer rows.
"""

import argparse
import sys
import tempfile

from pathlib import Path

import numpy as np

from rich.box import SIMPLE
from rich.table import Table

import pymc as pm

from benchmarks.__main__ import PEERS
from benchmarks.pathfinders import CONTENDERS, FEW_ROWS, MODELS, correlated
from benchmarks.processes import NO_PEERS, run
from examples.order_book.output import console
from pymc.variational.streaming import FullDataLogp

SCRIPT = Path(__file__).with_name("pathfinders.py")
TIMEOUT = 600
ELBO_DRAWS = 1000


def reference_of(model: pm.Model, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and sd of the unconstrained parameters by NUTS, which are kept in a file."""
    file = folder / "nuts.npz"
    if not file.exists():
        with model:
            idata = pm.sample(1500, tune=750, chains=2, random_seed=1, target_accept=0.9,
                              nuts_sampler="pymc",  # with transformed values
                              idata_kwargs={"include_transformed": True})  # fmt: skip
        groups = ("posterior", "unconstrained_posterior")
        found = {}
        for group in groups:
            if group in idata:
                found |= {name: values.values for name, values in idata[group].items()}
        draws = np.concatenate([found[n].reshape(3000, -1) for n in model.initial_point()], axis=1)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(file, mean=draws.mean(axis=0), sd=draws.std(axis=0))
    saved = np.load(file)
    return saved["mean"], saved["sd"]


def elbo_of(full: FullDataLogp, draws: np.ndarray) -> tuple[float, float]:
    """Return the ELBO of the normal density with the mean and covariance of draws, and its error."""
    try:
        factor = np.linalg.cholesky(np.cov(draws.T))
    except np.linalg.LinAlgError:  # the same few draws, again and again
        return -np.inf, 0.0
    z = np.random.default_rng(0).standard_normal((ELBO_DRAWS, len(factor)))
    log_density = -np.square(z).sum(axis=1) / 2 - len(factor) / 2 * np.log(2 * np.pi)
    log_density -= np.log(factor.diagonal()).sum()
    log_ratios = full.logp(draws.mean(axis=0) + z @ factor.T) - log_density
    return float(log_ratios.mean()), float(log_ratios.std() / ELBO_DRAWS**0.5)


def fit(name: str, peers: str | None, *options: str | Path) -> dict | str:
    """Fit in a process of its own, which compiles anew."""
    python = sys.executable if name == "ours" else peers
    if python is None:
        return NO_PEERS
    # The PyMC of the peers must be their own.
    environment = {} if name == "ours" else {"PYTHONPATH": ""}
    with tempfile.TemporaryDirectory() as compiled:
        flags = {"PYTENSOR_FLAGS": f"base_compiledir={compiled}"}
        return run([python, SCRIPT, name, *options], TIMEOUT, **flags, **environment)


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pathfinder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [model.__name__ for model in MODELS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="MODEL", default=names)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    text = f"Python with benchmarks/requirements-peers.txt (default: {PEERS}, if it is there)"
    parser.add_argument("--peers", metavar="PYTHON", help=text)
    text = "where references are kept (default: %(default)s)"
    parser.add_argument("--folder", type=Path, default="benchmark_data", help=text)
    arguments = parser.parse_args()
    peers = arguments.peers or (PEERS if Path(PEERS).exists() else None)
    table = Table(
        box=SIMPLE,
        caption="off: largest error of a mean, in sds of the reference; sds: ratio to them",
    )
    for column in ("model", "who"):
        table.add_column(column)
    for column in ("seconds", "CPU seconds", "without compiling", "ELBO", "Pareto k", "off", "sds"):
        table.add_column(column, justify="right")
    for build, n_rows in MODELS.items():
        if build.__name__ not in arguments.only:
            continue
        with pm.Model() as model:
            build(n_rows)
        if build is correlated:
            dist = model["x"].owner.op.dist_params(model["x"].owner)
            mean, covariance = (parameter.eval() for parameter in dist)
            sd = np.sqrt(np.diag(covariance))
        else:
            folder = arguments.folder / f"pathfinder-{build.__name__}"
            mean, sd = reference_of(model, folder)
        full = FullDataLogp(model, progressbar=False)
        for name in arguments.contenders:
            with tempfile.NamedTemporaryFile(suffix=".npy") as file:
                options = (build.__name__, f"--draws={file.name}")
                small = fit(name, peers, *options, "--small") if n_rows > FEW_ROWS else ""
                done = fit(name, peers, *options)
                if isinstance(done, str):
                    console.print(f"{build.__name__}, {name}: {done}")
                    table.add_row(build.__name__, name, *[""] * 6, done[-40:])
                    continue
                draws = np.load(file.name)
            more = ""
            if isinstance(small, dict):
                in_proportion = (done["cpu"] - small["cpu"]) * n_rows / (n_rows - FEW_ROWS)
                more = f"{max(0, in_proportion):.1f}"
            elbo, error = elbo_of(full, draws)
            ratio = draws.std(axis=0) / sd
            cells = (
                build.__name__,
                name,
                f"{done['seconds']:.1f}",
                f"{done['cpu']:.1f}",
                more,
                f"{elbo:.2f} ± {error:.2g}",
                f"{done['k']:.2f}",
                f"{np.abs((draws.mean(axis=0) - mean) / sd).max():.2f}",
                f"{ratio.min():.2f} to {ratio.max():.2f}",
            )
            console.print(", ".join(cells))
            table.add_row(*cells)
    console.width = max(console.width, 140)
    console.print(table)


if __name__ == "__main__":
    main()
