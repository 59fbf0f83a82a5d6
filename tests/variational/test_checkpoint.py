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
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytensor
import pytest

import pymc as pm

from pymc.variational import checkpoint as checkpoint_module
from pymc.variational.callbacks import CheckParametersConvergence
from pymc.variational.streaming import StreamingDataset, shuffle_buffer

ROWS = np.random.default_rng(1).normal([1.0, 2.0], 1.0, size=(1000, 2))
OPTIMIZERS = {"default": {}, "adam": {"obj_optimizer": pm.adam(learning_rate=0.01)}}


def fit(
    path=None,
    n=60,
    *,
    data="minibatch",
    rows=ROWS,
    prior=10.0,
    optimizer="adam",
    method="advi",
    random_seed=1,
    **kwargs,
):
    """What a script does: a new model, and a fit."""
    if data == "minibatch":
        batch = pm.Minibatch(rows, batch_size=20)
    elif data == "stream":
        source = shuffle_buffer(rows, buffer_size=300, batch_size=20, seed=1)
        batch = StreamingDataset(source, batch_size=20, check_order="ignore").as_tensor()
    else:
        batch = rows
    with pm.Model():
        mu = pm.Normal("mu", 0, prior, shape=2)
        sigma = pm.HalfNormal("sigma")
        total_size = None if data == "array" else len(rows)
        pm.Normal("y", mu, sigma, observed=batch, total_size=total_size)
        if path is not None:
            kwargs["checkpoint"] = path
        optimizer = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
        kwargs = {"progressbar": False, **optimizer, **kwargs}
        return pm.fit(n, method=method, random_seed=random_seed, **kwargs)


def bits(approx):
    """Everything that a fit has found, to the last bit."""
    arrays = [*(np.asarray(p.get_value()) for p in approx.params), np.asarray(approx.hist)]
    arrays.append(approx.rng.get_state()[1])
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def copy_at(step, path, to):
    """Return a callback that keeps the file as it is before a step, as a kill would leave it."""
    return lambda approx, losses, i: i == step and shutil.copy(path, to)


def contents(path):
    with np.load(path, allow_pickle=False) as file:
        return json.loads(file["header"].tobytes())


@pytest.mark.parametrize(
    "data, method, optimizer, backend",
    [
        ("minibatch", "advi", "default", "numba"),
        ("minibatch", "fullrank_advi", "adam", "c"),
        ("stream", "advi", "adam", "c"),
        ("stream", "fullrank_advi", "default", "numba"),
        ("minibatch", "advi", "adam", "jax"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*RandomType SharedVariables.*:UserWarning")
def test_a_fit_goes_on_to_the_same_bits(data, method, optimizer, backend, tmp_path):
    if backend == "jax":
        pytest.importorskip("jax")
    same = {"data": data, "method": method, "optimizer": optimizer, "backend": backend}
    path, early = tmp_path / "fit.ckpt", tmp_path / "early.ckpt"
    copy = copy_at(38, path, early)
    whole = fit(path, checkpoint_interval=0, callbacks=[copy], **same)
    assert contents(early)["steps"] == 37
    numbers = []
    went_on = fit(early, callbacks=[lambda approx, losses, i: numbers.append(i)], **same)
    assert numbers == list(range(38, 61))
    assert len(went_on.hist) == 60
    assert bits(went_on) == bits(whole)
    again = fit(early, callbacks=[lambda *args: pytest.fail("a step")], **same)
    assert bits(again) == bits(whole)


def test_a_checkpoint_changes_nothing_but_the_last_bits(tmp_path):
    np.testing.assert_allclose(fit(tmp_path / "fit.ckpt").hist, fit().hist, rtol=1e-6)


def test_a_larger_n_goes_on(tmp_path):
    path = tmp_path / "fit.ckpt"
    fit(path, 20)
    assert bits(fit(path, 60)) == bits(fit(tmp_path / "whole.ckpt", 60))
    assert len(fit(path, 30).hist) == 60


def test_refine_goes_on(tmp_path):
    path, early = tmp_path / "fit.ckpt", tmp_path / "early.ckpt"

    def script(path, seen, **kwargs):
        with pm.Model():
            mu = pm.Normal("mu")
            pm.Normal("y", mu, 1, observed=pm.Minibatch(ROWS[:, 0], batch_size=20), total_size=1000)
            inference = pm.ADVI(random_seed=1)
            see = lambda approx, losses, i: seen.append((i, losses[-1], len(losses)))  # noqa: E731
            kwargs["callbacks"] = [see, *kwargs.get("callbacks", [])]
            inference.fit(20, checkpoint=path, progressbar=False, **kwargs)
            inference.refine(20, progressbar=False)
            return inference.approx

    seen, seen_since = [], []
    whole = script(path, seen, callbacks=[copy_at(31, path, early)], checkpoint_interval=0)
    assert [i for i, _, _ in seen] == list(range(1, 41))
    assert len(whole.hist) == 40
    went_on = script(early, seen_since)
    assert bits(went_on) == bits(whole)
    assert seen_since == seen[30:]
    assert bits(script(early, seen_since)) == bits(whole)
    assert seen_since == seen[30:]


def test_without_losses(tmp_path):
    path, early = tmp_path / "fit.ckpt", tmp_path / "early.ckpt"
    same = {"score": False, "data": "array"}
    whole = fit(path, checkpoint_interval=0, callbacks=[copy_at(38, path, early)], **same)
    assert bits(fit(early, **same)) == bits(whole)
    assert len(whole.hist) == 0


def test_no_seed_is_no_obstacle(tmp_path):
    path, early = tmp_path / "fit.ckpt", tmp_path / "early.ckpt"
    copy = copy_at(38, path, early)
    whole = fit(path, random_seed=None, checkpoint_interval=0, callbacks=[copy])
    assert bits(fit(early, random_seed=None)) == bits(whole)


def test_a_fit_that_a_callback_ended_has_ended(tmp_path):
    path = tmp_path / "fit.ckpt"

    def script(path):
        return fit(path, 5000, callbacks=[CheckParametersConvergence(every=10, tolerance=0.1)])

    whole = script(path)
    n = len(whole.hist)
    assert n < 5000 and n == contents(path)["steps"]
    assert bits(script(path)) == bits(whole)
    # Nobody asks for an end now.
    assert len(fit(path, n + 50).hist) == n + 50


def test_an_interrupted_fit_goes_on(tmp_path):
    path = tmp_path / "fit.ckpt"

    def interrupt(approx, losses, i):
        if i == 25:
            raise KeyboardInterrupt

    fit(path, callbacks=[interrupt])
    assert contents(path)["steps"] == 25
    assert bits(fit(path)) == bits(fit(tmp_path / "whole.ckpt"))


def test_a_source_that_fails_loses_nothing(tmp_path):
    failing = [True]

    class Source:
        def __call__(self):
            yield ROWS[:500]
            if failing:
                raise OSError("disk on fire")
            yield ROWS[500:]

    def script(path):
        with pm.Model():
            batch = StreamingDataset(Source(), batch_size=20, check_order="ignore").as_tensor()
            mu = pm.Normal("mu", shape=2)
            pm.Normal("y", mu, 1, observed=batch, total_size=1000)
            return pm.fit(
                60,
                checkpoint=path,
                random_seed=1,
                obj_optimizer=pm.adagrad_window(),
                progressbar=False,
            )

    path = tmp_path / "fit.ckpt"
    with pytest.raises(OSError, match="disk on fire"):
        script(path)
    assert contents(path)["steps"] == 25
    failing.clear()
    assert bits(script(path)) == bits(script(tmp_path / "whole.ckpt"))


def test_a_learning_rate_that_a_callback_lowers_is_kept(tmp_path):
    path, early = tmp_path / "fit.ckpt", tmp_path / "early.ckpt"

    def script(path, *callbacks, start=0.1):
        rate = pytensor.shared(np.array(start, pytensor.config.floatX), name="rate")

        def lower(approx, losses, i):
            if i == 30:
                rate.set_value(rate.get_value() / 10)

        adam = {"obj_optimizer": pm.adam(learning_rate=rate)}
        return fit(path, optimizer=adam, callbacks=[lower, *callbacks], checkpoint_interval=0)

    whole = script(path, copy_at(38, path, early))
    assert bits(script(early)) == bits(whole)
    with pytest.raises(ValueError, match=r"rate: 0.1 in the file, 0.2 here"):
        script(early, start=0.2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for data in ("minibatch", "stream"):
        fit(folder / data, 2, data=data)
    return folder


def change_one(rows):
    rows = rows.copy()
    rows[500, 1] += 1e-9
    return rows


@pytest.mark.parametrize(
    "other, named",
    [
        ({"random_seed": 2}, "random_seed: .*1.* in the file, .*2.* here"),
        ({"random_seed": None}, "random_seed: .*1.* in the file, .*None.* here"),
        ({"prior": 11.0}, "model: distributions: "),
        ({"rows": change_one(ROWS)}, "data: observed data of y: "),
        ({"method": "fullrank_advi"}, "method: inference: ADVI in the file, FullRankADVI here"),
        ({"optimizer": "default"}, "obj_optimizer: .*adam"),
        ({"optimizer": {"obj_optimizer": pm.adam(learning_rate=0.02)}}, "learning_rate=0.02"),
        ({"total_grad_norm_constraint": 9.0}, "total_grad_norm_constraint: None in .*9.0 here"),
        ({"score": False}, "score: True in the file, False here"),
        ({"data": "array"}, "model: distributions: "),
    ],
)
def test_another_fit_is_refused(other, named, made):
    with pytest.raises(ValueError, match=f"(?s)another fit.*{named}.*Delete the file"):
        fit(made / "minibatch", **other)


def test_all_that_differs_is_named(made):
    with pytest.raises(ValueError, match=r"(?s)distributions.*observed data of y.*random_seed"):
        fit(made / "minibatch", prior=2.0, rows=ROWS + 1, random_seed=3)


def test_another_stream_is_refused(made):
    with pytest.raises(ValueError, match=r"(?s)another fit.*stream 'stream'.*Delete the file"):
        fit(made / "stream", data="stream", rows=ROWS + 1)


def test_the_same_optimizer_in_other_words_is_not_refused(tmp_path):
    fit(tmp_path / "fit.ckpt", 5, optimizer="default")
    fit(tmp_path / "fit.ckpt", 5, optimizer={"obj_optimizer": pm.adagrad_window(n_win=10)})


def test_another_version_of_the_format_is_refused(made, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "FORMAT", 99)
    with pytest.raises(ValueError, match=r"format 1 of checkpoints.*format 99"):
        fit(made / "minibatch")


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "flipped", "npy", "pickle"])
def test_damage_is_an_error(damage, made, tmp_path):
    path = tmp_path / "fit.ckpt"
    whole = (made / "minibatch").read_bytes()
    path.write_bytes(whole)
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "truncated":
        path.write_bytes(whole[:-100])
    elif damage == "text":
        path.write_text("no checkpoint at all")
    elif damage == "flipped":
        i = whole.index(b'"steps"')  # in the header
        path.write_bytes(whole[:i] + b"m" + whole[i + 1 :])
    elif damage == "npy":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    else:
        with open(path, "wb") as file:
            np.savez(file, header=np.array([object()]))
    with pytest.raises(ValueError, match=r"fit.ckpt is damaged, or is not a checkpoint"):
        checkpoint_module._read(path)


def test_a_folder_that_is_not_there_is_an_error_before_any_step(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        fit(tmp_path / "nowhere" / "fit.ckpt", callbacks=[lambda *args: pytest.fail("a step")])


def test_a_stream_that_is_read_once_is_refused_before_any_step(tmp_path):
    ds = StreamingDataset(iter([ROWS]), batch_size=20, check_order="ignore", name="once")
    with pm.Model():
        pm.Normal("y", pm.Normal("mu"), 1, observed=ds.as_tensor(), total_size=1000)
        with pytest.raises(TypeError, match="'once'"):
            pm.fit(60, checkpoint=tmp_path / "fit.ckpt", progressbar=False)
    assert ds.batches_seen == 0


def test_a_write_that_was_killed_leaves_the_last_file(tmp_path, monkeypatch):
    path = tmp_path / "fit.ckpt"
    fit(path, 20)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space"):
        patched.setattr(os, "fsync", fail)
        fit(path)
    assert path.read_bytes() == before
    assert bits(fit(path)) == bits(fit(tmp_path / "whole.ckpt"))
    assert sorted(other.name for other in tmp_path.iterdir()) == ["fit.ckpt", "whole.ckpt"]


# Real processes, killed.

N_KILLED = 3000


def start(path, combination, die="", **env):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, str(path), *combination, die],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | env,
    )


def run_script(path, data, method, optimizer, backend, die):
    """Fit in this process, and die in the middle of a write if told so."""
    writes = itertools.count(1)
    if die:
        name, number = die.split()
        call = getattr(os, name)

        def die_or(*args):
            if next(writes) == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args)

        setattr(os, name, die_or)

    def say(approx, losses, i):
        if not said:
            said.append(sys.stdout.write("steps\n"))
            sys.stdout.flush()

    said = []
    approx = fit(
        path,
        N_KILLED,
        data=data,
        method=method,
        optimizer=optimizer,
        backend=backend,
        callbacks=[say],
        checkpoint_interval=0.005,
    )
    sys.stdout.write(bits(approx) + "\n")


def killed_fit(path, combination, deaths):
    """Run the script again and again, killed as told; return its bits, and the steps at kills."""
    steps = []
    for die in deaths:
        process = start(path, combination, "" if isinstance(die, float) else die)
        if isinstance(die, float):
            process.stdout.readline()
            time.sleep(die)
            process.kill()
        process.communicate()
        steps.append(contents(path)["steps"])
        if process.returncode == 0:
            break  # it was quicker
    output, _ = start(path, combination).communicate()
    return output.split()[-1], steps


def test_kills_lose_nothing(tmp_path):
    """Of a process in the middle of a write, and at a random moment."""
    combination = ("stream", "fullrank_advi", "adam", "numba")
    whole, _ = killed_fit(tmp_path / "whole.ckpt", combination, [])
    deaths = ["fsync 9", "replace 9"]
    result, steps = killed_fit(tmp_path / "fit.ckpt", combination, deaths)
    assert 0 < steps[0] < steps[1] < N_KILLED
    assert result == whole


COMBINATIONS = list(
    itertools.product(
        ["stream", "minibatch"], ["advi", "fullrank_advi"], ["default", "adam"], ["numba", "c"]
    )
)


@pytest.mark.slow
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_many_kills_lose_nothing(combination, tmp_path):
    rng = random.Random(str(combination))
    whole, _ = killed_fit(tmp_path / "whole.ckpt", combination, [])
    deaths = [
        rng.uniform(0, 0.1),
        f"fsync {rng.randint(2, 12)}",
        rng.uniform(0, 0.1),
        f"replace {rng.randint(2, 12)}",
    ]
    result, _ = killed_fit(tmp_path / "fit.ckpt", combination, deaths)
    assert result == whole


if __name__ == "__main__":
    run_script(*sys.argv[1:])
