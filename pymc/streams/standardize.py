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
"""Scales: columns of a source with mean 0 and sd 1, and coefficients back in the columns' units."""

import copy

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pymc.streams.blocks import Block, Blocks
from pymc.streams.encoding import Encoding
from pymc.streams.shuffle.buffer import shuffle_buffer
from pymc.streams.summary import ColumnSummary, column_summary

__all__ = ["standardize", "unstandardize"]

Scales = dict[str, tuple[float, float]]


class standardize:
    """Stream a source with some of its columns centred and scaled: (x - mean) / sd.

    A model of such columns is one whose optimizers and samplers have an easier time: coefficients
    are of one size, and hardly correlated with the intercept. :func:`unstandardize` takes them back
    to the columns' own units.

    Where a model takes other rows (:func:`log_predictive`, :func:`predict`,
    :func:`model_of_rows`), its own scales are applied to them: pass them as they are. Rows that
    are standardised by other scales are refused.

    Parameters
    ----------
    source : object
        Any source of named columns that :class:`StreamingDataset` takes.
    columns : sequence of str
        The columns to standardise: the predictors. Outcomes, counts and indices are of no use
        on another scale, so that none is standardised without its name.
    summary : ColumnSummary, optional
        What the scales are taken from: :func:`column_summary` of these rows, or of those that a
        model is fitted to. Default: that of the source, in a pass.

    Attributes
    ----------
    source : object
        The source that is standardised.
    scales : dict of str to tuple of float
        Mean and sd of each column that is standardised. They are part of what a checkpoint knows
        of a source: a fit does not go on with others.
    n_rows : int or None
        Rows in an epoch, where the source tells.
    columns : tuple of str
        Names of all columns, in the source's order.
    categories, units : dict
        Those of the source. A standardised column of times has the unit of its mean and sd.

    Raises
    ------
    TypeError
        If the columns have no names, or one is of codes.
    ValueError
        If there is no such column, if it is constant, or if the source is standardised already.

    Examples
    --------
    >>> import numpy as np
    >>> from pymc.variational.streaming import standardize
    >>> rows = {"x": np.array([10.0, 20.0, 30.0]), "y": np.array([1, 0, 1])}
    >>> source = standardize(rows, ["x"])
    >>> source.scales
    {'x': (20.0, 10.0)}
    >>> [block["x"].tolist() for block in source]
    [[-1.0, 0.0, 1.0]]
    """

    def __init__(self, source: Any, columns: Sequence[str], summary: ColumnSummary | None = None):
        if isinstance(columns, str):
            raise TypeError(f"columns must be a sequence of names, e.g. [{columns!r}].")
        if scales_of(source):
            raise ValueError(
                f"the source is standardised already, by its columns {list(scales_of(source))}: "
                "name all columns in one call."
            )
        self._blocks = Blocks(source)
        self.source = self._blocks.source
        self.n_rows = self._blocks.n_rows
        self.columns = self._blocks.columns or tuple(scaled(self._blocks.first(), {}))
        unknown = [name for name in columns if name not in self.columns]
        if unknown:
            raise ValueError(f"no column(s) {unknown}: the source has {list(self.columns)}.")
        coded = [name for name in columns if name in self.categories]
        if coded:
            raise TypeError(
                f"column(s) {coded} hold codes of categories, which have no scale. Leave them out: "
                "their levels are entries of a parameter, effect[ds[name]]."
            )
        if summary is None:
            summary = column_summary(self.source)
        self.scales = _scales(summary, columns)
        self._next_epoch = 0

    def __iter__(self) -> Iterator[Block]:
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.read(epoch)

    def read(self, epoch: int, start: int = 0) -> Iterator[Block]:
        """Open an epoch, at row ``start`` where the source is seekable."""
        return map(self._scaled, self._blocks.epoch(epoch, start))

    def unshuffled(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Give one epoch from row ``start`` on, in the order of the source, past any shuffle."""
        return map(self._scaled, self._blocks.unshuffled(start, stop))

    @property
    def seekable(self) -> bool:
        """Whether an epoch can be opened at any row: as the source's can."""
        return self._blocks.seekable

    @property
    def in_random_order(self) -> bool:
        """Whether rows come in random order: as the source's do."""
        return self._blocks.in_random_order

    @property
    def gives_checked_blocks(self) -> bool:
        """Whether the values of its blocks were checked before."""
        return self._blocks.checked

    @property
    def encoding(self) -> Encoding | None:
        """How columns of the source became numbers, which were then standardised."""
        return self._blocks.encoding

    @property
    def categories(self) -> dict[str, np.ndarray]:
        """The categories of each column of codes."""
        return self._blocks.categories

    @property
    def units(self) -> dict[str, str]:
        """The unit of each column of times: of its mean and sd, where it is standardised."""
        return self._blocks.units

    @property
    def stream_identity(self) -> dict[str, Any]:
        """What tells a stream of this source from another one, as plain values."""
        scales = {name: list(scale) for name, scale in self.scales.items()}
        return {"scales": scales, "source": self._blocks.identity}

    def with_seeds_of(self, identity: dict[str, Any]) -> "standardize":
        """Return the same source, with the seeds of an identity where none was given."""
        other = copy.copy(self)
        other._blocks = self._blocks.with_seeds_of(identity["source"])
        return other

    def _scaled(self, block: Block) -> Block:
        if isinstance(block, np.ndarray):
            block = dict(zip(self.columns, block.T))
        return scaled(block, self.scales)


def unstandardize(
    posterior: Any, scales: Mapping[str, tuple[float, float]], *, slopes: str, intercept: str
) -> Any:
    r"""Take the coefficients of a linear predictor back to the units of the raw columns.

    .. math:: \alpha + \sum_j \beta_j (x_j - m_j) / s_j
        = \Big(\alpha - \sum_j \beta_j m_j / s_j\Big) + \sum_j (\beta_j / s_j) x_j,

    draw by draw, which is exact. Priors stay those of the coefficients that were fitted.

    Parameters
    ----------
    posterior : Dataset or DataTree
        Draws: what ``approx.sample()`` or ``pm.sample`` returned, or its ``posterior``.
    scales : mapping of str to tuple of float
        Mean and sd of each standardised column: ``source.scales``.
    slopes : str
        The variable of the coefficients. One of its dims has the columns' names as coordinates;
        other dims (groups, say) are kept. Columns without a scale keep their coefficients.
    intercept : str
        The variable of the intercept. Call the function again for further slopes beside it.

    Returns
    -------
    Dataset
        The posterior, with slopes and intercept of the raw columns.

    Raises
    ------
    KeyError
        If there is no such variable.
    ValueError
        If no dim of the slopes has the standardised columns as coordinates.

    Examples
    --------
    >>> import xarray as xr
    >>> from pymc.variational.streaming import unstandardize
    >>> posterior = xr.Dataset(
    ...     {
    ...         "alpha": (("chain", "draw"), [[1.0]]),
    ...         "beta": (("chain", "draw", "column"), [[[6.0]]]),
    ...     },
    ...     coords={"column": ["x"]},
    ... )
    >>> raw = unstandardize(posterior, {"x": (20.0, 2.0)}, slopes="beta", intercept="alpha")
    >>> raw["beta"].item(), raw["alpha"].item()
    (3.0, -59.0)
    """
    from xarray import DataArray

    if hasattr(posterior, "posterior"):
        posterior = posterior["posterior"].to_dataset()
    for name in (slopes, intercept):
        if name not in posterior:
            raise KeyError(f"the posterior has no variable {name!r}: {list(posterior.data_vars)}.")
    beta = posterior[slopes]
    dims = [d for d in beta.dims if d in beta.coords and set(beta[d].values.tolist()) & set(scales)]
    if len(dims) != 1:
        raise ValueError(
            f"`{slopes}` has the dims {list(beta.dims)}, and one of them should have the columns as "
            f'coordinates: pm.Model(coords={{"column": {list(scales)}}}) and dims="column".'
        )
    [dim] = dims
    names = beta[dim].values.tolist()
    mean, sd = (
        DataArray(list(values), coords={dim: names}, dims=dim)
        for values in zip(*(scales.get(name, (0.0, 1.0)) for name in names))
    )
    raw = {slopes: beta / sd, intercept: posterior[intercept] - (beta * mean / sd).sum(dim)}
    return posterior.assign({name: v.transpose("chain", "draw", ...) for name, v in raw.items()})


def scales_of(source: Any) -> Scales:
    """Return the scales of what a source reads from, in the end; empty if there are none."""
    while isinstance(source, shuffle_buffer):
        source = source.source
    return source.scales if isinstance(source, standardize) else {}


def scaled(block: Block, scales: Scales) -> dict[str, np.ndarray]:
    """Standardise those columns of a block that it has."""
    if not isinstance(block, dict):
        raise TypeError(
            "standardised columns are found by name, and a block's have none. Give rows as a table: "
            "pandas.DataFrame(array, columns=[...]), say."
        )

    def of(name: str, values: np.ndarray) -> np.ndarray:
        if values.dtype.kind not in "biuf":
            raise TypeError(
                f"column {name!r}: not numeric ({values.dtype}), so that it has no scale."
            )
        mean, sd = scales[name]
        return (values.astype(np.float64) - mean) / sd

    return {name: of(name, v) if name in scales else v for name, v in block.items()}


def _scales(summary: ColumnSummary, columns: Sequence[str]) -> Scales:
    missing = [name for name in columns if name not in summary.table.index]
    if missing:
        raise ValueError(f"the summary has no column(s) {missing} of numbers.")
    of = summary.table.loc[list(columns)]
    constant = of.index[of["min"] == of["max"]]
    if len(constant):
        raise ValueError(
            f"column(s) {list(constant)} are constant, {of['min'][constant[0]]:g}: there is nothing "
            "to scale by, and the intercept has their effect. Leave them out."
        )
    unfit = of.index[~(np.isfinite(of["sd"]) & (of["sd"] > 0))]
    if len(unfit):
        raise ValueError(
            f"column(s) {list(unfit)} have no sd that a float holds: the values of the first are from "
            f"{of['min'][unfit[0]]:g} to {of['max'][unfit[0]]:g}. Is one a code for missing values? "
            "Drop these rows, or give the column in another unit."
        )
    return {name: (float(of["mean"][name]), float(of["sd"][name])) for name in columns}
