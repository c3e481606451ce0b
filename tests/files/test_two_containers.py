"""Two containers whose processes have the same number write one output at once: it is whole, and of one of them."""

from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("two_containers.py")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.slow
def test_two_processes_of_the_same_number_do_not_meet(force, run, run_process, fixtures, tmp_path):
    shared, alone = tmp_path / "shared", tmp_path / "alone.safetensors"
    shared.mkdir()
    options = ["--force"] if force else []
    shown = run_process(SCRIPT, shared, fixtures, *options, OMP_NUM_THREADS="1")
    found = shown.json
    assert found["numbers"] == [1, 1]
    assert found["meanwhile"] == 4  # a file and its lock for each
    assert found["left"] == ["out.safetensors"]
    if force:
        assert found["statuses"] == [0, 0], found
        assert not any("Error" in said for said in found["said"])
    else:
        assert sorted(found["statuses"]) == [0, 1], found
        wins = found["statuses"].index(0)
        assert found["multiplier"] == (0.5, 2.0)[wins]
        assert "it appeared while the command ran" in found["said"][1 - wins]
    adapter = f"{fixtures}/synthetic/rslora_flag.safetensors:{found['multiplier']}"
    assert run("merge", fixtures / "synthetic" / "base_f32.safetensors", adapter, "-o", alone).status == 0
    assert (shared / "out.safetensors").read_bytes() == alone.read_bytes()
