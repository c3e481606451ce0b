"""What `compat` says of files for pipelines of diffusers is what the real pipelines do: every scheme, kind and alpha.

A verdict that is `unknown` where the pipeline shows what becomes of the file is a gap, listed in GAPS.
"""

import shlex

import pytest
import torch
from adapter_files import ALL_KINDS, adapter_file, arranged, layout_of
from adapters import NAMES
from diffusers.loaders import lora_pipeline
from diffusers_pipelines import bias_of, loaded, weights
from program_grid import Weight, differs, is_gap, observe
from safetensors.torch import save_file

from lora_inspect.architectures import by_name
from lora_inspect.ops.compat import compat
from lora_inspect.programs.verdict import needs_fix

pytestmark = pytest.mark.slow

# LoRA, OFT and biases in one form are enough, and its norms have no file of the grid.
KINDS = {
    name: kind
    for name, kind in ALL_KINDS.items()
    if name not in ("lora A/B", "oft small blocks", "oft large blocks", "full and bias", "bias alone", "norm")
}
FAMILIES = ("flux", "qwen_image", "sdxl", "wan", "z_image")
# Names that pipelines have a use for meet every kind; the other ones the kinds that loaders tell apart by their keys.
_FEW = (
    "lora",
    "rslora flag",
    "dora_scale of outputs",
    "dora_layer",
    "magnitude vector",
    "loha",
    "bias of the up layer",
    "stranger",
)
_ALL_KINDS = ("kohya", "comfyui", "comfyui, down and up", "diffusers")
_KRONECKER = {(kind, has_alpha) for kind in ("lokr whole", "lokr low-rank") for has_alpha in (True, False)}
_PLAIN = ("lora", "dora_scale of outputs", "magnitude vector", "bias of the up layer")
GAPS = {
    ("flux", "diffusers, down and up"): {("bias of the up layer", True), ("magnitude vector", True)},
    ("chroma", "diffusers, down and up"): {("bias of the up layer", True), ("magnitude vector", True)},
    # So few layers, of which no metadata tell, may be LTX-2's too.
    ("ltx_video", "comfyui"): {(kind, False) for kind in (*_PLAIN, "stranger", "uneven")},
    ("qwen_image", "kohya"): {("ia3", True)},
    ("qwen_image", "comfyui"): {("ia3", True)},
    ("qwen_image", "comfyui, down and up"): {("ia3", True)},
    ("sdxl", "kohya"): {("ia3", True), ("uneven", True)},
    ("z_image", "kohya"): {("ia3", True), *_KRONECKER},
    ("z_image", "comfyui"): {("ia3", True), *_KRONECKER},
    ("z_image", "comfyui, down and up"): {("ia3", True), *_KRONECKER},
    ("z_image", "diffusers"): _KRONECKER,
}

# One layer is misread in these files beside the magnitudes that are lost, which the observer calls after the latter.
MISREAD_WITH_DORA = {("flux2", "comfyui", "dora_scale of outputs", False)}


def files(family, names):
    """(kind, whether an alpha stands in it) of every file whose meaning its own program tells."""
    for kind, made in KINDS.items():
        if family in (*OTHERS, *OF_FEW_KINDS) and kind not in (*_FEW, "uneven", "rslora config"):
            continue
        if names not in _ALL_KINDS and kind not in _FEW:
            continue
        # Configs are of diffusers' own names, and RS-LoRA without an alpha means nothing.
        if made.config and not names.startswith("diffusers"):
            continue
        alphas = (True, False) if made.has_alpha and not made.config and kind != "rslora flag" else (True,)
        for has_alpha in alphas:
            # PEFT's names without alpha need a config.
            if has_alpha or not names.startswith("peft"):
                yield kind, has_alpha


# Families whose loaders were tried with the names of diffusers alone.
OTHERS = (
    *("anima", "auraflow", "chroma", "cosmos", "framepack", "hidream_i1", "ideogram4", "kandinsky5"),
    *("krea2", "ltx_video", "lumina2"),
)
# Families of which other names were tried too, with a few kinds.
OF_FEW_KINDS = ("flux2", "hunyuan_video", "ltx2", "sd15", "sd2", "sd3")
CELLS = [(family, names) for family in FAMILIES for names in NAMES if layout_of(family, names)]
_NAMES_OF_FEW = {
    "flux2": ("comfyui", "diffusers", "onetrainer"),
    "hunyuan_video": ("comfyui", "diffusers"),
    "ltx2": ("kohya", "comfyui", "comfyui, down and up", "diffusers", "bare"),
    **dict.fromkeys(("sd15", "sd2", "sd3"), ("diffusers",)),
}
CELLS += [(family, names) for family, own in _NAMES_OF_FEW.items() for names in own]
CELLS += [(family, names) for family in OTHERS for names in ("diffusers", "diffusers, down and up")]
# Other names of these: the conversions of some know a prefix alone, and where there is none nothing is found.
CELLS += [
    *(("chroma", names) for names in ("kohya", "comfyui", "onetrainer")),
    *((family, "comfyui") for family in ("anima", "cosmos", "hidream_i1", "ltx_video")),
    *((family, "kohya") for family in ("framepack", "lumina2")),
    ("ltx_video", "comfyui, down and up"),
]


def meaning(family, names, kind, has_alpha):
    """(a file, the weights that its trainer means by it)."""
    base = weights(family)
    made = adapter_file(family, names, kind, has_alpha, base, says=(*by_name(family).metadata_names, "")[0])
    meant = {}
    for path, weight in made.meant.items():
        meant[path] = Weight(base[path].double(), weight, made.plain.get(path))
    for path, change in made.biases.items():
        bias = bias_of(family, path).double()
        meant[f"{path}.bias"] = Weight(bias, bias + change)
    return made, meant


def judged(family, names, kind, has_alpha, file):
    """(what was made and written, the verdict of `compat`, what the pipeline did)."""
    made, meant = meaning(family, names, kind, has_alpha)
    save_file({key: tensor.contiguous() for key, tensor in made.tensors.items()}, file, made.metadata)
    (verdict,) = compat(str(file), "diffusers").verdicts
    return made, verdict, observe(meant, lambda: loaded(family, file))


def test_the_grid_is_as_large_as_it_has_to_be():
    assert sum(len(list(files(family, names))) for family, names in CELLS) >= 240


# What multiplies the rows of a fused layer, which the layers of diffusers have in parts.
UNMENDED = {"flux": ("ia3", "oft"), "z_image": ("oft",)}


@pytest.mark.parametrize(("family", "names"), CELLS)
def test_pipelines_do_what_is_said_and_every_fix_makes_the_file_right(family, names, tmp_path, run):
    wrong, gaps, unmended = [], set(), {}
    for kind, has_alpha in files(family, names):
        file = tmp_path / "adapter.safetensors"
        made, verdict, seen = judged(family, names, kind, has_alpha, file)
        if (family, names, kind, has_alpha) in MISREAD_WITH_DORA:
            assert (verdict.verdict, seen.verdict) == ("wrong change", "DoRA wrong")
        elif why := differs(verdict, seen):
            wrong.append((kind, has_alpha, why))
        if is_gap(verdict):
            gaps.add((kind, has_alpha))
        if names in _ALL_KINDS and (why := mends(family, names, kind, made, verdict, file, run)):
            unmended[kind, has_alpha] = why
    assert (wrong, gaps, unmended) == ([], GAPS.get((family, names), set()), {})


def mends(family, names, kind, made, said, file, run):
    """The fault of the command that is offered for a file; empty where it makes the file right, or none is."""
    if said.fix is None:
        # A pipeline has no place for differences of biases.
        is_mended = said.verdict in ("same meaning", "not tested") or kind in ("bias beside lora", "norm")
        is_mended = is_mended or (names != "diffusers" and kind in UNMENDED.get(family, ()))
        return "" if is_mended else f"no fix: {said.says}"
    base, whole = weights(family), file.with_name("base.safetensors")
    if not whole.exists():
        # Groups of rows and norms of inputs need a base whose layers are those of the adapter.
        own = arranged(family, layout_of(family, names) or "diffusers", base).weights
        save_file({f"{path}.weight": weight.contiguous() for path, weight in own.items()}, whole)
    words = shlex.split(said.fix.replace(" BASE ", f" {whole} "))
    ended = run(*words[1:], "--force")
    if ended.status:
        return ended.stderr
    (mended,) = compat(words[-1], "diffusers").verdicts
    found = loaded(family, words[-1])
    wrong = sum(float((found[path].double() - weight).square().sum()) for path, weight in made.meant.items())
    right = sum(float((weight - base[path].double()).square().sum()) for path, weight in made.meant.items())
    # What only comes near its change says how near.
    near = 0.0101 if "--max-error" in words else 1e-4
    return "" if mended.verdict == "same meaning" and wrong < near**2 * right else f"{mended.says} {wrong / right}"


@pytest.mark.parametrize("kind", ["rslora flag", "dora_layer", pytest.param("bias of the up layer", id="lora bias")])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_for_them_loads_as_it_was_trained(family, kind, tmp_path, run):
    source, output = tmp_path / "adapter.safetensors", tmp_path / "written.safetensors"
    _, verdict, _ = judged(family, "kohya", kind, True, source)
    assert needs_fix(verdict)
    run("convert", source, "--to", "diffusers", "--architecture", family, "-o", output)
    (written,) = compat(str(output), "diffusers").verdicts
    assert written.verdict == "same meaning"
    assert observe(meaning(family, "kohya", kind, True)[1], lambda: loaded(family, output)).verdict == "same meaning"


@pytest.mark.parametrize("rank", [4, 3])
def test_the_fused_layer_of_flux_has_one_width(rank, tmp_path):
    """The real width, as the pipeline hands it to PEFT: the product of the factors, with alpha/rank in them."""
    layer, path = "lora_unet_single_blocks_0_linear1", "single_transformer_blocks.0"
    numbers = torch.Generator().manual_seed(3)
    down, up = torch.randn(rank, 3072, generator=numbers), torch.randn(21504, rank, generator=numbers)
    tensors = {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up, f"{layer}.alpha": torch.tensor(2.0)}
    file = tmp_path / "wide.safetensors"
    save_file(tensors, file, {"ss_base_model_version": "flux1"})
    (verdict,) = compat(str(file), "diffusers").verdicts
    assert verdict.verdict == "same meaning"
    handed = lora_pipeline.FluxLoraLoaderMixin.lora_state_dict(str(file))
    probe = torch.randn(3072, 2, generator=numbers)
    meant = (2.0 / rank * up.double() @ (down.double() @ probe.double())).split((3072, 3072, 3072, 12288))
    for part, change in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), meant, strict=True):
        a, b = (handed[f"transformer.{path}.{part}.lora_{side}.weight"].double() for side in "AB")
        assert float((b @ (a @ probe.double()) - change).norm()) <= 1e-5 * float(change.norm())


@pytest.mark.parametrize(
    ("family", "names"),
    [("flux", "kohya"), ("wan", "kohya"), ("wan", "comfyui"), ("qwen_image", "kohya"), ("z_image", "kohya")],
)
def test_a_negative_alpha_keeps_a_conversion_busy_forever(family, names, tmp_path):
    """It is not run here, as it does not come back."""
    file = tmp_path / "adapter.safetensors"
    made = adapter_file(family, names, "lora", True, weights(family), says=by_name(family).metadata_names[0])
    tensors = {key: -tensor if key.endswith(".alpha") else tensor.contiguous() for key, tensor in made.tensors.items()}
    save_file(tensors, file, made.metadata)
    (verdict,) = compat(str(file), "diffusers").verdicts
    assert (verdict.verdict, verdict.says) == ("refused", "it never ends, because an alpha is negative")
