"""Both forms of a release: the same code but for the training network, which stays importable under two names."""

import ast
import os
import re
import subprocess
import sys
import zipfile
from email import message_from_string
from importlib import util
from pathlib import Path

import pytest

from lora_inspect.version import __version__

ROOT = Path(__file__).parents[1]
PACKAGING = ROOT / "packaging"
# Run where nothing of the checkout is on the path but what the wheels were unpacked to.
WHERE = "import sys, {name}; print({name}.__file__)"
# A trainer's own folder of that name.
TRAINERS = "IS_OURS = False\n"


@pytest.fixture(scope="module")
def release():
    """The script that builds and checks a release."""
    sys.path.insert(0, str(PACKAGING))
    try:
        spec = util.spec_from_file_location("release", PACKAGING / "release.py")
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(PACKAGING))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The wheels of the whole form and of the light one."""
    folder = tmp_path_factory.mktemp("wheels")
    for project in (ROOT, PACKAGING / "light"):
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(command, cwd=project, check=True, capture_output=True)
    return [folder / f"{name}-{__version__}-py3-none-any.whl" for name in ("lora_inspect", "lora_inspect_light")]


@pytest.fixture(scope="module")
def unpacked(wheels, tmp_path_factory):
    """What pip makes of the whole wheel and of the light one; and both, which it would not put into one folder so."""
    found = {name: tmp_path_factory.mktemp(name) for name in ("whole", "light", "both")}
    for name, wheel in zip(("whole", "light"), wheels, strict=True):
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", "--target"]
        subprocess.run([*command, str(found[name]), str(wheel)], check=True, capture_output=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(found["both"])
    return found


def ran(code, path, folder):
    """What a program in a folder prints, with a path before the packages that are installed."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(wheel):
    (text,) = (content for name, content in contents(wheel).items() if name.endswith("/METADATA"))
    return message_from_string(text.decode())


def imported_by(package):
    """Return the names of the libraries that the files of a package import anywhere."""
    names = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.partition(".")[0])
    return names


def test_the_page_on_installing_shows_the_sentence_of_the_light_form():
    page = (ROOT / "docs" / "installing.md").read_text()
    spec = util.spec_from_file_location("installed", ROOT / "tests" / "installed.py")
    installed = util.module_from_spec(spec)
    spec.loader.exec_module(installed)
    assert installed.SENTENCE in page


def test_the_light_project_is_made_from_the_whole_one(release):
    assert release.write_light.OUT.read_text() == release.write_light.current()


def test_the_wheels_differ_in_the_training_network_alone(wheels):
    whole, light = (
        {name: content for name, content in contents(wheel).items() if ".dist-info/" not in name} for wheel in wheels
    )
    networks = {name for name in whole if name.startswith("networks/")}
    assert {"networks/__init__.py", "networks/lora_wan.py"} <= networks
    assert light == {name: content for name, content in whole.items() if name not in networks}


def test_the_wheels_have_no_program_of_integrations(wheels):
    for wheel in wheels:
        tops = {name.partition("/")[0] for name in contents(wheel) if ".dist-info/" not in name}
        assert tops <= {"lora_inspect", "networks"}


def test_light_form_needs_neither_torch_nor_safetensors(wheels):
    whole, light = (
        {one.partition(">")[0] for one in metadata(wheel).get_all("Requires-Dist") if "extra" not in one}
        for wheel in wheels
    )
    assert whole - light == {"safetensors", "torch"}
    assert light >= {"click", "tabulate", "numpy"}
    assert light <= whole


def test_package_imports_every_library_of_light_form(wheels):
    required = [one for one in metadata(wheels[1]).get_all("Requires-Dist") if "extra ==" not in one]
    libraries = {re.match(r"[\w-]+", one)[0] for one in required}
    assert libraries <= imported_by(ROOT / "lora_inspect")


def test_package_imports_no_library_that_light_form_leaves_out_but_torch(release):
    assert imported_by(ROOT / "lora_inspect").intersection(release.write_light.LEFT_OUT) == {"torch"}
    assert imported_by(ROOT / "networks") >= {"safetensors", "torch"}


def test_both_are_of_the_version_of_the_code(wheels):
    assert [metadata(wheel)["Version"] for wheel in wheels] == [__version__, __version__]


@pytest.mark.parametrize("name", ["networks.lora_wan", "lora_inspect.networks.lora_wan"])
@pytest.mark.parametrize("place", ["any folder", "checkout"])
def test_the_network_is_imported_by_either_name(unpacked, tmp_path, name, place):
    folder = ROOT if place == "checkout" else tmp_path
    found = ran(WHERE.format(name=name), unpacked["whole"], folder)
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()) == (folder if place == "checkout" else unpacked["whole"]) / "networks/lora_wan.py"


def test_the_second_name_works_where_a_trainer_hides_the_first(unpacked, tmp_path):
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "__init__.py").write_text(TRAINERS)
    code = "import networks, lora_inspect.networks.lora_wan as ours; print(networks.IS_OURS, ours.__file__)"
    found = ran(code, unpacked["whole"], tmp_path)
    assert found.stdout.split() == ["False", str(unpacked["whole"] / "networks/lora_wan.py")], found.stderr


@pytest.mark.parametrize("strangers", [False, True])
def test_the_light_form_says_where_the_network_is(unpacked, tmp_path, strangers):
    light = unpacked["light"]
    assert not (light / "networks").exists()
    path = light
    if strangers:  # another package's folder of that name, beside the light form
        path = tmp_path / "packages"
        path.mkdir()
        for each in light.iterdir():
            (path / each.name).symlink_to(each)
        (path / "networks").mkdir()
        (path / "networks" / "lora_wan.py").write_text(TRAINERS)
    found = ran("import lora_inspect.networks.lora_wan", path, tmp_path)
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1] == (
        "lora_inspect.errors.NeedsTorchError: the training network needs torch, but lora-inspect-light, the light "
        "form, comes without it; run pip uninstall lora-inspect-light, then pip install lora-inspect."
    )


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("whole", f"lora-inspect, version {__version__}"),
        ("light", f"lora-inspect-light, version {__version__} (without torch)"),
        (
            "both",
            f"lora-inspect, version {__version__}, is installed twice, also as lora-inspect-light; run pip uninstall "
            "lora-inspect lora-inspect-light, then install one of them",
        ),
    ],
)
def test_the_version_says_which_form_it_is(unpacked, tmp_path, form, line):
    found = ran("from lora_inspect.cli import main; main(['--version'])", unpacked[form], tmp_path)
    assert (found.stdout, found.stderr) == (f"{line}\n", "")


@pytest.mark.parametrize(
    ("form", "requirement"), [("whole", "lora-inspect[remote]"), ("light", "lora-inspect-light[remote]")]
)
def test_missing_library_of_stores_names_installed_form(unpacked, tmp_path, form, requirement):
    code = (
        "import sys; sys.modules['fsspec'] = None; from lora_inspect.cli import main; main(['info', 'hf://o/r/a.gguf'])"
    )
    found = ran(code, unpacked[form], tmp_path)
    assert (found.returncode, found.stdout) == (3, "")
    assert found.stderr.endswith(f"; run `pip install '{requirement}'`.\n")


@pytest.mark.parametrize(
    ("form", "requirement"), [("whole", "lora-inspect[gguf]"), ("light", "lora-inspect-light[gguf]")]
)
def test_requirement_has_name_of_installed_form(unpacked, tmp_path, form, requirement):
    code = "from lora_inspect.version import requirement_with; print(requirement_with('gguf'))"
    assert ran(code, unpacked[form], tmp_path).stdout == f"{requirement}\n"


def test_a_release_is_of_the_version_that_the_changelog_begins_with(release, monkeypatch, tmp_path):
    assert release.version() == __version__
    (tmp_path / "lora_inspect").mkdir()
    (tmp_path / "lora_inspect" / "version.py").write_text('__version__ = "9.9.9"\n')
    (tmp_path / "CHANGELOG.md").write_text((ROOT / "CHANGELOG.md").read_text())
    monkeypatch.setattr(release, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=r"version.py has 9\.9\.9"):
        release.version()


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["lora_inspect/a.py", "secrets.txt"], "secrets.txt, which is on no list"),
        (["lora_inspect/a.py", "lora_inspect/b.py"], "lora_inspect/b.py, which git does not know"),
        ([], "lacks lora_inspect/a.py"),
    ],
)
def test_a_wheel_holds_what_git_knows_and_nothing_else(release, names, says):
    with pytest.raises(SystemExit, match=says):
        release.check_names(Path("own.whl"), names, release.CODE, {"lora_inspect/a.py", "secrets.txt"})


def test_wheels_that_differ_are_refused(release, wheels, tmp_path):
    release.check_difference(*wheels)
    other = tmp_path / "other.whl"
    with zipfile.ZipFile(other, "w") as archive:
        for name, content in contents(wheels[1]).items():
            archive.writestr(name, content + b" " if name == "lora_inspect/version.py" else content)
    with pytest.raises(SystemExit, match=r"other.whl is not .* without networks"):
        release.check_difference(wheels[0], other)


@pytest.mark.parametrize("place", [0, 1])
def test_the_metadata_are_complete(release, wheels, place):
    name = ("lora-inspect", "lora-inspect-light")[place]
    release.check_metadata(wheels[place], __version__, name)
    broken = wheels[place].with_suffix(".broken")
    with zipfile.ZipFile(broken, "w") as archive:
        for own, content in contents(wheels[place]).items():
            archive.writestr(own, content.replace(b"Project-URL: Issues", b"X-URL: Issues"))
    with pytest.raises(SystemExit, match="has no URL of Issues"):
        release.check_metadata(broken, __version__, name)
    with zipfile.ZipFile(broken, "w") as archive:
        for own, content in contents(wheels[place]).items():
            archive.writestr(own, content + b"\n[page](docs/page.md)\n" if own.endswith("/METADATA") else content)
    with pytest.raises(SystemExit, match=r"leads to docs/page\.md"):
        release.check_metadata(broken, __version__, name)
