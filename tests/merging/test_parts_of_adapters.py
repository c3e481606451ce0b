"""Parts of an adapter that may be of several families: taken alike in all of them, or refused until one is named."""

import json

import pytest
from adapters import lora
from safetensors.torch import load_file

import lora_inspect
from lora_inspect.errors import LoraInspectError

N = 8
# The layers of a block of FLUX.1, and those that diffusers makes of each, with their sizes over N.
BLOCK = {
    "img_attn.qkv": (("attn.to_q", "attn.to_k", "attn.to_v"), 1, 1),
    "img_attn.proj": (("attn.to_out.0",), 1, 1),
    "txt_attn.qkv": (("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), 1, 1),
    "txt_attn.proj": (("attn.to_add_out",), 1, 1),
    "img_mlp.0": (("ff.net.0.proj",), 4, 1),
    "img_mlp.2": (("ff.net.2",), 1, 4),
    "txt_mlp.0": (("ff_context.net.0.proj",), 4, 1),
    "txt_mlp.2": (("ff_context.net.2",), 1, 4),
}
# HunyuanVideo calls these `time_in.mlp.0` and `time_in.mlp.2`.
TIME = {
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
}
LAYERS = {
    **{f"double_blocks.{i}.{own}": shape for i in range(3) for own, shape in BLOCK.items()},
    **{own: ((theirs,), 1, 1) for own, theirs in TIME.items()},
}
BASE = {
    f"{above}{part}.weight": ("F32", (out * N, inputs * N), 1)
    for own, (parts, out, inputs) in LAYERS.items()
    for above in [f"transformer_blocks.{own.split('.')[1]}." if "blocks" in own else ""]
    for part in parts
}
# What no adapter changes, and tells FLUX.1 and HunyuanVideo from the other families.
BESIDE = {
    f"{path}.weight": ("F32", (out * N, N), 1)
    for path, out in {
        **{f"transformer_blocks.{i}.{norm}.linear": 6 for i in range(3) for norm in ("norm1", "norm1_context")},
        **{f"time_text_embed.{of}_embedder.linear_{i}": 1 for of in ("guidance", "text") for i in (1, 2)},
        "norm_out.linear": 2,
    }.items()
}
# Of rank 16, alpha 8 and factors of 0.5 and 0.25, so that every weight of 1 becomes 1 + multiplier.
KOHYA, DOTTED = (
    {
        key: tensor
        for own, (parts, out, inputs) in LAYERS.items()
        for key, tensor in lora(spelled(own), out=out * N * len(parts), inputs=inputs * N).items()
    }
    for spelled in (lambda own: f"lora_unet_{own.replace('.', '_')}", lambda own: f"diffusion_model.{own}")
)
REFUSED = (
    "k.safetensors: *mlp* matches {} if the adapter is for HunyuanVideo, but not if it is for FLUX.1; give "
    "--architecture flux or hunyuan_video."
)
SAID = REFUSED.format("lora_unet_time_in_in_layer")


@pytest.fixture
def place(write_safetensors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_safetensors(BASE | BESIDE, name="base.safetensors")
    write_safetensors(KOHYA, name="k.safetensors")
    return tmp_path


@pytest.fixture
def merged(place, run):
    """The multiplier that each weight of the merged model has, of those that several have by the first."""

    def multipliers(*words):
        ended = run("merge", "base.safetensors", *words, "-o", "out.safetensors", "--force")
        assert ended.status == 0, ended.stderr
        found = {}
        for name, weight in load_file("out.safetensors").items():
            (found[name.removesuffix(".weight")],) = (weight - 1).unique().tolist()
        assert not any(found.pop(name.removesuffix(".weight")) for name in BESIDE)
        return found

    return multipliers


def by(rule):
    """A multiplier for every weight of the base."""
    return {name: rule(name) for name in (key.removesuffix(".weight") for key in BASE)}


@pytest.mark.numeric
@pytest.mark.parametrize("pattern", ["transformer_blocks.2", "transformer_blocks.2-9", "double_blocks.2", "D02"])
def test_a_setting_of_a_block_holds_for_its_attention_too(pattern, merged):
    assert merged(f"k.safetensors:{pattern}=0.5") == by(lambda name: 0.5 if "_blocks.2." in name else 1)


@pytest.mark.numeric
def test_a_block_is_whole_where_one_family_spells_its_attention_in_two_ways(merged, write_safetensors):
    # `img_attn_qkv` in HunyuanVideo's repository and `img_attn.qkv` in ComfyUI, with underscores the same.
    write_safetensors(KOHYA, {"ss_base_model_version": "hunyuan_video"}, name="k.safetensors")
    assert merged("k.safetensors:transformer_blocks.2=0.5") == by(lambda name: 0.5 if "_blocks.2." in name else 1)


@pytest.mark.numeric
def test_what_excludes_a_block_leaves_its_attention_as_it_is(merged):
    assert merged("k.safetensors", "--exclude", "transformer_blocks.2") == by(lambda name: "_blocks.2." not in name)


@pytest.mark.numeric
def test_what_includes_a_block_takes_its_attention(merged):
    assert merged("k.safetensors", "--include", "transformer_blocks.2") == by(lambda name: "_blocks.2." in name)


@pytest.mark.parametrize(
    "words",
    [
        ["k.safetensors:*mlp*=0"],
        ["k.safetensors:0.5,double_blocks.0=1,*mlp*=0"],
        ["k.safetensors", "--exclude", "*mlp*"],
        ["k.safetensors", "--include", "*mlp*"],
        ["k.safetensors", "--weights", "weights.toml"],
        ["k.safetensors:*mlp*=0", "--dry-run"],
    ],
    ids=" ".join,
)
def test_a_glob_that_takes_other_layers_in_each_family_is_refused(words, place, run):
    (place / "weights.toml").write_text('["k.safetensors".globs]\n"*mlp*" = 0\n')
    assert SAID in run("merge", "base.safetensors", *words, "-o", "out.safetensors").refusal
    assert not (place / "out.safetensors").exists()
    given = [word for word in words if word != "--dry-run"]
    assert SAID in run("verify", "base.safetensors", "base.safetensors", *given).refusal


def test_names_with_dots_are_of_several_families_too(place, run, write_safetensors):
    write_safetensors(DOTTED, name="k.safetensors")
    refusal = run("merge", "base.safetensors", "k.safetensors:*mlp*=0", "-o", "out.safetensors").refusal
    assert REFUSED.format("diffusion_model.time_in.in_layer") in refusal


def test_python_programs_are_told_as_well(place):
    with pytest.raises(LoraInspectError, match='give architecture="flux" or "hunyuan_video"'):
        lora_inspect.merge("base.safetensors", "k.safetensors", "out.safetensors", exclude="*mlp*")
    with pytest.raises(LoraInspectError, match='give architecture="flux" or "hunyuan_video"'):
        lora_inspect.verify("base.safetensors", "base.safetensors", ("k.safetensors", "*mlp*=0"))


@pytest.mark.numeric
@pytest.mark.parametrize(("family", "others"), [("flux", ()), ("hunyuan_video", TIME.values())])
def test_the_family_that_is_named_decides(family, others, merged, run):
    wanted = by(lambda name: 0 if "ff" in name or name in others else 1)
    assert merged("k.safetensors:*mlp*=0", "--architecture", family) == wanted
    assert merged(f"k.safetensors:*mlp*=0,architecture={family}") == wanted
    assert merged("k.safetensors", "--exclude", "*mlp*", "--architecture", family) == wanted
    files = ("out.safetensors", "base.safetensors")
    assert run("verify", *files, "k.safetensors", "--exclude", "*mlp*", "--architecture", family).status == 0
    assert run("verify", *files, f"k.safetensors:*mlp*=0,architecture={family}").status == 0
    other = {"flux": "hunyuan_video", "hunyuan_video": "flux"}[family]
    assert run("verify", *files, "k.safetensors:*mlp*=0", "--architecture", other).status == 1


@pytest.mark.numeric
def test_the_family_is_named_in_python(place, run):
    done = lora_inspect.merge("base.safetensors", "k.safetensors:*mlp*=0", "out.safetensors", architecture="flux")
    assert done.modules_merged == len(LAYERS)
    found = load_file("out.safetensors")
    assert {name: float(found[f"{name}.weight"].max() - 1) for name in by(str)} == by(lambda name: "ff" not in name)
    told = lora_inspect.verify("out.safetensors", "base.safetensors", "k.safetensors:*mlp*=0", architecture="flux")
    assert told.ok


@pytest.mark.numeric
def test_one_option_is_for_all_adapters_that_leave_it_open(merged, write_safetensors):
    write_safetensors(DOTTED, name="d.safetensors")
    found = merged("k.safetensors:*mlp*=0", "d.safetensors:2,*mlp*=0", "--architecture", "flux")
    assert found == by(lambda name: 0 if "ff" in name else 3)


@pytest.mark.numeric
def test_the_family_is_recorded_and_undone_by(merged, run):
    merged("k.safetensors:*mlp*=0", "--architecture", "flux")
    shown = run("metadata", "get", "out.safetensors", "lora_inspect.merged").stdout
    assert json.loads(shown)["adapters"][0]["settings"] == "*mlp*=0,architecture=flux"
    undone = ("out.safetensors", "k.safetensors", "--allow-ambiguous", "-o", "back.safetensors")
    assert run("unmerge", *undone).status == 0
    assert all((weight == 1).all() for weight in load_file("back.safetensors").values())


# what is said of the family, and what is wrong with it
CONTRADICTIONS = {
    ("k.safetensors", "--architecture", "wan"): "so it is not for wan; leave architecture=wan (--architecture) out.",
    ("k.safetensors:architecture=wan",): "so it is not for wan; leave architecture=wan (--architecture) out.",
    ("k.safetensors:architecture=flux", "--architecture", "hunyuan_video"): (
        "k.safetensors: its path says architecture=flux but an option says architecture=hunyuan_video; leave one of"
    ),
    # The names of the adapter may be those of Chroma, and the base has layers that Chroma has not.
    ("blocks.safetensors", "--architecture", "chroma"): (
        "blocks.safetensors: base.safetensors is of FLUX.1 or HunyuanVideo, so the adapter is not of chroma; leave "
        "architecture=chroma out."
    ),
}


@pytest.mark.parametrize(("words", "says"), CONTRADICTIONS.items(), ids=map(" ".join, CONTRADICTIONS))
def test_a_family_against_the_evidence_is_refused(words, says, place, run, write_safetensors):
    write_safetensors({key: tensor for key, tensor in KOHYA.items() if "blocks" in key}, name="blocks.safetensors")
    assert says in run("merge", "base.safetensors", *words, "-o", "out.safetensors").refusal


def test_a_family_that_the_file_says_itself_is_repeated_in_a_note(place, run, write_safetensors):
    write_safetensors(KOHYA, {"ss_base_model_version": "flux1"}, name="k.safetensors")
    ended = run("merge", "base.safetensors", "k.safetensors:*mlp*=0", "--architecture", "flux", "-o", "out.safetensors")
    assert ended.status == 0
    says = "k.safetensors: architecture=flux repeats what the names and shapes of its modules say."
    assert f"Note: {says}" in ended.stderr


def test_the_option_passes_over_an_adapter_of_a_known_family_beside_an_open_one(place, run, write_safetensors):
    write_safetensors(KOHYA, {"ss_base_model_version": "flux1"}, name="known.safetensors")
    adapters = ("k.safetensors:*mlp*=0", "known.safetensors:*mlp*=0")
    ended = run("merge", "base.safetensors", *adapters, "--architecture", "flux", "-o", "out.safetensors")
    assert (ended.status, ended.stderr) == (0, "")
