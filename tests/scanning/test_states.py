"""The states of adapters, each by files that are in it for a reason of their own, and notes that are true."""

import json

import pytest
from adapters import lora, loras, split

from lora_inspect.files.discovery import find_checkpoints
from lora_inspect.ops.compat import compat
from lora_inspect.programs.verdict import SAME, UNJUDGED
from lora_inspect.scanning.scan_file import ANSWER, CONVERT, FINE, INFO_ONLY, scan_file

PEFT = {"spelling": "peft", "alpha": None}
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
WAN = "diffusion_model.blocks.0.self_attn.q"


def without(tensors, end):
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(end)}


# Tensors and metadata of a file, its state, and how its note begins.
FILES = {
    "no rule for its scale": (lora(MODULE, **PEFT), {}, ANSWER, "scale unknown: --alpha N and --rslora yes|no"),
    "an alpha of 0": (loras(alpha=0.0), {}, ANSWER, "scale unknown: --alpha N"),
    "DoRA on one layer": (
        {**loras(2), "lora_unet_blocks_0_attn_q.dora_scale": ("F32", (6, 1), 1.0)},
        {},
        ANSWER,
        "DoRA on only some layers: --allow-partial-dora",
    ),
    "a factor that is missing": (without(loras(2), "0_attn_q.lora_up.weight"), {}, INFO_ONLY, "incomplete"),
    "a factor that is missing, and no scale": (
        without({**lora(MODULE, **PEFT), **lora(MODULE.replace("0", "1"), **PEFT)}, "1.self_attn.q_proj.lora_B.weight"),
        {},
        INFO_ONLY,
        "incomplete",
    ),
    "a method that is recognised alone": (
        {f"lora_unet_blocks_{i}_q.{part}": ("F32", (4, 4), 1.0) for i in range(2) for part in ("oft_blocks", "x")},
        {},
        None,
        "",
    ),
    "names that nobody tried": (loras(), {}, FINE, "not in PEFT, and untried elsewhere"),
    "parts of which no program loads any": (split(), {}, FINE, "not in PEFT, and untried elsewhere"),
    "plain LoRA for Wan": (lora(WAN, alpha=16.0, out=5120, inputs=5120), {}, FINE, ""),
    "RS-LoRA for Wan": (
        {**lora(WAN, alpha=16.0, out=5120, inputs=5120), "use_rslora_flag": ("BOOL", (), 1)},
        {},
        CONVERT,
        "0.25 times as strong in ComfyUI",
    ),
    "alpha like that of RS-LoRA": (
        lora(WAN, alpha=4.0, out=5120, inputs=5120), {}, FINE, "alpha is sqrt(rank): RS-LoRA?"),
    "a tensor of nobody": (
        {**lora(WAN, alpha=16.0, out=5120, inputs=5120), "odd": ("F32", (1,), 1.0)}, {}, None, ""),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "metadata", "state", "note"), FILES.values(), ids=FILES)
def test_the_state_of_a_file(tensors, metadata, state, note, write_safetensors):
    one = scan_file(str(write_safetensors(tensors, metadata)))
    assert one.error is None
    assert state in (one.state, None)
    assert one.note.startswith(note)


def test_a_split_layer_is_no_other_state(write_safetensors):
    assert scan_file(str(write_safetensors(split()))).state == FINE


def test_experts_of_unknown_packing_wait_for_an_answer(write_safetensors, tmp_path):
    key = "base_model.model.model.layers.0.mlp.experts"
    tensors = {f"{key}.lora_A.weight": ("F32", (24, 16), 1.0), f"{key}.lora_B.weight": ("F32", (40, 24), 1.0)}
    config = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_parameters": ["mlp.experts.down_proj"],
        "auto_mapping": {"unsloth_fixed": True},
    }  # fmt: skip
    file = write_safetensors(tensors, name="adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    one = scan_file(str(file))
    assert (one.state, one.note) == (ANSWER, "packing of experts unknown: --expert-packing")


def test_shorter_notes_say_the_same_in_fewer_letters(fixtures):
    for path in find_checkpoints(str(fixtures)):
        lengths = [len(note) for note in scan_file(path).notes]
        assert lengths == sorted(lengths, reverse=True)
        assert not lengths or lengths[-1] <= 24, path


@pytest.mark.slow
def test_states_agree_with_compat(fixtures):
    """In what is fine no program that loads it has another verdict; in what needs converting the one named has."""
    aside = (
        *("comfyui-0.3.64", "lycoris", "lycoris-merge", "musubi-networks", "sd-scripts-flux-merge"),
        *("ai-toolkit", "onetrainer", "nunchaku-compose", "wanvideo-unmerged"),
        *("ollama", "tgi"),
    )
    seen = set()
    for path in find_checkpoints(str(fixtures)):
        one = scan_file(path)
        if one.state not in (FINE, CONVERT):
            continue
        seen.add(one.state)
        verdicts = [v for v in compat(path).verdicts if v.program.name not in aside]
        loaded = [v for v in verdicts if v.verdict not in (*UNJUDGED, "refused", "nothing loaded")]
        wrong = {v.program.title: v for v in loaded if v.verdict != SAME}
        if one.state == FINE:
            assert not wrong, path
        elif one.note.endswith(" nothing of it"):
            first = one.note.partition(" load")[0].partition(" and ")[0].partition(",")[0]
            assert {v.verdict for v in verdicts if v.program.title == first} <= {"refused", "nothing loaded"}, path
            assert first in {v.program.title for v in verdicts}
        elif loaded:
            title = one.note.rpartition(" in ")[2].partition(" and ")[0].partition(",")[0]
            assert title in wrong, (path, one.note)
            # What is said to need a conversion has one.
            assert any(v.fix for v in wrong.values()), path
        else:
            assert one.note == "no program that lora-inspect knows loads it"
    assert seen == {FINE, CONVERT}


def test_json_of_a_setting_that_contradicts_is_an_answer_that_is_wrong(run, write_safetensors):
    file = write_safetensors(lora(WAN, alpha=16.0, out=5120, inputs=5120))
    (record,) = map(json.loads, run("info", f"{file}:alpha=3", "--jsonl").stdout.splitlines())
    assert (record["state"], "alpha" in record["note"]) == (ANSWER, True)
