"""Weights that are stored as the numbers that they are."""

from lora_inspect.codecs.record import Codec
from lora_inspect.files.safetensors.dtypes import PLAIN_FLOATS

CODEC = Codec("plain", "plain floats", PLAIN_FLOATS)
