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
"""Command line of the order-book demo."""

import argparse
import importlib.util

from pathlib import Path

from examples.order_book.runs import EXACT, HOW, SAMPLERS, compare, measure_memory

DESCRIPTION = """\
From raw order-book events to a posterior, from memory and streamed from disk.

stages:
  demo     all stages, one after the other
  events   make raw order-book events, a file a day
  fold     fold the events into a Parquet table of book states
  shuffle  shuffle the table on disk
  fit      find the exact posterior, and fit in RAM, in RAM with another seed, and streamed in
           three ways, each in a process of its own (with --how: only that one, in this process)
  memory   short fits on a sixteenth and a quarter of the table, for their peak memory
  report   print the comparison and save the pictures
"""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stages = ["demo", "events", "fold", "shuffle", "fit", "memory", "report"]
    parser.add_argument("stage", choices=stages, metavar="stage", help="one of those above")
    text = "where everything is kept (default: %(default)s)"
    parser.add_argument("--folder", type=Path, default="order_book_data", help=text)
    numbers = {
        "events": (3_000_000, "number of events"),
        "files": (56, "number of files of events, one a day"),
        "seed": (0, "seed of the events"),
        "steps": (25_000, "steps of ADVI"),
        "batch-size": (4096, "rows in a minibatch"),
        "buffer-size": (250_000, "rows in the shuffle buffer of the stream"),
        "fit-seed": (1, "seed of the fits"),
    }
    for name, (default, text) in numbers.items():
        text += " (default: %(default)s)"
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=text)
    text = "learning rate of the fits (default: %(default)s)"
    parser.add_argument("--rate", choices=("falling", "constant"), default="falling", help=text)
    parser.add_argument(
        "--how", choices=(EXACT, *HOW, *SAMPLERS), help="the only fit to do, in this process"
    )
    text = "also draw from the posterior, by Pathfinder and by NUTS (2 minutes more)"
    parser.add_argument("--sample", action="store_true", help=text)
    text = "use only the first files of the table"
    parser.add_argument("--table-files", type=int, metavar="N", help=text)
    parser.add_argument("--result", type=Path, help="JSON file for the result of --how")
    return parser.parse_args()


def main() -> None:
    """Run a stage, or all."""
    arguments = parse_arguments()
    for package in ("pyarrow", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise SystemExit(f"the demo needs {package}: pip install {package}")
    stage, folder = arguments.stage, arguments.folder
    options = {
        "batch_size": arguments.batch_size,
        "buffer_size": arguments.buffer_size,
        "rate": arguments.rate,
    }
    # Each stage imports its own libraries, so that no fit carries the memory of another stage's.
    if stage in ("demo", "events"):
        from examples.order_book.events import make_events

        make_events(folder, n_events=arguments.events, n_files=arguments.files, seed=arguments.seed)
    if stage in ("demo", "fold"):
        from examples.order_book.fold import fold_events

        fold_events(folder)
    if stage in ("demo", "shuffle"):
        from examples.order_book.shuffle import shuffle_table

        shuffle_table(folder, arguments.seed)
    if stage == "fit" and arguments.how:
        from examples.order_book.fit import fit

        result = arguments.result or folder / "fits" / f"{arguments.how}.json"
        fit(
            folder,
            how=arguments.how,
            fit_seed=arguments.fit_seed,
            steps=arguments.steps,
            table_files=arguments.table_files,
            **options,
        ).write(result)
    elif stage in ("demo", "fit"):
        compare(folder, arguments.fit_seed, arguments.sample, steps=arguments.steps, **options)
    if stage in ("demo", "memory"):
        measure_memory(folder, **options)
    if stage in ("demo", "report"):
        from examples.order_book.report import report

        report(folder)


if __name__ == "__main__":
    main()
