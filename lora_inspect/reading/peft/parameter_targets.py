"""A config's `target_parameters`: which parameters of a module they choose, as PEFT finds them."""

from typing import Any

from lora_inspect.reading.peft.config_patterns import Targets
from lora_inspect.reading.peft.match_budget import Steps

# More names of parameters than the experts of any model have.
_MOST_NAMES = 16


class ParameterTargets:
    """The names in `target_parameters`, each the end of a parameter's path; what is no list of names says nothing.

    Raises RefusedKey where a path is looked up and that takes too long.
    """

    def __init__(self, targets: Any, steps: Steps) -> None:
        names = [name for name in targets if isinstance(name, str) and name] if isinstance(targets, list) else []
        bare = [name for name in names if "." not in name]
        dotted = [name for name in names if "." in name]
        self._dotted, self._bare = Targets(dotted, steps), Targets(bare, steps)
        # What a module is called that a dotted name may be of.
        self._modules = {name.split(".")[-2] for name in dotted}
        self._leaves = tuple(dict.fromkeys(name.rpartition(".")[2] for name in names))[:_MOST_NAMES]

    def of(self, module: str, without_parent: bool) -> list[str]:
        """The parameters of the module at the dotted path, in the order in which they are named first.

        A name without its module's, which is the end of many paths, counts only where that is `without_parent`.
        """
        if not self._leaves or not (without_parent or module.rpartition(".")[2] in self._modules):
            return []
        return [leaf for leaf in self._leaves if self._choose(f"{module}.{leaf}", without_parent)]

    def choose(self, path: str) -> bool:
        """Whether the parameter at the dotted path is a target."""
        return bool(self._leaves) and self._choose(path, without_parent=True)

    def _choose(self, path: str, without_parent: bool) -> bool:
        return self._dotted.choose(path) or (without_parent and self._bare.choose(path))
