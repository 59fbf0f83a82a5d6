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
import weakref

from itertools import chain

import numpy as np
import pytest

from hypothesis import given, settings
from hypothesis import strategies as st

from pymc.streams.batches import Batches


def flat(batches):
    return (read.batch for read in chain.from_iterable(batches.read()) if read.batch is not None)


def make(source, batch_size, *, dtype="float64", preprocess_fn=None, cycle=True):
    return Batches(
        source,
        batch_size=batch_size,
        dtype=dtype,
        preprocess_fn=preprocess_fn,
        cycle=cycle,
    )


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any),
    batch_size=st.integers(1, 100),
    n_batches=st.integers(1, 12),
)
def test_rows_come_in_order_and_epochs_join_without_a_gap(sizes, batch_size, n_batches):
    rows = np.arange(sum(sizes))
    blocks = np.split(rows, np.cumsum(sizes)[:-1])
    for block in blocks:
        block.flags.writeable = False
    reader = flat(make(blocks, batch_size))
    got = [next(reader)[0] for _ in range(n_batches)]
    assert all(batch.shape == (batch_size,) for batch in got)
    expected = np.resize(rows, n_batches * batch_size)
    np.testing.assert_array_equal(np.concatenate(got), expected)


@settings(max_examples=100, deadline=None)
@given(n_rows=st.integers(1, 200), batch_size=st.integers(1, 60))
def test_without_cycle_whole_batches_of_one_epoch(n_rows, batch_size):
    batches = make(np.arange(n_rows), batch_size, cycle=False)
    *reads, end = chain.from_iterable(batches.read())
    got = [read.batch[0] for read in reads]
    assert len(got) == n_rows // batch_size
    assert end == (None, 0, n_rows, n_rows)
    if got:
        np.testing.assert_array_equal(np.concatenate(got), np.arange(len(got) * batch_size))


def test_batches_may_be_kept():
    reader = flat(make(np.arange(6), 2))
    kept = [next(reader)[0] for _ in range(3)]
    np.testing.assert_array_equal(kept, [[0, 1], [2, 3], [4, 5]])


def test_the_first_block_is_let_go_of_once_it_was_used():
    """It may be a view on much that its library holds."""
    alive = []

    def blocks():
        for i in range(4):
            block = np.full(10, i)
            alive.append(weakref.ref(block))
            yield block
            del block

    reader = flat(make(blocks, 10))
    for _ in range(3):
        next(reader)
    assert alive[0]() is None


def test_a_block_that_the_source_overwrites():
    def source():
        block = np.empty(3, dtype=int)
        for start in range(0, 12, 3):
            block[:] = np.arange(start, start + 3)
            yield block

    reader = flat(make(source, 4))
    np.testing.assert_array_equal([next(reader)[0] for _ in range(3)], np.arange(12).reshape(3, 4))


def test_columns_become_a_column_major_matrix():
    batches = make({"x": np.arange(4.0), "n": np.arange(4)}, 2)
    batch = next(flat(batches))[0]
    np.testing.assert_array_equal(batch, [[0, 0], [1, 1]])
    assert batch[:, 0].flags.c_contiguous
    assert batches.columns == ("x", "n")


def test_the_order_of_columns_is_the_one_that_the_source_names():
    class Source:
        columns = ("a", "b")

        def __iter__(self):
            yield {"b": np.array([2.0]), "a": np.array([1.0])}
            yield {"a": np.array([3.0]), "b": np.array([4.0])}

    batches = make(Source(), 2)
    assert batches.columns == ("a", "b")
    np.testing.assert_array_equal(next(flat(batches))[0], [[1, 2], [3, 4]])


def test_one_dtype_for_each_array():
    batches = make((np.zeros((4, 2)), np.arange(4)), 2, dtype=("float32", "int64"))
    x, n = next(flat(batches))
    assert (x.dtype, n.dtype) == ("float32", "int64")
    assert batches.row_shapes == [(2,), ()]


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any),
    batch_size=st.integers(1, 100),
)
def test_all_rows_come_once_and_the_last_batch_may_be_shorter(sizes, batch_size):
    rows = np.arange(sum(sizes))
    batches = make(np.split(rows, np.cumsum(sizes)[:-1]), batch_size)
    for _ in range(2):
        *whole, last = [batch for [batch] in chain.from_iterable(batches.all_rows())]
        assert {len(batch) for batch in whole} <= {batch_size}
        assert 1 <= len(last) <= batch_size
        np.testing.assert_array_equal(np.concatenate([*whole, last]), rows)


def test_all_rows_leave_the_batches_that_come_next_alone():
    batches = make({"x": np.arange(7.0), "n": np.arange(7)}, 3)
    reader = flat(batches)
    next(reader)
    rows = [batch for [batch] in chain.from_iterable(batches.all_rows())]
    assert [len(batch) for batch in rows] == [3, 3, 1]
    assert rows[0][:, 0].flags.c_contiguous
    np.testing.assert_array_equal(next(reader)[0][:, 1], [3, 4, 5])


def test_all_rows_are_preprocessed():
    batches = make(np.arange(5.0), 2, preprocess_fn=lambda block: 10 * block)
    rows = [batch for [batch] in chain.from_iterable(batches.all_rows())]
    np.testing.assert_array_equal(np.concatenate(rows), 10 * np.arange(5))


def test_batches_of_another_source_in_the_same_form():
    def tripled(block):
        return block * [3, 1]

    class Source:
        def __init__(self, columns, rows):
            self.columns, self.rows = columns, rows

        def __iter__(self):
            yield self.rows

    own = Batches(
        Source(("x", "y"), np.ones((4, 2))),
        batch_size=3, dtype="float64", preprocess_fn=tripled, cycle=True,
    )  # fmt: skip
    other = own.like(Source(("y", "x"), np.array([[1.0, 10.0], [2.0, 20.0]])))
    [[[rows]]] = other.all_rows()
    np.testing.assert_array_equal(rows, [[30, 1], [60, 2]])

    table = {"x": np.arange(4), "y": np.arange(4.0)}
    own = Batches(table, batch_size=3, dtype="float64", preprocess_fn=None, cycle=True)
    other = own.like({"extra": np.array(["a"]), "x": np.array([7])}, optional={"y"})
    [[[rows]]] = other.all_rows()
    np.testing.assert_array_equal(rows, [[7, 0]])
    assert other.lacking == ["y"] and own.lacking == []
    with pytest.raises(ValueError, match=r"the columns \['y'\] are not among \['x'\]"):
        list(own.like({"x": np.arange(2)}).all_rows())
