"""`lora-inspect compat`: what it prints, its exit status and its refusals."""

import json
import shlex
import shutil
from datetime import date

import pytest
from adapters import lora

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
        assert "choose from a1111, ai-toolkit, blissful, comfyui, " in run(*words, "sd").stderr
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
    assert names == [
        "a1111", "forge", "llama-cpp", "lmdeploy", "mlx-lm", "nunchaku", "nunchaku-compose", "ollama",
        "onetrainer", "sd-scripts", "sd-scripts-flux-merge", "sd-scripts-sdxl-merge", "sglang",
        "tgi", "vllm",
    ]  # fmt: skip
    assert not any(row.startswith("vllm ") for row in shown.splitlines())
    (row,) = (row for row in every.splitlines() if row.startswith("vllm "))
    assert row.split("  ")[-1].strip() == "no models of Wan 2.1 / 2.2 are known there"
    assert "  has no such models  " in row
    record = run("compat", file, "--json").json
    assert [one["name"] for one in record["programs"] if one["has_models"] is False] == names
    assert [one["name"] for one in record["programs"] if one["verdict"] == "has no such models"] == names


def test_a_program_without_such_models_fails_for_one_file(run, fixtures):
    file = fixtures / "synthetic/comfyui_alpha.safetensors"
    assert run("compat", file, "--for", "vllm").status == 1
    assert run("compat", file, "--for", "vllm", "--strict").status == 1
    assert run("compat", fixtures / "synthetic", "--for", "vllm").status == 0


@pytest.fixture
def untested(write_safetensors):
    """A file in names that nobody tried in ComfyUI, of no known model."""
    return write_safetensors(lora("odd_net.stem.proj"))


def test_a_file_of_no_known_model_is_not_tested_and_no_program_lacks_its_model(run, untested):
    programs = run("compat", untested, "--json").json["programs"]
    comfyui = next(one for one in programs if one["name"] == "comfyui")
    assert (comfyui["verdict"], comfyui["has_models"]) == ("not tested", None)
    assert comfyui["says"] == "lora-inspect does not know the model of the file"
    assert not [one["name"] for one in programs if one["verdict"] == "has no such models"]
    lines = " ".join(run("compat", untested).stdout.split())
    assert "not tested, as the file's model is not known: ai-toolkit, a1111, blissful, comfyui, " in lines


def test_an_answer_says_between_which_families_a_file_is_open(run, write_safetensors):
    file = write_safetensors(lora("lora_unet_double_blocks_0_img_attn_proj", out=3072, inputs=3072))
    found = {one["name"]: one for one in run("compat", file, "--json").json["programs"]}
    assert found["invokeai"]["verdict"] == "not tested"
    assert found["invokeai"]["says"].endswith("same meaning as FLUX.1 or refused as FLUX.2 klein 4B")
    assert found["a1111"]["verdict"] == "has no such models"
    assert "no models of FLUX.1" in found["a1111"]["says"]
    assert " or " in found["a1111"]["says"]


def test_an_untested_file_fails_where_that_is_asked(run, fixtures, untested):
    file = fixtures / "synthetic/comfyui_alpha.safetensors"
    assert run("compat", untested, "--for", "comfyui").status == 0
    assert run("compat", untested, "--for", "comfyui", "--strict").status == 1
    assert run("compat", file, "--for", "comfyui", "--strict").status == 0
    assert run("compat", fixtures / "synthetic", "--for", "vllm", "--strict").status == 1


@pytest.mark.parametrize(
    ("file", "program", "verdict", "on_wrong", "on_untested"),
    [
        ("comfyui_alpha", "comfyui", "same meaning", 0, 0),
        ("rslora_flag", "comfyui", "wrong strength", 1, 1),
        ("comfyui_alpha", "vllm", "has no such models", 1, 1),
        (None, "comfyui", "not tested", 0, 1),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_fail_on_of_file_decides_status(file, program, verdict, on_wrong, on_untested, form, run, fixtures, untested):
    path = fixtures / f"synthetic/{file}.safetensors" if file else untested
    (found,) = json.loads(run("compat", path, "--for", program, "--json").stdout)["programs"]
    assert found["verdict"] == verdict
    for options, status in (
        ([], on_wrong),
        (["--fail-on", "wrong"], on_wrong),
        (["--fail-on", "untested"], on_untested),
        (["--strict"], on_untested),
        (["--fail-on", "wrong", "--strict"], on_untested),
    ):
        assert run("compat", path, "--for", program, *options, *form).status == status, options


@pytest.mark.parametrize(("option", "words"), [("--strict", ["--strict"]), ("--fail-on", ["--fail-on", "wrong"])])
def test_option_on_verdict_without_program_is_wrong_usage(option, words, run, fixtures):
    shown = run("compat", fixtures / "synthetic/comfyui_alpha.safetensors", *words)
    assert (shown.status, shown.stdout) == (2, "")
    assert f"{option} is about a program; name it with --for." in shown.stderr


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_rows_fit_and_commands_are_whole(columns, run, fixtures, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = run("compat", fixtures / "synthetic/dora_without_flag.safetensors").stdout.splitlines()[1:]
    assert max(len(line) for line in lines if "lora-inspect convert" not in line) <= max(columns, 78)


def test_each_program_says_when_it_ran(run, fixtures):
    file = fixtures / "synthetic/comfyui_alpha.safetensors"
    told = {one["name"]: one["ran"] for one in run("compat", file, "--json").json["programs"]}
    assert told == {name: program.ran for name, program in PROGRAMS.items()}
    assert all(date.fromisoformat(day) for day in told.values())
    assert {one.program.name: one.program.ran for one in lora_inspect.compat(file).verdicts} == told


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Has versions of packages installed: folders as pip makes them, before all others."""

    def installed(**versions):
        for name, version in versions.items():
            folder = tmp_path / "site" / f"{name}-{version}.dist-info"
            folder.mkdir(parents=True)
            name = name.replace("_", "-")
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))

    return installed


OURS = {
    name.replace("-", "_"): version
    for program in PROGRAMS.values()
    for name, version in program.distributions.items()
}  # fmt: skip


def test_no_note_where_the_versions_are_those_of_the_records(run, fixtures, install):
    install(**OURS)
    shown = run("compat", fixtures / "synthetic/comfyui_alpha.safetensors")
    assert "installed" not in shown.stdout + shown.stderr


def test_another_version_that_is_installed_is_noted_once(run, fixtures, install):
    file = fixtures / "synthetic/comfyui_alpha.safetensors"
    install(**OURS | {"peft": "0.1.0"})
    shown = run("compat", file)
    notes = [line for line in shown.stderr.splitlines() if "is installed here" in line]
    assert len(notes) == 1
    assert f"peft 0.1.0 is installed here, and the answers are of peft {OURS['peft']}." in notes[0]
    told = {one["name"]: one["installed"] for one in run("compat", file, "--json").json["programs"]}
    assert {name for name, other in told.items() if other} == {"diffusers", "peft"}
    assert told["peft"] == {"peft": "0.1.0"}
    assert "is installed here" not in run("compat", file, "--for", "comfyui").stderr


def test_versions_of_programs_that_are_not_shown_are_not_looked_up(run, fixtures, install):
    install(**OURS | {"mlx_lm": "0.1.0"})
    file = fixtures / "synthetic/comfyui_alpha.safetensors"
    assert "mlx-lm 0.1.0" not in run("compat", file).stderr
    assert not any(one["installed"] for one in run("compat", file, "--json").json["programs"])
