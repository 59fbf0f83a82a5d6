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
"""Passes over row groups by the workers of an executor."""

import multiprocessing
import pickle

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

from pymc.streams.sources import decoding
from pymc.streams.sources.parquet import parquet_source

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pc = pytest.importorskip("pyarrow.compute")

N = 2000


class Counting(ThreadPoolExecutor):
    """Threads that count their tasks."""

    n_tasks = 0

    def submit(self, *args, **kwargs):
        self.n_tasks += 1
        return super().submit(*args, **kwargs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two files in row groups of 90: two columns of keys, and one with gaps."""
    folder = tmp_path_factory.mktemp("keys")
    row = np.arange(N)
    x = pa.array(np.where(row % 7 == 0, None, row / 2).tolist(), pa.float64())
    key = pa.array([f"key {(7 * i) % 11 + i // 300}" for i in row])
    month = pa.array([f"month {i // 400}" for i in row]).dictionary_encode()
    table = pa.table({"row": row, "x": x, "key": key, "month": month})
    for i in range(2):
        half = table.slice(i * N // 2, N // 2)
        pq.write_table(half, folder / f"{i}.parquet", row_group_size=90)
    return folder


def passed(folder, executor):
    """A source of passes of each kind, which leave a row group out, too."""
    keep = (pc.field("row") < 300) | ((pc.field("row") > 600) & (pc.field("key") > "key 3"))
    return parquet_source(
        folder, missing="drop", filters=keep, shuffle_row_groups=True, seed=1, executor=executor
    )


def check_same(source, expected):
    assert 0 < source.n_row_groups < 24
    assert source.stream_identity == expected.stream_identity
    assert source.identity == expected.identity
    for name in ("n_rows", "n_filtered", "n_dropped"):
        assert getattr(source, name) == getattr(expected, name) > 0
    assert source.categories.keys() == {"key", "month"}
    for name, categories in source.categories.items():
        np.testing.assert_array_equal(categories, expected.categories[name])
    for start in (0, 500):
        for block, other in zip(source.read(1, start), expected.read(1, start), strict=True):
            np.testing.assert_array_equal(list(block.values()), list(other.values()))


@pytest.mark.parametrize("most_tasks", [1, 5, 1024])
def test_passes_of_an_executor_come_to_the_same(folder, most_tasks, monkeypatch):
    monkeypatch.setattr(decoding, "MOST_TASKS", most_tasks)
    with Counting(2) as executor:
        source = passed(folder, executor)
        assert executor.n_tasks >= 3 * min(most_tasks, source.n_row_groups)
    check_same(source, passed(folder, None))
    assert b"Executor" not in pickle.dumps(source)


@pytest.mark.slow
def test_passes_of_processes_come_to_the_same(folder):
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as executor:
        check_same(passed(folder, executor), passed(folder, None))


def test_an_executor_has_nothing_to_do_without_a_pass(folder):
    with Counting(1) as executor:
        parquet_source(folder, columns=["row"], executor=executor)
        categories = passed(folder, None).categories
        parquet_source(folder, columns=["row", "key"], categories=categories, executor=executor)
        assert executor.n_tasks == 0
    with pytest.raises(TypeError, match=r"executor is a int"):
        parquet_source(folder, columns=["row"], executor=2)


def test_an_error_in_a_worker_names_the_row_group(folder, tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pq.read_table(folder), file, row_group_size=500, use_dictionary=False)
    chunk = pq.read_metadata(file).row_group(2).column(2)
    with open(file, "r+b") as opened:
        opened.seek(chunk.data_page_offset)
        opened.write(b"\xff" * 200)
    with ThreadPoolExecutor(2) as executor:
        with pytest.raises(OSError, match=r"a\.parquet, row group 2: could not be read"):
            parquet_source(file, columns=["key"], executor=executor)
