"""convert --base: a plain LoRA of W' - W, whatever the base stores its weights as and in whichever layout."""

import layouts
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.converting import own_weight
from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard

pytestmark = pytest.mark.numeric

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# Models as narrow as these are of no published size, which alone would tell FLUX from its descendants.
SAYS = {"ss_base_model_version": "flux1"}
RANK, ALPHA = 2, 3.0


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dora(weight, seed):
    """The factors and the magnitude of a DoRA of a weight, and W' - W by the paper's formula in float64."""
    down, up = numbers(RANK, *weight.shape[1:], seed=seed), numbers(weight.shape[0], RANK, seed=seed + 1)
    magnitude = weight.float().flatten(1).norm(dim=1) * (1 + numbers(len(weight), seed=seed + 2).abs())
    combined = weight.double().flatten(1) + ALPHA / RANK * up.double() @ down.double().flatten(1)
    changed = magnitude.double()[:, None] * combined / combined.norm(dim=1, keepdim=True)
    return {"down": down, "up": up, "magnitude": magnitude}, changed - weight.double().flatten(1)


def kohya(prefix, factors):
    tensors = {}
    for path, own in factors.items():
        name = prefix + path.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": own["down"], f"{name}.lora_up.weight": own["up"]}
        tensors |= {f"{name}.alpha": torch.tensor(ALPHA), f"{name}.dora_layer.weight": own["magnitude"]}
    return tensors


def dotted(prefix, factors):
    tensors = {}
    for path, own in factors.items():
        name = prefix + path
        tensors |= {f"{name}.lora_A.weight": own["down"], f"{name}.lora_B.weight": own["up"] * (ALPHA / RANK)}
        tensors[f"{name}.lora_magnitude_vector"] = own["magnitude"]
    return tensors


def converted(folder, adapter, base, rank=1000, **options):
    save_file({name: tensor.contiguous() for name, tensor in adapter.items()}, folder / "adapter.safetensors", SAYS)
    save_file({name: tensor.clone().contiguous() for name, tensor in base.items()}, folder / "base.safetensors")
    settled = ConvertOptions(base=str(folder / "base.safetensors"), rank=rank, lossy=True, **options)
    convert_to_standard(str(folder / "adapter.safetensors"), str(folder / "out.safetensors"), settled, force=True)
    return load_file(folder / "out.safetensors")


def plain(tensors):
    """What a reader of alpha/rank adds to each module, in float64."""
    found = {}
    for key, up in tensors.items():
        for up_suffix, down_suffix in ((".lora_up.weight", ".lora_down.weight"), (".lora_B.weight", ".lora_A.weight")):
            if key.endswith(up_suffix):
                name = key.removesuffix(up_suffix)
                down = tensors[name + down_suffix]
                scale = float(tensors.get(f"{name}.alpha", torch.tensor(float(len(down))))) / len(down)
                found[name] = scale * up.double().flatten(1) @ down.double().flatten(1)
    return found


def assert_near(found, expected):
    """Factors in float32 of a difference of float32 weights."""
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


SPLIT = [
    "transformer_blocks.0.attn.to_k", "transformer_blocks.0.attn.add_v_proj", "transformer_blocks.0.attn.to_out.0",
    "single_transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp", "norm_out.linear", "x_embedder",
]  # fmt: skip
FUSED = [
    "double_blocks.0.img_attn.qkv", "double_blocks.0.img_mlp.2", "single_blocks.0.linear1",
    "final_layer.adaLN_modulation.1", "final_layer.linear",
]  # fmt: skip
LAYOUTS = {
    "of the parts, kohya": (SPLIT, kohya, "lora_transformer_"),
    "of the parts, diffusers": (SPLIT, dotted, "transformer."),
    "fused, kohya": (FUSED, kohya, "lora_unet_"),
    "fused, comfyui": (FUSED, dotted, "diffusion_model."),
}


@pytest.mark.parametrize("elements", [1 << 20, 24], ids=["in one block", "in tiny blocks"])
@pytest.mark.parametrize(("paths", "spell", "prefix"), LAYOUTS.values(), ids=LAYOUTS)
def test_either_layout_of_the_base_gives_the_same_change(paths, spell, prefix, elements, tmp_path, monkeypatch):
    monkeypatch.setattr(own_weight, "BLOCK_ELEMENTS", elements)
    original = layouts.flux(width=4)
    diffusers = layouts.flux_in_diffusers(original)
    own, other = (diffusers, original) if paths is SPLIT else (original, diffusers)
    made = {path: dora(own[f"{path}.weight"], seed) for seed, path in enumerate(paths)}
    adapter = spell(prefix, {path: factors for path, (factors, _) in made.items()})
    for rank in (1, 1000):
        here, there = (converted(tmp_path, adapter, base, rank) for base in (own, other))
        assert here.keys() == there.keys()
        assert all(torch.equal(tensor, there[key]) for key, tensor in here.items())
    changes = plain(there)
    assert len(changes) == len(paths)
    for path, (_, expected) in made.items():
        assert_near(changes[prefix + (path.replace(".", "_") if spell is kohya else path)], expected)


Q, NAME = "blocks.0.attn.q", "lora_unet_blocks_0_attn_q"
OUT, IN = 6, 8
CODES = {
    "none": (None, ()),
    "a number": ("scale_weight", ()),
    "rows": ("scale_weight", (OUT, 1)),
    "blocks": ("scale_weight", (OUT, 4, 1)),
    "rows, flat": ("weight_scale", (OUT,)),
}


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize(("suffix", "shape"), CODES.values(), ids=CODES)
def test_fp8_weights_are_what_their_codes_stand_for(suffix, shape, dtype, tmp_path):
    weight = numbers(OUT, IN).mul(20).to(dtype)
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(2)) + 0.1
    blocks = scale.reshape(OUT if scale.numel() > 1 else 1, -1)
    stands_for = weight.double() * (blocks.double().repeat_interleave(IN // blocks.shape[1], 1) if suffix else 1.0)
    factors, expected = dora(stands_for, 5)
    base = {f"{Q}.weight": weight} | ({f"{Q}.{suffix}": scale} if suffix else {})
    assert_near(plain(converted(tmp_path, kohya("lora_unet_", {Q: factors}), base))[NAME], expected)


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ({f"{Q}.weight": numbers(OUT, IN).to(E4M3), f"{Q}.weight_scale_inv": torch.ones(1, 1)}, "is quantised"),
        ({f"{Q}.weight": torch.ones(OUT, IN, dtype=torch.int8)}, "stored as I8"),
    ],
)
def test_codes_of_another_kind_are_refused_with_the_way_out(base, says, tmp_path):
    factors, _ = dora(numbers(OUT, IN), 5)
    with pytest.raises(LoraInspectError, match=rf"{Q}.weight .*{says}.*use an F32, F16 or BF16 version of the base\."):
        converted(tmp_path, kohya("lora_unet_", {Q: factors}), base)
    assert not (tmp_path / "out.safetensors").exists()


def test_codes_that_are_no_numbers_are_refused(tmp_path):
    weight = torch.full((OUT, IN), 0x7F, dtype=torch.uint8).view(E4M3)
    factors, _ = dora(numbers(OUT, IN), 5)
    with pytest.raises(LoraInspectError, match=r"holds codes in row 0 that stand for no number"):
        converted(tmp_path, kohya("lora_unet_", {Q: factors}), {f"{Q}.weight": weight})


def test_a_layer_that_has_only_its_bias_there_is_refused(tmp_path):
    """Its magnitude would stay, and the difference of its bias has a place."""
    factors, _ = dora(numbers(OUT, IN), 5)
    adapter = kohya("lora_unet_", {Q: factors}) | {f"{NAME}.diff_b": torch.ones(OUT)}
    base = {f"{Q}.bias": torch.ones(OUT), "blocks.0.attn.k.weight": torch.ones(OUT, IN)}
    with pytest.raises(LoraInspectError, match=rf"1 modules have no weight in .*\({NAME}\)"):
        converted(tmp_path, adapter, base)
