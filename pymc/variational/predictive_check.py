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
"""Does a fitted model give data like those that it was fitted to? Over all rows, in a pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pymc.model import Model
from pymc.streams.passes import CompensatedSum
from pymc.streams.position import Seed, seed_of
from pymc.variational.all_rows import AllRows, Batch, SampledRows
from pymc.variational.full_data_logp import default_threads
from pymc.variational.rows_at_draws import (
    Draw,
    RowFunction,
    draws_of,
    model_of,
    observed_rows,
    pieces_in_threads,
    row_draw,
    row_observed,
)

__all__ = ["predictive_check"]

# Quantiles of the observed values that are cut points, and the rows that they are taken from.
CUTS, CUT_ROWS = (0.05, 0.25, 0.5, 0.75, 0.95), 10_000
MAX_GROUPS = 1000
INTERVAL = (0.05, 0.95)


def predictive_check(
    approx: Any,
    group: str | None = None,
    *,
    model: Model | None = None,
    var_name: str | None = None,
    n_draws: int = 100,
    random_seed: Seed = None,
    progressbar: bool = True,
) -> pd.DataFrame:
    """Compare the observed values of all rows with values that the model draws for them.

    For each draw of the parameters, a value is drawn for each row. Statistics of these replicated data
    are compared with those of the data [1]_: mean, standard deviation, and the shares of values up
    to some cut points (the entries of a row that is a vector count as values each). A pass over the rows, after one that draws a random sample of them.

    Parameters
    ----------
    approx : Approximation or DataTree
        What ``pm.fit`` returned; or a posterior, with ``model``: that of ``pm.sample`` on a sample
        of the rows, say.
    group : str, optional
        A column of the stream: statistics are of the rows of each of its values. Those of a column
        of keys are called by their categories.
    model : Model, optional
        The model. Default: that of the approximation, or of the context.
    var_name : str, optional
        The observed variable, where several use rows.
    n_draws : int, default 100
        Draws of the parameters, and replicated data sets.
    random_seed : int, Generator or SeedSequence, optional
        For the draws: the result is then the same, whatever the number of threads.
    progressbar : bool, default True
        Whether to show the progress of the pass.

    Returns
    -------
    DataFrame
        A row for each statistic, of each group. ``observed``: that of the data. ``mean``, ``sd``,
        ``5%``, ``95%``: of the replicated data sets. ``p_value``: the share of them in which it is
        larger than in the data, with half of those in which it is equal. Near 0 or 1, the
        model does not give data like these in this respect; with millions of rows small
        differences are enough for that, so that their size is what counts.

    Raises
    ------
    ValueError
        If the model observes no rows in batches, or has a ``Potential`` of them; or if there are
        more than 1000 groups.

    Notes
    -----
    The cut points are quantiles (5, 25, 50, 75 and 95 %) of a random sample of 10,000 rows. The
    shares of values up to them are exact, of all rows, in the data as in the replicated ones:
    that more values than in the data are up to a cut point is the same as that the quantile there
    is smaller.

    References
    ----------
    .. [1] Gelman, A., Meng, X.-L., and Stern, H. (1996). Posterior predictive assessment of model
       fitness via realized discrepancies. Statistica Sinica, 6, 733-807.

    Examples
    --------
    Counts that vary more than a Poisson variable does:

    >>> import numpy as np
    >>> import pymc as pm
    >>> from pymc.variational.streaming import StreamingDataset, predictive_check
    >>> rng = np.random.default_rng(1)
    >>> ds = StreamingDataset({"y": rng.negative_binomial(2, 0.3, 10_000)}, batch_size=500)
    >>> with pm.Model():
    ...     rate = pm.LogNormal("rate", 0, 2)
    ...     obs = pm.Poisson("obs", rate, observed=ds["y"], total_size=ds.total_size)
    ...     approx = pm.fit(method="laplace", progressbar=False)
    >>> check = predictive_check(approx, random_seed=1, progressbar=False)
    >>> bool(0.05 < check["p_value"]["mean"] < 0.95), float(check["p_value"]["sd"])
    (True, 0.0)
    """
    seed, model = seed_of(random_seed), model_of(approx, model)
    of = observed_rows(model, var_name)
    place = _place(of.rows, group)
    observed, draws = row_observed(of), draws_of(approx, of.model, n_draws, seed)
    sample = _observed_sample(of.rows, observed, draws[0], seed)
    cuts = np.unique(np.quantile(sample, CUTS, method="inverted_cdf"))
    cuts = cuts[cuts < sample.max()]  # all are up to the largest one
    statistics = _Statistics(observed, row_draw(of), draws, seed, place, sample.mean(), cuts)
    groups: dict[float, CompensatedSum] = {}
    for values, terms in pieces_in_threads(of.rows, statistics, "Replicated data", progressbar):
        for value, term in zip(values.tolist(), terms):
            groups.setdefault(value, CompensatedSum()).add(term)
        _check_number(groups)
    levels = getattr(of.rows.source, "categories", {}).get(group, ())
    tables = {
        _name_of(value, levels): _table(sums.value, sample.mean(), cuts)
        for value, sums in sorted(groups.items())
    }
    return tables[0] if group is None else pd.concat(tables, names=[group])


def _check_number(groups: Any) -> None:
    if len(groups) > MAX_GROUPS:
        raise ValueError(
            f"group= is a column with more than {MAX_GROUPS:,} values: name one of groups, or of "
            "numbers that are cut into intervals."
        )


def _place(rows: AllRows, group: str | None) -> int | None:
    """Return where in a row the column is that groups the rows."""
    columns = getattr(rows.source, "columns", None) or ()
    if group is not None and group not in columns:
        raise ValueError(f"group={group!r} is no column of {rows.name}: {list(columns)}.")
    return None if group is None else columns.index(group)


def _name_of(value: float, levels: Sequence[Any]) -> Any:
    """Return what a group is called: the category that a code stands for, or its value."""
    if not value.is_integer():
        return value
    return levels[int(value)] if 0 <= value < len(levels) else int(value)


def _observed_sample(rows: AllRows, observed: RowFunction, draw: Draw, seed: int) -> np.ndarray:
    """Return observed values of a random sample of the rows."""
    sampled = SampledRows(rows, CUT_ROWS, (seed, 0), default_threads())
    return np.concatenate(
        [
            observed(draw, observed.arrays(batch))[: len(batch[0])].ravel()
            for piece in sampled.read()
            for batch in piece
        ]
    ).astype("float64")


class _Statistics:
    """What the statistics of the rows of each group are computed from, for data and replicated data.

    Parameters
    ----------
    observed, drawn : RowFunction
        What gives the values of each row.
    draws : list
        Draws of the parameters.
    seed : int
        What values are drawn with.
    place : int or None
        The column that groups the rows.
    center : float
        A number near the mean of the values.
    cuts : ndarray
        The cut points.
    """

    def __init__(
        self,
        observed: RowFunction,
        drawn: RowFunction,
        draws: list[Draw],
        seed: int,
        place: int | None,
        center: float,
        cuts: np.ndarray,
    ):
        self._observed, self._drawn, self._draws = observed, drawn, draws
        self._seed, self._place, self._center, self._cuts = seed, place, center, cuts

    def __call__(self, first: int, piece: list[Batch]) -> tuple[np.ndarray, np.ndarray]:
        """Return the groups of the rows in a piece, and the sums of each: of the data first."""
        columns = [
            np.zeros(len(batch[0])) if self._place is None else batch[0][:, self._place]
            for batch in piece
        ]
        groups, codes = np.unique(np.concatenate(columns), return_inverse=True)
        _check_number(groups)
        sums = np.zeros((len(groups), 1 + len(self._draws), 3 + len(self._cuts)))
        start = 0
        for batch in piece:
            n_rows, arrays = len(batch[0]), self._observed.arrays(batch)
            own = codes[start : start + n_rows]
            sums[:, 0] += self._sums(self._observed(self._draws[0], arrays), own, len(groups))
            arrays = self._drawn.arrays(batch)
            for i, draw in enumerate(self._draws):
                values = self._drawn(draw, arrays, self._seed, first + start, i)
                sums[:, 1 + i] += self._sums(values, own, len(groups))
            start += n_rows
        return groups, sums

    def _sums(self, values: np.ndarray, codes: np.ndarray, n_groups: int) -> np.ndarray:
        """Return number, sum and sum of squares, and number up to each cut point, by group."""
        values = values[: len(codes)].reshape(len(codes), -1)
        codes = np.repeat(codes, values.shape[1])
        values = values.ravel().astype("float64")
        n_bins = len(self._cuts) + 1
        bins = codes * n_bins + np.searchsorted(self._cuts, values)
        counts = np.bincount(bins, minlength=n_groups * n_bins).reshape(n_groups, n_bins)
        counts = counts.cumsum(axis=1)
        values -= self._center
        return np.column_stack(
            [
                counts[:, -1],
                np.bincount(codes, values, n_groups),
                np.bincount(codes, np.square(values, out=values), n_groups),
                counts[:, :-1],
            ]
        )


def _table(sums: np.ndarray, center: float, cuts: np.ndarray) -> pd.DataFrame:
    """Compare the statistics of the data, the first ones, with those of the replicated data."""
    n, total, squares, *counts = sums.T
    with np.errstate(invalid="ignore", divide="ignore"):  # one value has no sd
        sd = np.sqrt(np.maximum(squares - total**2 / n, 0) / (n - 1))
    statistics = {"mean": center + total / n, "sd": sd}
    statistics |= {f"share <= {cut:.6g}": count / n for cut, count in zip(cuts, counts)}
    values = np.array(list(statistics.values()))
    observed, replicated = values[:, :1], values[:, 1:]
    larger = (replicated > observed) + 0.5 * (replicated == observed)
    low, high = np.quantile(replicated, INTERVAL, axis=1)
    return pd.DataFrame(
        {
            "observed": observed[:, 0],
            "mean": replicated.mean(axis=1),
            "sd": replicated.std(axis=1),
            f"{100 * INTERVAL[0]:.0f}%": low,
            f"{100 * INTERVAL[1]:.0f}%": high,
            "p_value": larger.mean(axis=1),
        },
        index=pd.Index(statistics, name="statistic"),
    )
