"""What every program makes of the small adapters, counted as it is asked for."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from lora_inspect import schemes
from lora_inspect.architectures import every
from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.record import Architecture
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.programs.record import READ, Program
from lora_inspect.programs.verdict import (
    LOST,
    NOTHING,
    OTHER,
    PARTLY,
    REFUSED,
    SAME,
    STRENGTH,
    UNJUDGED,
    WRONG,
    Verdict,
    judge_each,
)
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.identify import with_paths
from program_files.folders import FOLDERS
from program_files.kinds import KINDS, Kind
from program_files.spellings import SPELLINGS, Spelling, spelled
from program_files.written import File

# The words of cells.
SHORT = {
    SAME: "=",
    STRENGTH: "",
    LOST: "lost",
    WRONG: "norm",
    OTHER: "other",
    PARTLY: "part",
    NOTHING: "none",
    REFUSED: "ref",
    **dict.fromkeys(UNJUDGED, "?"),
}


class Seen(NamedTuple):
    """What the programs make of one file, by their names, and which names its tensors and modules have."""

    verdicts: Mapping[str, Verdict]
    names: frozenset[str]


class Judged:
    """The verdicts of `programs` on all files of `families` and of a language model, which are written into a `folder`.

    `says` is what each program says of those that were asked for.
    """

    def __init__(self, folder: Path, programs: Iterable[Program], families: Iterable[Architecture]) -> None:
        self._folder = folder
        self._read: dict[object, Seen] = {}
        self.programs = sorted(programs, key=lambda one: (one.title.lower(), one.name))
        self.families = tuple(families)
        self._spelled = {
            (family.name, spelling.title): tuple(
                self._seen(file, family) for alpha in (True, False) if (file := spelled(spelling, family, alpha))
            )
            for family in self.families
            for spelling in SPELLINGS
        }
        language = next(one for one in every() if one.name == "llm")
        self._folders = {title: self._seen(file, language) for title, file in FOLDERS.items()}
        self._kinds: dict[tuple[str, str, str], Seen | None] = {}
        self._counted: dict[str, dict[int, bool]] = {one.name: {} for one in self.programs}
        self.says: dict[str, set[str]] = {one.name: set() for one in self.programs}

    def names(self, program: Program) -> dict[str, tuple[str, ...]]:
        """The cells of each family that the program knows names of, in the order of SPELLINGS."""
        known = [family for family in self.families if self._knows(program, family)]
        return {family.name: tuple(self._of_names(program, family, one) for one in SPELLINGS) for family in known}

    def kinds(self, program: Program) -> dict[str, tuple[str, ...]]:
        """The cells of each family of which plain LoRA is known in the program's own names, in the order of KINDS."""
        plain = {family.name: self._of_kind(program, family, KINDS[0]) for family in self.families}
        known = [family for family in self.families if (seen := plain[family.name]) and _is_known(seen, program)]
        return {
            family.name: tuple(self._cell(self._of_kind(program, family, kind), program) for kind in KINDS)
            for family in known
        }

    def folders(self, program: Program) -> tuple[str, ...]:
        """The cells in the order of FOLDERS; none where not even the first is known."""
        seen = list(self._folders.values())
        return tuple(self._cell(one, program) for one in seen) if _is_known(seen[0], program) else ()

    def counts(self, program: Program) -> Counter[bool]:
        """How many files were asked for of a program, by whether it is unknown what it makes of them."""
        return Counter(self._counted[program.name].values())

    def _knows(self, program: Program, family: Architecture) -> bool:
        return any(_is_known(seen, program) for one in SPELLINGS for seen in self._spelled[family.name, one.title])

    def _of_names(self, program: Program, family: Architecture, spelling: Spelling) -> str:
        cells = [self._cell(seen, program) for seen in self._spelled[family.name, spelling.title]]
        return "/".join(dict.fromkeys(cells))

    def _of_kind(self, program: Program, family: Architecture, kind: Kind) -> Seen | None:
        scheme = own_scheme(program, family.name)
        asked = kind.title, scheme, family.name
        if scheme and asked not in self._kinds:
            file = kind.file(schemes.by_name(scheme), family)
            self._kinds[asked] = self._seen(file, family) if file else None
        return self._kinds.get(asked)

    def _cell(self, seen: Seen | None, program: Program) -> str:
        """A cell of a table, counted; empty without a file."""
        if seen is None:
            return ""
        verdict = seen.verdicts[program.name]
        self._counted[program.name][id(seen)] = verdict.verdict in UNJUDGED
        if verdict.verdict in (REFUSED, SAME) and verdict.says:
            self.says[program.name].add(_without_keys(verdict.says, seen.names))
        return shown(verdict)

    def _seen(self, file: File, family: Architecture) -> Seen:
        # Several schemes may have the same names.
        asked = family.name, *file.tensors.items(), *file.metadata.items(), str(file.config)
        if asked not in self._read:
            self._read[asked] = self._judged(file, family)
        return self._read[asked]

    def _judged(self, file: File, family: Architecture) -> Seen:
        path = file.write(self._folder / str(len(self._read)))
        adapter = read_adapter(open_checkpoint(path), file.settings)
        adapter.refuse()
        families = (Detection(family, family.layouts[0], None, ""),)
        adapter = with_paths(adapter, families)
        verdicts = judge_each(adapter, families, self.programs)
        # A program that misses an alpha names it, and InvokeAI cuts `lora_` off.
        alphas = (f"{module}.alpha" for module in adapter.modules)
        cut = (module.removeprefix("lora_") for module in adapter.modules)
        names = (*file.tensors, *adapter.modules, *alphas, *cut)
        return Seen({one.program.name: one for one in verdicts}, frozenset(names))


def own_scheme(program: Program, family: str) -> str:
    """The naming scheme in which the program loads files of the family best; empty where none is known."""
    return program.schemes.get(family, program.schemes.get("", ""))


def _is_known(seen: Seen, program: Program) -> bool:
    return seen.verdicts[program.name].verdict not in UNJUDGED


def _without_keys(says: str, names: frozenset[str]) -> str:
    """What a program says, with KEY for the names of one file."""
    return re.sub(r"[\w.]+\w", lambda found: "KEY" if found[0] in names else found[0], says)


def shown(verdict: Verdict) -> str:
    """A verdict as a cell has it."""
    short = SHORT[verdict.verdict]
    strengths = [f"x{factor:g}" for factor in verdict.factors]
    if verdict.verdict == STRENGTH or (verdict.verdict == LOST and strengths != ["x1"]):
        short = " ".join(filter(None, (short, *strengths)))
    if verdict.verdict == PARTLY and (missing := re.search(r"(\d+) of (\d+) changes", verdict.says)):
        short += f" {1 - int(missing[1]) / int(missing[2]):.0%}"
    if verdict.verdict in (PARTLY, NOTHING, LOST) and not verdict.silent:
        short += "!"
    if verdict.verdict == SAME and verdict.says:
        short += "+"
    return short + ("°" if verdict.by == READ else "")
