"""verify: what is named of merges that are wrong, each of them written out in float64."""

import pytest
import torch
from adapters import drawn
from verified_merges import BLOCKS, IN, OUT, Folder, base_of, decomposed, delta, key, lora, weight, with_dora

from lora_inspect.errors import LoraInspectError

pytestmark = pytest.mark.numeric

RS = {"use_rslora_flag": torch.tensor(True)}


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def merged(base, changes):
    """The base with what `changes` (block, weight in float64) make of its weights, in its types."""
    made = {weight(b): changes(b, base[weight(b)].double()).to(base[weight(b)].dtype) for b in range(BLOCKS)}
    return base | made


def test_a_right_merge_is_one_line(folder):
    base, a, b = base_of(), lora(), lora(2)
    found = folder.verified(merged(base, lambda n, w: w + 0.8 * delta(a, n) - delta(b, n)), base, (a, 0.8), (b, -1))
    assert found.ok
    assert found.codes == []
    assert found.share == {"a": pytest.approx(1, abs=1e-5), "b": pytest.approx(1, abs=1e-5)}
    assert found.found.residual < 1e-3
    assert found.found.modules.keys() == {weight(block) for block in range(BLOCKS)}


def test_a_lost_block_is_named(folder):
    base, a = base_of(), lora()
    found = folder.verified(merged(base, lambda n, w: w if n == 2 else w + delta(a, n)), base, (a, ""))
    assert not found.ok
    assert found.codes == [("missing", "a")]
    assert found.messages == ["1 of 4 modules has nothing of a"]
    assert found.found.missing == found.modules("missing") == [weight(2)]
    assert found.of(2) == pytest.approx(0, abs=1e-5)
    assert found.of(1) == pytest.approx(1, abs=1e-5)
    # The sum over all modules: those that are there over all of them.
    squares = [float(delta(a, block).square().sum()) for block in range(BLOCKS)]
    assert found.share["a"] == pytest.approx(1 - squares[2] / sum(squares), abs=1e-5)


def test_one_of_two_adapters_that_a_block_lacks_is_named(folder):
    base, a, b = base_of(), lora(), lora(2)
    changes = lambda n, w: w + delta(b, n) + (0 if n == 1 else delta(a, n))  # noqa: E731
    found = folder.verified(merged(base, changes), base, (a, ""), (b, ""))
    assert found.codes == [("missing", "a")]
    assert found.of(1, "b") == pytest.approx(1, abs=1e-5)


def test_a_base_in_the_place_of_a_merge_has_nothing(folder):
    base, a, b = base_of(), lora(), lora(2)
    found = folder.verified(base, base, (a, ""), (b, 0.5))
    assert found.messages == ["nothing of a is there (4 modules)", "nothing of b is there (4 modules)"]
    assert found.share == {"a": 0, "b": 0}


def test_an_adapter_that_is_merged_twice_is_named(folder):
    base, a, b = base_of(), lora(), lora(2)
    found = folder.verified(merged(base, lambda n, w: w + 2 * delta(a, n) + delta(b, n)), base, (a, ""), (b, ""))
    assert found.codes == [("doubled", "a")]
    # 2 is the square root of its rank as well, and 1 over its scale: no share tells which it was.
    assert found.messages == [
        "4 modules have 2 = sqrt(rank) = 1/scale of a: merged as alpha/sqrt(rank) though it is alpha/rank, merged at "
        "scale 1, without its alpha or merged twice"
    ]
    assert found.of(0, "b") == pytest.approx(1, abs=1e-5)


def test_rslora_that_is_merged_as_plain_lora_is_named_whatever_the_ranks(folder):
    base, a = base_of(), lora(ranks=(2, 4, 9, 16), alpha=3.0) | RS
    found = folder.verified(merged(base, lambda n, w: w + delta(a, n)), base, (a, ""))
    assert found.codes == [("scaled", "a")]
    assert found.messages == [
        "4 modules have 0.25 to 0.707 = 1/sqrt(rank) of a: merged as alpha/rank though it is RS-LoRA"
    ]
    assert found.of(2) == pytest.approx(1 / 3, abs=1e-5)


@pytest.mark.parametrize(
    ("right", "wrong", "symbol", "says"),
    [
        ("", lambda d: d * 4**0.5, "sqrt(rank)", "merged as alpha/sqrt(rank) though it is alpha/rank"),
        ("", lambda d: d / (3 / 4), "1/scale", "merged at scale 1, without its alpha"),
        ("", lambda d: d * (3 / 4), "scale", "merged with its scale applied twice"),
        ("0.3", lambda d: d, "1/multiplier", "merged at multiplier 1"),
        ("0.3", lambda d: 0.3 * 0.3 * d, "multiplier", "merged with its multiplier applied twice"),
    ],
)
def test_a_scale_that_is_wrong_everywhere_is_named_with_its_cause(right, wrong, symbol, says, folder):
    base, a = base_of(), lora(alpha=3.0, rank=4)
    found = folder.verified(merged(base, lambda n, w: w + wrong(delta(a, n))), base, (a, right))
    (message,) = found.messages
    assert f" = {symbol}" in message
    assert says in message


def test_a_part_that_is_too_weak_is_named_without_a_cause(folder):
    base, a = base_of(), lora()
    found = folder.verified(merged(base, lambda n, w: w + (0.6 + 0.1 * (n == 1)) * delta(a, n)), base, (a, ""))
    assert found.messages == ["4 modules have 0.6 to 0.7 of a"]


def test_the_opposite_sign_is_named(folder):
    base, a, b = base_of(), lora(), lora(2)
    found = folder.verified(merged(base, lambda n, w: w - delta(a, n) + delta(b, n)), base, (a, ""), (b, ""))
    assert found.messages == ["4 modules have -1 of a"]
    assert found.codes == [("opposite", "a")]


@pytest.mark.parametrize("dora", [False, True])
def test_models_in_each_others_place_are_named(dora, folder):
    base, a = base_of(), lora()
    a = with_dora(a, base) if dora else a
    made = merged(base, lambda n, w: decomposed(a, w, n) if dora else w + delta(a, n))
    found = folder.verified(base, made, (a, ""))
    # A plain LoRA that was subtracted looks the same, and comes first.
    assert found.codes == [*([] if dora else [("opposite", "a")]), ("swapped", None)]
    assert "are MERGED and BASE swapped?" in found.messages[-1]


@pytest.mark.parametrize("settings", ["", "0.5"])
def test_the_opposite_sign_of_one_adapter_alone_is_named_first(settings, folder):
    base, a = base_of(), lora()
    multiplier = float(settings or 1)
    found = folder.verified(merged(base, lambda n, w: w - multiplier * delta(a, n)), base, (a, settings))
    assert found.codes == [("opposite", "a"), ("swapped", None)]
    assert found.messages[0] == "4 modules have -1 of a"


def test_the_opposite_sign_of_dora_is_not_taken_for_models_in_each_others_place(folder):
    base = base_of()
    a = with_dora(lora(), base)
    found = folder.verified(merged(base, lambda n, w: w - (decomposed(a, w, n) - w)), base, (a, ""))
    assert found.codes == [("opposite", "a")]


def wrong_dora(a, how):
    """What a program makes of DoRA that gets it wrong."""
    ways = {
        "dora-dropped": lambda n, w: w + delta(a, n),
        "dora-norms": lambda n, w: decomposed(a, w, n, over=w),
        "rslora-assumed": lambda n, w: decomposed(a, w, n, root=True),
        "dora-merged-twice": lambda n, w: decomposed(a, decomposed(a, w, n), n),
        "multiplier": lambda n, w: w + 0.7 * (decomposed(a, w, n) - w),
    }
    return ways[how]


@pytest.mark.parametrize("how", ["dora-dropped", "dora-norms", "rslora-assumed", "dora-merged-twice"])
def test_dora_that_a_program_got_wrong_is_named(how, folder):
    base = base_of()
    a = with_dora(lora(rank=4, alpha=3.0), base)
    found = folder.verified(merged(base, wrong_dora(a, how)), base, (a, ""))
    assert found.codes == [(how, "a")]
    assert len(found.modules(how)) == BLOCKS
    assert not found.ok


def test_dora_over_the_other_axis_of_a_square_weight_is_named(folder):
    base = base_of(out=IN)
    a = with_dora(lora(out=IN), base)

    def other_axis(block, before):
        v = before + delta(a, block)
        return a[f"{key(block)}.dora_scale"].double().t() * v / v.norm(dim=0, keepdim=True)

    found = folder.verified(merged(base, other_axis), base, (a, ""))
    assert found.codes == [("dora-axis", "a")]


def test_dora_at_half_strength_follows_the_rule_that_is_chosen(folder):
    base = base_of()
    a = with_dora(lora(), base)

    def inside(block, before):
        v = before + 0.5 * delta(a, block)
        return a[f"{key(block)}.dora_scale"].double() * v / v.norm(dim=1, keepdim=True)

    made = merged(base, inside)
    assert folder.verified(made, base, (a, 0.5), dora_rule="inside").ok
    found = folder.verified(made, base, (a, 0.5))
    assert found.codes == [("dora-rule", "a")]
    assert "'inside'" in found.messages[0]


def test_the_order_in_which_dora_was_merged_is_named(folder):
    base, a = base_of(), lora()
    b = with_dora(lora(2), base)
    made = merged(base, lambda n, w: decomposed(b, w + delta(a, n), n))
    assert folder.verified(made, base, (a, ""), (b, "")).share == {"a": pytest.approx(1), "b": pytest.approx(1)}
    assert [code for code, _ in folder.verified(made, base, (b, ""), (a, "")).codes] == ["order"]


def test_another_multiplier_below_dora_is_named(folder):
    base, a = base_of(), lora()
    b = with_dora(lora(2), base)
    made = merged(base, lambda n, w: decomposed(b, w + 0.8 * delta(a, n), n))
    found = folder.verified(made, base, (a, 0.4), (b, ""))
    assert found.codes == [("multiplier", "a")]
    assert found.messages == ["a is there at another multiplier: 4 modules, 2 of it"]


def test_a_square_weight_that_is_merged_transposed_is_named(folder):
    base, a = base_of(out=IN), lora(out=IN)
    found = folder.verified(merged(base, lambda n, w: w + delta(a, n).t()), base, (a, ""))
    assert found.codes == [("transposed", "a")]


def test_multiplier_0_has_no_share_and_what_is_there_of_it_is_named(folder):
    base, a, b = base_of(), lora(), lora(2)
    made = merged(base, lambda n, w: w + delta(a, n))
    found = folder.verified(made, base, (a, ""), (b, 0))
    assert found.ok
    assert found.share == {"a": pytest.approx(1, abs=1e-5), "b": None}
    found = folder.verified(made, base, (b, 0), (a, 0))
    assert not found.ok
    assert found.codes == [("present-at-zero", "b")]
    found = folder.verified(merged(base, lambda n, w: w + delta(a, n) + 0.5 * delta(b, n)), base, (a, ""), (b, 0))
    assert found.codes == [("present-at-zero", "b")]
    assert found.messages == ["b is there though its multiplier is 0: 4 modules, 0.5 of it"]


def test_what_nothing_explains_is_named(folder):
    base, a = base_of(), lora()
    noise = 0.02 * drawn(9, OUT, IN).double()
    found = folder.verified(merged(base, lambda n, w: w + delta(a, n) + (noise if n == 3 else 0)), base, (a, ""))
    assert ("residual", None) in found.codes
    assert found.modules("residual") == [weight(3)]
    own = float(noise.norm() / delta(a, 3).norm())
    assert found.found.residuals[weight(3)] == pytest.approx(own, rel=0.05)
    whole = sum(float(delta(a, block).square().sum()) for block in range(BLOCKS)) ** 0.5
    assert found.found.residual == pytest.approx(float(noise.norm()) / whole, rel=0.05)


# A fused layer of Flux, and the names of the slices in kohya's files of diffusers' layout.
QKV = "double_blocks.0.img_attn.qkv.weight"


def test_a_lost_slice_of_a_fused_weight_is_named(folder):
    size = 16
    base = {QKV: 0.1 * drawn(0, 3 * size, size), "double_blocks.0.img_attn.qkv.bias": drawn(1, 3 * size)}
    names = [f"transformer.transformer_blocks.0.attn.to_{letter}" for letter in "qkv"]
    a = {}
    for number, name in enumerate(names):
        a[f"{name}.lora_A.weight"], a[f"{name}.lora_B.weight"] = (
            drawn(10 + number, 2, size),
            drawn(20 + number, size, 2),
        )
    a = {name: 0.2 * value for name, value in a.items()}
    deltas = [a[f"{name}.lora_B.weight"] @ a[f"{name}.lora_A.weight"] for name in names]
    assert folder.verified(base | {QKV: base[QKV] + torch.cat(deltas)}, base, (a, "")).ok
    found = folder.verified(base | {QKV: base[QKV] + torch.cat([deltas[0], deltas[1] * 0, deltas[2]])}, base, (a, ""))
    assert found.codes == [("missing", "a")]
    assert found.found.missing == [f"{QKV} [{names[1]}]"]
    rows = found.found.modules[QKV].popitem()[1]
    squares = [float(one.square().sum()) for one in deltas]
    assert rows == pytest.approx(1 - squares[1] / sum(squares), abs=1e-5)


def test_rows_that_a_fused_adapter_lost_are_named(folder):
    base, a = base_of(), lora()
    found = folder.verified(
        merged(base, lambda n, w: w + delta(a, n) * (torch.arange(OUT) // 8 != 1)[:, None]), base, (a, "")
    )
    assert found.codes == [("rows-missing", "a")]
    assert found.messages == [f"4 modules lack a part of a: rows 8 to 15 of {weight(0)} have nothing of it"]


def test_columns_that_a_conv1d_lost_are_named_as_rows_of_the_layer(folder):
    """Its weight is stored as (in, out)."""
    name, size = "h.0.attn.c_attn", 16
    base = {f"{name}.weight": 0.1 * drawn(0, size, 3 * size), f"{name}.bias": drawn(1, 3 * size)}
    down, up = drawn(2, 2, size), 0.2 * drawn(3, 3 * size, 2)
    a = {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
    change = (up @ down).t().contiguous()
    assert folder.verified(
        base | {f"{name}.weight": base[f"{name}.weight"] + change}, base, (a, "alpha=2,rslora=no")
    ).ok
    change[:, size : 2 * size] = 0
    found = folder.verified(base | {f"{name}.weight": base[f"{name}.weight"] + change}, base, (a, "alpha=2,rslora=no"))
    assert found.messages == [f"1 module lacks a part of a: rows 16 to 31 of {name}.weight have nothing of it"]


def test_a_merge_in_shards_is_compared_with_a_base_in_one_file(folder, tmp_path):
    base, a = base_of(), lora()
    made = merged(base, lambda n, w: w + delta(a, n))
    names = sorted(made)
    (tmp_path / "shards").mkdir()
    for number in (1, 2):
        own = {name: made[name] for name in names[number - 1 :: 2]}
        folder.file(f"shards/m-0000{number}-of-00002", own)
    assert folder.verified(tmp_path / "shards", base, (a, "")).ok
    assert folder.verified(made, tmp_path / "shards", (a, -1)).codes == [("missing", "a")]


def test_a_module_that_changes_nothing_beside_one_of_dora_is_no_reason_to_look_further(folder):
    base = base_of()
    a, b = with_dora(lora(), base), lora(2)
    b[f"{key(1)}.lora_up.weight"].zero_()
    found = folder.verified(merged(base, lambda n, w: decomposed(a, w, n) + delta(b, n)), base, (a, ""), (b, ""))
    assert found.ok
    assert found.codes == []


def test_tensors_beside_are_compared_but_for_their_types(folder):
    base, a = base_of(), lora()
    base |= {"x.weight": drawn(3, 5, 6), "h.weight": drawn(4, 5, 6), "mask": torch.full((3,), float("-inf"))}
    made = merged(base, lambda n, w: w + delta(a, n))
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in made.items()}
    assert folder.verified(half, base, (a, "")).ok
    assert folder.verified(made, half | {weight(n): base[weight(n)] for n in range(BLOCKS)}, (a, "")).ok
    moved = made | {"norm.weight": made["norm.weight"] + 1e-6, "positions": torch.arange(1, 6)}
    found = folder.verified(moved, base, (a, ""))
    assert found.found.unexpected.keys() == {"norm.weight", "positions"}
    assert not found.ok
    moved = half | {"x.weight": half["x.weight"] * 1.02}
    assert folder.verified(moved, base, (a, "")).found.unexpected.keys() == {"x.weight"}


def test_tensors_that_are_not_there_and_tensors_of_its_own_are_named(folder):
    base, a = base_of(), lora()
    made = merged(base, lambda n, w: w + delta(a, n))
    found = folder.verified({name: value for name, value in made.items() if name != "norm.weight"}, base, (a, ""))
    assert found.messages == ["tensors of the base that are not there: norm.weight"]
    assert not found.ok
    found = folder.verified(made | {"vae.weight": torch.ones(3)}, base, (a, ""))
    assert found.messages == ["tensors that the base has not: vae.weight"]
    assert found.ok


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(value, folder):
    base, a = base_of(), lora()
    made = merged(base, lambda n, w: w + delta(a, n))
    made[weight(1)][3, 4] = value
    made["norm.weight"] = torch.full((OUT,), value)
    found = folder.verified(made, base, (a, ""))
    assert found.modules("not-finite") == [weight(1)]
    assert found.of(1) is None
    assert found.of(0) == pytest.approx(1, abs=1e-5)
    assert list(found.found.unexpected) == ["norm.weight"]


def test_adapters_that_are_alike_are_judged_together(folder):
    base, a = base_of(), lora()
    b = {name: value.clone() for name, value in a.items()}
    found = folder.verified(merged(base, lambda n, w: w + 1.5 * delta(a, n)), base, (a, ""), (b, 0.5))
    assert found.share == {"a": None, "b": None}
    assert found.ok
    assert [code for code, _ in found.codes] == ["undetermined", "undetermined"]
    found = folder.verified(merged(base, lambda n, w: w + delta(a, n)), base, (a, ""), (b, 0.5))
    assert not found.ok
    assert "4 modules have 0.667 of what adapters change together that are alike" in found.messages


def test_a_change_below_the_rounding_of_the_type_cannot_be_told(folder):
    base = {name: value.bfloat16() if value.dim() == 2 else value for name, value in base_of().items()}
    a = lora(size=1e-4)
    found = folder.verified(merged(base, lambda n, w: w + delta(a, n)), base, (a, ""))
    assert found.share == {"a": None}
    assert not found.ok
    assert found.messages == [
        "cannot tell how much of a is in 4 modules: the change is smaller than what rounding leaves of it"
    ]


def test_a_module_without_a_change_is_left_out(folder):
    base, a = base_of(), lora()
    a[f"{key(1)}.lora_up.weight"].zero_()
    found = folder.verified(merged(base, lambda n, w: w + delta(a, n)), base, (a, ""))
    assert found.ok
    assert found.codes == []
    assert found.of(1) is None
    assert found.share["a"] == pytest.approx(1, abs=1e-5)


def test_what_is_no_pair_of_models_is_refused(folder):
    base, a = base_of(), lora()
    made = merged(base, lambda n, w: w + delta(a, n))
    with pytest.raises(LoraInspectError, match=r"a\.safetensors: it is an adapter, not a model.*where MERGED belongs"):
        folder.verified(folder.file("a", a), base, (lora(2), ""))
    with pytest.raises(LoraInspectError, match=r"a\.safetensors: it is an adapter, not a model.*where BASE belongs"):
        folder.verified(made, folder.file("a", a), (lora(2), ""))
    with pytest.raises(LoraInspectError, match=r"has shape \[24, 19\], but \[24, 20\] in .*give the base"):
        folder.verified(made | {weight(2): torch.ones(OUT, IN - 1)}, base, (a, ""))
    with pytest.raises(LoraInspectError, match=r"none of the 4 weights.*nearest name that it has is model\.blocks"):
        folder.verified({f"model.{name}": value for name, value in made.items()}, base, (a, ""))
