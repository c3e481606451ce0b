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
    """Return no prefixes: the scheme has names for one network only."""
    return ()


def own_roots(family: Architecture) -> Mapping[str, str]:
    """Return no roots: the scheme keeps the roots of text encoders that a file has."""
    return {}


class Writing(NamedTuple):
    """The requirements for a file to load in the programs of a scheme, which `title` names.

    `layout` gives the layout that they use for a family: OWN if they load any layout, None if they do not know the
    family. Its argument is None for a model of no known family. `prefix` comes before the paths of the model, with
    `{pipeline}` for the model's name in a pipeline of diffusers; families in `prefixes` have another one. `encoders`
    gives the prefixes of the text encoders in the family's order, empty for a family without any. `encoder_roots` gives
    the place of the blocks by kind of encoder, with `{i}` for the number: `model.layers.{i}`.

    `dialects` are the dialects of algorithms that they read. `alike` names algorithms without any of these that are
    spelled as the programs read them. `algorithms` names all that they compute; None is for all of `dialects` and
    `alike`. `instead` maps an algorithm to another one that can write the same change. `misread` names by algorithm the
    factors that they ignore or compute by another rule, including `alpha`. `magnitudes` says how they apply those of
    DoRA. `input_magnitudes` says whether they accept those of inputs, and `over_base` whether they divide those of
    outputs by the norms of the base's rows instead of the changed rows; None where some do. `extras` says whether they
    load a file with unknown tensors, and `embeddings` a file with embeddings of tokens. All module paths begin with one
    of the `roots`, and none contains a part of `lacks`. `parameters` says whether a parameter outside of layers has its
    own name there.
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
    """Return the first of these layouts that the family has."""
    own = {layout.name for layout in family.layouts} if family else ()
    return next((name for name in names if name in own), None)


def of_diffusers_or_own(family: Architecture | None) -> str:
    """Return the layout for programs that load diffusers' and transformers' classes, and other models as they are."""
    return first_of(family, "diffusers") or OWN


def of_trainers(family: Architecture | None) -> str | None:
    """Return the layout that a family's own trainers train, if its prefix is `lora_unet_`; None otherwise.

    Most programs mean this layout by underscored names.
    """
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
        """Return the part before the suffix in the file's keys."""
        return self.prefix + self.body


class Scheme(NamedTuple):
    """A naming convention.

    `prefixes` maps the beginnings of keys to components. `flat` schemes join the path with underscores. `suffixes` are
    the spellings by role that `spell` writes; a read-only scheme has none. `absent_alpha` gives the meaning of a module
    without alpha: the scale is "one", alpha is in a "config" next to the tensors, or the "scale" itself is there.
    `dialect` is the algorithm dialect of the suffixes, if an algorithm has it. It is ITS_OWN if no algorithm has the
    `suffixes` of LoRA's factors: they are read only below this scheme's prefixes. `carries_alpha` says whether readers
    of the scheme apply an alpha tensor.

    `marks` are suffixes that only modules of this scheme have; they separate it from schemes with the same prefixes.
    `hiding` are suffixes of LoRA's factors that contain the end of the module's own path: the role of each, and that
    end. `alpha_of_all` says that the file has one alpha for all modules, next to its tensors. `writing` are the
    requirements of its programs; None if nothing is written under these names.
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
        """Return the module's name in keys: `prefix` and the dotted `path` as this scheme writes it."""
        return prefix + (path.replace(".", "_") if self.flat else path)

    def spell(self, path: str, role: str, prefix: str) -> str:
        """Return the key of the tensor with `role` of the module at the dotted `path`."""
        return self.module(path, prefix) + self.suffixes[role]

    def table(self, paths: Iterable[str], prefix: str) -> dict[str, str]:
        """Return the dotted paths by module name, the inverse of `module`.

        Raises LoraInspectError if two paths have the same spelling.
        """
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
        """Return the parts of a module's name that begins with a `prefix`; None if it is not one of this scheme.

        `suffixes` are the suffixes of its keys.
        """
        if len(module) == len(prefix) or (self.flat and "." in module):
            return None
        if self.marks and not any(suffix in self.marks for suffix in suffixes):
            return None
        return ModuleName(self.name, self.prefixes[prefix], prefix, module[len(prefix) :], self.flat)
