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
import pytensor
import pytensor.tensor as pt
import pytest

from pytensor.compile.sharedvalue import SharedVariable

from pymc.variational.streaming import StreamingDataset


def value_of(ds):
    return ds.as_tensor().get_value()


def test_buffer_is_a_shared_variable_of_static_shape():
    ds = StreamingDataset(np.zeros((10, 3)), batch_size=4, sample_shape=(3,))
    buffer = ds.as_tensor()
    assert isinstance(buffer, SharedVariable)
    assert buffer.type.shape == (4, 3)
    assert buffer.dtype == pytensor.config.floatX
    assert buffer.name == "stream"
    assert ds.as_tensor() is buffer
    assert ds.sample_shape == (3,)


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_sample_shapes(shape):
    rows = np.arange(10 * np.prod(shape, dtype=int)).reshape(10, *shape)
    ds = StreamingDataset(rows, batch_size=4)
    assert ds.sample_shape == shape
    for start in (0, 4):
        np.testing.assert_array_equal(next(ds), rows[start : start + 4])


def test_advance_loads_batches_and_counts_them():
    ds = StreamingDataset(np.arange(5), batch_size=2)
    assert (ds.batches_seen, ds.rows_streamed) == (0, 0)
    seen = []
    for _ in range(5):
        ds.advance()
        seen += value_of(ds).tolist()
    assert seen == [0, 1, 2, 3, 4] * 2
    assert (ds.batches_seen, ds.rows_streamed) == (5, 10)
    assert type(ds.batches_seen) is type(ds.rows_streamed) is int


def test_before_the_first_advance_the_buffer_holds_the_first_batch():
    ds = StreamingDataset(np.arange(1, 9), batch_size=4)
    np.testing.assert_array_equal(value_of(ds), [1, 2, 3, 4])
    ds.advance()
    np.testing.assert_array_equal(value_of(ds), [1, 2, 3, 4])


def test_leftover_rows_open_the_next_epoch():
    """No row is left out, whatever the sizes."""
    ds = StreamingDataset(np.arange(10), batch_size=4)
    rows = np.concatenate([next(ds) for _ in range(5)])
    assert np.bincount(rows.astype(int)).tolist() == [2] * 10


def test_fewer_rows_than_a_batch():
    ds = StreamingDataset(np.arange(3), batch_size=7)
    np.testing.assert_array_equal(next(ds), [0, 1, 2, 0, 1, 2, 0])
    with pytest.raises(ValueError, match="3 rows, fewer than one batch of 7"):
        StreamingDataset(np.arange(3), batch_size=7, cycle=False)
    with pytest.raises(ValueError, match="3 rows, fewer than one batch of 7"):
        StreamingDataset(iter([np.arange(3)]), batch_size=7)


def test_iterator_gives_batches_that_may_be_changed():
    ds = StreamingDataset(np.arange(4), batch_size=2, cycle=False)
    assert iter(ds) is ds
    for batch in ds:
        batch[:] = -1
        assert (value_of(ds) >= 0).all()
    assert ds.batches_seen == 2


@pytest.mark.parametrize("source", [np.arange(6), iter([np.arange(6)])], ids=["cycle", "one-shot"])
def test_the_end_of_a_stream(source):
    ds = StreamingDataset(source, batch_size=4, cycle=False)
    ds.advance()
    for _ in range(2):
        with pytest.raises(StopIteration, match="ended after 1 batches"):
            ds.advance()
    np.testing.assert_array_equal(value_of(ds), [0, 1, 2, 3])


def test_columns():
    source = {"n": np.arange(4), "x": np.array([0.5, 1.5, 2.5, 3.5]), "flag": np.arange(4) > 1}
    ds = StreamingDataset(source, batch_size=2, name="rows")
    ds.advance()
    assert ds.columns == ("n", "x", "flag")
    assert ds.sample_shape == (3,)
    assert ds.as_tensor().dtype == ds["x"].dtype == pytensor.config.floatX
    assert (ds["n"].dtype, ds["flag"].dtype) == ("int64", "bool")
    assert ds["n"].type.shape == (2,)
    assert ds["n"].eval().tolist() == [0, 1]
    assert ds["flag"].eval().tolist() == [False, False]
    with pytest.raises(KeyError, match=r"'rows': no column 'z': \['n', 'x', 'flag'\]"):
        ds["z"]
    with pytest.raises(TypeError, match="no names"):
        StreamingDataset(np.zeros((4, 2)), batch_size=2)["x"]


def test_names_for_the_columns_of_an_array():
    class Source:
        n_rows, columns = 4, ["n", "m"]

        def __iter__(self):
            yield np.arange(8).reshape(4, 2)

    ds = StreamingDataset(Source(), batch_size=2)
    assert ds.columns == ("n", "m")
    assert ds["m"].eval().tolist() == [1, 3]
    assert ds["m"].dtype == "int64"
    Source.columns = ["n"]  # one name too few
    with pytest.raises(ValueError, match="names 1 columns"):
        StreamingDataset(Source(), batch_size=2)


def test_names_that_are_not_those_of_the_blocks():
    class Source:
        columns = ("a", "zz")

        def __iter__(self):
            yield {"a": np.zeros(2), "b": np.zeros(2)}

    with pytest.raises(ValueError, match=r"names the columns \['a', 'zz'\].*\['a', 'b'\]"):
        StreamingDataset(Source(), batch_size=2)


def test_later_blocks_of_other_types():
    """They are cast once, to the buffer, and a named column stays what it was."""
    narrow, wide = np.array([1, 2], "float16"), np.array([1e6, 0.1])
    ds = StreamingDataset([narrow, wide], batch_size=4, dtype="float64")
    assert next(ds).tolist() == [1, 2, 1e6, 0.1]
    ds = StreamingDataset([np.array([1]), np.array([0.5])], batch_size=2)
    assert next(ds).tolist() == [1, 0.5]
    blocks = [{"n": np.array([1], "int8")}, {"n": np.array([1000.0])}, {"n": np.array([0.5])}]
    ds = StreamingDataset(blocks, batch_size=1)
    assert [next(ds)[0, 0], next(ds)[0, 0]] == [1, 1000]
    with pytest.raises(ValueError, match=r"column 'n': 0\.5 cannot be held exactly as int64"):
        ds.advance()
    with pytest.raises(ValueError, match="column 'n': 9223372036854775808"):
        StreamingDataset({"n": np.array([2**63], "uint64")}, batch_size=1)


def test_tuples_advance_together():
    ds = StreamingDataset(
        (np.arange(12).reshape(6, 2), np.arange(6)), batch_size=4, sample_shape=((2,), ())
    )
    features, labels = ds.as_tensor()
    assert [features.name, labels.name] == ["stream.0", "stream.1"]
    for _ in range(5):
        x, y = next(ds)
        np.testing.assert_array_equal(x[:, 0], 2 * y)
        np.testing.assert_array_equal(labels.get_value(), y)


def test_integers_that_the_buffer_cannot_hold():
    """The column is named, at construction or in the middle of the stream."""
    source = {"id": np.array([0, 2**53 + 1]), "x": np.zeros(2)}
    with pytest.raises(ValueError, match="column 'id': 9007199254740993"):
        StreamingDataset(source, batch_size=2)
    blocks = [{name: values[:1] for name, values in source.items()}, source]
    ds = StreamingDataset(blocks, batch_size=1)
    ds.advance()
    with pytest.raises(ValueError, match="column 'id': 9007199254740993"):
        ds.advance()
    ds = StreamingDataset({"id": source["id"]}, batch_size=2, dtype="int64")
    assert ds["id"].eval().tolist() == [0, 2**53 + 1]


def test_integers_in_named_columns_of_an_array():
    class Source:
        columns = ("n", "id")

        def __iter__(self):
            yield np.array([[0, 2**53 + 1]])

    with pytest.raises(ValueError, match="column 'id': 9007199254740993"):
        StreamingDataset(Source(), batch_size=1)


@pytensor.config.change_flags(floatX="float32")
def test_float32():
    """A float32 buffer holds integers up to 2**24."""
    ds = StreamingDataset({"n": np.array([2**24]), "x": np.array([0.1])}, batch_size=1)
    assert ds.as_tensor().dtype == "float32"
    assert ds["n"].eval().tolist() == [2**24]
    with pytest.raises(ValueError, match="column 'n': 16777217 cannot be held exactly as float32"):
        StreamingDataset({"n": np.array([2**24 + 1])}, batch_size=1)


def test_dtype():
    assert StreamingDataset(np.arange(4), batch_size=2, dtype="int32").as_tensor().dtype == "int32"
    with pytest.raises(ValueError, match=r"0\.5 cannot be held exactly as int64"):
        StreamingDataset(np.array([0.5]), batch_size=1, dtype="int64")
    for dtype in ("U3", ("float32", "float32")):
        with pytest.raises(ValueError, match="dtype must be a numeric type"):
            StreamingDataset(np.arange(4), batch_size=2, dtype=dtype)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value):
    """For any source, after preprocess_fn, which may fill them."""
    source = {"n": np.arange(4), "x": np.array([0.0, 1.0, 2.0, value])}
    ds = StreamingDataset([{"n": [1, 2], "x": [0.0, 1.0]}, source], batch_size=2)
    ds.advance()
    with pytest.raises(ValueError, match="column 'x': 1 NaN or infinite"):
        ds.advance()
    with pytest.raises(ValueError, match="array 1: 1 NaN or infinite"):
        StreamingDataset((source["n"], source["x"]), batch_size=4)
    ds = StreamingDataset(
        source,
        batch_size=4,
        preprocess_fn=lambda block: block | {"x": np.nan_to_num(block["x"], posinf=0)},
    )
    assert next(ds)[:, 1].tolist() == [0, 1, 2, 0]


def test_preprocess_fn():
    ds = StreamingDataset(
        {"x": np.array([1.0, 2.0])},
        batch_size=2,
        preprocess_fn=lambda block: {"x": block["x"], "square": block["x"] ** 2},
    )
    assert ds.columns == ("x", "square")
    assert ds["square"].eval().tolist() == [1, 4]


def test_preprocess_fn_must_keep_the_rows_and_the_source():
    with pytest.raises(ValueError, match="returned 1 rows for 2"):
        StreamingDataset(np.arange(2), batch_size=2, preprocess_fn=lambda block: block[1:])
    with pytest.raises(TypeError, match="what preprocess_fn returned: not numeric"):
        StreamingDataset(np.arange(2), batch_size=2, preprocess_fn=lambda block: None)

    def in_place(block):
        block += 1
        return block

    rows = np.arange(2)
    for source in (rows, [rows], lambda: [rows]):
        with pytest.raises(ValueError, match="read-only"):
            StreamingDataset(source, batch_size=2, preprocess_fn=in_place)


def test_preprocess_fn_that_returns_an_array_leaves_no_names():
    """The columns may be in any order: a name could be the wrong one."""
    ds = StreamingDataset(
        {"a": np.arange(4), "b": np.arange(4) * 10},
        batch_size=2,
        preprocess_fn=lambda block: np.column_stack([block["b"], block["a"]]),
    )
    assert ds.columns is None


def test_preprocess_fn_keeps_the_names_of_an_array():
    class Named:
        columns = ("a", "b")

        def __iter__(self):
            yield np.arange(20.0).reshape(10, 2)

    ds = StreamingDataset(Named(), batch_size=5, preprocess_fn=lambda x: x / 2)
    assert ds.columns == ("a", "b")
    fewer = StreamingDataset(Named(), batch_size=5, preprocess_fn=lambda x: x[:, :1])
    assert fewer.columns is None


def test_strings_for_preprocess_fn():
    rows = {"carrier": np.array(["AA", "UA"] * 50), "y": np.arange(100.0)}

    def encode(block):
        return {"carrier": np.searchsorted(["AA", "UA"], block["carrier"]), "y": block["y"]}

    for source in (rows, lambda: [rows]):
        ds = StreamingDataset(source, batch_size=10, preprocess_fn=encode)
        batch = next(ds)
        np.testing.assert_array_equal(batch[:, 0], batch[:, 1] % 2)
        with pytest.raises(TypeError, match="column 'carrier': not numeric"):
            StreamingDataset(source, batch_size=10)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": True}, TypeError, "batch_size"),
        ({"batch_size": 2.5}, TypeError, "batch_size"),
        ({"total_size": 0}, ValueError, "total_size"),
        ({"total_size": True}, TypeError, "total_size"),
        ({"total_size": "N"}, TypeError, "total_size"),
        ({"sample_shape": (3,)}, ValueError, r"rows of shape \(2,\), not sample_shape=\(3,\)"),
        ({"preprocess_fn": 3}, TypeError, "preprocess_fn"),
        ({"source": []}, ValueError, "no rows"),
        ({"source": [np.zeros((0, 2))]}, ValueError, "no rows"),
        ({"source": lambda: []}, ValueError, "no rows"),
        ({"source": "folder"}, TypeError, "parquet_source"),
        ({"source": ["a"]}, TypeError, "block 0: not numeric"),
        ({"source": pt.zeros((10, 2))}, TypeError, "a tensor already"),
        ({"sample_shape": "ab"}, TypeError, "integer"),
    ],
)
def test_errors_of_construction_are_immediate(kwargs, error, match):
    kwargs = {"source": np.zeros((10, 2)), "batch_size": 4} | kwargs
    with pytest.raises(error, match=match):
        StreamingDataset(kwargs.pop("source"), **kwargs)


def test_numpy_integers_are_accepted():
    ds = StreamingDataset(np.zeros(10), batch_size=np.int64(4), total_size=np.int32(10))
    assert (ds.batch_size, ds.total_size) == (4, 10)
    assert type(ds.batch_size) is type(ds.total_size) is int


def test_a_dataset_is_no_source():
    ds = StreamingDataset(np.zeros(10), batch_size=4)
    with pytest.raises(TypeError, match="StreamingDataset already"):
        StreamingDataset(ds, batch_size=2)


def test_total_size_from_the_source(fail_on_warning):
    assert StreamingDataset(np.zeros(10), batch_size=4).total_size == 10
    ds = StreamingDataset(lambda: [np.zeros(10)], batch_size=4)
    assert ds.total_size is None
    for _ in range(4):
        ds.advance()
    assert ds.total_size == 10
    ds = StreamingDataset(lambda: [np.zeros(10)], batch_size=4, total_size=10)
    assert ds.total_size == 10
    for _ in range(8):
        ds.advance()


def test_wrong_total_size_is_said_at_once_where_the_source_tells():
    with pytest.warns(UserWarning, match=r"total_size=1000 .*10\. .*too narrow.* total_size=10"):
        StreamingDataset(np.zeros(10), batch_size=4, total_size=1000)


def test_wrong_total_size_is_said_after_an_epoch_elsewhere():
    ds = StreamingDataset(lambda: [np.zeros(10)], batch_size=5, total_size=7)
    ds.advance()
    ds.advance()
    with pytest.warns(UserWarning, match=r"total_size=7 .*10\. .*too wide.* total_size=10"):
        ds.advance()
    assert ds.total_size == 7


def test_a_source_that_tells_a_wrong_number_of_rows():
    class Source:
        n_rows = 8

        def __iter__(self):
            yield np.zeros(10)

    ds = StreamingDataset(Source(), batch_size=5)
    ds.advance()
    ds.advance()
    with pytest.warns(UserWarning, match="says n_rows=8, and an epoch had 10 rows"):
        ds.advance()


def test_an_error_of_the_source_reaches_the_caller_and_the_stream_goes_on():
    fail = [True]

    def source():
        yield np.arange(4)
        if fail.pop():
            fail.append(False)
            raise OSError("disk on fire")
        yield np.arange(4, 8)

    ds = StreamingDataset(source, batch_size=4)
    ds.advance()
    with pytest.raises(OSError, match="disk on fire"):
        ds.advance()
    fail.append(False)
    assert np.concatenate([next(ds), next(ds)]).tolist() == [4, 5, 6, 7, 0, 1, 2, 3]


@pytest.mark.parametrize("cycle", [True, False])
def test_an_interrupt_neither_doubles_rows_nor_changes_what_is_known(cycle, fail_on_warning):
    class Source:
        def __init__(self):
            self.blocks = [np.full(2, i) for i in range(5)]

        def __iter__(self):
            return self

        def __next__(self):
            if not self.blocks:
                raise StopIteration
            block = self.blocks.pop(0)
            if isinstance(block, type):
                raise block
            return block

    one_shot = Source()
    one_shot.blocks.insert(3, KeyboardInterrupt)
    ds = StreamingDataset(one_shot, batch_size=2, total_size=10, cycle=cycle)
    seen = [next(ds)[0] for _ in range(3)]
    with pytest.raises(KeyboardInterrupt):
        ds.advance()
    seen += [batch[0] for batch in ds]
    assert seen == [0, 1, 2, 3, 4]
    assert ds.total_size == 10

    interrupts = [KeyboardInterrupt]

    def again():
        yield np.zeros(2)
        if interrupts:
            raise interrupts.pop()
        yield np.ones(2)

    ds = StreamingDataset(again, batch_size=2, total_size=4, cycle=cycle)
    ds.advance()
    with pytest.raises(KeyboardInterrupt):
        ds.advance()
    assert next(ds)[0] == 1
    if cycle:
        assert [next(ds)[0] for _ in range(2)] == [0, 1]


N = 1000


def function_of(sizes):
    rows = np.arange(N)
    return lambda: (rows[start : start + sizes] for start in range(0, N, sizes))


def test_a_stream_that_ends_learns_n():
    for source in (function_of(37), iter(list(function_of(37)()))):
        ds = StreamingDataset(source, batch_size=30, cycle=False)
        assert ds.total_size is None
        assert len(list(ds)) == N // 30
        assert ds.total_size == N
    ds = StreamingDataset(function_of(37), batch_size=30, cycle=False, total_size=10)
    with pytest.warns(UserWarning, match=r"total_size=10 .* is not the number of rows .*, 1000"):
        list(ds)


def test_iterating_again_starts_again(fail_on_warning):
    for source in (np.arange(95), function_of(37), [np.arange(50), np.arange(45)]):
        ds = StreamingDataset(source, batch_size=10, cycle=False)
        first = np.array(list(ds))
        assert len(first) == ds.total_size // 10
        np.testing.assert_array_equal(np.array(list(ds)), first)
    ds = StreamingDataset(iter([np.arange(95)]), batch_size=10, cycle=False)
    assert len(list(ds)) == 9
    with pytest.raises(TypeError, match="can be read only once"):
        list(ds)


def test_close():
    closed = []

    def source():
        try:
            while True:
                yield np.zeros(4)
        finally:
            closed.append(True)

    with StreamingDataset(source, batch_size=2) as ds:
        ds.advance()
    assert closed
    for _ in range(2):
        ds.close()
        with pytest.raises(RuntimeError, match="'stream' is closed"):
            ds.advance()
    assert value_of(ds).tolist() == [0, 0]


def test_callback_in_a_loop_of_ones_own():
    ds = StreamingDataset(np.arange(100), batch_size=2)
    callback = ds.fit_callback()
    seen = []
    for i in range(3):
        seen.append(value_of(ds)[0])
        callback(None, None, i + 1)
    assert seen == [0, 2, 4]


def test_callback_without_seed():
    ds = StreamingDataset(np.arange(100), batch_size=2)
    ds.fit_callback(seed=False)
    assert ds.batches_seen == 0
    ds.fit_callback()
    ds.fit_callback()
    assert ds.batches_seen == 1
