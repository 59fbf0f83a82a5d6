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
"""Stage 4: one fit of the logistic regression, from memory or streamed, and what it took."""

import resource
import sys
import time

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytensor

import pymc as pm

from examples.order_book.output import progress_bar
from examples.order_book.runs import EXACT, SAMPLERS, Fit

COLUMNS = ["mid", "spread", "imbalance", "up"]
CONSTANT_RATE = 0.01


def files_of_table(folder: Path, n_files: int | None) -> list[Path]:
    """Files of the table, or the first `n_files` of them."""
    paths = sorted((folder / "table").glob("*.parquet"))[:n_files]
    if not paths:
        raise FileNotFoundError(f"no table in {folder / 'table'}: run the stage `fold` first")
    return paths


def load(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Features and outcomes of all files, read row group by row group into their place."""
    n_rows = sum(pq.read_metadata(path).num_rows for path in paths)
    features = np.empty((n_rows, 3), dtype=pytensor.config.floatX)
    up = np.empty(n_rows, dtype=pytensor.config.floatX)
    row = 0
    with progress_bar() as progress:
        task = progress.add_task("Loading", total=n_rows)
        for path in paths:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, columns=COLUMNS)
                    end = row + table.num_rows
                    for j in range(3):
                        features[row:end, j] = table[COLUMNS[j]].to_numpy()
                    up[row:end] = table["up"].to_numpy()
                    row = end
            progress.update(task, completed=row)
    return features, up


class Clock:
    """Callback of ``pm.fit`` that times the steps, and so leaves out the compilation."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, approx, losses, step: int) -> None:
        self.last = time.perf_counter()
        if not self.steps:
            self.first = self.last
        self.steps += 1

    @property
    def seconds(self) -> float:
        return self.last - self.first


def peak_memory_mb() -> float:
    """Peak resident memory of this process."""
    try:
        # Not `ru_maxrss` where it can be helped: a child process starts with its parent's.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1e3
    except (OSError, IndexError):
        unit = 1e6 if sys.platform == "darwin" else 1e3
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def open_stream(
    folder: Path, paths: list[Path], *, how: str, seed: int, batch_size: int, buffer_size: int
):
    """Stream the table in one of three ways, or for passes over all of it."""
    # Here, as the fits from memory need nothing but PyMC as it is released.
    from pymc.variational.streaming import StreamingDataset, parquet_source, shuffle_buffer

    if how == "pre-shuffled":
        # Shuffled on disk by the stage `shuffle`: there is nothing left to mix.
        paths = sorted((folder / "shuffled").glob("*.parquet"))
        source = parquet_source(paths, columns=COLUMNS, shuffle_row_groups=True, seed=seed)
        return StreamingDataset(source, batch_size=batch_size)
    if how == EXACT or how in SAMPLERS:
        # Passes over all rows: their order does not matter.
        source = parquet_source(paths, columns=COLUMNS)
        return StreamingDataset(source, batch_size=batch_size, check_order="ignore")
    # The table is in time order and the market changes over the weeks. Row groups in random order
    # into the buffer make a batch a sample of all weeks; in file order, of the hours in the buffer.
    source = parquet_source(
        paths, columns=COLUMNS, shuffle_row_groups=how == "row-groups", seed=seed
    )
    rows = shuffle_buffer(source, buffer_size=buffer_size, batch_size=batch_size, seed=seed)
    return StreamingDataset(rows, batch_size=batch_size)


def fit(
    folder: Path,
    *,
    how: str,
    fit_seed: int,
    steps: int,
    rate: str,
    batch_size: int,
    buffer_size: int,
    table_files: int | None = None,
) -> Fit:
    """Fit the logistic regression in this process.

    Parameters
    ----------
    folder : Path
        The fit reads ``folder/table``, or ``folder/shuffled``.
    how : {"exact", "pathfinder", "nuts", "in-RAM", "bounded-buffer", "row-groups", "pre-shuffled"}
        The exact posterior from passes over the table; draws from it by Pathfinder, or by NUTS on a
        random sample of the rows that is corrected by passes over all; or ADVI, with minibatches that are drawn
        from arrays in memory, or streamed from Parquet: through a shuffle buffer in file order,
        through one with row groups in random order, or from the table that was shuffled on disk.
    fit_seed : int
        Seed of the fit and of the order of the rows.
    steps, batch_size : int
        Steps of ADVI, and rows in each minibatch.
    rate : {"falling", "constant"}
        Start at the mode, with a learning rate that falls to zero: what ``pm.fit`` does on a stream.
        Or Adam with `CONSTANT_RATE` from the initial point.
    buffer_size : int
        Rows in the shuffle buffer, if streamed through one.
    table_files : int, optional
        How many files of the table to use, from the first on; all unless told.

    Returns
    -------
    Fit
    """
    paths = files_of_table(folder, table_files)
    clock = Clock()
    options = {"init": "mode"}
    if rate == "constant":
        options = {"obj_optimizer": pm.adam(learning_rate=CONSTANT_RATE)}
    with pm.Model() as model:
        if how != "in-RAM":
            ds = open_stream(
                folder,
                paths,
                how=how,
                seed=fit_seed,
                batch_size=batch_size,
                buffer_size=buffer_size,
            )
            n_rows = ds.total_size
            batch = ds.as_tensor()
            x, y = batch[:, :3], batch[:, 3]
        else:
            features, up = load(paths)
            n_rows = len(up)
            x, y = pm.Minibatch(features, up, batch_size=batch_size)
        b = pm.Normal("b", 0.0, 3.0, shape=4)
        logit = b[0] + b[1] * x[:, 0] + b[2] * x[:, 1] + b[3] * x[:, 2]
        pm.Bernoulli("up", logit_p=logit, observed=y, total_size=n_rows)
        started = time.perf_counter()
        if how == EXACT:
            approx = pm.fit(method="laplace", random_seed=fit_seed)
        elif how not in SAMPLERS:
            approx = pm.fit(
                steps, method="advi", callbacks=[clock], random_seed=fit_seed, **options
            )
    if how in SAMPLERS:
        return sample(model, how, fit_seed, rate, n_rows)
    exact = how == EXACT
    covariance = approx.cov.eval()
    return Fit(
        how=how,
        rate=rate,
        seed=fit_seed,
        n_rows=n_rows,
        steps=len(approx.hist) if exact else clock.steps,
        mean=approx.mean.eval().tolist(),
        sd=approx.std.eval().tolist(),
        seconds=time.perf_counter() - started if exact else clock.seconds,
        peak_mb=peak_memory_mb(),
        mean_field_sd=(np.diag(np.linalg.inv(covariance)) ** -0.5).tolist() if exact else None,
    )


def sample(model: pm.Model, how: str, seed: int, rate: str, n_rows: int) -> Fit:
    """Draw from the posterior of all rows."""
    from pymc.variational.streaming import subsample_model, subsample_report

    started, error = time.perf_counter(), None
    if how == "pathfinder":
        with model:
            trace = pm.fit(method="pathfinder", random_seed=seed).sample(1000, random_seed=seed)
    else:
        small = subsample_model(model, random_seed=seed)
        with small:
            trace = pm.sample(1000, tune=1000, chains=2, cores=2, random_seed=seed)
        error = subsample_report(trace, small, model, random_seed=seed).error
    draws = trace["posterior"]["b"].values.reshape(-1, 4)
    return Fit(
        how=how,
        rate=rate,
        seed=seed,
        n_rows=n_rows,
        steps=len(draws),
        mean=draws.mean(axis=0).tolist(),
        sd=draws.std(axis=0).tolist(),
        seconds=time.perf_counter() - started,
        peak_mb=peak_memory_mb(),
        draws=draws.T.tolist(),
        error=error,
    )
