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

from pathlib import Path

import numpy as np
import pandas as pd
import pytensor.tensor as pt
import pytest
import scipy.sparse
import xarray as xr

import pymc as pm

from pymc.data import MinibatchOp
from pymc.model.transform.basic import remove_minibatched_nodes
from pymc.variational.opvi import NotImplementedInference
from pymc.variational.stream_minibatch import is_stream_source
from tests.conftest import require

fit_kwargs = {"progressbar": False, "random_seed": 1}


def blocks_of(rows):
    return [rows[:70], rows[70:]]


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: lambda: iter(blocks_of(rows)),
        lambda rows: iter(blocks_of(rows)),
        lambda rows: (block for block in blocks_of(rows)),
        lambda rows: {"a": rows[:, 0], "b": rows[:, 1]},
    ],
    ids=["callable", "iterator", "generator", "mapping"],
)
def test_minibatch_streams_sources(make):
    rows = np.arange(200.0).reshape(100, 2)
    batch = pm.Minibatch(make(rows), batch_size=np.int64(10))
    assert isinstance(batch.owner.op, MinibatchOp)
    assert batch.name == "minibatch.0"
    assert batch.type.shape == (10, 2)
    with pm.Model():
        mu = pm.Normal("mu")
        pm.Normal("y", mu * batch[:, 0], 1, observed=batch[:, 1], total_size=100)
        pm.fit(8, **fit_kwargs)
    [ds] = {buffer.tag.stream for buffer in batch.owner.inputs}
    assert ds.batches_seen == 8


def test_minibatch_of_tuples_gives_tensors_that_advance_together():
    rows = np.arange(100.0)
    x, y = pm.Minibatch(lambda: [(rows[:, None], -rows)], batch_size=10)
    assert [x.name, y.name] == ["minibatch.0", "minibatch.1"]
    with pm.Model():
        mu = pm.Normal("mu")
        pm.Normal("y", mu * x[:, 0], 1, observed=y, total_size=100)
        pm.fit(3, **fit_kwargs)
    [ds] = {buffer.tag.stream for buffer in x.owner.inputs}
    assert ds.batches_seen == 3
    [one, two] = pm.draw([x, y])
    np.testing.assert_array_equal(one[:, 0], -two)
    np.testing.assert_array_equal(two, -rows[20:30])


def test_minibatch_refuses_two_sources():
    def make():
        return [np.zeros(10)]

    for sources in [(make, make), (np.zeros(10), make), (make, np.zeros(10))]:
        with pytest.raises(TypeError, match="one streamed source: two would drift apart"):
            pm.Minibatch(*sources, batch_size=5)


def test_what_pymc_does_for_minibatches_holds_for_streams():
    batch = pm.Minibatch(lambda: [np.arange(10.0)], batch_size=5)
    with pm.Model(), pytest.warns(UserWarning, match="total_size not provided.*`y`"):
        pm.Normal("y", 0, 1, observed=batch)
    with pm.Model() as model:
        mu = pm.Normal("mu")
        pm.Normal("y", mu, 1, observed=batch, total_size=10)
        with pytest.raises(NotImplementedInference, match="SVGD does not currently support"):
            pm.fit(5, method="svgd", **fit_kwargs)
    plain = remove_minibatched_nodes(model)
    assert not isinstance(plain.rvs_to_values[plain["y"]].owner, MinibatchOp)
    assert np.isfinite(plain.compile_logp()(plain.initial_point()))


@pytest.mark.parametrize(
    "data",
    [
        np.arange(6.0),
        [1.0, 2.0, 3.0],
        [[1, 2], [3, 4]],
        (1.0, 2.0, 3.0),
        range(4),
        pd.Series([1.0, 2.0]),
        pd.DataFrame({"x": [1.0, 2.0]}),
        xr.DataArray([1.0, 2.0]),
        scipy.sparse.csr_array(np.eye(2)),
        pt.arange(5),
        np.float64(3.0),
    ],
    ids=lambda data: type(data).__name__,
)
def test_what_is_in_memory_is_no_stream(data):
    assert not is_stream_source(data)


@pytest.mark.parametrize("path", ["events/", Path("events")])
def test_a_path_is_pointed_to_parquet_source(path):
    with pytest.raises(TypeError, match=r"parquet_source\('events/?'\)"):
        pm.Minibatch(path, batch_size=5)


def test_arrow_tables_stream():
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"x": np.arange(10.0), "y": np.arange(10)})
    assert pm.Minibatch(table, batch_size=5).type.shape == (5, 2)


def on_disk(kind, path, values):
    """Write an array to disk, and open it there."""
    if kind == "memmap":
        np.save(path / "values.npy", values)
        return np.load(path / "values.npy", mmap_mode="r")
    if kind == "h5py":
        file = require("h5py").File(path / "values.h5", "w")
        return file.create_dataset("values", data=values, chunks=(7, *values.shape[1:]))
    if kind == "dask":
        return require("dask.array").from_array(values, chunks=7)
    chunks = (7, *values.shape[1:])
    return require("zarr").array(values, chunks=chunks, store=str(path / "values.zarr"))


@pytest.mark.parametrize("kind", ["memmap", "h5py", "zarr", "dask"])
def test_arrays_on_disk_stream(kind, tmp_path):
    rows = np.arange(60.0).reshape(30, 2)
    values = on_disk(kind, tmp_path, rows)
    batch = pm.Minibatch(values, batch_size=10)
    [stream] = {buffer.tag.stream for buffer in batch.owner.inputs}
    assert stream.total_size == 30
    np.testing.assert_array_equal(np.concatenate([next(stream) for _ in range(3)]), rows)
    x, y = pm.Minibatch(values, np.arange(30), batch_size=10)
    x, y = pm.draw([x, y])
    np.testing.assert_array_equal(x[:, 0], 2 * y)


def test_a_table_with_keys_streams():
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"carrier": ["UA", "AA"] * 10, "delay": np.arange(20.0)})
    batch = pm.draw(pm.Minibatch(frame, batch_size=4))
    np.testing.assert_array_equal(batch, [[1, 0], [0, 1], [1, 2], [0, 3]])


def test_a_result_of_nothing_but_a_stream_has_no_observed_data():
    batch = pm.Minibatch(lambda: [np.arange(100.0)], batch_size=10)
    with pm.Model():
        mu = pm.Normal("mu", 0, 10)
        pm.Normal("y", mu, 1, observed=batch, total_size=100)
        result = pm.fit(3, progressbar=False, random_seed=1).sample(5, random_seed=1)
    assert list(result.observed_data) == []


def test_prior_predictive_is_where_it_belongs():
    observed = pm.Minibatch(lambda: [np.arange(100.0)], batch_size=10)
    with pm.Model():
        mu = pm.Normal("mu", 0, 10)
        pm.Normal("y", mu, 1, observed=observed, total_size=100)
        prior = pm.sample_prior_predictive(20, random_seed=1)
    assert list(prior.prior) == ["mu"]
    assert prior.prior_predictive["y"].shape == (1, 20, 10)
    assert list(prior.observed_data) == []
