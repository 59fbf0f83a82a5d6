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
"""The check of the order of batches on their way through a stream."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np

from pymc.streams.batches import Read
from pymc.streams.order.check import OrderCheck


@dataclass
class OrderWatch:
    """What follows the batches of a stream in their first epoch, and what it has found.

    Attributes
    ----------
    check : OrderCheck or None
        What each batch is given to; None when there is nothing more to look for.
    finding : str or None
        What was found.
    batches : int
        Batches that were looked at: after the finding, the number of the one that showed it.
    said : bool
        Whether the user knows.
    """

    check: OrderCheck | None
    finding: str | None = None
    batches: int = 0
    said: bool = False

    def follow(self, reads: Iterator[list[Read]], number: int) -> Generator[list[Read], None, None]:
        """Give what is read on, and look at the batches after number ``number``.

        Batches that come again, after a reset or a pause, were looked at before.
        """
        for some in reads:
            for read in some:
                number += 1
                if self.check is not None and number > self.batches and read.batch is not None:
                    self._look(self.check, read.batch, read.epoch, number)
            yield some

    def _look(self, check: OrderCheck, batch: list[np.ndarray], epoch: int, number: int) -> None:
        self.batches = number
        finding = check.add(batch)
        if epoch > 0:  # every row was looked at
            finding = finding or check.finding()
        if finding is not None or epoch > 0:
            self.check, self.finding = None, finding
