"""Build hook: the protos are generated into the wheel, see build_protos.py."""
from __future__ import annotations

import pathlib
import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import build_protos  # noqa: E402


class ProtoHook(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        build_protos.main([])
        build_data["artifacts"].append("quantry/v1/*")
