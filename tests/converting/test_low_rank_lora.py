"""--algorithm lora: exact where it can be, the best of its rank elsewhere, and one LoRA a module."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard

pytestmark = pytest.mark.numeric

NAME = "lora_unet_blocks_0_attn_q"
OUT, IN = 48, 40
EXACT = 2.0**-22


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def loha(rank=3, out=OUT, columns=(IN,), dtype=torch.float32):
    shapes = {"w1_a": (out, rank), "w1_b": (rank, *columns), "w2_a": (out, rank), "w2_b": (rank, *columns)}
    return {f"hada_{role}": normal(*shape, seed=at, dtype=dtype) for at, (role, shape) in enumerate(shapes.items())}


def loha_delta(own):
    a, b, c, d = (own[f"hada_{role}"].double() for role in ("w1_a", "w1_b", "w2_a", "w2_b"))
    return (a @ b.flatten(1)) * (c @ d.flatten(1))


def lokr(rank=3, dtype=torch.float32):
    return {
        "lokr_w1": normal(4, 5, seed=1, dtype=dtype),
        "lokr_w2_a": normal(OUT // 4, rank, seed=2, dtype=dtype),
        "lokr_w2_b": normal(rank, IN // 5, seed=3, dtype=dtype),
    }


def lokr_delta(own):
    return torch.kron(own["lokr_w1"].double(), own["lokr_w2_a"].double() @ own["lokr_w2_b"].double())


def module(own, alpha=2.0, name=NAME):
    return {f"{name}.{key}": value.contiguous() for key, value in own.items()} | {f"{name}.alpha": torch.tensor(alpha)}


@pytest.fixture
def made(tmp_path):
    """`made(tensors, …)`: the result of a conversion, and what a reader of alpha/rank applies of each LoRA."""

    def convert(tensors, metadata=None, base=None, **options):
        save_file(tensors, tmp_path / "in.safetensors", metadata)
        if base:
            save_file(base, tmp_path / "base.safetensors")
            options["base"] = str(tmp_path / "base.safetensors")
        output = tmp_path / "out.safetensors"
        asked = ConvertOptions(algorithm="lora", **options)
        result = convert_to_standard(str(tmp_path / "in.safetensors"), str(output), asked, force=True)
        return result, load_file(output)

    return convert


def delta_of(found, name=NAME):
    up, down = (found[f"{name}.lora_{side}.weight"] for side in ("up", "down"))
    return float(found[f"{name}.alpha"]) / len(down) * up.double().flatten(1) @ down.double().flatten(1)


def off(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("own", "delta", "rank", "scale"),
    [(loha(), loha_delta, 9, 2 / 3), (lokr(), lokr_delta, 12, 2 / 3), (lokr(rank=1), lokr_delta, 4, 2.0)],
    ids=["LoHa", "LoKr", "LoKr of rank 1"],
)
def test_a_product_of_thin_factors_is_exact_at_its_own_rank(own, delta, rank, scale, made):
    result, found = made(module(own))
    assert set(found) == {f"{NAME}.{key}" for key in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert found[f"{NAME}.lora_down.weight"].shape == (rank, IN)
    assert off(delta_of(found), scale * delta(own)) <= EXACT
    assert result.exact
    assert result.becomes == ("LoRA",)
    assert result.verified is not None
    assert result.verified.max_relative_error <= EXACT


def test_products_that_half_precision_holds_stay_in_it(made):
    _, found = made(module(lokr(dtype=torch.bfloat16)))
    # A Kronecker product with an identity is numbers and zeros: one factor's products are what needs float32.
    own = lokr(dtype=torch.bfloat16)
    assert off(delta_of(found), 2 / 3 * lokr_delta(own)) <= 2.0**-50
    assert torch.bfloat16 in {value.dtype for value in found.values()}
    exact, found = made(module(loha(dtype=torch.bfloat16)))
    assert off(delta_of(found), 2 / 3 * loha_delta(loha(dtype=torch.bfloat16))) <= EXACT
    assert exact.exact


@pytest.mark.parametrize(("own", "delta"), [(loha(), loha_delta), (lokr(), lokr_delta)], ids=["LoHa", "LoKr"])
def test_a_rank_below_is_the_nearest_of_it(own, delta, made):
    result, found = made(module(own), rank=4, allow_loss=True)
    expected = 2 / 3 * delta(own)
    values = torch.linalg.svdvals(expected)
    least = float(values[4:].norm() / values.norm())
    error = off(delta_of(found), expected)
    assert found[f"{NAME}.lora_down.weight"].shape[0] == 4
    assert abs(result.relative_errors[NAME] - error) <= 1e-6
    assert least - 1e-6 <= error <= 1.01 * least + 1e-6
    with pytest.raises(LoraInspectError, match=r"would lose over 5% of their change.*raise --rank"):
        made(module(own), rank=4)


def test_an_error_is_kept_with_the_least_rank(made):
    own = loha()
    expected = 2 / 3 * loha_delta(own)
    values = torch.linalg.svdvals(expected)
    least = min(rank for rank in range(10) if float(values[rank:].norm() / values.norm()) <= 0.04)
    _, found = made(module(own), max_error=0.04)
    assert found[f"{NAME}.lora_down.weight"].shape[0] == least
    assert off(delta_of(found), expected) <= 0.04


def test_a_whole_difference_needs_a_rank(made):
    difference = normal(OUT, 3, seed=5) @ normal(3, IN, seed=6)
    tensors = {f"{NAME}.diff": difference}
    with pytest.raises(LoraInspectError, match=rf"{NAME} is a full weight difference.*--rank N or --max-error X"):
        made(tensors)
    result, found = made(tensors, rank=8)
    assert found[f"{NAME}.lora_down.weight"].shape == (3, IN)
    assert off(delta_of(found), difference.double()) <= 1e-6
    assert result.relative_errors[NAME] <= 1e-6


def test_whole_factors_of_lokr_need_one_too(made):
    own = {"lokr_w1": normal(4, 5, seed=1), "lokr_w2": normal(12, 8, seed=2)}
    with pytest.raises(LoraInspectError, match=r"LoKr.*--rank N or --max-error X"):
        made(module(own))
    result, found = made(module(own), max_error=1e-6)
    assert off(delta_of(found), torch.kron(own["lokr_w1"].double(), own["lokr_w2"].double())) <= 2e-6
    assert result.relative_errors[NAME] <= 2e-6


def test_several_changes_of_a_module_become_one(made):
    plain = {"lora_down.weight": normal(2, IN, seed=7), "lora_up.weight": normal(OUT, 2, seed=8)}
    own, name = loha(), "lora_unet_blocks_1_attn_q"
    tensors = module(own | plain | {"diff_b": normal(OUT, seed=9)}) | module(
        {key: value.clone() for key, value in plain.items()}, name=name
    )
    _, found = made(tensors)
    expected = 2 / 3 * loha_delta(own) + 2 / 2 * plain["lora_up.weight"].double() @ plain["lora_down.weight"].double()
    assert found[f"{NAME}.lora_down.weight"].shape[0] == 9 + 2
    assert off(delta_of(found), expected) <= EXACT
    assert torch.equal(found[f"{NAME}.diff_b"], tensors[f"{NAME}.diff_b"])
    for key in ("lora_down.weight", "lora_up.weight", "alpha"):
        assert torch.equal(found[f"{name}.{key}"], tensors[f"{name}.{key}"])


def test_several_changes_that_are_none_lose_nothing(made):
    nothing = {key: torch.zeros_like(value) for key, value in (lokr() | loha()).items()}
    result, found = made(module(nothing), rank=2)
    assert float(delta_of(found).abs().max()) == 0.0
    assert result.relative_errors[NAME] <= 1e-6


def test_a_tucker_core_becomes_a_down_with_a_kernel(made):
    own = {
        "lora_down.weight": normal(2, 6, 1, 1, seed=1),
        "lora_mid.weight": normal(3, 2, 3, 3, seed=2),
        "lora_up.weight": normal(8, 3, 1, 1, seed=3),
    }
    _, found = made(module(own))
    assert found[f"{NAME}.lora_down.weight"].shape == (3, 6, 3, 3)
    assert found[f"{NAME}.lora_up.weight"].shape == (8, 3, 1, 1)
    up, mid, down = (own[f"lora_{role}.weight"].double() for role in ("up", "mid", "down"))
    expected = torch.einsum("op,pqyx,qi->oiyx", up.flatten(1), mid, down.flatten(1))
    # The file's alpha is divided by the rows of down.
    assert off(delta_of(found), 2 / 2 * expected.flatten(1)) <= EXACT


def test_a_flattened_kernel_takes_a_base(made):
    own = loha(rank=2, out=12, columns=(4 * 9,))
    with pytest.raises(LoraInspectError, match=rf"{NAME} \(LoHa\) do not show whether.*--base BASE"):
        made(module(own))
    _, found = made(module(own), base={"blocks.0.attn.q.weight": normal(12, 4, 3, 3)})
    assert found[f"{NAME}.lora_down.weight"].shape == (4, 4, 3, 3)
    assert found[f"{NAME}.lora_up.weight"].shape == (12, 4, 1, 1)
    assert off(delta_of(found), loha_delta(own)) <= EXACT
    _, found = made(module(own), base={"blocks.0.attn.q.weight": normal(12, 36)})
    assert found[f"{NAME}.lora_down.weight"].shape == (4, 36)


def test_what_multiplies_the_weight_takes_a_base_and_a_rank(made):
    own = {"oft_blocks": 0.05 * normal(12, 4, 4)}
    tensors = {f"{NAME}.{key}": value for key, value in own.items()}
    with pytest.raises(LoraInspectError, match=r"is OFT.*--base BASE, .*with --rank N or --max-error X"):
        made(tensors)
    base = {"blocks.0.attn.q.weight": normal(OUT, IN, seed=3)}
    with pytest.raises(LoraInspectError, match=r"--rank N or --max-error X"):
        made(tensors, base=base)
    _, found = made(tensors, base=base, max_error=1e-5)
    weight = base["blocks.0.attn.q.weight"].double()
    skew = own["oft_blocks"].double() - own["oft_blocks"].double().transpose(1, 2)
    identity = torch.eye(4, dtype=torch.float64)
    turns = (identity + skew) @ torch.linalg.inv(identity - skew)
    expected = torch.einsum("bnm,bnc->bmc", turns, weight.reshape(12, 4, IN)).reshape(OUT, IN) - weight
    turned = torch.einsum("bmn,bnc->bmc", turns, weight.reshape(12, 4, IN)).reshape(OUT, IN) - weight
    assert min(off(delta_of(found), expected), off(delta_of(found), turned)) <= 2e-5


def test_of_a_file_of_plain_lora_a_note_says_that_it_is_already(made):
    plain = module({"lora_down.weight": normal(2, IN), "lora_up.weight": normal(OUT, 2)})
    result, found = made(plain)
    assert [note for note in result.notes if note.endswith("it holds nothing that --algorithm lora changes.")]
    assert all(torch.equal(found[key], value) for key, value in plain.items())
    result, _ = made(module(loha()))
    assert not result.notes


def test_a_layer_too_large_to_build_is_refused_before_memory_is_taken(made):
    own = {f"hada_{role}": torch.ones(*shape) for role, shape in {
        "w1_a": (70000, 1), "w1_b": (1, 70000), "w2_a": (70000, 1), "w2_b": (1, 70000)}.items()}  # fmt: skip
    _, found = made(module(own))
    assert found[f"{NAME}.lora_down.weight"].shape == (1, 70000)
    own = {"lokr_w1": torch.ones(256, 256), "lokr_w2": torch.ones(256, 256)}
    with pytest.raises(LoraInspectError, match=r"too large to approximate"):
        made(module(own), rank=1)


def test_metadata_says_what_it_is_now(tmp_path, made):
    args = json.dumps({"algo": "glora", "preset": "full"})
    rank, square = 2, 12
    own = {
        "a1.weight": normal(square + 8, rank, seed=1), "a2.weight": normal(rank, square + 8, seed=2),
        "b1.weight": normal(square, rank, seed=3), "b2.weight": normal(rank, square + 8, seed=4),
    }  # fmt: skip
    weight = normal(square, square + 8, seed=5)
    about = {"ss_network_module": "lycoris.kohya", "ss_network_args": args, "reference_downscale_factor": "2"}
    _, found = made(module(own), about, base={"blocks.0.attn.q.weight": weight}, max_error=1e-6)
    a1, a2, b1, b2 = (own[f"{role}.weight"].double() for role in ("a1", "a2", "b1", "b2"))
    assert off(delta_of(found), 2 / rank * (weight.double() @ a1 @ a2 + b1 @ b2)) <= 3e-6
    with safe_open(tmp_path / "out.safetensors", "pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["ss_network_args"]) == {"algo": "lora", "preset": "full"}
    assert metadata["reference_downscale_factor"] == "2"


def test_a_folder_of_peft_gets_a_config_of_lora(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    path = "base_model.model.encoder.layer.0.attention.self.query"
    save_file({f"{path}.{key}": value for key, value in loha().items()}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LOHA", "r": 3, "alpha": 6, "target_modules": ["query"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    result = convert_to_standard(str(folder), str(tmp_path / "out"), ConvertOptions(algorithm="lora"))
    assert result.verified is not None
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert set(found) == {f"{path}.lora_A.weight", f"{path}.lora_B.weight"}
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (written["peft_type"], written["r"]) == ("LORA", 9)
    up, down = found[f"{path}.lora_B.weight"].double(), found[f"{path}.lora_A.weight"].double()
    assert off(written["lora_alpha"] / 9 * up @ down, 2 * loha_delta(loha())) <= EXACT


@pytest.mark.parametrize("scheme", ["diffusers", "comfyui"])
def test_programs_that_know_no_loha_get_lora_in_their_names(scheme, tmp_path):
    own = loha(rank=2, out=36, columns=(12,))
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    save_file(module(own, name=name), tmp_path / "in.safetensors", {"ss_base_model_version": "flux1"})
    options = ConvertOptions(algorithm="lora", scheme=scheme)
    result = convert_to_standard(str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors"), options)
    assert result.verified is not None
    assert result.verified.max_relative_error <= EXACT
    found = load_file(tmp_path / "out.safetensors")
    stems = {
        "diffusers": [f"transformer.transformer_blocks.0.attn.to_{part}" for part in "qkv"],
        "comfyui": ["diffusion_model.double_blocks.0.img_attn.qkv"],
    }[scheme]
    deltas = []
    for stem in stems:
        up, down = (
            next(value for key, value in found.items() if key.startswith(stem) and key.endswith(tails)).double()
            for tails in ((".lora_B.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_down.weight"))
        )
        scale = float(found[f"{stem}.alpha"]) / len(down) if f"{stem}.alpha" in found else 1.0
        deltas.append(scale * up @ down)
    assert off(torch.cat(deltas), loha_delta(own)) <= EXACT


def test_the_command_prints_the_error_of_each_module(tmp_path, run):
    save_file(module(loha()), tmp_path / "in.safetensors")
    ended = run("convert", tmp_path / "in.safetensors", "--algorithm", "lora", "-o", tmp_path / "out.safetensors")
    assert ended.status == 0, ended.stderr
    assert "kohya names, LoHa to plain LoRA" in ended.stdout
    assert f"  {NAME}: relative error " in ended.stdout
    ended = run("convert", tmp_path / "in.safetensors", "--rank", "3", "-o", tmp_path / "b.safetensors")
    assert ended.status == 2
    both = ["--rank", "3", "--max-error", "0.1"]
    ended = run("convert", tmp_path / "in.safetensors", "--algorithm", "lora", *both, "-o", tmp_path / "b.safetensors")
    assert ended.status == 2
