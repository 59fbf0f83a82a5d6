"""The demo's data: the vectorised fold against one event at a time."""

import subprocess
import sys

from pathlib import Path

import numpy as np
import pytest

pq = pytest.importorskip("pyarrow.parquet")

from examples.order_book.events import make_events  # noqa: E402
from examples.order_book.fold import CHUNK_ROWS, fold_events  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def fold_one_by_one(events):
    """Fold events into (time, mid, spread, imbalance, up), in plain Python."""
    books, last_mid, waiting, rows = {}, {}, {}, []
    for time, market, side, price, change in zip(*(events[name] for name in events.column_names)):
        market, side, price = market.as_py(), side.as_py(), price.as_py()
        book = books.setdefault(market, ({}, {}))
        book[side][price] = book[side].get(price, 0) + change.as_py()
        bids, asks = ({p: size for p, size in levels.items() if size} for levels in book)
        if not (bids and asks):
            continue
        bid, ask = max(bids), min(asks)
        assert bid < ask
        mid = (bid + ask) / 2
        if mid != last_mid.get(market, mid):
            for row in waiting.pop(market, []):
                row[-1] = int(mid > last_mid[market])
        last_mid[market] = mid
        imbalance = (bids[bid] - asks[ask]) / (bids[bid] + asks[ask])
        rows.append([time.value, (mid - 50) / 25, ask - bid, imbalance, None])
        waiting.setdefault(market, []).append(rows[-1])
    unknown = [i for i, row in enumerate(rows) if row[-1] is None]
    return rows[: unknown[0]]


def test_fold(tmp_path):
    n_events = 4 * CHUNK_ROWS
    make_events(tmp_path, n_events=n_events, n_files=3, seed=1)
    fold_events(tmp_path)
    table = pq.read_table(tmp_path / "table")
    expected = fold_one_by_one(pq.read_table(tmp_path / "events"))
    assert n_events - 2000 < len(expected) == table.num_rows
    columns = [table["time"].cast("int64"), *(table[name] for name in table.column_names[1:])]
    for column, values in zip(columns, zip(*expected)):
        np.testing.assert_allclose(column.to_numpy(), np.array(values), rtol=1e-6)
    assert (np.diff(table["time"].to_numpy()) >= np.timedelta64(0, "us")).all()
    assert 0.4 < table["up"].to_numpy().mean() < 0.6


def test_events_depend_on_the_seed_alone(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_events(tmp_path / name, n_events=20_000, n_files=2, seed=seed)
    a, b, c = (pq.read_table(tmp_path / name / "events") for name in "abc")
    assert a.equals(b)
    assert not a.equals(c)


def test_help():
    command = [sys.executable, "-m", "examples.order_book", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "stages:" in done.stdout
