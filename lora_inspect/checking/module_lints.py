"""Modules that fit together and that programs stumble over all the same.

Headers that the format admits and that are odd all the same, and names that nobody would write.
"""

from collections import Counter
from collections.abc import Iterator

from lora_inspect.algorithms.record import BIAS, WEIGHT
from lora_inspect.checking.subject import Draft, Subject
from lora_inspect.files.safetensors.dtypes import BITS, FP8, PLAIN_FLOATS
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.dora import INPUT, OUTPUT
from lora_inspect.reading.file_info import other_model
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.model.evidence import RawProblem
from lora_inspect.sentences import counted, listed, printable, some

_MAGNITUDE = ".dora_scale"


def no_adapter(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for a file that is no adapter: only its header, metadata, hashes and numbers can be checked."""
    if not subject.is_adapter and subject.checkpoint.files:
        what = "a base" if subject.kind == "base" else "neither an adapter nor a base"
        if not subject.families and (title := other_model(subject.checkpoint.tensors)):
            what = f"no adapter ({title})"
        covered = "its header, its metadata and its hashes, and with --tensors its numbers"
        yield RawProblem("not-an-adapter", f"it is {what}, so check covers only {covered}")


def flat_magnitudes(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for each `dora_scale` without the dimension that shows its axis."""
    found = _flat(subject)
    for code, known in (("dora-scale-flat", True), ("dora-axis-unknown", False)):
        own = [(info, axis) for info, axis in found if bool(axis) == known]
        if not own:
            continue
        first, axis = own[0]
        shape = f"{counted(len(own), 'magnitude')} of one dimension ({first.name}: {list(first.shape)})"
        says = (
            f"they are over the {axis}s of their modules, spelled [{_spelled(first, axis)}]"
            if axis
            else ("the layer is square, so they may be over outputs or inputs")
        )
        yield RawProblem(code, f"{shape}: {says}", tuple(info.name for info, _ in own[:5]))


def shape_magnitudes(subject: Subject, draft: Draft) -> Iterator[str]:
    """Reshape each magnitude with a known axis to the shape that shows it."""
    known = [(info, axis) for info, axis in _flat(subject) if axis]
    for info, axis in known:
        draft.reshape(info.name, _shape(info, axis, subject))
    if known:
        first, axis = known[0]
        yield f"gave {counted(len(known), 'magnitude')} a second dimension ([{_spelled(first, axis)}])"


def split_keys(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for fused layers that are saved in slices, with a pair of factors each."""
    modules = subject.adapter.modules.values()
    keys = [m.name.key for m in modules if any(c.rows for c in m.contributions)]
    if keys:
        message = (
            f"{counted(len(keys), 'fused layer')} saved in slices ({some(keys, 1)}), as lora_down.0.weight and so on"
        )
        yield RawProblem("split-keys", message, tuple(keys[:5]))


def split_alpha(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for layers that were trained in parts and saved as one, with the alpha of one part."""
    counts: dict[int, list[str]] = {}
    for module, contribution in subject.ranked:
        stored = subject.alphas.get(module.alpha.name) if module.alpha else None
        if stored and contribution.alpha and (parts := round(contribution.alpha / stored)) > 1:
            counts.setdefault(parts, []).append(module.name.key)
    for parts, keys in counts.items():
        message = (
            f"{counted(len(keys), 'module')} trained in {parts} parts and saved as one ({some(keys, 1)}): "
            f"programs that divide alpha by the rank apply 1/{parts} of the trained change"
        )
        yield RawProblem("split-alpha", message, tuple(keys[:5]))


def rank_large(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for modules with a rank above that of any matrix of their size."""
    large = [(module.name.key, c) for module, c in subject.ranked if c.rank and (side := _side(c)) and c.rank > side]
    if large:
        key, first = large[0]
        sides = f"{key}: rank {first.rank}, side {_side(first)}"
        message = f"{counted(len(large), 'module')} with a rank above the smaller side of the layer ({sides})"
        yield RawProblem("rank-large", message, tuple(name for name, _ in large[:5]))


def mixed_dtypes(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for factors in several types."""
    counts = Counter(
        info.dtype
        for contribution in subject.adapter.contributions
        if contribution.algorithm.parameter in (WEIGHT, BIAS)
        for info in contribution.operands.values()
        if info.dtype in PLAIN_FLOATS | FP8 and info.numel > 1
    )
    if len(counts) > 1:
        told = listed([f"{dtype} ({count})" for dtype, count in counts.most_common()])
        yield RawProblem("mixed-dtypes", f"the factors are in {len(counts)} types: {told}")


def _side(contribution: Contribution) -> int | None:
    """Return the smaller side of the weight as a matrix (out, in·kernel); None if the factors leave it open."""
    shape = contribution.shape
    if contribution.algorithm.name != "lora" or None in shape or len(shape) < 2:
        return None
    columns = 1
    for size in shape[1:]:
        columns *= size or 0
    return min(shape[0] or 0, columns)


def _flat(subject: Subject) -> list[tuple[TensorInfo, str]]:
    """Return the one-dimensional magnitudes with their axis, empty if nothing proves it.

    A program gives all of a file the same axis, so those of layers that are not square speak for the others.
    """
    found: list[tuple[TensorInfo, set[str]]] = []
    for key in subject.adapter.unclaimed:
        info = subject.checkpoint.tensors[key]
        module = subject.adapter.modules.get(key.removesuffix(_MAGNITUDE))
        if not key.endswith(_MAGNITUDE) or len(info.shape) != 1 or module is None:
            continue
        bearer = next((c for c in module.contributions if c.algorithm.decomposes and not c.rows), None)
        if bearer is None:
            continue
        out_features, in_features = bearer.features
        sides = ((OUTPUT, out_features), (INPUT, in_features))
        if fitting := {axis for axis, size in sides if info.shape[0] == size}:
            found.append((info, fitting))
    told = {axis for _, fitting in found if len(fitting) == 1 for axis in fitting}
    common = told.pop() if len(told) == 1 else ""
    return [(info, next(iter(fitting)) if len(fitting) == 1 else common) for info, fitting in found]


def _shape(info: TensorInfo, axis: str, subject: Subject) -> tuple[int, ...]:
    module = subject.adapter.modules[info.name.removesuffix(_MAGNITUDE)]
    kernel = (1,) * (len(next(c for c in module.contributions if c.algorithm.decomposes).shape) - 2)
    return (*((info.shape[0], 1) if axis == OUTPUT else (1, info.shape[0])), *kernel)


def _spelled(info: TensorInfo, axis: str) -> str:
    return f"{info.shape[0]}, 1" if axis == OUTPUT else f"1, {info.shape[0]}"


# What a writer may leave for later changes of the metadata.
_ROOM = 1 << 16


def header_start(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for headers that do not begin as A1111 and Forge require."""
    for header in subject.headers:
        if header.start not in (b'{"', b"{}"):
            shown = printable(header.start.decode("ascii", "replace"))
            message = f'the header begins with "{shown}", but programs that read the metadata look for {{"'
            yield RawProblem("header-start", message)


def metadata_late(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for metadata that come after tensors in the header."""
    for header in subject.headers:
        if not header.metadata_first and subject.checkpoint.file_metadata[header.file]:
            yield RawProblem("metadata-late", "the metadata do not come first in the header")


def header_padding(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for blanks after the header that no writer leaves."""
    for header in subject.headers:
        if header.blanks > _ROOM:
            yield RawProblem("header-padding", f"the header ends in {header.blanks:,} blanks")
        elif not header.spaces:
            yield RawProblem("header-padding", "the header is padded with blanks other than spaces")


def unaligned(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for tensors that begin at no multiple of their elements' size."""
    if not subject.headers:
        return
    odd = [
        info.name
        for info in subject.checkpoint.tensors.values()
        if info.nbytes and BITS[info.dtype] >= 8 and info.start % (BITS[info.dtype] // 8)
    ]
    if odd:
        message = f"{counted(len(odd), 'tensor')} not at a multiple of the size of the elements ({some(odd, 1)})"
        yield RawProblem("unaligned", message, tuple(odd[:5]))


def tensor_empty(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for tensors without an element."""
    if empty := [info.name for info in subject.checkpoint.tensors.values() if not info.numel]:
        yield RawProblem(
            "tensor-empty", f"{counted(len(empty), 'tensor')} without an element ({some(empty, 1)})", tuple(empty[:5])
        )


def odd_names(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for names that are empty, display as something else, or begin or end with a blank."""
    for what, names in (("tensor", subject.checkpoint.tensors), ("key", subject.metadata)):
        if odd := [name for name in names if not name or name != name.strip() or printable(name) != name]:
            shown = some([f"'{name}'" for name in odd], 1)
            where = "" if what == "tensor" else " of the metadata"
            message = f"{counted(len(odd), what)}{where} with a blank at an end or invisible characters ({shown})"
            yield RawProblem("odd-name", message, tuple(odd[:5]))
