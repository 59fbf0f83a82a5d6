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
"""The log-density over all rows: that of the same model on arrays in memory, whatever streams."""

import os
import signal
import threading

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

import pymc as pm

from pymc.blocking import DictToArrayBijection, RaveledVars
from pymc.variational.streaming import (
    FullDataLogp,
    StreamingDataset,
    parquet_source,
    shuffle_buffer,
)

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

QUICK = "FAST_COMPILE"
N, B = 101, 10  # the last batch has one row
RNG = np.random.default_rng(1)
TABLE = {
    "x": RNG.normal(size=N),
    "z": RNG.normal(size=N),
    "group": RNG.integers(0, 5, N),
    "up": RNG.integers(0, 2, N),
    "count": RNG.poisson(3, N),
}
IN_MEMORY = np.linspace(-1, 2, 7)


def logistic(rows, total_size):
    b = pm.Normal("b", 0, 3, shape=3)
    logit = b[0] + b[1] * rows["x"] + b[2] * rows["z"]
    pm.Bernoulli("up", logit_p=logit, observed=rows["up"], total_size=total_size)


def hierarchical(rows, total_size):
    """Transformed parameters, one for each group of an integer column, and initial values."""
    sd = pm.HalfNormal("sd", 1, initval=0.3)
    effect = pm.Normal("effect", pm.Normal("mean", initval=0.5), sd, shape=5)
    noise = pm.LogNormal("noise")
    pm.Normal("x", effect[rows["group"]], noise, observed=rows["x"], total_size=total_size)


def several_observed(rows, total_size):
    """Two observed variables and a potential on the rows' stream, and one on data in memory."""
    mu, alpha = pm.Normal("mu", 0, 2), pm.Gamma("alpha", 2, 1)
    pm.StudentT("x", 5, mu=mu, sigma=1, observed=rows["x"], total_size=total_size)
    total_size = None if total_size is None else [total_size]
    pm.NegativeBinomial(
        "count", mu=pt.exp(mu), alpha=alpha, observed=rows["count"], total_size=total_size
    )
    pm.Normal("in_memory", mu, 0.5, observed=IN_MEMORY)
    pm.Potential("of_parameters", -pt.sqr(mu - alpha))
    pm.Potential("of_rows", -pt.sqr(rows["z"] - mu).sum() / 4)


def mixture(rows, total_size):
    w = pm.Dirichlet("w", np.ones(2))
    mu = pm.Normal(
        "mu", 0, 1, shape=2, transform=pm.distributions.transforms.ordered, initval=[-1, 1]
    )
    pm.NormalMixture("x", w, mu, 0.7, observed=rows["x"], total_size=total_size)


def censored(rows, total_size):
    mu, sd = pm.Normal("mu"), pm.Uniform("sd", 0.1, 3)
    pm.Censored(
        "x",
        pm.Normal.dist(mu, sd),
        lower=None,
        upper=3.5,
        observed=rows["x"],
        total_size=total_size,
    )
    pm.Truncated(
        "z",
        pm.Normal.dist(mu, 2),
        lower=-5,
        upper=None,
        observed=rows["z"],
        total_size=total_size,
    )


def columns_of(ds):
    return {name: ds[name] for name in TABLE}


def streamed(build, source=TABLE, batch_size=B, **kwargs):
    ds = StreamingDataset(source, batch_size=batch_size, **kwargs)
    with pm.Model() as model:
        build(columns_of(ds), ds.total_size)
    return model


def in_memory(build, table=TABLE):
    with pm.Model() as model:
        build({name: pt.as_tensor(values) for name, values in table.items()}, None)
    return model


def reference(model, q, jacobian=True):
    """Evaluate log-density, gradient and Hessian of data in memory, a column of it at a time."""
    values = model.value_vars
    info = DictToArrayBijection.map(model.initial_point(0)).point_map_info
    logp, directions = model.logp(jacobian=jacobian), [value.type() for value in values]
    gradient = pytensor.grad(logp, values)
    product = pytensor.grad(sum((g * v).sum() for g, v in zip(gradient, directions)), values)
    joined = [pt.concatenate([part.ravel() for part in parts]) for parts in (gradient, product)]
    function = pytensor.function([*values, *directions], [logp, *joined], mode=QUICK)
    point, *units = (
        [DictToArrayBijection.rmap(RaveledVars(row, info))[value.name] for value in values]
        for row in (q, *np.eye(len(q), dtype=q.dtype))
    )
    results = [function(*point, *unit) for unit in units]
    return *results[0][:2], np.array([column for *_, column in results])


def start(full, seed=2):
    """Return a point near the initial one."""
    q = full.ravel(full.model.initial_point(0))
    return q + np.random.default_rng(seed).uniform(-0.3, 0.3, len(q)).astype(q.dtype)


def check_same(results, expected, rtol=1e-10):
    for result, other in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, other, rtol, atol=rtol * np.max(np.abs(other)))


def full_of(model, **kwargs):
    compile_kwargs = {} if "backend" in kwargs else {"mode": QUICK}
    return FullDataLogp(model, progressbar=False, compile_kwargs=compile_kwargs, **kwargs)


@pytest.mark.filterwarnings("ignore:the Potential `of_rows`")
@pytest.mark.parametrize("build", [logistic, hierarchical, several_observed, mixture, censored])
def test_same_as_in_memory(build):
    full = full_of(streamed(build), n_threads=2)
    q = start(full)
    assert len(full.names) == len(q)
    assert full.n_rows == N
    check_same(full.d2logp(q), reference(in_memory(build), q))
    assert full.n_passes == 1


def test_two_streams_of_different_lengths():
    x, y = RNG.normal(size=(37, 2)), RNG.integers(0, 3, 50)

    def build(x, y, total_sizes):
        mu = pm.Normal("mu", 0, 2, shape=2)
        pm.Normal("x", mu, 1, observed=x, total_size=total_sizes[0])
        pm.Poisson("y", pt.exp(mu[0]), observed=y, total_size=total_sizes[1])

    with pm.Model() as model:
        streams = StreamingDataset(x, batch_size=5, name="x"), StreamingDataset(y, batch_size=16)
        build(*(ds.as_tensor() for ds in streams), [[37, 2], 50])
    with pm.Model() as other:
        build(x, y, [None, None])
    full = full_of(model)
    assert full.n_rows == 87
    check_same(full.d2logp(start(full)), reference(other, start(full)))


def test_rows_of_any_shape_in_tuples():
    arrays = RNG.normal(size=(23, 3, 4)), RNG.integers(0, 4, 23), RNG.normal(size=(23, 2))

    def build(cells, column, pair, total_size):
        b = pm.Normal("b", 0, 1, shape=(3, 4))
        mu = (cells * b).sum(axis=(1, 2)) + b[0, column]
        pm.Normal("y", mu[:, None], 1, observed=pair, total_size=total_size)

    with pm.Model() as model:
        ds = StreamingDataset(arrays, batch_size=4, dtype=["float64", "int64", "float64"])
        build(*ds.as_tensor(), 23)
    with pm.Model() as other:
        build(*map(pt.as_tensor, arrays), None)
    full = full_of(model)
    check_same(full.d2logp(start(full)), reference(other, start(full)))


def test_in_memory_minibatches_and_models_in_memory():
    with pm.Model() as model:
        x, z = pm.Minibatch(TABLE["x"], TABLE["z"], batch_size=B)
        b = pm.Normal("b", shape=2)
        pm.Normal("z", b[0] + b[1] * x, 1, observed=z, total_size=N)
    with pm.Model() as other:
        b = pm.Normal("b", shape=2)
        pm.Normal("z", b[0] + b[1] * TABLE["x"], 1, observed=TABLE["z"])
    q = np.array([0.3, -0.2])
    for full in (full_of(model), full_of(other)):
        check_same(full.d2logp(q), reference(other, q))


@pytest.fixture(scope="module")
def normal():
    """Make the log-density of numbers from a source, with unknown mean and sd."""

    def make(source, batch_size=B, n_threads=2, **kwargs):
        ds = StreamingDataset(source, batch_size=batch_size, **kwargs)
        with pm.Model() as model:
            mu, sd = pm.Flat("mu"), pm.HalfFlat("sd")
            total_size = ds.total_size or 1
            rows = ds["x"] if ds.columns else ds.as_tensor()
            pm.Normal("y", mu, sd, observed=rows, total_size=total_size)
        return full_of(model, n_threads=n_threads)

    return make


def log_density_of(values, q):
    """Return what it is of numbers in memory, written out."""
    z = (np.asarray(values) - q[0]) / np.exp(q[1])
    return q[1] - (0.5 * z**2 + q[1] + 0.5 * np.log(2 * np.pi)).sum()


def write(path, values, **kwargs):
    pq.write_table(pa.table({"x": values, "other": np.arange(len(values))}), path, **kwargs)


@pytest.fixture
def files(tmp_path):
    """Files with row groups of 7 and of 20 rows; the numbers 0 to 100."""
    write(tmp_path / "a.parquet", np.arange(50.0), row_group_size=7)
    write(tmp_path / "b.parquet", np.arange(50.0, N), row_group_size=20)
    return tmp_path


SOURCES = {
    "files": lambda folder: parquet_source(folder, columns=["x"]),
    "row groups in random order": lambda folder: parquet_source(folder, shuffle_row_groups=True),
    "shuffle_buffer": lambda folder: shuffle_buffer(
        parquet_source(folder), buffer_size=30, batch_size=8
    ),
    "two of them": lambda folder: shuffle_buffer(
        shuffle_buffer(parquet_source(folder), buffer_size=20, batch_size=5),
        buffer_size=30,
        batch_size=8,
    ),
    "function": lambda folder: lambda: np.split(np.arange(float(N)), [1, 50]),
    "blocks": lambda folder: np.split(np.arange(N), [40, 40, 99]),
    "array": lambda folder: np.arange(N),
    "table": lambda folder: pa.table({"x": np.arange(N)}),
}


@pytest.mark.parametrize(
    ("source", "batch_size"),
    [*((source, B) for source in SOURCES), ("files", 1), ("files", N), ("array", 1), ("array", 64)],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_row_of_any_source_counts_once(normal, files, source, batch_size):
    full = normal(SOURCES[source](files), batch_size)
    q = np.array([3.0, 1.5])
    for _ in range(2):
        assert full.logp(q) == pytest.approx(log_density_of(np.arange(N), q), rel=1e-10)
    assert (full.n_passes, full.n_rows) == (2, N)


def test_fewer_rows_than_a_batch_count_once(normal):
    full = normal(np.arange(3.0), batch_size=10)
    q = np.array([1.0, 0.5])
    assert full.logp(q) == pytest.approx(log_density_of(np.arange(3), q), rel=1e-10)
    assert full.n_rows == 3


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dropped_rows_and_preprocessed_ones(normal, tmp_path):
    values = np.where(np.arange(N) % 7 == 3, np.nan, np.arange(float(N)))
    write(tmp_path / "a.parquet", values, row_group_size=9)
    source = parquet_source(tmp_path, columns=["x"], missing="drop")
    full = normal(source, preprocess_fn=lambda block: {"x": block["x"] / 10})
    q = np.array([1.0, 0.5])
    kept = values[np.isfinite(values)] / 10
    assert full.logp(q) == pytest.approx(log_density_of(kept, q), rel=1e-10)
    assert full.n_rows == len(kept)


def test_results_are_the_same_to_the_last_bit_whatever_the_threads():
    rows = {name: np.resize(values, 40_000) for name, values in TABLE.items()}
    model = streamed(hierarchical, rows, batch_size=64)
    results = [full_of(model, n_threads=n) for n in (1, 2, 4)]
    results = [full.d2logp(start(full)) for full in results]
    for other in results[1:]:
        for value, expected in zip(other, results[0]):
            np.testing.assert_array_equal(value, expected)


def test_several_points_read_the_data_once(normal):
    opened = []

    def source():
        opened.append(1)
        return [np.arange(60.0)]

    full = normal(source)
    opened.clear()
    q = np.random.default_rng(0).normal(size=(5, 2))
    logp = full.logp(q)
    assert len(opened) == full.n_passes == 1
    assert logp.shape == (5,)
    np.testing.assert_allclose(logp, [log_density_of(np.arange(60), row) for row in q], 1e-10)
    assert isinstance(full.logp(q[0]), float)
    assert full.logp(full.point(q[1])) == logp[1]
    with pytest.raises(ValueError, match=r"shape \(2,\), or \(K, 2\).*got \(3,\).*mu.*sd_log__"):
        full.logp(np.zeros(3))


@pytest.mark.parametrize("backend", ["numba", "c", "jax"])
@pytest.mark.filterwarnings("ignore:the Potential")
def test_backends(backend):
    if backend == "jax":
        pytest.importorskip("jax")
    full = full_of(streamed(hierarchical), backend=backend, n_threads=2)
    q = start(full)
    check_same(full.d2logp(q), reference(in_memory(hierarchical), q))


def test_float32():
    with pytensor.config.change_flags(floatX="float32"):
        full = full_of(streamed(logistic))
        logp, gradient, hessian = full.d2logp(start(full))
        assert gradient.dtype == hessian.dtype == "float64"
        q = start(full)
    check_same((logp, gradient, hessian), reference(in_memory(logistic), q.astype(float)), 1e-5)


def test_without_jacobian_terms():
    full = full_of(streamed(hierarchical), jacobian=False)
    expected = reference(in_memory(hierarchical), start(full), jacobian=False)
    check_same(full.dlogp(start(full)), expected[:2])


def test_impossible_rows_give_minus_infinity():
    """Also where the batch that they are in is filled with copies of them."""
    with pm.Model() as model:
        ds = StreamingDataset(np.r_[np.ones(4), -1], batch_size=4, name="rows")
        pm.Exponential("y", pm.HalfNormal("rate"), observed=ds.as_tensor(), total_size=5)
    assert full_of(model).logp(np.zeros(1)) == -np.inf


def test_a_sample_of_rows_counts_for_all(normal):
    values = np.random.default_rng(3).normal(2, 3, size=20_000)
    full = normal(values, batch_size=256)
    q = np.array([2.1, 1.0])
    sample = full.sample(5_000, random_seed=1)
    # The log-density of a row has an sd of 0.8 here.
    assert sample.logp(q) == pytest.approx(log_density_of(values, q), abs=4 * 20_000 * 0.8 / 70)
    assert sample.logp(q) == full.sample(5_000, random_seed=1).logp(q)
    assert sample.logp(q) != full.sample(5_000, random_seed=2).logp(q)
    assert (full.n_passes, sample.n_passes) == (0, 3)
    whole = full.sample(30_000, random_seed=1)
    assert whole.logp(q) == pytest.approx(log_density_of(values, q), rel=1e-10)


def test_a_source_that_can_be_read_once_is_refused(normal):
    with pytest.raises(ValueError, match=r"'stream'.*only once.*fresh iterator, or files"):
        normal(iter([np.arange(20.0)]))
    blocks = iter([np.arange(20.0)] * 3)
    full = normal(lambda: blocks)
    full.logp(np.zeros(2))
    with pytest.raises(ValueError, match=r"'stream'.*read 0 rows, and the one before 40.*fresh"):
        full.logp(np.zeros(2))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("value", [np.nan, None])
def test_bad_data_in_mid_pass_name_file_row_group_and_column(normal, files, value):
    write(files / "c.parquet", [1.0, 2.0, 3.0, value], row_group_size=3)
    full = normal(parquet_source(files))
    with pytest.raises(ValueError, match=r"c\.parquet, row group 1, column 'x': 1 (null|NaN)"):
        full.logp(np.zeros(2))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("change", ["written again", "added", "removed"])
def test_files_that_change_between_passes_are_named(normal, files, change):
    full = normal(parquet_source(files, columns=["x"]))
    full.logp(np.zeros(2))
    if change == "removed":
        (files / "b.parquet").unlink()
    else:
        name = "b.parquet" if change == "written again" else "c.parquet"
        write(files / name, np.arange(70.0))
    with pytest.raises(RuntimeError, match=r"(b|c)\.parquet: (changed|added or removed) since"):
        full.logp(np.zeros(2))


@pytest.mark.parametrize("computed", [False, True])
def test_an_index_without_an_entry_in_a_later_row_is_refused(computed):
    group = np.r_[np.zeros(50, int), 5, np.zeros(50, int)]
    with pm.Model() as model:
        ds = StreamingDataset({"group": group, "x": np.zeros(N)}, batch_size=B)
        index = ds["group"] * 2 - ds["group"] if computed else ds["group"]
        mu = pm.Normal("mu", shape=5)[index]
        pm.Normal("x", mu, 1, observed=ds["x"], total_size=N)
    with pytest.raises(ValueError, match=r"5.* index into `mu`"):
        full_of(model).logp(np.zeros(5))


def test_an_interrupted_pass_leaves_nothing_behind(normal):
    armed, is_open = [], []

    def source():
        is_open.append(1)
        try:
            yield np.arange(60.0)
            if armed:
                os.kill(os.getpid(), signal.SIGINT)
                while True:  # until the pass is closed
                    yield np.zeros(10)
        finally:
            is_open.pop()

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    full = normal(source)
    q = np.array([1.0, 2.0])
    expected = full.logp(q)
    n_open = len(is_open)  # the stream's own, for its first batch
    armed.append(True)
    with pytest.raises(KeyboardInterrupt):
        full.logp(q)
    # One that was just being started ends by itself.
    for thread in [thread for thread in threading.enumerate() if thread.name == "pymc-pass"]:
        thread.join(timeout=10)
        assert not thread.is_alive()
    assert len(is_open) == n_open
    armed.clear()
    assert full.logp(q) == expected


def test_potentials_on_a_stream_are_added_up_as_they_are_written():
    with pm.Model() as model:
        ds = StreamingDataset(np.arange(float(N)), batch_size=B, name="rows")
        mu = pm.Flat("mu")
        pm.Potential("of_rows", -pt.sqr(ds.as_tensor() - mu).sum())
        pm.Potential("of_mu", -pt.sqr(mu))
    with pytest.warns(UserWarning, match="Potential `of_rows` is added up over all rows as it is"):
        full = full_of(model)
    assert full.logp(np.ones(1)) == pytest.approx(-np.square(np.arange(N) - 1.0).sum() - 1)


@pytest.mark.filterwarnings("ignore:the Potential")
@pytest.mark.parametrize("batch_size", [2, B])
def test_potentials_that_are_no_sum_over_rows_are_refused(batch_size):
    with pm.Model() as model:
        ds = StreamingDataset(np.arange(float(N)), batch_size=batch_size, name="rows")
        pm.Potential("largest", -pm.Normal("mu") * ds.as_tensor().max())
    with pytest.raises(ValueError, match="`largest`: of stream 'rows', no sum over the rows"):
        full_of(model)


def test_terms_of_two_sources_and_parameters_of_rows_are_refused():
    one, two = (StreamingDataset(np.arange(20.0), batch_size=5, name=name) for name in "ab")
    with pm.Model() as model:
        pm.Potential("both", pm.Normal("mu") * (one.as_tensor() * two.as_tensor()).sum())
    with pytest.raises(ValueError, match="`both` depends on rows of more than one source"):
        full_of(model)
    with pm.Model() as model:
        mu = pm.Normal("mu", one.as_tensor(), 1, shape=5)
        pm.Normal("y", mu, 1, observed=one.as_tensor(), total_size=20)
    with pytest.raises(ValueError, match="`mu`"):
        full_of(model)
