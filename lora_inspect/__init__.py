"""The public API of lora-inspect: read, check, merge and convert LoRA adapters.

docs/api.md shows its use. A public name loads its file at its first use, so importing this package costs nothing.
Functions that compute load torch.
"""

from lora_inspect.version import __version__

# Where each public name is, in lora_inspect.api.
_HOMES = {
    "AmbiguousError": "arguments",
    "AverageResult": "algebra",
    "CheckResult": "verbs",
    "CompareResult": "comparing",
    "CompatResult": "verbs",
    "ConvertResult": "convert",
    "CouldNotWorkError": "arguments",
    "DamagedError": "arguments",
    "ExtractResult": "extracting",
    "FolderResult": "comparing",
    "LoraInspectError": "arguments",
    "MergeResult": "verbs",
    "ModuleChange": "modules",
    "NeedsLibraryError": "arguments",
    "NeedsTorchError": "arguments",
    "NormsResult": "opened",
    "NotFoundError": "arguments",
    "OpenedAdapter": "opened",
    "OpenedModule": "modules",
    "RefusedError": "arguments",
    "ReportResult": "reports",
    "ScannedFile": "verbs",
    "SpectrumResult": "opened",
    "StateDict": "convert",
    "SumResult": "algebra",
    "UnmergeResult": "verbs",
    "VerifyResult": "verbs",
    "WouldOverwriteError": "arguments",
    "average": "algebra",
    "check": "verbs",
    "combine": "algebra",
    "compare": "comparing",
    "compat": "verbs",
    "convert": "convert",
    "extract": "extracting",
    "merge": "verbs",
    "open_adapter": "opened",
    "report": "reports",
    "resize": "algebra",
    "scan": "verbs",
    "state_dict": "convert",
    "timeout": "arguments",
    "unmerge": "verbs",
    "verify": "verbs",
}

__all__ = [
    "AmbiguousError",
    "AverageResult",
    "CheckResult",
    "CompareResult",
    "CompatResult",
    "ConvertResult",
    "CouldNotWorkError",
    "DamagedError",
    "ExtractResult",
    "FolderResult",
    "LoraInspectError",
    "MergeResult",
    "ModuleChange",
    "NeedsLibraryError",
    "NeedsTorchError",
    "NormsResult",
    "NotFoundError",
    "OpenedAdapter",
    "OpenedModule",
    "RefusedError",
    "ReportResult",
    "ScannedFile",
    "SpectrumResult",
    "StateDict",
    "SumResult",
    "UnmergeResult",
    "VerifyResult",
    "WouldOverwriteError",
    "__version__",
    "average",
    "check",
    "combine",
    "compare",
    "compat",
    "convert",
    "extract",
    "merge",
    "open_adapter",
    "report",
    "resize",
    "scan",
    "state_dict",
    "timeout",
    "unmerge",
    "verify",
]

TYPE_CHECKING = False  # what checks types takes it for true, and `typing` takes longer to load than all of this
if TYPE_CHECKING:
    from lora_inspect.api.algebra import AverageResult, SumResult, average, combine, resize
    from lora_inspect.api.arguments import (
        AmbiguousError,
        CouldNotWorkError,
        DamagedError,
        LoraInspectError,
        NeedsLibraryError,
        NeedsTorchError,
        NotFoundError,
        RefusedError,
        WouldOverwriteError,
        timeout,
    )
    from lora_inspect.api.comparing import CompareResult, FolderResult, compare
    from lora_inspect.api.convert import ConvertResult, StateDict, convert, state_dict
    from lora_inspect.api.extracting import ExtractResult, extract
    from lora_inspect.api.modules import ModuleChange, OpenedModule
    from lora_inspect.api.opened import NormsResult, OpenedAdapter, SpectrumResult, open_adapter
    from lora_inspect.api.reports import ReportResult, report
    from lora_inspect.api.verbs import (
        CheckResult,
        CompatResult,
        MergeResult,
        ScannedFile,
        UnmergeResult,
        VerifyResult,
        check,
        compat,
        merge,
        scan,
        unmerge,
        verify,
    )
else:  # names that are not there are wrong for what checks types as well

    def __getattr__(name: str) -> object:
        """Load a public name and keep it in this module."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        found: object = getattr(import_module(f"{__name__}.api.{_HOMES[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    """List the names of this module, loaded or not."""
    return sorted({*globals(), *_HOMES})
