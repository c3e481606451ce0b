"""Weights that were cast to eight bits, without a scale."""

from lora_inspect.codecs.record import Codec
from lora_inspect.files.dtypes import FP8

CODEC = Codec("plain_fp8", "fp8", FP8)
