"""The registry of problems: all possible faults of a file, in the order of the report.

To add one, add its entry here, its words to checking/rules.py, its row to the table in docs/reading.md, and a file that
has it to the tests. The problems are of keys that contradict each other, within a module and between naming schemes, or
belong to no module; of unknown scales, and settings against known ones; and of doubtful statements in configs and
metadata.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module

from lora_inspect import schemes
from lora_inspect.errors import AmbiguousError, DamagedError, LoraInspectError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.maths.scaling import RANK_STABILISED, STANDARD
from lora_inspect.reading.keys.claims import MIXED
from lora_inspect.reading.keys.suffixes import ROOT, parse_key
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.model.evidence import (
    CONTRADICTS,
    ERROR,
    INIT_KEY,
    NOTE,
    REPEATS,
    WARNING,
    Problem,
    RawProblem,
    close,
    is_lycoris,
)
from lora_inspect.reading.peft.peft_config import EMBEDDED_KEY, embedded_object
from lora_inspect.reading.scale.scales import WAYS_OUT
from lora_inspect.reading.state import Reading
from lora_inspect.schemes.peft import PEFT
from lora_inspect.sentences import counted, listed, some

# Names in which at least half of a file's tensors are, as expressions that few files need, and what is said of them.
_FOREIGN = (
    (
        "w_[ab]_[0-9]{3}",
        "have names of Sam_LoRA, which counts the queries and values of SAM that it adapted but does not say their "
        "blocks; merge it with the program that trained it",
    ),
    (
        "(?is).*lora.*",
        "mention LoRA in no known naming scheme; write the file again with the program that trained it, in the names "
        "of kohya, PEFT, diffusers or ComfyUI",
    ),
)


def unfit_tensors(reading: Reading) -> Iterable[RawProblem]:
    """Tensors that do not make a module, found as they were claimed."""
    return reading.claims.findings


def several_schemes(reading: Reading) -> Iterator[RawProblem]:
    """Keys that follow several naming schemes, with the modules of each."""
    if reading.claims.scheme != MIXED:
        return
    modules: dict[str, list[str]] = {}
    for module in reading.claims.modules.values():
        modules.setdefault(module.name.scheme, []).append(module.name.key)
    told = [f"{name} ({len(keys)}: {some(keys, 1)})" for name, keys in sorted(modules.items())]
    firsts = tuple(keys[0] for _, keys in sorted(modules.items()))
    yield RawProblem("mixed-schemes", f"the modules follow {len(told)} naming schemes: {listed(told)}", firsts)


def foreign_schemes(reading: Reading) -> Iterator[RawProblem]:
    """Names of an adapter in no naming scheme that is known, in a file of little else."""
    keys = reading.claims.unclaimed
    if reading.claims.modules or not keys:
        return
    for names, says in _FOREIGN:
        own = tuple(key for key in keys if re.fullmatch(names, key) and not parse_key(key) and not _is_shared(key))
        if 2 * len(own) >= len(reading.checkpoint.tensors):
            message = f"{len(own)} tensors ({some(own, 2)}) {says}"
            yield RawProblem("scheme-unknown", message, own[:5])
            return


def _is_shared(key: str) -> bool:
    """Whether PEFT keeps the tensor beside its model, of which others say what it is."""
    return key.startswith(f"{ROOT}.") and not key.startswith(tuple(PEFT.prefixes))


def unclaimed_tensors(reading: Reading) -> Iterator[RawProblem]:
    """Tensors beside the modules that nobody claims."""
    if not reading.claims.unclaimed or not reading.claims.modules:
        return
    from lora_inspect.reading.peft.saved_tensors import copies_below  # few files have what nobody claims

    copies = copies_below(reading.claims.unclaimed, reading.claims.modules)
    if keys := [key for key in reading.claims.unclaimed if key not in copies]:
        count = f"{len(keys)} tensors belong" if len(keys) > 1 else "1 tensor belongs"
        message = f"{count} to no known algorithm ({keys[0]}{', …' if len(keys) > 1 else ''})"
        yield RawProblem("unclaimed", message, tuple(keys[:5]))


def embeddings(reading: Reading) -> Iterator[RawProblem]:
    """Embeddings of tokens, beside the modules or alone."""
    if reading.embeddings:
        from lora_inspect.reading.embeddings import in_words

        message = f"{in_words(reading.embeddings)} change no weight: merge leaves them out, and convert passes them on"
        yield RawProblem("embeddings", message, tuple(key for one in reading.embeddings for key in one.keys)[:5])


def magnitudes(reading: Reading) -> Iterable[RawProblem]:
    """Magnitudes against what is said of DoRA, found as the evidence was read, without what the user allows."""
    allowed = "dora-partial" if reading.settings.allow_partial_dora else None
    return (finding for finding in reading.about_magnitudes if finding.code != allowed)


# Modules whose scale is 1, as they have no alpha, among others that have one.
ALPHA_MISSING = "alpha-missing"
# The options that settle what a scale waits for.
_OPTIONS = {"alpha": "--alpha N", "rslora": "--rslora yes|no"}


def open_settings(contributions: Iterable[Contribution]) -> tuple[str, ...]:
    """The settings that the scales of contributions wait for: "alpha", "rslora", both or neither."""
    unknown = [c for c in contributions if c.rank is not None and c.scale is None]
    alpha = any(contribution.alpha is None for contribution in unknown)
    rule = any(contribution.rslora is None and contribution.rank != 1 for contribution in unknown)
    return (*(("alpha",) if alpha else ()), *(("rslora",) if rule else ()))


def unknown_scales(reading: Reading) -> Iterator[RawProblem]:
    """Modules whose scale is unknown, by the reason, and all that settles them."""
    by_reason: dict[str, list[str]] = {}
    unknown = [contribution for contribution in reading.contributions if contribution.scale is None]
    for contribution in unknown:
        if contribution.algorithm.formula and not contribution.algorithm.beside:
            by_reason.setdefault(contribution.why, []).append(contribution.module.key)
    way_out = " and ".join(_OPTIONS[name] for name in open_settings(unknown))
    for why, keys in by_reason.items():
        mend = WAYS_OUT.get(why, "give {}").format(way_out)
        yield RawProblem(
            "scale-unknown", f"the scale of {keys[0]}{_and_more(keys)} is unknown: {why}; {mend}", tuple(keys[:5])
        )


def _and_more(keys: list[str]) -> str:
    return f" and {len(keys) - 1} more modules" if len(keys) > 1 else ""


def rule_setting(reading: Reading) -> Iterator[RawProblem]:
    """What the rslora setting says against the evidence: it settles what the file leaves open, and no more."""
    rslora = reading.settings.rslora
    if rslora is None:
        return
    setting = f"rslora={'yes' if rslora else 'no'}"
    ranked = [contribution for contribution in reading.contributions if contribution.rank is not None]
    read = [contribution for contribution in ranked if contribution.formula.rslora]
    contradicting = next((stated for stated in reading.stated if stated.value != rslora), None)
    if not read:
        what = "has RS-LoRA's rule" if ranked else "has a rank"
        yield RawProblem(CONTRADICTS, f"{setting} cannot apply, as no module {what}; leave it out")
    elif all(contribution.alpha is None and contribution.scale is not None for contribution in read):
        message = f"{setting} cannot apply to {read[0].module.key}, which has {read[0].why}; leave it out"
        yield RawProblem(CONTRADICTS, message)
    elif any(not stated.settled for stated in reading.stated):
        return
    elif contradicting is None:
        yield RawProblem(REPEATS, f"{setting} repeats what its {reading.stated[0].source.replace('_', ' ')} says")
    else:
        rule, source = RANK_STABILISED if contradicting.value else STANDARD, contradicting.source.replace("_", " ")
        yield RawProblem(CONTRADICTS, f"its {source} says {rule}, which {setting} contradicts; leave it out")


def alpha_setting(reading: Reading) -> Iterator[RawProblem]:
    """What the alpha setting says against alphas that are known without it."""
    alpha = reading.settings.alpha
    if alpha is None:
        return
    without = reading.scaled(reading.settings._replace(alpha=None)).values()
    known = [c for module in without for c in module.contributions if c.rank is not None]
    if any(contribution.alpha is None and contribution.scale is None for contribution in known):
        return
    others = [c.alpha for c in known if c.alpha is not None and not close(c.alpha, alpha)]
    absent = next((contribution for contribution in known if contribution.alpha is None), None)
    if others:
        message = f"it says alpha {others[0]:g}, which alpha={alpha:g} contradicts; leave it out"
        yield RawProblem(CONTRADICTS, message)
    elif absent:
        message = f"alpha={alpha:g} cannot apply to {absent.module.key}, which has {absent.why}; leave it out"
        yield RawProblem(CONTRADICTS, message)
    elif not known:
        yield RawProblem(CONTRADICTS, f"alpha={alpha:g} cannot apply, as no module has a rank; leave it out")
    else:
        yield RawProblem(REPEATS, f"alpha={alpha:g} repeats the alpha that it has")


def architecture_setting(reading: Reading) -> Iterator[RawProblem]:
    """That it names none of the families that the file may be of, or the one that is known."""
    named = reading.settings.architecture
    if named is None:
        return
    from lora_inspect.reading.shown_families import shown_candidates

    found = shown_candidates(reading.checkpoint, reading.claims.scheme, reading.modules)
    setting = f"architecture={named}"
    if named not in [one.architecture.name for one in found]:
        fits = f"match {listed([str(one) for one in found], 'or')}" if found else "match no known model family"
        message = f"the names and shapes of its modules {fits}, so it is not for {named}; leave {setting} (--architecture) out"
        yield RawProblem(CONTRADICTS, message)
    elif len(found) == 1:
        yield RawProblem(REPEATS, f"{setting} repeats what the names and shapes of its modules say")


def missing_alphas(reading: Reading) -> Iterator[RawProblem]:
    """Modules without an alpha among others that have one, in schemes where none means scale 1."""
    having: Counter[str] = Counter()
    missing: dict[str, list[str]] = defaultdict(list)
    for module in reading.modules.values():
        scheme = module.name.scheme
        if schemes.by_name(scheme).absent_alpha != "one" or not any(map(_takes_alpha, module.contributions)):
            continue
        if module.alpha:
            having[scheme] += 1
        else:
            missing[scheme].append(module.name.key)
    for scheme, keys in missing.items():
        if scheme in having:
            message = (
                f"the file has no alpha for {counted(len(keys), 'module')} ({some(keys, 1)}), which "
                f"means scale 1 there, but has one for {counted(having[scheme], 'module')}"
            )
            yield RawProblem(ALPHA_MISSING, message, tuple(keys[:5]))


def _takes_alpha(contribution: Contribution) -> bool:
    """Whether it is a change of its own whose alpha is divided by a rank."""
    algorithm = contribution.algorithm
    is_own = algorithm.formula is not None and not algorithm.beside
    return is_own and algorithm.has_alpha and contribution.rank is not None


def rslora_hint(reading: Reading) -> Iterator[RawProblem]:
    """The hint, which is a note and never applied."""
    if reading.rslora.hint:
        read = "it is read as plain LoRA: should it be too weak as such, give --rslora yes"
        yield RawProblem("rslora-hint", f"{reading.rslora.hint.sentence()}; {read}")


# How the keys of metadata begin that say how alpha and rank are to be read.
_DECIDING_METADATA = ("lora_inspect.", "lora_adapter_metadata", "ss_network_", "ss_alpha_", "ss_rank_", "ss_init_")

DAMAGED = "config-damaged"
# The field in which a config names tokens whose rows were trained beside its factors.
_TOKENS = "trainable_token_indices"


def missing_tokens(reading: Reading) -> Iterator[RawProblem]:
    """Configs of a LoRA that name tokens whose rows were trained beside its factors, of which the file has nothing."""
    if any(c.algorithm.ties for c in reading.contributions):
        return
    for found in reading.configs:
        if found.config.get(_TOKENS):
            yield RawProblem(
                "incomplete",
                f"{found.where} lists {_TOKENS}, but the file has no rows of tokens, so it is not the "
                "whole adapter; fetch the file that the trainer saved, or remove them from the config if "
                "there were none",
            )


def damaged_metadata(reading: Reading) -> Iterator[RawProblem]:
    """An embedded config that nobody can read: rank, alpha and rule that it said are lost."""
    if embedded_object(reading.checkpoint.metadata) is None:
        yield RawProblem(
            DAMAGED,
            f"metadata {EMBEDDED_KEY} is not a JSON object, so its alphas are lost and scales are read "
            "as if it had none; fetch the file again",
        )


def refused_patterns(reading: Reading) -> Iterator[RawProblem]:
    """Patterns of configs that are not compared with modules."""
    for where, refused in {found.where: found.modules.refused for found in reading.configs}.items():
        if refused:
            yield RawProblem("pattern-unsupported", f"{where}: {refused}; {_way_out(refused)}")


def _way_out(refused: str) -> str:
    if refused.startswith("target_modules "):
        return "list the module names, or rename the file to adapter_model.safetensors if the two belong together"
    return "write the plain module path instead"


def contradicting_shards(reading: Reading) -> Iterator[RawProblem]:
    """Metadata that decides what the tensors mean, where the files of a set contradict each other."""
    if not reading.claims.modules:
        return
    said: dict[str, tuple[str, str]] = {}
    for file, metadata in reading.checkpoint.file_metadata.items():
        for key in filter(lambda key: key.startswith(_DECIDING_METADATA), metadata):
            first, value = said.setdefault(key, (file, metadata[key]))
            if value != metadata[key]:
                yield RawProblem(
                    "shards-contradict",
                    f"{first} and {file} are parts of one adapter with different values of {key}; fetch the set again",
                )


Look = Callable[[Reading], Iterable[RawProblem]]


class RareLook:
    """A look that finds something only `where` a sign of it is in a file: its `file` in this folder is loaded then."""

    def __init__(self, file: str, name: str, where: Callable[[Reading], bool]) -> None:
        self.file, self.name, self.where = file, name, where

    def __call__(self, reading: Reading) -> Iterable[RawProblem]:
        """What it finds; nothing without the sign."""
        return self.look(reading) if self.where(reading) else ()

    @property
    def look(self) -> Look:
        """The look itself."""
        found: Look = getattr(import_module(f"lora_inspect.reading.{self.file}"), self.name)
        return found


def _has_configs(reading: Reading) -> bool:
    return bool(reading.configs)


def _has_packed(reading: Reading) -> bool:
    return any(contribution.algorithm.packed for contribution in reading.contributions)


_missing_weights = RareLook("peft.unsupported", "missing_weights", lambda reading: not reading.checkpoint.files)
_weightless = RareLook(
    "peft.unsupported", "weightless", lambda reading: bool(reading.configs or reading.claims.unclaimed)
)
_unbuilt_configs = RareLook("peft.unsupported", "unbuilt_configs", _has_configs)
_unbuilt_algorithms = RareLook(
    "peft.unsupported",
    "unbuilt_algorithms",
    lambda reading: not all(contribution.algorithm.formula for contribution in reading.contributions),
)
_missing_saved = RareLook("peft.saved_tensors", "missing_saved", _has_configs)
_lost_parameters = RareLook("expert_parameters", "lost_parameters", _has_configs)
_residual_bases = RareLook(
    "peft.residual_adapters",
    "residual_bases",
    lambda reading: bool(reading.configs) or INIT_KEY in reading.checkpoint.metadata,
)
_residual_setting = RareLook(
    "peft.residual_adapters", "residual_setting", lambda reading: reading.settings.residual is not None
)
_packing_setting = RareLook(
    "packed_experts", "packing_setting", lambda reading: reading.settings.expert_packing is not None
)
_packing_hint = RareLook("packed_experts", "packing_hint", _has_packed)
_unknown_formulas = RareLook(
    "peft.unsupported",
    "unknown_formulas",
    lambda reading: any(contribution.unsettled for contribution in reading.contributions),
)
_dylora_scale = RareLook("scale.scale_records", "dylora_scale", lambda reading: is_lycoris(reading.checkpoint.metadata))


class Entry(NamedTuple):
    """A kind of problem: the code by which scripts know it, how serious it is, and what finds it.

    What finds several kinds stands in the entry of each.
    """

    code: str
    severity: str
    looks: tuple[Look, ...]


PROBLEMS = (
    Entry("weights-missing", ERROR, (_missing_weights,)),
    Entry("no-weight-change", ERROR, (_weightless,)),
    Entry("no-adapter", ERROR, (lambda reading: reading.rules.no_adapter(reading.checkpoint.files),)),
    # What explains shapes that fit nothing comes before these.
    Entry("scheme-unknown", ERROR, (unfit_tensors, foreign_schemes)),
    Entry("peft-setting-unsupported", ERROR, (_unbuilt_configs,)),
    Entry("duplicate-tensor", ERROR, (unfit_tensors,)),
    Entry("shape-mismatch", ERROR, (unfit_tensors,)),
    Entry("incomplete", ERROR, (unfit_tensors, _missing_saved, missing_tokens)),
    Entry("magnitude-shape", ERROR, (unfit_tensors,)),
    Entry("experts-ambiguous", ERROR, (unfit_tensors, _lost_parameters)),
    Entry("algorithm-unsupported", ERROR, (_unbuilt_configs, _unbuilt_algorithms)),
    Entry("residual-base", ERROR, (_residual_bases,)),
    Entry("pattern-unsupported", ERROR, (refused_patterns,)),
    Entry("shards-contradict", ERROR, (contradicting_shards,)),
    Entry("dora-conflict", ERROR, (magnitudes,)),
    Entry("dora-missing", ERROR, (magnitudes,)),
    Entry("dora-partial", ERROR, (magnitudes,)),
    Entry("dora-stripped", WARNING, (magnitudes,)),
    Entry(
        "setting-contradicts",
        ERROR,
        (rule_setting, alpha_setting, _packing_setting, _residual_setting, architecture_setting),
    ),
    Entry("setting-repeats", NOTE, (rule_setting, alpha_setting, _packing_setting, architecture_setting)),
    Entry("scale-unknown", ERROR, (unknown_scales,)),
    Entry("alpha-missing", WARNING, (missing_alphas,)),
    Entry("formula-unknown", ERROR, (_unknown_formulas,)),
    Entry("config-damaged", WARNING, (damaged_metadata,)),
    Entry("mixed-schemes", WARNING, (several_schemes,)),
    Entry("unclaimed", WARNING, (unclaimed_tensors,)),
    Entry("embeddings", NOTE, (embeddings,)),
    Entry("rslora-hint", NOTE, (rslora_hint,)),
    Entry("expert-hint", NOTE, (_packing_hint,)),
    Entry(
        "trained-scale", NOTE, (_dylora_scale, lambda reading: reading.rules.trained_otherwise(reading.contributions))
    ),
)


_DAMAGE = (
    "duplicate-tensor",
    "shape-mismatch",
    "incomplete",
    "magnitude-shape",
    "experts-ambiguous",
    "shards-contradict",
    "dora-conflict",
    "dora-missing",
)


def kind_of_error(problem: Problem) -> type[LoraInspectError]:
    """What is raised where somebody asks for more than a file with the problem can give."""
    if problem.code in ("scale-unknown", "dora-partial"):
        return AmbiguousError
    return DamagedError if problem.code in _DAMAGE else RefusedError


def find_problems(reading: Reading, entries: tuple[Entry, ...] = PROBLEMS) -> tuple[Problem, ...]:
    """All that is wrong with a file; raises KeyError for a finding whose code has no entry."""
    found: dict[str, list[Problem]] = {entry.code: [] for entry in entries}
    severities = {entry.code: entry.severity for entry in entries}
    for look in dict.fromkeys(look for entry in entries for look in entry.looks):
        for code, message, keys in look(reading):
            found[code].append(Problem(code, severities[code], message, keys))
    return tuple(problem for problems in found.values() for problem in problems)
