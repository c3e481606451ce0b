"""The facts that a page shows of one adapter: its meaning, the programs, its problems, and its measured changes."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lora_inspect.algebra.measures.spectra import LayerSpectrum, SpectrumResult, rank_at
from lora_inspect.checking.hash_lints import readings
from lora_inspect.checking.rules import find_problems
from lora_inspect.checking.subject import Subject
from lora_inspect.checking.tensor_lints import modules_with_zeros
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import BITS
from lora_inspect.files.temp_files import without_slash
from lora_inspect.progress import PartialProgress, Progress, silent
from lora_inspect.reading.file_info import FileInfo
from lora_inspect.reading.headline import headline
from lora_inspect.reading.model.evidence import SEVERITIES, Problem, RawProblem
from lora_inspect.reporting.file_record import record_of, verdicts_of
from lora_inspect.reporting.heat_map import HeatMap, LayerSize, heat_map
from lora_inspect.reporting.measurement import Measurement, NormsResult
from lora_inspect.sentences import counted, printable
from lora_inspect.shell import command_line, operand

if TYPE_CHECKING:
    from lora_inspect.programs.verdict import Verdict

# The share of the energy of each layer that a shrunk file keeps.
KEPT = 0.99
# A file that keeps more than this share of its bytes is not called shrinkable.
_WORTH = 0.95


class LayerBytes(NamedTuple):
    """The bytes of a layer's factors in the file, and those of one rank of plain LoRA in the same element type."""

    stored: int
    of_rank: int


class Trimmed(NamedTuple):
    """A file with a maximum rank for all layers: its bytes, and the share of the energy of all weights that remains."""

    rank: int
    bytes: int
    energy: float


class AdapterFacts:
    """The facts of one adapter; `measurement` has the spectra of its changes.

    All numbers are read again for its problems, and `progress` receives the bytes of the file.
    """

    def __init__(self, measurement: Measurement, progress: Progress = silent) -> None:
        self.info: FileInfo = measurement.info
        self.norms: NormsResult = measurement.norms
        self.spectrum: SpectrumResult = measurement.spectrum
        self.verdicts: Sequence[Verdict] | None = verdicts_of(self.info)
        self.record: dict[str, Any] = record_of(self.info, self.verdicts)
        self.problems = _problems(self.info, measurement, progress)
        self.layers: tuple[LayerSpectrum, ...] = self.spectrum.layers
        self._bytes = {one.key: _layer_bytes(self.info, one.key, one.shape) for one in self.norms.sizes}

    @property
    def path(self) -> str:
        """The path as it was named."""
        return self.info.checkpoint.path

    @property
    def name(self) -> str:
        """The last part of the path."""
        return printable(without_slash(self.path).replace("\\", "/").rpartition("/")[2] or self.path)

    @property
    def main(self) -> str:
        """The component with the largest change."""
        return max(self.norms.parts, key=lambda name: self.norms.parts[name].norm, default="")

    @property
    def kind(self) -> str:
        """The algorithm, the model, the rank and the scale in a sentence."""
        return headline(self.info, self.record)

    @property
    def headline(self) -> str:
        """The kind, the rank that is used, and the layers that are unusual, in a sentence."""
        said = [self.kind]
        band = self.spectrum.parts.get(self.main)
        if band and band.rank_99 is not None:
            said.append(f"{KEPT:.0%} of its energy in rank {band.rank_99} (median of layers)")
        if spikes := len(self.norms.spikes):
            said.append(f"{counted(spikes, 'layer')} {'carry' if spikes > 1 else 'carries'} a spike")
        if untrained := sum(not one.values for one in self.layers):
            said.append(f"{counted(untrained, 'layer')} without a change")
        return "; ".join(said)

    @property
    def meant(self) -> "list[Verdict]":
        """The verdicts of the programs that know the model that it may be for."""
        from lora_inspect.programs.verdict import concerned

        return concerned(self.verdicts or (), self.info.candidates)

    @property
    def right_in(self) -> list[str]:
        """The titles of the programs that load the adapter with its true meaning."""
        from lora_inspect.programs.verdict import SAME

        return [one.program.title for one in self.meant if one.verdict == SAME]

    @property
    def problem_counts(self) -> str:
        """The number of problems by severity."""
        counts = Counter(one.severity for one in self.problems)
        told = [counted(counts[severity], severity) for severity in reversed(SEVERITIES) if counts[severity]]
        return ", ".join(told) or "no problems"

    def heat_map(self, component: str) -> HeatMap:
        """Return the map of one part."""
        modules = self.info.adapter.modules
        sizes = [
            LayerSize(one.key, _path_in(modules, one.key), one.shape, one.norm, one.weight_norm)
            for one in self.norms.sizes
            if one.component == component and one.sigma_1 is not None
        ]
        return heat_map(sizes, {spike.key for spike in self.norms.spikes}, self.info.candidates)

    @property
    def trims(self) -> list[Trimmed]:
        """The file at every rank that all layers are cut to, up to the largest that one of them has."""
        most = max((len(one.values) for one in self.layers), default=0)
        squares = [[value**2 for value in one.values] for one in self.layers]
        whole = math.fsum(math.fsum(own) + one.rest**2 for own, one in zip(squares, self.layers, strict=True))
        kept, found = 0.0, []
        for rank in range(1, most + 1):
            kept += math.fsum(own[rank - 1] for own in squares if rank <= len(own))
            ranks = [min(rank, len(one.values)) for one in self.layers]
            found.append(Trimmed(rank, self._bytes_at(ranks), kept / whole if whole else 0.0))
        return found

    @property
    def shrunk(self) -> int:
        """The bytes of the file with the least rank of each layer that keeps 99 % of its energy."""
        ranks = [rank_at(one.values, one.rest, KEPT) for one in self.layers]
        return self._bytes_at(
            [len(one.values) if rank is None else rank for rank, one in zip(ranks, self.layers, strict=True)]
        )

    @property
    def is_shrinkable(self) -> bool:
        """True if it loses more than a twentieth of its bytes so."""
        return self.shrunk <= _WORTH * self.info.checkpoint.bytes

    def _bytes_at(self, ranks: Sequence[int]) -> int:
        """Return the bytes of the file at these ranks of plain LoRA; a layer never takes more than it does."""
        size = self.info.checkpoint.bytes
        for one, rank in zip(self.layers, ranks, strict=True):
            own = self._bytes[one.key]
            size -= max(0, own.stored - rank * own.of_rank)
        return size

    @property
    def commands(self) -> Iterator[tuple[str, str]]:
        """Three commands that a reader may want next, each with its purpose."""
        from lora_inspect.converting.standard_fix import output_beside

        named = operand(self.path)
        if self.is_shrinkable:
            output = operand(output_beside(self.info.adapter, f"r{KEPT * 100:.0f}", None))
            says = f"A smaller file with {KEPT:.0%} of the energy"
            yield says, command_line(["lora-inspect", "resize", named, "--energy", f"{KEPT:g}", "-o", output])
        else:
            yield "The singular values of each block", command_line(["lora-inspect", "info", named, "--spectrum"])
        if fix := self.record["fix"]:
            yield "A file with the same strength everywhere", fix
        else:
            yield "The effect in each program", command_line(["lora-inspect", "compat", named])
        yield "A look at every number", command_line(["lora-inspect", "check", named, "--tensors"])


def _path_in(modules: Any, key: str) -> str:
    module = modules.get(key)
    return (module.path or module.name.body) if module else key


def _problems(info: FileInfo, measurement: Measurement, progress: Progress) -> tuple[Problem, ...]:
    """Return the problems of the header, of all numbers and of the measured sizes, the most serious first."""
    from lora_inspect.algebra.measures.unusual_sizes import size_problems

    def find_size_problems(subject: Subject) -> Iterator[RawProblem]:
        yield from size_problems(measurement.found.sizes, modules_with_zeros(subject))

    share = PartialProgress(progress, info.checkpoint.bytes)
    subject = Subject(info.checkpoint, info.adapter.settings, share.done, find_size_problems)
    share.work *= readings(subject) + 1
    problems = sorted(find_problems(subject, tensors=True), key=lambda problem: -SEVERITIES.index(problem.severity))
    share.finish()
    return tuple(problems)


def _layer_bytes(info: FileInfo, key: str, shape: Sequence[int]) -> LayerBytes:
    module = info.adapter.modules.get(key)
    infos = [one for own in module.contributions for one in own.factors.values()] if module else []
    if not infos:
        return LayerBytes(0, 0)
    width = min((BITS[one.dtype] for one in infos if len(one.shape) > 1), default=32)
    experts = shape[0] if module and any(own.algorithm.experts for own in module.contributions) else 1
    rows, *others = shape if experts == 1 else shape[1:]
    return LayerBytes(sum(one.nbytes for one in infos), experts * (rows + math.prod(others)) * width // 8)
