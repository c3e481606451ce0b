"""The action for GitHub: its steps are run as GitHub runs them, with a pipx that starts this program."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = ACTION["runs"]["steps"]
SARIF = "https://docs.oasis-open.org/sarif/"
# As GitHub calls `shell: bash`.
BASH = ["bash", "--noprofile", "--norc", "-eo", "pipefail"]
PIPX = """#!/bin/sh
printf '%s\\n' "$@" >> "$CALLS"
shift 4
exec "$PYTHON" -m lora_inspect "$@"
"""
# What pipx does if it cannot install.
FAILING_PIPX = "#!/bin/sh\necho 'No matching distribution' >&2\nexit 1\n"


class Ended(NamedTuple):
    """The status of the job, its log, the uploaded file, and the words that pipx got."""

    status: int
    log: str
    uploaded: str | None
    called: list[str]


@pytest.fixture
def acts(tmp_path, monkeypatch):
    """`acts(pipx, **inputs)`: runs all steps in a checkout, and stops where one fails."""
    for name in ("checkout", "bin", "temp"):
        (tmp_path / name).mkdir()
    calls, outputs_file = tmp_path / "calls", tmp_path / "outputs"

    def act(pipx=PIPX, **given):
        stub = tmp_path / "bin" / "pipx"
        stub.write_text(pipx)
        stub.chmod(0o755)
        inputs = {name: one["default"] for name, one in ACTION["inputs"].items()} | given
        assert inputs.keys() == ACTION["inputs"].keys()
        known = {f"inputs.{name}": value for name, value in inputs.items()} | {"runner.temp": str(tmp_path / "temp")}
        log, uploaded, status = "", None, 0
        for step in STEPS:
            if status or not is_due(step, known):
                continue
            if "uses" in step:
                uploaded = Path(filled(step["with"]["sarif_file"], known)).read_text(encoding="utf-8")
                continue
            outputs_file.write_text("")
            environment = {
                "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
                "PYTHON": sys.executable,
                "PYTHONPATH": str(ROOT),
                "CALLS": str(calls),
                "GITHUB_OUTPUT": str(outputs_file),
                **{name: filled(value, known) for name, value in step.get("env", {}).items()},
            }
            (tmp_path / "step.sh").write_text(step["run"])
            ended = subprocess.run(
                [*BASH, tmp_path / "step.sh"],
                cwd=tmp_path / "checkout",
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
            )
            log, status = log + ended.stdout, ended.returncode
            for line in outputs_file.read_text().splitlines():
                name, _, value = line.partition("=")
                known[f"steps.{step['id']}.outputs.{name}"] = value
        return Ended(status, log, uploaded, calls.read_text().splitlines() if calls.exists() else [])

    return act


@pytest.fixture
def checkout(tmp_path, acts):
    return tmp_path / "checkout"


def filled(text, known):
    """A value with its expressions replaced."""
    return re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda found: known[found[1]], text)


def is_due(step, known):
    """Return True if the condition of a step holds: comparisons with texts, joined by &&."""
    parts = (
        [re.fullmatch(r"([\w.-]+) (==|!=) '(.*)'", part) for part in step["if"].split(" && ")] if "if" in step else []
    )
    return all((known[name] == text) is (sign == "==") for name, sign, text in (part.groups() for part in parts))


def put(fixtures, checkout, name="style.safetensors", broken=False):
    shutil.copyfile(fixtures / "synthetic" / "rslora_flag.safetensors", checkout / name)
    if broken:
        with (checkout / name).open("r+b") as file:
            file.truncate(1000)


def test_inputs_reach_the_shell_through_the_environment_alone():
    assert ACTION["runs"]["using"] == "composite"
    for step in STEPS:
        assert "uses" in step or step["shell"] == "bash"
        assert "${{" not in step.get("run", "")
    used = set(re.findall(r"inputs\.([\w-]+)", "\n".join(map(str, STEPS))))
    assert used == ACTION["inputs"].keys()
    assert all(one["description"] for one in (*ACTION["inputs"].values(), *ACTION["outputs"].values()))


def test_every_action_that_it_uses_has_a_version():
    assert [step["uses"] for step in STEPS if "uses" in step] == ["github/codeql-action/upload-sarif@v4"]


@pytest.mark.slow
def test_a_clean_checkout_is_uploaded_and_passes(acts, checkout, fixtures):
    put(fixtures, checkout)
    ended = acts()
    assert ended.status == 0, ended.log
    assert SARIF in ended.uploaded
    assert "only headers; args: --tensors reads them" in ended.log
    assert ended.called[:5] == ["run", "--spec", "lora-inspect-light", "lora-inspect", "check"]


@pytest.mark.slow
@pytest.mark.parametrize(("fail_on", "status"), [("warning", 1), ("error", 1), ("never", 0)])
def test_problems_are_uploaded_before_the_job_fails(fail_on, status, acts, checkout, fixtures):
    put(fixtures, checkout, broken=True)
    put(fixtures, checkout, "face.safetensors")
    ended = acts(**{"fail-on": fail_on})
    assert ended.status == status, ended.log
    assert '"ruleId": "unreadable"' in ended.uploaded
    assert "style.safetensors: error unreadable" in ended.log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inputs", "pipx", "status"),
    [
        ({"path": "nothing.safetensors"}, PIPX, 3),
        ({"args": "--no-such-option"}, PIPX, 2),
        ({"args": "style.safetensors:0.5"}, PIPX, 2),
        ({}, FAILING_PIPX, 1),
        ({}, "#!/bin/sh\nexit 0\n", 3),
    ],
)
def test_a_check_that_could_not_be_done_fails_the_job_and_uploads_nothing(
    inputs, pipx, status, acts, checkout, fixtures
):
    put(fixtures, checkout)
    ended = acts(pipx, **inputs)
    assert (ended.status, ended.uploaded) == (status, None), ended.log
    assert "::error title=lora-inspect::The check could not be done" in ended.log


@pytest.mark.slow
def test_names_and_options_are_words_that_no_shell_reads(acts, checkout, fixtures):
    name = "a $(touch made) `touch made` *.safetensors"
    put(fixtures, checkout, name)
    put(fixtures, checkout, "-b.safetensors")
    ended = acts(path=f"{name}\r\n-b.safetensors\n\n", args="--skip-hashes\n--tensors", version="0.1.0", upload="false")
    assert (ended.status, ended.uploaded) == (0, None), ended.log
    assert "header" not in ended.log
    wanted = [
        "lora-inspect-light==0.1.0",
        "lora-inspect",
        "check",
        "--skip-hashes",
        "--tensors",
        "--fail-on",
        "warning",
    ]
    assert ended.called[2:] == [*wanted, "--format", "sarif", "--", name, "-b.safetensors"]
    assert not (checkout / "made").exists()
