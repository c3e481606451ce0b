"""A predicted output equals the output that is read, as far as programs look at it."""

import torch
from adapters import KINDS, adapter
from pairs import crossed
from safetensors.torch import save_file

from lora_inspect.architectures import by_name
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.plan import plan_conversion
from lora_inspect.converting.target.prediction import predict_output
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.ops.convert import convert_to_standard
from lora_inspect.programs.adapter_view import View
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.schemes import written

PATHS = [f"blocks.0.{leaf}" for leaf in ("self_attn.q", "cross_attn.v", "ffn.0")]
FOLDERS = ("mlx", "peft", "gguf")


@crossed(
    keeps=("keep_dora", "drop_magnitude"),
    scheme=(None, *(name for name in written() if name not in FOLDERS)),
    kind=[name for name, kind in KINDS.items() if not kind.of_norms],
    has_alpha=(True, False),
)
def test_an_output_is_foreseen(kind, scheme, keeps, has_alpha, tmp_path):
    numbers = torch.Generator().manual_seed(2)
    layers = {path: {name: torch.randn(shape, generator=numbers) for name, shape in SHAPES.items()} for path in PATHS}
    tensors, _ = adapter(KINDS[kind], layers, lambda path: "lora_unet_" + path.replace(".", "_"), has_alpha)
    source, output = str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors")
    save_file(tensors, source, {"ss_base_model_version": by_name("wan").metadata_names[0]})
    options = ConvertOptions(scheme=scheme, **{keeps: "dora" in kind or "magnitude" in kind})
    try:
        plan = plan_conversion(source, output, options)
        convert_to_standard(source, output, options)
    except LoraInspectError:
        return
    said = predict_output(plan.adapter, plan.destinations, plan.options)
    found = read_adapter(open_checkpoint(output))
    assert list(said.modules) == list(found.modules)
    assert looks(said) == looks(found)
    assert set(said.checkpoint.tensors) == set(found.checkpoint.tensors)
    for ours, theirs in zip(said.contributions, found.contributions, strict=True):
        assert (ours.rank, ours.scale, ours.rslora) == (theirs.rank, theirs.scale, theirs.rslora or False)
        assert ours.shapes == theirs.shapes


def looks(adapter):
    """How each contribution looks to programs, in the order of the file."""
    placed = [(member.place, group.look) for group in View(adapter).groups for member in group.members]
    return [look for _, look in sorted(placed)]


SHAPES = {"weight": (16, 12), "bias": (16,)}


def test_a_joined_layer_has_its_own_rows_beside_a_renamed_one_of_the_same_shapes(tmp_path):
    # to_q, to_k and to_v become one layer, and to_out only gets another name.
    block = "transformer.transformer_blocks.0.attn"
    tensors = {}
    for leaf in ("to_out.0", "to_q", "to_k", "to_v"):
        tensors[f"{block}.{leaf}.lora_A.weight"] = torch.ones(4, 3072)
        tensors[f"{block}.{leaf}.lora_B.weight"] = torch.ones(3072, 4)
    source = str(tmp_path / "in.safetensors")
    save_file(tensors, source, {"modelspec.architecture": by_name("flux").metadata_names[0]})
    plan = plan_conversion(source, str(tmp_path / "out.safetensors"), ConvertOptions(scheme="comfyui"))
    said = predict_output(plan.adapter, plan.destinations, plan.options)
    rows = {name.rpartition(".0.")[2]: module.contributions[0].shapes["up"][0] for name, module in said.modules.items()}
    assert rows == {"img_attn.proj": 3072, "img_attn.qkv": 9216}
