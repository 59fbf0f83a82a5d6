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
"""Order of a source: how far from random samples its batches will be, before a model reads them."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from pymc.streams.blocks import (
    Block,
    BlockFormat,
    Blocks,
    n_rows_of,
    parts_of,
    positive_int,
)
from pymc.streams.moments import Moments
from pymc.streams.order.check import LARGE_EFFECT, OUTLIER, Features, effect_text
from pymc.streams.shuffle.buffer import shuffle_buffer
from pymc.streams.sources.decoding import SLICE_ROWS
from pymc.streams.sources.parquet import parquet_source
from pymc.streams.standardize import standardize

__all__ = ["OrderReport", "order_report"]

# Rows looked at in each piece of a stream, and in each of the few that are read for a warning.
ROWS_IN_PIECE, ROWS_IN_SAMPLE = 1024, 4096
# Pieces of a smaller share of the rows of the largest one are left out.
LEAST_SHARE = 0.25
# A buffer with fewer row groups than this is no sample of the data, even in random order.
ENOUGH_ROW_GROUPS = 10
# Share of row groups in order, and distance in sds from half of them, that are no accident.
ORDERED_SHARE = 0.9
ORDERED_SDS = 5.0
# Row groups whose rows are so few can have separate ranges by chance.
FEW_ROWS = 32
# What is read for the size of the effect in a warning: windows, and row groups in each.
WINDOWS, GROUPS_IN_WINDOW = 16, 4
# Standard deviations of a variance by which a predicted effect must exceed chance.
SURE_SDS = 5.0


@dataclass(frozen=True)
class OrderReport:
    """How much the order of a source matters, column by column.

    Attributes
    ----------
    table : DataFrame
        A row for each column, and for each product of two where the columns are few.
        ``icc``: intraclass correlation, the share of the variance that lies between pieces of the
        source (row groups, blocks, or batches where these are larger). ``in order``: design effect
        of a batch when the source is read in its own order. ``row groups at random``: the same,
        predicted, with ``shuffle_row_groups=True``; for Parquet files only. A design effect of 1
        is that of a random sample.
    batch_size, buffer_size, n_rows : int
        Rows in a batch, in the window that a batch is drawn from, and in all.
    means : DataFrame
        Means of the columns in pieces of the source, by the row at which a piece begins.
    """

    table: pd.DataFrame
    batch_size: int
    buffer_size: int
    n_rows: int
    means: pd.DataFrame

    def _title(self) -> str:
        return (
            f"Design effect of a batch of {self.batch_size:,} rows, drawn from "
            f"{min(self.buffer_size, self.n_rows):,} of {self.n_rows:,} rows (1 is a random sample)"
        )

    def __repr__(self) -> str:
        return f"{self._title()}\n{self.table.to_string(float_format='{:.3g}'.format)}"

    def _repr_html_(self) -> str:
        return f"<p>{self._title()}</p>{self.table.to_html(float_format='{:.3g}'.format)}"

    def plot(self) -> Any:
        """Draw the means of each column over the stream.

        Returns
        -------
        matplotlib.figure.Figure
            A panel a column: means of pieces of the source against their first row.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install matplotlib") from error
        n_columns = len(self.means.columns)
        figure = Figure(figsize=(8, 1 + 1.3 * n_columns), layout="constrained")
        panels = figure.subplots(n_columns, sharex=True, squeeze=False)[:, 0]
        for axes, column in zip(panels, self.means):
            axes.plot(self.means.index, self.means[column], ".", ms=3)
            axes.set_ylabel(column)
            axes.grid(alpha=0.3)
        axes.set_xlabel("row")
        panels[0].set_title("Block means over the stream", fontsize="medium")
        return figure


def order_report(source: Any, *, batch_size: int = 4096) -> OrderReport:
    """Report how far from random samples the batches of a source are.

    The source is read once, in its own order: of files that of their names, of a
    :class:`shuffle_buffer` that of the rows that go into it.

    Parameters
    ----------
    source : object
        Any source that :class:`StreamingDataset` takes and that can be read again. A
        :class:`shuffle_buffer` says from how many rows a batch is drawn.
    batch_size : int, default 4096
        Rows in a batch.

    Returns
    -------
    OrderReport
        A table that prints, with a plot of block means.

    Raises
    ------
    TypeError, ValueError
        If the source can be read only once, or is no source.

    Notes
    -----
    A batch of B rows is drawn from a window of W rows: the shuffle buffer, or the batch itself.
    With the intraclass correlation rho of the windows, a batch mean varies 1 + (B - 1) rho times
    as much as that of a simple random sample, the design effect [1]_. With row groups in random order,
    a window holds m of the G row groups, and rho is the one of the row groups times
    (1 - (m - 1) / (G - 1)) / m: the two-level shuffle of [2]_.

    References
    ----------
    .. [1] Kish, L. (1965). Survey Sampling. Wiley, section 5.4.
    .. [2] Xu, L., et al. (2022). In-database machine learning with CorgiPile: stochastic gradient
       descent without full data shuffle. SIGMOD 2022, 1286-1300.

    Examples
    --------
    >>> import numpy as np
    >>> from pymc.variational.streaming import order_report, shuffle_buffer
    >>> rng = np.random.default_rng(1)
    >>> rows = {"x": np.sort(rng.normal(size=100_000)), "y": rng.normal(size=100_000)}
    >>> report = order_report(shuffle_buffer(rows, buffer_size=10_000, batch_size=1000))
    >>> report.table["in order"].round().to_dict()["x"] > 800
    True
    """
    batch_size = positive_int(batch_size, "batch_size")
    inner, window = _peeled(source, batch_size)
    files = inner if isinstance(inner, parquet_source) else None
    blocks = Blocks(inner)
    if blocks.one_shot:
        raise TypeError("an iterator can be read only once: report on a function that returns one.")
    pieces, starts, means, n_rows = None, [], [], 0
    for block in files.by_row_group() if files else blocks.epoch(0):
        if pieces is None:
            names = BlockFormat.of(block).column_names(blocks.columns)
            pieces = _Pieces(names, ROWS_IN_PIECE, outlier=np.inf)
        start = 0
        while start < n_rows_of(block):
            stop = start + min(window - (n_rows + start) % window, n_rows_of(block) - start)
            rows = _matrix(block, slice(start, stop))
            pieces.add(rows, (n_rows + start) // window)
            starts.append(n_rows + start)
            means.append(rows.mean(axis=0))
            start = stop
        n_rows += start
    if pieces is None:
        raise ValueError("the source has no rows.")
    pieces.leave_out_small()
    table = pd.DataFrame({"icc": pieces.icc()}, index=pieces.labels)
    table["in order"] = pieces.effect_in_order(batch_size)
    if files:
        table["row groups at random"] = _effect_at_random(pieces, files, window, batch_size)
    return OrderReport(
        table=table,
        batch_size=batch_size,
        buffer_size=window,
        n_rows=n_rows,
        means=pd.DataFrame(means, index=pd.Index(starts, name="row"), columns=names),
    )


def check_files(source: Any, batch_size: int) -> tuple[str | None, float]:
    """Check the order in which batches are drawn from Parquet files, before any is.

    Returns
    -------
    finding : str or None
        What is wrong, how large the effect is, and the way out.
    limit : float
        The design effect to tolerate when the batches themselves are followed.
    """
    files, window = _peeled(source, batch_size)
    if not isinstance(files, parquet_source) or window >= files.n_rows:
        return None, LARGE_EFFECT
    if not files.shuffle_row_groups:
        evidence = _order_of_row_groups(files)
        if evidence is None:
            return None, LARGE_EFFECT
        pieces = _sampled(files, window)
        effect = _largest(pieces, pieces.effect_in_order(batch_size), batch_size)
        return f"the row groups are in order, {evidence}. In a sample of them, {effect}", 0.0
    n_groups = files.row_groups_in(window)
    if n_groups >= ENOUGH_ROW_GROUPS:
        # Such a batch is a noisy sample, not one of a stretch: its noise averages out over buffers.
        return None, max(LARGE_EFFECT, batch_size / ENOUGH_ROW_GROUPS)
    pieces = _sampled(files, window)
    if (_effect_at_random(pieces, files, window, batch_size, sure=True) <= LARGE_EFFECT).all():
        return None, LARGE_EFFECT
    effects = _effect_at_random(pieces, files, window, batch_size)
    effect = _largest(pieces, effects, batch_size)
    rows = round(ENOUGH_ROW_GROUPS * min(SLICE_ROWS, files.n_rows / files.n_row_groups))
    return (
        f"the row groups come in random order, but a batch is drawn from only {n_groups:.2g} of "
        f"them: {effect}. A shuffle_buffer of {rows:,} rows or more holds enough of them",
        0.0,
    )


def way_out(source: Any) -> str:
    """Say what to do about batches that follow the order of the rows."""
    files, _ = _peeled(source, 1)
    if not isinstance(files, parquet_source):
        # It may be in random order already: one around a parquet_source, say.
        other = (
            "if the source reads its parts in random order, take a buffer that holds more of them"
        )
    elif files.shuffle_row_groups:
        other = "take a larger shuffle_buffer, which holds more row groups"
    else:
        other = (
            "read Parquet files with shuffle_row_groups=True, into a shuffle_buffer that holds "
            "many row groups"
        )
    return (
        'Shuffle the rows on disk once, source = pre_shuffle(source, "shuffled/", seed=0); or '
        f"{other}."
    )


def _peeled(source: Any, batch_size: int) -> tuple[Any, int]:
    """Return what is shuffled, and from how many consecutive rows of it a batch is drawn."""
    window = batch_size
    while isinstance(source, shuffle_buffer | standardize):
        window, source = max(window, getattr(source, "buffer_size", 0)), source.source
    return source, window


def _effect_at_random(
    pieces: "_Pieces", files: parquet_source, window: int, batch_size: int, sure: bool = False
) -> np.ndarray:
    """Predict design effects with row groups in random order: Xu et al. (2022)."""
    n_groups, in_buffer = files.n_row_groups, files.row_groups_in(window)
    share = (1 - (in_buffer - 1) / max(1, n_groups - 1)) / in_buffer
    return 1 + (batch_size - 1) * pieces.icc(sure) * share


def _largest(pieces: "_Pieces", effects: np.ndarray, batch_size: int) -> str:
    # A column says more to the user than a product.
    columns = effects[: pieces.n_columns]
    worst = int((columns if columns.max() > LARGE_EFFECT else effects).argmax())
    if effects[worst] > LARGE_EFFECT:
        return effect_text(pieces.labels[worst], effects[worst], batch_size)
    return "the columns that are read hardly differ, but what they say of each other may drift"


def _order_of_row_groups(files: parquet_source) -> str | None:
    """Say which column is in order from one row group to the next, from its statistics."""
    found = []
    for name, ranges in files.row_group_ranges().items():
        try:
            found.append((*_order_of(ranges, files.n_rows / files.n_row_groups), name))
        except TypeError:  # values that have no order
            continue
    share, how, name = max(found, key=lambda order: order[0], default=(0.0, "", ""))
    return f"column {name!r} {how}" if share else None


def _order_of(ranges: list[tuple[Any, Any]], group_rows: float) -> tuple[float, str]:
    """Return the share of row groups that are in order, 0 if that may be chance, and how they are."""
    steps = [(one, other) for one, other in pairwise(ranges) if one != other]
    if not steps:
        return 0.0, ""
    rising = sum(one[0] <= other[0] and one[1] <= other[1] for one, other in steps) / len(steps)
    falling = sum(one[0] >= other[0] and one[1] >= other[1] for one, other in steps) / len(steps)
    share = max(rising, falling)
    # Of exchangeable numbers, half of the steps rise, with this variance.
    sds = (share - 0.5) * len(steps) / np.sqrt((len(steps) + 2) / 12)
    if share >= ORDERED_SHARE and sds >= ORDERED_SDS:
        return share, (
            f"with a minimum and maximum that {'rise' if rising == share else 'fall'} in "
            f"{share:.0%} of {len(steps):,} steps from one row group to the next"
        )
    distinct = sorted(set(ranges))
    chained = all(one[1] <= other[0] for one, other in pairwise(distinct))
    apart = all(one[1] < other[0] for one, other in pairwise(distinct))
    wide = len(distinct) > 3 and all(low < high for low, high in distinct)
    if group_rows >= FEW_ROWS and len(distinct) > 1 and (apart or (chained and wide)):
        return 1.0, f"whose ranges in {len(ranges):,} row groups do not overlap"
    return 0.0, ""


def _sampled(files: parquet_source, window: int) -> "_Pieces":
    """Look at some row groups in each of a few windows, which are spread evenly over the files."""
    pieces = _Pieces(list(files.columns), ROWS_IN_SAMPLE, OUTLIER)
    in_window = window * files.n_row_groups / files.n_rows
    n_looks = int(min(GROUPS_IN_WINDOW, max(1, in_window)))
    last = max(0, files.n_row_groups - max(1, int(in_window)))
    firsts = np.linspace(0, last, WINDOWS * GROUPS_IN_WINDOW // n_looks).astype(int)
    for i, first in enumerate(np.unique(firsts).tolist()):
        for j in range(n_looks):
            group = first + int(j * in_window / n_looks)
            block = files.first_rows(group, min(window, 4 * ROWS_IN_SAMPLE))
            if block is not None:
                pieces.add(_matrix(block, slice(None)), i)
    pieces.in_window = max(1.0, in_window)
    return pieces


def _matrix(block: Block, rows: slice) -> np.ndarray:
    """Return rows of a block as floats, of shape (rows, columns)."""
    parts = [part[rows] for part in parts_of(block)]
    return np.concatenate([p.reshape(len(p), -1) for p in parts], axis=1, dtype=np.float64)


class _Pieces:
    """Pieces of a stream, by the window that a batch is drawn from: an analysis of variance.

    Parameters
    ----------
    names : list of str
        Names of the columns.
    sample : int
        Rows to look at in a piece.
    outlier : float
        See :class:`Features`.

    Attributes
    ----------
    labels : list of str
        Names of the columns and of their products.
    n_columns : int
        Number of columns.
    in_window : float or None
        Pieces in a window; None if all of them were looked at.
    """

    def __init__(self, names: list[str], sample: int, outlier: float):
        self.n_columns = len(names)
        self.in_window: float | None = None
        self._names, self._sample, self._outlier = names, sample, outlier
        self._features: Features | None = None
        self._means: list[np.ndarray] = []
        self._windows: list[int] = []
        self._looked_at: list[int] = []
        self._squares: Any = 0.0
        # Of the rows that vary within pieces, those in pieces whose means are left out.
        self._n_left_out = 0

    @property
    def labels(self) -> list[str]:
        assert self._features is not None
        return self._features.labels

    def add(self, rows: np.ndarray, window: int) -> None:
        """Take in a piece of shape (rows, columns), of the window with this number."""
        rows = rows[:: -(-len(rows) // self._sample)]
        if self._features is None:
            self._features = Features(self._names, rows, self._outlier)
        moments = Moments.of(self._features(rows).T)
        self._means.append(moments.mean)
        self._squares = self._squares + moments.squares
        self._windows.append(window)
        self._looked_at.append(len(rows))

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
            between = np.maximum(ms_between - ms_rest, 0) / n_looks
            between += np.maximum(ms_rest - noise, 0) / (self.in_window or n_looks)
        return 1 + (batch_size - 1) * _share(between, np.maximum(pieces - between, 0) + within)

    def _components(self, sure: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return variances: within pieces, of a piece's mean by chance, and between pieces."""
        means, looked_at = np.stack(self._means), np.array(self._looked_at)
        within = self._squares / max(1, (looked_at - 1).sum() + self._n_left_out)
        noise = within * (1 / looked_at).mean()
        if len(means) == 1:
            return within, noise, np.zeros_like(within)
        seen = means.var(axis=0, ddof=1)
        if sure:
            seen = seen / (1 + SURE_SDS * np.sqrt(2 / (len(means) - 1)))
        return within, noise, np.maximum(seen - noise, 0)


def _share(part: np.ndarray, rest: np.ndarray) -> np.ndarray:
    total = part + rest
    return np.divide(part, total, out=np.zeros_like(total), where=total > 1e-12)
