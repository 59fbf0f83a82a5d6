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
"""The steps of ``pm.fit`` on a model with streams: a new batch each, beside the threads that read."""

import warnings

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from pytensor import config
from pytensor.compile.mode import Mode, get_mode
from pytensor.graph.traversal import ancestors
from pytensor.link.numba.linker import NumbaLinker

from pymc.variational.fit_check import FitWatch
from pymc.variational.stream_checks import check_streams
from pymc.variational.stream_refusals import streams_behind
from pymc.variational.streaming import StreamingDataset


def prepare_streams(model: Any, compile_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Check a model's streams, and let its step function run beside the threads that read them.

    Parameters
    ----------
    model : Model
        The model.
    compile_kwargs : dict
        Arguments that the step function is compiled with.

    Returns
    -------
    dict
        The arguments, with another mode where the model has streams.
    """
    return beside_threads(compile_kwargs) if check_streams(model) else compile_kwargs


def beside_threads(compile_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Have a step function compiled so that other threads run beside it, where numba does it.

    Numba else keeps Python's lock, and a thread that wants it waits for some steps each time.
    """
    mode = get_mode(compile_kwargs.get("mode"))
    if type(mode.linker) is not NumbaLinker:
        return compile_kwargs
    return compile_kwargs | {"mode": Mode(_StepLinker(), mode.provided_optimizer)}


class _StepLinker(NumbaLinker):
    """Compile a function that runs without Python's lock, and is quick to call.

    PyTensor's own takes ``*args``: numba then works out the type of the tuple in each call, which
    takes longer than the step of a small model if a random generator is in it.
    """

    def jit_compile(self, fn_and_cache: Any) -> Any:
        from pytensor.link.numba.cache import compile_numba_function_src
        from pytensor.link.numba.dispatch.basic import numba_njit

        function, key = fn_and_cache
        if key is not None:
            # Of its own: numba's cache does not tell this function from the one with the lock.
            key = f"{key}_fastmath{int(config.numba__fastmath)}_nogil"
        assert self.fgraph is not None
        names = ", ".join(f"i{i}" for i in range(len(self.fgraph.inputs)))
        step = compile_numba_function_src(
            f"def step({names}): return function({names})",
            function_name="step",
            global_env={"__name__": __name__, "function": function},
            cache_key=key,
        )
        return numba_njit(step, final_function=True, nogil=True, cache=key is not None)


class StreamsOfFit(NamedTuple):
    """The streams that the steps of a fit read, and what is kept of them for its check."""

    streams: list[StreamingDataset]
    watch: FitWatch | None


@contextmanager
def streams_of(step_function: Any, model: Any, approx: Any = None) -> Iterator[StreamsOfFit]:
    """Give the streams that a compiled step function of a model reads, for the steps of a fit.

    At the end of the fit they let go of threads, open files and what was read ahead. The fit of an
    ``approx`` is then checked, also one that a callback or Ctrl-C has ended.

    Warns
    -----
    UserWarning
        If a stream enters the model other than through an observed variable, whose
        ``total_size`` would scale it.
    FitConvergenceWarning
        At the end, if the fit has not converged, or if a stream whose order is not known to be
        random has given a part of an epoch only.
    """
    streams = streams_behind(step_function.get_shared())
    values = [model.rvs_to_values[rv] for rv in model.observed_RVs]
    scaled = streams_behind(ancestors([*model.observed_RVs, *values]))
    potentials = streams_behind(ancestors(model.potentials))
    for stream in streams:
        if stream not in scaled or stream in potentials:
            warnings.warn(
                f"stream {stream.name!r} enters the model other than through an observed variable "
                "(a Potential, say), so that total_size does not scale its log-likelihood: "
                f"multiply it by N / {stream.batch_size} yourself.",
                stacklevel=2,
            )
    watch = None if approx is None else FitWatch.of(approx, streams)
    ended = False
    try:
        yield StreamsOfFit(streams, watch)
        ended = True
    except (KeyboardInterrupt, StopIteration):
        ended = True
        raise
    finally:
        for stream in streams:
            stream._end_fit()
        if ended and watch is not None:
            watch.check()


def advance_streams(fit: StreamsOfFit, step: int, n_steps: int) -> None:
    """Give each stream a new batch for step ``step`` (from 0) of ``n_steps``.

    Raises
    ------
    StopIteration
        If a stream has ended, after a warning that says how many steps are done.
    """
    for stream in fit.streams:
        stream._begin_step(step, n_steps)
    # Only now, so that none loses a batch where another one ends or is interrupted.
    for stream in fit.streams:
        stream._use_batch()
    if fit.watch is not None:
        fit.watch.before_step(step, n_steps)
