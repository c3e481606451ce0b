"""convert --base: a plain LoRA of W' - W, whatever the base stores its weights as and in whichever layout."""

import json

import layouts
import pytest
import torch
from adapters import dotted, factors, kohya
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_inspect.converting.steps import dora_delta, full_delta
from lora_inspect.converting.steps.base_change import find_base_changes
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.matching.match import match
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.reading.model.settings import Settings

pytestmark = pytest.mark.numeric

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# Models as narrow as these are of no published size, which alone would tell FLUX from its descendants.
SAYS = {"ss_base_model_version": "flux1"}
RANK, ALPHA = 2, 3.0


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(base, paths):
    """DoRA of the layers of a base at the paths, and W' - W by the formula in float64."""
    adapter = factors(base, paths, dora=True)
    weights = {path: base[f"{path}.weight"] for path in paths}
    changes = {path: own.folded(weights[path], 1.0, False)[0] - weights[path].double() for path, own in adapter.items()}
    return adapter, {path: change.flatten(1) for path, change in changes.items()}


def converted(folder, adapter, base, rank=1000, **options):
    save_file({name: tensor.contiguous() for name, tensor in adapter.items()}, folder / "adapter.safetensors", SAYS)
    save_file({name: tensor.clone().contiguous() for name, tensor in base.items()}, folder / "base.safetensors")
    settled = ConvertOptions(base=str(folder / "base.safetensors"), rank=rank, allow_loss=True, **options)
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
@pytest.mark.slow
def test_either_layout_of_the_base_gives_the_same_change(paths, spell, prefix, elements, tmp_path, monkeypatch):
    monkeypatch.setattr(dora_delta, "BLOCK_ELEMENTS", elements)
    original = layouts.flux(width=4)
    diffusers = layouts.flux_in_diffusers(original)
    own, other = (diffusers, original) if paths is SPLIT else (original, diffusers)
    adapter, expected = made(own, paths)
    for rank in (1, 1000):
        here, there = (converted(tmp_path, spell(prefix, adapter), base, rank) for base in (own, other))
        assert here.keys() == there.keys()
        assert all(torch.equal(tensor, there[key]) for key, tensor in here.items())
    changes = plain(there)
    assert len(changes) == len(paths)
    for path, change in expected.items():
        assert_near(changes[prefix + (path.replace(".", "_") if spell is kohya else path)], change)


@pytest.mark.parametrize("of_base", ["original", "diffusers"])
def test_the_plain_lora_can_be_written_in_the_other_layout(of_base, tmp_path):
    original = layouts.flux(width=4)
    adapter, expected = made(original, FUSED)
    zeros = {name: torch.zeros_like(tensor).double() for name, tensor in original.items()}
    changes = layouts.flux_in_diffusers(zeros | {f"{path}.weight": change for path, change in expected.items()})
    base = original if of_base == "original" else layouts.flux_in_diffusers(original)
    found = plain(converted(tmp_path, dotted("diffusion_model.", adapter), base, layout="diffusers"))
    assert len(found) == 3 + 1 + 4 + 2
    for key, change in found.items():
        assert_near(change, changes.pop(f"{key.removeprefix('transformer.')}.weight"))
    assert not any(map(torch.any, changes.values()))


def uneven(kind):
    """FLUX, an adapter of a fused layer whose query changes a hundred times less, and the change in float64."""
    base = layouts.flux(width=16)
    path, shares = "double_blocks.0.img_attn.qkv", torch.ones(48, 1)
    shares[:16] = 0.01
    weight, name = base[f"{path}.weight"], f"diffusion_model.{path}"
    if kind == "diff":
        change = shares * numbers(48, 16, seed=1)
        return base, {f"{name}.diff": change}, change.double()
    if kind == "loha":
        sides = [
            shares * numbers(48, 3, seed=1),
            numbers(3, 16, seed=2),
            numbers(48, 3, seed=3),
            numbers(3, 16, seed=4),
        ]
        roles = ("w1_a", "w1_b", "w2_a", "w2_b")
        one, two, three, four = (side.double() for side in sides)
        return (
            base,
            {f"{name}.hada_{role}": side for role, side in zip(roles, sides, strict=True)},
            (one @ two) * (three @ four),
        )
    down, up = numbers(RANK, 16, seed=1), 0.1 * shares * numbers(48, RANK, seed=2)
    combined = weight.double() + up.double() @ down.double()
    magnitude = (1 + 0.1 * shares * numbers(48, 1, seed=3)) * weight.norm(dim=1, keepdim=True)
    changed = magnitude.double() * combined / combined.norm(dim=1, keepdim=True)
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, f"{name}.lora_magnitude_vector": magnitude}
    return base, tensors | {f"{name}.alpha": torch.tensor(float(RANK))}, changed - weight.double()


@pytest.mark.parametrize("kind", ["dora", "diff", "loha"])
def test_a_part_that_changes_little_is_as_near_as_was_asked(kind, tmp_path):
    """It took the rows of what was near for the fused layer, and was refused as a defect."""
    base, adapter, change = uneven(kind)
    algorithm = None if kind == "dora" else "lora"
    options = {"layout": "diffusers", "algorithm": algorithm, "rank": None, "max_error": 0.3}
    found = plain(converted(tmp_path, adapter, base, **options))
    errors = []
    for part, meant in zip(("to_q", "to_k", "to_v"), change.split(16), strict=True):
        name = f"transformer.transformer_blocks.0.attn.{part}"
        errors.append(float((found[name] - meant).norm() / meant.norm()))
    # What is far nearer than it has to be has a rank that is too large.
    assert all(0.1 <= error <= 0.3 for error in errors), errors


LLM = "model.layers.0.self_attn"


def test_the_norm_of_inputs_is_that_of_the_rows_of_a_part(tmp_path):
    """So the part was trained; the whole was not, and parts of it lie in several weights."""
    whole, scale = numbers(12, 4), numbers(1, 4, seed=1).abs() + 1
    down, up = numbers(RANK, 4, seed=2), numbers(4, RANK, seed=3)
    name = f"diffusion_model.{LLM}.k_proj"
    adapter = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.dora_scale": scale}
    combined = whole[4:8].double() + up.double() @ down.double()
    changed = scale.double() * combined / (combined.norm(dim=0, keepdim=True) + 2.0**-23)
    found = plain(converted(tmp_path, adapter, {f"{LLM}.qkv_proj.weight": whole}))
    assert_near(found[name], changed - whole[4:8].double())
    fused = {key.replace("k_proj", "qkv_proj"): tensor for key, tensor in adapter.items()}
    fused[f"diffusion_model.{LLM}.qkv_proj.lora_up.weight"] = numbers(12, RANK)
    parts = {f"{LLM}.{part}_proj.weight": whole[4 * at : 4 * at + 4] for at, part in enumerate("qkv")}
    with pytest.raises(
        LoraInspectError, match=r"magnitude of inputs, and its norm covers all of its rows.*use a base in"
    ):
        converted(tmp_path, fused, parts)


def test_a_loha_of_a_fused_layer_on_a_base_of_its_parts(tmp_path):
    name, whole, scale = f"diffusion_model.{LLM}.qkv_proj", numbers(12, 4), numbers(12, 1, seed=1).abs() + 1
    sides = [numbers(*shape, seed=seed) for seed, shape in enumerate([(12, RANK), (RANK, 4)] * 2, start=2)]
    roles = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    adapter = {f"{name}.{role}": side for role, side in zip(roles, sides, strict=True)}
    left, right = (sides[at].double() @ sides[at + 1].double() for at in (0, 2))
    combined = whole.double() + left * right
    changed = scale.double() * combined / (combined.norm(dim=1, keepdim=True) + 2.0**-23)
    parts = {f"{LLM}.{part}_proj.weight": whole[4 * at : 4 * at + 4] for at, part in enumerate("qkv")}
    found = plain(converted(tmp_path, {**adapter, f"{name}.dora_scale": scale}, parts))
    assert_near(found[name], changed - whole.double())


@pytest.mark.parametrize("step", [dora_delta.true_change, full_delta.FullDelta.matrix], ids=["lora", "full"])
def test_the_change_of_a_fused_layer_is_computed_once_for_all_its_parts(step, tmp_path, monkeypatch):
    """And once more by the proof, which takes nothing from the steps."""
    base = layouts.flux(width=4)
    path, asked = "double_blocks.0.img_attn.qkv", []
    adapter, expected = made(base, [path])

    def counted(change):
        asked.append(change)
        return step(change)

    of_class = step.__name__ == "matrix"
    monkeypatch.setattr(full_delta.FullDelta if of_class else dora_delta, step.__name__, counted)
    options = {"rank": None, "algorithm": "full"} if of_class else {}
    found = converted(tmp_path, kohya("lora_unet_", adapter), base, scheme="lycoris", **options)
    parts = [f"lycoris_transformer_blocks_0_attn_to_{part}" for part in "qkv"]
    changes = {name: found[f"{name}.diff"].double() for name in parts} if of_class else plain(found)
    assert_near(torch.cat([changes[name] for name in parts]), expected[path])
    assert len(asked) == 2


def test_single_experts_on_a_base_of_all(tmp_path):
    mlp = "model.layers.0.mlp.experts"
    sizes = {"gate_proj": (6, 8), "up_proj": (6, 8), "down_proj": (8, 6)}
    single = {
        f"{mlp}.{at}.{leaf}.weight": numbers(*shape, seed=3 * at + number)
        for at in range(3)
        for number, (leaf, shape) in enumerate(sizes.items())
    }
    experts = [{leaf: single[f"{mlp}.{at}.{leaf}.weight"] for leaf in sizes} for at in range(3)]
    fused = {
        f"{mlp}.gate_up_proj": torch.stack([torch.cat([own["gate_proj"], own["up_proj"]]) for own in experts]),
        f"{mlp}.down_proj": torch.stack([own["down_proj"] for own in experts]),
    }
    adapter, expected = made(single, [name.removesuffix(".weight") for name in single])
    here, there = (converted(tmp_path, dotted("diffusion_model.", adapter), base) for base in (single, fused))
    assert here.keys() == there.keys()
    assert all(torch.equal(tensor, there[key]) for key, tensor in here.items())
    for path, change in expected.items():
        assert_near(plain(there)[f"diffusion_model.{path}"], change)


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
    adapter, expected = made({f"{Q}.weight": stands_for.float()}, [Q])
    base = {f"{Q}.weight": weight} | ({f"{Q}.{suffix}": scale} if suffix else {})
    assert_near(plain(converted(tmp_path, kohya("lora_unet_", adapter), base))[NAME], expected[Q])


def test_codes_of_a_kind_that_is_not_read_are_refused_with_the_way_out(tmp_path):
    base = {f"{Q}.weight": torch.ones(OUT, IN, dtype=torch.int8)}
    adapter, _ = made({f"{Q}.weight": numbers(OUT, IN)}, [Q])
    with pytest.raises(LoraInspectError, match=rf"the quantisation of {Q}.weight \(I8 without a.*use an F32, F16"):
        converted(tmp_path, kohya("lora_unet_", adapter), base)
    assert not (tmp_path / "out.safetensors").exists()


def test_codes_that_are_no_numbers_are_refused(tmp_path):
    weight = torch.full((OUT, IN), 0x7F, dtype=torch.uint8).view(E4M3)
    adapter, _ = made({f"{Q}.weight": numbers(OUT, IN)}, [Q])
    with pytest.raises(LoraInspectError, match=r"holds codes in row 0 that mean no number"):
        converted(tmp_path, kohya("lora_unet_", adapter), {f"{Q}.weight": weight})


def test_a_layer_that_has_only_its_bias_there_is_refused(tmp_path):
    """Its magnitude would stay, and the difference of its bias has a place."""
    adapter, _ = made({f"{Q}.weight": numbers(OUT, IN)}, [Q])
    adapter = kohya("lora_unet_", adapter) | {f"{NAME}.diff_b": torch.ones(OUT)}
    base = {f"{Q}.bias": torch.ones(OUT), "blocks.0.attn.k.weight": torch.ones(OUT, IN)}
    with pytest.raises(LoraInspectError, match=rf"1 modules have no weight in .*\({NAME}\)"):
        converted(tmp_path, adapter, base)


def beside(kind):
    """The factors of a module in kohya's names, and the change that they make, in float64."""
    if kind == "LoRA":
        down, up = numbers(RANK, IN, seed=6), numbers(OUT, RANK, seed=7)
        return {"lora_down.weight": down, "lora_up.weight": up}, ALPHA / RANK * up.double() @ down.double()
    sides = [numbers(*shape, seed=seed) for seed, shape in enumerate([(OUT, RANK), (RANK, IN)] * 2, start=8)]
    left, right = (sides[at].double() @ sides[at + 1].double() for at in (0, 2))
    roles = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    return dict(zip(roles, sides, strict=True)), ALPHA / RANK * left * right


def module(*parts):
    return {f"{NAME}.{key}": tensor for part in parts for key, tensor in {**part, "alpha": torch.tensor(ALPHA)}.items()}


def merged(folder, base, adapter):
    plan = plan_merge(str(base), [(str(adapter), 1.0)], MergeOptions())
    merge(plan, str(folder / "merged.safetensors"), force=True)
    return load_file(folder / "merged.safetensors")[f"{Q}.weight"].double()


@pytest.mark.parametrize("kind", ["LoRA", "LoHa"])
def test_a_difference_on_the_same_weight_is_in_the_norm_and_stays(kind, tmp_path):
    weight, difference, scale = numbers(OUT, IN), numbers(OUT, IN, seed=1), numbers(OUT, 1, seed=2).abs() + 1
    own, change = beside(kind)
    adapter = module(own, {"diff": difference, "dora_scale": scale})
    found = converted(tmp_path, adapter, {f"{Q}.weight": weight})
    whole = weight.double() + difference.double() + change
    decomposed = scale.double() * whole / (whole.norm(dim=1, keepdim=True) + 2.0**-23)
    assert torch.equal(found[f"{NAME}.diff"], difference)
    assert_near(weight.double() + found[f"{NAME}.diff"].double() + plain(found)[NAME], decomposed)
    base = tmp_path / "base.safetensors"
    assert_near(merged(tmp_path, base, tmp_path / "adapter.safetensors"), decomposed)
    for options, expected in (({"keep_dora": True}, decomposed), ({"drop_magnitude": True}, whole)):
        source, output = str(tmp_path / "adapter.safetensors"), str(tmp_path / "out.safetensors")
        convert_to_standard(source, output, ConvertOptions(**options), force=True)
        assert_near(merged(tmp_path, base, output), expected)


@pytest.fixture
def in_order(tmp_path, write_safetensors):
    """Converts an adapter whose tensors stand in this order."""

    def convert(adapter, settings=None):
        stored = {key: ("F32", tuple(t.shape), t.contiguous().numpy().tobytes()) for key, t in adapter.items()}
        source = write_safetensors(stored, name="adapter.safetensors")
        save_file({f"{Q}.weight": numbers(OUT, IN)}, tmp_path / "base.safetensors")
        options = ConvertOptions(base=str(tmp_path / "base.safetensors"), rank=OUT, settings=settings or Settings())
        convert_to_standard(str(source), str(tmp_path / "out.safetensors"), options)

    return convert


def test_a_second_lora_on_one_module_is_refused(in_order):
    adapter = module(beside("LoRA")[0], beside("LoHa")[0], {"dora_scale": torch.ones(OUT, 1)})
    # Of two changes that can have a magnitude it is the first one's.
    order = sorted(adapter, key=lambda key: "hada" not in key)
    settings = Settings(allow_partial_dora=True)
    with pytest.raises(LoraInspectError, match=r"has LoRA next to the LoHa with a magnitude.*choose --keep-dora"):
        in_order({key: adapter[key] for key in order}, settings)


ROTATED = {**beside("LoRA")[0], "dora_scale": torch.ones(OUT, 1), "oft_blocks": 0.1 * numbers(3, 2, 2)}


def test_a_rotation_behind_the_magnitude_stays_behind_the_plain_lora(in_order, tmp_path):
    in_order({f"diffusion_model.{Q}.{key}": tensor for key, tensor in ROTATED.items()})
    base = tmp_path / "base.safetensors"
    expected, found = (merged(tmp_path, base, tmp_path / f"{name}.safetensors") for name in ("adapter", "out"))
    assert_near(found, expected)


def test_an_alpha_that_a_rotation_would_take_for_its_own_is_not_added(in_order):
    with pytest.raises(LoraInspectError, match=rf"{NAME} has OFT.* next to LoRA.*to separate files first"):
        in_order({f"{NAME}.{key}": tensor for key, tensor in ROTATED.items()})


@pytest.mark.parametrize(
    "before",
    [
        {"oft_blocks": 0.1 * numbers(3, 2, 2)},
        {"lora_down.0.weight": torch.ones(RANK, IN), "lora_up.0.weight": torch.ones(OUT, RANK)},
    ],
    ids=["OFT", "LoRA"],
)
def test_what_is_not_added_to_all_rows_before_the_magnitude_is_refused(before, read, write_safetensors):
    stored = {**beside("LoHa")[0], "dora_scale": torch.ones(OUT, 1), **before}
    tensors = {f"{NAME}.{key}": ("F32", tuple(tensor.shape), 0.5) for key, tensor in stored.items()}
    adapter = read(tensors)
    base = open_checkpoint(str(write_safetensors({f"{Q}.weight": ("F32", (OUT, IN), 1)}, name="base.safetensors")))
    matching = match(adapter, base)
    own = adapter.modules[NAME]
    turned = sorted(own.contributions, key=lambda contribution: contribution.magnitude is not None)
    adapter.modules[NAME] = own._replace(contributions=tuple(turned))
    with pytest.raises(LoraInspectError, match=rf"{NAME} applies .* before its magnitude.*choose --keep-dora"):
        find_base_changes(adapter, base, matching)


def test_metadata_names_the_algorithm_that_it_became(tmp_path):
    own, _ = beside("LoHa")
    save_file(module(own, {"dora_scale": torch.ones(OUT, 1)}), tmp_path / "in.safetensors", {
        "ss_network_module": "lycoris.kohya",
        "ss_network_args": json.dumps({"algo": "loha", "dora_wd": "True", "preset": "attn-mlp"}),
    })  # fmt: skip
    save_file({f"{Q}.weight": numbers(OUT, IN)}, tmp_path / "base.safetensors")
    options = ConvertOptions(base=str(tmp_path / "base.safetensors"), rank=OUT)
    result = convert_to_standard(str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors"), options)
    assert (result.source["algorithm"], result.target["algorithm"]) == ("loha", "lora")
    with safe_open(tmp_path / "out.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["ss_network_args"]) == {"algo": "lora", "preset": "attn-mlp"}
        assert json.loads(opened.metadata()["lora_inspect.converted"])["algorithm"] == "loha"
