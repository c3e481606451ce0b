"""Adapters of single experts on bases that have all experts of a layer in one parameter.

What is expected is computed in float64 on the base that has the experts one by one, and put together by transformers,
which makes the parameters of its classes from such a checkpoint.
"""

import warnings

import pytest
import torch
from adapters import assert_within, dotted, expected, factors
from safetensors.torch import load_file, save_file

from lora_inspect.merging import fold

transformers = pytest.importorskip("transformers", minversion="5.0")

pytestmark = pytest.mark.numeric

SIZES = {
    "vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "pad_token_id": 0, "tie_word_embeddings": False, "num_experts_per_tok": 2,
}  # fmt: skip
# The sizes that each class calls otherwise; of OLMoE the first parameter is square.
MODELS = {
    "Qwen3Moe": {"intermediate_size": 12, "moe_intermediate_size": 6, "num_experts": 3, "head_dim": 4},
    "Mixtral": {"intermediate_size": 6, "num_local_experts": 3},
    "Olmoe": {"intermediate_size": 4, "num_experts": 3},
}


class Model:
    """A tiny model in memory, as transformers has it, and saved, with the experts one by one."""

    def __init__(self, name, folder):
        self._class = getattr(transformers, f"{name}ForCausalLM")
        self._folder = folder / "model"
        torch.manual_seed(0)
        self.model = self._class(getattr(transformers, f"{name}Config")(**SIZES, **MODELS[name])).eval()
        self.model.save_pretrained(self._folder)
        self.fused = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.single = load_file(self._folder / "model.safetensors")

    def together(self, single):
        """The state of the class, which transformers makes of a checkpoint with single experts, in float64."""
        save_file(
            {key: value.double().contiguous() for key, value in single.items()}, self._folder / "model.safetensors"
        )
        return self._class.from_pretrained(self._folder, dtype=torch.float64).state_dict()


@pytest.fixture(params=MODELS)
def model(request, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Model(request.param, tmp_path)


@pytest.fixture(params=[1 << 20, 24], ids=["in one block", "in tiny blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(fold, "BLOCK_ELEMENTS", request.param)


def layers(base, *ends):
    """The paths of the matrices in the layers, those with one of the ends where some are given."""
    paths = [name.removesuffix(".weight") for name, value in base.items() if ".layers." in name and value.dim() == 2]
    return [path for path in paths if path.endswith(ends or "")]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("multiplier", [1.0, 0.5, -1.0])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_single_experts_on_a_base_of_all(dora, multiplier, model, merged):
    paths = layers(model.single)
    assert sum(".experts." in path for path in paths) == 2 * 3 * 3
    assert sum(value.dim() == 3 for value in model.fused.values()) == 2 * 2
    adapter = factors(model.single, paths, dora)
    found = merged(model.fused, dotted("diffusion_model.", adapter), multiplier)
    values, bounds = expected(model.single, adapter, multiplier, interpolate=False)
    assert_within(found, model.together(values), model.together(bounds))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("ends", [(".gate_proj", ".w1"), (".up_proj", ".w3"), (".down_proj", ".w2")])
def test_the_other_experts_stay_bit_for_bit(ends, model, merged):
    path = next(path for path in layers(model.single, *ends) if ".experts.1." in path)
    adapter = factors(model.single, [path])
    found = merged(model.fused, dotted("diffusion_model.", adapter))
    values, bounds = expected(model.single, adapter, 1.0, interpolate=False)
    assert_within(found, model.together(values), model.together(bounds))
    whole = next(key for key, value in model.fused.items() if not torch.equal(value, found[key]))
    changed = (found[whole] != model.fused[whole]).any(2)
    assert changed.any(1).tolist() == [False, True, False]
    assert changed[1].sum() == model.single[f"{path}.weight"].shape[0]


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_the_multiplier_0_leaves_every_bit_as_it_is(dora, model, merged):
    base = {name: value.bfloat16() for name, value in model.fused.items()}
    found = merged(base, dotted("diffusion_model.", factors(model.single, layers(model.single), dora)), 0.0)
    assert all(torch.equal(found[name].view(torch.int16), value.view(torch.int16)) for name, value in base.items())


@pytest.mark.parametrize("name", ["Qwen3Moe", "Mixtral"])
def test_as_peft_puts_an_adapter_of_single_experts_on_such_a_model(name, tmp_path, merged):
    """PEFT knows these two models, and makes an adapter of parameters of it."""
    peft = pytest.importorskip("peft", minversion="0.19")
    ends = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "q_proj")
    folder = tmp_path / "peft"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Model(name, tmp_path)
        paths = layers(model.single, *ends)
        adapter = {
            path: own._replace(down=own.down[:1], up=own.up[:, :1], alpha=1.5)
            for path, own in factors(model.single, paths).items()
        }
        tensors = dotted("base_model.model.", adapter)
        folder.mkdir()
        save_file(
            {key: value.contiguous() for key, value in tensors.items() if not key.endswith(".alpha")},
            folder / "adapter_model.safetensors",
        )
        targets = sorted({path.rpartition(".")[2] for path in paths})
        peft.LoraConfig(r=1, lora_alpha=1.5, target_modules=targets, task_type="CAUSAL_LM").save_pretrained(folder)
        theirs = peft.PeftModel.from_pretrained(model.model, folder).merge_and_unload().state_dict()
    found = merged(model.fused, dotted("diffusion_model.", adapter))
    _, bounds = expected(model.single, adapter, 1.0, interpolate=False)
    assert_within(found, {key: theirs[key].double() for key in found}, model.together(bounds))


@pytest.mark.parametrize("target", ["fused", "single"])
def test_the_true_change_of_an_expert_is_the_same_of_both_bases(target, model, tmp_path, run):
    """A plain LoRA of full rank, made of DoRA and one of the bases, does to the single expert what DoRA does."""
    paths = layers(model.single, ".1.up_proj", ".1.w3", ".2.down_proj", ".2.w2")
    adapter = factors(model.single, paths, dora=True)
    base, dora, plain = (tmp_path / f"{name}.safetensors" for name in ("base", "dora", "plain"))
    save_file({key: value.contiguous() for key, value in getattr(model, target).items()}, base)
    save_file({k: v.contiguous() for k, v in dotted("diffusion_model.", adapter).items()}, dora)
    assert run("convert", dora, "--base", base, "--rank", "8", "-o", plain).status == 0
    converted = load_file(plain)
    values, _ = expected(model.single, adapter, 1.0, interpolate=False)
    for path in paths:
        down, up = (converted[f"diffusion_model.{path}.lora_{part}.weight"].double() for part in "AB")
        alpha = converted.get(f"diffusion_model.{path}.alpha", torch.tensor(float(len(down))))
        change = values[f"{path}.weight"] - model.single[f"{path}.weight"].double()
        found = alpha.double() / len(down) * up @ down
        assert (found - change).norm() < 1e-5 * change.norm()
