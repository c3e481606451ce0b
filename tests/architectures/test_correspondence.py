"""How layouts of one family are related, against the converters of diffusers and the classes of transformers."""

from collections import Counter
from functools import cache

import layouts
import pytest
import torch
from layouts import lora_utils as real_adapters
from layouts import real

from lora_inspect.architectures import by_name, every
from lora_inspect.architectures.correspondence import (
    Correspondence,
    experts,
    interleaved,
    renamed,
    same,
    stack,
    swapped,
)
from lora_inspect.architectures.patterns import pattern_of, patterns_of
from lora_inspect.architectures.rows import INPUTS, Interleaved, PairSwapped, Runs, Stacked, Swapped

RELATED = [architecture for architecture in every() if architecture.correspondence.relations]
RELATIONS = [
    pytest.param(architecture, relation, id=f"{architecture.name}-{relation.whole}")
    for architecture in RELATED
    for relation in architecture.correspondence.relations
]


def numbered(path, *layouts_):
    """Whether a path of a relation, which may have numbers for `{i}`, is one of the layouts'."""
    return any(pattern_of(path, ".") in patterns(layout) for layout in layouts_)


@cache
def patterns(layout):
    return patterns_of(layout.named, ".")


@pytest.mark.parametrize("architecture", RELATED, ids=lambda architecture: architecture.name)
def test_relations_are_between_paths_of_the_family(architecture):
    for relation in architecture.correspondence.relations:
        assert numbered(relation.whole, *architecture.layouts), relation.whole
        for part in relation.parts:
            assert numbered(part, *architecture.layouts), part
            assert part.count("{i}") == relation.whole.count("{i}") + relation.experts


@pytest.mark.parametrize("architecture", RELATED, ids=lambda architecture: architecture.name)
def test_every_path_stands_in_one_relation_with_a_layout(architecture):
    wholes, parts = Counter(), Counter()
    for relation in architecture.correspondence.relations:
        for layout in architecture.layouts:
            # Experts are called otherwise in several models of a layout.
            if not (relation.experts or relation.alike) and all(numbered(part, layout) for part in relation.parts):
                wholes[relation.whole, layout.name] += 1
            # mlx-lm has the layers of all experts, of which other programs have some in one parameter.
            kind = relation.alike or "switch_mlp" in relation.whole
            if numbered(relation.whole, layout):
                parts.update((part, layout.name, kind) for part in relation.parts)
    assert set(wholes.values()) == set(parts.values()) == {1}


# Families whose relations are of some layers alone, or whose layers are not written with `{i}`, in tests of their own.
OTHERS = {"sd15", "sd2", "sdxl", "llm", "hidream_o1", "minimax_h3", "qwen_image_2"}
# The layers of one layout that the model of the other one does not have.
ALONE = {"anima": "llm_adapter."}


@pytest.mark.parametrize("architecture", [a for a in RELATED if a.name not in OTHERS], ids=lambda a: a.name)
def test_no_layer_of_either_layout_is_left_out(architecture):
    original = set(architecture.layouts[0].named)
    diffusers = set(in_diffusers(architecture).named)
    both = original & diffusers
    alone = {path for path in original if path.startswith(ALONE.get(architecture.name, "."))}
    relations = architecture.correspondence.relations
    assert {relation.whole for relation in relations} >= original - both - alone
    assert {part for relation in relations for part in relation.parts} >= diffusers - both


def test_layers_of_mlx_are_parts_of_the_parameters_of_all_experts():
    correspondence = by_name("llm").correspondence
    found = {
        link.path: (link.part, len(link.relation.parts))
        for link in correspondence.links_of_parameters("model.layers.7.mlp.experts.gate_up_proj")
    }
    of_layers = ("mlp.switch_mlp", "mlp.experts", "block_sparse_moe.switch_mlp")
    assert found == {
        f"model.layers.7.{parent}.{name}": (part, 2)
        for parent in of_layers
        for part, name in enumerate(("gate_proj", "up_proj"))
    }
    # No layout is asked for by which PEFT's modules would become those of mlx-lm.
    assert list(correspondence.links("model.layers.7.mlp.experts.gate_up_proj")) == []


def in_diffusers(architecture):
    return next(layout for layout in architecture.layouts if layout.name == "diffusers")


def carried(architecture, base, layout=None):
    """The weights and biases of a base of the original layout as the relations have them in another `layout`."""
    found = {}
    for name, tensor in base.items():
        path, parameter = layouts.split(name)
        weight = base.get(f"{path}.weight", tensor)
        related = any(relation.whole == path == relation.parts[0] for relation in architecture.correspondence.relations)
        if related or (layout and numbered(path, layout)):
            found[f"{path}{parameter}"] = tensor
        for link in architecture.correspondence.links(path):
            if layout and not numbered(link.path, layout):
                continue
            assert not link.is_whole
            arrangement = link.relation.arrangement
            if arrangement is None:
                found[f"{link.path}{parameter}"] = tensor
                continue
            runs = arrangement.runs(weight.shape[0], weight.shape[1])[link.part]
            part = torch.full((runs.rows, *tensor.shape[1:]), torch.nan)
            for start, stop, source in runs.each():
                part[source : source + stop - start] = tensor[start:stop]
            found[f"{link.path}{parameter}"] = part
    return found


def test_flux_is_as_diffusers_converts_it():
    base = layouts.flux(blocks=2, width=4)
    family = by_name("flux")
    ours, theirs = carried(family, base, in_diffusers(family)), layouts.flux_in_diffusers(base)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_wan_is_as_diffusers_converts_it():
    original, _ = by_name("wan").layouts
    paths = [path.replace("{i}", str(number)) for path in original.paths for number in (0, 1)]
    base = layouts.tensors({f"{path}.weight": (2, 3) for path in paths} | layouts.norms(original))
    theirs = layouts.real.convert_wan_transformer_to_diffusers(dict(base))
    ours = carried(by_name("wan"), base)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("name", layouts.SYNTHETIC)
def test_layers_are_as_diffusers_converts_them(name):
    family, made = by_name(name), layouts.SYNTHETIC[name]
    layout = in_diffusers(family)
    base = layouts.synthetic(name)
    ours = carried(family, base, layout)
    theirs = {
        key: value
        for key, value in made.convert(dict(base)).items()
        if value is not None and numbered(layouts.split(key)[0], layout)
    }
    assert ours.keys() == theirs.keys()
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
    paths = {path.replace("{i}", "0") for path in layout.named if path.startswith(made.below)}
    assert paths <= {layouts.split(key)[0] for key in theirs}


def test_ace_step_is_as_diffusers_converts_its_adapters():
    """The attention, as the converter of diffusers has it; what it leaves alone is called alike."""
    family = by_name("ace_step_1_5")
    original, comfyui, diffusers = family.layouts
    paths = [path.replace("{i}", "3") for path in original.paths if "layers" in path]
    converted = real_adapters._convert_non_diffusers_ace_step_lora_to_diffusers(
        {f"base_model.model.{path}.lora_A.weight": torch.tensor(at) for at, path in enumerate(paths)}
    )
    theirs = {
        paths[int(at)]: name.removeprefix("transformer.").removesuffix(".lora_A.weight")
        for name, at in converted.items()
    }
    for path, other in theirs.items():
        links = [link.path for link in family.correspondence.links(path)]
        assert {found for found in links if numbered(found, diffusers)} == {other} - {path}
        assert [found for found in links if numbered(found, comfyui)] == [f"decoder.{path}"]
        whole = [link.path for link in family.correspondence.links(f"decoder.{path}")]
        assert set(whole) == {path, other}


def test_framepack_has_the_relations_of_hunyuan_video():
    base = layouts.synthetic("hunyuan_video")
    found = carried(by_name("framepack"), base, by_name("framepack").layouts[0])
    theirs = layouts.in_diffusers("hunyuan_video", base)
    meant = {
        name: value
        for name, value in theirs.items()
        if numbered(name.rpartition(".")[0], by_name("framepack").layouts[0])
    }
    assert found.keys() == meant.keys() != set()
    assert all(torch.equal(found[name], meant[name]) for name in meant)


def test_hunyuan_image_is_hunyuan_video_with_other_embedders():
    """As in scripts/convert_hunyuan_image_to_diffusers.py, which no function of diffusers stands for."""
    family = by_name("hunyuan_image")
    layout = in_diffusers(family)
    shapes = {
        f"{path.replace('{i}', '1')}.weight": (7 * 3072 if "linear1" in path else 6, 4)
        for path in family.layouts[0].paths
    }
    base = layouts.tensors(shapes | layouts.norms(family.layouts[0], blocks=1, biases=False))
    theirs = real.convert_hunyuan_video_transformer_to_diffusers(
        {name: value for name, value in base.items() if not name.startswith("byt5_in")}
    )
    for name in [name for name in theirs if name.startswith("time_text_embed")]:
        theirs[name.replace("time_text_embed", "time_guidance_embed")] = theirs.pop(name)
    theirs |= {f"context_embedder_2.linear_{n}.weight": base[f"byt5_in.fc{n}.weight"] for n in (1, 2, 3)}
    theirs["context_embedder_2.norm.weight"] = base["byt5_in.layernorm.weight"]
    ours = carried(family, base, layout)
    assert {pattern_of(name, ".") for name in ours} == {pattern_of(f"{path}.weight", ".") for path in layout.named}
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_hunyuan_video_1_5_is_as_the_script_of_diffusers_converts_it():
    """As in scripts/convert_hunyuan_video1_5_to_diffusers.py: what it has of HunyuanVideo, and layers of its own."""
    family = by_name("hunyuan_video_1_5")
    layout = in_diffusers(family)
    shapes = {f"{path.replace('{i}', '1')}.weight": (6, 4) for path in family.layouts[0].paths}
    base = layouts.tensors(shapes | layouts.norms(family.layouts[0], biases=False))
    own = {
        "byt5_in.fc1": "context_embedder_2.linear_1", "byt5_in.fc2": "context_embedder_2.linear_2",
        "byt5_in.fc3": "context_embedder_2.linear_3", "vision_in.proj.1": "image_embedder.linear_1",
        "vision_in.proj.3": "image_embedder.linear_2", "cond_type_embedding": "cond_type_embed",
        "byt5_in.layernorm": "context_embedder_2.norm", "vision_in.proj.0": "image_embedder.norm_in",
        "vision_in.proj.4": "image_embedder.norm_out", "time_in.mlp.0": "time_embed.timestep_embedder.linear_1",
        "time_in.mlp.2": "time_embed.timestep_embedder.linear_2",
        **{f"double_blocks.1.img_attn_{part}": f"transformer_blocks.1.attn.to_{part}" for part in "qkv"},
        **{f"double_blocks.1.txt_attn_{part}": f"transformer_blocks.1.attn.add_{part}_proj" for part in "qkv"},
    }  # fmt: skip
    theirs = real.convert_hunyuan_video_transformer_to_diffusers(
        {name: value for name, value in base.items() if name.removesuffix(".weight") not in own}
    )
    theirs |= {f"{diffusers}.weight": base[f"{original}.weight"] for original, diffusers in own.items()}
    ours = carried(family, base, layout)
    assert {pattern_of(name, ".") for name in ours} == {pattern_of(f"{path}.weight", ".") for path in layout.named}
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def is_in_blocks(path):
    return path.startswith("double_blocks")


def test_comfyui_fuses_what_hunyuan_video_1_5_has_apart():
    """Every layer of ComfyUI's blocks is the same rows of diffusers' model, directly and by way of the original."""
    family = by_name("hunyuan_video_1_5")
    original, comfyui, diffusers = family.layouts
    for template in filter(is_in_blocks, comfyui.named):
        links = list(family.correspondence.links(template.replace("{i}", "5")))
        directly = [link for link in links if numbered(link.path, diffusers)]
        stages = [link for link in links if numbered(link.path, original)]
        assert len(directly) == len(stages) == (3 if "qkv" in template else 1)
        for link, stage in zip(directly, stages, strict=True):
            assert (link.part, link.is_whole, link.relation.arrangement) == (
                stage.part, stage.is_whole, stage.relation.arrangement,
            )  # fmt: skip
            (further,) = (other for other in family.correspondence.links(stage.path) if numbered(other.path, diffusers))
            assert further.path == link.path
            assert further.relation.arrangement is None


# What ComfyUI puts in the place of the original names of HunyuanVideo when it loads them.
COMFYUI_NAMES = (
    ("t_embedder.mlp.0", "t_embedder.in_layer"), ("t_embedder.mlp.2", "t_embedder.out_layer"),
    ("c_embedder.linear_1", "c_embedder.in_layer"), ("c_embedder.linear_2", "c_embedder.out_layer"),
    ("_in.mlp.0", "_in.in_layer"), ("_in.mlp.2", "_in.out_layer"), ("_attn_qkv", "_attn.qkv"),
    ("_attn_proj", "_attn.proj"), ("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.2"), ("_mod.linear", "_mod.lin"),
    (".modulation.linear", ".modulation.lin"), ("_attn_q_norm", "_attn.norm.query_norm"),
    ("_attn_k_norm", "_attn.norm.key_norm"), (".q_norm", ".norm.query_norm"), (".k_norm", ".norm.key_norm"),
)  # fmt: skip


@pytest.mark.parametrize("name", ["hunyuan_video", "hunyuan_image", "hunyuan_video_1_5"])
def test_comfyui_renames_the_original_layers(name):
    original, comfyui, diffusers = by_name(name).layouts
    names = {}
    # The blocks of 1.5 are no renaming.
    renaming = [path for path in original.named if name != "hunyuan_video_1_5" or not is_in_blocks(path)]
    for path in renaming:
        renamed_ = path.replace("{i}", "7")
        for old, new in COMFYUI_NAMES:
            renamed_ = renamed_.replace(old, new)
        names[path.replace("{i}", "7")] = renamed_
    blocks = {path for path in comfyui.named if is_in_blocks(path)} if len(renaming) < len(original.named) else set()
    assert {pattern_of(path, ".") for path in (*names.values(), *blocks)} == patterns(comfyui)

    def found(path, layout):
        every = by_name(name).correspondence.links(path)
        return {link.path: link[1:] for link in every if numbered(link.path, layout)}

    for path, other in names.items():
        assert found(path, comfyui).keys() == {other} - {path}
        theirs = {at: (link[0].parts, link[0].arrangement, *link[1:]) for at, link in found(other, diffusers).items()}
        ours = {at: (link[0].parts, link[0].arrangement, *link[1:]) for at, link in found(path, diffusers).items()}
        assert theirs == ours != {}


UNETS = {
    "sdxl": {"addition_embed_type": "text_time"},
    "sd15": {},
    "sd2": {},
}


@pytest.mark.parametrize("name", UNETS)
def test_unets_are_as_diffusers_converts_them(name):
    original = layouts.original_unet(name)
    theirs = layouts.unet_names(original, UNETS[name])
    assert theirs.keys() == set(original)
    found = {path: list(by_name(name).correspondence.links(path)) for path in original}
    assert {path: [link.path for link in found[path]] for path in original} == {
        path: [other] for path, other in theirs.items()
    }
    # The layers of the blocks are all of them, and nothing of the table is of no use.
    assert {link.relation for item in found.values() for link in item} == set(by_name(name).correspondence.relations)


def test_minimax_h3_is_as_diffusers_converts_it_outside_of_the_blocks():
    """The rows of the fused attention are in one of two orders, which the caller of the converter has to know."""
    family = by_name("minimax_h3")
    original, diffusers = family.layouts
    paths = [path.replace("{i}", str(number)) for path in original.paths for number in (0, 1)]
    base = layouts.tensors({f"{path}.weight": (6, 4) for path in paths} | layouts.norms(original, biases=False))
    theirs = real.convert_minimax_h3_transformer_checkpoint_to_diffusers(dict(base), {})
    ours = carried(family, base, diffusers)
    assert ours.keys() == {name for name in theirs if "blocks." not in name}
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert not any(list(family.correspondence.links(path)) for path in paths if "blocks." in path)


def test_qwen_image_2_is_as_diffusers_converts_comfyui_s_checkpoint():
    family = by_name("qwen_image_2")
    diffusers, comfyui = family.layouts
    paths = [path.replace("{i}", str(number)) for path in comfyui.paths for number in (0, 1)]
    base = layouts.tensors({f"{path}.weight": (6, 4) for path in paths})
    theirs = real.convert_qwen_image21_transformer_checkpoint_to_diffusers(dict(base))
    ours = carried(family, base, diffusers)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_every_layer_of_hidream_o1_has_its_root_in_one_layout():
    """As ComfyUI loads adapters of it: `model.` and the path of a layer in its own checkpoint."""
    family = by_name("hidream_o1")
    original, comfyui = family.layouts
    for path in (path.replace("{i}", "3") for path in comfyui.paths):
        assert [link.path for link in family.correspondence.links(path)] == [f"model.{path}"]
        assert [link.path for link in family.correspondence.links(f"model.{path}")] == [path]
    assert len(original.paths) == len(family.correspondence.relations)


def test_phi3_computes_what_a_llama_of_its_parts_computes():
    """Fewer key-value heads than heads. The weights of the fused model are cut by the relations."""
    from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

    sizes = {
        "vocab_size": 16, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "rms_norm_eps": 1e-5,
        "attn_implementation": "eager",
    }  # fmt: skip
    torch.manual_seed(0)
    fused = Phi3ForCausalLM(Phi3Config(**sizes)).double().eval()
    split = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False)).double().eval()
    state = fused.state_dict()
    parts = carried(by_name("llm"), state)
    assert len(parts) == 2 * 5
    split.load_state_dict({name: state.get(name, parts.get(name)) for name in split.state_dict()})
    tokens = torch.arange(1, 9).reshape(1, 8)
    with torch.no_grad():
        expected, found = fused(tokens).logits, split(tokens).logits
    assert (expected - found).abs().max() < 1e-12 * expected.abs().max()
    swapped_halves = {**parts, **{
        name.replace("gate", "up") if "gate" in name else name.replace("up_proj", "gate_proj"): value
        for name, value in parts.items() if "mlp" in name
    }}  # fmt: skip
    split.load_state_dict({name: state.get(name, swapped_halves.get(name)) for name in split.state_dict()})
    with torch.no_grad():
        assert (expected - split(tokens).logits).abs().max() > 1e-3 * expected.abs().max()


ARRANGEMENTS = {
    "equal shares": (Stacked((1, 1, 1)), 6, 5, [[0, 1], [2, 3], [4, 5]]),
    "other shares": (Stacked((1, 2)), 6, 5, [[0, 1], [2, 3, 4, 5]]),
    "a query as wide as the inputs": (Stacked((INPUTS, 1, 1)), 8, 4, [[0, 1, 2, 3], [4, 5], [6, 7]]),
    "rows that take turns": (Interleaved(2), 6, 5, [[0, 2, 4], [1, 3, 5]]),
    "heads that take turns": (Interleaved(3, 2), 12, 5, [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]),
    "halves of a pair": (PairSwapped(), 6, 3, [[3, 4, 5, 0, 1, 2]]),
    "more than a pair": (PairSwapped(), 6, 2, [[0, 1, 2, 3, 4, 5]]),
    "halves": (Swapped(), 6, 5, [[3, 4, 5, 0, 1, 2]]),
}


@pytest.mark.parametrize(("arrangement", "rows", "inputs", "expected"), ARRANGEMENTS.values(), ids=ARRANGEMENTS)
def test_rows_of_the_parts(arrangement, rows, inputs, expected):
    found = arrangement.runs(rows, inputs)
    for runs, of_whole in zip(found, expected, strict=True):
        pairs = {s + i: start + i for start, stop, s in runs.each() for i in range(stop - start)}
        assert [pairs[row] for row in range(runs.rows)] == of_whole
        back = {s + i: start + i for start, stop, s in runs.inverted.each() for i in range(stop - start)}
        assert back == {whole: part for part, whole in pairs.items()}


@pytest.mark.parametrize(
    ("arrangement", "rows", "inputs"),
    [
        (Stacked((1, 1, 1)), 7, 5),
        (Stacked((1, 1)), 0, 5),
        (Stacked((INPUTS, 1, 1)), 7, 4),
        (Stacked((INPUTS, 1, 1)), 4, 4),
        (Stacked((INPUTS, 1, 1)), 3, 4),
        (Interleaved(2), 7, 5),
        (Interleaved(2, 2), 6, 5),
        (Interleaved(2), 0, 5),
        (Swapped(), 7, 5),
        (Swapped(), 0, 5),
        (PairSwapped(), 0, 0),
        (PairSwapped(), 0, 5),
    ],
)
def test_weights_that_are_not_arranged_so(arrangement, rows, inputs):
    assert arrangement.runs(rows, inputs) is None


def test_a_relation_is_read_in_both_directions():
    found = Correspondence(lambda: (stack("a.{i}.qkv", "b.{i}.q", "b.{i}.k"), same("x.0", "y"), swapped("m", "n")))
    assert [(link.path, link.part, link.is_whole) for link in found.links("a.12.qkv")] == [
        ("b.12.q", 0, False),
        ("b.12.k", 1, False),
    ]
    assert [(link.path, link.part, link.is_whole) for link in found.links("b.3.k")] == [("a.3.qkv", 1, True)]
    assert [link.path for link in found.links("x.0")] == ["y"]
    assert [link.path for link in found.links("y")] == ["x.0"]
    assert [link.relation.arrangement for link in found.links("n")] == [Swapped()]
    for other in ("x.1", "a.b.qkv", "a.1.qkv.q", ""):
        assert list(found.links(other)) == []


def test_experts_have_the_number_that_the_parameter_does_not_have():
    relations = Correspondence(
        lambda: (
            experts("a.{i}.x", "a.{i}.e.{i}.g", "a.{i}.e.{i}.u"),
            experts("a.{i}.x", "b.{i}.e.{i}.w"),
            same("a", "b"),
        )
    )
    assert [(link.path, link.part, link.relation.arrangement) for link in relations.links_of_experts("a.3.x")] == [
        ("a.3.e.{i}.g", 0, Stacked((1, 1))),
        ("a.3.e.{i}.u", 1, Stacked((1, 1))),
        ("b.3.e.{i}.w", 0, None),
    ]
    assert list(relations.links_of_experts("a")) == list(relations.links_of_experts("a.3.e.1.g")) == []
    assert list(relations.links("a.3.x")) == list(relations.links("a.3.e.1.g")) == []


def test_a_third_layout_has_the_relations_of_what_it_renames():
    relations = (stack("a.{i}.qkv", "b.{i}.q", "b.{i}.k"), same("x", "y"), swapped("m", "n"))
    assert renamed(relations, (same("a.{i}.qkv", "c.{i}.all"), same("m", "o"))) == (
        stack("c.{i}.all", "b.{i}.q", "b.{i}.k"),
        swapped("o", "n"),
    )


def test_relations_of_other_arrangements():
    assert interleaved("a", "b", "c", run=4).arrangement == Interleaved(2, 4)
    assert list(Runs(1, 2, 3, 2, 5, 6).shifted(10).each()) == [(11, 13, 3), (16, 18, 9)]
    assert Runs(1, 2, 3, 4, 5, 6).inverted == Runs(3, 2, 1, 4, 6, 5)
