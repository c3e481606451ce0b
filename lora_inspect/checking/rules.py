"""The registry of all problems of `check`: unreadable files, problems of the reading, and lints.

The help and the page of `check` explain every code.
"""

from collections.abc import Iterable, Iterator

from lora_inspect.checking import tensor_lints
from lora_inspect.checking.lints import LINTS
from lora_inspect.checking.subject import CheckRule, Subject
from lora_inspect.reading.model.evidence import ERROR, NOTE, WARNING, Problem
from lora_inspect.reading.problems import PROBLEMS

READING_RULES = tuple(
    CheckRule(entry.code, entry.severity, entry.means, entry.matters, entry.way_out) for entry in PROBLEMS
)


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
    CheckRule(
        "spike",
        WARNING,
        "The first singular value of a module is above 5 times its second one, and above 5 times the median of its "
        "kind of layer (of all modules, where the kind has fewer than three).",
        "One direction of one layer outweighs all others, as after a training that diverged.",
        "Compare the layers (lora-inspect info FILE --norms); take an earlier checkpoint, or merge the module with a "
        "lower multiplier.",
        (tensor_lints.sizes,),
    ),
    CheckRule(
        "module-negligible",
        WARNING,
        "The change of a module is 0, or below a millionth of the median norm of its kind of layer, though no factor "
        "is zero throughout.",
        "It changes nothing, but other layers do: its scale is 0, or a cast lost its numbers.",
        "Check its scale (lora-inspect info FILE --modules), or take another checkpoint.",
        (tensor_lints.sizes,),
    ),
    CheckRule(
        "scale-small",
        NOTE,
        "The scale of a module is at most 1/16, as that of alpha 1 at rank 16.",
        "Trainers of the kohya family take alpha 1 where none is given, and a higher learning rate makes up for it; a "
        "program that wrote alpha 1 for the rank made the file too weak.",
        "Use the file unchanged if its results are right; else load it with a higher multiplier.",
        (tensor_lints.sizes,),
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
    """Yield all problems that the rules find, in their order, with those from reading; KeyError for other codes."""
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
