"""Facts from the files of other programs beside an adapter, and files there that may hold anything."""

import json
import os

import pytest
from adapters import lora

from lora_inspect.reading.file_info import inspect
from lora_inspect.reading.metadata.sidecars import LARGEST, Sidecars
from lora_inspect.reporting.file_record import as_json

CIVITAI = {
    "name": "v1.0",
    "baseModel": "Wan Video 2.2 T2V-A14B",
    "trainedWords": ["ink drawing, sketch", "wash"],
    "model": {"name": "Ink"},
}
MANAGER = {"model_name": "Ink of LM", "base_model": "Flux.1 D", "civitai": {"trainedWords": ["from the manager"]}}
WEB_UI = {"activation text": "of the web ui", "sd version": "SDXL", "preferred weight": 0.8}


def wan(module="diffusion_model.blocks.0.self_attn.q"):
    return lora(module, rank=2, out=5120, inputs=5120)


# A layer of the same name and width in three families.
SHARED = lora("lora_unet_double_blocks_18_img_attn_qkv", rank=2, out=9216, inputs=3072)
OPEN = ["flux", "chroma", "hunyuan_video"]


@pytest.fixture
def record(write_safetensors, tmp_path):
    """`record(sidecars, metadata, tensors)`: the record of style.safetensors beside files of these endings."""

    def inspected(sidecars, metadata=None, tensors=None, name="style"):
        file = write_safetensors(tensors or wan(), metadata=metadata or {}, name=f"{name}.safetensors")
        for ending, content in sidecars.items():
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            (tmp_path / f"{name}{ending}").write_bytes(content)
        return as_json(inspect(str(file)))

    return inspected


def test_civitai_fills_in_all_fields(record):
    found = record({".civitai.info": CIVITAI})
    assert found["trigger_words"] == ["ink drawing", "sketch", "wash"]
    assert (found["title"], found["base"]) == ("Ink", "Wan Video 2.2 T2V-A14B")
    fields = ["title", "base", "trigger_words"]
    assert found["sidecars"] == [{"file": "style.civitai.info", "fields": fields, "problem": None}]


def test_lora_manager_fills_in_all_fields(record):
    found = record({".metadata.json": MANAGER})
    assert found["trigger_words"] == ["from the manager"]
    assert (found["title"], found["base"]) == ("Ink of LM", "Flux.1 D")


def test_a_web_ui_fills_in_its_activation_text(record):
    found = record({".json": WEB_UI})
    assert (found["trigger_words"], found["base"], found["title"]) == (["of the web ui"], "SDXL", None)


def test_the_file_itself_counts_first(record):
    own = {"modelspec.trigger_phrase": "own words", "modelspec.title": "Own title", "ss_base_model": "own base"}
    found = record({".civitai.info": CIVITAI}, own)
    assert (found["trigger_words"], found["title"], found["base"]) == (["own words"], "Own title", "own base")
    assert found["sidecars"] == [{"file": "style.civitai.info", "fields": [], "problem": None}]


def test_a_later_sidecar_fills_in_what_an_earlier_one_leaves_open(record):
    empty = {"baseModel": "Other", "trainedWords": [], "name": "v1"}
    found = record({".civitai.info": empty, ".metadata.json": MANAGER})
    assert found["trigger_words"] == ["from the manager"]
    fields = ["title", "base", "trigger_words"]
    assert [one["fields"] for one in found["sidecars"]] == [[], fields]


@pytest.mark.parametrize("said", ["Unknown", "Other"])
def test_an_unknown_base_is_none(said, record):
    assert record({".civitai.info": CIVITAI | {"baseModel": said}})["base"] is None


def test_a_sidecar_of_another_name_is_not_read(record, tmp_path):
    (tmp_path / "other.civitai.info").write_text(json.dumps(CIVITAI))
    assert record({})["sidecars"] == []


def test_json_of_another_program_is_no_sidecar(record):
    assert record({".json": {"nodes": []}, ".metadata.json": {"anything": 1}})["sidecars"] == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"no json", "it is not valid JSON"),
        (b"\xff\xfe\x00", "it is not valid JSON"),
        (b"[1, 2]", "it is no JSON object"),
        (b"[" * 100_000, "it is not valid JSON"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "its JSON is nested too deeply"),
        (
            b" " * (LARGEST + 1),
            f"it has {LARGEST + 1:,} bytes, but lora-inspect reads at most {LARGEST:,} of such a file",
        ),
    ],
    ids=["text", "bytes", "list", "brackets", "deep", "large"],
)
def test_a_hostile_sidecar_is_ignored_with_its_problem(content, problem, record):
    found = record({".civitai.info": content, ".metadata.json": MANAGER})
    assert found["sidecars"][0] == {"file": "style.civitai.info", "fields": [], "problem": problem}
    assert found["trigger_words"] == ["from the manager"]


@pytest.mark.parametrize(
    "content",
    [
        {"trainedWords": 3, "baseModel": ["x"], "model": "text", "name": None},
        {"trainedWords": [{"a": 1}, None, 5, ""], "baseModel": {}, "model": {"name": 7}, "name": []},
        {"trainedWords": ["\ud800"], "baseModel": "\udfff"},
    ],
    ids=["kinds", "inner kinds", "halves of pairs"],
)
def test_values_of_other_types_count_as_missing(content, record):
    found = record({".civitai.info": content})
    assert (found["trigger_words"], found["title"], found["base"]) == ([], None, None)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_not_waited_for(record, tmp_path):
    os.mkfifo(tmp_path / "style.civitai.info")
    assert record({})["trigger_words"] == []


def test_a_link_to_nowhere_is_no_sidecar(record, tmp_path):
    os.symlink(tmp_path / "gone", tmp_path / "style.civitai.info")
    assert record({})["sidecars"] == []


def test_a_base_model_decides_between_families_that_the_tensors_leave_open(record):
    assert record({}, tensors=SHARED)["candidates"] == OPEN
    found = record({".civitai.info": CIVITAI | {"baseModel": "Flux.1 D"}}, tensors=SHARED)
    assert (found["architecture"], found["candidates"]) == ("flux", [])
    said = {"about": "architecture", "says": "the base model is 'Flux.1 D', as FLUX.1", "where": "style.civitai.info"}
    assert said in found["evidence"]


def test_the_metadata_decide_before_a_base_model_does(record):
    own = {"modelspec.architecture": "chroma"}
    found = record({".civitai.info": CIVITAI | {"baseModel": "Flux.1 D"}}, own, SHARED)
    assert found["architecture"] == "chroma"


@pytest.mark.parametrize("said", ["SDXL 1.0", "Flux.2 D", "Flux.3 D", "Pony", "F", "Wan Video 2.2 T2V-A14B", ""])
def test_a_base_model_of_no_candidate_decides_nothing(said, record):
    found = record({".civitai.info": CIVITAI | {"baseModel": said}}, tensors=SHARED)
    assert found["candidates"] == OPEN


def test_tensors_overrule_a_base_model(record):
    assert record({".civitai.info": CIVITAI | {"baseModel": "Flux.1 D"}})["architecture"] == "wan"


def test_names_in_a_sidecar_tell_the_expert(record):
    found = record({".civitai.info": CIVITAI | {"name": "v1.0 HIGH"}})
    assert found["expert"] == "high noise"
    said = {"about": "expert", "says": "a name says high noise", "where": "style.civitai.info"}
    assert said in found["evidence"]


def test_the_name_of_the_file_tells_the_expert_before_a_sidecar(record):
    found = record({".civitai.info": CIVITAI | {"name": "v1.0 HIGH"}}, name="style_LOW")
    assert found["expert"] == "low noise"


def test_a_folder_is_listed_once_for_many_files(write_safetensors, tmp_path, monkeypatch):
    files = [str(write_safetensors(wan(), name=f"{number}.safetensors")) for number in range(5)]
    (tmp_path / "3.civitai.info").write_text(json.dumps(CIVITAI))
    listed, looked = [], []
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or real(folder))
    is_file = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: looked.append(path) or is_file(path))
    assert Sidecars((files[0],)).found == ()
    assert (listed, looked.count(str(tmp_path / "0.civitai.info"))) == ([], 1)
    looked.clear()
    found = [[one.file for one in Sidecars((file,)).found] for file in files[1:]]
    assert found == [[], [], ["3.civitai.info"], []]
    assert (listed, looked) == ([str(tmp_path)], [str(tmp_path / "3.civitai.info")])


def test_a_sidecar_that_comes_later_is_found(write_safetensors, tmp_path):
    files = [str(write_safetensors(wan(), name=f"{number}.safetensors")) for number in range(2)]
    assert [Sidecars((file,)).found for file in files] == [(), ()]
    (tmp_path / "1.civitai.info").write_text(json.dumps(CIVITAI))
    os.utime(tmp_path, (5, 5))
    assert [one.file for one in Sidecars((files[1],)).found] == ["1.civitai.info"]


def test_the_screen_names_the_source_and_what_is_ignored(write_safetensors, tmp_path, run):
    file = write_safetensors(wan(), name="style.safetensors")
    (tmp_path / "style.civitai.info").write_text(json.dumps(CIVITAI | {"trainedWords": ["ink \x1b[31m"]}))
    (tmp_path / "style.json").write_text("{")
    shown = run("info", file).stdout
    assert "  trigger      ink \\x1b[31m (style.civitai.info)\n" in shown
    assert "  title        Ink (style.civitai.info)\n" in shown
    assert "style.json is ignored: it is not valid JSON.\n" in shown
    assert "The file says of itself" not in shown
