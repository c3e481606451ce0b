"""Writes what commands print into the `console` blocks of the pages: `python docs/write_outputs.py [PAGE...]`.

Those with a line `...`, which show a part, are written by hand, and so are the pages in BY_HAND.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from page_snippets import PAGES, Command, Session, blocks_of, holds  # noqa: E402

# Its blocks show a few words of what is printed.
BY_HAND = ("symptoms.md",)


def rewritten(page: Path, folder: Path) -> str:
    """The page with what its commands print now."""
    session = Session(folder)
    text = page.read_text(encoding="utf-8")
    for block in blocks_of(page):
        if block.language not in ("sh", "console"):
            continue
        own = [command for command in block.commands if command.text.startswith("lora-inspect")]
        session.prepare("\n".join(command.text for command in own))
        told = [said(command, session) for command in own]
        if block.language == "console" and len(own) == len(block.commands):
            text = text.replace(f"```console\n{block.text}```", f"```console\n{''.join(told)}```", 1)
    return text


def said(command: Command, session: Session) -> str:
    """The command as it is typed, and what it prints: as it stands where that holds, times and left out lines too."""
    _, printed = session.outcome(command.text)
    lines, is_part = printed.splitlines(), "..." in (command.prints or ())
    if command.prints and (is_part or holds(command.prints, lines)):
        lines = command.prints
    return "".join(f"{line.rstrip()}\n" for line in (command.typed, *lines))


if __name__ == "__main__":
    for page in [Path(name).resolve() for name in sys.argv[1:]] or PAGES:
        if page.name not in BY_HAND and page.exists():
            with tempfile.TemporaryDirectory() as folder:
                reader = Path(folder) / "reader"
                reader.mkdir()
                page.write_text(rewritten(page, reader), encoding="utf-8")
