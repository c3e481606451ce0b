"""The cases of all algorithms are those of `tests/algorithms`, and helpers of this folder are imported by name."""

import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
sys.path += [str(_HERE), str(_HERE.parent / "algorithms")]
# Their assertions say as much as those of the tests.
pytest.register_assert_rewrite(
    "dense_sums", "dense_methods", "every_case", "merging_properties", "converting_properties"
)
