"""Builds both forms of a release, and checks them. It uploads nothing.

    python packaging/release.py [FOLDER]

FOLDER (dist) gets the wheel and the source of the whole form, and the wheel of the light one. Stops with a sentence at
the first thing that is wrong: a file that the lists below lack or that git does not know, wheels that differ in more
than `networks`, incomplete metadata, a version that the changelog does not begin with, links that lead nowhere.
"""

import email
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email.message import Message
from fnmatch import fnmatchcase
from pathlib import Path

import write_light
from readme_renderer import markdown

ROOT = Path(__file__).resolve().parents[1]
WHOLE, LIGHT = "lora_inspect", "lora_inspect_light"
# Everything that may be in a wheel; {info} is its folder of metadata.
CODE = (
    "lora_inspect/*.py",
    "lora_inspect/py.typed",
    "lora_inspect/architectures/model_classes.json",
    "lora_inspect/reporting/page.html",
)
NETWORKS = ("networks/*.py", "networks/py.typed")
INFO = tuple(f"{{info}}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"))
# And in the source, but for the files of the wheel.
SOURCE = (
    *(".ci/run", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "PKG-INFO", "README.md"),
    *(
        "SECURITY.md",
        "action.yml",
        "pyproject.toml",
        "benchmarks/*.py",
        "benchmarks/*.md",
        "docs/*.md",
        "docs/*.py",
        "docs/schemas/*.json",
        "docs/pictures/*.png",
    ),
    *("fixtures/*", "integrations/*", "packaging/*.py", "packaging/light/*", "tests/*"),
)
URLS = {"Homepage", "Documentation", "Changelog", "Issues"}
FIELDS = ("Name", "Version", "Summary", "License-Expression", "Requires-Python", "Keywords", "Description-Content-Type")


def stop(sentence: str) -> None:
    raise SystemExit(f"Error: {sentence}")


def run(*command: str) -> None:
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        stop(f"{' '.join(command)} failed:\n{found.stdout}{found.stderr}")


def version() -> str:
    """That of lora_inspect/version.py, which the changelog has to begin with."""
    text = (ROOT / "lora_inspect" / "version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(\d+\.\d+\.\d+)"$', text, re.MULTILINE)
    first = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    if not found or not first or found[1] != first[1]:
        raise SystemExit(
            f"Error: version.py has {found and found[1]}, and CHANGELOG.md begins with {first and first[1]}"
        )
    return found[1]


def tracked() -> set[str]:
    """The files that git knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.split("\0"))


def check_names(archive: Path, names: list[str], patterns: tuple[str, ...], known: set[str]) -> None:
    """Stops at a file that no pattern is for, at one that git does not know, and where one of the code is missing."""
    for name in names:
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            stop(f"{archive.name} holds {name}, which is on no list of packaging/release.py")
        if name not in known and ".dist-info/" not in name and name != "PKG-INFO":
            stop(f"{archive.name} holds {name}, which git does not know")
    code = {
        name
        for name in known
        if any(fnmatchcase(name, one) for one in patterns if one.endswith((".py", "py.typed", ".html")))
    }
    if lost := code - set(names):
        stop(f"{archive.name} lacks {min(lost)}")


def check_metadata(wheel: Path, wanted: str, name: str) -> Message:
    """The metadata of a wheel; stops where they are incomplete."""
    with zipfile.ZipFile(wheel) as archive:
        own = next(one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        found = email.message_from_string(archive.read(own).decode())
    if missing := [field for field in FIELDS if not found[field]]:
        stop(f"{wheel.name} has no {', '.join(missing)}")
    if (found["Name"], found["Version"]) != (name, wanted):
        stop(f"{wheel.name} is {found['Name']} {found['Version']}")
    if missing := URLS - {url.partition(",")[0] for url in found.get_all("Project-URL", [])}:
        stop(f"{wheel.name} has no URL of {', '.join(sorted(missing))}")
    page = markdown.render(str(found.get_payload()))
    if page is None:
        raise SystemExit(f"Error: the page of {wheel.name} cannot be rendered")
    if lost := re.findall(r'(?:href|src)="(?!https?:|#|mailto:)([^"]*)"', page):
        stop(f"the page of {wheel.name} leads to {lost[0]}, which is not there on the page of an index")
    return found


def check_difference(whole: Path, light: Path) -> None:
    """Stops where the wheels differ in more than the training network and the metadata."""
    with zipfile.ZipFile(whole) as one, zipfile.ZipFile(light) as other:
        ours, theirs = (
            {
                info.filename: (info.CRC, info.file_size)
                for info in archive.infolist()
                if ".dist-info/" not in info.filename
            }
            for archive in (one, other)
        )
    added = {name for name in ours if name.startswith("networks/")}
    if not added or {name: ours[name] for name in ours.keys() - added} != theirs:
        stop(f"{light.name} is not {whole.name} without networks")


def check_requirements(whole: Message, light: Message) -> None:
    """Stops where the light form needs other than the whole one without `write_light.LEFT_OUT`."""
    ours, theirs = (
        {one for one in found.get_all("Requires-Dist", []) if "extra ==" not in one} for found in (whole, light)
    )
    if {one for one in ours if not one.startswith(write_light.LEFT_OUT)} != theirs or ours == theirs:
        stop(f"the forms differ in more than {' and '.join(write_light.LEFT_OUT)}")


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").resolve()
    wanted, known = version(), tracked()
    if write_light.OUT.read_text(encoding="utf-8") != write_light.current():
        stop("packaging/light/pyproject.toml is not that of pyproject.toml; run python packaging/write_light.py")
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "build", "--outdir", folder)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, "packaging/light")
        built = [Path(folder) / name for name in (f"{WHOLE}-{wanted}.tar.gz", f"{WHOLE}-{wanted}-py3-none-any.whl")]
        source, whole = built
        light = Path(folder) / f"{LIGHT}-{wanted}-py3-none-any.whl"
        for wheel, name, code in ((whole, WHOLE, CODE + NETWORKS), (light, LIGHT, CODE)):
            patterns = (*code, *(one.format(info=f"{name}-{wanted}.dist-info") for one in INFO))
            with zipfile.ZipFile(wheel) as archive:
                check_names(wheel, archive.namelist(), patterns, known)
        with tarfile.open(source) as archive:
            names = [one.name.partition("/")[2] for one in archive.getmembers() if not one.isdir()]
        check_names(source, names, (*CODE, *NETWORKS, *SOURCE), known)
        metadata = [check_metadata(whole, wanted, "lora-inspect"), check_metadata(light, wanted, write_light.NAME)]
        check_requirements(*metadata)
        check_difference(whole, light)
        run(sys.executable, "-m", "twine", "check", "--strict", *map(str, (source, whole, light)))
        out.mkdir(parents=True, exist_ok=True)
        for made in (source, whole, light):
            content = made.read_bytes()
            (out / made.name).write_bytes(content)
            print(f"{made.name}  {len(content):,} bytes  sha256 {hashlib.sha256(content).hexdigest()}")
    print(f"checked, and not uploaded: python -m twine upload {out}/*{wanted}*")


if __name__ == "__main__":
    main()
