"""Servers that answer every path: what they send in the place of an adapter_config.json that nobody named."""

import shutil

import pytest
from adapters import loras

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PAGE = b"<!DOCTYPE html><html><body>Sign in</body></html>"
# Larger than the first request, which a server without ranges refuses.
LARGE_PAGE = PAGE + b" " * (1 << 17)
BODIES = {"page": PAGE, "large page": LARGE_PAGE, "text": b"Not found", "nothing": b"", "list": b"[]"}
TYPES = ["text/html; charset=utf-8", "text/plain", "application/json", None]


@pytest.fixture
def answer_every_path(server, folder):
    """Have the server send a body for each path without a file."""

    def answer(body, content_type):
        headers = {"Content-Type": content_type} if content_type else {}

        def misdo(handler, asked):
            is_there = (folder / handler.path.lstrip("/")).is_file()
            if not is_there:
                handler.answer(200, headers, body)
            return not is_there

        server.misdo = misdo

    return answer


@pytest.fixture
def kohya(write_safetensors, folder, server):
    """The address of a kohya file."""
    shutil.move(write_safetensors(loras()), folder / "a.safetensors")
    return server.url("a.safetensors")


@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize("body", BODIES)
def test_answer_that_is_no_configuration_counts_as_missing(body, content_type, answer_every_path, kohya, run):
    expected = run("info", kohya, "--json").json
    answer_every_path(BODIES[body], content_type)
    assert run("info", kohya, "--json").json == expected


@pytest.mark.parametrize("words", [["check"], ["compat"], ["metadata", "show"], ["report", "-o", "page.html"]],
                         ids=lambda words: words[0])  # fmt: skip
def test_commands_take_file_of_such_server(words, answer_every_path, kohya, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer_every_path(PAGE, None)
    assert run(*words, kohya).status == 0


@pytest.mark.parametrize("name", [WEIGHTS, "renamed.safetensors"])
@pytest.mark.parametrize(
    ("body", "status", "words"),
    [(PAGE, 1, "it is a saved web page"), (b"[]", 1, "it is JSON but not an object"),
     (LARGE_PAGE, 3, "the server sends only whole files")],
    ids=["page", "list", "large page"],
)  # fmt: skip
def test_answer_in_place_of_peft_configuration_is_named(
    body, status, words, name, answer_every_path, fixtures, folder, server, run
):
    shutil.copy(fixtures / "minilm-peft-lora-r8" / WEIGHTS, folder / name)
    answer_every_path(body, None)
    shown = run("info", server.url(name))
    assert shown.status == status
    assert f"{server.url(CONFIG)}: {words}" in shown.stderr


def test_configuration_that_is_damaged_on_disk_is_named(write_safetensors, run):
    file = write_safetensors(loras())
    file.with_name(CONFIG).write_bytes(PAGE)
    assert run("info", file).refusal.startswith(f"{file.with_name(CONFIG)}: it is a saved web page")
