"""Granite's experts, which transformers has in `experts.gate_up_proj` and saves as `input_linear.weight`.

What is expected is PEFT's own merge of the real classes, saved by transformers and as the class has it. JetMoE has the
names of these checkpoints in its class.
"""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers", minversion="5.0")
peft = pytest.importorskip("peft", minversion="0.20")

pytestmark = pytest.mark.numeric

EXPERTS = 3
SIZES = {
    "vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "pad_token_id": 0, "tie_word_embeddings": False, "num_experts_per_tok": 2, "head_dim": 4, "intermediate_size": 6,
    "num_local_experts": EXPERTS,
}  # fmt: skip
SHARED = {"shared_intermediate_size": 6}
# Of the last two every matrix of a parameter is square.
MODELS = {
    "Granite": ("GraniteMoe", {}),
    "Granite with a shared expert": ("GraniteMoeShared", SHARED),
    "hybrid Granite": ("GraniteMoeHybrid", {**SHARED, "layer_types": ["attention"] * 2, "mamba_n_heads": 2}),
    "Granite of square outputs": ("GraniteMoe", {"intermediate_size": 8}),
    "Granite of square inputs": ("GraniteMoe", {"intermediate_size": 4}),
}
OF_CLASS = ["experts.gate_up_proj", "experts.down_proj"]
OF_CHECKPOINT = ["input_linear.weight", "output_linear.weight"]
RENAMED = {".experts.base_layer.lora_": ".input_linear.lora_", ".experts.lora_": ".output_linear.lora_"}


class Trained:
    """A model and an adapter of it, and what PEFT's merge makes of them, in either names."""

    def __init__(self, name, folder, targets):
        kind, own = MODELS.get(name, (name, {}))
        torch.manual_seed(3)
        config = getattr(transformers, f"{kind}Config")(**{**SIZES, **own})
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        self.adapter = folder / "adapter"
        self.bases = self._save(model, folder, "base")
        adapted = peft.get_peft_model(
            model, peft.LoraConfig(r=2, lora_alpha=3, target_modules=["v_proj", "kv_proj"], target_parameters=targets)
        )
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.3)
        adapted.save_pretrained(self.adapter)
        merged = self._save(adapted.merge_and_unload(), folder, "theirs")
        self.theirs = {form: load_file(path) for form, path in merged.items()}

    @staticmethod
    def _save(model, folder, name):
        """The files of the model as transformers saves it, and as its class has it."""
        model.save_pretrained(folder / name)
        fused = folder / f"{name}.safetensors"
        save_file({key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}, fused)
        return {"saved": folder / name / "model.safetensors", "fused": fused}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    made = {}

    def make(name, targets=OF_CLASS):
        key = (name, *targets)
        if key not in made:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[key] = Trained(name, tmp_path_factory.mktemp("model"), targets)
        return made[key]

    return make


def as_checkpoint(adapter, folder, targets=OF_CHECKPOINT):
    """The adapter as PEFT has it where the class itself has the names of the checkpoint, as in transformers 4."""
    shutil.copytree(adapter, folder)
    tensors = {}
    for key, value in load_file(folder / "adapter_model.safetensors").items():
        found = next((old for old in RENAMED if old in key), "")
        tensors[key.replace(found, RENAMED[found]) if found else key] = value
    save_file(tensors, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_parameters": targets}))
    return folder


def assert_equal(found, theirs, base, changed=6):
    assert found.keys() == theirs.keys()
    assert all(float((found[key] - theirs[key]).abs().max()) <= 1e-6 for key in found)
    assert sum(not torch.equal(found[key], base[key]) for key in found) == changed


@pytest.mark.parametrize("names", ["of the class", "of the checkpoint"])
@pytest.mark.parametrize("form", ["saved", "fused"])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_peft_merges_in_either_names(name, form, names, trained, run, tmp_path):
    own = trained(name)
    adapter = own.adapter if names == "of the class" else as_checkpoint(own.adapter, tmp_path / "adapter")
    out = tmp_path / "out.safetensors"
    ended = run("merge", own.bases[form], adapter, "-o", out)
    assert ended.status == 0, ended.stderr
    assert_equal(load_file(out), own.theirs[form], load_file(own.bases[form]))
    record = run("verify", out, own.bases[form], adapter, "--json").json
    assert record["ok"], record


def test_the_router_is_found_under_either_name(trained, run, tmp_path):
    own = trained("Granite", ["experts.gate_up_proj", "router.weight"])
    for form, base in own.bases.items():
        out = tmp_path / f"{form}.safetensors"
        ended = run("merge", base, own.adapter, "-o", out)
        assert ended.status == 0, ended.stderr
        assert_equal(load_file(out), own.theirs[form], load_file(base))


@pytest.mark.parametrize("names", ["of the class", "of the checkpoint"])
@pytest.mark.parametrize("form", ["saved", "fused"])
def test_a_square_parameter_that_no_other_shows_the_way_round_of(form, names, trained, run, tmp_path):
    own = trained("Granite of square outputs", ["experts.down_proj"])
    adapter = (
        own.adapter if names == "of the class" else as_checkpoint(own.adapter, tmp_path / "adapter", OF_CHECKPOINT[1:])
    )
    out = tmp_path / "out.safetensors"
    ended = run("merge", own.bases[form], adapter, "-o", out)
    assert ended.status == 0, ended.stderr
    assert_equal(load_file(out), own.theirs[form], load_file(own.bases[form]), changed=4)


def test_a_class_with_the_names_of_the_checkpoint(trained, run, tmp_path):
    own = trained("JetMoe", ["mlp.input_linear.weight", "mlp.output_linear.weight"])
    out = tmp_path / "out.safetensors"
    ended = run("merge", own.bases["fused"], own.adapter, "-o", out)
    assert ended.status == 0, ended.stderr
    assert_equal(load_file(out), own.theirs["fused"], load_file(own.bases["fused"]))


def test_granite_is_a_language_model_that_is_known(trained, run):
    assert run("info", trained("Granite").adapter, "--json").json["architecture"] == "llm"
