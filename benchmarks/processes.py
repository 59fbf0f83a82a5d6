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
"""What the sections of ``python -m benchmarks`` share: processes, run in turn."""

import json
import os
import subprocess
import sys

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import ABSENT

PEERS = Path(__file__).with_name("peers.py")
NEED_NO_PEERS = ("pyarrow", "copy")  # of those in peers.py
NO_PEERS = "no peers"


@dataclass
class Options:
    """What the command line says to every section."""

    folder: Path
    peers: str | None  # their Python
    full: bool


def run(command: list, timeout: float | None = None, **environment: str) -> dict | str:
    """Run a process and give the JSON that it prints last; if it fails, say why."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | environment,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {timeout:.0f} s"
    if done.returncode:
        absent = "absent: " if done.returncode == ABSENT else ""
        return absent + (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def run_peer(
    peers: str | None,
    task: str,
    name: str,
    *arguments: str,
    timeout: float | None = None,
    **environment: str,
) -> dict | str:
    """Run a task of ``benchmarks/peers.py`` with the Python that has what it needs."""
    python = sys.executable if name in NEED_NO_PEERS else peers
    if python is None:
        return NO_PEERS
    return run([python, PEERS, task, name, *arguments], timeout, **environment)


def in_turn(
    jobs: Mapping[str, Callable[[], dict | str]], n_rounds: int
) -> dict[str, list[dict] | str]:
    """Do all jobs in each round, and give the results of each; of one that failed, why."""
    results: dict[str, list[dict] | str] = {name: [] for name in jobs}
    for _ in range(n_rounds):
        for name, job in jobs.items():
            done = results[name]
            if isinstance(done, list):
                result = job()
                if isinstance(result, str):
                    results[name] = result
                else:
                    done.append(result)
    return results
