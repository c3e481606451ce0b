"""What modules are called and made of in another layout, and what is refused in one sentence."""

import json

import pytest
import torch
from adapters import lora
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_inspect.architectures.rows import Interleaved, PairSwapped, Runs, Stacked, Swapped
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.target.target_layout import Destination, Source
from lora_inspect.converting.target.target_names import targets
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter

WIDTH = 4
FLUX = {"ss_base_model_version": "flux1"}
Q, K, V = (f"transformer_blocks.0.attn.to_{name}" for name in "qkv")
QKV = "double_blocks.0.img_attn.qkv"
LINEAR1 = "single_blocks.3.linear1"
PARTS = [f"single_transformer_blocks.3.{leaf}" for leaf in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]


def module(name, out=WIDTH, inputs=WIDTH, spelling="peft", alpha=None, **extra):
    return lora(name, rank=2, out=out, inputs=inputs, spelling=spelling, alpha=alpha, **extra)


@pytest.fixture
def planned(write_safetensors):
    """The destinations of an adapter's modules in a layout."""

    def plan(tensors, layout, says=FLUX):
        file = write_safetensors(tensors, says)
        adapter = read_adapter(open_checkpoint(str(file)))
        return targets(adapter, adapter, None, None, ConvertOptions(layout=layout))

    return plan


def shown(found):
    return {
        destination.module.name.key: [(source.module.name.body, source.runs) for source in destination.sources]
        for destination in found
    }


def test_without_a_layout_everything_is_as_it_is(planned):
    found = planned(module(f"transformer.{Q}"), None)
    (module_of,) = (destination.sources[0].module for destination in found)
    assert found == (Destination(module_of, (Source(module_of),)),)


@pytest.mark.parametrize(
    ("name", "layout", "expected"),
    [
        ("transformer.proj_out", "original", "diffusion_model.final_layer.linear"),
        ("diffusion_model.final_layer.linear", "diffusers", "transformer.proj_out"),
        ("lora_transformer_proj_out", "original", "lora_unet_final_layer_linear"),
        ("lora_unet_final_layer_linear", "diffusers", "lora_transformer_proj_out"),
        ("lycoris_final_layer_linear", "diffusers", "lycoris_proj_out"),
        ("final_layer.linear", "diffusers", "proj_out"),
        ("base_model.model.proj_out", "original", "base_model.model.final_layer.linear"),
        # What is there already stays, under the name that readers of the layout have.
        ("transformer.proj_out", "diffusers", "transformer.proj_out"),
        ("diffusion_model.proj_out", "diffusers", "transformer.proj_out"),
        ("transformer.final_layer.linear", "original", "diffusion_model.final_layer.linear"),
    ],
)
def test_a_module_of_its_own_is_only_called_otherwise(name, layout, expected, planned):
    others = module("transformer.x_embedder") if "proj_out" in name else module("diffusion_model.img_in")
    spelling = "kohya" if name.startswith(("lora_", "lycoris_")) else "peft"
    body = "proj_out" if "proj" in name else "final_layer.linear"
    found = shown(planned({**others, **module(name, spelling=spelling, alpha=1.0)}, layout))
    assert found[expected] == [(body.replace(".", "_") if spelling == "kohya" else body, None)]


@pytest.mark.parametrize("present", [[0], [2], [0, 2], [0, 1, 2], [2, 1, 0]])
def test_parts_of_a_fused_module_have_their_rows_of_it(present, planned):
    paths = [(Q, K, V)[at] for at in present]
    tensors = {key: value for path in paths for key, value in module(f"transformer.{path}").items()}
    (found,) = planned(tensors, "original")
    assert found.rows == 3 * WIDTH
    assert sorted(shown([found])[f"diffusion_model.{QKV}"]) == sorted(
        ((Q, K, V)[at], Runs(at * WIDTH, WIDTH)) for at in present
    )


@pytest.mark.parametrize("at", [0, 3])
def test_one_part_tells_how_many_rows_the_others_have(at, planned):
    out = (WIDTH, WIDTH, WIDTH, 4 * WIDTH)[at]
    (found,) = planned(module(f"transformer.{PARTS[at]}", out=out), "original")
    assert found.rows == 7 * WIDTH
    assert found.sources[0].runs == Runs(at * WIDTH, out)


def test_a_fused_module_goes_into_each_of_its_parts(planned):
    found = planned(module(f"diffusion_model.{LINEAR1}", out=7 * WIDTH), "diffusers")
    assert shown(found) == {
        f"transformer.{path}": [(LINEAR1, Runs(0, length, at * WIDTH))]
        for at, (path, length) in enumerate(zip(PARTS, [WIDTH] * 3 + [4 * WIDTH], strict=True))
    }
    assert [destination.rows for destination in found] == [WIDTH, WIDTH, WIDTH, 4 * WIDTH]


@pytest.mark.parametrize(
    ("name", "layout"), [("transformer.norm_out.linear", "original"),
                         ("diffusion_model.final_layer.adaLN_modulation.1", "diffusers")]
)  # fmt: skip
def test_halves_change_places(name, layout, planned):
    (found,) = planned(module(name, out=2 * WIDTH), layout)
    assert sorted(found.sources[0].runs.each()) == [(0, WIDTH, WIDTH), (WIDTH, 2 * WIDTH, 0)]


def test_text_encoders_keep_their_names(planned):
    encoder = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    tensors = {**module("lora_transformer_proj_out", spelling="kohya"), **module(encoder, 768, 768, spelling="kohya")}
    assert encoder in shown(planned(tensors, "original"))


@pytest.mark.parametrize(("arrangement", "part", "rows", "inputs", "whole"), [
    (Stacked((1, 1, 1, 4)), 3, 8, 5, 14),
    (Stacked((1, 1, 1, 4)), 3, 9, 5, None),
    (Stacked(("inputs", 1, 1)), 1, 2, 5, 9),
    (Stacked(("inputs", 1, 1)), 0, 5, 5, None),
    (Interleaved(2), 1, 3, 5, 6),
])  # fmt: skip
def test_rows_of_the_whole_from_those_of_one_part(arrangement, part, rows, inputs, whole):
    assert arrangement.rows(part, rows, inputs) == whole
    if whole is not None:
        assert arrangement.runs(whole, inputs)[part].rows == rows


def test_what_a_second_expert_is_called_in_the_original_layout_is_not_known(refusal):
    tensors = {**module("transformer.blocks.0.attn1.to_q"), **module("transformer_2.blocks.0.attn1.to_q")}
    assert "transformer_2.blocks.0.attn1.to_q is of a second expert" in refusal(
        tensors, "original", says={"ss_base_model_version": "wan"}
    )


def test_a_second_expert_keeps_the_names_that_diffusers_has(planned):
    name = "transformer_2.blocks.0.attn1.to_q"
    tensors = {**module("transformer.blocks.0.attn1.to_q"), **module(name)}
    assert name in shown(planned(tensors, "diffusers", {"ss_base_model_version": "wan"}))


@pytest.mark.parametrize(("arrangement", "rows"), [
    (Stacked(("inputs", 1, 1)), 5), (Stacked((1, 1)), 0), (Stacked((1, 2)), 4), (Interleaved(2), 0),
    (Interleaved(2, run=2), 6), (Swapped(), 0), (Swapped(), 3), (PairSwapped(), 0),
])  # fmt: skip
def test_rows_that_are_no_whole(arrangement, rows):
    assert arrangement.runs(rows, 5) is None


def test_a_fused_layer_stays_where_layers_are_to_be_fused(planned):
    name = "diffusion_model.model.layers.0.mlp.gate_up_proj"
    assert shown(planned(module(name, 2 * WIDTH), "fused", None)) == {name: [("model.layers.0.mlp.gate_up_proj", None)]}


@pytest.fixture
def refusal(run, write_safetensors, tmp_path):
    def convert(tensors, layout, *options, says=FLUX):
        out = tmp_path / "out.safetensors"
        file = write_safetensors(tensors, says)
        said = run("convert", file, "--layout", layout, "-o", out, *options).refusal
        assert not out.exists()
        assert str(file) in said
        return said

    return convert


def magnitude(out):
    return {"lora_magnitude_vector": ("F32", (out,), 1.0)}


MANY = {
    key: tensor
    for at in range(1, 19)
    for key, tensor in module(f"transformer.transformer_blocks.{at}.norm1.linear", 6 * WIDTH).items()
}
REFUSED = {
    "no family": (module("transformer.a.b"), "original", (), "no model family"),
    "no layouts": (module("bert.encoder.layer.0.attention.self.query"), "original", (), "no other layout"),
    "layouts without names": (module("model.layers.0.mlp.down_proj"), "original", (), "fused and split; choose one"),
    "layouts of other names": (module("transformer.proj_out"), "fused", (), "original and diffusers; choose one"),
    "both layouts": (
        {**MANY, **module(f"transformer.{Q}"), **module(f"transformer.{QKV}", 3 * WIDTH)},
        "original",
        (),
        "write one of them to a separate file",
    ),
    "both names": (
        {**MANY, **module("transformer.proj_out"), **module("diffusion_model.final_layer.linear")},
        "original",
        (),
        "write one of them to a separate file",
    ),
    "a name of no module": (
        {**MANY, **module("lora_transformer_time_embed_x", spelling="kohya", alpha=1)},
        "original",
        (),
        "lora_transformer_time_embed_x is no module of FLUX.1",
    ),
    "factors of a kernel": (
        module(f"diffusion_model.{QKV}", 3 * WIDTH, kernel=(1, 1)), "diffusers", (), "cannot be split"
    ),
    "a magnitude of one part of three": (
        {
            key: tensor
            for path, extra in ((K, {}), (Q, {"dora_scale": ("F32", (WIDTH, 1), 1.0)}), (V, {}))
            for key, tensor in module(
                f"lora_transformer_{path.replace('.', '_')}", spelling="kohya", alpha=1.0, **extra
            ).items()
        },
        "original",
        ("--keep-dora", "--allow-partial-dora"),
        "attn_to_q has a magnitude, but other rows of the layer",
    ),
    "two schemes": (
        {**module(f"transformer.{Q}"), **module(f"lora_transformer_{K.replace('.', '_')}", spelling="kohya", alpha=1)},
        "original",
        (),
        "write one of them to a separate file",
    ),
    "rows that are no parts": (
        module(f"diffusion_model.{LINEAR1}", 7 * WIDTH + 1), "diffusers", (), "do not show their rows"
    ),
    "a part that tells no rows": (
        {**module(f"transformer.{Q}"), **module(f"transformer.{K}", out=5)}, "original", (), "do not show their rows"
    ),
    "parts of other inputs": (
        {**module(f"transformer.{Q}"), **module(f"transformer.{K}", inputs=5)}, "original", (), "do not show their rows"
    ),
    "two layers in one": (
        {**module(f"transformer.{Q}"), f"transformer.{Q}.diff": ("F32", (5, WIDTH), 1.0)},
        "original", (), "mixes tensors of a layer of",
    ),
    "a bias of another layer": (
        {**module(f"diffusion_model.{QKV}", 3 * WIDTH), f"diffusion_model.{QKV}.diff_b": ("F32", (5,), 1.0)},
        "diffusers", (), "with tensors of one of [5, None]",
    ),
    "some magnitudes": (
        module(f"transformer.{Q}", **magnitude(WIDTH)), "original", ("--keep-dora",), "but other rows of the layer"
    ),
    "magnitudes of two spellings": (
        {
            **module(f"transformer.{Q}", **magnitude(WIDTH)),
            **module(f"transformer.{K}", **{"lora_magnitude_vector.weight": ("F32", (WIDTH,), 1.0)}),
            **module(f"transformer.{V}", **magnitude(WIDTH)),
        },
        "original", ("--keep-dora",), "in another spelling",
    ),
    "magnitudes of inputs": (
        {
            key: tensor
            for path in (Q, K, V)
            for key, tensor in module(
                f"lora_transformer_{path.replace('.', '_')}", WIDTH, 5, "kohya", 1.0, dora_scale=("F32", (1, 5), 1.0)
            ).items()
        },
        "original", ("--keep-dora",), "norm covers all rows",
    ),
    "a magnitude of inputs": (
        module("lora_unet_double_blocks_0_img_attn_qkv", 3 * WIDTH, 5, "kohya", 1.0,
               dora_scale=("F32", (1, 5), 1.0)),
        "diffusers", ("--keep-dora",), "norm covers all rows",
    ),
    "LoKr": (
        {f"diffusion_model.{QKV}.lokr_w{number}": ("F32", shape, 1.0) for number, shape in ((1, (3, 2)), (2, (4, 2)))},
        "diffusers", (), "cannot be split",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(case, refusal):
    tensors, layout, options, sentence = case
    assert sentence in refusal(tensors, layout, *options)


def test_a_layer_that_possible_families_call_otherwise_is_not_guessed(refusal):
    """HunyuanVideo and HunyuanImage have these names, and diffusers two names for the layer of the timestep."""
    blocks = {
        key: tensor
        for at in range(10)
        for key, tensor in module(f"diffusion_model.double_blocks.{at}.img_attn_qkv", 3 * WIDTH).items()
    }
    tensors = blocks | module("diffusion_model.time_in.mlp.0")
    assert "time_in.mlp.0 of HunyuanVideo has no known counterpart" in refusal(tensors, "diffusers", says=None)


def test_a_query_of_other_rows_than_inputs_is_no_part_of_a_fused_layer(refusal):
    attention = "diffusion_model.model.layers.0.self_attn"
    tensors = {**module(f"{attention}.q_proj", 2 * WIDTH), **module(f"{attention}.k_proj", 2)}
    assert "do not show their rows" in refusal(tensors, "fused", says=None)


def test_layers_that_not_all_possible_families_fuse_are_not_left_apart(refusal):
    """HiDream-O1 has a language model with these names and widths, whose layers are never fused."""
    tensors = module("diffusion_model.model.language_model.layers.1.self_attn.q_proj", 4096, 4096)
    assert "q_proj of Language model (Llama line) has no known counterpart in the fused" in refusal(
        tensors, "fused", says=None
    )


def test_an_adapter_in_the_layout_already_is_only_made_standard(run, write_safetensors, tmp_path):
    tensors = module(f"lora_unet_{QKV.replace('.', '_')}", 3 * WIDTH, spelling="kohya", alpha=1.0)
    file, out = write_safetensors(tensors, FLUX), tmp_path / "out.safetensors"
    assert run("convert", file, "--layout", "original", "-o", out).status == 0
    before, after = load_file(file), load_file(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_config_of_peft_names_the_modules_of_the_output(run, tmp_path):
    folder, out = tmp_path / "adapter", tmp_path / "out"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["to_q", "proj_out"], "use_rslora": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for path in (Q, "proj_out"):
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(2, WIDTH)
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(WIDTH, 2)
    save_file(tensors, folder / "adapter_model.safetensors", FLUX)
    assert run("convert", folder, "--layout", "original", "-o", out).status == 0
    written = json.loads((out / "adapter_config.json").read_text())
    assert sorted(written["target_modules"]) == [QKV, "final_layer.linear"]
    assert written["lora_alpha"] / written["r"] == pytest.approx(4 / 2**0.5)
    assert not written["use_rslora"]


def test_factors_of_other_dtypes_and_scales_share_one_layer(run, write_safetensors, tmp_path):
    generator = torch.Generator().manual_seed(1)
    tensors, deltas = {}, []
    for path, dtype, alpha, rank in (
        (Q, torch.bfloat16, 1.0, 2),
        (K, torch.float16, 3.0, 3),
        (V, torch.float32, 0.7, 1),
    ):
        name = "lora_transformer_" + path.replace(".", "_")
        down = torch.randn(rank, WIDTH, generator=generator).to(dtype)
        up = torch.randn(WIDTH, rank, generator=generator).to(dtype)
        tensors |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(alpha),
        }
        deltas.append(float(torch.tensor(alpha)) / rank * up.double() @ down.double())
    file, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, file, FLUX)
    assert run("convert", file, "--layout", "original", "-o", out).status == 0
    found = load_file(out)
    name = "lora_unet_" + QKV.replace(".", "_")
    down, up = (found[f"{name}.lora_{side}.weight"].double() for side in ("down", "up"))
    assert down.shape == (6, WIDTH)
    change = float(found[f"{name}.alpha"]) / 6 * up @ down
    torch.testing.assert_close(change, torch.cat(deltas), rtol=2**-20, atol=1e-6)


def test_what_a_lora_adds_to_the_bias_goes_along(run, tmp_path):
    name = "lora_unet_" + QKV.replace(".", "_")
    bias = torch.arange(3.0 * WIDTH)
    tensors = {
        f"{name}.lora_down.weight": torch.randn(2, WIDTH),
        f"{name}.lora_up.weight": torch.randn(3 * WIDTH, 2),
        f"{name}.lora_up.bias": bias,
        f"{name}.diff": torch.randn(3 * WIDTH, WIDTH),
        f"{name}.alpha": torch.tensor(1.0),
    }
    file, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, file, FLUX)
    assert run("convert", file, "--layout", "diffusers", "-o", out).status == 0
    found = load_file(out)
    for at, path in enumerate((Q, K, V)):
        part = "lora_transformer_" + path.replace(".", "_")
        rows = slice(at * WIDTH, (at + 1) * WIDTH)
        assert torch.equal(found[f"{part}.lora_up.bias"], bias[rows])
        assert torch.equal(found[f"{part}.diff"], tensors[f"{name}.diff"][rows])
        assert float(found[f"{part}.alpha"]) == 1.0
    assert len(found) == 15


def test_a_bias_on_the_up_layer_has_the_scale_of_the_lora_beside_it_where_parts_have_others(run, tmp_path):
    generator = torch.Generator().manual_seed(2)
    tensors, weights, biases = {}, [], []
    for path, alpha, has_bias in ((Q, 1.0, True), (K, 6.0, True), (V, -8.0, False)):
        name = "lora_transformer_" + path.replace(".", "_")
        down, up = torch.randn(2, WIDTH, generator=generator), torch.randn(WIDTH, 2, generator=generator)
        bias = torch.randn(WIDTH, generator=generator) if has_bias else torch.zeros(WIDTH)
        tensors |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(alpha),
        }
        tensors |= {f"{name}.lora_up.bias": bias} if has_bias else {}
        weights.append(alpha / 2 * up.double() @ down.double())
        biases.append(alpha / 2 * bias.double())
    file, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, file, FLUX)
    assert run("convert", file, "--layout", "original", "-o", out).status == 0
    found = load_file(out)
    name = "lora_unet_" + QKV.replace(".", "_")
    down, up, bias = (found[f"{name}.{end}"].double() for end in ("lora_down.weight", "lora_up.weight", "lora_up.bias"))
    scale = float(found[f"{name}.alpha"]) / len(down)
    torch.testing.assert_close(scale * up @ down, torch.cat(weights), rtol=2**-20, atol=1e-6)
    torch.testing.assert_close(scale * bias, torch.cat(biases), rtol=2**-20, atol=1e-6)


def test_parts_of_loha_that_share_one_of_two_factors_keep_the_other_one(run, tmp_path):
    generator = torch.Generator().manual_seed(3)
    shared, tensors, deltas = torch.randn(2, WIDTH, generator=generator), {}, []
    for path in (Q, K, V):
        name = "lora_transformer_" + path.replace(".", "_")
        one, other = (torch.randn(WIDTH, 2, generator=generator) for _ in range(2))
        below = torch.randn(2, WIDTH, generator=generator)
        factors = {"w1_a": one, "w1_b": shared.clone(), "w2_a": other, "w2_b": below}
        tensors |= {f"{name}.hada_{role}": factor for role, factor in factors.items()}
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
        deltas.append((one.double() @ shared.double()) * (other.double() @ below.double()))
    file, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, file, FLUX)
    assert run("convert", file, "--layout", "original", "-o", out).status == 0
    found = load_file(out)
    name = "lora_unet_" + QKV.replace(".", "_")
    first, below_first, second, below_second = (
        found[f"{name}.hada_{role}"].double() for role in ("w1_a", "w1_b", "w2_a", "w2_b")
    )
    change = float(found[f"{name}.alpha"]) / len(below_first) * (first @ below_first) * (second @ below_second)
    torch.testing.assert_close(change, torch.cat(deltas), rtol=2**-20, atol=1e-6)


def test_the_scale_that_goes_into_the_factors_of_a_fused_layer_is_recorded(run, tmp_path):
    says = {"lora_adapter_metadata": json.dumps({"transformer.r": 2, "transformer.lora_alpha": 6}), **FLUX}
    tensors = {}
    for path in (Q, K, V):
        tensors[f"transformer.{path}.lora_A.weight"] = torch.randn(2, WIDTH)
        tensors[f"transformer.{path}.lora_B.weight"] = torch.randn(WIDTH, 2)
    file, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, file, says)
    assert run("convert", file, "--layout", "original", "-o", out).status == 0
    with safe_open(out, "pt") as opened:
        assert json.loads(opened.metadata()["lora_inspect.folded"]) == {"scale": 3.0}
    found = load_file(out)
    name = f"diffusion_model.{QKV}"
    change = found[f"{name}.lora_up.weight"] @ found[f"{name}.lora_down.weight"]
    parts = [
        3 * tensors[f"transformer.{p}.lora_B.weight"] @ tensors[f"transformer.{p}.lora_A.weight"] for p in (Q, K, V)
    ]
    torch.testing.assert_close(change, torch.cat(parts))


# Attention of the image stream in names of kohya: FLUX.1 and Chroma have img_attn.proj, HunyuanVideo img_attn_proj.
ATTENTION = "lora_unet_double_blocks_0_img_attn_proj"


# diffusers reads kohya's names of FLUX.1, so they stay once the family is known.
@pytest.mark.parametrize(
    ("request_", "key"),
    [(["--to", "diffusers"], ATTENTION), (["--layout", "diffusers"], "attn_to_out_0")],
    ids=["names", "layout"],
)
def test_module_of_several_families_is_ambiguous(request_, key, run, write_safetensors, tmp_path):
    file = write_safetensors(module(ATTENTION, 3072, 3072, "kohya", 2.0))
    ended = run("convert", file, *request_, "-o", tmp_path / "o.safetensors", "--json")
    assert (ended.status, json.loads(ended.stdout)["code"]) == (1, "ambiguous")
    assert f"{ATTENTION} is ambiguous: it may be a module of FLUX.1, Chroma, " in ended.stderr
    assert "--architecture flux, chroma, " in ended.stderr
    assert "is no module of" not in ended.stderr
    assert not (tmp_path / "o.safetensors").exists()
    named = run("convert", file, *request_, "--architecture", "flux", "-o", tmp_path / "o.safetensors")
    assert named.status == 0, named.stderr
    assert any(key in name for name in load_file(tmp_path / "o.safetensors"))


def test_module_of_no_candidate_family_is_refused(run, write_safetensors, tmp_path):
    names = ["lora_unet_odd", *(f"lora_unet_double_blocks_{at}_img_attn_proj" for at in range(12))]
    tensors = {key: tensor for name in names for key, tensor in module(name, 3072, 3072, "kohya", 2.0).items()}
    ended = run("convert", write_safetensors(tensors), "--to", "diffusers", "-o", tmp_path / "o.safetensors", "--json")
    assert (ended.status, json.loads(ended.stdout)["code"]) == (1, "refused")
    assert "lora_unet_odd is no module of FLUX.1, Chroma" in ended.stderr
