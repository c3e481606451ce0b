"""convert: what its factors and alphas cannot hold, what that loses, and how large an output may become."""

import json
import math

import pytest
import torch
from adapters import change
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.model.settings import Settings

MODULE = "lora_unet_blocks_0_attn_qkv"


def convert(source, output, **options):
    return convert_to_standard(str(source), str(output), ConvertOptions(**options))


def slices(ranks, alpha, dtype, seed=0, up_size=1.0, shared=False, prefix=MODULE, outputs=4, inputs=6):
    """A split layer whose slices have the `ranks`, and the change that it makes, in float64."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"{prefix}.alpha": torch.tensor(alpha)}
    changes = []
    common = torch.randn(ranks[0], inputs, generator=generator).to(dtype)
    for number, rank in enumerate(ranks):
        down = common if shared else torch.randn(rank, inputs, generator=generator).to(dtype)
        up = (up_size * (1 + torch.rand(outputs, rank, generator=generator))).to(dtype)
        tensors[f"{prefix}.lora_down.{number}.weight"] = down.clone()
        tensors[f"{prefix}.lora_up.{number}.weight"] = up
        changes.append(alpha / rank * up.double() @ down.double())
    return tensors, torch.cat(changes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("ranks", [(64, 1), (1, 64), (2, 3, 5), (4, 4)])
@pytest.mark.parametrize("up_size", [3e4, 6.2e-5])
@pytest.mark.numeric
def test_slices_of_different_rank_are_the_same_change_at_the_ends_of_half_precision(dtype, ranks, up_size, tmp_path):
    tensors, expected = slices(ranks, 2.0, dtype, up_size=up_size)
    save_file(tensors, tmp_path / "in.safetensors")
    result = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    found = change(load_file(tmp_path / "out.safetensors"), MODULE)
    error = float((found - expected).norm() / expected.norm())
    assert result.exact
    assert error <= 2.0**-22
    assert error <= result.relative_errors[MODULE] + 1e-12


def test_slices_that_share_their_down_factor_do_not_grow(tmp_path):
    tensors, expected = slices((4, 4, 4), 2.0, torch.float32, shared=True)
    save_file(tensors, tmp_path / "in.safetensors")
    result = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert found[f"{MODULE}.lora_down.weight"].shape == (4, 6)
    assert found[f"{MODULE}.lora_up.weight"].shape == (12, 4)
    assert result.target["ranks"] == {"4": 1}
    torch.testing.assert_close(change(found, MODULE), expected)


def test_slices_of_which_two_share_a_down_factor(tmp_path):
    tensors, _ = slices((2, 2, 2), 1.0, torch.float32)
    tensors[f"{MODULE}.lora_down.2.weight"] = tensors[f"{MODULE}.lora_down.0.weight"].clone()
    save_file(tensors, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert found[f"{MODULE}.lora_down.weight"].shape == (4, 6)
    parts = [tensors[f"{MODULE}.lora_up.{i}.weight"] @ tensors[f"{MODULE}.lora_down.{i}.weight"] for i in range(3)]
    torch.testing.assert_close(change(found, MODULE), 0.5 * torch.cat(parts).double())


def test_slices_of_diffusers_names_carry_their_scales(tmp_path):
    name = "transformer.single_transformer_blocks.0.attn.qkv"
    tensors, expected = slices((2, 8), 3.0, torch.float16, prefix=name)
    save_file(tensors, tmp_path / "in.safetensors")
    result = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == {f"{name}.lora_down.weight", f"{name}.lora_up.weight"}
    assert result.exact
    torch.testing.assert_close(change(found, name), expected, rtol=1e-6, atol=0)


def test_magnitudes_beside_fused_slices_are_taken_for_a_part_of_them(tmp_path):
    """Slices have no magnitude, which the flag of the input says and the output has to say as well."""
    tensors, _ = slices((2, 2), 1.0, torch.float32)
    other = MODULE.replace("qkv", "out")
    tensors[f"{other}.lora_down.weight"], tensors[f"{other}.lora_up.weight"] = torch.randn(2, 6), torch.randn(6, 2)
    tensors[f"{other}.dora_layer.weight"], tensors[f"{other}.alpha"] = torch.ones(6), torch.tensor(2.0)
    save_file({**tensors, "use_dora_flag": torch.tensor(True)}, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", keep_dora=True)
    adapter = read_adapter(open_checkpoint(str(tmp_path / "out.safetensors")))
    assert (adapter.problems, adapter.dora.value, adapter.dora.modules) == ((), True, 1)


def many_slices(path, parts, outputs, inputs):
    tensors = {f"{MODULE}.alpha": torch.tensor(1.0)}
    for number in range(parts):
        tensors[f"{MODULE}.lora_down.{number}.weight"] = torch.randn(2, inputs)
        tensors[f"{MODULE}.lora_up.{number}.weight"] = torch.randn(outputs, 2)
    save_file(tensors, path)


def test_blocks_that_outgrow_their_input_are_refused_before_they_are_made(tmp_path, monkeypatch):
    from lora_inspect.converting.steps import split_fuse

    many_slices(tmp_path / "in.safetensors", 80, 1350, 1)
    monkeypatch.setattr(split_fuse, "zeros", lambda *_: pytest.fail("the blocks were made"))
    with pytest.raises(LoraInspectError, match=rf"all rows of {MODULE} .*over 16 times.*--allow-growth"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_growth_can_be_accepted(tmp_path, run):
    many_slices(tmp_path / "in.safetensors", 80, 1350, 1)
    result = run("convert", tmp_path / "in.safetensors", "-o", tmp_path / "out.safetensors", "--allow-growth", "--json")
    assert result.json["to"]["bytes"] > 64 << 20
    assert result.json["to"]["bytes"] > 16 * result.json["from"]["bytes"]


def test_the_change_of_a_base_may_outgrow_its_input_no_more_than_slices(tmp_path, monkeypatch):
    monkeypatch.setattr("lora_inspect.converting.growth._FREE_BYTES", 0)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a.lora_down.weight": torch.ones(1, 64),
        "a.lora_up.weight": torch.ones(64, 1),
        "a.alpha": torch.tensor(1.0),
        "a.dora_scale": torch.rand(64, 1, generator=generator),
    }
    save_file(tensors, tmp_path / "in.safetensors")
    save_file({"a.weight": torch.randn(64, 64, generator=generator)}, tmp_path / "base.safetensors")
    options = {"base": str(tmp_path / "base.safetensors"), "rank": 64}
    with pytest.raises(LoraInspectError, match="--allow-growth"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", **options)
    assert convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", allow_growth=True, **options).exact


def test_a_small_output_may_grow_as_it_must(tmp_path):
    many_slices(tmp_path / "in.safetensors", 64, 4, 1)
    result = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert result.target["bytes"] > 8 * result.source["bytes"]


@pytest.mark.parametrize("alpha", [1e-50, 1e-42])
def test_an_alpha_that_float32_cannot_hold_is_refused(alpha, tmp_path):
    tensors = {
        f"{MODULE}.lora_down.weight": torch.ones(2, 6),
        f"{MODULE}.lora_up.weight": torch.ones(6, 2),
        f"{MODULE}.alpha": torch.tensor(alpha, dtype=torch.float64),
    }
    save_file(tensors, tmp_path / "in.safetensors")
    with pytest.raises(LoraInspectError, match=r"the alpha of lora_unet_blocks_0_attn_qkv is beyond float32"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")


@pytest.mark.parametrize("name", [MODULE, "transformer.blocks.0.attn.to_q"])
def test_a_scale_of_zero_becomes_a_factor_of_zeros(name, tmp_path, run):
    """A stored alpha of 0 is read as the rank by trainers, and is unknown to us."""
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 6), f"{name}.lora_up.weight": torch.ones(6, 2)}
    config = {"r": 2, "lora_alpha": 0, "use_rslora": False}
    save_file(tensors, tmp_path / "in.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    setting = "" if name.startswith("transformer") else ":alpha=0"
    convert(
        tmp_path / "in.safetensors", tmp_path / "out.safetensors", settings=Settings(alpha=0.0 if setting else None)
    )
    found = load_file(tmp_path / "out.safetensors")
    assert not found[f"{name}.lora_up.weight"].any()
    assert 0.0 not in [float(tensor) for key, tensor in found.items() if key.endswith(".alpha")]
    for file in (f"in.safetensors{setting}", "out.safetensors"):
        assert run("info", tmp_path / file, "--json").json["scales"] == {"0": 1}
    assert not run("info", tmp_path / "out.safetensors", "--json").json["problems"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["lora_up.weight", "lora_down.weight", "dora_scale"])
@pytest.mark.parametrize("name", [MODULE, "diffusion_model.blocks.0.q"])
def test_factors_that_pass_through_are_checked_too(bad, side, name, tmp_path):
    tensors = {
        f"{name}.lora_down.weight": torch.ones(2, 6),
        f"{name}.lora_up.weight": torch.ones(6, 2),
        f"{name}.dora_scale": torch.ones(6, 1),
    }
    tensors[f"{name}.{side}"][1, 0] = bad
    save_file(tensors, tmp_path / "in.safetensors")
    with pytest.raises(LoraInspectError, match=rf"{name}\.{side} holds {bad}"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", keep_dora=True)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_factors_of_eight_bits_keep_their_bytes_or_become_float32(dtype, tmp_path):
    values = torch.tensor([[0.5, 1.75, -3.0], [2.0, 0.125, 6.0]])
    for prefix, scaled in ((MODULE, False), ("transformer.blocks.0.q", True)):
        tensors = {
            f"{prefix}.lora_down.weight": values.to(dtype),
            f"{prefix}.lora_up.weight": values.T.contiguous().to(dtype),
        }
        config = {"r": 2, "lora_alpha": 3, "use_rslora": False}
        save_file(
            tensors, tmp_path / "in.safetensors", {"lora_adapter_metadata": json.dumps(config)} if scaled else None
        )
        result = (
            convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
            if not scaled
            else convert(tmp_path / "in.safetensors", tmp_path / "scaled.safetensors")
        )
        found = load_file(tmp_path / ("scaled.safetensors" if scaled else "out.safetensors"))
        assert result.exact
        assert found[f"{prefix}.lora_down.weight"].dtype == dtype
        up = found[f"{prefix}.lora_up.weight"]
        assert up.dtype == (torch.float32 if scaled else dtype)
        assert torch.equal(up.float(), (1.5 if scaled else 1.0) * values.T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("alpha", "keeps"), [(4, True), (8, True), (1, True), (2.0**-6, True), (3, False), (-8, True), (2.0**14, None)]
)
@pytest.mark.numeric
def test_a_scale_goes_into_the_factors_in_their_own_type_where_that_is_exact(dtype, alpha, keeps, tmp_path):
    name = "transformer.blocks.0.attn.to_q"
    generator = torch.Generator().manual_seed(1)
    up = (64 * torch.randn(6, 4, generator=generator)).to(dtype)
    down = torch.randn(4, 6, generator=generator).to(dtype)
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, f"{name}.alpha": torch.tensor(float(alpha))}
    save_file(tensors, tmp_path / "in.safetensors")
    result = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == {f"{name}.lora_A.weight", f"{name}.lora_B.weight"}
    written = found[f"{name}.lora_B.weight"]
    keeps = dtype != torch.float16 if keeps is None else keeps  # float16 ends at 65504
    assert written.dtype == (dtype if keeps else torch.float32)
    assert torch.equal(found[f"{name}.lora_A.weight"], down)
    expected = alpha / 4 * up.double()
    assert torch.equal(written.double(), expected) if keeps else torch.allclose(written.double(), expected, rtol=2**-23)
    assert result.exact


def test_a_product_beyond_float32_is_refused(tmp_path):
    name = "transformer.blocks.0.attn.to_q"
    tensors = {
        f"{name}.lora_A.weight": torch.ones(4, 6),
        f"{name}.lora_B.weight": torch.full((6, 4), 1e30),
        f"{name}.alpha": torch.tensor(1e20),
    }
    save_file(tensors, tmp_path / "in.safetensors")
    with pytest.raises(LoraInspectError, match=rf"{name}\.lora_B\.weight would hold inf.* beyond F32"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")


def test_what_underflows_is_no_exact_conversion(tmp_path):
    name = "transformer.blocks.0.attn.to_q"
    tensors = {
        f"{name}.lora_A.weight": torch.ones(4, 6),
        f"{name}.lora_B.weight": torch.full((6, 4), 1e-30),
        f"{name}.alpha": torch.tensor(4e-20),
    }
    save_file(tensors, tmp_path / "in.safetensors")
    with pytest.raises(LoraInspectError, match=r"would lose over 5% of their change.* 100\.0%.*--allow-loss"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    result = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", allow_loss=True)
    assert not result.exact
    assert result.relative_errors == {name: 1.0}


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float64), (torch.float64, torch.float16)])
def test_float64_stays_float64(dtypes, tmp_path):
    name = "transformer.blocks.0.attn.to_q"
    tensors, expected = slices((2, 3), 0.75, torch.float64, prefix=name)
    down, up = torch.full((2, 6), 0.2, dtype=dtypes[1]), torch.full((4, 2), 0.1, dtype=dtypes[1])
    tensors |= {f"{name}.lora_down.0.weight": down, f"{name}.lora_up.0.weight": up}
    expected[:4] = 0.75 / 2 * up.double() @ down.double()
    save_file(tensors, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.float64}
    lost = float((change(found, name) - expected).norm() / expected.norm())
    assert lost < (1e-14 if dtypes[1] == torch.float64 else 1e-7)


def test_a_change_that_cancels_itself_out_is_no_division_by_zero(tmp_path):
    name = "transformer.blocks.0.attn.to_q"
    tensors = {
        f"{name}.lora_A.weight": torch.tensor([[1.0], [3.0]]),
        f"{name}.lora_B.weight": torch.tensor([[3.0, -1.0]]),
        f"{name}.alpha": torch.tensor(0.2),
    }
    save_file(tensors, tmp_path / "in.safetensors")
    with pytest.raises(LoraInspectError, match=r"would lose over 5% of their change.*--allow-loss"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")


def dora(size, dtype=torch.float32, axis=0):
    """The tensors of a DoRA module whose factors are `size` large, the weight of its base, and the true change."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 16, generator=generator, dtype=dtype)
    tensors = {
        "a.lora_down.weight": size * torch.randn(2, 16, generator=generator, dtype=dtype),
        "a.lora_up.weight": size * torch.randn(24, 2, generator=generator, dtype=dtype),
        "a.alpha": torch.tensor(2.0),
        "a.dora_scale": 1 + torch.rand((24, 1) if axis == 0 else (1, 16), generator=generator, dtype=dtype),
    }
    combined = weight.double() + tensors["a.lora_up.weight"].double() @ tensors["a.lora_down.weight"].double()
    norm = combined.norm(dim=1 - axis, keepdim=True) + 2.0**-23
    return tensors, weight, tensors["a.dora_scale"].double() * combined / norm - weight.double()


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_error_of_a_base_in_float64_is_that_of_what_is_written(dtype, tmp_path):
    tensors, weight, expected = dora(1.0, dtype)
    save_file(tensors, tmp_path / "in.safetensors")
    save_file({"a.weight": weight}, tmp_path / "base.safetensors")
    out = tmp_path / "out.safetensors"
    result = convert(tmp_path / "in.safetensors", out, base=str(tmp_path / "base.safetensors"), rank=16)
    error = float((change(load_file(out), "a") - expected).norm() / expected.norm())
    assert error < 1e-6
    assert result.relative_errors["a"] == pytest.approx(error, rel=1e-3 if dtype == torch.float64 else 20)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_change_whose_norm_is_beyond_float32_is_refused_and_not_a_weight_of_zeros(axis, tmp_path, run):
    tensors, weight, _ = dora(1e10, axis=axis)
    save_file(tensors, tmp_path / "in.safetensors")
    base, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    save_file({"a.weight": weight}, base)
    converted = run("convert", tmp_path / "in.safetensors", "-o", out, "--base", base, "--rank", "16")
    assert "not finite or too large to take its norm" in converted.refusal
    merge = "merge", base, tmp_path / "in.safetensors", "-o", out
    assert "gives nan in BF16" in run(*merge, "--dtype", "bf16").refusal
    assert not out.exists()


class TestSummary:
    def test_shows_ranks_and_bytes_before_and_after(self, tmp_path, run):
        tensors, _ = slices((2, 3), 2.0, torch.float32)
        save_file(tensors, tmp_path / "in.safetensors")
        out = tmp_path / "out.safetensors"
        found = run("convert", tmp_path / "in.safetensors", "-o", out, "--json").json
        assert found["from"]["ranks"] == {"2": 1, "3": 1}
        assert found["to"]["ranks"] == {"5": 1}
        assert found["from"]["bytes"] == (tmp_path / "in.safetensors").stat().st_size
        assert found["to"]["bytes"] == out.stat().st_size
        shown = run("convert", tmp_path / "in.safetensors", "-o", out, "--force").stdout
        assert f"{found['from']['bytes']:,} bytes to rank 5, {found['to']['bytes']:,} bytes" in shown

    def dora(self, path, name="lora_unet_blocks_0_attn_q", magnitude="dora_layer.weight", shape=(6,), **others):
        tensors = {
            f"{name}.lora_down.weight": torch.ones(2, 5),
            f"{name}.lora_up.weight": torch.ones(6, 2),
            f"{name}.{magnitude}": torch.ones(shape),
            **others,
        }
        save_file(tensors, path)
        return tensors

    @pytest.mark.parametrize(
        ("name", "magnitude", "shape", "before", "after", "key", "expected"),
        [
            (MODULE, "dora_layer.weight", (6,), "inside", "interpolate", "dora_scale", (6, 1)),
            (MODULE, "dora_scale", (6, 1), "interpolate", "interpolate", "dora_scale", (6, 1)),
            ("transformer.a.q", "dora_scale", (6, 1), "interpolate", "inside", "lora_magnitude_vector", (6,)),
            ("transformer.a.q", "dora_layer.weight", (6,), "inside", "inside", "lora_magnitude_vector", (6,)),
            ("transformer.a.q", "lora_magnitude_vector.weight", (6,), "inside", "inside",
             "lora_magnitude_vector.weight", (6,)),
        ],
    )  # fmt: skip
    def test_says_where_a_strength_means_something_else(
        self, name, magnitude, shape, before, after, key, expected, tmp_path, run
    ):
        self.dora(tmp_path / "in.safetensors", name, magnitude, shape)
        command = ("convert", tmp_path / "in.safetensors", "--keep-dora", "-o", tmp_path / "out.safetensors")
        found = run(*command, "--json").json
        assert (found["from"]["multiplier"], found["to"]["multiplier"]) == (before, after)
        assert len(found["remarks"]) == (before != after)
        assert ("a multiplier other than 1" in run(*command, "--force").stdout) == (before != after)
        assert load_file(tmp_path / "out.safetensors")[f"{name}.{key}"].shape == expected

    def test_magnitudes_that_went_into_the_change_are_not_left_out(self, tmp_path, run):
        self.dora(tmp_path / "in.safetensors")
        save_file({"blocks.0.attn.q.weight": torch.randn(6, 5)}, tmp_path / "base.safetensors")
        found = run(
            "convert", tmp_path / "in.safetensors", "--base", tmp_path / "base.safetensors", "--rank", "5", "-o",
            tmp_path / "out.safetensors", "--json",
        ).json  # fmt: skip
        assert found["dropped"] == []
        dropping = ("convert", tmp_path / "in.safetensors", "--drop-magnitude", "-o", tmp_path / "dropped.safetensors")
        assert run(*dropping, "--json").json["dropped"] == ["lora_unet_blocks_0_attn_q.dora_layer.weight"]

    def test_says_that_an_orientation_has_no_place(self, tmp_path, run):
        tensors = {
            "lora_unet_h_0_attn.lora_down.weight": torch.ones(2, 5),
            "lora_unet_h_0_attn.lora_up.weight": torch.ones(6, 2),
        }
        config = {"r": 2, "lora_alpha": 2, "fan_in_fan_out": True}
        save_file(tensors, tmp_path / "in.safetensors", {"lora_adapter_metadata": json.dumps(config)})
        found = run("convert", tmp_path / "in.safetensors", "-o", tmp_path / "out.safetensors", "--json").json
        assert [
            text
            for text in found["remarks"]
            if "the output cannot store fan_in_fan_out of 1 modules (lora_unet_h_0_attn)" in text
        ]

    @pytest.mark.parametrize("name", ["transformer.a.q", "base_model.model.a.q"])
    def test_a_magnitude_of_inputs_has_no_spelling_there(self, name, tmp_path):
        self.dora(tmp_path / "in.safetensors", name, "dora_scale", (1, 5))
        settled = Settings(rslora=False, alpha=2.0) if name.startswith("base_model") else Settings()
        with pytest.raises(LoraInspectError, match=r"magnitude of inputs.*choose --base BASE or --drop-magnitude"):
            convert(
                tmp_path / "in.safetensors",
                tmp_path / ("out" if name.startswith("base_model") else "out.safetensors"),
                keep_dora=True,
                settings=settled,
            )

    def test_modules_without_a_magnitude_would_get_one(self, tmp_path):
        extra = {"transformer.b.q.lora_A.weight": torch.ones(2, 5), "transformer.b.q.lora_B.weight": torch.ones(6, 2)}
        self.dora(tmp_path / "in.safetensors", "transformer.a.q", "lora_magnitude_vector", (6,), **extra)
        with pytest.raises(LoraInspectError, match=r"1 modules have no magnitude \(transformer\.b\.q\)"):
            convert(
                tmp_path / "in.safetensors",
                tmp_path / "out.safetensors",
                keep_dora=True,
                settings=Settings(allow_partial_dora=True),
            )


def test_the_long_name_of_the_default_may_be_left_out(tmp_path, run):
    tensors, _ = slices((2, 3), 2.0, torch.float32)
    save_file(tensors, tmp_path / "in.safetensors")
    assert run("convert", tmp_path / "in.safetensors", "-o", tmp_path / "a.safetensors").status == 0
    assert run("convert", tmp_path / "in.safetensors", "--to-standard", "-o", tmp_path / "b.safetensors").status == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_metadata_says_what_is_in_the_factors(tmp_path):
    name = "transformer.blocks.0.attn.to_q"
    tensors = {
        f"{name}.lora_A.weight": torch.ones(4, 6),
        f"{name}.lora_B.weight": torch.ones(6, 4),
        f"{name}.alpha": torch.tensor(6.0),
    }
    save_file(tensors, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert json.loads(file.metadata()["lora_inspect.folded"]) == {"scale": 1.5}
