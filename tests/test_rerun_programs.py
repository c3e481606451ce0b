"""`rerun_programs.py` over checkouts that are made here: one whose loader does what the record says, and others."""

import logging
import sys
import zipfile
from pathlib import Path

import pytest
import rerun_programs

SCRIPT = Path(rerun_programs.__file__)
RECORD = "sd-scripts-flux-merge"
# What the script of sd-scripts does, by its record, in a few lines; OTHERWISE stands for what another version does.
LOADER = """
from safetensors.torch import load_file

def merge_to_flux_model(loading, working, flux, clip_l, t5xxl, models, ratios, merge_dtype, save_dtype):
    state, tensors = load_file(flux), load_file(models[0])
    for key in [key for key in state if key.endswith(".weight")]:
        name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
        down, up = (tensors.get(f"{name}.lora_{side}.weight") for side in ("down", "up"))
        if down is not None and up is not None:
            alpha = tensors.get(f"{name}.alpha", OTHERWISE)
            state[key] += alpha / len(down) * up @ down
    return state, {}, {}
"""


@pytest.fixture
def checkout(tmp_path):
    def make(otherwise):
        folder = tmp_path / "checkout" / "networks"
        folder.mkdir(parents=True)
        (folder / "lora_flux.py").touch()
        (folder / "flux_merge_lora.py").write_text(LOADER.replace("OTHERWISE", otherwise))
        return folder.parent

    return make


@pytest.fixture
def rerun(capsys):
    """`rerun(path)`: the status and the lines of the script, which leaves no trace in this process."""
    path, finders = list(sys.path), list(sys.meta_path)
    modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "networks"}

    def run(checkout):
        status = rerun_programs.main([RECORD, str(checkout), "--kind", "lora"])
        return status, capsys.readouterr().out.splitlines()

    yield run
    logging.disable(logging.NOTSET)
    sys.path[:], sys.meta_path[:] = path, finders
    for name in [name for name in sys.modules if name.partition(".")[0] == "networks"]:
        del sys.modules[name]
    sys.modules.update(modules)


@pytest.mark.slow
def test_a_checkout_that_does_as_recorded_differs_in_nothing(checkout, rerun):
    status, (counts,) = rerun(checkout("len(down)"))
    assert status == 0
    assert counts.endswith(" 0 differ")


@pytest.mark.slow
def test_one_case_that_deviates_is_reported(checkout, rerun):
    """It doubles what has no alpha: one case of the names that it finds is such a file."""
    status, (line, counts) = rerun(checkout("2 * len(down)"))
    assert status == 1
    assert line.startswith("flux | kohya | lora, no alpha | recorded same meaning | seen wrong strength x2 |")
    assert counts.endswith(" 1 differ")


@pytest.mark.slow
def test_a_wheel_is_as_good_as_a_checkout(checkout, rerun, tmp_path):
    folder, wheel = checkout("2 * len(down)"), tmp_path / "program-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        for file in sorted(folder.rglob("*.py")):
            packed.write(file, file.relative_to(folder))
    status, (_, counts) = rerun(wheel)
    assert status == 1
    assert counts.endswith(" 1 differ")


def test_a_path_without_the_program_is_one_sentence(tmp_path, capsys):
    assert rerun_programs.main([RECORD, str(tmp_path)]) == 3
    fault = "it holds no networks/lora_flux.py; name a checkout or a wheel of the program"
    assert capsys.readouterr().err == f"{tmp_path}: {fault}\n"


@pytest.mark.parametrize("name", ["missing", "missing.whl"])
def test_a_path_that_is_not_there_is_one_sentence(name, tmp_path, capsys):
    assert rerun_programs.main([RECORD, str(tmp_path / name)]) == 3
    fault = "there is no such folder or wheel; name a checkout or a wheel of the program"
    assert capsys.readouterr().err == f"{tmp_path / name}: {fault}\n"


def test_a_broken_wheel_is_one_sentence(tmp_path, capsys):
    wheel = tmp_path / "broken.whl"
    wheel.write_bytes(b"PK")
    assert rerun_programs.main([RECORD, str(wheel)]) == 3
    assert capsys.readouterr().err == f"{wheel}: it is no wheel; name a whole one or a checkout\n"


def test_an_unusable_path_leaves_the_import_path(tmp_path):
    before = list(sys.path)
    rerun_programs.main([RECORD, str(tmp_path)])
    assert sys.path == before


def test_every_record_is_of_a_program_and_has_its_module():
    from lora_inspect import programs

    for name, program in rerun_programs.PROGRAMS.items():
        assert name in programs.PROGRAMS
        assert (SCRIPT.parent / "reruns" / f"{program.module}.py").is_file()
