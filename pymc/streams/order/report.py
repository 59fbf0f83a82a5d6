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

from collections.abc import Iterable
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pandas as pd

from pymc.streams.blocks import Blocks, positive_int
from pymc.streams.executors import Held, in_executor
from pymc.streams.moments import Moments
from pymc.streams.order.check import LARGE_EFFECT, OUTLIER, Features, effect_text
from pymc.streams.order.pieces import Look, PieceVariances, StreamPieces, matrix_of
from pymc.streams.shuffle.buffer import shuffle_buffer
from pymc.streams.sources.decoding import SLICE_ROWS
from pymc.streams.sources.parquet import parquet_source
from pymc.streams.standardize import standardize

__all__ = ["OrderReport", "order_report"]

# Rows looked at in each piece of a stream, unless batches have more: of fewer, chance would pass for
# an effect. And in each of the few row groups that are read for a warning.
ROWS_IN_PIECE, ROWS_IN_SAMPLE = 1024, 4096
# A buffer with fewer row groups than this is no sample of the data, even in random order.
ENOUGH_ROW_GROUPS = 10
# Share of row groups in order, and distance in sds from half of them, that are no accident.
ORDERED_SHARE = 0.9
ORDERED_SDS = 5.0
# Row groups whose rows are so few can have separate ranges by chance.
FEW_ROWS = 32
# What is read for the size of the effect in a warning: windows, and row groups in each.
WINDOWS, GROUPS_IN_WINDOW = 16, 4


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


def order_report(
    source: Any, *, batch_size: int = 4096, executor: Executor | None = None
) -> OrderReport:
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
    executor : concurrent.futures.Executor, optional
        Processes or a cluster that read the rows: ``Client.get_executor()`` of Dask, say. Default:
        this thread. The table is the same to the last bit.

    Returns
    -------
    OrderReport
        A table that prints, with a plot of block means.

    Raises
    ------
    TypeError, ValueError
        If the source can be read only once, or is no source; if the workers of an executor cannot
        read it by ranges of rows.

    Notes
    -----
    A batch of B rows is drawn from a window of W rows: the shuffle buffer, or the batch itself.
    With the intraclass correlation rho of the windows, a batch mean varies 1 + (B - 1) rho times
    as much as that of a simple random sample, the design effect [1]_. With row groups in random order,
    a window holds m of the G row groups, and rho is the one of the row groups times
    (1 - (m - 1) / (G - 1)) / m: the two-level shuffle of [2]_.

    What differs by no more than chance has rho = 0: more than that is seen in one of a thousand sources
    in random order. Of four columns and their products, in windows that hold a batch each, design
    effects are chance below 3.1 with 15 windows, below 1.7 with 100, and below 1.2 with 1,000.

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
    blocks = Blocks(inner)
    if blocks.one_shot:
        raise TypeError("an iterator can be read only once: report on a function that returns one.")
    stream = StreamPieces(blocks, window, max(ROWS_IN_PIECE, batch_size))
    calls = [()] if executor is None else stream.calls()
    variances, starts, means, n_rows = PieceVariances(), [], [], 0
    with closing(stream(*calls[0])) as pieces:
        _, rows = first = next(pieces)
        features = stream.features(rows)
        looks: Iterable[Look]
        if executor is None:
            looks = (stream.look(features, *piece) for piece in chain([first], pieces))
        else:
            held = [Held(StreamPieces.looks, "a function"), Held(stream, "the source")]
            held.append(Held(features, "scales of columns"))
            looks = chain.from_iterable(in_executor(executor, held, calls))
        for look in looks:
            variances.add(look.features, look.first_row // window)
            starts.append(look.first_row)
            means.append(look.means)
            n_rows += look.n_rows
    variances.leave_out_small()
    table = pd.DataFrame({"icc": variances.icc()}, index=features.labels)
    table["in order"] = variances.effect_in_order(batch_size)
    if isinstance(inner, parquet_source):
        table["row groups at random"] = _effect_at_random(variances, inner, window, batch_size)
    return OrderReport(
        table=table,
        batch_size=batch_size,
        buffer_size=window,
        n_rows=n_rows,
        means=pd.DataFrame(means, index=pd.Index(starts, name="row"), columns=stream.names),
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
        labels, variances = _sampled(files, window)
        effect = _largest(labels, files, variances.effect_in_order(batch_size), batch_size)
        return f"the row groups are in order, {evidence}. In a sample of them, {effect}", 0.0
    n_groups = files.row_groups_in(window)
    if n_groups >= ENOUGH_ROW_GROUPS:
        # Such a batch is a noisy sample, not one of a stretch: its noise averages out over buffers.
        return None, max(LARGE_EFFECT, batch_size / ENOUGH_ROW_GROUPS)
    labels, variances = _sampled(files, window)
    if (_effect_at_random(variances, files, window, batch_size, sure=True) <= LARGE_EFFECT).all():
        return None, LARGE_EFFECT
    effects = _effect_at_random(variances, files, window, batch_size)
    effect = _largest(labels, files, effects, batch_size)
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
    variances: PieceVariances,
    files: parquet_source,
    window: int,
    batch_size: int,
    sure: bool = False,
) -> np.ndarray:
    """Predict design effects with row groups in random order: Xu et al. (2022)."""
    n_groups, in_buffer = files.n_row_groups, files.row_groups_in(window)
    share = (1 - (in_buffer - 1) / max(1, n_groups - 1)) / in_buffer
    return 1 + (batch_size - 1) * variances.icc(sure) * share


def _largest(labels: list[str], files: parquet_source, effects: np.ndarray, batch_size: int) -> str:
    # A column says more to the user than a product.
    columns = effects[: len(files.columns)]
    worst = int((columns if columns.max() > LARGE_EFFECT else effects).argmax())
    if effects[worst] > LARGE_EFFECT:
        return effect_text(labels[worst], effects[worst], batch_size)
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


def _sampled(files: parquet_source, window: int) -> tuple[list[str], PieceVariances]:
    """Look at some row groups in each of a few windows, which are spread evenly over the files."""
    variances, features = PieceVariances(), None
    in_window = window * files.n_row_groups / files.n_rows
    n_looks = int(min(GROUPS_IN_WINDOW, max(1, in_window)))
    last = max(0, files.n_row_groups - max(1, int(in_window)))
    firsts = np.linspace(0, last, WINDOWS * GROUPS_IN_WINDOW // n_looks).astype(int)
    for i, first in enumerate(np.unique(firsts).tolist()):
        for j in range(n_looks):
            group = first + int(j * in_window / n_looks)
            block = files.first_rows(group, min(window, 4 * ROWS_IN_SAMPLE))
            if block is not None:
                rows = matrix_of(block)
                rows = rows[:: -(-len(rows) // ROWS_IN_SAMPLE)]
                features = features or Features(list(files.columns), rows, OUTLIER)
                variances.add(Moments.of(features(rows).T), i)
    assert features is not None
    variances.in_window = max(1.0, in_window)
    return features.labels, variances
