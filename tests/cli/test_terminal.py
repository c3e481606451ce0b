"""The one way out to the terminal: that there is no other, its tables, its JSON, and its bounds."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest
from adapters import lora, loras

import lora_inspect
from lora_inspect.cli import terminal

PACKAGE = Path(lora_inspect.__file__).parent
# terminal.py is the way out; bars and the line of what waits are drawn over, and click prints the help: words of ours
# alone.
OWN_WAYS = {"cli/terminal.py", "cli/progress_bar.py", "cli/verb.py"}
SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).as_posix() not in OWN_WAYS]
# What prints by its name alone, and what writes to a stream.
PRINTING = {
    "print", "echo", "secho", "echo_via_pager", "confirm", "prompt", "print_exc", "print_exception", "print_last",
    "excepthook", "show", "displayhook",
}  # fmt: skip
WRITING, STREAMS = {"write", "writelines", "buffer"}, {"stdout", "stderr", "__stdout__", "__stderr__"}


def printed_by(source):
    """The names in it that print, or write to a stream of the terminal."""
    nodes = list(ast.walk(ast.parse(source)))
    named = {node.id for node in nodes if isinstance(node, ast.Name)}
    named |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    named |= {alias.name for node in imports for alias in node.names}
    # Functions of ours, of which one shows metadata to its caller.
    named -= {alias.name for node in imports if (node.module or "").startswith("lora_inspect.") for alias in node.names}
    written_to = [node for node in nodes if isinstance(node, ast.Attribute) and node.attr in WRITING]
    return named & PRINTING | {node.attr for node in written_to if getattr(node.value, "attr", None) in STREAMS}


def test_nothing_else_prints():
    found = {path.relative_to(PACKAGE).as_posix(): printed_by(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert len(found) > 350
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source", ["print(1)", "click.echo(1)", "from click import echo", "traceback.print_exc()", "sys.stdout.write('a')",
               "sys.stderr.buffer"]
)  # fmt: skip
def test_the_search_finds_what_prints(source):
    assert printed_by(source)


def test_columns_of_a_table_stand_one_below_the_other(capsys):
    terminal.table([("日本", None, True), ("e\u0301é", 1.5, "\n"), ("plain", "", "x")], ("name", "number", "last"))
    assert capsys.readouterr().out.splitlines() == [
        "name   number  last",
        "-----  ------  ----",
        "日本           True",
        "e\u0301é     1.5     \\n",
        "plain          x",
    ]


def test_a_table_of_nothing_has_its_headers(capsys):
    terminal.table([], ("a", "b"))
    assert capsys.readouterr().out == "a  b\n-  -\n"


def test_cells_of_a_table_are_printed_as_they_are(capsys):
    # tabulate aligns numbers by their point, and drops blanks at the edges of cells and rows without a cell.
    rows = [("1.5", "x"), (" 10", "1e5"), ("", None), ("|", "-")]
    terminal.table(rows, ("a", "b"))
    assert capsys.readouterr().out == "a    b\n---  ---\n1.5  x\n 10  1e5\n\n|    -\n"
    terminal.columns_of(rows)
    assert capsys.readouterr().out == "1.5  x\n 10  1e5\n\n|    -\n"
    terminal.columns_of([(None, "")])
    assert capsys.readouterr().out == "\n"


def test_columns_of_wide_letters_stand_one_below_the_other(capsys):
    terminal.columns_of([("日本", None, True), ("e\u0301é", 1.5, "\n"), ("plain", "", "x")])
    assert capsys.readouterr().out.splitlines() == ["日本        True", "e\u0301é     1.5  \\n", "plain       x"]


def test_columns_of_nothing_are_no_line(capsys):
    terminal.columns_of([])
    assert capsys.readouterr().out == ""


def test_facts_of_nothing_are_no_line(capsys):
    terminal.facts([])
    assert capsys.readouterr().out == ""


def test_json_is_exact_and_holds_nothing_that_a_terminal_obeys(capsys):
    value = {"".join(map(chr, range(0x250))): ["\x7f", "\\\x7f", "\u202e\x9b\udc9b\U000e0041\U0001f3a8", '"\x7f"', 1.5]}
    terminal.json_text(value)
    printed = capsys.readouterr().out
    assert json.loads(printed) == value
    assert all(" " <= character <= "~" or character == "\n" for character in printed)


def test_long_names_and_values_are_cut_to_the_width_of_the_screen(run, write_safetensors):
    metadata = {f"key{number}": "short" for number in range(500)}
    metadata |= {"long": "v" * 2_000_000, "k" * 60_000: "日" * 5_000}
    file = write_safetensors({**loras(2), **lora(f"lora_unet_{'m' * 60_000}")}, metadata)
    whole = run("info", file, "--json").json["metadata"]
    assert whole == metadata
    shown = run("info", file, "--metadata", "--modules")
    assert shown.status == 0
    lines = shown.stdout.splitlines()
    long = " ".join(lines[lines.index(next(line for line in lines if line.startswith("long "))) :])
    left_out = int(re.search(r"\(([\d,]+) +more +characters\)", long)[1].replace(",", ""))
    assert left_out + long.count("v") == 2_000_000
    assert max(terminal.width(line) for line in lines if " lora-inspect " not in line) <= 80
    assert len(shown.stdout) < 500 * 210 + 10_000


# The peak of a process that a busy one forked begins at that one's own: Linux counts anew in the status.
MEASURED = """
import re, sys, time
from lora_inspect.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code, ended.code
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
print("MEASURED", peak, time.process_time(), file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count the peak of the parent too")
def test_a_long_value_costs_neither_memory_nor_time(run_process, write_safetensors):
    spent = []
    for length in (2, 2_000_000):
        metadata = {f"key{number}": "short" for number in range(150)} | {"long": "日" + "v" * length}
        file = write_safetensors(loras(2), metadata)
        shown = run_process("-c", MEASURED, "info", file, "--metadata")
        assert shown.status == 0, shown.stderr
        spent.append([float(number) for number in shown.stderr.split()[-2:]])
    assert spent[1][0] - spent[0][0] <= 100_000  # kB
    assert spent[1][1] - spent[0][1] <= 2  # seconds


def test_an_error_about_a_long_key_fits_a_screen(run, write_safetensors):
    header = json.dumps({"k" * 60_000: {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}).encode()
    file = write_safetensors({"a": ("F32", (1,), 0)}, header=header)
    sentence = run("info", file).refusal
    assert len(sentence) <= 2_000
    assert sentence.startswith(str(file))
    assert "more characters" in sentence


def test_long_names_in_lists_leave_room_for_each_other(run, write_safetensors, tmp_path):
    strays = {f"{number}{'s' * 9_000}end{number}": ("F32", (1,), 0) for number in range(7)}
    file = write_safetensors({**loras(1), **strays})
    done = run("convert", file, "-o", tmp_path / "out.safetensors")
    assert done.status == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("passed through as they are: 0sss")
    assert all(f"end{number}, " in line for number in range(5))
    assert line.endswith(", …")
