"""The orientation of a weight in a base: (out, in) as in a Linear, or (in, out) as in transformers' Conv1D.

The shape of a weight that is not square shows it. For a square one the strongest evidence are its siblings, the base's
non-square weights of the same leaf. Next is the architecture's table, unless a non-square weight of the base
contradicts it. Then comes the config's `fan_in_fan_out`, one flag for all layers, as far as it can describe this one.
The last is the naming scheme, if only Linear layers have such names. `--transposed [GLOB=]yes|no` settles the rest.

A base may have the weight of a Linear layer as a parameter of another module, as open_clip has its projections. No
other layer shows the orientation of such a parameter: its shape does, the table of open_clip, or `--transposed`.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lora_inspect import schemes
from lora_inspect.architectures import text_encoders
from lora_inspect.architectures.families.gpt2 import CONV1D
from lora_inspect.architectures.record import Layout
from lora_inspect.errors import AmbiguousError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.base.base_names import EXPERTS, is_weight, leaf_of, path_of
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.schemes.record import MODEL

# Whether the base stores weights as (in, out), by a glob over their paths or last names; the first that fits decides.
Answers = Mapping[str, bool]
UNANSWERED: Answers = MappingProxyType({})

# The glob of an answer without one.
_ALL = "*"
_WORDS = {"yes": True, "no": False}


def parse_answers(texts: Sequence[str]) -> Answers:
    """Return the answers in the order given, the plain one last; ValueError for an invalid or repeated one."""
    answers: dict[str, bool] = {}
    for text in texts:
        glob, equals, word = text.rpartition("=")
        if word not in _WORDS or (equals and not glob):
            raise ValueError(f"{text!r} is none of yes, no, GLOB=yes and GLOB=no")
        glob = glob or _ALL
        if glob in answers:
            raise ValueError(f"{text!r} repeats the answer for {glob}")
        answers[glob] = _WORDS[word]
    return {glob: answers[glob] for glob in sorted(answers, key=lambda glob: glob == _ALL)}


def deciding_glob(answers: Answers, path: str) -> str | None:
    """Return the first glob that matches the path of a weight or its last name; None if none does."""
    from fnmatch import fnmatchcase  # most modules are asked of no glob

    return next((glob for glob in answers if fnmatchcase(path, glob) or fnmatchcase(leaf_of(path), glob)), None)


def spell_answer(glob: str, stored: bool) -> str:
    """Return one answer in the spelling of the command line."""
    word = "yes" if stored else "no"
    return f"--transposed {word}" if glob == _ALL else f"--transposed {glob}={word}"


SHAPE, SIBLINGS, ARCHITECTURE, BIAS, CONFIG, SCHEME, OPTION = (
    "shape", "siblings", "architecture", "bias", "config", "scheme", "option",
)  # fmt: skip

# The components whose architecture is identified.
_MODELS = (MODEL, *EXPERTS)


# (out, in) of a change, None for what is not known.
Covered = tuple[int | None, int | None]


@dataclass(frozen=True, slots=True)
class Orientation:
    """The storage of a base weight, True for (in, out), and the source of that decision."""

    transposed: bool
    source: str


class Layer(NamedTuple):
    """A weight of the base, the module that changes it, and its (out, in) by that module's shapes."""

    module: Module
    target: TensorInfo
    shape: Covered


def orient(
    layers: Sequence[Layer], base: Checkpoint, layouts: Collection[Layout], answers: Answers
) -> dict[str, Orientation]:
    """Return the orientation of every weight that a Linear module changes, by the weight's name.

    `layouts` are the possible layouts of the base; their tables may decide. `answers` decide if the evidence does not.
    Raises LoraInspectError if an orientation stays open.
    """
    linear = {layer.target.name: layer for layer in layers if _is_linear(layer.module, layer.target)}
    known = _non_square(base, {name: layer.shape for name, layer in linear.items()})
    decided: dict[str, Orientation] = {}
    left: list[tuple[Module, TensorInfo]] = []
    for module, target, shape in linear.values():
        if found := _by_base(module, target, shape, known, layouts):
            decided[target.name] = found
        else:
            left.append((module, target))
    flagged = _Flagged.of(decided, [target for _, target in left], base)
    undecided: list[TensorInfo] = []
    for module, target in left:
        found = _by_file(module.contributions[0], path_of(target), known, flagged) if is_weight(target) else None
        if found is None and (glob := deciding_glob(answers, path_of(target))):
            found = Orientation(answers[glob], OPTION)
        if found is None:
            undecided.append(target)
        else:
            decided[target.name] = found
    if undecided:
        raise AmbiguousError(_open_question(undecided, base))
    return decided


def check_answers(orientations: Iterable[Mapping[str, Orientation]], answers: Answers) -> list[str]:
    """Return notes on answers that repeat facts; LoraInspectError for one that contradicts them or cannot apply.

    An answer that decided one weight may differ from the evidence on the others.
    """
    spoken_of: dict[str | None, list[tuple[str, Orientation]]] = defaultdict(list)
    for decided in orientations:
        for name, item in decided.items():
            spoken_of[deciding_glob(answers, name.removesuffix(".weight"))].append((name, item))
    notes = []
    for glob, stored in answers.items():
        said, found = spell_answer(glob, stored), spoken_of[glob]
        if not found:
            raise RefusedError(f"{said} has no effect, as no changed Linear weight needs it; leave it out.")
        if any(item.source == OPTION for _, item in found):
            continue
        for name, item in found:
            if item.transposed != stored:
                raise RefusedError(
                    f"{name} is stored as {_written(item.transposed)} according to its {item.source}, but "
                    f"{said} contradicts that; leave the option out."
                )
        notes.append(f"{said} is not needed, as the weights already show it")
    return notes


def together(orientations: Iterable[Mapping[str, Orientation]], base: Checkpoint) -> dict[str, Orientation]:
    """Return the orientations that several adapters found; LoraInspectError if two of them differ on a weight."""
    found: dict[str, Orientation] = {}
    for decided in orientations:
        for name, item in decided.items():
            first = found.setdefault(name, item)
            if first.transposed != item.transposed:
                raise RefusedError(
                    base.path,
                    f"{name} is stored as {_written(first.transposed)} according to one adapter's "
                    f"{first.source}, but as {_written(item.transposed)} according to another's {item.source}",
                    "leave out the adapter that is for another model",
                )
    return found


def in_words(orientations: Mapping[str, Orientation]) -> str:
    """Return the number of weights by storage and source, in words, without those decided by shape; else ""."""
    counts = Counter((item.transposed, item.source) for item in orientations.values() if item.source != SHAPE)
    return "; ".join(
        f"from {source} {count} as {_written(transposed)}" for (transposed, source), count in sorted(counts.items())
    )


def in_record(orientations: Mapping[str, Orientation]) -> dict[str, dict[str, Any]]:
    """Return the same for programs: by weight its storage and source, without those decided by shape."""
    return {
        name: {"transposed": item.transposed, "from": item.source}
        for name, item in orientations.items()
        if item.source != SHAPE
    }


def covered_shape(module: Module) -> Covered:
    """Return (out, in) of the Linear weight that a module's contributions cover, all slices of a split one together.

    None means that the factors do not determine a size.
    """
    rows, inputs = module.contributions[0].features
    return max((part.rows[1] for part in module.contributions if part.rows), default=rows), inputs


def _is_linear(module: Module, target: TensorInfo) -> bool:
    return len(target.shape) == 2 and module.contributions[0].is_linear


def _non_square(base: Checkpoint, shapes: Mapping[str, Covered]) -> dict[str, set[bool]]:
    """Return the orientations of the base's non-square matrices by leaf, from the adapter's change or the bias."""
    by_leaf: dict[str, set[bool]] = defaultdict(set)
    for info in base.tensors.values():
        if not is_weight(info) or len(info.shape) != 2 or info.shape[0] == info.shape[1]:
            continue
        path = path_of(info)
        bias = base.tensors.get(f"{path}.bias")
        if info.name in shapes:
            stored = _by_shape(shapes[info.name], info.shape)
        elif bias and len(bias.shape) == 1 and bias.shape[0] in info.shape:
            stored = bias.shape[0] == info.shape[1]
        else:
            stored = None
        if stored is not None:
            by_leaf[leaf_of(path)].add(stored)
    return dict(by_leaf)


def _by_base(
    module: Module,
    target: TensorInfo,
    shape: Covered,
    known: Mapping[str, set[bool]],
    layouts: Collection[Layout],
) -> Orientation | None:
    """Return the orientation by shape, siblings and the architecture's table; None if they leave it open."""
    stored = _by_shape(shape, target.shape)
    if stored is not None:
        return Orientation(stored, SHAPE)
    if not _fits(shape, target.shape):
        return Orientation(False, SHAPE)
    if not is_weight(target):
        return Orientation(True, ARCHITECTURE) if text_encoders.is_open_clip_projection(target.name) else None
    leaf = leaf_of(path_of(target))
    siblings = known.get(leaf, set())
    if len(siblings) == 1:
        return Orientation(next(iter(siblings)), SIBLINGS)
    if module.name.component in _MODELS:
        # A family that the base contradicts, or that has no such layer, is not that of the base.
        says = {_by_table(leaf, layout, known) for layout in layouts} - {None}
        if len(says) == 1 and (stored := says.pop()) is not None:
            return Orientation(stored, ARCHITECTURE)
    return None


def _by_shape(shape: Covered, stored: tuple[int, ...]) -> bool | None:
    """Return True if a change of `shape` (out, in) is stored as (in, out); None if neither way matches, or both."""
    straight, turned = _fits(shape, stored), _fits(shape, stored[::-1])
    return None if straight == turned else turned


def _fits(shape: Covered, stored: tuple[int, ...]) -> bool:
    """Return True if the known sizes of the change are those of the weight."""
    return all(size in (None, there) for size, there in zip(shape, stored, strict=True))


def _by_table(leaf: str, layout: Layout, known: Mapping[str, set[bool]]) -> bool | None:
    """Return the orientation of a leaf by the layout, if the layout agrees with all that the base shows; else None."""
    borne_out = all(found == {other in layout.transposed} for other, found in known.items())
    return leaf in layout.transposed if borne_out and leaf in map(leaf_of, layout.paths) else None


class _Flagged(NamedTuple):
    """The adapted layers that a config's only flag may describe: all that are not known to be of the other kind.

    PEFT turns its `fan_in_fan_out` to the kind of each layer that it wraps, so that a file has the kind of the last
    one. `open_leaves` are undecided, `biased` are the undecided ones with a bias, as every Conv1D has.
    """

    decided: dict[bool, set[str]]
    open_leaves: set[str]
    biased: set[str]

    @classmethod
    def of(cls, decided: Mapping[str, Orientation], left: Iterable[TensorInfo], base: Checkpoint) -> "_Flagged":
        """Return the leaves of the `decided` weights, and of the weights that are `left`."""
        leaves: dict[bool, set[str]] = {True: set(), False: set()}
        for name, item in decided.items():
            leaves[item.transposed].add(leaf_of(path_of(base.tensors[name])))
        paths = [path_of(target) for target in left]
        biased = {leaf_of(path) for path in paths if f"{path}.bias" in base.tensors}
        return cls(leaves, {leaf_of(path) for path in paths}, biased)

    def may_mean(self, flag: bool) -> set[str]:
        """Return the leaves that may have made PEFT write `flag`."""
        if flag:
            return self.decided[True] | self.biased or self.open_leaves
        return self.decided[False] | self.open_leaves


def _by_file(
    contribution: Contribution, path: str, known: Mapping[str, set[bool]], flagged: _Flagged
) -> Orientation | None:
    """Return the orientation by the config or the names, if nothing in the base contradicts it; else None.

    A flag is certain if it can describe only one leaf. Otherwise a yes counts for the names of Conv1D layers, and a no
    for all that does not look like one.
    """
    says, leaf = contribution.fan_in_fan_out, leaf_of(path)
    shown = {stored for found in known.values() for stored in found}
    if says is None:
        by_names = schemes.by_name(contribution.module.scheme).absent_alpha != "config"
        return Orientation(False, SCHEME) if shown == {False} or (by_names and not shown) else None
    meant = flagged.may_mean(says)
    if says and leaf not in meant:
        return Orientation(False, BIAS)
    if not shown <= {says}:
        return None
    usual = leaf in CONV1D if says else leaf not in flagged.biased or not _like_conv1d(leaf)
    return Orientation(says, CONFIG) if usual or meant == {leaf} else None


def _like_conv1d(leaf: str) -> bool:
    return leaf in CONV1D or "conv" in leaf.lower()


def _open_question(undecided: Sequence[TensorInfo], base: Checkpoint) -> str:
    leaves = sorted({leaf_of(path_of(target)) for target in undecided})
    others = f" (and {len(undecided) - 1} more: {', '.join(leaves[:5])})" if len(undecided) > 1 else ""
    each = " ".join(f"--transposed {leaf}=yes|no" for leaf in leaves[:5])
    rows, columns = undecided[0].shape[:2]
    what = "is square" if rows == columns else "is changed by factors that show neither its inputs nor its outputs"
    return (
        f"{base.path}: {undecided[0].name}{others} {what}, and nothing says whether it is stored as (out, in) or as "
        "(in, out); settle it with --transposed no or --transposed yes"
        f"{f', or name by name with {each}' if len(leaves) > 1 else ''}."
    )


def _written(transposed: bool) -> str:
    return "(in, out)" if transposed else "(out, in)"
