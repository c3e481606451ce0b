"""The plan of a conversion, made from headers before a tensor is read.

It starts from the requested part of the adapter, and from the base next to it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_inspect import programs
from lora_inspect.converting.options import FULL, SINGLE_EXPERTS, ConvertOptions
from lora_inspect.converting.output.standard_output import StandardOutput
from lora_inspect.converting.standard_fix import output_ending
from lora_inspect.converting.steps.base_change import BaseDependentChange, find_base_changes
from lora_inspect.converting.target.kept_names import NameKeeper
from lora_inspect.converting.target.target_algorithm import check_algorithm, check_biases, needs_base, shapes_in_base
from lora_inspect.converting.target.target_layout import Destination
from lora_inspect.converting.target.target_names import architecture_of, targets, with_scheme
from lora_inspect.converting.target.target_program import check_kinds, for_program, is_remeasured, with_magnitudes
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.files.input_file import Identity
from lora_inspect.matching.match import Matching, match
from lora_inspect.matching.orientation import Orientation, check_answers
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.base.base_codecs import open_weights
from lora_inspect.reading.base.named_model import named_folder
from lora_inspect.reading.file_info import ADAPTER, kind_of
from lora_inspect.reading.identify import adapter_candidates
from lora_inspect.reading.keys.groups import changes_of_kinds
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.pipeline import chosen
from lora_inspect.schemes.gguf import GGUF

if TYPE_CHECKING:
    from lora_inspect.converting.steps.full_delta import WholeChanges


class Input(NamedTuple):
    """The `adapter` with the requested components, and the keys of the others, embeddings included.

    `biased` are its modules that lost their biases.
    """

    adapter: Adapter
    left_out: list[str]
    biased: frozenset[str] = frozenset()


def chosen_input(whole: Adapter, options: ConvertOptions) -> Input:
    """Return the requested part of a `whole` adapter.

    Raises LoraInspectError if its meaning is unknown, or if the factors change a residual that no alpha expresses.
    """
    adapter = whole
    adapter.refuse()
    asked, others = chosen(adapter, options.only)
    present = dict.fromkeys(module.name.component for module in asked)
    if absent := [component for component in options.only if component not in present]:
        raise RefusedError(adapter.checkpoint.path, f"it has no component {absent[0]}", "leave its --only out")
    # Embeddings are of no component.
    embeddings = () if options.only else adapter.embeddings
    left_out = [info.name for module in others for info in module.tensors]
    left_out += [key for one in adapter.embeddings if one not in embeddings for key in one.keys]
    # Modules that all stay keep what is known of them.
    modules = {module.name.key: module for module in asked} if others else adapter.modules
    if options.allow_unclaimed:
        left_out += _unclaimed(adapter)
        adapter = adapter._replace(unclaimed=())
    adapter, biases = adapter._replace(modules=modules, embeddings=embeddings), list[Contribution]()
    if options.drop_biases:
        adapter, biases = adapter.without_biases()
        if not biases:
            raise RefusedError(adapter.checkpoint.path, "it changes no biases", "leave --drop-biases out")
        left_out += [info.name for contribution in biases for info in contribution.factors.values()]
    _refuse_residual(adapter)
    return Input(adapter, left_out, frozenset(contribution.module.key for contribution in biases))


def _unclaimed(adapter: Adapter) -> tuple[str, ...]:
    """Return the keys that no algorithm claims; raise LoraInspectError if there is none."""
    if not adapter.unclaimed:
        raise RefusedError(
            adapter.checkpoint.path, "all its tensors belong to known algorithms", "leave --allow-unclaimed out"
        )
    return adapter.unclaimed


def _refuse_residual(adapter: Adapter) -> None:
    """Raise LoraInspectError if the factors change a residual, which no alpha can express."""
    if one := next((c for c in changes_of_kinds(adapter.modules) if c.residual), None):
        raise RefusedError(
            adapter.checkpoint.path,
            f"{one.module.key} changes the residual that the {one.residual} initialisation left of the base, "
            "which a standard file cannot express",
            "merge it, or convert it to plain LoRA with the program that trained it",
        )


def open_base(adapter: Adapter, options: ConvertOptions) -> Checkpoint | None:
    """Return the base for DoRA's true weight change, or for the layers of single experts.

    Raises LoraInspectError if the options do not settle the magnitude, or if a base has no effect.
    """
    path, is_for_experts = adapter.checkpoint.path, options.layout == SINGLE_EXPERTS
    if adapter.dora.value and not (options.base or options.keep_dora or options.drop_magnitude):
        raise RefusedError(
            path,
            f"it is DoRA ({adapter.dora.modules} magnitudes), which alpha/rank cannot express",
            "choose --keep-dora (exact for readers of its magnitude), --base BASE with --rank N or --max-error X (a "
            "plain LoRA of the true change), or --drop-magnitude (loses the magnitude)",
        )
    if not options.base:
        return None
    if not adapter.dora.value and not is_for_experts and options.algorithm is None:
        raise RefusedError(path, "it has no DoRA magnitude, so --base has nothing to do", "leave it out")
    if adapter.dora.value and is_for_experts:
        raise RefusedError(
            path,
            f"it is DoRA ({adapter.dora.modules} magnitudes), which must be converted before the layout",
            "convert it to plain LoRA without --layout, then change the layout of that output",
        )
    base = open_weights(options.base)
    if kind_of(read_adapter(base))[0] == ADAPTER:
        raise RefusedError(base.path, "it is an adapter itself, not a base", "name the model's own weights")
    return base


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """The plan of a conversion: the requested `adapter`, part of the `whole` file, into `destinations` at `place`.

    `options` are the given ones, completed by the program or the scheme of the output. `left_out` are the keys of
    components that were not requested, `biased` the modules that lost their biases. `notes` are about options without
    an effect.
    """

    adapter: Adapter
    whole: Adapter
    left_out: list[str]
    biased: frozenset[str]
    options: ConvertOptions
    base: Checkpoint | None
    matching: Matching | None
    destinations: tuple[Destination, ...]
    place: StandardOutput
    notes: tuple[str, ...]

    @property
    def inputs(self) -> dict[str, Identity]:
        """Every file that is read, by path, as it was when the plan was made."""
        return self.adapter.checkpoint.inputs | (self.base.inputs if self.base else {})

    @property
    def base_changes(self) -> Mapping[str, BaseDependentChange]:
        """The changes that depend on a base; LoraInspectError where it lacks one's weight."""
        return self._find_base_changes(needs_base)

    @property
    def remeasured(self) -> Mapping[str, BaseDependentChange]:
        """Return the modules with magnitudes that get other norms from a base.

        Raises LoraInspectError if the base lacks the weight of one.
        """
        return self._find_base_changes(is_remeasured)

    @property
    def changes(self) -> "WholeChanges":
        """The changes that become differences of whole parameters; LoraInspectError where the base lacks one."""
        if self.base is None or self.matching is None or self.options.algorithm != FULL:
            return {}
        from lora_inspect.converting.steps.full_delta import find_changes

        return find_changes(self.adapter, self.base, self.matching)

    def _find_base_changes(
        self, wanted: Callable[[Contribution, ConvertOptions], bool]
    ) -> Mapping[str, BaseDependentChange]:
        if self.base is None or self.matching is None:
            return {}
        return find_base_changes(self.adapter, self.base, self.matching, lambda one: wanted(one, self.options))

    @property
    def inner(self) -> dict[str, tuple[int, ...]]:
        """(in, *kernel) of the base's weights, by the module that changes them."""
        return shapes_in_base(self.matching)

    @property
    def orientations(self) -> dict[str, Orientation]:
        """Return how the base stores the weights that were matched."""
        return self.matching.orientations if self.matching else {}


def plan_conversion(path: str, output: str, options: ConvertOptions) -> ConversionPlan:
    """Plan the conversion of `path` to `output`; only the output's name matters here.

    Raises LoraInspectError if the meaning of the file is unknown, if DoRA has no agreed way out, or if the output could
    not have what the options request.
    """
    whole = read_adapter(open_checkpoint(path), options.settings)
    return plan_settled(settle(whole, options), output)


class SettledInput(NamedTuple):
    """The requested `part` of the `whole` file, and the options with all that the file and the program decide.

    Apart from these the output depends only on a base. `notes` are sentences on options without an effect.
    """

    whole: Adapter
    part: Input
    options: ConvertOptions
    notes: tuple[str, ...]


def settle(whole: Adapter, options: ConvertOptions, names: NameKeeper | None = None) -> SettledInput:
    """Settle the options of a conversion.

    The names stay if the program reads the output under them; `names` shares the predictions behind this decision among
    several programs. Raises LoraInspectError if the meaning of the file is unknown, or if the program does not compute
    it.
    """
    part = chosen_input(whole, options)
    adapter = part.adapter
    kept = (names or NameKeeper()).keep(adapter, whole, options)
    options = kept or with_magnitudes(adapter, with_scheme(adapter, for_program(adapter, whole, options)))
    options, told = _with_named_config(adapter, options)
    already = check_algorithm(adapter, options)
    check_kinds(adapter, [family.architecture.name for family in adapter_candidates(whole)], options)
    return SettledInput(whole, part, options, (*already, *told))


def ending_of_output(whole: Adapter, options: ConvertOptions) -> str:
    """Return the ending of the name of a conversion's output, or an empty text if the output is a folder.

    Raises LoraInspectError if the names decide it and the conversion is refused.
    """
    if options.program is None:
        return output_ending(whole, options.scheme)
    own = output_ending(whole, None)
    if all(output_ending(whole, scheme) == own for scheme in programs.by_name(options.program).schemes.values()):
        return own
    return output_ending(whole, settle(whole, options).options.scheme)


def plan_settled(settled: SettledInput, output: str) -> ConversionPlan:
    """Plan the conversion of a settled input to `output`.

    Raises LoraInspectError if the output could not have what the options request.
    """
    whole, (adapter, left_out, biased), options, notes = settled
    base = open_base(adapter, options)
    matching = match(adapter, base, transposed=options.transposed) if base else None
    check_biases(adapter, matching, options)
    destinations = targets(adapter, whole, base, matching, options)
    architecture = architecture_of(adapter, options) if GGUF.name == (options.scheme or adapter.scheme) else None
    inputs = adapter.checkpoint.inputs | (base.inputs if base else {})
    place = StandardOutput(
        adapter, destinations, output, inputs, options.scheme, architecture, bool(biased), options.by_leaf
    )
    if options.keep_dora:
        place.check_magnitudes()
    repeats = check_answers([matching.orientations], options.transposed) if matching else []
    return ConversionPlan(
        adapter=adapter,
        whole=whole,
        left_out=left_out,
        biased=biased,
        options=options,
        base=base,
        matching=matching,
        destinations=destinations,
        place=place,
        notes=(*adapter.notes, *notes, *repeats),
    )


def _with_named_config(adapter: Adapter, options: ConvertOptions) -> tuple[ConvertOptions, list[str]]:
    """Return the options with the config of the model folder that the adapter names, if llama.cpp's names need one.

    The list has the note on it.
    """
    is_needed = options.scheme == GGUF.name != adapter.scheme and options.model_config is None
    folder = named_folder(adapter.checkpoint.config) if is_needed else None
    if folder is None:
        return options, []
    says = f"{adapter.checkpoint.path}: its config names {folder} as its base, so convert reads config.json there."
    return replace(options, model_config=folder), [says]
