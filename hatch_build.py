"""Build hook: lay out PyMC's own files beside ours before the wheel is put together."""

import sys

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent / "scripts"))

import fork


class LayOutUpstream(BuildHookInterface):
    def initialize(self, version, build_data):
        fork.layout()
