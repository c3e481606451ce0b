"""A converted PEFT adapter is a folder that the real PEFT loads into the same model, by a config that is true."""

import json
import warnings

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.reading.file_info import inspect
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reporting.file_record import as_json

pytestmark = pytest.mark.slow

WIDTH = 12


class Block(nn.Module):
    def __init__(self, conv1d: bool) -> None:
        super().__init__()
        self.q = Conv1D(WIDTH, WIDTH) if conv1d else nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.mlp(torch.tanh(self.q(x)))


class Toy(nn.Module):
    """Two blocks, of which the second one's path is the end of another path too."""

    def __init__(self, conv1d: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(conv1d), Block(conv1d)])
        self.inner = nn.ModuleDict({"blocks": nn.ModuleList([Block(conv1d), Block(conv1d)])})

    def forward(self, x):
        for block in (*self.blocks, *self.inner["blocks"]):
            x = block(x)
        return x


def toy(conv1d=False):
    torch.manual_seed(0)
    return Toy(conv1d).requires_grad_(False).eval()


def trained(folder, conv1d=False, **config):
    """A trained adapter saved by PEFT, and the output of its model."""
    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["q", "mlp"], "fan_in_fan_out": conv1d, **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(toy(conv1d), LoraConfig(**options)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
        elif "magnitude" in name:
            parameter.data.mul_(1 + 0.3 * torch.rand_like(parameter))
    model.save_pretrained(folder)
    return output(model)


def output(model):
    torch.manual_seed(2)
    with torch.no_grad():
        return model(torch.randn(3, WIDTH))


def loaded(folder, conv1d=False):
    """The output of PEFT's own model from the folder; every warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        return output(PeftModel.from_pretrained(toy(conv1d), folder).eval())


def convert(source, output, **options):
    return convert_to_standard(str(source), str(output), ConvertOptions(**options))


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


CONFIGS = {
    "plain": {},
    "a broken alpha": {"lora_alpha": 2.5},
    "RS-LoRA": {"use_rslora": True},
    "RS-LoRA of a rank without a root": {"use_rslora": True, "r": 3},
    "ranks and alphas that differ": {
        "use_rslora": True, "rank_pattern": {"blocks.1.q": 2, "mlp": 5}, "alpha_pattern": {"inner.*": 9}},
    "alpha 0": {"lora_alpha": 0},
    "a part of the layers": {"target_modules": r".*blocks\.1\.(q|mlp)", "use_rslora": True},
    "layers by number": {"layers_to_transform": [1], "use_rslora": True, "layers_pattern": "blocks"},
}  # fmt: skip


@pytest.mark.numeric
@pytest.mark.parametrize("dora", [False, True], ids=["", "DoRA"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_peft_makes_the_same_model_of_it(config, dora, tmp_path):
    expected = trained(tmp_path / "in", use_dora=dora, **config)
    result = convert(tmp_path / "in", tmp_path / "out", keep_dora=dora)
    assert result.exact
    assert torch.allclose(loaded(tmp_path / "out"), expected, rtol=1e-5, atol=1e-6)
    written, before = config_of(tmp_path / "out"), config_of(tmp_path / "in")
    assert (written["use_rslora"], written["use_dora"]) == (False, dora)
    corrected = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"}
    assert written.keys() == before.keys()
    assert {key: written[key] for key in before.keys() - corrected} == {
        key: before[key] for key in before.keys() - corrected
    }
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("in", "out"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_every_module_has_its_own_alpha(tmp_path):
    """Where paths are the ends of others, no pattern meets the wrong one."""
    expected = trained(tmp_path / "in", use_rslora=True, rank_pattern={"^blocks.1.q": 2, "inner.blocks.1.q": 3})
    convert(tmp_path / "in", tmp_path / "out")
    assert torch.allclose(loaded(tmp_path / "out"), expected, rtol=1e-5, atol=1e-6)
    alphas = {4: 6 * 2, 2: 6 * 2**0.5, 3: 6 * 3**0.5}
    found = {module["module"]: (module["rank"], module["alpha"]) for module in modules(tmp_path / "out")}
    assert {rank for rank, _ in found.values()} == {2, 3, 4}
    assert all(alpha == pytest.approx(alphas[rank]) for rank, alpha in found.values())


def modules(path):
    return as_json(inspect(str(path)), modules=True)["module_list"]


@pytest.mark.numeric
def test_conv1d_stays_conv1d(tmp_path):
    expected = trained(tmp_path / "in", conv1d=True, use_rslora=True, target_modules=["q"])
    result = convert(tmp_path / "in", tmp_path / "out")
    assert not result.remarks
    assert config_of(tmp_path / "out")["fan_in_fan_out"] is True
    assert torch.allclose(loaded(tmp_path / "out", conv1d=True), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.numeric
def test_a_change_of_its_base_is_plain_lora(tmp_path):
    expected = trained(tmp_path / "in", use_dora=True)
    save_file(toy().state_dict(), tmp_path / "base.safetensors")
    convert(tmp_path / "in", tmp_path / "out", base=str(tmp_path / "base.safetensors"), rank=WIDTH)
    written = config_of(tmp_path / "out")
    assert (written["r"], written["lora_alpha"], written["use_dora"]) == (WIDTH, WIDTH, False)
    assert torch.allclose(loaded(tmp_path / "out"), expected, rtol=1e-4, atol=1e-5)


def decomposed_loha(folder, but=()):
    """A LoHa of PEFT with a magnitude in every module but some, and the output of the model that it makes."""
    torch.manual_seed(1)
    get_peft_model(toy(), LoHaConfig(r=2, alpha=3, target_modules=["q", "mlp"], init_weights=False)).save_pretrained(
        folder
    )
    tensors = load_file(folder / "adapter_model.safetensors")
    model = toy()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            key = f"base_model.model.{name}"
            left, right = (
                tensors[f"{key}.hada_{w}_a"].double() @ tensors[f"{key}.hada_{w}_b"].double() for w in ("w1", "w2")
            )
            combined = layer.weight.double() + 1.5 * left * right
            if not name.endswith(but or "nothing"):
                magnitude = 1 + torch.rand(WIDTH)
                tensors[f"{key}.lora_magnitude_vector"] = magnitude
                combined = magnitude.double()[:, None] * combined / combined.norm(dim=1, keepdim=True)
            layer.weight.copy_(combined)
    save_file(tensors, folder / "adapter_model.safetensors")
    save_file(toy().state_dict(), folder.parent / "base.safetensors")
    return output(model)


@pytest.mark.numeric
@pytest.mark.parametrize("has_config", [True, False])
def test_the_true_change_of_another_method_has_a_config_of_lora(has_config, tmp_path):
    expected = decomposed_loha(tmp_path / "in")
    said = {}
    if not has_config:
        (tmp_path / "in" / "adapter_config.json").unlink()
        said = {"settings": Settings(alpha=3.0), "transposed": {"*": False}}
    convert(tmp_path / "in", tmp_path / "out", base=str(tmp_path / "base.safetensors"), rank=WIDTH, **said)
    written = config_of(tmp_path / "out")
    assert (written["peft_type"], written["r"], written["lora_alpha"]) == ("LORA", WIDTH, WIDTH)
    assert "alpha" not in written
    assert torch.allclose(loaded(tmp_path / "out"), expected, rtol=1e-4, atol=1e-5)


def test_two_methods_have_no_config_together(tmp_path):
    decomposed_loha(tmp_path / "in", but="mlp")
    base, settings = str(tmp_path / "base.safetensors"), Settings(allow_partial_dora=True)
    with pytest.raises(LoraInspectError, match=r"modules of LOHA and LORA, but a PEFT config describes one method"):
        convert(tmp_path / "in", tmp_path / "out", base=base, rank=WIDTH, settings=settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.numeric
def test_weights_without_a_config_get_a_bare_one(tmp_path):
    expected = trained(tmp_path / "in", use_rslora=True)
    (tmp_path / "in" / "adapter_config.json").unlink()
    convert(tmp_path / "in", tmp_path / "out", settings=Settings(rslora=True, alpha=6.0))
    written = config_of(tmp_path / "out")
    assert (written["peft_type"], written["r"], written["lora_alpha"], written["use_rslora"]) == ("LORA", 4, 12, False)
    assert len(written["target_modules"]) == 8
    assert torch.allclose(loaded(tmp_path / "out"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.numeric
def test_modules_outside_the_configs_targets_are_named(tmp_path):
    """PEFT drops them without a word."""
    expected = trained(tmp_path / "in")
    config = {**config_of(tmp_path / "in"), "target_modules": ["q"]}
    (tmp_path / "in" / "adapter_config.json").write_text(json.dumps(config))
    convert(tmp_path / "in", tmp_path / "out")
    assert torch.allclose(loaded(tmp_path / "out"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.numeric
def test_alphas_and_flags_of_other_programs_go_into_the_config(tmp_path):
    trained(tmp_path / "in")
    tensors = load_file(tmp_path / "in" / "adapter_model.safetensors")
    extra = {key.replace("lora_A.weight", "alpha"): torch.tensor(6.0) for key in tensors if "lora_A" in key}
    save_file({**tensors, **extra, "use_rslora_flag": torch.tensor(True)}, tmp_path / "x.safetensors")
    result = convert(tmp_path / "x.safetensors", tmp_path / "out")
    assert result.dropped == ("use_rslora_flag",)
    assert load_file(tmp_path / "out" / "adapter_model.safetensors").keys() == tensors.keys()
    assert config_of(tmp_path / "out")["lora_alpha"] == 12


@pytest.mark.numeric
def test_a_peft_rslora_of_flux_still_loads(tmp_path):
    """Under kohya's names none of its keys was loaded, which a line of the log said."""
    from diffusers_cases import make, outputs_at

    torch.manual_seed(1)
    targets = ["to_q", "to_k", "proj_out"]
    model = get_peft_model(
        make("flux", "diffusers"), LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=targets)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    model.save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out")
    again = PeftModel.from_pretrained(make("flux", "diffusers"), tmp_path / "out")
    paths = [name for name, layer in model.base_model.model.named_modules() if hasattr(layer, "lora_A")]
    first, second = (outputs_at(paths, each.eval().base_model.model) for each in (model, again))
    assert len(paths) == 6
    assert all(torch.allclose(first[path], second[path], rtol=1e-5, atol=1e-6) for path in paths)


class TestPlace:
    @pytest.mark.parametrize("name", ["out.safetensors", "adapter_model.safetensors"])
    def test_a_file_is_refused_and_a_folder_named(self, name, tmp_path):
        trained(tmp_path / "in")
        with pytest.raises(
            LoraInspectError, match=r"has PEFT's names.*so the output is a folder; name a folder, such as -o"
        ):
            convert(tmp_path / "in", tmp_path / name)
        assert {path.name for path in tmp_path.iterdir()} == {"in"}

    def test_a_folder_with_something_else_in_it_is_not_replaced(self, tmp_path):
        trained(tmp_path / "in")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("mine")
        with pytest.raises(LoraInspectError, match=r"the folder holds notes\.txt"):
            convert_to_standard(str(tmp_path / "in"), str(tmp_path / "out"), ConvertOptions(), force=True)
        assert (tmp_path / "out" / "notes.txt").read_text() == "mine"

    def test_a_folder_of_an_earlier_run_is_replaced_when_told_so(self, tmp_path):
        trained(tmp_path / "in")
        convert(tmp_path / "in", tmp_path / "out")
        with pytest.raises(LoraInspectError, match="it exists"):
            convert(tmp_path / "in", tmp_path / "out")
        convert_to_standard(str(tmp_path / "in"), str(tmp_path / "out"), ConvertOptions(), force=True)
        assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            "adapter_model.safetensors",
            "adapter_config.json",
        }

    def test_names_that_no_program_reads_together_are_refused(self, tmp_path):
        trained(tmp_path / "in")
        tensors = load_file(tmp_path / "in" / "adapter_model.safetensors")
        tensors |= {"lora_unet_a.lora_down.weight": torch.ones(2, 5), "lora_unet_a.lora_up.weight": torch.ones(6, 2)}
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(LoraInspectError, match=r"mixes PEFT's names.*with other names"):
            convert(tmp_path / "x.safetensors", tmp_path / "out", settings=Settings(rslora=False, alpha=4.0))
