"""What `compat` offers for files where only shapes tell whether a conversion can be: the command runs, and mends."""

import json
import shlex

import pytest
import torch
from safetensors.torch import save_file

from lora_inspect.ops.compat import compat
from lora_inspect.programs.verdict import SAME

Q, K, V = (f"transformer.transformer_blocks.0.attn.to_{leaf}" for leaf in "qkv")
PARTS = {".dora_scale": (1, 3072), ".lora_A.weight": (2, 3072), ".lora_B.weight": (3072, 2)}


def loha(rank, out, inputs):
    return {f".hada_w{at}_{side}": (out, rank) if side == "a" else (rank, inputs) for at in (1, 2) for side in "ab"}


def written(tmp_path, shapes, says="wan"):
    numbers = torch.Generator().manual_seed(4)
    tensors = {key: torch.randn(shape, generator=numbers) for key, shape in shapes.items()}
    tensors |= {key: torch.tensor(2.0) for key in shapes if key.endswith(".alpha")}
    path = str(tmp_path / "adapter.safetensors")
    save_file(tensors, path, {"ss_base_model_version": says})
    return path


def mended(run, path, program):
    """The words of the command that is offered for a program; it has to make the file right there."""
    (verdict,) = compat(path, program).verdicts
    words = shlex.split(verdict.fix)[1:]
    assert run(*words).status == 0, words
    assert compat(words[-1], program).verdicts[0].verdict == SAME
    return words


@pytest.mark.parametrize(
    ("shapes", "is_near"),
    [
        ({".diff": (64, 64)}, True),
        # The rank is the product of both, and has to be below that of the layer.
        (loha(8, 64, 64), True),
        (loha(7, 64, 64), False),
    ],
)
def test_how_near_is_said_where_a_change_may_have_the_rank_of_its_layer(run, tmp_path, shapes, is_near):
    name = "lora_unet_blocks_0_self_attn_q"
    path = written(tmp_path, {name + suffix: shape for suffix, shape in shapes.items()})
    assert ("--max-error" in mended(run, path, "diffusers")) == is_near


def test_a_base_tells_whether_a_layer_is_a_convolution(tmp_path):
    shapes = {"lora_unet_blocks_0_self_attn_q" + suffix: shape for suffix, shape in loha(2, 32, 36).items()}
    (verdict,) = compat(written(tmp_path, shapes), "diffusers").verdicts
    assert "--base BASE --algorithm lora" in verdict.fix


def test_rows_that_cannot_be_put_together_are_not_offered_to_be(tmp_path):
    """A magnitude over inputs is of all rows of one layer, and the fused one has three times as many."""
    shapes = {name + suffix: shape for name in (Q, K, V) for suffix, shape in PARTS.items()}
    for verdict in compat(written(tmp_path, shapes, "flux1")).verdicts:
        assert verdict.fix is None or "--base" in verdict.fix or "--to comfyui" not in verdict.fix


@pytest.mark.parametrize(
    ("program", "width", "is_told"), [("musubi", 16, True), ("musubi", 6144, True), ("invokeai", 16, False)]
)
def test_names_that_several_families_have_are_offered_where_a_program_treats_all_alike(
    tmp_path, program, width, is_told
):
    """The layers of FLUX.2 have names of their own in diffusers, and those of FLUX.1 and others under musubi-tuner."""
    names = [f"transformer.transformer_blocks.0.attn.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out.0")]
    names.append("transformer.single_transformer_blocks.0.attn.to_out")
    shapes = {}
    for name in names:
        inputs = width * 4 if "single" in name else width
        shapes |= {f"{name}.lora_A.weight": (1, inputs), f"{name}.lora_B.weight": (width, 1)}
    (verdict,) = compat(written(tmp_path, shapes, ""), program).verdicts
    assert (verdict.fix is not None) == is_told


def test_what_the_config_says_of_biases_that_are_not_there_goes(run, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "bias": "lora_only"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    output = mended(run, str(folder), "vllm")[-1]
    with open(f"{output}/adapter_config.json") as file:
        assert json.load(file)["bias"] == "none"


def test_a_rank_that_no_setting_allows_is_not_offered_again(run, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(513, 8), f"{name}.lora_B.weight": torch.ones(8, 513)},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 513, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert compat(str(folder), "vllm").verdicts[0].fix is None
    assert "refuses rank 513" in run("convert", folder, "--to", "vllm", "-o", tmp_path / "out").refusal
