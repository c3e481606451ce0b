"""Installs both forms into fresh environments, with the oldest and the newest libraries, and runs every command.

    python packaging/matrix.py [--keep FOLDER] [ROW...]

Builds the wheels first, as `packaging/release.py` does. A row is a form, a Python and the versions of libraries.
Without any ROW all of them run, which takes some minutes and 6 GB of disk. Prints the size of each environment,
without pip, and how long its installation took. Ends with 1 where a row fails.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
OLDEST = ("click==8.1.0", "numpy==1.26.0", "tabulate==0.9.0", "threadpoolctl==3.1.0")


class Row(NamedTuple):
    """One environment: the form, the Python, and the versions that are asked for."""

    form: str
    python: str
    pins: Sequence[str] = ()


ROWS = {
    "light-newest": Row("light", "python3.13"),
    "light-oldest": Row("light", "python3.11", OLDEST),
    "light-3.10": Row("light", "python3.10"),
    "light-3.12": Row("light", "python3.12"),
    "whole-newest": Row("whole", "python3.11"),
    "whole-3.10": Row("whole", "python3.10"),
    "whole-oldest": Row("whole", "python3.11", (*OLDEST, "safetensors==0.4.5", "torch==2.4.0")),
}
# What every environment has before anything is installed.
TOOLS = ("pip", "setuptools", "wheel", "_distutils_hack", "pkg_resources")


def size_of(site: Path) -> int:
    """The bytes of all installed packages."""
    own = (path for path in site.rglob("*") if path.is_file() and not path.relative_to(site).parts[0].startswith(TOOLS))
    return sum(path.stat().st_size for path in own)


def passes(name: str, row: Row, wheels: Path, folder: Path) -> bool:
    """Installs a form, runs its commands, and prints what they did."""
    interpreter = shutil.which(row.python)
    if interpreter is None:
        print(f"{name}: there is no {row.python}")
        return False
    subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    (wheel,) = wheels.glob("lora_inspect_light-*.whl" if row.form == "light" else "lora_inspect-*.whl")
    start = time.perf_counter()
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-compile", wheel, *row.pins], check=True)
    seconds = time.perf_counter() - start
    megabytes = sum(size_of(site) for site in (folder / "lib").glob("python*/site-packages")) / 1e6
    print(f"{name}: the {row.form} form, {megabytes:,.0f} MB, installed in {seconds:.0f} s")
    commands = [["tests/installed.py", row.form], *([["tests/without_torch.py"]] if row.form == "light" else [])]
    # From a folder that holds nothing, so that the installed package is run.
    with tempfile.TemporaryDirectory() as empty:
        return not any(
            subprocess.run([python, ROOT / script, *words], cwd=empty).returncode for script, *words in commands
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--keep", type=Path, help="where to make the environments, which are kept")
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(ROWS):
        parser.error(f"no such row: {min(unknown)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        wheels = folder / "wheels"
        subprocess.run([sys.executable, ROOT / "packaging" / "release.py", wheels], check=True)
        failed = []
        for name in arguments.rows or ROWS:
            if not passes(name, ROWS[name], wheels, folder / name):
                failed.append(name)
            if not arguments.keep:
                shutil.rmtree(folder / name, ignore_errors=True)
    print(f"failed: {', '.join(failed)}" if failed else "every row passed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
