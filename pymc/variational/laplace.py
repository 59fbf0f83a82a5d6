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
"""Laplace's approximation: the normal density at the mode, with the curvature of all rows there."""

import logging
import warnings

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from pytensor import config
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pymc.initial_point import make_initial_point_fn
from pymc.model import modelcontext
from pymc.pytensorf import resolve_backend_compile_kwargs
from pymc.streams.position import Seed
from pymc.variational.approximations import FullRank
from pymc.variational.fit_check import FitConvergenceWarning
from pymc.variational.full_data_logp import FullDataLogp
from pymc.variational.inference import Inference
from pymc.variational.logp_terms import largest_data
from pymc.variational.operators import KL

_log = logging.getLogger(__name__)

# Gives log-density, gradient and Hessian.
D2Logp = Callable[[np.ndarray], tuple[float, np.ndarray, np.ndarray]]

# Rows in memory: those that the modes are searched with, and those that the passes start from.
SEARCH_ROWS = 20_000
SAMPLE_ROWS = 200_000
SAMPLE_BYTES = 64 * 2**20
N_JITTERED = 4

MAX_STEPS = 100
# Of the Newton decrement: the distance from the mode in posterior sds.
TOLERANCE = 0.01
# Newton's method makes it quadratically smaller near a mode.
QUADRATIC = 0.05
MAX_DAMPING = 1e8
# Gains below it, relative to the log-density, are rounding.
ROUNDING = 1e-8

# An optimum with less of the mass than this does not matter.
LEAST_MASS = 0.01
# Draws that the normal density is compared at, and rows that are evaluated for them.
N_DRAWS = 1000
EVALUATED_ROWS = 5 * SEARCH_ROWS * N_DRAWS
GOOD_K = 0.7
# How far from the mode a mean may be, in posterior sds.
MEAN_SDS = 0.3


class NoModeError(ValueError):
    """Newton's method came to no peak of the log-density."""


class Mode(NamedTuple):
    """The mode of a log-density over all rows, and its curvature.

    Attributes
    ----------
    q : ndarray of shape (p,)
        The mode: a Newton step from the point of the last pass.
    at : ndarray of shape (p,)
        The point of the last pass.
    logp : float
        The log-density over all rows there.
    gradient : ndarray of shape (p,)
        Its gradient there.
    precision : ndarray of shape (p, p)
        Its negative Hessian there.
    covariance : ndarray of shape (p, p)
        The inverse of the precision.
    decrement : float
        The Newton decrement there: how far the point was from the mode, in posterior sds.
    logps : list of float
        The log-density after each step.
    n_passes : int
        Passes over all rows that were made.
    n_sampled : int
        Rows that the passes were started from.
    sample : FullDataLogp
        The log-density over them.
    """

    q: np.ndarray
    at: np.ndarray
    logp: float
    gradient: np.ndarray
    precision: np.ndarray
    covariance: np.ndarray
    decrement: float
    logps: list[float]
    n_passes: int
    n_sampled: int
    sample: FullDataLogp


def find_mode(
    full: FullDataLogp,
    *,
    start: dict[str, Any] | None = None,
    random_seed: Seed = None,
    progressbar: bool = True,
    n_steps: int = MAX_STEPS,
) -> Mode:
    """Find the mode of a log-density by Newton's method, and its curvature there.

    Newton's method on a random sample of rows in memory, from the initial point of the model and
    jittered ones, says where the passes start: two are enough for millions of rows. Rows that fit
    in the sample are read once.

    Parameters
    ----------
    full : FullDataLogp
        The log-density.
    start : dict, optional
        Initial values, as for :func:`pymc.fit`. No other point is tried then.
    random_seed : int, Generator or SeedSequence, optional
        Of the sample and the jitter.
    progressbar : bool, default True
        Whether the search on the sample shows that it goes on.
    n_steps : int, default 100
        The most steps on passes over all rows.

    Returns
    -------
    Mode

    Raises
    ------
    ValueError
        If there is no peak where the steps end: names the parameters.

    Warns
    -----
    FitConvergenceWarning
        If there is another mode that matters, or the last step was a long one.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc as pm
    >>> from pymc.variational.full_data_logp import FullDataLogp
    >>> from pymc.variational.laplace import find_mode
    >>> with pm.Model() as model:
    ...     mu = pm.Normal("mu", 0, 10)
    ...     obs = pm.Normal("obs", mu, 1, observed=np.arange(100) % 10)
    >>> mode = find_mode(FullDataLogp(model, progressbar=False), progressbar=False)
    >>> mode.q.round(3), mode.covariance.round(4)
    (array([4.5]), array([[0.01]]))
    """
    rng = np.random.default_rng(random_seed)
    starts = _starts(full, start, rng)
    n_before = full.n_passes
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, disable=not progressbar) as progress:
        progress.add_task("Looking for the mode", total=None)
        sample = full.sample(sample_size(full), rng)
        climbs = _climbs(sample.sample(SEARCH_ROWS, rng), starts)
        if (sample.n_rows or 0) > SEARCH_ROWS:
            climbs = _climbs(sample, _promising(climbs) or starts[:1])
    if weight_of(sample) > 1:
        error = 3 * (full.n_rows or 0) / np.sqrt(sample.n_rows or 1)
        climbs = _climbs(full, _promising(climbs, error) or starts[:1], n_steps)
    best, *others = climbs
    if best.problem is not None:
        raise NoModeError(_no_peak(full.names, *best.problem))
    if not best.converged:
        warnings.warn(
            f"Newton's method has not converged after {len(best.logps) - 1} steps: the next one is "
            f"{best.point.decrement:.2g} posterior sds long. Give it more steps, or another start.",
            FitConvergenceWarning,
            stacklevel=2,
        )
    _warn_of_others(full.names, best, others)
    point = best.point
    return Mode(
        q=best.q,
        at=point.q,
        logp=point.logp,
        gradient=point.gradient,
        precision=point.precision,
        covariance=point.covariance,
        decrement=point.decrement,
        logps=best.logps,
        n_passes=full.n_passes - n_before,
        n_sampled=sample.n_rows or 0,
        sample=sample,
    )


class _Point:
    """A log-density, its gradient and its curvature at a point.

    The curvature is that of parameters scaled to unit diagonal, so that units do not matter.
    """

    def __init__(self, d2logp: D2Logp, q: np.ndarray):
        self.q = q
        self.logp, self.gradient, hessian = d2logp(q)
        self.precision = -hessian
        self.is_finite = all(np.isfinite(v).all() for v in (self.logp, self.gradient, hessian))
        if self.is_finite:
            diagonal = np.abs(np.diag(hessian))
            self.scale = 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1))
            self.curvatures, self.directions = np.linalg.eigh(
                self.precision * self.scale * self.scale[:, None]
            )
            self.flat = 1e3 * len(q) * np.finfo(config.floatX).eps

    def step(self, damping: float = 0.0) -> np.ndarray:
        """Return the Newton step, uphill also where the log-density curves upwards."""
        curvatures = np.maximum(np.abs(self.curvatures), self.flat) + damping
        along = self.directions.T @ (self.scale * self.gradient)
        return self.scale * (self.directions @ (along / curvatures))

    @cached_property
    def decrement(self) -> float:
        return float(np.sqrt(self.gradient @ self.step()))

    @property
    def is_peak(self) -> bool:
        return self.is_finite and bool(self.curvatures[0] > self.flat)

    @property
    def factor(self) -> np.ndarray:
        return self.scale[:, None] * self.directions / np.sqrt(self.curvatures)

    @property
    def covariance(self) -> np.ndarray:
        return self.factor @ self.factor.T


class _Climb(NamedTuple):
    """Where steps uphill have led."""

    point: _Point
    before: _Point | None
    logps: list[float]

    @property
    def converged(self) -> bool:
        return self.point.is_finite and _converged(self.point, self.before)

    @property
    def rank(self) -> tuple[bool, bool, float]:
        is_peak = self.problem is None
        return is_peak, is_peak and self.converged, self.log_mass if is_peak else 0.0

    @property
    def q(self) -> np.ndarray:
        return self.point.q + self.point.step()

    @property
    def log_mass(self) -> float:
        """The log of the integral of the normal density, up to a constant."""
        point = self.point
        log_determinant = np.log(point.curvatures).sum() - 2 * np.log(point.scale).sum()
        return point.logp + point.decrement**2 / 2 - log_determinant / 2

    @property
    def problem(self) -> tuple[str, np.ndarray] | None:
        """What is wrong with the point as a peak, and the direction in which, in its scale."""
        point, before = self.point, self.before
        if not point.is_finite:
            return "is not finite at", np.ones(len(point.q))
        if np.diag(point.precision).min() <= 0:
            return "does not curve downwards in", np.diag(point.precision) <= 0
        if point.curvatures[0] <= point.flat:
            saddle = point.curvatures[0] < -point.flat
            return "is a saddle in" if saddle else "is flat in", point.directions[:, 0]
        # Within a tenth of a posterior sd the curvature of a peak stays what it is.
        if before is not None and before.decrement < 0.1:
            ratios, directions = _curvature_before(point, before)
            if ratios[-1] > 2:
                return "levels off, and goes up without end in", directions[:, -1]
        return None


def climb(d2logp: D2Logp, q: np.ndarray, n_steps: int) -> _Climb:
    """Go uphill by Newton's method, with steps that are damped where they do not lead up."""
    point, before, damping = _Point(d2logp, q), None, 0.0
    logps = [point.logp]
    for _ in range(n_steps if point.is_finite else 0):
        if _converged(point, before) or damping > MAX_DAMPING:
            break
        step = point.step(damping)
        trial = _Point(d2logp, point.q + step)
        enough = 1e-4 * (point.gradient @ step) - ROUNDING * abs(point.logp)
        if trial.is_finite and trial.logp - point.logp >= enough:
            point, before = trial, point
            logps.append(point.logp)
            damping = damping / 10 if damping > 0.1 else 0.0
        else:
            damping = max(10 * damping, 0.1)
    return _Climb(point, before, logps)


def _converged(point: _Point, before: _Point | None) -> bool:
    if point.decrement <= TOLERANCE:
        return True
    if before is None or point.decrement > min(1, QUADRATIC * before.decrement):
        return False
    # Where the curvature hardly changes over a step, the next one leaves next to nothing.
    if point.curvatures[0] <= point.flat:
        return False
    ratios, _ = _curvature_before(point, before)
    return bool(np.abs(ratios - 1).max() < 0.1)


def _curvature_before(point: _Point, before: _Point) -> tuple[np.ndarray, np.ndarray]:
    """Compare the curvature of a point before with that of a peak.

    Returns
    -------
    ratios : ndarray of shape (p,)
        In ascending order.
    directions : ndarray of shape (p, p)
        Of each ratio, in the scale of the peak.
    """
    whitened = point.directions / np.sqrt(point.curvatures)
    factor = point.scale[:, None] * whitened
    ratios, directions = np.linalg.eigh(factor.T @ before.precision @ factor)
    return ratios, whitened @ directions


def _climbs(full: FullDataLogp, starts: list[np.ndarray], n_steps: int = MAX_STEPS) -> list[_Climb]:
    """Go uphill from each start, and return where that led: the best peak first."""
    climbs: list[_Climb] = []
    for start in starts:
        end = climb(full.d2logp, start, n_steps)
        if end.problem is not None or not any(_same(end, other) for other in climbs):
            climbs.append(end)
    return sorted(climbs, key=lambda end: end.rank, reverse=True)


def _same(one: _Climb, other: _Climb) -> bool:
    """Tell whether two peaks are one: less than a posterior sd apart."""
    apart = one.q - other.q
    return float(apart @ one.point.precision @ apart) < 1


def _promising(climbs: list[_Climb], error: float = 0.0) -> list[np.ndarray]:
    """Return the peaks over a sample that may be the mode over all rows."""
    peaks = [end for end in climbs if end.problem is None and end.converged]
    least = peaks[0].log_mass + np.log(LEAST_MASS) - error if peaks else 0.0
    return [peak.q for peak in peaks if peak.log_mass > least]


def _starts(
    full: FullDataLogp, start: dict[str, Any] | None, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return the initial point of a model, and jittered ones where none was asked for."""
    n_jittered = 0 if start else N_JITTERED
    starts = []
    for jittered, n in ((set(), 1), (set(full.model.free_RVs), n_jittered)):
        if n:
            draw = make_initial_point_fn(
                model=full.model, overrides=start, jitter_rvs=jittered, return_transformed=True
            )
            starts += [full.ravel(draw(int(rng.integers(2**30)))) for _ in range(n)]
    return starts


def sample_size(full: FullDataLogp) -> int:
    row_bytes = [
        sum(values[:1].nbytes for values in part.rows.loaded())
        for part in full._parts
        if part.rows is not None
    ]
    return min(SAMPLE_ROWS, SAMPLE_BYTES // max(1, *row_bytes, 1))


def weight_of(sample: FullDataLogp) -> float:
    """Return how many rows each row of a sample stands for, at most."""
    return max((part.rows.weight for part in sample._parts if part.rows is not None), default=1)


def _no_peak(names: list[str], what: str, direction: np.ndarray) -> str:
    return (
        f"Newton's method came to no peak: the log-density {what} {_largest(names, direction)}. Of "
        "columns that are sums of others leave one out; give parameters that the data do not "
        "determine a prior that does (perfect separation, say); put those that can be exchanged in "
        "an order (pm.distributions.transforms.ordered), and a scale near zero outside of what it "
        "scales (a non-centered parametrization); or pass another start."
    )


def _warn_of_others(names: list[str], best: _Climb, others: list[_Climb]) -> None:
    for other in others:
        if other.problem is None and other.log_mass > best.log_mass + np.log(LEAST_MASS):
            apart = np.abs(other.q - best.q) / best.point.scale
            share = 1 / (1 + np.exp(other.log_mass - best.log_mass))
            warnings.warn(
                f"the posterior has more than one mode: another one differs in "
                f"{_largest(names, apart)}, and this one has {share:.0%} of the mass of both. A "
                "normal density is at one of them only. Put parameters that can be exchanged in an "
                "order (pm.distributions.transforms.ordered), or pass the start that is meant.",
                FitConvergenceWarning,
                stacklevel=3,
            )
            return


def _largest(names: list[str], direction: np.ndarray) -> str:
    """Name the parameters that a direction moves most."""
    sizes = np.abs(direction) / np.max(np.abs(direction))
    picks = [i for i in np.argsort(-sizes, kind="stable") if sizes[i] > 0.3]
    rest = f" and {len(picks) - 5} more" if len(picks) > 5 else ""
    return ", ".join(f"`{names[i]}`" for i in picks[:5]) + rest


class Laplace(Inference):
    r"""Laplace's approximation.

    A normal density of full rank at the mode of the posterior of the unconstrained parameters, with
    the inverse of the negative Hessian there as covariance. Where the model uses streams, mode and
    Hessian are those over all rows: Newton's method on a random sample of rows, then on passes over
    all of them (see :class:`~pymc.variational.streaming.FullDataLogp`). An in-memory
    :func:`pymc.Minibatch` is taken for the whole array.

    Parameters
    ----------
    model : Model, optional
        The model; that of the context by default.
    random_seed : int, optional
        Of the sample of rows, of the jittered starts, and of Pareto k.
    start : dict, optional
        Where to start. Default: the initial point of the model, and four jittered ones.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc as pm
    >>> with pm.Model():
    ...     mu = pm.Normal("mu", 0, 10)
    ...     obs = pm.Normal("obs", mu, 1, observed=np.arange(100) % 10)
    ...     approx = pm.fit(method="laplace", random_seed=1, progressbar=False)
    >>> approx.mean.eval().round(3), approx.std.eval().round(3)
    (array([4.5]), array([0.1]))
    """

    def __init__(self, *, model=None, random_seed=None, start=None):
        model = modelcontext(model)
        super().__init__(KL, FullRank(model=model, random_seed=random_seed, start=start), None)
        self._start, self._random_seed = start, random_seed

    def fit(
        self,
        n=10000,
        *,
        progressbar=True,
        backend=None,
        include_transformed=False,
        compile_kwargs=None,
        executor=None,
        **kwargs,
    ):
        """Find the mode and the curvature there.

        Parameters
        ----------
        n : int
            The most Newton steps on passes over all rows: no more than 100, and a few are needed.
        progressbar : bool
            Whether to show the progress of each pass.
        backend : str, optional
            "numba", "c" or "jax".
        include_transformed : bool
            See :func:`pymc.fit`.
        compile_kwargs : dict, optional
            Arguments for :func:`pytensor.function`.
        executor : Executor, optional
            What makes the passes over all rows: see
            :class:`~pymc.variational.streaming.FullDataLogp`.

        Returns
        -------
        FullRank
            Its ``hist`` is the negative log-density after each step.

        Raises
        ------
        TypeError
            If an argument is for methods that take random steps.
        ValueError
            If the log-density has no peak there, or a stream can be read only once.

        Warns
        -----
        FitConvergenceWarning
            If the posterior is not close to normal (Pareto k above 0.7), has another mode that
            matters, or the steps were too few.
        """
        if kwargs:
            raise TypeError(
                f"method='laplace' takes no {', '.join(sorted(kwargs))}: it takes Newton steps over "
                "all rows, until they end."
            )
        full = FullDataLogp(
            self.approx.model,
            progressbar=progressbar,
            compile_kwargs=resolve_backend_compile_kwargs(backend, compile_kwargs),
            executor=executor,
        )
        rng = np.random.default_rng(self._random_seed)
        mode = find_mode(
            full,
            start=self._start,
            random_seed=rng,
            progressbar=progressbar,
            n_steps=min(n, MAX_STEPS),
        )
        self._set_params(mode)
        how = "mode of the data in memory"
        if mode.n_passes:
            how = (
                f"{mode.n_passes} passes over {full.n_rows:,} rows, from the mode of a random sample "
                f"of {mode.n_sampled:,}"
            )
        elif mode.n_sampled:
            how = f"mode of {mode.n_sampled:,} rows, which were read once"
        _log.info(f"Laplace: {how}; Newton decrement {mode.decrement:.2g}")
        _say_skew(full.names, *say_pareto_k(mode, rng))
        self.hist = self.approx.hist = -np.asarray(mode.logps)
        for group in self.approx.groups:
            group.include_transformed = include_transformed
        return self.approx

    def _set_params(self, mode: Mode) -> None:
        factor = np.linalg.cholesky(mode.covariance)
        sds = factor.diagonal()
        np.fill_diagonal(factor, sds + np.log(-np.expm1(-sds)))  # softplus is taken of them
        values = {"mu": mode.q, "L_tril": factor[np.tril_indices(len(sds))]}
        for name, param in self.approx.params_dict.items():
            param.set_value(values[name].astype(param.dtype))


def say_pareto_k(mode: Mode, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Compare the normal density at a mode with that of the posterior at draws from it.

    Returns
    -------
    distances : ndarray of shape (K, p)
        Of the draws from the mode, in sds.
    log_ratios : ndarray of shape (K,)
        Logarithms of posterior and normal density there, up to a constant.
    """
    from pymc.variational.control_variates import ControlVariates, pareto_k

    estimate = ControlVariates(
        mode.sample,
        mode.at,
        values=(mode.logp, mode.gradient, -mode.precision),
        n_rows=SEARCH_ROWS,
        random_seed=rng,
    )
    in_memory = [largest_data(part.terms.total) for part in mode.sample._parts if part.rows is None]
    n_draws = np.clip(EVALUATED_ROWS // max(in_memory, default=1), 100, N_DRAWS)
    z = rng.standard_normal((n_draws, len(mode.q)))
    draws = mode.q + z @ np.linalg.cholesky(mode.covariance).T
    log_ratios = estimate.logp(draws) + (z**2).sum(axis=1) / 2
    distances = (draws - mode.q) / np.sqrt(np.diag(mode.covariance))
    k = pareto_k(log_ratios)
    if k <= GOOD_K:
        _log.info(f"Pareto k {k:.2f}, below {GOOD_K}: the posterior is close to normal.")
        return distances, log_ratios
    warnings.warn(
        f"the posterior is not close to normal (Pareto k {k:.2f}, above {GOOD_K}): means and sds of "
        "a normal approximation may be far from its own. Put scales outside of what they scale (a "
        "non-centered parametrization), give parameters that the data do not determine a prior that "
        "does, or run pm.sample on what subsample_model(model) returns.",
        FitConvergenceWarning,
        stacklevel=3,
    )
    return distances, log_ratios


def _say_skew(names: list[str], distances: np.ndarray, log_ratios: np.ndarray) -> None:
    """Warn of a posterior whose means, by importance sampling, are far from the mode."""
    weights = np.exp(log_ratios - log_ratios.max())
    weights /= weights.sum()
    means = weights @ distances
    errors = np.sqrt(weights**2 @ (distances - means) ** 2)
    worst = int(np.argmax(np.abs(means) - 3 * errors))
    if abs(means[worst]) - 3 * errors[worst] > MEAN_SDS:
        warnings.warn(
            f"the posterior is skewed: the mean of `{names[worst]}` is about "
            f"{abs(means[worst]):.2g} sds from the mode, where Laplace's approximation has it. "
            "pm.fit(method='fullrank_advi') finds the mean.",
            FitConvergenceWarning,
            stacklevel=3,
        )
