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
"""Stage 1: simulate raw level-2 order-book events, a file a day, in time order."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from numba import njit

from examples.order_book.output import console, finished_folder, is_finished, progress_bar

N_MARKETS = 8
N_WEEKS = 8
CHUNK_ROWS = 65_536
START = np.datetime64("2026-01-05T00:00:00", "us")
DAY = 86_400_000_000  # microseconds
BID, ASK = 0, 1

SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("us")),
        ("market", pa.uint8()),
        ("side", pa.uint8()),
        ("price", pa.uint8()),
        ("size_change", pa.int32()),
    ]
)

# What a week's regime says about the next mid move: the log-odds that it is up are linear in
# (1, (mid - 50) / 25, spread, imbalance), as in the model that is fitted later. The slopes of the
# first and of the last week, between which they drift, and how far a week strays from that line;
# the intercept is what keeps the mid near a level of the week's own.
FIRST_WEEK = np.array([-1.6, -0.4, 3.0])
LAST_WEEK = np.array([-0.6, 0.1, 0.4])
WEEK_NOISE = np.array([0.15, 0.05, 0.3])
LEVEL_NOISE = 0.12
USUAL_SPREAD = 2.0


def weekly_coefficients(seed: int) -> np.ndarray:
    """Coefficients of the direction of the next mid move, a row a week."""
    rng = np.random.default_rng([seed, 1])
    slopes = np.linspace(FIRST_WEEK, LAST_WEEK, N_WEEKS)
    slopes += WEEK_NOISE * rng.standard_normal(slopes.shape)
    level = LEVEL_NOISE * rng.standard_normal(N_WEEKS)
    intercept = -slopes[:, 0] * level - slopes[:, 1] * USUAL_SPREAD
    return np.column_stack([intercept, slopes])


def opening_book() -> tuple[np.ndarray, ...]:
    """Market, side and price of the events that build the books, the best levels first."""
    depth = np.arange(1, 50)
    price = np.stack([50 - depth, 50 + depth], axis=1).ravel()
    side = np.tile([BID, ASK], depth.size)
    market = np.repeat(np.arange(N_MARKETS), price.size)
    return market, np.tile(side, N_MARKETS), np.tile(price, N_MARKETS)


@njit(nogil=True)
def simulate(uniforms, beta, sizes, quotes, market, side, price, size_change):  # pragma: no cover
    """Advance the books by an event for each row of `uniforms`, and write the events down.

    Each event either sets one level at or behind the quotes to a new size, or moves a quote by one
    cent: a best level is removed, or a new one is added inside the spread. Behind the quotes every
    level has a size, so that a book never crosses and never runs empty.

    Parameters
    ----------
    uniforms : array of shape (n, 5)
        Random numbers from 0 to 1.
    beta : array of shape (4,)
        Coefficients of the direction of a mid move.
    sizes : array of shape (markets, 2, 100)
        Size by market, side and price: updated.
    quotes : array of shape (markets, 2)
        Best bid and best ask by market: updated.
    market, side, price, size_change : arrays of shape (n,)
        The events: written.
    """
    for i in range(uniforms.shape[0]):
        m = int(uniforms[i, 0] * quotes.shape[0])
        bid, ask = quotes[m, 0], quotes[m, 1]
        new_size = 1 + int(-200.0 * np.log(1.0 - uniforms[i, 4]))
        if uniforms[i, 1] < 0.15:
            bid_size, ask_size = sizes[m, 0, bid], sizes[m, 1, ask]
            imbalance = (bid_size - ask_size) / (bid_size + ask_size)
            mid = (0.5 * (bid + ask) - 50.0) / 25.0
            logit = beta[0] + beta[1] * mid + beta[2] * (ask - bid) + beta[3] * imbalance
            up = uniforms[i, 2] < 1.0 / (1.0 + np.exp(-logit))
            # Prices end at 1 and 99: a quote that cannot go on turns back.
            up = (up and ask < 99) or bid == 1
            narrows = ask - bid > 1 and (uniforms[i, 3] < 0.65 or ask - bid >= 6)
            s = 0 if up == narrows else 1
            if narrows:
                p = bid + 1 if up else ask - 1
                change = new_size
                quotes[m, s] = p
            else:
                p = ask if up else bid
                change = -sizes[m, s, p]
                quotes[m, s] = p + 1 if up else p - 1
        else:
            s = 0 if uniforms[i, 2] < 0.5 else 1
            depth = int(np.log(1.0 - uniforms[i, 3]) / np.log(0.75))
            p = max(bid - depth, 1) if s == 0 else min(ask + depth, 99)
            if new_size == sizes[m, s, p]:
                new_size += 1
            change = new_size - sizes[m, s, p]
        sizes[m, s, p] += change
        market[i], side[i], price[i], size_change[i] = m, s, p, change


def make_events(folder: Path, *, n_events: int, n_files: int, seed: int) -> None:
    """Write `n_events` events to ``folder/events``, over `n_files` files of a day each.

    Memory is that of one chunk of events, whatever their number.
    """
    settings = {"events": n_events, "files": n_files, "seed": seed}
    destination = folder / "events"
    if is_finished(destination, settings):
        console.print(f"Events: reusing {destination}")
        return
    rng = np.random.default_rng([seed, 0])
    weeks = weekly_coefficients(seed)
    opening = opening_book()
    sizes = np.zeros((N_MARKETS, 2, 100), dtype=np.int64)
    quotes = np.tile(np.array([49, 51]), (N_MARKETS, 1))
    edges = np.arange(n_files + 1) * n_events // n_files
    if edges[1] < opening[0].size:
        raise ValueError(f"the first file alone needs {opening[0].size} events: make more")
    with progress_bar() as progress, finished_folder(destination, settings) as partial:
        task = progress.add_task("Making events", total=n_events)
        for day in range(n_files):
            beta = weeks[day * N_WEEKS // n_files]
            n_day = int(edges[day + 1] - edges[day])
            with pq.ParquetWriter(partial / f"day-{day:03d}.parquet", SCHEMA) as writer:
                for first in range(0, n_day, CHUNK_ROWS):
                    n = min(CHUNK_ROWS, n_day - first)
                    # An event at a random moment of its share of the day: sorted as it is made.
                    moment = (np.arange(first, first + n) + rng.random(n)) * (DAY / n_day)
                    time = START + (day * DAY + moment.astype(np.int64)).astype("timedelta64[us]")
                    columns = tuple(np.empty(n, dtype=np.int64) for _ in range(4))
                    n_open = 0
                    if day == first == 0:
                        n_open = opening[0].size
                        for column, values in zip(columns, opening):
                            column[:n_open] = values
                        columns[3][:n_open] = rng.integers(1, 400, n_open)
                        sizes[opening] = columns[3][:n_open]
                    simulate(
                        rng.random((n - n_open, 5)),
                        beta,
                        sizes,
                        quotes,
                        *(column[n_open:] for column in columns),
                    )
                    arrays = [
                        pa.array(values, type=field.type)
                        for values, field in zip((time, *columns), SCHEMA)
                    ]
                    writer.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))
                    progress.advance(task, n)
