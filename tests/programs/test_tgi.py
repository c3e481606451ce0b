"""What TGI of 2026-01-08 makes of PEFT's folders, as its own reader did on a stand-in of its Llama of two blocks.

The code cannot be installed here, so what it did is written out: on one GPU, with the padding of its kernels.
"""

import json
import shlex
from pathlib import Path

import peft_kinds
import pytest
import torch
from safetensors.torch import load_file

from lora_inspect.ops.compat import compat
from lora_inspect.programs.verdict import LOST, NOTHING, OTHER, PARTLY, REFUSED, SAME, STRENGTH

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore")]

# It pads rank 4 to 8 and 24 to 32, and takes that rank for all kinds of layers but the first.
PADDED = {0.5: 12, 1.0: 2}
SEEN = {
    "plain": (STRENGTH, PADDED),
    "one layer": (SAME, {1.0: 2}),
    "two layers": (STRENGTH, {0.5: 2, 1.0: 2}),
    "rank 24": (STRENGTH, {0.75: 12, 1.0: 2}),
    "negative alpha": (STRENGTH, PADDED),
    "half precision": (STRENGTH, PADDED),
    "rslora": (STRENGTH, {0.707: 12, 1.0: 2}),
    "dora": (LOST, PADDED),
    "rank_pattern": (STRENGTH, {0.5: 9, 1.0: 3, 0.25: 2}),
    "alpha_pattern": (STRENGTH, {0.5: 8, 1.0: 2, 1.5: 2, 0.25: 2}),
    "patterns and rslora": (STRENGTH, {0.707: 8, 1.0: 2, 0.5: 2, 0.354: 2}),
    "embeddings": (PARTLY, PADDED),
    "head": (PARTLY, PADDED),
    "saved head": (PARTLY, PADDED),
    "saved embeddings": (PARTLY, PADDED),
    "saved norms": (PARTLY, PADDED),
    "tokens": (PARTLY, PADDED),
    "lora_bias": (PARTLY, PADDED),
    "pissa": (OTHER, None),
    "layers_to_transform": (NOTHING, {}),
    "excluded": (STRENGTH, {0.5: 10, 1.0: 2}),
    "expression": (NOTHING, {}),
    "default inside": (NOTHING, {}),
    "unknown key": (STRENGTH, PADDED),
    "ia3": (REFUSED, {}),
    "loha": (REFUSED, {}),
    "lokr": (REFUSED, {}),
    "oft": (REFUSED, {}),
    "vera": (REFUSED, {}),
}
RANK_16 = {"r": 16, "lora_alpha": 8}
# Ranks that it does not pad.
WHOLE = {
    "rank 8": ({"r": 8, "lora_alpha": 12}, SAME, {1.0: 14}),
    "rank 16": (RANK_16, SAME, {1.0: 14}),
    "rslora": ({**RANK_16, "use_rslora": True}, SAME, {1.0: 14}),
    "rank_pattern": ({**RANK_16, "rank_pattern": {"o_proj": 2}}, STRENGTH, {1.0: 10, 0.125: 2, 2.0: 2}),
    "alpha_pattern": ({**RANK_16, "alpha_pattern": {"o_proj": 2}}, STRENGTH, {1.0: 12, 4.0: 2}),
    "ranks of one kind": ({**RANK_16, "rank_pattern": {"layers.1.mlp.down_proj": 8}}, REFUSED, {}),
    "layers_to_transform": ({**RANK_16, "layers_to_transform": [1]}, NOTHING, {}),
    "keys and values": ({**RANK_16, "target_modules": ["k_proj", "v_proj"]}, SAME, {1.0: 4}),
}


def rounded(factors):
    return {round(factor, 3): count for factor, count in factors.items()}


@pytest.fixture
def judged(tmp_path):
    def judge(kind, model="LlamaForCausalLM"):
        folder = peft_kinds.make(model, kind, tmp_path / "adapter")
        return compat(str(folder.path), "tgi").verdicts[0]

    return judge


@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.slow
def test_the_verdicts_are_what_was_seen(judged, kind):
    verdict, factors = SEEN[kind]
    found = judged(peft_kinds.KINDS[kind])
    assert found.verdict == verdict
    assert factors is None or rounded(found.factors) == factors


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.slow
def test_ranks_of_its_kernels(judged, kind):
    asked, verdict, factors = WHOLE[kind]
    found = judged(peft_kinds.Kind(asked))
    assert (found.verdict, rounded(found.factors)) == (verdict, factors)


@pytest.mark.parametrize("kind", ["biases", "biases of its layers"])
def test_biases_are_passed_over(judged, kind):
    found = judged(peft_kinds.KINDS[kind], "Qwen2ForCausalLM")
    assert (found.verdict, found.silent, rounded(found.factors)) == (PARTLY, True, PADDED)


def test_layers_that_may_be_missing_at_the_end_are_open(judged):
    found = judged(peft_kinds.Kind({**RANK_16, "layers_to_transform": [0]}))
    assert found.verdict == "not tested"


@pytest.mark.parametrize(
    ("asked", "rank"),
    [
        ({"rank_pattern": {"o_proj": 2}}, 16),
        ({"alpha_pattern": {"o_proj": 2}}, 16),
        ({"r": 4}, 8),
        ({"r": 24, "use_rslora": True}, 32),
    ],
)
@pytest.mark.slow
def test_the_offered_command_fills_ranks_and_keeps_the_changes(judged, run, tmp_path, asked, rank):
    words = shlex.split(judged(peft_kinds.Kind({**RANK_16, **asked})).fix)
    assert run(*words[1:]).status == 0
    assert compat(words[-1], "tgi").verdicts[0].verdict == SAME
    for (path, meant), (_, change) in zip(changes(tmp_path / "adapter"), changes(Path(words[-1]), rank), strict=True):
        torch.testing.assert_close(change, meant, msg=path)


def changes(folder, rank=None):
    """Yield (path, alpha/rank · B A) of every layer, by the config's fields for PEFT."""
    config = json.loads((folder / peft_kinds.CONFIG).read_text())
    tensors = load_file(folder / peft_kinds.WEIGHTS)
    for key in sorted(key for key in tensors if ".lora_A." in key):
        path, down, up = key.partition(".lora_A")[0], tensors[key], tensors[key.replace("lora_A", "lora_B")]
        assert rank in (None, len(down))
        own = config["alpha_pattern"].get(path.rpartition(".")[2], config["lora_alpha"])
        yield path, own / (len(down) ** 0.5 if config["use_rslora"] else len(down)) * up @ down


@pytest.mark.parametrize("kind", ["head", "expression", "layers_to_transform"])
@pytest.mark.slow
def test_no_command_is_offered_for_what_no_conversion_changes(judged, kind):
    assert judged(peft_kinds.KINDS[kind]).fix is None
