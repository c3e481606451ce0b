"""Reruns the measured cases of a program's record against another checkout or wheel of it.

    python tests/rerun_programs.py PROGRAM PATH [--family FAMILY]... [--kind KIND]...

PROGRAM is the name of a record, as `compat --for` takes it, and PATH a checkout or a wheel of the program, whose own
code loads every file of the grid into small models on the CPU. A line is printed for each case in which it does
otherwise than the record says: the family, the names, the kind, the verdict of the record and what was seen. Then come
the counts. The status is 1 where a case differs, and 3 for a path without the program.
"""

import argparse
import logging
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Program(NamedTuple):
    """The module of `reruns` that runs a program, a file that its sources have, and the folders that may hold them."""

    module: str
    needs: str
    folders: tuple[str, ...] = ("",)


_COMFYUI = Program("comfyui", "comfy/lora.py", ("", "ComfyUI"))
_MUSUBI = Program("musubi", "musubi_tuner/networks/lora.py", ("src", ""))
_SD_SCRIPTS = Program("sd_scripts", "networks/lora_flux.py")
# By the name of the record. Nothing of a program may be imported before its path is known.
PROGRAMS = {
    "ai-toolkit": Program("ai_toolkit", "toolkit/lora_special.py"),
    "comfyui": _COMFYUI,
    "comfyui-0.3.64": _COMFYUI,
    "diffusers": Program("diffusers", "diffusers/loaders/lora_pipeline.py", ("src", "")),
    "lycoris": Program("lycoris", "lycoris/wrapper.py"),
    "musubi": _MUSUBI,
    "musubi-networks": _MUSUBI,
    "onetrainer": Program("onetrainer", "modules/util/load_lora_util.py"),
    "peft": Program("peft", "peft/peft_model.py", ("src", "")),
    "sd-scripts": _SD_SCRIPTS,
    "sd-scripts-flux-merge": _SD_SCRIPTS,
}


def source(program: Program, path: Path, unpacked: Path) -> Path | str:
    """The folder that imports of the program come from, or the fault of the path, as "problem; fix"."""
    if path.suffix == ".whl" and path.is_file():
        try:
            with zipfile.ZipFile(path) as wheel:
                wheel.extractall(unpacked)
        except zipfile.BadZipFile:
            return "it is no wheel; name a whole one or a checkout"
        path = unpacked
    if not path.is_dir():
        return "there is no such folder or wheel; name a checkout or a wheel of the program"
    for folder in program.folders:
        if (path / folder / program.needs).is_file():
            return path / folder
    return f"it holds no {program.needs}; name a checkout or a wheel of the program"


def rerun(
    program: ModuleType, record: str, families: Sequence[str], kinds: Sequence[str], say: Callable[[str], None]
) -> Counter[str]:
    """Runs the cases of these families and kinds, of all without any, and says each one that differs.

    Returns the counts of "cases", "unknown" and "differs".
    """
    from program_grid import differs, is_gap
    from reruns import Asked

    from lora_inspect.ops.compat import compat

    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for case in program.cases(record, Asked(tuple(families), tuple(kinds)), Path(folder)):
            (verdict,) = compat(str(case.file), record).verdicts
            seen = case.seen(verdict)
            counts["cases"] += 1
            if is_gap(verdict):
                counts["unknown"] += 1
            elif why := differs(verdict, seen):
                counts["differs"] += 1
                said = f"{verdict.verdict} {_factors(verdict.factors)}".strip()
                found = f"{seen.verdict} {_factors(seen.factors)}".strip()
                say(f"{case.family} | {case.names} | {case.kind} | recorded {said} | seen {found} | {why}"[:300])
    return counts


def _imported(program: Program, folder: Path) -> ModuleType:
    """The module that runs the program, whose packages are to come from the folder."""
    sys.path.insert(0, str(folder))
    module = import_module(f"reruns.{program.module}")
    # A package of this project is called as one of sd-scripts is, which has no `__init__.py` and would lose to it.
    package = program.needs.partition("/")[0]
    if not (folder / package / "__init__.py").exists():
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = [str(folder / package)]
    return module


def _factors(factors: dict[float, int]) -> str:
    return "" if set(factors) <= {1.0} else " ".join(f"x{factor:g}" for factor in factors)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program", metavar="PROGRAM", choices=sorted(PROGRAMS))
    parser.add_argument("path", metavar="PATH", type=Path)
    parser.add_argument("--family", metavar="FAMILY", action="append", default=[])
    parser.add_argument("--kind", metavar="KIND", action="append", default=[])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as unpacked:
        folder = source(PROGRAMS[options.program], options.path, Path(unpacked))
        if isinstance(folder, str):
            print(f"{options.path}: {folder}", file=sys.stderr)
            return 3
        program = _imported(PROGRAMS[options.program], folder.resolve())
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
        counts = rerun(program, options.program, options.family, options.kind, partial(print, flush=True))
        print(
            f"{options.program} {program.version()}: {counts['cases']} cases, {counts['unknown']} without a verdict, "
            f"{counts['differs']} differ"
        )
    return 1 if counts["differs"] else 0


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    sys.exit(main())
