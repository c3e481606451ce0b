"""Methods of PEFT whose modules share tensors: layers of several shapes against PEFT's own merge, and odd files."""

import json
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_inspect.errors import LoraInspectError
from lora_inspect.maths import tensors as tensor_reader
from lora_inspect.merging import factor_reader
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.reading.file_info import inspect
from lora_inspect.reporting.file_record import as_json

# PEFT makes sparse tensors, about whose checks torch warns unless they are asked for.
torch.sparse.check_sparse_tensor_invariants.enable()

pytestmark = pytest.mark.numeric
TARGETS = ["wide", "tall", "small", "turned"]


class Net(nn.Module):
    """Layers of several shapes, one of which stores its weight as (in, out)."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(24, 12)
        self.tall = nn.Linear(12, 20)
        self.small = nn.Linear(20, 8)
        self.turned = Conv1D(16, 8)

    def forward(self, input):
        return self.turned(self.small(self.tall(self.wide(input))))


METHODS = {
    "VeRA": (lambda: peft.VeraConfig(r=3, target_modules=TARGETS), ("vera_A", "vera_B")),
    "PVeRA": (lambda: peft.PveraConfig(r=3, target_modules=TARGETS), ("pvera_A", "pvera_B")),
    "VB-LoRA": (lambda: peft.VBLoRAConfig(r=2, vector_length=4, target_modules=TARGETS), ("vblora_vector_bank",)),
    "VB-LoRA of the largest weights": (
        lambda: peft.VBLoRAConfig(r=2, vector_length=4, save_only_topk_weights=True, target_modules=TARGETS),
        ("vblora_vector_bank",),
    ),
    "RandLoRA": (lambda: peft.RandLoraConfig(r=3, target_modules=TARGETS), ("randlora_A", "randlora_B")),
    "Uni-LoRA": (
        lambda: peft.UniLoraConfig(r=2, theta_d_length=50, save_indices=True, target_modules=TARGETS),
        ("unilora_theta_d",),
    ),
    "TinyLoRA": (lambda: peft.TinyLoraConfig(r=3, u=4, weight_tying=1.0, target_modules=TARGETS), ("tinylora_v",)),
    "FRoD": (
        lambda: peft.FrodConfig(sparse_rate=0.05, progressbar=False, target_modules=TARGETS),
        ("frod_V", "frod_s_indices", "frod_s_size"),
    ),
}
EVERY = [pytest.param(*method, id=name) for name, method in METHODS.items()]


def train(make_config):
    """A model of PEFT with random numbers in all that it trains, its base and its saved tensors."""
    torch.manual_seed(5)
    base = Net().double()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, make_config())
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    model.double()
    tensors = {key: value.detach().clone().contiguous() for key, value in peft.get_peft_model_state_dict(model).items()}
    config = json.loads(json.dumps(model.peft_config["default"].to_dict(), default=sorted))
    return model, before, tensors, config


def write(folder, base, tensors, config):
    save_file(base, folder / "base.safetensors")
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    return str(folder / "base.safetensors"), str(folder / "adapter")


def merged(base, adapter, folder):
    output = str(folder / "merged.safetensors")
    # RandLoRA alone does not tell outputs from inputs, and the config has one answer for layers of both kinds.
    is_open = any("randlora" in key for key in load_file(f"{adapter}/adapter_model.safetensors"))
    answers = {"turned": True, "*": False} if is_open else {}
    merge(plan_merge(base, [(adapter, 1.0)], MergeOptions(transposed=answers)), output, force=True)
    return load_file(output)


@pytest.mark.parametrize(("make_config", "shared"), EVERY)
def test_layers_of_several_shapes_are_merged_as_by_peft(make_config, shared, tmp_path):
    model, base, tensors, config = train(make_config)
    found = merged(*write(tmp_path, base, tensors, config), tmp_path)
    expected = model.eval().merge_and_unload().state_dict()
    changed = [name for name, tensor in base.items() if not torch.equal(found[name], tensor)]
    assert sorted(changed) == sorted(f"{name}.weight" for name in TARGETS)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("make_config", "shared"), EVERY)
def test_what_is_shared_is_counted_and_converted_once(make_config, shared, tmp_path):
    _, base, tensors, config = train(make_config)
    base, adapter = write(tmp_path, base, tensors, config)
    record = as_json(inspect(adapter))
    idle = [key for key in tensors if key.startswith("base_model.model.") and key.rpartition(".")[2] in shared]
    assert (record["kind"], record["unclaimed"], record["problems"]) == ("adapter", [], [])
    assert record["parameters"] == sum(tensor.numel() for key, tensor in tensors.items() if key not in idle)
    output = str(tmp_path / "standard")
    assert convert_to_standard(adapter, output, ConvertOptions()).exact
    written = load_file(tmp_path / "standard" / "adapter_model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in tensors.items())
    assert json.loads((tmp_path / "standard" / "adapter_config.json").read_text()) == config


@pytest.mark.parametrize(("make_config", "shared"), EVERY)
def test_what_is_shared_is_read_once(make_config, shared, tmp_path, monkeypatch):
    _, base, tensors, config = train(make_config)
    base, adapter = write(tmp_path, base, tensors, config)
    read = []

    def counted(load):
        return lambda info: read.append(info.name) or load(info)

    monkeypatch.setattr(factor_reader, "load", counted(tensor_reader.load))
    monkeypatch.setattr(factor_reader, "load_whole", counted(tensor_reader.load_whole))
    merged(base, adapter, tmp_path)
    at_root = [key for key in tensors if not key.startswith("base_model.model.")]
    assert sorted(key for key in read if key in at_root) == sorted(at_root)


@pytest.mark.parametrize(("make_config", "shared"), EVERY)
def test_without_what_is_shared_the_reason_is_said(make_config, shared, tmp_path):
    _, base, tensors, config = train(make_config)
    for name in shared:
        rest = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"base_model.{name}")}
        base_file, adapter = write(tmp_path, base, rest, config)
        (problem,) = (one for one in as_json(inspect(adapter))["problems"] if one["severity"] == "error")
        assert problem["code"] == "formula-unknown"
        with pytest.raises(LoraInspectError, match=r"merge it with PEFT|fetch the file"):
            plan_merge(base_file, [(adapter, 1.0)], MergeOptions())


@pytest.mark.parametrize(("make_config", "shared"), EVERY)
def test_what_is_shared_without_a_module_is_an_error(make_config, shared, tmp_path):
    _, base, tensors, config = train(make_config)
    rest = {key: tensor for key, tensor in tensors.items() if not key.startswith("base_model.model.")}
    base_file, adapter = write(tmp_path, base, rest, config)
    record = as_json(inspect(adapter))
    assert (record["kind"], record["problems"][0]["code"]) == ("adapter", "incomplete")
    with pytest.raises(LoraInspectError, match="the file has no such module"):
        plan_merge(base_file, [(adapter, 1.0)], MergeOptions())


@pytest.mark.parametrize(("make_config", "shared"), EVERY)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (1, 1), (2, 3, 4), (0, 7)])
def test_odd_shapes_of_what_is_shared_are_errors(make_config, shared, shape, tmp_path):
    _, base, tensors, config = train(make_config)
    for key in list(tensors):
        if key.startswith(tuple(f"base_model.{name}" for name in shared)):
            odd = {**tensors, key: torch.zeros(shape, dtype=tensors[key].dtype)}
            if odd[key].shape == tensors[key].shape:
                continue
            base_file, adapter = write(tmp_path, base, odd, config)
            as_json(inspect(adapter), modules=True)
            with pytest.raises(LoraInspectError):
                merged(base_file, adapter, tmp_path)


def test_several_vectors_of_tinylora_are_refused(tmp_path):
    _, base, tensors, config = train(lambda: peft.TinyLoraConfig(r=3, u=4, target_modules=TARGETS))
    base_file, adapter = write(tmp_path, base, tensors, config)
    with pytest.raises(LoraInspectError, match="order of the modules"):
        plan_merge(base_file, [(adapter, 1.0)], MergeOptions())


OUTSIDE = {
    "VB-LoRA": (METHODS["VB-LoRA of the largest weights"][0], "vblora_logits_A_topk_indices", 256, "beyond the 256"),
    "Uni-LoRA": (METHODS["Uni-LoRA"][0], "unilora_indices_B", 50, "beyond the 50"),
    "FRoD": (METHODS["FRoD"][0], "frod_s_indices.wide", 24, "beyond the 24"),
    "the size of FRoD": (METHODS["FRoD"][0], "frod_s_size.wide", 25, "for a basis of 24"),
}


@pytest.mark.parametrize(("make_config", "name", "count", "says"), OUTSIDE.values(), ids=OUTSIDE)
def test_an_index_beyond_what_is_shared_is_an_error(make_config, name, count, says, tmp_path):
    _, base, tensors, config = train(make_config)
    key = next(key for key in tensors if key.endswith(name))
    for number in (-1, count):
        odd = tensors[key].to(torch.int16)
        odd.view(-1)[0] = number
        files = write(tmp_path, base, {**tensors, key: odd}, config)
        with pytest.raises(LoraInspectError, match=says):
            merged(*files, tmp_path)


@pytest.mark.parametrize(("make_config", "shared"), EVERY)
def test_a_weight_of_another_size_is_an_error(make_config, shared, tmp_path):
    _, base, tensors, config = train(make_config)
    rows, columns = base["wide.weight"].shape
    for shape in ((rows + 1, columns), (rows, columns + 40)):
        # FRoD puts any rows together anew.
        if shape[0] > rows and "frod_V" in shared:
            continue
        files = write(tmp_path, {**base, "wide.weight": torch.zeros(shape).double()}, tensors, config)
        with pytest.raises(LoraInspectError, match=r"changes a weight|recombines weights"):
            merged(*files, tmp_path)


@pytest.mark.parametrize(("make_config", "shared"), EVERY)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (1, 1), (2, 3, 4), (0, 7)])
def test_odd_shapes_of_a_module_are_errors(make_config, shared, shape, tmp_path):
    _, base, tensors, config = train(make_config)
    own = [key for key in tensors if ".wide." in key and not key.endswith(shared) and tensors[key].shape != shape]
    for key in own:
        odd = {**tensors, key: torch.zeros(shape, dtype=tensors[key].dtype)}
        files = write(tmp_path, base, odd, config)
        as_json(inspect(files[1]), modules=True)
        with pytest.raises(LoraInspectError):
            merged(*files, tmp_path)


# Shapes that other tensors contradict: the method, the end of the key and the shape.
UNLIKE = [
    ("VB-LoRA", "wide.vblora_logits_B", (3, 5, 256)),
    ("VB-LoRA", "vblora_vector_bank", (255, 4)),
    ("Uni-LoRA", "wide.unilora_indices_B", (12, 3)),
    ("Uni-LoRA", "wide.unilora_scales_A", (2, 23)),
    ("TinyLoRA", "wide.tinylora_P", (4, 3, 2)),
    ("TinyLoRA", "wide.tinylora_P", (5, 3, 3)),
    ("RandLoRA", "wide.randlora_lambda", (3, 5)),
    ("RandLoRA", "wide.randlora_gamma", (3, 12)),
    ("FRoD", "wide.frod_lambda_s_values", (3,)),
]


@pytest.mark.parametrize(("method", "name", "shape"), UNLIKE)
def test_shapes_that_contradict_each_other_are_errors(method, name, shape, tmp_path):
    _, base, tensors, config = train(METHODS[method][0])
    key = next(key for key in tensors if key.endswith(name))
    files = write(tmp_path, base, {**tensors, key: torch.zeros(shape, dtype=tensors[key].dtype)}, config)
    found = inspect(files[1])
    assert {one["code"] for one in as_json(found)["problems"]} >= {"shape-mismatch"}
    claimed = {info.name for module in found.adapter.modules.values() for info in module.tensors}
    assert sorted([*claimed, *found.adapter.unclaimed]) == sorted(tensors)
    with pytest.raises(LoraInspectError):
        merged(*files, tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_basis_of_frod_without_an_inverse(bad, tmp_path):
    _, base, tensors, config = train(METHODS["FRoD"][0])
    basis = tensors["base_model.frod_V.wide"].clone()
    basis[:, 0] = bad
    files = write(tmp_path, base, {**tensors, "base_model.frod_V.wide": basis}, config)
    if bad:
        with pytest.raises(LoraInspectError, match=r"folding .*wide.*gives"):
            merged(*files, tmp_path)
        return
    parts = base["wide.weight"] @ torch.linalg.pinv(basis, rtol=1e-6).T
    lengths = parts.norm(dim=0)
    units = torch.where(lengths > 1e-12, parts / lengths, 0)
    middle = tensors["base_model.model.wide.frod_lambda_l"].diag()
    middle[tuple(tensors["base_model.frod_s_indices.wide"])] += tensors["base_model.model.wide.frod_lambda_s_values"]
    torch.testing.assert_close(merged(*files, tmp_path)["wide.weight"], units @ middle @ basis.T)


def test_the_categories_of_frod_are_those_of_peft():
    from peft.tuners.frod.model import _category_from_key

    from lora_inspect.algorithms.on_demand.frod import category

    for path in (
        "dense", "model.layers.3.self_attn.q_proj", "encoder.layer.0.attention.output.dense", "output.dense",
        "encoder.layer.0.output.dense", "h.0.dense", "0.dense", "attention.output.dense", "a.attention.b.output.dense",
    ):  # fmt: skip
        found = _category_from_key(path)
        assert category(path, [found]) == found
        assert category(path, [f"{found}_"]) is None


NOT_SAVED = {
    "VeRA": lambda: peft.VeraConfig(r=3, save_projection=False, target_modules=TARGETS),
    "PVeRA": lambda: peft.PveraConfig(r=3, save_projection=False, target_modules=TARGETS),
    "RandLoRA": lambda: peft.RandLoraConfig(r=3, save_projection=False, target_modules=TARGETS),
    "TinyLoRA": lambda: peft.TinyLoraConfig(r=3, u=4, weight_tying=1.0, save_projection=False, target_modules=TARGETS),
    "FRoD": lambda: peft.FrodConfig(save_projection=False, progressbar=False, target_modules=TARGETS),
    "Uni-LoRA": lambda: peft.UniLoraConfig(r=2, theta_d_length=50, target_modules=TARGETS),
}


@pytest.mark.parametrize("make_config", NOT_SAVED.values(), ids=NOT_SAVED)
def test_what_was_not_saved_is_said(make_config, tmp_path):
    _, base, tensors, config = train(make_config)
    base_file, adapter = write(tmp_path, base, tensors, config)
    assert as_json(inspect(adapter))["kind"] == "adapter"
    with pytest.raises(
        LoraInspectError, match=r"not in the file \(save_(projection|indices): false\).*merge it with PEFT"
    ):
        plan_merge(base_file, [(adapter, 1.0)], MergeOptions())


def test_without_a_config_what_it_decides_is_asked_for(tmp_path):
    for name in ("RandLoRA", "VB-LoRA"):
        _, base, tensors, _ = train(METHODS[name][0])
        base_file, adapter = write(tmp_path, base, tensors, {})
        with pytest.raises(LoraInspectError, match=r"adapter_config\.json.*put it next to the file"):
            plan_merge(base_file, [(adapter, 1.0)], MergeOptions())


@pytest.mark.parametrize("said", [None, True, "8", [1], float("inf"), 10**400])
def test_settings_that_are_no_numbers_are_no_settings(said, tmp_path):
    for name, field in (("RandLoRA", "randlora_alpha"), ("VB-LoRA", "topk")):
        _, base, tensors, config = train(METHODS[name][0])
        base_file, adapter = write(tmp_path, base, tensors, {**config, field: said})
        with pytest.raises(LoraInspectError, match=field):
            plan_merge(base_file, [(adapter, 1.0)], MergeOptions())


def test_a_config_of_other_counts_is_not_theirs(tmp_path):
    for name, count in (("VB-LoRA", 257), ("VB-LoRA", 0), ("VB-LoRA of the largest weights", 1)):
        _, base, tensors, config = train(METHODS[name][0])
        base_file, adapter = write(tmp_path, base, tensors, {**config, "topk": count})
        with pytest.raises(LoraInspectError, match="belongs to it"):
            plan_merge(base_file, [(adapter, 1.0)], MergeOptions())
