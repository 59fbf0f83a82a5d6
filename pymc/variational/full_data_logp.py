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
"""The log-density of a model over all rows of its streams: a pass over the data a call."""

import copy
import os
import warnings

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from typing import Any, cast

import numpy as np

from pytensor.graph.basic import Apply, Variable
from pytensor.tensor import as_tensor
from rich.progress import Progress, TimeElapsedColumn

from pymc.blocking import DictToArrayBijection, RaveledVars
from pymc.model import Model, modelcontext
from pymc.pytensorf import resolve_backend_compile_kwargs
from pymc.streams.executors import Held, check_executor, in_executor
from pymc.streams.passes import in_threads, one_blas_thread
from pymc.streams.position import Seed, seed_of
from pymc.variational.all_rows import (
    AllRows,
    Batch,
    SampledRows,
    rows_behind,
    rows_of,
    tensors_of,
)
from pymc.variational.logp_terms import Sums, Terms, evaluate_group, in_groups
from pymc.variational.minibatch_rv import MinibatchRandomVariable, get_scaling
from pymc.variational.stream_checks import check_streams
from pymc.variational.stream_step import beside_threads
from pymc.variational.streaming import StreamingDataset

MAX_THREADS = 8

Point = np.ndarray | dict[str, np.ndarray]


class FullDataLogp:
    """The log-density of a model over all rows, with gradient and Hessian.

    What :meth:`pymc.Model.logp` is for data in memory: prior and Jacobian terms count once, and
    each row's log-likelihood once, without the ``total_size`` of minibatches. A call reads all rows
    of the model's streams once, a *pass*: in the order of their source, past any shuffle, and batch
    by batch, in threads or by the workers of an executor. The sums are compensated, and the same to
    the last bit whatever the number of threads or workers.

    Parameters
    ----------
    model : Model, optional
        The model; that of the context by default. Its observed variables may use streams,
        :func:`pymc.Minibatch` on arrays, which is taken for the whole arrays, and data in memory.
    jacobian : bool, default True
        Whether the density is that of the transformed, unconstrained parameters, with the Jacobian
        terms of their transformations.
    n_threads : int, optional
        Threads that read and evaluate. Default: the processors of this process, at most 8.
    progressbar : bool, default True
        Whether each pass over streams shows its progress.
    backend : str, optional
        "numba", "c" or "jax". Default: PyTensor's mode. Functions of numba run beside each other.
    compile_kwargs : dict, optional
        Arguments for :func:`pytensor.function`.
    executor : Executor, optional
        What makes the passes in place of threads: a :class:`concurrent.futures.ProcessPoolExecutor`
        of spawned processes, or a cluster (``dask.distributed.Client.get_executor()``). Workers
        read the rows themselves, so that the source must be one that they can open at any row:
        Parquet files at a path that all of them see, say. The results are the same to the last bit.

    Attributes
    ----------
    names : list of str
        A label for each entry of the parameter vector.
    n_passes : int
        Passes that were made so far, without those that drew a sample.
    n_rows : int or None
        Rows that a pass reads, over all streams: None until the first, where no source tells.

    Raises
    ------
    ValueError
        If a stream can be read only once, or the model is one that batches do not add up to; during
        a pass, if the data are wrong (see :class:`~pymc.variational.streaming.StreamingDataset`), or
        have another number of rows than in the pass before.

    Warns
    -----
    UserWarning
        If a ``Potential`` uses a stream: it is added up over all rows as it is written, scaled by
        nobody, so that it must be a sum over rows, without the factor N / batch_size that minibatch
        ADVI needs there.

    Notes
    -----
    The parameter vector q has the entries of ``model.initial_point()``, raveled and joined in its
    order, as :class:`~pymc.blocking.DictToArrayBijection` does it: p of them.

    A Hessian is exact and takes one pass: blocks of Hessian-vector products of each batch, by
    reverse-mode differentiation of the gradient, so many at a time that one array of an entry a row
    and direction has at most 262,144 numbers, or 2 MB. Its memory is that and p x p numbers a
    thread. Its time is that of the gradient for p of a few, as they share what is costly; and grows
    in proportion to p from a dozen on: with 203 parameters, a logistic regression with 200 groups,
    it was 17 times that of the gradient (``python -m benchmarks --only passes``).

    Sums within a batch are those of the compiled function; over batches they are compensated.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc as pm
    >>> from pymc.variational.streaming import FullDataLogp, StreamingDataset
    >>> rows = {"y": np.arange(10_000) % 10}
    >>> with pm.Model() as model:
    ...     ds = StreamingDataset(rows, batch_size=512)
    ...     mu = pm.Normal("mu", 0, 10)
    ...     obs = pm.Normal("obs", mu, 1, observed=ds["y"], total_size=ds.total_size)
    >>> full = FullDataLogp(model, progressbar=False)
    >>> logp, gradient, hessian = full.d2logp(np.array([4.5]))
    >>> gradient.round(6), hessian.round(2)
    (array([-0.045]), array([[-10000.01]]))
    >>> full.n_passes
    1
    """

    def __init__(
        self,
        model: Model | None = None,
        *,
        jacobian: bool = True,
        n_threads: int | None = None,
        progressbar: bool = True,
        backend: str | None = None,
        compile_kwargs: dict[str, Any] | None = None,
        executor: Executor | None = None,
    ):
        from pymc.tuning.starting import _unpacked_names

        self.model = cast(Model, modelcontext(model))
        self.n_passes = 0
        self._progressbar = progressbar
        self._n_threads = n_threads or default_threads()
        if executor is not None:
            check_executor(executor)
        self._executor = executor
        checked = check_streams(self.model, scaled=False)
        start = self.model.initial_point(0)
        raveled = DictToArrayBijection.map(start)
        self._info = raveled.point_map_info
        self.names = _unpacked_names(self._info, self.model)
        kwargs = beside_threads(resolve_backend_compile_kwargs(backend, compile_kwargs))
        self._parts = [
            _Part(self.model, start, rows, terms, kwargs)
            for rows, terms in _terms_by_rows(self.model, jacobian)
        ]
        for part in self._parts:
            if part.rows is not None and not set(part.variables) <= set(checked):
                part.check_sum(raveled.data)

    @property
    def n_rows(self) -> int | None:
        total = 0
        for part in self._parts:
            if part.rows is not None:
                if part.rows.n_rows is None:
                    return None
                total += part.rows.n_rows
        return total

    def ravel(self, point: dict[str, np.ndarray]) -> np.ndarray:
        """Return the parameter vector of a point: a dict of the values of ``model.value_vars``."""
        return DictToArrayBijection.map({info[0]: point[info[0]] for info in self._info}).data

    def point(self, q: np.ndarray) -> dict[str, np.ndarray]:
        """Return the point of a parameter vector."""
        return DictToArrayBijection.rmap(RaveledVars(np.asarray(q), self._info))

    def logp(self, q: Point) -> float | np.ndarray:
        """Evaluate the log-density over all rows.

        Parameters
        ----------
        q : ndarray or dict
            Parameter vector of shape (p,), or several of shape (K, p), or a point.

        Returns
        -------
        float or ndarray
            The log-density; of several, shape (K,): the data are read once for all of them.
        """
        q = self._vector(q)
        [logp] = self._pass("logp", np.atleast_2d(q))
        return float(logp[0]) if q.ndim == 1 else np.asarray(logp)

    def dlogp(self, q: Point) -> tuple[float, np.ndarray]:
        """Evaluate the log-density over all rows, and its gradient.

        Parameters
        ----------
        q : ndarray of shape (p,), or dict
            Parameter vector, or a point.

        Returns
        -------
        logp : float
        gradient : ndarray of shape (p,)
        """
        logp, gradient = self._pass("dlogp", self._vector(q)[None])
        return float(logp[0]), gradient[0]

    def d2logp(self, q: Point) -> tuple[float, np.ndarray, np.ndarray]:
        """Evaluate the log-density over all rows, its gradient and its exact Hessian, in one pass.

        Parameters
        ----------
        q : ndarray of shape (p,), or dict
            Parameter vector, or a point.

        Returns
        -------
        logp : float
        gradient : ndarray of shape (p,)
        hessian : ndarray of shape (p, p)
        """
        logp, gradient, hessian = self._pass("d2logp", self._vector(q)[None])
        return float(logp[0]), gradient[0], (hessian[0] + hessian[0].T) / 2

    def sample(self, n_rows: int, random_seed: Seed = None) -> "FullDataLogp":
        """Return the log-density over a random sample of the rows, as an estimate of that over all.

        Parameters
        ----------
        n_rows : int
            Rows that are drawn of each stream, uniformly and without replacement, in one pass. They
            are held in memory; each counts N / n_rows times.
        random_seed : int, Generator or SeedSequence, optional
            Where they are drawn from.

        Returns
        -------
        FullDataLogp
            Of the same compiled functions. A model of data in memory gives the same log-density.
        """
        seed = seed_of(random_seed)
        return self._over(
            lambda i, rows: SampledRows(rows, n_rows, (seed, i), self._n_threads, self._executor)
        )

    def _over(self, rows_of: Callable[[int, AllRows], AllRows]) -> "FullDataLogp":
        """Return the log-density over other rows, given those of each part by their number."""
        other = copy.copy(self)
        other.n_passes, other._progressbar, other._executor = 0, False, None
        other._parts = [copy.copy(part) for part in self._parts]
        for i, part in enumerate(other._parts):
            if part.rows is not None:
                part.rows = rows_of(i, part.rows)
        return other

    def _vector(self, q: Point) -> np.ndarray:
        vector = self.ravel(q) if isinstance(q, Mapping) else np.asarray(q)
        if vector.ndim not in (1, 2) or vector.shape[-1] != len(self.names):
            raise ValueError(
                f"a parameter vector of this model has shape ({len(self.names)},), or (K, "
                f"{len(self.names)}) for K of them; got {vector.shape}. Its entries: {self.names}."
            )
        return vector

    def _pass(self, kind: str, points: np.ndarray) -> list[np.ndarray]:
        """Add up what ``kind`` gives at each of the points, over all parts and rows."""
        totals = Sums()
        if any(part.rows is not None for part in self._parts):
            self.n_passes += 1
        with one_blas_thread(), progress_of_pass(self._progressbar) as progress:
            for part in self._parts:
                if part.rows is None:
                    totals.add(part.terms.evaluate(kind, points, self._n_threads))
                    continue
                task = progress.add_task(
                    f"Pass {self.n_passes} over {part.rows.name}", total=part.rows.n_rows
                )
                for n_rows, sums in part.evaluate_rows(
                    kind, points, self._n_threads, self._executor
                ):
                    progress.update(task, advance=n_rows)
                    if sums is not None:
                        totals.add([part.rows.weight * values for values in sums])
        return totals.values


class _Part:
    """The terms of a log-density that are computed from the same rows, or from none.

    Parameters
    ----------
    model : Model
        The model.
    start : dict
        A point, for its shapes.
    rows : AllRows or None
        The rows.
    terms : dict
        Terms of the log-density of a batch, by model variable.
    compile_kwargs : dict
        Arguments for :func:`pytensor.function`.
    """

    def __init__(
        self,
        model: Model,
        start: dict[str, np.ndarray],
        rows: AllRows | None,
        terms: dict[Variable, Variable],
        compile_kwargs: dict[str, Any],
    ):
        self.rows, self.variables = rows, list(terms)
        places = tensors_of(rows.source, terms.values()) if rows is not None else []
        batch_size = rows.batch_size if rows is not None else None
        self.terms = Terms(model, start, list(terms.values()), places, batch_size, compile_kwargs)
        self._held: list[Held] = []

    def evaluate_rows(
        self, kind: str, points: np.ndarray, n_threads: int, executor: Executor | None
    ) -> Iterator[tuple[int, list[np.ndarray] | None]]:
        """Evaluate terms at each of the points over all rows.

        Gives numbers of rows as they are done, and the sums of each group of pieces when it is.
        """
        assert self.rows is not None
        rows, terms = self.rows, self.terms
        data = [variable.get_value(borrow=True) for variable in terms.shared]
        n_seen = 0
        if executor is None:
            terms.function(kind)  # compiled once, before the threads start

            def work(_: int, piece: list[Batch]) -> tuple[int, list[np.ndarray]]:
                rows.check(piece)
                return terms.evaluate_piece(kind, points, data, piece)

            results = in_groups(in_threads(rows.read(), work, n_threads), rows.group_pieces)
        else:
            calls = [(kind, points, *group) for group in rows.groups()]
            results = in_executor(executor, self._hold(data), calls)
        for n_rows, sums in results:
            n_seen += n_rows
            yield n_rows, sums
        rows.expect(n_seen)

    def _hold(self, data: list[Any]) -> list[Held]:
        """Return what workers hold: what it was, where it has not changed."""
        assert self.rows is not None
        if not self._held:
            self._held = [
                Held(evaluate_group, "a function"),
                Held(self.terms, "the log-density of the model"),
            ]
        held = [*self._held[:2], self.rows.held(), Held(data, "data of the model")]
        tokens = {one.token: one for one in self._held}
        self._held = [tokens.get(one.token, one) for one in held]
        return self._held

    def check_sum(self, q: np.ndarray) -> None:
        """Refuse terms that are no sum over the rows of a batch, where nothing else has checked it.

        Of a batch of copies of two rows, a sum is the mean of those of copies of each.
        """
        assert self.rows is not None
        batch, n_rows = self.rows.loaded(), self.rows.batch_size
        # A term may be zero at the initial point, whatever the rows.
        jitter = np.random.default_rng(0).uniform(-0.1, 0.1, len(q))
        [call] = self.terms.calls("logp", q[None] + jitter)
        differ = [np.reshape(values != values[0], (n_rows, -1)).any(axis=1) for values in batch]
        second = int(np.argmax(np.any(differ, axis=0)))
        pattern = np.arange(n_rows) <= n_rows // 3
        both, one, other = (
            self.terms.logp_of(call, batch, picks)
            for picks in (np.where(pattern, 0, second), [0] * n_rows, [second] * n_rows)
        )
        share = np.mean(pattern)
        expected = share * one + (1 - share) * other
        if np.isfinite(expected) and not np.isclose(both, expected, rtol=1e-4):
            names = ", ".join(f"`{variable.name}`" for variable in self.variables)
            raise ValueError(
                f"{names}: of {self.rows.name}, no sum over the rows of a batch: batches do not add "
                "up to what it is for all rows. Give each row a term of its own, given the parameters."
            )


def _terms_by_rows(
    model: Model, jacobian: bool
) -> list[tuple[AllRows | None, dict[Variable, Variable]]]:
    """Sort the terms of a model's log-density by the rows that they are computed from."""
    variables = [*model.basic_RVs, *model.potentials]
    sources: dict[Any, StreamingDataset | Apply] = {}
    by_source: dict[Any, dict[Variable, Variable]] = {}
    for variable, logp in zip(variables, model.logp(variables, jacobian=jacobian, sum=False)):
        term = as_tensor(logp, allow_xtensor_conversion=True).sum()
        behind = rows_behind([term])
        if behind:
            term = unscaled(model, variable, term)
        if len(behind) > 1 or (behind and variable in model.free_RVs):
            raise ValueError(
                f"`{variable.name}` depends on rows of more than one source, or is a parameter that "
                "depends on rows: batches do not add up to all of them. Stream what belongs together "
                "from one source."
            )
        sources |= behind
        if behind and variable in model.potentials:
            warnings.warn(
                f"the Potential `{variable.name}` is added up over all rows as it is written, as "
                "model.logp() counts it: a factor N / batch_size that pm.fit(method='advi') needs in "
                "it would make it count too much here.",
                stacklevel=4,
            )
        by_source.setdefault(next(iter(behind), None), {})[variable] = term
    return [
        (rows_of(sources[source]) if source is not None else None, terms)
        for source, terms in by_source.items()
    ]


def unscaled(model: Model, variable: Variable, term: Any) -> Any:
    """Take ``total_size`` out of the log-density of a variable, so that each row counts once."""
    node = variable.owner
    if node is None or not isinstance(node.op, MinibatchRandomVariable):
        return term
    shape = model.rvs_to_values[variable].shape
    return term / get_scaling(node.inputs[1:], shape).astype(term.dtype)


def default_threads() -> int:
    return min(MAX_THREADS, os.cpu_count() or 1)


def progress_of_pass(shown: bool) -> Progress:
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    return Progress(*columns, disable=not shown)
