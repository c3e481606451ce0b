"""The sizes of the changes of every algorithm, against the merged weights that the oracles of its cases give."""

import math

import pytest
from every_case import CASES, WrittenCase
from safetensors.torch import load_file

from lora_inspect.algebra.measures.change_sizes import changes_of_base, measured_changes
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter

pytestmark = pytest.mark.numeric


def measured(path, base=None, **options):
    adapter = read_adapter(open_checkpoint(path))
    return measured_changes(adapter, base and changes_of_base(adapter, base), **options)


EVERY = [
    pytest.param(case, id=f"{name}: {case.id}", marks=() if case in (cases[0], cases[-1]) else pytest.mark.slow)
    for name, cases in CASES.items()
    for case in cases
]


@pytest.mark.parametrize("case", EVERY)
def test_every_algorithm_has_the_norm_of_what_a_merge_changes(case, tmp_path):
    written = WrittenCase(case, tmp_path)
    base, merged = load_file(written.base), case.oracle(1.0)
    norms = {name: float((merged[name].double() - base[name].double()).norm()) for name in base if name in merged}
    error = max(case.bound, 1e-9) * max(float(value.double().norm()) for value in base.values())
    found = measured(written.adapter, written.base)
    assert found.left_out == []
    assert math.hypot(*(one.norm for one in found.sizes)) == pytest.approx(math.hypot(*norms.values()), abs=error)
    changed = math.hypot(*(float(base[name].double().norm()) for name in base if norms.get(name)))
    assert math.hypot(*(one.weight_norm for one in found.sizes if one.norm > error)) == pytest.approx(changed, rel=1e-9)


@pytest.mark.parametrize("case", EVERY)
def test_without_a_base_and_torch_a_size_is_the_same_or_left_out(case, tmp_path):
    written = WrittenCase(case, tmp_path)
    whole = {(one.key, one.parameter): one.norm for one in measured(written.adapter, written.base).sizes}
    alone, light = measured(written.adapter), measured(written.adapter, with_torch=False)
    for found in (alone, light):
        left_out = {one.key for one in found.left_out}
        kept = {place: norm for place, norm in whole.items() if place[0] not in left_out}
        assert {(one.key, one.parameter): one.norm for one in found.sizes} == pytest.approx(kept, rel=1e-9)
    assert {one.key for one in alone.left_out} <= {one.key for one in light.left_out}
    assert all("--base BASE measures it" in one.reason for one in alone.left_out)


@pytest.mark.parametrize("name", ["adalora", "gralora", "tinylora", "vblora"])
def test_what_only_torch_computes_is_left_out_without_it(name, tmp_path):
    path = WrittenCase(CASES[name][0], tmp_path).adapter
    assert measured(path).left_out == []
    light = measured(path, with_torch=False)
    assert light.sizes == []
    assert all(one.reason.startswith("only torch computes ") for one in light.left_out)


def test_a_layer_without_a_bias_lacks_no_weight(tmp_path):
    case = next(one for one in CASES["ia3"] if one.id == "peft (IA)3 of outputs, no bias Linear")
    written = WrittenCase(case, tmp_path)
    found = measured(written.adapter, written.base)
    assert ([one.parameter for one in found.sizes], found.left_out) == (["weight"], [])
