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
"""Passes by the workers of executors: processes of a pool, and of a Dask cluster."""

import multiprocessing
import os
import signal

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

import pymc as pm

from pymc.variational.streaming import (
    FullDataLogp,
    StreamingDataset,
    fit_report,
    parquet_source,
    shuffle_buffer,
    subsample_model,
)
from tests.conftest import require

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

N, N_GROUPS = 20_000, 5
Q = np.linspace(-0.3, 0.4, 2 + N_GROUPS)
QUICK = {"mode": "FAST_COMPILE"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(1)
    rows = {
        "x": rng.normal(size=N),
        "z": rng.normal(size=N),
        "group": rng.integers(0, N_GROUPS, N),
    }
    rows["up"] = (rng.random(N) < 1 / (1 + np.exp(-rows["x"]))).astype(int)
    for i, part in enumerate(np.split(np.arange(N), [7000, 7001, 15_000])):
        table = pa.table({name: values[part] for name, values in rows.items()})
        pq.write_table(table, folder / f"{i}.parquet", row_group_size=1300)
    return folder


@pytest.fixture(autouse=True, scope="module")
def small_groups():
    """Have some ten groups of pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pymc.streams.batches.BYTES_AT_ONCE", 2**13)
        patch.setattr("pymc.variational.all_rows.GROUP_PIECES", 9)
        yield


def model_of(source, **kwargs):
    """Return a logistic regression on a matrix product, groups, and data of the model."""
    ds = StreamingDataset(source, batch_size=64, check_order="ignore", **kwargs)
    with pm.Model() as model:
        scale = pm.Data("scale", np.array([1.0, 2.0]))
        slopes = pm.Normal("slopes", 0, 3, shape=2)
        effect = pm.Normal("effect", 0, 1, shape=N_GROUPS)
        x = pm.math.stack([ds["x"], ds["z"]], axis=1)
        logit = pm.math.dot(x, slopes * scale) + effect[ds["group"]]
        pm.Bernoulli("up", logit_p=logit, observed=ds["up"], total_size=ds.total_size)
    return model


def full_of(model, compile_kwargs=QUICK, **kwargs):
    return FullDataLogp(model, progressbar=False, compile_kwargs=compile_kwargs, **kwargs)


def everything(full):
    """Return what passes give: a sample and the log-density of some points too."""
    sample = full.sample(500, random_seed=1)
    [rows] = [part.rows for part in sample._parts if part.rows is not None]
    return [full.logp(np.stack([Q, -Q, 0 * Q])), *full.d2logp(Q), *rows.arrays]


def check_same(results, expected):
    for result, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, other)


@pytest.fixture(scope="module")
def expected(files, small_groups):
    full = full_of(model_of(parquet_source(files)), n_threads=1)
    [part] = [part for part in full._parts if part.rows is not None]
    assert len(part.rows.groups()) > 5
    return everything(full)


@pytest.fixture(scope="module")
def processes():
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as executor:
        yield executor


@pytest.fixture(scope="module")
def client():
    distributed = require("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_threads_give_the_same_bits_whatever_their_number(files, expected):
    full = full_of(model_of(parquet_source(files)), n_threads=2)
    check_same(everything(full), expected)


def test_a_process_pool_gives_the_same_bits(files, expected, processes):
    check_same(everything(full_of(model_of(parquet_source(files)), executor=processes)), expected)


@pytest.mark.slow
def test_a_process_pool_gives_the_same_bits_of_compiled_functions(files, processes):
    model = model_of(parquet_source(files))
    one, other = (full_of(model, None, **kwargs) for kwargs in ({}, {"executor": processes}))
    check_same(other.d2logp(Q), one.d2logp(Q))


def test_a_dask_cluster_gives_the_same_bits(files, expected, client):
    executor = client.get_executor()
    full = full_of(model_of(parquet_source(files)), executor=executor)
    check_same(everything(full), expected)


def test_a_worker_that_is_killed_in_mid_pass_changes_no_bit(files, expected, client, tmp_path):
    here, marker = os.getpid(), tmp_path / "killed"

    def killing(block):
        if os.getpid() != here and block["group"][0] == 3:
            try:
                marker.touch(exist_ok=False)
            except FileExistsError:
                return block
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    before = set(client.scheduler_info()["workers"])
    model = model_of(parquet_source(files), preprocess_fn=killing)
    full = full_of(model, executor=client.get_executor())
    check_same(full.d2logp(Q), expected[1:4])
    assert marker.exists()
    client.wait_for_workers(2, timeout=60)
    assert set(client.scheduler_info()["workers"]) != before


def test_a_shuffle_and_a_table_in_memory_go_to_workers_too(files, expected):
    source = parquet_source(files, shuffle_row_groups=True)
    table = {
        name: np.concatenate([block[name] for block in parquet_source(files)])
        for name in source.columns
    }
    with ThreadPoolExecutor(2) as executor:
        for rows in (shuffle_buffer(source, buffer_size=1000, batch_size=64), table):
            full = full_of(model_of(rows), executor=executor)
            check_same(full.d2logp(Q), expected[1:4])


def test_no_rows_travel_and_data_of_the_model_do_as_they_are(files, expected):
    sizes = []

    class Noting(ThreadPoolExecutor):
        def submit(self, work, tokens, sent, call):
            sizes.append(sum(map(len, sent.values())))
            return super().submit(work, tokens, sent, call)

    model = model_of(parquet_source(files))
    with Noting(1) as executor:
        full = full_of(model, executor=executor)
        assert full.logp(Q) == expected[0][0]
        assert 0 < max(sizes) < 100_000  # rows take 640,000
        sizes.clear()
        with model:
            pm.set_data({"scale": np.ones(2)})
        changed = full.logp(Q)
        assert changed == full_of(model, n_threads=1).logp(Q)
        assert changed != expected[0][0]
        assert 0 < max(sizes) < 1000  # the new values


def test_a_bad_index_and_an_error_of_preprocess_fn_are_told_as_they_are_here(files):
    here, bad = os.getpid(), []

    def preprocess(block):
        if len(bad) == 1:
            raise ZeroDivisionError("of the user")
        return block | {"group": block["group"] + 2 * len(bad)}

    model = model_of(parquet_source(files), preprocess_fn=preprocess)
    with ThreadPoolExecutor(2) as executor:
        full = full_of(model, executor=executor)
        full.logp(Q)
        bad += [0, 0]
        with pytest.raises(ValueError, match=r"column 'group': the value .* index into `effect`"):
            full.logp(Q)
        bad.pop()
        with pytest.raises(ZeroDivisionError, match="of the user"):
            full.logp(Q)


def test_a_source_without_ranges_is_refused(files):
    source = parquet_source(files)
    model = model_of(lambda: iter(source))
    with ThreadPoolExecutor(1) as executor:
        full = full_of(model, executor=executor)
        with pytest.raises(ValueError, match=r"stream 'stream': .*first row only.*pre_shuffle"):
            full.logp(Q)
        with pytest.raises(ValueError, match=r"stream 'stream': .*first row only.*pre_shuffle"):
            full.sample(10)


def mode_in_report(**kwargs):
    approx = pm.fit(1, init="initial_point", progressbar=False, random_seed=1)
    [row] = fit_report(approx, **kwargs).table.to_dict("records")
    return row["mean"] - row["mean - mode"] * row["sd"] / row["sd / marginal"]


def mode_of_subsample(**kwargs):
    small = subsample_model(n_rows=500, **kwargs)
    [slope] = small.compile_dlogp()({"mu": np.array(0.0)})
    return slope / N


MODES = {
    "laplace": lambda **kwargs: pm.fit(method="laplace", **kwargs).mean.eval(),
    "pathfinder": lambda **kwargs: pm.fit(method="pathfinder", num_paths=1, **kwargs).mean.eval(),
    "advi": lambda **kwargs: pm.fit(1, method="advi", init="mode", **kwargs).mean.eval(),
    "find_MAP": lambda **kwargs: pm.find_MAP(jitter=False, **kwargs)["mu"],
    "fit_report": mode_in_report,
    "subsample_model": mode_of_subsample,
}


@pytest.mark.parametrize("name", MODES)
@pytest.mark.filterwarnings("ignore")
def test_what_passes_over_all_rows_takes_an_executor(files, name, monkeypatch):
    """Its mode of a normal mean is the mean of the rows, within a tenth of a posterior sd."""
    monkeypatch.setattr("pymc.variational.laplace.SAMPLE_ROWS", 5000)
    tasks = []

    class Noting(ThreadPoolExecutor):
        def submit(self, *args):
            tasks.append(args)
            return super().submit(*args)

    source = parquet_source(files, columns=["x"])
    ds = StreamingDataset(source, batch_size=64, check_order="ignore")
    with Noting(2) as executor, pm.Model():
        pm.Normal("x", pm.Normal("mu", 0, 100), 1, observed=ds["x"], total_size=N)
        found = MODES[name](random_seed=1, progressbar=False, executor=executor)
    assert len(tasks) > 5
    mean = np.concatenate([block["x"] for block in source]).mean()
    assert found == pytest.approx(mean, abs=0.1 / N**0.5)
