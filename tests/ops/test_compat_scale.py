"""The verdicts of `compat` on a file of unknown scale: those on loading hold for any scale."""

import pytest
import torch
from safetensors.torch import save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.compat import compat
from lora_inspect.programs.verdict import NO_MODELS, NOTHING, PARTLY, REFUSED, UNTESTED
from lora_inspect.reading.model.settings import Settings


@pytest.fixture
def without_config(tmp_path):
    """PEFT's names of FLUX.1 without their config."""
    tensors = {}
    for leaf in ("to_q", "to_k", "to_v", "to_out.0"):
        module = f"base_model.model.transformer_blocks.0.attn.{leaf}"
        tensors |= {f"{module}.lora_A.weight": torch.ones(2, 3072), f"{module}.lora_B.weight": torch.ones(3072, 2)}
    save_file(tensors, tmp_path / "in.safetensors", {"ss_base_model_version": "flux1"})
    return str(tmp_path / "in.safetensors")


def test_compat_of_unknown_scale_gives_verdicts_on_loading(without_config):
    verdicts = {one.program.name: one for one in compat(without_config).verdicts}
    assert {one.verdict for one in verdicts.values()} <= {NOTHING, REFUSED, PARTLY, NO_MODELS, UNTESTED}
    assert (verdicts["comfyui"].verdict, verdicts["diffusers"].verdict) == (NOTHING, REFUSED)
    assert (verdicts["onetrainer"].verdict, verdicts["onetrainer"].fix) == (UNTESTED, None)
    assert "give --alpha N and --rslora yes|no" in verdicts["onetrainer"].says


def test_compat_of_unknown_scale_equals_verdicts_of_any_scale(without_config):
    loading = {one.program.name: one.verdict for one in compat(without_config).verdicts}
    for alpha, rslora in ((2.0, False), (16.0, False), (5.0, True)):
        settled = compat(without_config, settings=Settings(alpha=alpha, rslora=rslora)).verdicts
        known = {one.program.name: one.verdict for one in settled}
        assert {name for name in known if loading[name] not in (known[name], UNTESTED)} == set()


def test_compat_of_unknown_scale_with_for_has_status_of_verdict(without_config, run):
    assert run("compat", without_config, "--for", "comfyui").status == 1
    assert run("compat", without_config, "--for", "onetrainer").status == 0
    assert run("compat", without_config, "--for", "onetrainer", "--strict").status == 1


def test_compat_of_unknown_scale_with_base_is_refused(without_config):
    with pytest.raises(LoraInspectError, match="the scale of"):
        compat(without_config, base=without_config)
