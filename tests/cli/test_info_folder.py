"""`info` of a folder: rows that fit, as they are read, what is counted, chosen and ordered, and how it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from adapters import base, lora, loras
from gguf_files import pair, write_adapter
from pseudo_terminal import on_a_terminal

from lora_inspect.sentences import width

ROOT = Path(__file__).parents[2]
# What fixtures/make_synthetic.py made, at 80 columns: 8 adapters, of which six lose their strength, their DoRA or all.
SYNTHETIC = """\
name                 model        type     rank scale   size  note
bf16_alph…and_flags  Wan 2        RS-LoRA     4   1.5  11 kB  x0.5 in ComfyUI
comfyui_alpha        Wan 2        LoRA        4   0.5  11 kB  RS-LoRA?
diffusers…out_alpha  Wan 2        LoRA        4     1  10 kB  nothing in ComfyUI
dora_and_…ora_flags  Wan 2        RS-DoRA     4   1.5  14 kB  no DoRA in ComfyUI
dora_without_flag    Wan 2        DoRA        4     1  13 kB  no DoRA in ComfyUI
i64_alpha            Wan 2        LoRA        4     2  11 kB
rslora_flag          Wan 2        RS-LoRA     4   1.5  23 kB  x0.5 in ComfyUI
split                Wan 2        LoRA        4   0.5 1.9 kB  nothing in ComfyUI
8 adapters: 2 fine by their headers, 6 need convert; 3 bases, 1 other file
"""


@pytest.fixture(autouse=True)
def in_a_pipe(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def synthetic(fixtures):
    return fixtures / "synthetic"


def names_of(shown):
    """What stands in the first column below the headers."""
    return [row.split()[0] for row in shown.stdout.splitlines()[1:-1]]


def test_a_folder_at_80_columns(run, synthetic, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = run("info", synthetic)
    assert (shown.status, shown.stderr) == (0, "")
    assert shown.stdout == SYNTHETIC


def test_nothing_is_cut_in_a_pipe(run, write_safetensors, tmp_path):
    name = "a_" * 50 + "style"
    write_safetensors(loras(), name=f"many/{name}.safetensors")
    write_safetensors(loras(), name=f"many/{name}2.safetensors")
    (tmp_path / "many" / "cut.safetensors").write_bytes(b"{}")
    rows = run("info", tmp_path / "many").stdout.splitlines()[1:-1]
    assert [row.split()[0] for row in rows] == [name, f"{name}2", "cut"]
    assert rows[1].endswith(f"  duplicate of {name}")
    assert rows[2].endswith("  it has 2 bytes, fewer than the 8 that begin a safetensors file")


def test_names_that_look_alike_where_they_are_cut_have_a_line_of_their_own(
    run, write_safetensors, tmp_path, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"{'a' * 40}{letter}{'z' * 60}" for letter in "xy"]
    for name in (*names, "short", "b" * 60):
        write_safetensors(loras(), name=f"many/{name}.safetensors")
    lines = run("info", tmp_path / "many").stdout.splitlines()
    assert max(map(width, lines)) <= 80
    for name in names:
        at = next(at for at, line in enumerate(lines) if line == name[:80])
        assert lines[at + 1] == name[80:]
        assert lines[at + 2].split()[:3] == ["?", "LoRA", "16"]
    assert any(line.startswith("bbb") and "…" in line for line in lines)


@pytest.mark.parametrize("columns", [40, 60, 71, 72, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(columns, run, write_safetensors, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    for name in ("日本語" * 20, "a" * 100, "e\u0301" * 60, "x\x1b[31m" * 20, "short"):
        write_safetensors(loras(), name=f"many/{name}.safetensors")
    shown = run("info", tmp_path / "many")
    lines = shown.stdout.splitlines()
    assert max(map(width, lines)) <= columns
    assert "\x1b" not in shown.stdout
    assert " ".join(map(str.strip, lines[6:])) == "5 adapters: 5 fine by their headers; 4 duplicates"


def test_totals_break_between_numbers_and_no_line_is_wider(run, write_safetensors, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    (tmp_path / "many").mkdir()
    for name in "abc":
        write_safetensors(loras(), name=f"many/{name}.safetensors")
        (tmp_path / "many" / f"{name}.pt").write_bytes(b"\x80\x02N.")
        (tmp_path / "many" / f"{name}.txt").write_text("")
    lines = run("info", tmp_path / "many").stdout.splitlines()[7:]
    assert lines == ["3 adapters: 3 fine by their headers; 2 duplicates,", "  3 pickles, 3 other files"]
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("info", tmp_path / "many").stdout.splitlines()[7:]
    assert lines == ["3 adapters: 3 fine by their headers; 2 duplicates, 3 pickles, 3 other files"]
    monkeypatch.delenv("COLUMNS")
    assert run("info", tmp_path / "many").stdout.endswith("; 2 duplicates, 3 pickles, 3 other files\n")


def test_a_pickle_that_is_asked_for_is_counted(run, write_safetensors, tmp_path):
    write_safetensors(loras(), name="many/a.safetensors")
    for name in ("a.pt", "b.pt"):
        (tmp_path / "many" / name).write_bytes(b"\x80\x02N.")
    shown = run("info", tmp_path / "many", "--where", "name=a")
    assert names_of(shown) == ["a.pt", "a"]
    assert shown.stdout.endswith("\n1 adapter: 1 fine by its header; 1 pickle, 1 left out by --where\n")


def test_wider_lines_show_more_of_names_and_notes(run, synthetic, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (row,) = (line for line in run("info", synthetic).stdout.splitlines() if line.startswith("dora_and_rslora_flags "))
    assert row.endswith("DoRA lost in ComfyUI and 4 more")
    assert "Wan 2.1 / 2.2" in row


def test_bases_and_others_are_counted_and_listed_on_demand(run, write_safetensors, tmp_path):
    write_safetensors(base(), name="many/base.safetensors")
    write_safetensors({"a": ("F32", (3,), 1)}, name="many/other.safetensors")
    write_safetensors(loras(), name="many/adapter.safetensors")
    shown = run("info", tmp_path / "many")
    assert names_of(shown) == ["adapter"]
    assert shown.stdout.endswith("\n1 adapter: 1 fine by its header; 1 base, 1 other\n")
    assert names_of(run("info", tmp_path / "many", "--all")) == ["adapter", "base", "other"]
    assert len(run("info", tmp_path / "many", "--json").json) == 3


def test_what_is_named_itself_is_shown_whatever_it_is(run, write_safetensors):
    files = [write_safetensors(base(), name="base.safetensors"), write_safetensors(loras(), name="l.safetensors")]
    assert len(names_of(run("info", *files))) == 2


def test_a_folder_without_adapters_has_no_table(run, write_safetensors, tmp_path):
    for name in "ab":
        write_safetensors(base(), name=f"many/{name}.safetensors")
    shown = run("info", tmp_path / "many")
    assert (shown.status, shown.stdout) == (0, "0 adapters; 2 bases, 1 duplicate\n")


def test_an_empty_folder_is_refused(run, tmp_path):
    assert "no .safetensors file" in run("info", tmp_path).refusal


def test_a_folder_of_one_file_below_another_folder_is_a_list(run, write_safetensors, tmp_path):
    write_safetensors(loras(), name="many/inner/deep.safetensors")
    shown = run("info", tmp_path / "many")
    assert names_of(shown) == ["inner/deep"]


def test_a_folder_of_peft_goes_by_its_name(run, fixtures):
    found = names_of(run("info", fixtures / "gguf", "--where", "name=*qwen3/*"))
    assert found == ["qwen3/adapter.gguf", "qwen3/"]


def test_unreadable_files_are_named_whatever_is_asked_for(run, write_safetensors, tmp_path):
    write_safetensors(loras(), name="many/good.safetensors")
    (tmp_path / "many" / "bad.safetensors").write_bytes(b"{}")
    for options in ((), ("--where", "model=wan"), ("--sort", "size"), ("--json",), ("--jsonl",)):
        shown = run("info", tmp_path / "many", *options)
        assert shown.status == 1
        if "--json" in options or "--jsonl" in options:
            assert shown.stderr.startswith(f"Error: {tmp_path / 'many' / 'bad.safetensors'}: it has 2 bytes")
            assert shown.stderr.count("\n") == 1
        else:
            assert shown.stderr == ""
            (row,) = (line for line in shown.stdout.splitlines() if line.startswith("bad "))
            assert row.split()[1:7] == ["-", "broken", "-", "-", "2", "B"]
            assert shown.stdout.endswith("1 broken\n") or "1 broken, " in shown.stdout
    assert run("info", tmp_path / "many").stdout.endswith("\n1 adapter: 1 fine by its header; 1 broken\n")


def test_adapters_of_llama_cpp_are_found_and_its_models_are_never_read(run, write_safetensors, tmp_path):
    (tmp_path / "many").mkdir()
    write_adapter(tmp_path / "many" / "own.gguf", pair("blk.0.attn_q", 8, 8, 2))
    (tmp_path / "many" / "model.gguf").write_bytes(model_header())
    write_safetensors(loras(), name="many/other.safetensors")
    shown = run("info", tmp_path / "many")
    assert (shown.status, names_of(shown)) == (0, ["model.gguf", "other", "own.gguf"])
    assert shown.stdout.splitlines()[1].split()[1:3] == ["-", "unread"]
    (tmp_path / "many" / "other.safetensors").unlink()
    found = run("info", tmp_path / "many", "--json").json
    assert [(Path(one["path"]).name, "error" in one) for one in found] == [("model.gguf", True), ("own.gguf", False)]


def test_a_cut_file_of_llama_cpp_is_named(run, write_safetensors, tmp_path):
    write_safetensors(loras(), name="many/other.safetensors")
    (tmp_path / "many" / "cut.gguf").write_bytes(model_header()[:20])
    shown = run("info", tmp_path / "many")
    assert shown.status == 1
    assert shown.stdout.splitlines()[1].split()[:3] == ["cut.gguf", "-", "broken"]


def model_header():
    from gguf_files import string

    return b"GGUF\x03\0\0\0" + (0).to_bytes(8, "little") + (1).to_bytes(8, "little") + string("general.type", "model")


# Conditions, and which of SYNTHETIC they hold of.
WHERE = {
    "model=wan": 8, "model=Wan 2": 8, "MODEL=WAN": 8, "model=flux": 0, "type=dora": 1, "type=rs*": 3, "type=*DoRA": 2,
    "rank=4": 8, "rank=40": 0, "scale=1.5": 3, "scale=1": 2, "scale=1*": 5, "trainer=blissful": 3, "scheme=comfy": 1,
    "kind=adapter": 8, "state=fine": 2, "state=need": 6, "problem=rslora-hint": 2, "note=*comfyui*": 6, "name=rs": 1,
    "name=*alpha*": 4, "kind=base": 0,
}  # fmt: skip


@pytest.mark.parametrize(("condition", "count"), WHERE.items())
def test_where_keeps_what_fits(condition, count, run, synthetic):
    shown = run("info", synthetic, "--where", condition)
    assert shown.status == 0
    assert len(names_of(shown)) == count
    assert shown.stdout.splitlines()[-1].startswith(f"{count} adapter")


def test_all_conditions_have_to_hold(run, synthetic):
    shown = run("info", synthetic, "--where", "type=rs", "--where", "state=need", "--where", "name=rslora")
    assert names_of(shown) == ["rslora_flag"]
    assert shown.stdout.endswith("\n1 adapter: 1 need convert; 1 other file, 10 left out by --where\n")
    bases = run("info", synthetic, "--where", "kind=base", "--json").json
    assert [Path(one["path"]).stem for one in bases][:2] == ["base_bf16", "base_f32"]
    assert len(names_of(run("info", synthetic, "--all", "--where", "kind=base"))) == len(bases) == 3


@pytest.mark.parametrize("wrong", ["colour=red", "wan", "=wan", ""])
def test_a_wrong_condition_names_the_keys(wrong, run, synthetic):
    shown = run("info", synthetic, "--where", wrong)
    assert shown.status == 2
    keys = "name, model, type, rank, scale, trainer, trigger, scheme, kind, state, problem, note and duplicate"
    assert keys in " ".join(shown.stderr.split())


def test_rows_are_sorted_by_what_is_asked(run, write_safetensors, tmp_path):
    folder = tmp_path / "many"
    for number, (name, rank, alpha, out) in enumerate([("c", 8, 8.0, 9), ("a", 4, 8.0, 30), ("b", 16, 4.0, 3)]):
        file = write_safetensors(loras(rank=rank, alpha=alpha, out=out), name=f"many/{name}.safetensors")
        os.utime(file, ns=(number * 10**9, number * 10**9))
    (folder / "0.safetensors").write_bytes(b"{}")
    expected = {"name": "abc", "rank": "acb", "scale": "bca", "modified": "cab"}
    sizes = sorted("abc", key=lambda name: (folder / f"{name}.safetensors").stat().st_size)
    for order, names in {**expected, "size": sizes}.items():
        assert names_of(run("info", folder, "--sort", order)) == [*names, "0"], order
        records = [json.loads(line) for line in run("info", folder, "--sort", order, "--jsonl").stdout.splitlines()]
        assert [Path(record["path"]).stem for record in records] == [*names, "0"]
    assert run("info", folder, "--sort", "colour").status == 2


def test_jsonl_is_the_list_of_json_a_record_a_line(run, synthetic):
    listed = run("info", synthetic, "--json").json
    lines = run("info", synthetic, "--jsonl").stdout.splitlines()
    assert [json.loads(line) for line in lines] == listed
    assert [record["state"] for record in listed].count("need convert") == 6
    assert {record["kind"] for record in listed if record["state"] is None} == {"base"}
    (one,) = map(json.loads, run("info", synthetic / "rslora_flag.safetensors", "--jsonl").stdout.splitlines())
    assert (one["note"], one["duplicate_of"]) == ("half as strong in ComfyUI and 4 more", None)


def test_duplicates_are_told_whatever_their_metadata(run, write_safetensors, tmp_path):
    write_safetensors(loras(), {"title": "one"}, name="many/a.safetensors")
    write_safetensors(loras(), {"title": "another", "more": "x" * 500}, name="many/b.safetensors")
    write_safetensors(loras(alpha=9.0), name="many/c.safetensors")
    shown = run("info", tmp_path / "many")
    assert [row.endswith("duplicate of a") for row in shown.stdout.splitlines()[1:-1]] == [False, True, False]
    assert shown.stdout.endswith("\n3 adapters: 3 fine by their headers; 1 duplicate\n")
    records = run("info", tmp_path / "many", "--json").json
    assert [record["duplicate_of"] for record in records] == [None, str(tmp_path / "many" / "a.safetensors"), None]


@pytest.mark.parametrize("option", ["--modules", "--metadata", "--why"])
def test_what_is_about_one_file_is_wrong_usage_for_several(option, run, synthetic):
    shown = run("info", synthetic, option)
    assert shown.status == 2
    assert option in shown.stderr
    assert shown.stdout == ""


def test_json_lists_modules_of_several_files(run, synthetic):
    assert all("module_list" in record for record in run("info", synthetic, "--json", "--modules").json
               if record["kind"] == "adapter")  # fmt: skip


def test_states_of_broken_and_open_files(run, write_safetensors, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    half = lora("lora_unet_a", alpha=None)
    del half["lora_unet_a.lora_up.weight"]
    write_safetensors(half, name="many/half.safetensors")
    write_safetensors(lora("base_model.model.q_proj", spelling="peft", alpha=None), name="many/open.safetensors")
    write_safetensors(loras(), name="many/whole.safetensors")
    shown = run("info", tmp_path / "many")
    assert shown.status == 0
    assert shown.stdout.endswith("\n3 adapters: 1 fine by its header, 1 info only, 1 need an answer\n")
    rows = shown.stdout.splitlines()[1:-1]
    notes = (
        "incomplete: factors are missing",
        "scale unknown: --alpha N and --rslora yes|no",
        "not in PEFT, and untried elsewhere",
    )
    assert [row.endswith(f"  {note}") for row, note in zip(rows, notes, strict=True)] == [True] * 3, rows
    settled = run("info", f"{tmp_path / 'many'}:alpha=16,rslora=no", "--where", "name=open", "--json").json
    assert [record["state"] for record in settled] != ["need an answer"]


def test_a_bar_and_rows_do_not_garble_each_other(write_safetensors, tmp_path):
    for number in range(12):
        write_safetensors(loras(alpha=float(number + 1)), name=f"many/{number:02}.safetensors")
    slow = "import time, lora_inspect.scanning.scan_file as f; real = f.inspect\n" \
           "def slow(*given):\n    time.sleep(0.05)\n    return real(*given)\nf.inspect = slow\n"  # fmt: skip
    (tmp_path / "usercustomize.py").write_text("")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{slow}")
    ((status, output),) = on_a_terminal(
        [["info", "many", "--jobs", "1"]], tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}", COLUMNS="80"
    )
    assert status == 0
    assert b"Reading [" in output
    shown = [cells(line) for line in output.decode().split("\r\n")]
    assert [line.split()[0] for line in shown[1:13]] == [f"{number:02}" for number in range(12)]
    assert shown[13] == "12 adapters: 12 fine by their headers"


def cells(line):
    """What a line of a terminal shows in the end: a carriage return writes over what was there."""
    shown = []
    for part in line.split("\r"):
        shown[: len(part)] = part
    return "".join(shown).rstrip()


SLOW = """
import sys, time
import lora_inspect.ops.scan as scan
real = scan.scan_file
def slow(path, *rest):
    time.sleep(0.1)
    return real(path, *rest)
scan.scan_file = slow
from lora_inspect.start import main
sys.argv = ["lora-inspect", "info", *sys.argv[1:]]
main()
"""


@pytest.fixture
def scanning(write_safetensors, tmp_path):
    """A slow scan of many files by several processes in a group of their own, once its first rows are there."""
    for number in range(60):
        write_safetensors(loras(1), name=f"many/{number:02}.safetensors")
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tmp_path / "many"), "--jobs", "3"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True, text=True,
    )  # fmt: skip
    try:
        rows = [process.stdout.readline() for _ in range(8)]
        assert all(rows), process.stderr.read()
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def is_gone(group, seconds=20.0):
    """Whether no process is left of the group, soon."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="process groups, and who is left of them")
@pytest.mark.parametrize("to_all", [True, False], ids=["of the terminal", "to one"])
def test_an_interrupt_leaves_no_process(to_all, scanning):
    (os.killpg if to_all else os.kill)(scanning.pid, signal.SIGINT)
    _, errors = scanning.communicate(timeout=20)
    assert scanning.returncode == 130
    assert errors.strip() == "Error: interrupted; nothing half-written is left."
    assert is_gone(scanning.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="process groups, and who is left of them")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.slow
def test_a_kill_leaves_no_process(number, scanning):
    os.kill(scanning.pid, number)
    _, errors = scanning.communicate(timeout=20)
    assert errors == ""
    assert is_gone(scanning.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="process groups, and who is left of them")
def test_a_reader_that_leaves_ends_all(scanning):
    scanning.stdout.close()
    assert scanning.wait(20) == 1
    assert scanning.stderr.read() == ""
    assert is_gone(scanning.pid)


def test_copies_of_real_adapters_are_read_alike_by_one_process_and_by_several(run, run_process, fixtures, tmp_path):
    for number in range(30):
        shutil.copy(fixtures / "synthetic" / "rslora_flag.safetensors", tmp_path / f"{number:02}.safetensors")
    alone = run_process("-m", "lora_inspect", "info", tmp_path, "--json", "--jobs", "1")
    assert run_process("-m", "lora_inspect", "info", tmp_path, "--json", "--jobs", "3").json == alone.json
