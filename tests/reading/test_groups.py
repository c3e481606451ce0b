"""What is said of modules by their kinds is what is said of each of them alone."""

import math

import pytest
from adapters import lora
from hypothesis import given, settings
from hypothesis import strategies as st
from make_synthetic import element, encode
from strategies import odd_adapters

from lora_inspect.reading.keys import groups
from lora_inspect.reading.keys.groups import Likeness, ModuleGroups, changes_of_kinds, group_equal
from lora_inspect.scanning.scan_file import scan_file


def test_modules_of_other_shapes_alphas_and_magnitudes_are_of_other_kinds(read):
    tensors = lora("lora_unet_a_q", 4, 4.0) | lora("lora_unet_b_q", 4, 4.0) | lora("lora_unet_c_q", 2, 4.0)
    tensors |= lora("lora_unet_d_q", 4) | lora("lora_unet_e_q", 4, 4.0) | lora("lora_unet_f_q", 4, 2.0)
    tensors["lora_unet_e_q.dora_scale"] = ("F32", (tensors["lora_unet_e_q.lora_up.weight"][1][0], 1), 1.0)
    modules = read(tensors).modules
    assert group_equal(modules) is modules
    assert group_equal(dict(modules)).likeness == modules.likeness
    numbers = dict(zip((name[-3] for name in modules), modules.likeness.numbers, strict=True))
    assert numbers["a"] == numbers["b"]
    assert len(set(numbers.values())) == 5
    assert [change.module.key for change in changes_of_kinds(modules)] == [module.name.key for module in modules.firsts]


def test_other_values_are_alike_where_these_are():
    modules = ModuleGroups({"a": 1, "b": 2, "c": 3}, Likeness([0, 1, 0], [0, 1]))
    others = modules.with_values([4, 5, 6])
    assert others == {"a": 4, "b": 5, "c": 6}
    assert (others.firsts, others.likeness) == ([4, 5], modules.likeness)


@settings(max_examples=100)
@given(adapter=odd_adapters(), alphas=st.lists(st.sampled_from([None, 1.0]), max_size=4))
def test_a_file_has_the_row_that_it_has_module_by_module(adapter, alphas, tmp_path_factory):
    for place, alpha in enumerate(alphas):
        own = lora(f"lora_unet_blocks_{place}_q", 4, alpha)
        adapter |= {key: (dtype, shape, element(dtype, 1) * math.prod(shape)) for key, (dtype, shape, _) in own.items()}
    path = tmp_path_factory.getbasetemp() / "alike.safetensors"
    path.write_bytes(encode(adapter))
    found = repr(scan_file(str(path)))
    with pytest.MonkeyPatch.context() as patch:
        each = property(lambda modules: Likeness(range(len(modules)), range(len(modules))))
        patch.setattr(groups.ModuleGroups, "likeness", each)
        assert repr(scan_file(str(path))) == found
