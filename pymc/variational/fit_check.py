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

"""Has the fit of a model with streams converged? A check at its end, of batches that it has used."""

import warnings

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.traversal import ancestors

from pymc.variational.all_rows import AllRows, Batch, KeptRows, StreamRows
from pymc.variational.interrupts import interruptible
from pymc.variational.stream_refusals import streams_behind
from pymc.variational.streaming import StreamingDataset

if TYPE_CHECKING:
    from pymc.variational.full_data_logp import FullDataLogp

# Rows and bytes of the batches that are kept, and the parts whose differences are their noise.
MAX_ROWS, MAX_BYTES, MIN_BATCHES, N_PARTS = 100_000, 2**25, 4, 16
# At how many steps the means are kept, and the share of the steps that are the last ones.
N_MEANS, LAST = 1000, 0.1
# Shorter fits are trials; more parameters make a Hessian of the kept rows slow.
MIN_STEPS, MAX_PARAMETERS = 100, 500
# What is off, and how often noise alone may say so.
SD_FACTOR, MEAN_SDS, FALSE_ALARMS = 1.5, 0.5, 0.001
N_DRAWS = 10
WAYS_OUT = (
    'Start at the mode with a rate that falls to zero (init="mode"), take more steps, or use '
    'method="laplace". fit_report(approx) says how far off each parameter is.'
)


class FitConvergenceWarning(UserWarning):
    """What ``pm.fit`` returns is not yet what its method converges to, on the data of its streams.

    It is given at the end of an ``advi`` or ``fullrank_advi`` fit of at least 100 steps on a model
    with streams, from what was kept of these steps: batches of about 100,000 rows, scaled to all
    rows, and the means on the way. No row is read again.

    - Standard deviations: 1.5 times more or less than those of a mean-field approximation, or of a
      full-rank one, at its optimum.
    - Means: half a posterior standard deviation or more from where they should be, as far as the
      rows tell; moving by as much in the last steps; or away from the start by as much after fewer
      rows than half a standard deviation needs, which is four epochs.
    - The log-density is no peak at the means.

    It is also given after a part of an epoch whose order is not known to be random.

    Models with more than 500 parameters, with a ``Potential`` on a stream or a source that can be
    read only once are not checked. A check takes some seconds, most of it for compilation.

    Examples
    --------
    >>> import warnings
    >>> import numpy as np
    >>> import pymc as pm
    >>> from pymc.variational.streaming import FitConvergenceWarning, StreamingDataset
    >>> ds = StreamingDataset(np.random.default_rng(1).normal(7, 1, 10_000), batch_size=100)
    >>> with pm.Model():
    ...     mu = pm.Normal("mu", 0, 10)
    ...     y = pm.Normal("y", mu, 1, observed=ds.as_tensor(), total_size=ds.total_size)
    ...     with warnings.catch_warnings(record=True) as caught:
    ...         warnings.simplefilter("always")
    ...         approx = pm.fit(200, obj_optimizer=pm.adagrad(), progressbar=False)
    >>> any(warning.category is FitConvergenceWarning for warning in caught)
    True
    """


class FitWatch:
    """What is kept of the steps of a fit, and the check of the fit at their end.

    Parameters
    ----------
    group : Group
        The group of the approximation.
    streams : list of StreamingDataset
        The streams that the steps read.
    """

    def __init__(self, group: Any, streams: list[StreamingDataset]):
        self._group, self._streams = group, streams
        # Of each stream a batch, at some steps.
        self._batches: list[list[Batch]] = []
        self._means: list[np.ndarray] = []
        self._means_at: list[int] = []
        self._n_steps = 0

    @classmethod
    def of(cls, approx: Any, streams: list[StreamingDataset]) -> "FitWatch | None":
        """Watch a fit, if it is one that can be checked."""
        group, *others = approx.groups
        if (
            not streams
            or others
            or group.short_name not in ("mean_field", "full_rank")
            or not isinstance(group.params_dict["mu"], SharedVariable)
            or group.ddim > MAX_PARAMETERS
            or streams_behind(ancestors(approx.model.potentials))
            or any(stream._reader.batches.blocks.one_shot for stream in streams)
        ):
            return None
        return cls(group, streams)

    def before_step(self, step: int, n_steps: int) -> None:
        """Keep what step ``step`` (from 0) of ``n_steps`` begins with, if it is one of those."""
        if step == 0:
            self._plan(n_steps)
        if step % self._mean_every == 0:
            self._means.append(np.array(self._group.params_dict["mu"].get_value()))
            self._means_at.append(step)
        if step % self._batch_every == 0 and len(self._batches) < self._n_batches:
            # Copies: batches are cut from larger arrays.
            self._batches.append(
                [
                    [np.asarray(buffer.get_value(borrow=True)).copy("K") for buffer in s._buffers]
                    for s in self._streams
                ]
            )
            if len(self._batches) == 1:
                self._begins = [_rows_before(s) - s.batch_size for s in self._streams]
            self._ends = [_rows_before(s) for s in self._streams]
        self._n_steps = step + 1

    def _plan(self, n_steps: int) -> None:
        """Choose the steps whose batches are kept: spread evenly, or the first epoch if that is few."""
        size = max(stream.batch_size for stream in self._streams)
        n_bytes = sum(stream.batch_size * stream._row_bytes for stream in self._streams)
        n = max(MIN_BATCHES, min(MAX_ROWS // size, MAX_BYTES // n_bytes))
        epoch = max(_n_rows_of(s) / s.batch_size for s in self._streams)
        self._n_batches = int(min(n, max(epoch, 1)))
        self._batch_every = 1 if epoch <= n else max(1, n_steps // n)
        self._mean_every = max(1, n_steps // N_MEANS)

    def check(self) -> None:
        """Say what is wrong with the fit, if anything is.

        Warns
        -----
        FitConvergenceWarning
            If the fit has not converged.
        UserWarning
            If that could not be told, and why.
        """
        if self._n_steps < MIN_STEPS or len(self._batches) < 2:
            return
        try:
            with interruptible():
                found = self._findings()
        except Exception as error:  # a fit of hours must not be lost to a check of it
            warnings.warn(
                f"whether the fit has converged was not checked: {type(error).__name__}: {error}",
                stacklevel=2,
            )
            return
        if found:
            warnings.warn(
                f"the fit has not converged after {self._n_steps:,} steps: {'; '.join(found)}. "
                f"{WAYS_OUT}",
                FitConvergenceWarning,
                stacklevel=2,
            )

    def _findings(self) -> list[str]:
        parts = self._parts()
        q, sds = self._vector(parts[0], self._means_now()), self._sds(parts[0])
        here = self._judge(parts, [q], sds)
        names = parts[0].names
        found = self._unsettled(parts[0], q, here.scale, names)
        if here.any_off:
            # ADVI is at its optimum where these hold on average over the approximation, which is
            # not the same where the posterior is skewed.
            there = self._judge(parts, self._draws(parts[0], q), sds)
            found = _say_off(here, there, sds, names) + found
        return found

    def _parts(self) -> list["FullDataLogp"]:
        """Return the log-density of all rows as each part of the kept ones estimates it."""
        from pymc.variational.full_data_logp import FullDataLogp

        # Python's functions: compiled ones take longer to compile than all these rows to add up.
        full = FullDataLogp(
            self._group.model,
            n_threads=1,
            progressbar=False,
            compile_kwargs={"mode": "FAST_COMPILE"},
        )
        n_parts = min(N_PARTS, len(self._batches))

        def kept(part: int, number: int, rows: AllRows) -> AllRows:
            if not isinstance(rows, StreamRows):  # data in memory beside the stream
                return rows
            stream = rows._stream
            place = self._streams.index(stream)
            batches = [some[place] for some in self._batches[part::n_parts]]
            return KeptRows(stream, batches, _n_rows_of(stream))

        return [full._over(partial(kept, part)) for part in range(n_parts)]

    def _judge(
        self, parts: list["FullDataLogp"], points: list[np.ndarray], sds: np.ndarray
    ) -> "_Verdict":
        """Compare the fit with the kept rows, by gradients and curvature averaged over points."""
        values = [[part.d2logp(q)[1:] for q in points] for part in parts]
        gradients = np.array([np.mean([g for g, _ in of_part], axis=0) for of_part in values])
        precisions = -np.array([np.mean([h for _, h in of_part], axis=0) for of_part in values])
        if not (np.isfinite(gradients).all() and np.isfinite(precisions).all()):
            raise FloatingPointError("the gradient or the Hessian of kept rows is not finite.")
        from scipy.stats import t  # here, as importing it takes long

        n_parts = len(parts)
        sizes = np.array([len(self._batches[i::n_parts]) for i in range(n_parts)])
        shares = sizes / sizes.sum()
        gradient, precision = (np.tensordot(shares, v, 1) for v in (gradients, precisions))
        log_ratio, step, scale = self._compare(gradient, precision, sds)
        # The noise of the kept rows: the estimates without each part in turn.
        without = [
            self._compare(
                (gradient - share * gradients[i]) / (1 - share),
                (precision - share * precisions[i]) / (1 - share),
                sds,
            )
            for i, share in enumerate(shares)
        ]
        lowest = np.linalg.eigh(precision)[1][:, 0]
        curvatures = precisions @ lowest @ lowest
        curvature = shares @ curvatures
        margin = np.sqrt(self._share_unseen() * (n_parts - 1) / n_parts) * t.isf(
            FALSE_ALARMS / 2 / len(sds), n_parts - 1
        )

        def noise(estimates: np.ndarray) -> np.ndarray:
            return margin * np.sqrt(np.sum((estimates - estimates.mean(axis=0)) ** 2, axis=0))

        ratio_noise = noise(np.array([ratio for ratio, _, _ in without]))
        step_noise = noise(np.array([step for _, step, _ in without]))
        peak_noise = noise((curvature - shares * curvatures) / (1 - shares))
        no_peak = curvature < -peak_noise
        return _Verdict(
            ratio=np.exp(log_ratio),
            sd_off=np.abs(log_ratio) > np.log(SD_FACTOR) + ratio_noise,
            step=step,
            mean_off=np.abs(step) > MEAN_SDS + step_noise,
            flattest=int(np.argmax(np.abs(lowest))) if no_peak else None,
            scale=scale,
        )

    def _compare(
        self, gradient: np.ndarray, precision: np.ndarray, sds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return log ratios of sds to those at the optimum, the Newton step and posterior sds."""
        covariance = np.linalg.pinv(precision, hermitian=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            own = posterior = np.sqrt(np.diag(covariance))
            if self._group.short_name == "mean_field":
                own = 1 / np.sqrt(np.diag(precision))
            # Not a number where there is no peak: nothing is then said of it.
            return np.log(sds / own), covariance @ gradient / posterior, posterior

    def _share_unseen(self) -> float:
        """Return the share of the rows that the kept ones leave out: it is what noise there is."""
        unseen = 0.0
        for i, stream in enumerate(self._streams):
            n_rows = _n_rows_of(stream)
            first, last = self._begins[i] // n_rows, (self._ends[i] - 1) // n_rows
            if first != last:  # of different epochs: some rows may have come twice
                return 1.0
            unseen = max(unseen, 1 - len(self._batches) * stream.batch_size / n_rows)
        return unseen

    def _unsettled(
        self, full: "FullDataLogp", q: np.ndarray, scale: np.ndarray, names: list[str]
    ) -> list[str]:
        """Say whether the means move in the last steps, or have moved with too few rows."""
        way = np.array([self._vector(full, mean) for mean in self._means]) / scale
        last = way[np.array(self._means_at) >= (1 - LAST) * self._n_steps]
        moves = np.linalg.norm(np.nan_to_num(np.diff(last, axis=0)), axis=1)
        # With a rate that falls they move less and less.
        fall = min(1.0, moves[-len(moves) // 5 :].mean() / max(moves.mean(), 1e-300))
        wander = fall * last.std(axis=0)
        if (worst := _worst(wander, wander > MEAN_SDS)) is not None:
            return [
                f"the mean of `{names[worst]}` still moves, by {wander[worst]:.2g} posterior sds "
                f"(root mean square) in the last steps"
            ]
        moved = np.abs(q / scale - way[0])
        epochs = max(s.rows_streamed / _n_rows_of(s) for s in self._streams)
        if (worst := _worst(moved, moved > MEAN_SDS)) is not None and epochs < MEAN_SDS**-2:
            return [
                f"the mean of `{names[worst]}` has moved by {moved[worst]:.2g} posterior sds, and "
                f"{epochs:.2g} epochs do not tell it closer than {epochs**-0.5:.2g}"
            ]
        return []

    def _means_now(self) -> np.ndarray:
        return np.array(self._group.params_dict["mu"].get_value())

    def _vector(self, full: "FullDataLogp", values: np.ndarray) -> np.ndarray:
        """Return values in the order of the group in that of the parameter vector."""
        order = self._group.ordering.values()
        return full.ravel({name: values[place].reshape(shape) for name, place, shape, _ in order})

    def _sds(self, full: "FullDataLogp") -> np.ndarray:
        return self._vector(full, self._group.std.eval())

    def _draws(self, full: "FullDataLogp", q: np.ndarray) -> list[np.ndarray]:
        """Draw from the approximation, in pairs on both sides of the means."""
        root = np.linalg.cholesky(self._group.cov.eval())
        noise = np.random.default_rng(0).normal(size=(N_DRAWS // 2, len(q)))
        away = [self._vector(full, root @ z) for z in noise]
        return [q + sign * u for u in away for sign in (1, -1)]


class _Verdict(NamedTuple):
    """What kept rows say of a fit; of each parameter in the order of the parameter vector.

    Attributes
    ----------
    ratio : ndarray
        Its sd, in those that the method converges to.
    step : ndarray
        How far the peak is from its mean, in posterior sds.
    sd_off, mean_off : ndarray of bool
        Whether that is too much, noise apart.
    flattest : int or None
        The parameter along which the log-density is no peak.
    scale : ndarray
        Posterior sds.
    """

    ratio: np.ndarray
    sd_off: np.ndarray
    step: np.ndarray
    mean_off: np.ndarray
    flattest: int | None
    scale: np.ndarray

    @property
    def any_off(self) -> bool:
        return self.flattest is not None or bool(np.any(self.sd_off | self.mean_off))


def _say_off(here: _Verdict, there: _Verdict, sds: np.ndarray, names: list[str]) -> list[str]:
    """Say what is off at the means and over the approximation alike."""
    found = []
    sd_off, mean_off = here.sd_off & there.sd_off, here.mean_off & there.mean_off
    if (worst := _worst(np.abs(np.log(there.ratio)), sd_off)) is not None:
        ratio = there.ratio[worst]
        found.append(
            f"the sd of `{names[worst]}` is {sds[worst]:.3g}, {ratio:.2g} times what it converges "
            f"to ({sd_off.sum()} of {len(names)} are off by more than {SD_FACTOR} times)"
        )
    if (worst := _worst(np.abs(there.step), mean_off)) is not None:
        found.append(
            f"the mean of `{names[worst]}` is {abs(there.step[worst]):.2g} posterior sds from where "
            "it should be"
        )
    if here.flattest is not None and there.flattest is not None:
        found.append(
            f"the log-density is no peak at the means, but grows away from them along "
            f"`{names[here.flattest]}`"
        )
    return found


def _worst(sizes: np.ndarray, which: np.ndarray) -> int | None:
    """Return the largest of those that are meant, if any."""
    return int(np.argmax(np.where(which, sizes, -np.inf))) if np.any(which) else None


def _rows_before(stream: StreamingDataset) -> float:
    """Return how many rows come before the position of a stream, those of past epochs included."""
    return stream.epoch * _n_rows_of(stream) + stream.row


def _n_rows_of(stream: StreamingDataset) -> float:
    """Return N: a fit has it from the stream, or from ``total_size``."""
    return stream._assumed_n_rows or np.inf
