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

"""What is refused on a model with streams: it would take one batch for all the data."""

import warnings

from collections.abc import Iterable, Sequence
from typing import Any

from pytensor.graph.basic import Variable
from pytensor.graph.traversal import ancestors, walk
from pytensor.tensor.shape import Shape, Shape_i

from pymc.data import MinibatchOp
from pymc.variational.minibatch_rv import MinibatchRandomVariable, get_scaling
from pymc.variational.streaming import StreamingDataset

MODEL_IN_MEMORY = (
    "pm.fit (method='laplace', say), pm.find_MAP, or the model that "
    "pymc.variational.streaming.subsample_model(model) returns: it stands for all rows, and samplers "
    "take it."
)


def refuse_streams(
    model: Any,
    what: str,
    variables: Sequence[Variable] | None = None,
    instead: str = MODEL_IN_MEMORY,
) -> None:
    """Refuse to run ``what`` on a model that observes a stream: it would see one batch only.

    Parameters
    ----------
    model : Model
        The model.
    what : str
        The function that was called.
    variables : sequence of Variable, optional
        The observed variables and potentials that it uses. All by default.
    instead : str, optional
        What to use.

    Raises
    ------
    ValueError
        If one of them uses a stream.
    """
    for variable in (*model.observed_RVs, *model.potentials) if variables is None else variables:
        value = model.rvs_to_values.get(variable, variable)
        for stream in streams_behind(ancestors([variable, value])):
            raise ValueError(
                f"{what} on a model whose `{variable.name}` uses the stream {stream.name!r}: it "
                f"would take the {stream.batch_size} rows that happen to be in the buffer for all "
                f"the data. Use {instead}"
            )


def check_log_likelihood(model: Any, variables: Sequence[Variable]) -> None:
    """Refuse the log-likelihood of one batch, and tell of one that is not that of single rows.

    Parameters
    ----------
    model : Model
        The model.
    variables : sequence of Variable
        Its observed variables.

    Raises
    ------
    ValueError
        If one of them uses a stream.

    Warns
    -----
    UserWarning
        If ``total_size`` scales rows in memory: of a sample that stands for all rows, say.
    """
    instead = (
        "pymc.variational.streaming.log_predictive(approx): WAIC and PSIS-LOO over all rows, or "
        "log_predictive(approx, source): the log predictive density of held-out rows. approx may be "
        "a posterior, too, with model= the model that observes the stream."
    )
    refuse_streams(model, "pm.compute_log_likelihood", variables, instead)
    for variable in variables:
        node = variable.owner
        if node is None or not isinstance(node.op, MinibatchRandomVariable):
            continue
        scale = get_scaling(node.inputs[1:], model.rvs_to_values[variable].shape)
        minibatch = any(
            v.owner is not None and isinstance(v.owner.op, MinibatchOp)
            for v in ancestors([variable, model.rvs_to_values[variable]])
        )
        if not minibatch and (times := float(scale.eval(mode="FAST_COMPILE"))) != 1:
            warnings.warn(
                f"the log-likelihood of each row of `{variable.name}` counts {times:.6g} times, by its "
                f"total_size: LOO of it is not that of these rows. Use {instead}",
                stacklevel=4,
            )


def refuse_predictions(variables: Iterable[Variable], in_trace: set[Variable]) -> None:
    """Refuse posterior predictive draws for whichever rows of a stream are in the buffer.

    Parameters
    ----------
    variables : iterable of Variable
        What is to be drawn.
    in_trace : set of Variable
        What is taken from the trace instead.

    Raises
    ------
    ValueError
        If what is drawn depends on the rows of a stream.
    """
    for variable in variables:
        for stream in streams_behind(by_value(variable, in_trace)):
            raise ValueError(
                f"pm.sample_posterior_predictive of `{variable.name}`, which depends on the stream "
                f"{stream.name!r}: it would predict the {stream.batch_size} rows that happen to be "
                "in the buffer. Of pymc.variational.streaming, model_of_rows(model, rows) is the model "
                "of the rows to predict, to call it on with this trace; predict(approx, source, file) "
                "writes predictions for a source of any size; predictive_check(approx) compares all "
                "rows with replicated data. Or pass var_names that do not depend on the stream."
            )


def refuse_constants(variables: Iterable[Variable]) -> None:
    """Refuse to compile a stream's buffer into a function as if it were constant.

    Raises
    ------
    ValueError
        If one of the variables is the buffer of a stream.
    """
    for stream in streams_behind(variables):
        raise ValueError(
            f"this model uses the stream {stream.name!r}, and JAX would take the "
            f"{stream.batch_size} rows that happen to be in the buffer for all the data. Use "
            "pm.fit, or the model that pymc.variational.streaming.subsample_model(model) returns."
        )


def streamed_observations(model: Any) -> list[str]:
    """Name the observed variables whose values are one batch of a stream, or not known."""
    values = {rv.name: model.rvs_to_values[rv] for rv in model.observed_RVs}
    return [
        name
        for name, value in values.items()
        if streams_behind(ancestors([value])) or hasattr(value.tag, "unknown")
    ]


def streams_behind(variables: Iterable[Variable]) -> list[StreamingDataset]:
    """List the streams whose buffers are among the variables."""
    tagged = (getattr(variable.tag, "stream", None) for variable in variables)
    return list(dict.fromkeys(stream for stream in tagged if stream is not None))


def buffers_behind(variables: Iterable[Variable]) -> list[Any]:
    """List the buffers of streams in the graphs of the variables: a model's copy has copies."""
    return [
        variable
        for variable in ancestors(variables)
        if variable.owner is None and streams_behind([variable])
    ]


def by_value(variable: Variable, blockers: Iterable[Variable] = ()) -> Iterable[Variable]:
    """Walk through what the value of a variable depends on: not where only a shape is read."""

    def inputs(variable: Variable) -> Sequence[Variable] | None:
        node = variable.owner
        if node is None or variable in blockers or isinstance(node.op, Shape | Shape_i):
            return None
        return node.inputs

    return walk([variable], inputs)
