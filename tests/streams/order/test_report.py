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
import datetime
import multiprocessing
import warnings

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

import pymc as pm

from pymc.streams.order.check import StreamOrderWarning
from pymc.streams.order.report import _order_of
from pymc.variational.streaming import (
    StreamingDataset,
    order_report,
    parquet_source,
    shuffle_buffer,
    split_rows,
)

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

N = 100_000


@pytest.fixture(scope="module")
def sorted_folder(tmp_path_factory):
    """Files of 100 row groups in all, sorted by a time that the model does not read."""
    folder = tmp_path_factory.mktemp("sorted")
    rng = np.random.default_rng(1)
    x = rng.normal(size=N) + np.linspace(0, 2, N)
    for i, rows in enumerate(np.split(np.arange(N), 4)):
        table = {
            "time": pa.array(rows * 1000, pa.timestamp("us")),
            "x": x[rows],
            "up": rng.random(len(rows)) < 0.01,
        }
        pq.write_table(pa.table(table), folder / f"{i}.parquet", row_group_size=1000)
    return folder


def order_warnings(source, batch_size=500, n_batches=0):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ds = StreamingDataset(source, batch_size=batch_size)
        for _ in range(n_batches):
            ds.advance()
    assert all(warning.category is StreamOrderWarning for warning in caught)
    return [str(warning.message) for warning in caught]


def buffered(source, buffer_size):
    return shuffle_buffer(source, buffer_size=buffer_size, batch_size=500, seed=1)


@pytest.mark.parametrize("buffer_size", [500, 10_000])
def test_sorted_files_are_noticed_before_the_first_step(sorted_folder, buffer_size):
    source = buffered(parquet_source(sorted_folder, columns=["x", "up"]), buffer_size)
    [message] = order_warnings(source)
    assert "column 'time' with a minimum and maximum that rise in 100% of 99 steps" in message
    assert "the mean of `x` over a batch of 500 rows varies" in message
    effect = float(message.split("varies ")[1].split(" times")[0])
    assert 80 < effect < 160  # 1 + 499 * (1/3) / (1 + 1/3), when windows are narrow
    assert 'pre_shuffle(source, "shuffled/", seed=0)' in message
    assert "shuffle_row_groups=True" in message
    assert len(order_warnings(source, n_batches=200)) == 1  # said once


def test_raise_stops_before_the_first_step(sorted_folder):
    source = parquet_source(sorted_folder, columns=["x", "up"])
    with pytest.raises(StreamOrderWarning, match=r"'time'"):
        StreamingDataset(source, batch_size=500, check_order="raise")


@pytest.mark.usefixtures("fail_on_warning")
def test_the_order_in_which_batches_are_drawn_is_checked(sorted_folder):
    columns = ["x", "up"]
    shuffled = parquet_source(sorted_folder, columns=columns, shuffle_row_groups=True, seed=1)
    assert order_warnings(buffered(shuffled, 20_000), n_batches=600) == []
    in_order = parquet_source(sorted_folder, columns=columns)
    assert order_warnings(buffered(in_order, N), n_batches=300) == []


@pytest.mark.parametrize("buffer_size", [500, 2000, 3000])
def test_too_few_row_groups_in_a_buffer(sorted_folder, buffer_size):
    source = parquet_source(sorted_folder, columns=["x"], shuffle_row_groups=True, seed=1)
    [message] = order_warnings(buffered(source, buffer_size), n_batches=300)
    assert f"a batch is drawn from only {max(1, buffer_size // 1000)} of them" in message
    assert "A shuffle_buffer of 10,000 rows or more holds enough of them" in message
    assert "shuffle_row_groups=True" not in message
    effect = float(message.split("varies ")[1].split(" times")[0])
    assert effect == pytest.approx(125 / max(1, buffer_size / 1000), rel=0.3)


@pytest.mark.parametrize("shuffle_row_groups", [False, True])
def test_a_wrapper_is_not_advised_to_do_what_it_may_do_already(sorted_folder, shuffle_row_groups):
    def source():
        files = parquet_source(
            sorted_folder, columns=["x"], shuffle_row_groups=shuffle_row_groups, seed=1
        )
        return ({"x": block["x"][block["x"] > 0]} for block in files)

    [message] = order_warnings(buffered(source, 2000), n_batches=150)
    assert "shuffle_row_groups" not in message
    assert 'pre_shuffle(source, "shuffled/", seed=0)' in message
    assert "if the source reads its parts in random order, take a buffer that holds more" in message
    assert 'check_order="ignore"' in message


@pytest.mark.usefixtures("fail_on_warning")
def test_few_row_groups_of_rows_in_random_order(tmp_path):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        table = {
            "x": rng.standard_cauchy(4000),
            "up": rng.random(4000) < 0.01,
            "one": np.ones(4000),
        }
        file = tmp_path / f"{seed}.parquet"
        pq.write_table(pa.table(table), file, row_group_size=[400, 1000, 2000][seed % 3])
        for random in (False, True):
            source = parquet_source(file, shuffle_row_groups=random, seed=1)
            assert order_warnings(buffered(source, 1000), n_batches=8) == []


NUMBERS = [(k, k + 1.5) for k in range(30)]


@pytest.mark.parametrize(
    "ranges, ordered",
    [
        (NUMBERS, "rise in 100% of 29 steps"),
        (NUMBERS[::-1], "fall in 100% of 29 steps"),
        ([*NUMBERS[:10], NUMBERS[3], *NUMBERS[10:]], "rise in 97% of 30 steps"),
        ([("a", "b"), ("c", "d"), ("c", "d"), ("e", "f")], "do not overlap"),
        ([(3, 4), (0, 1), (7, 9)], "do not overlap"),  # by key, the keys in no order
        ([(0, 0)] * 5 + [(1, 1)] * 4, "do not overlap"),  # by label
        ([(k, k + 1) for k in range(5)], "do not overlap"),  # touching
        ([(datetime.date(2026, 1, d), datetime.date(2026, 1, d)) for d in range(1, 9)], "overlap"),
        ([(0, 0)] * 9, None),
        ([(0, 1)] * 9, None),
        ([(0, 0)] * 30 + [(0, 1)], None),  # a rare label
        ([(0, 0), (0, 1), (0, 0), (0, 0), (0, 1), (0, 0)], None),
        ([(0, 3), (1, 4)], None),
        ([(0, 1)], None),
    ],
)
def test_order_of_ranges(ranges, ordered):
    share, how = _order_of(ranges, group_rows=1000)
    assert (share > 0.9) == (ordered is not None)
    assert (ordered or "") in how


@pytest.mark.parametrize("n_groups", [2, 3, 5, 8, 12, 20, 50, 500])
def test_ranges_of_rows_in_random_order_have_no_order(n_groups):
    rng = np.random.default_rng(n_groups)
    for _ in range(200):
        draws = [
            rng.normal(size=(n_groups, 50)),
            rng.random((n_groups, 50)) < 0.01,
            np.minimum(rng.exponential(size=(n_groups, 50)), 1),
            rng.poisson(0.05, size=(n_groups, 50)),
        ]
        for rows in draws:
            ranges = list(zip(rows.min(axis=1).tolist(), rows.max(axis=1).tolist()))
            assert _order_of(ranges, group_rows=50) == (0.0, "")


def test_report_of_files(sorted_folder):
    source = parquet_source(sorted_folder, columns=["x", "up"])
    report = order_report(buffered(source, 10_000), batch_size=500)
    assert (report.n_rows, report.buffer_size, report.batch_size) == (N, 10_000, 500)
    assert list(report.table.index) == ["x", "up", "x ** 2", "x * up", "up ** 2"]
    x = report.table.loc["x"]
    # The variance of a drift over 2 sds is 1/3, and 1 that of the noise.
    assert x["icc"] == pytest.approx(0.25, rel=0.05)
    assert x["in order"] == pytest.approx(1 + 499 * 0.25, rel=0.1)
    assert x["row groups at random"] == pytest.approx(1 + 499 * 0.25 / 10, rel=0.15)
    assert report.table.loc["up", "in order"] < 1.5
    # Plain numbers, in the units of the columns.
    assert list(report.means.columns) == ["x", "up"]
    assert report.means["x"].iloc[-1] - report.means["x"].iloc[0] == pytest.approx(2, abs=0.2)
    text = repr(report)
    assert "drawn from 10,000 of 100,000 rows" in text
    assert "row groups at random" in text
    assert "<table" in report._repr_html_()


def test_report_of_a_buffer_that_holds_all(sorted_folder):
    report = order_report(buffered(parquet_source(sorted_folder, columns=["x"]), N))
    assert (report.table["in order"] == 1).all()


def test_report_leaves_the_stream_as_it_was(sorted_folder):
    source = parquet_source(sorted_folder, columns=["x"], shuffle_row_groups=True, seed=1)
    rows = buffered(source, 10_000)
    order_report(rows)
    first = next(iter(rows))["x"]
    source = parquet_source(sorted_folder, columns=["x"], shuffle_row_groups=True, seed=1)
    np.testing.assert_array_equal(first, next(iter(buffered(source, 10_000)))["x"])


def test_report_of_other_sources():
    rng = np.random.default_rng(1)
    x = np.sort(rng.normal(size=(N, 2)), axis=0)
    report = order_report(x, batch_size=1000)
    assert list(report.table.columns) == ["icc", "in order"]
    assert report.table.loc["array[0]", "in order"] > 900
    with pytest.raises(TypeError, match=r"read only once"):
        order_report(iter([x]))


SOURCES = {
    "files": lambda folder: parquet_source(folder, columns=["x", "up"]),
    "buffer": lambda folder: buffered(
        parquet_source(folder, columns=["x", "up"], missing="drop"), 3333
    ),
    "array": lambda folder: np.random.default_rng(1).normal(size=(N, 2)).cumsum(axis=0),
    "table": lambda folder: pq.read_table(folder, columns=["x", "up"]),
    "part": lambda folder: split_rows(
        {"x": np.arange(N) ** 0.5, "y": np.arange(N) % 7}, 0.6, seed=1
    )[0],
}


@pytest.mark.parametrize("source", SOURCES)
def test_report_by_an_executor(sorted_folder, source, monkeypatch):
    monkeypatch.setattr("pymc.streams.order.pieces.MOST_TASKS", 30)
    monkeypatch.setattr("pymc.streams.order.pieces.PIECE_BYTES", 16 * 1500)
    source = SOURCES[source](sorted_folder)
    expected = order_report(source, batch_size=700)
    with ThreadPoolExecutor(2) as executor:
        report = order_report(source, batch_size=700, executor=executor)
    pd.testing.assert_frame_equal(report.table, expected.table, check_exact=True)
    pd.testing.assert_frame_equal(report.means, expected.means, check_exact=True)
    assert (report.n_rows, report.buffer_size) == (expected.n_rows, expected.buffer_size)
    assert (report.table["in order"] > 2).any()


@pytest.mark.slow
def test_report_by_processes(sorted_folder):
    source = parquet_source(sorted_folder, columns=["x", "up"])
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as executor:
        report = order_report(source, batch_size=700, executor=executor)
    expected = order_report(source, batch_size=700).table
    pd.testing.assert_frame_equal(report.table, expected, check_exact=True)


def test_report_by_an_executor_of_what_it_cannot_read():
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(ValueError, match=r"from its first row only\. Write it to Parquet"):
            order_report(lambda: [np.zeros((9, 1))], executor=executor)


@pytest.mark.parametrize("n_windows", [2, 3, 15, 60])
@pytest.mark.parametrize("buffer_size", [4096, 10_000])
def test_few_windows_of_rows_in_random_order_are_fair(n_windows, buffer_size):
    """But for one in a thousand."""
    effects = []
    for seed in range(8):
        rng = np.random.default_rng([n_windows, seed])
        n = 4096 * n_windows
        rows = {
            "x": rng.normal(size=n),
            "up": rng.random(n) < 0.02,
            "wait": rng.exponential(size=n),
            "k": rng.integers(0, 9, n),
        }
        rows = shuffle_buffer(rows, buffer_size=buffer_size, batch_size=4096)
        effects.append(order_report(rows).table["in order"].max())
    assert sum(effect >= 2 for effect in effects) <= 1


def test_report_plots(sorted_folder):
    pytest.importorskip("matplotlib")
    figure = order_report(
        parquet_source(sorted_folder, columns=["x", "up"]), batch_size=1000
    ).plot()
    assert [axes.get_ylabel() for axes in figure.axes] == ["x", "up"]
    assert len(figure.axes[0].lines[0].get_xdata()) == 100


@pytest.mark.parametrize("buffer_size", [3000, 10_000, 50_000])
def test_prediction_for_random_row_groups(sorted_folder, buffer_size):
    """The design effect of batches, measured over many epochs, is the predicted one."""
    source = parquet_source(sorted_folder, columns=["x"], shuffle_row_groups=True, seed=1)
    rows = shuffle_buffer(source, buffer_size=buffer_size, batch_size=500, seed=1)
    predicted = order_report(rows, batch_size=500).table.loc["x", "row groups at random"]
    means = [batch["x"].mean() for _ in range(60) for batch in rows]
    x = np.concatenate([block["x"] for block in source])
    measured = np.var(means) * 500 / x.var()
    assert measured == pytest.approx(predicted, rel=0.25)


def test_large_row_groups_meet_in_a_buffer(tmp_path):
    """Whatever their size: 20 row groups of 50,000 rows, and a buffer of 300,000."""
    n, size = 20, 50_000
    pq.write_table(
        pa.table({"group": np.repeat(np.arange(n), size)}), tmp_path / "a", row_group_size=size
    )
    source = parquet_source(tmp_path / "a", shuffle_row_groups=True, seed=1)
    assert source.row_groups_in(300_000) == 16
    rows = shuffle_buffer(source, buffer_size=300_000, batch_size=1000, seed=1)
    batches = [batch["group"] for batch in rows]
    assert all(len(np.unique(batch)) >= 12 for batch in batches[:900])
    np.testing.assert_array_equal(np.bincount(np.concatenate(batches)), size)


def test_minibatch_takes_check_order(sorted_folder):
    source = parquet_source(sorted_folder, columns=["x"])
    with pytest.raises(StreamOrderWarning, match=r"'time'"):
        pm.Minibatch(source, batch_size=500, check_order="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pm.Minibatch(source, batch_size=500, check_order="ignore")


@pytest.mark.parametrize("missing", ["raise", "drop"])
def test_row_groups_without_rows_or_statistics(tmp_path, missing):
    """They hide neither the order of the others nor stop the look at a few of them."""
    rng = np.random.default_rng(1)
    with pq.ParquetWriter(tmp_path / "a", pa.schema({"time": "int64", "x": "float64"})) as writer:
        for k in range(30):
            x = rng.normal(size=100) + k
            if missing == "drop" and k % 10 == 3:
                x[:] = np.nan
            time = pa.array(np.arange(100) + 100 * k, mask=np.full(100, k % 10 == 5))
            writer.write_table(pa.table({"time": time, "x": x}))
    source = parquet_source(tmp_path / "a", columns=["x"], missing=missing)
    [message] = order_warnings(source, batch_size=50)
    assert "'time'" in message or "'x'" in message
    source = parquet_source(tmp_path / "a", columns=["x"], missing=missing, shuffle_row_groups=True)
    [message] = order_warnings(source, batch_size=50)
    assert "random order" in message


@pytest.mark.parametrize("shuffled", [True, False])
def test_row_groups_in_random_order_are_no_first_part(sorted_folder, shuffled, recwarn):
    source = parquet_source(sorted_folder, columns=["x"], shuffle_row_groups=shuffled, seed=1)
    batch = StreamingDataset(source, batch_size=100)["x"]
    with pm.Model():
        pm.Normal("y", pm.Normal("mu"), 1, observed=batch, total_size=N)
        pm.fit(5, progressbar=False)
    assert any("of an epoch" in str(w.message) for w in recwarn) != shuffled


def test_windows_that_end_within_row_groups_are_no_order(tmp_path):
    """A few rows at an end, and the few windows of two row groups, say nothing of the others."""
    rng = np.random.default_rng(3)
    for i, n_rows in enumerate((5034, 5082, 4918, 4960)):
        table = pa.table({"x": rng.normal(size=n_rows), "y": rng.integers(0, 2, n_rows)})
        pq.write_table(table, tmp_path / f"{i}.parquet", row_group_size=1 << 20 if i % 2 else 1024)
    report = order_report(parquet_source(tmp_path), batch_size=512)
    assert report.table["in order"].max() < 2
