"""Dotted paths without any prefix, as DiffSynth-Studio, OneTrainer and several model authors write them."""

from lora_inspect.schemes.comfyui import COMFYUI
from lora_inspect.schemes.record import MODEL, Scheme

DOTTED = Scheme(
    name="dotted",
    prefixes={"": MODEL},
    flat=False,
    suffixes=COMFYUI.suffixes,
    carries_alpha=True,
)
