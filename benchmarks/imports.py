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
"""Imports: the time of ``import pymc`` in a fresh process, against upstream's.

Upstream's files, of the release that this project patches, are those that the build has kept in
``.upstream``: they are imported with the same dependencies. The environment of peers may have
another release and other dependencies.
"""

import re
import shutil
import subprocess
import sys
import tempfile

from collections.abc import Iterator
from pathlib import Path

from benchmarks.processes import NO_PEERS, Options, in_turn, run
from benchmarks.table import Row, compared

ROOT = Path(__file__).resolve().parent.parent
CODE = """
import json, time
start = time.perf_counter()
import pymc
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "version": pymc.__version__}))
"""


def lay_out_upstream(folder: Path) -> bool:
    """Write upstream's files as released, if the build has kept them."""
    archive = folder / "pristine.tar"
    command = ["git", f"--git-dir={ROOT / '.upstream'}", "archive", f"--output={archive}"]
    if subprocess.run([*command, "pristine", "pymc"], capture_output=True).returncode:
        return False
    shutil.unpack_archive(archive, folder, filter="data")
    version = (ROOT / "pymc" / "_version.py").read_text()  # which a build makes
    (folder / "pymc" / "_version.py").write_text(re.sub(r'\+[^"]*', "", version))
    return True


def time_import(python: str | None, path: str = "") -> dict | str:
    """Import in a fresh process, from `path` rather than from what is installed."""
    return run([python, "-P", "-c", CODE], PYTHONPATH=path) if python else NO_PEERS


def rows(options: Options) -> Iterator[Row]:
    """Import in turn, after a round that is not counted: it makes the bytecode."""
    with tempfile.TemporaryDirectory() as name:
        kept = lay_out_upstream(Path(name))
        jobs = {
            "upstream": lambda: (
                time_import(sys.executable, name) if kept else "pip install -e . keeps its files"
            ),
            "ours": lambda: time_import(sys.executable, str(ROOT)),
            "peers'": lambda: time_import(options.peers),
        }
        in_turn(jobs, 1)
        results = in_turn(jobs, 11 if options.full else 3)
    named = {
        name if isinstance(runs, str) else f"{name} {runs[0]['version']}": runs
        for name, runs in results.items()
    }
    first = next(name for name, runs in named.items() if not isinstance(runs, str))
    yield from compared(named, first, lambda run: run["seconds"], section="import", unit="s")
