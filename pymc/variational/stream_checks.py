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
"""What a model with streams must be like for its posterior to be right: checked before a fit."""

from typing import Any

import numpy as np

from pytensor.graph.basic import Constant, Variable
from pytensor.graph.traversal import ancestors
from pytensor.tensor import NoneConst

from pymc.data import MinibatchOp
from pymc.pytensorf import constant_fold
from pymc.variational.minibatch_rv import MinibatchRandomVariable, get_scaling
from pymc.variational.stream_index import check_indices
from pymc.variational.stream_refusals import by_value, streams_behind
from pymc.variational.stream_rows import ONE_SOURCE, check_rows
from pymc.variational.streaming import StreamingDataset


def check_streams(model: Any, scaled: bool = True) -> dict[Variable, StreamingDataset]:
    """Refuse a model whose streams would give a wrong posterior, before anything is compiled.

    Parameters
    ----------
    model : Model
        The model.
    scaled : bool, default True
        Whether ``total_size`` scales batches to all rows. A pass over all rows does without.

    Returns
    -------
    dict
        The observed variables that use a stream, with the stream.

    Raises
    ------
    ValueError
        If an observed variable uses a stream without ``total_size``, meets rows of a stream with
        rows from elsewhere, or is no likelihood of independent rows; if the prior of a free
        variable depends on a stream.

    Warns
    -----
    UserWarning
        If ``total_size`` is not the number of rows of the stream.
    """
    _check_free_variables(model)
    observed: dict[Variable, StreamingDataset] = {}
    expected: dict[StreamingDataset, dict[str, float]] = {}
    for rv in model.observed_RVs:
        value = model.rvs_to_values[rv]
        behind = list(ancestors([rv, value]))
        streams = streams_behind(behind)
        if not streams:
            continue
        stream = streams[0]
        _check_one_source(rv, value, behind, streams)
        observed[rv] = stream
        if not scaled:
            continue
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
        sizes = expected.setdefault(stream, {})
        [scale] = constant_fold([get_scaling(total_sizes, value.shape)], raise_not_constant=False)
        if not isinstance(scale, Variable):
            sizes[f"observed variable `{rv.name}`"] = float(scale) * stream.batch_size
    potentials = [term for term in model.potentials if streams_behind(ancestors([term]))]
    used = dict.fromkeys([*observed.values(), *streams_behind(ancestors(potentials))])
    check_indices(model, [*observed, *potentials], list(used))
    if observed:
        check_rows(model, observed)
    for stream, sizes in expected.items():
        stream._expect_total_sizes(sizes)
    return observed


def _check_free_variables(model: Any) -> None:
    for rv in model.free_RVs:
        for stream in streams_behind(by_value(rv)):
            raise ValueError(
                f"free variable `{rv.name}` depends on the stream {stream.name!r}: each step it "
                f"would be the variable of the {stream.batch_size} rows that happen to be in the "
                "buffer, and its prior counts once a step, not once a row. Let its prior depend on "
                "parameters alone, with an entry for each group of rows that a column looks up: "
                "effect[group]; or integrate it out."
            )


def _check_one_source(
    rv: Variable, value: Variable, behind: list[Variable], streams: list[StreamingDataset]
) -> None:
    if len(streams) > 1:
        names = ", ".join(repr(stream.name) for stream in streams)
        raise ValueError(
            f"observed variable `{rv.name}` uses {len(streams)} streams ({names}): they drift apart, "
            f"so that rows of one meet rows of another. {ONE_SOURCE}"
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
            f"pm.Minibatch, which draws other rows. {ONE_SOURCE}"
        )
    # A constant is fine (the "ones trick"); labels that stay while the features move are not.
    if not streams_behind(ancestors([value])) and not (
        isinstance(value, Constant) and np.all(value.data == value.data.flat[0])
    ):
        raise ValueError(
            f"observed variable `{rv.name}` is computed from the stream {streams[0].name!r}, but its "
            f"observed data do not stream: they stay the same while the rows change. {ONE_SOURCE}"
        )
