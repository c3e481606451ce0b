"""The plan of a merge: every fold with its target, made from headers before any weight is read.

`plan_merge` reads the adapters, chooses their modules and multipliers by options and paths, and matches them with the
base. The checks of `fold_checks` refuse wrong merges. A note names an adapter for another expert of a pipeline.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.base_folder import SideFiles, find_side_files
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.files.input_file import Identity
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.matching.match import match
from lora_inspect.matching.module_map import module_names
from lora_inspect.matching.orientation import Orientation, check_answers, together
from lora_inspect.matching.unmatched import accept_unmatched, other_base_notes
from lora_inspect.maths import dora
from lora_inspect.merging.fold_chain import Fold
from lora_inspect.merging.fold_checks import (
    check_multiplier,
    check_replaced,
    check_residual,
    check_tied,
    residual_notes,
)
from lora_inspect.merging.options import MergeOptions, check_rounding
from lora_inspect.merging.resized_embeddings import (
    ResizedTensor,
    idle_tensors,
    notes_on,
    resized_tensors,
    with_rows,
    with_vocabulary,
)
from lora_inspect.merging.storage import RequestedDtypes, Storage, plan_storage, read_config
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.ambiguous_options import ModuleFilter, Multipliers, read_settled
from lora_inspect.reading.base.base_codecs import open_weights
from lora_inspect.reading.base.named_model import other_model_note
from lora_inspect.reading.embeddings import in_words
from lora_inspect.reading.file_info import ADAPTER, kind_of
from lora_inspect.reading.identify import adapter_candidates, base_candidates
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.pipeline import pipeline_expert


class Parts(NamedTuple):
    """The modules of an adapter to merge, each with its multiplier; `excluded` are the keys of the others."""

    multipliers: Multipliers
    excluded: tuple[str, ...] = ()

    def multiplier_of(self, key: str) -> float:
        """Return the multiplier of a module by its key; 0 for one that is not merged."""
        return 0.0 if key in self.excluded else self.multipliers.of(key)


def parts_of(adapters: Sequence[Adapter], base: Checkpoint | None, choice: ModuleFilter) -> list[Parts]:
    """Return the parts of each adapter; raise LoraInspectError for a pattern without a module.

    Two adapters may be of one file.
    """
    # Names are looked for where something asks for them: it takes as long as all else that is planned.
    names = {
        adapter.checkpoint.path: module_names(adapter, base)
        for adapter in adapters
        if choice.says or adapter.settings.part_multipliers
    }
    excluded = choice.left_out(names) if choice.says else {}
    parts: list[Parts] = []
    for adapter in adapters:
        path = adapter.checkpoint.path
        without = excluded.get(path, ())
        left = {key: one for key, one in names.get(path, {}).items() if key not in without}
        parts.append(Parts(Multipliers(adapter.settings, path, left, choice.leaves), tuple(without)))
    return parts


def other_expert_notes(base: Checkpoint, adapters: Iterable[Adapter], only: Collection[str]) -> Iterator[str]:
    """Yield a sentence for each adapter with a name that contradicts that of the base.

    The names of experts are no proof, so this is no error. `only` are the components to merge, empty for all.
    """
    theirs = pipeline_expert(base, (), base_candidates(base))
    if theirs is None or theirs.name is None:
        return
    for adapter in adapters:
        components = {module.name.component for module in adapter.modules.values()}
        ours = pipeline_expert(adapter.checkpoint, components, adapter_candidates(adapter), only)
        if ours and ours.name and ours.name != theirs.name:
            yield (
                f"{adapter.checkpoint.path} is named as an adapter of the {ours.name} expert ({ours.where}), "
                f"but {base.path} as the {theirs.name} one ({theirs.where}); merge folds it anyway, as their "
                "modules have the same names"
            )


@dataclass(frozen=True, slots=True)
class MergePlan:
    """The planned folds of a merge, known before any byte of a weight is read.

    `left_out` counts by component the modules that the option `only` keeps out. `excluded` are by adapter the keys that
    `include` and `exclude` remove. `orientations` give how changed Linear weights are stored. `transposed_notes` are
    sentences on answers that were not needed, `tied` those on a head that shares a changed embedding. `storage`
    describes the tensors of the base that are not written as stored. `resized` are tensors that the output has in the
    size of an adapter's. `other_models` are sentences on adapters with a config that names another model than the base.
    """

    base: Checkpoint
    adapters: tuple[tuple[Adapter, Settings], ...]
    folds: dict[str, list[Fold]]
    unmatched: tuple[str, ...]
    options: MergeOptions
    side_files: SideFiles
    left_out: dict[str, int]
    orientations: dict[str, Orientation]
    transposed_notes: list[str]
    tied: list[str]
    storage: Storage
    excluded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    resized: Mapping[str, ResizedTensor] = field(default_factory=dict)
    other_models: tuple[str, ...] = ()

    @property
    def modules(self) -> int:
        """The number of modules with a target."""
        return len({(fold.adapter.checkpoint.path, fold.contribution.module.key) for fold in self._all()})

    @property
    def embeddings(self) -> list[str]:
        """The keys of embeddings, which change no weight."""
        return [key for adapter, _ in self.adapters for one in adapter.embeddings for key in one.keys]

    @property
    def dora_rules(self) -> set[str]:
        """The multiplier rules of the DoRA modules that have a multiplier other than 0 and 1."""
        return {
            self.options.dora_rule or fold.contribution.magnitude.spelling.multiplier
            for fold in self._all()
            if fold.contribution.magnitude and fold.multiplier not in (0, 1)
        }

    @property
    def order_matters(self) -> list[str]:
        """The weights that another order of their changes would leave different."""
        at_work = {name: [fold for fold in folds if fold.multiplier] for name, folds in self.folds.items()}
        return [
            name
            for name, folds in at_work.items()
            if len(folds) > 1 and any(fold.contribution.multiplies for fold in folds)
        ]

    @property
    def multipliers(self) -> dict[str, float | dict[str, float]]:
        """The multiplier of each adapter by path, or all of them if modules have their own."""
        return {adapter.checkpoint.path: settings.multipliers() for adapter, settings in self.adapters}

    @property
    def notes(self) -> list[str]:
        """Sentences on settings that were not needed, and on parts that are not merged."""
        of_adapters = [note for adapter, _ in self.adapters for note in adapter.notes]
        of_adapters += [
            f"{adapter.checkpoint.path}: merge leaves out {in_words(adapter.embeddings)}, as they change no "
            "weight; load them with the merged base."
            for adapter, _ in self.adapters
            if adapter.embeddings
        ]
        of_adapters += other_expert_notes(self.base, [adapter for adapter, _ in self.adapters], self.options.only)
        of_adapters += other_base_notes((adapter for adapter, _ in self.adapters), self.base)
        of_adapters += self.other_models
        of_adapters += self.side_files.notes
        resized = notes_on(self.resized)
        return [*of_adapters, *residual_notes(self._all(), self.base), *self.transposed_notes, *self.tied, *resized]

    @property
    def bytes(self) -> int:
        """The bytes that `merge` reports to its progress: all tensors to write, and the other files.

        They include the base's files if it is read for its hash.
        """
        hashed = self.base.bytes if self.options.hash_base else 0
        sizes = (self.resized[one.name].info.nbytes if one.name in self.resized else one.nbytes for one in self.written)
        return sum(sizes) + self.side_files.bytes + hashed

    @property
    def written(self) -> list[TensorInfo]:
        """The tensors of the base that the output has."""
        decoded, codes = self.storage.decoded, self.base.codes
        kept = (info for info in self.base.tensors.values() if info.name not in self.storage.dropped)
        return [info if info.name in decoded else codes.get(info.name, info) for info in kept]

    @property
    def renamed(self) -> dict[str, str]:
        """The names of decoded weights, by the names of their codes if those differ."""
        codes = ((name, self.base.codes.get(name)) for name in self.storage.decoded)
        return {info.name: name for name, info in codes if info and info.name != name}

    @property
    def tensors_copied(self) -> int:
        """The number of tensors that are neither changed nor decoded."""
        return len(self.written) - len(self._rewritten)

    @property
    def _rewritten(self) -> set[str]:
        return {*self.folds, *self.storage.decoded, *self.storage.rewritten, *self.resized}

    @property
    def inputs(self) -> dict[str, Identity]:
        """Every input file by path, with its identity at the time of the plan."""
        inputs = self.base.inputs | self.side_files.inputs
        for adapter, _ in self.adapters:
            inputs |= adapter.checkpoint.inputs
        if self.options.weights:
            inputs[self.options.weights.path] = self.options.weights.identity
        return inputs

    def _all(self) -> Iterator[Fold]:
        return (fold for folds in self.folds.values() for fold in folds)


def plan_merge(base_path: str, adapters: Sequence[tuple[str, Settings | float]], options: MergeOptions) -> MergePlan:
    """Read headers and find every target; raise LoraInspectError if the merge is refused.

    Each adapter comes with its settings, or with its multiplier if there are no others.
    """
    base = open_weights(base_path)
    named = [(path, _as_settings(own)) for path, own in adapters]
    opened = [
        (open_checkpoint(path), own) for path, own in (options.weights.joined(named) if options.weights else named)
    ]
    _check_named_once([checkpoint for checkpoint, _ in opened])
    read = read_settled(opened, options.settings)
    _check_kinds(base, read)
    _check_components(options.only, read)
    check_dora_rule(options.dora_rule, read)
    parts = parts_of(read, base, options.choice)
    multipliers = [part.multiplier_of for part in parts]
    resized = resized_tensors(zip(read, multipliers, strict=True), base, options.allow_unmatched)
    stored, base = base, with_rows(base, resized)
    folds: dict[str, list[Fold]] = defaultdict(list)
    unmatched: list[str] = []
    left_out: Counter[str] = Counter()
    orientations: list[dict[str, Orientation]] = []
    for adapter, part in zip(read, parts, strict=True):
        # Tensors that are left out, as at 0, may have rows of their own too: they change nothing.
        idle = idle_tensors(adapter, part.multiplier_of, stored, options.allow_unmatched)
        fitting = with_rows(stored, {**resized, **idle})
        matching = match(adapter, fitting, options.only, options.transposed, part.excluded)
        unmatched.extend(accept_unmatched(adapter, fitting, matching, options.allow_unmatched))
        left_out.update(module.name.component for module in matching.left_out)
        orientations.append(matching.orientations)
        for name, found in matching.targets.items():
            if name in idle:
                continue
            own = [Fold(p, part.multipliers.of(p.contribution.module.key), adapter) for p in found]
            for fold in own:
                check_multiplier(fold.adapter.checkpoint.path, fold.contribution, fold.multiplier)
            check_residual(own, base)
            folds[name] += own
    check_replaced(folds)
    side_files = find_side_files(stored)
    said = read_config(side_files)
    tied = check_tied(stored, said, folds)
    folds = _beside(folds, resized)
    storage = plan_storage(stored, side_files, RequestedDtypes(options.dtype, options.changed_dtype), *_read(folds))
    if resized:
        storage = replace(storage, config=with_vocabulary(storage.config or said, stored, side_files, resized))
    check_rounding(options.seed, stored, folds, storage.types)
    return MergePlan(
        base=stored,
        adapters=tuple((adapter, adapter.settings) for adapter in read),
        folds=dict(folds),
        unmatched=tuple(unmatched),
        options=options,
        side_files=side_files,
        left_out=dict(left_out),
        orientations=together(orientations, base),
        transposed_notes=check_answers(orientations, options.transposed),
        tied=tied,
        storage=storage,
        excluded={one.checkpoint.path: part.excluded for one, part in zip(read, parts, strict=True) if part.excluded},
        resized=resized,
        other_models=tuple(filter(None, (_other_model(adapter, stored, said) for adapter in read))),
    )


def _other_model(adapter: Adapter, base: Checkpoint, config: Mapping[str, Any] | None) -> str | None:
    return other_model_note(adapter.checkpoint.path, adapter.checkpoint.config, base, config)


def _beside(folds: Mapping[str, list[Fold]], resized: Collection[str]) -> dict[str, list[Fold]]:
    """Return the folds without replacements of tensors that already have the adapter's numbers."""
    left = {
        name: [fold for fold in own if name not in resized or not fold.contribution.algorithm.replaces]
        for name, own in folds.items()
    }
    return {name: own for name, own in left.items() if own}


def _read(folds: Mapping[str, Sequence[Fold]]) -> tuple[list[str], list[TensorInfo]]:
    """Return the names of the weights that change, and the other tensors of the base that the changes read."""
    at_work = {name: [fold for fold in own if fold.multiplier] for name, own in folds.items()}
    seen = [fold.placed.place.seen for own in at_work.values() for fold in own]
    return [name for name, own in at_work.items() if own], [info for info in seen if info]


def _check_named_once(adapters: Sequence[Checkpoint]) -> None:
    """Raise LoraInspectError if two paths lead to the same files: two spellings, or two shards of one set."""
    named: dict[tuple[str, ...], str] = {}
    for adapter in adapters:
        files = tuple(map(os.path.realpath, adapter.files or [adapter.path]))
        if files in named:
            also = "" if named[files] == adapter.path else f", also as {named[files]}"
            raise RefusedError(
                adapter.path, f"it is named more than once{also}", "name it once, with the multipliers added"
            )
        named[files] = adapter.path


def _as_settings(given: Settings | float) -> Settings:
    return given if isinstance(given, Settings) else Settings(multiplier=given)


def _check_kinds(base: Checkpoint, adapters: Sequence[Adapter]) -> None:
    base_is_adapter = kind_of(read_adapter(base))[0] == ADAPTER
    for adapter in adapters:
        kind, reading = kind_of(adapter)
        if base_is_adapter and kind != ADAPTER:
            raise RefusedError(
                f"{base.path} is an adapter and {adapter.checkpoint.path} is not; name the base first, then "
                "the adapters."
            )
        reading.refuse()
    if base_is_adapter:
        raise RefusedError(base.path, "it is an adapter itself, not a base", "name the model's own weights first")


def _check_components(only: Sequence[str], adapters: Sequence[Adapter]) -> None:
    """Raise LoraInspectError for a component that no adapter has."""
    present = sorted({module.name.component for adapter in adapters for module in adapter.modules.values()})
    if unknown := [component for component in only if component not in present]:
        paths = ", ".join(adapter.checkpoint.path for adapter in adapters)
        raise RefusedError(paths, f"it has no component {unknown[0]}", f"choose from {', '.join(present)}")


def check_dora_rule(rule: str | None, adapters: Sequence[Adapter]) -> None:
    """Raise LoraInspectError for a rule of DoRA where there is none."""
    if rule and not any(contribution.magnitude for adapter in adapters for contribution in adapter.contributions):
        raise RefusedError(f"--dora-multiplier {rule} has no effect, as no adapter has a DoRA magnitude; leave it out.")
    over_base = next((one for one in adapters if one.dora.norms == dora.OF_BASE), None)
    if rule == dora.INSIDE and over_base:
        raise RefusedError(
            over_base.checkpoint.path,
            "its magnitudes are over the norms of the base, which a multiplier inside the norm does not change",
            "restore the trainer's magnitudes first, with convert --keep-dora --base BASE",
        )
