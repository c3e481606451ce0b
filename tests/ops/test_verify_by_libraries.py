"""verify on what the real libraries merge: every share is 1 within the noise that is stated, in every type."""

import warnings

import diffusers_cases
import language_models
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from lora_inspect.ops.verify import MergeOptions, plan_verify, verify
from lora_inspect.reading.model.settings import parse_arguments

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = ("lora", "rslora", "dora", "rslora+dora")


def saved(network: nn.Module, file) -> str:
    save_file({name: value.clone().contiguous() for name, value in network.state_dict().items()}, file)
    return str(file)


def verified(merged, base, *adapters, **options):
    return verify(plan_verify(merged, base, parse_arguments(map(str, adapters)), MergeOptions(**options)))


def assert_whole(result, modules):
    """Every share is there and 1: all of them together within their noise, each within five times 1%, or its noise."""
    assert [finding.message for finding in result.findings if finding.code != "rounded-norms"] == []
    assert result.ok
    assert result.missing == []
    assert len(result.modules) == modules
    for adapter, share in result.share.items():
        assert share == pytest.approx(1, abs=max(0.01, result.noise[adapter]))
        # No bound of ours is so wide that a lost or doubled adapter would be within it.
        assert result.noise[adapter] < 0.1
    for name, shares in result.modules.items():
        for adapter, share in shares.items():
            assert share == pytest.approx(1, abs=max(0.01, result.module_noise[name][adapter]))
            assert result.module_noise[name][adapter] < 0.4
    assert result.residual < 0.04


def peft_adapter(kind, folder, dtype=torch.float32, seed=0, **options):
    """A language model in `dtype`, an adapter of all of its Linear layers, and the model with it."""
    base = language_models.model("LlamaForCausalLM").to(dtype)
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules="all-linear", use_rslora="rslora" in kind, use_dora="dora" in kind.split("+"),
        init_lora_weights=False, **options,
    )  # fmt: skip
    torch.manual_seed(seed)
    adapted = get_peft_model(base, config)
    for name, parameter in adapted.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.1 * torch.randn(parameter.shape)
        if "lora_B" in name:
            parameter.data *= 0.2
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_by_peft_has_all_of_it(kind, dtype, tmp_path):
    base = saved(language_models.model("LlamaForCausalLM").to(DTYPES[dtype]), tmp_path / "base.safetensors")
    adapted = peft_adapter(kind, tmp_path / "adapter", DTYPES[dtype])
    merged = saved(adapted.merge_and_unload(), tmp_path / "merged.safetensors")
    assert_whole(verified(merged, base, tmp_path / "adapter"), 14)


def test_two_adapters_of_peft_at_their_own_multipliers(tmp_path):
    base = saved(language_models.model("LlamaForCausalLM"), tmp_path / "base.safetensors")
    peft_adapter("lora", tmp_path / "one")
    peft_adapter("rslora", tmp_path / "other", seed=1)
    adapted = PeftModel.from_pretrained(language_models.model("LlamaForCausalLM"), tmp_path / "one", "one")
    adapted.load_adapter(tmp_path / "other", "other")
    for layer in adapted.modules():
        if hasattr(layer, "scale_layer"):
            layer.set_scale("one", 0.3)
            layer.set_scale("other", -1.5)
    merged = saved(adapted.merge_and_unload(adapter_names=["one", "other"]), tmp_path / "merged.safetensors")
    assert_whole(verified(merged, base, f"{tmp_path / 'one'}:0.3", f"{tmp_path / 'other'}:-1.5"), 14)
    swapped = verified(merged, base, f"{tmp_path / 'one'}:-1.5", f"{tmp_path / 'other'}:0.3")
    assert [round(share, 2) for share in swapped.share.values()] == [-0.2, -5]


def merged_by_lycoris(folder, dtype, algorithm, alpha, dora=False):
    """(the merged model, its base, the adapter) as files."""
    from lycoris import LycorisNetwork, create_lycoris

    base = language_models.model("LlamaForCausalLM").to(dtype)
    before = saved(base, folder / "base.safetensors")
    LycorisNetwork.apply_preset({"target_module": ["LlamaAttention", "LlamaMLP"], "target_name": []})
    torch.manual_seed(0)
    network = create_lycoris(base, 1.0, linear_dim=4, linear_alpha=alpha, algo=algorithm, dora_wd=dora, factor=4)
    network.apply_to()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "dora_scale" in name:
                parameter *= 1 + 0.1 * torch.randn(parameter.shape)
            elif not parameter.any():
                parameter.normal_(std=0.2)  # a change well above what several roundings in bfloat16 leave
    network.save_weights(str(folder / "adapter.safetensors"), None, {})
    network.restore()
    network.merge_to(1.0)
    return saved(base, folder / "merged.safetensors"), before, folder / "adapter.safetensors"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("algorithm", "alpha"), [("lora", 3), ("loha", 4), ("lokr", 3)])
def test_a_merge_by_lycoris_has_all_of_it(algorithm, alpha, dtype, tmp_path):
    assert_whole(verified(*merged_by_lycoris(tmp_path, DTYPES[dtype], algorithm, alpha)), 14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dora_by_lycoris_is_whole_with_the_eps_of_the_type_that_it_works_in(dtype, tmp_path):
    result = verified(*merged_by_lycoris(tmp_path, DTYPES[dtype], "lora", 3, dora=True))
    assert_whole(result, 14)
    # A norm of 1 is off by as much as that, and rounding by 2^-8.
    eps = [name for finding in result.findings for name in finding.modules]
    assert len(eps) > 7 if dtype == "bfloat16" else eps == []


def test_the_scale_that_lycoris_applies_to_loha_twice_is_named(tmp_path):
    """Its 4.1.3 multiplies by alpha/rank in `get_weight` and once more in `get_diff_weight`."""
    merged, base, adapter = merged_by_lycoris(tmp_path, torch.float32, "loha", 3)
    result = verified(merged, base, adapter)
    (finding,) = result.findings
    assert finding.message == f"14 modules have 0.75 = scale of {adapter}: merged with its scale applied twice"
    assert not result.ok


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("family", "kind"), [("sdxl", "lora"), ("flux", "rslora"), ("wan", "lora"), ("wan", "dora")])
def test_what_a_pipeline_of_diffusers_fuses_has_all_of_it(family, kind, dtype, tmp_path):
    case = diffusers_cases.of_diffusers(family, kind, tmp_path)
    models = case.fresh()
    ((component, network),) = models.networks.items()
    network.to(DTYPES[dtype])
    base = saved(network, tmp_path / "base.safetensors")
    pipeline = models.pipeline()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.load_lora_weights(str(case.file))
        pipeline.fuse_lora(components=[component], lora_scale=1.0 if kind == "dora" else 0.7)
        pipeline.unload_lora_weights()
    merged = saved(network, tmp_path / "merged.safetensors")
    modules = sum(".lora_A." in name for name in load_file(case.file))
    assert_whole(verified(merged, base, case.file if kind == "dora" else f"{case.file}:0.7"), modules)
