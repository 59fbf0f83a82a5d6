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
"""Stage 3: shuffle the table on disk, once for all fits."""

import shutil

from pathlib import Path

from examples.order_book.output import console
from pymc.variational.streaming import pre_shuffle


def shuffle_table(folder: Path, seed: int) -> None:
    """Write the rows of ``folder/table`` to ``folder/shuffled`` in a uniformly random order."""
    table, shuffled = folder / "table", folder / "shuffled"
    if not table.is_dir():
        raise FileNotFoundError(f"no table in {table}: run the stage `fold` first")
    try:
        pre_shuffle(table, shuffled, seed=seed)
    except FileExistsError:  # of an earlier table
        shutil.rmtree(shuffled)
        pre_shuffle(table, shuffled, seed=seed)
    console.print(f"Shuffle: {shuffled}")
