"""Several adapters read together: options without a path settle the one adapter that needs them.

The file also gives the multiplier of each module by the settings that match it, and the modules that --include and
--exclude leave.
"""

from collections.abc import Collection, Mapping, Sequence

from lora_inspect.errors import AmbiguousError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.maths.scaling import PACKINGS
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.identify import adapter_candidates
from lora_inspect.reading.model.settings import ALL, Settings, spell_settings
from lora_inspect.reading.module_patterns import (
    ModuleNames,
    check_all_fit,
    fits,
    fits_path,
    is_component,
    unknown_pattern,
)

# How an open setting is written on a path where nothing says its value.
_PLACEHOLDERS = {
    "alpha": "alpha=N",
    "rslora": "rslora=yes|no",
    "expert_packing": f"expert-packing={'|'.join(PACKINGS)}",
}


def read_settled(
    opened: Sequence[tuple[Checkpoint, Settings]], options: Settings, has_steps: bool = False
) -> list[Adapter]:
    """Read each checkpoint with the settings on its path and the settings from `options`.

    An option applies to the one adapter that leaves it open. Raises LoraInspectError if there are several, and if an
    adapter needs more than the options and the paths give; the error names everything that is missing. If nothing is
    open, the option is checked against every adapter. The architecture applies to all adapters that leave it open,
    since they share one base. A step is refused unless the verb `has_steps`.
    """
    for checkpoint, own in opened:
        if own.step is not None and not has_steps:
            raise RefusedError(checkpoint.path, f"step={own.step} has no effect", "leave it out; average uses it")
    partial = Settings(allow_partial_dora=options.allow_partial_dora)
    adapters = [read_adapter(checkpoint, own.joined(partial, checkpoint.path)) for checkpoint, own in opened]
    adapters = _with_architecture(adapters, options.architecture)
    for name in _PLACEHOLDERS:
        if getattr(options, name) is None:
            continue
        option = Settings()._replace(**{name: getattr(options, name)})
        takers = _takers(adapters, name)
        if len(takers) > 1:
            raise AmbiguousError(
                f"{spell_settings(option)} is ambiguous for {len(takers)} adapters; put it on the path "
                f"of each: {_forms([adapters[taker] for taker in takers], option)}."
            )
        for index in takers or _havers(adapters, name) or range(len(adapters)):
            checkpoint, own = adapters[index].checkpoint, adapters[index].settings
            adapters[index] = read_adapter(checkpoint, own.joined(option, checkpoint.path))
    unsettled = [adapter for adapter in adapters if adapter.open]
    if len(unsettled) > 1:
        packing = all(adapter.open == ("expert_packing",) for adapter in unsettled)
        what = "the packing of experts" if packing else "the scale"
        raise AmbiguousError(
            f"{what} is unknown in {len(unsettled)} adapters, as `lora-inspect info` explains; set it on "
            f"each path: {_forms(unsettled)}."
        )
    return adapters


def _with_architecture(adapters: Sequence[Adapter], named: str | None) -> list[Adapter]:
    """Return the adapters with the option --architecture where it applies."""
    if named is None:
        return list(adapters)
    counts = [len(adapter_candidates(adapter)) for adapter in adapters]
    # Those that leave it open, else those of a known family, else all.
    least = next((least for least in (2, 1) if max(counts) >= least), 0)
    option = Settings(architecture=named)
    return [
        read_adapter(one.checkpoint, one.settings.joined(option, one.checkpoint.path)) if count >= least else one
        for one, count in zip(adapters, counts, strict=True)
    ]


def _takers(adapters: Sequence[Adapter], name: str) -> list[int]:
    """Return the adapters that wait for a setting; for the rule, if none waits, those without any evidence of it."""
    waiting = [index for index, adapter in enumerate(adapters) if name in adapter.open]
    if waiting or name != "rslora":
        return waiting
    return [index for index in _havers(adapters, name) if adapters[index].rslora.is_default]


def _havers(adapters: Sequence[Adapter], name: str) -> list[int]:
    """Return the adapters in which alpha, the rule that reads it, or the packing of experts makes a difference."""
    if name == "expert_packing":
        return [index for index, one in enumerate(adapters) if any(c.algorithm.packed for c in one.contributions)]
    least_rank, of_rule = (2, True) if name == "rslora" else (1, False)
    return [
        index
        for index, adapter in enumerate(adapters)
        if any(
            c.alpha is not None and (c.rank or 0) >= least_rank and (c.formula.rslora or not of_rule)
            for c in adapter.contributions
        )
    ]


def _forms(adapters: Sequence[Adapter], option: Settings = Settings()) -> str:  # noqa: B008 (frozen)
    """Return the argument to write for each adapter: its path, its settings, and the open ones."""
    forms = []
    for adapter in adapters:
        given = spell_settings(adapter.settings)
        wanted = dict.fromkeys([*adapter.open, *(name for name in _PLACEHOLDERS if getattr(option, name) is not None)])
        parts = [given] if given else []
        for name in wanted:
            value = getattr(option, name)
            parts.append(_PLACEHOLDERS[name] if value is None else spell_settings(Settings()._replace(**{name: value})))
        forms.append(f"{adapter.checkpoint.path}:{','.join(parts)}")
    return " ".join(forms)


def multiplier_of(settings: Settings, names: ModuleNames) -> float:
    """Return a module's multiplier: by the first matching pattern, else by its component, else the plain number."""
    return _multiplier(settings, names)[1]


def check_multipliers(settings: Settings, path: str, modules: Collection[ModuleNames], left: str = "") -> None:
    """Raise LoraInspectError if a component or a pattern decides the multiplier of none of the `modules`.

    `path` is the adapter's, and `left` explains why these are its modules.
    """
    deciding = {_multiplier(settings, names)[0] for names in modules}
    for pattern, _ in settings.part_multipliers:
        if pattern in deciding:
            continue
        if fitting := [names for names in modules if fits(pattern, names)]:
            raise RefusedError(
                path,
                f"{pattern} has no effect, as earlier or closer settings decide for all {len(fitting)} "
                "modules that it matches",
                "leave it out, or put it first",
            )
        raise RefusedError(path, unknown_pattern(pattern, modules, left))


class Multipliers:
    """The multipliers of one adapter's modules; `names` are the modules' names by their keys.

    They are needed if a part has a multiplier of its own. Raises LoraInspectError if one has it for no module.
    """

    def __init__(self, settings: Settings, path: str, names: Mapping[str, ModuleNames], left: str = "") -> None:
        self._settings, self._names = settings, names
        if settings.part_multipliers:
            check_multipliers(settings, path, names.values(), left)

    def of(self, key: str) -> float:
        """Return the multiplier of the module with this key."""
        if self._settings.part_multipliers:
            return multiplier_of(self._settings, self._names[key])
        return 1.0 if self._settings.multiplier is None else self._settings.multiplier


def _multiplier(settings: Settings, names: ModuleNames) -> tuple[str, float]:
    of_component: tuple[str, float] | None = None
    for pattern, number in settings.part_multipliers:
        if is_component(pattern, names):
            of_component = of_component or (pattern, number)
        elif fits_path(pattern, names):
            return pattern, number
    return of_component or (ALL, 1.0 if settings.multiplier is None else settings.multiplier)


INCLUDE, EXCLUDE = "--include", "--exclude"


class ModuleFilter(NamedTuple):
    """A choice of modules: those that match a pattern of `include`, or all if it is empty, and none of `exclude`."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def says(self) -> str:
        """The options that choose."""
        return " and ".join(option for option, given in ((INCLUDE, self.include), (EXCLUDE, self.exclude)) if given)

    @property
    def leaves(self) -> str:
        """The addition to a sentence about the modules that are left."""
        return f" left by {self.says}" if self.says else ""

    def takes(self, names: ModuleNames) -> bool:
        """Return True if a module is merged."""
        is_included = not self.include or any(fits(pattern, names) for pattern in self.include)
        return is_included and not any(fits(pattern, names) for pattern in self.exclude)

    def left_out(self, adapters: Mapping[str, Mapping[str, ModuleNames]]) -> dict[str, list[str]]:
        """Return the keys of the modules to leave out of each adapter; `adapters` has their names by path.

        Raises LoraInspectError if a pattern matches no module at all, and if nothing is left of an adapter.
        """
        every = [names for modules in adapters.values() for names in modules.values()]
        check_all_fit(self.include, every, INCLUDE)
        check_all_fit(self.exclude, every, EXCLUDE)
        found = {
            path: [key for key, names in modules.items() if not self.takes(names)] for path, modules in adapters.items()
        }
        for path, keys in found.items():
            if keys and len(keys) == len(adapters[path]):
                raise RefusedError(path, f"none of its {len(keys)} modules remains after {self.says}", "leave it out")
        return found
