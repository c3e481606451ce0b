"""Writes the pages of programs from the rules of the programs that load adapters: `python docs/write_programs.py`.

docs/programs.md has the cells, the folders and the messages, docs/programs_names.md the naming schemes and
docs/programs_kinds.md the kinds of adapters. Of both the programs in `known/trainers/` have pages of their own.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from program_files.folders import FOLDERS  # noqa: E402
from program_files.judged import Judged, own_scheme  # noqa: E402
from program_files.kinds import KINDS  # noqa: E402
from program_files.spellings import SPELLINGS  # noqa: E402

from lora_inspect.architectures import every  # noqa: E402
from lora_inspect.programs import PROGRAMS, files, in_file  # noqa: E402
from lora_inspect.programs.record import FAILS, SILENT, Program, Strangers  # noqa: E402

DOCS = ROOT / "docs"
HEAD = """# Programs and the files that they load

`lora-inspect compat FILE` reports how each program applies your file. These pages have its answers for small adapters
in every naming scheme and of every kind. `docs/write_programs.py` writes them from the rules in
`lora_inspect/programs/known/`, one file for each program. To find a rule, the program's own loading code ran over a
small model, in the version given here. Every weight was compared with the meaning of the file. A cell with `°` was only
read in the source. "Not tested" files are a gap of these pages, not a fault of the program.

| question | page |
|---|---|
| Does a program load the names of my file? | [names](programs_names.md), [in trainers](programs_names_trainers.md) |
| Does it apply RS-LoRA, DoRA, LoHa, LoKr or OFT as trained? | [kinds](programs_kinds.md), \
[in trainers](programs_kinds_trainers.md) |
| Does it serve a PEFT folder of a language model? | [folders](#peft-folders-of-language-models) |
| Which message does it print? | [messages](programs_messages.md) |
| How do whole cases go, from the file to the picture? | [cases](programs_cases.md) |

The next table gives the day of each program's last run, or of its reading. It counts the families with any names that
the program knows, their files in the tables, and the files that nobody tested:

"""
LEGEND = """
## Cells

| cell | `compat` says | the program |
|---|---|---|
| `=` | same meaning | applies the meaning of the file; `=+`: with an [option of its own](programs_messages.md) |
| `x0.5` | wrong strength | applies this share of it; several shares if modules differ |
| `lost` | DoRA lost | applies plain LoRA without the magnitudes; `lost x0.5` at that scale |
| `norm` | DoRA wrong | divides the magnitudes by the base's norms, or by those of the other axis |
| `other` | wrong change | makes another change of it |
| `part 50%` | partly loaded | applies this share of the changes |
| `none` | nothing loaded | applies nothing |
| `ref` | refused | stops with an error |
| `?` | not tested | was not tried on such files |
| ` ` | has no such models | has no models of the family; its tables have no such row |

All but `ref` happen silently, unless a `!` marks a message of the program. Two cells with a stroke are files with an
alpha tensor in every module, and files without any. Rank is 4 and alpha 3, so `x0.5` is RS-LoRA without its root, and
`x1.333` a LoRA without its alpha.
"""
NAMES = """# Names that {who} loads

`lora-inspect convert FILE --to PROGRAM` keeps names that a program loads, or writes such names.
`docs/write_programs.py` writes this page; [the legend](programs.md#cells) explains the cells. The files are plain LoRA
of every layer in the blocks of the model, and of no other layer. The columns are the [naming
schemes](converting_for_programs.md#naming-schemes), over the layout of their programs: `bare` has no prefix, `dif` the
paths of diffusers instead. `A/B` has factors spelled `lora_A` and not `lora_down`, and `d/u` the other way round;
`diffusers`, `bare` and `peft` are A/B, and `peft` has its config. An empty cell is a family without such names. A
missing column is not tested. The program has no models of a missing family, or nobody tested them.
"""
KINDS_HEAD = """# Kinds of adapters that {who} applies

`lora-inspect compat FILE` judges your file. `docs/write_programs.py` writes this page; [the legend](programs.md#cells)
explains the cells. The file of each program has the names that `convert --to` writes for it, and is of the family in
the row `family`. It has an alpha tensor in each module if these names have one.

"""
FOLDERS_HEAD = """
## PEFT folders of language models

The model is of the Llama line. Every dense layer in two blocks is adapted, at rank 4 if no other rank is given.

"""
MESSAGES = """# Messages of programs that load adapters

`lora-inspect compat FILE` shows the message that a program prints for your file. `docs/write_programs.py` writes this
page. It gives the treatment of unused keys in each program, and its messages for the files of
[these pages](programs.md). KEY is a key of the file.

"""
# Those that programs for pictures, videos and sound have models of.
FAMILIES = [one for one in every() if any(layout.kohya_prefix for layout in one.layouts)]
# The most kinds in one item of a list.
MOST_KINDS = 6
# The families that stand for the others, as far as a program knows them.
REFERENCES = ("wan", "flux", "sdxl", "qwen_image", "z_image")


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, as wide as its cells, so that it reads well as it is written."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = (" | ".join(map(str.ljust, row, widths)) for row in rows)
    return [f"| {head} |", "|" + "|".join("-" * (width + 2) for width in widths) + "|", *(f"| {row} |" for row in body)]


def grouped(rows: Mapping[str, tuple[str, ...]]) -> list[tuple[list[str], tuple[str, ...]]]:
    """Families with rows that agree wherever both have a file, and what they have together."""
    groups: list[tuple[list[str], tuple[str, ...]]] = []
    for name, row in rows.items():
        for at, (names, own) in enumerate(groups):
            if all(not a or not b or a == b for a, b in zip(own, row, strict=True)):
                groups[at] = ([*names, name], tuple(a or b for a, b in zip(own, row, strict=True)))
                break
        else:
            groups.append(([name], row))
    return groups


def names_of(judged: Judged, program: Program) -> Iterator[str]:
    """The section of a program on names; nothing where none are known."""
    rows = judged.names(program)
    if not rows:
        return
    kept = [at for at in range(len(SPELLINGS)) if any(set(row[at]) - set("?/") for row in rows.values())]
    yield from ("", f"## {program.title} {program.version} (`{program.name}`)", "")
    cells = [(_listed(names, rows, judged), *(row[at] for at in kept)) for names, row in grouped(rows)]
    yield from table([("", *(SPELLINGS[at].title for at in kept)), *cells])


def _listed(names: Sequence[str], rows: Collection[str], judged: Judged) -> str:
    """Families by name, but for most of them all."""
    if len(names) <= len(rows) / 2 or len(rows) < len(judged.families):
        return ", ".join(names)
    return f"every {'other ' if len(names) < len(rows) else ''}family"


def kinds_of(judged: Judged, programs: Iterable[Program]) -> Iterator[str]:
    """The table of kinds, and where other families differ from those in its head."""
    columns, elsewhere = [], []
    for program in programs:
        if rows := judged.kinds(program):
            first = next((name for name in REFERENCES if name in rows), next(iter(rows)))
            columns.append((program.title, program.version, own_scheme(program, first), first, *rows[first]))
            elsewhere.extend(_differences(program, rows, first))
    if columns:
        heads = ("", "version", "names", "family", *(kind.title for kind in KINDS))
        yield from table(list(zip(heads, *columns, strict=True)))
        yield from ("", "Other families differ:", "", *elsewhere)


def _differences(program: Program, rows: Mapping[str, tuple[str, ...]], first: str) -> Iterator[str]:
    """The other families of a program, with what they have otherwise than the first."""
    others = {
        name: tuple(cell if cell != own else "" for cell, own in zip(row, rows[first], strict=True))
        for name, row in rows.items()
        if name != first
    }
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, row in others.items():
        groups.setdefault(row, []).append(name)
    for row, names in groups.items():
        alike: dict[str, list[str]] = {}
        for kind, cell in zip(KINDS, row, strict=True):
            alike.setdefault(cell, []).append(kind.title)
        alike.pop("", None)
        end = "" if alike else " no difference."
        yield from _item(f"**{program.title} {program.version}**, {_families(names)}:{end}")
        for cell, titles in alike.items():
            for at in range(0, len(titles), MOST_KINDS):
                yield from _item(f"`{cell}`: {', '.join(titles[at : at + MOST_KINDS])}", depth=1)


def _families(names: Iterable[str]) -> str:
    """Families as one span of code."""
    return f"`{', '.join(names)}`"


def _item(text: str, depth: int = 0) -> list[str]:
    """An item of a list, or at `depth` 1 of a list in an item, in lines of the usual length."""
    indent = "  " * depth
    lines = wrap(text, 118 - len(indent), break_long_words=False, break_on_hyphens=False)
    return [f"{indent}{'  ' if line is not lines[0] else '- '}{line}" for line in lines]


def folders_of(judged: Judged) -> list[str]:
    """The table of folders, of the programs that load any."""
    columns = [(one.title, one.version, *cells) for one in judged.programs if (cells := judged.folders(one))]
    return table(list(zip(("", "version", *FOLDERS), *columns, strict=True))) if columns else []


def counts_of(judged: Judged) -> list[str]:
    """Returns the numbers of files that were judged for each program, and of those that nobody tested."""
    rows = [("", "last run", "families", "files", "not tested"), *(_counted(judged, one) for one in judged.programs)]
    whole = sum(map(judged.counts, judged.programs), Counter())
    return table([*rows, ("in all", "", "", *_of_files(whole))])


def _counted(judged: Judged, program: Program) -> tuple[str, ...]:
    known = len(judged.names(program))
    families = f"{known} of {len(judged.families)}" if known else "language models"
    return (f"{program.title} {program.version}", program.ran, families, *_of_files(judged.counts(program)))


def _of_files(count: Counter[bool]) -> tuple[str, str]:
    return str(count.total()), f"{count[True]} ({count[True] / max(count.total(), 1):.0%})"


def messages_of(judged: Judged) -> Iterator[str]:
    """The treatment of unused keys in each program, and its messages where it refuses a file or needs an option."""
    for program in judged.programs:
        yield from _item(f"**{program.title} {program.version}**:")
        for way in _strangers_of(program):
            yield from _item(way, depth=1)
        if says := ", ".join(_code(one) for one in sorted(judged.says[program.name])):
            yield from _item(f"says {says}", depth=1)


def _strangers_of(program: Program) -> Iterator[str]:
    """Each treatment of unused keys, with the families that it applies to."""
    ways: dict[str, list[str]] = {}
    for loader in program.loaders:
        told = {"": [loader.strangers], "keys of no module": [loader.others or loader.strangers]}
        told["modules that it does not find"] = [rule.unfound for rule in loader.rules if rule.unfound]
        words = {which: list(dict.fromkeys(map(_in_words, own))) for which, own in told.items()}
        others = [f"{which} {' or '.join(own)}" for which, own in words.items() if which and own not in ([], words[""])]
        ways.setdefault(", ".join([*words[""], *others]), []).extend(loader.families or ("others",))
    for way, families in ways.items():
        yield f"{way} ({_families(dict.fromkeys(families))})" if len(ways) > 1 else way


def _code(text: str) -> str:
    """Text as a program prints it, which may have backticks of its own."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _in_words(strangers: Strangers) -> str:
    does = {SILENT: "ignored silently", FAILS: "refused with"}.get(strangers.does, "ignored with the message")
    says = f" {_code(strangers.says)}" if strangers.says else ""
    beyond = f"; refused if they are more than {strangers.most}" if strangers.most is not None else ""
    return does + says + (f"{beyond} {_code(strangers.beyond)}" if beyond and strangers.beyond else beyond)


def _trainers() -> set[str]:
    """The names of the programs that train adapters too."""
    return {one.name for file in files() if file.startswith("trainers.") for one in in_file(file)}


@cache
def pages() -> dict[str, str]:
    """The pages as they should be, by the names of their files."""
    with tempfile.TemporaryDirectory() as folder:
        judged = Judged(Path(folder), PROGRAMS.values(), FAMILIES)
        trainers = _trainers()
        others = [one for one in judged.programs if one.name not in trainers]
        apart = {"": others, "_trainers": [one for one in judged.programs if one.name in trainers]}
        names = {end: [line for one in own for line in names_of(judged, one)] for end, own in apart.items()}
        kinds = {end: list(kinds_of(judged, own)) for end, own in apart.items()}
        folders = folders_of(judged)
    parts = ((HEAD, counts_of(judged)), (LEGEND, ()), (FOLDERS_HEAD, folders))
    who = {"": "every program", "_trainers": "every trainer"}
    return {
        "programs.md": "".join(_lines(head, lines) for head, lines in parts),
        "programs_messages.md": _lines(MESSAGES, messages_of(judged)),
        **{f"programs_names{end}.md": _lines(NAMES.format(who=who[end]), own) for end, own in names.items()},
        **{f"programs_kinds{end}.md": _lines(KINDS_HEAD.format(who=who[end]), own) for end, own in kinds.items()},
    }


def _lines(head: str, lines: Iterable[str]) -> str:
    """A part of a page."""
    return head + "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
