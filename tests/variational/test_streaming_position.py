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
"""Position: a stream that stops anywhere goes on as if it had not, and holds nothing meanwhile."""

import copy
import doctest
import json
import multiprocessing
import pickle
import shutil
import threading
import warnings

from pathlib import Path

import cloudpickle
import numpy as np
import pytest

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pymc as pm

from pymc.variational import streaming
from pymc.variational.streaming import StreamingDataset, parquet_source, shuffle_buffer

pytestmark = pytest.mark.filterwarnings("ignore::pymc.variational.streaming.StreamOrderWarning")

N = 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path_factory.mktemp("events")
    x = np.arange(N)
    y = np.where(x % 7 == 3, np.nan, x / 3)  # rows that missing="drop" leaves out
    for i, part in enumerate(np.array_split(np.arange(N), [100, 103, 600])):
        table = pa.table({"x": x[part], "y": y[part]})
        pq.write_table(table, folder / f"{i}.parquet", row_group_size=90)
    return folder


def in_columns():
    return {"x": np.arange(N), "y": np.arange(N) / 3}


def function_of(sizes):
    rows = np.arange(N)
    return lambda: (rows[start : start + sizes] for start in range(0, N, sizes))


SOURCES = {
    "array": lambda folder: np.arange(N),
    "memmap": lambda folder: memmap_of(folder),
    "columns": lambda folder: in_columns(),
    "tuple": lambda folder: (np.arange(N), np.ones((N, 2))),
    "function": lambda folder: function_of(37),
    "blocks": lambda folder: list(function_of(37)()),
    "parquet": lambda folder: parquet_source(folder, columns=["x"]),
    "dropped": lambda folder: parquet_source(folder, missing="drop"),
    "row groups": lambda folder: parquet_source(
        folder, columns=["x"], shuffle_row_groups=True, seed=1
    ),
    "row groups, dropped": lambda folder: parquet_source(
        folder, missing="drop", shuffle_row_groups=True, seed=1
    ),
}


def memmap_of(folder):
    path = Path(folder) / "rows.npy"
    if not path.exists():
        np.save(path, np.arange(N))
    return np.load(path, mmap_mode="r")


def batches(ds, n):
    return [np.concatenate([np.ravel(part) for part in next(ds)]) for _ in range(n)]


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from(sorted(SOURCES)),
    slice_rows=st.sampled_from([16, 16_384]),  # with fewer, row groups are read in turn
    buffer_size=st.sampled_from([None, 64, 130, 700, 5000]),
    batch_size=st.integers(1, 64),
    n_before=st.integers(0, 60),
    prefetch=st.sampled_from([0, None, 3]),
)
def test_batches_after_a_restore_are_those_of_a_run_without(
    folder, kind, slice_rows, buffer_size, batch_size, n_before, prefetch
):
    def stream():
        source = SOURCES[kind](folder)
        if buffer_size is not None:
            source = shuffle_buffer(source, buffer_size=buffer_size, batch_size=batch_size, seed=1)
        return StreamingDataset(source, batch_size=batch_size, prefetch=prefetch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pymc.streams.sources.decoding.SLICE_ROWS", slice_rows)
        through = stream()
        batches(through, n_before)
        state = json.loads(json.dumps(through.state_dict()))
        buffer = through.as_tensor()
        again = stream()
        again.load_state_dict(state)
        for one, other in zip(*(np.atleast_1d(ds.as_tensor()) for ds in (through, again))):
            np.testing.assert_array_equal(one.get_value(), other.get_value())
        assert again.state_dict() == state
        np.testing.assert_array_equal(batches(through, 30), batches(again, 30))
        assert through.state_dict() == again.state_dict()
        assert again.batches_seen == n_before + 30
        through.close(), again.close()


def test_state_is_epoch_and_row():
    ds = StreamingDataset(np.arange(25), batch_size=10)
    states = []
    for _ in range(4):
        state = ds.state_dict()
        states.append((state["epoch"], state["row"], state["batches_seen"], state["n_rows"]))
        ds.advance()
    assert states == [(0, 0, 0, 25), (0, 10, 1, 25), (0, 20, 2, 25), (1, 5, 3, 25)]
    assert (ds.epoch, ds.row) == (1, 15)


def stream_of(rows=None, batch_size=10, seed=1, buffer_size=100, **kwargs):
    rows = in_columns() if rows is None else rows
    buffered = shuffle_buffer(rows, buffer_size=buffer_size, batch_size=batch_size, seed=seed)
    return StreamingDataset(buffered, batch_size=batch_size, **kwargs)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"batch_size": 20}, r"batch_size: 10 in the state, 20 here"),
        ({"seed": 2}, r"source.seed: 1 in the state, 2 here"),
        ({"buffer_size": 200}, r"source.buffer_size: 100 in the state, 200 here"),
        (
            {"rows": {"x": np.arange(N), "z": np.arange(N) / 3}},
            r"columns: \['x', 'y'\] in the .*'z'",
        ),
        (
            {"rows": {"x": np.arange(N), "y": np.arange(N)}},
            r"source.source.dtypes: .*float64.*int64",
        ),
        ({"rows": {"x": np.arange(N), "y": np.arange(N) / 4}}, r"source.source.checksum: "),
        ({"rows": {"x": np.arange(N + 1), "y": np.arange(N + 1) / 3}}, r"source.source.shapes: "),
        ({"cycle": False}, r"cycle: True in the state, False here"),
    ],
)
def test_a_state_of_another_stream_is_refused(other, named):
    ds = stream_of()
    ds.advance()
    with pytest.raises(ValueError, match=rf"stream 'stream' cannot go on .*{named}"):
        stream_of(**other).load_state_dict(ds.state_dict())


def test_files_that_changed_are_refused(folder, tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(in_columns()), tmp_path / "0.parquet", row_group_size=90)
    ds = StreamingDataset(parquet_source(tmp_path), batch_size=10)
    ds.advance()
    state = ds.state_dict()
    other = {"x": np.arange(N), "y": np.zeros(N)}  # as many rows and bytes, before compression
    pq.write_table(pa.table(other), tmp_path / "0.parquet", row_group_size=90)
    with pytest.raises(ValueError, match=r"source\.files: "):
        StreamingDataset(parquet_source(tmp_path), batch_size=10).load_state_dict(state)
    pq.write_table(pa.table(in_columns()), tmp_path / "0.parquet", row_group_size=80)
    with pytest.raises(ValueError, match=r"source.files: "):
        StreamingDataset(parquet_source(tmp_path), batch_size=10).load_state_dict(state)
    with pytest.raises(ValueError, match=r"source.kind: 'parquet_source' in the state, 'array'"):
        StreamingDataset(np.ones((N, 2)), batch_size=10).load_state_dict(state)


@pytest.mark.parametrize("state", [{}, {"version": 99}, None, 5])
def test_what_is_no_state(state):
    with pytest.raises(ValueError, match="not a state of this version"):
        stream_of().load_state_dict(state)


def test_other_rows_at_the_same_place_are_an_error():
    """What no identity shows: a function that gives other rows, another preprocess_fn."""
    ds = StreamingDataset(np.arange(N), batch_size=10, preprocess_fn=lambda x: 2 * x)
    ds.advance()
    other = StreamingDataset(np.arange(N), batch_size=10, preprocess_fn=lambda x: 3 * x)
    with pytest.raises(ValueError, match=r"gives other rows before epoch 0, row 10 than it did"):
        other.load_state_dict(ds.state_dict())


def test_a_source_without_a_seed_takes_that_of_the_state(folder):
    def stream():
        source = parquet_source(folder, columns=["x"], shuffle_row_groups=True)
        return stream_of(source, seed=None)

    ds = stream()
    batches(ds, 7)
    again = stream()
    assert not np.array_equal(batches(again, 10), batches(ds, 10))
    again.load_state_dict(ds.state_dict())
    np.testing.assert_array_equal(batches(ds, 150), batches(again, 150))


def test_an_iterator_has_no_position():
    ds = StreamingDataset(iter([np.arange(100)]), batch_size=10)
    for call in (ds.state_dict, lambda: ds.load_state_dict({}), ds.reset, lambda: pickle.dumps(ds)):
        with pytest.raises(
            TypeError, match="its source is an iterator, which can be read only once"
        ):
            call()


def test_going_on_far_into_an_epoch_reads_one_buffer(folder):
    """Not what comes before."""

    def stream():
        source = parquet_source(folder, columns=["x"])
        return stream_of(source, buffer_size=50, prefetch=0), source

    ds, _ = stream()
    batches(ds, 90)
    again, source = stream()
    read, decoded = [], source._rows.block
    source._rows.block = lambda batch, where: (read.append(batch.num_rows), decoded(batch, where))[
        1
    ]
    again.load_state_dict(ds.state_dict())
    again.advance()
    assert 0 < sum(read) <= 4 * 90  # row groups have 90 rows


def test_a_function_is_read_up_to_the_position(capsys, caplog):
    calls = []

    def source():
        calls.append(None)
        return function_of(37)()

    ds = StreamingDataset(source, batch_size=10)
    batches(ds, 250)
    again = StreamingDataset(source, batch_size=10)
    with caplog.at_level("INFO"):
        again.load_state_dict(ds.state_dict())
    assert "cannot be opened in the middle: reading the 2,490 rows" in caplog.text
    assert "Reading stream again" in capsys.readouterr().out
    np.testing.assert_array_equal(batches(ds, 20), batches(again, 20))


def test_reading_up_to_the_position_can_be_interrupted():
    interrupts = []

    def source():
        for start in range(0, N, 20):
            if interrupts and start == 40:
                raise interrupts.pop()
            yield np.arange(start, start + 20)

    ds = StreamingDataset(source, batch_size=10, prefetch=0)
    batches(ds, 9)
    ds._reader.close()  # as after an error
    interrupts.append(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        ds.advance()
    assert ds.batches_seen == 9
    assert batches(ds, 1)[0][0] == 90


# Between fits


def held(kind="pymc-stream"):
    return [thread for thread in threading.enumerate() if thread.name == kind]


def model_of(ds, total_size=N):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 10)
        tensor = ds.as_tensor()
        observed = tensor if tensor.ndim == 1 else tensor[:, 0]
        pm.Normal("y", mu, 1, observed=observed, total_size=total_size)
    return model


def open_files(folder):
    return [fd for fd in Path("/proc/self/fd").iterdir() if str(folder) in str(fd.resolve())]


@pytest.mark.parametrize("kind", ["row groups", "function"])
def test_between_fits_a_stream_holds_no_thread_and_no_file(kind, folder, tmp_path):
    folder = shutil.copytree(folder, tmp_path / "events")  # which other tests' threads do not read
    others = set(held())
    ds = stream_of(SOURCES[kind](folder), buffer_size=500)
    assert set(held()) <= others and not open_files(folder)
    seen = []
    with model_of(ds):
        inference = pm.ADVI(random_seed=1)
        note = lambda *args: seen.append(ds.as_tensor().get_value().ravel().tolist())  # noqa: E731
        inference.fit(5, progressbar=False, callbacks=[note])
        for thread in set(held()) - others:
            thread.join(5)  # one on a function ends when it has what it reads
        assert set(held()) <= others and not open_files(folder)
        inference.refine(5, progressbar=False)
        ds.advance()
        note()
    again = stream_of(SOURCES[kind](folder), buffer_size=500)
    assert seen == [next(again).ravel().tolist() for _ in range(11)]


def test_a_reset_starts_again():
    ds = stream_of()
    first = batches(ds, 120)
    ds.reset()
    assert (ds.batches_seen, ds.epoch, ds.row) == (0, 0, 0)
    np.testing.assert_array_equal(batches(ds, 120), first)


def test_two_fits_with_one_seed_after_a_reset_are_the_same():
    ds = stream_of()
    means = []
    with model_of(ds):
        for reset in (False, True, False):
            if reset:
                ds.reset()
            means.append(pm.fit(20, progressbar=False, random_seed=1).mean.eval())
    assert means[0] == means[1] != means[2]


def test_order_raises_after_a_reset_too():
    rows = np.repeat(np.arange(10.0), 1000)
    ds = StreamingDataset(rows, batch_size=100, check_order="raise")
    for reset in (False, True):
        if reset:
            ds.reset()
        with model_of(ds, 10_000):
            with pytest.raises(pm.variational.streaming.StreamOrderWarning):
                pm.fit(100, progressbar=False)


@pytest.mark.parametrize(
    "dump", [pickle, cloudpickle, copy.deepcopy], ids=["pickle", "cloudpickle", "copy"]
)
def test_a_stream_is_pickled_with_its_position(dump):
    ds = stream_of()
    batches(ds, 33)
    if dump is copy.deepcopy:
        again = copy.deepcopy(ds)
    else:
        again = pickle.loads(dump.dumps(ds))
    np.testing.assert_array_equal(batches(ds, 100), batches(again, 100))


def test_models_and_approximations_with_streams_are_pickled():
    ds = stream_of()
    with model_of(ds) as model:
        approx = pm.fit(10, progressbar=False, random_seed=1)
    again = pickle.loads(cloudpickle.dumps(approx))
    np.testing.assert_array_equal(again.mean.eval(), approx.mean.eval())
    with pickle.loads(cloudpickle.dumps(model)) as copied:
        two = pm.fit(10, progressbar=False, random_seed=2)
    with model:
        one = pm.fit(10, progressbar=False, random_seed=2)
    np.testing.assert_array_equal(one.mean.eval(), two.mean.eval())


def test_a_function_in_a_pickle_is_read_up_to_the_position():
    ds = StreamingDataset(function_of(37), batch_size=10)
    batches(ds, 33)
    again = pickle.loads(cloudpickle.dumps(ds))
    np.testing.assert_array_equal(batches(ds, 100), batches(again, 100))


def _after_fork(ds, connection):
    try:
        connection.send(np.array(batches(ds, 5)))
    except Exception as error:
        connection.send(repr(error))


@pytest.mark.parametrize("kind", ["array", "function"])
def test_a_stream_that_was_started_before_a_fork(kind, folder):
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork here")
    ds = StreamingDataset(SOURCES[kind](folder), batch_size=10)
    batches(ds, 5)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = context.Process(target=_after_fork, args=(ds, there), daemon=True)
        child.start()
    try:
        assert here.poll(30), "the child hangs"
        got = here.recv()
    finally:
        child.kill()
    if kind == "function":
        assert "was started before this process was forked" in got
    else:
        np.testing.assert_array_equal(got, batches(ds, 5))


def test_docstring_examples_run():
    results = doctest.testmod(streaming)
    assert results.attempted
    assert not results.failed
