"""What musubi-tuner made of files on small models, with its own code of 2026-06-24.

That code cannot be installed here, so what it did is written out: `load_safetensors_with_lora_and_fp8` on the weights
of Wan, FLUX.2, Qwen-Image, Z-Image, FramePack, Krea 2 and HunyuanVideo 1.5, and the networks of FLUX.1 Kontext and
HunyuanVideo with `merge_to`. Of what training merges it was `create_arch_network_from_weights` and `merge_to` of the
network module for each family, of `networks.loha` and of `networks.lokr`.
"""

import json
import shlex
from itertools import product

import pytest
import torch
from adapters import KINDS, adapter
from safetensors.torch import load_file, save_file

from lora_inspect.architectures import by_name
from lora_inspect.ops.compat import compat

pytestmark = pytest.mark.slow

SAME, STRENGTH, LOST = "same meaning", "wrong strength", "DoRA lost"
PARTLY, NOTHING, REFUSED = "partly loaded", "nothing loaded", "refused"
LAYERS = {
    "flux": ("double_blocks.0.img_attn.proj", "double_blocks.1.img_mod.lin", "single_blocks.0.linear2"),
    "flux2": ("double_blocks.0.img_attn.proj", "single_blocks.1.linear2"),
    "framepack": ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.proj_mlp"),
    "hunyuan_video": ("double_blocks.0.img_attn_qkv", "single_blocks.1.linear2"),
    "hunyuan_video_1_5": ("double_blocks.0.img_attn_q", "double_blocks.1.txt_mlp.fc1"),
    "krea2": ("blocks.0.attn.wq", "blocks.1.mlp.gate"),
    "qwen_image": ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.img_mlp.net.2"),
    "wan": ("blocks.0.self_attn.q", "blocks.1.ffn.0"),
    "z_image": ("layers.0.attention.to_q", "layers.1.feed_forward.w1"),
}
MERGED = ("flux2", "framepack", "hunyuan_video_1_5", "krea2", "qwen_image", "wan", "z_image")
NETWORKS = ("flux", "hunyuan_video")


def spelled(prefix):
    return lambda path: prefix + (path if prefix.endswith(".") else path.replace(".", "_"))


@pytest.fixture
def judged(tmp_path):
    def judge(family, kind, has_alpha=True, prefix="lora_unet_", paths=None, program="musubi"):
        numbers = torch.Generator().manual_seed(2)
        layers = {
            path: {
                "weight": torch.randn(16, 16, generator=numbers),
                "bias": torch.randn(16, generator=numbers),
            }
            for path in paths or LAYERS[family]
        }
        tensors, _ = adapter(KINDS[kind], layers, spelled(prefix), has_alpha)
        file = tmp_path / "adapter.safetensors"
        save_file(tensors, file, {"ss_base_model_version": by_name(family).metadata_names[0]})
        (found,) = compat(str(file), program).verdicts
        return found

    return judge


# By kind: the verdict with an alpha, and without.
OF_MERGE = {
    "lora": (SAME, SAME),
    "lora A/B": (NOTHING, NOTHING),
    "rslora flag": (STRENGTH, SAME),
    "dora_scale of outputs": (LOST, LOST),
    "dora_scale of inputs": (LOST, LOST),
    "dora_layer": (LOST, LOST),
    "magnitude vector": (NOTHING, NOTHING),
    "loha": (SAME, SAME),
    "lokr whole": (SAME, SAME),
    "lokr low-rank": (SAME, SAME),
    "oft small blocks": (NOTHING, NOTHING),
    "ia3": (NOTHING, NOTHING),
    "full": (NOTHING, NOTHING),
    "full and bias": (NOTHING, NOTHING),
    "bias beside lora": (PARTLY, PARTLY),
    "bias of the up layer": (PARTLY, PARTLY),
}
OF_NETWORK = {
    **OF_MERGE,
    "lora": (SAME, REFUSED),
    "rslora flag": (STRENGTH, REFUSED),
    **dict.fromkeys(("dora_scale of outputs", "dora_scale of inputs", "dora_layer"), (LOST, REFUSED)),
    **dict.fromkeys(("loha", "lokr whole", "lokr low-rank"), (NOTHING, NOTHING)),
    **dict.fromkeys(("bias beside lora", "bias of the up layer"), (PARTLY, REFUSED)),
}


@pytest.mark.parametrize("has_alpha", [True, False], ids=["alpha", "none"])
@pytest.mark.parametrize("kind", OF_MERGE)
@pytest.mark.parametrize("family", MERGED)
def test_a_merge_on_loading(judged, family, kind, has_alpha):
    found, verdict = judged(family, kind, has_alpha), OF_MERGE[kind][not has_alpha]
    assert (found.verdict, found.by) == (verdict, "run")
    # A flag, too, is a key that it warns of.
    assert found.silent == (verdict == STRENGTH)
    assert found.factor == {STRENGTH: 0.5, NOTHING: None}.get(verdict, 1.0)


@pytest.mark.parametrize("has_alpha", [True, False], ids=["alpha", "none"])
@pytest.mark.parametrize("kind", OF_NETWORK)
@pytest.mark.parametrize("family", NETWORKS)
def test_a_network_of_the_file(judged, family, kind, has_alpha):
    found, verdict = judged(family, kind, has_alpha), OF_NETWORK[kind][not has_alpha]
    assert (found.verdict, found.by) == (verdict, "run")
    assert found.silent == (verdict not in (SAME, REFUSED))
    assert "KeyError" in found.says or verdict != REFUSED


@pytest.mark.parametrize(
    ("family", "inside", "outside"),
    [
        ("flux", "double_blocks.0.img_attn.proj", "vector_in.in_layer"),
        ("hunyuan_video", "single_blocks.0.linear2", "txt_in.input_embedder"),
    ],
)
def test_a_network_has_layers_in_the_blocks_alone(judged, family, inside, outside):
    assert judged(family, "lora", paths=(inside, outside)).verdict == PARTLY
    assert judged(family, "lora", False, paths=(inside, outside)).verdict == REFUSED
    assert judged(family, "lora", False, paths=(outside,)).verdict in (NOTHING, "not tested")


PREFIXES = ("diffusion_model.", "transformer.", "base_model.model.", "lycoris_", "lora_transformer_")


@pytest.mark.parametrize("kind", ["lora", "rslora flag", "lokr whole"])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("family", LAYERS)
def test_other_names_are_not_found(judged, family, prefix, kind):
    found = judged(family, kind, prefix=prefix)
    # The script of FramePack converts names of others first.
    assert found.verdict == ("not tested" if family == "framepack" else NOTHING)
    assert family == "framepack" or found.silent == (family in NETWORKS)


def test_a_file_of_several_kinds_is_read_as_one_of_them(judged, tmp_path):
    tensors = {}
    for kind, path in (("lora", "blocks.0.self_attn.q"), ("loha", "blocks.0.self_attn.k")):
        made, _ = adapter(KINDS[kind], {path: {"weight": torch.randn(16, 16)}}, spelled("lora_unet_"), True)
        tensors |= made
    save_file(tensors, tmp_path / "a.safetensors", {"ss_base_model_version": "wan2.1"})
    assert compat(str(tmp_path / "a.safetensors"), "musubi").verdicts[0].verdict == "not tested"


def test_whole_factors_of_lokr_are_applied_as_they_stand(judged, tmp_path):
    """blissful-tuner, which stores `lokr_factor`, divides alpha by the largest side of w2."""
    made, _ = adapter(
        KINDS["lokr whole"], {"blocks.0.self_attn.q": {"weight": torch.randn(16, 16)}}, spelled("lora_unet_"), True
    )
    tensors = {**made, "lokr_factor": torch.tensor(2)}
    save_file(tensors, tmp_path / "a.safetensors", {"ss_base_model_version": "wan2.1"})
    (found,) = compat(str(tmp_path / "a.safetensors"), "musubi").verdicts
    assert (found.verdict, found.factor) == (STRENGTH, 2.667)


OF_TRAINING = {
    **OF_NETWORK,
    "loha": (SAME, REFUSED),
    "lokr whole": (SAME, REFUSED),
    # w1 is (2, 2) in these files, and (4, 4) in the module, whose second factor is whole at this rank.
    "lokr low-rank": (STRENGTH, REFUSED),
}


@pytest.mark.parametrize("has_alpha", [True, False], ids=["alpha", "none"])
@pytest.mark.parametrize("kind", OF_TRAINING)
@pytest.mark.parametrize("family", LAYERS)
def test_a_merge_before_training(judged, family, kind, has_alpha):
    found = judged(family, kind, has_alpha, program="musubi-networks")
    verdict = OF_TRAINING[kind][not has_alpha]
    if family == "krea2" and kind.startswith("lo") and kind.partition(" ")[0] in ("loha", "lokr"):
        verdict = REFUSED
    assert (found.verdict, found.by) == (verdict, "run")
    assert found.silent == (verdict not in (SAME, REFUSED))
    if verdict == REFUSED:
        says = "ValueError: Cannot auto-detect" if has_alpha or kind.startswith(("loha", "lokr")) else "KeyError"
        assert found.says.startswith(says if family == "krea2" else "KeyError: 'lora_unet_")
    if verdict == STRENGTH:
        assert found.factor == {"rslora flag": 0.5, "lokr low-rank": 1.333}[kind]


# Of layers of musubi-tuner's own models, which its network modules have and have not.
BOUNDS = [
    ("flux", "double_blocks.0.img_mod.lin", "vector_in.in_layer"),
    ("flux2", "single_blocks.0.linear1", "double_stream_modulation_img.lin"),
    ("framepack", "single_transformer_blocks.0.proj_mlp", "context_embedder.token_refiner.refiner_blocks.0.attn.to_q"),
    ("hunyuan_video", "double_blocks.0.txt_mlp.fc1", "txt_in.individual_token_refiner.blocks.0.mlp.fc1"),
    ("hunyuan_video_1_5", "double_blocks.0.img_attn_q", "vision_in.proj.1"),
    ("qwen_image", "transformer_blocks.0.img_mod.1", "img_in"),
    ("wan", "blocks.0.ffn.0", "time_embedding.0"),
    ("z_image", "noise_refiner.0.attention.to_q", "t_embedder.mlp.0"),
]


@pytest.mark.parametrize(("family", "inside", "outside"), BOUNDS)
def test_before_training_layers_of_the_blocks_are_merged_alone(judged, family, inside, outside):
    whole = judged(family, "lora", paths=(inside, *LAYERS[family]), program="musubi-networks")
    assert whole.verdict == SAME
    found = judged(family, "lora", paths=(inside, outside), program="musubi-networks")
    assert (found.verdict, found.silent) == (PARTLY, True)


def test_all_layers_of_krea_2_are_merged(judged):
    assert judged("krea2", "lora", paths=("blocks.0.attn.wq", "txtmlp.1"), program="musubi-networks").verdict == SAME


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("family", LAYERS)
def test_before_training_other_names_are_not_found(judged, family, prefix):
    found = judged(family, "lora", prefix=prefix, program="musubi-networks")
    # The trainer of HunyuanVideo alone converts these.
    is_converted = family == "hunyuan_video" and prefix in ("diffusion_model.", "transformer.")
    assert found.verdict == ("not tested" if is_converted else NOTHING)
    assert is_converted or found.silent


def sides(size, factor):
    """The parts of a dimension: the factor and the rest where that divides it, else as even as they can be."""
    pairs = [(n, size // n) for n in range(1, size + 1) if size % n == 0 and n * n <= size]
    if factor > 0 and size % factor == 0:
        return tuple(sorted((factor, size // factor)))
    return max(pair for pair in pairs if factor < 0 or pair[0] <= factor)


def lokr(tmp_path, out, inputs, factor, rank, alpha, is_small_product=False):
    """A file of one layer of Wan as `networks.lokr` trains it with a factor."""
    (o1, o2), (i1, i2) = sides(out, factor), sides(inputs, factor)
    name, numbers = "lora_unet_blocks_0_self_attn_q", torch.Generator().manual_seed(4)
    shapes = {"lokr_w1": (o1, i1), "lokr_w2_a": (o2, rank), "lokr_w2_b": (rank, i2)}
    if is_small_product:
        shapes = {"lokr_w1_a": (o1, rank), "lokr_w1_b": (rank, i1), **dict(list(shapes.items())[1:])}
    tensors = {f"{name}.{role}": torch.randn(shape, generator=numbers) for role, shape in shapes.items()}
    if alpha is not None:
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    arguments = f'{{"factor": "{factor}"}}'
    about = {"ss_base_model_version": "wan2.1", "ss_network_module": "networks.lokr", "ss_network_args": arguments}
    save_file(tensors, tmp_path / "lokr.safetensors", about)
    return tmp_path / "lokr.safetensors"


@pytest.mark.parametrize(("out", "inputs"), [(64, 64), (64, 96), (37, 64)])
@pytest.mark.parametrize("factor", [-1, 4, 8, 16])
def test_lokr_with_a_factor_is_read_by_the_sides_that_it_has_without_one(tmp_path, out, inputs, factor):
    seen = set()
    for rank in range(1, 9):
        file = str(lokr(tmp_path, out, inputs, factor, rank, 3.0))
        assert compat(file, "musubi").verdicts[0].verdict == SAME
        (found,) = compat(file, "musubi-networks").verdicts
        # The module of an even parting has a whole second factor from half of its larger side on, and then no scale.
        is_whole = rank >= max(sides(out, -1)[1], sides(inputs, -1)[1]) / 2
        applied = rank / 3.0 if is_whole else 1.0
        assert found.factor == pytest.approx(applied, rel=1e-3)
        assert found.verdict == (SAME if applied == 1.0 else STRENGTH)
        seen.add(is_whole)
    assert seen == ({True, False} if out != 37 else {False})


# (out, in, factor, rank): what `networks.lokr` merged over what is right, at alpha 3.
MERGED_BY_LOKR = {
    (64, 64, 4, 2): 1.0,
    (64, 64, 4, 4): 1.333,
    (64, 64, 4, 6): 2.0,
    (64, 96, 16, 4): 1.0,
    (64, 96, 16, 6): 2.0,
    (60, 60, 8, 4): 1.0,
    (60, 60, 8, 6): 2.0,
}


@pytest.mark.parametrize(("case", "factor"), MERGED_BY_LOKR.items(), ids=map(str, MERGED_BY_LOKR))
def test_what_lokr_came_to_before_training(tmp_path, case, factor):
    (found,) = compat(str(lokr(tmp_path, *case, 3.0)), "musubi-networks").verdicts
    assert found.factor == factor


def test_a_first_factor_that_is_a_product_fails_before_training(tmp_path):
    (found,) = compat(str(lokr(tmp_path, 64, 64, 4, 2, 3.0, is_small_product=True)), "musubi-networks").verdicts
    assert (found.verdict, found.says) == (REFUSED, "KeyError: 'lokr_w1'")
    (found,) = compat(str(lokr(tmp_path, 64, 64, 4, 2, None, is_small_product=True)), "musubi-networks").verdicts
    assert (found.verdict, found.says) == (REFUSED, "KeyError: 'lora_unet_blocks_0_self_attn_q'")


@pytest.mark.numeric
@pytest.mark.parametrize(("rank", "is_small_product", "alpha"), [*product((2, 6), (False, True), (3.0, None))])
def test_what_mends_lokr_before_training(tmp_path, run, rank, is_small_product, alpha):
    """The command that is offered makes a LoRA of the same change, or writes the alphas, which the network reads."""
    file = lokr(tmp_path, 64, 64, 4, rank, alpha, is_small_product)
    own = load_file(file)
    stem = "lora_unet_blocks_0_self_attn_q"
    first = own.get(f"{stem}.lokr_w1")
    first = own[f"{stem}.lokr_w1_a"] @ own[f"{stem}.lokr_w1_b"] if first is None else first
    second = own[f"{stem}.lokr_w2_a"] @ own[f"{stem}.lokr_w2_b"]
    meant = torch.kron(first.double(), second.double()) * (1.0 if alpha is None else alpha / rank)
    ended = run("compat", file, "--for", "musubi-networks", "--json")
    (told,) = json.loads(ended.stdout)["programs"]
    if (rank, is_small_product, alpha) == (2, False, 3.0):
        assert told["verdict"] == SAME
        return
    words = shlex.split(told["fix"])[1:]
    made = tmp_path / "made.safetensors"
    assert run(*words[: words.index("-o")], "-o", made).status == 0
    found = load_file(made)
    assert compat(str(made), "musubi-networks").verdicts[0].verdict == SAME
    if f"{stem}.lora_up.weight" not in found:
        # Whatever the module is, an alpha of the rank is a scale of 1.
        assert (found[f"{stem}.alpha"], alpha) == (rank, None)
        assert all(torch.equal(found[key], value) for key, value in own.items())
        return
    up, down = found[f"{stem}.lora_up.weight"].double(), found[f"{stem}.lora_down.weight"].double()
    applied = float(found[f"{stem}.alpha"]) / len(down) * up @ down
    error = 0.01 if "--max-error" in words else 1e-6
    assert (applied - meant).norm() <= error * meant.norm()


def test_a_conversion_for_training_that_would_be_wrong_is_refused(tmp_path, run):
    file = lokr(tmp_path, 64, 64, 4, 6, 3.0)
    ended = run("convert", file, "--to", "musubi-networks", "-o", tmp_path / "made.safetensors")
    assert ended.status == 1
    assert "musubi-tuner (networks) 2026-06-24 would read it wrongly: wrong strength" in ended.stderr
    assert not (tmp_path / "made.safetensors").exists()
    assert run("convert", file, "--to", "musubi", "-o", tmp_path / "made.safetensors").status == 0


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model."])
def test_the_script_of_framepack_renames_dotted_names_and_forgets_alpha(judged, prefix):
    for has_alpha, verdict, factor in ((True, STRENGTH, 1.333), (False, SAME, 1.0)):
        found = judged("framepack", "lora A/B", has_alpha, prefix)
        assert (found.verdict, found.factor, found.by) == (verdict, factor, "run")
