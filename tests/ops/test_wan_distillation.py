"""The files of step-distilled Wan models: LoRA without alpha, and differences of norms, biases and modulations."""

import layouts
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.converting.options import ConvertOptions
from lora_inspect.ops.convert import convert_to_standard

pytestmark = pytest.mark.numeric
DIM, FFN, RANK, BLOCKS = 16, 24, 4, 2
# The layers that have LoRA in such a file, as (out, in) of the base's own weights.
LINEAR = {
    **{
        f"blocks.{i}.{path}": shape
        for i in range(BLOCKS)
        for path, shape in {
            **{f"{part}.{leaf}": (DIM, DIM) for part in ("self_attn", "cross_attn") for leaf in "qkvo"},
            "ffn.0": (FFN, DIM),
            "ffn.2": (DIM, FFN),
        }.items()
    },
    "text_embedding.0": (DIM, 12),
    "time_embedding.0": (DIM, 8),
    "time_projection.1": (6 * DIM, DIM),
    "head.head": (8, DIM),
}
NORMS = [
    f"blocks.{i}.{part}.norm_{leaf}" for i in range(BLOCKS) for part in ("self_attn", "cross_attn") for leaf in "qk"
]
WITH_BIAS = [f"blocks.{i}.norm3" for i in range(BLOCKS)]
MODULATIONS = {**{f"blocks.{i}": 6 for i in range(BLOCKS)}, "head": 2}
CONVOLUTION = ("patch_embedding", (DIM, 4, 1, 2, 2))


def random(generator, *shape):
    return torch.randn(shape, generator=generator)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(base, adapter, expected in float64) of a small model, every parameter of which the adapter changes."""
    generator = torch.Generator().manual_seed(0)
    base, adapter, changes = {}, {}, {}

    def change(name, key, shape):
        base[name] = random(generator, *shape)
        adapter[f"diffusion_model.{key}"] = changes[name] = random(generator, *shape)

    for path, (out, inputs) in LINEAR.items():
        change(f"{path}.bias", f"{path}.diff_b", (out,))
        base[f"{path}.weight"] = random(generator, out, inputs)
        down, up = random(generator, RANK, inputs), random(generator, out, RANK)
        adapter |= {f"diffusion_model.{path}.lora_down.weight": down, f"diffusion_model.{path}.lora_up.weight": up}
        changes[f"{path}.weight"] = up.double() @ down.double()
    for path in (*NORMS, *WITH_BIAS):
        change(f"{path}.weight", f"{path}.diff", (DIM,))
    for path in WITH_BIAS:
        change(f"{path}.bias", f"{path}.diff_b", (DIM,))
    for path, count in MODULATIONS.items():
        change(f"{path}.modulation", f"{path}.diff_m", (1, count, DIM))
    path, shape = CONVOLUTION
    change(f"{path}.weight", f"{path}.diff", shape)
    change(f"{path}.bias", f"{path}.diff_b", shape[:1])
    folder = tmp_path_factory.mktemp("wan")
    save_file(base, folder / "base.safetensors")
    save_file(adapter, folder / "adapter.safetensors")
    return folder / "base.safetensors", folder / "adapter.safetensors", changes


@pytest.mark.parametrize("multiplier", [1.0, 0.5])
def test_every_tensor_of_the_file_is_used(multiplier, files, run, tmp_path):
    base, adapter, changes = files
    record = run("merge", base, f"{adapter}:{multiplier}", "-o", tmp_path / "out.safetensors", "--json").json
    assert (record["unmatched"], record["tensors_copied"]) == ([], 0)
    original, merged = load_file(base), load_file(tmp_path / "out.safetensors")
    assert merged.keys() == changes.keys()
    for name, delta in changes.items():
        expected = original[name].double() + multiplier * delta.double()
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-5, atol=1e-5)


def test_info_says_what_is_there(files, run):
    _, adapter, _ = files
    record = run("info", adapter, "--json", "--modules").json
    assert record["algorithms"] == {
        "lora": len(LINEAR),
        "full": len(NORMS) + len(WITH_BIAS) + 1,
        "full_bias": len(LINEAR) + len(WITH_BIAS) + 1,
        "full_modulation": len(MODULATIONS),
    }
    assert (record["unclaimed"], record["problems"], record["scheme"]) == ([], [], "comfyui")
    assert (record["architecture"], record["ranks"], record["scales"]) == (
        "wan",
        {"4": len(LINEAR)},
        {"1": len(LINEAR)},
    )
    shapes = {(item["module"], item["algorithm"]): item["shape"] for item in record["module_list"]}
    assert shapes["diffusion_model.blocks.0", "full_modulation"] == [1, 6, DIM]
    assert shapes["diffusion_model.blocks.0.norm3", "full"] == [DIM]


def test_a_bias_that_the_base_has_not_is_named(files, run, tmp_path):
    base, adapter, _ = files
    tensors = load_file(base)
    del tensors["blocks.1.norm3.bias"]
    save_file(tensors, tmp_path / "base.safetensors")
    refusal = run("merge", tmp_path / "base.safetensors", adapter, "-o", tmp_path / "out.safetensors").refusal
    assert "diffusion_model.blocks.1.norm3 changes a bias, but its layer in" in refusal


def test_a_difference_of_another_shape_is_named(files, run, tmp_path):
    base, adapter, _ = files
    tensors = {**load_file(base), "blocks.1.modulation": torch.zeros(1, 5, DIM)}
    save_file(tensors, tmp_path / "base.safetensors")
    refusal = run("merge", tmp_path / "base.safetensors", adapter, "-o", tmp_path / "out.safetensors").refusal
    assert f"diffusion_model.blocks.1 changes a weight of [1, 6, {DIM}]" in refusal
    assert "blocks.1.modulation" in refusal


def test_its_standard_form_merges_as_it_does(files, run, tmp_path):
    base, adapter, changes = files
    standard = tmp_path / "standard.safetensors"
    assert run("convert", adapter, "--to-standard", "-o", standard, "--json").json["exact"]
    merged = []
    for number, file in enumerate((adapter, standard)):
        run("merge", base, file, "-o", tmp_path / f"merged_{number}.safetensors")
        merged.append(load_file(tmp_path / f"merged_{number}.safetensors"))
    assert merged[0].keys() == changes.keys()
    assert all(torch.equal(merged[0][name], merged[1][name]) for name in changes)


def in_diffusers(tensors):
    return {
        name: value.contiguous() for name, value in layouts.real.convert_wan_transformer_to_diffusers(tensors).items()
    }


def merged(run, base, adapter, tmp_path):
    record = run("merge", base, adapter, "-o", tmp_path / "merged.safetensors", "--force", "--json").json
    assert (record["unmatched"], record["tensors_copied"]) == ([], 0)
    return load_file(tmp_path / "merged.safetensors")


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.fixture
def renamed(files, run, tmp_path):
    """(base, adapter) in the names of diffusers, the base as its own converter has it."""
    base, adapter, _ = files
    save_file(in_diffusers(load_file(base)), tmp_path / "base.safetensors")
    out = tmp_path / "diffusers.safetensors"
    record = run("convert", adapter, "--to-standard", "--layout", "diffusers", "-o", out, "--json").json
    assert record["exact"]
    return tmp_path / "base.safetensors", out


def test_it_merges_into_a_base_in_the_names_of_diffusers(files, renamed, run, tmp_path):
    base, adapter, _ = files
    expected = in_diffusers(merged(run, base, adapter, tmp_path))
    assert_equal(merged(run, renamed[0], adapter, tmp_path), expected)
    assert_equal(merged(run, renamed[0], renamed[1], tmp_path), expected)


def test_the_names_of_diffusers_merge_into_an_original_base(files, renamed, run, tmp_path):
    base, adapter, _ = files
    assert_equal(merged(run, base, renamed[1], tmp_path), merged(run, base, adapter, tmp_path))


def test_every_tensor_is_in_either_layout_and_comes_back(files, renamed, run, tmp_path):
    adapter, out = load_file(files[1]), load_file(renamed[1])
    differences = {key.removeprefix("diffusion_model."): value for key, value in adapter.items() if ".diff" in key}
    # The names of diffusers' converter for the weights, biases and tables that are changed.
    suffixes = {".diff": ".weight", ".diff_b": ".bias", ".diff_m": ".modulation"}
    theirs = in_diffusers(
        {key[: key.rindex(".")] + suffixes[key[key.rindex(".") :]]: v for key, v in differences.items()}
    )
    ends = {"weight": ".diff", "bias": ".diff_b"}
    expected = {}
    for name, value in theirs.items():
        path, _, parameter = name.rpartition(".")
        key = path + ends[parameter] if parameter in ends else f"{name}.diff"
        expected[f"transformer.{key}"] = value
    assert_equal({key: value for key, value in out.items() if ".diff" in key}, expected)
    back = tmp_path / "back.safetensors"
    run("convert", renamed[1], "--to-standard", "--layout", "original", "-o", back)
    found = load_file(back)
    assert_equal({key: value for key, value in found.items() if key in adapter}, adapter)
    assert found.keys() == adapter.keys()


@pytest.mark.parametrize("number", [0, 1], ids=["original", "diffusers"])
def test_comfyui_has_a_modulation_under_its_own_name(number, files, renamed, run, tmp_path):
    """As `model_lora_keys_unet` of ComfyUI calls a parameter that is no weight."""
    base, adapter, _ = files
    out, own = tmp_path / "comfyui.safetensors", (adapter, renamed[1])[number]
    run("convert", own, "--to", "comfyui", "-o", out)
    found = load_file(out)
    source = load_file(adapter)
    for path in MODULATIONS:
        assert torch.equal(found[f"diffusion_model.{path}.modulation.diff"], source[f"diffusion_model.{path}.diff_m"])
    assert not any(key.endswith(".diff_m") for key in found)
    assert_equal(merged(run, base, out, tmp_path), merged(run, base, adapter, tmp_path))


def test_a_modulation_beside_a_layer_of_one_name_is_none_that_comfyui_loads(files, run, tmp_path):
    tensors = load_file(files[1])
    tensors["diffusion_model.head.head.diff_m"] = torch.ones(1, 2, DIM)
    save_file(tensors, tmp_path / "adapter.safetensors")
    refusal = run("convert", tmp_path / "adapter.safetensors", "--to", "comfyui", "-o", tmp_path / "out").refusal
    assert "diffusion_model.head.head is a full modulation difference, which ComfyUI skips" in refusal


def test_kohya_has_no_name_of_a_modulation(files, renamed, run, tmp_path):
    refusal = run("convert", renamed[1], "--to", "kohya", "-o", tmp_path / "kohya.safetensors").refusal
    assert "would be blocks.0.modulation, but a reader of kohya's names has no such module" in refusal


def test_kohyas_names_of_norms_are_those_of_either_layout(files, renamed, run, tmp_path):
    base, adapter, _ = files
    tensors = {key: value for key, value in load_file(adapter).items() if not key.endswith(".diff_m")}
    save_file(tensors, tmp_path / "adapter.safetensors")
    out, back = tmp_path / "kohya.safetensors", tmp_path / "back.safetensors"
    run("convert", tmp_path / "adapter.safetensors", "--to", "kohya", "-o", out)
    assert "lora_unet_blocks_0_self_attn_norm_q.diff" in load_file(out)
    convert_to_standard(str(out), str(back), ConvertOptions(scheme="comfyui"))
    found = load_file(back)
    assert [key for key in tensors if not torch.equal(found[key], tensors[key])] == []
    run("merge", base, tmp_path / "adapter.safetensors", "-o", tmp_path / "merged.safetensors")
    run("merge", renamed[0], out, "-o", tmp_path / "across.safetensors")
    expected = in_diffusers(load_file(tmp_path / "merged.safetensors"))
    assert_equal(load_file(tmp_path / "across.safetensors"), expected)
