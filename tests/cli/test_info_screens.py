"""The screens of real files, letter by letter, and what every screen keeps to.

UPDATE_SCREENS=1 writes what is shown now into tests/cli/screens, to be read and committed.
"""

import json
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

import pytest
from adapters import lora
from hypothesis import given
from screens import EVERY, REAL, made
from strategies import told_metadata

from lora_inspect.cli import terminal
from lora_inspect.cli.info.screen import screen
from lora_inspect.cli.terminal import Sheet
from lora_inspect.reading.file_info import inspect
from lora_inspect.reporting.file_record import record_of, verdicts_of
from lora_inspect.sentences import printable, width

SCREENS = Path(__file__).parent / "screens"


@pytest.fixture
def synthetic(fixtures):
    return fixtures / "synthetic"


@pytest.fixture
def show(run, tmp_path, monkeypatch):
    """`show(name, *options)`: the screen of such a file, called by its bare name, in a pipe."""
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def show_file(name, *options):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        path = EVERY[name](folder)
        monkeypatch.chdir(folder)
        shown = run("info", path.relative_to(folder), *options)
        assert (shown.status, shown.stderr) == (0, "")
        return shown.stdout

    return show_file


@pytest.mark.parametrize("name", EVERY)
def test_the_screen_of_a_file_is_the_one_that_was_read_and_found_good(name, show):
    shown, kept = show(name), SCREENS / f"{name}.txt"
    if os.environ.get("UPDATE_SCREENS"):
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(shown, encoding="utf-8")
    assert shown == kept.read_text(encoding="utf-8")


def test_every_screen_is_that_of_a_file_and_fifteen_are_of_real_ones():
    assert {path.stem for path in SCREENS.glob("*.txt")} == set(EVERY)
    assert len(REAL) >= 15


@pytest.mark.parametrize("name", EVERY)
def test_lines_fit_80_columns_whatever_is_asked_for(name, show, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = show(name, "--why", "--modules", "--metadata")
    lines = shown.splitlines()
    assert shown == "".join(f"{line}\n" for line in lines)
    assert all(line == printable(line) for line in lines)
    assert [line for line in lines if width(line) > 80 and " lora-inspect " not in line] == []


@pytest.mark.parametrize("columns", [40, 60, 133])
@pytest.mark.parametrize("name", ["sd15-lokr-smart-falcon-4", "hostile", "wan-rslora-flag"])
def test_lines_fit_the_width_that_columns_says(name, columns, show, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = show(name, "--why", "--modules", "--metadata").splitlines()
    assert [line for line in lines if width(line) > columns and " lora-inspect " not in line] == []
    assert max(map(width, lines)) > columns - 12


def test_columns_sets_the_width_and_a_pipe_has_80(monkeypatch):
    for said, columns in {"": 80, "x": 80, "120": 120, "7": 40}.items():
        monkeypatch.setenv("COLUMNS", said)
        assert terminal.columns() == columns


def test_a_pipe_has_no_colours_unless_they_are_forced_and_no_color_wins(show, monkeypatch):
    plain = show("wan-rslora-flag")
    assert "\x1b" not in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = show("wan-rslora-flag")
    assert coloured.startswith("\x1b[1mRS-LoRA for Wan")
    assert "\x1b[1;31m!!  \x1b[0m" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert show("wan-rslora-flag") == plain


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_terminal_has_colours_unless_no_color_is_set_or_it_is_dumb(synthetic, tmp_path):
    from pseudo_terminal import on_a_terminal

    command = [["info", synthetic / "rslora_flag.safetensors"]]
    known = {"TERM": "xterm", "NO_COLOR": "", "FORCE_COLOR": ""}
    assert b"\x1b[1mRS-LoRA" in on_a_terminal(command, tmp_path, **known)[0][1]
    for other in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert b"\x1b" not in on_a_terminal(command, tmp_path, **known | other)[0][1]


def test_letters_that_the_encoding_lacks_are_spelled_and_lines_fit_all_the_same(run_process, tmp_path):
    path = EVERY["hostile"](tmp_path)
    shown = run_process("-m", "lora_inspect", "info", path, "--modules", PYTHONIOENCODING="ascii", COLUMNS="80")
    assert shown.status == 0
    lines = shown.stdout.splitlines()
    assert [line for line in lines if len(line) > 80 and " lora-inspect " not in line] == []
    assert shown.stdout.isascii()
    assert "..." in shown.stdout


@given(told_metadata)
def test_no_metadata_break_the_screen(metadata):
    with tempfile.TemporaryDirectory() as folder:
        path = made(lora("lora_unet_blocks_0_self_attn_q"), metadata)(Path(folder))
        info = inspect(str(path))
        verdicts = verdicts_of(info)
        lines = ["".join(piece.text for piece in line) for line in
                 screen(Sheet(80), info, record_of(info, verdicts), verdicts, why=True)]  # fmt: skip
    assert lines[0].startswith("LoRA for Wan 2.1 / 2.2")
    assert all(line == printable(line) for line in lines)
    assert [line for line in lines if width(line) > 80 and " lora-inspect " not in line] == []


@pytest.mark.parametrize(("rank", "alpha", "words", "way"), [
    (4, 3.0, "0.75: half as strong", "Load it with multiplier 2 or convert the file:"),
    (16, 8.0, "0.5: 0.25 times as strong", "Load it with multiplier 4 or convert the file:"),
    (64, 16.0, "0.25: 0.125 times as strong", "Load it with multiplier 8 or convert the file:"),
    (2, 2.0, "1: 0.707 times as strong", "Load it with multiplier 1.414 or convert the file:"),
    (144, 12.0, "0.08333: 0.0833 times as strong", "Convert the file:"),
])  # fmt: skip
def test_an_rslora_says_what_alpha_over_rank_makes_of_it(rank, alpha, words, way, run, write_safetensors):
    file = write_safetensors(rslora(rank, alpha))
    assert float(words.partition(":")[0]) == pytest.approx(alpha / rank, rel=1e-3)
    shown = run("info", file).stdout
    assert f"scale {alpha / rank**0.5:.6g} (alpha {alpha:g} / sqrt {rank})" in shown
    said = (
        "!! ComfyUI, InvokeAI, blissful-tuner, musubi-tuner, WanVideoWrapper and WanVideoWrapper "
        f"(unmerged) apply {words} as trained. {way} lora-inspect convert "
    )
    assert said in " ".join(shown.split())
    factors = run("info", file, "--json").json["factors"]
    assert factors["comfyui"] == pytest.approx(rank**-0.5, rel=1e-3)


@pytest.mark.parametrize("name", ["plain.safetensors", "it's a 'test' $(x).safetensors", "-dash.safetensors"])
def test_the_command_of_the_screen_mends_the_file(name, run, write_safetensors, tmp_path, monkeypatch):
    write_safetensors(rslora(4, 3.0), name=name)
    monkeypatch.chdir(tmp_path)
    path = f"./{name}" if name.startswith("-") else name
    (command,) = (
        line for line in run("info", path).stdout.splitlines() if line.startswith("    lora-inspect convert ")
    )
    program, *words = shlex.split(command)
    assert program == "lora-inspect"
    assert run(*words).status == 0
    mended = run("info", words[-1])
    assert "scale 1.5 (alpha 6 / rank 4)" in mended.stdout
    assert "!!" not in mended.stdout
    assert set(run("info", words[-1], "--json").json["factors"].values()) == {1.0}


@pytest.mark.parametrize(("name", "loads"), {"sd15-cloneofsimo-disney": 192, "sd15-diffusers-pokemon": 128}.items())
def test_the_command_of_a_file_that_loads_nowhere_makes_one_that_comfyui_loads(name, loads, show, run):
    (command,) = (line for line in show(name).splitlines() if " --to comfyui " in line)
    assert command.startswith("    lora-inspect convert ")
    words = shlex.split(command)[1:]
    assert run(*words).status == 0
    assert "works in     ComfyUI" in run("info", words[-1]).stdout
    assert run("info", words[-1], "--json").json["modules"] == loads


def test_a_file_of_an_open_scale_says_what_loads_it_and_the_command_that_settles_it(show, run):
    shown = " ".join(show("alpha-of-0").split())
    assert "WanVideoWrapper (unmerged); the scale is unknown until alpha is given" in shown
    for alpha in ("0.25", "16"):
        settled = run("info", f"zero.safetensors:alpha={alpha}").stdout
        assert "ComfyUI, InvokeAI, stable-diffusion.cpp, blissful-tuner," in settled
        assert "  not in       diffusers, SD.Next and DiffSynth-Studio" in settled
    for name in ("alpha-of-0", "minilm-peft-without-its-config"):
        (line,) = (line for line in show(name).splitlines() if line.startswith("  settle with"))
        program, *words = shlex.split(line.removeprefix("  settle with"))
        assert program == "lora-inspect"
        assert run(*(word.replace("=N", "=32") for word in words)).status == 0
        assert run("info", words[-1].partition(":")[0], "--json").json["verdicts"] is None


@pytest.mark.parametrize("name", EVERY)
def test_every_adapter_of_known_modules_says_what_becomes_of_it_in_comfyui_and_no_program_twice(name, show, run):
    shown = show(name)
    lines = shown.partition("The file says of itself:")[0].splitlines()
    told = " ".join(" ".join(lines[:1] + lines[2:]).split())  # the second has the program that wrote it
    if re.match(r"[^\n]* for ", shown):
        assert told.count("ComfyUI") - told.count("For ComfyUI") == 1
        for title in ("Forge", "InvokeAI", "musubi-tuner", "SD.Next", "vLLM", "SGLang", "llama.cpp"):
            assert told.count(title) <= 1
    else:
        assert "ComfyUI" not in told


def test_what_the_file_says_of_itself_stands_below_all_that_is_said_of_it(show):
    ours, heading, theirs = show("hostile").partition("The file says of itself:\n")
    assert heading
    assert "works in" not in ours
    assert "note         works in ComfyUI" in theirs
    assert not any(line.startswith(("!", "-", "why", "  details")) for line in theirs.splitlines())
    assert "The file says of itself" not in show("krea2-lora-kohya")


def rslora(rank, alpha):
    tensors = {
        key: tensor
        for block in range(2)
        for key, tensor in lora(f"lora_unet_blocks_{block}_self_attn_q", rank=rank, alpha=alpha).items()
    }
    return tensors | {"use_rslora_flag": ("BOOL", (), True)}


def test_evidence_is_one_line_for_what_is_surprising_and_all_of_it_with_why(show):
    brief = [line for line in show("wan-rslora-flag").splitlines() if line.startswith("why RS-LoRA")]
    assert brief == ["why RS-LoRA: the flag is True [use_rslora_flag] (2 more reasons: --why)"]
    whole = [line for line in show("wan-rslora-flag", "--why").splitlines() if line.startswith("why ")]
    assert len(whole) == 3
    assert not any(line.startswith("why") and "--why" in line for line in show("krea2-lora-kohya").splitlines())


def test_modules_have_the_columns_that_say_something_and_reasons_for_unknown_scales(show):
    headers = next(line for line in show("wan-rslora-flag", "--modules").splitlines() if line.startswith("  module"))
    assert headers.split() == ["module", "shape", "rank", "alpha", "scale"]
    shown = show("minilm-peft-without-its-config", "--modules")
    assert "scale of 12: PEFT keeps alpha" in shown
    assert "algorithm" in show("several-algorithms", "--modules")


def test_the_record_has_what_the_screen_shows(show, run):
    show("sd15-lokr-smart-falcon-4")
    record = run("info", "smart_falcon_4_lokr.safetensors", "--json").json
    assert record["schema"] == "lora-inspect/info/1"
    assert record["base"] == "animefull-final-pruned.safetensors"
    assert record["training"]["steps"] == 3010
    assert list(record["components"]) == ["model", "text_encoder"]
    assert sum(part["modules"] for part in record["components"].values()) == record["modules"] == 350
    assert sum(part["parameters"] for part in record["components"].values()) == record["parameters"]
    assert record["components"]["text_encoder"]["title"] == "text encoder (CLIP-L)"
    assert record["verdicts"]["comfyui"] == "same meaning"
    assert record["fix"] is None


def test_of_very_many_merges_the_last_are_shown_and_the_others_counted(run, write_safetensors):
    """A record may name as many as it likes."""

    def record(number):
        return {"version": "1", "adapters": [{"file": f"style-{number}.safetensors", "multiplier": 0.5}]}

    metadata = {"lora_inspect.merged": json.dumps({**record(20_000), "earlier": list(map(record, range(20_000)))})}
    path = write_safetensors({"blocks.0.attn.q.weight": ("F32", (4, 4), 1)}, metadata)
    shown = run("info", path).stdout
    assert len(shown) < 2_000
    assert "19,989 earlier merges: --json" in shown
    assert "style-19988" not in shown
    assert all(f"style-{number}.safetensors at 0.5" in shown for number in range(19_989, 20_001))
    assert len(run("info", path, "--json").json["merged"]) == 20_001


def test_tensors_of_any_file_are_listed(run, fixtures, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    file = fixtures / "synthetic" / "base_f32.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    listed = run("info", file, "--tensors", "--json").json["tensor_list"]
    assert {one["name"]: [one["dtype"], one["shape"], one["offset"], one["bytes"]] for one in listed} == {
        name: [entry["dtype"], entry["shape"], 8 + length + entry["data_offsets"][0],
               entry["data_offsets"][1] - entry["data_offsets"][0]]
        for name, entry in header.items() if name != "__metadata__"
    }  # fmt: skip
    rows = run("info", file, "--tensors").stdout.splitlines()[-len(listed) :]
    assert [row.split()[0] for row in rows] == [one["name"] for one in listed]
    assert [row.split()[-1] for row in rows] == [str(one["offset"]) for one in listed]


def test_long_names_have_lines_of_their_own(run, write_safetensors, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    names = [f"model.{'x' * 60}.{number}.weight" for number in range(2)]
    shown = run("info", write_safetensors(dict.fromkeys(names, ("F32", (2, 2), 1.0))), "--tensors").stdout
    assert max(map(len, shown.splitlines())) <= 60
    joined = shown.replace("\n  ", "")
    assert all(name in joined for name in names)
