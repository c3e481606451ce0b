"""The Space: the output of `info`, `check` and `compat` for a file of the Hub, from its header."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio

# Each reads headers, alphas and flags; a comparison of hashes would read the whole file.
COMMANDS = {"info": ("info", "--why"), "check": ("check", "--skip-hashes"), "compat": ("compat",)}
# For each command: a try of a request, and the whole.
REQUEST_SECONDS, COMMAND_SECONDS = 20, 60
# Visitors at the same time, and those that wait.
AT_ONCE, WAITING = 2, 32
COLUMNS = 100
MOST_CHARACTERS = 100_000
FORM = "Name a repository as owner/name, and a file in it, such as style.safetensors."
TITLE = "What does this LoRA file mean?"
# Fonts of the visitor's machine: others would come from a third server.
SANS, MONO = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
CSS = ".output textarea { font-family: ui-monospace, monospace; font-size: 13px; white-space: pre; overflow-x: auto; }"

_NAME = r"[A-Za-z0-9][\w.-]*"
_REPOSITORY = re.compile(rf"(?:https://huggingface\.co/|hf://)?({_NAME}/{_NAME})(@{_NAME})?/?", re.ASCII)
_PAGE = re.compile(
    rf"https://huggingface\.co/({_NAME}/{_NAME})/(?:blob|resolve|raw)/({_NAME})/([^?#]+)(?:[?#].*)?", re.ASCII
)
# A path is of the repository, and has no settings behind a colon.
_PATH = re.compile(r"(?!.*(?:^|/)\.{1,2}(?:/|$))[^\x00-\x1f\x7f/:@?#\\][^\x00-\x1f\x7f:?#\\]*")


def address(repository: str, file: str) -> str:
    """Return the hf:// address of a file.

    `repository` is owner/name, with @revision if wanted, or the address of the file's page, which needs no `file`.
    Raises ValueError for anything else.
    """
    repository, file = repository.strip(), file.strip().lstrip("/")
    if page := _PAGE.fullmatch(repository):
        name, revision, path = page.groups()
        repository, file = f"{name}@{revision}", file or path
    found = _REPOSITORY.fullmatch(repository)
    if not found or not _PATH.fullmatch(file):
        raise ValueError(FORM)
    return f"hf://{found[1]}{found[2] or ''}/{file}"


def environment() -> dict[str, str]:
    """Return the variables of a command, without the login of whoever runs the Space."""
    kept = {name: value for name, value in os.environ.items() if "TOKEN" not in name}
    return kept | {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "COLUMNS": str(COLUMNS), "NO_COLOR": "1"}


def output(command: str, at: str) -> str:
    """Return the lines that a command of COMMANDS prints for the file at an address."""
    verb, *options = COMMANDS[command]
    called = [sys.executable, "-m", "lora_inspect", verb, *options, "--timeout", str(REQUEST_SECONDS), "--", at]
    try:
        ended = subprocess.run(
            called,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=COMMAND_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"No answer within {COMMAND_SECONDS} seconds; try again later."
    said = (ended.stdout + ended.stderr).rstrip()
    if len(said) > MOST_CHARACTERS:
        return f"{said[:MOST_CHARACTERS]}\n... cut here; run lora-inspect {verb} {at}"
    return said


def outputs(repository: str, file: str) -> tuple[str, ...]:
    """Return what each command of COMMANDS prints for a file of the Hub."""
    try:
        at = address(repository, file)
    except ValueError as error:
        return (str(error), *[""] * (len(COMMANDS) - 1))
    with ThreadPoolExecutor(len(COMMANDS)) as threads:
        return tuple(threads.map(lambda command: output(command, at), COMMANDS))


def page() -> "gradio.Blocks":
    """Build the page: two fields, a button, and a field for the output of each command."""
    import gradio

    blocks = gradio.Blocks(title="lora-inspect", analytics_enabled=False)
    with blocks:
        gradio.Markdown(f"# {TITLE}\nFiles are read from their headers by range requests. No weights are downloaded.")
        with gradio.Row():
            repository = gradio.Textbox(label="Repository", placeholder="owner/name", max_lines=1, elem_id="repository")
            file = gradio.Textbox(label="File", placeholder="style.safetensors", max_lines=1, elem_id="file")
        button = gradio.Button("Read the header", variant="primary", elem_id="read")
        shown = [
            gradio.Textbox(
                label=f"lora-inspect {' '.join(words)}",
                lines=3,
                max_lines=40,
                interactive=False,
                elem_id=command,
                elem_classes="output",
            )
            for command, words in COMMANDS.items()
        ]
        for event in (button.click, repository.submit, file.submit):
            event(outputs, [repository, file], shown, concurrency_limit=AT_ONCE, concurrency_id="reading")
    return blocks


def main() -> None:
    """Serve the page."""
    import gradio

    theme = gradio.themes.Default(font=SANS, font_mono=MONO)
    page().queue(max_size=WAITING).launch(theme=theme, css=CSS)


if __name__ == "__main__":
    main()
