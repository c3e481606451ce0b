"""Kinds of adapters of a family, in the names of one scheme."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from lora_inspect.architectures.record import Architecture, Layout, is_parameter
from lora_inspect.architectures.text_encoders import CLIP
from lora_inspect.reading.scale.dora_evidence import NORMS_KEY, NormsRecord
from lora_inspect.schemes.record import Scheme
from program_files.written import A_B, ALPHA, DOWN_UP, RANK, WIDTH, File, Modules, Shape, Tensors, layers, named, plain

Suffixes = Mapping[str, tuple[Shape, float]]
# What stands in a shape for the number of inputs, and for half of it.
_IN, _HALF_IN = -1, -2
NOTHING: Suffixes = MappingProxyType({})


def _convolutions(layout: Layout) -> Iterator[str]:
    ends = ("conv1", "conv2", "in_layers.2", "out_layers.3")
    yield from (path for path in layout.paths if path.endswith(ends))


def _norms(layout: Layout) -> Iterator[str]:
    yield from (path for path in layout.norms if not is_parameter(path))


def _parameters(layout: Layout) -> Iterator[str]:
    yield from (path for path in layout.norms if is_parameter(path))


def _encoder(scheme: Scheme, family: Architecture) -> Tensors:
    """A layer of the family's first text encoder, where that is a CLIP which the scheme has a name for."""
    writing, first = scheme.writing, family.text_encoders[:1]
    prefix = next(iter(writing.encoders(family)), "") if writing and [one.kind for one in first] == [CLIP] else ""
    module = prefix + scheme.module("text_model.encoder.layers.0.self_attn.q_proj", "")
    return _lora(scheme, {module: WIDTH}, scheme.carries_alpha) if prefix else {}


def _lora(scheme: Scheme, modules: Modules, has_alpha: bool) -> Tensors:
    return plain(modules, A_B if scheme.dialect == "peft" else DOWN_UP, ALPHA if has_alpha else None)


class Kind(NamedTuple):
    """What modules have beside factors of LoRA, or in their place where they are not `is_plain`: these `suffixes`.

    `on` gives the paths of the modules. An alpha tensor stands in each where the scheme carries one, in any case where
    `has_alpha` is True, and in none where it is False. `beside` are tensors of no module, and `others` those of other
    modules, without which there is no such file. `tells` gives the metadata, if any.
    """

    title: str
    suffixes: Suffixes = NOTHING
    on: Callable[[Layout], Iterable[str]] = layers
    is_plain: bool = True
    has_alpha: bool | None = None
    beside: Suffixes = NOTHING
    others: Callable[[Scheme, Architecture], Tensors] | None = None
    tells: Callable[[Scheme, Architecture], Mapping[str, str]] | None = None

    def file(self, scheme: Scheme, family: Architecture) -> File | None:
        """One for a family in the names of a scheme, None where it has no such modules, or a config says its scale."""
        writing = scheme.writing
        name = writing.layout(family) if writing and scheme.absent_alpha == "one" else None
        layout = next((one for one in family.layouts if name in one.names), None)
        modules = named(scheme, family, self.on(layout)) if layout else {}
        others = self.others(scheme, family) if self.others else {}
        if not modules or bool(self.others) != bool(others):
            return None
        has_alpha = scheme.carries_alpha if self.has_alpha is None else self.has_alpha
        own = _lora(scheme, modules, has_alpha) if self.is_plain else {}
        if has_alpha:
            own = {f"{module}.alpha": ((), ALPHA) for module in modules} | own
        for module, inputs in modules.items():
            own |= {module + suffix: (_fitted(shape, inputs), one) for suffix, (shape, one) in self.suffixes.items()}
        return File({**self.beside, **own, **others}, self.tells(scheme, family) if self.tells else {})


def _over_base(scheme: Scheme, family: Architecture) -> dict[str, str]:
    """What says that magnitudes are over the norms of the base."""
    return {NORMS_KEY: NormsRecord("base.safetensors", "", "").text()}


def _stabilised(scheme: Scheme, family: Architecture) -> dict[str, str]:
    """What says RS-LoRA where no tensor does: diffusers' config, or the options of a trainer."""
    if scheme.carries_alpha:
        return {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(RANK),
            "ss_network_alpha": str(ALPHA),
            "ss_network_args": json.dumps({"use_rslora": "True"}),
        }
    config = {"r": RANK, "lora_alpha": ALPHA, "use_rslora": True, "target_modules": ["to_q"]}
    return {"lora_adapter_metadata": json.dumps({f"{family.pipeline_name}.{key}": one for key, one in config.items()})}


def _fitted(shape: Shape, inputs: int) -> Shape:
    return tuple({_IN: inputs, _HALF_IN: inputs // 2}.get(size, size) for size in shape)


def _of(shape: Shape) -> tuple[Shape, float]:
    return shape, 0.0


def _glora(*products: str) -> Suffixes:
    """The factors of two products, left and right of each."""
    shapes = ((_IN, RANK), (RANK, _IN), (WIDTH, RANK), (RANK, _IN))
    return {f".{name}.weight": _of(shape) for name, shape in zip(products, shapes, strict=True)}


_HALF = WIDTH // 2
_LOHA = {f".hada_w{number}_a": _of((WIDTH, RANK)) for number in (1, 2)}
_LOHA |= {f".hada_w{number}_b": _of((RANK, _IN)) for number in (1, 2)}
_CONVOLUTION = {".lora_down.weight": _of((RANK, WIDTH, 3, 3)), ".lora_up.weight": _of((WIDTH, RANK, 1, 1))}
_TUCKER = {**_CONVOLUTION, ".lora_down.weight": _of((RANK, WIDTH, 1, 1)), ".lora_mid.weight": _of((RANK, RANK, 3, 3))}
_VECTOR = _of((WIDTH,))
KINDS = (
    Kind("LoRA"),
    Kind("RS-LoRA by `use_rslora_flag`", has_alpha=True, beside={"use_rslora_flag": ((), 1.0)}),
    Kind("RS-LoRA by metadata", tells=_stabilised),
    Kind("DoRA `dora_scale` (out, 1)", {".dora_scale": _of((WIDTH, 1))}),
    Kind("that written for the base's norms", {".dora_scale": _of((WIDTH, 1))}, tells=_over_base),
    Kind("DoRA `dora_scale` (1, in)", {".dora_scale": _of((1, _IN))}),
    Kind("DoRA `dora_layer.weight`", {".dora_layer.weight": _VECTOR}),
    Kind("DoRA `lora_magnitude_vector`", {".lora_magnitude_vector": _VECTOR}),
    Kind("DoRA `lora_magnitude_vector.weight`", {".lora_magnitude_vector.weight": _VECTOR}),
    Kind("DoRA `magnitude`", {".magnitude": _VECTOR}),
    Kind("LoHa", _LOHA, is_plain=False),
    Kind("LoKr of two whole factors", {".lokr_w1": _of((2, 2)), ".lokr_w2": _of((_HALF, _HALF_IN))}, is_plain=False),
    Kind(
        "LoKr with a thin factor",
        {".lokr_w1": _of((2, 2)), ".lokr_w2_a": _of((_HALF, RANK)), ".lokr_w2_b": _of((RANK, _HALF_IN))},
        is_plain=False,
    ),
    Kind("OFT `oft_blocks`", {".oft_blocks": _of((4, 4, 4)), ".alpha": ((), 0.0)}, is_plain=False),
    Kind("BOFT `oft_blocks`", {".oft_blocks": _of((2, 4, 4, 4)), ".alpha": ((), 0.0)}, is_plain=False),
    Kind("(IA)3 `on_input`", {".weight": _VECTOR, ".on_input": ((), 0.0)}, is_plain=False, has_alpha=False),
    Kind("GLoRA", _glora("a1", "a2", "b1", "b2"), is_plain=False),
    Kind("GLoRA before LyCORIS 3", _glora("a2", "a1", "b2", "b1"), is_plain=False),
    Kind("`diff`", {".diff": _of((WIDTH, _IN))}, is_plain=False, has_alpha=False),
    Kind("`diff` with `diff_b`", {".diff": _of((WIDTH, _IN)), ".diff_b": _VECTOR}, is_plain=False, has_alpha=False),
    Kind("LoRA with `diff_b`", {".diff_b": _VECTOR}),
    Kind("LoRA with `lora_up.bias`", {".lora_up.bias": _VECTOR}),
    Kind("`w_norm` with `b_norm`", {".w_norm": _VECTOR, ".b_norm": _VECTOR}, _norms, is_plain=False, has_alpha=False),
    Kind("`diff` of a parameter", {".diff": _VECTOR}, _parameters, is_plain=False, has_alpha=False),
    Kind("LoRA of a 3x3 convolution", _CONVOLUTION, _convolutions, is_plain=False),
    Kind("that with a Tucker core", _TUCKER, _convolutions, is_plain=False),
    Kind("LoRA with one of a CLIP", others=_encoder),
    Kind("LoRA with a key of nobody", beside={"unknown": _VECTOR}),
    Kind("LoRA with 20 keys of nobody", beside={f"other.{number}.weight": _VECTOR for number in range(20)}),
)
