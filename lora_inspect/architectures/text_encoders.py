"""Text encoders of an adapter file: the kind by the names of their layers, and the width.

A file that adapts an encoder which a family does not have is no file of that family. CLIP's text model has the names of
transformers or of open_clip; single files of SD 2.x and SDXL have the latter.

open_clip's attention has query, key and value in one parameter, of torch's MultiheadAttention. Source of the names:
`convert_open_clip_checkpoint` of diffusers. Source of the orientations: `CLIP.encode_text` and `VisionTransformer` of
open_clip, which multiply by the parameter itself, x @ text_projection and x @ proj.
"""

from collections.abc import Iterable, Mapping

from ..fast_namedtuple import NamedTuple
from . import correspondence
from .correspondence import Correspondence, Relation, same, stack
from .patterns import fill, pattern_of, separator_of

INPUT, OUTPUT = 1, 0


class TextEncoder(NamedTuple):
    """A text encoder: its `kind`, shown by its names, and its width, None for any width or if unknown."""

    kind: str
    width: int | None

    def __str__(self) -> str:
        return self.kind if self.width is None else f"{self.kind} of width {self.width}"


CLIP, T5, LANGUAGE_MODEL = "CLIP", "T5", "a language model"

CLIP_L = TextEncoder(CLIP, 768)
OPENCLIP_H = TextEncoder(CLIP, 1024)
OPENCLIP_BIGG = TextEncoder(CLIP, 1280)
T5_XXL = TextEncoder(T5, 4096)  # and UMT5-XXL, of the same names and width
T5_11B = TextEncoder(T5, 1024)
PILE_T5_XL = TextEncoder(T5, 2048)
BYT5_GLYPH = TextEncoder(T5, 1472)
LLAMA_8B = TextEncoder(LANGUAGE_MODEL, 4096)
QWEN25_VL_7B = TextEncoder(LANGUAGE_MODEL, 3584)
QWEN3_4B = TextEncoder(LANGUAGE_MODEL, 2560)
QWEN3_06B = TextEncoder(LANGUAGE_MODEL, 1024)
GEMMA2_2B = TextEncoder(LANGUAGE_MODEL, 2304)
# What people call those that kind and width tell from all others of the families.
TITLES: Mapping[TextEncoder, str] = {
    CLIP_L: "CLIP-L",
    OPENCLIP_H: "OpenCLIP-H",
    OPENCLIP_BIGG: "OpenCLIP-bigG",
    T5_XXL: "T5-XXL",
    PILE_T5_XL: "Pile-T5-XL",
    BYT5_GLYPH: "ByT5",
    QWEN25_VL_7B: "Qwen2.5-VL 7B",
    QWEN3_4B: "Qwen3 4B",
    GEMMA2_2B: "Gemma 2 2B",
}
# The class names of the blocks of encoders in transformers that sd-scripts adapts.
CLIP_BLOCKS = ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP")
T5_BLOCKS = ("T5Attention", "T5DenseGatedActDense")
GEMMA2_BLOCKS = ("Gemma2Attention", "Gemma2FlashAttention2", "Gemma2SdpaAttention", "Gemma2MLP")
QWEN3_BLOCKS = ("Qwen3Attention", "Qwen3MLP", "Qwen3SdpaAttention", "Qwen3FlashAttention2")
SOME_LANGUAGE_MODEL = TextEncoder(LANGUAGE_MODEL, None)  # another one with each size of the family


class _Names(NamedTuple):
    """The roots of an encoder's blocks, and the layers that show its width, each with the side that is so wide."""

    roots: tuple[str, ...]
    layers: tuple[tuple[str, int], ...]


_KINDS: Mapping[str, _Names] = {
    CLIP: _Names(
        ("text_model.encoder.layers.#", "encoder.layers.#"),
        (
            ("self_attn.q_proj", INPUT),
            ("self_attn.k_proj", INPUT),
            ("self_attn.v_proj", INPUT),
            ("self_attn.out_proj", OUTPUT),
            ("mlp.fc1", INPUT),
            ("mlp.fc2", OUTPUT),
        ),
    ),
    T5: _Names(
        ("encoder.block.#.layer.#",),
        (
            ("SelfAttention.q", INPUT),
            ("SelfAttention.k", INPUT),
            ("SelfAttention.v", INPUT),
            ("SelfAttention.o", OUTPUT),
            ("DenseReluDense.wi", INPUT),
            ("DenseReluDense.wi_0", INPUT),
            ("DenseReluDense.wi_1", INPUT),
            ("DenseReluDense.wo", OUTPUT),
        ),
    ),
    LANGUAGE_MODEL: _Names(
        ("layers.#", "model.layers.#", "language_model.layers.#", "model.language_model.layers.#"),
        (
            ("self_attn.q_proj", INPUT),
            ("self_attn.k_proj", INPUT),
            ("self_attn.v_proj", INPUT),
            ("self_attn.o_proj", OUTPUT),
            ("mlp.gate_proj", INPUT),
            ("mlp.up_proj", INPUT),
            ("mlp.down_proj", OUTPUT),
        ),
    ),
}

# The paths of the layers of all of them, by the roots of their blocks and together.
ROOTS: Mapping[str, tuple[str, ...]] = {
    root.replace("#", "{i}"): tuple(f"{root.replace('#', '{i}')}.{leaf}" for leaf, _ in names.layers)
    for names in _KINDS.values()
    for root in names.roots
}
PATHS = tuple(path for paths in ROOTS.values() for path in paths)


def found_in(modules: Iterable[tuple[str, int | None, int | None]]) -> tuple[TextEncoder, ...]:
    """Return the encoders that a component's modules show: (path, out features, in features), dotted or not."""
    found: dict[TextEncoder, None] = {}
    tables = {separator: _table(separator) for separator in "._"}
    for path, *features in modules:
        separator = separator_of(path)
        # A gated T5 layer ends in a number, which is a segment of its own where underscores separate.
        known = tables[separator].get(pattern_of(path, separator))
        if known:
            kind, side = known
            found[TextEncoder(kind, features[side])] = None
    widths = {encoder.kind for encoder in found if encoder.width is not None}
    return tuple(encoder for encoder in found if encoder.width is not None or encoder.kind not in widths)


def has(encoders: Iterable[TextEncoder], shown: TextEncoder) -> bool:
    """Return True if the encoder that a file shows is one of these."""
    return any(
        shown.kind == own.kind and (None in (shown.width, own.width) or shown.width == own.width) for own in encoders
    )


def below(path: str, roots: Mapping[str, str]) -> str:
    """Return the path of an encoder's layer below the root that `roots` has for its kind, with `{i}` for the block.

    Programs call the same layers by whatever class of transformers they hold. A path of another kind stays.
    """
    for kind, root in roots.items():
        for own in _KINDS[kind].roots:
            for leaf, _ in _KINDS[kind].layers:
                found = fill(f"{own.replace('#', '{i}')}.{leaf}", f"{root}.{leaf}", path)
                if found is not None:
                    return found
    return path


def _table(separator: str) -> dict[str, tuple[str, int]]:
    return {
        pattern_of(f"{root}.{leaf}", separator): (kind, side)
        for kind, names in _KINDS.items()
        for root in names.roots
        for leaf, side in names.layers
    }


# Matrices that are parameters here and weights of Linear layers in transformers, which stores them the other way round.
_PROJECTIONS = ("text_projection", "visual.proj")


def open_clip_relations() -> tuple[Relation, ...]:
    """Return the relations of open_clip's layers to those of transformers."""
    return (
        same("token_embedding", "text_model.embeddings.token_embedding"),
        same("positional_embedding", "text_model.embeddings.position_embedding"),
        *correspondence.below(
            "transformer.resblocks.{i}",
            "text_model.encoder.layers.{i}",
            stack("attn.in_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            same("attn.out_proj", "self_attn.out_proj"),
            same("mlp.c_fc", "mlp.fc1"),
            same("mlp.c_proj", "mlp.fc2"),
            same("ln_1", "layer_norm1"),
            same("ln_2", "layer_norm2"),
        ),
        same("ln_final", "text_model.final_layer_norm"),
    )


def is_open_clip_projection(parameter: str) -> bool:
    """Return True if a parameter that is no `.weight` is a projection of CLIP, which is stored as (in, out)."""
    return f".{parameter}".endswith(tuple(f".{name}" for name in _PROJECTIONS))


OPEN_CLIP = Correspondence(open_clip_relations)
