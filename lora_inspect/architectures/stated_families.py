"""The families that the metadata of a file, or the config beside it, states.

`ss_sd_model_name` states none: it is the name of the base's file, which may be any.
"""

import re
from collections.abc import Mapping, Sequence

from . import metadata_names

METADATA_KEYS = ("ss_base_model_version", "modelspec.architecture")
# sd-scripts writes its option --v2 into every file; only Stable Diffusion 2 is trained with it.
V2_KEY, V2_FAMILY = "ss_v2", "sd2"
# The repository of the base and the class of the model in an adapter's config of PEFT.
BASE_KEY, CLASS_KEY = "base_model_name_or_path", "base_model_class"
# The network modules of sd-scripts and musubi-tuner that train these families alone. `networks.lora` is one of either.
MODULE_KEY = "ss_network_module"
# OneTrainer writes this into every file, and trains these families alone.
ONETRAINER_KEY = "ot_branch"
OF_ONETRAINER = (
    *("sd15", "sd2", "sdxl", "sd3", "flux", "chroma", "flux2", "hunyuan_video", "hidream_i1", "qwen_image", "anima"),
    *("krea2", "z_image", "ernie_image", "ideogram4"),
)
# All that is read of the metadata.
STATING_KEYS = (*METADATA_KEYS, V2_KEY, MODULE_KEY, ONETRAINER_KEY, BASE_KEY, CLASS_KEY)
_PACKAGES = ("networks", "musubi_tuner.networks", "lora_inspect.networks")
_MODULES: Mapping[str, Sequence[str]] = {
    "lora_anima": ("anima",),
    "lora_ernie_image": ("ernie_image",),
    "lora_flux": ("flux", "chroma"),
    "lora_flux_2": ("flux2",),
    "lora_framepack": ("framepack",),
    "lora_hidream_o1": ("hidream_o1",),
    "lora_hunyuan_image": ("hunyuan_image",),
    "lora_hv_1_5": ("hunyuan_video_1_5",),
    "lora_ideogram4": ("ideogram4",),
    "lora_kandinsky": ("kandinsky5",),
    "lora_krea2": ("krea2",),
    "lora_ltx2": ("ltx2",),
    "lora_lumina": ("lumina2",),
    "lora_qwen_image": ("qwen_image",),
    "lora_sd15": ("sd15", "sd2"),
    "lora_sd3": ("sd3",),
    "lora_sdxl": ("sdxl",),
    "lora_wan": ("wan",),
    "lora_zimage": ("z_image",),
    "oft_flux": ("flux", "chroma"),
}


def named_by(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the families that the metadata names, by name, each with the value that names it."""
    named: dict[str, str] = {}
    for key in (*METADATA_KEYS, CLASS_KEY):
        value = metadata.get(key, "")
        plain = value.lower().removesuffix("/lora")
        for family, names in metadata_names() if plain else ():
            if plain in map(str.lower, names):
                named[family] = value
    return named


def trained_by(metadata: Mapping[str, str]) -> Sequence[str]:
    """Return the families trained by the network module in `ss_network_module`, or none if it may be any."""
    package, _, module = metadata.get(MODULE_KEY, "").rpartition(".")
    return _MODULES.get(module, ()) if package in _PACKAGES else ()


# A name on a hub, and no path of a machine.
_HUB_NAME = r"[A-Za-z0-9][\w.-]*/([A-Za-z0-9][\w.-]*)"


def base_of(metadata: Mapping[str, str]) -> str:
    """Return the name of the base's repository on a hub, lower-case and without its owner, or empty."""
    found = re.fullmatch(_HUB_NAME, metadata.get(BASE_KEY, ""))
    return found[1].lower() if found else ""


def agrees_with_v2(name: str, metadata: Mapping[str, str]) -> bool:
    """Return True unless `ss_v2` is there and contradicts the family `name`."""
    asked = metadata.get(V2_KEY, "").lower()
    return asked not in ("true", "false") or (asked == "true") == (name == V2_FAMILY)
