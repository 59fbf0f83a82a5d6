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


def falling_adam(
    loss_or_grads: Variable | list[Variable],
    params: list[SharedVariable],
    *,
    rate: float,
    n_steps: int,
    units: Sequence[SharedVariable],
) -> dict[SharedVariable, Variable]:
    """Adam whose rate falls linearly to zero over ``n_steps``, and then begins to fall again.

    Parameters
    ----------
    loss_or_grads : Variable or list of Variable
        A loss, or its gradients.
    params : list of SharedVariable
        What is optimized.
    rate : float
        The rate of the first step.
    n_steps : int
        Steps until the rate is zero. A fit that goes on does so with the first rate: steps of rate
        zero would do nothing.
    units : sequence of SharedVariable
        What a rate of one means for each entry of the parameters: arrays of their shapes. They are
        part of the state of the optimizer, and kept in checkpoints.

    Returns
    -------
    dict
        The update of each parameter and of the state.

    Examples
    --------
    >>> from functools import partial
    >>> import numpy as np
    >>> import pytensor
    >>> from pymc.variational.falling_rate import falling_adam
    >>> x = pytensor.shared(np.array([3.0, 300.0]))
    >>> units = [pytensor.shared(np.array([1.0, 100.0]))]
    >>> loss = (x**2).sum()
    >>> updates = falling_adam(loss, [x], rate=0.1, n_steps=200, units=units)
    >>> step = pytensor.function([], loss, updates=updates)
    >>> for _ in range(200):
    ...     loss = step()
    >>> bool(np.allclose(x.get_value(), 0, atol=0.1))
    True
    """
    step = pytensor.shared(np.asarray(0, config.floatX), "step")
    n = np.asarray(n_steps, config.floatX)
    updates = OrderedDict({step: step + 1})
    left = 1 - (step % n) / n
    for grad, param, unit in zip(
        get_or_compute_grads(loss_or_grads, params), params, units, strict=True
    ):
        updates.update(adam([grad], [param], learning_rate=rate * left * unit))
        updates[unit] = unit
    return updates
