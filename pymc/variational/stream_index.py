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

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytensor

from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import ancestors, walk
from pytensor.raise_op import CheckAndRaise
from pytensor.scalar import Cast, Identity
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.shape import Reshape, SpecifyShape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor

from pymc.data import MinibatchOp
from pymc.variational.stream_index_checks import Bounds, ComputedIndex
from pymc.variational.stream_refusals import buffers_behind, by_value, streams_behind
from pymc.variational.streaming import StreamingDataset

# What changes the place or the type of values, and not the values.
SELECTS = (
    *(Cast, Identity, MinibatchOp, Subtensor),
    *(DimShuffle, Reshape, SpecifyShape, CheckAndRaise),
)
Check = Callable[[Sequence[np.ndarray]], None]


def check_indices(
    model: Any, variables: Sequence[Variable], streams: Sequence[StreamingDataset]
) -> None:
    """Have each batch checked for indices without an entry, before a step uses it.

    Compiled code does not check an index: past the end it reads whatever is there. A column that
    is an index is checked as it is, and what is computed from columns (``group - 1``) is computed.

    Parameters
    ----------
    model : Model
        The model.
    variables : sequence of Variable
        Its observed variables and potentials that use streams.
    streams : sequence of StreamingDataset
        The streams that they use.

    Raises
    ------
    ValueError
        If a batch that is loaded holds such an index.
    """
    bounds: dict[StreamingDataset, Bounds] = {stream: {} for stream in streams}
    computed: dict[StreamingDataset, list[Check]] = {stream: [] for stream in streams}
    lookups = list(_lookups(model, model.logp(vars=list(variables), sum=False)))
    if lookups:
        _find_bounds(model, lookups, bounds, computed)
    for stream in bounds:
        stream._set_index_bounds(bounds[stream], computed[stream])


def _find_bounds(
    model: Any,
    lookups: list[tuple[Variable, int, Variable]],
    bounds: dict[StreamingDataset, Bounds],
    computed: dict[StreamingDataset, list[Check]],
) -> None:
    """Find (array, column) of what is an index, with the entries that there are and their name."""
    point = model.initial_point(0)
    sizes = pytensor.function(
        model.value_vars,
        [x.shape[axis] for x, axis, _ in lookups],
        mode="FAST_COMPILE",
        on_unused_input="ignore",
    )(*(point[value.name] for value in model.value_vars))
    plain = [lookup for lookup in lookups if _is_selection(lookup[2])]
    columns = dict(zip(plain, _columns([i for *_, i in plain]) if plain else []))
    for lookup, size in zip(lookups, sizes):
        x, _, index = lookup
        entry = (int(size), _name(model, x))
        for stream, array, column in columns.get(lookup, ()):
            known = bounds[stream]
            known[array, column] = min(entry, known.get((array, column), entry))
        if lookup not in columns:
            for stream in streams_behind(by_value(index)):
                computed[stream].append(_check_of(index, stream, *entry))


def _check_of(index: Variable, stream: StreamingDataset, size: int, who: str) -> Check:
    """Return a function that computes an index from a batch, and checks it."""
    buffers = buffers_behind([index])
    own = [buffer.container for buffer in stream._buffers]
    places = [own.index(buffer.container) for buffer in buffers]
    inputs = [buffer.type() for buffer in buffers]
    [of_batch] = graph_replace([index], dict(zip(buffers, inputs)))
    return ComputedIndex(stream.name, places, inputs, of_batch, size, who)


def _lookups(model: Any, graphs: Sequence[Variable]) -> Iterator[tuple[Variable, int, Variable]]:
    """Give what is looked up from, along which axis, and the index, for each made of columns."""
    for variable in ancestors(graphs):
        node = variable.owner
        if node is None or not isinstance(node.op, AdvancedSubtensor):
            continue
        x, *indices = node.inputs
        for axis, i in enumerate(node.op.idx_list):
            if not isinstance(i, int) or indices[i].dtype == "bool":
                continue
            computable = not set(ancestors([indices[i]])) & set(model.value_vars)
            if computable and streams_behind(by_value(indices[i])):
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
