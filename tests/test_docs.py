"""The code in the README and in the guide runs as it stands, on files. `make docs` runs the notebooks."""

import json
import re
import subprocess
import sys

from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import yaml

from tests.conftest import require

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def events(tmp_path, monkeypatch):
    """Folders ``events/``, ``shuffled/``, ``heldout/`` and ``flights/`` as the documents name them."""
    rng = np.random.default_rng(1)
    for folder in ("events", "shuffled", "heldout"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            x = rng.normal(size=(20_000, 3)).astype("float32")
            up = rng.random(20_000) < 1 / (1 + np.exp(-x @ [1.0, -0.5, 0.25]))
            columns = dict(zip(["mid", "spread", "imbalance"], x.T)) | {"up": up.astype("int8")}
            # What the models do not read: only the rows that they are fitted to must be numbers.
            if folder != "shuffled":
                columns["time"] = pa.array(np.arange(20_000), pa.timestamp("us"))
            if folder == "heldout":
                columns["venue"] = np.where(x[:, 0] > 0, "XNYS", "XNAS")
            pq.write_table(
                pa.table(columns), tmp_path / folder / f"{i}.parquet", row_group_size=4096
            )
    for month in (1, 2, 3):
        place = tmp_path / "flights" / f"month={month}"
        place.mkdir(parents=True)
        carrier = rng.integers(0, 4, 3000)
        day = np.datetime64(f"2013-0{month}-01", "s")
        columns = {
            "carrier": np.array(["UA", "B6", "AA", "DL"])[carrier],
            "scheduled": pa.array(
                day + rng.integers(0, 28 * 86_400, 3000).astype("m8[s]"), pa.timestamp("s", "UTC")
            ),
            "air": rng.exponential(2.0, 3000),
            "delay": rng.normal(np.array([0.0, 0.5, -0.5, 0.1])[carrier]),
        }
        pq.write_table(pa.table(columns), place / "part-0.parquet", row_group_size=512)
    monkeypatch.chdir(tmp_path)


def code_of(path):
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return re.findall(r"```python\n(.*?)```", text, flags=re.S)
    blocks = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", text)
    return [dedent(block) for block in blocks]


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        "docs/source/guides/data.rst",
        "docs/source/guides/evaluate.rst",
        "docs/source/guides/methods.rst",
        "docs/source/guides/posterior.rst",
        "docs/source/guides/streaming.rst",
    ],
)
def test_code_runs_as_it_stands(path, events):
    blocks = code_of(path)
    assert blocks
    namespace = {}
    means = []
    for block in blocks:
        exec(compile(block, path, "exec"), namespace)
        if "approx" in namespace:
            means.append(namespace["approx"].mean.eval())
    np.testing.assert_allclose(means[0], [0, 1, -0.5, 0.25], atol=0.15)


@pytest.mark.slow
def test_code_of_the_design_runs_as_it_stands(events):
    """The contract: the long form, with the callback, on files that hold just the four columns."""
    import pymc as pm

    from pymc.variational.streaming import StreamingDataset, parquet_source, shuffle_buffer

    ds = StreamingDataset(
        shuffle_buffer(parquet_source("shuffled/"), buffer_size=1_000_000, batch_size=4096, seed=0),
        batch_size=4096,
        sample_shape=(4,),
        total_size="auto",
    )
    with pm.Model():
        b = pm.Normal("b", 0.0, 3.0, shape=4)
        buf = ds.as_tensor()
        logit = b[0] + b[1] * buf[:, 0] + b[2] * buf[:, 1] + b[3] * buf[:, 2]
        pm.Bernoulli("up", logit_p=logit, observed=buf[:, 3], total_size=ds.total_size)
        approx = pm.fit(20_000, method="advi", callbacks=[ds.fit_callback()])
    np.testing.assert_allclose(approx.mean.eval(), [0, 1, -0.5, 0.25], atol=0.15)
    assert ds.batches_seen == 20_000

    source = parquet_source("events/", columns=["mid", "spread", "imbalance", "up"])
    with pm.Model():
        batch = pm.Minibatch(source, batch_size=4096)
        b = pm.Normal("b", 0.0, 3.0, shape=4)
        logit = b[0] + b[1] * batch[:, 0] + b[2] * batch[:, 1] + b[3] * batch[:, 2]
        pm.Bernoulli("up", logit_p=logit, observed=batch[:, 3], total_size=source.n_rows)
        approx = pm.fit(20_000, method="advi")
    np.testing.assert_allclose(approx.mean.eval(), [0, 1, -0.5, 0.25], atol=0.15)


@pytest.mark.parametrize("engine", ["dask", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_shuffle_by_a_cluster_is_fair_and_loses_no_row(engine, events):
    require("dask.dataframe" if engine == "dask" else "ray.data")
    from pymc.variational.streaming import order_report, parquet_source

    for i in range(3):  # in order
        table = pq.read_table(f"events/{i}.parquet").drop("time")
        row = pa.array(np.arange(20_000 * i, 20_000 * (i + 1)))
        pq.write_table(table.append_column("row", row), f"events/{i}.parquet", row_group_size=4096)
    [code] = [c for c in code_of("docs/source/guides/cluster.rst") if f"import {engine}" in c]
    exec(compile(code, "cluster.rst", "exec"), {})
    source = parquet_source(f"shuffled_by_{engine}/")
    rows = np.concatenate([block["row"] for block in source])
    np.testing.assert_array_equal(np.sort(rows), np.arange(60_000))
    before, after = (
        order_report(files, batch_size=512).table["in order"]
        for files in (parquet_source("events/"), source)
    )
    assert before["row"] > 500 and after.max() < 2


@pytest.mark.slow
def test_the_code_for_executors_runs_as_it_stands(events):
    """In a process of its own, whose workers import the script."""
    [code] = [c for c in code_of("docs/source/guides/cluster.rst") if "get_context" in c]
    Path("script.py").write_text(code + "        print(approx.mean.eval().round(2).tolist())\n")
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    means = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(means, [0, 1, -0.5, 0.25], atol=0.05)


NOTEBOOKS = sorted((ROOT / "docs/source/notebooks").iterdir())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_listed_and_compile(path):
    """All in all, `make docs` would do nothing with a file that this refuses, or stop in its middle."""
    assert path.suffix == ".md"
    toctree = (ROOT / "docs/source/index.rst").read_text()
    assert f"\n   notebooks/{path.stem}\n" in toctree
    header, text = re.fullmatch(r"---\n(.*?)\n---\n(.*)", path.read_text(), flags=re.S).groups()
    header = yaml.safe_load(header)
    assert header["jupytext"]["text_representation"]["format_name"] == "myst"
    assert header["kernelspec"]["name"] == "python3"
    cells = re.findall(r"^```\{code-cell\} ipython3\n(.*?)^```$", text, flags=re.S | re.M)
    assert cells and len(cells) == text.count("{code-cell}") == text.count("```") / 2
    for cell in cells:
        compile(cell, path.name, "exec")
