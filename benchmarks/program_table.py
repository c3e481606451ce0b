"""The verdict of every program on a hundred adapters of real names and widths: `python benchmarks/program_table.py`.

Prints the table of verdicts, and for each program how many files of families that it has are unknown. `--unknown`
lists these with the reasons, the commonest first.
"""

import argparse
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))

from real_shapes import recorded, write

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.programs import PROGRAMS
from lora_inspect.programs.verdict import UNTESTED, judge_each
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.identify import adapter_candidates, with_paths

SHORT = {
    "same meaning": "same", "wrong strength": "strength", "DoRA lost": "lost", "DoRA wrong": "wrong",
    "wrong change": "other", "partly loaded": "partly", "nothing loaded": "nothing", "refused": "refused",
    "not tested": "?",
    "has no such models": "",
}  # fmt: skip


class Cell(NamedTuple):
    """The verdict of a program on an adapter; `has_family` says if the program has models of its family."""

    adapter: str
    program: str
    verdict: str
    says: str
    has_family: bool


def has_family(program: str, family: str) -> bool:
    """Returns True if a program loads models of the family. PEFT, which names none, is for language models."""
    return any(family in one.families for one in PROGRAMS[program].reads) or (program == "peft" and family == "llm")


def cells(folder: Path, only: str = "") -> list[Cell]:
    """The verdicts of all programs on all adapters, which are written into the folder."""
    found = []
    for name, one in recorded().items():
        if only in name:
            adapter = read_adapter(open_checkpoint(write(name, folder / name)))
            families = adapter_candidates(adapter)
            for judged in judge_each(with_paths(adapter, families), families, PROGRAMS.values()):
                has = has_family(judged.program.name, one["family"])
                found.append(Cell(name, judged.program.name, judged.verdict, judged.says, has))
    return found


def table(found: list[Cell]) -> str:
    """The verdicts, one row for each adapter and one column for each program."""
    programs = list(dict.fromkeys(one.program for one in found))
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    for one in found:
        rows[one.adapter][one.program] = SHORT[one.verdict] if one.has_family else "-"
    programs = [one for one in programs if any(row[one] != "-" for row in rows.values())]
    width = max(map(len, rows))
    lines = [" " * width + " " + " ".join(f"{program[:8]:8}" for program in programs)]
    lines += [f"{name:{width}} " + " ".join(f"{row[one]:8}" for one in programs) for name, row in rows.items()]
    return "\n".join(lines)


def shares(found: list[Cell]) -> dict[str, tuple[int, int]]:
    """Of each program the pairs with files of its families, and the unknown among them."""
    meant = [one for one in found if one.has_family]
    pairs = Counter(one.program for one in meant)
    unknown = Counter(one.program for one in meant if one.verdict == UNTESTED)
    return {program: (pairs[program], unknown[program]) for program in pairs}


def main() -> None:
    """Prints the table and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unknown", action="store_true", help="list the unknown pairs by reason")
    parser.add_argument("--only", default="", help="adapters whose name contains this")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = cells(Path(folder), arguments.only)
    print(table(found))
    print()
    for program, (pairs, unknown) in sorted(shares(found).items(), key=lambda one: -one[1][1]):
        print(f"{program:24} {pairs:4} pairs, {unknown:3} unknown, {unknown / pairs:6.1%}")
    pairs, unknown = (sum(column) for column in zip(*shares(found).values(), strict=True))
    print(f"{'all':24} {pairs:4} pairs, {unknown:3} unknown, {unknown / pairs:6.1%}")
    if arguments.unknown:
        reasons: dict[str, list[str]] = defaultdict(list)
        for one in found:
            if one.has_family and one.verdict == UNTESTED:
                reasons[one.says].append(f"{one.adapter} in {one.program}")
        for says, pairs_of in sorted(reasons.items(), key=lambda one: -len(one[1])):
            print(f"\n{len(pairs_of)} {says}\n  " + ", ".join(pairs_of))


if __name__ == "__main__":
    main()
