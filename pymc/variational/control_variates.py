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
"""The log-density over all rows, estimated from a sample of them that is corrected around a point."""

from typing import Any

import numpy as np

from pymc.streams.position import Seed
from pymc.variational.full_data_logp import FullDataLogp


class ControlVariates:
    r"""Estimate the log-density over all rows from a random sample of them, near a point.

    Parameters
    ----------
    full : FullDataLogp
        The log-density over all rows.
    at : ndarray of shape (p,)
        The point: close to the mode.
    values : tuple, optional
        ``full.d2logp(at)``, if it is known. Default: one pass.
    n_rows : int, default 20_000
        Rows of each stream in the sample.
    random_seed : int, Generator or SeedSequence, optional
        Where they are drawn from.
    hessian : bool, default True
        Whether the Hessian is corrected too, for which ``values`` has one.

    Attributes
    ----------
    at : ndarray
        The point.
    sample : FullDataLogp
        The log-density over the sample, each row of which counts N / n times.
    correction : tuple
        Value, gradient and, unless it was left out, Hessian at the point: those over all rows less
        those over the sample.

    Notes
    -----
    With :math:`u = q - q_0`, and :math:`\ell_N` over all rows and :math:`\ell_n` over the sample,

    .. math::

        \ell_N(q) \approx \ell_n(q) + (\ell_N - \ell_n)(q_0) + (g_N - g_n)^T u
            + \tfrac{1}{2} u^T (H_N - H_n) u

    is unbiased over samples. What is left to chance is what the rows add beyond the second order
    [1]_, [2]_. Prior and Jacobian terms, which are the same in both, are exact; so is everything
    where the sample holds all rows, and for a model of data in memory.

    References
    ----------
    .. [1] Baker, J., Fearnhead, P., Fox, E. B., and Nemeth, C. (2019). Control variates for
       stochastic gradient MCMC. Statistics and Computing, 29, 599-615.
    .. [2] Quiroz, M., Kohn, R., Villani, M., and Tran, M.-N. (2019). Speeding up MCMC by efficient
       data subsampling. Journal of the American Statistical Association, 114, 831-843.
    """

    def __init__(
        self,
        full: FullDataLogp,
        at: np.ndarray,
        *,
        values: tuple[Any, ...] | None = None,
        n_rows: int = 20_000,
        random_seed: Seed = None,
        hessian: bool = True,
    ):
        self.at = np.asarray(at, dtype="float64")
        self.sample = full.sample(n_rows, random_seed)
        in_sample = self.sample.d2logp(self.at) if hessian else self.sample.dlogp(self.at)
        if values is None:
            values = full.d2logp(self.at) if hessian else full.dlogp(self.at)
        self.correction = tuple(v - s for v, s in zip(values, in_sample))

    def logp(self, q: np.ndarray) -> np.ndarray:
        """Estimate the log-density at K points.

        Parameters
        ----------
        q : ndarray of shape (K, p)
            The points.

        Returns
        -------
        ndarray of shape (K,)
        """
        value, gradient, *hessian = self.correction
        u = q - self.at
        logp = self.sample.logp(q) + value + u @ gradient
        return logp + sum(((u @ h) * u).sum(axis=1) / 2 for h in hessian)


def pareto_k(log_ratios: np.ndarray) -> float:
    """Return Pareto k of importance ratios: above 0.7 they say that one density misses the other.

    Parameters
    ----------
    log_ratios : ndarray of shape (K,)
        Logarithms of p / q at K independent draws from q.

    Returns
    -------
    float
        The estimate of ArviZ. ``-inf`` where all ratios are equal, ``inf`` where a few of them
        are all that counts, and NaN where one of them is NaN or infinite, or none is above 0.
    """
    return smoothed(log_ratios)[1]


def smoothed(log_ratios: np.ndarray) -> tuple[np.ndarray, float]:
    """Smooth importance ratios: their largest are replaced by those of a Pareto distribution.

    Parameters
    ----------
    log_ratios : ndarray of shape (K,)
        Logarithms of p / q at K independent draws from q.

    Returns
    -------
    weights : ndarray of shape (K,)
        They add up to 1. Equal ones where a ratio is NaN or infinite, or none is above 0.
    k : float
        See :func:`pareto_k`.
    """
    from arviz_stats.base import array_stats

    equal = np.full(len(log_ratios), 1 / len(log_ratios))
    if not np.isfinite(np.max(log_ratios)):
        return equal, np.nan
    # Nothing but rounding: no tail to fit.
    if np.ptp(log_ratios) < 1e-6:
        return equal, -np.inf
    # ArviZ takes what it is to divide by: the log-likelihood, in leave-one-out cross-validation.
    log_weights, k = array_stats.psislw(-log_ratios)
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum(), np.inf if np.isnan(k) else float(k)
