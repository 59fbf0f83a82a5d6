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

from pymc.streams.shuffle.records import Records

pa = pytest.importorskip("pyarrow")

N = 50
THIRDS = [i if i % 3 else None for i in range(N)]
TABLE = pa.table(
    {
        "text": [None if i is None else f"text {i}" for i in THIRDS],
        "int8": pa.array(THIRDS, pa.int8()),
        "bool": [True, False, None, True, False] * (N // 5),
        "float64": [np.nan, -0.0, np.inf, None, 1.5] * (N // 5),
        "list": [[i] for i in range(N)],
        "uint64": pa.array([2**64 - 1 - i for i in range(N)], pa.uint64()),
        "float16": np.arange(N, dtype="float16"),
        "timestamp": pa.array(THIRDS, pa.timestamp("ns", "Europe/Berlin")),
        "date": pa.array(THIRDS, pa.date32()),
        "decimal": pa.array(range(N), pa.decimal128(9, 2)),
    }
)
# Some columns more than there are bits in a byte.
MANY = pa.table({f"x{i}": pa.array(np.roll(THIRDS, i), pa.int16()) for i in range(19)})


@pytest.mark.parametrize("table", [TABLE, MANY, TABLE.select(["bool"]), TABLE.select(["float16"])])
def test_records_are_unpacked_as_they_were(table):
    records = Records(table.schema)
    order = np.random.default_rng(1).permutation(N)
    for rows in (table, table.slice(7, 20), table.slice(1, 1)):
        taken = order[order < len(rows)]
        packed = records.pack(rows).take(taken)
        unpacked = records.unpack(packed.slice(len(rows) // 5))
        assert unpacked.schema == table.schema
        # As text, in which NaN is like NaN.
        assert str(unpacked.to_pylist()) == str(rows.take(taken[len(rows) // 5 :]).to_pylist())
        unpacked.validate(full=True)


def test_all_columns_of_fixed_width_become_one():
    packed = Records(TABLE.schema).pack(TABLE)
    assert [str(kind).split("[")[0] for kind in packed.schema.types] == [
        "fixed_size_binary",
        "string",
        "list<item: int64>",
        "decimal128(9, 2)",
    ]
