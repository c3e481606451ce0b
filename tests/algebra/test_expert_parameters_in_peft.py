"""Sums of adapters of different parameters of one layer of experts, as the real PEFT computes them."""

import warnings

import peft
import pytest
import torch
import transformers
from tuned_models import distance, logits, save_model

import lora_inspect
from lora_inspect.algebra.output.spelling import PACKED, Spelling, nested

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore")]

MODEL = "Qwen3MoeForCausalLM"
PARAMETERS = {"gate": ["mlp.experts.gate_up_proj"], "down": ["mlp.experts.down_proj"]}
PARAMETERS["both"] = [*PARAMETERS["gate"], *PARAMETERS["down"]]


def model_of(base):
    return transformers.Qwen3MoeForCausalLM.from_pretrained(base)


def trained(base, folder, targets):
    """A folder that PEFT saves, with random factors."""
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], target_parameters=PARAMETERS[targets])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(model_of(base), config)
        numbers = torch.Generator().manual_seed(len(folder.name))
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=numbers))
        model.save_pretrained(folder)
    return folder


def merged_logits(base, folders):
    """The logits of the model into which PEFT merges one folder after the other."""
    model = model_of(base)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for folder in folders:
            model = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
        return model.eval()(torch.arange(1, 25)[None]).logits.double()


@pytest.mark.parametrize("pair", [("gate", "down"), ("down", "gate"), ("gate", "both")], ids=" and ".join)
def test_sum_of_expert_parameters_is_that_of_peft(pair, tmp_path):
    """A parameter that is the only one of its layer has the name of the layer, which two of them cannot share."""
    base = save_model(MODEL, tmp_path / "base")
    folders = [trained(base, tmp_path / f"{at}{targets}", targets) for at, targets in enumerate(pair)]
    lora_inspect.combine(folders, tmp_path / "out")
    expected = merged_logits(base, folders)
    assert distance(logits(MODEL, base, tmp_path / "out"), expected, logits(MODEL, base)) < 1e-5


def test_parameters_of_unknown_order_with_one_name_are_refused():
    spelled = Spelling("experts.lora_B.weight", "experts.lora_A.weight", None, PACKED, "experts", True)
    with pytest.raises(
        lora_inspect.RefusedError, match=r"out: experts.w1 and experts.w2 have one name in it.*--exclude"
    ):
        nested({"experts.w1": spelled, "experts.w2": spelled}, "out")
