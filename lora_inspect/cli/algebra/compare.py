"""`lora-inspect compare`: several adapters, or all adapters in a folder."""

import sys
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import click

from lora_inspect.algebra.options import CompareRequest, folder_contradiction
from lora_inspect.cli import terminal
from lora_inspect.cli.algebra.made_account import percent
from lora_inspect.cli.progress_bar import progress_bar
from lora_inspect.cli.verb import VERBS, FilePath, Verb, declared_options, json_option
from lora_inspect.sentences import counted, listed, some

if TYPE_CHECKING:
    from lora_inspect.ops.compare import CompareResult, Distances, FolderResult, GroupMember, Pairwise
    from lora_inspect.reading.model.settings import Settings

# How many names of modules, of blocks and of spikes a line has.
_NAMES = 3

# No docstring: python -OO leaves those out.
_HELP = """\
Report how far adapters are from each other: difference, angle, best multiplier and common directions, by block.

`compare` compares the changes of the weights, at the multipliers after the colons. Names, ranks, alphas, element types
and the algorithm make no difference. The last lines report spikes and conflicts of adapters that are loaded together,
and recommend a command, with the share of each adapter in its result. For a FOLDER, `compare` groups the files that are
one change: resized, rescaled, renamed or cast.

\b
Example: lora-inspect compare style.safetensors:0.8 face.safetensors
"""


@click.command(cls=Verb, help=_HELP, short_help=VERBS["compare"])
@click.argument("adapters", nargs=-1, required=True, type=FilePath(), metavar="ADAPTER[:SETTING,...]...")
@declared_options(CompareRequest)
@json_option()
def compare(adapters: tuple[str, ...], as_json: bool, **asked: Any) -> None:
    """Read, compare and print."""
    from lora_inspect.files.discovery import is_collection
    from lora_inspect.ops.compare import compare as compare_files
    from lora_inspect.ops.compare import plan_compare
    from lora_inspect.reading.model.settings import parse_arguments

    request = CompareRequest(**asked)
    named = parse_arguments(adapters)
    if len(named) == 1 and is_collection(named[0][0]):
        _compare_folder(*named[0], request, as_json)
        return
    if len(named) == 1:
        _refuse_one(named[0][0])
    plan = plan_compare(named, request)
    for note in plan.notes:
        terminal.note(note)
    with progress_bar("Comparing", len(plan.modules)) as progress:
        result = compare_files(plan, progress, partial(progress_bar, "Trying a command"))
    if as_json:
        terminal.json_text(result.to_dict())
    else:
        _print(result, adapters)
    if not result.ok:
        sys.exit(1)


def _refuse_one(path: str) -> None:
    from lora_inspect.files.checkpoint import open_checkpoint

    open_checkpoint(path)
    raise click.UsageError(f"{path}: one adapter cannot be compared; name another one, or a folder of adapters.")


def _print(result: "CompareResult", named: Sequence[str]) -> None:
    """Print the numbers of the whole and of each block, with a sentence on the sum."""
    if len(named) == 2:
        terminal.line(f"{named[0]} and {named[1]}")
        terminal.facts(_facts(result))
    else:
        terminal.columns_of([(str(number), name) for number, name in enumerate(named, 1)])
        terminal.line(f"{counted(result.modules.shared, 'module')} in all of them")
        _print_matrices(result.distances)
    for name, keys in zip(named, result.modules.only, strict=True):
        if keys:
            others = "the other one lacks" if len(named) == 2 else "another one lacks"
            terminal.line(f"{name}: {counted(len(keys), 'module')} that {others} ({some(keys, _NAMES)})")
    terminal.line(_sentence(result))
    if len(result.blocks) > 1:
        terminal.line("")
        _print_blocks(result)
    terminal.line("")
    _print_stack(result, named)


def _facts(result: "CompareResult") -> list[tuple[str, str]]:
    best = result.best_multiplier
    return [
        ("modules", f"{result.modules.shared:,} in both"),
        ("norm", " and ".join(map(_number, result.norm))),
        ("relative difference", _cell(result.relative_difference)),
        ("cosine", _share(result.cosine)),
        ("best multiplier", f"{_cell(best.value)}, which leaves {_cell(best.left)}"),
        ("overlap", _share(result.overlap)),
        ("sign conflict", _share(result.sign_conflict)),
    ]


def _print_matrices(found: "Distances") -> None:
    numbers = [str(number) for number in range(1, len(found.norm) + 1)]
    matrices = {
        "relative difference": (found.relative_difference, _cell),
        "cosine": (found.cosine, _share),
        "best multiplier": (found.best_multiplier.value, _cell),
        "which leaves": (found.best_multiplier.left, _cell),
        "overlap": (found.overlap, _share),
        "sign conflict": (found.sign_conflict, _share),
    }
    for title, (matrix, spelled) in matrices.items():
        assert isinstance(matrix, list)  # of more than two adapters
        rows = [(number, *map(spelled, row)) for number, row in zip(numbers, matrix, strict=True)]
        terminal.line("")
        terminal.table(rows, (title, *numbers))
    terminal.line("")
    terminal.table([("", *map(_number, found.norm))], ("norm", *numbers))


def _print_blocks(result: "CompareResult") -> None:
    norms = [f"norm {number}" for number in range(1, len(result.norm) + 1)]
    if len(norms) > 2:
        rows = [
            (name, *map(_number, one.norm), _number(one.sum_energy), *_worst(one.overlap), *_worst(one.sign_conflict))
            for name, one in result.blocks.items()
        ]
        terminal.table(rows, ("block", *norms, "energy of the sum", "overlap", "of", "sign conflict", "of"))
        return
    pairs = [
        (
            *(name, *map(_number, one.norm), _cell(one.relative_difference)),
            *map(_share, (one.cosine, one.overlap, one.sign_conflict)),
        )
        for name, one in result.blocks.items()
    ]
    terminal.table(pairs, ("block", *norms, "difference", "cosine", "overlap", "sign conflict"))


def _worst(matrix: "Pairwise") -> tuple[str, str]:
    """Return the largest number of two adapters, and the numbers of both."""
    assert isinstance(matrix, list)  # of more than two adapters
    pairs = combinations(range(len(matrix)), 2)
    known = [(value, -one, -other) for one, other in pairs if (value := matrix[one][other]) is not None]
    if not known:
        return "-", ""
    value, one, other = max(known)
    return _share(value), f"{1 - one}, {1 - other}"


def _print_stack(result: "CompareResult", named: Sequence[str]) -> None:
    """Print the spikes, the two that conflict, and the recommendation with its command as a shell takes it.

    Above it are the shares of the adapters in the result of the command, which stays the last line.
    """
    stack = result.stack
    if not stack.spikes:
        terminal.line("spikes: none")
    for spike in stack.spikes[:_NAMES]:
        whose = "the sum" if spike.adapter is None else named[spike.adapter]
        following = "" if spike.times_next is None else f" and {spike.times_next:.3g} times the next value"
        terminal.line(
            f"spike of {whose}: {_number(spike.value)} in {spike.module}, {spike.times_median:.3g} times the median of "
            f"such layers{following}"
        )
    if len(stack.spikes) > _NAMES:
        terminal.line(f"{counted(len(stack.spikes) - _NAMES, 'further spike')}")
    if stack.conflict is None:
        terminal.line("conflict: none")
    else:
        one, other = (named[at] for at in stack.conflict.adapters)
        blocks = some(stack.conflict.blocks, _NAMES)
        terminal.line(f"conflict: {one} and {other} work against each other in {blocks}")
    if stack.recommendation.carried is not None:
        terminal.line("carried by the command below:")
        shares = map(_carried, stack.recommendation.carried)
        terminal.columns_of([(f"  {name}", share) for name, share in zip(named, shares, strict=True)])
    terminal.line(f"recommended: {stack.recommendation.sentence}")
    # Of any length: a part of a command would be another one.
    terminal.laid_out([[terminal.StyledText(f"  {terminal.spelled(stack.recommendation.command)}")]])


def _carried(share: float | None) -> str:
    return "left out" if share is None else percent(share)


def _cell(value: "Pairwise") -> str:
    assert not isinstance(value, list)  # of two adapters
    return _number(value)


def _share(value: "Pairwise") -> str:
    """Return a number from -1 to 1 as text."""
    assert not isinstance(value, list)  # of two adapters
    return "-" if value is None else f"{round(value, 4) + 0.0:.4f}"


def _number(value: float | None) -> str:
    """Return four digits; a number that is not 0 only by rounding keeps its size."""
    return "-" if value is None else f"{value:.4g}"


def _sentence(result: "CompareResult") -> str:
    from lora_inspect.algebra.measures.stack_cases import INDEPENDENT

    if result.sum_energy is None:
        return "none of them changes anything"
    together = f"together they have {result.sum_energy:.1f} times the energy of independent adapters"
    alike = result.stack.agreement
    if alike >= INDEPENDENT:
        return f"{together}: they push the same direction"
    return f"{together}: they work against each other" if alike <= -INDEPENDENT else f"{together}: they are independent"


def _compare_folder(folder: str, settings: "Settings", request: CompareRequest, as_json: bool) -> None:
    from lora_inspect.files.discovery import files_below
    from lora_inspect.ops.compare import compare_folder

    if wrong := folder_contradiction(request):
        raise click.UsageError(wrong)
    # Each file is read once for its header, and once for its numbers.
    length = 2 * len(files_below(folder).weights)
    with progress_bar("Comparing", length) as progress:
        result = compare_folder(folder, settings, request, progress)
    for note in result.notes:
        terminal.note(note)
    if as_json:
        terminal.json_text(result.to_dict())
    else:
        _print_folder(result)


def _print_folder(result: "FolderResult") -> None:
    members = {one.path: one for one in result.members}
    for group in result.groups:
        terminal.line(f"{counted(len(group), 'file')} with one change:")
        terminal.columns_of(
            [(f"  {path}", _relation(members[path], group[0]) if path in members else "") for path in group]
        )
    alone = len(result.adapters) - sum(map(len, result.groups))
    if alone:
        terminal.line(f"{counted(alone, 'adapter')} with a change of {'its' if alone == 1 else 'their'} own")
    if result.skipped:
        terminal.line(f"{counted(len(result.skipped), 'file')} not compared")
    for one in result.skipped:
        terminal.note(one.reason)


def _relation(one: "GroupMember", first: str) -> str:
    """Return the relation of a file to another one of its group, named unless it is the first, and their difference."""
    done = [f"rescaled by {one.multiplier:.4g}" if name == "rescaled" else name for name in one.how]
    other = "" if one.of == first else f" {'from' if done else 'as'} {one.of}"
    return f"{listed(done) or 'the same'}{other}, difference {one.difference:.2g}"
