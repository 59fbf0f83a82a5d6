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
"""Position: what a stream needs to stop anywhere and go on, as plain numbers.

The order of epoch k of a source or shuffle depends on its seed, on k and on what draws it, and on
nothing else: not on who else reads it, on threads, or on how far anyone has read ahead.
"""

import zlib

from collections.abc import Iterable
from typing import Any

import numpy as np

# What a seed may be, as for numpy.random.default_rng.
Seed = int | np.random.Generator | np.random.SeedSequence | None


def seed_of(seed: Seed) -> int:
    """Return a seed given by the user, or fresh entropy, as a plain number.

    A generator gives a number that it draws, so that two components with one generator differ.
    """
    if isinstance(seed, np.random.Generator):
        return int.from_bytes(seed.bytes(16), "little")
    if not isinstance(seed, np.random.SeedSequence):
        seed = np.random.SeedSequence(seed)
    if isinstance(seed.entropy, int) and not seed.spawn_key:
        return seed.entropy
    return int.from_bytes(seed.generate_state(4).tobytes(), "little")


def random_order(n: int, seed: int, who: str, *numbers: int) -> np.ndarray:
    """Return the permutation of ``n`` that ``who`` draws, an epoch's number first.

    The spawn key [1]_ makes what two components, or two epochs, draw from one seed independent.

    References
    ----------
    .. [1] NumPy, "Parallel random number generation", section "SeedSequence spawning".
    """
    key = (zlib.crc32(who.encode()), *numbers)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)).permutation(n)


def checksum(arrays: Iterable[Any]) -> int:
    """Return a checksum of the values of arrays, in the order of their elements."""
    total = 0
    for array in arrays:
        # As bytes, which times are not in a buffer of their own.
        total = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), total)
    return total


def differences(state: dict[str, Any], here: dict[str, Any], where: str = "") -> list[str]:
    """Say in what two descriptions of plain values differ, each by its name."""
    found = []
    for name in [*here, *(name for name in state if name not in here)]:
        one, other = state.get(name), here.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, f"{where}{name}.")
        elif one != other:
            found.append(f"{where}{name}: {one!r} in the state, {other!r} here")
    return found
