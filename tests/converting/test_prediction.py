"""A predicted output equals the output that is read, as far as programs look at it."""

import pytest
import torch
from adapters import KINDS, adapter
from pairs import crossed
from safetensors.torch import save_file

from lora_inspect.architectures import by_name
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.plan import plan_conversion
from lora_inspect.converting.target.prediction import predict_output
from lora_inspect.errors import LoraInspectError, RefusedError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.ops.convert import convert_to_standard
from lora_inspect.programs.adapter_view import View
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.schemes import written

PATHS = [f"blocks.0.{leaf}" for leaf in ("self_attn.q", "cross_attn.v", "ffn.0")]
FOLDERS = ("mlx", "peft", "gguf")


@crossed(
    keeps=("keep_dora", "drop_magnitude"),
    scheme=(None, *(name for name in written() if name not in FOLDERS)),
    kind=[name for name, kind in KINDS.items() if not kind.of_norms],
    has_alpha=(True, False),
)
def test_an_output_is_foreseen(kind, scheme, keeps, has_alpha, tmp_path):
    numbers = torch.Generator().manual_seed(2)
    layers = {path: {name: torch.randn(shape, generator=numbers) for name, shape in SHAPES.items()} for path in PATHS}
    tensors, _ = adapter(KINDS[kind], layers, lambda path: "lora_unet_" + path.replace(".", "_"), has_alpha)
    source, output = of_wan(tensors, tmp_path)
    options = ConvertOptions(scheme=scheme, **{keeps: "dora" in kind or "magnitude" in kind})
    try:
        plan = plan_conversion(source, output, options)
        convert_to_standard(source, output, options)
    except LoraInspectError:
        return
    said = predict_output(plan.adapter, plan.destinations, plan.options)
    found = read_adapter(open_checkpoint(output))
    assert list(said.modules) == list(found.modules)
    assert looks(said) == looks(found)
    assert set(said.checkpoint.tensors) == set(found.checkpoint.tensors)
    for ours, theirs in zip(said.contributions, found.contributions, strict=True):
        assert (ours.rank, ours.scale, ours.rslora) == (theirs.rank, theirs.scale, theirs.rslora or False)
        assert ours.shapes == theirs.shapes


def of_wan(tensors, folder):
    """The path of an adapter for Wan with these tensors, and one for its output."""
    source, output = str(folder / "in.safetensors"), str(folder / "out.safetensors")
    save_file(tensors, source, {"ss_base_model_version": by_name("wan").metadata_names[0]})
    return source, output


def looks(adapter):
    """How each contribution looks to programs, in the order of the file."""
    placed = [(member.place, group.look) for group in View(adapter).groups for member in group.members]
    return [look for _, look in sorted(placed)]


SHAPES = {"weight": (16, 12), "bias": (16,)}


def named(key, down, up, **others):
    return {f"{key}{down}": torch.ones(4, 12), f"{key}{up}": torch.ones(16, 4), f"{key}.alpha": torch.tensor(2.0)} | {
        f"{key}.{suffix}": tensor for suffix, tensor in others.items()
    }


def plain(key, **others):
    return named(key, ".lora_down.weight", ".lora_up.weight", **others)


# Modules that differ from a plain one in one fact.
OTHERS = {
    "as the first": plain,
    "in other numbers": lambda key: {name: tensor.half() for name, tensor in plain(key).items()},
    "without an alpha": lambda key: {name: one for name, one in plain(key).items() if not name.endswith(".alpha")},
    "of another alpha": lambda key: plain(key, alpha=torch.tensor(3.0)),
    "of other names": lambda key: named(key, ".lora_A.weight", ".lora_B.weight"),
    "in an own dialect": lambda key: named(key, ".lora.down.weight", ".lora.up.weight"),
    "of a saved adapter": lambda key: named(key, ".lora_A.default.weight", ".lora_B.default.weight"),
    "of another rank": lambda key: plain(
        key, **{"lora_down.weight": torch.ones(3, 12), "lora_up.weight": torch.ones(16, 3)}
    ),
}
# Modules with a magnitude that differ from a plain one with a magnitude of outputs.
NORMED = {
    "in other numbers": lambda key: plain(key, dora_scale=torch.ones(16, 1).half()),
    "of inputs": lambda key: plain(key, dora_scale=torch.ones(1, 12)),
}


@crossed(scheme=(None, "kohya", "comfyui", "lycoris", "diffusers"), other=[*OTHERS], first=(True, False))
def test_a_module_that_differs_in_one_fact_is_foreseen_beside_others(other, first, scheme, tmp_path):
    source, output = of_wan(in_turn(plain, OTHERS[other], first), tmp_path)
    check_foreseen(source, output, ConvertOptions(scheme=scheme))


@crossed(scheme=(None, "kohya", "comfyui"), other=[*NORMED], first=(True, False))
def test_a_module_with_another_magnitude_is_foreseen_beside_others(other, first, scheme, tmp_path):
    source, output = of_wan(in_turn(of_outputs, NORMED[other], first), tmp_path)
    check_foreseen(source, output, ConvertOptions(scheme=scheme, keep_dora=True))


@crossed(scheme=("lycoris", "diffusers"), first=(True, False))
def test_magnitudes_in_other_numbers_are_foreseen_for_readers_of_outputs_only(first, scheme, tmp_path):
    source, output = of_wan(in_turn(of_outputs, NORMED["in other numbers"], first), tmp_path)
    check_foreseen(source, output, ConvertOptions(scheme=scheme, keep_dora=True))


@crossed(scheme=("lycoris", "diffusers"), first=(True, False))
def test_readers_of_outputs_only_get_no_magnitude_of_inputs(first, scheme, tmp_path):
    source, output = of_wan(in_turn(of_outputs, NORMED["of inputs"], first), tmp_path)
    with pytest.raises(RefusedError):
        convert_to_standard(source, output, ConvertOptions(scheme=scheme, keep_dora=True))


def of_outputs(key):
    return plain(key, dora_scale=torch.ones(16, 1))


def in_turn(usual, other, first):
    """The tensors of four layers that take turns; `first` says that the other one begins."""
    tensors = {}
    for number in range(4):
        make = other if (number % 2 == 0) == first else usual
        tensors |= make(f"lora_unet_blocks_{number}_self_attn_q")
    return tensors


def check_foreseen(source, output, options):
    plan = plan_conversion(source, output, options)
    convert_to_standard(source, output, options)
    # Modules of no known groups are alike more often.
    said = predict_output(plan.adapter._replace(modules={**plan.adapter.modules}), plan.destinations, plan.options)
    found = read_adapter(open_checkpoint(output))
    assert [module.path for module in said.modules.values()] == [one.module.path for one in plan.destinations]
    assert headers(said) == headers(found)
    assert looks(said) == looks(found)
    assert scales(said) == scales(found)


@pytest.mark.parametrize("other", ["as the first", "of another rank", "of another alpha", "without an alpha"])
def test_one_rank_and_one_scale_are_foreseen_for_a_program_that_takes_no_others(other, tmp_path):
    tensors = plain("lora_unet_blocks_0_self_attn_q") | OTHERS[other]("lora_unet_blocks_1_self_attn_q")
    source, output = of_wan(tensors, tmp_path)
    plan = plan_conversion(source, output, ConvertOptions(program="ai-toolkit"))
    convert_to_standard(source, output, ConvertOptions(program="ai-toolkit"))
    said = predict_output(plan.adapter, plan.destinations, plan.options)
    assert scales(said) == scales(read_adapter(open_checkpoint(output)))


def headers(adapter):
    return {name: (info.name, info.dtype, info.shape) for name, info in adapter.checkpoint.tensors.items()}


def scales(adapter):
    return [(one.module, one.algorithm.name, one.rank, one.scale) for one in adapter.contributions]


def test_a_joined_layer_has_its_own_rows_beside_a_renamed_one_of_the_same_shapes(tmp_path):
    # to_q, to_k and to_v become one layer, and to_out only gets another name.
    block = "transformer.transformer_blocks"
    tensors = {}
    for number in range(2):  # those of the second block are seen when the first's to_out is known
        for leaf in ("to_out.0", "to_q", "to_k", "to_v"):
            tensors[f"{block}.{number}.attn.{leaf}.lora_A.weight"] = torch.ones(4, 3072)
            tensors[f"{block}.{number}.attn.{leaf}.lora_B.weight"] = torch.ones(3072, 4)
    source = str(tmp_path / "in.safetensors")
    save_file(tensors, source, {"modelspec.architecture": by_name("flux").metadata_names[0]})
    plan = plan_conversion(source, str(tmp_path / "out.safetensors"), ConvertOptions(scheme="comfyui"))
    said = predict_output(plan.adapter, plan.destinations, plan.options)
    rows = {name.split(".", 2)[2]: one.contributions[0].shapes["up"][0] for name, one in said.modules.items()}
    assert rows == {
        f"{number}.img_attn.{leaf}": size for number in range(2) for leaf, size in (("proj", 3072), ("qkv", 9216))
    }
