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
"""What keeps a model with streams from a wrong posterior: checks before a fit, and refusals."""

import warnings

from typing import Any

import numpy as np

from pytensor.graph.basic import Constant, Variable
from pytensor.graph.traversal import ancestors
from pytensor.tensor import NoneConst
from pytensor.tensor.sharedvar import TensorSharedVariable

from pymc.data import MinibatchOp
from pymc.pytensorf import constant_fold
from pymc.variational.minibatch_rv import MinibatchRandomVariable, get_scaling
from pymc.variational.streaming import StreamingDataset


def check_streams(model: Any) -> list[StreamingDataset]:
    """Refuse a model whose streams would give a wrong posterior, before anything is compiled.

    Returns
    -------
    list of StreamingDataset
        The streams behind observed variables.

    Raises
    ------
    ValueError
        If an observed variable uses a stream without ``total_size``, or meets rows of a stream
        with rows from elsewhere.

    Warns
    -----
    UserWarning
        If ``total_size`` is not the number of rows of the stream.
    """
    claims: dict[StreamingDataset, dict[str, float]] = {}
    for rv in model.observed_RVs:
        value = model.rvs_to_values[rv]
        behind = list(ancestors([rv, value]))
        streams = streams_behind(behind)
        if not streams:
            continue
        stream = streams[0]
        _check_rows_match(model, rv, value, behind, streams)
        scaled = isinstance(rv.owner.op, MinibatchRandomVariable)
        total_sizes = rv.owner.inputs[1:] if scaled else []
        if all(NoneConst.equals(size) for size in total_sizes):
            n_rows = stream.total_size
            raise ValueError(
                f"observed variable `{rv.name}` uses the stream {stream.name!r} without total_size: "
                f"its {stream.batch_size} rows would count as all the data there is, and the "
                "posterior would be far too wide. Pass "
                + (
                    f"total_size={n_rows}."
                    if n_rows
                    else "total_size=N, the number of rows of the whole data: the source does not "
                    "tell it."
                )
            )
        claim = claims.setdefault(stream, {})
        [scale] = constant_fold([get_scaling(total_sizes, value.shape)], raise_not_constant=False)
        if not isinstance(scale, Variable):
            claim[f"observed variable `{rv.name}`"] = float(scale) * stream.batch_size
    for stream, claim in claims.items():
        stream._expect_total_sizes(claim)
    return list(claims)


def _check_rows_match(
    model: Any,
    rv: Variable,
    value: Variable,
    behind: list[Variable],
    streams: list[StreamingDataset],
) -> None:
    one_source = (
        "Stream all that a likelihood needs from one source: columns of one table, or blocks that "
        "are tuples of arrays."
    )
    if len(streams) > 1:
        names = ", ".join(repr(stream.name) for stream in streams)
        raise ValueError(
            f"observed variable `{rv.name}` uses {len(streams)} streams ({names}): they drift apart, "
            f"so that rows of one meet rows of another. {one_source}"
        )
    in_memory = [
        variable
        for variable in behind
        if variable.owner is not None
        and isinstance(variable.owner.op, MinibatchOp)
        and not streams_behind(variable.owner.inputs)
    ]
    if in_memory:
        raise ValueError(
            f"observed variable `{rv.name}` uses the stream {streams[0].name!r} and an in-memory "
            f"pm.Minibatch, which draws other rows. {one_source}"
        )
    # A constant is fine (the "ones trick"); labels that stay while the features move are not.
    if not streams_behind(list(ancestors([value]))) and not (
        isinstance(value, Constant) and np.all(value.data == value.data.flat[0])
    ):
        raise ValueError(
            f"observed variable `{rv.name}` is computed from the stream {streams[0].name!r}, but its "
            f"observed data do not stream: they stay the same while the rows change. {one_source}"
        )
    # The other way round it could also be a vector that happens to be as long as a batch.
    others = [other for other in model.basic_RVs if other is not rv]
    for variable in ancestors([rv], blockers=others):
        if variable not in others and _has_a_row_each(variable, streams[0].batch_size):
            warnings.warn(
                f"observed variable `{rv.name}`: an array of {streams[0].batch_size} rows, as many as "
                f"a batch of stream {streams[0].name!r} has, stays the same while the rows of the "
                f"stream change. {one_source}",
                stacklevel=2,
            )
            return


def _has_a_row_each(variable: Variable, batch_size: int) -> bool:
    """Tell whether a variable holds fixed data that differ along a first axis of ``batch_size``."""
    if isinstance(variable, Constant):
        data = variable.data
    elif isinstance(variable, TensorSharedVariable) and not streams_behind([variable]):
        data = variable.get_value(borrow=True)
    else:
        return False
    shape = np.shape(data)
    return len(shape) > 0 and shape[0] == batch_size > 1 and bool(np.any(data != data[:1]))


def refuse_streams(model: Any, what: str) -> None:
    """Refuse to run ``what`` on a model that observes a stream: it would see one batch only.

    Raises
    ------
    ValueError
        If an observed variable or a potential uses a stream.
    """
    for variable in (*model.observed_RVs, *model.potentials):
        value = model.rvs_to_values.get(variable, variable)
        for stream in streams_behind(list(ancestors([variable, value]))):
            raise ValueError(
                f"{what} on a model whose `{variable.name}` uses the stream {stream.name!r}: it "
                f"would take the {stream.batch_size} rows that happen to be in the buffer for all "
                f"the data. Use pm.fit, or {what} on data in memory."
            )


def is_streamed(value: Variable | None) -> bool:
    """Tell whether the value of an observed variable is one batch of a stream."""
    return value is not None and bool(streams_behind(list(ancestors([value]))))


def streams_behind(variables: list[Variable]) -> list[StreamingDataset]:
    tagged = (getattr(variable.tag, "stream", None) for variable in variables)
    return list(dict.fromkeys(stream for stream in tagged if stream is not None))
