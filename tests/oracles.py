"""Libraries that only the extra `test-oracles` brings: what is compared to them is left out where they are missing.

Where all must hold, as in .ci/run, ORACLES=required makes a library that is missing an error.
"""

import os
from importlib import import_module
from types import ModuleType

import pytest


def oracle(name: str) -> ModuleType:
    """The library, or a skip of the whole file of tests that asks for it."""
    try:
        return import_module(name)
    except ImportError as missing:
        if os.environ.get("ORACLES") == "required":
            raise
        pytest.skip(f"{missing}; it comes with the extra test-oracles", allow_module_level=True)
