"""Sums of random adapters, whole and hostile: 400 in the quick run and 5,000 in the slow one."""

from collections import Counter

import pytest

from fuzz import sums

SEED = 1


def run(numbers, folder):
    """How many cases ended in each way; all failures are named."""
    ended, failures = Counter(), {}
    for number in numbers:
        place = folder / str(number)
        place.mkdir()
        case = sums.drawn(SEED, number, place)
        try:
            ended[sums.examine(case, place)] += 1
        except Exception as error:  # all failures are named
            failures[number] = f"{case.verb} {case.options} {case.defect}: {error!r}"
    assert failures == {}
    return ended


@pytest.mark.parametrize("first", [0, 100, 200, 300])
def test_some_cases(first, tmp_path):
    ended = run(range(first, first + 100), tmp_path)
    # Fuzzing that never gets through finds nothing behind the first check.
    assert ended["written"] >= 30
    assert ended["refused"] >= 10


@pytest.mark.slow
@pytest.mark.parametrize("first", range(400, 5000, 920))
def test_many_cases(first, tmp_path):
    ended = run(range(first, first + 920), tmp_path)
    assert ended["written"] >= 300
