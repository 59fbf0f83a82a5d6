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
"""The contenders of ``python -m benchmarks.accuracy``, each used as its documentation says.

``python benchmarks/contenders.py NAME --folder FOLDER --goal JSON`` fits the logistic regression of
the order book, and prints a line of JSON: the seconds from the files to the posterior, without the
imports, and the posterior. It is a script, and not a module of the package, as the peers run with
the Python of another environment, where ``import pymc`` must not find this project's.

A method of steps is compared with the goal every few steps, and ends when it is within the bounds;
the time of comparing is left out.
"""

import argparse
import importlib
import json
import resource
import sys
import time

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from peers import ABSENT, BATCH_SIZE, BUFFER_SIZE, peak_mb
from reference import COLUMNS, is_accurate

STEPS = 20_000
EVERY = 500  # steps on minibatches
FULL_EVERY = 20  # steps on all rows
MOST_STEPS = 1_000_000
RATE = 0.01


class Watch:
    """Times a fit, and says when one that goes on and on is done."""

    def __init__(self, goal: dict, max_seconds: float, small: bool) -> None:
        self.goal = goal
        self.max_seconds = max_seconds
        self.small = small
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def is_done(self, read: Callable[[], tuple]) -> bool:
        """Whether the posterior that `read` gives is accurate, or the time is up."""
        seconds = self.seconds
        self.mean, self.sd = read()
        done = seconds > self.max_seconds or is_accurate(self.mean, self.sd, self.goal)
        self.start = time.perf_counter() - seconds
        return done


def load(folder: Path, constant: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Features, with a first column of ones if asked for, and outcomes of all rows."""
    files = sorted(folder.glob("*.parquet"))
    n_rows = sum(pq.read_metadata(file).num_rows for file in files)
    x, y = np.ones((n_rows, 3 + constant)), np.empty(n_rows)
    row = 0
    for file in files:
        table = pq.read_table(file, columns=COLUMNS)
        end = row + len(table)
        for j, name in enumerate(COLUMNS[:3], int(constant)):
            x[row:end, j] = table[name]
        y[row:end] = table["up"]
        row = end
    return x, y


def observe(x, y, **settings) -> None:
    """Add the variables to the PyMC model that is open."""
    import pymc as pm

    b = pm.Normal("b", 0.0, 3.0, shape=4)
    logit = b[0] + b[1] * x[:, 0] + b[2] * x[:, 1] + b[3] * x[:, 2]
    pm.Bernoulli("up", logit_p=logit, observed=y, **settings)


def stream(folder: Path, method: str, steps: int, buffered: bool = False) -> Callable[[], tuple]:
    """Fit with this project: stream from Parquet, all else by default."""
    import pymc as pm

    from pymc.variational.streaming import parquet_source, shuffle_buffer, subsample_model

    source = parquet_source(folder, columns=COLUMNS, shuffle_row_groups=True, seed=1)
    rows = source
    if buffered:
        rows = shuffle_buffer(source, buffer_size=BUFFER_SIZE, batch_size=BATCH_SIZE, seed=1)
    with pm.Model() as model:
        batch = pm.Minibatch(rows, batch_size=BATCH_SIZE)
        observe(batch, batch[:, 3], total_size=source.n_rows)
        if method != "nuts":
            approx = pm.fit(steps, method=method, random_seed=1)
            return lambda: (approx.mean.eval(), approx.std.eval())
    with subsample_model(model, random_seed=1):
        draws = pm.sample(1000, chains=2, cores=2, random_seed=1).posterior["b"].values
    return lambda: (draws.mean(axis=(0, 1)), draws.std(axis=(0, 1)))


def stream_laplace(folder: Path, watch: Watch) -> Callable[[], tuple]:
    """``pm.fit(method="laplace")`` on the stream."""
    return stream(folder, "laplace", STEPS)


def stream_full_rank(folder: Path, watch: Watch) -> Callable[[], tuple]:
    """``pm.fit(20_000, method="fullrank_advi")`` on a table in random order."""
    return stream(folder, "fullrank_advi", 1 if watch.small else STEPS)


def stream_pathfinder(folder: Path, watch: Watch) -> Callable[[], tuple]:
    """``pm.fit(method="pathfinder")`` on the stream."""
    return stream(folder, "pathfinder", STEPS)


def stream_nuts(folder: Path, watch: Watch) -> Callable[[], tuple]:
    """``pm.sample`` on the model that ``subsample_model`` makes of the stream."""
    return stream(folder, "nuts", STEPS)


def stream_advi(folder: Path, watch: Watch) -> Callable[[], tuple]:
    """``pm.fit(20_000, method="advi")`` on a table in random order."""
    return stream(folder, "advi", 1 if watch.small else STEPS)


def stream_advi_groups(folder: Path, watch: Watch) -> Callable[[], tuple]:
    """The same on a table in time order: row groups in random order, through a shuffle buffer."""
    return stream(folder, "advi", 1 if watch.small else STEPS, buffered=True)


def pymc_advi(folder: Path, watch: Watch, optimizer: str | None = None) -> None:
    """``pm.fit`` on minibatches of arrays in memory."""
    import pytensor

    import pymc as pm

    options = {"obj_optimizer": pm.adam(learning_rate=RATE)} if optimizer == "adam" else {}
    read = None

    def check(approx, losses, step: int) -> None:
        nonlocal read
        if step % EVERY and not watch.small:
            return
        seconds = watch.seconds
        read = read or pytensor.function([], [approx.mean, approx.std])
        watch.start = time.perf_counter() - seconds
        if watch.is_done(read):
            raise StopIteration

    x, y = load(folder)
    with pm.Model():
        batch, up = pm.Minibatch(x, y, batch_size=BATCH_SIZE)
        observe(batch, up, total_size=len(y))
        pm.fit(MOST_STEPS, method="advi", callbacks=[check], random_seed=1, **options)


def pymc_adam(folder: Path, watch: Watch) -> None:
    """The same with Adam."""
    pymc_advi(folder, watch, "adam")


def extras_laplace(folder: Path, watch: Watch) -> Callable[[], tuple]:
    """``fit_laplace`` of pymc-extras."""
    import pymc_extras as pmx

    import pymc as pm

    with pm.Model():
        observe(*load(folder))
        fit = pmx.fit_laplace(random_seed=1).fit
    return lambda: (fit.mean_vector.values, np.sqrt(np.diag(fit.covariance_matrix.values)))


def extras_dadvi(folder: Path, watch: Watch) -> Callable[[], tuple]:
    """``fit_dadvi`` of pymc-extras: 30 fixed draws; its result is 1,000 draws."""
    from pymc_extras.inference import fit_dadvi

    import pymc as pm

    with pm.Model():
        observe(*load(folder))
        draws = fit_dadvi(random_seed=1).posterior["b"].values[0]
    return lambda: (draws.mean(0), draws.std(0))


def numpyro_model(x, y, batch_size: int | None) -> None:
    """Logistic regression of all rows, or of random ones of them.

    A ``plate`` with a ``subsample_size`` draws without replacement and takes 20 to 30 ms a step,
    where this takes 0.2.
    """
    import jax
    import numpyro
    import numpyro.distributions as dist

    scale = 1.0
    if batch_size is not None:
        rows = jax.random.randint(numpyro.prng_key(), (batch_size,), 0, len(y))
        scale = len(y) / batch_size
        x, y = x[rows], y[rows]
    b = numpyro.sample("b", dist.Normal(0.0, 3.0).expand([4]).to_event(1))
    with numpyro.handlers.scale(scale=scale):
        numpyro.sample("up", dist.Bernoulli(logits=b[0] + x @ b[1:]), obs=y)


def numpyro_steps(folder: Path, guide, every: int, batch_size: int | None) -> Iterator[dict]:
    """Give the guide's parameters after every few steps of SVI with Adam."""
    import jax
    import numpyro

    from numpyro.infer import SVI, Trace_ELBO

    data = [jax.numpy.asarray(values) for values in load(folder)]
    svi = SVI(numpyro_model, guide, numpyro.optim.Adam(RATE), Trace_ELBO(), batch_size=batch_size)
    state = svi.init(jax.random.key(1), *data)

    @jax.jit
    def advance(state, *data):
        return jax.lax.fori_loop(0, every, lambda _, state: svi.update(state, *data)[0], state)

    while True:
        state = jax.block_until_ready(advance(state, *data))
        yield svi.get_params(state)


def numpyro_normal(folder: Path, watch: Watch) -> None:
    """SVI with AutoNormal on minibatches."""
    from numpyro.infer.autoguide import AutoNormal

    guide = AutoNormal(numpyro_model)
    for params in numpyro_steps(folder, guide, 1 if watch.small else EVERY, BATCH_SIZE):
        if watch.is_done(lambda: (params["b_auto_loc"], params["b_auto_scale"])):
            return


def numpyro_multivariate(folder: Path, watch: Watch) -> None:
    """SVI with AutoMultivariateNormal on minibatches."""
    from numpyro.infer.autoguide import AutoMultivariateNormal

    guide = AutoMultivariateNormal(numpyro_model)

    def read() -> tuple:
        return params["auto_loc"], np.linalg.norm(params["auto_scale_tril"], axis=1)

    for params in numpyro_steps(folder, guide, 1 if watch.small else EVERY, BATCH_SIZE):
        if watch.is_done(read):
            return


def numpyro_laplace(folder: Path, watch: Watch) -> None:
    """SVI with AutoLaplaceApproximation on all rows; the Hessian when the means are there."""
    from numpyro.infer.autoguide import AutoLaplaceApproximation

    guide = AutoLaplaceApproximation(numpyro_model)
    for params in numpyro_steps(folder, guide, 1 if watch.small else FULL_EVERY, None):
        if watch.is_done(lambda: (params["auto_loc"], None)):
            posterior = guide.get_posterior(params)
            watch.sd = np.sqrt(np.diag(posterior.covariance_matrix))
            return


def statsmodels_logit(folder: Path, watch: Watch) -> Callable[[], tuple]:
    """Logit of statsmodels: maximum likelihood, without the prior."""
    import statsmodels.api as sm

    x, y = load(folder, constant=True)
    fit = sm.Logit(y, x).fit(disp=0)
    return lambda: (fit.params, fit.bse)


def sklearn_logistic(folder: Path, watch: Watch, **settings) -> Callable[[], tuple]:
    """LogisticRegression of scikit-learn: C = 9 is the prior, but for the intercept."""
    from sklearn.linear_model import LogisticRegression

    fit = LogisticRegression(C=9.0, **settings).fit(*load(folder))
    return lambda: (np.concatenate([fit.intercept_, fit.coef_[0]]), None)


def sklearn_newton(folder: Path, watch: Watch) -> Callable[[], tuple]:
    """The same with its solver for many more rows than features."""
    return sklearn_logistic(folder, watch, solver="newton-cholesky")


FITS = {
    "stream_laplace": ("pymc", stream_laplace),
    "stream_advi": ("pymc", stream_advi),
    "stream_advi_groups": ("pymc", stream_advi_groups),
    "stream_full_rank": ("pymc", stream_full_rank),
    "stream_pathfinder": ("pymc", stream_pathfinder),
    "stream_nuts": ("pymc", stream_nuts),
    "pymc_advi": ("pymc", pymc_advi),
    "pymc_adam": ("pymc", pymc_adam),
    "extras_laplace": ("pymc_extras", extras_laplace),
    "extras_dadvi": ("pymc_extras", extras_dadvi),
    "numpyro_normal": ("numpyro", numpyro_normal),
    "numpyro_multivariate": ("numpyro", numpyro_multivariate),
    "numpyro_laplace": ("numpyro", numpyro_laplace),
    "statsmodels_logit": ("statsmodels.api", statsmodels_logit),
    "sklearn_logistic": ("sklearn.linear_model", sklearn_logistic),
    "sklearn_newton": ("sklearn.linear_model", sklearn_newton),
}


def main() -> None:
    """Run one of the fits."""
    parser = argparse.ArgumentParser(prog="python benchmarks/contenders.py", description=__doc__)
    parser.add_argument("name", choices=FITS)
    parser.add_argument("--folder", type=Path, required=True, help="Parquet files")
    parser.add_argument("--goal", type=json.loads, required=True, help="the reference, as JSON")
    parser.add_argument("--seconds", type=float, default=300, help="the most for steps")
    parser.add_argument("--memory-gb", type=float, default=16, help="the most")
    parser.add_argument("--small", action="store_true", help="one step: to time the compilation")
    options = parser.parse_args()
    limit = int(options.memory_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    package, fit = FITS[options.name]
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        sys.stderr.write(f"{package}: {error}\n")
        sys.exit(ABSENT)
    if package == "numpyro":
        module.enable_x64()  # as all others
    watch = Watch(options.goal, 0 if options.small else options.seconds, options.small)
    read = fit(options.folder, watch)
    seconds = watch.seconds
    mean, sd = read() if read else (watch.mean, watch.sd)
    result = {
        "seconds": seconds,
        "mean": np.asarray(mean).tolist(),
        "sd": None if sd is None else np.asarray(sd).tolist(),
        "peak_mb": peak_mb(),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
