"""Hooks of a conftest.py: tests marked `full` run with QUANTRY_FULL=1 (scripts/test --full) alone.

    from full_marker import pytest_collection_modifyitems, pytest_configure  # noqa: F401
"""
import os

import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "full: slow or with large dependencies, runs with QUANTRY_FULL=1 (scripts/test --full)")


def pytest_collection_modifyitems(items):
    if os.environ.get("QUANTRY_FULL"):
        return
    skip = pytest.mark.skip(reason="slow or with large dependencies: set QUANTRY_FULL=1")
    for item in items:
        if "full" in item.keywords:
            item.add_marker(skip)
