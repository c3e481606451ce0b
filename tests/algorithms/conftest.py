"""The records of cases and what makes them are imported by name."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
# Their assertions say as much as those of the tests.
pytest.register_assert_rewrite("every_case", "merging_properties", "converting_properties")
