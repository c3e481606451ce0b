"""Which families the metadata of a file names, and which it denies.

`ss_sd_model_name` is no evidence: it is whatever the file of the base was called.
"""

from collections.abc import Mapping, Sequence

from . import said_names

METADATA_KEYS = ("ss_base_model_version", "modelspec.architecture")
# sd-scripts writes its option --v2 into every file; only Stable Diffusion 2 is trained with it.
V2_KEY, V2_FAMILY = "ss_v2", "sd2"
# The network modules of sd-scripts and musubi-tuner that train these families alone. `networks.lora` is one of either.
MODULE_KEY = "ss_network_module"
_PACKAGES = ("networks", "musubi_tuner.networks", "lora_inspect.networks")
_MODULES: Mapping[str, Sequence[str]] = {
    "lora_anima": ("anima",),
    "lora_flux": ("flux", "chroma"),
    "lora_flux_2": ("flux2",),
    "lora_framepack": ("framepack",),
    "lora_hidream_o1": ("hidream_o1",),
    "lora_hunyuan_image": ("hunyuan_image",),
    "lora_hv_1_5": ("hunyuan_video_1_5",),
    "lora_ideogram4": ("ideogram4",),
    "lora_kandinsky": ("kandinsky5",),
    "lora_krea2": ("krea2",),
    "lora_lumina": ("lumina2",),
    "lora_qwen_image": ("qwen_image",),
    "lora_sd3": ("sd3",),
    "lora_wan": ("wan",),
    "lora_zimage": ("z_image",),
    "oft_flux": ("flux", "chroma"),
}


def named_by(metadata: Mapping[str, str]) -> dict[str, str]:
    """The families that the metadata names, by name, each with the value that names it."""
    named: dict[str, str] = {}
    for key in METADATA_KEYS:
        value = metadata.get(key, "")
        plain = value.lower().removesuffix("/lora")
        for family, names in said_names() if plain else ():
            if plain in map(str.lower, names):
                named[family] = value
    return named


def trained_by(metadata: Mapping[str, str]) -> Sequence[str]:
    """The families that the network module trains which `ss_network_module` names; none where it may be any."""
    package, _, module = metadata.get(MODULE_KEY, "").rpartition(".")
    return _MODULES.get(module, ()) if package in _PACKAGES else ()


def agrees_with_v2(name: str, metadata: Mapping[str, str]) -> bool:
    """Whether `ss_v2`, where it is there, says of the family `name` what is right."""
    asked = metadata.get(V2_KEY, "").lower()
    return asked not in ("true", "false") or (asked == "true") == (name == V2_FAMILY)
