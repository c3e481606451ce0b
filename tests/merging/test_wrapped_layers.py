"""What PEFT wraps: torch's MultiheadAttention, parameters of two dimensions, and layers in modules that it wraps.

What is expected is PEFT's own model, in float64: what its merge leaves, and what it computes of an input.
"""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

peft = pytest.importorskip("peft", minversion="0.20")

pytestmark = pytest.mark.numeric

WIDTH = 6


class Attention(nn.Module):
    """A MultiheadAttention between two layers."""

    def __init__(self, **options):
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)
        self.mha = nn.MultiheadAttention(WIDTH, 2, **options)
        self.widths = (self.mha.kdim, self.mha.vdim)

    def forward(self, inputs):
        query = self.fc(inputs)
        return self.mha(query, *(inputs[..., :width] for width in self.widths))[0]


class Inner(nn.Module):
    """A layer below the parameters of the one that it is in."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, inputs):
        return self.proj(inputs)


class Experts(nn.Module):
    """Parameters of all experts, and layers beside them in the same module."""

    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(3, 4, WIDTH))
        self.down_proj = nn.Parameter(torch.empty(3, WIDTH, 2))
        self.gate = nn.Linear(WIDTH, 3)
        self.inner = Inner()

    def forward(self, inputs):
        own = torch.einsum("bi,eoi->beo", inputs, self.gate_up_proj)
        own = torch.einsum("beo,eio->bei", own[..., :2] * own[..., 2:], self.down_proj)
        return (own * self.gate(inputs)[..., None]).sum(1) + self.inner(inputs)


class Mixture(nn.Module):
    """A layer with experts."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)
        self.moe = Experts()

    def forward(self, inputs):
        return self.moe(self.fc(inputs))


def model(kind, **options):
    torch.manual_seed(2)
    made = kind(**options).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


class Adapted:
    """The files of a model and of an adapter of it, and what PEFT makes of both."""

    def __init__(self, folder, kind, config, options):
        self.make = lambda: model(kind, **options)
        self.base, self.folder = folder / "base.safetensors", folder / "adapter"
        save_file({key: value.clone() for key, value in self.make().state_dict().items()}, self.base)
        adapted = peft.get_peft_model(self.make(), peft.LoraConfig(**{"r": 2, "lora_alpha": 3, **config}))
        for key, parameter in adapted.named_parameters():
            if "lora_" in key or parameter.requires_grad:
                nn.init.normal_(parameter, std=0.3)
        adapted.save_pretrained(self.folder)
        self.theirs = self.merged(self.folder)
        self.inputs = torch.randn(5, WIDTH, dtype=torch.float64)
        self.output = adapted(self.inputs).detach()

    def merged(self, folder):
        """The weights that PEFT's merge leaves, with those of layers in its wrappers that it forgets there."""
        merged = peft.PeftModel.from_pretrained(self.make(), folder).merge_and_unload()
        for layer in merged.modules():
            if isinstance(layer, peft.tuners.lora.LoraLayer) and not layer.merged:
                layer.merge()
        state = {key.replace(".base_layer.", "."): value for key, value in merged.state_dict().items()}
        return {key: value.detach().clone() for key, value in state.items() if ".lora_" not in key}


@pytest.fixture(autouse=True)
def quiet():
    """PEFT warns of patterns of parameters, which it does apply."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


MHA = {"target_modules": ["mha"]}
BOTH = {"target_modules": ["mha", "fc"]}
FUSED = {"target_modules": ["fc"], "target_parameters": ["mha.in_proj_weight"]}
APART = {"kdim": 4, "vdim": 5}
EXPERTS = ["moe.gate_up_proj", "moe.down_proj"]
ATTENTIONS = {
    "alone": (MHA, {}),
    "beside a layer": (BOTH, {}),
    "another rank": ({**BOTH, "rank_pattern": {"mha": 4}}, {}),
    "another rank of the layer": ({**BOTH, "rank_pattern": {"fc": 4}}, {}),
    "patterns of its parts, which PEFT does not ask": (
        {**BOTH, "rank_pattern": {"out_proj": 4}, "alpha_pattern": {"mha.out_proj": 7, "in_proj": 6}}, {}),
    "another alpha": ({**BOTH, "alpha_pattern": {"mha": 5}}, {}),
    "rslora": ({**BOTH, "use_rslora": True, "rank_pattern": {"mha": 3}}, {}),
    "biases of up layers": ({**BOTH, "lora_bias": True}, {}),
    "all biases": ({**MHA, "bias": "all"}, {}),
    "own biases": ({**BOTH, "bias": "lora_only"}, {}),
    "batch first": (MHA, {"batch_first": True}),
    "no bias": (BOTH, {"bias": False}),
    "rows of its own": (MHA, {"add_bias_kv": True}),
}  # fmt: skip
LAYERS = {
    "its output alone": (Attention, {"target_modules": ["out_proj"]}, {}),
    "a fused parameter": (Attention, FUSED, {}),
    "a fused parameter by its own name": (Attention, {**FUSED, "target_parameters": ["in_proj_weight"]}, {}),
    "a fused parameter of another rank": (Attention, {**FUSED, "rank_pattern": {"mha.in_proj_weight": 3}}, {}),
    "a fused parameter beside the output": (Attention, {**FUSED, "target_modules": ["out_proj"]}, {}),
    "a fused parameter beside all layers": (Attention, {**FUSED, "target_modules": "all-linear"}, {}),
    "parameters apart": (
        Attention, {"target_modules": [], "target_parameters": [f"mha.{name}_proj_weight" for name in "vqk"]}, APART),
    "two parameters apart": (
        Attention, {"target_modules": ["fc"], "target_parameters": ["q_proj_weight", "v_proj_weight"]}, APART),
    "a layer's weight": (Attention, {"target_modules": [], "target_parameters": ["fc.weight"]}, {}),
    "a layer beside experts": (Mixture, {"target_modules": ["gate", "fc"], "target_parameters": EXPERTS}, {}),
    "a layer beside one parameter": (Mixture, {"target_modules": ["gate"], "target_parameters": EXPERTS[1:]}, {}),
    "a layer of another rank beside experts": (
        Mixture, {"target_modules": ["gate", "fc"], "target_parameters": EXPERTS, "rank_pattern": {"moe.gate": 4},
                  "alpha_pattern": {"gate": 5}, "use_rslora": True}, {}),
    "a layer in a layer beside experts": (
        Mixture, {"target_modules": ["proj"], "target_parameters": EXPERTS}, {}),
    "biases below wrappers": (
        Mixture, {"target_modules": ["gate"], "target_parameters": EXPERTS, "bias": "all"}, {}),
}  # fmt: skip
CASES = {name: (Attention, *own) for name, own in ATTENTIONS.items()} | LAYERS


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    made = {}

    def make(case):
        if case not in made:
            made[case] = Adapted(tmp_path_factory.mktemp("model"), *CASES[case])
        return made[case]

    return make


def assert_equal(found, theirs):
    assert found.keys() == theirs.keys()
    assert all(float((found[key] - theirs[key]).abs().max()) <= 1e-12 for key in found)


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_peft_merges(case, adapted, run, tmp_path):
    own, out = adapted(case), tmp_path / "out.safetensors"
    ended = run("merge", own.base, own.folder, "-o", out)
    assert ended.status == 0, ended.stderr
    found = load_file(out)
    assert_equal(found, own.theirs)
    assert not all(torch.equal(found[key], value) for key, value in load_file(own.base).items())
    assert run("verify", out, own.base, own.folder, "--json").json["ok"]


# PEFT runs the layers of a MultiheadAttention itself, so that an adapted output changes nothing before it is merged.
UNUSED = ("its output alone", "a fused parameter beside the output", "a fused parameter beside all layers")


@pytest.mark.parametrize("case", [case for case in CASES if case not in UNUSED])
def test_the_merged_model_computes_what_peft_does(case, adapted, run, tmp_path):
    own, out = adapted(case), tmp_path / "out.safetensors"
    assert run("merge", own.base, own.folder, "-o", out).status == 0
    merged = own.make()
    merged.load_state_dict(load_file(out))
    with torch.no_grad():
        assert float((merged(own.inputs) - own.output).abs().max()) <= 1e-10


@pytest.mark.parametrize("options", [(), ("--to", "peft")], ids=["standard", "asked for"])
@pytest.mark.parametrize("case", CASES)
def test_peft_reads_the_standard_form(case, options, adapted, run, tmp_path):
    own = adapted(case)
    ended = run("convert", own.folder, *options, "-o", tmp_path / "out")
    assert ended.status == 0, ended.stderr
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["use_rslora"] is False
    assert_equal(own.merged(tmp_path / "out"), own.theirs)


@pytest.mark.parametrize("case", CASES)
def test_peft_is_said_to_load_it(case, adapted, run):
    (program,) = run("compat", adapted(case).folder, "--for", "peft", "--json").json["programs"]
    assert program["verdict"] == "same meaning", program
    assert run("info", adapted(case).folder, "--json").json["problems"] == []


def test_of_which_modules_it_is_is_said(adapted, run):
    says = [one["says"] for one in run("info", adapted("beside a layer").folder, "--json").json["evidence"]]
    assert "PEFT adds the change of 1 modules twice, as each is the out_proj of a MultiheadAttention" in says
    modules = run("info", adapted("beside a layer").folder, "--modules").stdout
    assert all(f"base_model.model.{name}" in modules for name in ("mha.in_proj", "mha.out_proj"))


def rewritten(own, folder, tensors=None, **config):
    """The adapter with other tensors or another config."""
    folder.mkdir()
    found = load_file(own.folder / "adapter_model.safetensors")
    save_file(found if tensors is None else tensors(found), folder / "adapter_model.safetensors")
    says = json.loads((own.folder / "adapter_config.json").read_text()) | config
    (folder / "adapter_config.json").write_text(json.dumps(says))
    return folder


@pytest.mark.parametrize("version", ["0.21.3", "1.0.0", "0.22.0.dev0", 7])
def test_how_often_an_unknown_version_counts_it_is_open(version, adapted, run, tmp_path):
    own = adapted("alone")
    folder, out = rewritten(own, tmp_path / "other", peft_version=version), tmp_path / "out.safetensors"
    refusal = run("merge", own.base, folder, "-o", out).refusal
    assert "adds the change of a MultiheadAttention's out_proj twice" in refusal
    assert "write 0.21.2 there" in refusal


@pytest.mark.parametrize("version", [None, "0.15.2", "0.18.1", "0.21.0+local"])
def test_earlier_versions_count_it_twice_too(version, adapted, run, tmp_path):
    own, out = adapted("alone"), tmp_path / "out.safetensors"
    folder = rewritten(own, tmp_path / "other", peft_version=version)
    assert run("merge", own.base, folder, "-o", out).status == 0
    assert_equal(load_file(out), own.theirs)


def test_both_an_attention_and_its_output_are_too_much(adapted, run, tmp_path):
    """PEFT saves both where its targets name both, and computes with those below the wrapper alone."""

    def doubled(tensors):
        return tensors | {key.replace(".base_layer", ""): value * 2 for key, value in tensors.items() if "out" in key}

    own = adapted("alone")
    folder = rewritten(own, tmp_path / "other", doubled)
    refusal = run("merge", own.base, folder, "-o", tmp_path / "out.safetensors").refusal
    assert "mha.out_proj has factors of its own" in refusal


def test_factors_below_what_no_config_names_are_not_guessed(adapted, run, tmp_path):
    own = adapted("a layer beside one parameter")
    folder = rewritten(own, tmp_path / "other", target_parameters=None)
    refusal = run("merge", own.base, folder, "-o", tmp_path / "out.safetensors").refusal
    assert "does not name in target_parameters" in refusal


def test_a_parameter_that_is_stored_as_in_out_is_changed_as_it_is_stored(run, tmp_path):
    """The square weight of a Conv1D of transformers, which as a layer would be taken for a transposed one."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    torch.manual_seed(0)
    base = transformers.GPT2LMHeadModel(config)
    save_file(
        {key: value.clone() for key, value in base.state_dict().items() if key != "lm_head.weight"},
        tmp_path / "base.safetensors",
    )
    targets = ["attn.c_proj.weight", "attn.c_attn.weight"]
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=[], target_parameters=targets))
    for key, parameter in adapted.named_parameters():
        if "lora_" in key:
            nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    theirs = adapted.merge_and_unload().state_dict()
    out = tmp_path / "out.safetensors"
    ended = run("merge", tmp_path / "base.safetensors", tmp_path / "adapter", "-o", out)
    assert ended.status == 0, ended.stderr
    for key, value in load_file(out).items():
        assert float((value - theirs[key]).abs().max()) <= 1e-6, key
