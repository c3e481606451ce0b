"""Merge, convert and check --fix on other systems write the bytes that they write here, and survive a kill there."""

import json
import os
from pathlib import Path

import pytest
from platforms import PLATFORMS

pytestmark = pytest.mark.slow

PYTHONPATH = os.pathsep.join(map(str, (Path(__file__).parents[2], Path(__file__).parents[1])))
SCRIPT = Path(__file__).with_name("every_platform.py")


# What takes longest is to load torch, once for each of these.
@pytest.mark.parametrize("platforms", [list(PLATFORMS)[::2], list(PLATFORMS)[1::2]], ids=", ".join)
def test_a_platform_gives_the_same_outputs_and_a_kill_leaves_none_half_done(platforms, run_process, fixtures, tmp_path):
    shown = run_process(SCRIPT, tmp_path, fixtures, *platforms, OMP_NUM_THREADS="1", PYTHONPATH=PYTHONPATH)
    assert shown.status == 0, shown.stderr
    found = json.loads(shown.stdout)
    here = found.pop("here")
    assert list(found) == platforms
    assert len({result[age] for result in here.values() for age in ("old", "new")}) == 2 * len(here)
    for platform, kinds in found.items():
        assert kinds.keys() == here.keys()
        for kind, result in kinds.items():
            about, wanted, killed = (platform, kind), here[kind], result["killed"]
            assert (result["new"], result["again"]) == (wanted["new"], wanted["new"]), about
            # Between the two renames that stand in for an exchange the old folder has another name.
            between = {None} if "folder" in kind and not PLATFORMS[platform].exchanges else set()
            assert set(killed) - between <= {wanted["old"], wanted["new"]}, about
            assert killed[0] == wanted["old"], about
            assert killed[-1] == wanted["new"], about
            assert set(result["next"]) == {wanted["new"]}, about
            assert not PLATFORMS[platform].locks or set(result["around"]) == {wanted["around"]}, about
