"""What real key lists are taken for: their names and shapes as fixtures/key-shapes holds them, without the values."""

import gzip
import json
from math import prod

import pytest
from adapters import families, lora

from lora_inspect.architectures import by_name
from lora_inspect.architectures.correspondence import Correspondence, same, stack, swapped
from lora_inspect.architectures.detection import Detection, candidates
from lora_inspect.architectures.record import Architecture, Layout
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.matching.match import match
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.file_info import inspect
from lora_inspect.reading.identify import (
    adapter_candidates,
    certain_correspondence,
    common_correspondence,
    may_be_one,
    with_paths,
)
from lora_inspect.reporting.file_record import as_json

FLUX_OR_CHROMA = ["flux", "chroma"]
# Expected as the origin of each file states it. Where nothing in a list tells the families apart all of them are right,
# and the true one is among them. The samples of two or three layers have widths of no published model.
REAL = {
    "anima-lora-kohya": ["cosmos", "anima"],
    "anima-lora-kohya-with-te": ["anima"],
    "anima-lora-lokr": ["cosmos", "anima"],
    "anima-lora-peft": ["cosmos", "anima"],
    "flux-control-lora": ["flux"],
    "flux-dora-onetrainer": ["flux"],
    "flux-lokr-bfl": ["flux", "chroma", "flux2", "hunyuan_video", "hunyuan_image"],
    "flux-lora-aitoolkit": FLUX_OR_CHROMA,
    "flux-lora-diffusers": ["flux"],
    "flux-lora-diffusers-base-model": FLUX_OR_CHROMA,
    "flux-lora-diffusers-no-proj-mlp": FLUX_OR_CHROMA,
    "flux-lora-kohya": ["flux"],
    "flux-lora-kohya-with-te1": ["flux"],
    "flux-lora-xlabs": ["flux"],
    "krea2-lora-kohya": ["krea2"],
    "qwen-image-lora-diffusers": ["flux", "chroma", "flux2", "hunyuan_video", "framepack", "qwen_image"],
    "qwen-image-lora-kohya": ["qwen_image"],
    "sd15-diffusers-pokemon": ["sd15"],
    "sd15-lokr-smart-falcon-4": ["sd15"],
    "sd15-lokr-smart-falcon-8": ["sd15"],
    "sd15-lokr-smart-falcon-16": ["sd15"],
}


@pytest.fixture
def read_shapes(fixtures):
    """`read_shapes(name)`: the shapes by key and the metadata of a real file."""

    def read(name):
        with gzip.open(fixtures / "key-shapes" / f"{name}.json.gz", "rt", encoding="utf-8") as handle:
            record = json.load(handle)
        return record["shapes"], record["metadata"]

    return read


def write_zeros(path, shapes, metadata=None):
    """A file with tensors of these shapes, whose zeros take no room on the disk."""
    header, end = {"__metadata__": metadata or {}}, 0
    for key, shape in shapes.items():
        start, end = end, end + 4 * prod(shape)
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    data = json.dumps(header).encode()
    with open(path, "wb") as handle:
        handle.write(len(data).to_bytes(8, "little") + data)
        handle.truncate(8 + len(data) + end)
    return str(path)


@pytest.fixture
def record_of(tmp_path):
    """`record_of(shapes, metadata)`: what `info --json` says of a file with these tensors, all of zeros."""

    def inspected(shapes, metadata=None):
        return as_json(inspect(write_zeros(tmp_path / "adapter.safetensors", shapes, metadata)))

    return inspected


def shapes_of(*modules):
    """The shapes of LoRA modules (name, out features, in features)."""
    return {
        key: list(shape)
        for name, out, in_ in modules
        for key, (_, shape, _) in lora(name, rank=4, out=out, inputs=in_).items()
    }


@pytest.mark.parametrize("name", REAL)
def test_real_key_lists(name, read_shapes, record_of):
    record = record_of(*read_shapes(name))
    assert families(record) == REAL[name]
    assert record["architecture"] == (REAL[name][0] if len(REAL[name]) == 1 else None)


def test_the_table_names_every_real_key_list(fixtures):
    assert {path.name.removesuffix(".json.gz") for path in (fixtures / "key-shapes").iterdir()} == set(REAL)


def test_sd21_is_told_from_sd15_by_the_width_of_its_text(read_shapes, record_of):
    shapes, _ = read_shapes("sd15-diffusers-pokemon")
    # Its attention has the names and channels of 1.5, over a text of width 1024.
    wider = {key: [1024 if size == 768 else size for size in shape] for key, shape in shapes.items()}
    assert wider != shapes
    assert families(record_of(wider)) == ["sd2"]


def test_candidates_come_with_what_leaves_them_open_and_what_would_settle_it(read_shapes, record_of):
    record = record_of(*read_shapes("flux-lora-aitoolkit"))
    says = [item["says"] for item in record["evidence"] if item["about"] == "architecture"]
    assert says == [
        "228 of 228 module names match the original layout of FLUX.1; the widths rule out FLUX.2 and HunyuanImage 2.1; "
        "the block count rules out HunyuanVideo",
        "228 of 228 module names match the original layout of Chroma; the widths rule out FLUX.2 and HunyuanImage 2.1; "
        "the block count rules out HunyuanVideo",
        "it may be FLUX.1 or Chroma; any of these would settle it: a layer that only one of them has, such as "
        "double_blocks.{i}.img_mod.lin (FLUX.1) or distilled_guidance_layer.layers.{i}.in_layer (Chroma); "
        "ss_base_model_version in the metadata, flux1 (FLUX.1) or chroma (Chroma)",
    ]
    assert record["layout"] == "original"


@pytest.mark.parametrize("prefix", ["lora_te1_text_model_encoder_layers_0_", "lora_te_text_model_encoder_layers_0_"])
def test_clip_beside_flux_blocks_is_no_chroma(prefix, read_shapes, record_of):
    shapes, _ = read_shapes("flux-lora-aitoolkit")
    clip = shapes_of((f"{prefix}self_attn_q_proj", 768, 768), (f"{prefix}mlp_fc2", 768, 3072))
    record = record_of({**shapes, **clip})
    assert families(record) == ["flux"]
    assert "the text encoders rule out Chroma" in record["evidence"][-1]["says"]


def test_t5_beside_flux_blocks_leaves_both(read_shapes, record_of):
    shapes, _ = read_shapes("flux-lora-aitoolkit")
    t5 = shapes_of(("lora_te3_encoder_block_0_layer_0_SelfAttention_q", 4096, 4096))
    assert families(record_of({**shapes, **t5})) == FLUX_OR_CHROMA


def test_a_text_encoder_of_no_candidate_decides_nothing(read_shapes, record_of):
    shapes, _ = read_shapes("flux-lora-aitoolkit")
    strange = shapes_of(("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 512, 512))
    assert families(record_of({**shapes, **strange})) == FLUX_OR_CHROMA


# One layer of the UNet that any of the three has, of a width that all of them have.
UNET = ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", 640, 640)


def clip_layer(number, width):
    return (f"lora_te{number}_text_model_encoder_layers_0_self_attn_k_proj", width, width)


@pytest.mark.parametrize(
    ("encoders", "expected"),
    [
        ([], ["sd15", "sd2", "sdxl"]),
        ([clip_layer("", 768)], ["sd15", "sdxl"]),
        ([clip_layer("", 1024)], ["sd2"]),
        ([clip_layer(1, 768), clip_layer(2, 1280)], ["sdxl"]),
        ([clip_layer(2, 1280)], ["sdxl"]),
    ],
)
def test_unets_are_told_by_the_width_of_their_text_encoders(encoders, expected, record_of):
    assert families(record_of(shapes_of(UNET, *encoders))) == expected


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"ss_v2": "True"}, ["sd2"]),
        ({"ss_v2": "False"}, ["sd15", "sdxl"]),
        ({"ss_v2": "False", "ss_base_model_version": "sdxl_base_v1-0"}, ["sdxl"]),
        ({"ss_v2": "True", "ss_base_model_version": "sdxl_base_v1-0"}, ["sdxl"]),
        ({"ss_v2": "None"}, ["sd15", "sd2", "sdxl"]),
        ({"ss_sd_model_name": "v2-1_768-ema-pruned.ckpt"}, ["sd15", "sd2", "sdxl"]),
    ],
)
def test_unets_are_told_by_the_options_of_sd_scripts(metadata, expected, record_of):
    assert families(record_of(shapes_of(UNET), metadata)) == expected


def test_ss_v2_does_not_win_over_the_width_of_the_text(record_of):
    text = ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 640, 768)
    assert families(record_of(shapes_of(UNET, text), {"ss_v2": "True"})) == ["sd15"]


@pytest.mark.parametrize(
    ("encoders", "expected"),
    [
        ([clip_layer("", 1024)], ["sd2"]),
        ([clip_layer(1, 768), clip_layer(2, 1280)], ["hidream_i1", "sd3", "sdxl"]),
        ([clip_layer(1, 768), ("lora_te3_encoder_block_3_layer_1_DenseReluDense_wi_0", 10240, 4096)], None),
        ([clip_layer("", 999)], []),
    ],
)
def test_a_file_of_text_encoders_alone(encoders, expected, record_of):
    found = families(record_of(shapes_of(*encoders)))
    assert found == (["flux", "hidream_i1", "sd3"] if expected is None else expected)


def test_the_second_expert_of_wan_alone_is_wan(record_of):
    record = record_of(shapes_of(("transformer_2.blocks.0.attn1.to_q", 5120, 5120)))
    assert (record["architecture"], record["size"]) == ("wan", "14B")


def test_slices_of_a_fused_layer_count_as_the_whole_of_it(record_of):
    parts = {}
    for index in range(3):
        parts[f"lora_unet_layers_0_attention_qkv.lora_down.{index}.weight"] = [4, 3840]
        parts[f"lora_unet_layers_0_attention_qkv.lora_up.{index}.weight"] = [3840, 4]
    assert families(record_of(parts)) == ["z_image"]


def test_the_screen_and_the_table_say_flux_or_chroma(run, tmp_path, read_shapes, record_of, monkeypatch):
    record_of(*read_shapes("flux-lora-aitoolkit"))
    path = tmp_path / "adapter.safetensors"
    assert run("info", path).stdout.startswith("LoRA for FLUX.1 or Chroma - ")
    monkeypatch.setenv("COLUMNS", "160")
    assert "FLUX.1 or Chroma" in run("info", path, path).stdout


def test_a_base_of_another_family_is_named_beside_all_candidates_of_the_adapter(tmp_path, read_shapes):
    shapes, _ = read_shapes("flux-lora-aitoolkit")
    adapter = read_adapter(open_checkpoint(write_zeros(tmp_path / "adapter.safetensors", shapes)))
    wider = {"double_blocks.0.img_attn.qkv.weight": [10752, 3584]}
    base = open_checkpoint(write_zeros(tmp_path / "base.safetensors", wider))
    with pytest.raises(LoraInspectError, match=r"use a base of FLUX\.1 or Chroma, as this one is of HunyuanImage 2\.1"):
        match(adapter, base)


def test_files_of_one_family_are_of_another_size_only_where_both_sizes_are_known():
    one, other, unknown = (candidates([("blocks.0.self_attn.q", width, width)], {}) for width in (1536, 5120, 2048))
    assert may_be_one(one, one)
    assert not may_be_one(one, other)
    assert may_be_one(one, unknown)
    assert may_be_one(unknown, other)


def detected(*names):
    return [Detection(by_name(name), by_name(name).layouts[0], None, "") for name in names]


def test_one_family_has_its_own_correspondence():
    assert common_correspondence(detected("flux", "flux")) is by_name("flux").correspondence
    assert common_correspondence([]).relations == ()


def test_several_families_have_the_relations_that_none_of_them_contradicts():
    qkv = stack("double_blocks.{i}.img_attn.qkv", *(f"transformer_blocks.{{i}}.attn.to_{part}" for part in "qkv"))
    halves = swapped("final_layer.adaLN_modulation.1", "norm_out.linear")
    modulation = same("double_blocks.{i}.img_mod.lin", "transformer_blocks.{i}.norm1.linear")
    found = common_correspondence(detected("flux", "chroma", "hunyuan_video")).relations
    assert {qkv, halves, modulation, same("img_in", "x_embedder"), same("img_in.proj", "x_embedder.proj")} <= {*found}
    assert {qkv, halves, modulation} <= {
        *common_correspondence(detected("framepack", "hunyuan_image", "flux")).relations
    }


MODEL = Layout("original", ("a.{i}.x", "last")), Layout("diffusers", ("b.{i}.y", "b.{i}.z", "end"))
WHOLE = stack("a.{i}.x", "b.{i}.y", "b.{i}.z")


@pytest.mark.parametrize(
    ("relations", "paths", "is_common", "is_certain"),
    [
        ((WHOLE,), ("a.{i}.x", "b.{i}.y", "b.{i}.z"), True, True),
        ((), ("a.{i}.x", "b.{i}.y", "b.{i}.z"), False, False),
        ((stack("a.{i}.x", "b.{i}.z", "b.{i}.y"),), ("a.{i}.x", "b.{i}.y", "b.{i}.z"), False, False),
        ((), ("a.{i}.x", "b.{i}.z"), False, False),
        ((), ("a.{i}.x", "c"), True, False),
        ((stack("a.{i}.x", "c", "d"),), ("a.{i}.x", "c", "d"), True, False),
        ((), ("b.{i}.y", "b.{i}.z"), True, False),
        ((), ("c", "a.{i}.y"), True, True),
    ],
)
def test_a_family_speaks_of_a_relation_whose_layers_it_has(relations, paths, is_common, is_certain):
    one = Architecture("one", "One", MODEL, correspondence=Correspondence(lambda: (WHOLE, same("last", "end"))))
    other = Architecture("other", "Other", (Layout("any", paths),), correspondence=Correspondence(lambda: relations))
    for order in ((one, other), (other, one)):
        detections = [Detection(family, family.layouts[0], None, "") for family in order]
        for of, expected in ((common_correspondence, is_common), (certain_correspondence, is_certain)):
            assert (WHOLE in of(detections).relations) is expected
            assert same("last", "end") in of(detections).relations


def test_the_paths_of_modules_follow_the_families_that_are_asked_of_last(write_safetensors):
    name = "lora_unet_blocks_0_self_attn_q"
    adapter = read_adapter(open_checkpoint(str(write_safetensors(lora(name, rank=2)))))
    unknown = with_paths(adapter, ())
    assert unknown.modules[name].path is None
    assert with_paths(unknown, adapter_candidates(adapter)).modules[name].path == "blocks.0.self_attn.q"


def test_the_families_of_equal_modules_follow_the_metadata(write_safetensors):
    adapter = read_adapter(
        open_checkpoint(str(write_safetensors(lora("lora_unet_double_blocks_0_img_attn_qkv", rank=2))))
    )
    assert len(adapter_candidates(adapter)) > 1
    told = adapter.checkpoint._replace(metadata={"modelspec.architecture": "chroma/lora"})
    found = adapter_candidates(adapter._replace(checkpoint=told))
    assert [one.architecture.name for one in found] == ["chroma"]
