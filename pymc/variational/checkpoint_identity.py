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
"""What makes a fit the same fit in another process: model, data, method, optimizer, seed."""

import dataclasses
import functools
import hashlib
import re
import types

from typing import Any

import numpy as np
import pytensor

from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.op import HasInnerGraph, Op
from pytensor.graph.traversal import ancestors, toposort
from pytensor.tensor.random.type import RandomType

from pymc.variational.stream_checks import streams_behind

CHUNK_BYTES = 2**24


def identify(
    inference: Any, step_function: Any, score: bool, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Describe a fit by plain values, the same in every process that runs the same script.

    Data in memory are hashed whole: a gigabyte takes about 0.6 s. Streams tell by themselves, in
    :meth:`StreamingDataset.load_state_dict`, whether they are the same.

    Parameters
    ----------
    inference : Inference
        The inference.
    step_function : Function
        The compiled step function.
    score : bool
        Whether a step returns the loss.
    kwargs : dict
        Arguments of the step function.
    """
    approx, model = inference.approx, inference.approx.model
    inputs = step_function.maker.inputs
    leaves = _Leaves({given.variable for given in inputs if given.update is not None})
    model_description = _describe_model(model, leaves)
    data = dict(leaves.arrays)
    updates = [given.update for given in inputs if given.update is not None]
    losses = [output.variable for output in step_function.maker.outputs]
    step = _hash_graph([*updates, *losses], leaves)
    others = {name: value for name, value in leaves.arrays.items() if name not in data}
    arguments = {name: _text(value) for name, value in kwargs.items() if name != "compile_kwargs"}
    return {
        "method": {
            "inference": type(inference).__name__,
            "groups": [
                f"{type(group).__name__} of {', '.join(rv.name for rv in group.group)}"
                for group in approx.groups
            ],
        },
        "model": model_description,
        "data": data,
        "random_seed": [_text(group.random_seed) for group in approx.groups],
        "score": score,
        "floatX": pytensor.config.floatX,
        "step": hashlib.sha256(f"{step} {others}".encode()).hexdigest(),
        "arguments": arguments | others,
    }


def differences(file: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Say in what two fits differ, each thing by its name."""
    found = []
    for name in ("method", "model", "data", "random_seed", "score", "floatX"):
        found += _compare(name, file[name], here[name])
    # An argument that says the same in other words makes no other step.
    if file["step"] != here["step"]:
        found += _compare("", file["arguments"], here["arguments"])
        if not found:
            found.append("step: what the optimizer or the log-density computes")
    return found


def _compare(name: str, file: Any, here: Any) -> list[str]:
    if file == here:
        return []
    if not isinstance(file, dict) or not isinstance(here, dict):
        return [f"{name}: {file} in the file, {here} here"]
    where = f"{name}: " if name else ""
    return [
        line
        for key in dict.fromkeys([*here, *file])
        for line in _compare(f"{where}{key}", file.get(key), here.get(key))
    ]


def _describe_model(model: Any, leaves: "_Leaves") -> dict[str, Any]:
    for rv in model.observed_RVs:
        for variable in ancestors([model.rvs_to_values[rv]]):
            if variable.owner is None:
                leaves.describe(variable, f"observed data of {rv.name}")
    values = [model.rvs_to_values[rv] for rv in model.basic_RVs]
    return {
        "free variables": {
            rv.name: f"{rv.type}, {type(model.rvs_to_transforms[rv]).__name__}"
            for rv in model.free_RVs
        },
        "observed variables": [rv.name for rv in model.observed_RVs],
        "distributions": _hash_graph([*model.basic_RVs, *values, *model.potentials], leaves),
    }


class _Leaves:
    """What a graph begins with, described: its arrays apart, by name and contents.

    Parameters
    ----------
    state : set of SharedVariable
        What the steps of the fit update. Their contents do not count.
    """

    def __init__(self, state: set[SharedVariable]):
        self._state = state
        self._seen: dict[int, Any] = {}
        self.arrays: dict[str, str] = {}

    def describe(self, variable: Variable, name: str = "array") -> str:
        """Describe a variable that has no owner."""
        kind = f"{type(variable).__name__} {variable.type}"
        if isinstance(variable, Constant):
            data = variable.data
            if np.size(data) == 1:
                return f"{kind} {_text(data)}"
        elif isinstance(variable, SharedVariable):
            kind += f" {variable.name}"
            if (
                variable in self._state
                or isinstance(variable.type, RandomType)
                or streams_behind([variable])
            ):
                return kind
            data = variable.get_value(borrow=True)
        else:
            return kind
        if id(data) not in self._seen:
            self._seen[id(data)] = data
            name = variable.name or name
            number = sum(other.split(" #")[0] == name for other in self.arrays)
            self.arrays[f"{name} #{number + 1}" if number else name] = _text(data)
        return kind


def _hash_graph(outputs: list[Variable], leaves: _Leaves) -> str:
    sha = hashlib.sha256()
    for line in _lines(outputs, leaves):
        sha.update(f"{line}\n".encode())
    return sha.hexdigest()


def _lines(outputs: list[Variable], leaves: _Leaves) -> list[str]:
    """Write a graph down: a line for each variable that is read, and for each node."""
    numbers: dict[Variable, int] = {}
    lines = []

    def number(variable: Variable) -> int:
        if variable not in numbers:
            numbers[variable] = len(numbers)
            if variable.owner is None:
                lines.append(leaves.describe(variable))
        return numbers[variable]

    for node in toposort(outputs):
        inputs = list(map(number, node.inputs))
        results = [f"{number(output)}: {output.type}" for output in node.outputs]
        lines.append(f"{results} = {_text(node.op)} {inputs}")
        if isinstance(node.op, HasInnerGraph):
            lines += map(leaves.describe, node.op.inner_inputs)
            lines += _lines(node.op.inner_outputs, leaves)
    lines.append(str(list(map(number, outputs))))
    return lines


def _text(value: Any) -> str:
    """Describe a value as text that is the same in every process."""
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
        return _array_text(np.asarray(value))
    if isinstance(value, SharedVariable):
        return f"shared variable {value.name or ''}".rstrip()
    if isinstance(value, Variable):
        return f"{value.type}"
    if isinstance(value, functools.partial):
        arguments = [*map(_text, value.args)]
        arguments += [f"{name}={_text(given)}" for name, given in value.keywords.items()]
        return f"{_text(value.func)}({', '.join(arguments)})"
    if isinstance(value, type | types.FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Op):
        names = getattr(value, "__props__", ())
        props = [f"{name}={_text(getattr(value, name))}" for name in names]
        return f"{_text(type(value))}({', '.join(props)})"
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return f"{_text(type(value))}({_text(fields)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_text(key)}: {_text(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(_text, value)))}}}"
    if hasattr(value, "indptr"):  # a sparse matrix
        return _text([value.shape, value.data, value.indices, value.indptr])
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _array_text(array: np.ndarray) -> str:
    if array.size <= 1 or array.dtype.hasobject:
        return str(array.tolist())
    sha = hashlib.sha256()
    rows = max(1, CHUNK_BYTES * len(array) // array.nbytes) if array.nbytes else 1
    for start in range(0, len(array), rows):
        sha.update(np.ascontiguousarray(array[start : start + rows]).data)
    return f"{array.dtype} {array.shape} {sha.hexdigest()[:16]}"
