import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import pytest

from lora_inspect.architectures import Architecture, Layout, by_name, every
from lora_inspect.architectures.detection import candidates, detect
from lora_inspect.architectures.stated_families import trained_by

Module = tuple[str, int | None, int | None]

ROOT = Path(__file__).parents[2]
KEYS = Path(__file__).parent / "keys"
LAYOUTS = [
    pytest.param(architecture, layout, id=f"{architecture.name}-{layout.name}")
    for architecture in every()
    for layout in architecture.layouts
    if not layout.borrowed
]

# Families whose whole list of names another family has too, at the same widths.
NAMESAKES = {
    ("hunyuan_video", "diffusers"): {"framepack", "hunyuan_video"},
    ("anima", "diffusers"): {"anima", "cosmos"},
}


def whole(architecture: Architecture, layout: Layout) -> list[Module]:
    """Every path of the layout at the first index that has it, as wide as in the family's first published size."""
    widths = {size.path: (size.out_features, size.in_features) for size in reversed(architecture.sizes)}
    return [(first_of(path, layout), *widths.get(path, (None, None))) for path in layout.paths]


def first_of(path: str, layout: Layout) -> str:
    numbered = (path.replace("{i}", str(index), 1).replace("{i}", "0") for index in range(9))
    return next(one for one in numbered if not any(f"{one}.".startswith(f"{start}.") for start in layout.missing))


def flattened(modules: Iterable[Module]) -> list[Module]:
    return [(path.replace(".", "_"), out_features, in_features) for path, out_features, in_features in modules]


def read_keys(name: str) -> list[Module]:
    """A fixture's lines `path out in`, with `-` for a width that the file does not tell."""
    lines = (KEYS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    rows = (line.split() for line in lines if not line.startswith("#"))
    return [(path, None if out == "-" else int(out), None if in_ == "-" else int(in_)) for path, out, in_ in rows]


def names_of(modules: Iterable[Module], metadata: dict[str, str] | None = None) -> set[str]:
    return {found.architecture.name for found in candidates(modules, metadata or {})}


def blocks(count: int, *leaves: str) -> list[str]:
    return [leaf.replace("{i}", str(index)) for index in range(count) for leaf in leaves]


def test_borrowed_names_are_those_of_the_family_that_they_are_borrowed_from():
    borrowed = [(one, layout) for one in every() for layout in one.layouts if layout.borrowed]
    assert [(one.name, layout.name) for one, layout in borrowed] == [("framepack", "original")]
    for architecture, layout in borrowed:
        theirs = by_name(architecture.descends_from)
        (own,) = (other for other in theirs.layouts if other.name == layout.name)
        assert set(own.paths) <= set(layout.paths)
        assert {found.architecture.name for found in candidates(whole(theirs, own), {})} == {theirs.name}


def test_a_place_for_an_index_in_the_names_of_a_file_counts_no_blocks():
    assert names_of([("double_blocks.{i}.img_attn.qkv", 12, 4)], {"ss_base_model_version": "flux1"}) == {"flux"}


@pytest.mark.parametrize("flat", [False, True], ids=["dotted", "flattened"])
@pytest.mark.parametrize(("architecture", "layout"), LAYOUTS)
def test_a_whole_layout_is_detected_as_itself(architecture: Architecture, layout: Layout, flat: bool):
    modules = whole(architecture, layout)
    modules = flattened(modules) if flat else modules
    namesakes = NAMESAKES.get((architecture.name, layout.name))
    if namesakes:
        assert detect(modules, {}) is None
        assert names_of(modules) == namesakes
        return
    found = detect(modules, {})
    assert found is not None
    assert (found.architecture, found.layout) == (architecture, layout)
    assert found.says.startswith(f"{len(modules)} of {len(modules)} module names match the {layout.name} layout of ")


@pytest.mark.parametrize("flat", [False, True], ids=["dotted", "flattened"])
@pytest.mark.parametrize(("architecture", "layout"), LAYOUTS)
@pytest.mark.slow
def test_every_single_path_fits_its_family(architecture: Architecture, layout: Layout, flat: bool):
    for module in whole(architecture, layout):
        assert architecture.name in names_of(flattened([module]) if flat else [module]), module


# Expected values as the origin of each file states them, not as the detection finds them.
@pytest.mark.parametrize(
    ("keys", "architecture", "layout"),
    [
        ("flux_control", "flux", "original"),
        ("flux_kohya", "flux", "original"),
        ("flux_diffusers", "flux", "diffusers"),
        ("krea2_kohya", "krea2", "original"),
        ("qwen_image_kohya", "qwen_image", "diffusers"),
        ("sd15_diffusers", "sd15", "diffusers"),
        ("sd15_lycoris", "sd15", "diffusers"),
        ("minicpm_mlx", "llm", "hf"),
        ("gpt_neox_peft", "gpt_neox", "hf"),
        ("minilm_peft", "bert", "hf-backbone"),
        ("minilm_lycoris", "bert", "hf-backbone"),
    ],
)
def test_real_files(keys: str, architecture: str, layout: str):
    found = detect(read_keys(keys), {})
    assert found is not None
    assert (found.architecture.name, found.layout.name, found.size) == (architecture, layout, None)


@pytest.mark.parametrize("keys", ["flux_onetrainer", "flux_aitoolkit", "flux_diffusers_base_model"])
def test_flux_without_modulation_may_be_chroma(keys: str):
    modules = read_keys(keys)
    assert detect(modules, {}) is None
    assert names_of(modules) == {"flux", "chroma"}
    for name in ("flux", "chroma"):
        value = by_name(name).metadata_names[0]
        found = detect(modules, {"ss_base_model_version": value})
        assert found is not None
        assert found.architecture.name == name
        assert "the metadata rules out" in found.says


def test_the_adapter_of_the_language_model_is_anima_s_alone():
    modules: list[Module] = [("blocks.0.self_attn.q_proj", 2048, 2048), ("llm_adapter.out_proj", 1024, 1024)]
    assert names_of(modules[:1]) == {"anima", "cosmos"}
    assert names_of(modules) == {"anima"}


def test_what_is_as_wide_as_no_decoder_of_music_is_a_language_model():
    attention = [f"layers.{index}.self_attn.{leaf}" for index in range(24) for leaf in ("q_proj", "o_proj")]
    assert names_of((path, 4096, 4096) for path in attention) == {"llm"}
    assert names_of((path, 2048, 2048) for path in attention) == {"llm", "ace_step_1_5"}
    assert names_of([("layers.24.self_attn.q_proj", 2048, 2048)]) == {"llm"}
    assert names_of([("layers.0.self_attn.q_proj", 2048, 2048), ("layers.0.cross_attn.q_proj", 2048, 2048)]) == {
        "ace_step_1_5"
    }


@pytest.mark.parametrize(
    ("width", "rows", "family", "size"),
    [
        (768, 2304, "gpt2", "small"),
        (1600, 4800, "gpt2", "XL"),
        (2048, 2304, "gpt_bigcode", "1B"),
        (6144, 6400, "gpt_bigcode", "15B"),
    ],
)
def test_bigcode_is_told_from_gpt2_by_its_one_head_of_keys(width: int, rows: int, family: str, size: str):
    found = detect([("transformer.h.0.attn.c_attn", rows, width)], {})
    assert found is not None
    assert (found.architecture.name, found.size) == (family, size)


@pytest.mark.parametrize("keys", ["anima_kohya", "anima_peft"])
def test_blocks_of_anima_may_be_those_of_cosmos(keys: str):
    modules = read_keys(keys)
    assert names_of(modules) == {"anima", "cosmos"}
    assert names_of(modules, {"ss_base_model_version": "anima-preview"}) == {"anima"}


@pytest.mark.parametrize(
    ("path", "out_features", "in_features", "architecture", "size"),
    [
        ("blocks.3.self_attn.q", 1536, 1536, "wan", "1.3B"),
        ("blocks.3.self_attn.q", 3072, 3072, "wan", "5B"),
        ("blocks.3.self_attn.q", 5120, 5120, "wan", "14B"),
        ("blocks.3.self_attn.q", 2048, 2048, "wan", None),
        ("blocks_3_ffn_2", 5120, 13824, "wan", "14B"),
        ("blocks.3.attn1.to_q", 1536, 1536, "wan", "1.3B"),
        ("single_blocks.3.linear1", 55296, 6144, "flux2", "dev"),
        ("single_blocks.3.linear1", 36864, 4096, "flux2", "klein 9B"),
        ("single_blocks.3.linear1", 27648, 3072, "flux2", "klein 4B"),
        ("double_blocks_3_img_mlp_0", 18432, 3072, "flux2", "klein 4B"),
        ("visual_transformer_blocks.3.self_attention.to_query", 1792, 1792, "kandinsky5", "lite video"),
        ("visual_transformer_blocks.3.self_attention.to_query", 2560, 2560, "kandinsky5", "lite image"),
        ("visual_transformer_blocks.3.cross_attention.to_key", 4096, 4096, "kandinsky5", "pro"),
        ("joint_blocks.3.x_block.attn.qkv", 4608, 1536, "sd3", "2B"),
        ("joint_blocks.3.x_block.attn.qkv", 7296, 2432, "sd3", "3.5 large"),
    ],
)
def test_sizes(path: str, out_features: int, in_features: int, architecture: str, size: str | None):
    found = detect([(path, out_features, in_features)], {})
    assert found is not None
    assert (found.architecture.name, found.size) == (architecture, size)


def test_the_sentence_names_the_share_and_the_size():
    modules = [
        (f"blocks.{index}.self_attn.{leaf}", 1536, 1536) for index, leaf in product(range(30), ("q", "k", "v", "o"))
    ]
    found = detect(modules, {})
    assert found is not None
    assert found.says == (
        "120 of 120 module names match the original layout of Wan 2.1 / 2.2; width 1536 is the 1.3B model"
    )


@pytest.mark.parametrize(
    ("name", "out_features", "in_features"),
    [("z_image", 11520, 3840), ("lumina2", 3840, 2304), ("ideogram4", 13824, 4608)],
)
def test_fused_attention_of_the_same_name_is_told_by_its_width(name: str, out_features: int, in_features: int):
    found = detect([("layers.0.attention.qkv", out_features, in_features)], {})
    assert found is not None
    assert found.architecture.name == name
    assert "the widths rule out" in found.says


def test_fused_attention_of_unknown_width_stays_undecided():
    assert names_of([("layers.0.attention.qkv", None, None)]) == {"z_image", "lumina2", "ideogram4"}


@pytest.mark.parametrize(("name", "width"), [("sd15", 768), ("sd2", 1024), ("sdxl", 2048)])
@pytest.mark.parametrize("parent", ["up_blocks_1_attentions_0", "output_blocks_3_1"])
def test_unets_are_told_by_the_width_of_the_text(name: str, width: int, parent: str):
    modules = [
        (f"{parent}_transformer_blocks_0_attn1_to_k", 640, 640),
        (f"{parent}_transformer_blocks_0_attn2_to_k", 640, width),
    ]
    found = detect(modules, {})
    assert found is not None
    assert found.architecture.name == name


def test_unets_without_text_layers_are_told_by_their_depth():
    deep = ("down_blocks.2.attentions.0.transformer_blocks.9.attn1.to_q", 1280, 1280)
    assert names_of([deep]) == {"sdxl"}
    high = ("up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_q", 320, 320)
    assert names_of([high]) == {"sd15", "sd2"}
    assert names_of([(deep[0].replace("9", "0"), 1280, 1280)]) == {"sd15", "sd2", "sdxl"}


HUNYUAN_VIDEO = (
    *blocks(20, "transformer_blocks.{i}.attn.to_q", "transformer_blocks.{i}.attn.add_q_proj"),
    *blocks(40, "single_transformer_blocks.{i}.attn.to_q", "single_transformer_blocks.{i}.proj_mlp"),
)
FLUX = (
    *blocks(19, "transformer_blocks.{i}.attn.to_q", "transformer_blocks.{i}.attn.add_q_proj"),
    *blocks(38, "single_transformer_blocks.{i}.attn.to_q", "single_transformer_blocks.{i}.proj_mlp"),
)


def test_an_index_beyond_the_blocks_rules_a_family_out():
    modules: list[Module] = [(path, None, None) for path in HUNYUAN_VIDEO]
    assert names_of(modules) == {"hunyuan_video", "hunyuan_image", "framepack"}
    found = detect(modules, {"ss_base_model_version": "framepack"})
    assert found is not None
    assert found.architecture.name == "framepack"
    assert "the block indices rule out FLUX.1 and Chroma" in found.says


def test_the_last_block_of_each_list_tells_flux_from_framepack():
    modules: list[Module] = [(path, None, None) for path in FLUX]
    assert names_of(modules) == {"flux", "chroma"}
    assert names_of(modules[:-2]) == {"flux", "chroma", "hunyuan_video", "hunyuan_image", "framepack"}


def test_attention_beyond_the_blocks_of_flux_is_qwen_image():
    modules: list[Module] = [(f"transformer_blocks_{index}_attn_to_q", 3072, 3072) for index in range(60)]
    found = detect(modules, {})
    assert found is not None
    assert found.architecture.name == "qwen_image"


def test_flattened_attention_of_hunyuan_video_is_not_flux():
    modules = [(f"double_blocks_{index}_img_attn_qkv", 9216, 3072) for index in range(20)]
    found = detect(modules, {})
    assert found is not None
    assert (found.architecture.name, found.layout.name) == ("hunyuan_video", "original")


def test_hidream_o1_is_told_from_its_language_model_by_the_pixel_layers():
    decoder: list[Module] = [
        (f"model.language_model.layers.{index}.self_attn.q_proj", 4096, 4096) for index in range(36)
    ]
    assert names_of(decoder) == {"hidream_o1", "llm"}
    assert names_of([*decoder, ("model.final_layer2.linear", 3072, 4096)]) == {"hidream_o1"}


def test_ambiguity_is_none_and_metadata_settles_it():
    modules: list[Module] = [("transformer_blocks.0.attn.to_k", 3072, 3072)]
    assert detect(modules, {}) is None
    found = detect(modules, {"modelspec.architecture": "Qwen-Image-Edit/lora"})
    assert found is not None
    assert found.architecture.name == "qwen_image"


@pytest.mark.parametrize("key", ["ss_base_model_version", "modelspec.architecture"])
def test_metadata_does_not_win_over_the_names(key: str):
    modules: list[Module] = [("blocks.0.cross_attn.k", 5120, 5120)]
    found = detect(modules, {key: "flux1" if key.startswith("ss_") else "Flux.1-dev/lora"})
    assert found is not None
    assert (found.architecture.name, found.size) == ("wan", "14B")
    assert "the metadata says" in found.says
    assert "lux" in found.says


def test_metadata_does_not_win_over_the_widths():
    modules: list[Module] = [("layers.0.attention.qkv", 11520, 3840)]
    found = detect(modules, {"ss_base_model_version": "lumina2"})
    assert found is not None
    assert found.architecture.name == "z_image"
    assert "the metadata says 'lumina2', but the names do not agree" in found.says


def test_metadata_of_no_candidate_settles_nothing():
    assert detect([("transformer_blocks.0.attn.to_k", 3072, 3072)], {"ss_base_model_version": "wan"}) is None


@pytest.mark.parametrize(
    "path",
    [
        "model.blocks.0.self_attn.q",
        "lora_unet_blocks_0_self_attn_q",
        "blocks.0.self_attn.q.extra",
        "blocks.self_attn.q",
        "blocks.x.self_attn.q",
        "blocks.0.self_attn",
        "",
        ".",
        "_",
        "0",
    ],
)
def test_names_that_are_not_a_path_of_a_family(path: str):
    assert detect([(path, 1536, 1536)], {}) is None


def test_no_modules_are_no_family():
    assert detect([], {}) is None


def test_modules_may_come_from_an_iterator():
    found = detect(iter([("blocks.0.self_attn.q", 1536, 1536)]), {})
    assert found is not None
    assert found.size == "1.3B"


def test_thousands_of_digits_are_an_index():
    assert names_of([(f"transformer_blocks.{'9' * 5000}.attn.to_k", 3072, 3072)]) >= {"qwen_image"}


@pytest.mark.parametrize(("share", "found"), [(0.9, False), (0.5, True)])
def test_a_base_checkpoint_needs_a_lower_share(share: float, found: bool):
    modules: list[Module] = [("blocks.0.self_attn.q", 1536, 1536), ("blocks.0.self_attn.k", 1536, 1536)]
    modules += [("text.token_embedding", 32000, 1536)]
    result = detect(modules, {}, minimum_share=share)
    assert (result is not None) is found


def test_one_foreign_name_in_ten_is_allowed():
    modules: list[Module] = [(f"blocks.{index}.self_attn.q", 1536, 1536) for index in range(9)]
    assert names_of([*modules, ("other", 1, 1)]) == {"wan"}
    assert names_of([*modules[:8], ("other", 1, 1)]) == set()


def test_a_width_of_one_family_beyond_its_blocks_is_not_that_family():
    """FLUX.2 klein 9B and Qwen-Image 2.1 are 4096 wide, and have 8 and 32 blocks of this name."""
    modules: list[Module] = [(f"transformer_blocks.{index}.attn.to_q", 4096, 4096) for index in range(40)]
    found = candidates(modules, {})
    assert len(found) > 1
    assert all("the widths and the block indices contradict each other" in one.says for one in found)
    assert names_of(modules[:30]) == {"qwen_image_2"}


def test_a_depth_of_one_family_is_no_evidence_for_a_model_of_unknown_widths():
    modules: list[Module] = [(f"transformer_blocks.{index}.attn1.to_q", 1920, 1920) for index in range(30)]
    assert names_of(modules) == {"cosmos1", "cosmos", "anima", "ltx_video", "ltx2"}


def test_a_layer_of_one_family_among_those_of_all_is_no_evidence_against_every_width():
    modules: list[Module] = [(f"transformer_blocks.{index}.attn1.to_q", 1152, 1152) for index in range(28)]
    assert names_of([*modules, ("caption_projection.linear_1", 1152, 4096)]) == {
        "cosmos1",
        "cosmos",
        "anima",
        "ltx_video",
        "ltx2",
    }


def test_each_sentence_has_the_share_of_its_own_family():
    modules: list[Module] = [(f"transformer_blocks.{index}.attn1.to_q", 1152, 1152) for index in range(28)]
    found = candidates([*modules, ("transformer_blocks.0.audio_attn1.to_q", 1, 1)], {})
    assert {one.architecture.name: one.says.split(" module")[0] for one in found} == {
        "cosmos1": "28 of 29",
        "cosmos": "28 of 29",
        "anima": "28 of 29",
        "ltx_video": "28 of 29",
        "ltx2": "29 of 29",
    }


# What `ss_network_module` may be of, by modules whose families are open without it.
_OPEN = "transformer_blocks.0.attn.to_k"


@pytest.mark.parametrize("package", ["networks.", "musubi_tuner.networks.", "lora_inspect.networks."])
@pytest.mark.parametrize(
    ("module", "family"),
    [("lora_qwen_image", "qwen_image"), ("lora_framepack", "framepack"), ("lora_kandinsky", None), ("lora", None)],
)
def test_the_network_module_is_no_evidence_of_the_family(package: str, module: str, family: str | None):
    modules: list[Module] = [(_OPEN, 3072, 3072)]
    open_to = names_of(modules)
    assert {"qwen_image", "framepack"} <= open_to
    assert "kandinsky5" not in open_to
    found = candidates(modules, {"ss_network_module": package + module})
    assert {one.architecture.name for one in found} == ({family} if family else open_to)
    assert all("ss_network_module rules out" in one.says for one in found) == bool(family)


@pytest.mark.parametrize(
    "module",
    ["lycoris.kohya", "networks.lora", "networks.loha", "lora_qwen_image", "my.networks.lora_wan", "networks.", ""],
)
def test_a_network_module_of_any_family_says_nothing(module: str):
    modules: list[Module] = [(_OPEN, 3072, 3072)]
    assert candidates(modules, {"ss_network_module": module}) == candidates(modules, {})


def test_flux_and_chroma_have_one_network_module():
    modules: list[Module] = [("double_blocks.0.img_attn.qkv", 9216, 3072)]
    found = names_of(modules, {"ss_network_module": "networks.lora_flux"})
    assert found == {"flux", "chroma"} < names_of(modules)


def test_the_network_module_is_weaker_than_what_the_base_is_called():
    modules: list[Module] = [(_OPEN, 3072, 3072)]
    metadata = {"ss_network_module": "networks.lora_framepack", "ss_base_model_version": "qwen_image"}
    assert names_of(modules, metadata) == {"qwen_image"}


@pytest.mark.parametrize("module", ["networks.lora_flux", "musubi_tuner.networks.lora_zimage"])
def test_the_network_module_does_not_win_over_the_names(module: str):
    modules: list[Module] = [("blocks.0.cross_attn.k", 5120, 5120)]
    found = detect(modules, {"ss_network_module": module})
    assert found is not None
    assert (found.architecture.name, found.size) == ("wan", "14B")
    assert found.says.endswith(f"ss_network_module is {module!r}, but the names do not agree")
    agreeing = detect(modules, {"ss_network_module": "networks.lora_wan"})
    assert agreeing is not None
    assert "ss_network_module" not in agreeing.says


def test_every_network_module_of_one_family_is_known_by_its_name():
    for file in sorted((ROOT / "networks").glob("lora_*.py")):
        families = re.findall(r"architectures\.families\.(\w+) import ARCHITECTURE", file.read_text())
        assert trained_by({"ss_network_module": f"networks.{file.stem}"})[:1] == (families[0],), file
