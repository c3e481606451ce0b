"""`lora-inspect compat`: what it prints, its exit status and its refusals."""

import shlex
import shutil

import pytest

import lora_inspect
from lora_inspect.programs import PROGRAMS


@pytest.fixture(autouse=True)
def in_a_pipe(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


def test_each_program_has_a_verdict(run, fixtures):
    outcome = run("compat", fixtures / "synthetic/rslora_flag.safetensors", "--json")
    record = outcome.json
    assert {one["name"] for one in record["programs"]} == set(PROGRAMS)
    comfyui = next(one for one in record["programs"] if one["name"] == "comfyui")
    assert (comfyui["verdict"], comfyui["factors"], comfyui["silent"]) == ("wrong strength", {"0.5": 20}, True)
    assert comfyui["ignored"] == ["use_rslora_flag"]


@pytest.mark.parametrize("spelled", ["ComfyUI", "comfy", "COMFYUI"])
def test_a_program_is_known_by_its_title_and_its_first_letters(spelled, run, fixtures):
    file = fixtures / "synthetic/comfyui_alpha.safetensors"
    assert run("compat", file, "--for", spelled).stdout == run("compat", file, "--for", "comfyui").stdout


def test_a_mistyped_program_gets_the_nearest_name(run, fixtures):
    file = fixtures / "synthetic/comfyui_alpha.safetensors"
    for words in (["compat", file, "--for"], ["convert", file, "-o", "out", "--to"]):
        ended = run(*words, "comfiui")
        assert (ended.status, "'comfiui' is no known name; did you mean comfyui?" in ended.stderr) == (2, True)
        assert "choose from a1111, comfyui, " in run(*words, "sd").stderr
    with pytest.raises(ValueError, match=r"did you mean comfyui\?$"):
        lora_inspect.convert(file, "out", to="comfiui")
    assert lora_inspect.compat(file, program="ComfyUI").verdicts[0].program.name == "comfyui"


def test_a_file_that_is_wrong_in_the_program_fails_for_it(run, fixtures):
    assert run("compat", fixtures / "synthetic/rslora_flag.safetensors", "--for", "comfyui").status == 1
    assert run("compat", fixtures / "synthetic/comfyui_alpha.safetensors", "--for", "comfyui").status == 0


def test_the_table_names_the_strength(run, fixtures):
    outcome = run("compat", fixtures / "synthetic/rslora_flag.safetensors", "--for", "comfyui")
    assert "comfyui  ComfyUI 0.33.0  wrong strength x0.5" in outcome.stdout


def test_what_is_no_adapter_is_refused(run, fixtures):
    assert "it is no adapter" in run("compat", fixtures / "synthetic/base_f32.safetensors").refusal
    assert "no such file" in run("compat", fixtures / "synthetic/missing.safetensors").failure


def test_a_program_that_is_not_known_is_wrong_usage(run, fixtures):
    assert run("compat", fixtures / "synthetic/comfyui_alpha.safetensors", "--for", "paint").status == 2


def test_the_command_that_mends_a_file_can_be_run_whatever_its_name_begins_with(run, fixtures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(fixtures / "synthetic/rslora_flag.safetensors", "-x.safetensors")
    programs = run("compat", "--json", "--", "-x.safetensors").json["programs"]
    comfyui = next(one for one in programs if one["name"] == "comfyui")
    program, *arguments = shlex.split(comfyui["fix"])
    assert program == "lora-inspect"
    assert run(*arguments).status == 0
    (output,) = set(tmp_path.iterdir()) - {tmp_path / "-x.safetensors"}
    assert run("compat", "--for", "comfyui", "--", output.name).status == 0


def test_programs_without_models_of_the_family_are_named_in_a_line(run, fixtures):
    file = fixtures / "synthetic/comfyui_alpha.safetensors"
    shown, every = run("compat", file).stdout, run("compat", file, "--all").stdout
    (line,) = (line for line in shown.splitlines() if line.startswith("not for such models: "))
    names = line.removeprefix("not for such models: ").removesuffix(" (--all shows them)").split(", ")
    assert names == ["a1111", "forge", "llama-cpp", "mlx-lm", "sd-scripts", "sd-scripts-flux-merge", "sglang", "vllm"]
    assert not any(row.startswith("vllm ") for row in shown.splitlines())
    (row,) = (row for row in every.splitlines() if row.startswith("vllm "))
    assert row.split()[3:] == ["unknown", "nobody", "has", "tried", "models", "of", "Wan", "2.1", "/", "2.2"]
    record = run("compat", file, "--json").json
    assert [one["name"] for one in record["programs"] if not one["has_models"]] == names


def test_an_unknown_answer_fails_where_that_is_asked(run, fixtures):
    file = fixtures / "synthetic/comfyui_alpha.safetensors"
    assert run("compat", file, "--for", "vllm").status == 0
    assert run("compat", file, "--for", "vllm", "--strict").status == 1
    assert run("compat", file, "--for", "comfyui", "--strict").status == 0
    assert run("compat", fixtures / "synthetic", "--for", "vllm", "--strict").status == 1


def test_strict_without_a_program_is_wrong_usage(run, fixtures):
    shown = run("compat", fixtures / "synthetic/comfyui_alpha.safetensors", "--strict")
    assert (shown.status, shown.stdout) == (2, "")
    assert "--strict is about a program; name it with --for." in shown.stderr


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_rows_fit_and_commands_are_whole(columns, run, fixtures, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = run("compat", fixtures / "synthetic/dora_without_flag.safetensors").stdout.splitlines()[1:]
    assert max(len(line) for line in lines if "lora-inspect convert" not in line) <= max(columns, 78)
