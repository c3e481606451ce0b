"""What LMDeploy of 2026-08-21 makes of PEFT's folders, as its own reader did on a stand-in of its Llama of two blocks.

The code cannot be installed here, so what it did is written out.
"""

import json
import shlex
from pathlib import Path

import peft_kinds
import pytest
from safetensors.torch import load_file

from lora_inspect.ops.compat import compat
from lora_inspect.programs.verdict import OTHER, REFUSED, SAME, STRENGTH, UNTESTED

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore")]

# By kind of folder: the verdict, and the commonest factors of the layers. It fills no factors of layers that a config
# names or that a file leaves out, so that they are what was in memory.
SEEN = {
    "plain": (SAME, {1.0: 14}),
    "two layers": (SAME, {1.0: 4}),
    "rank 24": (SAME, {1.0: 14}),
    "negative alpha": (SAME, {1.0: 14}),
    "alpha 0": (SAME, None),
    "half precision": (SAME, {1.0: 14}),
    "rslora": (STRENGTH, {0.5: 14}),
    "dora": (REFUSED, {}),
    "rank_pattern": (REFUSED, {}),
    "alpha_pattern": (STRENGTH, {1.0: 10, 3.0: 2, 0.5: 2}),
    "embeddings": (REFUSED, {}),
    "head": (REFUSED, {}),
    "copies of embeddings": (REFUSED, {}),
    "saved head": (REFUSED, {}),
    "saved norms": (REFUSED, {}),
    "tokens": (REFUSED, {}),
    "lora_bias": (REFUSED, {}),
    "pissa": (OTHER, {1.0: 14}),
    "layers_to_transform": (UNTESTED, {}),
    "excluded": (UNTESTED, {}),
    "expression": (REFUSED, {}),
    "default inside": (REFUSED, {}),
    "unknown key": (REFUSED, {}),
    "narrow targets": (REFUSED, {}),
    "ia3": (REFUSED, {}),
    "loha": (REFUSED, {}),
    "lokr": (REFUSED, {}),
    "oft": (REFUSED, {}),
    "vera": (REFUSED, {}),
}


@pytest.fixture
def judged(tmp_path):
    def judge(kind, model="LlamaForCausalLM"):
        folder = peft_kinds.make(model, kind, tmp_path / "adapter")
        return compat(str(folder.path), "lmdeploy").verdicts[0]

    return judge


@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.slow
def test_the_verdicts_are_what_was_seen(judged, kind):
    verdict, factors = SEEN[kind]
    found = judged(peft_kinds.KINDS[kind])
    assert found.verdict == verdict
    assert factors is None or found.factors == factors


@pytest.mark.parametrize("kind", ["biases", "biases of its layers"])
def test_biases_are_no_factors(judged, kind):
    found = judged(peft_kinds.KINDS[kind], "Qwen2ForCausalLM")
    assert (found.verdict, "AssertionError" in found.says) == (REFUSED, True)


def test_rslora_is_applied_at_alpha_over_rank_silently(judged):
    found = judged(peft_kinds.Kind({"use_rslora": True, "r": 16, "lora_alpha": 8}))
    assert (found.verdict, found.factor, found.silent, found.by) == (STRENGTH, 0.25, True, "run")


@pytest.mark.parametrize(
    "kind",
    ["rslora", "alpha_pattern", "rank_pattern", "patterns and rslora", "default inside", "narrow targets"],
)
@pytest.mark.slow
def test_convert_writes_what_it_loads(judged, tmp_path, kind):
    from lora_inspect.cli import main

    judged(peft_kinds.KINDS[kind])
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(tmp_path / "adapter"), "--to", "lmdeploy", "-o", str(out)])
    assert ended.value.code == 0
    assert compat(str(out), "lmdeploy").verdicts[0].verdict == SAME


@pytest.mark.parametrize("kind", ["expression", "head", "saved embeddings"])
@pytest.mark.slow
def test_no_command_is_offered_for_what_no_conversion_changes(judged, kind):
    found = judged(peft_kinds.KINDS[kind])
    assert (found.verdict, found.fix) == (REFUSED, None)


# PEFT saves "all-linear" as the paths of all layers.
@pytest.mark.parametrize("targets", ["all-linear", r".*_proj"])
@pytest.mark.slow
def test_paths_and_expressions_as_targets_are_refused_until_the_command_names_ends(judged, run, targets):
    found = judged(peft_kinds.Kind({"target_modules": targets}))
    assert found.verdict == REFUSED
    words = shlex.split(found.fix)
    assert run(*words[1:]).status == 0
    config = json.loads((Path(words[-1]) / peft_kinds.CONFIG).read_text())
    assert config["target_modules"] == sorted(peft_kinds.LEAVES["LlamaForCausalLM"])
    assert compat(words[-1], "lmdeploy").verdicts[0].verdict == SAME


@pytest.mark.slow
def test_the_command_for_a_file_with_an_unknown_key_leaves_that_out(judged, run, tmp_path):
    found = judged(peft_kinds.KINDS["unknown key"])
    words = shlex.split(found.fix)
    assert run(*words[1:]).status == 0
    assert [key for key in load_file(f"{words[-1]}/adapter_model.safetensors") if "lora" not in key] == []
    assert compat(words[-1], "lmdeploy").verdicts[0].verdict == SAME
