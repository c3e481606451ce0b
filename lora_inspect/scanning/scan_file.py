"""The short account of one file among many: what it is, and what to do with it."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from lora_inspect.algorithms.record import WEIGHT
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.system import without_collecting
from lora_inspect.reading.file_info import ADAPTER, FileInfo, inspect
from lora_inspect.reading.keys.groups import alike
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.scale.scale_records import FOLDED_KEY, FoldedScales
from lora_inspect.scanning.duplicates import DataSection, data_section
from lora_inspect.scanning.states import state_of

# What is more than that of a file is made of its reading, as by `lora_inspect.ops.info.as_json`.
Record = Callable[[FileInfo], dict[str, Any]]

# What people call the variants of LoRA; other algorithms have their own titles.
_LORA = ("lora", "mlx", "lora_embedding", "lora_embedding_along_tokens", "lora_experts", "mlx_experts")
_FULL = {"full": "full", "saved": "full", "set_weight": "full", "norm": "norms"}


class ScannedFile(NamedTuple):
    """One checkpoint of a folder.

    `kind` is "adapter", "base", "other", or empty where it cannot be read, and then `error` says why. `architectures`
    are the names of all families that it may be of, `model` is what people call them. `types` are the kinds of change,
    the commonest first: "LoRA", "RS-LoRA", "DoRA", "LoHa". `scales` has None for an unknown scale. `codes` are those of
    its problems. `state` is one of `lora_inspect.scanning.states.STATES`, empty for what is no adapter, and `notes` say
    why or what is odd, each the same in fewer words than the one before it. `modified` is the time of its last change
    in seconds. `duplicate_of` is the path of an earlier file with the same tensors, and `record` what else was asked.
    """

    path: str
    kind: str = ""
    architectures: tuple[str, ...] = ()
    model: str = ""
    types: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    scales: tuple[float | None, ...] = ()
    bytes: int = 0
    modified: float = 0.0
    modules: int = 0
    trainer: str | None = None
    schemes: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    state: str = ""
    notes: tuple[str, ...] = ()
    section: DataSection | None = None
    duplicate_of: str | None = None
    record: dict[str, Any] | None = None
    error: Exception | None = None

    @property
    def note(self) -> str:
        """The note in full; empty for nothing to say."""
        return self.notes[0] if self.notes else ""


def scan_file(path: str, settings: Settings = Settings(), record: Record | None = None) -> ScannedFile:  # noqa: B008
    """Reads one file; whatever goes wrong with it is its `error`."""
    try:
        with without_collecting():
            return _account_of(path, settings, record)
    except Exception as error:  # one file that cannot be read leaves the others of the folder their rows
        return ScannedFile(path, error=error)


def _account_of(path: str, settings: Settings, record: Record | None) -> ScannedFile:
    # All that was read is gone before garbage is looked for again.
    info = inspect(path, settings)
    return _account(path, info, record(info) if record else None)


def _account(path: str, info: FileInfo, record: dict[str, Any] | None) -> ScannedFile:
    adapter, checkpoint = info.adapter, info.checkpoint
    modules = alike(adapter.modules)
    changes = Counter(modules.likeness.numbers)
    kinds = [(change, changes[number]) for number, first in enumerate(modules.firsts) for change in first.contributions]
    scales = {c.scale for c, _ in kinds if c.has_scale}
    if FOLDED_KEY in checkpoint.metadata:
        folded = FoldedScales(checkpoint.metadata)
        scales = {folded.meant(c.module.key, c.scale) for c in adapter.contributions if c.has_scale}
    state, notes = state_of(info) if info.kind == ADAPTER else ("", ())
    files = checkpoint.files or (checkpoint.path,)
    return ScannedFile(
        path=path,
        kind=info.kind,
        architectures=tuple(dict.fromkeys(candidate.architecture.name for candidate in info.candidates)),
        model=" or ".join(map(str, info.candidates)),
        types=_types(kinds),
        ranks=tuple(sorted({c.rank for c, _ in kinds if c.rank})),
        scales=tuple(sorted(scales, key=lambda scale: (scale is None, scale or 0.0))),
        bytes=checkpoint.bytes,
        modified=max((checkpoint.inputs[file].modified for file in files if file in checkpoint.inputs), default=0)
        / 1e9,
        modules=len(adapter.modules),
        trainer=adapter.trainer,
        schemes=tuple(dict.fromkeys(first.name.scheme for first in modules.firsts)),
        codes=tuple(dict.fromkeys(problem.code for problem in adapter.problems)),
        state=state,
        notes=notes,
        section=data_section(checkpoint),
        record=record,
    )


def _types(changes: Iterable[tuple[Contribution, int]]) -> tuple[str, ...]:
    """The kinds of change of weights, and of what else there is only where no weight is changed.

    `changes` are each as one of so many that are alike.
    """
    counts: Counter[str] = Counter()
    beside: Counter[str] = Counter()
    for one, number in changes:
        is_main = one.algorithm.parameter == WEIGHT and not one.algorithm.beside and one.algorithm.name not in _FULL
        (counts if is_main else beside)[_type(one)] += number
    return tuple(name for name, _ in (counts or beside).most_common())


def _type(contribution: Contribution) -> str:
    name = contribution.algorithm.name
    title = "LoRA" if name in _LORA else _FULL.get(name, contribution.algorithm.title)
    if title == "LoRA" and contribution.rslora:
        title = "RS-LoRA"
    if contribution.magnitude:
        return {"LoRA": "DoRA", "RS-LoRA": "RS-DoRA"}.get(title, f"{title}+DoRA")
    return title
