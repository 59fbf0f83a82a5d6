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
from fractions import Fraction

import numpy as np
import pytest

from pymc.streams.moments import Moments


def exact(values):
    """Return mean and sum of squares about it, by fractions."""
    values = [Fraction(float(value)) for value in values]
    mean = sum(values) / len(values)
    return float(mean), float(sum((value - mean) ** 2 for value in values))


@pytest.mark.parametrize("n_pieces", [1, 7, 1000])
def test_pieces_merge_to_what_all_rows_come_to(n_pieces):
    rng = np.random.default_rng(1)
    # Where the sum of squares less the square of the sum would have no digit left; in order, so
    # that pieces have means far apart; of very different sizes.
    columns = np.stack(
        [
            1e9 + rng.normal(size=3000),
            np.sort(rng.standard_cauchy(3000)),
            10.0 ** rng.uniform(-150, 150, 3000),
        ]
    )
    total = Moments()
    for piece in np.array_split(columns, n_pieces, axis=1):
        total.add(Moments.of(piece))
    assert total.n_rows == 3000
    for i, values in enumerate(columns):
        mean, squares = exact(values)
        assert total.mean[i] == pytest.approx(mean, rel=3e-16)
        assert total.squares[i] == pytest.approx(squares, rel=2e-14)
