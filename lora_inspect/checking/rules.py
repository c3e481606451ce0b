"""The registry of all problems of `check`: unreadable files, problems of the reading, and lints.

The meanings of the reading's problems are here for `check`; its help and page explain every code.
"""

from collections.abc import Iterable, Iterator

from lora_inspect.checking import tensor_lints
from lora_inspect.checking.lints import LINTS
from lora_inspect.checking.subject import CheckRule, Subject
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.model.evidence import ERROR, NOTE, WARNING, Problem
from lora_inspect.reading.problems import PROBLEMS


class _Words(NamedTuple):
    """The meaning of a problem, its importance, and the way out."""

    means: str
    matters: str
    way_out: str


_ANEW = "Fetch the file again, or re-save it with the program that trained it."
_REFUSED = "No command can compute the change, so merge and convert refuse the file."
# The codes of reading/problems.py; a new one there needs its words here.
_WORDS = {
    "weights-missing": _Words(
        "There is an adapter_config.json, but no weights next to it.",
        "A configuration without weights changes nothing.",
        "Put the weights next to it.",
    ),
    "no-weight-change": _Words(
        "The method changes no weight: prompts, prefixes and the like.",
        "There is nothing to merge or to convert.",
        "Load it with PEFT together with the model.",
    ),
    "no-adapter": _Words(
        "The file holds whole weights, of mlx-lm's full fine-tuning.",
        "Programs that load adapters find none.",
        "Use it as a model; extract an adapter from it if you want one.",
    ),
    "scheme-unknown": _Words(
        "The names follow no known scheme, or number the layers without naming them.",
        "No program can identify the layers; most silently load nothing.",
        _ANEW,
    ),
    "peft-setting-unsupported": _Words(
        "PEFT's configuration has a setting that lora-inspect does not support.",
        _REFUSED,
        "Merge it with PEFT, or train it without the setting.",
    ),
    "duplicate-tensor": _Words(
        "A module has two tensors for the same role, in two spellings.",
        "Programs differ in the one that they use.",
        "Leave one of them out.",
    ),
    "shape-mismatch": _Words(
        "Factors of a module do not match each other.", "Programs fail, or skip the module.", _ANEW
    ),
    "incomplete": _Words(
        "A module lacks a factor, such as the up of a down, or modules are missing.",
        "Programs skip the module, mostly silently, so a part of the training is lost.",
        _ANEW,
    ),
    "magnitude-shape": _Words(
        "A magnitude of DoRA matches no side of its module.", "Programs fail, or compute something else.", _ANEW
    ),
    "experts-ambiguous": _Words(
        "Factors cover all experts of a layer, but nothing identifies the layer or the number of experts.",
        _REFUSED,
        "Put the configuration and the model's config.json next to it.",
    ),
    "algorithm-unsupported": _Words(
        "lora-inspect recognises the algorithm, but does not compute it.", _REFUSED, "Use the program that trained it."
    ),
    "residual-base": _Words(
        "The initialisation took a part of the base away (PiSSA and others), but the file does not state that part.",
        "On the plain base a part of the change counts twice.",
        "Merge it into the residual base with residual=yes.",
    ),
    "pattern-unsupported": _Words(
        "lora-inspect does not support an expression of the configuration.",
        "Ranks and alphas that depend on it are unknown.",
        "Write plain module names instead.",
    ),
    "shards-contradict": _Words(
        "Parts of one set contradict each other.", "Programs use one or the other.", "Fetch the set again."
    ),
    "dora-conflict": _Words(
        "A flag or a configuration denies existing magnitudes, or the record of the magnitudes is impossible.",
        "Programs that believe one compute another change than programs that believe the other.",
        "Find the right one, and remove the other.",
    ),
    "dora-missing": _Words(
        "A flag or a configuration says DoRA, but no module has a magnitude.",
        "The rest is not the adapter that was trained.",
        "Fetch the file that the trainer saved.",
    ),
    "dora-partial": _Words(
        "Some Linear modules have a magnitude and others have none.",
        "A part of the magnitudes was lost, as by a converter; few files are made so.",
        "Fetch the file again; if it was made so, give --allow-partial-dora to the other commands.",
    ),
    "dora-stripped": _Words(
        "DoRA was asked for in training, but no module has a magnitude.",
        "A converter lost them, or a dropout kept the trainer from DoRA.",
        "Fetch the file that the trainer saved.",
    ),
    "setting-contradicts": _Words(
        "A setting on the path contradicts a known fact.", "It would be ignored or wrong.", "Leave it out."
    ),
    "setting-repeats": _Words("A setting on the path repeats a known fact.", "It is not needed.", "Leave it out."),
    "scale-unknown": _Words(
        "The file leaves the scale of modules open: a stored alpha of 0, PEFT's names without their configuration, "
        "evidence for RS-LoRA that contradicts itself.",
        "Programs guess differently, so each applies another scale.",
        "Settle it on the path (alpha=N, rslora=yes|no), then convert the file to store it.",
    ),
    "alpha-missing": _Words(
        "Some modules have no alpha, but others of the file have one.",
        "No alpha means scale 1, so these modules count differently from the rest; a script may have lost it.",
        "Fetch the file again, or write the alpha that they were trained with.",
    ),
    "formula-unknown": _Words(
        "The change depends on something outside the file: a configuration, a program, a shared tensor.",
        _REFUSED,
        "Put the missing part next to it.",
    ),
    "config-damaged": _Words(
        "lora_adapter_metadata is no JSON object.",
        "diffusers fails, and the alphas in it are lost.",
        "Save the file again with diffusers.",
    ),
    "mixed-schemes": _Words(
        "Modules follow several naming schemes.",
        "Most programs know one of them in a file and skip the rest.",
        "Convert the file, or remove the remains of a script.",
    ),
    "unclaimed": _Words(
        "Some tensors belong to no known algorithm.",
        "Programs skip them, or refuse the file for them.",
        "Find the program that wrote them; update lora-inspect if it is a new algorithm.",
    ),
    "embeddings": _Words(
        "The file holds embeddings of tokens.",
        "They change no weight, and few programs load them with the adapter.",
        "Do nothing if the program loads them.",
    ),
    "rslora-hint": _Words(
        "Most alphas are the square root of their rank, which RS-LoRA networks store for an alpha of 0.",
        "If it is RS-LoRA, programs apply too little.",
        "If it was trained so, give rslora=yes and convert it.",
    ),
    "expert-hint": _Words(
        "The file does not state the packing of the factors of all experts, but their columns look packed one way.",
        "The other packing makes another change.",
        "Give expert-packing=rank_major or grouped_by_expert.",
    ),
    "trained-scale": _Words(
        "The training used another scale than programs read from the file.",
        "They apply another scale than the training did.",
        "Change the multiplier as the message says.",
    ),
}

if _WITHOUT := [entry.code for entry in PROBLEMS if entry.code not in _WORDS]:
    raise ValueError(f"add words for {', '.join(_WITHOUT)} to _WORDS of lora_inspect/checking/rules.py")
READING_RULES = tuple(CheckRule(entry.code, entry.severity, *_WORDS[entry.code]) for entry in PROBLEMS)


UNREADABLE = "unreadable"

_TENSOR_LINTS = (
    CheckRule(
        "not-finite",
        ERROR,
        "A tensor holds NaN or infinities.",
        "Every output of the model becomes NaN: a black picture, or no text.",
        "Take an earlier checkpoint of the training; the numbers are lost.",
        (tensor_lints.not_finite,),
    ),
    CheckRule(
        "untrained",
        WARNING,
        "A factor of every module is zero throughout.",
        "The file changes nothing: the training never began, or was saved before its first step.",
        "Take a later checkpoint.",
        (tensor_lints.untrained,),
    ),
    CheckRule(
        "module-dead",
        WARNING,
        "Every factor of a module is zero.",
        "It changes nothing and can never be trained: something wrote zeros over it.",
        "Fetch the file again, or leave the module out.",
        (tensor_lints.untrained,),
    ),
    CheckRule(
        "module-untrained",
        NOTE,
        "A factor of a module is zero throughout, as before its first step.",
        "It changes nothing, which is usual for layers of text encoders that clip skip leaves out.",
        "Leave the module out if the size matters.",
        (tensor_lints.untrained,),
    ),
    CheckRule(
        "half-overflow",
        WARNING,
        "A tensor holds numbers beyond 65504.",
        "Programs that compute in F16 turn them into infinities.",
        "Train with a lower learning rate; use the file in BF16 or F32.",
        (tensor_lints.half_overflow,),
    ),
    CheckRule(
        "half-subnormal",
        NOTE,
        "More than half of the numbers of a tensor in F16 are below 2^-14.",
        "F16 holds such numbers with fewer bits, down to one.",
        "Save it in BF16 or F32.",
        (tensor_lints.half_subnormal,),
    ),
    CheckRule(
        "magnitude-sign",
        WARNING,
        "A magnitude of DoRA is zero or negative.",
        "It is a length: zero erases the row of the weight, and a negative one reverses it.",
        "Take an earlier checkpoint.",
        (tensor_lints.magnitude_sign,),
    ),
    CheckRule(
        "change-large",
        WARNING,
        "A module changes the entries of its weight by more than 1, but those are a few hundredths.",
        "The model breaks at multiplier 1: the scale is wrong, or the training diverged.",
        "Check the scale (lora-inspect info), or take an earlier checkpoint.",
        (tensor_lints.change_large,),
    ),
)

RULES = (
    CheckRule(
        UNREADABLE,
        ERROR,
        "lora-inspect cannot read the file: it is truncated, damaged, of another format, or a pointer to one.",
        "Programs fail on it.",
        "Follow the message; mostly, fetch the file again.",
    ),
    *READING_RULES,
    *LINTS,
    *(rule._replace(of_tensors=True) for rule in _TENSOR_LINTS),
)
BY_CODE = {rule.code: rule for rule in RULES}


def find_problems(subject: Subject, tensors: bool, rules: Iterable[CheckRule] = RULES) -> Iterator[Problem]:
    """All that the rules find, in their order, what the reading found among it; raises KeyError for other codes."""
    looked_at = [rule for rule in rules if tensors or not rule.of_tensors]
    found: dict[str, list[Problem]] = {rule.code: [] for rule in looked_at}
    severities = {rule.code: rule.severity for rule in looked_at}
    for problem in subject.adapter.problems:
        found[problem.code].append(problem)
    for look in dict.fromkeys(look for rule in looked_at for look in rule.looks):
        for code, message, keys in look(subject):
            found[code].append(Problem(code, severities[code], message, keys))
    for rule in looked_at:
        yield from found[rule.code]
