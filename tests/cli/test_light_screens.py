"""No screen takes what takes long to load, also where a conversion is planned for it."""

import pytest
from screens import EVERY

SHOW = """
import sys

class Barred:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "numpy", "safetensors", "tabulate"):
            raise ImportError(f"{name} takes long to load")

sys.meta_path.insert(0, Barred())
from lora_inspect.cli.info.command import info
for name in sys.argv[1:]:
    info([name], standalone_mode=False)
print(*sorted(module for module in sys.modules if module == "lora_inspect.converting.fixes"))
"""
PLANNED = (
    "sd15-cloneofsimo-disney", "sd15-diffusers-pokemon", "mlx-minicpm", "minilm-lycoris-lora-dora-r8",
    "wan-rslora-and-dora", "crepe-lycoris-locon-tucker", "hostile",
)  # fmt: skip


@pytest.mark.parametrize(("names", "planner"), [
    (PLANNED, "lora_inspect.converting.fixes"),
    (tuple(name for name in EVERY if name not in PLANNED and "minilm-lycoris" not in name), ""),
], ids=["planned", "others"])  # fmt: skip
def test_a_screen_needs_no_library_and_plans_only_for_what_is_wrong(names, planner, run_process, tmp_path):
    paths = []
    for name in names:
        (tmp_path / name).mkdir()
        paths.append(EVERY[name](tmp_path / name))
    shown = run_process("-c", SHOW, *paths)
    assert shown.status == 0, shown.stderr
    assert shown.stdout.splitlines()[-1] == planner
