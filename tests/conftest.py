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
"""Fixtures under upstream's names, so that the tests run unchanged in upstream's tree."""

import importlib
import os
import warnings

from types import ModuleType

import numpy as np
import pytensor
import pytest


def require(name: str) -> ModuleType:
    """Import an optional library, or skip the test with the reason; in CI it must be there."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if os.environ.get("CI"):
            pytest.fail(f"the extra test lacks {name}: {error}")
        pytest.skip(f"{name} is not installed")


@pytest.fixture(autouse=True)
def pytensor_config():
    """Make a rewrite that fails an error, as upstream's suite does."""
    with pytensor.config.change_flags(on_opt_error="raise"):
        yield


@pytest.fixture
def seeded_test():
    np.random.seed(20261121)


@pytest.fixture
def strict_float32():
    """Where the suite runs with floatX=float32, make every float64 that slips in an error."""
    strict = {"warn_float64": "raise"} if pytensor.config.floatX == "float32" else {}
    with pytensor.config.change_flags(**strict):
        yield


@pytest.fixture
def fail_on_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
