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
"""The contenders of ``python -m benchmarks.pathfinder``, each used as its documentation says.

``python benchmarks/pathfinders.py NAME MODEL --draws FILE`` fits a model, writes draws of the
unconstrained parameters, and prints a line of JSON: the seconds without imports. It is a script, and
not a module of the package, as the peers run with the Python of another environment, where ``import
pymc`` must not find this project's.
"""

import argparse
import json
import logging
import os
import re
import sys
import time

from pathlib import Path

import numpy as np

import pymc as pm

N_DRAWS = 1000


def logistic(n_rows: int) -> None:
    """A logistic regression with 4 coefficients."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n_rows, 3))
    y = rng.random(n_rows) < 1 / (1 + np.exp(-0.3 - x @ [1, -0.5, 0.2]))
    b = pm.Normal("b", 0, 3, shape=4)
    pm.Bernoulli("y", logit_p=b[0] + pm.math.dot(x, b[1:]), observed=y.astype(int))


def poisson(n_rows: int) -> None:
    """A Poisson regression with 3 coefficients."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(n_rows, 2))
    y = rng.poisson(np.exp(0.3 + x @ [0.5, -0.2]))
    b = pm.Normal("b", 0, 3, shape=3)
    pm.Poisson("y", pm.math.exp(b[0] + pm.math.dot(x, b[1:])), observed=y)


def student_t(n_rows: int) -> None:
    """A regression with errors of unknown scale and tails."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=n_rows)
    y = 1 + 0.5 * x + 0.7 * rng.standard_t(5, size=n_rows)
    b, sigma, nu = pm.Normal("b", 0, 3, shape=2), pm.HalfNormal("sigma", 2), pm.Gamma("nu", 2, 0.1)
    pm.StudentT("y", nu, mu=b[0] + b[1] * x, sigma=sigma, observed=y)


def groups(n_rows: int) -> None:
    """A hierarchical logistic regression with 20 groups."""
    rng = np.random.default_rng(4)
    x, group = rng.normal(size=n_rows), rng.integers(20, size=n_rows)
    y = rng.random(n_rows) < 1 / (1 + np.exp(-rng.normal(0.5, 0.7, 20)[group] - 0.5 * x))
    mu, sigma, b = pm.Normal("mu", 0, 3), pm.HalfNormal("sigma", 2), pm.Normal("b", 0, 3)
    effect = pm.Normal("effect", mu, sigma, shape=20)
    pm.Bernoulli("y", logit_p=effect[group] + b * x, observed=y.astype(int))


def schools(n_rows: int) -> None:
    """Eight schools, non-centered."""
    y, sd = [28, 8, -3, 7, -1, 1, 18, 12], [15, 10, 16, 11, 9, 11, 10, 18]
    mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
    z = pm.Normal("z", 0, 1, shape=8)
    pm.Normal("y", mu + tau * z, np.array(sd), observed=np.array(y))


def correlated(n_rows: int) -> None:
    """A normal density in 100 dimensions."""
    rng = np.random.default_rng(5)
    factor = rng.normal(size=(100, 100))
    covariance = factor @ factor.T / 100 + 0.05 * np.eye(100)
    pm.MvNormal("x", np.linspace(-3, 3, 100), cov=covariance, shape=100)


MODELS = {  # with rows
    logistic: 50_000,
    poisson: 20_000,
    student_t: 20_000,
    groups: 20_000,
    schools: 8,
    correlated: 0,
}
FEW_ROWS = 10_001  # as many as make PyTensor's functions those of many rows


class Said(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"


def pareto_k_in(text: str) -> float:
    """Find Pareto k in what was logged."""
    found = re.findall(r"Pareto.k\D*?(-?\d+\.\d+|-?inf)", text)
    return float(found[-1])


def fit_ours(seed: int) -> tuple[np.ndarray, float]:
    """``pm.fit`` of this project."""
    said = Said()
    logging.getLogger("pymc").addHandler(said)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(said)
    approx = pm.fit(method="pathfinder", random_seed=seed, progressbar=False)
    return approx.params_dict["histogram"].get_value(), pareto_k_in(said.text)


def fit_extras(seed: int) -> tuple[np.ndarray, float]:
    """``fit_pathfinder`` of pymc-extras."""
    from pymc_extras import fit_pathfinder

    result = fit_pathfinder(num_draws=N_DRAWS, random_seed=seed, progressbar=False)
    model, posterior, draws = pm.modelcontext(None), result["posterior"], []
    for rv in model.free_RVs:
        values = posterior[rv.name].values.reshape(-1, *posterior[rv.name].shape[2:])
        transform = model.rvs_to_transforms[rv]
        values = values if transform is None else transform.forward(values).eval()
        draws.append(values.reshape(len(values), -1))
    return np.concatenate(draws, axis=1), float(result["pathfinder"]["pareto_k"])


def fit_blackjax(seed: int) -> tuple[np.ndarray, float]:
    """``multi_approximate`` of BlackJAX, from starts as pymc-extras draws them."""
    import blackjax
    import jax

    from blackjax.vi.multipathfinder import psis_weights

    from pymc.blocking import DictToArrayBijection, RaveledVars
    from pymc.sampling.jax import get_jaxified_logp

    jax.config.update("jax_enable_x64", True)
    model = pm.modelcontext(None)
    start = DictToArrayBijection.map(model.initial_point())
    logp = get_jaxified_logp(model)

    def of_vector(q):
        point = DictToArrayBijection.rmap(RaveledVars(q, start.point_map_info))
        return logp([point[variable.name] for variable in model.value_vars])

    starts = start.data + np.random.default_rng(seed).uniform(-2, 2, (4, len(start.data)))
    multi = blackjax.multipathfinder(of_vector)
    # Its default of 200, or as many as fit: all points of all paths are evaluated at once, in 8 GB.
    sizes = [model.rvs_to_values[rv].type.shape[0] for rv in model.observed_RVs]
    n_samples = min(200, 4_000_000 // max(sizes, default=1))
    state, _ = jax.jit(lambda key: multi.init(key, starts, num_samples=n_samples))(
        jax.random.key(seed)
    )
    draws = multi.sample(jax.random.key(seed + 1), state, N_DRAWS)
    return np.asarray(draws), float(psis_weights(state)[1])


CONTENDERS = {"ours": fit_ours, "pymc-extras": fit_extras, "blackjax": fit_blackjax}


def main() -> None:
    """Fit a model."""
    parser = argparse.ArgumentParser(prog="python benchmarks/pathfinders.py", description=__doc__)
    parser.add_argument("name", choices=CONTENDERS)
    by_name = {model.__name__: model for model in MODELS}
    parser.add_argument("model", choices=by_name)
    parser.add_argument("--draws", type=Path, required=True, help="file for the draws")
    parser.add_argument("--small", action="store_true", help="fewer rows")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    build = by_name[options.model]
    try:
        if options.name != "ours":
            import blackjax  # noqa: F401
            import pymc_extras  # noqa: F401
        with pm.Model():
            build(FEW_ROWS if options.small else MODELS[build])
            start, cpu = time.perf_counter(), sum(os.times()[:4])
            draws, k = CONTENDERS[options.name](options.seed)
            seconds, cpu = time.perf_counter() - start, sum(os.times()[:4]) - cpu
    except ImportError as error:
        from peers import ABSENT

        sys.stderr.write(f"{options.name}: {error}\n")
        sys.exit(ABSENT)
    np.save(options.draws, draws)
    sys.stdout.write(json.dumps({"seconds": seconds, "cpu": cpu, "k": k}) + "\n")


if __name__ == "__main__":
    main()
