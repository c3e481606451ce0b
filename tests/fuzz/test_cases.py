"""2,000 cases, or as many more as `python tests/fuzz --cases N` is told to run."""

import pytest

from fuzz import campaign, oracle
from fuzz.commands import targets

pytestmark = pytest.mark.slow

SEED, CHUNK = 1, 2000
# Of one chunk; a run of 20,000 cases grows by less.
MOST_GROWTH = 96 * oracle.MEGABYTE


@pytest.fixture(scope="session")
def warmed_up():
    """What is loaded at the first case of a kind, and what the allocator keeps of it, is no growth."""
    oracle.prepare()
    campaign.run(SEED + 1, range(100))


@pytest.mark.usefixtures("warmed_up")
@pytest.mark.parametrize("first", range(0, 2000, CHUNK))
def test_no_case_breaks_a_promise(first):
    resident = oracle.resident()
    figures = campaign.run(SEED, range(first, first + CHUNK))
    assert {f"python tests/fuzz --seed {SEED} --case {number}": found for number, found in figures.failed.items()} == {}
    assert oracle.resident() - resident < MOST_GROWTH
    # Fuzzing that never gets through finds nothing behind the first check.
    ended = {(target, status) for target, status in figures.statuses if target in targets()}
    # No command here verifies what another one has merged, and few cases have all that a merge is taken back with.
    seldom = {("verify", 0), ("unmerge", 0)}
    assert ended >= {(target, status) for target in targets() for status in (0, 1)} - seldom
