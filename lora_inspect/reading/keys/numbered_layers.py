"""Numbered layers of cloneofsimo's lora: `unet:17:up` is of the 18th layer that it adapts in the UNet.

The lookup walks the classes that the metadata name, in the order in which the model registers its modules, and their
layers in the same way. In Stable Diffusion 1.x and 2.x the middle block is registered last. The feed-forward layer is
registered between the two attentions by diffusers up to 0.12, and after them since; the shapes show the order. Sources:
`_find_modules` of cloneofsimo's lora, `UNet2DConditionModel` and `BasicTransformerBlock` of diffusers, `CLIPAttention`
of transformers.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.files.strict_json import parse_json
from lora_inspect.reading.keys.claims import claim
from lora_inspect.reading.keys.suffixes import ParsedKey
from lora_inspect.reading.model.evidence import RawProblem
from lora_inspect.reading.state import Reading
from lora_inspect.sentences import listed

_KEY = re.compile(r"(unet|text_encoder):([0-9]{1,6}):(down|up)")
_ROLES = ("down", "up")
_WAY_OUT = "write it in diffusers' names with the program that trained it"

# (out, in) of a layer, each as the name of a width and how many times that is.
_Side = tuple[str, int]


class _Layer(NamedTuple):
    """One layer by its path, with widths that a model shares between many places."""

    path: str
    out: _Side
    inputs: _Side


def name_layers(reading: Reading) -> Reading:
    """Claim the keys that number a layer as if they named it; a model with unknown layers becomes a problem."""
    checkpoint = reading.checkpoint
    known, findings = _numbered_keys(checkpoint.tensors, checkpoint.metadata)
    claims = claim(checkpoint.tensors, known)
    return reading._replace(claims=claims._replace(findings=(*findings, *claims.findings)))


def _numbered_keys(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]
) -> tuple[dict[str, ParsedKey], list[RawProblem]]:
    """Return the keys that number a layer as if they named it, and the problems of models without known layers."""
    pairs: dict[str, dict[int, dict[str, TensorInfo]]] = {}
    for key, info in tensors.items():
        if found := _KEY.fullmatch(key):
            pairs.setdefault(found[1], {}).setdefault(int(found[2]), {})[found[3]] = info
    named: dict[str, ParsedKey] = {}
    findings: list[RawProblem] = []
    for model, layers in pairs.items():
        paths = _paths(model, layers, metadata.get(model))
        if isinstance(paths, str):
            keys = tuple(info.name for number in layers.values() for info in number.values())[:5]
            message = (
                f"the {len(layers)} layers of {model} have numbers, as in files of cloneofsimo's lora, and {paths}"
            )
            findings.append(RawProblem("scheme-unknown", f"{message}; {_WAY_OUT}", keys))
            continue
        for number, path in enumerate(paths):
            for role, info in layers[number].items():
                named[info.name] = ParsedKey(f"{model}:{path}", f":{role}", (("lora", role),))
    return named, findings


def _paths(model: str, layers: Mapping[int, Mapping[str, TensorInfo]], said: str | None) -> list[str] | str:
    """Return the paths of the layers in the order of their numbers, or the reason why they are unknown."""
    if sorted(layers) != list(range(len(layers))):
        return f"the numbers are not 0 to {len(layers) - 1}"
    if single := next((number for number in layers.values() if len(number) < len(_ROLES)), None):
        return f"a layer has only {next(iter(single.values())).name}"
    known = _KINDS[model]
    classes = classes_of(said)
    if not classes or not classes <= known.classes:
        told = listed(sorted(classes)) or "no classes"
        return f"the metadata name {told}, and lora-inspect knows the order only for {listed(sorted(known.classes))}"
    shapes = [_features(layers[number]) for number in range(len(layers))]
    orders = (order for order in known.orders(classes, len(layers)) if _fits(order, shapes))
    # Without the layer between them, both are the same.
    fitting = {tuple(layer.path for layer in order) for order in orders}
    if len(fitting) != 1:
        return f"their shapes match no known order of the layers of {known.of}"
    return list(fitting.pop())


def classes_of(said: str | None) -> set[str]:
    """Return the names of classes in a list of JSON; none for anything else."""
    try:
        found = parse_json(said or "")
    except ValueError:
        return set()
    is_list = isinstance(found, list) and all(isinstance(name, str) for name in found)
    return set(found) if is_list else set()


def _features(pair: Mapping[str, TensorInfo]) -> tuple[int, int] | None:
    """Return (out, in) of a Linear layer; None for any other."""
    down, up = pair["down"].shape, pair["up"].shape
    return (up[0], down[1]) if len(down) == len(up) == 2 else None


def _fits(order: Sequence[_Layer], shapes: Sequence[tuple[int, int] | None]) -> bool:
    """Return True if the layers of an order have the shapes, with one number for each width."""
    widths: dict[str, int] = {}
    if len(order) != len(shapes):
        return False
    for layer, shape in zip(order, shapes, strict=True):
        for (width, times), size in zip((layer.out, layer.inputs), shape or (0, 0), strict=True):
            if size < 1 or size % times or widths.setdefault(width, size // times) != size // times:
                return False
    return True


def _unet_orders(classes: Collection[str], count: int) -> Iterator[list[_Layer]]:
    """Yield the orders of a UNet with attention on three of four levels, with two blocks down and three up."""
    down = [(f"down_blocks.{level}.attentions.{unit}", f"level {level}") for level in range(3) for unit in range(2)]
    up = [(f"up_blocks.{3 - level}.attentions.{unit}", f"level {level}") for level in (2, 1, 0) for unit in range(3)]
    for leaves in (("attn1", "ff", "attn2"), ("attn1", "attn2", "ff")):
        yield [
            layer
            for block, width in (*down, *up, ("mid_block.attentions.0", "middle"))
            for leaf in leaves
            for layer in _of_transformer(f"{block}.transformer_blocks.0", leaf, width, classes)
        ]


def _of_transformer(block: str, leaf: str, width: str, classes: Collection[str]) -> Iterator[_Layer]:
    own = (width, 1)
    if leaf == "ff":
        if "GEGLU" in classes:
            yield _Layer(f"{block}.ff.net.0.proj", (width, 8), own)
    elif {"Attention", "CrossAttention"} & set(classes):
        context = own if leaf == "attn1" else ("text", 1)
        yield _Layer(f"{block}.{leaf}.to_q", own, own)
        yield _Layer(f"{block}.{leaf}.to_k", own, context)
        yield _Layer(f"{block}.{leaf}.to_v", own, context)
        yield _Layer(f"{block}.{leaf}.to_out.0", own, own)


def _clip_orders(classes: Collection[str], count: int) -> Iterator[list[_Layer]]:
    """Yield the order of a text encoder with `count` layers, four in each block."""
    own = ("width", 1)
    names = ("k_proj", "v_proj", "q_proj", "out_proj")
    blocks = (f"text_model.encoder.layers.{block}.self_attn" for block in range(count // len(names)))
    yield [_Layer(f"{block}.{name}", own, own) for block in blocks for name in names]


class _Kind(NamedTuple):
    """A kind of model, its classes that may be adapted, and the orders that as many layers of some may have."""

    of: str
    classes: frozenset[str]
    orders: Callable[[Collection[str], int], Iterable[Sequence[_Layer]]]


_KINDS = {
    "unet": _Kind("Stable Diffusion 1.x or 2.x", frozenset(("CrossAttention", "Attention", "GEGLU")), _unet_orders),
    "text_encoder": _Kind("a CLIP text encoder", frozenset(("CLIPAttention",)), _clip_orders),
}
