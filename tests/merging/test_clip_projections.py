"""Projections of CLIP, which open_clip stores as parameters (in, out) and adapters address as Linear layers (out, in).

What is expected is computed in float64 on transformers' layout, which diffusers' converter makes of the base.
"""

from types import SimpleNamespace

import layouts
import pytest
import torch
from adapters import assert_within, dotted, expected, factors, kohya
from layouts import real
from safetensors.torch import load_file, save_file

# transformers warns of what PEFT asks it.
pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore::FutureWarning")]

WIDTH = 8
SINGLE_FILE = "conditioner.embedders.1.model."
LAYERS = ("text_projection", "text_model.encoder.layers.0.mlp.fc1")
# Where a file has the tower, and what underscored and dotted adapters call it.
PLACES = {
    "SDXL's second": (SINGLE_FILE, "lora_te2_", "text_encoder_2."),
    "the refiner's": ("conditioner.embedders.0.model.", "lora_te2_", "text_encoder_2."),
    "SD 2.x's": ("cond_stage_model.model.", "lora_te_", "text_encoder."),
    "ComfyUI's name for it": (SINGLE_FILE, "lora_te2_", "text_encoders.clip_g.transformer."),
    "a file of its own": ("", "lora_te2_", "text_encoder_2."),
}
# The same tower as transformers has it, by what stands before its paths.
TRANSFORMERS = {"": "lora_te2_", "text_encoder_2.": "lora_te2_", "text_encoders.clip_g.transformer.": "lora_te2_"}
OUTPUTS = {"square": WIDTH, "fewer outputs than inputs": WIDTH - 2}


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def place(request):
    return request.param


@pytest.fixture(params=OUTPUTS.values(), ids=OUTPUTS)
def outputs(request):
    return request.param


def open_clip(prefix=SINGLE_FILE, outputs=WIDTH, seed=0):
    block = f"{prefix}transformer.resblocks.0."
    shapes = {
        f"{prefix}text_projection": (WIDTH, outputs), f"{prefix}positional_embedding": (3, WIDTH),
        f"{prefix}token_embedding.weight": (5, WIDTH), f"{block}mlp.c_fc.weight": (4 * WIDTH, WIDTH),
        f"{block}mlp.c_fc.bias": (4 * WIDTH,),
    }  # fmt: skip
    return layouts.tensors(shapes, seed)


def in_transformers(base, prefix=SINGLE_FILE):
    """What diffusers' converter makes of the tower, as of SDXL's second encoder: of SD 2.x it drops the projection."""
    renamed = {SINGLE_FILE + name.removeprefix(prefix): value for name, value in base.items()}
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=WIDTH))
    return real.convert_open_clip_checkpoint(model, renamed, prefix=SINGLE_FILE)


def spelled(place, spell, adapter):
    _, flat, dots = place
    return spell(flat if spell is kohya else dots, adapter)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("spell", [kohya, dotted])
def test_the_projection_is_not_folded_untransposed(spell, dora, outputs, place, merged):
    prefix = place[0]
    base = open_clip(prefix, outputs)
    own = in_transformers(base, prefix)
    adapter = factors(own, LAYERS, dora)
    found = merged(base, spelled(place, spell, adapter), 0.5)
    assert found.keys() == base.keys()
    assert found[f"{prefix}text_projection"].shape == (WIDTH, outputs)
    assert_within(in_transformers(found, prefix), *expected(own, adapter, 0.5, interpolate=spell is kohya))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("prefix", TRANSFORMERS)
def test_a_base_in_the_names_of_transformers_has_it_as_a_linear_layer(prefix, dora, outputs, merged):
    own = in_transformers(open_clip(outputs=outputs))
    adapter = factors(own, LAYERS, dora)
    base = {f"{prefix}{name}": value for name, value in own.items()}
    found = merged(base, kohya(TRANSFORMERS[prefix], adapter))
    now = {name.removeprefix(prefix): value for name, value in found.items()}
    assert_within(now, *expected(own, adapter, 1.0, interpolate=True))


def encoder(own):
    """The class of transformers, with the projection that its layout of a base has."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    projection = own["text_projection.weight"]
    config = CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=len(projection), num_hidden_layers=1,
        num_attention_heads=1, vocab_size=5, max_position_embeddings=3, eos_token_id=4, bos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = CLIPTextModelWithProjection(config).requires_grad_(False)
    model.text_projection.weight.copy_(projection)
    return model


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_peft_merges_the_same_change_of_the_projection(dora, outputs, tmp_path, run):
    from peft import LoraConfig, get_peft_model

    base = open_clip("", outputs)
    model = get_peft_model(
        encoder(in_transformers(base, "")),
        LoraConfig(r=2, lora_alpha=3, target_modules=["text_projection"], use_dora=dora, init_lora_weights=False),
    )
    save_file(base, tmp_path / "base.safetensors")
    model.save_pretrained(tmp_path / "adapter")
    out = tmp_path / "out.safetensors"
    ended = run("merge", tmp_path / "base.safetensors", tmp_path / "adapter", "-o", out)
    assert ended.status == 0, ended.stderr
    meant = model.merge_and_unload().text_projection.weight
    torch.testing.assert_close(load_file(out)["text_projection"].T, meant, rtol=1e-5, atol=1e-5)


def test_diffusers_loads_the_same_change_of_the_projection(outputs, merged):
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin

    base = open_clip(outputs=outputs)
    own = in_transformers(base)
    model = encoder(own)
    adapter = kohya("lora_te2_", factors(own, LAYERS[:1]))
    # Its loader knows whose names they are by the last layer of attention.
    attention = "text_model.encoder.layers.0.self_attn.out_proj"
    beside = kohya("lora_te2_", factors({f"{attention}.weight": torch.ones(WIDTH, WIDTH)}, [attention]))
    loaded, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(adapter | beside)
    StableDiffusionXLLoraLoaderMixin.load_lora_into_text_encoder(loaded, alphas, model, prefix="text_encoder_2")
    states = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(5))
    meant = model.text_projection(states)
    found = states @ merged(base, adapter)[f"{SINGLE_FILE}text_projection"]
    torch.testing.assert_close(found, meant, rtol=1e-5, atol=1e-4)


def test_verify_takes_the_right_merge_and_not_the_one_that_is_untransposed(tmp_path, run):
    base, name = open_clip(), f"{SINGLE_FILE}text_projection"
    adapter = factors(in_transformers(base), LAYERS[:1])
    own = adapter["text_projection"]
    change = own.alpha / own.down.shape[0] * own.up @ own.down
    files = [tmp_path / f"{name}.safetensors" for name in ("found", "base", "adapter")]
    save_file(base, files[1])
    save_file(kohya("lora_te2_", adapter), files[2])
    save_file({**base, name: base[name] + change.T}, files[0])
    assert run("verify", *files).status == 0
    save_file({**base, name: base[name] + change}, files[0])
    ended = run("verify", *files)
    assert ended.status == 1
    assert "is merged transposed" in ended.stdout


def test_a_plain_lora_of_dora_is_of_the_projection_as_the_layer_is(outputs, merged, tmp_path, run):
    base = open_clip(outputs=outputs)
    own = in_transformers(base)
    adapter = factors(own, LAYERS, dora=True)
    save_file(base, tmp_path / "base.safetensors")
    save_file(kohya("lora_te2_", adapter), tmp_path / "dora.safetensors")
    out = tmp_path / "plain.safetensors"
    options = ("--base", tmp_path / "base.safetensors", "--rank", WIDTH, "--allow-loss", "-o", out, "--json")
    assert run("convert", tmp_path / "dora.safetensors", *map(str, options)).json["relative_error"]["max"] < 1e-5
    plain = load_file(out)
    for path, one in adapter.items():
        weight, key = own[f"{path}.weight"].double(), f"lora_te2_{path.replace('.', '_')}"
        meant = one.folded(own[f"{path}.weight"], 1.0, interpolate=True)[0] - weight
        up, down = (plain[f"{key}.lora_{side}.weight"].double() for side in ("up", "down"))
        change = plain[f"{key}.alpha"].double() / down.shape[0] * up @ down
        assert (change - meant).norm() < 1e-5 * meant.norm(), path


def test_a_difference_of_the_projection_is_that_of_the_layer(outputs, merged):
    base = open_clip(outputs=outputs)
    change = torch.randn(outputs, WIDTH, generator=torch.Generator().manual_seed(6))
    found = merged(base, {"lora_te2_text_projection.diff": change})
    torch.testing.assert_close(
        in_transformers(found)["text_projection.weight"], in_transformers(base)["text_projection.weight"] + change
    )


def test_taking_it_out_again_gives_the_base_bit_for_bit(outputs, merged, tmp_path, run):
    base = {name: value.bfloat16() for name, value in open_clip(outputs=outputs).items()}
    adapter = kohya("lora_te2_", factors(in_transformers(base), LAYERS))
    merged(base, adapter)
    again = tmp_path / "again.safetensors"
    files = [tmp_path / f"{name}.safetensors" for name in ("out", "adapter")]
    ended = run("unmerge", *files, "-o", again, "--base", tmp_path / "base.safetensors")
    assert ended.status == 0, ended.stderr
    assert all(torch.equal(value, base[name]) for name, value in load_file(again).items())


def test_the_option_does_not_contradict_what_open_clip_stores(merged):
    base = open_clip()
    adapter = kohya("lora_te2_", factors(in_transformers(base), LAYERS[:1]))
    said = merged(base, adapter, refused=True, options=("--transposed", "no"))
    assert (
        "text_projection is stored as (in, out) according to its architecture, but --transposed no contradicts" in said
    )


def test_a_positional_embedding_has_the_name_that_open_clip_gives_it(place, merged):
    prefix, flat, _ = place
    base = open_clip(prefix)
    change = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(7))
    found = merged(base, {f"{flat}text_model_embeddings_position_embedding.diff": change})
    torch.testing.assert_close(
        in_transformers(found, prefix)["text_model.embeddings.position_embedding.weight"],
        in_transformers(base, prefix)["text_model.embeddings.position_embedding.weight"] + change,
    )


PARAMETER = "visual.head"


def test_a_square_parameter_that_no_table_knows_is_not_taken_for_a_linear_layer(merged):
    base = layouts.tensors({PARAMETER: (WIDTH, WIDTH), "visual.fc.weight": (2 * WIDTH, WIDTH)}, 1)
    adapter = factors({f"{PARAMETER}.weight": base[PARAMETER]}, [PARAMETER])
    change = adapter[PARAMETER].alpha * adapter[PARAMETER].up @ adapter[PARAMETER].down
    said = merged(base, kohya("lora_unet_", adapter), refused=True)
    assert f"{PARAMETER} is square" in said
    assert "settle it with --transposed no or --transposed yes" in said
    for answer, meant in (("no", change), ("yes", change.T)):
        found = merged(base, kohya("lora_unet_", adapter), options=("--transposed", answer))
        torch.testing.assert_close(found[PARAMETER], base[PARAMETER] + meant)


def test_the_shape_tells_how_another_parameter_is_stored(merged):
    base = layouts.tensors({PARAMETER: (WIDTH, WIDTH - 2), "visual.fc.weight": (2 * WIDTH, WIDTH)}, 1)
    adapter = factors({f"{PARAMETER}.weight": base[PARAMETER].T}, [PARAMETER])
    change = adapter[PARAMETER].alpha * adapter[PARAMETER].up @ adapter[PARAMETER].down
    found = merged(base, kohya("lora_unet_", adapter))
    torch.testing.assert_close(found[PARAMETER], base[PARAMETER] + change.T)


def test_a_difference_of_another_parameter_is_as_the_parameter_is(merged):
    base = layouts.tensors({PARAMETER: (WIDTH, WIDTH), "visual.fc.weight": (2 * WIDTH, WIDTH)}, 1)
    change = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(8))
    found = merged(base, {f"lora_unet_{PARAMETER.replace('.', '_')}.diff": change})
    torch.testing.assert_close(found[PARAMETER], base[PARAMETER] + change)
