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
import pytensor.tensor as pt
import pytest

from arviz_base import from_dict

import pymc as pm

from pymc.variational import predictive_check as predictive_check_module
from pymc.variational import rows_at_draws
from pymc.variational.streaming import StreamingDataset, predictive_check

N, S = 5001, 200
RNG = np.random.default_rng(1)
GROUP, X = RNG.integers(0, 3, N), RNG.normal(size=N)
LEVEL = np.array([0.5, 1.0, 1.5])
TABLE = {
    "x": X,
    "group": GROUP,
    "y": RNG.poisson(np.exp(0.2 * X + LEVEL[GROUP])),
    "wider": RNG.negative_binomial(3, 3 / (3 + np.exp(0.2 * X + LEVEL[GROUP]))),
}
QUIET = {"n_draws": S, "progressbar": False, "random_seed": 1}


def poisson(rows, var_name="y", grouped=True, total_size=None):
    with pm.Model() as model:
        slope, level = pm.Normal("slope"), pm.Normal("level", shape=3 if grouped else 1)
        place = rows["group"] if grouped else 0
        mu = pt.exp(slope * rows["x"] + level[place])
        pm.Poisson("y", mu, observed=rows[var_name], total_size=total_size)
    return model


def streamed(batch_size=100, **kwargs):
    ds = StreamingDataset(TABLE, batch_size=batch_size, check_order="ignore")
    return poisson({name: ds[name] for name in TABLE}, total_size=N, **kwargs)


def posterior(level=LEVEL):
    return from_dict(
        {
            "posterior": {
                "slope": RNG.normal(0.2, 0.01, (1, S)),
                "level": RNG.normal(level, 0.01, (1, S, len(level))),
            }
        }
    )


@pytest.mark.parametrize("batch_size", [100, 4096])
def test_statistics_are_those_of_replicated_data_in_memory(batch_size):
    draws = posterior()
    check = predictive_check(draws, "group", model=streamed(batch_size), **QUIET)
    with poisson({name: pt.as_tensor(values) for name, values in TABLE.items()}):
        in_memory = pm.sample_posterior_predictive(draws, progressbar=False, random_seed=2)
    replicated = in_memory.posterior_predictive["y"].values[0]
    assert list(check.index.get_level_values("group").unique()) == [0, 1, 2]
    for group in range(3):
        own = GROUP == group
        for name, table in check.loc[group].iterrows():
            statistic = {"mean": np.mean, "sd": lambda y: np.std(y, ddof=1)}.get(name)
            if statistic is None:
                cut = float(name.removeprefix("share <= "))
                statistic = lambda y: np.mean(y <= cut)  # noqa: E731
            expected = np.array([statistic(y[own]) for y in replicated])
            np.testing.assert_allclose(table["observed"], statistic(TABLE["y"][own]), rtol=1e-12)
            error = expected.std() * np.sqrt(2 / S)
            assert abs(table["mean"] - expected.mean()) < 4 * error
            assert 0.8 < table["sd"] / expected.std() < 1.25
            for q in (5, 95):
                assert abs(table[f"{q}%"] - np.percentile(expected, q)) < 6 * error
            larger = np.mean((expected > table["observed"]) + (expected == table["observed"]) / 2)
            assert abs(table["p_value"] - larger) < 0.2


def p_values(draws, group=None, **kwargs):
    check = predictive_check(draws, group, model=streamed(**kwargs), **QUIET)
    return check["p_value"] if group is None else check["p_value"].unstack()


def test_a_right_model_is_not_told_to_be_wrong():
    assert p_values(posterior(), "group").stack().between(0.01, 0.99).all()


def test_values_that_vary_more_than_the_model_has_it():
    found = p_values(posterior(), var_name="wider")
    assert found["sd"] == 0


def test_groups_that_the_model_leaves_out():
    level = [np.log(np.mean(np.exp(LEVEL[GROUP])))]
    assert 0.01 < p_values(posterior(level), grouped=False)["mean"] < 0.99
    assert p_values(posterior(level), "group", grouped=False)["mean"].tolist() == [1, 1, 0]


def test_the_result_does_not_depend_on_the_number_of_threads(monkeypatch):
    model, draws, checks = streamed(), posterior(), []
    for n_threads in (1, 4):
        for module in (rows_at_draws, predictive_check_module):
            monkeypatch.setattr(module, "default_threads", lambda: n_threads)
        checks.append(predictive_check(draws, "group", model=model, **QUIET))
    assert checks[0].equals(checks[1])


def test_a_row_that_is_a_vector_counts_with_all_of_it():
    y = RNG.normal(1, 2, (101, 3))
    ds = StreamingDataset(y, batch_size=20, check_order="ignore")
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("mu"), 2, observed=ds.as_tensor(), total_size=101)
    draws = from_dict({"posterior": {"mu": RNG.normal(1, 0.1, (1, S))}})
    check = predictive_check(draws, model=model, **QUIET)
    np.testing.assert_allclose(check["observed"][["mean", "sd"]], [y.mean(), y.std(ddof=1)])
    assert check.index[-1].startswith("share <= ")
    np.testing.assert_allclose(check["observed"].iloc[-1], 0.95, atol=0.004)
    assert check["p_value"].between(0.01, 0.99).all()


def test_what_cannot_group_rows(monkeypatch):
    with pytest.raises(ValueError, match=r"group='z' is no column of stream .*'group'"):
        predictive_check(posterior(), "z", model=streamed(), **QUIET)
    for limit, column in [(1000, "x"), (2, "group")]:
        monkeypatch.setattr(predictive_check_module, "MAX_GROUPS", limit)
        with pytest.raises(ValueError, match=f"a column with more than {limit:,} values"):
            predictive_check(posterior(), column, model=streamed(), **QUIET)
