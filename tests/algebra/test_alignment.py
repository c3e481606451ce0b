"""Two adapters of one model as any two programs spell them: every module of the sum is that of the dense changes."""

import json
import math

import layouts
import numpy
import pytest
import torch
from adapters import DEFAULT, KOHYA, PEFT, Names, Spelling, factors, lora
from layouts import FUSED, SPLIT
from safetensors.torch import load_file, save_file

import lora_inspect
from lora_inspect.algebra.alignment import MultipliedAdapter, aligned, aligned_in_parts
from lora_inspect.algebra.changes import sum_of
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.errors import RefusedError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.maths.stored_numbers import load
from lora_inspect.ops.convert import convert_to_standard
from lora_inspect.reading.adapter import read_adapter

ORIGINAL, DIFFUSERS = "original", "diffusers"
OLD = Spelling(".lora.down.weight", ".lora.up.weight")
# who writes it -> the names, and whether there is an alpha
SPELLINGS = {
    "kohya": (Names("lora_unet_", ORIGINAL, True, KOHYA), True),
    "kohya over the names of diffusers": (Names("lora_unet_", DIFFUSERS, True, KOHYA), True),
    "OneTrainer": (Names("lora_transformer_", DIFFUSERS, True, KOHYA), True),
    "ComfyUI": (Names("diffusion_model.", ORIGINAL, False, KOHYA), True),
    "ai-toolkit": (Names("transformer.", DIFFUSERS, False, PEFT), False),
    "diffusers of 2023": (Names("transformer.", DIFFUSERS, False, OLD), False),
    "LyCORIS": (Names("lycoris_", DIFFUSERS, True, KOHYA), True),
    "bare names": (Names("", ORIGINAL, False, PEFT), False),
    "PEFT": (Names("base_model.model.", DIFFUSERS, False, DEFAULT), False),
}  # fmt: skip
FIRST = ("kohya", "ai-toolkit", "PEFT", "bare names")


@pytest.fixture(scope="module")
def bases():
    original = layouts.flux(blocks=2, width=4)
    return {ORIGINAL: original, DIFFUSERS: layouts.flux_in_diffusers(original)}


class Written:
    """An adapter of a model's layers in a file, and what it changes in the layout of diffusers."""

    def __init__(self, writer, bases, folder, seed):
        names, has_alpha = SPELLINGS[writer]
        base = bases[names.layout]
        own = factors(base, FUSED if names.layout == ORIGINAL else SPLIT, seed=seed)
        if not has_alpha:
            own = {path: one._replace(alpha=one.down.shape[0]) for path, one in own.items()}
        is_peft = names.prefix == "base_model.model."
        folder.mkdir()
        file = folder / ("adapter_model.safetensors" if is_peft else "adapter.safetensors")
        save_file(names.tensors(own, has_alpha=has_alpha), file, {"ss_base_model_version": "flux1"})
        if is_peft:
            ranks = {f"^{path}": one.down.shape[0] for path, one in own.items()}
            config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": "all-linear"}
            text = json.dumps({**config, "rank_pattern": ranks, "alpha_pattern": ranks})
            (folder / "adapter_config.json").write_text(text)
        self.layout, self.names = names.layout, names
        self.adapter = read_adapter(open_checkpoint(str(file)))
        self.own = set(own)
        self.keys = {names.module(path): path for path in layouts.matrices(base)}
        self.dense = in_diffusers({path: change(one) for path, one in own.items()}, base, names.layout)


def change(one):
    down, up = one.down.double(), one.up.double()
    return (up.flatten(1) @ down.flatten(1)) * (one.alpha / down.shape[0])


def in_diffusers(changes, base, layout):
    """Changes by path, of a layout, as those of the weights of diffusers; zeros where there is none."""
    whole = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in base.items()}
    whole |= {f"{path}.weight": torch.as_tensor(value) for path, value in changes.items()}
    return layouts.flux_in_diffusers(whole) if layout == ORIGINAL else whole


def multiplied(written, multiplier):
    return MultipliedAdapter(written.adapter, dict.fromkeys(written.adapter.modules, multiplier))


def summed(modules, written):
    """The dense sums of modules whose names are those of the file that is `written`."""
    found = {}
    for module in modules:
        own = sum_of(module.terms)
        found[written.keys[module.module.name.key]] = own.up * own.weights @ own.down
    return found


def parts_of_a_layer(bases, folder, names):
    """A split adapter of some parts of two fused layers."""
    layers = [f"transformer_blocks.{block}.attn.{name}" for block, name in names]
    own = {path: one._replace(alpha=2.0) for path, one in factors(bases[DIFFUSERS], layers, seed=5).items()}
    spelling = Names("transformer.", DIFFUSERS, False, PEFT)
    save_file(spelling.tensors(own), folder / "parts.safetensors", {"ss_base_model_version": "flux1"})
    adapter = read_adapter(open_checkpoint(str(folder / "parts.safetensors")))
    return adapter, in_diffusers({path: change(one) for path, one in own.items()}, bases[DIFFUSERS], DIFFUSERS)


@pytest.mark.parametrize("align", [lambda inputs: aligned(inputs, ConvertOptions()), aligned_in_parts])
def test_a_fused_layer_keeps_the_rows_of_which_the_first_adapter_has_no_part(align, bases, tmp_path):
    adapter, dense = parts_of_a_layer(bases, tmp_path, [(0, "to_q"), (1, "add_v_proj")])
    fused = Written("kohya", bases, tmp_path / "fused", 1)
    split = Written("ai-toolkit", bases, tmp_path / "split", 2)
    modules = align([all_at(adapter, 0.7), multiplied(fused, -0.4)])
    found = in_diffusers(summed(modules, split), bases[DIFFUSERS], DIFFUSERS)
    for name, value in found.items():
        meant = 0.7 * dense[name] - 0.4 * fused.dense[name]
        numpy.testing.assert_allclose(value.numpy(), meant.numpy(), rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("second", SPELLINGS)
@pytest.mark.parametrize("first", FIRST)
def test_a_fused_layer_is_split_where_the_other_adapter_has_its_parts(first, second, bases, tmp_path):
    both = [Written(writer, bases, tmp_path / f"{seed}", seed) for seed, writer in enumerate((first, second))]
    for pair in (both, both[::-1]):
        finest = next((one for one in pair if one.layout == DIFFUSERS), pair[0])
        modules = aligned_in_parts([multiplied(one, 1.0 + number) for number, one in enumerate(pair)])
        found = in_diffusers(summed(modules, finest), bases[finest.layout], finest.layout)
        for name, value in found.items():
            meant = sum((1.0 + number) * one.dense[name] for number, one in enumerate(pair))
            numpy.testing.assert_allclose(value.numpy(), meant.numpy(), rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("second", SPELLINGS)
@pytest.mark.parametrize("first", FIRST)
def test_the_sum_is_that_of_the_dense_changes(first, second, bases, tmp_path):
    one, other = (Written(writer, bases, tmp_path / f"{seed}", seed) for seed, writer in enumerate((first, second)))
    found = summed(aligned([multiplied(one, 0.7), multiplied(other, -0.4)], ConvertOptions()), one)
    assert one.own <= found.keys()
    sums = in_diffusers(found, bases[one.layout], one.layout)
    for name, value in sums.items():
        meant = 0.7 * one.dense[name] - 0.4 * other.dense[name]
        numpy.testing.assert_allclose(value.numpy(), meant.numpy(), rtol=1e-6, atol=1e-7, err_msg=name)
    assert max(float(value.abs().max()) for value in sums.values()) > 0.01


def small(path, prefix, paths, metadata=None, rows=16, columns=12):
    tensors = {}
    for name in paths:
        for key, (_, shape, _) in lora(f"{prefix}{name}", rank=2, out=rows, inputs=columns).items():
            tensors[key] = torch.ones(shape)
    save_file(tensors, path, metadata or {})
    return read_adapter(open_checkpoint(str(path)))


def all_at(adapter, multiplier=1.0):
    return MultipliedAdapter(adapter, dict.fromkeys(adapter.modules, multiplier))


WAN = [f"blocks_{block}_{leaf}" for block in range(2) for leaf in ("self_attn_q", "cross_attn_k", "ffn_0")]
FLUX = [f"double_blocks_{block}_img_attn_proj" for block in range(2)] + ["single_blocks_0_linear2"]


@pytest.mark.parametrize("turned", [False, True])
def test_names_of_no_known_family_are_compared_by_their_letters(turned, tmp_path):
    paths = ["net.0.mix_in", "net.0.out", "net.1.mix_in"]
    one = small(tmp_path / "a.safetensors", "lora_unet_", [path.replace(".", "_") for path in paths[:2]])
    tensors = {
        f"diffusion_model.{path}.lora_{side}.weight": torch.ones(shape)
        for path in paths[1:]
        for side, shape in (("A", (2, 12)), ("B", (16, 2)))
    }
    save_file(tensors, tmp_path / "b.safetensors")
    other = read_adapter(open_checkpoint(str(tmp_path / "b.safetensors")))
    inputs = [all_at(other), all_at(one)] if turned else [all_at(one), all_at(other)]
    found = sorted(sorted(term.contribution.module.key for term in module.terms) for module in aligned_in_parts(inputs))
    assert found == [
        ["diffusion_model.net.0.out", "lora_unet_net_0_out"],
        ["diffusion_model.net.1.mix_in"],
        ["lora_unet_net_0_mix_in"],
    ]


def test_adapters_of_two_families_are_refused(tmp_path):
    one = small(tmp_path / "wan.safetensors", "lora_unet_", WAN, {"ss_base_model_version": "wan2.1"})
    other = small(tmp_path / "flux.safetensors", "lora_unet_", FLUX, {"ss_base_model_version": "flux1"})
    for first, second in ((one, other), (other, one)):
        with pytest.raises(RefusedError, match=r"it is of .+, but .+ is of .+; name adapters of one model"):
            aligned([all_at(first), all_at(second)], ConvertOptions())


def test_a_third_adapter_of_another_family_is_refused(tmp_path):
    one = small(tmp_path / "wan.safetensors", "lora_unet_", WAN, {"ss_base_model_version": "wan2.1"})
    other = small(tmp_path / "flux.safetensors", "lora_unet_", FLUX, {"ss_base_model_version": "flux1"})
    with pytest.raises(RefusedError, match=r"flux\.safetensors: it is of"):
        aligned([all_at(one), all_at(one), all_at(other)], ConvertOptions())


def test_modules_of_one_adapter_alone_come_behind_those_of_the_first(tmp_path):
    one = small(tmp_path / "a.safetensors", "lora_unet_", WAN[1:])
    other = small(tmp_path / "b.safetensors", "lora_unet_", WAN[:2])
    modules = aligned([all_at(one), all_at(other)], ConvertOptions())
    assert [module.module.name.body for module in modules] == [*sorted(WAN[1:]), WAN[0]]
    assert {module.module.name.body: len(module.terms) for module in modules} == {
        name: 2 if name == WAN[1] else 1 for name in WAN
    }


def test_a_module_without_a_multiplier_is_left_out(tmp_path):
    one = small(tmp_path / "a.safetensors", "lora_unet_", WAN)
    kept = {key: 0.5 for key in one.modules if "ffn" in key}
    modules = aligned([MultipliedAdapter(one, kept)], ConvertOptions())
    assert {module.module.name.key for module in modules} == kept.keys()
    assert {term.multiplier for module in modules for term in module.terms} == {0.5}


@pytest.mark.parametrize("target", ["kohya", "comfyui", "diffusers", "peft"])
def test_names_of_a_target_are_those_that_convert_writes(target, bases, tmp_path):
    written = Written("ai-toolkit", bases, tmp_path / "in", 1)
    modules = aligned([multiplied(written, 1.0)], ConvertOptions(to=target, scheme=target))
    out = tmp_path / ("out" if target == "peft" else "out.safetensors")
    options = ConvertOptions(scheme=target)
    result = convert_to_standard(str(written.adapter.checkpoint.path), str(out), options)
    meant = read_adapter(open_checkpoint(result.output))
    assert {module.module.name.key for module in modules} == meant.modules.keys()


def test_weights_of_other_sizes_have_no_sum(tmp_path):
    one = small(tmp_path / "a.safetensors", "lora_unet_", WAN)
    other = small(tmp_path / "b.safetensors", "lora_unet_", WAN, rows=18)
    modules = aligned([all_at(one), all_at(other)], ConvertOptions())
    with pytest.raises(RefusedError, match=r"b\.safetensors: .+ changes a weight of \[18, 12\], but .+ \[16, 12\]"):
        sum_of(modules[0].terms)


FIXTURES = ("crepe-lycoris-loha-conv", "crepe-lycoris-locon-tucker", "crepe-lycoris-lokr-conv", "minilm-peft-loha-r8")


@pytest.mark.parametrize("name", FIXTURES)
def test_a_formula_gives_the_factors_of_other_algorithms(name, fixtures):
    (file,) = [one for one in (fixtures / name).glob("*.safetensors") if not one.name.startswith("oracle")]
    adapter = read_adapter(open_checkpoint(str(file)))
    modules = aligned([all_at(adapter, -0.7)], ConvertOptions())
    seen = 0
    for module in modules:
        (term,) = module.terms
        one = term.contribution
        if one.formula.low_rank is None or one.algorithm.parameter != "weight":
            continue
        tensors = {role: torch.from_numpy(load(info).astype(float)) for role, info in one.operands.items()}
        rows, columns = one.known_shape[0], math.prod(one.known_shape[1:])
        weight = torch.zeros(rows, columns, dtype=torch.float64)
        if (thin := one.formula.low_rank(tensors)) is None or len(thin[1]) > min(rows, columns):
            continue
        one.formula.change(tensors, one.known_scale, one.alpha, **one.settings).fold(weight, 0, -0.7)
        found = sum_of(module.terms)
        numpy.testing.assert_allclose(found.up * found.weights @ found.down, weight.numpy(), rtol=1e-5, atol=1e-7)
        seen += 1
    assert seen


UNKNOWN = {"enc.layer_a.proj": (12, 10), "enc.mid.out": (10, 14)}


def unknown(folder, name, spell, ends):
    numbers = torch.Generator().manual_seed(len(name))
    tensors, dense = {}, {}
    for path, (rows, columns) in UNKNOWN.items():
        up, down = torch.randn(rows, 3, generator=numbers), torch.randn(3, columns, generator=numbers)
        tensors |= {f"{spell(path)}{ends[0]}": down, f"{spell(path)}{ends[1]}": up}
        dense[path] = (up.double() @ down.double()).numpy()
    save_file(tensors, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors", dense


@pytest.mark.parametrize("is_flat_first", [True, False])
def test_underscored_and_dotted_names_of_an_unknown_model_are_one(is_flat_first, tmp_path):
    ends = (".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")
    flat = unknown(tmp_path, "flat", lambda path: f"lora_unet_{path.replace('.', '_')}", ends[0])
    dotted = unknown(tmp_path, "dotted", lambda path: f"transformer.{path}", ends[1])
    files = [flat, dotted] if is_flat_first else [dotted, flat]
    lora_inspect.combine([path for path, _ in files], tmp_path / "sum.safetensors")
    tensors = load_file(tmp_path / "sum.safetensors")
    own = ends[0] if is_flat_first else ends[1]
    for path in UNKNOWN:
        name = f"lora_unet_{path.replace('.', '_')}" if is_flat_first else f"transformer.{path}"
        down, up = (tensors[name + end].double().numpy() for end in own)
        numpy.testing.assert_allclose(up @ down, flat[1][path] + dotted[1][path], atol=1e-5)
