"""The modules of those components of an adapter that the user asks for."""

from collections.abc import Collection

from lora_inspect.errors import LoraInspectError
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Module


def chosen(
    adapter: Adapter, only: Collection[str], without: Collection[str] = ()
) -> tuple[list[Module], tuple[Module, ...]]:
    """The modules of the components `only`, and the others; all of them where none is named.

    Those whose keys are in `without` are in neither. Raises LoraInspectError where the adapter has none of these
    components.
    """
    modules = [module for key, module in adapter.modules.items() if key not in without]
    if not only:
        return modules, ()
    found = [module for module in modules if module.name.component in only]
    if not found:
        present = ", ".join(sorted({module.name.component for module in modules}))
        raise LoraInspectError(f"{adapter.checkpoint.path}: it has no component {' or '.join(only)}; it has {present}.")
    return found, tuple(module for module in modules if module.name.component not in only)
