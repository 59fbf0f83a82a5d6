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

from hypothesis import given, settings
from hypothesis import strategies as st

from pymc.streams.shuffle.buffer import shuffle_buffer
from pymc.streams.sources.parquet import parquet_source


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


def test_a_buffer_in_bytes_does_not_use_up_an_epoch(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    pq.write_table(pa.table({"n": np.arange(100)}), tmp_path / "rows.parquet", row_group_size=10)

    def rows(buffer_size):
        source = parquet_source(tmp_path, shuffle_row_groups=True, seed=1)
        batches = shuffle_buffer(source, buffer_size=buffer_size, batch_size=5, seed=1)
        assert batches.buffer_size == 10
        return np.concatenate([batch["n"] for batch in batches])

    np.testing.assert_array_equal(rows("160B"), rows(10))


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


def test_tells_what_the_source_tells():
    shuffled = shuffle_buffer({"x": np.arange(5)}, buffer_size=5, batch_size=2)
    assert (shuffled.n_rows, shuffled.columns) == (5, ("x",))
    assert shuffle_buffer(lambda: [], buffer_size=5, batch_size=2).n_rows is None


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
