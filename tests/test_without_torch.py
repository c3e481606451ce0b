"""What does not compute works where torch is not installed, and loads neither torch nor numpy where they are.

`.ci/run` runs the same in an environment of its own that has no torch.
"""

from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "without_torch.py"
BLOCKED = "import runpy, sys; sys.modules['torch'] = None; "


@pytest.mark.slow
def test_all_fixtures_are_read(run_process):
    shown = run_process("-c", f"{BLOCKED}runpy.run_path({str(SCRIPT)!r}, run_name='__main__')")
    assert (shown.status, shown.stderr) == (0, ""), shown.stdout


def test_the_script_knows_whether_torch_is_there(run_process):
    shown = run_process(SCRIPT)
    assert (shown.status, shown.stderr) == (1, "")
    assert shown.stdout.startswith("torch is installed here: ")
