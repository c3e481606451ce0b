"""What the rules say of folders of PEFT, beside what the real PEFT computes with them."""

import language_models
import peft_kinds
import pytest
from peft import PeftModel
from safetensors.torch import load_file, save_file

from lora_inspect.ops.compat import compat
from lora_inspect.programs.verdict import NOTHING, OTHER, PARTLY, REFUSED, SAME, STRENGTH, UNTESTED

# PEFT uses what transformers deprecates, and tells of what it has no weights for.
pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

# What the rules leave open although PEFT loads it: a gap, and no wrong verdict.
GAPS: set[str] = set()
GRID = [(model, kind) for model in peft_kinds.MODELS for kind in peft_kinds.KINDS]


@pytest.mark.parametrize(("model", "kind"), GRID)
def test_the_verdict_is_what_peft_does(model, kind, tmp_path):
    try:
        folder = peft_kinds.make(model, peft_kinds.KINDS[kind], tmp_path)
    except (ValueError, NotImplementedError, TypeError) as refusal:
        pytest.skip(f"PEFT makes no such adapter: {refusal}")
    (verdict,) = compat(str(folder.path), "peft").verdicts
    if verdict.verdict == UNTESTED:
        assert kind in GAPS, verdict.says
        return
    assert kind not in GAPS
    network = language_models.model(model)
    try:
        logits = language_models.output(PeftModel.from_pretrained(network, str(folder.path)).eval())
    except (ValueError, RuntimeError, KeyError):
        assert verdict.verdict == REFUSED
        return
    assert verdict.verdict != REFUSED
    assert (verdict.verdict == SAME) == folder.is_like_trained(logits), verdict
    if verdict.verdict != SAME:
        assert verdict.verdict in (NOTHING, OTHER, PARTLY, STRENGTH)


def test_magnitudes_may_end_in_weight(tmp_path):
    """PEFT gives its own spelling that end as it reads it."""
    folder = peft_kinds.make("LlamaForCausalLM", peft_kinds.KINDS["dora"], tmp_path)
    file = f"{folder.path}/adapter_model.safetensors"
    tensors = load_file(file)
    save_file({key + ".weight" if key.endswith("_vector") else key: one for key, one in tensors.items()}, file)
    assert compat(str(folder.path), "peft").verdicts[0].verdict == SAME
    network = PeftModel.from_pretrained(language_models.model("LlamaForCausalLM"), str(folder.path)).eval()
    assert folder.is_like_trained(language_models.output(network))
