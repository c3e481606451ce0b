"""The programs of an output: the names that `--to` chooses, and whether they compute the adapter.

A magnitude stays if the programs that load the output apply it, or is written over other norms. The rules of a
requested program show which parts of a file it ignores or fails on.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora_inspect import programs, schemes
from lora_inspect.algorithms import mlx
from lora_inspect.algorithms.lora_embedding import spelled_in
from lora_inspect.algorithms.record import BIAS, WEIGHT, Algorithm, Role
from lora_inspect.architectures.detection import Detection
from lora_inspect.converting.options import FULL, SINGLE_EXPERTS, ConvertOptions
from lora_inspect.converting.steps.base_change import lora_of
from lora_inspect.converting.target.target_algorithm import (
    DIFFERENCES,
    becomes_full,
    becomes_lora,
    is_made_lora,
    is_saved_weight,
)
from lora_inspect.converting.target.target_layout import is_own_parameter
from lora_inspect.errors import AmbiguousError, RefusedError
from lora_inspect.maths.dora import INPUT, OF_BASE, OF_SUM, OUTPUT
from lora_inspect.programs.adapter_view import FramedKeys, loader_for
from lora_inspect.programs.record import (
    BASE_NORM,
    COMPUTES,
    FAILS,
    LEAVES,
    OTHER_AXIS,
    SUM_NORM,
    UNTRAINED,
    Loader,
    Program,
    Rule,
    treatment,
)
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.embeddings import in_words
from lora_inspect.reading.identify import adapter_candidates, described
from lora_inspect.reading.keys.groups import group_equal
from lora_inspect.reading.model.contribution import Contribution, Magnitude, Module
from lora_inspect.reading.peft.fused_experts import has_fused_layers
from lora_inspect.schemes.peft import PEFT
from lora_inspect.schemes.record import EXACT, LOST, Scheme, Writing
from lora_inspect.sentences import listed, some

WAY_OUT = "choose another scheme, or leave --to out"
# The fix for a change of a bias that the programs of an output do not take.
WITHOUT_BIASES = "leave the biases out with --drop-biases of convert or combine (loses them)"
# What a factor is, of which programs make something else.
_FACTORS = {"alpha": "a limit", "rescale": "gains of its rows"}


def writing_of(scheme: Scheme) -> Writing:
    """Return the writing rules of the scheme; raise ValueError if lora-inspect only reads it."""
    if scheme.writing is None:
        raise ValueError(f"lora-inspect reads the scheme {scheme.name}, but does not write it")
    return scheme.writing


def check_loadable(adapter: Adapter, scheme: Scheme, options: ConvertOptions) -> None:
    """Raise LoraInspectError if the programs of the scheme cannot compute a change of the adapter."""
    writing, path = writing_of(scheme), adapter.checkpoint.path

    def is_refused(module: Module, contribution: Contribution) -> bool:
        algorithm = written_algorithm(contribution, writing, options)
        # Who computes whatever its names can spell has it from there.
        is_own = contribution.module.scheme == scheme.name and writing.algorithms is None
        is_named = writing.parameters and is_own_parameter(module)
        is_loaded = is_named or _is_loaded(algorithm, writing)
        return not is_own and (_has_core(contribution, algorithm, writing, options) or not is_loaded)

    for module, contribution in _changes(adapter):
        algorithm = written_algorithm(contribution, writing, options)
        if is_refused(module, contribution):
            has_core = _has_core(contribution, algorithm, writing, options)
            title = f"{algorithm.title} with a Tucker core" if has_core else algorithm.title
            can_be_lora = becomes_lora(contribution.algorithm, contribution.shapes) and not algorithm.transposed
            instead = "convert it to plain LoRA with --algorithm lora, " if can_be_lora else ""
            if is_saved_weight(algorithm, contribution.shapes):
                instead = "convert it to plain LoRA with --algorithm lora --base BASE, "
            if algorithm.parameter == BIAS:
                instead = f"{WITHOUT_BIASES}, "
            raise RefusedError(
                path,
                f"{contribution.module.key} is {title}, which {writing.title} cannot load under {scheme.name} names",
                f"{_without_components(adapter, is_refused)}{instead}{WAY_OUT}",
            )
        _check_read_alike(path, contribution, algorithm, writing)
    for module in group_equal(adapter.modules).firsts:
        of_weight = [one for one in module.contributions if one.algorithm.parameter == WEIGHT]
        titles = list(dict.fromkeys(written_algorithm(one, writing, options).title for one in of_weight))
        if len(titles) > 1:
            raise RefusedError(
                path,
                f"{module.name.key} has {listed(titles)} for one weight, but {writing.title} would apply only "
                "one of them",
                "merge it into the base, or leave --to out",
            )
    if adapter.unclaimed and not writing.extras:
        raise RefusedError(
            path,
            f"{some(adapter.unclaimed, 3)} belong to no known algorithm, and {writing.title} may refuse a file "
            "with them",
            f"leave them out with --allow-unclaimed, or {WAY_OUT}",
        )
    if adapter.embeddings and not (writing.embeddings or writing.extras):
        raise RefusedError(
            path,
            f"it holds {in_words(adapter.embeddings)} next to the adapter, and {writing.title} may refuse a "
            "file with them",
            f"leave them out with --only model, or {WAY_OUT}",
        )


def _has_core(contribution: Contribution, algorithm: Algorithm, writing: Writing, options: ConvertOptions) -> bool:
    """Return True if the change keeps a Tucker core for which the programs have no name."""
    return "mid" in contribution.shapes and not options.algorithm and not _spells(algorithm, "mid", writing)


def _without_components(adapter: Adapter, is_refused: Callable[[Module, Contribution], bool]) -> str:
    """Return the fix that leaves out the components with refused changes, or an empty text if all have some."""
    refused: dict[str, bool] = {}
    for module in adapter.modules.values():
        component = module.name.component
        has_refused = any(is_refused(module, one) for one in module.contributions)
        refused[component] = refused.get(component, False) or has_refused
    kept = [f"--only {component}" for component, has_refused in sorted(refused.items()) if not has_refused]
    left_out = [component for component, has_refused in sorted(refused.items()) if has_refused]
    return f"leave {listed(left_out, 'and')} out with {' '.join(kept)}, " if kept else ""


def _changes(adapter: Adapter) -> Iterator[tuple[Module, Contribution]]:
    """Yield the changes of the first module of each kind, each with the module."""
    for module in group_equal(adapter.modules).firsts:
        for contribution in module.contributions:
            yield module, contribution


def written_algorithm(contribution: Contribution, writing: Writing | None, options: ConvertOptions) -> Algorithm:
    """Return the algorithm in the output, under the names of the `writing` or of the input."""
    algorithm = contribution.algorithm
    if writing is not None:
        algorithm = spelled_in(mlx.in_lora(algorithm), writing.dialects)
    if options.algorithm == FULL:
        return DIFFERENCES.get(algorithm.parameter, algorithm) if becomes_full(algorithm) else algorithm
    if is_made_lora(contribution, options):
        made = lora_of(contribution)
        return made if writing is None else spelled_in(made, writing.dialects)
    return algorithm


def _check_read_alike(path: str, contribution: Contribution, algorithm: Algorithm, writing: Writing) -> None:
    for role in sorted(writing.misread.get(algorithm.name, ())):
        if role in contribution.factors or (role == "alpha" and contribution.alpha):
            raise RefusedError(
                path,
                f"{contribution.module.key} is {algorithm.title} with {_FACTORS[role]}, from which "
                f"{writing.title} computes another change",
                f"merge it into the base, or {WAY_OUT}",
            )


def _is_loaded(algorithm: Algorithm, writing: Writing) -> bool:
    """Return True if the programs compute the algorithm, as it is or as another one."""
    if algorithm.name in writing.instead:
        return True
    is_read = algorithm.name in writing.alike or any(name in algorithm.dialects for name in writing.dialects)
    return is_read and (writing.algorithms is None or algorithm.name in writing.algorithms)


def _spells(algorithm: Algorithm, role: Role, writing: Writing) -> bool:
    """Return True if the programs read a factor with the role."""
    return any(role in algorithm.dialects.get(name, {}) for name in writing.dialects)


PLAIN = "--base BASE with --rank N or --max-error X (a plain LoRA of the true change)"
DROPPED = "--drop-magnitude (loses the magnitude)"


def due_norms(options: ConvertOptions) -> str | None:
    """Return the norms that a base will give to magnitudes of outputs, or None if they keep their own."""
    return (options.norms or OF_SUM) if options.base and options.keep_dora else None


def is_remeasured(contribution: Contribution, options: ConvertOptions) -> bool:
    """Return True if its magnitude gets other norms than it has."""
    due, magnitude = due_norms(options), contribution.magnitude
    return due is not None and magnitude is not None and magnitude.axis == OUTPUT and magnitude.spelling.norms != due


def with_magnitudes(adapter: Adapter, options: ConvertOptions) -> ConvertOptions:
    """Return the options with magnitudes kept if all programs of the output apply them as trained.

    `norms` then gives the norms that these programs divide by, if all agree. Raises LoraInspectError if the programs do
    not apply such magnitudes and no option decides about them.
    """
    if not adapter.dora.value or options.algorithm == FULL:
        return options
    path, is_limited = adapter.checkpoint.path, options.rank is not None or options.max_error is not None
    magnitudes = [c.magnitude for c in adapter.contributions if c.magnitude]
    if options.scheme is not None:
        writing = writing_of(schemes.by_name(options.scheme))
        if options.program is None:
            over = {True: OF_BASE, False: OF_SUM, None: None}
            options = replace(options, norms=over[writing.over_base])
        if writing.magnitudes == LOST and not (options.drop_magnitude or (options.base and is_limited)):
            raise RefusedError(
                path,
                f"it is DoRA ({adapter.dora.modules} magnitudes), but {writing.title} applies none",
                f"choose {PLAIN}, or {DROPPED}",
            )
        inputs = [magnitude for magnitude in magnitudes if magnitude.axis == INPUT]
        if inputs and options.keep_dora and not writing.input_magnitudes:
            raise RefusedError(
                path,
                f"{inputs[0].info.name} is a magnitude of inputs, but {writing.title} reads it as one of "
                "outputs, which fails",
                "choose --base BASE with --rank N or --max-error X, or --drop-magnitude",
            )
        is_open = not (options.keep_dora or options.drop_magnitude or is_limited)
        if is_open and _is_applied(magnitudes, writing.magnitudes, options):
            options = replace(options, keep_dora=True)
    _check_norms(adapter, options)
    return options


def _is_applied(magnitudes: Sequence[Magnitude], said: str, options: ConvertOptions) -> bool:
    """Return True if the programs of the names apply such magnitudes as trained, if need be with a base."""
    if options.base or said == EXACT:
        return said == EXACT or options.norms == OF_BASE
    outputs = {magnitude.spelling.norms for magnitude in magnitudes if magnitude.axis == OUTPUT}
    return options.norms == OF_BASE and outputs <= {OF_BASE}


def _check_norms(adapter: Adapter, options: ConvertOptions) -> None:
    """Raise LoraInspectError if norms need a base, if the base has no effect, or if its purpose is not given."""
    path = adapter.checkpoint.path
    if not options.keep_dora:
        is_limited = options.rank is not None or options.max_error is not None
        is_of_experts = options.layout == SINGLE_EXPERTS
        if options.base and not (is_limited or options.drop_magnitude or is_of_experts):
            raise RefusedError(
                path,
                f"it is DoRA ({adapter.dora.modules} magnitudes), which --base approximates by plain LoRA",
                "set the accuracy of the approximation with --rank N or --max-error X",
            )
    elif options.base is None:
        if adapter.dora.norms == OF_BASE and options.norms == OF_SUM and options.scheme:
            program = options.program and programs.by_name(options.program).title
            title = program or writing_of(schemes.by_name(options.scheme)).title
            raise RefusedError(
                path,
                f"its magnitudes are over the norms of the base, but {title} divides them by those of the "
                "changed weight",
                f"choose --keep-dora with --base BASE (exact), {PLAIN}, or {DROPPED}",
            )
    elif not any(is_remeasured(contribution, options) for contribution in adapter.contributions):
        raise RefusedError(
            path, "its magnitudes stay as they are in the output, so --base has nothing to do", "leave it out"
        )


def norms_remarks(adapter: Adapter, options: ConvertOptions, norms: str | None) -> tuple[str, ...]:
    """Return the notes on the `norms` of the output's magnitudes of outputs."""
    was = adapter.dora.norms
    if norms == OF_BASE:
        return (
            "magnitudes of outputs are over the row norms of the base: only ComfyUI and Forge apply the "
            "trained change, only on this base, and m times that change at a multiplier m",
        )
    # What a program that is asked for makes of it, its own rules say.
    if norms == OF_SUM and options.norms == OF_BASE and not options.program:
        return (
            "ComfyUI divides magnitudes of outputs by the row norms of the base, not of the changed weight, "
            "so its change is not the trained one; give --base BASE to correct them for that",
        )
    return ("magnitudes of outputs are over the norms of the changed weight again",) if was == OF_BASE and norms else ()


# What says how the true change of the base is written, by what a program does with the magnitudes of its names: by
# corrected magnitudes, as differences, or else as a plain LoRA that comes so near.
_NEAR = 0.01
_WAYS: Mapping[str, Mapping[str, Any]] = {
    BASE_NORM: {},
    SUM_NORM: {"keep_dora": True},
    OTHER_AXIS: {"algorithm": "full"},
}
# What is offered for DoRA, by what a program does with the magnitudes of its names.
_OFFERS = {
    BASE_NORM: (
        "divides magnitudes by the norms of the base's weights, so the result would differ",
        f"--base BASE (magnitudes corrected for that, right only in programs that do so), {PLAIN}, or {DROPPED}",
    ),
    OTHER_AXIS: (
        "divides magnitudes by norms along the other axis, so the result would differ",
        f"--base BASE with --algorithm full (the exact difference of every weight), {PLAIN}, or {DROPPED}",
    ),
    SUM_NORM: (
        "divides magnitudes by the norms of the changed weights, but these are over the norms of the base, so the "
        "result would differ",
        f"--keep-dora with --base BASE (the trainer's magnitudes again), {PLAIN}, or {DROPPED}",
    ),
    UNTRAINED: (
        "puts the norms of the base in the place of the magnitudes, so the result would differ",
        f"{PLAIN}, or {DROPPED}",
    ),
}
_OVER = {BASE_NORM: OF_BASE, COMPUTES: OF_SUM}
_LOST = ("applies none, so the result would differ", f"{PLAIN}, or {DROPPED}")
_FAILS = ("stops with an error at them", _LOST[1])


def for_loader(options: ConvertOptions, program: Program, families: Sequence[Detection]) -> ConvertOptions:
    """Return the options with the form that the program's loader for the families needs of an output."""
    options = replace(options, uniform=program.uniform)
    loaders = [_loader(program, family.architecture.name) for family in families] or [_loader(program, "")]
    loader = next(filter(None, loaders), None)
    if loader is None:
        return options
    return replace(options, ranks=loader.ranks, by_leaf=loader.by_leaf, unit_scale=loader.unit_scale)


def for_program(adapter: Adapter, whole: Adapter, options: ConvertOptions) -> ConvertOptions:
    """Return the options with the best scheme for the program, and magnitudes kept if it applies them right.

    Raises LoraInspectError if no names are known that it loads for the family of the `whole` file, and for DoRA that it
    does not apply as it was trained if no other option settles it.
    """
    if options.program is None:
        return options
    program, families = programs.by_name(options.program), adapter_candidates(whole)
    scheme = _scheme(adapter, program, families)
    norms = norms_in(program, families, schemes.by_name(scheme))
    options = for_loader(replace(options, scheme=scheme, norms=norms), program, families)
    if scheme == PEFT.name and has_fused_layers(module.name.body for module in adapter.modules.values()):
        options = replace(options, uniform=True)
    is_settled = options.keep_dora or options.drop_magnitude or options.base is not None
    if not adapter.dora.value or is_settled:
        return options
    does = _treatments(adapter, program, families, schemes.by_name(scheme))
    if does == {COMPUTES}:
        return replace(options, keep_dora=True)
    if "" in does:
        # What nobody knows of the program, its names decide.
        return options
    what, offers = next((_OFFERS[one] for one in _OFFERS if one in does), _FAILS if FAILS in does else _LOST)
    raise RefusedError(
        adapter.checkpoint.path,
        f"it is DoRA ({adapter.dora.modules} magnitudes), and {program.title} {what}",
        f"choose {offers}",
    )


def with_base(adapter: Adapter, base: str, options: ConvertOptions) -> ConvertOptions:
    """Return the options for DoRA with the true change from `base`, as the program can apply it."""
    program, families = programs.by_name(options.program or ""), adapter_candidates(adapter)
    scheme = schemes.by_name(_scheme(adapter, program, families))
    does = _treatments(adapter, program, families, scheme)
    return replace(options, base=base, **next((way for one, way in _WAYS.items() if one in does), {"max_error": _NEAR}))


def scheme_for(adapter: Adapter, options: ConvertOptions) -> str | None:
    """Return the scheme of the output, or None for the adapter's own."""
    if options.program is None:
        return options.scheme
    return _scheme(adapter, programs.by_name(options.program), adapter_candidates(adapter))


def _scheme(adapter: Adapter, program: Program, families: Sequence[Detection]) -> str:
    names = [family.architecture.name for family in families] or [""]
    found = {program.schemes.get(name, program.schemes.get("", "")) for name in names}
    if len(found) > 1:
        raise AmbiguousError(
            adapter.checkpoint.path,
            f"it is of {described(families)}, and each has its own names in {program.title}",
            f"choose one with --architecture {names[0]}",
        )
    if scheme := found.pop():
        return scheme
    raise RefusedError(
        adapter.checkpoint.path,
        f"it is of {described(families) or 'a model of no known family'}, and lora-inspect knows no names "
        f"under which {program.title} loads such adapters",
        "choose a naming scheme for --to",
    )


def _treatments(adapter: Adapter, program: Program, families: Sequence[Detection], scheme: Scheme) -> set[str]:
    """Return the program's treatments of magnitudes in the scheme, for every axis that the file has."""
    own = {(c.magnitude.axis, c.magnitude.spelling.norms) for c in adapter.contributions if c.magnitude}
    suffix = scheme.suffixes.get("magnitude", "")
    rules = _rules(program, families, scheme)
    return {treatment(rule, f"{suffix} {axis}", norms) if rule else "" for rule in rules for axis, norms in own}


def norms_in(program: Program, families: Sequence[Detection], scheme: Scheme) -> str | None:
    """Return the norms that the program divides magnitudes of outputs by, or None if it does not, or if unknown."""
    spelled = f"{scheme.suffixes.get('magnitude', '')} {OUTPUT}"
    does = {treatment(rule, spelled, OF_SUM) if rule else "" for rule in _rules(program, families, scheme)}
    return _OVER.get(does.pop()) if len(does) == 1 else None


def _rules(program: Program, families: Sequence[Detection], scheme: Scheme) -> list[Rule | None]:
    """Return, by family, the rule for magnitudes in the scheme, or None without one."""
    found: list[Rule | None] = []
    for family in (one.architecture for one in families):
        prefix = scheme.writing.prefix.format(pipeline=family.pipeline_name) if scheme.writing else ""
        found.append(_of_magnitudes(program, family.name, prefix, scheme))
    return found or [_of_magnitudes(program, "", "", scheme)]


def _of_magnitudes(program: Program, family: str, prefix: str, scheme: Scheme) -> Rule | None:
    """Return the loader's rule for files with keys that begin so."""
    loader = loader_for(program, family, FramedKeys([prefix]))
    rules = loader.rules_for(family) if loader else []
    return next((one for one in rules if one.magnitudes and _is_of(scheme, one)), None)


def _is_of(scheme: Scheme, rule: Rule) -> bool:
    """Return True if a rule covers the names and the dialect of a scheme."""
    is_named = not rule.prefixes or any(prefix in rule.prefixes for prefix in scheme.prefixes)
    return is_named and (not rule.dialects or scheme.dialect in rule.dialects)


_DOES = {LEAVES: "skips", FAILS: "refuses"}


def check_kinds(adapter: Adapter, families: Iterable[str], options: ConvertOptions) -> None:
    """Raise LoraInspectError for a change that the program does not use and that no option makes LoRA.

    A change that its rules do not cover is allowed.
    """
    if options.program is None or options.scheme is None:
        return
    program, scheme = programs.by_name(options.program), schemes.by_name(options.scheme)
    names = list(families) or [""]
    for loader in filter(None, (_loader(program, name) for name in names)):
        if why := loader.never(adapter):
            raise RefusedError(
                adapter.checkpoint.path,
                f"{program.title} {why}, whatever its config says",
                "merge it, or choose another program",
            )

    def word_for(module: Module, contribution: Contribution) -> str:
        """Return the program's treatment of a change that it does not use, or an empty text."""
        algorithm = contribution.algorithm
        # Under other names it may become something else, of which the scheme itself knows.
        becomes = is_made_lora(contribution, options) or (options.algorithm == FULL and becomes_full(algorithm))
        is_named = bool(scheme.writing and scheme.writing.parameters) and is_own_parameter(module)
        if becomes or is_named or contribution.module.scheme != scheme.name:
            return ""
        treatments = {_does(algorithm, program, name, scheme) for name in names}
        return _DOES.get(treatments.pop(), "") if len(treatments) == 1 else ""

    for module, contribution in _changes(adapter):
        if word := word_for(module, contribution):
            algorithm, shapes = contribution.algorithm, contribution.shapes
            can_be_lora = becomes_lora(algorithm, shapes) or is_saved_weight(algorithm, shapes)
            way = "convert it to LoRA with --algorithm lora (and --base BASE), " if can_be_lora else ""
            if algorithm.parameter == BIAS:
                way = f"{WITHOUT_BIASES}, "
            others = _without_components(adapter, lambda one, change: bool(word_for(one, change)))
            raise RefusedError(
                adapter.checkpoint.path,
                f"{contribution.module.key} is {algorithm.title}, which {program.title} {word}",
                f"{others}{way}merge it, or choose another program",
            )


def _loader(program: Program, family: str) -> Loader | None:
    return next((one for one in program.loaders if not one.families or family in one.families), None)


def _does(algorithm: Algorithm, program: Program, family: str, scheme: Scheme) -> str:
    """Return LEAVES or FAILS if all rules for the algorithm in the scheme's files say so; else empty."""
    loader = _loader(program, family)
    prefix = scheme.writing.prefix if scheme.writing else ""
    found = {
        does
        for rule in (loader.rules_for(family) if loader else ())
        if not rule.prefixes or prefix in rule.prefixes
        if (does := rule.kinds.get(algorithm.name, rule.kinds.get("")))
    }
    if not found or not found <= _DOES.keys():
        return ""
    return LEAVES if LEAVES in found else FAILS
