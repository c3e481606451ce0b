"""The names of cloneofsimo's lora, which numbers the layers of a model instead of naming them: `unet:17:up`.

Which layers these are is read before their names are, so that a module is called by its path here: `unet:` and that.
"""

from lora_inspect.schemes.record import MODEL, Scheme

CLONEOFSIMO = Scheme(
    name="cloneofsimo",
    prefixes={"unet:": MODEL, "text_encoder:": "text_encoder"},
    flat=False,
    suffixes={},
    carries_alpha=False,
)
