"""stable-diffusion.cpp: names rewritten to those of its models; alpha/rank.

It prints nothing about unused tensors. It takes the parts of a fused layer in their order, up to the first that the
file lacks. It does not load a file with a tensor of a type that it does not read. In diffusers' names it does not swap
the halves of the last modulation, which its models have in the original order.

Sources: `model/adapter/lora.hpp`, `name_conversion.cpp`, `model_loader.cpp` and `model_manager.cpp` of
stable-diffusion.cpp. They were run on a small model of every family here. LoRA was added to the weights, as it does
with unquantised ones.
"""

from collections.abc import Iterator, Mapping

from lora_inspect.architectures import by_name
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.programs.known import a1111
from lora_inspect.programs.record import (
    COMPUTES,
    INFIXED,
    LEAVES,
    MISREADS,
    SILENT,
    WARNS,
    Finder,
    Given,
    Loader,
    OfKind,
    Program,
    Rule,
    RulesByFamily,
    Strangers,
    alpha_over_rank,
)
from lora_inspect.reading.adapter import Adapter

# The types of tensors that it was seen to read in a file, and not to.
_READS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I8", "U8")
_READS_NOT = ("BOOL", "I16")
_UNREAD = Strangers(WARNS, "unsupported dtype")
_OWN = "diffusion_model."
_BARE = ("", "lycoris_")
_DIFFUSERS = (_OWN, "transformer.", "unet.")


class Found(NamedTuple):
    """The layers of a `layout` that the program finds: `prefixes`, without `lacks`.

    `lacks` and `only` are beginnings of paths. If `only` is not empty, the program finds nothing else.
    """

    prefixes: tuple[str, ...]
    layout: str
    only: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()

    def paths_of(self, family: str) -> tuple[str, ...]:
        """Return the paths that the program does not find."""
        known = next(layout for layout in by_name(family).layouts if self.layout in layout.names)
        return tuple(
            path
            for path in known.named
            if (self.only and not path.startswith(self.only)) or (self.lacks and path.startswith(self.lacks))
        )


_BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
_STREAMS = ("double_blocks.", "single_blocks.")
_EMBEDDERS = ("conv_in", "conv_out", "time_embedding", "add_embedding")
_UNET = (
    Found(("lora_unet_", _OWN), "original", lacks=("label_emb", "time_embed")),
    Found(("lora_unet_", *_DIFFUSERS, *_BARE), "diffusers", lacks=_EMBEDDERS),
)
_FLUX2_BLOCKS = tuple(f"transformer_blocks.{{i}}.{leaf}" for leaf in ("attn", "norm"))
_FLUX2 = ("x_embedder", "context_embedder", "proj_out", "norm_out", *_FLUX2_BLOCKS)
# The layers of a double stream that have one name where queries, keys and values are fused and where they are not.
_UNFUSED = tuple(
    f"double_blocks.{{i}}.{side}_{leaf}" for side in ("img", "txt") for leaf in ("attn_proj", "mlp", "mod")
)
_ANIMA = ("x_embedder", *(f"blocks.{{i}}.{part}" for part in ("self_attn", "cross_attn", "mlp")))
_LTX2_EMBEDDERS = (
    *("proj_in", "audio_proj_in", "time_embed", "audio_time_embed"),
    *("prompt_adaln", "audio_prompt_adaln", "av_cross_attn"),
)
_LTX2_OF_VIDEO = (
    *(f"transformer_blocks.{{i}}.{attn}.to_{leaf}" for attn in ("attn1", "attn2") for leaf in ("q", "k", "v", "out")),
    *("transformer_blocks.{i}.ff.", "proj_out"),
)
# What no path begins with.
_NONE = ("none",)
# By family, as its own code found them.
_NAMES: Mapping[str, tuple[Found, ...]] = {
    "sd15": _UNET,
    "sd2": _UNET,
    "sdxl": _UNET,
    "flux": (
        Found((_OWN,), "original"),
        Found(_DIFFUSERS[:2], "diffusers"),
        Found(("lora_unet_",), "original", only=_STREAMS),
        Found(("lora_unet_",), "diffusers", lacks=("context_embedder", "norm_out", "time_text_embed")),
        Found(_BARE, "diffusers", only=_BLOCKS),
        Found(("",), "original", only=_NONE),
        Found(("",), "xlabs", only=_NONE),
    ),
    "chroma": (
        Found((_OWN,), "original"),
        Found(_DIFFUSERS[:2], "diffusers", lacks=("distilled_guidance_layer.layers",)),
        Found(("lora_unet_",), "original", only=_STREAMS),
        Found(("lora_unet_",), "diffusers", lacks=("context_embedder", "distilled_guidance_layer")),
        Found(_BARE, "diffusers", only=_BLOCKS),
        Found(("",), "original", only=_NONE),
    ),
    "sd3": (
        Found((_OWN,), "original"),
        Found(_DIFFUSERS[:2], "diffusers"),
        Found(("lora_unet_",), "original", only=("x_embedder",)),
        Found(("lora_unet_",), "diffusers", only=("proj_out", *_BLOCKS)),
        Found(_BARE, "diffusers", only=_BLOCKS),
        Found(("",), "original", only=_NONE),
    ),
    "z_image": (
        Found((_OWN,), "original"),
        Found(_DIFFUSERS[:2], "diffusers"),
        Found(("lora_unet_",), "original", only=("layers.{i}.attention", "x_embedder")),
        Found(("lora_unet_",), "diffusers", only=("layers.{i}.attention",)),
        Found(_BARE, "diffusers", only=_NONE),
        Found(("",), "original", only=_NONE),
    ),
    "qwen_image": (
        Found(_DIFFUSERS[:2], "diffusers"),
        Found(("lora_unet_",), "diffusers", only=("proj_out", *_BLOCKS)),
        Found(_BARE, "diffusers", only=_BLOCKS),
    ),
    "wan": (
        Found((_OWN,), "original"),
        Found(("lora_unet_",), "original", lacks=("text_embedding", "time_projection")),
        Found((*_DIFFUSERS[:2], *_BARE, "lora_unet_"), "diffusers", only=_NONE),
        Found(("",), "original", only=("time_embedding",)),
    ),
    "flux2": (
        Found((_OWN,), "original"),
        Found(_DIFFUSERS[:2], "diffusers", only=_FLUX2),
        Found(("lora_unet_",), "original", only=_STREAMS),
    ),
    "hunyuan_video_1_5": (
        Found((_OWN,), "comfyui"),
        Found((*_DIFFUSERS[:2], *_BARE), "diffusers", only=_NONE),
        Found(("lora_unet_",), "original", only=_UNFUSED),
    ),
    "anima": (
        Found((_OWN,), "original"),
        Found((*_DIFFUSERS[:2], *_BARE), "diffusers", only=_NONE),
        Found(("lora_unet_",), "original", only=_ANIMA),
    ),
    "ltx2": (
        Found((_OWN, "transformer."), "original"),
        Found((_OWN, "transformer."), "diffusers", lacks=_LTX2_EMBEDDERS),
        Found(("",), "diffusers", only=_BLOCKS),
        Found(("lora_unet_",), "original", only=_LTX2_OF_VIDEO),
    ),
}
# The parts of its fused layers by diffusers' names, in their order: each is lost where the file lacks one before it.
_FUSED = (
    ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    ("attention.to_q", "attention.to_k", "attention.to_v"),
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
)
# The prefixes of text encoders by family, of CLIP's names; the second one of SDXL has fused layers.
_CLIP = "text_model.encoder.layers.{i}"
_FIRST = {"sd15": ("lora_te_", "lora_te1_"), "sdxl": ("lora_te_", "lora_te1_"), "flux": ("lora_te1_",)}
_SECOND = {"sdxl": ("lora_te2_",)}
_NO_ENCODERS = ("text_encoder.", "text_encoder_2.")
_T5 = "encoder.block.{i}.layer.{i}"
_WITH_T5 = ("flux", "sd3")
_OF_PARTS = ("flux", "chroma", "sd3", "z_image", "flux2")
# Families in which diffusers has the halves of the last modulation in the other order.
_OF_SWAPPED = ("flux", "flux2", "sd3")


def _finds_parts(adapter: Adapter) -> Finder:
    """Return a finder of all layers but unreached parts of fused ones.

    A part is reached if the file has all parts before it.
    """
    keys = frozenset(adapter.modules)

    def finds(given: Given) -> bool | None:
        key = given.module.name.key
        for parts in _FUSED:
            for at, part in enumerate(parts):
                for own, other in ((part, str), (part.replace(".", "_"), _flat)):
                    if key.endswith((f".{own}", f"_{own}")):
                        parent = key[: -len(own)]
                        return all(parent + other(before) in keys for before in parts[:at])
        return True

    return finds


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _has_unread(adapter: Adapter) -> bool:
    """Return True if the file has an unreadable tensor type, as RS-LoRA's flag often is."""
    return any(info.dtype in _READS_NOT for info in adapter.checkpoint.tensors.values())


def _unsure(adapter: Adapter) -> str | None:
    """Return the unknown effect of a tensor type that nobody tried."""
    types = {info.dtype for info in adapter.checkpoint.tensors.values()} - {*_READS, *_READS_NOT}
    return f"what it makes of tensors of {min(types)}" if types else None


# The factors whose first side it takes for the rank. It counts no sides of 1 at the end, so that of one row it takes
# the other side.
_DOWNS = ("down", "w1_b", "w2_b")


@OfKind
def _alpha_over_first_side(given: Given) -> float | None:
    """Return alpha/rank, but alpha over the down factor's inputs for rank 1."""
    contribution = given.contribution
    scale = alpha_over_rank(given)
    if contribution.rank != 1 or given.module.alpha is None or scale is None:
        return scale
    # Of LoKr the second product counts where both have ranks, of LoHa the first.
    roles = [role for role in _DOWNS if role in contribution.shapes]
    down = roles[-1 if contribution.algorithm.name == "lokr" else 0] if roles else ""
    return scale / contribution.shapes[down][1] if down else scale


_IN_TURN = ("lora", "full", "loha", "lokr")


@OfKind
def _exceptions(given: Given) -> str | None:
    """Return LEAVES if an earlier kind changes the same weight, as only the first counts."""
    name = given.contribution.algorithm.name
    if name not in _IN_TURN:
        return None
    beside = {one.algorithm.name for one in given.module.contributions}
    return LEAVES if beside.intersection(_IN_TURN[: _IN_TURN.index(name)]) else None


@OfKind
def _exceptions_of_diffusers(given: Given) -> str | None:
    """Return MISREADS for a modulation of shift and scale, which its models have in the other order."""
    contribution, leaf = given.contribution, _flat(given.module.name.body)
    formula = contribution.algorithm.formula
    if formula is None or contribution.algorithm.name not in (*_IN_TURN, "full_bias"):
        return _exceptions(given)
    out, inputs = (*formula.shape(contribution.shapes), None)[:2]
    # The last block of SD3 has no gates for the text.
    is_pair = leaf.endswith("norm1_context_linear") and out is not None and inputs is not None and out == 2 * inputs
    return MISREADS if is_pair or leaf.endswith("norm_out_linear") else _exceptions(given)


_SCALE = a1111.scale(of_glora=alpha_over_rank, others=_alpha_over_first_side)
_LOADED = Rule(
    dialects=("", "kohya", "peft", "lycoris", INFIXED),
    kinds={**dict.fromkeys(("lora", "loha", "lokr", "full", "full_bias"), COMPUTES), "": LEAVES},
    # Nobody tried cores.
    parts=dict.fromkeys(("lora.mid", "loha.t1", "loha.t2", "lokr.t1", "lokr.t2"), ""),
    exceptions=_exceptions,
    scale=_SCALE,
    magnitudes={
        **dict.fromkeys((".dora_scale output", ".dora_scale input", ".dora_layer.weight output"), LEAVES),
        **dict.fromkeys((".lora_magnitude_vector output", ".lora_magnitude_vector.weight output"), LEAVES),
    },
)


def _rules(family: str) -> Iterator[Rule]:
    yield Rule(where=_has_unread, unfound=_UNREAD)
    for found in _NAMES[family]:
        is_cut = found.layout == "diffusers" and family in _OF_PARTS
        is_swapped = found.layout == "diffusers" and family in _OF_SWAPPED
        yield _LOADED._replace(
            prefixes=found.prefixes,
            layouts=(found.layout,),
            lacks=found.paths_of(family),
            finds=_finds_parts if is_cut else None,
            exceptions=_exceptions_of_diffusers if is_swapped else _exceptions,
        )
    for prefixes, is_cut in ((_FIRST, False), (_SECOND, True)):
        if family in prefixes:
            cut = _finds_parts if is_cut else None
            yield _LOADED._replace(prefixes=prefixes[family], layouts=(_CLIP,), finds=cut)
    if family in _WITH_T5:
        yield _LOADED._replace(prefixes=("lora_te3_",), layouts=(_T5,))
        yield Rule(prefixes=("lora_te2_",), layouts=(_T5,))
    if family == "sd3":
        yield Rule(prefixes=("lora_te1_", "lora_te2_"), layouts=(_CLIP,))
    if _NAMES[family] is _UNET:
        yield Rule(prefixes=_NO_ENCODERS, layouts=(_CLIP,))
        yield Rule(prefixes=("oft_unet_",))
    # Other prefixes are no names of its models.
    layouts = tuple(layout.name for layout in by_name(family).layouts)
    yield Rule(prefixes=("base_model.model.", "lora_transformer_"), layouts=layouts)


PROGRAM = Program(
    name="stable-diffusion-cpp",
    title="stable-diffusion.cpp",
    version="2026-08-19",
    ran="2026-12-01",
    loaders=(
        Loader(
            families=tuple(_NAMES),
            rules=RulesByFamily(tuple(_NAMES), _rules),
            strangers=Strangers(SILENT),
            unsure=_unsure,
        ),
    ),
    schemes={**dict.fromkeys(("sd15", "sd2", "sdxl"), "kohya"), "": "comfyui"},
)
