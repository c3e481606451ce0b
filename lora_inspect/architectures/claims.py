"""Which families the metadata of a file names, and which it denies.

`ss_sd_model_name` is no evidence: it is whatever the file of the base was called.
"""

from collections.abc import Mapping

from . import said_names

METADATA_KEYS = ("ss_base_model_version", "modelspec.architecture")
# sd-scripts writes its option --v2 into every file; only Stable Diffusion 2 is trained with it.
V2_KEY, V2_FAMILY = "ss_v2", "sd2"


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


def agrees_with_v2(name: str, metadata: Mapping[str, str]) -> bool:
    """Whether `ss_v2`, where it is there, says of the family `name` what is right."""
    asked = metadata.get(V2_KEY, "").lower()
    return asked not in ("true", "false") or (asked == "true") == (name == V2_FAMILY)
