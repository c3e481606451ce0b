from pathlib import Path

import pytest

from lora_inspect import architectures
from lora_inspect.architectures import Architecture, Layout, by_name, every, families
from lora_inspect.architectures.record import is_parameter, under

LAYOUTS = [
    pytest.param(architecture, layout, id=f"{architecture.name}-{layout.name}")
    for architecture in every()
    for layout in architecture.layouts
]


def test_each_file_holds_the_family_of_its_name():
    files = {file.stem for file in Path(families.__file__).parent.glob("*.py")} - {"__init__"}
    names = [architecture.name for architecture in every()]
    assert len(names) == len(set(names)) >= 30
    assert set(names) == files


def test_a_family_that_another_thread_is_just_loading_is_named_once(monkeypatch):
    by_name("flux")
    monkeypatch.setattr(architectures, "_WAITING", {"flux"})
    assert architectures.names().count("flux") == 1


def test_a_family_stands_behind_the_one_that_it_descends_from():
    names = [architecture.name for architecture in every()]
    descended = [architecture for architecture in every() if architecture.descends_from]
    assert all(names.index(one.descends_from) < names.index(one.name) for one in descended)
    eldest = [architecture.name for architecture in every() if not architecture.descends_from]
    assert eldest == sorted(eldest)
    assert names[names.index("hunyuan_video") :][:4] == [
        "hunyuan_video", "framepack", "hunyuan_image", "hunyuan_video_1_5",
    ]  # fmt: skip


def test_by_name_finds_every_family():
    assert all(by_name(architecture.name) is architecture for architecture in every())


def test_by_name_lists_the_known_names():
    with pytest.raises(KeyError, match=r"no architecture is named 'sd4'; choose from .*sdxl"):
        by_name("sd4")


def test_records_are_frozen():
    with pytest.raises(AttributeError):
        by_name("wan").title = "Wan 3"  # type: ignore[misc]


def test_under_puts_the_parent_before_each_leaf():
    assert under("blocks.{i}", "attn.q", "ffn.0") == ("blocks.{i}.attn.q", "blocks.{i}.ffn.0")


@pytest.mark.parametrize(("architecture", "layout"), LAYOUTS)
def test_paths_are_dotted_paths_without_repetition(architecture: Architecture, layout: Layout):
    assert len(set(layout.paths)) == len(layout.paths)
    for path in layout.paths:
        assert all(path.split(".")), path
        assert "{" not in path.replace("{i}", ""), path


@pytest.mark.parametrize(("architecture", "layout"), LAYOUTS)
def test_block_lists_are_part_of_the_paths(architecture: Architecture, layout: Layout):
    numbered = {".".join("{i}" if part.isdigit() else part for part in path.split(".")) for path in layout.paths}
    for at, count in layout.blocks:
        assert count > 0
        assert any(path.startswith(f"{at}.{{i}}.") for path in numbered), at


@pytest.mark.parametrize("architecture", every(), ids=lambda architecture: architecture.name)
def test_sizes_are_told_by_modules_of_the_family(architecture: Architecture):
    known = {path for layout in architecture.layouts for path in layout.paths}
    for size in architecture.sizes:
        assert size.path in known, size
        assert size.out_features or size.in_features, size


@pytest.mark.parametrize("architecture", every(), ids=lambda architecture: architecture.name)
def test_layout_names_are_unique_and_known(architecture: Architecture):
    names = [name for layout in architecture.layouts for name in layout.names]
    assert len(set(names)) == len(names)
    assert all(name in {"original", "diffusers", "comfyui", "xlabs"} or name.startswith("hf") for name in names)


@pytest.mark.parametrize(("architecture", "layout"), LAYOUTS)
def test_kohya_prefix_follows_the_rule(architecture: Architecture, layout: Layout):
    trained_by_kohya = {"sd15", "sd2", "sdxl", "qwen_image", "framepack", "z_image", "kandinsky5", "hidream_i1"}
    trained_by_kohya |= {"ernie_image", "qwen_image_2"}  # nobody trains them in other names
    if layout.name.startswith(("hf", "xlabs")):
        expected = ""
    elif layout.name == "diffusers" and architecture.name not in trained_by_kohya:
        expected = "lora_transformer_"
    else:
        expected = "lora_unet_"
    assert layout.kohya_prefix == expected


def test_metadata_names_belong_to_one_family_each():
    names = [name.lower() for architecture in every() for name in set(architecture.metadata_names)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("architecture", "layout"), LAYOUTS)
def test_no_layer_is_a_norm_or_a_parameter(architecture, layout):
    assert not set(layout.paths) & set(layout.norms)
    assert len(set(layout.norms)) == len(layout.norms)
    assert not any(map(is_parameter, layout.paths))


@pytest.mark.parametrize("path", ["blocks.7.modulation", "scale_shift_table", "pos_embed.pos_embed", "register_tokens"])
def test_parameters_of_models_and_blocks(path):
    assert is_parameter(path)


@pytest.mark.parametrize("path", ["single_blocks.7.modulation.lin", "layers.0.adaln_modulation", "visual.pos_embed"])
def test_layers_that_are_called_much_as_parameters(path):
    assert not is_parameter(path)
