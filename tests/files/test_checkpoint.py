"""What a path stands for: a file, a shard, an index, a folder; and the numbers that are read from it."""

import json
import os

import pytest
from hypothesis import given
from make_synthetic import element, encode
from strategies import stored_numbers

from lora_inspect.errors import LoraInspectError
from lora_inspect.files import checkpoint as checkpoint_module
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.discovery import find_checkpoints, is_checkpoint_folder

SHARDED = "diffusion_pytorch_model"


def weights(*names):
    return encode({name: ("F32", (1,), bytes(4)) for name in names})


@pytest.fixture
def folder(tmp_path):
    def fill(**files):
        for name, content in files.items():
            path = tmp_path / name.replace("__", ".")
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return tmp_path

    return fill


@pytest.fixture
def shards(tmp_path):
    """Three shards with an index; `drop` and `index` make it wrong."""

    def fill(drop=(), index=True, weight_map=None):
        names = [f"m-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
        for number, name in enumerate(names):
            if name not in drop:
                (tmp_path / name).write_bytes(weights(f"t{number}"))
        if index:
            default = {f"t{number}": name for number, name in enumerate(names)}
            content = {"weight_map": default if weight_map is None else weight_map}
            (tmp_path / "m.safetensors.index.json").write_text(json.dumps(content))
        return tmp_path

    return fill


def test_a_single_file_has_no_root(write_safetensors):
    path = str(write_safetensors({"a": ("F32", (2,), 1.0)}, {"k": "v"}))
    checkpoint = open_checkpoint(path)
    assert (checkpoint.path, checkpoint.files, checkpoint.root) == (path, (path,), None)
    assert checkpoint.metadata == {"k": "v"}
    assert checkpoint.bytes == os.path.getsize(path)


@pytest.mark.parametrize("entry", ["", f"{SHARDED}.safetensors.index.json", f"{SHARDED}-00002-of-00002.safetensors"])
def test_folder_index_and_any_shard_stand_for_the_whole_set(entry, fixtures):
    folder = fixtures / "synthetic" / "base_sharded"
    checkpoint = open_checkpoint(str(folder / entry))
    whole = open_checkpoint(str(fixtures / "synthetic" / "base_f32.safetensors"))
    assert checkpoint.tensors.keys() == whole.tensors.keys()
    assert [path.rsplit("/", 1)[1] for path in checkpoint.files] == [
        f"{SHARDED}-0000{n}-of-00002.safetensors" for n in (1, 2)
    ]
    assert checkpoint.root.rstrip("/") == str(folder)
    assert checkpoint.index_path == str(folder / f"{SHARDED}.safetensors.index.json")


def test_shards_without_an_index_are_joined_by_their_names(shards):
    checkpoint = open_checkpoint(str(shards(index=False)))
    assert sorted(checkpoint.tensors) == ["t0", "t1", "t2"]
    assert checkpoint.index_path is None


def test_the_tensors_of_all_shards_are_counted_together(shards, monkeypatch):
    folder = str(shards())
    monkeypatch.setattr(checkpoint_module, "TENSORS", 3)
    assert len(open_checkpoint(folder).tensors) == 3
    monkeypatch.setattr(checkpoint_module, "TENSORS", 2)
    with pytest.raises(LoraInspectError, match=r": 3 tensors are more than the [\d,]+ that lora-inspect reads"):
        open_checkpoint(folder)


def test_shards_named_from_their_own_folder_are_found(shards, monkeypatch):
    monkeypatch.chdir(shards())
    checkpoint = open_checkpoint("m-00002-of-00003.safetensors")
    assert sorted(checkpoint.tensors) == ["t0", "t1", "t2"]
    assert checkpoint.root == "."


def test_a_set_of_one_shard_is_a_plain_file(tmp_path):
    (tmp_path / "m-00001-of-00001.safetensors").write_bytes(weights("a"))
    assert list(open_checkpoint(str(tmp_path / "m-00001-of-00001.safetensors")).tensors) == ["a"]


@pytest.mark.parametrize("entry", ["", "adapter_model.safetensors"])
def test_a_peft_folder_is_its_weights_with_the_config_beside_them(entry, fixtures):
    folder = fixtures / "minilm-peft-rslora-r16"
    checkpoint = open_checkpoint(str(folder / entry))
    assert checkpoint.config["r"] == 16
    assert checkpoint.config_path == str(folder / "adapter_config.json")


def test_a_sharded_peft_folder_has_its_config_too(folder):
    path = folder(
        **{
            "adapter_model-00001-of-00002__safetensors": weights("a"),
            "adapter_model-00002-of-00002__safetensors": weights("b"),
            "adapter_config__json": {"peft_type": "LORA", "r": 4},
        }
    )
    assert open_checkpoint(str(path)).config == {"peft_type": "LORA", "r": 4}


def test_a_folder_with_one_file_of_any_name_is_that_file(folder):
    assert list(open_checkpoint(str(folder(x__safetensors=weights("a"), config__json={}))).tensors) == ["a"]


REFUSED_SETS = {
    "a shard is missing": ({"drop": ("m-00002-of-00003.safetensors",), "index": False}, "2 of 3 shards"),
    "a shard of the index is missing": ({"drop": ("m-00002-of-00003.safetensors",)}, "m-00002-of-00003.safetensors"),
    "index without a map": ({"weight_map": []}, "weight_map"),
    "index with numbers": ({"weight_map": {"t0": 1}}, "weight_map"),
    "index outside the folder": ({"weight_map": {"t0": "../m-00001-of-00003.safetensors"}}, "outside its own folder"),
    "index places a tensor elsewhere": (
        {"weight_map": {"t0": "m-00002-of-00003.safetensors", "t1": "m-00002-of-00003.safetensors"}},
        "places t0",
    ),
    "index names an unknown tensor": ({"weight_map": {"nowhere": "m-00002-of-00003.safetensors"}}, "places nowhere"),
}  # fmt: skip


@pytest.mark.parametrize(("wrong", "says"), REFUSED_SETS.values(), ids=REFUSED_SETS)
def test_an_incomplete_or_contradictory_set_is_refused(wrong, says, shards):
    with pytest.raises(LoraInspectError, match=says):
        open_checkpoint(str(shards(**wrong)))


def test_a_tensor_in_two_shards_is_refused(folder):
    path = folder(**{"m-00001-of-00002__safetensors": weights("a"), "m-00002-of-00002__safetensors": weights("b", "a")})
    with pytest.raises(LoraInspectError, match="a is also in"):
        open_checkpoint(str(path))


REFUSED_FOLDERS = {
    "empty": ({}, "no .safetensors file"),
    "two files": ({"a__safetensors": weights("a"), "b__safetensors": weights("b")}, "2 .safetensors files"),
    "a pickle alone": ({"adapter_model__bin": b"\x80\x02."}, "never read"),
    "two sets": (
        {f"{stem}-0000{n}-of-00002__safetensors": weights(f"{stem}{n}") for stem in "ab" for n in (1, 2)},
        "4 .safetensors files",
    ),
}


@pytest.mark.parametrize(("files", "says"), REFUSED_FOLDERS.values(), ids=REFUSED_FOLDERS)
def test_a_folder_that_is_not_one_checkpoint_is_refused(files, says, folder):
    with pytest.raises(LoraInspectError, match=says):
        open_checkpoint(str(folder(**files)))


CONFIGS = {
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n", "git lfs pull"),
    "not JSON": (b"{", "not valid JSON"),
    "nested beyond reason": (b"[" * 100_000, "not valid JSON"),
    "a list": (b"[]", "not an object"),
}


@pytest.mark.parametrize(("content", "says"), CONFIGS.values(), ids=CONFIGS)
def test_a_broken_config_is_refused_by_name(content, says, folder):
    path = folder(adapter_model__safetensors=weights("a"), adapter_config__json=content)
    with pytest.raises(LoraInspectError, match=says) as refused:
        open_checkpoint(str(path))
    assert str(refused.value).startswith(str(path / "adapter_config.json"))


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(LoraInspectError, match="there is no such file or folder"):
        open_checkpoint(str(tmp_path / "nothing.safetensors"))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@given(stored=stored_numbers)
def test_one_element_tensors_of_every_dtype_are_read_exactly(tmp_path_factory, shape, stored):
    dtype, number = stored
    path = tmp_path_factory.mktemp("numbers") / "a.safetensors"
    path.write_bytes(encode({"pad": ("U8", (3,), b"abc"), "x.alpha": (dtype, shape, element(dtype, number))}))
    read = open_checkpoint(str(path)).numbers(["x.alpha"])["x.alpha"]
    assert read == number
    assert isinstance(read, bool) == (dtype == "BOOL")


@pytest.mark.parametrize("shape", [(2,), (0,), (1, 3)])
def test_a_number_of_several_elements_is_refused_by_key(shape, write_safetensors):
    path = str(write_safetensors({"x.alpha": ("F32", shape, 1.0)}))
    with pytest.raises(LoraInspectError, match=r"x\.alpha has shape"):
        open_checkpoint(path).numbers(["x.alpha"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(LoraInspectError, match="neither a file nor a folder"):
        open_checkpoint(str(tmp_path / "a.safetensors"))


def test_a_folder_of_checkpoints_lists_each_once(tmp_path, fixtures):
    for name in ("b.safetensors", "a.safetensors", "set-00001-of-00002.safetensors", "set-00002-of-00002.safetensors"):
        (tmp_path / name).write_bytes(weights(name))
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_model.safetensors").write_bytes(weights("p"))
    (tmp_path / "notes.txt").write_text("no checkpoint")
    found = [path.removeprefix(f"{tmp_path}/") for path in find_checkpoints(str(tmp_path))]
    assert found == [
        "a.safetensors",
        "b.safetensors",
        "set-00001-of-00002.safetensors",
        "peft/adapter_model.safetensors",
    ]
    assert not is_checkpoint_folder(str(tmp_path))
    assert is_checkpoint_folder(str(tmp_path / "peft"))
    assert is_checkpoint_folder(str(fixtures / "synthetic" / "base_sharded"))
