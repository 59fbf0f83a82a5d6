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
"""Pathfinder: normal densities along the paths of L-BFGS, and draws from the best, by importance."""

import logging
import warnings

from collections.abc import Callable, Iterable
from itertools import batched
from typing import Any, NamedTuple

import numpy as np
import pytensor.tensor as pt

from pytensor import config, shared
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from scipy.special import logsumexp, softmax

from pymc.initial_point import make_initial_point_fn
from pymc.model import modelcontext
from pymc.pytensorf import resolve_backend_compile_kwargs
from pymc.variational.approximations import Empirical, EmpiricalGroup
from pymc.variational.control_variates import ControlVariates, smoothed
from pymc.variational.fit_check import FitConvergenceWarning
from pymc.variational.full_data_logp import FullDataLogp
from pymc.variational.inference import Inference
from pymc.variational.laplace import (
    EVALUATED_ROWS,
    GOOD_K,
    LEAST_MASS,
    SEARCH_ROWS,
    _Point,
    sample_size,
    weight_of,
)
from pymc.variational.lbfgs import MAX_ITERATIONS, Normal, Path, lbfgs_path, normals_along
from pymc.variational.logp_terms import largest_data

_log = logging.getLogger(__name__)

# Gives the log-density at K points.
Logp = Callable[[np.ndarray], np.ndarray]

IMPORTANCE_SAMPLING = ("psis", None)

# Starts that are drawn for a path, until the log-density is finite at one.
MAX_STARTS = 10
# A path with the curvature at hand ends that near the mode, in posterior sds, or after so many
# evaluations.
NEAR, MAX_PASSES = 0.1, 10
# How often the curvature is taken anew, and the ELBO that another time must gain.
MAX_ROUNDS, LEAST_GAIN = 5, 0.05
# Shares of their number that the effective sample size of draws is: below the first, there are more
# of them; below the second, the normal densities follow them, of so many draws a parameter at least.
EVEN, EVEN_ENOUGH = 0.9, 0.5
MAX_ADAPTATIONS, DRAWS_A_PARAMETER = 10, 5
# Of fewer draws there is no Pareto k.
FEWEST_DRAWS = 25
# A Hessian of more parameters takes longer than the paths. It is that of differences of the gradient
# over so many sds.
MAX_HESSIAN, STEP = 1000, 0.01
# Numbers in the draws that ELBOs are estimated at, at a time.
BLOCK_SIZE = 2**22


class _Fit(NamedTuple):
    """The best normal density along a path."""

    normal: Normal
    elbo: float
    logp: Logp
    """What the ELBO is estimated with."""
    elbos: list[float]
    """Those along the path."""

    def is_at(self, q: np.ndarray) -> bool:
        """Whether a point is within one of its sds from its mean."""
        return float(np.square(self.normal.standardized(q[None])).sum()) < 1


class Pathfinder(Inference):
    r"""Pathfinder.

    L-BFGS climbs the posterior density of the unconstrained parameters from several random starts.
    The steps of each path give an estimate of the curvature at each of its points, and so a normal
    density there; the one with the largest evidence lower bound (ELBO) is kept. Draws from those of
    all paths are resampled by Pareto-smoothed importance weights [1]_, [2]_.

    Parameters
    ----------
    model : Model, optional
        The model; that of the context by default.
    random_seed : int, optional
        Of the starts, the draws, and the sample of rows.
    start : dict, optional
        The point around which paths start. Default: the initial point of the model.

    Notes
    -----
    Where a path has arrived, at the mean of its best normal density, the exact Hessian replaces the
    estimate if it is that of a peak, and L-BFGS goes on in coordinates in which that is the
    identity; if the ELBO does not gain by it, what was before is kept. Importance weights take the
    draws of all paths for those of one mixture of their normal densities, each of which counts
    once, however many paths end at it: modes get their share of the mass. Where the weights are
    uneven, the normal densities take mean and covariance of the weighted draws, and are drawn from
    anew, a few times [3]_: that is what a posterior that is far from normal needs.

    Where the model uses streams, paths run on a random sample of rows in memory. From the mode of
    that sample, with its curvature, it takes a few passes over all rows, and one for their Hessian
    (see :class:`~pymc.variational.streaming.FullDataLogp`); paths that ended at the same point
    share them. ELBOs and weights are those of a sample of rows, corrected by value, gradient and
    Hessian of all rows. An in-memory :func:`pymc.Minibatch` is taken for the whole array.

    References
    ----------
    .. [1] Zhang, L., Carpenter, B., Gelman, A., and Vehtari, A. (2022). Pathfinder: Parallel
       quasi-Newton variational inference. Journal of Machine Learning Research, 23(306), 1-49.
    .. [2] Vehtari, A., Simpson, D., Gelman, A., Yao, Y., and Gabry, J. (2024). Pareto smoothed
       importance sampling. Journal of Machine Learning Research, 25(72), 1-58.
    .. [3] Cappé, O., Douc, R., Guillin, A., Marin, J.-M., and Robert, C. P. (2008). Adaptive
       importance sampling in general mixture classes. Statistics and Computing, 18, 447-459.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc as pm
    >>> with pm.Model():
    ...     mu = pm.Normal("mu", 0, 10)
    ...     obs = pm.Normal("obs", mu, 1, observed=np.arange(100) % 10)
    ...     approx = pm.fit(method="pathfinder", random_seed=1, progressbar=False)
    >>> approx.mean.eval().round(1), approx.std.eval().round(1)
    (array([4.5]), array([0.1]))
    >>> approx.sample(1000).posterior["mu"].shape
    (1, 1000)
    """

    def __init__(self, *, model=None, random_seed=None, start=None):
        # There is no objective with a gradient.
        self.hist = np.asarray(())
        self.state = None
        self._draws = _Draws(model=modelcontext(model), random_seed=random_seed)
        self._start, self._random_seed = start, random_seed

    @property
    def approx(self):
        return self._draws

    def fit(
        self,
        n=10000,
        *,
        num_paths=4,
        num_draws=1000,
        num_elbo_draws=10,
        maxcor=None,
        jitter=2.0,
        importance_sampling="psis",
        progressbar=True,
        backend=None,
        include_transformed=False,
        compile_kwargs=None,
        executor=None,
        **kwargs,
    ):
        """Find the normal densities, and draw from them.

        Parameters
        ----------
        n : int
            The most iterations of a path: no more than 1,000, and paths end when they arrive.
        num_paths : int
            Paths, each from a start of its own.
        num_draws : int
            Draws that are returned.
        num_elbo_draws : int
            Draws that the ELBO at each point of a path is estimated with.
        maxcor : int, optional
            Steps that the curvature is estimated from. Default: three times the logarithm of the
            number of parameters, and 5 at least.
        jitter : float
            Starts are within it of the initial point, in each unconstrained parameter.
        importance_sampling : {"psis", None}
            "psis": draws are resampled by their Pareto-smoothed importance weights. None: they stay
            as they are drawn from the normal densities.
        progressbar : bool
            Whether to show the progress of paths and passes.
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
        Empirical
            The draws. ``sample`` takes each of them once before it takes one again: for more,
            raise ``num_draws``. ``hist`` is the negative ELBO along the best path.

        Raises
        ------
        TypeError
            If an argument is for methods that take random steps.
        ValueError
            If an argument is out of its range, no path arrives, or a stream can be read only once.

        Warns
        -----
        FitConvergenceWarning
            If the draws do not stand for the posterior (Pareto k above 0.7).
        """
        if kwargs:
            raise TypeError(
                f"method='pathfinder' takes no {', '.join(sorted(kwargs))}: it goes along paths of "
                "L-BFGS, until they end."
            )
        _check_arguments(num_paths, num_draws, num_elbo_draws, maxcor, jitter, importance_sampling)
        full = FullDataLogp(
            self.approx.model,
            progressbar=progressbar,
            compile_kwargs=resolve_backend_compile_kwargs(backend, compile_kwargs),
            executor=executor,
        )
        rng = np.random.default_rng(self._random_seed)
        n_parameters = len(full.names)
        paths = _Paths(
            full,
            rng,
            maxcor or max(5, int(np.ceil(3 * np.log(n_parameters)))),
            (num_elbo_draws, n_parameters),
            min(n, MAX_ITERATIONS),
        )
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, disable=not progressbar) as progress:
            task = progress.add_task("Pathfinder", total=None)
            for i in range(num_paths):
                progress.update(task, description=f"Path {i + 1} of {num_paths}")
                paths.add(self._start, jitter)
        fits = paths.over_all_rows()
        if importance_sampling is None:
            drawn = _weighted_draws(fits, max(num_draws, FEWEST_DRAWS), rng)
            weights = np.full(len(drawn.q), 1 / len(drawn.q))
        else:
            n_most = min(num_paths * num_draws, paths.most_draws)
            n_first = max(num_draws, FEWEST_DRAWS)
            drawn = _even_draws(fits, n_first, max(n_first, n_most), rng)
            weights = drawn.weights
        _say_pareto_k(drawn)
        self.approx.params_dict["histogram"].set_value(
            _resampled(drawn.q, weights, num_draws, rng).astype(config.floatX)
        )
        self.hist = self.approx.hist = -np.array(fits[0].elbos)
        for group in self.approx.groups:
            group.include_transformed = include_transformed
        return self.approx


def _check_arguments(
    num_paths: int,
    num_draws: int,
    num_elbo_draws: int,
    maxcor: int | None,
    jitter: float,
    importance_sampling: str | None,
) -> None:
    counts = {"num_paths": num_paths, "num_draws": num_draws, "num_elbo_draws": num_elbo_draws}
    if maxcor is not None:
        counts["maxcor"] = maxcor
    for name, count in counts.items():
        if not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(f"{name}={count!r}: it is a whole number, 1 or more.")
    if not isinstance(jitter, int | float | np.number) or not 0 <= jitter < np.inf:
        raise ValueError(f"jitter={jitter!r}: it is a number, 0 or more.")
    if importance_sampling not in IMPORTANCE_SAMPLING:
        allowed = ", ".join(map(repr, IMPORTANCE_SAMPLING))
        raise ValueError(f"importance_sampling={importance_sampling!r}: it is one of {allowed}.")


class _Paths:
    """Paths, and the normal densities that they end with.

    Parameters
    ----------
    full : FullDataLogp
        The log-density.
    rng : Generator
        Of the starts, the draws, and the sample of rows.
    maxcor : int
        Steps that curvature is estimated from.
    z_shape : tuple of int
        Of the draws that ELBOs are estimated at.
    n_iterations : int
        The most of a path.
    """

    def __init__(
        self,
        full: FullDataLogp,
        rng: np.random.Generator,
        maxcor: int,
        z_shape: tuple[int, int],
        n_iterations: int,
    ):
        self._full, self._rng, self._maxcor, self._n = full, rng, maxcor, n_iterations
        self._sample = full.sample(sample_size(full), rng)
        self._search = self._sample.sample(SEARCH_ROWS, rng)
        # The same for all normal densities, as they are compared.
        self._z = rng.standard_normal(z_shape)
        self._fits: list[_Fit] = []
        self._n_run = self._n_iterations = 0
        self._failures: list[str] = []

    def add(self, start: dict[str, Any] | None, jitter: float) -> None:
        """Go along a path on the rows in memory."""
        self._n_run += 1
        try:
            path = self._path(start, jitter)
            self._n_iterations += len(path.points) - 1
            fit = self._best(normals_along(path, self._maxcor), self._search.logp)
        except FloatingPointError as error:
            self._failures.append(str(error))
            return
        # Where a path has been already, it costs no more.
        if any(
            fit.elbo < other.elbo + LEAST_GAIN and other.is_at(path.end) for other in self._fits
        ):
            return
        fit = self._refined(fit)
        mean = fit.normal.mean
        if all(fit.elbo > other.elbo for other in self._fits if other.is_at(mean)):
            self._fits = [other for other in self._fits if not other.is_at(mean)] + [fit]

    def _path(self, start: dict[str, Any] | None, jitter: float) -> Path:
        draw = make_initial_point_fn(
            model=self._full.model, overrides=start, jitter_rvs=set(), return_transformed=True
        )
        center = self._full.ravel(draw(int(self._rng.integers(2**30)))).astype("float64")
        n_left = MAX_STARTS
        while True:
            n_left -= 1
            q = center + self._rng.uniform(-jitter, jitter, len(center))
            try:
                return lbfgs_path(
                    self._search.dlogp, q, maxcor=self._maxcor, max_iterations=self._n
                )
            except FloatingPointError:
                if not n_left:
                    raise

    def _best(self, normals: Iterable[Normal], logp: Logp, before: _Fit | None = None) -> _Fit:
        """Find the normal density with the largest ELBO."""
        normals = list(normals)
        elbos = _elbos(normals, logp, self._z)
        best = int(np.argmax(elbos))
        if elbos[best] == -np.inf:
            raise FloatingPointError("no normal density along the path has a finite ELBO")
        return _Fit(
            normals[best], elbos[best], logp, (before.elbos if before else []) + list(elbos)
        )

    def _refined(self, fit: _Fit) -> _Fit:
        """Go on with the exact curvature on the rows in memory, as long as the ELBO gains by it."""
        for _ in range(MAX_ROUNDS):
            peak = self._peak(self._search, fit.normal)
            if peak is None:
                break
            path = self._on(self._search, peak)
            before = fit
            fit = self._best([before.normal, *normals_along(path, self._maxcor)], fit.logp, fit)
            if fit.elbo < before.elbo + LEAST_GAIN:
                break
        return fit

    def _peak(self, rows: FullDataLogp, normal: Normal) -> _Point | None:
        """Return the curvature at a mean, if it is that of a peak."""
        if len(normal.mean) > MAX_HESSIAN:
            return None
        point = _Point(lambda q: _by_differences(rows, q, STEP * normal.sds), normal.mean)
        return point if point.is_peak else None

    def _on(self, rows: FullDataLogp, peak: _Point) -> Path:
        return lbfgs_path(
            rows.dlogp,
            peak.q,
            maxcor=self._maxcor,
            factor=peak.factor,
            gtol=NEAR,
            max_evaluations=MAX_PASSES,
        )

    @property
    def most_draws(self) -> int:
        """Draws at which the log-density can be evaluated within a few seconds."""
        data = [largest_data(part.terms.total) for part in self._full._parts if part.rows is None]
        return EVALUATED_ROWS // max([1, self._search.n_rows or 0, *data])

    def over_all_rows(self) -> list[_Fit]:
        """Let each path end on all rows, and return what it ends with: the best first."""
        self._check_any(self._fits)
        fits = sorted(self._fits, key=lambda fit: fit.elbo, reverse=True)
        all_rows = [self._sample] if weight_of(self._search) > 1 else []
        if weight_of(self._sample) > 1:
            error = 3 * (self._full.n_rows or 0) / np.sqrt(self._search.n_rows or 1)
            fits = [fit for fit in fits if fit.elbo > fits[0].elbo + np.log(LEAST_MASS) - error]
            all_rows.append(self._full)
        before = self._search
        for rows in all_rows:
            ends = []
            for fit in fits:
                try:
                    ends.append(self._over(rows, before, fit))
                except FloatingPointError as error:
                    self._failures.append(str(error))
            self._check_any(ends)
            fits, before = ends, rows
        self._say(len(fits))
        return sorted(fits, key=lambda fit: fit.elbo, reverse=True)

    def _check_any(self, fits: list[_Fit]) -> None:
        if not fits:
            raise ValueError(
                f"none of {self._n_run} paths arrived: {self._failures[-1]}. Pass another start, or "
                "a smaller jitter; see model.debug() for where the log-density is not finite."
            )

    def _over(self, rows: FullDataLogp, before: FullDataLogp, fit: _Fit) -> _Fit:
        """Go on from the mode of fewer rows, with their curvature, to that of more of them."""
        normals, q = [fit.normal], fit.normal.mean
        peak = self._peak(before, fit.normal)
        if peak is not None:
            path = self._on(rows, peak)
            normals, q = list(normals_along(path, self._maxcor)), path.end
        point = _Point(rows.d2logp, q)
        estimate = ControlVariates(
            self._search,
            q,
            values=(point.logp, point.gradient, -point.precision),
            n_rows=SEARCH_ROWS,
            random_seed=self._rng,
        )
        if point.is_peak:
            here = Path(
                np.zeros((1, len(q))), (point.factor.T @ point.gradient)[None], q, point.factor
            )
            normals += normals_along(here, self._maxcor)
        return self._best(normals, estimate.logp, fit)

    def _say(self, n_ends: int) -> None:
        full, sample = self._full, self._sample
        where = "data in memory"
        if full.n_passes:
            where = (
                f"a random sample of {sample.n_rows:,} rows, then in {full.n_passes} passes over "
                f"all {full.n_rows:,}"
            )
        elif sample.n_rows:
            where = f"{sample.n_rows:,} rows, which were read once"
        _log.info(
            f"Pathfinder: {self._n_run} paths of {self._n_iterations} iterations to {n_ends} "
            f"{'end' if n_ends == 1 else 'ends'}, on {where}"
        )
        if self._failures:
            warnings.warn(
                f"{len(self._failures)} of {self._n_run} paths failed: {self._failures[-1]}. The "
                "draws are from the others. Pass another start, or a smaller jitter.",
                FitConvergenceWarning,
                stacklevel=4,
            )


def _by_differences(
    rows: FullDataLogp, q: np.ndarray, steps: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Evaluate log-density, gradient and Hessian: sooner than a Hessian is compiled."""
    value, gradient = rows.dlogp(q)
    hessian = np.array(
        [
            (rows.dlogp(q + step)[1] - rows.dlogp(q - step)[1]) / (2 * size)
            for size, step in zip(steps, np.diag(steps))
        ]
    )
    return value, gradient, (hessian + hessian.T) / 2


def _elbos(normals: list[Normal], logp: Logp, z: np.ndarray) -> np.ndarray:
    """Estimate the ELBO of each normal density at draws made of ``z``."""
    elbos: list[float] = []
    for some in batched(normals, max(1, BLOCK_SIZE // z.size)):
        values = logp(np.concatenate([normal.draws(z) for normal in some]))
        elbos += [
            float(np.mean(value - normal.log_density(z)))
            for value, normal in zip(values.reshape(len(some), -1), some)
        ]
    return np.where(np.isfinite(elbos), elbos, -np.inf)


class _Drawn(NamedTuple):
    """Draws from a mixture of normal densities.

    Attributes
    ----------
    q : ndarray of shape (K, p)
        The draws.
    weights : ndarray of shape (K,)
        Their smoothed importance weights, which add up to 1.
    k : float
        Pareto k of the weights.
    elbo : float
        That of the mixture.
    """

    q: np.ndarray
    weights: np.ndarray
    k: float
    elbo: float

    @property
    def evenness(self) -> float:
        """The effective sample size, as a share of the draws."""
        return 1 / float(np.square(self.weights).sum() * len(self.q))


def _weighted_draws(fits: list[_Fit], n_draws: int, rng: np.random.Generator) -> _Drawn:
    """Make at least so many draws from a mixture of normal densities, as many from each."""
    n_each = -(-n_draws // len(fits))
    draws, log_ratios = [], []
    for fit in fits:
        q = fit.normal.draws(rng.standard_normal((n_each, len(fit.normal.mean))))
        draws.append(q)
        log_ratios.append(
            fit.logp(q) - logsumexp(_log_densities(fits, q), axis=0) + np.log(len(fits))
        )
    ratios = np.concatenate(log_ratios)
    ratios[np.isnan(ratios)] = -np.inf
    weights, k = smoothed(ratios)
    return _Drawn(np.concatenate(draws), weights, k, float(ratios.mean()))


def _log_densities(fits: list[_Fit], q: np.ndarray) -> np.ndarray:
    return np.array([fit.normal.log_density(fit.normal.standardized(q)) for fit in fits])


def _even_draws(fits: list[_Fit], n_first: int, n_most: int, rng: np.random.Generator) -> _Drawn:
    """Draw from the mixture, which follows its own weighted draws as long as they are uneven."""
    drawn = best = _weighted_draws(fits, n_first, rng)
    if drawn.evenness > EVEN and drawn.k <= GOOD_K:
        return drawn
    drawn = best = _weighted_draws(fits, n_most, rng)
    for _ in range(MAX_ADAPTATIONS):
        if drawn.evenness > EVEN_ENOUGH and drawn.k <= GOOD_K:
            break
        adapted = _adapted(fits, drawn)
        if all(new is old for new, old in zip(adapted, fits)):
            break
        fits = adapted
        drawn = _weighted_draws(fits, n_most, rng)
        best = max(best, drawn, key=lambda drawn: drawn.evenness)
    return best


def _adapted(fits: list[_Fit], drawn: _Drawn) -> list[_Fit]:
    """Give each normal density the mean and covariance of its share of the weighted draws."""
    adapted = []
    for fit, shares in zip(fits, softmax(_log_densities(fits, drawn.q), axis=0)):
        weights, p = drawn.weights * shares, drawn.q.shape[1]
        weights = weights / max(weights.sum(), np.finfo(float).tiny)
        if np.square(weights).sum() * DRAWS_A_PARAMETER * p < 1:
            mean = weights @ drawn.q
            apart = drawn.q - mean
            factor = np.linalg.cholesky((apart.T * weights) @ apart)
            normal = Normal(mean, np.ones(p), np.zeros((p, 0)), np.zeros((0, 0)), factor)
            fit = fit._replace(normal=normal)
        adapted.append(fit)
    return adapted


def _resampled(
    draws: np.ndarray, weights: np.ndarray, n_draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Take draws as often as their weights say, and no more often than that by chance."""
    order = rng.permutation(len(draws))
    steps = (np.arange(n_draws) + rng.random()) / n_draws
    picks = np.searchsorted(np.cumsum(weights[order]), steps)
    return rng.permutation(draws[order][np.minimum(picks, len(draws) - 1)])


def _say_pareto_k(drawn: _Drawn) -> None:
    k = drawn.k
    if k <= GOOD_K:
        _log.info(f"Pathfinder: ELBO {drawn.elbo:.2f}, Pareto k {k:.2f}, below {GOOD_K}")
        return
    warnings.warn(
        f"Pathfinder's draws do not stand for the posterior (Pareto k {k:.2f}, above {GOOD_K}): "
        "their means and sds may be far from its own. Put scales outside of what they scale (a "
        "non-centered parametrization), give parameters that the data do not determine a prior that "
        "does, or start pm.sample from the draws.",
        FitConvergenceWarning,
        stacklevel=3,
    )


class _DrawsGroup(EmpiricalGroup):
    """Draws, each of which is taken once before one is taken again."""

    def create_shared_params(self, **kwargs):
        histogram = np.zeros((1, self.ddim), dtype=config.floatX)
        return {"histogram": shared(histogram, "histogram", shape=(None, self.ddim))}

    def randidx(self, size=None):
        n_draws = self.histogram.shape[0]
        size = 1 if size is None else pt.atleast_1d(size)[0]
        _, order = pt.random.permutation(
            n_draws, rng=pt.random.shared_rng(seed=None), return_next_rng=True
        )
        return order[pt.arange(size) % n_draws]


class _Draws(Empirical):
    _group_class = _DrawsGroup
