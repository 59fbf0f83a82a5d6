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
"""Command line of the benchmarks of speed: one table, printed and as CSV."""

import argparse
import importlib
import os
import time

from pathlib import Path

from benchmarks.processes import Options
from benchmarks.table import print_table, read_csv, write_csv
from examples.order_book.output import console

DESCRIPTION = """\
Measure speed and memory: one table, printed and written as CSV.

Every ratio is of things that ran in turn, in this run: the median over the rounds, and the range.
Peak memory is that of a process of its own. Peers without an environment are skipped by name.

sections:
  step     a step of ADVI: a buffer that never changes, in-RAM minibatches, four streams
  advance  loading a batch that is ready
  loader   rows per second into batches, against other loaders
  passes   log-density, gradient and Hessian over all rows
  shuffle  pre_shuffle, against DuckDB and a plain copy
  checkpoint  what a checkpoint costs a step, and a write of one
  fit      a whole fit, against NumPyro and pymc-extras
  import   `import pymc`, against upstream's
"""
MODULES = {
    "step": "steps",
    "advance": "advance",
    "loader": "loader",
    "passes": "passes",
    "shuffle": "shuffling",
    "checkpoint": "checkpoint",
    "fit": "whole_fit",
    "import": "imports",
}
PEERS = ".venv-peers/bin/python"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = "all sizes and more rounds: about an hour on two cores, not 10 minutes; 12 GB of disk"
    parser.add_argument("--full", action="store_true", help=text)
    text = "only these sections; the CSV keeps its rows of the others"
    parser.add_argument("--only", nargs="+", choices=MODULES, metavar="SECTION", help=text)
    text = f"Python with benchmarks/requirements-peers.txt (default: {PEERS}, if it is there)"
    parser.add_argument("--peers", metavar="PYTHON", help=text)
    text = "where tables are kept (default: %(default)s)"
    parser.add_argument("--folder", type=Path, default="benchmark_data", help=text)
    text = "where the table is written, row by row (default: FOLDER/speed.csv)"
    parser.add_argument("--csv", type=Path, metavar="FILE", help=text)
    return parser.parse_args()


def main() -> None:
    """Measure, write and print."""
    arguments = parse_arguments()
    # For all alike, importing is a part of the time: let bytecode be kept.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    peers = arguments.peers or (PEERS if Path(PEERS).exists() else None)
    if peers and not Path(peers).exists():
        raise SystemExit(f"--peers: there is no {peers}")
    options = Options(arguments.folder, peers, arguments.full)
    path = arguments.csv or arguments.folder / "speed.csv"
    chosen = arguments.only or list(MODULES)
    order = list(MODULES)
    table = [row for row in read_csv(path) if row.section not in chosen]
    for section in sorted(chosen, key=order.index):
        console.rule(section)
        start = time.perf_counter()
        for row in importlib.import_module(f"benchmarks.{MODULES[section]}").rows(options):
            table.append(row)
            table.sort(key=lambda row: order.index(row.section))
            write_csv(table, path)
        console.print(f"{section}: {time.perf_counter() - start:.0f} s")
    print_table(table)
    console.print(f"{os.cpu_count()} cores; the table is also in {path}")


if __name__ == "__main__":
    main()
