"""Values as they are given on a command line: text, the content of a file, a picture. Standard library only."""

import json
from collections.abc import Mapping

from lora_inspect.errors import LoraInspectError
from lora_inspect.escape import shortened
from lora_inspect.files.input_file import read_whole
from lora_inspect.files.strict_json import METADATA_CHARACTERS, is_unicode, parse_json

# What begins the name of a file that holds the value; a value of its own that begins so has it twice.
_FROM_FILE = "@"
# In model lists a picture is an icon: ModelSpec recommends 256 by 256.
THUMBNAIL_BYTES = 1 << 20
_PICTURES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"RIFF": "image/webp",
}
# Keys whose readers parse them.
_JSON_KEYS = frozenset(
    (
        "_quantization_metadata",
        "lora_adapter_metadata",
        "lora_inspect.converted",
        "lora_inspect.folded",
        "lora_inspect.magnitude_norms",
        "lora_inspect.merged",
        "ot_config",
        "software",
        "ss_alpha_pattern",
        "ss_bucket_info",
        "ss_dataset_dirs",
        "ss_datasets",
        "ss_network_args",
        "ss_rank_pattern",
        "ss_reg_dataset_dirs",
        "ss_tag_frequency",
        "training_info",
    )
)


def parse_pair(text: str) -> tuple[str, str]:
    """The key and the value of KEY=VALUE; ValueError where there is no sign between them."""
    key, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"{text!r} has no = between a key and a value")
    return key, read_value(value)


def read_value(text: str) -> str:
    """The value itself, or with @FILE the text in that file; LoraInspectError where that cannot be read as text."""
    if not text.startswith(_FROM_FILE):
        return text
    name = text[len(_FROM_FILE) :]
    if name.startswith(_FROM_FILE):
        return name
    content, _ = read_whole(name, 4 * METADATA_CHARACTERS, way_out="name a shorter text")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise LoraInspectError(f"{name}: it is no text in UTF-8; name a text file.") from None


def thumbnail(path: str) -> str:
    """The data URI of a small picture; LoraInspectError where the file is none that model lists show, or is large."""
    content, _ = read_whole(path, THUMBNAIL_BYTES, way_out="save the picture smaller, 256 by 256")
    kind = next((kind for start, kind in _PICTURES.items() if content.startswith(start)), None)
    if kind is None or (kind == "image/webp" and content[8:12] != b"WEBP"):
        raise LoraInspectError(f"{path}: it is no JPEG, PNG or WebP; save the picture as one of these, 256 by 256.")
    import base64

    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def check_values(file: str, values: Mapping[str, str]) -> None:
    """Raises LoraInspectError for what no header can hold, and for a text under a key that holds JSON."""
    for key, value in values.items():
        if not is_unicode(key) or not is_unicode(value):
            raise LoraInspectError(f"{file}: the value of {shortened(key)} is no text in UTF-8; give it as @FILE.")
        if key in _JSON_KEYS and not _is_json(value):
            raise LoraInspectError(
                f"{file}: {key} holds JSON, and {shortened(json.dumps(value))} is no object or list; mend it, or give "
                "it as @FILE."
            )


def _is_json(value: str) -> bool:
    try:
        return isinstance(parse_json(value), (dict, list))
    except ValueError:
        return False
