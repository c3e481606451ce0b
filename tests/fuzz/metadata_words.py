"""What the verbs of metadata are given beside a path: keys, globs, values, pictures and files of text."""

import random

import click

from fuzz import hostile, odd_numbers
from fuzz.contents import Files, metadata_at

ARGUMENTS = ("key", "keys", "pairs")
_PICTURE, _TEXT = "picture.png", "value.txt"
_GLOBS = ("only", "but")
OPTIONS = (*_GLOBS, "trigger_words", "title", "author", "description", "thumbnail")
# What lies beside the weights for these verbs.
SIDE_FILES: dict[str, bytes] = {
    _PICTURE: b"\x89PNG\r\n\x1a\n" + bytes(40),
    "picture.jpg": b"\xff\xd8\xff" + bytes(40),
    "picture.webp": b"RIFF\x00\x00\x00\x00WEBP" + bytes(40),
    "riff.webp": b"RIFF\x00\x00\x00\x00WAVE" + bytes(40),
    "large.png": b"\x89PNG\r\n\x1a\n" + bytes(1 << 20),
    _TEXT: "sketches, 表\nand more".encode(),
    "latin.txt": b"caf\xe9",
    "empty.txt": b"",
}
# Keys that decide nothing, and those that programs read.
_PLAIN = (
    "title", "ss_training_comment", "modelspec.title", "modelspec.trigger_phrase", "ssmd_keywords", "x",
    "ss_tag_frequency", "sshs_legacy_hash", "sshs_model_hash", "modelspec.hash_sha256", "modelspec.thumbnail",
)  # fmt: skip
_VALUES = ("", "a title", "0", "a=b", "=", "{}", '{"a": {"b": 1}}', "[]", "null", "x" * 5000)
_FILES = ("@value.txt", "@value.txt", "@latin.txt", "@empty.txt", "@large.png", "@@x", "@", "@missing", "@.",
          "@/dev/zero", "@../outside/secret.txt", "@a.safetensors")  # fmt: skip
_PATTERNS = ("*", "ss_*", "modelspec.*", "*hash*", "?", "[", "[!a]*", "**", "", "lora_inspect.*", "*" * 60 + "q")


def operands(source: random.Random, argument: click.Argument, path: str, files: Files) -> list[str]:
    """The keys, or the keys with their values, for the file at a path."""
    count = 1 if argument.nargs == 1 else source.choice((1, 1, 1, 2, 3))
    if argument.name == "pairs":
        return [_pair(source, path, files) for _ in range(count)]
    return [_key(source, path, files, with_globs=argument.nargs != 1) for _ in range(count)]


def value(source: random.Random, option: click.Option, files: Files) -> str:
    """What an option of these verbs is given."""
    if option.name in _GLOBS:
        return _key(source, "a.safetensors", files, with_globs=True)
    if option.name == "thumbnail":
        return source.choice(("picture.png", "picture.jpg", "picture.webp", *SIDE_FILES, "missing.png", "/dev/zero"))
    return _value(source)


def _key(source: random.Random, path: str, files: Files, with_globs: bool) -> str:
    present = metadata_at(path, files.contents)
    chance = source.random()
    if present and chance < 0.8:
        key = source.choice(present)
        return f"{key[: source.randrange(len(key) + 1)]}*" if with_globs and source.random() < 0.3 else key
    if with_globs and chance < 0.9:
        return source.choice(_PATTERNS)
    return source.choice((*_PLAIN, *hostile.METADATA_FIELDS, *hostile.WORDS))


def _pair(source: random.Random, path: str, files: Files) -> str:
    chance = source.random()
    if chance < 0.6:
        key = source.choice(_PLAIN)
    elif chance < 0.9:
        key = source.choice((*metadata_at(path, files.contents), *hostile.METADATA_FIELDS))
    else:
        key = source.choice(hostile.WORDS)
    sign = "=" if source.random() < 0.98 else ""
    return f"{key}{sign}{_value(source)}"


def _value(source: random.Random) -> str:
    chance = source.random()
    if chance > 0.9:
        return odd_numbers.text(source)
    return source.choice(_VALUES if chance < 0.6 else _FILES if chance < 0.75 else hostile.METADATA_VALUES)
