"""What is remembered of a file is not taken for another one that differs in anything that decides."""

from itertools import product

import pytest
from adapters import lora

from lora_inspect import architectures
from lora_inspect.architectures import by_name
from lora_inspect.architectures import detection as detection_module
from lora_inspect.architectures.detection import Detection, candidates
from lora_inspect.caching import Remembered
from lora_inspect.reading.identify import adapter_candidates, with_paths

QKV, DEEP = (("double_blocks.0.img_attn.qkv", 9216, 3072), ("double_blocks.18.img_attn.qkv", 9216, 3072))


def names(found):
    return [one.architecture.name for one in found]


def afresh(*given, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detection_module, "_found", Remembered(1))
        return candidates(*given, **options)


@pytest.mark.slow
def test_families_are_told_by_everything_that_is_given():
    """Each in turn twice, so that what is remembered of one is there when another is asked for."""
    modules = (
        [QKV],
        [(QKV[0], None, 3072)],
        [(QKV[0], 9216, 64)],
        [QKV, ("double_blocks.18.img_attn.qkv", 9216, 3072)],
    )
    said = ({}, {"ss_base_model_version": "flux1"}, {"modelspec.architecture": "flux-1-dev"}, {"ss_v2": "true"})
    said = (*said, {"ss_base_model_version": "flux1" + " " * 300}, {"ss_other": "flux1"})
    encoders = ((), by_name("flux").text_encoders[:1], by_name("sdxl").text_encoders[:1])
    answers = set()
    for _ in range(2):
        for own, metadata, shown, share in product(modules, said, encoders, (0.5, 0.9)):
            found = candidates(own, metadata, encoders=shown, minimum_share=share)
            assert found == afresh(own, metadata, encoders=shown, minimum_share=share)
            answers.add(tuple(map(str, found)))
    assert len(answers) > 2


def test_a_family_that_is_added_is_a_candidate_for_modules_that_were_read_before():
    pagoda = by_name("flux")._replace(name="pagoda", title="Pagoda")
    for _ in range(2):
        assert "pagoda" not in names(candidates([QKV], {}))
        with architectures.added(pagoda):
            assert "pagoda" in names(candidates([QKV], {}))


FAMILIES = {
    ("flux", "original"): "double_blocks.0.img_attn.qkv",
    ("hunyuan_video", "original"): "double_blocks.0.img_attn_qkv",
    ("wan", "original"): None,
}


def test_paths_are_those_of_the_families_that_are_given(read):
    adapter = read(lora("lora_unet_double_blocks_0_img_attn_qkv"))
    for (name, layout), path in 2 * [*FAMILIES.items()]:
        family = by_name(name)
        own = next(one for one in family.layouts if one.name == layout)
        (module,) = with_paths(adapter, [Detection(family, own, None, "")]).modules.values()
        assert module.path == path
        assert [one.path for one in with_paths(adapter, []).modules.values()] == [None]


def test_modules_of_one_kind_are_layers_each_by_its_own_name(read):
    """A parameter of a block is none, whatever has its shapes."""
    tensors = {**lora("diffusion_model.blocks.0.self_attn.q"), **lora("diffusion_model.blocks.0.modulation")}
    tensors |= {"diffusion_model.blocks.1.self_attn.q.diff": ("F32", (4, 4), 0.5)}
    (found,) = adapter_candidates(read(tensors))
    assert found.says.startswith("2 of 2 module names match")
