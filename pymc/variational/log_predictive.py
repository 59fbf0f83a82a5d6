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
"""How well a fit predicts: log predictive densities over all rows, in a pass."""

import warnings

from dataclasses import dataclass
from typing import Any

import numpy as np

from pymc.model import Model
from pymc.streams.passes import CompensatedSum
from pymc.streams.position import Seed, seed_of
from pymc.variational.all_rows import AllRows, Batch, OtherRows
from pymc.variational.rows_at_draws import (
    Draw,
    RowFunction,
    draws_of,
    model_of,
    observed_rows,
    pieces_in_threads,
    row_logp,
    spread,
)

__all__ = ["LeaveOneOut", "LogPredictive", "log_predictive"]

# Log-densities that a thread holds at a time.
BLOCK_SIZE = 2**18
# Draws for PSIS-LOO of the rows in the sample, as Pareto k of fewer is above its limit by chance; and
# the fewest that it takes.
LOO_DRAWS, FEWEST_DRAWS = 1000, 25
# A variance of a row's log-density above which its WAIC term is not to be relied on.
HIGH_VARIANCE = 0.4


@dataclass(frozen=True)
class LogPredictive:
    """Log predictive density of rows that a model was not fitted to.

    Attributes
    ----------
    elpd : float
        Sum over rows of the logarithm of their density, averaged over the draws.
    se : float
        Standard error of ``elpd``, as the rows are a sample of those that there could be.
    n_samples : int
        Draws of the parameters.
    n_data_points : int
        Rows.
    elpd_i : ndarray or None
        What each row adds to ``elpd``, with ``pointwise=True``.
    """

    elpd: float
    se: float
    n_samples: int
    n_data_points: int
    elpd_i: np.ndarray | None

    def _of(self) -> str:
        return f"{self.n_data_points:,} rows, {self.n_samples:,} draws"

    def __repr__(self) -> str:
        return f"Log predictive density of {self._of()}\nelpd {self.elpd:,.1f} ± {self.se:,.1f}"


@dataclass(frozen=True, repr=False)
class LeaveOneOut(LogPredictive):
    """Log predictive density of the rows that a model was fitted to, each as if it were left out.

    Attributes
    ----------
    elpd : float
        Estimate of PSIS-LOO over all rows: WAIC, corrected by PSIS-LOO of a random sample of rows.
    se : float
        Standard error of ``elpd``, as the rows are a sample of those that there could be.
    subsampling_se : float
        Standard error of ``elpd`` as an estimate of PSIS-LOO of all rows.
    p : float
        Effective number of parameters.
    elpd_waic, p_waic : float
        WAIC of all rows, and its effective number of parameters.
    high_variance : int
        Rows whose log-density has a variance above 0.4 over the draws.
    pareto_k : ndarray
        Pareto k of each row in the sample.
    good_k : float
        Pareto k above which PSIS-LOO of a row is not to be relied on.
    n_samples : int
        Draws of the parameters.
    n_data_points : int
        Rows.
    elpd_i : ndarray or None
        What each row adds to ``elpd_waic``, with ``pointwise=True``.
    """

    subsampling_se: float
    p: float
    elpd_waic: float
    p_waic: float
    high_variance: int
    pareto_k: np.ndarray
    good_k: float

    @property
    def _n_bad(self) -> int:
        return int(np.sum(~(self.pareto_k <= self.good_k)))

    def __repr__(self) -> str:
        return "\n".join(
            [
                f"Leave-one-out log predictive density of {self._of()}",
                f"elpd_loo  {self.elpd:,.1f} ± {self.se:,.1f}; sample of "
                f"{len(self.pareto_k):,} rows: ± {self.subsampling_se:.2g}",
                f"p_loo     {self.p:,.1f}",
                f"elpd_waic {self.elpd_waic:,.1f}",
                f"p_waic    {self.p_waic:,.1f}",
                f"{self._n_bad:,} of {len(self.pareto_k):,} rows with Pareto k above {self.good_k:.2g}; "
                f"{self.high_variance:,} of {self.n_data_points:,} with a variance above "
                f"{HIGH_VARIANCE}",
            ]
        )


def log_predictive(
    approx: Any,
    source: Any = None,
    *,
    model: Model | None = None,
    var_name: str | None = None,
    n_draws: int = 100,
    n_loo_rows: int = 2000,
    pointwise: bool = False,
    random_seed: Seed = None,
    progressbar: bool = True,
) -> LogPredictive:
    r"""Evaluate the log predictive density of each row of a source, in one pass.

    Of rows i that the model was not fitted to, with draws s of its parameters,

    .. math:: \sum_i \log \frac{1}{S} \sum_s p(y_i \mid \theta_s).

    Of the rows that it was fitted to (no ``source``, or that of the model's stream), the same as if
    each row were left out of the fit: WAIC [1]_ of all rows, and PSIS-LOO [1]_ by the difference
    between the two on a random sample of rows [2]_.

    Parameters
    ----------
    approx : Approximation or DataTree
        What ``pm.fit`` returned; or a posterior, with ``model``: that of ``pm.sample`` on a sample
        of the rows, say.
    source : object, optional
        Rows with the columns of the model's stream, read as these are: anything that
        :class:`StreamingDataset` takes. Default: all rows of the model's own stream, or of the arrays
        behind its :func:`pymc.Minibatch`.
    model : Model, optional
        The model. Default: that of the approximation, or of the context.
    var_name : str, optional
        The observed variable, where several use rows.
    n_draws : int, default 100
        Draws of the parameters. Of a posterior that has more, so many that are evenly spread.
    n_loo_rows : int, default 2000
        Rows in the sample for PSIS-LOO, which is at 1000 draws where there are so many: 4000 rows
        take a second.
    pointwise : bool, default False
        Whether to keep what each row adds: 8 bytes a row. The difference between two fits has the
        standard error of the sum of the differences of these.
    random_seed : int, Generator or SeedSequence, optional
        For the draws and the sample of rows.
    progressbar : bool, default True
        Whether to show the progress of the pass.

    Returns
    -------
    LogPredictive or LeaveOneOut

    Raises
    ------
    ValueError
        If the model observes no rows in batches, or has a ``Potential`` of them; if a column is
        missing, or a value is one that the model's stream would not take.

    Warns
    -----
    UserWarning
        If WAIC or PSIS-LOO is not to be relied on for some rows, or if a row has density zero.

    Notes
    -----
    A row's value may be a vector: then its density is that of the whole row.

    Draws of an approximation are taken for draws of the posterior: :func:`fit_report` says how far it is
    from that. Draws are taken for independent, as they are once a Markov chain is thinned.

    Sums are compensated, and the same to the last bit whatever the number of threads.

    References
    ----------
    .. [1] Vehtari, A., Gelman, A., and Gabry, J. (2017). Practical Bayesian model evaluation using
       leave-one-out cross-validation and WAIC. Statistics and Computing, 27, 1413-1432.
    .. [2] Magnusson, M., Vehtari, A., Jonasson, J., and Andersen, M. R. (2020). Leave-one-out
       cross-validation for Bayesian model comparison in large data. AISTATS 2020, 341-351.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc as pm
    >>> from pymc.variational.streaming import StreamingDataset, log_predictive
    >>> rng = np.random.default_rng(1)
    >>> ds = StreamingDataset({"y": rng.normal(2, 1, 10_000)}, batch_size=500)
    >>> with pm.Model():
    ...     mu = pm.Normal("mu", 0, 10)
    ...     obs = pm.Normal("obs", mu, 1, observed=ds["y"], total_size=ds.total_size)
    ...     approx = pm.fit(method="laplace", progressbar=False)
    >>> test = {"y": rng.normal(2, 1, 5000)}
    >>> held_out = log_predictive(approx, test, random_seed=1, progressbar=False)
    >>> held_out.n_data_points, round(held_out.elpd / 5000, 1)
    (5000, -1.4)
    >>> loo = log_predictive(approx, random_seed=1, progressbar=False)
    >>> loo.n_data_points, round(loo.p)
    (10000, 1)
    """
    seed = seed_of(random_seed)
    observed = observed_rows(model_of(approx, model), var_name)
    own = observed.rows
    left_out = any(source is its for its in (None, own.source, own._batches.blocks.source))
    rows = own if left_out else OtherRows(own, source)
    if not left_out and rows.same_as(own):
        left_out, rows = True, own
    n_all = max(n_draws, LOO_DRAWS) if left_out else n_draws
    all_draws = draws_of(approx, observed.model, n_all, seed)
    draws, function = spread(all_draws, n_draws), row_logp(observed)
    if left_out and (len(draws) < FEWEST_DRAWS or n_loo_rows < 2):
        raise ValueError(
            f"{len(draws)} draws and n_loo_rows={n_loo_rows}; WAIC and PSIS-LOO need {FEWEST_DRAWS} "
            "draws and 2 rows, or more."
        )
    sampled = _sampled(rows, n_loo_rows, seed) if left_out else np.empty(0, int)
    sums = _Sums(left_out, pointwise)
    for found in pieces_in_threads(
        rows, _Terms(function, draws, sampled), "Log-densities", progressbar
    ):
        sums.add(*found)
    if not np.isfinite(sums.total):
        warnings.warn("some rows have density zero at all draws: elpd is infinite.", stacklevel=2)
    common: dict[str, Any] = {
        "n_samples": len(draws),
        "n_data_points": sums.n_rows,
        "elpd_i": np.concatenate(sums.terms) if pointwise else None,
    }
    if not left_out:
        return LogPredictive(sums.total, sums.standard_error(), **common)
    result = _leave_one_out(sums, function, all_draws, common)
    _warn_of_rows(result)
    return result


def _sampled(rows: AllRows, n_sampled: int, seed: int) -> np.ndarray:
    """Draw rows, by their numbers, in order: the same ones for any model of these rows."""
    n_rows = rows.n_rows
    if n_rows is None:
        n_rows = sum(len(batch[0]) for piece in rows.read() for batch in piece)
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(n_rows, min(n_sampled, n_rows), replace=False))


class _Sums:
    """What the rows of a pass add up to.

    Parameters
    ----------
    left_out : bool
        Whether each row's term is that of WAIC, or its log predictive density.
    pointwise : bool
        Whether to keep the terms.
    """

    def __init__(self, left_out: bool, pointwise: bool):
        self._left_out, self._pointwise = left_out, pointwise
        self._totals = CompensatedSum()
        self.n_rows = self.high_variance = 0
        self.terms: list[np.ndarray] = []
        self.sample: list[Batch] = []

    def add(self, density: np.ndarray, variance: np.ndarray, sample: list[Batch]) -> None:
        """Add what the rows of a piece come to."""
        terms = density - variance if self._left_out else density
        self._totals.add(np.array([terms.sum(), np.square(terms).sum(), variance.sum()]))
        self.n_rows += len(terms)
        self.high_variance += int(np.sum(~(variance <= HIGH_VARIANCE)))
        self.sample += sample
        if self._pointwise:
            self.terms.append(terms)

    @property
    def total(self) -> float:
        return float(self._totals.value[0])

    @property
    def variance(self) -> float:
        return float(self._totals.value[2])

    def standard_error(self, total: float | None = None, squares: float = 0.0) -> float:
        """Return that of the sum; or of another total, with so much more as the sum of squares."""
        total = self.total if total is None else total
        with np.errstate(invalid="ignore"):  # of an infinite sum there is none
            spread = self._totals.value[1] + squares - total**2 / self.n_rows
            return float(np.sqrt(np.maximum(spread, 0) * self.n_rows / max(self.n_rows - 1, 1)))


def _leave_one_out(
    sums: _Sums, function: RowFunction, draws: list[Draw], common: dict[str, Any]
) -> LeaveOneOut:
    """Correct WAIC by what PSIS-LOO differs from it on the sample of rows."""
    from arviz_stats.base import array_stats

    logp = np.concatenate(
        [_log_densities(function, draws, batch) for batch in function.batches(sums.sample)], axis=1
    )
    (n_draws, n_sampled), n_rows = logp.shape, sums.n_rows
    log_weights, pareto_k = array_stats.psislw(logp.T)
    # Nothing but rounding: no tail to fit.
    pareto_k = np.where(np.ptp(logp, axis=0) < 1e-6, -np.inf, pareto_k)
    loo = np.logaddexp.reduce(log_weights.T + logp)
    waic = np.logaddexp.reduce(logp) - np.log(n_draws) - logp.var(axis=0, ddof=1)
    difference = loo - waic  # at the same draws, so that chance in them does not count
    elpd = float(sums.total + n_rows * difference.mean())
    # Nothing is left to chance where all rows are in the sample.
    subsampling = (n_rows - n_sampled) * n_rows * np.var(difference, ddof=1) / n_sampled
    squares = n_rows * np.mean(loo**2 - waic**2) + subsampling / n_rows
    return LeaveOneOut(
        elpd,
        sums.standard_error(elpd, squares),
        subsampling_se=float(np.sqrt(subsampling)),
        p=sums.total + sums.variance - elpd,
        elpd_waic=sums.total,
        p_waic=sums.variance,
        high_variance=sums.high_variance,
        pareto_k=pareto_k,
        good_k=min(1 - 1 / np.log10(n_draws), 0.7),  # as ArviZ has it
        **common,
    )


def _warn_of_rows(result: LeaveOneOut) -> None:
    if result.high_variance:
        warnings.warn(
            f"{result.high_variance:,} of {result.n_data_points:,} rows have a log-density whose "
            f"variance over the draws is above {HIGH_VARIANCE}: their terms of WAIC are not to be "
            "relied on, and PSIS-LOO takes their place only for those that are in its sample.",
            stacklevel=3,
        )
    if result._n_bad:
        warnings.warn(
            f"{result._n_bad:,} of the {len(result.pareto_k):,} rows that PSIS-LOO was tried on have "
            f"a Pareto k above {result.good_k:.2g}: it is not to be relied on. Use a model that single "
            "rows move less, or more draws.",
            stacklevel=3,
        )


def _log_densities(function: RowFunction, draws: list[Draw], batch: Batch) -> np.ndarray:
    """Evaluate each row of a batch at each draw."""
    arrays, n_rows = function.arrays(batch), len(batch[0])
    logp = np.empty((len(draws), n_rows))
    for i, draw in enumerate(draws):
        logp[i] = function(draw, arrays)[:n_rows]
    return logp


class _Terms:
    """What rows come to: log predictive density, and variance of the log-density over draws.

    Parameters
    ----------
    function : RowFunction
        The log-density.
    draws : list
        The draws.
    sampled : ndarray
        Numbers of rows that are kept, in order.
    """

    def __init__(self, function: RowFunction, draws: list[Draw], sampled: np.ndarray):
        self._function, self._draws, self._sampled = function, draws, sampled

    def __call__(
        self, first: int, piece: list[Batch]
    ) -> tuple[np.ndarray, np.ndarray, list[Batch]]:
        """Return density and variance of each row of a piece, and the rows in the sample."""
        sample = []
        for batch in piece:
            low, high = np.searchsorted(self._sampled, [first, first + len(batch[0])])
            if low < high:
                sample.append([values[self._sampled[low:high] - first] for values in batch])
            first += len(batch[0])
        density, variance = map(np.concatenate, zip(*map(self._of_batch, piece)))
        return density, variance, sample

    def _of_batch(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        n_draws, n_rows = len(self._draws), len(batch[0])
        step = max(1, BLOCK_SIZE // n_rows)
        density, start = np.full(n_rows, -np.inf), None
        total = squares = np.zeros(n_rows)
        with np.errstate(invalid="ignore", divide="ignore"):  # of rows with density zero
            for i in range(0, n_draws, step):
                logp = _log_densities(self._function, self._draws[i : i + step], batch)
                start = logp[0].copy() if start is None else start
                highest = logp.max(axis=0)
                # Minus infinity less itself is no number.
                highest[np.isneginf(highest)] = 0
                density = np.logaddexp(
                    density, highest + np.log(np.exp(logp - highest).sum(axis=0))
                )
                logp -= start
                total = total + logp.sum(axis=0)
                squares = squares + np.square(logp, out=logp).sum(axis=0)
            variance = np.maximum(squares - total**2 / n_draws, 0) / max(1, n_draws - 1)
        return density - np.log(n_draws), variance
