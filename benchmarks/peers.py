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
"""Peers, each used as its documentation says, for the benchmarks that compare with them.

``python benchmarks/peers.py TASK PEER --folder FOLDER ...`` is run by the Python of an environment
with the peers (``benchmarks/requirements-peers.txt``), not with this project. It prints a line of
JSON. The exit code is 3 if the peer, or what is needed of it, cannot be imported.
"""

import argparse
import json
import os
import shutil
import sys
import time

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

BATCH_SIZE = 4096
BUFFER_SIZE = 1_000_000
WARM_UP_BATCHES = 5
ORDER_BOOK = ["mid", "spread", "imbalance", "up"]
ABSENT = 3  # exit code


def peak_mb() -> float:
    """Peak resident memory of this process and of those that it started, summed (on Linux).

    Pages that processes share count once for each.
    """
    processes, kb = [os.getpid()], 0
    for process in processes:
        try:
            for children in Path(f"/proc/{process}/task").glob("*/children"):
                processes += map(int, children.read_text().split())
            status = Path(f"/proc/{process}/status").read_text()
            kb += int(status.split("VmHWM:")[1].split()[0])
        except (OSError, IndexError):  # it has ended
            pass
    return kb / 1e3


def measure(batches: Callable[[], Iterator], max_rows: int, max_seconds: float) -> dict:
    """Time one epoch of batches, or the first `max_rows` rows of it.

    A few batches of an iterator of its own are the warm-up. The iterator that is timed starts
    afresh: filling a shuffle buffer counts. A loader that takes longer than `max_seconds` after its
    first batch is stopped, and is taken to go on at the pace that it had since.
    """
    for _ in islice(batches(), WARM_UP_BATCHES):
        pass
    start = looked = time.perf_counter()
    rows, first_rows, first, peak = 0, 0, start, 0.0
    for batch in batches():
        now = time.perf_counter()
        rows += len(next(iter(batch.values())) if isinstance(batch, dict) else batch)
        if not first_rows:
            first, first_rows = now, rows
        stopped = now - first > max_seconds
        done = stopped or rows >= max_rows
        if done or not peak or now - looked > 1:
            peak, looked = max(peak, peak_mb()), now
        if done:
            break
    seconds = time.perf_counter() - start
    if stopped and rows < max_rows:
        seconds += (now - first) * (max_rows - rows) / (rows - first_rows)
        rows = max_rows
    return {"seconds": seconds, "rows": rows, "first_seconds": first - start, "peak_mb": peak}


def by_hand(folder: Path, columns: list[str], shuffle: bool, seed: int = 0) -> Iterator[np.ndarray]:
    """Give an epoch of batches as users write it who have no loader.

    Row groups are read by pyarrow, in random order if shuffled. A buffer is filled with them,
    permuted if shuffled, and cut into batches.
    """
    rng = np.random.default_rng(seed)
    files = [pq.ParquetFile(path) for path in sorted(folder.glob("*.parquet"))]
    groups = [(file, group) for file in files for group in range(file.num_row_groups)]
    if shuffle:
        groups = [groups[i] for i in rng.permutation(len(groups))]
    buffer_size = BUFFER_SIZE if shuffle else BATCH_SIZE
    held: list[np.ndarray] = []
    for i, (file, group) in enumerate(groups, 1):
        table = file.read_row_group(group, columns=columns)
        held.append(np.column_stack([table[name].to_numpy() for name in columns]))
        n_rows = sum(map(len, held))
        if n_rows < buffer_size and i < len(groups):
            continue
        buffer = np.concatenate(held)
        if shuffle:
            buffer = buffer[rng.permutation(n_rows)]
        # What is left opens the next buffer.
        end = n_rows - n_rows % BATCH_SIZE
        for start in range(0, end, BATCH_SIZE):
            yield buffer[start : start + BATCH_SIZE]
        held = [buffer[end:]]


def load_pyarrow(folder: Path, columns: list[str], shuffle: bool) -> Callable[[], Iterator]:
    """Row groups as they are: the upper limit."""

    def row_groups() -> Iterator[dict]:
        for path in sorted(folder.glob("*.parquet")):
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, columns=columns)
                    yield {name: table[name].to_numpy() for name in columns}

    return row_groups


def load_pymc_extras(folder: Path, columns: list[str], shuffle: bool) -> Callable[[], Iterator]:
    """Its DataLoader, of version 0.15 on.

    Matrices. Without shuffling it does not cut batches, but gives the row groups as they are.
    """
    from pymc_extras.variational import DataLoader, parquet_source

    loader = DataLoader(
        parquet_source(str(folder), columns=columns),
        batch_size=BATCH_SIZE,
        shuffle=shuffle,
        buffer_size=BUFFER_SIZE,
        seed=0,
    )
    return lambda: iter(loader)


def load_ray(folder: Path, columns: list[str], shuffle: bool) -> Callable[[], Iterator]:
    """Ray Data: columns. The read tasks run in worker processes."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    data = ray.data.read_parquet(str(folder)).select_columns(columns)
    return lambda: iter(
        data.iter_batches(
            batch_size=BATCH_SIZE,
            batch_format="numpy",
            local_shuffle_buffer_size=BUFFER_SIZE if shuffle else None,
            local_shuffle_seed=0 if shuffle else None,
        )
    )


def load_datasets(
    folder: Path, columns: list[str], shuffle: bool, form: str = "numpy"
) -> Callable[[], Iterator]:
    """Hugging Face Datasets, streaming: columns."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from datasets import load_dataset

    data = load_dataset(
        "parquet",
        data_files=str(folder / "*.parquet"),
        columns=columns,
        split="train",
        streaming=True,
    )
    if shuffle:
        data = data.shuffle(seed=0, buffer_size=BUFFER_SIZE)
    # Not its `batch`, which makes lists of rows and takes ten times as long.
    return lambda: data.with_format(form).iter(batch_size=BATCH_SIZE)


def load_datasets_arrow(folder: Path, columns: list[str], shuffle: bool) -> Callable[[], Iterator]:
    """Hugging Face Datasets, with Arrow tables that the user makes NumPy arrays of."""
    tables = load_datasets(folder, columns, shuffle, form="arrow")
    return lambda: ({name: table[name].to_numpy() for name in columns} for table in tables())


def load_torch(folder: Path, columns: list[str], shuffle: bool) -> Callable[[], Iterator]:
    """PyTorch's DataLoader over a dataset that gives batches: matrices, from a worker process."""
    from torch.utils.data import DataLoader, IterableDataset

    class Batches(IterableDataset):
        def __iter__(self) -> Iterator[np.ndarray]:
            return by_hand(folder, columns, shuffle)

    # Forked, so that the class need not be pickled.
    loader = DataLoader(Batches(), batch_size=None, num_workers=1, multiprocessing_context="fork")
    return lambda: (batch.numpy() for batch in loader)


LOADERS = {
    "pyarrow": load_pyarrow,
    "torch": load_torch,
    "datasets": load_datasets,
    "datasets, Arrow": load_datasets_arrow,
    "ray": load_ray,
    "pymc-extras": load_pymc_extras,
}


def load(peer: str, options: argparse.Namespace) -> dict:
    """Time the loader of a peer on the first columns of a folder of Parquet files."""
    first = min(options.folder.glob("*.parquet"))
    columns = pq.read_schema(first).names[: options.columns]
    batches = LOADERS[peer](options.folder, columns, options.shuffle)
    return measure(batches, options.rows, options.seconds)


def pre_shuffle(peer: str, options: argparse.Namespace) -> dict:
    """Time a shuffle on disk by DuckDB, or a plain copy."""
    options.destination.mkdir(parents=True)
    start = time.perf_counter()
    if peer == "duckdb":
        import duckdb

        temporary = options.destination / "temporary"
        database = duckdb.connect()
        database.execute(f"SET memory_limit = '{options.memory_limit}'")
        database.execute(f"SET temp_directory = '{temporary}'")
        database.execute(
            f"COPY (SELECT * FROM read_parquet('{options.folder}/*.parquet') ORDER BY random()) "
            f"TO '{options.destination}/shuffled.parquet' (FORMAT parquet, COMPRESSION lz4_raw)"
        )
        database.close()
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        for path in sorted(options.folder.glob("*.parquet")):
            with (
                pq.ParquetFile(path) as file,
                pq.ParquetWriter(
                    options.destination / path.name, file.schema_arrow, compression="lz4"
                ) as writer,
            ):
                for group in range(file.num_row_groups):
                    writer.write_table(file.read_row_group(group))
    seconds = time.perf_counter() - start
    files = options.destination.glob("*.parquet")
    rows = sum(pq.read_metadata(path).num_rows for path in files)
    return {"seconds": seconds, "rows": rows, "peak_mb": peak_mb()}


def epochs(folder: Path, dtype: type) -> Iterator[np.ndarray]:
    """Batches of the order book without end: row groups in random order into a shuffle buffer."""
    for seed in range(sys.maxsize):
        for batch in by_hand(folder, ORDER_BOOK, shuffle=True, seed=seed):
            yield batch.astype(dtype, copy=False)


def fit_numpyro(options: argparse.Namespace, n_rows: int) -> dict:
    """SVI of NumPyro with a loop over batches.

    Its ``plate`` with a ``subsample_size`` would draw from all indices in every step on a CPU:
    ``handlers.scale`` costs nothing.
    """
    import jax
    import numpyro
    import numpyro.distributions as dist

    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    numpyro.enable_x64(options.x64)

    def model(batch):
        b = numpyro.sample("b", dist.Normal(0.0, 3.0).expand([4]).to_event(1))
        logits = b[0] + batch[:, :3] @ b[1:]
        with numpyro.handlers.scale(scale=n_rows / BATCH_SIZE):
            numpyro.sample("up", dist.Bernoulli(logits=logits), obs=batch[:, 3])

    guide = AutoNormal(model)
    svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
    batches = epochs(options.folder, np.float64 if options.x64 else np.float32)
    state = svi.init(jax.random.key(0), next(batches))
    update = jax.jit(svi.update)
    state, _ = jax.block_until_ready(update(state, next(batches)))
    start = time.perf_counter()
    for batch in islice(batches, options.steps - 1):
        state, _ = update(state, batch)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "mean": guide.median(svi.get_params(state))["b"].tolist()}


def fit_pymc_extras(options: argparse.Namespace, n_rows: int) -> dict:
    """Trainer and DataLoader of pymc-extras, of version 0.15 on.

    Its DataLoader reads in file order: give it a shuffled table, as its documentation does.
    """
    flags = f"floatX={'float64' if options.x64 else 'float32'}"
    os.environ["PYTENSOR_FLAGS"] = f"{flags},{os.environ.get('PYTENSOR_FLAGS', '')}".rstrip(",")
    from pymc_extras.inference.advi import Trainer, adam
    from pymc_extras.variational import DataLoader, parquet_source

    import pymc as pm

    loader = DataLoader(
        parquet_source(str(options.folder), columns=ORDER_BOOK),
        batch_size=BATCH_SIZE,
        shuffle=True,
        buffer_size=BUFFER_SIZE,
        seed=0,
    )
    asked = []

    def batches() -> Iterator[dict]:
        while True:
            for batch in loader:
                asked.append(time.perf_counter())
                yield {"batch": batch}

    with pm.Model():
        batch = pm.Data("batch", np.zeros((BATCH_SIZE, 4)))
        b = pm.Normal("b", 0.0, 3.0, shape=4)
        logit = b[0] + b[1] * batch[:, 0] + b[2] * batch[:, 1] + b[3] * batch[:, 2]
        pm.Bernoulli("up", logit_p=logit, observed=batch[:, 3], total_size=loader.total_size)
        trainer = Trainer(optimizer=adam(0.01))
        state = trainer.fit(options.steps, batches(), random_seed=0)
    # The second batch is asked for when the first step is done.
    return {"seconds": time.perf_counter() - asked[1], "mean": state.params["b_loc"].tolist()}


FITS = {"numpyro": fit_numpyro, "pymc-extras": fit_pymc_extras}


def fit(peer: str, options: argparse.Namespace) -> dict:
    """Fit the logistic regression of the order book; ``seconds`` are those after the first step."""
    start = time.perf_counter()
    n_rows = sum(pq.read_metadata(path).num_rows for path in options.folder.glob("*.parquet"))
    result = FITS[peer](options, n_rows)
    result["all_seconds"] = time.perf_counter() - start
    return {**result, "rows": options.steps * BATCH_SIZE, "peak_mb": peak_mb()}


TASKS = {
    "loader": (load, LOADERS),
    "pre_shuffle": (pre_shuffle, ("duckdb", "copy")),
    "fit": (fit, FITS),
}


def main() -> None:
    """Run a task with a peer."""
    parser = argparse.ArgumentParser(prog="python benchmarks/peers.py", description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("peer")
    parser.add_argument("--folder", type=Path, required=True, help="Parquet files")
    parser.add_argument("--columns", type=int, default=4, help="loader: read the first ones")
    parser.add_argument("--rows", type=int, default=20_000_000, help="loader: stop after these")
    parser.add_argument(
        "--seconds", type=float, default=60, help="loader: or so long after the first batch"
    )
    parser.add_argument("--shuffle", action="store_true", help="loader: through a buffer")
    parser.add_argument("--destination", type=Path, help="pre_shuffle: folder for the result")
    parser.add_argument("--memory-limit", default="512MB", help="pre_shuffle: of DuckDB")
    parser.add_argument("--steps", type=int, default=20_000, help="fit: steps")
    parser.add_argument("--x64", action="store_true", help="fit: in float64")
    options = parser.parse_args()
    run, peers = TASKS[options.task]
    if options.peer not in peers:
        parser.error(f"peers for {options.task}: {', '.join(peers)}")
    try:
        result = run(options.peer, options)
    except ImportError as error:
        sys.stderr.write(f"{options.peer}: {error}\n")
        sys.exit(ABSENT)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
