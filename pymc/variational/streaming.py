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
"""Streaming variational inference: ``pm.fit`` on data that is larger than memory.

:class:`pymc.Minibatch` draws random rows of an array in memory. A :class:`StreamingDataset`
loads the rows of a source (files, a generator, a memmap) batch by batch into a small buffer
that the model observes, so that memory does not grow with the number of rows N, and
:func:`pymc.fit` runs as before::

    source -> [shuffle_buffer] -> re-batch -> prefetch -> buffer -> model -> pm.fit

The likelihood of a batch is scaled by ``total_size``, exactly as with :class:`pymc.Minibatch`,
and :func:`pymc.fit` loads the next batch before each step.

**The order of the rows matters.** In-memory ``pm.Minibatch`` draws uniformly from all N rows. A
stream gives rows in the order of its source, and a :class:`shuffle_buffer` mixes only the rows
that it holds at a time. If the data has a meaningful order (time, key, label), the fit ends at a
wrong posterior: on 26 million rows sorted by time, the largest difference of a posterior mean was
1.65 in the prototype that this module continues. A :class:`StreamOrderWarning` says so. Shuffle the
rows on disk once (:func:`pre_shuffle`), or read row groups in random order into a shuffle buffer
that holds many of them (``parquet_source(..., shuffle_row_groups=True)``). See
:class:`shuffle_buffer` for measured figures, and :func:`order_report` for those of your data.
"""

import importlib
import operator
import warnings

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytensor

from pytensor.graph.basic import Variable
from pytensor.tensor.sharedvar import TensorSharedVariable
from pytensor.tensor.variable import TensorVariable

from pymc.streams.batches import Batches
from pymc.streams.blocks import Block, positive_int
from pymc.streams.order.check import OrderCheck, StreamOrderWarning
from pymc.streams.order.watch import OrderWatch
from pymc.streams.reader import Reader
from pymc.streams.shuffle.buffer import shuffle_buffer
from pymc.streams.sources.parquet import parquet_source
from pymc.variational.interrupts import interruptible
from pymc.variational.stream_index_checks import Bounds, IndexChecks

if TYPE_CHECKING:
    from pymc.streams.order.report import OrderReport, order_report
    from pymc.streams.shuffle.disk import pre_shuffle
    from pymc.streams.sources.table import table_source
    from pymc.streams.split import split_rows
    from pymc.streams.standardize import standardize, unstandardize
    from pymc.streams.summary import ColumnSummary, column_summary
    from pymc.variational.fit_check import FitConvergenceWarning
    from pymc.variational.fit_report import FitReport, fit_report
    from pymc.variational.full_data_logp import FullDataLogp
    from pymc.variational.log_predictive import LeaveOneOut, LogPredictive, log_predictive
    from pymc.variational.model_of_rows import model_of_rows
    from pymc.variational.predict import predict
    from pymc.variational.predictive_check import predictive_check
    from pymc.variational.subsample import SubsampleReport, subsample_model, subsample_report

__all__ = [
    "ColumnSummary",
    "FitConvergenceWarning",
    "FitReport",
    "FullDataLogp",
    "LeaveOneOut",
    "LogPredictive",
    "OrderReport",
    "StreamOrderWarning",
    "StreamingDataset",
    "SubsampleReport",
    "column_summary",
    "fit_report",
    "log_predictive",
    "model_of_rows",
    "order_report",
    "parquet_source",
    "pre_shuffle",
    "predict",
    "predictive_check",
    "shuffle_buffer",
    "split_rows",
    "standardize",
    "subsample_model",
    "subsample_report",
    "table_source",
    "unstandardize",
]

# Imported when they are asked for.
_LAZY = {
    "ColumnSummary": "pymc.streams.summary",
    "FitConvergenceWarning": "pymc.variational.fit_check",
    "FitReport": "pymc.variational.fit_report",
    "FullDataLogp": "pymc.variational.full_data_logp",
    "LeaveOneOut": "pymc.variational.log_predictive",
    "LogPredictive": "pymc.variational.log_predictive",
    "OrderReport": "pymc.streams.order.report",
    "SubsampleReport": "pymc.variational.subsample",
    "column_summary": "pymc.streams.summary",
    "fit_report": "pymc.variational.fit_report",
    "log_predictive": "pymc.variational.log_predictive",
    "model_of_rows": "pymc.variational.model_of_rows",
    "order_report": "pymc.streams.order.report",
    "pre_shuffle": "pymc.streams.shuffle.disk",
    "predict": "pymc.variational.predict",
    "predictive_check": "pymc.variational.predictive_check",
    "split_rows": "pymc.streams.split",
    "standardize": "pymc.streams.standardize",
    "subsample_model": "pymc.variational.subsample",
    "subsample_report": "pymc.variational.subsample",
    "table_source": "pymc.streams.sources.table",
    "unstandardize": "pymc.streams.standardize",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Rows that take no more than this are better kept in memory.
SMALL_BYTES = 2**30


class StreamingDataset:
    """Stream a source of any size through a buffer of ``batch_size`` rows.

    Blocks of any size are cut and joined into batches of exactly ``batch_size`` rows. Rows left
    over at the end of an epoch open the first batch of the next one, so that no row is ever
    left out.

    Inside :func:`pymc.fit` every stream that the model uses advances by itself, by one batch a
    step. Outside of it, call :meth:`advance`, or iterate.

    Parameters
    ----------
    source : object
        Rows in blocks: a re-iterable of blocks; a zero-argument callable that returns an
        iterable of blocks, called once an epoch; a one-shot iterator (a single pass); an array
        (NumPy, memmap, h5py, zarr), mapping, pandas DataFrame or tuple of arrays, which is sliced
        and never copied whole; or a table, a query or a dataset of any library that speaks Arrow,
        which is read as by :class:`table_source`, with codes for keys. A block is an array ``(rows, *sample_shape)``, a mapping
        from column name to array ``(rows,)``, an Arrow table or record batch, a pandas DataFrame,
        or a tuple of arrays with the same leading length. Columns are matched by name, in the
        order of the first block. Optional attributes of a source: ``n_rows`` (rows in an epoch)
        and ``columns`` (names of the columns of its array blocks).
    batch_size : int
        Rows in a batch.
    sample_shape : tuple of int, optional
        Shape of one row; a tuple of shapes where blocks are tuples. Default: what the source
        gives. Columns have sample shape ``(number of columns,)``.
    total_size : int or "auto", default "auto"
        Number of rows N of the whole data. ``"auto"`` takes it from the source.
    dtype : dtype, optional
        Type of the buffer; one for each array where blocks are tuples and a sequence is given.
        Default: ``pytensor.config.floatX``. Floats are rounded to it; an integer that it cannot
        hold exactly is an error.
    preprocess_fn : callable, optional
        Applied to each block before it is cut into batches. It gets an array, a dict of arrays
        or a tuple of arrays, of any type (strings, say), which it must not write into, and returns
        one of these with the same number of rows, as numbers. Columns that it returns as a dict
        have its names; an array of as many columns as the source names keeps the source's.
    cycle : bool, default True
        Start the next epoch when one ends. If False, the stream ends after one epoch, without
        the rows that do not fill a last batch; iterating over it again starts it again.
    check_order : {"warn", "raise", "ignore"}, default "warn"
        What to do if batches follow the order of the rows: give a :class:`StreamOrderWarning`,
        raise it, or do not look. Parquet statistics are looked at now, batches as they are loaded;
        with ``cycle=False`` it is said in :func:`pymc.fit` only, as order does not matter to a
        loop over all rows.
    prefetch : int, optional
        Batches that a background thread keeps ready. Default: what 32 MiB hold, but two at least.
        With 0 the source is read in the thread that calls :meth:`advance`. The batches are the
        same.
    name : str, default "stream"
        Name of the buffer, used in messages.

    Attributes
    ----------
    batch_size : int
        Rows in a batch.
    total_size : int or None
        Number of rows N: as given, or from the source, or counted in the first epoch; None until
        then.
    columns : tuple of str or None
        Names of the columns.
    categories : dict of str to ndarray
        The categories of each column of keys in the source, which comes as codes: ``i`` stands for
        the ``i``-th one. ``pm.Model(coords=ds.categories)``, and ``effect[ds["carrier"]]``.
    units : dict of str to str
        The unit of each column of times in the source.
    sample_shape : tuple
        Shape of one row.
    batches_seen, rows_streamed : int
        Batches, and rows in them, that were loaded into the buffer.

    epoch, row : int
        The epoch, and the row in it, that the next batch begins with.

    Raises
    ------
    TypeError, ValueError
        At construction, if a size is not a positive integer, if the source is empty or is no
        source, if a block is not numeric or does not fit ``sample_shape``; while streaming, if a
        block differs in form from the first one, holds a null, NaN or infinite value, or an integer
        that the buffer cannot hold.

    Warns
    -----
    UserWarning
        If ``total_size`` is not the number of rows of the source: at once where the source tells,
        else after one epoch.
    StreamOrderWarning
        If the row groups of Parquet files are in order, or batches differ more than chance allows,
        so that a batch does not stand for all rows. See :func:`order_report`.

    Notes
    -----
    Between fits a stream on a seekable source holds its position and one batch: no thread,
    no open file, no rows that were read ahead. It goes on where it was; :meth:`reset` takes it back
    to its beginning, so that a fit with the same ``random_seed`` gives the same result again. A stream
    on a function or iterator, which cannot be opened in the middle, keeps what was read ahead.

    **The order of the rows matters**: in-memory :func:`pymc.Minibatch` draws uniformly from all N
    rows, a stream gives them in the order of its source. See :class:`shuffle_buffer`.

    Stochastic variational inference needs batches whose scaled log-likelihood is an unbiased
    estimate of the log-likelihood of all N rows [1]_. Batches that are cut from one permutation
    of the rows are: each row is in a batch with the same probability.

    References
    ----------
    .. [1] Hoffman, M. D., Blei, D. M., Wang, C., and Paisley, J. (2013). Stochastic Variational
       Inference. Journal of Machine Learning Research, 14, 1303-1347.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc as pm
    >>> from pymc.variational.streaming import StreamingDataset, shuffle_buffer
    >>> rng = np.random.default_rng(1)
    >>> rows = {"x": rng.normal(size=10_000)}
    >>> rows["y"] = 2 * rows["x"] + rng.normal(size=10_000)
    >>> ds = StreamingDataset(
    ...     shuffle_buffer(rows, buffer_size=10_000, batch_size=500, seed=1), batch_size=500
    ... )
    >>> ds.total_size
    10000
    >>> with pm.Model():
    ...     slope = pm.Normal("slope", 0, 10)
    ...     obs = pm.Normal("obs", slope * ds["x"], 1, observed=ds["y"], total_size=ds.total_size)
    ...     approx = pm.fit(100, progressbar=False)
    >>> ds.batches_seen
    100
    """

    def __init__(
        self,
        source: Any,
        *,
        batch_size: int,
        sample_shape: Sequence | None = None,
        total_size: int | str | None = "auto",
        dtype: Any = None,
        preprocess_fn: Callable[[Any], Any] | None = None,
        cycle: bool = True,
        check_order: str = "warn",
        prefetch: int | None = None,
        name: str = "stream",
    ):
        if isinstance(source, StreamingDataset):
            raise TypeError("the source is a StreamingDataset already: use its as_tensor().")
        if isinstance(source, Variable):
            raise TypeError("the source is a tensor already: use pm.Minibatch, or observe it.")
        if preprocess_fn is not None and not callable(preprocess_fn):
            raise TypeError(f"preprocess_fn must be callable, got {preprocess_fn!r}.")
        if check_order not in ("warn", "raise", "ignore"):
            raise ValueError(
                f'check_order must be "warn", "raise" or "ignore", got {check_order!r}.'
            )
        if prefetch is not None and prefetch != 0:
            prefetch = positive_int(prefetch, "prefetch")
        self.name = name
        self.batch_size = positive_int(batch_size, "batch_size")
        self._cycle = cycle
        batches = Batches(
            source,
            batch_size=self.batch_size,
            dtype=pytensor.config.floatX if dtype is None else dtype,
            preprocess_fn=preprocess_fn,
            cycle=cycle,
        )
        self.columns = batches.columns
        shapes = tuple(batches.row_shapes)
        self.sample_shape = shapes if batches.is_tuple else shapes[0]
        if sample_shape is not None and _as_tuples(sample_shape) != self.sample_shape:
            raise ValueError(
                f"the source gives rows of shape {self.sample_shape}, not "
                f"sample_shape={sample_shape}."
                + (f" Its columns are {list(self.columns)}." if self.columns else "")
            )
        self._format, self._is_tuple = batches.format, batches.is_tuple
        self._row_bytes = batches.row_bytes
        self._check_order = check_order
        self._order = OrderWatch(None)
        if check_order != "ignore":
            from pymc.streams.order.report import check_files

            finding, limit = check_files(source, self.batch_size)
            check = OrderCheck(batches.column_names, self.batch_size, limit)
            self._order = OrderWatch(check if finding is None else None, finding)
        # The first batch is read now, so that what is wrong with the source is said now, and the
        # buffer never holds made-up numbers. It counts as seen when it is loaded.
        self._reader = Reader(batches, name, prefetch, self._order.follow)
        first = self._reader.first()
        if first.batch is None:
            raise ValueError(
                f"the source has {first.epoch_rows} rows, fewer than one batch of "
                f"{self.batch_size}, and is read only once. Pass a smaller batch_size."
            )
        self._buffers: list[TensorSharedVariable] = []
        for i, values in enumerate(first.batch):
            label = f"{name}.{i}" if self._is_tuple else name
            buffer = pytensor.shared(values.copy("K"), name=label, shape=values.shape, borrow=True)
            buffer.tag.stream = self  # how pm.fit finds the streams that a model uses
            self._buffers.append(buffer)
        # Whether no step has used the loaded batch yet: pm.fit then uses it before it loads one.
        self._fresh = False
        # Whether the last step was one of pm.fit, and that fit's (steps done, steps asked for).
        self._in_fit = False
        self._fit_steps = (0, 0)
        self._closed = self._at_end = False
        # Of the model that was checked last.
        self._index_checks = IndexChecks(name, batches.columns, self._is_tuple)
        # N as far as it is known, and what is passed as N, by whom.
        self._n_rows = batches.blocks.n_rows
        self._given: int | None = None
        if total_size is not None and total_size != "auto":
            self._given = positive_int(total_size, "total_size")
        self._expect_total_sizes({})
        self._set_n_rows(first.epoch_rows)
        if cycle:
            self._say_order()

    @property
    def total_size(self) -> int | None:
        return self._n_rows if self._given is None else self._given

    @property
    def categories(self) -> dict[str, np.ndarray]:
        return self._reader.batches.blocks.categories

    @property
    def units(self) -> dict[str, str]:
        return self._reader.batches.blocks.units

    @property
    def epoch(self) -> int:
        return self._reader.epoch

    @property
    def row(self) -> int:
        return self._reader.row

    @property
    def batches_seen(self) -> int:
        return self._reader.batches_seen

    @property
    def rows_streamed(self) -> int:
        return self.batches_seen * self.batch_size

    def as_tensor(self) -> TensorSharedVariable | list[TensorSharedVariable]:
        """Return the buffer: the tensor that the model observes.

        Returns
        -------
        TensorSharedVariable or list of TensorSharedVariable
            A shared variable of static shape ``(batch_size, *sample_shape)``, always the same
            one; a list of them where blocks are tuples. Before the first batch is loaded it
            already holds its values.
        """
        return list(self._buffers) if self._is_tuple else self._buffers[0]

    def __getitem__(self, column: str) -> TensorVariable:
        """Return one column of the buffer, by name.

        Returns
        -------
        TensorVariable
            Shape ``(batch_size,)``: ``int64`` for a column of integers, and of codes, ``bool`` for
            one of booleans, else the buffer's type. A column of lists of k numbers has shape
            ``(batch_size, k)``.
        """
        if self.columns is None:
            raise TypeError(f"stream {self.name!r}: the source's columns have no names.")
        columns: int | slice
        if column in self.columns:
            columns = j = self.columns.index(column)
        elif f"{column}[0]" in self.columns:  # a list of one length
            j = self.columns.index(f"{column}[0]")
            stop = j + 1
            while self.columns[stop : stop + 1] == (f"{column}[{stop - j}]",):
                stop += 1
            columns = slice(j, stop)
        else:
            raise KeyError(f"stream {self.name!r}: no column {column!r}: {list(self.columns)}.")
        values = self._buffers[0][:, columns]
        kind = self._format.dtypes[j if self._format.names else 0].kind
        if kind in "iu":
            return values.astype("int64")
        return values.astype("bool") if kind == "b" else values

    def advance(self) -> None:
        """Load the next batch into the buffer.

        Raises
        ------
        StopIteration
            If the stream has ended: after one epoch with ``cycle=False``, or with a one-shot
            iterator as its source.
        RuntimeError
            If the stream is closed.
        """
        if self._closed:
            raise RuntimeError(f"stream {self.name!r} is closed.")
        with interruptible():  # here a fit may wait for long
            self._reader.wait()
        read = self._reader.peek()
        self._set_n_rows(read.epoch_rows)
        if self._cycle:
            self._say_order()
        if read.batch is None:
            raise self._end()
        self._load(read.batch)
        self._reader.take()
        self._fresh = True

    def fit_callback(self, seed: bool = True) -> Callable[[Any, Any, int], None]:
        """Return a callback that advances the stream, for loops other than :func:`pymc.fit`.

        :func:`pymc.fit` advances its streams by itself. It accepts this callback, and the stream
        then still advances once a step.

        Parameters
        ----------
        seed : bool, default True
            Load the first batch now, if no loaded batch is waiting for a step.

        Returns
        -------
        callable
            Called as ``callback(approx, losses, i)`` after each step.
        """
        self._in_fit = False
        if seed and not self._fresh:
            self.advance()

        def callback(approx: Any, losses: Any, i: int) -> None:
            # After a step of pm.fit there is nothing to do: it loads the next batch itself.
            if self._in_fit:
                self._in_fit = False
            else:
                self.advance()

        return callback

    def reset(self) -> None:
        """Go back to the beginning: the next batch is the first one of the first epoch.

        Two fits of a model with the same ``random_seed``, each after a reset, are the same.

        Raises
        ------
        TypeError
            If the source is an iterator, which can be read only once.
        """
        self._reader.rewind()
        self._fresh = self._at_end = False

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the stream, as plain values that JSON can hold.

        Returns
        -------
        dict
            ``epoch`` and ``row`` that the next batch begins with, ``batches_seen``, ``n_rows`` as
            far as it is known, what the source is, with its seeds, and a checksum of the batch that
            is loaded.

        Raises
        ------
        TypeError
            If the source is an iterator, which can be read only once.

        Examples
        --------
        >>> import json
        >>> import numpy as np
        >>> from pymc.variational.streaming import StreamingDataset
        >>> ds = StreamingDataset(np.arange(100), batch_size=10)
        >>> for _ in range(3):
        ...     ds.advance()
        >>> state = json.loads(json.dumps(ds.state_dict()))
        >>> state["epoch"], state["row"]
        (0, 30)
        >>> again = StreamingDataset(np.arange(100), batch_size=10)
        >>> again.load_state_dict(state)
        >>> next(again).tolist()
        [30.0, 31.0, 32.0, 33.0, 34.0, 35.0, 36.0, 37.0, 38.0, 39.0]
        """
        return self._reader.state_dict() | {"n_rows": self._n_rows, "fresh": self._fresh}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another stream over the same rows was, also one of another process.

        The batches from here on are those that the other one would have given, to the last bit. The
        batch that it had loaded is loaded, and its checksum compared. A source on files, arrays or
        tables is opened at that row; one that is a function is called afresh and read up to it, with
        a progress bar. A source without a seed takes that of the state.

        Parameters
        ----------
        state : mapping
            What :meth:`state_dict` has returned.

        Raises
        ------
        TypeError
            If the source is an iterator, which can be read only once.
        ValueError
            If the state is of another source, seed, batch size or columns, or the source gives
            other rows than it did. The message names what differs.
        """
        batch = self._reader.load_state_dict(state)
        if batch is not None:
            self._load(batch)
        self._n_rows, self._fresh, self._at_end = state["n_rows"], state["fresh"], False

    def __iter__(self) -> "StreamingDataset":
        """Start again, if a stream with ``cycle=False`` has ended."""
        n_rows = self._n_rows
        if self._at_end or (
            not self._cycle and n_rows is not None and self.row + self.batch_size > n_rows
        ):
            self.reset()
        return self

    def __next__(self) -> Block:
        """Advance, and return a copy of the batch: an array, or a tuple of arrays."""
        self._fit_steps = (0, 0)
        self.advance()
        values = [buffer.get_value(borrow=False) for buffer in self._buffers]
        return tuple(values) if self._is_tuple else values[0]

    def __enter__(self) -> "StreamingDataset":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the source's files. The last batch stays in the buffer; no other can be loaded."""
        self._closed = True
        self._reader.close()

    def _load(self, batch: list[np.ndarray]) -> None:
        self._index_checks(batch)
        for buffer, values in zip(self._buffers, batch):
            # A new array each time: with JAX a step may still be reading the last one.
            buffer.set_value(values, borrow=True)

    def __getstate__(self) -> dict[str, Any]:
        # Each fit makes its own.
        return self.__dict__ | {"_index_checks": replace(self._index_checks, computed=())}

    def _end(self) -> StopIteration:
        """Say that there are no more batches, and return what says so to loops."""
        message = f"stream {self.name!r} has ended after {self.batches_seen} batches"
        done, asked = self._fit_steps
        if done < asked:
            # StopIteration ends a fit without a word.
            warnings.warn(
                f"{message}: {done} of {asked} steps of the fit are done, and the fit stops here. "
                + (
                    "The source can be read only once: pass a function that returns a fresh "
                    "iterator, or files, to read it again."
                    if self._reader.batches.blocks.one_shot
                    else "With cycle=True it goes on with another epoch."
                ),
                stacklevel=3,
            )
        self._at_end = True
        return StopIteration(f"{message}.")

    def _begin_step(self, step: int, n_steps: int) -> None:
        """See to it that step ``step`` (from 0) of a fit of ``n_steps`` finds a new batch."""
        self._fit_steps = (step, n_steps)
        if step == 0 or not self._cycle:
            self._say_order()
        if not self._fresh:
            self.advance()

    def _use_batch(self) -> None:
        """Take the batch that is loaded for used: a step is about to."""
        self._fresh, self._in_fit = False, True
        step, n_steps = self._fit_steps
        self._fit_steps = (step + 1, n_steps)

    def _end_fit(self) -> None:
        """Let go of what is held for a fit, and say if it has seen a first part of the rows only."""
        from pymc.variational.fit_check import FitConvergenceWarning

        self._reader.release()
        for buffer in self._buffers:
            # A copy: batches are cut from larger arrays.
            buffer.set_value(np.asarray(buffer.get_value(borrow=True)).copy("K"), borrow=True)
        n_rows = self._assumed_n_rows
        if (
            self._check_order != "ignore"
            and n_rows is not None
            and 0 < self.rows_streamed < n_rows
            and not self._reader.batches.blocks.in_random_order
        ):
            warnings.warn(
                f"stream {self.name!r}: {self.rows_streamed:,} of {n_rows:,.0f} rows were read so far "
                f"({self.rows_streamed / n_rows:.2g} of an epoch), the first ones in the order of the "
                "source, which is not known to be random: the posterior is that of a first part of the "
                "data. Fit for more steps, shuffle the rows first (pre_shuffle), or say with "
                'check_order="ignore" that they come in random order.',
                FitConvergenceWarning,
                stacklevel=2,
            )

    @property
    def _assumed_n_rows(self) -> float | None:
        """N: as it is known, or as the model of a fit has it."""
        return self.total_size or min(self._total_sizes.values(), default=None)

    def _set_index_bounds(
        self, bounds: Bounds, computed: Sequence[Callable[[Sequence[np.ndarray]], None]] = ()
    ) -> None:
        """Have indices into parameters checked in each batch, and in the one that is loaded."""
        self._index_checks = replace(self._index_checks, bounds=bounds, computed=computed)
        self._index_checks([np.asarray(b.get_value(borrow=True)) for b in self._buffers])

    def _say_order(self) -> None:
        """Say that batches follow the order of the rows, if they do, and what to do about it."""
        order = self._order
        # A warning comes once; an error each time.
        if order.finding is None or (order.said and self._check_order == "warn"):
            return
        if self.batches_seen + 1 < order.batches:  # found in what was read ahead
            return
        order.said = True
        from pymc.streams.order.report import way_out

        message = (
            f"stream {self.name!r}: {order.finding}. Such batches stand for a stretch of the data each, "
            f"and the fit ends at a wrong posterior. {way_out(self._reader.batches.blocks.source)}"
        )
        n_bytes = (self._n_rows or 0) * self._row_bytes
        if 0 < n_bytes <= SMALL_BYTES:
            message += (
                f" These {self._n_rows:,} rows fit into memory ({n_bytes / 1e6:,.0f} MB): "
                "pm.Minibatch on an array draws from all of them."
            )
        message += (
            " order_report(source) shows all columns; if the order is known to mean nothing, pass "
            'check_order="ignore".'
        )
        if self._check_order == "raise":
            raise StreamOrderWarning(message)
        warnings.warn(message, StreamOrderWarning, stacklevel=3)

    def _expect_total_sizes(self, total_sizes: dict[str, float]) -> None:
        """Remember what a fit passes as N, to hold it against N as soon as that is known."""
        if self._given is not None:
            total_sizes = {"the StreamingDataset": self._given} | total_sizes
        self._total_sizes = total_sizes
        self._check_total_sizes()

    def _check_total_sizes(self) -> None:
        for who, total_size in self._total_sizes.items():
            # The scale of a likelihood has the precision of floatX.
            if self._n_rows is not None and abs(total_size / self._n_rows - 1) > 1e-6:
                warnings.warn(
                    f"total_size={total_size:.10g} ({who}) is not the number of rows of stream "
                    f"{self.name!r}, {self._n_rows}. The posterior will be that of "
                    f"{total_size:.10g} rows: "
                    f"too {'narrow' if total_size > self._n_rows else 'wide'}. "
                    f"Pass total_size={self._n_rows}.",
                    stacklevel=2,
                )

    def _set_n_rows(self, counted: int | None) -> None:
        """Take N from the first whole epoch, and say so if it is not what was believed."""
        if counted is None or counted == self._n_rows:
            return
        if self._n_rows is not None:
            warnings.warn(
                f"stream {self.name!r}: the source says n_rows={self._n_rows}, and an epoch had "
                f"{counted} rows. A total_size of {self._n_rows} is wrong.",
                stacklevel=3,
            )
        self._n_rows = counted
        self._check_total_sizes()


def _as_tuples(shape: Any) -> Any:
    """Return a shape, or a sequence of shapes, as tuples of Python ints."""
    if isinstance(shape, Sequence) and not isinstance(shape, str):
        return tuple(map(_as_tuples, shape))
    return operator.index(shape)
