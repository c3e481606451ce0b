"""The blocks of a page that a reader would type, and a folder in which they are run.

A page is run from its top to its end in one folder, as a reader would. Names that it does not make itself stand for
files that `page_files.py` makes when a block first names them. What a block writes with `-o` it may write anew, as the
blocks of a reference are alternatives.

- `sh`: one command a line, `\\` joins lines. A comment `# exit status 1` behind a command says how it ends; without
  one it ends with 0.
- `console`: `$ command`, then what it prints, line by line. A line `...` stands for any lines, and times in seconds
  stand for any time.
- `python`: blocks of a page share their names. A block `text` behind one is what it prints.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from page_files import FILES, MERGED, NAMES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_OUTPUT = re.compile(r"(?:-o|--output)[ =](\S+)")
_STATUS = re.compile(r"\s+# exit status (\d+)\b.*$")
_COMMENT = re.compile(r"(^|\s+)#(?! exit status \d).*$")
# What a shell does, and a list of words does not say.
_SHELL = re.compile(r"[|<>;&`*$]|^\w+=|^(for|if|while|eval|source|cd|export)\b")
_TIME = re.compile(r"\b\d+\.\d+ s\b")


@dataclass(frozen=True)
class Command:
    """What is typed, the exit status that the page promises, and what it prints (None: the page does not say).

    `typed` is the same as it stands in the page, with a prompt, line breaks and comments.
    """

    text: str
    status: int = 0
    prints: list[str] | None = None
    typed: str = ""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and for Python what it prints if the page says so."""

    page: Path
    line: int
    language: str
    text: str
    prints: list[str] | None = None

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[Command]:
        """The commands of a block of `sh` or `console`."""
        if self.language == "console":
            return [_with_output(said) for said in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]]
        joined = self.text.replace("\\\n", " ")
        lines = [_COMMENT.sub("", line).strip() for line in joined.splitlines()]
        return [_with_status(line) for line in lines if line]


def _with_status(line: str) -> Command:
    found = _STATUS.search(line)
    return Command(_STATUS.sub("", line), int(found[1]) if found else 0)


def _with_output(said: str) -> Command:
    typed, _, printed = said.partition("\n")
    while typed.endswith("\\"):
        more, _, printed = printed.partition("\n")
        typed = f"{typed}\n{more}"
    command = _with_status(typed.replace("\\\n", " "))
    return Command(command.text, command.status, printed.rstrip("\n").splitlines(), f"$ {typed}")


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page; a `text` right behind `python` is what that prints, and no block of its own."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    ended = -1
    for match in _BLOCK.finditer(text):
        block = Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2])
        if (
            block.language == "text"
            and found
            and found[-1].language == "python"
            and not text[ended : match.start()].strip()
        ):
            last = found.pop()
            block = Block(page, last.line, last.language, last.text, block.text.splitlines())
        found.append(block)
        ended = match.end()
    return found


def words_of(command: str) -> list[str] | None:
    """The words of a command without a shell's doing; None where it needs one."""
    return None if _SHELL.search(command) else shlex.split(command)


@dataclass
class Session:
    """A folder in which the blocks of one page are run; `run` is the fixture of that name, which saves processes."""

    folder: Path
    run: Callable[..., Any] | None = None
    names: dict[str, Any] = field(default_factory=dict)

    def prepare(self, text: str) -> None:
        """Makes the files that a block names before it writes them, and removes what it is going to write."""
        written = {name: text.index(name) for name in _OUTPUT.findall(text)}
        for name in written:
            self._remove(self.folder / name)
        for name in (*FILES, *MERGED):
            named = re.search(rf"(?<![\w./-]){re.escape(name)}(?![\w-]|\.\w)", text)
            if named and named.start() <= written.get(name, len(text)) - len("-o "):
                self.make(name)

    def make(self, name: str) -> None:
        """Makes a file that a page names, unless it is there."""
        if (self.folder / name).exists():
            return
        if name in FILES:
            FILES[name](self.folder / name)
            return
        self.prepare(MERGED[name])
        status, printed = self.outcome(f"lora-inspect {MERGED[name]} {name}")
        assert status == 0, printed

    def _remove(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def command(self, command: Command, place: str) -> None:
        """Runs a command and compares what the page says of it."""
        status, printed = self.outcome(command.text)
        assert status == command.status, f"{place}: {command.text}\nends with {status}\n{printed}"
        if command.prints is not None:
            compare(command.prints, printed.splitlines(), f"{place}: {command.text}")

    def outcome(self, command: str) -> tuple[int, str]:
        """The exit status of a command, and what it prints: results, then warnings and errors."""
        words = words_of(command)
        if self.run and words and words[0] == "lora-inspect":
            ended = self.run(*words[1:])
            return ended.status, ended.stdout + ended.stderr
        shims = self.folder.parent / f"{self.folder.name}.programs"
        if not shims.exists():
            shims.mkdir()
            for name, arguments in (
                ("lora-inspect", "-m lora_inspect"),
                ("python", ""),
                ("python3", ""),
                ("torchrun", "-m torch.distributed.run"),
            ):
                (shims / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
                (shims / name).chmod(0o755)
        environment = {
            **os.environ,
            "COLUMNS": "80",
            "PATH": f"{shims}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )
        return ended.returncode, ended.stdout + ended.stderr

    def python(self, block: Block) -> None:
        """Runs a block of Python with the names of those before it, and compares what it prints."""
        code = compile("\n" * block.line + block.text, str(block.page), "exec")
        self.names |= {name: make() for name, make in NAMES.items() if name in code.co_names and name not in self.names}
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, self.names)
        if block.prints is not None:
            compare(block.prints, printed.getvalue().splitlines(), block.place)

    def page(
        self, blocks: list[Block], leave_out: Callable[[Command | Block], bool] = lambda one: False
    ) -> Iterator[str]:
        """Runs the blocks of a page in their order, but those to leave out; the places of what was run."""
        for block in blocks:
            if block.language in ("sh", "console"):
                kept = [command for command in block.commands if not leave_out(command)]
                self.prepare("\n".join(command.text for command in kept))
                for command in kept:
                    self.command(command, block.place)
                    yield f"{block.place} {command.text}"
            elif block.language == "python" and not leave_out(block):
                self.prepare(block.text)
                self.python(block)
                yield block.place


def holds(promised: list[str], printed: list[str]) -> bool:
    """Whether lines are those that a page promises; `...` in a page stands for any lines, and a time for any time."""
    wanted, told = _comparable(promised), _comparable(printed)
    pattern = "".join(r"(?:.*\n)*?" if line.strip() == "..." else re.escape(line) + r"\n" for line in wanted)
    return bool(re.fullmatch(pattern, "".join(f"{line}\n" for line in told)))


def compare(promised: list[str], printed: list[str], place: str) -> None:
    """Asserts that it holds."""
    sides = "\nand the page says\n".join("\n".join(_comparable(lines)) for lines in (printed, promised))
    assert holds(promised, printed), f"{place} prints\n{sides}"


def _comparable(lines: list[str]) -> list[str]:
    return [_TIME.sub("N s", line.rstrip()) for line in lines]
