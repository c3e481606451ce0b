"""What a network saves is what it, or another one made in the same way, goes on from."""

import importlib
import logging

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter
from networks import lora

# Why DoRA is off, as `dora_disabled_reason` says it, and the options that make it so.
REASONS = {
    "non-Linear": {},
    "split_dims": {"split_dims": "{'.*img_mod': [4, 8]}"},
    "dropout": {"neuron_dropout": 0.2},
    "rank_dropout": {"rank_dropout": "0.2"},
    "dora_conv": {"dora_conv": "True"},
}


def create(model, **options):
    network = lora.create_network(["Block"], "lora_unet", 1.0, 4, 2.0, None, None, model, **options)
    network.apply_to(None, model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_why_dora_is_off_survives_saving(make_model, tmp_path, caplog, reason, rslora):
    options = {"use_dora": "True", "use_rslora": rslora, **REASONS[reason]}
    model, other, third = make_model(), make_model(), make_model()
    network, x = create(model, **options), torch.randn(2, 8, 12)
    reasons = {module.dora_disabled_reason for module in network.unet_loras}
    assert (reason in reasons) == (reason != "dora_conv")
    network.eval()
    file = str(tmp_path / "a.safetensors")
    network.save_weights(file, torch.float32, None)

    resumed = create(other, **options)
    with caplog.at_level(logging.WARNING):
        assert resumed.load_weights(file).missing_keys == []
    assert caplog.messages == []
    resumed.eval()
    assert torch.equal(other(x), model(x))
    assert [m.dora_disabled_reason for m in resumed.unet_loras] == [m.dora_disabled_reason for m in network.unet_loras]

    # accelerate's way
    strict = create(make_model(), **options)
    strict.load_state_dict(network.state_dict(), strict=True)
    assert all(torch.equal(tensor, strict.state_dict()[key]) for key, tensor in network.state_dict().items())

    weights = load_file(file)
    plain = lora.create_arch_network_from_weights(1.0, weights, unet=third, use_rslora=rslora)
    plain.apply_to(None, third)
    plain.load_state_dict(weights, strict=True)
    plain.eval()
    assert torch.equal(third(x), model(x))

    # The flag says that at least one module is DoRA.
    assert bool(weights.get("use_dora_flag", False)) == network.use_dora
    adapter = read_adapter(open_checkpoint(file))
    assert not [problem for problem in adapter.problems if problem.severity != "note"]
    assert adapter.dora.modules == sum(module.use_dora for module in network.unet_loras)


@pytest.mark.parametrize("metadata", [None, {}, {"ss_seed": None, "ss_steps": 7}])
@pytest.mark.parametrize(("rslora", "rule"), [(False, "alpha/rank"), (True, "alpha/sqrt(rank)")])
def test_the_scale_rule_is_in_every_file(make_model, tmp_path, metadata, rslora, rule):
    network = create(make_model(), use_rslora=rslora)
    network.save_weights(str(tmp_path / "a.safetensors"), torch.bfloat16, metadata)
    with safe_open(tmp_path / "a.safetensors", "pt") as opened:
        stored = opened.metadata()
    assert stored["lora_inspect.scale"] == rule
    assert {"sshs_model_hash", "sshs_legacy_hash"} <= stored.keys()
    assert stored["ss_init_lora_weights"] == "kaiming"
    assert ("ss_rank_pattern" in stored, stored.get("ss_seed")) == (False, "None" if metadata else None)


def test_what_the_trainer_says_goes_before_what_the_network_records(make_model, tmp_path):
    network = create(make_model(), init_lora_weights="orthogonal")
    network.save_weights(str(tmp_path / "a.safetensors"), None, {"ss_init_lora_weights": "orthogonal, resumed"})
    with safe_open(tmp_path / "a.safetensors", "pt") as opened:
        assert opened.metadata()["ss_init_lora_weights"] == "orthogonal, resumed"


def test_a_network_from_weights_does_not_say_how_they_began(make_model, tmp_path):
    weights = create(make_model()).state_dict()
    network = lora.create_arch_network_from_weights(1.0, weights, unet=make_model())
    network.apply_to(None, None)
    network.save_weights(str(tmp_path / "a.safetensors"), None, None)
    with safe_open(tmp_path / "a.safetensors", "pt") as opened:
        assert "ss_init_lora_weights" not in opened.metadata()


@pytest.mark.parametrize("start", ["orthogonal", "pissa"])
def test_accelerate_resumes_other_starts(make_model, tmp_path, start):
    accelerator = importlib.import_module("accelerate").Accelerator(cpu=True)
    options = {"init_lora_weights": start, "exclude_patterns": [".*(conv|point)"]}
    model, x = make_model(), torch.randn(2, 8, 12)
    network = accelerator.prepare(create(model, **options))
    trained = model(x)
    accelerator.save_state(str(tmp_path / "state"))
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.fill_(1.5)
    accelerator.load_state(str(tmp_path / "state"))
    assert torch.equal(model(x), trained)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_save_in_whole_numbers_writes_zeros(make_model, tmp_path, dtype, ending):
    file = tmp_path / f"adapter.{ending}"
    with pytest.raises(ValueError, match=rf"adapter\.{ending}: factors in {dtype} would be other numbers"):
        create(make_model()).save_weights(file, dtype, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize(
    ("dtype", "metadata", "message"),
    [
        ("much", None, "dtype='much': a torch.dtype was expected"),
        (16, None, "dtype=16: a torch.dtype was expected"),
        (None, {"ss_steps": 1, 7: "steps"}, "metadata has the key 7, but texts were expected"),
        (None, ["steps"], "metadata is a list, but a dict of texts was expected"),
    ],
)
def test_save_with_unusable_argument_keeps_file(make_model, tmp_path, ending, dtype, metadata, message):
    file = tmp_path / f"adapter.{ending}"
    network = create(make_model())
    network.save_weights(file, None, None)
    before = file.read_bytes()
    with pytest.raises(TypeError, match=rf"adapter\.{ending}: {message}"):
        network.save_weights(file, dtype, metadata)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
@pytest.mark.parametrize("multiplier", [0.0, 1.0])
def test_a_merge_in_whole_numbers_is_refused(make_model, dtype, multiplier):
    weights, model = create(make_model()).state_dict(), make_model()
    merging = lora.create_arch_network_from_weights(multiplier, weights, unet=model, for_inference=True)
    with pytest.raises(ValueError, match=f"lora_unet_blocks_0_attn_to_q: factors in {dtype} would be other numbers"):
        merging.merge_to(None, model, weights, dtype)
    assert all(torch.equal(now, was) for now, was in zip(model.parameters(), make_model().parameters(), strict=True))
