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
"""Adam with a rate that falls to zero: how a fit of a known number of steps comes to rest."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import pytensor
import pytensor.tensor as pt

from pytensor import config
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable

from pymc.variational.updates import adam, get_or_compute_grads

MAX_RATE = 0.1
# How far a random walk of n steps may go, and how fast the rate may grow with n where the noise of
# a batch is small: found by ``python -m benchmarks.rates``. The walk is short, as it is some times
# longer where row groups in random order make the noise of one batch like that of the next.
WALK = 0.05
ROOM = 1e-3


def first_rate(n_steps: int, noise: float) -> float:
    r"""Choose the rate that a fit which starts near its optimum begins with.

    Adam takes steps of the rate in the direction of the gradient's sign, more or less. Where noise
    hides the gradient that is a random walk, which goes about :math:`\sqrt{n/3}` rates in n steps
    while the rate falls: the first bound keeps it short. Where n batches tell more than the start
    does, an optimum that is far from the start is to be reached: the rate may be so large that what
    is left of the noise in the end, :math:`noise^{3/4} (rate / 2n)^{1/4}`, is 0.15 posterior
    sds by this estimate.

    Parameters
    ----------
    n_steps : int
        Steps of the fit.
    noise : float
        Standard deviation of the Newton step that one batch gives, in posterior sds.

    Returns
    -------
    float
        The rate, in posterior sds.

    Examples
    --------
    >>> from pymc.variational.falling_rate import first_rate
    >>> first_rate(10_000, noise=70.0), first_rate(10_000, noise=1.5)
    (0.0005, 0.1)
    """
    return min(MAX_RATE, max(WALK / n_steps**0.5, ROOM * n_steps / noise**3))


class FallingAdam:
    """Adam whose rate falls linearly to zero over the steps of a fit.

    It is an optimizer as those of :mod:`pymc.variational.updates`, of a loss (or its gradients) and
    the parameters. Its state, with the rates and the ends of the fall, is kept in checkpoints.

    Parameters
    ----------
    rates : list of ndarray
        The rate of the first step for each entry of the parameters: arrays of their shapes.

    Examples
    --------
    >>> import numpy as np
    >>> import pytensor
    >>> from pymc.variational.falling_rate import FallingAdam
    >>> x = pytensor.shared(np.array([3.0, 300.0]))
    >>> loss = (x**2).sum()
    >>> optimizer = FallingAdam([np.array([0.1, 10.0])])
    >>> step = pytensor.function([], loss, updates=optimizer(loss, [x]))
    >>> optimizer.fall_between(0, 200)
    >>> for _ in range(200):
    ...     loss = step()
    >>> bool(np.allclose(x.get_value(), 0, atol=0.1))
    True
    """

    def __init__(self, rates: Sequence[np.ndarray]):
        self._rates = [
            pytensor.shared(rate.astype(config.floatX), f"rate_{i}", shape=rate.shape)
            for i, rate in enumerate(rates)
        ]
        self._step, self._first, self._last = (
            pytensor.shared(np.asarray(value, config.floatX), name)
            for name, value in (("step", 0), ("first_step", 0), ("last_step", 1))
        )

    def fall_between(self, first: int, last: int) -> None:
        """Let the rate fall from step ``first`` to step ``last``, of all steps that were taken."""
        for shared, value in ((self._first, first), (self._last, max(last, first + 1))):
            shared.set_value(np.asarray(value, config.floatX))

    def __call__(
        self, loss_or_grads: Variable | list[Variable], params: list[SharedVariable]
    ) -> dict[SharedVariable, Variable]:
        left = (self._last - self._step) / (self._last - self._first)
        left = pt.clip(left, 0, 1).astype(config.floatX)
        updates = OrderedDict({self._step: self._step + 1})
        # State that stays as it is: it is written to checkpoints as the rest is.
        updates |= {shared: shared for shared in (self._first, self._last, *self._rates)}
        grads = get_or_compute_grads(loss_or_grads, params)
        for grad, param, rate in zip(grads, params, self._rates, strict=True):
            updates.update(adam([grad], [param], learning_rate=rate * left))
        return updates
