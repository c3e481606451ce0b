"""The dictionary of names that ComfyUI makes of a model and Forge in an older form: what is in it, and what is not.

A name counts where it is in the dictionary, whatever the spelling of the factors behind it. Sources: `comfy/lora.py`
and `comfy/utils.py` of ComfyUI, `packages_3rdparty/comfyui_lora_collection` of Forge.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product

from lora_inspect.architectures import by_name
from lora_inspect.architectures.record import is_parameter
from lora_inspect.architectures.text_encoders import ROOTS
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.programs.record import BASE_NORM, COMPUTES, LEAVES, TEXT_ENCODERS, FileTest, Given, Rule
from lora_inspect.reading.adapter import Adapter

# Both divide by the norms of the base where the magnitudes are of outputs.
MAGNITUDES: Mapping[str, str] = {
    ".dora_scale output": BASE_NORM,
    ".dora_scale input": COMPUTES,
    **dict.fromkeys((".dora_layer.weight output", ".magnitude output", ".m output", ".m input"), LEAVES),
    **dict.fromkeys((".lora_magnitude_vector output", ".lora_magnitude_vector.weight output"), LEAVES),
}
# A key by which both know the control adapters of FLUX.1's own makers, and rename all keys of them.
BFL_CONTROL = ("img_in.lora_A.weight", "single_blocks.0.norm.key_norm.scale")


class Names(NamedTuple):
    """Names of the `families` that are in the dictionary: `prefixes` before the paths of a `layout`.

    `lacks` are the paths that are not there.
    """

    families: tuple[str, ...]
    layout: str
    prefixes: tuple[str, ...]
    lacks: tuple[str, ...] = ()


OWN = ("diffusion_model.", "lora_unet_")
UNETS = ("sd15", "sd2", "sdxl")
# The attentions of a UNet in diffusers' names, which are in the dictionary by the names of their processors alone.
_PLACES = ("down_blocks.{i}.attentions.{i}", "mid_block.attentions.0", "up_blocks.{i}.attentions.{i}")
_ATTENTIONS = tuple(
    f"{place}.transformer_blocks.{{i}}.{attention}.{leaf}"
    for place, attention, leaf in product(_PLACES, ("attn1", "attn2"), ("to_q", "to_k", "to_v", "to_out.0"))
)
OF_UNETS = (
    Names(UNETS, "original", OWN),
    Names(UNETS, "diffusers", ("lora_unet_", "lycoris_")),
    Names(UNETS, "diffusers", ("", "unet."), _ATTENTIONS),
)
# Norms of FLUX.1 and of what was made of it, whose weights are no `.weight` in older code.
NORMS = tuple(
    f"{block}.norm.{which}_norm"
    for block in ("double_blocks.{i}.img_attn", "double_blocks.{i}.txt_attn", "single_blocks.{i}")
    for which in ("query", "key")
)
# Text encoders, by the root of their blocks in place of a layout.
CLIP, T5 = "text_model.encoder.layers.{i}", "encoder.block.{i}.layer.{i}"
FIRST = ("lora_te_", "lora_te1_", "text_encoder.")
SECOND = ("lora_te2_", "text_encoder_2.")


def names_of(family: str, names: Iterable[Names]) -> list[Names]:
    """Those of one family."""
    return [one._replace(families=(family,)) for one in names if family in one.families]


def rules_of(names: Iterable[Names], loaded: Rule) -> Iterator[Rule]:
    """The rules of these names. Parameters that are no weights have one under ComfyUI's own prefix alone."""
    for families, layout, prefixes, lacks in names:
        for family in families:
            norms = (path for one in by_name(family).layouts if layout in one.names for path in one.norms)
            parameters = tuple(path for path in norms if is_parameter(path))
            of_layout = loaded._replace(families=(family,), layouts=(layout,))
            for prefix in prefixes:
                own = () if prefix == "diffusion_model." else parameters
                yield of_layout._replace(prefixes=(prefix,), lacks=(*lacks, *own))


def left_of(names: Iterable[Names]) -> Iterator[Rule]:
    """The rules of what is not in the dictionary, though it is a path of the model or of an encoder that was tried."""
    tried = {one.layout in ROOTS for one in names}
    if False in tried:
        yield Rule(layouts=("original", "comfyui", "diffusers", "xlabs"))
    if True in tried:
        yield Rule(layouts=(TEXT_ENCODERS,))


def holds(*keys: str) -> FileTest:
    """Whether a file holds all these keys."""

    def test(adapter: Adapter) -> bool:
        return all(key in adapter.checkpoint.tensors for key in keys)

    return test


def families_of(names: Iterable[Names]) -> tuple[str, ...]:
    """The families of the names, once."""
    return tuple(dict.fromkeys(family for one in names for family in one.families))


def is_replaced(given: Given, order: tuple[str, ...]) -> bool:
    """Whether another change of the module, behind this one in `order`, takes its place."""
    algorithm = given.contribution.algorithm.name
    beside = {one.algorithm.name for one in given.module.contributions}
    return algorithm in order and not beside.isdisjoint(order[order.index(algorithm) + 1 :])
