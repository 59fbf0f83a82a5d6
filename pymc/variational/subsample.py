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
"""A model of a random sample of rows whose log-density stands for that of all rows."""

import time
import warnings

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytensor.tensor as pt

from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace

from pymc.initial_point import make_initial_point_fn
from pymc.model import Model, Potential, modelcontext
from pymc.pytensorf import compile
from pymc.streams.blocks import positive_int
from pymc.streams.position import Seed, seed_of
from pymc.variational.all_rows import SampledRows, rows_behind
from pymc.variational.control_variates import ControlVariates
from pymc.variational.full_data_logp import FullDataLogp
from pymc.variational.laplace import find_mode
from pymc.variational.minibatch_rv import MinibatchRandomVariable
from pymc.variational.model_of_rows import with_arrays
from pymc.variational.opvi import Approximation
from pymc.variational.stream_checks import check_streams
from pymc.vartypes import discrete_types

# An error of the log-density, in nats, that moves means and sds by a few hundredths of an sd.
LARGE_ERROR = 0.1


def subsample_model(
    model: Model | None = None,
    n_rows: int = 100_000,
    at: dict[str, Any] | Approximation | None = None,
    random_seed: Seed = None,
    *,
    hessian: bool = True,
    progressbar: bool = True,
) -> Model:
    r"""Return a model of a random sample of rows, whose log-density stands for that of all rows.

    A model of data in memory: :func:`pymc.sample`, with any sampler, and all else that takes a
    model runs on it. Variables, names, dims, coords, transforms and initial values are those of
    the model given. Its rows, a :class:`pymc.Data`, are a uniform random sample, each of which
    counts N / n_rows times; a ``Potential``, ``control_variates``, corrects the log-density so that
    at one point its value, gradient and Hessian are those of all rows.

    Parameters
    ----------
    model : Model, optional
        A model that observes streams, or :func:`pymc.Minibatch`; that of the context by default.
    n_rows : int, default 100_000
        Rows that are drawn of each stream, without replacement.
    at : dict or Approximation, optional
        The point: values of the free variables (what :func:`pymc.find_MAP` returns), or an
        approximation, whose mean it is. Default: the mode, found by passes over all rows.
    random_seed : int, Generator or SeedSequence, optional
        The sample is a function of it, of the rows and of their order.
    hessian : bool, default True
        Whether to correct the Hessian. Without, nothing of size p x p is held, and if ``at`` is
        given no Hessian is computed: for models of many hundreds of parameters.
    progressbar : bool, default True
        Whether each pass shows its progress.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        If the model observes its data in memory, has discrete parameters, a ``Potential`` on a
        stream, an observed variable without ``total_size``, or a stream that can be read only once.

    See Also
    --------
    subsample_report : The error of the log-density, at draws from the posterior.

    Notes
    -----
    With :math:`u = q - q_0` in the unconstrained parameters, and :math:`\ell_N` over all rows and
    :math:`\ell_n` over the sample, the log-likelihood is

    .. math::

        \ell_n(q) + (\ell_N - \ell_n)(q_0) + (g_N - g_n)^T u + \tfrac{1}{2} u^T (H_N - H_n) u

    What is left to chance is the third order in u [1]_, [2]_, so that the error falls with
    :math:`N / \sqrt{n}` and with the third power of the posterior's sds: as :math:`1 / \sqrt{N n}`.
    Without the Hessian it is the second order, and the error does not fall with N. Largest errors at
    20 draws, with ``n_rows=100_000`` (``python -m benchmarks.subsample``): with 4 coefficients and 20
    million rows 0.000008 nats, and 0.02 without the Hessian; with 203 parameters (an effect for each
    of 200 groups) and 2 million rows 0.012, and 1.1 without; with 503, 0.03 and 2.

    It takes a pass that draws the sample and, unless ``at`` is given, another that draws one for
    the start of Newton's method, and two passes with the Hessian; one if it is given. With p
    parameters, a Hessian takes p / 12 times as long as a gradient (see
    :class:`~pymc.variational.streaming.FullDataLogp`), and the correction of each step p x p
    multiplications, which are few beside the rows.

    The log-density is right near the point: within the posterior, not in its far tails. Groups that
    have few rows are in the sample with none or one, and their likelihood is that of a normal
    density then: :func:`subsample_report` tells. Deterministics with an entry for each row have
    ``n_rows`` of them in each draw; leave them out with ``var_names`` of :func:`pymc.sample`.

    References
    ----------
    .. [1] Baker, J., Fearnhead, P., Fox, E. B., and Nemeth, C. (2019). Control variates for
       stochastic gradient MCMC. Statistics and Computing, 29, 599-615.
    .. [2] Quiroz, M., Kohn, R., Villani, M., and Tran, M.-N. (2019). Speeding up MCMC by efficient
       data subsampling. Journal of the American Statistical Association, 114, 831-843.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc as pm
    >>> from pymc.variational.streaming import StreamingDataset, subsample_model, subsample_report
    >>> rng = np.random.default_rng(1)
    >>> rows = {"x": rng.normal(size=50_000)}
    >>> rows["y"] = rng.poisson(np.exp(0.5 * rows["x"]))
    >>> ds = StreamingDataset(rows, batch_size=500)
    >>> with pm.Model() as model:
    ...     slope = pm.Normal("slope", 0, 10)
    ...     mu = pm.math.exp(slope * ds["x"])
    ...     obs = pm.Poisson("obs", mu, observed=ds["y"], total_size=ds.total_size)
    >>> small = subsample_model(model, n_rows=2_000, random_seed=1, progressbar=False)
    >>> with small:
    ...     trace = pm.sample(500, chains=2, random_seed=1, progressbar=False)
    >>> trace.posterior["slope"].mean().round(2).item()
    0.5
    >>> report = subsample_report(trace, small, model, progressbar=False)
    >>> report.error < 0.1
    True
    """
    model = modelcontext(model)
    n_rows = positive_int(n_rows, "n_rows")
    _check(model)
    full = FullDataLogp(model, progressbar=progressbar)
    seed = seed_of(random_seed)
    values: tuple[Any, ...] | None = None
    if at is None:
        mode = find_mode(full, random_seed=seed, progressbar=progressbar)
        q, values = mode.at, (mode.logp, mode.gradient, -mode.precision)
    else:
        q = _vector(full, at)
    estimate = ControlVariates(
        full, q, values=values, n_rows=n_rows, random_seed=seed, hessian=hessian
    )
    rows = [part.rows for part in estimate.sample._parts if isinstance(part.rows, SampledRows)]
    small = with_arrays(model, [(sample.source, sample.arrays) for sample in rows], scaled=True)
    _, gradient, *hessians = estimate.correction
    with small:
        u = _unconstrained(small, full) - estimate.at
        correction = u @ gradient + sum(u @ (h @ u) / 2 for h in hessians)
        Potential("control_variates", estimate.correction[0] + correction)
    return small


@dataclass(frozen=True)
class SubsampleReport:
    """How far the log-density of a sample of rows is from that of all rows, at draws from it.

    Attributes
    ----------
    error : float
        The largest difference, in nats, after their mean was taken off.
    differences : ndarray of shape (K,)
        Log-density over all rows less that of the sample, up to a constant: the logarithms of the
        weights that make the draws those of all rows.
    draws : ndarray of shape (K, 2)
        Chain and draw that each was computed at.
    n_rows : int
        Rows of the sample.
    n_rows_needed : int
        Rows that would bring the error to 0.1 nats, as it falls with their square root.
    seconds : float
        Time that it took.
    """

    error: float
    differences: np.ndarray = field(repr=False)
    draws: np.ndarray = field(repr=False)
    n_rows: int
    n_rows_needed: int
    seconds: float


def subsample_report(
    trace: Any,
    subsampled: Model,
    model: Model,
    *,
    n_draws: int = 20,
    random_seed: Seed = None,
    progressbar: bool = True,
) -> SubsampleReport:
    """Compare the log-density of a sample of rows with that of all rows, at draws from it.

    One pass over all rows.

    Parameters
    ----------
    trace : DataTree
        Draws from the posterior of the sample, with all free variables.
    subsampled : Model
        What :func:`subsample_model` returned.
    model : Model
        What it was made of.
    n_draws : int, default 20
        Draws at which they are compared, picked at random. All rows are evaluated at each.
    random_seed : int, Generator or SeedSequence, optional
        What picks them.
    progressbar : bool, default True
        Whether the pass shows its progress.

    Returns
    -------
    SubsampleReport

    Raises
    ------
    ValueError
        If a free variable is not among the draws.

    Warns
    -----
    UserWarning
        If the error is above 0.1 nats, with the ``n_rows`` that would make it smaller.

    Examples
    --------
    See :func:`subsample_model`.
    """
    start = time.perf_counter()
    full = FullDataLogp(model, progressbar=progressbar)
    posterior = trace["posterior"]
    n_chains, n_each = posterior.sizes["chain"], posterior.sizes["draw"]
    n_draws = min(positive_int(n_draws, "n_draws"), n_chains * n_each)
    rng = np.random.default_rng(seed_of(random_seed))
    picks = np.sort(rng.choice(n_chains * n_each, n_draws, replace=False))
    draws = np.column_stack([picks // n_each, picks % n_each])
    missing = [rv.name for rv in subsampled.free_RVs if rv.name not in posterior]
    if missing:
        raise ValueError(
            f"the trace has no {', '.join(map(repr, missing))}: the log-density takes all free "
            "variables. Sample without var_names, or with these among them."
        )
    constrained = {
        rv: posterior[rv.name].transpose("chain", "draw", ...).values for rv in subsampled.free_RVs
    }
    placeholders = {rv: rv.type() for rv in constrained}
    vector = compile(
        list(placeholders.values()),
        graph_replace(_unconstrained(subsampled, full), placeholders, strict=False),
        mode="FAST_COMPILE",
    )
    q = np.stack(
        [
            vector(*(values[tuple(pick)].astype(rv.dtype) for rv, values in constrained.items()))
            for pick in draws
        ]
    )
    logp = subsampled.compile_logp()
    in_sample = np.array([logp(full.point(each)) for each in q])
    differences = np.asarray(full.logp(q)) - in_sample
    differences -= differences.mean()
    error = float(np.abs(differences).max())
    n_rows = max(data.get_value(borrow=True).shape[0] for data in subsampled.data_vars)
    n_rows_needed = int(np.ceil(n_rows * max(1, (error / LARGE_ERROR) ** 2)))
    if not error <= LARGE_ERROR:
        warnings.warn(
            f"the log-density of the sample of {n_rows:,} rows is off by {error:.2g} nats at one of "
            f"{n_draws} draws: the posterior is that of all rows only roughly. Pass "
            f"n_rows={n_rows_needed:_} or more to subsample_model, or weigh the draws by "
            "exp(report.differences).",
            stacklevel=2,
        )
    return SubsampleReport(
        error=error,
        differences=differences,
        draws=draws,
        n_rows=n_rows,
        n_rows_needed=n_rows_needed,
        seconds=time.perf_counter() - start,
    )


def _check(model: Model) -> None:
    """Refuse models that a sample of rows cannot stand for."""
    observed = [rv for rv in model.observed_RVs if rows_behind([rv, model.rvs_to_values[rv]])]
    if not observed:
        raise ValueError(
            "subsample_model takes a model that observes a stream, or pm.Minibatch: this one has "
            "its data in memory, and samplers take it as it is."
        )
    for potential in model.potentials:
        if rows_behind([potential]):
            raise ValueError(
                f"the Potential `{potential.name}` uses rows, and nothing says how many rows each "
                "of a sample stands for. Make it an observed variable: pm.CustomDist with "
                "observed= and total_size=."
            )
    discrete = [rv.name for rv in model.free_RVs if rv.dtype in discrete_types]
    if discrete:
        raise ValueError(
            f"{', '.join(f'`{name}`' for name in discrete)}: control variates are derivatives, "
            "which discrete parameters do not have. Sum them out (pm.Mixture, say)."
        )
    check_streams(model)
    for rv in observed:
        if not isinstance(rv.owner.op, MinibatchRandomVariable):
            raise ValueError(
                f"observed variable `{rv.name}` uses a minibatch without total_size: pass the number "
                "of rows of the whole data."
            )


def _vector(full: FullDataLogp, at: Any) -> np.ndarray:
    """Return the parameter vector of a point, or of the mean of an approximation."""
    if isinstance(at, Approximation):
        [group] = at.groups
        mean = group.mean.eval()
        at = {name: mean[part].reshape(shape) for name, part, shape, _ in group.ordering.values()}
    model = full.model
    if all(value.name in at for value in model.value_vars):
        return full.ravel({name: np.asarray(value) for name, value in at.items()})
    missing = [rv.name for rv in model.free_RVs if rv.name not in at]
    if missing:
        raise ValueError(f"at has no values of {', '.join(map(repr, missing))}.")
    point = make_initial_point_fn(
        model=model,
        overrides={rv.name: at[rv.name] for rv in model.free_RVs},
        return_transformed=True,
    )
    return full.ravel(point(0))


def _unconstrained(small: Model, full: FullDataLogp) -> Variable:
    """Return the parameter vector of ``full``, as a function of the free variables of a model."""
    parts = {}
    for rv in small.free_RVs:
        transform = small.rvs_to_transforms[rv]
        value = rv if transform is None else transform.forward(rv, *rv.owner.inputs)
        parts[small.rvs_to_values[rv].name] = pt.as_tensor(value).ravel()
    return pt.concatenate([parts[name] for name, *_ in full._info])
