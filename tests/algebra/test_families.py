"""Sums of adapters of one family in two schemes and layouts, in the names of a third: merged, they are both merged.

Schemes and families are those of the registries, kinds go round: every family has LoRA, RS-LoRA and DoRA in its pairs.
"""

from functools import cache

import diffusers_families
import pytest
import torch
from adapter_files import layout_of, rotated, write
from diffusers_families import FAMILIES, says
from safetensors.torch import load_file, save_file

from lora_inspect import combine, merge, schemes
from lora_inspect.architectures import by_name
from lora_inspect.converting.target.target_program import writing_of
from lora_inspect.errors import RefusedError
from lora_inspect.schemes import written

pytestmark = pytest.mark.numeric
SCHEMES = ("kohya", "comfyui", "peft", "onetrainer", "diffusers", "lycoris", "bare", "peft, default")
SMALL = ("anima", "flux", "lumina2", "qwen_image", "sd3", "wan", "z_image")
# Full differences are written in these names alone.
WITH_DIFFERENCES = ("kohya", "comfyui", "lycoris")
FIRST, SECOND = 0.7, -0.3


def targets_of(family):
    """The schemes that take a family: of musubi's some families have layers in the blocks alone."""
    left_out = ("gguf", "musubi") if family in ("flux", "hunyuan_video") else ("gguf",)
    named = [name for name in written() if writing_of(schemes.by_name(name)).layout(by_name(family))]
    return [None, *(name for name in named if name not in left_out)]


def pairs():
    for number, family in enumerate(sorted(FAMILIES)):
        own = rotated([family], [name for name in SCHEMES if layout_of(family, name)], 3)
        targets = targets_of(family)
        for at, (_, scheme, kind) in enumerate(own):
            _, other, other_kind = own[(at + 1) % len(own)]
            target = targets[(number + at) % len(targets)]
            title = f"{family}: {kind} in {scheme} and {other_kind} in {other} to {target or 'the first'}"
            marks = () if family in SMALL and at == number % 3 else pytest.mark.slow
            yield pytest.param(family, (scheme, kind), (other, other_kind), target, id=title, marks=marks)


@cache
def base_of(family):
    """The tensors of a tiny model in float64, and the shapes of the layers that adapters are of."""
    model = diffusers_families.model(family)
    return {name: value.double() for name, value in model.state_dict().items()}, diffusers_families.adapted(model)


@pytest.mark.parametrize(("family", "one", "other", "target"), [*pairs()])
def test_a_merge_of_the_sum_is_the_merge_of_both(family, one, other, target, tmp_path):
    tensors, shapes = base_of(family)
    base = tmp_path / "base.safetensors"
    save_file(tensors, base, says(family))
    files = [
        write(scheme, family, shapes, kind, tmp_path / f"{scheme}{seed}", says(family), seed)
        for seed, (scheme, kind) in enumerate((one, other))
    ]
    named = [(str(files[0]), FIRST), (str(files[1]), SECOND)]
    is_dora = "dora" in (one[1], other[1])
    options = {"to": target, "base": base if is_dora else None, "dtype": torch.float32}
    written_as = schemes.by_name(target) if target else None
    is_folder = one[0].startswith("peft") if target is None else written_as.absent_alpha != "one"
    out = tmp_path / ("out" if is_folder else "out.safetensors")
    if is_dora and (target or one[0].split(",")[0]) not in WITH_DIFFERENCES:
        with pytest.raises(RefusedError, match="give rank=N for plain LoRA"):
            combine(named, out, **options)
        options["rank"] = 9999
    combine(named, out, **options)
    merge(base, named, tmp_path / "both.safetensors")
    merge(base, [(str(out), 1.0)], tmp_path / "sum.safetensors")
    meant, found = load_file(tmp_path / "both.safetensors"), load_file(tmp_path / "sum.safetensors")
    changed = 0
    for name, value in tensors.items():
        change = (meant[name] - value).norm()
        assert (found[name] - meant[name]).norm() <= 1e-6 * change, name
        changed += bool(change)
    assert changed >= len(shapes)
