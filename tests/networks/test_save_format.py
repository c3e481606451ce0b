"""`save_format`: what a reader of alpha/rank and whole layers makes of a file, and how training goes on from it."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.scale.dora_evidence import NORMS_KEY, NormsRecord
from networks import lora
from networks.network_args import parse

KINDS = {
    "plain": {},
    "rslora": {"use_rslora": "True"},
    "split_qkv": {"split_qkv": "True"},
    "slices": {"split_dims": "{'.*out': [4, 8], '.*qkv': [3, 9, 24]}"},
    "rslora, split_qkv": {"use_rslora": "True", "split_qkv": "True"},
    "rslora, slices": {"use_rslora": "True", "split_dims": "{'.*out': [4, 8]}"},
    "rslora, patterns": {"use_rslora": "True", "rank_pattern": "{'.*qkv': 3}", "alpha_pattern": "{'.*out': 7.0}"},
    "rslora, conv_dim": {"use_rslora": "True", "conv_dim": "2", "conv_alpha": "5"},
    "rslora, alpha 0": {"use_rslora": "True", "alpha": 0},
    "pissa": {"init_lora_weights": "pissa", "exclude_patterns": "['.*conv']"},
    "rslora, pissa": {"use_rslora": "True", "init_lora_weights": "pissa", "exclude_patterns": "['.*conv']"},
}
DORA = {
    "dora": {"use_dora": "True"},
    "rslora, dora, conv": {"use_rslora": "1", "use_dora": "1", "dora_conv": "1"},
    "dora, split_qkv": {"use_dora": "True", "split_qkv": "True"},
}


class Fused(nn.Module):
    """A block with a fused Linear, a plain one and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.conv = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x):
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        x = x + self.out(torch.tanh(query + key) * value)
        return x + self.conv(x.transpose(1, 2).reshape(len(x), 12, 2, -1)).flatten(2).transpose(1, 2)


def fused():
    torch.manual_seed(6)
    return nn.Sequential(Fused(), Fused()).requires_grad_(False).eval()


def network_on(model, train=True, alpha=3.0, **options):
    network = lora.create_network(["Fused"], "lora_unet", 1.0, 4, alpha, None, None, model, **options)
    network.apply_to(None, model)
    if train:
        torch.manual_seed(7)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def saved(folder, kind, save_format="standard", dtype=torch.float32, metadata=None):
    """(the file of a network of this kind, its network, its model)."""
    model = fused()
    network = network_on(model, save_format=save_format, **{**KINDS, **DORA}[kind])
    file = str(folder / "adapter.safetensors")
    network.save_weights(file, dtype, metadata)
    return file, network, model


def weight_of_a_reader(weights, name, base):
    """What a program of alpha/rank and whole layers makes of a weight, in float64."""
    down, up, alpha = (weights.get(f"{name}.{key}") for key in ("lora_down.weight", "lora_up.weight", "alpha"))
    if down is None or up is None:
        return base.double()
    delta = torch.einsum("or,ri->oi", up.double().flatten(1), down.double().flatten(1)).view(base.shape)
    return base.double() + float(alpha) / down.shape[0] * delta


def read_by_others(weights):
    model = fused().double()
    for path, layer in model.named_modules():
        if hasattr(layer, "weight"):
            layer.weight.copy_(weight_of_a_reader(weights, f"lora_unet_{path.replace('.', '_')}", layer.weight))
    return model


@torch.no_grad()
def error(model, wanted, x):
    """The largest difference of the outputs over the largest change."""
    change = (wanted(x) - fused()(x)).abs().max()
    return float((model(x.double()) - wanted(x).double()).abs().max() / change)


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("kind", KINDS)
def test_programs_of_alpha_over_rank_misread_the_file(kind, tmp_path):
    x = torch.randn(2, 8, 12)
    file, network, model = saved(tmp_path, kind)
    weights = load_file(file)
    assert error(read_by_others(weights), model, x) < 1e-5
    # Nothing is in it that such programs know nothing of, and nothing rounds the alphas.
    assert {key.partition(".")[2] for key in weights} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert {weights[key].dtype for key in weights if key.endswith("alpha")} == {torch.float32}
    # The same reader finds the native form wrong where there is a rule or a slice to know.
    file, network, model = saved(tmp_path, kind, "native")
    is_wrong = error(read_by_others(load_file(file)), model, x) > 0.1
    assert is_wrong == any(part in kind for part in ("rslora", "split", "slices"))
    assert is_wrong == bool(network.use_rslora or any(module.split_dims for module in network.unet_loras))


def without_metadata(file):
    save_file(load_file(file), file)
    return file


def as_pickle(file):
    torch.save(load_file(file), file.replace("safetensors", "pt"))
    return file.replace("safetensors", "pt")


def by_a_trainer(kind):
    """What a trainer writes of a network of this kind."""
    options = dict({**KINDS, **DORA}[kind], verbose="True")
    return {
        "ss_network_dim": 4,
        "ss_network_alpha": str(float(options.pop("alpha", 3.0))),
        "ss_network_args": json.dumps(options),
    }


@pytest.mark.numeric
@pytest.mark.parametrize("metadata", [None, by_a_trainer], ids=["alone", "by a trainer"])
@pytest.mark.parametrize("strip", [str, without_metadata, as_pickle], ids=["file", "no metadata", "pickle"])
@pytest.mark.parametrize("kind", [*KINDS, *DORA])
def test_training_does_not_go_on_from_a_standard_file(kind, strip, metadata, tmp_path, caplog):
    x = torch.randn(2, 8, 12)
    file, network, model = saved(tmp_path, kind, metadata=metadata and metadata(kind))
    other = fused()
    resumed = network_on(other, train=False, **{**KINDS, **DORA}[kind])
    with caplog.at_level("WARNING"):
        result = resumed.load_weights(strip(file))
    assert (result.missing_keys, result.unexpected_keys, caplog.messages) == ([], [], [])
    assert torch.allclose(other(x), model(x), atol=1e-6)
    for again, before in zip(resumed.unet_loras, network.unet_loras, strict=True):
        assert again.scale == pytest.approx(before.scale, rel=1e-6)
        assert again.alpha.item() == pytest.approx(before.alpha.item(), rel=1e-6)
    for key, tensor in network.state_dict().items():
        assert torch.allclose(resumed.state_dict()[key].double(), tensor.double(), rtol=1e-6, atol=1e-6), key


@pytest.mark.numeric
@pytest.mark.parametrize("options", [{}, "its own"], ids=["without options", "with its own options"])
@pytest.mark.parametrize("kind", [kind for kind in (*KINDS, *DORA) if "pissa" not in kind])
def test_a_network_from_a_standard_file_is_another(kind, options, tmp_path):
    """sd-scripts' --dim_from_weights, which passes the network_args, and --base_weights, which does not."""
    x = torch.randn(2, 8, 12)
    file, network, model = saved(tmp_path, kind)
    known = ("use_rslora", "split_qkv", "split_dims", "use_dora")
    options = {name: value for name, value in {**KINDS, **DORA}[kind].items() if options and name in known}
    third = fused()
    resumed, weights = lora.create_network_from_weights(1.0, file, None, None, third, **options)
    resumed.apply_to(None, third)
    resumed.load_weights(file)
    assert torch.allclose(third(x), model(x), atol=1e-6)
    if options:
        assert resumed.use_rslora == network.use_rslora
        assert [m.lora_dim for m in resumed.unet_loras] == [m.lora_dim for m in network.unet_loras]
        assert [m.split_dims for m in resumed.unet_loras] == [m.split_dims for m in network.unet_loras]
    assert [m.scale for m in resumed.unet_loras] == pytest.approx([m.scale for m in network.unet_loras], rel=1e-6)
    merged = fused()
    merging, _ = lora.create_network_from_weights(1.0, file, None, None, merged, for_inference=True, **options)
    merging.merge_to(None, merged, weights)
    assert torch.allclose(merged(x), model(x), atol=1e-5)


@pytest.mark.numeric
@pytest.mark.parametrize("kind", [*KINDS, *DORA])
def test_a_state_dict_without_metadata_merges_to_something_else(kind, tmp_path):
    """musubi-tuner's generators and its --base_weights pass the tensors alone; one of them loads them strictly."""
    x = torch.randn(2, 8, 12)
    file, _, model = saved(tmp_path, kind)
    weights, merged, running = load_file(file), fused(), fused()
    merging = lora.create_arch_network_from_weights(1.0, weights, unet=merged, for_inference=True)
    merging.merge_to(None, merged, weights)
    assert torch.allclose(merged(x), model(x), atol=1e-5)
    network = lora.create_arch_network_from_weights(1.0, weights, unet=running, for_inference=True)
    network.apply_to(None, running, apply_text_encoder=False, apply_unet=True)
    network.load_state_dict(weights, strict=True)
    assert torch.allclose(running(x), model(x), atol=1e-6)


def test_weights_that_say_nothing_are_guessed_to_be_standard(tmp_path):
    """Alphas that are neither the network's nor sqrt(rank) times them prove nothing, and a flag speaks for itself."""
    file, _, _ = saved(tmp_path, "rslora")
    with pytest.raises(ValueError, match="RS-LoRA flag mismatch"):
        network_on(fused(), alpha=2.0, use_rslora="True").load_weights(without_metadata(file))
    plain, _, _ = saved(tmp_path, "plain", "native")
    with pytest.raises(ValueError, match="RS-LoRA flag mismatch"):
        network_on(fused(), use_rslora="True").load_weights(plain)
    native, _, _ = saved(tmp_path, "rslora", "native")
    with pytest.raises(ValueError, match="RS-LoRA flag mismatch"):
        network_on(fused()).load_weights(native)


@pytest.mark.numeric
@pytest.mark.parametrize("strip", [str, without_metadata], ids=["file", "no metadata"])
def test_training_with_rank_1_does_not_go_on_from_a_standard_file(strip, tmp_path):
    """alpha/1 and alpha/sqrt(1) are one number, so that no alpha can tell the rules apart."""
    options = {"use_rslora": "True", "rank_pattern": "{'.*': 1}", "save_format": "standard"}
    x, model, other = torch.randn(2, 8, 12), fused(), fused()
    file = str(tmp_path / "adapter.safetensors")
    network_on(model, **options).save_weights(file, None, None)
    network_on(other, train=False, **options).load_weights(strip(file))
    assert torch.allclose(other(x), model(x), atol=1e-6)


@pytest.mark.parametrize("dropout", ["dropout", "rank_dropout"])
@pytest.mark.parametrize("save_format", ["native", "standard"])
def test_dora_that_dropout_switched_off_is_missed_in_the_weights(save_format, dropout, tmp_path):
    """sd-scripts' --dim_from_weights, with the network_args that the file was trained with."""
    options, file = {"use_dora": "True", dropout: "0.1"}, str(tmp_path / "adapter.safetensors")
    x, model, other = torch.randn(2, 8, 12), fused(), fused()
    network_on(model, save_format=save_format, **options).save_weights(file, None, None)
    again, _ = lora.create_network_from_weights(1.0, file, None, None, other, **options)
    again.apply_to(None, other)
    again.load_weights(file)
    again.eval()
    assert torch.allclose(other(x), model(x), atol=1e-6)


def test_a_standard_file_without_its_metadata_is_taken_for_a_native_one_in_silence(tmp_path, caplog):
    """Its alphas are for alpha/rank, which nothing but the metadata says where the network has no alpha of its own."""
    file, network, _ = saved(tmp_path, "rslora")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    scales = {}
    for known in (metadata, None):
        caplog.clear()
        again = lora.create_arch_network_from_weights(
            1.0, load_file(file), unet=fused(), metadata=known, use_rslora="True"
        )
        said = [
            line for line in caplog.messages if "the network reads their alphas as those of alpha/sqrt(rank)" in line
        ]
        assert len(said) == (known is None)
        assert all("pass its metadata too" in line for line in said)
        scales[known is None] = [module.scale for module in again.unet_loras]
    assert scales[False] == pytest.approx([module.scale for module in network.unet_loras], rel=1e-6)
    assert scales[True] != pytest.approx(scales[False], rel=1e-6)


def test_factors_that_are_no_slices_are_cut(tmp_path):
    file, _, _ = saved(tmp_path, "split_qkv")
    weights = load_file(file)
    weights["lora_unet_0_qkv.lora_up.weight"][0, -1] = 0.1
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"lora_unet_0_qkv.* is not in the network, which splits the module"):
        network_on(fused(), split_qkv="True").load_weights(file)


@pytest.mark.parametrize("metadata", [None, by_a_trainer], ids=["alone", "by a trainer"])
@pytest.mark.parametrize("kind", [*KINDS, *DORA])
def test_a_standard_file_says_another_scale_than_it_has(kind, metadata, tmp_path):
    file, network, _ = saved(tmp_path, kind, dtype=torch.bfloat16, metadata=metadata and metadata(kind))
    adapter = read_adapter(open_checkpoint(file))
    assert [problem for problem in adapter.problems if problem.severity != "note"] == []
    assert (adapter.rslora.value, tuple(adapter.unclaimed)) == (False, ())
    scales = {module.lora_name: module.scale for module in network.unet_loras}
    for name, module in adapter.modules.items():
        assert module.contributions[0].scale == pytest.approx(scales[name], rel=1e-6)
    assert adapter.dora.modules == sum(module.use_dora for module in network.unet_loras)
    assert adapter.dora.axis == ("output" if network.use_dora else None)


def test_what_the_network_was_is_lost(tmp_path):
    with safe_open(saved(tmp_path, "rslora, split_qkv", metadata=by_a_trainer("rslora, split_qkv"))[0], "pt") as file:
        metadata = file.metadata()
    assert metadata["lora_inspect.scale"] == "alpha/rank"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("Dynamic", "Dynamic")
    assert json.loads(metadata["ss_network_args"]) == {"verbose": "True"}
    assert json.loads(metadata["lora_inspect.trained_as"]) == {
        "scale": "alpha/sqrt(rank)",
        "ss_network_dim": "4",
        "ss_network_alpha": "3.0",
        "ss_network_args": {"use_rslora": "True", "split_qkv": "True"},
    }
    with safe_open(saved(tmp_path, "rslora", metadata=by_a_trainer("rslora"))[0], "pt") as file:
        metadata = file.metadata()
    assert float(metadata["ss_network_alpha"]) == pytest.approx(3.0 * math.sqrt(4))
    # A plain file is the same in both forms.
    contents = []
    for form in ("native", "standard"):
        with open(saved(tmp_path, "plain", form, metadata=by_a_trainer("plain"))[0], "rb") as file:
            contents.append(file.read())
    assert contents[0] == contents[1]


@pytest.mark.numeric
@pytest.mark.parametrize("kind", DORA)
def test_readers_of_dora_scale_miss_the_magnitudes(kind, tmp_path):
    """By the formula of lycoris-lora, whose magnitudes are per output: V scaled to rows of the length dora_scale."""
    file, network, model = saved(tmp_path, kind)
    weights, reader = load_file(file), fused().double()
    assert not any("dora_layer" in key or "flag" in key for key in weights)
    for path, layer in reader.named_modules():
        name = f"lora_unet_{path.replace('.', '_')}"
        if not hasattr(layer, "weight"):
            continue
        combined = weight_of_a_reader(weights, name, layer.weight)
        scale = weights.get(f"{name}.dora_scale")
        if scale is not None:
            assert (scale.shape, scale.dtype) == ((layer.weight.shape[0], *[1] * (combined.dim() - 1)), torch.float32)
            norms = combined.flatten(1).norm(dim=1).view(scale.shape)
            combined = scale.double() / norms * combined
        layer.weight.copy_(combined)
    assert sum("dora_scale" in key for key in weights) == sum(module.use_dora for module in network.unet_loras) > 0
    assert error(reader, model, torch.randn(2, 8, 12)) < 1e-5


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 12), "is a magnitude of the inputs"),
        ((12,), r"has shape \[12\], which matches neither"),
        ((6, 2), r"has shape \[6, 2\], which matches neither"),
    ],
)
def test_a_magnitude_of_the_other_axis_is_taken_for_ours(shape, message, tmp_path):
    file, _, _ = saved(tmp_path, "dora")
    save_file(load_file(file) | {"lora_unet_0_out.dora_scale": torch.ones(shape)}, file)
    with pytest.raises(ValueError, match=rf"lora_unet_0_out\.dora_scale {message}"):
        network_on(fused(), use_dora="True").load_weights(file)


def test_magnitudes_over_the_norms_of_the_base_are_not_trained_on(tmp_path):
    file, _, _ = saved(tmp_path, "dora")
    record = {NORMS_KEY: NormsRecord("base.safetensors", "", "").text()}
    save_file(load_file(file), file, record)
    with pytest.raises(
        ValueError, match=r"over the norms of the base.*lora-inspect convert FILE --keep-dora --base BASE"
    ):
        network_on(fused(), use_dora="True").load_weights(file)
    # Of a file without magnitudes it says nothing.
    save_file({key: tensor for key, tensor in load_file(file).items() if "dora" not in key}, file, record)
    network_on(fused()).load_weights(file)


@pytest.mark.parametrize(
    ("options", "says", "not_says"),
    [
        ({}, [], []),
        ({"use_rslora": "1"}, ["1/sqrt(rank) of the RS-LoRA change", "save_format=standard"], ["DoRA", "slices"]),
        ({"split_qkv": "1"}, ["leave out the 2 layers that have slices", "save_format=standard"], ["RS-LoRA"]),
        ({"use_dora": "1"}, ["leave out the magnitudes of the 4 DoRA layers"], ["save_format=standard", "RS-LoRA"]),
        ({"use_rslora": "1", "save_format": "standard"}, [], []),
        ({"split_qkv": "1", "save_format": "standard"}, [], []),
        ({"use_dora": "1", "save_format": "standard"}, ["musubi-tuner and sd-scripts leave them out"], ["RS-LoRA"]),
    ],
)
def test_nothing_is_said_of_programs_that_will_misread_the_file(options, says, not_says, caplog):
    with caplog.at_level("INFO"):
        network_on(fused(), **options)
    lines = [line for line in caplog.messages if line.startswith("programs that know only plain LoRA")]
    assert len(lines) == bool(says)
    assert all(text in lines[0] for text in says)
    assert not any(text in line for line in lines for text in not_says)


def test_save_format_is_one_of_two():
    assert [parse({"save_format": word}).save_format for word in ("Native", " standard ")] == ["native", "standard"]
    with pytest.raises(ValueError, match="save_format='kohya': native or standard was expected"):
        parse({"save_format": "kohya"})


def test_an_alpha_that_float32_cannot_hold_is_written_as_infinity(tmp_path):
    network = network_on(fused(), train=False, alpha=3e38, use_rslora="True", save_format="standard")
    with pytest.raises(ValueError, match="too large for save_format=standard"):
        network.save_weights(str(tmp_path / "a.safetensors"), None, None)
    assert list(tmp_path.iterdir()) == []
