"""The files of a folder that are one change: resized, rescaled, renamed or cast.

Every file is read once for its sketch, a random projection of its change that is linear and has 256 numbers: D v for a
few random vectors v, with rows added up with random signs. The difference of two sketches is that of the changes, so
sketches of two versions of one change are nearly proportional and others are not. Only such pairs are compared exactly.
The vectors are the same for all files, and modules are compared by their place in the finest layout, so neither names
nor ranks nor how factors share the numbers matter.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy

from lora_inspect.algebra.alignment import OutputModule, aligned_in_parts
from lora_inspect.algebra.changes import terms_of
from lora_inspect.algebra.inputs import Inputs, read_inputs
from lora_inspect.algebra.linear.factors import Array
from lora_inspect.algebra.linear.module_threads import made_in_order
from lora_inspect.algebra.measures.comparison import Comparison, check_thin, compared, total
from lora_inspect.algebra.options import ChoiceRequest
from lora_inspect.architectures.detection import Detection
from lora_inspect.errors import LoraInspectError, of_system
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.discovery import files_below
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.identify import adapter_candidates, may_be_one
from lora_inspect.reading.model.settings import Settings

# So many vectors are projected on, and the rows of each product are added up into so many sums.
_VECTORS, _SUMS = 4, 64
# Sketches closer than this, of changes that leave a tenth at most, are told to be near with a wide margin: four vectors
# may show a difference of few directions several times as large as it is.
_NEAR = 0.5
# Two factors that were each rounded to bfloat16, by 2^-9 of a number at most, make a product that is off by twice that.
ROUNDED = 2.0**-8
# A resize that keeps 99 % of the energy leaves a tenth, and so do factors of eight bits, whose numbers are off by 2^-5
# on average.
CLOSE = 0.1
# Of a resize the directions are some of those that were there, but for rounding. Two epochs of a training may be as
# near, and have others.
_CONTAINED = 0.9
# The binary digits of a number of each type, and those of types of eight bits.
_DIGITS = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8}
_OF_EIGHT_BITS = 4


class FolderFile(NamedTuple):
    """A file of a folder that was read separately."""

    path: str
    inputs: Inputs

    @property
    def adapter(self) -> Adapter:
        """The adapter in it."""
        return self.inputs.first


class Skipped(NamedTuple):
    """A file that is left out, and the reason as a sentence."""

    path: str
    reason: str


class Member(NamedTuple):
    """A file that is `multiplier` times the file `of` of its group but for a relative `difference`.

    `how` are the words for their differences: "renamed", "rescaled", "resized", "cast".
    """

    file: FolderFile
    of: FolderFile
    multiplier: float
    difference: float
    how: tuple[str, ...]


class ChangeGroup(NamedTuple):
    """The file with the most directions, and the others that are the same change."""

    first: FolderFile
    members: list[Member]


class ChangeGroups(NamedTuple):
    """The groups of at least two files, and files with unreadable numbers."""

    found: list[ChangeGroup]
    skipped: list[Skipped]


def read_folder(
    folder: str, settings: Settings, request: ChoiceRequest, progress: Progress
) -> tuple[list[FolderFile], list[Skipped]]:
    """Read the headers of the adapters below a folder, and leave out files with the reason.

    `progress` receives 1 for each file, and 2 for one that is left out, as `change_groups` reports the other 1 for
    each.

    Raises LoraInspectError for a folder that cannot be listed.
    """
    files, skipped, settings = list[FolderFile](), list[Skipped](), settings._replace(of_several=True)
    for path in files_below(folder).weights:
        try:
            file = FolderFile(path, read_inputs([(path, settings)], request))
            check_thin(file.inputs.adapters)
            files.append(file)
            progress(1)
        except (LoraInspectError, OSError) as error:
            skipped.append(Skipped(path, _sentence(error)))
            progress(2)
    return files, skipped


def _sentence(error: LoraInspectError | OSError) -> str:
    return str(error if isinstance(error, LoraInspectError) else of_system(error))


def change_groups(files: Sequence[FolderFile], progress: Progress) -> ChangeGroups:
    """Group the files by their changes; `progress` receives 1 for each file that is read.

    A file with numbers that are not finite is left out.
    """
    groups, skipped = list[ChangeGroup](), list[Skipped]()
    for alike in _of_one_family(files):
        for aligned in _aligned(alike):
            found = _grouped(aligned, skipped, progress)
            groups += [group for group in found if group.members]
    order = {file.path: number for number, file in enumerate(files)}
    groups.sort(key=lambda group: order[group.first.path])
    return ChangeGroups(groups, skipped)


def _of_one_family(files: Sequence[FolderFile]) -> list[list[FolderFile]]:
    """Return the files that may be of one model family, and those of no known one."""
    families = list[tuple[Sequence[Detection], list[FolderFile]]]()
    for file in files:
        own = adapter_candidates(file.adapter)
        for theirs, members in families:
            if may_be_one(own, theirs) if own and theirs else not own and not theirs:
                members.append(file)
                break
        else:
            families.append((own, [file]))
    return [members for _, members in families]


class _Aligned(NamedTuple):
    """Files with one naming of their modules."""

    files: list[FolderFile]
    modules: list[OutputModule]


def _aligned(files: list[FolderFile]) -> Iterator[_Aligned]:
    """Yield the files together, each set without files that have modules without a place among the others'."""
    while files:
        inputs = [one for file in files for one in file.inputs.adapters]
        try:
            yield _Aligned(files, aligned_in_parts(inputs))
            return
        except LoraInspectError as error:
            others = [file for file in files if file.path == error.path or file.adapter.checkpoint.path == error.path]
            own = others or files[:1]
            files = [file for file in files if file not in own]


def _grouped(aligned: _Aligned, skipped: list[Skipped], progress: Progress) -> list[ChangeGroup]:
    sketched = _sketches(aligned, skipped, progress)
    # The file that others were made of has the most directions and the finest numbers.
    sketched.sort(key=lambda one: one.size, reverse=True)
    firsts = list[_Sketched]()
    groups = list[ChangeGroup]()
    for one in sketched:
        for first, group in zip(firsts, groups, strict=True):
            if _are_near(first.sketch, one.sketch) and (member := _member(first.file, one.file)):
                group.members.append(_nearest_version(member, group))
                break
        else:
            firsts.append(one)
            groups.append(ChangeGroup(one.file, []))
    return groups


def _nearest_version(member: Member, group: ChangeGroup) -> Member:
    """Return a member of a group as a version of the first file with its ranks; as it is if no other file has them."""
    ranks = _ranks(member.file.adapter)
    if _ranks(group.first.adapter) == ranks:
        return member
    for other in group.members:
        if _ranks(other.file.adapter) == ranks:
            return _member(other.file, member.file) or member
    return member


class _Sketched(NamedTuple):
    file: FolderFile
    sketch: Array

    @property
    def size(self) -> tuple[int, int]:
        """The sum of the ranks, and the binary digits of a number."""
        return _ranks(self.file.adapter), _digits(self.file.adapter)


def _sketches(aligned: _Aligned, skipped: list[Skipped], progress: Progress) -> list[_Sketched]:
    """Return the sketch of each file; one with numbers that are not finite is left out."""
    found = list[_Sketched]()
    for file, sketch in zip(
        aligned.files, made_in_order(lambda file: _sketch(file, aligned.modules), aligned.files), strict=True
    ):
        if isinstance(sketch, str):
            skipped.append(Skipped(file.path, sketch))
        else:
            found.append(_Sketched(file, sketch))
        progress(1)
    return found


def _sketch(file: FolderFile, modules: Sequence[OutputModule]) -> Array | str:
    """Return the sketch of a file's change, (_SUMS, _VECTORS), or the reason why there is none."""
    whole = numpy.zeros((_SUMS, _VECTORS))
    try:
        for number, module in enumerate(modules):
            own = [term for term in module.terms if term.adapter is file.adapter and term.multiplier]
            for change in terms_of(own):
                with numpy.errstate(invalid="ignore", over="ignore"):
                    product = change.times(_vectors(change.down.shape[1]).astype(change.down.dtype))
                product *= _signs(number, len(product))
                many = len(product) // _SUMS * _SUMS
                whole += product[:many].reshape(-1, _SUMS, _VECTORS).sum(0)
                whole[: len(product) - many] += product[many:]
    except (LoraInspectError, OSError) as error:
        return _sentence(error)
    if not numpy.isfinite(whole).all():
        return f"{file.path}: its change is not finite; run lora-inspect check --tensors."
    return whole


@lru_cache(maxsize=64)
def _vectors(columns: int) -> Array:
    """Return random vectors (columns, _VECTORS), always the same ones."""
    return numpy.random.default_rng(columns).standard_normal((columns, _VECTORS), numpy.float32)


@lru_cache(maxsize=4096)
def _signs(module: int, rows: int) -> Array:
    """Return a random sign for each row of a module, (rows, 1), always the same one."""
    drawn = numpy.random.default_rng((module, rows)).integers(0, 2, rows, dtype=numpy.int8)
    return (2 * drawn - 1).astype(numpy.float32)[:, None]


def _are_near(one: Array, other: Array) -> bool:
    """Return True if a multiple of one sketch is near the other, or if both are of no change."""
    squares = float(numpy.square(one).sum()), float(numpy.square(other).sum())
    if not all(squares):
        return not any(squares)
    cosine = float((one * other).sum()) / math.sqrt(squares[0] * squares[1])
    return 1.0 - cosine**2 <= _NEAR**2


def _member(first: FolderFile, other: FolderFile) -> Member | None:
    """Return the other file as a version of the first one's change; None if it is another change."""
    adapters = [first.adapter, other.adapter]
    try:
        modules = aligned_in_parts([*first.inputs.adapters, *other.inputs.adapters])
        found = total(compared(modules, adapters, silent), len(adapters))
    except LoraInspectError:  # their modules have other places or sizes
        return None
    # Of a trim the whole is exactly the nearest multiple to the trim, and not the other way round.
    best = found.best_multiplier(1, 0)
    if best is None:
        return None if found.norms[0] else Member(other, first, 1.0, 0.0, _how(adapters, 1.0))
    if not best.value or not _is_same(found, best.left, adapters):
        return None
    multiplier = 1.0 / best.value
    return Member(other, first, multiplier, best.left, _how(adapters, multiplier))


def _how(adapters: Sequence[Adapter], multiplier: float) -> tuple[str, ...]:
    one, other = adapters
    done = {
        "renamed": one.modules.keys().isdisjoint(other.modules),
        "rescaled": abs(multiplier - 1.0) > ROUNDED,
        "resized": _ranks(one) != _ranks(other),
        "cast": _dtypes(one) != _dtypes(other),
    }
    return tuple(name for name, is_so in done.items() if is_so)


def _is_same(found: Comparison, left: float, adapters: Sequence[Adapter]) -> bool:
    """Return True if rounding or a resize explains a difference."""
    if left <= ROUNDED:
        return True
    if left > CLOSE:
        return False
    is_resized = _ranks(adapters[0]) != _ranks(adapters[1]) and (found.overlap(0, 1) or 0.0) >= _CONTAINED
    return is_resized or min(map(_digits, adapters)) <= _OF_EIGHT_BITS


def _ranks(adapter: Adapter) -> int:
    return sum(contribution.rank or 0 for contribution in adapter.contributions)


def _digits(adapter: Adapter) -> int:
    """Return the fewest binary digits of a number of the factors."""
    return min((_DIGITS.get(dtype, _OF_EIGHT_BITS) for dtype in _dtypes(adapter)), default=0)


def _dtypes(adapter: Adapter) -> set[str]:
    return {info.dtype for one in adapter.contributions for info in one.operands.values()}
