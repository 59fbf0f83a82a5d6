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
"""Order: whether the batches of a stream are random samples of its rows, seen in the batches.

Sources and shuffles know nothing of PyTensor or of models.
"""

import numpy as np

__all__ = ["StreamOrderWarning"]

# A batch is worth less than half of its rows: order moves its mean more than chance does.
LARGE_EFFECT = 2.0
# Probability of a false alarm at each look at each column: some hundred looks in a fit.
FALSE_ALARM = 1e-8
# Rows looked at in a block, which has at least as many, and how many blocks are all looked at.
ROWS_IN_BLOCK = 256
FIRST_BLOCKS = 256
LATER_BLOCKS = 16
# Up to so many columns, their products are followed as well: what columns say of each other can
# drift where no column does.
PAIRED_COLUMNS = 8
# Robust sds beyond which a value counts as an outlier, and no more than one.
OUTLIER = 8.0


class StreamOrderWarning(UserWarning):
    """The batches of a stream follow the order of its rows: the posterior will be wrong."""


class Features:
    """What is compared between blocks of rows: each column, and each product of two of them.

    Columns are centred and scaled by the first rows, and outliers cut off, so that a block with
    one extreme value is no alarm.

    Parameters
    ----------
    labels : sequence of str
        Names of the columns.
    first : array of shape (rows, columns)
        The first rows.
    outlier : float
        Robust standard deviations beyond which a value is cut off.

    Attributes
    ----------
    labels : list of str
        Names of the features, columns first.
    n_columns : int
        Number of columns.
    """

    def __init__(self, labels: list[str], first: np.ndarray, outlier: float = OUTLIER):
        self.n_columns = len(labels)
        self._outlier = outlier
        self._center = np.median(first, axis=0)
        low, high = np.quantile(first, [0.25, 0.75], axis=0)
        scale = (high - low) / 1.35
        scale = np.where(scale > 0, scale, first.std(axis=0))
        self._scale = np.where(scale > 0, scale, 1.0)
        n_paired = self.n_columns if self.n_columns <= PAIRED_COLUMNS else 0
        self._pairs = np.triu_indices(n_paired)
        self.labels = list(labels)
        for i, j in zip(*self._pairs):
            self.labels.append(f"{labels[i]} ** 2" if i == j else f"{labels[i]} * {labels[j]}")

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return an array of shape (rows, features)."""
        z = np.clip((rows - self._center) / self._scale, -self._outlier, self._outlier)
        i, j = self._pairs
        return np.concatenate([z, z[:, i] * z[:, j]], axis=1)


class OrderCheck:
    """Follow the batches of a stream, and find out whether they differ more than chance allows.

    A running analysis of variance with batches as groups gives the intraclass correlation rho of
    each feature, and with it the design effect of a batch of B rows, 1 + (B - 1) rho: how much
    more its mean varies than that of B rows drawn at random [1]_. There is a finding when a
    confidence limit of the design effect is above ``limit``.

    Under a random order the ratio of the variances between and within groups has an expectation
    near 1 for any distribution. Its spread is that of chi-squared over its degrees of freedom, as
    outliers are cut off.

    Parameters
    ----------
    labels : list of str
        Names of the columns.
    batch_size : int
        Rows in a batch.
    limit : float
        Design effect that is tolerated.

    References
    ----------
    .. [1] Kish, L. (1965). Survey Sampling. Wiley, section 5.4.
    """

    def __init__(self, labels: list[str], batch_size: int, limit: float = LARGE_EFFECT):
        self._labels = labels
        self._limit = limit
        # Small batches are joined, as their means say little.
        self._batches_in_block = -(-ROWS_IN_BLOCK // batch_size)
        self.block_rows = batch_size * self._batches_in_block
        self._step = self.block_rows // ROWS_IN_BLOCK
        self._held: list[np.ndarray] = []
        self._features: Features | None = None
        self._n_seen = self._n_blocks = 0

    def add(self, batch: list[np.ndarray]) -> str | None:
        """Take in the next batch, and return what was found, if anything."""
        self._n_seen += 1
        block = (self._n_seen - 1) // self._batches_in_block
        if block >= FIRST_BLOCKS and block % LATER_BLOCKS:
            return None
        # Evenly spaced rows, so that they stand for the whole batch.
        sample = [part[:: self._step].reshape(len(part[:: self._step]), -1) for part in batch]
        self._held.append(np.concatenate(sample, axis=1, dtype=np.float64))
        if len(self._held) < self._batches_in_block:
            return None
        rows = np.concatenate(self._held) if len(self._held) > 1 else self._held[0]
        self._held = []
        self._add_block(rows)
        return self.finding() if self._n_blocks % 8 == 0 else None

    def _add_block(self, rows: np.ndarray) -> None:
        if self._features is None:
            self._features = Features(self._labels, rows)
            n_features = len(self._features.labels)
            self._mean, self._mean2, self._within2 = np.zeros((3, n_features))
        values = self._features(rows)
        mean = values.mean(axis=0)
        self._n_rows = len(rows)
        self._n_blocks += 1
        self._mean += mean
        self._mean2 += mean**2
        self._within2 += np.square(values - mean).sum(axis=0)

    def finding(self) -> str | None:
        """Return what the batches so far show, if anything."""
        if self._features is None or self._n_blocks < 2:
            return None
        k, n = self._n_blocks, self._n_rows
        between = n * np.maximum(self._mean2 - self._mean**2 / k, 0.0) / (k - 1)
        within = self._within2 / (k * (n - 1))
        if (between <= within).all():  # most often, and cheaply
            return None
        from scipy.special import chdtri  # here, as PyMC does not import it

        sure = between * (k - 1) / chdtri(k - 1, FALSE_ALARM)
        columns = np.arange(len(within)) < self._features.n_columns
        found = self._effect(sure, within) > self._limit
        if not found.any():
            return None
        # A column says more to the user than a product.
        found = found & columns if (found & columns).any() else found
        effects = np.where(found, self._effect(between, within), 0)
        worst = int(effects.argmax())
        return effect_text(self._features.labels[worst], effects[worst], self.block_rows)

    def _effect(self, between: np.ndarray, within: np.ndarray) -> np.ndarray:
        """Return the design effect for mean squares between and within blocks."""
        total = between + (self._n_rows - 1) * within
        rho = np.divide(between - within, total, out=np.zeros_like(total), where=total > 1e-12)
        return 1 + (self.block_rows - 1) * rho


def effect_text(label: str, effect: float, n_rows: int) -> str:
    """Say how large a design effect is."""
    return (
        f"the mean of `{label}` over a batch of {n_rows:,} rows varies "
        f"{effect:,.{0 if effect >= 10 else 1}f} times as much as over as many rows drawn at random "
        "(its design effect)"
    )
