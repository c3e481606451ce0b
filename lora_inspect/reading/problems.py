"""The registry of problems: all possible faults of a file, in the order of the report.

To add one, add its entry with its look here, its row to the table in docs/problems.md, and a file that has it to the
tests. The looks are next to the facts that they are about, or here.
"""

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module

from lora_inspect.errors import AmbiguousError, DamagedError, LoraInspectError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.keys.claims import MIXED
from lora_inspect.reading.model.evidence import (
    CONTRADICTS,
    ERROR,
    INIT_KEY,
    NOTE,
    REPEATS,
    WARNING,
    Problem,
    RawProblem,
    is_lycoris,
)
from lora_inspect.reading.peft.peft_config import EMBEDDED_KEY, embedded_object
from lora_inspect.reading.scale.scales import (
    alpha_setting,
    missing_alphas,
    rslora_hint,
    rule_setting,
    unknown_scales,
)
from lora_inspect.reading.state import Reading
from lora_inspect.sentences import listed, some


def unfit_tensors(reading: Reading) -> Iterable[RawProblem]:
    """Return the problems of tensors that do not make a module, found as they were claimed."""
    return reading.claims.findings


def several_schemes(reading: Reading) -> Iterator[RawProblem]:
    """Yield a problem for keys that follow several naming schemes, with the modules of each."""
    if reading.claims.scheme != MIXED:
        return
    modules: dict[str, list[str]] = {}
    for module in reading.claims.modules.values():
        modules.setdefault(module.name.scheme, []).append(module.name.key)
    told = [f"{name} ({len(keys)}: {some(keys, 1)})" for name, keys in sorted(modules.items())]
    firsts = tuple(keys[0] for _, keys in sorted(modules.items()))
    yield RawProblem("mixed-schemes", f"the modules follow {len(told)} naming schemes: {listed(told)}", firsts)


def magnitudes(reading: Reading) -> Iterable[RawProblem]:
    """Return the problems of magnitudes and DoRA in the evidence, except a problem that the user allows."""
    allowed = "dora-partial" if reading.settings.allow_partial_dora else None
    return (finding for finding in reading.about_magnitudes if finding.code != allowed)


def architecture_setting(reading: Reading) -> Iterator[RawProblem]:
    """Yield a problem if it names none of the file's possible families, or repeats the only one."""
    named = reading.settings.architecture
    if named is None or reading.settings.of_several:
        return
    from lora_inspect.reading.shown_families import shown_candidates

    found = shown_candidates(reading.checkpoint, reading.claims.scheme, reading.modules)
    setting = f"architecture={named}"
    if named not in [one.architecture.name for one in found]:
        fits = f"match {listed([str(one) for one in found], 'or')}" if found else "match no known model family"
        wrong = f"the names and shapes of its modules {fits}, so it is not for {named}"
        message = f"{wrong}; leave {setting} (--architecture) out"
        yield RawProblem(CONTRADICTS, message)
    elif len(found) == 1:
        yield RawProblem(REPEATS, f"{setting} repeats what the names and shapes of its modules say")


# How the keys of metadata begin that say how alpha and rank are to be read.
_DECIDING_METADATA = ("lora_inspect.", "lora_adapter_metadata", "ss_network_", "ss_alpha_", "ss_rank_", "ss_init_")

DAMAGED = "config-damaged"


def damaged_metadata(reading: Reading) -> Iterator[RawProblem]:
    """Yield problems of unreadable embedded configs: their rank, alpha and rule are lost."""
    if embedded_object(reading.checkpoint.metadata) is None:
        yield RawProblem(
            DAMAGED,
            f"metadata {EMBEDDED_KEY} is not a JSON object, so its alphas are lost and scales are read "
            "as if it had none; fetch the file again",
        )


def contradicting_shards(reading: Reading) -> Iterator[RawProblem]:
    """Yield problems of metadata that decide the meaning of tensors but differ between the files of a set."""
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
    """A look that applies only `where` a file has a sign of it: its `file` in this folder is loaded then."""

    def __init__(self, file: str, name: str, where: Callable[[Reading], bool]) -> None:
        self.file, self.name, self.where = file, name, where

    def __call__(self, reading: Reading) -> Iterable[RawProblem]:
        """Return its findings; nothing without the sign."""
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


def _has_unclaimed(reading: Reading) -> bool:
    return bool(reading.claims.modules and reading.claims.unclaimed)


def _has_foreign_names(reading: Reading) -> bool:
    """Return True if `foreign_schemes` may know a key of a file without modules; most bases have none such."""
    keys = reading.claims.unclaimed
    return not reading.claims.modules and any(key.startswith("w_") or "lora" in key.lower() for key in keys)


_embeddings = RareLook("embeddings", "about_embeddings", lambda reading: bool(reading.embeddings))
_foreign_schemes = RareLook("keys.unclaimed", "foreign_schemes", _has_foreign_names)
_unclaimed_tensors = RareLook("keys.unclaimed", "unclaimed_tensors", _has_unclaimed)
_refused_patterns = RareLook("peft.unsupported", "refused_patterns", _has_configs)
_missing_tokens = RareLook("peft.saved_tensors", "missing_tokens", _has_configs)
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
_unused_alphas = RareLook(
    "scale.scale_records",
    "unused_alphas",
    lambda reading: any(one.algorithm.name == "lokr" and one.rank is None for one in reading.contributions),
)


class Entry(NamedTuple):
    """A kind of problem: its code for scripts, its severity, and the looks that find it. Kinds may share a look.

    `means`, `matters` and `way_out` are sentences for `check`. `short` are a longer and a shorter name of it for a list
    of files, empty if the code serves. `is_damage` says that the file is not the one that its trainer wrote.
    """

    code: str
    severity: str
    looks: tuple[Look, ...]
    means: str
    matters: str
    way_out: str
    short: tuple[str, ...] = ()
    is_damage: bool = False


_ANEW = "Fetch the file again, or re-save it with the program that trained it."
_REFUSED = "No command can compute the change, so merge and convert refuse the file."

PROBLEMS = (
    Entry(
        "weights-missing",
        ERROR,
        (_missing_weights,),
        "There is an adapter_config.json, but no weights next to it.",
        "A configuration without weights changes nothing.",
        "Put the weights next to it.",
        short=("the weights are missing", "no weights"),
    ),
    Entry(
        "no-weight-change",
        ERROR,
        (_weightless,),
        "The method changes no weight: prompts, prefixes and the like.",
        "There is nothing to merge or to convert.",
        "Load it with PEFT together with the model.",
        short=("a method that changes no weight", "changes no weight"),
    ),
    Entry(
        "no-adapter",
        ERROR,
        (lambda reading: reading.rules.no_adapter(reading.checkpoint.files),),
        "The file holds whole weights, of mlx-lm's full fine-tuning.",
        "Programs that load adapters find none.",
        "Use it as a model; extract an adapter from it if you want one.",
        short=("a full fine-tuning, no adapter", "no adapter"),
    ),
    # What explains shapes that fit nothing comes before these.
    Entry(
        "scheme-unknown",
        ERROR,
        (unfit_tensors, _foreign_schemes),
        "The names follow no known scheme, or number the layers without naming them.",
        "No program can identify the layers; most silently load nothing.",
        _ANEW,
        short=("names in no known scheme", "unknown names"),
    ),
    Entry(
        "peft-setting-unsupported",
        ERROR,
        (_unbuilt_configs,),
        "PEFT's configuration has a setting that lora-inspect does not support.",
        _REFUSED,
        "Merge it with PEFT, or train it without the setting.",
    ),
    Entry(
        "duplicate-tensor",
        ERROR,
        (unfit_tensors,),
        "A module has two tensors for the same role, in two spellings.",
        "Programs differ in the one that they use.",
        "Leave one of them out.",
        short=("a tensor that appears twice", "a tensor twice"),
        is_damage=True,
    ),
    Entry(
        "shape-mismatch",
        ERROR,
        (unfit_tensors,),
        "Factors of a module do not match each other.",
        "Programs fail, or skip the module.",
        _ANEW,
        short=("shapes that do not match", "misfitting shapes"),
        is_damage=True,
    ),
    Entry(
        "incomplete",
        ERROR,
        (unfit_tensors, _missing_saved, _missing_tokens),
        "A module lacks a factor, such as the up of a down, or modules are missing.",
        "Programs skip the module, mostly silently, so a part of the training is lost.",
        _ANEW,
        short=("incomplete: factors are missing", "incomplete"),
        is_damage=True,
    ),
    Entry(
        "magnitude-shape",
        ERROR,
        (unfit_tensors,),
        "A magnitude of DoRA matches no side of its module.",
        "Programs fail, or compute something else.",
        _ANEW,
        short=("a magnitude that does not match", "odd magnitude"),
        is_damage=True,
    ),
    Entry(
        "experts-ambiguous",
        ERROR,
        (unfit_tensors, _lost_parameters),
        "Factors cover all experts of a layer, but nothing identifies the layer or the number of experts.",
        _REFUSED,
        "Put the configuration and the model's config.json next to it.",
        short=("experts that it does not tell apart", "unclear experts"),
        is_damage=True,
    ),
    Entry(
        "algorithm-unsupported",
        ERROR,
        (_unbuilt_configs, _unbuilt_algorithms),
        "lora-inspect recognises the algorithm, but does not compute it.",
        _REFUSED,
        "Use the program that trained it.",
    ),
    Entry(
        "residual-base",
        ERROR,
        (_residual_bases,),
        "The initialisation took a part of the base away (PiSSA and others), but the file does not state that part.",
        "On the plain base a part of the change counts twice.",
        "Merge it into the residual base with residual=yes.",
        short=("trained on a residual base", "residual base"),
    ),
    Entry(
        "pattern-unsupported",
        ERROR,
        (_refused_patterns,),
        "lora-inspect does not support an expression of the configuration.",
        "Ranks and alphas that depend on it are unknown.",
        "Write plain module names instead.",
        short=("a pattern of its config is refused", "refused pattern"),
    ),
    Entry(
        "shards-contradict",
        ERROR,
        (contradicting_shards,),
        "Parts of one set contradict each other.",
        "Programs use one or the other.",
        "Fetch the set again.",
        short=("its shards contradict each other", "odd shards"),
        is_damage=True,
    ),
    Entry(
        "dora-conflict",
        ERROR,
        (magnitudes,),
        "A flag or a configuration denies existing magnitudes, or the record of the magnitudes is impossible.",
        "Programs that believe one compute another change than programs that believe the other.",
        "Find the right one, and remove the other.",
        short=("it contradicts itself about DoRA", "DoRA: conflict"),
        is_damage=True,
    ),
    Entry(
        "dora-missing",
        ERROR,
        (magnitudes,),
        "A flag or a configuration says DoRA, but no module has a magnitude.",
        "The rest is not the adapter that was trained.",
        "Fetch the file that the trainer saved.",
        short=("DoRA without its magnitudes", "no magnitudes"),
        is_damage=True,
    ),
    Entry(
        "dora-partial",
        ERROR,
        (magnitudes,),
        "Some Linear modules have a magnitude and others have none.",
        "A part of the magnitudes was lost, as by a converter; few files are made so.",
        "Fetch the file again; if it was made so, give --allow-partial-dora to the other commands.",
    ),
    Entry(
        "dora-stripped",
        WARNING,
        (magnitudes,),
        "DoRA was asked for in training, but no module has a magnitude.",
        "A converter lost them, or a dropout kept the trainer from DoRA.",
        "Fetch the file that the trainer saved.",
        short=("trained as DoRA, without magnitudes", "no magnitudes"),
    ),
    Entry(
        "setting-contradicts",
        ERROR,
        (rule_setting, alpha_setting, _packing_setting, _residual_setting, architecture_setting),
        "A setting on the path contradicts a known fact.",
        "It would be ignored or wrong.",
        "Leave it out.",
    ),
    Entry(
        "setting-repeats",
        NOTE,
        (rule_setting, alpha_setting, _packing_setting, architecture_setting),
        "A setting on the path repeats a known fact.",
        "It is not needed.",
        "Leave it out.",
    ),
    Entry(
        "scale-unknown",
        ERROR,
        (unknown_scales,),
        "The file leaves the scale of modules open: a stored alpha of 0, PEFT's names without their configuration, "
        "evidence for RS-LoRA that contradicts itself.",
        "Programs guess differently, so each applies another scale.",
        "Settle it on the path (alpha=N, rslora=yes|no), then convert the file to store it.",
    ),
    Entry(
        "alpha-missing",
        WARNING,
        (missing_alphas,),
        "Some modules have no alpha, but others of the file have one.",
        "No alpha means scale 1, so these modules count differently from the rest; a script may have lost it.",
        "Fetch the file again, or write the alpha that they were trained with.",
        short=("modules without their alpha", "alphas missing"),
    ),
    Entry(
        "formula-unknown",
        ERROR,
        (_unknown_formulas,),
        "The change depends on something outside the file: a configuration, a program, a shared tensor.",
        _REFUSED,
        "Put the missing part next to it.",
    ),
    Entry(
        "config-damaged",
        WARNING,
        (damaged_metadata,),
        "lora_adapter_metadata is no JSON object.",
        "diffusers fails, and the alphas in it are lost.",
        "Save the file again with diffusers.",
        short=("its embedded config is damaged", "damaged config"),
    ),
    Entry(
        "mixed-schemes",
        WARNING,
        (several_schemes,),
        "Modules follow several naming schemes.",
        "Most programs know one of them in a file and skip the rest.",
        "Convert the file, or remove the remains of a script.",
        short=("names in two schemes", "two schemes"),
    ),
    Entry(
        "unclaimed",
        WARNING,
        (_unclaimed_tensors,),
        "Some tensors belong to no known algorithm.",
        "Programs skip them, or refuse the file for them.",
        "Find the program that wrote them; update lora-inspect if it is a new algorithm.",
    ),
    Entry(
        "embeddings",
        NOTE,
        (_embeddings,),
        "The file holds embeddings of tokens.",
        "They change no weight, and few programs load them with the adapter.",
        "Do nothing if the program loads them.",
    ),
    Entry(
        "rslora-hint",
        NOTE,
        (rslora_hint,),
        "Most alphas are the square root of their rank, which RS-LoRA networks store for an alpha of 0.",
        "If it is RS-LoRA, programs apply too little.",
        "If it was trained so, give rslora=yes and convert it.",
        short=("alpha is sqrt(rank): RS-LoRA?", "RS-LoRA?"),
    ),
    Entry(
        "expert-hint",
        NOTE,
        (_packing_hint,),
        "The file does not state the packing of the factors of all experts, but their columns look packed one way.",
        "The other packing makes another change.",
        "Give expert-packing=rank_major or grouped_by_expert.",
    ),
    Entry(
        "trained-scale",
        NOTE,
        (_dylora_scale, _unused_alphas, lambda reading: reading.rules.trained_otherwise(reading.contributions)),
        "The training may have used another scale than programs read.",
        "If so, programs apply another scale.",
        "Change the multiplier as the message says.",
    ),
)


_DAMAGES = frozenset(entry.code for entry in PROBLEMS if entry.is_damage)


def kind_of_error(problem: Problem) -> type[LoraInspectError]:
    """Return the error to raise when somebody asks for more than a file with the problem can give."""
    if problem.code in ("scale-unknown", "dora-partial"):
        return AmbiguousError
    return DamagedError if problem.code in _DAMAGES else RefusedError


def find_problems(reading: Reading, entries: tuple[Entry, ...] = PROBLEMS) -> tuple[Problem, ...]:
    """Return all problems of a file. Raises KeyError for a finding with a code that has no entry."""
    found: dict[str, list[Problem]] = {entry.code: [] for entry in entries}
    severities = {entry.code: entry.severity for entry in entries}
    for look in dict.fromkeys(look for entry in entries for look in entry.looks):
        for code, message, keys in look(reading):
            found[code].append(Problem(code, severities[code], message, keys))
    return tuple(problem for problems in found.values() for problem in problems)
