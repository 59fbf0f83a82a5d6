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
"""A model with rows in memory in the place of its streams."""

from itertools import chain
from typing import Any

import numpy as np
import pytensor

from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import clone_replace
from pytensor.graph.traversal import ancestors
from pytensor.raise_op import Assert
from pytensor.tensor import constant
from pytensor.tensor.subtensor import Subtensor

from pymc.data import MinibatchOp
from pymc.model import Model, modelcontext
from pymc.model.fgraph import (
    ModelObservedRV,
    fgraph_from_model,
    model_from_fgraph,
    model_named,
)
from pymc.model.transform.optimization import _extract_initial_values
from pymc.variational.all_rows import Batch, rows_behind, tensors_of
from pymc.variational.minibatch_rv import MinibatchRandomVariable
from pymc.variational.stream_checks import check_streams
from pymc.variational.stream_refusals import by_value
from pymc.variational.streaming import StreamingDataset


def model_of_rows(model: Model | None, rows: Any) -> Model:
    """Return a model of data in memory: with rows in the place of the model's stream.

    Variables, names, dims, coords, transforms and initial values are those of the model. The rows
    count once each, without ``total_size``. They are a :class:`pymc.Data` of the stream's name, so
    that :func:`pymc.set_data` puts others in their place.

    Parameters
    ----------
    model : Model or None
        A model that observes one stream; None for that of the context.
    rows : object
        What the stream could have as its source, to be held in memory: a table or mapping with its
        columns, in any order, say. A named column that only observed values are computed from may
        be missing, as in a table to predict: whatever asks for these values is then told so.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        If the model has no stream, or several, or a ``Potential`` on it; if a column is missing, or
        a value is one that the stream would not take.

    Examples
    --------
    Predict new rows:

    >>> import numpy as np
    >>> import pymc as pm
    >>> from pymc.variational.streaming import StreamingDataset, model_of_rows
    >>> rng = np.random.default_rng(1)
    >>> rows = {"x": rng.normal(size=10_000)}
    >>> rows["y"] = 2 * rows["x"] + rng.normal(size=10_000)
    >>> ds = StreamingDataset(rows, batch_size=500)
    >>> with pm.Model() as model:
    ...     slope = pm.Normal("slope", 0, 10)
    ...     obs = pm.Normal("obs", slope * ds["x"], 1, observed=ds["y"], total_size=ds.total_size)
    ...     approx = pm.fit(100, progressbar=False, random_seed=1)
    >>> with model_of_rows(model, {"x": np.array([0.0, 1.0])}):
    ...     trace = pm.sample_posterior_predictive(
    ...         approx.sample(500, random_seed=1),
    ...         predictions=True,
    ...         progressbar=False,
    ...         random_seed=1,
    ...     )
    >>> trace.predictions["obs"].mean(("chain", "draw")).round(0).values + 0.0
    array([0., 2.])
    """
    model = modelcontext(model)
    sources = list(rows_behind(_graphs(model)))
    if len(sources) != 1 or not isinstance(sources[0], StreamingDataset):
        raise ValueError(
            "model_of_rows takes a model that observes one stream, and no pm.Minibatch of arrays. "
            "Build the model of other rows on arrays; or predict(approx, rows, file) predicts them."
        )
    for potential in model.potentials:
        if rows_behind([potential]):
            raise ValueError(
                f"the Potential `{potential.name}` uses rows, and may have a factor N / batch_size in "
                "it, which would be wrong for other rows. Make it an observed variable: "
                "pm.CustomDist with observed= and total_size=."
            )
    [stream] = sources
    check_streams(model, scaled=False)
    batches = stream._reader.batches.like(rows, only_observed(model, stream))
    pieces = chain.from_iterable(batches.all_rows())
    arrays = [np.concatenate(parts) for parts in zip(*pieces)]
    if not arrays:
        raise ValueError("there are no rows: the source is empty.")
    stream._index_checks(arrays)
    of_rows = with_arrays(model, [(stream, arrays)], scaled=False)
    return _without_values(of_rows, batches.lacking) if batches.lacking else of_rows


def with_arrays(
    model: Model, arrays: list[tuple[StreamingDataset | Apply, Batch]], *, scaled: bool
) -> Model:
    """Return a model with arrays in the place of what it observes batch by batch.

    Parameters
    ----------
    model : Model
        The model.
    arrays : list of tuple
        Streams, or nodes of in-memory minibatches, each with the arrays to put in its place.
    scaled : bool
        Whether the arrays still stand for ``total_size`` rows.

    Returns
    -------
    Model
    """
    initial_values = _extract_initial_values(model)
    saved = dict(model.rvs_to_initial_values)
    try:
        # PyMC takes no model with initial values apart.
        model.rvs_to_initial_values.update(dict.fromkeys(saved))
        fgraph, memo = fgraph_from_model(model)
    finally:
        model.rvs_to_initial_values.update(saved)
    coords, lengths = fgraph._coords, fgraph._dim_lengths  # type: ignore[attr-defined]
    replacements: dict[Variable, Variable] = {}
    names, put = set(model.named_vars), set()
    for source, batch in arrays:
        variables = tensors_of(source, _graphs(model))
        _check_observed(model, {variable for _, variable in variables})
        for place, variable in variables:
            values, name = batch[place], variable.name or f"minibatch.{place}"
            while name in names:
                name += "_"
            names.add(name)
            data = pytensor.shared(values, name, shape=(None, *values.shape[1:]), borrow=True)
            put.add(name)
            replacements[memo[variable]] = model_named(data, name)
        for dim in _row_dims(model, {variable for _, variable in variables}):
            # The dim of the rows has their number, and no labels.
            replacements[lengths[dim]] = data.shape[0]
            coords, lengths = coords | {dim: None}, lengths | {dim: data.shape[0]}
    for node in fgraph.apply_nodes:
        if isinstance(node.op, MinibatchOp):  # of a stream
            pairs = zip(node.outputs, node.inputs)
            replacements |= {out: replacements[b] for out, b in pairs if b in replacements}
    outputs = clone_replace(fgraph.outputs, replacements, rebuild_strict=False)
    fgraph = FunctionGraph(outputs=outputs, clone=False)
    for node in [] if scaled else list(fgraph.apply_nodes):
        if isinstance(node.op, ModelObservedRV):
            rv = node.inputs[0]
            ours = {v.name for v in ancestors(node.inputs[:2]) if v.owner is None} & put
            if ours and isinstance(rv.owner.op, MinibatchRandomVariable):
                fgraph.replace(rv, rv.owner.inputs[0])
    fgraph._coords, fgraph._dim_lengths = coords, lengths  # type: ignore[attr-defined]
    of_rows = model_from_fgraph(fgraph, mutate_fgraph=True)
    order = list(model.named_vars)
    for variables in (of_rows.free_RVs, of_rows.observed_RVs, of_rows.deterministics):
        variables.sort(key=lambda variable: order.index(variable.name))
    for name, value in initial_values.items():
        of_rows.set_initval(of_rows[name], value)
    return of_rows


def _without_values(model: Model, columns: list[str]) -> Model:
    """Have whatever asks for the values of rows that lack columns told so."""
    unknown = Assert(
        f"the rows have no {', '.join(map(repr, columns))}, so that their observed values are not "
        "known. pm.sample_posterior_predictive(..., predictions=True) predicts them."
    )
    for rv in model.observed_RVs:
        value = model.rvs_to_values[rv]
        if set(model.data_vars) & set(ancestors([value])):
            value = unknown(value, False)
            value.tag.unknown = True  # results leave it out
            model.rvs_to_values[rv], model.values_to_rvs[value] = value, rv
    return model


def _graphs(model: Model) -> list[Variable]:
    values = [model.rvs_to_values[rv] for rv in model.observed_RVs]
    return [*model.basic_RVs, *values, *model.deterministics, *model.potentials]


def _check_observed(model: Model, variables: set[Variable]) -> None:
    for rv in model.observed_RVs:
        if variables & set(ancestors([rv])) and not variables & set(
            ancestors([model.rvs_to_values[rv]])
        ):
            raise ValueError(
                f"observed variable `{rv.name}` observes data of the length of a batch, which other "
                "rows have no values of. Observe a column of the rows, or what is computed from one: "
                "0 * column, say."
            )


def _row_dims(model: Model, variables: set[Variable]) -> set[str]:
    """Name the dims that the rows of a batch are along."""
    n_rows = {variable.type.shape[0] for variable in variables}
    found = set()
    for variable in (*model.observed_RVs, *model.deterministics):
        dim, *_ = model.named_vars_to_dims.get(variable.name) or [None]
        if dim is None or int(model.dim_lengths[dim].eval(mode="FAST_COMPILE")) not in n_rows:
            continue
        graphs = [variable, model.rvs_to_values.get(variable, variable)]
        if variables & set(ancestors(graphs)):
            found.add(dim)
    return found


def only_observed(model: Model, stream: StreamingDataset) -> set[str]:
    """Name the columns of a stream that nothing but observed values is computed from."""
    if stream.columns is None:
        return set()
    holding = set(stream._buffers)
    holding |= {v for v in ancestors(_graphs(model)) if _is_copy(v) and holding & {*v.owner.inputs}}
    numbers = np.broadcast_to(np.arange(len(stream.columns)), stream._buffers[0].type.shape)
    read: set[int] = set()
    for graph in (*model.basic_RVs, *model.deterministics, *model.potentials):
        for variable in by_value(graph):
            node = variable.owner
            if node is None or _is_copy(variable) or not holding & {*node.inputs}:
                continue
            if not isinstance(node.op, Subtensor):
                return set()
            # Where each column holds its own number, so does what is selected from it.
            selected = node.clone_with_new_inputs(
                [constant(numbers.astype(stream._buffers[0].dtype)), *node.inputs[1:]]
            )
            read.update(selected.outputs[0].eval(mode="FAST_COMPILE").astype(int).flat)
    return {name for j, name in enumerate(stream.columns) if j not in read}


def _is_copy(variable: Variable) -> bool:
    return variable.owner is not None and isinstance(variable.owner.op, MinibatchOp)
