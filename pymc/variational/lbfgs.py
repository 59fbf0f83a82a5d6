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
"""The path of L-BFGS up a log-density, and the normal densities that its curvature along it gives."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from scipy.linalg import solve_triangular
from scipy.optimize import minimize

# Gives log-density and gradient.
DLogp = Callable[[np.ndarray], tuple[float, np.ndarray]]

MAX_ITERATIONS = 1000
# Gains below it, relative to the log-density, are close to rounding.
FTOL = 1e-10
# Of the curvature along a step, relative to the square of the change of the gradient.
LEAST_CURVATURE = 1e-12
# What a log-density that is not finite is taken to be worse by than that at the start, relatively.
FAR_BELOW = 1e10
TINY = 1e-6


class _EnoughError(Exception):
    pass


class Path(NamedTuple):
    """The iterates of L-BFGS, in coordinates y of its own: q = start + factor y.

    Attributes
    ----------
    points : ndarray of shape (L, p)
        The start, which is 0, and the iterates.
    gradients : ndarray of shape (L, p)
        The gradient of the log-density at each.
    start : ndarray of shape (p,)
        Where the path starts.
    factor : ndarray of shape (p, p) or None
        The factor. None: the identity.
    """

    points: np.ndarray
    gradients: np.ndarray
    start: np.ndarray
    factor: np.ndarray | None

    @property
    def end(self) -> np.ndarray:
        """The last point, as the log-density takes it."""
        return self.start + _times(self.factor, self.points[-1])


def lbfgs_path(
    dlogp: DLogp,
    start: np.ndarray,
    *,
    maxcor: int,
    factor: np.ndarray | None = None,
    gtol: float = 0.0,
    max_iterations: int = MAX_ITERATIONS,
    max_evaluations: int | None = None,
) -> Path:
    """Go up a log-density by L-BFGS.

    Parameters
    ----------
    dlogp : callable
        Log-density and gradient at a point.
    start : ndarray of shape (p,)
        Where to start.
    maxcor : int
        Steps that L-BFGS knows the curvature from.
    factor : ndarray of shape (p, p), optional
        Times its transpose about the inverse of the curvature: the first step is Newton's then.
    gtol : float
        End where no entry of the gradient, in the coordinates of the path, is above it.
    max_iterations, max_evaluations : int
        End after so many.

    Returns
    -------
    Path

    Raises
    ------
    FloatingPointError
        If the log-density or its gradient is not finite at the start.
    """
    value, gradient = dlogp(start)
    if not (np.isfinite(value) and np.isfinite(gradient).all()):
        raise FloatingPointError("the log-density or its gradient is not finite at the start")
    gradient = _times(_transposed(factor), gradient)
    # SciPy's first step is as long as the gradient, and 1 at most.
    unit = 1.0 if factor is None else max(float(np.linalg.norm(gradient)), TINY)
    far_below = value - FAR_BELOW * (1 + abs(value))
    n_evaluations = 1
    # Of the last point of the path, and of those that were tried since.
    evaluated = {np.zeros_like(start).tobytes(): (value, gradient)}

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal n_evaluations
        key = (x + 0.0).tobytes()  # of -0 too
        if key not in evaluated:
            if n_evaluations == max_evaluations:
                raise _EnoughError
            n_evaluations += 1
            value, gradient = dlogp(start + _times(factor, unit * x))
            if np.isfinite(value) and np.isfinite(gradient).all():
                evaluated[key] = value, _times(_transposed(factor), gradient)
            else:
                evaluated[key] = far_below, np.zeros_like(x)
        value, gradient = evaluated[key]
        return -value / unit**2, -gradient / unit

    points, gradients = [np.zeros_like(start)], [gradient]

    def keep(x: np.ndarray) -> None:
        key = (x + 0.0).tobytes()
        here = evaluated[key]
        points.append(unit * x)
        gradients.append(here[1])
        evaluated.clear()
        evaluated[key] = here

    options = {
        "maxcor": maxcor,
        "gtol": gtol / unit,
        "ftol": FTOL,
        "maxiter": max_iterations,
        "maxfun": np.iinfo(np.int32).max,
    }
    with suppress(_EnoughError):
        minimize(
            loss, np.zeros_like(start), jac=True, method="L-BFGS-B", callback=keep, options=options
        )
    return Path(np.array(points), np.array(gradients), start, factor)


def _times(factor: np.ndarray | None, y: np.ndarray) -> np.ndarray:
    return y if factor is None else factor @ y


def _transposed(factor: np.ndarray | None) -> np.ndarray | None:
    return None if factor is None else factor.T


@dataclass(frozen=True)
class Normal:
    """A normal density, with a covariance that is a diagonal and a low rank, within a factor.

    Attributes
    ----------
    mean : ndarray of shape (p,)
        The mean.
    scale : ndarray of shape (p,)
        Roots of the diagonal.
    directions : ndarray of shape (p, m)
        Orthonormal columns.
    inner : ndarray of shape (m, m)
        Lower Cholesky factor of the covariance within them, in units of ``scale``.
    outer : ndarray of shape (p, p), optional
        The factor of the coordinates that scale and directions are in. Default: the identity.
    """

    mean: np.ndarray
    scale: np.ndarray
    directions: np.ndarray
    inner: np.ndarray
    outer: np.ndarray | None = None

    def draws(self, z: np.ndarray) -> np.ndarray:
        """Make draws of standard normal ones of shape (K, p)."""
        more = self.inner - np.eye(len(self.inner))
        y = self.scale * (z + (z @ self.directions) @ more.T @ self.directions.T)
        return self.mean + _times(self.outer, y.T).T

    def standardized(self, q: np.ndarray) -> np.ndarray:
        """Undo :meth:`draws`."""
        u = q - self.mean
        if self.outer is not None:
            u = np.linalg.solve(self.outer, u.T).T
        y = u / self.scale
        along = y @ self.directions
        solved = solve_triangular(self.inner, along.T, lower=True).T
        return y + (solved - along) @ self.directions.T

    @cached_property
    def log_determinant(self) -> float:
        """That of the covariance's factor."""
        outer = 0.0 if self.outer is None else np.linalg.slogdet(self.outer)[1]
        return float(np.log(self.scale).sum() + np.log(self.inner.diagonal()).sum() + outer)

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """Return the log-density at the draws that are made of ``z``."""
        p = len(self.mean)
        return -np.square(z).sum(axis=1) / 2 - p / 2 * np.log(2 * np.pi) - self.log_determinant

    @property
    def sds(self) -> np.ndarray:
        return np.linalg.norm(self.factor, axis=1)

    @property
    def factor(self) -> np.ndarray:
        """A matrix that times its transpose is the covariance."""
        return (self.draws(np.eye(len(self.mean))) - self.mean).T


def normals_along(path: Path, maxcor: int) -> Iterator[Normal]:
    """Give the normal density at each point of a path, with L-BFGS's estimate of the covariance.

    The estimate is the inverse Hessian of the steps before: a diagonal, and twice ``maxcor`` ranks
    at most; in the coordinates of the path it starts from the identity. The mean is where a Newton
    step with it leads. Points whose estimate is not positive definite by rounding are left out.

    Parameters
    ----------
    path : Path
        The path.
    maxcor : int
        Steps that the estimate is made of.

    Yields
    ------
    Normal
    """
    diagonal = np.ones(path.points.shape[1])
    history: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=maxcor)
    for i, (point, gradient) in enumerate(zip(*path[:2])):
        if i:
            s, z = point - path.points[i - 1], path.gradients[i - 1] - gradient
            if s @ z > LEAST_CURVATURE * (z @ z):
                updated = updated_diagonal(diagonal, s, z)
                diagonal = updated if np.all(updated > 0) else diagonal
                history.append((s, z))
        try:
            scale, directions, inner, step = _estimate(gradient, diagonal, list(history))
        except np.linalg.LinAlgError:
            continue
        mean = path.start + _times(path.factor, point + step)
        yield Normal(mean, scale, directions, inner, path.factor)


def updated_diagonal(diagonal: np.ndarray, s: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Update the diagonal of an inverse Hessian, given a step and the change of the gradient."""
    zz, sz, ss = z @ (diagonal * z), s @ z, s @ (s / diagonal)
    inverse = zz / (sz * diagonal) + z**2 / sz - zz * s**2 / (sz * ss * diagonal**2)
    return 1 / inverse


def _estimate(
    gradient: np.ndarray, diagonal: np.ndarray, history: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the inverse Hessian as a :class:`Normal` has it, and it times the gradient."""
    scale = np.sqrt(diagonal)
    directions, more = np.zeros((len(scale), 0)), np.zeros((0, 0))
    if history:
        S, Z = (np.column_stack(columns) for columns in zip(*history))
        R = np.triu(S.T @ Z)
        inverse = solve_triangular(R, np.eye(len(R)))
        middle = np.diag(R.diagonal()) + Z.T @ (diagonal[:, None] * Z)
        core = np.block([[np.zeros_like(R), -inverse], [-inverse.T, inverse.T @ middle @ inverse]])
        directions, T = np.linalg.qr(np.column_stack([scale[:, None] * Z, S / scale[:, None]]))
        more = T @ core @ T.T
    inner = np.linalg.cholesky(np.eye(len(more)) + more)
    step = scale * gradient
    step = scale * (step + directions @ (more @ (directions.T @ step)))
    return scale, directions, inner, step
