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
import pandas as pd
import pytest

from pymc.streams.blocks import BlockFormat, Blocks, check_exact, positive_int, to_block
from tests.conftest import require


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_positive_int_becomes_a_python_int(value):
    assert positive_int(value, "batch_size") == 3
    assert type(positive_int(value, "batch_size")) is int


@pytest.mark.parametrize("value", [True, np.True_, 2.0, "3", None])
def test_positive_int_refuses_other_types(value):
    with pytest.raises(TypeError, match="batch_size must be an integer"):
        positive_int(value, "batch_size")


@pytest.mark.parametrize("value", [0, -1, np.int32(0)])
def test_positive_int_refuses_other_values(value):
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        positive_int(value, "batch_size")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 2**53, -(2**53)], "float64"),
        ([2**53 + 2], "float64"),
        ([2**24], "float32"),
        ([-128, 127], "int8"),
        ([0, 1], "bool"),
        ([2**62], "float64"),
    ],
)
def test_check_exact_lets_pass_what_fits(values, dtype):
    check_exact(np.array(values, dtype="int64"), np.dtype(dtype), "column 'x'")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([0, 2**53 + 1]), "float64"),
        (np.array([2**24 + 1]), "float32"),
        (np.array([2**63 - 1]), "float64"),
        (np.array([2**64 - 1], dtype="uint64"), "float64"),
        (np.array([2**63], dtype="uint64"), "int64"),
        (np.array([128]), "int8"),
        (np.array([2]), "bool"),
        (np.array([0.5]), "int64"),
        (np.array([np.nan]), "int64"),
    ],
)
def test_check_exact_names_the_column(values, dtype):
    with pytest.raises(ValueError, match="column 'x'.*cannot be held exactly as " + dtype):
        check_exact(values, np.dtype(dtype), "column 'x'")


def test_check_exact_rounds_floats():
    check_exact(np.array([0.1]), np.dtype("float32"), "column 'x'")


def table(form):
    pa = pytest.importorskip("pyarrow")
    columns = {"x": np.array([0.5, 1.5]), "y": np.array([1, 2])}
    if form == "table":
        return pa.table(columns)
    if form == "chunked":
        return pa.concat_tables([pa.table(columns).slice(0, 1), pa.table(columns).slice(1)])
    if form == "batch":
        return pa.RecordBatch.from_pydict(columns)
    if form == "polars":
        return require("polars").DataFrame(columns)
    return {"mapping": columns, "pandas": pd.DataFrame(columns)}[form]


@pytest.mark.parametrize("form", ["table", "chunked", "batch", "polars", "mapping", "pandas"])
def test_tables_become_columns(form):
    block = to_block(table(form), "block 0")
    assert list(block) == ["x", "y"]
    np.testing.assert_array_equal(block["x"], [0.5, 1.5])
    assert block["y"].dtype == "int64"


@pytest.mark.parametrize("form", ["table", "chunked", "batch", "polars", "mapping", "pandas"])
def test_tables_are_sources(form):
    blocks = Blocks(table(form))
    assert blocks.n_rows == 2
    assert blocks.columns == ("x", "y")
    for number in range(2):
        [block] = blocks.epoch(number)
        np.testing.assert_array_equal(block["y"], [1, 2])


@pytest.mark.parametrize(
    ("block", "error", "match"),
    [
        ("abc", TypeError, "block 3: not numeric"),
        (np.array(["a"]), TypeError, "not numeric"),
        (np.array([None]), TypeError, "not numeric"),
        ({"t": np.array(["2026-01-01"], dtype="datetime64[s]")}, TypeError, "column 't'"),
        (1.5, ValueError, "block 3: a single number"),
        ([1.5, 2.5], TypeError, r"block 3: a single row, a list .*pandas.DataFrame\(rows"),
        ((1.5, "AA", None), TypeError, "block 3: a single row, a tuple"),
        ({"x": 1.5, "k": "AA"}, TypeError, "block 3: a single row, a dict"),
        ([(1.5, 2)] * 9, TypeError, r"a list of 9 rows, of type tuple.*pandas.DataFrame\(rows"),
        ([{"x": 1.5}] * 2, TypeError, "a list of 2 rows, of type dict"),
        (((1.5, 2), (2.5, 3)), TypeError, "a tuple of 2 rows, of type tuple"),
        ({}, ValueError, "no columns"),
        ((), ValueError, "no columns"),
        ({"x": np.zeros((2, 2))}, ValueError, r"'x' \(2, 2\)"),
        ({"x": np.zeros(2), "y": np.zeros(3)}, ValueError, "different lengths"),
        ((np.zeros(2), np.zeros(3)), ValueError, "different lengths"),
        (np.ma.masked_equal([1.0, 2.0], 2.0), ValueError, "masked"),
    ],
)
def test_bad_blocks_are_errors(block, error, match):
    with pytest.raises(error, match=match):
        to_block(block, "block 3")


def test_null_in_arrow_names_the_column():
    pa = pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match="block 0, column 'x': 1 null"):
        list(Blocks([pa.table({"x": [1, None]})]).epoch(0))


def test_columns_are_matched_by_name():
    form = BlockFormat.of({"x": np.array([1.0]), "y": np.array([2.0])})
    x, y = form.split({"y": np.array([20.0]), "x": np.array([10.0])})
    assert (x[0], y[0]) == (10.0, 20.0)


@pytest.mark.parametrize(
    ("block", "error", "match"),
    [
        ({"x": np.zeros(1)}, ValueError, r"\['x'\].*\['x', 'n'\]"),
        ({"x": np.zeros(1), "n": np.zeros(1, int), "z": np.zeros(1)}, ValueError, "'z'"),
        (np.zeros((1, 2)), TypeError, "ndarray.*dict"),
    ],
)
def test_blocks_that_differ_from_the_first_are_errors(block, error, match):
    form = BlockFormat.of({"x": np.zeros(1), "n": np.zeros(1, dtype=int)})
    with pytest.raises(error, match=match):
        form.split(block)


def test_rows_of_another_shape_are_an_error():
    with pytest.raises(ValueError, match="stack rows that come one by one"):
        BlockFormat.of(np.zeros((5, 4))).split(np.zeros(4))


def test_kinds_of_sources():
    blocks = [np.arange(3), np.arange(3, 5)]
    array, table = np.arange(5), {"x": np.arange(5)}
    for source in (
        blocks,
        lambda: iter(blocks),
        lambda: blocks,
        array,
        pd.Series(array),
        lambda: array,
    ):
        for _ in range(2):
            assert np.concatenate(list(Blocks(source).epoch(0))).tolist() == [0, 1, 2, 3, 4]
    [block] = Blocks(lambda: table).epoch(0)
    assert list(block) == ["x"]
    [block] = Blocks(lambda: (array, array)).epoch(0)
    assert len(block) == 2
    one_shot = Blocks(iter(blocks))
    assert one_shot.one_shot
    assert len(list(one_shot.epoch(0))) == 2
    assert list(one_shot.epoch(1)) == []


def test_a_reader_of_record_batches_is_iterated():
    pa = pytest.importorskip("pyarrow")
    batches = [pa.RecordBatch.from_pydict({"x": [i, i]}) for i in range(3)]
    reader = pa.RecordBatchReader.from_batches(batches[0].schema, batches)
    assert [block["x"].tolist() for block in Blocks(reader).epoch(0)] == [[0, 0], [1, 1], [2, 2]]


def test_tuples_as_sources():
    x, y = np.arange(4), np.arange(4) * 10
    [(one, two)] = Blocks((x, y)).epoch(0)
    np.testing.assert_array_equal([one, two], [x, y])
    blocks = list(Blocks(((x, y), (x, y))).epoch(0))
    assert len(blocks) == 2
    assert all(isinstance(block, tuple) for block in blocks)


@pytest.mark.parametrize("n_rows", [0, -5, True, 12.5, "10"])
def test_n_rows_of_a_source_must_be_a_size(n_rows):
    class Source:
        def __iter__(self):
            yield np.zeros(3)

    Source.n_rows = n_rows
    with pytest.raises((TypeError, ValueError), match="n_rows of the source must be"):
        Blocks(Source())


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: [x], lambda x: {"x": x}])
def test_masked_values_are_an_error_wherever_they_come_from(wrap):
    with pytest.raises(ValueError, match="masked"):
        list(Blocks(wrap(np.ma.masked_equal([1.0, 2.0], 2.0))).epoch(0))


def test_a_function_that_returns_no_blocks():
    with pytest.raises(TypeError, match=r"must return an iterable of blocks.*it returned int"):
        list(Blocks(lambda: 5).epoch(0))


@pytest.mark.parametrize("source", ["a/path", b"a/path", 3, None])
def test_what_is_no_source(source):
    with pytest.raises(TypeError, match="a source is an iterable of blocks"):
        Blocks(source)


def test_a_path_is_pointed_to_parquet_source(tmp_path):
    with pytest.raises(TypeError, match="parquet_source"):
        Blocks(tmp_path)


def test_slices_of_an_array_are_views(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, np.zeros((200_000, 2)))
    memmap = np.load(path, mmap_mode="r+")
    blocks = list(Blocks(memmap).epoch(0))
    assert len(blocks) > 1
    assert all(np.shares_memory(block, memmap) for block in blocks)


def test_array_likes_are_sliced_not_converted():
    class OnDisk:
        """As h5py and zarr arrays are: slices give arrays, and __array__ would load all of it."""

        shape, dtype = (150_000, 2), np.dtype("float64")

        def __getitem__(self, rows):
            return np.zeros((min(rows.stop, self.shape[0]) - rows.start, 2))

        def __array__(self, *args, **kwargs):
            raise AssertionError("loaded whole")

    blocks = Blocks(OnDisk())
    assert blocks.n_rows == sum(map(len, blocks.epoch(0))) == 150_000


class OnDisk:
    """An array in chunks, as those of h5py and zarr are, that keeps what is read of it."""

    def __init__(self, values, chunk_rows):
        self._values, self.shape, self.ndim = values, values.shape, values.ndim
        self.dtype, self.nbytes = values.dtype, values.nbytes
        self.slices = []
        self._chunk_rows = chunk_rows

    @property
    def chunks(self):
        return (self._chunk_rows, *self.shape[1:])

    def __getitem__(self, rows):
        self.slices.append((rows.start, rows.stop))
        return self._values[rows]

    def __array__(self, *args, **kwargs):
        raise AssertionError("taken into memory")


@pytest.mark.parametrize(
    ("chunk_rows", "step"), [(100, 65_500), (70_000, 70_000), (65_536, 65_536), (200_000, 200_000)]
)
@pytest.mark.parametrize("start", [0, 65_500, 150])
@pytest.mark.parametrize("form", [lambda a: a, lambda a: {"x": a}, lambda a: (a, a)])
def test_arrays_on_disk_are_read_by_whole_chunks(form, start, chunk_rows, step):
    array = OnDisk(np.arange(200_000), chunk_rows)
    blocks = Blocks(form(array))
    assert (blocks.n_rows, blocks.seekable) == (200_000, True)
    assert array.slices == []
    read = list(blocks.epoch(0, start))
    parts = [block["x"] if isinstance(block, dict) else block for block in read]
    parts = [part[0] if isinstance(part, tuple) else part for part in parts]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(start, 200_000))
    bounds = sorted({bound for bounds in array.slices for bound in bounds} - {start, 200_000})
    assert bounds == [row for row in range(step, 200_000, step) if row > start]


def test_wide_arrays_on_disk_are_read_few_rows_at_a_time():
    array = OnDisk(np.zeros((1000, 2**17)), 10)
    next(Blocks(array).epoch(0))
    assert array.slices == [(0, 30)]
    assert Blocks(array).n_bytes == 1000 * 2**20
