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
"""What ``pm.find_MAP`` optimizes on a model with streams: the log-density over all rows."""

import logging

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np

from pytensor.gradient import NullTypeGradError
from pytensor.graph.traversal import ancestors
from pytensor.tensor.sharedvar import TensorSharedVariable

from pymc.blocking import PointType, RaveledVars
from pymc.model import Model
from pymc.variational.full_data_logp import FullDataLogp
from pymc.variational.laplace import MAX_STEPS, TOLERANCE, climb, sample_size, weight_of
from pymc.variational.stream_refusals import streams_behind
from pymc.vartypes import discrete_types

_log = logging.getLogger(__name__)


def streamed_loss(
    model: Model,
    start: PointType,
    fixed: dict[Any, TensorSharedVariable],
    rng: np.random.Generator,
    compile_kwargs: dict[str, Any] | None,
    executor: Executor | None,
) -> "StreamedLoss | None":
    """Return what is minimized if the model uses streams, and None if it does not."""
    values = [model.rvs_to_values[rv] for rv in model.observed_RVs]
    if not streams_behind(ancestors([*model.observed_RVs, *values, *model.potentials])):
        return None
    full = FullDataLogp(
        model,
        jacobian=False,
        progressbar=False,
        compile_kwargs=compile_kwargs,
        executor=executor,
    )
    return StreamedLoss(full, start, fixed, rng)


class StreamedLoss:
    """The negative log-density over all rows, of some of the parameters, as SciPy takes it.

    Until :meth:`start` is called, it is that over a random sample of the rows.

    Parameters
    ----------
    full : FullDataLogp
        The log-density.
    start : dict
        A point.
    fixed : dict
        The value variables that it is no function of, with shared variables for their values.
    rng : Generator
        What the sample is drawn with.
    """

    def __init__(
        self,
        full: FullDataLogp,
        start: PointType,
        fixed: dict[Any, TensorSharedVariable],
        rng: np.random.Generator,
    ):
        self._full, self._start, self._fixed = full, start, fixed
        self._free = [v for v in full.model.value_vars if v not in fixed]
        is_free = {
            v.name: np.full(np.shape(start[v.name]), v in self._free) for v in full.model.value_vars
        }
        self._places = np.flatnonzero(full.ravel(is_free))
        self._sample = self._rows = full.sample(sample_size(full), rng)
        self._covariance: np.ndarray | None = None  # near the optimum
        self._forget()

    def _forget(self) -> None:
        self._last: bytes | None = None
        self._values: list[Any] = []

    def functions(
        self, use_grad: bool, use_hess: bool, use_hessp: bool
    ) -> tuple[Callable[[np.ndarray], Any], Callable[[np.ndarray, np.ndarray], Any] | None]:
        """Return the loss, with the derivatives asked for, and its Hessian-vector product."""
        n_derivatives = use_grad + use_hess

        def loss(x: np.ndarray) -> Any:
            value, *derivatives = (-v for v in self._evaluate(x, n_derivatives))
            if not derivatives:
                return value
            gradient, *hessian = derivatives
            return value, self._without_rounding(gradient), *hessian

        def hessp(x: np.ndarray, p: np.ndarray) -> np.ndarray:
            return -self._evaluate(x, 2)[2] @ p

        # A model that has no derivatives says so here.
        x = self._full.ravel(self._start)[self._places]
        self._evaluate(x, 2 if use_hessp else n_derivatives)
        return loss, hessp if use_hessp else None

    def start(self, x0: RaveledVars) -> RaveledVars:
        """Return the optimum, as good as Newton's method has it, for the optimizer to start at."""
        x = np.asarray(x0.data)
        try:
            x = self._climb(x) if not self._has_discrete() else self._powell(x)
        except (NotImplementedError, NullTypeGradError):
            x = self._powell(x)
        if weight_of(self._sample) > 1:
            self._rows = self._full
            self._forget()
            if self._covariance is not None:
                x = self._climb(x)
        return RaveledVars(x, x0.point_map_info)

    def say(self) -> None:
        """Say what was read."""
        n_rows, n_sampled = self._full.n_rows, self._sample.n_rows
        _log.info(
            f"find_MAP: {self._full.n_passes} passes over {n_rows:,} rows, from the optimum of a "
            f"random sample of {n_sampled:,}"
            if self._rows is self._full
            else f"find_MAP: {n_rows:,} rows, which were read once"
        )

    def _climb(self, x: np.ndarray) -> np.ndarray:
        end = climb(lambda x: tuple(self._evaluate(x, 2)), x, MAX_STEPS)
        if end.problem is not None or not end.converged:
            return x
        self._covariance = end.point.covariance
        return end.q

    def _powell(self, x: np.ndarray) -> np.ndarray:
        from better_optimize import minimize

        loss, _ = self.functions(False, False, False)
        return np.asarray(minimize(loss, x0=x, method="powell", progressbar=False).x)

    def _has_discrete(self) -> bool:
        return any(variable.dtype in discrete_types for variable in self._free)

    def _without_rounding(self, gradient: np.ndarray) -> np.ndarray:
        """Take a gradient for zero within the tolerance of the optimum.

        Optimizers compare it with an absolute number, which is far below the rounding of a sum over
        millions of rows: they would go on, pass after pass, and then say that they had failed.
        """
        if self._covariance is None or gradient @ self._covariance @ gradient > TOLERANCE**2:
            return gradient
        return np.zeros_like(gradient)

    def _evaluate(self, x: np.ndarray, n_derivatives: int) -> list[Any]:
        """Evaluate the log-density and its derivatives, or take them from the evaluation before."""
        q = self._full.ravel(
            self._start | {variable.name: v.get_value() for variable, v in self._fixed.items()}
        ).astype("float64")
        q[self._places] = x
        if self._last != q.tobytes() or len(self._values) <= n_derivatives:
            kind = (self._rows.logp, self._rows.dlogp, self._rows.d2logp)[n_derivatives]
            values: Any = kind(q)
            logp, *derivatives = values if n_derivatives else (values,)
            for i, derivative in enumerate(derivatives, 1):
                derivatives[i - 1] = derivative[np.ix_(*[self._places] * i)]
            self._last, self._values = q.tobytes(), [logp, *derivatives]
        return self._values[: n_derivatives + 1]
