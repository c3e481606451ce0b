"""The fixes of --fix, each without a guess, and the proof that the file keeps its meaning."""

from collections.abc import Callable, Iterable

from lora_inspect.checking import hash_lints
from lora_inspect.checking.rules import RULES, find_problems
from lora_inspect.checking.subject import CheckRule, Draft, Subject, read_again
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.safetensors.writer import in_file_order, write_contents
from lora_inspect.progress import Progress
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.evidence import Problem, close

_HASHES = (hash_lints.STALE, hash_lints.EMPTY)


class Fixing(NamedTuple):
    """The file after its fixes: codes of the fixed problems, and a sentence on each fix."""

    draft: Draft
    codes: frozenset[str]
    told: tuple[str, ...]


def fixing(subject: Subject, problems: Iterable[Problem]) -> Fixing:
    """Plan the fixes of the problems; this reads only a few numbers and writes nothing."""
    draft, codes, told = Draft(subject.checkpoint), set(), []
    found = {problem.code for problem in problems}
    if len(subject.checkpoint.files) != 1 or len(subject.headers) != 1:
        return Fixing(draft, frozenset(), ())
    for rule in RULES:
        if rule.code not in found:
            continue
        if rule.rewritten or rule.code in _HASHES:
            codes.add(rule.code)
        elif done := _fixed(rule, subject, draft):
            codes.add(rule.code)
            told += done
    if any(rule.rewritten for rule in RULES if rule.code in codes):
        told.append("rewrote the header")
    return Fixing(draft, frozenset(codes), tuple(told))


def write_fixed(
    subject: Subject, fixed: Fixing, output: str, force: bool, prove: Callable[[str], None], progress: Progress
) -> tuple[str, ...]:
    """Write the file, and return a sentence on each fix; `progress` counts bytes, some of them several times."""
    draft, told = fixed.draft, list(fixed.told)
    if _hashes_changed(subject, fixed):
        told += hash_lints.recompute(subject, draft, progress)
    contents = list(draft.contents.values())
    write_contents(output, contents, draft.metadata, subject.checkpoint.inputs, force, prove, progress)
    return tuple(told)


def check_fixed(subject: Subject, codes: frozenset[str], other: Subject, output: str) -> None:
    """Raise LoraInspectError if the fixed file has another meaning, or still has a problem to fix."""
    left = sorted(codes & {problem.code for problem in find_problems(other, tensors=False)})
    if left or not _is_same(subject.adapter, other.adapter):
        why = f"still has {left[0]}" if left else "would have another meaning"
        raise RefusedError(
            output, f"the fixed {subject.checkpoint.path} {why}, so nothing was written", "fix it by hand"
        )


def open_fixed(path: str, subject: Subject) -> Subject:
    """Open the written file with the settings of the file that it was made from."""
    return Subject(open_checkpoint(path), subject.settings, subject.progress, subject.look_at_sizes)


def _fixed(rule: CheckRule, subject: Subject, draft: Draft) -> list[str]:
    """Return the rule's changes of the draft; none if the file would have another meaning."""
    if rule.fix is None:
        return []
    before = dict(draft.metadata)
    done = list(rule.fix(subject, draft))
    if draft.metadata != before and not _is_same(subject.adapter, read_again(subject, draft.metadata)):
        draft.metadata = before
        return []
    return done


def _hashes_changed(subject: Subject, fixed: Fixing) -> bool:
    """Return True if the stated hashes were wrong or their data or metadata changed."""
    draft = fixed.draft
    before = [info.name for info in subject.checkpoint.tensors.values()]
    after = [plan.name for plan in in_file_order(content.plan for content in draft.contents.values())]
    ss_before, ss_after = (
        {key: value for key, value in metadata.items() if key.startswith("ss_")}
        for metadata in (subject.metadata, draft.metadata)
    )
    return draft.changes_tensors or before != after or ss_before != ss_after or bool(fixed.codes & {*_HASHES})


def _is_same(before: Adapter, after: Adapter) -> bool:
    """Return True if every change is still there, with its scale up to the rounding of its alpha."""
    old, new = _meaning(before), _meaning(after)
    return old.keys() == new.keys() and all(_are_equal(old[key], new[key]) for key in old)


def _meaning(adapter: Adapter) -> dict[tuple[str, str, str], tuple[int | None, float | None]]:
    return {(one.module.key, one.algorithm.name, str(one.rows)): (one.rank, one.scale) for one in adapter.contributions}


def _are_equal(first: tuple[int | None, float | None], second: tuple[int | None, float | None]) -> bool:
    (rank, scale), (other_rank, other) = first, second
    if scale is None or other is None:
        return rank == other_rank and scale is other
    return rank == other_rank and close(scale, other)
