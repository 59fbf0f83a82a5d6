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
import pandas as pd
import pytest

from pymc.streams.blocks import Blocks
from pymc.streams.shuffle.disk import pre_shuffle
from pymc.streams.sources.parquet import parquet_source
from pymc.streams.sources.table import table_source
from pymc.variational.streaming import StreamingDataset
from tests.conftest import require

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def delta(tmp_path):
    """A Delta table of rows 0 to 99, from which a delete and an update have taken some."""
    deltalake = require("deltalake")
    place = tmp_path / "lake" / "rows"
    place.parent.mkdir()
    for start in (0, 50):
        rows = pa.table({"row": np.arange(start, start + 50), "key": ["a", "b"] * 25})
        deltalake.write_deltalake(place, rows, mode="append")
    table = deltalake.DeltaTable(place)
    table.delete("row < 10")
    table.update(updates={"row": "row + 1000"}, predicate="row >= 90")
    return place


LIVE = [*range(10, 90), *range(1090, 1100)]


@pytest.mark.parametrize("below", ["", "..", "one file"])
@pytest.mark.parametrize(
    "read",
    [
        parquet_source,
        table_source,
        lambda path: pre_shuffle(path, f"{path}-shuffled", seed=1),
    ],
    ids=["parquet_source", "table_source", "pre_shuffle"],
)
def test_a_delta_table_is_not_read_as_plain_files(read, below, delta):
    path = next(delta.glob("*.parquet")) if below == "one file" else (delta / below).resolve()
    # So many rows are in the files, of 90 that count.
    assert sum(pq.read_metadata(file).num_rows for file in delta.glob("*.parquet")) > 90
    with pytest.raises(ValueError, match=r"rows is a Delta table.*deltalake\.DeltaTable\(\""):
        read(path)


def test_a_delta_table_is_read_by_its_log(delta, tmp_path):
    table = require("deltalake").DeltaTable(delta)
    blocks = Blocks(table)
    assert blocks.n_rows == 90
    assert sorted(row for block in blocks.epoch(0) for row in block["row"].tolist()) == LIVE
    assert blocks.source.categories["key"].tolist() == ["a", "b"]
    ds = StreamingDataset(table, batch_size=10, cycle=False)
    assert sorted(row for batch in ds for row in batch[:, 0].tolist()) == LIVE
    shuffled = pre_shuffle(table, tmp_path / "shuffled", seed=1)
    assert sorted(pq.read_table(shuffled.files[0])["row"].to_pylist()) == LIVE


def test_an_iceberg_table_is_not_read_as_plain_files(tmp_path):
    (tmp_path / "rows" / "metadata").mkdir(parents=True)
    (tmp_path / "rows" / "metadata" / "00001-8f.metadata.json").write_text("{}")
    (tmp_path / "rows" / "data").mkdir()
    pd.DataFrame({"x": [1.0]}).to_parquet(tmp_path / "rows" / "data" / "0.parquet")
    for path in ("rows", "rows/data", "rows/data/*.parquet", ""):
        with pytest.raises(ValueError, match=r"rows is an Iceberg table.*to_arrow_batch_reader"):
            parquet_source(tmp_path / path)
        if "*" not in path:
            with pytest.raises(ValueError, match="rows is an Iceberg table"):
                table_source(tmp_path / path)


@pytest.mark.parametrize("log", ["_delta_log/0.json", "metadata/00001-8f.metadata.json"])
def test_what_lies_in_a_stored_table_is_not_read_as_plain_files(log, tmp_path):
    store = require("fsspec").filesystem("memory")
    pq.write_table(pa.table({"x": [1.0, 2.0]}), tmp_path / "0.parquet")
    lake = f"/lake-{log[:2]}"
    place = f"{lake}/rows"
    for path in ("rows/data/month=3", "rows/data", "beside"):
        store.put_file(str(tmp_path / "0.parquet"), f"{lake}/{path}/0.parquet")
    source = parquet_source(f"memory:/{place}/data/month=3")
    store.pipe_file(f"{place}/{log}", b"{}")
    for path in ("", "/data", "/data/month=3", "/data/month=3/0.parquet", "/data/*.parquet"):
        with pytest.raises(ValueError, match=r"rows is an? (Delta|Iceberg) table"):
            parquet_source(f"memory:/{place}{path}")
    assert parquet_source(f"memory:/{lake}/beside").n_rows == 2
    assert sum(len(block["x"]) for block in source) == 2


def test_a_folder_beside_a_lake_is_read(delta):
    place = delta.parent.parent / "plain"
    place.mkdir()
    pq.write_table(pa.table({"x": [1.0]}), place / "0.parquet")
    (place / "metadata").mkdir()
    assert parquet_source(place).n_rows == 1
