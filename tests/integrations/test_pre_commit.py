"""The hook of pre-commit: which files it checks, and what pre-commit itself makes of it, without a network."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from adapters import loras

from lora_inspect.cli import main
from lora_inspect.version import __version__

ROOT = Path(__file__).parents[2]
MIRROR = ROOT / "integrations" / "pre-commit"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("lora_inspect_hook", MIRROR / "lora_inspect_hook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_configuration_stands_for_the_weights_next_to_it(hook, tmp_path):
    (tmp_path / WEIGHTS).touch()
    config, weights = str(tmp_path / CONFIG), str(tmp_path / WEIGHTS)
    assert hook.adapters(["--tensors", config, weights, "a.safetensors"]) == ["--tensors", weights, "a.safetensors"]


def test_a_configuration_without_weights_stands_for_its_folder(hook, tmp_path):
    assert hook.adapters([str(tmp_path / CONFIG)]) == [str(tmp_path)]


def test_hook_names_files_that_begin_with_dash_as_paths(hook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("-peft", "-alone"):
        Path(folder).mkdir()
        Path(folder, CONFIG).touch()
    Path("-peft", WEIGHTS).touch()
    Path("-a.safetensors").touch()
    options = ["--fail-on", "error", "--architecture=b.safetensors"]
    names = ["-a.safetensors", f"-peft/{CONFIG}", f"-peft/{WEIGHTS}", f"-alone/{CONFIG}", "c.safetensors"]
    paths = ["./-a.safetensors", f"./-peft/{WEIGHTS}", "./-alone", "c.safetensors"]
    assert hook.adapters([*options, *names]) == [*options, *paths]


def test_hook_checks_file_that_begins_with_dash(hook, write_safetensors, tmp_path, monkeypatch, capsys):
    write_safetensors(loras(), name="--tensors.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hook, "run", lambda: main(sys.argv[1:]))
    monkeypatch.setattr(sys, "argv", ["lora-inspect-hook", "--fail-on", "error", "--tensors.safetensors"])
    with pytest.raises(SystemExit, match="0"):
        hook.main()
    assert capsys.readouterr().out.startswith("./--tensors.safetensors: ")


def test_the_hook_is_of_this_version():
    project = (MIRROR / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{__version__}"\n' in project
    assert f'dependencies = ["lora-inspect-light=={__version__}"]\n' in project
    assert f"rev: v{__version__}\n" in (MIRROR / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("path", "is_checked"),
    [
        ("a.safetensors", True),
        (f"sub/{CONFIG}", True),
        (CONFIG, True),
        ("model.safetensors.index.json", False),
        (f"my_{CONFIG}", False),
        ("a.bin", False),
    ],
)
def test_adapters_are_found_by_their_names(path, is_checked):
    hooks = (MIRROR / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    pattern = re.search(r"^  files: '(.*)'$", hooks, re.MULTILINE)[1]
    assert bool(re.search(pattern, path)) is is_checked


@pytest.fixture
def repositories(without_an_index, tmp_path):
    """A repository of models that uses the tagged mirror, and `committing()`, which runs pre-commit there."""
    environment = without_an_index | {
        "PRE_COMMIT_HOME": str(tmp_path / "home"),
        "GIT_CONFIG_GLOBAL": str(tmp_path / "none"),
        "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }

    def git(folder, *words):
        subprocess.run(["git", *words], cwd=folder, env=environment, check=True, capture_output=True)

    mirror, models = tmp_path / "mirror", tmp_path / "models"
    shutil.copytree(MIRROR, mirror, ignore=shutil.ignore_patterns("__pycache__"))
    models.mkdir()
    git(mirror, "init", "--quiet")
    git(mirror, "add", ".")
    git(mirror, "commit", "--quiet", "--message", "Mirror")
    git(mirror, "tag", f"v{__version__}")
    git(models, "init", "--quiet")
    used = {"repo": str(mirror), "rev": f"v{__version__}", "hooks": [{"id": "lora-inspect"}]}
    (models / ".pre-commit-config.yaml").write_text(json.dumps({"repos": [used]}))
    git(models, "add", ".")
    git(models, "commit", "--quiet", "--message", "Hooks")

    def committing():
        git(models, "add", ".")
        command = [sys.executable, "-m", "pre_commit", "run", "--verbose"]
        ended = subprocess.run(command, cwd=models, env=environment, capture_output=True, encoding="utf-8")
        return ended.returncode, ended.stdout + ended.stderr

    return models, committing


@pytest.mark.slow
def test_pre_commit_installs_the_hook_and_stops_a_commit(repositories, fixtures):
    pytest.importorskip("pre_commit")
    models, committing = repositories
    for name in (WEIGHTS, CONFIG):
        shutil.copyfile(fixtures / "minilm-peft-lora-r8" / name, models / name)
    status, printed = committing()
    assert status == 0, printed
    assert f"{WEIGHTS}: no problem in the header" in printed
    config = models / CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 16}))
    status, printed = committing()
    assert status == 1, printed
    assert printed.count(f"{WEIGHTS}: ") == 1
