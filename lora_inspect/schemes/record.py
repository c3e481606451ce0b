"""What a naming scheme is, and the one direction in which it is written: from a path to a key."""

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.schemes.writing import Writing

MODEL = "model"
# No suffix is longer: a key may have as many letters as a file has room for.
LONGEST_SUFFIX = 64


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
    itself does. `dialect` is the one of an algorithm's dialects that they are of, where it has that one.
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
                raise LoraInspectError(
                    f"{inverted[name]} and {path} are both spelled {name} in the {self.name} scheme; "
                    "name the modules in a dotted scheme instead."
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
