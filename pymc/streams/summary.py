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
"""Summary of a source: what is in each of its columns, in one pass."""

import os

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pymc.streams.blocks import Block, BlockFormat, Blocks, check_finite, n_rows_of, positive_int
from pymc.streams.executors import Held, in_executor, row_ranges
from pymc.streams.moments import Moments
from pymc.streams.passes import in_threads
from pymc.streams.position import Seed, hashed, seed_of

__all__ = ["ColumnSummary", "column_summary"]

# Rows that are worked on at a time: what fits into a CPU's cache. So many of them are added up by
# themselves: by one worker of an executor.
PIECE_BYTES, MIN_PIECE_ROWS, MAX_PIECE_ROWS = 2**21, 2**10, 2**15
PIECES_IN_GROUP = 32
MAX_THREADS = 8
# Standard deviations of the number of keys below a limit that it leaves room for.
SURE_SDS = 6


@dataclass(frozen=True)
class ColumnSummary:
    """What is in each column of a source.

    Attributes
    ----------
    table : DataFrame
        A row for each column of numbers or booleans: ``count``, ``mean``, ``sd`` (of a sample, by
        n - 1), ``min``, ``max``, and its quantiles, ``5%``, say. ``unit`` where there are times.
    levels : dict of str to Series
        Of each column of codes: how many rows have a level, by the level.
    quantile_se : DataFrame
        Standard errors of the quantiles: 0 where all rows are in the sample.
    n_rows, n_sampled : int
        Rows, and rows in the sample that the quantiles are those of.
    """

    table: pd.DataFrame
    levels: dict[str, pd.Series]
    quantile_se: pd.DataFrame
    n_rows: int
    n_sampled: int

    def _title(self) -> str:
        exact = self.n_sampled == self.n_rows
        sample = "" if exact else f"; quantiles of a random sample of {self.n_sampled:,}"
        return f"Summary of {self.n_rows:,} rows{sample}"

    def _few_levels(self) -> list[str]:
        lines = []
        for name, counts in self.levels.items():
            most = counts.sort_values(ascending=False, kind="stable")[:5]
            listed = ", ".join(f"{level} {count:,}" for level, count in most.items())
            rest = f", and {len(counts) - len(most):,} more" if len(counts) > len(most) else ""
            lines.append(f"{name}: {len(counts):,} levels: {listed}{rest}")
        return lines

    def __repr__(self) -> str:
        table = self.table.to_string(float_format="{:.4g}".format) if len(self.table) else ""
        return "\n".join([self._title(), *([table] if table else []), *self._few_levels()])

    def _repr_html_(self) -> str:
        from html import escape

        table = self.table.to_html(float_format="{:.4g}".format) if len(self.table) else ""
        levels = "".join(f"<p>{escape(line)}</p>" for line in self._few_levels())
        return f"<p>{self._title()}</p>{table}{levels}"


def column_summary(
    source: Any,
    *,
    quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
    sample_rows: int = 100_000,
    seed: Seed = 0,
    executor: Executor | None = None,
) -> ColumnSummary:
    """Summarise each column of a source in one pass.

    Count, mean, sd, minimum, maximum and the counts of levels are those of all rows. Quantiles are
    those of a uniform random sample of rows, or of all rows where these are no more.

    Parameters
    ----------
    source : object
        Any source that :class:`StreamingDataset` takes and that can be read again.
    quantiles : sequence of float, default (0.05, 0.25, 0.5, 0.75, 0.95)
        Quantiles, between 0 and 1.
    sample_rows : int, default 100_000
        Rows in the sample: 8 bytes each for a column, and twice that while it is drawn.
    seed : int, Generator or SeedSequence, default 0
        For the sample. Whether a row is in it depends on the seed and the row's number.
    executor : concurrent.futures.Executor, optional
        Processes or a cluster that read the rows: ``Client.get_executor()`` of Dask, say. Default:
        threads. The result is the same to the last bit.

    Returns
    -------
    ColumnSummary
        A table that prints, and the counts of levels.

    Raises
    ------
    TypeError, ValueError
        If the source can be read only once, is no source, or has no rows; if a column is not
        numeric, or holds a NaN or infinite value; if a quantile is not between 0 and 1; if the
        workers of an executor cannot read the source by ranges of rows.

    Notes
    -----
    Means and variances of pieces of rows, of a fixed number each, are merged by compensated sums in
    the order of the rows: the result is the same to the last bit, whoever did which.

    The sample is that of the rows with the smallest hashes of their numbers. The standard error of
    a quantile is half the distance between those at one standard deviation of its rank [1]_.

    References
    ----------
    .. [1] Woodruff, R. S. (1952). Confidence intervals for medians and other position measures.
       Journal of the American Statistical Association, 47, 635-646.

    Examples
    --------
    >>> import numpy as np
    >>> from pymc.variational.streaming import column_summary
    >>> column_summary({"x": np.arange(101.0), "up": np.arange(101) % 2 == 1}, quantiles=[0.5])
    Summary of 101 rows
        count  mean     sd  min  max  50%
    x     101    50   29.3    0  100   50
    up    101 0.495 0.5025    0    1    0
    """
    sample_rows = positive_int(sample_rows, "sample_rows")
    wrong = [q for q in quantiles if not 0 < q < 1]
    if wrong:
        raise ValueError(f"quantiles must be between 0 and 1, got {wrong}; min and max are exact.")
    blocks = Blocks(source)
    if blocks.one_shot:
        raise TypeError("an iterator can be read only once: summarise a function that returns one.")
    columns = _Columns(blocks, sample_rows, seed_of(seed))
    total = _Part(sample_rows)
    if executor is None:
        n_threads = min(MAX_THREADS, os.cpu_count() or 1)
        pieces = columns.pieces(blocks.unshuffled())
        groups = columns.groups(
            in_threads(pieces, lambda _, piece: columns.part(*piece), n_threads)
        )
    else:
        ranges = row_ranges(blocks, columns.group_rows, "the source")
        groups = in_executor(
            executor, [Held(_Columns.of_range, "summary"), Held(columns, "the source")], ranges
        )
    for group in groups:
        total.add(group)
    return columns.summary(total, list(quantiles))


class _Part:
    """What some rows come to; parts merge.

    Parameters
    ----------
    sample_rows : int
        Rows in a sample.

    Attributes
    ----------
    moments : Moments
        Of the columns of numbers.
    low, high : ndarray
        Minimum and maximum of these.
    counts : list of ndarray
        Of each column of codes, how many rows have a code.
    keys, sample : list of ndarray
        Keys of rows that may be in the sample, and their numbers: a matrix with a row a column.
    """

    def __init__(self, sample_rows: int):
        self.moments = Moments()
        self.low: Any = np.inf
        self.high: Any = -np.inf
        self.counts: list[np.ndarray] = []
        self.keys: list[np.ndarray] = []
        self.sample: list[np.ndarray] = []
        self._sample_rows = sample_rows

    def add(self, other: "_Part") -> None:
        """Take in what other rows come to."""
        self.moments.add(other.moments)
        self.low = np.minimum(self.low, other.low)
        self.high = np.maximum(self.high, other.high)
        counts = zip(self.counts, other.counts)
        self.counts = [one + more for one, more in counts] or other.counts
        self.keys += other.keys
        self.sample += other.sample
        if sum(map(len, self.keys)) > 2 * self._sample_rows:
            self.keep_smallest()

    def keep_smallest(self) -> None:
        """Keep the rows with the smallest keys: the sample of these rows."""
        keys, sample = np.concatenate(self.keys), np.concatenate(self.sample, axis=1)
        smallest = np.argsort(keys)[: self._sample_rows]
        self.keys, self.sample = [keys[smallest]], [sample[:, smallest]]


class _Columns:
    """The columns of a source, and its rows as pieces of a matrix with a row for each column.

    Parameters
    ----------
    blocks : Blocks
        The source.
    sample_rows, seed : int
        Rows in the sample, and what it is drawn with.

    Attributes
    ----------
    group_rows : int
        Rows that are added up by themselves.
    """

    def __init__(self, blocks: Blocks, sample_rows: int, seed: int):
        self._blocks, self._sample_rows, self._seed = blocks, sample_rows, seed
        self._form = BlockFormat.of(blocks.first())
        names = self._form.column_names(blocks.columns)
        levels, self._units = blocks.categories, blocks.units
        self._levels = {name: levels[name] for name in names if name in levels}
        # Numbers first, then codes.
        self._names = [name for name in names if name not in self._levels]
        order = [*self._names, *self._levels]
        self._places = np.array([order.index(name) for name in names])
        n_rows = PIECE_BYTES // (8 * len(names))
        self._piece_rows = min(MAX_PIECE_ROWS, max(MIN_PIECE_ROWS, n_rows))
        self.group_rows = PIECES_IN_GROUP * self._piece_rows
        # Keys above this are not among the smallest.
        self._limit = 2**64 - 1
        if blocks.n_rows is not None:
            enough = sample_rows + SURE_SDS * np.sqrt(sample_rows) + SURE_SDS**2
            self._limit = int(min(1.0, enough / blocks.n_rows) * self._limit)

    def pieces(self, blocks: Iterable[Block], first: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """Cut blocks, from row ``first`` on, into pieces of one size, each with its first row."""
        filled, piece = 0, self._empty()
        for block in blocks:
            parts = [part.reshape(len(part), -1).T for part in self._form.split(block)]
            start, n_rows = 0, n_rows_of(block)
            while start < n_rows:
                stop = start + min(self._piece_rows - filled, n_rows - start)
                j = 0
                for part in parts:
                    places = self._places[j : j + len(part)]
                    piece[places, filled : filled + stop - start] = part[:, start:stop]
                    j += len(part)
                filled, start = filled + stop - start, stop
                if filled == self._piece_rows:
                    yield first, piece
                    first, filled, piece = first + filled, 0, self._empty()
        if filled:
            yield first, piece[:, :filled]

    def part(self, first: int, piece: np.ndarray) -> _Part:
        """Return what a piece comes to."""
        part = _Part(self._sample_rows)
        numbers, codes = np.split(piece, [len(self._names)])
        part.moments = Moments.of(numbers)
        if not np.isfinite(part.moments.mean).all():
            for name, values in zip(self._names, numbers):
                check_finite(values, f"rows from {first:,} on, column {name!r}")
        part.low, part.high = numbers.min(axis=1), numbers.max(axis=1)
        part.counts = [
            np.bincount(values.astype(np.intp), minlength=len(levels))
            for values, levels in zip(codes, self._levels.values())
        ]
        rows = np.arange(first, first + piece.shape[1], dtype=np.uint64)
        keys = hashed(rows, self._seed, "column_summary")
        chosen = np.flatnonzero(keys <= self._limit)
        part.keys, part.sample = [keys[chosen]], [numbers[:, chosen]]
        return part

    def groups(self, parts: Iterable[_Part]) -> Iterator[_Part]:
        """Add up the parts of pieces that follow each other, so many at a time."""
        group = _Part(self._sample_rows)
        for part in parts:
            group.add(part)
            if group.moments.n_rows == self.group_rows:
                yield group
                group = _Part(self._sample_rows)
        if group.moments.n_rows:
            yield group

    def of_range(self, start: int, stop: int) -> _Part:
        """Read the rows of a group, and return what they come to."""
        pieces = self.pieces(self._blocks.between(start, stop), start)
        return next(self.groups(self.part(*piece) for piece in pieces))

    def summary(self, total: _Part, quantiles: list[float]) -> ColumnSummary:
        """Return what all rows come to."""
        n_rows, constant = total.moments.n_rows, total.low == total.high
        if n_rows == 0:
            raise ValueError("the source has no rows.")
        sd = np.sqrt(total.moments.squares / max(n_rows - 1, 1))
        table = pd.DataFrame(
            {
                "count": n_rows,
                # The mean of a constant is rounded, and what it then deviates by is no sd.
                "mean": np.where(constant, total.low, total.moments.mean),
                "sd": np.where(constant, 0.0, sd),
                "min": total.low,
                "max": total.high,
            },
            index=self._names,
        )
        if self._units:
            table.insert(0, "unit", [self._units.get(name, "") for name in self._names])
        total.keep_smallest()
        [sample] = total.sample
        n_sampled, probs = sample.shape[1], np.array(quantiles)
        labels = [f"{100 * prob:.10g}%" for prob in quantiles]
        table[labels] = np.quantile(sample, probs, axis=1).T
        # Of a rank; nothing is left to chance where all rows are in the sample.
        sds = np.sqrt(probs * (1 - probs) / n_sampled * (1 - n_sampled / n_rows))
        low, high = (np.quantile(sample, p.clip(0, 1), axis=1) for p in (probs - sds, probs + sds))
        return ColumnSummary(
            table=table,
            levels={
                name: pd.Series(counts, index=pd.Index(levels, name=name), name="count")
                for (name, levels), counts in zip(self._levels.items(), total.counts)
            },
            quantile_se=pd.DataFrame((high - low).T / 2, index=table.index, columns=labels),
            n_rows=n_rows,
            n_sampled=n_sampled,
        )

    def _empty(self) -> np.ndarray:
        return np.empty((len(self._places), self._piece_rows))
