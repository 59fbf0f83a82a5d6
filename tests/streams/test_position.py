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
import json

import numpy as np
import pytest

from hypothesis import given, settings
from hypothesis import strategies as st

from pymc.streams.batches import Batches
from pymc.streams.blocks import Blocks
from pymc.streams.position import checksum, differences, random_order, seed_of
from pymc.streams.shuffle.buffer import shuffle_buffer


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


def test_two_readers_of_one_buffer_do_not_meet():
    """What one reads, or has read ahead, changes nothing for the other."""
    source = shuffle_buffer(np.arange(100), buffer_size=30, batch_size=10, seed=1)

    def joined(blocks):
        return np.concatenate(list(blocks))

    expected = [joined(source.read(epoch)) for epoch in range(2)]
    one, other = source.read(0), source.read(1)
    next(one), next(other)
    list(source), list(source)
    np.testing.assert_array_equal(joined(source.read(0)), expected[0])
    np.testing.assert_array_equal(joined(source.read(1)), expected[1])
    assert not np.array_equal(*expected)


def test_iterating_an_object_counts_its_epochs():
    source = shuffle_buffer(np.arange(100), buffer_size=30, batch_size=10, seed=1)
    for epoch in range(3):
        rows = np.concatenate(list(source))
        np.testing.assert_array_equal(rows, np.concatenate(list(source.read(epoch))))


def test_a_buffer_over_a_buffer_with_the_same_seed_draws_its_own_order():
    inner = shuffle_buffer(np.arange(50), buffer_size=50, batch_size=10, seed=1)
    once = np.concatenate(list(inner.read(0)))
    twice = np.concatenate(
        list(shuffle_buffer(inner, buffer_size=50, batch_size=10, seed=1).read(0))
    )
    order = np.argsort(once)
    assert not np.array_equal(twice, once[order[once]])
    assert not np.array_equal(twice, once[once])


def made_of(kind, n_rows):
    x = np.arange(n_rows)
    return {"array": x, "table": {"x": x, "y": x / 2}, "tuple": (x, np.stack([x, -x], 1))}[kind]


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["array", "table", "tuple"]),
    n_rows=st.integers(1, 150),
    sizes=st.lists(st.integers(1, 60), max_size=2),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_an_epoch_opened_at_a_row_is_the_rest_of_it(kind, n_rows, sizes, epoch, data):
    source = made_of(kind, n_rows)
    for size in sizes:  # buffers in front of each other
        source = shuffle_buffer(source, buffer_size=size, batch_size=1, seed=7)
    start = data.draw(st.integers(0, n_rows))
    blocks = Blocks(source)
    assert blocks.seekable

    def rows(start):
        parts = [
            block.values() if isinstance(block, dict) else block
            for block in blocks.epoch(epoch, start)
        ]
        parts = [part if kind != "array" else [part] for part in parts]
        return [np.concatenate(column) for column in zip(*parts)]

    rest = rows(start)
    for whole, column in zip(rows(0), rest):
        np.testing.assert_array_equal(whole[start:], column)
    assert rest or start == n_rows


@settings(max_examples=150, deadline=None)
@given(
    n_rows=st.integers(1, 100),
    batch_size=st.integers(1, 60),
    buffer_size=st.integers(60, 90),
    n_before=st.integers(0, 12),
)
def test_batches_from_a_position_on_are_those_that_would_have_come(
    n_rows, batch_size, buffer_size, n_before
):
    def reads(*position):
        source = shuffle_buffer(
            np.arange(n_rows), buffer_size=buffer_size, batch_size=batch_size, seed=3
        )
        batches = Batches(
            source, batch_size=batch_size, dtype="float64", preprocess_fn=None, cycle=True
        )
        return (read for some in batches.read(*position) for read in some)

    through = reads()
    position = (0, 0)
    for _ in range(n_before):
        position = next(through)[1:3]
    again = reads(*position)
    for _ in range(5):
        expected, got = next(through), next(again)
        np.testing.assert_array_equal(expected.batch, got.batch)
        assert expected[1:3] == got[1:3]


def test_what_a_stream_is_told_by_is_json():
    x = np.arange(10)
    for source in (
        x,
        {"x": x, "s": np.array(list("abcdefghij"), object)},
        (x, x),
        lambda: [x],
        [x],
    ):
        buffered = shuffle_buffer(source, buffer_size=5, batch_size=2)
        identity = Blocks(buffered, numeric=False).identity
        assert json.loads(json.dumps(identity)) == identity
    assert Blocks(x).identity != Blocks(x + 1).identity
    assert Blocks(x).identity != Blocks(x.astype(float)).identity
    assert Blocks(x).identity == Blocks(np.arange(10)).identity
