"""The record of a naming scheme, and its one direction of writing: from a path to a key.

A file also needs other things than names for the programs that load it; the record lists them.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType

from lora_inspect.architectures.record import Architecture
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple

# The layout that a file has already, where programs load the modules of any.
OWN = "own"
# What the programs of a scheme make of DoRA: all of them apply the magnitude as it was trained, some do, or none does.
EXACT, DEPENDS, LOST = "exact", "depends", "lost"
# The dialect of a scheme that spells LoRA's factors as no algorithm does.
ITS_OWN = "its own"


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


MODEL = "model"
# No suffix is longer: a key may have as many letters as a file has room for.
LONGEST_SUFFIX = 64
# The roles of LoRA's factors.
LORA_ROLES = ("down", "up", "mid")


class ModuleName(NamedTuple):
    """A module as a file names it: `prefix + body`, where a flat body has underscores instead of dots.

    `component` is the network of a pipeline that holds the module: "model", "text_encoder", "text_encoder_2", ….
    """

    scheme: str
    component: str
    prefix: str
    body: str
    flat: bool

    @property
    def key(self) -> str:
        """What stands before the suffix in the file's keys."""
        return self.prefix + self.body


class Scheme(NamedTuple):
    """A naming convention.

    `prefixes` maps what keys begin with to the component it stands for. `flat` schemes join the path with underscores.
    `suffixes` are the spellings by role that `spell` writes, none of a scheme that is only read. `absent_alpha` says
    what a module without alpha means: the scale is "one", alpha stands in a "config" beside the tensors, or the "scale"
    itself does. `dialect` is the one of an algorithm's dialects that they are of, where it has that one, and ITS_OWN
    where the `suffixes` of LoRA's factors stand in no algorithm: they are read below the prefixes of this scheme alone.
    `carries_alpha` says whether readers of the scheme honour an alpha tensor.

    `marks` are suffixes of which only modules of this scheme have one, where others have its prefixes too. `hiding` are
    suffixes of LoRA's factors in which the module's own path ends: the role of each, and that end.
    `alpha_of_all` says that the file has one alpha for all modules, beside its tensors. `writing` is what a file needs
    for its programs; None where nothing is written under these names.
    """

    name: str
    prefixes: Mapping[str, str]
    flat: bool
    suffixes: Mapping[str, str]
    carries_alpha: bool
    absent_alpha: str = "one"
    dialect: str = "kohya"
    marks: tuple[str, ...] = ()
    hiding: Mapping[str, tuple[str, str]] = MappingProxyType({})
    alpha_of_all: bool = False
    writing: Writing | None = None

    @property
    def own_factors(self) -> dict[str, str]:
        """The suffixes of LoRA's factors by role, where no algorithm has them."""
        if self.dialect != ITS_OWN:
            return {}
        return {role: suffix for role, suffix in self.suffixes.items() if role in LORA_ROLES}

    def module(self, path: str, prefix: str) -> str:
        """The module's name in keys: `prefix` and the dotted `path` as this scheme writes it."""
        return prefix + (path.replace(".", "_") if self.flat else path)

    def spell(self, path: str, role: str, prefix: str) -> str:
        """The key of the tensor with `role` of the module at the dotted `path`."""
        return self.module(path, prefix) + self.suffixes[role]

    def table(self, paths: Iterable[str], prefix: str) -> dict[str, str]:
        """Module name -> dotted path, the inverse of `module`; raises LoraInspectError where two paths spell alike."""
        inverted: dict[str, str] = {}
        for path in paths:
            name = self.module(path, prefix)
            if inverted.setdefault(name, path) != path:
                raise RefusedError(
                    f"{inverted[name]} and {path} both have the name {name} in the {self.name} scheme; name the "
                    "modules in a dotted scheme instead."
                )
        return inverted

    def parts(self, module: str, prefix: str, suffixes: Collection[str] = ()) -> ModuleName | None:
        """The parts of a module's name that begins with a `prefix`, where it is one of this scheme, else None.

        `suffixes` are those of its keys.
        """
        if len(module) == len(prefix) or (self.flat and "." in module):
            return None
        if self.marks and not any(suffix in self.marks for suffix in suffixes):
            return None
        return ModuleName(self.name, self.prefixes[prefix], prefix, module[len(prefix) :], self.flat)
