"""`info --norms`: the table, the sentences, the JSON, and what is wrong usage."""

import json
import math

import pytest
import torch
from adapters import base, lora, loras
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.reading.file_info import inspect
from lora_inspect.reporting.measurement import measure

# The norm of up @ down of such a toy at scale 1: each of its 6 · 5 numbers is 16 · 0.5 · 0.25.
ONE = 2.0 * math.sqrt(30.0)


@pytest.fixture
def norms(run):
    """`norms(path, *options)`: the field of the JSON."""

    def of(path, *options):
        return run("info", path, "--norms", "--json", *options).json["norms"]

    return of


def table_of(shown):
    """The lines below the screen."""
    return shown.stdout.rpartition("\n\n")[2].splitlines()


def test_a_row_for_each_part_and_block_has_the_norm_of_its_modules(run, write_safetensors):
    path = write_safetensors({**loras(3, alpha=16.0), **lora("lora_te_text_model_encoder_layers_0_mlp_fc1", alpha=8.0)})
    rows = [line.split() for line in table_of(run("info", path, "--norms"))]
    assert rows[0] == ["part", "modules", "norm", "sigma_1"]
    numbers = {" ".join(row[:-3]): row[-3:] for row in rows[1:5]}
    whole, one, half = (f"{value:.3g}" for value in (ONE * math.sqrt(3.0), ONE, ONE / 2.0))
    assert list(numbers.values())[:4] == [["3", whole, one], *[["1", one, one]] * 3]
    assert rows[5][-3:] == ["1", half, half]


def test_blocks_are_in_the_order_of_their_numbers(norms, write_safetensors):
    found = norms(write_safetensors(dict(reversed(loras(11).items()))))
    (part,) = found["parts"].values()
    assert [name.rpartition(".")[2].rpartition("_")[2] for name in part["blocks"]] == [str(n) for n in range(11)]


def test_norms_of_parts_add_up_as_squares(norms, fixtures):
    found = norms(fixtures / "synthetic" / "rslora_flag.safetensors")
    (part,) = found["parts"].values()
    assert found["modules"] == part["modules"] == len(found["layers"]) == 20
    for group in (part["blocks"].values(), found["layers"]):
        assert math.hypot(*(one["norm"] for one in group)) == pytest.approx(found["norm"], rel=1e-12)
    assert found["sigma_1"] == max(one["sigma_1"] for one in found["layers"])


def test_with_a_base_the_norm_is_relative_to_the_weights(run, norms, write_safetensors):
    path = write_safetensors(loras(3, alpha=16.0), name="a.safetensors")
    other = write_safetensors({**base(2), "blocks.2.attn.k.weight": ("F32", (6, 5), 1)}, name="base.safetensors")
    found = norms(path, "--base", other)
    # The weights are 30 ones.
    assert [one["weight_norm"] for one in found["layers"]] == pytest.approx([math.sqrt(30.0)] * 2 + [None])
    assert found["relative_norm"] == pytest.approx(2.0)
    assert (found["base"], found["layers"][2]["relative_norm"]) == (str(other), None)
    lines = table_of(run("info", path, "--norms", "--base", other))
    assert lines[0].split()[-2:] == ["of", "weight"]
    assert lines[1].split()[-1] == "200%"
    assert lines[4].split()[-1] == "-"
    assert "without a weight in" in " ".join(lines)
    assert "lora_unet_blocks_2_attn_q" in " ".join(lines)


def test_the_parts_of_a_split_layer_are_one_change_of_the_whole_weight(norms, fixtures):
    path, folder = (fixtures / "synthetic" / name for name in ("split.safetensors", "base_sharded"))
    tensors = {name: one.double() for name, one in load_file(path).items()}
    weights = {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}
    key = "lora_unet_blocks_0_ffn_0"
    parts = [tensors[f"{key}.lora_up.{n}.weight"] @ tensors[f"{key}.lora_down.{n}.weight"] for n in (0, 1)]
    change = tensors[f"{key}.alpha"] / 4 * torch.cat(parts)
    (layer,) = norms(path, "--base", folder)["layers"]
    assert layer["shape"] == list(change.shape)
    assert layer["norm"] == pytest.approx(float(change.norm()), rel=1e-9)
    assert [layer["sigma_1"], layer["sigma_2"]] == pytest.approx(torch.linalg.svdvals(change)[:2].tolist(), rel=1e-9)
    assert layer["weight_norm"] == pytest.approx(float(weights["blocks.0.ffn.0.weight"].double().norm()), rel=1e-9)


def test_a_file_that_changes_while_it_is_measured_is_refused(write_safetensors):
    path = write_safetensors(loras(1))
    found = inspect(str(path))

    def rewrite_at_the_end(amount):
        if amount:
            write_safetensors(loras(3))

    with pytest.raises(LoraInspectError, match="changed"):
        measure(found, progress=rewrite_at_the_end)


def test_the_weight_of_a_base_in_bfloat16_is_read_as_its_numbers(norms, tmp_path, write_safetensors):
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    save_file({"blocks.0.attn.q.weight": weight}, tmp_path / "base.safetensors")
    found = norms(write_safetensors(loras(1)), "--base", tmp_path / "base.safetensors")
    assert found["layers"][0]["weight_norm"] == pytest.approx(float(weight.double().norm()), rel=1e-12)


def test_a_weak_layer_gets_a_number_and_a_comparison(run, norms, write_safetensors):
    weak = lora("lora_unet_blocks_5_attn_q", rank=32, alpha=1.0)
    path = write_safetensors({**loras(5, rank=32, alpha=40.0), **weak})
    told = " ".join(" ".join(line.split()) for line in table_of(run("info", path, "--norms")))
    assert "scale 0.031: alpha 1 at rank 32, in 1 module (lora_unet_blocks_5_attn_q); 40 times below" in told
    assert "lora_unet_blocks_5_attn_q: scale 0.031: alpha 1 at rank 32; norm 0.685, 40 times below the other" in told
    found = norms(path)
    assert found["unusual"]["ratio"] == pytest.approx(40.0)
    assert found["small_scales"] == [
        {"modules": ["lora_unet_blocks_5_attn_q"], "rank": 32, "alpha": 1.0, "scale": 1.0 / 32.0,
         "ratio": pytest.approx(40.0)}
    ]  # fmt: skip


def test_spikes_and_dead_modules_are_told_with_their_numbers(run, norms, write_safetensors):
    still = {**lora("lora_unet_blocks_6_attn_q"), "lora_unet_blocks_6_attn_q.lora_up.weight": ("F32", (6, 16), 0.0)}
    strong = lora("lora_unet_blocks_5_attn_q", alpha=64.0)
    path = write_safetensors({**loras(5, alpha=8.0), **strong, **still})
    found = norms(path)
    (spike,), (dead,) = found["spikes"], found["dead"]
    assert spike["module"] == "lora_unet_blocks_5_attn_q"
    # The module that was never trained does not count.
    assert (spike["sigma_1"], spike["median"], spike["compared"]) == (pytest.approx(ONE * 4), pytest.approx(ONE / 2), 6)
    assert spike["sigma_2"] == pytest.approx(0.0, abs=1e-6)
    assert (dead["module"], dead["norm"], dead["compared"]) == ("lora_unet_blocks_6_attn_q", 0.0, 6)
    lines = table_of(run("info", path, "--norms"))
    assert [line[0] for line in lines if line[0] != " "] == ["!", "!"]


def test_a_clean_file_has_no_sentence(run, write_safetensors):
    lines = table_of(run("info", write_safetensors(loras(5)), "--norms"))
    assert all(line.startswith("  ") for line in lines)


def test_dora_is_left_out_with_the_way_to_have_it(run, norms, fixtures):
    path = fixtures / "synthetic" / "dora_without_flag.safetensors"
    found = norms(path)
    assert (found["modules"], len(found["left_out"])) == (0, 10)
    told = " ".join(" ".join(line.split()) for line in table_of(run("info", path, "--norms")))
    assert told.startswith("- 10 modules (")
    assert told.endswith("left out: the change of DoRA depends on the weight; info --norms --base BASE measures it.")
    whole = norms(path, "--base", fixtures / "synthetic" / "base_f32.safetensors")
    assert (whole["modules"], whole["left_out"]) == (10, [])


def test_dora_with_a_base_has_the_norm_of_what_a_merge_changes(run, norms, fixtures, tmp_path):
    path, of = (fixtures / "synthetic" / f"{name}.safetensors" for name in ("dora_without_flag", "base_f32"))
    run("merge", of, path, "-o", tmp_path / "merged.safetensors")
    before, after = load_file(of), load_file(tmp_path / "merged.safetensors")
    changed = math.hypot(*(float((after[name].double() - before[name].double()).norm()) for name in before))
    assert norms(path, "--base", of)["norm"] == pytest.approx(changed, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--base", "b.safetensors"], "--base is about changes; add --norms or --spectrum."),
        (["--transposed", "no"], "--transposed is about changes; add --norms or --spectrum."),
        (["--norms", "--transposed", "no"], "--transposed is about a base; name it with --base."),
        (["--norms", "--base", "b", "--transposed", "maybe"], "'maybe' is none of yes, no, GLOB=yes and GLOB=no."),
        (["--norms", "second.safetensors"], "--norms measures a single file; name one."),
        (["--norms", "--json", "second.safetensors"], "--norms measures a single file; name one."),
        (["--norms", "--sort", "size"], "--norms measures a single file; name one."),
    ],
)
def test_wrong_usage_has_a_sentence(options, says, run, write_safetensors):
    shown = run("info", write_safetensors(loras()), *options)
    assert (shown.status, shown.stdout) == (2, "")
    assert shown.stderr.endswith(f"{says}\n")


def test_a_folder_of_adapters_is_wrong_usage(run, write_safetensors, tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        write_safetensors(loras(), name=name)
    shown = run("info", tmp_path, "--norms")
    assert shown.status == 2
    assert shown.stderr.endswith("--norms measures a single file; name one.\n")


def test_an_unknown_scale_is_asked_for_as_everywhere(run, write_safetensors):
    tensors = lora("base_model.model.blocks.0.q", alpha=None, spelling="peft")
    path = write_safetensors(tensors)
    shown = run("info", path, "--norms")
    assert (shown.status, shown.stdout) == (1, "")
    assert shown.stderr.startswith(f"Error: {path}: the scale of ")
    assert run("info", f"{path}:alpha=16,rslora=no", "--norms", "--json").json["norms"]["modules"] == 1


def test_a_base_has_no_change(run, fixtures):
    path = fixtures / "synthetic" / "base_f32.safetensors"
    says = f"{path}: it is no adapter, so it has no change to measure; name an adapter."
    shown = run("info", path, "--norms", "--json")
    assert (shown.status, shown.stderr) == (1, f"Error: {says}\n")
    assert json.loads(shown.stdout) == {"path": str(path), "error": says, "code": "refused"}


def test_an_adapter_in_the_place_of_the_base_is_refused(run, write_safetensors):
    path = write_safetensors(loras())
    shown = run("info", path, "--norms", "--base", path)
    assert (shown.status, shown.stdout) == (1, "")
    assert "it is an adapter itself, not a base" in shown.stderr


def test_a_missing_base_could_not_be_read(run, write_safetensors, tmp_path):
    shown = run("info", write_safetensors(loras()), "--norms", "--base", tmp_path / "nowhere.safetensors")
    assert (shown.status, shown.stdout) == (3, "")


def test_a_file_without_a_verb_is_measured_too(run, write_safetensors):
    path = write_safetensors(loras())
    assert run(path, "--norms").stdout == run("info", path, "--norms").stdout


def test_without_norms_no_number_is_read(run, write_safetensors):
    assert "norms" not in run("info", write_safetensors(loras()), "--json").json


def test_check_has_the_table_of_one_file_and_the_fields_of_all(run, norms, fixtures, write_safetensors):
    path = write_safetensors(loras(3, rank=4), name="a.safetensors")
    dora = fixtures / "synthetic" / "dora_without_flag.safetensors"
    assert run("check", path, "--tensors").stdout.splitlines()[1:] == table_of(run("info", path, "--norms"))
    several = run("check", path, dora, "--tensors")
    assert "norm" not in several.stdout
    assert "norm" not in run("check", path).stdout
    own, other = run("check", path, dora, "--tensors", "--json").json
    assert own["norms"] == {name: value for name, value in norms(path).items() if name in own["norms"]}
    assert (own["norms"]["norm"], own["norms"]["modules"]) == (pytest.approx(ONE / 2.0 * math.sqrt(3.0)), 3)
    assert {one["reason"] for one in other["norms"]["left_out"]} == {
        "the change of DoRA depends on the weight; info --norms --base BASE measures it"
    }
    assert "norms" not in run("check", path, "--json").json


def test_check_has_no_table_of_a_base(run, write_safetensors):
    assert "norms" not in run("check", write_safetensors(base(2)), "--tensors", "--json").json
