"""What T-LoRA is measured from: the weight that it is folded into, and LyCORIS's own reading of its file."""

import pytest
import torch
from lycoris.modules.tlora import TLoraModule
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

pytestmark = pytest.mark.numeric


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def factors(rank=3, out=8, inputs=6):
    return {"q_layer.weight": noise(rank, inputs), "p_layer.weight": noise(out, rank, seed=1),
            "lambda_layer": noise(1, rank, seed=2), "alpha": torch.tensor(2.0)}  # fmt: skip


def merged(weight, tensors, folder, **others):
    save_file({"layer.weight": weight}, folder / "base.safetensors")
    save_file(
        {f"lycoris_layer.{key}": tensor for key, tensor in tensors.items()} | others, folder / "adapter.safetensors"
    )
    paths = str(folder / "base.safetensors"), [(str(folder / "adapter.safetensors"), 1.0)]
    plan = plan_merge(*paths, MergeOptions())
    merge(plan, str(folder / "merged.safetensors"), force=True)
    return load_file(folder / "merged.safetensors")["layer.weight"], plan


@pytest.mark.parametrize("rank", [1, 3, 6, 7])
@pytest.mark.slow
def test_it_is_what_lycoris_reads_from_the_file(rank, tmp_path):
    """Also of a rank that the weight has not."""
    layer, tensors = torch.nn.Linear(6, 8), factors(rank)
    layer.weight.data = noise(8, 6, seed=3)
    module = TLoraModule.make_module_from_state_dict("layer", layer, *tensors.values())
    expected = module.get_merged_weight()[0].detach()
    found, _ = merged(layer.weight.detach(), tensors, tmp_path)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_it_comes_after_what_its_module_adds(tmp_path):
    weight, difference = noise(8, 6, seed=3), noise(8, 6, seed=4)
    both, _ = merged(weight, factors(), tmp_path, **{"lycoris_layer.diff": difference})
    alone, _ = merged(weight + difference, factors(), tmp_path)
    torch.testing.assert_close(both, alone)


def test_a_weight_without_singular_values_is_named(tmp_path):
    weight = noise(8, 6, seed=3)
    weight[2, 3] = float("inf")
    with pytest.raises(LoraInspectError, match="folding lycoris_layer into"):
        merged(weight, factors(), tmp_path)


def test_a_weight_that_is_stored_turned(tmp_path):
    weight = noise(8, 6, seed=3)
    straight, _ = merged(weight, factors(), tmp_path)
    turned, plan = merged(weight.T.contiguous(), factors(), tmp_path)
    assert plan.orientations["layer.weight"].transposed
    torch.testing.assert_close(turned, straight.T)


def planned(base, tensors, module, folder):
    save_file(base, folder / "base.safetensors")
    path = folder / "adapter.safetensors"
    save_file({f"diffusion_model.{module}.{key}": tensor for key, tensor in tensors.items()}, path)
    return plan_merge(str(folder / "base.safetensors"), [(str(path), 1.0)], MergeOptions())


def test_a_part_of_a_fused_weight_is_decomposed_alone(tmp_path):
    path, parts = "model.layers.0.self_attn", [noise(6, 6, seed=seed) for seed in (3, 4, 5)]
    plan = planned({f"{path}.qkv_proj.weight": torch.cat(parts)}, factors(out=6), f"{path}.k_proj", tmp_path)
    merge(plan, str(tmp_path / "fused.safetensors"))
    found = load_file(tmp_path / "fused.safetensors")[f"{path}.qkv_proj.weight"].split(6)
    expected, _ = merged(parts[1], factors(out=6), tmp_path)
    assert torch.equal(found[0], parts[0])
    assert torch.equal(found[2], parts[2])
    torch.testing.assert_close(found[1], expected)


def test_a_whole_that_the_base_has_in_parts_is_refused(tmp_path):
    path = "model.layers.0.self_attn"
    base = {f"{path}.{name}_proj.weight": noise(6, 6) for name in "qkv"}
    with pytest.raises(LoraInspectError, match="changes groups of 18 rows"):
        planned(base, factors(out=18), f"{path}.qkv_proj", tmp_path)
