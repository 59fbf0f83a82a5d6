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

"""How good is a fit? An approximation against the log-density over all rows."""

import html
import time

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pymc.streams.position import Seed, seed_of
from pymc.variational.approximations import FullRankGroup, MeanFieldGroup
from pymc.variational.control_variates import ControlVariates, pareto_k
from pymc.variational.full_data_logp import FullDataLogp

__all__ = ["FitReport", "fit_report"]

# What is said to be wrong: a distance of a mean in sds, a ratio of sds, and Pareto k.
FAR_MEAN, FAR_SD, LARGE_K = 0.5, 1.5, 0.7
# An error of the estimated log-densities, as a share of the sd of the log ratios, or of one nat.
LARGE_ERROR = 0.1
# Draws at which the estimated log-densities are compared with those of all rows.
CHECKED_DRAWS = 4
FEWEST_DRAWS = 25
SHOWN = 20

MEAN, VS_MEAN_FIELD, VS_MARGINAL = "mean - mode", "sd / mean-field", "sd / marginal"
FORMATS = {
    "mean": "{:.4g}".format,
    "sd": "{:.3g}".format,
    MEAN: "{:z.2f}".format,
    VS_MEAN_FIELD: "{:.3g}".format,
    VS_MARGINAL: "{:.3g}".format,
}


@dataclass(frozen=True)
class FitReport:
    """How far an approximation is from the posterior of all rows.

    Attributes
    ----------
    table : DataFrame
        A row for each unconstrained parameter. ``mean``, ``sd``: of the approximation.
        ``mean - mode``: in marginal sds of the posterior. ``sd / mean-field``: against the sd of
        the best mean-field approximation. ``sd / marginal``: against the marginal sd of the
        posterior. The posterior is the normal one of the curvature at the mean; NaN where that is
        none.
    full_rank : bool
        Whether the approximation has correlations.
    pareto_k : float
        Shape of the tail of the importance ratios: above 0.7 the approximation misses some of the
        posterior.
    elbo, elbo_error : float
        Evidence lower bound, and its Monte Carlo standard error.
    estimate_error : float
        Largest error of an estimated log-density, in nats, at a few draws.
    n_rows : int
        Rows of the model's streams and minibatches; 0 where it has none.
    n_passes : int
        Passes in which the log-density of all of them was evaluated. Drawing a sample of them takes
        another one, without.
    seconds : float
        Time that the report took, with compilation.
    findings : tuple of str
        What is wrong, in words.
    """

    table: pd.DataFrame
    full_rank: bool
    pareto_k: float
    elbo: float
    elbo_error: float
    estimate_error: float
    n_rows: int
    n_passes: int
    seconds: float
    findings: tuple[str, ...]

    def _title(self) -> tuple[str, str]:
        family = "full-rank" if self.full_rank else "mean-field"
        rows = f"all {self.n_rows:,} rows ({self.n_passes} passes)" if self.n_rows else "all data"
        return (
            f"A {family} fit against {rows}, in {self.seconds:.1f} s",
            f"Pareto k {self.pareto_k:.2f}, ELBO {self.elbo:.2f} ± {self.elbo_error:.2g}; "
            f"log-densities estimated within {self.estimate_error:.1g} nats",
        )

    def _worst(self) -> pd.DataFrame:
        """Return the rows to show: all, or those that are furthest off, the worst first."""
        if len(self.table) <= SHOWN:
            return self.table
        sds = np.log(self.table[VS_MARGINAL if self.full_rank else VS_MEAN_FIELD]).abs()
        off = np.maximum(self.table[MEAN].abs() / FAR_MEAN, sds / np.log(FAR_SD)).fillna(0)
        return self.table.iloc[np.argsort(-off.to_numpy(), stable=True)[:SHOWN]]

    def _hidden(self) -> str:
        if len(self.table) <= SHOWN:
            return ""
        return f"The {SHOWN} worst of {len(self.table)} parameters; all are in report.table"

    def __repr__(self) -> str:
        table = self._worst().to_string(formatters=FORMATS)
        findings = [f"- {finding}" for finding in self.findings]
        return "\n".join(filter(None, [*self._title(), table, self._hidden(), *findings]))

    def _repr_html_(self) -> str:
        table = self._worst().to_html(formatters=FORMATS)
        findings = "".join(f"<li>{html.escape(finding)}</li>" for finding in self.findings)
        title = "<br>".join(self._title())
        return f"<p>{title}</p>{table}<p>{self._hidden()}</p><ul>{findings}</ul>"

    def plot(self) -> Any:
        """Draw the approximation of each parameter against the posterior.

        Returns
        -------
        matplotlib.figure.Figure
            Mean and sd of each parameter, or of the 20 worst, in marginal sds of the posterior from
            its mode.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install matplotlib") from error
        table = self._worst()
        figure = Figure(figsize=(8, 1.5 + 0.3 * len(table)), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(table))
        axes.axvspan(-1, 1, color="C1", alpha=0.3, label="posterior")
        axes.errorbar(
            table[MEAN], places, xerr=table[VS_MARGINAL], fmt="o", color="C0", label="approximation"
        )
        axes.set_yticks(places, table.index)
        axes.invert_yaxis()
        axes.set_xlabel("distance from the mode, in sds of the posterior")
        axes.set_title("Mean ± sd", fontsize="medium")
        figure.legend(loc="outside upper right")
        return figure


def fit_report(
    approx: Any,
    *,
    n_draws: int = 1000,
    random_seed: Seed = None,
    progressbar: bool = True,
    executor: Executor | None = None,
) -> FitReport:
    """Report how good a fit is, against all rows.

    Two passes over the rows: value, gradient and Hessian of the log-density at the mean, from
    where a Newton step leads to the mode; and its values at 4 draws, against which those that are
    estimated from a random sample of 20,000 rows are checked.

    Parameters
    ----------
    approx : Approximation
        What ``pm.fit`` returned: with ``method="advi"``, ``"fullrank_advi"`` or ``"laplace"``, on
        data that are streamed, or in memory. Streams must be such that can be read again.
    n_draws : int, default 1000
        Draws for Pareto k and the ELBO.
    random_seed : int, Generator or SeedSequence, optional
        For the draws and the sample of rows.
    progressbar : bool, default True
        Whether to show the progress of each pass.
    executor : Executor, optional
        What makes the passes: see :class:`FullDataLogp`.

    Returns
    -------
    FitReport
        A table that prints, with a plot, and what is wrong in words.

    Raises
    ------
    TypeError
        If the approximation is not one normal distribution of all parameters.
    ValueError
        If there are too few draws, or a stream can be read only once.

    Warns
    -----
    UserWarning
        If a ``Potential`` uses a stream. It counts as :class:`FullDataLogp` counts it: one with a
        factor N / batch_size, as minibatch ADVI needs it, counts too much, and the report is wrong.

    Notes
    -----
    All is about the unconstrained parameters, in which ADVI works. The mean of the best
    approximation is not the mode where the posterior is skewed: with few rows, or for a parameter
    that few rows tell of. The gradient of the ELBO at the mean tells the two apart.

    Pareto k is that of the importance ratios of posterior and approximation [1]_; their
    log-densities are those of a sample of rows with control variates [2]_.

    References
    ----------
    .. [1] Yao, Y., Vehtari, A., Simpson, D., and Gelman, A. (2018). Yes, but did it work?:
       Evaluating variational inference. ICML 2018, 5581-5590.
    .. [2] Baker, J., Fearnhead, P., Fox, E. B., and Nemeth, C. (2019). Control variates for
       stochastic gradient MCMC. Statistics and Computing, 29, 599-615.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc as pm
    >>> from pymc.variational.streaming import StreamingDataset, fit_report
    >>> rows = {"y": np.arange(10_000) % 10}
    >>> with pm.Model():
    ...     ds = StreamingDataset(rows, batch_size=512, check_order="ignore")
    ...     mu = pm.Normal("mu", 0, 10)
    ...     obs = pm.Normal("obs", mu, 1, observed=ds["y"], total_size=ds.total_size)
    ...     approx = pm.fit(100, method="advi", progressbar=False)
    >>> report = fit_report(approx, progressbar=False)
    >>> bool(report.table["sd / marginal"]["mu"] > 50)
    True
    """
    if n_draws < FEWEST_DRAWS:
        raise ValueError(f"n_draws is {n_draws}; Pareto k needs {FEWEST_DRAWS} draws or more.")
    start, seed = time.perf_counter(), seed_of(random_seed)
    group = _normal_group(approx)
    full = FullDataLogp(approx.model, progressbar=progressbar, executor=executor)
    mean, scale = _mean_and_scale(group, full)
    values = full.d2logp(mean)
    z = np.random.default_rng(seed).normal(size=(n_draws, len(mean)))
    draws = mean + z @ scale.T
    logp = ControlVariates(full, mean, values=values, random_seed=seed).logp(draws)
    log_normal = -np.square(z).sum(axis=1) / 2 - len(mean) * np.log(2 * np.pi) / 2
    log_ratios = logp - (log_normal - np.linalg.slogdet(scale)[1])
    estimate_error = float(np.abs(logp[:CHECKED_DRAWS] - full.logp(draws[:CHECKED_DRAWS])).max())
    k, spread = pareto_k(log_ratios), float(np.std(log_ratios))
    full_rank = isinstance(group, FullRankGroup)
    # What each draw says of the gradient of the ELBO in the mean.
    gradients = np.linalg.solve(scale.T, z.T) * (log_ratios - log_ratios.mean())
    sd = np.sqrt(np.square(scale).sum(axis=1))
    table, off_best, unbounded = _table(full.names, mean, sd, values, gradients)
    findings = [
        _about_curvature(unbounded),
        _about_means(table, off_best),
        _about_sds(table, full_rank),
        _about_k(k),
        _about_estimate(estimate_error, spread),
    ]
    return FitReport(
        table=table,
        full_rank=full_rank,
        pareto_k=k,
        elbo=float(log_ratios.mean()),
        elbo_error=spread / n_draws**0.5,
        estimate_error=estimate_error,
        n_rows=full.n_rows or 0,
        n_passes=full.n_passes,
        seconds=time.perf_counter() - start,
        findings=tuple(filter(None, findings)),
    )


def _normal_group(approx: Any) -> MeanFieldGroup | FullRankGroup:
    groups = getattr(approx, "groups", [])
    if len(groups) != 1 or not isinstance(groups[0], MeanFieldGroup | FullRankGroup):
        raise TypeError(
            "fit_report takes an approximation that is one normal distribution of all parameters: "
            "what pm.fit returns with method='advi', 'fullrank_advi' or 'laplace'. Got "
            f"{approx if groups else type(approx)}."
        )
    return groups[0]


def _mean_and_scale(group: Any, full: FullDataLogp) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean, and a matrix that times its transpose is the covariance: in order of ``full``."""
    scale = group.L.eval() if isinstance(group, FullRankGroup) else np.diag(group.std.eval())
    places = np.arange(group.ddim)
    order = full.ravel(
        {name: places[part].reshape(shape) for name, part, shape, _ in group.ordering.values()}
    )
    return group.mean.eval()[order].astype("float64"), scale[order].astype("float64")


def _table(
    names: list[str],
    mean: np.ndarray,
    sd: np.ndarray,
    values: tuple[float, np.ndarray, np.ndarray],
    elbo_gradients: np.ndarray,
) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """Return the table, how far means are from the ELBO's best, and parameters without curvature."""
    _, gradient, hessian = values
    table = pd.DataFrame({"mean": mean, "sd": sd}, index=names)
    table[[MEAN, VS_MEAN_FIELD, VS_MARGINAL]] = np.nan
    off_best = np.full(len(names), np.inf)
    # In sds of the approximation, so that the units of the parameters do not matter.
    precision = -hessian * np.outer(sd, sd)
    if not np.isfinite(precision).all():
        finite = np.isfinite(precision).all(axis=1)
        return table, off_best, [name for name, is_finite in zip(names, finite) if not is_finite]
    eigenvalues, directions = np.linalg.eigh(precision)
    wrong = eigenvalues <= len(names) * np.finfo(float).eps * np.abs(eigenvalues).max()
    if wrong.any():
        largest = np.abs(directions[:, wrong]).argmax(axis=0)
        return table, off_best, [names[i] for i in np.unique(largest)]
    covariance = np.linalg.inv(precision)
    marginal = np.sqrt(np.diag(covariance))
    steps = covariance * sd / marginal[:, None]
    table[MEAN] = -steps @ gradient
    off = steps @ elbo_gradients
    off_best = np.abs(off.mean(axis=1)) + 2 * off.std(axis=1) / off.shape[1] ** 0.5
    table[VS_MEAN_FIELD] = np.sqrt(np.diag(precision))
    table[VS_MARGINAL] = 1 / marginal
    return table, off_best, []


def _about_curvature(unbounded: list[str]) -> str:
    if not unbounded:
        return ""
    names = ", ".join(unbounded[:5]) + (", ..." if len(unbounded) > 5 else "")
    return (
        "The negative Hessian at the mean is not positive definite, in the direction of "
        f"{names}: there is no normal posterior to compare with. Either the mean is far "
        "from the mode, or the data and the prior do not determine these parameters."
    )


def _about_means(table: pd.DataFrame, off_best: np.ndarray) -> str:
    off = table[MEAN].abs()
    is_off = off > FAR_MEAN
    if not is_off.any():
        return ""
    wrong = is_off & (off_best > FAR_MEAN)
    picked = off[wrong if wrong.any() else is_off]
    told = (
        f"{len(picked)} of {len(table)} means are more than {FAR_MEAN} posterior sds from the mode: "
        f"{picked.idxmax()} by {picked.max():.2g}. "
    )
    skewed = "The ELBO is largest about there: the posterior is skewed, its mean is not its mode."
    more = "Fit with more steps and a learning rate that falls, or with method='laplace'."
    return told + (more if wrong.any() else skewed)


def _about_sds(table: pd.DataFrame, full_rank: bool) -> str:
    own, whose = (
        (VS_MARGINAL, "the posterior's") if full_rank else (VS_MEAN_FIELD, "mean-field's best")
    )
    off = np.log(table[own]).abs()
    n_off = int((off > np.log(FAR_SD)).sum())
    if n_off:
        return (
            f"{n_off} of {len(table)} sds are more than {FAR_SD} times off {whose}: "
            f"that of {off.idxmax()} is {table[own][off.idxmax()]:.2g} times it. Fit with more steps "
            "and a learning rate that falls, or with method='laplace'."
        )
    share = table[VS_MARGINAL]
    n_narrow = int((share < 1 / FAR_SD).sum())
    if n_narrow:
        return (
            f"{n_narrow} of {len(table)} sds are less than 1 / {FAR_SD} of the posterior's, as far as "
            f"mean-field can reach: that of {share.idxmin()} is {share.min():.2g} of it. The "
            "parameters are correlated: fit with method='fullrank_advi' or 'laplace'."
        )
    return ""


def _about_k(k: float) -> str:
    if k <= LARGE_K:
        return ""
    return (
        f"Pareto k is {k:.2f}, not below {LARGE_K}: the approximation misses some of the posterior. "
        "Where means and sds are right, the posterior is not normal: parametrize the model "
        "otherwise, or sample it with pm.sample."
    )


def _about_estimate(error: float, spread: float) -> str:
    if error <= LARGE_ERROR * max(1, spread):
        return ""
    return (
        f"A log-density that was estimated from a sample of rows is off by {error:.2g} nats: "
        "Pareto k and ELBO are not to be relied on."
    )
