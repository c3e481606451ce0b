"""The adapters of a command as they are read: the multiplier of each module, the excluded ones, and the base.

Options without a path, `--include`, `--exclude` and `--weights` act as in a merge. No base is needed to read.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_inspect.algebra.alignment import MultipliedAdapter, OutputModule, Term
from lora_inspect.algebra.changes import has_open_kernel, needs_base
from lora_inspect.algebra.options import ChoiceRequest
from lora_inspect.errors import RefusedError
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.files.input_file import Identity
from lora_inspect.merging.fold_checks import check_multiplier
from lora_inspect.merging.plan import parts_of
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.ambiguous_options import ModuleFilter, read_settled
from lora_inspect.reading.base.base_codecs import open_weights
from lora_inspect.reading.file_info import ADAPTER, kind_of
from lora_inspect.reading.identify import adapter_candidates
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.model.settings import Settings, requested_settings
from lora_inspect.reading.pipeline import pipeline_expert
from lora_inspect.reading.weights_toml import WeightsFile, read_weights

if TYPE_CHECKING:
    from lora_inspect.algebra.changes import WeightChanges


@dataclass(frozen=True, slots=True)
class Inputs:
    """The adapters in the order in which they were named, each with the multipliers of the modules that count.

    `excluded` are the keys that --include and --exclude leave out, by the place of the adapter.
    """

    adapters: tuple[MultipliedAdapter, ...]
    excluded: tuple[tuple[str, ...], ...]
    base: Checkpoint | None
    weights: WeightsFile | None

    @property
    def first(self) -> Adapter:
        """The adapter that was named first."""
        return self.adapters[0].adapter

    @property
    def files(self) -> dict[str, Identity]:
        """Every input file by path, with its identity when it was opened."""
        found: dict[str, Identity] = {}
        for one in self.adapters:
            found |= one.adapter.checkpoint.inputs
        if self.weights:
            found[self.weights.path] = self.weights.identity
        return found | (self.base.inputs if self.base else {})

    def each(self) -> "list[Inputs]":
        """Return each adapter by itself, with the same base."""
        pairs = zip(self.adapters, self.excluded, strict=True)
        return [replace(self, adapters=(one,), excluded=(excluded,)) for one, excluded in pairs]

    @property
    def bytes(self) -> int:
        """The bytes of the tensors of all adapters, each file once."""
        return sum({one.adapter.checkpoint.path: one.adapter.checkpoint.bytes for one in self.adapters}.values())

    @property
    def notes(self) -> list[str]:
        """Sentences on settings that were not needed, on files that were named twice, and on damaged evidence."""
        places: dict[str, list[MultipliedAdapter]] = defaultdict(list)
        for one in self.adapters:
            places[os.path.realpath(one.adapter.checkpoint.path)].append(one)
        found = [note for one in places.values() for note in one[0].adapter.notes]
        return found + [
            f"{own[0].adapter.checkpoint.path}: it is named {len(own)} times, and each of them counts."
            for own in places.values()
            if len(own) > 1
        ]


def read_inputs(
    named: Sequence[tuple[str, Settings]],
    request: ChoiceRequest,
    has_steps: bool = False,
    no_adapter: str = "name an adapter",
) -> Inputs:
    """Read the headers of the adapters and of the base.

    A path may have a step where the verb `has_steps`. `no_adapter` is the way out of a file that is none. Raises
    LoraInspectError for such a file, for one that has no settled meaning, for a setting or a pattern that fits nothing,
    and for a multiplier that an algorithm does not have.
    """
    weights = None if request.weights is None else read_weights(request.weights)
    opened = [(open_checkpoint(path), own) for path, own in (weights.joined(named) if weights else named)]
    read = [_adapter(one, no_adapter) for one in read_settled(opened, requested_settings(request), has_steps)]
    base = None if request.base is None else open_base(request.base)
    parts = parts_of(read, base, ModuleFilter(request.include, request.exclude))
    multiplied = []
    for adapter, part in zip(read, parts, strict=True):
        multipliers = {key: part.multipliers.of(key) for key in adapter.modules if key not in part.excluded}
        _check(adapter, multipliers)
        multiplied.append(MultipliedAdapter(adapter, multipliers))
    return Inputs(tuple(multiplied), tuple(part.excluded for part in parts), base, weights)


def _adapter(read: Adapter, way_out: str) -> Adapter:
    """Return the adapter; LoraInspectError if it is none, and if its meaning is unknown."""
    kind, adapter = kind_of(read)
    path = adapter.checkpoint.path
    if kind != ADAPTER:
        raise RefusedError(path, "it is no adapter", way_out)
    adapter.refuse()
    if one := next((c for c in adapter.contributions if c.residual), None):
        raise RefusedError(
            path,
            f"{one.module.key} changes the residual that the {one.residual} initialisation left of the base, so its "
            "factors are not its change",
            "merge it, or convert it to plain LoRA with the program that trained it",
        )
    return adapter


def open_base(path: str) -> Checkpoint:
    """Return the headers of a base; raises LoraInspectError for an adapter."""
    base = open_weights(path)
    if kind_of(read_adapter(base))[0] == ADAPTER:
        raise RefusedError(base.path, "it is an adapter itself, not a base", "name the model's own weights")
    return base


def _check(adapter: Adapter, multipliers: Mapping[str, float]) -> None:
    for contribution in adapter.contributions:
        if (key := contribution.module.key) in multipliers:
            check_multiplier(adapter.checkpoint.path, contribution, multipliers[key])


def without_biases(inputs: Inputs) -> tuple[Inputs, dict[str, str]]:
    """Return the inputs without changes of biases, and the keys of these changes with the reason.

    Raises LoraInspectError if no input changes a bias, and for one that changes nothing else.
    """
    adapters: list[MultipliedAdapter] = []
    left_out: dict[str, str] = {}
    for one in inputs.adapters:
        adapter, biases = one.adapter.without_biases()
        multipliers = {key: multiplier for key, multiplier in one.multipliers.items() if key in adapter.modules}
        adapters.append(MultipliedAdapter(adapter, multipliers))
        for change in biases:
            left_out |= {info.name: "left out by --drop-biases" for info in change.factors.values()}
    if not left_out:
        raise RefusedError(inputs.first.checkpoint.path, "no adapter changes a bias", "leave --drop-biases out")
    return replace(inputs, adapters=tuple(adapters)), left_out


def check_experts(adapters: Sequence[Adapter]) -> None:
    """Raise LoraInspectError if the names of two adapters say different experts of a pipeline."""
    found: list[tuple[str, str, str]] = []
    for adapter in adapters:
        components = {module.name.component for module in adapter.modules.values()}
        expert = pipeline_expert(adapter.checkpoint, components, adapter_candidates(adapter))
        if expert and expert.name:
            found.append((expert.name, adapter.checkpoint.path, expert.where))
    other = next((one for one in found if one[0] != found[0][0]), None)
    if other:
        (name, path, where), (other_name, other_path, other_where) = found[0], other
        raise RefusedError(
            other_path,
            f"it is named as an adapter of the {other_name} expert ({other_where}), but {path} as one of the {name} "
            f"expert ({where})",
            "combine those of one expert, or give --allow-mixed",
        )


def base_changes(
    inputs: Inputs,
    modules: Sequence[OutputModule],
    request: ChoiceRequest,
    weights: Sequence[float] | None = None,
    for_output: bool = True,
) -> "WeightChanges | None":
    """Return the changes that depend on a base: of all adapters in order or, with `weights`, of each separately.

    An output also needs the kernels that factors leave open. Raises LoraInspectError if a base is missing or unused.
    """
    at_work = (term for module in modules for term in module.terms if term.multiplier)
    dependent = next((term for term in at_work if needs_base(term.contribution)), None)
    with_any = inputs.base is not None
    opened = next((module for module in modules if for_output and has_open_kernel(module.terms, with_any)), None)
    if dependent is None and opened is None:
        if inputs.base is not None:
            raise RefusedError(
                inputs.base.path, "no change of the adapters depends on a base, so --base has nothing to do",
                "leave it out",
            )  # fmt: skip
        return None
    if inputs.base is None and dependent is None and opened is not None:
        first = opened.terms[0]
        raise RefusedError(
            first.adapter.checkpoint.path,
            f"the factors of {first.contribution.module.key} ({first.contribution.algorithm.title}) do not show "
            "whether its layer is a Linear or a convolution",
            _way_out(first),
        )
    if inputs.base is None and dependent is not None:
        raise RefusedError(dependent.adapter.checkpoint.path, _depends(dependent.contribution), _way_out(dependent))
    from lora_inspect.maths.torch_threads import load_torch

    load_torch()
    from lora_inspect.algebra.full_changes import BaseChanges, SeparateChanges

    assert inputs.base is not None
    how = modules, inputs.base, request.dora_multiplier, request.transposed
    if weights is None:
        return BaseChanges(inputs.adapters, *how)
    return SeparateChanges([(w, BaseChanges([one], *how)) for w, one in zip(weights, inputs.adapters, strict=True)])


def _depends(contribution: Contribution) -> str:
    if contribution.algorithm.replaces:
        return f"{contribution.module.key} is saved whole, and other inputs lack it or have another one"
    title = "DoRA" if contribution.magnitude else contribution.algorithm.title
    return f"{contribution.module.key} is {title}, whose change depends on the weight of the base"


def _way_out(term: Term) -> str:
    return f"give --base BASE, or leave the module out with --exclude {term.contribution.module.body}"
