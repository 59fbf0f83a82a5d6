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
"""Records: rows with their values side by side, which are moved as one whatever the columns."""

from typing import Any

import numpy as np

from pymc.streams.sources.tables import bits_of, width_of

# An alignment that all values share.
WORD = 8


class Records:
    """Convert tables to ones with a record for each row, and back.

    All columns of fixed width become one column of bytes. The others stay as they are.

    Parameters
    ----------
    schema : pyarrow.Schema
        Columns and types of the tables.
    """

    def __init__(self, schema: Any):
        self._schema, self._kinds = schema, schema.types
        widths = {i: width for i, kind in enumerate(self._kinds) if (width := width_of(kind))}
        self._others = [i for i in range(len(self._kinds)) if i not in widths]
        # Columns and where they begin in a record; the widest first, so that each is aligned.
        self._fixed: list[tuple[int, np.dtype, int]] = []
        end = 0
        for i in sorted(widths, key=lambda i: -widths[i]):
            self._fixed.append((i, np.dtype(f"u{widths[i]}"), end))
            end += widths[i]
        # Behind the values, a bit for each of them that is not null.
        self._validity = slice(end, end + -(-len(widths) // 8))
        self._width = -(-self._validity.stop // WORD) * WORD

    def pack(self, table: Any) -> Any:
        """Return a table with the columns of fixed width in one."""
        import pyarrow as pa

        batches = [self._pack(batch) for batch in table.to_batches()]
        return pa.Table.from_batches(batches)

    def _pack(self, batch: Any) -> Any:
        import pyarrow as pa

        n, columns = batch.num_rows, batch.columns
        memory = pa.allocate_buffer(n * self._width)
        records = np.frombuffer(memory, np.uint8).reshape(n, self._width)
        records[:, self._validity.start :] = 255
        for i, dtype, start in self._fixed:
            self._values(records, dtype, start)[:] = bits_of(columns[i])
        if any(columns[i].null_count for i, _, _ in self._fixed):
            valid = np.ones((n, len(self._fixed)), dtype=bool)
            for j, (i, _, _) in enumerate(self._fixed):
                if columns[i].null_count:
                    valid[:, j] = columns[i].is_valid().to_numpy(zero_copy_only=False)
            records[:, self._validity] = np.packbits(valid, axis=1)
        kind = pa.binary(self._width)
        packed = pa.Array.from_buffers(kind, n, [None, memory])
        others = [columns[i] for i in self._others]
        names = ["records", *map(str, self._others)]
        return pa.RecordBatch.from_arrays([packed, *others], names)

    def unpack(self, table: Any) -> Any:
        """Return the table that was packed."""
        import pyarrow as pa

        batches = [self._unpack(batch) for batch in table.combine_chunks().to_batches()]
        return pa.Table.from_batches(batches)

    def _unpack(self, batch: Any) -> Any:
        import pyarrow as pa

        packed, *others = batch.columns
        n = batch.num_rows
        records = np.frombuffer(
            packed.buffers()[1], np.uint8, n * self._width, packed.offset * self._width
        ).reshape(n, self._width)
        bits = records[:, self._validity]
        valid = None
        if (bits != 255).any():
            valid = np.unpackbits(bits, axis=1, count=len(self._fixed)).view(bool)
        columns = dict(zip(self._others, others))
        # One piece of memory for all columns: many small ones are not given back.
        memory = pa.allocate_buffer(n * self._validity.start)
        by_column = np.frombuffer(memory, np.uint8)
        for j, (i, dtype, start) in enumerate(self._fixed):
            kind = self._kinds[i]
            column = np.ndarray(n, dtype, by_column, n * start)
            column[:] = self._values(records, dtype, start)
            values = memory.slice(n * start, n * dtype.itemsize)
            if pa.types.is_boolean(kind):
                values = pa.py_buffer(np.packbits(column, bitorder="little"))
            validity = None
            if valid is not None and not valid[:, j].all():
                validity = pa.py_buffer(np.packbits(valid[:, j], bitorder="little"))
            columns[i] = pa.Array.from_buffers(kind, n, [validity, values])
        arrays = [columns[i] for i in range(len(columns))]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _values(self, records: np.ndarray, dtype: np.dtype, start: int) -> np.ndarray:
        """View one column in records."""
        return np.ndarray(len(records), dtype, records, start, (self._width,))
