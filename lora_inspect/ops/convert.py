"""Conversion of an adapter to the scale alpha/rank, which every loader reads."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lora_inspect import programs
from lora_inspect.converting import result
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.plan import ConversionPlan, plan_conversion
from lora_inspect.converting.result import ProgramCheck, WrittenOutput, right_programs
from lora_inspect.converting.steps.base_change import BaseDependentChange
from lora_inspect.converting.target.target_program import norms_remarks
from lora_inspect.errors import RefusedError
from lora_inspect.files.hashes import sshs_hashes
from lora_inspect.files.safetensors.writer import renamed
from lora_inspect.files.temp_files import remove_leftovers
from lora_inspect.matching.orientation import Orientation, in_record
from lora_inspect.matching.unmatched import other_base_notes
from lora_inspect.maths.dora import OF_BASE
from lora_inspect.maths.torch_threads import load_torch
from lora_inspect.programs.record import Program
from lora_inspect.programs.verdict import SAME, distinct_titles
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.identify import adapter_candidates
from lora_inspect.reading.metadata.output_metadata import HASHES, describe_file, standard_metadata
from lora_inspect.reading.pipeline import EXPERT_KEY, pipeline_expert
from lora_inspect.reading.scale.dora_evidence import NORMS_KEY
from lora_inspect.sentences import Result

if TYPE_CHECKING:
    from lora_inspect.converting.output.output_tensors import SpelledModule
    from lora_inspect.converting.output.proof import Proof

__all__ = ["ConvertOptions", "ConvertResult", "convert_planned", "convert_to_standard", "plan_conversion"]

_LOSSY = 0.05


@dataclass(frozen=True, slots=True)
class Verified:
    """The number of compared modules, and the largest relative error among them."""

    modules: int
    max_relative_error: float


@dataclass(frozen=True, slots=True, repr=False)
class ConvertResult(Result):
    """The account of a conversion.

    `was` and `becomes` are titles of algorithms. `relative_errors` are per module, None for a magnitude that was
    dropped without a base. `orientations` give for each base weight how it is stored, if there was a base. `exact` is
    true if no module lost more than the rounding of a float32. `dropped` are keys that no tensor of the output
    expresses. `remarks` are sentences on differences in the programs that read the output. `biased` counts the modules
    that lost their biases. `no_longer_right` names the programs, as `compat` does, that apply the meaning of the input,
    and of the output do not or are not known to. `verified` is the comparison of the re-read output with the input: the
    number of modules and the largest difference.
    """

    output: str
    source: dict[str, Any]
    target: dict[str, Any]
    was: tuple[str, ...]
    becomes: tuple[str, ...]
    modules: int
    exact: bool
    relative_errors: dict[str, float | None]
    dropped: tuple[str, ...]
    passed_through: tuple[str, ...]
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    orientations: dict[str, Orientation] = field(default_factory=dict)
    verified: Verified | None = None
    biased: int = 0
    no_longer_right: tuple[str, ...] = ()

    @property
    def titles_no_longer_right(self) -> list[str]:
        """The titles of `no_longer_right`, with versions where others of the program are not among them."""
        return distinct_titles([programs.by_name(name) for name in self.no_longer_right], programs.PROGRAMS.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `convert --json` prints."""
        known = [error for error in self.relative_errors.values() if error is not None]
        return {
            "schema": "lora-inspect/convert/1",
            "output": self.output,
            "from": self.source,
            "to": self.target,
            "modules": self.modules,
            "exact": self.exact,
            "relative_error": {
                "max": max(known, default=None),
                "mean": sum(known) / len(known) if known else None,
                "per_module": self.relative_errors,
            },
            "dropped": list(self.dropped),
            "passed_through": list(self.passed_through),
            "no_longer_right": list(self.no_longer_right),
            "remarks": list(self.remarks),
            "verified": self.verified and asdict(self.verified),
            "orientation": in_record(self.orientations),
        }


def convert_to_standard(
    path: str, output: str, options: ConvertOptions, force: bool = False, progress: Progress = silent
) -> ConvertResult:
    """Write `path` to `output` with alpha/rank as the scale of every module and without flags.

    If `output` is a folder, a file goes into it under the name of the input. It calls `progress` for every finished
    module. Raises LoraInspectError, and writes nothing, if the meaning of the file is unknown, if DoRA has no agreed
    way out, or if the loss is above 5%.
    """
    return convert_planned(plan_conversion(path, output, options), force, progress)


def convert_planned(plan: ConversionPlan, force: bool = False, progress: Progress = silent) -> ConvertResult:
    """Write the planned output; `progress` counts destinations."""
    adapter, options, place, inputs = plan.adapter, plan.options, plan.place, plan.inputs
    leftovers = remove_leftovers(place.path)
    place.check([*inputs, *([options.model_config] if options.model_config else [])], force)
    base_changes, remeasured = plan.base_changes, plan.remeasured
    load_torch()
    from lora_inspect.converting.output.output_tensors import shared_contents
    from lora_inspect.converting.output.proof import Proof
    from lora_inspect.converting.steps.conversion import convert_modules

    changes = plan.changes
    modules = convert_modules(
        adapter, plan.destinations, base_changes, remeasured, changes, plan.inner, options, progress
    )
    _refuse_lossy(adapter.checkpoint.path, modules, options)
    passed = [renamed(adapter.checkpoint.tensors[key], key) for key in adapter.other_keys]
    own = [content for module in modules.values() for content in module.contents]
    contents = own + shared_contents(part for module in modules.values() for part in module.parts) + passed
    magnitudes = sum(module.magnitude is not None for module in modules.values())
    source, norms = result.reading(adapter), result.norms(modules.values())
    algorithms = sorted({part.algorithm.name for module in modules.values() for part in module.parts})
    embedded = place.embedded(modules)
    metadata = standard_metadata(
        adapter.checkpoint.metadata,
        _provenance(adapter, options, source, modules),
        ranks={module.rank for module in modules.values() if module.rank is not None},
        alphas={module.alpha for module in modules.values() if module.alpha is not None},
        magnitudes=magnitudes,
        algorithms=algorithms,
        embedded=embedded,
        folded=place.folded(modules),
        norms=_norms(adapter, options, norms, remeasured),
    )
    if expert := _expert(plan.whole, options):
        metadata[EXPERT_KEY] = expert
    if options.hashes or any(key in adapter.checkpoint.metadata for key in HASHES):
        metadata |= sshs_hashes(contents, metadata)
    errors = {key: module.relative_error for key, module in modules.items()}
    # What a bias was worth, beside the weight, nobody can tell.
    errors |= dict.fromkeys(result.without_biases(plan.destinations, modules, plan.biased))
    keeps = not options.drop_magnitude
    proof = None
    if options.verify:
        made = [target for target in plan.destinations if target.module.name.key in modules]
        proof = Proof(adapter, made, base_changes, remeasured, changes, errors, keeps, place.path)
    review = _Review(proof, right_programs(plan.whole), options, place.path)
    written = place.write(contents, metadata, modules, inputs, force, review)
    target = {
        "scheme": place.scheme,
        "layout": options.layout,
        "program": options.program,
        "algorithm": "+".join(algorithms),
        "rslora": False,
        "dora": magnitudes > 0,
        "norms": norms,
        "multiplier": result.rules(module.magnitude for module in modules.values()),
        "ranks": result.counted(module.rank for module in modules.values() if module.rank is not None),
        "bytes": written,
    }
    return ConvertResult(
        output=place.path,
        source=source,
        target=target,
        was=result.titles(contribution.algorithm for contribution in adapter.contributions),
        becomes=result.titles(part.algorithm for module in modules.values() for part in module.parts),
        modules=len(modules),
        exact=result.is_exact(errors),
        relative_errors=errors,
        dropped=(*result.dropped(adapter, modules), *plan.left_out),
        passed_through=adapter.other_keys,
        notes=(
            *plan.notes,
            *result.above_rank(adapter.checkpoint.path, modules, options.rank),
            *(other_base_notes([adapter], plan.base) if plan.base else ()),
            *leftovers,
        ),
        orientations=plan.orientations,
        biased=len(plan.biased),
        no_longer_right=review.no_longer_right,
        verified=Verified(proof.modules, proof.max_relative_error) if proof else None,
        remarks=(
            *result.multiplier_remark(source, target),
            *norms_remarks(adapter, options, norms),
            *result.unchanged(plan.destinations, modules),
            *result.trained_otherwise(adapter),
            *result.configs(adapter, metadata, has_config=place.is_folder),
            *place.orientation(has_config=embedded is not None),
            *review.remarks,
        ),
    )


class _Review:
    """The checks of an output before it appears, called with its path: by the `proof`, and by the rules of programs.

    `right` are the programs that apply the meaning of the input; `no_longer_right` names those that do not apply the
    meaning of the output. `remarks` are those of the program that the output is for.
    """

    def __init__(self, proof: "Proof | None", right: Sequence[Program], options: ConvertOptions, output: str) -> None:
        self._proof, self._right, self._options = proof, right, options
        program = options.program and programs.by_name(options.program)
        self._check = ProgramCheck(program, output, options) if program else None
        self.no_longer_right: tuple[str, ...] = ()

    def __call__(self, path: str) -> None:
        """Raise LoraInspectError if a change differs, or if the requested program would apply another one."""
        if self._proof:
            self._proof(path)
        if not (self._check or self._right):
            return
        written = WrittenOutput.of(path, self._options.settings, self._proof.written if self._proof else None)
        if self._check:
            self._check.check(written)
        self.no_longer_right = tuple(one.name for one in self._right if written.judge(one).verdict != SAME)

    @property
    def remarks(self) -> Sequence[str]:
        """Return the remarks of the requested program on the output."""
        return self._check.remarks if self._check else ()


def _refuse_lossy(path: str, modules: "Mapping[str, SpelledModule]", options: ConvertOptions) -> None:
    errors = {key: module.relative_error for key, module in modules.items() if module.relative_error is not None}
    lossy = [key for key, error in errors.items() if error > _LOSSY]
    if lossy and not options.allow_loss:
        worst = max(lossy, key=lambda key: errors[key])
        is_limited = options.rank is not None or options.max_error is not None
        way = "raise --rank, lower --max-error, or accept the loss" if is_limited else "accept the loss"
        raise RefusedError(
            path,
            f"{len(lossy)} of {len(modules)} modules would lose over {_LOSSY:.0%} of their change (worst: "
            f"{worst}, {errors[worst]:.1%})",
            f"{way} with --allow-loss",
        )


def _norms(
    adapter: Adapter, options: ConvertOptions, norms: str | None, remeasured: Mapping[str, BaseDependentChange]
) -> str | None:
    """Return the record of the base whose norms the output's magnitudes use, or None if they use no base's."""
    if norms != OF_BASE:
        return None
    if not (remeasured and options.base):
        return adapter.checkpoint.metadata.get(NORMS_KEY)
    from lora_inspect.converting.steps.renormalise import norms_record_of

    return norms_record_of(remeasured, options.base).text()


def _expert(whole: Adapter, options: ConvertOptions) -> str | None:
    """Return the pipeline's expert that the output is of, as far as prefixes, names or metadata show it."""
    components = {module.name.component for module in whole.modules.values()}
    expert = pipeline_expert(whole.checkpoint, components, adapter_candidates(whole), options.only)
    return expert.name if expert else None


def _provenance(
    adapter: Adapter, options: ConvertOptions, source: Mapping[str, Any], modules: "Mapping[str, SpelledModule]"
) -> dict[str, Any]:
    said = {key: source[key] for key in ("scheme", "algorithm", "rslora", "dora")}
    said = {"file": describe_file(adapter.checkpoint.path), **said}
    if options.layout:
        said["layout"] = options.layout
    if options.base:
        errors = [module.relative_error or 0.0 for module in modules.values()]
        said |= {"base": describe_file(options.base), "max_relative_error": max(errors)}
    if adapter.dora.value and (options.keep_dora or options.drop_magnitude):
        said["magnitude"] = "kept" if options.keep_dora else "dropped"
    return said
