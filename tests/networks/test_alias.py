"""The package under its second name, from a folder that has a `networks` package of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lora_inspect

pytestmark = pytest.mark.slow

ROOT = Path(lora_inspect.__file__).parents[1]


def run(code: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_a_foreign_networks_package_does_not_shadow_ours(tmp_path):
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "__init__.py").write_text("FOREIGN = True\n")
    (tmp_path / "networks" / "lora_wan.py").write_text("FOREIGN = True\n")
    code = (
        "import networks.lora_wan as foreign, lora_inspect.networks.lora_wan as ours, sys\n"
        "import lora_inspect.networks.lora as lora\n"
        "assert foreign.FOREIGN and not hasattr(ours, 'FOREIGN')\n"
        "print(ours.create_arch_network.__module__, lora.LoRANetwork.__module__)"
    )
    assert run(code, tmp_path) == "lora_inspect.networks.lora_wan lora_inspect.networks.network.network"


def test_a_folder_that_is_no_package_keeps_its_modules(tmp_path):
    """sd-scripts has no `__init__.py` in `networks`, so Python takes this package, wherever it stands on the path."""
    (tmp_path / "networks").mkdir()
    for name in ("lora_flux", "dylora"):
        (tmp_path / "networks" / f"{name}.py").write_text("FOREIGN = True\n")
    code = (
        "import networks.lora_flux, networks.dylora, networks.network_args\n"
        "assert networks.lora_flux.FOREIGN and networks.dylora.FOREIGN\n"
        "print(networks.network_args.__file__)"
    )
    assert run(code, tmp_path) == str(ROOT / "networks" / "network_args.py")


def test_lora_inspect_imports_neither_networks_nor_torch(tmp_path):
    names = "('lora_inspect.networks', 'networks', 'torch')"
    code = f"import lora_inspect, sys; print([name for name in {names} if name in sys.modules])"
    assert run(code, tmp_path) == "[]"


def test_reading_arguments_needs_no_torch(tmp_path):
    assert run("import networks.network_args, sys; print('torch' in sys.modules)", tmp_path) == "False"
