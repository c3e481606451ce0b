"""A file is what most of it is: a base with a common word at the end of a name is no adapter."""

import pytest
from adapters import base, lora, loras

from lora_inspect.algorithms import RECOGNISED, every
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.file_info import inspect, kind_of
from lora_inspect.reporting.file_record import as_json

MATRIX = ("F32", (4, 4), 1)


@pytest.fixture
def kind(write_safetensors):
    def tell(tensors):
        return kind_of(read_adapter(open_checkpoint(str(write_safetensors(tensors)))))

    return tell


COMMON = [found for found in every().values() if found.common and set(found.common) == set(found.suffixes.values())]
# Of the others any matrix is one.
LEFT, RIGHT = ("F32", (4, 2), 1), ("F32", (2, 4), 1)
PRODUCTS = {
    name: dict(zip((".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight"), shapes, strict=True))
    for name, shapes in {"glora": (LEFT, RIGHT, LEFT, RIGHT), "old_glora": (RIGHT, LEFT, RIGHT, LEFT)}.items()
}
# What a built algorithm alone calls its tensors makes an adapter of a file.
OWN = {
    suffix
    for algorithm in every().values()
    for suffix, role in algorithm.suffixes.items()
    if algorithm.formula and role not in algorithm.common
}


@pytest.mark.parametrize("suffix", sorted({suffix for found in every().values() for suffix in found.suffixes} - OWN))
def test_one_name_that_ends_like_an_adapters_makes_no_adapter(suffix, kind):
    found, reading = kind({**base(3), f"blocks.0.gate{suffix}": MATRIX})
    assert found == "base"
    assert (reading.modules, reading.problems, reading.scheme) == ({}, (), None)
    assert set(reading.unclaimed) == {*base(3), f"blocks.0.gate{suffix}"}


@pytest.mark.parametrize("algorithm", RECOGNISED, ids=lambda algorithm: algorithm.name)
def test_real_adapters_of_every_recognised_algorithm_stay_adapters(algorithm, kind):
    tensor = ("F32", (2, 2, 3, 3), 1) if algorithm.fits else MATRIX
    tensors = {f"lora_unet_blocks_{i}_q{suffix}": tensor for i in range(3) for suffix in algorithm.suffixes}
    found, reading = kind(tensors)
    assert found == "adapter"
    assert [problem.code for problem in reading.problems if problem.severity == "error"] == ["algorithm-unsupported"]


@pytest.mark.parametrize("algorithm", COMMON, ids=lambda algorithm: algorithm.name)
def test_files_of_common_words_alone_are_adapters(algorithm, kind):
    factors = PRODUCTS.get(algorithm.name) or dict.fromkeys(algorithm.suffixes, MATRIX)
    found, reading = kind(
        {f"lora_unet_blocks_{i}_q{suffix}": factor for i in range(3) for suffix, factor in factors.items()}
    )
    assert (found, reading.problems) == ("adapter", ())


def test_a_number_with_a_common_word_for_its_name_is_nothing(kind):
    found, reading = kind({**base(3), "blocks.0.diff": ("F32", (), 1), "blocks.0.w_norm": ("F32", (0,), 1)})
    assert (found, reading.modules, reading.problems) == ("base", {}, ())


def test_one_pair_of_factors_makes_an_adapter_of_any_file(kind):
    assert kind({**base(50), **lora("blocks.0.attn.q")})[0] == "adapter"
    assert kind({**base(50), "blocks.0.attn.q.lora_down.weight": MATRIX})[0] == "adapter"


def test_a_file_that_is_neither_is_other(kind):
    assert kind({"a": ("F32", (3,), 1)})[0] == "other"
    assert kind({"use_rslora_flag": ("BOOL", (), b"\x01")})[0] == "other"


def test_info_says_nothing_of_an_adapter_where_there_is_none(write_safetensors):
    record = as_json(inspect(str(write_safetensors({**base(3), "blocks.0.b1.weight": MATRIX}))), modules=True)
    assert (record["kind"], record["modules"], record["algorithms"]) == ("base", 0, {})
    assert record["problems"] == record["unclaimed"] == record["module_list"] == []
    assert record["parameters"] == 3 * 30 + 16


def test_such_a_base_is_merged_into_and_refused_as_an_adapter(write_safetensors, run, tmp_path):
    odd = write_safetensors({**base(3), "blocks.0.b1.weight": MATRIX}, name="base.safetensors")
    adapter = write_safetensors(loras(3), name="adapter.safetensors")
    assert run("merge", odd, adapter, "-o", tmp_path / "out.safetensors", "--json").json["modules_merged"] == 3
    assert "none of its 4 tensors belongs to a known adapter" in run("merge", odd, odd, "-o", tmp_path / "o").refusal
    assert "base.safetensors" in run("merge", adapter, odd, "-o", tmp_path / "o").refusal


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["w_a_000", "w_b_000", "w_a_001", "w_b_001"], "have names of Sam_LoRA"),
        (["lora_unet_a_lora_down.weight", "lora_unet_a_lora_up.weight"], "mention LoRA in no known naming"),
        (["x.Lora.weight", "odd.weight"], "mention LoRA in no known naming"),
    ],
)
def test_an_adapter_of_no_known_scheme_is_refused_by_its_names(keys, says, kind):
    found, adapter = kind(dict.fromkeys(keys, MATRIX))
    (problem,) = (one for one in adapter.problems if one.code == "scheme-unknown")
    assert (found, problem.severity) == ("adapter", "error")
    assert says in problem.message
    with pytest.raises(LoraInspectError, match=says):
        adapter.refuse()


@pytest.mark.parametrize(
    "tensors",
    [
        base(),
        {**base(), "lora.weight": MATRIX},
        {**loras(1), "x.lora_odd": MATRIX},
        dict.fromkeys(["w_a_00", "w_c_000"], MATRIX),
    ],
)
def test_a_few_odd_names_are_no_scheme(tensors, kind):
    assert "scheme-unknown" not in {problem.code for problem in kind(tensors)[1].problems}


def test_what_is_told_already_is_no_scheme(kind):
    found, adapter = kind({"base_model.unilora_theta_d": ("F32", (4,), 1)})
    assert found == "adapter"
    assert "scheme-unknown" not in {problem.code for problem in adapter.problems}
