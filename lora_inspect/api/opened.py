"""An opened file: its kind and its meaning, module by module, read from its headers."""

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lora_inspect.algebra.measures.spectra import SpectrumResult
from lora_inspect.api.arguments import (
    PathWithSettings,
    ReadingKeywords,
    StrPath,
    Transposed,
    answers_of,
    in_a_sentence,
    path_of,
    request_of,
    takes,
    without_multiplier,
)
from lora_inspect.api.modules import Modules
from lora_inspect.architectures import by_name
from lora_inspect.option import ReadingRequest
from lora_inspect.reading.file_info import FileInfo, inspect
from lora_inspect.reading.model.evidence import Evidence, Problem
from lora_inspect.reading.model.settings import requested_settings
from lora_inspect.reporting.file_record import as_json
from lora_inspect.reporting.measurement import Measurement, NormsResult, measure
from lora_inspect.sentences import counted, shortened

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["NormsResult", "OpenedAdapter", "SpectrumResult", "open_adapter"]

_SHOWN = 3


class OpenedAdapter:
    """The description that `info` gives of a file, a sharded set or a folder with one adapter.

    Until you ask a module for its `delta`, only the header, alphas and flags are read. If the file is no adapter,
    `kind` says so and there are no modules.
    """

    def __init__(self, info: FileInfo) -> None:
        self._info = info

    @property
    def path(self) -> str:
        """The opened path."""
        return self._info.checkpoint.path

    @property
    def kind(self) -> str:
        """ "adapter", "base" or "other"."""
        return self._info.kind

    @cached_property
    def modules(self) -> Modules:
        """The layers that it changes, in the order of the file, by number, path and name."""
        return Modules(self._info.adapter)

    @property
    def architecture(self) -> str | None:
        """The name of the model family in docs/architectures.md; None for none or several."""
        return self._info.detection.architecture.name if self._info.detection else None

    @property
    def architectures(self) -> tuple[str, ...]:
        """All model families that match."""
        return tuple(candidate.architecture.name for candidate in self._info.candidates)

    @property
    def scheme(self) -> str | None:
        """The naming scheme of its keys: "kohya", "peft", ...; None if no key shows it."""
        return self._info.adapter.scheme

    @property
    def trainer(self) -> str | None:
        """The program that wrote it; None if nothing shows it."""
        return self._info.adapter.trainer

    @property
    def rslora(self) -> bool | None:
        """True for a scale of alpha/sqrt(rank); None if unknown or different between modules."""
        return self._info.adapter.rslora.value

    @property
    def dora(self) -> bool | None:
        """True if it has DoRA's magnitudes; None if that is unknown."""
        return self._info.adapter.dora.value

    @cached_property
    def evidence(self) -> tuple[Evidence, ...]:
        """The evidence for each reading: `about`, `says` and `where`."""
        return tuple(Evidence(**one) for one in self._record["evidence"])

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """The problems: `code`, `severity` ("error", "warning" or "note"), `message` and `keys`."""
        return tuple(Problem(**{**one, "keys": tuple(one["keys"])}) for one in self._record["problems"])

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of the file, unchanged."""
        return MappingProxyType(self._info.checkpoint.metadata)

    def to_dict(self, modules: bool = False) -> dict[str, Any]:
        """Return the record that `info --json` prints, with `modules` as `--modules` adds them."""
        with in_a_sentence():
            return as_json(self._info, modules)

    def norms(self, base: StrPath | None = None, *, transposed: Transposed = None) -> NormsResult:
        """Measure the size of the change in every module, by part and block, as `info --norms` does.

        With the model at `base`, norms are compared with those of its weights, and changes that depend on a weight are
        measured too; `transposed` tells how it stores square weights that nothing else shows. Raises LoraInspectError
        if the file is no adapter, if its scale is open, or if it does not fit the base.
        """
        with in_a_sentence():
            return self._measured(base, transposed).norms

    def spectrum(self, base: StrPath | None = None, *, transposed: Transposed = None) -> SpectrumResult:
        """Compute the singular values of the change in every module, as `info --spectrum` does.

        The model at `base` tells changes that depend on a weight. Raises LoraInspectError as `norms` does.
        """
        with in_a_sentence():
            return self._measured(base, transposed, with_spectra=True).spectrum

    def _measured(self, base: StrPath | None, transposed: Transposed, with_spectra: bool = False) -> Measurement:
        path = None if base is None else path_of(base)
        return measure(self._info, path, answers_of(transposed), with_spectra=with_spectra)

    @cached_property
    def _record(self) -> dict[str, Any]:
        return self.to_dict()

    def __repr__(self) -> str:
        name = shortened(self.path)
        if self.kind != "adapter":
            return f"<OpenedAdapter {name!r}: {'a base' if self.kind == 'base' else 'no adapter'}>"
        changes = [change for module in self.modules for change in module.changes]
        algorithms = Counter(change.algorithm for change in changes)
        ranks = sorted({change.rank for change in changes if change.rank is not None})
        scales = sorted({f"{change.scale:.6g}" for change in changes if change.scale is not None})
        facts = [
            " and ".join(algorithms) or "no module",
            *(["RS-LoRA"] if self.rslora else []),
            *(["DoRA"] if self.dora else []),
            *([" or ".join(by_name(name).title for name in self.architectures)] if self.architectures else []),
            counted(len(self.modules), "module"),
            *([f"rank {_some(list(map(str, ranks)))}"] if ranks else []),
            *([f"scale {_some(scales)}"] if scales else []),
        ]
        return f"<OpenedAdapter {name!r}: {', '.join(facts)}>"


@in_a_sentence()
@takes(ReadingRequest, ReadingKeywords)
def open_adapter(path: PathWithSettings, **options: "Unpack[ReadingKeywords]") -> OpenedAdapter:
    """Read the kind and the meaning of a file, as `info` does.

    `rslora`, `alpha` and `expert_packing` settle facts that the file leaves open, as do settings on the path
    (`"lora.safetensors:alpha=16"`). Problems are listed, not raised. Raises LoraInspectError if the file is no readable
    checkpoint.
    """
    name, own = without_multiplier(path)
    asked = requested_settings(request_of(ReadingRequest, options))
    return OpenedAdapter(inspect(name, own.joined(asked, name)))


def _some(values: list[str]) -> str:
    return "/".join(values[:_SHOWN]) + ("/…" if len(values) > _SHOWN else "")
