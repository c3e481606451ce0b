"""The distance of adapters, in all modules and by block; and groups of files in a folder with one change."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeAlias

from lora_inspect.errors import RefusedError
from lora_inspect.files.input_file import check_unchanged
from lora_inspect.progress import Passes, Progress, silent, silent_pass
from lora_inspect.reading.model.settings import Settings
from lora_inspect.sentences import Result

if TYPE_CHECKING:
    from lora_inspect.algebra.measures.change_groups import FolderFile
    from lora_inspect.algebra.measures.compare_plan import ComparePlan
    from lora_inspect.algebra.measures.comparison import Comparison
    from lora_inspect.algebra.measures.stack_advice import Stack
    from lora_inspect.algebra.options import CompareRequest

# A number of two adapters; of more of them a matrix, one row an adapter. None where nothing is changed.
Number: TypeAlias = float | None
Pairwise: TypeAlias = Number | list[list[Number]]


@dataclass(frozen=True, slots=True)
class ComparedModules:
    """The number of modules that all adapters have, and by adapter the names of the modules that another one lacks."""

    shared: int
    only: list[list[str]]


@dataclass(frozen=True, slots=True)
class BestMultipliers:
    """The number that brings one adapter nearest to another, and the relative difference that it leaves."""

    value: Pairwise
    left: Pairwise


@dataclass(frozen=True, slots=True)
class Distances:
    """Numbers of some modules: `norm` by adapter, and of two adapters, or of each pair, how far they are apart.

    With A and B for the changes, `relative_difference` is ‖A - B‖ / ‖A‖, `best_multiplier` ⟨A, B⟩ / ⟨A, A⟩, and
    `overlap` the share of directions in common. `sign_conflict` is the share of their common numbers with opposite
    signs, and `sum_energy` the energy of the sum of all over the sum of energies.
    """

    norm: list[float]
    cosine: Pairwise
    relative_difference: Pairwise
    overlap: Pairwise
    sign_conflict: Pairwise
    best_multiplier: BestMultipliers
    sum_energy: Number

    @classmethod
    def of(cls, found: "Comparison") -> "Distances":
        """Return the numbers of a comparison."""
        count = len(found.norms)
        pairs = [[found.best_multiplier(one, other) for other in range(count)] for one in range(count)]
        return cls(
            norm=found.norms,
            cosine=_pairwise([[found.cosine(one, other) for other in range(count)] for one in range(count)]),
            relative_difference=_pairwise(
                [[found.relative_difference(one, other) for other in range(count)] for one in range(count)]
            ),
            overlap=_pairwise([[found.overlap(one, other) for other in range(count)] for one in range(count)]),
            sign_conflict=_pairwise(
                [[found.sign_conflict(one, other) for other in range(count)] for one in range(count)]
            ),
            best_multiplier=BestMultipliers(
                _pairwise([[best.value if best else None for best in row] for row in pairs]),
                _pairwise([[best.left if best else None for best in row] for row in pairs]),
            ),
            sum_energy=found.sum_energy,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as they are in JSON."""
        return {
            "norm": self.norm,
            "cosine": self.cosine,
            "relative_difference": self.relative_difference,
            "overlap": self.overlap,
            "sign_conflict": self.sign_conflict,
            "best_multiplier": {"value": self.best_multiplier.value, "left": self.best_multiplier.left},
            "sum_energy": self.sum_energy,
        }


def _pairwise(matrix: list[list[Number]]) -> Pairwise:
    return matrix[0][1] if len(matrix) == 2 else matrix


@dataclass(frozen=True, slots=True, repr=False)
class CompareResult(Result):
    """The distances of adapters, in all modules and by block, at the multipliers that were given.

    `stack` has spikes, a conflict and a recommended command. `ok` is false if a relative difference is above the limit
    that was asked for. `notes` are sentences on settings and
    on files that were named twice.
    """

    adapters: list[str]
    modules: ComparedModules
    distances: Distances
    blocks: dict[str, Distances]
    stack: "Stack"
    ok: bool
    notes: tuple[str, ...] = ()

    @property
    def norm(self) -> list[float]:
        """The Frobenius norm of each adapter's change of the whole model."""
        return self.distances.norm

    @property
    def cosine(self) -> Pairwise:
        """The cosine of the angle between the changes."""
        return self.distances.cosine

    @property
    def relative_difference(self) -> Pairwise:
        """‖A - B‖ / ‖A‖, with A for the adapter that is named first, or for that of the row."""
        return self.distances.relative_difference

    @property
    def overlap(self) -> Pairwise:
        """The share of directions in common, of modules weighted by their energy."""
        return self.distances.overlap

    @property
    def sign_conflict(self) -> Pairwise:
        """The share of the changes' common numbers that have opposite signs."""
        return self.distances.sign_conflict

    @property
    def best_multiplier(self) -> BestMultipliers:
        """The number that brings A nearest to B, and the part of B that it leaves."""
        return self.distances.best_multiplier

    @property
    def sum_energy(self) -> Number:
        """1 for independent changes, and as many as there are adapters for one direction."""
        return self.distances.sum_energy

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `compare --json` prints."""
        return {
            "schema": "lora-inspect/compare/1",
            "adapters": self.adapters,
            "modules": {"shared": self.modules.shared, "only": self.modules.only},
            **self.distances.to_dict(),
            "blocks": {name: block.to_dict() for name, block in self.blocks.items()},
            "stack": self.stack.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A file that is the same change as `of`, the first file of its group, or the first one with the same ranks.

    This one is `multiplier` times that change but for a `difference`, relative to it. `how` are the words that tell the
    two apart: "renamed", "rescaled", "resized", "cast".
    """

    path: str
    of: str
    multiplier: float
    difference: float
    how: list[str]


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file of a folder that was not compared, and the reason as a sentence."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, repr=False)
class FolderResult(Result):
    """The groups of files in a folder that are one change, each of two files or more.

    `adapters` are all files that were compared, and `members` those of groups, but for the first one of each.
    """

    adapters: list[str]
    groups: list[list[str]]
    members: list[GroupMember]
    skipped: list[SkippedFile]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True: a folder has no limit of differences."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `compare FOLDER --json` prints; most pairs are not compared and are null."""
        numbers = (
            *("modules", "norm", "cosine", "relative_difference", "overlap", "sign_conflict", "best_multiplier"),
            "sum_energy",
        )
        return {
            "schema": "lora-inspect/compare/1",
            "adapters": self.adapters,
            **dict.fromkeys(numbers),
            "blocks": {},
            "stack": None,
            "groups": self.groups,
            "members": [
                {
                    "path": one.path,
                    "of": one.of,
                    "multiplier": one.multiplier,
                    "difference": one.difference,
                    "how": one.how,
                }
                for one in self.members
            ],
            "skipped": [{"path": one.path, "reason": one.reason} for one in self.skipped],
        }


def plan_compare(named: Sequence[tuple[str, Settings]], request: "CompareRequest") -> "ComparePlan":
    """Read the headers of adapters.

    Raises LoraInspectError as `planned` of the algebra does.
    """
    from lora_inspect.algebra.measures.compare_plan import planned

    return planned(named, request)


def compare(plan: "ComparePlan", progress: Progress = silent, passes: Passes = silent_pass) -> CompareResult:
    """Compare the adapters, and recommend a command whose result is computed before.

    `progress` receives 1 for each module. The commands that are tried may take further `passes` over the modules.

    Raises LoraInspectError for a factor that is not finite, if shapes disagree, and for a file that has changed.
    """
    from lora_inspect.algebra.measures.compare_plan import compared_by_plan

    found = compared_by_plan(plan, progress, passes)
    most = plan.request.max_difference
    return CompareResult(
        adapters=[one.adapter.checkpoint.path for one in plan.inputs.adapters],
        modules=_counted(plan),
        distances=Distances.of(found.whole),
        blocks={name: Distances.of(one) for name, one in found.blocks.items()},
        stack=found.stack,
        ok=most is None or _largest(found.whole) <= most,
        notes=tuple(plan.notes),
    )


def _largest(found: "Comparison") -> float:
    """Return the largest relative difference of two adapters; the one named first is the whole."""
    norms = found.norms
    differences = (
        (found.relative_difference(one, other), norms[other]) for one, other in combinations(range(len(norms)), 2)
    )
    return max((float("inf") if norm else 0.0) if value is None else value for value, norm in differences)


def _counted(plan: "ComparePlan") -> ComparedModules:
    adapters = [one.adapter for one in plan.inputs.adapters]
    shared, only = 0, [list[str]() for _ in adapters]
    for module in plan.modules:
        keys: list[str | None] = [None for _ in adapters]
        for term in module.terms:
            place = next(number for number, adapter in enumerate(adapters) if adapter is term.adapter)
            # A part of a fused layer has no key in the file.
            keys[place] = module.module.name.key if term.moves else term.contribution.module.key
        if None not in keys:
            shared += 1
            continue
        for names, key in zip(only, keys, strict=True):
            names += [] if key is None else [key]
    return ComparedModules(shared, only)


def compare_folder(
    folder: str, settings: Settings, request: "CompareRequest", progress: Progress = silent
) -> FolderResult:
    """Group the adapters below a folder that are one change; it calls `progress` twice for each checkpoint.

    A file that cannot be compared is skipped. Raises LoraInspectError for a folder without an adapter.
    """
    from lora_inspect.algebra.measures.change_groups import change_groups, read_folder
    from lora_inspect.files.checkpoint import open_checkpoint

    progress(0)
    files, skipped = read_folder(folder, settings, request, progress)
    if not files and not skipped:
        open_checkpoint(folder)  # which says what there is instead
    groups = change_groups(files, progress)
    skipped = [*skipped, *groups.skipped]
    told = [SkippedFile(one.path, one.reason) for one in sorted(skipped)]
    left = {one.path for one in told}
    if all(file.path in left for file in files):
        raise RefusedError(folder, "it holds no adapter to compare", _reason_of(told))
    for file in files:
        check_unchanged(file.inputs.files)
    return FolderResult(
        adapters=[file.path for file in files if file.path not in left],
        groups=[[group.first.path, *(one.file.path for one in group.members)] for group in groups.found],
        members=[
            GroupMember(one.file.path, one.of.path, one.multiplier, one.difference, list(one.how))
            for group in groups.found
            for one in group.members
        ],
        skipped=told,
        notes=tuple(note for file in files for note in _notes(file)),
    )


def _notes(file: "FolderFile") -> list[str]:
    return file.inputs.notes


def _reason_of(skipped: Sequence[SkippedFile]) -> str:
    """Return the first reason, as the end of a sentence."""
    return f"the first of its {len(skipped)} files: {skipped[0].reason.rstrip('.')}" if skipped else "name another"
