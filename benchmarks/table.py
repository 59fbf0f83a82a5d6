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
"""The table of ``python -m benchmarks``: its rows, printed and as CSV."""

import csv

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from rich.box import SIMPLE
from rich.table import Table

from examples.order_book.output import console

TABLE_WIDTH = 160


@dataclass
class Row:
    """A line of the table: what was measured, with which settings, and what came out.

    The figure is the median over the rounds. The ratio is that of the figure to the one of
    `against` in the same round: median, lowest and highest.
    """

    section: str
    case: str
    n_rows: int | None = None
    batch_size: int | None = None
    columns: int | None = None
    floatX: str = ""
    backend: str = ""
    figure: float | None = None
    unit: str = ""
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    against: str = ""
    peak_mb: float | None = None  # largest over the rounds
    more_mb: float | None = None  # than the peak of `against`
    skipped: str = ""  # why there is no figure


def compared(
    results: dict[str, list[dict] | str],
    against: str,
    figure: Callable[[dict], float],
    *,
    label: str = "{}",
    **settings,
) -> Iterator[Row]:
    """Give a row for each result of :func:`in_turn`, compared with one of them.

    Parameters
    ----------
    results : dict
        By name, the result of each round, or why there is none.
    against : str
        Name of the one to compare with.
    figure : callable
        Takes the figure from a result. Results may also have a ``"peak_mb"``.
    label : str
        Makes a case of a name.
    **settings
        What else the rows have in common.
    """
    base = results[against]
    for name, runs in results.items():
        row = Row(case=label.format(name), **settings)
        if isinstance(runs, str):
            row.skipped = runs
        else:
            row.figure = rounded(np.median([figure(run) for run in runs]))
            row.peak_mb = peak_of(runs)
        if name != against and not isinstance(runs, str) and not isinstance(base, str):
            ratios = [figure(run) / figure(other) for run, other in zip(runs, base)]
            low, middle, high = np.quantile(ratios, [0, 0.5, 1])
            row.ratio, row.ratio_low, row.ratio_high = map(rounded, (middle, low, high))
            row.against = label.format(against)
            if row.peak_mb is not None and (base_mb := peak_of(base)) is not None:
                row.more_mb = rounded(row.peak_mb - base_mb)
        yield row


def peak_of(runs: list[dict]) -> float | None:
    """Largest peak memory of some results, if it was measured."""
    return rounded(max(run["peak_mb"] for run in runs)) if "peak_mb" in runs[0] else None


def rounded(value: float) -> float:
    """Round to four digits: there are no more in a time."""
    return float(f"{value:.4g}")


def write_csv(rows: list, path: Path) -> None:
    """Write the rows, aside first, so that the file is always whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", newline="") as file:
        writer = csv.DictWriter(
            file, [field.name for field in fields(rows[0])], lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(map(asdict, rows))
    partial.replace(path)


def read_csv[R](path: Path, kind: type[R] = Row) -> list[R]:
    """Read the rows that :func:`write_csv` wrote; none if there is no file."""
    if not path.is_file():
        return []
    kinds = {field.name: field.type for field in fields(kind)}

    def parse(name: str, text: str) -> str | float | None:
        if kinds[name] is str:
            return text
        number = int if kinds[name] in (int, int | None) else float
        return number(text) if text else None

    with open(path, newline="") as file:
        lines = list(csv.DictReader(file))
    return [kind(**{name: parse(name, text) for name, text in line.items()}) for line in lines]


def print_table(rows: list[Row]) -> None:
    """Print the rows."""
    report = Table(
        box=SIMPLE,
        collapse_padding=True,
        caption="ratio: of the figure to that of the case named, in the same round: median over "
        "the rounds, and range; more MB: than the peak of that case",
    )
    for name in ("section", "case"):
        report.add_column(name)
    for name in ("M rows", "batch", "cols", "floatX", "backend", "figure", "ratio"):
        report.add_column(name, justify="right")
    report.add_column("to")
    for name in ("peak MB", "more MB"):
        report.add_column(name, justify="right")
    for i, row in enumerate(rows):
        figure = (
            f"{row.figure:{'.4g' if row.figure < 1000 else ',.0f'}} {row.unit}"
            if row.figure is not None
            else ""
        )
        ratio = ""
        if row.ratio is not None:
            ratio = f"{row.ratio:.3g} ({row.ratio_low:.3g} to {row.ratio_high:.3g})"
        report.add_row(
            row.section,
            row.case,
            f"{row.n_rows / 1e6:.3g}" if row.n_rows is not None else "",
            *(f"{n:,}" if n is not None else "" for n in (row.batch_size, row.columns)),
            row.floatX,
            row.backend,
            figure,
            ratio,
            f"skipped: {row.skipped}" if row.skipped else row.against,
            *(f"{mb:,.0f}" if mb is not None else "" for mb in (row.peak_mb, row.more_mb)),
            end_section=i + 1 < len(rows) and rows[i + 1].section != row.section,
        )
    console.width = max(console.width, TABLE_WIDTH)
    console.print(report)
