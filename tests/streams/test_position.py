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

import numpy as np
import pytest

from pymc.streams.position import checksum, differences, random_order, seed_of


def test_a_seed_becomes_a_plain_number():
    assert seed_of(5) == 5
    one, other = np.random.default_rng(1), np.random.default_rng(1)
    drawn = [seed_of(one), seed_of(one)]
    assert drawn[0] != drawn[1]  # two components that share a generator
    assert drawn == [seed_of(other), seed_of(other)]
    children = np.random.SeedSequence(5).spawn(2)
    seeds = {5, *map(seed_of, children)}
    assert len(seeds) == 3
    assert seed_of(np.random.SeedSequence(5)) == 5
    assert seed_of(None) != seed_of(None)
    assert all(type(seed_of(seed)) is int for seed in (np.int64(3), None, [1, 2], children[0]))
    with pytest.raises((TypeError, ValueError)):
        seed_of(-1)


def test_orders_differ_by_who_draws_and_by_epoch():
    orders = {
        tuple(random_order(20, 1, who, epoch, window))
        for who in ("parquet_source", "shuffle_buffer 0", "shuffle_buffer 1")
        for epoch in range(3)
        for window in range(3)
    }
    assert len(orders) == 27
    np.testing.assert_array_equal(random_order(20, 1, "x", 2), random_order(20, 1, "x", 2))


def test_checksums_follow_the_values():
    x = np.arange(12.0).reshape(3, 4)
    assert checksum([x]) == checksum([np.asfortranarray(x)]) == checksum([x[:2], x[2:]])
    assert checksum([x]) != checksum([x.T])
    assert checksum([x]) != checksum([np.where(x < 11, x, x + 1e-9)])


def test_differences_are_named():
    state = {"a": 1, "b": {"seed": 1, "n": 2}, "gone": 0}
    assert differences(state, state) == []
    assert differences(state, {"a": 1, "b": {"seed": 2, "n": 2}}) == [
        "b.seed: 1 in the state, 2 here",
        "gone: 0 in the state, None here",
    ]
