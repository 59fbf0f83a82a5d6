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
import multiprocessing
import os
import signal
import threading

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

from pymc.streams.batches import Batches
from pymc.streams.blocks import Blocks
from pymc.streams.executors import (
    MOST_BYTES,
    Held,
    check_blocks,
    check_executor,
    in_executor,
    row_ranges,
)
from pymc.streams.shuffle.buffer import shuffle_buffer
from pymc.streams.sources.decoding import DecodedRowGroups
from pymc.streams.sources.parquet import parquet_source

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

N = 101


class Noting(ThreadPoolExecutor):
    """Threads that note how many bytes were sent to them with each call, and what came of it."""

    def __init__(self, n_workers):
        super().__init__(n_workers)
        self.sent, self.futures = [], []

    def submit(self, work, tokens, sent, call):
        self.sent.append(sum(map(len, sent.values())))
        self.futures.append(super().submit(work, tokens, sent, call))
        return self.futures[-1]


@pytest.fixture
def files(tmp_path):
    """Files with row groups of 7 and of 20 rows; the numbers 0 to 100, and some missing in "gaps"."""
    for name, rows, size in (("a", np.arange(50), 7), ("b", np.arange(50, N), 20)):
        gaps = np.where(rows % 9 == 4, np.nan, rows)
        pq.write_table(
            pa.table({"x": rows, "gaps": gaps}), tmp_path / f"{name}.parquet", row_group_size=size
        )
    return tmp_path


def rows_of(blocks):
    return np.concatenate([block["x"] if isinstance(block, dict) else block for block in blocks])


SOURCES = {
    "files": lambda folder: parquet_source(folder, columns=["x"]),
    "rows dropped": lambda folder: parquet_source(folder, missing="drop"),
    "row groups in random order": lambda folder: parquet_source(
        folder, columns=["x"], shuffle_row_groups=True
    ),
    "shuffle_buffer": lambda folder: shuffle_buffer(
        parquet_source(folder, columns=["x"]), buffer_size=30, batch_size=8
    ),
    "array": lambda folder: np.arange(N),
    "table": lambda folder: {"x": np.arange(N)},
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_seekable_source_opens_at_any_row_in_the_order_of_the_files(files, source):
    blocks = Blocks(SOURCES[source](files))
    rows = rows_of(blocks.unshuffled())
    assert len(rows) == blocks.n_rows == (N - 11 if source == "rows dropped" else N)
    assert (np.diff(rows) > 0).all()
    for start in range(len(rows)):
        np.testing.assert_array_equal(rows_of(blocks.unshuffled(start)), rows[start:])
        stop = min(start + 23, len(rows))
        np.testing.assert_array_equal(rows_of(blocks.between(start, stop)), rows[start:stop])


def test_row_groups_before_the_first_row_are_not_read(files, monkeypatch):
    source = parquet_source(files, columns=["x"])
    read = []
    inner = DecodedRowGroups.read
    monkeypatch.setattr(
        DecodedRowGroups, "read", lambda *args: read.extend(args[1]) or inner(*args)
    )
    assert rows_of(source.unshuffled(60))[0] == 60
    assert read == [8, 9, 10]  # 8 of 7 rows, then those that begin at 50, 70 and 90
    read.clear()
    list(source.unshuffled(10, 14))
    assert read == [1]  # whose last row is 13
    list(source.unshuffled(10, 15))
    assert read == [1, 1, 2]


def test_other_files_are_noticed_where_ranges_are_made(files):
    blocks = Blocks(shuffle_buffer(parquet_source(files), buffer_size=30, batch_size=8))
    row_ranges(blocks, 10, "rows")
    pq.write_table(pa.table({"x": [1], "gaps": [1.0]}), files / "c.parquet")
    with pytest.raises(RuntimeError, match=r"c\.parquet: added or removed since"):
        row_ranges(blocks, 10, "rows")


@pytest.mark.parametrize("sizes", [[N], [1] * N, [40, 1, 60], [99, 2]])
@pytest.mark.parametrize("batch_size", [1, 8, N])
def test_pieces_do_not_depend_on_the_blocks_and_can_be_read_by_their_number(
    sizes, batch_size, monkeypatch
):
    monkeypatch.setattr("pymc.streams.batches.BYTES_AT_ONCE", 8 * 24)
    rows = np.arange(N)

    def pieces_of(source, *which):
        batches = Batches(
            source, batch_size=batch_size, dtype="int64", preprocess_fn=None, cycle=True
        )
        pieces = [np.concatenate([x for [x] in piece]) for piece in batches.all_rows(*which)]
        return batches.piece_rows, pieces

    size, pieces = pieces_of(np.split(rows, np.cumsum(sizes)[:-1]))
    assert [len(piece) for piece in pieces[:-1]] == [size] * (len(pieces) - 1)
    np.testing.assert_array_equal(np.concatenate(pieces), rows)
    for first in range(len(pieces)):
        _, some = pieces_of(rows, first, 2)
        np.testing.assert_array_equal(np.concatenate(some), rows[first * size : (first + 2) * size])


def test_results_come_in_order_and_what_is_held_is_sent_to_few_calls():
    calls = row_ranges(Blocks(np.arange(3000.0)), 10, "rows")
    assert (calls[0], calls[-1], len(calls)) == ((0, 10), (2990, 3000), 300)
    blocks = Blocks(np.random.default_rng(os.getpid()).random(3000))  # nobody holds them yet

    def function(blocks, start, stop):
        return start, sum(block.sum() for block in blocks.between(start, stop))

    with Noting(2) as executor:
        held = [Held(function, "function"), Held(blocks, "rows")]
        for _ in range(2):
            results = list(in_executor(executor, held, calls))
            assert [start for start, _ in results] == [start for start, _ in calls]
            assert sum(part for _, part in results) == pytest.approx(blocks.source.sum())
        assert len(executor.sent) > 600
        assert 1 <= sum(size > 0 for size in executor.sent) <= 32
        n_sent = len(executor.sent)
        list(in_executor(executor, held, calls))
        assert executor.sent[n_sent:] == [0] * 300


@pytest.mark.parametrize("at", [0, 7])
def test_an_error_in_a_worker_is_the_users_own_and_ends_the_other_calls(at):
    def function(i):
        if i == at:
            raise ZeroDivisionError("of the user")

    with Noting(1) as executor:
        with pytest.raises(ZeroDivisionError, match="of the user"):
            list(in_executor(executor, [Held(function, "f")], [(i,) for i in range(900)]))
        assert sum(not future.done() for future in executor.futures) <= 1


def test_a_loop_that_is_left_leaves_no_calls_behind():
    with Noting(1) as executor:
        results = in_executor(executor, [Held(len, "a function")], [([0] * i,) for i in range(500)])
        assert next(results) == 0
        results.close()
        assert sum(not future.done() for future in executor.futures) <= 1


def test_what_workers_cannot_read_is_refused_with_the_way_out():
    for source in ([np.zeros(3)], lambda: [np.zeros(3)], iter([np.zeros(3)])):
        with pytest.raises(ValueError, match=r"rows: .*pre_shuffle\(source, 'rows/'\)"):
            check_blocks(Blocks(source), "rows")
    large = np.broadcast_to(np.zeros(1), MOST_BYTES // 8 + 1)
    check_blocks(Blocks(large[:-1]), "rows")
    for source in (large, (large, large), shuffle_buffer(large, buffer_size=9, batch_size=3)):
        with pytest.raises(ValueError, match=r"rows: 0\.[35] GB of arrays .*pre_shuffle"):
            check_blocks(Blocks(source), "rows")


def test_what_cannot_be_pickled_is_named():
    with pytest.raises(TypeError, match=r"the source cannot be sent .*lock.*preprocess_fn"):
        Held(threading.Lock(), "the source")


def test_what_is_no_executor_is_refused_with_the_way_out():
    class Client:
        def get_executor(self):
            pass

    with pytest.raises(TypeError, match=r"a Client: .*Pass client\.get_executor\(\)"):
        check_executor(Client())
    with pytest.raises(TypeError, match=r"a int: .*executor=None"):
        check_executor(2)
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=fork) as executor:
        with pytest.raises(ValueError, match=r'may hang .*get_context\("spawn"\)'):
            check_executor(executor)


@pytest.mark.slow
def test_a_process_that_dies_is_said():
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as executor:
        with pytest.raises(RuntimeError, match=r"a worker process died .*Client\.get_executor\(\)"):
            list(
                in_executor(
                    executor, [Held(lambda: os.kill(os.getpid(), signal.SIGKILL), "f")], [()]
                )
            )
