"""AUTOMATIC1111's web UI: kohya's names of Stable Diffusion, and alpha/rank.

It finds these names in both layouts. It ignores keys that it does not find, with a line only in its debug log. It
refuses a file with a layer that it finds but has no kind of network for. A layer goes to the first kind of network that
finds all of its tensors; the other tensors of the layer are ignored. SD.Next's network modules come from these.

Sources: `networks.py`, `network*.py` and `lyco_helpers.py` in `extensions-builtin/Lora` of A1111;
`modules/lora/network*.py` of SD.Next. A1111's were run on small UNets with the layers of SD 1.5, SD 2 and SDXL, and on
their text encoders.
"""

from collections.abc import Iterator
from functools import cache
from itertools import repeat
from math import prod

from lora_inspect.architectures import by_name
from lora_inspect.architectures.patterns import layout_patterns, pattern_of
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    INFIXED,
    LEAVES,
    MISREADS,
    OTHER_AXIS,
    READ,
    SILENT,
    SLICED,
    TEXT_ENCODERS,
    WARNS,
    Exceptions,
    Given,
    Loader,
    LoadFailure,
    OfKind,
    Program,
    Refusal,
    Rule,
    ScaleOfFile,
    ScaleRule,
    Strangers,
    alpha_over_rank,
    one,
)
from lora_inspect.reading.adapter import Adapter

# In the order in which the kinds of networks are asked for a layer.
_ORDER = ("lora", "loha", "lycoris_ia3", "oft", "lycoris_boft", "lokr", "full", "norm", "old_glora", "glora")
# Of GLoRA it has the products of LyCORIS before 3, and fails at the layers of others, which it counts.
_GLORA = ("old_glora", "glora")
# The kinds without which a change is nobody's, and those that have no use for the other.
_OF_BIAS = {"full_bias": "full", "norm_bias": "norm"}
KINDS = {
    **dict.fromkeys((*_ORDER, *_OF_BIAS), COMPUTES),
    "lora_bias": LEAVES,
    # Their factors are spelled as those of others.
    **dict.fromkeys(("adalora", "kasa", "bdlora", "lokr_rows"), ""),
    # None of them takes a layer of any other kind.
    "": FAILS,
}
_MATRIX = 2


def exceptions(given: Given, takes_bias: bool = False, alone: str = FAILS) -> str | None:
    """Return the treatment of a contribution by its shapes and its module's changes.

    `takes_bias` says that a difference of the bias counts next to LoRA. `alone` is the treatment if no kind of network
    takes the module.
    """
    name, module = given.contribution.algorithm.name, given.module
    beside = {one.algorithm.name for one in module.contributions}
    if "norm" in beside and "norm_bias" not in beside:
        beside.discard("norm")
    if module.alpha is None:
        beside.difference_update(_GLORA)
    first = next((kind for kind in _ORDER if kind in beside), None)
    if first is None:
        return alone
    if name in _OF_BIAS:
        return None if first == _OF_BIAS[name] or (takes_bias and (name, first) == ("full_bias", "lora")) else LEAVES
    if name != first:
        return LEAVES
    if name == "glora":
        return LEAVES
    is_of_conv = any(len(info.shape) > _MATRIX for info in given.contribution.factors.values())
    return "" if name == "old_glora" and is_of_conv else None


def scale(of_glora: ScaleRule, others: ScaleRule = alpha_over_rank) -> ScaleOfFile:
    """Return the scale rule: a `.scale` tensor replaces the usual scale.

    The usual scale is that of `others`, and for GLoRA that of `of_glora`.
    """

    @OfKind
    def without_tensors(given: Given) -> float | None:
        return (of_glora if given.contribution.algorithm.name in _GLORA else others)(given)

    def found(given: Given) -> float | None:
        name = f"{given.module.name.key}.scale"
        checkpoint = given.adapter.checkpoint
        if name in checkpoint.tensors and given.contribution.has_scale:
            number = checkpoint.numbers([name])[name]
            return None if number is None else float(number)
        return without_tensors(given)

    def of_file(adapter: Adapter) -> ScaleRule:
        has_tensors = any(map(str.endswith, adapter.checkpoint.tensors, repeat(".scale")))
        return found if has_tensors else without_tensors

    return ScaleOfFile(of_file)


def has_biases(adapter: Adapter) -> bool:
    """Return True if a file has tensors of the name `bias`, which the programs add to the change of a weight."""
    return any(map(str.endswith, adapter.unclaimed, repeat(_BIAS)))


def with_biases(other: Exceptions, says: str, parted: tuple[str, ...] = ()) -> Exceptions:
    """Return the exceptions of a file that `has_biases`: those of `other` for layers without one.

    A bias of as many elements as the weight becomes a part of the change. A program leaves a layer with any other bias
    as it is, and `says` so. It does the same with each bias of layers that it has in parts, with the ends `parted`.
    """

    def found(given: Given) -> str | LoadFailure | Strangers | None:
        bias = given.adapter.checkpoint.tensors.get(given.module.name.key + _BIAS)
        if bias is None:
            return other(given)
        is_added = prod(bias.shape) == prod(size or 0 for size in given.contribution.shape)
        is_added = is_added and not given.module.name.body.endswith(parted)
        return MISREADS if is_added else Strangers(WARNS, says)

    return found


_BIAS = ".bias"
UNET = ("original", "diffusers")
# In diffusers' layout. It looks for an upsampler behind attentions where the first level of SD 1.5 has it.
_NOT_FOUND = ("conv_norm_out", "add_embedding_linear_1", "add_embedding_linear_2")
_BEHIND_ATTENTIONS = "up_blocks_0_upsamplers_0_conv"
# The ends of the names of convolutions, whose weights it fails to multiply by a vector: it counts such layers.
_CONVOLUTIONS = (
    *("_conv", "_op", "_conv1", "_conv2", "_conv_shortcut", "_in_layers_2", "_out_layers_3", "_skip_connection"),
    *("_conv_in", "_conv_out", "_unet_input_blocks_0_0", "_unet_out_2"),
)
_CLIP = "text_model.encoder.layers.{i}"
# The parts of an attention of OpenCLIP, which keeps the first three in one weight: it changes all four or none.
_PARTS = ("q_proj", "k_proj", "v_proj", "out_proj")
_OF_OPENCLIP = ("lora", "loha", "lokr", "full")


def _of_unet(given: Given) -> str | None:
    """Return the treatment of a contribution to a UNet of SD 1.5 or 2."""
    name, body = given.contribution.algorithm.name, given.module.name.body
    is_left = body in _NOT_FOUND or (name == "lycoris_ia3" and given.module.name.key.endswith(_CONVOLUTIONS))
    return LEAVES if is_left else exceptions(given)


def _of_sdxl(given: Given) -> str | None:
    return LEAVES if given.module.name.body == _BEHIND_ATTENTIONS else _of_unet(given)


def _of_openclip(given: Given) -> str | None:
    """Return the treatment of a contribution to an OpenCLIP.

    Each attention is one module there.
    """
    stem, attention, part = given.module.name.key.rpartition("self_attn_")
    if attention:
        if any(f"{stem}{attention}{other}" not in given.adapter.modules for other in _PARTS):
            return LEAVES
        if given.contribution.algorithm.name == "full_bias":
            return exceptions(given) if part == "out_proj" else LEAVES
        if given.contribution.algorithm.name not in _OF_OPENCLIP:
            return ""
    return exceptions(given)


_OF_ENCODER = OfKind(exceptions)
_LOADED = Rule(
    kinds=KINDS,
    scale=scale(of_glora=one),
    magnitudes={
        ".dora_scale output": OTHER_AXIS,
        ".dora_scale input": COMPUTES,
        **dict.fromkeys((".dora_layer.weight output", ".magnitude output", ".m output", ".m input"), LEAVES),
        **dict.fromkeys((".lora_magnitude_vector output", ".lora_magnitude_vector.weight output"), LEAVES),
    },
    says="Could not find a module type that would accept those keys",
)
# It takes the two factors out of what else a layer of these names has: alpha, and magnitudes.
_PAIR = _LOADED._replace(dialects=("peft",), scale=one, magnitudes=dict.fromkeys(_LOADED.magnitudes, LEAVES))
_ODD = _LOADED._replace(
    dialects=(SLICED, INFIXED, "diffusers-unet", "diffusers-text", "bare", "gguf"), kinds={"": FAILS}
)


_ERRORS = "Networks with errors"


class _Names(NamedTuple):
    """Names of layers that the program finds: prefixes, paths, and their exceptions."""

    prefixes: tuple[str, ...]
    paths: tuple[str, ...]
    exceptions: Exceptions


def _rules(*names: _Names) -> Iterator[Rule]:
    """Yield the rules of a family, with the only names that its pipeline finds."""
    for prefixes, paths, special in names:
        plain = _LOADED._replace(exceptions=special)
        biased = plain._replace(where=has_biases, exceptions=with_biases(special, _ERRORS), by=READ)
        odd = (rule._replace(exceptions=special) for rule in (_PAIR, _ODD))
        yield from (rule._replace(prefixes=prefixes, layouts=paths) for rule in (*odd, biased, plain))
    # What stands before the first dot is the name of the whole UNet.
    yield Rule(prefixes=("diffusion_model.",), says=_LOADED.says)
    yield Rule(layouts=(*UNET, TEXT_ENCODERS))
    yield Rule(prefixes=("lora_unet_", "oft_unet_"))


def _refused(family: str) -> Refusal:
    """Return a check for layers of the UNet with unknown keys only.

    The program refuses such a file.
    """

    def refused(adapter: Adapter) -> str | None:
        # With nothing but keys that nobody knows a layer is of no kind of network.
        names = {key.partition(".")[0] for key in adapter.unclaimed if "." in key}
        alone = [name for name in names - adapter.modules.keys() if name.startswith(_UNET_NAMES)]
        patterns = _patterns(family) if alone else frozenset[str]()
        is_found = any(pattern_of(name.removeprefix(_UNET_NAMES), "_") in patterns for name in alone)
        return _LOADED.says if is_found else None

    return refused


_UNET_NAMES = "lora_unet_"


@cache
def _patterns(family: str) -> frozenset[str]:
    """Return the names of the layers that the program finds in the UNet."""
    own = (layout for layout in by_name(family).layouts if not set(UNET).isdisjoint(layout.names))
    return frozenset(pattern for layout in own for pattern in layout_patterns(layout.named, "_"))


def _loader(family: str, *names: _Names) -> Loader:
    refuses = _refused(family)
    return Loader(tuple(_rules(*names)), Strangers(SILENT), (family,), embeddings=True, refuses=refuses)


PROGRAM = Program(
    name="a1111",
    title="AUTOMATIC1111's web UI",
    version="1.10.1",
    ran="2026-11-26",
    loaders=(
        _loader(
            "sd15",
            _Names(("lora_unet_",), UNET, _of_unet),
            _Names(("oft_unet_",), ("original",), _of_unet),
            _Names(("lora_te_", "lora_te1_"), (_CLIP,), _OF_ENCODER),
        ),
        _loader(
            "sd2",
            _Names(("lora_unet_",), UNET, _of_unet),
            _Names(("oft_unet_",), ("original",), _of_unet),
            _Names(("lora_te_",), (_CLIP,), _of_openclip),
        ),
        _loader(
            "sdxl",
            _Names(("lora_unet_",), UNET, _of_sdxl),
            _Names(("oft_unet_",), ("original",), _of_sdxl),
            _Names(("lora_te1_",), (_CLIP,), _OF_ENCODER),
            _Names(("lora_te2_",), (_CLIP,), _of_openclip),
        ),
    ),
    schemes=dict.fromkeys(("sd15", "sd2", "sdxl"), "kohya"),
)
