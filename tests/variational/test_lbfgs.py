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
"""The path of L-BFGS, and the normal densities along it, against dense algebra in NumPy."""

import numpy as np
import pytest

from pymc.variational.lbfgs import Path, lbfgs_path, normals_along, updated_diagonal

rng = np.random.default_rng(1)
P = 7
A = rng.normal(size=(P, P))
COVARIANCE = A @ A.T + 0.1 * np.eye(P)
PRECISION = np.linalg.inv(COVARIANCE)
MEAN = rng.normal(size=P)


def dlogp(q):
    u = q - MEAN
    return -u @ PRECISION @ u / 2, -PRECISION @ u


def bfgs(diagonal, pairs):
    """The inverse Hessian by BFGS's own recursion."""
    H = np.diag(diagonal)
    for s, z in pairs:
        V = np.eye(P) - np.outer(s, z) / (s @ z)
        H = V @ H @ V.T + np.outer(s, s) / (s @ z)
    return H


def covariance(normal):
    return normal.factor @ normal.factor.T


@pytest.mark.parametrize("maxcor", [2, 3, 20])
@pytest.mark.parametrize("factor", [None, rng.normal(size=(P, P))])
def test_estimates_are_those_of_the_recursion(maxcor, factor):
    path = lbfgs_path(dlogp, np.zeros(P), maxcor=maxcor, factor=factor)
    normals = list(normals_along(path, maxcor))
    assert len(normals) == len(path.points) > 5
    outer = np.eye(P) if factor is None else factor
    diagonal, pairs = np.ones(P), []
    for i, normal in enumerate(normals):
        if i:
            pairs.append(
                (path.points[i] - path.points[i - 1], path.gradients[i - 1] - path.gradients[i])
            )
            diagonal = updated_diagonal(diagonal, *pairs[-1])
        H = bfgs(diagonal, pairs[-maxcor:])
        np.testing.assert_allclose(covariance(normal), outer @ H @ outer.T, rtol=1e-6, atol=1e-8)
        mean = path.start + outer @ (path.points[i] + H @ path.gradients[i])
        np.testing.assert_allclose(normal.mean, mean, rtol=1e-6, atol=1e-8)


def test_the_diagonal_has_the_curvature_along_the_step():
    """The inverse of the update is the diagonal of BFGS's update of the inverse."""
    diagonal, s = rng.uniform(0.5, 2, P), rng.normal(size=P)
    z = PRECISION @ s
    scaled = diagonal * (s @ z) / (z @ (diagonal * z))
    B = np.diag(1 / scaled)
    updated = B - np.outer(B @ s, B @ s) / (s @ B @ s) + np.outer(z, z) / (s @ z)
    np.testing.assert_allclose(updated_diagonal(diagonal, s, z), 1 / updated.diagonal())


def test_a_step_without_curvature_is_left_out():
    points = np.array([np.zeros(P), np.ones(P)])
    straight = Path(points, np.ones((2, P)), np.zeros(P), None)
    normal = list(normals_along(straight, 5))[-1]
    np.testing.assert_array_equal(covariance(normal), np.eye(P))


@pytest.mark.parametrize("factor", [None, rng.normal(size=(P, P))])
def test_draws_and_their_density(factor):
    path = lbfgs_path(dlogp, np.zeros(P), maxcor=3, factor=factor)
    normal = list(normals_along(path, 3))[4]
    z = rng.standard_normal((5, P))
    draws, cov = normal.draws(z), covariance(normal)
    u = draws - normal.mean
    expected = -np.einsum("ki,ij,kj->k", u, np.linalg.inv(cov), u) / 2
    expected -= np.linalg.slogdet(2 * np.pi * cov)[1] / 2
    np.testing.assert_allclose(normal.log_density(z), expected)
    np.testing.assert_allclose(normal.standardized(draws), z)


def test_the_path_of_a_quadratic_ends_at_its_peak():
    path = lbfgs_path(dlogp, np.full(P, 5.0), maxcor=5)
    np.testing.assert_allclose(path.end, MEAN, atol=1e-3)
    np.testing.assert_array_equal(path.start + path.points[0], np.full(P, 5.0))
    for y, gradient in zip(path.points, path.gradients):
        np.testing.assert_allclose(dlogp(path.start + y)[1], gradient)


def test_with_the_curvature_at_hand_two_evaluations_are_enough():
    n = 0

    def counted(q):
        nonlocal n
        n += 1
        return dlogp(q)

    factor = np.linalg.cholesky(COVARIANCE * 1.01)
    path = lbfgs_path(counted, MEAN + 30 * factor[:, 0], maxcor=5, factor=factor, gtol=0.4)
    assert n == len(path.points) == 2
    [*_, normal] = normals_along(path, 5)
    np.testing.assert_allclose(normal.mean, MEAN, atol=0.05)
    np.testing.assert_allclose(covariance(normal), COVARIANCE, rtol=0.02, atol=0.02)


def test_ends_in_time():
    ends = [
        lbfgs_path(dlogp, np.full(P, 5.0), maxcor=5, **limit)
        for limit in ({"max_iterations": 2}, {"max_evaluations": 4})
    ]
    assert len(ends[0].points) == 3
    assert 2 <= len(ends[1].points) <= 4


def test_points_without_a_density_are_stepped_back_from():
    def above_zero(q):
        return (-q[0] - 1 / q[0], np.array([-1 + q[0] ** -2])) if q[0] > 0 else (np.nan, q)

    path = lbfgs_path(above_zero, np.array([0.2]), maxcor=5)
    np.testing.assert_allclose(path.end, 1, atol=1e-3)
    with pytest.raises(FloatingPointError, match="not finite at the start"):
        lbfgs_path(above_zero, np.array([-1.0]), maxcor=5)
