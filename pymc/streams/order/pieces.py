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
"""Pieces of a stream: how much their means differ, and what a batch that is drawn from them has of it."""

from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pymc.streams.blocks import SLICE_ROWS, Block, BlockFormat, Blocks, n_rows_of, parts_of
from pymc.streams.executors import MOST_TASKS, check_blocks, row_ranges
from pymc.streams.moments import Moments
from pymc.streams.order.check import Features
from pymc.streams.sources.parquet import parquet_source

# Bytes of a piece of a source that can be cut anywhere, and so many of them for a worker at a time.
PIECE_BYTES, PIECES_IN_TASK = 2**25, 16
# Pieces of a smaller share of the rows of the largest one are left out.
LEAST_SHARE = 0.25
# Standard deviations of a variance by which a predicted effect must exceed chance.
SURE_SDS = 5.0
# Probability that rows in random order have an effect at all, in any column or product.
FALSE_EFFECT = 1e-3


class Look(NamedTuple):
    """What is kept of a piece."""

    first_row: int
    n_rows: int
    means: np.ndarray  # of the columns, over all its rows
    features: Moments  # of the rows that were looked at


class StreamPieces:
    """A stream in pieces: parts of its blocks that lie within a window.

    Parameters
    ----------
    blocks : Blocks
        The stream. What is not files and can be opened at any row is cut into blocks of one size, so
        that pieces do not depend on where it is opened.
    window : int
        Rows that a batch is drawn from.
    n_looked : int
        Rows to look at in a piece.

    Attributes
    ----------
    names : list of str
        Names of the columns.
    """

    def __init__(self, blocks: Blocks, window: int, n_looked: int):
        self._blocks, self._window, self._n_looked = blocks, window, n_looked
        self._files = blocks.source if isinstance(blocks.source, parquet_source) else None
        if self._files:
            self.names = list(self._files.columns)
        else:
            self.names = BlockFormat.of(blocks.first()).column_names(blocks.columns)
        self._cut_rows = max(1, min(SLICE_ROWS, PIECE_BYTES // (8 * len(self.names))))

    def __call__(
        self, first_row: int = 0, *which: int
    ) -> Generator[tuple[int, np.ndarray], None, None]:
        """Give pieces of shape (rows, columns), each with its first row.

        Of the part of the stream that begins at a row, if told which: see :meth:`calls`.
        """
        for rows in self._matrices(*which):
            start = 0
            while start < len(rows):
                left = self._window - (first_row + start) % self._window
                stop = min(start + left, len(rows))
                yield first_row + start, rows[start:stop]
                start = stop
            first_row += len(rows)

    def calls(self) -> list[tuple[int, int, int]]:
        """List parts for workers: the first row, and which row groups or rows they read.

        Raises
        ------
        ValueError
            If workers cannot read them: see :func:`~pymc.streams.executors.check_blocks`.
        """
        if self._files is None:
            ranges = row_ranges(self._blocks, PIECES_IN_TASK * self._cut_rows, "the source")
            return [(start, start, stop) for start, stop in ranges]
        check_blocks(self._blocks, "the source")
        firsts = np.cumsum([0, *self._files.row_group_rows]).tolist()
        n_groups = self._files.n_row_groups
        step = -(-n_groups // MOST_TASKS)
        return [(firsts[i], i, min(i + step, n_groups)) for i in range(0, n_groups, step)]

    def features(self, rows: np.ndarray) -> Features:
        """Return what is looked at, on the scale of the rows of the first piece."""
        return Features(self.names, self._looked_at(rows), outlier=np.inf)

    def look(self, features: Features, first_row: int, rows: np.ndarray) -> Look:
        """Look at a piece."""
        moments = Moments.of(features(self._looked_at(rows)).T)
        return Look(first_row, len(rows), rows.mean(axis=0), moments)

    def looks(self, features: Features, *call: int) -> list[Look]:
        """Look at the pieces of a part."""
        return [self.look(features, *piece) for piece in self(*call)]

    def _looked_at(self, rows: np.ndarray) -> np.ndarray:
        return rows[:: -(-len(rows) // self._n_looked)]

    def _matrices(self, *which: int) -> Iterator[np.ndarray]:
        if self._files:
            return map(matrix_of, self._files.by_row_group(*which))
        blocks = self._blocks.between(*which) if which else self._blocks.epoch(0)
        rows = map(matrix_of, blocks)
        return _of_one_size(rows, self._cut_rows) if self._blocks.seekable else rows


def matrix_of(block: Block) -> np.ndarray:
    """Return a block as floats, of shape (rows, columns)."""
    parts = [part.reshape(n_rows_of(block), -1) for part in parts_of(block)]
    return np.concatenate(parts, axis=1, dtype=np.float64)


def _of_one_size(matrices: Iterator[np.ndarray], n_rows: int) -> Iterator[np.ndarray]:
    """Cut and join matrices, so that all but the last have ``n_rows`` rows."""
    parts: list[np.ndarray] = []
    filled = 0
    for rows in matrices:
        while len(rows):
            parts.append(rows[: n_rows - filled])
            rows = rows[n_rows - filled :]
            filled += len(parts[-1])
            if filled == n_rows:
                yield np.concatenate(parts)
                parts, filled = [], 0
    if parts:
        yield np.concatenate(parts)


class PieceVariances:
    """Variances between and within pieces of a stream, by the window that a batch is drawn from.

    What differs by no more than chance would have it in all but a thousandth of streams in random
    order counts as no difference: of few pieces it would pass for a large effect.

    Attributes
    ----------
    in_window : float or None
        Pieces in a window; None if all of them were looked at.
    """

    def __init__(self) -> None:
        self.in_window: float | None = None
        self._means: list[np.ndarray] = []
        self._windows: list[int] = []
        self._looked_at: list[int] = []
        self._squares: Any = 0.0
        # Of the rows that vary within pieces, those in pieces whose means are left out.
        self._n_left_out = 0

    def add(self, features: Moments, window: int) -> None:
        """Take in a piece, of the window with this number."""
        self._means.append(features.mean)
        self._squares = self._squares + features.squares
        self._windows.append(window)
        self._looked_at.append(features.n_rows)

    def leave_out_small(self) -> None:
        """Leave out what is left of row groups where windows end: the mean of a few rows is chance."""
        looked_at = np.array(self._looked_at)
        enough = np.flatnonzero(looked_at >= looked_at.max() * LEAST_SHARE)
        self._n_left_out = int(np.delete(looked_at - 1, enough).sum())
        self._means = [self._means[i] for i in enough]
        self._windows = [self._windows[i] for i in enough]
        self._looked_at = [self._looked_at[i] for i in enough]

    def icc(self, sure: bool = False) -> np.ndarray:
        """Return the intraclass correlation of each feature over pieces, or a lower limit of it."""
        within, _, pieces = self._components(sure)
        return _share(pieces, within)

    def effect_in_order(self, batch_size: int) -> np.ndarray:
        """Return the design effect of a batch that is drawn from a window."""
        within, noise, pieces = self._components()
        windows = np.array(self._windows)
        numbers, counts = np.unique(windows, return_counts=True)
        between = pieces
        if len(numbers) == 1:
            between = np.zeros_like(pieces)
        elif len(windows) >= 2 * len(numbers):  # else few tell what windows with several differ by
            means = np.stack(self._means)
            of_window = pd.DataFrame(means).groupby(windows).mean().to_numpy()
            n_looks = (len(windows) - (counts**2).sum() / len(windows)) / (len(numbers) - 1)
            deviations = of_window - means.mean(axis=0)
            ms_between = (counts[:, None] * deviations**2).sum(axis=0) / (len(numbers) - 1)
            rest = means - of_window[np.searchsorted(numbers, windows)]
            ms_rest = (rest**2).sum(axis=0) / (len(windows) - len(numbers))
            # What windows differ by, and what is left of the pieces' differences in their means.
            n_rest = len(windows) - len(numbers)
            between = _excess(ms_between, ms_rest, len(numbers) - 1, n_rest) / n_looks
            between += _excess(ms_rest, noise, n_rest, self._n_within) / (self.in_window or n_looks)
        return 1 + (batch_size - 1) * _share(between, np.maximum(pieces - between, 0) + within)

    @property
    def _n_within(self) -> int:
        """Degrees of freedom of the variance within pieces."""
        return max(1, sum(self._looked_at) - len(self._looked_at) + self._n_left_out)

    def _components(self, sure: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return variances: within pieces, of a piece's mean by chance, and between pieces."""
        means, looked_at = np.stack(self._means), np.array(self._looked_at)
        within = self._squares / self._n_within
        noise = within * (1 / looked_at).mean()
        if len(means) == 1:
            return within, noise, np.zeros_like(within)
        seen = means.var(axis=0, ddof=1)
        if sure:
            low = seen / (1 + SURE_SDS * np.sqrt(2 / (len(means) - 1)))
            return within, noise, np.maximum(low - noise, 0)
        return within, noise, _excess(seen, noise, len(means) - 1, self._n_within)


def _share(part: np.ndarray, rest: np.ndarray) -> np.ndarray:
    total = part + rest
    return np.divide(part, total, out=np.zeros_like(total), where=total > 1e-12)


def _excess(seen: np.ndarray, by_chance: np.ndarray, n_seen: int, n_by_chance: int) -> np.ndarray:
    """Return by how much variances exceed others, 0 where that may be chance.

    Both with their degrees of freedom.
    """
    from scipy.stats import f

    limit = f.ppf(1 - FALSE_EFFECT / len(seen), n_seen, n_by_chance)
    return np.where(seen > limit * by_chance, seen - by_chance, 0.0)
