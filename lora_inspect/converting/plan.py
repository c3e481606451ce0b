"""What a conversion will write, planned from headers before a tensor is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_inspect.converting.choices import FULL
from lora_inspect.converting.inputs import chosen_input, open_base
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.output.standard_output import StandardOutput
from lora_inspect.converting.steps.base_change import Landed, find_landed
from lora_inspect.converting.target.asked_consumer import for_consumer
from lora_inspect.converting.target.asked_kinds import check_kinds
from lora_inspect.converting.target.asked_magnitudes import is_remeasured, with_magnitudes
from lora_inspect.converting.target.gguf_layouts import architecture_of
from lora_inspect.converting.target.target_algorithm import check_algorithm, check_biases, needs_base, shapes_in_base
from lora_inspect.converting.target.target_layout import Destination
from lora_inspect.converting.target.target_names import targets, with_scheme
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.files.input_file import Identity
from lora_inspect.matching.match import Matching, match
from lora_inspect.matching.orientation import Orientation, check_answers
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.identify import adapter_candidates
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.schemes.gguf import GGUF

if TYPE_CHECKING:
    from lora_inspect.converting.steps.found_changes import WholeChanges


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """What goes where: the `adapter` as far as it was asked for, of the `whole` file, into `destinations` at `place`.

    `options` are those that were given with what the program or the scheme of the output settles. `left_out` are the
    keys of components that were not asked for, `biased` the modules whose biases are left out. `notes` are
    on what was asked without need.
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
    def landed(self) -> Mapping[str, Landed]:
        """The changes that a base tells; LoraInspectError where it lacks one's weight."""
        return self._landed(needs_base)

    @property
    def remeasured(self) -> Mapping[str, Landed]:
        """The modules whose magnitudes a base puts over other norms; LoraInspectError where it lacks one's weight."""
        return self._landed(is_remeasured)

    @property
    def changes(self) -> "WholeChanges":
        """The changes that become differences of whole parameters; LoraInspectError where the base lacks one."""
        if self.base is None or self.matching is None or self.options.algorithm != FULL:
            return {}
        from lora_inspect.converting.steps.found_changes import find_changes

        return find_changes(self.adapter, self.base, self.matching)

    def _landed(self, wanted: Callable[[Contribution, ConvertOptions], bool]) -> Mapping[str, Landed]:
        if self.base is None or self.matching is None:
            return {}
        return find_landed(self.adapter, self.base, self.matching, lambda one: wanted(one, self.options))

    @property
    def inner(self) -> dict[str, tuple[int, ...]]:
        """(in, *kernel) of the base's weights, by the module that changes them."""
        return shapes_in_base(self.matching)

    @property
    def orientations(self) -> dict[str, Orientation]:
        """How the base stores the weights that were looked at."""
        return self.matching.orientations if self.matching else {}


def plan_conversion(path: str, output: str, options: ConvertOptions) -> ConversionPlan:
    """Plans what becomes of `path` at `output`, of which it looks at nothing but the name.

    Raises LoraInspectError where the meaning of the file is unknown, where DoRA has no agreed way out, and where the
    output could not have what is asked for.
    """
    return plan_for(read_adapter(open_checkpoint(path), options.settings), output, options)


def plan_for(whole: Adapter, output: str, options: ConvertOptions) -> ConversionPlan:
    """Plans, as `plan_conversion` does, what becomes of an adapter that was read."""
    adapter, left_out, biased = chosen_input(whole, options)
    options = with_magnitudes(adapter, with_scheme(adapter, for_consumer(adapter, whole, options)))
    already = check_algorithm(adapter, options)
    check_kinds(adapter, [family.architecture.name for family in adapter_candidates(whole)], options)
    base = open_base(adapter, options)
    matching = match(adapter, base, transposed=options.transposed) if base else None
    check_biases(adapter, matching, options)
    destinations = targets(adapter, whole, base, matching, options)
    architecture = architecture_of(adapter, options) if GGUF.name == (options.scheme or adapter.scheme) else None
    inputs = adapter.checkpoint.inputs | (base.inputs if base else {})
    place = StandardOutput(adapter, destinations, output, inputs, options.scheme, architecture, bool(biased))
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
        notes=(*adapter.notes, *already, *repeats),
    )
