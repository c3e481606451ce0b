"""How far programs are from the trained DoRA on a base, against the formulas written out in float64."""

import pytest
import torch
from safetensors.torch import save_file

from lora_inspect.converting.options import ConvertOptions
from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.compat import compat
from lora_inspect.ops.convert import convert_to_standard
from lora_inspect.programs import added
from lora_inspect.programs.record import (
    BASE_NORM,
    COMPUTES,
    LEAVES,
    OTHER_AXIS,
    SILENT,
    Loader,
    Program,
    Rule,
    Strangers,
)

pytestmark = pytest.mark.numeric
OUT, IN, RANK, ALPHA = 12, 12, 2, 3.0
SHAPES = {"blocks.0.self_attn.q": (OUT, IN), "blocks.0.cross_attn.v": (OUT, IN), "blocks.0.ffn.0": (2 * OUT, IN)}


def toy(does):
    magnitudes = {f"{suffix} output": does for suffix in (".dora_scale", ".dora_layer.weight")}
    rule = Rule(kinds={"lora": COMPUTES}, magnitudes=magnitudes)
    return Program("toy", "Toy", "1.0", (Loader((rule,), Strangers(SILENT)),), {"wan": "comfyui"})


@pytest.fixture
def made(tmp_path, seed):
    """A DoRA file, its base, and by module W, V and the magnitude in float64."""
    numbers = torch.Generator().manual_seed(seed)
    adapter, base, exact = {}, {}, {}
    for path, (rows, columns) in SHAPES.items():
        weight = torch.randn(rows, columns, generator=numbers)
        up, down = torch.randn(rows, RANK, generator=numbers), torch.randn(RANK, columns, generator=numbers)
        magnitude = weight.norm(dim=1, keepdim=True) * (1 + 0.3 * torch.rand(rows, 1, generator=numbers))
        name = f"lora_unet_{path.replace('.', '_')}"
        adapter |= {
            f"{name}.lora_up.weight": up,
            f"{name}.lora_down.weight": down,
            f"{name}.alpha": torch.tensor(ALPHA),
            f"{name}.dora_scale": magnitude,
        }
        base[f"{path}.weight"] = weight
        combined = weight.double() + ALPHA / RANK * up.double() @ down.double()
        exact[path] = (weight.double(), combined, magnitude.double())
    save_file(adapter, tmp_path / "dora.safetensors")
    save_file(base, tmp_path / "base.safetensors")
    return str(tmp_path / "dora.safetensors"), str(tmp_path / "base.safetensors"), exact


WRONG = {
    LEAVES: lambda weight, combined, magnitude: combined,
    BASE_NORM: lambda weight, combined, magnitude: combined * magnitude / weight.norm(dim=1, keepdim=True),
    OTHER_AXIS: lambda weight, combined, magnitude: combined * magnitude / combined.norm(dim=0, keepdim=True),
}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("does", list(WRONG))
def test_the_error_is_that_of_the_formula(made, does):
    path, base, exact = made
    wrong = right = 0.0
    for weight, combined, magnitude in exact.values():
        meant = combined * magnitude / combined.norm(dim=1, keepdim=True) - weight
        theirs = WRONG[does](weight, combined, magnitude) - weight
        wrong += float((theirs - meant).square().sum())
        right += float(meant.square().sum())
    with added(toy(does)):
        (found,) = compat(path, "toy", base=base).verdicts
    assert found.error == pytest.approx((wrong / right) ** 0.5, rel=1e-4)
    assert found.error > 0.05


@pytest.mark.parametrize("seed", [4])
def test_corrected_magnitudes_have_no_error_there_and_one_elsewhere(made, tmp_path):
    path, base, exact = made
    output = str(tmp_path / "out.safetensors")
    with added(toy(BASE_NORM)):
        convert_to_standard(path, output, ConvertOptions(program="toy", base=base))
        (found,) = compat(output, "toy").verdicts
        assert found.verdict == "same meaning"
    with added(toy(COMPUTES)):
        (found,) = compat(output, "toy", base=base).verdicts
    assert found.verdict == "DoRA wrong"
    wrong = right = 0.0
    for weight, combined, magnitude in exact.values():
        base_norm, own_norm = weight.norm(dim=1, keepdim=True), combined.norm(dim=1, keepdim=True)
        meant = combined * magnitude / own_norm - weight
        theirs = combined * (magnitude * base_norm / own_norm) / own_norm - weight
        wrong += float((theirs - meant).square().sum())
        right += float(meant.square().sum())
    assert found.error == pytest.approx((wrong / right) ** 0.5, rel=1e-4)
    assert "--keep-dora" in found.fix


@pytest.mark.parametrize("seed", [5])
def test_a_base_without_anything_to_say_is_refused(made):
    path, base, _ = made
    with added(toy(COMPUTES)), pytest.raises(LoraInspectError, match="--base has nothing to do"):
        compat(path, "toy", base=base)
