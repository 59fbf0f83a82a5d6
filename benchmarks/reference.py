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
"""The exact posterior of the order book, and how far a fit is from it.

In NumPy, over all rows, and apart from the product: it must not share its mistakes.
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

COLUMNS = ["mid", "spread", "imbalance", "up"]
MEANS_WITHIN = 0.1  # posterior sds
SDS_WITHIN = 0.1  # of the reference


def newton(table: Path) -> tuple[np.ndarray, np.ndarray]:
    """Find the maximum of the posterior density by Newton's method, and the precision there."""
    b = np.zeros(4)
    for _ in range(20):
        gradient, precision = -b / 9, np.eye(4) / 9
        for file in sorted(table.glob("*.parquet")):
            with pq.ParquetFile(file) as groups:
                for rows in groups.iter_batches(500_000, columns=COLUMNS):
                    x = np.column_stack([np.ones(len(rows)), *(rows[name] for name in COLUMNS[:3])])
                    p = 1 / (1 + np.exp(-x @ b))
                    gradient += x.T @ (np.asarray(rows["up"]) - p)
                    precision += (x.T * (p * (1 - p))) @ x
        step = np.linalg.solve(precision, gradient)
        b += step
        if np.abs(step).max() < 1e-7:
            return b, precision
    raise RuntimeError("no convergence of the maximum of the posterior")


def distance(mean, sd, goal: dict) -> tuple[float, float | None, float | None]:
    """Compare a fit with the reference.

    Parameters
    ----------
    mean, sd : array_like of shape (4,)
        Of the fit; the sds are None of a method that has none.
    goal : dict
        The reference: ``"mean"``; ``"posterior_sd"``, the unit of the means' error; and ``"sd"``,
        the sds that the method should reach.

    Returns
    -------
    tuple
        The largest error of a mean, and the lowest and highest ratio of an sd.
    """
    error = np.abs(np.subtract(mean, goal["mean"])) / goal["posterior_sd"]
    if sd is None:
        return float(error.max()), None, None
    ratio = np.divide(sd, goal["sd"])
    return float(error.max()), float(ratio.min()), float(ratio.max())


def is_accurate(mean, sd, goal: dict) -> bool:
    """Whether all means and sds are within the bounds: see :func:`distance`."""
    error, low, high = distance(mean, sd, goal)
    if not error <= MEANS_WITHIN:
        return False
    return low is None or (low >= 1 - SDS_WITHIN and high <= 1 + SDS_WITHIN)
