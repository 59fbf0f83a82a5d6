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
"""``pm.fit(..., checkpoint="fit.ckpt")``: a fit that goes on after its process was killed.

The file is an ``.npz`` archive: NumPy arrays, and a header in JSON. It holds no pickles, so that
opening it runs no code. It is written aside and then renamed, so that it is always whole.
"""

import copy
import json
import logging
import os
import time

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytensor

from pytensor.tensor.random.type import RandomType

import pymc

from pymc.variational.checkpoint_identity import differences, identify
from pymc.variational.falling_rate import FallingAdam
from pymc.variational.stream_checks import streams_behind

_log = logging.getLogger(__name__)

FORMAT = 1
WAY_OUT = "Delete the file to start over, or pass another path as checkpoint."


def same_bits(checkpoint: Any) -> AbstractContextManager[Any]:
    """Have the step of a fit with a checkpoint compiled so that every process rounds alike.

    With "fast math", numba's results differ in the last bit between the process that compiles a
    function and those that load it from the cache on disk.
    """
    if checkpoint is None:
        return nullcontext()
    return pytensor.config.change_flags(numba__fastmath=False)


@contextmanager
def going_on(inference: Any, done: int, n: int) -> Iterator[tuple[int, int]]:
    """Give the steps done and the steps to do in a call of fit or refine for ``n`` steps."""
    checkpoint = inference._checkpoint
    first = done if checkpoint is None else checkpoint.call_start
    with nullcontext((done, n)) if checkpoint is None else checkpoint.going_on(n) as (done, left):
        if isinstance(inference._optimizer, FallingAdam):
            inference._optimizer.fall_between(first, done + left)
        yield done, left


class Checkpoint:
    """The file of a fit, and the fit as far as it has come.

    Parameters
    ----------
    path : str or path
        The file. If it exists, the fit goes on from it.
    interval : float
        Seconds from one write to the next.
    inference : Inference
        The inference.
    step_function : Function
        The compiled step function.
    score : bool
        Whether a step returns the loss.
    callbacks : list of callable
        Called after each step, before the file is written.
    kwargs : dict
        Arguments of the step function.

    Raises
    ------
    FileNotFoundError
        If the folder of the file does not exist.
    ValueError
        If the file is of another fit, is damaged, or is no checkpoint.
    TypeError
        If a stream can be read only once.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        interval: float,
        inference: Any,
        step_function: Any,
        score: bool,
        callbacks: list[Callable],
        kwargs: dict[str, Any],
    ):
        self._path = Path(path)
        if not self._path.parent.is_dir():
            raise FileNotFoundError(
                f"checkpoint={str(path)!r}: there is no folder {str(self._path.parent)!r}."
            )
        self._interval = interval
        self._inference = inference
        self._callbacks = callbacks
        self._identity = identify(inference, step_function, score, kwargs)
        self._streams = streams_behind(step_function.get_shared())
        self._inputs = [
            (given, container)
            for given, container in zip(step_function.maker.inputs, step_function.input_storage)
            if not streams_behind([given.variable])
        ]
        # What a callback puts in their place is state too, such as a learning rate that falls.
        self._at_start = [container.storage[0] for _, container in self._inputs]
        self.step = _CountedStep(step_function, score)
        # Steps done at the end of each call of fit or refine, and whether a callback ended it.
        self._ends: list[tuple[int, bool]] = []
        self._calls = 0
        self.call_start = 0
        self._stopped = False
        self._next_write = 0.0
        if self._path.exists():
            self._restore(*_read(self._path))
        else:
            self.step.hist = np.array(inference.hist)
            self._write()

    @contextmanager
    def going_on(self, n: int) -> Iterator[tuple[int, int]]:
        """Write the file during a call of fit or refine for ``n`` steps, and at its end."""
        end = self._begin_call(n)
        done = self.step.done
        left = max(end - done, 0)
        self.step.make_room(left)
        self._next_write = time.monotonic() + self._interval
        try:
            yield done, left
        except FloatingPointError:
            self.step.whole = False  # from NaN there is no going on
            raise
        finally:
            if self.step.whole:
                self._end_call(end, done)

    def _begin_call(self, n: int) -> int:
        """Return how many steps are done when a call for ``n`` steps ends."""
        self._stopped = False
        if len(self._ends) < self._calls:
            # The last call was interrupted, and whoever refines it takes it for ended.
            self._ends.append((self.call_start, True))
        end = self.call_start + n
        if self._calls < len(self._ends):
            ended, stopped = self._ends[self._calls]
            if ended >= end or (stopped and self._callbacks):
                return ended
            del self._ends[self._calls :]
        return end

    def _end_call(self, end: int, done_before: int) -> None:
        self._inference.hist = self._inference.approx.hist = self.step.hist.copy()
        done = self.step.done
        ends_now = self._calls == len(self._ends) and (self._stopped or done >= end)
        if ends_now:
            self._ends.append((done, self._stopped))
        self.call_start = self._ends[self._calls][0] if self._calls < len(self._ends) else done
        self._calls += 1
        if ends_now or done > done_before:
            self._write()

    def after_step(self, approx: Any, losses: Any, i: int) -> None:
        """Call the callbacks, and write the file if it is time: a callback of ``pm.fit``."""
        if self._callbacks:
            if losses is not None:  # of the whole call, not only since the last restart
                losses = self.step.hist[self.call_start - self.step.done :]
            try:
                for callback in self._callbacks:
                    callback(approx, losses, i)
            except StopIteration:
                self._stopped = True
                raise
        if time.monotonic() >= self._next_write:
            self._write()

    def _write(self) -> None:
        arrays = {"hist": self.step.hist}
        header = {
            "format": FORMAT,
            "pymc": pymc.__version__,
            "identity": self._identity,
            "steps": self.step.done,
            "ends": self._ends,
            "seeds": [group.rng.get_state(legacy=False) for group in self._inference.approx.groups],
            "streams": [stream.state_dict() for stream in self._streams],
            "state": {
                str(i): _pack(container.storage[0], f"state_{i}", arrays)
                for i, (given, container) in enumerate(self._inputs)
                if given.update is not None
                or isinstance(given.variable.type, RandomType)
                or container.storage[0] is not self._at_start[i]
            },
        }
        encoded = json.dumps(header, default=lambda value: value.tolist()).encode()
        arrays["header"] = np.frombuffer(encoded, np.uint8)
        aside = self._path.with_name(self._path.name + ".partial")
        with open(aside, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self._path)
        self._next_write = time.monotonic() + self._interval

    def _restore(self, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        found = differences(header["identity"], self._identity)
        if not found:
            for stream, state in zip(self._streams, header["streams"], strict=True):
                try:
                    stream.load_state_dict(state)
                except ValueError as error:
                    found.append(str(error))
        if found:
            if header["pymc"] != pymc.__version__:
                found.append(f"PyMC: {header['pymc']} in the file, {pymc.__version__} here")
            raise ValueError(
                f"{self._path} is the checkpoint of another fit. What differs:\n- "
                + "\n- ".join(found)
                + f"\n{WAY_OUT}"
            )
        for i, packed in header["state"].items():
            _, container = self._inputs[int(i)]
            container.storage[0] = _unpack(packed, container.storage[0], arrays)
        for group, state in zip(self._inference.approx.groups, header["seeds"], strict=True):
            group.rng.set_state(state)
        self._ends = [(end, stopped) for end, stopped in header["ends"]]
        self.step.done = header["steps"]
        self.step.hist = arrays["hist"]
        _log.info(f"{self._path}: {self.step.done:,d} steps are done.")


class _CountedStep:
    """A step function that counts its steps and keeps their losses."""

    def __init__(self, function: Any, score: bool):
        self._function = function
        self._score = score
        self._losses = np.empty(0)
        self._n_losses = 0
        self.done = 0
        self.whole = True  # False in the middle of a step

    @property
    def hist(self) -> np.ndarray:
        return self._losses[: self._n_losses]

    @hist.setter
    def hist(self, losses: np.ndarray) -> None:
        self._losses, self._n_losses = losses, len(losses)

    def make_room(self, n: int) -> None:
        """Make room for the losses of ``n`` steps."""
        if self._score:
            self._losses = np.concatenate([self.hist, np.empty(n)])

    def __call__(self) -> Any:
        self.whole = False
        loss = self._function()
        if self._score:
            self._losses[self._n_losses] = loss
            self._n_losses += 1
        self.done += 1
        self.whole = True
        return loss

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_function"], name)


def _pack(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Describe a value as JSON holds it, and put arrays aside under their names."""
    if isinstance(value, np.random.Generator):
        return {"generator": value.bit_generator.state}
    if isinstance(value, dict):  # a generator of JAX
        return {"dict": {key: _pack(item, f"{name}.{key}", arrays) for key, item in value.items()}}
    arrays[name] = np.asarray(value)
    return {"array": name}


def _unpack(packed: Any, here: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return the value that was packed, in the form of the one that is ``here``."""
    if "generator" in packed:
        generator = copy.deepcopy(here)
        generator.bit_generator.state = packed["generator"]
        return generator
    if "dict" in packed:
        return {key: _unpack(packed["dict"][key], item, arrays) for key, item in here.items()}
    array = arrays[packed["array"]]
    if array.shape != np.shape(here):
        raise ValueError(f"shape {array.shape} in the checkpoint, {np.shape(here)} here.")
    return array


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with open(path, "rb") as file:
        try:
            arrays = dict(np.load(file, allow_pickle=False))
            header = json.loads(arrays.pop("header").tobytes())
            version = header["format"]
        except Exception as error:
            raise ValueError(
                f"{path} is damaged, or is not a checkpoint of pm.fit ({error}). {WAY_OUT}"
            ) from error
    if version != FORMAT:
        raise ValueError(
            f"{path} has format {version} of checkpoints, and PyMC {pymc.__version__} reads format "
            f"{FORMAT}. {WAY_OUT}"
        )
    return header, arrays
