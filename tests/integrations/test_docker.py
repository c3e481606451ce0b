"""The Dockerfile: rules that hold for it, and its commands in an environment without a network. No image is built."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCKERFILE = Path(__file__).parents[2] / "integrations" / "docker" / "Dockerfile"
SOURCE = DOCKERFILE.read_text(encoding="utf-8")


def instructions(text):
    """The pairs of a word and its arguments."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def faults(text):
    """A sentence for each rule that a Dockerfile breaks."""
    found = instructions(text)
    words = [word for word, _ in found]
    by_word = dict(found)
    if not re.fullmatch(r"python:3\.\d+-slim", by_word["FROM"]):
        yield "the base is not a slim Python of a known version"
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", by_word.get("USER", "")):
        yield "the user is root, or has a name that Kubernetes cannot compare with root's"
    elif words.index("USER") < max(place for place, word in enumerate(words) if word == "RUN"):
        yield "a command after USER has no rights to install"
    if {"ADD", "COPY"} & set(words):
        yield "the image has files of the checkout"
    for word in ("ENTRYPOINT", "CMD"):
        if not by_word.get(word, "").startswith("["):
            yield f"{word} starts a shell"
    for word, rest in found:
        if word == "RUN" and "pip install" in rest and "--no-cache-dir" not in rest:
            yield "the image keeps pip's cache"
        if word == "RUN" and "lora-inspect-light" not in rest:
            yield "the image has more than the light form"


def test_the_dockerfile_keeps_the_rules():
    assert list(faults(SOURCE)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"-slim$", ""),
        (r"^FROM .*$", "FROM python:slim"),
        (r"^USER .*$", "USER root"),
        (r"^USER .*\n", ""),
        (r"^(RUN .*\n)(USER .*\n)", r"\2\1"),
        (r"^WORKDIR .*$", "COPY . /files"),
        (r"^ENTRYPOINT .*$", "ENTRYPOINT lora-inspect"),
        (r" --no-cache-dir", ""),
        (r"lora-inspect-light", "lora-inspect"),
    ],
)
def test_a_rule_finds_what_breaks_it(old, new):
    broken, count = re.subn(old, new, SOURCE, flags=re.MULTILINE)
    assert count >= 1
    assert list(faults(broken))


@pytest.mark.slow
def test_its_commands_install_a_program_that_its_entry_starts(without_an_index, tmp_path, fixtures):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "image"], check=True)
    environment = without_an_index | {"PATH": f"{tmp_path / 'image' / 'bin'}:/usr/bin:/bin"}
    by_word = dict(instructions(SOURCE))
    environment |= dict(one.split("=", 1) for one in by_word["ENV"].split()) | {"VERSION": ""}
    for word, rest in instructions(SOURCE):
        if word == "RUN":
            ended = subprocess.run(["sh", "-c", rest], env=environment, capture_output=True, encoding="utf-8")
            assert ended.returncode == 0, ended.stdout + ended.stderr
    entry = [str(tmp_path / "image" / "bin" / word) for word in json.loads(by_word["ENTRYPOINT"])]
    for words in (json.loads(by_word["CMD"]), ["check", str(fixtures / "synthetic" / "rslora_flag.safetensors")]):
        ended = subprocess.run([*entry, *words], env=environment, capture_output=True, encoding="utf-8")
        assert ended.returncode == 0, ended.stderr
