"""The difference of two models as an adapter: folded into the base again it gives the tuned model."""

import json
import math
import warnings

import layouts
import numpy
import pytest
import torch
from adapters import drawn
from bases import CODECS, E4M3, SPELLINGS, coded, decoded, shards, write_base, write_shards
from safetensors.torch import load_file, save_file

import lora_inspect
from lora_inspect.files.hashes import file_sha256
from lora_inspect.files.input_file import identify

pytestmark = pytest.mark.numeric

RANK = 4


def tuned_of(base, rank=RANK, size=0.02, vectors=0.01, seed=5, same=()):
    """The base with a change of a rank in every matrix and kernel, and another vector everywhere."""
    numbers = torch.Generator().manual_seed(seed)
    tuned = {}
    for name, value in base.items():
        if not value.is_floating_point() or name in same:
            tuned[name] = value
            continue
        weight = value.float()
        if weight.dim() > 1:
            rows, columns = weight.shape[0], weight[0].numel()
            up, down = (torch.randn(shape, generator=numbers) for shape in ((rows, rank), (rank, columns)))
            change = size * (up @ down).reshape(weight.shape)
        else:
            change = vectors * torch.randn(weight.shape, generator=numbers)
        tuned[name] = (weight + change).to(value.dtype)
    return tuned


def saved(path, tensors, **metadata):
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata or None)
    return str(path)


def pair_of(folder, base, tuned):
    return saved(folder / "tuned.safetensors", tuned), saved(folder / "base.safetensors", base)


def folded(folder, base, adapter, **options):
    """The tensors of the base with the adapter."""
    out = folder / "folded.safetensors"
    lora_inspect.merge(base, [adapter], out, dtype="fp32", force=True, **options)
    return load_file(out)


def off(found, tuned, base):
    """By name how far each changed tensor is from the tuned one, over its change."""
    return {
        name: float((found[name].double() - value.double()).norm() / (value.double() - base[name].double()).norm())
        for name, value in tuned.items()
        if value.is_floating_point() and not torch.equal(value, base[name])
    }


def linear(blocks=2, width=40, dtype=torch.float32):
    """A model of no known family."""
    tensors = {}
    for block in range(blocks):
        for number, (leaf, rows, columns) in enumerate((("q", width, width), ("up", 2 * width, width))):
            tensors[f"net.{block}.{leaf}.weight"] = (0.1 * drawn(10 * block + number, rows, columns)).to(dtype)
            tensors[f"net.{block}.{leaf}.bias"] = (0.1 * drawn(50 + 10 * block + number, rows)).to(dtype)
    return tensors


def test_a_merged_adapter_comes_back(tmp_path):
    base = linear()
    layers = {name.removesuffix(".weight"): value.shape for name, value in base.items() if name.endswith("weight")}
    tensors, products = {}, {}
    for number, (path, (rows, columns)) in enumerate(layers.items()):
        down, up = drawn(number, 3, columns), 0.02 * drawn(30 + number, rows, 3)
        tensors |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
        products[path] = up.double() @ down.double()
    adapter = saved(tmp_path / "adapter.safetensors", tensors)
    path = saved(tmp_path / "base.safetensors", base)
    merged = tmp_path / "merged.safetensors"
    lora_inspect.merge(path, [adapter], merged, dtype="fp32")
    result = lora_inspect.extract(merged, path, tmp_path / "out", max_rank=16)
    assert result.ranks == {3: len(layers)}
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for path, product in products.items():
        up, down = (found[f"base_model.model.{path}.lora_{side}.weight"].double() for side in "BA")
        assert float((up @ down - product).norm() / product.norm()) < 1e-5
        assert float(up.norm() / down.norm()) == pytest.approx(1.0, rel=1e-4)


def test_of_a_merge_in_half_precision_the_rank_comes_back(tmp_path):
    base = {"net.weight": (0.02 * drawn(1, 400, 300)).bfloat16()}
    change = 0.002 * (drawn(2, 400, 3) @ drawn(3, 3, 300))
    tuned = {"net.weight": (base["net.weight"].float() + change).bfloat16()}
    one, other = pair_of(tmp_path, base, tuned)
    result = lora_inspect.extract(one, other, tmp_path / "out", max_rank=64)
    assert (result.ranks, result.dtype, result.noisy) == ({3: 1}, "BF16", 1)
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    product = (
        found["base_model.model.net.lora_B.weight"].double() @ found["base_model.model.net.lora_A.weight"].double()
    )
    assert float((product - change.double()).norm() / change.double().norm()) < 0.05
    assert "stop at the noise" in result.notes[-1]
    # What is left is the noise, which the estimate knows.
    assert result.error == pytest.approx(result.noise, rel=0.2)


FAMILIES = ("flux", "wan", "sd3", "qwen_image", "z_image", "hunyuan_video", "lumina2", "chroma")


@pytest.mark.parametrize("family", FAMILIES)
def test_of_an_image_model_every_tensor_comes_back_under_kohyas_names(family, tmp_path):
    base = {name: 0.1 * value for name, value in layouts.first_layout(family).items()}
    tuned = tuned_of(base)
    one, other = pair_of(tmp_path, base, tuned)
    out = tmp_path / "out.safetensors"
    result = lora_inspect.extract(one, other, out, rank=RANK, architecture=family)
    assert not result.left_out
    assert all(key.startswith("lora_unet_") for key in load_file(out))
    assert max(off(folded(tmp_path, other, out), tuned, base).values()) < 1e-5


@pytest.mark.parametrize("to", ["comfyui", "kohya", "diffusers", "lycoris", "peft", "onetrainer", "musubi", "forge"])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_fused_layers_are_split_and_joined_as_the_names_have_them(layout, to, tmp_path):
    base = {name: 0.1 * value for name, value in layouts.flux().items()}
    base = base if layout == "original" else layouts.flux_in_diffusers(base)
    tuned = tuned_of(base)
    one, other = pair_of(tmp_path, base, tuned)
    out = tmp_path / ("out" if to == "peft" else "out.safetensors")
    result = lora_inspect.extract(one, other, out, rank=12, to=to, architecture="flux")
    found = off(folded(tmp_path, other, out), tuned, base)
    missing = {name for name, share in found.items() if share > 1e-5}
    assert missing == {name for name in result.left_out if name in base}
    assert all(base[name].dim() == 1 for name in missing)
    assert all("of the squared norm" in reason for reason in result.left_out.values())


def test_part_of_a_fused_layer_may_be_equal(tmp_path):
    base = layouts.flux_in_diffusers({name: 0.1 * value for name, value in layouts.flux().items()})
    same = ["transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.attn.to_v.weight"]
    tuned = tuned_of(base, same=same)
    one, other = pair_of(tmp_path, base, tuned)
    out = tmp_path / "out.safetensors"
    result = lora_inspect.extract(one, other, out, rank=12, architecture="flux")
    assert result.equal == 2
    found = folded(tmp_path, other, out)
    assert max(off(found, tuned, base).values()) < 1e-5
    assert all(torch.equal(found[name], base[name]) for name in same)


def sdxl():
    """A file of a whole pipeline: the UNet, CLIP in transformers' names, CLIP in open_clip's, and a VAE."""
    unet, names = layouts.sdxl()
    tensors = {f"model.diffusion_model.{names[name]}": 0.1 * value for name, value in unet.items()}
    one, other = "conditioner.embedders.0.transformer.text_model", "conditioner.embedders.1.model"
    for number, leaf in enumerate(("self_attn.q_proj", "self_attn.k_proj", "mlp.fc1")):
        tensors[f"{one}.encoder.layers.0.{leaf}.weight"] = 0.1 * drawn(number, 768, 768)
    shapes = {"attn.in_proj_weight": (3840, 1280), "attn.in_proj_bias": (3840,), "attn.out_proj.weight": (1280, 1280)}
    for number, (leaf, shape) in enumerate(shapes.items()):
        tensors[f"{other}.transformer.resblocks.0.{leaf}"] = 0.1 * drawn(20 + number, *shape)
    tensors[f"{one}.embeddings.token_embedding.weight"] = 0.1 * drawn(40, 50, 768)
    return tensors | {"first_stage_model.encoder.conv_in.weight": drawn(41, 8, 3, 3, 3)}


def test_components_are_extracted_each_and_a_vae_is_left_out(tmp_path):
    base = sdxl()
    tuned = tuned_of(base)
    one, other = pair_of(tmp_path, base, tuned)
    out = tmp_path / "out.safetensors"
    result = lora_inspect.extract(one, other, out, rank=RANK)
    embedding = "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight"
    assert result.left_out.keys() == {"vae", embedding}
    keys = {key.partition("_")[2].partition("_")[0] for key in load_file(out)}
    assert keys == {"unet", "te1", "te2"}
    assert "lora_te2_text_model_encoder_layers_0_self_attn_v_proj.lora_up.weight" in load_file(out)
    found = off(folded(tmp_path, other, out), tuned, base)
    assert {name for name, share in found.items() if share > 1e-5} == {
        embedding,
        "first_stage_model.encoder.conv_in.weight",
    }


def test_a_component_alone(tmp_path):
    base = sdxl()
    one, other = pair_of(tmp_path, base, tuned_of(base))
    out = tmp_path / "out.safetensors"
    lora_inspect.extract(one, other, out, rank=RANK, only="text_encoder_2", weights_only=True)
    assert {key.partition(".")[0] for key in load_file(out)} == {
        f"lora_te2_text_model_encoder_layers_0_self_attn_{leaf}" for leaf in ("q_proj", "k_proj", "v_proj", "out_proj")
    }
    with pytest.raises(lora_inspect.RefusedError, match="it has no component vae; choose from model, text_encoder"):
        lora_inspect.extract(one, other, tmp_path / "b.safetensors", rank=RANK, only="vae")


def language_model(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        sizes = {
            "GPT2LMHeadModel": transformers.GPT2Config(
                n_embd=24, n_layer=2, n_head=2, vocab_size=60, n_positions=16, bos_token_id=0, eos_token_id=0
            ),
            "LlamaForCausalLM": transformers.LlamaConfig(
                hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, vocab_size=60,
            ),
        }  # fmt: skip
        torch.manual_seed(3)
        return getattr(transformers, name)(sizes[name]).eval()


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_of_a_language_model_peft_loads_the_folder(name, tmp_path):
    from peft import PeftModel

    network = language_model(name)
    tied = ["lm_head.weight"] if name.startswith("GPT2") else []
    base = {key: value.clone() for key, value in network.state_dict().items() if key not in tied}
    # An embedding that is tied to the head would change that too, but PEFT changes the embedding alone.
    vectors = {key for key, value in base.items() if value.dim() < 2 or (tied and key.endswith("wte.weight"))}
    tuned = tuned_of(base, same=vectors)
    one, other = pair_of(tmp_path, base, tuned)
    out = tmp_path / "out"
    result = lora_inspect.extract(one, other, out, rank=RANK)
    assert result.equal == len(vectors)
    tokens = torch.arange(8)[None]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(network, str(out)).eval()
        found = loaded(tokens).logits
        meant = language_model(name)
        meant.load_state_dict(tuned, strict=not tied)
        assert float((found - meant(tokens).logits).abs().max()) < 1e-3 * float(meant(tokens).logits.abs().max())
        assert float((found - language_model(name)(tokens).logits).abs().max()) > 0.01
    assert max(off(folded(tmp_path, other, out), tuned, base).values()) < 1e-5


# TGI raises at other ranks than 8, 16, 32 and so on.
@pytest.mark.parametrize(
    ("to", "rank_axis", "rank"),
    [("mlx", 1, RANK + 2), ("sglang", 0, RANK + 2), ("lmdeploy", 0, RANK + 2), ("tgi", 0, 8)],
)
def test_programs_with_one_rank_for_all_modules_get_zeros_behind_smaller_ones(to, rank_axis, rank, tmp_path):
    base = {key: value.clone() for key, value in language_model("LlamaForCausalLM").state_dict().items()}
    same = [key for key, value in base.items() if value.dim() < 2 or "layers" not in key]
    first, second = (tuned_of(base, rank=rank, same=same) for rank in (RANK, RANK + 2))
    tuned = {key: (second if "mlp" in key else first)[key] for key in base}
    one, other = pair_of(tmp_path, base, tuned)
    with pytest.raises(lora_inspect.RefusedError, match=rf"{to} takes one rank for all modules, .*give rank=N"):
        lora_inspect.extract(one, other, tmp_path / "out", energy=0.9, to=to)
    result = lora_inspect.extract(one, other, tmp_path / "out", rank=RANK + 2, to=to)
    assert result.ranks == {rank: result.modules}
    (file,) = (tmp_path / "out").glob("*.safetensors")
    downs = [tensor for key, tensor in load_file(file).items() if key.lower().endswith(("lora_a", "lora_a.weight"))]
    assert len(downs) == result.modules
    assert {tensor.shape[rank_axis] for tensor in downs} == {rank}
    assert max(off(folded(tmp_path, other, tmp_path / "out"), tuned, base).values()) < 1e-5


def test_llama_cpp_has_a_way_by_peft(tmp_path):
    one, other = pair_of(tmp_path, linear(), tuned_of(linear()))
    with pytest.raises(lora_inspect.RefusedError, match=r"extract with .*peft, then convert that"):
        lora_inspect.extract(one, other, tmp_path / "out.gguf", rank=RANK, to="gguf")


def test_peft_has_no_place_for_vectors(tmp_path):
    base = linear()
    one, other = pair_of(tmp_path, base, tuned_of(base))
    result = lora_inspect.extract(one, other, tmp_path / "out", rank=RANK)
    assert result.left_out.keys() == {name for name in base if name.endswith("bias")}
    assert sum(result.shares.values()) == pytest.approx(
        sum(float(reason.partition("(")[2].split()[0]) for reason in result.left_out.values()), rel=0.05
    )


def test_shards_are_read_as_one_model(tmp_path):
    base = shards(dtype=torch.float32, shape=(80, 64))
    tuned = {file: tuned_of(own, seed=number) for number, (file, own) in enumerate(base.items())}
    write_base(tmp_path / "base", base)
    (tmp_path / "tuned").mkdir()
    write_shards(tmp_path / "tuned", tuned)
    result = lora_inspect.extract(tmp_path / "tuned", tmp_path / "base", tmp_path / "out", rank=RANK)
    assert result.ranks == {RANK: sum(map(len, base.values()))}
    assert result.error < 1e-5
    names = {file: file_sha256(str(path), identify(str(path))) for file in base for path in [tmp_path / "base" / file]}
    assert result.inputs[1] == {"path": str(tmp_path / "base"), "sha256": names, "settings": ""}


def test_eight_bits_without_a_scale(tmp_path):
    base = {"net.weight": (0.5 * drawn(1, 300, 200)).to(E4M3)}
    change = 0.2 * (drawn(2, 300, 2) @ drawn(3, 2, 200))
    tuned = {"net.weight": (base["net.weight"].float() + change).to(E4M3)}
    one, other = pair_of(tmp_path, base, tuned)
    result = lora_inspect.extract(one, other, tmp_path / "out", max_rank=32)
    # Noise is larger where the entries are, so that one direction more can be above that of even noise.
    assert result.dtype == "BF16"
    assert set(result.ranks) <= {2, 3}
    assert result.error == pytest.approx(result.noise, rel=0.4)


@pytest.mark.parametrize("spelling", ["ComfyUI's first form", "musubi's blocks", "int8 of rows"])
def test_codes_with_a_scale_beside_floats(spelling, tmp_path):
    dtype, name, shape, stored, beside = SPELLINGS[spelling]
    base = coded(dtype, name, shape, stored, beside)
    path = saved(tmp_path / "base.safetensors", base)
    whole = decoded(base, name).float()
    change = 0.1 * (drawn(12, 160, 3) @ drawn(13, 3, 256))
    tuned = saved(tmp_path / "tuned.safetensors", {"blocks.0.attn.q.weight": whole + change})
    result = lora_inspect.extract(tuned, path, tmp_path / "out", max_rank=32)
    assert (result.ranks, result.dtype, result.unpaired) == ({3: 1}, "F32", ())
    assert result.error < 1e-5


@pytest.mark.parametrize("codec", ["nf4", "GGUF"])
def test_a_base_in_four_bits(codec, tmp_path):
    base = CODECS[codec](tmp_path)
    change = {name: 0.5 * (drawn(60, 96, 2) @ drawn(61, 2, 512)) for name in base.weights if name.endswith("q.weight")}
    tuned = {name: value + change.get(name, 0.0) for name, value in base.weights.items()}
    path = saved(tmp_path / "tuned.safetensors", tuned)
    result = lora_inspect.extract(path, base.path, tmp_path / "out", max_rank=16)
    # Random blocks have outliers, of which rounding is more than a direction or two.
    assert min(result.ranks) == 2
    assert max(result.ranks) <= 4
    assert result.error < 1e-4


def test_equal_tensors_are_skipped_and_unpaired_ones_named(tmp_path):
    base = linear()
    same = [name for name in base if name.startswith("net.0")]
    tuned = tuned_of(base, same=same) | {"extra.weight": torch.ones(2, 2)}
    one, other = pair_of(tmp_path, base | {"old.weight": torch.ones(2, 2)}, tuned)
    result = lora_inspect.extract(one, other, tmp_path / "out", rank=RANK)
    assert (result.modules, result.equal) == (2, len(same))
    assert result.unpaired == ("old.weight", "extra.weight")


def test_a_cast_of_the_base_is_equal(tmp_path):
    base = linear(dtype=torch.bfloat16)
    tuned = {name: value.float() for name, value in base.items()}
    tuned["net.1.q.weight"] = tuned["net.1.q.weight"] + 0.1 * (drawn(2, 40, 2) @ drawn(3, 2, 40))
    one, other = pair_of(tmp_path, base, tuned)
    result = lora_inspect.extract(one, other, tmp_path / "out", rank=RANK)
    assert (result.modules, result.ranks) == (1, {2: 1})
    assert not any(name.endswith("weight") for name in result.left_out)


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_size_is_met(share, tmp_path):
    base = layouts.first_layout("sd3")
    base = {name: drawn(number, 64, 48) for number, name in enumerate(base) if base[name].dim() == 2}
    tuned = {name: value + 0.1 * drawn(100 + number, 64, 48) for number, (name, value) in enumerate(base.items())}
    one, other = pair_of(tmp_path, base, tuned)
    whole = lora_inspect.extract(one, other, tmp_path / "a.safetensors", max_rank=48, architecture="sd3")
    size = int(share * whole.bytes)
    out = tmp_path / "b.safetensors"
    result = lora_inspect.extract(one, other, out, size=str(size), architecture="sd3")
    assert result.bytes == out.stat().st_size
    assert 0 <= size - result.bytes < 4 * (64 + 48) + 64
    # No other choice of ranks of this size has less error: the singular values that are in are the largest.
    values = [numpy.linalg.svd((tuned[name] - base[name]).double().numpy(), compute_uv=False) for name in base]
    ranks = sum(rank * count for rank, count in result.ranks.items())
    best = numpy.sort(numpy.concatenate(values) ** 2)[: sum(map(len, values)) - ranks].sum()
    error = result.error**2 * sum(float((one**2).sum()) for one in values)
    assert error == pytest.approx(best, rel=1e-3)


def test_what_cannot_be_extracted_is_refused(tmp_path):
    base = linear()
    tuned = tuned_of(base)
    one, other = pair_of(tmp_path, base, tuned)
    out = tmp_path / "out"

    def refused(first, second, says, **options):
        with pytest.raises(lora_inspect.LoraInspectError, match=says):
            lora_inspect.extract(first, second, out, **{"rank": RANK, **options})
        assert not out.exists()

    refused(other, other, "all 8 tensors are the same in")
    bad = tuned | {"net.0.q.weight": torch.full((40, 40), math.nan)}
    refused(saved(tmp_path / "bad.safetensors", bad), other, "net.0.q.weight holds nan in row 0")
    odd = tuned | {"net.0.q.weight": torch.ones(40, 41)}
    refused(saved(tmp_path / "odd.safetensors", odd), other, r"has shape \[40, 41\], but \[40, 40\]")
    strange = {"other.weight": torch.ones(4, 4)}
    refused(saved(tmp_path / "strange.safetensors", strange), other, "it has none of the 8 tensors")
    refused(one, other, "takes .* bytes already, more than the 100 that size gives", rank=None, size="100")
    large = {name: 1e14 * value for name, value in tuned.items()}
    refused(saved(tmp_path / "large.safetensors", large), other, "beyond F16; give dtype=.bf16", dtype="fp16")
    flux = saved(tmp_path / "flux.safetensors", layouts.first_layout("flux"))
    wan = saved(tmp_path / "wan.safetensors", layouts.first_layout("wan"))
    refused(flux, wan, "it is of .*, but .* is of .*; give the base that it was tuned from")
    lora_inspect.extract(one, other, out, rank=2)
    with pytest.raises(lora_inspect.RefusedError, match=r"it is an adapter, but extract takes two models; .*combine"):
        lora_inspect.extract(out, other, tmp_path / "b", rank=RANK)
    with pytest.raises(lora_inspect.WouldOverwriteError):
        lora_inspect.extract(one, other, out, rank=2)
    with pytest.raises(lora_inspect.LoraInspectError, match=r"choose another output|an input"):
        lora_inspect.extract(one, other, tmp_path, rank=2, force=True)


def test_what_is_no_rule_is_wrong_usage(run, tmp_path):
    one, other = pair_of(tmp_path, linear(), tuned_of(linear()))
    for words, says in (
        ([], "extract needs a rule"),
        (["--rank", "2", "--energy", "0.9"], "--rank and --energy both decide the ranks"),
        (["--rank", "0"], "not in the range"),
    ):
        shown = run("extract", one, other, *words, "-o", tmp_path / "out")
        assert (shown.status, says in shown.stderr) == (2, True)
    assert run("extract", one, other, "--rank", "2").status == 2
    assert run("extract", one, tmp_path / "nowhere", "--rank", "2", "-o", tmp_path / "out").status == 3


def test_a_dry_run_prints_the_same_and_writes_nothing(run, tmp_path):
    one, other = pair_of(tmp_path, linear(), tuned_of(linear()))
    before = sorted(tmp_path.iterdir())
    dry = run("extract", one, other, "--rank", "3", "--dry-run", "--json").json
    assert sorted(tmp_path.iterdir()) == before
    wet = run("extract", one, other, "--rank", "3", "-o", tmp_path / "out", "--json").json
    assert dry["output"] is None
    assert wet["output"] == str(tmp_path / "out")
    assert (dry["dry_run"], wet["dry_run"]) == (True, False)
    for name in wet.keys() - {"output", "dry_run", "seconds"}:
        assert dry[name] == wet[name], name
    assert wet["bytes"] == (tmp_path / "out" / "adapter_model.safetensors").stat().st_size


def test_the_file_says_how_it_was_made(tmp_path):
    one, other = pair_of(tmp_path, linear(), tuned_of(linear()))
    result = lora_inspect.extract(one, other, tmp_path / "out", energy=0.99)
    from safetensors import safe_open

    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
        record = json.loads(file.metadata()["lora_inspect.combined"])
    assert record["verb"] == "extract"
    assert record["rule"] == {"energy": 0.99}
    assert record["dtype"] == "F32"
    assert [one["file"] for one in record["inputs"]] == ["tuned.safetensors", "base.safetensors"]
    assert record["error"] == pytest.approx(result.error, rel=1e-5)
    assert str(tmp_path) not in json.dumps(record)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_bytes_do_not_show_the_threads(threads, tmp_path, monkeypatch):
    from lora_inspect.algebra.linear import module_threads

    base = linear(blocks=4)
    one, other = pair_of(tmp_path, base, tuned_of(base, rank=30))
    lora_inspect.extract(one, other, tmp_path / "a", size="20KB")
    monkeypatch.setattr(module_threads, "usable_cores", lambda: int(threads))
    lora_inspect.extract(one, other, tmp_path / "b", size="20KB")
    first, second = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "ab")
    assert first == second


def test_modules_are_chosen_by_globs(tmp_path):
    one, other = pair_of(tmp_path, linear(), tuned_of(linear()))
    result = lora_inspect.extract(one, other, tmp_path / "out", rank=2, include=["net.0"], exclude=["*.up"])
    assert {key.rpartition(".lora_")[0] for key in load_file(tmp_path / "out" / "adapter_model.safetensors")} == {
        "base_model.model.net.0.q"
    }
    assert "net.1.q.weight" in result.unasked
    with pytest.raises(lora_inspect.RefusedError):
        lora_inspect.extract(one, other, tmp_path / "b", rank=2, include=["nothing.*"])


@pytest.mark.parametrize("is_tuned", [True, False])
def test_one_model_may_be_saved_below_a_prefix(is_tuned, tmp_path):
    base = {name: 0.1 * value for name, value in layouts.first_layout("wan").items()}
    tuned = tuned_of(base)
    whole = tuned if is_tuned else base
    below = {f"model.diffusion_model.{name}": value for name, value in whole.items()} | {"vae.a.weight": torch.ones(4)}
    one, other = pair_of(tmp_path, *((base, below) if is_tuned else (below, tuned)))
    out = tmp_path / "out.safetensors"
    result = lora_inspect.extract(one, other, out, rank=RANK)
    assert result.unpaired == ("vae.a.weight",)
    plain = saved(tmp_path / "plain.safetensors", base)
    assert max(off(folded(tmp_path, plain, out), tuned, base).values()) < 1e-5


def test_a_tensor_without_a_place_has_to_be_finite_before_anything_is_written(tmp_path):
    base = sdxl()
    odd = "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight"
    tuned = tuned_of(base)
    tuned[odd] = torch.full_like(tuned[odd], math.inf)
    one, other = pair_of(tmp_path, base, tuned)
    with pytest.raises(lora_inspect.DamagedError, match=r"token_embedding.weight holds inf in row 0"):
        lora_inspect.extract(one, other, tmp_path / "out.safetensors", rank=RANK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "tuned.safetensors"]
