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
import warnings

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

import pymc as pm

from pymc.variational.stream_checks import check_streams
from pymc.variational.streaming import StreamingDataset


def numbered(n=1000, batch_size=10, **kwargs):
    """Stream the numbers 0, 1, 2, ... in order, so that a batch tells which one it is."""
    return StreamingDataset(np.arange(n), batch_size=batch_size, **kwargs)


def model_of(ds, total_size="auto"):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1000)
        total_size = ds.total_size if total_size == "auto" else total_size
        pm.Normal("y", mu, 1, observed=ds.as_tensor(), total_size=total_size)
    return model


fit_kwargs = {"progressbar": False, "random_seed": 1}


@pytest.mark.parametrize("total_size", [None, 0])
def test_missing_total_size_is_an_error(total_size):
    """It names the variable and the value."""
    with model_of(numbered(), total_size=total_size):
        with pytest.raises(ValueError, match=r"`y` uses the stream 'stream' .*total_size=1000\."):
            pm.fit(5, **fit_kwargs)


def test_missing_total_size_that_nobody_knows_is_an_error():
    ds = StreamingDataset(lambda: [np.zeros(20)], batch_size=10)
    with model_of(ds), pytest.raises(ValueError, match=r"`y`.*total_size=N, .*does not tell it"):
        pm.fit(5, **fit_kwargs)


@pytest.mark.parametrize("total_size", [100, [100, ...], (100, None)])
def test_wrong_total_size_is_said_before_the_first_step(total_size):
    ds = StreamingDataset(np.zeros((1000, 2)), batch_size=10)
    with model_of(ds, total_size=total_size):
        with pytest.warns(UserWarning, match=r"total_size=100 \(.*`y`\).* 1000\..*total_size=1000"):
            pm.fit(1, **fit_kwargs)


def test_wrong_total_size_is_said_after_one_epoch():
    ds = StreamingDataset(lambda: [np.zeros(20)], batch_size=10)
    with model_of(ds, total_size=30):
        pm.fit(2, **fit_kwargs)
        with pytest.warns(UserWarning, match=r"total_size=30 \(.*`y`\).* 20\..*total_size=20"):
            pm.fit(1, **fit_kwargs)


@pytest.mark.parametrize(
    ("reshape", "total_size", "counts"),
    [
        ("T", 1000, 2500),
        ("T", [None, 1000], None),
        ("flatten", 1000, 250),
        ("flatten", 4000, None),
        ("none", 1000, None),
        ("none", [1000, 4], None),
    ],
)
def test_total_size_counts_rows_whatever_the_shape(reshape, total_size, counts):
    """What counts is the factor on the log-likelihood, N / batch_size."""
    ds = StreamingDataset(np.zeros((1000, 4)), batch_size=10)
    buf = ds.as_tensor()
    observed = {"T": buf.T, "flatten": buf.flatten(), "none": buf}[reshape]
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1000)
        pm.Normal("y", mu, 1, observed=observed, total_size=total_size)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        check_streams(model)
    said = [str(warning.message) for warning in caught]
    assert len(said) == (counts is not None)
    assert all(f"total_size={counts} (observed variable `y`)" in message for message in said)


def test_a_mended_total_size_is_not_said_again():
    """What the last model passed does not outlive it."""
    ds = StreamingDataset(lambda: [np.zeros(20)], batch_size=10)
    with pm.Model():
        pm.Normal("wrong", pm.Normal("mu"), 1, observed=ds.as_tensor(), total_size=30)
        pm.fit(1, **fit_kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with model_of(ds, total_size=20):
            pm.fit(4, **fit_kwargs)


def test_a_stream_that_another_model_scales_is_still_said():
    ds = numbered()
    with model_of(ds):
        pm.fit(1, **fit_kwargs)
    with pm.Model():
        pm.Potential("p", -pt.sqr(ds.as_tensor() - pm.Normal("mu")).sum())
        with pytest.warns(UserWarning, match="'stream' enters the model other than"):
            pm.fit(1, **fit_kwargs)


@pytest.mark.parametrize("of", ["the rows", "the parameters"])
def test_a_potential_beside_an_observed_variable_is_said(of):
    ds = numbered(n=10)
    with model_of(ds) as model:
        term = ds.as_tensor().sum() if of == "the rows" else pt.zeros(())
        pm.Potential("p", model["mu"] * term)
        if of == "the rows":
            with pytest.warns(UserWarning, match="'stream' enters .*Potential.*N / 10 yourself"):
                pm.fit(1, **fit_kwargs)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                pm.fit(1, **fit_kwargs)


def test_right_total_size_is_silent(fail_on_warning):
    ds = StreamingDataset(lambda: [np.zeros(20)], batch_size=10)
    for total_size in (20, np.int64(20), [20]):
        if isinstance(total_size, np.integer):
            total_size = int(total_size)
        with model_of(ds, total_size=total_size):
            pm.fit(3, **fit_kwargs)


def test_two_streams_in_one_likelihood_are_refused():
    with pm.Model():
        b = pm.Normal("b")
        x, y = numbered(name="features"), numbered(name="labels")
        pm.Normal("y", b * x.as_tensor(), 1, observed=y.as_tensor(), total_size=1000)
        with pytest.raises(ValueError, match=r"`y` uses 2 streams.*features.*drift apart"):
            pm.fit(5, **fit_kwargs)


def test_a_stream_and_an_in_memory_minibatch_are_refused():
    with pm.Model():
        b = pm.Normal("b")
        y = pm.Minibatch(np.arange(1000, dtype=pytensor.config.floatX), batch_size=10)
        pm.Normal("y", b * numbered().as_tensor(), 1, observed=y, total_size=1000)
        with pytest.raises(ValueError, match=r"in-memory pm\.Minibatch, which draws other rows"):
            pm.fit(5, **fit_kwargs)


@pytest.mark.parametrize("data", ["constant", "pm.Data"])
def test_labels_that_stay_while_features_move_are_refused(data):
    labels = np.arange(10.0)
    with pm.Model():
        b = pm.Normal("b")
        observed = pm.Data("labels", labels) if data == "pm.Data" else labels
        pm.Normal("y", b * numbered().as_tensor(), 1, observed=observed, total_size=1000)
        with pytest.raises(ValueError, match="stay the same while the rows change"):
            pm.fit(5, **fit_kwargs)


@pytest.mark.parametrize("data", ["constant", "pm.Data"])
def test_features_that_stay_while_labels_move_are_refused(data):
    features = np.arange(10.0)
    with pm.Model():
        b = pm.Normal("b", np.arange(3.0), 1, shape=3)
        x = pm.Data("x", features) if data == "pm.Data" else features
        pm.Normal("y", b[0] * x, 1, observed=numbered().as_tensor(), total_size=1000)
        with pytest.raises(ValueError, match=r"`y`: .*An array .*10 entries, .* stays the same"):
            pm.fit(1, **fit_kwargs)


def test_priors_as_long_as_a_batch_are_silent(fail_on_warning):
    rows = StreamingDataset(np.arange(40.0).reshape(10, 4), batch_size=4)
    with pm.Model() as model:
        b = pm.Normal("b", np.arange(4.0), 1)
        pm.Normal("y", rows.as_tensor() @ b, 1, observed=rows.as_tensor()[:, 0], total_size=10)
        check_streams(model)


def test_ones_trick_is_allowed():
    ds = StreamingDataset(np.full(100, 0.5), batch_size=10)
    with pm.Model():
        b = pm.Normal("b")
        p = pm.math.sigmoid(b * ds.as_tensor())
        pm.Bernoulli("y", p, observed=np.ones(10), total_size=100)
        pm.fit(5, **fit_kwargs)
    assert ds.batches_seen == 5


@pytest.mark.parametrize("score", [True, False])
@pytest.mark.parametrize("passed", ["no callback", "fit_callback", "advance"])
@pytest.mark.parametrize("n", [8, 20])
def test_a_one_shot_iterator_that_runs_dry(n, passed, score):
    """The fit stops, says so, and keeps what it has."""
    ds = StreamingDataset((np.zeros(10) for _ in range(5)), batch_size=10)
    callbacks = {
        "no callback": [],
        "fit_callback": [ds.fit_callback()],
        "advance": [lambda *args: ds.advance()],
    }[passed]
    with model_of(ds, total_size=50) as model:
        inference = pm.ADVI(random_seed=1)
        with pytest.warns(UserWarning, match=f"5 of {n} steps of the fit are done"):
            approx = inference.fit(n, callbacks=callbacks, progressbar=False, score=score)
    assert ds.batches_seen == 5
    assert np.isfinite(approx.mean.eval()).all()
    if score and passed != "advance":
        assert len(approx.hist) == 5


def test_a_one_shot_iterator_that_lasts_is_silent(fail_on_warning):
    ds = StreamingDataset((np.zeros(10) for _ in range(5)), batch_size=10)
    with model_of(ds, total_size=50):
        approx = pm.fit(5, **fit_kwargs)
    assert len(approx.hist) == 5


@pytest.mark.parametrize("one_shot", [True, False])
def test_the_end_of_a_fit_says_why_the_stream_has_ended(one_shot):
    source = iter([np.zeros(100)]) if one_shot else np.zeros(100)
    ds = StreamingDataset(source, batch_size=10, cycle=False)
    why = "The source can be read only once" if one_shot else "With cycle=True it goes on"
    with model_of(ds, 100), pytest.warns(UserWarning, match=rf"10 of 20 steps .* {why}"):
        pm.fit(20, progressbar=False)


TABLE = {"g": np.arange(1000) % 5, "h": np.arange(1000) % 7, "y": np.zeros(1000)}


@pytest.mark.parametrize(
    ("lookup", "bounds"),
    [
        (lambda effect, ds: effect[ds["g"], 0], {(0, 0): (5, "effect")}),
        (
            lambda effect, ds: effect[ds["g"], ds["h"]],
            {(0, 0): (5, "effect"), (0, 1): (8, "effect")},
        ),
        (lambda effect, ds: effect[ds.as_tensor()[:, 0].astype(int), 0], {(0, 0): (5, "effect")}),
        (lambda effect, ds: pt.take(effect, ds["h"], axis=1)[0], {(0, 1): (8, "effect")}),
        (lambda effect, ds: effect[0][ds["h"]] + effect[0, 1:][ds["h"]], {(0, 1): (7, "effect")}),
        (
            lambda effect, ds: effect[0][ds.as_tensor()[:, :2].astype(int)].sum(1),
            {(0, 0): (8, "effect"), (0, 1): (8, "effect")},
        ),
        # Computed from a column: the column itself may be anything.
        (lambda effect, ds: effect[0, ds["g"] - 1] + effect[0, ds["h"] % 5], {}),
        (lambda effect, ds: effect[pt.clip(ds["h"], 0, 4), 0], {}),
        (lambda effect, ds: pt.switch(ds["g"] > 0, effect[ds["g"] - 1, 0], 0), {}),
    ],
)
def test_columns_that_are_indices_have_bounds(lookup, bounds):
    ds = StreamingDataset(lambda: [TABLE], batch_size=10, total_size=1000)
    with pm.Model() as model:
        effect = pm.HalfNormal("effect", shape=(5, 8))
        pm.Normal("y", lookup(effect, ds), 1, observed=ds["y"], total_size=1000)
    check_streams(model)
    assert ds._index_checks.bounds == bounds


@pytest.mark.parametrize("wrong", [7, -1])
def test_an_index_without_an_entry_is_an_error(wrong):
    group = np.arange(100) % 5
    group[57] = wrong
    rows = {"g": group, "y": np.zeros(100)}
    ds = StreamingDataset(rows, batch_size=10, name="rows")
    ds._set_index_bounds({(0, 0): (5, "effect")})
    for _ in range(5):
        ds.advance()
    for _ in range(2):  # it does not go on without these rows
        with pytest.raises(
            ValueError, match=rf"stream 'rows', column 'g': the value {wrong} .*`effect`, .* 0 to 4"
        ):
            ds.advance()
    assert ds.batches_seen == 5
    first = StreamingDataset({"g": np.full(10, wrong)}, batch_size=10)
    with pytest.raises(ValueError, match=r"`effect`"):
        first._set_index_bounds({(0, 0): (5, "effect")})


@pytest.mark.parametrize("wrong", [7, -7])
@pytest.mark.parametrize("in_first_batch", [True, False])
def test_an_index_that_is_computed_is_checked_too(wrong, in_first_batch):
    group = np.arange(100) % 5 + 1
    group[5 if in_first_batch else 57] = wrong
    rows = {"g": group, "y": np.zeros(100)}
    ds = StreamingDataset(rows, batch_size=10, name="rows")
    with pm.Model():
        effect = pm.Normal("effect", shape=5)
        pm.Normal("y", effect[ds["g"] - 1], 1, observed=ds["y"], total_size=100)
        with pytest.raises(ValueError, match=rf"'rows'.* {wrong - 1} as an index into `effect`"):
            pm.fit(10, obj_optimizer=pm.adagrad_window(), **fit_kwargs)
    assert ds.batches_seen == (0 if in_first_batch else 5)


def test_an_index_without_an_entry_stops_a_fit():
    """Five levels, one key in twenty at 7: without a check, means of other memory."""
    rng = np.random.default_rng(1)
    group = np.where(rng.random(2000) < 0.05, 7, rng.integers(5, size=2000))
    rows = {"g": group, "y": group + rng.normal(size=2000)}
    with pm.Model():
        ds = StreamingDataset(rows, batch_size=100)
        effect = pm.Normal("effect", 0, 10, shape=5)
        pm.Normal("y", effect[ds["g"]], 1, observed=ds["y"], total_size=2000)
        with pytest.raises(ValueError, match=r"column 'g': the value 7 as an index into `effect`"):
            pm.fit(10, **fit_kwargs)


def test_bounds_of_tuple_blocks_and_of_the_last_model():
    pixels, levels = np.zeros((100, 300), dtype="uint8"), np.arange(100, dtype="uint8") % 5
    ds = StreamingDataset(lambda: [(pixels, levels)], batch_size=10, dtype="uint8")
    x, g = ds.as_tensor()
    for index, size, place in ((g, 5, (1, 0)), (x[:, 299], 7, (0, 299))):
        with pm.Model() as model:
            effect = pm.Normal("effect", shape=size)
            pm.Normal("y", effect[index], 1, observed=x[:, 0], total_size=100)
        check_streams(model)
        assert ds._index_checks.bounds == {place: (size, "effect")}


def test_a_mask_in_the_log_density_gives_the_scale_of_the_rows_that_count():
    """Over the batches of an epoch, the log-likelihood is on average that of the rows to keep."""
    rng = np.random.default_rng(1)
    counts = rng.poisson(1.0, size=600)

    def masked(value, mu, keep):
        return pt.where(keep, pm.logp(pm.Poisson.dist(mu), value), 0.0)

    ds = StreamingDataset(lambda: [{"count": counts}], batch_size=10, total_size=600)
    with pm.Model() as model:
        mu = pm.HalfNormal("mu")
        count = ds["count"]
        pm.CustomDist("y", mu, count > 0, logp=masked, observed=count, total_size=600)
    check_streams(model)
    logp, point = model.compile_logp(vars=[model["y"]]), model.initial_point()
    streamed = [logp(point) for _ in range(60) if ds.advance() is None]
    with pm.Model() as in_memory:
        pm.Poisson("y", pm.HalfNormal("mu"), observed=counts[counts > 0])
    whole = in_memory.compile_logp(vars=[in_memory["y"]])(point)
    np.testing.assert_allclose(np.mean(streamed), whole, rtol=1e-4)
