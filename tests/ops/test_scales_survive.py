"""`info` of every output reads the scale of its input, in every scheme and of every fixture that can be converted."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.reading.file_info import inspect, inspect_adapter
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reporting.file_record import as_json

FIXTURES = Path(__file__).parents[2] / "fixtures"
FILES = [
    *sorted(path.parent for path in FIXTURES.glob("*-peft-*/adapter_model.safetensors")),
    *sorted(path for path in FIXTURES.glob("*-lycoris-*/lycoris.safetensors")),
    *sorted(path for path in (FIXTURES / "synthetic").glob("*.safetensors") if not path.name.startswith("base")),
]
PREFIXES = {
    "kohya": "lora_unet_blocks_{}_to_q",
    "onetrainer": "lora_transformer_blocks_{}_to_q",
    "kohya text encoder": "lora_te1_text_model_encoder_layers_{}_self_attn_q_proj",
    "lycoris": "lycoris_blocks_{}_to_q",
    "comfyui": "diffusion_model.blocks.{}.to_q",
    "comfyui text encoder": "text_encoders.clip_l.transformer.text_model.encoder.layers.{}.self_attn.q_proj",
    "bare": "blocks.{}.to_q",
    "diffusers": "transformer.blocks.{}.to_q",
    "diffusers unet": "unet.blocks.{}.to_q",
    "diffusers text encoder": "text_encoder_2.text_model.encoder.layers.{}.self_attn.q_proj",
    "peft": "base_model.model.blocks.{}.to_q",
}
RANKS, ALPHAS = (4, 3, 4), (6.0, -2.0, 0.7)


def scales(path, settings=Settings()):  # noqa: B008 (frozen)
    record = as_json(inspect_adapter(open_checkpoint(str(path)), settings), modules=True)
    assert not [problem for problem in record["problems"] if problem["severity"] == "error"]
    return {module["module"]: module["scale"] for module in record["module_list"]}, record["rslora"]["value"]


def check(source, folder, settings=Settings()):  # noqa: B008 (frozen)
    record = as_json(inspect(str(source)))
    output = folder / ("out" if record["scheme"] == "peft" else "out.safetensors")
    convert_to_standard(str(source), str(output), ConvertOptions(keep_dora=True, settings=settings))
    before, _ = scales(source, settings)
    after, rslora = scales(output)
    assert after == pytest.approx(before, rel=2**-23)
    assert rslora is False
    return output


@pytest.mark.parametrize("source", FILES, ids=lambda path: path.relative_to(FIXTURES).as_posix())
def test_of_every_fixture(source, tmp_path):
    check(source, tmp_path)


@pytest.mark.parametrize("how", ["alphas", "no alphas", "flag", "config", "RS-LoRA config", "patterns"])
@pytest.mark.parametrize("scheme", PREFIXES)
def test_of_every_scheme(scheme, how, tmp_path):
    tensors, metadata = {}, {}
    ranks = (4, 4, 4) if "config" in how else RANKS
    for number, (rank, alpha) in enumerate(zip(ranks, ALPHAS, strict=True)):
        name = PREFIXES[scheme].format(number)
        tensors[f"{name}.lora_A.weight"] = torch.full((rank, 5), 0.5)
        tensors[f"{name}.lora_B.weight"] = torch.full((6, rank), 0.25)
        if how in ("alphas", "flag"):
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    if how == "flag":
        tensors["use_rslora_flag"] = torch.tensor(True)
    if "config" in how or how == "patterns":
        config = {"r": 4, "lora_alpha": 6, "use_rslora": how != "config"}
        if how == "patterns":
            config |= {"rank_pattern": {r".*\.1\..*|.*_1_.*": 3}, "alpha_pattern": {r".*\.2\..*|.*_2_.*": 0.7}}
        metadata["lora_adapter_metadata"] = json.dumps(config)
    save_file(tensors, tmp_path / "in.safetensors", metadata)
    settings = Settings()
    if scheme == "peft" and how in ("alphas", "no alphas"):
        settings = Settings(rslora=False, alpha=None if how == "alphas" else 6.0)
    if metadata and not scheme.startswith(("peft", "diffusers", "bare")):
        settings = Settings(alpha=6.0)  # names whose readers do not look at the config
    output = check(tmp_path / "in.safetensors", tmp_path, settings)
    assert scales(output) == scales(check_again(output, tmp_path))


def check_again(output, folder):
    again = folder / f"again_{output.name}"
    convert_to_standard(str(output), str(again), ConvertOptions())
    return again


def test_an_unknown_scale_is_refused_and_nothing_is_written(tmp_path):
    name = PREFIXES["peft"].format(0)
    save_file(
        {f"{name}.lora_A.weight": torch.ones(2, 5), f"{name}.lora_B.weight": torch.ones(6, 2)},
        tmp_path / "in.safetensors",
    )
    with pytest.raises(LoraInspectError, match="unknown"):
        convert_to_standard(str(tmp_path / "in.safetensors"), str(tmp_path / "out"), ConvertOptions())
    assert not (tmp_path / "out").exists()
