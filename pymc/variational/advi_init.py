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
"""Where ADVI starts, and with which rate: the ``init`` argument of ``pm.fit``."""

import logging
import warnings

from typing import Any

import numpy as np

from pytensor import config
from pytensor.gradient import NullTypeGradError
from pytensor.graph.traversal import ancestors

from pymc.variational.falling_rate import FallingAdam, first_rate
from pymc.variational.minibatch_rv import MinibatchRandomVariable, get_scaling
from pymc.variational.stream_checks import check_streams
from pymc.variational.stream_refusals import streams_behind
from pymc.variational.streaming import StreamingDataset

_log = logging.getLogger(__name__)

INITS = ("auto", "mode", "initial_point")
METHODS = ("advi", "fullrank_advi")
# Steps of an sd, in those of a mean: an sd that is off by a fifth matters as a mean by half an sd.
SD_SHARE = 0.25


def as_start(init: str, start: Any) -> tuple[Any, Any]:
    """Take an approximation that is passed as ``start`` for what :func:`initialize` starts at."""
    from pymc.variational.opvi import Approximation

    if not isinstance(start, Approximation):
        return init, start
    if init != "auto":
        raise ValueError(f"init={init!r} and start both say where to start: leave one out.")
    return start, None


def refuse_init(kwargs: dict[str, Any]) -> None:
    """Refuse an ``init`` where it would be ignored: in :class:`pymc.ADVI` and its like."""
    if "init" in kwargs:
        raise TypeError(
            f"init={kwargs['init']!r} is an argument of pm.fit, which chooses the optimizer with it: "
            f"pm.fit(method='advi', init={kwargs['init']!r})."
        )


def initialize(
    init: str,
    method: Any,
    inference: Any,
    n: int,
    backend: str | None,
    inf_kwargs: dict[str, Any],
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """Put the approximation of a fit where ``init`` says, and choose the optimizer that goes with it.

    Parameters
    ----------
    init : {"auto", "mode", "initial_point"} or Approximation
        See :func:`pymc.fit`, whose ``start`` may be an approximation.
    method : str or Inference
        What ``pm.fit`` was given.
    inference : Inference
        The inference. The parameters of its approximation are set.
    n : int
        Steps of the fit.
    backend : str or None
        Backend of the fit.
    inf_kwargs, kwargs : dict
        Arguments of the inference, and of its ``fit``.

    Returns
    -------
    dict
        Arguments of ``fit``.

    Raises
    ------
    ValueError
        If there is no such ``init``, or "mode" does not go with the other arguments.
    """
    kwargs = dict(kwargs)
    # The steps are made here, and the start at the mode by it.
    executor = kwargs.pop("executor", None) if method in METHODS else None
    if not isinstance(init, str):
        if method not in METHODS:
            methods = " and ".join(map(repr, METHODS))
            raise ValueError(f"start is an approximation: that is for method={methods}.")
        if "start_sigma" in inf_kwargs:
            raise ValueError("start, an approximation, and start_sigma both say where to start.")
        return _start_at_approximation(init, method, inference, n, kwargs)
    if init not in INITS:
        raise ValueError(f"init={init!r}: it is one of {', '.join(map(repr, INITS))}.")
    starts = sorted({"start", "start_sigma"} & inf_kwargs.keys())
    if init == "mode":
        if method not in METHODS:
            raise ValueError(f'init="mode" is for method={" and ".join(map(repr, METHODS))}.')
        if starts:
            raise ValueError(
                f'init="mode" and {" and ".join(starts)} both say where to start: leave one out.'
            )
        return _start_at_mode(method, inference, n, backend, executor, kwargs)
    model = inference.approx.model
    chosen = starts or {"obj_optimizer", "more_obj_params"} & kwargs.keys()
    if init == "initial_point" or method not in METHODS or chosen or not _streams(model):
        return kwargs
    if streams_behind(ancestors(model.potentials)):
        why = "a Potential uses a stream"
    elif any(stream._reader.batches.blocks.one_shot for stream in _streams(model)):
        why = "a stream can be read only once"
    else:
        from pymc.variational.laplace import NoModeError

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the fit says them
            check_streams(model)
        try:
            return _start_at_mode(method, inference, n, backend, executor, kwargs)
        except (NoModeError, NotImplementedError, NullTypeGradError) as error:
            why = str(error)
    _log.info(f"Initializing {method} using initial_point, not mode: {why}")
    return kwargs


def _streams(model: Any) -> list[StreamingDataset]:
    values = [model.rvs_to_values[rv] for rv in model.observed_RVs]
    return streams_behind(ancestors([*model.observed_RVs, *values, *model.potentials]))


def _start_at_mode(
    method: str,
    inference: Any,
    n: int,
    backend: str | None,
    executor: Any,
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """Set the parameters of an approximation to the mode and what the curvature there gives."""
    from pymc.variational.full_data_logp import FullDataLogp
    from pymc.variational.laplace import find_mode, say_pareto_k

    [group] = inference.approx.groups
    progressbar = kwargs.get("progressbar", True)
    full = FullDataLogp(
        group.model,
        progressbar=progressbar,
        backend=backend,
        compile_kwargs=kwargs.get("compile_kwargs"),
        executor=executor,
    )
    rng = np.random.default_rng(group.random_seed)
    mode = find_mode(full, random_seed=rng, progressbar=progressbar)
    say_pareto_k(mode, rng)
    where = f"mode of all rows ({mode.n_passes} passes)"
    return _start_at(mode.q, mode.precision, where, method, inference, n, kwargs)


def _start_at_approximation(
    start: Any, method: str, inference: Any, n: int, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Set the parameters of an approximation to what the moments of another one give."""
    [own] = inference.approx.groups
    if len(start.groups) > 1 or _layout(start.groups[0]) != _layout(own):
        raise ValueError(
            "start is an approximation of other variables: pass one of the same model, of a single "
            "group, or a dict of initial values."
        )
    [group] = start.groups
    # By name: the order of the variables may be another one.
    places = np.arange(group.ddim)
    order = np.concatenate([places[group.ordering[name][1]] for name in own.ordering])
    mean, covariance = group.mean.eval()[order], group.cov.eval()[np.ix_(order, order)]
    try:
        np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:  # of fewer draws than parameters
        covariance = np.diag(covariance.diagonal())
    precision = np.linalg.inv(covariance)
    return _start_at(
        mean, precision, "the approximation that is passed", method, inference, n, kwargs
    )


def _layout(group: Any) -> dict[str, tuple]:
    return {name: shape for name, _, shape, _ in group.ordering.values()}


def _start_at(
    mean: np.ndarray,
    precision: np.ndarray,
    where: str,
    method: str,
    inference: Any,
    n: int,
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """Set the parameters of an approximation to those for a normal posterior."""
    sd = 1 / np.sqrt(np.diag(precision))
    values, units = {"mu": mean}, {"mu": sd}
    if method == "advi":
        values["rho"], units["rho"] = _softplus_inverse(sd), SD_SHARE * sd / _softplus_slope(sd)
    else:
        lower = np.tril_indices(len(sd))
        L = np.linalg.cholesky(np.linalg.inv(precision))
        # The errors of a row of p entries add up.
        unit = np.outer(SD_SHARE * sd, np.full(len(sd), len(sd) ** -0.5))
        unit[np.diag_indices(len(sd))] /= _softplus_slope(L.diagonal())
        np.fill_diagonal(L, _softplus_inverse(L.diagonal()))
        values["L_tril"], units["L_tril"] = L[lower], unit[lower]
    for param in inference.approx.params:
        param.set_value(values[param.name].astype(config.floatX))
    _log.info(
        f"Initializing {method} using {where}, with a rate that falls to zero over {n:,} steps..."
    )
    if "obj_optimizer" in kwargs:
        return kwargs
    rate = first_rate(max(n, 1), _noise(inference.approx.model))
    optimizer = FallingAdam([rate * units[param.name] for param in inference.approx.params])
    return kwargs | {"obj_optimizer": optimizer}


def _softplus_inverse(sd: np.ndarray) -> np.ndarray:
    return sd + np.log(-np.expm1(-sd))


def _softplus_slope(sd: np.ndarray) -> np.ndarray:
    """Return the derivative of softplus where it is ``sd``."""
    return -np.expm1(-sd)


def _noise(model: Any) -> float:
    """Return the sd of the Newton step that one batch gives, in posterior sds.

    A score of batch_size of N rows, times N / batch_size, has N / batch_size times the variance of
    that of all rows, which is the precision; the draw from the approximation adds as much as that.
    """
    scales = [
        float(get_scaling(rv.owner.inputs[1:], model.rvs_to_values[rv].shape).eval())
        for rv in model.observed_RVs
        if isinstance(rv.owner.op, MinibatchRandomVariable)
    ]
    return float(np.sqrt(1 + max(scales, default=0)))
