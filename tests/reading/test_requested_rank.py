"""Ranks that sd-scripts was asked for against those of the tensors: split_qkv, ranks by layer, contradictions."""

import json

import pytest
import torch
from adapters import lora
from safetensors.torch import load_file, save_file

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.peft.regex import Steps

WIDTH = 8
# The layers that networks of sd-scripts save in parts, with the rows of each part: qkv in three equal ones, the first
# layer of a single block as qkv and the input of its MLP.
QKV, QKV_AND_MLP = (WIDTH,) * 3, (WIDTH, WIDTH, WIDTH, 4 * WIDTH)
SPLIT_LAYERS = {
    "networks.lora_flux": {"double_blocks.0.img_attn.qkv": QKV, "single_blocks.0.linear1": QKV_AND_MLP},
    "networks.lora_hunyuan_image": {"double_blocks.0.txt_attn_qkv": QKV, "single_blocks.0.linear1": QKV_AND_MLP},
    "networks.lora_sd3": {"joint_blocks.0.x_block.attn.qkv": QKV},
    "networks.lora_lumina": {"layers.0.attention.qkv": (WIDTH, WIDTH // 2, WIDTH // 2)},
}


def about(module="networks.lora_flux", rank=4, alpha=6.0, **args):
    return {
        "ss_network_module": module,
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_network_args": json.dumps(args),
    }


def parts_of(rows, rank, generator):
    """(up, down) of each part, up (rows, rank) and down (rank, WIDTH)."""
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return [(draw(count, rank), draw(rank, WIDTH)) for count in rows]


def saved(module, parts, alpha):
    """The tensors as sd-scripts saves them: down one below the other, up block-diagonal, alpha as it was."""
    return {
        f"{module}.lora_down.weight": torch.cat([down for _, down in parts]),
        f"{module}.lora_up.weight": torch.block_diag(*[up for up, _ in parts]),
        f"{module}.alpha": torch.tensor(alpha),
    }


def trained(parts, alpha, rank):
    """The change that was trained: each part's product at alpha/rank, one below the other, in float64."""
    return torch.cat([up.double() @ down.double() * (alpha / rank) for up, down in parts])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("factor", "scale"), [(1.0, 1.5), (-1.0, 1.5), (0.0, 1.5)])
def test_layers_saved_in_parts_are_known_in_every_type_and_after_a_negation(factor, scale, dtype, tmp_path):
    parts = parts_of(QKV, 4, torch.Generator().manual_seed(4))
    tensors = saved("lora_unet_double_blocks_0_img_attn_qkv", parts, 6.0)
    up = "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"
    tensors[up] = (tensors[up] * factor).to(dtype)
    save_file(tensors, tmp_path / "adapter.safetensors", about(split_qkv="True"))
    (contribution,) = read_adapter(open_checkpoint(str(tmp_path / "adapter.safetensors"))).contributions
    assert contribution.scale == scale


def test_layers_saved_in_parts_of_four_bits_are_read(read):
    tensors = {
        f"{QKV_KEY}.lora_down.weight": ("F4", (12, WIDTH), bytes(12 * WIDTH // 2)),
        f"{QKV_KEY}.lora_up.weight": ("F4", (3 * WIDTH, 12), bytes(3 * WIDTH * 12 // 2)),
        f"{QKV_KEY}.alpha": ("F32", (), 6.0),
    }
    assert only(read(tensors, about(split_qkv="True"))).scale == 1.5


@pytest.mark.parametrize("entry", [(0, 4), (0, -1), (-1, 0), (-1, 7)])
@pytest.mark.parametrize("value", [1e-30, -(2.0**-126), 128.0])
def test_one_number_outside_of_the_parts_is_a_layer_trained_as_a_whole(entry, value, tmp_path):
    tensors = saved("lora_unet_double_blocks_0_img_attn_qkv", parts_of(QKV, 4, torch.Generator().manual_seed(4)), 6.0)
    tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"][entry] = value
    save_file(tensors, tmp_path / "adapter.safetensors", about(split_qkv="True"))
    (contribution,) = read_adapter(open_checkpoint(str(tmp_path / "adapter.safetensors"))).contributions
    assert contribution.scale == 0.5


@pytest.mark.numeric
@pytest.mark.parametrize("convert_first", [False, True])
@pytest.mark.parametrize("network", SPLIT_LAYERS)
def test_layers_that_split_qkv_saved_in_parts_are_applied_in_full(network, convert_first, tmp_path):
    generator = torch.Generator().manual_seed(3)
    rank, alpha = 4, 6.0
    layers = SPLIT_LAYERS[network]
    parts = {layer: parts_of(rows, rank, generator) for layer, rows in layers.items()}
    tensors = {}
    for layer, found in parts.items():
        tensors |= saved("lora_unet_" + layer.replace(".", "_"), found, alpha)
    base = {f"{layer}.weight": torch.zeros(sum(rows), WIDTH) for layer, rows in layers.items()}
    save_file(base, tmp_path / "base.safetensors")
    adapter = tmp_path / "adapter.safetensors"
    save_file(tensors, adapter, about(network, rank, alpha, split_qkv="True"))
    if convert_first:
        convert_to_standard(str(adapter), str(tmp_path / "standard.safetensors"), ConvertOptions())
        adapter = tmp_path / "standard.safetensors"
        assert "split_qkv" not in json.dumps(open_checkpoint(str(adapter)).metadata)
    merge(
        plan_merge(str(tmp_path / "base.safetensors"), [(str(adapter), 1.0)], MergeOptions()),
        str(tmp_path / "merged.safetensors"),
    )
    merged = load_file(tmp_path / "merged.safetensors")
    for layer, found in parts.items():
        expected = trained(found, alpha, rank).float()
        torch.testing.assert_close(merged[f"{layer}.weight"], expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def read(write_safetensors):
    def read_tensors(tensors, metadata, **settings):
        return read_adapter(open_checkpoint(str(write_safetensors(tensors, metadata))), Settings(**settings))

    return read_tensors


def only(adapter):
    (contribution,) = adapter.contributions
    return contribution


def block_diagonal(module, parts, rank, alpha=6.0, rows=WIDTH):
    """A layer of equal parts with ones on the diagonal blocks of up, as `write_safetensors` takes it."""
    row = [b"".join(b"\0\0\x80\x3f" if j // rank == i else bytes(4) for j in range(parts * rank)) for i in range(parts)]
    up = b"".join(line * rows for line in row)
    return {
        **lora(module, parts * rank, alpha, parts * rows, WIDTH),
        f"{module}.lora_up.weight": ("F32", (parts * rows, parts * rank), up),
    }


LINEAR1, QKV_KEY = "lora_unet_single_blocks_0_linear1", "lora_unet_double_blocks_0_img_attn_qkv"

# tensors, metadata, scale; alpha is 6 and the asked rank 4
RANKS = {
    "qkv in three parts": (block_diagonal(QKV_KEY, 3, 4), about(split_qkv="True"), 1.5),
    "linear1 in four parts": (block_diagonal(LINEAR1, 4, 4), about(split_qkv="True"), 1.5),
    "dotted names": (
        block_diagonal("diffusion_model.double_blocks.0.img_attn.qkv", 3, 4), about(split_qkv="True"), 1.5),
    "a rank by layer type": (
        block_diagonal(LINEAR1, 4, 2), about(split_qkv="True", single_dim="2"), 3.0),
    "a rank by layer type of other layers": (
        block_diagonal(QKV_KEY, 3, 4), about(split_qkv="True", single_dim="2"), 1.5),
    "a rank by regular expression": (
        block_diagonal(QKV_KEY, 3, 2), about(split_qkv="True", network_reg_dims="img_attn=2,single=8"), 3.0),
    "no asked rank is sd-scripts' 4": (block_diagonal(QKV_KEY, 3, 4), about(rank=None, split_qkv="True"), 1.5),
    "alpha 0 stores the rank": (
        block_diagonal(QKV_KEY, 3, 4, alpha=4.0), about(alpha=0, split_qkv="True"), 1.0),
    "another program made up for the parts": (
        block_diagonal(QKV_KEY, 3, 4, alpha=18.0), about(split_qkv="True"), 1.5),
    "a dense up was trained as one": (lora(QKV_KEY, 12, 6.0, 3 * WIDTH, WIDTH), about(split_qkv="True"), 0.5),
    "layers that are not split": (lora("lora_unet_single_blocks_0_linear2", 4, 6.0), about(split_qkv="True"), 1.5),
    "text encoders are not split": (lora("lora_te1_double_qkv", 4, 6.0), about(split_qkv="True"), 1.5),
    "another layer type's rank": (lora("lora_unet_double_blocks_0_img_mlp_0", 2, 6.0), about(img_mlp_dim="2"), 3.0),
    "an embedding's rank": (lora("lora_unet_txt_in", 2, 6.0), about(in_dims="[1,1,1,1,2]"), 3.0),
    "convolutions have a rank of their own": (
        lora("lora_unet_conv", 2, 6.0, kernel=(3, 3)), about("networks.lora", conv_dim="2"), 3.0),
    "convolutions of size 1 are not compared": (
        lora("lora_unet_conv", 2, 6.0, kernel=(1, 1)), about("networks.lora", conv_dim="2"), 3.0),
    "ranks by block are rules of their own": (
        lora("lora_unet_a", 2, 6.0), about("networks.lora", block_dims="1,2,3"), 3.0),
    "Dynamic": (lora("lora_unet_a", 2, 6.0), about("networks.lora", "Dynamic", "Dynamic"), 3.0),
    "another rank at the same scale": (lora("lora_unet_a", 2, 3.0), about("networks.lora"), 1.5),
    "a layer smaller than the rank": (lora("lora_unet_a", 5, 6.0), about("networks.lora", 16), 1.2),
    "no alpha is scale 1": (lora("lora_unet_a", 2, None), about("networks.lora"), 1.0),
    "LyCORIS": (lora("lora_unet_a", 2, 6.0), about("lycoris.kohya"), 3.0),
    "DyLoRA": (lora("lora_unet_a", 2, 6.0), about("networks.dylora"), 3.0),
    "musubi-tuner, which splits nothing": (
        lora(QKV_KEY, 4, 6.0), {**about(split_qkv="True"), "ss_base_model_version": "flux_kontext"}, 1.5),
    "our own": (lora("lora_unet_a", 8, 6.0), {**about("networks.lora"), "lora_inspect.network": "0.1.0"}, 0.75),
    "an asked rank that is no number": (lora("lora_unet_a", 2, 6.0), about("networks.lora", "1e999"), 3.0),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "metadata", "scale"), RANKS.values(), ids=RANKS)
def test_the_scale_where_ranks_were_asked_for(tensors, metadata, scale, read):
    adapter = read(tensors, metadata)
    assert only(adapter).scale == pytest.approx(scale, rel=1e-12)
    assert [problem for problem in adapter.problems if problem.severity == "error"] == []


# tensors, metadata, what the sentence says, which alphas it names
CONTRADICTIONS = {
    "another rank, the same alpha": (
        lora("lora_unet_a", 16, 6.0), about("networks.lora"), "says rank 4, but the tensors have rank 16", (6, 24)),
    "split, but not marked": (
        block_diagonal(QKV_KEY, 3, 4), about(), "says rank 4, but the tensors have rank 12", (6, 18)),
    "marked with a word that sd-scripts takes for no": (
        block_diagonal(QKV_KEY, 3, 4), about(split_qkv="true"), "says rank 4, but the tensors have rank 12", (6, 18)),
    "marked as split, but of one part's rank": (
        lora(QKV_KEY, 4, 6.0, 3 * WIDTH, WIDTH), about(split_qkv="True"), "in each of 3 parts", (6,)),
    "split, with an alpha of neither": (
        block_diagonal(QKV_KEY, 3, 4, alpha=9.0), about(split_qkv="True"), "is neither the requested 6", (9, 27)),
    "split, resized to ranks that nobody says": (
        block_diagonal(QKV_KEY, 3, 4), about(rank="Dynamic", split_qkv="True"),
        "a rank that the metadata does not give", ()),
    "an expression that is not compared": (
        lora("lora_unet_a", 2, 6.0), about(network_reg_dims="b=3,(a+)+$=4"), "'(a+)+$' has an unbounded repeat", ()),
    "a rank by layer type that is not theirs": (
        lora(LINEAR1, 4, 6.0), about(single_dim="2"), "says rank 2, but the tensors have rank 4", (6, 12)),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "metadata", "says", "alphas"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_rank_that_contradicts_the_metadata_leaves_the_scale_unknown(tensors, metadata, says, alphas, read):
    adapter = read(tensors, metadata)
    (problem,) = (problem for problem in adapter.problems if problem.severity == "error")
    assert (only(adapter).scale, problem.code, adapter.open) == (None, "scale-unknown", ("alpha",))
    assert says in problem.message
    assert problem.message.endswith("give --alpha N")
    for alpha in alphas:
        assert f"alpha={alpha} " in problem.message
        settled = only(read(tensors, metadata, alpha=float(alpha)))
        assert settled.scale == pytest.approx(alpha / settled.rank)


def test_info_says_which_layers_were_saved_in_parts(read):
    adapter = read(block_diagonal(QKV_KEY, 3, 4), about(split_qkv="True"))
    assert "alpha 6 counts for each of the 3 saved parts" in only(adapter).why
    (item,) = (item for item in adapter.evidence if item.about == "scale")
    assert "3 parts" in item.says
    assert item.where == "metadata ss_network_args split_qkv"


CONFIG = {"transformer.r": 4, "transformer.lora_alpha": 6, "transformer.rank_pattern": {"a.*b": 4}}
PATTERNS = {"asked": about(network_reg_dims="a.*b=4"), "config": {"lora_adapter_metadata": json.dumps(CONFIG)}}


@pytest.mark.parametrize("metadata", PATTERNS.values(), ids=PATTERNS)
def test_all_patterns_of_a_file_are_counted_together(metadata, write_safetensors, monkeypatch):
    spent = Steps(0)
    monkeypatch.setattr("lora_inspect.reading.adapter.Steps", lambda: spent)
    adapter = read_adapter(open_checkpoint(str(write_safetensors(lora("transformer.blocks.0.attn.q"), metadata))))
    assert any("takes too long" in problem.message for problem in adapter.problems)
