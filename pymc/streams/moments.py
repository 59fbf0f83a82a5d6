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
"""Means and variances of columns, which merge over pieces of rows."""

import copy

import numpy as np

from pymc.streams.passes import CompensatedSum


class Moments:
    """Number of rows, and mean and sum of squares about it of each column.

    Those of pieces merge without cancellation [1]_. The mean is a compensated sum of steps, so that
    of columns far from zero no digit of their deviations is lost.

    Attributes
    ----------
    n_rows : int
        Rows so far.
    mean, squares : ndarray of shape (columns,)
        Mean, and sum of squares about it.

    References
    ----------
    .. [1] Chan, T. F., Golub, G. H., and LeVeque, R. J. (1983). Algorithms for computing the sample
       variance. The American Statistician, 37, 242-247.
    """

    def __init__(self) -> None:
        self.n_rows = 0
        self._mean, self._squares = CompensatedSum(), CompensatedSum()

    @classmethod
    def of(cls, columns: np.ndarray) -> "Moments":
        """Return those of a piece, an array of shape (columns, rows)."""
        moments = cls()
        moments.n_rows = columns.shape[1]
        with np.errstate(invalid="ignore", over="ignore"):
            mean = columns.mean(axis=1)
            deviations = columns - mean[:, None]
            rounded = deviations.mean(axis=1)
            squares = np.square(deviations, out=deviations).sum(axis=1)
            moments._mean.add(mean)
            moments._mean.add(rounded)
            moments._squares.add(squares - moments.n_rows * rounded**2)
        return moments

    def add(self, other: "Moments") -> None:
        """Take in those of other rows."""
        if self.n_rows == 0:
            self.__dict__.update(copy.deepcopy(other.__dict__))
            return
        n_rows = self.n_rows + other.n_rows
        with np.errstate(invalid="ignore", over="ignore"):
            step = other._mean.minus(self._mean)
            self._mean.add(step * (other.n_rows / n_rows))
            self._squares.add(other.squares)
            self._squares.add(np.square(step) * (self.n_rows * other.n_rows / n_rows))
        self.n_rows = n_rows

    @property
    def mean(self) -> np.ndarray:
        return self._mean.value

    @property
    def squares(self) -> np.ndarray:
        return self._squares.value
