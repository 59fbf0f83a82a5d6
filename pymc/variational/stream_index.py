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

"""Columns of a stream that look up entries of a parameter: what values they may have."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytensor

from pytensor.graph.basic import Variable
from pytensor.graph.traversal import ancestors, walk
from pytensor.raise_op import CheckAndRaise
from pytensor.scalar import Cast, Identity
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.shape import Reshape, SpecifyShape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor

from pymc.data import MinibatchOp
from pymc.variational.stream_refusals import buffers_behind, by_value, streams_behind
from pymc.variational.streaming import StreamingDataset

# What changes the place or the type of values, and not the values.
SELECTS = (
    *(Cast, Identity, MinibatchOp, Subtensor),
    *(DimShuffle, Reshape, SpecifyShape, CheckAndRaise),
)
Bounds = dict[tuple[int, int], tuple[int, str]]


def index_bounds(model: Any, variables: Sequence[Variable]) -> dict[StreamingDataset, Bounds]:
    """Find the columns of streams that are indices, and how many entries each looks up from.

    Compiled code does not check an index: past the end it reads whatever is there.

    Parameters
    ----------
    model : Model
        The model.
    variables : sequence of Variable
        Its observed variables and potentials that use streams.

    Returns
    -------
    dict
        For each stream, (array, column) to (number of entries, name of the parameter). A column
        that is an index only after arithmetic (``group - 1``) is not among them.
    """
    lookups = list(_lookups(model.logp(vars=list(variables), sum=False)))
    bounds: dict[StreamingDataset, Bounds] = {}
    if not lookups:
        return bounds
    point = model.initial_point(0)
    sizes = pytensor.function(
        model.value_vars,
        [x.shape[axis] for x, axis, _ in lookups],
        mode="FAST_COMPILE",
        on_unused_input="ignore",
    )(*(point[value.name] for value in model.value_vars))
    for (x, _, _), size, columns in zip(lookups, sizes, _columns([i for *_, i in lookups])):
        for stream, array, column in columns:
            known = bounds.setdefault(stream, {})
            entry = (int(size), _name(model, x))
            known[array, column] = min(entry, known.get((array, column), entry))
    return bounds


def _lookups(graphs: Sequence[Variable]) -> Iterator[tuple[Variable, int, Variable]]:
    """Give what is looked up from, along which axis, and the index, for each of columns."""
    for variable in ancestors(graphs):
        node = variable.owner
        if node is None or not isinstance(node.op, AdvancedSubtensor):
            continue
        x, *indices = node.inputs
        for axis, i in enumerate(node.op.idx_list):
            if isinstance(i, int) and _is_selection(indices[i]):
                yield x, axis, indices[i]


def _is_selection(index: Variable) -> bool:
    """Tell whether an index is columns of a stream as they are, not computed from them."""
    streamed = [variable for variable in by_value(index) if streams_behind(by_value(variable))]
    for variable in streamed:
        node = variable.owner
        op = node and (node.op.scalar_op if isinstance(node.op, Elemwise) else node.op)
        if op and not isinstance(op, SELECTS):
            return False
    return bool(streamed)


def _columns(indices: list[Variable]) -> list[set[tuple[StreamingDataset, int, int]]]:
    """Find the (stream, array, column) that each index consists of.

    Where each column holds its own number, so does what was selected from it. Numbers are given
    in parts that the smallest integers hold.
    """
    buffers = buffers_behind(indices)
    inputs = [buffer.type() for buffer in buffers]
    select = pytensor.function(
        inputs, indices, givens=list(zip(buffers, inputs)), mode="FAST_COMPILE"
    )
    shapes = [buffer.get_value(borrow=True).shape for buffer in buffers]
    numbers = [np.arange(np.prod(shape[1:], dtype=int)).reshape(shape[1:]) for shape in shapes]
    parts = [
        [np.full_like(columns, i) for i, columns in enumerate(numbers)],
        [columns // 100 for columns in numbers],
        [columns % 100 for columns in numbers],
    ]
    selected = []
    for part in parts:
        rows = (np.broadcast_to(columns, shape) for columns, shape in zip(part, shapes))
        selected.append(select(*(r.astype(b.dtype) for r, b in zip(rows, buffers))))
    arrays = [
        [own.container for own in buffer.tag.stream._buffers].index(buffer.container)
        for buffer in buffers
    ]
    return [
        {
            (buffers[i].tag.stream, arrays[i], 100 * high + low)
            for i, high, low in np.unique(np.stack([np.ravel(x) for x in found]), axis=1)
            .T.astype(int)
            .tolist()
        }
        for found in zip(*selected)
    ]


def _name(model: Any, x: Variable) -> str:
    """Name what is looked up from: the first free variable that it is made of."""
    values = [
        v for v in walk([x], lambda v: v.owner and v.owner.inputs) if v in model.values_to_rvs
    ]
    return model.values_to_rvs[values[0]].name if values else x.name or "an array"
