"""What a file needs, beside its names, for the programs that load them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from lora_inspect.architectures.record import Architecture
from lora_inspect.fast_namedtuple import NamedTuple

# The layout that a file has already, where programs load the modules of any.
OWN = "own"
# What the programs of a scheme make of DoRA: all of them apply the magnitude as it was trained, some do, or none does.
EXACT, DEPENDS, LOST = "exact", "depends", "lost"


def no_encoders(family: Architecture) -> tuple[str, ...]:
    """The prefixes of a scheme that has names for one network alone."""
    return ()


def own_roots(family: Architecture) -> Mapping[str, str]:
    """The roots of a scheme that leaves the layers of text encoders below those that a file has."""
    return {}


class Writing(NamedTuple):
    """How a file has to be written for the programs that load the names of a scheme, which `title` calls.

    `layout` gives the name of the layout that they have of a family: OWN where they load any layout, None where they
    know no such family. It is asked with None for a model of no known family. `prefix` stands before the paths of the
    model, with `{pipeline}` for what a pipeline of diffusers calls it, but for the families in `prefixes`. `encoders`
    gives those of the text encoders in the order in which the family has them, empty for one that has none, and
    `encoder_roots` by kind of encoder where its blocks are, with `{i}` for the number: `model.layers.{i}`.

    `dialects` are those of algorithms that they read, `alike` the names of algorithms that have none of these and are
    spelled as they read them, and `algorithms` the names of all that they compute, None for every one of both.
    `instead` says by algorithm as which other one the same change is written, and `misread` names by algorithm the
    factors that they pass over or have another rule for, `alpha` among them where it is one. `magnitudes` says what
    they make of DoRA's, `input_magnitudes` whether they take those of inputs, and `over_base` whether they divide those
    of outputs by the norms of the base's rows in the place of the changed ones, None where some do. `extras` says
    whether they load a file with tensors that they do not know, and `embeddings` whether one with embeddings of tokens.
    All their modules' paths begin with one of the `roots`, and none has a part of `lacks`. `parameters` says whether a
    parameter that is no layer's has a name there, its own.
    """

    title: str
    layout: Callable[[Architecture | None], str | None]
    prefix: str
    prefixes: Mapping[str, str] = MappingProxyType({})
    encoders: Callable[[Architecture], tuple[str, ...]] = no_encoders
    encoder_roots: Callable[[Architecture], Mapping[str, str]] = own_roots
    dialects: tuple[str, ...] = ("kohya", "lycoris")
    alike: frozenset[str] = frozenset()
    algorithms: frozenset[str] | None = None
    instead: Mapping[str, str] = MappingProxyType({})
    misread: Mapping[str, frozenset[str]] = MappingProxyType({})
    magnitudes: str = DEPENDS
    input_magnitudes: bool = True
    over_base: bool | None = False
    extras: bool = False
    embeddings: bool = False
    roots: tuple[str, ...] = ("",)
    lacks: tuple[str, ...] = ()
    parameters: bool = False


def first_of(family: Architecture | None, *names: str) -> str | None:
    """The first of these layouts that the family has."""
    own = {layout.name for layout in family.layouts} if family else ()
    return next((name for name in names if name in own), None)


def of_diffusers_or_own(family: Architecture | None) -> str:
    """The layout of those who load the classes of diffusers and of transformers, and any other model as it is."""
    return first_of(family, "diffusers") or OWN


def of_trainers(family: Architecture | None) -> str | None:
    """The layout of a family that underscored files of most programs name: the one that its own trainers train."""
    first = family.layouts[0] if family else None
    return first.name if first and first.kohya_prefix == "lora_unet_" else None
