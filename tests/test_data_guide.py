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
"""Each line of the table of sources in the guide, run as it stands on small data."""

import re
import sqlite3
import sys

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pymc.variational.streaming import StreamingDataset, parquet_source, table_source
from tests.conftest import require

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pads = pytest.importorskip("pyarrow.dataset")
pc = pytest.importorskip("pyarrow.compute")
feather = pytest.importorskip("pyarrow.feather")

N = 3000
GUIDE = Path(__file__).parents[1] / "docs" / "source" / "guides" / "data.rst"
LINE = re.compile(r"   \* - (.+)\n     - ``(.+)``\n     - (yes|no)\n     - (yes|no)\n")
LINES = LINE.findall(GUIDE.read_text())
LIBRARIES = {
    "pl": "polars",
    "dd": "dask.dataframe",
    **{name: name for name in ("duckdb", "datasets", "deltalake", "ray", "h5py", "zarr")},
}


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    frame = pd.DataFrame({"x": np.arange(N) / 2, "y": np.arange(N) % 3})
    table = pa.Table.from_pandas(frame, preserve_index=False)
    Path("rows").mkdir()
    for i in range(3):
        pq.write_table(table.slice(1000 * i, 1000), f"rows/{i}.parquet")
    for i in range(3):
        Path(f"by_month/month={i}").mkdir(parents=True)
        pq.write_table(table.slice(1000 * i, 1000), f"by_month/month={i}/part-0.parquet")
    frame.to_csv("rows.csv", index=False)
    feather.write_feather(table, "rows.feather", compression="uncompressed")
    frame.to_sql("rows", sqlite3.connect("rows.db"), index=False)
    np.save("x.npy", frame["x"])
    yield frame
    if "ray" in sys.modules:  # its workers are in this folder
        sys.modules["ray"].shutdown()


class IcebergTable:
    """What the line of Iceberg asks of pyiceberg, which the tests do without."""

    def scan(self):
        return self

    def to_arrow_batch_reader(self):
        return pads.dataset("rows").scanner().to_reader()


def write(library, frame):
    """Write the files that only a library writes."""
    if library == "h5py":
        with require("h5py").File("rows.h5", "w") as file:
            file["x"] = frame["x"]
    elif library == "zarr":
        require("zarr").save_array("rows.zarr", frame["x"].to_numpy())
    elif library == "deltalake":
        require("deltalake").write_deltalake("delta", pa.Table.from_pandas(frame))


def test_the_table_was_found():
    assert len(LINES) > 18


@pytest.mark.parametrize(
    ("line", "n_known", "seekable"),
    [
        pytest.param(*rest, id=what, marks=[pytest.mark.slow] if "Ray" in what else [])
        for what, *rest in LINES
    ],
)
def test_each_line_of_the_table_streams(line, n_known, seekable, rows):
    names = {name: globals()[name] for name in ("np", "pd", "pa", "pq", "pads", "pc")}
    names |= {"parquet_source": parquet_source, "table_source": table_source}
    names |= {"connect": sqlite3.connect, "table": IcebergTable()}
    for name, library in LIBRARIES.items():
        if re.search(rf"\b{name}\.", line):
            names[name] = require(library)
            write(library, rows)
    if "ray" in names:
        names["ray"].init(num_cpus=1, include_dashboard=False, ignore_reinit_error=True)
    source = eval(line, names)
    ds = StreamingDataset(source, batch_size=100, cycle=False, check_order="ignore")
    assert ds.total_size == (N if n_known == "yes" else None)
    assert ds._reader.batches.blocks.seekable == (seekable == "yes")
    batches = np.concatenate([batch.reshape(100, -1)[:, 0] for batch in ds])
    np.testing.assert_array_equal(np.sort(batches), rows["x"])
