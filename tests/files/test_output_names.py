"""Where an output goes for every way of naming it, by both commands; what is refused leaves the folder as it was."""

import json
import os
import shutil

import pytest
from adapters import base, loras
from pairs import crossed

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.outputs import file_output, folder_output

FILE = "the output is a safetensors file; "
FOLDER = "so the output is a folder; name a folder"
NO_FOLDER = "there is no such folder; make it first"
PARENT = "does not exist; make it first"
EXISTS = "it exists; choose another output or add --force"
INPUT = "it is an input of the command; choose another output"

# What a file is written from, and the name that it has in a folder.
FILES = {
    "merge": (["merge", "in/base.safetensors", "in/lora.safetensors"], "base.safetensors"),
    "merge into a base of another name": (["merge", "in/base.ckpt", "in/lora.safetensors"], "base.safetensors"),
    "merge into a base without an ending": (["merge", "in/v1.5", "in/lora.safetensors"], "v1.5.safetensors"),
    "convert": (["convert", "in/lora.safetensors"], "lora.safetensors"),
    "convert a folder": (["convert", "in/diffusers"], "pytorch_lora_weights.safetensors"),
    "convert shards": (["convert", "in/shards"], "lora.safetensors"),
}
# What is said where a folder is missing, which ends with 3.
GONE = (NO_FOLDER, PARENT)
# name, with --force, where the file stands ({}: its name in a folder) or what the refusal says
FILE_OUTPUTS = [
    ("new.safetensors", False, "new.safetensors"),
    ("there/new.safetensors", False, "there/new.safetensors"),
    ("there", False, "there/{}"),
    ("there/", False, "there/{}"),
    ("there//", False, "there//{}"),
    (".", False, "./{}"),
    ("link", False, "link/{}"),
    ("like.safetensors", False, "like.safetensors/{}"),
    ("full", False, EXISTS),
    ("full/", False, EXISTS),
    ("full", True, "full/{}"),
    ("full/", True, "full/{}"),
    ("old.safetensors", False, EXISTS),
    ("old.safetensors", True, "old.safetensors"),
    ("old.safetensors/", False, NO_FOLDER),
    ("old.safetensors/", True, NO_FOLDER),
    ("nowhere/", False, NO_FOLDER),
    ("nowhere/new.safetensors", False, PARENT),
    ("nowhere/new.safetensors", True, PARENT),
    *[(f"new{ending}", force, f"{FILE}name it new.safetensors.")
      for ending in (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".PT", ".gguf", ".onnx", ".h5", ".npz", ".sft", ".json",
                     ".SAFETENSORS", "")
      for force in (False, True)],
    ("new.v1.5", False, f"{FILE}name it new.v1.5.safetensors."),
    ("there/new.ckpt", False, f"{FILE}name it there/new.safetensors."),
    ("old.ckpt", False, f"{FILE}choose a name that ends in .safetensors."),
    ("old.ckpt", True, f"{FILE}choose a name that ends in .safetensors."),
    ("", False, "the empty name: it cannot be an output"),
    (".safetensors", False, "an ending without a name"),
    ("there/.safetensors", True, "an ending without a name"),
    ("-", False, "an output cannot be a stream; name the file or the folder to write"),
]  # fmt: skip

# What a folder is written from, and what the sentence says of it.
FOLDERS = {
    "merge into a folder": (["merge", "in/sharded", "in/split.safetensors"], "in/sharded is a folder"),
    "merge into a shard": (["merge", "SHARD", "in/split.safetensors"], "is a part of a sharded set"),
    "merge into an index": (["merge", "INDEX", "in/split.safetensors"], "is a part of a sharded set"),
    "convert": (["convert", "in/peft"], "in/peft has PEFT's names"),
}
FOLDER_OUTPUTS = [
    ("new", False, "new"),
    ("new/", False, "new/"),
    ("new.v1.5", False, "new.v1.5"),
    ("new.safetensors/", False, "new.safetensors/"),
    ("there/new", False, "there/new"),
    ("there", False, EXISTS),
    ("there", True, "there"),
    ("there/", True, "there/"),
    ("link", True, "it is a link to a folder"),
    ("full", True, "the folder holds"),
    ("like.safetensors", False, EXISTS),
    ("like.safetensors", True, "like.safetensors"),
    ("old", True, "it is a file; remove it first"),
    ("nowhere/new", False, PARENT),
    *[(f"new{ending}", force, f"{FOLDER}, such as -o new.")
      for ending in (".safetensors", ".ckpt", ".bin", ".gguf", ".SAFETENSORS") for force in (False, True)],
    ("there/new.safetensors", False, f"{FOLDER}, such as -o there/new."),
    ("old.safetensors", False, f"{FOLDER} that does not exist."),
    ("old.safetensors", True, f"{FOLDER} that does not exist."),
    ("", False, "the empty name: it cannot be an output"),
    ("-", False, "an output cannot be a stream; name the file or the folder to write"),
]  # fmt: skip


@pytest.fixture
def place(tmp_path, write_safetensors, fixtures, monkeypatch):
    """in/: bases and adapters in every form; there/ is empty, link leads to it, full/ and old* stand in the way."""
    for name in ("base.safetensors", "base.ckpt", "v1.5"):
        write_safetensors(base(), name=f"in/{name}")
    for name in ("lora.safetensors", "diffusers/pytorch_lora_weights.safetensors"):
        write_safetensors(loras(), name=f"in/{name}")
    tensors = list(loras().items())
    write_safetensors(dict(tensors[:3]), name="in/shards/lora-00001-of-00002.safetensors")
    write_safetensors(dict(tensors[3:]), name="in/shards/lora-00002-of-00002.safetensors")
    shutil.copytree(fixtures / "synthetic" / "base_sharded", tmp_path / "in" / "sharded")
    shutil.copy(fixtures / "synthetic" / "split.safetensors", tmp_path / "in" / "split.safetensors")
    shutil.copytree(fixtures / "minilm-peft-rslora-r16", tmp_path / "in" / "peft")
    for folder in ("there", "full", "like.safetensors"):
        (tmp_path / folder).mkdir()
    (tmp_path / "link").symlink_to("there")
    for name in ("old", "old.safetensors", "old.ckpt", *(f"full/{name}" for _, name in FILES.values())):
        (tmp_path / name).write_text("old")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def state(root):
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def words_of(command):
    folder = "in/sharded/diffusion_pytorch_model"
    names = {"SHARD": f"{folder}-00001-of-00002.safetensors", "INDEX": f"{folder}.safetensors.index.json"}
    return [names.get(word, word) for word in command]


def by_names(outputs):
    return {f"{named}{' by force' if force else ''}": (named, force, says) for named, force, says in outputs}


@crossed(source=FILES, output=by_names(FILE_OUTPUTS), together=1)
def test_a_file_goes_where_its_name_says(source, output, place, run):
    (command, name), (named, force, expected) = source, output
    before = state(place)
    words = [*command, "-o", named, *(["--force"] if force else []), "--json"]
    if " " in expected:
        ended = run(*words)
        assert expected in (ended.failure if expected in GONE else ended.refusal)
        assert state(place) == before
        return
    path = expected.format(name)
    shown = run(*words)
    assert shown.json["output"] == path
    after = state(place)
    written = {file for file in after if after[file] != before.get(file)}
    assert {os.path.realpath(file) for file in written} == {os.path.realpath(path)}
    assert run("info", path, "--json").json["tensors"] > 0


@pytest.mark.parametrize("named", ["in", "in/", "in/."])
@pytest.mark.parametrize("command", ["merge", "convert"])
def test_a_file_that_would_take_the_place_of_an_input_is_refused(command, named, place, run):
    before = state(place)
    assert INPUT in run(*FILES[command][0], "-o", named, "--force").refusal
    assert state(place) == before


@crossed(source=FOLDERS, output=by_names(FOLDER_OUTPUTS), together=1)
def test_a_folder_goes_where_its_name_says(source, output, place, run):
    (command, because), (named, force, expected) = source, output
    before = state(place)
    words = [*words_of(command), "-o", named, *(["--force"] if force else []), "--json"]
    if " " in expected:
        ended = run(*words)
        refusal = ended.failure if expected in GONE else ended.refusal
        assert expected in refusal
        assert FOLDER not in expected or because in refusal
        assert state(place) == before
        return
    assert run(*words).json["output"] == expected
    assert run("info", expected, "--json").json["tensors"] > 0
    folder = os.path.realpath(expected)
    assert all(str(path).startswith(folder) for path in state(place).keys() - before.keys())


MERGES = [words for words, _ in (*FILES.values(), *FOLDERS.values()) if words[0] == "merge"]


@pytest.mark.parametrize("command", MERGES, ids=" ".join)
@pytest.mark.parametrize("named", ["new.safetensors", "new", "there", "new.ckpt", "nowhere/", "old.safetensors"])
def test_a_dry_run_refuses_the_outputs_that_a_run_refuses(command, named, place, run):
    words = [*words_of(command), "-o", named, "--json"]
    dry, wet = run(*words, "--dry-run"), run(*words)
    assert (dry.status, dry.stderr) == (wet.status, wet.stderr)
    if wet.status == 0:
        assert dry.json["output"] == wet.json["output"]


def test_a_dry_run_needs_no_output(place, run):
    shown = run("merge", "in/base.safetensors", "in/lora.safetensors", "--dry-run")
    assert shown.status == 0
    assert "would merge 3 modules (in/lora.safetensors at 1)\n" in shown.stdout
    planned = run("merge", "in/base.safetensors", "in/lora.safetensors", "--dry-run", "--json").json
    assert planned["output"] is None
    with_output = run("merge", "in/base.safetensors", "in/lora.safetensors", "--dry-run", "--json", "-o", "there").json
    assert with_output == planned | {"output": "there/base.safetensors"}


@pytest.mark.parametrize("command", [["merge", "in/base.safetensors", "in/lora.safetensors"], ["convert", "in/peft"]])
def test_an_output_is_asked_for_where_something_is_written(command, place, run):
    shown = run(*command)
    assert shown.status == 2
    assert "Missing option '-o' / '--output'" in shown.stderr


def test_the_summary_names_the_real_path(place, run):
    merged = run("merge", "in/base.safetensors", "in/lora.safetensors", "-o", "there").stdout
    assert "into there/base.safetensors\n" in merged
    assert run("convert", "in/lora.safetensors", "-o", "there/").stdout.startswith("there/lora.safetensors: ")


DTYPES = {"float32": "F32", "fp32": "F32", "float16": "F16", "fp16": "F16", "bfloat16": "BF16", "bf16": "BF16"}


@pytest.mark.parametrize(("word", "dtype"), DTYPES.items())
def test_element_types_have_a_long_and_a_short_name(word, dtype, place, run):
    merged = run("merge", "in/base.safetensors", "in/lora.safetensors", "-o", "there", "--dtype", word, "--json").json
    assert list(merged["dtype_counts"]) == [dtype]
    assert list(run("info", "there/base.safetensors", "--json").json["dtypes"]) == [dtype]


def test_a_device_is_refused_as_what_it_is(place, run):
    refusal = run("merge", "in/base.safetensors", "in/lora.safetensors", "-o", os.devnull).refusal
    assert "it is neither a file nor a folder" in refusal


def test_an_index_is_no_output_in_place_of_a_folder(place, run):
    (index,) = (place / "in" / "sharded").glob("*.index.json")
    before = json.loads(index.read_text())
    refusal = run("merge", "in/sharded", "in/split.safetensors", "-o", index, "--force").refusal
    assert INPUT in refusal
    assert json.loads(index.read_text()) == before


@pytest.mark.parametrize(
    "write", [lambda name: file_output(name, "a", []), lambda name: folder_output(name, "it is so", [])]
)
def test_a_name_that_is_proposed_is_accepted(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoraInspectError) as refused:
        write("new.safetensors.ckpt")
    proposed = str(refused.value).removesuffix(".").split()[-1]
    assert write(proposed) == proposed
