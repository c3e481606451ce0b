"""Which rules of a loader speak of a module, remembered for the looks that all files of a family have."""

from lora_inspect.architectures.record import Architecture
from lora_inspect.programs.looks import Look, is_at, is_of_layout
from lora_inspect.programs.record import ODD, Loader, Rule

# Far more than there are loaders, and looks in one file of any kind that is met.
_MOST_READERS, _MOST_LOOKS = 1_000, 1_000


class Reader:
    """The rules of a loader for models of a family, None for those of no known one."""

    def __init__(self, loader: Loader, family: Architecture | None) -> None:
        self.loader, self.family = loader, family
        self._rules = loader.rules_for(family.name if family else "")
        self._spoken: dict[Look, tuple[Rule, ...]] = {}

    def speaking_of(self, look: Look) -> tuple[Rule, ...]:
        """The rules that speak of such modules, up to the first that asks nothing of the file."""
        rules = self._spoken.get(look)
        if rules is None:
            if len(self._spoken) >= _MOST_LOOKS:
                self._spoken.clear()
            rules = self._spoken[look] = tuple(self._find(look))
        return rules

    def _find(self, look: Look) -> list[Rule]:
        found: list[Rule] = []
        for rule in self._rules:
            if _speaks_of(rule, look, self.family):
                found.append(rule)
                if rule.where is None:
                    break
        return found


_READERS: dict[tuple[int, int], Reader] = {}


def reader_of(loader: Loader, family: Architecture | None) -> Reader:
    """The reader of a loader for models of the family."""
    # A reader keeps both, so that no other objects can have their identities while it is remembered.
    key = (id(loader), id(family))
    reader = _READERS.get(key)
    if reader is None:
        if len(_READERS) >= _MOST_READERS:
            _READERS.clear()
        reader = _READERS[key] = Reader(loader, family)
    return reader


def _speaks_of(rule: Rule, look: Look, family: Architecture | None) -> bool:
    if rule.prefixes and look.prefix not in rule.prefixes:
        return False
    if rule.alpha is not None and rule.alpha != look.has_alpha:
        return False
    if not _is_spelled(rule, look) or (rule.paths and not is_at(look, rule.paths)):
        return False
    return not rule.layouts or any(is_of_layout(look, family, layout) for layout in rule.layouts)


def _is_spelled(rule: Rule, look: Look) -> bool:
    """Whether the factors are spelled in a dialect of the rule; odd ones only where it names them."""
    is_odd = any(own in ODD for own in look.dialects)
    if not rule.dialects:
        return not (is_odd and rule.kinds)
    return any(own in rule.dialects for own in look.dialects)
