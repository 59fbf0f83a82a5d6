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
"""Predictions for the rows of a source of any size, in a pass, to a Parquet file."""

import os

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pymc.model import Model
from pymc.streams.position import Seed, seed_of
from pymc.streams.sources.parquet import parquet_source
from pymc.variational.all_rows import Batch, OtherRows
from pymc.variational.model_of_rows import only_observed
from pymc.variational.rows_at_draws import (
    Draw,
    RowFunction,
    draws_of,
    model_of,
    pieces_in_threads,
    predicted_rows,
    row_draw,
)
from pymc.variational.streaming import StreamingDataset

__all__ = ["predict"]

# Rows of a row group in the file, at least.
GROUP_ROWS = 2**17


def predict(
    approx: Any,
    source: Any,
    destination: str | os.PathLike,
    *,
    model: Model | None = None,
    var_name: str | None = None,
    n_draws: int = 100,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    random_seed: Seed = None,
    progressbar: bool = True,
) -> parquet_source:
    """Predict each row of a source, of any size, and write what is predicted to a Parquet file.

    For a table that fits into memory, :func:`pymc.sample_posterior_predictive` on
    :func:`model_of_rows` gives the draws themselves. This function compiles the model once, and
    keeps only their summary for each row.

    Parameters
    ----------
    approx : Approximation or DataTree
        What ``pm.fit`` returned; or a posterior, with ``model``: that of ``pm.sample`` on a sample
        of the rows, say.
    source : object
        Rows with the columns of the model's stream, read as these are: anything that
        :class:`StreamingDataset` takes. Named columns that only observed values are computed from
        may be missing.
    destination : str or path
        The file. It is written aside and then renamed, so that it is always whole.
    model : Model, optional
        The model. Default: that of the approximation, or of the context.
    var_name : str, optional
        The variable, where the model observes several: an observed one, of which values are drawn
        anew, or a deterministic one.
    n_draws : int, default 100
        Draws of the parameters, and of the value of each row.
    quantiles : sequence of float, default (0.05, 0.5, 0.95)
        Quantiles of the draws that are written.
    random_seed : int, Generator or SeedSequence, optional
        For the draws: the file is then the same, whatever the number of threads.
    progressbar : bool, default True
        Whether to show the progress of the pass.

    Returns
    -------
    parquet_source
        The file as a source: a row for each row of the source, in its order, with the columns
        ``mean``, ``sd`` and a quantile each, ``5%``, say.

    Raises
    ------
    FileExistsError
        If the file exists.
    ValueError
        If a column is missing, a value is one that the model's stream would not take, or a row has
        more than one value.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import pymc as pm
    >>> from pymc.variational.streaming import StreamingDataset, predict
    >>> rng = np.random.default_rng(1)
    >>> rows = {"x": rng.normal(size=10_000)}
    >>> rows["y"] = 2 * rows["x"] + rng.normal(size=10_000)
    >>> ds = StreamingDataset(rows, batch_size=500)
    >>> with pm.Model():
    ...     slope = pm.Normal("slope", 0, 10)
    ...     obs = pm.Normal("obs", slope * ds["x"], 1, observed=ds["y"], total_size=ds.total_size)
    ...     approx = pm.fit(method="laplace", progressbar=False)
    >>> file = f"{tempfile.mkdtemp()}/predicted.parquet"
    >>> predicted = predict(approx, {"x": np.array([0.0, 1.0])}, file, progressbar=False)
    >>> predicted.n_rows, predicted.columns
    (2, ('mean', 'sd', '5%', '50%', '95%'))
    """
    place = Path(destination)
    if place.exists():
        raise FileExistsError(f"{place} exists. Remove it, or name another file.")
    seed, model = seed_of(random_seed), model_of(approx, model)
    of = predicted_rows(model, var_name)
    stream = of.rows.source
    optional = only_observed(model, stream) if isinstance(stream, StreamingDataset) else ()
    function, draws = row_draw(of), draws_of(approx, of.model, n_draws, seed)
    worker = partial(_summaries, function, draws, list(quantiles), seed)
    rows = OtherRows(of.rows, source, optional)
    names = ["mean", "sd", *(f"{100 * q:.10g}%" for q in quantiles)]
    _write(place, names, pieces_in_threads(rows, worker, "Predictions", progressbar))
    return parquet_source(place)


def _summaries(
    function: RowFunction,
    draws: list[Draw],
    quantiles: list[float],
    seed: int,
    first: int,
    piece: list[Batch],
) -> np.ndarray:
    """Return mean, sd and quantiles over draws, of each row of a piece."""
    parts = []
    for batch in piece:
        arrays, n_rows = function.arrays(batch), len(batch[0])
        values = np.array([function(d, arrays, seed, first, i) for i, d in enumerate(draws)])
        if values.ndim > 2:
            raise ValueError(
                f"a row has values of shape {values.shape[2:]}: predict writes one number a row. "
                "Name a pm.Deterministic of one of them, var_name=."
            )
        values = values[:, :n_rows]
        parts.append([values.mean(axis=0), values.std(axis=0), *_quantiles(values, quantiles)])
        first += n_rows
    return np.concatenate(parts, axis=1)


def _quantiles(values: np.ndarray, quantiles: list[float]) -> np.ndarray:
    return np.quantile(np.ascontiguousarray(values.T), quantiles, axis=1)


def _write(place: Path, names: list[str], pieces: Iterator[np.ndarray]) -> None:
    """Write pieces of columns to a file, in row groups of some size."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    aside = place.with_name(place.name + ".partial")
    schema = pa.schema([(name, pa.float64()) for name in names])
    held: list[np.ndarray] = []

    def write() -> None:
        columns = np.concatenate(held, axis=1)
        writer.write_table(pa.table(list(columns), schema=schema), row_group_size=columns.shape[1])
        held.clear()

    try:
        with pq.ParquetWriter(aside, schema) as writer:
            for piece in pieces:
                held.append(piece)
                if sum(part.shape[1] for part in held) >= GROUP_ROWS:
                    write()
            if held:
                write()
        os.replace(aside, place)
    finally:
        with suppress(FileNotFoundError):
            aside.unlink()
