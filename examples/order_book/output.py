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
"""What every stage shares: the console, the progress bar, and folders that appear only when done."""

import json
import shutil

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SETTINGS = "_settings.json"

console = Console()


def progress_bar() -> Progress:
    """Progress bar on the shared console, with count, time spent and time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def is_finished(folder: Path, settings: dict) -> bool:
    """Whether `folder` holds finished output that was made with the same `settings`."""
    path = folder / SETTINGS
    return path.is_file() and json.loads(path.read_text()) == settings


@contextmanager
def finished_folder(folder: Path, settings: dict) -> Iterator[Path]:
    """Give a temporary folder to write to, and rename it to `folder` when all went well.

    Parameters
    ----------
    folder : Path
        Where the output belongs. Earlier output of this program is replaced; a folder that this
        program did not write is an error.
    settings : dict
        What the output depends on, kept beside it for :func:`is_finished`.

    Yields
    ------
    Path
        The folder to write to.
    """
    if folder.exists() and not (folder / SETTINGS).is_file():
        raise FileExistsError(f"{folder} exists and is not output of this program: move it away")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    (partial / SETTINGS).write_text(json.dumps(settings))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
