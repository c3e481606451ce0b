"""Many cases, one after the other, and the figures of them."""

import argparse
import faulthandler
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from fuzz import oracle
from fuzz.case import Case
from fuzz.generator import generate

CORPUS = Path(__file__).parent / "corpus"
# What compiled code hangs in does not end by a signal; the process does, with all its stacks.
_STUCK_SECONDS = 300
# An interrupt and a kill, which the command takes for its own.
_ENDED_FROM_OUTSIDE = (130, 143)


@dataclass
class Figures:
    """What came of cases so far."""

    seed: int
    statuses: Counter[tuple[str, int | None]] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    failed: dict[int, list[oracle.Violation]] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, 0)
    largest: tuple[int, int] = (0, 0)

    def add(self, number: int, case: Case, examined: oracle.Examined) -> None:
        self.statuses[case.target, examined.status] += 1
        self.violations.update({violation.kind for violation in examined.violations})
        if examined.violations:
            self.failed[number] = examined.violations
        self.cpu_seconds += examined.cpu_seconds
        self.slowest = max(self.slowest, (examined.cpu_seconds, number))
        self.largest = max(self.largest, (examined.peak_bytes, number))

    def lines(self) -> list[str]:
        verbs = sorted({verb for verb, _ in self.statuses})
        return [
            f"seed {self.seed}, {sum(self.statuses.values()):,} cases, {self.cpu_seconds:.0f} s of the processor",
            *(f"{verb}: {self._by_status(verb)}" for verb in verbs),
            f"most of the processor: {self.slowest[0]:.2f} s, case {self.slowest[1]}",
            f"most memory: {self.largest[0] / oracle.MEGABYTE:.0f} MB beyond what there was, case {self.largest[1]}",
            *(f"{kind}: {self.violations[kind]}" for kind in oracle.KINDS),
        ]

    def _by_status(self, verb: str) -> str:
        counts = {status: count for (name, status), count in self.statuses.items() if name == verb}
        shown = [f"status {status} {counts[status]:,}" for status in sorted(counts, key=str)]
        return f"{sum(counts.values()):,} cases, {', '.join(shown)}"


def run(seed: int, numbers: range) -> Figures:
    """Examines the cases of these numbers."""
    figures = Figures(seed)
    for number in numbers:
        case = generate(seed, number)
        figures.add(number, case, oracle.examine(case))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=sys.modules["fuzz"].__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=2000, help="how many cases")
    parser.add_argument("--first", type=int, default=0, help="the number of the first one")
    parser.add_argument("--case", type=int, help="only this one, shown with all that it printed")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="with --case: a new folder for its files")
    parser.add_argument("--save", metavar="NAME", help="with --case: what the corpus is to call it")
    arguments = parser.parse_args()
    if arguments.case is not None:
        sys.exit(_one(generate(arguments.seed, arguments.case), arguments.keep, arguments.save))
    sys.exit(_many(arguments.seed, range(arguments.first, arguments.first + arguments.cases)))


def _one(case: Case, keep: Path | None, save: str | None) -> int:
    if save:
        CORPUS.mkdir(exist_ok=True)
        (CORPUS / f"{save}.json").write_text(case.as_json())
    if keep:
        keep.mkdir()
    print(case.shown())
    examined = oracle.examine(case, keep=keep)
    print(f"status {examined.status}, {examined.cpu_seconds:.3f} s, {examined.peak_bytes / oracle.MEGABYTE:.1f} MB")
    print(ascii(examined.stdout), ascii(examined.stderr), sep="\n")
    for violation in examined.violations:
        print(f"{violation.kind}: {violation.says}")
    return bool(examined.violations)


def _many(seed: int, numbers: range) -> int:
    oracle.prepare()
    figures, resident = Figures(seed), oracle.resident()
    started, cpu_started = time.perf_counter(), time.process_time()
    for number in numbers:
        faulthandler.dump_traceback_later(_STUCK_SECONDS, exit=True)
        case = generate(seed, number)
        examined = oracle.examine(case)
        figures.add(number, case, examined)
        if examined.violations:
            print(case.shown())
            for violation in examined.violations:
                print(f"  {violation.kind}: {violation.says.strip().splitlines()[-1][:300]}")
            sys.stdout.flush()
        if examined.status in _ENDED_FROM_OUTSIDE:
            break
    faulthandler.cancel_dump_traceback_later()
    print(*figures.lines(), sep="\n")
    grown = (oracle.resident() - resident) / oracle.MEGABYTE
    took, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    print(f"the process has grown by {grown:.0f} MB in {took:.0f} s, {cpu:.0f} s of the processor with all checks")
    return bool(figures.failed)
