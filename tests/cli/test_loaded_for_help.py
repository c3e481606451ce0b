"""What is loaded to show the help of a verb: its options, and nothing of what it does."""

import subprocess
import sys

import pytest

# What reads, decides and computes.
DOING = ("ops", "reading", "merging.plan", "matching", "programs", "editing", "verifying", "scanning")


VERBS = ["merge", "unmerge", "verify", "metadata", "metadata set", "metadata show", "metadata strip"]
# Options of `info` name what folders are sorted and chosen by.
INFO = ("ops", "reading.file_info", "programs", "architectures")


# Those of `convert` and `compat` name the programs.
CONVERT = (*(part for part in DOING if part != "programs"), "converting.plan", "converting.target")
COMPARE = (*CONVERT, "algebra.alignment", "algebra.measures.comparison", "algebra.measures.change_groups")


@pytest.mark.parametrize(
    ("verb", "doing"),
    [
        *((verb, DOING) for verb in VERBS),
        ("info", INFO),
        ("convert", CONVERT),
        ("compat", CONVERT),
        ("compare", COMPARE),
    ],
)
def test_the_help_of_a_verb_loads_nothing_of_what_it_does(verb, doing):
    code = (
        "import atexit, sys\n"
        "from lora_inspect.cli import main\n"
        "atexit.register(lambda: print('LOADED', *sys.modules))\n"
        f"main({[*verb.split(), '--help']})"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    _, _, loaded = said.partition("LOADED ")
    assert "lora_inspect.cli" in loaded.split()
    assert "tabulate" not in loaded.split()
    parts = tuple(f"lora_inspect.{one}." for one in doing)
    assert [name for name in loaded.split() if f"{name}.".startswith(parts)] == []
