"""The scripts of the page on several machines do what they say, on this one."""

import os
import re
import subprocess
import sys
import types

import pytest
import yaml
from bases import content, write_adapter, write_base
from page_snippets import ROOT, blocks_of

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "several_machines.md"
BLOCKS = blocks_of(PAGE)


def block_of(language, *words):
    (block,) = [block for block in BLOCKS if block.language == language and all(word in block.text for word in words)]
    return block.text


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A base, an adapter that the page names, what one process makes of them, and a program of that name."""
    monkeypatch.chdir(tmp_path)
    write_base("base")
    write_adapter("style.safetensors")  # a folder, as the base is that of a language model
    os.mkdir("programs")
    program = tmp_path / "programs" / "lora-inspect"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lora_inspect "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shell("lora-inspect merge base style.safetensors:0.8 -o one")
    return tmp_path


def shell(script, **environment):
    """What the lines of a script print."""
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("/shared/", "")],
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_array_of_slurm(place):
    script = block_of("bash", "#SBATCH")
    first, last = map(int, re.search(r"--array=(\d+)-(\d+)", script).groups())
    for task in range(first, last + 1):
        assert not os.path.exists("merged")
        count = str(last - first + 1)
        shell(script, SLURM_ARRAY_TASK_ID=str(task), SLURM_ARRAY_TASK_COUNT=count, SLURM_CPUS_PER_TASK="1")
    assert content("merged") == content("one")


def test_the_script_of_ray(place, monkeypatch):
    """Ray calls each function somewhere and gives its result, or the error; here it does so at once."""
    ray = types.ModuleType("ray")
    started = []

    def remote(**options):
        assert options == {"num_cpus": 2, "max_retries": 3}
        return lambda function: types.SimpleNamespace(remote=lambda *words: started.append((function, words)))

    ray.remote, ray.init = remote, lambda: None
    ray.get = lambda found: [function(*words) for function, words in started]
    monkeypatch.setitem(sys.modules, "ray", ray)
    script = block_of("python", "ray.init()")
    assert len([line for line in script.splitlines() if line]) <= 10
    exec(compile(script.replace("/shared/", ""), str(PAGE), "exec"), {})
    assert content("merged") == content("one")


def test_the_matrix_of_ci(place):
    jobs = yaml.safe_load(block_of("yaml", "matrix"))["jobs"]
    shards, finish = jobs["shards"], jobs["finish"]
    assert finish["needs"] == "shards"
    for number in shards["strategy"]["matrix"]["number"]:
        command, upload = shards["steps"]
        shell(command["run"].replace("${{ matrix.number }}", str(number)))
        os.rename(upload["with"]["path"], f"artifact-{number}")
        assert not os.path.exists("merged")
    download, command = finish["steps"]
    os.mkdir(download["with"]["path"])
    shell(f"cp -r artifact-*/. {download['with']['path']}")
    shell(command["run"])
    assert content("merged") == content("one")


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "bash"], ids=lambda block: block.place
)
def test_the_shell_takes_every_script(block):
    ended = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, encoding="utf-8")
    assert (ended.returncode, ended.stderr) == (0, "")
