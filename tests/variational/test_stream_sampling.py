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
import numpy as np
import pytest

import pymc as pm

from pymc.variational.streaming import StreamingDataset

quick = {"draws": 2, "chains": 1, "progressbar": False, "random_seed": 1}


def model_of(ds, potential=False):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 10)
        if potential:
            pm.Potential("y", -((ds.as_tensor() - mu) ** 2).sum())
        else:
            pm.Normal("y", mu, 1, observed=ds.as_tensor(), total_size=ds.total_size)
        pm.Normal("in_memory", mu, 1, observed=np.array([1.0, 2.0]))
    return model


@pytest.mark.parametrize("potential", [False, True])
@pytest.mark.parametrize(
    ("what", "call"),
    [
        ("pm.sample", lambda: pm.sample(tune=2, **quick)),
        ("pm.sample_smc", lambda: pm.sample_smc(**quick)),
        ("pm.find_MAP", lambda: pm.find_MAP(progressbar=False, jitter=False)),
    ],
)
def test_one_batch_is_not_sampled_as_if_it_were_the_data(what, call, potential):
    """S11."""
    ds = StreamingDataset(np.zeros(1000), batch_size=10, name="rows")
    with model_of(ds, potential):
        with pytest.raises(ValueError, match=f"{what} .*`y` uses the stream 'rows'.* 10 rows"):
            call()


def test_the_result_of_a_fit_does_not_show_one_batch_as_the_data():
    """S13: left out; what is in memory is shown."""
    ds = StreamingDataset(np.arange(1000), batch_size=10)
    with model_of(ds):
        result = pm.fit(3, progressbar=False, random_seed=1).sample(5, random_seed=1)
    assert list(result.observed_data) == ["in_memory"]
    assert result.posterior["mu"].sizes["draw"] == 5


def test_a_result_of_nothing_but_a_stream_has_no_observed_data():
    """S13."""
    batch = pm.Minibatch(lambda: [np.arange(100.0)], batch_size=10)
    with pm.Model():
        mu = pm.Normal("mu", 0, 10)
        pm.Normal("y", mu, 1, observed=batch, total_size=100)
        result = pm.fit(3, progressbar=False, random_seed=1).sample(5, random_seed=1)
    assert list(result.observed_data) == []
