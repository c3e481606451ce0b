"""Which base weight a module changes, over every prefix, and what is said where none fits."""

import pytest
from adapters import IN, OUT, base, lora, loras, split
from hypothesis import given
from hypothesis import strategies as st
from make_synthetic import encode
from strategies import paths

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.matching.match import match
from lora_inspect.matching.unmatched import accept_unmatched
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.base.base_names import BASE_PREFIXES


@pytest.fixture
def matched(write_safetensors):
    def match_tensors(adapter, weights, only=(), allowed=False):
        adapter_file = write_safetensors(adapter, name="adapter.safetensors")
        base_file = write_safetensors(weights, name="base.safetensors")
        read = read_adapter(open_checkpoint(str(adapter_file)))
        opened = open_checkpoint(str(base_file))
        matching = match(read, opened, only)
        left = accept_unmatched(read, opened, matching, allowed)
        return {
            name: [placed.contribution.module.key for placed in found] for name, found in matching.targets.items()
        }, left

    return match_tensors


@pytest.mark.parametrize("prefix", BASE_PREFIXES["model"])
@pytest.mark.parametrize(
    "module",
    ["lora_unet_blocks_0_attn_q", "lora_unet__blocks_0_attn_q", "lycoris_blocks_0_attn_q", "blocks.0.attn.q",
     "diffusion_model.blocks.0.attn.q", "transformer.blocks.0.attn.q", "unet.blocks.0.attn.q",
     "lora_transformer_blocks_0_attn_q"],
)  # fmt: skip
def test_every_scheme_finds_the_weight_under_every_prefix(prefix, module, matched):
    targets, left = matched(lora(module), base(1, prefix=prefix))
    assert targets == {f"{prefix}blocks.0.attn.q.weight": [module]}
    assert left == []


@given(
    modules=st.lists(paths, min_size=1, max_size=5, unique_by=lambda path: path.replace(".", "_")),
    prefix=st.sampled_from(["lora_unet_", "diffusion_model."]),
)
def test_names_are_found_whatever_underscores_they_have(tmp_path_factory, modules, prefix):
    folder = tmp_path_factory.mktemp("match")
    flat = prefix.endswith("_")
    names = {path: prefix + (path.replace(".", "_") if flat else path) for path in modules}
    factors = {}
    for name in names.values():
        factors[f"{name}.lora_down.weight"] = ("F32", (1, 2), bytes(8))
        factors[f"{name}.lora_up.weight"] = ("F32", (3, 1), bytes(12))
    weights = {f"other.{path}.weight": ("F32", (3, 2), bytes(24)) for path in modules}
    weights |= {f"model.diffusion_model.{path}.weight": ("F32", (3, 2), bytes(24)) for path in modules}
    (folder / "adapter.safetensors").write_bytes(encode(factors))
    (folder / "base.safetensors").write_bytes(encode(weights))
    adapter = read_adapter(open_checkpoint(str(folder / "adapter.safetensors")))
    targets = match(adapter, open_checkpoint(str(folder / "base.safetensors"))).targets
    found = {weight: [placed.contribution.module.key for placed in changes] for weight, changes in targets.items()}
    assert found == {f"model.diffusion_model.{path}.weight": [name] for path, name in names.items()}


@pytest.mark.parametrize(
    ("module", "weight"),
    [
        ("lora_te_layers_0_q", "cond_stage_model.transformer.layers.0.q.weight"),
        ("lora_te1_layers_0_q", "conditioner.embedders.0.transformer.layers.0.q.weight"),
        ("lora_te1_layers_0_q", "text_encoders.clip_l.transformer.layers.0.q.weight"),
        ("lora_te2_layers_0_q", "text_encoders.clip_g.transformer.layers.0.q.weight"),
        ("lora_te_layers_0_q", "text_encoders.qwen3_4b.transformer.layers.0.q.weight"),
        ("text_encoders.llama.transformer.layers.0.q", "text_encoders.llama.transformer.layers.0.q.weight"),
        ("text_encoder.layers.0.q", "text_encoder.layers.0.q.weight"),
        ("text_encoder_2.layers.0.q", "layers.0.q.weight"),
    ],
)
def test_text_encoders_are_found_in_whole_checkpoints_and_alone(module, weight, matched):
    targets, _ = matched(lora(module), {weight: ("F32", (OUT, IN), 1)})
    assert targets == {weight: [module]}


def test_a_one_by_one_convolution_and_a_linear_are_the_same_weight(matched):
    module = "lora_unet_blocks_0_attn_q"
    conv = {"blocks.0.attn.q.weight": ("F32", (OUT, IN, 1, 1), 1)}
    assert matched(lora(module, kernel=(1, 1)), base(1))[0].keys() == conv.keys()
    assert matched(lora(module), conv)[0].keys() == conv.keys()


def test_vectors_and_other_parameters_are_no_targets(matched):
    weights = {**base(1), "norm.weight": ("F32", (OUT,), 1), "blocks.0.attn.q.bias": ("F32", (OUT,), 1)}
    with pytest.raises(LoraInspectError, match="lora_unet_norm"):
        matched({**loras(1), **lora("lora_unet_norm")}, weights)


TE = {"lora_te1_layers_0_q": 0, "lora_te1_layers_1_q": 0, "lora_te2_layers_0_q": 0}
WITH_TE = {**loras(2), **{key: t for module in TE for key, t in lora(module).items()}}
Q = "blocks.0.attn.q.weight"

# adapter, base, words of the refusal
REFUSED = {
    "nothing fits": (
        loras(1), {"other.weight": ("F32", (2, 2), 1)}, ["no module matches", "use a base of the adapter's model"]),
    "the nearest name is given": (
        lora("lora_unet_blocks_0_attn_qq"), base(1), ["lora_unet_blocks_0_attn_qq is most similar to " + Q]),
    "some do not fit": (loras(3), base(2), ["1 of 3 modules", "lora_unet_blocks_2_attn_q", "--allow-unmatched"]),
    "text encoders on a transformer": (
        WITH_TE, base(2), ["does not hold text_encoder (2 modules), text_encoder_2 (1 modules)", "--only model"]),
    "unclaimed tensors": (
        {**loras(1), "stray": ("F32", (1,), 1)}, base(1), ["1 tensors belong to no known", "(stray)", "--allow-un"]),
    "two weights of one flat name": (
        loras(1), {**base(1), "blocks.0.attn_q.weight": ("F32", (OUT, IN), 1)}, ["matches both", Q, "attn_q.weight"]),
    "two prefixes": (
        loras(1), {**base(1), f"model.diffusion_model.{Q}": ("F32", (OUT, IN), 1)},
        ["matches both", "diffusion_model"]),
    "two modules on one weight": (
        {**loras(1), **lora("transformer.blocks.0.attn.q")}, base(1),
        ["lora_unet_blocks_0_attn_q and transformer.blocks.0.attn.q both change " + Q]),
    "another width": (
        loras(1), base(1, out=7),
        ["lora_unet_blocks_0_attn_q", "[6, 5]", "[7, 5]", "use a base of the adapter's model"]),
    "another input": (loras(1), base(1, inputs=9), ["[6, 5]", "[6, 9]"]),
    "a kernel where there is none": (
        lora("lora_unet_blocks_0_attn_q", kernel=(3, 3)), base(1), ["[6, 5, 3, 3]", "[6, 5]"]),
    "slices that do not cover": (
        split("lora_unet_blocks_0_attn_q", parts=(0, 1)), base(1), ["slices of lora_unet_blocks_0_attn_q", "[4, 5]"]),
    "another fp8": (loras(1), {Q: ("F8_E4M3FNUZ", (OUT, IN), bytes(30))}, [Q, "F8_E4M3FNUZ", "BF16 version"]),
    "int8": (loras(1), {Q: ("I8", (OUT, IN), bytes(30))}, [Q, "I8", "BF16 version"]),
    "4 bits in bytes": (loras(1), {Q: ("U8", (15, 1), bytes(15))}, [Q, "U8", "BF16 version"]),
    "GPTQ": (
        loras(1), {"blocks.0.attn.q.qweight": ("I32", (1, OUT), 1), "blocks.0.attn.q.scales": ("F16", (1, OUT), 1)},
        ["packed (blocks.0.attn.q.qweight)", "BF16 version"]),
    **{
        f"scaled by {suffix}": (
            loras(1), {**base(1), f"blocks.0.attn.q{suffix}": ("F32", (), 1)},
            [Q, f"blocks.0.attn.q{suffix}", "BF16 version"])
        for suffix in (".scale_weight", ".weight_scale", ".weight_scale_inv", ".comfy_quant", ".weight.absmax")
    },
}  # fmt: skip


@pytest.mark.parametrize(("adapter", "weights", "words"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_by_name(adapter, weights, words, matched):
    with pytest.raises(LoraInspectError) as refused:
        matched(adapter, weights)
    assert "adapter.safetensors" in str(refused.value) or "base.safetensors" in str(refused.value)
    assert [word for word in words if word not in str(refused.value)] == []


def test_no_match_at_all_is_an_error_even_where_unmatched_ones_are_allowed(matched):
    with pytest.raises(LoraInspectError, match="no module matches"):
        matched(loras(1), {"other.weight": ("F32", (2, 2), 1)}, allowed=True)


def test_what_is_left_out_is_listed(matched):
    targets, left = matched({**WITH_TE, "stray": ("F32", (1,), 1)}, base(1), allowed=True)
    assert list(targets) == [Q]
    assert left == ["lora_unet_blocks_1_attn_q", *TE, "stray"]


def test_one_component_can_be_taken_alone(matched):
    assert len(matched(WITH_TE, base(2), only=("model",))[0]) == 2
    with pytest.raises(LoraInspectError, match="no component text_encoder_3; choose from model, text_encoder"):
        matched(WITH_TE, base(2), only=("text_encoder_3",))


def test_a_wan_adapter_on_another_size_is_told_by_size(matched):
    narrow = lora("lora_unet_blocks_0_self_attn_q", rank=1, out=1536, inputs=1536)
    wide = {"blocks.0.self_attn.q.weight": ("BF16", (5120, 5120), 1)}
    with pytest.raises(LoraInspectError, match=r"use a base of Wan .* 1\.3B, as this one is of Wan .* 14B"):
        matched(narrow, wide)
