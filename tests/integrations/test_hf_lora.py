"""The extension of `hf`: what it starts, and how huggingface_hub's own command installs and runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXTENSION = Path(__file__).parents[2] / "integrations" / "hf-lora"
SCRIPT = EXTENSION / "hf-lora"
STUB = '#!/bin/sh\necho "${0##*/}"\nprintf "%s\\n" "$@"\nexit 7\n'
LIGHT, WHOLE = "lora-inspect-light[remote,report]", "lora-inspect[remote]"
# `hf`, which asks a folder instead of GitHub.
HF = """
import sys
from pathlib import Path

import huggingface_hub
from huggingface_hub.cli.hf import main
from huggingface_hub.utils import get_session

client = sys.modules[type(get_session()).__module__.partition(".")[0]]
folder = Path(sys.argv.pop(1))
home = "https://github.com/lora-inspect/hf-lora"


def answer(request):
    url = str(request.url).partition("?")[0]
    raw = url.partition("https://raw.githubusercontent.com/lora-inspect/hf-lora/HEAD/")[2]
    if raw and (folder / raw).is_file():
        return client.Response(200, content=(folder / raw).read_bytes(), request=request)
    if url == f"{home}.git/info/refs":
        return client.Response(200, content=b"0" * 40 + b" HEAD\\0", request=request)
    return client.Response(200 if url == home else 404, request=request)


huggingface_hub.set_client_factory(lambda: client.Client(transport=client.MockTransport(answer)))
sys.argv[0] = "hf"
main()
"""


@pytest.fixture
def tools(tmp_path):
    """`tools("uvx")`: a path on which there are only these, which print their words and end with 7."""

    def make(*names):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).write_text(STUB)
            (folder / name).chmod(0o755)
        return str(folder)

    return make


def started(path, *words, **variables):
    command = ["/bin/sh", SCRIPT, *words]
    ended = subprocess.run(command, env={"PATH": path, **variables}, capture_output=True, encoding="utf-8")
    return ended.returncode, ended.stdout.splitlines(), ended.stderr


@pytest.mark.parametrize(
    ("words", "package"),
    [
        (["info", "hf://owner/name/a b.safetensors", ""], LIGHT),
        (["style.safetensors"], LIGHT),
        ([], LIGHT),
        *((["check", verb], LIGHT) for verb in ("merge",)),
        *(([verb, "a.safetensors"], WHOLE) for verb in ("merge", "unmerge", "verify", "convert")),
    ],
)
def test_a_command_gets_the_form_that_it_needs(words, package, tools):
    assert started(tools("uvx", "pipx"), *words) == (7, ["uvx", "--from", package, "lora-inspect", *words], "")


def test_the_verbs_that_get_torch_are_those_that_need_it():
    page = (EXTENSION.parents[1] / "docs" / "installing.md").read_text(encoding="utf-8")
    assert "- `merge`, `unmerge`, `verify` and `convert`,\n" in page


def test_another_package_can_be_named(tools):
    found = started(tools("uvx"), "info", HF_LORA_FROM="lora-inspect==0.1.0")
    assert found[1] == ["uvx", "--from", "lora-inspect==0.1.0", "lora-inspect", "info"]


def test_pipx_is_used_without_uv(tools):
    found = started(tools("pipx"), "info", "a b")
    assert found == (7, ["pipx", "run", "--spec", LIGHT, "lora-inspect", "info", "a b"], "")


def test_without_either_it_says_so(tools):
    status, printed, said = started(tools(), "info")
    assert (status, printed) == (3, [])
    assert said == "Error: hf lora needs uv or pipx, and finds neither; install uv.\n"


def test_the_script_may_be_executed():
    assert os.access(SCRIPT, os.X_OK)


@pytest.mark.slow
def test_hf_installs_and_runs_it(tools, tmp_path):
    pytest.importorskip("huggingface_hub.cli.extensions")
    environment = {
        **os.environ,
        "PATH": f"{tools('uvx')}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_COLOR": "1",
    }

    def hf(*words):
        command = [sys.executable, "-c", HF, str(EXTENSION), *words]
        return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")

    installed = hf("extensions", "install", "lora-inspect/hf-lora")
    assert installed.returncode == 0, installed.stderr
    description = json.loads((EXTENSION / "manifest.json").read_text())["description"]
    ran = hf("lora", "info", "a b.safetensors")
    assert ran.stdout.splitlines() == ["uvx", "--from", LIGHT, "lora-inspect", "info", "a b.safetensors"], ran.stderr
    assert ran.returncode == 7
    (manifest,) = tmp_path.rglob("hf-lora/manifest.json")
    assert json.loads(manifest.read_text())["description"] == description
