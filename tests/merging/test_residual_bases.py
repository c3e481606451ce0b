"""Factors that began with a part of the base: on the original base, and on what the initialisation left of it."""

import json
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_inspect.architectures.rows import Runs
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.matching.placement import Place, Placement
from lora_inspect.maths.change import folded, settled
from lora_inspect.merging import fold
from lora_inspect.merging.fold_chain import Fold
from lora_inspect.merging.fold_checks import check_residual
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.file_info import inspect
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reporting.file_record import as_json

pytestmark = pytest.mark.numeric
RANK = 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(24, 12)
        self.tall = nn.Linear(12, 20)
        self.turned = Conv1D(16, 20)
        self.embed = nn.Embedding(9, 24)

    def forward(self, input):
        return self.turned(self.tall(self.wide(self.embed(input))))


# PEFT takes the wrong sides of a weight that is stored as (in, out) for OLoRA.
CASES = {
    "pissa": ({"init_lora_weights": "pissa"}, ["wide", "tall", "turned"]),
    "pissa with RS-LoRA": ({"init_lora_weights": "pissa", "use_rslora": True}, ["wide", "tall"]),
    "pissa beside an Embedding": ({"init_lora_weights": "pissa"}, ["wide", "embed"]),
    "pissa with DoRA": ({"init_lora_weights": "pissa", "use_dora": True}, ["wide", "tall"]),
    "pissa of full rank": ({"init_lora_weights": "pissa", "r": 12}, ["wide", "tall"]),
    "olora": ({"init_lora_weights": "olora"}, ["wide", "tall"]),
    "OLoRA in capitals, with RS-LoRA": ({"init_lora_weights": "OLoRA", "use_rslora": True}, ["wide", "tall"]),
    "olora of scale 1": ({"init_lora_weights": "olora", "lora_alpha": RANK}, ["wide", "tall"]),
}
EVERY = [pytest.param(*case, id=name) for name, case in CASES.items()]


def train(options, targets):
    """PEFT's model once it is trained, the original base, what PEFT left of it, the tensors and the config."""
    torch.manual_seed(11)
    model = Net()
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(**{"r": RANK, "lora_alpha": 5, "target_modules": targets, **options})
        model = peft.get_peft_model(model, config)
    left = {
        key.removeprefix("base_model.model.").replace(".base_layer", ""): tensor.clone()
        for key, tensor in model.state_dict().items()
        if "lora_" not in key
    }
    generator = torch.Generator().manual_seed(12)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    tensors = {key: tensor.clone().contiguous() for key, tensor in peft.get_peft_model_state_dict(model).items()}
    config = json.loads(json.dumps(model.peft_config["default"].to_dict(), default=sorted))
    return model, original, left, tensors, config


def write(folder, base, tensors, config):
    save_file(base, folder / "base.safetensors")
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    return str(folder / "base.safetensors"), str(folder / "adapter")


def merged(base, adapters, folder):
    output = str(folder / "merged.safetensors")
    merge(plan_merge(base, adapters, MergeOptions()), output, force=True)
    return load_file(output)


def assert_close(found, expected):
    """Up to float32's rounding in a decomposition of numbers of about 1, and in its products."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-4, atol=2e-5)


def unloaded(model):
    return model.eval().merge_and_unload().state_dict()


@pytest.mark.parametrize(("options", "targets"), EVERY)
@pytest.mark.parametrize("elements", [1 << 20, 37])
def test_on_the_original_base_it_is_what_peft_merges(options, targets, elements, tmp_path, monkeypatch):
    monkeypatch.setattr(fold, "BLOCK_ELEMENTS", elements)
    model, original, _, tensors, config = train(options, targets)
    base, adapter = write(tmp_path, original, tensors, config)
    expected = unloaded(model)
    found = merged(base, [(adapter, 1.0)], tmp_path)
    assert_close(found, expected)
    assert_close(merged(base, [(adapter, Settings(residual=False))], tmp_path), expected)
    # What is tested is more than the factors on the base.
    plain = merged(base, [(adapter, Settings(residual=True))], tmp_path)
    assert any(float((plain[name] - expected[name]).abs().max()) > 0.1 for name in expected)


@pytest.mark.parametrize(("options", "targets"), EVERY)
def test_peft_makes_the_same_of_the_files(options, targets, tmp_path):
    _, original, _, tensors, config = train(options, targets)
    base, adapter = write(tmp_path, original, tensors, config)
    model = Net()
    model.load_state_dict(original)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(model, adapter)
    assert_close(merged(base, [(adapter, 1.0)], tmp_path), unloaded(model))


@pytest.mark.parametrize(("options", "targets"), EVERY)
def test_on_the_residual_base_it_is_a_plain_lora(options, targets, tmp_path):
    model, _, left, tensors, config = train(options, targets)
    base, adapter = write(tmp_path, left, tensors, config)
    assert_close(merged(base, [(adapter, Settings(residual=True))], tmp_path), unloaded(model))


def test_the_formulas_written_out(tmp_path):
    for init in ("pissa", "olora"):
        _, original, _, tensors, config = train({"init_lora_weights": init}, ["wide", "tall"])
        base, adapter = write(tmp_path, original, tensors, config)
        found = merged(base, [(adapter, 1.0)], tmp_path)
        for name in ("wide", "tall"):
            weight = original[f"{name}.weight"].double()
            up, down = (tensors[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "BA")
            if init == "pissa":
                vectors = torch.linalg.eigh(weight.T @ weight).eigenvectors[:, -RANK:]
                taken = weight @ vectors @ vectors.T
            else:
                columns = weight[:, :RANK]
                taken = 5 / RANK * columns @ torch.linalg.inv(columns.T @ columns) @ columns.T @ weight
            expected = weight - taken + 5 / RANK * up @ down
            torch.testing.assert_close(found[f"{name}.weight"].double(), expected, rtol=2e-4, atol=2e-5)


def test_a_multiplier_of_0_is_the_original_base(tmp_path):
    _, original, _, tensors, config = train({"init_lora_weights": "pissa"}, ["wide", "tall"])
    base, adapter = write(tmp_path, original, tensors, config)
    found = merged(base, [(adapter, 0.0)], tmp_path)
    assert all(torch.equal(found[name], tensor) for name, tensor in original.items())


def test_other_multipliers_have_a_meaning_on_the_residual_base_alone(tmp_path):
    model, original, left, tensors, config = train({"init_lora_weights": "pissa"}, ["wide", "tall"])
    base, adapter = write(tmp_path, original, tensors, config)
    with pytest.raises(LoraInspectError, match="its multiplier must be 0 or 1"):
        plan_merge(base, [(adapter, 0.5)], MergeOptions())
    base, _ = write(tmp_path, left, tensors, config)
    for name in ("wide", "tall"):
        getattr(model.base_model.model, name).set_scale("default", 0.5)
    assert_close(merged(base, [(adapter, Settings(0.5, residual=True))], tmp_path), unloaded(model))


def test_what_was_taken_is_that_of_the_base_as_it_is_stored(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    _, original, _, tensors, config = train({"init_lora_weights": "pissa"}, ["wide"])
    base, first = write(tmp_path / "one", original, tensors, config)
    other = {key: 2 * tensor for key, tensor in tensors.items()}
    _, second = write(tmp_path / "two", original, other, config)
    changes = [merged(base, [(one, 1.0)], tmp_path)["wide.weight"] - original["wide.weight"] for one in (first, second)]
    both = merged(base, [(first, 1.0), (second, 1.0)], tmp_path)["wide.weight"]
    torch.testing.assert_close(both, original["wide.weight"] + changes[0] + changes[1], rtol=2e-4, atol=2e-5)


def test_rows_of_a_fused_weight_have_an_initialisation_of_their_own(tmp_path):
    """As where an adapter has query, key and value apart, and the base has them in one weight."""
    _, original, _, tensors, config = train({"init_lora_weights": "pissa"}, ["wide"])
    _, adapter = write(tmp_path, original, tensors, config)
    (contribution,) = read_adapter(open_checkpoint(adapter)).contributions
    whole = torch.cat([torch.randn(5, 24), original["wide.weight"], torch.randn(7, 24)])
    info = open_checkpoint(str(tmp_path / "base.safetensors")).tensors["wide.weight"]
    change = Placement(contribution, Place(info, Runs(5, 12)), 12).residual()

    def read(together):
        return ((first, whole[first : first + 6].clone()) for first in range(0, len(whole), 6))

    links = settled([(change, 1.0)], read)
    found = torch.cat([rows for _, rows in folded(links, read)])
    left, values, right = torch.linalg.svd(original["wide.weight"], full_matrices=False)
    expected = whole.clone()
    expected[5:17] -= left[:, :RANK] * values[:RANK] @ right[:RANK]
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)


def test_it_is_said_which_base_the_factors_change(tmp_path):
    _, original, _, tensors, config = train({"init_lora_weights": "pissa"}, ["wide"])
    _, adapter = write(tmp_path, original, tensors, config)
    for residual, says in ((None, "of the original base"), (True, "the given residual base")):
        record = as_json(inspect(adapter, Settings(residual=residual)))
        assert record["problems"] == []
        (evidence,) = (one["says"] for one in record["evidence"] if one["about"] == "base")
        assert "the pissa initialisation" in evidence
        assert says in evidence


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_is_taken_from_a_base_that_is_not_finite(bad, tmp_path):
    for init in ("pissa", "olora"):
        _, original, _, tensors, config = train({"init_lora_weights": init}, ["wide"])
        weight = original["wide.weight"].clone()
        weight[3, 4] = bad
        base, adapter = write(tmp_path, {**original, "wide.weight": weight}, tensors, config)
        with pytest.raises(LoraInspectError, match=r"folding .*wide.*gives"):
            merged(base, [(adapter, 1.0)], tmp_path)


def test_a_layer_that_the_base_has_in_several_weights_is_an_error(tmp_path):
    _, original, _, tensors, config = train({"init_lora_weights": "pissa"}, ["wide"])
    base, adapter = write(tmp_path, original, tensors, config)
    base, adapter = open_checkpoint(base), read_adapter(open_checkpoint(adapter))
    (contribution,) = adapter.contributions
    info = base.tensors["wide.weight"]
    for runs, is_whole in ((Runs(0, 6), False), (Runs(5, 12), True), (None, True)):
        folds = [Fold(Placement(contribution, Place(info, runs), 12), 1.0, adapter)]
        if is_whole:
            check_residual(folds, base)
            continue
        with pytest.raises(LoraInspectError, match="from a whole layer"):
            check_residual(folds, base)


def test_it_is_said_which_base_it_is_taken_for(tmp_path):
    _, original, _, tensors, config = train({"init_lora_weights": "pissa"}, ["wide"])
    base, adapter = write(tmp_path, original, tensors, config)
    (note,) = plan_merge(base, [(adapter, 1.0)], MergeOptions()).notes
    assert f"from {base} as the original base" in note
    for settings in (Settings(0.0), Settings(residual=True)):
        assert plan_merge(base, [(adapter, settings)], MergeOptions()).notes == []


LOST = {
    "pissa_niter_16": "random numbers",
    "corda": "depends on data",
    "lora_ga": "depends on data",
    "loftq": "quantisation of the base",
}


@pytest.mark.parametrize("init", LOST)
def test_what_the_original_base_does_not_give_is_refused_there(init, tmp_path):
    model, original, left, tensors, config = train({"init_lora_weights": "pissa"}, ["wide", "tall"])
    base, adapter = write(tmp_path, original, tensors, {**config, "init_lora_weights": init})
    for settings in (Settings(), Settings(residual=False)):
        with pytest.raises(LoraInspectError, match=rf"{init}.*{LOST[init]}.*residual=yes"):
            plan_merge(base, [(adapter, settings)], MergeOptions())
    base, _ = write(tmp_path, left, tensors, {**config, "init_lora_weights": init})
    assert_close(merged(base, [(adapter, Settings(residual=True))], tmp_path), unloaded(model))


def test_olora_on_a_weight_that_is_stored_turned_round_is_refused(tmp_path):
    _, original, _, tensors, config = train({"init_lora_weights": "pissa"}, ["turned"])
    base, adapter = write(tmp_path, original, tensors, {**config, "init_lora_weights": "olora"})
    with pytest.raises(LoraInspectError, match=r"stored as \(in, out\)"):
        plan_merge(base, [(adapter, 1.0)], MergeOptions())


@pytest.mark.parametrize("alpha", [0, -4])
def test_pissa_has_a_scale_above_0(alpha, tmp_path):
    _, original, _, tensors, config = train({"init_lora_weights": "pissa"}, ["wide"])
    base, adapter = write(tmp_path, original, tensors, {**config, "lora_alpha": alpha})
    with pytest.raises(LoraInspectError, match="not above 0"):
        plan_merge(base, [(adapter, 1.0)], MergeOptions())


def test_a_convolution_has_no_such_initialisation(tmp_path):
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["c"], "init_lora_weights": "pissa"}
    tensors = {
        "base_model.model.c.lora_A.weight": torch.randn(2, 3, 3, 3),
        "base_model.model.c.lora_B.weight": torch.randn(4, 2, 1, 1),
    }
    base, adapter = write(tmp_path, {"c.weight": torch.randn(4, 3, 3, 3)}, tensors, config)
    with pytest.raises(LoraInspectError, match="is not a plain LoRA of a Linear layer"):
        plan_merge(base, [(adapter, 1.0)], MergeOptions())
    merged(base, [(adapter, Settings(residual=True))], tmp_path)


@pytest.mark.parametrize("residual", [True, False])
def test_a_setting_that_cannot_apply_is_an_error(residual, tmp_path):
    _, original, _, tensors, config = train({}, ["wide"])
    base, adapter = write(tmp_path, original, tensors, config)
    with pytest.raises(LoraInspectError, match=r"residual=(yes|no) cannot apply"):
        plan_merge(base, [(adapter, Settings(residual=residual))], MergeOptions())


@pytest.mark.parametrize("residual", [None, True])
def test_no_standard_file_says_what_they_change(residual, tmp_path):
    _, original, _, tensors, config = train({"init_lora_weights": "pissa"}, ["wide"])
    _, adapter = write(tmp_path, original, tensors, config)
    with pytest.raises(LoraInspectError, match="which a standard file cannot express"):
        convert_to_standard(adapter, str(tmp_path / "out"), ConvertOptions(settings=Settings(residual=residual)))


def test_files_of_other_trainers_say_it_in_their_metadata(tmp_path):
    """Their names have underscores, and their alpha stands in the file."""
    model, original, left, tensors, _ = train({"init_lora_weights": "pissa"}, ["wide", "tall"])
    found = {}
    for name in ("wide", "tall"):
        found[f"lora_unet_{name}.lora_down.weight"] = tensors[f"base_model.model.{name}.lora_A.weight"]
        found[f"lora_unet_{name}.lora_up.weight"] = tensors[f"base_model.model.{name}.lora_B.weight"]
        found[f"lora_unet_{name}.alpha"] = torch.tensor(5.0)
    adapter = str(tmp_path / "adapter.safetensors")
    save_file(found, adapter, metadata={"ss_init_lora_weights": "pissa"})
    base, expected = str(tmp_path / "base.safetensors"), unloaded(model)
    save_file(original, base)
    assert_close(merged(base, [(adapter, 1.0)], tmp_path), expected)
    save_file(left, base)
    assert_close(merged(base, [(adapter, Settings(residual=True))], tmp_path), expected)
    save_file(found, adapter, metadata={"ss_init_lora_weights": "pissa_niter_4"})
    with pytest.raises(LoraInspectError, match="random numbers"):
        plan_merge(base, [(adapter, 1.0)], MergeOptions())
