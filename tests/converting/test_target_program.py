"""What the programs of each scheme compute, as each of them did with such files; all else is refused by its name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

MODULE = "lora_unet_blocks_0_ffn_0"
SAYS = {"ss_base_model_version": "wan"}
LORA = {"lora_down.weight": (4, 8), "lora_up.weight": (12, 4), "alpha": 2.0}
LOHA = {"hada_w1_a": (12, 4), "hada_w1_b": (4, 8), "hada_w2_a": (12, 4), "hada_w2_b": (4, 8), "alpha": 2.0}
LOKR = {"lokr_w1": (4, 2), "lokr_w2_a": (3, 2), "lokr_w2_b": (2, 4), "alpha": 1.0}
GLORA = {"a1.weight": (4, 8), "a2.weight": (8, 4), "b1.weight": (4, 8), "b2.weight": (12, 4), "alpha": 2.0}
OFT = {"oft_blocks": (3, 4, 4)}
BOFT = {"oft_blocks": (1, 3, 4, 4)}
# Where ComfyUI changed the weight as a merge does here; musubi-tuner merges the first three alone.
COMPUTED = {
    "LoRA": (LORA, {"comfyui", "kohya", "musubi", "diffusers"}),
    "LoHa": (LOHA, {"comfyui", "kohya", "musubi"}),
    "LoKr": (LOKR, {"comfyui", "kohya", "musubi"}),
    "GLoRA": (GLORA, {"comfyui", "kohya"}),
    "OFT": (OFT | {"alpha": 0.0}, {"comfyui", "kohya"}),
    # ComfyUI takes alpha itself for the limit that is alpha times the rows, and passes over the gains.
    "OFT with a limit": (OFT | {"alpha": 0.5}, {"kohya"}),
    "OFT with gains": (OFT | {"alpha": 0.0, "rescale": (12, 1)}, {"kohya"}),
    "BOFT": (BOFT | {"alpha": 0.0}, {"comfyui", "kohya"}),
    "BOFT with gains": (BOFT | {"alpha": 0.0, "rescale": (12, 1)}, {"comfyui", "kohya"}),
    "BOFT with a limit": (BOFT | {"alpha": 0.5}, {"kohya"}),
    "a difference": ({"diff": (12, 8), "diff_b": (12,)}, {"comfyui", "kohya"}),
    "a bias beside LoRA": (LORA | {"diff_b": (12,)}, {"comfyui", "kohya"}),
    # ComfyUI, and whoever else reads both, keeps one of the two.
    "LoRA and a difference": (LORA | {"diff": (12, 8)}, set()),
    "(IA)3": ({"weight": (12,), "on_input": False}, {"kohya"}),
    "T-LoRA": (
        {"q_layer.weight": (4, 8), "p_layer.weight": (12, 4), "lambda_layer": (1, 4), "alpha": 4.0},
        set(),
    ),
}
SCHEMES = ("comfyui", "kohya", "musubi", "diffusers")


@pytest.fixture
def write(tmp_path):
    """A file with these factors of one module, by suffix: a shape, or a number."""

    def save(factors):
        numbers = torch.Generator().manual_seed(2)
        tensors = {
            f"{MODULE}.{suffix}": torch.randn(what, generator=numbers)
            if isinstance(what, tuple)
            else torch.tensor(what)
            for suffix, what in factors.items()
        }
        save_file(tensors, tmp_path / "a.safetensors", SAYS)
        return tmp_path / "a.safetensors"

    return save


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", COMPUTED)
def test_what_the_programs_compute(kind, scheme, write, run, tmp_path):
    factors, computing = COMPUTED[kind]
    ended = run("convert", write(factors), "--to", scheme, "-o", tmp_path / "o.safetensors", "--force")
    assert ended.status == (0 if scheme in computing else 1), ended.stderr
    if ended.status:
        assert MODULE in ended.stderr
        assert not (tmp_path / "o.safetensors").exists()


def test_two_changes_of_one_weight_are_named(write, run, tmp_path):
    """Trap 25."""
    ended = run("convert", write(LORA | {"diff": (12, 8)}), "--to", "comfyui", "-o", tmp_path / "o.safetensors")
    assert (ended.status, "has a full weight difference and LoRA for one weight" in ended.stderr) == (1, True), (
        ended.stderr
    )


def test_layers_that_peft_saved_whole_stay_with_peft(run, tmp_path):
    layer, head = "base_model.model.model.layers.0.self_attn.q_proj", "base_model.model.lm_head.weight"
    tensors = {f"{layer}.lora_A.weight": torch.ones(2, 8), f"{layer}.lora_B.weight": torch.ones(8, 2)}
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "modules_to_save": ["lm_head"],
    }
    (tmp_path / "in").mkdir()
    save_file(tensors | {head: torch.ones(10, 8)}, tmp_path / "in" / "adapter_model.safetensors")
    (tmp_path / "in" / "adapter_config.json").write_text(json.dumps(config))
    ended = run("convert", tmp_path / "in", "--to", "peft", "-o", tmp_path / "out")
    assert ended.status == 0, ended.stderr
    assert load_file(tmp_path / "out" / "adapter_model.safetensors").keys() == tensors.keys() | {head}


def test_a_bias_of_the_up_layer_is_in_no_file_of_theirs(write, run, tmp_path):
    ended = run("convert", write(LORA | {"lora_up.bias": (12,)}), "--to", "kohya", "-o", tmp_path / "o.safetensors")
    assert ended.status == 0, ended.stderr
    assert not any("lora_up.bias" in key for key in load_file(tmp_path / "o.safetensors"))


def test_the_way_out_to_plain_lora_is_named_where_it_leads_there(run, tmp_path):
    """No plain LoRA is on an embedding, whose weight is stored as (in, out)."""
    config = {"peft_type": "HIRA", "r": 4, "hira_alpha": 4, "target_modules": ["layer"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    named = {}
    for kind, sides in (("hira_A hira_B", ((4, 8), (12, 4))), ("hira_embedding_A hira_embedding_B", ((4, 12), (8, 4)))):
        keys = (f"base_model.model.layer.{suffix}" for suffix in kind.split())
        save_file(
            {key: torch.ones(shape) for key, shape in zip(keys, sides, strict=True)},
            tmp_path / "adapter_model.safetensors",
        )
        refusal = run("convert", tmp_path, "--to", "lycoris", "-o", tmp_path / "o.safetensors").refusal
        assert "HiRA" in refusal
        named[kind] = "--algorithm lora" in refusal
    assert list(named.values()) == [True, False]


def test_refused_component_is_offered_to_leave_out(tmp_path, run):
    """nunchaku loads no text encoder, and diffusers' names have no difference of T5's norms."""
    module, norm = "lora_unet_double_blocks_0_img_attn_proj", "lora_te3_encoder_block_0_layer_0_layer_norm"
    tensors = {f"{module}.lora_down.weight": torch.ones(1, 3072), f"{module}.lora_up.weight": torch.ones(3072, 1)}
    save_file(
        tensors | {f"{norm}.diff": torch.ones(4096)}, tmp_path / "in.safetensors", {"ss_base_model_version": "flux1"}
    )
    command = ("convert", tmp_path / "in.safetensors", "--to", "nunchaku", "-o", tmp_path / "out.safetensors")
    assert "leave text_encoder_3 out with --only model" in run(*command).refusal
    assert run(*command, "--only", "model").status == 0
