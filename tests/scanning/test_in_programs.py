"""Rows of a folder have the verdict of a program on the file alone, for every fixture and program."""

import pytest
from real_headers import FIXTURES, write_shapes

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.discovery import find_checkpoints
from lora_inspect.programs import PROGRAMS
from lora_inspect.programs.verdict import NOT_THERE, SAME, UNTESTED, is_lost, judge_each
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.file_info import inspect
from lora_inspect.reading.identify import adapter_candidates, with_paths
from lora_inspect.reporting.file_record import outlook_of, verdicts_of
from lora_inspect.scanning.scan_file import ANSWER, CONVERT, FINE, INFO_ONLY, OPEN, scan_file

NAMES = tuple(PROGRAMS)


@pytest.fixture(autouse=True)
def in_a_pipe(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


def judged(path):
    """The verdict of each program on a file alone."""
    adapter = read_adapter(open_checkpoint(path))
    families = adapter_candidates(adapter)
    return {
        one.program.name: one.verdict for one in judge_each(with_paths(adapter, families), families, PROGRAMS.values())
    }


def check(path):
    """The row of a file says in every program, and of all together, what is known of it alone."""
    one = scan_file(path, programs=NAMES)
    received = {name: found.verdict for name, found in one.in_programs.items()}
    if one.state in (INFO_ONLY, ANSWER):
        assert received == dict.fromkeys(NAMES, OPEN)
        return
    assert received == judged(path)
    info = inspect(path)
    outlook = outlook_of(info, verdicts_of(info), None)
    is_nothing = outlook is not None and is_lost(outlook.verdicts, info.candidates)
    assert (one.state, " load" in one.note or "loads " in one.note) == (CONVERT, True) or not is_nothing
    meant = {found.verdict for found in outlook.verdicts} if outlook else set()
    if "nobody has tried" in one.note:
        assert meant <= {UNTESTED}
    if one.state == FINE and not one.note:
        assert SAME in received.values()
    assert not is_nothing or one.state != FINE


def test_every_fixture_in_every_program(fixtures):
    for path in find_checkpoints(str(fixtures)):
        if scan_file(path).kind == "adapter":
            check(path)


@pytest.mark.parametrize("name", sorted(path.name.split(".")[0] for path in (FIXTURES / "key-shapes").iterdir()))
def test_real_names_in_every_program(name, tmp_path):
    check(str(write_shapes(name, tmp_path / f"{name}.safetensors", "F16", 8.0)))


def test_a_file_of_which_a_program_loads_nothing_is_not_fine_there(fixtures, run):
    rows = run("info", fixtures / "synthetic", "--for", "comfyui").stdout.splitlines()
    (row,) = (line for line in rows if line.startswith("split "))
    assert row.endswith("  loads nothing, so the adapter has no effect; it prints: lora key not loaded")
    assert rows[-2] == "in ComfyUI 0.33.0: 2 load correctly, 2 wrong strength, 2 DoRA lost, 2 nothing loaded"
    assert "fine" not in rows[-1]


@pytest.mark.parametrize(
    ("program", "fail_on", "status"),
    [
        ("comfyui", None, 0),
        ("comfyui", "wrong", 1),
        ("diffusers", "untested", 1),
        ("vllm", "wrong", 0),
        ("vllm", "untested", 1),
    ],
)
def test_the_status_is_that_of_the_worst_verdict(program, fail_on, status, fixtures, run):
    words = ["--fail-on", fail_on] if fail_on else []
    assert run("info", fixtures / "synthetic", "--for", program, *words).status == status


def test_compat_of_a_folder_is_the_table_of_a_program(fixtures, run):
    folder = fixtures / "synthetic"
    shown, same = run("compat", folder, "--for", "ComfyUI"), run("info", folder, "--for", "comfyui")
    assert (shown.status, shown.stdout) == (1, same.stdout)
    assert run("compat", folder, "--for", "vllm").status == 0
    assert run("compat", folder, "--for", "vllm", "--fail-on", "untested").status == 1
    assert run("compat", folder).status == 2
    assert run("compat", folder / "split.safetensors", "--fail-on", "wrong").status == 2
    assert run("info", folder, "--fail-on", "wrong").status == 2


def test_conditions_on_verdicts(fixtures, run):
    folder = fixtures / "synthetic"
    shown = run("info", folder, "--where", "ComfyUI=wrong strength").stdout.splitlines()
    assert [line.split()[0] for line in shown[1:-1]] == ["bf16_alpha_and_flags", "rslora_flag"]
    nothing = run("info", folder, "--where", "comfy=nothing", "--json").json
    assert [one["path"].rpartition("/")[2] for one in nothing] == [
        "diffusers_without_alpha.safetensors",
        "split.safetensors",
    ]
    assert "or the name of a program" in run("info", folder, "--where", "paint=wrong").stderr


@pytest.mark.parametrize("value", ["wrong", "wrong*"])
def test_wrong_stands_for_every_answer_that_fails(value, fixtures, run):
    shown = run("info", fixtures / "synthetic", "--where", f"comfyui={value}").stdout.splitlines()
    assert [line.split()[0] for line in shown[1:-1]] == [
        "bf16_alpha_and_flags",  # wrong strength
        "diffusers_without_alpha",  # nothing loaded
        "dora_and_rslora_flags",  # DoRA lost
        "dora_without_flag",  # DoRA lost
        "rslora_flag",  # wrong strength
        "split",  # nothing loaded
    ]


def test_json_has_the_verdict(fixtures, run):
    found = run("info", fixtures / "synthetic", "--for", "comfyui", "--json").json
    told = {one["path"].rpartition("/")[2]: one["for"] for one in found}
    assert told["rslora_flag.safetensors"] == {
        "program": "comfyui", "verdict": "wrong strength", "says": "half as strong",
    }  # fmt: skip
    assert told["base_f32.safetensors"] == {"program": "comfyui", "verdict": None, "says": ""}
    assert NOT_THERE[0] in {one["verdict"] for one in told.values()}
