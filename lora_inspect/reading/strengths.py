"""The multiplier of each module of an adapter, by the settings that speak of it."""

from collections.abc import Collection, Mapping

from lora_inspect.errors import LoraInspectError
from lora_inspect.reading.model.settings import ALL, Settings
from lora_inspect.reading.module_patterns import ModuleNames, fits, fits_path, is_component, unknown_pattern


def multiplier_of(settings: Settings, names: ModuleNames) -> float:
    """The strength of a module: by the first pattern that fits it, else by its component, else the plain number."""
    return _strength(settings, names)[1]


def check_strengths(settings: Settings, path: str, modules: Collection[ModuleNames], left: str = "") -> None:
    """Raises LoraInspectError where a component or a pattern decides the strength of none of the `modules`.

    `path` is the adapter's, and `left` says how it came that these are its modules.
    """
    deciding = {_strength(settings, names)[0] for names in modules}
    for pattern, _ in settings.strengths:
        if pattern in deciding:
            continue
        if fitting := [names for names in modules if fits(pattern, names)]:
            raise LoraInspectError(
                f"{path}: {pattern} decides nothing, as settings before it or closer ones decide for all "
                f"{len(fitting)} modules that it fits; leave it out, or write it first."
            )
        raise LoraInspectError(f"{path}: {unknown_pattern(pattern, modules, left)}.")


class Strengths:
    """The multipliers of one adapter's modules. `names` are those of the modules by their keys.

    They are needed where a part has a strength of its own; LoraInspectError where one has it for no module.
    """

    def __init__(self, settings: Settings, path: str, names: Mapping[str, ModuleNames], left: str = "") -> None:
        self._settings, self._names = settings, names
        if settings.strengths:
            check_strengths(settings, path, names.values(), left)

    def of(self, key: str) -> float:
        """The multiplier of the module with this key."""
        if self._settings.strengths:
            return multiplier_of(self._settings, self._names[key])
        return 1.0 if self._settings.multiplier is None else self._settings.multiplier


def _strength(settings: Settings, names: ModuleNames) -> tuple[str, float]:
    of_component: tuple[str, float] | None = None
    for pattern, number in settings.strengths:
        if is_component(pattern, names):
            of_component = of_component or (pattern, number)
        elif fits_path(pattern, names):
            return pattern, number
    return of_component or (ALL, 1.0 if settings.multiplier is None else settings.multiplier)
