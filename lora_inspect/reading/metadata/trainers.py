"""The program that wrote a file, by its metadata and by tensors that only it writes."""

from collections.abc import Collection, Mapping

from lora_inspect.files.strict_json import parse_json
from lora_inspect.reading.model.evidence import DORA_FLAG, LOKR_FLAG, RSLORA_FLAG
from lora_inspect.reading.peft.peft_config import EMBEDDED_KEY

# Our own training network, with its version.
NETWORK_KEY = "lora_inspect.network"

# `ss_base_model_version` values that musubi-tuner writes and sd-scripts does not.
_MUSUBI_MODELS = (
    "hunyuan_video", "wan", "framepack", "flux_kontext", "flux_2", "qwen_image", "kandinsky5", "z_image",
    "hidream_o1", "ideogram4", "krea2",
)  # fmt: skip


def is_musubi(metadata: Mapping[str, str]) -> bool:
    """Return True if musubi-tuner trains on the base: its networks share names with those of sd-scripts."""
    return metadata.get("ss_base_model_version", "").startswith(_MUSUBI_MODELS)


def find_trainer(
    metadata: Mapping[str, str], keys: Collection[str], has_peft_config: bool, is_of_mlx: bool = False
) -> str | None:
    """Return the name of the program, or None if nothing shows it."""
    if metadata.get(NETWORK_KEY):
        return "lora-inspect networks"
    if RSLORA_FLAG in keys or DORA_FLAG in keys or LOKR_FLAG in keys:
        return "blissful-tuner"
    module = metadata.get("ss_network_module", "")
    if module.startswith("lycoris"):
        return "LyCORIS"
    if any(key.startswith("ot_") for key in metadata):
        return "OneTrainer"
    if _software(metadata) == "ai-toolkit":
        return "ai-toolkit"
    if is_musubi(metadata):
        return "musubi-tuner"
    if module.startswith("networks.") or "ss_sd_scripts_commit_hash" in metadata:
        return "sd-scripts"
    if EMBEDDED_KEY in metadata:
        return "diffusers"
    if is_of_mlx:
        return "mlx-lm"
    return "PEFT" if has_peft_config else None


def _software(metadata: Mapping[str, str]) -> str | None:
    try:
        software = parse_json(metadata.get("software", "null"))
    except ValueError:
        return None
    name = software.get("name") if isinstance(software, dict) else None
    return name if isinstance(name, str) else None
