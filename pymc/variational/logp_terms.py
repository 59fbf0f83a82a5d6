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
"""Terms of a log-density, compiled: what they add up to over batches, here or in a worker."""

import threading

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

from pytensor.compile.mode import get_mode
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.replace import graph_replace, vectorize_graph
from pytensor.graph.rewriting.utils import rewrite_graph
from pytensor.graph.traversal import graph_inputs
from pytensor.tensor.sharedvar import TensorSharedVariable

from pymc.pytensorf import compile, join_nonshared_inputs, rewrite_pregrad
from pymc.streams.passes import CompensatedSum, in_threads
from pymc.variational.all_rows import Batch, RowReader, filled_up, take_rows

# Numbers in an array of one entry for each row of a piece and each direction of a Hessian.
BLOCK_SIZE = 2**18
# Terms of priors and so little data are evaluated sooner than they are compiled; and so little at the
# hundreds of draws from a posterior, all at a time.
SMALL_DATA, SMALL_DATA_OF_DRAWS = 10_000, 1000

# What a function gives, by what is asked for.
KINDS = {
    "logp": ["logp"],
    "dlogp": ["logp", "gradient"],
    "d2logp": ["logp", "gradient", "hessian"],
}


class Terms:
    """Terms of a log-density that are computed from the same rows, or from none.

    They can be pickled: compiled functions stay behind, and so do the values of shared variables,
    which are arguments.

    Parameters
    ----------
    model : Model
        The model.
    start : dict
        A point, for its shapes.
    terms : sequence of Variable
        The terms of the log-density of a batch, or of the model.
    places : list of tuple
        The variables in them that hold a batch, each with its place in one.
    batch_size : int or None
        Rows in a batch; None of terms that are computed from no rows.
    compile_kwargs : dict
        Arguments for :func:`pytensor.function`.

    Attributes
    ----------
    total : Variable
        Their sum.
    shared : list of SharedVariable
        What else they are computed from: data of the model. Not in pickles.
    """

    def __init__(
        self,
        model: Any,
        start: dict[str, np.ndarray],
        terms: Sequence[Variable],
        places: list[tuple[int, Variable]],
        batch_size: int | None,
        compile_kwargs: dict[str, Any],
    ):
        self._places = [place for place, _ in places]
        # Of the same types, so that what was made for a batch of the model's size stays right.
        inputs = {variable: variable.type() for _, variable in places}
        total = graph_replace(pt.add(*terms) if len(terms) > 1 else terms[0], inputs)
        size = batch_size or largest_data(total)
        self.shared: list[SharedVariable] = []
        if batch_size is not None:
            self.shared = [v for v in graph_inputs([total]) if isinstance(v, SharedVariable)]
        data = {variable: variable.type() for variable in self.shared}
        total = graph_replace(total, data)
        self._inputs = [*inputs.values(), *data.values()]
        [total], self._q = join_nonshared_inputs(start, [total], model.value_vars)
        # With shapes as numbers: a shape that depends on a point cannot be vectorised over points.
        self.total = rewrite_pregrad(rewrite_graph(total, include=("ShapeOpt", "canonicalize")))
        self._batch_size = batch_size
        self._n_directions = max(1, BLOCK_SIZE // size)
        self._is_small = batch_size is None and size <= SMALL_DATA
        self._takes_many = batch_size is None and size <= SMALL_DATA_OF_DRAWS
        self._compile_kwargs = compile_kwargs | {"mode": get_mode(compile_kwargs.get("mode"))}
        self._flags = {
            name: getattr(pytensor.config, name) for name in ("floatX", "numba__fastmath")
        }
        self._functions: dict[str, Callable] = {}
        self._compiling = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"shared": [], "_functions": {}, "_compiling": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_compiling": threading.Lock()}

    def evaluate(self, kind: str, points: np.ndarray, n_threads: int) -> list[np.ndarray]:
        """Evaluate terms without rows at each of the points."""
        function, calls = self.function(kind), self.calls(kind, points)
        if len(calls) == 1:
            return _joined(kind, [function(*calls[0])])
        results = in_threads(iter(calls), lambda _, call: function(*call), n_threads)
        return _joined(kind, list(results))

    def evaluate_piece(
        self, kind: str, points: np.ndarray, data: Sequence[Any], batches: list[Batch]
    ) -> tuple[int, list[np.ndarray]]:
        """Add up terms over the batches of a piece at each of the points, and count its rows.

        ``data`` are the values of the shared variables.
        """
        function, n_outputs, calls = self.function(kind), len(KINDS[kind]), self.calls(kind, points)
        n_rows, size = 0, self._batch_size or 1
        sums: list[list[Any]] = [[np.float64(0)] * n_outputs for _ in calls]
        for batch in batches:
            n_rows += len(batch[0])
            filled = [batch[place] for place in self._places]
            share = 1 - len(batch[0]) / size
            if share:
                # Filled with copies of a row, which are taken off.
                filled = filled_up(filled, size)
                copies = take_rows(filled, [0] * size)
            for total, call in zip(sums, calls):
                for i, value in enumerate(function(*call, *filled, *data)):
                    total[i] = total[i] + value
                for i, value in enumerate(function(*call, *copies, *data) if share else []):
                    # Of an infinite term there is nothing to take off.
                    total[i] = total[i] - np.where(np.isfinite(value), share * value, 0)
        return n_rows, _joined(kind, sums)

    def logp_of(self, call: list[np.ndarray], batch: Batch, rows: Any) -> float:
        """Evaluate terms for some rows of a batch."""
        data = [variable.get_value(borrow=True) for variable in self.shared]
        arrays = take_rows([batch[place] for place in self._places], rows)
        return float(self.function("logp")(*call, *arrays, *data)[0])

    def calls(self, kind: str, points: np.ndarray) -> list[list[np.ndarray]]:
        """List what the function is called with for each batch, before its arrays."""
        points = points.astype(self._q.dtype)
        if kind == "logp" and self._takes_many:
            starts = range(self._n_directions, len(points), self._n_directions)
            return [[some] for some in np.split(points, starts)]
        if kind != "d2logp":
            return [[q] for q in points]
        [q] = points
        starts = range(self._n_directions, len(q), self._n_directions)
        return [[q, directions] for directions in np.split(np.eye(len(q), dtype=q.dtype), starts)]

    def function(self, kind: str) -> Callable:
        """Return the compiled function of a kind, for threads; it is compiled once in a process."""
        with self._compiling:
            if kind not in self._functions:
                with pytensor.config.change_flags(**self._flags):
                    self._functions[kind] = for_threads(self._compile(kind))
            return self._functions[kind]

    def _compile(self, kind: str) -> Callable:
        inputs, outputs = [self._q], [self.total]
        is_small = self._takes_many if kind == "logp" else self._is_small
        compile_kwargs = {"mode": "FAST_COMPILE"} if is_small else self._compile_kwargs
        if kind == "logp" and self._takes_many:
            points = pt.matrix("points", dtype=self._q.dtype, shape=(None, *self._q.type.shape))
            total = vectorize_graph(self.total, {self._q: points})
            inputs, outputs = [points], [pt.broadcast_to(total, points.shape[:1])]
        if kind != "logp":
            gradient = pytensor.grad(self.total, self._q, disconnected_inputs="ignore")
            outputs.append(gradient)
        if kind == "d2logp":
            direction = self._q.type("direction")
            product = pytensor.grad(
                (gradient * direction).sum(), self._q, disconnected_inputs="ignore"
            )
            directions = pt.matrix(
                "directions", dtype=self._q.dtype, shape=(None, *self._q.type.shape)
            )
            inputs.append(directions)
            outputs.append(vectorize_graph(product, {direction: directions}))
        return compile(
            [*inputs, *self._inputs],
            outputs,
            trust_input=True,
            on_unused_input="ignore",
            **compile_kwargs,
        )


def evaluate_group(
    terms: Terms,
    rows: RowReader,
    data: Sequence[Any],
    kind: str,
    points: np.ndarray,
    first: int,
    n_pieces: int,
) -> tuple[int, list[np.ndarray]]:
    """Read a group of pieces, and add up terms over them: what a worker of an executor does."""
    n_rows, group = 0, Sums()
    for batches in rows.read(first, n_pieces):
        n_read, values = terms.evaluate_piece(kind, points, data, batches)
        n_rows += n_read
        group.add(values)
    return n_rows, group.values


class Sums:
    """Compensated sums of several numbers or arrays side by side."""

    def __init__(self) -> None:
        self._sums: list[CompensatedSum] = []

    def add(self, values: Sequence[np.ndarray]) -> None:
        self._sums = self._sums or [CompensatedSum() for _ in values]
        for total, value in zip(self._sums, values, strict=True):
            total.add(value)

    @property
    def values(self) -> list[np.ndarray]:
        return [total.value for total in self._sums]


def in_groups(
    pieces: Iterator[tuple[int, list[np.ndarray]]], n_pieces: int
) -> Iterator[tuple[int, list[np.ndarray] | None]]:
    """Give the rows of each piece, and with the last piece of a group what it adds up to."""
    group, n_added = Sums(), 0
    for n_rows, values in pieces:
        group.add(values)
        n_added += 1
        if n_added < n_pieces:
            yield n_rows, None
        else:
            yield n_rows, group.values
            group, n_added = Sums(), 0
    if n_added:
        yield 0, group.values


def for_threads(function: Any) -> Callable:
    """Return a function that several threads may call at a time: PyTensor's holds its arguments."""
    if hasattr(function.vm, "jit_fn"):

        def call(*args: np.ndarray) -> list[np.ndarray]:
            shared = [variable.storage[0] for variable in function.input_storage[len(args) :]]
            return list(map(np.asarray, function.vm.jit_fn(*args, *shared)))

        return call
    one_at_a_time = threading.Lock()

    def call_locked(*args: np.ndarray) -> list[np.ndarray]:
        with one_at_a_time:
            return function(*args)

    return call_locked


def _joined(kind: str, results: list[list[Any]]) -> list[np.ndarray]:
    """Join what each call gave: of each point, or for each block of directions at one."""
    if kind == "logp":
        return [np.hstack([logp for [logp] in results]).astype("float64")]
    if kind == "dlogp":
        return [np.array(values, dtype="float64") for values in zip(*results)]
    logp, gradient, _ = results[0]
    hessian = np.concatenate([block for *_, block in results])
    return [np.array([value], dtype="float64") for value in (logp, gradient, hessian)]


def largest_data(term: Variable) -> int:
    """Return the size of the largest array of data in a graph."""
    sizes = [
        np.size(
            variable.data if isinstance(variable, Constant) else variable.get_value(borrow=True)
        )
        for variable in graph_inputs([term])
        if isinstance(variable, Constant | TensorSharedVariable)
    ]
    return max(sizes, default=1)
