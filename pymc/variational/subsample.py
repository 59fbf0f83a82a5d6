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

from concurrent.futures import Executor
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
from pymc.variational.laplace import _largest, find_mode
from pymc.variational.minibatch_rv import MinibatchRandomVariable, get_scaling
from pymc.variational.model_of_rows import with_arrays
from pymc.variational.opvi import Approximation
from pymc.variational.rows_at_draws import free_values
from pymc.variational.stream_checks import check_streams
from pymc.vartypes import discrete_types

# An error of the log-density, in nats, that moves means and sds by a few hundredths of an sd.
LARGE_ERROR = 0.1
# Directions are tried in which the correction is more than this share of the curvature, upwards; at
# these distances, in posterior sds. A way down of so many nats keeps samplers inside.
LEAST_UPWARD, MOST_DIRECTIONS, TINY = 0.1, 10, 1e-12
DISTANCES, BARRIER = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100), 20


def subsample_model(
    model: Model | None = None,
    n_rows: int = 100_000,
    at: dict[str, Any] | Approximation | None = None,
    random_seed: Seed = None,
    *,
    hessian: bool = True,
    progressbar: bool = True,
    executor: Executor | None = None,
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
    executor : Executor, optional
        What makes the passes: see :class:`FullDataLogp`.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        If the model observes its data in memory, has discrete parameters, a ``Potential`` on a
        stream, an observed variable whose ``total_size`` is not the number of rows, or a stream that
        can be read only once; or if the log-density of the sample does not fall far from the point.

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

    The log-density is right near the point: within the posterior, not in its far tails. A group of
    rows that the sample has none of counts as a normal density. One that it has too many of, as
    happens to groups of a few rows, can make the log-density of the sample go up again in the tails:
    that is tried out, and refused with the name of the parameter. Deterministics with an entry for
    each row have ``n_rows`` of them in each draw; leave them out with ``var_names`` of
    :func:`pymc.sample`.

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
    full = FullDataLogp(model, progressbar=progressbar, executor=executor)
    seed = seed_of(random_seed)
    values: tuple[Any, ...]
    if at is None:
        mode = find_mode(full, random_seed=seed, progressbar=progressbar)
        q, values = mode.at, (mode.logp, mode.gradient, -mode.precision)
    else:
        q = _vector(full, at)
        values = full.d2logp(q) if hessian else full.dlogp(q)
    estimate = ControlVariates(
        full, q, values=values, n_rows=n_rows, random_seed=seed, hessian=hessian
    )
    rows = [part.rows for part in estimate.sample._parts if isinstance(part.rows, SampledRows)]
    _check_total_sizes(full, model)
    if hessian:
        _check_tails(estimate, values, full.names)
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
    executor: Executor | None = None,
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
    executor : Executor, optional
        What makes the pass: see :class:`FullDataLogp`.

    Returns
    -------
    SubsampleReport

    Raises
    ------
    ValueError
        If a free variable is not among the draws, or one has no density over all rows.

    Warns
    -----
    UserWarning
        If the error is above 0.1 nats, with the ``n_rows`` that would make it smaller.

    Examples
    --------
    See :func:`subsample_model`.
    """
    start = time.perf_counter()
    full = FullDataLogp(model, progressbar=progressbar, executor=executor)
    constrained = free_values(trace, subsampled)
    posterior = trace["posterior"]
    n_chains, n_each = posterior.sizes["chain"], posterior.sizes["draw"]
    n_draws = min(positive_int(n_draws, "n_draws"), n_chains * n_each)
    rng = np.random.default_rng(seed_of(random_seed))
    picks = np.sort(rng.choice(n_chains * n_each, n_draws, replace=False))
    draws = np.column_stack([picks // n_each, picks % n_each])
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
    of_all = np.asarray(full.logp(q))
    n_impossible = int(np.sum(~np.isfinite(of_all)))
    if n_impossible:
        raise ValueError(
            f"{n_impossible} of {n_draws} draws have no density over all rows: the sample has no row "
            "that rules them out. Pass a larger n_rows to subsample_model."
        )
    differences = of_all - in_sample
    differences -= differences.mean()
    error = float(np.abs(differences).max())
    samples = [data for data in subsampled.data_vars if data.name not in model.named_vars]
    n_rows = max(len(data.get_value(borrow=True)) for data in samples)
    needed = np.ceil(n_rows * max(1, (error / LARGE_ERROR) ** 2))
    n_rows_needed = int(min(needed, full.n_rows or needed))
    if error > LARGE_ERROR:
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


def _check_total_sizes(full: FullDataLogp, model: Model) -> None:
    """Refuse observed variables that count for another number of rows than there are."""
    for part in full._parts:
        for variable in part.variables if part.rows is not None else []:
            value = model.rvs_to_values[variable]
            scale = get_scaling(variable.owner.inputs[1:], value.shape).eval(mode="FAST_COMPILE")
            total_size = float(scale) * part.rows.batch_size
            if not np.isclose(total_size, part.rows.n_rows, rtol=1e-6):
                raise ValueError(
                    f"observed variable `{variable.name}` has total_size={total_size:,.0f}, and all "
                    f"rows are {part.rows.n_rows:,}: a sample would count for the former. Pass "
                    f"total_size={part.rows.n_rows}."
                )


def _check_tails(estimate: ControlVariates, values: tuple[Any, ...], names: list[str]) -> None:
    """Refuse a log-density that goes up again far from the point.

    Where the sample has more than its share of the rows that tell of a parameter, the correction
    curves upwards, and outgrows what falls with less than the square of the distance. Where the
    point is not near the mode, the density goes up from it in any case.
    """
    gradient, precision = values[1], -values[2]
    scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(precision)), TINY))
    curvatures, directions = np.linalg.eigh(precision * scale * scale[:, None])
    factor = scale[:, None] * directions / np.sqrt(np.maximum(np.abs(curvatures), TINY))
    if curvatures[0] <= 0 or np.linalg.norm(factor.T @ gradient) > 1:
        return
    ratios, whitened = np.linalg.eigh(factor.T @ estimate.correction[2] @ factor)
    picks = np.flatnonzero(ratios > LEAST_UPWARD)[-MOST_DIRECTIONS:]
    rays = np.concatenate([sign * (factor @ whitened[:, picks]).T for sign in (1, -1)])
    if not len(rays):
        return
    points = estimate.at + np.multiply.outer(rays, [0.0, *DISTANCES]).swapaxes(1, 2)
    logp = estimate.logp(points.reshape(-1, len(names))).reshape(points.shape[:2])
    below = logp[:, :1] - np.minimum.accumulate(logp, axis=1)
    rises = (np.diff(logp, axis=1) > 1) & (below[:, :-1] < BARRIER)
    if rises.any():
        worst = rays[int(np.argmax(rises.any(axis=1)))] / scale
        raise ValueError(
            f"few rows tell of {_largest(names, worst)}, and the sample has more than its share of "
            "them: its log-density goes up again far from the mode, where samplers would end. Pass a "
            "larger n_rows, merge groups of a few rows, or give them a prior that holds them "
            "together. pm.fit(method='laplace') takes all rows."
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
