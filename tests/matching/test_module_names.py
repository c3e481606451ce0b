"""What modules are called: the blocks of every family in all of its layouts, and the short names of other programs."""

import pytest
from adapters import lora

from lora_inspect import architectures
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.matching.module_map import module_names
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.identify import adapter_candidates
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.module_patterns import fits

LAYOUTS = {
    f"{family.name} {layout.name}": (family, layout) for family in architectures.every() for layout in family.layouts
}
LISTS = {
    (name, at): (family, layout, at)
    for name, (family, layout) in LAYOUTS.items()
    for at, count in layout.blocks
    if "{i}" not in at and count > 1
}


def widths(family, layout):
    """(out, in) of the layers of a model of the first size that is known."""
    first = family.sizes[0].name if family.sizes else None
    own = {size.path: size for size in family.sizes if size.name == first}
    return {
        path: (own[path].out_features or 8, own[path].in_features or 8) if path in own else (8, 8)
        for path in layout.paths
    }


@pytest.fixture
def named(write_safetensors):
    """The names of the modules of an adapter on these layers, by their dotted paths, with the file's names for them."""

    def names_of(family, layers, written):
        tensors = {}
        for path, (out, inputs) in layers.items():
            tensors |= lora(written(path), rank=1, alpha=1.0, out=out, inputs=inputs)
        says = {"ss_base_model_version": family.metadata_names[0]} if family.metadata_names else {}
        adapter = read_adapter(open_checkpoint(str(write_safetensors(tensors, says, name="adapter.safetensors"))))
        weights = {f"{path}.weight": ("F32", (2, 2), 0.5) for path in layers}
        found = module_names(adapter, open_checkpoint(str(write_safetensors(weights, name="base.safetensors"))))
        return {path: found[written(path)] for path in layers}

    return names_of


@pytest.mark.parametrize("flat", [False, True], ids=["dotted", "underscored"])
@pytest.mark.parametrize(("family", "layout", "at"), LISTS.values(), ids=[" ".join(key) for key in LISTS])
def test_a_number_of_a_list_is_its_block_and_a_range_is_its_blocks(family, layout, at, flat, named):
    if flat and not layout.kohya_prefix:
        return  # the family has no underscored names
    shapes = widths(family, layout)
    layers = {
        path.replace("{i}", str(number), 1).replace("{i}", "0"): shape
        for path, shape in shapes.items()
        for number in (1, 3, 10)
    }
    names = named(family, layers, lambda path: layout.kohya_prefix + path.replace(".", "_") if flat else path)
    for pattern, numbers in {f"{at}.1": [1], f"{at}.0-3": range(4), f"{at}.2-10": range(2, 11), at: range(99)}.items():
        wanted = {path for path in layers if any(path.startswith(f"{at}.{number}.") for number in numbers)}
        assert wanted
        assert {path for path, own in names.items() if fits(pattern, own)} == wanted


def lbw_block(path):
    """The block of a layer of the UNet by the arithmetic of sd-scripts' `get_lbw_block_index`, for both layouts."""
    segments = path.split(".")
    if segments[0] in ("input_blocks", "output_blocks"):
        return f"{'IN' if segments[0] == 'input_blocks' else 'OUT'}{int(segments[1]):02}"
    if segments[0] in ("middle_block", "mid_block"):
        return "MID"
    if segments[0] not in ("down_blocks", "up_blocks"):
        return None
    level, kind, unit = int(segments[1]), segments[2], int(segments[3])
    if segments[0] == "down_blocks":
        return f"IN{3 * (level + 1) if kind == 'downsamplers' else 3 * level + unit + 1:02}"
    return f"OUT{3 * level + (2 if kind == 'upsamplers' else unit):02}"


def layers_of_unet(layout, levels, units):
    """The layers that a UNet has of a layout's paths."""
    found = []
    for path in layout.paths:
        counts = levels if path.startswith(("down_blocks", "up_blocks")) else (max(levels) * 3,)
        if "blocks.{i}" not in path.partition(".transformer_blocks")[0]:
            found.append(path.replace("{i}", "0"))
            continue
        for level in range(counts[0]):
            for unit in range(units + path.startswith("up_blocks")):
                found.append(path.replace("{i}", str(level), 1).replace("{i}", str(unit), 1).replace("{i}", "0"))
    return dict.fromkeys(found, (8, 8))


@pytest.mark.parametrize(("family", "levels"), [("sd15", 4), ("sdxl", 3)])
@pytest.mark.parametrize("number", [0, 1])
def test_the_names_of_sd_scripts_are_those_of_its_own_arithmetic(family, levels, number, named):
    known = architectures.by_name(family)
    layout = known.layouts[number]
    layers = layers_of_unet(layout, (levels,), 2)
    # Levels without attention, and samplers of the last ones, are in no model.
    real = {
        path: shape
        for path, shape in layers.items()
        if layout.name == "original" or next(known.correspondence.links(path), None) is not None
    }
    names = named(known, real, lambda path: f"lora_unet_{path.replace('.', '_')}")
    told = {path: block for path in names if (block := lbw_block(path))}
    assert len(set(told.values())) > 15
    for block in set(told.values()):
        wanted = {path for path, own in told.items() if own == block}
        assert {path for path, own in names.items() if fits(block, own)} == wanted
    downwards = {path for path, block in told.items() if block in ("IN04", "IN05", "IN06")}
    assert {path for path, own in names.items() if fits("IN04-IN06", own)} == downwards
    assert {path for path, own in names.items() if fits("IN04-06", own)} == downwards
    assert {path for path, own in names.items() if fits("M00", own)} == {p for p, b in told.items() if b == "MID"}


FLUX = architectures.by_name("flux")


def test_blocks_of_flux_are_named_in_either_layout_and_shortly(named):
    layers = {
        "transformer_blocks.3.attn.to_q": (3072, 3072),
        "transformer_blocks.3.ff.net.0.proj": (12288, 3072),
        "single_transformer_blocks.7.attn.to_k": (3072, 3072),
        "x_embedder": (3072, 64),
        "proj_out": (64, 3072),
    }
    names = named(FLUX, layers, lambda path: f"transformer.{path}")
    double, single = list(layers)[:2], list(layers)[2:3]
    wanted = {
        "transformer_blocks.3": double,
        "double_blocks.3": double,
        "D03": double,
        "D00-D03": double,
        "D04-09": [],
        "double_blocks.3.img_attn": double[:1],
        "double_blocks.*.img_attn.qkv": double[:1],
        "S07": single,
        "single_blocks.0-9": single,
        "single_blocks.7.linear1": single,
        "S07-D09": [],
        "IN": ["x_embedder"],
        "OUT": ["proj_out"],
        "img_in": ["x_embedder"],
        # There are two lists, so that none is the one.
        "blocks.3": [],
        "BASE": [],
    }
    assert {p: [path for path, own in names.items() if fits(p, own)] for p in wanted} == wanted


def test_what_is_said_of_a_part_is_not_said_of_the_fused_layer(named):
    layers = {"double_blocks.3.img_attn.qkv": (9216, 3072), "double_blocks.3.img_attn.proj": (3072, 3072)}
    names = named(FLUX, layers, lambda path: f"lora_unet_{path.replace('.', '_')}")
    fused, other = names.values()
    assert not fits("*.to_q", fused)
    assert not fits("transformer_blocks.3.attn.to_q", fused)
    assert fits("transformer_blocks.3.attn.to_out.0", other)


def test_a_path_is_no_beginning_of_another_name(named):
    layers = dict.fromkeys(
        ("blocks.1.cross_attn.k", "blocks.1.cross_attn.k_img", "blocks.10.cross_attn.k"), (1536, 1536)
    )
    names = named(architectures.by_name("wan"), layers, lambda path: f"lora_unet_{path.replace('.', '_')}")
    for pattern, wanted in {
        "blocks.1.cross_attn.k": [True, False, False],
        "blocks.*.cross_attn.k": [True, False, True],
        "blocks.1.cross_attn": [True, True, False],
        "blocks.1": [True, True, False],
        "vace_blocks.1": [False, False, False],
        "blocks.1.attn2.add_k_proj": [False, True, False],
        "*": [True, True, True],
    }.items():
        assert [fits(pattern, own) for own in names.values()] == wanted


@pytest.mark.parametrize(
    ("family", "path"),
    [
        ("z_image", "layers.3.attention.to_q"),
        ("qwen_image", "transformer_blocks.3.attn.to_q"),
        ("krea2", "blocks.3.attn.wq"),
        ("llm", "model.layers.3.self_attn.q_proj"),
        ("gpt_neox", "gpt_neox.layers.3.attention.dense"),
    ],
)
def test_the_one_list_of_a_family_is_called_blocks_too(family, path, named):
    known = architectures.by_name(family)
    layers = {path.replace("3", str(number)): (8, 8) for number in range(5)}
    names = named(known, layers, lambda path: path)
    for pattern, numbers in {"blocks.3": [3], "blocks.1-3": [1, 2, 3], "layers.3": [3]}.items():
        if pattern.startswith("layers") and ".layers." not in f".{path}":
            continue
        assert [path for path, own in names.items() if fits(pattern, own)] == [
            path.replace("3", str(number)) for number in numbers
        ]


UNKNOWN = {"stem.1.odd.k": (8, 8), "stem.1.odd.k_img": (8, 8), "stem.10.odd.k": (8, 8)}


class Unknown:
    metadata_names = ()


@pytest.mark.parametrize("written", [lambda path: f"lora_unet_{path.replace('.', '_')}", lambda path: f"unet.{path}"])
def test_layers_of_a_family_that_is_not_known_have_the_paths_of_the_base(written, named):
    names = named(Unknown, UNKNOWN, written)
    for pattern, wanted in {
        "stem.1": [True, True, False],
        "stem.0-9": [True, True, False],
        "stem.*.odd.k": [True, False, True],
        "stem.1.odd.k": [True, False, False],
        "other.1": [False, False, False],
        written("stem.1.odd.k"): [True, False, False],
    }.items():
        assert [fits(pattern, own) for own in names.values()] == wanted


def test_layers_that_nothing_gives_a_path_are_compared_as_they_are_written(write_safetensors):
    tensors = {key: value for path in UNKNOWN for key, value in lora(f"lora_unet_{path.replace('.', '_')}").items()}
    adapter = read_adapter(open_checkpoint(str(write_safetensors(tensors, name="adapter.safetensors"))))
    base = open_checkpoint(str(write_safetensors({"a.weight": ("F32", (2, 2), 1)}, name="base.safetensors")))
    names = module_names(adapter, base)
    assert [fits("stem.1", own) for own in names.values()] == [True, True, False]
    assert [fits("stem.0-9.*", own) for own in names.values()] == [True, True, False]
    assert [fits("stem.1.odd.k_img", own) for own in names.values()] == [False, True, False]


def test_text_encoders_are_the_base_of_block_weights_and_have_blocks_too(write_safetensors):
    tensors = {
        **lora("lora_te1_text_model_encoder_layers_3_mlp_fc1", out=3072, inputs=768),
        **lora("lora_te2_text_model_encoder_layers_3_mlp_fc1", out=5120, inputs=1280),
        **lora("lora_unet_input_blocks_4_1_proj_in", out=640, inputs=640),
    }
    adapter = read_adapter(open_checkpoint(str(write_safetensors(tensors, name="adapter.safetensors"))))
    base = open_checkpoint(str(write_safetensors({"a.weight": ("F32", (2, 2), 1)}, name="base.safetensors")))
    te1, te2, unet = module_names(adapter, base).values()
    for pattern, wanted in {
        "BASE": [True, True, False],
        "text_encoder": [True, False, False],
        "text_encoder_2": [False, True, False],
        "model": [False, False, True],
        "text_model.encoder.layers.3": [True, True, False],
        "*.mlp.fc1": [True, True, False],
        "IN04": [False, False, True],
    }.items():
        assert [fits(pattern, own) for own in (te1, te2, unet)] == wanted


def test_a_fused_module_is_in_the_blocks_that_have_its_parts(named):
    family, _ = LAYOUTS[next(name for name in LAYOUTS if name.startswith("flux "))]
    layers = {"double_blocks.3.img_attn.qkv": (9216, 3072), "single_blocks.2.linear1": (21504, 3072)}
    found = named(family, layers, lambda path: f"lora_unet_{path.replace('.', '_')}")
    double, single = found.values()
    for pattern in ("transformer_blocks.3", "transformer_blocks.0-3", "transformer_blocks", "transformer_blocks.3.*"):
        assert fits(pattern, double)
        assert not fits(pattern, single)
    for pattern in ("single_transformer_blocks.2", "single_transformer_blocks.1-5"):
        assert fits(pattern, single)
        assert not fits(pattern, double)
    assert not fits("transformer_blocks.3.attn.to_q", double)
    assert not fits("transformer_blocks.2", double)


def lists_of(layout):
    return [at for at, count in layout.blocks if "{i}" not in at and count > 1]


def layers_in(layout):
    """The layers of three blocks of every list, without numbers inside of them."""
    return dict.fromkeys(
        path.replace("{i}", str(number), 1).replace("{i}", "0") for path in layout.paths for number in range(3)
    )


# The blocks of a UNet are cut otherwise in each of its layouts.
CUT_ALIKE = {
    name: (family, layout) for name, (family, layout) in LAYOUTS.items() if family.name not in ("sd15", "sd2", "sdxl")
}


@pytest.mark.parametrize("flat", [False, True], ids=["dotted", "underscored"])
@pytest.mark.parametrize(("family", "layout"), CUT_ALIKE.values(), ids=CUT_ALIKE)
def test_a_block_of_any_layout_is_taken_whole_or_not_at_all(family, layout, flat, write_safetensors):
    if (flat and not layout.kohya_prefix) or layout.borrowed:
        return  # the family has no such names of its own
    written = {p: layout.kohya_prefix + p.replace(".", "_") if flat else p for p in layers_in(layout)}
    tensors = {key: tensor for name in written.values() for key, tensor in lora(name, rank=1, out=8, inputs=8).items()}
    adapter = read_adapter(
        open_checkpoint(str(write_safetensors(tensors, name="adapter.safetensors"))),
        Settings(architecture=family.name),
    )
    if family.name not in [one.architecture.name for one in adapter_candidates(adapter)]:
        return  # names of so few layers say nothing of it
    for other in family.layouts:
        weights = {f"{path}.weight": ("F32", (2, 2), 0.5) for path in layers_in(other)}
        names = module_names(adapter, open_checkpoint(str(write_safetensors(weights, name="base.safetensors"))))
        for at in [at for each in family.layouts for at in lists_of(each)]:
            taken = {path for path in written if fits(f"{at}.1", names[written[path]])}
            for own in lists_of(layout):
                block = {path for path in written if path.startswith(f"{own}.1.")}
                assert taken & block in (set(), block), (at, own, other.name)
                assert not {path for path in taken if path.startswith((f"{own}.0.", f"{own}.2."))}


# Files and bases in the layouts of families whose names overlap, as narrow as no published model.
OPEN = [
    "flux original",
    "flux diffusers",
    "cosmos1 diffusers",
    "lumina2 original",
    "flux2 original",
    "hunyuan_video_1_5 diffusers",
]
PATTERNS = [
    "*mlp*",
    "*attn*",
    "*.to_q",
    "*.qkv",
    "*norm*",
    "time_in",
    "IN",
    "OUT",
    "blocks.1",
    "blocks",
    "D01",
    "S00-S01",
]


@pytest.mark.parametrize("flat", [False, True], ids=["dotted", "underscored"])
@pytest.mark.parametrize("name", OPEN)
def test_a_pattern_means_the_same_in_all_families_or_is_refused(name, flat, write_safetensors):
    _, layout = LAYOUTS[name]
    keys = [layout.kohya_prefix + path.replace(".", "_") if flat else path for path in layers_in(layout)]
    tensors = {key: tensor for name in keys for key, tensor in lora(name, rank=1, out=8, inputs=8).items()}
    file = open_checkpoint(str(write_safetensors(tensors, name="adapter.safetensors")))
    found = adapter_candidates(read_adapter(file))
    families = [candidate.architecture.name for candidate in found]
    assert len(families) > 1
    base = open_checkpoint(str(write_safetensors({"a.weight": ("F32", (2, 2), 1)}, name="base.safetensors")))
    unsettled = module_names(read_adapter(file), base)
    settled = [module_names(read_adapter(file, Settings(architecture=family)), base) for family in families]
    lists = {at for one in found for each in one.architecture.layouts for at in lists_of(each)}
    refused = 0
    for pattern in [*PATTERNS, *(f"{at}.1" for at in sorted(lists))]:
        for key in keys:
            answers = [fits(pattern, names[key]) for names in settled]
            if len(set(answers)) == 1:
                assert fits(pattern, unsettled[key]) is answers[0]
                continue
            refused += 1
            with pytest.raises(LoraInspectError) as told:
                fits(pattern, unsettled[key])
            *others, last = families
            assert f"; give --architecture {', '.join(others)} or {last}." in str(told.value)
            titles = [architectures.by_name(family).title for family, fit in zip(families, answers, strict=True) if fit]
            assert f"{pattern} matches {key} if the adapter is for {titles[0]}" in str(told.value)
    assert refused
