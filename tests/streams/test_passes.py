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
import math
import threading

from fractions import Fraction

import numpy as np
import pytest

from pymc.streams.passes import AHEAD, CompensatedSum, in_threads


def total_of(terms):
    total = CompensatedSum()
    for term in terms:
        total.add(term)
    return total.value


def test_a_sum_over_a_billion_rows_is_exact_to_the_last_digits():
    """As of pieces of 131,072 rows, with log-densities near -0.7."""
    terms = np.random.default_rng(1).normal(-9e4, 300, size=10**9 // 131_072)
    assert total_of(terms) == pytest.approx(math.fsum(terms), rel=2e-16)


def test_what_a_plain_sum_loses_is_kept():
    terms = [1.0, 1e17, 1.0, -1e17] * 50
    assert np.cumsum(terms)[-1] != 100
    assert total_of(terms) == float(sum(map(Fraction, terms))) == 100


def test_sums_of_arrays_and_of_infinite_terms():
    terms = np.array([[1e17, 1.0], [1.0, 2.0], [-1e17, -np.inf]])
    np.testing.assert_array_equal(total_of(terms), [1, -np.inf])
    assert np.isnan(total_of([np.inf, -np.inf]))
    assert total_of(np.float32([2**24, 1, 1])) == 2**24 + 2


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_results_come_in_the_order_of_the_pieces(n_threads):
    first = threading.Event()

    def worker(number, piece):
        if number == 0 and n_threads > 1:
            first.wait(10)  # for the one after it
        if number == 1:
            first.set()
        return number, piece**2

    results = list(in_threads(iter(range(100)), worker, n_threads))
    assert results == [(i, i**2) for i in range(100)]


def test_threads_do_not_run_far_ahead():
    read = []

    def pieces():
        for i in range(1000):
            read.append(i)
            yield i

    results = in_threads(pieces(), lambda number, piece: piece, 2)
    for i in range(20):
        assert next(results) == i
        assert len(read) <= i + 1 + 2 * AHEAD + 2
    results.close()
    check_nothing_runs()


@pytest.mark.parametrize("where", ["reading", "working", "the one who reads the results"])
def test_an_error_ends_all_threads_and_closes_what_is_read(where):
    is_open = []

    def pieces():
        is_open.append(1)
        try:
            for i in range(100):
                if i == 50 and where == "reading":
                    raise OSError("no luck")
                yield i
        finally:
            is_open.pop()

    def worker(number, piece):
        if piece == 50 and where == "working":
            raise OSError("no luck")
        return piece

    results = in_threads(pieces(), worker, 3)
    with pytest.raises(OSError, match="no luck"):
        for piece in results:
            if piece == 50:
                assert is_open
                results.throw(OSError("no luck"))
    assert not is_open
    check_nothing_runs()


def check_nothing_runs():
    assert "pymc-pass" not in [thread.name for thread in threading.enumerate()]
