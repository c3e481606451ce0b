"""The commands of the page on stores and servers, run on stores and a server of this machine."""

import shlex

import pytest
from hubs import answer_as_hub
from page_files import FILES, copy
from page_snippets import ROOT, blocks_of

COMMANDS = [
    command.text
    for block in blocks_of(ROOT / "docs" / "remote.md")
    if block.language == "bash"
    for command in block.commands
    if command.text.startswith("lora-inspect ")
]


@pytest.fixture
def reader(folder, server, bucket, hub, run, tmp_path, monkeypatch):
    """Runs a command as a reader would who has the page's files at the page's addresses."""
    FILES["base.safetensors"](folder / "base.safetensors")
    FILES["style.safetensors"](folder / "style.safetensors")
    for name in ("base", "sharded"):
        copy("synthetic/base_sharded")(folder / name)
    bucket.put_folder(folder, "")
    for name in ("base.safetensors", "style.safetensors"):
        FILES[name](tmp_path / name)
    monkeypatch.chdir(tmp_path)

    def misdo(handler, asked):
        of_hub = asked.path.startswith(("/api/", "/owner/")) or asked.path.endswith("sig=hidden")
        return of_hub and answer_as_hub(hub, handler, asked)

    server.misdo = misdo

    def type_in(command):
        here = command.replace("https://models.example.com", server.address).replace("s3://models", bucket.url())
        return run(*shlex.split(here)[1:])

    return type_in


@pytest.mark.slow
def test_every_command_of_the_page_does_what_it_says(reader):
    assert len(COMMANDS) >= 13
    for command in COMMANDS:
        ended = reader(command)
        assert ended.status == 0, f"{command}\n{ended}"
        assert "0123456789abcdef\n" not in ended.stdout + ended.stderr
        assert "Signature" not in ended.stdout + ended.stderr
