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
"""What a model gives for each row of its data, at draws of its parameters: in passes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from pytensor.compile.io import In
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import graph_inputs
from pytensor.tensor import as_tensor
from pytensor.tensor.random.type import RandomType

from pymc.model import Model, modelcontext
from pymc.model.transform.conditioning import remove_value_transforms
from pymc.pytensorf import compile, resolve_backend_compile_kwargs
from pymc.streams.blocks import positive_int
from pymc.streams.passes import in_threads
from pymc.util import _get_seeds_per_chain
from pymc.variational.all_rows import (
    AllRows,
    Batch,
    filled_up,
    rows_behind,
    rows_of,
    take_rows,
    tensors_of,
)
from pymc.variational.full_data_logp import default_threads, progress_of_pass, unscaled
from pymc.variational.logp_terms import for_threads
from pymc.variational.minibatch_rv import MinibatchRandomVariable
from pymc.variational.opvi import Approximation
from pymc.variational.stream_checks import check_streams
from pymc.variational.stream_step import beside_threads

Draw = list[np.ndarray]


class VariableOfRows(NamedTuple):
    """A variable of a model, and the rows that it has a value for each of.

    Attributes
    ----------
    model : Model
        The model, without transformations: its values are those that a posterior has.
    variable : Variable
        The variable.
    rows : AllRows
        The rows.
    """

    model: Model
    variable: Any
    rows: AllRows


def model_of(approx: Any, model: Model | None) -> Model:
    """Return the model of an approximation, or that which is given, or that of the context."""
    if model is None and isinstance(approx, Approximation):
        return approx.model
    return cast(Model, modelcontext(model))


def observed_rows(model: Model, var_name: str | None) -> VariableOfRows:
    """Find the observed variable that is named, or the only one that observes rows."""
    return _variable_of_rows(model, [rv.name for rv in model.observed_RVs], var_name)


def predicted_rows(model: Model, var_name: str | None) -> VariableOfRows:
    """Find the same; it may also be a deterministic, by its name."""
    named = [] if var_name is None else [v.name for v in model.deterministics]
    return _variable_of_rows(model, [rv.name for rv in model.observed_RVs] + named, var_name)


def draws_of(approx: Any, model: Model, n_draws: int, seed: int) -> list[Draw]:
    """Draw the free variables of a model: in their order, and as it has their values.

    Parameters
    ----------
    approx : Approximation or DataTree
        What ``pm.fit`` returned, or a posterior.
    model : Model
        The model, without transformations.
    n_draws : int
        The number of draws; of a posterior no more than it has, evenly spread over it.
    seed : int
        What an approximation draws with.
    """
    n_draws = positive_int(n_draws, "n_draws")
    if isinstance(approx, Approximation):
        # Not approx.sample(), which has the deterministics too: some have a value for each row.
        its, random_seed = approx.model, int(np.random.default_rng(seed).integers(2**30))
        [random_seed] = _get_seeds_per_chain(random_seed, 1)  # as approx.sample() does
        drawn = approx.sample_dict_fn(n_draws, random_seed=random_seed)
        constrained = its.compile_fn(
            its.replace_rvs_by_values(its.free_RVs),
            inputs=its.value_vars,
            on_unused_input="ignore",
            mode="FAST_COMPILE",
        )
        order = [[rv.name for rv in its.free_RVs].index(rv.name) for rv in model.free_RVs]
        points = ({name: values[i] for name, values in drawn.items()} for i in range(n_draws))
        draws = [constrained(point) for point in points]
        return [[np.asarray(draw[i]) for i in order] for draw in draws]
    values = list(free_values(approx, model).values())
    columns = [
        value.reshape(-1, *value.shape[2:]).astype(model.rvs_to_values[rv].dtype)
        for rv, value in zip(model.free_RVs, values)
    ]
    return spread([list(map(np.asarray, draw)) for draw in zip(*columns)], n_draws)


def free_values(trace: Any, model: Model) -> dict[Any, np.ndarray]:
    """Return the draws of each free variable of a model, with chains and draws first."""
    if not hasattr(trace, "posterior"):
        raise TypeError(
            "the draws must be what pm.fit returned; or, with model=, what pm.sample returned for a "
            f"sample of the rows, say: trace, and not trace.posterior. Got {type(trace).__name__}."
        )
    posterior = trace["posterior"]
    missing = [rv.name for rv in model.free_RVs if rv.name not in posterior]
    if missing:
        raise ValueError(
            f"the posterior has no draws of {missing}, which the model has. Sample without "
            "var_names, or with these among them."
        )
    return {
        rv: posterior[rv.name]
        .transpose("chain", "draw", *(model.named_vars_to_dims.get(rv.name) or (...,)))
        .values
        for rv in model.free_RVs
    }


def spread(draws: list[Draw], n_draws: int) -> list[Draw]:
    """Take so many of the draws, or all if there are fewer, evenly spread."""
    picks = np.linspace(0, len(draws) - 1, min(n_draws, len(draws)))
    return [draws[i] for i in picks.round().astype(int)]


def _variable_of_rows(model: Model, names: list[str], var_name: str | None) -> VariableOfRows:
    check_streams(model, scaled=False)
    plain = remove_value_transforms(model)
    behind = {}
    for name in names:
        graphs = [plain[name], plain.rvs_to_values.get(plain[name], plain[name])]
        if sources := list(rows_behind(graphs).values()):
            behind[name] = sources
    if not behind:
        raise ValueError(
            "no observed variable of the model uses a stream or pm.Minibatch: use "
            "pm.compute_log_likelihood, pm.sample_posterior_predictive, and ArviZ."
        )
    if var_name is None and len(behind) > 1:
        raise ValueError(
            f"the model observes {[*behind]}: name one, var_name={next(iter(behind))!r}, say."
        )
    name = var_name or next(iter(behind))
    if name not in behind:
        raise ValueError(
            f"var_name={name!r} is none of the variables that use a stream or pm.Minibatch: "
            f"{[*behind]}."
        )
    if len(behind[name]) > 1:
        raise ValueError(f"`{name}` depends on rows of more than one source.")
    for potential in plain.potentials:
        if rows_behind([potential]):
            raise ValueError(
                f"the Potential `{potential.name}` uses rows: what a row adds to the log-likelihood, "
                "and how it would be drawn again, is not known. Write it as an observed variable "
                "(pm.CustomDist)."
            )
    return VariableOfRows(plain, plain[name], rows_of(behind[name][0]))


class RowFunction:
    """A compiled function of a draw and a batch, with a value for each row of the batch.

    Parameters
    ----------
    of : VariableOfRows
        What it is of.
    graph : Variable
        What is computed.
    replaced : sequence of Variable
        The variables in it that stand for the free variables, in their order.
    """

    def __init__(self, of: VariableOfRows, graph: Variable, replaced: Sequence[Variable]):
        places = tensors_of(of.rows.source, [graph])
        self._places = [place for place, _ in places]
        self._size = of.rows.batch_size
        variables = [*replaced, *(variable for _, variable in places)]
        inputs = [variable.type() for variable in variables]
        [output] = graph_replace([graph], dict(zip(variables, inputs)), strict=False)
        generators = [v for v in graph_inputs([output]) if isinstance(v.type, RandomType)]
        fresh = [generator.type() for generator in generators]
        if generators:
            [output] = graph_replace([output], dict(zip(generators, fresh)))
        self._n_generators = len(fresh)
        function = compile(
            [*inputs, *(In(generator, mutable=True) for generator in fresh)],
            [output],
            trust_input=True,
            on_unused_input="ignore",
            **beside_threads(resolve_backend_compile_kwargs(None, None)),
        )
        self._function = for_threads(function)

    def arrays(self, batch: Batch) -> Batch:
        """Return the arrays that the function takes, filled with copies of a row up to a batch."""
        arrays = [batch[place] for place in self._places]
        return filled_up(arrays, self._size) if len(batch[0]) < self._size else arrays

    def batches(self, parts: list[Batch]) -> Iterator[Batch]:
        """Join parts of batches into batches."""
        arrays = [np.concatenate(part) for part in zip(*parts)]
        for start in range(0, len(arrays[0]), self._size):
            yield take_rows(arrays, slice(start, start + self._size))

    def __call__(self, draw: Draw, arrays: Batch, *seed: int) -> np.ndarray:
        """Evaluate at a draw; ``seed`` says what random numbers there are."""
        generators = []
        if self._n_generators:
            sequence = np.random.SeedSequence(seed)
            generators = list(map(np.random.default_rng, sequence.spawn(self._n_generators)))
        return self._function(*draw, *arrays, *generators)[0]


def row_logp(of: VariableOfRows) -> RowFunction:
    """Compile the log-density of each row: of all that is observed in a row."""
    model, variable = of.model, of.variable
    [logp] = model.logp(vars=[variable], sum=False)
    term = unscaled(model, variable, as_tensor(logp, allow_xtensor_conversion=True))
    if term.ndim > 1:
        term = term.sum(axis=tuple(range(1, term.ndim)))
    return _compiled(of, term, [model.rvs_to_values[rv] for rv in model.free_RVs])


def row_draw(of: VariableOfRows) -> RowFunction:
    """Compile a draw of each row's value, given the parameters."""
    node = of.variable.owner
    is_scaled = node is not None and isinstance(node.op, MinibatchRandomVariable)
    return _compiled(of, node.inputs[0] if is_scaled else of.variable, of.model.free_RVs)


def row_observed(of: VariableOfRows) -> RowFunction:
    """Compile each row's observed value."""
    return _compiled(of, of.model.rvs_to_values[of.variable], of.model.free_RVs)


def _compiled(of: VariableOfRows, graph: Variable, replaced: Sequence[Variable]) -> RowFunction:
    function = RowFunction(of, as_tensor(graph, allow_xtensor_conversion=True), replaced)
    point, n_rows = of.model.initial_point(0), of.rows.batch_size
    draw = [np.asarray(point[rv.name]) for rv in of.model.free_RVs]
    shape = np.shape(function(draw, function.arrays(of.rows.loaded()), 0))
    if shape[:1] != (n_rows,):
        raise ValueError(
            f"`{of.variable.name}` has values of shape {shape} for a batch of {n_rows} rows: the "
            "rows must be the first axis."
        )
    return function


def pieces_in_threads(
    rows: AllRows, worker: Callable[[int, list[Batch]], Any], what: str, progressbar: bool
) -> Iterator[Any]:
    """Give what each piece of all rows comes to, in their order, with a progress bar.

    ``worker`` takes the number of the first row of a piece, and the piece: a list of batches.
    """

    def numbered() -> Iterator[tuple[int, list[Batch]]]:
        n_rows = 0
        for piece in rows.read():
            yield n_rows, piece
            n_rows += sum(len(batch[0]) for batch in piece)

    def work(_: int, piece: tuple[int, list[Batch]]) -> tuple[int, Any]:
        rows.check(piece[1])
        return sum(len(batch[0]) for batch in piece[1]), worker(*piece)

    n_seen = 0
    with progress_of_pass(progressbar) as progress:
        task = progress.add_task(f"{what} of {rows.name}", total=rows.n_rows)
        for n_rows, result in in_threads(numbered(), work, default_threads()):
            n_seen += n_rows
            progress.update(task, advance=n_rows)
            yield result
    if not n_seen:
        raise ValueError(f"{rows.name} gave no rows: an iterator can be read only once.")
    rows.expect(n_seen)
