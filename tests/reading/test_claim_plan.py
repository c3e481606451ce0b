"""What is claimed as before is what is claimed afresh: of modules that are alike, and of files that are alike."""

import pytest
from adapters import loras
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import odd_adapters

from lora_inspect import algorithms, schemes
from lora_inspect.algorithms.lora import ALGORITHM
from lora_inspect.caching import Remembered
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.keys import claims as claim_module
from lora_inspect.reading.keys import groups
from lora_inspect.reading.keys.claims import KeyGroup, claim
from lora_inspect.reading.keys.groups import claim_as_before


def tensors_of(adapter, file):
    """Their infos, at other places in each file."""
    start = len(file)
    return {
        key: TensorInfo(key, dtype, shape, file, start + place, start + place + 1)
        for place, (key, (dtype, shape, _)) in enumerate(adapter.items())
    }


class EachAlone(KeyGroup):
    """Tensors of a module that is like no other."""

    __slots__ = ()
    form = property(lambda group: (object(),))


@pytest.mark.slow
@settings(max_examples=300)
@given(adapter=odd_adapters(), copies=st.integers(2, 3))
def test_modules_that_are_alike_are_claimed_as_each_alone(adapter, copies):
    many = {key: tensor for key, tensor in adapter.items() if "_0_q" not in key}
    many |= {
        key.replace("_0_q", f"_{copy}_q"): tensor
        for copy in range(copies)
        for key, tensor in adapter.items()
        if "_0_q" in key
    }
    tensors = tensors_of(many, "a")
    found = claim(tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claim_module, "KeyGroup", EachAlone)
        alone = claim(tensors)
    assert found == alone
    assert list(found.modules) == list(alone.modules)


@pytest.mark.slow
@settings(max_examples=300)
@given(adapter=odd_adapters())
def test_a_file_like_an_earlier_one_is_claimed_as_afresh(adapter):
    assert claim_as_before(tensors_of(adapter, "a")) == claim(tensors_of(adapter, "a"))
    other = tensors_of(adapter, "another")
    assert claim_as_before(other) == claim(other)
    assert all(info.file == "another" for module in claim_as_before(other).modules.values() for info in module.tensors)


def test_an_algorithm_that_is_added_is_found_in_keys_that_were_read_before():
    adapter = {f"lora_unet_blocks_{at}_q.own_{side}": ("F32", (4, 4), b"") for at in (0, 1) for side in ("a", "b")}
    own = ALGORITHM._replace(
        name="own", dialects={"own": {"down": ".own_a", "up": ".own_b"}}, idle=(), common=(), peft_type=None
    )
    for _ in range(2):
        assert claim_as_before(tensors_of(adapter, "a")).modules == {}
        with algorithms.added(own):
            assert list(claim_as_before(tensors_of(adapter, "a")).modules) == [
                "lora_unet_blocks_0_q",
                "lora_unet_blocks_1_q",
            ]


def test_a_scheme_that_is_added_is_found_in_names_that_were_read_before():
    adapter = {key.replace("lora_unet_", "own_"): tensor for key, tensor in loras().items()}
    own = schemes.by_name("kohya")._replace(name="own", prefixes={"own_": "model"}, marks=(), hiding={})
    for _ in range(2):
        assert claim_as_before(tensors_of(adapter, "a")).scheme != "own"
        with schemes.added(own):
            assert claim_as_before(tensors_of(adapter, "a")).scheme == "own"


@pytest.mark.parametrize(("count", "kept"), [(4, 1), (5, 0)])
def test_files_of_many_tensors_are_not_remembered(count, kept, monkeypatch):
    monkeypatch.setattr(groups, "_remembered", Remembered(2))
    monkeypatch.setattr(groups, "_MOST_TENSORS", 12)
    tensors = tensors_of(loras(count), "a")
    assert claim_as_before(tensors) == claim(tensors)
    assert len(groups._remembered) == kept
