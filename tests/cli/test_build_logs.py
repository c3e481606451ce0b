"""Names that a build log would take for commands: GitHub's runner obeys a line that begins with `::`, blanks aside."""

import re
import sys

import pytest
from adapters import base, lora, loras

from lora_inspect.cli import terminal

# As ActionCommand.TryParseV2 of actions/runner takes a line: it trims the start and looks for the mark.
OBEYED = re.compile(r"^\s*::", re.MULTILINE)
FILE, OTHER, BASE = "::error::a.safetensors", "::warning::b.safetensors", "::debug::base.safetensors"
METADATA = {"::error::key": "v", "modelspec.title": "::error::title", "sshs_model_hash": "0" * 64, "long": "::x " * 99}
OUT = "::notice::out.safetensors"
COMMANDS = [
    ["info", FILE],
    ["info", FILE, "--why", "--modules", "--metadata"],
    ["info", FILE, OTHER],
    ["info", "."],
    ["info", ".", "--for", "comfyui", "--all"],
    ["info", FILE, "--norms"],
    ["info", FILE, "--spectrum"],
    ["compat", FILE],
    ["compat", FILE, "--for", "comfyui"],
    ["compat", ".", "--for", "comfyui"],
    ["check", FILE],
    ["check", ".", "--tensors"],
    ["check", FILE, "--fix", "-o", OUT],
    ["merge", BASE, FILE, "-o", OUT, "-v"],
    ["merge", BASE, FILE, "--dry-run"],
    ["convert", FILE, "-o", OUT],
    ["convert", ".", "-o", "::notice::folder"],
    ["resize", FILE, "--rank", "1", "-o", OUT],
    ["resize", ".", "--rank", "1", "-o", "::notice::folder"],
    ["combine", FILE, OTHER, "-o", OUT],
    ["average", FILE, OTHER, "-o", OUT],
    ["compare", FILE, OTHER],
    ["report", FILE, "-o", "::notice::page.html"],
    ["metadata", "show", FILE],
    ["metadata", "set", FILE, "::error::new=v"],
    ["info", "::error::gone.safetensors"],
]


@pytest.fixture
def place(write_safetensors, tmp_path, monkeypatch):
    write_safetensors(loras() | lora("::error::module"), METADATA, name=FILE)
    write_safetensors(loras(), name=OTHER)
    write_safetensors(base() | {"::error::module.weight": ("F32", (2, 2), 0)}, name=BASE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_line_is_command_of_build_log(words, place, run):
    shown = run(*words)
    assert shown.stdout or shown.stderr
    assert OBEYED.findall(shown.stdout + shown.stderr) == []


def test_row_and_first_line_name_path_in_working_folder(place, run):
    assert f"\n./{FILE} - " in run("info", FILE).stdout
    assert run("compat", FILE).stdout.startswith(f"./{FILE}\n")
    row = next(line for line in run("info", ".").stdout.splitlines() if "error" in line)
    assert row.startswith("./::error::a ")


def test_json_has_path_as_given(place, run):
    assert run("info", FILE, "--json").json["path"] == FILE


def test_columns_stay_aligned_behind_guarded_cell(capsys):
    terminal.table([["::a", "x"], ["longer", "y"]], ("name", "letter"))
    assert capsys.readouterr().out.splitlines() == [
        "name    letter",
        "------  ------",
        "./::a   x",
        "longer  y",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="a file cannot have such a name there")
def test_guarded_name_opens_same_file(place, run):
    printed = run("compat", FILE).stdout.splitlines()[0]
    assert run("info", printed, "--json").json["bytes"] == run("info", FILE, "--json").json["bytes"]
