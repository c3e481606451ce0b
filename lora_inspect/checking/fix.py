"""What --fix does: all that can be mended without a guess, and the proof that the file means what it meant."""

from collections.abc import Callable, Iterable

from lora_inspect.checking import hash_lints
from lora_inspect.checking.rules import RULES, find_problems
from lora_inspect.checking.subject import Draft, Rule, Subject, read_again
from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.safetensors.writer import in_file_order, write_contents
from lora_inspect.progress import Progress
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.evidence import Problem, close

_HASHES = (hash_lints.STALE, hash_lints.EMPTY)


class Mending(NamedTuple):
    """The file as it would be written, the codes of what is mended in it, and what was done, a sentence each."""

    draft: Draft
    codes: frozenset[str]
    told: tuple[str, ...]


def mending(subject: Subject, problems: Iterable[Problem]) -> Mending:
    """What can be mended of the problems. Nothing is read or written for it but a few numbers."""
    draft, codes, told = Draft(subject.checkpoint), set(), []
    found = {problem.code for problem in problems}
    if len(subject.checkpoint.files) != 1 or len(subject.headers) != 1:
        return Mending(draft, frozenset(), ())
    for rule in RULES:
        if rule.code not in found:
            continue
        if rule.rewritten or rule.code in _HASHES:
            codes.add(rule.code)
        elif done := _mended(rule, subject, draft):
            codes.add(rule.code)
            told += done
    if any(rule.rewritten for rule in RULES if rule.code in codes):
        told.append("the header is written anew")
    return Mending(draft, frozenset(codes), tuple(told))


def write_mended(
    subject: Subject, mended: Mending, output: str, force: bool, prove: Callable[[str], None], progress: Progress
) -> tuple[str, ...]:
    """Writes the file, and says what was done to it; `progress` is told of the bytes, some of them several times."""
    draft, told = mended.draft, list(mended.told)
    if _hashes_changed(subject, mended):
        told += hash_lints.recompute(subject, draft, progress)
    contents = list(draft.contents.values())
    write_contents(output, contents, draft.metadata, subject.checkpoint.inputs, force, prove, progress)
    return tuple(told)


def check_mended(subject: Subject, codes: frozenset[str], other: Subject, output: str) -> None:
    """Raises LoraInspectError where the mended file means something else, or still has what was to be mended."""
    left = sorted(codes & {problem.code for problem in find_problems(other, tensors=False)})
    if left or not _is_same(subject.adapter, other.adapter):
        why = f"still has {left[0]}" if left else "would not mean what it means now"
        raise LoraInspectError(
            f"{output}: mended, {subject.checkpoint.path} {why}, so nothing is written; mend it by hand."
        )


def open_mended(path: str, subject: Subject) -> Subject:
    """The written file, looked at as the one that it was made of."""
    return Subject(open_checkpoint(path), subject.settings, subject.progress)


def _mended(rule: Rule, subject: Subject, draft: Draft) -> list[str]:
    """What the rule did to the draft; nothing where the file would mean something else."""
    if rule.mends is None:
        return []
    before = dict(draft.metadata)
    done = list(rule.mends(subject, draft))
    if draft.metadata != before and not _is_same(subject.adapter, read_again(subject, draft.metadata)):
        draft.metadata = before
        return []
    return done


def _hashes_changed(subject: Subject, mended: Mending) -> bool:
    """Whether what the stated hashes are taken of is not what it was, or whether they were wrong."""
    draft = mended.draft
    before = [info.name for info in subject.checkpoint.tensors.values()]
    after = [plan.name for plan in in_file_order(content.plan for content in draft.contents.values())]
    ss_before, ss_after = (
        {key: value for key, value in metadata.items() if key.startswith("ss_")}
        for metadata in (subject.metadata, draft.metadata)
    )
    return draft.changes_tensors or before != after or ss_before != ss_after or bool(mended.codes & {*_HASHES})


def _is_same(before: Adapter, after: Adapter) -> bool:
    """Whether every change that was there is there, with its scale up to the rounding of its alpha."""
    old, new = _meaning(before), _meaning(after)
    return old.keys() == new.keys() and all(_alike(old[key], new[key]) for key in old)


def _meaning(adapter: Adapter) -> dict[tuple[str, str, str], tuple[int | None, float | None]]:
    return {(one.module.key, one.algorithm.name, str(one.rows)): (one.rank, one.scale) for one in adapter.contributions}


def _alike(first: tuple[int | None, float | None], second: tuple[int | None, float | None]) -> bool:
    (rank, scale), (other_rank, other) = first, second
    if scale is None or other is None:
        return rank == other_rank and scale is other
    return rank == other_rank and close(scale, other)
