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
"""Streams in random order raise no alarm, ordered ones do: the lists that the thresholds were chosen with."""

import warnings

import numpy as np
import pytest

import pymc as pm

from pymc.streams.order.check import OrderCheck, StreamOrderWarning
from pymc.variational.streaming import StreamingDataset, shuffle_buffer

N = 100_000


def normal(rng, n):
    return {"x": rng.normal(size=n), "y": 3 + 0.1 * rng.normal(size=n)}


def heavy_tails(rng, n):
    return {"cauchy": rng.standard_cauchy(n), "size": np.exp(2 * rng.normal(size=n))}


def rare_labels(rng, n):
    return {"x": rng.normal(size=n), "up": rng.random(n) < 0.01, "rarer": rng.random(n) < 0.0005}


def constants(rng, n):
    return {"one": np.ones(n), "zero": np.zeros(n, int), "x": rng.normal(size=n)}


def dependent(rng, n):
    x = rng.normal(size=n)
    return {"x": x, "y": 2 * x + 0.01 * rng.normal(size=n), "z": x**2, "id": rng.integers(0, 5, n)}


def many_columns(rng, n):
    return {f"x{j}": rng.gamma(0.5, size=n) for j in range(20)}


IN_RANDOM_ORDER = [normal, heavy_tails, rare_labels, constants, dependent, many_columns]


def in_turn(values, key):
    """Sort all columns by a key."""
    order = np.argsort(key, kind="stable")
    return {name: column[order] for name, column in values.items()}


def time_drift(rng, n):
    return {"x": rng.normal(size=n) + np.linspace(0, 0.5, n), "y": rng.normal(size=n)}


def random_walk(rng, n):
    return {"x": rng.normal(size=n) + np.cumsum(rng.normal(size=n)) / np.sqrt(n)}


def sorted_by_label(rng, n):
    up = rng.random(n) < 0.3
    return in_turn({"x": rng.normal(size=n) + 0.2 * up, "up": up}, up)


def clustered_by_key(rng, n):
    key = np.repeat(rng.permutation(n // 1000), 1000)
    return {"key": key, "x": rng.normal(size=n) + 0.3 * rng.normal(size=n // 1000)[key]}


def weekly_season(rng, n):
    """Weeks that are longer than a buffer, which else evens them out."""
    return {"x": rng.normal(size=n) + 0.4 * np.sin(np.arange(n) * 2 * np.pi * 4 / n)}


def one_shard_different(rng, n):
    x = rng.normal(size=n)
    first = rng.integers(0, 10) * (n // 10)
    x[first : first + n // 10] += 0.7
    return {"x": x, "y": rng.normal(size=n)}


def slope_drifts(rng, n):
    """Each column alone is the same all the time."""
    x, noise = rng.normal(size=(2, n))
    share = np.linspace(-0.7, 0.7, n)
    return {"x": x, "y": share * x + np.sqrt(1 - share**2) * noise}


ORDERED = [
    time_drift,
    random_walk,
    sorted_by_label,
    clustered_by_key,
    weekly_season,
    one_shard_different,
    slope_drifts,
]


def warnings_of_an_epoch(source, batch_size):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ds = StreamingDataset(source, batch_size=batch_size)
        for _ in range(ds.total_size // batch_size + 1):
            ds.advance()
    assert all(isinstance(warning.message, StreamOrderWarning) for warning in caught)
    return [str(warning.message) for warning in caught]


# Batch size, buffer size (None for no buffer), number of rows.
SHAPES = [(500, None, N), (500, 10_000, N), (64, 1000, 20_000), (50, 100, 400), (1, None, 3000)]


@pytest.mark.parametrize("make", IN_RANDOM_ORDER)
@pytest.mark.parametrize("batch_size, buffer_size, n", SHAPES)
def test_no_false_alarm(make, batch_size, buffer_size, n):
    for seed in range(7):  # 210 such streams in all
        source = make(np.random.default_rng(seed), n)
        if buffer_size is not None:
            source = shuffle_buffer(
                source, buffer_size=buffer_size, batch_size=batch_size, seed=seed
            )
        assert warnings_of_an_epoch(source, batch_size) == []


@pytest.mark.parametrize("make", ORDERED)
@pytest.mark.parametrize("buffer_size", [None, 10_000])
def test_order_is_noticed_once(make, buffer_size):
    for seed in range(4):  # 56 ordered streams in all
        source = make(np.random.default_rng(seed), N)
        if buffer_size is not None:
            source = shuffle_buffer(source, buffer_size=buffer_size, batch_size=500, seed=seed)
        [message] = warnings_of_an_epoch(source, 500)
        assert "times as much as over as many rows drawn at random" in message
        assert "pre_shuffle(source" in message
        assert "x * y" in message or make is not slope_drifts


@pytest.mark.parametrize("make", ORDERED)
def test_a_buffer_that_holds_all_rows_is_no_alarm(make):
    source = shuffle_buffer(
        make(np.random.default_rng(1), 20_000), buffer_size=20_000, batch_size=200, seed=1
    )
    assert warnings_of_an_epoch(source, 200) == []


def test_order_is_noticed_early():
    """After a few buffers of a hundred, not at the end."""
    rng = np.random.default_rng(1)
    check = OrderCheck(["x"], 1000)
    for k in range(1000):  # buffers of ten batches, drifting by a standard deviation in all
        finding = check.add([rng.normal(size=(1000, 1)) + k // 10 / 100])
        if finding:
            break
    assert k < 250
    assert "`x`" in finding


def test_the_effect_is_the_design_effect():
    """Of random block effects with intraclass correlation 0.1."""
    rng = np.random.default_rng(1)
    check = OrderCheck(["x"], 256, limit=15.0)
    found = []
    for _ in range(2000):
        x = np.sqrt(0.9) * rng.normal(size=(256, 1)) + np.sqrt(0.1) * rng.normal()
        found.append(check.add([x]))
    effects = [float(f.split(" times")[0].split()[-1]) for f in found if f]
    assert abs(effects[-1] / (1 + 255 * 0.1) - 1) < 0.2


def test_an_effect_within_the_limit_is_tolerated():
    rng = np.random.default_rng(1)
    check = OrderCheck(["x"], 256, limit=30.0)
    for _ in range(2000):
        x = np.sqrt(0.9) * rng.normal(size=(256, 1)) + np.sqrt(0.1) * rng.normal()
        assert check.add([x]) is None


def test_raise_and_ignore():
    source = time_drift(np.random.default_rng(1), N)
    ds = StreamingDataset(source, batch_size=500, check_order="raise")
    with pytest.raises(StreamOrderWarning, match=r"stream 'stream': .*`x`.*pre_shuffle"):
        for _ in range(N // 500):
            ds.advance()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = StreamingDataset(source, batch_size=500, check_order="ignore")
        for _ in range(N // 500):
            ds.advance()
    with pytest.raises(ValueError, match=r'check_order must be "warn", "raise" or "ignore"'):
        StreamingDataset(source, batch_size=500, check_order="error")


def test_rows_that_fit_into_memory_are_said_to():
    [message] = warnings_of_an_epoch(time_drift(np.random.default_rng(1), N), 500)
    assert "These 100,000 rows fit into memory (2 MB): pm.Minibatch on an array" in message


def test_rows_of_any_shape_are_followed():
    rng = np.random.default_rng(1)

    def blocks():
        for k in range(200):
            yield rng.normal(size=(500, 2, 2)) + k / 400, rng.normal(size=500)

    with pytest.warns(StreamOrderWarning, match=r"`array 0\[\d, \d\]`"):
        ds = StreamingDataset(blocks, batch_size=500)
        for _ in range(190):
            ds.advance()


def findings(draw, n_batches, batch_size=20_000):
    """Of a check of batches so large that any significant effect counts as large."""
    check = OrderCheck(["x", "y"], batch_size)
    step = batch_size // 256
    found = []
    for k in range(n_batches):
        batch = np.zeros((batch_size, 2))
        batch[::step] = draw(k, len(batch[::step]))  # the rows that are looked at
        found.append(check.add([batch]))
    return [finding for finding in found if finding]


def test_chance_is_no_effect_in_large_batches():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        assert findings(lambda k, n: rng.normal(size=(n, 2)), 100) == []


def test_rare_events_that_come_together_are_chance():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        assert findings(lambda k, n: rng.random(size=(n, 2)) < 2e-4, 400) == []


def test_drift_behind_heavy_tails():
    rng = np.random.default_rng(1)
    found = findings(lambda k, n: rng.standard_cauchy(size=(n, 2)) + k / 100, 100)
    assert found and "`x`" in found[0] + found[-1]


@pytest.mark.parametrize("n_batches", [2, 3, 7])
def test_an_epoch_of_few_batches(n_batches):
    """It is checked when it ends."""
    x = np.sort(np.random.default_rng(1).normal(size=n_batches * 1000))
    with pytest.warns(StreamOrderWarning, match=r"`array`"):
        ds = StreamingDataset(x, batch_size=1000)
        for _ in range(n_batches + 1):
            ds.advance()


# In a fit


def model_of(ds):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 10)
        pm.Normal("y", mu, 1, observed=ds.as_tensor(), total_size=10_000)
    return model


def test_order_of_a_stream_that_is_read_once_is_said_in_a_fit_only(recwarn):
    rows = np.repeat(np.arange(10.0), 1000)
    ds = StreamingDataset(rows, batch_size=100, cycle=False)
    list(ds)
    assert not recwarn.list
    iter(ds)  # starts it again
    with model_of(ds), pytest.warns(StreamOrderWarning):
        pm.fit(100, progressbar=False)


def test_order_raises_in_each_fit():
    rows = np.repeat(np.arange(10.0), 1000)
    ds = StreamingDataset(rows, batch_size=100, check_order="raise")
    with model_of(ds):
        for _ in range(2):
            with pytest.raises(StreamOrderWarning):
                pm.fit(100, progressbar=False)


def sorted_blocks():
    for i in range(10):
        yield np.full(1000, float(i))


@pytest.mark.parametrize(
    ("source", "n", "warned"),
    [
        (sorted_blocks, 5, True),
        (np.zeros(10_000), 50, True),
        (np.zeros(10_000), 100, False),
        (shuffle_buffer(np.zeros(10_000), buffer_size=1000, batch_size=100), 50, True),
        (shuffle_buffer(np.zeros(10_000), buffer_size=10_000, batch_size=100), 50, False),
    ],
)
def test_a_fit_of_part_of_an_epoch(source, n, warned, recwarn):
    with model_of(StreamingDataset(source, batch_size=100)):
        pm.fit(n, progressbar=False)
    said = [str(warning.message) for warning in recwarn if "of an epoch" in str(warning.message)]
    assert len(said) == warned
    if warned:
        assert f"{100 * n:,} of 10,000 rows were read so far ({n / 100:.2g} of an epoch)" in said[0]
