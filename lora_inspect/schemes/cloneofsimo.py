"""The names of cloneofsimo's lora, which numbers the layers of a model instead of naming them: `unet:17:up`.

Reading finds these layers before their names, so a module has its path here: `unet:` and the path.
"""

from lora_inspect.schemes.record import MODEL, Scheme

CLONEOFSIMO = Scheme(
    name="cloneofsimo",
    prefixes={"unet:": MODEL, "text_encoder:": "text_encoder"},
    flat=False,
    suffixes={},
    carries_alpha=False,
)
