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
"""Stage 2: fold raw events into book states and feature rows, file by file in bounded memory.

Knows the raw files and nothing of how they were made. A row of the table is the state of one
market's book after one event:

=========  =============  ==========================================================
time       timestamp[us]  when the event happened; the table is in time order
mid        float32        (mid price in cents - 50) / 25, so that it is of order one
spread     int8           best ask - best bid, in cents
imbalance  float32        (bid - ask) / (bid + ask) of the sizes at the best quotes
up         int8           1 if the market's next mid move is up, 0 if down
=========  =============  ==========================================================
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from examples.order_book.output import console, finished_folder, is_finished, progress_bar

N_PRICES = 99
CHUNK_ROWS = 8_192  # events folded at a time, and so about the rows of a row group
BID, ASK = 0, 1

SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("us")),
        ("mid", pa.float32()),
        ("spread", pa.int8()),
        ("imbalance", pa.float32()),
        ("up", pa.int8()),
    ]
)


class Folder:
    """Fold chunks of events into feature rows; the books carry over from chunk to chunk.

    Attributes
    ----------
    books : dict of int to array of shape (2, 99)
        Sizes of each market's book after the last event, by side and by level from the best
        possible price on: bids from 99 down, asks from 1 up.
    waiting : dict of str to array
        Rows not given out yet, in time order, since the first whose next mid move is unknown.
    one_sided : int
        Number of events that left no row, as the book lacked a bid or an ask.
    """

    def __init__(self) -> None:
        self.books: dict[int, np.ndarray] = defaultdict(
            lambda: np.zeros((2, N_PRICES), dtype=np.int32)
        )
        self.waiting: dict[str, np.ndarray] = {}
        self.one_sided = 0

    def fold(self, events: pa.RecordBatch) -> pa.Table:
        """Fold events that follow those before, and give the rows that are complete by now."""
        raw = {name: events[name].to_numpy(zero_copy_only=False) for name in events.schema.names}
        quote = np.empty((2, events.num_rows), dtype=np.int32)
        size = np.empty((2, events.num_rows), dtype=np.int32)
        for market in np.unique(raw["market"]):
            own = np.flatnonzero(raw["market"] == market)
            own_side = raw["side"][own]
            price = raw["price"][own].astype(np.intp)
            level = np.where(own_side == BID, N_PRICES - price, price - 1)
            for side in (BID, ASK):
                best, size[side, own] = self._best_level(
                    self.books[market][side], own_side == side, level, raw["size_change"][own]
                )
                quote[side, own] = N_PRICES - best if side == BID else best + 1
        whole = (size > 0).all(axis=0)
        self.one_sided += int((~whole).sum())
        (bid, ask), (bid_size, ask_size) = quote[:, whole], size[:, whole]
        if (bid >= ask).any():
            raise ValueError(f"a book crosses at {raw['time'][whole][bid >= ask][0]}")
        rows = {
            "time": raw["time"][whole],
            "market": raw["market"][whole],
            "mid": bid + ask,  # in half cents until it is written: whole numbers compare exactly
            "spread": ask - bid,
            "imbalance": (bid_size - ask_size) / (bid_size + ask_size),
        }
        if self.waiting:
            rows = {name: np.concatenate([self.waiting[name], rows[name]]) for name in rows}
        return self._release(rows)

    @staticmethod
    def _best_level(
        book: np.ndarray, mine: np.ndarray, level: np.ndarray, change: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Best level and its size after each event, for one side of one book, updated in place."""
        states = np.zeros((mine.size, N_PRICES), dtype=np.int32)
        states[mine, level[mine]] = change[mine]
        states[0] += book
        np.cumsum(states, axis=0, out=states)
        if (states[-1] < 0).any():
            raise ValueError("a size falls below zero: events are missing or out of order")
        book[:] = states[-1]
        best = (states > 0).argmax(axis=1)
        return best, np.take_along_axis(states, best[:, None], axis=1)[:, 0]

    def _release(self, rows: dict[str, np.ndarray]) -> pa.Table:
        """Label the rows, give those before the first without a label, and keep the others."""
        up = np.full(rows["mid"].size, -1, dtype=np.int8)
        for market in np.unique(rows["market"]):
            own = np.flatnonzero(rows["market"] == market)
            steps = np.diff(rows["mid"][own])
            moves = np.flatnonzero(steps)
            # The move from row k to k + 1 has number k: the next one of row i is the first >= i.
            following = np.searchsorted(moves, np.arange(own.size))
            known = following < moves.size
            up[own[known]] = steps[moves[following[known]]] > 0
        unknown = up < 0
        n = int(unknown.argmax()) if unknown.any() else up.size
        self.waiting = {name: values[n:] for name, values in rows.items()}
        mid = (rows["mid"][:n] / 2 - 50) / 25
        columns = (rows["time"][:n], mid, rows["spread"][:n], rows["imbalance"][:n], up[:n])
        arrays = [pa.array(v.astype(f.type.to_pandas_dtype())) for v, f in zip(columns, SCHEMA)]
        return pa.Table.from_arrays(arrays, schema=SCHEMA)

    @property
    def n_waiting(self) -> int:
        """Number of rows whose next mid move, or that of an earlier row, is not known yet."""
        return len(self.waiting["mid"]) if self.waiting else 0


def batches(events: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Chunks of a raw file."""
    # A row group at a time: over a whole file, `iter_batches` keeps memory of those behind.
    for group in range(events.num_row_groups):
        yield from events.iter_batches(CHUNK_ROWS, row_groups=[group])


def fold_events(folder: Path) -> None:
    """Fold ``folder/events`` into the Parquet files of ``folder/table``, one for each raw file.

    Memory is that of one chunk of events, whatever their number.
    """
    paths = sorted((folder / "events").glob("*.parquet"))
    if not paths:
        raise FileNotFoundError(f"no events in {folder / 'events'}: run the stage `events` first")
    stats = [path.stat() for path in paths]
    settings = {"events": [[p.name, s.st_size, s.st_mtime_ns] for p, s in zip(paths, stats)]}
    destination = folder / "table"
    if is_finished(destination, settings):
        console.print(f"Fold: reusing {destination}")
        return
    state = Folder()
    n_events = sum(pq.read_metadata(path).num_rows for path in paths)
    n_rows = 0
    with progress_bar() as progress, finished_folder(destination, settings) as partial:
        task = progress.add_task("Folding events", total=n_events)
        for number, path in enumerate(paths):
            with (
                pq.ParquetFile(path) as events,
                pq.ParquetWriter(
                    partial / f"part-{number:05d}.parquet",
                    SCHEMA,
                    compression="lz4",
                    use_dictionary=["spread", "up"],
                ) as writer,
            ):
                for batch in batches(events):
                    rows = state.fold(batch)
                    if rows.num_rows:
                        writer.write_table(rows)
                    n_rows += rows.num_rows
                    progress.advance(task, batch.num_rows)
    console.print(
        f"Fold: {n_events:,} events, {n_rows:,} rows in {destination}; no row for "
        f"{state.one_sided:,} events of a book without bid or ask, and for the last "
        f"{state.n_waiting:,}, whose next mid move is not known"
    )
