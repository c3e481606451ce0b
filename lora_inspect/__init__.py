"""Says what a LoRA-family checkpoint means, and merges and converts it without losing anything silently.

The public API; docs/api.md shows how it is used. A name is loaded when it is first asked for, so that importing this
costs nothing; torch is loaded by what computes.
"""

from lora_inspect.version import __version__

# Where each public name is, in lora_inspect.api.
_HOMES = {
    "CheckResult": "verbs",
    "CompatResult": "compat",
    "ConvertResult": "convert",
    "LoraInspectError": "failures",
    "MergeResult": "merge",
    "ModuleChange": "modules",
    "OpenedAdapter": "opened",
    "OpenedModule": "modules",
    "ScannedFile": "scan",
    "StateDict": "state_dict",
    "UndoResult": "undo",
    "VerifyResult": "verify",
    "check": "verbs",
    "compat": "compat",
    "convert": "convert",
    "merge": "merge",
    "open_adapter": "opened",
    "scan": "scan",
    "state_dict": "state_dict",
    "undo": "undo",
    "verify": "verify",
}

__all__ = [
    "CheckResult",
    "CompatResult",
    "ConvertResult",
    "LoraInspectError",
    "MergeResult",
    "ModuleChange",
    "OpenedAdapter",
    "OpenedModule",
    "ScannedFile",
    "StateDict",
    "UndoResult",
    "VerifyResult",
    "__version__",
    "check",
    "compat",
    "convert",
    "merge",
    "open_adapter",
    "scan",
    "state_dict",
    "undo",
    "verify",
]

TYPE_CHECKING = False  # what checks types takes it for true, and `typing` takes longer to load than all of this
if TYPE_CHECKING:
    from lora_inspect.api.compat import CompatResult, compat
    from lora_inspect.api.convert import ConvertResult, convert
    from lora_inspect.api.failures import LoraInspectError
    from lora_inspect.api.merge import MergeResult, merge
    from lora_inspect.api.modules import ModuleChange, OpenedModule
    from lora_inspect.api.opened import OpenedAdapter, open_adapter
    from lora_inspect.api.scan import ScannedFile, scan
    from lora_inspect.api.state_dict import StateDict, state_dict
    from lora_inspect.api.undo import UndoResult, undo
    from lora_inspect.api.verbs import CheckResult, check
    from lora_inspect.api.verify import VerifyResult, verify
else:  # names that are not there are wrong for what checks types as well

    def __getattr__(name: str) -> object:
        """Loads a public name; what it names then stands here."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        found: object = getattr(import_module(f"{__name__}.api.{_HOMES[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    """The names that are there, loaded or not."""
    return sorted({*globals(), *_HOMES})
