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
"""Rates: how near mean-field's optimum ADVI on a stream ends, with its default and with Adam.

    python -m benchmarks.rates           # three models: some minutes
    python -m benchmarks.rates --full    # all of them, to 20 million rows and 50,000 steps: hours

The default starts at the mode and the curvature of all rows, and its rate falls to zero; the others
start at the initial point. The reference is computed from all rows in memory: mean-field's optimum
over 400 fixed draws up to 20,000 rows; from there on the mode and the curvature, which it comes near
as rows are added. At 10,000 rows the two differ by 0.01 to 0.05 sds, and by 0.7 for the spread of the
hierarchical model.
"""

import functools
import logging
import sys
import warnings

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytensor
import pytensor.tensor as pt

from scipy import optimize

import pymc as pm

from examples.order_book.output import console
from pymc.blocking import DictToArrayBijection, RaveledVars
from pymc.variational.falling_rate import FallingAdam
from pymc.variational.streaming import StreamingDataset

N_GROUPS = 50
CHUNK = 1_000_000
MAX_ROWS_OF_OPTIMUM = 20_000
N_DRAWS = 200


def features(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw three features, the last two of them correlated."""
    x = rng.standard_normal((n, 3), dtype=np.float32)
    x[:, 2] = 0.8 * x[:, 1] + 0.6 * x[:, 2]
    return x


def linear_rows(rng: np.random.Generator, n: int, draw: Callable) -> np.ndarray:
    """Draw features, and what depends on a linear predictor of them."""
    x = features(rng, n)
    return np.column_stack([x, draw(rng, 0.5 + x @ np.array([0.3, 0.2, -0.1]))]).astype(np.float32)


def linear_predictor(rows):
    b = pm.Normal("b", 0, 3, shape=4)
    return b[0] + b[1] * rows[:, 0] + b[2] * rows[:, 1] + b[3] * rows[:, 2]


def logistic(rows, n):
    logit = linear_predictor(rows)
    pm.Bernoulli("y", logit_p=logit, observed=rows[:, 3], total_size=n)


def poisson(rows, n):
    pm.Poisson("y", pt.exp(linear_predictor(rows)), observed=rows[:, 3], total_size=n)


def negative_binomial(rows, n):
    mu, alpha = pt.exp(linear_predictor(rows)), pm.Gamma("alpha", 2, 0.5)
    pm.NegativeBinomial("y", mu=mu, alpha=alpha, observed=rows[:, 3], total_size=n)


def student_t(rows, n):
    mu, sigma, nu = linear_predictor(rows), pm.HalfNormal("sigma", 2), pm.Gamma("nu", 2, 0.1)
    pm.StudentT("y", nu=nu, mu=mu, sigma=sigma, observed=rows[:, 3], total_size=n)


def group_rows(rng: np.random.Generator, n: int) -> np.ndarray:
    group, x = rng.integers(N_GROUPS, size=n), rng.standard_normal(n)
    logit = rng.normal(-0.5, 0.6, N_GROUPS)[group] + 0.4 * x
    return np.column_stack([x, group, rng.random(n) < 1 / (1 + np.exp(-logit))]).astype(np.float32)


def hierarchical(rows, n):
    mu, tau = pm.Normal("mu", 0, 2), pm.HalfNormal("tau", 1)
    a, b = pm.Normal("a", mu, tau, shape=N_GROUPS), pm.Normal("b", 0, 2)
    logit = a[rows[:, 1].astype("int64")] + b * rows[:, 0]
    pm.Bernoulli("y", logit_p=logit, observed=rows[:, 2], total_size=n)


def two_normal_rows(rng: np.random.Generator, n: int) -> np.ndarray:
    first = rng.random(n) < 0.35
    y = np.where(first, rng.normal(-1, 0.7, n), rng.normal(1.5, 1, n))
    return y.astype(np.float32)[:, None]


def mixture(rows, n):
    share = pm.Beta("share", 2, 2)
    mu = pm.Normal("mu", 0, 3, shape=2, initval=[-1.0, 1.0])
    sigma = pm.HalfNormal("sigma", 2, shape=2)
    parts = [pm.Normal.dist(mu[i], sigma[i]) for i in range(2)]
    weights = pt.stack([share, 1 - share])
    pm.Mixture("y", w=weights, comp_dists=parts, observed=rows[:, 0], total_size=n)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# What draws the rows, and what builds the model on them.
MODELS: dict[str, tuple[Callable, Callable]] = {
    "logistic": (
        lambda rng, n: linear_rows(rng, n, lambda rng, eta: rng.random(n) < sigmoid(eta)),
        logistic,
    ),
    "Student-t": (
        lambda rng, n: linear_rows(rng, n, lambda rng, eta: eta + 0.7 * rng.standard_t(4, n)),
        student_t,
    ),
    "hierarchical": (group_rows, hierarchical),
    "Poisson": (
        lambda rng, n: linear_rows(rng, n, lambda rng, eta: rng.poisson(np.exp(eta))),
        poisson,
    ),
    "negative binomial": (
        lambda rng, n: linear_rows(
            rng, n, lambda rng, eta: rng.negative_binomial(2, 2 / (2 + np.exp(eta)))
        ),
        negative_binomial,
    ),
    "mixture": (two_normal_rows, mixture),
}


class InMemory:
    """The log-density of a model over rows in memory, some at a time."""

    def __init__(self, build: Callable, rows: np.ndarray):
        self._rows = rows
        self._data = pytensor.shared(rows[:1].astype("float64"), shape=(None, rows.shape[1]))
        with pm.Model() as model:
            build(self._data, None)
        start = DictToArrayBijection.map(model.initial_point())
        self.start, self._info = start.data.astype("float64"), start.point_map_info
        self._dlogp = model.compile_fn([model.logp(), model.dlogp()])
        self._hessian = model.compile_fn(model.d2logp(negate_output=False))

    def _sum(self, function: Callable, q: np.ndarray) -> list[np.ndarray]:
        point = DictToArrayBijection.rmap(RaveledVars(q, self._info))

        def values(rows: np.ndarray) -> list[np.ndarray]:
            self._data.set_value(rows.astype("float64"), borrow=True)
            result = function(point)
            return list(map(np.asarray, result if isinstance(result, list) else [result]))

        chunks = [values(self._rows[i : i + CHUNK]) for i in range(0, len(self._rows), CHUNK)]
        prior = values(self._rows[:0])  # in every chunk, and counts once
        return [sum(terms) - (len(chunks) - 1) * p for *terms, p in zip(*chunks, prior)]

    def dlogp(self, q: np.ndarray) -> tuple[float, np.ndarray]:
        logp, gradient = self._sum(self._dlogp, q)
        return float(logp), gradient

    def mode(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mode, and the sds that the curvature there gives."""
        scale = len(self._rows)

        def loss(q):
            logp, gradient = self.dlogp(q)
            return -logp / scale, -gradient / scale

        q = optimize.minimize(loss, self.start, jac=True, method="L-BFGS-B").x
        for _ in range(5):
            [hessian] = self._sum(self._hessian, q)
            q = q - np.linalg.solve(hessian, self.dlogp(q)[1])
        return q, 1 / np.sqrt(-np.diag(hessian))

    def optimum(self, mode: np.ndarray, sd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return means and sds of mean-field's optimum, over draws with the moments of a normal."""
        p = len(mode)
        draws = np.random.default_rng(1).standard_normal((N_DRAWS, p))
        draws = draws @ np.linalg.inv(np.linalg.cholesky(draws.T @ draws / N_DRAWS)).T
        draws = np.concatenate([draws, -draws])

        def loss(v):
            spread = sd * np.exp(v[p:])
            terms = [self.dlogp(mode + sd * v[:p] + spread * z) for z in draws]
            gradients = np.array([gradient for _, gradient in terms])
            by_mean = sd * gradients.mean(0)
            by_sd = spread * (gradients * draws).mean(0) + 1
            logp = np.mean([logp for logp, _ in terms])
            return -logp - v[p:].sum(), -np.concatenate([by_mean, by_sd])

        v = optimize.minimize(loss, np.zeros(2 * p), jac=True, options={"maxiter": 60}).x
        return mode + sd * v[:p], sd * np.exp(v[p:])


def adam_to_zero(n: int) -> Callable:
    """Return Adam with a rate that falls from 0.1 to zero."""

    def optimizer(grads, params):
        adam = FallingAdam([np.full_like(param.get_value(), 0.1) for param in params])
        adam.fall_between(0, n)
        return adam(grads, params)

    return optimizer


OPTIMIZERS: dict[str, Callable[[int], dict]] = {
    "default": lambda n: {},
    "Adam 0.01": lambda n: {"obj_optimizer": pm.adam(learning_rate=0.01)},
    "Adam 0.1 to 0": lambda n: {"obj_optimizer": adam_to_zero(n)},
}


@dataclass
class Size:
    n_rows: int
    batch_size: int
    n_steps: tuple[int, ...]


QUICK = [Size(10_000, 256, (2_000, 20_000)), Size(1_000_000, 256, (2_000, 20_000))]
FULL = [
    Size(10_000, 256, (2_000, 10_000, 50_000)),
    Size(10_000, 4096, (2_000, 10_000, 50_000)),
    Size(1_000_000, 256, (2_000, 10_000, 50_000)),
    Size(20_000_000, 4096, (2_000, 20_000, 50_000)),
]


def fitted(
    build: Callable, rows: np.ndarray, batch_size: int, n: int, arguments: dict
) -> tuple[np.ndarray, np.ndarray]:
    """Return means and sds of a fit of n steps."""
    stream = StreamingDataset(rows, batch_size=batch_size, check_order="ignore")
    with warnings.catch_warnings(), pm.Model():
        warnings.simplefilter("ignore")
        build(stream.as_tensor(), len(rows))
        approx = pm.fit(n, random_seed=1, progressbar=False, **arguments)
    return approx.mean.eval(), approx.std.eval()


def lines(model: str, size: Size) -> Iterator[str]:
    """Give a line of the table for each number of steps."""
    draw, build = MODELS[model]
    rows = draw(np.random.default_rng(0), size.n_rows)
    in_memory = InMemory(build, rows)
    mean, sd = in_memory.mode()
    if size.n_rows <= MAX_ROWS_OF_OPTIMUM:
        mean, sd = in_memory.optimum(mean, sd)
    for n in size.n_steps:
        line = f"{model:18}{size.n_rows:>12,}{size.batch_size:>8,}{n:>8,}"
        for arguments in OPTIMIZERS.values():
            means, sds = fitted(build, rows, size.batch_size, n, arguments(n))
            ratio = sds / sd
            error = np.abs((means - mean) / sd).max()
            line += f"{error:>8.2f}  {ratio.min():5.2f} to {ratio.max():7.2f}"
        yield line


def main() -> None:
    """Measure, and print the table."""
    logging.getLogger("pymc").setLevel(logging.ERROR)
    full = "--full" in sys.argv[1:]
    say = functools.partial(console.print, soft_wrap=True, highlight=False)
    say("Largest error of a mean, in mean-field's sds; range of sd / mean-field's sd")
    header = "".join(f"{name:>25}" for name in OPTIMIZERS)
    say(f"{'model':18}{'rows':>12}{'batch':>8}{'steps':>8}{header}")
    for model in MODELS if full else list(MODELS)[:3]:
        for size in FULL if full else QUICK:
            for line in lines(model, size):
                say(line)


if __name__ == "__main__":
    main()
