"""Modules of one layout and the base's modules of another one: which piece is which, and what is refused."""

import pytest
import torch
from adapters import lora, split
from safetensors.torch import save_file

from lora_inspect import schemes
from lora_inspect.architectures.correspondence import Correspondence, interleaved, same, stack, swapped
from lora_inspect.architectures.rows import Interleaved, Runs, Stacked, Swapped
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.matching.placement import Place, Placement
from lora_inspect.reading.base.base_names import BaseModule, NameTable, SharedRows

WIDTH = 4
LLM = "model.layers.0"
PARTS = {f"{LLM}.self_attn.{name}_proj": WIDTH for name in "qkv"}


def weights(sizes, prefix="", inputs=WIDTH):
    return {f"{prefix}{path}.weight": ("F32", (rows, inputs), 1) for path, rows in sizes.items()}


def modules(*names, out=WIDTH, inputs=WIDTH, prefix="diffusion_model.", **extra):
    found = {}
    for name in names:
        found |= lora(f"{prefix}{name}", rank=2, out=out, inputs=inputs, spelling="peft", **extra)
    return found


FUSED_BASE = weights({f"{LLM}.self_attn.qkv_proj": 3 * WIDTH, f"{LLM}.self_attn.o_proj": WIDTH})
SPLIT_BASE = weights({**PARTS, f"{LLM}.self_attn.o_proj": WIDTH})
QKV = f"{LLM}.self_attn.qkv_proj"


@pytest.fixture
def matched(places_of):
    """The places by target and module, with the rows of each; or the refusal."""

    def match_tensors(adapter, base, refused=False):
        found = places_of(adapter, base, refused)
        if refused:
            return found
        return {(name, placed.contribution.module.body): placed.place.runs for name, placed in found}

    return match_tensors


def test_parts_land_on_their_rows_of_a_fused_weight(matched):
    found = matched(modules(*PARTS), FUSED_BASE)
    assert found == {(f"{QKV}.weight", path): Runs(at * WIDTH, WIDTH) for at, path in enumerate(PARTS)}


def test_a_fused_module_lands_on_every_part(matched):
    found = matched(modules(QKV, out=3 * WIDTH), SPLIT_BASE)
    assert found == {(f"{path}.weight", QKV): Runs(0, WIDTH, at * WIDTH) for at, path in enumerate(PARTS)}


def test_parts_that_are_stored_turned_are_told_as_out_and_in(matched):
    base = {f"{LLM}.mlp.{part}_proj.weight": ("F32", (WIDTH, rows), 1) for part, rows in (("gate", 3), ("up", 5))}
    refusal = matched(modules(f"{LLM}.mlp.gate_up_proj", out=8), base, refused=True)
    assert "gate_proj has [3, 4]" in refusal
    assert "up_proj has [5, 4]" in refusal


def test_parts_land_on_their_rows_of_a_fused_weight_that_is_stored_turned(places_of):
    base = {f"{QKV}.weight": ("F32", (WIDTH, 3 * WIDTH), 1)}
    found = {placed.contribution.module.body: placed.place for _, placed in places_of(modules(*PARTS), base)}
    assert {path: place.runs for path, place in found.items()} == {
        path: Runs(at * WIDTH, WIDTH) for at, path in enumerate(PARTS)
    }
    assert all(place.transposed for place in found.values())


def test_a_bias_is_arranged_as_the_weight_is(matched):
    base = {**FUSED_BASE, f"{QKV}.bias": ("F32", (3 * WIDTH,), 1)}
    path = f"{LLM}.self_attn.k_proj"
    adapter = modules(path) | {f"diffusion_model.{path}.lora_B.bias": ("F32", (WIDTH,), 1.0)}
    assert matched(adapter, base) == {
        (f"{QKV}.weight", path): Runs(WIDTH, WIDTH),
        (f"{QKV}.bias", path): Runs(WIDTH, WIDTH),
    }


@pytest.mark.parametrize("prefix", ["", "model.", "model.language_model.", "language_model.model."])
@pytest.mark.parametrize("root", ["", "model.", "model.language_model.", "language_model.model."])
def test_roots_of_transformers_are_seen_through(root, prefix, matched):
    base = weights({f"{root}layers.0.self_attn.qkv_proj": 3 * WIDTH})
    found = matched(modules(f"{prefix}layers.0.self_attn.v_proj", prefix=""), base)
    assert list(found.values()) == [Runs(2 * WIDTH, WIDTH)]


REFUSED = {
    "two modules on the same rows": (
        modules(f"{LLM}.self_attn.q_proj") | modules(f"{LLM}.self_attn.q_proj", prefix="transformer."), FUSED_BASE,
        ["both change", f"{QKV}.weight"]),
    "the whole and a part of it on a fused weight": (
        modules(f"{LLM}.self_attn.q_proj") | modules(QKV, out=3 * WIDTH), FUSED_BASE, ["both change"]),
    "the whole and a part of it on the parts": (
        modules(QKV, out=3 * WIDTH) | modules(f"{LLM}.self_attn.v_proj"), SPLIT_BASE,
        ["both change", f"{LLM}.self_attn.v_proj.weight"]),
    "two bases of the fused weight": (
        modules(f"{LLM}.self_attn.q_proj"), FUSED_BASE | weights({QKV: 3 * WIDTH}, "model.diffusion_model."),
        ["fits both"]),
    "two bases of one part": (
        modules(QKV, out=3 * WIDTH), SPLIT_BASE | weights(dict(list(PARTS.items())[1:2]), "model.diffusion_model."),
        ["fits both", "k_proj"]),
    "a fused weight and its part": (
        modules(f"{LLM}.self_attn.q_proj"), FUSED_BASE | weights({f"{LLM}.self_attn.q_proj": WIDTH}), ["fits both"]),
    "a part that lacks": (
        modules(QKV, out=3 * WIDTH), {key: t for key, t in SPLIT_BASE.items() if "v_proj" not in key},
        ["no module fits", f"{QKV} is several layers", "q_proj and ", "k_proj alone; use a base that holds all"]),
    "a part that lacks beside others": (
        modules(QKV, out=3 * WIDTH) | modules(f"{LLM}.self_attn.o_proj"),
        {key: t for key, t in SPLIT_BASE.items() if "q_proj" not in key},
        ["1 of 2 modules", "k_proj and ", "v_proj alone; use a base that holds all of them", "--allow-unmatched"]),
    "a part of another width": (modules(f"{LLM}.self_attn.q_proj", out=5), FUSED_BASE, ["[5, 4]", QKV, "[12, 4]"]),
    "a whole of another width": (modules(QKV, out=3 * WIDTH + 1), SPLIT_BASE, ["[13, 4]", "q_proj", "[4, 4]"]),
    "parts of other sizes than the family's": (
        modules(QKV, out=14), SPLIT_BASE | weights({f"{LLM}.self_attn.k_proj": 6}),
        ["k_proj has [6, 4]", "which are not the rows that", "use a base in the adapter's layout"]),
    "a fused weight that the family does not have so": (
        modules(f"{LLM}.self_attn.q_proj"), weights({QKV: 3 * WIDTH + 1}), ["qkv_proj has [13, 4]"]),
    "slices": (
        split(f"diffusion_model.{QKV}", out=WIDTH, inputs=WIDTH), SPLIT_BASE, ["is in slices", "convert the adapter"]),
    "a magnitude of inputs over several weights": (
        modules(QKV, out=3 * WIDTH, dora_scale=("F32", (1, WIDTH), 1.0)), SPLIT_BASE,
        ["magnitude of inputs", "q_proj and", "use a base in the adapter's layout"]),
    "quantised": (
        modules(f"{LLM}.self_attn.q_proj"), {f"{QKV}.weight": ("I8", (12, 4), bytes(48))}, ["I8 without a scale"]),
}  # fmt: skip


@pytest.mark.parametrize(("adapter", "base", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_exact_is_refused(adapter, base, words, matched):
    sentence = matched(adapter, base, refused=True)
    assert [word for word in words if word not in sentence] == []
    assert sentence.endswith(".")


def test_a_magnitude_of_inputs_is_that_of_a_part_alone(matched):
    adapter = modules(f"{LLM}.self_attn.v_proj", dora_scale=("F32", (1, WIDTH), 1.0))
    assert list(matched(adapter, FUSED_BASE).values()) == [Runs(2 * WIDTH, WIDTH)]


RELATIONS = (
    stack("a.{i}.qkv", "b.{i}.q", "b.{i}.k"),
    interleaved("a.{i}.gate_up", "b.{i}.gate", "b.{i}.up"),
    swapped("last", "norm.linear"),
    same("first", "x_in"),
)


@pytest.mark.parametrize(
    ("base", "name", "found"),
    [
        (["a.3.qkv"], "lora_unet_b_3_k", [BaseModule("a.3.qkv", SharedRows(Stacked((1, 1)), 1, 2, of_whole=False))]),
        (["b.3.q", "b.3.k"], "lora_unet_a_3_qkv",
         [BaseModule(f"b.3.{part}", SharedRows(Stacked((1, 1)), at, 2, of_whole=True))
          for at, part in enumerate("qk")]),
        (["a.3.gate_up"], "lora_unet_b_3_up",
         [BaseModule("a.3.gate_up", SharedRows(Interleaved(2), 1, 2, of_whole=False))]),
        (["last"], "lora_unet_norm_linear", [BaseModule("last", SharedRows(Swapped(), 0, 1, of_whole=False))]),
        (["norm.linear"], "lora_unet_last", [BaseModule("norm.linear", SharedRows(Swapped(), 0, 1, of_whole=True))]),
        (["first"], "lora_unet_x_in", [BaseModule("first")]),
        (["first"], "lora_unet_first", [BaseModule("first")]),
        (["first"], "lora_unet_last", []),
    ],
)  # fmt: skip
def test_names_of_another_layout_say_which_piece_they_are(base, name, found, write_safetensors):
    file = write_safetensors({f"{path}.weight": ("F32", (2, 2), 1) for path in base})
    table = NameTable(open_checkpoint(str(file)), "kohya", "model", "lora_unet_", Correspondence(lambda: RELATIONS))
    assert table.find(schemes.recognise(name)) == found


@pytest.mark.parametrize(
    ("together", "runs", "fits"),
    [
        (1, Runs(1, 5, 2), True),
        (4, Runs(3, 12), True),
        (5, Runs(3, 12), True),
        (4, Runs(0, 4, 8), True),
        (4, Runs(0, 8, 2), False),
        (4, Runs(0, 6, 4), False),
        (4, Runs(0, 6, 6, 2, 6, -6), False),
        (3, Runs(0, 6, 6, 2, 6, -6), True),
        (4, None, True),
    ],
)
def test_rows_that_belong_together_are_not_torn_apart(together, runs, fits, read):
    (contribution,) = read(modules(QKV, out=12)).contributions
    formula = contribution.formula._replace(together=lambda shapes: together)
    contribution = contribution._replace(algorithm=contribution.algorithm._replace(formula=formula))
    placed = Placement(contribution, Place(contribution.factors["up"], runs))
    if fits:
        placed.check_groups()
    else:
        with pytest.raises(
            LoraInspectError, match=r"qkv_proj \(LoRA\) changes groups of 4 .*; use a base in the adapter's layout\."
        ):
            placed.check_groups()


def test_a_dry_run_finds_blocks_of_a_rotation_torn_apart(tmp_path, run):
    save_file({key: torch.ones(shape) for key, (_, shape, _) in SPLIT_BASE.items()}, tmp_path / "base.safetensors")
    for count, refused in ((3, False), (2, True)):
        size = 3 * WIDTH // count
        save_file(
            {f"diffusion_model.{QKV}.oft_blocks": torch.zeros(count, size, size)}, tmp_path / "adapter.safetensors"
        )
        planned = run("merge", tmp_path / "base.safetensors", tmp_path / "adapter.safetensors", "--dry-run")
        assert planned.status == refused
        assert not refused or f"changes groups of {size} rows" in planned.refusal


def test_modules_are_counted_once_whatever_number_of_weights_they_change(tmp_path, run):
    save_file({key: torch.ones(shape) for key, (_, shape, _) in SPLIT_BASE.items()}, tmp_path / "base.safetensors")
    adapter = {f"diffusion_model.{QKV}.lora_A.weight": torch.ones(2, WIDTH)}
    adapter |= {f"diffusion_model.{QKV}.lora_B.weight": torch.ones(3 * WIDTH, 2)}
    save_file(adapter, tmp_path / "adapter.safetensors")
    record = run("merge", tmp_path / "base.safetensors", tmp_path / "adapter.safetensors", "--dry-run", "--json").json
    assert (record["modules_merged"], record["tensors_copied"]) == (1, 1)
    assert sorted(record["targets"]) == sorted(f"{path}.weight" for path in PARTS)
