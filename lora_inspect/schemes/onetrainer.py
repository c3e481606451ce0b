"""The underscored names of OneTrainer over those of diffusers: `lora_transformer_`, `lora_unet_`, `lora_te1_`, ….

Source: `convert_to_mixture` in `modules/util/convert_lora_util.py` of OneTrainer, and `normalize_various` beside it.
"""

from lora_inspect.architectures.record import Architecture
from lora_inspect.schemes.kohya import KOHYA
from lora_inspect.schemes.record import Scheme
from lora_inspect.schemes.writing import Writing, first_of


def _encoders(family: Architecture) -> tuple[str, ...]:
    return tuple(f"lora_te{number}_" for number, _ in enumerate(family.text_encoders, 1))


ONETRAINER = Scheme(
    name="onetrainer",
    prefixes={},  # a file of it is read as one of kohya's names
    flat=True,
    suffixes=KOHYA.suffixes,
    carries_alpha=True,
    writing=Writing(
        title="OneTrainer",
        layout=lambda family: first_of(family, "diffusers"),
        prefix="lora_{pipeline}_",
        encoders=_encoders,
        algorithms=frozenset(("lora", "loha", "lokr")),
        embeddings=True,
    ),
)
