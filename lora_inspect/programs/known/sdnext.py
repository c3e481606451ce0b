"""SD.Next: native loaders for some families, with names by family, and alpha/rank.

It counts names that it does not find in a warning, and ignores other tensors of a layer silently. It loads models of
other families through diffusers, in the revision that it installs.

Sources: `lora_load.py`, `lora_convert.py`, `native_adapter.py` and `network*.py` in `modules/lora`, and
`zimage_lora.py` and `flux2_lora.py` in `pipelines`. They were run with default options on small models of SD 1.5, SDXL,
SD3, FLUX.2 and Z-Image, and on FLUX in its own widths.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial

from lora_inspect.architectures import by_name
from lora_inspect.caching import remembering_names
from lora_inspect.programs.known import a1111
from lora_inspect.programs.known.diffusers import PROGRAM as DIFFUSERS
from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    INFIXED,
    LEAVES,
    MISREADS,
    READ,
    SILENT,
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
    RulesByFamily,
    ScaleOfFile,
    ScaleRule,
    Strangers,
    alpha_over_rank,
    nothing_refused,
)
from lora_inspect.reading.adapter import Adapter

_UNMATCHED = Strangers(WARNS, "Network load: type=LoRA unmatched keys")
_PASSED = Strangers(SILENT)
_MAGNITUDES = {
    **dict.fromkeys((".dora_scale output", ".dora_scale input"), COMPUTES),
    **dict.fromkeys((".dora_layer.weight output", ".magnitude output", ".m output", ".m input"), LEAVES),
    **dict.fromkeys((".lora_magnitude_vector output", ".lora_magnitude_vector.weight output"), LEAVES),
}
_ROTATIONS = ("oft", "lycoris_boft")
_networks = a1111.scale(of_glora=alpha_over_rank)


@cache
def _with_rotations(other: ScaleRule) -> ScaleRule:
    """Return a scale rule that gives OFT with an alpha of 0 the scale 0.

    Alpha limits the norm of a rotation, so 0 leaves none.
    """

    def found(given: Given) -> float | None:
        contribution = given.contribution
        if contribution.algorithm.name == "oft" and given.module.alpha is not None and not contribution.alpha:
            return 0.0
        return other(given)

    return OfKind(found) if isinstance(other, OfKind) else found


def _rotations(adapter: Adapter) -> ScaleRule:
    return _with_rotations(_networks.make(adapter))


_SCALE = ScaleOfFile(_rotations)


@OfKind
def exceptions(given: Given) -> str | None:
    """Return the treatment by the loader of UNets and of FLUX's names in diffusers."""
    name = given.contribution.algorithm.name
    beside = {one.algorithm.name for one in given.module.contributions}
    if name == "full_bias":
        return _of_bias(beside)
    # It gives up at the fifth layer that fails.
    if name in ("lycoris_boft", "glora") or (name == "oft" and given.module.alpha is None):
        return FAILS
    if name in ("lycoris_ia3", "norm", "norm_bias"):
        return ""
    return a1111.exceptions(given, alone=LEAVES)


def _of_bias(beside: set[str]) -> str:
    """Return the treatment of a bias difference by the other changes of its layer.

    A layer with a changed bias gets its weight as bias; without other changes the difference is ignored.
    """
    return MISREADS if beside.intersection(("lora", "full")) else LEAVES


# A layer of which it has no kind of network is left with an error in the log.
_LOADED = Rule(
    kinds={**a1111.KINDS, "": LEAVES},
    parts={"oft.rescale": MISREADS},
    exceptions=exceptions,
    scale=_SCALE,
    magnitudes=_MAGNITUDES,
)
# It says so of a layer with a `bias` of other sizes than the weight, and leaves it.
_NOT_APPLIED = "Network: type=LoRA apply weight"
_BIASED = a1111.with_biases(exceptions, _NOT_APPLIED)


def _loaded(**fields: object) -> Iterator[Rule]:
    rule = _LOADED._replace(**fields)  # type: ignore[arg-type]
    yield rule._replace(where=a1111.has_biases, exceptions=_BIASED)
    yield rule


# It knows kohya's spelling of the factors alone behind dotted names, and no more of a layer than these and alpha.
_PAIR = Rule(
    dialects=("kohya",),
    kinds={"lora": COMPUTES, "lora_bias": LEAVES},
    parts={"lora.mid": MISREADS},
    magnitudes=dict.fromkeys(_MAGNITUDES, LEAVES),
)
_UNKNOWN_SPELLING = Rule(dialects=("peft",), unfound=_UNMATCHED)
_CLIP = "text_model.encoder.layers.{i}"
_ENCODERS = Rule(layouts=(TEXT_ENCODERS,), unfound=_UNMATCHED)


def _of_unet(layouts: tuple[str, ...], *encoders: str) -> Iterator[Rule]:
    for prefixes, paths in ((("lora_unet_",), layouts), (encoders, (_CLIP,))):
        yield _UNKNOWN_SPELLING._replace(prefixes=prefixes, layouts=paths)
        yield from _loaded(prefixes=prefixes, layouts=paths)
    if "original" in layouts:
        # It has two names for the blocks of that layout alone.
        yield from _loaded(prefixes=("oft_unet_",), layouts=("original",), by=READ)
    yield from _dotted("unet.")
    yield from _unfound("diffusion_model.", "", "base_model.model.", "lycoris_", "lora_transformer_")
    yield _ENCODERS


def _dotted(prefix: str) -> Iterator[Rule]:
    yield _UNKNOWN_SPELLING._replace(prefixes=(prefix,), layouts=("diffusers",))
    yield _PAIR._replace(prefixes=(prefix,), layouts=("diffusers",))


def _unfound(*prefixes: str) -> Iterator[Rule]:
    yield Rule(prefixes=prefixes, layouts=("original", "diffusers"), unfound=_UNMATCHED)


# What it turns into diffusers' names of a file in kohya's names of FLUX, which has to hold nothing else.
_CONVERTED = (
    *(f"double_blocks.{{i}}.{side}_attn.{leaf}" for side in ("img", "txt") for leaf in ("qkv", "proj")),
    *(f"double_blocks.{{i}}.{side}_{leaf}" for side in ("img", "txt") for leaf in ("mlp.0", "mlp.2", "mod.lin")),
    *(f"single_blocks.{{i}}.{leaf}" for leaf in ("linear1", "linear2", "modulation.lin")),
)
_FLAT = frozenset(path.replace(".", "_").replace("{i}", "0") for path in _CONVERTED)
_ROWS_OF_LINEAR1 = 21504
_PARTS = (".lora_down.weight", ".lora_up.weight", ".alpha")


def _name(key: str) -> str:
    """Return the name in a kohya key, with every block number as 0."""
    blocks, _, rest = key.partition(".")[0].removeprefix("lora_unet_").partition("_blocks_")
    return f"{blocks}_blocks_0_{rest.partition('_')[2]}"


@remembering_names
def _is_converted(key: str) -> bool:
    return key.startswith("lora_unet_") and f".{key.partition('.')[2]}" in _PARTS and _name(key) in _FLAT


def _is_all_converted(adapter: Adapter) -> bool:
    return all(map(_is_converted, adapter.checkpoint.tensors))


def _no_dot(adapter: Adapter) -> str | None:
    """Return the error for a key without a dot, which the loader cannot split."""
    has_none = any("." not in key for key in adapter.checkpoint.tensors)
    return "not enough values to unpack (expected 2, got 1)" if has_none else None


@remembering_names
def _asked_beside(key: str) -> str:
    """Return the key that the conversion asks for next to this key, or "".

    A down factor needs its alpha, and the rows of some up factors count.
    """
    if key.endswith(".lora_down.weight") and _is_converted(key):
        return key.partition(".")[0] + ".alpha"
    return key if key.endswith("_linear1.lora_up.weight") and _is_converted(key) else ""


def _of_flux(adapter: Adapter) -> str | None:
    """Return the error for a renamed layer without alpha or with another width.

    Only single blocks have a fixed width.
    """
    tensors = adapter.checkpoint.tensors
    for asked in filter(None, map(_asked_beside, tensors)):
        if asked not in tensors:
            return f"'{asked}'"
        if asked.endswith("weight") and tensors[asked].shape[0] != _ROWS_OF_LINEAR1:
            return f"assertion: {asked.partition('.')[0]} has {tensors[asked].shape[0]} rows"
    return _no_dot(adapter)


def _in_diffusers(family: str) -> Iterator[Rule]:
    """Yield the rules of a transformer by its names in diffusers."""
    yield from _dotted("transformer.")
    yield from _unfound("diffusion_model.", "", "base_model.model.")
    for prefix in ("lora_transformer_", "lycoris_"):
        yield _UNKNOWN_SPELLING._replace(prefixes=(prefix,), layouts=("diffusers",))
        # It tells these by a word in their names.
        lacks = tuple(path for path in _paths(family) if "transformer" not in path) if prefix == "lycoris_" else ()
        yield from _loaded(prefixes=(prefix,), layouts=("diffusers",), lacks=lacks, unfound=_UNMATCHED)


def _paths(family: str) -> tuple[str, ...]:
    return next(layout.paths for layout in by_name(family).layouts if layout.name == "diffusers")


# The keys of kohya's names of SD3 that it turns into diffusers' names.
_JOINT = re.compile(
    r"lora_unet_joint_blocks_\d+_(?:context|x)_block_"
    r"(?:attn_qkv|attn_proj|mlp_fc1|mlp_fc2|adaLN_modulation_1)\.(?:lora_down\.weight|lora_up\.weight|alpha)"
)
_SIDES = ("joint_blocks.{i}.context_block.", "joint_blocks.{i}.x_block.")
_FUSED_OF_SD3 = tuple(f"{side}attn.qkv" for side in _SIDES)


def _is_all_of_joint_blocks(adapter: Adapter) -> bool:
    return all(map(_JOINT.fullmatch, adapter.checkpoint.tensors))


def _has_more_encoders(adapter: Adapter) -> bool:
    """Return True if other keys stop the conversion.

    It has removed the layers of the blocks by then.
    """
    return any(not _JOINT.fullmatch(key) and not key.startswith("lora_te1") for key in adapter.checkpoint.tensors)


def _sd3() -> Iterator[Rule]:
    joint = Rule(
        prefixes=("lora_unet_",),
        layouts=("original",),
        dialects=("kohya",),
        alpha=True,
        kinds={"lora": COMPUTES},
    )
    # It takes the queries, keys and values of the text for those of the picture, and the other way round.
    yield joint._replace(paths=_FUSED_OF_SD3, kinds={"lora": MISREADS}, where=_is_all_of_joint_blocks)
    yield joint._replace(where=_is_all_of_joint_blocks)
    yield joint._replace(alpha=False, kinds={"": FAILS}, says="KeyError: it wants an alpha of every layer")
    yield joint._replace(kinds={}, unfound=_PASSED, where=_has_more_encoders, by=READ)
    for prefix in ("lora_te1_", "lora_te2_"):
        yield _LOADED._replace(
            prefixes=(prefix,), layouts=(_CLIP,), dialects=("kohya",), where=_has_more_encoders, by=READ
        )
    yield from _in_diffusers("sd3")


def _flux() -> Iterator[Rule]:
    # They are no names of its model.
    yield Rule(prefixes=("",), layouts=("xlabs",), unfound=_UNMATCHED, by=READ)
    yield Rule(prefixes=("lora_unet_",), layouts=("original",), kinds={"lora": COMPUTES}, where=_is_all_converted)
    yield from _unfound("lora_unet_")
    yield _UNKNOWN_SPELLING._replace(prefixes=("lora_te1_",), layouts=(_CLIP,))
    yield from _loaded(prefixes=("lora_te1_",), layouts=(_CLIP,))
    yield from _in_diffusers("flux")
    yield _ENCODERS


# In the order in which Z-Image's loaders of kinds take a layer, of which the last one counts.
_IN_TURN = ("lora", "lokr", "loha", "oft", "lycoris_boft", "lycoris_ia3", "old_glora", "full")
_WHOLE = ("oft", "lycoris_boft", "lycoris_ia3", "old_glora", "full")
_FUSED = ("attention.qkv", "attention_qkv")


@OfKind
def _of_z_image(given: Given) -> str | None:
    """Return the treatment of a contribution in Z-Image.

    Most kinds are not split into the parts of a fused layer.
    """
    name, module, magnitude = given.contribution.algorithm.name, given.module, given.contribution.magnitude
    beside = {one.algorithm.name for one in module.contributions}
    if name == "full_bias":
        return _of_bias(beside)
    if name == "glora":
        return FAILS
    if name in _ROTATIONS and module.alpha is None:
        return FAILS
    if name not in _IN_TURN:
        return ""
    if beside.intersection(_IN_TURN[_IN_TURN.index(name) + 1 :]):
        return LEAVES
    is_fused = module.name.body.endswith(_FUSED)
    return LEAVES if is_fused and (name in _WHOLE or (magnitude and magnitude.axis == "input")) else None


# The kinds of which it reads a `bias`.
_WITH_BIAS = ("lora", "lokr", "loha", *_ROTATIONS)


def _with_biases(rule: Rule, other: Exceptions, fused: tuple[str, ...]) -> Iterator[Rule]:
    """Yield a rule for files with a `bias`, which it skips in `fused` layers, and the rule for all others."""
    with_bias = a1111.with_biases(other, _NOT_APPLIED, fused)

    def found(given: Given) -> str | LoadFailure | Strangers | None:
        has_use = given.contribution.algorithm.name in _WITH_BIAS
        return (with_bias if has_use else other)(given)

    yield rule._replace(where=a1111.has_biases, exceptions=found)
    yield rule


_Z_IMAGE = Rule(
    dialects=("", "kohya", "peft", "lycoris", INFIXED),
    kinds={**_LOADED.kinds, "norm": "", "norm_bias": ""},
    parts={"oft.rescale": MISREADS, "lycoris_boft.rescale": MISREADS},
    exceptions=_of_z_image,
    scale=_SCALE,
    magnitudes={**_MAGNITUDES, ".lora_magnitude_vector output": COMPUTES, ".magnitude output": COMPUTES},
)


def _z_image() -> Iterator[Rule]:
    blocks = ("layers.", "noise_refiner.", "context_refiner.")
    bare = tuple(path for path in _paths("z_image") if not path.startswith(blocks))
    for prefixes, layouts, lacks in (
        (("lora_unet_", "diffusion_model."), ("original", "diffusers"), ()),
        (("transformer.", "lora_transformer_", "lycoris_"), ("diffusers",), ()),
        (("", "base_model.model."), ("diffusers",), bare),
    ):
        rule = _Z_IMAGE._replace(prefixes=prefixes, layouts=layouts, lacks=lacks)
        yield from _with_biases(rule, _of_z_image, _FUSED)
    yield Rule(layouts=(TEXT_ENCODERS,))


_FUSED_OF_FLUX2 = ("attn.qkv", "attn_qkv")


@OfKind
def _of_flux2(given: Given) -> str | None:
    is_fused = given.module.name.body.endswith(_FUSED_OF_FLUX2)
    return LEAVES if is_fused and given.contribution.algorithm.name == "full" else None


# The same loaders as Z-Image's, of which other kinds were not tried.
_FLUX2 = _Z_IMAGE._replace(
    kinds=dict.fromkeys(("lora", "lokr", "full"), COMPUTES),
    exceptions=_of_flux2,
    magnitudes={".dora_scale output": COMPUTES},
)


def _flux2() -> Iterator[Rule]:
    blocks = ("transformer_blocks.", "single_transformer_blocks.")
    bare = tuple(path for path in _paths("flux2") if not path.startswith(blocks))
    for rule in (
        _FLUX2._replace(prefixes=("lora_unet_", "diffusion_model."), layouts=("original",)),
        _FLUX2._replace(prefixes=("transformer.", "lora_transformer_", "lycoris_"), layouts=("diffusers",)),
        _FLUX2._replace(prefixes=("", "base_model.model."), layouts=("diffusers",), lacks=bare),
    ):
        yield from _with_biases(rule, _of_flux2, _FUSED_OF_FLUX2)
    yield Rule(prefixes=("lora_unet_", "diffusion_model."), layouts=("diffusers",), unfound=_UNMATCHED)


# It loads these with the pipelines of diffusers, whose errors it logs, in another revision than that of their rules.
_THROUGH_DIFFUSERS = tuple(
    loader._replace(rules=RulesByFamily(loader.families, partial(loader.rules_changed, by=READ)))
    for loader in DIFFUSERS.loaders
    if set(loader.families) <= {"wan", "qwen_image"}
)


def _loader(family: str, make: Callable[[], Iterable[Rule]], others: Strangers, refuses: Refusal) -> Loader:
    rules = RulesByFamily((family,), lambda asked: make())
    return Loader(rules, _PASSED, (family,), others, refuses, embeddings=True)


PROGRAM = Program(
    name="sdnext",
    title="SD.Next",
    version="2026-07-23",
    ran="2026-11-26",
    loaders=(
        _loader("sd15", partial(_of_unet, ("diffusers",), "lora_te_"), _UNMATCHED, _no_dot),
        _loader("sdxl", partial(_of_unet, ("original", "diffusers"), "lora_te1_", "lora_te2_"), _UNMATCHED, _no_dot),
        _loader("flux", _flux, _UNMATCHED, _of_flux),
        *_THROUGH_DIFFUSERS,
        _loader("sd3", _sd3, _UNMATCHED, _no_dot),
        _loader("flux2", _flux2, _PASSED, nothing_refused),
        _loader("z_image", _z_image, _PASSED, nothing_refused),
    ),
    schemes={
        **dict.fromkeys(("sd15", "sdxl"), "kohya"),
        **dict.fromkeys(("sd3", "flux"), "onetrainer"),
        **dict.fromkeys(("flux2", "z_image"), "comfyui"),
        **dict.fromkeys(("wan", "qwen_image"), "diffusers"),
    },
)
