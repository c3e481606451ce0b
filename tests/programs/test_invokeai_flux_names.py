"""All module names of FLUX.1 in InvokeAI, in three spellings, against the rules of its loader.

The rules are stated here in another way than in the package. The conversions of 2026-08-19 for diffusers' and for
OneTrainer's names ran on all of these, also in other blocks, and raised the errors of `invokeai_flux_diffusers`. The
conversion for kohya's names was read.
"""

import re

import pytest
from adapters import lora

from lora_inspect.architectures.families.flux import DIFFUSERS, DIFFUSERS_NORMS, ORIGINAL, ORIGINAL_NORMS
from lora_inspect.ops.compat import compat
from lora_inspect.programs.known.invokeai_flux_diffusers import failure_of_dotted, failure_of_underscored
from lora_inspect.programs.verdict import SAME
from lora_inspect.reading.model.settings import Settings

ATTENTIONS = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))
# The layers of a file by which InvokeAI tells diffusers' names.
MARKS = (
    *(f"transformer_blocks.0.attn.{layer}" for layers in ATTENTIONS for layer in layers),
    *(f"single_transformer_blocks.0.attn.to_{layer}" for layer in "qkv"),
)
# What follows a segment in the tree of the loader, by the segments before it.
CHILDREN = {
    "": ("single_transformer_blocks", "transformer_blocks"),
    "single_transformer_blocks": ("#",),
    "single_transformer_blocks #": ("attn", "norm", "proj_mlp", "proj_out"),
    "single_transformer_blocks # attn": ("to_k", "to_q", "to_v"),
    "single_transformer_blocks # norm": ("linear",),
    "transformer_blocks": ("#",),
    "transformer_blocks #": ("attn", "ff", "ff_context", "norm1", "norm1_context"),
    "transformer_blocks # attn": (
        *("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out"),
        *("to_k", "to_out", "to_q", "to_v"),
    ),
    "transformer_blocks # attn to_out": ("#",),
    "transformer_blocks # ff": ("net",),
    "transformer_blocks # ff net": ("#",),
    "transformer_blocks # ff net #": ("proj",),
    "transformer_blocks # norm1": ("linear",),
}
# Layers that the loader leaves over in diffusers' names, and two that it gives to a module without a weight.
LEFT_OVER = r"norm_out\.linear|.*\.attn\.norm_(?:added_)?[qk]|time_text_embed\.guidance_embedder\.linear_[12]"
# The layers of kohya's names that the model has.
IN_KOHYA = (
    r"double_blocks_\d+_(?:img|txt)_(?:attn_qkv|attn_proj|mlp_0|mlp_2|mod_lin)"
    r"|single_blocks_\d+_(?:linear[12]|modulation_lin)"
)


def is_parsed(path):
    """Return True if no segment begins with the name of a sibling and an underscore, and all are in the tree."""
    before = []
    for segment in path.split("."):
        siblings = CHILDREN.get(" ".join(before), ())
        node = "#" if segment.isnumeric() else segment
        if node not in siblings or any(segment.startswith(f"{sibling}_") for sibling in siblings):
            return False
        before.append(node)
    return True


EXPECTED = {
    "diffusers": lambda path: not re.fullmatch(LEFT_OVER, path),
    "onetrainer": is_parsed,
    "kohya": lambda path: bool(re.fullmatch(IN_KOHYA, path.replace(".", "_"))),
}
# The prefix, the layers beside each layer, the paths of the family, and the options of the tensors.
SPELLINGS = {
    "diffusers": ("transformer.", MARKS, (*DIFFUSERS, *DIFFUSERS_NORMS), {"alpha": None, "spelling": "peft"}),
    "onetrainer": ("lora_transformer_", MARKS, (*DIFFUSERS, *DIFFUSERS_NORMS), {}),
    "kohya": ("lora_unet_", ("double_blocks.0.img_attn.proj",), (*ORIGINAL, *ORIGINAL_NORMS), {}),
}


def names_of(templates):
    """Return the names in the first and the last block."""
    for template in templates:
        for number in (0, 37 if template.startswith("single") else 18) if "{i}" in template else (0,):
            yield template.replace("{i}", str(number))


def with_attention(path):
    """Return the path with those of the other inputs of its attention, which may not be missing."""
    block, _, layer = path.rpartition(".")
    return [f"{block}.{other}" for layers in ATTENTIONS if layer in layers for other in layers] or [path]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_flux_name_has_same_meaning_if_loader_parses(spelling, write_safetensors):
    prefix, marks, templates, options = SPELLINGS[spelling]
    separator = "_" if prefix.endswith("_") else "."
    verdicts, expected = {}, {}
    for path in names_of(templates):
        tensors = {}
        for layer in (*marks, *with_attention(path)):
            out = 4 * 3072 if layer.endswith("img_mlp.0") else 3072
            tensors |= lora(prefix + layer.replace(".", separator), out=out, inputs=3072, **options)
        file = str(write_safetensors(tensors, {"format": "pt"}))
        (one,) = compat(file, "invokeai", Settings(architecture="flux", of_several=True)).verdicts
        verdicts[path], expected[path] = one.verdict == SAME, EXPECTED[spelling](path)
    assert verdicts == expected


@pytest.mark.parametrize("layer", ["ff_context.net.0.proj", "ff_context.net.2", "norm1_context.linear"])
def test_underscored_name_with_shorter_sibling_fails_to_parse(layer):
    path = f"transformer_blocks.3.{layer}"
    name = f"transformer_{path.replace('.', '_')}"
    assert failure_of_underscored([f"lora_{name}.alpha"]) == f"Key {name} does not match parsing tree"
    assert failure_of_dotted([f"transformer.{path}.lora_A.weight"]) is None


@pytest.mark.parametrize(
    ("path", "failure"),
    [
        ("transformer_blocks.18.ff.net.2", None),
        ("transformer_blocks.19.ff.net.2", "AssertionError"),
        ("single_transformer_blocks.38.proj_out", "AssertionError"),
        ("transformer_blocks.01.ff.net.2", "AssertionError"),
        ("transformer_blocks.0.ff.net.1.proj", "AssertionError"),
        ("transformer_blocks.0.ff.net", "AssertionError"),
        ("transformer_blocks.0.attn.to_k", "Missing LoRA layer: 'transformer_blocks.0.attn.to_q'."),
        ("single_transformer_blocks.0.attn.to_k", None),
    ],
)
def test_flux_layer_in_either_spelling_has_one_failure(path, failure):
    underscored = path.replace(".", "_")
    assert failure_of_underscored([f"lora_transformer_{underscored}.lora_up.weight"]) == failure
    for prefix in ("transformer.", "base_model.model."):
        assert failure_of_dotted([f"{prefix}{path}.lora_B.weight"]) == failure
