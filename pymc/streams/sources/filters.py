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
"""Filters: which rows of a batch are kept."""

from typing import Any, Protocol

import numpy as np


class Keep(Protocol):
    """Tells which rows are kept.

    Attributes
    ----------
    columns : tuple of str
        The columns that it looks at, which may be none.
    identity : str
        What tells it from another one.
    """

    columns: tuple[str, ...]
    identity: str

    def __call__(self, batch: Any, first_row: int) -> np.ndarray:
        """Return which rows of a record batch are kept, as booleans of shape ``(rows,)``.

        Parameters
        ----------
        batch : pyarrow.RecordBatch
            Rows, with these columns and others.
        first_row : int
            The place of the first one among the rows of all files in their order.
        """


class Filter:
    """Keeps the rows for which an expression is true: neither false nor null.

    Parameters
    ----------
    expression : pyarrow.compute.Expression
        The expression.
    schema : pyarrow.Schema
        The columns that there are.

    Raises
    ------
    TypeError, ValueError
        If it is no expression, or none of these columns.
    """

    def __init__(self, expression: Any, schema: Any):
        import pyarrow as pa
        import pyarrow.compute as pc

        if not isinstance(expression, pc.Expression):
            raise TypeError(
                f"filters must be an expression of Arrow, got {type(expression).__name__}. Write, "
                'say, pyarrow.compute.field("month") == 3; of tuples, '
                'pyarrow.parquet.filters_to_expression([("month", "==", 3)]) makes one.'
            )
        self._expression, self.identity = expression, str(expression)
        empty = _decoded(pa.RecordBatch.from_pylist([], schema))
        try:
            kept = self._evaluate(empty)
        except pa.ArrowException as error:
            raise ValueError(f"filters={self.identity}: {error}") from error
        if kept.type != "bool":
            raise TypeError(f"filters={self.identity} is of type {kept.type}, not bool.")
        # Without one of those that it looks at, it means nothing.
        names = schema.names
        self.columns = tuple(name for name in names if not self._is_of(empty.drop_columns(name)))
        if not self.columns:
            raise ValueError(f"filters={self.identity} looks at no column.")

    def __call__(self, batch: Any, first_row: int) -> np.ndarray:
        kept = self._evaluate(_decoded(batch.select(self.columns)))
        return kept.fill_null(False).to_numpy()

    def _evaluate(self, batch: Any) -> Any:
        import pyarrow as pa
        import pyarrow.acero as acero

        rows = acero.TableSourceNodeOptions(pa.Table.from_batches([batch]))
        project = acero.ProjectNodeOptions([self._expression], ["kept"])
        steps = [acero.Declaration("table_source", rows), acero.Declaration("project", project)]
        return acero.Declaration.from_sequence(steps).to_table(use_threads=False)["kept"]

    def _is_of(self, batch: Any) -> bool:
        import pyarrow as pa

        try:
            self._evaluate(batch)
        except pa.ArrowException:
            return False
        return True


def kept_rows(batch: Any, keeps: tuple[Keep, ...], first_row: int) -> Any:
    """Return the rows of a record batch that all of ``keeps`` keep."""
    import pyarrow as pa

    if not keeps:
        return batch
    kept = np.logical_and.reduce([keep(batch, first_row) for keep in keeps])
    return batch if kept.all() else batch.filter(pa.array(kept))


def _decoded(batch: Any) -> Any:
    """Return a batch with strings in place of dictionaries, which few functions of Arrow take."""
    import pyarrow as pa
    import pyarrow.types as pt

    columns = [c.dictionary_decode() if pt.is_dictionary(c.type) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)
