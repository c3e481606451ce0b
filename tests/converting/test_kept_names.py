"""The names of a file in a conversion for a program, and the programs that stop being right.

The scales are alpha/sqrt(rank) of the input as alpha/rank, computed here.
"""

import shlex

import pytest
import torch
from adapters import KINDS, adapter
from real_shapes import recorded
from real_shapes import write as write_recorded
from safetensors.torch import load_file, save_file

import lora_inspect
from lora_inspect.architectures import by_name
from lora_inspect.converting import plan
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.target import kept_names
from lora_inspect.converting.target.prediction import predict_output
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.ops.compat import compat
from lora_inspect.ops.convert import convert_to_standard
from lora_inspect.programs import PROGRAMS, added
from lora_inspect.programs.record import COMPUTES, LEAVES, WARNS, Loader, Program, Rule, Strangers
from lora_inspect.programs.verdict import SAME, judge_each
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.identify import adapter_candidates, with_paths

SDXL = ("input_blocks.4.1.transformer_blocks.0.attn1.to_q", "middle_block.1.transformer_blocks.0.attn2.to_k")
SDXL_DIFFUSERS = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
)
WAN = ("blocks.0.self_attn.q", "blocks.0.cross_attn.v", "blocks.1.ffn.0")
FLUX = ("double_blocks.0.img_attn.proj", "single_blocks.0.linear2")
FLUX_DIFFUSERS = ("transformer_blocks.0.attn.to_out.0", "single_transformer_blocks.0.proj_out")
QWEN = ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.img_mlp.net.2")
Z_IMAGE = ("layers.0.attention.qkv", "layers.1.feed_forward.w1")


def spelled(prefix):
    return lambda path: prefix + (path if prefix.endswith(".") else path.replace(".", "_"))


def written(folder, family, prefix, paths, kind="lora", has_alpha=True, name="in"):
    """Return the path of an adapter with 16 x 16 layers."""
    numbers = torch.Generator().manual_seed(2)
    layers = {
        path: {"weight": torch.randn(16, 16, generator=numbers), "bias": torch.randn(16, generator=numbers)}
        for path in paths
    }
    tensors, _ = adapter(KINDS[kind], layers, spelled(prefix), has_alpha)
    path = str(folder / f"{name}.safetensors")
    save_file(tensors, path, {"ss_base_model_version": by_name(family).metadata_names[0]})
    return path


def modules_of(path):
    return set(read_adapter(open_checkpoint(path)).modules)


def right_in(path):
    return {one.program.name for one in compat(path).verdicts if one.verdict == SAME}


@pytest.mark.parametrize(("layer", "prefix"), [("ff", "lora_transformer_"), ("ff_context", "lora_unet_")])
def test_convert_onetrainer_names_for_invokeai_keeps_what_it_parses(tmp_path, layer, prefix):
    """It ends a segment at `ff`, and has no tree for the rest of `ff_context`."""
    paths = (f"transformer_blocks.0.{layer}.net.2", f"transformer_blocks.1.{layer}.net.2")
    source, output = written(tmp_path, "flux", "lora_transformer_", paths), str(tmp_path / "out.safetensors")
    lora_inspect.convert(source, output, to="invokeai")
    assert all(module.startswith(prefix) for module in modules_of(output))
    assert "invokeai" in right_in(output)


@pytest.mark.parametrize("kind", ["lora", "rslora flag"])
def test_convert_sdxl_kohya_for_comfyui_stays_right_elsewhere(tmp_path, kind):
    source, output = written(tmp_path, "sdxl", "lora_unet_", SDXL, kind), str(tmp_path / "out.safetensors")
    result = lora_inspect.convert(source, output, to="comfyui")
    assert (result.target["scheme"], result.no_longer_right) == ("kohya", ())
    assert modules_of(output) == modules_of(source)
    readers = {"a1111", "comfyui", "diffusers", "sd-scripts", "sd-scripts-sdxl-merge", "sdnext"}
    assert readers - right_in(output) == set()


def test_convert_rslora_of_wan_for_comfyui_loads_in_musubi_tuner(tmp_path):
    source, output = written(tmp_path, "wan", "lora_unet_", WAN, "rslora flag"), str(tmp_path / "out.safetensors")
    lora_inspect.convert(source, output, to="comfyui")
    assert {"comfyui", "musubi"} <= right_in(output)
    before, after = load_file(source), load_file(output)
    for module in map(spelled("lora_unet_"), WAN):
        rank = len(before[f"{module}.lora_down.weight"])
        assert float(after[f"{module}.alpha"]) / rank == float(before[f"{module}.alpha"]) / rank**0.5
        assert torch.equal(after[f"{module}.lora_up.weight"], before[f"{module}.lora_up.weight"])


def test_convert_for_program_without_such_names_lists_lost_programs(tmp_path, run):
    source, output = written(tmp_path, "wan", "lora_unet_", WAN), tmp_path / "out.safetensors"
    ended = run("convert", source, "--to", "diffsynth", "-o", output, "--json")
    before, after = right_in(source), right_in(str(output))
    assert ended.json["to"]["scheme"] == "comfyui"
    assert ended.json["no_longer_right"] == sorted(before - after)
    assert "musubi" in ended.json["no_longer_right"]
    text = run("convert", source, "--to", "diffsynth", "-o", output, "--force").stdout
    assert "no longer right in" in text
    assert "musubi-tuner" in text


def test_convert_to_scheme_renames_modules(tmp_path):
    source, output = written(tmp_path, "sdxl", "unet.", SDXL_DIFFUSERS, "lora A/B"), str(tmp_path / "o.safetensors")
    assert lora_inspect.convert(source, output, to="kohya").target["scheme"] == "kohya"
    assert modules_of(output) == set(map(spelled("lora_unet_"), SDXL))


def test_convert_without_program_lists_lost_programs(tmp_path):
    """LyCORIS reads the flag of RS-LoRA, other programs read alpha/rank."""
    source, output = written(tmp_path, "wan", "lora_unet_", WAN, "rslora flag"), str(tmp_path / "out.safetensors")
    result = lora_inspect.convert(source, output)
    assert result.no_longer_right == tuple(sorted(right_in(source) - right_in(output)))


def test_convert_of_ambiguous_family_keeps_names(tmp_path):
    path = "double_blocks.0.img_attn.proj"
    tensors = {f"lora_unet_{path.replace('.', '_')}.lora_{end}.weight": torch.ones(4, 4) for end in ("down", "up")}
    source, output = str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors")
    save_file(tensors, source)
    assert len(lora_inspect.open_adapter(source).architectures) > 1
    assert lora_inspect.convert(source, output, to="comfyui").target["scheme"] == "kohya"


def test_convert_with_architecture_keeps_names_that_family_has(tmp_path):
    """The layer may be one of Chroma, of which InvokeAI reads no such names."""
    module = "lora_unet_double_blocks_0_img_attn_proj"
    tensors = {f"{module}.lora_down.weight": torch.ones(1, 3072), f"{module}.lora_up.weight": torch.ones(3072, 1)}
    tensors[f"{module}.alpha"] = torch.tensor(1.0)
    source, output = str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors")
    save_file(tensors, source)
    result = lora_inspect.convert(source, output, to="invokeai", architecture="flux")
    assert result.target["scheme"] == "kohya"
    assert not any("does not know how InvokeAI" in remark for remark in result.remarks)


def test_convert_of_one_component_keeps_its_names(tmp_path):
    source, output = written(tmp_path, "sdxl", "lora_unet_", SDXL), str(tmp_path / "out.safetensors")
    encoder = load_file(written(tmp_path, "sdxl", "lora_te1_", ["text_model.encoder.layers.0.mlp.fc1"], name="te"))
    save_file(load_file(source) | encoder, source, {"ss_base_model_version": by_name("sdxl").metadata_names[0]})
    lora_inspect.convert(source, output, to="comfyui", only="model")
    assert modules_of(output) == set(map(spelled("lora_unet_"), SDXL))


@pytest.mark.parametrize(("program", "scheme"), [("comfyui", "kohya"), ("diffusers", "diffusers")])
def test_convert_to_lora_keeps_names_right_at_any_ranks(tmp_path, program, scheme):
    """Of kohya's names with alphas that differ, diffusers finds some by a pattern that matches no layer."""
    source, output = written(tmp_path, "sdxl", "lora_unet_", SDXL, "loha"), str(tmp_path / "out.safetensors")
    result = lora_inspect.convert(source, output, to=program, algorithm="lora", rank=16)
    assert (result.target["scheme"], result.target["algorithm"]) == (scheme, "lora")


def test_convert_of_dora_with_base_keeps_names_for_comfyui(tmp_path):
    """ComfyUI multiplies each row by magnitude / norm of the base's row."""
    source, output = (
        written(tmp_path, "wan", "lora_unet_", WAN, "dora_scale of outputs"),
        str(tmp_path / "out.safetensors"),
    )
    numbers = torch.Generator().manual_seed(2)
    weights = {}
    for path in WAN:
        weights[f"{path}.weight"] = torch.randn(16, 16, generator=numbers)
        torch.randn(16, generator=numbers)
    save_file(weights, tmp_path / "base.safetensors")
    result = lora_inspect.convert(source, output, to="comfyui", base=tmp_path / "base.safetensors")
    assert (result.target["scheme"], result.target["norms"]) == ("kohya", "base")
    before, after = load_file(source), load_file(output)
    for path in WAN:
        module, weight = spelled("lora_unet_")(path), weights[f"{path}.weight"].double()
        up, down = (before[f"{module}.lora_{end}.weight"].double() for end in ("up", "down"))
        changed = weight + float(before[f"{module}.alpha"]) / len(down) * up @ down
        magnitude = before[f"{module}.dora_scale"].double()
        expected = magnitude * weight.norm(dim=1, keepdim=True) / changed.norm(dim=1, keepdim=True)
        torch.testing.assert_close(after[f"{module}.dora_scale"].double(), expected, rtol=1e-5, atol=1e-6)


def toy(*rules):
    loader = Loader(rules=(*rules, Rule()), strangers=Strangers(WARNS, "key not loaded"))
    return Program("toy", "Toy", "1.0", (loader,), {"wan": "comfyui"})


LOADS_COMFYUI = Rule(prefixes=("diffusion_model.",), layouts=("original",), kinds={"lora": COMPUTES})
LOADS_KOHYA = LOADS_COMFYUI._replace(prefixes=("lora_unet_",))


@pytest.mark.parametrize(
    ("own", "scheme"),
    [
        (LOADS_KOHYA, "kohya"),
        (LOADS_KOHYA._replace(kinds={"lora": LEAVES}), "comfyui"),
        # Not known to be right.
        (LOADS_KOHYA._replace(kinds={"lora": ""}), "comfyui"),
    ],
)
def test_verdict_under_own_names_decides_names(tmp_path, own, scheme):
    source = written(tmp_path, "wan", "lora_unet_", WAN, "rslora flag")
    with added(toy(own, LOADS_COMFYUI)):
        result = convert_to_standard(source, str(tmp_path / "out.safetensors"), ConvertOptions(program="toy"))
    assert result.target["scheme"] == scheme


def test_convert_in_folder_keeps_names(tmp_path, run):
    (tmp_path / "in").mkdir()
    written(tmp_path / "in", "sdxl", "lora_unet_", SDXL, "rslora flag", name="kohya")
    written(tmp_path / "in", "wan", "lora_unet_", WAN, "lora", name="right")
    shown = run("convert", tmp_path / "in", "--to", "comfyui", "--all-files", "-o", tmp_path / "out", "--json").json
    assert [(one["to"]["scheme"], one["no_longer_right"]) for one in shown] == [("kohya", []), ("kohya", [])]
    lost = run("convert", tmp_path / "in", "--to", "diffsynth", "--only", "model", "-o", tmp_path / "other")
    assert "no longer right in" in lost.stdout


def test_state_dict_keeps_names_that_program_reads(tmp_path):
    source = written(tmp_path, "sdxl", "lora_unet_", SDXL, "rslora flag")
    assert {key.partition(".")[0] for key in lora_inspect.state_dict(source)} == modules_of(source)


def test_fix_of_compat_keeps_names(tmp_path):
    source = written(tmp_path, "wan", "lora_unet_", WAN, "loha")
    with added(toy(LOADS_KOHYA._replace(kinds={"lora": COMPUTES, "loha": LEAVES}))):
        words = shlex.split(compat(source, "toy").verdicts[0].fix)
        assert ("--to" in words, "--algorithm" in words) == (True, True)
        options = ConvertOptions(program="toy", algorithm="lora", rank=16)
        result = convert_to_standard(source, words[-1], options)
        assert (result.target["scheme"], compat(words[-1], "toy").verdicts[0].verdict) == ("kohya", SAME)


@pytest.mark.parametrize("kind", ["lora", "rslora flag", "loha"])
def test_compat_predicts_output_with_own_names_once_per_way(tmp_path, monkeypatch, kind):
    source = written(tmp_path, "sdxl", "lora_unet_", SDXL, kind)
    asked = []

    def count(adapter, modules, options):
        asked.append((options.scheme, options))
        return predict_output(adapter, modules, options)

    monkeypatch.setattr(kept_names, "predict_output", count)
    compat(source)
    own = [options for scheme, options in asked if scheme is None]
    # Programs of one rank and one scale have predictions of their own.
    free = [options for options in own if not options.uniform]
    assert len(free) == len(set(map(repr, free)))


TEN = {
    "SDXL, kohya": ("sdxl", "lora_unet_", SDXL, "lora"),
    "SDXL, kohya, RS-LoRA": ("sdxl", "lora_unet_", SDXL, "rslora flag"),
    "SDXL, kohya, LoHa": ("sdxl", "lora_unet_", SDXL, "loha"),
    "SDXL, kohya, DoRA": ("sdxl", "lora_unet_", SDXL, "dora_scale of outputs"),
    "SDXL, diffusers": ("sdxl", "unet.", SDXL_DIFFUSERS, "lora A/B"),
    "Wan, kohya, RS-LoRA": ("wan", "lora_unet_", WAN, "rslora flag"),
    "Wan, ComfyUI": ("wan", "diffusion_model.", WAN, "lora A/B"),
    "FLUX.1, kohya": ("flux", "lora_unet_", FLUX, "lora"),
    "FLUX.1, diffusers": ("flux", "transformer.", FLUX_DIFFUSERS, "lora A/B"),
    "Qwen-Image, kohya": ("qwen_image", "lora_unet_", QWEN, "lora"),
}


@pytest.mark.slow
@pytest.mark.parametrize("file", TEN)
def test_conversion_for_each_program_names_exactly_lost_programs(tmp_path, file):
    family, prefix, paths, kind = TEN[file]
    source = written(tmp_path, family, prefix, paths, kind, has_alpha=not prefix.endswith("."))
    before, failures = right_in(source), []
    for name, program in PROGRAMS.items():
        output = str(tmp_path / name) + (
            "" if "peft" in program.schemes.values() or name == "mlx-lm" else ".safetensors"
        )
        try:
            result = lora_inspect.convert(source, output, to=name)
        except LoraInspectError as error:
            if name in before:
                failures.append((name, str(error)))
            continue
        after = right_in(output)
        kept = modules_of(output) == modules_of(source)
        if name in before and not (kept and name in after and not result.no_longer_right):
            failures.append((name, kept, name in after, result.no_longer_right))
        if set(result.no_longer_right) != before - after:
            failures.append((name, result.no_longer_right, before - after))
    assert failures == []


class NoNames(kept_names.NameKeeper):
    """A decision that never keeps names."""

    def keep(self, adapter, whole, options):
        return None


def foreseen(whole, program, names):
    """Return the programs in which a predicted output is right, and its modules; None if refused or not predicted."""
    try:
        settled = plan.settle(whole, ConvertOptions(program=program), names)
        planned = plan.plan_settled(settled, "out" if settled.options.scheme in ("peft", "mlx") else "out.safetensors")
        output = predict_output(planned.adapter, planned.destinations, planned.options)
    except LoraInspectError:
        return None
    if output is None:
        return None
    families = adapter_candidates(output)
    found = judge_each(with_paths(output, families), families, PROGRAMS.values())
    return {one.program.name for one in found if one.verdict == SAME}, set(output.modules)


# The standard file has no name of an adapter in its keys, by which some programs of bare paths load them.
WITHOUT_INFIX = {
    ("qwen-image-diffsynth", "diffusers"),
    ("qwen-image-diffsynth", "sdnext"),
    ("z-image-diffsynth", "diffusers"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", recorded())
def test_recorded_files_stay_right_in_each_program(tmp_path, name):
    adapter_read = read_adapter(open_checkpoint(str(write_recorded(name, tmp_path))))
    try:
        adapter_read.refuse()
    except LoraInspectError:
        pytest.skip("its meaning is open")
    families = adapter_candidates(adapter_read)
    found = judge_each(with_paths(adapter_read, families), families, PROGRAMS.values())
    before, own, failures = {one.program.name for one in found if one.verdict == SAME}, set(adapter_read.modules), []
    keeper = kept_names.NameKeeper()
    for program in PROGRAMS:
        kept, renamed = foreseen(adapter_read, program, keeper), foreseen(adapter_read, program, NoNames())
        if renamed and program in renamed[0] and not (kept and program in kept[0]):
            failures.append((program, "is no longer served"))
        if kept and program in before and (program not in kept[0] or kept[1] != own):
            failures.append((program, "gets other names"))
    assert [one for one in failures if (name, one[0]) not in WITHOUT_INFIX] == []
