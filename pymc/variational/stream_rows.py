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

"""Whether each row of a batch counts by itself, wherever in the batch it stands.

The likelihood of a batch stands for that of all rows only if it is a sum over rows, each term of
which depends on its row and on parameters. A variable with an entry for each place in the batch,
an autoregression along the batch, an array as long as a batch: each breaks this. So it is tried
out: with its rows in other places of the buffer, each must have the log-density that it had.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytensor

from pytensor.compile.mode import get_mode
from pytensor.graph.basic import Variable
from pytensor.graph.traversal import ancestors
from pytensor.tensor import as_tensor
from pytensor.tensor.basic import Nonzero

from pymc.variational.stream_refusals import buffers_behind, streams_behind
from pymc.variational.streaming import StreamingDataset

ONE_SOURCE = (
    "Stream all that a likelihood needs from one source: columns of one table, or blocks that "
    "are tuples of arrays."
)


def check_rows(model: Any, streams: dict[Variable, StreamingDataset]) -> None:
    """Refuse observed variables whose log-density is no sum over the rows of a batch.

    Parameters
    ----------
    model : Model
        The model.
    streams : dict
        Its observed variables that use a stream, with the stream.

    Raises
    ------
    ValueError
        If an observed variable leaves out rows, has no log-density for each row, or has one that
        depends on other rows or on the row's place in the batch.
    """
    for rv, stream in streams.items():
        for variable in ancestors([model.rvs_to_values[rv]]):
            node = variable.owner
            if node and isinstance(node.op, Nonzero) and streams_behind(ancestors(node.inputs)):
                raise ValueError(_some_rows(rv.name, stream))
    trial = _Trial(model, streams)
    for i, (rv, stream) in enumerate(streams.items()):
        n_rows = stream.batch_size
        logp, value = trial.log_density(i)
        if not any(True for _ in _by_row(value, n_rows)):
            raise ValueError(_some_rows(rv.name, stream))
        if not any(True for _ in _by_row(logp, n_rows)):
            raise ValueError(
                f"observed variable `{rv.name}`: its log-density is one number, or has shape "
                f"{logp.shape}, where a batch of stream {stream.name!r} has {n_rows} rows. A "
                "likelihood along the batch (AR, GaussianRandomWalk, MvNormal or a GP over its "
                "rows) does not add up to that of all rows. Give each row a log-density of its "
                "own, given the parameters (a row may be a vector: blocks of shape (rows, k)); or "
                "fit a subset of rows in memory."
            )
        if trial.is_by_row(i, uneven=trial.free):
            continue
        for free in trial.free if trial.is_by_row(i, uneven=[]) else []:
            if not trial.is_by_row(i, uneven=[free]):
                raise ValueError(
                    f"free variable `{model.values_to_rvs[free].name}` has an entry for each place "
                    f"in a batch of stream {stream.name!r} (observed variable `{rv.name}`): each "
                    "step it would meet other rows. Integrate it out (StudentT, NegativeBinomial, "
                    "BetaBinomial are such marginals), or give it an entry for each group of rows, "
                    "looked up by a column: effect[group]."
                )
        raise ValueError(
            f"observed variable `{rv.name}`: the log-density of a row of stream {stream.name!r} "
            "depends on its place in the batch, or on the rows beside it. An array (or variable) "
            f"of {n_rows} entries, as many as a batch has, stays the same while the rows change; "
            "and what runs along a batch (a lag, a mean) is not what it is in all rows. "
            + ONE_SOURCE
        )


class _Trial:
    """Log-densities of observed variables near the initial point, with rows in other places."""

    def __init__(self, model: Any, streams: dict[Variable, StreamingDataset]):
        rng = np.random.default_rng(0)
        self.point = model.initial_point(0)
        self.values = model.value_vars
        self.free = [v for v in self.values if v.dtype.startswith("float") and v.type.ndim]
        self.noise = {v: rng.uniform(-0.1, 0.1, np.shape(self.point[v.name])) for v in self.values}
        self.streams = list(streams.values())
        self.picks = {s: rng.integers(s.batch_size, size=s.batch_size) for s in self.streams}
        logps = [
            as_tensor(logp, allow_xtensor_conversion=True)
            for logp in model.logp(vars=list(streams), sum=False)
        ]
        values = [model.rvs_to_values[rv] for rv in streams]
        buffers = buffers_behind([*logps, *values])
        inputs = [buffer.type() for buffer in buffers]
        self.rows = [buffer.get_value() for buffer in buffers]
        self.moved = [rows[self.picks[b.tag.stream]] for rows, b in zip(self.rows, buffers)]
        self.function = pytensor.function(
            [*self.values, *inputs],
            [*logps, *values],
            givens=list(zip(buffers, inputs)),
            # Quick to compile, and free of checks that a trial value might fail.
            mode=get_mode("FAST_COMPILE").including("local_remove_check_parameter"),
            on_unused_input="ignore",
        )

    def _evaluate(self, uneven: list[Variable], rows: list[np.ndarray]) -> list[np.ndarray]:
        """Evaluate where only the ``uneven`` variables have entries that differ at random."""
        point = []
        for value in self.values:
            start, noise = self.point[value.name], self.noise[value]
            if value.dtype.startswith("float") and noise.size:
                start = start + (noise if value in uneven else noise.flat[0])
            point.append(np.asarray(start, dtype=value.dtype))
        return self.function(*point, *rows)

    def log_density(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the log-density of the ``i``-th observed variable, and its value."""
        outputs = self._evaluate([], self.rows)
        return outputs[i], outputs[i + len(self.streams)]

    def is_by_row(self, i: int, uneven: list[Variable]) -> bool:
        """Tell whether the ``i``-th log-density of each row goes with the row."""
        stream = self.streams[i]
        start = self._evaluate(uneven, self.rows)[i]
        moved = self._evaluate(uneven, self.moved)[i]
        rtol = 1e-6 if start.dtype == np.float64 else 1e-3
        atol = rtol * np.mean(np.abs(start), where=np.isfinite(start)) if start.size else 0
        return moved.shape == start.shape and any(
            np.allclose(was[self.picks[stream]], now, rtol, atol, equal_nan=True)
            for was, now in zip(
                _by_row(start, stream.batch_size), _by_row(moved, stream.batch_size)
            )
        )


def _by_row(values: np.ndarray, n_rows: int) -> Iterator[np.ndarray]:
    """Give each way to see ``values`` as ``n_rows`` rows: along an axis, or of what was raveled."""
    for axis in range(np.ndim(values)):
        if values.shape[axis] == n_rows:
            yield np.moveaxis(values, axis, 0)
    if np.size(values) and np.size(values) % n_rows == 0:
        yield np.reshape(values, (n_rows, -1))
        yield np.reshape(values, (-1, n_rows)).T


def _some_rows(name: str, stream: StreamingDataset) -> str:
    return (
        f"observed variable `{name}` does not observe each of the {stream.batch_size} rows of a "
        f"batch of stream {stream.name!r}: total_size would scale the rows that it picks as if "
        "they were all, and the posterior would be too narrow. Observe all rows, and let those to "
        "leave out count nothing: pm.CustomDist(..., logp=lambda value, *params, keep: "
        "pt.where(keep, pm.logp(Dist.dist(*params), value), 0.0)); or stream only the rows to "
        "keep, and pass their number as total_size."
    )
