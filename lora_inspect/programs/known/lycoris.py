"""LyCORIS's wrapper: flat names behind `lycoris_`, of the given model.

Every module must load and have alpha. `create_lycoris_from_weights` takes the first algorithm with keys for a layer,
and raises if it knows none of them. `merge_to` and `onfly_merge` scale LoHa and thin LoKr twice, unlike the forward of
`apply_to`. So the two are programs of their own here. Other names are ignored silently.

Sources: `wrapper.py` and `modules/` of lycoris-lora.
"""

from collections.abc import Collection
from functools import cache

from lora_inspect.architectures import every
from lora_inspect.architectures.patterns import layout_patterns, pattern_of
from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    HIDING,
    INFIXED,
    LEAVES,
    MISREADS,
    SILENT,
    SLICED,
    Given,
    Loader,
    LoadFailure,
    OfKind,
    Program,
    Rule,
    Strangers,
    alpha_over_rank,
)
from lora_inspect.reading.adapter import Adapter
from lora_inspect.schemes import SCHEMES

PREFIX = "lycoris_"
# The order in which it looks for an algorithm in the keys of a layer; the others of the same layer are not read.
_ORDER = ("lora", "loha", "lycoris_ia3", "lokr", "full", "norm", "oft", "lycoris_boft", "glora", "tlora")
# What one of these reads beside its own: the difference of the bias.
_BIASES = {"full": "full_bias", "norm": "norm_bias"}
_WITHOUT_ALPHA = ("full", "norm", "lycoris_ia3")
# What is said by the errors that are raised.
_NO_ALGORITHM = "AttributeError: 'NoneType' object has no attribute 'make_module_from_state_dict'"
_NO_ALPHA = "TypeError: float() argument must be a string or a real number, not 'NoneType'"
_IA3 = "TypeError: IA3Module.make_module_from_state_dict() takes 4 positional arguments but 5 were given"
_SIZES = "RuntimeError: the size of a tensor must match"
_NO_FACTOR = "AttributeError: the module has no such factor"


@OfKind
def _exceptions(given: Given) -> str | LoadFailure | None:
    """Return the error for a layer, or LEAVES for a change that is not read."""
    found = [one.algorithm.name for one in given.module.contributions]
    first = next((name for name in _ORDER if name in found), None)
    name = given.contribution.algorithm.name
    if first is None:
        return LoadFailure(_NO_ALGORITHM) if name in _BIASES.values() else None
    if name != first:
        return None if name == _BIASES.get(first) else LEAVES
    if first == "lycoris_ia3":
        return LoadFailure(_IA3)
    if given.module.alpha is None and first not in _WITHOUT_ALPHA:
        return LoadFailure(_NO_ALPHA)
    return _exceptions_of_shapes(given)


def _exceptions_of_shapes(given: Given) -> str | LoadFailure | None:
    """Return the error for factors with other shapes than those of the built module."""
    contribution = given.contribution
    if contribution.magnitude and contribution.magnitude.axis == "input":
        return LoadFailure("RuntimeError: output with the shape of one number a row doesn't match the broadcast shape")
    shapes = contribution.shapes
    if contribution.algorithm.name == "lokr":
        return _exceptions_of_lokr(given)
    if contribution.algorithm.name == "oft" and shapes["blocks"][1] > shapes["blocks"][0]:
        return LoadFailure(_SIZES)
    return LoadFailure(_NO_FACTOR) if "bm" in shapes else None


def _exceptions_of_lokr(given: Given) -> str | LoadFailure | None:
    """Return the error for LoKr: the first factor must have the smaller sizes.

    A factor is a product if the rank is below half of its larger side.
    """
    shapes, rank = given.contribution.shapes, given.contribution.rank or 0
    if "t2" in shapes:
        return LoadFailure(_SIZES)
    o1, i1 = shapes["w1"] if "w1" in shapes else (shapes["w1_a"][0], shapes["w1_b"][1])
    o2, i2 = shapes["w2"][:2] if "w2" in shapes else (shapes["w2_a"][0], shapes["w2_b"][1])
    if "w1_a" in shapes and ("w2" in shapes or rank >= max(o1, i1) / 2):
        return LoadFailure(_NO_FACTOR)
    if "w2_a" in shapes and rank >= max(o2, i2) / 2:
        return LoadFailure(_NO_FACTOR)
    if o1 > o2 or i1 > i2:
        return LoadFailure(_SIZES)
    # The columns of a product may be those of a kernel, by which the side is smaller.
    is_sure = "w2" in shapes or rank < o2 / 2
    return None if is_sure and any(_parts(factor, (o1, o2), (i1, i2)) for factor in (-1, max(o1, i1))) else ""


def _parts(factor: int, *sides: tuple[int, int]) -> bool:
    """Return True if the factor splits both dimensions of the weight as the file does."""
    from lora_inspect.algorithms.lokr import factorise

    return all(factorise(small * large, factor) == (small, large) for small, large in sides)


@OfKind
def _merged_exceptions(given: Given) -> str | LoadFailure | None:
    """Return MISREADS for a magnitude of a change that `merge_to` scales twice.

    It normalises with that scale too.
    """
    found, twice = _exceptions(given), _merged_scale(given) != alpha_over_rank(given)
    return MISREADS if found is None and given.contribution.magnitude and twice else found


@OfKind
def _merged_scale(given: Given) -> float | None:
    scale = alpha_over_rank(given)
    if scale is not None and given.contribution.algorithm.name in ("loha", "lokr"):
        return scale * scale
    return scale


def _unread(adapter: Adapter) -> dict[str, str]:
    """Return the patterns of names with unknown keys only, with one name of each."""
    names = {key.partition(".")[0] for key in adapter.unclaimed if "." in key and key.startswith(PREFIX)}
    return {pattern_of(name.removeprefix(PREFIX), "_"): name for name in sorted(names - adapter.modules.keys())}


def _refused(adapter: Adapter) -> str | None:
    """Return the error for a layer of another block, or a group of layers, that has only unknown keys."""
    unread = _unread(adapter)
    of_file = {pattern_of(module.name.body, "_") for module in adapter.modules.values()} if unread else set[str]()
    return _NO_ALGORITHM if any(_holds(of_file, pattern) for pattern in unread) else None


def _unsure(adapter: Adapter) -> str | None:
    """Return the question for the first such name that some model may have."""
    unread = _unread(adapter)
    known = _layers() if unread else frozenset[str]()
    return next(
        (f"whether the model has {name}" for pattern, name in unread.items() if _may_hold(known, pattern)), None
    )


def _holds(patterns: Collection[str], name: str) -> bool:
    return name in patterns or any(pattern.startswith(f"{name}_") for pattern in patterns)


def _may_hold(patterns: Collection[str], name: str) -> bool:
    """Return True also for a name in one of the blocks; layouts do not list all that is there."""
    block, number, _ = name.partition("#")
    return _holds(patterns, name) or bool(number and any(pattern.startswith(f"{block}#") for pattern in patterns))


@cache
def _layers() -> frozenset[str]:
    """Return the names of all families' layers in diffusers."""
    own = (layout for family in every() for layout in family.layouts if "diffusers" in layout.names)
    return frozenset(name for layout in own for name in layout_patterns((*layout.named, *layout.norms), "_"))


_FOUND = Rule(
    prefixes=(PREFIX,),
    layouts=("diffusers",),
    kinds={
        **dict.fromkeys((*_ORDER, *_BIASES.values()), COMPUTES),
        "lora_bias": LEAVES,
    },
    exceptions=_exceptions,
    magnitudes={
        ".dora_scale output": COMPUTES,
        ".dora_scale input": FAILS,
        **dict.fromkeys((".dora_layer.weight output", ".magnitude output"), LEAVES),
    },
)
# Keys of which it knows none beside a layer that it has.
_OTHER_KEYS = _FOUND._replace(
    dialects=("peft", SLICED, INFIXED, HIDING), kinds={"": FAILS}, exceptions=None, says=_NO_ALGORITHM
)
_OTHER_NAMES = Rule(
    prefixes=tuple({prefix: None for scheme in SCHEMES.values() for prefix in scheme.prefixes if prefix != PREFIX})
)
_LYCORIS = Program(
    name="lycoris",
    title="LyCORIS",
    version="4.1.3",
    ran="2026-11-26",
    loaders=(
        Loader(
            rules=(_OTHER_KEYS, _FOUND, _OTHER_NAMES), strangers=Strangers(SILENT), refuses=_refused, unsure=_unsure
        ),
    ),
    schemes={"": "lycoris"},
)
_MERGE = _LYCORIS._replace(
    name="lycoris-merge",
    title="LyCORIS (merge_to)",
    loaders=(
        _LYCORIS.loaders[0]._replace(
            rules=(_OTHER_KEYS, _FOUND._replace(exceptions=_merged_exceptions, scale=_merged_scale), _OTHER_NAMES)
        ),
    ),
)
PROGRAMS = (_LYCORIS, _MERGE)
