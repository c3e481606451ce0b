"""The proof of `convert`: every wrong step that is planted shows, and leaves nothing behind."""

import json
from dataclasses import replace

import pytest
import torch
from adapters import drawn_lora
from safetensors.torch import load_file, save_file

import lora_inspect.converting.output.output_tensors as spelling
import lora_inspect.converting.output.standard_output as standard_output
import lora_inspect.converting.steps.carried_scale as carried_scale
import lora_inspect.converting.steps.conversion as steps
import lora_inspect.converting.steps.part as scaled_factors
import lora_inspect.converting.steps.split_fuse as arranged_rows
import lora_inspect.ops.convert as op
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.safetensors.writer import TensorPlan, renamed
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard

pytestmark = pytest.mark.numeric

FLUX = {"ss_base_model_version": "flux1"}
WIDTH = 4


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pair(module, out=WIDTH, inputs=WIDTH, rank=2, alpha=3.0, seed=0):
    return drawn_lora(module, seed, rank=rank, alpha=alpha, out=out, inputs=inputs)


def magnitude(module, out=WIDTH, seed=9):
    return {f"{module}.dora_scale": 1 + normal(out, 1, seed=seed).abs()}


RSLORA = {"use_rslora_flag": torch.tensor(True)}
QKV = "lora_unet_double_blocks_0_img_attn_qkv"
PARTS = [f"lora_transformer_transformer_blocks_0_attn_to_{name}" for name in "qkv"]
FINAL = "lora_transformer_norm_out_linear"
LOHA = {
    f"{FINAL}.hada_{role}": normal(*shape, seed=at)
    for at, (role, shape) in enumerate(
        {"w1_a": (8, 2), "w1_b": (2, 4), "w2_a": (8, 2), "w2_b": (2, 4)}.items(), start=20
    )
} | {f"{FINAL}.alpha": torch.tensor(2.0)}

FILES = {
    "plain": (pair("lora_unet_a"), {}),
    "rslora": (pair("lora_unet_a", rank=3) | RSLORA, {}),
    "dotted": (
        {
            "diffusion_model.blocks.0.q.lora_A.weight": normal(3, 4),
            "diffusion_model.blocks.0.q.lora_B.weight": normal(4, 3, seed=1),
            "diffusion_model.blocks.0.q.diff_b": normal(4, seed=2),
        }
        | RSLORA,
        {},
    ),
    "diffusers": (
        {
            "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": normal(3, 4),
            "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": normal(4, 3, seed=1),
            "transformer.transformer_blocks.0.attn.to_q.alpha": torch.tensor(2.0),
        },
        {},
    ),
    "one that never trained": (
        {
            "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": normal(3, 4),
            "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.zeros(4, 3),
            "transformer.transformer_blocks.0.attn.to_q.alpha": torch.tensor(2.0),
        },
        {},
    ),
    "one whose inputs died": (
        {
            "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(3, 4),
            "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": normal(4, 3),
            "transformer.transformer_blocks.0.attn.to_q.alpha": torch.tensor(2.0),
        },
        {},
    ),
    "parts": ({k: v for at, part in enumerate(PARTS) for k, v in pair(part, seed=at).items()}, {"layout": "original"}),
    "two of three parts": (pair(PARTS[2], seed=3) | pair(PARTS[0], rank=1, alpha=0.3), {"layout": "original"}),
    "fused": (pair(QKV, out=3 * WIDTH), {"layout": "diffusers"}),
    "swapped": (pair(FINAL, out=2 * WIDTH), {"layout": "original"}),
    "swapped LoHa": (LOHA, {"layout": "original"}),
    "slices": (
        {
            f"lora_unet_qkv.lora_{side}.{part}.weight": normal(*((2, 4) if side == "down" else (3, 2)), seed=part)
            for part in range(3)
            for side in ("down", "up")
        },
        {},
    ),
    "magnitudes": (
        {k: v for at, part in enumerate(PARTS) for k, v in (pair(part, seed=at) | magnitude(part, seed=at)).items()},
        {"layout": "original", "keep_dora": True},
    ),
    "dropped magnitudes": (pair("lora_unet_a") | magnitude("lora_unet_a"), {"drop_magnitude": True}),
}


def converted(folder, tensors, **options):
    folder.mkdir()
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "in.safetensors", FLUX)
    (folder / "out").mkdir()
    return convert_to_standard(
        str(folder / "in.safetensors"), str(folder / "out" / "made.safetensors"), ConvertOptions(**options)
    )


@pytest.mark.parametrize("name", FILES)
def test_what_is_right_is_proved(name, tmp_path):
    tensors, options = FILES[name]
    result = converted(tmp_path / "a", tensors, **options)
    assert result.verified is not None
    assert result.verified.modules == result.modules
    assert result.verified.max_relative_error <= 2.0**-22
    assert converted(tmp_path / "b", tensors, verify=False, **options).verified is None


def reorder_nothing(part, runs):
    return part


def flip_rows(made):
    def stack(*arguments):
        part = made(*arguments)
        factor = part.factors["up"]
        return replace(part, factors={**part.factors, "up": factor._replace(values=factor.values.flip(0))})

    return stack


def halve_alpha(made):
    def into_alpha(*arguments):
        part = made(*arguments)
        return replace(part, alpha=part.alpha / 2)

    return into_alpha


def forget_the_scale(part):
    return replace(part, scale=1.0)


def double_scale(made):
    def stack(*arguments):
        part = made(*arguments)
        return replace(part, scale=2 * part.scale)

    return stack


def transpose(info, name, shape=None):
    """The same bytes, in the other order where a factor is square."""
    if "lora_up" not in name:
        return renamed(info, name, shape)
    values = scaled_factors.read_factor(info)
    return scaled_factors.content(name, values._replace(values=values.values.t()), info.file)


def lose(suffix):
    def plant(made):
        def spell(*arguments):
            module = made(*arguments)
            kept = tuple(content for content in module.contents if not content.plan.name.endswith(suffix))
            return replace(module, contents=kept)

        return spell

    return plant


def one_off(made):
    def lengths(*arguments):
        factor = made(*arguments)
        return factor and factor._replace(values=factor.values.roll(1))

    return lengths


# The file, where the wrong step is planted, what it is, and what the sentence says.
PLANTED = {
    "a swap that is none": ("swapped", arranged_rows, "_reordered", reorder_nothing, "norm_out|final_layer"),
    "a swap of LoHa that is none": ("swapped LoHa", arranged_rows, "_reordered", reorder_nothing, "final_layer"),
    "rows in another order": ("parts", arranged_rows, "stack", flip_rows, "qkv differs by"),
    "rows of slices in another order": ("slices", "fuse", "stack", flip_rows, "lora_unet_qkv differs by"),
    "half of the scale": ("rslora", carried_scale, "_into_alpha", halve_alpha, "differs by 0.5 of its change"),
    "a scale that is lost in factors": ("diffusers", carried_scale, "into_factors", forget_the_scale, "to_q differs"),
    "another scale of parts": ("two of three parts", arranged_rows, "stack", double_scale, "qkv differs by 1 of"),
    "a transposed factor": ("square", spelling, "renamed", transpose, "lora_unet_a differs by"),
    "a lost module": ("plain", steps, "spell", lose(""), "lora_unet_a is missing|belongs to a known adapter"),
    "a lost alpha": ("plain", steps, "spell", lose(".alpha"), "lora_unet_a differs by"),
    "a lost bias": ("dotted", steps, "spell", lose(".diff_b"), "blocks.0.q differs by inf"),
    "a lost magnitude": ("magnitudes", steps, "spell", lose(".dora_scale"), "qkv differs by inf"),
    "magnitudes one row off": ("magnitudes", arranged_rows, "_joined_lengths", one_off, "qkv differs by"),
}
FILES_TO_SPOIL = FILES | {"square": (pair("lora_unet_a", rank=WIDTH), {})}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found_and_nothing_is_left(name, tmp_path, monkeypatch):
    file, home, step, wrong, says = PLANTED[name]
    if home == "fuse":
        import lora_inspect.converting.steps.split_fuse as home
    made = getattr(home, step)
    is_maker = wrong in (flip_rows, halve_alpha, double_scale, one_off) or wrong.__name__ == "plant"
    monkeypatch.setattr(home, step, wrong(made) if is_maker else wrong)
    tensors, options = FILES_TO_SPOIL[file]
    with pytest.raises(LoraInspectError, match=says) as refused:
        converted(tmp_path / "a", tensors, **options)
    assert "internal error" in str(refused.value)
    assert str(tmp_path / "a" / "out" / "made.safetensors: ") in str(refused.value)
    assert ".partial" not in str(refused.value)
    assert list((tmp_path / "a" / "out").iterdir()) == []
    converted(tmp_path / "b", tensors, verify=False, **options)
    assert (tmp_path / "b" / "out" / "made.safetensors").exists()


def peft_folder(folder):
    folder.mkdir()
    paths = ["encoder.layer.0.attention.self.query", "encoder.layer.1.attention.self.query"]
    tensors = {}
    for at, path in enumerate(paths):
        tensors[f"base_model.model.{path}.lora_A.weight"] = normal(2, 4, seed=at)
        tensors[f"base_model.model.{path}.lora_B.weight"] = normal(4, 2, seed=at + 5)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["query"], "use_rslora": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_a_config_that_says_another_scale_is_found(tmp_path, monkeypatch):
    made = standard_output.standard_config

    def wrong(*arguments):
        config = made(*arguments)
        return {**config, "lora_alpha": config["lora_alpha"] * 1.001}

    source = peft_folder(tmp_path / "in")
    result = convert_to_standard(str(source), str(tmp_path / "right"), ConvertOptions())
    assert result.verified is not None
    assert result.verified.modules == 2
    assert result.verified.max_relative_error <= 2.0**-51
    monkeypatch.setattr(standard_output, "standard_config", wrong)
    with pytest.raises(LoraInspectError, match=r"query differs by 0\.001 of its change"):
        convert_to_standard(str(source), str(tmp_path / "wrong"), ConvertOptions())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "right"]


def test_an_output_that_is_there_stays_where_the_proof_fails(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    converted(folder, FILES["rslora"][0])
    output = folder / "out" / "made.safetensors"
    before = output.read_bytes()
    monkeypatch.setattr(carried_scale, "_into_alpha", halve_alpha(carried_scale._into_alpha))
    with pytest.raises(LoraInspectError, match="internal error"):
        convert_to_standard(str(folder / "in.safetensors"), str(output), ConvertOptions(), force=True)
    assert output.read_bytes() == before
    assert [path.name for path in (folder / "out").iterdir()] == ["made.safetensors"]


def test_a_tensor_of_no_algorithm_that_is_lost_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(op, "renamed", lambda info, name: renamed(info, "another"))
    with pytest.raises(LoraInspectError, match=r"something\.else is missing"):
        converted(tmp_path / "a", FILES["plain"][0] | {"something.else": normal(2, 8)})


@pytest.mark.parametrize("magnitude_of", [None, "lora_unet_blocks_0_q"], ids=["plain", "beside a plain module"])
def test_the_change_of_a_base_is_compared_with_what_approximates_it(magnitude_of, tmp_path, monkeypatch):
    name = "lora_unet_blocks_0_q"
    base = {"blocks.0.q.weight": normal(12, 10, seed=30)}
    save_file(base, tmp_path / "base.safetensors")
    tensors = pair(name, 12, 10) | {f"{name}.dora_scale": 1 + normal(12, 1, seed=31).abs()}
    options = {"base": str(tmp_path / "base.safetensors"), "rank": 3, "allow_loss": True}
    result = converted(tmp_path / "a", tensors, **options)
    stated = result.relative_errors[name]
    assert stated is not None
    assert result.verified is not None
    assert abs(result.verified.max_relative_error - stated) <= 2.0**-22
    found = load_file(tmp_path / "a" / "out" / "made.safetensors")
    up, down = (found[f"{name}.lora_{side}.weight"].double() for side in ("up", "down"))
    weight = base["blocks.0.q.weight"].double()
    own = [tensors[f"{name}.lora_{side}.weight"].double() for side in ("up", "down")]
    changed = weight + 1.5 * own[0] @ own[1]
    true = tensors[f"{name}.dora_scale"].double() * changed / changed.norm(dim=1, keepdim=True) - weight
    error = (float(found[f"{name}.alpha"]) / down.shape[0] * up @ down - true).norm() / true.norm()
    assert abs(result.verified.max_relative_error - float(error)) <= 1e-5
    monkeypatch.setattr(carried_scale, "_into_alpha", halve_alpha(carried_scale._into_alpha))
    with pytest.raises(LoraInspectError, match=f"{name} differs by"):
        converted(tmp_path / "b", tensors, **options)


def test_the_command_says_what_it_proved(tmp_path, run):
    save_file(pair("lora_unet_a", rank=3) | RSLORA, tmp_path / "in.safetensors")
    told = run("convert", tmp_path / "in.safetensors", "-o", tmp_path / "a.safetensors")
    assert "verified: the re-read changes of all 1 modules" in told.stdout
    told = run("convert", tmp_path / "in.safetensors", "-o", tmp_path / "b.safetensors", "--json")
    found = json.loads(told.stdout)
    assert found["verified"]["modules"] == 1
    assert 0 <= found["verified"]["max_relative_error"] <= 2.0**-23
    told = run("convert", tmp_path / "in.safetensors", "-o", tmp_path / "c.safetensors", "--json", "--no-verify")
    assert json.loads(told.stdout)["verified"] is None
    told = run("convert", tmp_path / "in.safetensors", "-o", tmp_path / "d.safetensors", "--no-verify")
    assert "verified" not in told.stdout
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "d.safetensors").read_bytes()


def test_a_plan_of_another_size_is_no_output(tmp_path, monkeypatch):
    """A file whose header says something else than the tensors is found by the reading itself."""
    made = spelling.content

    def wrong(name, factor, source):
        content = made(name, factor, source)
        return replace(content, plan=TensorPlan(name, content.plan.dtype, (1, *content.plan.shape)))

    monkeypatch.setattr(spelling, "content", wrong)
    with pytest.raises(LoraInspectError, match=r"reading it fails with|differs by inf"):
        converted(tmp_path / "a", FILES["parts"][0], layout="original")
