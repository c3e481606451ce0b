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


_ANEW = "Fetch the file again, or write it anew with the program that trained it."
_REFUSED = "No command can tell the change, so merge and convert refuse the file."
# The codes of reading/problems.py; a new one there needs its words here.
_WORDS = {
    "weights-missing": _Words(
        "There is an adapter_config.json and no weights beside it.",
        "A configuration alone changes nothing.",
        "Put the weights beside it.",
    ),
    "no-weight-change": _Words(
        "The method changes no weight: prompts, prefixes and the like.",
        "There is nothing to merge or to convert.",
        "Load it with PEFT beside the model.",
    ),
    "no-adapter": _Words(
        "The weights are whole ones, of mlx-lm's full fine-tuning.",
        "Programs that load adapters find none.",
        "Use it as a model; extract an adapter from it where one is wanted.",
    ),
    "scheme-unknown": _Words(
        "The names are in no scheme that is known, or number the layers without naming them.",
        "No program can tell which layers are meant; most load nothing and say nothing.",
        _ANEW,
    ),
    "peft-setting-unsupported": _Words(
        "PEFT's configuration has a setting that is not built here.",
        _REFUSED,
        "Merge it with PEFT, or train it without the setting.",
    ),
    "duplicate-tensor": _Words(
        "A module has two tensors for the same role, in two spellings.",
        "Programs differ in which one they take.",
        "Leave one of them out.",
    ),
    "shape-mismatch": _Words("Factors of a module do not fit together.", "Programs fail, or skip the module.", _ANEW),
    "incomplete": _Words(
        "A factor stands without the others of its module, as a down without an up, or modules are missing.",
        "Programs skip the module, mostly without a word, so a part of the training is lost.",
        _ANEW,
    ),
    "magnitude-shape": _Words(
        "A magnitude of DoRA fits no side of its module.", "Programs fail, or compute something else.", _ANEW
    ),
    "experts-ambiguous": _Words(
        "Factors are of all experts of a layer, and nothing tells of which, or of how many.",
        _REFUSED,
        "Put the configuration and the model's config.json beside it.",
    ),
    "algorithm-unsupported": _Words(
        "The algorithm is recognised and not computed here.", _REFUSED, "Use the program that trained it."
    ),
    "residual-base": _Words(
        "The initialisation took a part of the base away (PiSSA and others), and the file does not say how much.",
        "On the plain base the change is counted twice in part.",
        "Merge it into the residual base, and say residual=yes.",
    ),
    "pattern-unsupported": _Words(
        "An expression of the configuration is one that is not compared with names here.",
        "Ranks and alphas that hang on it are unknown.",
        "Write plain module names in its place.",
    ),
    "shards-contradict": _Words(
        "Parts of one set say different things of it.", "Programs take the one or the other.", "Fetch the set again."
    ),
    "dora-conflict": _Words(
        "A flag or a configuration denies the magnitudes that are there, or their record cannot be so.",
        "Programs that believe the one compute something else than those that believe the other.",
        "Find out which one is right, and take the other out.",
    ),
    "dora-missing": _Words(
        "A flag or a configuration says DoRA, and no module has a magnitude.",
        "What is left is not the adapter that was trained.",
        "Fetch the file that the trainer saved.",
    ),
    "dora-partial": _Words(
        "Some Linear modules have a magnitude and others have none.",
        "A part of the magnitudes was lost, as by a converter; few files are made so.",
        "Fetch the file again; --allow-partial-dora of the other commands accepts one that was made so.",
    ),
    "dora-stripped": _Words(
        "DoRA was asked for in training, and no module has a magnitude.",
        "A converter lost them, or a dropout kept the trainer from it.",
        "Fetch the file that the trainer saved.",
    ),
    "setting-contradicts": _Words(
        "A setting on the path contradicts what is known.", "It would be ignored or wrong.", "Leave it out."
    ),
    "setting-repeats": _Words("A setting on the path repeats what is known.", "It is not needed.", "Leave it out."),
    "scale-unknown": _Words(
        "The file leaves the scale of modules open: a stored alpha of 0, PEFT's names without their configuration, "
        "evidence for RS-LoRA that contradicts itself.",
        "Programs guess, each in its own way, so the strength is another in each.",
        "Settle it on the path (alpha=N, rslora=yes|no), then convert the file, which writes it down.",
    ),
    "alpha-missing": _Words(
        "Modules have no alpha where others of the file have one.",
        "No alpha means scale 1, so these modules are weighed otherwise than the rest; a script may have lost it.",
        "Fetch the file again, or write the alpha that they were trained with.",
    ),
    "formula-unknown": _Words(
        "The change hangs on what is not in the file: a configuration, a program, a shared tensor.",
        _REFUSED,
        "Put what is missing beside it.",
    ),
    "config-damaged": _Words(
        "lora_adapter_metadata is no JSON object.",
        "diffusers fails, and what it said of alpha is lost.",
        "Save the file again with diffusers.",
    ),
    "mixed-schemes": _Words(
        "Modules follow several naming schemes.",
        "Most programs know one of them in a file and skip the rest.",
        "Convert the file, or take out what a script left there.",
    ),
    "unclaimed": _Words(
        "Tensors stand beside the modules that belong to no algorithm that is known.",
        "Programs skip them, or refuse the file for them.",
        "Find out what wrote them; update lora-inspect where it is a new algorithm.",
    ),
    "embeddings": _Words(
        "Embeddings of tokens stand in the file.",
        "They change no weight, and few programs load them with the adapter.",
        "Nothing, where the program loads them.",
    ),
    "rslora-hint": _Words(
        "Most alphas are the square root of their rank, which RS-LoRA networks store for an alpha of 0.",
        "If it is RS-LoRA, programs apply too little.",
        "Where it was trained so, say rslora=yes and convert it.",
    ),
    "expert-hint": _Words(
        "Nothing tells how the factors of all experts are packed, and their columns look packed one way.",
        "Packed the other way it is another change.",
        "Say expert-packing=rank_major or grouped_by_expert.",
    ),
    "trained-scale": _Words(
        "It was trained at another scale than the one that programs read from the file.",
        "They apply another strength than in training.",
        "Change the strength by what the message says.",
    ),
}

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
        "It changes nothing; of text encoders that is usual for layers that clip skip leaves out.",
        "Leave the module out, where the size matters.",
        (tensor_lints.untrained,),
    ),
    CheckRule(
        "half-overflow",
        WARNING,
        "A tensor holds numbers beyond 65504.",
        "Programs that compute in F16 make infinities of them.",
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
        "It is a length: zero wipes the row of the weight out, and a negative one turns it round.",
        "Take an earlier checkpoint.",
        (tensor_lints.magnitude_sign,),
    ),
    CheckRule(
        "change-large",
        WARNING,
        "A module changes the entries of its weight by more than 1, where those are a few hundredths.",
        "The model is wiped out at strength 1: the scale is wrong, or the training ran away.",
        "See whether the scale is right (lora-inspect info), or take an earlier checkpoint.",
        (tensor_lints.change_large,),
    ),
)

RULES = (
    CheckRule(
        UNREADABLE,
        ERROR,
        "The file is none that can be read: cut, damaged, of another format, or a pointer to it.",
        "Programs fail on it.",
        "Do what the message says, mostly: fetch it again.",
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
