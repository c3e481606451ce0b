"""Which modules of several adapters the options --include and --exclude leave."""

from collections.abc import Mapping

from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.module_patterns import ModuleNames, check_all_fit, fits

INCLUDE, EXCLUDE = "--include", "--exclude"


class Choice(NamedTuple):
    """Modules are taken that fit a pattern of `include`, all where it is empty, and none of `exclude`."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def says(self) -> str:
        """The options that choose."""
        return " and ".join(option for option, given in ((INCLUDE, self.include), (EXCLUDE, self.exclude)) if given)

    @property
    def leaves(self) -> str:
        """What it adds to a sentence on the modules that are left."""
        return f" that {self.says} leave" if self.says else ""

    def takes(self, names: ModuleNames) -> bool:
        """Whether a module is merged."""
        is_included = not self.include or any(fits(pattern, names) for pattern in self.include)
        return is_included and not any(fits(pattern, names) for pattern in self.exclude)

    def left_out(self, adapters: Mapping[str, Mapping[str, ModuleNames]]) -> dict[str, list[str]]:
        """The keys of the modules that are left out of each adapter; the names of its modules come by its path.

        Raises LoraInspectError where a pattern fits no module at all, and where nothing is left of an adapter.
        """
        every = [names for modules in adapters.values() for names in modules.values()]
        check_all_fit(self.include, every, INCLUDE)
        check_all_fit(self.exclude, every, EXCLUDE)
        found = {
            path: [key for key, names in modules.items() if not self.takes(names)] for path, modules in adapters.items()
        }
        for path, keys in found.items():
            if keys and len(keys) == len(adapters[path]):
                raise LoraInspectError(f"{path}: {self.says} leave none of its {len(keys)} modules; leave it out.")
        return found
