"""What sd-scripts made of files on small models, with its own code of 2026-02-16.

That code cannot be installed here, so what it did is written out: `create_network_from_weights` and `merge_to` of the
networks of SD 1.5, SDXL, SD 3, FLUX.1, Chroma, Lumina and Anima, and `flux_merge_lora.py`.
"""

import pytest
import torch
from adapters import KINDS, adapter
from safetensors.torch import save_file

from lora_inspect.architectures import by_name
from lora_inspect.ops.compat import compat

pytestmark = pytest.mark.slow

SAME, STRENGTH, LOST = "same meaning", "wrong strength", "DoRA lost"
PARTLY, NOTHING, REFUSED = "partly loaded", "nothing loaded", "refused"
LAYERS = {
    "anima": ("blocks.0.self_attn.q_proj", "blocks.1.mlp.layer1", "final_layer.linear"),
    "chroma": ("double_blocks.0.img_attn.proj", "single_blocks.1.linear2"),
    "flux": ("double_blocks.0.img_attn.proj", "single_blocks.1.linear2", "vector_in.in_layer"),
    "lumina2": ("layers.0.attention.qkv", "context_refiner.0.feed_forward.w1", "final_layer.linear", "cap_embedder.1"),
    "sd15": (
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
    ),
    "sd3": ("joint_blocks.0.context_block.attn.qkv", "joint_blocks.1.x_block.mlp.fc1"),
    "sdxl": (
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        "output_blocks.0.1.transformer_blocks.1.ff.net.2",
    ),
}
OUTSIDE = {
    "anima": "llm_adapter.out_proj",
    "chroma": "final_layer.linear",
    "flux": "final_layer.linear",
    "sd15": "time_embedding.linear_1",
    "sdxl": "label_emb.0.0",
}
WITHOUT_ALPHA = ("sd15", "sdxl")
# By kind, with an alpha; without, LoRA is refused in the families that ask for one.
KINDS_OF = {
    "lora": SAME,
    "lora A/B": NOTHING,
    "rslora flag": STRENGTH,
    "dora_scale of outputs": LOST,
    "dora_scale of inputs": LOST,
    "dora_layer": LOST,
    "magnitude vector": NOTHING,
    "loha": NOTHING,
    "lokr whole": NOTHING,
    "lokr low-rank": NOTHING,
    "oft small blocks": NOTHING,
    "ia3": NOTHING,
    "full": NOTHING,
    "full and bias": NOTHING,
    "bias beside lora": PARTLY,
    "bias of the up layer": PARTLY,
}


def spelled(prefix):
    return lambda path: prefix + (path if prefix.endswith(".") else path.replace(".", "_"))


@pytest.fixture
def judged(tmp_path):
    def judge(family, kind="lora", has_alpha=True, prefix="lora_unet_", paths=None, more=None, program="sd-scripts"):
        numbers = torch.Generator().manual_seed(2)
        layers = {
            path: {"weight": torch.randn(16, 16, generator=numbers), "bias": torch.randn(16, generator=numbers)}
            for path in paths or LAYERS[family]
        }
        tensors, _ = adapter(KINDS[kind], layers, spelled(prefix), has_alpha)
        file = tmp_path / "adapter.safetensors"
        save_file({**tensors, **(more or {})}, file, {"ss_base_model_version": by_name(family).metadata_names[0]})
        (found,) = compat(str(file), program).verdicts
        return found

    return judge


@pytest.mark.parametrize("has_alpha", [True, False], ids=["alpha", "none"])
@pytest.mark.parametrize("kind", KINDS_OF)
@pytest.mark.parametrize("family", LAYERS)
def test_a_network_of_the_file(judged, family, kind, has_alpha):
    found, verdict = judged(family, kind, has_alpha), KINDS_OF[kind]
    if not has_alpha and verdict != NOTHING and family not in WITHOUT_ALPHA:
        verdict = REFUSED
        assert "KeyError" in found.says
    elif not has_alpha and verdict == STRENGTH:
        # Without an alpha the flag changes nothing.
        verdict = SAME
    assert (found.verdict, found.by) == (verdict, "run")
    assert found.silent == (verdict not in (SAME, REFUSED))
    assert found.factor == {STRENGTH: 0.5, NOTHING: None, REFUSED: None}.get(verdict, 1.0)


@pytest.mark.parametrize("family", OUTSIDE)
def test_layers_that_it_does_not_adapt_are_left(judged, family):
    assert judged(family, paths=(*LAYERS[family], OUTSIDE[family])).verdict == PARTLY


@pytest.mark.parametrize(
    "prefix", ["diffusion_model.", "transformer.", "unet.", "base_model.model.", "lycoris_", "lora_transformer_"]
)
@pytest.mark.parametrize("family", LAYERS)
def test_other_names_are_not_found(judged, family, prefix):
    found = judged(family, prefix=prefix)
    assert (found.verdict, found.silent) == (NOTHING, True)


@pytest.mark.parametrize("has_alpha", [True, False], ids=["alpha", "none"])
def test_sdxl_is_found_under_diffusers_names_too(judged, has_alpha):
    paths = ("up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.0.resnets.0.time_emb_proj")
    assert judged("sdxl", "lora", has_alpha, paths=paths).verdict == SAME
    assert judged("sdxl", "rslora flag", has_alpha, paths=paths).verdict == (STRENGTH if has_alpha else SAME)


ENCODER = "text_model_encoder_layers_0_self_attn_q_proj"


@pytest.mark.parametrize(("family", "prefix"), [("sdxl", "lora_te1_"), ("sdxl", "lora_te2_"), ("sd15", "lora_te_")])
def test_text_encoders_get_lora_of_kohyas_spelling_alone(judged, family, prefix):
    name, width = prefix + ENCODER, 1280 if prefix == "lora_te2_" else 768
    down, up, alpha = torch.ones(4, width), torch.ones(width, 4), {f"{name}.alpha": torch.tensor(2.0)}
    pair = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    loha = {f"{name}.hada_w{at}_{side}": own for at in (1, 2) for side, own in (("a", up.clone()), ("b", down.clone()))}
    for more, verdict in (
        ({**pair, **alpha}, SAME),
        (pair, SAME),
        ({**loha, **alpha}, PARTLY),
        ({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, **alpha}, PARTLY),
    ):
        found = judged(family, more=more)
        assert (found.verdict, found.silent, found.by) == (verdict, verdict == PARTLY, "run")


def test_text_encoders_of_flux_were_read(judged):
    name = f"lora_te1_{ENCODER}"
    pair = {f"{name}.lora_down.weight": torch.ones(4, 768), f"{name}.lora_up.weight": torch.ones(768, 4)}
    found = judged("flux", more={**pair, f"{name}.alpha": torch.tensor(2.0)})
    assert (found.verdict, found.by) == (SAME, "read")


MERGE = "sd-scripts-flux-merge"


@pytest.mark.parametrize("has_alpha", [True, False], ids=["alpha", "none"])
@pytest.mark.parametrize("kind", KINDS_OF)
def test_the_merge_of_flux_takes_every_layer_of_the_base(judged, kind, has_alpha):
    paths = (*LAYERS["flux"], OUTSIDE["flux"])
    found = judged("flux", kind, has_alpha, paths=paths, program=MERGE)
    verdict = SAME if KINDS_OF[kind] == STRENGTH and not has_alpha else KINDS_OF[kind]
    assert (found.verdict, found.by) == (verdict, "run")
    assert found.silent == (verdict == STRENGTH)


@pytest.mark.parametrize("kind", ["lora", "lora A/B", "rslora flag"])
@pytest.mark.parametrize(
    "prefix", ["diffusion_model.", "transformer.", "base_model.model.", "lycoris_", "lora_transformer_"]
)
def test_the_merge_of_flux_finds_no_other_names(judged, prefix, kind):
    found = judged("flux", kind, prefix=prefix, program=MERGE)
    assert (found.verdict, found.silent) == (NOTHING, False)


def test_the_merge_of_flux_takes_text_encoders_that_it_is_given(judged):
    names = {
        "--clip_l": (f"lora_te1_{ENCODER}", 768),
        "--t5xxl": ("lora_te3_encoder_block_0_layer_0_SelfAttention_k", 4096),
    }
    for option, (name, width) in names.items():
        pair = {f"{name}.lora_down.weight": torch.ones(4, width), f"{name}.lora_up.weight": torch.ones(width, 4)}
        for more in (pair, {**pair, f"{name}.alpha": torch.tensor(2.0)}):
            found = judged("flux", more=more, program=MERGE)
            assert (found.verdict, found.by) == (SAME, "run")
            assert found.says == f"with {option}, as it leaves the text encoder out otherwise"
