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
"""What ``pm.Minibatch`` and ``pm.fit`` call: the only ties from PyMC to streams."""

import warnings

from pathlib import Path
from typing import Any, cast

import numpy as np

from pytensor import config
from pytensor.compile.mode import Mode, get_mode
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.traversal import ancestors
from pytensor.link.numba.linker import NumbaLinker
from pytensor.tensor import NoneConst, tensor_copy
from pytensor.tensor.sharedvar import TensorSharedVariable

from pymc.data import MinibatchOp
from pymc.pytensorf import constant_fold
from pymc.variational.minibatch_rv import MinibatchRandomVariable, get_scaling
from pymc.variational.stream_blocks import is_arrow
from pymc.variational.streaming import StreamingDataset


def is_stream_source(data: Any) -> bool:
    """Tell whether ``pm.Minibatch`` streams ``data``: what is no array or tensor, nor made one."""
    from scipy.sparse import issparse  # here, as PyMC does not import it

    if isinstance(data, Variable | list | tuple | range) or issparse(data):
        return False
    if is_arrow(data) or isinstance(data, str | bytes | Path):
        return True  # of a path the error says how it is streamed
    return not hasattr(data, "__array__") and (hasattr(data, "__iter__") or callable(data))


def stream_minibatch(*sources: Any, batch_size: int, check_order: str) -> Variable | list[Variable]:
    """Stream a source as ``pm.Minibatch`` does, marked with PyMC's own ``MinibatchOp``."""
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


def prepare_streams(model: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Check a model's streams, and let its step function run beside the threads that read them.

    Parameters
    ----------
    model : Model
        The model.
    kwargs : dict
        Arguments of the step function.

    Returns
    -------
    dict
        The arguments, with another mode in ``compile_kwargs`` where the model has streams.
    """
    return beside_threads(kwargs) if check_streams(model) else kwargs


def beside_threads(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Have a step function compiled so that other threads run beside it, where numba does it.

    Numba else keeps Python's lock, and a thread that wants it waits for some steps each time.
    """
    compile_kwargs = kwargs.get("compile_kwargs") or {}
    mode = get_mode(compile_kwargs.get("mode"))
    if type(mode.linker) is not NumbaLinker:
        return kwargs
    mode = Mode(_StepLinker(), mode.provided_optimizer)
    return kwargs | {"compile_kwargs": compile_kwargs | {"mode": mode}}


class _StepLinker(NumbaLinker):
    """Compile a function that runs without Python's lock, and is quick to call.

    PyTensor's own takes ``*args``: numba then works out the type of the tuple in each call, which
    takes longer than the step of a small model if a random generator is in it.
    """

    def jit_compile(self, fn_and_cache: Any) -> Any:
        from pytensor.link.numba.cache import compile_numba_function_src
        from pytensor.link.numba.dispatch.basic import numba_njit

        function, key = fn_and_cache
        if key is not None:
            # Of its own: numba's cache does not tell this function from the one with the lock.
            key = f"{key}_fastmath{int(config.numba__fastmath)}_nogil"
        assert self.fgraph is not None
        names = ", ".join(f"i{i}" for i in range(len(self.fgraph.inputs)))
        step = compile_numba_function_src(
            f"def step({names}): return function({names})",
            function_name="step",
            global_env={"__name__": __name__, "function": function},
            cache_key=key,
        )
        return numba_njit(step, final_function=True, nogil=True, cache=key is not None)


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
        streams = _streams_behind(behind)
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
        stream._claim_total_sizes(claim)
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
        and not _streams_behind(variable.owner.inputs)
    ]
    if in_memory:
        raise ValueError(
            f"observed variable `{rv.name}` uses the stream {streams[0].name!r} and an in-memory "
            f"pm.Minibatch, which draws other rows. {one_source}"
        )
    # A constant is fine (the "ones trick"); labels that stay while the features move are not.
    if not _streams_behind(list(ancestors([value]))) and not (
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
    elif isinstance(variable, TensorSharedVariable) and not _streams_behind([variable]):
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
        for stream in _streams_behind(list(ancestors([variable, value]))):
            raise ValueError(
                f"{what} on a model whose `{variable.name}` uses the stream {stream.name!r}: it "
                f"would take the {stream.batch_size} rows that happen to be in the buffer for all "
                f"the data. Use pm.fit, or {what} on data in memory."
            )


def is_streamed(value: Variable | None) -> bool:
    """Tell whether the value of an observed variable is one batch of a stream."""
    return value is not None and bool(_streams_behind(list(ancestors([value]))))


def streams_of(step_function: Any, model: Any) -> list[StreamingDataset]:
    """List the streams that a compiled step function of a model reads.

    Warns
    -----
    UserWarning
        If a stream is not behind an observed variable, whose ``total_size`` would scale it.
    """
    streams = _streams_behind(step_function.get_shared())
    if not streams:
        return []
    values = [model.rvs_to_values[rv] for rv in model.observed_RVs]
    scaled = _streams_behind(list(ancestors([*model.observed_RVs, *values])))
    for stream in streams:
        if stream not in scaled:
            warnings.warn(
                f"stream {stream.name!r} enters the model other than through an observed variable "
                "(a Potential, say), so that total_size does not scale its log-likelihood: "
                f"multiply it by N / {stream.batch_size} yourself.",
                stacklevel=2,
            )
    return streams


def advance_streams(streams: list[StreamingDataset], step: int, n_steps: int) -> None:
    """Give each stream a new batch for step ``step`` (from 0) of ``n_steps``.

    Raises
    ------
    StopIteration
        If a stream has ended, after a warning that says how many steps are done.
    """
    for stream in streams:
        stream._begin_step(step, n_steps)


def _streams_behind(variables: list[Variable]) -> list[StreamingDataset]:
    tagged = (getattr(variable.tag, "stream", None) for variable in variables)
    return list(dict.fromkeys(stream for stream in tagged if stream is not None))
