"""Which way the factors of GLoRA are multiplied, as far as their shapes tell, and what no file tells."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.algorithms import every
from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

NEW = {"a1": "ir", "a2": "ri", "b1": "or", "b2": "ri"}
OLD = {"a1": "ri", "a2": "ir", "b1": "ri", "b2": "or"}


def factors(letters, **sizes):
    generator = torch.Generator().manual_seed(1)
    return {
        f"lycoris_layer.{name}.weight": torch.randn([sizes[letter] for letter in both], generator=generator)
        for name, both in letters.items()
    }


@pytest.fixture
def read(tmp_path, run):
    def info(tensors, metadata=None):
        save_file(tensors, tmp_path / "adapter.safetensors", metadata)
        return run("info", tmp_path / "adapter.safetensors", "--json", "--modules").json

    return info


@pytest.mark.parametrize(
    ("letters", "sizes", "expected"),
    [
        (NEW, {"i": 6, "o": 5, "r": 2}, ("glora", [5, 6], 2)),
        (OLD, {"i": 6, "o": 5, "r": 2}, ("old_glora", [5, 6], 2)),
        # Square layers, whose factors are products either way.
        (NEW, {"i": 6, "o": 6, "r": 2}, ("glora", [6, 6], 2)),
        (OLD, {"i": 6, "o": 6, "r": 2}, ("old_glora", [6, 6], 2)),
        # A rank above the sizes, of layers that are not square.
        (NEW, {"i": 2, "o": 3, "r": 4}, ("glora", [3, 2], 4)),
        (OLD, {"i": 2, "o": 3, "r": 4}, ("old_glora", [3, 2], 4)),
        (NEW, {"i": 4, "o": 3, "r": 4}, ("glora", [3, 4], 4)),
        (OLD, {"i": 4, "o": 3, "r": 4}, ("old_glora", [3, 4], 4)),
    ],
)
def test_shapes_tell_the_order(letters, sizes, expected, read):
    record = read(factors(letters, **sizes) | {"lycoris_layer.alpha": torch.tensor(1.0)})
    (module,) = record["module_list"]
    assert (module["algorithm"], module["shape"], module["rank"]) == expected
    assert (record["problems"], record["scales"]) == ([], {f"{1 / expected[2]:.6g}": 1})


def test_a_rank_of_all_inputs_and_outputs_leaves_the_order_open(read, tmp_path):
    record = read(factors(NEW, i=4, o=4, r=4))
    (problem,) = record["problems"]
    assert (problem["code"], problem["severity"]) == ("formula-unknown", "error")
    assert "from LyCORIS before or since version 3" in problem["message"]


def test_the_weight_refuses_the_order_that_its_factors_do_not_show(read, tmp_path):
    """Of 2 inputs and outputs at rank 6 the factors look like those of before, of 6 at rank 2."""
    read(factors(NEW, i=2, o=2, r=6))
    save_file({"layer.weight": torch.ones(2, 2)}, tmp_path / "base.safetensors")
    paths = str(tmp_path / "base.safetensors"), [(str(tmp_path / "adapter.safetensors"), 1.0)]
    with pytest.raises(LoraInspectError, match=r"changes a weight of \[6, 6\]"):
        plan_merge(*paths, MergeOptions())


@pytest.mark.parametrize("says", ["True", "true", "1"])
def test_rs_lora_is_refused_where_the_metadata_show_it(says, read):
    record = read(factors(NEW, i=6, o=5, r=2), {"ss_network_args": f'{{"algo": "glora", "rs_lora": "{says}"}}'})
    (problem,) = record["problems"]
    assert "alpha/sqrt(rank)" in problem["message"]


@pytest.mark.parametrize("args", ['{"rs_lora": "False"}', "[]", "{", "nul", '{"rs_lora": null}'])
def test_what_says_nothing_of_rs_lora_is_no_problem(args, read):
    record = read(factors(NEW, i=6, o=5, r=2), {"ss_network_args": args})
    assert [problem["code"] for problem in record["problems"]] == []


BAD = [(), (0,), (7,), (1, 1), (0, 3), (2, 3, 4), (2, 3, 4, 5, 6)]


@pytest.mark.parametrize("name", ["glora", "old_glora"])
@pytest.mark.parametrize("odd", BAD)
@pytest.mark.parametrize("role", ["a1", "a2", "b1", "b2", "bm"])
def test_shapes_that_make_no_products_are_told(name, odd, role):
    letters = NEW if name == "glora" else OLD
    sizes = {"i": 6, "o": 5, "r": 2}
    shapes = {each: tuple(sizes[letter] for letter in both) for each, both in letters.items()}
    assert every()[name].formula.check(shapes) is None
    assert "cannot be multiplied" in every()[name].formula.check({**shapes, role: odd})


def test_a_scale_that_no_factor_takes_is_refused_where_readers_go_by_no_alpha(run, tmp_path):
    renamed = {
        key.replace("lycoris_layer", "transformer.layer"): tensor for key, tensor in factors(NEW, i=6, o=5, r=2).items()
    }
    save_file({**renamed, "transformer.layer.alpha": torch.tensor(3.0)}, tmp_path / "in.safetensors")
    refusal = run("convert", tmp_path / "in.safetensors", "-o", tmp_path / "out.safetensors").refusal
    assert "no single factor can take its scale of 1.5" in refusal


def test_what_was_folded_before_is_mixed_as_well(tmp_path):
    lora = {"lycoris_layer.lora_up.weight": torch.ones(5, 1), "lycoris_layer.lora_down.weight": torch.ones(1, 6)}
    own = factors(NEW, i=6, o=5, r=2)
    save_file({**lora, **own}, tmp_path / "adapter.safetensors")
    save_file({"layer.weight": torch.zeros(5, 6)}, tmp_path / "base.safetensors")
    plan = plan_merge(
        str(tmp_path / "base.safetensors"), [(str(tmp_path / "adapter.safetensors"), 1.0)], MergeOptions()
    )
    merge(plan, str(tmp_path / "merged.safetensors"))
    a1, a2, b1, b2 = own.values()
    expected = torch.ones(5, 6) @ (torch.eye(6) + a1 @ a2) + b1 @ b2
    torch.testing.assert_close(load_file(tmp_path / "merged.safetensors")["layer.weight"], expected)
