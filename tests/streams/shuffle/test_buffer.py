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
import doctest
import json

import numpy as np
import pytest

from hypothesis import given, settings
from hypothesis import strategies as st

import pymc as pm

from pymc.data import MinibatchOp
from pymc.streams.batches import Batches
from pymc.streams.blocks import Blocks
from pymc.streams.shuffle import buffer
from pymc.streams.shuffle.buffer import shuffle_buffer
from pymc.variational.callbacks import Tracker
from pymc.variational.streaming import StreamingDataset


def flat(batches):
    return np.concatenate(list(batches)).tolist()


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    batch_size=st.integers(1, 30),
    extra=st.integers(0, 60),
    known=st.booleans(),
)
def test_every_row_exactly_once_per_epoch(sizes, batch_size, extra, known):
    rows = np.arange(sum(sizes))
    blocks = np.split(rows, np.cumsum(sizes)[:-1])
    for block in blocks:
        block.flags.writeable = False

    class Source:
        n_rows = len(rows) if known and len(rows) else None

        def __iter__(self):
            return iter(blocks)

    shuffled = shuffle_buffer(
        Source(), buffer_size=batch_size + extra, batch_size=batch_size, seed=1
    )
    for _ in range(2):
        batches = list(shuffled)
        if batches:
            assert sorted(flat(batches)) == rows.tolist()
            assert all(1 <= len(batch) <= batch_size for batch in batches)


def test_each_epoch_has_a_new_order():
    shuffled = shuffle_buffer(np.arange(1000), buffer_size=1000, batch_size=100, seed=1)
    first, second = flat(shuffled), flat(shuffled())
    assert first != second
    assert sorted(first) == sorted(second) == list(range(1000))


def test_same_seed_same_order():
    def make(seed):
        return shuffle_buffer(np.arange(99), buffer_size=40, batch_size=7, seed=seed)

    one, two, other = make(3), make(3), make(4)
    assert flat(one) == flat(two) != flat(other)
    assert flat(one) == flat(two)


def test_iterators_do_not_disturb_each_other():
    def make():
        return shuffle_buffer(np.arange(50), buffer_size=20, batch_size=10, seed=1)

    alone = make()
    expected = [flat(alone), flat(alone)]
    shuffled = make()
    first, second = iter(shuffled), iter(shuffled)
    got = ([], [])
    for a, b in zip(first, second):
        got[0].extend(a)
        got[1].extend(b)
    assert [list(map(int, rows)) for rows in got] == expected


def test_rows_move_at_most_one_buffer():
    shuffled = shuffle_buffer(np.arange(1000), buffer_size=100, batch_size=10, seed=1)
    order = np.array(flat(shuffled))
    assert np.array_equal(order // 100, np.arange(1000) // 100)


def test_a_block_that_the_source_overwrites():
    def source():
        block = np.empty(10, dtype=int)
        for start in range(0, 100, 10):
            block[:] = np.arange(start, start + 10)
            yield block

    shuffled = shuffle_buffer(source, buffer_size=35, batch_size=8, seed=1)
    assert sorted(flat(shuffled)) == list(range(100))


@pytest.mark.parametrize(
    "source",
    [
        {"x": np.arange(10.0), "n": np.arange(10)},
        (np.arange(10.0), np.arange(10)),
        np.arange(10)[:, None] * [1, 10],
    ],
    ids=["columns", "tuple", "array"],
)
def test_batches_have_the_form_of_blocks_and_rows_stay_together(source):
    shuffled = shuffle_buffer(source, buffer_size=10, batch_size=4, seed=1)
    for batch in shuffled:
        assert type(batch) is type(source)
        if isinstance(batch, dict):
            assert batch["n"].dtype.kind == "i"
            np.testing.assert_array_equal(batch["x"], batch["n"])
        elif isinstance(batch, tuple):
            np.testing.assert_array_equal(batch[0], batch[1])
        else:
            np.testing.assert_array_equal(batch[:, 0] * 10, batch[:, 1])


@pytest.mark.parametrize("buffer_size", [3, 100])
def test_blocks_of_wider_types_are_kept_exactly(buffer_size):
    blocks = [
        np.array([1, 2], "int8"),
        np.array([1000]),
        np.array([1e6, 0.1]),
        np.array([3], "int8"),
    ]
    for dtype in ("int8", "float16"):
        blocks[0] = blocks[0].astype(dtype)
        shuffled = shuffle_buffer(blocks, buffer_size=buffer_size, batch_size=2, seed=1)
        assert sorted(flat(shuffled)) == [0.1, 1, 2, 3, 1000, 1e6]


def test_an_integer_that_does_not_fit_beside_floats():
    blocks = [np.array([0.5]), np.array([2**53 + 1])]
    for source in (blocks, blocks[::-1]):
        with pytest.raises(ValueError, match="array: 9007199254740993 cannot be held exactly"):
            list(shuffle_buffer(source, buffer_size=10, batch_size=2))


def test_a_buffer_in_bytes():
    rows = {"x": np.zeros(10_000), "n": np.zeros(10_000, "int8")}  # 16 bytes side by side
    shuffled = shuffle_buffer(rows, buffer_size="24kB", batch_size=4)
    assert shuffled.buffer_size == 24_000 // (16 + 8)
    same = shuffle_buffer(rows, buffer_size=1000, batch_size=4, seed=1)
    for batch, other in zip(shuffle_buffer(rows, buffer_size="24 kB", batch_size=4, seed=1), same):
        np.testing.assert_array_equal(batch["x"], other["x"])


def test_a_buffer_in_bytes_loses_no_row():
    once = iter([np.arange(100), np.arange(100, 200)])
    for source in (lambda: once, iter([np.arange(100), np.arange(100, 200)])):
        shuffled = shuffle_buffer(source, buffer_size="1MB", batch_size=10, seed=1)
        assert sorted(flat(shuffled)) == list(range(200))


@pytest.mark.parametrize(
    "source, buffer_size, error, match",
    [
        (np.zeros(9), "much", ValueError, r'buffer_size must be bytes or, say, "256MB"'),
        (np.zeros(9), "40B", ValueError, r"buffer_size=40B, 2 rows, is smaller than batch_size=4"),
        (np.zeros(9), "100", ValueError, r"rows are given as an integer, memory with a unit"),
        ([], "1MB", ValueError, r"no rows"),
    ],
)
def test_bad_buffers_in_bytes(source, buffer_size, error, match):
    with pytest.raises(error, match=match):
        shuffle_buffer(source, buffer_size=buffer_size, batch_size=4)


def test_the_source_is_untouched():
    rows = np.arange(100)
    list(shuffle_buffer(rows, buffer_size=100, batch_size=10, seed=1))
    np.testing.assert_array_equal(rows, np.arange(100))
    for batch in shuffle_buffer(rows, buffer_size=100, batch_size=10, seed=1):
        batch += 1
    np.testing.assert_array_equal(rows, np.arange(100))


def test_tells_what_the_source_tells(fail_on_warning):
    shuffled = shuffle_buffer({"x": np.arange(5)}, buffer_size=5, batch_size=2)
    assert (shuffled.n_rows, shuffled.columns) == (5, ("x",))
    assert shuffle_buffer(lambda: [], buffer_size=5, batch_size=2).n_rows is None

    shuffled = shuffle_buffer(np.zeros(10), buffer_size=10, batch_size=4)
    assert StreamingDataset(shuffled, batch_size=4).total_size == 10


@pytest.mark.parametrize(
    ("sizes", "error", "match"),
    [
        ({"buffer_size": 10, "batch_size": 0}, ValueError, "batch_size"),
        ({"buffer_size": -5, "batch_size": 1}, ValueError, "buffer_size"),
        ({"buffer_size": 10.0, "batch_size": 1}, TypeError, "buffer_size"),
        ({"buffer_size": 10, "batch_size": True}, TypeError, "batch_size"),
        ({"buffer_size": 10, "batch_size": 11}, ValueError, "smaller than batch_size=11"),
    ],
)
def test_bad_sizes(sizes, error, match):
    with pytest.raises(error, match=match):
        shuffle_buffer(np.arange(10), **sizes)


# Epochs and positions


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


# In a StreamingDataset


class Wrapper:
    def __init__(self, source):
        self._source = source

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __iter__(self):
        return (block / block for block in self._source)


class Divided(shuffle_buffer):
    def __iter__(self):
        return (block / block for block in super().__iter__())


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize(
    "make", [lambda **sizes: Wrapper(shuffle_buffer(**sizes)), lambda **sizes: Divided(**sizes)]
)
def test_what_users_make_of_our_sources_is_read_and_checked(make):
    ds = StreamingDataset(make(source=np.ones(100) * 3, buffer_size=10, batch_size=5), batch_size=5)
    assert next(ds).tolist() == [1] * 5
    with pytest.raises(ValueError, match=r"NaN or infinite"):
        StreamingDataset(make(source=np.zeros(100), buffer_size=10, batch_size=5), batch_size=5)


def test_strings_in_a_buffer_for_preprocess_fn():
    rows = {"carrier": np.array(["AA", "UA"] * 50), "y": np.arange(100.0)}

    def encode(block):
        return {"carrier": np.searchsorted(["AA", "UA"], block["carrier"]), "y": block["y"]}

    buffered = shuffle_buffer(rows, buffer_size=20, batch_size=10, seed=1)
    ds = StreamingDataset(buffered, batch_size=10, preprocess_fn=encode)
    batch = next(ds)
    np.testing.assert_array_equal(batch[:, 0], batch[:, 1] % 2)
    with pytest.raises(TypeError, match="column 'carrier': not numeric"):
        StreamingDataset(buffered, batch_size=10)


# In pm.Minibatch


def test_minibatch_streams_a_buffer():
    rows = np.arange(200.0).reshape(100, 2)
    buffered = shuffle_buffer(rows, buffer_size=100, batch_size=10, seed=1)
    batch = pm.Minibatch(buffered, batch_size=np.int64(10))
    assert isinstance(batch.owner.op, MinibatchOp)
    assert batch.name == "minibatch.0"
    assert batch.type.shape == (10, 2)
    with pm.Model():
        mu = pm.Normal("mu")
        pm.Normal("y", mu * batch[:, 0], 1, observed=batch[:, 1], total_size=100)
        pm.fit(8, progressbar=False, random_seed=1)
    [ds] = {buffer.tag.stream for buffer in batch.owner.inputs}
    assert ds.batches_seen == 8


def test_streamed_posterior_is_the_in_memory_one():
    """N = 50,000, B = 256: as far from an in-memory fit as two in-memory fits are apart."""
    n_rows, batch_size = 50_000, 256
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n_rows, 3))
    y = (rng.random(n_rows) < 1 / (1 + np.exp(-(0.3 + x @ [1.0, -0.5, 0.25])))).astype(float)

    def fit(seed, streamed):
        with pm.Model():
            b = pm.Normal("b", 0.0, 3.0, shape=4)
            if streamed:
                source = shuffle_buffer(
                    (x, y), buffer_size=10_000, batch_size=batch_size, seed=seed
                )
                features, labels = pm.Minibatch(source, batch_size=batch_size)
            else:
                features, labels = pm.Minibatch(x, y, batch_size=batch_size)
            logit = b[0] + features @ b[1:]
            pm.Bernoulli("y", logit_p=logit, observed=labels, total_size=n_rows)
            # The iterates go on jumping about their mean: average them over the second half.
            tracker = Tracker(
                params=lambda approx, losses, i: [p.get_value() for p in approx.params]
            )
            pm.fit(
                6000,
                random_seed=seed,
                obj_optimizer=pm.adam(learning_rate=0.003),
                callbacks=[tracker],
                progressbar=False,
            )
        return np.mean(tracker["params"][3000:], axis=0)

    in_memory = np.array([fit(seed, streamed=False) for seed in range(3)])
    streamed = np.array([fit(seed, streamed=True) for seed in range(10, 13)])
    # Means and log-scales are compared each with their own noise floor: how far apart fits are
    # that draw independently from memory.
    floor = np.ptp(in_memory, axis=0).max(axis=-1)
    difference = np.abs(streamed.mean(axis=0) - in_memory.mean(axis=0)).max(axis=-1)
    assert (floor < [0.01, 0.2]).all(), floor
    assert (difference < floor).all(), (difference, floor)


def test_docstring_examples_run():
    results = doctest.testmod(buffer)
    assert results.attempted
    assert not results.failed


def test_unshuffled_is_the_order_of_the_source_past_any_shuffle():
    rows = np.arange(100)
    inner = shuffle_buffer(rows, buffer_size=40, batch_size=7, seed=1)
    outer = shuffle_buffer(inner, buffer_size=30, batch_size=9, seed=2)
    for source in (rows, lambda: [rows], [rows[:30], rows[30:]], inner, outer):
        for _ in range(2):
            got = np.concatenate(list(Blocks(source).unshuffled()))
            np.testing.assert_array_equal(got, rows)
