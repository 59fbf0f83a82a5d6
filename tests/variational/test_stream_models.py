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

"""Models that stream, and models that must not."""

import warnings

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

import pymc as pm

from pymc.variational.stream_checks import check_streams
from pymc.variational.streaming import StreamingDataset

N, B = 240, 12
rng = np.random.default_rng(1)
TABLE = {
    "x": rng.normal(size=N),
    "z": rng.normal(size=N),
    "y": rng.normal(size=N),
    "positive": rng.exponential(size=N),
    "share": rng.uniform(0.1, 0.9, size=N),
    "count": np.r_[np.zeros(B, int), rng.poisson(1.5, size=N - B)],  # a first batch of zeros alone
    "up": rng.integers(0, 2, size=N),
    "level": rng.integers(0, 4, size=N),
    "g": rng.integers(0, 5, size=N),
    "place": np.arange(N) % B,  # a group, which in the first batch is also the place in it
}
VECTORS = rng.normal(size=(N, 3))
COUNTS = rng.multinomial(7, [0.2, 0.3, 0.5], size=N)


def table():
    return StreamingDataset(lambda: [TABLE], batch_size=B, total_size=N)


def rows(array=VECTORS, **kwargs):
    return StreamingDataset(array, batch_size=B, **kwargs)


def fit(model):
    with model:
        return pm.fit(N // B, progressbar=False, random_seed=1)  # an epoch


def linear(ds):
    return pm.Normal("a") + pm.Normal("b") * ds["x"]


def normal(ds, mu, sigma=1, name="obs", **kwargs):
    return pm.Normal(name, mu, sigma, observed=ds["y"], total_size=N, **kwargs)


good = {}
bad = {}


def streams(build):
    good[build.__name__] = build
    return build


def refused(match):
    def note(build):
        bad[build.__name__] = (build, match)
        return build

    return note


@streams
def regression():
    ds = table()
    normal(ds, linear(ds), pm.HalfNormal("sigma"))


@streams
def logistic_with_many_columns():
    batch = rows().as_tensor()
    b = pm.Normal("b", shape=batch.shape[1])  # the shape of a stream, not its rows
    pm.Bernoulli("obs", logit_p=batch @ b, observed=batch[:, 0] > 0, total_size=N)


@streams
def as_many_coefficients_as_rows_in_a_batch():
    batch = rows(rng.normal(size=(N, B))).as_tensor()
    b = pm.Normal("b", shape=B)
    pm.Normal("obs", batch @ b, 1, observed=batch[:, 0], total_size=N)


@streams
def as_many_groups_as_rows_in_a_batch():
    ds = table()
    normal(ds, pm.Normal("effect", shape=B)[ds["place"]])


@streams
def a_prior_mean_as_long_as_a_batch():
    ds = table()
    normal(ds, pm.Normal("effect", np.arange(B), 1)[ds["place"]])


@streams
def hierarchy_with_dims():
    ds = table()
    pm.modelcontext(None).add_coord("group", range(5))
    effect = pm.Normal("effect", pm.Normal("mu"), pm.HalfNormal("tau"), dims="group")
    normal(ds, effect[ds["g"]])


@streams
def two_way_index():
    ds = table()
    normal(ds, pm.Normal("effect", shape=(5, 4))[ds["g"], ds["level"]])


@streams
def zero_sum_effects():
    ds = table()
    normal(ds, pm.ZeroSumNormal("effect", shape=5)[ds["g"]])


@streams
def vectors_of_normals():
    chol, *_ = pm.LKJCholeskyCov("chol", n=3, eta=2, sd_dist=pm.HalfNormal.dist(1))
    mu = pm.Normal("mu", shape=3)
    pm.MvNormal("obs", mu, chol=chol, observed=rows().as_tensor(), total_size=N)


@streams
def series_in_rows():
    pm.AR(
        "obs",
        [pm.Normal("rho")],
        1,
        init_dist=pm.Normal.dist(),
        observed=rows().as_tensor(),
        total_size=N,
    )


@streams
def mixture():
    ds = table()
    w = pm.Dirichlet("w", np.ones(2))
    parts = [pm.Normal.dist(pm.Normal("m"), 1), pm.StudentT.dist(nu=4, mu=linear(ds), sigma=1)]
    pm.Mixture("obs", w, parts, observed=ds["y"], total_size=N)


@streams
def normal_mixture():
    w, mu = pm.Dirichlet("w", np.ones(3)), pm.Normal("mu", shape=3)
    pm.NormalMixture("obs", w, mu, 1, observed=table()["y"], total_size=N)


@streams
def mixture_marginalised_by_hand():
    def logp(value, mu):
        parts = pm.logp(pm.Normal.dist(mu, 1, shape=(B, 2)), value[:, None])
        return pt.logsumexp(parts, axis=1)

    ds, mu = table(), pm.Normal("mu", shape=2)
    pm.CustomDist(
        "obs", mu, logp=logp, signature="(m)->()", observed=ds["y"], total_size=N
    )  # fmt: skip


@streams
def censored():
    ds = table()
    dist = pm.Normal.dist(linear(ds), 1)
    pm.Censored("obs", dist, -1, 1, observed=pt.clip(ds["y"], -1, 1), total_size=N)


@streams
def truncated():
    ds = table()
    dist = pm.Normal.dist(linear(ds), 1)
    pm.Truncated("obs", dist, lower=0, observed=ds["positive"], total_size=N)


@streams
def rows_outside_the_support():
    pm.Uniform("obs", 0, pm.HalfNormal("top") + 1, observed=table()["y"], total_size=N)


@streams
def zero_inflated():
    ds = table()
    mu = pt.exp(linear(ds))
    pm.ZeroInflatedPoisson("obs", pm.Beta("psi", 1, 1), mu, observed=ds["count"], total_size=N)


@streams
def hurdle():
    mu, psi = pm.HalfNormal("mu"), pm.Beta("psi", 1, 1)
    pm.HurdlePoisson("obs", psi, mu, observed=table()["count"], total_size=N)


@streams
def beta_binomial():
    a, b = pm.HalfNormal("a"), pm.HalfNormal("b")
    pm.BetaBinomial("obs", a, b, n=20, observed=table()["count"], total_size=N)


@streams
def ordered_logistic():
    ds = table()
    cut = pm.Normal(
        "cut", [-1, 0, 1], 1, transform=pm.distributions.transforms.ordered, initval=[-1, 0, 1]
    )
    pm.OrderedLogistic("obs", ds["x"] * pm.Normal("b"), cut, observed=ds["level"], total_size=N)


@streams
def categorical():
    ds = table()
    logit_p = ds["x"][:, None] * pm.Normal("b", shape=4)
    pm.Categorical("obs", logit_p=logit_p, observed=ds["level"], total_size=N)


@streams
def multinomial_rows():
    observed = rows(COUNTS).as_tensor()
    pm.Multinomial("obs", 7, pm.Dirichlet("p", np.ones(3)), observed=observed, total_size=N)


@streams
def dirichlet_multinomial_rows():
    observed = rows(COUNTS).as_tensor()
    a = pm.HalfNormal("a", shape=3)
    pm.DirichletMultinomial("obs", 7, a, observed=observed, total_size=N)


@streams
def custom_density():
    ds = table()
    pm.CustomDist(
        "obs", linear(ds), logp=lambda value, mu: -pt.abs(value - mu), observed=ds["y"],
        total_size=N,
    )  # fmt: skip


@streams
def custom_generator():
    ds = table()
    dist = lambda mu, size: pt.exp(pm.Normal.dist(mu, 1, size=size))  # noqa: E731
    pm.CustomDist("obs", linear(ds), dist=dist, observed=ds["positive"], total_size=N)


@streams
def deterministic_of_the_batch():
    ds = table()
    normal(ds, pm.Deterministic("mu", linear(ds)))


@streams
def two_observed_variables():
    ds = table()
    mu = linear(ds)
    normal(ds, mu)
    pm.Poisson("counts", pt.exp(mu), observed=ds["count"], total_size=N)


@streams
def two_streams_with_a_variable_each():
    mu = pm.Normal("mu")
    for i, n in enumerate((B, 2 * B)):
        ds = StreamingDataset(lambda: [TABLE], batch_size=n, total_size=N)
        normal(ds, mu * ds["x"], name=f"obs{i}")


@streams
def data_in_memory_beside_it():
    ds = table()
    mu = linear(ds)
    normal(ds, mu)
    other = pm.Data("other", np.arange(B))
    pm.Normal(
        "memory",
        pm.Normal("latent", pm.modelcontext(None)["a"], 1, shape=B) + other,
        observed=np.ones(B),
    )


@streams
def pm_data_as_a_setting():
    ds = table()
    pm.Normal("obs", linear(ds) * pm.Data("unit", 2.0), 1, observed=ds["y"], total_size=N)


@streams
def tuple_blocks():
    x, y = rows(lambda: [(VECTORS, TABLE["y"])]).as_tensor()
    pm.Normal("obs", x @ pm.Normal("b", shape=3), 1, observed=y, total_size=N)


@streams
def transposed():
    pm.Normal("obs", pm.Normal("mu"), 1, observed=rows().as_tensor().T, total_size=[..., N])


@streams
def ones_trick():
    ds = table()
    p = pm.math.sigmoid(linear(ds)) * ds["share"]
    pm.Bernoulli("obs", p, observed=np.ones(B), total_size=N)


@streams
def a_mask_that_counts_rows_out():
    ds = table()
    pm.CustomDist(
        "obs", linear(ds), ds["up"] > 0,
        logp=lambda value, mu, keep: pt.where(keep, pm.logp(pm.Normal.dist(mu, 1), value), 0.0),
        observed=ds["y"], total_size=N,
    )  # fmt: skip


@streams
def potential_of_the_parameters():
    ds = table()
    mu = linear(ds)
    normal(ds, mu)
    pm.Potential("prior", -(pm.modelcontext(None)["a"] ** 2))


@streams
def index_kept_in_range():
    ds = table()
    normal(ds, pm.Normal("effect", shape=3)[pt.minimum(ds["g"], 2)])


@streams
def in_memory_minibatch_without_a_stream():
    batch = pm.Minibatch(TABLE["y"].astype(pytensor.config.floatX), batch_size=B)
    pm.Normal("obs", pm.Normal("mu"), 1, observed=batch, total_size=N)


@refused("free variable `latent` has an entry for each place")
def an_effect_a_row():
    ds = table()
    normal(ds, pm.Normal("latent", shape=B) + linear(ds))


@refused("free variable `eps` has an entry for each place")
def overdispersion_that_meets_equal_rows():
    eps = pm.Normal("eps", 0, pm.HalfNormal("s"), shape=B)
    pm.Poisson("obs", pt.exp(eps), observed=table()["count"], total_size=N)


@refused("free variable `latent` has an entry for each place")
def vectors_a_row():
    pm.Normal(
        "obs", pm.Normal("latent", shape=(B, 3)), 1, observed=rows().as_tensor(), total_size=N
    )


@refused("free variable `latent` has an entry for each place")
def an_effect_for_two_rows_each():
    ds = table()
    normal(ds, pt.repeat(pm.Normal("latent", shape=B // 2), 2) * ds["x"])


@refused(r"`obs`: .* An array \(or variable\) of 12 entries")
def a_simplex_over_the_batch():
    ds = table()
    normal(ds, pm.Dirichlet("weights", np.ones(B)) + linear(ds))


@refused("free variable `latent` depends on the stream 'stream'")
def a_latent_mean_a_row():
    ds = table()
    normal(ds, pm.Normal("latent", linear(ds), 1))


@refused("`obs`: the log-density of a row .* on the rows beside it")
def a_latent_gaussian_process():
    ds = table()
    f = pm.gp.Latent(cov_func=pm.gp.cov.ExpQuad(1, ls=1.0)).prior("f", X=ds["x"][:, None])
    normal(ds, f)


@refused("free variable `mu` depends on the stream 'stream'")
def a_prior_from_the_batch():
    ds = table()
    normal(ds, pm.Normal("mu", ds["y"].mean(), 1))


@refused(r"`obs`: its log-density is one number.*\(AR, ")
def autoregression_along_the_batch():
    pm.AR(
        "obs",
        [pm.Normal("rho")],
        1,
        init_dist=pm.Normal.dist(),
        observed=table()["y"],
        total_size=N,
    )


@refused("`obs`: its log-density is one number")
def random_walk_along_the_batch():
    init = pm.Normal.dist(0, 1)
    pm.GaussianRandomWalk(
        "obs", pm.Normal("mu"), 1, init_dist=init, observed=table()["y"], total_size=N
    )


@refused("`obs`: its log-density is one number")
def one_normal_over_the_batch():
    pm.MvNormal("obs", pm.Normal("mu"), np.eye(B), observed=table()["y"], total_size=N)


@refused(r"`obs`: its log-density .*shape \(3,\)")
def series_in_columns():
    pm.AR(
        "obs",
        [pm.Normal("rho")],
        1,
        init_dist=pm.Normal.dist(),
        observed=rows().as_tensor().T,
        total_size=[3, N],
    )


@refused("`obs`: its log-density is one number")
def a_marginal_gaussian_process():
    ds = table()
    cov = pm.gp.cov.ExpQuad(1, ls=pm.HalfNormal("ls"))
    K = cov(ds["x"][:, None]) + pt.eye(B)
    pm.MvNormal("obs", np.zeros(B), K, observed=ds["y"], total_size=N)


@refused("`obs`: its log-density is one number")
def a_custom_density_that_sums():
    ds = table()
    pm.CustomDist(
        "obs", linear(ds), logp=lambda value, mu: -pt.abs(value - mu).sum(), observed=ds["y"],
        total_size=N,
    )  # fmt: skip


@refused("`obs`: the log-density of a row .* on the rows beside it")
def autoregression_by_hand():
    ds = table()
    before = pt.concatenate([[0.0], ds["y"][:-1]])
    normal(ds, pm.Normal("rho") * before)


@refused("`obs`: the log-density of a row .* on the rows beside it")
def standardised_within_the_batch():
    ds = table()
    normal(ds, pm.Normal("b") * (ds["x"] - ds["x"].mean()))


@refused(r"`obs`: .* An array .*of 12 entries.* stays the same while the rows change")
def features_in_memory():
    normal(table(), pm.Normal("b") * pm.Data("x", TABLE["x"][:B]))


@refused("`obs` does not observe each of the 12 rows .*pm.CustomDist")
def rows_picked_by_a_mask():
    ds = table()
    keep = ds["count"] > 0
    pm.Poisson("obs", pm.HalfNormal("mu"), observed=ds["count"][keep], total_size=N)


@refused("`obs` does not observe each of the 12 rows")
def rows_picked_by_nonzero():
    ds = table()
    [keep] = pt.nonzero(ds["up"])
    pm.Normal("obs", linear(ds)[keep], 1, observed=ds["y"][keep], total_size=N)


@refused("`obs` does not observe each of the 12 rows")
def rows_picked_by_a_slice():
    pm.Normal("obs", pm.Normal("mu"), 1, observed=table()["y"][:5], total_size=N)


fitted = ["hierarchy_with_dims", "two_streams_with_a_variable_each"]


@pytest.mark.parametrize("name", good)
def test_models_that_stream(name):
    with pm.Model() as model:
        good[name]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_streams(model)
        if name in fitted:
            assert np.isfinite(fit(model).mean.eval()).all()
    assert not [warning for warning in caught if "stream" in str(warning.message)]


@pytest.mark.parametrize("name", bad)
def test_models_that_do_not_add_up_over_batches(name):
    build, match = bad[name]
    with pm.Model() as model:
        build()
    with pytest.raises(ValueError, match=match):
        fit(model)
