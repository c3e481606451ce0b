"""convert FOLDER -o FOLDER: each adapter to its own place, whatever becomes of the others."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
from adapters import base, lora, loras

if sys.platform != "win32":
    from pseudo_terminal import on_a_terminal

RSLORA = {"use_rslora_flag": ("F32", (), 1)}
DORA = loras(1, dora_scale=("F32", (6, 1), 1.0))
PATH = "base_model.model.encoder.layer.0.attention.self.query"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query"]}


@pytest.fixture
def folder(write_safetensors, tmp_path):
    """Two good files, one of them in a subfolder, a PEFT folder, a base, a DoRA that nothing settles, a broken file."""
    write_safetensors(loras(2), name="in/a.safetensors")
    write_safetensors({**loras(1), **RSLORA}, name="in/sub/b.v2.safetensors")
    write_safetensors(lora(PATH, rank=4, alpha=None, spelling="peft"), name="in/sub/peft/adapter_model.safetensors")
    (tmp_path / "in/sub/peft/adapter_config.json").write_text(json.dumps(CONFIG))
    write_safetensors(base(), name="in/model.safetensors")
    write_safetensors(DORA, name="in/dora.safetensors")
    (tmp_path / "in/broken.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "in/readme.txt").write_text("hello")
    return tmp_path / "in"


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


MADE = ["a.safetensors", "sub/b.v2.safetensors", "sub/peft/adapter_config.json", "sub/peft/adapter_model.safetensors"]


def test_every_adapter_goes_to_its_place_and_the_bad_ones_are_named_at_the_end(folder, tmp_path, run):
    ended = run("convert", folder, "-o", tmp_path / "new" / "out")
    assert ended.status == 1
    assert files_below(tmp_path / "new" / "out") == MADE
    lines = ended.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == [
        str(tmp_path / "new" / "out" / name) for name in ("a.safetensors", "sub/b.v2.safetensors", "sub/peft")
    ]
    assert lines[1].endswith("1 modules of kohya names, RS-LoRA to plain LoRA; exact")
    assert lines[3] == "3 converted, 1 skipped, 2 failed"
    errors = [line for line in ended.stderr.splitlines() if line.startswith("Error: ")]
    assert [Path(line.removeprefix("Error: ").partition(":")[0]).name for line in errors] == [
        "broken.safetensors", "dora.safetensors",
    ]  # fmt: skip
    assert f"Note: {folder / 'model.safetensors'}: skipped, as it is a base." in ended.stderr


def test_another_model_is_named_as_what_it_is(write_safetensors, tmp_path, run):
    write_safetensors(loras(), name="in/a.safetensors")
    vae = {"decoder.mid_block.resnets.0.conv1.weight": ("F32", (2, 2), 1.0)}
    write_safetensors(vae, name="in/vae.safetensors")
    ended = run("convert", tmp_path / "in", "-o", tmp_path / "out")
    assert f"Note: {tmp_path / 'in' / 'vae.safetensors'}: skipped, as it is no adapter (VAE)." in ended.stderr


def test_pickles_are_named_as_skipped(write_safetensors, tmp_path, run):
    write_safetensors(loras(2), name="in/sub/a.safetensors")
    (tmp_path / "in" / "b.pt").write_bytes(pickle.dumps({}))
    ended = run("convert", tmp_path / "in", "-o", tmp_path / "out")
    assert (ended.status, ended.stdout.splitlines()[-1]) == (0, "1 converted, 1 skipped")
    skipped = f"Note: {tmp_path / 'in' / 'b.pt'}: skipped, as it is a pickle, which can run code, so lora-inspect never"
    assert skipped in ended.stderr


@pytest.fixture
def mixed(fixtures, tmp_path):
    """Wan adapters: two that ComfyUI loads right, two that it does not, two with a DoRA that nothing settles."""
    names = ("comfyui_alpha", "i64_alpha", "rslora_flag", "split", "dora_without_flag", "dora_and_rslora_flags")
    (tmp_path / "mixed").mkdir()
    for name in names:
        shutil.copy(fixtures / "synthetic" / f"{name}.safetensors", tmp_path / "mixed")
    return tmp_path / "mixed"


def test_files_that_a_program_loads_right_are_left_out(mixed, tmp_path, run):
    ended = run("convert", mixed, "--to", "comfyui", "-o", tmp_path / "out")
    assert ended.stdout.splitlines()[-1] == "2 already load in ComfyUI, 2 converted, 2 failed"
    assert files_below(tmp_path / "out") == ["rslora_flag.safetensors", "split.safetensors"]
    records = json.loads(run("convert", mixed, "--to", "comfyui", "-o", tmp_path / "again", "--json").stdout)
    told = {Path(one["path"]).stem: one.get("skipped") for one in records}
    assert told["i64_alpha"] == told["comfyui_alpha"] == "it loads with the same meaning"


@pytest.mark.parametrize("words", [["--all-files"], ["--hashes"]])
def test_they_are_converted_too_where_that_or_another_output_is_asked_for(words, mixed, tmp_path, run):
    ended = run("convert", mixed, "--to", "comfyui", "-o", tmp_path / "out", *words)
    assert "already load" not in ended.stdout
    assert "i64_alpha.safetensors" in files_below(tmp_path / "out")


def test_the_way_out_of_several_failures_is_told_once(mixed, tmp_path, run):
    lines = run("convert", mixed, "--to", "comfyui", "-o", tmp_path / "out").stderr.splitlines()
    errors = [line for line in lines if line.startswith("Error: ")]
    assert len(errors) == 2
    assert all(
        line.endswith("ComfyUI divides magnitudes by the norms of the base's weights, so the result would differ.")
        for line in errors
    )
    assert [line.partition("choose ")[0] for line in lines if "--drop-magnitude" in line] == [
        "Note: for each of these: "
    ]


def test_a_file_that_needs_no_conversion_is_told_so(mixed, tmp_path, run):
    says = "ComfyUI loads {} itself with the same meaning"
    for name, is_right in (("i64_alpha", True), ("split", False)):
        file = mixed / f"{name}.safetensors"
        ended = run("convert", file, "--to", "comfyui", "-o", tmp_path / f"{name}-out.safetensors")
        assert (ended.status, says.format(file) in ended.stdout) == (0, is_right)
    assert run("convert", file, "--to", "comfyui", "-o", tmp_path / "x", "--all-files").status == 2


def test_what_each_becomes_is_what_it_becomes_alone(folder, tmp_path, run):
    run("convert", folder, "-o", tmp_path / "out", "--keep-dora")
    assert files_below(tmp_path / "out") == sorted([*MADE, "dora.safetensors"])
    assert run("convert", folder / "dora.safetensors", "-o", tmp_path / "d.safetensors", "--keep-dora").status == 0
    assert (tmp_path / "d.safetensors").read_bytes() == (tmp_path / "out" / "dora.safetensors").read_bytes()
    assert run("convert", folder / "sub" / "peft", "-o", tmp_path / "p").status == 0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "out" / "sub" / "peft" / name).read_bytes()


def test_json_is_a_list_of_all(folder, tmp_path, run):
    ended = run("convert", folder, "-o", tmp_path / "out", "--json")
    assert ended.status == 1
    found = {Path(item["path"]).relative_to(folder).as_posix(): item for item in json.loads(ended.stdout)}
    assert set(found) == {
        "a.safetensors", "broken.safetensors", "dora.safetensors", "model.safetensors", "sub/b.v2.safetensors",
        "sub/peft",
    }  # fmt: skip
    assert found["a.safetensors"]["output"] == str(tmp_path / "out" / "a.safetensors")
    assert found["a.safetensors"]["verified"]["modules"] == 2
    assert found["model.safetensors"]["skipped"] == "it is a base"
    assert "choose --keep-dora" in found["dora.safetensors"]["error"]


def test_what_is_there_stays_without_force(folder, tmp_path, run):
    (folder / "broken.safetensors").unlink()
    first = run("convert", folder, "-o", tmp_path / "out", "--keep-dora")
    assert first.status == 0, first.stderr
    (tmp_path / "out" / "a.safetensors").write_bytes(b"mine")
    again = run("convert", folder, "-o", tmp_path / "out", "--keep-dora")
    assert again.status == 1
    assert again.stderr.count(": it exists.") == 4
    assert again.stderr.count("for each of these: choose another output or add --force.") == 1
    assert (tmp_path / "out" / "a.safetensors").read_bytes() == b"mine"
    forced = run("convert", folder, "-o", tmp_path / "out", "--keep-dora", "--force")
    assert forced.status == 0, forced.stderr
    assert (tmp_path / "out" / "a.safetensors").read_bytes() != b"mine"


def test_the_output_below_the_input_is_no_input_of_the_next_time(folder, tmp_path, run):
    (folder / "broken.safetensors").unlink()
    for extra in ([], ["--force"]):
        assert run("convert", folder, "-o", folder / "out", "--keep-dora", *extra).status == 0
    assert files_below(folder / "out") == sorted([*MADE, "dora.safetensors"])


def test_an_output_that_has_the_inputs_in_it_is_refused(folder, tmp_path, run):
    """Outputs might take the place of inputs, and what lies in the output is no input."""
    before = files_below(tmp_path)
    refusal = run("convert", folder, "-o", tmp_path, "--keep-dora", "--force").refusal
    assert refusal == f"{tmp_path}: the folder of the inputs is in it; choose another output."
    assert files_below(tmp_path) == before


def test_a_component_need_not_be_in_every_file(write_safetensors, tmp_path, run):
    encoder = lora("lora_te_text_model_encoder_layers_0_self_attn_q_proj")
    write_safetensors({**loras(1), **encoder}, name="in/both.safetensors")
    write_safetensors(loras(1), name="in/model.safetensors")
    ended = run("convert", tmp_path / "in", "-o", tmp_path / "out", "--only", "model", "--only", "text_encoder")
    assert (ended.status, files_below(tmp_path / "out")) == (0, ["both.safetensors", "model.safetensors"])


def test_two_of_one_name_are_not_written_over_each_other(write_safetensors, tmp_path, run):
    layer = "text_model.encoder.layers.0.self_attn.q_proj"
    write_safetensors(lora("lora_te_" + layer.replace(".", "_")), name="in/x.safetensors")
    of_peft = lora(f"base_model.model.{layer}", rank=4, alpha=None, spelling="peft")
    write_safetensors(of_peft, name="in/x/adapter_model.safetensors")
    (tmp_path / "in/x/adapter_config.json").write_text(json.dumps({**CONFIG, "target_modules": ["q_proj"]}))
    ended = run("convert", tmp_path / "in", "-o", tmp_path / "out", "--to", "peft", "--force", "--all-files")
    assert ended.status == 1
    says = f"{tmp_path / 'in' / 'x.safetensors'} already goes to {tmp_path / 'out' / 'x'}"
    assert says in ended.stderr
    assert json.loads((tmp_path / "out/x/adapter_config.json").read_text())["r"] == 16


def test_a_scheme_with_a_config_makes_a_folder_of_each_file(write_safetensors, tmp_path, run):
    for name in "ab":
        write_safetensors(lora("lora_te_text_model_encoder_layers_0_self_attn_q_proj"), name=f"in/{name}.safetensors")
    ended = run("convert", tmp_path / "in", "-o", tmp_path / "out", "--to", "peft")
    places = files_below(tmp_path / "out")
    assert places == [f"{n}/{file}" for n in "ab" for file in ("adapter_config.json", "adapter_model.safetensors")], (
        ended.stderr
    )


def test_a_file_of_llama_cpp_has_its_own_ending(write_safetensors, tmp_path, run):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 4}')
    tensors = lora("base_model.model.model.layers.0.mlp.up_proj", rank=4, alpha=None, spelling="peft")
    for name in "ab":
        write_safetensors(tensors, name=f"in/{name}/adapter_model.safetensors")
        (tmp_path / f"in/{name}/adapter_config.json").write_text(json.dumps({**CONFIG, "target_modules": ["up_proj"]}))
    config = ["--to", "gguf", "--model-config", tmp_path / "config.json"]
    ended = run("convert", tmp_path / "in", "-o", tmp_path / "out", *config)
    assert ended.status == 0, ended.stderr
    assert files_below(tmp_path / "out") == ["a.gguf", "b.gguf"]


def test_shards_of_one_set_are_one_adapter(write_safetensors, tmp_path, run):
    for at in (1, 2):
        write_safetensors(lora(f"lora_unet_blocks_{at}_attn_q"), name=f"in/x-0000{at}-of-00002.safetensors")
    write_safetensors(loras(1), name="in/y.safetensors")
    assert run("convert", tmp_path / "in", "-o", tmp_path / "out").status == 0
    assert files_below(tmp_path / "out") == ["x.safetensors", "y.safetensors"]


@pytest.mark.parametrize("case", ["the folder itself", "a file", "nothing in it"])
def test_refused_as_a_whole(case, folder, write_safetensors, tmp_path, run):
    if case == "nothing in it":
        for at in (1, 2):
            write_safetensors(base(), name=f"bases/{at}.safetensors")
    before = files_below(tmp_path)
    source = tmp_path / "bases" if case == "nothing in it" else folder
    output = {"the folder itself": folder, "a file": folder / "a.safetensors"}.get(case, tmp_path / "out")
    says = {"the folder itself": "folder of the inputs", "a file": "so the output must be a folder"}.get(
        case, "holds no adapter"
    )
    ended = run("convert", source, "-o", output)
    assert ended.status == 1
    assert says in ended.refusal
    assert ended.stdout == ""
    assert files_below(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_folders_of_what_failed_are_not_left(write_safetensors, tmp_path, run):
    write_safetensors(DORA, name="in/deep/er/dora.safetensors")
    write_safetensors(DORA, name="in/other/dora.safetensors")
    assert run("convert", tmp_path / "in", "-o", tmp_path / "out").status == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_bar_goes_over_the_files(folder, tmp_path):
    ((status, output),) = on_a_terminal([["convert", folder, "-o", tmp_path / "out"]], tmp_path)
    assert status == 1
    assert b"Converting [" in output
    assert b"] 6/6" in output
