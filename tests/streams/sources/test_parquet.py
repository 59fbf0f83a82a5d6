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
import subprocess
import sys

import numpy as np
import pytest

import pymc as pm

from pymc.streams.shuffle.buffer import shuffle_buffer
from pymc.streams.sources import parquet
from pymc.streams.sources.parquet import parquet_source
from pymc.variational.streaming import StreamingDataset

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def folder(tmp_path):
    """Three files of 25 rows, in row groups of 10: rows are numbered in the order of the files."""
    for i in range(3):
        row = np.arange(25 * i, 25 * (i + 1))
        write(tmp_path / f"part-{i}.parquet", {"row": row, "x": row / 2}, row_group_size=10)
    return tmp_path


def write(path, columns, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **kwargs)


def rows_of(source, column="row"):
    return np.concatenate([block[column] for block in source]).tolist()


def test_reads_all_rows_in_order(folder):
    source = parquet_source(folder)
    assert source.n_rows == 75
    assert source.columns == ("row", "x")
    for _ in range(2):
        blocks = list(source)
        assert [len(block["row"]) for block in blocks] == [10, 10, 5] * 3
        assert rows_of(blocks) == list(range(75))
        assert blocks[0]["row"].dtype == "int64"
        np.testing.assert_array_equal(blocks[4]["x"], blocks[4]["row"] / 2)


def test_paths(folder):
    write(folder / "below" / "part-9.parquet", {"row": [75], "x": [0.0]})
    write(folder / "_temporary" / "part-0.parquet", {"row": [-1], "x": [0.0]})
    write(folder / ".hidden.parquet", {"row": [-1], "x": [0.0]})
    first, second = folder / "part-0.parquet", folder / "part-1.parquet"
    assert parquet_source(str(folder)).n_rows == 76
    assert parquet_source(first).n_rows == 25
    assert parquet_source(folder / "part-*.parquet").n_rows == 75
    assert rows_of(parquet_source([second, str(first)]))[0] == 25
    assert rows_of(parquet_source([folder / "part-[12].parquet", first])) == [
        *range(25, 75),
        *range(25),
    ]


def test_row_groups_in_a_new_random_order_each_epoch(folder):
    source = parquet_source(folder, shuffle_row_groups=True, seed=1)
    first, second = rows_of(source), rows_of(source)
    assert sorted(first) == sorted(second) == list(range(75))
    assert first != second
    assert first != sorted(first)
    again = parquet_source(folder, shuffle_row_groups=True, seed=1)
    assert [rows_of(again), rows_of(again)] == [first, second]


def test_row_groups_from_all_over_meet_in_one_buffer(tmp_path):
    write(tmp_path / "a.parquet", {"row": np.arange(100_000)}, row_group_size=1000)
    source = parquet_source(tmp_path, shuffle_row_groups=True, seed=1)
    first = next(iter(shuffle_buffer(source, buffer_size=20_000, batch_size=2000, seed=1)))["row"]
    assert len(np.unique(first // 1000)) == 20
    assert first.min() < 20_000
    assert first.max() > 80_000


def test_columns_by_name_in_the_order_asked_for(folder):
    [x, row] = next(iter(parquet_source(folder, columns=["x", "row"]))).items()
    assert (x[0], row[0]) == ("x", "row")


def test_files_with_columns_in_another_order_are_matched_by_name(folder):
    write(folder / "part-3.parquet", {"x": [0.25], "row": [75]})
    assert rows_of(parquet_source(folder)) == list(range(76))
    assert rows_of(parquet_source(folder), "x")[-1] == 0.25


def test_files_of_different_numeric_types_are_promoted(folder):
    write(folder / "part-3.parquet", {"row": np.array([75], dtype="int8"), "x": [3]})
    block = list(parquet_source(folder))[-1]
    assert block["row"].dtype == "int64"
    assert block["x"].dtype == "float64"


def test_promotion_that_would_change_an_integer_is_an_error(tmp_path):
    write(tmp_path / "a.parquet", {"x": [2**53 + 1]})
    write(tmp_path / "b.parquet", {"x": [0.5]})
    with pytest.raises(ValueError, match=r"a\.parquet, row group 0, column 'x'.*9007199254740993"):
        list(parquet_source(tmp_path))


@pytest.mark.parametrize(
    ("columns", "asked", "error", "match"),
    [
        ({"row": [1]}, None, ValueError, r"part-3.parquet: no column 'x'; it has \['row'\]"),
        ({"row": [1]}, ["x"], ValueError, "part-3.parquet: no column 'x'"),
        (
            {"row": [1], "x": ["a"]},
            None,
            TypeError,
            "part-3.parquet: column 'x' is of type string, and of type double in .*part-0.parquet",
        ),
        (
            {"row": [1], "x": [1.0], "z": [1.0]},
            None,
            ValueError,
            r"part-3.parquet: column\(s\) \['z'\] that .*part-0.parquet does not have",
        ),
    ],
)
def test_a_file_whose_columns_do_not_fit_is_named(folder, columns, asked, error, match):
    write(folder / "part-3.parquet", columns)
    with pytest.raises(error, match=match):
        parquet_source(folder, columns=asked)


def test_a_column_that_is_no_number_may_be_left_out(tmp_path):
    write(tmp_path / "a.parquet", {"event": [{"bid": 1}], "x": [1.0]})
    assert parquet_source(tmp_path, columns=["x"]).n_rows == 1
    with pytest.raises(
        TypeError, match=r"a.parquet: column 'event' is not numeric \(struct<.*columns="
    ):
        parquet_source(tmp_path)


@pytest.mark.parametrize("dtype", ["int64", "float64", "bool"])
def test_nulls_name_file_row_group_and_column(tmp_path, dtype):
    values = pa.array([1, 0, None], pa.int64()).cast(dtype if dtype != "float64" else pa.float64())
    write(tmp_path / "a.parquet", {"x": values}, row_group_size=2)
    source = iter(parquet_source(tmp_path))
    assert next(source)["x"].dtype == dtype
    with pytest.raises(ValueError, match=r"a\.parquet, row group 1, column 'x': 1 null"):
        next(source)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_file_row_group_and_column(tmp_path, value):
    write(tmp_path / "a.parquet", {"x": [1.0, 2.0, value]}, row_group_size=2)
    source = iter(parquet_source(tmp_path))
    next(source)
    with pytest.raises(
        ValueError, match=r"a\.parquet, row group 1, column 'x': 1 NaN or inf.*drop"
    ):
        next(source)


def test_missing_rows_are_dropped_counted_and_taken_off_n(tmp_path):
    table = {
        "x": pa.array([0.0, None, 2.0, np.nan, np.inf, 5.0]),
        "n": pa.array([0, 1, None, 3, 4, 5]),
        "flag": pa.array([True, True, True, True, True, None]),
        "unused": pa.array([None] * 6, pa.int64()),
    }
    write(tmp_path / "a.parquet", table, row_group_size=2)
    source = parquet_source(tmp_path, columns=["x", "n"], missing="drop")
    assert (source.n_rows, source.n_dropped) == (2, 4)
    for _ in range(2):
        assert rows_of(source, "n") == rows_of(source, "x") == [0, 5]
    assert next(iter(source))["n"].dtype == "int64"
    source = parquet_source(tmp_path, columns=["n", "x", "flag"], missing="drop")
    assert (source.n_rows, rows_of(source, "flag")) == (1, [True])
    with pytest.raises(ValueError, match=r"every row of .* has a missing value in .*unused"):
        parquet_source(tmp_path, columns=["unused"], missing="drop")
    with pytest.raises(ValueError, match='missing must be "raise" or "drop", got \'fill\''):
        parquet_source(tmp_path, columns=["x"], missing="fill")


def test_missing_rows_of_a_file_without_any(folder):
    source = parquet_source(folder, missing="drop")
    assert (source.n_rows, source.n_dropped) == (75, 0)
    assert rows_of(source) == list(range(75))


def test_a_file_that_changes_is_named(folder):
    source = parquet_source(folder)
    epoch = iter(source)
    next(epoch)
    write(folder / "part-1.parquet", {"row": np.arange(30), "x": np.zeros(30)})
    with pytest.raises(RuntimeError, match=r"part-1\.parquet: changed since the source was made"):
        list(epoch)


@pytest.mark.parametrize("change", ["added", "removed"])
def test_a_file_that_is_added_or_removed_is_named(folder, change):
    source = parquet_source(folder)
    list(source)
    if change == "added":
        write(folder / "part-9.parquet", {"row": [1], "x": [1.0]})
    else:
        (folder / "part-1.parquet").unlink()
    with pytest.raises(RuntimeError, match=r"part-[19]\.parquet: added or removed since"):
        list(source)


def test_a_relative_path_outlives_a_change_of_directory(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    source = parquet_source(folder.name)
    monkeypatch.chdir("/")
    assert len(rows_of(source)) == 75


def test_bad_paths(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link.parquet").symlink_to(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    write(tmp_path / "none.parquet", {"x": np.zeros(0)})
    for path, error, match in [
        (tmp_path / "absent", FileNotFoundError, "no Parquet file or folder at"),
        (tmp_path / "absent-*.parquet", FileNotFoundError, "no file matches"),
        (tmp_path / "empty", FileNotFoundError, "no \\*.parquet file in the folder"),
        ([], FileNotFoundError, "list of Parquet files is empty"),
        (tmp_path / "text.parquet", ValueError, "text.parquet: not a readable Parquet file"),
        (tmp_path / "none.parquet", ValueError, "no rows"),
        ([tmp_path / "none.parquet"] * 2, ValueError, "listed twice"),
        ([tmp_path / "none.parquet", tmp_path / "link.parquet"], ValueError, "listed twice"),
    ]:
        with pytest.raises(error, match=match):
            parquet_source(path)


@pytest.mark.parametrize(
    ("columns", "error", "match"),
    [
        (["row", "row"], ValueError, "twice"),
        ([], ValueError, "empty"),
        ("row", TypeError, r"\['row'\]"),
        (["y"], ValueError, "no column 'y'"),
    ],
)
def test_bad_columns(folder, columns, error, match):
    with pytest.raises(error, match=match):
        parquet_source(folder, columns=columns)


def test_a_file_that_vanishes_is_named(folder):
    source = iter(parquet_source(folder))
    next(source)
    (folder / "part-1.parquet").unlink()
    with pytest.raises(OSError, match=r"part-1\.parquet, row group 0"):
        list(source)


def test_large_row_groups_are_read_in_slices(tmp_path):
    write(tmp_path / "a.parquet", {"row": np.arange(300_000)}, row_group_size=300_000)
    sizes = [len(block["row"]) for block in parquet_source(tmp_path)]
    assert sum(sizes) == 300_000
    assert max(sizes) < 150_000


def test_without_pyarrow_the_error_names_the_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        parquet_source(folder)


@pytest.mark.parametrize("module", ["pyarrow", "scipy.stats", "scipy.special", "scipy.sparse"])
def test_importing_pymc_does_not_import_what_it_does_not_need(module):
    # pandas imports pyarrow where it is installed: what counts is that pymc adds nothing.
    code = "import sys, pandas; before = set(sys.modules); import pymc; "
    code += f"sys.exit(any(name.startswith({module!r}) for name in set(sys.modules) - before))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("shuffle_row_groups", [False, True])
def test_a_large_row_group_is_read_in_slices(tmp_path, shuffle_row_groups):
    """What Arrow holds does not grow with the row group: here 48 MB of numbers in one."""
    n = 3_000_000
    values = np.random.default_rng(1).normal(size=(2, n))
    pq.write_table(pa.table({"x": values[0], "y": values[1]}), tmp_path / "a", row_group_size=n)
    del values
    held = []
    n_rows = 0
    before = pa.total_allocated_bytes()
    for block in parquet_source(tmp_path / "a", shuffle_row_groups=shuffle_row_groups):
        held.append(pa.total_allocated_bytes() - before)
        n_rows += len(block["x"])
    assert n_rows == n
    assert max(held) < 12e6


def test_a_file_without_columns(tmp_path):
    pq.write_table(pa.table({"x": [1.0, 2.0]}).select([]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: no columns"):
        parquet_source(tmp_path)


def test_wide_rows_are_read_fewer_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("pymc.streams.sources.decoding.READ_BYTES", 8 * 20 * 50)
    columns = {f"{j}": np.arange(1000.0) for j in range(20)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert {len(block["0"]) for block in parquet_source(tmp_path)} == {50}


def test_a_buffer_in_bytes_does_not_use_up_an_epoch(tmp_path):
    pq.write_table(pa.table({"n": np.arange(100)}), tmp_path / "rows.parquet", row_group_size=10)

    def rows(buffer_size):
        source = parquet_source(tmp_path, shuffle_row_groups=True, seed=1)
        batches = shuffle_buffer(source, buffer_size=buffer_size, batch_size=5, seed=1)
        assert batches.buffer_size == 10
        return np.concatenate([batch["n"] for batch in batches])

    np.testing.assert_array_equal(rows("160B"), rows(10))


def test_parquet_example_of_the_readme(tmp_path):
    """The short form and the long form of the README, on files."""
    rng = np.random.default_rng(1)
    for i in range(4):
        x = rng.normal(size=(5000, 3))
        up = rng.random(5000) < 1 / (1 + np.exp(-x @ [1.0, -0.5, 0.25]))
        names = ["mid", "spread", "imbalance"]
        columns = {name: x[:, j].astype("float32") for j, name in enumerate(names)}
        pq.write_table(pa.table(columns | {"up": up}), tmp_path / f"{i}.parquet")

    def logistic(buf, n_rows):
        b = pm.Normal("b", 0.0, 3.0, shape=4)
        logit = b[0] + b[1] * buf[:, 0] + b[2] * buf[:, 1] + b[3] * buf[:, 2]
        pm.Bernoulli("up", logit_p=logit, observed=buf[:, 3], total_size=n_rows)
        return pm.fit(
            3000, obj_optimizer=pm.adam(learning_rate=0.01), progressbar=False, random_seed=1
        )

    source = parquet_source(tmp_path, columns=["mid", "spread", "imbalance", "up"])
    with pm.Model():
        short = logistic(pm.Minibatch(source, batch_size=512), source.n_rows)
    ds = StreamingDataset(
        shuffle_buffer(parquet_source(tmp_path), buffer_size=5000, batch_size=512, seed=0),
        batch_size=512,
        sample_shape=(4,),
        total_size="auto",
    )
    with pm.Model():
        long = logistic(ds.as_tensor(), ds.total_size)
    for approx in (short, long):
        np.testing.assert_allclose(approx.mean.eval(), [0, 1, -0.5, 0.25], atol=0.1)


def test_docstring_examples_run():
    results = doctest.testmod(parquet)
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize("shuffled", [False, True])
def test_unshuffled_is_the_order_of_the_files_which_are_opened_once(folder, shuffled, monkeypatch):
    source = parquet_source(folder, shuffle_row_groups=shuffled)
    opened, open_file = [], pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda *a, **k: opened.append(1) or open_file(*a, **k))
    for _ in range(2):
        assert rows_of(source.unshuffled()) == list(range(75))
    assert len(opened) == 6
    assert [len(block["row"]) for block in source.by_row_group()] == [10, 10, 5] * 3


@pytest.mark.parametrize("bad", ["a value", "a page"])
def test_unshuffled_names_the_row_group_that_is_bad(tmp_path, bad):
    path = tmp_path / "a.parquet"
    x = np.arange(50_000.0)
    if bad == "a value":
        x[25_000] = np.nan
    write(path, {"x": x}, row_group_size=10_000, compression="snappy", use_dictionary=False)
    if bad == "a page":
        chunk = pq.read_metadata(path).row_group(2).column(0)
        with open(path, "r+b") as file:
            file.seek(chunk.data_page_offset)
            file.write(b"\xff" * 2000)
    source = parquet_source(tmp_path)
    with pytest.raises((ValueError, OSError), match=r"a\.parquet, row group 2(, column 'x')?: "):
        list(source.unshuffled())


@pytest.mark.parametrize("change", ["written again", "added"])
def test_unshuffled_names_a_file_that_changes(folder, change):
    source = parquet_source(folder)
    blocks = source.unshuffled()
    next(blocks)
    if change == "added":
        write(folder / "part-9.parquet", {"row": [1], "x": [1.0]})
        blocks = source.unshuffled
    else:
        write(folder / "part-1.parquet", {"row": np.arange(30), "x": np.zeros(30)})
    with pytest.raises(RuntimeError, match=r"part-[19]\.parquet: (changed|added or removed) since"):
        list(blocks() if callable(blocks) else blocks)
