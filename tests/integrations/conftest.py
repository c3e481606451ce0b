"""Fixtures for the tests of integrations: a wheel of the light form, and pip without a network."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def without_an_index(tmp_path_factory):
    """The environment of a pip that finds the light form in a folder, and all else among the packages of the tests."""
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT / "packaging" / "light", check=True, capture_output=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "GIT_"))}
    return kept | {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "PIP_NO_BUILD_ISOLATION": "0",  # which pip takes for: no isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONPATH": sysconfig.get_paths()["purelib"],
    }
