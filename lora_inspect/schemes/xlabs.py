"""The names of XLabs' own training of FLUX.1, which name attention processors and not layers.

The `xlabs` layout of FLUX.1 maps them to layers. The names have no place for an alpha. Source: XLabs' `x-flux`, and
`_convert_xlabs_flux_lora_to_diffusers` of diffusers.
"""

from lora_inspect.schemes.record import MODEL, Scheme

_LAYERS = ("qkv_lora1", "qkv_lora2", "proj_lora1", "proj_lora2", "qkv_lora", "proj_lora")
_SUFFIXES = {
    f".processor.{layer}.{side}.weight": (side, f".processor.{layer}") for layer in _LAYERS for side in ("down", "up")
}

XLABS = Scheme(
    name="xlabs",
    prefixes={"": MODEL, "diffusion_model.": MODEL},
    flat=False,
    suffixes={},
    carries_alpha=False,
    marks=tuple(_SUFFIXES),
    hiding=_SUFFIXES,
)
