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
"""``pm.Minibatch`` on a source that is no array or tensor: a stream."""

from pathlib import Path
from typing import Any, cast

import numpy as np

from pytensor.graph.basic import Variable
from pytensor.tensor import tensor_copy

from pymc.data import MinibatchOp
from pymc.streams.blocks import is_array, is_on_disk
from pymc.streams.sources.opening import is_arrow_source
from pymc.variational.streaming import StreamingDataset


def is_stream_source(data: Any) -> bool:
    """Tell whether ``pm.Minibatch`` streams ``data``: what is no array or tensor, nor made one."""
    from scipy.sparse import issparse  # here, as PyMC does not import it

    if isinstance(data, Variable | list | tuple | range) or issparse(data):
        return False
    if isinstance(data, str | bytes | Path):
        return True  # the error says how it is streamed
    if is_arrow_source(data) or is_on_disk(data) or isinstance(data, np.memmap):
        return True
    return not hasattr(data, "__array__") and (hasattr(data, "__iter__") or callable(data))


def stream_minibatch(*sources: Any, batch_size: int, check_order: str) -> Variable | list[Variable]:
    """Stream a source as ``pm.Minibatch`` does, marked with PyMC's own ``MinibatchOp``."""
    if len(sources) > 1 and all(map(is_array, sources)):
        sources = (sources,)
    if len(sources) > 1:
        raise TypeError(
            "pm.Minibatch takes one streamed source: two would drift apart, so that rows of one "
            "meet rows of another. Stream features and labels as columns of one table, or as "
            "blocks that are tuples of arrays."
        )
    dataset = StreamingDataset(sources[0], batch_size=batch_size, check_order=check_order)
    tensors = dataset.as_tensor()
    buffers = tensors if isinstance(tensors, list) else [tensors]
    op = MinibatchOp(buffers, [tensor_copy(buffer) for buffer in buffers])
    batches = cast(list[Variable], op(*buffers, return_list=True))
    for i, batch in enumerate(batches):
        batch.name = f"minibatch.{i}"
    return batches if isinstance(tensors, list) else batches[0]
